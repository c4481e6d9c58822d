//! Files that are cut off, damaged, or lie about their size: a one-line error, no panic, and no memory for what is only declared.

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use stridenet::image::decode;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Tests that count allocations must not run beside each other.
static ALONE: Mutex<()> = Mutex::new(());

const FORMATS: [&str; 6] = ["jpg", "png", "bmp", "webp", "gif", "tiff"];

/// The images of the fixtures with this extension, the smallest first.
fn files(extension: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/pixels");
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let wanted = paths.filter(|path| path.extension().is_some_and(|found| found == extension));
    let mut files: Vec<_> = wanted.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    files.sort_by_key(|(path, bytes)| (bytes.len(), path.clone()));
    files
}

/// Small files, but more than the very smallest: a few of each kind.
fn sample(extension: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let files = files(extension);
    let small = files.into_iter().filter(|(_, bytes)| bytes.len() < 4000).collect::<Vec<_>>();
    let step = small.len().div_ceil(5);
    small.into_iter().step_by(step).collect()
}

fn one_line(error: &stridenet::image::ImageError) -> String {
    let text = error.to_string();
    assert!(!text.contains(char::is_control), "{text:?}");
    text
}

#[test]
fn a_file_cut_at_any_byte_is_refused_or_whole() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for extension in FORMATS {
        let sample = sample(extension);
        assert!(sample.len() >= 3, "{extension}");
        for (path, bytes) in sample {
            let whole = decode(&bytes, "picture").unwrap();
            for length in 0..bytes.len() {
                match decode(&bytes[..length], "cut") {
                    Err(error) => assert!(one_line(&error).starts_with("cut ")),
                    // What carries no pixels may be missing at the end; JPEG files end with a marker.
                    Ok(picture) => assert!(
                        picture == whole && extension != "jpg",
                        "{} cut to {length} of {} bytes",
                        path.display(),
                        bytes.len()
                    ),
                }
            }
        }
    }
}

#[test]
fn flipped_bytes_never_panic() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for extension in FORMATS {
        for (_, bytes) in sample(extension) {
            let mut damaged = bytes.clone();
            for at in 0..bytes.len() {
                for change in [0x01, 0x80, 0xff] {
                    damaged[at] = bytes[at] ^ change;
                    if let Err(error) = decode(&damaged, "damaged") {
                        one_line(&error);
                    }
                }
                damaged[at] = bytes[at];
            }
        }
    }
}

/// A file of each format that declares as many pixels as the format can, or 100,000 x 100,000.
fn lies(extension: &str, mut bytes: Vec<u8>) -> Vec<u8> {
    const SIDE: u32 = 100_000;
    let at = |bytes: &[u8], pattern: &[u8]| {
        bytes.windows(pattern.len()).position(|window| window == pattern).unwrap()
    };
    match extension {
        "jpg" => {
            let frame = bytes.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
            bytes[frame + 5..frame + 9].fill(0xff);
        }
        "png" => {
            for place in [16, 20] {
                bytes[place..place + 4].copy_from_slice(&SIDE.to_be_bytes());
            }
            let mut checksum = flate2::Crc::new();
            checksum.update(&bytes[12..29]);
            bytes[29..33].copy_from_slice(&checksum.sum().to_be_bytes());
        }
        "bmp" => {
            [18, 22].iter().for_each(|&place| bytes[place..place + 4].copy_from_slice(&SIDE.to_le_bytes()))
        }
        "gif" => {
            bytes[6..10].fill(0xff);
            let frame = at(&bytes, &[0x2c, 0, 0, 0, 0]);
            bytes[frame + 5..frame + 9].fill(0xff);
        }
        "webp" => {
            // 14 bits for each side less 1: 16383 x 16383 pixels.
            let data = at(&bytes, b"VP8L") + 9;
            bytes[data..data + 4].copy_from_slice(&(0x3ffe_u32 | 0x3ffe << 14).to_le_bytes());
        }
        "tiff" => {
            let word = |bytes: &[u8], at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
            let start = u32::from_le_bytes(*bytes[4..].first_chunk().unwrap()) as usize;
            for entry in 0..usize::from(word(&bytes, start)) {
                let entry = start + 2 + entry * 12;
                if matches!(word(&bytes, entry), 256 | 257) {
                    // One LONG.
                    bytes[entry + 2..entry + 8].copy_from_slice(&[4, 0, 1, 0, 0, 0]);
                    bytes[entry + 8..entry + 12].copy_from_slice(&SIDE.to_le_bytes());
                }
            }
        }
        other => panic!("{other}"),
    }
    bytes
}

