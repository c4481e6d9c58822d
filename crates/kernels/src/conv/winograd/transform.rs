//! Tiles into the domain of products and back, a vector of channels at a time.

#![expect(clippy::needless_range_loop, reason = "indices name places of matrices")]

use super::PANEL;
use super::algorithm::{Algorithm, MAX};
use super::tiles::{Block, Tile};
use crate::simd::{Simd, Task, opaque};
use crate::vector::{load_first, store_first};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

/// `V = Bᵀ d B` for the tiles of a block.
pub(super) struct Input<'a, A> {
    pub(super) block: &'a Block,
    /// The batch, NHWC.
    pub(super) x: *const f32,
    /// Input size `[height, width]`.
    pub(super) size: [usize; 2],
    pub(super) padding: [usize; 2],
    pub(super) channels: usize,
    /// The vectors of channels to transform.
    pub(super) vectors: Range<usize>,
    /// A row of zeros as long as one of the input.
    pub(super) zeros: *const f32,
    /// V from the first of these vectors on, `[point][vector of channels][slot][lane]`.
    pub(super) v: *mut f32,
    /// Values between two points of V.
    pub(super) point_step: usize,
    /// Slots of a vector of channels in V.
    pub(super) slots: usize,
    pub(super) algorithm: PhantomData<A>,
}

/// One vector of channels of one tile on its way in.
struct Patch<'a, S> {
    simd: S,
    /// The rows that the tile reads.
    rows: &'a [*const f32; MAX],
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
}

impl<S: Simd> Patch<'_, S> {
    /// Transforms into `COUNT` rows of points from row `FROM` on: as many as their columns stay in registers.
    ///
    /// # Safety
    /// Each row must be valid for reads of `count` values at each of the existing columns, and V for a vector at each
    /// point. Without `TAIL`, `count` is LANES.
    #[inline(always)]
    unsafe fn points<A: Algorithm, const FROM: usize, const COUNT: usize, const TAIL: bool>(&self) {
        if FROM >= A::POINTS {
            return;
        }
        let simd = self.simd;
        let mut columns = [[MaybeUninit::uninit(); MAX]; COUNT];
        let mut offset = self.start;
        for j in 0..A::INPUTS {
            let mut values = [simd.zero(); MAX];
            if self.existing.contains(&j) {
                for i in 0..A::INPUTS {
                    let at = self.rows[i].wrapping_add(offset);
                    // SAFETY: column j exists, so `count` values there are valid.
                    values[i] =
                        unsafe { if TAIL { simd.load_partial(at, self.count) } else { simd.load(at) } };
                }
            }
            let points = A::input(simd, values);
            for k in 0..COUNT {
                columns[k][j].write(points[if FROM + k < MAX { FROM + k } else { 0 }]);
            }
            offset = opaque(offset.wrapping_add(self.step));
        }
        for k in 0..COUNT {
            let p = FROM + k;
            if p >= A::POINTS || (A::is_last(p) && !self.full) {
                continue;
            }
            let mut values = [simd.zero(); MAX];
            for j in 0..A::INPUTS {
                // SAFETY: written above, for each of the INPUTS columns.
                values[j] = unsafe { columns[k][j].assume_init() };
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

    /// # Safety
    /// As [`points`](Self::points).
    #[inline(always)]
    unsafe fn run<A: Algorithm, const TAIL: bool>(&self) {
        // SAFETY: promised by the caller.
        unsafe {
            if S::REGISTERS >= 32 {
                self.points::<A, 0, 3, TAIL>();
                self.points::<A, 3, 3, TAIL>();
                self.points::<A, 6, 2, TAIL>();
            } else {
                self.points::<A, 0, 2, TAIL>();
                self.points::<A, 2, 2, TAIL>();
                self.points::<A, 4, 2, TAIL>();
                self.points::<A, 6, 2, TAIL>();
            }
        }
    }
}

impl<A: Algorithm> Task for Input<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let [height, width] = self.size;
        let step = self.channels;
        for tile in self.block.tiles() {
            let image = self.x.wrapping_add(tile.image * height * width * step);
            // The tile's first value, counted from the padding's.
            let (top, left) = (tile.rows.start * A::STRIDE, tile.columns.start * A::STRIDE);
            let mut rows = [self.zeros; MAX];
            for (i, row) in rows.iter_mut().enumerate().take(A::INPUTS) {
                if let Some(y) = (top + i).checked_sub(self.padding[0]).filter(|&y| y < height) {
                    *row = image.wrapping_add(y * width * step);
                }
            }
            let existing =
                self.padding[1].saturating_sub(left)..(width + self.padding[1]).saturating_sub(left);
            for vector in self.vectors.clone() {
                let channel = vector * S::LANES;
                let count = (step - channel).min(S::LANES);
                let patch = Patch {
                    simd,
                    rows: &rows,
                    start: left.wrapping_sub(self.padding[1]).wrapping_mul(step).wrapping_add(channel),
                    step,
                    existing: existing.clone(),
                    count,
                    full: tile.rows.full,
                    v: self
                        .v
                        .wrapping_add(((vector - self.vectors.start) * self.slots + tile.slot) * S::LANES),
                    point_step: self.point_step,
                };
                // SAFETY: the rows are those of the image or zeros of the same length, so that every existing column
                // has `count` channels from `channel` on; V holds a vector for each point, vector of channels and slot.
                unsafe { if count == S::LANES { patch.run::<A, false>() } else { patch.run::<A, true>() } }
            }
        }
    }
}

