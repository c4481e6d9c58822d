//! A convolution and the max pool after it, strip by strip: what the pool reads never leaves the cache.

use super::algorithm::{F2, F3, F4, F4Of4, F5, S3};
use super::memory::Own;
use super::products::Ahead;
use super::run::Run;
use super::schedule::Cut;
use super::square::Square;
use super::{FastConv, FastScratch, FastWeights, Tiling, Transform};
use crate::Context;
use crate::gemm::Epilogue;
use crate::parallel::{SharedMut, Space, with_free};
use crate::pool::MaxPool;
use std::ops::Range;

/// Values of a strip of outputs at most: it stays in the L2 cache beside what its blocks need.
const STRIP: usize = 96 << 10;

/// A fast convolution whose outputs a max pool reads.
#[derive(Debug, Clone)]
pub struct PooledConv {
    conv: FastConv,
    pool: MaxPool,
}

impl FastConv {
    /// Whether a [`PooledConv`] can be made of the convolution: its weights stay in a cache, and its tiles are rows.
    pub fn pools(&self) -> bool {
        self.tiling.parts() == 1 && self.geometry.groups == 1 && !Cut::new(self, false).streamed
    }
}

impl PooledConv {
    /// The convolution with the pool after it.
    ///
    /// # Panics
    /// When [`FastConv::pools`] says no, or the pool is not one of the convolution's output.
    pub fn new(conv: FastConv, pool: MaxPool) -> Self {
        assert!(conv.pools(), "the weights do not stay in a cache");
        assert_eq!(pool.input(), conv.output, "the pool's input");
        PooledConv { conv, pool }
    }

    /// Values of an output row of the convolution.
    fn line(&self) -> usize {
        self.conv.output[1] * self.conv.geometry.out_channels
    }

    /// Output rows of a row of tiles.
    fn tile_rows(&self) -> usize {
        self.conv.rows.first().map_or(1, |span| span.outputs)
    }

    /// Rows of tiles of a strip.
    fn strip_rows(&self) -> usize {
        (STRIP / (self.line() * self.tile_rows()).max(1)).clamp(1, self.conv.rows.len().max(1))
    }

    /// Values of a strip, with the rows that the pool has not finished reading.
    fn strip_len(&self) -> usize {
        let kept = (0..self.pool.output()[0]).map(|row| self.pool.rows(row).len()).max().unwrap_or(0);
        (self.strip_rows() * self.tile_rows() + kept) * self.line()
    }

    /// Makes room for [`forward`](Self::forward) on at most `images` images with `threads` threads, which then allocates
    /// nothing.
    pub fn reserve(&self, images: usize, threads: usize, scratch: &mut FastScratch) {
        self.conv.reserve(images, threads, scratch);
        for own in &mut scratch.memory.own[..threads] {
            own.get_mut().strip.grow(self.strip_len());
        }
    }

    /// `y = max_pool(conv(x))`, with the epilogue between the two; the same bits as one after the other.
    ///
    /// # Panics
    /// As [`FastConv::forward`]; when there is a residual, or something follows the convolution.
    pub fn forward(
        &self,
        cx: &Context,
        x: &[f32],
        weights: &FastWeights,
        epilogue: Epilogue,
        scratch: &mut FastScratch,
        y: &mut [f32],
    ) {
        let (conv, [height, width]) = (&self.conv, self.pool.output());
        assert!(epilogue.other().is_none() && epilogue.follow.is_none(), "a pool alone reads what it pools");
        let images = conv.check(cx, x, &epilogue);
        assert_eq!(y.len(), images * height * width * conv.geometry.out_channels, "values of the output");
        let threads = cx.pool().available();
        self.reserve(images, threads, scratch);
        let x = conv.view.of(cx, &conv.geometry, conv.input, x, &mut scratch.copy);
        let nowhere = SharedMut(std::ptr::null_mut());
        let (factor, factors) = (weights.factor, conv.factors_of(weights.factor));
        let weights = conv.packed(weights);
        let run = Run { conv, cx, x, prologue: None, weights, factor, factors, epilogue, y: nowhere };
        let own = &scratch.memory.own[..threads];
        match conv.tiling {
            Tiling::F2 => self.images::<Square<F2>>(&run, images, own, y),
            Tiling::F3 => self.images::<Square<F3>>(&run, images, own, y),
            Tiling::F4 => self.images::<Square<F4>>(&run, images, own, y),
            Tiling::F5 => self.images::<Square<F5>>(&run, images, own, y),
            Tiling::S3 => self.images::<Square<S3>>(&run, images, own, y),
            Tiling::S7 => self.images::<Square<F4Of4>>(&run, images, own, y),
            Tiling::Strassen | Tiling::Twice => unreachable!("refused when it was made"),
        }
    }

