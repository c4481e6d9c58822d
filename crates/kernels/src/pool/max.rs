//! Max pooling.

use crate::Context;
use crate::buffer::LINE;
use crate::conv::{GeometryError, Window};
use crate::simd::{Simd, Task};
use std::ops::Range;

/// A max pool prepared for one input size.
#[derive(Debug, Clone)]
pub struct MaxPool {
    windows: [Window; 2],
    input: [usize; 2],
    output: [usize; 2],
    /// Whether the winners of two channels share a byte.
    paired: bool,
}

/// Taps of a window whose number fits into half a byte.
const PAIRED: usize = 16;

impl MaxPool {
    /// A max pool of `windows` `[vertical, horizontal]` over `[height, width]` pixels.
    ///
    /// # Errors
    /// When the input is too small, a window would lie wholly in the padding, or has more than 256 taps.
    pub fn new(windows: [Window; 2], input: [usize; 2]) -> Result<Self, GeometryError> {
        let output = [windows[0].output(input[0])?, windows[1].output(input[1])?];
        let taps = windows[0].kernel.saturating_mul(windows[1].kernel);
        if taps > 256 {
            return Err(GeometryError::Overflow { what: "more than 256 taps in a max pool" });
        }
        for (axis, window) in windows.iter().enumerate() {
            let sees = |place| (0..window.kernel).any(|tap| window.source(place, tap, input[axis]).is_some());
            if !(0..output[axis]).all(sees) {
                let (input, padding, reach) = (input[axis], window.padding, window.reach());
                return Err(GeometryError::TooSmall { input, padding, reach });
            }
        }
        Ok(MaxPool { windows, input, output, paired: taps <= PAIRED })
    }

    /// Output size `[height, width]`.
    pub fn output(&self) -> [usize; 2] {
        self.output
    }

    /// Bytes in which [`forward`](Self::forward) leaves the winners of `images` images: half a byte for each output where the
    /// window has at most 16 taps, else one; each pixel begins a byte.
    pub fn winners_len(&self, images: usize, channels: usize) -> usize {
        images * self.output[0] * self.output[1] * self.pixel_winners(channels)
    }

    /// Bytes that the winners of a pixel take.
    fn pixel_winners(&self, channels: usize) -> usize {
        if self.paired { channels.div_ceil(2) } else { channels }
    }

    /// `y = max over the window of x`, and for each output the tap (row-major) that won: the first of equals, as in
    /// PyTorch; a NaN always wins. The padding never does. [`winners_len`](Self::winners_len) says what `winners` holds.
    ///
    /// # Panics
    /// When lengths do not fit.
    pub fn forward(&self, cx: &Context, channels: usize, x: &[f32], y: &mut [f32], winners: &mut [u8]) {
        let ([height, width], [out_height, out_width]) = (self.input, self.output);
        let row = out_width * channels;
        assert!(channels > 0 && y.len().is_multiple_of(out_height * row), "whole images");
        let images = y.len() / (out_height * row);
        assert_eq!(winners.len(), self.winners_len(images, channels), "a winner for each output");
        assert_eq!(x.len(), images * height * width * channels, "values of the input");
        let winners_row = out_width * self.pixel_winners(channels);
        cx.pool().pairs((y, row), (winners, winners_row), |index, y, winners| {
            let (image, oy) = (index / out_height, index % out_height);
            let x = &x[image * height * width * channels..][..height * width * channels];
            let source = Source { pool: self, channels, x, first: 0, oy };
            cx.level().run(ForwardRow { source, y, winners });
        });
    }

    /// As [`forward`](Self::forward), without the winners.
    ///
    /// # Panics
    /// When lengths do not fit.
    pub fn infer(&self, cx: &Context, channels: usize, x: &[f32], y: &mut [f32]) {
        let ([height, width], [out_height, out_width]) = (self.input, self.output);
        let row = out_width * channels;
        assert!(channels > 0 && y.len().is_multiple_of(out_height * row), "whole images");
        assert_eq!(x.len(), y.len() / (out_height * row) * height * width * channels, "values of the input");
        cx.pool().pieces(y, row, |index, y| {
            let (image, oy) = (index / out_height, index % out_height);
            let x = &x[image * height * width * channels..][..height * width * channels];
            let source = Source { pool: self, channels, x, first: 0, oy };
            cx.level().run(InferRow { source, y });
        });
    }

    /// The input rows that output row `oy` reads.
    pub(crate) fn rows(&self, oy: usize) -> Range<usize> {
        let [vertical, _] = &self.windows;
        let mut rows = (0..vertical.kernel).filter_map(|ky| vertical.source(oy, ky, self.input[0]));
        let first = rows.next().unwrap_or(0);
        first..rows.next_back().unwrap_or(first) + 1
    }

    /// Input size `[height, width]`.
    pub(crate) fn input(&self) -> [usize; 2] {
        self.input
    }

