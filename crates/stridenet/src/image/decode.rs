//! The bytes of an image to pixels.

use super::{ImageError, Picture, jpeg};
use ::image::metadata::Orientation;
use ::image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use std::fs::File;
use std::io::{Cursor, ErrorKind, Read};
use std::path::Path;

/// The most pixels a picture may have; more are refused before memory is taken for them.
pub const MAX_PIXELS: u64 = 100_000_000;

/// The longest file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 1 << 30;

/// The most memory a decoder may take for one picture, in bytes.
const MAX_DECODED_BYTES: u64 = 512 << 20;

/// Reads and decodes an image file, as [`decode`] does.
///
/// # Errors
/// When the file is missing, no regular file, longer than [`MAX_FILE_BYTES`] or unreadable, and as for [`decode`].
pub fn open(path: &Path) -> Result<Picture<'static>, ImageError> {
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
    decode(&bytes, &name)
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
    if bytes.is_empty() {
        return Err(ImageError::Empty { name: name.into() });
    }
    let format = recognise(bytes, name)?;
    if format == ImageFormat::Jpeg && !jpeg::reaches_its_end(bytes) {
        return Err(ImageError::Truncated { name: name.into(), length: bytes.len() });
    }
    let failed = |error| explain(error, bytes, name);
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(failed)?;
    check_size(&decoder, format, bytes.len(), name)?;
    // A damaged orientation tag is no reason to refuse the pixels.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(failed)?;
    image.apply_orientation(orientation);
    into_picture(image)
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
fn check_size(
    decoder: &impl ImageDecoder,
    format: ImageFormat,
    length: usize,
    name: &str,
) -> Result<(), ImageError> {
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    let size = format!("{width}x{height} pixels");
    if pixels > MAX_PIXELS {
        return Err(too_large(name, size, format!("{} megapixels", MAX_PIXELS / 1_000_000)));
    }
    if decoder.total_bytes() > MAX_DECODED_BYTES {
        let found = format!("{size} that take {} MiB", decoder.total_bytes() >> 20);
        return Err(too_large(name, found, format!("{} MiB", MAX_DECODED_BYTES >> 20)));
    }
    if pixels == 0 || format == ImageFormat::Jpeg && !jpeg::can_hold(length, pixels) {
        let reason = format!("it declares {size} in {length} bytes");
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
        ::image::ImageError::Limits(_) => {
            too_large(&name, reason, format!("{} MiB", MAX_DECODED_BYTES >> 20))
        }
        ::image::ImageError::Unsupported(_) => ImageError::Unsupported { name, reason },
        _ => ImageError::Damaged { name, reason },
    }
}

fn into_picture(image: DynamicImage) -> Result<Picture<'static>, ImageError> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let (channels, pixels) = match image {
        DynamicImage::ImageLuma8(grey) => (1, grey.into_raw()),
        DynamicImage::ImageLumaA8(grey) => (1, without_alpha::<2, _>(grey.as_raw(), |sample| sample)),
        DynamicImage::ImageLuma16(grey) => {
            (1, grey.as_raw().iter().map(|&sample| high_byte(sample)).collect())
        }
        DynamicImage::ImageLumaA16(grey) => (1, without_alpha::<2, _>(grey.as_raw(), high_byte)),
        DynamicImage::ImageRgb8(colour) => (3, colour.into_raw()),
        DynamicImage::ImageRgba8(colour) => (3, without_alpha::<4, _>(colour.as_raw(), |sample| sample)),
        DynamicImage::ImageRgb16(colour) => {
            (3, colour.as_raw().iter().map(|&sample| high_byte(sample)).collect())
        }
        DynamicImage::ImageRgba16(colour) => (3, without_alpha::<4, _>(colour.as_raw(), high_byte)),
        other => (3, other.into_rgb8().into_raw()),
    };
    Picture::new(height, width, channels, pixels)
}

fn high_byte(sample: u16) -> u8 {
    (sample >> 8) as u8
}

/// The samples of `N`-channel pixels without the last channel.
fn without_alpha<const N: usize, T: Copy>(samples: &[T], to_byte: impl Fn(T) -> u8 + Copy) -> Vec<u8> {
    samples
        .chunks_exact(N)
        .flat_map(|pixel| pixel[..N - 1].iter().map(move |&sample| to_byte(sample)))
        .collect()
}
