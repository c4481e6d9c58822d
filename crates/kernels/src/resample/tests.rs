//! The passes against sums in `f64` over the filters' textbook formulas, at every level. That they are Pillow's to the bit is
//! tested on Pillow's own results, in the library.

use super::*;
use crate::testing::Random;
use std::f64::consts::PI;

const FILTERS: [Filter; 5] =
    [Filter::Box, Filter::Bilinear, Filter::Hamming, Filter::Bicubic, Filter::Lanczos];

/// A filter's support, and its value.
fn textbook(filter: Filter, x: f64) -> (f64, f64) {
    let sinc = |x: f64| if x.abs() < 1e-12 { 1.0 } else { (PI * x).sin() / (PI * x) };
    let x = x.abs();
    let within = |support: f64, value: f64| (support, if x < support { value } else { 0.0 });
    match filter {
        Filter::Box => within(0.5, 1.0),
        Filter::Bilinear => within(1.0, 1.0 - x),
        Filter::Hamming => within(1.0, sinc(x) * (0.54 + 0.46 * (PI * x).cos())),
        Filter::Bicubic if x < 1.0 => (2.0, 1.5 * x.powi(3) - 2.5 * x.powi(2) + 1.0),
        Filter::Bicubic => within(2.0, -0.5 * x.powi(3) + 2.5 * x.powi(2) - 4.0 * x + 2.0),
        Filter::Lanczos => within(3.0, sinc(x) * sinc(x / 3.0)),
    }
}

/// One axis of a picture `[rows, positions, inner]` scaled, rounded and clipped.
fn scale(
    filter: Filter,
    samples: &[f64],
    [input, inner]: [usize; 2],
    output: usize,
    range: &std::ops::Range<usize>,
) -> Vec<f64> {
    let mut out = Vec::new();
    for row in samples.chunks_exact(input * inner) {
        for position in range.clone() {
            let ratio = input as f64 / output as f64;
            let (widening, centre) = (ratio.max(1.0), (position as f64 + 0.5) * ratio);
            let support = textbook(filter, 0.0).0 * widening;
            let reached = |at: f64| at > centre - support - 1e-9 && at < centre + support + 1e-9;
            let weights: Vec<(usize, f64)> = (0..input)
                .filter(|&at| reached(at as f64 + 0.5))
                .map(|at| (at, textbook(filter, (at as f64 + 0.5 - centre) / widening).1))
                .collect();
            let total: f64 = weights.iter().map(|weight| weight.1).sum();
            for channel in 0..inner {
                let sum: f64 = weights.iter().map(|(at, weight)| row[at * inner + channel] * weight).sum();
                out.push((sum / total).round().clamp(0.0, 255.0));
            }
        }
    }
    out
}

#[test]
fn every_filter_is_its_formula_on_random_shapes_at_every_level() {
    let mut random = Random::new(5);
    let (mut samples, mut differ) = (0, 0);
    for round in 0..300 {
        let filter = FILTERS[round % 5];
        let channels = if random.coin() { 1 } else { 3 };
        let [height, width] = [0; 2].map(|_| random.within(1..=40));
        let picture: Vec<u8> =
            random.values(height * width * channels).iter().map(|v| (v * 127.5 + 127.5) as u8).collect();
        let inner = |random: &mut Random, side: usize| {
            let start = random.below(side);
            (start, random.within(1..=side - start))
        };
        let (top, rows) = inner(&mut random, height);
        let (left, columns) = inner(&mut random, width);
        // Odd sizes make ties of the box filter's ends rare; those it rounds differently from the formula.
        let output = [0; 2].map(|_| 2 * random.within(0..=40) + 1);
        let range = output.map(|side| {
            let (start, length) = inner(&mut random, side);
            start..start + length
        });
        let region = Region::new(&picture, [height, width, channels], [top, left], [rows, columns]);
        let taps = [
            Taps::new(filter, rows, output[0], range[0].clone()),
            Taps::new(filter, columns, output[1], range[1].clone()),
        ];
        let wide: Vec<f64> = (0..rows).flat_map(|row| region.row(row)).map(|&v| f64::from(v)).collect();
        let expected = match rows_first([rows, columns], output) {
            true => {
                let low = scale(filter, &wide, [rows, columns * channels], output[0], &range[0]);
                scale(filter, &low, [columns, channels], output[1], &range[1])
            }
            false => {
                let narrow = scale(filter, &wide, [columns, channels], output[1], &range[1]);
                scale(filter, &narrow, [rows, range[1].len() * channels], output[0], &range[0])
            }
        };
        let results: Vec<Vec<u8>> = Level::available()
            .into_iter()
            .map(|level| resample(level, region, [&taps[0], &taps[1]]))
            .collect();
        assert!(results.iter().all(|result| *result == results[0]), "levels differ in round {round}");
        assert_eq!(results[0].len(), expected.len());
        for (&found, &expected) in results[0].iter().zip(&expected) {
            // A sum that ends in one half may be rounded either way, in each pass.
            if filter != Filter::Box {
                assert!(
                    (f64::from(found) - expected).abs() <= 2.0,
                    "{filter:?}: {found}, expected {expected}"
                );
            }
            samples += 1;
            differ += usize::from(f64::from(found) != expected);
        }
    }
    assert!(differ * 100 < samples, "{differ} of {samples} samples differ");
}

#[test]
fn the_same_size_is_the_same_picture() {
    let picture: Vec<u8> = (0..7 * 5 * 3).map(|value| (value * 37 % 256) as u8).collect();
    for filter in FILTERS {
        let taps = [7, 5].map(|side| Taps::new(filter, side, side, 0..side));
        let region = Region::new(&picture, [7, 5, 3], [0, 0], [7, 5]);
        assert_eq!(resample(Level::detect(), region, [&taps[0], &taps[1]]), picture, "{filter:?}");
    }
}

#[test]
fn without_antialiasing_four_pixels_in_the_middle_make_half_a_picture_of_eight() {
    // Halves of 8 pixels: each lies between two of them, whatever lies beyond.
    let picture = [0, 10, 200, 100, 50, 70, 9, 11];
    let region = Region::new(&picture, [1, 8, 1], [0, 0], [1, 8]);
    let rows = Taps::new(Filter::Bilinear, 1, 1, 0..1);
    let quarter = Taps::aliased(Filter::Bilinear, 8, 2, 0..2);
    assert_eq!(resample(Level::detect(), region, [&rows, &quarter]), [105, 40]);
}
