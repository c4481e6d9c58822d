//! What can be wrong with an image, or with the way it is to be prepared.

use std::path::PathBuf;
use thiserror::Error;

/// An image cannot be decoded or prepared. The message is one line.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// There is no such file.
    #[error("{} does not exist; check the path", path.display())]
    Missing {
        /// The path asked for.
        path: PathBuf,
    },
    /// The path is a folder or a device.
    #[error("{} is not a regular file; name an image file", path.display())]
    NotAFile {
        /// The path asked for.
        path: PathBuf,
    },
    /// The system refused to read the file.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file has no bytes.
    #[error("{name} is empty (0 bytes); copy it again or remove it")]
    Empty {
        /// The file, or what the caller calls the bytes.
        name: String,
    },
    /// The first bytes belong to no image format.
    #[error(
        "{name} is not an image: it begins with {start}; expected JPEG, PNG, BMP, WebP, GIF or TIFF, \
         whatever the extension"
    )]
    Unrecognised {
        /// The file, or what the caller calls the bytes.
        name: String,
        /// The first bytes in hexadecimal.
        start: String,
    },
    /// The bytes end before the picture does.
    #[error(
        "{name} is truncated: its {length} bytes end before the picture does; copy it again or remove it"
    )]
    Truncated {
        /// The file, or what the caller calls the bytes.
        name: String,
        /// How many bytes there are.
        length: usize,
    },
    /// The bytes contradict the format.
    #[error("{name} cannot be decoded: {reason}; copy it again or remove it")]
    Damaged {
        /// The file, or what the caller calls the bytes.
        name: String,
        /// What the decoder met.
        reason: String,
    },
    /// A format or a variant of one that cannot be decoded here.
    #[error("{name} cannot be decoded: {reason}; convert it to PNG or JPEG")]
    Unsupported {
        /// The file, or what the caller calls the bytes.
        name: String,
        /// What is not supported.
        reason: String,
    },
    /// More pixels, or more memory, than is allowed.
    #[error("{name} is too large: {found}, at most {limit} are allowed; scale it down first")]
    TooLarge {
        /// The file, or what the caller calls the bytes.
        name: String,
        /// What the file declares.
        found: String,
        /// The limit, with its unit.
        limit: String,
    },
    /// The sizes given for a picture do not fit its pixels.
    #[error(
        "{length} bytes are not a picture of {height}x{width} pixels with {channels} channels; \
         expected height x width x channels bytes, sizes above 0, and 1 to 4 channels"
    )]
    Pixels {
        /// Height in pixels.
        height: usize,
        /// Width in pixels.
        width: usize,
        /// Number of channels.
        channels: usize,
        /// Number of bytes.
        length: usize,
    },
    /// A region lies outside its picture.
    #[error(
        "the region of {}x{} pixels at row {}, column {} is empty or not inside the picture of {}x{} pixels",
        size[0], size[1], origin[0], origin[1], picture[0], picture[1]
    )]
    Region {
        /// Row and column of the region's first pixel.
        origin: [usize; 2],
        /// Height and width of the region.
        size: [usize; 2],
        /// Height and width of the picture.
        picture: [usize; 2],
    },
    /// Scaling would make a picture of more pixels than is allowed.
    #[error(
        "a picture of {height}x{width} pixels would become {scaled_height}x{scaled_width} when scaled to the input size, \
         at most 100 megapixels are allowed; crop it first"
    )]
    Elongated {
        /// Height in pixels.
        height: usize,
        /// Width in pixels.
        width: usize,
        /// Height it would be scaled to.
        scaled_height: usize,
        /// Width it would be scaled to.
        scaled_width: usize,
    },
    /// A setting of the preprocessing is out of its range.
    #[error(
        "the preprocessing's {what} is {found}, expected {expected}; correct the flag or the model's config.json"
    )]
    Setting {
        /// The setting's name.
        what: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// The model takes what no picture has.
    #[error(
        "the model takes {channels} channels, pictures have 1 to 4 (grey or RGB, with or without alpha); \
         give it tensors instead (`stridenet predict --tensor`)"
    )]
    Channels {
        /// The input's channels.
        channels: usize,
    },
    /// A picture or a buffer does not have the size the preprocessing was asked to fill.
    #[error("{what} is {found}, expected {expected}; pass it through `Preprocess::fit` first")]
    Unfit {
        /// What was looked at.
        what: &'static str,
        /// Its size.
        found: String,
        /// The size needed.
        expected: String,
    },
}
