//! Every tiling at every level against the f64 oracle, on random shapes with all tails.

use super::algorithm::{Algorithm, MAX};
use super::schedule::plain_weights;
use super::schedule::tests::scheduled;
use super::*;
use crate::buffer::LINE;
use crate::conv::Window;
use crate::gemm::Residual;
use crate::norm;
use crate::pool::MaxPool;
use crate::prologue::Prologue;
use crate::reference::conv as oracle;
use crate::simd::Scalar;
use crate::testing::{Random, assert_within, contexts, widen};

const SHAPES: usize = 200;

const KINDS: [Operands; 2] = [Operands::F32, Operands::Threes];

/// A 1×1 convolution with any stride, whose channels are so many parts of vectors at every level.
fn random_parts(random: &mut Random, parts: usize) -> ConvGeometry {
    let channels = [16, 32, 48, 80].map(|channels| parts * channels * (1 + random.below(2)));
    let (inputs, outputs) = (channels[random.below(4)], channels[random.below(4)]);
    ConvGeometry::square(inputs, outputs, 1, 1 + random.below(3))
}

/// A convolution that the tiling computes, a batch and an input size.
fn random_shape(random: &mut Random, tiling: Tiling) -> (ConvGeometry, usize, [usize; 2]) {
    loop {
        // Channels run over all tails of vectors and panels.
        let channels = |random: &mut Random| match random.below(4) {
            0 => 1 + random.below(4),
            1 => 1 + random.below(20),
            2 => 16 * (1 + random.below(5)),
            _ => 1 + random.below(90),
        };
        let padding = [random.below(4), random.below(3)];
        let geometry = match tiling {
            Tiling::S7 => ConvGeometry::square(1 + random.below(4), channels(random), 7, 2),
            Tiling::Strassen | Tiling::Twice => random_parts(random, tiling.parts()),
            Tiling::F2 | Tiling::F3 | Tiling::F4 | Tiling::F5 | Tiling::S3 => {
                let stride = if tiling == Tiling::S3 { 2 } else { 1 };
                // Groups that fill vectors at every level, some smaller and some larger than one.
                let (each, groups) = ([1, 2, 4, 8, 16, 32][random.below(6)], 16 * (1 + random.below(2)));
                match random.below(4) {
                    0 => ConvGeometry {
                        padding,
                        groups,
                        ..ConvGeometry::square(each * groups, each * groups, 3, stride)
                    },
                    _ => ConvGeometry { padding, ..square(random, channels, 3, stride) },
                }
            }
        };
        let (batch, input) = (1 + random.below(3), [1 + random.below(19), 1 + random.below(19)]);
        if geometry.macs(input).is_ok_and(|macs| macs * batch as u64 <= 600_000) {
            return (geometry, batch, input);
        }
    }
}

fn square(
    random: &mut Random,
    channels: impl Fn(&mut Random) -> usize,
    kernel: usize,
    stride: usize,
) -> ConvGeometry {
    ConvGeometry::square(channels(random), channels(random), kernel, stride)
}

