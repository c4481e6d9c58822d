//! The loader's promises: order, bits, waiting, failures.

use super::*;
use crate::data::testing::{numbered_pictures, picture_folder};
use crate::data::{Crop, CropFilter, OpenOptions, open};
use crate::image::Normalisation;
use crate::kernels::Level;
use std::sync::atomic::{AtomicUsize, Ordering};

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

fn context(threads: usize) -> Arc<Context> {
    Arc::new(Context::new(Level::detect(), threads))
}

/// Batches of two of `count` pictures that `prepare` makes of their numbers.
fn loader(
    cx: &Arc<Context>,
    count: usize,
    workers: usize,
    prepare: impl Fn(usize) + Send + Sync + 'static,
) -> Loader {
    let dataset = Arc::new(numbered_pictures(count));
    let order = (0..count).collect();
    let source = Source { dataset: dataset.clone(), preprocess: plain(), batch_size: 2, order, next: 0 };
    let prepare = move |place: usize| {
        prepare(place);
        dataset.picture(place).map(Picture::into_owned)
    };
    Loader::start(cx, source, workers, Box::new(prepare)).unwrap()
}

fn collect(loader: Result<Loader, DataError>) -> Vec<Batch> {
    loader.unwrap().collect::<Result<_, _>>().unwrap()
}

#[test]
fn the_number_of_workers_and_threads_changes_nothing() {
    let data = Arc::new(numbered_pictures(23));
    let train = |threads, workers| {
        collect(Loader::train(&context(threads), data.clone(), plain(), options(workers), pass()))
    };
    let evaluate = |threads, workers| {
        collect(Loader::evaluate(&context(threads), data.clone(), plain(), options(workers)))
    };
    for (threads, workers) in [(1, 1), (3, 0), (1, 2), (2, 5), (8, 50)] {
        assert_eq!(train(1, 0), train(threads, workers));
        assert_eq!(evaluate(1, 0), evaluate(threads, workers));
    }
    let sizes: Vec<usize> = train(2, 3).iter().map(|batch| batch.images.batch()).collect();
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
        let (pass, preprocess) = (TrainPass { augment: resized, ..pass() }, Preprocess::imagenet([4, 4]));
        collect(Loader::train(&context(2), Arc::new(data), preprocess, options(workers), pass))
    };
    assert_eq!(run(kept, 3), run(fresh, 1));
}

#[test]
fn memory_that_is_given_back_is_used_again() {
    let data = Arc::new(numbered_pictures(10));
    let evaluate = || Loader::evaluate(&context(2), data.clone(), plain(), options(1)).unwrap();
    let expected = collect(Ok(evaluate()));
    let mut loader = evaluate();
    let mut at = std::ptr::null();
    for (number, expected) in expected.iter().enumerate() {
        let batch = loader.next().unwrap().unwrap();
        assert_eq!(batch, *expected);
        // The last batch has fewer images and so memory of its own.
        assert!(number != 1 || batch.images.data().as_ptr() == at);
        at = batch.images.data().as_ptr();
        loader.give_back(batch.images);
    }
}

#[test]
fn evaluation_keeps_the_order_and_every_image() {
    let data = Arc::new(numbered_pictures(10));
    let batches = collect(Loader::evaluate(&context(2), data.clone(), plain(), options(2)));
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
        let pass = TrainPass { epoch, ..pass() };
        let batches = collect(Loader::train(&context(2), data.clone(), plain(), options(2), pass));
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
        Loader::train(&context(2), data.clone(), plain(), options(2), pass)
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
        let mut loader = Loader::train(&context(2), data.clone(), plain(), options(3), pass()).unwrap();
        assert_eq!(loader.by_ref().take(taken).count(), taken);
        assert_eq!(loader.remaining(), 250 - taken);
        drop(loader);
        assert_eq!(Arc::strong_count(&data), 1);
    }
}

