//! What can be wrong with a data set.

use crate::file::FileError;
use crate::image::ImageError;
use std::path::PathBuf;
use thiserror::Error;

/// A data set cannot be opened, or a batch cannot be made. The message is one line.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataError {
    /// An image cannot be decoded.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A file or folder cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A decoded image cannot be brought to the input's shape.
    #[error("cannot prepare {name}: {source}")]
    Prepare {
        /// The image.
        name: String,
        /// Why.
        source: ImageError,
    },
    /// There is no such folder.
    #[error("{} does not exist; name a folder of class folders, a folder of IDX files, or the word `sample`", path.display())]
    MissingFolder {
        /// The path asked for.
        path: PathBuf,
    },
    /// The path is a file.
    #[error("{} is not a folder; name the folder that holds the class folders or the IDX files", path.display())]
    NotAFolder {
        /// The path asked for.
        path: PathBuf,
    },
    /// Nothing in the folder looks like a data set.
    #[error(
        "{} holds no data set: expected a folder of images for each class (optionally under train/ and val/), \
         or IDX files such as train-images-idx3-ubyte.gz", path.display()
    )]
    NothingFound {
        /// The folder.
        path: PathBuf,
    },
    /// Images lie beside each other instead of in class folders.
    #[error("{} holds images but no class folders; put the images into one folder for each class", path.display())]
    LooseImages {
        /// The folder.
        path: PathBuf,
    },
    /// There is nothing to tell apart.
    #[error("{name} has the one class {class}; training needs at least two classes")]
    OneClass {
        /// The data set.
        name: String,
        /// Its only class.
        class: String,
    },
    /// A class folder without images.
    #[error("the class folder {} holds no images; fill it or remove it", path.display())]
    EmptyClass {
        /// The class folder.
        path: PathBuf,
    },
    /// All images of a class were skipped.
    #[error("no image of the class {class} in {name} can be decoded; replace the images or remove the class")]
    ClassLost {
        /// The data set.
        name: String,
        /// The class.
        class: String,
    },
    /// There is an evaluation split and nothing to train on.
    #[error("{} has no training split; add train/, or train-images-idx3-ubyte and train-labels-idx1-ubyte", path.display())]
    NoTrain {
        /// The folder.
        path: PathBuf,
    },
    /// The two splits do not have the same class folders.
    #[error(
        "{} and {} have different classes: only the first has [{}], only the second has [{}]; make them the same",
        train.display(), val.display(), only_train.join(", "), only_val.join(", ")
    )]
    ClassesDiffer {
        /// The training split.
        train: PathBuf,
        /// The evaluation split.
        val: PathBuf,
        /// Classes of the training split alone.
        only_train: Vec<String>,
        /// Classes of the evaluation split alone.
        only_val: Vec<String>,
    },
    /// The data set has more or fewer classes than the model.
    #[error(
        "the model has {expected} classes, {name} has {found}; evaluate on the data it was trained for, or train on {name}"
    )]
    ClassCount {
        /// The data set.
        name: String,
        /// Its number of classes.
        found: usize,
        /// The model's.
        expected: usize,
    },
    /// A class has another name in the data set than in the model.
    #[error(
        "class {class} of the model is {expected:?}, of {name} it is {found:?}; evaluate on the data it was trained for"
    )]
    ClassName {
        /// The data set.
        name: String,
        /// The class's number.
        class: usize,
        /// Its name in the data set.
        found: String,
        /// Its name in the model.
        expected: String,
    },
    /// A class has too few images to hold one out.
    #[error(
        "the class {class} of {name} has one image, too few to hold one out for evaluation; add images or a val/ folder"
    )]
    TooFewToSplit {
        /// The data set.
        name: String,
        /// The class.
        class: String,
    },
    /// The number that begins an IDX file is another one.
    #[error(
        "{name} begins with {found:#010x}, expected {expected:#010x} ({what}, unsigned bytes); check that it is the right file"
    )]
    IdxMagic {
        /// The file.
        name: String,
        /// The number found.
        found: u32,
        /// The number expected.
        expected: u32,
        /// What the file should hold.
        what: &'static str,
    },
    /// An IDX file ends early.
    #[error("{name} is truncated: {found} of {expected} bytes; download it again")]
    IdxTruncated {
        /// The file.
        name: String,
        /// Bytes found, decompressed.
        found: u64,
        /// Bytes that the header promises, with the header.
        expected: u64,
    },
    /// An IDX file goes on after its end.
    #[error("{name} goes on after the {expected} bytes its header declares; download it again")]
    IdxTrailing {
        /// The file.
        name: String,
        /// Bytes that the header promises, with the header.
        expected: u64,
    },
    /// The sizes in an IDX file's header are impossible.
    #[error("{name} declares the sizes {sizes:?}; expected sizes above 0 and at most 4 GiB in all")]
    IdxSizes {
        /// The file.
        name: String,
        /// The sizes declared.
        sizes: Vec<usize>,
    },
    /// An IDX file's gzip data is damaged.
    #[error("{name} cannot be decompressed: {reason}; download it again")]
    IdxDamaged {
        /// The file.
        name: String,
        /// What the decompressor met.
        reason: String,
    },
    /// Only one of the two files of a split is there.
    #[error("{} has {found} but not {missing} (or with .gz); put both into the folder", folder.display())]
    IdxPartner {
        /// The folder.
        folder: PathBuf,
        /// What is there.
        found: String,
        /// What is missing.
        missing: String,
    },
    /// As many labels as images are needed.
    #[error("{name} has {images} images but {labels} labels; expected one label for each image")]
    IdxCount {
        /// The folder and split.
        name: String,
        /// Number of images.
        images: usize,
        /// Number of labels.
        labels: usize,
    },
    /// A label is larger than the classes allow.
    #[error("{name} has the label {label}, expected labels from 0 to {}; correct the labels or the list of label names", classes - 1)]
    LabelRange {
        /// The image.
        name: String,
        /// Its label.
        label: usize,
        /// Number of classes.
        classes: usize,
    },
    /// A label between 0 and the largest never occurs.
    #[error(
        "{name} has no image with the label {label} of {classes} classes; number the classes from 0 without gaps"
    )]
    LabelGap {
        /// The data set.
        name: String,
        /// The label without images.
        label: usize,
        /// Number of classes.
        classes: usize,
    },
    /// The list of label names is unusable.
    #[error("{}: {reason}; write one name a line, each once", path.display())]
    LabelNames {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An option is out of its range.
    #[error("{what} is {found}, expected {expected}")]
    Setting {
        /// The option's name.
        what: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// A loading thread could not start or stopped before its work was done.
    #[error(
        "a loading thread failed: {reason}; use fewer workers, and report the images at hand if it happens again"
    )]
    Worker {
        /// Why.
        reason: String,
    },
}