/// What Strassen's algorithm computes with everything in absolute values, as [`Matrices::magnitude`]: with one level every product
/// of a tile's blocks meets at most two blocks of each factor, and every output four products; with two levels it is the same
/// of those.
fn parts_magnitude(conv: &FastConv, batch: usize, x: &[f32], w: &[f32]) -> Vec<f64> {
    let (g, parts) = (&conv.geometry, conv.tiling.parts());
    let (inputs, outputs) = (g.in_channels / parts, g.out_channels / parts);
    let value = |image: usize, pixel: usize, channel: usize| {
        let (row, column) = (pixel / conv.output[1] * g.stride[0], pixel % conv.output[1] * g.stride[1]);
        let at = (image * conv.input[0] + row) * conv.input[1] + column;
        f64::from(x[at * g.in_channels + channel].abs())
    };
    let weight = |i: usize, o: usize| {
        let at = match conv.view.is_transposed() {
            true => o * g.in_channels + i,
            false => i * g.out_channels + o,
        };
        f64::from(w[at].abs())
    };
    let pairs = || (0..parts * parts).map(|index| (index / parts, index % parts));
    // All blocks of the weights.
    let blocks = |i: usize, o: usize| -> f64 {
        pairs().map(|(row, column)| weight(row * inputs + i, column * outputs + o)).sum()
    };
    let weights: Vec<Vec<f64>> = (0..inputs).map(|i| (0..outputs).map(|o| blocks(i, o)).collect()).collect();
    let mut y = Vec::with_capacity(batch * conv.output[0] * conv.output[1] * g.out_channels);
    for (image, tile) in (0..batch).flat_map(|image| conv.columns.iter().map(move |tile| (image, tile))) {
        // All blocks of the tile.
        let data = |i: usize| -> f64 {
            let places = pairs().filter(|&(pixel, _)| pixel < tile.outputs);
            places.map(|(pixel, part)| value(image, tile.start + pixel, part * inputs + i)).sum()
        };
        let mut outputs = vec![0.0; outputs];
        for (i, weights) in weights.iter().enumerate() {
            let data = data(i);
            outputs.iter_mut().zip(weights).for_each(|(output, weight)| *output += data * weight);
        }
        (0..tile.outputs * parts).for_each(|_| y.extend_from_slice(&outputs));
    }
    y
}

/// The matrices of an algorithm in absolute values: `|Bᵀ|`, `|G|`, `|Aᵀ|`.
struct Matrices {
    stride: usize,
    input: Vec<Vec<f64>>,
    weights: Vec<Vec<f64>>,
    output: Vec<Vec<f64>>,
}

impl Matrices {
    /// Taps along an axis.
    fn taps(&self) -> usize {
        self.weights[0].len()
    }

    fn of<A: Algorithm>() -> Self {
        let column = |transform: &dyn Fn([[f32; 4]; MAX]) -> [[f32; 4]; MAX], column: usize| -> Vec<f64> {
            let mut unit = [[0.0; 4]; MAX];
            unit[column] = [1.0; 4];
            transform(unit).map(|lanes| f64::from(lanes[0].abs())).to_vec()
        };
        let absolute = |point| A::weights(point).iter().map(|factor| factor.abs()).collect();
        Matrices {
            stride: A::STRIDE,
            input: (0..A::INPUTS).map(|place| column(&|d| A::input(Scalar, d), place)).collect(),
            weights: (0..A::POINTS).map(absolute).collect(),
            output: (0..A::POINTS).map(|point| column(&|m| A::output(Scalar, m), point)).collect(),
        }
    }

    /// As [`magnitude`](Self::magnitude), for the gradient of the weights, one value a weight:
    /// `|Gᵀ| (Σ |Bᵀ| |d| |B| ⊙ |A| |dy| |Aᵀ|) |G|`.
    fn gradient_magnitude(
        &self,
        cx: &Context,
        conv: &FastConv,
        batch: usize,
        x: &[f32],
        dy: &[f32],
    ) -> Vec<f64> {
        let (g, view, points) = (&conv.geometry, &conv.view, self.weights.len());
        let ([height, width], channels) = (view.size, view.channels);
        let mut copy = Aligned::default();
        let x = view.of(cx, g, conv.input, x, &mut copy);
        let mut dw = vec![0.0; g.weight_len()];
        for (p, q) in (0..points).flat_map(|p| (0..points).map(move |q| (p, q))) {
            let mut sums = vec![0.0; channels * g.out_channels];
            let tiles = conv.rows.iter().flat_map(|rows| conv.columns.iter().map(move |c| (rows, c)));
            for (image, (rows, columns)) in
                (0..batch).flat_map(|image| tiles.clone().map(move |tile| (image, tile)))
            {
                let mut data = vec![0.0; channels];
                for (r, c) in (0..self.input.len()).flat_map(|r| (0..self.input.len()).map(move |c| (r, c))) {
                    let y =
                        (rows.start * self.stride + r).checked_sub(view.padding[0]).filter(|&y| y < height);
                    let x_at =
                        (columns.start * self.stride + c).checked_sub(view.padding[1]).filter(|&x| x < width);
                    let Some((y, x_at)) = y.zip(x_at) else { continue };
                    let from = &x[((image * height + y) * width + x_at) * channels..][..channels];
                    for (sum, value) in data.iter_mut().zip(from) {
                        *sum += self.input[r][p] * self.input[c][q] * f64::from(value.abs());
                    }
                }
                let mut gradient = vec![0.0; g.out_channels];
                for (r, c) in (0..rows.outputs).flat_map(|r| (0..columns.outputs).map(move |c| (r, c))) {
                    let row = image * conv.output[0] + rows.start + r;
                    let pixel = row * conv.output[1] + columns.start + c;
                    let from = &dy[pixel * g.out_channels..][..g.out_channels];
                    for (sum, value) in gradient.iter_mut().zip(from) {
                        *sum += self.output[p][r] * self.output[q][c] * f64::from(value.abs());
                    }
                }
                for (sums, data) in sums.chunks_exact_mut(g.out_channels).zip(data) {
                    sums.iter_mut().zip(&gradient).for_each(|(sum, gradient)| *sum += data * gradient);
                }
            }
            let taps = self.taps();
            for (tap, i) in (0..taps * taps).flat_map(|tap| (0..channels).map(move |i| (tap, i))) {
                let (ky, kx) = (tap / taps, tap % taps);
                let Some(row) = view.row(g, [ky, kx], i) else { continue };
                let factor = self.weights[p][ky] * self.weights[q][kx];
                let to = &mut dw[row * g.out_channels..][..g.out_channels];
                to.iter_mut().zip(&sums[i * g.out_channels..]).for_each(|(dw, sum)| *dw += factor * sum);
            }
        }
        dw
    }

