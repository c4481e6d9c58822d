//! Linear layers with bias, and the head: global average pool and a linear layer.

use super::{Parameter, Workspace};
use crate::Tensor;
use crate::arch;
use crate::kernels::conv::{self, ConvGeometry, GeometryError};
use crate::kernels::gemm::Epilogue;
use crate::kernels::pool::LinearPool;
use crate::kernels::{Context, Level, Operands};

/// A linear layer with bias, which is a 1×1 convolution of one pixel.
#[derive(Debug)]
pub struct Linear {
    kernel: conv::Conv,
    /// The weights.
    pub weight: Parameter,
    /// The bias.
    pub bias: Parameter,
}

/// How torch stores the weights of a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// As a matrix, `[out, in]`.
    Matrix,
    /// As a 1×1 convolution, `[out, in, 1, 1]`.
    Convolution,
}

impl Linear {
    /// A layer named `name` from `features` to `outputs` values; `weight` is `[in, out]`.
    ///
    /// # Errors
    /// When a size is 0.
    pub fn new(
        level: Level,
        name: &str,
        [features, outputs]: [usize; 2],
        stored: Stored,
        weight: Vec<f32>,
        bias: Vec<f32>,
    ) -> Result<Self, GeometryError> {
        let kernel = conv::Conv::new(level, ConvGeometry::square(features, outputs, 1, 1), [1, 1])?;
        let shape = match stored {
            Stored::Matrix => vec![outputs, features],
            Stored::Convolution => vec![outputs, features, 1, 1],
        };
        Ok(Linear {
            kernel,
            weight: Parameter::weight(format!("{name}.weight"), shape, weight),
            bias: Parameter::vector(format!("{name}.bias"), bias),
        })
    }

    /// The parameters, in torch's order.
    pub fn parameters(&self) -> [&Parameter; 2] {
        [&self.weight, &self.bias]
    }

    /// The parameters, in torch's order.
    pub fn parameters_mut(&mut self) -> [&mut Parameter; 2] {
        [&mut self.weight, &mut self.bias]
    }

    /// `[N, 1, 1, in]` → `[N, 1, 1, out]`.
    pub fn forward(&self, cx: &Context, workspace: &mut Workspace, x: &Tensor, relu: bool) -> Tensor {
        let mut y = workspace.tensor([x.batch(), 1, 1, self.bias.value.len()]);
        let epilogue = Epilogue { bias: Some(&self.bias.value), relu, ..Epilogue::default() };
        let weights = (Operands::F32, &self.weight.value[..]);
        let direct = &mut workspace.direct;
        self.kernel.pack_and_forward(cx, x.data(), weights, epilogue, direct, y.data_mut());
        y
    }

    /// The parameters' gradients and the input's, from that of the output before a ReLU.
    pub fn backward(&mut self, cx: &Context, workspace: &mut Workspace, x: &Tensor, dy: &Tensor) -> Tensor {
        let outputs = self.bias.value.len();
        for (output, grad) in self.bias.grad_mut().iter_mut().enumerate() {
            let column = dy.data().iter().skip(output).step_by(outputs);
            *grad = column.map(|&value| f64::from(value)).sum::<f64>() as f32;
        }
        let mut dx = workspace.tensor(x.shape());
        let Linear { kernel, weight, .. } = self;
        let (direct, epilogue) = (&mut workspace.direct, Epilogue::default());
        kernel.grad_weight(cx, Operands::F32, x.data(), dy.data(), direct, weight.grad_mut());
        let weights = (Operands::F32, &weight.value[..]);
        kernel.pack_and_grad_input(cx, dy.data(), weights, epilogue, direct, dx.data_mut());
        dx
    }
}

/// Global average pool and a linear layer.
#[derive(Debug)]
pub struct Head {
    pool: LinearPool,
    /// The linear layer.
    pub linear: Linear,
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
        let stored = if conv { Stored::Convolution } else { Stored::Matrix };
        let linear = Linear::new(level, name, [features, classes], stored, weight, bias)?;
        Ok(Head { pool, linear })
    }

    /// Feature maps `[N, H, W, C]` → their averages `[N, 1, 1, C]`.
    pub fn pool(&self, cx: &Context, workspace: &mut Workspace, x: &Tensor) -> Tensor {
        let mut pooled = workspace.tensor([x.batch(), 1, 1, x.channels()]);
        self.pool.forward(cx, x.data(), pooled.data_mut());
        pooled
    }

    /// Feature maps `[N, H, W, C]` → logits `[N, 1, 1, classes]`.
    pub fn forward(&self, cx: &Context, workspace: &mut Workspace, x: &Tensor) -> (Tensor, HeadSaved) {
        let pooled = self.pool(cx, workspace, x);
        let logits = self.linear.forward(cx, workspace, &pooled, false);
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
        let HeadSaved { pooled, features } = saved;
        let dpooled = self.linear.backward(cx, workspace, &pooled, dlogits);
        let mut dx = workspace.tensor(features);
        self.pool.backward(cx, dpooled.data(), dx.data_mut());
        workspace.give(pooled);
        workspace.give(dpooled);
        dx
    }
}
