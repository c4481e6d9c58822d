//! The residual block, `ReLU(F(x) + shortcut(x))`: basic and bottleneck blocks differ in their units alone. A gate weighs
//! the channels of F; a pre-activation block has a batch norm and a ReLU before F instead of the ReLU behind the sum.

use super::{
    BatchNorm, Gate, GateSaved, Gradient, NormSaved, Onward, Parameter, Pooled, Pools, Unit, UnitSaved,
    Wanted, Workspace,
};
use crate::Tensor;
use crate::kernels::gate::{self, Extent, Gated};
use crate::kernels::gemm::Residual;
use crate::kernels::pool::LinearPool;
use crate::kernels::{Context, pointwise};

/// A residual block.
#[derive(Debug)]
pub struct Block {
    /// With pre-activation, the batch norm before F and before a shortcut that changes shape.
    pub norm: Option<BatchNorm>,
    /// The units of F, in order.
    pub units: Vec<Unit>,
    /// What weighs the channels of F.
    pub gate: Option<Gate>,
    /// What happens beside F.
    pub shortcut: Shortcut,
    /// A list without contents, whose memory each step uses again.
    pub(crate) spare: Vec<UnitSaved>,
}

/// What a training pass multiplies a block's main path by; nothing leaves it as it is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BlockDrop {
    /// A factor for each image, `[N]`, behind F and its gate: 0 leaves the shortcut alone (stochastic depth, Huang et al. 2016).
    pub images: Option<Vec<f32>>,
    /// A factor for each pixel, `[N, H, W]`, none below 0, behind the last unit but one of F and before its pool (DropBlock,
    /// Ghiasi et al. 2018). Blocks without pre-activation have it.
    pub pixels: Option<Vec<f32>>,
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
    activated: Option<ActivatedSaved>,
    units: Vec<UnitSaved>,
    projection: Option<ProjectionSaved>,
    weighed: Option<WeighedSaved>,
    /// Whether the backward pass has to compute things again first.
    forgotten: bool,
}

/// What the backward pass needs of the batch norm before F.
#[derive(Debug)]
struct ActivatedSaved {
    /// What F reads, unless it was forgotten.
    output: Option<Tensor>,
    /// The batch's statistics.
    norm: NormSaved,
}

impl ActivatedSaved {
    fn output(&self) -> &Tensor {
        self.output.as_ref().expect("an activation that was kept or computed again")
    }
}

/// What the backward pass needs of a projection.
#[derive(Debug)]
struct ProjectionSaved {
    /// Its input where a pool made it, unless it was forgotten.
    pooled: Option<Pooled>,
    unit: UnitSaved,
}

/// What the backward pass needs where F is weighed before it is added to the shortcut.
#[derive(Debug)]
struct WeighedSaved {
    gate: Option<GateSaved>,
    /// A factor for each image.
    images: Option<Vec<f32>>,
    /// What each channel of each image was multiplied by, `[N, 1, 1, C]`.
    weights: Tensor,
    /// The block's output.
    output: Tensor,
}

impl BlockSaved {
    /// The block's output.
    pub fn output(&self) -> &Tensor {
        self.weighed
            .as_ref()
            .map_or_else(|| self.units[self.units.len() - 1].output(), |weighed| &weighed.output)
    }

    /// Gives up what [`Block::backward`] can compute again from the block's input: all but the output, the batch's statistics and
    /// moments, what was drawn, and what follows from means of channels.
    pub fn forget(&mut self, workspace: &mut Workspace) {
        let activated = self.activated.as_mut().and_then(|activated| activated.output.take());
        let pooled = self.projection.as_mut().and_then(|projection| projection.pooled.take());
        let pooled = pooled.map(|pooled| pooled.discard(workspace));
        activated.into_iter().chain(pooled).for_each(|tensor| workspace.give(tensor));
        let projection = self.projection.as_mut().map(|projection| &mut projection.unit);
        self.units.iter_mut().chain(projection).for_each(|unit| unit.forget(workspace));
        self.forgotten = true;
    }
}

/// Pixels and channels of each image.
fn extent(x: &Tensor) -> Extent {
    let [height, width] = x.size();
    Extent { pixels: height * width, channels: x.channels() }
}

/// `relu?(x · weights + residual)`.
fn weighed(
    cx: &Context,
    workspace: &mut Workspace,
    [x, weights, residual]: [&Tensor; 3],
    relu: bool,
) -> Tensor {
    let mut y = workspace.tensor(x.shape());
    let residual = Some(Residual::Tensor(residual.data()));
    let input = Gated { x: x.data(), weights: weights.data(), residual, relu };
    gate::apply(cx, extent(x), input, y.data_mut());
    y
}

