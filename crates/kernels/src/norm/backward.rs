//! The gradient through the statistics of the batch.

use super::partition::Partition;
use super::{task_rows, tile_rows};
use crate::Context;
use crate::simd::{Simd, Task};
use crate::vector::{BLOCK_CHANNELS, Columns, columns, read, write};
use std::ops::Range;

/// Rows whose sums are taken in `f32`.
const TILE: usize = 32;

/// What [`backward`] reads.
#[derive(Debug, Clone, Copy)]
pub struct Backward<'a> {
    /// The normalisation's input, `[N, H, W, C]`.
    pub x: &'a [f32],
    /// Gradient of the output, `[N, H, W, C]`.
    pub dy: &'a [f32],
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

/// What [`backward`] writes.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Gradient of the input, `[N, H, W, C]`.
    pub dx: &'a mut [f32],
    /// Gradient of gamma, `[C]`.
    pub dgamma: &'a mut [f32],
    /// Gradient of beta, `[C]`.
    pub dbeta: &'a mut [f32],
    /// Gradient of the residual that was added before the ReLU: `dy` where it passes, else 0. `[N, H, W, C]`.
    pub residual: Option<&'a mut [f32]>,
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
    for (what, length) in [("mean", input.mean.len()), ("inv_std", input.inv_std.len())] {
        assert_eq!(length, channels, "{what} and gamma differ in length");
    }
    for (what, length) in [("dgamma", out.dgamma.len()), ("dbeta", out.dbeta.len())] {
        assert_eq!(length, channels, "{what} and gamma differ in length");
    }
    let optional = [
        ("y", input.relu.output().map(<[f32]>::len)),
        ("residual", out.residual.as_deref().map(<[f32]>::len)),
    ];
    let required = [("dy", Some(input.dy.len())), ("dx", Some(out.dx.len()))];
    for (what, length) in required.into_iter().chain(optional) {
        assert_eq!(length.unwrap_or(input.x.len()), input.x.len(), "{what} and x differ in length");
    }
    if let Relu::Recomputed { scale, shift } = input.relu {
        assert!(
            scale.len() == channels && shift.len() == channels,
            "scale, shift and gamma differ in length"
        );
    }
    let coefficients = sums(context, input, rows, out.dgamma, out.dbeta);
    input_gradient(context, input, &coefficients, out.dx, out.residual);
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
    rows: usize,
    dgamma: &mut [f32],
    dbeta: &mut [f32],
) -> Coefficients {
    let channels = input.gamma.len();
    let mut totals = vec![[0.0; 2]; channels];
    Partition::new(rows, channels).reduce(
        context,
        |part, gradient, product| {
            let (rows, channels) = (part.rows.clone(), part.channels.clone());
            context.level().run(SumChunk { input, rows, channels, gradient, product });
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
        for start in self.rows.clone().step_by(TILE) {
            let mut tile = SumTile {
                input: self.input,
                rows: start..(start + TILE).min(self.rows.end),
                first: self.channels.start,
                gradient: self.gradient,
                product: self.product,
            };
            columns(simd, width, &mut tile);
        }
    }
}

/// A few rows, added to the sums.
struct SumTile<'a> {
    input: Backward<'a>,
    rows: Range<usize>,
    first: usize,
    gradient: &'a mut [f64],
    product: &'a mut [f64],
}

impl Columns for SumTile<'_> {
    #[inline(always)]
    fn block<S: Simd, const V: usize>(&mut self, simd: S, from: usize, count: usize) {
        let Backward { x, dy, relu, mean, .. } = self.input;
        let width = (V - 1) * S::LANES + count;
        let means = parameters::<S, V>(simd, mean, self.first + from, count);
        let recomputed = relu.parameters::<S, V>(simd, self.first + from, count);
        let (mut gradients, mut products) = ([simd.zero(); V], [simd.zero(); V]);
        for row in self.rows.clone() {
            let start = row * mean.len() + self.first + from;
            let (x, dy) = (&x[start..][..width], &dy[start..][..width]);
            let y = relu.output().map(|y| &y[start..][..width]);
            for v in 0..V {
                let at = v * S::LANES;
                let (gradient, x) = (read(simd, dy, at, count), read(simd, x, at, count));
                let y = y.map(|y| read(simd, y, at, count));
                let gradient = passed(simd, gradient, x, y, recomputed.map(|all| all.map(|all| all[v])));
                let distance = simd.sub(x, means[v]);
                gradients[v] = simd.add(gradients[v], gradient);
                products[v] = simd.mul_add(gradient, distance, products[v]);
            }
        }
        for (values, sums) in [(gradients, &mut *self.gradient), (products, &mut *self.product)] {
            let mut lanes = [0.0; BLOCK_CHANNELS];
            for (v, &value) in values.iter().enumerate() {
                write(simd, &mut lanes, v * S::LANES, S::LANES, value);
            }
            for (sum, &lane) in sums[from..][..width].iter_mut().zip(&lanes) {
                *sum += f64::from(lane);
            }
        }
    }
}

