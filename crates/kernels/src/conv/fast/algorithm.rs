//! Fast filtering along one axis: a tile of outputs with fewer products than a multiply-add for each tap.
//!
//! Each algorithm computes `m` outputs of a filter of `r` taps as `Aᵀ[(G w) ⊙ (Bᵀ d)]` (Toom and Cook; Winograd 1980;
//! for convolutional networks Lavin & Gray 2015, arXiv 1509.09308). A two-dimensional tile applies it along both axes.
//! A point of the interpolation that only the last output needs can be left out: that is a short tile of `m − 1`
//! outputs with the same weights.

use super::pack::Precision;
use crate::simd::Simd;
use std::f64::consts::{FRAC_1_SQRT_2, SQRT_2};

#[cfg(test)]
mod tests;

/// Most values that a tile reads or multiplies along one axis.
pub(super) const MAX: usize = 8;

/// One algorithm F(m, r) along one axis.
pub(super) trait Algorithm {
    /// Taps of the filter, r.
    const TAPS: usize;
    /// Outputs of a full tile, m.
    const OUTPUTS: usize;
    /// Step between the outputs' windows.
    const STRIDE: usize;
    /// Products of a full tile.
    const POINTS: usize;
    /// The points that only the last output needs.
    const LAST: &'static [usize];
    /// Values that a full tile reads.
    const INPUTS: usize = (Self::OUTPUTS - 1) * Self::STRIDE + Self::TAPS;

    /// Row `point` of G, one factor a tap.
    fn weights(point: usize) -> Vec<f64>;

    /// `G w` of the [`TAPS`](Self::TAPS) first values.
    fn filter<P: Precision>(p: P, w: [P::V; MAX]) -> [P::V; MAX];

    /// `Bᵀ d` of the [`INPUTS`](Self::INPUTS) first values.
    fn input<S: Simd>(simd: S, d: [S::V; MAX]) -> [S::V; MAX];

    /// `Aᵀ m` of the [`POINTS`](Self::POINTS) first products.
    fn output<S: Simd>(simd: S, m: [S::V; MAX]) -> [S::V; MAX];

    /// `A y` of the [`OUTPUTS`](Self::OUTPUTS) first values: the transpose of [`output`](Self::output).
    fn gradient<S: Simd>(simd: S, y: [S::V; MAX]) -> [S::V; MAX];

    /// Whether a short tile leaves the point out.
    fn is_last(point: usize) -> bool {
        Self::LAST.contains(&point)
    }
}

/// F(2, 3) with the points 1, −1, 0, ∞.
pub(super) struct F2;

impl Algorithm for F2 {
    const TAPS: usize = 3;
    const OUTPUTS: usize = 2;
    const STRIDE: usize = 1;
    const POINTS: usize = 4;
    const LAST: &'static [usize] = &[3];

    fn weights(point: usize) -> Vec<f64> {
        [[0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]][point].to_vec()
    }

    #[inline(always)]
    fn filter<P: Precision>(p: P, w: [P::V; MAX]) -> [P::V; MAX] {
        let half = p.splat(0.5);
        let (even, odd) = (p.mul(half, p.add(w[0], w[2])), p.mul(half, w[1]));
        let mut t = [p.splat(0.0); MAX];
        t[0] = p.add(even, odd);
        t[1] = p.sub(even, odd);
        t[2] = w[0];
        t[3] = w[2];
        t
    }

    #[inline(always)]
    fn input<S: Simd>(simd: S, d: [S::V; MAX]) -> [S::V; MAX] {
        let mut b = [simd.zero(); MAX];
        b[0] = simd.add(d[1], d[2]);
        b[1] = simd.sub(d[2], d[1]);
        b[2] = simd.sub(d[0], d[2]);
        b[3] = simd.sub(d[3], d[1]);
        b
    }

    #[inline(always)]
    fn output<S: Simd>(simd: S, m: [S::V; MAX]) -> [S::V; MAX] {
        let mut y = [simd.zero(); MAX];
        y[0] = simd.add(m[2], simd.add(m[0], m[1]));
        y[1] = simd.add(m[3], simd.sub(m[0], m[1]));
        y
    }

