//! Time to decode an image file and to prepare its picture for a network, on one thread.
//!
//! `cargo bench -p stridenet --bench images -- FILES…` prints milliseconds, the median and the shortest of 30 calls each;
//! `bench/peers/images.py FILES…` prints what Pillow takes for the same.

use std::path::Path;
use std::time::Instant;
use stridenet::image::{Interpolation, Normalisation, Preprocess, decode};

const CALLS: usize = 30;

/// Median and shortest time of a call, in milliseconds.
fn times(mut call: impl FnMut()) -> [f64; 2] {
    call();
    let time = |_| {
        let start = Instant::now();
        call();
        start.elapsed().as_secs_f64() * 1e3
    };
    let mut all: Vec<f64> = (0..CALLS).map(time).collect();
    all.sort_by(f64::total_cmp);
    [all[CALLS / 2], all[0]]
}

fn main() {
    let preprocess = Preprocess {
        interpolation: Interpolation::Bicubic,
        crop_pct: 0.875,
        ..Preprocess::exact([224, 224], Normalisation::imagenet())
    };
    println!("{:28} {:>18} {:>18} {:>18}", "file", "decode ms", "resize, crop ms", "normalise ms");
    for file in std::env::args().skip(1).filter(|argument| !argument.starts_with("--")) {
        let bytes = std::fs::read(&file).expect("a file that can be read");
        let picture = decode(&bytes, &file).expect("an image");
        let fitted = preprocess.fit(&picture).expect("a picture that can be prepared");
        let mut values = vec![0.0; 224 * 224 * 3];
        let decoding = times(|| drop(std::hint::black_box(decode(&bytes, &file))));
        let fitting = times(|| drop(std::hint::black_box(preprocess.fit(&picture))));
        let normalising = times(|| {
            preprocess.normalise(&fitted, &mut values).expect("a fitted picture");
            std::hint::black_box(&values);
        });
        let name = Path::new(&file).file_name().unwrap_or_default().to_string_lossy();
        let cells =
            [decoding, fitting, normalising].map(|[median, least]| format!("{median:.3} ({least:.3})"));
        println!("{name:28} {:>18} {:>18} {:>18}", cells[0], cells[1], cells[2]);
    }
}
