//! The table of known networks.

use super::{
    Arch, ArchError, Attention, BlockKind, Downsample, Order, Shortcut, Stage, Stem, StemPool, StrideOn,
};
use crate::spelling::edit_distance;

/// A row of the table.
#[derive(Clone, Copy)]
struct Preset {
    name: &'static str,
    block: BlockKind,
    depths: &'static [usize],
    family: Family,
    stem: Stem,
    stem_width: usize,
    stem_pool: StemPool,
    order: Order,
    groups: usize,
    base_width: usize,
    reduce_first: usize,
    down_kernel: usize,
    shortcut: Shortcut,
    downsample: Downsample,
    attention: Attention,
    se_reduction: usize,
    /// Side of the images that the network is meant for.
    side: usize,
}

/// What networks for one kind of image share.
#[derive(Clone, Copy)]
enum Family {
    /// 1000 classes, widths 64 to 512 (He et al. 2015, table 1).
    ImageNet,
    /// 10 classes, widths 16 to 64 (He et al. 2015, section 4.2).
    Cifar,
}

const fn imagenet(name: &'static str, block: BlockKind, depths: &'static [usize]) -> Preset {
    Preset {
        name,
        block,
        depths,
        family: Family::ImageNet,
        stem: Stem::ImageNet,
        stem_width: 64,
        stem_pool: StemPool::Max,
        order: Order::Post,
        groups: 1,
        base_width: 64,
        reduce_first: 1,
        down_kernel: 1,
        shortcut: Shortcut::Projection,
        downsample: Downsample::Strided,
        attention: Attention::None,
        se_reduction: 16,
        side: 224,
    }
}

const fn basic(name: &'static str, depths: &'static [usize]) -> Preset {
    imagenet(name, BlockKind::Basic, depths)
}

const fn bottleneck(name: &'static str, depths: &'static [usize]) -> Preset {
    imagenet(name, BlockKind::Bottleneck, depths)
}

const fn cifar(name: &'static str, block: BlockKind, depths: &'static [usize]) -> Preset {
    let imagenet = imagenet(name, block, depths);
    Preset { family: Family::Cifar, stem: Stem::Cifar, stem_width: 16, side: 32, ..imagenet }
}

/// timm's letters and prefixes.
impl Preset {
    /// `c`: a deep stem.
    const fn c(self) -> Preset {
        Preset { stem: Stem::Deep, ..self }
    }

    /// `d`: a deep stem, and shortcuts that average.
    const fn d(self) -> Preset {
        Preset { stem: Stem::Deep, shortcut: Shortcut::AvgProjection, ..self }
    }

    /// `s`: a deep stem of twice the width.
    const fn s(self) -> Preset {
        Preset { stem: Stem::Deep, stem_width: 128, ..self }
    }

    /// `t`: a deep stem of tiered widths, and shortcuts that average.
    const fn t(self) -> Preset {
        Preset { stem: Stem::DeepTiered, shortcut: Shortcut::AvgProjection, ..self }
    }

    /// `resnext…_32x4d`: groups, and the width of each.
    const fn x(self, groups: usize, base_width: usize) -> Preset {
        Preset { groups, base_width, ..self }
    }

    /// `se…`: squeeze and excitation.
    const fn se(self) -> Preset {
        Preset { attention: Attention::Se, ..self }
    }

    /// `eca…`: efficient channel attention.
    const fn eca(self) -> Preset {
        Preset { attention: Attention::Eca, ..self }
    }

    /// `…blur…` and `…aa…`: pools that take the place of strides.
    const fn by(self, downsample: Downsample) -> Preset {
        Preset { downsample, ..self }
    }

    /// `resnetrs…`: `d` with a convolution for the stem's pool and more of squeeze and excitation.
    const fn rs(self, side: usize) -> Preset {
        Preset { stem_pool: StemPool::Conv, se_reduction: 4, side, ..self.d().se() }
    }

    /// `resnetv2…` and `preresnet…`: pre-activation.
    const fn pre(self) -> Preset {
        Preset { order: Order::Pre, ..self }
    }
}

const D18: &[usize] = &[2, 2, 2, 2];
const D50: &[usize] = &[3, 4, 6, 3];
const D101: &[usize] = &[3, 4, 23, 3];
const D152: &[usize] = &[3, 8, 36, 3];
const D200: &[usize] = &[3, 24, 36, 3];
const D269: &[usize] = &[3, 30, 48, 8];

