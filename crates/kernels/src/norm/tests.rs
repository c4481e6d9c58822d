use super::*;
use crate::Context;
use crate::reference::norm::{self as reference, BatchNorm};
use crate::testing::{
    Random, UNIT, assert_gradient, assert_same_bits_for_all_threads, assert_within, contexts, dot, widen,
};

const EPSILON: f64 = 1e-5;

/// Rows and channels: mostly small, some of several tasks and of several blocks of channels.
fn shape(random: &mut Random, case: usize) -> (usize, usize) {
    match case {
        0 => (1, 1),
        1 => (3001, 17),
        2 => (67, 1030),
        3 => (40_000, 3),
        _ => (random.within(1..=150), random.within(1..=70)),
    }
}

/// A tensor whose channels have means and deviations of their own.
fn activations(random: &mut Random, rows: usize, channels: usize) -> Vec<f32> {
    let (means, deviations) = (random.values(channels), random.values(channels));
    let values = random.values(rows * channels);
    let value = |(index, value)| deviations[index % channels] * value + 3.0 * means[index % channels];
    values.into_iter().enumerate().map(value).collect()
}

/// Asserts the statistics of `x`. A centred value has two roundings, its square adds one, a sum over at most 32 rows
/// and the vectors' lanes 32, results one: 37 relative to the sum of the absolute values. The tile's centre may be off
/// by 33 roundings of the mean; corrected in `f64`, that leaves only their square.
fn assert_statistics(context: &Context, x: &[f32], channels: usize) {
    let (mut mean, mut var) = (vec![f32::NAN; channels], vec![f32::NAN; channels]);
    let shape = [1, x.len() / channels, 1, channels];
    statistics(context, (x, shape), &mut Scratch::default(), &mut mean, &mut var);
    let [expected_mean, expected_var] = reference::statistics(&widen(x), channels);
    let what = format!("{} rows of {channels}, {}", x.len() / channels, context.level().name());
    let centre_error = |c: usize| 33.0 * UNIT * (expected_mean[c].abs() + 6.0 * expected_var[c].sqrt());
    assert_within(format!("mean, {what}"), &mean, &expected_mean, |c| {
        UNIT * expected_mean[c].abs() + 37.0 * UNIT * (expected_var[c].sqrt() + centre_error(c)) + 1e-30
    });
    assert_within(format!("var, {what}"), &var, &expected_var, |c| {
        37.0 * UNIT * (expected_var[c] + centre_error(c).powi(2)) + 1e-30
    });
}

#[test]
fn statistics_agree_with_the_oracle() {
    let mut random = Random::new(1);
    let contexts = contexts();
    for case in 0..200 {
        let (rows, channels) = shape(&mut random, case);
        let x = activations(&mut random, rows, channels);
        contexts.iter().for_each(|context| assert_statistics(context, &x, channels));
    }
}

#[test]
fn a_mean_far_above_the_deviation_loses_nothing() {
    let mut random = Random::new(2);
    for (rows, channels, mean) in [(5000, 19, 1000.0), (777, 64, -30_000.0), (100, 600, 1e6)] {
        let mut x: Vec<f32> = random.values(rows * channels).iter().map(|value| mean + value).collect();
        for context in &contexts() {
            assert_statistics(context, &x, channels);
        }
        // First rows unlike all the others, as at the border of an image, must not serve as the centre.
        x[..2 * channels].fill(0.0);
        for context in &contexts() {
            assert_statistics(context, &x, channels);
        }
    }
}

#[test]
fn constant_channels_have_no_variance_and_nan_is_seen() {
    for context in &contexts() {
        let (mut mean, mut var, mut scratch) = ([0.0; 2], [f32::NAN; 2], Scratch::default());
        let x = [0.5, 1000.1].repeat(3000);
        statistics(context, (&x, [1, 3000, 1, 2]), &mut scratch, &mut mean, &mut var);
        assert_eq!((mean[0], var[0]), (0.5, 0.0));
        // The centre is a rounded mean: off by at most 33 roundings, and so is each value's distance.
        assert!((mean[1] - 1000.1).abs() < 1e-4 && f64::from(var[1]) < (33.0 * UNIT * 1000.1).powi(2) * 1e-6);
        let x = [1.0, f32::NAN, 2.0, 3.0];
        statistics(context, (&x, [1, 2, 1, 2]), &mut scratch, &mut mean, &mut var);
        assert_eq!((mean[0], var[0]), (1.5, 0.25));
        assert!(mean[1].is_nan() && var[1].is_nan());
    }
}

