//! Tiles into the domain of products and back.

use super::FastConv;
use super::pack::{Pack, TAPS};
use super::tiles::{Block, Tile};
use crate::buffer::LINE;
use crate::prologue::Prologue;
use crate::simd::{Simd, Task};
use std::marker::PhantomData;
use std::ops::Range;

/// How the tiles of a fast algorithm become products and the products become outputs.
pub(super) trait Transform: Sized {
    /// Products of a full tile for each pair of channels.
    const POINTS: usize;

    /// Whether a point is needed for the last row, and for the last column, of outputs alone.
    fn last(point: usize) -> [bool; 2];

    /// How much larger the square of a transformed input is at a point, with random values, than that of a transformed weight of the
    /// same size.
    fn gain(_point: usize) -> f64 {
        1.0
    }

    /// Transforms weights.
    fn pack<S: Simd>(simd: S, pack: Pack);

    /// Transforms tiles.
    fn input<S: Simd>(simd: S, input: &Input<Self>);

    /// Transforms the products of a block back, for one panel of output channels.
    fn output<S: Simd>(simd: S, output: &Output<Self>);
}

/// How the products lead to the gradients of the weights.
pub(super) trait Transposed: Transform {
    /// Weights of each pair of channels.
    const WEIGHTS: usize;

    /// Transforms the gradient of tiles of outputs: the transpose of [`output`](Transform::output).
    fn gradient<S: Simd>(simd: S, gradient: &Gradient<Self>);

    /// The gradients of a line of weights from those of their transforms, one for each point: the transpose of the weights'
    /// transform.
    fn weights(conv: &FastConv, points: &[[f32; LINE]; MAX_POINTS], weights: &mut [[f32; LINE]; MAX_WEIGHTS]);

    /// Where the weights (HWIO) between an input channel and the output channels from `output` on begin, where the
    /// convolution has them.
    fn place(conv: &FastConv, weight: usize, input: usize, output: usize) -> Option<usize>;
}

/// Most points of a transform.
pub(super) const MAX_POINTS: usize = 49;

/// Most weights of a pair of channels.
pub(super) const MAX_WEIGHTS: usize = TAPS * TAPS;

/// V of some tiles.
pub(super) struct Input<'a, T> {
    pub(super) tiles: &'a [Tile],
    /// The batch, NHWC.
    pub(super) x: *const f32,
    /// What its values go through first.
    pub(super) prologue: Option<Prologue<'a>>,
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
    /// V from the first of these vectors on.
    pub(super) v: *mut f32,
    pub(super) steps: Steps,
    /// What is asked for, of square tiles. Pays where few products are made with what is read, or where it comes from memory.
    pub(super) later: Later,
    pub(super) transform: PhantomData<T>,
}

/// The tile whose values are asked for while those of another one are read.
#[derive(Clone, Copy)]
pub(super) struct Later {
    /// How many tiles further on it is; 0 for none.
    pub(super) tiles: usize,
    /// Tiles in a row of an image.
    pub(super) across: usize,
}

impl Later {
    /// How many values further on its values are in an image `width` pixels wide, for a tile at `place` of its row; tiles are
    /// `step` values apart.
    #[inline(always)]
    pub(super) fn offset(&self, place: usize, width: usize, step: usize) -> usize {
        let Later { tiles, across } = *self;
        // From the end of a row of tiles to the next one.
        let next = if place + tiles >= across { (tiles + width).saturating_sub(across) } else { tiles };
        if tiles > 0 { next * step } else { 0 }
    }
}

impl<T: Transform> Task for Input<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        T::input(simd, &self)
    }
}

/// Values between two vectors of V, or of the transformed gradient.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    pub(super) point: usize,
    /// Between two vectors of channels.
    pub(super) vector: usize,
    pub(super) slot: usize,
}

/// D, the transformed gradient of some tiles of outputs.
pub(super) struct Gradient<'a, T> {
    pub(super) tiles: &'a [Tile],
    /// The batch of gradients, NHWC.
    pub(super) dy: *const f32,
    /// Output size `[height, width]`.
    pub(super) size: [usize; 2],
    pub(super) channels: usize,
    pub(super) d: *mut f32,
    pub(super) steps: Steps,
    pub(super) later: Later,
    pub(super) transform: PhantomData<T>,
}

impl<T: Transposed> Task for Gradient<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        T::gradient(simd, &self)
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
