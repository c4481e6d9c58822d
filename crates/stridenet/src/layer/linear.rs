//! The head: global average pool and a linear layer with bias.

use super::{Parameter, Workspace};
use crate::Tensor;
use crate::kernels::conv::{self, BackwardWeights, ConvGeometry, ForwardWeights, GeometryError};
use crate::kernels::gemm::Epilogue;
use crate::kernels::pool::LinearPool;
use crate::kernels::{Context, Level};

/// Global average pool and a linear layer, which is a 1×1 convolution of one pixel.
#[derive(Debug)]
pub struct Head {
    pool: LinearPool,
    kernel: conv::Conv,
    /// The weights.
    pub weight: Parameter,
    /// The bias.
    pub bias: Parameter,
    forward: ForwardWeights,
    backward: BackwardWeights,
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
    /// A head named `name` for feature maps of `[height, width]`; `weight` is `[in, out]`, and its sizes are the length of
    /// `bias` and the rest.
    ///
    /// # Errors
    /// When a size is 0.
    pub fn new(
        level: Level,
        name: &str,
        input: [usize; 2],
        weight: Vec<f32>,
        bias: Vec<f32>,
    ) -> Result<Self, GeometryError> {
        let (features, classes) = (weight.len() / bias.len().max(1), bias.len());
        let pool = LinearPool::global_average(input, features)?;
        let kernel = conv::Conv::new(level, ConvGeometry::square(features, classes, 1, 1), [1, 1])?;
        let (forward, backward) = (kernel.pack_forward(&weight), kernel.pack_backward(&weight));
        let shape = vec![classes, features];
        let weight = Parameter::weight(format!("{name}.weight"), shape, weight);
        Ok(Head {
            pool,
            kernel,
            weight,
            bias: Parameter::vector(format!("{name}.bias"), bias),
            forward,
            backward,
        })
    }

    /// Packs the weights again after they have changed.
    pub fn refresh(&mut self) {
        self.kernel.repack_forward(&self.weight.value, &mut self.forward);
        self.kernel.repack_backward(&self.weight.value, &mut self.backward);
    }

    /// Feature maps `[N, H, W, C]` → logits `[N, 1, 1, classes]`.
    pub fn forward(&self, cx: &Context, workspace: &mut Workspace, x: &Tensor) -> (Tensor, HeadSaved) {
        let mut pooled = workspace.tensor([x.batch(), 1, 1, x.channels()]);
        self.pool.forward(cx, x.data(), pooled.data_mut());
        let mut logits = workspace.tensor([x.batch(), 1, 1, self.bias.value.len()]);
        let epilogue = Epilogue { bias: Some(&self.bias.value), ..Epilogue::default() };
        self.kernel.forward(
            cx,
            pooled.data(),
            &self.forward,
            epilogue,
            &mut workspace.conv,
            logits.data_mut(),
        );
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
        for (class, grad) in self.bias.grad.iter_mut().enumerate() {
            let column = dlogits.data().iter().skip(class).step_by(classes);
            *grad = column.map(|&value| f64::from(value)).sum::<f64>() as f32;
        }
        let (pooled, scratch) = (saved.pooled, &mut workspace.conv);
        self.kernel.grad_weight(cx, pooled.data(), dlogits.data(), scratch, &mut self.weight.grad);
        let mut dpooled = workspace.tensor(pooled.shape());
        self.kernel.grad_input(cx, dlogits.data(), &self.backward, Epilogue::default(), dpooled.data_mut());
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
