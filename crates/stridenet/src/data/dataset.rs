//! Labelled images, in memory or on disk.

use super::{DataError, OpenOptions};
use crate::image::{self, Decoding, Picture};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Labelled images. Pictures of IDX files live in memory; pictures of folders are decoded when asked for, and kept as
/// `u8` up to a budget. What [`picture`](Dataset::picture) returns never depends on that.
#[derive(Debug)]
pub struct Dataset {
    name: String,
    classes: Vec<String>,
    labels: Vec<usize>,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Packed { images: Arc<Packed>, rows: Vec<usize> },
    Files { files: Vec<ImageFile>, reading: Reading },
}

/// Grey pictures of one size in one buffer.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) height: usize,
    pub(super) width: usize,
    /// Picture after picture, `[N, height, width]`.
    pub(super) pixels: Vec<u8>,
}

#[derive(Debug)]
struct ImageFile {
    path: PathBuf,
    decoded: OnceLock<Picture<'static>>,
}

/// How the image files of a data set are read, in all its splits.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    budget: Arc<Budget>,
    decoding: Decoding,
}

impl Reading {
    pub(super) fn new(options: &OpenOptions) -> Self {
        let budget = Arc::new(Budget(AtomicU64::new(options.cache_bytes)));
        Reading { budget, decoding: options.decoding }
    }
}

/// How many bytes of decoded pictures may still be kept.
#[derive(Debug)]
struct Budget(AtomicU64);

impl Budget {
    fn take(&self, bytes: u64) -> bool {
        let rest = |left: u64| left.checked_sub(bytes);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Dataset {
    /// Pictures in memory, with one label each below `classes.len()`.
    pub(super) fn packed(name: &str, classes: Vec<String>, labels: Vec<usize>, images: Arc<Packed>) -> Self {
        let rows = (0..labels.len()).collect();
        Dataset { name: name.into(), classes, labels, source: Source::Packed { images, rows } }
    }

    /// Image files, each with its label below `classes.len()`.
    pub(super) fn files(
        name: String,
        classes: Vec<String>,
        images: Vec<(PathBuf, usize)>,
        reading: Reading,
    ) -> Self {
        let (files, labels) = images
            .into_iter()
            .map(|(path, label)| (ImageFile { path, decoded: OnceLock::new() }, label))
            .unzip();
        Dataset { name, classes, labels, source: Source::Files { files, reading } }
    }

    /// What the data set is called in messages: the folder, or the split of an IDX folder.
    pub fn title(&self) -> &str {
        &self.name
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Names of the classes; a label is an index into them.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The label of every image.
    pub fn labels(&self) -> &[usize] {
        &self.labels
    }

    /// The label of image `index`, which must be below [`len`](Dataset::len).
    pub fn label(&self, index: usize) -> usize {
        self.labels[index]
    }

    /// What image `index` is called: its path, or `train[17]` for the row of an IDX file. `index` must be below
    /// [`len`](Dataset::len).
    pub fn name(&self, index: usize) -> String {
        match &self.source {
            Source::Packed { rows, .. } => format!("{}[{}]", self.name, rows[index]),
            Source::Files { files, .. } => files[index].path.display().to_string(),
        }
    }

    /// The path of image `index` if it is a file of its own. `index` must be below [`len`](Dataset::len).
    pub fn path(&self, index: usize) -> Option<&std::path::Path> {
        match &self.source {
            Source::Packed { .. } => None,
            Source::Files { files, .. } => Some(&files[index].path),
        }
    }

    /// The size all pictures share, if it is known without decoding: that of IDX files.
    pub fn picture_size(&self) -> Option<[usize; 2]> {
        match &self.source {
            Source::Packed { images, .. } => Some([images.height, images.width]),
            Source::Files { .. } => None,
        }
    }

    /// The channels a network for these pictures should have: 1 for IDX files, 3 for image files.
    pub fn channels(&self) -> usize {
        match &self.source {
            Source::Packed { .. } => 1,
            Source::Files { .. } => 3,
        }
    }

    /// The decoded picture of image `index`, which must be below [`len`](Dataset::len).
    ///
    /// # Errors
    /// When the image's file cannot be read or decoded.
    pub fn picture(&self, index: usize) -> Result<Picture<'_>, DataError> {
        match &self.source {
            Source::Packed { images, rows } => {
                let size = images.height * images.width;
                let pixels = &images.pixels[rows[index] * size..][..size];
                Ok(Picture::new(images.height, images.width, 1, pixels)?)
            }
            Source::Files { files, reading } => Ok(files[index].picture(reading)?),
        }
    }

    /// Checks that the classes are those of a model, in the same order. Names that only count (`0`, `1`, `2`, …), as IDX
    /// files and models without names have them, match any names. `place` names the data in the error.
    ///
    /// # Errors
    /// When there are more or fewer classes, or a class has another name.
    pub fn check_classes(&self, place: &str, model: &[String]) -> Result<(), DataError> {
        let data = &self.classes;
        if model.len() != data.len() {
            let (name, found, expected) = (place.to_owned(), data.len(), model.len());
            return Err(DataError::ClassCount { name, found, expected });
        }
        let counting =
            |names: &[String]| names.iter().enumerate().all(|(index, name)| *name == index.to_string());
        if counting(model) || counting(data) {
            return Ok(());
        }
        match (0..data.len()).find(|&class| model[class] != data[class]) {
            None => Ok(()),
            Some(class) => {
                let (found, expected) = (data[class].clone(), model[class].clone());
                Err(DataError::ClassName { name: place.to_owned(), class, found, expected })
            }
        }
    }

    /// The number of images of each class.
    pub fn class_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes.len()];
        self.labels.iter().for_each(|&label| counts[label] += 1);
        counts
    }

