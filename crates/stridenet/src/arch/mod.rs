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
mod overrides;
mod pool;
mod presets;
mod structure;
mod summary;
mod table;

pub use choice::{BlockKind, Downsample, Shortcut, Stem, StrideOn};
pub use error::ArchError;
pub use overrides::Overrides;
pub use pool::PoolKind;
pub use presets::preset_names;
pub use structure::{Block, BlockShortcut, Head, Structure, TensorSpec, Unit};
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
/// The largest height or width of an image, in pixels.
const MAX_SIDE: usize = 1 << 14;
/// The most parameters; a few bytes of JSON must not make a builder allocate without end.
const MAX_PARAMS: u64 = 1 << 32;

/// A residual network: a stem, stages of blocks, global average pooling and one linear layer.
///
/// The JSON form has the same fields; `in_channels` (3), `groups` (1), `base_width` (64), `stride_on`
/// (`v1.5`), `shortcut` (`projection`) and `downsample` (`strided`) may be left out, and unknown fields are
/// refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arch {
    /// The name, such as `resnet50`. Overrides keep it: it says where the description came from.
    pub name: String,
    /// Channels of the input image.
    #[serde(default = "rgb")]
    pub in_channels: usize,
    /// Number of classes, the length of the logits.
    pub num_classes: usize,
    /// The input `[height, width]` the network is meant for, in pixels; others work too.
    pub img_size: [usize; 2],
    /// What stands before the first block.
    pub stem: Stem,
    /// Channels the stem puts out.
    pub stem_width: usize,
    /// The kind of all blocks.
    pub block: BlockKind,
    /// The stages, in order: `layer1`, `layer2`, ….
    pub stages: Vec<Stage>,
    /// Groups of a bottleneck's 3×3 convolution (ResNeXt's cardinality).
    #[serde(default = "one_group")]
    pub groups: usize,
    /// A bottleneck's inner width is `⌊width · base_width / 64⌋ · groups`, as in torchvision.
    #[serde(default = "plain_base_width")]
    pub base_width: usize,
    /// Which convolution of a bottleneck carries the stride.
    #[serde(default)]
    pub stride_on: StrideOn,
    /// How shortcuts change shape.
    #[serde(default)]
    pub shortcut: Shortcut,
    /// How blocks shrink the feature map.
    #[serde(default)]
    pub downsample: Downsample,
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

fn rgb() -> usize {
    3
}

fn one_group() -> usize {
    1
}

fn plain_base_width() -> usize {
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
        check("the number of stages", self.stages.len(), MAX_STAGES)?;
        for (index, stage) in self.stages.iter().enumerate() {
            let number = index + 1;
            check(&format!("the number of blocks of layer{number}"), stage.blocks, MAX_BLOCKS)?;
            check(&format!("the width of layer{number}"), stage.width, MAX_CHANNELS)?;
            check(&format!("the stride of layer{number}"), stage.stride, MAX_STRIDE)?;
        }
        check("the number of blocks", self.stages.iter().map(|stage| stage.blocks).sum(), MAX_BLOCKS)?;
        self.check_block_choices()
    }

    /// Refuses what only bottlenecks have, so that no choice is silently ignored.
    fn check_block_choices(&self) -> Result<(), ArchError> {
        if self.block == BlockKind::Bottleneck {
            return Ok(());
        }
        let default = StrideOn::default();
        let choices = [
            ("groups", self.groups == 1, self.groups.to_string(), "1 group".to_owned()),
            ("base_width", self.base_width == 64, self.base_width.to_string(), "base_width 64".to_owned()),
            (
                "stride_on",
                self.stride_on == default,
                self.stride_on.to_string(),
                format!("stride_on {default}"),
            ),
        ];
        for (field, neutral, found, instead) in choices {
            if !neutral {
                let reason = "basic blocks do not have it".to_owned();
                let remedy = format!("use block bottleneck or {instead}");
                return Err(ArchError::Conflict { field, found, reason, remedy });
            }
        }
        Ok(())
    }

    /// Checks an input `[height, width]`, in pixels.
    fn check_input(input: [usize; 2]) -> Result<(), ArchError> {
        check("the input's height", input[0], MAX_SIDE)?;
        check("the input's width", input[1], MAX_SIDE)
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
    fn basic_blocks_refuse_what_they_would_ignore() {
        let mut arch = Arch::preset("resnet18").unwrap();
        arch.groups = 2;
        assert_eq!(
            arch.validate().unwrap_err().to_string(),
            "groups is 2, but basic blocks do not have it; use block bottleneck or 1 group"
        );
        arch.groups = 1;
        arch.base_width = 128;
        assert!(arch.validate().unwrap_err().to_string().starts_with("base_width is 128"));
        arch.base_width = 64;
        arch.stride_on = StrideOn::Conv1x1;
        assert!(arch.validate().unwrap_err().to_string().starts_with("stride_on is v1,"));
    }
}
