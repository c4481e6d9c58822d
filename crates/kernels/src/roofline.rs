//! What this machine can do at most, measured: the yardstick that benchmarks divide by.

use crate::Context;
use crate::simd::{Simd, Task};
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
