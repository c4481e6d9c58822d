//! The bytes of an image to pixels.

use super::jpeg::{self, Jpeg, Problem};
use super::picture::has_alpha;
use super::{ImageError, Picture};
use ::image::metadata::Orientation as Turn;
use ::image::{DynamicImage, GrayImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};
use std::fs::File;
use std::io::{Cursor, ErrorKind, Read};
use std::path::Path;

/// The most pixels a picture may have; more are refused before memory is taken for them.
pub const MAX_PIXELS: u64 = 100_000_000;

/// The longest file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 1 << 30;

/// The most memory a decoder may take for one picture, in bytes.
const MAX_DECODED_BYTES: u64 = 768 << 20;

/// Which way up a picture comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Orientation {
    /// As its EXIF orientation says: the way the photographer saw it.
    #[default]
    Exif,
    /// As its pixels are stored. Pillow's `open`, and with it timm and torchvision, leave them so, but for TIFF, where the
    /// orientation belongs to the format.
    Stored,
}

/// What is wanted of an image besides its colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Decoding {
    /// Which way up it comes.
    pub orientation: Orientation,
    /// Whether alpha is kept, as one more channel, where there is any.
    pub alpha: bool,
}

impl Decoding {
    /// What a model of this many input channels needs.
    pub fn of(channels: usize, orientation: Orientation) -> Self {
        Decoding { orientation, alpha: has_alpha(channels) }
    }
}

impl From<Orientation> for Decoding {
    fn from(orientation: Orientation) -> Self {
        Decoding { orientation, alpha: false }
    }
}

/// Reads and decodes an image file the right way up, as [`decode`] does.
///
/// # Errors
/// As for [`open_with`].
pub fn open(path: &Path) -> Result<Picture<'static>, ImageError> {
    open_with(path, Orientation::Exif)
}

/// Reads and decodes an image file, as [`decode_with`] does.
///
/// # Errors
/// When the file is missing, no regular file, longer than [`MAX_FILE_BYTES`] or unreadable, and as for [`decode`].
pub fn open_with(path: &Path, decoding: impl Into<Decoding>) -> Result<Picture<'static>, ImageError> {
    let read = |source: std::io::Error| match source.kind() {
        ErrorKind::NotFound => ImageError::Missing { path: path.into() },
        _ => ImageError::Read { path: path.into(), source },
    };
    // Asked before opening: opening a pipe would wait for a writer.
    if !std::fs::metadata(path).map_err(read)?.is_file() {
        return Err(ImageError::NotAFile { path: path.into() });
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(read)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(read)?;
    let name = path.display().to_string();
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(too_large(&name, "the file is longer".into(), format!("{} MiB", MAX_FILE_BYTES >> 20)));
    }
    decode_with(&bytes, &name, decoding)
}

/// Decodes an image. The format (JPEG, PNG, BMP, WebP, the first frame of GIF, TIFF) is told by the content.
///
/// Grey pictures have one channel, all others three: palettes and CMYK become RGB, 16-bit samples keep their high
/// byte, alpha is dropped without blending, as Pillow's `convert("RGB")` does. The EXIF orientation is applied.
/// `name` is what error messages call the image.
///
/// # Errors
/// When the bytes are no image, truncated, damaged, of an unsupported kind, or declare more than [`MAX_PIXELS`].
pub fn decode(bytes: &[u8], name: &str) -> Result<Picture<'static>, ImageError> {
    decode_with(bytes, name, Orientation::Exif)
}

/// As [`decode`], and the picture comes as `decoding` says.
///
/// # Errors
/// As for [`decode`].
pub fn decode_with(
    bytes: &[u8],
    name: &str,
    decoding: impl Into<Decoding>,
) -> Result<Picture<'static>, ImageError> {
    let Decoding { orientation, alpha } = decoding.into();
    if bytes.is_empty() {
        return Err(ImageError::Empty { name: name.into() });
    }
    let format = recognise(bytes, name)?;
    let whole = match format {
        ImageFormat::Jpeg => jpeg::reaches_its_end(bytes),
        ImageFormat::WebP => has_its_chunks(bytes),
        // Decoders of the others notice.
        _ => true,
    };
    if !whole {
        return Err(ImageError::Truncated { name: name.into(), length: bytes.len() });
    }
    if format == ImageFormat::Jpeg {
        return decode_jpeg(bytes, name, orientation);
    }
    if let Some(length) = impossible_palette(format, bytes) {
        let reason = format!("its palette has {length} bytes, expected 3 for each of at most 256 colours");
        return Err(ImageError::Damaged { name: name.into(), reason });
    }
    let failed = |error| explain(error, bytes, name);
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(most_memory(format, bytes));
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    check_size([height, width].map(u64::from), decoder.total_bytes(), name)?;
    let turn = match orientation {
        Orientation::Stored if format != ImageFormat::Tiff => Turn::NoTransforms,
        // A damaged orientation tag is no reason to refuse the pixels.
        _ => decoder.orientation().unwrap_or(Turn::NoTransforms),
    };
    let mut image = DynamicImage::from_decoder(decoder).map_err(failed)?;
    image.apply_orientation(turn);
    into_picture(image, alpha)
}

