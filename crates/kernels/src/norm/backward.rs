//! The gradient through the statistics of the batch.

use super::partition::{Partition, WIDTH};
use super::{Scratch, task_rows, tile_rows};
use crate::Context;
use crate::parallel::SharedMut;
use crate::simd::{Simd, Task};
use crate::vector::{Columns, columns, read, write};
use std::ops::Range;

/// Rows whose sums are taken in `f32`.
const TILE: usize = 32;

/// What [`backward`] reads, beside the input and the gradient of the output.
#[derive(Debug, Clone, Copy)]
pub struct Backward<'a> {
    /// Where the gradient passes.
    pub relu: Relu<'a>,
    /// Mean of each channel over the batch, `[C]`.
    pub mean: &'a [f32],
    /// `1 / √(var + epsilon)` of each channel, `[C]`.
    pub inv_std: &'a [f32],
    /// Learned factor of each channel, `[C]`.
    pub gamma: &'a [f32],
}

/// The normalisation's input, `[N, H, W, C]`, and where the gradient of the input is left.
#[derive(Debug)]
pub enum Input<'a> {
    /// The input is kept: its gradient takes the place of the output's.
    Kept(&'a [f32]),
    /// The gradient takes the place of the input; that of the output becomes the part of it that passes the ReLU, which is
    /// the gradient of a residual that was added before it.
    Replaced(&'a mut [f32]),
}

impl Input<'_> {
    fn values(&self) -> &[f32] {
        match self {
            Input::Kept(x) => x,
            Input::Replaced(x) => x,
        }
    }
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
    /// The input.
    pub x: Input<'a>,
    /// Gradient of the output, `[N, H, W, C]`.
    pub dy: &'a mut [f32],
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
pub fn backward(context: &Context, input: Backward, scratch: &mut Scratch, out: Gradients) {
    let Gradients { x, dy, dgamma, dbeta } = out;
    let channels = input.gamma.len();
    super::rows("x", x.values(), channels);
    let (scale, shift) = match input.relu {
        Relu::Recomputed { scale, shift } => (scale.len(), shift.len()),
        Relu::None | Relu::Output(_) => (channels, channels),
    };
    let vectors = [
        ("mean", input.mean.len()),
        ("inv_std", input.inv_std.len()),
        ("scale", scale),
        ("shift", shift),
        ("dgamma", dgamma.len()),
        ("dbeta", dbeta.len()),
    ];
    for (what, length) in vectors {
        assert_eq!(length, channels, "{what} and gamma differ in length");
    }
    let length = x.values().len();
    assert_eq!(dy.len(), length, "dy and x differ in length");
    assert_eq!(input.relu.output().map_or(length, <[f32]>::len), length, "y and x differ in length");
    // Where it is wanted, or cheaper than reading the output again, the first pass leaves what passes the ReLU in dy.
    let keep = matches!(x, Input::Replaced(_)) || matches!(input.relu, Relu::Output(_));
    let coefficients = sums(context, input, x.values(), (dy, keep), scratch, [dgamma, dbeta]);
    let passed = Backward { relu: if keep { Relu::None } else { input.relu }, ..input };
    match x {
        Input::Kept(x) => second_pass::<false>(context, passed, coefficients, dy, x),
        Input::Replaced(x) => second_pass::<true>(context, passed, coefficients, x, dy),
    }
}

/// `dx = gradient · g + distance · (x − mean) + constant`, each `[C]`.
#[derive(Debug, Default)]
pub(super) struct Coefficients {
    gradient: Vec<f32>,
    distance: Vec<f32>,
    constant: Vec<f32>,
}

/// Sets `dgamma` and `dbeta`; returns what follows for `dx`. With `keep`, dy becomes the part that passes the ReLU.
fn sums<'a>(
    context: &Context,
    input: Backward,
    x: &[f32],
    (dy, keep): (&mut [f32], bool),
    scratch: &'a mut Scratch,
    [dgamma, dbeta]: [&mut [f32]; 2],
) -> &'a Coefficients {
    let channels = input.gamma.len();
    let rows = x.len() / channels;
    let (partials, totals, coefficients) = scratch.parts(channels);
    let dy = SharedMut(dy.as_mut_ptr());
    Partition::new(rows, channels).reduce(
        context,
        partials,
        |part, gradient, product| {
            let (rows, channels) = (part.rows.clone(), part.channels.clone());
            context.level().run(SumChunk { input, x, dy: dy.get(), keep, rows, channels, gradient, product });
        },
        |part, gradient, product| {
            let totals = totals[part.channels.clone()].iter_mut();
            for ((total, gradient), product) in totals.zip(gradient).zip(product) {
                total[0] += gradient;
                total[1] += product;
            }
        },
    );
    let Coefficients { gradient, distance, constant } = &mut *coefficients;
    [gradient, distance, constant].into_iter().for_each(Vec::clear);
    for (channel, &mut [gradient, product]) in totals.iter_mut().enumerate() {
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
    x: &'a [f32],
    /// As long as x; nobody else works on these rows and channels.
    dy: *mut f32,
    keep: bool,
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
                let SumChunk { input, x, dy, keep, .. } = self;
                let first = self.channels.start;
                columns(simd, width, &mut SumTile { input, x, dy, keep, rows, first, sums: &mut sums });
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
    x: &'a [f32],
    dy: *mut f32,
    keep: bool,
    rows: Range<usize>,
    first: usize,
    sums: &'a mut [[f32; WIDTH]; 2],
}