    #[inline(always)]
    fn gradient<S: Simd>(simd: S, y: [S::V; MAX]) -> [S::V; MAX] {
        let mut m = [simd.zero(); MAX];
        m[0] = simd.add(y[0], y[1]);
        m[1] = simd.sub(y[0], y[1]);
        m[2] = y[0];
        m[3] = y[1];
        m
    }
}

/// F(3, 3) with the points √½, −√½, √2, −√2, ∞: those of [`F4`] without 0.
///
/// Its weights are 25 values for each pair of channels of a two-dimensional tile, where [`F4`]'s are 36.
pub(super) struct F3;

impl Algorithm for F3 {
    const TAPS: usize = 3;
    const OUTPUTS: usize = 3;
    const STRIDE: usize = 1;
    const POINTS: usize = 5;
    const LAST: &'static [usize] = &[4];

    fn weights(point: usize) -> Vec<f64> {
        // The Lagrange polynomials' denominators are 2x(a² − b²) = −3x at ±a and 2x(b² − a²) = 3x at ±b.
        let at = |x: f64, factor: f64| vec![1.0 / (factor * x), 1.0 / factor, x / factor];
        match point {
            0 => at(F4::A, -3.0),
            1 => at(-F4::A, -3.0),
            2 => at(F4::B, 3.0),
            3 => at(-F4::B, 3.0),
            _ => vec![0.0, 0.0, 1.0],
        }
    }

    #[inline(always)]
    fn filter<P: Precision>(p: P, w: [P::V; MAX]) -> [P::V; MAX] {
        let (a, b) = (p.splat(F4::A / 3.0), p.splat(F4::B / 3.0));
        let odd_a = p.mul(a, p.add(p.add(w[0], w[0]), w[2]));
        let odd_b = p.mul(b, p.mul_add(p.splat(0.5), w[0], w[2]));
        let (third, minus_third) = (p.mul(p.splat(1.0 / 3.0), w[1]), p.mul(p.splat(-1.0 / 3.0), w[1]));
        let mut t = [p.splat(0.0); MAX];
        t[0] = p.sub(minus_third, odd_a);
        t[1] = p.add(minus_third, odd_a);
        t[2] = p.add(third, odd_b);
        t[3] = p.sub(third, odd_b);
        t[4] = w[2];
        t
    }

    #[inline(always)]
    fn input<S: Simd>(simd: S, d: [S::V; MAX]) -> [S::V; MAX] {
        let (a, b) = (simd.splat(F4::A as f32), simd.splat(F4::B as f32));
        let (minus_a, minus_b) = (simd.splat(-F4::A as f32), simd.splat(-F4::B as f32));
        let (minus_half, minus_two) = (simd.splat(-0.5), simd.splat(-2.0));
        let (even, odd) = (simd.mul_add(minus_two, d[0], d[2]), simd.mul_add(minus_two, d[1], d[3]));
        let mut t = [simd.zero(); MAX];
        t[0] = simd.mul_add(a, even, odd);
        t[1] = simd.mul_add(minus_a, even, odd);
        let (even, odd) = (simd.mul_add(minus_half, d[0], d[2]), simd.mul_add(minus_half, d[1], d[3]));
        t[2] = simd.mul_add(b, even, odd);
        t[3] = simd.mul_add(minus_b, even, odd);
        t[4] = simd.mul_add(simd.splat(-2.5), d[2], simd.add(d[0], d[4]));
        t
    }

    #[inline(always)]
    fn output<S: Simd>(simd: S, m: [S::V; MAX]) -> [S::V; MAX] {
        let (a, b) = (simd.splat(F4::A as f32), simd.splat(F4::B as f32));
        let (sum_a, difference_a) = (simd.add(m[0], m[1]), simd.sub(m[0], m[1]));
        let (sum_b, difference_b) = (simd.add(m[2], m[3]), simd.sub(m[2], m[3]));
        let mut y = [simd.zero(); MAX];
        y[0] = simd.add(sum_a, sum_b);
        y[1] = simd.mul_add(a, difference_a, simd.mul(b, difference_b));
        y[2] = simd.mul_add(simd.splat(0.5), sum_a, simd.mul_add(simd.splat(2.0), sum_b, m[4]));
        y
    }

