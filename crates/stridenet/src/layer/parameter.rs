//! What training changes: named values and their gradients.

use crate::ShapeError;
use crate::weights::{conv_from_hwio, conv_to_hwio};

/// Whether weight decay applies by default: not to norms and biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decay {
    /// Weights of convolutions and linear layers.
    Weight,
    /// Gains and biases.
    NormOrBias,
}

/// A parameter and its gradient.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Torch's name, for example `layer1.0.conv1.weight`.
    pub name: String,
    /// Shape as torch writes it: OIHW for convolutions, `[out, in]` for linear layers, `[C]` for vectors.
    pub shape: Vec<usize>,
    /// Whether weight decay applies by default.
    pub decay: Decay,
    /// The values; a weight's are in HWIO order (`[in, out]` for linear layers).
    pub value: Vec<f32>,
    /// The gradient of the last backward pass; empty before the first one.
    pub grad: Vec<f32>,
}

impl Parameter {
    /// A vector of gains or biases.
    pub(crate) fn vector(name: String, value: Vec<f32>) -> Self {
        let shape = vec![value.len()];
        Parameter { name, shape, decay: Decay::NormOrBias, value, grad: Vec::new() }
    }

    /// A weight of torch's `shape`.
    pub(crate) fn weight(name: String, shape: Vec<usize>, value: Vec<f32>) -> Self {
        Parameter { name, shape, decay: Decay::Weight, value, grad: Vec::new() }
    }

    /// The gradient, to be written: as long as the value.
    pub(crate) fn grad_mut(&mut self) -> &mut [f32] {
        self.grad.resize(self.value.len(), 0.0);
        &mut self.grad
    }

    /// The value and the gradient, which is 0 before the first backward pass.
    pub(crate) fn value_and_grad(&mut self) -> (&mut [f32], &mut [f32]) {
        self.grad_mut();
        (&mut self.value, &mut self.grad)
    }

    /// Values stored as `value` and `grad` are (HWIO), in torch's order (OIHW).
    pub fn to_torch(&self, values: &[f32]) -> Vec<f32> {
        match self.oihw() {
            Some([o, i, h, w]) => permuted(conv_from_hwio([h, w, i, o], values)),
            None => values.to_vec(),
        }
    }

    /// Values in torch's order (OIHW), as `value` and `grad` store them (HWIO), in their own memory; `space` is used
    /// meanwhile.
    pub fn from_torch(&self, values: Vec<f32>, space: &mut Vec<f32>) -> Vec<f32> {
        match self.oihw() {
            Some(shape) => permuted(conv_to_hwio(shape, values, space)),
            None => values,
        }
    }

    /// The shape of a weight; a linear layer's is that of a 1×1 convolution.
    fn oihw(&self) -> Option<[usize; 4]> {
        match self.shape[..] {
            [out, inner] => Some([out, inner, 1, 1]),
            [out, inner, height, width] => Some([out, inner, height, width]),
            _ => None,
        }
    }
}

fn permuted(result: Result<([usize; 4], Vec<f32>), ShapeError>) -> Vec<f32> {
    result.expect("a parameter's values fill its shape").1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_stored_as_hwio_and_written_as_oihw() {
        let values: Vec<f32> = (0..24).map(|value| value as f32).collect();
        let conv = Parameter::weight("w".into(), vec![2, 3, 2, 2], values.clone());
        let torch = conv.to_torch(&conv.value);
        // [o, i, h, w] = [1, 2, 0, 1] in torch's order is [h, w, i, o] = [0, 1, 2, 1] here.
        assert_eq!(torch[((3 + 2) * 2) * 2 + 1], values[(3 + 2) * 2 + 1]);
        assert_eq!(conv.from_torch(torch, &mut Vec::new()), values);
        let linear = Parameter::weight("w".into(), vec![2, 12], values.clone());
        assert_eq!(linear.to_torch(&values)[..3], [0.0, 2.0, 4.0]);
        let vector = Parameter::vector("b".into(), values.clone());
        assert_eq!(vector.to_torch(&values), values);
    }
}
