//! The head: global average pool and a linear layer with bias.

use super::{Parameter, Workspace};
use crate::Tensor;
use crate::arch;
use crate::kernels::conv::{self, BackwardWeights, ConvGeometry, ForwardWeights, GeometryError};
use crate::kernels::gemm::Epilogue;
use crate::kernels::pool::LinearPool;
use crate::kernels::{Context, Level};
use std::sync::OnceLock;

/// Global average pool and a linear layer, which is a 1×1 convolution of one pixel. Its weights are packed for a pass when
/// the pass first runs.
#[derive(Debug)]
pub struct Head {
    pool: LinearPool,
    kernel: conv::Conv,
    /// The weights.
    pub weight: Parameter,
    /// The bias.
    pub bias: Parameter,
    forward: OnceLock<ForwardWeights>,
    backward: Option<BackwardWeights>,
}

/// What the backward pass needs.
#[derive(Debug)]
pub struct HeadSaved {
    /// Averages of the feature maps, `[N, 1, 1, C]`.
    pooled: Tensor,
    /// Shape of the feature maps.
    features: [usize; 4],
}

impl Head {
    /// The head that `description` describes, for feature maps of `[height, width]`; `weight` is `[in, out]`.
    ///
    /// # Errors
    /// When a size is 0.
    pub fn new(
        level: Level,
        description: &arch::Head,
        input: [usize; 2],
        weight: Vec<f32>,
        bias: Vec<f32>,
    ) -> Result<Self, GeometryError> {
        let &arch::Head { ref name, in_features: features, out_features: classes, conv } = description;
        let pool = LinearPool::global_average(input, features)?;
        let kernel = conv::Conv::new(level, ConvGeometry::square(features, classes, 1, 1), [1, 1])?;
        let mut shape = vec![classes, features];
        if conv {
            shape.extend([1, 1]);
        }
        let weight = Parameter::weight(format!("{name}.weight"), shape, weight);
        Ok(Head {
            pool,
            kernel,
            weight,
            bias: Parameter::vector(format!("{name}.bias"), bias),
            forward: OnceLock::new(),
            backward: None,
        })
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

    /// Feature maps `[N, H, W, C]` → logits `[N, 1, 1, classes]`.
    pub fn forward(&self, cx: &Context, workspace: &mut Workspace, x: &Tensor) -> (Tensor, HeadSaved) {
        let mut pooled = workspace.tensor([x.batch(), 1, 1, x.channels()]);
        self.pool.forward(cx, x.data(), pooled.data_mut());
        let mut logits = workspace.tensor([x.batch(), 1, 1, self.bias.value.len()]);
        let epilogue = Epilogue { bias: Some(&self.bias.value), ..Epilogue::default() };
        let packed = self.forward.get_or_init(|| self.kernel.pack_forward(cx, &self.weight.value));
        self.kernel.forward(cx, pooled.data(), packed, epilogue, &mut workspace.conv, logits.data_mut());
        (logits, HeadSaved { pooled, features: x.shape() })
    }

    /// The parameters' gradients and the feature maps'.
    pub fn backward(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        saved: HeadSaved,
        dlogits: &Tensor,
    ) -> Tensor {
        let classes = self.bias.value.len();
        for (class, grad) in self.bias.grad_mut().iter_mut().enumerate() {
            let column = dlogits.data().iter().skip(class).step_by(classes);
            *grad = column.map(|&value| f64::from(value)).sum::<f64>() as f32;
        }
        let (pooled, scratch) = (saved.pooled, &mut workspace.conv);
        self.kernel.grad_weight(cx, pooled.data(), dlogits.data(), scratch, self.weight.grad_mut());
        let mut dpooled = workspace.tensor(pooled.shape());
        let Head { kernel, weight, backward, .. } = self;
        let packed = backward.get_or_insert_with(|| kernel.pack_backward(&weight.value));
        kernel.grad_input(cx, dlogits.data(), packed, Epilogue::default(), dpooled.data_mut());
        let mut dx = workspace.tensor(saved.features);
        self.pool.backward(cx, dpooled.data(), dx.data_mut());
        workspace.give(pooled);
        workspace.give(dpooled);
        dx
    }

    /// Feature maps `[N, H, W, C]` → logits `[N, 1, 1, classes]`, keeping nothing.
    pub fn infer(&self, cx: &Context, workspace: &mut Workspace, x: &Tensor) -> Tensor {
        let (logits, saved) = self.forward(cx, workspace, x);
        workspace.give(saved.pooled);
        logits
    }
}
