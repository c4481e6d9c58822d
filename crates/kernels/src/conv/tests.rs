//! Every pass at every level against the f64 oracle, on random shapes; every gradient against finite differences.

mod bounds;

use self::bounds::{absolute, assert_close, seen, sums_of_squares, with_squares};
use super::*;
use crate::follow::Follow;
use crate::gemm::Residual;
use crate::norm;
use crate::prologue::Prologue;
use crate::reference::conv as oracle;
use crate::testing::{Random, assert_same_bits_for_all_threads, widen};

/// Shapes per run; each goes through all three passes at every level of this CPU.
const SHAPES: usize = 240;

const KINDS: [Operands; 3] = [Operands::F32, Operands::Bf16, Operands::Threes];

/// A convolution, a batch and an input size that fit.
fn random_shape(random: &mut Random) -> (ConvGeometry, usize, [usize; 2]) {
    loop {
        let groups = [1, 1, 1, 2, 3, 5][random.below(6)];
        // Channels run over all tails of vectors and panels; some cases have one panel more than fits.
        let channels = |random: &mut Random| match random.below(4) {
            0 => 1 + random.below(4),
            1 => 1 + random.below(20),
            2 => 16 * (1 + random.below(5)),
            _ => 1 + random.below(90),
        };
        let geometry = ConvGeometry {
            in_channels: groups * channels(random).div_ceil(groups),
            out_channels: groups * channels(random).div_ceil(groups),
            kernel: [1 + random.below(4), 1 + random.below(5)],
            stride: [1 + random.below(3), 1 + random.below(3)],
            padding: [random.below(3), random.below(4)],
            dilation: [1 + random.below(2), 1 + random.below(3)],
            groups,
        };
        let (batch, input) = (1 + random.below(3), [1 + random.below(11), 1 + random.below(11)]);
        if geometry.macs(input).is_ok_and(|macs| macs * batch as u64 <= 1_000_000) {
            return (geometry, batch, input);
        }
    }
}

