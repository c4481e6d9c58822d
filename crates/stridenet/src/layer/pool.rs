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
    /// The winning taps of the max pools, one pool after the other; nothing where there is none.
    winners: Option<Vec<u8>>,
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

    /// Bytes for the winning taps of outputs for inputs of `images` images and `channels`.
    fn winners_len(&self, images: usize, channels: usize) -> usize {
        match self {
            Pool::Max(pool) => pool.winners_len(images, channels),
            Pool::Linear(_) => 0,
        }
    }

    fn forward(&self, cx: &Context, workspace: &mut Workspace, x: &Tensor, winners: &mut [u8]) -> Tensor {
        let [height, width] = self.output();
        let mut y = workspace.tensor([x.batch(), height, width, x.channels()]);
        match self {
            Pool::Max(pool) => pool.forward(cx, x.channels(), x.data(), y.data_mut(), winners),
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
        winners: &[u8],
        dy: &Tensor,
    ) -> Tensor {
        let mut dx = workspace.tensor(shape);
        match self {
            Pool::Max(pool) => pool.backward(cx, shape[3], dy.data(), winners, dx.data_mut()),
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
        let lengths = self.0.iter().map(|pool| pool.winners_len(x.batch(), x.channels()));
        let mut winners =
            Some(lengths.sum()).filter(|&length| length > 0).map(|length| workspace.bytes(length));
        let mut rest = winners.as_deref_mut().unwrap_or_default();
        let mut output: Option<Tensor> = None;
        for pool in &self.0 {
            let (own, others) = rest.split_at_mut(pool.winners_len(x.batch(), x.channels()));
            let next = pool.forward(cx, workspace, output.as_ref().unwrap_or(x), own);
            output.replace(next).into_iter().for_each(|old| workspace.give(old));
            rest = others;
        }
        Pooled { output: output.expect("there is a pool"), winners }
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
        let Pooled { output, winners } = saved;
        workspace.give(output);
        let mut rest = winners.as_deref().unwrap_or_default();
        let mut gradient: Option<Tensor> = None;
        for (index, pool) in self.0.iter().enumerate().rev() {
            let [height, width] = match index {
                0 => [shape[1], shape[2]],
                _ => self.0[index - 1].output(),
            };
            let own = pool.winners_len(shape[0], shape[3]);
            let (before, own) = rest.split_at(rest.len() - own);
            let shape = [shape[0], height, width, shape[3]];
            let dx = pool.backward(cx, workspace, shape, own, gradient.as_ref().unwrap_or(dy));
            gradient.replace(dx).into_iter().for_each(|old| workspace.give(old));
            rest = before;
        }
        winners.into_iter().for_each(|won| workspace.give_bytes(won));
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
