//! The inverse discrete cosine transform in integers: the algorithm of Loeffler, Ligtenberg and Moschytz (1989), 12
//! multiplications for 8 values, with 13 fractional bits in constants and 2 more between the passes.

use crate::Level;
use crate::simd::{Simd, Task};

/// Coefficients of a block, in the order of its rows.
pub const BLOCK: usize = 64;

const CONSTANT_BITS: u32 = 13;
const PASS_BITS: u32 = 2;

/// `value` with [`CONSTANT_BITS`] fractional bits.
const fn fixed(value: f64) -> i32 {
    (value * (1 << CONSTANT_BITS) as f64 + 0.5) as i32
}

/// Transforms blocks that lie beside each other. `coefficients` are `[blocks, 64]`, each times its value in `quantisation` a
/// frequency; `samples` are eight rows, the first of which has 8 values for each block, and each of which begins `pitch`
/// values after the last.
///
/// # Panics
/// When lengths do not fit.
pub fn inverse_dct(
    level: Level,
    coefficients: &[[i16; BLOCK]],
    quantisation: &[u16; BLOCK],
    samples: &mut [u8],
    pitch: usize,
) {
    let width = coefficients.len() * 8;
    assert!(pitch >= width && samples.len() >= 7 * pitch + width, "eight rows of {width} samples");
    level.run(Blocks { coefficients, quantisation: &quantisation.map(i32::from), samples, pitch });
}

struct Blocks<'a> {
    coefficients: &'a [[i16; BLOCK]],
    quantisation: &'a [i32; BLOCK],
    samples: &'a mut [u8],
    pitch: usize,
}

impl Task for Blocks<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Blocks { coefficients, quantisation, samples, pitch } = self;
        for (block, coefficients) in coefficients.iter().enumerate() {
            let out = &mut samples[block * 8..];
            if coefficients[1..].iter().all(|&value| value == 0) {
                // A flat block: what both passes make of it.
                let mean = (i32::from(coefficients[0]).wrapping_mul(quantisation[0])).wrapping_add(4) >> 3;
                let sample = mean.saturating_add(128).clamp(0, 255) as u8;
                for row in 0..8 {
                    out[row * pitch..][..8].fill(sample);
                }
                continue;
            }
            let mut rows = [[0i32; 8]; 8];
            for (row, values) in rows.iter_mut().enumerate() {
                for (column, value) in values.iter_mut().enumerate() {
                    let at = row * 8 + column;
                    *value = i32::from(coefficients[at]).wrapping_mul(quantisation[at]);
                }
            }
            let columns = transposed(&pass::<{ CONSTANT_BITS - PASS_BITS }>(&rows));
            let rows = transposed(&pass::<{ CONSTANT_BITS + PASS_BITS + 3 }>(&columns));
            for (row, values) in rows.iter().enumerate() {
                let out: &mut [u8; 8] = (&mut out[row * pitch..][..8]).try_into().expect("eight samples");
                for (sample, &value) in out.iter_mut().zip(values) {
                    *sample = value.saturating_add(128).clamp(0, 255) as u8;
                }
            }
        }
    }
}

#[inline(always)]
fn transposed(rows: &[[i32; 8]; 8]) -> [[i32; 8]; 8] {
    let mut columns = [[0; 8]; 8];
    for row in 0..8 {
        for column in 0..8 {
            columns[column][row] = rows[row][column];
        }
    }
    columns
}

/// Eight values of eight columns at once.
#[derive(Clone, Copy)]
struct Lanes([i32; 8]);

impl Lanes {
    #[inline(always)]
    fn zip(self, other: Lanes, operation: impl Fn(i32, i32) -> i32) -> Lanes {
        let mut result = [0; 8];
        for (result, (&own, &other)) in result.iter_mut().zip(self.0.iter().zip(&other.0)) {
            *result = operation(own, other);
        }
        Lanes(result)
    }

    #[inline(always)]
    fn plus(self, other: Lanes) -> Lanes {
        self.zip(other, i32::wrapping_add)
    }

    #[inline(always)]
    fn minus(self, other: Lanes) -> Lanes {
        self.zip(other, i32::wrapping_sub)
    }

    #[inline(always)]
    fn times(self, factor: i32) -> Lanes {
        self.zip(self, |value, _| value.wrapping_mul(factor))
    }

    /// Divided by 2 to the power of `BITS`, rounded to the nearest.
    #[inline(always)]
    fn descaled<const BITS: u32>(self) -> [i32; 8] {
        self.zip(self, |value, _| value.wrapping_add(1 << (BITS - 1)) >> BITS).0
    }
}

/// The one-dimensional transform down each column. Damaged files may overflow; their sums wrap.
#[inline(always)]
fn pass<const BITS: u32>(rows: &[[i32; 8]; 8]) -> [[i32; 8]; 8] {
    let row = |index: usize| Lanes(rows[index]);
    // The even part.
    let common = row(2).plus(row(6)).times(const { fixed(0.541196100) });
    let low = common.minus(row(6).times(const { fixed(1.847759065) }));
    let high = common.plus(row(2).times(const { fixed(0.765366865) }));
    let sum = row(0).plus(row(4)).times(1 << CONSTANT_BITS);
    let difference = row(0).minus(row(4)).times(1 << CONSTANT_BITS);
    let even = [sum.plus(high), difference.plus(low), difference.minus(low), sum.minus(high)];
    // The odd part.
    let (z1, z2) = (row(7).plus(row(1)), row(5).plus(row(3)));
    let (z3, z4) = (row(7).plus(row(3)), row(5).plus(row(1)));
    let z5 = z3.plus(z4).times(const { fixed(1.175875602) });
    let z1 = z1.times(-const { fixed(0.899976223) });
    let z2 = z2.times(-const { fixed(2.562915447) });
    let z3 = z5.minus(z3.times(const { fixed(1.961570560) }));
    let z4 = z5.minus(z4.times(const { fixed(0.390180644) }));
    let odd = [
        row(1).times(const { fixed(1.501321110) }).plus(z1).plus(z4),
        row(3).times(const { fixed(3.072711026) }).plus(z2).plus(z3),
        row(5).times(const { fixed(2.053119869) }).plus(z2).plus(z4),
        row(7).times(const { fixed(0.298631336) }).plus(z1).plus(z3),
    ];
    let mut result = [[0; 8]; 8];
    for index in 0..4 {
        result[index] = even[index].plus(odd[index]).descaled::<BITS>();
        result[7 - index] = even[index].minus(odd[index]).descaled::<BITS>();
    }
    result
}
