//! Batches, prepared ahead of the network.
//!
//! Pictures are handed out one by one, in the order in which the network will see them. Whoever has time prepares the next: the
//! loader's own threads while the network computes, as far ahead as the queue has room; and when a batch is asked for before it
//! is complete, all of the network's threads, which would have to wait otherwise. A picture is prepared as a function of the
//! pass and its place alone, so that it does not matter by whom.

use super::{Augment, DataError, Dataset};
use crate::Tensor;
use crate::image::{ImageError, Picture, Preprocess};
use crate::kernels::Context;
use crate::random::{Use, generator};
use rand::seq::SliceRandom;
use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Batches that threads prepare beyond the one that the network has.
const AHEAD: usize = 2;

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
    /// Threads that prepare images while the network computes, at most two batches ahead. With 0, the network's threads do
    /// so when a batch is asked for.
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
/// workers or threads. After an error it ends. Dropping it stops and joins the workers.
pub struct Loader {
    cx: Arc<Context>,
    source: Source,
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// What the next batch may be written to.
    spare: Option<Tensor>,
    waited: Duration,
}

/// What batches are made of, besides pictures.
struct Source {
    dataset: Arc<Dataset>,
    preprocess: Preprocess,
    batch_size: usize,
    /// The image at each place.
    order: Arc<[usize]>,
    /// The place of the next batch's first image.
    next: usize,
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader").field("remaining", &self.remaining()).finish_non_exhaustive()
    }
}

impl Loader {
    /// Shuffled, augmented batches of one epoch. What the workers have not prepared is prepared on the threads of `cx`.
    ///
    /// # Errors
    /// When an option is out of range, the images do not fill one batch and `drop_last` is set, or a thread cannot be
    /// started.
    pub fn train(
        cx: &Arc<Context>,
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
        order.truncate(batches * options.batch_size);
        let fit = move |dataset: &Dataset, preprocess: &Preprocess, index: usize| {
            let mut random = generator(pass.seed, Use::Augment, [pass.epoch, index as u64]);
            let picture = dataset.picture(index)?;
            let fitted = pass.augment.apply(preprocess, &picture, &mut random);
            fitted.map(Picture::into_owned).map_err(|source| unprepared(dataset, index, source))
        };
        let next = pass.first_batch * options.batch_size;
        let (order, batch_size) = (order.into(), options.batch_size);
        Loader::of(cx, Source { dataset, preprocess, batch_size, order, next }, options.workers, fit)
    }

    /// All images in order; the last batch may be smaller. What the workers have not prepared is prepared on the threads of
    /// `cx`.
    ///
    /// # Errors
    /// When an option is out of range, or a thread cannot be started.
    pub fn evaluate(
        cx: &Arc<Context>,
        dataset: Arc<Dataset>,
        preprocess: Preprocess,
        options: LoaderOptions,
    ) -> Result<Self, DataError> {
        preprocess.check()?;
        count_batches(&dataset, options, false)?;
        let fit = |dataset: &Dataset, preprocess: &Preprocess, index: usize| {
            let picture = dataset.picture(index)?;
            let fitted = preprocess.fit(&picture).map(Picture::into_owned);
            fitted.map_err(|source| unprepared(dataset, index, source))
        };
        let (order, batch_size) = ((0..dataset.len()).collect(), options.batch_size);
        Loader::of(cx, Source { dataset, preprocess, batch_size, order, next: 0 }, options.workers, fit)
    }

    /// A loader that brings images to the input's size and channels by `fit`.
    fn of(
        cx: &Arc<Context>,
        source: Source,
        workers: usize,
        fit: impl Fn(&Dataset, &Preprocess, usize) -> Prepared + Send + Sync + 'static,
    ) -> Result<Self, DataError> {
        let (dataset, preprocess) = (Arc::clone(&source.dataset), source.preprocess.clone());
        let order = Arc::clone(&source.order);
        let prepare = move |place: usize| fit(&dataset, &preprocess, order[place]);
        Loader::start(cx, source, workers, Box::new(prepare))
    }

