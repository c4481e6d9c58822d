//! Data sets, augmentation and the prefetching loader.
//!
//! [`open`] turns a word or a folder into two [`Dataset`]s; a [`Loader`] turns one of them into batches, in an order
//! and with contents that depend on the seed and the epoch alone, never on the number of its threads.

mod augment;
mod dataset;
mod error;
mod folder;
mod idx;
mod loader;
mod open;
mod sample;
mod statistics;
#[cfg(test)]
mod testing;
mod verify;

pub use augment::{Augment, Crop, CropFilter};
pub use dataset::Dataset;
pub use error::DataError;
pub use folder::list_images;
pub use loader::{Batch, Loader, LoaderOptions, TrainPass};
pub use open::{OpenOptions, Splits, open, open_evaluation};
pub use statistics::channel_statistics;
pub use verify::{OnError, Skipped};
