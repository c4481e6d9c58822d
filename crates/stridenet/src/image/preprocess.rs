//! What a model wants to see: the input's size and the scale of its values.

use super::picture::has_alpha;
use super::{ImageError, Interpolation, Picture, Scaling, Window, scale};
use serde::{Deserialize, Serialize};

/// How a picture is brought to the input's shape, by timm's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CropMode {
    /// Keep the proportions: scale until the picture covers `input_size / crop_pct`, cut out the centre.
    Center,
    /// Scale both sides to `input_size / crop_pct` whatever the proportions, cut out the centre.
    Squash,
    /// Keep the proportions: scale until `input_size / crop_pct` covers the picture, cut out the centre, and fill what the
    /// picture does not reach with the mean's colour.
    Border,
}

/// Mean and standard deviation of each channel, on the scale where white is 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Normalisation {
    /// Subtracted from each channel.
    pub mean: Vec<f32>,
    /// Each channel is divided by it afterwards.
    pub std: Vec<f32>,
}

impl Normalisation {
    /// The constants of ImageNet that torchvision and timm use, for RGB.
    pub fn imagenet() -> Self {
        Normalisation { mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225] }
    }
}

/// The preprocessing of a model, as timm's `pretrained_cfg` describes it. The one path of training (which augments
/// between [`fit`](Preprocess::fit) and [`normalise`](Preprocess::normalise)), evaluation and prediction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preprocess {
    /// Height and width of the network's input, in pixels.
    pub input_size: [usize; 2],
    /// Channels of the network's input: 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha) can be made of pictures.
    pub channels: usize,
    /// Mean of each channel, on the scale where white is 1.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel, on the scale where white is 1.
    pub std: Vec<f32>,
    /// The filter used for scaling.
    pub interpolation: Interpolation,
    /// The share of the scaled picture's side that the crop keeps, above 0. Above 1, the crop is larger than the picture.
    pub crop_pct: f64,
    /// How the picture is brought to the input's shape.
    pub crop_mode: CropMode,
}

impl Preprocess {
    /// Pictures of any size scaled to `input_size` without a margin (`crop_pct` 1), bilinear; as many channels as the
    /// normalisation has. Pictures that already have that size keep their pixels.
    pub fn exact(input_size: [usize; 2], normalisation: Normalisation) -> Self {
        Preprocess {
            input_size,
            channels: normalisation.mean.len(),
            mean: normalisation.mean,
            std: normalisation.std,
            interpolation: Interpolation::Bilinear,
            crop_pct: 1.0,
            crop_mode: CropMode::Center,
        }
    }

    /// The usual preprocessing of ImageNet models: bilinear, `crop_pct` 0.875, ImageNet's constants.
    pub fn imagenet(input_size: [usize; 2]) -> Self {
        Preprocess { crop_pct: 0.875, ..Preprocess::exact(input_size, Normalisation::imagenet()) }
    }

    /// Checks every setting's range.
    ///
    /// # Errors
    /// Names the setting that is out of range.
    pub fn check(&self) -> Result<(), ImageError> {
        let wrong = |what, found: String, expected: &str| {
            Err(ImageError::Setting { what, found, expected: expected.into() })
        };
        if !self.input_size.iter().all(|size| (1..=10_000).contains(size)) {
            return wrong(
                "input_size",
                format!("{:?}", self.input_size),
                "[height, width], each from 1 to 10000",
            );
        }
        if self.channels == 0 {
            return wrong("number of channels", self.channels.to_string(), "1 or more");
        }
        for (what, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() != self.channels || values.iter().any(|value| !value.is_finite()) {
                let expected = format!("{} finite numbers, one a channel", self.channels);
                return wrong(what, format!("{values:?}"), &expected);
            }
        }
        // Below this the scale itself would not be finite.
        if self.std.iter().any(|&value| value < 1e-6) {
            return wrong("std", format!("{:?}", self.std), "numbers above 0");
        }
        if !(self.crop_pct > 0.01 && self.crop_pct <= 10.0) {
            return wrong("crop_pct", self.crop_pct.to_string(), "a number above 0.01 and at most 10");
        }
        if self.scale_target().contains(&0) {
            return wrong("crop_pct", self.crop_pct.to_string(), "input_size / crop_pct of at least 1 pixel");
        }
        Ok(())
    }

