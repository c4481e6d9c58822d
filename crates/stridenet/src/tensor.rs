//! Activations: a shape and its values.

use crate::kernels::zeros_in_lines;
use std::fmt;
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
pub struct Tensor {
    shape: [usize; 4],
    /// The values, from `first` on: they begin a cache line, so that vectors of them do not lie across two, unless they are a vector
    /// that was given.
    memory: Vec<f32>,
    first: usize,
}

/// Checks that `length` values fill a shape.
fn check_length(shape: [usize; 4], length: usize) -> Result<(), ShapeError> {
    let product = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    if product == Some(length) { Ok(()) } else { Err(ShapeError::Length { shape, found: length }) }
}

impl Tensor {
    /// A tensor of `shape` `[N, H, W, C]` with the given values.
    ///
    /// # Errors
    /// When the number of values is not the product of the sizes.
    pub fn new(shape: [usize; 4], data: Vec<f32>) -> Result<Self, ShapeError> {
        check_length(shape, data.len())?;
        Ok(Tensor { shape, memory: data, first: 0 })
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
        check_length(shape, values.len())?;
        let mut tensor = Tensor::zeros(shape);
        let pixels = height * width;
        for (index, value) in tensor.data_mut().iter_mut().enumerate() {
            let (pixel, channel) = (index / channels, index % channels);
            *value = values[(pixel / pixels * channels + channel) * pixels + pixel % pixels];
        }
        Ok(tensor)
    }

    /// The values in NCHW order.
    pub fn to_nchw(&self) -> Vec<f32> {
        let [batch, height, width, channels] = self.shape;
        let pixels = height * width;
        let data = self.data();
        let mut values = Vec::with_capacity(data.len());
        for image in 0..batch {
            for channel in 0..channels {
                let first = image * pixels * channels + channel;
                values.extend((0..pixels).map(|pixel| data[first + pixel * channels]));
            }
        }
        values
    }

    /// A tensor of zeros.
    pub fn zeros(shape: [usize; 4]) -> Self {
        let (memory, first) = zeros_in_lines(shape.iter().product());
        Tensor { shape, memory, first }
    }

    /// The same values in another shape of as many.
    pub(crate) fn into_shape(self, shape: [usize; 4]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), self.len(), "values of the shape {shape:?}");
        Tensor { shape, ..self }
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

    /// Number of values.
    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The values in NHWC order.
    pub fn data(&self) -> &[f32] {
        &self.memory[self.first..][..self.len()]
    }

    /// The values in NHWC order, to be changed.
    pub fn data_mut(&mut self) -> &mut [f32] {
        let length = self.len();
        &mut self.memory[self.first..][..length]
    }

    /// The values, without the shape; they may be moved to where a vector begins.
    pub fn into_data(mut self) -> Vec<f32> {
        self.memory.truncate(self.first + self.len());
        self.memory.drain(..self.first);
        self.memory
    }
}

impl Clone for Tensor {
    fn clone(&self) -> Self {
        let mut copy = Tensor::zeros(self.shape);
        copy.data_mut().copy_from_slice(self.data());
        copy
    }
}

impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        self.shape == other.shape && self.data() == other.data()
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tensor").field("shape", &self.shape).field("data", &self.data()).finish()
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
    fn values_begin_a_line_and_stay_the_same() {
        let given: Vec<f32> = (0..30).map(|value| value as f32).collect();
        for tensor in [Tensor::zeros([1, 2, 3, 5]), Tensor::new([1, 2, 3, 5], given).unwrap().clone()] {
            assert_eq!(tensor.data().as_ptr().addr() % 64, 0);
            let values = tensor.data().to_vec();
            let tensor = tensor.into_shape([5, 3, 2, 1]);
            assert_eq!((tensor.shape(), tensor.data()), ([5, 3, 2, 1], &*values));
            assert_eq!(tensor.into_data(), values);
        }
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
