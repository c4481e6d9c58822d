//! A trainable network, assembled from its description by one builder.

mod build;
mod drop;
mod state;

pub use build::Initialise;
pub use drop::DropRates;

use crate::arch::Arch;
use crate::kernels::{Context, Level, Operands};
use crate::layer::{
    BatchNorm, Block, BlockDrop, BlockSaved, Gradient, Head, HeadSaved, Linear, NormSaved, Onward, Parameter,
    Shortcut, Unit, UnitSaved, Workspace,
};
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
    /// The batch norm and ReLU before the head of a pre-activation network.
    norm: Option<BatchNorm>,
    head: Head,
    /// Whether training computes the insides of blocks twice instead of keeping them.
    recompute: bool,
    spare: Spare,
}

/// Lists without contents, whose memory each step uses again.
#[derive(Debug, Default)]
struct Spare {
    stem: Vec<UnitSaved>,
    blocks: Vec<BlockSaved>,
}

/// What a training pass takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// Images, `[N, H, W, C]`.
    pub images: Tensor,
    /// What happens to each block's main path; empty where nothing is dropped.
    pub drops: Vec<BlockDrop>,
}

impl From<Tensor> for Input {
    fn from(images: Tensor) -> Self {
        Input { images, drops: Vec::new() }
    }
}

/// The layers of a network, by reference or by value.
pub(crate) struct Layers<U, B, N, L> {
    pub(crate) stem: U,
    /// The blocks of all stages.
    pub(crate) blocks: B,
    /// The batch norm before the head, where there is one.
    pub(crate) norm: Option<N>,
    /// The head's linear layer.
    pub(crate) linear: L,
}

/// What the backward pass needs: the input and what every layer has kept.
#[derive(Debug)]
pub struct Saved {
    input: Tensor,
    stem: Vec<UnitSaved>,
    blocks: Vec<BlockSaved>,
    /// What the head reads where a batch norm made it, and the batch's statistics.
    normed: Option<(Tensor, NormSaved)>,
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

    /// From now on, training's convolutions multiply such operands where that is faster than fast algorithms, which are always `f32`, as
    /// sums and everything else are. `f32` becomes [threes](Operands::Threes) where the CPU makes them faster, and inference always is
    /// `f32`.
    pub fn set_operands(&mut self, operands: Operands) {
        let level = self.level;
        let blocks = self.blocks.iter_mut().flat_map(Block::all_units_mut);
        self.stem.iter_mut().chain(blocks).for_each(|unit| unit.conv.set_operands(level, operands));
    }

    /// From now on, training keeps only each block's output, and in the backward pass computes again what else it needs (Chen et
    /// al. 2016): less memory, more time, and the same bits.
    pub fn set_recompute(&mut self, recompute: bool) {
        self.recompute = recompute;
    }

    /// The layers in execution order.
    pub(crate) fn layers(
        &self,
    ) -> Layers<std::slice::Iter<'_, Unit>, std::slice::Iter<'_, Block>, &BatchNorm, &Linear> {
        Layers {
            stem: self.stem.iter(),
            blocks: self.blocks.iter(),
            norm: self.norm.as_ref(),
            linear: &self.head.linear,
        }
    }

    /// The layers in execution order, which the network gives away.
    pub(crate) fn into_layers(
        self,
    ) -> Layers<std::vec::IntoIter<Unit>, std::vec::IntoIter<Block>, BatchNorm, Linear> {
        let Network { stem, blocks, norm, head, .. } = self;
        Layers { stem: stem.into_iter(), blocks: blocks.into_iter(), norm, linear: head.linear }
    }

    /// All batch norms.
    pub(crate) fn norms(&self) -> impl Iterator<Item = &BatchNorm> {
        let stem = self.stem.iter().filter_map(|unit| unit.norm.as_ref());
        stem.chain(self.blocks.iter().flat_map(Block::norms)).chain(&self.norm)
    }

    /// All batch norms, in the same order, to be changed.
    pub(crate) fn norms_mut(&mut self) -> impl Iterator<Item = &mut BatchNorm> {
        let Network { stem, blocks, norm, .. } = self;
        let stem = stem.iter_mut().filter_map(|unit| unit.norm.as_mut());
        stem.chain(blocks.iter_mut().flat_map(Block::norms_mut)).chain(norm)
    }