/// `y = Aᵀ M A` with an epilogue, for one panel of output channels.
pub(super) struct Output<'a, A> {
    pub(super) block: &'a Block,
    /// M, `[slot][point][width of the panel]`.
    pub(super) m: *const f32,
    /// Values between two slots of M.
    pub(super) slot_step: usize,
    /// The batch of outputs, NHWC.
    pub(super) y: *mut f32,
    /// Output size `[height, width]`.
    pub(super) size: [usize; 2],
    pub(super) channels: usize,
    /// The panel's channels.
    pub(super) panel: Range<usize>,
    /// A value for each output channel, or null.
    pub(super) bias: *const f32,
    /// A tensor like y, or null.
    pub(super) residual: *const f32,
    pub(super) relu: bool,
    pub(super) algorithm: PhantomData<A>,
}

/// One vector of output channels of one tile on its way out.
struct Result<'a, S, A> {
    simd: S,
    output: &'a Output<'a, A>,
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
    /// Transforms and stores, where M's points are `VECTORS` vectors apart. With `FULL`, all outputs of the tile exist.
    ///
    /// # Safety
    /// M must hold a vector for each point; bias, residual and y the tile's outputs and channels.
    #[inline(always)]
    unsafe fn run<const VECTORS: usize, const FULL: bool>(&self) {
        let (simd, output) = (self.simd, self.output);
        let mut rows = [[MaybeUninit::uninit(); MAX]; MAX];
        for q in 0..A::POINTS {
            let mut products = [simd.zero(); MAX];
            for p in 0..A::POINTS {
                // SAFETY: promised by the caller; what a short tile has left out reaches no output that is stored.
                products[p] = unsafe { simd.load(self.m.add((p * A::POINTS + q) * VECTORS * S::LANES)) };
            }
            let outputs = A::output(simd, products);
            for i in 0..A::OUTPUTS {
                rows[i][q].write(outputs[i]);
            }
        }
        let mut bias = simd.zero();
        if !output.bias.is_null() {
            // SAFETY: `count` channels from `channel` on exist.
            bias = unsafe { load_first(simd, output.bias.wrapping_add(self.channel), self.count) };
        }
        let line = output.size[1] * output.channels;
        for i in 0..A::OUTPUTS {
            if !FULL && i >= self.tile.rows.outputs {
                break;
            }
            let mut products = [simd.zero(); MAX];
            for q in 0..A::POINTS {
                // SAFETY: written above, for each of the OUTPUTS rows and POINTS columns.
                products[q] = unsafe { rows[i][q].assume_init() };
            }
            let outputs = A::output(simd, products);
            let mut at = self.first + i * line;
            for j in 0..A::OUTPUTS {
                if !FULL && j >= self.tile.columns.outputs {
                    break;
                }
                let mut value = simd.add(outputs[j], bias);
                if !output.residual.is_null() {
                    // SAFETY: the pixel exists, and `count` of its channels from `channel` on.
                    let residual = unsafe { load_first(simd, output.residual.wrapping_add(at), self.count) };
                    value = simd.add(value, residual);
                }
                if output.relu {
                    value = simd.max(simd.zero(), value);
                }
                // SAFETY: as for the residual.
                unsafe { store_first(simd, output.y.wrapping_add(at), value, self.count) };
                at += output.channels;
            }
        }
    }
}

impl<A: Algorithm> Task for Output<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let [height, width] = self.size;
        let vectors = self.panel.len().div_ceil(S::LANES);
        for tile in self.block.tiles() {
            let pixel = (tile.image * height + tile.rows.start) * width + tile.columns.start;
            let full = tile.rows.outputs == A::OUTPUTS && tile.columns.outputs == A::OUTPUTS;
            for vector in 0..vectors {
                let channel = self.panel.start + vector * S::LANES;
                let result = Result {
                    simd,
                    output: &self,
                    tile,
                    m: self.m.wrapping_add(tile.slot * self.slot_step + vector * S::LANES),
                    first: pixel * self.channels + channel,
                    channel,
                    count: (self.panel.end - channel).min(S::LANES),
                };
                // SAFETY: M holds `vectors` vectors for each slot and point, a panel has one vector or PANEL of them, and
                // the tile's outputs and the panel's channels exist.
                unsafe {
                    match (vectors, full) {
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
