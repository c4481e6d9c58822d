//! Batch normalisation over the channels of NHWC activations (Ioffe & Szegedy 2015): statistics, application with the
//! residual and the ReLU that follow, and the gradient through the batch's statistics.
//!
//! Activations are seen as rows of `channels` values. Sums run over fixed pieces of rows in `f32` and over the pieces in
//! `f64`, always in the same order.

use crate::Context;
use crate::parallel::SharedMut;
use crate::simd::{Simd, Task};

/// Rows of a piece whose sums are kept in `f32`.
const ROWS: usize = 256;

/// Calls `work(first channel, channels)` for each vector of the channels.
#[inline(always)]
fn each_vector<S: Simd>(channels: usize, mut work: impl FnMut(usize, usize)) {
    for c in (0..channels).step_by(S::LANES) {
        work(c, S::LANES.min(channels - c));
    }
}

/// Reads `count` values at `from[at..]`.
#[inline(always)]
fn load<S: Simd>(simd: S, from: &[f32], at: usize, count: usize) -> S::V {
    let from = &from[at..at + count];
    // SAFETY: `from` holds `count` values, and `count <= LANES` as `each_vector` gives it.
    unsafe {
        if count == S::LANES { simd.load(from.as_ptr()) } else { simd.load_partial(from.as_ptr(), count) }
    }
}

/// Writes `count` values at `to[at..]`.
#[inline(always)]
fn store<S: Simd>(simd: S, to: &mut [f32], at: usize, value: S::V, count: usize) {
    let to = &mut to[at..at + count];
    // SAFETY: `to` holds `count` values, and `count <= LANES` as `each_vector` gives it.
    unsafe {
        if count == S::LANES {
            simd.store(to.as_mut_ptr(), value)
        } else {
            simd.store_partial(to.as_mut_ptr(), value, count)
        }
    }
}

/// Sums two values a row and channel over all rows: returns `[2][channels]` in `f64`.
fn column_sums(
    cx: &Context,
    rows: usize,
    channels: usize,
    piece: impl Fn(usize, usize, &mut [f32]) + Sync,
) -> Vec<f64> {
    let pieces = rows.div_ceil(ROWS);
    let mut partial = vec![0.0f32; pieces * 2 * channels];
    cx.pool().pieces(&mut partial, (2 * channels).max(1), |index, sums| {
        piece(index * ROWS, ROWS.min(rows - index * ROWS), sums);
    });
    let mut sums = vec![0.0; 2 * channels];
    for partial in partial.chunks_exact(2 * channels) {
        for (sum, &value) in sums.iter_mut().zip(partial) {
            *sum += f64::from(value);
        }
    }
    sums
}

struct Moments<'a> {
    x: &'a [f32],
    shift: &'a [f32],
    sums: &'a mut [f32],
}

impl Task for Moments<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let channels = self.shift.len();
        let (first, second) = self.sums.split_at_mut(channels);
        each_vector::<S>(channels, |c, count| {
            let shift = load(simd, self.shift, c, count);
            let (mut sum, mut square) = (simd.zero(), simd.zero());
            for row in self.x.chunks_exact(channels) {
                let value = simd.sub(load(simd, row, c, count), shift);
                sum = simd.add(sum, value);
                square = simd.mul_add(value, value, square);
            }
            store(simd, first, c, sum, count);
            store(simd, second, c, square, count);
        });
    }
}

/// Mean and biased variance of each channel over all rows of `x`.
///
/// The sums are those of the distance to the first row, so that a mean far larger than the deviation loses nothing.
///
/// # Panics
/// When `mean` and `var` differ in length, or `x` is not a whole number of rows, or has none.
pub fn statistics(cx: &Context, x: &[f32], mean: &mut [f32], var: &mut [f32]) {
    let channels = mean.len();
    assert!(channels > 0 && var.len() == channels, "as many variances as means");
    assert!(!x.is_empty() && x.len().is_multiple_of(channels), "rows of {channels} values");
    let (rows, shift) = (x.len() / channels, &x[..channels]);
    let sums = column_sums(cx, rows, channels, |from, count, sums| {
        let x = &x[from * channels..(from + count) * channels];
        cx.level().run(Moments { x, shift, sums });
    });
    for c in 0..channels {
        let distance = sums[c] / rows as f64;
        mean[c] = (f64::from(shift[c]) + distance) as f32;
        // Rounding may take the difference below 0; NaN stays NaN.
        let variance = sums[channels + c] / rows as f64 - distance * distance;
        var[c] = if variance < 0.0 { 0.0 } else { variance as f32 };
    }
}

