//! Outputs that are not written down.

use super::Workspace;
use crate::Tensor;
use crate::kernels::{Context, Prologue, Source, norm};

/// A layer's output as the next one reads it: a tensor, and perhaps the batch norm and the ReLU that it goes through on its way in.
#[derive(Debug, Clone, Copy)]
pub struct Activation<'a> {
    /// The values, `[N, H, W, C]`.
    pub tensor: &'a Tensor,
    /// What they go through first.
    pub prologue: Option<Prologue<'a>>,
}

impl<'a> From<&'a Tensor> for Activation<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        Activation { tensor, prologue: None }
    }
}

impl<'a> Activation<'a> {
    /// The values that the next layer sees, unless they are the tensor's.
    pub(super) fn applied(self, cx: &Context, workspace: &mut Workspace) -> Option<Tensor> {
        let Prologue { scale, shift } = self.prologue?;
        let mut applied = workspace.tensor(self.tensor.shape());
        let apply = norm::Apply { x: self.tensor.data(), scale, shift, residual: None, relu: true };
        norm::apply(cx, apply, applied.data_mut());
        Some(applied)
    }

    /// The same for a convolution.
    pub(super) fn source(self) -> Source<'a> {
        Source { values: self.tensor.data(), prologue: self.prologue }
    }
}
