//! Which values a product's rows are made of: the map from output positions and kernel taps to input positions.

use std::ops::Range;

/// Offset that stands for "in the padding"; sums of two of them do not overflow.
const PADDING: usize = usize::MAX / 4;

/// One axis of a gather: for each output position and each tap, the offset of the input position in values.
#[derive(Debug, Clone)]
pub(crate) struct Axis {
    taps: usize,
    positions: usize,
    /// `[tap][position]`.
    offsets: Vec<usize>,
}

impl Axis {
    /// An axis of `positions` outputs and `taps` taps, where `source` gives the input position or `None` for padding,
    /// and neighbouring input positions are `step` values apart.
    pub(crate) fn new(
        positions: usize,
        taps: usize,
        step: usize,
        source: impl Fn(usize, usize) -> Option<usize>,
    ) -> Self {
        let offset = |position, tap| source(position, tap).map_or(PADDING, |at| at * step);
        let of_tap = |tap| (0..positions).map(move |position| offset(position, tap));
        Axis { taps, positions, offsets: (0..taps).flat_map(of_tap).collect() }
    }

    /// The largest offset that is not padding.
    fn last(&self) -> Option<usize> {
        self.offsets.iter().copied().filter(|&offset| offset < PADDING).max()
    }

    /// The offsets of one tap.
    #[inline(always)]
    fn of_tap(&self, tap: usize) -> &[usize] {
        &self.offsets[tap * self.positions..][..self.positions]
    }
}

/// Rows that are gathered from a batch of NHWC images: row `(image, y, x)` holds, tap by tap, `depth` neighbouring
/// values of the input.
#[derive(Debug, Clone)]
pub(crate) struct Gather {
    vertical: Axis,
    horizontal: Axis,
    positions: [usize; 2],
    image_step: usize,
    depth: usize,
    zeros: Vec<f32>,
    /// Values between two rows, where all rows of a batch are evenly spaced and have one tap.
    even: Option<usize>,
}

impl Gather {
    /// The gather over two axes for images of `image_step` values.
    pub(crate) fn new(vertical: Axis, horizontal: Axis, image_step: usize, depth: usize) -> Self {
        let positions = [vertical.positions, horizontal.positions];
        let one_tap = vertical.taps * horizontal.taps == 1;
        let even = even_step(&vertical.offsets, &horizontal.offsets, image_step).filter(|_| one_tap);
        Gather { vertical, horizontal, positions, image_step, depth, zeros: vec![0.0; depth], even }
    }

    /// The same gather for rows that are a part of pixels with `channels` values: rows of the padding have as many zeros.
    pub(crate) fn of_pixels(self, channels: usize) -> Self {
        Gather { zeros: vec![0.0; channels], ..self }
    }

    /// A gather without taps, all of whose `positions` rows are empty.
    pub(crate) fn empty(positions: [usize; 2], image_step: usize) -> Self {
        let axis = || Axis { taps: 0, positions: 0, offsets: Vec::new() };
        let (vertical, horizontal) = (axis(), axis());
        Gather { vertical, horizontal, positions, image_step, depth: 1, zeros: vec![0.0], even: None }
    }

    /// The rows of an ordinary matrix of `rows × depth` values.
    pub(crate) fn matrix(rows: usize, depth: usize) -> Self {
        let one = Axis::new(1, 1, 0, |_, _| Some(0));
        Gather::new(Axis::new(rows, 1, depth, |row, _| Some(row)), one, rows * depth, depth)
    }

    /// Values between two rows, where all rows of a batch are evenly spaced, begin with the batch and have one tap.
    pub(crate) fn even_step(&self) -> Option<usize> {
        self.even
    }

    /// Values between two rows, nearly always: where rows are not evenly spaced, between two of a line; 0 where that is unknown.
    pub(crate) fn usual_step(&self) -> usize {
        self.even.unwrap_or_else(|| line_step(&self.horizontal.offsets[..self.horizontal.positions]))
    }

    /// Rows of one image.
    pub(crate) fn rows_per_image(&self) -> usize {
        self.positions[0] * self.positions[1]
    }

