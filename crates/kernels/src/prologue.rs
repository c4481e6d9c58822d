//! What a convolution's input goes through on its way in, so that it need not be written down first.

use crate::simd::Simd;
use crate::vector::{load_first, store_first};

/// A batch norm and its ReLU, `max(0, x · scale + shift)` for each value, with the channel's scale and shift. Padding stays 0.
///
/// The bits are those of [`norm::apply`](crate::norm::apply).
#[derive(Debug, Clone, Copy)]
pub struct Prologue<'a> {
    /// Factor of each channel, `[C]`.
    pub scale: &'a [f32],
    /// Summand of each channel, `[C]`.
    pub shift: &'a [f32],
}

/// A convolution's input, `[batch, height, width, in_channels]`.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The values.
    pub values: &'a [f32],
    /// What they go through first.
    pub prologue: Option<Prologue<'a>>,
}

impl<'a, T: AsRef<[f32]> + ?Sized> From<&'a T> for Source<'a> {
    fn from(values: &'a T) -> Self {
        Source { values: values.as_ref(), prologue: None }
    }
}

impl Source<'_> {
    /// Panics where the prologue is not one for `channels` channels.
    pub(crate) fn check(&self, channels: usize) {
        if let Some(Prologue { scale, shift }) = self.prologue {
            assert_eq!([scale.len(), shift.len()], [channels; 2], "channels of the prologue");
        }
    }
}

impl Prologue<'_> {
    /// The first `count` lanes of `x` through the prologue, which are channels from `channel` on.
    ///
    /// # Safety
    /// `count <= LANES`, and these channels must exist.
    #[inline(always)]
    pub(crate) unsafe fn vector<S: Simd>(&self, simd: S, x: S::V, channel: usize, count: usize) -> S::V {
        // SAFETY: promised by the caller.
        let (scale, shift) = unsafe {
            (
                load_first(simd, self.scale.as_ptr().add(channel), count),
                load_first(simd, self.shift.as_ptr().add(channel), count),
            )
        };
        simd.max(simd.zero(), simd.mul_add(x, scale, shift))
    }

    /// Takes `count` values, which are channels from `channel` on, through the prologue.
    ///
    /// # Safety
    /// These channels must exist, `from` be valid for reads and `to` for writes of as many values.
    #[inline(always)]
    pub(crate) unsafe fn run<S: Simd>(
        &self,
        simd: S,
        from: *const f32,
        channel: usize,
        to: *mut f32,
        count: usize,
    ) {
        for at in (0..count).step_by(S::LANES) {
            let lanes = (count - at).min(S::LANES);
            // SAFETY: promised by the caller.
            unsafe {
                let x = load_first(simd, from.add(at), lanes);
                store_first(simd, to.add(at), self.vector(simd, x, channel + at, lanes), lanes);
            }
        }
    }
}
