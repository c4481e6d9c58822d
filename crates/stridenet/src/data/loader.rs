//! Batches, prepared ahead on threads of their own.

use super::{Augment, DataError, Dataset};
use crate::Tensor;
use crate::image::Preprocess;
use crate::random::{Use, generator};
use rand::seq::SliceRandom;
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Images ready for the network.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Normalised images, `[N, H, W, C]`.
    pub images: Tensor,
    /// Their labels, N of them.
    pub labels: Vec<usize>,
    /// Their indices in the data set, N of them.
    pub indices: Vec<usize>,
}

/// How batches are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoaderOptions {
    /// Images in a batch, at least 1.
    pub batch_size: usize,
    /// Threads that prepare batches, at least 1. Each keeps at most two batches: one finished, one under way.
    pub workers: usize,
}

/// One pass over the data for training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainPass {
    /// Seed of the order and of the augmentation.
    pub seed: u64,
    /// The epoch; each has its own order and augmentation.
    pub epoch: u64,
    /// What is done to the pictures at random.
    pub augment: Augment,
    /// Whether a last batch that is not full is left out.
    pub drop_last: bool,
    /// The batch to start from, to go on with an interrupted epoch.
    pub first_batch: usize,
}

/// An iterator over batches, in order. Their contents depend on the options and the pass, never on the number of
/// workers. After an error it ends. Dropping it stops and joins the workers.
#[derive(Debug)]
pub struct Loader {
    /// Batch `first + k` comes from worker `k % workers.len()`.
    workers: Vec<Worker>,
    first: usize,
    next: usize,
    end: usize,
    stop: Arc<AtomicBool>,
    waited: Duration,
}

#[derive(Debug)]
struct Worker {
    batches: Receiver<Result<Batch, DataError>>,
    thread: JoinHandle<()>,
}

impl Loader {
    /// Shuffled, augmented batches of one epoch.
    ///
    /// # Errors
    /// When an option is out of range, the images do not fill one batch and `drop_last` is set, or a thread cannot be
    /// started.
    pub fn train(
        dataset: Arc<Dataset>,
        preprocess: Preprocess,
        options: LoaderOptions,
        pass: TrainPass,
    ) -> Result<Self, DataError> {
        preprocess.check()?;
        pass.augment.check()?;
        let batches = count_batches(&dataset, options, pass.drop_last)?;
        if pass.first_batch > batches {
            let found = pass.first_batch.to_string();
            return Err(DataError::Setting {
                what: "first_batch",
                found,
                expected: format!("at most {batches}"),
            });
        }
        let mut order: Vec<usize> = (0..dataset.len()).collect();
        order.shuffle(&mut generator(pass.seed, Use::Shuffle, [pass.epoch, 0]));
        let make = move |batch: usize, stop: &AtomicBool| {
            let indices = chunk(&order, batch, options.batch_size);
            fill(&dataset, &preprocess, indices, stop, |index, out| {
                let mut random = generator(pass.seed, Use::Augment, [pass.epoch, index as u64]);
                let picture = dataset.picture(index)?;
                let result = pass
                    .augment
                    .apply(&preprocess, &picture, &mut random)
                    .and_then(|picture| preprocess.normalise(&picture, out));
                result.map_err(|source| DataError::Prepare { name: dataset.name(index), source })
            })
        };
        Loader::start(pass.first_batch, batches, options.workers, Arc::new(make))
    }

    /// All images in order; the last batch may be smaller.
    ///
    /// # Errors
    /// When an option is out of range, or a thread cannot be started.
    pub fn evaluate(
        dataset: Arc<Dataset>,
        preprocess: Preprocess,
        options: LoaderOptions,
    ) -> Result<Self, DataError> {
        preprocess.check()?;
        let batches = count_batches(&dataset, options, false)?;
        let order: Vec<usize> = (0..dataset.len()).collect();
        let make = move |batch: usize, stop: &AtomicBool| {
            let indices = chunk(&order, batch, options.batch_size);
            fill(&dataset, &preprocess, indices, stop, |index, out| {
                let picture = dataset.picture(index)?;
                let result = preprocess.apply(&picture, out);
                result.map_err(|source| DataError::Prepare { name: dataset.name(index), source })
            })
        };
        Loader::start(0, batches, options.workers, Arc::new(make))
    }

