//! IDX files, the format of MNIST: a magic number, the sizes as big-endian 32-bit numbers, then bytes; gzip or not.

use super::dataset::Packed;
use super::{DataError, Dataset};
use crate::file::FileError;
use flate2::bufread::MultiGzDecoder;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// More than this is not kept in memory.
const LARGEST: u64 = 4 << 30;
/// Deflate cannot compress better.
const DEFLATE_RATIO: u64 = 1032;

/// One split of an IDX folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Split {
    Train,
    Test,
}

impl Split {
    fn prefixes(self) -> &'static [&'static str] {
        match self {
            Split::Train => &["train"],
            Split::Test => &["t10k", "test"],
        }
    }

    fn title(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Test => "test",
        }
    }
}

/// What an IDX file of a data set holds.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Images,
    Labels,
}

impl Kind {
    fn stem(self) -> &'static str {
        match self {
            Kind::Images => "images-idx3-ubyte",
            Kind::Labels => "labels-idx1-ubyte",
        }
    }

    fn dimensions(self) -> usize {
        match self {
            Kind::Images => 3,
            Kind::Labels => 1,
        }
    }
}

/// Whether the folder has any file with a usual IDX name.
pub(super) fn is_idx(folder: &Path) -> bool {
    [Split::Train, Split::Test].iter().any(|&split| has_split(folder, split))
}

/// Whether the folder has at least one file of the split.
pub(super) fn has_split(folder: &Path, split: Split) -> bool {
    find(folder, split, Kind::Images).is_some() || find(folder, split, Kind::Labels).is_some()
}

fn find(folder: &Path, split: Split, kind: Kind) -> Option<PathBuf> {
    let stems =
        [kind.stem().to_string(), kind.stem().replacen('-', ".", 2), kind.stem().replacen("-idx", ".idx", 1)];
    split
        .prefixes()
        .iter()
        .flat_map(|prefix| stems.iter().map(move |stem| format!("{prefix}-{stem}")))
        .flat_map(|name| [name.clone(), format!("{name}.gz")])
        .map(|name| folder.join(name))
        .find(|path| path.is_file())
}

/// Opens a split. `classes` gives the names if they are known.
pub(super) fn open_split(
    folder: &Path,
    split: Split,
    classes: Option<Vec<String>>,
) -> Result<Dataset, DataError> {
    let (images, labels) = match (find(folder, split, Kind::Images), find(folder, split, Kind::Labels)) {
        (Some(images), Some(labels)) => (images, labels),
        (Some(_), None) => return Err(partner(folder, split, Kind::Images, Kind::Labels)),
        (None, _) => return Err(partner(folder, split, Kind::Labels, Kind::Images)),
    };
    let labels = read(&labels, Kind::Labels)?;
    let images = packed(read(&images, Kind::Images)?);
    let name = format!("{}/{}", folder.display(), split.title());
    assemble(&name, split.title(), Arc::new(images), labels.data, classes)
}

fn partner(folder: &Path, split: Split, found: Kind, missing: Kind) -> DataError {
    let name = |kind: Kind| format!("{}-{}", split.prefixes()[0], kind.stem());
    DataError::IdxPartner { folder: folder.into(), found: name(found), missing: name(missing) }
}

/// The names of the classes: the lines of `labels.txt` or `label_names.txt`, or else `0`, `1`, … up to the largest label
/// of the training split.
pub(super) fn class_names(folder: &Path) -> Result<Option<Vec<String>>, DataError> {
    for file in ["labels.txt", "label_names.txt"] {
        let path = folder.join(file);
        if path.is_file() {
            return read_names(&path).map(Some);
        }
    }
    let Some(labels) = find(folder, Split::Train, Kind::Labels) else { return Ok(None) };
    Ok(Some(numbered(&read(&labels, Kind::Labels)?.data)))
}

fn read_names(path: &Path) -> Result<Vec<String>, DataError> {
    let wrong = |reason: String| DataError::LabelNames { path: path.into(), reason };
    let mut text = String::new();
    let file = File::open(path).map_err(|source| FileError::read(path, source))?;
    file.take(1 << 20).read_to_string(&mut text).map_err(|error| wrong(error.to_string()))?;
    let names: Vec<String> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect();
    if names.is_empty() {
        return Err(wrong("the file has no names".into()));
    }
    match names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
        Some((_, twice)) => Err(wrong(format!("{twice} occurs twice"))),
        None => Ok(names),
    }
}

