//! Pools that are sums with fixed weights, apart for rows and columns.

use crate::Context;
use crate::conv::{AverageWindow, Edge, GeometryError};
use crate::simd::{Simd, Task};

/// For each position of one side, the positions of the other side that it is made of, with their weights.
#[derive(Debug, Clone, PartialEq)]
struct Taps(Vec<Vec<(usize, f32)>>);

impl Taps {
    /// The same connections seen from the other side, which has `positions` positions.
    fn transposed(&self, positions: usize) -> Taps {
        let mut transposed = vec![Vec::new(); positions];
        for (output, taps) in self.0.iter().enumerate() {
            for &(input, weight) in taps {
                transposed[input].push((output, weight));
            }
        }
        Taps(transposed)
    }

    /// The mean of each of `outputs` windows over what it has, or, with zeros behind the input, over the whole window.
    fn average(input: usize, outputs: usize, AverageWindow { kernel, stride, edge }: AverageWindow) -> Taps {
        let window = |output: usize| {
            let (from, to) = (output * stride, input.min(output * stride + kernel));
            let count = if edge == Edge::Zeros { kernel } else { to - from };
            (from..to).map(|position| (position, 1.0 / count as f32)).collect()
        };
        Taps((0..outputs).map(window).collect())
    }

    /// Weights 1, 2, 1 over 4 around every `stride`-th position; beyond the border the positions are mirrored (the border
    /// itself not repeated), or, where there is only one, repeated.
    fn blur(input: usize, stride: usize) -> Taps {
        let mirror = |position: isize| {
            let last = input as isize - 1;
            let inside = if position < 0 { -position } else { position };
            let inside = if inside > last { 2 * last - inside } else { inside };
            inside.clamp(0, last) as usize
        };
        let window = |output: usize| {
            let centre = (output * stride) as isize;
            [(-1, 0.25), (0, 0.5), (1, 0.25)].map(|(step, weight)| (mirror(centre + step), weight)).to_vec()
        };
        Taps((0..input.div_ceil(stride)).map(window).collect())
    }

    /// Every `stride`-th position.
    fn subsample(input: usize, stride: usize) -> Taps {
        Taps((0..input).step_by(stride).map(|position| vec![(position, 1.0)]).collect())
    }
}

/// A pool prepared for one input size: `y[i, j] = Σ vertical[i, k] · horizontal[j, l] · x[k, l]`, channel by channel,
/// possibly with channels of zeros around.
#[derive(Debug, Clone)]
pub struct LinearPool {
    input: [usize; 2],
    output: [usize; 2],
    forward: [Taps; 2],
    backward: [Taps; 2],
    channels: usize,
    out_channels: usize,
    /// Channels of zeros before those of the input.
    before: usize,
}

