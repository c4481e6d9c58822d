//! How files store numbers, and how they become the `f32` and `i64` values of tensors.

use super::state::TensorValues;
use std::io::{self, Read};

/// Bytes that are read at a time; a multiple of every type's size.
pub(super) const PIECE: usize = 1 << 16;

/// The element types that weights have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dtype {
    F32,
    F16,
    Bf16,
    F64,
    I64,
}

impl Dtype {
    pub(super) fn from_name(name: &str) -> Option<Self> {
        [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F64, Dtype::I64]
            .into_iter()
            .find(|dtype| dtype.name() == name)
    }

    pub(super) fn of(values: &TensorValues) -> Self {
        match values {
            TensorValues::F32(_) => Dtype::F32,
            TensorValues::I64(_) => Dtype::I64,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
            Dtype::F64 => "F64",
            Dtype::I64 => "I64",
        }
    }

    /// Bytes of one value.
    pub(super) fn size(self) -> usize {
        match self {
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::F32 => 4,
            Dtype::F64 | Dtype::I64 => 8,
        }
    }

    /// Reads `count` values, through `piece`.
    pub(super) fn decode(
        self,
        from: &mut impl Read,
        piece: &mut [u8],
        count: usize,
    ) -> io::Result<TensorValues> {
        Ok(match self {
            Dtype::F32 => TensorValues::F32(decode(from, piece, count, f32::from_le_bytes)?),
            Dtype::F16 => {
                TensorValues::F32(decode(from, piece, count, |half| f16_to_f32(u16::from_le_bytes(half)))?)
            }
            Dtype::Bf16 => TensorValues::F32(decode(from, piece, count, |half| {
                f32::from_bits(u32::from(u16::from_le_bytes(half)) << 16)
            })?),
            Dtype::F64 => {
                TensorValues::F32(decode(from, piece, count, |double| f64::from_le_bytes(double) as f32)?)
            }
            Dtype::I64 => TensorValues::I64(decode(from, piece, count, i64::from_le_bytes)?),
        })
    }
}

/// Reads `count` values of `SIZE` bytes each, through `piece`, whose length is a multiple of `SIZE`.
fn decode<T, const SIZE: usize>(
    from: &mut impl Read,
    piece: &mut [u8],
    count: usize,
    value: impl Fn([u8; SIZE]) -> T,
) -> io::Result<Vec<T>> {
    let mut values = Vec::with_capacity(count);
    while values.len() < count {
        let wanted = piece.len().min((count - values.len()) * SIZE);
        let bytes = &mut piece[..wanted];
        from.read_exact(bytes)?;
        values.extend(bytes.as_chunks::<SIZE>().0.iter().map(|&chunk| value(chunk)));
    }
    Ok(values)
}

/// IEEE 754 binary16 to binary32, exactly.
pub(super) fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let mantissa = u32::from(bits & 0x3ff);
    let magnitude = match u32::from(bits >> 10 & 0x1f) {
        // Subnormal: the mantissa counts units of 2^-24.
        0 => (mantissa as f32 * 2f32.powi(-24)).to_bits(),
        0x1f => 0x7f80_0000 | mantissa << 13,
        exponent => (exponent + 112) << 23 | mantissa << 13,
    };
    f32::from_bits(sign | magnitude)
}
