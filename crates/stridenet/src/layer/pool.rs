//! Pools: the stem's max pool, and those that down-sample a block instead of a stride.

use super::Workspace;
use crate::Tensor;
use crate::arch::PoolKind;
use crate::kernels::Context;
use crate::kernels::conv::GeometryError;
use crate::kernels::pool::{LinearPool, MaxPool};

/// A pool for one input size.
#[derive(Debug)]
pub enum Pool {
    /// The largest value of each window.
    Max(MaxPool),
    /// An average or a blur.
    Linear(LinearPool),
}

/// A pool's output, and which tap won where that matters.
#[derive(Debug)]
pub struct Pooled {
    /// `[N, H/s, W/s, C]`.
    pub output: Tensor,
    /// For a max pool the winning tap of each output, `[N, H/s, W/s, C]`.
    winners: Option<Vec<u8>>,
}

impl Pool {
    /// The pool that `kind` describes, for feature maps of `[height, width]` and `channels`.
    ///
    /// # Errors
    /// When the feature map is too small.
    pub fn new(kind: PoolKind, input: [usize; 2], channels: usize) -> Result<Self, GeometryError> {
        Ok(match kind {
            PoolKind::Max(window) => Pool::Max(MaxPool::new([window; 2], input)?),
            PoolKind::Avg { stride } => Pool::Linear(LinearPool::average(input, channels, stride)?),
            PoolKind::Blur { stride } => Pool::Linear(LinearPool::blur(input, channels, stride)?),
        })
    }

    /// `[N, H, W, C]` → `[N, H/s, W/s, C]`.
    pub fn forward(&self, cx: &Context, workspace: &mut Workspace, x: &Tensor) -> Pooled {
        let [height, width] = match self {
            Pool::Max(pool) => pool.output(),
            Pool::Linear(pool) => pool.output(),
        };
        let mut output = workspace.tensor([x.batch(), height, width, x.channels()]);
        let winners = match self {
            Pool::Max(pool) => {
                let mut winners = workspace.bytes(output.data().len());
                pool.forward(cx, x.channels(), x.data(), output.data_mut(), &mut winners);
                Some(winners)
            }
            Pool::Linear(pool) => {
                pool.forward(cx, x.data(), output.data_mut());
                None
            }
        };
        Pooled { output, winners }
    }

    /// The gradient of the input, which has the shape `shape`. What the forward kept is given up.
    pub fn backward(
        &self,
        cx: &Context,
        workspace: &mut Workspace,
        shape: [usize; 4],
        saved: Pooled,
        dy: &Tensor,
    ) -> Tensor {
        let mut dx = workspace.tensor(shape);
        match (self, &saved.winners) {
            (Pool::Max(pool), Some(winners)) => {
                pool.backward(cx, shape[3], dy.data(), winners, dx.data_mut());
            }
            (Pool::Max(_), None) => unreachable!("a max pool keeps its winners"),
            (Pool::Linear(pool), _) => pool.backward(cx, dy.data(), dx.data_mut()),
        }
        let output = saved.discard(workspace);
        workspace.give(output);
        dx
    }
}

impl Pooled {
    /// The output alone; the rest is given back.
    pub fn discard(self, workspace: &mut Workspace) -> Tensor {
        if let Some(winners) = self.winners {
            workspace.give_bytes(winners);
        }
        self.output
    }
}
