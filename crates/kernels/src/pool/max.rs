//! Max pooling.

use crate::Context;
use crate::buffer::LINE;
use crate::conv::{GeometryError, Window};
use crate::parallel::SharedMut;
use crate::simd::{Simd, Task};

/// A max pool prepared for one input size.
#[derive(Debug, Clone)]
pub struct MaxPool {
    windows: [Window; 2],
    input: [usize; 2],
    output: [usize; 2],
}

impl MaxPool {
    /// A max pool of `windows` `[vertical, horizontal]` over `[height, width]` pixels.
    ///
    /// # Errors
    /// When the input is too small, a window would lie wholly in the padding, or has more than 256 taps.
    pub fn new(windows: [Window; 2], input: [usize; 2]) -> Result<Self, GeometryError> {
        let output = [windows[0].output(input[0])?, windows[1].output(input[1])?];
        if windows[0].kernel.saturating_mul(windows[1].kernel) > 256 {
            return Err(GeometryError::Overflow { what: "more than 256 taps in a max pool" });
        }
        for (axis, window) in windows.iter().enumerate() {
            let sees = |place| (0..window.kernel).any(|tap| window.source(place, tap, input[axis]).is_some());
            if !(0..output[axis]).all(sees) {
                let (input, padding, reach) = (input[axis], window.padding, window.reach());
                return Err(GeometryError::TooSmall { input, padding, reach });
            }
        }
        Ok(MaxPool { windows, input, output })
    }

    /// Output size `[height, width]`.
    pub fn output(&self) -> [usize; 2] {
        self.output
    }

    /// `y = max over the window of x`, and for each output the tap (row-major) that won: the first of equals, as in
    /// PyTorch; a NaN always wins. The padding never does.
    ///
    /// # Panics
    /// When lengths do not fit.
    pub fn forward(&self, cx: &Context, channels: usize, x: &[f32], y: &mut [f32], winners: &mut [u8]) {
        let ([height, width], [out_height, out_width]) = (self.input, self.output);
        let row = out_width * channels;
        assert_eq!(y.len(), winners.len(), "a winner for each output");
        assert!(channels > 0 && y.len().is_multiple_of(out_height * row), "whole images");
        assert_eq!(x.len(), y.len() / (out_height * row) * height * width * channels, "values of the input");
        let winners = SharedMut(winners.as_mut_ptr());
        cx.pool().pieces(y, row, |index, y| {
            // SAFETY: `winners` has y's length; each task takes the row that its piece of y has.
            let winners = unsafe { std::slice::from_raw_parts_mut(winners.get().add(index * row), row) };
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
        assert_eq!(dy.len(), winners.len(), "a winner for each output");
        assert!(channels > 0 && dx.len().is_multiple_of(height * row), "whole images");
        let image_len = out_height * out_width * channels;
        assert_eq!(dy.len(), dx.len() / (height * row) * image_len, "values of the output");
        cx.pool().pieces(dx, row, |index, dx| {
            let (image, iy) = (index / height, index % height);
            let dy = &dy[image * image_len..][..image_len];
            let winners = &winners[image * image_len..][..image_len];
            cx.level().run(BackwardRow { pool: self, channels, dy, winners, iy, dx });
        });
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
    winners: &'a mut [u8],
}

impl Task for ForwardRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let ForwardRow { pool, channels, x, oy, y, winners } = self;
        let [vertical, horizontal] = &pool.windows;
        let pixels = y.chunks_exact_mut(channels).zip(winners.chunks_exact_mut(channels));
        for (ox, (y, winners)) in pixels.enumerate() {
            for (first, (y, winners)) in
                (0..).step_by(LINE).zip(y.chunks_mut(LINE).zip(winners.chunks_mut(LINE)))
            {
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
                winners.iter_mut().zip(winner).for_each(|(to, winner)| *to = winner as u8);
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
                    let (tap, at) =
                        ((ky * horizontal.kernel + kx) as u8, (oy * pool.output[1] + ox) * channels);
                    let outputs = dy[at..at + channels].iter().zip(&winners[at..at + channels]);
                    for (dx, (&dy, &winner)) in dx.iter_mut().zip(outputs) {
                        *dx += if winner == tap { dy } else { 0.0 };
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
