//! Weights for the channels of each image: how they follow from the channels' means (Hu et al. 2017, Wang et al. 2019),
//! and what they do to a feature map.

use crate::Context;
use crate::gemm::Residual;
use crate::simd::{Simd, Task};

/// Values that one task takes.
const PIECE: usize = 1 << 14;

/// Pixels that are summed in `f32` before the sum goes on in `f64`.
const BLOCK: usize = 32;

/// Channels whose sums are taken together.
const WIDTH: usize = 64;

/// What one image of a feature map has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Pixels, `height · width`.
    pub pixels: usize,
    /// Channels.
    pub channels: usize,
}

impl Extent {
    /// Pixels that one task takes.
    fn piece(self) -> usize {
        (PIECE / self.channels).max(1)
    }

    fn check(self, maps: &[(&str, usize)], weights: &[(&str, usize)]) {
        let Extent { pixels, channels } = self;
        assert!(pixels > 0 && channels > 0, "an image has pixels and channels");
        let length = maps[0].1;
        assert!(length.is_multiple_of(pixels * channels), "{}: whole images", maps[0].0);
        for (what, found) in maps {
            assert_eq!(*found, length, "{what}: as many values as {}", maps[0].0);
        }
        for (what, found) in weights {
            assert_eq!(*found, length / pixels, "{what}: a value for each channel of each image");
        }
    }
}

/// What [`apply`] reads.
#[derive(Debug, Clone, Copy)]
pub struct Gated<'a> {
    /// Feature maps, `[N, H, W, C]`.
    pub x: &'a [f32],
    /// Weights, `[N, C]`.
    pub weights: &'a [f32],
    /// Added to the products, `[N, H, W, C]`.
    pub residual: Option<Residual<'a>>,
    /// Whether negative sums become 0.
    pub relu: bool,
}

/// `y = relu(x · weights + residual)`; `y` is `[N, H, W, C]`. A NaN stays a NaN.
///
/// # Panics
/// When lengths do not fit.
pub fn apply(cx: &Context, extent: Extent, input: Gated, y: &mut [f32]) {
    let residual = input.residual.and_then(Residual::tensor);
    let lengths =
        [("y", y.len()), ("x", input.x.len()), ("residual", residual.map_or(y.len(), <[f32]>::len))];
    extent.check(&lengths, &[("weights", input.weights.len())]);
    let piece = extent.piece();
    cx.pool().pieces(y, piece * extent.channels, |index, y| {
        let range = index * piece * extent.channels..index * piece * extent.channels + y.len();
        let residual = match input.residual {
            Some(Residual::Tensor(residual)) => Some(Residual::Tensor(&residual[range.clone()])),
            other => other,
        };
        let input = Gated { x: &input.x[range], residual, ..input };
        cx.level().run(Apply { extent, first: index * piece, input, y });
    });
}

/// Some pixels of [`apply`], of which `first` is the first one's number.
struct Apply<'a> {
    extent: Extent,
    first: usize,
    input: Gated<'a>,
    y: &'a mut [f32],
}

impl Task for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Apply { extent: Extent { pixels, channels }, first, input, y } = self;
        let cut = |value: f32| if input.relu && value < 0.0 { 0.0 } else { value };
        for (index, (y, x)) in y.chunks_exact_mut(channels).zip(input.x.chunks_exact(channels)).enumerate() {
            let weights = &input.weights[(first + index) / pixels * channels..][..channels];
            let products = x.iter().zip(weights);
            match input.residual {
                None => y.iter_mut().zip(products).for_each(|(y, (x, w))| *y = cut(x * w)),
                Some(Residual::InPlace) => {
                    y.iter_mut().zip(products).for_each(|(y, (x, w))| *y = cut(x * w + *y));
                }
                Some(Residual::Tensor(residual)) => {
                    let residual = &residual[index * channels..][..channels];
                    let sums = products.zip(residual);
                    y.iter_mut().zip(sums).for_each(|(y, ((x, w), r))| *y = cut(x * w + r));
                }
            }
        }
    }
}

