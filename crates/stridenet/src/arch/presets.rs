//! The table of known networks.

use super::{Arch, ArchError, BlockKind, Downsample, Shortcut, Stage, Stem, StrideOn};
use crate::spelling::edit_distance;

/// A row of the table.
struct Preset {
    name: &'static str,
    block: BlockKind,
    depths: &'static [usize],
    family: Family,
    groups: usize,
    base_width: usize,
}

/// What networks for one kind of image share.
#[derive(Clone, Copy)]
enum Family {
    /// 224×224, 1000 classes, widths 64 to 512 (He et al. 2015, table 1).
    ImageNet,
    /// 32×32, 10 classes, widths 16 to 64 (He et al. 2015, section 4.2).
    Cifar,
}

const fn imagenet(name: &'static str, block: BlockKind, depths: &'static [usize]) -> Preset {
    Preset { name, block, depths, family: Family::ImageNet, groups: 1, base_width: 64 }
}

const fn cifar(name: &'static str, depths: &'static [usize]) -> Preset {
    Preset { name, block: BlockKind::Basic, depths, family: Family::Cifar, groups: 1, base_width: 64 }
}

const PRESETS: &[Preset] = &[
    imagenet("resnet18", BlockKind::Basic, &[2, 2, 2, 2]),
    imagenet("resnet34", BlockKind::Basic, &[3, 4, 6, 3]),
    imagenet("resnet50", BlockKind::Bottleneck, &[3, 4, 6, 3]),
    imagenet("resnet101", BlockKind::Bottleneck, &[3, 4, 23, 3]),
    imagenet("resnet152", BlockKind::Bottleneck, &[3, 8, 36, 3]),
    Preset { base_width: 128, ..imagenet("wide_resnet50_2", BlockKind::Bottleneck, &[3, 4, 6, 3]) },
    Preset { groups: 32, base_width: 4, ..imagenet("resnext50_32x4d", BlockKind::Bottleneck, &[3, 4, 6, 3]) },
    cifar("resnet20", &[3, 3, 3]),
    cifar("resnet32", &[5, 5, 5]),
    cifar("resnet44", &[7, 7, 7]),
    cifar("resnet56", &[9, 9, 9]),
    cifar("resnet110", &[18, 18, 18]),
];

/// The names of all presets, in the order of the table.
pub fn preset_names() -> Vec<&'static str> {
    PRESETS.iter().map(|preset| preset.name).collect()
}

impl Arch {
    /// A known network by its torchvision or paper name, such as `resnet50` or `resnet20`.
    ///
    /// # Errors
    /// When no preset has this name; the error suggests the nearest one and lists all.
    pub fn preset(name: &str) -> Result<Arch, ArchError> {
        match PRESETS.iter().find(|preset| preset.name == name) {
            Some(preset) => Ok(preset.arch()),
            None => Err(ArchError::Preset { name: name.to_owned(), suggestion: nearest(name) }),
        }
    }
}

impl Preset {
    fn arch(&self) -> Arch {
        let (stem, side, num_classes, first_width) = match self.family {
            Family::ImageNet => (Stem::ImageNet, 224, 1000, 64),
            Family::Cifar => (Stem::Cifar, 32, 10, 16),
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
            img_size: [side; 2],
            stem,
            stem_width: first_width,
            block: self.block,
            stages: self.depths.iter().enumerate().map(stage).collect(),
            groups: self.groups,
            base_width: self.base_width,
            stride_on: StrideOn::default(),
            shortcut: Shortcut::default(),
            downsample: Downsample::default(),
        }
    }
}

/// The preset whose name differs by the fewest edits, if that is at most a third of what was asked for.
fn nearest(name: &str) -> Option<&'static str> {
    let asked: String = name.chars().flat_map(char::to_lowercase).take(40).collect();
    preset_names()
        .into_iter()
        .map(|known| (edit_distance(&asked, known), known))
        .min_by_key(|&(distance, _)| distance)
        .filter(|&(distance, _)| distance * 3 <= asked.len())
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_valid_and_keeps_its_name() {
        for name in preset_names() {
            let arch = Arch::preset(name).unwrap();
            assert_eq!(arch.name, name);
            assert_eq!(arch.validate(), Ok(()), "{name}");
            assert_eq!(arch.stem_width, arch.stages[0].width);
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
    fn unknown_names_get_a_suggestion_and_the_list() {
        let error = Arch::preset("resnet-50").unwrap_err().to_string();
        assert!(
            error.starts_with(r#"unknown architecture "resnet-50", did you mean resnet50?; known are"#),
            "{error}"
        );
        assert!(error.ends_with("resnet44, resnet56, resnet110"), "{error}");
        let error = Arch::preset("ResNeXt50").unwrap_err().to_string();
        assert!(error.contains("did you mean resnet50?"), "{error}");
        let error = Arch::preset("vgg\n16").unwrap_err().to_string();
        assert!(error.starts_with(r#"unknown architecture "vgg\n16"; known are resnet18"#), "{error}");
        assert!(Arch::preset(&"x".repeat(10_000)).is_err());
    }
}
