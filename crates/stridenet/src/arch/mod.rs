//! What a network is: a table of stages, from which everything else is built.
//!
//! [`Arch`] is the description that users write and files hold. [`Arch::structure`] walks it once and names
//! every convolution, batch norm, pool and shortcut; the trainer, the compiled plan, the weight files, the
//! [`Summary`] and the drawing all follow that walk.
//!
//! ```
//! use stridenet::arch::Arch;
//!
//! # fn main() -> Result<(), stridenet::arch::ArchError> {
//! let summary = Arch::preset("resnet18")?.summary([224, 224])?;
//! assert_eq!(summary.param_count, 11_689_512);
//! # Ok(())
//! # }
//! ```

mod choice;
mod drawing;
mod error;
mod features;
mod overrides;
mod pool;
mod presets;
mod recognise;
mod structure;
mod summary;
mod table;

pub use choice::{Attention, BlockKind, Downsample, Order, Shortcut, Stem, StemPool, StrideOn};
pub use error::ArchError;
pub use features::FeatureInfo;
pub use overrides::Overrides;
pub use pool::PoolKind;
pub use presets::preset_names;
pub use recognise::{Recognised, Shapes, is_known_name, recognise};
pub use structure::{Block, BlockShortcut, Gate, GateKind, Head, Norm, Structure, TensorSpec, Unit};
pub use summary::{Layer, LayerKind, Summary};

use serde::{Deserialize, Serialize};

/// The most characters of a name.
const MAX_NAME: usize = 100;
/// The most stages: with stride 2 in each, no image has pixels left for more.
const MAX_STAGES: usize = 32;
/// The most blocks of all stages together.
const MAX_BLOCKS: usize = 10_000;
/// The most channels of any feature map.
const MAX_CHANNELS: usize = 1 << 16;
/// The most classes.
const MAX_CLASSES: usize = 1 << 20;
/// The largest stride.
const MAX_STRIDE: usize = 16;
/// The largest kernel of a projection.
const MAX_KERNEL: usize = 7;
/// The largest limit of the product of the strides.
const MAX_OUTPUT_STRIDE: usize = 1 << 20;
/// The largest height or width of an image, in pixels.
const MAX_SIDE: usize = 1 << 14;
/// The most parameters; a few bytes of JSON must not make a builder allocate without end.
const MAX_PARAMS: u64 = 1 << 32;

/// A residual network: a stem, stages of blocks, global average pooling and one linear layer.
///
/// The JSON form has the same fields; all below `stages` may be left out, with the values that make plain
/// residual networks, and unknown fields are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arch {
    /// The name, such as `resnet50`. Overrides keep it: it says where the description came from.
    pub name: String,
    /// Channels of the input image (3).
    #[serde(default = "three")]
    pub in_channels: usize,
    /// Number of classes, the length of the logits.
    pub num_classes: usize,
    /// The input `[height, width]` the network is meant for, in pixels; others work too.
    pub img_size: [usize; 2],
    /// What stands before the first block.
    pub stem: Stem,
    /// Channels the stem puts out; timm's `stem_width` is half of it for a deep stem.
    pub stem_width: usize,
    /// The kind of all blocks.
    pub block: BlockKind,
    /// The stages, in order: `layer1`, `layer2`, ….
    pub stages: Vec<Stage>,
    /// What shrinks the stem's output before the first block (`max`).
    #[serde(default)]
    pub stem_pool: StemPool,
    /// The order of convolution, batch norm and ReLU (`post-activation`).
    #[serde(default)]
    pub order: Order,
    /// Groups of a bottleneck's 3×3 convolution (1): ResNeXt's cardinality.
    #[serde(default = "one")]
    pub groups: usize,
    /// A bottleneck's inner width is `⌊width · base_width / 64⌋ · groups`, as in torchvision (64).
    #[serde(default = "sixty_four")]
    pub base_width: usize,
    /// By how much the first convolution of a block is narrower than its 3×3 convolution (1); SENet-154 has 2.
    #[serde(default = "one")]
    pub reduce_first: usize,
    /// Which convolution of a bottleneck carries the stride (`v1.5`).
    #[serde(default)]
    pub stride_on: StrideOn,
    /// How shortcuts change shape (`projection`).
    #[serde(default)]
    pub shortcut: Shortcut,
    /// Kernel of a projection that has a stride or stands in a dilated stage (1); SENet-154 has 3.
    #[serde(default = "one")]
    pub down_kernel: usize,
    /// How blocks and the stem shrink the feature map (`strided`).
    #[serde(default)]
    pub downsample: Downsample,
    /// What weighs the channels of a block's main path (`none`).
    #[serde(default)]
    pub attention: Attention,
    /// By how much squeeze and excitation narrows the channels' means, before rounding to a multiple of 8, at
    /// least 8 (16); ResNet-RS has 4.
    #[serde(default = "sixteen")]
    pub se_reduction: usize,
    /// The largest product of the strides. A stage that would pass it keeps its resolution, and its 3×3
    /// convolutions are dilated instead (Chen et al. 2016; timm's `output_stride`). Nothing is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_stride: Option<usize>,
}

