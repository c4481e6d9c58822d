//! A trainable network, assembled from its description by one builder.

mod build;
mod state;

pub use build::Initialise;

use crate::arch::Arch;
use crate::kernels::{Context, Level};
use crate::layer::{Block, BlockSaved, Head, HeadSaved, Parameter, Unit, UnitSaved, Workspace};
use crate::{Error, ShapeError, Tensor};

/// A residual network for one input size and one instruction-set level.
///
/// ```
/// use stridenet::arch::Arch;
/// use stridenet::kernels::{Context, Level};
/// use stridenet::layer::Workspace;
/// use stridenet::network::{Initialise, Network};
/// use stridenet::Tensor;
///
/// # fn main() -> Result<(), stridenet::Error> {
/// let context = Context::new(Level::detect(), 2);
/// let arch = Arch::preset("resnet20")?;
/// let network = Network::new(&arch, arch.img_size, context.level(), Initialise::default())?;
/// let logits = network.infer(&context, &mut Workspace::default(), &Tensor::zeros([1, 32, 32, 3]))?;
/// assert_eq!(logits.shape(), [1, 1, 1, 10]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Network {
    arch: Arch,
    input: [usize; 2],
    level: Level,
    stem: Vec<Unit>,
    blocks: Vec<Block>,
    head: Head,
}

/// What the backward pass needs: the input and what every layer has kept.
#[derive(Debug)]
pub struct Saved {
    input: Tensor,
    stem: Vec<UnitSaved>,
    blocks: Vec<BlockSaved>,
    head: HeadSaved,
}

impl Network {
    /// What the network is.
    pub fn arch(&self) -> &Arch {
        &self.arch
    }

    /// The size `[height, width]` of the images that the network takes.
    pub fn input(&self) -> [usize; 2] {
        self.input
    }

    /// The instruction-set level that the weights are packed for.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The units in execution order: the stem, then each block's, its projection last.
    pub(crate) fn units(&self) -> impl Iterator<Item = &Unit> {
        self.stem.iter().chain(self.blocks.iter().flat_map(Block::all_units))
    }

    pub(crate) fn units_mut(&mut self) -> impl Iterator<Item = &mut Unit> {
        self.stem.iter_mut().chain(self.blocks.iter_mut().flat_map(Block::all_units_mut))
    }

    /// The head's weights `[in, out]` and bias.
    pub(crate) fn head_weights(&self) -> [&[f32]; 2] {
        [&self.head.weight.value, &self.head.bias.value]
    }

