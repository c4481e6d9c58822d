//! The command line.

use crate::pixels::{DoctorFlags, OrientationFlag, PreprocessFlags};
use crate::recipe::{AmpChoice, RecipeFlags};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use stridenet::arch::{
    Attention, BlockKind, Downsample, Order, Overrides, Shortcut, Stem, StemPool, StrideOn, preset_names,
};

/// Train, evaluate and run residual networks that down-sample with stride 2, on the CPU.
#[derive(Debug, Parser)]
#[command(name = "stridenet", version, propagate_version = true, subcommand_required = true)]
#[command(after_help = "Example: stridenet train --epochs 5 --out runs/first
         trains resnet20 on the embedded images and writes runs/first/report.html")]
pub(crate) struct Arguments {
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: Common,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Threads that compute [default: the physical processors this process may use]
    #[arg(long, global = true, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Seed of everything random: weights, order, augmentation, split; only training and new classifiers have any [default: 42]
    #[arg(long, global = true, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Print results alone on stdout, as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print no messages and no progress
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Print more messages
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train a network on images
    Train(Box<TrainFlags>),
    /// Measure a model's accuracy on labelled images
    Evaluate(EvaluateFlags),
    /// Predict the classes of images
    Predict(PredictFlags),
    /// Show how far answers move when images are prepared in common wrong ways
    Doctor(DoctorFlags),
    /// Show a network's layers, shapes, receptive fields, parameters and multiply-accumulates
    Inspect(InspectFlags),
    /// Make a model folder out of weights that somebody else's program wrote
    Import(Box<ImportFlags>),
    /// Write a model in a form that other programs read
    Export(ExportFlags),
    /// Measure speed and memory
    #[command(subcommand)]
    Bench(BenchCommand),
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Measure the time an image takes
    Infer(BenchInferFlags),
    /// Measure the time a training step takes
    Train(BenchTrainFlags),
    /// Measure each layer: its algorithm, time, rate, and share of the machine's limit
    Layers(BenchLayersFlags),
}

/// Height and width from `224` or `160x224`.
fn size(text: &str) -> Result<[usize; 2], String> {
    let parse = |text: &str| text.parse::<usize>().ok().filter(|&size| size > 0);
    let sides = match text.split_once('x') {
        Some((height, width)) => parse(height).zip(parse(width)),
        None => parse(text).map(|side| (side, side)),
    };
    sides
        .map(|(height, width)| [height, width])
        .ok_or_else(|| "expected N or HEIGHTxWIDTH, in pixels".to_owned())
}

/// Bytes from `1000`, `500MiB` or `1.5GiB`.
pub(crate) fn memory(text: &str) -> Result<u64, String> {
    let number = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match &text[number.len()..] {
        "" | "B" => Some(0),
        "KiB" => Some(10),
        "MiB" => Some(20),
        "GiB" => Some(30),
        "TiB" => Some(40),
        _ => None,
    };
    let bytes = number.parse::<f64>().ok().zip(unit).map(|(number, unit)| number * (1u64 << unit) as f64);
    bytes.filter(|bytes| (0.0..(1u64 << 60) as f64).contains(bytes)).map(|bytes| bytes as u64).ok_or_else(
        || "expected bytes, or a number and KiB, MiB or GiB, such as 500MiB; 0 for none".to_owned(),
    )
}

