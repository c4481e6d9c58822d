//! Products of tiles in threes: by what weights are multiplied at each point, and what is taken off.

use super::Tiling;
use super::algorithm::{Algorithm, F2, F3, F4, F4Of4, F5, MAX, S3};
use super::square::Square;
use super::strassen::{Strassen, Twice};
use super::transform::{MAX_POINTS, Transform};
use crate::gemm::micro::is_minus;
use crate::simd::{Scalar, Simd, Task};
use crate::vector::total;
use std::ops::Range;

/// By what power of two the weights of each point are multiplied, so that they are as large as the tiles' values there, where both were
/// before the transforms.
pub(super) fn scales(tiling: Tiling) -> Vec<f32> {
    match tiling {
        Tiling::F2 => of_points::<Square<F2>>(),
        Tiling::F3 => of_points::<Square<F3>>(),
        Tiling::F4 => of_points::<Square<F4>>(),
        Tiling::F5 => of_points::<Square<F5>>(),
        Tiling::S3 => of_points::<Square<S3>>(),
        Tiling::S7 => of_points::<Square<F4Of4>>(),
        Tiling::Strassen => of_points::<Strassen>(),
        Tiling::Twice => of_points::<Twice>(),
    }
}

fn of_points<T: Transform>() -> Vec<f32> {
    (0..T::POINTS).map(|point| (T::gain(point).log2() / 2.0).round().exp2() as f32).collect()
}

/// How much larger the square of a point's value is, along one axis, where the input has random values than where weights have.
pub(super) fn gain<A: Algorithm>(point: usize) -> f64 {
    let square = |value: f32| f64::from(value) * f64::from(value);
    let inputs = (0..A::INPUTS).map(|input| {
        let mut values = [Scalar.zero(); MAX];
        values[input] = Simd::splat(Scalar, 1.0);
        square(A::input(Scalar, values)[point][0])
    });
    let weights = A::weights(point).into_iter().map(|weight| weight * weight);
    inputs.sum::<f64>() / weights.sum::<f64>()
}

/// What takes such scales, and a factor of all points, back.
pub(super) fn inverse(scales: &[f32], factor: f32) -> [f32; MAX_POINTS] {
    let mut inverse = [0.0; MAX_POINTS];
    inverse.iter_mut().zip(scales).for_each(|(to, scale)| *to = 1.0 / (scale * factor));
    inverse
}

/// Scales transformed weights of a panel, and sums what its columns bring with them.
pub(super) struct OfWeights<'a> {
    pub(super) scales: &'a [f32],
    pub(super) factor: f32,
    /// `[point][rows][width]`, and the values between two points.
    pub(super) weights: (*mut f32, usize),
    pub(super) rows: usize,
    /// Whole vectors.
    pub(super) width: usize,
    /// `[point][width]`, and the values between two points.
    pub(super) sums: (*mut f32, usize),
    /// Whether the sums are added to those of rows before, whole vectors of which were even in number.
    pub(super) add: bool,
}

impl Task for OfWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let OfWeights { scales, factor, weights, rows, width, sums, add } = self;
        for (point, scale) in scales.iter().enumerate() {
            let scale = simd.splat(scale * factor);
            let [weights, sums] =
                [weights, sums].map(|(first, step): (*mut f32, usize)| first.wrapping_add(point * step));
            for column in (0..width).step_by(S::LANES) {
                // SAFETY: each point has `rows` rows of weights and one of sums, of `width` values, which are whole vectors; the
                // caller lends them to this task.
                unsafe {
                    let row = |row: usize| weights.wrapping_add(row * width + column);
                    let scaled = |at: usize| {
                        let value = simd.mul(simd.load(row(at)), scale);
                        simd.store(row(at), value);
                        value
                    };
                    let mut sum = if add { simd.load(sums.add(column)) } else { simd.zero() };
                    for first in (0..rows).step_by(S::LANES) {
                        let count = S::LANES.min(rows - first);
                        let odd = !(first / S::LANES).is_multiple_of(2);
                        let threes = if count == S::LANES { S::LANES / 3 * 3 } else { 0 };
                        for lane in (0..threes).step_by(3) {
                            let [a, b, _] = [0, 1, 2].map(|next| scaled(first + lane + next));
                            sum = match is_minus::<S>(odd, lane) {
                                true => simd.mul_sub_from(a, b, sum),
                                false => simd.mul_add(a, b, sum),
                            };
                        }
                        for lane in threes..count {
                            scaled(first + lane);
                        }
                    }
                    simd.store(sums.add(column), sum);
                }
            }
        }
    }
}

/// Sums what transformed tiles bring with them, behind each point of V.
pub(super) struct OfTiles {
    /// `[point][vector][tile][lanes]`, and the values between two points.
    pub(super) v: (*mut f32, usize),
    pub(super) points: Range<usize>,
    pub(super) tiles: usize,
    /// Channels.
    pub(super) depth: usize,
}

impl Task for OfTiles {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let OfTiles { v: (v, step), points, tiles, depth } = self;
        let signs = |odd: bool| {
            let mut signs = [0.0; 16];
            for lane in (0..S::LANES / 3 * 3).step_by(3) {
                signs[lane] = if is_minus::<S>(odd, lane) { -1.0 } else { 1.0 };
            }
            // SAFETY: as many as the most lanes.
            unsafe { simd.load(signs.as_ptr()) }
        };
        let signs = [signs(false), signs(true)];
        let sums = depth.next_multiple_of(S::LANES) * tiles;
        for point in points {
            let v = v.wrapping_add(point * step);
            for tile in 0..tiles {
                let mut sum = simd.zero();
                for vector in 0..depth / S::LANES {
                    let from = v.wrapping_add((vector * tiles + tile) * S::LANES);
                    // SAFETY: each point has a vector for each tile.
                    unsafe {
                        let value = simd.mul(simd.load(from), signs[vector % 2]);
                        let next = simd.load_partial(from.add(1), S::LANES - 1);
                        sum = simd.mul_add(value, next, sum);
                    }
                }
                // SAFETY: behind V's values there is room for a sum of each tile.
                unsafe { *v.add(sums + tile) = total(simd, sum) };
            }
        }
    }
}
