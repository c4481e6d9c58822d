//! How the tiles of a forward pass are cut into blocks and shared out among threads.

use super::run::Weights;
use super::tiles::MAX_TILES;
use super::{FastConv, PANEL, narrow};
use std::ops::Range;

/// Values of packed weights beyond which threads share out the panels, so that each reads only a part of them: twice what an L2 cache
/// of 1 MiB holds.
const STREAMED: usize = 1 << 19;

/// Values of transformed weights beyond which it takes longer to write and read them than to transform them for each block of tiles.
const MANY: usize = 1 << 20;

/// Values of streamed weights that each thread reads for itself rather than share a transformed input with others, which
/// costs what moves from one core's cache to another's: about half of what the last cache holds.
const READ_BY_ALL: usize = 1 << 22;

/// Tiles of a thread for which it pays to read, or to transform, all weights.
const ENOUGH: usize = 24;

/// Values of V at most, where the weights stream by, and where each block transforms them in passing: fewer blocks do so less often.
const TRANSFORMED: usize = 1 << 20;
const TRANSFORMED_IN_PASSING: usize = 3 << 19;

/// Pixels of a block of tiles that are pixels in a row, at most.
const MOST_PIXELS: usize = 256;

/// Tiles of a small block: about as many as two calls of the shortest micro-kernels take.
const SMALL: usize = 12;

/// Channels that are transformed together where there are groups: enough to read pixels in long runs.
const TOGETHER: usize = 128;

/// Transformed values, of weights or of V, up to which each thread makes them for itself: they stay in its L2 cache.
const APART: usize = 1 << 18;

/// Threads up to which each transforms the whole input of a block of tiles for itself rather than a part of it for all: what stands in
/// one core's cache comes slowly to another, to one far away more slowly than it can be computed. With more threads it would be
/// computed too often.
const APART_THREADS: usize = 2;

/// Sections that are transformed together.
pub(super) fn together(conv: &FastConv) -> usize {
    (TOGETHER / conv.view.depth).clamp(1, conv.sections().len())
}

/// Values of V up to which threads that share a block of tiles transform its input each for itself.
pub(super) fn apart_values(threads: usize) -> usize {
    if threads <= APART_THREADS { APART } else { 0 }
}

/// Whether each thread reads all of the streamed weights for its share of `tiles` tiles.
pub(super) fn reads_all(conv: &FastConv, tiles: usize, threads: usize) -> bool {
    tiles >= ENOUGH * threads && conv.weight_values() <= READ_BY_ALL
}

/// How a pass over `tiles` tiles takes weights that are used once, where not all threads transform them before. Many are transformed
/// panel by panel in the cache while their products are made. Few are transformed by each thread for itself, sooner than they come from
/// another core's cache.
pub(super) fn plain_weights<'a>(
    conv: &FastConv,
    tiles: usize,
    threads: usize,
    weight: &'a [f32],
) -> Option<Weights<'a>> {
    let values = conv.weight_values();
    if covers_lines(conv) && values > MANY {
        return Some(Weights::Plain(weight));
    }
    let apart = values <= APART && tiles >= ENOUGH * threads && completes(conv, tiles, threads);
    apart.then_some(Weights::Apart(weight))
}

/// Whether tiles cover lines of pixels, with all channels in one section.
fn covers_lines(conv: &FastConv) -> bool {
    conv.tiling.parts() == 1 && conv.geometry.groups == 1
}

/// Whether blocks of tiles, which cover lines of pixels, go through all output channels on one thread, so that their pixels are complete
/// behind them.
pub(super) fn completes(conv: &FastConv, tiles: usize, threads: usize) -> bool {
    covers_lines(conv) && Schedule::new(conv, tiles, threads, false).share == Share::Block
}

/// How tiles are cut into blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    /// The most tiles of a block.
    pub(super) most: usize,
    /// Whether the weights come from memory.
    pub(super) streamed: bool,
    /// Tiles of a call of the micro-kernels, where a block takes several and all but the last should be full.
    call: usize,
}

impl Cut {
    /// Small weights stay in the L2 cache, beside V and M of a small block. Large ones stream by: they should meet as many
    /// tiles as possible, the more where they are transformed `in_passing`.
    pub(super) fn new(conv: &FastConv, in_passing: bool) -> Self {
        let points = conv.tiling.points();
        let kernels = conv.level.kernels(conv.operands);
        let sections = conv.sections().len();
        let streamed = conv.geometry.groups == 1 && conv.weight_values() > STREAMED;
        let vectors = PANEL.min(conv.outputs() / sections / kernels.lanes).max(1);
        let tallest = kernels.max_blocked_rows(vectors);
        // M of many products would leave the L2 cache.
        let most_tiles = MAX_TILES.min(MOST_PIXELS / conv.tiling.parts());
        let transformed = if in_passing { TRANSFORMED_IN_PASSING } else { TRANSFORMED };
        let most = match (streamed, conv.view.narrow) {
            (true, _) => (transformed / (points * conv.view.depth)).clamp(SMALL, most_tiles),
            (false, Some(_)) => narrow::MOST,
            (false, None) => tallest * SMALL.div_ceil(tallest),
        };
        let call = if streamed || conv.view.narrow.is_some() || tallest >= SMALL { 1 } else { tallest };
        Cut { most, streamed, call }
    }