    /// Taps of a row.
    pub(crate) fn taps(&self) -> usize {
        self.vertical.taps * self.horizontal.taps
    }

    /// Values of a row that each tap contributes.
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// Values of one image.
    pub(crate) fn image_step(&self) -> usize {
        self.image_step
    }

    /// Values that an image must have for every pointer to be valid: one past the last value that a row reads.
    pub(crate) fn reach(&self) -> usize {
        self.vertical.last().zip(self.horizontal.last()).map_or(0, |(y, x)| y + x + self.depth)
    }

    /// Position of row `index`, counted through the batch.
    pub(crate) fn position(&self, index: usize) -> Position {
        let (image, rest) = (index / self.rows_per_image(), index % self.rows_per_image());
        Position { image, y: rest / self.positions[1], x: rest % self.positions[1] }
    }

    /// Moves on to the next row.
    #[inline(always)]
    pub(crate) fn advance(&self, position: &mut Position) {
        position.x += 1;
        if position.x == self.positions[1] {
            position.x = 0;
            position.y += 1;
            if position.y == self.positions[0] {
                position.y = 0;
                position.image += 1;
            }
        }
    }

    /// The value of an image at such an offset, or the padding's zeros.
    #[inline(always)]
    fn pointer(&self, image: *const f32, offset: usize) -> *const f32 {
        if offset < PADDING { image.wrapping_add(offset) } else { self.zeros.as_ptr() }
    }

    /// Writes the pointers of `rows` rows from `position` on, as [`pointers`](Self::pointers) gives them, `[tap − first][row]`.
    pub(crate) fn block(
        &self,
        input: *const f32,
        mut position: Position,
        taps: Range<usize>,
        rows: usize,
        pointers: &mut [*const f32],
    ) {
        let columns = self.horizontal.taps;
        if taps.is_empty() {
            return;
        }
        let first = (taps.start / columns, taps.start % columns);
        let mut done = 0;
        while done < rows {
            let Position { image, y, x } = position;
            // The rest of a line of rows.
            let count = (rows - done).min(self.positions[1] - x);
            let image = input.wrapping_add(image * self.image_step);
            let (mut row, mut column) = first;
            for tap in 0..taps.len() {
                let vertical = self.vertical.of_tap(row)[y];
                let horizontal = &self.horizontal.of_tap(column)[x..x + count];
                for (pointer, horizontal) in pointers[tap * rows + done..][..count].iter_mut().zip(horizontal)
                {
                    *pointer = self.pointer(image, vertical + horizontal);
                }
                column += 1;
                if column == columns {
                    (row, column) = (row + 1, 0);
                }
            }
            done += count;
            position.x = self.positions[1] - 1;
            self.advance(&mut position);
        }
    }

    /// Writes the pointers of row `position` for taps `first .. first + count` through `put(tap − first, pointer)`.
    ///
    /// `input` is the first value of the batch (plus a channel offset). Each pointer is valid for reads of `depth`
    /// values where `input` is valid for the batch; pointers into the padding lead to zeros.
    #[inline(always)]
    pub(crate) fn pointers(
        &self,
        input: *const f32,
        position: &Position,
        first: usize,
        count: usize,
        mut put: impl FnMut(usize, *const f32),
    ) {
        let image = input.wrapping_add(position.image * self.image_step);
        let columns = self.horizontal.taps;
        if count == 0 {
            return;
        }
        let (mut row, mut column) = (first / columns, first % columns);
        for tap in 0..count {
            let offset = self.vertical.of_tap(row)[position.y] + self.horizontal.of_tap(column)[position.x];
            put(tap, self.pointer(image, offset));
            column += 1;
            if column == columns {
                column = 0;
                row += 1;
            }
        }
    }
}

impl Gather {
    /// Whether a pointer that [`pointers`](Self::pointers) gave leads to the padding's zeros.
    #[inline(always)]
    pub(crate) fn is_padding(&self, pointer: *const f32) -> bool {
        pointer == self.zeros.as_ptr()
    }
}