    /// Starts the workers.
    fn start(
        cx: &Arc<Context>,
        source: Source,
        workers: usize,
        prepare: Box<Prepare>,
    ) -> Result<Self, DataError> {
        let Source { next, ref order, batch_size, .. } = source;
        let queue = Queue { first: next, pictures: VecDeque::new(), limit: 0, end: order.len() };
        let shared = Shared { prepare, queue: Mutex::new(queue), room: Condvar::new(), done: Condvar::new() };
        shared.lock().allow(AHEAD * batch_size);
        let count = workers.min(order.len() - next);
        let (cx, shared) = (Arc::clone(cx), Arc::new(shared));
        let mut loader =
            Loader { cx, source, shared, workers: Vec::new(), spare: None, waited: Duration::ZERO };
        for worker in 0..count {
            let shared = Arc::clone(&loader.shared);
            let thread = std::thread::Builder::new()
                .name(format!("loader-{worker}"))
                .spawn(move || shared.serve())
                .map_err(|error| DataError::Worker { reason: error.to_string() })?;
            loader.workers.push(thread);
        }
        Ok(loader)
    }

    /// Number of batches still to come.
    pub fn remaining(&self) -> usize {
        let Source { order, next, batch_size, .. } = &self.source;
        (order.len() - next).div_ceil(*batch_size)
    }

    /// How long the caller has been held up by batches in all: near zero when the workers keep up.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Gives back the images of a batch, or any tensor: memory for the next one, which need not be allocated then.
    pub fn give_back(&mut self, images: Tensor) {
        self.spare = Some(images);
    }

    /// The next batch, which has images.
    fn batch(&mut self) -> Result<Batch, DataError> {
        let Source { dataset, preprocess, batch_size, order, next } = &mut self.source;
        let end = order.len().min(*next + *batch_size);
        let indices = order[*next..end].to_vec();
        self.cx.pool().run(self.shared.unclaimed(end), |_| self.shared.help(end));
        let pictures = self.shared.take(indices.len(), AHEAD * *batch_size)?;
        *next = end;
        let [height, width] = preprocess.input_size;
        let shape = [indices.len(), height, width, preprocess.channels];
        let spare = self.spare.take().filter(|spare| spare.shape() == shape);
        let mut images = spare.unwrap_or_else(|| Tensor::zeros(shape));
        let mut results: Vec<Result<(), ImageError>> = indices.iter().map(|_| Ok(())).collect();
        let size = height * width * preprocess.channels;
        self.cx.pool().pairs((images.data_mut(), size), (&mut results, 1), |at, image, result| {
            result[0] = preprocess.normalise(&pictures[at], image);
        });
        for (&index, result) in indices.iter().zip(results) {
            result.map_err(|source| unprepared(dataset, index, source))?;
        }
        let labels = indices.iter().map(|&index| dataset.label(index)).collect();
        Ok(Batch { images, labels, indices })
    }

    /// Ends the iteration, and stops and joins the workers.
    fn shut_down(&mut self) {
        self.source.next = self.source.order.len();
        self.shared.close();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of what it prepares; it has none of its own to report.
            let _ = worker.join();
        }
    }
}

impl Iterator for Loader {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.remaining() == 0 {
            return None;
        }
        let start = Instant::now();
        let batch = self.batch();
        self.waited += start.elapsed();
        if batch.is_err() {
            self.shut_down();
        }
        Some(batch)
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

/// A picture of the input's size and channels.
type Prepared = Result<Picture<'static>, DataError>;

/// Prepares the picture of a place.
type Prepare = dyn Fn(usize) -> Prepared + Send + Sync;

/// What the caller and the workers share.
struct Shared {
    prepare: Box<Prepare>,
    queue: Mutex<Queue>,
    /// More places may be claimed, or none any more.
    room: Condvar,
    /// A picture is done.
    done: Condvar,
}

/// Pictures that are done or under way, by their places.
struct Queue {
    /// The place of the first one.
    first: usize,
    /// `None` while it is under way.
    pictures: VecDeque<Option<Prepared>>,
    /// Workers claim places below this one.
    limit: usize,
    /// There are places below this one.
    end: usize,
}

impl Queue {
    /// The first place that nobody has claimed.
    fn next(&self) -> usize {
        self.first + self.pictures.len()
    }

