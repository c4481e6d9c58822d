//! Decoding, against pictures encoded by the `image` crate and against Pillow's pixels.

use super::*;
use ::image::{DynamicImage, ImageEncoder, ImageFormat, metadata::Orientation as Turn};
use std::io::Cursor;

/// A smooth colour picture 9 high and 12 wide.
fn colours() -> ::image::RgbImage {
    ::image::RgbImage::from_fn(12, 9, |x, y| ::image::Rgb([x as u8 * 20, y as u8 * 25, (x + y) as u8 * 12]))
}

fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

const LOSSLESS: [ImageFormat; 4] = [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP, ImageFormat::Tiff];

#[test]
fn each_lossless_format_comes_back_exactly() {
    let image = DynamicImage::ImageRgb8(colours());
    for format in LOSSLESS {
        let picture = decode(&encode(&image, format), "picture").unwrap();
        assert_eq!((picture.size(), picture.channels()), ([9, 12], 3), "{format:?}");
        assert_eq!(picture.pixels(), colours().as_raw(), "{format:?}");
    }
}

#[test]
fn lossy_formats_come_back_closely() {
    for (format, tolerance) in [(ImageFormat::Jpeg, 24), (ImageFormat::Gif, 12)] {
        let picture = decode(&encode(&DynamicImage::ImageRgb8(colours()), format), "picture").unwrap();
        assert_eq!((picture.size(), picture.channels()), ([9, 12], 3), "{format:?}");
        for (&found, &expected) in picture.pixels().iter().zip(colours().as_raw()) {
            assert!(found.abs_diff(expected) <= tolerance, "{format:?}: {found}, expected {expected}");
        }
    }
}

#[test]
fn alpha_is_dropped_and_16_bit_samples_keep_their_high_byte() {
    let rgba = ::image::RgbaImage::from_raw(2, 1, vec![10, 20, 30, 0, 200, 210, 220, 128]).unwrap();
    let rgba16 = ::image::ImageBuffer::from_raw(1, 1, vec![0x12ff_u16, 0x3480, 0x5600, 9]).unwrap();
    let rgb16 = ::image::ImageBuffer::from_raw(1, 1, vec![0xffff_u16, 0x0080, 0x7fff]).unwrap();
    let grey = ::image::GrayImage::from_raw(3, 1, vec![0, 100, 255]).unwrap();
    let grey_alpha = ::image::GrayAlphaImage::from_raw(2, 1, vec![7, 0, 9, 255]).unwrap();
    let grey16 = ::image::ImageBuffer::from_raw(2, 1, vec![0x01ff_u16, 0xfe00]).unwrap();
    let grey_alpha16 = ::image::ImageBuffer::from_raw(1, 1, vec![0x21ff_u16, 3]).unwrap();
    let cases: [(DynamicImage, usize, &[u8]); 7] = [
        (rgba.into(), 3, &[10, 20, 30, 200, 210, 220]),
        (DynamicImage::ImageRgba16(rgba16), 3, &[0x12, 0x34, 0x56]),
        (DynamicImage::ImageRgb16(rgb16), 3, &[0xff, 0, 0x7f]),
        (grey.into(), 1, &[0, 100, 255]),
        (grey_alpha.into(), 1, &[7, 9]),
        (DynamicImage::ImageLuma16(grey16), 1, &[1, 0xfe]),
        (DynamicImage::ImageLumaA16(grey_alpha16), 1, &[0x21]),
    ];
    for (image, channels, expected) in cases {
        let picture = decode(&encode(&image, ImageFormat::Png), "picture").unwrap();
        assert_eq!((picture.channels(), picture.pixels()), (channels, expected), "{:?}", image.color());
    }
}

#[test]
fn cmyk_and_ycck_jpegs_have_pillow_s_colours() {
    // Pillow 13, convert("RGB"), one pixel of each quarter. Adobe stores CMYK inverted.
    let cases = [
        (
            &include_bytes!("../../tests-data/cmyk.jpg")[..],
            [[50, 209, 181], [246, 34, 216], [126, 126, 126], [166, 128, 11]],
        ),
        (
            include_bytes!("../../tests-data/ycck.jpg"),
            [[98, 236, 25], [0, 39, 176], [0, 66, 0], [153, 0, 0u8]],
        ),
    ];
    for (bytes, expected) in cases {
        let picture = decode(bytes, "picture").unwrap();
        assert_eq!((picture.size(), picture.channels()), ([16, 16], 3));
        for ([row, column], expected) in [[3, 3], [3, 12], [12, 3], [12, 12]].into_iter().zip(expected) {
            let found = &picture.pixels()[(row * 16 + column) * 3..][..3];
            assert!(found.iter().zip(expected).all(|(&a, b)| a.abs_diff(b) <= 1), "{found:?}, {expected:?}");
        }
    }
}