    /// All parameters in the order of [`parameters_mut`](Self::parameters_mut).
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let stem = self.stem.iter().flat_map(Unit::parameters);
        let blocks = self.blocks.iter().flat_map(Block::parameters);
        let norm = self.norm.iter().flat_map(BatchNorm::parameters);
        stem.chain(blocks).chain(norm).chain(self.head.linear.parameters())
    }

    /// All parameters in execution order, to be changed.
    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let Network { stem, blocks, norm, head, .. } = self;
        let stem = stem.iter_mut().flat_map(Unit::parameters_mut);
        let blocks = blocks.iter_mut().flat_map(Block::parameters_mut);
        let norm = norm.iter_mut().flat_map(BatchNorm::parameters_mut);
        stem.chain(blocks).chain(norm).chain(head.linear.parameters_mut())
    }

    fn check(&self, x: &Tensor) -> Result<(), ShapeError> {
        let expected = [x.batch().max(1), self.input[0], self.input[1], self.arch.in_channels];
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
    /// When there are no images, or their size or channels are not the network's.
    ///
    /// # Panics
    /// When there are drops, but not one for each block.
    pub fn forward(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        input: impl Into<Input>,
    ) -> Result<(Tensor, Saved), Error> {
        let Input { images: input, drops } = input.into();
        self.check(&input)?;
        assert!(drops.is_empty() || drops.len() == self.blocks.len(), "a drop for each block");
        let mut drops = drops.into_iter();
        let mut stem = std::mem::take(&mut self.spare.stem);
        for unit in &mut self.stem {
            let saved = unit.forward(cx, workspace, stem.last().map_or(&input, UnitSaved::output), None);
            stem.push(saved);
        }
        let before = stem.last().map_or(&input, UnitSaved::output);
        let mut blocks = std::mem::take(&mut self.spare.blocks);
        for index in 0..self.blocks.len() {
            let x = blocks.last().map_or(before, BlockSaved::output);
            let drop = drops.next().unwrap_or_default();
            let mut saved = self.blocks[index].forward(cx, workspace, x, drop);
            // The backward pass begins with the last block: what it needs is kept. So is what the last block of a shape needs,
            // because nothing of that size has been given back before.
            match self.blocks.get(index + 1).map(|next| &next.shortcut) {
                Some(_) if self.recompute => saved.forget(workspace),
                Some(Shortcut::Identity) => self.blocks[index].trim(workspace, &mut saved),
                Some(_) | None => {}
            }
            blocks.push(saved);
        }
        let features = blocks.last().map_or(before, BlockSaved::output);
        let normed = self.norm.as_mut().map(|norm| norm.forward(cx, workspace, features, None, true));
        let features = normed.as_ref().map_or(features, |(normed, _)| normed);
        let (logits, head) = self.head.forward(cx, workspace, features);
        Ok((logits, Saved { input, stem, blocks, normed, head }))
    }

    /// Every parameter's gradient, from the logits' gradient. Returns the images that the forward pass took: their memory is the
    /// caller's.
    pub fn backward(
        &mut self,
        cx: &Context,
        workspace: &mut Workspace,
        saved: Saved,
        dlogits: &Tensor,
    ) -> Tensor {
        let Saved { input, mut stem, mut blocks, normed, head } = saved;
        let mut dfeatures = self.head.backward(cx, workspace, head, dlogits);
        if let (Some(norm), Some((normed, saved))) = (&mut self.norm, normed) {
            let before = stem.last().map_or(&input, UnitSaved::output);
            let x = blocks.last().map_or(before, BlockSaved::output);
            norm.backward(cx, workspace, x, saved, (&mut dfeatures, None), true);
            workspace.give(normed);
        }
        let mut dy = Gradient::from(dfeatures);
        while let Some(saved) = blocks.pop() {
            let (before, after) = self.blocks.split_at_mut(blocks.len());
            let stem_output = stem.last().map_or(&input, UnitSaved::output);
            let x = blocks.last().map_or(stem_output, BlockSaved::output);
            let wanted = match before.last().zip(blocks.last()) {
                Some((block, saved)) => block.wanted(saved),
                None => self.stem.last().zip(stem.last()).and_then(|(unit, saved)| unit.wanted(saved)),
            };
            dy = after[0].backward(cx, workspace, x, saved, dy, wanted);
        }
        while let Some(saved) = stem.pop() {
            let (before, after) = self.stem.split_at_mut(stem.len());
            let Some((unit, before)) = before.last().zip(stem.last()) else {
                after[0].backward_first(cx, workspace, &input, saved, dy);
                break;
            };
            let wanted = unit.wanted(before);
            dy =
                after[0].backward(cx, workspace, before.output(), saved, dy, Onward { also: None, wanted }).0;
        }
        (self.spare.stem, self.spare.blocks) = (stem, blocks);
        input
    }

    /// Inference with the running statistics: images `[N, H, W, C]` → logits `[N, 1, 1, classes]`.
    ///
    /// # Errors
    /// When there are no images, or their size or channels are not the network's.
    pub fn infer(&self, cx: &Context, workspace: &mut Workspace, x: &Tensor) -> Result<Tensor, Error> {
        self.infer_seeing(cx, workspace, x, |_, _| {})
    }

    /// As [`infer`](Self::infer); `see` is shown each feature map, `[N, H/s, W/s, C]`, as [`Arch::feature_info`] lists them,
    /// and the embedding, `[N, 1, 1, C]`.
    ///
    /// # Errors
    /// When there are no images, or their size or channels are not the network's.
    pub fn infer_seeing(
        &self,
        cx: &Context,
        workspace: &mut Workspace,
        x: &Tensor,
        mut see: impl FnMut(Seen, &Tensor),
    ) -> Result<Tensor, Error> {
        self.check(x)?;
        let feature = self.arch.stem_feature();
        let mut stem: Option<Tensor> = None;
        for (index, unit) in self.stem.iter().enumerate() {
            let show = |y: &Tensor| {
                if index == feature {
                    see(Seen::Feature(0), y)
                }
            };
            let next = unit.infer_seeing(cx, workspace, stem.as_ref().unwrap_or(x), None, show);
            stem.replace(next).into_iter().for_each(|old| workspace.give(old));
        }
        let mut y = stem.expect("a stem has units");
        let mut blocks = self.blocks.iter();
        for (index, row) in self.arch.stages.iter().enumerate() {
            for block in blocks.by_ref().take(row.blocks) {
                let next = block.infer(cx, workspace, &y);
                workspace.give(std::mem::replace(&mut y, next));
            }
            see(Seen::Feature(index + 1), &y);
        }
        if let Some(norm) = &self.norm {
            let normed = norm.infer(cx, workspace, &y, None, true);
            workspace.give(std::mem::replace(&mut y, normed));
        }
        let pooled = self.head.pool(cx, workspace, &y);
        see(Seen::Embedding, &pooled);
        let logits = self.head.linear.forward(cx, workspace, &pooled, false);
        workspace.give(y);
        workspace.give(pooled);
        Ok(logits)
    }
}

/// What [`Network::infer_seeing`] shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// The feature map of this number: 0 is the stem's, before its pool, k that of stage k.
    Feature(usize),
    /// The means of the last feature map's channels, behind the last batch norm where there is one: what the head reads.
    Embedding,
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
    fn other_images_and_none_are_refused() {
        let cx = Context::new(Level::detect(), 1);
        let arch = Arch::preset("resnet20").unwrap();
        let mut network = Network::new(&arch, [32, 32], cx.level(), Initialise::default()).unwrap();
        for (shape, message) in [
            ([1, 32, 31, 3], "[1, 32, 31, 3], expected [1, 32, 32, 3]"),
            ([0, 32, 32, 3], "[0, 32, 32, 3], expected [1, 32, 32, 3]"),
        ] {
            let mut workspace = Workspace::default();
            let inferred = network.infer(&cx, &mut workspace, &Tensor::zeros(shape)).unwrap_err();
            let trained = network.forward(&cx, &mut workspace, Tensor::zeros(shape)).unwrap_err();
            for error in [inferred, trained] {
                assert!(error.to_string().contains(message), "{error}");
            }
        }
    }
}
