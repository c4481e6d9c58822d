//! How outputs are cut into tiles.

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

/// Where a tile of such rows and columns belongs among the kinds of a [`Block`].
fn kind(rows: Span, columns: Span) -> usize {
    match (rows.full, columns.full) {
        (true, false) => 0,
        (true, true) => 1,
        (false, true) => 2,
        (false, false) => 3,
    }
}

/// Tiles that stand side by side in a row of tiles of one image.
pub(super) struct Line<'a> {
    pub(super) image: usize,
    pub(super) rows: Span,
    pub(super) columns: &'a [Span],
}

/// The lines of these tiles, which are counted through the batch row by row.
pub(super) fn lines<'a>(
    [rows, columns]: [&'a [Span]; 2],
    tiles: Range<usize>,
) -> impl Iterator<Item = Line<'a>> {
    let mut next = tiles.start;
    std::iter::from_fn(move || {
        (next < tiles.end).then(|| {
            let (line, column) = (next / columns.len(), next % columns.len());
            let columns = &columns[column..columns.len().min(column + tiles.end - next)];
            next += columns.len();
            Line { image: line / rows.len(), rows: rows[line % rows.len()], columns }
        })
    })
}

/// Tiles of a block from which on more gain nothing.
pub(super) const MAX_TILES: usize = 128;

/// Neighbouring tiles that go through the transforms together. Their slots are ordered by kind (short columns, full
/// tiles, short rows, both short), so that each point works on one range of slots.
#[derive(Debug, Default)]
pub(super) struct Block {
    tiles: Vec<Tile>,
    kinds: [usize; 4],
}

impl Block {
    /// Makes room for so many tiles: a block is filled again and again.
    pub(super) fn reserve(&mut self, tiles: usize) {
        self.tiles.reserve(tiles.saturating_sub(self.tiles.len()));
    }

    /// These tiles, counted through the batch row by row.
    pub(super) fn fill(&mut self, spans: [&[Span]; 2], tiles: Range<usize>) -> &Self {
        self.tiles.clear();
        self.kinds = [0; 4];
        for Line { image, rows, columns } in lines(spans, tiles) {
            let first = self.tiles.len();
            let tile = |(index, &columns): (usize, &Span)| Tile { image, rows, columns, slot: first + index };
            self.tiles.extend(columns.iter().enumerate().map(tile));
            columns.iter().for_each(|&columns| self.kinds[kind(rows, columns)] += 1);
        }
        if self.kinds[1] == self.tiles.len() {
            return self;
        }
        let [a, b, c, _] = self.kinds;
        let mut slots = [0, a, a + b, a + b + c];
        for tile in &mut self.tiles {
            let slot = &mut slots[kind(tile.rows, tile.columns)];
            tile.slot = *slot;
            *slot += 1;
        }
        self
    }

    /// The tiles.
    pub(super) fn tiles(&self) -> &[Tile] {
        &self.tiles
    }

    /// The slots for which a point is needed that only the last row, or only the last column, of outputs needs.
    pub(super) fn slots(&self, last_row: bool, last_column: bool) -> Range<usize> {
        let [a, b, c, _] = self.kinds;
        match (last_row, last_column) {
            (false, false) => 0..self.tiles.len(),
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
        let mut block = Block::default();
        for (from, to) in [(0, 8), (3, 17), (5, 6), (0, 64), (7, 135)] {
            block.fill([&rows, &columns], from..to);
            let place = |tile: &Tile| (tile.image, tile.rows, tile.columns);
            let expected = (from..to).map(|index| (index / 8, rows[index / 2 % 4], columns[index % 2]));
            assert!(block.tiles().iter().map(place).eq(expected));
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
