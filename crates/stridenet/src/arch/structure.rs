//! The one walk over a description: every convolution, batch norm, pool and shortcut, in execution order.

mod names;
mod walk;

use super::PoolKind;
use stridenet_kernels::conv::{ConvGeometry, GeometryError};

/// A network, layer by layer, under the names that torchvision and timm give its weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Structure {
    /// The convolutions before the first block, with the pools between.
    pub stem: Vec<Unit>,
    /// Which unit of the stem, before its pools, is the network's first feature map.
    pub stem_feature: usize,
    /// The blocks of all stages, in order.
    pub blocks: Vec<Block>,
    /// The batch norm and ReLU between the last block and the head of a pre-activation network.
    pub norm: Option<Norm>,
    /// The linear layer behind the global average pool.
    pub head: Head,
}

/// A batch norm and a ReLU that follow no convolution directly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Norm {
    /// The torch name: `stages.0.blocks.0.norm1`, `norm`.
    pub name: String,
    /// Channels.
    pub channels: usize,
}

/// A convolution without bias, and what follows at once: batch norm, ReLU, pools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// The convolution's torch name: `conv1`, `layer1.0.conv1`, `layer2.0.downsample.0`, `stem.conv`.
    pub conv: String,
    /// The batch norm's torch name: `bn1`, `layer1.0.bn1`, `layer2.0.downsample.1`, `stages.0.blocks.0.norm2`.
    /// A pre-activation network has none behind its stem's last convolution, the last one of a block, and
    /// projections.
    pub norm: Option<String>,
    /// The convolution.
    pub geometry: ConvGeometry,
    /// Whether a ReLU follows. It does not for a block's last unit, where it comes after the addition, nor
    /// for a projection, nor without a batch norm.
    pub relu: bool,
    /// The pools after the ReLU, in order: the stem's, or the one that takes over the convolution's stride.
    pub pools: Vec<PoolKind>,
}

/// A residual block: `relu(gate(units(x)) + shortcut(x))`, or, with pre-activation, with `z = relu(norm(x))`,
/// `units(z) + shortcut`, where the shortcut is x itself or a function of z.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The torch name, such as `layer1.0` or `stages.0.blocks.0`.
    pub name: String,
    /// The stage, counted from 0; `layer1` is 0.
    pub stage: usize,
    /// The stride of the whole block, of both paths.
    pub stride: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// With pre-activation, what comes before the units and before a shortcut that changes shape. Such a block
    /// has no ReLU after the addition.
    pub norm: Option<Norm>,
    /// The main path, in order.
    pub units: Vec<Unit>,
    /// What weighs the channels of the main path before the addition.
    pub gate: Option<Gate>,
    /// The other path.
    pub shortcut: BlockShortcut,
}

/// What a block adds to its main path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockShortcut {
    /// The input itself.
    Identity,
    /// A convolution, usually 1×1, and batch norm.
    Projection {
        /// The average pool before it that takes over its stride.
        pool: Option<PoolKind>,
        /// The convolution and its batch norm.
        unit: Unit,
    },
    /// The pixels `x[:, ::stride, ::stride, :]` between channels of zeros: `(out − in) / 2` before (rounded
    /// down) and the rest after.
    ZeroPad {
        /// Step between the pixels taken.
        stride: usize,
        /// Channels of the input.
        in_channels: usize,
        /// Channels of the output.
        out_channels: usize,
    },
}

/// Weights for channels, each between 0 and 1, that follow from the channels' means over all pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    /// The torch name, such as `layer1.0.se`.
    pub name: String,
    /// Channels.
    pub channels: usize,
    /// How the weights follow from the means.
    pub kind: GateKind,
}

/// How a gate's weights follow from the means m of all channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateKind {
    /// `sigmoid(fc2(relu(fc1(m))))` with linear layers `fc1`, to `squeezed` values, and `fc2`, back.
    Se {
        /// Values between the layers.
        squeezed: usize,
    },
    /// `sigmoid(conv(m))` with a convolution along the channels, zeros beyond the first and last one.
    Eca {
        /// Taps of the convolution, an odd number.
        kernel: usize,
    },
}