/// What [`backward_weights`] reads.
#[derive(Debug, Clone, Copy)]
pub struct Backward<'a> {
    /// The forward's input, `[N, H, W, C]`.
    pub x: &'a [f32],
    /// Its output, `[N, H, W, C]`, where it had a ReLU.
    pub y: Option<&'a [f32]>,
}

/// The gradient of the output, `[N, H, W, C]`, becomes that of the sum before the ReLU, which is the residual's too; that of the
/// weights is written to `dweights` `[N, C]`.
///
/// # Panics
/// When lengths do not fit.
pub fn backward_weights(cx: &Context, extent: Extent, input: Backward, dy: &mut [f32], dweights: &mut [f32]) {
    let Backward { x, y } = input;
    let lengths = [("dy", dy.len()), ("x", x.len()), ("y", y.map_or(dy.len(), <[f32]>::len))];
    extent.check(&lengths, &[("dweights", dweights.len())]);
    let image = extent.pixels * extent.channels;
    cx.pool().pairs((dy, image), (dweights, extent.channels), |index, dy, dweights| {
        let image = index * image..(index + 1) * image;
        let input = Backward { x: &x[image.clone()], y: y.map(|y| &y[image]) };
        cx.level().run(Weigh { channels: extent.channels, input, dy, dweights });
    });
}

/// One image of [`backward_weights`].
struct Weigh<'a> {
    channels: usize,
    input: Backward<'a>,
    dy: &'a mut [f32],
    dweights: &'a mut [f32],
}

impl Task for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Weigh { channels, input: Backward { x, y }, dy, dweights } = self;
        let count = dy.len() / channels;
        for (from, dweights) in (0..channels).step_by(WIDTH).zip(dweights.chunks_mut(WIDTH)) {
            let (mut block, mut total) = ([0.0f32; WIDTH], [0.0f64; WIDTH]);
            for index in 0..count {
                let at = index * channels + from..index * channels + from + dweights.len();
                let (dy, x) = (&mut dy[at.clone()], &x[at.clone()]);
                if let Some(y) = y {
                    let cut = dy.iter_mut().zip(&y[at]);
                    cut.for_each(|(dy, &y)| *dy = if y > 0.0 { *dy } else { 0.0 });
                }
                block.iter_mut().zip(&*dy).zip(x).for_each(|((sum, dy), x)| *sum += dy * x);
                if index % BLOCK == BLOCK - 1 || index + 1 == count {
                    total.iter_mut().zip(&block).for_each(|(total, &sum)| *total += f64::from(sum));
                    block.fill(0.0);
                }
            }
            dweights.iter_mut().zip(&total).for_each(|(to, &from)| *to = from as f32);
        }
    }
}

/// Writes to `dx` `[N, H, W, C]` the gradient of the feature maps: `dsum · weights`, and by way of the means, whose gradient
/// is `dmean` `[N, C]`, that divided by the number of pixels.
///
/// # Panics
/// When lengths do not fit.
pub fn backward_input(
    cx: &Context,
    extent: Extent,
    dsum: &[f32],
    weights: &[f32],
    dmean: Option<&[f32]>,
    dx: &mut [f32],
) {
    let rows = [("weights", weights.len()), ("dmean", dmean.map_or(weights.len(), <[f32]>::len))];
    extent.check(&[("dx", dx.len()), ("dsum", dsum.len())], &rows);
    let piece = extent.piece();
    cx.pool().pieces(dx, piece * extent.channels, |index, dx| {
        let dsum = &dsum[index * piece * extent.channels..][..dx.len()];
        cx.level().run(Spread { extent, first: index * piece, dsum, weights, dmean, dx });
    });
}

