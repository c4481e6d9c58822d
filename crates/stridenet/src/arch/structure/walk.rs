//! The walk itself: strides, dilations, widths and shortcuts.

use super::{Block, BlockShortcut, Gate, GateKind, Head, Norm, Structure, Unit};
use crate::arch::{
    Arch, ArchError, Attention, BlockKind, MAX_CHANNELS, MAX_PARAMS, MAX_SIDE, Order, PoolKind, Shortcut,
    Stem, StemPool, StrideOn, check,
};
use stridenet_kernels::conv::{AverageWindow, ConvGeometry, Edge};

/// One convolution of a block.
struct ConvSpec {
    kernel: usize,
    out_channels: usize,
    groups: usize,
    dilation: usize,
    /// Whether it carries the block's stride.
    strided: bool,
}

/// Where a block stands.
#[derive(Clone, Copy)]
struct Step {
    stage: usize,
    /// The block's number in its stage.
    index: usize,
    in_channels: usize,
    stride: usize,
    /// The dilation of the stage's 3×3 convolutions.
    dilation: usize,
    /// The dilation before this block, which its first 3×3 convolution keeps.
    first_dilation: usize,
}

impl Step {
    /// Whether the block is where the feature map shrinks, or would shrink if its stage were not dilated.
    fn shrinks(&self) -> bool {
        self.stride != 1 || self.dilation != self.first_dilation
    }
}

