//! Convolution, batch norm, ReLU and, where a pool down-samples, the pool.

use super::expansion::{Expansion, Moments};
use super::pool::{Pooled, Pools};
use super::{Activation, BatchNorm, Conv, Gradient, NormSaved, Onward, Parameter, Wanted, Workspace};
use crate::Tensor;
use crate::arch;
use crate::kernels::conv::GeometryError;
use crate::kernels::norm::Sums;
use crate::kernels::{Context, Level, pointwise};

/// A convolution, its batch norm, and what follows them.
#[derive(Debug)]
pub struct Unit {
    /// The convolution.
    pub conv: Conv,
    /// The batch norm, where one follows.
    pub norm: Option<BatchNorm>,
    relu: bool,
    pool: Option<Pools>,
    /// What training takes where it does without the convolution's output.
    expansion: Option<Expansion>,
}

/// What the backward pass needs of a unit besides its input.
#[derive(Debug, Default)]
pub struct UnitSaved {
    /// The convolution's output, `[N, H/s, W/s, C]`, while somebody reads it; without a batch norm, with the residual.
    raw: Option<Tensor>,
    /// The batch's statistics, where there is a batch norm.
    norm: Option<NormSaved>,
    /// What stands in the place of the convolution's output.
    moments: Option<Moments>,
    /// After batch norm, residual and ReLU, `[N, H/s, W/s, C]`, while somebody reads it.
    activated: Option<Tensor>,
    /// Whether batch norm and ReLU are left to the next layer.
    left_to_next: bool,
    /// After the pool.
    pooled: Option<Pooled>,
    /// Whether a residual was added.
    residual: bool,
    /// What each pixel was multiplied by behind the ReLU and before the pool, `[N, H/s, W/s]`.
    factors: Option<Vec<f32>>,
}

impl UnitSaved {
    /// The unit's output.
    ///
    /// # Panics
    /// Where it was left to the next layer, or given up.
    pub fn output(&self) -> &Tensor {
        let Activation { tensor, prologue } = self.activation();
        assert!(prologue.is_none(), "an output that is not written down");
        tensor
    }

    /// The unit's output, which may have been left to the next layer.
    ///
    /// # Panics
    /// Where it was given up and not [computed again](Unit::recompute).
    pub(super) fn activation(&self) -> Activation<'_> {
        let raw = self.raw.as_ref().filter(|_| self.norm.is_none() || self.left_to_next);
        let pooled = self.pooled.as_ref().map(|pooled| &pooled.output);
        let tensor = pooled.or(self.activated.as_ref()).or(raw).expect("an output that was not given up");
        let prologue = self.norm.as_ref().filter(|_| self.left_to_next).map(NormSaved::prologue);
        Activation { tensor, prologue }
    }

    /// Gives up an output that nobody reads any more and that the backward pass does without: all but one with a residual, which
    /// tells where the ReLU cut.
    fn release(&mut self, workspace: &mut Workspace) {
        if !self.residual {
            self.activated.take().into_iter().for_each(|tensor| workspace.give(tensor));
        }
    }

    /// Gives up an output that nobody will read again, or that a pool has read: of a convolution without batch norm, too.
    pub fn retire(&mut self, workspace: &mut Workspace) {
        self.release(workspace);
        let raw = self.raw.take_if(|_| self.norm.is_none() && !self.residual);
        raw.into_iter().for_each(|raw| workspace.give(raw));
    }

    /// Gives up what can be computed again from the input: all but the batch's statistics and moments and, with a residual,
    /// the output.
    pub fn forget(&mut self, workspace: &mut Workspace) {
        self.release(workspace);
        let raw = self.raw.take_if(|_| self.norm.is_some() || !self.residual);
        let pooled = self.pooled.take().map(|pooled| pooled.discard(workspace));
        raw.into_iter().chain(pooled).for_each(|tensor| workspace.give(tensor));
    }
}

impl Unit {
    /// The unit that `description` describes, for inputs of `[height, width]`, with weights in HWIO order and the given
    /// gain of the batch norm.
    ///
    /// # Errors
    /// When the input is too small.
    pub fn new(
        level: Level,
        description: &arch::Unit,
        input: [usize; 2],
        weight: Vec<f32>,
        gain: f32,
    ) -> Result<Self, GeometryError> {
        let conv = Conv::new(level, &description.conv, description.geometry, input, weight)?;
        let channels = description.geometry.out_channels;
        let pool = Pools::new(&description.pools, conv.output(), channels)?;
        let norm = description.norm.as_ref().map(|name| BatchNorm::new(name, channels, gain));
        let expands = norm.is_some() && pool.is_none() && Expansion::is(&description.geometry);
        let expansion = expands.then(|| Expansion::new(level, &description.geometry, input)).transpose()?;
        Ok(Unit { conv, norm, relu: description.relu, pool, expansion })
    }