/// A row of the table: blocks that work at one resolution and width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Number of blocks.
    pub blocks: usize,
    /// The width: what a basic block puts out, a quarter of what a bottleneck puts out.
    pub width: usize,
    /// The stride of the first block; the others have stride 1.
    pub stride: usize,
}

fn one() -> usize {
    1
}

fn three() -> usize {
    3
}

fn sixteen() -> usize {
    16
}

fn sixty_four() -> usize {
    64
}

impl Arch {
    /// Reads a description from JSON and checks it.
    ///
    /// # Errors
    /// When the text is not JSON of the right form, or the description is not [valid](Self::validate). The
    /// caller knows the file's name and should put it before the message.
    pub fn from_json(text: &str) -> Result<Arch, ArchError> {
        // The parser quotes unknown fields as they are, line breaks included.
        let arch: Arch = serde_json::from_str(text)
            .map_err(|error| ArchError::Json { message: error.to_string().replace(char::is_control, " ") })?;
        arch.validate()?;
        Ok(arch)
    }

    /// Checks that a network of this description can be built.
    ///
    /// # Errors
    /// When a number is outside its range, choices exclude each other, a shortcut cannot be built, or there
    /// are more than 2³² parameters.
    pub fn validate(&self) -> Result<(), ArchError> {
        self.structure().map(|_| ())
    }

    /// Checks each field by itself, and the choices that exclude each other.
    fn check_fields(&self) -> Result<(), ArchError> {
        let length = self.name.chars().count();
        if length == 0 || length > MAX_NAME || self.name.chars().any(char::is_control) {
            return Err(ArchError::Name { length, limit: MAX_NAME });
        }
        check("in_channels", self.in_channels, MAX_CHANNELS)?;
        check("num_classes", self.num_classes, MAX_CLASSES)?;
        check("img_size height", self.img_size[0], MAX_SIDE)?;
        check("img_size width", self.img_size[1], MAX_SIDE)?;
        check("stem_width", self.stem_width, MAX_CHANNELS)?;
        check("groups", self.groups, MAX_CHANNELS)?;
        check("base_width", self.base_width, MAX_CHANNELS)?;
        check("reduce_first", self.reduce_first, MAX_CHANNELS)?;
        check("down_kernel", self.down_kernel, MAX_KERNEL)?;
        check("se_reduction", self.se_reduction, MAX_CHANNELS)?;
        check("output_stride", self.output_stride.unwrap_or(1), MAX_OUTPUT_STRIDE)?;
        check("the number of stages", self.stages.len(), MAX_STAGES)?;
        for (index, stage) in self.stages.iter().enumerate() {
            let number = index + 1;
            check(&format!("the number of blocks of layer{number}"), stage.blocks, MAX_BLOCKS)?;
            check(&format!("the width of layer{number}"), stage.width, MAX_CHANNELS)?;
            check(&format!("the stride of layer{number}"), stage.stride, MAX_STRIDE)?;
        }
        check("the number of blocks", self.stages.iter().map(|stage| stage.blocks).sum(), MAX_BLOCKS)?;
        self.check_choices()
    }

