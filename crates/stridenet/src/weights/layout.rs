//! Convolution weights between torch's layout and the kernels'.

use crate::ShapeError;

/// Output channels that are rearranged side by side: a few cache lines of HWIO's rows, and few enough that as many of
/// OIHW's rows stay in the L1 cache.
const BLOCK: usize = 32;

/// From torch's OIHW, `[O, I / groups, H, W]`, to the kernels' HWIO, `[H, W, I / groups, O]`.
/// Returns the new shape and the values.
///
/// # Errors
/// When the number of values is not the product of the sizes.
pub fn conv_to_hwio(shape: [usize; 4], values: &[f32]) -> Result<([usize; 4], Vec<f32>), ShapeError> {
    let [o, i, h, w] = shape;
    check(shape, values)?;
    let mut hwio = vec![0.0; values.len()];
    pairs([h, w, i, o], |hwio_at, oihw_at| hwio[hwio_at] = values[oihw_at]);
    Ok(([h, w, i, o], hwio))
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
    pairs(shape, |hwio_at, oihw_at| oihw[oihw_at] = values[hwio_at]);
    Ok(([o, i, h, w], oihw))
}

fn check(shape: [usize; 4], values: &[f32]) -> Result<(), ShapeError> {
    let length = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    match length == Some(values.len()) {
        true => Ok(()),
        false => Err(ShapeError::Length { shape, found: values.len() }),
    }
}

/// Calls `pair` with each value's place in HWIO and in OIHW, in blocks that suit caches.
fn pairs([h, w, i, o]: [usize; 4], mut pair: impl FnMut(usize, usize)) {
    if [h, w, i, o].contains(&0) {
        // The other sizes may be anything.
        return;
    }
    for first in (0..o).step_by(BLOCK) {
        for input in 0..i {
            for tap in 0..h * w {
                let (row, place) = ((tap * i + input) * o, input * h * w + tap);
                for output in first..o.min(first + BLOCK) {
                    pair(row + output, output * i * h * w + place);
                }
            }
        }
    }
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
        let [o, i, h, w] = [4, 3, 2, 5];
        let mut oihw = Vec::new();
        for at in 0..o * i * h * w {
            oihw.push(coded(at / (i * h * w), at / (h * w) % i, at / w % h, at % w));
        }
        let (shape, hwio) = conv_to_hwio([o, i, h, w], &oihw).unwrap();
        assert_eq!(shape, [h, w, i, o]);
        assert_eq!(hwio[((w + 3) * i + 2) * o + 1], coded(1, 2, 1, 3));
        assert_eq!(&hwio[..4], &[0.0, 1000.0, 2000.0, 3000.0]);
        let (shape, back) = conv_from_hwio(shape, &hwio).unwrap();
        assert_eq!((shape, back), ([o, i, h, w], oihw));
    }

    #[test]
    fn a_depthwise_convolution_has_one_input_channel_per_group() {
        let oihw: Vec<f32> = (0..2 * 9).map(|value| value as f32).collect();
        let (shape, hwio) = conv_to_hwio([2, 1, 3, 3], &oihw).unwrap();
        assert_eq!(shape, [3, 3, 1, 2]);
        assert_eq!(&hwio[..4], &[0.0, 9.0, 1.0, 10.0]);
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert!(conv_to_hwio([2, 1, 3, 3], &[0.0; 17]).is_err());
        assert!(conv_from_hwio([usize::MAX, 2, 1, 1], &[]).is_err());
        assert_eq!(conv_to_hwio([0, 1, 3, 3], &[]).unwrap(), ([3, 3, 1, 0], vec![]));
        assert_eq!(conv_to_hwio([0, 1 << 40, 1 << 40, 9], &[]).unwrap().1, Vec::<f32>::new());
        assert_eq!(conv_to_hwio([4, 1 << 40, 0, 9], &[]).unwrap().1, Vec::<f32>::new());
    }
}
