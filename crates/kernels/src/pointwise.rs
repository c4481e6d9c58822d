//! Work on each value by itself.

use crate::Context;

/// Values of a piece that one task takes.
const PIECE: usize = 1 << 14;

/// A step of stochastic gradient descent, with PyTorch's meaning of each hyper-parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f32,
    /// Share of the velocity that is kept.
    pub momentum: f32,
    /// Whether the step is made along `gradient + momentum · velocity` instead of the velocity.
    pub nesterov: bool,
    /// L2 penalty: this times the value is added to the gradient.
    pub weight_decay: f32,
}

/// Changes `value` by its gradient: `g = grad + weight_decay · value`; `velocity = momentum · velocity + g`, or `g` alone
/// on the first step; `value −= lr · velocity`, or with Nesterov `lr · (g + momentum · velocity)`.
///
/// # Panics
/// When lengths differ.
pub fn sgd_step(cx: &Context, sgd: Sgd, value: &mut [f32], grad: &[f32], velocity: &mut [f32], first: bool) {
    assert!(value.len() == grad.len() && value.len() == velocity.len(), "one gradient and velocity a value");
    let Sgd { lr, momentum, nesterov, weight_decay } = sgd;
    let vectors = value.chunks_mut(PIECE).zip(grad.chunks(PIECE)).zip(velocity.chunks_mut(PIECE));
    let mut pieces: Vec<_> = vectors.collect();
    cx.pool().pieces(&mut pieces, 1, |_, piece| {
        for ((value, grad), velocity) in piece {
            for ((value, &grad), velocity) in value.iter_mut().zip(*grad).zip(velocity.iter_mut()) {
                let gradient = grad + weight_decay * *value;
                *velocity = if first { gradient } else { momentum * *velocity + gradient };
                let step = if nesterov { gradient + momentum * *velocity } else { *velocity };
                *value -= lr * step;
            }
        }
    });
}

/// `to += from`.
///
/// # Panics
/// When lengths differ.
pub fn add(cx: &Context, from: &[f32], to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "as many values in each");
    cx.pool().pieces(to, PIECE, |index, to| {
        let from = &from[index * PIECE..][..to.len()];
        to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
    });
}

/// `x · factors`, a factor for each pixel: `x` is `[N, H, W, C]`, `factors` `[N, H, W]`.
///
/// # Panics
/// When there is not one factor for each pixel.
pub fn scale_pixels(cx: &Context, factors: &[f32], x: &mut [f32]) {
    assert!(!factors.is_empty() && x.len().is_multiple_of(factors.len()), "a factor for each pixel");
    let channels = x.len() / factors.len();
    let pixels = (PIECE / channels.max(1)).max(1);
    cx.pool().pieces(x, pixels * channels, |index, x| {
        let factors = &factors[index * pixels..];
        for (pixel, factor) in x.chunks_exact_mut(channels).zip(factors) {
            pixel.iter_mut().for_each(|value| *value *= factor);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;
    use crate::testing::Random;

    /// PyTorch's documented update, in f64 and one value at a time.
    #[test]
    fn steps_follow_the_published_rule() {
        let mut random = Random::new(31);
        let cx = Context::new(Level::detect(), 3);
        for nesterov in [false, true] {
            let sgd = Sgd { lr: 0.1, momentum: 0.9, nesterov, weight_decay: 0.01 };
            let mut value = random.values(40_000);
            let mut velocity = vec![f32::NAN; value.len()];
            let mut expected: Vec<(f64, f64)> = value.iter().map(|&value| (f64::from(value), 0.0)).collect();
            for step in 0..3 {
                let grad = random.values(value.len());
                sgd_step(&cx, sgd, &mut value, &grad, &mut velocity, step == 0);
                for ((value, velocity), grad) in expected.iter_mut().zip(&grad) {
                    let g = f64::from(*grad) + 0.01 * *value;
                    *velocity = if step == 0 { g } else { 0.9 * *velocity + g };
                    *value -= 0.1 * if nesterov { g + 0.9 * *velocity } else { *velocity };
                }
            }
            // A dozen roundings of values below 4.
            let close = |(&found, (expected, _)): (&f32, &(f64, f64))| {
                (f64::from(found) - expected).abs() < 48.0 * 6e-8
            };
            assert!(value.iter().zip(&expected).all(close));
        }
    }

    #[test]
    fn each_pixel_has_its_factor() {
        let (mut random, cx) = (Random::new(33), Context::new(Level::detect(), 3));
        for [pixels, channels] in [[1, 1], [700, 64], [5, 20_000]] {
            let (factors, mut x) = (random.values(pixels), random.values(pixels * channels));
            let expected: Vec<f32> =
                x.iter().enumerate().map(|(index, value)| value * factors[index / channels]).collect();
            scale_pixels(&cx, &factors, &mut x);
            assert!(x == expected);
        }
    }

    #[test]
    fn sums_are_exact_to_a_rounding() {
        let (mut random, cx) = (Random::new(32), Context::new(Level::detect(), 3));
        let (from, mut to) = (random.values(40_001), random.values(40_001));
        let expected: Vec<f32> = from.iter().zip(&to).map(|(a, b)| a + b).collect();
        add(&cx, &from, &mut to);
        assert!(to == expected);
    }
}
