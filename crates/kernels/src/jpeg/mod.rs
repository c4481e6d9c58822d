//! What is arithmetic in decoding JPEG: the inverse transform, the upsampling of colours, and their conversion to RGB.
//!
//! ITU-T T.81 leaves the rounding open. Here it is that of libjpeg's default path (`islow` transform, "fancy" upsampling), so
//! that pictures are the same to the bit as Pillow's, torchvision's and everybody else's who uses libjpeg or libjpeg-turbo.

mod colour;
mod dct;
#[cfg(test)]
mod tests;
mod upsample;

pub use colour::{inverted_cmyk_to_rgb, ycc_to_rgb};
pub use dct::{BLOCK, inverse_dct};
pub use upsample::{Expansion, upsample_row};
