//! Changes to a description, as given on a command line.

use super::{
    Arch, ArchError, Attention, BlockKind, Downsample, Order, Shortcut, Stage, Stem, StemPool, StrideOn,
};

/// Fields to replace in an [`Arch`]; `None` keeps what is there.
///
/// `depths`, `widths` and `strides` have one entry a stage. To change the number of stages, give all three.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// Blocks of each stage.
    pub depths: Option<Vec<usize>>,
    /// Width of each stage.
    pub widths: Option<Vec<usize>>,
    /// Stride of each stage.
    pub strides: Option<Vec<usize>>,
    /// The kind of block.
    pub block: Option<BlockKind>,
    /// The stem.
    pub stem: Option<Stem>,
    /// Channels of the stem. Where it is not given and was the first stage's width, it follows that width.
    pub stem_width: Option<usize>,
    /// What shrinks the stem's output.
    pub stem_pool: Option<StemPool>,
    /// The order of convolution, batch norm and ReLU.
    pub order: Option<Order>,
    /// Groups of a bottleneck's 3×3 convolution.
    pub groups: Option<usize>,
    /// Scale of a bottleneck's inner width, in 64ths.
    pub base_width: Option<usize>,
    /// Which convolution of a bottleneck carries the stride.
    pub stride_on: Option<StrideOn>,
    /// How shortcuts change shape.
    pub shortcut: Option<Shortcut>,
    /// How blocks shrink the feature map.
    pub downsample: Option<Downsample>,
    /// What weighs the channels of a block's main path.
    pub attention: Option<Attention>,
    /// By how much squeeze and excitation narrows.
    pub se_reduction: Option<usize>,
    /// The largest product of the strides.
    pub output_stride: Option<usize>,
    /// Number of classes.
    pub num_classes: Option<usize>,
    /// Channels of the input image.
    pub in_channels: Option<usize>,
    /// Input `[height, width]` in pixels.
    pub img_size: Option<[usize; 2]>,
}

impl Arch {
    /// This description with some fields replaced.
    ///
    /// # Errors
    /// When the lists of stages differ in length, or the result is not [valid](Self::validate).
    pub fn with(&self, overrides: &Overrides) -> Result<Arch, ArchError> {
        let stages = self.overridden_stages(overrides)?;
        let follows = self.stages.first().is_some_and(|stage| stage.width == self.stem_width);
        let stem_width = match (overrides.stem_width, stages.first()) {
            (Some(width), _) => width,
            (None, Some(first)) if follows => first.width,
            (None, _) => self.stem_width,
        };
        let arch = Arch {
            name: self.name.clone(),
            in_channels: overrides.in_channels.unwrap_or(self.in_channels),
            num_classes: overrides.num_classes.unwrap_or(self.num_classes),
            img_size: overrides.img_size.unwrap_or(self.img_size),
            stem: overrides.stem.unwrap_or(self.stem),
            stem_width,
            block: overrides.block.unwrap_or(self.block),
            stages,
            stem_pool: overrides.stem_pool.unwrap_or(self.stem_pool),
            order: overrides.order.unwrap_or(self.order),
            groups: overrides.groups.unwrap_or(self.groups),
            base_width: overrides.base_width.unwrap_or(self.base_width),
            reduce_first: self.reduce_first,
            stride_on: overrides.stride_on.unwrap_or(self.stride_on),
            shortcut: overrides.shortcut.unwrap_or(self.shortcut),
            down_kernel: self.down_kernel,
            downsample: overrides.downsample.unwrap_or(self.downsample),
            attention: overrides.attention.unwrap_or(self.attention),
            se_reduction: overrides.se_reduction.unwrap_or(self.se_reduction),
            output_stride: overrides.output_stride.or(self.output_stride),
        };
        arch.validate()?;
        Ok(arch)
    }