/// What [`apply`] computes: `y = relu?(x · scale + shift + residual)`.
#[derive(Debug, Clone, Copy)]
pub struct Apply<'a> {
    /// Rows of channels.
    pub x: &'a [f32],
    /// A factor for each channel.
    pub scale: &'a [f32],
    /// A summand for each channel.
    pub shift: &'a [f32],
    /// A tensor of x's shape that is added.
    pub residual: Option<&'a [f32]>,
    /// Whether negative results become 0.
    pub relu: bool,
}

struct ApplyTask<'a> {
    apply: Apply<'a>,
    y: &'a mut [f32],
}

impl Task for ApplyTask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Apply { x, scale, shift, residual, relu } = self.apply;
        let channels = scale.len();
        for (row, y) in self.y.chunks_exact_mut(channels).enumerate() {
            let from = row * channels;
            each_vector::<S>(channels, |c, count| {
                let x = load(simd, x, from + c, count);
                let mut value = simd.mul_add(x, load(simd, scale, c, count), load(simd, shift, c, count));
                if let Some(residual) = residual {
                    value = simd.add(value, load(simd, residual, from + c, count));
                }
                if relu {
                    value = simd.max(simd.zero(), value);
                }
                store(simd, y, c, value, count);
            });
        }
    }
}

/// Applies a scale and a shift to each channel, adds the residual, cuts negatives.
///
/// # Panics
/// When lengths do not fit.
pub fn apply(cx: &Context, apply: Apply, y: &mut [f32]) {
    let channels = apply.scale.len();
    assert!(channels > 0 && apply.shift.len() == channels, "as many shifts as scales");
    assert!(apply.x.len() == y.len() && y.len().is_multiple_of(channels), "rows of {channels} values");
    assert!(apply.residual.is_none_or(|residual| residual.len() == y.len()), "the residual's length");
    cx.pool().pieces(y, ROWS * channels, |index, y| {
        let from = index * ROWS * channels;
        let x = &apply.x[from..from + y.len()];
        let residual = apply.residual.map(|residual| &residual[from..from + y.len()]);
        cx.level().run(ApplyTask { apply: Apply { x, residual, ..apply }, y });
    });
}

/// What [`backward`] needs.
#[derive(Debug, Clone, Copy)]
pub struct Backward<'a> {
    /// The forward's input.
    pub x: &'a [f32],
    /// The gradient of the forward's output.
    pub dy: &'a [f32],
    /// The forward's output, where a ReLU made it: the gradient passes where it is positive.
    pub y: Option<&'a [f32]>,
    /// Mean of each channel over the batch.
    pub mean: &'a [f32],
    /// 1 / √(variance + ε) of each channel over the batch.
    pub inv_std: &'a [f32],
    /// The gain γ of each channel.
    pub gamma: &'a [f32],
}

/// What [`backward`] writes.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Gradient of the input.
    pub dx: &'a mut [f32],
    /// Gradient of the gain.
    pub dgamma: &'a mut [f32],
    /// Gradient of the bias.
    pub dbeta: &'a mut [f32],
    /// Gradient of the residual: `dy` where the output is positive.
    pub residual: Option<&'a mut [f32]>,
}

impl<'a> Backward<'a> {
    /// The same for some of the rows.
    fn rows(&self, from: usize, count: usize) -> Backward<'a> {
        let channels = self.mean.len();
        let part = |values: &'a [f32]| &values[from * channels..(from + count) * channels];
        Backward { x: part(self.x), dy: part(self.dy), y: self.y.map(part), ..*self }
    }

    /// The gradient after the ReLU's mask, and x̂, of one vector.
    #[inline(always)]
    fn vectors<S: Simd>(&self, simd: S, at: usize, c: usize, count: usize) -> (S::V, S::V) {
        let mut gradient = load(simd, self.dy, at + c, count);
        if let Some(y) = self.y {
            gradient = simd.keep_where_positive(load(simd, y, at + c, count), gradient);
        }
        let distance = simd.sub(load(simd, self.x, at + c, count), load(simd, self.mean, c, count));
        (gradient, simd.mul(distance, load(simd, self.inv_std, c, count)))
    }
}