/// Changes to an architecture.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Architecture")]
pub(crate) struct ArchFlags {
    /// Blocks of each stage, for example 2,2,2,2
    #[arg(long, value_delimiter = ',', value_name = "N,…")]
    pub(crate) depths: Option<Vec<usize>>,
    /// Width of each stage, for example 64,128,256,512
    #[arg(long, value_delimiter = ',', value_name = "N,…")]
    pub(crate) widths: Option<Vec<usize>>,
    /// Stride of each stage's first block, for example 1,2,2,2
    #[arg(long, value_delimiter = ',', value_name = "N,…")]
    pub(crate) strides: Option<Vec<usize>>,
    /// Block: basic or bottleneck
    #[arg(long, value_name = "KIND")]
    pub(crate) block: Option<BlockKind>,
    /// Stem: imagenet (7×7 stride 2 and a max pool), deep or deep-tiered (three 3×3 instead of the 7×7), or cifar (3×3)
    #[arg(long, value_name = "KIND")]
    pub(crate) stem: Option<Stem>,
    /// What shrinks the stem's output: max (a max pool) or conv (a 3×3 convolution with stride 2)
    #[arg(long, value_name = "KIND")]
    pub(crate) stem_pool: Option<StemPool>,
    /// Order of convolution, batch norm and ReLU: post-activation or pre-activation (ResNet-V2)
    #[arg(long, value_name = "ORDER")]
    pub(crate) order: Option<Order>,
    /// Channels of the stem
    #[arg(long, value_name = "N")]
    pub(crate) stem_width: Option<usize>,
    /// Groups of a bottleneck's 3×3 convolution (ResNeXt)
    #[arg(long, value_name = "N")]
    pub(crate) groups: Option<usize>,
    /// Base width of a bottleneck's inner convolutions, in 64ths of the stage's width
    #[arg(long, value_name = "N")]
    pub(crate) base_width: Option<usize>,
    /// Which convolution of a bottleneck has the stride: v1.5 (the 3×3) or v1 (the first 1×1)
    #[arg(long, value_name = "VERSION")]
    pub(crate) stride_on: Option<StrideOn>,
    /// Shortcut where the shape changes: projection (1×1), avg-projection (an average pool before the 1×1, as in
    /// ResNet-D) or zero-pad (the paper's option A)
    #[arg(long, value_name = "KIND")]
    pub(crate) shortcut: Option<Shortcut>,
    /// What down-samples: strided, max-pool, avg-pool or blur-pool
    #[arg(long, value_name = "KIND")]
    pub(crate) downsample: Option<Downsample>,
    /// Attention to channels in each block: none, se (squeeze and excitation) or eca
    #[arg(long, value_name = "KIND")]
    pub(crate) attention: Option<Attention>,
    /// By how much squeeze and excitation narrows
    #[arg(long, value_name = "N")]
    pub(crate) se_reduction: Option<usize>,
    /// Largest product of the strides, for example 8; stages beyond it are dilated instead
    #[arg(long, value_name = "N")]
    pub(crate) output_stride: Option<usize>,
    /// Channels of the images that the network sees: 1 (grey), 2 (grey, alpha), 3 (RGB), 4 (RGB, alpha), or more in tensors
    #[arg(long, value_name = "N")]
    pub(crate) in_chans: Option<usize>,
    /// Size of the images that the network sees: N or HEIGHTxWIDTH
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) img_size: Option<[usize; 2]>,
}

impl ArchFlags {
    /// The changes that the flags ask for.
    pub(crate) fn overrides(&self) -> Overrides {
        let flags = self.clone();
        Overrides {
            depths: flags.depths,
            widths: flags.widths,
            strides: flags.strides,
            block: flags.block,
            stem: flags.stem,
            stem_width: flags.stem_width,
            stem_pool: flags.stem_pool,
            order: flags.order,
            groups: flags.groups,
            base_width: flags.base_width,
            stride_on: flags.stride_on,
            shortcut: flags.shortcut,
            downsample: flags.downsample,
            attention: flags.attention,
            se_reduction: flags.se_reduction,
            output_stride: flags.output_stride,
            num_classes: None,
            in_channels: flags.in_chans,
            img_size: flags.img_size,
        }
    }
}

/// What happens to images that cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnErrorChoice {
    /// End with an error that names the image
    Fail,
    /// Leave the image out and say so
    Skip,
}