#[rustfmt::skip]
const PRESETS: &[Preset] = &[
    basic("resnet18", D18),
    basic("resnet34", D50),
    bottleneck("resnet50", D50),
    bottleneck("resnet101", D101),
    bottleneck("resnet152", D152),
    bottleneck("wide_resnet50_2", D50).x(1, 128),
    bottleneck("resnext50_32x4d", D50).x(32, 4),
    cifar("resnet20", BlockKind::Basic, &[3, 3, 3]),
    cifar("resnet32", BlockKind::Basic, &[5, 5, 5]),
    cifar("resnet44", BlockKind::Basic, &[7, 7, 7]),
    cifar("resnet56", BlockKind::Basic, &[9, 9, 9]),
    cifar("resnet110", BlockKind::Basic, &[18, 18, 18]),
    cifar("preresnet20", BlockKind::Basic, &[3, 3, 3]).pre(),
    cifar("preresnet56", BlockKind::Basic, &[9, 9, 9]).pre(),
    cifar("preresnet110", BlockKind::Basic, &[18, 18, 18]).pre(),
    cifar("preresnet164", BlockKind::Bottleneck, &[18, 18, 18]).pre(),
    cifar("preresnet1001", BlockKind::Bottleneck, &[111, 111, 111]).pre(),
    basic("resnet10t", &[1, 1, 1, 1]).t(),
    bottleneck("resnet14t", &[1, 1, 1, 1]).t(),
    basic("resnet18d", D18).d(),
    basic("resnet34d", D50).d(),
    bottleneck("resnet26", D18),
    bottleneck("resnet26d", D18).d(),
    bottleneck("resnet26t", D18).t(),
    bottleneck("resnet50c", D50).c(),
    bottleneck("resnet50d", D50).d(),
    bottleneck("resnet50s", D50).s(),
    bottleneck("resnet50t", D50).t(),
    bottleneck("resnet101c", D101).c(),
    bottleneck("resnet101d", D101).d(),
    bottleneck("resnet101s", D101).s(),
    bottleneck("resnet152c", D152).c(),
    bottleneck("resnet152d", D152).d(),
    bottleneck("resnet152s", D152).s(),
    bottleneck("resnet200", D200),
    bottleneck("resnet200d", D200).d(),
    bottleneck("wide_resnet101_2", D101).x(1, 128),
    bottleneck("resnext50d_32x4d", D50).x(32, 4).d(),
    bottleneck("resnext101_32x4d", D101).x(32, 4),
    bottleneck("resnext101_32x8d", D101).x(32, 8),
    bottleneck("resnext101_32x16d", D101).x(32, 16),
    bottleneck("resnext101_32x32d", D101).x(32, 32),
    bottleneck("resnext101_64x4d", D101).x(64, 4),
    basic("seresnet18", D18).se(),
    basic("seresnet34", D50).se(),
    bottleneck("seresnet50", D50).se(),
    bottleneck("seresnet50t", D50).t().se(),
    bottleneck("seresnet101", D101).se(),
    bottleneck("seresnet152", D152).se(),
    bottleneck("seresnet152d", D152).d().se(),
    bottleneck("seresnet200d", D200).d().se(),
    bottleneck("seresnet269d", D269).d().se(),
    bottleneck("seresnext26d_32x4d", D18).x(32, 4).d().se(),
    bottleneck("seresnext26t_32x4d", D18).x(32, 4).t().se(),
    bottleneck("seresnext50_32x4d", D50).x(32, 4).se(),
    bottleneck("seresnext101_32x4d", D101).x(32, 4).se(),
    bottleneck("seresnext101_32x8d", D101).x(32, 8).se(),
    bottleneck("seresnext101d_32x8d", D101).x(32, 8).d().se(),
    bottleneck("seresnext101_64x4d", D101).x(64, 4).se(),
    Preset { reduce_first: 2, down_kernel: 3, ..bottleneck("senet154", D152).x(64, 4).s().se() },
    bottleneck("ecaresnet26t", D18).t().eca(),
    bottleneck("ecaresnet50d", D50).d().eca(),
    bottleneck("ecaresnet50t", D50).t().eca(),
    Preset { stem: Stem::ImageNet, ..bottleneck("ecaresnetlight", &[1, 1, 11, 3]).d().eca() },
    bottleneck("ecaresnet101d", D101).d().eca(),
    bottleneck("ecaresnet200d", D200).d().eca(),
    bottleneck("ecaresnet269d", D269).d().eca(),
    bottleneck("ecaresnext26t_32x4d", D18).x(32, 4).t().eca(),
    bottleneck("ecaresnext50t_32x4d", D50).x(32, 4).t().eca(),
    basic("resnetblur18", D18).by(Downsample::BlurPool),
    bottleneck("resnetblur50", D50).by(Downsample::BlurPool),
    bottleneck("resnetblur50d", D50).d().by(Downsample::BlurPool),
    bottleneck("resnetblur101d", D101).d().by(Downsample::BlurPool),
    basic("resnetaa34d", D50).d().by(Downsample::AvgPool),
    bottleneck("resnetaa50", D50).by(Downsample::AvgPool),
    bottleneck("resnetaa50d", D50).d().by(Downsample::AvgPool),
    bottleneck("resnetaa101d", D101).d().by(Downsample::AvgPool),
    bottleneck("seresnetaa50d", D50).d().se().by(Downsample::AvgPool),
    bottleneck("seresnextaa101d_32x8d", D101).x(32, 8).d().se().by(Downsample::AvgPool),
    Preset { stem_width: 128, ..bottleneck("seresnextaa201d_32x8d", &[3, 24, 36, 4]).x(32, 8).d().se().by(Downsample::AvgPool) },
    bottleneck("resnetrs50", D50).rs(160),
    bottleneck("resnetrs101", D101).rs(192),
    bottleneck("resnetrs152", D152).rs(256),
    bottleneck("resnetrs200", D200).rs(256),
    bottleneck("resnetrs270", &[4, 29, 53, 4]).rs(256),
    bottleneck("resnetrs350", &[4, 36, 72, 4]).rs(288),
    bottleneck("resnetrs420", &[4, 44, 87, 4]).rs(320),
    basic("resnetv2_18", D18).pre(),
    basic("resnetv2_18d", D18).d().pre(),
    basic("resnetv2_34", D50).pre(),
    basic("resnetv2_34d", D50).d().pre(),
    bottleneck("resnetv2_50", D50).pre(),
    bottleneck("resnetv2_50d", D50).d().pre(),
    bottleneck("resnetv2_50t", D50).t().pre(),
    bottleneck("resnetv2_101", D101).pre(),
    bottleneck("resnetv2_101d", D101).d().pre(),
    bottleneck("resnetv2_152", D152).pre(),
    bottleneck("resnetv2_152d", D152).d().pre(),
];

