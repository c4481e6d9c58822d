//! Plain and transposed products at every level against the f64 sum, on random shapes.

use super::*;
use crate::Level;
use crate::bf16::Operands;
use crate::prologue::{Prologue, Source};
use crate::testing::{Random, UNIT, assert_same_bits_for_all_threads, contexts};

const SHAPES: usize = 220;

/// Sizes that run over all tails of rows, vectors and panels, and nothing at all.
fn size(random: &mut Random) -> usize {
    [random.below(5), 1 + random.below(40), 1 + random.below(150)][random.below(3)]
}

/// Asserts `|found − Σ a·b| ≤ (terms + 2)·2⁻²⁴·Σ|a·b|`, the bound of any order of summation.
fn assert_product(found: f32, terms: impl Iterator<Item = f64> + Clone, count: usize, what: &str) {
    let (sum, magnitude): (f64, f64) = (terms.clone().sum(), terms.map(f64::abs).sum());
    let bound = (count as f64 + 2.0) * UNIT * magnitude;
    assert!((f64::from(found) - sum).abs() <= bound, "{what}: {found}, expected {sum} ± {bound:e}");
}

/// `C = Aᵀ·B`: A is `length × rows`, B is `length × columns`, C is `rows × columns`.
fn multiply_transposed(
    cx: &Context,
    [length, rows, columns]: [usize; 3],
    [a, b]: [&[f32]; 2],
    scratch: &mut TransposedScratch,
) -> Vec<f32> {
    let (gather, operands) = (Gather::matrix(length, rows), Operands::F32);
    let (input, gather) = (a.into(), &gather);
    let mut c = vec![f32::NAN; rows * columns];
    TransposedProduct { images: 1, input, gather, groups: 1, b, columns, operands, factor: 1.0 }
        .run(cx, scratch, &mut c);
    c
}

#[test]
fn products_agree_with_the_sums() {
    let (mut random, contexts) = (Random::new(51), contexts());
    for case in 0..SHAPES {
        // Some depths go beyond a block of the packed matrix.
        let [m, n] = [size(&mut random), size(&mut random)];
        let k = if case % 20 == 0 { 1000 + random.below(1200) } else { size(&mut random) };
        let (a, b) = (random.values(m * k), random.values(k * n));
        for cx in &contexts {
            let packed = PackedMatrix::new(cx.level(), k, n, |row, column| b[row * n + column]);
            let mut c = vec![f32::NAN; m * n];
            multiply(cx, m, &a, &packed, Epilogue::default(), &mut c);
            for (index, &found) in c.iter().enumerate() {
                let (i, j) = (index / n, index % n);
                let terms = (0..k).map(|x| f64::from(a[i * k + x]) * f64::from(b[x * n + j]));
                assert_product(found, terms, k, &format!("{} {m}x{k}x{n}", cx.level().name()));
            }
        }
    }
}

/// Enough rows for as many tasks that a block of them meets several panels, as they stand and through a prologue; and fewer rows with
/// a B of which the next part is asked for.
#[test]
fn blocks_of_tall_products_meet_their_panels() {
    let mut random = Random::new(54);
    for cx in contexts() {
        for [m, k, n] in [[1603, 7, 70], [801, 1030, 70], [61, 1030, 150]] {
            let (raw, b) = (random.values(m * k), random.values(k * n));
            let a: Vec<f32> = raw.iter().map(|x| x.max(0.0)).collect();
            let (bias, residual) = (random.values(n), random.values(m * n));
            let packed = PackedMatrix::new(cx.level(), k, n, |row, column| b[row * n + column]);
            let added = Some(Residual::Tensor(&residual));
            let epilogue = Epilogue { bias: Some(&bias), residual: added, relu: true, follow: None };
            let mut c = vec![f32::NAN; m * n];
            multiply(&cx, m, &a, &packed, epilogue, &mut c);
            for (index, &found) in c.iter().enumerate() {
                let (i, j) = (index / n, index % n);
                let terms = (0..k).map(|x| f64::from(a[i * k + x]) * f64::from(b[x * n + j]));
                let terms = terms.chain([f64::from(bias[j]), f64::from(residual[index])]);
                let (sum, magnitude): (f64, f64) = (terms.clone().sum(), terms.map(f64::abs).sum());
                let bound = (k as f64 + 4.0) * UNIT * magnitude;
                assert!(
                    (f64::from(found) - sum.max(0.0)).abs() <= bound,
                    "{} {m}x{k}x{n}, value {index}: {found}, expected {sum} ± {bound:e}",
                    cx.level().name()
                );
            }
            let (scale, shift) = (vec![1.0; k], vec![0.0; k]);
            let prologue = Some(Prologue { scale: &scale, shift: &shift });
            let (input, gather) = (Source { values: &raw, prologue }, &Gather::matrix(m, k));
            let (b, scatter) = (&packed, &Scatter::dense(m, 1, n));
            let mut through = vec![f32::NAN; m * n];
            Product { images: 1, input, offset: 0, gather, b, scatter, column: 0, epilogue }.run(
                &cx,
                &mut PreparedScratch::default(),
                &mut through,
            );
            assert!(through == c, "{} {m}x{k}x{n} through a prologue", cx.level().name());
        }
    }
}

#[test]
fn transposed_products_agree_with_the_sums() {
    let (mut random, contexts) = (Random::new(52), contexts());
    for case in 0..SHAPES {
        let [m, n] = [random.below(51), random.below(81)];
        // Some sums are long enough to be cut into parts.
        let length = if case % 20 == 0 { 600 + random.below(900) } else { size(&mut random) };
        let (a, b) = (random.values(length * m), random.values(length * n));
        for cx in &contexts {
            let c = multiply_transposed(cx, [length, m, n], [&a, &b], &mut TransposedScratch::default());
            for (index, &found) in c.iter().enumerate() {
                let (i, j) = (index / n, index % n);
                let terms = (0..length).map(|x| f64::from(a[x * m + i]) * f64::from(b[x * n + j]));
                assert_product(found, terms, length, &format!("{} {m}x{length}x{n}", cx.level().name()));
            }
        }
    }
}

#[test]
fn the_bits_do_not_depend_on_the_number_of_threads() {
    let mut random = Random::new(53);
    let (a, b) = (random.values(700 * 90), random.values(700 * 70));
    assert_same_bits_for_all_threads(|cx| {
        let transposed = multiply_transposed(cx, [700, 90, 70], [&a, &b], &mut TransposedScratch::default());
        let packed = PackedMatrix::new(cx.level(), 90, 70, |row, column| b[row * 70 + column]);
        let mut plain = vec![0.0; 700 * 70];
        multiply(cx, 700, &a, &packed, Epilogue::default(), &mut plain);
        vec![transposed, plain]
    });
}

#[test]
#[should_panic(expected = "the input is too short")]
fn a_short_matrix_is_refused() {
    let cx = Context::new(Level::detect(), 1);
    let packed = PackedMatrix::new(cx.level(), 4, 4, |_, _| 1.0);
    multiply(&cx, 3, &[0.0; 11], &packed, Epilogue::default(), &mut [0.0; 12]);
}