/// Flags of `train`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stridenet train --epochs 5 --out runs/first
  stridenet train photos/ --arch resnet18 --img-size 128 --epochs 30 -b 32 --lr 0.05
  stridenet train fashion-mnist/ --downsample blur-pool --out runs/blur
  stridenet train photos/ --opt lamb -b 64 --grad-accum-steps 8 --model-ema-decay 0.999
  stridenet train --resume --out runs/first")]
pub(crate) struct TrainFlags {
    /// Data set: `sample` (embedded), a folder of class folders, or a folder of IDX files [default: sample]
    pub(crate) data: Option<String>,
    /// Architecture: a preset's name or a JSON file [default: resnet20]
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) arch: Option<String>,
    #[command(flatten)]
    pub(crate) shape: ArchFlags,
    /// Folder of the run [default: runs/ARCH-DATA, numbered where it exists]
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    pub(crate) out: Option<PathBuf>,
    /// Replace the run in the folder
    #[arg(long, help_heading = "Run", conflicts_with = "resume")]
    pub(crate) overwrite: bool,
    /// Go on with the run in the folder, on the same kind of CPU to the same bits as if it had not been interrupted
    #[arg(long, help_heading = "Run", requires = "out")]
    pub(crate) resume: bool,
    #[command(flatten)]
    pub(crate) recipe: RecipeFlags,
    #[command(flatten)]
    pub(crate) preprocess: PreprocessFlags,
}

/// Flags of `evaluate`.
#[derive(Debug, Args)]
#[command(after_help = "Example: stridenet evaluate runs/first sample --json")]
pub(crate) struct EvaluateFlags {
    /// A run folder, a model folder or a file of weights
    pub(crate) model: PathBuf,
    /// Data set: `sample`, a folder of class folders, or a folder of IDX files. Its validation or test split is measured, or
    /// all of it where it has none
    #[arg(default_value = "sample")]
    pub(crate) data: String,
    /// Images at once
    #[arg(short, long, default_value = "64", value_name = "N")]
    pub(crate) batch_size: NonZeroUsize,
    /// Size of the images instead of the model's own: N or HEIGHTxWIDTH
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) img_size: Option<[usize; 2]>,
    /// Threads that decode images ahead; with 0, the threads that compute do so between batches
    #[arg(long, default_value = "1", value_name = "N")]
    pub(crate) workers: usize,
    /// Memory for decoded image files, so that none is decoded twice: bytes, or a size such as 500MiB; 0 keeps none
    #[arg(long, default_value = "1GiB", value_name = "SIZE", value_parser = memory)]
    pub(crate) cache: u64,
    /// What happens to images that cannot be decoded
    #[arg(long, value_name = "WHAT", default_value = "fail")]
    pub(crate) on_error: OnErrorChoice,
    #[command(flatten)]
    pub(crate) orientation: OrientationFlag,
}

/// Flags of `predict`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stridenet predict runs/first photo.jpg 'more/*.png'
  find . -name '*.jpg' | stridenet predict runs/first - --json
  stridenet predict runs/first photos/ --embedding photos.safetensors
  stridenet predict runs/first --tensor x.npy --logits y.npy --features maps --out-indices 0,3")]
