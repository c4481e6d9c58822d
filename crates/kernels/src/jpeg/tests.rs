//! Against the definitions, in `f64`. That the rounding is libjpeg's is tested on Pillow's pixels, in the library.

use super::*;
use crate::Level;
use crate::testing::Random;
use std::f64::consts::PI;

/// The inverse transform of T.81, A.3.3.
fn textbook(block: &[f64; BLOCK]) -> [f64; BLOCK] {
    let scale = |frequency: usize| if frequency == 0 { 0.5f64.sqrt() } else { 1.0 };
    let wave = |at: usize, frequency: usize| ((2 * at + 1) as f64 * frequency as f64 * PI / 16.0).cos();
    std::array::from_fn(|at| {
        let terms = (0..BLOCK).map(|index| {
            let (v, u) = (index / 8, index % 8);
            scale(u) * scale(v) * block[index] * wave(at % 8, u) * wave(at / 8, v)
        });
        (terms.sum::<f64>() / 4.0 + 128.0).clamp(0.0, 255.0)
    })
}

#[test]
fn the_transform_is_the_inverse_cosine_transform_at_every_level() {
    let mut random = Random::new(11);
    for level in Level::available() {
        let mut quantisation = [0u16; BLOCK];
        quantisation.fill_with(|| random.within(1..=20) as u16);
        let mut blocks = vec![[0i16; BLOCK]; 50];
        for (index, block) in blocks.iter_mut().enumerate() {
            block[0] = random.within(0..=80) as i16 - 40;
            for _ in 0..index {
                block[random.below(BLOCK)] = random.within(0..=16) as i16 - 8;
            }
        }
        let pitch = 50 * 8 + 3;
        let mut samples = vec![0; 8 * pitch];
        inverse_dct(level, &blocks, &quantisation, &mut samples, pitch);
        for (index, block) in blocks.iter().enumerate() {
            let expected =
                textbook(&std::array::from_fn(|at| f64::from(block[at]) * f64::from(quantisation[at])));
            for (at, expected) in expected.into_iter().enumerate() {
                let found = f64::from(samples[at / 8 * pitch + index * 8 + at % 8]);
                // Half a level for the last rounding; the first pass keeps two fractional bits.
                assert!(
                    (found - expected).abs() < 1.0,
                    "block {index} at {at}: {found}, expected {expected}"
                );
            }
        }
    }
}

#[test]
fn halves_lie_a_quarter_of_the_way_to_the_next_sample() {
    let mut random = Random::new(12);
    for level in Level::available() {
        for width in 1..40 {
            let mut row = || -> Vec<u8> { (0..width).map(|_| random.below(256) as u8).collect() };
            let (near, far) = (row(), row());
            let column = |at: isize| {
                let at = at.clamp(0, width as isize - 1) as usize;
                (f64::from(near[at]), 0.75 * f64::from(near[at]) + 0.25 * f64::from(far[at]))
            };
            for (expansion, columns) in [(Expansion::Across, 2), (Expansion::Down, 1), (Expansion::Both, 2)] {
                for below in [false, true] {
                    let mut out = vec![0; columns * width];
                    upsample_row(level, expansion, [&near, &far], below, &mut out);
                    for (at, &found) in out.iter().enumerate() {
                        let centre = (at / columns) as isize;
                        let next = if at % 2 == 0 { centre - 1 } else { centre + 1 };
                        let expected = match expansion {
                            Expansion::Across => 0.75 * column(centre).0 + 0.25 * column(next).0,
                            Expansion::Down => column(centre).1,
                            _ => 0.75 * column(centre).1 + 0.25 * column(next).1,
                        };
                        // One rounding, up or down.
                        assert!((f64::from(found) - expected).abs() <= 0.75, "{expansion:?} {at}");
                    }
                }
            }
            for times in [1, 2, 3] {
                // The picture may end within the last sample.
                let mut out = vec![0; times * width - (times - 1)];
                upsample_row(level, Expansion::Repeat(times), [&near, &far], false, &mut out);
                assert!(out.iter().enumerate().all(|(at, &sample)| sample == near[at / times]));
            }
        }
    }
}

#[test]
fn colours_are_those_of_the_standard() {
    for level in Level::available() {
        for y in (0..256).step_by(5) {
            let red: Vec<u8> = (0..=255).collect();
            for cb in (0..256).step_by(17) {
                let (luma, blue) = ([y as u8; 256], [cb as u8; 256]);
                let mut out = [0; 256 * 3];
                ycc_to_rgb(level, [&luma, &blue, &red], &mut out);
                for (cr, pixel) in out.chunks_exact(3).enumerate() {
                    let (y, cb, cr) = (f64::from(y), f64::from(cb) - 128.0, cr as f64 - 128.0);
                    let expected = [y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb];
                    for (&found, expected) in pixel.iter().zip(expected) {
                        assert!((f64::from(found) - expected.clamp(0.0, 255.0)).abs() < 0.51);
                    }
                }
            }
        }
    }
    let mut out = [0; 6];
    inverted_cmyk_to_rgb([&[255, 0], &[255, 255], &[0, 255], &[255, 128]], &mut out);
    assert_eq!(out, [255, 255, 0, 0, 128, 128]);
}
