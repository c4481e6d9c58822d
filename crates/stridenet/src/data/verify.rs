//! Decoding everything once, before training starts.

use super::{DataError, Dataset};
use crate::image::ImageError;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

/// What to do with an image that cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// Stop with an error that names it.
    #[default]
    Fail,
    /// Leave it out and report it.
    Skip,
}

/// An image that was left out.
#[derive(Debug)]
pub struct Skipped {
    /// The image file.
    pub path: PathBuf,
    /// Why it cannot be decoded.
    pub error: ImageError,
}

impl Dataset {
    /// Decodes every image file completely, on `threads` threads: headers alone do not betray a truncated JPEG. What
    /// fits the cache stays decoded. `progress` is told how many of how many are done. Pictures of IDX files were
    /// checked when they were opened.
    ///
    /// With [`OnError::Skip`], images that cannot be decoded are removed and returned, in order.
    ///
    /// # Errors
    /// With [`OnError::Fail`], that of the first image that cannot be decoded. With [`OnError::Skip`], when no image of
    /// a class is left.
    pub fn verify(
        &mut self,
        policy: OnError,
        threads: usize,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<Skipped>, DataError> {
        if self.is_empty() || self.path(0).is_none() {
            return Ok(Vec::new());
        }
        let mut failed = self.decode_all(policy, threads, progress)?;
        failed.sort_by_key(|(index, _)| *index);
        if policy == OnError::Fail {
            return match failed.into_iter().next() {
                Some((_, error)) => Err(error),
                None => Ok(Vec::new()),
            };
        }
        let mut skipped = Vec::new();
        let mut keep = vec![true; self.len()];
        for (index, error) in failed {
            match (error, self.path(index)) {
                (DataError::Image(error), Some(path)) => skipped.push(Skipped { path: path.into(), error }),
                (other, _) => return Err(other),
            }
            keep[index] = false;
        }
        let before = self.class_counts();
        self.retain(|index| keep[index]);
        let after = self.class_counts();
        match (0..before.len()).find(|&class| before[class] > 0 && after[class] == 0) {
            Some(class) => {
                let (name, class) = (self.title().to_string(), self.classes()[class].clone());
                Err(DataError::ClassLost { name, class })
            }
            None => Ok(skipped),
        }
    }

    /// The images that cannot be decoded, in any order; with [`OnError::Fail`], at least the first of them.
    fn decode_all(
        &self,
        policy: OnError,
        threads: usize,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Vec<(usize, DataError)>, DataError> {
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let (report, reports) = mpsc::channel();
        // Images are taken in order and always finished, so the first failure is found whatever the timing.
        let work = |report: mpsc::Sender<Option<(usize, DataError)>>| {
            while !stop.load(Ordering::Relaxed) {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= self.len() {
                    break;
                }
                let failure = self.picture(index).err().map(|error| (index, error));
                stop.fetch_or(failure.is_some() && policy == OnError::Fail, Ordering::Relaxed);
                if report.send(failure).is_err() {
                    break;
                }
            }
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads.clamp(1, self.len()))
                .map(|_| {
                    let report = report.clone();
                    scope.spawn(|| work(report))
                })
                .collect();
            drop(report);
            let mut failed = Vec::new();
            for (done, failure) in (1..).zip(reports) {
                failed.extend(failure);
                progress(done, self.len());
            }
            for worker in workers {
                worker.join().map_err(|panic| super::loader::panicked(&*panic))?;
            }
            Ok(failed)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::{numbered_pictures, picture_folder};
    use crate::data::{OpenOptions, open_evaluation};

    fn damaged() -> (tempfile::TempDir, Dataset) {
        let folder = picture_folder(&["cat", "dog"], 5);
        let whole = std::fs::read(folder.path().join("cat/1.png")).unwrap();
        std::fs::write(folder.path().join("cat/1.png"), &whole[..whole.len() / 2]).unwrap();
        std::fs::write(folder.path().join("dog/3.png"), b"").unwrap();
        let dataset = open_evaluation(folder.path(), &OpenOptions::default()).unwrap();
        (folder, dataset)
    }

    #[test]
    fn failing_names_the_first_bad_image() {
        for threads in [1, 2, 7] {
            let (_folder, mut dataset) = damaged();
            let error = dataset.verify(OnError::Fail, threads, &mut |_, _| {}).unwrap_err().to_string();
            assert!(error.contains("cat/1.png is truncated"), "{error}");
            assert_eq!(dataset.len(), 10);
        }
    }

    #[test]
    fn skipping_removes_and_reports_bad_images() {
        for threads in [1, 3] {
            let (_folder, mut dataset) = damaged();
            let mut seen = Vec::new();
            let skipped =
                dataset.verify(OnError::Skip, threads, &mut |done, all| seen.push((done, all))).unwrap();
            assert_eq!(seen, (1..=10).map(|done| (done, 10)).collect::<Vec<_>>());
            let names: Vec<_> = skipped.iter().map(|image| image.path.file_name().unwrap()).collect();
            assert_eq!(names, ["1.png", "3.png"]);
            assert!(skipped[1].error.to_string().contains("is empty"));
            assert_eq!(dataset.class_counts(), [4, 4]);
            for index in 0..dataset.len() {
                let class = &dataset.classes()[dataset.label(index)];
                assert!(dataset.name(index).contains(class.as_str()));
                assert!(dataset.picture(index).is_ok());
            }
        }
    }

    #[test]
    fn a_class_without_a_good_image_is_an_error() {
        let folder = picture_folder(&["cat", "dog"], 1);
        std::fs::write(folder.path().join("dog/0.png"), b"no image").unwrap();
        let mut dataset = open_evaluation(folder.path(), &OpenOptions::default()).unwrap();
        let error = dataset.verify(OnError::Skip, 1, &mut |_, _| {}).unwrap_err().to_string();
        assert!(error.starts_with("no image of the class dog in "), "{error}");
    }

    #[test]
    fn what_fits_the_cache_is_read_once() {
        // Of each class three pictures of 8x6 pixels.
        let folder = picture_folder(&["cat", "dog"], 3);
        let options = OpenOptions { cache_bytes: 4 * 8 * 6 * 3 + 100, ..OpenOptions::default() };
        let mut dataset = open_evaluation(folder.path(), &options).unwrap();
        dataset.verify(OnError::Fail, 1, &mut |_, _| {}).unwrap();
        drop(folder);
        let readable = (0..6).map(|index| dataset.picture(index).is_ok()).collect::<Vec<_>>();
        assert_eq!(readable, [true, true, true, true, false, false]);
    }

    #[test]
    fn pictures_in_memory_need_no_check() {
        let mut dataset = numbered_pictures(3);
        assert!(dataset.verify(OnError::Fail, 1, &mut |_, _| panic!("nothing to do")).unwrap().is_empty());
    }
}
