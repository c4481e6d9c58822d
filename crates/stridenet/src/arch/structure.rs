//! The one walk over a description: every convolution, batch norm, pool and shortcut, in execution order.

use super::{
    Arch, ArchError, BlockKind, MAX_CHANNELS, MAX_PARAMS, PoolKind, Shortcut, Stem, StrideOn, check,
};
use stridenet_kernels::conv::{ConvGeometry, GeometryError, Window};

/// A network, layer by layer, under the names that torchvision and timm give its weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Structure {
    /// The first convolution, with its max pool if it has one.
    pub stem: Unit,
    /// The blocks of all stages, in order.
    pub blocks: Vec<Block>,
    /// The linear layer behind the global average pool.
    pub head: Head,
}

/// A convolution without bias, its batch norm, and what follows at once: ReLU, then a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// The convolution's torch name: `conv1`, `layer1.0.conv1`, `layer2.0.downsample.0`.
    pub conv: String,
    /// The batch norm's torch name: `bn1`, `layer1.0.bn1`, `layer2.0.downsample.1`.
    pub norm: String,
    /// The convolution.
    pub geometry: ConvGeometry,
    /// Whether a ReLU follows. It does not for a block's last unit, where it comes after the addition, nor
    /// for a projection.
    pub relu: bool,
    /// The pool after the ReLU: the stem's max pool, or the one that takes over the convolution's stride.
    pub pool: Option<PoolKind>,
}

/// A residual block: `relu(units(x) + shortcut(x))`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The torch name, such as `layer1.0`.
    pub name: String,
    /// The stage, counted from 0; `layer1` is 0.
    pub stage: usize,
    /// The stride of the whole block, of both paths.
    pub stride: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// The main path, in order.
    pub units: Vec<Unit>,
    /// The other path.
    pub shortcut: BlockShortcut,
}

/// What a block adds to its main path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockShortcut {
    /// The input itself.
    Identity,
    /// A strided 1×1 convolution and batch norm.
    Projection(Unit),
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

/// The linear layer that turns the pooled features into logits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The torch name, `fc`.
    pub name: String,
    /// Channels of the last feature map.
    pub in_features: usize,
    /// Number of classes.
    pub out_features: usize,
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

/// One convolution of a block.
struct ConvSpec {
    kernel: usize,
    out_channels: usize,
    groups: usize,
    /// Whether it carries the block's stride.
    strided: bool,
}

impl Arch {
    /// Walks the description: the one place that decides names, strides, widths and shortcuts.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn structure(&self) -> Result<Structure, ArchError> {
        self.check_fields()?;
        let stem = self.stem_unit();
        let mut params = Params(0);
        params.add(stem.param_count())?;
        let mut channels = self.stem_width;
        let mut blocks = Vec::new();
        for (stage, row) in self.stages.iter().enumerate() {
            for index in 0..row.blocks {
                let stride = if index == 0 { row.stride } else { 1 };
                let block = self.block(stage, index, channels, stride)?;
                params.add(block.param_count())?;
                channels = block.out_channels;
                blocks.push(block);
            }
        }
        let head = Head { name: "fc".to_owned(), in_features: channels, out_features: self.num_classes };
        params.add(head.param_count())?;
        Ok(Structure { stem, blocks, head })
    }

    fn stem_unit(&self) -> Unit {
        let (kernel, stride, pool) = match self.stem {
            Stem::ImageNet => (7, 2, Some(PoolKind::Max(Window::same(3, 2)))),
            Stem::Cifar => (3, 1, None),
        };
        let geometry = ConvGeometry::square(self.in_channels, self.stem_width, kernel, stride);
        Unit { conv: "conv1".to_owned(), norm: "bn1".to_owned(), geometry, relu: true, pool }
    }

    /// The block `index` of a stage, for an input of `in_channels`.
    fn block(
        &self,
        stage: usize,
        index: usize,
        in_channels: usize,
        stride: usize,
    ) -> Result<Block, ArchError> {
        let name = format!("layer{}.{index}", stage + 1);
        let convs = self.block_convs(stage)?;
        let last = convs.len() - 1;
        let mut channels = in_channels;
        let mut units = Vec::with_capacity(convs.len());
        for (position, conv) in convs.iter().enumerate() {
            let pool = if conv.strided { self.downsample.pool(stride) } else { None };
            let conv_stride = if conv.strided && pool.is_none() { stride } else { 1 };
            let square = ConvGeometry::square(channels, conv.out_channels, conv.kernel, conv_stride);
            let unit = Unit {
                conv: format!("{name}.conv{}", position + 1),
                norm: format!("{name}.bn{}", position + 1),
                geometry: ConvGeometry { groups: conv.groups, ..square },
                relu: position < last,
                pool,
            };
            unit.geometry.validate().map_err(ArchError::at(&unit.conv))?;
            channels = conv.out_channels;
            units.push(unit);
        }
        let shortcut = self.block_shortcut(&name, stride, in_channels, channels)?;
        Ok(Block { name, stage, stride, in_channels, out_channels: channels, units, shortcut })
    }

    /// The convolutions of a stage's blocks: what tells the kinds of block apart.
    fn block_convs(&self, stage: usize) -> Result<Vec<ConvSpec>, ArchError> {
        let width = self.stages[stage].width;
        let out = width * self.block.expansion();
        check(&format!("the output width of layer{}", stage + 1), out, MAX_CHANNELS)?;
        let conv = |kernel, out_channels| ConvSpec { kernel, out_channels, groups: 1, strided: false };
        Ok(match self.block {
            BlockKind::Basic => vec![ConvSpec { strided: true, ..conv(3, out) }, conv(3, out)],
            BlockKind::Bottleneck => {
                let inner = (width.saturating_mul(self.base_width) / 64).saturating_mul(self.groups);
                check(&format!("the inner width of layer{}", stage + 1), inner, MAX_CHANNELS)?;
                let on_first = self.stride_on == StrideOn::Conv1x1;
                vec![
                    ConvSpec { strided: on_first, ..conv(1, inner) },
                    ConvSpec { strided: !on_first, groups: self.groups, ..conv(3, inner) },
                    conv(1, out),
                ]
            }
        })
    }

    fn block_shortcut(
        &self,
        block: &str,
        stride: usize,
        in_channels: usize,
        out_channels: usize,
    ) -> Result<BlockShortcut, ArchError> {
        if stride == 1 && in_channels == out_channels {
            return Ok(BlockShortcut::Identity);
        }
        match self.shortcut {
            Shortcut::Projection => Ok(BlockShortcut::Projection(Unit {
                conv: format!("{block}.downsample.0"),
                norm: format!("{block}.downsample.1"),
                geometry: ConvGeometry::square(in_channels, out_channels, 1, stride),
                relu: false,
                pool: None,
            })),
            Shortcut::ZeroPad if out_channels < in_channels => Err(ArchError::Conflict {
                field: "shortcut",
                found: self.shortcut.to_string(),
                reason: format!("{block} narrows {in_channels} channels to {out_channels}"),
                remedy: "use shortcut projection or widths that do not shrink".to_owned(),
            }),
            Shortcut::ZeroPad => Ok(BlockShortcut::ZeroPad { stride, in_channels, out_channels }),
        }
    }
}

