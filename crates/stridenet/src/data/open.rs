//! From a word or a folder to data sets.

use super::dataset::Reading;
use super::folder::{ClassFolders, find_split, list_classes};
use super::idx::{self, Split};
use super::{DataError, Dataset, sample};
use crate::image::Decoding;
use crate::random::{Use, generator};
use rand::seq::SliceRandom;
use std::path::{Path, PathBuf};

/// The word that means the embedded sample; a folder of that name is `./sample`.
const SAMPLE: &str = "sample";
const TRAIN: [&str; 1] = ["train"];
const EVALUATION: [&str; 4] = ["val", "validation", "valid", "test"];

/// How a data set is opened.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenOptions {
    /// The share of each class that is held out for evaluation where the data has no such split; above 0, below 1.
    pub val_fraction: f64,
    /// Chooses which images are held out.
    pub seed: u64,
    /// How many bytes of decoded image files may be kept in memory.
    pub cache_bytes: u64,
    /// Which way up image files come.
    pub decoding: Decoding,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions { val_fraction: 0.1, seed: 0, cache_bytes: 1 << 30, decoding: Decoding::default() }
    }
}

/// A data set to train on and one to evaluate on, with the same classes.
#[derive(Debug)]
pub struct Splits {
    /// Images to train on.
    pub train: Dataset,
    /// Images to evaluate on.
    pub val: Dataset,
}

/// Opens the data for training: the word `sample`, a folder of IDX files, or a folder of class folders, optionally
/// under `train/` and one of `val/`, `validation/`, `valid/`, `test/`. Without an evaluation split, a share of each class
/// is held out.
///
/// Image files are only listed here; [`Dataset::verify`] decodes them all, so that a damaged one is found before an
/// epoch is under way.
///
/// # Errors
/// When the folder is missing, holds no data set, has fewer than two classes or a class without images, when the
/// splits' classes differ, or an IDX file is damaged.
pub fn open(spec: impl AsRef<Path>, options: &OpenOptions) -> Result<Splits, DataError> {
    let root = spec.as_ref();
    if root == Path::new(SAMPLE) {
        return Ok(Splits { train: sample::train()?, val: sample::test()? });
    }
    let (train, val) = match layout(root)? {
        Layout::Idx => {
            let classes = idx::class_names(root)?;
            if !idx::has_split(root, Split::Train) {
                return Err(DataError::NoTrain { path: root.into() });
            }
            let train = idx::open_split(root, Split::Train, classes.clone())?;
            let val = match idx::has_split(root, Split::Test) {
                true => Some(idx::open_split(root, Split::Test, classes)?),
                false => None,
            };
            check_labels(&train)?;
            (train, val)
        }
        Layout::Splits { train: None, .. } => return Err(DataError::NoTrain { path: root.into() }),
        Layout::Splits { train: Some(train), val } => {
            let reading = Reading::new(options);
            let listed = list_classes(&train)?;
            let val = match val {
                Some(path) => Some(same_classes(&train, &listed, &path, &reading)?),
                None => None,
            };
            (of_folder(&train, listed, &reading), val)
        }
        Layout::Classes => (of_folder(root, list_classes(root)?, &Reading::new(options)), None),
    };
    if let [class] = train.classes() {
        return Err(DataError::OneClass { name: root.display().to_string(), class: class.clone() });
    }
    match val {
        Some(val) => Ok(Splits { train, val }),
        None => hold_out(train, options),
    }
}

/// Opens the data for evaluation: the evaluation split if there is one, else all of it. It may have a single class;
/// see [`Dataset::check_classes`].
///
/// # Errors
/// As for [`open`], except that no training split is needed.
pub fn open_evaluation(spec: impl AsRef<Path>, options: &OpenOptions) -> Result<Dataset, DataError> {
    let root = spec.as_ref();
    if root == Path::new(SAMPLE) {
        return sample::test();
    }
    let folder = match layout(root)? {
        Layout::Idx => {
            let split = if idx::has_split(root, Split::Test) { Split::Test } else { Split::Train };
            return idx::open_split(root, split, idx::class_names(root)?);
        }
        Layout::Splits { train, val } => val.or(train).unwrap_or_else(|| root.into()),
        Layout::Classes => root.into(),
    };
    Ok(of_folder(&folder, list_classes(&folder)?, &Reading::new(options)))
}

enum Layout {
    Idx,
    Splits { train: Option<PathBuf>, val: Option<PathBuf> },
    Classes,
}

fn layout(root: &Path) -> Result<Layout, DataError> {
    if !root.exists() {
        return Err(DataError::MissingFolder { path: root.into() });
    }
    if !root.is_dir() {
        return Err(DataError::NotAFolder { path: root.into() });
    }
    if idx::is_idx(root) {
        return Ok(Layout::Idx);
    }
    let (train, val) = (find_split(root, &TRAIN)?, find_split(root, &EVALUATION)?);
    Ok(if train.is_some() || val.is_some() { Layout::Splits { train, val } } else { Layout::Classes })
}

