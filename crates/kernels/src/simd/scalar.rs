//! The portable level: four lanes in plain Rust, which compilers turn into whatever the baseline target has.

use super::{Simd, Task};

/// Token of the portable level; every CPU has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Scalar;

const LANES: usize = 4;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

impl Simd for Scalar {
    const LANES: usize = LANES;
    type V = [f32; LANES];

    #[inline(always)]
    unsafe fn assume() -> Self {
        Scalar
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        [value; LANES]
    }

    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }

    // Not `f32::mul_add`: without the instruction that is a slow library call.
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        self.add(self.mul(a, b), c)
    }

    #[inline(always)]
    fn mul_sub_from(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        self.sub(c, self.mul(a, b))
    }

    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn keep_where_positive(self, condition: Self::V, value: Self::V) -> Self::V {
        zip(condition, value, |condition, value| if condition > 0.0 { value } else { 0.0 })
    }

    #[inline(always)]
    fn spread<const GROUP: usize>(self, value: Self::V, lane: usize) -> Self::V {
        std::array::from_fn(|to| value[to / GROUP * GROUP + lane])
    }

    #[inline(always)]
    fn half_of_eights(self, _: Self::V, _: usize) -> Self::V {
        unreachable!("such groups fill vectors")
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> Self::V {
        // SAFETY: the caller guarantees LANES readable values.
        unsafe { from.cast::<Self::V>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, value: Self::V) {
        // SAFETY: the caller guarantees LANES writable values.
        unsafe { to.cast::<Self::V>().write_unaligned(value) }
    }

    #[inline(always)]
    unsafe fn load_partial(self, from: *const f32, count: usize) -> Self::V {
        let mut value = [0.0; LANES];
        // SAFETY: the caller guarantees `count` readable values and `count <= LANES`.
        unsafe { from.copy_to_nonoverlapping(value.as_mut_ptr(), count) };
        value
    }

    #[inline(always)]
    unsafe fn store_partial(self, to: *mut f32, value: Self::V, count: usize) {
        // SAFETY: the caller guarantees `count` writable values and `count <= LANES`.
        unsafe { value.as_ptr().copy_to_nonoverlapping(to, count) }
    }

    #[inline(always)]
    fn first_halves(self, pairs: Self::V) -> Self::V {
        pairs.map(|pair| f32::from_bits(pair.to_bits() << 16))
    }

    #[inline(always)]
    fn second_halves(self, pairs: Self::V) -> Self::V {
        pairs.map(|pair| f32::from_bits(pair.to_bits() & 0xffff_0000))
    }

    #[inline(always)]
    fn run<T: Task>(self, task: T) -> T::Output {
        task.run(self)
    }
}
