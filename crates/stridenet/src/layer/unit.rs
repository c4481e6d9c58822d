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
mod tests {
    use super::*;
    use crate::kernels::Operands;
    use crate::kernels::conv::ConvGeometry;

    fn tensor(shape: [usize; 4], factor: usize) -> Tensor {
        let value = |at: usize| (at * factor % 1013) as f32 / 500.0 - 1.0;
        Tensor::new(shape, (0..shape.iter().product()).map(value).collect()).unwrap()
    }

    /// A unit from so many channels to so many, whose weights and batch norm are nothing special.
    fn unit(level: Level, channels: [usize; 2], size: [usize; 2]) -> Unit {
        let geometry = ConvGeometry::square(channels[0], channels[1], 1, 1);
        let (conv, norm) = ("conv".to_owned(), Some("bn".to_owned()));
        let description = arch::Unit { conv, norm, geometry, relu: false, pools: Vec::new() };
        let weight = tensor([1, 1, channels[0], channels[1]], 389).into_data();
        let mut unit = Unit::new(level, &description, size, weight, 1.5).unwrap();
        let norm = unit.norm.as_mut().unwrap();
        norm.gamma.value.copy_from_slice(tensor([1, 1, 1, channels[1]], 71).data());
        norm.beta.value.copy_from_slice(tensor([1, 1, 1, channels[1]], 97).data());
        unit
    }

    /// The running statistics, the output and all gradients: the parameters', the residual's, the input's, and those of the batch norm
    /// before.
    fn results(unit: &mut Unit, cx: &Context, residual: bool, keeps: bool) -> Vec<Vec<f32>> {
        let mut workspace = Workspace::default();
        let [height, width] = unit.conv.output();
        let shape = |channels: usize| [3, height, width, channels];
        let (inputs, outputs) = (unit.conv.weight.shape[1], unit.conv.weight.shape[0]);
        let (raw, beside, dy) =
            (tensor(shape(inputs), 29), tensor(shape(outputs), 31), tensor(shape(outputs), 37));
        let mut before = BatchNorm::new("before", inputs, 1.0);
        before.beta.value.copy_from_slice(tensor([1, 1, 1, inputs], 41).data());
        let (_, norm) = before.forward(cx, &mut workspace, &raw, None, true);
        let x = Activation { tensor: &raw, prologue: Some(norm.prologue()) };
        let mut saved = unit.forward(cx, &mut workspace, x, residual.then_some(&beside));
        let norm_after = unit.norm.as_ref().unwrap();
        // Without the share of what they were before.
        let batch = norm_after.running_var.iter().map(|var| var - 0.9).collect();
        let mut all: Vec<Vec<f32>> = vec![norm_after.running_mean.clone(), batch];
        all.push(saved.output().data().to_vec());
        if !keeps {
            saved.forget(&mut workspace);
            unit.recompute_for_backward(cx, &mut workspace, x, &mut saved);
            assert_eq!([saved.raw.is_none(), saved.moments.is_some()], [unit.expansion.is_some(); 2]);
        }
        // The sums may be taken before, and a gradient be there already.
        let mut dy = dy;
        let summed = unit.wanted(&saved).filter(|_| keeps).map(|Wanted { x, shape, norm, relu }| {
            let of = (x.map(Tensor::data), shape);
            Sums::new(cx, &mut workspace.norm, of, norm.mean(), relu).of(cx, dy.data_mut())
        });
        assert!(summed.is_some() == keeps || !residual);
        let dy = Gradient { tensor: dy, summed };
        let also = keeps.then(|| tensor(raw.shape(), 43));
        let relu = norm.relu(None, true);
        let wanted = Some(Wanted { x: Some(&raw), shape: raw.shape(), norm: &norm, relu });
        let (dx, dresidual) = unit.backward(cx, &mut workspace, x, saved, dy, Onward { also, wanted });
        all.extend(unit.parameters().map(|parameter| parameter.grad.clone()));
        assert_eq!(dresidual.is_some(), residual);
        all.extend(dresidual.map(Tensor::into_data));
        let (mut tensor, summed) = (dx.tensor, dx.summed);
        all.push(tensor.data().to_vec());
        before.backward(cx, &mut workspace, &raw, norm, (&mut tensor, summed), true);
        all.extend(before.parameters().map(|parameter| parameter.grad.clone()));
        all
    }

