//! The layers of a residual network. Each layer's `backward` stands directly under its `forward` and reads as the
//! forward reversed; what it needs is kept in a struct with named fields.

mod activation;
mod batch_norm;
mod block;
mod conv;
mod expansion;
mod gate;
mod gradient;
mod linear;
mod parameter;
mod pool;
mod unit;
mod workspace;

pub use activation::Activation;
pub(crate) use batch_norm::EPSILON;
pub use batch_norm::{BatchNorm, NormSaved};
pub use block::{Block, BlockDrop, BlockSaved, Shortcut};
pub use conv::Conv;
pub use gate::{Gate, GateKind, GateSaved};
pub use gradient::{Gradient, Onward, Wanted};
pub use linear::{Head, HeadSaved, Linear, Stored};
pub use parameter::{Decay, Parameter};
pub use pool::{Pooled, Pools};
pub use unit::{Unit, UnitSaved};
pub use workspace::Workspace;