#[test]
fn all_passes_agree_with_the_oracle_at_every_level() {
    let mut random = Random::new(1);
    let levels = Level::with_and_without_bf16().into_iter();
    let contexts: Vec<Context> = levels.map(|level| Context::new(level, 2)).collect();
    // Depths beyond a block of the packed weights, sums long enough to be cut into parts, the ImageNet stem; of the weights' gradients,
    // more sums and rows than meet at once, and rows of either side too far apart to be read where they stand.
    let long = [
        (ConvGeometry::square(260, 260, 1, 1), 1, [23, 24]),
        (ConvGeometry::square(520, 20, 1, 1), 1, [8, 9]),
        (ConvGeometry::square(20, 520, 1, 1), 1, [8, 9]),
        (ConvGeometry::square(1200, 20, 1, 2), 2, [5, 5]),
        (ConvGeometry::square(130, 17, 3, 1), 1, [5, 4]),
        (ConvGeometry::square(459, 17, 3, 1), 1, [3, 4]),
        (ConvGeometry::square(17, 459, 3, 2), 1, [5, 4]),
        (ConvGeometry::square(5, 18, 3, 1), 2, [32, 30]),
        (ConvGeometry { groups: 2, ..ConvGeometry::square(4, 6, 3, 2) }, 3, [40, 41]),
        (ConvGeometry::square(3, 20, 7, 2), 2, [30, 33]),
    ];
    let short: Vec<_> = (0..SHAPES).map(|_| random_shape(&mut random)).collect();
    let mut packed = ConvScratch::default();
    for (g, batch, input) in long.into_iter().chain(short) {
        let what = format!("{g:?} on {batch} x {input:?}");
        let x = random.values(batch * input[0] * input[1] * g.in_channels);
        let w = random.values(g.weight_len());
        let dy = random.values(oracle::output_len(&g, batch, input));

        for operands in KINDS {
            let (x64, w64, dy64) = (seen(operands, &x), seen(operands, &w), seen(operands, &dy));
            let (ax, aw, ady) = (absolute(&x64), absolute(&w64), absolute(&dy64));
            let y_expected = oracle::forward(&g, batch, input, &x64, &w64);
            let y_magnitude = oracle::forward(&g, batch, input, &ax, &aw);
            let dx_expected = oracle::grad_input(&g, batch, input, &dy64, &w64);
            let dx_magnitude = oracle::grad_input(&g, batch, input, &ady, &aw);
            let dw_expected = oracle::grad_weight(&g, batch, input, &x64, &dy64);
            let dw_magnitude = oracle::grad_weight(&g, batch, input, &ax, &ady);
            let [y_squares, dx_squares, dw_squares] =
                sums_of_squares(&g, (batch, input), [&x64, &w64, &dy64]);
            let taps = g.taps();
            let (y_magnitude, y_terms) =
                with_squares(operands, &y_magnitude, taps * g.group_in(), &y_squares);
            let (dx_magnitude, dx_terms) =
                with_squares(operands, &dx_magnitude, taps * g.group_out(), &dx_squares);
            let (dw_magnitude, dw_terms) =
                with_squares(operands, &dw_magnitude, dy.len() / g.out_channels, &dw_squares);
            for cx in &contexts {
                let what = format!("{} {operands:?} {what}", cx.level().name());
                let conv = Conv::new(cx.level(), g, input).unwrap();
                let mut scratch = ConvScratch::default();
                // NaN where nothing is written would be found.
                let mut y = vec![f32::NAN; dy.len()];
                let weights = conv.pack_forward(cx, operands, &w);
                conv.forward(cx, &x, &weights, Epilogue::default(), &mut scratch, &mut y);
                assert_close(&y, &y_expected, &y_magnitude, y_terms, &format!("forward {what}"));
                let mut dx = vec![f32::NAN; x.len()];
                let weights = conv.pack_backward(cx, operands, &w);
                conv.grad_input(cx, &dy, &weights, Epilogue::default(), &mut scratch, &mut dx);
                // Where other weights were packed.
                let [mut packed_y, mut packed_dx] = [&y, &dx].map(|values| vec![f32::NAN; values.len()]);
                let (weights, plain) = ((operands, &w[..]), Epilogue::default());
                conv.pack_and_forward(cx, &x, weights, plain, &mut packed, &mut packed_y);
                conv.pack_and_grad_input(cx, &dy, weights, plain, &mut packed, &mut packed_dx);
                // Threes are scaled for what they meet, where that is known.
                if operands == Operands::Threes {
                    assert_close(
                        &packed_y,
                        &y_expected,
                        &y_magnitude,
                        y_terms,
                        &format!("one forward {what}"),
                    );
                    assert_close(&packed_dx, &dx_expected, &dx_magnitude, dx_terms, &format!("one {what}"));
                } else {
                    assert!(packed_y == y && packed_dx == dx, "packed for one pass: {what}");
                }
                assert_close(&dx, &dx_expected, &dx_magnitude, dx_terms, &format!("grad_input {what}"));
                let mut dw = vec![f32::NAN; w.len()];
                conv.grad_weight(cx, operands, &x, &dy, &mut scratch, &mut dw);
                assert_close(&dw, &dw_expected, &dw_magnitude, dw_terms, &format!("grad_weight {what}"));
            }
        }
    }
}