    /// The unit's parameters, in torch's order.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        std::iter::once(&mut self.conv.weight).chain(self.norm.iter_mut().flat_map(BatchNorm::parameters_mut))
    }

    /// The unit's parameters, in torch's order.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        std::iter::once(&self.conv.weight).chain(self.norm.iter().flat_map(BatchNorm::parameters))
    }

    /// Training. With a residual, the ReLU comes after the addition; without a batch norm there is none.
    pub fn forward<'a>(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        x: impl Into<Activation<'a>>,
        residual: Option<&Tensor>,
    ) -> UnitSaved {
        let x = x.into();
        if let Unit { conv, norm: Some(norm), expansion: Some(expansion), relu, .. } = self
            // Otherwise the output before the ReLU tells what has passed it.
            && (residual.is_some() || !*relu)
        {
            let layers = (&*conv, norm);
            let (activated, norm, moments) = expansion.forward(cx, workspace, layers, x, residual);
            let (norm, moments, activated) = (Some(norm), Some(moments), Some(activated));
            let residual = residual.is_some();
            return UnitSaved { norm, moments, activated, residual, ..UnitSaved::default() };
        }
        let mut saved = self.convolve(cx, workspace, x, residual);
        saved.residual = residual.is_some();
        self.follow(cx, workspace, &mut saved, residual);
        saved
    }

    /// As [`forward`](Self::forward) without a residual, for an output that `next` alone reads. Each pixel of the activation is
    /// multiplied by one of `factors`, `[N, H/s, W/s]`, none below 0, before the pool; there must be a batch norm then.
    pub(super) fn forward_to(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        x: Activation,
        factors: Option<Vec<f32>>,
        next: &Conv,
    ) -> UnitSaved {
        let mut saved = self.convolve(cx, workspace, x, None);
        let leaves = self.norm.is_some() && self.relu && self.pool.is_none() && factors.is_none();
        (saved.left_to_next, saved.factors) = (leaves && next.takes_prologue(), factors);
        self.follow(cx, workspace, &mut saved, None);
        saved
    }

    /// What is known behind the convolution, which adds the residual where no batch norm follows.
    fn convolve(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        x: Activation,
        residual: Option<&Tensor>,
    ) -> UnitSaved {
        let Unit { conv, norm, .. } = self;
        let (raw, norm) = match norm {
            None => (conv.forward(cx, workspace, x, residual, None), None),
            Some(norm) => {
                let (raw, norm) = norm.behind(cx, workspace, conv, x);
                (raw, Some(norm))
            }
        };
        UnitSaved { raw: Some(raw), norm, ..UnitSaved::default() }
    }

    /// Computes what follows the convolution, unless the next layer does.
    pub(super) fn follow(
        &self,
        cx: &Context,
        workspace: &mut Workspace,
        saved: &mut UnitSaved,
        residual: Option<&Tensor>,
    ) {
        if saved.left_to_next {
            return;
        }
        if let (Some(norm), Some(raw)) = (&saved.norm, &saved.raw) {
            let relu = self.relu || residual.is_some();
            let mut activated = norm.apply(cx, workspace, raw, residual, relu);
            if let Some(factors) = &saved.factors {
                pointwise::scale_pixels(cx, factors, activated.data_mut());
            }
            saved.activated = Some(activated);
        }
        if let Some(pool) = &self.pool {
            saved.pooled = Some(pool.forward(cx, workspace, saved.output()));
            saved.retire(workspace);
        }
    }

    /// Computes again, to the same bits, what [`UnitSaved::forget`] has given up: the convolution's output or, where moments stand in
    /// its place, the unit's, to which no residual was added.
    pub(super) fn recompute(
        &self,
        cx: &Context,
        workspace: &mut Workspace,
        x: Activation,
        saved: &mut UnitSaved,
    ) {
        if let UnitSaved { moments: Some(moments), norm: Some(norm), activated, .. } = saved {
            let (conv, expansion) = (&self.conv, self.expansion.as_ref().expect("its moments were taken"));
            activated.get_or_insert_with(|| expansion.output(cx, workspace, conv, x, (norm, moments), None));
        } else if saved.raw.is_none() {
            saved.raw = Some(self.conv.forward(cx, workspace, x, None, None));
        }
    }

    /// As [`recompute`](Self::recompute), where the backward pass reads the convolution's output.
    pub(super) fn recompute_for_backward(
        &self,
        cx: &Context,
        workspace: &mut Workspace,
        x: Activation,
        saved: &mut UnitSaved,
    ) {
        if saved.moments.is_none() {
            self.recompute(cx, workspace, x, saved);
        }
    }

    /// The batch norm, where it can take its sums of the gradient of the unit's output.
    pub fn wanted<'a>(&self, saved: &'a UnitSaved) -> Option<Wanted<'a>> {
        let between = self.pool.is_some() || saved.factors.is_some();
        let output = saved.activated.as_ref().filter(|_| saved.residual);
        let norm = saved.norm.as_ref().filter(|_| !between && output.is_some() == saved.residual)?;
        let x = saved.raw.as_ref();
        let shape = x.or(output.filter(|_| saved.moments.is_some()))?.shape();
        Some(Wanted { x, shape, norm, relu: norm.relu(output, self.relu) })
    }

    /// The parameters' gradients; returns the gradient of the convolution's output, and the residual's where there was
    /// one and a batch norm; without one it is the same. `dy` is given up.
    fn backward_to_conv(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        saved: UnitSaved,
        Gradient { tensor: dy, summed }: Gradient,
    ) -> (Tensor, Option<Tensor>) {
        let UnitSaved { raw, norm, activated, pooled, factors, residual, .. } = saved;
        let mut dy = match (&self.pool, pooled) {
            (Some(pool), Some(pooled)) => {
                let shape = self.conv.output_shape(dy.batch());
                let dactivated = pool.backward(cx, workspace, shape, pooled, &dy);
                workspace.give(dy);
                dactivated
            }
            _ => dy,
        };
        if let Some(factors) = &factors {
            pointwise::scale_pixels(cx, factors, dy.data_mut());
        }
        let (Some(layer), Some(norm)) = (&mut self.norm, norm) else {
            raw.into_iter().for_each(|raw| workspace.give(raw));
            return (dy, None);
        };
        let mut raw = raw.expect("a convolution's output that was kept or computed again");
        let gradients = match &activated {
            Some(output) if residual => {
                layer.backward_residual(cx, workspace, &mut raw, norm, (&mut dy, summed), output);
                (raw, Some(dy))
            }
            _ => {
                layer.backward(cx, workspace, &raw, norm, (&mut dy, summed), self.relu);
                workspace.give(raw);
                (dy, None)
            }
        };
        activated.into_iter().for_each(|activated| workspace.give(activated));
        gradients
    }

    /// The parameters' gradients, the input's, and the residual's where there was one.
    pub fn backward<'a>(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        x: impl Into<Activation<'a>>,
        saved: UnitSaved,
        dy: impl Into<Gradient>,
        Onward { also, wanted }: Onward,
    ) -> (Gradient, Option<Tensor>) {
        let (x, dy) = (x.into(), dy.into());
        if saved.moments.is_some() {
            return self.backward_expansion(cx, workspace, x, saved, dy, Onward { also, wanted });
        }
        let added = saved.residual && self.norm.is_none();
        let (draw, dresidual) = self.backward_to_conv(cx, workspace, saved, dy);
        let dx = Gradient::written(cx, workspace, wanted, |workspace, follow| {
            self.conv.backward(cx, workspace, x, &draw, also, follow)
        });
        if added {
            return (dx, Some(draw));
        }
        workspace.give(draw);
        (dx, dresidual)
    }

    /// As [`backward`](Self::backward), without the convolution's output.
    fn backward_expansion(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        x: Activation,
        saved: UnitSaved,
        Gradient { tensor: mut dy, summed }: Gradient,
        onward: Onward,
    ) -> (Gradient, Option<Tensor>) {
        let Unit { conv, norm: Some(layer), expansion: Some(expansion), relu, .. } = self else {
            unreachable!("asked for before");
        };
        let UnitSaved { norm: Some(norm), moments: Some(moments), activated, residual, .. } = saved else {
            unreachable!("a batch norm keeps its statistics");
        };
        let relu = norm.relu(activated.as_ref().filter(|_| residual), *relu);
        let summed = summed.unwrap_or_else(|| {
            let shape = dy.shape();
            Sums::new(cx, &mut workspace.norm, (None, shape), norm.mean(), relu).of(cx, dy.data_mut())
        });
        let dx = expansion.backward(cx, workspace, (conv, layer), (x, &norm, moments), (&dy, summed), onward);
        norm.discard(workspace);
        activated.into_iter().for_each(|activated| workspace.give(activated));
        if residual {
            return (dx, Some(dy));
        }
        workspace.give(dy);
        (dx, None)
    }

    /// The parameters' gradients alone, for the first unit of a network.
    pub fn backward_first(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        x: &Tensor,
        saved: UnitSaved,
        dy: Gradient,
    ) {
        let (draw, _) = self.backward_to_conv(cx, workspace, saved, dy);
        self.conv.grad_weight(cx, workspace, x, &draw);
        workspace.give(draw);
    }

    /// Inference with the running statistics, keeping nothing.
    pub fn infer(
        &self,
        cx: &Context,
        workspace: &mut Workspace,
        x: &Tensor,
        residual: Option<&Tensor>,
    ) -> Tensor {
        self.infer_seeing(cx, workspace, x, residual, |_| {})
    }

    /// As [`infer`](Self::infer); `see` is shown what the pools read, or the output where there are none.
    pub fn infer_seeing(
        &self,
        cx: &Context,
        workspace: &mut Workspace,
        x: &Tensor,
        residual: Option<&Tensor>,
        see: impl FnOnce(&Tensor),
    ) -> Tensor {
        let added = residual.filter(|_| self.norm.is_none());
        let mut y = self.conv.infer(cx, workspace, x, added);
        if let Some(norm) = &self.norm {
            let normed = norm.infer(cx, workspace, &y, residual, self.relu || residual.is_some());
            workspace.give(std::mem::replace(&mut y, normed));
        }
        see(&y);
        let Some(pool) = &self.pool else { return y };
        let pooled = pool.forward(cx, workspace, &y);
        workspace.give(y);
        pooled.discard(workspace)
    }
}

#[cfg(test)]
mod tests;