fn of_folder(folder: &Path, listed: ClassFolders, reading: &Reading) -> Dataset {
    Dataset::files(folder.display().to_string(), listed.classes, listed.images, reading.clone())
}

/// The evaluation split, if it has the training split's classes.
fn same_classes(
    train: &Path,
    listed: &ClassFolders,
    val: &Path,
    reading: &Reading,
) -> Result<Dataset, DataError> {
    let listed_val = list_classes(val)?;
    let only = |these: &ClassFolders, those: &ClassFolders| -> Vec<String> {
        these.classes.iter().filter(|class| !those.classes.contains(class)).cloned().collect()
    };
    let (only_train, only_val) = (only(listed, &listed_val), only(&listed_val, listed));
    if !only_train.is_empty() || !only_val.is_empty() {
        return Err(DataError::ClassesDiffer { train: train.into(), val: val.into(), only_train, only_val });
    }
    Ok(of_folder(val, listed_val, reading))
}

/// Every label of a training split must occur.
fn check_labels(train: &Dataset) -> Result<(), DataError> {
    match train.class_counts().iter().position(|&count| count == 0) {
        Some(label) => {
            let (name, classes) = (train.title().to_string(), train.classes().len());
            Err(DataError::LabelGap { name, label, classes })
        }
        None => Ok(()),
    }
}

