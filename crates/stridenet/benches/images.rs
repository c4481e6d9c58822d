//! Time to decode an image file and to prepare its picture for a network, on one thread.
//!
//! `cargo bench -p stridenet --bench images -- FILES…` prints milliseconds, the median and the shortest of 30 calls each;
//! `bench/peers/images.py FILES…` prints what Pillow takes for the same. `--totals FOLDER` instead goes once through all images
//! below a folder, and prints their number and the mean times as JSON.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;
use stridenet::data::list_images;
use stridenet::image::{Interpolation, Normalisation, Preprocess, decode};

const CALLS: usize = 30;

/// Milliseconds of a call, and its result.
fn time<T>(call: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let result = black_box(call());
    (start.elapsed().as_secs_f64() * 1e3, result)
}

/// Median and shortest time of a call, in milliseconds.
fn times<T>(mut call: impl FnMut() -> T) -> [f64; 2] {
    call();
    let mut all: Vec<f64> = (0..CALLS).map(|_| time(&mut call).0).collect();
    all.sort_by(f64::total_cmp);
    [all[CALLS / 2], all[0]]
}

/// Mean times over all images of a folder, one call each.
fn totals(preprocess: &Preprocess, folder: &Path) {
    let files = list_images(folder).expect("a folder that can be read");
    let mut values = vec![0.0; 224 * 224 * 3];
    let mut sums = [0.0; 3];
    for file in &files {
        let bytes = std::fs::read(file).expect("a file that can be read");
        let (decoding, picture) = time(|| decode(&bytes, "an image").expect("an image"));
        let (fitting, fitted) = time(|| preprocess.fit(&picture).expect("a picture that can be prepared"));
        let (normalising, ()) =
            time(|| preprocess.normalise(&fitted, &mut values).expect("a fitted picture"));
        black_box(&values);
        sums.iter_mut().zip([decoding, fitting, normalising]).for_each(|(sum, ms)| *sum += ms);
    }
    let [decoding, fitting, normalising] = sums.map(|sum| sum / files.len().max(1) as f64);
    println!(
        r#"{{"files": {}, "decode_ms": {decoding:.4}, "resize_crop_ms": {fitting:.4}, "normalise_ms": {normalising:.4}}}"#,
        files.len()
    );
}

fn main() {
    let preprocess = Preprocess {
        interpolation: Interpolation::Bicubic,
        crop_pct: 0.875,
        ..Preprocess::exact([224, 224], Normalisation::imagenet())
    };
    // Cargo adds flags of its own.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [flag, folder] = &arguments[..]
        && flag == "--totals"
    {
        return totals(&preprocess, Path::new(folder));
    }
    println!("{:28} {:>18} {:>18} {:>18}", "file", "decode ms", "resize, crop ms", "normalise ms");
    for file in arguments {
        let bytes = std::fs::read(&file).expect("a file that can be read");
        let picture = decode(&bytes, &file).expect("an image");
        let fitted = preprocess.fit(&picture).expect("a picture that can be prepared");
        let mut values = vec![0.0; 224 * 224 * 3];
        let decoding = times(|| decode(&bytes, &file));
        let fitting = times(|| preprocess.fit(&picture));
        let normalising = times(|| {
            preprocess.normalise(&fitted, &mut values).expect("a fitted picture");
            black_box(&values);
        });
        let name = Path::new(&file).file_name().unwrap_or_default().to_string_lossy();
        let cells =
            [decoding, fitting, normalising].map(|[median, least]| format!("{median:.3} ({least:.3})"));
        println!("{name:28} {:>18} {:>18} {:>18}", cells[0], cells[1], cells[2]);
    }
}