/// Multiplies the values of each image, `[N, 1, 1, C]`, by one of `factors`, `[N]`.
fn scale_images(factors: Option<&[f32]>, values: &mut Tensor) {
    let channels = values.channels();
    for (row, factor) in values.data_mut().chunks_exact_mut(channels).zip(factors.into_iter().flatten()) {
        row.iter_mut().for_each(|value| *value *= factor);
    }
}

impl WeighedSaved {
    /// Weighs `x` by its gate and by a factor for each image, and adds the shortcut.
    fn forward(
        cx: &Context,
        workspace: &mut Workspace,
        [x, beside]: [&Tensor; 2],
        gate: Option<&Gate>,
        images: Option<Vec<f32>>,
        relu: bool,
    ) -> Self {
        let gate = gate.map(|gate| gate.forward(cx, workspace, x));
        let mut weights = workspace.tensor([x.batch(), 1, 1, x.channels()]);
        match &gate {
            Some(gate) => weights.data_mut().copy_from_slice(gate.weights().data()),
            None => weights.data_mut().fill(1.0),
        }
        scale_images(images.as_deref(), &mut weights);
        let output = weighed(cx, workspace, [x, &weights, beside], relu);
        WeighedSaved { gate, images, weights, output }
    }

    /// The gate's gradients; returns those of what was weighed, `x`, and of the shortcut, which take the places of the output
    /// and of `dy`.
    fn backward(
        self,
        cx: &Context,
        workspace: &mut Workspace,
        gate: Option<&mut Gate>,
        x: &Tensor,
        mut dy: Tensor,
        relu: bool,
    ) -> (Tensor, Tensor) {
        let WeighedSaved { gate: saved, images, weights, mut output } = self;
        let mut dweights = workspace.tensor(weights.shape());
        let input = gate::Backward { x: x.data(), y: relu.then_some(output.data()) };
        gate::backward_weights(cx, extent(x), input, dy.data_mut(), dweights.data_mut());
        let dmeans = match (gate, saved) {
            (Some(gate), Some(saved)) => {
                scale_images(images.as_deref(), &mut dweights);
                Some(gate.backward(cx, workspace, saved, dweights))
            }
            _ => {
                workspace.give(dweights);
                None
            }
        };
        let means = dmeans.as_ref().map(Tensor::data);
        gate::backward_input(cx, extent(x), dy.data(), weights.data(), means, output.data_mut());
        std::iter::once(weights).chain(dmeans).for_each(|tensor| workspace.give(tensor));
        (output, dy)
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

    /// All batch norms.
    pub fn norms(&self) -> impl Iterator<Item = &BatchNorm> {
        self.norm.iter().chain(self.all_units().filter_map(|unit| unit.norm.as_ref()))
    }

    /// All batch norms, in the same order.
    pub fn norms_mut(&mut self) -> impl Iterator<Item = &mut BatchNorm> {
        let (norm, units, _) = self.parts_mut();
        norm.into_iter().chain(units.filter_map(|unit| unit.norm.as_mut()))
    }

    /// All parameters.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let norm = self.norm.iter().flat_map(BatchNorm::parameters);
        let gate = self.gate.iter().flat_map(Gate::parameters);
        norm.chain(self.all_units().flat_map(Unit::parameters)).chain(gate)
    }