/// The linear layer that turns the pooled features into logits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The torch name, `fc` or `head.fc`.
    pub name: String,
    /// Channels of the last feature map.
    pub in_features: usize,
    /// Number of classes.
    pub out_features: usize,
    /// Whether torch stores it as a 1×1 convolution, as timm does for pre-activation networks.
    pub conv: bool,
}

/// A tensor of a network's state dict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// The torch name, such as `layer1.0.conv1.weight`.
    pub name: String,
    /// The shape in torch's order: OIHW for a convolution, `[out, in]` for a linear layer, `[]` for
    /// `num_batches_tracked`.
    pub shape: Vec<usize>,
    /// Whether training changes it by its gradient: false for running statistics.
    pub trainable: bool,
}

impl Structure {
    /// All units in execution order: the stem, then of each block the main path and the projection.
    pub fn units(&self) -> impl Iterator<Item = &Unit> {
        let blocks = self.blocks.iter().flat_map(|block| block.units.iter().chain(block.shortcut.unit()));
        self.stem.iter().chain(blocks)
    }

    /// Output size `[height, width]` of the stem for an input of `[height, width]`.
    ///
    /// # Errors
    /// When the input is too small for a window.
    pub fn stem_size(&self, input: [usize; 2]) -> Result<[usize; 2], GeometryError> {
        self.stem.iter().try_fold(input, |size, unit| unit.output_size(size))
    }

    /// The tensors of torch's state dict, in its order.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut tensors: Vec<TensorSpec> = self.stem.iter().flat_map(Unit::tensors).collect();
        tensors.extend(self.blocks.iter().flat_map(Block::tensors));
        tensors.extend(self.norm.iter().flat_map(Norm::tensors));
        let Head { name, in_features, out_features, conv } = &self.head;
        let weight: &[usize] =
            if *conv { &[*out_features, *in_features, 1, 1] } else { &[*out_features, *in_features] };
        tensors.push(TensorSpec::new(name, "weight", weight, true));
        tensors.push(TensorSpec::new(name, "bias", &[*out_features], true));
        tensors
    }

    /// Number of trainable values.
    pub fn param_count(&self) -> u64 {
        let stem = self.stem.iter().map(Unit::param_count).sum::<u64>();
        let blocks = self.blocks.iter().map(Block::param_count).sum::<u64>();
        stem + blocks + self.norm.as_ref().map_or(0, Norm::param_count) + self.head.param_count()
    }
}

impl Norm {
    /// Trainable values: weight and bias.
    pub fn param_count(&self) -> u64 {
        2 * self.channels as u64
    }

    fn tensors(&self) -> [TensorSpec; 5] {
        norm_tensors(&self.name, self.channels)
    }
}

/// The tensors of a batch norm.
fn norm_tensors(name: &str, channels: usize) -> [TensorSpec; 5] {
    let per_channel = |part, trainable| TensorSpec::new(name, part, &[channels], trainable);
    [
        per_channel("weight", true),
        per_channel("bias", true),
        per_channel("running_mean", false),
        per_channel("running_var", false),
        TensorSpec::new(name, "num_batches_tracked", &[], false),
    ]
}

impl Unit {
    /// Output size `[height, width]`, after the pools, for an input of `[height, width]`.
    ///
    /// # Errors
    /// When the input is too small for a window.
    pub fn output_size(&self, input: [usize; 2]) -> Result<[usize; 2], GeometryError> {
        let size = self.geometry.output_size(input)?;
        self.pools.iter().try_fold(size, |size, pool| pool.output(size))
    }

    /// Trainable values: the convolution's weights, and the batch norm's weight and bias.
    pub fn param_count(&self) -> u64 {
        let norm = if self.norm.is_some() { 2 * self.geometry.out_channels as u64 } else { 0 };
        self.geometry.weight_len() as u64 + norm
    }

