//! Batch norm against its definition in f64, at every level, on random shapes.

use super::*;
use crate::Level;
use crate::testing::{Random, absolute_sum, wide};

const SHAPES: usize = 220;

/// Batch norm with gain, bias and residual in plain loops, without a ReLU: `(y, mean, variance)`.
fn oracle(
    x: &[f64],
    gamma: &[f64],
    beta: &[f64],
    residual: &[f64],
    epsilon: f64,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let channels = gamma.len();
    let rows = (x.len() / channels) as f64;
    let column = |c: usize| x.iter().skip(c).step_by(channels);
    let mean: Vec<f64> = (0..channels).map(|c| column(c).sum::<f64>() / rows).collect();
    let var: Vec<f64> =
        (0..channels).map(|c| column(c).map(|x| (x - mean[c]).powi(2)).sum::<f64>() / rows).collect();
    let y = x.iter().zip(residual).enumerate().map(|(i, (x, residual))| {
        let c = i % channels;
        gamma[c] * (x - mean[c]) / (var[c] + epsilon).sqrt() + beta[c] + residual
    });
    (y.collect(), mean, var)
}

fn random_shape(random: &mut Random) -> (usize, usize) {
    let channels = [1 + random.below(5), 1 + random.below(70), 16 * (1 + random.below(4))][random.below(3)];
    let rows = [1 + random.below(6), 1 + random.below(100), 200 + random.below(400)][random.below(3)];
    (rows, channels)
}

#[test]
fn statistics_and_application_agree_with_the_definition() {
    let mut random = Random::new(11);
    let contexts: Vec<Context> = Level::available().into_iter().map(|level| Context::new(level, 2)).collect();
    for case in 0..SHAPES {
        let (rows, channels) = random_shape(&mut random);
        // Some channels lie far from zero: their deviation is a thousandth of their mean.
        let offset = if case % 4 == 0 { 1000.0 } else { 0.0 };
        let x: Vec<f32> = random.values(rows * channels).iter().map(|x| x + offset).collect();
        let (scale, shift) = (random.values(channels), random.values(channels));
        let residual = random.values(x.len());
        let (x64, zeros) = (wide(&x), vec![0.0; x.len()]);
        let ones = vec![1.0; channels];
        let (_, mean, var) = oracle(&x64, &ones, &vec![0.0; channels], &zeros, 1e-5);
        for cx in &contexts {
            let (mut m, mut v) = (vec![f32::NAN; channels], vec![f32::NAN; channels]);
            statistics(cx, &x, &mut m, &mut v);
            for c in 0..channels {
                // One rounding of the mean; a piece's sums have at most 256 terms of squares of at most 4.
                assert!(
                    (f64::from(m[c]) - mean[c]).abs() <= 256.0 * 2.0 * 6e-8 + 6e-8 * mean[c].abs(),
                    "mean"
                );
                assert!(
                    (f64::from(v[c]) - var[c]).abs() <= 2.0 * 256.0 * 4.0 * 6e-8,
                    "variance {} {}",
                    v[c],
                    var[c]
                );
            }
            let mut y = vec![f32::NAN; x.len()];
            let relu = case % 2 == 0;
            let with = (case % 3 == 0).then_some(&residual[..]);
            apply(cx, Apply { x: &x, scale: &scale, shift: &shift, residual: with, relu }, &mut y);
            for (i, &found) in y.iter().enumerate() {
                let c = i % channels;
                let terms = [
                    x64[i] * f64::from(scale[c]),
                    f64::from(shift[c]),
                    with.map_or(0.0, |r| f64::from(r[i])),
                ];
                let expected = terms.iter().sum::<f64>();
                let expected = if relu { expected.max(0.0) } else { expected };
                // Three roundings of partial sums.
                assert!(
                    (f64::from(found) - expected).abs() <= 3.0 * 6e-8 * absolute_sum(&terms),
                    "{found} {expected}"
                );
            }
        }
    }
}

/// The gradient formula in f64, with g the gradient after the ReLU's mask.
fn gradient_oracle(x: &[f64], g: &[f64], gamma: &[f64], epsilon: f64) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let channels = gamma.len();
    let rows = (x.len() / channels) as f64;
    let (_, mean, var) = oracle(x, gamma, &vec![0.0; channels], &vec![0.0; x.len()], epsilon);
    let normalised = |i: usize| (x[i] - mean[i % channels]) / (var[i % channels] + epsilon).sqrt();
    let sum = |c: usize, f: &dyn Fn(usize) -> f64| (c..x.len()).step_by(channels).map(f).sum::<f64>();
    let dbeta: Vec<f64> = (0..channels).map(|c| sum(c, &|i| g[i])).collect();
    let dgamma: Vec<f64> = (0..channels).map(|c| sum(c, &|i| g[i] * normalised(i))).collect();
    let dx = (0..x.len()).map(|i| {
        let c = i % channels;
        gamma[c] / (var[c] + epsilon).sqrt() * (g[i] - dbeta[c] / rows - normalised(i) * dgamma[c] / rows)
    });
    (dx.collect(), dgamma, dbeta)
}