/// Padding stays 0 whatever the shift. The bound is that of sums of the values that a batch norm and a ReLU leave.
#[test]
fn a_prologue_is_a_batch_norm_and_a_relu_of_the_input() {
    let mut random = Random::new(6);
    let levels = Level::with_and_without_bf16().into_iter();
    let contexts: Vec<Context> = levels.map(|level| Context::new(level, 2)).collect();
    // Depths beyond a block of the packed weights and beyond what goes through the prologue at once.
    let long = [
        (ConvGeometry::square(1200, 20, 1, 2), 2, [5, 5]),
        (ConvGeometry::square(459, 17, 3, 1), 1, [3, 4]),
        (ConvGeometry { groups: 2, ..ConvGeometry::square(18, 6, 3, 2) }, 3, [40, 41]),
    ];
    let short: Vec<_> = (0..SHAPES / 3).map(|_| random_shape(&mut random)).collect();
    let mut taken = 0;
    for (g, batch, input) in long.into_iter().chain(short) {
        let raw = random.values(batch * input[0] * input[1] * g.in_channels);
        let [scale, shift] = [(); 2].map(|()| random.values(g.in_channels));
        let prologue = Some(Prologue { scale: &scale, shift: &shift });
        let w = random.values(g.weight_len());
        let dy = random.values(oracle::output_len(&g, batch, input));
        for (cx, operands) in contexts.iter().flat_map(|cx| KINDS.map(|kind| (cx, kind))) {
            let conv = Conv::new(cx.level(), g, input).unwrap();
            if !conv.takes_prologue() {
                continue;
            }
            taken += 1;
            let what = format!("{} {operands:?} {g:?} on {batch} x {input:?}", cx.level().name());
            let mut x = vec![0.0; raw.len()];
            let (scale, shift) = (&scale[..], &shift[..]);
            norm::apply(cx, norm::Apply { x: &raw, scale, shift, residual: None, relu: true }, &mut x);
            let source = Source { values: &raw, prologue };
            let [x, w64, dy64] = [&x, &w, &dy].map(|values| seen(operands, values));
            let [ax, aw, ady] = [&x, &w64, &dy64].map(|values| absolute(values));
            let mut scratch = ConvScratch::default();
            let (mut y, mut dw) = (vec![f32::NAN; dy.len()], vec![f32::NAN; w.len()]);
            let weights = conv.pack_forward(cx, operands, &w);
            conv.forward(cx, source, &weights, Epilogue::default(), &mut scratch, &mut y);
            let expected = oracle::forward(&g, batch, input, &x, &w64);
            let magnitude = oracle::forward(&g, batch, input, &ax, &aw);
            let [y_squares, _, dw_squares] = sums_of_squares(&g, (batch, input), [&x, &w64, &dy64]);
            let (magnitude, terms) = with_squares(operands, &magnitude, g.taps() * g.group_in(), &y_squares);
            assert_close(&y, &expected, &magnitude, terms, &format!("forward {what}"));
            conv.grad_weight(cx, operands, source, &dy, &mut scratch, &mut dw);
            let expected = oracle::grad_weight(&g, batch, input, &x, &dy64);
            let magnitude = oracle::grad_weight(&g, batch, input, &ax, &ady);
            let (magnitude, terms) =
                with_squares(operands, &magnitude, dy.len() / g.out_channels, &dw_squares);
            assert_close(&dw, &expected, &magnitude, terms, &format!("weights {what}"));
        }
    }
    assert!(taken > SHAPES);
}

#[test]
fn the_epilogue_adds_bias_and_residual_and_cuts_negatives() {
    let mut random = Random::new(2);
    for level in Level::available() {
        let cx = Context::new(level, 2);
        for case in 0..40 {
            let operands = KINDS[case % KINDS.len()];
            let (g, batch, input) = random_shape(&mut random);
            let (x, w) =
                (random.values(batch * input[0] * input[1] * g.in_channels), random.values(g.weight_len()));
            let bias = random.values(g.out_channels);
            let residual = random.values(oracle::output_len(&g, batch, input));
            let conv = Conv::new(level, g, input).unwrap();
            let weights = conv.pack_forward(&cx, operands, &w);
            let (mut plain, mut y) = (vec![0.0; residual.len()], vec![f32::NAN; residual.len()]);
            conv.forward(&cx, &x, &weights, Epilogue::default(), &mut ConvScratch::default(), &mut plain);
            let epilogue = Epilogue { bias: Some(&bias), relu: true, ..Epilogue::default() };
            let epilogue = Epilogue { residual: Some(Residual::Tensor(&residual)), ..epilogue };
            conv.forward(&cx, &x, &weights, epilogue, &mut ConvScratch::default(), &mut y);
            let epilogue = Epilogue { residual: Some(Residual::InPlace), ..epilogue };
            let mut in_place = residual.clone();
            conv.forward(&cx, &x, &weights, epilogue, &mut ConvScratch::default(), &mut in_place);
            for (index, &found) in y.iter().enumerate() {
                let expected = (plain[index] + bias[index % g.out_channels] + residual[index]).max(0.0);
                assert_eq!(found, expected, "{} {g:?}", level.name());
                // Added in another order, so rounded in another way.
                let size = plain[index].abs() + bias[index % g.out_channels].abs() + residual[index].abs();
                assert!((in_place[index] - expected).abs() <= 2.0 * f32::EPSILON * size, "in place {g:?}");
            }
        }
    }
}

