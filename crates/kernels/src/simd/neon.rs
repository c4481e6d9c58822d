//! NEON (AArch64).

use super::{Simd, Task};
use std::arch::aarch64::*;

/// Token of NEON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Neon(());

impl Neon {
    /// The token, where the CPU has NEON.
    pub(crate) fn new() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Neon(()))
    }
}

#[target_feature(enable = "neon")]
fn run_neon<T: Task>(task: T, token: Neon) -> T::Output {
    task.run(token)
}

impl Simd for Neon {
    const LANES: usize = 4;
    type V = float32x4_t;

    #[inline(always)]
    unsafe fn assume() -> Self {
        Neon(())
    }

    #[inline(always)]
    fn splat(self, value: f32) -> float32x4_t {
        trusted!(vdupq_n_f32(value))
    }

    #[inline(always)]
    fn add(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        trusted!(vaddq_f32(a, b))
    }

    #[inline(always)]
    fn sub(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        trusted!(vsubq_f32(a, b))
    }

    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        trusted!(vmulq_f32(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        trusted!(vfmaq_f32(c, a, b))
    }

    #[inline(always)]
    fn mul_sub_from(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        trusted!(vfmsq_f32(c, a, b))
    }

    #[inline(always)]
    fn max(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        trusted!(vbslq_f32(vcgtq_f32(a, b), a, b))
    }

    #[inline(always)]
    fn keep_where_positive(self, condition: float32x4_t, value: float32x4_t) -> float32x4_t {
        trusted!({
            let mask = vcgtq_f32(condition, vdupq_n_f32(0.0));
            vreinterpretq_f32_u32(vandq_u32(mask, vreinterpretq_u32_f32(value)))
        })
    }

    #[inline(always)]
    fn spread<const GROUP: usize>(self, value: float32x4_t, lane: usize) -> float32x4_t {
        trusted!(match (GROUP, lane) {
            (2, 0) => vtrn1q_f32(value, value),
            (2, _) => vtrn2q_f32(value, value),
            (1, _) => value,
            _ => unreachable!("such groups fill vectors"),
        })
    }

    #[inline(always)]
    fn half_of_eights(self, _: float32x4_t, _: usize) -> float32x4_t {
        unreachable!("such groups fill vectors")
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> float32x4_t {
        trusted!(vld1q_f32(from))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, value: float32x4_t) {
        trusted!(vst1q_f32(to, value))
    }

    #[inline(always)]
    unsafe fn load_partial(self, from: *const f32, count: usize) -> float32x4_t {
        let mut lanes = [0.0f32; 4];
        trusted!({
            from.copy_to_nonoverlapping(lanes.as_mut_ptr(), count);
            vld1q_f32(lanes.as_ptr())
        })
    }

    #[inline(always)]
    unsafe fn store_partial(self, to: *mut f32, value: float32x4_t, count: usize) {
        let mut lanes = [0.0f32; 4];
        trusted!({
            vst1q_f32(lanes.as_mut_ptr(), value);
            lanes.as_ptr().copy_to_nonoverlapping(to, count);
        })
    }

    #[inline(always)]
    fn first_halves(self, pairs: float32x4_t) -> float32x4_t {
        trusted!(vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_f32(pairs))))
    }

    #[inline(always)]
    fn second_halves(self, pairs: float32x4_t) -> float32x4_t {
        let second = trusted!(vdupq_n_u32(0xffff_0000));
        trusted!(vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(pairs), second)))
    }

    #[inline(always)]
    fn run<T: Task>(self, task: T) -> T::Output {
        trusted!(run_neon(task, self))
    }
}
