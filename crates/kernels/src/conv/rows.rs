//! Direct convolution within groups, a row of outputs at a time.
//!
//! The products of a group are too narrow for the kernels that multiply matrices. Here a few neighbouring pixels' outputs of one group,
//! or of the groups that share a vector, stay in registers. The inputs that they see go by; each is spread over a vector once, for all
//! taps of a kernel row that read it.

use super::{ConvGeometry, GeometryError};
use crate::buffer::Aligned;
use crate::gemm::Epilogue;
use crate::parallel::SharedMut;
use crate::simd::{Simd, Task, opaque};
use crate::{Context, Level};
use std::mem::MaybeUninit;
use std::ops::Range;

/// Taps along an axis.
const TAPS: usize = 3;

/// Pixels of a block of outputs at most, with one vector of channels each, and with two or with fewer registers.
const MANY: usize = 14;
const FEW: usize = 7;

/// Columns that a block reads at most, with stride 2.
const COLUMNS: usize = (MANY - 1) * 2 + TAPS;

/// Channels of a group at most, which are the values of a column in a strip.
const ROOM: usize = 64;

/// Rows of outputs that a thread takes at once are so many that each thread has its turn so often.
const TURNS: usize = 8;

/// A convolution in groups of 3×3 with stride 1 or 2, prepared for one input size and one instruction-set level.
#[derive(Debug, Clone)]
pub struct RowConv {
    geometry: ConvGeometry,
    level: Level,
    input: [usize; 2],
    output: [usize; 2],
    /// Channels that a vector of outputs sees, or the groups that share it.
    depth: usize,
}

/// Weights of a [`RowConv`], `[panel][kernel row][input channel of a group][kernel column][width of the panel]`.
#[derive(Debug, Clone)]
pub struct RowWeights {
    level: Level,
    values: Aligned,
}

impl RowConv {
    /// Prepares the convolution for inputs of `[height, width]` pixels.
    ///
    /// # Errors
    /// When the geometry is invalid or the input too small for it.
    ///
    /// # Panics
    /// When the geometry is not [one of these](Self::computes).
    pub fn new(level: Level, geometry: ConvGeometry, input: [usize; 2]) -> Result<Self, GeometryError> {
        let output = geometry.output_size(input)?;
        assert!(RowConv::computes(level, &geometry), "another convolution than rows compute: {geometry:?}");
        let depth = geometry.group_in().max(level.micro_kernels().lanes);
        Ok(RowConv { geometry, level, input, output, depth })
    }

    /// Whether the convolution is one of these: in groups of at most 64 channels that fill vectors, each with as many inputs as
    /// outputs, 3×3 without dilation, with stride 1 or 2.
    pub fn computes(level: Level, geometry: &ConvGeometry) -> bool {
        geometry.groups > 1
            && geometry.group_in() <= ROOM
            && geometry.groups_fill(level.micro_kernels().lanes)
            && geometry.kernel == [TAPS; 2]
            && geometry.dilation == [1, 1]
            && matches!(geometry.stride, [1, 1] | [2, 2])
    }

    /// Whether registers hold the outputs of many pixels at once, so that each weight that is read serves as many.
    pub fn holds_many_pixels(level: Level) -> bool {
        many_registers(level.micro_kernels().lanes)
    }

    /// Vectors of a panel of output channels, which see the same inputs.
    fn vectors(&self) -> usize {
        let vectors = self.depth / self.lanes();
        if many_registers(self.lanes()) && vectors.is_multiple_of(2) { 2 } else { 1 }
    }

    fn lanes(&self) -> usize {
        self.level.micro_kernels().lanes
    }

    /// Output channels of a panel.
    fn width(&self) -> usize {
        self.vectors() * self.lanes()
    }

    /// Values of one kernel row of a panel's weights.
    fn row_len(&self) -> usize {
        self.geometry.group_in() * TAPS * self.width()
    }