    /// Splits the images in two: those for which `second` says so, and the others. Order is kept.
    pub(super) fn split(self, second: impl Fn(usize) -> bool) -> (Dataset, Dataset) {
        let Dataset { name, classes, labels, source } = self;
        let (sources, labels) = match source {
            Source::Packed { images, rows } => {
                let rows = divide(rows, &second);
                let packed = |rows| Source::Packed { images: images.clone(), rows };
                ((packed(rows.0), packed(rows.1)), divide(labels, &second))
            }
            Source::Files { files, reading } => {
                let files = divide(files, &second);
                let of = |files| Source::Files { files, reading: reading.clone() };
                ((of(files.0), of(files.1)), divide(labels, &second))
            }
        };
        (
            Dataset { name: name.clone(), classes: classes.clone(), labels: labels.0, source: sources.0 },
            Dataset { name, classes, labels: labels.1, source: sources.1 },
        )
    }

    /// Removes the images for which `keep` is false.
    pub(super) fn retain(&mut self, keep: impl Fn(usize) -> bool) {
        fn filter<T>(items: &mut Vec<T>, keep: &impl Fn(usize) -> bool) {
            let mut index = 0;
            items.retain(|_| {
                index += 1;
                keep(index - 1)
            });
        }
        filter(&mut self.labels, &keep);
        match &mut self.source {
            Source::Packed { rows, .. } => filter(rows, &keep),
            Source::Files { files, .. } => filter(files, &keep),
        }
    }
}

fn divide<T>(items: Vec<T>, second: &impl Fn(usize) -> bool) -> (Vec<T>, Vec<T>) {
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for (index, item) in items.into_iter().enumerate() {
        if second(index) { right.push(item) } else { left.push(item) }
    }
    (left, right)
}

impl ImageFile {
    fn picture(&self, reading: &Reading) -> Result<Picture<'_>, image::ImageError> {
        if let Some(kept) = self.decoded.get() {
            return Ok(kept.view());
        }
        let Reading { budget, decoding } = reading;
        let picture = image::open_with(&self.path, *decoding)?;
        let bytes = picture.pixels().len();
        if !budget.take(bytes as u64) {
            return Ok(picture);
        }
        let mut stored = false;
        let kept = self.decoded.get_or_init(|| {
            stored = true;
            picture
        });
        if !stored {
            // Another thread decoded the same image meanwhile and paid for it.
            budget.give_back(bytes as u64);
        }
        Ok(kept.view())
    }
}