    #[inline(always)]
    fn gradient<S: Simd>(simd: S, y: [S::V; MAX]) -> [S::V; MAX] {
        let (a, b) = (simd.splat(F4::A as f32), simd.splat(F4::B as f32));
        let (minus_a, minus_b) = (simd.splat(-F4::A as f32), simd.splat(-F4::B as f32));
        let even_a = simd.mul_add(simd.splat(0.5), y[2], y[0]);
        let even_b = simd.mul_add(simd.splat(2.0), y[2], y[0]);
        let mut m = [simd.zero(); MAX];
        m[0] = simd.mul_add(a, y[1], even_a);
        m[1] = simd.mul_add(minus_a, y[1], even_a);
        m[2] = simd.mul_add(b, y[1], even_b);
        m[3] = simd.mul_add(minus_b, y[1], even_b);
        m[4] = y[2];
        m
    }
}

/// F(4, 3) with the points √½, −√½, 0, ∞, √2, −√2.
///
/// These points keep the error at about twice that of the direct sum; with 0, ±1, ±2, ∞ it is more than four times
/// (Barabasz et al. 2018, arXiv 1803.10986, on the choice of points).
pub(super) struct F4;

impl F4 {
    const A: f64 = FRAC_1_SQRT_2;
    const B: f64 = SQRT_2;
}

impl Algorithm for F4 {
    const TAPS: usize = 3;
    const OUTPUTS: usize = 4;
    const STRIDE: usize = 1;
    const POINTS: usize = 6;
    const LAST: &'static [usize] = &[3];

    fn weights(point: usize) -> Vec<f64> {
        // With a² = 1/2 and b² = 2: the Lagrange polynomials' denominators are 2a²(a² − b²) = −3/2 at ±a,
        // 2b²(b² − a²) = 6 at ±b and a²b² = 1 at 0.
        let at = |x: f64, denominator: f64| vec![1.0 / denominator, x / denominator, x * x / denominator];
        match point {
            0 => at(Self::A, -1.5),
            1 => at(-Self::A, -1.5),
            2 => at(0.0, 1.0),
            3 => vec![0.0, 0.0, 1.0],
            4 => at(Self::B, 6.0),
            _ => at(-Self::B, 6.0),
        }
    }

    #[inline(always)]
    fn filter<P: Precision>(p: P, w: [P::V; MAX]) -> [P::V; MAX] {
        let third = p.splat(1.0 / 3.0);
        let (a, minus_a) = (p.splat(Self::A / 1.5), p.splat(-Self::A / 1.5));
        let (b, minus_b) = (p.splat(Self::B / 6.0), p.splat(-Self::B / 6.0));
        let even_a = p.mul(p.splat(-1.0 / 3.0), p.add(p.add(w[0], w[0]), w[2]));
        let even_b = p.mul(third, p.mul_add(p.splat(0.5), w[0], w[2]));
        let mut t = [p.splat(0.0); MAX];
        t[0] = p.mul_add(minus_a, w[1], even_a);
        t[1] = p.mul_add(a, w[1], even_a);
        t[2] = w[0];
        t[3] = w[2];
        t[4] = p.mul_add(b, w[1], even_b);
        t[5] = p.mul_add(minus_b, w[1], even_b);
        t
    }