struct BackwardSums<'a> {
    rows: Backward<'a>,
    sums: &'a mut [f32],
}

impl Task for BackwardSums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let channels = self.rows.mean.len();
        let (first, second) = self.sums.split_at_mut(channels);
        each_vector::<S>(channels, |c, count| {
            let (mut sum, mut product) = (simd.zero(), simd.zero());
            for at in (0..self.rows.x.len()).step_by(channels) {
                let (gradient, normalised) = self.rows.vectors(simd, at, c, count);
                sum = simd.add(sum, gradient);
                product = simd.mul_add(gradient, normalised, product);
            }
            store(simd, first, c, sum, count);
            store(simd, second, c, product, count);
        });
    }
}

struct BackwardApply<'a> {
    rows: Backward<'a>,
    /// γ / √(variance + ε) of each channel.
    scale: &'a [f32],
    /// Mean gradient of each channel, and mean of the gradient times x̂.
    means: [&'a [f32]; 2],
    dx: &'a mut [f32],
    residual: Option<&'a mut [f32]>,
}

impl Task for BackwardApply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let channels = self.scale.len();
        for (row, dx) in self.dx.chunks_exact_mut(channels).enumerate() {
            let at = row * channels;
            each_vector::<S>(channels, |c, count| {
                let (gradient, normalised) = self.rows.vectors(simd, at, c, count);
                let [mean, product] = self.means.map(|means| load(simd, means, c, count));
                let centred = simd.sub(simd.sub(gradient, mean), simd.mul(normalised, product));
                store(simd, dx, c, simd.mul(centred, load(simd, self.scale, c, count)), count);
                if let Some(residual) = &mut self.residual {
                    store(simd, residual, at + c, gradient, count);
                }
            });
        }
    }
}

/// Gradients through a batch norm in training mode, its ReLU and its residual: with `g = dy` where the output is
/// positive, `dβ = Σg`, `dγ = Σg·x̂`, `dx = γ/σ · (g − Σg/m − x̂·Σ(g·x̂)/m)` (Ioffe & Szegedy 2015, §3).
///
/// # Panics
/// When lengths do not fit.
pub fn backward(cx: &Context, inputs: Backward, outputs: Gradients) {
    let channels = inputs.mean.len();
    let Gradients { dx, dgamma, dbeta, mut residual } = outputs;
    let vectors = [inputs.inv_std.len(), inputs.gamma.len(), dgamma.len(), dbeta.len()];
    assert!(channels > 0 && vectors.iter().all(|&length| length == channels), "a value for each channel");
    let length = dx.len();
    assert!(length > 0 && length.is_multiple_of(channels), "rows of {channels} values");
    assert!(inputs.x.len() == length && inputs.dy.len() == length, "x, dy and dx have one shape");
    assert!(inputs.y.is_none_or(|y| y.len() == length), "y has x's shape");
    assert!(residual.as_ref().is_none_or(|residual| residual.len() == length), "the residual has x's shape");
    let rows = length / channels;
    let sums = column_sums(cx, rows, channels, |from, count, sums| {
        cx.level().run(BackwardSums { rows: inputs.rows(from, count), sums });
    });
    for c in 0..channels {
        (dbeta[c], dgamma[c]) = (sums[c] as f32, sums[channels + c] as f32);
    }
    let means: Vec<f32> = sums.iter().map(|sum| (sum / rows as f64) as f32).collect();
    let scale: Vec<f32> = inputs.gamma.iter().zip(inputs.inv_std).map(|(gamma, inv)| gamma * inv).collect();
    let residual = residual.as_mut().map(|residual| SharedMut(residual.as_mut_ptr()));
    cx.pool().pieces(dx, ROWS * channels, |index, dx| {
        let residual = residual.as_ref().map(|residual| {
            // SAFETY: the residual has dx's length; each task takes the part that its piece of dx has.
            unsafe { std::slice::from_raw_parts_mut(residual.get().add(index * ROWS * channels), dx.len()) }
        });
        let (rows, means) = (inputs.rows(index * ROWS, dx.len() / channels), means.split_at(channels));
        let task = BackwardApply { rows, scale: &scale, means: [means.0, means.1], dx, residual };
        cx.level().run(task);
    });
}

#[cfg(test)]
mod tests;