pub(crate) struct PredictFlags {
    /// A run folder, a model folder or a file of weights
    pub(crate) model: PathBuf,
    /// Image files, folders of them, globs, or - for paths on stdin
    #[arg(value_name = "INPUT", required_unless_present = "tensor")]
    pub(crate) inputs: Vec<String>,
    /// Classes to print for each image
    #[arg(long, default_value = "5", value_name = "N")]
    pub(crate) topk: NonZeroUsize,
    /// Size of the images instead of the model's own: N or HEIGHTxWIDTH
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) img_size: Option<[usize; 2]>,
    #[command(flatten)]
    pub(crate) orientation: OrientationFlag,
    /// Predict a float32 array [N, C, H, W] of normalised images instead of files
    #[arg(long, value_name = "FILE.npy", conflicts_with = "inputs", requires = "logits")]
    pub(crate) tensor: Option<PathBuf>,
    /// Where the logits [N, classes] of --tensor go
    #[arg(long, value_name = "FILE.npy", requires = "tensor")]
    pub(crate) logits: Option<PathBuf>,
    /// Also write feature maps of the images that are predicted, as stageK.npy [N, C, H, W]
    #[arg(long, value_name = "DIR")]
    pub(crate) features: Option<PathBuf>,
    /// Which feature maps: 0 is the stem's, before its pool, K that of stage K [default: all stages]
    #[arg(long, value_delimiter = ',', value_name = "K,…", requires = "features")]
    pub(crate) out_indices: Option<Vec<usize>>,
    /// Also write what the classifier reads, [N, C], as .npy or .safetensors
    #[arg(long, value_name = "FILE")]
    pub(crate) embedding: Option<PathBuf>,
}

/// The examples of `inspect`, and the names that it knows.
fn inspect_help() -> String {
    let mut help = "Examples:
  stridenet inspect resnet50
  stridenet inspect resnet20 --downsample blur-pool --svg network.svg
  stridenet inspect resnet50d --attention se --output-stride 8
  stridenet inspect resnet50 --plan -b 8
  stridenet inspect runs/first --json

Architectures:"
        .to_owned();
    let mut column = usize::MAX;
    for name in preset_names() {
        if column > 90 {
            help.push_str("\n ");
            column = 0;
        }
        help.push(' ');
        help.push_str(name);
        column += name.len() + 1;
    }
    help
}

/// Flags of `inspect`.
#[derive(Debug, Args)]
#[command(after_help = inspect_help())]
pub(crate) struct InspectFlags {
    /// A preset's name, a JSON file that describes an architecture, or a model
    pub(crate) network: String,
    #[command(flatten)]
    pub(crate) shape: ArchFlags,
    /// Write a drawing of the network
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// List the tensors of a model's file of weights instead, and which network they fit
    #[arg(long, conflicts_with_all = ["plan", "svg"])]
    pub(crate) tensors: bool,
    /// Show how the network is computed instead: each step's algorithm, why it was chosen, and its memory
    #[arg(long)]
    pub(crate) plan: bool,
    /// Images at once that the plan is for [default: 1]
    #[arg(short, long, value_name = "N", requires = "plan")]
    pub(crate) batch_size: Option<NonZeroUsize>,
}

/// Flags of `import`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stridenet import resnet50.safetensors models/resnet50
  stridenet import resnet18.pth models/grey-flowers --arch resnet18 --num-classes 102 --in-chans 1
  stridenet import checkpoint/ models/flowers --json
  stridenet import resnet50.onnx models/resnet50       the graph shows what network it is")]
pub(crate) struct ImportFlags {
    /// A file of weights, or a folder with one; a config.json beside it is read
    #[arg(value_name = "SRC")]
    pub(crate) source: PathBuf,
    /// The model folder to write, or a file that ends in .safetensors
    #[arg(value_name = "OUT")]
    pub(crate) out: PathBuf,
    /// Architecture, where it is not the one of config.json: a preset's name or a JSON file
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) arch: Option<String>,
    /// Size of the images that the network sees: N or HEIGHTxWIDTH
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) img_size: Option<[usize; 2]>,
    /// Classes of the network; another number than the weights' gives it a new classifier with initial weights
    #[arg(long, value_name = "N")]
    pub(crate) num_classes: Option<usize>,
    /// Channels of the images that the network sees; another number than the weights' sums or repeats those of the first
    /// convolution, as timm does
    #[arg(long, value_name = "N")]
    pub(crate) in_chans: Option<usize>,
    /// Leave out tensors that the network has not, instead of refusing them
    #[arg(long)]
    pub(crate) allow_unused: bool,
    /// Let values that are NaN or infinite pass
    #[arg(long)]
    pub(crate) allow_nonfinite: bool,
    /// Replace the model that is already there
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// Flags of `export`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stridenet export runs/first published/first          model.safetensors and config.json, as timm reads them
  stridenet export runs/first published/first.safetensors
  stridenet export runs/first published/first.onnx     a graph that ONNX Runtime runs, checked after writing")]