    #[inline(always)]
    fn input<S: Simd>(simd: S, d: [S::V; MAX]) -> [S::V; MAX] {
        let (a, b) = (simd.splat(Self::A as f32), simd.splat(Self::B as f32));
        let (minus_a, minus_b) = (simd.splat(-Self::A as f32), simd.splat(-Self::B as f32));
        let (minus_half, minus_two, minus_sum) = (simd.splat(-0.5), simd.splat(-2.0), simd.splat(-2.5));
        let (even, odd) = (simd.mul_add(minus_two, d[2], d[4]), simd.mul_add(minus_two, d[1], d[3]));
        let mut t = [simd.zero(); MAX];
        t[0] = simd.mul_add(a, odd, even);
        t[1] = simd.mul_add(minus_a, odd, even);
        t[2] = simd.mul_add(minus_sum, d[2], simd.add(d[0], d[4]));
        t[3] = simd.mul_add(minus_sum, d[3], simd.add(d[1], d[5]));
        let (even, odd) = (simd.mul_add(minus_half, d[2], d[4]), simd.mul_add(minus_half, d[1], d[3]));
        t[4] = simd.mul_add(b, odd, even);
        t[5] = simd.mul_add(minus_b, odd, even);
        t
    }

    #[inline(always)]
    fn output<S: Simd>(simd: S, m: [S::V; MAX]) -> [S::V; MAX] {
        let (a, b) = (simd.splat(Self::A as f32), simd.splat(Self::B as f32));
        let (a3, b3) = (simd.splat((Self::A / 2.0) as f32), simd.splat((Self::B * 2.0) as f32));
        let (half, two) = (simd.splat(0.5), simd.splat(2.0));
        let (sum_a, difference_a) = (simd.add(m[0], m[1]), simd.sub(m[0], m[1]));
        let (sum_b, difference_b) = (simd.add(m[4], m[5]), simd.sub(m[4], m[5]));
        let mut y = [simd.zero(); MAX];
        y[0] = simd.add(m[2], simd.add(sum_a, sum_b));
        y[1] = simd.mul_add(a, difference_a, simd.mul(b, difference_b));
        y[2] = simd.mul_add(half, sum_a, simd.mul(two, sum_b));
        y[3] = simd.mul_add(a3, difference_a, simd.mul_add(b3, difference_b, m[3]));
        y
    }

    #[inline(always)]
    fn gradient<S: Simd>(simd: S, y: [S::V; MAX]) -> [S::V; MAX] {
        // A polynomial with the coefficients y at each point: its even part and its odd part, added and subtracted.
        let (a, b) = (simd.splat(Self::A as f32), simd.splat(Self::B as f32));
        let (half, two) = (simd.splat(0.5), simd.splat(2.0));
        let (even_a, odd_a) = (simd.mul_add(half, y[2], y[0]), simd.mul_add(half, y[3], y[1]));
        let (even_b, odd_b) = (simd.mul_add(two, y[2], y[0]), simd.mul_add(two, y[3], y[1]));
        let (minus_a, minus_b) = (simd.splat(-Self::A as f32), simd.splat(-Self::B as f32));
        let mut m = [simd.zero(); MAX];
        m[0] = simd.mul_add(a, odd_a, even_a);
        m[1] = simd.mul_add(minus_a, odd_a, even_a);
        m[2] = y[0];
        m[3] = y[3];
        m[4] = simd.mul_add(b, odd_b, even_b);
        m[5] = simd.mul_add(minus_b, odd_b, even_b);
        m
    }
}

/// F(8 − r, r), for 3 taps or 4, with the points ±5/16, ±13/16, ±15/8, ∞, whose squares are exact.
///
/// Of six finite points these have nearly the least error: about four times that of the direct sum where neighbouring inputs are
/// unrelated, which is twice [`F4`]'s.
pub(super) struct SevenPoints<const R: usize>;

/// F(5, 3): along both axes 25 outputs with 49 products.
pub(super) type F5 = SevenPoints<3>;

/// F(4, 4). The inputs of a stem, whose kernel becomes one of 4×4, are alike where they are neighbours: then its error is 1.2 times
/// that of the direct sum.
pub(super) type F4Of4 = SevenPoints<4>;

impl<const R: usize> SevenPoints<R> {
    const X: [f64; 3] = [5.0 / 16.0, 13.0 / 16.0, 15.0 / 8.0];