/// The most memory that a decoder may take: for PNG, whose profiles inflate a thousandfold, what the pixels of the header can
/// take at most and a large profile.
fn most_memory(format: ImageFormat, bytes: &[u8]) -> u64 {
    const PROFILE: u64 = 16 << 20;
    let side = |at: usize| bytes.get(at..)?.first_chunk().map(|side| u64::from(u32::from_be_bytes(*side)));
    match (format, side(16), side(20)) {
        // Four channels of 16 bits.
        (ImageFormat::Png, Some(width), Some(height)) => {
            width.saturating_mul(height).saturating_mul(8).saturating_add(PROFILE).min(MAX_DECODED_BYTES)
        }
        _ => MAX_DECODED_BYTES,
    }
}

/// Whether a WebP file has all the bytes of its chunks. The last chunk may hold the EXIF orientation.
fn has_its_chunks(bytes: &[u8]) -> bool {
    let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?) as usize);
    let Some(end) = word(4).map(|length| length.saturating_add(8)) else { return false };
    let mut at = 12;
    while at < end {
        let Some(chunk_end) = word(at + 4).and_then(|size| size.checked_add(at + 8)) else { return false };
        if chunk_end > bytes.len() {
            return false;
        }
        // Chunks begin at even places; the padding of the last one may be left out.
        at = chunk_end + chunk_end % 2;
    }
    true
}

/// The length of a PNG file's palette that is no list of colours: the decoder would read beyond it.
fn impossible_palette(format: ImageFormat, bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes.get(8..).filter(|_| format == ImageFormat::Png)?;
    loop {
        let length = u32::from_be_bytes(*rest.first_chunk()?) as usize;
        match rest.get(4..8)? {
            b"PLTE" => return Some(length).filter(|length| !length.is_multiple_of(3) || *length > 3 * 256),
            // Palettes stand before the pixels.
            b"IDAT" => return None,
            // Behind the data stands a checksum of four bytes.
            _ => rest = rest.get(length.checked_add(12)?..)?,
        }
    }
}

/// By the decoder of this crate, whose pixels are libjpeg's.
fn decode_jpeg(bytes: &[u8], name: &str, orientation: Orientation) -> Result<Picture<'static>, ImageError> {
    let failed = |problem| explain_jpeg(problem, bytes, name);
    let jpeg = Jpeg::open(bytes).map_err(failed)?;
    let [height, width] = jpeg.size();
    check_size([height, width].map(|side| side as u64), jpeg.memory(), name)?;
    if !jpeg::can_hold(bytes.len(), (height * width) as u64) {
        let reason = format!("it declares {width}x{height} pixels in {} bytes", bytes.len());
        return Err(ImageError::Damaged { name: name.into(), reason });
    }
    let turn = match orientation {
        Orientation::Exif => jpeg.exif().and_then(Turn::from_exif_chunk).unwrap_or(Turn::NoTransforms),
        Orientation::Stored => Turn::NoTransforms,
    };
    let (channels, pixels) = jpeg.decode().map_err(failed)?;
    if turn == Turn::NoTransforms {
        return Picture::new(height, width, channels, pixels);
    }
    // Both sides come from 16 bits.
    let (width, height) = (width as u32, height as u32);
    let image = match channels {
        1 => GrayImage::from_raw(width, height, pixels).map(DynamicImage::ImageLuma8),
        _ => RgbImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgb8),
    };
    let mut image = image.expect("as many samples as the size asks for");
    image.apply_orientation(turn);
    into_picture(image, false)
}

fn explain_jpeg(problem: Problem, bytes: &[u8], name: &str) -> ImageError {
    let name = name.to_owned();
    let reason = match problem {
        Problem::Short => return ImageError::Truncated { name, length: bytes.len() },
        Problem::Unsupported(what) => {
            return ImageError::Unsupported { name, reason: format!("{what} is not supported") };
        }
        Problem::Header(what) => format!("it describes {what} that cannot be"),
        Problem::Code => "its data holds a code that does not exist".into(),
        Problem::Restart => "its data lacks a restart marker".into(),
    };
    ImageError::Damaged { name, reason }
}

