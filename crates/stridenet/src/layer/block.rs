//! The residual block, `ReLU(F(x) + shortcut(x))`: basic and bottleneck blocks differ in their units alone.

use super::{Pooled, Pools, Unit, UnitSaved, Workspace};
use crate::Tensor;
use crate::kernels::Context;
use crate::kernels::pool::LinearPool;

/// A residual block.
#[derive(Debug)]
pub struct Block {
    /// The units of F, in order.
    pub units: Vec<Unit>,
    /// What happens to x beside F.
    pub shortcut: Shortcut,
}

/// The path beside F.
#[derive(Debug)]
pub enum Shortcut {
    /// x itself.
    Identity,
    /// A convolution with the block's stride and a batch norm, with the pools before them that have the stride instead.
    Projection(Option<Pools>, Box<Unit>),
    /// Every `stride`-th pixel, with zero channels around (option A of He et al. 2015).
    ZeroPad {
        /// Keeps the pixels.
        pool: LinearPool,
        /// Channels of the output.
        out_channels: usize,
    },
}

/// What the backward pass needs of a block besides its input.
#[derive(Debug)]
pub struct BlockSaved {
    units: Vec<UnitSaved>,
    projection: Option<ProjectionSaved>,
}

/// What the backward pass needs of a projection.
#[derive(Debug)]
struct ProjectionSaved {
    /// Its input where a pool made it.
    pooled: Option<Pooled>,
    unit: UnitSaved,
}

impl BlockSaved {
    /// The block's output.
    pub fn output(&self) -> &Tensor {
        self.units[self.units.len() - 1].output()
    }
}

impl Block {
    /// All units: those of F, then the projection.
    pub fn all_units(&self) -> impl Iterator<Item = &Unit> {
        let projection = match &self.shortcut {
            Shortcut::Projection(_, unit) => Some(&**unit),
            Shortcut::Identity | Shortcut::ZeroPad { .. } => None,
        };
        self.units.iter().chain(projection)
    }

    /// All units: those of F, then the projection.
    pub fn all_units_mut(&mut self) -> impl Iterator<Item = &mut Unit> {
        let projection = match &mut self.shortcut {
            Shortcut::Projection(_, unit) => Some(&mut **unit),
            Shortcut::Identity | Shortcut::ZeroPad { .. } => None,
        };
        self.units.iter_mut().chain(projection)
    }

    /// Training.
    pub fn forward(&mut self, cx: &Context, workspace: &mut Workspace, x: &Tensor) -> BlockSaved {
        let (last, first) = self.units.split_last_mut().expect("a block has units");
        let mut units: Vec<UnitSaved> = Vec::with_capacity(first.len() + 1);
        for unit in first {
            let saved = unit.forward(cx, workspace, units.last().map_or(x, UnitSaved::output), None);
            units.last_mut().into_iter().for_each(|before| before.release(workspace));
            units.push(saved);
        }
        let input = units.last().map_or(x, UnitSaved::output);
        let (saved, projection) = match &mut self.shortcut {
            Shortcut::Identity => (last.forward(cx, workspace, input, Some(x)), None),
            Shortcut::Projection(pool, unit) => {
                let pooled = pool.as_ref().map(|pool| pool.forward(cx, workspace, x));
                let from = pooled.as_ref().map_or(x, |pooled| &pooled.output);
                let mut unit = unit.forward(cx, workspace, from, None);
                let saved = last.forward(cx, workspace, input, Some(unit.output()));
                unit.release(workspace);
                (saved, Some(ProjectionSaved { pooled, unit }))
            }
            Shortcut::ZeroPad { pool, out_channels } => {
                let padded = zero_pad(cx, workspace, x, pool, *out_channels);
                let saved = last.forward(cx, workspace, input, Some(&padded));
                workspace.give(padded);
                (saved, None)
            }
        };
        units.last_mut().into_iter().for_each(|before| before.release(workspace));
        units.push(saved);
        BlockSaved { units, projection }
    }

