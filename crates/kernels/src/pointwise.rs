//! Work on each value by itself.

use crate::Context;

/// Values of a piece that one task takes.
const PIECE: usize = 1 << 14;

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
