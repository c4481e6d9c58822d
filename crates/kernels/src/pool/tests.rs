//! Every pool against its definition in plain loops and f64, forward and backward, at every level.

use super::*;
use crate::Context;
use crate::conv::{AverageWindow, Edge, Window};
use crate::testing::{Random, contexts, widen};

const SHAPES: usize = 220;

struct Shape {
    images: usize,
    input: [usize; 2],
    channels: usize,
}

impl Shape {
    fn random(random: &mut Random) -> Shape {
        let input = [1 + random.below(12), 1 + random.below(12)];
        // Fewer and more than are handled together.
        let most = [40, 150][random.below(2)];
        let channels = 1 + random.below(most);
        Shape { images: 1 + random.below(3), input, channels }
    }

    fn input_len(&self) -> usize {
        self.images * self.input[0] * self.input[1] * self.channels
    }

    /// Index of a value in a tensor of `size` pixels.
    fn at(&self, size: [usize; 2], n: usize, [y, x]: [usize; 2], c: usize) -> usize {
        ((n * size[0] + y) * size[1] + x) * self.channels + c
    }
}

#[test]
fn max_pools_agree_with_the_definition() {
    let (mut random, contexts) = (Random::new(41), contexts());
    let mut tried = 0;
    while tried < SHAPES {
        let shape = Shape::random(&mut random);
        let window = |random: &mut Random| {
            let (kernel, dilation) = (1 + random.below(5), 1 + random.below(2));
            let padding = random.below(dilation * (kernel - 1) / 2 + 1);
            Window { kernel, stride: 1 + random.below(3), padding, dilation }
        };
        let windows = [window(&mut random), window(&mut random)];
        let Ok(pool) = MaxPool::new(windows, shape.input) else { continue };
        tried += 1;
        let size = pool.output();
        let outputs = shape.images * size[0] * size[1] * shape.channels;
        // Few different values, so that there are ties.
        let x: Vec<f32> =
            random.values(shape.input_len()).iter().map(|value| (value * 3.0).round()).collect();
        let dy = random.values(outputs);
        let mut expected = vec![(f64::NEG_INFINITY, 0, 0); outputs];
        for n in 0..shape.images {
            for place in (0..size[0]).flat_map(|y| (0..size[1]).map(move |x| [y, x])) {
                for c in 0..shape.channels {
                    for tap in 0..windows[0].kernel * windows[1].kernel {
                        let [ky, kx] = [tap / windows[1].kernel, tap % windows[1].kernel];
                        let iy = windows[0].source(place[0], ky, shape.input[0]);
                        let Some((iy, ix)) = iy.zip(windows[1].source(place[1], kx, shape.input[1])) else {
                            continue;
                        };
                        let from = shape.at(shape.input, n, [iy, ix], c);
                        let best = &mut expected[shape.at(size, n, place, c)];
                        if f64::from(x[from]) > best.0 {
                            *best = (f64::from(x[from]), tap, from);
                        }
                    }
                }
            }
        }
        let mut dx_expected = vec![0.0; x.len()];
        for ((_, _, from), dy) in expected.iter().zip(&dy) {
            dx_expected[*from] += f64::from(*dy);
        }
        for cx in &contexts {
            // Up to 16 taps: half a byte for each channel, the first one in the lower half.
            let paired = windows[0].kernel * windows[1].kernel <= 16;
            let bytes = if paired { shape.channels.div_ceil(2) } else { shape.channels };
            let length = outputs / shape.channels * bytes;
            assert_eq!(pool.winners_len(shape.images, shape.channels), length);
            let (mut y, mut winners) = (vec![f32::NAN; outputs], vec![u8::MAX; length]);
            pool.forward(cx, shape.channels, &x, &mut y, &mut winners);
            let taps = winners.chunks(bytes).flat_map(|pixel| {
                (0..shape.channels).map(move |c| match paired {
                    true => pixel[c / 2] >> (4 * (c % 2)) & 15,
                    false => pixel[c],
                })
            });
            let found = y.iter().zip(taps).map(|(&y, tap)| (f64::from(y), usize::from(tap)));
            assert!(
                found.eq(expected.iter().map(|&(y, tap, _)| (y, tap))),
                "{windows:?} {}",
                cx.level().name()
            );
            let mut dx = vec![f32::NAN; x.len()];
            pool.backward(cx, shape.channels, &dy, &winners, &mut dx);
            // At most 25 gradients of at most 1 meet in one pixel.
            assert!(
                dx.iter()
                    .zip(&dx_expected)
                    .all(|(&dx, expected)| (f64::from(dx) - expected).abs() < 25.0 * 25.0 * 6e-8)
            );
        }
    }
}