    /// Output row `oy` of an image, of which `x` holds the rows from `first` on.
    pub(crate) fn infer_one(
        &self,
        cx: &Context,
        channels: usize,
        (x, first): (&[f32], usize),
        oy: usize,
        y: &mut [f32],
    ) {
        let source = Source { pool: self, channels, x, first, oy };
        cx.level().run(InferRow { source, y });
    }

    /// `dx`: each output's gradient goes to its winner.
    ///
    /// # Panics
    /// When lengths do not fit.
    pub fn backward(&self, cx: &Context, channels: usize, dy: &[f32], winners: &[u8], dx: &mut [f32]) {
        let ([height, width], [out_height, out_width]) = (self.input, self.output);
        let row = width * channels;
        assert!(channels > 0 && dx.len().is_multiple_of(height * row), "whole images");
        let image_len = out_height * out_width * channels;
        let images = dx.len() / (height * row);
        assert_eq!(dy.len(), images * image_len, "values of the output");
        assert_eq!(winners.len(), self.winners_len(images, channels), "a winner for each output");
        let image_winners = self.winners_len(1, channels);
        cx.pool().pieces(dx, row, |index, dx| {
            let (image, iy) = (index / height, index % height);
            let dy = &dy[image * image_len..][..image_len];
            let winners = &winners[image * image_winners..][..image_winners];
            cx.level().run(BackwardRow { pool: self, channels, dy, winners, iy, dx });
        });
    }
}

/// Lines of channels that are handled together: what finding a window's pixels takes is shared among them.
const LINES: usize = 4;

/// Work on a row of pixels, some channels of a pixel at a time.
trait Row {
    /// Handles channels of pixel `column`: N lines of them, or with N 1 what is left.
    fn block<const N: usize>(&mut self, column: usize, channels: Range<usize>);
}

/// Takes `row` to `channels` channels of each of `columns` pixels.
#[inline(always)]
fn pixels(columns: usize, channels: usize, row: &mut impl Row) {
    const WIDE: usize = LINES * LINE;
    let wide = channels / WIDE * WIDE;
    for column in 0..columns {
        for first in (0..wide).step_by(WIDE) {
            row.block::<LINES>(column, first..first + WIDE);
        }
        for first in (wide..channels).step_by(LINE) {
            row.block::<1>(column, first..channels.min(first + LINE));
        }
    }
}

/// Rows of the input that a row of outputs reads.
struct Source<'a> {
    pool: &'a MaxPool,
    channels: usize,
    /// The image from row `first` on.
    x: &'a [f32],
    first: usize,
    /// The row of outputs.
    oy: usize,
}

impl Source<'_> {
    /// Calls `take` with each tap of output `ox` that does not lie in the padding, and with what some channels have there; those
    /// that are missing in the last line have −∞.
    #[inline(always)]
    fn taps<const N: usize>(
        &self,
        ox: usize,
        channels: Range<usize>,
        mut take: impl FnMut(u32, &[[f32; LINE]; N]),
    ) {
        let MaxPool { windows: [vertical, horizontal], input: [height, width], .. } = self.pool;
        for (ky, iy) in sources(vertical, self.oy, *height) {
            for (kx, ix) in sources(horizontal, ox, *width) {
                let pixel = &self.x[((iy - self.first) * width + ix) * self.channels..];
                let (tap, values) = ((ky * horizontal.kernel + kx) as u32, &pixel[channels.clone()]);
                match values.as_chunks().0.first_chunk() {
                    Some(lines) if values.len() == N * LINE => take(tap, lines),
                    _ => {
                        let mut lines = [[f32::NEG_INFINITY; LINE]; N];
                        lines.as_flattened_mut()[..values.len()].copy_from_slice(values);
                        take(tap, &lines);
                    }
                }
            }
        }
    }
}

/// One row of outputs, and which taps won.
struct ForwardRow<'a> {
    source: Source<'a>,
    y: &'a mut [f32],
    /// As [`MaxPool::winners_len`] describes them.
    winners: &'a mut [u8],
}

impl Task for ForwardRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, _: S) {
        pixels(self.source.pool.output[1], self.source.channels, &mut self);
    }
}

impl Row for ForwardRow<'_> {
    #[inline(always)]
    fn block<const N: usize>(&mut self, column: usize, channels: Range<usize>) {
        let Source { pool, channels: all, .. } = self.source;
        let (mut best, mut winner) = ([[f32::NEG_INFINITY; LINE]; N], [[u32::MAX; LINE]; N]);
        self.source.taps(column, channels.clone(), |tap, values: &[[f32; LINE]; N]| {
            for ((best, winner), values) in best.iter_mut().zip(&mut winner).zip(values) {
                for lane in 0..LINE {
                    // Larger, NaN, or the first one.
                    let value = values[lane];
                    let wins = value > best[lane] || value.is_nan() || winner[lane] == u32::MAX;
                    best[lane] = if wins { value } else { best[lane] };
                    winner[lane] = if wins { tap } else { winner[lane] };
                }
            }
        });
        self.y[column * all..][channels.clone()].copy_from_slice(&best.as_flattened()[..channels.len()]);
        let bytes = pool.winner_bytes(column, all, channels);
        pool.keep_winners(winner.as_flattened(), &mut self.winners[bytes]);
    }
}

