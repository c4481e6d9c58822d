//! AVX2 with FMA, and AVX-512F.

use super::{Simd, Task};
use std::arch::x86_64::*;

/// Token of AVX2 with FMA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The token, where the CPU has AVX2 and FMA.
    pub(crate) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Avx2(()))
    }
}

#[target_feature(enable = "avx2,fma")]
fn run_avx2<T: Task>(task: T, token: Avx2) -> T::Output {
    task.run(token)
}

/// A mask with the first `count` of eight lanes set.
#[inline(always)]
fn avx2_mask(count: usize) -> [i32; 8] {
    std::array::from_fn(|lane| if lane < count { -1 } else { 0 })
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    const REGISTERS: usize = 16;
    type V = __m256;

    #[inline(always)]
    unsafe fn assume() -> Self {
        Avx2(())
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        trusted!(_mm256_set1_ps(value))
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        trusted!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        trusted!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        trusted!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        trusted!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        trusted!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn keep_where_positive(self, condition: __m256, value: __m256) -> __m256 {
        trusted!(_mm256_and_ps(value, _mm256_cmp_ps::<_CMP_GT_OQ>(condition, _mm256_setzero_ps())))
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        trusted!(_mm256_loadu_ps(from))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, value: __m256) {
        trusted!(_mm256_storeu_ps(to, value))
    }

    #[inline(always)]
    unsafe fn load_partial(self, from: *const f32, count: usize) -> __m256 {
        trusted!(_mm256_maskload_ps(from, _mm256_loadu_si256(avx2_mask(count).as_ptr().cast())))
    }

    #[inline(always)]
    unsafe fn store_partial(self, to: *mut f32, value: __m256, count: usize) {
        trusted!(_mm256_maskstore_ps(to, _mm256_loadu_si256(avx2_mask(count).as_ptr().cast()), value))
    }

    #[inline(always)]
    fn prefetch(self, at: *const f32) {
        trusted!(_mm_prefetch::<_MM_HINT_T0>(at.cast()))
    }

    #[inline(always)]
    fn prefetch_to_write(self, at: *mut f32) {
        trusted!(_mm_prefetch::<_MM_HINT_ET0>(at.cast_const().cast()))
    }

    #[inline(always)]
    fn run<T: Task>(self, task: T) -> T::Output {
        trusted!(run_avx2(task, self))
    }
}

/// Token of AVX-512F (with AVX2 and FMA, which every such CPU has).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// The token, where the CPU has AVX-512F, AVX2 and FMA.
    pub(crate) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx512f") && Avx2::new().is_some()).then_some(Avx512(()))
    }
}

#[target_feature(enable = "avx512f,avx2,fma")]
fn run_avx512<T: Task>(task: T, token: Avx512) -> T::Output {
    task.run(token)
}

#[inline(always)]
fn avx512_mask(count: usize) -> __mmask16 {
    ((1u32 << count) - 1) as __mmask16
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    const REGISTERS: usize = 32;
    type V = __m512;

    #[inline(always)]
    unsafe fn assume() -> Self {
        Avx512(())
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        trusted!(_mm512_set1_ps(value))
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        trusted!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        trusted!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        trusted!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        trusted!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        trusted!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn keep_where_positive(self, condition: __m512, value: __m512) -> __m512 {
        trusted!(_mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(condition, _mm512_setzero_ps()), value))
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        trusted!(_mm512_loadu_ps(from))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, value: __m512) {
        trusted!(_mm512_storeu_ps(to, value))
    }

    #[inline(always)]
    unsafe fn load_partial(self, from: *const f32, count: usize) -> __m512 {
        trusted!(_mm512_maskz_loadu_ps(avx512_mask(count), from))
    }

    #[inline(always)]
    unsafe fn store_partial(self, to: *mut f32, value: __m512, count: usize) {
        trusted!(_mm512_mask_storeu_ps(to, avx512_mask(count), value))
    }

    #[inline(always)]
    fn prefetch(self, at: *const f32) {
        trusted!(_mm_prefetch::<_MM_HINT_T0>(at.cast()))
    }

    #[inline(always)]
    fn prefetch_to_write(self, at: *mut f32) {
        trusted!(_mm_prefetch::<_MM_HINT_ET0>(at.cast_const().cast()))
    }

    #[inline(always)]
    fn run<T: Task>(self, task: T) -> T::Output {
        trusted!(run_avx512(task, self))
    }
}