    fn claim(&mut self, limit: usize) -> Option<usize> {
        let place = self.next();
        (place < limit.min(self.end)).then(|| {
            self.pictures.push_back(None);
            place
        })
    }

    /// Lets workers claim `count` places beyond those that were taken.
    fn allow(&mut self, count: usize) {
        self.limit = self.end.min(self.first + count);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker's life: prepares what comes next as long as there is room, until all is claimed.
    fn serve(&self) {
        loop {
            let mut queue = self.lock();
            while queue.next() < queue.end && queue.next() >= queue.limit {
                queue = self.room.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            let limit = queue.limit;
            let Some(place) = queue.claim(limit) else { return };
            drop(queue);
            self.finish(place);
        }
    }

    /// The number of places below `limit` that nobody has claimed.
    fn unclaimed(&self, limit: usize) -> usize {
        limit.saturating_sub(self.lock().next())
    }

    /// Prepares the next picture below `limit`, if there is one left.
    fn help(&self, limit: usize) {
        let place = self.lock().claim(limit);
        if let Some(place) = place {
            self.finish(place);
        }
    }

    fn finish(&self, place: usize) {
        let prepared = catch_unwind(AssertUnwindSafe(|| (self.prepare)(place)));
        let prepared = prepared.unwrap_or_else(|panic| Err(panicked(&*panic)));
        let mut queue = self.lock();
        // Nobody wants it any more once the queue is closed.
        if let Some(at) = place.checked_sub(queue.first)
            && let Some(picture) = queue.pictures.get_mut(at)
        {
            *picture = Some(prepared);
        }
        self.done.notify_one();
    }

    /// The first `count` pictures, all of which must have been claimed, when they are done; workers may then go `ahead` places
    /// beyond them.
    fn take(&self, count: usize, ahead: usize) -> Result<Vec<Picture<'static>>, DataError> {
        let waits = |queue: &mut Queue| queue.pictures.iter().take(count).any(Option::is_none);
        let mut queue = self.done.wait_while(self.lock(), waits).unwrap_or_else(PoisonError::into_inner);
        let taken: Vec<Option<Prepared>> = queue.pictures.drain(..count).collect();
        queue.first += count;
        queue.allow(ahead);
        drop(queue);
        self.room.notify_all();
        taken.into_iter().flatten().collect()
    }

    /// Lets nobody claim anything any more.
    fn close(&self) {
        let mut queue = self.lock();
        (queue.end, queue.limit) = (0, 0);
        queue.pictures.clear();
        drop(queue);
        self.room.notify_all();
    }
}

/// A thread's panic as an error.
pub(super) fn panicked(panic: &(dyn Any + Send)) -> DataError {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    DataError::Worker { reason: format!("it panicked: {}", text.unwrap_or("no message").replace('\n', " ")) }
}

fn unprepared(dataset: &Dataset, index: usize, source: ImageError) -> DataError {
    DataError::Prepare { name: dataset.name(index), source }
}

fn count_batches(dataset: &Dataset, options: LoaderOptions, drop_last: bool) -> Result<usize, DataError> {
    let wrong = |what, found: usize, expected: String| {
        Err(DataError::Setting { what, found: found.to_string(), expected })
    };
    if options.batch_size == 0 {
        return wrong("batch_size", 0, "at least 1".into());
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

#[cfg(test)]
mod tests;