    /// What the algorithm computes with everything in absolute values, one value an output: the size that its rounding
    /// errors are relative to. `|Aᵀ| (|G| |w| |Gᵀ| ⊙ |Bᵀ| |d| |B|) |A|`, summed over the input channels.
    ///
    /// Threes, whose weights were multiplied by `factor` and the points' scales, bring the squares of both sides with them.
    fn magnitude(
        &self,
        cx: &Context,
        conv: &FastConv,
        batch: usize,
        (x, w): (&[f32], &[f32]),
        factor: Option<f32>,
    ) -> Vec<f64> {
        let (g, view, points) = (&conv.geometry, &conv.view, self.weights.len());
        let ([height, width], channels) = (view.size, view.channels);
        let mut copy = Aligned::default();
        let x = view.of(cx, g, conv.input, x, &mut copy);
        let mut y = vec![0.0; batch * conv.output[0] * conv.output[1] * g.out_channels];
        let taps = self.taps();
        let weight = |p: usize, q: usize, i: usize, o: usize| -> f64 {
            let tap = |k: usize| {
                let mut value = [[0.0f32; LINE]];
                view.weights(g, w, [k / taps, k % taps], [i, o], 1, &mut value);
                self.weights[p][k / taps] * self.weights[q][k % taps] * f64::from(value[0][0].abs())
            };
            (0..taps * taps).map(tap).sum()
        };
        for image in 0..batch {
            for (rows, columns) in
                conv.rows.iter().flat_map(|rows| conv.columns.iter().map(move |c| (rows, c)))
            {
                for i in 0..channels {
                    let data = |r: usize, c: usize| -> f64 {
                        let place = |start: usize, at: usize, padding: usize, size: usize| {
                            (start * self.stride + at).checked_sub(padding).filter(|&place| place < size)
                        };
                        let y = place(rows.start, r, view.padding[0], height);
                        let x_at = place(columns.start, c, view.padding[1], width);
                        let value = |(y, at)| x[((image * height + y) * width + at) * channels + i];
                        y.zip(x_at).map_or(0.0, |at| f64::from(value(at).abs()))
                    };
                    for (p, q) in (0..points).flat_map(|p| (0..points).map(move |q| (p, q))) {
                        let mut v = 0.0;
                        for (r, vertical) in self.input.iter().enumerate() {
                            for (c, horizontal) in self.input.iter().enumerate() {
                                v += vertical[p] * horizontal[q] * data(r, c);
                            }
                        }
                        let scale = factor.map(|factor| f64::from(factor * conv.scales[p * points + q]));
                        for o in 0..g.out_channels {
                            let weight = weight(p, q, i, o);
                            let squares = scale.map_or(0.0, |scale| v * v / scale + scale * weight * weight);
                            let product = v * weight + squares;
                            for (r, c) in
                                (0..rows.outputs).flat_map(|r| (0..columns.outputs).map(move |c| (r, c)))
                            {
                                let row = image * conv.output[0] + rows.start + r;
                                let pixel = row * conv.output[1] + columns.start + c;
                                y[pixel * g.out_channels + o] +=
                                    self.output[p][r] * self.output[q][c] * product;
                            }
                        }
                    }
                }
            }
        }
        y
    }
}

