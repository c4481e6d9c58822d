//! How the tiles of a forward pass are cut into blocks and shared out among threads.

use super::run::Weights;
use super::tiles::MAX_TILES;
use super::{FastConv, PANEL, narrow};

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

/// Values of V at most, where the weights stream by.
const TRANSFORMED: usize = 3 << 19;

/// Pixels of a block of tiles that are pixels in a row, at most.
const MOST_PIXELS: usize = 256;

/// Tiles of a small block: about as many as two calls of the shortest micro-kernels take.
const SMALL: usize = 12;

/// Channels that are transformed together where there are groups: enough to read pixels in long runs.
const TOGETHER: usize = 128;

/// Values of transformed weights up to which each thread transforms them for itself: they stay in its L2 cache.
const APART: usize = 1 << 18;

/// Threads up to which each transforms the whole input of a block of tiles for itself rather than a part of it for all, where V stays in
/// the L2 cache: what stands in one core's cache comes slowly to another, to one far away more slowly than it can be computed. With
/// more threads it would be computed too often.
const APART_THREADS: usize = 2;
const APART_VALUES: usize = 1 << 18;

/// Sections that are transformed together.
pub(super) fn together(conv: &FastConv) -> usize {
    (TOGETHER / conv.view.depth).clamp(1, conv.sections().len())
}

/// Values of V up to which threads that share a block of tiles transform its input each for itself.
pub(super) fn apart_values(threads: usize) -> usize {
    if threads <= APART_THREADS { APART_VALUES } else { 0 }
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
    covers_lines(conv) && Schedule::new(conv, tiles, threads).share == Share::Block
}

/// How tiles are cut into blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    /// The most tiles of a block.
    pub(super) most: usize,
    /// Whether the weights come from memory.
    pub(super) streamed: bool,
}

impl Cut {
    /// Small weights stay in the L2 cache, beside V and M of a small block. Large ones stream by: they should meet as many
    /// tiles as possible.
    pub(super) fn new(conv: &FastConv) -> Self {
        let points = conv.tiling.points();
        let kernels = conv.level.micro_kernels();
        let sections = conv.sections().len();
        let streamed = conv.geometry.groups == 1 && conv.weight_values() > STREAMED;
        let vectors = PANEL.min(conv.outputs() / sections / kernels.lanes).max(1);
        let tallest = kernels.max_blocked_rows(vectors);
        // M of many products would leave the L2 cache.
        let most_tiles = MAX_TILES.min(MOST_PIXELS / conv.tiling.parts());
        let most = match (streamed, conv.view.narrow) {
            (true, _) => (TRANSFORMED / (points * conv.view.depth)).clamp(SMALL, most_tiles),
            (false, Some(_)) => narrow::MOST,
            (false, None) => tallest * SMALL.div_ceil(tallest),
        };
        Cut { most, streamed }
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
    /// Whether the weights come from memory.
    pub(super) streamed: bool,
}

impl Schedule {
    pub(super) fn new(conv: &FastConv, tiles: usize, threads: usize) -> Self {
        let Cut { most, streamed } = Cut::new(conv);
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
        Schedule { blocks: blocks.min(tiles), share, streamed }
    }
}