    /// Packs weights (HWIO, `[3, 3, in / groups, out]`).
    ///
    /// # Panics
    /// When the number of weights is not the geometry's.
    pub fn pack(&self, weight: &[f32]) -> RowWeights {
        let g = &self.geometry;
        assert_eq!(weight.len(), g.weight_len(), "number of weights");
        let mut values = Aligned::zeros(weight.len());
        for (index, to) in values.values_mut().chunks_exact_mut(self.width()).enumerate() {
            let (column, index) = (index % TAPS, index / TAPS);
            let (input, index) = (index % g.group_in(), index / g.group_in());
            let (row, panel) = (index % TAPS, index / TAPS);
            let from = ((row * TAPS + column) * g.group_in() + input) * g.out_channels + panel * self.width();
            to.copy_from_slice(&weight[from..][..self.width()]);
        }
        RowWeights { level: self.level, values }
    }

    /// `y = conv(x)`, then the epilogue; shapes as for [`Conv::forward`](super::Conv::forward).
    ///
    /// # Panics
    /// When a slice's length is not its shape's, the level is not the context's, or something follows the convolution.
    pub fn forward(&self, cx: &Context, x: &[f32], weights: &RowWeights, epilogue: Epilogue, y: &mut [f32]) {
        let (g, [height, width]) = (&self.geometry, self.output);
        let image = self.input[0] * self.input[1] * g.in_channels;
        let images = x.len() / image;
        assert_eq!(x.len(), images * image, "values of the input");
        assert_eq!(y.len(), images * height * width * g.out_channels, "values of the output");
        assert!(cx.level() == self.level && weights.level == self.level, "another instruction-set level");
        assert!(weights.values.len() >= g.weight_len(), "packed for another convolution");
        assert!(epilogue.bias.is_none_or(|bias| bias.len() == g.out_channels), "the bias's length");
        assert!(epilogue.other().is_none_or(|residual| residual.len() == y.len()), "the residual's length");
        assert!(epilogue.follow.is_none(), "nothing follows rows");
        let rows = images * height;
        let tasks = rows.min(TURNS * cx.pool().available()).max(images);
        let out = SharedMut(y.as_mut_ptr());
        cx.pool().run(tasks, |task| {
            let rows = rows * task / tasks..rows * (task + 1) / tasks;
            let (x, weights) = (x.as_ptr(), weights.values.as_ptr());
            cx.level().run(Rows { conv: self, x, weights, epilogue: &epilogue, y: out.get(), rows });
        });
    }
}

/// Rows of outputs, counted through the batch. The arguments of [`RowConv::forward`] have been checked.
struct Rows<'a> {
    conv: &'a RowConv,
    x: *const f32,
    weights: *const f32,
    epilogue: &'a Epilogue<'a>,
    y: *mut f32,
    rows: Range<usize>,
}

impl Task for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let group = self.conv.geometry.group_in();
        let narrow = if group < S::LANES { group } else { 0 };
        match (narrow, self.conv.geometry.stride[0]) {
            (0, 1) => self.wide::<S, 1>(simd),
            (0, _) => self.wide::<S, 2>(simd),
            (1, 1) => self.all::<S, 1, 1, 1>(simd),
            (1, _) => self.all::<S, 1, 1, 2>(simd),
            (2, 1) => self.all::<S, 2, 1, 1>(simd),
            (2, _) => self.all::<S, 2, 1, 2>(simd),
            (4, 1) => self.all::<S, 4, 1, 1>(simd),
            (4, _) => self.all::<S, 4, 1, 2>(simd),
            (_, 1) => self.all::<S, 8, 1, 1>(simd),
            (_, _) => self.all::<S, 8, 1, 2>(simd),
        }
    }
}

/// A block of outputs: some neighbouring pixels of each row, and a panel of channels.
struct Block {
    /// The first pixel, and how many.
    first: usize,
    count: usize,
    panel: usize,
}

/// What a block reads of a row of the input, `[vector of channels][column][channel]`; for groups of eight, each column's channels are two
/// vectors, see [`Simd::half_of_eights`].
type Strip = [MaybeUninit<f32>; COLUMNS * ROOM];

/// The strips of the rows that the taps of an output read, in the places of their numbers' remainders. The next output reads some of
/// them too.
struct Strips {
    /// The rows that they hold, counted through the batch.
    held: [Option<usize>; TAPS],
    strips: [Strip; TAPS],
}