fn matrices(tiling: Tiling) -> Option<Matrices> {
    Some(match tiling {
        Tiling::F2 => Matrices::of::<F2>(),
        Tiling::F3 => Matrices::of::<F3>(),
        Tiling::F4 => Matrices::of::<F4>(),
        Tiling::F5 => Matrices::of::<F5>(),
        Tiling::S3 => Matrices::of::<S3>(),
        Tiling::S7 => Matrices::of::<F4Of4>(),
        Tiling::Strassen | Tiling::Twice => return None,
    })
}

fn magnitude(
    cx: &Context,
    conv: &FastConv,
    batch: usize,
    (x, w): (&[f32], &[f32]),
    factor: Option<f32>,
) -> Vec<f64> {
    match matrices(conv.tiling) {
        Some(matrices) => matrices.magnitude(cx, conv, batch, (x, w), factor),
        None => parts_magnitude(conv, batch, x, w),
    }
}

/// The rounding of constants, transforms and sums: `|error| ≤ γ · magnitude` with `γ = (in_channels + 40) · ε/2`. The 40
/// covers both transforms of the input and the output (at most 8 roundings each), the constants and the weights.
#[test]
fn all_tilings_agree_with_the_oracle_at_every_level() {
    let mut random = Random::new(11);
    let contexts = contexts();
    for tiling in Tiling::ALL {
        for _ in 0..SHAPES / 2 {
            let (g, batch, input) = random_shape(&mut random, tiling);
            let (x, w) =
                (random.values(batch * input[0] * input[1] * g.in_channels), random.values(g.weight_len()));
            let (x64, w64) = (widen(&x), widen(&w));
            let expected = oracle::forward(&g, batch, input, &x64, &w64);
            let gamma = (g.in_channels as f64 + 40.0) * crate::testing::UNIT;
            for operands in KINDS {
                let (mut size, gamma) =
                    (None, if operands == Operands::Threes { 2.0 * gamma } else { gamma });
                for cx in &contexts {
                    let conv = FastConv::new(cx.level(), tiling, g, input).unwrap().with_operands(operands);
                    let (weights, mut y) = (conv.pack(cx, &w), vec![f32::NAN; expected.len()]);
                    let size =
                        size.get_or_insert_with(|| magnitude(cx, &conv, batch, (&x, &w), weights.factor));
                    conv.forward(cx, &x, &weights, Epilogue::default(), &mut FastScratch::default(), &mut y);
                    let what =
                        format!("{} {operands:?} {tiling:?} {g:?} on {batch} x {input:?}", cx.level().name());
                    assert_within(what, &y, &expected, |index| gamma * size[index] + 1e-30);
                }
            }
        }
    }
}