    /// Number of batches still to come.
    pub fn remaining(&self) -> usize {
        self.end - self.next
    }

    /// How long the caller has waited for batches in all: near zero when the workers keep up.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Starts the workers. `make` prepares the batch of a number; it may give up when the flag is raised.
    fn start(first: usize, end: usize, workers: usize, make: Arc<MakeBatch>) -> Result<Self, DataError> {
        let mut loader = Loader {
            workers: Vec::new(),
            first,
            next: first,
            end,
            stop: Arc::new(AtomicBool::new(false)),
            waited: Duration::ZERO,
        };
        let workers = workers.min(end - first);
        for worker in 0..workers {
            let (sender, batches) = sync_channel(1);
            let (make, stop) = (make.clone(), loader.stop.clone());
            let numbers = (first + worker..end).step_by(workers);
            let thread = std::thread::Builder::new()
                .name(format!("loader-{worker}"))
                .spawn(move || work(numbers, &*make, &stop, &sender))
                .map_err(|error| DataError::Worker { reason: error.to_string() })?;
            loader.workers.push(Worker { batches, thread });
        }
        Ok(loader)
    }

    /// Stops and joins the workers and returns the first panic among them.
    fn shut_down(&mut self) -> Option<DataError> {
        self.next = self.end;
        self.stop.store(true, Ordering::Relaxed);
        // All receivers go before the first join, so that no worker waits for room in its queue.
        let threads: Vec<_> = self.workers.drain(..).map(|worker| worker.thread).collect();
        let panics = threads.into_iter().map(|thread| thread.join().err().map(|panic| panicked(&*panic)));
        panics.fold(None, |first, panic| first.or(panic))
    }
}