/// The names of all presets, in the order of the table.
pub fn preset_names() -> Vec<&'static str> {
    PRESETS.iter().map(|preset| preset.name).collect()
}

impl Arch {
    /// A known network by its torchvision or paper name, such as `resnet50` or `resnet20`.
    ///
    /// # Errors
    /// When no preset has this name; the error names the nearest ones.
    pub fn preset(name: &str) -> Result<Arch, ArchError> {
        match PRESETS.iter().find(|preset| preset.name == name) {
            Some(preset) => Ok(preset.arch()),
            None => Err(ArchError::Preset { name: name.to_owned(), nearest: nearest(name) }),
        }
    }
}

impl Preset {
    fn arch(&self) -> Arch {
        let (num_classes, first_width) = match self.family {
            Family::ImageNet => (1000, 64usize),
            Family::Cifar => (10, 16),
        };
        let stage = |(index, &blocks)| Stage {
            blocks,
            width: first_width << index,
            stride: if index == 0 { 1 } else { 2 },
        };
        Arch {
            name: self.name.to_owned(),
            in_channels: 3,
            num_classes,
            img_size: [self.side; 2],
            stem: self.stem,
            stem_width: self.stem_width,
            block: self.block,
            stages: self.depths.iter().enumerate().map(stage).collect(),
            stem_pool: self.stem_pool,
            order: self.order,
            groups: self.groups,
            base_width: self.base_width,
            reduce_first: self.reduce_first,
            stride_on: StrideOn::default(),
            shortcut: self.shortcut,
            down_kernel: self.down_kernel,
            downsample: self.downsample,
            attention: self.attention,
            se_reduction: self.se_reduction,
            output_stride: None,
        }
    }
}

/// The presets whose names differ by the fewest edits.
fn nearest(name: &str) -> Vec<&'static str> {
    let asked: String = name.chars().flat_map(char::to_lowercase).take(40).collect();
    let mut names = preset_names();
    names.sort_by_cached_key(|known| edit_distance(&asked, known));
    names.truncate(NEAREST);
    names
}

/// Names that an error suggests.
const NEAREST: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_valid_and_keeps_its_name() {
        for name in preset_names() {
            let arch = Arch::preset(name).unwrap();
            assert_eq!(arch.name, name);
            assert_eq!(arch.validate(), Ok(()), "{name}");
        }
    }

    #[test]
    fn depths_are_those_of_the_names() {
        for (name, depth) in [("resnet18", 18), ("resnet101", 101), ("resnet152", 152), ("resnet110", 110)] {
            let structure = Arch::preset(name).unwrap().structure().unwrap();
            // The paper counts convolutions of the main path and the linear layer.
            let main: usize = structure.blocks.iter().map(|block| block.units.len()).sum();
            assert_eq!(main + 2, depth, "{name}");
        }
    }

    #[test]
    fn unknown_names_get_the_nearest_ones() {
        let error = Arch::preset("resnet-50").unwrap_err().to_string();
        assert_eq!(
            error,
            r#"unknown architecture "resnet-50", nearest are resnet50, resnet152, resnet20, resnet56, resnet110; "#
                .to_owned()
                + "`stridenet inspect --help` lists all"
        );
        let error = Arch::preset("ResNeXt50d").unwrap_err().to_string();
        assert!(error.contains("nearest are resnet50d, "), "{error}");
        let error = Arch::preset("vgg\n16").unwrap_err().to_string();
        assert!(error.starts_with(r#"unknown architecture "vgg\n16", nearest are "#), "{error}");
        assert!(Arch::preset(&"x".repeat(10_000)).is_err());
    }
}
