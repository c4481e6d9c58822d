//! Mean and variance of each channel.

use super::partials;
use super::{Scratch, Totals};
use crate::follow::{Chunks, Follow, Work};
use crate::simd::{Simd, Task};
use crate::vector::{BLOCK_CHANNELS, Columns, columns, read, write};
use crate::{Context, Level};
use std::ops::Range;

/// Rows whose sums are taken in `f32`.
const TILE: usize = 32;

/// The statistics of a tensor that is being written: a convolution works on its rows as they are there, through
/// [`follow`](Self::follow).
#[derive(Debug)]
pub struct Statistics<'a> {
    level: Level,
    chunks: Chunks,
    scratch: &'a mut Scratch,
    totals: Totals,
}

impl<'a> Statistics<'a> {
    /// For a tensor of shape `[N, H, W, C]`.
    ///
    /// # Panics
    /// When the tensor is empty.
    pub fn new(context: &Context, scratch: &'a mut Scratch, [n, h, w, channels]: [usize; 4]) -> Self {
        let rows = n * h * w;
        assert!(rows > 0 && channels > 0, "statistics of nothing");
        let chunks = partials::chunks(rows, channels, w);
        let totals = scratch.take(chunks);
        Statistics { level: context.level(), chunks, scratch, totals }
    }

    /// What works on the tensor's rows as they are written.
    pub fn follow(&mut self) -> Follow<'_> {
        self.scratch.partials.follow(self.chunks, self)
    }

    /// Takes the moments of a chunk.
    fn chunk(&self, chunk: usize, x: &[f32]) {
        let row_length = self.chunks.channels;
        self.scratch.partials.add(self.chunks, chunk, |channels, mean, squares| {
            self.level.run(Chunk { x, row_length, channels, mean, squares });
        });
    }

    /// The mean and the biased variance (divided by the number of rows) of each channel, `[C]`, of a tensor all of whose rows
    /// have been worked on.
    ///
    /// # Panics
    /// When `mean` or `var` has another length, or rows are missing.
    pub fn finish(self, context: &Context, mean: &mut [f32], var: &mut [f32]) {
        let Statistics { chunks, scratch, mut totals, .. } = self;
        assert_eq!([mean.len(), var.len()], [chunks.channels; 2], "a mean and a variance for each channel");
        scratch.partials.merge(context, chunks, &mut totals, |rows, totals, means, squares| {
            let merge = Merge::new(rows.start, rows.len());
            for ((total, &mean), &squares) in totals.iter_mut().zip(means).zip(squares) {
                let merged = merge.of(Moments::from(*total), Moments { mean, squares });
                *total = [merged.mean, merged.squares];
            }
        });
        for ((&total, mean), var) in totals.iter().zip(mean).zip(var) {
            let total = Moments::from(total);
            *mean = total.mean as f32;
            *var = (total.squares / chunks.rows as f64) as f32;
        }
        scratch.give(totals);
    }
}

impl Work for Statistics<'_> {
    fn run(&self, chunk: usize, values: &mut [f32]) {
        self.chunk(chunk, values);
    }
}

/// The mean and the biased variance (divided by the number of rows) of each channel of `x`, of shape `[N, H, W, C]`; `mean` and
/// `var` are `[C]`. They have the same bits as [`Statistics`] taken while `x` is written.
///
/// `x` is read from memory once. Each stretch of 32 rows is centred by its own mean before it is squared, and stretches
/// are merged in `f64` (Chan, Golub & LeVeque 1983), so a mean far above the standard deviation does no harm.
///
/// # Panics
/// When a length is not the shape's, or `x` is empty or no whole number of rows.
pub fn statistics(
    context: &Context,
    (x, shape): (&[f32], [usize; 4]),
    scratch: &mut Scratch,
    mean: &mut [f32],
    var: &mut [f32],
) {
    assert_eq!(super::rows("x", x, shape[3]), shape[..3].iter().product(), "rows of x");
    let all = Statistics::new(context, scratch, shape);
    context.pool().run(all.chunks.len(), |chunk| all.chunk(chunk, &x[all.chunks.values(chunk)]));
    all.finish(context, mean, var);
}

