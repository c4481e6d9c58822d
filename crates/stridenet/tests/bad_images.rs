//! Files that are cut off, damaged, or lie about their size: a one-line error, no panic, and no memory for what is only declared.

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
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