/// What is taken off has been added up in the same order: where one side is 0, the products are exactly that.
#[test]
fn threes_of_zeros_are_zeros() {
    let mut random = Random::new(7);
    let (g, input) = (ConvGeometry::square(37, 50, 3, 2), [9, 8]);
    for level in Level::available() {
        let cx = Context::new(level, 2);
        let conv = Conv::new(level, g, input).unwrap();
        let (mut x, w) = (random.values(2 * conv.input_len()), random.values(g.weight_len()));
        let mut dy = random.values(2 * conv.output_len());
        // The second image, and every third channel of both sides.
        x[conv.input_len()..].fill(0.0);
        for values in x.chunks_mut(37) {
            values.iter_mut().step_by(3).for_each(|value| *value = 0.0);
        }
        for values in dy.chunks_mut(50) {
            values.iter_mut().step_by(3).for_each(|value| *value = 0.0);
        }
        dy[conv.output_len()..].fill(0.0);
        let mut scratch = ConvScratch::default();
        let (mut y, mut dx, mut dw) = (vec![1.0; dy.len()], vec![1.0; x.len()], vec![1.0; w.len()]);
        let (weights, plain) = ((Operands::Threes, &w[..]), Epilogue::default());
        conv.pack_and_forward(&cx, &x, weights, plain, &mut scratch, &mut y);
        conv.pack_and_grad_input(&cx, &dy, weights, plain, &mut scratch, &mut dx);
        conv.grad_weight(&cx, Operands::Threes, &x, &dy, &mut scratch, &mut dw);
        assert!(y[..conv.output_len()].iter().all(|&value| value != 0.0), "{}", level.name());
        assert!(y[conv.output_len()..].iter().all(|&value| value == 0.0), "{}", level.name());
        assert!(dx[conv.input_len()..].iter().all(|&value| value == 0.0), "{}", level.name());
        for (at, &value) in dw.iter().enumerate() {
            let zero = (at / 50 % 37).is_multiple_of(3) || (at % 50).is_multiple_of(3);
            assert_eq!(value == 0.0, zero, "{} {at}: {value}", level.name());
        }
    }
}

/// The gradients are linear in the loss `Σ y·dy`, and the loss is linear in each x and w: central differences are
/// exact up to the rounding of f64.
#[test]
fn the_oracles_gradients_are_finite_differences() {
    let mut random = Random::new(3);
    for _ in 0..30 {
        let (g, batch, input) = random_shape(&mut random);
        let mut x = widen(&random.values(batch * input[0] * input[1] * g.in_channels));
        let mut w = widen(&random.values(g.weight_len()));
        let dy = widen(&random.values(oracle::output_len(&g, batch, input)));
        let dx = oracle::grad_input(&g, batch, input, &dy, &w);
        let dw = oracle::grad_weight(&g, batch, input, &x, &dy);
        let loss = |x: &[f64], w: &[f64]| -> f64 {
            oracle::forward(&g, batch, input, x, w).iter().zip(&dy).map(|(y, dy)| y * dy).sum()
        };
        for _ in 0..4 {
            let (i, k) = (random.below(x.len()), random.below(w.len()));
            let (old_x, old_w) = (x[i], w[k]);
            x[i] = old_x + 0.5;
            let up = loss(&x, &w);
            x[i] = old_x - 0.5;
            assert!((up - loss(&x, &w) - dx[i]).abs() < 1e-9 * (1.0 + up.abs()), "dx {g:?}");
            x[i] = old_x;
            w[k] = old_w + 0.5;
            let up = loss(&x, &w);
            w[k] = old_w - 0.5;
            assert!((up - loss(&x, &w) - dw[k]).abs() < 1e-9 * (1.0 + up.abs()), "dw {g:?}");
            w[k] = old_w;
        }
    }
}

