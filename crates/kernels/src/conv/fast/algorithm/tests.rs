//! Transforms as the matrices that they are.

use super::*;
use crate::simd::Scalar;

/// Column `column` of a transform, read off by applying it to a unit vector.
fn probe(transform: impl Fn([[f32; 4]; MAX]) -> [[f32; 4]; MAX], column: usize) -> [f64; MAX] {
    let mut unit = [[0.0; 4]; MAX];
    unit[column] = [1.0; 4];
    transform(unit).map(|lanes| f64::from(lanes[0]))
}

/// For every tap and every input the tile's products add up to the filter: the algorithm is exact up to the rounding
/// of its constants, and a short tile is exact without the last points.
fn is_a_filter<A: Algorithm>() {
    for short in [false, true] {
        let outputs = A::OUTPUTS - usize::from(short);
        for place in 0..A::INPUTS {
            let data = probe(|d| A::input(Scalar, d), place);
            for tap in 0..A::TAPS {
                let mut y = [0.0; MAX];
                for point in (0..A::POINTS).filter(|&point| !(short && A::is_last(point))) {
                    let product = A::weights(point)[tap] * data[point];
                    let column = probe(|m| A::output(Scalar, m), point);
                    y.iter_mut().zip(column).for_each(|(y, factor)| *y += factor * product);
                }
                for (output, y) in y.iter().take(outputs).enumerate() {
                    let expected = f64::from(place == output * A::STRIDE + tap);
                    assert!((y - expected).abs() < 1e-6, "tap {tap} of input {place} to {output}: {y}");
                }
            }
        }
    }
}

fn is_the_transpose<A: Algorithm>() {
    for point in 0..A::POINTS {
        let column = probe(|m| A::output(Scalar, m), point);
        for (output, expected) in column.iter().enumerate().take(A::OUTPUTS) {
            let found = probe(|y| A::gradient(Scalar, y), output)[point];
            assert!((found - expected).abs() < 1e-6, "point {point} of output {output}: {found}");
        }
    }
}

fn filters_as_its_matrix<A: Algorithm>() {
    for tap in 0..A::TAPS {
        let column = probe(|w| A::filter(Scalar, w), tap);
        for (point, found) in column.iter().enumerate().take(A::POINTS) {
            let expected = A::weights(point)[tap];
            assert!((found - expected).abs() < 1e-6, "tap {tap} at point {point}: {found}");
        }
    }
}

/// Checks each algorithm.
macro_rules! all {
    ($holds:ident) => {
        $holds::<F2>();
        $holds::<F3>();
        $holds::<F4>();
        $holds::<F5>();
        $holds::<F4Of4>();
        $holds::<S3>();
    };
}

#[test]
fn filters_are_products_with_their_matrices() {
    all!(filters_as_its_matrix);
}

#[test]
fn gradients_are_the_outputs_transposed() {
    all!(is_the_transpose);
}

#[test]
fn tiles_are_filters() {
    all!(is_a_filter);
}