#[test]
fn the_epilogue_adds_bias_and_residual_and_cuts_negatives() {
    let mut random = Random::new(12);
    for cx in contexts() {
        for round in 0..30 {
            let (g, batch, input) = random_shape(&mut random, Tiling::ALL[round % Tiling::ALL.len()]);
            let conv = FastConv::new(cx.level(), Tiling::ALL[round % Tiling::ALL.len()], g, input).unwrap();
            let x = random.values(batch * input[0] * input[1] * g.in_channels);
            let (weights, bias) =
                (conv.pack(&cx, &random.values(g.weight_len())), random.values(g.out_channels));
            let residual = random.values(oracle::output_len(&g, batch, input));
            let (mut plain, mut y) = (vec![0.0; residual.len()], vec![f32::NAN; residual.len()]);
            let mut scratch = FastScratch::default();
            conv.forward(&cx, &x, &weights, Epilogue::default(), &mut scratch, &mut plain);
            let epilogue = Epilogue { bias: Some(&bias), relu: true, ..Epilogue::default() };
            let epilogue = Epilogue { residual: Some(Residual::Tensor(&residual)), ..epilogue };
            conv.forward(&cx, &x, &weights, epilogue, &mut scratch, &mut y);
            let epilogue = Epilogue { residual: Some(Residual::InPlace), ..epilogue };
            let mut in_place = residual.clone();
            conv.forward(&cx, &x, &weights, epilogue, &mut scratch, &mut in_place);
            for (index, &found) in y.iter().enumerate() {
                let expected = (plain[index] + bias[index % g.out_channels] + residual[index]).max(0.0);
                assert_eq!(found, expected, "{} {g:?}", cx.level().name());
                // Added in another order, so rounded in another way.
                let size = plain[index].abs() + bias[index % g.out_channels].abs() + residual[index].abs();
                assert!((in_place[index] - expected).abs() <= 2.0 * f32::EPSILON * size, "in place {g:?}");
            }
        }
    }
}

/// To the bit, as the values that are transformed are the same. Padding stays 0 whatever the shift.
#[test]
fn a_prologue_is_a_batch_norm_and_a_relu_of_the_input() {
    let mut random = Random::new(18);
    for cx in contexts() {
        for round in 0..20 * Tiling::ALL.len() {
            let tiling = Tiling::ALL[round % Tiling::ALL.len()];
            let (g, batch, input) = random_shape(&mut random, tiling);
            let conv = FastConv::new(cx.level(), tiling, g, input).unwrap();
            assert_eq!(
                conv.takes_prologue(),
                matches!(tiling, Tiling::F2 | Tiling::F3 | Tiling::F4 | Tiling::F5 | Tiling::S3)
            );
            if !conv.takes_prologue() {
                continue;
            }
            let raw = random.values(batch * input[0] * input[1] * g.in_channels);
            let [scale, shift] = [(); 2].map(|()| random.values(g.in_channels));
            let (scale, shift) = (&scale[..], &shift[..]);
            let mut x = vec![0.0; raw.len()];
            norm::apply(&cx, norm::Apply { x: &raw, scale, shift, residual: None, relu: true }, &mut x);
            let source = Source { values: &raw, prologue: Some(Prologue { scale, shift }) };
            let (weights, mut scratch) =
                (conv.pack(&cx, &random.values(g.weight_len())), FastScratch::default());
            let dy = random.values(oracle::output_len(&g, batch, input));
            let [mut y, mut expected] = [(); 2].map(|()| vec![f32::NAN; dy.len()]);
            conv.forward(&cx, source, &weights, Epilogue::default(), &mut scratch, &mut y);
            conv.forward(&cx, &x, &weights, Epilogue::default(), &mut scratch, &mut expected);
            assert_eq!(y, expected, "{} {tiling:?} {g:?} on {batch} x {input:?}", cx.level().name());
            if conv.has_grad_weight() {
                let [mut dw, mut expected] = [(); 2].map(|()| vec![f32::NAN; g.weight_len()]);
                conv.grad_weight(&cx, source, &dy, &mut scratch, &mut dw);
                conv.grad_weight(&cx, &x, &dy, &mut scratch, &mut expected);
                assert_eq!(dw, expected, "{} {tiling:?} {g:?} on {batch} x {input:?}", cx.level().name());
            }
        }
    }
}

