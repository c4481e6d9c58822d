//! A convolution as the tiles see it: with stride 1, or with the stride of its algorithm.

use super::super::ConvGeometry;
use super::pack::Precision;
use crate::Context;
use crate::buffer::{Aligned, LINE};
use crate::transpose::{square_of, transpose};

/// Pixels of 2×2 squares side by side, so that a 7×7 kernel with stride 2 becomes a 4×4 kernel with stride 1.
const SQUARE: usize = 2;

/// What the tiles read.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    /// Size `[height, width]` of the images that the tiles read.
    pub(super) size: [usize; 2],
    /// Their channels.
    pub(super) channels: usize,
    /// Zeros before the first row and column.
    pub(super) padding: [usize; 2],
    /// Channels of a product: all of them, a part of them, or those of the groups that share an output's vector.
    pub(super) depth: usize,
    /// Channels of a group, where several groups share a vector.
    pub(super) narrow: Option<usize>,
    /// Whether squares of the input become pixels first.
    folded: bool,
    /// Whether the weights are those of the convolution whose gradient of the input this is.
    transposed: bool,
}

impl View {
    /// The input as it is. Groups that are smaller than a vector of `lanes` channels share vectors; where they do not fill
    /// them, there is no view.
    pub(super) fn plain(geometry: &ConvGeometry, input: [usize; 2], lanes: usize) -> Option<Self> {
        let depth = match geometry.groups {
            1 => geometry.in_channels,
            _ => geometry.group_in().max(lanes),
        };
        (geometry.groups == 1 || geometry.groups_fill(lanes)).then_some(View {
            size: input,
            channels: geometry.in_channels,
            padding: geometry.padding,
            depth,
            narrow: (geometry.groups > 1 && geometry.group_in() < lanes).then_some(geometry.group_in()),
            folded: false,
            transposed: false,
        })
    }

    /// The input as it is, where a product sums over one of `parts` parts of the channels.
    pub(super) fn parts(geometry: &ConvGeometry, input: [usize; 2], parts: usize) -> Self {
        View {
            size: input,
            channels: geometry.in_channels,
            padding: [0, 0],
            depth: geometry.in_channels / parts,
            narrow: None,
            folded: false,
            transposed: false,
        }
    }

    /// Squares of 2×2 pixels of the input as pixels of four times the channels: tap `t` of output `o` reads pixel
    /// `2o + t − 3`, which is half `(t + 1) mod 2` of square `o + (t + 1) div 2 − 2`.
    pub(super) fn squares(geometry: &ConvGeometry, input: [usize; 2]) -> Self {
        View {
            size: input.map(|size| size.div_ceil(SQUARE)),
            channels: geometry.in_channels * SQUARE * SQUARE,
            padding: [2, 2],
            depth: geometry.in_channels * SQUARE * SQUARE,
            narrow: None,
            folded: true,
            transposed: false,
        }
    }

    /// Channels that an output's product sums over.
    pub(super) fn summed(&self) -> usize {
        self.narrow.unwrap_or(self.depth)
    }

    /// The view of the gradient of a convolution's input, which is a convolution of the output's gradient with the weights
    /// turned by 180° and their channels exchanged.
    pub(super) fn transposed(self) -> Self {
        View { transposed: true, ..self }
    }

    /// Whether the weights are those of the convolution whose gradient of the input this is.
    pub(super) fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// The weights (HWIO in `weight`) between the at most LINE input channels from `input` on, one row each, and the output
    /// channels from `first` on, at a tap as the tiles see it.
    #[inline(always)]
    pub(super) fn weights(
        &self,
        geometry: &ConvGeometry,
        weight: &[f32],
        [ky, kx]: [usize; 2],
        [input, first]: [usize; 2],
        count: usize,
        to: &mut [[f32; LINE]],
    ) {
        let (inputs, outputs) = (geometry.group_in(), geometry.out_channels);
        if self.transposed {
            return self.block(geometry, weight, self.tap(geometry, [ky, kx]), [input, first], count, to);
        }
        for (channel, to) in (input..).zip(to) {
            *to = [0.0; LINE];
            let Some(row) = self.row(geometry, [ky, kx], channel) else { continue };
            let weights = &weight[row * outputs + first..][..count];
            if let (1, Ok(weights)) = (geometry.groups, weights.try_into()) {
                *to = weights;
                continue;
            }
            let group = if self.folded { 0 } else { channel / inputs };
            for (output, (to, &weight)) in to.iter_mut().zip(weights).enumerate() {
                if (first + output) / geometry.group_out() == group {
                    *to = weight;
                }
            }
        }
    }

    /// Asks for what [`weights`](Self::weights) will read for a whole line of input channels, where that stands in lines.
    #[inline(always)]
    pub(super) fn expect<P: Precision>(
        &self,
        precision: P,
        geometry: &ConvGeometry,
        weight: &[f32],
        place: [usize; 2],
        channels: [usize; 2],
    ) {
        if geometry.groups == 1 && !self.folded {
            let (first, step) = self.lines(geometry, self.tap(geometry, place), channels);
            for line in 0..LINE {
                precision.prefetch(weight.as_ptr().wrapping_add(first + line * step));
            }
        }
    }

