//! Square tiles: an algorithm along both axes, a vector of channels at a time.

#![expect(clippy::needless_range_loop, reason = "indices name places of matrices")]

use super::algorithm::{Algorithm, MAX};
use super::pack::{self, Pack};
use super::threes;
use super::tiles::Tile;
use super::transform::{Gradient, Input, MAX_POINTS, MAX_WEIGHTS, Output, Transform, Transposed};
use super::{FastConv, PANEL};
use crate::buffer::LINE;
use crate::prologue::Prologue;
use crate::simd::{Simd, opaque};
use crate::vector::{load_first, store_first};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

/// `V = Bᵀ d B` and `y = Aᵀ M A`.
pub(super) struct Square<A>(PhantomData<A>);

/// One vector of channels of one tile on its way in.
struct Patch<'a, S> {
    simd: S,
    /// The rows that the tile reads.
    rows: &'a [*const f32; MAX],
    /// The prologue's factors from the vector's channel on, and for each row its summands, or zeros for rows that do not exist.
    scale: *const f32,
    shifts: &'a [*const f32; MAX],
    channel: usize,
    /// Offset of the tile's first column in its rows.
    start: usize,
    /// Values between two columns.
    step: usize,
    /// The columns that exist.
    existing: Range<usize>,
    /// Channels of the vector.
    count: usize,
    /// Whether the last rows of points are needed.
    full: bool,
    /// The first point's vector.
    v: *mut f32,
    point_step: usize,
    /// How many values further on a tile's values are that are asked for; 0 for none.
    later: usize,
}

impl<S: Simd> Patch<'_, S> {
    /// The vector's channels.
    ///
    /// # Safety
    /// `from` must be valid for reads of `count` values, which without `TAIL` are LANES.
    #[inline(always)]
    unsafe fn load<const TAIL: bool>(&self, from: *const f32) -> S::V {
        // SAFETY: promised by the caller.
        unsafe { if TAIL { self.simd.load_partial(from, self.count) } else { self.simd.load(from) } }
    }

    /// Along the columns, then along the rows: what is between stays in the L1 cache, and each value is read once, from wherever it
    /// is.
    ///
    /// # Safety
    /// Each row must be valid for reads of `count` values at each of the existing columns, and V for a vector at each
    /// point. Without `TAIL`, `count` is LANES. With `PROLOGUE`, factors and summands must be as valid as the rows.
    #[inline(always)]
    unsafe fn run<A: Algorithm, const TAIL: bool, const PROLOGUE: bool>(&self) {
        let simd = self.simd;
        // SAFETY: promised by the caller.
        let scale = if PROLOGUE { unsafe { self.load::<TAIL>(self.scale) } } else { simd.zero() };
        let mut columns = [[MaybeUninit::uninit(); MAX]; MAX];
        let mut offset = self.start;
        for j in 0..A::INPUTS {
            let mut values = [simd.zero(); MAX];
            if self.existing.contains(&j) {
                for i in 0..A::INPUTS {
                    let at = self.rows[i].wrapping_add(offset);
                    // SAFETY: column j exists, so `count` values there are valid.
                    values[i] = unsafe { self.load::<TAIL>(at) };
                    if PROLOGUE {
                        // SAFETY: promised by the caller.
                        let shift = unsafe { self.load::<TAIL>(self.shifts[i].wrapping_add(self.channel)) };
                        values[i] = simd.max(simd.zero(), simd.mul_add(values[i], scale, shift));
                    }
                }
            }
            // What that tile reads and the one before it does not.
            if self.later > 0 && j + A::OUTPUTS * A::STRIDE >= A::INPUTS {
                for row in &self.rows[..A::INPUTS] {
                    simd.prefetch(row.wrapping_add(offset).wrapping_add(self.later));
                }
            }
            let points = A::input(simd, values);
            for p in 0..A::POINTS {
                columns[p][j].write(points[p]);
            }
            offset = opaque(offset.wrapping_add(self.step));
        }
        for p in 0..A::POINTS {
            if A::is_last(p) && !self.full {
                continue;
            }
            let mut values = [simd.zero(); MAX];
            for j in 0..A::INPUTS {
                // SAFETY: written above, for each of the INPUTS columns.
                values[j] = unsafe { columns[p][j].assume_init() };
            }
            let points = A::input(simd, values);
            let mut to = self.v.wrapping_add(p * A::POINTS * self.point_step);
            for q in 0..A::POINTS {
                // SAFETY: V holds a vector for each point.
                unsafe { simd.store(to, points[q]) };
                to = to.wrapping_add(self.point_step);
            }
        }
    }
}