#[test]
fn the_exif_orientation_is_applied() {
    // TIFF header, one entry: tag 0x0112, type SHORT, count 1.
    let exif = |value| {
        let mut exif = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01".to_vec();
        exif.extend([0, value, 0, 0, 0, 0, 0, 0]);
        exif
    };
    let image = ::image::GrayImage::from_raw(3, 2, vec![0, 50, 100, 150, 200, 250]).unwrap();
    // The tag says where the stored picture's first row and column are shown (Exif 2.3, 4.6.4).
    let expected: [([usize; 2], [u8; 6]); 8] = [
        ([2, 3], [0, 50, 100, 150, 200, 250]),
        ([2, 3], [100, 50, 0, 250, 200, 150]),
        ([2, 3], [250, 200, 150, 100, 50, 0]),
        ([2, 3], [150, 200, 250, 0, 50, 100]),
        ([3, 2], [0, 150, 50, 200, 100, 250]),
        ([3, 2], [150, 0, 200, 50, 250, 100]),
        ([3, 2], [250, 100, 200, 50, 150, 0]),
        ([3, 2], [100, 250, 50, 200, 0, 150]),
    ];
    for (value, (size, pixels)) in (1..).zip(expected) {
        assert!(Turn::from_exif(value).is_some());
        let mut png = Vec::new();
        let mut encoder = ::image::codecs::png::PngEncoder::new(&mut png);
        encoder.set_exif_metadata(exif(value)).unwrap();
        encoder.write_image(&image, 3, 2, ::image::ExtendedColorType::L8).unwrap();
        let picture = decode(&png, "picture").unwrap();
        assert_eq!((picture.size(), picture.pixels()), (size, &pixels[..]), "orientation {value}");
        let stored = decode_with(&png, "picture", Orientation::Stored).unwrap();
        assert_eq!((stored.size(), stored.pixels()), ([2, 3], &image.as_raw()[..]));
    }
    let mut jpeg = Vec::new();
    let mut encoder = ::image::codecs::jpeg::JpegEncoder::new(&mut jpeg);
    encoder.set_exif_metadata(exif(6)).unwrap();
    encoder.encode(&image, 3, 2, ::image::ExtendedColorType::L8).unwrap();
    assert_eq!(decode(&jpeg, "picture").unwrap().size(), [3, 2]);
}

#[test]
fn a_truncated_image_is_an_error_or_whole() {
    for format in LOSSLESS.into_iter().chain([ImageFormat::Jpeg, ImageFormat::Gif]) {
        let bytes = encode(&DynamicImage::ImageRgb8(colours()), format);
        let whole = decode(&bytes, "picture").unwrap();
        for length in 0..bytes.len() {
            // A few formats end with bytes that carry no pixels; without those the picture is still whole.
            if let Ok(picture) = decode(&bytes[..length], "picture") {
                assert_eq!(picture, whole, "{format:?} cut to {length} bytes");
                assert!(
                    format != ImageFormat::Jpeg && bytes.len() - length <= 4,
                    "{format:?}, {length} bytes"
                );
            }
        }
    }
    let jpeg = encode(&DynamicImage::ImageRgb8(colours()), ImageFormat::Jpeg);
    let error = decode(&jpeg[..jpeg.len() / 2], "cat.jpg").unwrap_err().to_string();
    assert!(error.starts_with("cat.jpg is truncated: its "), "{error}");
    let png = encode(&DynamicImage::ImageRgb8(colours()), ImageFormat::Png);
    let error = decode(&png[..png.len() / 2], "cat.png").unwrap_err().to_string();
    assert!(error.starts_with("cat.png is truncated: its "), "{error}");
}

#[test]
fn damage_never_panics() {
    for format in LOSSLESS.into_iter().chain([ImageFormat::Jpeg, ImageFormat::Gif]) {
        let bytes = encode(&DynamicImage::ImageRgb8(colours()), format);
        for at in 0..bytes.len() {
            for change in [0x01, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= change;
                if let Err(error) = decode(&damaged, "picture") {
                    assert!(!error.to_string().contains('\n'), "{error}");
                }
            }
        }
    }
}

#[test]
fn declared_sizes_are_checked_before_memory_is_taken() {
    // A PNG header that declares 60000 x 60000 pixels, its checksum corrected.
    let mut header = b"IHDR".to_vec();
    header.extend(60_000u32.to_be_bytes());
    header.extend(60_000u32.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut checksum = flate2::Crc::new();
    checksum.update(&header);
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    png.extend(&header);
    png.extend(checksum.sum().to_be_bytes());
    png.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
    let error = decode(&png, "bomb.png").unwrap_err().to_string();
    assert!(
        error.starts_with("bomb.png is too large: 60000x60000 pixels, at most 100 megapixels"),
        "{error}"
    );

    // A JPEG of a few hundred bytes that declares 9000 x 9000 pixels.
    let mut jpeg = encode(&DynamicImage::ImageRgb8(colours()), ImageFormat::Jpeg);
    let frame = jpeg.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0x23, 0x28, 0x23, 0x28]);
    let error = decode(&jpeg, "bomb.jpg").unwrap_err().to_string();
    assert!(error.starts_with("bomb.jpg cannot be decoded: it declares 9000x9000 pixels in "), "{error}");
}

#[test]
fn what_is_no_image_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let cases = [
        (folder.path().join("absent.png"), "absent.png does not exist; check the path"),
        (folder.path().to_path_buf(), "is not a regular file"),
        (write("empty.jpg", b""), "empty.jpg is empty (0 bytes)"),
        (
            write("notes.png", b"hello"),
            "notes.png is not an image: it begins with 68 65 6c 6c 6f; expected JPEG",
        ),
        (
            write("icon.png", b"\0\0\x01\0\x01\0\x10\x10"),
            "icon.png cannot be decoded: the format Ico is not supported",
        ),
    ];
    for (path, expected) in cases {
        let error = open(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    // The content decides, not the extension.
    let path = write("really.jpg", &encode(&DynamicImage::ImageRgb8(colours()), ImageFormat::Png));
    assert_eq!(open(&path).unwrap().pixels(), colours().as_raw());
}