#[test]
fn application_agrees_with_its_formula() {
    let mut random = Random::new(3);
    let contexts = contexts();
    for case in 0..200 {
        let (rows, channels) = shape(&mut random, case);
        let (x, residual) = (random.values(rows * channels), random.values(rows * channels));
        let (scale, shift) = (random.values(channels), random.values(channels));
        let (relu, residual) = (random.coin(), random.coin().then_some(&residual[..]));
        let expected = (0..x.len()).map(|index| {
            let c = index % channels;
            let sum = f64::from(x[index]) * f64::from(scale[c])
                + f64::from(shift[c])
                + residual.map_or(0.0, |residual| f64::from(residual[index]));
            if relu { sum.max(0.0) } else { sum }
        });
        let expected: Vec<f64> = expected.collect();
        for context in &contexts {
            let mut y = vec![f32::NAN; x.len()];
            apply(context, Apply { x: &x, scale: &scale, shift: &shift, residual, relu }, &mut y);
            // Product and two sums, each at most 3.
            assert_within(format!("{rows} rows of {channels}"), &y, &expected, |_| 3.0 * UNIT * 3.0);
        }
    }
}

#[test]
fn a_nan_passes_the_relu() {
    for context in &contexts() {
        let mut y = [0.0; 3];
        let x = &[f32::NAN, -1.0, 2.0];
        apply(context, Apply { x, scale: &[1.0], shift: &[0.0], residual: None, relu: true }, &mut y);
        assert!(y[0].is_nan() && y[1..] == [0.0, 2.0]);
    }
}