fn numbered(labels: &[u8]) -> Vec<String> {
    let largest = labels.iter().copied().max().unwrap_or(0);
    (0..=largest).map(|label| label.to_string()).collect()
}

/// Labels and pictures to a data set. `place` names it in errors, `title` its images.
pub(super) fn assemble(
    place: &str,
    title: &str,
    images: Arc<Packed>,
    labels: Vec<u8>,
    classes: Option<Vec<String>>,
) -> Result<Dataset, DataError> {
    let count = images.pixels.len() / (images.height * images.width);
    if count != labels.len() {
        return Err(DataError::IdxCount { name: place.into(), images: count, labels: labels.len() });
    }
    let classes = classes.unwrap_or_else(|| numbered(&labels));
    let labels: Vec<usize> = labels.into_iter().map(usize::from).collect();
    if let Some(at) = labels.iter().position(|&label| label >= classes.len()) {
        let name = format!("{place}[{at}]");
        return Err(DataError::LabelRange { name, label: labels[at], classes: classes.len() });
    }
    Ok(Dataset::packed(title, classes, labels, images))
}

/// The pictures and labels of one split out of two gzip-compressed IDX files in memory.
pub(super) fn decode_pair(name: &str, images: &[u8], labels: &[u8]) -> Result<(Packed, Vec<u8>), DataError> {
    let images = parse(images, images.len() as u64, name, Kind::Images)?;
    let labels = parse(labels, labels.len() as u64, name, Kind::Labels)?;
    Ok((packed(images), labels.data))
}

struct Idx {
    sizes: Vec<usize>,
    data: Vec<u8>,
}

fn packed(images: Idx) -> Packed {
    Packed { height: images.sizes[1], width: images.sizes[2], pixels: images.data }
}

fn read(path: &Path, kind: Kind) -> Result<Idx, DataError> {
    let failed = |source| FileError::read(path, source);
    let file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    parse(BufReader::new(file), length, &path.display().to_string(), kind)
}

/// Parses `length` bytes, decompressing them if they begin as gzip does.
fn parse(mut bytes: impl BufRead, length: u64, name: &str, kind: Kind) -> Result<Idx, DataError> {
    let start = bytes.fill_buf().map_err(|source| FileError::read(name, source))?;
    if start.starts_with(&[0x1f, 0x8b]) {
        parse_plain(MultiGzDecoder::new(bytes), length.saturating_mul(DEFLATE_RATIO), name, kind)
    } else {
        parse_plain(bytes, length, name, kind)
    }
}

/// Parses decompressed bytes, of which there are at most `available`.
fn parse_plain(mut bytes: impl Read, available: u64, name: &str, kind: Kind) -> Result<Idx, DataError> {
    let header_length = 4 + 4 * kind.dimensions();
    let mut header = Vec::new();
    read_up_to(&mut bytes, header_length as u64, &mut header, name, header_length as u64)?;
    let mut words = header
        .chunks_exact(4)
        .map(|word| word.iter().fold(0u32, |number, &byte| number << 8 | u32::from(byte)));
    // The third byte is the type (8: unsigned bytes), the fourth the number of dimensions.
    let expected = 0x0800 | kind.dimensions() as u32;
    match words.next() {
        Some(found) if found != expected => {
            let what = match kind {
                Kind::Images => "images",
                Kind::Labels => "labels",
            };
            return Err(DataError::IdxMagic { name: name.into(), found, expected, what });
        }
        _ => {}
    }
    let truncated =
        |found, expected| DataError::IdxTruncated { name: name.into(), found: found as u64, expected };
    if header.len() < header_length {
        return Err(truncated(header.len(), header_length as u64));
    }
    let sizes: Vec<usize> = words.map(|size| size as usize).collect();
    let product = sizes.iter().try_fold(1u64, |product, &size| product.checked_mul(size as u64));
    let Some(total) = product.filter(|&total| total > 0 && total <= LARGEST) else {
        return Err(DataError::IdxSizes { name: name.into(), sizes });
    };
    let expected = total + header_length as u64;
    // Reserved is what the file can really hold, not what it declares.
    let mut data = Vec::with_capacity(total.min(available) as usize);
    read_up_to(&mut bytes, total, &mut data, name, expected)?;
    if (data.len() as u64) < total {
        return Err(truncated(data.len() + header_length, expected));
    }
    // Reading to the very end also checks gzip's checksum.
    let mut more = Vec::new();
    read_up_to(&mut bytes, 1, &mut more, name, expected)?;
    if !more.is_empty() {
        return Err(DataError::IdxTrailing { name: name.into(), expected });
    }
    Ok(Idx { sizes, data })
}