impl Rows<'_> {
    /// Groups that fill vectors.
    #[inline(always)]
    fn wide<S: Simd, const STRIDE: usize>(&self, simd: S) {
        match self.conv.vectors() {
            1 => self.all::<S, 0, 1, STRIDE>(simd),
            _ => self.all::<S, 0, 2, STRIDE>(simd),
        }
    }

    /// All outputs of the rows, with GROUP channels in a group that shares a vector with others, or 0.
    #[inline(always)]
    fn all<S: Simd, const GROUP: usize, const VECTORS: usize, const STRIDE: usize>(&self, simd: S) {
        let width = self.conv.output[1];
        let most = if VECTORS == 1 && many_registers(S::LANES) { MANY } else { FEW };
        for panel in 0..self.conv.geometry.out_channels / self.conv.width() {
            let mut first = 0;
            while first < width {
                let block = Block { first, count: most.min(width - first), panel };
                // SAFETY: the panel exists, and so many pixels of each row from the first on.
                unsafe {
                    match block.count > FEW {
                        true => self.block::<S, GROUP, VECTORS, STRIDE, MANY>(simd, &block),
                        false => self.block::<S, GROUP, VECTORS, STRIDE, FEW>(simd, &block),
                    }
                }
                first += block.count;
            }
        }
    }

    /// One block of at most PIXELS pixels, of all rows.
    ///
    /// # Safety
    /// The block's outputs must exist.
    #[inline(always)]
    unsafe fn block<
        S: Simd,
        const GROUP: usize,
        const VECTORS: usize,
        const STRIDE: usize,
        const PIXELS: usize,
    >(
        &self,
        simd: S,
        block: &Block,
    ) {
        let conv = self.conv;
        let ([height, _], [in_height, _]) = (conv.output, conv.input);
        let mut strips = Strips {
            held: [None; TAPS],
            strips: [const { [const { MaybeUninit::uninit() }; COLUMNS * ROOM] }; TAPS],
        };
        let row_len = conv.row_len();
        let weights = self.weights.wrapping_add(block.panel * TAPS * row_len);
        for row in self.rows.clone() {
            let (image, y) = (row / height, row % height);
            let mut sums = [[simd.zero(); VECTORS]; PIXELS];
            for tap in 0..TAPS {
                let at = (y * STRIDE + tap).checked_sub(conv.geometry.padding[0]);
                let Some(at) = at.filter(|&at| at < in_height) else { continue };
                let (place, at) = (at % TAPS, image * in_height + at);
                // SAFETY: the row exists; the panel has weights for its channels, `[input channel][tap][width]`.
                unsafe {
                    if strips.held[place].replace(at) != Some(at) {
                        self.fill::<S, GROUP, VECTORS, STRIDE, PIXELS>(
                            simd,
                            block,
                            at,
                            &mut strips.strips[place],
                        );
                    }
                    for start in (0..conv.depth).step_by(S::LANES) {
                        let strip =
                            strips.strips[place].as_ptr().cast::<f32>().add(start * COLUMNS * parts(GROUP));
                        let weights = weights.add(tap * row_len + start * TAPS * VECTORS * S::LANES);
                        sum::<S, GROUP, VECTORS, STRIDE, PIXELS>(simd, strip, weights, &mut sums);
                    }
                }
            }
            // SAFETY: promised by the caller.
            unsafe { self.finish(simd, block, row, &sums) };
        }
    }

    /// Applies the epilogue and stores a row of a block.
    ///
    /// # Safety
    /// The block's outputs must exist in the row.
    #[inline(always)]
    unsafe fn finish<S: Simd, const VECTORS: usize, const PIXELS: usize>(
        &self,
        simd: S,
        block: &Block,
        row: usize,
        sums: &[[S::V; VECTORS]; PIXELS],
    ) {
        let (epilogue, channels) = (self.epilogue, self.conv.geometry.out_channels);
        let channel = block.panel * VECTORS * S::LANES;
        let first = (row * self.conv.output[1] + block.first) * channels + channel;
        let added = epilogue.added(self.y);
        for v in 0..VECTORS {
            // SAFETY: these channels of the block's pixels exist, in y, bias and residual.
            unsafe {
                let bias = match epilogue.bias {
                    Some(bias) => simd.load(bias.as_ptr().add(channel + v * S::LANES)),
                    None => simd.zero(),
                };
                for (pixel, sums) in sums.iter().enumerate().take(block.count) {
                    let at = first + pixel * channels + v * S::LANES;
                    let mut value = simd.add(sums[v], bias);
                    if !added.is_null() {
                        value = simd.add(value, simd.load(added.add(at)));
                    }
                    if epilogue.relu {
                        value = simd.max(simd.zero(), value);
                    }
                    simd.store(self.y.add(at), value);
                    // The next row's outputs come near meanwhile.
                    simd.prefetch_to_write(self.y.wrapping_add(at + self.conv.output[1] * channels));
                }
            }
        }
    }

    /// Fills the strip with what the block reads of a row of the input, which is counted through the batch: zeros where there are no
    /// columns.
    ///
    /// # Safety
    /// The row must exist.
    #[inline(always)]
    unsafe fn fill<
        S: Simd,
        const GROUP: usize,
        const VECTORS: usize,
        const STRIDE: usize,
        const PIXELS: usize,
    >(
        &self,
        simd: S,
        block: &Block,
        row: usize,
        strip: &mut Strip,
    ) {
        let (conv, width, channels) = (self.conv, self.conv.input[1], self.conv.geometry.in_channels);
        // The first channel that the panel sees.
        let section = block.panel * VECTORS * S::LANES / conv.depth * conv.depth;
        for start in (0..conv.depth).step_by(S::LANES) {
            let from = self.x.wrapping_add(row * width * channels + section + start);
            let to = strip.as_mut_ptr().cast::<f32>().wrapping_add(start * COLUMNS * parts(GROUP));
            for column in 0..(PIXELS - 1) * STRIDE + TAPS {
                let at = (block.first * STRIDE + column).checked_sub(conv.geometry.padding[1]);
                let mut value = simd.zero();
                // SAFETY: the column of the row exists, and so do the channels; the strip has room for each column's vectors.
                unsafe {
                    if let Some(at) = at.filter(|&at| at < width) {
                        let from = from.add(at * channels);
                        value = simd.load(from);
                        simd.prefetch(from.wrapping_add(width * channels));
                    }
                    let to = to.add(column * parts(GROUP) * S::LANES);
                    if GROUP == 8 {
                        simd.store(to, simd.half_of_eights(value, 0));
                        simd.store(to.add(S::LANES), simd.half_of_eights(value, 1));
                    } else {
                        simd.store(to, value);
                    }
                }
            }
        }
    }
}