#[test]
fn gradients_agree_with_the_formula() {
    let mut random = Random::new(12);
    let contexts: Vec<Context> = Level::available().into_iter().map(|level| Context::new(level, 2)).collect();
    for case in 0..SHAPES {
        let (rows, channels) = random_shape(&mut random);
        let (x, dy, y) =
            (random.values(rows * channels), random.values(rows * channels), random.values(rows * channels));
        let gamma = random.values(channels);
        let relu = case % 2 == 0;
        let g: Vec<f64> =
            dy.iter().zip(&y).map(|(dy, y)| if relu && *y <= 0.0 { 0.0 } else { f64::from(*dy) }).collect();
        // A large ε keeps 1/σ tame where a channel has one row or two.
        let epsilon = 0.1;
        let (dx_expected, dgamma_expected, dbeta_expected) =
            gradient_oracle(&wide(&x), &g, &wide(&gamma), epsilon);
        let zeros = vec![0.0; x.len()];
        let (_, mean, var) = oracle(&wide(&x), &vec![1.0; channels], &vec![0.0; channels], &zeros, epsilon);
        let mean: Vec<f32> = mean.iter().map(|&mean| mean as f32).collect();
        let inv_std: Vec<f32> = var.iter().map(|var| (1.0 / (var + epsilon).sqrt()) as f32).collect();
        for cx in &contexts {
            let (mut dx, mut residual) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
            let (mut dgamma, mut dbeta) = (vec![f32::NAN; channels], vec![f32::NAN; channels]);
            let y = relu.then_some(&y[..]);
            let inputs = Backward { x: &x, dy: &dy, y, mean: &mean, inv_std: &inv_std, gamma: &gamma };
            let outputs = Gradients {
                dx: &mut dx,
                dgamma: &mut dgamma,
                dbeta: &mut dbeta,
                residual: Some(&mut residual),
            };
            backward(cx, inputs, outputs);
            assert!(residual.iter().zip(&g).all(|(found, expected)| f64::from(*found) == *expected));
            // Sums of at most 256 f32 terms a piece, each below 4 (|x̂| < 2/√ε < 7 but |x − mean| < 2, 1/σ < 3.2).
            let sum = rows as f64 * 8.0 * 256.0 * 6e-8;
            for c in 0..channels {
                assert!((f64::from(dbeta[c]) - dbeta_expected[c]).abs() <= sum);
                assert!((f64::from(dgamma[c]) - dgamma_expected[c]).abs() <= sum);
            }
            for (found, expected) in dx.iter().zip(&dx_expected) {
                assert!((f64::from(*found) - expected).abs() <= 64.0 * 256.0 * 6e-8, "{found} {expected}");
            }
        }
    }
}

#[test]
fn the_formula_is_the_finite_difference() {
    let mut random = Random::new(13);
    for _ in 0..50 {
        let (rows, channels) = (2 + random.below(20), 1 + random.below(9));
        let mut x = wide(&random.values(rows * channels));
        let (gamma, beta) = (wide(&random.values(channels)), wide(&random.values(channels)));
        let g = wide(&random.values(x.len()));
        let zeros = vec![0.0; x.len()];
        let (dx, dgamma, _) = gradient_oracle(&x, &g, &gamma, 1e-2);
        let loss = |x: &[f64], gamma: &[f64]| -> f64 {
            oracle(x, gamma, &beta, &zeros, 1e-2).0.iter().zip(&g).map(|(y, g)| y * g).sum()
        };
        let (i, step) = (random.below(x.len()), 1e-5);
        let old = x[i];
        x[i] = old + step;
        let up = loss(&x, &gamma);
        x[i] = old - step;
        // Truncation step²·f‴/6 with 1/σ up to 10, rounding 1e-16 / step.
        assert!(((up - loss(&x, &gamma)) / (2.0 * step) - dx[i]).abs() < 1e-6);
        x[i] = old;
        let (c, mut gamma) = (random.below(channels), gamma);
        gamma[c] += 1.0;
        let up = loss(&x, &gamma);
        gamma[c] -= 2.0;
        assert!(((up - loss(&x, &gamma)) / 2.0 - dgamma[c]).abs() < 1e-9);
    }
}

#[test]
fn the_bits_do_not_depend_on_the_number_of_threads() {
    let mut random = Random::new(14);
    let (rows, channels) = (3000, 17);
    let (x, dy) = (random.values(rows * channels), random.values(rows * channels));
    for level in Level::available() {
        let run = |threads: usize| {
            let cx = Context::new(level, threads);
            let (mut mean, mut var) = (vec![0.0; channels], vec![0.0; channels]);
            statistics(&cx, &x, &mut mean, &mut var);
            let (mut dx, mut dgamma, mut dbeta) =
                (vec![0.0; x.len()], vec![0.0; channels], vec![0.0; channels]);
            let inputs = Backward { x: &x, dy: &dy, y: Some(&x), mean: &mean, inv_std: &var, gamma: &var };
            let outputs = Gradients { dx: &mut dx, dgamma: &mut dgamma, dbeta: &mut dbeta, residual: None };
            backward(&cx, inputs, outputs);
            (mean, var, dx, dgamma, dbeta)
        };
        let one = run(1);
        assert!([2, 3, 8].into_iter().all(|threads| run(threads) == one));
    }
}

#[test]
fn a_nan_stays_visible() {
    for level in Level::available() {
        let cx = Context::new(level, 1);
        let x = [1.0, f32::NAN, 2.0, 3.0];
        let (mut mean, mut var) = ([0.0; 2], [0.0; 2]);
        statistics(&cx, &x, &mut mean, &mut var);
        assert!(mean[1].is_nan() && var[1].is_nan() && mean[0] == 1.5);
        let mut y = [0.0; 4];
        apply(&cx, Apply { x: &x, scale: &[1.0; 2], shift: &[0.0; 2], residual: None, relu: true }, &mut y);
        assert!(y[1].is_nan() && y[0] == 1.0, "{}: {y:?}", level.name());
    }
}
