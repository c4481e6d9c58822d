//! An architecture out of the names and shapes of its weights.
//!
//! What weights show is read off them: the order of the layers, the stem, the kind, number and widths of the blocks, groups,
//! projections and gates. What they do not show is that of the preset they fit, or timm's default, and the caller is told.

use super::{
    Arch, ArchError, Attention, BlockKind, Downsample, Order, Shortcut, Stage, Stem, StemPool, StrideOn,
    preset_names,
};
use std::collections::BTreeMap;

/// Names and shapes of tensors.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// Values for which [`Arch::se_reduction`] is tried, the usual ones first.
const REDUCTIONS: [usize; 8] = [16, 4, 8, 2, 32, 1, 64, 12];
/// The most stages and blocks that are looked for.
const MOST: usize = 10_000;

/// An architecture that was recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recognised {
    /// The description; its name is a preset's where the weights fit one, else `custom`.
    pub arch: Arch,
    /// Other presets that have the same weights and compute something else with them, such as `resnetblur50` beside
    /// `resnet50`.
    pub alike: Vec<&'static str>,
}

/// Whether a tensor's name is one that networks of this family have.
pub fn is_known_name(name: &str) -> bool {
    const FIRST: [&str; 10] =
        ["conv1", "bn1", "maxpool", "layer1", "layer2", "layer3", "stem", "stages", "norm", "fc"];
    let first = name.split('.').next().unwrap_or_default();
    name.contains('.') && (FIRST.contains(&first) || first == "layer4" || name.starts_with("head.fc."))
}

/// Recognises the architecture whose tensors have these names and shapes. Without a classifier among them, `num_classes`
/// says how many classes it is to have.
///
/// # Errors
/// When they are not those of a residual network of this family; the error says what is missing or unusual.
pub fn recognise(shapes: &Shapes, num_classes: Option<usize>) -> Result<Recognised, ArchError> {
    let candidate = Weights { shapes }.arch(num_classes)?;
    let mut fitting = preset_names().into_iter().filter_map(|name| Some((name, like(&candidate, name)?)));
    let first = fitting.next();
    let alike = fitting.map(|(name, _)| name).collect();
    let arch = first.map_or(candidate, |(_, arch)| arch);
    arch.validate()?;
    Ok(Recognised { arch, alike })
}

/// The preset of this name with the candidate's classes and input channels, if it has the candidate's tensors.
fn like(candidate: &Arch, name: &str) -> Option<Arch> {
    let preset = Arch::preset(name).ok()?;
    let arch = Arch { num_classes: candidate.num_classes, in_channels: candidate.in_channels, ..preset };
    // What the weights show; the rest is the preset's.
    let seen = Arch {
        name: arch.name.clone(),
        img_size: arch.img_size,
        stride_on: arch.stride_on,
        downsample: arch.downsample,
        output_stride: arch.output_stride,
        ..candidate.clone()
    };
    let depths =
        |arch: &Arch| arch.stages.iter().map(|stage| (stage.blocks, stage.width)).collect::<Vec<_>>();
    // Where a stage is as wide as the one before, weights do not show its stride.
    (depths(&arch) == depths(&seen) && Arch { stages: arch.stages.clone(), ..seen } == arch).then_some(arch)
}

impl Arch {
    /// The name of the preset that this is, for any number of classes and any input: its own name where that fits.
    pub fn preset_name(&self) -> Option<&'static str> {
        let is = |name: &&str| {
            Arch::preset(name).is_ok_and(|preset| {
                let Arch { num_classes, in_channels, img_size, output_stride, .. } = *self;
                *self
                    == Arch {
                        name: self.name.clone(),
                        num_classes,
                        in_channels,
                        img_size,
                        output_stride,
                        ..preset
                    }
            })
        };
        let names = preset_names();
        names.iter().copied().filter(|name| *name == self.name).chain(names.iter().copied()).find(is)
    }
}

/// The weights that an architecture is read off.
struct Weights<'a> {
    shapes: &'a Shapes,
}

fn unusual(what: impl Into<String>) -> ArchError {
    ArchError::Unrecognised { problem: what.into() }
}