/// Whether a level whose vectors have so many lanes has 32 registers for them: AVX2, whose have 8, has 16. (So has the scalar level
/// on some CPUs, for which nothing is tuned.)
const fn many_registers(lanes: usize) -> bool {
    lanes != 8
}

/// Vectors of a strip's column.
const fn parts(group: usize) -> usize {
    if group == 8 { 2 } else { 1 }
}

/// Adds the products of a strip.
///
/// # Safety
/// The strip must be filled; `weights` must be valid for reads of `[input channel][tap][VECTORS · LANES]` values, of LANES channels or
/// of GROUP ones.
#[inline(always)]
unsafe fn sum<S: Simd, const GROUP: usize, const VECTORS: usize, const STRIDE: usize, const PIXELS: usize>(
    simd: S,
    strip: *const f32,
    weights: *const f32,
    sums: &mut [[S::V; VECTORS]; PIXELS],
) {
    // SAFETY: promised by the caller.
    unsafe {
        // Each number of a channel is a constant, as a shuffle wants it.
        match GROUP {
            0 => {
                for input in 0..S::LANES {
                    let weights = weights.add(input * TAPS * VECTORS * S::LANES);
                    input_sum::<S, 0, 0, VECTORS, STRIDE, PIXELS>(simd, strip.add(input), weights, sums);
                }
            }
            1 => input_sum::<S, GROUP, 0, VECTORS, STRIDE, PIXELS>(simd, strip, weights, sums),
            2 => {
                input_sum::<S, GROUP, 0, VECTORS, STRIDE, PIXELS>(simd, strip, weights, sums);
                input_sum::<S, GROUP, 1, VECTORS, STRIDE, PIXELS>(simd, strip, weights, sums);
            }
            _ => {
                // Four of the group's channels at a time, in one part of a column.
                for part in 0..parts(GROUP) {
                    let strip = strip.add(part * S::LANES);
                    let weights = weights.add(part * 4 * TAPS * VECTORS * S::LANES);
                    input_sum::<S, GROUP, 0, VECTORS, STRIDE, PIXELS>(simd, strip, weights, sums);
                    input_sum::<S, GROUP, 1, VECTORS, STRIDE, PIXELS>(simd, strip, weights, sums);
                    input_sum::<S, GROUP, 2, VECTORS, STRIDE, PIXELS>(simd, strip, weights, sums);
                    input_sum::<S, GROUP, 3, VECTORS, STRIDE, PIXELS>(simd, strip, weights, sums);
                }
            }
        }
    }
}