    /// The square of a pair of points, and the sum and the product of the other two pairs' squares.
    const fn squares(pair: usize) -> [f64; 3] {
        let [x, y, z] = [Self::X[pair], Self::X[(pair + 1) % 3], Self::X[(pair + 2) % 3]];
        [x * x, y * y + z * z, y * y * z * z]
    }

    /// The Lagrange polynomial's denominator at the positive point of a pair; at the negative one it is minus that.
    const fn denominator(pair: usize) -> f64 {
        let [x2, sum, product] = Self::squares(pair);
        2.0 * Self::X[pair] * (x2 * x2 - sum * x2 + product)
    }
}

impl<const R: usize> Algorithm for SevenPoints<R> {
    const TAPS: usize = R;
    const OUTPUTS: usize = 8 - R;
    const STRIDE: usize = 1;
    const POINTS: usize = 7;
    const LAST: &'static [usize] = &[6];

    fn weights(point: usize) -> Vec<f64> {
        let sign = if point.is_multiple_of(2) { 1.0 } else { -1.0 };
        let at = |tap: usize| match Self::X.get(point / 2) {
            Some(x) => (sign * x).powi(tap as i32) / (sign * Self::denominator(point / 2)),
            None => f64::from(tap + 1 == R),
        };
        (0..R).map(at).collect()
    }

    #[inline(always)]
    fn filter<P: Precision>(p: P, w: [P::V; MAX]) -> [P::V; MAX] {
        let mut t = [p.splat(0.0); MAX];
        for pair in 0..3 {
            let ([x2, ..], factor) = (Self::squares(pair), 1.0 / Self::denominator(pair));
            let odd_factor = Self::X[pair] * factor;
            let even = p.mul_add(p.splat(factor), w[0], p.mul(p.splat(factor * x2), w[2]));
            let mut odd = p.mul(p.splat(odd_factor), w[1]);
            if R > 3 {
                odd = p.mul_add(p.splat(odd_factor * x2), w[3], odd);
            }
            (t[2 * pair], t[2 * pair + 1]) = (p.add(odd, even), p.sub(odd, even));
        }
        t[6] = w[R - 1];
        t
    }

    #[inline(always)]
    fn input<S: Simd>(simd: S, d: [S::V; MAX]) -> [S::V; MAX] {
        let mut t = [simd.zero(); MAX];
        for pair in 0..3 {
            let [_, sum, product] = Self::squares(pair);
            let (sum, product) = (simd.splat(-sum as f32), simd.splat(product as f32));
            let even = simd.mul_add(product, d[0], simd.mul_add(sum, d[2], d[4]));
            let odd = simd.mul_add(product, d[1], simd.mul_add(sum, d[3], d[5]));
            t[2 * pair] = simd.mul_add(simd.splat(Self::X[pair] as f32), even, odd);
            t[2 * pair + 1] = simd.mul_add(simd.splat(-Self::X[pair] as f32), even, odd);
        }
        let [x2, sum, product] = Self::squares(0);
        let [first, second, third] =
            [-(x2 * product), x2 * sum + product, -(x2 + sum)].map(|factor| simd.splat(factor as f32));
        t[6] = simd.mul_add(first, d[0], simd.mul_add(second, d[2], simd.mul_add(third, d[4], d[6])));
        t
    }

    #[inline(always)]
    fn output<S: Simd>(simd: S, m: [S::V; MAX]) -> [S::V; MAX] {
        let sums: [S::V; 3] = std::array::from_fn(|pair| simd.add(m[2 * pair], m[2 * pair + 1]));
        let differences: [S::V; 3] = std::array::from_fn(|pair| simd.sub(m[2 * pair], m[2 * pair + 1]));
        let mut y = [simd.zero(); MAX];
        y[0] = simd.add(sums[2], simd.add(sums[0], sums[1]));
        // The values of each pair of points times a power of the positive one, added up.
        for (power, y) in y.iter_mut().enumerate().take(Self::OUTPUTS).skip(1) {
            let values = if power.is_multiple_of(2) { sums } else { differences };
            let mut sum = if power + 1 == Self::OUTPUTS { m[6] } else { simd.zero() };
            for (x, value) in Self::X.into_iter().zip(values) {
                sum = simd.mul_add(simd.splat(x.powi(power as i32) as f32), value, sum);
            }
            *y = sum;
        }
        y
    }

