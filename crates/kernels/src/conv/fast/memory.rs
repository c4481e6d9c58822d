//! Memory for tiles in the domain of products, and how they stand in it.

use super::schedule::{Cut, apart_values, reads_all, together};
use super::tiles::Block;
use super::transform::Steps;
use super::{FastConv, PANEL};
use crate::Operands;
use crate::buffer::{Aligned, LINE};
use crate::parallel::Space;

/// Memory that fast convolutions use while they run, reused from one to the next.
#[derive(Debug, Default)]
pub struct FastScratch {
    /// The input as the tiles read it, where that is not as it stands.
    pub(super) copy: Aligned,
    /// The weights of one pass in the domain of products, or the sums that are their gradients.
    pub(super) weights: Aligned,
    pub(super) memory: Memory,
}

/// Memory for transformed tiles and products.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The tiles that threads work on together.
    pub(super) block: Block,
    /// The transformed input, where threads share it.
    pub(super) shared: Aligned,
    /// What each thread has for itself.
    pub(super) own: Vec<Space<Own>>,
}

/// What each of `threads` threads has for itself, with room for a block of `tiles` tiles, V, M and weights, which are not there
/// yet: whichever threads take part later, nothing is allocated then.
pub(super) fn with_room(
    own: &mut Vec<Space<Own>>,
    threads: usize,
    tiles: usize,
    [v_len, m_len, weights_len]: [usize; 3],
) -> &[Space<Own>] {
    let own = Space::for_threads(own, threads);
    for own in &mut *own {
        let Own { block, v, m, weights, packed, transformed, .. } = own.get_mut();
        (*packed, *transformed) = (false, None);
        block.reserve(tiles);
        v.grow(v_len);
        m.grow(m_len);
        weights.grow(weights_len);
    }
    own
}

impl Memory {
    /// What each of `threads` threads has for itself, with room for a block of `tiles` tiles and `length` values in V.
    pub(super) fn own(&mut self, threads: usize, tiles: usize, length: usize) -> &[Space<Own>] {
        with_room(&mut self.own, threads, tiles, [length, 0, 0])
    }

    /// Makes room for at most `tiles` tiles and `threads` threads.
    pub(super) fn reserve(&mut self, conv: &FastConv, tiles: usize, threads: usize) {
        let Cut { most, streamed, .. } = Cut::new(conv, false);
        let most = most.min(tiles);
        let [v_len, m_len] = conv.block_lens(most, together(conv));
        let alone = !streamed || threads == 1 || reads_all(conv, tiles, threads);
        // Where a block of so many tiles is not transformed apart, one of fewer tiles may be.
        let apart_len = match apart_values(threads) {
            0 => 0,
            values => values + conv.tiling.points() * LINE,
        };
        with_room(&mut self.own, threads, most, [if alone { v_len } else { v_len.min(apart_len) }, m_len, 0]);
        self.block.reserve(most);
        self.shared.grow(if threads > 1 { v_len } else { 0 });
    }
}

/// What a thread has for itself.
#[derive(Debug, Default)]
pub(super) struct Own {
    pub(super) block: Block,
    pub(super) v: Aligned,
    /// The block whose input V is, where threads share blocks.
    pub(super) transformed: Option<usize>,
    pub(super) m: Aligned,
    /// Rows of outputs that a pool will read.
    pub(super) strip: Aligned,
    /// The weights of one pass in the domain of products, and whether they are there.
    pub(super) weights: Aligned,
    pub(super) packed: bool,
}

impl FastConv {
    /// Values of a point of V for a section and a block of `tiles` tiles.
    pub(super) fn section_len(&self, tiles: usize) -> usize {
        self.view.depth.next_multiple_of(self.lanes()) * tiles
    }

    /// Values between two points of V for some sections and a block of `tiles` tiles, with what threes take off behind them: a line more,
    /// so that points do not share cache sets.
    pub(super) fn v_step(&self, tiles: usize, sections: usize) -> usize {
        let sums = if self.operands == Operands::Threes { tiles.next_multiple_of(LINE) } else { 0 };
        self.section_len(tiles) * sections + sums + LINE
    }

    /// The steps of V for a block of `tiles` tiles, whose points are `point` values apart.
    pub(super) fn v_steps(&self, tiles: usize, point: usize) -> Steps {
        Steps { point, vector: tiles * self.lanes(), slot: self.lanes() }
    }

    /// Values between two points of the packed weights of a panel of `width` channels; a line more, as for V.
    pub(super) fn weight_step(&self, width: usize) -> usize {
        self.weight_rows() * width + LINE
    }

    /// Rows of a point of the packed weights: of input channels, and one of what threes take off.
    pub(super) fn weight_rows(&self) -> usize {
        self.view.summed() + usize::from(self.operands == Operands::Threes)
    }

    /// Values between two slots of M for a panel of `width` channels; a line more, as for V.
    pub(super) fn m_step(&self, width: usize) -> usize {
        self.tiling.points() * width + LINE
    }

    /// Values of V, for some sections, and of M for a block of `tiles` tiles.
    pub(super) fn block_lens(&self, tiles: usize, sections: usize) -> [usize; 2] {
        let points = self.tiling.points();
        [points * self.v_step(tiles, sections), tiles * self.m_step(PANEL * self.lanes())]
    }
}