impl Iterator for Loader {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.end {
            return None;
        }
        let start = Instant::now();
        let worker = (self.next - self.first) % self.workers.len();
        let received = self.workers[worker].batches.recv();
        self.waited += start.elapsed();
        Some(match received {
            Ok(Ok(batch)) => {
                self.next += 1;
                Ok(batch)
            }
            Ok(Err(error)) => {
                self.shut_down();
                Err(error)
            }
            Err(_) => Err(self
                .shut_down()
                .unwrap_or_else(|| DataError::Worker { reason: "it ended before its last batch".into() })),
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.remaining() > 0), Some(self.remaining()))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// Prepares the batch of a number.
type MakeBatch = dyn Fn(usize, &AtomicBool) -> Result<Batch, DataError> + Send + Sync;

fn work(
    numbers: impl Iterator<Item = usize>,
    make: &MakeBatch,
    stop: &AtomicBool,
    sender: &SyncSender<Result<Batch, DataError>>,
) {
    for number in numbers {
        // Nobody receives any more once the loader is gone.
        if stop.load(Ordering::Relaxed) || sender.send(make(number, stop)).is_err() {
            break;
        }
    }
}

/// A thread's panic as an error.
pub(super) fn panicked(panic: &(dyn Any + Send)) -> DataError {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    DataError::Worker { reason: format!("it panicked: {}", text.unwrap_or("no message").replace('\n', " ")) }
}

fn count_batches(dataset: &Dataset, options: LoaderOptions, drop_last: bool) -> Result<usize, DataError> {
    let wrong = |what, found: usize, expected: String| {
        Err(DataError::Setting { what, found: found.to_string(), expected })
    };
    if options.batch_size == 0 {
        return wrong("batch_size", 0, "at least 1".into());
    }
    if options.workers == 0 {
        return wrong("workers", 0, "at least 1".into());
    }
    let batches = match drop_last {
        true => dataset.len() / options.batch_size,
        false => dataset.len().div_ceil(options.batch_size),
    };
    if batches == 0 {
        let expected = format!("at most {}, the number of images in {}", dataset.len(), dataset.title());
        return wrong("batch_size", options.batch_size, expected);
    }
    Ok(batches)
}

fn chunk(order: &[usize], batch: usize, size: usize) -> &[usize] {
    &order[batch * size..order.len().min((batch + 1) * size)]
}

/// A batch of the given images; `prepare` writes the values of one.
fn fill(
    dataset: &Dataset,
    preprocess: &Preprocess,
    indices: &[usize],
    stop: &AtomicBool,
    prepare: impl Fn(usize, &mut [f32]) -> Result<(), DataError>,
) -> Result<Batch, DataError> {
    let [height, width] = preprocess.input_size;
    let mut images = Tensor::zeros([indices.len(), height, width, preprocess.channels]);
    let size = height * width * preprocess.channels;
    for (&index, out) in indices.iter().zip(images.data_mut().chunks_exact_mut(size)) {
        if stop.load(Ordering::Relaxed) {
            return Err(DataError::Worker { reason: "it was stopped".into() });
        }
        prepare(index, out)?;
    }
    let labels = indices.iter().map(|&index| dataset.label(index)).collect();
    Ok(Batch { images, labels, indices: indices.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::{numbered_pictures, picture_folder};
    use crate::data::{Crop, CropFilter, OpenOptions, open};
    use crate::image::Normalisation;

    fn plain() -> Preprocess {
        Preprocess::exact([4, 4], Normalisation { mean: vec![0.0], std: vec![1.0] })
    }

    fn options(workers: usize) -> LoaderOptions {
        LoaderOptions { batch_size: 4, workers }
    }

    fn pass() -> TrainPass {
        let augment = Augment { crop: Crop::Pad(1), hflip: 0.5, vflip: 0.0 };
        TrainPass { seed: 5, epoch: 2, augment, drop_last: false, first_batch: 0 }
    }

    fn collect(loader: Result<Loader, DataError>) -> Vec<Batch> {
        loader.unwrap().collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn the_number_of_workers_changes_nothing() {
        let data = Arc::new(numbered_pictures(23));
        let train = |workers| collect(Loader::train(data.clone(), plain(), options(workers), pass()));
        let evaluate = |workers| collect(Loader::evaluate(data.clone(), plain(), options(workers)));
        for workers in [2, 5, 50] {
            assert_eq!(train(1), train(workers));
            assert_eq!(evaluate(1), evaluate(workers));
        }
        let sizes: Vec<usize> = train(3).iter().map(|batch| batch.images.batch()).collect();
        assert_eq!(sizes, [4, 4, 4, 4, 4, 3]);
    }

    #[test]
    fn files_give_the_same_batches_decoded_or_kept() {
        let folder = picture_folder(&["cat", "dog"], 6);
        let mut kept = open(folder.path(), &OpenOptions::default()).unwrap().train;
        kept.verify(Default::default(), 2, &mut |_, _| {}).unwrap();
        let fresh = open(folder.path(), &OpenOptions { cache_bytes: 0, ..Default::default() }).unwrap().train;
        let crop = Crop::Resized { scale: [0.1, 1.0], ratio: [0.5, 2.0], filter: CropFilter::Random };
        let resized = Augment { crop, hflip: 0.5, vflip: 0.5 };
        let run = |data: Dataset, workers| {
            let pass = TrainPass { augment: resized, ..pass() };
            collect(Loader::train(Arc::new(data), Preprocess::imagenet([4, 4]), options(workers), pass))
        };
        assert_eq!(run(kept, 3), run(fresh, 1));
    }

    #[test]
    fn evaluation_keeps_the_order_and_every_image() {
        let data = Arc::new(numbered_pictures(10));
        let batches = collect(Loader::evaluate(data.clone(), plain(), options(2)));
        let indices: Vec<usize> = batches.iter().flat_map(|batch| batch.indices.clone()).collect();
        assert_eq!(indices, (0..10).collect::<Vec<_>>());
        for batch in &batches {
            for (image, (&index, &label)) in
                batch.images.data().chunks_exact(16).zip(batch.indices.iter().zip(&batch.labels))
            {
                assert_eq!(label, data.label(index));
                assert!((image[5] - (16 * index + 5) as f32 % 256.0 / 255.0).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn an_epoch_shows_every_image_once_in_its_own_order() {
        let data = Arc::new(numbered_pictures(23));
        let order = |epoch| -> Vec<usize> {
            let batches =
                collect(Loader::train(data.clone(), plain(), options(2), TrainPass { epoch, ..pass() }));
            batches.into_iter().flat_map(|batch| batch.indices).collect()
        };
        assert_ne!(order(0), order(1));
        let mut sorted = order(0);
        sorted.sort();
        assert_eq!(sorted, (0..23).collect::<Vec<_>>());
    }

    #[test]
    fn an_epoch_can_go_on_from_any_batch() {
        let data = Arc::new(numbered_pictures(23));
        let from = |first_batch| {
            let pass = TrainPass { first_batch, drop_last: true, ..pass() };
            Loader::train(data.clone(), plain(), options(2), pass)
        };
        let all = collect(from(0));
        assert_eq!(all.len(), 5);
        assert_eq!(collect(from(3)), all[3..]);
        assert!(collect(from(5)).is_empty());
        assert!(from(6).unwrap_err().to_string().contains("first_batch is 6, expected at most 5"));
    }

    #[test]
    fn dropping_it_early_stops_the_workers() {
        let data = Arc::new(numbered_pictures(1000));
        for taken in [0, 1, 5] {
            let mut loader = Loader::train(data.clone(), plain(), options(3), pass()).unwrap();
            assert_eq!(loader.by_ref().take(taken).count(), taken);
            assert_eq!(loader.remaining(), 250 - taken);
            drop(loader);
            assert_eq!(Arc::strong_count(&data), 1);
        }
    }

    #[test]
    fn a_panic_becomes_an_error_and_ends_the_iteration() {
        let data = Arc::new(numbered_pictures(8));
        let make = move |batch: usize, stop: &AtomicBool| {
            assert!(batch != 2, "a decoder broke");
            fill(&data, &plain(), &[batch], stop, |_, _| Ok(()))
        };
        for workers in [1, 3] {
            let mut loader = Loader::start(0, 8, workers, Arc::new(make.clone())).unwrap();
            assert!(loader.next().unwrap().is_ok() && loader.next().unwrap().is_ok());
            let error = loader.next().unwrap().unwrap_err().to_string();
            assert!(error.contains("it panicked: a decoder broke"), "{error}");
            assert!(loader.next().is_none());
        }
    }

    #[test]
    fn a_damaged_image_is_named_and_ends_the_iteration() {
        let folder = picture_folder(&["cat", "dog"], 4);
        let data = crate::data::open_evaluation(folder.path(), &OpenOptions::default()).unwrap();
        std::fs::write(data.path(5).unwrap(), b"").unwrap();
        let options = LoaderOptions { batch_size: 2, workers: 2 };
        let mut loader = Loader::evaluate(Arc::new(data), Preprocess::imagenet([4, 4]), options).unwrap();
        assert!(loader.next().unwrap().is_ok() && loader.next().unwrap().is_ok());
        let error = loader.next().unwrap().unwrap_err().to_string();
        assert!(error.contains("dog/1.png is empty"), "{error}");
        assert!(loader.next().is_none());
    }

    #[test]
    fn waiting_is_measured() {
        let data = Arc::new(numbered_pictures(2));
        let make = move |batch: usize, stop: &AtomicBool| {
            std::thread::sleep(Duration::from_millis(20));
            fill(&data, &plain(), &[batch], stop, |_, _| Ok(()))
        };
        let mut loader = Loader::start(0, 1, 1, Arc::new(make)).unwrap();
        assert_eq!(loader.waited(), Duration::ZERO);
        loader.next().unwrap().unwrap();
        assert!(loader.waited() > Duration::ZERO && loader.waited() < Duration::from_secs(20));
    }

    #[test]
    fn options_out_of_range_are_named() {
        let data = Arc::new(numbered_pictures(3));
        let train =
            |options, pass| Loader::train(data.clone(), plain(), options, pass).unwrap_err().to_string();
        assert!(train(LoaderOptions { batch_size: 0, workers: 1 }, pass()).starts_with("batch_size is 0"));
        assert!(train(LoaderOptions { batch_size: 1, workers: 0 }, pass()).starts_with("workers is 0"));
        let error = train(options(1), TrainPass { drop_last: true, ..pass() });
        assert!(error.starts_with("batch_size is 4, expected at most 3"), "{error}");
        let augment = Augment {
            crop: Crop::Resized { scale: [0.5, 0.1], ratio: [1.0, 1.0], filter: CropFilter::Random },
            ..Augment::NONE
        };
        assert!(
            train(options(1), TrainPass { augment, ..pass() }).starts_with("the crop's scale is 0.5 to 0.1")
        );
        let error = Loader::evaluate(data, Preprocess { crop_pct: 0.0, ..plain() }, options(1)).unwrap_err();
        assert!(error.to_string().contains("crop_pct"));
    }
}