    /// Refuses choices that exclude each other, so that none is silently ignored.
    fn check_choices(&self) -> Result<(), ArchError> {
        let basic = self.block == BlockKind::Basic;
        let pre = self.order == Order::Pre;
        let (base_width, stride_on) = (self.base_width, self.stride_on);
        let unit = match self.stem {
            Stem::ImageNet | Stem::Cifar => 1,
            Stem::Deep => 2,
            Stem::DeepTiered => 8,
        };
        Choices(&[
            (
                basic && self.groups != 1,
                "groups",
                &self.groups,
                "basic blocks do not have it",
                "use block bottleneck or 1 group",
            ),
            (
                basic && base_width != 64,
                "base_width",
                &base_width,
                "basic blocks do not have it",
                "use block bottleneck or base_width 64",
            ),
            (
                basic && stride_on != StrideOn::default(),
                "stride_on",
                &stride_on,
                "basic blocks do not have it",
                "use block bottleneck or stride_on v1.5",
            ),
            (
                !self.stem_width.is_multiple_of(unit),
                "stem_width",
                &self.stem_width,
                "the parts of a deep stem do not divide it",
                "use a multiple of 2, of 8 for stem deep-tiered",
            ),
            (
                self.stem == Stem::Cifar && self.stem_pool != StemPool::Max,
                "stem_pool",
                &self.stem_pool,
                "a cifar stem does not shrink",
                "use stem imagenet, deep or deep-tiered",
            ),
            (
                self.stem_pool == StemPool::Conv && self.downsample != Downsample::Strided,
                "downsample",
                &self.downsample,
                "a convolution takes the place of the stem's pool",
                "use downsample strided or stem_pool max",
            ),
            (
                self.down_kernel != 1 && self.shortcut != Shortcut::Projection,
                "down_kernel",
                &self.down_kernel,
                "only projections with a stride have it",
                "use shortcut projection or down_kernel 1",
            ),
            (
                self.down_kernel.is_multiple_of(2),
                "down_kernel",
                &self.down_kernel,
                "an even kernel has no centre",
                "use 1 or 3",
            ),
            (
                self.se_reduction != 16 && self.attention != Attention::Se,
                "se_reduction",
                &self.se_reduction,
                "only squeeze and excitation has it",
                "use attention se or se_reduction 16",
            ),
            (
                pre && self.attention != Attention::None,
                "attention",
                &self.attention,
                "pre-activation blocks do not have it",
                "use order post-activation or attention none",
            ),
            (
                pre && self.stem_pool != StemPool::Max,
                "stem_pool",
                &self.stem_pool,
                "pre-activation networks do not have it",
                "use order post-activation or stem_pool max",
            ),
        ])
        .check()
    }

    /// Checks an input `[height, width]`, in pixels.
    fn check_input(input: [usize; 2]) -> Result<(), ArchError> {
        check("the input's height", input[0], MAX_SIDE)?;
        check("the input's width", input[1], MAX_SIDE)
    }
}

/// Whether a choice is impossible, the field, what was found, why, and what to do.
type Impossible<'a> = (bool, &'static str, &'a dyn std::fmt::Display, &'static str, &'static str);

/// Combinations that may be impossible.
struct Choices<'a>(&'a [Impossible<'a>]);

impl Choices<'_> {
    fn check(&self) -> Result<(), ArchError> {
        let Some(&(_, field, found, reason, remedy)) = self.0.iter().find(|choice| choice.0) else {
            return Ok(());
        };
        let (found, reason, remedy) = (found.to_string(), reason.to_owned(), remedy.to_owned());
        Err(ArchError::Conflict { field, found, reason, remedy })
    }
}

