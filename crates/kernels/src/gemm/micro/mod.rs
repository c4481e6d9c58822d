//! The innermost loops: a block of a few rows by one panel of columns, held in registers.
//!
//! Three loops serve every matrix product and convolution of this crate. [`Gathered`] multiplies rows that are read
//! through pointers (one set of pointers a kernel tap, so a convolution needs no copy of its input) by a packed panel.
//! [`Transposed`] multiplies the transposed rows by unpacked rows of another matrix and is the gradient of the
//! weights. Both take operands in `f32` and in pairs of bf16, which stand in the bits of an `f32` each. [`Blocked`] multiplies
//! transformed tiles in `f32`. Gathered and blocked products, and transposed ones of copied rows, are also made three by two
//! multiplications ([`threes`]). All exist for every height from 1 to what the level's registers hold.

mod blocked;
mod gathered;
pub(crate) mod threes;
mod transposed;

pub(crate) use blocked::{BesidePoints, Blocked, Spaced, is_minus};
pub(crate) use gathered::{BesideProducts, Gathered};
pub(crate) use transposed::Transposed;

use crate::simd::{Scalar, Simd};
use blocked::blocked;
use gathered::gathered;
use transposed::transposed;

/// Largest number of rows of a block, over all levels.
pub(crate) const MAX_ROWS: usize = 12;

/// Steps of the products after which it is seen whether there are more.
const STEPS: usize = 4;

/// The micro-kernels of one level. Tables are indexed by `[vectors − 1][rows − 1]`.
pub(crate) struct MicroKernels {
    /// Lanes of a vector.
    pub(crate) lanes: usize,
    gathered: &'static [&'static [unsafe fn(&Gathered)]],
    transposed: &'static [&'static [unsafe fn(&Transposed<'_>)]],
    blocked: &'static [&'static [unsafe fn(&Blocked)]],
}

impl MicroKernels {
    /// Most vectors that a panel may have.
    pub(crate) fn max_vectors(&self) -> usize {
        self.gathered.len()
    }

    /// Most rows of a block whose panel has `vectors` vectors.
    pub(crate) fn max_rows(&self, vectors: usize) -> usize {
        self.gathered[vectors - 1].len()
    }

    /// Multiplies one block.
    ///
    /// # Safety
    /// The pointers must be valid as [`Gathered`] says, for `rows` rows and a panel of `vectors` vectors.
    pub(crate) unsafe fn gathered(&self, vectors: usize, rows: usize, block: &Gathered) {
        debug_assert!(block.columns <= vectors * self.lanes);
        // SAFETY: the table is only reachable through a level that this CPU has; the rest is the caller's promise.
        unsafe { self.gathered[vectors - 1][rows - 1](block) }
    }

    /// Most rows of a block whose A stands in vectors.
    pub(crate) fn max_blocked_rows(&self, vectors: usize) -> usize {
        self.blocked[vectors - 1].len()
    }

    /// Multiplies one block whose A stands in vectors.
    ///
    /// # Safety
    /// The pointers must be valid as [`Blocked`] says, for `rows` rows and a panel of `vectors` vectors.
    pub(crate) unsafe fn blocked(&self, vectors: usize, rows: usize, block: &Blocked) {
        // SAFETY: the table is only reachable through a level that this CPU has; the rest is the caller's promise.
        unsafe { self.blocked[vectors - 1][rows - 1](block) }
    }

    /// Multiplies one transposed block.
    ///
    /// # Safety
    /// The pointers must be valid as [`Transposed`] says, for `rows` rows.
    pub(crate) unsafe fn transposed(&self, vectors: usize, rows: usize, block: &Transposed) {
        debug_assert!(block.columns <= vectors * self.lanes);
        // SAFETY: the table is only reachable through a level that this CPU has; the rest is the caller's promise.
        unsafe { self.transposed[vectors - 1][rows - 1](block) }
    }
}

/// Kinds of operands, as constants of types: those of [`Operands`](crate::Operands).
mod kind {
    pub(super) const F32: u8 = 0;
    pub(super) const HALVES: u8 = 1;
    pub(super) const THREES: u8 = 2;
}

/// `a · b + c`; where they are halves, lanes of `a` and `b` hold pairs of bf16, both products of which are added.
#[inline(always)]
fn multiply_add<S: Simd, const KIND: u8>(simd: S, a: S::V, b: S::V, c: S::V) -> S::V {
    if KIND == kind::HALVES { simd.dot(a, b, c) } else { simd.mul_add(a, b, c) }
}

/// Columns of vector `v` that exist, of `columns`.
#[inline(always)]
fn count<S: Simd>(columns: usize, v: usize) -> usize {
    columns.saturating_sub(v * S::LANES).min(S::LANES)
}

/// Vector `v` of a row.
///
/// # Safety
/// The row must be valid for reads of `columns` values; without `TAIL`, those are all of the vector's lanes.
#[inline(always)]
unsafe fn load<S: Simd, const TAIL: bool>(simd: S, row: *const f32, columns: usize, v: usize) -> S::V {
    let from = row.wrapping_add(v * S::LANES);
    // SAFETY: promised by the caller.
    unsafe { if TAIL { simd.load_partial(from, count::<S>(columns, v)) } else { simd.load(from) } }
}

/// Writes vector `v` of a row.
///
/// # Safety
/// The row must be valid for writes of `columns` values; without `TAIL`, those are all of the vector's lanes.
#[inline(always)]
unsafe fn store<S: Simd, const TAIL: bool>(simd: S, row: *mut f32, columns: usize, v: usize, value: S::V) {
    let to = row.wrapping_add(v * S::LANES);
    // SAFETY: promised by the caller.
    unsafe {
        if TAIL { simd.store_partial(to, value, count::<S>(columns, v)) } else { simd.store(to, value) }
    }
}