    fn tensors(&self) -> impl Iterator<Item = TensorSpec> {
        let ConvGeometry { out_channels, kernel: [height, width], .. } = self.geometry;
        let shape = [out_channels, self.geometry.group_in(), height, width];
        let norm = self.norm.as_ref().map(|norm| norm_tensors(norm, out_channels));
        std::iter::once(TensorSpec::new(&self.conv, "weight", &shape, true)).chain(norm.into_iter().flatten())
    }
}

impl Block {
    /// Output size `[height, width]` for an input of `[height, width]`; both paths give the same.
    ///
    /// # Errors
    /// When the input is too small for a window.
    pub fn output_size(&self, input: [usize; 2]) -> Result<[usize; 2], GeometryError> {
        self.units.iter().try_fold(input, |size, unit| unit.output_size(size))
    }

    /// Trainable values of both paths.
    pub fn param_count(&self) -> u64 {
        let units: u64 = self.units.iter().chain(self.shortcut.unit()).map(Unit::param_count).sum();
        let norm = self.norm.as_ref().map_or(0, Norm::param_count);
        units + norm + self.gate.as_ref().map_or(0, Gate::param_count)
    }

    /// The tensors in torch's order: timm's pre-activation blocks begin with the projection, others end with it.
    fn tensors(&self) -> Vec<TensorSpec> {
        let projection = || self.shortcut.unit().into_iter().flat_map(Unit::tensors);
        let main = self.norm.iter().flat_map(Norm::tensors).chain(self.units.iter().flat_map(Unit::tensors));
        let main = main.chain(self.gate.iter().flat_map(Gate::tensors));
        match self.norm {
            Some(_) => projection().chain(main).collect(),
            None => main.chain(projection()).collect(),
        }
    }
}

impl BlockShortcut {
    /// The projection's unit, if the shortcut is one.
    pub fn unit(&self) -> Option<&Unit> {
        match self {
            BlockShortcut::Projection { unit, .. } => Some(unit),
            BlockShortcut::Identity | BlockShortcut::ZeroPad { .. } => None,
        }
    }

    /// Output size `[height, width]` for an input of `[height, width]`.
    ///
    /// # Errors
    /// When the input is too small for a window.
    pub fn output_size(&self, input: [usize; 2]) -> Result<[usize; 2], GeometryError> {
        match self {
            BlockShortcut::Identity => Ok(input),
            BlockShortcut::Projection { pool, unit } => {
                unit.output_size(pool.map_or(Ok(input), |pool| pool.output(input))?)
            }
            BlockShortcut::ZeroPad { stride, .. } => Ok(input.map(|size| size.div_ceil(*stride))),
        }
    }
}

impl Gate {
    /// Trainable values.
    pub fn param_count(&self) -> u64 {
        self.tensors().iter().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum()
    }

    fn tensors(&self) -> Vec<TensorSpec> {
        let Gate { name, channels, kind } = self;
        match *kind {
            GateKind::Eca { kernel } => {
                vec![TensorSpec::new(&format!("{name}.conv"), "weight", &[1, 1, kernel], true)]
            }
            GateKind::Se { squeezed } => {
                let linear = |part: &str, from: usize, to: usize| {
                    let layer = format!("{name}.{part}");
                    [
                        TensorSpec::new(&layer, "weight", &[to, from, 1, 1], true),
                        TensorSpec::new(&layer, "bias", &[to], true),
                    ]
                };
                [linear("fc1", *channels, squeezed), linear("fc2", squeezed, *channels)].concat()
            }
        }
    }
}

impl Head {
    /// Trainable values: weights and biases.
    pub fn param_count(&self) -> u64 {
        (self.in_features as u64 + 1) * self.out_features as u64
    }
}

impl TensorSpec {
    fn new(layer: &str, part: &str, shape: &[usize], trainable: bool) -> Self {
        TensorSpec { name: format!("{layer}.{part}"), shape: shape.to_vec(), trainable }
    }
}

#[cfg(test)]
mod tests;
