//! Flags about images: how they are prepared, and how training images are cropped and mirrored.

use clap::{Args, ValueEnum};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::path::PathBuf;
use stridenet::data::{Augment, Crop, CropFilter};
use stridenet::image::{CropMode, ImageError, Interpolation, Orientation, Preprocess};

/// How training images are cropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CropChoice {
    /// Not at all
    None,
    /// A random crop after padding with black
    Pad,
    /// A random part of the area, resized
    Resized,
}

/// The value that serde knows by this name.
fn named<T: DeserializeOwned>(name: &str) -> Result<T, String> {
    serde_json::from_value(Value::String(name.to_owned())).map_err(|error| error.to_string())
}

/// Numbers between commas, such as `0.5,0.5,0.5`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Numbers(pub(crate) Vec<f32>);

fn numbers(text: &str) -> Result<Numbers, String> {
    let parsed: Option<Vec<f32>> = text.split(',').map(|number| number.trim().parse().ok()).collect();
    parsed.map(Numbers).ok_or_else(|| "expected a number for each channel, such as 0.5,0.5,0.5".to_owned())
}

fn filter(name: &str) -> Result<CropFilter, String> {
    match name {
        "random" => Ok(CropFilter::Random),
        _ => named(name).map(CropFilter::Fixed).map_err(|error| format!("{error}, or `random`")),
    }
}

/// How images are prepared, where it is not the usual way.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Images")]
pub(crate) struct PreprocessFlags {
    /// Filter for resizing: nearest, box, bilinear, hamming, bicubic or lanczos
    #[arg(long, value_name = "NAME", value_parser = named::<Interpolation>)]
    pub(crate) interpolation: Option<Interpolation>,
    /// Share of the resized image's side that the centre crop keeps
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub(crate) crop_pct: Option<f64>,
    /// How images get the input's proportions: center (cut), squash, or border (fill)
    #[arg(long, value_name = "MODE", value_parser = named::<CropMode>)]
    pub(crate) crop_mode: Option<CropMode>,
    /// Mean of each channel, where white is 1
    #[arg(long, value_name = "M,…", value_parser = numbers, allow_negative_numbers = true)]
    pub(crate) mean: Option<Numbers>,
    /// Standard deviation of each channel, where white is 1
    #[arg(long, value_name = "S,…", value_parser = numbers, allow_negative_numbers = true)]
    pub(crate) std: Option<Numbers>,
}

impl PreprocessFlags {
    /// Whether any was given.
    pub(crate) fn any(&self) -> bool {
        let PreprocessFlags { interpolation, crop_pct, crop_mode, mean, std } = self;
        interpolation.is_some()
            || crop_pct.is_some()
            || crop_mode.is_some()
            || mean.is_some()
            || std.is_some()
    }

    /// `usual` with the changes that the flags ask for.
    pub(crate) fn over(&self, usual: Preprocess) -> Result<Preprocess, ImageError> {
        let flags = self.clone();
        let changed = Preprocess {
            interpolation: flags.interpolation.unwrap_or(usual.interpolation),
            crop_pct: flags.crop_pct.unwrap_or(usual.crop_pct),
            crop_mode: flags.crop_mode.unwrap_or(usual.crop_mode),
            mean: flags.mean.map_or(usual.mean, |mean| mean.0),
            std: flags.std.map_or(usual.std, |std| std.0),
            ..usual
        };
        changed.check()?;
        Ok(changed)
    }
}

/// Which way up images come.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct OrientationFlag {
    /// Leave images as they are stored, whatever their EXIF orientation says, as timm and torchvision do
    #[arg(long, help_heading = "Images")]
    pub(crate) no_exif: bool,
}

impl OrientationFlag {
    pub(crate) fn orientation(self) -> Orientation {
        if self.no_exif { Orientation::Stored } else { Orientation::Exif }
    }
}

