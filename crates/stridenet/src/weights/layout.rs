//! Convolution weights between torch's layout and the kernels'.

use crate::ShapeError;

/// From torch's OIHW, `[O, I / groups, H, W]`, to the kernels' HWIO, `[H, W, I / groups, O]`.
/// Returns the new shape and the values.
///
/// # Errors
/// When the number of values is not the product of the sizes.
pub fn conv_to_hwio(shape: [usize; 4], values: &[f32]) -> Result<([usize; 4], Vec<f32>), ShapeError> {
    permute(shape, values, [2, 3, 1, 0])
}

/// From the kernels' HWIO, `[H, W, I / groups, O]`, to torch's OIHW, `[O, I / groups, H, W]`.
/// Returns the new shape and the values.
///
/// # Errors
/// When the number of values is not the product of the sizes.
pub fn conv_from_hwio(shape: [usize; 4], values: &[f32]) -> Result<([usize; 4], Vec<f32>), ShapeError> {
    permute(shape, values, [3, 2, 0, 1])
}

/// Rearranges the axes: axis `i` of the result is axis `axes[i]` of the input.
fn permute(
    shape: [usize; 4],
    values: &[f32],
    axes: [usize; 4],
) -> Result<([usize; 4], Vec<f32>), ShapeError> {
    let length = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    if length != Some(values.len()) {
        return Err(ShapeError::Length { shape, found: values.len() });
    }
    let to = axes.map(|axis| shape[axis]);
    if values.is_empty() {
        // One size is 0; the products of the others may overflow.
        return Ok((to, Vec::new()));
    }
    let stride = [shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1];
    let step = axes.map(|axis| stride[axis]);
    let mut permuted = Vec::with_capacity(values.len());
    for a in 0..to[0] {
        for b in 0..to[1] {
            for c in 0..to[2] {
                let start = a * step[0] + b * step[1] + c * step[2];
                permuted.extend((0..to[3]).map(|d| values[start + d * step[3]]));
            }
        }
    }
    Ok((to, permuted))
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
    }
}