/// Appends `count` bytes to `data`, or fewer at the end.
fn read_up_to(
    bytes: &mut impl Read,
    count: u64,
    data: &mut Vec<u8>,
    name: &str,
    expected: u64,
) -> Result<(), DataError> {
    bytes.by_ref().take(count).read_to_end(data).map(|_| ()).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => {
            DataError::IdxTruncated { name: name.into(), found: data.len() as u64, expected }
        }
        ErrorKind::InvalidData | ErrorKind::InvalidInput => {
            DataError::IdxDamaged { name: name.into(), reason: error.to_string() }
        }
        _ => FileError::read(name, error).into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::{gzip, idx_images, idx_labels};
    use crate::data::{OpenOptions, open, open_evaluation};
    use std::fs;

    fn parse_images(bytes: &[u8]) -> Result<Idx, DataError> {
        parse(bytes, bytes.len() as u64, "images", Kind::Images)
    }

    fn message(bytes: &[u8]) -> String {
        parse_images(bytes).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn plain_and_compressed_files_hold_the_same() {
        let bytes = idx_images(3, 2, 4);
        for bytes in [bytes.clone(), gzip(&bytes)] {
            let idx = parse_images(&bytes).unwrap();
            assert_eq!(idx.sizes, [3, 2, 4]);
            assert_eq!(idx.data, (0..24).collect::<Vec<u8>>());
        }
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = idx_images(3, 2, 4);
        for bytes in [bytes.clone(), gzip(&bytes)] {
            for length in 0..bytes.len() {
                let error = message(&bytes[..length]);
                assert!(error.contains("truncated"), "{length}: {error}");
            }
        }
        assert!(message(&bytes[..20]).starts_with("images is truncated: 20 of 40 bytes"));
    }

    #[test]
    fn wrong_contents_are_told_apart() {
        let bytes = idx_images(3, 2, 4);
        let changed = |at: usize, value: &[u8]| {
            let mut changed = bytes.clone();
            changed[at..at + value.len()].copy_from_slice(value);
            changed
        };
        let error = message(&idx_labels(&[0; 20]));
        assert!(error.starts_with("images begins with 0x00000801, expected 0x00000803 (images"), "{error}");
        assert!(message(b"\x89PNG\r\n\x1a\n and more bytes").contains("0x89504e47"));
        assert!(message(&changed(8, &[0; 4])).contains("declares the sizes [3, 0, 4]"));
        assert!(message(&changed(4, &[0xff; 12])).contains("4294967295, 4294967295, 4294967295"));
        // 2 GiB are allowed; the 24 bytes that are there do not fill them.
        assert!(message(&changed(4, &[0x10, 0, 0, 0])).contains("is truncated: 40 of 2147483664 bytes"));
        let trailing = [&bytes[..], &[0]].concat();
        assert!(message(&trailing).contains("goes on after the 40 bytes"));
        assert!(message(&gzip(&trailing)).contains("goes on after the 40 bytes"));
        let mut damaged = gzip(&bytes);
        let checksum = damaged.len() - 8;
        damaged[checksum] ^= 1;
        assert!(message(&damaged).starts_with("images cannot be decompressed: "), "{}", message(&damaged));
        assert!(message(&[&gzip(&bytes)[..], b"garbage"].concat()).starts_with("images "));
    }

    fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        folder
    }

    fn failure(files: &[(&str, Vec<u8>)]) -> String {
        open(folder(files).path(), &OpenOptions::default()).unwrap_err().to_string()
    }

    const TRAIN_IMAGES: &str = "train-images-idx3-ubyte";
    const TRAIN_LABELS: &str = "train-labels-idx1-ubyte";

    #[test]
    fn the_usual_names_are_found() {
        let labels = [0, 1, 1, 0, 2, 2];
        for (images_name, labels_name, compressed) in [
            (TRAIN_IMAGES, TRAIN_LABELS, false),
            ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", true),
            ("train-images.idx3-ubyte", "train-labels.idx1-ubyte", false),
        ] {
            let pack = |bytes: Vec<u8>| if compressed { gzip(&bytes) } else { bytes };
            let folder = folder(&[
                (images_name, pack(idx_images(6, 2, 2))),
                (labels_name, pack(idx_labels(&labels))),
                ("t10k-images.idx3-ubyte.gz", gzip(&idx_images(2, 2, 2))),
                ("t10k-labels-idx1-ubyte", idx_labels(&[1, 0])),
            ]);
            let splits = open(folder.path(), &OpenOptions::default()).unwrap();
            assert_eq!(splits.train.classes(), ["0", "1", "2"]);
            assert_eq!(splits.train.labels(), [0, 1, 1, 0, 2, 2]);
            assert_eq!(splits.train.picture(1).unwrap().pixels(), [4, 5, 6, 7]);
            assert_eq!((splits.val.len(), splits.val.classes()), (2, splits.train.classes()));
            assert_eq!(splits.val.name(1), "test[1]");
            let evaluation = open_evaluation(folder.path(), &OpenOptions::default()).unwrap();
            assert_eq!((evaluation.labels(), evaluation.classes().len()), (&[1, 0][..], 3));
        }
    }

    #[test]
    fn without_a_test_split_some_images_are_held_out() {
        let labels: Vec<u8> = (0..40).map(|index| index % 2).collect();
        let folder = folder(&[(TRAIN_IMAGES, idx_images(40, 1, 1)), (TRAIN_LABELS, idx_labels(&labels))]);
        let splits = open(folder.path(), &OpenOptions::default()).unwrap();
        assert_eq!(splits.val.class_counts(), [2, 2]);
        assert_eq!(splits.train.class_counts(), [18, 18]);
        // A picture's one pixel is its row.
        let rows = |dataset: &Dataset| -> Vec<u8> {
            (0..dataset.len()).map(|index| dataset.picture(index).unwrap().pixels()[0]).collect()
        };
        let mut all = [rows(&splits.train), rows(&splits.val)].concat();
        all.sort();
        assert_eq!(all, (0..40).collect::<Vec<u8>>());
        for (at, row) in rows(&splits.val).into_iter().enumerate() {
            assert_eq!(splits.val.label(at), usize::from(row % 2));
            assert_eq!(splits.val.name(at), format!("train[{row}]"));
        }
    }

    #[test]
    fn names_of_the_classes_are_read() {
        let files = |names: &str| {
            [
                (TRAIN_IMAGES, idx_images(4, 1, 1)),
                (TRAIN_LABELS, idx_labels(&[0, 1, 0, 1])),
                ("labels.txt", names.as_bytes().to_vec()),
            ]
        };
        let named = folder(&files("shirt\r\n\nankle boot\n"));
        let splits = open(named.path(), &OpenOptions::default()).unwrap();
        assert_eq!(splits.train.classes(), ["shirt", "ankle boot"]);
        assert!(failure(&files("a\na\n")).contains("labels.txt: a occurs twice"));
        assert!(failure(&files("\n")).contains("labels.txt: the file has no names"));
        assert!(failure(&files("a\n")).contains("[1] has the label 1, expected labels from 0 to 0"));
        assert!(failure(&files("a\nb\nc\n")).contains("no image with the label 2 of 3 classes"));
    }

    #[test]
    fn unsuitable_pairs_are_refused() {
        let images = |count| (TRAIN_IMAGES, idx_images(count, 1, 1));
        let labels = |labels: &[u8]| (TRAIN_LABELS, idx_labels(labels));
        assert!(failure(&[images(4), labels(&[0, 1, 1])]).contains("has 4 images but 3 labels"));
        assert!(
            failure(&[images(4), labels(&[0, 0, 2, 2])]).contains("no image with the label 1 of 3 classes")
        );
        assert!(failure(&[images(2), labels(&[0, 0])]).contains("has the one class 0"));
        assert!(
            failure(&[images(4)]).contains("has train-images-idx3-ubyte but not train-labels-idx1-ubyte")
        );
        assert!(
            failure(&[labels(&[0])]).contains("has train-labels-idx1-ubyte but not train-images-idx3-ubyte")
        );
        let test =
            [("t10k-images-idx3-ubyte", idx_images(1, 1, 1)), ("t10k-labels-idx1-ubyte", idx_labels(&[7]))];
        assert!(failure(&test).contains("has no training split"));
        let [test_images, test_labels] = test;
        let error = failure(&[images(4), labels(&[0, 1, 0, 1]), test_images, test_labels]);
        assert!(error.contains("test[0] has the label 7, expected labels from 0 to 1"), "{error}");
    }
}
