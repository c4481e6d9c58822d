//! Squares of values, a cache line wide, in which matrices are transposed.

use crate::buffer::LINE;

/// Lines that stand below each other.
pub(crate) type Square = [[f32; LINE]; LINE];

/// `count` lines that begin with `length` values from the beginning of `line(index)`, and zeros behind and below them.
#[inline(always)]
pub(crate) fn square_of<'a>([count, length]: [usize; 2], line: impl Fn(usize) -> &'a [f32]) -> Square {
    if [count, length] == [LINE; 2] {
        return std::array::from_fn(|index| *line(index).first_chunk().expect("a line"));
    }
    let mut square = [[0.0; LINE]; LINE];
    for (index, to) in square[..count].iter_mut().enumerate() {
        to[..length].copy_from_slice(&line(index)[..length]);
    }
    square
}

/// The transpose.
#[inline(always)]
pub(crate) fn transpose(square: &Square) -> Square {
    std::array::from_fn(|row| std::array::from_fn(|column| square[column][row]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_hold_what_is_there_and_zeros() {
        let values: Vec<f32> = (1..=LINE * 20).map(|value| value as f32).collect();
        for size in [[LINE, LINE], [LINE, 5], [3, LINE], [7, 2], [0, 0]] {
            let square = square_of(size, |line| &values[line * 20..]);
            let turned = transpose(&square);
            for (row, column) in (0..LINE).flat_map(|row| (0..LINE).map(move |column| (row, column))) {
                let inside = row < size[0] && column < size[1];
                let expected = if inside { values[row * 20 + column] } else { 0.0 };
                assert_eq!([square[row][column], turned[column][row]], [expected; 2], "{size:?}");
            }
        }
    }
}
