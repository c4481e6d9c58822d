//! A network in timm's words: the name of one that timm knows, and the arguments by which ours differs from it.

use crate::arch::{
    Arch, ArchError, Attention, BlockKind, Downsample, Order, Overrides, Shortcut, Stage, Stem, StemPool,
    StrideOn, preset_names,
};
use crate::network::DropRates;
use crate::weights::{ModelConfig, WeightsError};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Arguments that change nothing about what a trained network computes.
const TRAINING: [&str; 9] = [
    "img_size",
    "features_only",
    "drop_rate",
    "drop_path_rate",
    "drop_block_rate",
    "zero_init_last",
    "pretrained",
    "num_classes",
    "in_chans",
];

/// Why arguments cannot be followed: what was found, and what to do.
type Refusal = (String, String);

/// The network that timm makes of an architecture's name and arguments.
///
/// # Errors
/// When there is an argument that is not known or a value that has no counterpart.
pub(super) fn read(base: &Arch, arguments: &Map<String, Value>) -> Result<Result<Arch, ArchError>, Refusal> {
    let mut arch = base.clone();
    for (key, value) in arguments {
        let harmless = value.is_null() || TRAINING.contains(&key.as_str());
        if !harmless && !apply(&mut arch, key, value) {
            let problem =
                format!("model_args has {key:?} with {value}, which changes the network in an unknown way");
            let remedy = "remove it if the weights are those of the architecture without it, or describe the network in a \
                          JSON file for `stridenet import --arch`";
            return Err((problem, remedy.to_owned()));
        }
    }
    Ok(arch.with(&Overrides::default()))
}

/// timm's words for the rates of [`DropRates`].
const DROPS: [&str; 2] = ["drop_path_rate", "drop_block_rate"];

/// What a configuration says about leaving out at random; `path` is only for messages.
///
/// # Errors
/// When a rate is no number from 0 up to 1.
pub(super) fn drop_rates(config: &ModelConfig, path: &Path) -> Result<DropRates, WeightsError> {
    let rate = |key: &str| match config.model_args.get(key) {
        None | Some(Value::Null) => Ok(0.0),
        Some(value) => value.as_f64().filter(|rate| (0.0..1.0).contains(rate)).ok_or_else(|| {
            let problem = format!("model_args has {key:?} with {value}");
            let remedy = "use a number from 0 up to, but not including, 1, or remove it".to_owned();
            WeightsError::Config { path: path.to_path_buf(), problem, remedy }
        }),
    };
    let [path, block] = DROPS;
    Ok(DropRates { path: rate(path)?, block: rate(block)? })
}

/// The arguments by which timm leaves out as much.
pub(super) fn drop_arguments(drop: DropRates) -> impl Iterator<Item = (String, Value)> {
    let rates = DROPS.into_iter().zip([drop.path, drop.block]);
    rates.filter(|(_, rate)| *rate > 0.0).map(|(key, rate)| (key.to_owned(), json!(rate)))
}

