//! Max pooling.

use crate::Context;
use crate::buffer::LINE;
use crate::conv::{GeometryError, Window};
use crate::simd::{Simd, Task};

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
            cx.level().run(ForwardRow { pool: self, channels, x, oy, y, winners });
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
            cx.level().run(InferRow { pool: self, channels, x, first: 0, oy, y });
        });
    }

    /// The input rows that output row `oy` reads.
    pub(crate) fn rows(&self, oy: usize) -> std::ops::Range<usize> {
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
        cx.level().run(InferRow { pool: self, channels, x, first, oy, y });
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

impl MaxPool {
    /// The winning taps of up to [`LINE`] channels.
    #[inline(always)]
    fn winners(&self, bytes: &[u8]) -> [u8; LINE] {
        let mut taps = [0; LINE];
        match self.paired {
            true => taps.chunks_exact_mut(2).zip(bytes).for_each(|(pair, &byte)| {
                (pair[0], pair[1]) = (byte & 15, byte >> 4);
            }),
            false => taps.iter_mut().zip(bytes).for_each(|(tap, &byte)| *tap = byte),
        }
        taps
    }
}

/// One row of outputs, and which taps won.
struct ForwardRow<'a> {
    pool: &'a MaxPool,
    channels: usize,
    /// The image.
    x: &'a [f32],
    oy: usize,
    y: &'a mut [f32],
    /// As [`MaxPool::winners_len`] describes them.
    winners: &'a mut [u8],
}

impl Task for ForwardRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let ForwardRow { pool, channels, x, oy, y, winners } = self;
        let [vertical, horizontal] = &pool.windows;
        let winners = winners.chunks_exact_mut(pool.pixel_winners(channels));
        for (ox, (y, winners)) in y.chunks_exact_mut(channels).zip(winners).enumerate() {
            let winners = winners.chunks_mut(pool.pixel_winners(LINE));
            for (first, (y, winners)) in (0..).step_by(LINE).zip(y.chunks_mut(LINE).zip(winners)) {
                let count = y.len();
                let (mut best, mut winner) = ([f32::NEG_INFINITY; LINE], [u32::MAX; LINE]);
                for (ky, iy) in sources(vertical, oy, pool.input[0]) {
                    for (kx, ix) in sources(horizontal, ox, pool.input[1]) {
                        let from = &x[(iy * pool.input[1] + ix) * channels + first..][..count];
                        let tap = (ky * horizontal.kernel + kx) as u32;
                        if let Ok(from) = <&[f32; LINE]>::try_from(from) {
                            keep_larger(&mut best, &mut winner, from, tap);
                        } else {
                            let mut line = [f32::NEG_INFINITY; LINE];
                            line[..count].copy_from_slice(from);
                            keep_larger(&mut best, &mut winner, &line, tap);
                        }
                    }
                }
                y.copy_from_slice(&best[..count]);
                match pool.paired {
                    true => {
                        let pairs = winner.chunks_exact(2).map(|pair| (pair[0] & 15 | pair[1] << 4) as u8);
                        winners.iter_mut().zip(pairs).for_each(|(to, pair)| *to = pair);
                    }
                    false => winners.iter_mut().zip(winner).for_each(|(to, winner)| *to = winner as u8),
                }
            }
        }
    }
}

/// One row of outputs.
struct InferRow<'a> {
    pool: &'a MaxPool,
    channels: usize,
    /// The image from row `first` on.
    x: &'a [f32],
    first: usize,
    oy: usize,
    y: &'a mut [f32],
}

impl Task for InferRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let InferRow { pool, channels, x, first, oy, y } = self;
        let [vertical, horizontal] = &pool.windows;
        for (ox, y) in y.chunks_exact_mut(channels).enumerate() {
            y.fill(f32::NEG_INFINITY);
            for iy in (0..vertical.kernel).filter_map(|ky| vertical.source(oy, ky, pool.input[0])) {
                for ix in (0..horizontal.kernel).filter_map(|kx| horizontal.source(ox, kx, pool.input[1])) {
                    let x = &x[((iy - first) * pool.input[1] + ix) * channels..][..channels];
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y = if *y >= x || y.is_nan() { *y } else { x };
                    }
                }
            }
        }
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
    fn run<S: Simd>(self, _: S) {
        let BackwardRow { pool, channels, dy, winners, iy, dx } = self;
        let [vertical, horizontal] = &pool.windows;
        for (ix, dx) in dx.chunks_exact_mut(channels).enumerate() {
            dx.fill(0.0);
            for (ky, oy) in readers(vertical, iy, pool.output[0]) {
                for (kx, ox) in readers(horizontal, ix, pool.output[1]) {
                    let (tap, pixel) = ((ky * horizontal.kernel + kx) as u8, oy * pool.output[1] + ox);
                    let bytes = pool.pixel_winners(channels);
                    let winners = winners[pixel * bytes..][..bytes].chunks(pool.pixel_winners(LINE));
                    let outputs = dy[pixel * channels..][..channels].chunks(LINE).zip(winners);
                    for (dx, (dy, winners)) in dx.chunks_mut(LINE).zip(outputs) {
                        let winners = pool.winners(winners);
                        for ((dx, &dy), winner) in dx.iter_mut().zip(dy).zip(winners) {
                            *dx += if winner == tap { dy } else { 0.0 };
                        }
                    }
                }
            }
        }
    }
}

/// The taps of output position `output` that do not lie in the padding, each with the input position that it reads.
#[inline(always)]
fn sources(window: &Window, output: usize, inputs: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..window.kernel).filter_map(move |tap| Some((tap, window.source(output, tap, inputs)?)))
}

/// Puts values that are larger, NaN, or the first ones, and their tap, in the place of the best so far.
#[inline(always)]
fn keep_larger(best: &mut [f32; LINE], winner: &mut [u32; LINE], values: &[f32; LINE], tap: u32) {
    for lane in 0..LINE {
        let value = values[lane];
        let wins = value > best[lane] || value.is_nan() || winner[lane] == u32::MAX;
        best[lane] = if wins { value } else { best[lane] };
        winner[lane] = if wins { tap } else { winner[lane] };
    }
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
