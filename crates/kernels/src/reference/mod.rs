//! Oracles: the same mathematics in plain loops and f64, for tests to compare with.

pub(crate) mod conv;
pub(crate) mod norm;