    /// All parameters in execution order.
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        self.units().flat_map(Unit::parameters).chain([&self.head.weight, &self.head.bias])
    }

    /// All parameters in execution order, to be changed; call [`refresh`](Self::refresh) afterwards.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let Network { stem, blocks, head, .. } = self;
        let units = stem.iter_mut().chain(blocks.iter_mut().flat_map(Block::all_units_mut));
        units.flat_map(Unit::parameters_mut).chain([&mut head.weight, &mut head.bias])
    }

    /// Packs the weights again after they have changed.
    pub fn refresh(&mut self, cx: &Context) {
        let mut convs: Vec<_> = self.units_mut().map(|unit| &mut unit.conv).collect();
        cx.pool().pieces(&mut convs, 1, |_, conv| conv[0].refresh(cx));
        self.head.refresh(cx);
    }

    fn check(&self, x: &Tensor) -> Result<(), ShapeError> {
        let expected = [x.batch(), self.input[0], self.input[1], self.arch.in_channels];
        if x.shape() == expected {
            return Ok(());
        }
        let (expected, found) = (expected.to_vec(), x.shape().to_vec());
        Err(ShapeError::Mismatch { what: "the batch of images".into(), expected, found })
    }

    /// Training: images `[N, H, W, C]` → logits `[N, 1, 1, classes]` with the batch's statistics, which also move the
    /// running ones.
    ///
    /// # Errors
    /// When the images' size or channels are not the network's.
    pub fn forward(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        input: Tensor,
    ) -> Result<(Tensor, Saved), Error> {
        self.check(&input)?;
        let mut stem: Vec<UnitSaved> = Vec::with_capacity(self.stem.len());
        for unit in &mut self.stem {
            let saved = unit.forward(cx, workspace, stem.last().map_or(&input, UnitSaved::output), None);
            stem.push(saved);
        }
        let before = stem.last().map_or(&input, UnitSaved::output);
        let mut blocks: Vec<BlockSaved> = Vec::with_capacity(self.blocks.len());
        for block in &mut self.blocks {
            let saved = block.forward(cx, workspace, blocks.last().map_or(before, BlockSaved::output));
            blocks.push(saved);
        }
        let features = blocks.last().map_or(before, BlockSaved::output);
        let (logits, head) = self.head.forward(cx, workspace, features);
        Ok((logits, Saved { input, stem, blocks, head }))
    }

    /// Every parameter's gradient, from the logits' gradient.
    pub fn backward(&mut self, cx: &Context, workspace: &mut Workspace, saved: Saved, dlogits: &Tensor) {
        // The input is the loader's: kept here, one more would pile up each step.
        let Saved { input, mut stem, mut blocks, head } = saved;
        let mut dy = self.head.backward(cx, workspace, head, dlogits);
        for block in self.blocks.iter_mut().rev() {
            let Some(saved) = blocks.pop() else { break };
            let before = stem.last().map_or(&input, UnitSaved::output);
            let x = blocks.last().map_or(before, BlockSaved::output);
            dy = block.backward(cx, workspace, x, saved, dy);
        }
        for unit in self.stem.iter_mut().rev() {
            let Some(saved) = stem.pop() else { break };
            let Some(before) = stem.last() else {
                unit.backward_first(cx, workspace, &input, saved, dy);
                break;
            };
            dy = unit.backward(cx, workspace, before.output(), saved, dy, None).0;
        }
    }

    /// Inference with the running statistics: images `[N, H, W, C]` → logits `[N, 1, 1, classes]`.
    ///
    /// # Errors
    /// When the images' size or channels are not the network's.
    pub fn infer(&self, cx: &Context, workspace: &mut Workspace, x: &Tensor) -> Result<Tensor, Error> {
        self.infer_stages(cx, workspace, x, |_, _| {})
    }

    /// As [`infer`](Self::infer); `stage(index, features)` sees each stage's output, `[N, H/s, W/s, C]`.
    ///
    /// # Errors
    /// When the images' size or channels are not the network's.
    pub fn infer_stages(
        &self,
        cx: &Context,
        workspace: &mut Workspace,
        x: &Tensor,
        mut stage: impl FnMut(usize, &Tensor),
    ) -> Result<Tensor, Error> {
        self.check(x)?;
        let mut stem: Option<Tensor> = None;
        for unit in &self.stem {
            let next = unit.infer(cx, workspace, stem.as_ref().unwrap_or(x), None);
            stem.replace(next).into_iter().for_each(|old| workspace.give(old));
        }
        let mut y = stem.expect("a stem has units");
        let mut blocks = self.blocks.iter();
        for (index, row) in self.arch.stages.iter().enumerate() {
            for block in blocks.by_ref().take(row.blocks) {
                let next = block.infer(cx, workspace, &y);
                workspace.give(std::mem::replace(&mut y, next));
            }
            stage(index, &y);
        }
        let logits = self.head.infer(cx, workspace, &y);
        workspace.give(y);
        Ok(logits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{Downsample, Overrides, Shortcut};

    /// After the first step every buffer that a step takes is one that an earlier step gave back.
    #[test]
    fn steps_reuse_their_memory() {
        let cx = Context::new(Level::detect(), 2);
        let shapes = [(Downsample::Strided, Shortcut::Projection), (Downsample::MaxPool, Shortcut::ZeroPad)];
        for (downsample, shortcut) in shapes {
            let changes = Overrides {
                downsample: Some(downsample),
                shortcut: Some(shortcut),
                img_size: Some([16, 16]),
                ..Overrides::default()
            };
            let arch = Arch::preset("resnet20").unwrap().with(&changes).unwrap();
            let mut network = Network::new(&arch, [16, 16], cx.level(), Initialise::default()).unwrap();
            let mut workspace = Workspace::default();
            let mut step = || {
                let x = Tensor::new([2, 16, 16, 3], vec![0.5; 2 * 16 * 16 * 3]).unwrap();
                let (logits, saved) = network.forward(&cx, &mut workspace, x).unwrap();
                network.backward(&cx, &mut workspace, saved, &logits);
                workspace.give(logits);
                let x = Tensor::zeros([2, 16, 16, 3]);
                let logits = network.infer(&cx, &mut workspace, &x).unwrap();
                workspace.give(logits);
                workspace.buffers()
            };
            let first = step();
            assert!(first > 10);
            assert_eq!([step(), step(), step()], [first; 3]);
        }
    }

    #[test]
    fn images_of_another_size_are_refused() {
        let cx = Context::new(Level::detect(), 1);
        let arch = Arch::preset("resnet20").unwrap();
        let network = Network::new(&arch, [32, 32], cx.level(), Initialise::default()).unwrap();
        let error =
            network.infer(&cx, &mut Workspace::default(), &Tensor::zeros([1, 32, 31, 3])).unwrap_err();
        assert!(error.to_string().contains("[1, 32, 31, 3], expected [1, 32, 32, 3]"), "{error}");
    }
}