/// Changes the description by one argument; false where it has no counterpart.
fn apply(arch: &mut Arch, key: &str, value: &Value) -> bool {
    let pre = arch.order == Order::Pre;
    let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
    let expansion = arch.block.expansion();
    match (key, number, value) {
        ("layers", _, Value::Array(_)) | ("channels", _, Value::Array(_)) => {
            let Some(numbers) = numbers(value).filter(|numbers| numbers.len() == arch.stages.len()) else {
                return false;
            };
            for (stage, number) in arch.stages.iter_mut().zip(numbers) {
                match key {
                    "layers" => stage.blocks = number,
                    // timm's pre-activation networks count what a block puts out.
                    _ if pre && !number.is_multiple_of(expansion) => return false,
                    _ => stage.width = if pre { number / expansion } else { number },
                }
            }
        }
        ("cardinality", Some(number), _) if !pre => arch.groups = number,
        ("base_width", Some(number), _) if !pre => arch.base_width = number,
        ("block_reduce_first", Some(number), _) if !pre => arch.reduce_first = number,
        ("down_kernel_size", Some(number), _) if !pre => arch.down_kernel = number,
        ("output_stride", Some(number), _) => arch.output_stride = (number < 32).then_some(number),
        ("stem_width", Some(number), _) if !pre => {
            // Without a deep stem timm takes no notice of it.
            if matches!(arch.stem, Stem::Deep | Stem::DeepTiered) {
                arch.stem_width = 2 * number;
            }
        }
        ("stem_chs", Some(number), _) if pre => arch.stem_width = number,
        ("stem_type", _, Value::String(name)) => {
            let deep = matches!(arch.stem, Stem::Deep | Stem::DeepTiered);
            arch.stem = match name.as_str() {
                "" => Stem::ImageNet,
                "deep" => Stem::Deep,
                "deep_tiered" if !pre => Stem::DeepTiered,
                "tiered" if pre => Stem::DeepTiered,
                _ => return false,
            };
            // timm's default widths: 64 of the one convolution, twice 64 of a deep stem.
            match arch.stem {
                Stem::ImageNet if !pre => arch.stem_width = 64,
                Stem::Deep | Stem::DeepTiered if !pre && !deep => arch.stem_width = 128,
                _ => {}
            }
        }
        ("replace_stem_pool", _, &Value::Bool(replace)) if !pre => {
            arch.stem_pool = if replace { StemPool::Conv } else { StemPool::Max };
        }
        ("avg_down", _, &Value::Bool(average)) => {
            arch.shortcut = if average { Shortcut::AvgProjection } else { Shortcut::Projection };
        }
        ("block_args", _, Value::Object(arguments)) if !pre => {
            return arguments.iter().all(|(key, value)| {
                arch.attention = match value {
                    Value::Null => Attention::None,
                    Value::String(name) if name == "se" => Attention::Se,
                    Value::String(name) if name == "eca" => Attention::Eca,
                    _ => return false,
                };
                arch.se_reduction = 16;
                key == "attn_layer"
            });
        }
        ("basic", _, &Value::Bool(basic)) if pre => {
            arch.block = if basic { BlockKind::Basic } else { BlockKind::Bottleneck };
        }
        ("global_pool", _, Value::String(name)) => return name == "avg",
        ("act_layer", _, Value::String(name)) => return name == "relu",
        _ => return false,
    }
    true
}

fn numbers(value: &Value) -> Option<Vec<usize>> {
    let number = |value: &Value| value.as_u64().and_then(|number| usize::try_from(number).ok());
    value.as_array()?.iter().map(number).collect()
}