impl Columns for SumTile<'_> {
    #[inline(always)]
    fn block<S: Simd, const V: usize>(&mut self, simd: S, from: usize, count: usize) {
        let Backward { relu, mean, .. } = self.input;
        let width = (V - 1) * S::LANES + count;
        let means = parameters::<S, V>(simd, mean, self.first + from, count);
        let passes = Passes::<S, V>::new(simd, relu, self.first + from, count);
        let mut gradients = parameters::<S, V>(simd, &self.sums[0], from, count);
        let mut products = parameters::<S, V>(simd, &self.sums[1], from, count);
        for row in self.rows.clone() {
            let start = row * mean.len() + self.first + from;
            let x = &self.x[start..][..width];
            // SAFETY: dy is as long as x, and these channels of this row belong to this task.
            let dy = unsafe { std::slice::from_raw_parts_mut(self.dy.wrapping_add(start), width) };
            let y = relu.output().map_or(x, |y| &y[start..][..width]);
            for v in 0..V {
                let at = v * S::LANES;
                let (gradient, x) = (read(simd, dy, at, count), read(simd, x, at, count));
                let gradient = passes.of(simd, v, gradient, x, read(simd, y, at, count));
                if self.keep {
                    write(simd, dy, at, count, gradient);
                }
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

/// The second pass: leaves dx in `place`, which is x where `IN_X` is set and dy otherwise; `beside` is the other one.
fn second_pass<const IN_X: bool>(
    context: &Context,
    input: Backward,
    coefficients: &Coefficients,
    place: &mut [f32],
    beside: &[f32],
) {
    let length = task_rows(input.mean.len()) * input.mean.len();
    context.pool().pieces(place, length, |index, place| {
        let beside = &beside[index * length..][..place.len()];
        context.level().run(InputPiece::<IN_X> { input, coefficients, place, beside });
    });
}

/// Some rows of the second pass.
struct InputPiece<'a, const IN_X: bool> {
    input: Backward<'a>,
    coefficients: &'a Coefficients,
    place: &'a mut [f32],
    beside: &'a [f32],
}

impl<const IN_X: bool> Task for InputPiece<'_, IN_X> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let InputPiece { input, coefficients, place, beside } = self;
        let channels = input.mean.len();
        let length = tile_rows(channels) * channels;
        for (place, beside) in place.chunks_mut(length).zip(beside.chunks(length)) {
            columns(simd, channels, &mut InputPiece::<IN_X> { input, coefficients, place, beside });
        }
    }
}

impl<const IN_X: bool> Columns for InputPiece<'_, IN_X> {
    #[inline(always)]
    fn block<S: Simd, const V: usize>(&mut self, simd: S, from: usize, count: usize) {
        let Backward { relu, mean, .. } = self.input;
        let width = (V - 1) * S::LANES + count;
        let means = parameters::<S, V>(simd, mean, from, count);
        let gradients = parameters::<S, V>(simd, &self.coefficients.gradient, from, count);
        let distances = parameters::<S, V>(simd, &self.coefficients.distance, from, count);
        let constants = parameters::<S, V>(simd, &self.coefficients.constant, from, count);
        let passes = Passes::<S, V>::new(simd, relu, from, count);
        for start in (from..self.place.len()).step_by(mean.len()) {
            let (place, beside) = (&mut self.place[start..][..width], &self.beside[start..][..width]);
            for v in 0..V {
                let at = v * S::LANES;
                let (place_value, beside) = (read(simd, place, at, count), read(simd, beside, at, count));
                let (x, gradient) = if IN_X { (place_value, beside) } else { (beside, place_value) };
                let gradient = passes.of(simd, v, gradient, x, x);
                let distance = simd.sub(x, means[v]);
                let value = simd.mul_add(distance, distances[v], constants[v]);
                write(simd, place, at, count, simd.mul_add(gradient, gradients[v], value));
            }
        }
    }
}
