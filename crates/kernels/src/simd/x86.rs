//! AVX2 with FMA, and AVX-512F with and without the products of bf16 pairs.

use super::{Simd, Task, narrow_each, narrow_pairs_each};
use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::transmute;

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
    fn mul_sub_from(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        trusted!(_mm256_fnmadd_ps(a, b, c))
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
    fn spread<const GROUP: usize>(self, value: __m256, lane: usize) -> __m256 {
        trusted!(match (GROUP, lane) {
            (2, 0) => _mm256_moveldup_ps(value),
            (2, _) => _mm256_movehdup_ps(value),
            (4, 0) => _mm256_permute_ps::<0x00>(value),
            (4, 1) => _mm256_permute_ps::<0x55>(value),
            (4, 2) => _mm256_permute_ps::<0xaa>(value),
            (4, _) => _mm256_permute_ps::<0xff>(value),
            (1, _) => value,
            _ => unreachable!("such groups fill vectors"),
        })
    }

    #[inline(always)]
    fn half_of_eights(self, _: __m256, _: usize) -> __m256 {
        unreachable!("such groups fill vectors")
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
    fn prefetch_second(self, at: *const f32) {
        trusted!(_mm_prefetch::<_MM_HINT_T1>(at.cast()))
    }

    #[inline(always)]
    fn prefetch_to_write(self, at: *mut f32) {
        trusted!(_mm_prefetch::<_MM_HINT_ET0>(at.cast_const().cast()))
    }

    #[inline(always)]
    fn first_halves(self, pairs: __m256) -> __m256 {
        trusted!(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(pairs))))
    }

    #[inline(always)]
    fn second_halves(self, pairs: __m256) -> __m256 {
        trusted!(_mm256_and_ps(pairs, _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32 as i32))))
    }

    #[inline(always)]
    fn run<T: Task>(self, task: T) -> T::Output {
        trusted!(run_avx2(task, self))
    }
}

/// Token of AVX-512F (with AVX2 and FMA, which every such CPU has); with `BF16`, of AVX512-BF16 and -BW too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Avx512<const BF16: bool>(());

impl Avx512<false> {
    /// The token, where the CPU has AVX-512F, AVX2 and FMA.
    pub(crate) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx512f") && Avx2::new().is_some()).then_some(Avx512(()))
    }
}

impl Avx512<true> {
    /// The token, where the CPU has AVX512-BF16 and -BW besides.
    pub(crate) fn new() -> Option<Self> {
        let halves = is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512bw");
        Avx512::<false>::new().filter(|_| halves).map(|_| Avx512(()))
    }
}

#[target_feature(enable = "avx512f,avx2,fma")]
fn run_avx512<T: Task>(task: T, token: impl Simd) -> T::Output {
    task.run(token)
}

#[target_feature(enable = "avx512bf16,avx512bw,avx512f,avx2,fma")]
fn run_avx512_bf16<T: Task>(task: T, token: impl Simd) -> T::Output {
    task.run(token)
}

/// A mask with the first `count` of 32 values set, in two halves.
#[inline(always)]
fn half_masks(count: usize) -> [__mmask16; 2] {
    let mask = ((1u64 << count.min(32)) - 1) as u32;
    [mask as __mmask16, (mask >> 16) as __mmask16]
}

#[inline(always)]
fn avx512_mask(count: usize) -> __mmask16 {
    ((1u32 << count) - 1) as __mmask16
}

/// Defines [`Simd::three`] with such additions and such a multiplication of their sums. The three values go to all lanes on their way:
/// the compiler would take an instruction more for one that several vectors meet, and would make so many additions first that registers
/// do not hold them.
macro_rules! three {
    ($name:ident, $add:literal, $multiply:literal) => {
        /// # Safety
        /// The three values must be valid for reads.
        #[inline]
        #[target_feature(enable = "avx512f")]
        unsafe fn $name(a: *const f32, step: usize, b: [__m512; 3], mut sum: __m512) -> __m512 {
            // SAFETY: it reads the values alone, promised by the caller.
            unsafe {
                asm!(
                    concat!($add, " {with_first}, {second}, dword ptr [{a}]{{1to16}}"),
                    concat!($add, " {with_second}, {first}, dword ptr [{a} + {step}]{{1to16}}"),
                    "vfmadd231ps {sum}, {third}, dword ptr [{a} + 2 * {step}]{{1to16}}",
                    concat!($multiply, " {sum}, {with_first}, {with_second}"),
                    a = in(reg) a,
                    step = in(reg) step,
                    first = in(zmm_reg) b[0],
                    second = in(zmm_reg) b[1],
                    third = in(zmm_reg) b[2],
                    with_first = out(zmm_reg) _,
                    with_second = out(zmm_reg) _,
                    sum = inout(zmm_reg) sum,
                    options(pure, readonly, nostack, preserves_flags),
                );
            }
            sum
        }
    };
}

three!(three_plus, "vaddps", "vfmadd231ps");
three!(three_minus, "vsubps", "vfnmadd231ps");