impl Weights<'_> {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.shapes.get(name).map(Vec::as_slice)
    }

    /// The sizes `[out, in / groups, height, width]` of a convolution.
    fn conv(&self, name: &str) -> Result<[usize; 4], ArchError> {
        let weight = format!("{name}.weight");
        let shape = self.shape(&weight).ok_or_else(|| unusual(format!("there is no {weight}")))?;
        match <[usize; 4]>::try_from(shape) {
            Ok(sizes) if sizes.iter().all(|&size| size > 0) => Ok(sizes),
            _ => Err(unusual(format!("{weight} has the shape {shape:?}, expected that of a convolution"))),
        }
    }

    fn has(&self, layer: &str) -> bool {
        self.shapes.contains_key(&format!("{layer}.weight"))
    }

    fn arch(&self, num_classes: Option<usize>) -> Result<Arch, ArchError> {
        let order = match (self.has("layer1.0.conv1"), self.has("stages.0.blocks.0.conv1")) {
            (true, _) => Order::Post,
            (_, true) => Order::Pre,
            _ => {
                return Err(unusual(
                    "there is neither layer1.0.conv1.weight nor stages.0.blocks.0.conv1.weight",
                ));
            }
        };
        let block_name = |stage: usize, index: usize| match order {
            Order::Post => format!("layer{}.{index}", stage + 1),
            Order::Pre => format!("stages.{stage}.blocks.{index}"),
        };
        let exists = |stage, index| self.has(&format!("{}.conv1", block_name(stage, index)));
        let depths: Vec<usize> = (0..MOST)
            .take_while(|&stage| exists(stage, 0))
            .map(|stage| (0..MOST).take_while(|&index| exists(stage, index)).count())
            .collect();
        let firsts: Vec<String> = (0..depths.len()).map(|stage| block_name(stage, 0)).collect();
        let kind = match self.has(&format!("{}.conv3", firsts[0])) {
            true => BlockKind::Bottleneck,
            false => BlockKind::Basic,
        };
        let (stem, stem_width, in_channels) = self.stem(order)?;
        let blocks = firsts.iter().map(|name| self.block(name, kind)).collect::<Result<Vec<_>, _>>()?;
        let (shortcut, down_kernel) = self.shortcut(&firsts, order, stem)?;
        let attention = self.attention(&firsts[0]);
        let mut channels = stem_width;
        let mut stages = Vec::with_capacity(depths.len());
        for (stage, (&depth, block)) in depths.iter().zip(&blocks).enumerate() {
            let projects = self.projection(&firsts[stage], order).is_some();
            let stride = match stage {
                // In post-activation networks a projection between equal channels is there because of a stride.
                0 => 1 + usize::from(order == Order::Post && projects && channels == block.out),
                _ if channels == block.out && !projects && shortcut != Shortcut::ZeroPad => 1,
                _ => 2,
            };
            stages.push(Stage { blocks: depth, width: block.out / kind.expansion(), stride });
            channels = block.out;
        }
        let mut arch = Arch {
            name: "custom".to_owned(),
            in_channels,
            num_classes: self.classes(order, num_classes)?,
            img_size: if stem == Stem::Cifar { [32; 2] } else { [224; 2] },
            stem,
            stem_width,
            block: kind,
            stem_pool: if self.has("maxpool.0") { StemPool::Conv } else { StemPool::Max },
            order,
            groups: blocks[0].groups,
            base_width: base_width(&stages, &blocks),
            reduce_first: blocks[0].inner / blocks[0].first,
            stride_on: StrideOn::default(),
            shortcut,
            down_kernel,
            downsample: Downsample::default(),
            attention,
            se_reduction: REDUCTIONS[0],
            output_stride: None,
            stages,
        };
        if attention == Attention::Se {
            self.find_reduction(&mut arch, &firsts)?;
        }
        Ok(arch)
    }

    /// The kind of the stem, its width, and the channels of its input.
    fn stem(&self, order: Order) -> Result<(Stem, usize, usize), ArchError> {
        let (single, deep) = match order {
            Order::Post => ("conv1", ["conv1.0", "conv1.3", "conv1.6"]),
            Order::Pre => ("stem.conv", ["stem.conv1", "stem.conv2", "stem.conv3"]),
        };
        if self.has(single) {
            let [width, in_channels, kernel, _] = self.conv(single)?;
            return match kernel {
                7 => Ok((Stem::ImageNet, width, in_channels)),
                3 => Ok((Stem::Cifar, width, in_channels)),
                _ => Err(unusual(format!(
                    "{single}.weight has a {kernel}x{kernel} kernel, expected 7x7 or 3x3"
                ))),
            };
        }
        let [first, second, third] = [self.conv(deep[0])?, self.conv(deep[1])?, self.conv(deep[2])?];
        let width = third[0];
        let stem = if first[0] == second[0] { Stem::Deep } else { Stem::DeepTiered };
        Ok((stem, width, first[1]))
    }

    fn block(&self, name: &str, kind: BlockKind) -> Result<Block, ArchError> {
        let [first, ..] = self.conv(&format!("{name}.conv1"))?;
        let [second, per_group, ..] = self.conv(&format!("{name}.conv2"))?;
        match kind {
            BlockKind::Basic => Ok(Block { out: second, inner: second, first, groups: 1 }),
            BlockKind::Bottleneck => {
                let [out, ..] = self.conv(&format!("{name}.conv3"))?;
                if out % kind.expansion() != 0 || first % per_group != 0 || second < first {
                    return Err(unusual(format!(
                        "{name} has {first}, {second} and {out} channels, {per_group} in a group"
                    )));
                }
                Ok(Block { out, inner: second, first, groups: first / per_group })
            }
        }
    }

    /// The convolution of a block's projection.
    fn projection(&self, block: &str, order: Order) -> Option<String> {
        let names = match order {
            Order::Post => vec![format!("{block}.downsample.0"), format!("{block}.downsample.1")],
            Order::Pre => vec![format!("{block}.downsample.conv")],
        };
        names
            .into_iter()
            .find(|name| self.shape(&format!("{name}.weight")).is_some_and(|shape| shape.len() == 4))
    }

    /// How shortcuts change shape, and the kernel of projections. Where a projection of a pre-activation network has an average
    /// pool before it is not to be seen; timm's have one together with a deep stem.
    fn shortcut(&self, firsts: &[String], order: Order, stem: Stem) -> Result<(Shortcut, usize), ArchError> {
        let projections: Vec<String> =
            firsts.iter().filter_map(|name| self.projection(name, order)).collect();
        let Some(last) = projections.last() else {
            return Ok((if firsts.len() == 1 { Shortcut::default() } else { Shortcut::ZeroPad }, 1));
        };
        let [.., kernel] = self.conv(last)?;
        let deep = matches!(stem, Stem::Deep | Stem::DeepTiered);
        let shortcut = if last.ends_with(".downsample.1") || (order == Order::Pre && deep) {
            Shortcut::AvgProjection
        } else {
            Shortcut::Projection
        };
        Ok((shortcut, kernel))
    }

    fn attention(&self, block: &str) -> Attention {
        if self.has(&format!("{block}.se.fc1")) {
            Attention::Se
        } else if self.has(&format!("{block}.se.conv")) {
            Attention::Eca
        } else {
            Attention::None
        }
    }

    /// Sets the reduction of squeeze and excitation to the first one that gives the weights' widths.
    fn find_reduction(&self, arch: &mut Arch, firsts: &[String]) -> Result<(), ArchError> {
        let widths = |name: &String| self.conv(&format!("{name}.se.fc1")).map(|[squeezed, ..]| squeezed);
        let found = firsts.iter().map(widths).collect::<Result<Vec<_>, _>>()?;
        for reduction in REDUCTIONS {
            arch.se_reduction = reduction;
            let tensors = arch.structure()?.tensors();
            let given = |name: &String| {
                let weight = format!("{name}.se.fc1.weight");
                tensors.iter().find(|tensor| tensor.name == weight).map(|tensor| tensor.shape[0])
            };
            if firsts.iter().map(given).eq(found.iter().copied().map(Some)) {
                return Ok(());
            }
        }
        Err(unusual(format!(
            "squeeze and excitation narrows to {found:?} values, which no usual reduction gives"
        )))
    }

    fn classes(&self, order: Order, given: Option<usize>) -> Result<usize, ArchError> {
        let name = match order {
            Order::Post => "fc.weight",
            Order::Pre => "head.fc.weight",
        };
        let found = self.shape(name).and_then(|shape| shape.first().copied());
        found
            .or(given)
            .ok_or_else(|| unusual(format!("there is no {name}, so the number of classes is not known")))
    }
}