/// A linear pool's definition: the weight of input pixel `[k, l]` in output pixel `[i, j]`.
type Weight = dyn Fn(usize, usize, usize) -> f64;

/// Checks `pool` against the products of `weight(axis, output, input)`, in both directions.
fn check(
    pool: &LinearPool,
    shape: &Shape,
    out_channels: usize,
    weight: &Weight,
    contexts: &[Context],
    random: &mut Random,
) {
    let (size, before) = (pool.output(), (out_channels - shape.channels) / 2);
    let (x, dy) =
        (random.values(shape.input_len()), random.values(shape.images * size[0] * size[1] * out_channels));
    let (x64, dy64) = (widen(&x), widen(&dy));
    let (mut y_expected, mut dx_expected) = (vec![0.0; dy.len()], vec![0.0; x.len()]);
    for n in 0..shape.images {
        for (i, j) in (0..size[0]).flat_map(|i| (0..size[1]).map(move |j| (i, j))) {
            for (k, l) in (0..shape.input[0]).flat_map(|k| (0..shape.input[1]).map(move |l| (k, l))) {
                let weight = weight(0, i, k) * weight(1, j, l);
                for c in 0..shape.channels {
                    let from = shape.at(shape.input, n, [k, l], c);
                    let to = ((n * size[0] + i) * size[1] + j) * out_channels + before + c;
                    y_expected[to] += weight * x64[from];
                    dx_expected[from] += weight * dy64[to];
                }
            }
        }
    }
    // Weights of an output sum to 1, those of an input to at most 4; at most 144 products of at most 1 each.
    let close = |found: &[f32], expected: &[f64]| {
        found
            .iter()
            .zip(expected)
            .all(|(&found, expected)| (f64::from(found) - expected).abs() <= 150.0 * 4.0 * 6e-8)
    };
    for cx in contexts {
        let (mut y, mut dx) = (vec![f32::NAN; dy.len()], vec![f32::NAN; x.len()]);
        pool.forward(cx, &x, &mut y);
        pool.backward(cx, &dy, &mut dx);
        assert!(close(&y, &y_expected) && close(&dx, &dx_expected), "{pool:?} {}", cx.level().name());
    }
}

#[test]
fn average_pools_agree_with_the_definition() {
    let (mut random, contexts) = (Random::new(42), contexts());
    for _ in 0..SHAPES {
        let (shape, stride, kernel) = (Shape::random(&mut random), 1 + random.below(3), 1 + random.below(3));
        let input = shape.input;
        let edge = [Edge::Partial, Edge::Drop, Edge::Zeros][random.below(3)];
        let window = AverageWindow { kernel, stride, edge };
        let Ok(pool) = LinearPool::average(shape.input, shape.channels, window) else {
            assert!(edge == Edge::Drop && input.into_iter().any(|size| size < kernel));
            continue;
        };
        let weight = move |axis: usize, output: usize, from: usize| {
            let (first, last) = (output * stride, output * stride + kernel);
            let there = (first..last).filter(|&position| position < input[axis]).count();
            let size = if edge == Edge::Partial { there } else { kernel };
            if (first..last).contains(&from) { 1.0 / size as f64 } else { 0.0 }
        };
        check(&pool, &shape, shape.channels, &weight, &contexts, &mut random);
        let pool = LinearPool::global_average(shape.input, shape.channels).unwrap();
        assert_eq!(pool.output(), [1, 1]);
        let weight = move |axis: usize, _: usize, _: usize| 1.0 / input[axis] as f64;
        check(&pool, &shape, shape.channels, &weight, &contexts, &mut random);
    }
}

#[test]
fn blur_pools_agree_with_the_definition() {
    let (mut random, contexts) = (Random::new(43), contexts());
    for _ in 0..SHAPES {
        let (shape, stride) = (Shape::random(&mut random), 1 + random.below(3));
        let input = shape.input;
        // The padded signal written out: index −1 is 1, index n is n − 2.
        let weight = move |axis: usize, output: usize, from: usize| {
            let size = input[axis] as isize;
            let padded = |place: isize| {
                if size == 1 {
                    0
                } else {
                    [1, size - 2, place][if place < 0 {
                        0
                    } else if place == size {
                        1
                    } else {
                        2
                    }]
                }
            };
            let centre = (output * stride) as isize;
            let tap =
                |step: isize, weight: f64| if padded(centre + step) == from as isize { weight } else { 0.0 };
            tap(-1, 0.25) + tap(0, 0.5) + tap(1, 0.25)
        };
        let pool = LinearPool::blur(shape.input, shape.channels, stride).unwrap();
        check(&pool, &shape, shape.channels, &weight, &contexts, &mut random);
    }
}