/// One vector of output channels of one tile on its way out.
struct Result<'a, S, A> {
    simd: S,
    output: &'a Output<'a, Square<A>>,
    tile: &'a Tile,
    /// The first point's vector.
    m: *const f32,
    /// Offset of the tile's first output, and of the vector's first channel in it.
    first: usize,
    channel: usize,
    /// Channels of the vector.
    count: usize,
}

impl<S: Simd, A: Algorithm> Result<'_, S, A> {
    /// Transforms and stores, where M's points are `VECTORS` vectors apart. With `WHOLE`, all outputs of the tile exist and
    /// the vector is full.
    ///
    /// # Safety
    /// M must hold a vector for each point; bias, residual and y the tile's outputs and channels.
    #[inline(always)]
    unsafe fn run<const VECTORS: usize, const WHOLE: bool>(&self) {
        // SAFETY: promised by the caller.
        unsafe {
            if self.output.residual.is_null() {
                self.rows::<VECTORS, WHOLE, false, 0>();
                self.rows::<VECTORS, WHOLE, false, 1>();
            } else {
                self.rows::<VECTORS, WHOLE, true, 0>();
                self.rows::<VECTORS, WHOLE, true, 1>();
            }
        }
    }

    /// Every second row of outputs from row `FROM` on: as many as stay in registers. The even ones are sums and the odd ones
    /// differences of the products at points of opposite sign, so that no arithmetic is done twice.
    ///
    /// # Safety
    /// As for [`run`](Self::run).
    #[inline(always)]
    unsafe fn rows<const VECTORS: usize, const WHOLE: bool, const RESIDUAL: bool, const FROM: usize>(&self) {
        let (simd, output) = (self.simd, self.output);
        let mut rows = [[MaybeUninit::uninit(); MAX]; MAX / 2];
        for q in 0..A::POINTS {
            let mut products = [simd.zero(); MAX];
            for p in 0..A::POINTS {
                // SAFETY: promised by the caller; what a short tile has left out reaches no output that is stored.
                products[p] = unsafe { simd.load(self.m.add((p * A::POINTS + q) * VECTORS * S::LANES)) };
            }
            let outputs = A::output(simd, products);
            for k in 0..(A::OUTPUTS - FROM).div_ceil(2) {
                rows[k][q].write(outputs[FROM + 2 * k]);
            }
        }
        let mut bias = simd.zero();
        if !output.bias.is_null() {
            // SAFETY: `count` channels from `channel` on exist.
            bias = unsafe { load_first(simd, output.bias.wrapping_add(self.channel), self.count) };
        }
        let least = simd.splat(if output.relu { 0.0 } else { f32::NEG_INFINITY });
        let line = output.size[1] * output.channels;
        for k in 0..(A::OUTPUTS - FROM).div_ceil(2) {
            let i = FROM + 2 * k;
            if !WHOLE && i >= self.tile.rows.outputs {
                break;
            }
            let mut products = [simd.zero(); MAX];
            for q in 0..A::POINTS {
                // SAFETY: written above, for each of the rows and POINTS columns.
                products[q] = unsafe { rows[k][q].assume_init() };
            }
            let outputs = A::output(simd, products);
            let mut at = self.first + i * line;
            for j in 0..A::OUTPUTS {
                if !WHOLE && j >= self.tile.columns.outputs {
                    break;
                }
                let mut value = simd.add(outputs[j], bias);
                let y = output.y.wrapping_add(at);
                // SAFETY: the pixel exists, and `count` of its channels from `channel` on.
                unsafe {
                    if RESIDUAL {
                        let residual = output.residual.wrapping_add(at);
                        let residual =
                            if WHOLE { simd.load(residual) } else { load_first(simd, residual, self.count) };
                        value = simd.add(value, residual);
                    }
                    value = simd.max(least, value);
                    if WHOLE { simd.store(y, value) } else { store_first(simd, y, value, self.count) }
                }
                at += output.channels;
            }
        }
    }
}