    #[inline(always)]
    fn gradient<S: Simd>(simd: S, y: [S::V; MAX]) -> [S::V; MAX] {
        let mut m = [simd.zero(); MAX];
        for pair in 0..3 {
            let x2 = simd.splat(Self::squares(pair)[0] as f32);
            let fourth = if R > 3 { y[2] } else { simd.mul_add(x2, y[4], y[2]) };
            let (even, odd) = (simd.mul_add(x2, fourth, y[0]), simd.mul_add(x2, y[3], y[1]));
            m[2 * pair] = simd.mul_add(simd.splat(Self::X[pair] as f32), odd, even);
            m[2 * pair + 1] = simd.mul_add(simd.splat(-Self::X[pair] as f32), odd, even);
        }
        m[6] = y[Self::OUTPUTS - 1];
        m
    }
}

/// Three outputs of a filter of three taps with stride 2, by its phases: taps 0 and 2 meet every other value and are
/// F(3, 2) with the points 0, 1, −1, ∞; tap 1 meets the values between and is three plain products.
pub(super) struct S3;

impl Algorithm for S3 {
    const TAPS: usize = 3;
    const OUTPUTS: usize = 3;
    const STRIDE: usize = 2;
    const POINTS: usize = 7;
    const LAST: &'static [usize] = &[3, 6];

    fn weights(point: usize) -> Vec<f64> {
        let middle = [0.0, 1.0, 0.0];
        let outer = [[1.0, 0.0, 0.0], [0.5, 0.0, 0.5], [0.5, 0.0, -0.5], [0.0, 0.0, 1.0]];
        outer.get(point).unwrap_or(&middle).to_vec()
    }

    #[inline(always)]
    fn filter<P: Precision>(p: P, w: [P::V; MAX]) -> [P::V; MAX] {
        let half = p.splat(0.5);
        let mut t = [p.splat(0.0); MAX];
        t[0] = w[0];
        t[1] = p.mul(half, p.add(w[0], w[2]));
        t[2] = p.mul(half, p.sub(w[0], w[2]));
        t[3] = w[2];
        (t[4], t[5], t[6]) = (w[1], w[1], w[1]);
        t
    }

    #[inline(always)]
    fn input<S: Simd>(simd: S, d: [S::V; MAX]) -> [S::V; MAX] {
        let mut t = [simd.zero(); MAX];
        t[0] = simd.sub(d[0], d[4]);
        t[1] = simd.add(d[4], d[2]);
        t[2] = simd.sub(d[4], d[2]);
        t[3] = simd.sub(d[6], d[2]);
        t[4] = d[1];
        t[5] = d[3];
        t[6] = d[5];
        t
    }

    #[inline(always)]
    fn output<S: Simd>(simd: S, m: [S::V; MAX]) -> [S::V; MAX] {
        let (sum, difference) = (simd.add(m[1], m[2]), simd.sub(m[1], m[2]));
        let mut y = [simd.zero(); MAX];
        y[0] = simd.add(simd.add(m[0], m[4]), sum);
        y[1] = simd.add(difference, m[5]);
        y[2] = simd.add(sum, simd.add(m[3], m[6]));
        y
    }

    #[inline(always)]
    fn gradient<S: Simd>(simd: S, y: [S::V; MAX]) -> [S::V; MAX] {
        let outer = simd.add(y[0], y[2]);
        let mut m = [simd.zero(); MAX];
        m[0] = y[0];
        m[1] = simd.add(outer, y[1]);
        m[2] = simd.sub(outer, y[1]);
        m[3] = y[2];
        m[4] = y[0];
        m[5] = y[1];
        m[6] = y[2];
        m
    }
}