#[test]
fn the_bits_do_not_depend_on_the_number_of_threads() {
    let mut random = Random::new(4);
    let cases = [
        (ConvGeometry::square(3, 16, 3, 1), 9, [32, 32]),
        (ConvGeometry::square(16, 32, 3, 2), 9, [32, 31]),
        (ConvGeometry { groups: 4, ..ConvGeometry::square(32, 32, 3, 2) }, 4, [14, 15]),
        (ConvGeometry::square(130, 70, 3, 1), 2, [9, 9]),
        (ConvGeometry::square(1200, 40, 1, 1), 3, [5, 5]),
    ];
    for level in Level::with_and_without_bf16() {
        for ((g, batch, input), operands) in cases.into_iter().flat_map(|case| KINDS.map(|kind| (case, kind)))
        {
            let x = random.values(batch * input[0] * input[1] * g.in_channels);
            let w = random.values(g.weight_len());
            let dy = random.values(oracle::output_len(&g, batch, input));
            let [scale, shift] = [(); 2].map(|()| random.values(g.in_channels));
            let mut first: Option<[Vec<f32>; 4]> = None;
            for threads in [1, 2, 3, 8] {
                let cx = Context::new(level, threads);
                let conv = Conv::new(level, g, input).unwrap();
                let mut scratch = ConvScratch::default();
                let (mut y, mut dx, mut dw) = (vec![0.0; dy.len()], vec![0.0; x.len()], vec![0.0; w.len()]);
                let weights = conv.pack_forward(&cx, operands, &w);
                conv.forward(&cx, &x, &weights, Epilogue::default(), &mut scratch, &mut y);
                let weights = conv.pack_backward(&cx, operands, &w);
                conv.grad_input(&cx, &dy, &weights, Epilogue::default(), &mut scratch, &mut dx);
                conv.grad_weight(&cx, operands, &x, &dy, &mut scratch, &mut dw);
                let prologue = conv.takes_prologue().then_some(Prologue { scale: &scale, shift: &shift });
                let (source, mut through) = (Source { values: &x, prologue }, vec![0.0; dy.len()]);
                let weights = conv.pack_forward(&cx, operands, &w);
                conv.forward(&cx, source, &weights, Epilogue::default(), &mut scratch, &mut through);
                let results = [y, dx, dw, through];
                assert!(
                    first.get_or_insert_with(|| results.clone()) == &results,
                    "{g:?} {operands:?} with {threads} threads"
                );
            }
        }
    }
}

#[test]
fn an_image_has_the_same_bits_alone_and_in_a_batch() {
    let mut random = Random::new(5);
    let (g, input) = (ConvGeometry::square(24, 40, 3, 2), [13, 11]);
    for (level, operands) in Level::available().into_iter().flat_map(|level| KINDS.map(|kind| (level, kind)))
    {
        let cx = Context::new(level, 2);
        let conv = Conv::new(level, g, input).unwrap();
        let weights = conv.pack_forward(&cx, operands, &random.values(g.weight_len()));
        let x = random.values(7 * conv.input_len());
        let mut batch = vec![0.0; 7 * conv.output_len()];
        let mut scratch = ConvScratch::default();
        conv.forward(&cx, &x, &weights, Epilogue::default(), &mut scratch, &mut batch);
        for (x, expected) in x.chunks_exact(conv.input_len()).zip(batch.chunks_exact(conv.output_len())) {
            let mut alone = vec![0.0; conv.output_len()];
            conv.forward(&cx, x, &weights, Epilogue::default(), &mut scratch, &mut alone);
            assert_eq!(alone, expected);
        }
    }
}

#[test]
#[should_panic(expected = "packed for another instruction-set level")]
fn weights_of_another_level_are_refused() {
    let levels = Level::available();
    assert!(
        levels.len() > 1,
        "packed for another instruction-set level cannot be tried on a CPU with one level"
    );
    let conv = |level| Conv::new(level, ConvGeometry::square(4, 4, 3, 1), [4, 4]).unwrap();
    let (cx, mut y) = (Context::new(levels[1], 1), [0.0; 64]);
    let weights = conv(levels[0]).pack_forward(&cx, Operands::F32, &[0.0; 144]);
    conv(levels[1]).forward(
        &cx,
        &[0.0; 64],
        &weights,
        Epilogue::default(),
        &mut ConvScratch::default(),
        &mut y,
    );
}

/// A pass with an epilogue, and the shape of its result.
type Followed<'a> = (&'a dyn Fn(&Context, Epilogue, &mut [f32]), [usize; 4]);