/// Mean, and sum of the squared distances from it.
#[derive(Clone, Copy)]
struct Moments {
    mean: f64,
    squares: f64,
}

impl From<[f64; 2]> for Moments {
    fn from([mean, squares]: [f64; 2]) -> Self {
        Moments { mean, squares }
    }
}

/// Merges the moments of two sets whose sizes it knows.
struct Merge {
    /// Share of the second set in the union.
    share: f64,
    /// Weight of the squared distance between the means.
    between: f64,
}

impl Merge {
    #[inline(always)]
    fn new(first: usize, second: usize) -> Self {
        let share = second as f64 / (first + second) as f64;
        Merge { share, between: first as f64 * share }
    }

    #[inline(always)]
    fn of(&self, first: Moments, second: Moments) -> Moments {
        let distance = second.mean - first.mean;
        Moments {
            mean: first.mean + distance * self.share,
            squares: first.squares + second.squares + distance * distance * self.between,
        }
    }
}

/// One task: the moments of some channels over a chunk of rows.
struct Chunk<'a> {
    x: &'a [f32],
    row_length: usize,
    channels: Range<usize>,
    mean: &'a mut [f64],
    squares: &'a mut [f64],
}

impl Task for Chunk<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (width, rows) = (self.channels.len(), self.x.len() / self.row_length);
        for start in (0..rows).step_by(TILE) {
            let mut tile = Tile {
                x: self.x,
                row_length: self.row_length,
                rows: start..(start + TILE).min(rows),
                first: self.channels.start,
                mean: self.mean,
                squares: self.squares,
            };
            columns(simd, width, &mut tile);
        }
    }
}

/// A few rows, whose moments are merged into those of the rows before them.
struct Tile<'a> {
    x: &'a [f32],
    row_length: usize,
    rows: Range<usize>,
    first: usize,
    mean: &'a mut [f64],
    squares: &'a mut [f64],
}

impl Columns for Tile<'_> {
    #[inline(always)]
    fn block<S: Simd, const V: usize>(&mut self, simd: S, from: usize, count: usize) {
        let width = (V - 1) * S::LANES + count;
        let row = |row: usize| &self.x[row * self.row_length + self.first + from..][..width];
        let mut centre = [simd.zero(); V];
        for index in self.rows.clone() {
            let row = row(index);
            for (v, centre) in centre.iter_mut().enumerate() {
                *centre = simd.add(*centre, read(simd, row, v * S::LANES, count));
            }
        }
        let rows = self.rows.len();
        for centre in &mut centre {
            *centre = simd.mul(*centre, simd.splat(1.0 / rows as f32));
        }
        let (mut rest, mut squares) = ([simd.zero(); V], [simd.zero(); V]);
        for index in self.rows.clone() {
            let row = row(index);
            for v in 0..V {
                let distance = simd.sub(read(simd, row, v * S::LANES, count), centre[v]);
                rest[v] = simd.add(rest[v], distance);
                squares[v] = simd.mul_add(distance, distance, squares[v]);
            }
        }
        let mut lanes = [[0.0; BLOCK_CHANNELS]; 3];
        for (values, lanes) in [centre, rest, squares].iter().zip(&mut lanes) {
            for (v, &value) in values.iter().enumerate() {
                write(simd, lanes, v * S::LANES, S::LANES, value);
            }
        }
        let merge = Merge::new(self.rows.start, rows);
        let (means, sums) = (&mut self.mean[from..][..width], &mut self.squares[from..][..width]);
        for lane in 0..width {
            let [centre, rest, squares] = [0, 1, 2].map(|kind: usize| f64::from(lanes[kind][lane]));
            // `centre` is a rounded mean; what it leaves over corrects both moments.
            let correction = rest / rows as f64;
            let tile = Moments { mean: centre + correction, squares: squares - rest * correction };
            let merged = merge.of(Moments { mean: means[lane], squares: sums[lane] }, tile);
            (means[lane], sums[lane]) = (merged.mean, merged.squares);
        }
    }
}
