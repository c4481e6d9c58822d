//! What this machine can do at most, measured: the yardsticks that benchmarks divide by.

use crate::Context;
use crate::simd::{Simd, Task};
use crate::vector::{read, write};
use std::time::Instant;

/// Chains of multiply-adds that run side by side: enough to hide the latency of every CPU we know.
const CHAINS: usize = 12;

struct Chains(u32);

impl Task for Chains {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let mut sums = [simd.splat(1.0); CHAINS];
        let (a, b) = (simd.splat(std::hint::black_box(0.999)), simd.splat(std::hint::black_box(0.001)));
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = simd.mul_add(*sum, a, b);
            }
        }
        let mut lanes = [0.0; 16];
        let total = sums.into_iter().reduce(|left, right| simd.add(left, right)).unwrap_or(a);
        // SAFETY: no level has more than 16 lanes.
        unsafe { simd.store(lanes.as_mut_ptr(), total) };
        lanes.iter().sum()
    }
}

/// Multiply-adds in registers, in FLOP/s over all threads of the context: the best of `rounds` rounds of about 10 ms.
pub fn peak_flops(cx: &Context, rounds: usize) -> f64 {
    let steps = 2_000_000;
    let flops = 2.0 * f64::from(steps) * (CHAINS * cx.level().micro_kernels().lanes * cx.threads()) as f64;
    let round = || {
        let start = Instant::now();
        cx.pool().run(cx.threads(), |_| {
            std::hint::black_box(cx.level().run(Chains(steps)));
        });
        flops / start.elapsed().as_secs_f64()
    };
    (0..rounds.max(1)).map(|_| round()).fold(0.0, f64::max)
}

/// Values that are read: far more than caches hold.
const READ: usize = 1 << 26;

struct Sum<'a>(&'a [f32]);

impl Task for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let mut sums = [simd.zero(); CHAINS];
        for values in self.0.chunks_exact(CHAINS * S::LANES) {
            for (index, sum) in sums.iter_mut().enumerate() {
                *sum = simd.add(*sum, read(simd, values, index * S::LANES, S::LANES));
            }
        }
        let mut lanes = [0.0; 16];
        let total = sums.into_iter().reduce(|left, right| simd.add(left, right)).unwrap_or(simd.zero());
        write(simd, &mut lanes, 0, S::LANES, total);
        lanes.iter().sum()
    }
}

/// Memory that all threads of the context read together, in bytes a second: the best of `rounds` passes over 256 MiB.
pub fn read_bandwidth(cx: &Context, rounds: usize) -> f64 {
    // Written, so that every page exists.
    let values = vec![1.0f32; READ];
    let pieces = 64 * cx.threads();
    let round = || {
        let start = Instant::now();
        cx.pool().run(pieces, |piece| {
            let part = &values[READ * piece / pieces..READ * (piece + 1) / pieces];
            std::hint::black_box(cx.level().run(Sum(part)));
        });
        (4 * READ) as f64 / start.elapsed().as_secs_f64()
    };
    (0..rounds.max(1)).map(|_| round()).fold(0.0, f64::max)
}