    /// All parameters, in the same order.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let (norm, units, gate) = self.parts_mut();
        let norm = norm.into_iter().flat_map(BatchNorm::parameters_mut);
        norm.chain(units.flat_map(Unit::parameters_mut))
            .chain(gate.into_iter().flat_map(Gate::parameters_mut))
    }

    /// The batch norm before F, all units, and the gate.
    pub fn parts_mut(
        &mut self,
    ) -> (Option<&mut BatchNorm>, impl Iterator<Item = &mut Unit>, Option<&mut Gate>) {
        let Block { norm, units, gate, shortcut, .. } = self;
        let projection = match shortcut {
            Shortcut::Projection(_, unit) => Some(&mut **unit),
            Shortcut::Identity | Shortcut::ZeroPad { .. } => None,
        };
        (norm.as_mut(), units.iter_mut().chain(projection), gate.as_mut())
    }

    /// Training, with a main path as `drop` leaves it.
    pub fn forward(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        x: &Tensor,
        drop: BlockDrop,
    ) -> BlockSaved {
        let BlockDrop { images, mut pixels } = drop;
        let Block { norm, units, gate, shortcut, spare } = self;
        let activated = norm.as_mut().map(|norm| {
            let (output, norm) = norm.forward(cx, workspace, x, None, true);
            ActivatedSaved { output: Some(output), norm }
        });
        let from = activated.as_ref().map_or(x, ActivatedSaved::output);
        let mut saved = std::mem::take(spare);
        let count = units.len() - 1;
        for index in 0..count {
            let (before, after) = units.split_at_mut(index + 1);
            let factors = if index + 1 == count { pixels.take() } else { None };
            let input = saved.last().map_or(from.into(), UnitSaved::activation);
            let unit = before[index].forward_to(cx, workspace, input, factors, &after[0].conv);
            saved.push(unit);
        }
        let (mut projection, padded) = shortcut.forward(cx, workspace, from);
        let beside = projection.as_ref().map(|projection| projection.unit.output());
        let beside = beside.or(padded.as_ref()).unwrap_or(x);
        let input = saved.last().map_or(from.into(), UnitSaved::activation);
        let weighs = gate.is_some() || images.is_some();
        let end = units[count].forward(cx, workspace, input, (!weighs).then_some(beside));
        let weighed = weighs.then(|| {
            let (tensors, relu) = ([end.output(), beside], norm.is_none());
            WeighedSaved::forward(cx, workspace, tensors, gate.as_ref(), images, relu)
        });
        padded.into_iter().for_each(|padded| workspace.give(padded));
        projection.iter_mut().for_each(|projection| projection.unit.retire(workspace));
        saved.push(end);
        BlockSaved { activated, units: saved, projection, weighed, forgotten: false }
    }

    /// Of what the forward pass has kept, gives up the outputs of the last convolution and of the projection where they are cheap
    /// and nobody but the backward pass reads them.
    pub fn trim(&self, workspace: &mut Workspace, saved: &mut BlockSaved) {
        let last = self.units.last().zip(saved.units.last_mut()).filter(|_| saved.weighed.is_none());
        let projection = match (&self.shortcut, &mut saved.projection) {
            (Shortcut::Projection(_, unit), Some(saved)) => Some((&**unit, &mut saved.unit)),
            _ => None,
        };
        for (unit, saved) in last.into_iter().chain(projection) {
            if unit.conv.is_cheap() {
                saved.forget(workspace);
            }
        }
    }

    /// Computes again what [`BlockSaved::forget`] has given up, to the same bits: the batch's statistics are known, and nothing is
    /// drawn anew. The backward pass itself computes the outputs of convolutions again that it reads alone.
    fn recompute(&self, cx: &Context, workspace: &mut Workspace, x: &Tensor, saved: &mut BlockSaved) {
        if let Some(activated) = &mut saved.activated {
            activated.output = Some(activated.norm.apply(cx, workspace, x, None, true));
        }
        let from = saved.activated.as_ref().map_or(x, ActivatedSaved::output);
        let count = self.units.len() - usize::from(saved.weighed.is_none());
        for (index, unit) in self.units[..count].iter().enumerate() {
            let (before, rest) = saved.units.split_at_mut(index);
            let input = before.last().map_or(from.into(), UnitSaved::activation);
            unit.recompute(cx, workspace, input, &mut rest[0]);
            unit.follow(cx, workspace, &mut rest[0], None);
        }
        if let (Shortcut::Projection(Some(pool), _), Some(projection)) =
            (&self.shortcut, &mut saved.projection)
        {
            projection.pooled = Some(pool.forward(cx, workspace, from));
        }
        saved.forgotten = false;
    }

    /// The last batch norm, where it can take its sums of the gradient of the block's output.
    pub fn wanted<'a>(&self, saved: &'a BlockSaved) -> Option<Wanted<'a>> {
        let (unit, saved_unit) = self.units.last().zip(saved.units.last())?;
        unit.wanted(saved_unit).filter(|_| saved.weighed.is_none())
    }

    /// The parameters' gradients; returns the input's, of which the batch norm before takes its sums where it is `wanted`.
    pub fn backward(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        x: &Tensor,
        mut saved: BlockSaved,
        dy: Gradient,
        wanted: Option<Wanted>,
    ) -> Gradient {
        if saved.forgotten {
            self.recompute(cx, workspace, x, &mut saved);
        }
        let BlockSaved { activated, mut units, projection, weighed, .. } = saved;
        let Block { norm, units: layers, gate, shortcut, spare } = self;
        let from = activated.as_ref().map_or(x, ActivatedSaved::output);
        let (last, first) = layers.split_last_mut().expect("a block has units");
        let pop = |units: &mut Vec<UnitSaved>| units.pop().expect("one for each unit");
        let mut saved = pop(&mut units);
        let (dy, dweighed) = match weighed {
            Some(weighed) => {
                let relu = norm.is_none();
                let (x, dy) = (saved.output(), dy.tensor);
                let (dx, dsum) = weighed.backward(cx, workspace, gate.as_mut(), x, dy, relu);
                (dx.into(), Some(dsum))
            }
            None => (dy, None),
        };
        let input = units.last().map_or(from.into(), UnitSaved::activation);
        last.recompute_for_backward(cx, workspace, input, &mut saved);
        let inside = first.last().zip(units.last()).and_then(|(unit, saved)| unit.wanted(saved));
        let (mut dy, dresidual) =
            last.backward(cx, workspace, input, saved, dy, Onward { also: None, wanted: inside });
        let dresidual =
            dweighed.or(dresidual).expect("the shortcut is added to the last unit or to what is weighed");
        let mut dshortcut = Some(shortcut.backward(cx, workspace, from, projection, dresidual));
        // The identity reads x, which is not what F reads where a batch norm stands before F.
        let apart = norm.is_some() && matches!(shortcut, Shortcut::Identity);
        for index in (0..first.len()).rev() {
            let saved = pop(&mut units);
            let input = units.last().map_or(from.into(), UnitSaved::activation);
            let also = if index == 0 && !apart { dshortcut.take() } else { None };
            let (before, after) = first.split_at_mut(index);
            let wanted = match before.last().zip(units.last()) {
                Some((unit, saved)) => unit.wanted(saved),
                None => wanted.filter(|_| norm.is_none()),
            };
            dy = after[0].backward(cx, workspace, input, saved, dy, Onward { also, wanted }).0;
        }
        if let (Some(norm), Some(ActivatedSaved { output, norm: saved })) = (norm, activated) {
            norm.backward(cx, workspace, x, saved, (&mut dy.tensor, None), true);
            output.into_iter().for_each(|output| workspace.give(output));
        }
        if let Some(dshortcut) = dshortcut {
            pointwise::add(cx, dshortcut.data(), dy.tensor.data_mut());
            workspace.give(dshortcut);
        }
        *spare = units;
        dy
    }

    /// Inference, keeping nothing.
    pub fn infer(&self, cx: &Context, workspace: &mut Workspace, x: &Tensor) -> Tensor {
        let activated = self.norm.as_ref().map(|norm| norm.infer(cx, workspace, x, None, true));
        let from = activated.as_ref().unwrap_or(x);
        let (last, first) = self.units.split_last().expect("a block has units");
        let mut y: Option<Tensor> = None;
        for unit in first {
            let next = unit.infer(cx, workspace, y.as_ref().unwrap_or(from), None);
            y.replace(next).into_iter().for_each(|old| workspace.give(old));
        }
        let residual = self.shortcut.infer(cx, workspace, from);
        let beside = residual.as_ref().unwrap_or(x);
        let input = y.as_ref().unwrap_or(from);
        let mut output = last.infer(cx, workspace, input, self.gate.is_none().then_some(beside));
        if let Some(gate) = &self.gate {
            let saved = gate.forward(cx, workspace, &output);
            let sum = weighed(cx, workspace, [&output, saved.weights(), beside], true);
            saved.discard(workspace);
            workspace.give(std::mem::replace(&mut output, sum));
        }
        y.into_iter().chain(residual).chain(activated).for_each(|old| workspace.give(old));
        output
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
    /// The shortcut of x where it is not x itself: what a projection keeps, or the padded pixels.
    fn forward(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        x: &Tensor,
    ) -> (Option<ProjectionSaved>, Option<Tensor>) {
        match self {
            Shortcut::Identity => (None, None),
            Shortcut::Projection(pool, unit) => {
                let pooled = pool.as_ref().map(|pool| pool.forward(cx, workspace, x));
                let from = pooled.as_ref().map_or(x, |pooled| &pooled.output);
                let unit = unit.forward(cx, workspace, from, None);
                (Some(ProjectionSaved { pooled, unit }), None)
            }
            Shortcut::ZeroPad { pool, out_channels } => {
                (None, Some(zero_pad(cx, workspace, x, pool, *out_channels)))
            }
        }
    }

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
            (Shortcut::Projection(pool, unit), Some(ProjectionSaved { pooled, unit: mut saved })) => {
                let from = pooled.as_ref().map_or(x, |pooled| &pooled.output);
                // Without a batch norm, nobody reads the convolution's output.
                if unit.norm.is_some() {
                    unit.recompute_for_backward(cx, workspace, from.into(), &mut saved);
                }
                let dx = unit.backward(cx, workspace, from, saved, dy, Onward::default()).0.tensor;
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

    /// The shortcut of x where it is not x itself, keeping nothing.
    fn infer(&self, cx: &Context, workspace: &mut Workspace, x: &Tensor) -> Option<Tensor> {
        match self {
            Shortcut::Identity => None,
            Shortcut::Projection(pool, unit) => {
                let pooled = pool.as_ref().map(|pool| pool.forward(cx, workspace, x).discard(workspace));
                let residual = unit.infer(cx, workspace, pooled.as_ref().unwrap_or(x), None);
                pooled.into_iter().for_each(|old| workspace.give(old));
                Some(residual)
            }
            Shortcut::ZeroPad { pool, out_channels } => Some(zero_pad(cx, workspace, x, pool, *out_channels)),
        }
    }
}
