//! Gradients on their way back.

use super::{NormSaved, Workspace};
use crate::Tensor;
use crate::kernels::norm::{Relu, Summed, Sums};
use crate::kernels::{Context, Follow};

/// The gradient of a layer's output, and perhaps the sums that the layer's batch norm takes of it.
#[derive(Debug)]
pub struct Gradient {
    /// The values, `[N, H, W, C]`. Where a residual was added to what the batch norm has made, and the sums are there, it is the part
    /// that passes the ReLU.
    pub tensor: Tensor,
    pub(super) summed: Option<Summed>,
}

impl From<Tensor> for Gradient {
    fn from(tensor: Tensor) -> Self {
        Gradient { tensor, summed: None }
    }
}

/// A batch norm that takes sums of the gradient of its output, which nothing but a ReLU and a residual's addition changes.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The batch norm's input, unless the backward pass does without it.
    pub(super) x: Option<&'a Tensor>,
    /// Its shape.
    pub(super) shape: [usize; 4],
    pub(super) norm: &'a NormSaved,
    pub(super) relu: Relu<'a>,
}

/// What becomes of the gradient of a unit's input.
#[derive(Debug, Default)]
pub struct Onward<'a> {
    /// Another gradient of the same input, which becomes the sum of both.
    pub also: Option<Tensor>,
    /// The batch norm before the unit, which takes its sums of it.
    pub wanted: Option<Wanted<'a>>,
}

impl Gradient {
    /// The gradient that `write` writes, whose rows it lets be worked on; the sums are taken meanwhile where they are wanted.
    pub(super) fn written(
        cx: &Context,
        workspace: &mut Workspace,
        wanted: Option<Wanted>,
        write: impl FnOnce(&mut Workspace, Option<Follow>) -> Tensor,
    ) -> Self {
        let Some(Wanted { x, shape, norm, relu }) = wanted else { return write(workspace, None).into() };
        let mut scratch = std::mem::take(&mut workspace.norm);
        let mut sums = Sums::new(cx, &mut scratch, (x.map(Tensor::data), shape), norm.mean(), relu);
        let tensor = write(workspace, Some(sums.follow()));
        let summed = Some(sums.finish(cx));
        workspace.norm = scratch;
        Gradient { tensor, summed }
    }
}
