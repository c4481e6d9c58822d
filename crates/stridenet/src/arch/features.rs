//! The feature maps of a network: what timm's `features_only` gives, one for the stem and one for each stage.

use super::{Arch, ArchError, Order};
use serde::Serialize;

/// A feature map (timm's `feature_info`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FeatureInfo {
    /// Its number among the network's feature maps: 0 is the stem, before its pool, and k is stage k.
    pub index: usize,
    /// torch's name of the module that puts it out: `act1`, `layer1`, `stem.conv`, `stages.0`.
    pub module: String,
    /// Channels.
    pub channels: usize,
    /// By how much it is smaller than the input along each axis: the product of the strides.
    pub reduction: usize,
}

impl Arch {
    /// torch's name of a stage, counted from 0.
    pub(super) fn stage_name(&self, stage: usize) -> String {
        match self.order {
            Order::Post => format!("layer{}", stage + 1),
            Order::Pre => format!("stages.{stage}"),
        }
    }

    /// All feature maps, in order.
    ///
    /// # Errors
    /// When the description is not [valid](Self::validate).
    pub fn feature_info(&self) -> Result<Vec<FeatureInfo>, ArchError> {
        let structure = self.structure()?;
        let stem = &structure.stem[structure.stem_feature];
        // Without a batch norm of its own, the convolution is the module.
        let module = if stem.norm.is_some() { "act1" } else { &stem.conv };
        let mut reduction = structure
            .stem
            .iter()
            .take(structure.stem_feature + 1)
            .map(|unit| unit.geometry.stride[0])
            .product();
        let mut features =
            vec![FeatureInfo { index: 0, module: module.to_owned(), channels: self.stem_width, reduction }];
        reduction = self.stem_stride();
        for (stage, (stride, _)) in self.strides().into_iter().enumerate() {
            reduction = reduction.saturating_mul(stride);
            let module = self.stage_name(stage);
            let channels = self.stages[stage].width * self.block.expansion();
            features.push(FeatureInfo { index: stage + 1, module, channels, reduction });
        }
        Ok(features)
    }
}