impl<A: Algorithm> Transform for Square<A> {
    const POINTS: usize = A::POINTS * A::POINTS;
    fn last(point: usize) -> [bool; 2] {
        [A::is_last(point / A::POINTS), A::is_last(point % A::POINTS)]
    }

    fn gain(point: usize) -> f64 {
        threes::gain::<A>(point / A::POINTS) * threes::gain::<A>(point % A::POINTS)
    }

    #[inline(always)]
    fn pack<S: Simd>(simd: S, pack: Pack) {
        pack::square::<S, A>(simd, pack);
    }

    #[inline(always)]
    fn input<S: Simd>(simd: S, input: &Input<Self>) {
        let [height, width] = input.size;
        let step = input.channels;
        let [scale, shift] = input
            .prologue
            .map_or([input.zeros; 2], |Prologue { scale, shift }| [scale, shift].map(<[f32]>::as_ptr));
        for tile in input.tiles {
            let image = input.x.wrapping_add(tile.image * height * width * step);
            // The tile's first value, counted from the padding's.
            let (top, left) = (tile.rows.start * A::STRIDE, tile.columns.start * A::STRIDE);
            let (mut rows, mut shifts) = ([input.zeros; MAX], [input.zeros; MAX]);
            for i in 0..A::INPUTS {
                if let Some(y) = (top + i).checked_sub(input.padding[0]).filter(|&y| y < height) {
                    rows[i] = image.wrapping_add(y * width * step);
                    shifts[i] = shift;
                }
            }
            let existing =
                input.padding[1].saturating_sub(left)..(width + input.padding[1]).saturating_sub(left);
            let place = tile.columns.start / A::OUTPUTS;
            let later = input.later.offset(place, width, A::OUTPUTS * A::STRIDE * step);
            for vector in input.vectors.clone() {
                let channel = vector * S::LANES;
                let count = (step - channel).min(S::LANES);
                let patch = Patch {
                    simd,
                    rows: &rows,
                    scale: scale.wrapping_add(channel),
                    shifts: &shifts,
                    channel,
                    start: left.wrapping_sub(input.padding[1]).wrapping_mul(step).wrapping_add(channel),
                    step,
                    existing: existing.clone(),
                    count,
                    full: tile.rows.full,
                    v: input.v.wrapping_add(
                        (vector - input.vectors.start) * input.steps.vector + tile.slot * input.steps.slot,
                    ),
                    point_step: input.steps.point,
                    later: if channel.is_multiple_of(LINE) { later } else { 0 },
                };
                // SAFETY: the rows are those of the image or zeros of the same length, so that every existing column
                // has `count` channels from `channel` on, and so have the prologue's vectors; V holds a vector for each point,
                // vector of channels and slot.
                unsafe {
                    match (count == S::LANES, input.prologue.is_some()) {
                        (true, false) => patch.run::<A, false, false>(),
                        (true, true) => patch.run::<A, false, true>(),
                        (false, false) => patch.run::<A, true, false>(),
                        (false, true) => patch.run::<A, true, true>(),
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn output<S: Simd>(simd: S, output: &Output<Self>) {
        let [height, width] = output.size;
        let vectors = output.panel.len().div_ceil(S::LANES);
        for tile in output.block.tiles() {
            let pixel = (tile.image * height + tile.rows.start) * width + tile.columns.start;
            let full = tile.rows.outputs == A::OUTPUTS && tile.columns.outputs == A::OUTPUTS;
            for vector in 0..vectors {
                let channel = output.panel.start + vector * S::LANES;
                let count = (output.panel.end - channel).min(S::LANES);
                let result = Result {
                    simd,
                    output,
                    tile,
                    m: output.m.wrapping_add(tile.slot * output.slot_step + vector * S::LANES),
                    first: pixel * output.channels + channel,
                    channel,
                    count,
                };
                // SAFETY: M holds `vectors` vectors for each slot and point, a panel has one vector or PANEL of them, and
                // the tile's outputs and the panel's channels exist.
                unsafe {
                    match (vectors, full && count == S::LANES) {
                        (1, true) => result.run::<1, true>(),
                        (1, false) => result.run::<1, false>(),
                        (_, true) => result.run::<PANEL, true>(),
                        (_, false) => result.run::<PANEL, false>(),
                    }
                }
            }
        }
    }
}

impl<A: Algorithm> Transposed for Square<A> {
    const WEIGHTS: usize = A::TAPS * A::TAPS;

    #[inline(always)]
    fn gradient<S: Simd>(simd: S, gradient: &Gradient<Self>) {
        let [height, width] = gradient.size;
        let (channels, steps) = (gradient.channels, gradient.steps);
        for tile in gradient.tiles {
            let pixel = (tile.image * height + tile.rows.start) * width + tile.columns.start;
            let place = tile.columns.start / A::OUTPUTS;
            let later = gradient.later.offset(place, width, A::OUTPUTS * channels);
            for vector in 0..channels.div_ceil(S::LANES) {
                let channel = vector * S::LANES;
                let later = if channel.is_multiple_of(LINE) { later } else { 0 };
                let count = (channels - channel).min(S::LANES);
                let first = gradient.dy.wrapping_add(pixel * channels + channel);
                let to = gradient.d.wrapping_add(vector * steps.vector + tile.slot * steps.slot);
                let mut columns = [[simd.zero(); MAX]; MAX];
                for j in 0..A::OUTPUTS.min(tile.columns.outputs) {
                    let mut values = [simd.zero(); MAX];
                    for i in 0..A::OUTPUTS {
                        if i < tile.rows.outputs {
                            let at = first.wrapping_add((i * width + j) * channels);
                            // SAFETY: the tile's outputs exist, and `count` of their channels from `channel` on.
                            values[i] = unsafe { load_first(simd, at, count) };
                            if later > 0 {
                                simd.prefetch(at.wrapping_add(later));
                            }
                        }
                    }
                    let points = A::gradient(simd, values);
                    for p in 0..A::POINTS {
                        columns[p][j] = points[p];
                    }
                }
                for p in 0..A::POINTS {
                    let points = A::gradient(simd, columns[p]);
                    for q in 0..A::POINTS {
                        // SAFETY: D holds a vector for each point, vector of channels and slot.
                        unsafe { simd.store(to.wrapping_add((p * A::POINTS + q) * steps.point), points[q]) };
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn weights(
        conv: &FastConv,
        points: &[[f32; LINE]; MAX_POINTS],
        weights: &mut [[f32; LINE]; MAX_WEIGHTS],
    ) {
        let add = |sum: &mut [f32; LINE], factor: f64, values: &[f32; LINE]| {
            sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += factor as f32 * value);
        };
        for kx in 0..A::TAPS {
            let mut column = [[0.0; LINE]; MAX];
            for (p, sum) in column.iter_mut().enumerate().take(A::POINTS) {
                for (q, factors) in conv.factors.iter().enumerate().take(A::POINTS) {
                    add(sum, factors[kx], &points[p * A::POINTS + q]);
                }
            }
            for ky in 0..A::TAPS {
                let weight = &mut weights[ky * A::TAPS + kx];
                *weight = [0.0; LINE];
                for (factors, values) in conv.factors.iter().zip(&column).take(A::POINTS) {
                    add(weight, factors[ky], values);
                }
            }
        }
    }

    fn place(conv: &FastConv, weight: usize, input: usize, output: usize) -> Option<usize> {
        let row = conv.view.row(&conv.geometry, [weight / A::TAPS, weight % A::TAPS], input)?;
        Some(row * conv.geometry.out_channels + output)
    }
}