/// Asserts that what follows a pass while it runs finds what it would find afterwards: the statistics of the result, and what a batch
/// norm with a ReLU before the pass, whose input was `x` and whose output was `y`, makes of it as a gradient. The result is the
/// pass's alone, or added to what stood there.
fn assert_followed(cx: &Context, (pass, shape): Followed, [x, y]: [&[f32]; 2]) -> Vec<Vec<f32>> {
    let mut all = Vec::new();
    for (residual, before) in [(None, vec![f32::NAN; x.len()]), (Some(Residual::InPlace), x.to_vec())] {
        let plain_epilogue = Epilogue { residual, ..Epilogue::default() };
        let mut plain = before.clone();
        pass(cx, plain_epilogue, &mut plain);
        let [after, during] = [false, true].map(|while_it_runs| {
            let run = |result: &mut [f32], follow: Follow| {
                result.copy_from_slice(if while_it_runs { &before } else { &plain });
                if while_it_runs {
                    pass(cx, Epilogue { follow: Some(follow), ..plain_epilogue }, result);
                } else {
                    follow.all_done(cx, result);
                }
            };
            let (mut scratch, mut result) = (norm::Scratch::default(), vec![0.0; x.len()]);
            let [mut mean, mut var, mut dgamma, mut dbeta] = [0; 4].map(|_| vec![0.0; shape[3]]);
            let mut statistics = norm::Statistics::new(cx, &mut scratch, shape);
            run(&mut result, statistics.follow());
            statistics.finish(cx, &mut mean, &mut var);
            assert_eq!(result, plain);
            let (mut dx, relu) = (x.to_vec(), norm::Relu::Output(y));
            let mut sums = norm::Sums::new(cx, &mut scratch, (Some(x), shape), &mean, relu);
            run(&mut result, sums.follow());
            let summed = Some(sums.finish(cx));
            let input = norm::Backward { relu, mean: &mean, inv_std: &var, gamma: &var, line: shape[2] };
            let (place, dy) = (norm::Input::Replaced(&mut dx), &mut result[..]);
            let out = norm::Gradients { x: place, dy, dgamma: &mut dgamma, dbeta: &mut dbeta };
            norm::backward(cx, input, &mut scratch, summed, out);
            vec![mean, var, result, dx, dgamma, dbeta]
        });
        assert_eq!(during, after);
        for (index, &gradient) in after[2].iter().enumerate() {
            assert_eq!(gradient, if y[index] > 0.0 { plain[index] } else { 0.0 }, "what passes the ReLU");
        }
        all.extend(during);
    }
    all
}

/// A convolution in groups that share vectors or fill them, whose rows have all tails of blocks.
fn random_rows(random: &mut Random) -> (ConvGeometry, usize, [usize; 2]) {
    let group = [1, 2, 4, 8, 16, 32, 48, 64][random.below(8)];
    let groups = (16 / group).max(1) * (1 + random.below(3));
    let channels = groups.max(2) * group;
    let square = ConvGeometry::square(channels, channels, 3, 1 + random.below(2));
    let g = ConvGeometry { groups: groups.max(2), padding: [random.below(3), random.below(3)], ..square };
    (g, 1 + random.below(3), [3 + random.below(7), 3 + random.below(40)])
}

#[test]
fn rows_agree_with_the_oracle_at_every_level() {
    let mut random = Random::new(11);
    for cx in crate::testing::contexts() {
        for _ in 0..60 {
            let (g, batch, input) = random_rows(&mut random);
            assert!(RowConv::computes(cx.level(), &g), "{g:?}");
            let conv = RowConv::new(cx.level(), g, input).unwrap();
            let x = random.values(batch * input[0] * input[1] * g.in_channels);
            let (w, bias) = (random.values(g.weight_len()), random.values(g.out_channels));
            let weights = conv.pack(&w);
            let (x64, w64) = (widen(&x), widen(&w));
            let expected = oracle::forward(&g, batch, input, &x64, &w64);
            let magnitude = oracle::forward(&g, batch, input, &absolute(&x64), &absolute(&w64));
            let what = format!("{} {g:?} on {batch} x {input:?}", cx.level().name());
            let mut plain = vec![f32::NAN; expected.len()];
            conv.forward(&cx, &x, &weights, Epilogue::default(), &mut plain);
            assert_close(&plain, &expected, &magnitude, g.taps() * g.group_in(), &what);
            let residual = random.values(plain.len());
            let added = Some(Residual::Tensor(&residual));
            let epilogue = Epilogue { bias: Some(&bias), residual: added, relu: true, follow: None };
            let mut y = vec![f32::NAN; plain.len()];
            conv.forward(&cx, &x, &weights, epilogue, &mut y);
            let mut in_place = residual.clone();
            let epilogue = Epilogue { residual: Some(Residual::InPlace), ..epilogue };
            conv.forward(&cx, &x, &weights, epilogue, &mut in_place);
            for (index, &found) in y.iter().enumerate() {
                let expected = (plain[index] + bias[index % g.out_channels] + residual[index]).max(0.0);
                assert_eq!(found, expected, "{what}");
            }
            assert_eq!(in_place, y, "in place: {what}");
        }
    }
}

