//! Random crops and flips for training, on `u8` pixels.

use super::DataError;
use crate::image::{ImageError, Interpolation, Picture, Preprocess, Scaling, Window};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// Which part of a picture is shown.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Crop {
    /// The evaluation's: no randomness.
    None,
    /// The evaluation's, with this many black pixels added on each side, from which a window of the input's size is cut
    /// (He et al. 2015, section 4.2).
    Pad(usize),
    /// A region of random area and proportions, scaled to the input's size (Szegedy et al. 2014, section 6; torchvision's
    /// `RandomResizedCrop`).
    Resized {
        /// Smallest and largest share of the picture's area.
        scale: [f64; 2],
        /// Smallest and largest ratio of width to height.
        ratio: [f64; 2],
        /// The filter that scales it.
        #[serde(default)]
        filter: CropFilter,
    },
}

/// The filter that scales a random region (timm's `train_interpolation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CropFilter {
    /// The evaluation's.
    #[default]
    Evaluation,
    /// Bilinear or bicubic, each as likely as the other: timm's `random`.
    Random,
    /// Always this one.
    Fixed(Interpolation),
}

/// What is done to a picture at random, between its decoding and its normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Augment {
    /// Which part is shown.
    pub crop: Crop,
    /// Probability that a picture is mirrored left to right.
    pub hflip: f64,
    /// Probability that a picture is mirrored top to bottom.
    pub vflip: f64,
}

impl Crop {
    /// Shares of the area as timm and torchvision take them.
    pub const SCALE: [f64; 2] = [0.08, 1.0];

    /// Ratios of width to height as timm and torchvision take them.
    pub const RATIO: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0];

    /// timm's and torchvision's choice: 8 % to 100 % of the area, proportions from 3:4 to 4:3.
    pub const RESIZED: Crop =
        Crop::Resized { scale: Crop::SCALE, ratio: Crop::RATIO, filter: CropFilter::Evaluation };

    /// Padding of an eighth of the shorter side, at least 2 pixels: the 4 pixels that He et al. take for CIFAR's 32.
    pub fn padded([height, width]: [usize; 2]) -> Self {
        Crop::Pad((height.min(width) / 8).max(2))
    }
}

impl Augment {
    /// Pictures as they are evaluated.
    pub const NONE: Augment = Augment { crop: Crop::None, hflip: 0.0, vflip: 0.0 };

    /// The usual choice for an input of `[height, width]`: [`Crop::padded`] when a side has 64 pixels or fewer, else
    /// [`Crop::RESIZED`]; every second picture mirrored left to right.
    pub fn standard(input_size: [usize; 2]) -> Self {
        let small = input_size.iter().any(|&side| side <= 64);
        let crop = if small { Crop::padded(input_size) } else { Crop::RESIZED };
        Augment { crop, hflip: 0.5, vflip: 0.0 }
    }

    /// Checks every setting's range.
    ///
    /// # Errors
    /// Names the setting that is out of range.
    pub fn check(&self) -> Result<(), DataError> {
        let wrong =
            |what, found, expected: &str| Err(DataError::Setting { what, found, expected: expected.into() });
        for (what, probability) in [("hflip", self.hflip), ("vflip", self.vflip)] {
            if !(0.0..=1.0).contains(&probability) {
                return wrong(what, probability.to_string(), "a probability from 0 to 1");
            }
        }
        match self.crop {
            Crop::Pad(padding) if padding > 1024 => {
                wrong("the crop's padding", padding.to_string(), "at most 1024 pixels")
            }
            Crop::Resized { scale: [low, high], .. } if !(low > 0.0 && low <= high && high <= 1.0) => wrong(
                "the crop's scale",
                format!("{low} to {high}"),
                "shares above 0 and at most 1, the smaller first",
            ),
            Crop::Resized { ratio: [low, high], .. } if !(low > 0.0 && low <= high && high.is_finite()) => {
                wrong("the crop's ratio", format!("{low} to {high}"), "ratios above 0, the smaller first")
            }
            _ => Ok(()),
        }
    }