/// The parameters of a block of channels.
#[inline(always)]
fn parameters<S: Simd, const V: usize>(simd: S, source: &[f32], from: usize, count: usize) -> [S::V; V] {
    std::array::from_fn(|v| read(simd, source, from + v * S::LANES, count))
}

impl<'a> Relu<'a> {
    /// The output, where it is there to be read.
    fn output(&self) -> Option<&'a [f32]> {
        match *self {
            Relu::Output(y) => Some(y),
            Relu::None | Relu::Recomputed { .. } => None,
        }
    }

    /// Scale and shift of a block of channels.
    #[inline(always)]
    fn parameters<S: Simd, const V: usize>(
        &self,
        simd: S,
        from: usize,
        count: usize,
    ) -> Option<[[S::V; V]; 2]> {
        match self {
            Relu::Recomputed { scale, shift } => {
                Some([scale, shift].map(|source| parameters::<S, V>(simd, source, from, count)))
            }
            Relu::None | Relu::Output(_) => None,
        }
    }
}

/// The part of a gradient that passes the ReLU, whose output is `y` or follows from x.
#[inline(always)]
fn passed<S: Simd>(simd: S, gradient: S::V, x: S::V, y: Option<S::V>, recomputed: Option<[S::V; 2]>) -> S::V {
    let y = recomputed.map(|[scale, shift]| simd.mul_add(x, scale, shift)).or(y);
    y.map_or(gradient, |y| simd.keep_where_positive(y, gradient))
}

/// The second pass.
fn input_gradient(
    context: &Context,
    input: Backward,
    coefficients: &Coefficients,
    dx: &mut [f32],
    residual: Option<&mut [f32]>,
) {
    let length = task_rows(input.mean.len()) * input.mean.len();
    let mut residuals = residual.map(|residual| residual.chunks_mut(length));
    let mut pieces: Vec<_> =
        dx.chunks_mut(length).map(|dx| (dx, residuals.as_mut().and_then(Iterator::next))).collect();
    context.pool().pieces(&mut pieces, 1, |index, piece| {
        for (dx, residual) in piece {
            let residual = residual.as_deref_mut();
            context.level().run(InputPiece {
                input: part(input, index * length, dx.len()),
                coefficients,
                dx,
                residual,
            });
        }
    });
}

/// The rows of `input` from value `start` on.
#[inline(always)]
fn part(input: Backward, start: usize, length: usize) -> Backward {
    let range = start..start + length;
    Backward {
        x: &input.x[range.clone()],
        dy: &input.dy[range.clone()],
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
    dx: &'a mut [f32],
    residual: Option<&'a mut [f32]>,
}

impl Task for InputPiece<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let channels = self.input.mean.len();
        let length = tile_rows(channels) * channels;
        for (index, dx) in self.dx.chunks_mut(length).enumerate() {
            let start = index * length;
            let residual = self.residual.as_mut().map(|residual| &mut residual[start..][..dx.len()]);
            let input = part(self.input, start, dx.len());
            let mut tile = InputPiece { input, coefficients: self.coefficients, dx, residual };
            columns(simd, channels, &mut tile);
        }
    }
}

impl Columns for InputPiece<'_> {
    #[inline(always)]
    fn block<S: Simd, const V: usize>(&mut self, simd: S, from: usize, count: usize) {
        let Backward { x, dy, relu, mean, .. } = self.input;
        let width = (V - 1) * S::LANES + count;
        let Coefficients { gradient, distance, constant } = self.coefficients;
        let [means, gradients, distances, constants] = [mean, &gradient[..], distance, constant]
            .map(|source| parameters::<S, V>(simd, source, from, count));
        let recomputed = relu.parameters::<S, V>(simd, from, count);
        for start in (from..self.dx.len()).step_by(mean.len()) {
            let (x, dy) = (&x[start..][..width], &dy[start..][..width]);
            let y = relu.output().map(|y| &y[start..][..width]);
            let dx = &mut self.dx[start..][..width];
            let mut residual = self.residual.as_mut().map(|residual| &mut residual[start..][..width]);
            for v in 0..V {
                let at = v * S::LANES;
                let (gradient, x) = (read(simd, dy, at, count), read(simd, x, at, count));
                let y = y.map(|y| read(simd, y, at, count));
                let gradient = passed(simd, gradient, x, y, recomputed.map(|all| all.map(|all| all[v])));
                let distance = simd.sub(x, means[v]);
                let value = simd.mul_add(distance, distances[v], constants[v]);
                write(simd, dx, at, count, simd.mul_add(gradient, gradients[v], value));
                if let Some(residual) = &mut residual {
                    write(simd, residual, at, count, gradient);
                }
            }
        }
    }
}