#[test]
fn rows_have_the_same_bits_on_any_number_of_threads_and_in_any_batch() {
    assert_same_bits_for_all_threads(|cx| {
        let mut random = Random::new(12);
        let run = |_| {
            let (g, batch, input) = random_rows(&mut random);
            let conv = RowConv::new(cx.level(), g, input).unwrap();
            let (x, weights) = (
                random.values(batch * input[0] * input[1] * g.in_channels),
                conv.pack(&random.values(g.weight_len())),
            );
            let mut y = vec![f32::NAN; oracle::output_len(&g, batch, input)];
            conv.forward(cx, &x, &weights, Epilogue::default(), &mut y);
            for (x, y) in x.chunks(x.len() / batch).zip(y.chunks(y.len() / batch)) {
                let mut alone = vec![f32::NAN; y.len()];
                conv.forward(cx, x, &weights, Epilogue::default(), &mut alone);
                assert_eq!(alone, y, "{g:?}");
            }
            y
        };
        (0..20).map(run).collect()
    });
}

#[test]
fn what_follows_a_pass_works_on_complete_rows() {
    let mut random = Random::new(9);
    let (batch, input) = (9, [16, 11]);
    for (kernel, stride, groups) in [(3, 1, 1), (1, 1, 1), (3, 2, 1), (3, 1, 2)] {
        let g = ConvGeometry { groups, ..ConvGeometry::square(34, 48, kernel, stride) };
        let [height, width] = g.output_size(input).unwrap();
        let (out, into) = ([batch, height, width, 48], [batch, input[0], input[1], 34]);
        let [x, y] = [into, out].map(|shape| random.values(shape.iter().product()));
        let beside = [&x, &y].map(|values| random.values(values.len()));
        let weight = random.values(g.weight_len());
        let (scale, shift) = (random.values(34), random.values(34));
        let prologue = Prologue { scale: &scale, shift: &shift };
        assert_same_bits_for_all_threads(|cx| {
            let conv = Conv::new(cx.level(), g, input).unwrap();
            let mut found = Vec::new();
            for operands in KINDS {
                let weight = (operands, &weight[..]);
                for x in [Source::from(&x[..]), Source { values: &x, prologue: Some(prologue) }] {
                    let pass = |cx: &Context, epilogue: Epilogue, y: &mut [f32]| {
                        conv.pack_and_forward(cx, x, weight, epilogue, &mut ConvScratch::default(), y);
                    };
                    found.extend(assert_followed(cx, (&pass, out), [&y, &beside[1]]));
                }
                let pass = |cx: &Context, epilogue: Epilogue, dx: &mut [f32]| {
                    conv.pack_and_grad_input(cx, &y, weight, epilogue, &mut ConvScratch::default(), dx);
                };
                found.extend(assert_followed(cx, (&pass, into), [&x, &beside[0]]));
            }
            for tiling in
                Tiling::ALL.into_iter().filter(|tiling| tiling.cost(cx.level(), &g, input).is_some())
            {
                let conv = FastConv::new(cx.level(), tiling, g, input).unwrap();
                let pass = |cx: &Context, epilogue: Epilogue, y: &mut [f32]| {
                    conv.pack_and_forward(cx, &x[..], &weight, epilogue, &mut FastScratch::default(), y);
                };
                found.extend(assert_followed(cx, (&pass, out), [&y, &beside[1]]));
                let Some(conv) = FastConv::grad_input(cx.level(), tiling, g, input) else { continue };
                let pass = |cx: &Context, epilogue: Epilogue, dx: &mut [f32]| {
                    conv.pack_and_forward(cx, &y[..], &weight, epilogue, &mut FastScratch::default(), dx);
                };
                found.extend(assert_followed(cx, (&pass, into), [&x, &beside[0]]));
            }
            found
        });
    }
}
