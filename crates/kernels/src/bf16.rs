//! bf16, the upper half of an `f32`: rounding to it, and pairs of it as products read them.

/// How the operands of products meet; sums are always `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Operands {
    /// As they are.
    #[default]
    F32,
    /// Rounded to bf16, whose products are exact in `f32`. The order in which a sum's terms are added differs between
    /// levels, and between CPUs with and without [instructions for it](crate::Level::multiplies_bf16); those take
    /// operands below the smallest normal `f32` for 0.
    Bf16,
    /// As they are, three products by two multiplications and two additions, which is faster where the CPU
    /// [adds beside them](crate::Level::adds_beside) (S. Winograd 1968). One side is scaled by a power of two, so that both are about as
    /// large; a sum's error is about one and a half times that of [`F32`](Self::F32), relative to the size of both sides.
    Threes,
}

/// The nearest bf16, that with an even last digit of two equally near; a NaN stays one.
///
/// ```
/// use stridenet_kernels::bf16;
/// assert_eq!(bf16::to_f32(bf16::from_f32(1.0 + 1.0 / 256.0)), 1.0);
/// assert_eq!(bf16::to_f32(bf16::from_f32(1.0 + 3.0 / 256.0)), 1.0 + 4.0 / 256.0);
/// ```
#[inline(always)]
pub fn from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    // A NaN's upper half could be that of an infinity, and rounding could carry into the sign.
    (if value.is_nan() { bits | 0x0040_0000 } else { rounded } >> 16) as u16
}

/// The value of a bf16.
#[inline(always)]
pub fn to_f32(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// Two values rounded to bf16, in the bits of one: the first in the lower half.
#[inline(always)]
pub(crate) fn pair(first: f32, second: f32) -> f32 {
    f32::from_bits(u32::from(from_f32(second)) << 16 | u32::from(from_f32(first)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;
    use crate::simd::{Simd, Task};
    use crate::testing::Random;

    #[test]
    fn every_bf16_stays_itself_and_values_between_go_to_the_nearest() {
        for half in 0..=u16::MAX {
            let value = to_f32(half);
            if value.is_nan() {
                assert!(to_f32(from_f32(value)).is_nan(), "{half:#06x}");
                continue;
            }
            assert_eq!(from_f32(value), half);
            let next = f32::from_bits(value.to_bits() | 0xffff);
            if next.is_nan() {
                continue;
            }
            // Below, at, and above the middle of two neighbours.
            let middle = value.to_bits() | 0x8000;
            assert_eq!(from_f32(f32::from_bits(middle - 1)), half);
            assert_eq!(from_f32(f32::from_bits(middle)), half + (half & 1));
            assert_eq!(from_f32(f32::from_bits(middle + 1)), half + 1);
        }
        assert_eq!(to_f32(from_f32(f32::MAX)), f32::INFINITY);
        for bits in [0x7f80_0001, 0xff80_0001, 0x7fff_ffff, 0xffff_ffff] {
            assert!(to_f32(from_f32(f32::from_bits(bits))).is_nan(), "{bits:#010x}");
        }
    }

    struct Narrow<'a>(&'a [f32], &'a [f32], &'a mut [f32], &'a mut [f32]);

    impl Task for Narrow<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Narrow(first, second, halves, pairs) = self;
            assert!(halves.len() == first.len().div_ceil(2) && pairs.len() == first.len());
            assert_eq!(first.len(), second.len());
            // SAFETY: the lengths were checked.
            unsafe {
                simd.narrow(first.as_ptr(), halves.as_mut_ptr(), first.len());
                simd.narrow_pairs([first.as_ptr(), second.as_ptr()], pairs.as_mut_ptr(), first.len());
            }
        }
    }

    #[test]
    fn every_level_rounds_alike_and_multiplies_pairs() {
        let mut random = Random::new(71);
        let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -0.0, 1.0 + 1.0 / 256.0];
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        for count in 0..100 {
            let mut rows = [random.values(count), random.values(count)];
            for (at, value) in rows.iter_mut().flatten().enumerate().filter(|(at, _)| at % 7 == 3) {
                *value = special[at % special.len()];
            }
            let [first, second] = &rows;
            let at = |index: usize| first.get(index).copied().unwrap_or(0.0);
            let halves: Vec<f32> = (0..count.div_ceil(2)).map(|i| pair(at(2 * i), at(2 * i + 1))).collect();
            let pairs: Vec<f32> = first.iter().zip(second).map(|(&a, &b)| pair(a, b)).collect();
            for level in Level::with_and_without_bf16() {
                let (mut narrow, mut narrow_pairs) = (vec![0.0; halves.len()], vec![0.0; count]);
                level.run_halves(Narrow(first, second, &mut narrow, &mut narrow_pairs));
                assert_eq!(bits(&narrow), bits(&halves), "{} {count}", level.name());
                assert_eq!(bits(&narrow_pairs), bits(&pairs), "{} {count}", level.name());
            }
        }
    }
}
