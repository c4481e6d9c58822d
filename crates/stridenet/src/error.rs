//! The library's one error type. Each room has its own cases; this enum gathers them.

use thiserror::Error;

/// What can go wrong in this library. The message is one line that says what was found and what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor's shape does not fit.
    #[error(transparent)]
    Shape(#[from] crate::ShapeError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] crate::file::FileError),
    /// A network's description is wrong.
    #[error(transparent)]
    Arch(#[from] crate::arch::ArchError),
    /// Weights or a model folder are wrong.
    #[error(transparent)]
    Weights(#[from] crate::weights::WeightsError),
    /// A model cannot be fetched.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] crate::hub::HubError),
    /// A file's graph and a network do not agree.
    #[error(transparent)]
    Exchange(#[from] crate::exchange::ExchangeError),
    /// An image or its preprocessing is wrong.
    #[error(transparent)]
    Image(#[from] crate::image::ImageError),
    /// A data set is wrong.
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
    /// A measurement means nothing.
    #[error(transparent)]
    Bench(#[from] crate::bench::BenchError),
    /// A tuning does not fit or cannot be read.
    #[error(transparent)]
    Tune(#[from] crate::plan::TuneError),
    /// Training cannot start or go on.
    #[error(transparent)]
    Train(#[from] crate::train::TrainError),
}