    /// Computes all images, each in one part or in as many as there are threads.
    fn images<T: Transform>(&self, run: &Run, images: usize, own: &[Space<Own>], y: &mut [f32]) {
        let threads = run.cx.pool().available();
        let parts = if images.is_multiple_of(threads) { 1 } else { threads };
        let [rows, width] = self.pool.output();
        let line = width * self.conv.geometry.out_channels;
        let y = SharedMut(y.as_mut_ptr());
        run.cx.pool().run(images * parts, |task| {
            let (image, part) = (task / parts, task % parts);
            let part = rows * part / parts..rows * (part + 1) / parts;
            // SAFETY: parts are disjoint and lie within y, which the caller borrows mutably for the whole call.
            let y = unsafe {
                let first = y.get().add((image * rows + part.start) * line);
                std::slice::from_raw_parts_mut(first, part.len() * line)
            };
            with_free(own, |own| self.part::<T>(run, image, part, own, y));
        });
    }

    /// Rows `part` of the pooled outputs of an image.
    fn part<T: Transform>(&self, run: &Run, image: usize, part: Range<usize>, own: &mut Own, y: &mut [f32]) {
        let (conv, pool, line) = (&self.conv, &self.pool, self.line());
        let (channels, columns) = (conv.geometry.out_channels, conv.columns.len());
        own.strip.grow(self.strip_len());
        // The output rows that the strip holds, and the next row of tiles.
        let before = |start: usize| conv.rows.partition_point(|span| span.start + span.outputs <= start);
        let mut next = before(pool.rows(part.start).start);
        // The row of tiles behind the last one that the part needs.
        let end = part.clone().next_back().map_or(0, |row| pool.rows(row).end);
        let enough = conv.rows.partition_point(|span| span.start < end);
        let mut held = conv.rows[next].start..conv.rows[next].start;
        for (row, y) in part.zip(y.chunks_exact_mut(pool.output()[1] * channels)) {
            let needed = pool.rows(row);
            while needed.end > held.end {
                let kept = needed.start.clamp(held.start, held.end)..held.end;
                let from = (kept.start - held.start) * line..(kept.end - held.start) * line;
                let mut strip = std::mem::take(&mut own.strip);
                strip.values_mut().copy_within(from, 0);
                let last = enough.min(next + self.strip_rows());
                let origin = image * conv.output[0] * line + kept.start * line;
                let run = Run { y: SharedMut(strip.as_mut_ptr().wrapping_sub(origin)), ..*run };
                let (tiles, start) = ((last - next) * columns, (image * conv.rows.len() + next) * columns);
                let cut = Cut::new(conv, false);
                let blocks = tiles.div_ceil(cut.most);
                for index in 0..blocks {
                    let block = cut.block(tiles, blocks, index);
                    run.alone::<T>(start + block.start..start + block.end, 0..1, &mut Ahead::Nothing, own);
                }
                own.strip = strip;
                let span = conv.rows[last - 1];
                (held, next) = (kept.start..span.start + span.outputs, last);
            }
            let x = &own.strip.values()[..held.len() * line];
            pool.infer_one(run.cx, channels, (x, held.start), row, y);
        }
    }
}