/// A layer whose sums before the ReLU are at least 0.01 away from its kink.
fn layer(random: &mut Random, rows: usize, channels: usize) -> BatchNorm {
    let x = widen(&activations(random, rows, channels));
    let (gamma, beta) = (widen(&random.values(channels)), widen(&random.values(channels)));
    let (relu, residual) = (random.coin(), widen(&random.values(rows * channels)));
    let mut layer = BatchNorm { x, gamma, beta, epsilon: EPSILON, residual: Some(residual), relu: false };
    if relu {
        let sums = layer.forward();
        for (residual, sum) in layer.residual.iter_mut().flatten().zip(sums) {
            if sum.abs() < 0.01 {
                *residual = f64::from((*residual + 0.03) as f32);
            }
        }
        layer.relu = true;
    } else if random.coin() {
        layer.residual = None;
    }
    layer
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

#[test]
fn gradients_agree_with_the_oracle() {
    let mut random = Random::new(4);
    let contexts = contexts();
    let mut scratch = Scratch::default();
    for case in 0..200 {
        let (rows, channels) = shape(&mut random, case);
        let layer = layer(&mut random, rows, channels);
        let [x, gamma, y] = [&layer.x, &layer.gamma, &layer.forward()].map(|values| narrow(values));
        let dy = random.values(x.len());
        let expected = layer.backward(&widen(&dy));
        let [mean, var] = reference::statistics(&layer.x, channels);
        let inv_std: Vec<f64> = var.iter().map(|var| 1.0 / (var + EPSILON).sqrt()).collect();
        // Sizes of the terms: Σ|g|, Σ|g·x̂|, and the largest |x̂|.
        let mut sizes = vec![[0.0f64; 3]; channels];
        for (index, g) in expected.residual.iter().enumerate() {
            let c = index % channels;
            let normalised = (layer.x[index] - mean[c]) * inv_std[c];
            let [sum, product, largest] = sizes[c];
            sizes[c] = [sum + g.abs(), product + (g * normalised).abs(), largest.max(normalised.abs())];
        }
        // mean and inv_std are rounded to f32: x̂ is off by `shift` at most, beside four roundings of its own.
        let shift = |c: usize| UNIT * mean[c].abs() * inv_std[c];
        let dgamma_bound = |c: usize| 38.0 * UNIT * sizes[c][1] + 2.0 * shift(c) * sizes[c][0] + 1e-30;
        for context in &contexts {
            let (mut changed, mut replaced) = (dy.clone(), x.clone());
            let (mut dgamma, mut dbeta) = (vec![f32::NAN; channels], vec![f32::NAN; channels]);
            let (mean, inv_std) = (narrow(&mean), narrow(&inv_std));
            let (relu, wanted) = (layer.relu, layer.residual.is_some());
            let place = if wanted { Input::Replaced(&mut replaced) } else { Input::Kept(&x) };
            let out = Gradients { x: place, dy: &mut changed, dgamma: &mut dgamma, dbeta: &mut dbeta };
            let relu = if relu { Relu::Output(&y) } else { Relu::None };
            let input = Backward { relu, mean: &mean, inv_std: &inv_std, gamma: &gamma, line: 1 };
            // Whatever an earlier case has left there.
            backward(context, input, &mut scratch, None, out);
            let (dx, residual) = if wanted { (replaced, changed) } else { (changed, Vec::new()) };
            let what = format!("{rows} rows of {channels}, {}", context.level().name());
            assert_within(format!("dbeta, {what}"), &dbeta, &expected.dbeta, |c| 34.0 * UNIT * sizes[c][0]);
            assert_within(format!("dgamma, {what}"), &dgamma, &expected.dgamma, dgamma_bound);
            assert_within(format!("dx, {what}"), &dx, &expected.dx, |index| {
                let (c, m) = (index % channels, rows as f64);
                let [sum, product, largest] = sizes[c];
                let terms = 1.0 + sum / m + largest * product / m;
                let sums = 34.0 * UNIT * sum / m + largest * dgamma_bound(c) / m + shift(c) * product / m;
                layer.gamma[c].abs() * f64::from(inv_std[c]) * (8.0 * UNIT * terms + sums)
            });
            if wanted {
                assert!(widen(&residual) == expected.residual, "residual, {what}");
            }
        }
    }
}

#[test]
fn a_relu_computed_again_passes_what_its_output_passes() {
    let mut random = Random::new(7);
    let mut scratch = Scratch::default();
    for case in 0..60 {
        let (rows, channels) = shape(&mut random, case);
        let (x, dy) = (random.values(rows * channels), random.values(rows * channels));
        let [mean, inv_std, gamma, scale, shift] = [(); 5].map(|()| random.values(channels));
        for context in &contexts() {
            let mut y = vec![f32::NAN; x.len()];
            apply(context, Apply { x: &x, scale: &scale, shift: &shift, residual: None, relu: true }, &mut y);
            let mut gradients = |relu: Relu| {
                let (mut dx, mut residual, mut instead) = (x.clone(), dy.clone(), dy.clone());
                let (mut dgamma, mut dbeta) = (vec![f32::NAN; channels], vec![f32::NAN; channels]);
                let input = Backward { relu, mean: &mean, inv_std: &inv_std, gamma: &gamma, line: 1 };
                for (x, dy) in [(Input::Kept(&x), &mut instead), (Input::Replaced(&mut dx), &mut residual)] {
                    let out = Gradients { x, dy, dgamma: &mut dgamma, dbeta: &mut dbeta };
                    backward(context, input, &mut scratch, None, out);
                }
                assert!(instead == dx, "{rows} rows of {channels}, in the other's place");
                [dx, residual, dgamma, dbeta]
            };
            let recomputed = gradients(Relu::Recomputed { scale: &scale, shift: &shift });
            assert!(recomputed == gradients(Relu::Output(&y)), "{rows} rows of {channels}");
            assert!(recomputed != gradients(Relu::None) || y.iter().all(|&y| y > 0.0));
        }
    }
}

#[test]
fn the_sum_of_the_gradient_needs_no_input() {
    let mut random = Random::new(8);
    let mut scratch = Scratch::default();
    for case in 0..60 {
        let (rows, channels) = shape(&mut random, case);
        let [x, y, dy] = [(); 3].map(|()| random.values(rows * channels));
        let mean = random.values(channels);
        for context in &contexts() {
            for relu in [Relu::None, Relu::Output(&y)] {
                let mut sums = |x: Option<&[f32]>| {
                    let mut passed = dy.clone();
                    let sums = Sums::new(context, &mut scratch, (x, [1, rows, 1, channels]), &mean, relu);
                    let summed = sums.of(context, &mut passed);
                    assert_eq!(summed.complete, x.is_some());
                    let sums: Vec<f64> = summed.totals.iter().map(|total| total[0]).collect();
                    scratch.give(summed.totals);
                    (sums, passed)
                };
                assert!(sums(Some(&x)) == sums(None), "{rows} rows of {channels}");
            }
        }
    }
}

#[test]
fn the_oracles_gradients_are_its_differences() {
    let mut random = Random::new(5);
    for _ in 0..60 {
        let (rows, channels) = (random.within(4..=12), random.within(1..=4));
        let layer = layer(&mut random, rows, channels);
        let dy = widen(&random.values(rows * channels));
        let gradients = layer.backward(&dy);
        let copy = || BatchNorm {
            x: layer.x.clone(),
            gamma: layer.gamma.clone(),
            beta: layer.beta.clone(),
            residual: layer.residual.clone(),
            ..layer
        };
        let along =
            |point: &[f64], gradient: &[f64], random: &mut Random, set: fn(&mut BatchNorm, Vec<f64>)| {
                let direction = widen(&random.values(point.len()));
                let function = |values: &[f64]| {
                    let mut moved = copy();
                    set(&mut moved, values.to_vec());
                    dot(&moved.forward(), &dy)
                };
                assert_gradient(format!("{rows} rows of {channels}"), function, point, &direction, gradient);
            };
        along(&layer.gamma, &gradients.dgamma, &mut random, |layer, values| layer.gamma = values);
        along(&layer.beta, &gradients.dbeta, &mut random, |layer, values| layer.beta = values);
        // Channels that hardly vary bend too sharply for a difference.
        if reference::statistics(&layer.x, channels)[1].iter().all(|&var| var > 0.01) {
            along(&layer.x, &gradients.dx, &mut random, |layer, values| layer.x = values);
        }
        if let Some(residual) = &layer.residual {
            along(residual, &gradients.residual, &mut random, |layer, values| layer.residual = Some(values));
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let mut random = Random::new(6);
    for (rows, channels) in [(9000, 16), (2500, 70), (300, 1100)] {
        let x = activations(&mut random, rows, channels);
        let (dy, y) = (random.values(x.len()), random.values(x.len()));
        let gamma = random.values(channels);
        assert_same_bits_for_all_threads(|context| {
            let zeros = |length| vec![0.0; length];
            let (mut mean, mut var, mut scratch) = (zeros(channels), zeros(channels), Scratch::default());
            statistics(context, (&x, [1, rows, 1, channels]), &mut scratch, &mut mean, &mut var);
            let mut applied = zeros(x.len());
            let input = Apply { x: &x, scale: &gamma, shift: &mean, residual: Some(&dy), relu: true };
            apply(context, input, &mut applied);
            let (mut dx, mut residual) = (x.clone(), dy.clone());
            let (mut dgamma, mut dbeta) = (zeros(channels), zeros(channels));
            let input =
                Backward { relu: Relu::Output(&y), mean: &mean, inv_std: &var, gamma: &gamma, line: 1 };
            let (x, dy) = (Input::Replaced(&mut dx), &mut residual);
            backward(
                context,
                input,
                &mut scratch,
                None,
                Gradients { x, dy, dgamma: &mut dgamma, dbeta: &mut dbeta },
            );
            vec![mean, var, applied, dx, residual, dgamma, dbeta]
        });
    }
}

#[test]
#[should_panic(expected = "x has 7 values, which are no rows of 3 channels")]
fn broken_rows_are_refused() {
    let x = (&[0.0; 7][..], [1, 2, 1, 3]);
    statistics(&contexts()[0], x, &mut Scratch::default(), &mut [0.0; 3], &mut [0.0; 3]);
}