/// One row of outputs.
struct InferRow<'a> {
    source: Source<'a>,
    y: &'a mut [f32],
}

impl Task for InferRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, _: S) {
        pixels(self.source.pool.output[1], self.source.channels, &mut self);
    }
}

impl Row for InferRow<'_> {
    #[inline(always)]
    fn block<const N: usize>(&mut self, column: usize, channels: Range<usize>) {
        let mut best = [[f32::NEG_INFINITY; LINE]; N];
        self.source.taps(column, channels.clone(), |_, values: &[[f32; LINE]; N]| {
            for (best, &value) in best.as_flattened_mut().iter_mut().zip(values.as_flattened()) {
                *best = if *best >= value || best.is_nan() { *best } else { value };
            }
        });
        let y = &mut self.y[column * self.source.channels..][channels.clone()];
        y.copy_from_slice(&best.as_flattened()[..channels.len()]);
    }
}

/// One row of the input's gradient.
struct BackwardRow<'a> {
    pool: &'a MaxPool,
    channels: usize,
    /// Gradients and winners of an image.
    dy: &'a [f32],
    winners: &'a [u8],
    iy: usize,
    dx: &'a mut [f32],
}

impl Task for BackwardRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, _: S) {
        pixels(self.pool.input[1], self.channels, &mut self);
    }
}

impl Row for BackwardRow<'_> {
    #[inline(always)]
    fn block<const N: usize>(&mut self, column: usize, channels: Range<usize>) {
        let MaxPool { windows: [vertical, horizontal], output: [height, width], .. } = self.pool;
        let mut sums = [[0.0; LINE]; N];
        for (ky, oy) in readers(vertical, self.iy, *height) {
            for (kx, ox) in readers(horizontal, column, *width) {
                let (tap, pixel) = ((ky * horizontal.kernel + kx) as u32, oy * width + ox);
                let winners = &self.winners[self.pool.winner_bytes(pixel, self.channels, channels.clone())];
                let winners = winners.chunks(self.pool.pixel_winners(LINE));
                let dy = self.dy[pixel * self.channels..][channels.clone()].chunks(LINE);
                for (sums, (dy, winners)) in sums.iter_mut().zip(dy.zip(winners)) {
                    let winners = self.pool.winners(winners);
                    for ((sum, &dy), winner) in sums.iter_mut().zip(dy).zip(winners) {
                        *sum += if winner == tap { dy } else { 0.0 };
                    }
                }
            }
        }
        let dx = &mut self.dx[column * self.channels..][channels.clone()];
        dx.copy_from_slice(&sums.as_flattened()[..channels.len()]);
    }
}

impl MaxPool {
    /// Where the winners of some of `all` channels of a pixel stand; the first of them is the first of a line.
    #[inline(always)]
    fn winner_bytes(&self, pixel: usize, all: usize, channels: Range<usize>) -> Range<usize> {
        let start = pixel * self.pixel_winners(all);
        start + self.pixel_winners(channels.start)..start + self.pixel_winners(channels.end)
    }

    /// Writes the taps that won.
    #[inline(always)]
    fn keep_winners(&self, taps: &[u32], to: &mut [u8]) {
        match self.paired {
            true => {
                let pairs = taps.as_chunks().0.iter().map(|[first, second]| (first & 15 | second << 4) as u8);
                to.iter_mut().zip(pairs).for_each(|(to, pair)| *to = pair);
            }
            false => to.iter_mut().zip(taps).for_each(|(to, &tap)| *to = tap as u8),
        }
    }

    /// The winning taps of up to [`LINE`] channels.
    #[inline(always)]
    fn winners(&self, bytes: &[u8]) -> [u32; LINE] {
        let mut line = [0; LINE];
        line[..bytes.len()].copy_from_slice(bytes);
        if !self.paired {
            return line.map(u32::from);
        }
        // Eight taps in each word, from the lowest bits on.
        let words = [[line[0], line[1], line[2], line[3]], [line[4], line[5], line[6], line[7]]];
        let words = words.map(u32::from_le_bytes);
        std::array::from_fn(|lane| words[lane / 8] >> (4 * (lane % 8)) & 15)
    }
}

/// The taps of output position `output` that do not lie in the padding, each with the input position that it reads.
#[inline(always)]
fn sources(window: &Window, output: usize, inputs: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..window.kernel).filter_map(move |tap| Some((tap, window.source(output, tap, inputs)?)))
}

/// The taps that read input position `input`, each with the output that it belongs to.
#[inline(always)]
fn readers(window: &Window, input: usize, outputs: usize) -> impl Iterator<Item = (usize, usize)> {
    let Window { kernel, stride, padding, dilation } = *window;
    (0..kernel).filter_map(move |tap| {
        let offset = (input + padding).checked_sub(tap * dilation)?;
        (offset.is_multiple_of(stride) && offset / stride < outputs).then_some((tap, offset / stride))
    })
}