/// The tables of one level: for each number of vectors of a panel, the heights that its registers hold. A that stands in
/// vectors is always `f32`.
macro_rules! micro_kernels {
    ($simd:ty, $kind:ident: $($vectors:literal => [$($rows:literal)*]),*;
        blocked $($wide:literal => [$($high:literal)*]),*) => {
        MicroKernels {
            lanes: <$simd as Simd>::LANES,
            gathered: &[$(&[$(gathered::<$simd, $rows, $vectors, { kind::$kind }>),*]),*],
            transposed: &[$(&[$(transposed::<$simd, $rows, $vectors, { kind::$kind }>),*]),*],
            blocked: if kind::$kind == kind::HALVES {
                &[]
            } else {
                &[$(&[$(blocked::<$simd, $high, $wide, { kind::$kind }>),*]),*]
            },
        }
    };
}

/// The portable level's kernels.
macro_rules! scalar {
    (THREES) => {
        micro_kernels!(Scalar, THREES: 1 => [1 2 3 4], 2 => [1 2]; blocked 1 => [1 2 3 4], 2 => [1 2])
    };
    ($kind:ident) => {
        micro_kernels!(Scalar, $kind:
            1 => [1 2 3 4 5 6],
            2 => [1 2 3 4];
            blocked 1 => [1 2 3 4 5 6], 2 => [1 2 3 4]
        )
    };
}

/// 16 registers: 6 rows by 2 vectors and 10 rows by 1 leave room for the operands. Threes need three rows of B at once.
#[cfg(target_arch = "x86_64")]
macro_rules! avx2 {
    (THREES) => {
        micro_kernels!(crate::simd::Avx2, THREES:
            1 => [1 2 3 4 5 6 7 8], 2 => [1 2 3]; blocked 1 => [1 2 3 4 5 6 7 8], 2 => [1 2 3]
        )
    };
    ($kind:ident) => {
        micro_kernels!(crate::simd::Avx2, $kind:
            1 => [1 2 3 4 5 6 7 8 9 10],
            2 => [1 2 3 4 5 6];
            blocked 1 => [1 2 3 4 5 6 7 8 9 10], 2 => [1 2 3 4 5 6]
        )
    };
}

/// 32 vector registers. A block of one vector could be taller, but the pointers to its rows would no longer fit the 16
/// general registers.
#[cfg(target_arch = "x86_64")]
macro_rules! avx512 {
    (THREES) => {
        micro_kernels!(crate::simd::Avx512<false>, THREES:
            1 => [1 2 3 4 5 6 7 8 9 10 11 12],
            2 => [1 2 3 4 5 6 7 8 9 10];
            blocked 1 => [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16], 2 => [1 2 3 4 5 6 7 8 9 10]
        )
    };
    ($bf16:literal, $kind:ident) => {
        micro_kernels!(crate::simd::Avx512<$bf16>, $kind:
            1 => [1 2 3 4 5 6 7 8 9 10 11 12],
            2 => [1 2 3 4 5 6 7 8 9 10 11 12],
            3 => [1 2 3 4 5 6 7 8],
            4 => [1 2 3 4 5 6];
            blocked 1 => [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16], 2 => [1 2 3 4 5 6 7 8 9 10 11 12 13 14]
        )
    };
}

/// 32 registers of four lanes.
#[cfg(target_arch = "aarch64")]
macro_rules! neon {
    (THREES) => {
        micro_kernels!(crate::simd::Neon, THREES:
            1 => [1 2 3 4 5 6 7 8 9 10 11 12],
            2 => [1 2 3 4 5 6 7 8];
            blocked 1 => [1 2 3 4 5 6 7 8 9 10 11 12], 2 => [1 2 3 4 5 6 7 8]
        )
    };
    ($kind:ident) => {
        micro_kernels!(crate::simd::Neon, $kind:
            1 => [1 2 3 4 5 6 7 8 9 10 11 12],
            2 => [1 2 3 4 5 6 7 8 9 10 11 12],
            3 => [1 2 3 4 5 6 7 8],
            4 => [1 2 3 4 5 6];
            blocked 1 => [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16], 2 => [1 2 3 4 5 6 7 8 9 10 11 12]
        )
    };
}

pub(crate) static SCALAR: MicroKernels = scalar!(F32);
pub(crate) static SCALAR_HALVES: MicroKernels = scalar!(HALVES);
pub(crate) static SCALAR_THREES: MicroKernels = scalar!(THREES);
#[cfg(target_arch = "x86_64")]
pub(crate) static AVX2: MicroKernels = avx2!(F32);
#[cfg(target_arch = "x86_64")]
pub(crate) static AVX2_HALVES: MicroKernels = avx2!(HALVES);
#[cfg(target_arch = "x86_64")]
pub(crate) static AVX2_THREES: MicroKernels = avx2!(THREES);
#[cfg(target_arch = "x86_64")]
pub(crate) static AVX512: MicroKernels = avx512!(false, F32);
#[cfg(target_arch = "x86_64")]
pub(crate) static AVX512_HALVES: MicroKernels = avx512!(false, HALVES);
/// With instructions for bf16.
#[cfg(target_arch = "x86_64")]
pub(crate) static AVX512_BF16: MicroKernels = avx512!(true, HALVES);
#[cfg(target_arch = "x86_64")]
pub(crate) static AVX512_THREES: MicroKernels = avx512!(THREES);
#[cfg(target_arch = "aarch64")]
pub(crate) static NEON: MicroKernels = neon!(F32);
#[cfg(target_arch = "aarch64")]
pub(crate) static NEON_HALVES: MicroKernels = neon!(HALVES);
#[cfg(target_arch = "aarch64")]
pub(crate) static NEON_THREES: MicroKernels = neon!(THREES);
