//! One small vector trait, implemented by each instruction set.
//!
//! An algorithm is written once, generic over [`Simd`], as a [`Task`]; [`Level::run`](crate::Level) instantiates it
//! for a level inside a function that has the level's target features. Everything generic below that function must
//! be `#[inline(always)]`, so that it is compiled with those features.

use crate::bf16;

/// Wraps an intrinsic inside an `impl Simd for TOKEN`.
macro_rules! trusted {
    ($operation:expr) => {{
        // SAFETY: a value of the token exists only where the CPU was seen to have its instructions; the pointers of
        // memory operations are guaranteed by the caller, as the trait's methods demand.
        unsafe { $operation }
    }};
}

#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use scalar::Scalar;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

/// `value`, about which the compiler knows nothing: for addresses that are cheaper to compute again than to keep.
#[inline(always)]
pub(crate) fn opaque(value: usize) -> usize {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    {
        let mut value = value;
        // SAFETY: no instruction at all.
        unsafe {
            std::arch::asm!("/* {0} */", inout(reg) value, options(pure, nomem, nostack, preserves_flags));
        }
        value
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    value
}

/// [`Simd::narrow`], value by value.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn narrow_each(from: *const f32, to: *mut f32, count: usize) {
    // SAFETY: promised by the caller; pairs are as large as values.
    unsafe {
        for at in 0..count / 2 {
            *to.add(at) = bf16::pair(*from.add(2 * at), *from.add(2 * at + 1));
        }
        if !count.is_multiple_of(2) {
            *to.add(count / 2) = bf16::pair(*from.add(count - 1), 0.0);
        }
    }
}

/// [`Simd::narrow_pairs`], value by value.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn narrow_pairs_each(rows: [*const f32; 2], to: *mut f32, count: usize) {
    for at in 0..count {
        // SAFETY: promised by the caller.
        unsafe { *to.add(at) = bf16::pair(*rows[0].add(at), *rows[1].add(at)) };
    }
}

/// Work that is compiled once for each instruction set.
pub(crate) trait Task {
    /// What the work returns.
    type Output;

    /// Does the work with `simd`'s instructions. Implementations are `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// A vector of `f32` lanes and its arithmetic. A value of the type is proof that the CPU has the instructions.
pub(crate) trait Simd: Copy + Send + Sync {
    /// Lanes of a vector.
    const LANES: usize;

    /// A vector.
    type V: Copy;

    /// A token without a check.
    ///
    /// # Safety
    /// The CPU must have the instruction set.
    unsafe fn assume() -> Self;

    /// All lanes `value`.
    fn splat(self, value: f32) -> Self::V;

    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;

    /// `a − b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;

    /// `a · b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;

    /// `a · b + c`, rounded once where the level has fused multiply-add.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;

