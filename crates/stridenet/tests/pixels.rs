//! Decoders and transforms against Pillow, timm and torchvision, on the images of `fixtures/pixels`.
//!
//! Three things are measured apart: what the decoder alone changes (our pixels beside Pillow's), what scaling, cropping and
//! normalising alone change (our tensor of Pillow's pixels beside theirs), and both together. Nothing may differ in a single bit.
//! Run with `--nocapture` to see the figures.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use stridenet::image::{
    self, CropMode, Decoding, Interpolation, Normalisation, Orientation, Picture, Preprocess,
};

#[derive(Deserialize)]
struct References {
    cases: Vec<Case>,
    images: Vec<Reference>,
}

/// A transform of timm or torchvision.
#[derive(Deserialize)]
struct Case {
    by: String,
    input_size: [usize; 2],
    crop_pct: f64,
    crop_mode: CropMode,
    interpolation: Interpolation,
    mean: Vec<f32>,
    std: Vec<f32>,
}

/// A file, and what others made of it. Places are `[start, length]` in `pixels.gz`.
#[derive(Deserialize)]
struct Reference {
    file: String,
    /// Height and width as EXIF says.
    size: [usize; 2],
    /// Pillow's RGB pixels, turned as EXIF says.
    pixels: [usize; 2],
    /// CRC-32 of Pillow's RGB pixels as they are stored.
    without_exif: u32,
    /// CRC-32 of each case's tensor: `f32`, HWC, little-endian.
    tensors: Vec<u32>,
}

impl Case {
    fn preprocess(&self) -> Preprocess {
        let normalisation = Normalisation { mean: self.mean.clone(), std: self.std.clone() };
        Preprocess {
            interpolation: self.interpolation,
            crop_pct: self.crop_pct,
            crop_mode: self.crop_mode,
            ..Preprocess::exact(self.input_size, normalisation)
        }
    }
}

/// How far samples are apart.
#[derive(Debug, Default, Clone, Copy)]
struct Distance {
    images: usize,
    samples: usize,
    differ: usize,
    sum: u64,
    largest: u8,
}

impl Distance {
    /// Adds an image's pixels.
    fn add(&mut self, found: &[u8], expected: &[u8]) {
        assert_eq!(found.len(), expected.len());
        self.images += 1;
        self.samples += found.len();
        for (found, expected) in found.iter().zip(expected) {
            let difference = found.abs_diff(*expected);
            self.differ += usize::from(difference > 0);
            self.sum += u64::from(difference);
            self.largest = self.largest.max(difference);
        }
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/pixels")
}

fn references() -> (References, Vec<u8>) {
    let text = std::fs::read_to_string(folder().join("references.json")).unwrap();
    let mut pixels = Vec::new();
    flate2::read::GzDecoder::new(File::open(folder().join("pixels.gz")).unwrap())
        .read_to_end(&mut pixels)
        .unwrap();
    (serde_json::from_str(&text).unwrap(), pixels)
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// CRC-32 of a picture's tensor, as the references have it.
fn crc_of_tensor(case: &Case, picture: &Picture) -> u32 {
    let preprocess = case.preprocess();
    let mut values = vec![0.0; preprocess.input_size.iter().product::<usize>() * preprocess.channels];
    preprocess.apply(picture, &mut values).unwrap();
    crc(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
}

/// Files of one kind.
fn group(file: &str) -> &'static str {
    let kinds: [(&str, &[&str]); 6] = [
        ("JPEG 4:2:0", &["420", "restarts", "large_420", "tiny", "optimised", "exif"]),
        ("JPEG 4:2:2", &["422"]),
        ("JPEG 4:4:4", &["444"]),
        ("JPEG other", &["440", "411", "rgb"]),
        ("JPEG grey", &["grey"]),
        ("JPEG CMYK", &["cmyk", "ycck"]),
    ];
    match file.rsplit_once('.').unwrap().1 {
        "jpg" => {
            kinds.iter().find(|(_, starts)| starts.iter().any(|start| file.starts_with(start))).unwrap().0
        }
        "png" => "PNG",
        "webp" => "WebP",
        "bmp" => "BMP",
        "gif" => "GIF",
        "tiff" => "TIFF",
        other => panic!("{other}"),
    }
}

#[test]
fn decoders_have_pillow_s_pixels() {
    let (references, pixels) = references();
    assert!(references.images.len() >= 60);
    let mut groups: BTreeMap<&str, Distance> = BTreeMap::new();
    let mut wrong = Vec::new();
    for Reference { file, size, pixels: [start, length], without_exif, .. } in &references.images {
        let picture = image::open(&folder().join(file)).unwrap().with_channels(3);
        assert_eq!(picture.size(), *size, "{file}");
        let expected = &pixels[*start..*start + *length];
        groups.entry(group(file)).or_default().add(picture.pixels(), expected);
        if picture.pixels() != expected {
            wrong.push(file.clone());
        }
        let stored = image::open_with(&folder().join(file), Orientation::Stored).unwrap().with_channels(3);
        if crc(stored.pixels()) != *without_exif {
            wrong.push(format!("{file} as stored"));
        }
    }
    for (group, Distance { images, samples, differ, sum, largest }) in groups {
        let mean = sum as f64 / samples as f64;
        println!(
            "decoder: {group:11} {images:3} images, {differ} of {samples} samples differ, by {mean:.4} levels in the mean \
             and {largest} at most"
        );
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn transforms_of_pillow_s_pixels_have_timm_s_and_torchvision_s_bits() {
    let (references, pixels) = references();
    let mut wrong = Vec::new();
    let mut count = BTreeMap::new();
    for reference in &references.images {
        let Reference { file, size: [height, width], pixels: [start, length], tensors, .. } = reference;
        let picture = Picture::new(*height, *width, 3, &pixels[*start..*start + *length]).unwrap();
        assert_eq!(tensors.len(), references.cases.len());
        for (number, (case, &expected)) in references.cases.iter().zip(tensors).enumerate() {
            // The pixels kept here have no alpha.
            if matches!(case.mean.len(), 2 | 4) {
                continue;
            }
            *count.entry(&case.by).or_insert(0) += 1;
            if crc_of_tensor(case, &picture) != expected {
                wrong.push(format!("{file}, case {number}"));
            }
        }
    }
    println!("transform: {count:?} tensors, {} of them not to the bit", wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn tensors_of_files_have_timm_s_and_torchvision_s_bits() {
    let (references, _) = references();
    let mut wrong = Vec::new();
    let mut count = 0;
    for Reference { file, tensors, .. } in &references.images {
        // Grey files become grey inputs without the detour over RGB, which changes nothing.
        let open = |channels| {
            image::open_with(&folder().join(file), Decoding::of(channels, Orientation::Exif)).unwrap()
        };
        let [opaque, picture] = [open(3), open(4)];
        for (number, (case, &expected)) in references.cases.iter().zip(tensors).enumerate() {
            let picture = if matches!(case.mean.len(), 2 | 4) { &picture } else { &opaque };
            count += 1;
            if crc_of_tensor(case, picture) != expected {
                wrong.push(format!("{file}, case {number}"));
            }
        }
    }
    println!("both: {count} tensors, {} of them not to the bit", wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
}