/// The gradient of the input is a forward pass with turned weights, so the forward's bound holds for it.
#[test]
fn gradients_of_the_input_agree_with_the_oracle_at_every_level() {
    let mut random = Random::new(16);
    let contexts = contexts();
    let mut scratch = FastScratch::default();
    let (g, cx) = (ConvGeometry::square(96, 96, 3, 1), &contexts[0]);
    let [x, w] = [8 * 8 * 96, g.weight_len()].map(|length| random.values(length));
    let other = FastConv::new(cx.level(), Tiling::F4, g, [8, 8]).unwrap();
    other.pack_and_forward(cx, &x, &w, Epilogue::default(), &mut scratch, &mut vec![0.0; x.len()]);
    for tiling in [Tiling::F2, Tiling::F3, Tiling::F4, Tiling::F5, Tiling::Strassen, Tiling::Twice] {
        for _ in 0..SHAPES / 4 {
            let (g, batch, input) = random_shape(&mut random, tiling);
            if g.stride != [1, 1] || g.groups != 1 || g.padding.iter().any(|&padding| padding > 2) {
                continue;
            }
            let w = random.values(g.weight_len());
            let dy = random.values(oracle::output_len(&g, batch, input));
            let expected = oracle::grad_input(&g, batch, input, &widen(&dy), &widen(&w));
            let gamma = (g.out_channels as f64 + 40.0) * crate::testing::UNIT;
            for (cx, operands) in contexts.iter().flat_map(|cx| KINDS.map(|kind| (cx, kind))) {
                let gamma = if operands == Operands::Threes { 2.0 * gamma } else { gamma };
                let conv =
                    FastConv::grad_input(cx.level(), tiling, g, input).unwrap().with_operands(operands);
                // Packed where larger and other weights stood, the first time around.
                let mut dx = vec![f32::NAN; expected.len()];
                conv.pack_and_forward(cx, &dy, &w, Epilogue::default(), &mut scratch, &mut dx);
                let factor = conv.balanced(Some((&dy).into()), &w);
                let size = magnitude(cx, &conv, batch, (&dy, &w), factor);
                let what =
                    format!("{} {operands:?} {tiling:?} {g:?} on {batch} x {input:?}", cx.level().name());
                assert_within(what, &dx, &expected, |index| gamma * size[index] + 1e-30);
            }
        }
    }
    let strided = ConvGeometry::square(16, 16, 3, 2);
    assert!(FastConv::grad_input(Level::detect(), Tiling::S3, strided, [8, 8]).is_none());
}

/// Weights that are too many to stay in a cache, whose sums are taken in several parts: the bounds are the same.
#[test]
fn weights_are_transformed_in_passing_at_every_level() {
    let mut random = Random::new(19);
    let (batch, input, g) = (2, [7, 6], ConvGeometry::square(250, 130, 3, 1));
    let w = random.values(g.weight_len());
    let [x, dy] = [g.in_channels, g.out_channels].map(|channels| random.values(batch * 42 * channels));
    let y = oracle::forward(&g, batch, input, &widen(&x), &widen(&w));
    let dx = oracle::grad_input(&g, batch, input, &widen(&dy), &widen(&w));
    for (cx, operands) in contexts().iter().flat_map(|cx| KINDS.map(|kind| (cx, kind))) {
        let forward = FastConv::new(cx.level(), Tiling::F4, g, input).unwrap().with_operands(operands);
        let backward =
            FastConv::grad_input(cx.level(), Tiling::F4, g, input).unwrap().with_operands(operands);
        for (conv, x, expected) in [(forward, &x, &y), (backward, &dy, &dx)] {
            assert!(matches!(plain_weights(&conv, 1, 1, &[]), Some(Weights::Plain(_))));
            let mut found = vec![f32::NAN; expected.len()];
            conv.pack_and_forward(cx, x, &w, Epilogue::default(), &mut FastScratch::default(), &mut found);
            let size = magnitude(cx, &conv, batch, (x, &w), conv.balanced(Some(x.into()), &w));
            let twice = if operands == Operands::Threes { 2.0 } else { 1.0 };
            let gamma = twice * (conv.geometry.in_channels as f64 + 40.0) * crate::testing::UNIT;
            assert_within(cx.level().name(), &found, expected, |index| gamma * size[index]);
        }
    }
}