    /// `c − a · b`, rounded as [`mul_add`](Self::mul_add).
    fn mul_sub_from(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;

    /// The larger of each lane; `b` where either is NaN, so that `max(0, x)` keeps a NaN visible.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;

    /// `value` in the lanes where `condition > 0`, else 0.
    fn keep_where_positive(self, condition: Self::V, value: Self::V) -> Self::V;

    /// Lane `lane` of each `GROUP` lanes, in all of these: a power of two below [`LANES`](Self::LANES).
    fn spread<const GROUP: usize>(self, value: Self::V, lane: usize) -> Self::V;

    /// The first (0) or second (1) half of each group of eight lanes, twice. Where there are such groups in a vector beside others.
    fn half_of_eights(self, value: Self::V, half: usize) -> Self::V;

    /// Reads a vector.
    ///
    /// # Safety
    /// `from` must be valid for reads of [`LANES`](Self::LANES) values.
    unsafe fn load(self, from: *const f32) -> Self::V;

    /// Writes a vector.
    ///
    /// # Safety
    /// `to` must be valid for writes of [`LANES`](Self::LANES) values.
    unsafe fn store(self, to: *mut f32, value: Self::V);

    /// Reads `count` lanes; the rest are 0.
    ///
    /// # Safety
    /// `count <= LANES`, and `from` must be valid for reads of `count` values.
    unsafe fn load_partial(self, from: *const f32, count: usize) -> Self::V;

    /// Writes the first `count` lanes.
    ///
    /// # Safety
    /// `count <= LANES`, and `to` must be valid for writes of `count` values.
    unsafe fn store_partial(self, to: *mut f32, value: Self::V, count: usize);

    /// Asks for the cache line at `at` to come near. `at` may be any address: nothing is read. Where
    /// stable Rust has no instruction for it, nothing happens.
    #[inline(always)]
    fn prefetch(self, _at: *const f32) {}

    /// As [`prefetch`](Self::prefetch), into the second-level cache only: for more than the first one holds.
    #[inline(always)]
    fn prefetch_second(self, _at: *const f32) {}

    /// As [`prefetch`](Self::prefetch), for a line that will be written.
    #[inline(always)]
    fn prefetch_to_write(self, _at: *mut f32) {}

    /// The first bf16 of each lane's pair, as `f32`.
    fn first_halves(self, pairs: Self::V) -> Self::V;

    /// The second bf16 of each lane's pair, as `f32`.
    fn second_halves(self, pairs: Self::V) -> Self::V;

    /// `c` and the products of both halves, where lanes of `a` and `b` hold pairs of bf16. The products are exact.
    #[inline(always)]
    fn dot(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        self.dot_by_halves(a, b, c)
    }

    /// As [`dot`](Self::dot), without an instruction for it.
    #[inline(always)]
    fn dot_by_halves(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        let sum = self.mul_add(self.first_halves(a), self.first_halves(b), c);
        self.mul_add(self.second_halves(a), self.second_halves(b), sum)
    }

    /// Writes neighbouring values as pairs of bf16; an odd last one is followed by 0.
    ///
    /// # Safety
    /// `from` must be valid for reads of `count` values, `to` for writes of half as many, rounded up.
    #[inline(always)]
    unsafe fn narrow(self, from: *const f32, to: *mut f32, count: usize) {
        // SAFETY: promised by the caller.
        unsafe { narrow_each(from, to, count) }
    }

    /// Writes the values of two rows as pairs of bf16.
    ///
    /// # Safety
    /// Both rows must be valid for reads of `count` values, `to` for writes of as many.
    #[inline(always)]
    unsafe fn narrow_pairs(self, rows: [*const f32; 2], to: *mut f32, count: usize) {
        // SAFETY: promised by the caller.
        unsafe { narrow_pairs_each(rows, to, count) }
    }

    /// `sum` and three products by two multiplications: of three values from `a` on, `step` bytes apart, which go to all lanes, and of
    /// the vectors `b`. The first two bring `a₀a₁ + b₀b₁` with them; where `MINUS`, that is subtracted. See `gemm::micro::threes`.
    ///
    /// # Safety
    /// The values must be valid for reads.
    #[inline(always)]
    unsafe fn three<const MINUS: bool>(
        self,
        a: *const f32,
        step: usize,
        b: [Self::V; 3],
        sum: Self::V,
    ) -> Self::V {
        // SAFETY: promised by the caller.
        let a = std::array::from_fn(|at| self.splat(unsafe { *a.byte_add(at * step) }));
        let [first, second, third]: [Self::V; 3] = a;
        let sum = self.mul_add(third, b[2], sum);
        match MINUS {
            true => self.mul_sub_from(self.sub(b[1], first), self.sub(b[0], second), sum),
            false => self.mul_add(self.add(b[1], first), self.add(b[0], second), sum),
        }
    }

    /// Runs `task` inside a function that has this instruction set's target features.
    fn run<T: Task>(self, task: T) -> T::Output;

    /// All lanes 0.
    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }
}
