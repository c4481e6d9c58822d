//! The arithmetic of strided residual networks on CPUs.
//!
//! Activations are `f32` in NHWC order (`[batch, height, width, channels]`); convolution weights are HWIO
//! (`[kernel_h, kernel_w, in_channels / groups, out_channels]`). Every kernel takes a [`Context`], which says with
//! which instructions ([`Level`]) and on which threads ([`Pool`]) it runs. Results depend on the input and the
//! level, never on the number of threads.
//!
//! This is the only crate of the workspace that contains `unsafe` code.

mod balance;
pub mod bf16;
mod buffer;
mod context;
pub mod conv;
mod cpu;
mod follow;
pub mod gate;
pub mod gemm;
pub mod jpeg;
pub mod loss;
pub mod norm;
pub mod optimizer;
mod parallel;
pub mod pointwise;
pub mod pool;
mod processors;
mod prologue;
#[cfg(test)]
mod reference;
pub mod resample;
pub mod roofline;
mod simd;
#[cfg(test)]
mod testing;
mod transpose;
mod vector;

pub use bf16::Operands;
pub use buffer::{Aligned, prefer_large_pages, zeros_in_lines};
pub use context::Context;
pub use cpu::{Cores, Level, UnknownLevel};
pub use follow::Follow;
pub use parallel::{Pool, Space, with_free};
pub use processors::physical_processors;
pub use prologue::{Prologue, Source};
