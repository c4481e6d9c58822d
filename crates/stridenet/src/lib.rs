//! Residual networks that down-sample with stride 2 (He et al. 2015): train, evaluate and predict on CPUs.
#![forbid(unsafe_code)]

mod algorithm;
pub mod arch;
pub mod bench;
pub mod data;
pub mod doctor;
mod error;
pub mod evaluate;
pub mod exchange;
pub mod file;
#[cfg(feature = "hub")]
pub mod hub;
pub mod image;
pub mod layer;
pub mod model;
pub mod network;
pub mod plan;
pub mod random;
pub mod report;
mod spelling;
mod tensor;
pub mod train;
pub mod weights;

pub use error::Error;
pub use stridenet_kernels as kernels;
pub use tensor::{ShapeError, Tensor};

/// The examples of the README are compiled as the library's own.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
