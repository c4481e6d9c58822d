//! Pools: the stem's, and those that down-sample a block instead of a stride.

use super::Workspace;
use crate::Tensor;
use crate::arch::PoolKind;
use crate::kernels::Context;
use crate::kernels::conv::GeometryError;
use crate::kernels::pool::{LinearPool, MaxPool};

/// A pool for one input size.
#[derive(Debug)]
enum Pool {
    /// The largest value of each window.
    Max(MaxPool),
    /// An average or a blur.
    Linear(LinearPool),
}

/// Pools one after the other, for one input size.
#[derive(Debug)]
pub struct Pools(Vec<Pool>);

/// The pools' output, and which tap won where that matters.
#[derive(Debug)]
pub struct Pooled {
    /// `[N, H/s, W/s, C]`.
    pub output: Tensor,
    /// For each max pool the winning tap of each of its outputs.
    winners: Vec<Vec<u8>>,
}

impl Pool {
    fn new(kind: PoolKind, input: [usize; 2], channels: usize) -> Result<Self, GeometryError> {
        Ok(match kind {
            PoolKind::Max(window) => Pool::Max(MaxPool::new([window; 2], input)?),
            PoolKind::Avg(window) => Pool::Linear(LinearPool::average(input, channels, window)?),
            PoolKind::Blur { stride } => Pool::Linear(LinearPool::blur(input, channels, stride)?),
        })
    }

    fn output(&self) -> [usize; 2] {
        match self {
            Pool::Max(pool) => pool.output(),
            Pool::Linear(pool) => pool.output(),
        }
    }

    fn forward(
        &self,
        cx: &Context,
        workspace: &mut Workspace,
        x: &Tensor,
        winners: &mut Vec<Vec<u8>>,
    ) -> Tensor {
        let [height, width] = self.output();
        let mut y = workspace.tensor([x.batch(), height, width, x.channels()]);
        match self {
            Pool::Max(pool) => {
                let mut won = workspace.bytes(y.data().len());
                pool.forward(cx, x.channels(), x.data(), y.data_mut(), &mut won);
                winners.push(won);
            }
            Pool::Linear(pool) => pool.forward(cx, x.data(), y.data_mut()),
        }
        y
    }

    /// The gradient of the input, which has the shape `shape`.
    fn backward(
        &self,
        cx: &Context,
        workspace: &mut Workspace,
        shape: [usize; 4],
        winners: &mut Vec<Vec<u8>>,
        dy: &Tensor,
    ) -> Tensor {
        let mut dx = workspace.tensor(shape);
        match self {
            Pool::Max(pool) => {
                let won = winners.pop().expect("a max pool keeps its winners");
                pool.backward(cx, shape[3], dy.data(), &won, dx.data_mut());
                workspace.give_bytes(won);
            }
            Pool::Linear(pool) => pool.backward(cx, dy.data(), dx.data_mut()),
        }
        dx
    }
}

impl Pools {
    /// The pools of these kinds, for feature maps of `[height, width]` and `channels`; nothing where there are none.
    ///
    /// # Errors
    /// When the feature map is too small.
    pub fn new(
        kinds: &[PoolKind],
        mut input: [usize; 2],
        channels: usize,
    ) -> Result<Option<Self>, GeometryError> {
        let mut pools = Vec::with_capacity(kinds.len());
        for &kind in kinds {
            let pool = Pool::new(kind, input, channels)?;
            input = pool.output();
            pools.push(pool);
        }
        Ok((!pools.is_empty()).then_some(Pools(pools)))
    }

    /// `[N, H, W, C]` → `[N, H/s, W/s, C]`.
    pub fn forward(&self, cx: &Context, workspace: &mut Workspace, x: &Tensor) -> Pooled {
        let mut winners = Vec::new();
        let (first, rest) = self.0.split_first().expect("there is a pool");
        let mut output = first.forward(cx, workspace, x, &mut winners);
        for pool in rest {
            let next = pool.forward(cx, workspace, &output, &mut winners);
            workspace.give(std::mem::replace(&mut output, next));
        }
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
        let Pooled { output, mut winners } = saved;
        workspace.give(output);
        let mut gradient: Option<Tensor> = None;
        for (index, pool) in self.0.iter().enumerate().rev() {
            let [height, width] = match index {
                0 => [shape[1], shape[2]],
                _ => self.0[index - 1].output(),
            };
            let shape = [shape[0], height, width, shape[3]];
            let dx = pool.backward(cx, workspace, shape, &mut winners, gradient.as_ref().unwrap_or(dy));
            gradient.replace(dx).into_iter().for_each(|old| workspace.give(old));
        }
        gradient.expect("there is a pool")
    }
}

impl Pooled {
    /// The output alone; the rest is given back.
    pub fn discard(self, workspace: &mut Workspace) -> Tensor {
        self.winners.into_iter().for_each(|won| workspace.give_bytes(won));
        self.output
    }
}