    /// The tiles of block `index` of `blocks` blocks that are as equal as can be, but for what makes calls full.
    pub(super) fn block(&self, tiles: usize, blocks: usize, index: usize) -> Range<usize> {
        let call = self.whole_call(tiles, blocks);
        let start = |index: usize| (tiles * index / blocks).next_multiple_of(call).min(tiles);
        start(index)..start(index + 1)
    }

    /// Tiles that none of so many blocks exceeds.
    pub(super) fn longest(&self, tiles: usize, blocks: usize) -> usize {
        tiles.div_ceil(blocks).next_multiple_of(self.whole_call(tiles, blocks)).min(tiles)
    }

    /// Tiles of a call that blocks are not cut within, where each has enough of them.
    fn whole_call(&self, tiles: usize, blocks: usize) -> usize {
        if tiles >= blocks * self.call { self.call } else { 1 }
    }
}

/// What a thread takes of the work on a block of tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    /// All of it: threads take blocks in turn.
    Block,
    /// The products of some panels, for which it transforms the input itself.
    Panels,
    /// The same, with an input that the threads transform together.
    PanelsAndInput,
}

/// How the work on a batch is cut. The bits of the result do not depend on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    /// Blocks of tiles.
    pub(super) blocks: usize,
    /// What threads take of it.
    pub(super) share: Share,
    /// How the tiles become blocks.
    pub(super) cut: Cut,
}