/// Adds the products of one input channel of a group, which is its channel INPUT where it shares a vector with others.
///
/// # Safety
/// As [`sum`].
#[inline(always)]
unsafe fn input_sum<
    S: Simd,
    const GROUP: usize,
    const INPUT: usize,
    const VECTORS: usize,
    const STRIDE: usize,
    const PIXELS: usize,
>(
    simd: S,
    strip: *const f32,
    weights: *const f32,
    sums: &mut [[S::V; VECTORS]; PIXELS],
) {
    // SAFETY: promised by the caller.
    unsafe {
        let weights = weights.add(INPUT * TAPS * VECTORS * S::LANES);
        // Columns that other inputs have read stay where they are: there are no registers for them.
        let strip = strip.wrapping_add(opaque(INPUT)).wrapping_sub(INPUT);
        let [left, middle, right] =
            [0, 1, 2].map(|tap| load::<S, VECTORS>(simd, weights.add(tap * VECTORS * S::LANES)));
        // What the taps of a pixel read; the next one reads a part of it too.
        let mut first = spread::<S, GROUP, INPUT>(simd, strip, 0);
        let mut second = spread::<S, GROUP, INPUT>(simd, strip, 1);
        for (pixel, sums) in sums.iter_mut().enumerate() {
            if STRIDE == 2 {
                second = spread::<S, GROUP, INPUT>(simd, strip, pixel * STRIDE + 1);
            }
            let third = spread::<S, GROUP, INPUT>(simd, strip, pixel * STRIDE + 2);
            for (v, sum) in sums.iter_mut().enumerate() {
                *sum = simd.mul_add(first, left[v], *sum);
                *sum = simd.mul_add(second, middle[v], *sum);
                *sum = simd.mul_add(third, right[v], *sum);
            }
            (first, second) = if STRIDE == 2 { (third, second) } else { (second, third) };
        }
    }
}

/// Some vectors.
///
/// # Safety
/// `from` must be valid for reads of so many.
#[inline(always)]
unsafe fn load<S: Simd, const VECTORS: usize>(simd: S, from: *const f32) -> [S::V; VECTORS] {
    let mut vectors = [simd.zero(); VECTORS];
    for (v, vector) in vectors.iter_mut().enumerate() {
        // SAFETY: promised by the caller.
        *vector = unsafe { simd.load(from.add(v * S::LANES)) };
    }
    vectors
}

/// An input of a strip's column, spread over its group's lanes, or the strip's first one over all of them.
///
/// # Safety
/// The strip must be valid for reads of the column.
#[inline(always)]
unsafe fn spread<S: Simd, const GROUP: usize, const INPUT: usize>(
    simd: S,
    strip: *const f32,
    column: usize,
) -> S::V {
    // SAFETY: promised by the caller.
    unsafe {
        let at = strip.add(column * parts(GROUP) * S::LANES);
        match GROUP {
            0 => simd.splat(*at),
            // Its half stands there twice.
            8 => simd.spread::<4>(simd.load(at), INPUT),
            _ => simd.spread::<GROUP>(simd.load(at), INPUT),
        }
    }
}