/// Parameters counted so far, held below the limit so that no sum overflows.
struct Params(u64);

impl Params {
    fn add(&mut self, count: u64) -> Result<(), ArchError> {
        self.0 = self.0.saturating_add(count);
        if self.0 > MAX_PARAMS {
            return Err(ArchError::TooLarge { found: self.0, limit: MAX_PARAMS });
        }
        Ok(())
    }
}

impl Structure {
    /// All units in execution order: the stem, then of each block the main path and the projection. This is
    /// also the order of torch's state dict.
    pub fn units(&self) -> impl Iterator<Item = &Unit> {
        let blocks = self.blocks.iter().flat_map(|block| block.units.iter().chain(block.shortcut.unit()));
        std::iter::once(&self.stem).chain(blocks)
    }

    /// The tensors of torch's state dict, in its order.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut tensors: Vec<TensorSpec> = self.units().flat_map(Unit::tensors).collect();
        let Head { name, in_features, out_features } = &self.head;
        tensors.push(TensorSpec::new(name, "weight", &[*out_features, *in_features], true));
        tensors.push(TensorSpec::new(name, "bias", &[*out_features], true));
        tensors
    }

    /// Number of trainable values.
    pub fn param_count(&self) -> u64 {
        self.units().map(Unit::param_count).sum::<u64>() + self.head.param_count()
    }
}

impl Unit {
    /// Output size `[height, width]`, after the pool, for an input of `[height, width]`.
    ///
    /// # Errors
    /// When the input is too small for a window.
    pub fn output_size(&self, input: [usize; 2]) -> Result<[usize; 2], GeometryError> {
        let size = self.geometry.output_size(input)?;
        self.pool.map_or(Ok(size), |pool| pool.output(size))
    }

    /// Trainable values: the convolution's weights, and the batch norm's weight and bias.
    pub fn param_count(&self) -> u64 {
        self.geometry.weight_len() as u64 + 2 * self.geometry.out_channels as u64
    }

    fn tensors(&self) -> [TensorSpec; 6] {
        let ConvGeometry { out_channels, kernel: [height, width], .. } = self.geometry;
        let per_channel = |part, trainable| TensorSpec::new(&self.norm, part, &[out_channels], trainable);
        [
            TensorSpec::new(
                &self.conv,
                "weight",
                &[out_channels, self.geometry.group_in(), height, width],
                true,
            ),
            per_channel("weight", true),
            per_channel("bias", true),
            per_channel("running_mean", false),
            per_channel("running_var", false),
            TensorSpec::new(&self.norm, "num_batches_tracked", &[], false),
        ]
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
        self.units.iter().chain(self.shortcut.unit()).map(Unit::param_count).sum()
    }
}

impl BlockShortcut {
    /// The projection's unit, if the shortcut is one.
    pub fn unit(&self) -> Option<&Unit> {
        match self {
            BlockShortcut::Projection(unit) => Some(unit),
            BlockShortcut::Identity | BlockShortcut::ZeroPad { .. } => None,
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
