//! Small data sets for the tests.

use super::Dataset;
use super::dataset::Packed;
use crate::image::Picture;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// An IDX file of `count` images whose bytes count up from 0.
pub(super) fn idx_images(count: u32, height: u32, width: u32) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, 3];
    [count, height, width].iter().for_each(|size| bytes.extend(size.to_be_bytes()));
    bytes.extend((0..count * height * width).map(|value| value as u8));
    bytes
}

/// An IDX file of labels.
pub(super) fn idx_labels(labels: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, 1];
    bytes.extend((labels.len() as u32).to_be_bytes());
    bytes.extend(labels);
    bytes
}

/// The bytes, compressed.
pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Grey pictures of the given width in memory, labelled 0, 1, 0, 1, …
pub(super) fn packed_pictures<const SIZE: usize>(width: usize, pictures: &[[u8; SIZE]]) -> Dataset {
    let images = Packed { height: SIZE / width, width, pixels: pictures.concat() };
    let labels = (0..pictures.len()).map(|index| index % 2).collect();
    Dataset::packed("train", vec!["even".into(), "odd".into()], labels, Arc::new(images))
}

/// `count` grey pictures of 4x4 pixels whose samples count up from picture to picture.
pub(super) fn numbered_pictures(count: usize) -> Dataset {
    let pictures: Vec<[u8; 16]> =
        (0..count).map(|index| std::array::from_fn(|at| (16 * index + at) as u8)).collect();
    packed_pictures(4, &pictures)
}

/// A picture whose samples differ.
pub(super) fn gradient(height: usize, width: usize, channels: usize) -> Picture<'static> {
    let pixels: Vec<u8> = (0..height * width * channels).map(|at| (at * 7 + 1) as u8).collect();
    Picture::new(height, width, channels, pixels).unwrap()
}

/// Writes `0.png`, `1.png`, … of differing content into a folder, which is made if needed.
pub(super) fn add_pictures(folder: &Path, count: usize) {
    std::fs::create_dir_all(folder).unwrap();
    for index in 0..count {
        let pixel = |x, y| ::image::Rgb([x as u8 * 30, y as u8 * 30 + index as u8, index as u8 * 10]);
        ::image::RgbImage::from_fn(8, 6, pixel).save(folder.join(format!("{index}.png"))).unwrap();
    }
}

/// A temporary folder with `count` pictures in each class folder.
pub(super) fn picture_folder(classes: &[&str], count: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    classes.iter().for_each(|class| add_pictures(&folder.path().join(class), count));
    folder
}
