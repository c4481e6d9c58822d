//! Convolution over NHWC activations: forward, gradient of the input, gradient of the weights.

mod geometry;

pub use geometry::{ConvGeometry, GeometryError, Window};