impl Schedule {
    /// The cut of so many tiles, whose weights are transformed `in_passing` or not, which does not change what is complete when.
    pub(super) fn new(conv: &FastConv, tiles: usize, threads: usize, in_passing: bool) -> Self {
        let cut = Cut::new(conv, in_passing);
        let Cut { most, streamed, .. } = cut;
        let blocks = tiles.div_ceil(most);
        let few = match streamed {
            true => !reads_all(conv, tiles, threads),
            false => blocks < 2 * threads,
        };
        let values = conv.tiling.points() * conv.section_len(most.min(tiles));
        let share = match () {
            () if threads == 1 || conv.geometry.groups > 1 || !few => Share::Block,
            () if values <= apart_values(threads) && conv.panels(0).len() > 1 => Share::Panels,
            () => Share::PanelsAndInput,
        };
        let blocks = if share == Share::Block { blocks.next_multiple_of(threads) } else { blocks };
        Schedule { blocks: blocks.min(tiles), share, cut }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::conv::{ConvGeometry, FastScratch, Tiling};
    use crate::gemm::Epilogue;
    use crate::reference::conv as oracle;
    use crate::testing::{Random, assert_same_bits_for_all_threads, contexts};
    use crate::{Level, Operands};

    /// Batches large and small enough for each way of cutting the work.
    pub(in super::super) fn scheduled() -> Vec<(Tiling, ConvGeometry, usize, [usize; 2])> {
        vec![
            (Tiling::F4, ConvGeometry::square(20, 36, 3, 1), 5, [23, 22]),
            (Tiling::F4, ConvGeometry::square(300, 70, 3, 1), 9, [14, 14]),
            (Tiling::F4, ConvGeometry::square(256, 128, 3, 1), 6, [14, 14]),
            (Tiling::F2, ConvGeometry::square(340, 50, 3, 1), 2, [7, 7]),
            (Tiling::F5, ConvGeometry::square(40, 72, 3, 1), 3, [14, 14]),
            (Tiling::S3, ConvGeometry::square(40, 72, 3, 2), 3, [28, 27]),
            (Tiling::S7, ConvGeometry::square(3, 40, 7, 2), 3, [33, 30]),
            (Tiling::Strassen, ConvGeometry::square(96, 160, 1, 1), 5, [15, 15]),
            (Tiling::Strassen, ConvGeometry::square(1024, 640, 1, 2), 2, [14, 13]),
            (Tiling::Twice, ConvGeometry::square(64, 192, 1, 1), 5, [13, 15]),
            (Tiling::Twice, ConvGeometry::square(1024, 640, 1, 2), 2, [14, 13]),
            (Tiling::F4, ConvGeometry { groups: 32, ..ConvGeometry::square(128, 128, 3, 1) }, 3, [23, 22]),
            (Tiling::S3, ConvGeometry { groups: 32, ..ConvGeometry::square(256, 256, 3, 2) }, 3, [23, 22]),
        ]
    }

    #[test]
    fn blocks_follow_each_other_and_make_full_calls() {
        for (tiles, blocks, call) in (1..70_usize)
            .flat_map(|tiles| (1..=tiles).flat_map(move |blocks| [1, 4, 6].map(|call| (tiles, blocks, call))))
        {
            let cut = Cut { most: usize::MAX, streamed: false, call };
            let all: Vec<_> = (0..blocks).map(|index| cut.block(tiles, blocks, index)).collect();
            assert_eq!(all.iter().flat_map(Clone::clone).collect::<Vec<_>>(), (0..tiles).collect::<Vec<_>>());
            let lengths = 1..=cut.longest(tiles, blocks);
            assert!(all.iter().all(|block| lengths.contains(&block.len())), "{tiles} {cut:?}: {all:?}");
            if tiles >= blocks * call {
                assert!(all[..blocks - 1].iter().all(|block| block.len().is_multiple_of(call)), "{all:?}");
            }
        }
    }

    #[test]
    fn work_is_cut_in_each_way_on_few_threads_and_on_many() {
        let level = Level::detect();
        let shares = |threads: usize| {
            let share = |(tiling, g, batch, input): (Tiling, ConvGeometry, usize, [usize; 2])| {
                let conv = FastConv::new(level, tiling, g, input).unwrap();
                Schedule::new(&conv, batch * conv.rows.len() * conv.columns.len(), threads, false).share
            };
            scheduled().into_iter().map(share).collect::<Vec<Share>>()
        };
        assert!(shares(1).iter().all(|&share| share == Share::Block));
        for (threads, expected) in [
            (2, &[Share::Block, Share::Panels, Share::PanelsAndInput][..]),
            (8, &[Share::Block, Share::PanelsAndInput]),
        ] {
            let found = shares(threads);
            for share in [Share::Block, Share::Panels, Share::PanelsAndInput] {
                assert_eq!(found.contains(&share), expected.contains(&share), "{threads} threads: {found:?}");
            }
        }
    }

    #[test]
    fn the_bits_do_not_depend_on_the_number_of_threads() {
        assert_same_bits_for_all_threads(|cx| {
            let mut random = Random::new(13);
            let run =
                |(index, (tiling, g, batch, input)): (usize, (Tiling, ConvGeometry, usize, [usize; 2]))| {
                    let operands = [Operands::F32, Operands::Threes][index % 2];
                    let conv = FastConv::new(cx.level(), tiling, g, input).unwrap().with_operands(operands);
                    let weight = random.values(g.weight_len());
                    let weights = conv.pack(cx, &weight);
                    let x = random.values(batch * input[0] * input[1] * g.in_channels);
                    let [mut y, mut once] = [(); 2].map(|()| vec![0.0; oracle::output_len(&g, batch, input)]);
                    let scratch = &mut FastScratch::default();
                    conv.forward(cx, &x, &weights, Epilogue::default(), scratch, &mut y);
                    conv.pack_and_forward(cx, &x, &weight, Epilogue::default(), scratch, &mut once);
                    let mut dw = vec![0.0; g.weight_len()];
                    if conv.has_grad_weight() {
                        conv.grad_weight(cx, &x, &y, scratch, &mut dw);
                    }
                    [y, once, dw]
                };
            scheduled().into_iter().flat_map(|case| [case; 2]).enumerate().flat_map(run).collect()
        });
    }

    #[test]
    fn an_image_has_the_same_bits_alone_and_in_a_batch() {
        let mut random = Random::new(14);
        for (cx, operands) in
            contexts().iter().flat_map(|cx| [Operands::F32, Operands::Threes].map(|kind| (cx, kind)))
        {
            for (tiling, g, batch, input) in scheduled() {
                let conv = FastConv::new(cx.level(), tiling, g, input).unwrap().with_operands(operands);
                let weights = conv.pack(cx, &random.values(g.weight_len()));
                let x = random.values(batch * input[0] * input[1] * g.in_channels);
                let mut y = vec![0.0; oracle::output_len(&g, batch, input)];
                let mut scratch = FastScratch::default();
                conv.forward(cx, &x, &weights, Epilogue::default(), &mut scratch, &mut y);
                let (pixels, out) = (x.len() / batch, y.len() / batch);
                for (x, expected) in x.chunks_exact(pixels).zip(y.chunks_exact(out)) {
                    let mut alone = vec![f32::NAN; out];
                    conv.forward(cx, x, &weights, Epilogue::default(), &mut scratch, &mut alone);
                    assert_eq!(alone, expected, "{tiling:?}");
                }
            }
        }
    }
}