/// The name and the arguments by which timm makes this network; nothing where it cannot.
pub(super) fn write(arch: &Arch) -> Option<(String, Map<String, Value>)> {
    let strides = [1, 2, 2, 2];
    let possible = arch.stem != Stem::Cifar
        && arch.shortcut != Shortcut::ZeroPad
        && arch.downsample != Downsample::MaxPool
        && arch.stride_on == StrideOn::Conv3x3
        && arch.stages.iter().map(|stage| stage.stride).eq(strides)
        && matches!(arch.output_stride, None | Some(8 | 16 | 32))
        && (arch.stem != Stem::ImageNet || arch.stem_width == 64 || arch.order == Order::Pre);
    if !possible {
        return None;
    }
    let base = base(arch)?;
    let mut arguments = Map::new();
    let mut set = |key: &str, value: Value| {
        arguments.insert(key.to_owned(), value);
    };
    let pre = arch.order == Order::Pre;
    let list =
        |field: &dyn Fn(&Stage) -> usize, arch: &Arch| arch.stages.iter().map(field).collect::<Vec<_>>();
    let blocks = |stage: &Stage| stage.blocks;
    if list(&blocks, arch) != list(&blocks, &base) {
        set("layers", json!(list(&blocks, arch)));
    }
    let scale = if pre { arch.block.expansion() } else { 1 };
    let width = |stage: &Stage| scale * stage.width;
    if list(&width, arch) != list(&width, &base) {
        set("channels", json!(list(&width, arch)));
    }
    let fields = [
        ("cardinality", arch.groups, base.groups),
        ("base_width", arch.base_width, base.base_width),
        ("block_reduce_first", arch.reduce_first, base.reduce_first),
        ("down_kernel_size", arch.down_kernel, base.down_kernel),
        ("output_stride", arch.output_stride.unwrap_or(32), base.output_stride.unwrap_or(32)),
    ];
    for (key, found, known) in fields {
        if found != known {
            set(key, json!(found));
        }
    }
    if (arch.stem, arch.stem_width) != (base.stem, base.stem_width) {
        let kind = match arch.stem {
            Stem::ImageNet | Stem::Cifar => "",
            Stem::Deep => "deep",
            Stem::DeepTiered if pre => "tiered",
            Stem::DeepTiered => "deep_tiered",
        };
        set("stem_type", json!(kind));
        match pre {
            true => set("stem_chs", json!(arch.stem_width)),
            false => {
                set("stem_width", json!(arch.stem_width / if arch.stem == Stem::ImageNet { 1 } else { 2 }))
            }
        }
    }
    if arch.stem_pool != base.stem_pool {
        set("replace_stem_pool", json!(arch.stem_pool == StemPool::Conv));
    }
    if arch.shortcut != base.shortcut {
        set("avg_down", json!(arch.shortcut == Shortcut::AvgProjection));
    }
    if arch.attention != base.attention {
        let layer = match arch.attention {
            Attention::None => Value::Null,
            Attention::Se | Attention::Eca => json!(arch.attention.name()),
        };
        set("block_args", json!({ "attn_layer": layer }));
    }
    // What timm makes of the words must be the network; anything else would be loaded in silence.
    let again = read(&base, &arguments).ok()?.ok()?;
    let same = Arch { name: base.name.clone(), num_classes: base.num_classes, ..arch.clone() };
    let same = Arch { in_channels: base.in_channels, img_size: base.img_size, ..same };
    let same = Arch { output_stride: same.output_stride.filter(|&stride| stride < 32), ..same };
    (again == same).then_some((base.name, arguments))
}

