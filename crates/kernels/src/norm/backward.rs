//! The gradient through the statistics of the batch.

use super::partition::{Partition, WIDTH};
use super::{task_rows, tile_rows};
use crate::Context;
use crate::simd::{Simd, Task};
use crate::vector::{Columns, columns, read, write};
use std::ops::Range;

/// Rows whose sums are taken in `f32`.
const TILE: usize = 32;

/// What [`backward`] reads, beside the gradient of the output.
#[derive(Debug, Clone, Copy)]
pub struct Backward<'a> {
    /// The normalisation's input, `[N, H, W, C]`.
    pub x: &'a [f32],
    /// Where the gradient passes.
    pub relu: Relu<'a>,
    /// Mean of each channel over the batch, `[C]`.
    pub mean: &'a [f32],
    /// `1 / √(var + epsilon)` of each channel, `[C]`.
    pub inv_std: &'a [f32],
    /// Learned factor of each channel, `[C]`.
    pub gamma: &'a [f32],
}

/// The ReLU after a normalisation: the gradient passes where its output is positive.
#[derive(Debug, Clone, Copy)]
pub enum Relu<'a> {
    /// There is none.
    None,
    /// The output, `[N, H, W, C]`, which a residual was added to.
    Output(&'a [f32]),
    /// The output is computed again from x as [`apply`](super::apply) does it, without a residual.
    Recomputed {
        /// Factor of each channel, `[C]`.
        scale: &'a [f32],
        /// Summand of each channel, `[C]`.
        shift: &'a [f32],
    },
}

/// What [`backward`] changes and writes.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Gradient of the output, `[N, H, W, C]`. It is overwritten: where there is a `dx`, with the part that passes the ReLU,
    /// which is the gradient of a residual that was added before it; else with the gradient of the input.
    pub dy: &'a mut [f32],
    /// Gradient of the input, `[N, H, W, C]`, where it does not take the place of `dy`.
    pub dx: Option<&'a mut [f32]>,
    /// Gradient of gamma, `[C]`.
    pub dgamma: &'a mut [f32],
    /// Gradient of beta, `[C]`.
    pub dbeta: &'a mut [f32],
}

/// The gradients of `y = relu((x − mean) · inv_std · gamma + beta + residual)` for mean and variance of this very batch.
///
/// With `g` the part of `dy` that passes the ReLU, `x̂` the normalised input and `m` rows: `dbeta = Σg`,
/// `dgamma = Σ g·x̂`, `dx = gamma · inv_std · (g − dbeta / m − x̂ · dgamma / m)`. Two passes over memory.
///
/// # Panics
/// When the lengths do not fit each other.
pub fn backward(context: &Context, input: Backward, out: Gradients) {
    let channels = input.gamma.len();
    let rows = super::rows("x", input.x, channels);
    let (scale, shift) = match input.relu {
        Relu::Recomputed { scale, shift } => (scale.len(), shift.len()),
        Relu::None | Relu::Output(_) => (channels, channels),
    };
    let vectors = [
        ("mean", input.mean.len()),
        ("inv_std", input.inv_std.len()),
        ("scale", scale),
        ("shift", shift),
        ("dgamma", out.dgamma.len()),
        ("dbeta", out.dbeta.len()),
    ];
    for (what, length) in vectors {
        assert_eq!(length, channels, "{what} and gamma differ in length");
    }
    let tensors = [
        ("y", input.relu.output().map(<[f32]>::len)),
        ("dy", Some(out.dy.len())),
        ("dx", out.dx.as_deref().map(<[f32]>::len)),
    ];
    for (what, length) in tensors {
        assert_eq!(length.unwrap_or(input.x.len()), input.x.len(), "{what} and x differ in length");
    }
    let coefficients = sums(context, input, out.dy, rows, [out.dgamma, out.dbeta]);
    input_gradient(context, input, &coefficients, out.dy, out.dx);
}

/// `dx = gradient · g + distance · (x − mean) + constant`, each `[C]`.
struct Coefficients {
    gradient: Vec<f32>,
    distance: Vec<f32>,
    constant: Vec<f32>,
}