#[test]
fn few_weights_are_transformed_anew_in_each_pass_wherever_it_runs() {
    let mut random = Random::new(20);
    let g = ConvGeometry::square(32, 32, 3, 1);
    let (x, batch) = (random.values(40 * 64 * 32), 40);
    for (level, operands) in Level::available().into_iter().flat_map(|level| KINDS.map(|kind| (level, kind)))
    {
        let cx = Context::new(level, 4);
        let conv = FastConv::new(level, Tiling::F4, g, [8, 8]).unwrap().with_operands(operands);
        let tiles = batch * conv.rows.len() * conv.columns.len();
        assert!(matches!(plain_weights(&conv, tiles, 4, &[]), Some(Weights::Apart(_))));
        let scratch = std::sync::Mutex::new(FastScratch::default());
        let run = |w: &[f32], scratch: &mut FastScratch| {
            let mut y = vec![f32::NAN; x.len()];
            conv.pack_and_forward(&cx, &x[..], w, Epilogue::default(), scratch, &mut y);
            y
        };
        // Threads of a pool, each of which is alone inside a task, take turns at memory that all of them have used before.
        for _ in 0..2 {
            let w = random.values(g.weight_len());
            let expected = run(&w, &mut scratch.lock().unwrap());
            let others = random.values(g.weight_len());
            cx.pool().run(16, |task| {
                let mut scratch = scratch.lock().unwrap();
                let found = run(if task % 2 == 0 { &others } else { &w }, &mut scratch);
                assert_eq!(found == expected, task % 2 == 1);
            });
        }
    }
}

/// As for the forward pass, with sums over the batch's tiles: `γ = (tiles + 40) · ε/2`.
#[test]
fn gradients_of_the_weights_agree_with_the_oracle_at_every_level() {
    let mut random = Random::new(17);
    let contexts = contexts();
    let mut scratch = FastScratch::default();
    for tiling in Tiling::ALL {
        for _ in 0..SHAPES / 4 {
            let (g, batch, input) = random_shape(&mut random, tiling);
            let x = random.values(batch * input[0] * input[1] * g.in_channels);
            let dy = random.values(oracle::output_len(&g, batch, input));
            let mut sizes = None;
            let expected = oracle::grad_weight(&g, batch, input, &widen(&x), &widen(&dy));
            for cx in &contexts {
                let conv = FastConv::new(cx.level(), tiling, g, input).unwrap();
                assert_eq!(conv.has_grad_weight(), g.groups == 1 && tiling.parts() == 1);
                if !conv.has_grad_weight() {
                    continue;
                }
                let mut dw = vec![f32::NAN; expected.len()];
                conv.grad_weight(cx, &x, &dy, &mut scratch, &mut dw);
                let tiles = batch * conv.rows.len() * conv.columns.len();
                let gamma = (tiles as f64 + 40.0) * crate::testing::UNIT;
                let sizes = sizes.get_or_insert_with(|| {
                    matrices(tiling).unwrap().gradient_magnitude(cx, &conv, batch, &x, &dy)
                });
                let what = format!("{} {tiling:?} {g:?} on {batch} x {input:?}", cx.level().name());
                assert_within(what, &dw, &expected, |index| gamma * sizes[index] + 1e-30);
            }
        }
    }
}

#[test]
fn pooled_outputs_are_those_of_the_convolution_and_the_pool() {
    let mut random = Random::new(15);
    for cx in contexts() {
        let windows = [Window::same(3, 2), Window { padding: 0, ..Window::same(2, 2) }, Window::same(5, 3)];
        for (tiling, g, batch, input) in scheduled() {
            for window in windows {
                let conv = FastConv::new(cx.level(), tiling, g, input).unwrap();
                if !conv.pools() {
                    continue;
                }
                let pool = MaxPool::new([window; 2], conv.output()).unwrap();
                let weights = conv.pack(&cx, &random.values(g.weight_len()));
                let (x, bias) = (
                    random.values(batch * input[0] * input[1] * g.in_channels),
                    random.values(g.out_channels),
                );
                let epilogue = Epilogue { bias: Some(&bias), relu: true, ..Epilogue::default() };
                let mut scratch = FastScratch::default();
                let mut between = vec![0.0; oracle::output_len(&g, batch, input)];
                conv.forward(&cx, &x, &weights, epilogue, &mut scratch, &mut between);
                let [height, width] = pool.output();
                let mut expected = vec![0.0; batch * height * width * g.out_channels];
                pool.infer(&cx, g.out_channels, &between, &mut expected);
                let mut y = vec![f32::NAN; expected.len()];
                let pooled = PooledConv::new(conv, pool);
                pooled.forward(&cx, &x, &weights, epilogue, &mut scratch, &mut y);
                assert_eq!(y, expected, "{} {tiling:?} {g:?}", cx.level().name());
            }
        }
    }
}