    /// The geometric part, on `u8`: channels, scaling, centre crop. The result has `input_size` and `channels`; a
    /// picture that already has the size it would be scaled to is not resampled.
    ///
    /// # Errors
    /// When a setting is out of range, or scaling so narrow a picture would need too much memory.
    pub fn fit<'a>(&self, picture: &'a Picture<'_>) -> Result<Picture<'a>, ImageError> {
        self.fit_with(picture, true)
    }

    /// As [`fit`](Preprocess::fit), with or without antialiasing.
    ///
    /// # Errors
    /// As for [`fit`](Preprocess::fit).
    pub(crate) fn fit_with<'a>(
        &self,
        picture: &'a Picture<'_>,
        antialias: bool,
    ) -> Result<Picture<'a>, ImageError> {
        self.check()?;
        let from = Window::all(picture.size());
        let size = self.scaled_size(from.size);
        // What the crop leaves of the scaled picture; a side that is too short keeps all of it.
        let axis = |axis: usize| match size[axis].checked_sub(self.input_size[axis]) {
            Some(margin) => (half(margin as f64), self.input_size[axis]),
            None => (0, size[axis]),
        };
        let [rows, columns] = [axis(0), axis(1)];
        let to = Window { origin: [rows.0, columns.0], size: [rows.1, columns.1] };
        let interpolation = self.interpolation;
        let part = self.scale(picture, &Scaling { from, size, to, interpolation, antialias })?;
        if part.size() == self.input_size { Ok(part) } else { self.pad(&part) }
    }

    /// Scales a part of a picture, in the model's channels.
    ///
    /// # Errors
    /// When the model takes more channels than pictures have, and as for [`scale`].
    pub fn scale<'a>(&self, picture: &'a Picture<'_>, scaling: &Scaling) -> Result<Picture<'a>, ImageError> {
        if self.channels > 4 {
            return Err(ImageError::Channels { channels: self.channels });
        }
        if has_alpha(self.channels) {
            return scale_with_alpha(picture.view().with_channels(self.channels), scaling);
        }
        // Colours turn grey before they are scaled, as in Pillow; grey becomes three equal channels whenever.
        if self.channels < picture.channels() || has_alpha(picture.channels()) {
            return Ok(scale(&picture.view().with_channels(self.channels), scaling)?.into_owned());
        }
        Ok(scale(picture, scaling)?.with_channels(self.channels))
    }

    /// A picture amid an input of the mean's colour (`Border`) or black.
    fn pad<'a>(&self, picture: &Picture<'_>) -> Result<Picture<'a>, ImageError> {
        let ([height, width], channels) = (self.input_size, self.channels);
        let colour: Vec<u8> = match self.crop_mode {
            // Python rounds ties to even, of the decimal number: 0.3 · 255 is one.
            CropMode::Border => {
                let level = |mean: &f32| {
                    let mean: f64 = mean.to_string().parse().expect("a number that was written");
                    (255.0 * mean).round_ties_even().clamp(0.0, 255.0) as u8
                };
                self.mean.iter().map(level).collect()
            }
            CropMode::Center | CropMode::Squash => vec![0; channels],
        };
        let mut pixels = colour.repeat(height * width);
        let [top, left] = [0, 1].map(|axis| (self.input_size[axis] - picture.size()[axis]) / 2);
        let length = picture.width() * channels;
        for (row, source) in picture.pixels().chunks_exact(length).enumerate() {
            pixels[((top + row) * width + left) * channels..][..length].copy_from_slice(source);
        }
        Picture::new(height, width, channels, pixels)
    }

    /// The float part: the samples of a picture of `input_size` to `(sample / 255 - mean) / std`, written to `out` in
    /// HWC order.
    ///
    /// # Errors
    /// When a setting is out of range, the picture does not have `input_size` and `channels`, or `out` does not have
    /// height x width x channels values.
    pub fn normalise(&self, picture: &Picture<'_>, out: &mut [f32]) -> Result<(), ImageError> {
        self.check()?;
        let [height, width] = self.input_size;
        let shape =
            |[height, width]: [usize; 2], channels| format!("{height}x{width} with {channels} channels");
        if picture.size() != self.input_size || picture.channels() != self.channels {
            return Err(ImageError::Unfit {
                what: "the picture",
                found: shape(picture.size(), picture.channels()),
                expected: shape(self.input_size, self.channels),
            });
        }
        let expected = height * width * self.channels;
        if out.len() != expected {
            let (found, expected) = (format!("{} values", out.len()), expected.to_string());
            return Err(ImageError::Unfit { what: "the output", found, expected });
        }
        let samples = picture.pixels();
        match self.channels {
            1 => scale_samples::<1>(samples, out, self),
            2 => scale_samples::<2>(samples, out, self),
            3 => scale_samples::<3>(samples, out, self),
            _ => scale_samples::<4>(samples, out, self),
        }
        Ok(())
    }

    /// [`fit`](Preprocess::fit) and [`normalise`](Preprocess::normalise): a picture of any size to the
    /// `input_size` x `channels` values of the network's input, in HWC order.
    ///
    /// # Errors
    /// As for the two parts.
    pub fn apply(&self, picture: &Picture<'_>, out: &mut [f32]) -> Result<(), ImageError> {
        self.normalise(&self.fit(picture)?, out)
    }

    /// Height and width that `input_size` is the share `crop_pct` of, rounded down.
    fn scale_target(&self) -> [usize; 2] {
        self.input_size.map(|side| (side as f64 / self.crop_pct).floor() as usize)
    }

    /// The size before the crop, by the rules of timm's evaluation transform: a square target scales the shorter
    /// side and rounds the longer down (torchvision's `Resize`), any other target covers both sides and rounds to the
    /// nearest (timm's `ResizeKeepRatio`); a border lets the target cover the picture instead.
    fn scaled_size(&self, [height, width]: [usize; 2]) -> [usize; 2] {
        let target = self.scale_target();
        let ratios = [height as f64 / target[0] as f64, width as f64 / target[1] as f64];
        let divided = |ratio: f64| {
            [height, width].map(|side| (side as f64 / ratio).round_ties_even().max(1.0) as usize)
        };
        match self.crop_mode {
            CropMode::Squash => target,
            CropMode::Border => divided(ratios[0].max(ratios[1])),
            CropMode::Center if target[0] == target[1] => {
                let longer =
                    |long: usize, short: usize| (target[0] as f64 * long as f64 / short as f64) as usize;
                match width <= height {
                    true => [longer(height, width), target[1]],
                    false => [target[0], longer(width, height)],
                }
            }
            CropMode::Center => divided(ratios[0].min(ratios[1])),
        }
    }
}