/// Sets `dgamma` and `dbeta`; returns what follows for `dx`.
fn sums(
    context: &Context,
    input: Backward,
    dy: &[f32],
    rows: usize,
    [dgamma, dbeta]: [&mut [f32]; 2],
) -> Coefficients {
    let channels = input.gamma.len();
    let mut totals = vec![[0.0; 2]; channels];
    Partition::new(rows, channels).reduce(
        context,
        |part, gradient, product| {
            let (rows, channels) = (part.rows.clone(), part.channels.clone());
            context.level().run(SumChunk { input, dy, rows, channels, gradient, product });
        },
        |part, gradient, product| {
            let totals = totals[part.channels.clone()].iter_mut();
            for ((total, gradient), product) in totals.zip(gradient).zip(product) {
                total[0] += gradient;
                total[1] += product;
            }
        },
    );
    let mut coefficients = Coefficients { gradient: Vec::new(), distance: Vec::new(), constant: Vec::new() };
    for (channel, [gradient, product]) in totals.into_iter().enumerate() {
        let inv_std = f64::from(input.inv_std[channel]);
        let factor = f64::from(input.gamma[channel]) * inv_std;
        dbeta[channel] = gradient as f32;
        dgamma[channel] = (product * inv_std) as f32;
        coefficients.gradient.push(factor as f32);
        coefficients.distance.push((-factor * inv_std * inv_std * product / rows as f64) as f32);
        coefficients.constant.push((-factor * gradient / rows as f64) as f32);
    }
    coefficients
}

/// One task of the first pass: `Σg` and `Σ g·(x − mean)` of some channels over a chunk of rows.
struct SumChunk<'a> {
    input: Backward<'a>,
    dy: &'a [f32],
    rows: Range<usize>,
    channels: Range<usize>,
    gradient: &'a mut [f64],
    product: &'a mut [f64],
}

impl Task for SumChunk<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.channels.len();
        let mut sums = [[0.0; WIDTH]; 2];
        for start in self.rows.clone().step_by(TILE) {
            let end = (start + TILE).min(self.rows.end);
            sums.iter_mut().for_each(|sums| sums[..width].fill(0.0));
            for start in (start..end).step_by(tile_rows(width)) {
                let rows = start..(start + tile_rows(width)).min(end);
                let first = self.channels.start;
                columns(
                    simd,
                    width,
                    &mut SumTile { input: self.input, dy: self.dy, rows, first, sums: &mut sums },
                );
            }
            for (sums, totals) in sums.iter().zip([&mut *self.gradient, &mut *self.product]) {
                totals.iter_mut().zip(sums).for_each(|(total, &sum)| *total += f64::from(sum));
            }
        }
    }
}

/// A few rows, added to the sums.
struct SumTile<'a> {
    input: Backward<'a>,
    dy: &'a [f32],
    rows: Range<usize>,
    first: usize,
    sums: &'a mut [[f32; WIDTH]; 2],
}

impl Columns for SumTile<'_> {
    #[inline(always)]
    fn block<S: Simd, const V: usize>(&mut self, simd: S, from: usize, count: usize) {
        let Backward { x, relu, mean, .. } = self.input;
        let width = (V - 1) * S::LANES + count;
        let means = parameters::<S, V>(simd, mean, self.first + from, count);
        let passes = Passes::<S, V>::new(simd, relu, self.first + from, count);
        let mut gradients = parameters::<S, V>(simd, &self.sums[0], from, count);
        let mut products = parameters::<S, V>(simd, &self.sums[1], from, count);
        for row in self.rows.clone() {
            let start = row * mean.len() + self.first + from;
            let (x, dy) = (&x[start..][..width], &self.dy[start..][..width]);
            let y = relu.output().map_or(x, |y| &y[start..][..width]);
            for v in 0..V {
                let at = v * S::LANES;
                let (gradient, x) = (read(simd, dy, at, count), read(simd, x, at, count));
                let gradient = passes.of(simd, v, gradient, x, read(simd, y, at, count));
                let distance = simd.sub(x, means[v]);
                gradients[v] = simd.add(gradients[v], gradient);
                products[v] = simd.mul_add(gradient, distance, products[v]);
            }
        }
        for v in 0..V {
            write(simd, &mut self.sums[0], from + v * S::LANES, count, gradients[v]);
            write(simd, &mut self.sums[1], from + v * S::LANES, count, products[v]);
        }
    }
}

/// The parameters of a block of channels.
#[inline(always)]
fn parameters<S: Simd, const V: usize>(simd: S, source: &[f32], from: usize, count: usize) -> [S::V; V] {
    let mut values = [simd.zero(); V];
    for (v, value) in values.iter_mut().enumerate() {
        *value = read(simd, source, from + v * S::LANES, count);
    }
    values
}

impl<'a> Relu<'a> {
    /// The output, where it is there to be read.
    fn output(&self) -> Option<&'a [f32]> {
        match *self {
            Relu::Output(y) => Some(y),
            Relu::None | Relu::Recomputed { .. } => None,
        }
    }
}