#[test]
fn what_declares_too_many_pixels_is_refused_before_memory_is_taken_for_them() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for extension in FORMATS {
        let mut files = files(extension);
        if extension == "webp" {
            files.retain(|(_, bytes)| bytes[12..16] == *b"VP8L");
        }
        if extension == "jpg" {
            files.retain(|(path, _)| !path.display().to_string().contains("progressive"));
        }
        for (path, bytes) in files {
            let lie = lies(extension, bytes.clone());
            let region = Region::new(ALLOCATOR);
            let error = one_line(&decode(&lie, "lie").unwrap_err());
            let taken = region.change().bytes_allocated;
            // The places of a TIFF file's pixels contradict its size before that is looked at.
            let contradicts = extension == "tiff" && error.contains("inconsistent sizes");
            assert!(contradicts || error.starts_with("lie is too large: "), "{}: {error}", path.display());
            // Decoders take some tables, and windows of their compression.
            assert!(taken < 1 << 20, "{}: {taken} bytes for {}", path.display(), bytes.len());
        }
    }
}

/// A PNG file of these chunks.
fn png(chunks: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in chunks {
        bytes.extend((data.len() as u32).to_be_bytes());
        let start = bytes.len();
        bytes.extend_from_slice(*kind);
        bytes.extend_from_slice(data);
        let mut checksum = flate2::Crc::new();
        checksum.update(&bytes[start..]);
        bytes.extend(checksum.sum().to_be_bytes());
    }
    bytes
}

/// The header of a PNG file of 8-bit pixels, grey or with three channels.
fn header(side: u32, colour: bool) -> (&'static [u8; 4], Vec<u8>) {
    let sides = [side.to_be_bytes(), side.to_be_bytes()].concat();
    (b"IHDR", [&sides[..], &[8, if colour { 2 } else { 0 }, 0, 0, 0]].concat())
}

/// So many zeros, deflated to a thousandth.
fn zeros(mebibytes: usize) -> Vec<u8> {
    let mut deflate = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    let piece = vec![0; 1 << 20];
    (0..mebibytes).for_each(|_| deflate.write_all(&piece).unwrap());
    deflate.finish().unwrap()
}

#[test]
fn palettes_of_an_impossible_length_are_refused() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // Two by two pixels of eight bits, each row behind its filter.
    let mut rows = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    rows.write_all(&[0, 0, 1, 0, 2, 0]).unwrap();
    let rows = rows.finish().unwrap();
    let paletted = |length: usize| {
        let header = [&[0, 0, 0, 2, 0, 0, 0, 2][..], &[8, 3, 0, 0, 0]].concat();
        let palette = (0..length).map(|value| value as u8).collect();
        png(&[(b"IHDR", header), (b"PLTE", palette), (b"IDAT", rows.clone()), (b"IEND", Vec::new())])
    };
    let picture = decode(&paletted(9), "palette").unwrap();
    assert_eq!(picture.pixels(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2]);
    assert!(decode(&paletted(768), "palette").is_ok());
    for length in [1, 2, 4, 14, 767, 769, 771, 1024] {
        let error = one_line(&decode(&paletted(length), "palette").unwrap_err());
        let expected = format!("its palette has {length} bytes, expected 3 for each of at most 256 colours");
        assert!(error.starts_with("palette ") && error.contains(&expected), "{error}");
    }
}

#[test]
fn compressed_bombs_take_no_more_memory_than_their_pixels() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let end = || (b"IEND", Vec::new());
    let taken = |bytes: &[u8]| {
        let region = Region::new(ALLOCATOR);
        let decoded = decode(bytes, "bomb").map(|picture| picture.size());
        if let Err(error) = &decoded {
            one_line(error);
        }
        (decoded.ok(), region.change().bytes_allocated)
    };
    // Just within the limit of 100 megapixels, in half a megabyte: the pixels once, and a decoder's buffers.
    let data = zeros(287);
    let bomb = png(&[header(10_000, true), (b"IDAT", data), end()]);
    assert!(bomb.len() < 2 << 20, "{} bytes", bomb.len());
    let (size, bytes) = taken(&bomb);
    assert_eq!(size, Some([10_000, 10_000]));
    assert!(bytes < 320 << 20, "{bytes}");
    // 92 megapixels with alpha in 38 bytes: four bytes each while they are decoded, and no copy of them.
    let (size, bytes) = taken(include_bytes!("../../../fuzz/corpus/image_webp/large_with_alpha"));
    assert_eq!(size, Some([5900, 16376]));
    assert!(bytes < 420 << 20, "{bytes}");
    // Data that goes on long after the pixels, and profiles and texts beside a few pixels.
    let data = zeros(256);
    let texts = |kind, before: &[u8]| {
        let text = [before, &data[..]].concat();
        png(&[header(10, false), (kind, text), (b"IDAT", zeros(1)), end()])
    };
    let bombs = [
        png(&[header(10, false), (b"IDAT", data.clone()), end()]),
        texts(b"iCCP", b"name\0\0"),
        texts(b"zTXt", b"key\0\0"),
        texts(b"iTXt", b"key\0\x01\0\0\0"),
    ];
    for (number, bomb) in bombs.iter().enumerate() {
        let (_, bytes) = taken(bomb);
        assert!(bytes < 48 << 20, "bomb {number}: {bytes} bytes for {}", bomb.len());
    }
}