fn recognise(bytes: &[u8], name: &str) -> Result<ImageFormat, ImageError> {
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    match ::image::guess_format(bytes) {
        Ok(format @ (Jpeg | Png | Bmp | WebP | Gif | Tiff)) => Ok(format),
        Ok(other) => {
            let reason = format!("the format {other:?} is not supported");
            Err(ImageError::Unsupported { name: name.into(), reason })
        }
        Err(_) => {
            let start: Vec<String> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            Err(ImageError::Unrecognised { name: name.into(), start: start.join(" ") })
        }
    }
}

/// Refuses what the header declares before any memory is taken for it.
fn check_size([height, width]: [u64; 2], memory: u64, name: &str) -> Result<(), ImageError> {
    let pixels = width.saturating_mul(height);
    let size = format!("{width}x{height} pixels");
    if pixels > MAX_PIXELS {
        return Err(too_large(name, size, format!("{} megapixels", MAX_PIXELS / 1_000_000)));
    }
    if memory > MAX_DECODED_BYTES {
        let found = format!("{size} that take {} MiB", memory >> 20);
        return Err(too_large(name, found, format!("{} MiB", MAX_DECODED_BYTES >> 20)));
    }
    if pixels == 0 {
        let reason = format!("it declares {size}");
        return Err(ImageError::Damaged { name: name.into(), reason });
    }
    Ok(())
}

fn too_large(name: &str, found: String, limit: String) -> ImageError {
    ImageError::TooLarge { name: name.into(), found, limit }
}

fn explain(error: ::image::ImageError, bytes: &[u8], name: &str) -> ImageError {
    let name = name.to_string();
    // Decoders' messages may have several lines.
    let reason = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    // Some decoders hand their reader's error on as text alone.
    let ends = [ErrorKind::UnexpectedEof.to_string(), "failed to fill whole buffer".into()];
    if ends.iter().any(|end| reason.contains(end)) {
        return ImageError::Truncated { name, length: bytes.len() };
    }
    match error {
        // The decoder of BMP has a limit of its own.
        _ if reason.contains("Image too large") => too_large(&name, reason, "65535 pixels a side".into()),
        ::image::ImageError::Limits(_) => {
            too_large(&name, reason, format!("{} MiB", MAX_DECODED_BYTES >> 20))
        }
        ::image::ImageError::Unsupported(_) => ImageError::Unsupported { name, reason },
        _ => ImageError::Damaged { name, reason },
    }
}

fn into_picture(image: DynamicImage, alpha: bool) -> Result<Picture<'static>, ImageError> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let (channels, pixels) = match image {
        DynamicImage::ImageLumaA8(grey) if alpha => (2, grey.into_raw()),
        DynamicImage::ImageRgba8(colour) if alpha => (4, colour.into_raw()),
        DynamicImage::ImageLumaA16(grey) if alpha => {
            (2, grey.as_raw().iter().copied().map(high_byte).collect())
        }
        DynamicImage::ImageRgba16(colour) if alpha => {
            (4, colour.as_raw().iter().copied().map(high_byte).collect())
        }
        DynamicImage::ImageLuma8(grey) => (1, grey.into_raw()),
        DynamicImage::ImageLumaA8(grey) => (1, without_alpha::<2>(grey.into_raw())),
        DynamicImage::ImageLuma16(grey) => {
            (1, grey.as_raw().iter().map(|&sample| high_byte(sample)).collect())
        }
        DynamicImage::ImageLumaA16(grey) => {
            (1, without_alpha::<2>(grey.as_raw().iter().copied().map(high_byte).collect()))
        }
        DynamicImage::ImageRgb8(colour) => (3, colour.into_raw()),
        DynamicImage::ImageRgba8(colour) => (3, without_alpha::<4>(colour.into_raw())),
        DynamicImage::ImageRgb16(colour) => {
            (3, colour.as_raw().iter().map(|&sample| high_byte(sample)).collect())
        }
        DynamicImage::ImageRgba16(colour) => {
            (3, without_alpha::<4>(colour.as_raw().iter().copied().map(high_byte).collect()))
        }
        other => (3, other.into_rgb8().into_raw()),
    };
    Picture::new(height, width, channels, pixels)
}

fn high_byte(sample: u16) -> u8 {
    (sample >> 8) as u8
}

/// The samples of `N`-channel pixels without the last channel, in the same memory: a picture may take hundreds of
/// megabytes.
fn without_alpha<const N: usize>(mut samples: Vec<u8>) -> Vec<u8> {
    let pixels = samples.len() / N;
    for pixel in 0..pixels {
        for channel in 0..N - 1 {
            samples[pixel * (N - 1) + channel] = samples[pixel * N + channel];
        }
    }
    samples.truncate(pixels * (N - 1));
    samples.shrink_to_fit();
    samples
}