    /// The parameters' gradients; returns the input's.
    pub fn backward(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        x: &Tensor,
        saved: BlockSaved,
        dy: Tensor,
    ) -> Tensor {
        let BlockSaved { mut units, projection } = saved;
        let (last, first) = self.units.split_last_mut().expect("a block has units");
        let pop = |units: &mut Vec<UnitSaved>| units.pop().expect("one for each unit");
        let saved = pop(&mut units);
        restore(cx, workspace, first, &mut units);
        let input = units.last().map_or(x, UnitSaved::output);
        let (mut dy, dresidual) = last.backward(cx, workspace, input, saved, dy, None);
        let dresidual = dresidual.expect("the last unit adds the shortcut");
        let dshortcut = self.shortcut.backward(cx, workspace, x, projection, dresidual);
        for index in (0..first.len()).rev() {
            let (before, rest) = first.split_at_mut(index);
            let (unit, saved) = (&mut rest[0], pop(&mut units));
            restore(cx, workspace, before, &mut units);
            let input = units.last().map_or(x, UnitSaved::output);
            let also = (index == 0).then_some(&dshortcut);
            dy = unit.backward(cx, workspace, input, saved, dy, also).0;
        }
        workspace.give(dshortcut);
        dy
    }

    /// Inference, keeping nothing.
    pub fn infer(&self, cx: &Context, workspace: &mut Workspace, x: &Tensor) -> Tensor {
        let (last, first) = self.units.split_last().expect("a block has units");
        let mut y: Option<Tensor> = None;
        for unit in first {
            let next = unit.infer(cx, workspace, y.as_ref().unwrap_or(x), None);
            y.replace(next).into_iter().for_each(|old| workspace.give(old));
        }
        let residual = match &self.shortcut {
            Shortcut::Identity => None,
            Shortcut::Projection(pool, unit) => {
                let pooled = pool.as_ref().map(|pool| pool.forward(cx, workspace, x).discard(workspace));
                let residual = unit.infer(cx, workspace, pooled.as_ref().unwrap_or(x), None);
                pooled.into_iter().for_each(|old| workspace.give(old));
                Some(residual)
            }
            Shortcut::ZeroPad { pool, out_channels } => Some(zero_pad(cx, workspace, x, pool, *out_channels)),
        };
        let input = y.as_ref().unwrap_or(x);
        let output = last.infer(cx, workspace, input, Some(residual.as_ref().unwrap_or(x)));
        y.into_iter().chain(residual).for_each(|old| workspace.give(old));
        output
    }
}

/// Restores the output of the last of these units.
fn restore(cx: &Context, workspace: &mut Workspace, units: &[Unit], saved: &mut [UnitSaved]) {
    if let Some((unit, saved)) = units.last().zip(saved.last_mut()) {
        unit.restore(cx, workspace, saved);
    }
}

/// The zero-padded shortcut of x.
fn zero_pad(
    cx: &Context,
    workspace: &mut Workspace,
    x: &Tensor,
    pool: &LinearPool,
    out_channels: usize,
) -> Tensor {
    let [height, width] = pool.output();
    let mut y = workspace.tensor([x.batch(), height, width, out_channels]);
    pool.forward(cx, x.data(), y.data_mut());
    y
}

impl Shortcut {
    /// The gradient of x by way of the shortcut; `dy` is given up.
    fn backward(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        x: &Tensor,
        projection: Option<ProjectionSaved>,
        dy: Tensor,
    ) -> Tensor {
        match (self, projection) {
            (Shortcut::Projection(pool, unit), Some(ProjectionSaved { pooled, unit: saved })) => {
                let from = pooled.as_ref().map_or(x, |pooled| &pooled.output);
                let dx = unit.backward(cx, workspace, from, saved, dy, None).0;
                let (Some(pool), Some(pooled)) = (pool, pooled) else { return dx };
                let dpooled = pool.backward(cx, workspace, x.shape(), pooled, &dx);
                workspace.give(dx);
                dpooled
            }
            (Shortcut::ZeroPad { pool, .. }, _) => {
                let mut dx = workspace.tensor(x.shape());
                pool.backward(cx, dy.data(), dx.data_mut());
                workspace.give(dy);
                dx
            }
            _ => dy,
        }
    }
}
