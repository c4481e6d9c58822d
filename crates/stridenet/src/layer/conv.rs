//! A convolution without bias: a batch norm always follows.

use super::{Parameter, Workspace};
use crate::Tensor;
use crate::kernels::conv::{self, BackwardWeights, ConvGeometry, ForwardWeights, GeometryError};
use crate::kernels::gemm::{Epilogue, Residual};
use crate::kernels::{Context, Level};
use std::sync::OnceLock;

/// A convolution for one input size. Its weights are packed for a pass when the pass first runs.
#[derive(Debug)]
pub struct Conv {
    kernel: conv::Conv,
    /// The weights.
    pub weight: Parameter,
    forward: OnceLock<ForwardWeights>,
    backward: Option<BackwardWeights>,
}

impl Conv {
    /// A convolution named `name` for inputs of `[height, width]`, with weights in HWIO order.
    ///
    /// # Errors
    /// When the input is too small for the geometry.
    pub fn new(
        level: Level,
        name: &str,
        geometry: ConvGeometry,
        input: [usize; 2],
        weight: Vec<f32>,
    ) -> Result<Self, GeometryError> {
        let kernel = conv::Conv::new(level, geometry, input)?;
        let shape = vec![geometry.out_channels, geometry.group_in(), geometry.kernel[0], geometry.kernel[1]];
        let weight = Parameter::weight(format!("{name}.weight"), shape, weight);
        Ok(Conv { kernel, weight, forward: OnceLock::new(), backward: None })
    }

    /// Output size `[height, width]`.
    pub fn output(&self) -> [usize; 2] {
        self.kernel.output()
    }

    /// Packs the weights again after they have changed, for the passes that have run.
    pub fn refresh(&mut self, cx: &Context) {
        if let Some(packed) = self.forward.get_mut() {
            self.kernel.repack_forward(cx, &self.weight.value, packed);
        }
        if let Some(packed) = &mut self.backward {
            self.kernel.repack_backward(&self.weight.value, packed);
        }
    }

    /// `[N, H, W, in]` → `[N, H/s, W/s, out]`.
    pub fn forward(&self, cx: &Context, workspace: &mut Workspace, x: &Tensor) -> Tensor {
        let [height, width] = self.kernel.output();
        let mut y = workspace.tensor([x.batch(), height, width, self.kernel.geometry().out_channels]);
        let packed = self.forward.get_or_init(|| self.kernel.pack_forward(cx, &self.weight.value));
        let (epilogue, scratch) = (Epilogue::default(), &mut workspace.conv);
        self.kernel.forward(cx, x.data(), packed, epilogue, scratch, y.data_mut());
        y
    }

    /// The weights' gradient, and the input's, to which `also` is added: another gradient of the same input.
    pub fn backward(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        x: &Tensor,
        dy: &Tensor,
        also: Option<&Tensor>,
    ) -> Tensor {
        self.grad_weight(cx, workspace, x, dy);
        let mut dx = workspace.tensor(x.shape());
        let epilogue =
            Epilogue { residual: also.map(|also| Residual::Tensor(also.data())), ..Epilogue::default() };
        let Conv { kernel, weight, backward, .. } = self;
        let packed = backward.get_or_insert_with(|| kernel.pack_backward(&weight.value));
        kernel.grad_input(cx, dy.data(), packed, epilogue, dx.data_mut());
        dx
    }

    /// The weights' gradient alone, for the first convolution of a network.
    pub fn grad_weight(&mut self, cx: &Context, workspace: &mut Workspace, x: &Tensor, dy: &Tensor) {
        self.kernel.grad_weight(cx, x.data(), dy.data(), &mut workspace.conv, self.weight.grad_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_packed_when_a_pass_first_runs_and_again_when_they_change() {
        let (cx, mut workspace) = (Context::new(Level::detect(), 2), Workspace::default());
        let geometry = ConvGeometry::square(3, 5, 3, 2);
        let weight = (0..geometry.weight_len()).map(|value| (value % 7) as f32 - 3.0).collect();
        let mut conv = Conv::new(cx.level(), "conv", geometry, [6, 6], weight).unwrap();
        conv.refresh(&cx);
        assert!(conv.forward.get().is_none() && conv.backward.is_none() && conv.weight.grad.is_empty());
        let x = Tensor::new([1, 6, 6, 3], (0..108).map(|value| (value % 5) as f32 - 2.0).collect()).unwrap();
        let y = conv.forward(&cx, &mut workspace, &x);
        assert!(conv.backward.is_none() && y.data().iter().any(|&value| value != 0.0));
        let dx = conv.backward(&cx, &mut workspace, &x, &y, None);
        conv.weight.value.iter_mut().for_each(|value| *value *= 2.0);
        conv.refresh(&cx);
        let doubled = |tensor: &Tensor| tensor.data().iter().map(|value| 2.0 * value).collect::<Vec<_>>();
        assert_eq!(conv.forward(&cx, &mut workspace, &x).data(), doubled(&y));
        assert_eq!(conv.backward(&cx, &mut workspace, &x, &y, None).data(), doubled(&dx));
    }
}