    /// The part of `picture` to train on, of the preprocessing's `input_size` and `channels`.
    ///
    /// # Errors
    /// As for [`Preprocess::fit`].
    ///
    /// The settings must have passed [`check`](Augment::check).
    pub(super) fn apply<'a>(
        &self,
        preprocess: &Preprocess,
        picture: &'a Picture<'_>,
        random: &mut impl Rng,
    ) -> Result<Picture<'a>, ImageError> {
        let mut result = match self.crop {
            Crop::None => preprocess.fit(picture)?,
            Crop::Pad(padding) => {
                let shift = [0, 1].map(|_| random.random_range(0..=2 * padding as u32) as usize);
                shifted(&preprocess.fit(picture)?, padding, shift)?
            }
            Crop::Resized { scale, ratio, filter } => {
                preprocess.check()?;
                let (origin, size) = random_region(picture.size(), scale, ratio, random);
                let interpolation = match filter {
                    CropFilter::Evaluation => preprocess.interpolation,
                    CropFilter::Fixed(interpolation) => interpolation,
                    CropFilter::Random if random.random_bool(0.5) => Interpolation::Bicubic,
                    CropFilter::Random => Interpolation::Bilinear,
                };
                let scaling = Scaling {
                    from: Window { origin, size },
                    size: preprocess.input_size,
                    to: Window::all(preprocess.input_size),
                    interpolation,
                    antialias: true,
                };
                preprocess.scale(picture, &scaling)?
            }
        };
        // What never happens draws nothing, so that switching it on changes nothing else.
        let mut happens = |probability: f64| probability > 0.0 && random.random_bool(probability);
        if happens(self.hflip) {
            mirror(&mut result);
        }
        if happens(self.vflip) {
            turn_over(&mut result);
        }
        Ok(result)
    }
}

/// The window at `shift` `[row, column]` of the picture with `padding` black pixels on each side.
fn shifted<'a>(picture: &Picture<'_>, padding: usize, shift: [usize; 2]) -> Result<Picture<'a>, ImageError> {
    let ([height, width], channels) = (picture.size(), picture.channels());
    let mut pixels = vec![0; picture.pixels().len()];
    // The columns of the window that show the picture, and the first column they show.
    let first = padding.saturating_sub(shift[1]);
    let from = shift[1].saturating_sub(padding);
    let count = width.saturating_sub(first.max(from));
    for row in 0..height {
        let source = (row + shift[0]).checked_sub(padding).filter(|&source| source < height);
        if let (Some(source), true) = (source, count > 0) {
            pixels[(row * width + first) * channels..][..count * channels]
                .copy_from_slice(&picture.pixels()[(source * width + from) * channels..][..count * channels]);
        }
    }
    Picture::new(height, width, channels, pixels)
}

/// Row and column, height and width of a region as torchvision's `RandomResizedCrop` draws it.
fn random_region(
    [height, width]: [usize; 2],
    scale: [f64; 2],
    ratio: [f64; 2],
    random: &mut impl Rng,
) -> ([usize; 2], [usize; 2]) {
    let mut uniform = |[low, high]: [f64; 2]| low + (high - low) * random.random::<f64>();
    let area = (height * width) as f64;
    let mut found = None;
    for _ in 0..10 {
        let target = area * uniform(scale);
        let aspect = uniform(ratio.map(f64::ln)).exp();
        let size =
            [(target / aspect).sqrt(), (target * aspect).sqrt()].map(|side| side.round_ties_even() as usize);
        if (1..=height).contains(&size[0]) && (1..=width).contains(&size[1]) {
            found = Some(size);
            break;
        }
    }
    let Some(size) = found else {
        // The largest centred region with proportions in range.
        let proportion = (width as f64 / height as f64).clamp(ratio[0], ratio[1]);
        let fitted_height = ((width as f64 / proportion).round() as usize).clamp(1, height);
        let fitted_width = ((height as f64 * proportion).round() as usize).clamp(1, width);
        return ([(height - fitted_height) / 2, (width - fitted_width) / 2], [fitted_height, fitted_width]);
    };
    let mut place = |room: usize| random.random_range(0..=room as u64) as usize;
    ([place(height - size[0]), place(width - size[1])], size)
}

/// Mirrors left to right.
fn mirror(picture: &mut Picture<'_>) {
    let (width, channels) = (picture.width(), picture.channels());
    for row in picture.pixels_mut().chunks_exact_mut(width * channels) {
        // Reversing the samples reverses the pixels and the channels in each; the channels are put right again.
        row.reverse();
        row.chunks_exact_mut(channels).for_each(<[u8]>::reverse);
    }
}

