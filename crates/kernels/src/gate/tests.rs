//! Gates against their definition in plain loops and f64, forward and backward, at every level.

use super::*;
use crate::testing::{
    Random, UNIT, assert_gradient, assert_same_bits_for_all_threads, assert_within, contexts, widen,
};

const SHAPES: usize = 220;

fn shape(random: &mut Random) -> (usize, Extent) {
    // Some feature maps are more than one task's.
    let channels = if random.below(10) == 0 { 1 + random.below(600) } else { 1 + random.below(40) };
    (1 + random.below(3), Extent { pixels: 1 + random.below(100), channels })
}

#[test]
fn gates_agree_with_the_definition() {
    let (mut random, contexts) = (Random::new(71), contexts());
    for _ in 0..SHAPES {
        let (images, extent) = shape(&mut random);
        let Extent { pixels, channels } = extent;
        let (maps, rows) = (images * pixels * channels, images * channels);
        let [x, residual, dy] = [0; 3].map(|_| random.values(maps));
        let [weights, dmean] = [0; 2].map(|_| random.values(rows));
        let (relu, kind) = (random.coin(), random.below(3));
        let row = |at: usize| at / (pixels * channels) * channels + at % channels;
        let sum = |at: usize| {
            let added = if kind == 0 { 0.0 } else { f64::from(residual[at]) };
            f64::from(x[at]) * f64::from(weights[row(at)]) + added
        };
        let expected: Vec<f64> = (0..maps).map(|at| if relu { sum(at).max(0.0) } else { sum(at) }).collect();
        for cx in &contexts {
            let what = format!("{images} images of {extent:?}, {}", cx.level().name());
            let mut y = if kind == 2 { residual.clone() } else { vec![f32::NAN; maps] };
            let added = [None, Some(Residual::Tensor(&residual[..])), Some(Residual::InPlace)][kind];
            apply(cx, extent, Gated { x: &x, weights: &weights, residual: added, relu }, &mut y);
            // A product and a sum of at most 2.
            assert_within(&what, &y, &expected, |_| 3.0 * UNIT);

            let (mut dsum, mut dweights) = (dy.clone(), vec![f32::NAN; rows]);
            let input = Backward { x: &x, y: relu.then_some(&y[..]) };
            backward_weights(cx, extent, input, &mut dsum, &mut dweights);
            let cut: Vec<f64> =
                (0..maps).map(|at| if relu && y[at] <= 0.0 { 0.0 } else { f64::from(dy[at]) }).collect();
            assert_within(&what, &dsum, &cut, |_| 0.0);
            let mut expected = vec![0.0; rows];
            (0..maps).for_each(|at| expected[row(at)] += cut[at] * f64::from(x[at]));
            // Each block of 32 products of at most 1 has at most 32 roundings of at most 32.
            assert_within(&what, &dweights, &expected, |_| (pixels * 32 + 100) as f64 * UNIT);

            for dmean in [None, Some(&dmean[..])] {
                let mut dx = vec![f32::NAN; maps];
                backward_input(cx, extent, &dsum, &weights, dmean, &mut dx);
                let mean = |at: usize| dmean.map_or(0.0, |dmean| f64::from(dmean[row(at)]) / pixels as f64);
                let expected: Vec<f64> =
                    (0..maps).map(|at| cut[at] * f64::from(weights[row(at)]) + mean(at)).collect();
                assert_within(&what, &dx, &expected, |_| 6.0 * UNIT);
            }
        }
    }
}

/// The sigmoid of a convolution along the channels, in f64.
fn definition(channels: usize, taps: &[f64], x: &[f64]) -> Vec<f64> {
    let value = |at: usize| {
        let (row, channel) = (at / channels * channels, (at % channels) as isize);
        let inside = |from: isize| (0..channels as isize).contains(&from).then(|| x[row + from as usize]);
        let half = (taps.len() / 2) as isize;
        let terms = taps.iter().enumerate();
        let sum: f64 = terms.map(|(t, w)| w * inside(channel + t as isize - half).unwrap_or(0.0)).sum();
        1.0 / (1.0 + (-sum).exp())
    };
    (0..x.len()).map(value).collect()
}

#[test]
fn sigmoids_of_channels_agree_with_the_definition_and_its_differences() {
    let (mut random, cx) = (Random::new(72), Context::new(crate::Level::detect(), 2));
    for _ in 0..SHAPES {
        let (channels, rows, count) =
            (1 + random.below(40), 1 + random.below(4), [1, 3, 5, 7][random.below(4)]);
        let (taps, x, dy) =
            (random.values(count), random.values(rows * channels), random.values(rows * channels));
        let mut y = vec![f32::NAN; x.len()];
        sigmoid_of_channels(&cx, channels, &taps, &x, &mut y);
        assert_within("y", &y, &definition(channels, &widen(&taps), &widen(&x)), |_| 2.0 * UNIT);

        let (mut dtaps, mut dx) = (vec![f32::NAN; count], vec![f32::NAN; x.len()]);
        sigmoid_of_channels_backward(channels, &taps, [&x, &y, &dy], &mut dtaps, &mut dx);
        let point = [widen(&taps), widen(&x)].concat();
        let function = |point: &[f64]| {
            let y = definition(channels, &point[..count], &point[count..]);
            y.iter().zip(&dy).map(|(y, &dy)| y * f64::from(dy)).sum()
        };
        let direction = widen(&random.values(point.len()));
        assert_gradient("gate", function, &point, &direction, &[widen(&dtaps), widen(&dx)].concat());
    }
}

#[test]
fn threads_do_not_change_bits() {
    let mut random = Random::new(73);
    let extent = Extent { pixels: 49, channels: 130 };
    let [x, residual, dy] = [0; 3].map(|_| random.values(5 * 49 * 130));
    let weights = random.values(5 * 130);
    assert_same_bits_for_all_threads(|cx| {
        let ([mut y, mut dx], mut dsum) = ([0; 2].map(|_| vec![0.0; x.len()]), dy.clone());
        let [mut dweights, mut gates] = [0; 2].map(|_| vec![0.0; weights.len()]);
        let residual = Some(Residual::Tensor(&residual[..]));
        apply(cx, extent, Gated { x: &x, weights: &weights, residual, relu: true }, &mut y);
        backward_weights(cx, extent, Backward { x: &x, y: Some(&y) }, &mut dsum, &mut dweights);
        backward_input(cx, extent, &dsum, &weights, Some(&dweights), &mut dx);
        sigmoid_of_channels(cx, 130, &[0.5, 1.0, -0.5], &weights, &mut gates);
        vec![y, dsum, dx, dweights, gates]
    });
}