    fn overridden_stages(&self, overrides: &Overrides) -> Result<Vec<Stage>, ArchError> {
        let list = |given: &Option<Vec<usize>>, field: fn(&Stage) -> usize| {
            given.clone().unwrap_or_else(|| self.stages.iter().map(field).collect())
        };
        let depths = list(&overrides.depths, |stage| stage.blocks);
        let widths = list(&overrides.widths, |stage| stage.width);
        let strides = list(&overrides.strides, |stage| stage.stride);
        if depths.len() != widths.len() || widths.len() != strides.len() {
            let (depths, widths, strides) = (depths.len(), widths.len(), strides.len());
            return Err(ArchError::Lengths { depths, widths, strides });
        }
        let rows = depths.into_iter().zip(widths).zip(strides);
        Ok(rows.map(|((blocks, width), stride)| Stage { blocks, width, stride }).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_given_changes_nothing() {
        let arch = Arch::preset("resnext50_32x4d").unwrap();
        assert_eq!(arch.with(&Overrides::default()), Ok(arch));
    }

    #[test]
    fn every_field_is_replaced() {
        let overrides = Overrides {
            depths: Some(vec![1, 2]),
            widths: Some(vec![32, 48]),
            strides: Some(vec![1, 3]),
            block: Some(BlockKind::Bottleneck),
            stem: Some(Stem::ImageNet),
            stem_width: Some(24),
            stem_pool: Some(StemPool::Max),
            order: Some(Order::Post),
            groups: Some(4),
            base_width: Some(32),
            stride_on: Some(StrideOn::Conv1x1),
            shortcut: Some(Shortcut::ZeroPad),
            downsample: Some(Downsample::AvgPool),
            attention: Some(Attention::Se),
            se_reduction: Some(8),
            output_stride: Some(8),
            num_classes: Some(7),
            in_channels: Some(1),
            img_size: Some([48, 64]),
        };
        let arch = Arch::preset("resnet20").unwrap().with(&overrides).unwrap();
        let expected = r#"{"name":"resnet20","in_channels":1,"num_classes":7,"img_size":[48,64],"stem":"imagenet",
            "stem_width":24,"block":"bottleneck","stages":[{"blocks":1,"width":32,"stride":1},
            {"blocks":2,"width":48,"stride":3}],"groups":4,"base_width":32,"stride_on":"v1","shortcut":"zero-pad",
            "downsample":"avg-pool","attention":"se","se_reduction":8,"output_stride":8}"#;
        assert_eq!(Arch::from_json(expected), Ok(arch));
    }

    #[test]
    fn the_stem_follows_the_first_stage_unless_told() {
        let widths = Some(vec![32, 64, 128]);
        let arch = Arch::preset("resnet20").unwrap();
        let wider = arch.with(&Overrides { widths: widths.clone(), ..Overrides::default() }).unwrap();
        assert_eq!(wider.stem_width, 32);
        let kept = arch.with(&Overrides { widths, stem_width: Some(16), ..Overrides::default() }).unwrap();
        assert_eq!(kept.stem_width, 16);
        let apart = kept.with(&Overrides { widths: Some(vec![8, 8, 8]), ..Overrides::default() }).unwrap();
        assert_eq!(apart.stem_width, 16);
    }

    #[test]
    fn lists_must_agree() {
        let arch = Arch::preset("resnet18").unwrap();
        let error =
            arch.with(&Overrides { depths: Some(vec![2, 2, 2]), ..Overrides::default() }).unwrap_err();
        assert_eq!(
            error.to_string(),
            "depths has 3 entries, widths 4 and strides 4, expected one entry a stage in each; \
             to change the number of stages give all three"
        );
        let empty = Overrides {
            depths: Some(vec![]),
            widths: Some(vec![]),
            strides: Some(vec![]),
            ..Overrides::default()
        };
        assert_eq!(arch.with(&empty).unwrap_err().to_string(), "the number of stages is 0, expected 1 to 32");
        let basic = Overrides { block: Some(BlockKind::Basic), ..Overrides::default() };
        assert!(Arch::preset("resnext50_32x4d").unwrap().with(&basic).is_err());
    }
}
