//! Random numbers that depend on a seed and a place, never on timing or the number of threads.

use crate::Tensor;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// What a stream of random numbers is for; streams of different uses are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Initial weights.
    Initialise = 1,
    /// The order of the images in an epoch.
    Shuffle = 2,
    /// Crops and flips of an image in an epoch.
    Augment = 3,
    /// Splitting a data set.
    Split = 4,
    /// Images that benchmarks run on.
    Benchmark = 5,
    /// Which blocks an image of a training pass goes around.
    DropPath = 6,
    /// Which regions of its feature maps are left out.
    DropBlock = 7,
}

/// The generator for one use at one place, for example `[epoch, image]`.
pub fn generator(seed: u64, purpose: Use, place: [u64; 2]) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip([seed, purpose as u64, place[0], place[1]]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// A batch of random images `[N, H, W, C]`, uniform with mean 0 and variance 1, the same every time.
pub fn random_images(shape: [usize; 4]) -> Tensor {
    let mut random = generator(0, Use::Benchmark, [0, 0]);
    let bound = 3.0f32.sqrt();
    let mut images = Tensor::zeros(shape);
    images.data_mut().iter_mut().for_each(|value| *value = random.random_range(-bound..bound));
    images
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::Rng;

    #[test]
    fn places_are_repeatable_and_differ() {
        let draw = |seed, purpose, place| generator(seed, purpose, place).next_u64();
        assert_eq!(draw(1, Use::Augment, [2, 3]), draw(1, Use::Augment, [2, 3]));
        assert_ne!(draw(1, Use::Augment, [2, 3]), draw(1, Use::Augment, [3, 2]));
        assert_ne!(draw(1, Use::Augment, [2, 3]), draw(1, Use::Shuffle, [2, 3]));
    }
}