/// Scales a picture with alpha as Pillow does: what is clear has no part in the colours around it.
fn scale_with_alpha<'a>(picture: Picture<'_>, scaling: &Scaling) -> Result<Picture<'a>, ImageError> {
    if scaling.from.size == scaling.size || scaling.interpolation == Interpolation::Nearest {
        return Ok(scale(&picture, scaling)?.into_owned());
    }
    let ([height, width], channels) = (picture.size(), picture.channels());
    let colours = channels - 1;
    // `round(colour · alpha / 255)`, and back, rounded down.
    let product = |colour: u8, alpha: u8| {
        let product = u32::from(colour) * u32::from(alpha) + 128;
        ((product + (product >> 8)) >> 8) as u8
    };
    let quotient = |colour: u8, alpha: u8| match alpha {
        0 | u8::MAX => colour,
        _ => (255 * u32::from(colour) / u32::from(alpha)).min(255) as u8,
    };
    let pixels = || picture.pixels().chunks_exact(channels);
    let multiplied: Vec<u8> = pixels()
        .flat_map(|pixel| pixel[..colours].iter().map(move |&colour| product(colour, pixel[colours])))
        .collect();
    let alpha: Vec<u8> = pixels().map(|pixel| pixel[colours]).collect();
    let multiplied = Picture::new(height, width, colours, multiplied)?;
    let alpha = Picture::new(height, width, 1, alpha)?;
    let (multiplied, alpha) = (scale(&multiplied, scaling)?, scale(&alpha, scaling)?);
    let [height, width] = alpha.size();
    let mut pixels = Vec::with_capacity(height * width * channels);
    for (pixel, &alpha) in multiplied.pixels().chunks_exact(colours).zip(alpha.pixels()) {
        pixels.extend(pixel.iter().map(|&colour| quotient(colour, alpha)));
        pixels.push(alpha);
    }
    Picture::new(height, width, channels, pixels)
}

/// Half of a margin, rounded as Python rounds: torchvision's `CenterCrop`.
fn half(margin: f64) -> usize {
    (margin / 2.0).round_ties_even() as usize
}

