//! Colours of ITU-T T.871 (full-range BT.601) to RGB, in 16 fractional bits.

use crate::Level;
use crate::simd::{Simd, Task};

const BITS: u32 = 16;
const HALF: i32 = 1 << (BITS - 1);

/// `value` with [`BITS`] fractional bits.
const fn fixed(value: f64) -> i32 {
    (value * (1 << BITS) as f64 + 0.5) as i32
}

/// Luma and two differences of colour, a row each, to a row of RGB pixels.
///
/// # Panics
/// When rows are shorter than `out` has pixels.
pub fn ycc_to_rgb(level: Level, [luma, blue, red]: [&[u8]; 3], out: &mut [u8]) {
    level.run(Pixels { luma, blue, red, out });
}

struct Pixels<'a> {
    luma: &'a [u8],
    blue: &'a [u8],
    red: &'a [u8],
    out: &'a mut [u8],
}

impl Task for Pixels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Pixels { luma, blue, red, out } = self;
        let (pixels, _) = out.as_chunks_mut::<3>();
        let count = pixels.len();
        let (luma, blue, red) = (&luma[..count], &blue[..count], &red[..count]);
        for at in 0..count {
            let (y, cb, cr) = (i32::from(luma[at]), i32::from(blue[at]) - 128, i32::from(red[at]) - 128);
            let r = y + ((const { fixed(1.402) } * cr + HALF) >> BITS);
            let g = y + ((-const { fixed(0.34414) } * cb - const { fixed(0.71414) } * cr + HALF) >> BITS);
            let b = y + ((const { fixed(1.772) } * cb + HALF) >> BITS);
            pixels[at] = [r, g, b].map(|sample| sample.clamp(0, 255) as u8);
        }
    }
}

/// Inks stored as Adobe does, inverted, a row each, to a row of RGB pixels: what Pillow's `convert("RGB")` makes of them.
///
/// # Panics
/// When rows are shorter than `out` has pixels.
pub fn inverted_cmyk_to_rgb(inks: [&[u8]; 4], out: &mut [u8]) {
    let (pixels, _) = out.as_chunks_mut::<3>();
    for (at, pixel) in pixels.iter_mut().enumerate() {
        let paper = u32::from(inks[3][at]);
        *pixel = [0, 1, 2].map(|ink| {
            // Divided by 255, rounded to the nearest.
            let product = u32::from(255 - inks[ink][at]) * paper + 128;
            paper.saturating_sub(((product >> 8) + product) >> 8) as u8
        });
    }
}