impl LinearPool {
    fn new(
        input: [usize; 2],
        channels: [usize; 2],
        taps: impl Fn(usize) -> Taps,
    ) -> Result<Self, GeometryError> {
        let sizes = [("height", input[0]), ("width", input[1]), ("channels", channels[0])];
        if let Some((what, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(GeometryError::Zero { what });
        }
        let [channels, out_channels] = channels;
        let forward = input.map(taps);
        let backward = [forward[0].transposed(input[0]), forward[1].transposed(input[1])];
        let output = [forward[0].0.len(), forward[1].0.len()];
        let before = (out_channels - channels) / 2;
        Ok(LinearPool { input, output, forward, backward, channels, out_channels, before })
    }

    fn strided(
        input: [usize; 2],
        channels: [usize; 2],
        stride: usize,
        taps: impl Fn(usize, usize) -> Taps,
    ) -> Result<Self, GeometryError> {
        if stride == 0 {
            return Err(GeometryError::Zero { what: "stride" });
        }
        LinearPool::new(input, channels, |input| taps(input, stride))
    }

    /// Average pool over square windows.
    ///
    /// # Errors
    /// When a size is 0, or there is no window in the input.
    pub fn average(input: [usize; 2], channels: usize, window: AverageWindow) -> Result<Self, GeometryError> {
        let [height, width] = [window.output(input[0])?, window.output(input[1])?];
        let outputs = |size| if size == input[0] { height } else { width };
        LinearPool::new(input, [channels; 2], |input| Taps::average(input, outputs(input), window))
    }

    /// Blur pool (Zhang 2019): the binomial filter 1, 2, 1 in both directions at every `stride`-th pixel, with mirrored
    /// borders.
    ///
    /// # Errors
    /// When a size is 0.
    pub fn blur(input: [usize; 2], channels: usize, stride: usize) -> Result<Self, GeometryError> {
        LinearPool::strided(input, [channels; 2], stride, Taps::blur)
    }

    /// Average over all pixels.
    ///
    /// # Errors
    /// When a size is 0.
    pub fn global_average(input: [usize; 2], channels: usize) -> Result<Self, GeometryError> {
        LinearPool::new(input, [channels; 2], |input| Taps::average(input, 1, AverageWindow::partial(input)))
    }

    /// Every `stride`-th pixel, its channels set into the middle of `out_channels` (option A of He et al. 2015; with an
    /// odd number of new channels there is one more behind).
    ///
    /// # Errors
    /// When a size is 0, or there are fewer output channels than input channels.
    pub fn subsample(
        input: [usize; 2],
        [channels, out_channels]: [usize; 2],
        stride: usize,
    ) -> Result<Self, GeometryError> {
        if out_channels < channels {
            return Err(GeometryError::Overflow { what: "the zero-padded shortcut cannot drop channels" });
        }
        LinearPool::strided(input, [channels, out_channels], stride, Taps::subsample)
    }

    /// Output size `[height, width]`.
    pub fn output(&self) -> [usize; 2] {
        self.output
    }

    /// x `[N, H, W, C]` → y `[N, H/s, W/s, C]`, or the output channels of a subsampling.
    ///
    /// # Panics
    /// When lengths do not fit.
    pub fn forward(&self, cx: &Context, x: &[f32], y: &mut [f32]) {
        let sides = [(self.input, self.channels, 0), (self.output, self.out_channels, self.before)];
        gather(cx, sides, self.channels, &self.forward, x, y);
    }

    /// `dx` from the output's gradient.
    ///
    /// # Panics
    /// When lengths do not fit.
    pub fn backward(&self, cx: &Context, dy: &[f32], dx: &mut [f32]) {
        let sides = [(self.output, self.out_channels, self.before), (self.input, self.channels, 0)];
        gather(cx, sides, self.channels, &self.backward, dy, dx);
    }
}

/// A side of the pool: size, channels of a pixel, and the first of those that take part.
type Side = ([usize; 2], usize, usize);

/// `to[i, j] = Σ vertical[i, k] · horizontal[j, l] · from[k, l]` on `shared` channels of each pixel; others become 0.
fn gather(
    cx: &Context,
    [source, target]: [Side; 2],
    shared: usize,
    taps: &[Taps; 2],
    from: &[f32],
    to: &mut [f32],
) {
    let ([from_height, from_width], from_channels, from_first) = source;
    let ([height, width], channels, first) = target;
    let (from_image, row) = (from_height * from_width * from_channels, width * channels);
    assert!(to.len().is_multiple_of(height * row), "whole images");
    assert_eq!(from.len(), to.len() / (height * row) * from_image, "values of the source");
    cx.pool().pieces(to, row, |index, to| {
        let from = &from[index / height * from_image..][..from_image];
        let vertical = &taps[0].0[index % height];
        let offset = |y: usize, x: usize| (y * from_width + x) * from_channels + from_first;
        cx.level().run(Row { vertical, horizontal: &taps[1].0, offset, from, to, channels, first, shared });
    });
}

/// One row of a [`gather`].
struct Row<'a, F> {
    vertical: &'a [(usize, f32)],
    horizontal: &'a [Vec<(usize, f32)>],
    /// Where the channels of a pixel `(y, x)` begin in `from`.
    offset: F,
    from: &'a [f32],
    to: &'a mut [f32],
    channels: usize,
    /// The first of `shared` channels that take part.
    first: usize,
    shared: usize,
}

impl<F: Fn(usize, usize) -> usize> Task for Row<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Row { vertical, horizontal, offset, from, to, channels, first, shared } = self;
        for (to, horizontal) in to.chunks_exact_mut(channels).zip(horizontal) {
            to.fill(0.0);
            let to = &mut to[first..first + shared];
            for &(y, above) in vertical {
                for &(x, beside) in horizontal {
                    let weight = above * beside;
                    let from = &from[offset(y, x)..][..shared];
                    to.iter_mut().zip(from).for_each(|(to, from)| *to += weight * from);
                }
            }
        }
    }
}