pub(crate) struct ExportFlags {
    /// A run folder, a model folder or a file of weights
    #[arg(value_name = "MODEL")]
    pub(crate) model: PathBuf,
    /// Where to: a folder, a file that ends in .safetensors with a config.json beside it, or one that ends in .onnx
    #[arg(value_name = "OUT")]
    pub(crate) out: PathBuf,
    /// Put batch norms into the convolutions before them (ONNX only): fewer nodes, for inference alone
    #[arg(long)]
    pub(crate) fold: bool,
    /// Replace what is already there
    #[arg(long)]
    pub(crate) overwrite: bool,
}

/// The network that a benchmark runs.
#[derive(Debug, Args)]
pub(crate) struct BenchNetwork {
    /// A preset's name, a JSON file that describes an architecture, or a model
    pub(crate) network: String,
    /// Images at once
    #[arg(short, long, default_value = "1", value_name = "N")]
    pub(crate) batch_size: NonZeroUsize,
    /// Size of the images instead of the network's own: N or HEIGHTxWIDTH
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) img_size: Option<[usize; 2]>,
    /// Measure which algorithm is the fastest for each layer, use it, and keep it for later runs with this network, image
    /// size, batch and number of threads, in tuning.json beside the model or in the user's cache. Algorithms differ in the
    /// last bits of results
    #[arg(long)]
    pub(crate) tune: bool,
}

/// Flags of `bench infer`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stridenet bench infer resnet50 -b 8
  stridenet bench infer runs/first -b 128 --threads 1 --json")]
pub(crate) struct BenchInferFlags {
    #[command(flatten)]
    pub(crate) network: BenchNetwork,
    /// Time to measure for
    #[arg(long, default_value = "3", value_name = "S", value_parser = seconds, allow_negative_numbers = true)]
    pub(crate) seconds: f64,
}

/// Flags of `bench train`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stridenet bench train resnet20 -b 128
  stridenet bench train resnet50 -b 16 --threads 1 --json
  stridenet bench train resnet50 --amp bf16
  stridenet bench train resnet50 --recompute --json")]
pub(crate) struct BenchTrainFlags {
    /// A preset's name, a JSON file that describes an architecture, or a model
    pub(crate) network: String,
    /// Images of a step
    #[arg(short, long, default_value = "16", value_name = "N")]
    pub(crate) batch_size: NonZeroUsize,
    /// Size of the images instead of the network's own: N or HEIGHTxWIDTH
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) img_size: Option<[usize; 2]>,
    /// Mixed precision, as in training
    #[arg(long, value_name = "PRECISION")]
    pub(crate) amp: Option<AmpChoice>,
    /// Compute the insides of blocks again in the backward pass instead of keeping them, as in training
    #[arg(long)]
    pub(crate) recompute: bool,
    /// Time to measure for
    #[arg(long, default_value = "3", value_name = "S", value_parser = seconds, allow_negative_numbers = true)]
    pub(crate) seconds: f64,
}

/// Flags of `bench layers`.
#[derive(Debug, Args)]
#[command(after_help = "Example: stridenet bench layers resnet50 -b 8 --svg layers.svg")]
pub(crate) struct BenchLayersFlags {
    #[command(flatten)]
    pub(crate) network: BenchNetwork,
    /// Write a drawing: each layer's rate beside what its algorithm and the machine allow
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
}

/// A time in seconds.
fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds: &f64| (0.0..=1e6).contains(seconds));
    seconds.ok_or_else(|| "expected seconds, from 0 to a million".to_owned())
}
