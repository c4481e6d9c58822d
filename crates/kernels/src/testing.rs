//! What tests share.

use crate::{Context, Level};
use std::fmt::Display;
use std::ops::RangeInclusive;

/// Half the distance between 1 and the next `f32`: the largest relative error of one rounding.
pub(crate) const UNIT: f64 = f32::EPSILON as f64 / 2.0;

/// Repeatable random numbers (xorshift64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number in `0 .. limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        ((self.next() >> 11) as usize) % limit
    }

    /// A number in `range`.
    pub(crate) fn within(&mut self, range: RangeInclusive<usize>) -> usize {
        range.start() + self.below(range.end() - range.start() + 1)
    }

    /// Heads or tails.
    pub(crate) fn coin(&mut self) -> bool {
        self.below(2) == 0
    }

    /// Values in −1..1.
    pub(crate) fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.next() >> 40) as f32 / 8_388_608.0 - 1.0).collect()
    }
}

/// The same values in `f64`.
pub(crate) fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// `Σ a·b`.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A context with two threads for each level of this CPU.
pub(crate) fn contexts() -> Vec<Context> {
    Level::available().into_iter().map(|level| Context::new(level, 2)).collect()
}

/// Asserts `|actual − expected| <= bound(index)` for all values; a NaN is an error.
pub(crate) fn assert_within(
    what: impl Display,
    actual: &[f32],
    expected: &[f64],
    bound: impl Fn(usize) -> f64,
) {
    assert_eq!(actual.len(), expected.len(), "{what}: number of values");
    for (index, (&actual, &expected)) in actual.iter().zip(expected).enumerate() {
        let (error, bound) = ((f64::from(actual) - expected).abs(), bound(index));
        assert!(error <= bound, "{what}: [{index}] is {actual}, expected {expected} ± {bound:e}");
    }
}

/// Asserts that `run` returns the same bits with 1, 2, 3 and 8 threads, at each level.
pub(crate) fn assert_same_bits_for_all_threads(run: impl Fn(&Context) -> Vec<Vec<f32>>) {
    let bits = |level, threads| -> Vec<Vec<u32>> {
        let results = run(&Context::new(level, threads));
        results.iter().map(|values| values.iter().map(|value| value.to_bits()).collect()).collect()
    };
    for level in Level::available() {
        let expected = bits(level, 1);
        for threads in [2, 3, 8] {
            assert!(bits(level, threads) == expected, "{}: {threads} threads differ from 1", level.name());
        }
    }
}

/// Asserts that `gradient` is that of `function` at `point`, by the central difference along `direction`.
///
/// The difference's own error is `step² · |third derivative| / 6` plus cancellation of about `1e-16 / step`.
pub(crate) fn assert_gradient(
    what: impl Display,
    function: impl Fn(&[f64]) -> f64,
    point: &[f64],
    direction: &[f64],
    gradient: &[f64],
) {
    const STEP: f64 = 1e-5;
    let moved = |step: f64| -> Vec<f64> { point.iter().zip(direction).map(|(p, d)| p + step * d).collect() };
    let difference = (function(&moved(STEP)) - function(&moved(-STEP))) / (2.0 * STEP);
    let size: f64 = gradient.iter().zip(direction).map(|(g, d)| (g * d).abs()).sum();
    let error = (difference - dot(gradient, direction)).abs();
    assert!(error <= 1e-6 * (size + 1e-2), "{what}: difference {difference}, off by {error:e} of {size}");
}
