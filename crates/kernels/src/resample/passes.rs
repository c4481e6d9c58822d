//! The two passes. Plain loops over arrays, compiled for each level: the compiler turns them into vectors.
//!
//! Sums cannot overflow: weights add up to 1, and in no filter do their absolute values add up to 2, so a sum stays below
//! 255 · 2 · 2²² < 2³¹. Wrapping arithmetic says that to the compiler.

use super::{HALF, Region, Taps, rounded};
use crate::simd::{Simd, Task};

/// Samples that are computed at once.
const LANES: usize = 16;

/// Scaling along rows: every row from `first_row` on for which there is place in `out`.
pub(super) struct Columns<'a> {
    pub(super) region: Region<'a>,
    pub(super) first_row: usize,
    pub(super) taps: &'a Taps,
    /// `[rows, columns, channels]`.
    pub(super) out: &'a mut [u8],
}

/// [`Columns`] of one channel: 16 rows at once.
pub(super) struct Grey<'a>(pub(super) Columns<'a>);
/// [`Columns`] of three channels: 4 rows at once, with an empty fourth channel.
pub(super) struct Colour<'a>(pub(super) Columns<'a>);

impl Task for Grey<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        self.0.run::<1, LANES>();
    }
}

impl Task for Colour<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        self.0.run::<3, { LANES / 4 }>();
    }
}

impl Columns<'_> {
    /// `ROWS` rows of `CHANNELS` channels share the lanes.
    #[inline(always)]
    fn run<const CHANNELS: usize, const ROWS: usize>(self) {
        let Columns { region, first_row, taps, out } = self;
        let place = LANES / ROWS;
        let narrow = taps.len() * CHANNELS;
        let reach = taps.reach();
        // The rows' pixels one beside the other, pixel by pixel: what a position is made of lies in one run.
        let mut woven = vec![[0u8; LANES]; reach.len()];
        for (block, out) in out.chunks_mut(ROWS * narrow).enumerate() {
            let rows = out.len() / narrow;
            for row in 0..rows {
                let samples = region.row(first_row + block * ROWS + row);
                let samples = &samples[reach.start * CHANNELS..reach.end * CHANNELS];
                for (pixel, lanes) in samples.chunks_exact(CHANNELS).zip(&mut woven) {
                    lanes[row * place..][..CHANNELS].copy_from_slice(pixel);
                }
            }
            for position in 0..taps.len() {
                let (first, weights) = taps.at(position);
                let mut sums = [HALF; LANES];
                for (samples, &weight) in woven[first - reach.start..].iter().zip(weights) {
                    for lane in 0..LANES {
                        sums[lane] = sums[lane].wrapping_add(i32::from(samples[lane]).wrapping_mul(weight));
                    }
                }
                let mut pixels = [0; LANES];
                for lane in 0..LANES {
                    pixels[lane] = rounded(sums[lane]);
                }
                for row in 0..rows {
                    out[row * narrow + position * CHANNELS..][..CHANNELS]
                        .copy_from_slice(&pixels[row * place..][..CHANNELS]);
                }
            }
        }
    }
}

/// Scaling along columns.
pub(super) struct Rows<'a> {
    /// The rows of the input from `first_row` on.
    pub(super) region: Region<'a>,
    pub(super) first_row: usize,
    pub(super) taps: &'a Taps,
    /// A row of the region's width for each position of the taps.
    pub(super) out: &'a mut [u8],
}

impl Task for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        /// Samples whose sums stay in registers.
        const RUN: usize = 4 * LANES;
        let Rows { region: Region { samples, pitch, size, channels }, first_row, taps, out } = self;
        for (position, out) in out.chunks_exact_mut(size[1] * channels).enumerate() {
            let (first, weights) = taps.at(position);
            let rows = &samples[(first - first_row) * pitch..];
            let mut column = 0;
            let (long, rest) = out.as_chunks_mut::<RUN>();
            let (short, rest) = rest.as_chunks_mut::<LANES>();
            for out in long {
                *out = weighted(rows, pitch, column, weights);
                column += RUN;
            }
            for out in short {
                *out = weighted(rows, pitch, column, weights);
                column += LANES;
            }
            for out in rest {
                [*out] = weighted(rows, pitch, column, weights);
                column += 1;
            }
        }
    }
}

/// The weighted sums of `N` samples below each other, from column `column` on.
#[inline(always)]
fn weighted<const N: usize>(rows: &[u8], pitch: usize, column: usize, weights: &[i32]) -> [u8; N] {
    let mut sums = [HALF; N];
    for (row, &weight) in rows.chunks(pitch).zip(weights) {
        let samples: &[u8; N] = row[column..].first_chunk().expect("a run lies inside its row");
        for lane in 0..N {
            sums[lane] = sums[lane].wrapping_add(i32::from(samples[lane]).wrapping_mul(weight));
        }
    }
    let mut samples = [0; N];
    for lane in 0..N {
        samples[lane] = rounded(sums[lane]);
    }
    samples
}
