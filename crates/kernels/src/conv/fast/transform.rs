//! Tiles into the domain of products and back.

use super::tiles::Block;
use crate::simd::{Simd, Task};
use std::marker::PhantomData;
use std::ops::Range;

/// How the tiles of a fast algorithm become products and the products become outputs.
pub(super) trait Transform: Sized {
    /// Products of a full tile for each pair of channels.
    const POINTS: usize;

    /// Whether a point is needed for the last row, and for the last column, of outputs alone.
    fn last(point: usize) -> [bool; 2];

    /// Transforms the tiles of a block.
    fn input<S: Simd>(simd: S, input: &Input<Self>);

    /// Transforms the products of a block back, for one panel of output channels.
    fn output<S: Simd>(simd: S, output: &Output<Self>);
}

/// V of the tiles of a block.
pub(super) struct Input<'a, T> {
    pub(super) block: &'a Block,
    /// The batch, NHWC.
    pub(super) x: *const f32,
    /// Input size `[height, width]`.
    pub(super) size: [usize; 2],
    pub(super) padding: [usize; 2],
    pub(super) channels: usize,
    /// Step between the outputs' windows, and outputs of a row.
    pub(super) stride: usize,
    pub(super) line: usize,
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
    pub(super) transform: PhantomData<T>,
}

impl<T: Transform> Task for Input<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        T::input(simd, &self)
    }
}

/// y of the tiles of a block with an epilogue, for one panel of output channels.
pub(super) struct Output<'a, T> {
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
    pub(super) transform: PhantomData<T>,
}

impl<T: Transform> Task for Output<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        T::output(simd, &self)
    }
}