/// Holds out the same share of every class, at least one image and never all.
fn hold_out(all: Dataset, options: &OpenOptions) -> Result<Splits, DataError> {
    if !(options.val_fraction > 0.0 && options.val_fraction < 1.0) {
        let found = options.val_fraction.to_string();
        return Err(DataError::Setting {
            what: "val_fraction",
            found,
            expected: "a number between 0 and 1".into(),
        });
    }
    let mut held_out = vec![false; all.len()];
    for class in 0..all.classes().len() {
        let mut members: Vec<usize> = (0..all.len()).filter(|&index| all.label(index) == class).collect();
        if members.len() < 2 {
            let (name, class) = (all.title().to_string(), all.classes()[class].clone());
            return Err(DataError::TooFewToSplit { name, class });
        }
        members.shuffle(&mut generator(options.seed, Use::Split, [class as u64, 0]));
        let count = (members.len() as f64 * options.val_fraction).round() as usize;
        for &index in &members[..count.clamp(1, members.len() - 1)] {
            held_out[index] = true;
        }
    }
    let (train, val) = all.split(|index| held_out[index]);
    Ok(Splits { train, val })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::{add_pictures, picture_folder};
    use std::fs;

    fn failure(root: &Path) -> String {
        open(root, &OpenOptions::default()).unwrap_err().to_string()
    }

    #[test]
    fn a_data_set_can_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Dataset>();
    }

    #[test]
    fn the_word_sample_is_the_embedded_one() {
        let splits = open("sample", &OpenOptions::default()).unwrap();
        assert_eq!((splits.train.len(), splits.val.len()), (10_000, 2_000));
        assert_eq!(open_evaluation("sample", &OpenOptions::default()).unwrap().len(), 2_000);
        assert!(failure(Path::new("./sample-that-is-not-there")).contains("does not exist"));
    }

    #[test]
    fn class_folders_are_split_by_class_and_seed() {
        let folder = picture_folder(&["dog", "cat", "Bird"], 20);
        let splits = |seed| {
            open(folder.path(), &OpenOptions { seed, val_fraction: 0.25, ..Default::default() }).unwrap()
        };
        let names =
            |dataset: &Dataset| (0..dataset.len()).map(|index| dataset.name(index)).collect::<Vec<_>>();
        let first = splits(1);
        assert_eq!(first.train.classes(), ["Bird", "cat", "dog"]);
        assert_eq!(first.train.class_counts(), [15; 3]);
        assert_eq!(first.val.class_counts(), [5; 3]);
        let mut all = [names(&first.train), names(&first.val)].concat();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 60);
        assert_eq!(names(&first.val), names(&splits(1).val));
        assert_ne!(names(&first.val), names(&splits(2).val));
        for index in 0..first.val.len() {
            assert!(first.val.name(index).contains(&first.val.classes()[first.val.label(index)]));
        }
        assert_eq!(open_evaluation(folder.path(), &OpenOptions::default()).unwrap().len(), 60);
        let options = OpenOptions { val_fraction: 1.0, ..Default::default() };
        assert!(open(folder.path(), &options).unwrap_err().to_string().starts_with("val_fraction is 1"));
    }

    #[test]
    fn split_folders_are_found() {
        for evaluation in EVALUATION {
            let folder = tempfile::tempdir().unwrap();
            for class in ["cat", "dog"] {
                add_pictures(&folder.path().join("train").join(class), 3);
                add_pictures(&folder.path().join(evaluation).join(class), 2);
            }
            let splits = open(folder.path(), &OpenOptions::default()).unwrap();
            assert_eq!((splits.train.len(), splits.val.len()), (6, 4));
            assert_eq!(open_evaluation(folder.path(), &OpenOptions::default()).unwrap().len(), 4);

            fs::remove_dir_all(folder.path().join("train")).unwrap();
            assert!(failure(folder.path()).contains("has no training split"));
            assert_eq!(open_evaluation(folder.path(), &OpenOptions::default()).unwrap().len(), 4);
        }
    }

    #[test]
    fn a_training_folder_alone_is_split() {
        let folder = tempfile::tempdir().unwrap();
        for class in ["cat", "dog"] {
            add_pictures(&folder.path().join("train").join(class), 10);
        }
        let splits = open(folder.path(), &OpenOptions::default()).unwrap();
        assert_eq!((splits.train.len(), splits.val.len()), (18, 2));
    }

    #[test]
    fn train_may_be_a_class() {
        let folder = picture_folder(&["plane", "train"], 4);
        let splits = open(folder.path(), &OpenOptions::default()).unwrap();
        assert_eq!(splits.train.classes(), ["plane", "train"]);
    }

    #[test]
    fn unusable_folders_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        assert!(failure(&root.join("absent")).contains("absent does not exist"));
        fs::write(root.join("notes.txt"), "x").unwrap();
        assert!(failure(&root.join("notes.txt")).contains("is not a folder"));
        assert!(failure(root).contains("holds no data set"));
        add_pictures(root, 2);
        assert!(failure(root).contains("holds images but no class folders"));
        add_pictures(&root.join("cat"), 1);
        assert!(failure(root).contains("has the one class cat"));
        fs::create_dir(root.join("dog")).unwrap();
        fs::write(root.join("dog/notes.txt"), "x").unwrap();
        assert!(failure(root).contains("dog holds no images"));
        add_pictures(&root.join("dog"), 5);
        assert!(failure(root).starts_with("the class cat of "), "{}", failure(root));
        assert_eq!(open_evaluation(root, &OpenOptions::default()).unwrap().len(), 6);
    }

    #[test]
    fn differing_classes_are_listed() {
        let folder = tempfile::tempdir().unwrap();
        for class in ["train/cat", "train/dog", "train/eel", "val/cat", "val/fox"] {
            add_pictures(&folder.path().join(class), 2);
        }
        let error = failure(folder.path());
        assert!(error.contains("only the first has [dog, eel], only the second has [fox]"), "{error}");
    }

    #[test]
    fn other_files_are_ignored_and_sub_folders_entered() {
        let folder = picture_folder(&["cat", "dog"], 3);
        let cat = folder.path().join("cat");
        for name in [".hidden.png", "Thumbs.db", "notes.txt", "png"] {
            fs::write(cat.join(name), "no image").unwrap();
        }
        fs::create_dir(folder.path().join(".cache")).unwrap();
        add_pictures(&cat.join("more/deep"), 2);
        fs::rename(cat.join("0.png"), cat.join("0.PNG")).unwrap();
        let dataset = open_evaluation(folder.path(), &OpenOptions::default()).unwrap();
        assert_eq!(dataset.class_counts(), [5, 3]);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_but_never_in_circles() {
        use std::os::unix::fs::symlink;
        let folder = picture_folder(&["cat", "dog"], 3);
        let cat = folder.path().join("cat");
        let elsewhere = tempfile::tempdir().unwrap();
        add_pictures(elsewhere.path(), 4);
        symlink(elsewhere.path(), cat.join("linked")).unwrap();
        symlink(elsewhere.path(), folder.path().join("eel")).unwrap();
        symlink(&cat, cat.join("itself")).unwrap();
        symlink(folder.path(), cat.join("root")).unwrap();
        symlink(elsewhere.path(), elsewhere.path().join("again")).unwrap();
        symlink("nowhere.png", cat.join("dangling.png")).unwrap();
        let mut dataset = open_evaluation(folder.path(), &OpenOptions::default()).unwrap();
        assert_eq!(dataset.class_counts(), [8, 3, 4]);
        let skipped = dataset.verify(crate::data::OnError::Skip, 1, &mut |_, _| {}).unwrap();
        assert_eq!(skipped.len(), 1);
        assert!(skipped[0].error.to_string().contains("dangling.png does not exist"));
    }

    #[test]
    fn classes_are_those_of_the_model() {
        let folder = picture_folder(&["cat", "dog"], 1);
        let dataset = open_evaluation(folder.path(), &OpenOptions::default()).unwrap();
        let check = |names: &[&str]| {
            dataset.check_classes("data", &names.iter().map(|name| name.to_string()).collect::<Vec<_>>())
        };
        check(&["cat", "dog"]).unwrap();
        check(&["0", "1"]).unwrap();
        let error = check(&["cat", "dog", "eel"]).unwrap_err().to_string();
        assert!(error.contains("the model has 3 classes") && error.contains("has 2;"), "{error}");
        let error = check(&["dog", "cat"]).unwrap_err().to_string();
        assert!(error.starts_with("class 0 of the model is \"dog\"") && error.contains("\"cat\""), "{error}");
    }
}