/// The channels of a stage's first block.
struct Block {
    out: usize,
    /// Of the 3×3 convolution of a bottleneck.
    inner: usize,
    /// Of the first convolution.
    first: usize,
    groups: usize,
}

/// The smallest base width that gives every stage its inner width.
fn base_width(stages: &[Stage], blocks: &[Block]) -> usize {
    let plain = 64;
    let gives = |base_width: usize| {
        stages.iter().zip(blocks).all(|(stage, block)| {
            (stage.width.saturating_mul(base_width) / 64).saturating_mul(block.groups) == block.inner
        })
    };
    if gives(plain) {
        return plain;
    }
    let (stage, block) = (&stages[0], &blocks[0]);
    let smallest = (block.inner / block.groups).saturating_mul(64).div_ceil(stage.width.max(1));
    (smallest..=smallest.saturating_add(64)).find(|&base_width| gives(base_width)).unwrap_or(smallest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes(arch: &Arch) -> Shapes {
        arch.structure().unwrap().tensors().into_iter().map(|tensor| (tensor.name, tensor.shape)).collect()
    }

    /// That presets have the tensors of timm's networks of the same names is what `tests/family_structures.rs` checks.
    #[test]
    fn every_preset_is_recognised_from_its_tensors() {
        let mut alike = BTreeMap::new();
        for name in preset_names() {
            let preset = Arch { num_classes: 7, in_channels: 5, ..Arch::preset(name).unwrap() };
            let tensors = shapes(&preset);
            let found = recognise(&tensors, None).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(shapes(&found.arch), tensors, "{name}");
            assert!(tensors.keys().all(|tensor| is_known_name(tensor)), "{name}");
            if found.arch.name != name {
                assert!(found.alike.contains(&name), "{name} is taken for {}", found.arch.name);
                alike.insert(name, found.arch.name);
            } else {
                assert_eq!(found.arch, preset);
            }
        }
        // Only pools tell these from others.
        let expected = [
            ("resnetaa101d", "resnet101d"),
            ("resnetaa34d", "resnet34d"),
            ("resnetaa50", "resnet50"),
            ("resnetaa50d", "resnet50d"),
            ("resnetblur101d", "resnet101d"),
            ("resnetblur18", "resnet18"),
            ("resnetblur50", "resnet50"),
            ("resnetblur50d", "resnet50d"),
            ("seresnextaa101d_32x8d", "seresnext101d_32x8d"),
        ];
        let found: Vec<(&str, &str)> = alike.iter().map(|(name, taken)| (*name, taken.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn networks_of_ones_own_are_recognised() {
        type Change = fn(&mut Arch);
        let changes: [(&str, Change); 7] = [
            ("resnet20", |a| a.stages.truncate(2)),
            ("resnet18", |a| a.shortcut = Shortcut::ZeroPad),
            ("resnet50", |a| (a.groups, a.base_width) = (2, 40)),
            ("resnet50", |a| a.stages[0].blocks = 1),
            ("seresnet50", |a| a.se_reduction = 8),
            ("resnet34", |a| a.stages[2].width = 100),
            ("resnetv2_50", |a| a.stages[1].blocks = 9),
        ];
        for (name, change) in changes {
            let mut arch = Arch::preset(name).unwrap();
            change(&mut arch);
            arch.name = "custom".to_owned();
            assert_eq!(recognise(&shapes(&arch), None).unwrap(), Recognised { arch, alike: vec![] });
        }
    }

    #[test]
    fn what_is_unusual_is_said() {
        let refusal = |change: &dyn Fn(&mut Shapes)| {
            let mut shapes = shapes(&Arch::preset("seresnet50").unwrap());
            change(&mut shapes);
            recognise(&shapes, None).unwrap_err().to_string()
        };
        for (message, part) in [
            (refusal(&Shapes::clear), "neither layer1.0.conv1.weight nor stages.0.blocks.0.conv1.weight"),
            (refusal(&|s| drop(s.remove("conv1.weight"))), "there is no conv1.0.weight"),
            (refusal(&|s| drop(s.insert("conv1.weight".into(), vec![64, 3, 5, 5]))), "has a 5x5 kernel"),
            (
                refusal(&|s| drop(s.insert("conv1.weight".into(), vec![64, 3]))),
                "expected that of a convolution",
            ),
            (
                refusal(&|s| drop(s.insert("conv1.weight".into(), vec![64, 0, 7, 7]))),
                "expected that of a convolution",
            ),
            (refusal(&|s| drop(s.remove("layer3.0.conv2.weight"))), "there is no layer3.0.conv2.weight"),
            (
                refusal(&|s| drop(s.insert("layer2.0.conv3.weight".into(), vec![7, 128, 1, 1]))),
                "layer2.0 has 128",
            ),
            (
                refusal(&|s| drop(s.insert("layer2.0.se.fc1.weight".into(), vec![9, 512, 1, 1]))),
                "narrows to [16, 9, 64, 128] values",
            ),
            (refusal(&|s| drop(s.remove("fc.weight"))), "there is no fc.weight"),
        ] {
            assert!(message.contains(part), "{message}");
        }
        let mut headless = shapes(&Arch::preset("resnet18").unwrap());
        headless.remove("fc.weight");
        assert_eq!(recognise(&headless, Some(3)).unwrap().arch.num_classes, 3);
    }

    #[test]
    fn hostile_shapes_never_panic() {
        let good = shapes(&Arch::preset("seresnext26d_32x4d").unwrap());
        for name in good.keys().filter(|name| name.starts_with("layer1.0") || !name.starts_with("layer")) {
            for shape in [
                vec![],
                vec![0; 4],
                vec![1; 4],
                vec![usize::MAX; 4],
                vec![1 << 40, 1, 3, 3],
                vec![3, 1, 1, 1],
            ] {
                let mut shapes = good.clone();
                shapes.insert(name.clone(), shape);
                let _ = recognise(&shapes, None);
            }
        }
    }

    #[test]
    fn a_changed_description_may_be_another_preset() {
        let mut arch = Arch { num_classes: 5, img_size: [64; 2], ..Arch::preset("resnet50").unwrap() };
        assert_eq!(arch.preset_name(), Some("resnet50"));
        arch.downsample = Downsample::BlurPool;
        assert_eq!(arch.preset_name(), Some("resnetblur50"));
        arch.stages[0].blocks = 2;
        assert_eq!(arch.preset_name(), None);
    }
}