impl Arch {
    /// Walks the description: the one place that decides names, strides, widths and shortcuts.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn structure(&self) -> Result<Structure, ArchError> {
        self.check_fields()?;
        let stem = self.stem_units();
        let stem_feature = self.stem_feature();
        let mut params = Params(0);
        params.add(stem.iter().map(Unit::param_count).sum())?;
        let mut step = Step {
            stage: 0,
            index: 0,
            in_channels: self.stem_width,
            stride: 1,
            dilation: 1,
            first_dilation: 1,
        };
        let mut blocks = Vec::new();
        for (stage, (row, (stride, dilation))) in self.stages.iter().zip(self.strides()).enumerate() {
            check(&format!("the dilation of layer{}", stage + 1), dilation, MAX_SIDE)?;
            for index in 0..row.blocks {
                step = Step { stage, index, stride: if index == 0 { stride } else { 1 }, dilation, ..step };
                let block = self.block(step)?;
                params.add(block.param_count())?;
                (step.in_channels, step.first_dilation) = (block.out_channels, dilation);
                blocks.push(block);
            }
        }
        let norm =
            (self.order == Order::Pre).then(|| Norm { name: "norm".to_owned(), channels: step.in_channels });
        params.add(norm.as_ref().map_or(0, Norm::param_count))?;
        let head = Head {
            name: self.head_name().to_owned(),
            in_features: step.in_channels,
            out_features: self.num_classes,
            conv: self.order == Order::Pre,
        };
        params.add(head.param_count())?;
        Ok(Structure { stem, stem_feature, blocks, norm, head })
    }

    /// Which unit of the stem, before its pools, is the network's first feature map.
    pub(crate) fn stem_feature(&self) -> usize {
        match self.stem {
            Stem::ImageNet | Stem::Cifar => 0,
            Stem::Deep | Stem::DeepTiered => 2,
        }
    }

    /// The product of the strides before the first block.
    pub(in crate::arch) fn stem_stride(&self) -> usize {
        match self.stem {
            Stem::ImageNet | Stem::Deep | Stem::DeepTiered => 4,
            Stem::Cifar => 1,
        }
    }

    /// Each stage's stride and dilation: beyond `output_stride`, dilation takes the strides' place.
    pub(in crate::arch) fn strides(&self) -> Vec<(usize, usize)> {
        let (mut total, mut dilation) = (self.stem_stride(), 1usize);
        let stage = |stride: usize| {
            if self.output_stride.is_some_and(|limit| total >= limit) {
                dilation = dilation.saturating_mul(stride);
                return (1, dilation);
            }
            total = total.saturating_mul(stride);
            (stride, dilation)
        };
        self.stages.iter().map(|row| row.stride).map(stage).collect()
    }

    fn stem_units(&self) -> Vec<Unit> {
        let width = self.stem_width;
        let convs: Vec<(usize, usize, usize)> = match self.stem {
            Stem::ImageNet => vec![(width, 7, 2)],
            Stem::Cifar => vec![(width, 3, 1)],
            Stem::Deep => vec![(width / 2, 3, 2), (width / 2, 3, 1), (width, 3, 1)],
            Stem::DeepTiered => vec![(3 * width / 8, 3, 2), (width / 2, 3, 1), (width, 3, 1)],
        };
        let last = convs.len() - 1;
        let mut channels = self.in_channels;
        let mut units: Vec<Unit> = Vec::with_capacity(convs.len() + 1);
        for (index, &(out_channels, kernel, stride)) in convs.iter().enumerate() {
            let (conv, norm) = self.stem_names(index, last);
            let (geometry, relu) =
                (ConvGeometry::square(channels, out_channels, kernel, stride), norm.is_some());
            units.push(Unit { conv, norm, geometry, relu, pools: Vec::new() });
            channels = out_channels;
        }
        match (self.stem, self.stem_pool) {
            (Stem::Cifar, _) => {}
            (_, StemPool::Max) => units[last].pools = self.downsample.stem_pools(),
            (_, StemPool::Conv) => units.push(Unit {
                conv: "maxpool.0".to_owned(),
                norm: Some("maxpool.1".to_owned()),
                geometry: ConvGeometry::square(width, width, 3, 2),
                relu: true,
                pools: Vec::new(),
            }),
        }
        units
    }

    fn block(&self, step: Step) -> Result<Block, ArchError> {
        let Step { stage, index, in_channels, stride, .. } = step;
        let name = self.block_name(stage, index);
        let convs = self.block_convs(step)?;
        let last = convs.len() - 1;
        let mut channels = in_channels;
        let mut units = Vec::with_capacity(convs.len());
        for (position, conv) in convs.iter().enumerate() {
            let pool = if conv.strided && step.shrinks() { self.downsample.pool(stride) } else { None };
            let conv_stride = if conv.strided && pool.is_none() { stride } else { 1 };
            let square = ConvGeometry::square(channels, conv.out_channels, conv.kernel, conv_stride);
            let unit = Unit {
                conv: format!("{name}.conv{}", position + 1),
                norm: self.unit_norm(&name, position, last),
                geometry: dilated(ConvGeometry { groups: conv.groups, ..square }, conv.dilation),
                relu: position < last,
                pools: pool.into_iter().collect(),
            };
            unit.geometry.validate().map_err(ArchError::at(&unit.conv))?;
            channels = conv.out_channels;
            units.push(unit);
        }
        let norm =
            (self.order == Order::Pre).then(|| Norm { name: format!("{name}.norm1"), channels: in_channels });
        let gate = self.gate(&name, channels);
        let shortcut = self.block_shortcut(&name, step, channels)?;
        Ok(Block { name, stage, stride, in_channels, out_channels: channels, norm, units, gate, shortcut })
    }

    /// The convolutions of a stage's blocks: what tells the kinds of block apart.
    fn block_convs(&self, step: Step) -> Result<Vec<ConvSpec>, ArchError> {
        let Step { stage, dilation, first_dilation, .. } = step;
        let width = self.stages[stage].width;
        let out = width * self.block.expansion();
        check(&format!("the output width of layer{}", stage + 1), out, MAX_CHANNELS)?;
        let inner = match self.block {
            BlockKind::Basic => width,
            BlockKind::Bottleneck => (width.saturating_mul(self.base_width) / 64).saturating_mul(self.groups),
        };
        check(&format!("the inner width of layer{}", stage + 1), inner, MAX_CHANNELS)?;
        let first = inner / self.reduce_first;
        check(&format!("the first width of layer{}", stage + 1), first, MAX_CHANNELS)?;
        let conv =
            |kernel, out_channels| ConvSpec { kernel, out_channels, groups: 1, dilation: 1, strided: false };
        Ok(match self.block {
            BlockKind::Basic => vec![
                ConvSpec { strided: true, dilation: first_dilation, ..conv(3, first) },
                ConvSpec { dilation, ..conv(3, out) },
            ],
            BlockKind::Bottleneck => {
                let on_first = self.stride_on == StrideOn::Conv1x1;
                vec![
                    ConvSpec { strided: on_first, ..conv(1, first) },
                    ConvSpec {
                        strided: !on_first,
                        groups: self.groups,
                        dilation: first_dilation,
                        ..conv(3, inner)
                    },
                    conv(1, out),
                ]
            }
        })
    }

    fn gate(&self, block: &str, channels: usize) -> Option<Gate> {
        let kind = match self.attention {
            Attention::None => return None,
            Attention::Se => GateKind::Se { squeezed: squeezed(channels, self.se_reduction) },
            Attention::Eca => GateKind::Eca { kernel: eca_kernel(channels) },
        };
        Some(Gate { name: format!("{block}.se"), channels, kind })
    }

    fn block_shortcut(
        &self,
        block: &str,
        step: Step,
        out_channels: usize,
    ) -> Result<BlockShortcut, ArchError> {
        let Step { index, in_channels, stride, dilation, first_dilation, .. } = step;
        let reshapes = stride != 1 || in_channels != out_channels;
        if !(reshapes || self.projects_anyway(index, step.shrinks())) {
            return Ok(BlockShortcut::Identity);
        }
        let unit = |kernel, stride, dilation| {
            let (conv, norm) = self.shortcut_names(block);
            let geometry = dilated(ConvGeometry::square(in_channels, out_channels, kernel, stride), dilation);
            Unit { conv, norm, geometry, relu: false, pools: Vec::new() }
        };
        match self.shortcut {
            Shortcut::Projection => {
                let kernel = if stride == 1 && dilation == 1 { 1 } else { self.down_kernel };
                Ok(BlockShortcut::Projection { pool: None, unit: unit(kernel, stride, first_dilation) })
            }
            Shortcut::AvgProjection => {
                // A stride that dilation has replaced leaves a pool with stride 1.
                let pool = match (stride, dilation) {
                    (1, 1) => None,
                    (1, _) => Some(AverageWindow { kernel: 2, stride: 1, edge: Edge::Zeros }),
                    _ => Some(AverageWindow::partial(stride)),
                };
                Ok(BlockShortcut::Projection { pool: pool.map(PoolKind::Avg), unit: unit(1, 1, 1) })
            }
            Shortcut::ZeroPad if out_channels < in_channels => Err(ArchError::Conflict {
                field: "shortcut",
                found: self.shortcut.to_string(),
                reason: format!("{block} narrows {in_channels} channels to {out_channels}"),
                remedy: "use shortcut projection or widths that do not shrink".to_owned(),
            }),
            Shortcut::ZeroPad => Ok(BlockShortcut::ZeroPad { stride, in_channels, out_channels }),
        }
    }

    /// Whether timm puts a projection where the shape stays: in its pre-activation networks the first bottleneck
    /// of each stage has one, and a basic block that begins to dilate.
    fn projects_anyway(&self, index: usize, shrinks: bool) -> bool {
        let first = match self.block {
            BlockKind::Basic => shrinks,
            BlockKind::Bottleneck => true,
        };
        self.order == Order::Pre && self.shortcut != Shortcut::ZeroPad && index == 0 && first
    }
}

/// The convolution with this dilation, its padding along; a 1×1 convolution has none.
fn dilated(geometry: ConvGeometry, dilation: usize) -> ConvGeometry {
    if geometry.kernel == [1; 2] {
        return geometry;
    }
    ConvGeometry {
        dilation: [dilation; 2],
        padding: geometry.padding.map(|padding| padding * dilation),
        ..geometry
    }
}

/// Values that squeeze and excitation narrows `channels` to: the nearest multiple of 8, at least 8 (timm's
/// `make_divisible` without a limit).
fn squeezed(channels: usize, reduction: usize) -> usize {
    ((channels + 4 * reduction) / (8 * reduction) * 8).max(8)
}

/// Taps of efficient channel attention: `⌊(log₂ channels + 1) / 2⌋`, made odd, at least 3 (Wang et al. 2019, equation
/// 12, with γ = 2 and b = 1).
fn eca_kernel(channels: usize) -> usize {
    (channels.ilog2() as usize).div_ceil(2).max(3) | 1
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