/// The step between positions whose offsets are sums of a vertical and a horizontal one, if it is the same everywhere.
fn even_step(vertical: &[usize], horizontal: &[usize], image_step: usize) -> Option<usize> {
    let width = horizontal.len();
    let positions = vertical.len() * width;
    let step = image_step.checked_div(positions).unwrap_or(0);
    let even = |offsets: &[usize], step: usize| {
        offsets.iter().enumerate().all(|(index, &offset)| offset == index * step)
    };
    (step * positions == image_step && even(horizontal, step) && even(vertical, step * width)).then_some(step)
}

/// The step between neighbouring positions in the middle of a line, 0 where one of them is padding or there is one alone.
fn line_step(horizontal: &[usize]) -> usize {
    let Some(before) = (horizontal.len() / 2).checked_sub(1) else { return 0 };
    match horizontal[before..] {
        [first, second, ..] if second < PADDING => second.saturating_sub(first),
        _ => 0,
    }
}

/// A row of a gather: which image, and where in the output.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Position {
    pub(crate) image: usize,
    pub(crate) y: usize,
    pub(crate) x: usize,
}

/// Where the rows of a product go: an offset for each axis's positions.
#[derive(Debug, Clone)]
pub(crate) struct Scatter {
    vertical: Vec<usize>,
    horizontal: Vec<usize>,
    image_step: usize,
    /// Values between two rows, where all rows of a batch are evenly spaced.
    even: Option<usize>,
}

impl Scatter {
    /// Rows `(y, x)` of each image go to `vertical[y] + horizontal[x]`, images are `image_step` values apart.
    pub(crate) fn new(vertical: Vec<usize>, horizontal: Vec<usize>, image_step: usize) -> Self {
        let even = even_step(&vertical, &horizontal, image_step);
        Scatter { vertical, horizontal, image_step, even }
    }

    /// Rows of `width` values one after the other, `[rows, columns]` an image.
    pub(crate) fn dense(rows: usize, columns: usize, width: usize) -> Self {
        let vertical = (0..rows).map(|y| y * columns * width).collect();
        Scatter::new(vertical, (0..columns).map(|x| x * width).collect(), rows * columns * width)
    }

    /// Values between two rows, where all rows of a batch are evenly spaced and begin with the batch.
    pub(crate) fn even_step(&self) -> Option<usize> {
        self.even
    }

    /// Values between two rows, nearly always, as for a [`Gather`].
    pub(crate) fn usual_step(&self) -> usize {
        self.even.unwrap_or_else(|| line_step(&self.horizontal))
    }

    /// Offset of the row at `position`.
    #[inline(always)]
    pub(crate) fn offset(&self, position: &Position) -> usize {
        position.image * self.image_step + self.vertical[position.y] + self.horizontal[position.x]
    }

    /// One past the largest offset for `images` images, plus `width` values.
    pub(crate) fn end(&self, images: usize, width: usize) -> usize {
        let last = |offsets: &[usize]| offsets.iter().max().copied().unwrap_or(0);
        if images == 0 || self.vertical.is_empty() || self.horizontal.is_empty() {
            return 0;
        }
        (images - 1) * self.image_step + last(&self.vertical) + last(&self.horizontal) + width
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_step_is_that_of_a_line() {
        assert_eq!(Gather::matrix(5, 7).usual_step(), 7);
        // Every second pixel of 9 in a line, with padding before the first: taps read pixels −1, 0 and 1 from there on.
        let padded = |x: usize, tap: usize| (2 * x + tap).checked_sub(1).filter(|&pixel| pixel < 9);
        let axis = || Axis::new(5, 3, 4, padded);
        assert_eq!(Gather::new(axis(), axis(), 9 * 9 * 4, 4).usual_step(), 8);
        assert_eq!(Scatter::new(vec![0, 40], vec![4, 12, 20], 80).usual_step(), 8);
        // Padding, one position, none.
        assert_eq!([&[PADDING, 8][..], &[8, PADDING], &[8], &[]].map(line_step), [0; 4]);
    }
}