    /// The number of a tap as the weights are stored.
    #[inline(always)]
    fn tap(&self, geometry: &ConvGeometry, [ky, kx]: [usize; 2]) -> usize {
        let [height, width] = geometry.kernel;
        match self.transposed {
            true => (height - 1 - ky) * width + width - 1 - kx,
            false => ky * width + kx,
        }
    }

    /// Where the weights between the input channels from `input` on and the output channels from `first` on begin at a tap, of a
    /// convolution of one group, and the values between two of their lines: one for each input channel, or for each output channel
    /// of a transposed view.
    #[inline(always)]
    fn lines(&self, geometry: &ConvGeometry, tap: usize, [input, first]: [usize; 2]) -> (usize, usize) {
        let (inputs, outputs) = (geometry.in_channels, geometry.out_channels);
        match self.transposed {
            true => ((tap * outputs + first) * inputs + input, inputs),
            false => ((tap * inputs + input) * outputs + first, outputs),
        }
    }

    /// As [`weights`](Self::weights), at tap number `tap` of a convolution of one group as the weights are stored.
    #[inline(always)]
    pub(super) fn block(
        &self,
        geometry: &ConvGeometry,
        weight: &[f32],
        tap: usize,
        [input, first]: [usize; 2],
        count: usize,
        to: &mut [[f32; LINE]],
    ) {
        let (begin, step) = self.lines(geometry, tap, [input, first]);
        let (count, length) = if self.transposed { (count, to.len()) } else { (to.len(), count) };
        let lines = square_of([count, length], |line| &weight[begin + line * step..]);
        let rows = if self.transposed { transpose(&lines) } else { lines };
        to.copy_from_slice(&rows[..to.len()]);
    }

    /// The row of weights (HWIO) of an input `channel` at a tap as the tiles see it, where there is one.
    #[inline(always)]
    pub(super) fn row(&self, geometry: &ConvGeometry, [ky, kx]: [usize; 2], channel: usize) -> Option<usize> {
        let inputs = geometry.group_in();
        let row = |ky: usize, kx: usize| (ky * geometry.kernel[1] + kx) * inputs + channel % inputs;
        if !self.folded {
            return Some(row(ky, kx));
        }
        let half = channel / inputs;
        // Tap 2u + v − 1; there is none before the first.
        let ky = (SQUARE * ky + half / SQUARE).checked_sub(1)?;
        let kx = (SQUARE * kx + half % SQUARE).checked_sub(1)?;
        Some(row(ky, kx))
    }

    /// Values of the copy that [`of`](Self::of) makes of `images` images.
    pub(super) fn copied(&self, images: usize) -> usize {
        if self.folded { images * self.size[0] * self.size[1] * self.channels } else { 0 }
    }

    /// The images as the tiles read them: `x` itself, or a rearranged copy in `copy`.
    pub(super) fn of<'a>(
        &self,
        cx: &Context,
        geometry: &ConvGeometry,
        input: [usize; 2],
        x: &'a [f32],
        copy: &'a mut Aligned,
    ) -> &'a [f32] {
        if !self.folded {
            return x;
        }
        let [height, width] = input;
        let channels = geometry.in_channels;
        let images = x.len() / (height * width * channels);
        let row = self.size[1] * self.channels;
        let length = self.copied(images);
        copy.grow(length);
        let copy = &mut copy.values_mut()[..length];
        cx.pool().pieces(copy, row, |index, to| {
            let (image, square) = (index / self.size[0], index % self.size[0]);
            let first = (image * height + SQUARE * square) * width * channels;
            let lines = (height - SQUARE * square).min(SQUARE);
            let x = &x[first..first + lines * width * channels];
            match channels {
                1 => fold_row::<2>(x, width, to),
                2 => fold_row::<4>(x, width, to),
                3 => fold_row::<6>(x, width, to),
                _ => fold_row::<8>(x, width, to),
            }
        });
        copy
    }
}

/// One or two rows of `width` pixels as a row of squares; `PAIR` values are two pixels.
fn fold_row<const PAIR: usize>(x: &[f32], width: usize, to: &mut [f32]) {
    let line = width * PAIR / SQUARE;
    if x.len() < SQUARE * line {
        to.fill(0.0);
    }
    for (half, x) in x.chunks_exact(line).enumerate() {
        let squares = to.chunks_exact_mut(SQUARE * PAIR);
        let (pairs, rest) = x.as_chunks::<PAIR>();
        for (pair, square) in pairs.iter().zip(squares) {
            square[half * PAIR..][..PAIR].copy_from_slice(pair);
        }
        if !rest.is_empty() {
            let last = to.len() - (SQUARE - half) * PAIR;
            to[last..last + rest.len()].copy_from_slice(rest);
            to[last + rest.len()..last + PAIR].fill(0.0);
        }
    }
}
