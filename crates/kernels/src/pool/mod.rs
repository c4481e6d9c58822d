//! Pooling over NHWC activations.
//!
//! [`MaxPool`] keeps the largest value of a window; [`LinearPool`] is any pool that weighs rows and columns apart:
//! average, global average, blur, and the subsampling of the parameter-free shortcut. Backward passes gather: each input
//! pixel collects from the outputs that saw it, so that no two tasks write to one place.

mod linear;
mod max;

pub use linear::LinearPool;
pub use max::MaxPool;

#[cfg(test)]
mod tests;