#[test]
fn subsampling_keeps_every_stride_th_pixel_between_zero_channels() {
    let (mut random, contexts) = (Random::new(44), contexts());
    for _ in 0..SHAPES {
        let (shape, stride) = (Shape::random(&mut random), 1 + random.below(3));
        let out_channels = shape.channels + random.below(20);
        let weight = move |_: usize, output: usize, from: usize| f64::from(u8::from(from == output * stride));
        let pool = LinearPool::subsample(shape.input, [shape.channels, out_channels], stride).unwrap();
        check(&pool, &shape, out_channels, &weight, &contexts, &mut random);
    }
    assert!(LinearPool::subsample([4, 4], [8, 4], 2).is_err());
    assert!(LinearPool::average([4, 4], 8, AverageWindow::partial(0)).is_err());
}

/// A linear pool's gradient is exact under any step; a max pool's wherever the step changes no winner, which steps of a
/// quarter among whole numbers and halves do not. Kernels in f32, differences of sums in f64.
#[test]
fn gradients_are_finite_differences() {
    let mut random = Random::new(45);
    let cx = Context::new(crate::Level::detect(), 2);
    let window = Window { kernel: 3, stride: 2, padding: 1, dilation: 1 };
    for _ in 0..50 {
        let mut shape = Shape::random(&mut random);
        shape.input = shape.input.map(|side| side + 1);
        let max = MaxPool::new([window; 2], shape.input).unwrap();
        let blur = LinearPool::blur(shape.input, shape.channels, 2).unwrap();
        let outputs = shape.images * max.output()[0] * max.output()[1] * shape.channels;
        // A permutation: all values differ by 1 at least.
        let mut x: Vec<f32> = (0..shape.input_len()).map(|value| value as f32).collect();
        (1..x.len()).for_each(|place| x.swap(place, random.below(place + 1)));
        let dy = random.values(outputs);
        let forward = |x: &[f32]| {
            let (mut sharp, mut soft) = (vec![0.0; outputs], vec![0.0; outputs]);
            let mut winners = vec![0; max.winners_len(shape.images, shape.channels)];
            max.forward(&cx, shape.channels, x, &mut sharp, &mut winners);
            blur.forward(&cx, x, &mut soft);
            let loss =
                |y: &[f32]| y.iter().zip(&dy).map(|(y, dy)| f64::from(*y) * f64::from(*dy)).sum::<f64>();
            ([loss(&sharp), loss(&soft)], winners)
        };
        let (_, winners) = forward(&x);
        let (mut sharp, mut soft) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        max.backward(&cx, shape.channels, &dy, &winners, &mut sharp);
        blur.backward(&cx, &dy, &mut soft);
        let place = random.below(x.len());
        let old = x[place];
        x[place] = old + 0.25;
        let (up, _) = forward(&x);
        x[place] = old - 0.25;
        let (down, _) = forward(&x);
        // Blurred values are sixteenths of whole numbers below 2¹⁵ and a quarter: exact in f32.
        for (slope, found) in [(up[0] - down[0], sharp[place]), (up[1] - down[1], soft[place])] {
            assert!((2.0 * slope - f64::from(found)).abs() < 1e-5, "{slope} {found}");
        }
    }
}

#[test]
fn nan_wins_and_padding_never_does() {
    let window = Window { kernel: 3, stride: 2, padding: 1, dilation: 1 };
    let pool = MaxPool::new([window; 2], [3, 3]).unwrap();
    let mut x = vec![-5.0; 9];
    x[8] = f32::NAN;
    for cx in contexts() {
        let (mut y, mut winners) = (vec![0.0; 4], vec![0; 4]);
        pool.forward(&cx, 1, &x, &mut y, &mut winners);
        assert_eq!(y[..3], [-5.0; 3]);
        assert!(y[3].is_nan() && winners[3] == 4);
    }
    assert!(MaxPool::new([Window { padding: 3, ..window }; 2], [3, 3]).is_err());
}
