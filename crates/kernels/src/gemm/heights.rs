//! How rows are cut for the micro-kernels.

use std::ops::Range;

/// Rows in as few blocks as possible, whose heights are as equal as can be: a short last block would waste the registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heights {
    count: usize,
    /// Rows of each block.
    least: usize,
    /// Blocks, the first ones, that have one row more.
    taller: usize,
}

impl Heights {
    /// `rows` rows in blocks of at most `tallest`.
    #[inline(always)]
    pub(crate) fn new(rows: usize, tallest: usize) -> Self {
        let count = rows.div_ceil(tallest);
        let least = rows.checked_div(count).unwrap_or(0);
        Heights { count, least, taller: rows - least * count }
    }

    /// Number of blocks.
    #[inline(always)]
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Rows of block `index`.
    #[inline(always)]
    pub(crate) fn block(&self, index: usize) -> Range<usize> {
        let start = index * self.least + index.min(self.taller);
        start..start + self.least + usize::from(index < self.taller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_follow_each_other_and_differ_by_a_row_at_most() {
        for (rows, tallest) in (0..60).flat_map(|rows| (1..14).map(move |tallest| (rows, tallest))) {
            let heights = Heights::new(rows, tallest);
            assert_eq!(heights.count(), rows.div_ceil(tallest));
            let blocks: Vec<_> = (0..heights.count()).map(|index| heights.block(index)).collect();
            assert_eq!(
                blocks.iter().flat_map(Clone::clone).collect::<Vec<_>>(),
                (0..rows).collect::<Vec<_>>()
            );
            let lengths = blocks.iter().map(Range::len);
            let (most, least) = (lengths.clone().max().unwrap_or(0), lengths.min().unwrap_or(0));
            assert!(most <= tallest && most - least <= 1, "{rows} rows in blocks of {tallest}: {blocks:?}");
        }
    }
}