/// Where a ReLU passes the gradients of a block of channels.
#[derive(Clone, Copy)]
enum Passes<S: Simd, const V: usize> {
    Everywhere,
    WhereOutput,
    WhereRecomputed { scale: [S::V; V], shift: [S::V; V] },
}

impl<S: Simd, const V: usize> Passes<S, V> {
    #[inline(always)]
    fn new(simd: S, relu: Relu, from: usize, count: usize) -> Self {
        match relu {
            Relu::None => Passes::Everywhere,
            Relu::Output(_) => Passes::WhereOutput,
            Relu::Recomputed { scale, shift } => Passes::WhereRecomputed {
                scale: parameters(simd, scale, from, count),
                shift: parameters(simd, shift, from, count),
            },
        }
    }

    /// The part of a gradient that passes, of vector `v`; `y` is the output, where it is there to be read.
    #[inline(always)]
    fn of(&self, simd: S, v: usize, gradient: S::V, x: S::V, y: S::V) -> S::V {
        match self {
            Passes::Everywhere => gradient,
            Passes::WhereOutput => simd.keep_where_positive(y, gradient),
            Passes::WhereRecomputed { scale, shift } => {
                simd.keep_where_positive(simd.mul_add(x, scale[v], shift[v]), gradient)
            }
        }
    }
}

/// The second pass.
fn input_gradient(
    context: &Context,
    input: Backward,
    coefficients: &Coefficients,
    dy: &mut [f32],
    dx: Option<&mut [f32]>,
) {
    let length = task_rows(input.mean.len()) * input.mean.len();
    let mut dx = dx.map(|dx| dx.chunks_mut(length));
    let mut pieces: Vec<_> =
        dy.chunks_mut(length).map(|dy| (dy, dx.as_mut().and_then(Iterator::next))).collect();
    context.pool().pieces(&mut pieces, 1, |index, piece| {
        for (dy, dx) in piece {
            let input = part(input, index * length, dy.len());
            context.level().run(InputPiece { input, coefficients, dy, dx: dx.as_deref_mut() });
        }
    });
}

/// The rows of `input` from value `start` on.
#[inline(always)]
fn part(input: Backward, start: usize, length: usize) -> Backward {
    let range = start..start + length;
    Backward {
        x: &input.x[range.clone()],
        relu: match input.relu {
            Relu::Output(y) => Relu::Output(&y[range]),
            other => other,
        },
        ..input
    }
}

/// Some rows of the second pass.
struct InputPiece<'a> {
    input: Backward<'a>,
    coefficients: &'a Coefficients,
    dy: &'a mut [f32],
    dx: Option<&'a mut [f32]>,
}

impl Task for InputPiece<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let channels = self.input.mean.len();
        let length = tile_rows(channels) * channels;
        for (index, dy) in self.dy.chunks_mut(length).enumerate() {
            let start = index * length;
            let dx = self.dx.as_mut().map(|dx| &mut dx[start..][..dy.len()]);
            let input = part(self.input, start, dy.len());
            columns(simd, channels, &mut InputPiece { input, coefficients: self.coefficients, dy, dx });
        }
    }
}

impl Columns for InputPiece<'_> {
    #[inline(always)]
    fn block<S: Simd, const V: usize>(&mut self, simd: S, from: usize, count: usize) {
        let Backward { x, relu, mean, .. } = self.input;
        let width = (V - 1) * S::LANES + count;
        let means = parameters::<S, V>(simd, mean, from, count);
        let gradients = parameters::<S, V>(simd, &self.coefficients.gradient, from, count);
        let distances = parameters::<S, V>(simd, &self.coefficients.distance, from, count);
        let constants = parameters::<S, V>(simd, &self.coefficients.constant, from, count);
        let passes = Passes::<S, V>::new(simd, relu, from, count);
        for start in (from..self.dy.len()).step_by(mean.len()) {
            let (x, dy) = (&x[start..][..width], &mut self.dy[start..][..width]);
            let y = relu.output().map_or(x, |y| &y[start..][..width]);
            let mut dx = self.dx.as_mut().map(|dx| &mut dx[start..][..width]);
            for v in 0..V {
                let at = v * S::LANES;
                let (gradient, x) = (read(simd, dy, at, count), read(simd, x, at, count));
                let gradient = passes.of(simd, v, gradient, x, read(simd, y, at, count));
                let distance = simd.sub(x, means[v]);
                let value = simd.mul_add(distance, distances[v], constants[v]);
                let value = simd.mul_add(gradient, gradients[v], value);
                match &mut dx {
                    None => write(simd, dy, at, count, value),
                    Some(dx) => {
                        write(simd, dx, at, count, value);
                        write(simd, dy, at, count, gradient);
                    }
                }
            }
        }
    }
}
