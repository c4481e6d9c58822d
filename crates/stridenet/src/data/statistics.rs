//! The mean and the spread of a data set's pixels.

use super::{DataError, Dataset};
use crate::image::{ImageError, Normalisation};

/// Mean and standard deviation of each of `channels` (1 to 4) channels over the pixels of at most `limit` images, spread
/// evenly over the data set, on the scale where white is 1. A channel that never varies gets the standard deviation 1.
///
/// # Errors
/// When there are no images, one cannot be decoded, or no picture has as many channels.
pub fn channel_statistics(
    dataset: &Dataset,
    channels: usize,
    limit: usize,
) -> Result<Normalisation, DataError> {
    let count = dataset.len().min(limit);
    if !(1..=4).contains(&channels) {
        return Err(ImageError::Channels { channels }.into());
    }
    if count == 0 {
        let (found, expected) = ("0".into(), "at least 1".into());
        return Err(DataError::Setting { what: "the number of images to measure", found, expected });
    }
    // Integer sums are exact, so their order does not matter.
    let (mut sums, mut squares, mut pixels) = (vec![0u64; channels], vec![0u64; channels], 0u64);
    for step in 0..count {
        let picture = dataset.picture(step * dataset.len() / count)?.with_channels(channels);
        for pixel in picture.pixels().chunks_exact(channels) {
            for (channel, &sample) in pixel.iter().enumerate() {
                sums[channel] += u64::from(sample);
                squares[channel] += u64::from(sample) * u64::from(sample);
            }
        }
        pixels += (picture.height() * picture.width()) as u64;
    }
    let mut normalisation = Normalisation { mean: Vec::new(), std: Vec::new() };
    for (sum, square) in sums.into_iter().zip(squares) {
        let mean = sum as f64 / pixels as f64;
        let std = (square as f64 / pixels as f64 - mean * mean).max(0.0).sqrt() / 255.0;
        normalisation.mean.push((mean / 255.0) as f32);
        normalisation.std.push(if std > 1e-5 { std as f32 } else { 1.0 });
    }
    Ok(normalisation)
}

impl Dataset {
    /// The usual normalisation: the statistics of up to 10,000 images for IDX files, ImageNet's constants for image
    /// files, as pretrained networks expect.
    ///
    /// # Errors
    /// As for [`channel_statistics`].
    pub fn default_normalisation(&self) -> Result<Normalisation, DataError> {
        match self.channels() {
            1 => channel_statistics(self, 1, 10_000),
            _ => Ok(Normalisation::imagenet()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::{packed_pictures, picture_folder};
    use crate::data::{OpenOptions, open, open_evaluation};

    #[test]
    fn mean_and_spread_of_known_pixels() {
        let dataset = packed_pictures(2, &[[0, 0, 255, 255], [0, 255, 0, 255]]);
        let found = channel_statistics(&dataset, 1, 100).unwrap();
        assert_eq!((found.mean, found.std), (vec![0.5], vec![0.5]));
        let first = channel_statistics(&packed_pictures(2, &[[51; 4], [0; 4]]), 1, 1).unwrap();
        assert_eq!((first.mean, first.std), (vec![0.2], vec![1.0]));
        let refusal =
            |channels, limit| channel_statistics(&dataset, channels, limit).unwrap_err().to_string();
        assert!(refusal(1, 0).contains("the number of images to measure"), "{}", refusal(1, 0));
        assert!(refusal(5, 100).contains("takes 5 channels, pictures have 1 to 4"), "{}", refusal(5, 100));
    }

    #[test]
    fn the_sample_has_fashion_mnist_s_statistics() {
        // 0.2860 and 0.3530 are known for the whole training set.
        let found = open("sample", &OpenOptions::default()).unwrap().train.default_normalisation().unwrap();
        assert!((found.mean[0] - 0.2860).abs() < 0.002, "{found:?}");
        assert!((found.std[0] - 0.3530).abs() < 0.002, "{found:?}");
    }

    #[test]
    fn image_files_default_to_imagenet() {
        let folder = picture_folder(&["cat", "dog"], 2);
        let dataset = open_evaluation(folder.path(), &OpenOptions::default()).unwrap();
        assert_eq!(dataset.default_normalisation().unwrap(), Normalisation::imagenet());
        let measured = channel_statistics(&dataset, 3, 10).unwrap();
        assert_eq!((measured.mean.len(), measured.std.len()), (3, 3));
    }
}