/// A network of timm's that has what no argument can say: the network's own namesake where it does.
fn base(arch: &Arch) -> Option<Arch> {
    let fits = |base: &Arch| {
        let reduction = arch.attention != Attention::Se || arch.se_reduction == base.se_reduction;
        base.order == arch.order
            && base.block == arch.block
            && base.downsample == arch.downsample
            && base.stem != Stem::Cifar
            && reduction
            && (arch.se_reduction == 16 || base.attention == Attention::Se)
    };
    let plain = match (arch.order, arch.block, arch.downsample) {
        (Order::Pre, BlockKind::Basic, _) => "resnetv2_18",
        (Order::Pre, BlockKind::Bottleneck, _) => "resnetv2_50",
        (_, BlockKind::Basic, Downsample::AvgPool) => "resnetaa34d",
        (_, BlockKind::Bottleneck, Downsample::AvgPool) => "resnetaa50",
        (_, BlockKind::Basic, Downsample::BlurPool) => "resnetblur18",
        (_, BlockKind::Bottleneck, Downsample::BlurPool) => "resnetblur50",
        (_, BlockKind::Bottleneck, _) if arch.attention == Attention::Se && arch.se_reduction == 4 => {
            "resnetrs50"
        }
        (_, BlockKind::Basic, _) => "resnet18",
        (_, BlockKind::Bottleneck, _) => "resnet50",
    };
    let known = preset_names().into_iter().find(|name| *name == arch.name);
    arch.preset_name()
        .into_iter()
        .chain(known)
        .chain([plain])
        .filter_map(|name| Arch::preset(name).ok())
        .find(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preset(name: &str) -> Arch {
        Arch::preset(name).unwrap()
    }

    #[test]
    fn every_network_of_timm_is_itself_without_arguments() {
        for name in preset_names() {
            let arch = preset(name);
            let written = write(&arch);
            if arch.stem == Stem::Cifar {
                assert_eq!(written, None, "{name}");
            } else {
                assert_eq!(written, Some((name.to_owned(), Map::new())));
            }
        }
    }

    #[test]
    fn what_is_written_reads_as_the_same_network() {
        let changed = |name: &str, change: &dyn Fn(&mut Arch)| {
            let mut arch = preset(name);
            change(&mut arch);
            arch
        };
        let networks = [
            changed("resnet50", &|a| a.output_stride = Some(8)),
            changed("resnet50", &|a| (a.stem, a.stem_width) = (Stem::DeepTiered, 96)),
            changed("resnet50d", &|a| (a.stem, a.stem_width) = (Stem::ImageNet, 64)),
            changed("resnet50", &|a| (a.downsample, a.attention) = (Downsample::BlurPool, Attention::Eca)),
            changed("resnet18", &|a| a.downsample = Downsample::AvgPool),
            changed("resnet18", &|a| a.stages[2].blocks = 7),
            changed("resnet18", &|a| a.block = BlockKind::Bottleneck),
            changed("resnetrs50", &|a| a.stem_pool = StemPool::Max),
            changed("resnet101", &|a| (a.attention, a.se_reduction) = (Attention::Se, 4)),
            changed("resnetv2_50", &|a| a.stages[3].width = 256),
            changed("resnetv2_50", &|a| (a.stem, a.stem_width) = (Stem::Deep, 32)),
            changed("seresnet50", &|a| a.attention = Attention::None),
            changed("resnet50", &|a| a.order = Order::Pre),
        ];
        for arch in networks {
            let (name, arguments) = write(&arch).unwrap_or_else(|| panic!("{arch:?}"));
            let again = read(&preset(&name), &arguments).unwrap().unwrap();
            let found = Arch { name: arch.name.clone(), img_size: arch.img_size, ..again };
            assert_eq!(found, arch, "{name} {arguments:?}");
        }
        let impossible = [
            changed("resnet50", &|a| a.stride_on = StrideOn::Conv1x1),
            changed("resnet18", &|a| a.shortcut = Shortcut::ZeroPad),
            changed("resnet18", &|a| a.downsample = Downsample::MaxPool),
            changed("resnet18", &|a| a.stages[1].stride = 3),
            changed("resnet18", &|a| a.stem_width = 32),
            changed("resnet18", &|a| a.output_stride = Some(4)),
            changed("seresnet18", &|a| a.se_reduction = 4),
            changed("resnet20", &|_| {}),
        ];
        assert!(impossible.iter().all(|arch| write(arch).is_none()));
    }

    #[test]
    fn arguments_without_a_counterpart_are_refused() {
        let refusal =
            |name: &str, arguments: Value| read(&preset(name), arguments.as_object().unwrap()).unwrap_err().0;
        assert_eq!(
            refusal("resnet50", json!({"norm_layer": "groupnorm"})),
            r#"model_args has "norm_layer" with "groupnorm", which changes the network in an unknown way"#
        );
        for arguments in [
            json!({"layers": [1, 2, 3]}),
            json!({"layers": [1, 2, 3, -4]}),
            json!({"global_pool": "max"}),
            json!({"block_args": {"attn_layer": "cbam"}}),
            json!({"block_args": {"dilation": "se"}}),
            json!({"stem_type": "tiered"}),
            json!({"stem_chs": 64}),
        ] {
            assert!(refusal("resnet50", arguments).contains("unknown way"));
        }
        assert!(refusal("resnetv2_50", json!({"cardinality": 4})).contains("unknown way"));
        let zero = read(&preset("resnet50"), json!({"cardinality": 0}).as_object().unwrap()).unwrap();
        assert!(zero.is_err());
    }
}
