//! One path from the bytes of an image to the numbers a network sees.
//!
//! ```text
//! bytes ─ decode ─► Picture (u8, HWC) ─ fit ─► Picture of the input size ─ normalise ─► f32, HWC
//! ```
//!
//! Training, evaluation, prediction and serving all go this way; training alone puts its augmentation between the
//! steps, on `u8` pixels.

mod decode;
mod error;
mod jpeg;
mod picture;
mod preprocess;
mod resize;
#[cfg(test)]
mod tests;

pub use decode::{Decoding, MAX_FILE_BYTES, MAX_PIXELS, Orientation, decode, decode_with, open, open_with};
pub use error::ImageError;
pub use picture::Picture;
pub use preprocess::{CropMode, Normalisation, Preprocess};
pub use resize::{Interpolation, Scaling, Window, crop, resize, scale};
