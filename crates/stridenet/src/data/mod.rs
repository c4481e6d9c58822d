//! Data sets, augmentation and the prefetching loader.
