//! How outputs are cut into tiles.

use std::mem::MaybeUninit;
use std::ops::Range;

/// A tile along one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// First output.
    pub(super) start: usize,
    /// Outputs that exist.
    pub(super) outputs: usize,
    /// Whether all points of the algorithm are needed.
    pub(super) full: bool,
}

/// Cuts `outputs` outputs into as few tiles of at most `each` as possible, full ones first, then those that are one output
/// short.
pub(super) fn cut(each: usize, outputs: usize) -> Vec<Span> {
    let count = outputs.div_ceil(each);
    let missing = count * each - outputs;
    let mut start = 0;
    (0..count)
        .map(|index| {
            let short = index + missing >= count;
            let length = (each - usize::from(short)).min(outputs - start);
            let span = Span { start, outputs: length, full: !short };
            start += length;
            span
        })
        .collect()
}

/// A tile of an image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    pub(super) image: usize,
    pub(super) rows: Span,
    pub(super) columns: Span,
    /// Place among the tiles of its block.
    pub(super) slot: usize,
}

/// Most tiles of a block.
pub(super) const MAX_TILES: usize = 128;

/// Neighbouring tiles that go through the transforms together. Their slots are ordered by kind (short columns, full
/// tiles, short rows, both short), so that each point works on one range of slots.
pub(super) struct Block {
    /// The first `count` are there.
    tiles: [MaybeUninit<Tile>; MAX_TILES],
    count: usize,
    kinds: [usize; 4],
}

impl Block {
    /// These tiles, counted through the batch row by row. A block is as large as many tiles are with few channels, so it
    /// is made where it is used.
    ///
    /// # Panics
    /// When there are more than [`MAX_TILES`].
    #[inline(always)]
    pub(super) fn new([rows, columns]: [&[Span]; 2], tiles: Range<usize>) -> Self {
        let count = tiles.len();
        let mut block = Block { tiles: [const { MaybeUninit::uninit() }; MAX_TILES], count, kinds: [0; 4] };
        let kind = |tile: &Tile| match (tile.rows.full, tile.columns.full) {
            (true, false) => 0,
            (true, true) => 1,
            (false, true) => 2,
            (false, false) => 3,
        };
        let per_image = rows.len() * columns.len();
        for (tile, index) in block.tiles[..count].iter_mut().zip(tiles) {
            let (row, column) = (index % per_image / columns.len(), index % columns.len());
            let tile = tile.write(Tile {
                image: index / per_image,
                rows: rows[row],
                columns: columns[column],
                slot: 0,
            });
            block.kinds[kind(tile)] += 1;
        }
        let [a, b, c, _] = block.kinds;
        let mut next = [0, a, a + b, a + b + c];
        // SAFETY: the first `count` tiles were written above.
        let tiles = unsafe { std::slice::from_raw_parts_mut(block.tiles.as_mut_ptr().cast::<Tile>(), count) };
        for tile in tiles {
            let next = &mut next[kind(tile)];
            tile.slot = *next;
            *next += 1;
        }
        block
    }

    /// The tiles.
    pub(super) fn tiles(&self) -> &[Tile] {
        // SAFETY: the first `count` tiles were written when the block was made.
        unsafe { std::slice::from_raw_parts(self.tiles.as_ptr().cast::<Tile>(), self.count) }
    }

    /// The slots for which a point is needed that only the last row, or only the last column, of outputs needs.
    pub(super) fn slots(&self, last_row: bool, last_column: bool) -> Range<usize> {
        let [a, b, c, _] = self.kinds;
        match (last_row, last_column) {
            (false, false) => 0..self.count,
            (true, false) => 0..a + b,
            (false, true) => a..a + b + c,
            (true, true) => a..a + b,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(each: usize) {
        for outputs in 1..40 {
            let spans = cut(each, outputs);
            let mut next = 0;
            for span in &spans {
                assert_eq!(span.start, next);
                let most = each - usize::from(!span.full);
                assert!((1..=most).contains(&span.outputs), "{outputs}: {span:?}");
                next += span.outputs;
            }
            assert_eq!((next, spans.len()), (outputs, outputs.div_ceil(each)));
        }
        let lengths = |outputs| cut(4, outputs).iter().map(|span| span.outputs).collect::<Vec<_>>();
        assert_eq!((lengths(14), lengths(7)), (vec![4, 4, 3, 3], vec![4, 3]));
    }

    #[test]
    fn spans_cover_the_outputs() {
        (1..=4).for_each(covers);
    }

    #[test]
    fn each_point_finds_the_tiles_that_need_it() {
        let (rows, columns) = (cut(4, 14), cut(4, 7));
        for (from, to) in [(0, 8), (3, 17), (5, 6), (0, 64), (7, 135)] {
            let block = Block::new([&rows, &columns], from..to);
            let mut seen: Vec<_> = block.tiles().iter().map(|tile| tile.slot).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..to - from).collect::<Vec<_>>());
            for (row, column) in [(false, false), (true, false), (false, true), (true, true)] {
                let slots = block.slots(row, column);
                for tile in block.tiles() {
                    let needed = (!row || tile.rows.full) && (!column || tile.columns.full);
                    assert_eq!(slots.contains(&tile.slot), needed);
                }
            }
        }
    }
}