/// Some pixels of [`backward_input`], of which `first` is the first one's number.
struct Spread<'a> {
    extent: Extent,
    first: usize,
    dsum: &'a [f32],
    weights: &'a [f32],
    dmean: Option<&'a [f32]>,
    dx: &'a mut [f32],
}

impl Task for Spread<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Spread { extent: Extent { pixels, channels }, first, dsum, weights, dmean, dx } = self;
        let share = 1.0 / pixels as f32;
        let maps = dx.chunks_exact_mut(channels).zip(dsum.chunks_exact(channels));
        for (index, (dx, dsum)) in maps.enumerate() {
            let row = (first + index) / pixels * channels;
            let products = dsum.iter().zip(&weights[row..][..channels]);
            match dmean {
                None => dx.iter_mut().zip(products).for_each(|(dx, (dsum, w))| *dx = dsum * w),
                Some(dmean) => {
                    let terms = products.zip(&dmean[row..][..channels]);
                    dx.iter_mut()
                        .zip(terms)
                        .for_each(|(dx, ((dsum, w), dmean))| *dx = dsum * w + dmean * share);
                }
            }
        }
    }
}

/// `y[n, c] = sigmoid(Σ taps[t] · x[n, c + t − ⌊taps / 2⌋])`, with zeros beyond the channels; `x` and `y` are `[N, C]`. One tap
/// of 1 is the sigmoid alone.
///
/// # Panics
/// When lengths do not fit.
pub fn sigmoid_of_channels(cx: &Context, channels: usize, taps: &[f32], x: &[f32], y: &mut [f32]) {
    assert!(x.len() == y.len() && x.len().is_multiple_of(channels), "whole rows of channels");
    let before = taps.len() / 2;
    cx.pool().pieces(y, channels, |row, y| {
        let x = &x[row * channels..][..channels];
        for (channel, y) in y.iter_mut().enumerate() {
            let tap = |(tap, &weight): (usize, &f32)| {
                let from = (channel + tap).checked_sub(before).and_then(|from| x.get(from));
                from.map_or(0.0, |&x| f64::from(weight) * f64::from(x))
            };
            let sum: f64 = taps.iter().enumerate().map(tap).sum();
            *y = (1.0 / (1.0 + (-sum).exp())) as f32;
        }
    });
}

/// The gradients of `taps` and of `x`, which are written to `dtaps` and `dx`, from the output `y` of [`sigmoid_of_channels`]
/// and its gradient `dy`.
///
/// # Panics
/// When lengths do not fit.
pub fn sigmoid_of_channels_backward(
    channels: usize,
    taps: &[f32],
    [x, y, dy]: [&[f32]; 3],
    dtaps: &mut [f32],
    dx: &mut [f32],
) {
    assert!([x.len(), y.len(), dy.len()].iter().all(|&len| len == dx.len()), "as many values in each");
    assert_eq!(taps.len(), dtaps.len(), "a gradient for each tap");
    assert!(x.len().is_multiple_of(channels), "whole rows of channels");
    let before = taps.len() / 2;
    // The gradient of the sum that tap `tap` of x[from] takes part in, in the same row: that of channel `from − tap + before`.
    let dsum = |from: usize, tap: usize| {
        let channel = (from % channels + before).checked_sub(tap).filter(|&channel| channel < channels)?;
        let at = from - from % channels + channel;
        Some(f64::from(dy[at]) * f64::from(y[at]) * (1.0 - f64::from(y[at])))
    };
    for (from, dx) in dx.iter_mut().enumerate() {
        let terms = taps.iter().enumerate().filter_map(|(tap, &w)| Some(f64::from(w) * dsum(from, tap)?));
        *dx = terms.sum::<f64>() as f32;
    }
    for (tap, dtap) in dtaps.iter_mut().enumerate() {
        let terms = x.iter().enumerate().filter_map(|(from, &x)| Some(f64::from(x) * dsum(from, tap)?));
        *dtap = terms.sum::<f64>() as f32;
    }
}

#[cfg(test)]
mod tests;
