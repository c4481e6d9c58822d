//! How much larger one side of a product is than the other.

use crate::bf16::Operands;
use crate::prologue::{Prologue, Source};

/// Lines of values that are looked at, and values of each.
const LINES: usize = 64;
const LINE: usize = 16;

/// Powers of two between which the mean square of both sides must be, so that no product of sums comes near the ends of `f32`.
const RANGE: [i32; 2] = [-80, 80];

/// The operands that a product is made of where `wanted` are, and by what power of two its right side `b` is multiplied before: so
/// that it is about as large as the left one, or as 1 where that is not known yet. Products are made one by one where either side seems
/// to be 0, not finite, or too far from 1.
pub(crate) fn balance(wanted: Operands, a: Option<Source>, b: &[f32]) -> (Operands, f32) {
    if wanted != Operands::Threes {
        return (wanted, 1.0);
    }
    let squares = [a.map_or(1.0, mean_square), mean_square(b.into())];
    let exponents = squares.map(|square: f64| {
        let exponent = (square.to_bits() >> 52) as i32 - 1023;
        (square.is_finite() && (RANGE[0]..RANGE[1]).contains(&exponent)).then_some(exponent)
    });
    match exponents {
        [Some(a), Some(b)] => (wanted, f32::from_bits(((127 + (a - b).div_euclid(2)) as u32) << 23)),
        _ => (Operands::F32, 1.0),
    }
}

/// The mean square of some values, evenly spread.
fn mean_square(source: Source) -> f64 {
    let Source { values, prologue } = source;
    let lines = values.len().div_ceil(LINE).min(LINES);
    let (mut sum, mut count) = (0.0, 0);
    for line in 0..lines {
        let start = values.len().saturating_sub(LINE) * line / (lines - 1).max(1);
        for (at, &value) in values.iter().enumerate().skip(start).take(LINE) {
            let value = match prologue {
                Some(Prologue { scale, shift }) => {
                    let channel = at % scale.len();
                    (value * scale[channel] + shift[channel]).max(0.0)
                }
                None => value,
            };
            sum += f64::from(value) * f64::from(value);
            count += 1;
        }
    }
    sum / f64::from(count.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    fn times(factor: f32, values: &[f32]) -> Vec<f32> {
        values.iter().map(|value| factor * value).collect()
    }

    #[test]
    fn the_right_side_becomes_as_large_as_the_left_one() {
        let mut random = Random::new(71);
        for (count, left, right) in
            [(7, 1.0, 1.0), (300, 3.0, 1e-3), (70_001, 2e-7, 0.04), (70_001, 9e5, 1e-6)]
        {
            let [a, b] = [left, right].map(|size| times(size, &random.values(count)));
            let (operands, factor) = balance(Operands::Threes, Some((&a).into()), &b);
            assert_eq!((operands, factor.to_bits() << 9), (Operands::Threes, 0), "a power of two");
            let ratio = f64::from(left) / (f64::from(right) * f64::from(factor));
            assert!((0.4..2.5).contains(&ratio), "{left} beside {right}: {factor}");
            // A side that is twice as large takes half the factor, so that all bits but the exponent are the same.
            let (_, half) = balance(Operands::Threes, Some((&a).into()), &times(2.0, &b));
            assert_eq!(half, factor / 2.0);
        }
        let b = times(0.01, &random.values(500));
        let (_, alone) = balance(Operands::Threes, None, &b);
        assert!((64.0..=256.0).contains(&alone), "{alone}");
    }

    #[test]
    fn a_batch_norm_and_a_relu_come_first() {
        let (a, b) = ([-3.0, 100.0].repeat(40), vec![1.0; 50]);
        let prologue = Some(Prologue { scale: &[-1.0, 1.0], shift: &[1.0, -1000.0] });
        let (_, factor) = balance(Operands::Threes, Some(Source { values: &a, prologue }), &b);
        // 4 and 0 in turn.
        assert_eq!(factor, 2.0);
    }

    #[test]
    fn other_operands_stay_and_what_threes_cannot_take_is_multiplied_one_by_one() {
        let ones = [1.0; 40];
        for operands in [Operands::F32, Operands::Bf16] {
            assert_eq!(balance(operands, Some((&ones).into()), &[8.0; 9]), (operands, 1.0));
        }
        for value in [0.0, f32::NAN, f32::INFINITY, 1e-30, 1e30] {
            let other = [value; 40];
            for [a, b] in [[ones, other], [other, ones]] {
                let found = balance(Operands::Threes, Some((&a).into()), &b);
                assert_eq!(found, (Operands::F32, 1.0), "{value}");
            }
        }
        assert_eq!(balance(Operands::Threes, Some((&ones).into()), &[]), (Operands::F32, 1.0));
    }
}