    #[test]
    fn training_does_without_the_output_of_a_convolution_that_expands() {
        for level in Level::available() {
            let cx = Context::new(level, 2);
            for (channels, size) in [([24, 80], [9, 7]), ([128, 260], [5, 4]), ([3, 6], [1, 2])] {
                for (residual, keeps) in [(false, false), (false, true), (true, false), (true, true)] {
                    let mut without = unit(level, channels, size);
                    let mut with = Unit { expansion: None, ..unit(level, channels, size) };
                    assert!(without.expansion.is_some());
                    let found = results(&mut without, &cx, residual, keeps);
                    let expected = results(&mut with, &cx, residual, keeps);
                    assert_eq!(found.len(), expected.len());
                    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                        let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                        let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                        let what = format!("{} {channels:?} {residual} {keeps}: {index}", level.name());
                        assert!(largest > 0.0 && off <= 1e-4 * largest, "{what}: {off} of {largest}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_constant_has_no_variance_and_what_is_not_a_number_has_none_either() {
        let (cx, mut workspace) = (Context::new(Level::detect(), 2), Workspace::default());
        let mut variances = |x: &Tensor| {
            let mut unit = unit(cx.level(), [24, 80], x.size());
            let saved = unit.forward(&cx, &mut workspace, x, None);
            assert!(saved.moments.is_some());
            unit.norm.unwrap().running_var
        };
        let mut constant = Tensor::zeros([2, 9, 7, 24]);
        for row in constant.data_mut().chunks_mut(24) {
            row.copy_from_slice(tensor([1, 1, 1, 24], 53).data());
        }
        for x in [&constant, &tensor([1, 1, 1, 24], 53)] {
            assert_eq!(variances(x), [0.9; 80]);
        }
        constant.data_mut()[77] = f32::NAN;
        assert!(variances(&constant).iter().all(|var| var.is_nan()));
    }

    fn rounding(level: Level, channels: [usize; 2], size: [usize; 2]) -> Unit {
        let mut unit = unit(level, channels, size);
        unit.conv.set_operands(level, Operands::Bf16);
        assert_eq!(unit.conv.operands(), Operands::Bf16);
        unit
    }

    #[test]
    fn rounded_operands_do_without_the_output_as_well() {
        for level in Level::available() {
            let cx = Context::new(level, 2);
            // With a ReLU roundings tell whether the gradient of an output passes that is nearly 0.
            for (residual, keeps, tolerance) in [(false, true, 1e-2), (true, false, 8e-2)] {
                let mut with = Unit { expansion: None, ..rounding(level, [64, 200], [9, 7]) };
                let found = results(&mut rounding(level, [64, 200], [9, 7]), &cx, residual, keeps);
                let expected = results(&mut with, &cx, residual, keeps);
                for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    let norm =
                        |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
                    let off = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
                    let whole = norm(&mut expected.iter().copied());
                    let what = format!("{} {residual}: {index}", level.name());
                    assert!(whole > 0.0 && off <= tolerance * whole, "{what}: {off} of {whole}");
                }
            }
        }
    }

    /// What the weights lose when they are rounded would shift the outputs of inputs far from 0.
    #[test]
    fn rounded_weights_keep_the_mean() {
        let (cx, mut workspace) = (Context::new(Level::detect(), 2), Workspace::default());
        let mut x = tensor([3, 16, 16, 64], 29);
        x.data_mut().iter_mut().for_each(|value| *value += 8.0);
        let mut unit = rounding(cx.level(), [64, 200], [16, 16]);
        let saved = unit.forward(&cx, &mut workspace, &x, None);
        let (y, beta) = (saved.output().data(), &unit.norm.as_ref().unwrap().beta.value);
        for (channel, beta) in beta.iter().enumerate() {
            let sum: f32 = y[channel..].iter().step_by(200).sum();
            assert!((sum / 768.0 - beta).abs() < 1e-2, "{channel}: {} {beta}", sum / 768.0);
        }
    }
}
