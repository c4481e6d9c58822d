//! Activations: a shape and its values.

use thiserror::Error;

/// A tensor's values do not fit its shape, or its shape is not the one asked for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ShapeError {
    /// The number of values differs from the product of the sizes.
    #[error("{found} values do not fill the shape {shape:?}")]
    Length {
        /// The shape, `[N, H, W, C]`.
        shape: [usize; 4],
        /// Number of values found.
        found: usize,
    },
    /// Another shape was expected.
    #[error("{what} has the shape {found:?}, expected {expected:?}")]
    Mismatch {
        /// What was looked at.
        what: String,
        /// The shape expected.
        expected: Vec<usize>,
        /// The shape found.
        found: Vec<usize>,
    },
}

/// A batch of images or feature maps: `f32` values in NHWC order.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    shape: [usize; 4],
    data: Vec<f32>,
}

impl Tensor {
    /// A tensor of `shape` `[N, H, W, C]` with the given values.
    ///
    /// # Errors
    /// When the number of values is not the product of the sizes.
    pub fn new(shape: [usize; 4], data: Vec<f32>) -> Result<Self, ShapeError> {
        let length = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        if length != Some(data.len()) {
            return Err(ShapeError::Length { shape, found: data.len() });
        }
        Ok(Tensor { shape, data })
    }

    /// A tensor from values in NCHW order, `[N, C, H, W]`, in which the ecosystem stores images.
    ///
    /// # Errors
    /// When the number of values is not the product of the sizes.
    pub fn from_nchw(
        [batch, channels, height, width]: [usize; 4],
        values: &[f32],
    ) -> Result<Self, ShapeError> {
        let shape = [batch, height, width, channels];
        let mut tensor = Tensor::new(shape, vec![0.0; values.len()])?;
        let pixels = height * width;
        for (index, value) in tensor.data.iter_mut().enumerate() {
            let (pixel, channel) = (index / channels, index % channels);
            *value = values[(pixel / pixels * channels + channel) * pixels + pixel % pixels];
        }
        Ok(tensor)
    }

    /// The values in NCHW order.
    pub fn to_nchw(&self) -> Vec<f32> {
        let [batch, height, width, channels] = self.shape;
        let pixels = height * width;
        let mut values = Vec::with_capacity(self.data.len());
        for image in 0..batch {
            for channel in 0..channels {
                let first = image * pixels * channels + channel;
                values.extend((0..pixels).map(|pixel| self.data[first + pixel * channels]));
            }
        }
        values
    }

    /// A tensor of zeros.
    pub fn zeros(shape: [usize; 4]) -> Self {
        Tensor { shape, data: vec![0.0; shape.iter().product()] }
    }

    /// The shape, `[N, H, W, C]`.
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// Number of images in the batch.
    pub fn batch(&self) -> usize {
        self.shape[0]
    }

    /// Height and width.
    pub fn size(&self) -> [usize; 2] {
        [self.shape[1], self.shape[2]]
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.shape[3]
    }

    /// The values in NHWC order.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// The values in NHWC order, to be changed.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// The values, without the shape.
    pub fn into_data(self) -> Vec<f32> {
        self.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_must_fill_the_shape() {
        assert!(Tensor::new([1, 2, 2, 3], vec![0.0; 12]).is_ok());
        let error = Tensor::new([1, 2, 2, 3], vec![0.0; 11]).unwrap_err();
        assert_eq!(error.to_string(), "11 values do not fill the shape [1, 2, 2, 3]");
        assert!(Tensor::new([usize::MAX, 2, 1, 1], vec![]).is_err());
    }

    #[test]
    fn channels_move_last_and_back() {
        let nchw: Vec<f32> = (0..2 * 3 * 2 * 2).map(|value| value as f32).collect();
        let tensor = Tensor::from_nchw([2, 3, 2, 2], &nchw).unwrap();
        assert_eq!(tensor.shape(), [2, 2, 2, 3]);
        assert_eq!(tensor.data()[..6], [0.0, 4.0, 8.0, 1.0, 5.0, 9.0]);
        assert_eq!(tensor.to_nchw(), nchw);
    }
}