/// Refuses a number outside 1 to `high`.
fn check(what: &str, found: usize, high: usize) -> Result<(), ArchError> {
    if (1..=high).contains(&found) {
        return Ok(());
    }
    Err(ArchError::Range { what: what.to_owned(), found, low: 1, high })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The refusal of resnet50 after a change.
    fn refusal(change: impl FnOnce(&mut Arch)) -> String {
        let mut arch = Arch::preset("resnet50").unwrap();
        change(&mut arch);
        arch.validate().unwrap_err().to_string()
    }

    #[test]
    fn json_round_trips_and_defaults_are_torchvisions() {
        let arch = Arch::preset("resnext50_32x4d").unwrap();
        assert_eq!(Arch::from_json(&serde_json::to_string(&arch).unwrap()), Ok(arch));

        let short = r#"{"name": "tiny", "num_classes": 2, "img_size": [16, 16], "stem": "cifar", "stem_width": 8,
                        "block": "basic", "stages": [{"blocks": 1, "width": 8, "stride": 1}]}"#;
        let arch = Arch::from_json(short).unwrap();
        assert_eq!((arch.in_channels, arch.groups, arch.base_width), (3, 1, 64));
        assert_eq!(arch.downsample, Downsample::Strided);
        let error = Arch::from_json(&short.replace("\"stem\"", "\"ste\\nm\"")).unwrap_err().to_string();
        assert!(error.contains("unknown field `ste m`") && !error.contains('\n'), "{error}");
        let error = Arch::from_json(&short.replace("\"stride\"", "\"step\"")).unwrap_err().to_string();
        assert!(error.contains("unknown field `step`"), "{error}");
        assert!(Arch::from_json(&short.replace("16, 16", "16, -1")).is_err());
    }

    #[test]
    fn hostile_sizes_are_refused() {
        let expect = [
            (refusal(|a| a.in_channels = 0), "in_channels is 0, expected 1 to 65536"),
            (refusal(|a| a.num_classes = 0), "num_classes is 0, expected 1 to 1048576"),
            (refusal(|a| a.img_size[1] = 0), "img_size width is 0, expected 1 to 16384"),
            (
                refusal(|a| a.stem_width = usize::MAX),
                "stem_width is 18446744073709551615, expected 1 to 65536",
            ),
            (refusal(|a| a.stages.clear()), "the number of stages is 0, expected 1 to 32"),
            (refusal(|a| a.stages = vec![a.stages[0]; 33]), "the number of stages is 33, expected 1 to 32"),
            (
                refusal(|a| a.stages[1].blocks = usize::MAX),
                "the number of blocks of layer2 is 18446744073709551615, expected 1 to 10000",
            ),
            (refusal(|a| a.stages[3].blocks = 9_999), "the number of blocks is 10012, expected 1 to 10000"),
            (refusal(|a| a.stages[0].width = 0), "the width of layer1 is 0, expected 1 to 65536"),
            (refusal(|a| a.stages[0].stride = 0), "the stride of layer1 is 0, expected 1 to 16"),
            (
                refusal(|a| a.stages[0].width = 1 << 16),
                "the output width of layer1 is 262144, expected 1 to 65536",
            ),
            (refusal(|a| a.groups = 2048), "the inner width of layer1 is 131072, expected 1 to 65536"),
            (
                refusal(|a| (a.groups, a.base_width) = (1 << 16, 1 << 16)),
                "the inner width of layer1 is 4294967296, expected 1 to 65536",
            ),
            (refusal(|a| a.base_width = 0), "base_width is 0, expected 1 to 65536"),
            (
                refusal(|a| a.name.clear()),
                "the architecture's name has 0 characters, expected 1 to 100 without control characters",
            ),
            (
                refusal(|a| a.name = "a\nb".into()),
                "the architecture's name has 3 characters, expected 1 to 100 without control characters",
            ),
        ];
        for (found, expected) in expect {
            assert_eq!(found, expected);
        }
        let narrow = refusal(|a| (a.stages[0].width, a.base_width) = (8, 4));
        assert_eq!(narrow, "the inner width of layer1 is 0, expected 1 to 65536");
        let large = refusal(|a| a.stages[3] = Stage { blocks: 9_000, width: 16_384, stride: 2 });
        assert!(large.contains("expected at most 4294967296"), "{large}");
    }

    #[test]
    fn choices_that_would_be_ignored_are_refused() {
        let refused = |name: &str, change: &dyn Fn(&mut Arch), expected: &str| {
            let mut arch = Arch::preset(name).unwrap();
            change(&mut arch);
            let message = arch.validate().unwrap_err().to_string();
            assert!(message.starts_with(expected), "{message}");
        };
        refused(
            "resnet18",
            &|a| a.groups = 2,
            "groups is 2, but basic blocks do not have it; use block bottleneck or 1 group",
        );
        refused("resnet18", &|a| a.base_width = 128, "base_width is 128, but");
        refused("resnet18", &|a| a.stride_on = StrideOn::Conv1x1, "stride_on is v1, but");
        refused("resnet50d", &|a| a.stem_width = 63, "stem_width is 63, but the parts");
        refused("resnet50t", &|a| a.stem_width = 60, "stem_width is 60, but the parts");
        refused("resnet20", &|a| a.stem_pool = StemPool::Conv, "stem_pool is conv, but a cifar stem");
        refused("resnetrs50", &|a| a.downsample = Downsample::BlurPool, "downsample is blur-pool, but");
        refused("resnet50d", &|a| a.down_kernel = 3, "down_kernel is 3, but only projections");
        refused("resnet50", &|a| a.down_kernel = 2, "down_kernel is 2, but an even kernel");
        refused("resnet50", &|a| a.down_kernel = 9, "down_kernel is 9, expected 1 to 7");
        refused("resnet50", &|a| a.se_reduction = 4, "se_reduction is 4, but only squeeze");
        refused("resnetv2_50", &|a| a.attention = Attention::Se, "attention is se, but pre-activation");
        refused("resnetv2_50", &|a| a.stem_pool = StemPool::Conv, "stem_pool is conv, but pre-activation");
        refused("resnet50", &|a| a.reduce_first = 100, "the first width of layer1 is 0,");
        refused("resnet50", &|a| a.output_stride = Some(0), "output_stride is 0,");
    }
}