/// What is done to training images.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Images")]
pub(crate) struct AugmentFlags {
    /// Crop of training images [default: pad for images up to 64 pixels, resized for larger ones]
    #[arg(long, value_name = "KIND")]
    pub(crate) crop: Option<CropChoice>,
    /// Pixels of padding for `--crop pad` [default: an eighth of the image, at least 2]
    #[arg(long, value_name = "N", conflicts_with_all = ["scale", "ratio", "train_interpolation"])]
    pub(crate) crop_padding: Option<usize>,
    /// Smallest and largest share of the area for `--crop resized` [default: 0.08 1.0]
    #[arg(long, num_args = 2, value_names = ["MIN", "MAX"], allow_negative_numbers = true)]
    pub(crate) scale: Option<Vec<f64>>,
    /// Smallest and largest ratio of width to height for `--crop resized` [default: 0.75 1.3333]
    #[arg(long, num_args = 2, value_names = ["MIN", "MAX"], allow_negative_numbers = true)]
    pub(crate) ratio: Option<Vec<f64>>,
    /// Filter for `--crop resized`: random (bilinear or bicubic) or a name as for --interpolation [default: --interpolation]
    #[arg(long, value_name = "NAME", value_parser = filter)]
    pub(crate) train_interpolation: Option<CropFilter>,
    /// Probability that a training image is mirrored left to right [default: 0.5]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) hflip: Option<f64>,
    /// Probability that a training image is mirrored top to bottom [default: 0]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) vflip: Option<f64>,
    /// Do not mirror training images
    #[arg(long, conflicts_with_all = ["hflip", "vflip"])]
    pub(crate) no_flip: bool,
}

impl AugmentFlags {
    /// Whether any was given.
    pub(crate) fn any(&self) -> bool {
        let AugmentFlags { crop, crop_padding, scale, ratio, train_interpolation, hflip, vflip, no_flip } =
            self;
        let crops = train_interpolation.is_some()
            || crop.is_some()
            || crop_padding.is_some()
            || scale.is_some()
            || ratio.is_some();
        crops || hflip.is_some() || vflip.is_some() || *no_flip
    }

    /// What is done to training images of `[height, width]` pixels. An error is a flag that does not go with the crop.
    pub(crate) fn augment(&self, img_size: [usize; 2]) -> Result<Augment, &'static str> {
        let standard = Augment::standard(img_size);
        let parts = self.scale.is_some() || self.ratio.is_some() || self.train_interpolation.is_some();
        let crop = match self.crop {
            _ if self.crop_padding.is_some() => Some(CropChoice::Pad),
            None if parts => Some(CropChoice::Resized),
            choice => choice,
        };
        if self.crop_padding.is_some() && !matches!(self.crop, None | Some(CropChoice::Pad)) {
            return Err("--crop-padding belongs to --crop pad");
        }
        if parts && crop != Some(CropChoice::Resized) {
            return Err("--scale, --ratio and --train-interpolation belong to --crop resized");
        }
        let pair = |given: &Option<Vec<f64>>, usual: [f64; 2]| match given.as_deref() {
            Some(&[low, high]) => [low, high],
            _ => usual,
        };
        let crop = match crop {
            None => standard.crop,
            Some(CropChoice::None) => Crop::None,
            Some(CropChoice::Pad) => self.crop_padding.map_or(Crop::padded(img_size), Crop::Pad),
            Some(CropChoice::Resized) => {
                let [scale, ratio] = [pair(&self.scale, Crop::SCALE), pair(&self.ratio, Crop::RATIO)];
                Crop::Resized { scale, ratio, filter: self.train_interpolation.unwrap_or_default() }
            }
        };
        let usual = if self.no_flip { 0.0 } else { standard.hflip };
        Ok(Augment { crop, hflip: self.hflip.unwrap_or(usual), vflip: self.vflip.unwrap_or(standard.vflip) })
    }
}

/// Flags of `doctor`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stridenet doctor runs/first photo.jpg 'more/*.jpg'
  stridenet doctor runs/first photos/ --json
An answer that moves little under a wrong preparation says little about it; name a few dozen images.")]
pub(crate) struct DoctorFlags {
    /// A run folder, a model folder or a file of weights
    pub(crate) model: PathBuf,
    /// Image files, folders of them, globs, or - for paths on stdin
    #[arg(value_name = "INPUT", required = true)]
    pub(crate) inputs: Vec<String>,
    #[command(flatten)]
    pub(crate) orientation: OrientationFlag,
}