/// Mirrors top to bottom.
fn turn_over(picture: &mut Picture<'_>) {
    let row = picture.width() * picture.channels();
    let height = picture.height();
    let (upper, lower) = picture.pixels_mut().split_at_mut(height / 2 * row);
    for (upper, lower) in upper.chunks_exact_mut(row).zip(lower.rchunks_exact_mut(row)) {
        upper.swap_with_slice(lower);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::gradient;
    use crate::image::Normalisation;
    use crate::random::{Use, generator};

    #[test]
    fn a_shifted_window_agrees_with_padding_and_cutting() {
        let picture = gradient(3, 4, 3);
        for padding in [0, 1, 2, 6] {
            for row in 0..=2 * padding {
                for column in 0..=2 * padding {
                    let found = shifted(&picture, padding, [row, column]).unwrap();
                    let sample = |y: usize, x: usize, c: usize| {
                        let (y, x) = ((y + row).wrapping_sub(padding), (x + column).wrapping_sub(padding));
                        if y < 3 && x < 4 { picture.pixels()[(y * 4 + x) * 3 + c] } else { 0 }
                    };
                    for (at, &value) in found.pixels().iter().enumerate() {
                        assert_eq!(
                            value,
                            sample(at / 12, at / 3 % 4, at % 3),
                            "{padding} {row} {column} {at}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn mirroring_keeps_the_channels() {
        let mut picture = Picture::new(2, 2, 3, (0..12).collect::<Vec<u8>>()).unwrap();
        mirror(&mut picture);
        assert_eq!(picture.pixels(), [3, 4, 5, 0, 1, 2, 9, 10, 11, 6, 7, 8]);
    }

    #[test]
    fn turning_over_keeps_the_rows() {
        let mut picture = Picture::new(3, 2, 1, (0..6).collect::<Vec<u8>>()).unwrap();
        turn_over(&mut picture);
        assert_eq!(picture.pixels(), [4, 5, 2, 3, 0, 1]);
    }

    #[test]
    fn pictures_are_mirrored_as_often_as_asked_for() {
        let picture = gradient(4, 5, 1);
        let preprocess = Preprocess::exact([4, 5], Normalisation { mean: vec![0.5], std: vec![0.5] });
        let mut mirrored = picture.view();
        mirror(&mut mirrored);
        let mut over = picture.view();
        turn_over(&mut over);
        let count = |hflip, vflip, expected: &Picture<'_>| {
            let augment = Augment { crop: Crop::None, hflip, vflip };
            let shown = |place| {
                let mut random = generator(5, Use::Augment, [0, place]);
                augment.apply(&preprocess, &picture, &mut random).unwrap().into_owned()
            };
            (0..1000).filter(|&place| shown(place) == *expected).count()
        };
        assert_eq!(count(1.0, 0.0, &mirrored), 1000);
        assert_eq!(count(0.0, 1.0, &over), 1000);
        // Four standard deviations of 1000 coins.
        for found in [count(0.2, 0.0, &mirrored), count(0.0, 0.2, &over)] {
            assert!((150..250).contains(&found), "{found}");
        }
    }

    #[test]
    fn regions_lie_inside_and_have_the_area_and_proportions_asked_for() {
        let (scale, ratio) = ([0.08, 1.0], [3.0 / 4.0, 4.0 / 3.0]);
        let mut random = generator(1, Use::Augment, [0, 0]);
        let mut shares = Vec::new();
        for _ in 0..2000 {
            let (origin, size) = random_region([300, 400], scale, ratio, &mut random);
            assert!(origin[0] + size[0] <= 300 && origin[1] + size[1] <= 400);
            let proportion = size[1] as f64 / size[0] as f64;
            assert!(proportion > ratio[0] - 0.02 && proportion < ratio[1] + 0.02, "{size:?}");
            shares.push((size[0] * size[1]) as f64 / 120_000.0);
        }
        let smallest = shares.iter().copied().fold(1.0, f64::min);
        let largest = shares.iter().copied().fold(0.0, f64::max);
        assert!(smallest > 0.075 && smallest < 0.1 && largest > 0.9, "{smallest} {largest}");
    }

    #[test]
    fn a_picture_too_narrow_for_any_region_gives_its_centre() {
        let mut random = generator(1, Use::Augment, [0, 0]);
        let ratio = [3.0 / 4.0, 4.0 / 3.0];
        assert_eq!(random_region([1000, 2], [0.9, 1.0], ratio, &mut random), ([498, 0], [3, 2]));
        assert_eq!(random_region([2, 1000], [0.9, 1.0], ratio, &mut random), ([0, 498], [2, 3]));
    }

    #[test]
    fn each_kind_fills_the_input() {
        let picture = gradient(20, 30, 3);
        let preprocess = Preprocess::exact([8, 6], Normalisation { mean: vec![0.5], std: vec![0.5] });
        let resized = |filter| Crop::Resized { scale: [0.2, 1.0], ratio: [0.5, 2.0], filter };
        let kinds = [
            Crop::None,
            Crop::Pad(2),
            resized(CropFilter::Evaluation),
            resized(CropFilter::Random),
            resized(CropFilter::Fixed(Interpolation::Lanczos)),
        ];
        for crop in kinds {
            let augment = Augment { crop, hflip: 0.5, vflip: 0.5 };
            let draw = |place| {
                let mut random = generator(3, Use::Augment, [0, place]);
                augment.apply(&preprocess, &picture, &mut random).unwrap().into_owned()
            };
            assert_eq!((draw(0).size(), draw(0).channels()), ([8, 6], 1), "{crop:?}");
            assert_eq!(draw(1), draw(1));
            assert!((2..20).any(|place| draw(place) != draw(1)), "{crop:?}");
        }
        let mut random = generator(3, Use::Augment, [0, 0]);
        let plain = Augment::NONE.apply(&preprocess, &picture, &mut random).unwrap();
        assert_eq!(plain, preprocess.fit(&picture).unwrap());
    }

    #[test]
    fn small_inputs_get_cifar_s_crops_and_large_ones_imagenet_s() {
        assert_eq!(Augment::standard([32, 32]).crop, Crop::Pad(4));
        assert!(matches!(Augment::standard([224, 224]).crop, Crop::Resized { .. }));
        Augment::standard([224, 224]).check().unwrap();
        let bad = Augment {
            crop: Crop::Resized { scale: [0.1, 1.0], ratio: [f64::NAN, 1.0], filter: CropFilter::Random },
            hflip: 0.0,
            vflip: 0.0,
        };
        assert!(bad.check().unwrap_err().to_string().contains("ratio"));
        let bad = Augment { vflip: 1.5, ..Augment::NONE };
        assert!(bad.check().unwrap_err().to_string().contains("vflip"));
        assert!(Augment { crop: Crop::Pad(usize::MAX), hflip: 0.0, vflip: 0.0 }.check().is_err());
    }

    /// The whole picture is the region here, so that only the filter is drawn: torchvision's `resize` of `u8` pixels by each.
    #[test]
    fn a_random_filter_is_bilinear_or_bicubic() {
        let picture =
            Picture::new(9, 9, 1, (0..81u32).map(|at| (at * at % 251) as u8).collect::<Vec<_>>()).unwrap();
        let preprocess = Preprocess::exact([5, 5], Normalisation { mean: vec![0.5], std: vec![0.5] });
        let draw = |filter, seed| {
            let crop = Crop::Resized { scale: [1.0, 1.0], ratio: [1.0, 1.0], filter };
            let mut random = generator(seed, Use::Augment, [0, 0]);
            Augment { crop, ..Augment::NONE }.apply(&preprocess, &picture, &mut random).unwrap().into_owned()
        };
        let fixed = |interpolation| draw(CropFilter::Fixed(interpolation), 0);
        let [bilinear, bicubic] = [Interpolation::Bilinear, Interpolation::Bicubic].map(fixed);
        assert!(draw(CropFilter::Evaluation, 0) == bilinear && bilinear != bicubic);
        let drawn: Vec<_> = (0..40).map(|seed| draw(CropFilter::Random, seed)).collect();
        let cubic = drawn.iter().filter(|&found| *found == bicubic).count();
        let linear = drawn.iter().filter(|&found| *found == bilinear).count();
        assert!(cubic + linear == 40 && cubic > 8 && linear > 8, "{cubic} and {linear}");
    }
}