/// In the order of torchvision's `ToTensor` and `Normalize`, to the same bits.
fn scale_samples<const CHANNELS: usize>(pixels: &[u8], out: &mut [f32], preprocess: &Preprocess) {
    let mean: [f32; CHANNELS] = std::array::from_fn(|channel| preprocess.mean[channel]);
    let std: [f32; CHANNELS] = std::array::from_fn(|channel| preprocess.std[channel]);
    let (pixels, _) = pixels.as_chunks::<CHANNELS>();
    let (values, _) = out.as_chunks_mut::<CHANNELS>();
    for (pixel, values) in pixels.iter().zip(values) {
        for channel in 0..CHANNELS {
            values[channel] = (f32::from(pixel[channel]) / 255.0 - mean[channel]) / std[channel];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::crop;

    fn pattern() -> Picture<'static> {
        let sample = |y: usize, x: usize| ((x * 37 + y * 91 + x * y * 7) % 256) as u8;
        let pixels: Vec<u8> = (0..13).flat_map(|y| (0..20).map(move |x| sample(y, x))).collect();
        Picture::new(13, 20, 1, pixels).unwrap()
    }

    fn grey(input_size: [usize; 2]) -> Preprocess {
        Preprocess::exact(input_size, Normalisation { mean: vec![0.25], std: vec![0.5] })
    }

    #[test]
    fn the_geometry_agrees_with_torchvision() {
        // Pillow 13, grey, 13 high and 20 wide, bilinear. Centre: resize((10, 7)), crop((2, 0, 8, 6)).
        // Squash: resize((7, 7)), crop((0, 0, 6, 6)).
        #[rustfmt::skip]
        let cases = [
            (CropMode::Center, [
                122, 118, 114, 111, 147, 121, 138, 132, 125, 136, 100, 138, 144, 138, 123, 144, 129, 151,
                134, 148, 131, 135, 126, 139, 123, 116, 118, 130, 139, 134, 113, 116, 145, 119, 152, 126,
            ]),
            (CropMode::Squash, [
                97, 123, 117, 113, 137, 110, 129, 135, 130, 130, 111, 142, 125, 145, 132, 136, 135, 147,
                109, 126, 142, 134, 128, 129, 140, 137, 117, 121, 138, 125, 162, 128, 122, 131, 143, 123u8,
            ]),
        ];
        for (crop_mode, expected) in cases {
            let preprocess = Preprocess { crop_mode, crop_pct: 0.857, ..grey([6, 6]) };
            let picture = pattern();
            let fitted = preprocess.fit(&picture).unwrap();
            assert_eq!(fitted.pixels(), expected, "{crop_mode:?}");
        }
    }

    #[test]
    fn the_scaled_size_follows_timm() {
        // Sizes that timm 1.0's evaluation transform computes: Resize for squares, ResizeKeepRatio otherwise.
        let scaled =
            |input_size, crop_pct, size| Preprocess { crop_pct, ..grey(input_size) }.scaled_size(size);
        assert_eq!(scaled([224, 224], 0.875, [375, 500]), [256, 341]);
        assert_eq!(scaled([224, 224], 0.875, [500, 333]), [384, 256]);
        assert_eq!(scaled([224, 224], 0.95, [100, 100]), [235, 235]);
        assert_eq!(scaled([224, 224], 0.8, [280, 999]), [280, 999]);
        assert_eq!(scaled([4, 6], 1.0, [13, 20]), [4, 6]);
        assert_eq!(scaled([192, 256], 1.0, [375, 500]), [192, 256]);
        assert_eq!(scaled([192, 256], 1.0, [500, 375]), [341, 256]);
    }

    #[test]
    fn a_picture_of_the_right_size_keeps_its_pixels() {
        let picture = pattern();
        assert_eq!(grey([13, 20]).fit(&picture).unwrap(), picture);
        let cropped = Preprocess { crop_pct: 0.5, ..grey([6, 6]) };
        let square = crop(picture.view(), [0, 0], [12, 12]).unwrap();
        assert_eq!(cropped.fit(&square).unwrap(), crop(square.view(), [3, 3], [6, 6]).unwrap());
    }

    #[test]
    fn samples_are_normalised_in_the_model_s_channels() {
        let picture = Picture::new(1, 2, 1, vec![0, 255]).unwrap();
        let mut out = [0.0; 2];
        grey([1, 2]).apply(&picture, &mut out).unwrap();
        assert_eq!(out, [-0.5, 1.5]);

        let mut out = [0.0; 6];
        Preprocess::exact([1, 2], Normalisation::imagenet()).apply(&picture, &mut out).unwrap();
        // (1 - mean) / std of each channel.
        for (found, expected) in out[3..].iter().zip([2.248_908_3, 2.428_571_4, 2.64]) {
            assert!((found - expected).abs() < 1e-6, "{found}, expected {expected}");
        }

        let colour = Picture::new(1, 1, 3, vec![255, 0, 0]).unwrap();
        let mut out = [0.0; 1];
        grey([1, 1]).apply(&colour, &mut out).unwrap();
        assert!((out[0] - (76.0 / 255.0 - 0.25) / 0.5).abs() < 1e-6);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let good = Preprocess::imagenet([224, 224]);
        good.check().unwrap();
        let cases = [
            (Preprocess { input_size: [0, 4], ..good.clone() }, "input_size"),
            (Preprocess { channels: 0, ..good.clone() }, "number of channels"),
            (Preprocess { channels: 4, ..good.clone() }, "mean"),
            (Preprocess { mean: vec![0.5], ..good.clone() }, "mean"),
            (Preprocess { std: vec![0.5, 0.0, 0.5], ..good.clone() }, "std"),
            (Preprocess { std: vec![0.5, f32::NAN, 0.5], ..good.clone() }, "std"),
            (Preprocess { crop_pct: 15.0, ..good.clone() }, "crop_pct"),
            (Preprocess { crop_pct: f64::NAN, ..good.clone() }, "crop_pct"),
        ];
        for (preprocess, what) in cases {
            let error = preprocess.apply(&pattern(), &mut []).unwrap_err().to_string();
            assert!(error.starts_with(&format!("the preprocessing's {what} is")), "{error}");
        }
        assert!(
            good.normalise(&pattern(), &mut []).unwrap_err().to_string().starts_with("the picture is 13x20")
        );
        let error = grey([13, 20]).normalise(&pattern(), &mut [0.0; 7]).unwrap_err().to_string();
        assert!(error.starts_with("the output is 7 values, expected 260"), "{error}");
        let five = Normalisation { mean: vec![0.5; 5], std: vec![0.5; 5] };
        let five = Preprocess::exact([13, 20], five);
        five.check().unwrap();
        let error = five.apply(&pattern(), &mut [0.0; 5 * 260]).unwrap_err().to_string();
        assert!(error.starts_with("the model takes 5 channels, pictures have 1 to 4"), "{error}");
    }

    #[test]
    fn a_thread_of_pixels_never_fills_the_memory() {
        // Scaled, it would have 256 x 25,600,000 pixels; the crop's are all that is made.
        let thread = Picture::new(1, 100_000, 1, vec![7; 100_000]).unwrap();
        let fitted = Preprocess::imagenet([224, 224]).fit(&thread).unwrap().into_owned();
        assert!(fitted.size() == [224, 224] && fitted.pixels().iter().all(|&sample| sample == 7));
        // Its columns scaled but not yet its rows, this one would have 1,000,000 x 224: rows come first.
        let thread = Picture::new(1_000_000, 1, 1, vec![7; 1_000_000]).unwrap();
        let squash = Preprocess { crop_mode: CropMode::Squash, ..Preprocess::imagenet([224, 224]) };
        assert_eq!(squash.fit(&thread).unwrap().pixels(), fitted.pixels());
        let error = Preprocess::imagenet([224, 224]).fit(&thread).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("of 1000000x1 pixels would become 256000000x256"), "{error}");
    }

    #[test]
    fn a_border_has_the_mean_s_colour_and_a_small_picture_a_black_frame() {
        let picture = Picture::new(2, 4, 1, vec![200; 8]).unwrap();
        let border = Preprocess { crop_mode: CropMode::Border, ..grey([5, 4]) };
        let fitted = border.fit(&picture).unwrap();
        #[rustfmt::skip]
        assert_eq!(fitted.pixels(), [64, 64, 64, 64, 200, 200, 200, 200, 200, 200, 200, 200, 64, 64, 64, 64, 64, 64, 64, 64]);
        let small = Preprocess { crop_pct: 2.0, ..grey([4, 4]) };
        let fitted = small.fit(&picture).unwrap();
        assert_eq!(fitted.pixels(), [0, 0, 0, 0, 200, 200, 200, 200, 200, 200, 200, 200, 0, 0, 0, 0]);
    }

    #[test]
    fn settings_survive_json() {
        let good = Preprocess::imagenet([224, 192]);
        let json = serde_json::to_string(&good).unwrap();
        assert!(
            json.contains(r#""interpolation":"bilinear","crop_pct":0.875,"crop_mode":"center""#),
            "{json}"
        );
        assert_eq!(serde_json::from_str::<Preprocess>(&json).unwrap(), good);
    }
}
