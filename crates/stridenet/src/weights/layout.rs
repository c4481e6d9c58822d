//! Convolution weights between torch's layout and the kernels'.

use crate::ShapeError;
use std::ops::Range;

/// Output channels and places of a tile, in which each line of OIHW is a cache line and each row of HWIO two.
const OUTPUTS: usize = 32;
const PLACES: usize = 16;

/// Weights on their way, an output channel after the other.
type Tile = [[f32; PLACES]; OUTPUTS];

/// From torch's OIHW, `[O, I / groups, H, W]`, to the kernels' HWIO, `[H, W, I / groups, O]`.
/// Returns the new shape and the values, in the memory that they came in: `space` holds a copy of them meanwhile. The system
/// need not make new pages then, neither for the values nor for a space that is used again.
///
/// # Errors
/// When the number of values is not the product of the sizes.
pub fn conv_to_hwio(
    shape: [usize; 4],
    mut values: Vec<f32>,
    space: &mut Vec<f32>,
) -> Result<([usize; 4], Vec<f32>), ShapeError> {
    let [o, i, h, w] = shape;
    check(shape, &values)?;
    space.clear();
    space.extend_from_slice(&values);
    let mut tile: Tile = [[0.0; PLACES]; OUTPUTS];
    tiles([h, w, i, o], |Part { outputs, places }| {
        for (output, line) in outputs.clone().zip(&mut tile) {
            let from = &space[output * i * h * w..][places.clone()];
            match from.try_into() {
                Ok(whole) => *line = whole,
                Err(_) => line[..from.len()].copy_from_slice(from),
            }
        }
        for (at, place) in places.enumerate() {
            let to = &mut values[row([h, w, i, o], place)..][outputs.clone()];
            to.iter_mut().zip(&tile).for_each(|(to, line)| *to = line[at]);
        }
    });
    Ok(([h, w, i, o], values))
}

/// From the kernels' HWIO, `[H, W, I / groups, O]`, to torch's OIHW, `[O, I / groups, H, W]`.
/// Returns the new shape and the values.
///
/// # Errors
/// When the number of values is not the product of the sizes.
pub fn conv_from_hwio(shape: [usize; 4], values: &[f32]) -> Result<([usize; 4], Vec<f32>), ShapeError> {
    let [h, w, i, o] = shape;
    check(shape, values)?;
    let mut oihw = vec![0.0; values.len()];
    let mut tile: Tile = [[0.0; PLACES]; OUTPUTS];
    tiles(shape, |Part { outputs, places }| {
        for (at, place) in places.clone().enumerate() {
            let from = &values[row(shape, place)..][outputs.clone()];
            from.iter().zip(&mut tile).for_each(|(&from, line)| line[at] = from);
        }
        for (output, line) in outputs.zip(&tile) {
            let to = &mut oihw[output * i * h * w..][places.clone()];
            to.copy_from_slice(&line[..to.len()]);
        }
    });
    Ok(([o, i, h, w], oihw))
}

fn check(shape: [usize; 4], values: &[f32]) -> Result<(), ShapeError> {
    let length = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    match length == Some(values.len()) {
        true => Ok(()),
        false => Err(ShapeError::Length { shape, found: values.len() }),
    }
}

/// Some output channels, and some of the places that each has in OIHW, `[I / groups, H, W]`.
struct Part {
    outputs: Range<usize>,
    places: Range<usize>,
}

/// Calls `move_tile` with parts of at most a tile's size that are all weights of this HWIO shape together.
fn tiles([h, w, i, o]: [usize; 4], mut move_tile: impl FnMut(Part)) {
    if [h, w, i, o].contains(&0) {
        // The other sizes may be anything.
        return;
    }
    let places = i * h * w;
    for output in (0..o).step_by(OUTPUTS) {
        for place in (0..places).step_by(PLACES) {
            let (outputs, places) = (output..o.min(output + OUTPUTS), place..places.min(place + PLACES));
            move_tile(Part { outputs, places });
        }
    }
}

/// Where the row of output channels begins in HWIO that holds a place of OIHW.
fn row([h, w, i, o]: [usize; 4], place: usize) -> usize {
    (place % (h * w) * i + place / (h * w)) * o
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that tell where they are: 1000·o + 100·i + 10·h + w.
    fn coded(o: usize, i: usize, h: usize, w: usize) -> f32 {
        (1000 * o + 100 * i + 10 * h + w) as f32
    }

    #[test]
    fn every_value_lands_at_its_place() {
        let mut space = Vec::new();
        // Within a tile, and several with all remainders.
        for [o, i, h, w] in [[4, 3, 2, 5], [71, 7, 3, 3], [32, 16, 1, 1], [33, 49, 1, 1]] {
            let places =
                (0..o * i * h * w).map(|at| [at / (i * h * w), at / (h * w) % i, at / w % h, at % w]);
            let oihw: Vec<f32> = places.clone().map(|[o, i, h, w]| coded(o, i, h, w)).collect();
            let (shape, hwio) = conv_to_hwio([o, i, h, w], oihw.clone(), &mut space).unwrap();
            assert_eq!(shape, [h, w, i, o]);
            for [output, input, y, x] in places {
                let found = hwio[((y * w + x) * i + input) * o + output];
                assert_eq!(found, coded(output, input, y, x), "of {o}, {i}, {h}, {w}");
            }
            let (shape, back) = conv_from_hwio(shape, &hwio).unwrap();
            assert_eq!((shape, back), ([o, i, h, w], oihw));
        }
    }

    #[test]
    fn a_depthwise_convolution_has_one_input_channel_per_group() {
        let oihw: Vec<f32> = (0..2 * 9).map(|value| value as f32).collect();
        let (shape, hwio) = conv_to_hwio([2, 1, 3, 3], oihw, &mut Vec::new()).unwrap();
        assert_eq!(shape, [3, 3, 1, 2]);
        assert_eq!(&hwio[..4], &[0.0, 9.0, 1.0, 10.0]);
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let to_hwio = |shape, values: &[f32]| conv_to_hwio(shape, values.to_vec(), &mut Vec::new());
        assert!(to_hwio([2, 1, 3, 3], &[0.0; 17]).is_err());
        assert!(conv_from_hwio([usize::MAX, 2, 1, 1], &[]).is_err());
        assert_eq!(to_hwio([0, 1, 3, 3], &[]).unwrap(), ([3, 3, 1, 0], vec![]));
        assert_eq!(to_hwio([0, 1 << 40, 1 << 40, 9], &[]).unwrap().1, Vec::<f32>::new());
        assert_eq!(to_hwio([4, 1 << 40, 0, 9], &[]).unwrap().1, Vec::<f32>::new());
    }
}
