//! Scale, shift, residual sum and ReLU in one pass.

use super::{task_rows, tile_rows};
use crate::Context;
use crate::simd::{Simd, Task};
use crate::vector::{Columns, columns, read, write};

/// What [`apply`] reads.
#[derive(Debug, Clone, Copy)]
pub struct Apply<'a> {
    /// Input, `[N, H, W, C]`.
    pub x: &'a [f32],
    /// Factor of each channel, `[C]`: `gamma · inv_std`.
    pub scale: &'a [f32],
    /// Summand of each channel, `[C]`: `beta − mean · scale`.
    pub shift: &'a [f32],
    /// Added after scale and shift, `[N, H, W, C]`.
    pub residual: Option<&'a [f32]>,
    /// Whether negative results become 0.
    pub relu: bool,
}

/// `y = relu(x · scale + shift + residual)`, each channel with its own scale and shift; `y` is `[N, H, W, C]`. A NaN
/// stays a NaN.
///
/// # Panics
/// When the lengths do not fit each other.
pub fn apply(context: &Context, input: Apply, y: &mut [f32]) {
    let channels = input.scale.len();
    super::rows("x", input.x, channels);
    assert_eq!(input.shift.len(), channels, "shift and scale differ in length");
    assert_eq!(input.x.len(), y.len(), "x and y differ in length");
    if let Some(residual) = input.residual {
        assert_eq!(residual.len(), y.len(), "residual and y differ in length");
    }
    let length = task_rows(channels) * channels;
    context.pool().pieces(y, length, |index, y| {
        let range = index * length..index * length + y.len();
        let residual = input.residual.map(|residual| &residual[range.clone()]);
        context.level().run(Piece { input: Apply { x: &input.x[range], residual, ..input }, y });
    });
}

/// Some rows of an [`Apply`].
struct Piece<'a> {
    input: Apply<'a>,
    y: &'a mut [f32],
}

impl Task for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let channels = self.input.scale.len();
        let length = tile_rows(channels) * channels;
        for (index, y) in self.y.chunks_mut(length).enumerate() {
            let range = index * length..index * length + y.len();
            let residual = self.input.residual.map(|residual| &residual[range.clone()]);
            let input = Apply { x: &self.input.x[range], residual, ..self.input };
            columns(simd, channels, &mut Piece { input, y });
        }
    }
}

impl Columns for Piece<'_> {
    #[inline(always)]
    fn block<S: Simd, const V: usize>(&mut self, simd: S, from: usize, count: usize) {
        let Apply { x, scale, shift, residual, relu } = self.input;
        let width = (V - 1) * S::LANES + count;
        let (mut scales, mut shifts) = ([simd.zero(); V], [simd.zero(); V]);
        for v in 0..V {
            scales[v] = read(simd, scale, from + v * S::LANES, count);
            shifts[v] = read(simd, shift, from + v * S::LANES, count);
        }
        for start in (from..self.y.len()).step_by(scale.len()) {
            let (x, y) = (&x[start..][..width], &mut self.y[start..][..width]);
            let residual = residual.map(|residual| &residual[start..][..width]);
            for v in 0..V {
                let at = v * S::LANES;
                let mut value = simd.mul_add(read(simd, x, at, count), scales[v], shifts[v]);
                if let Some(residual) = residual {
                    value = simd.add(value, read(simd, residual, at, count));
                }
                if relu {
                    value = simd.max(simd.zero(), value);
                }
                write(simd, y, at, count, value);
            }
        }
    }
}