#[test]
fn a_panic_becomes_an_error_and_ends_the_iteration() {
    for workers in [0, 1, 3] {
        let mut loader = loader(&context(2), 16, workers, |place| assert!(place != 5, "a decoder broke"));
        assert!(loader.next().unwrap().is_ok() && loader.next().unwrap().is_ok());
        let error = loader.next().unwrap().unwrap_err().to_string();
        assert!(error.contains("it panicked: a decoder broke"), "{error}");
        assert!(loader.next().is_none());
    }
}

#[test]
fn the_first_of_several_failures_is_told() {
    for workers in [0, 3] {
        let mut loader = loader(&context(2), 4, workers, |place| panic!("picture {place}"));
        let error = loader.next().unwrap().unwrap_err().to_string();
        assert!(error.contains("picture 0"), "{error}");
    }
}

#[test]
fn workers_go_two_batches_ahead_and_no_further() {
    let made = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&made);
    let mut loader = loader(&context(1), 20, 3, move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    for taken in 0..3 {
        let expected = 2 * (taken + AHEAD);
        let deadline = Instant::now() + Duration::from_secs(20);
        while made.load(Ordering::Relaxed) < expected && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Time for one too many.
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(made.load(Ordering::Relaxed), expected);
        loader.next().unwrap().unwrap();
    }
}

/// Each picture is held back until others are under way, which only other threads can have taken up.
#[test]
fn all_threads_help_with_a_batch_that_is_waited_for() {
    let under_way = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&under_way);
    let mut loader = loader(&context(2), 2, 0, move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        let deadline = Instant::now() + Duration::from_secs(20);
        while counter.load(Ordering::Relaxed) < 2 {
            assert!(Instant::now() < deadline, "one thread does it all");
            std::thread::yield_now();
        }
    });
    loader.next().unwrap().unwrap();
}

#[test]
fn a_damaged_image_is_named_and_ends_the_iteration() {
    let folder = picture_folder(&["cat", "dog"], 4);
    let data = crate::data::open_evaluation(folder.path(), &OpenOptions::default()).unwrap();
    std::fs::write(data.path(5).unwrap(), b"").unwrap();
    let options = LoaderOptions { batch_size: 2, workers: 2 };
    let preprocess = Preprocess::imagenet([4, 4]);
    let mut loader = Loader::evaluate(&context(1), Arc::new(data), preprocess, options).unwrap();
    assert!(loader.next().unwrap().is_ok() && loader.next().unwrap().is_ok());
    let error = loader.next().unwrap().unwrap_err().to_string();
    assert!(error.contains("dog/1.png is empty"), "{error}");
    assert!(loader.next().is_none());
}

#[test]
fn waiting_is_measured() {
    let pause = Duration::from_millis(20);
    let mut loader = loader(&context(1), 2, 0, move |_| std::thread::sleep(pause));
    assert_eq!(loader.waited(), Duration::ZERO);
    loader.next().unwrap().unwrap();
    assert!(loader.waited() >= 2 * pause && loader.waited() < Duration::from_secs(20));
}

#[test]
fn options_out_of_range_are_named() {
    let data = Arc::new(numbered_pictures(3));
    let cx = context(1);
    let train =
        |options, pass| Loader::train(&cx, data.clone(), plain(), options, pass).unwrap_err().to_string();
    assert!(train(LoaderOptions { batch_size: 0, workers: 1 }, pass()).starts_with("batch_size is 0"));
    let error = train(options(1), TrainPass { drop_last: true, ..pass() });
    assert!(error.starts_with("batch_size is 4, expected at most 3"), "{error}");
    let augment = Augment {
        crop: Crop::Resized { scale: [0.5, 0.1], ratio: [1.0, 1.0], filter: CropFilter::Random },
        ..Augment::NONE
    };
    assert!(train(options(1), TrainPass { augment, ..pass() }).starts_with("the crop's scale is 0.5 to 0.1"));
    let preprocess = Preprocess { crop_pct: 0.0, ..plain() };
    let error = Loader::evaluate(&cx, data.clone(), preprocess, options(1)).unwrap_err();
    assert!(error.to_string().contains("crop_pct"));
}