impl<const BF16: bool> Simd for Avx512<BF16> {
    const LANES: usize = 16;
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
    fn mul_sub_from(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        trusted!(_mm512_fnmadd_ps(a, b, c))
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
    fn spread<const GROUP: usize>(self, value: __m512, lane: usize) -> __m512 {
        trusted!(match (GROUP, lane) {
            (2, 0) => _mm512_moveldup_ps(value),
            (2, _) => _mm512_movehdup_ps(value),
            (4, 0) => _mm512_permute_ps::<0x00>(value),
            (4, 1) => _mm512_permute_ps::<0x55>(value),
            (4, 2) => _mm512_permute_ps::<0xaa>(value),
            (4, _) => _mm512_permute_ps::<0xff>(value),
            (8, _) => self.spread::<4>(self.half_of_eights(value, lane / 4), lane % 4),
            (1, _) => value,
            _ => unreachable!("such groups fill vectors"),
        })
    }

    #[inline(always)]
    fn half_of_eights(self, value: __m512, half: usize) -> __m512 {
        trusted!(match half {
            0 => _mm512_shuffle_f32x4::<0b10_10_00_00>(value, value),
            _ => _mm512_shuffle_f32x4::<0b11_11_01_01>(value, value),
        })
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
    fn prefetch_second(self, at: *const f32) {
        trusted!(_mm_prefetch::<_MM_HINT_T1>(at.cast()))
    }

    #[inline(always)]
    fn prefetch_to_write(self, at: *mut f32) {
        trusted!(_mm_prefetch::<_MM_HINT_ET0>(at.cast_const().cast()))
    }

    #[inline(always)]
    fn first_halves(self, pairs: __m512) -> __m512 {
        trusted!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(pairs))))
    }

    #[inline(always)]
    fn second_halves(self, pairs: __m512) -> __m512 {
        let second = trusted!(_mm512_set1_epi32(0xffff_0000_u32 as i32));
        trusted!(_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(pairs), second)))
    }

    #[inline(always)]
    fn dot(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        if !BF16 {
            return self.dot_by_halves(a, b, c);
        }
        let pairs = |pairs| trusted!(transmute::<__m512, __m512bh>(pairs));
        trusted!(_mm512_dpbf16_ps(c, pairs(a), pairs(b)))
    }

    #[inline(always)]
    unsafe fn narrow(self, from: *const f32, to: *mut f32, count: usize) {
        if !BF16 {
            return trusted!(narrow_each(from, to, count));
        }
        // Masks take longer to make than whole vectors to round.
        let whole = count / 32 * 32;
        for at in (0..whole).step_by(32) {
            let half = |index: usize| trusted!(_mm512_loadu_ps(from.wrapping_add(at + 16 * index)));
            let pairs: __m512i = trusted!(transmute(_mm512_cvtne2ps_pbh(half(1), half(0))));
            trusted!(_mm512_storeu_si512(to.wrapping_add(at / 2).cast(), pairs));
        }
        if whole < count {
            let masks = half_masks(count - whole);
            let half = |index: usize| {
                trusted!(_mm512_maskz_loadu_ps(masks[index], from.wrapping_add(whole + 16 * index)))
            };
            let pairs: __m512i = trusted!(transmute(_mm512_cvtne2ps_pbh(half(1), half(0))));
            let words = avx512_mask((count - whole).div_ceil(2));
            trusted!(_mm512_mask_storeu_epi32(to.wrapping_add(whole / 2).cast(), words, pairs));
        }
    }

    #[inline(always)]
    unsafe fn narrow_pairs(self, rows: [*const f32; 2], to: *mut f32, count: usize) {
        if !BF16 {
            return trusted!(narrow_pairs_each(rows, to, count));
        }
        // The two rows' values stand one after the other and are dealt out to even and odd places.
        let deal: [u16; 32] = std::array::from_fn(|at| (at / 2 + at % 2 * 16) as u16);
        let deal: __m512i = trusted!(_mm512_loadu_si512(deal.as_ptr().cast()));
        let whole = count / 16 * 16;
        for at in (0..whole).step_by(16) {
            let row = |index: usize| trusted!(_mm512_loadu_ps(rows[index].wrapping_add(at)));
            let rows: __m512i = trusted!(transmute(_mm512_cvtne2ps_pbh(row(1), row(0))));
            let pairs = trusted!(_mm512_permutexvar_epi16(deal, rows));
            trusted!(_mm512_storeu_si512(to.wrapping_add(at).cast(), pairs));
        }
        if whole < count {
            let mask = avx512_mask(count - whole);
            let row = |index: usize| trusted!(_mm512_maskz_loadu_ps(mask, rows[index].wrapping_add(whole)));
            let rows: __m512i = trusted!(transmute(_mm512_cvtne2ps_pbh(row(1), row(0))));
            let pairs = trusted!(_mm512_permutexvar_epi16(deal, rows));
            trusted!(_mm512_mask_storeu_epi32(to.wrapping_add(whole).cast(), mask, pairs));
        }
    }

    #[inline(always)]
    unsafe fn three<const MINUS: bool>(
        self,
        a: *const f32,
        step: usize,
        b: [__m512; 3],
        sum: __m512,
    ) -> __m512 {
        trusted!(if MINUS { three_minus(a, step, b, sum) } else { three_plus(a, step, b, sum) })
    }

    #[inline(always)]
    fn run<T: Task>(self, task: T) -> T::Output {
        if BF16 { trusted!(run_avx512_bf16(task, self)) } else { trusted!(run_avx512(task, self)) }
    }
}
