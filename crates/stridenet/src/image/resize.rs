//! Scaling with antialiasing and cutting out, on `u8` pixels.

use super::{ImageError, MAX_PIXELS, Picture};
use crate::kernels::Level;
use crate::kernels::resample::{Filter, Region, Taps, resample, rows_first};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// How pixels between pixels are made. All but `Nearest` widen the filter when scaling down, as Pillow does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// The nearest pixel, without antialiasing.
    Nearest,
    /// The mean over a pixel's area.
    Box,
    /// A triangle filter.
    Bilinear,
    /// A sinc of one lobe in Hamming's window.
    Hamming,
    /// The cubic filter of Catmull and Rom (a = -0.5).
    Bicubic,
    /// A sinc windowed over three lobes.
    Lanczos,
}

impl Interpolation {
    /// The filter to convolve with; none takes pixels as they are.
    fn filter(self) -> Option<Filter> {
        match self {
            Interpolation::Nearest => None,
            Interpolation::Box => Some(Filter::Box),
            Interpolation::Bilinear => Some(Filter::Bilinear),
            Interpolation::Hamming => Some(Filter::Hamming),
            Interpolation::Bicubic => Some(Filter::Bicubic),
            Interpolation::Lanczos => Some(Filter::Lanczos),
        }
    }
}

/// A rectangle of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Row and column of the first pixel.
    pub origin: [usize; 2],
    /// Height and width.
    pub size: [usize; 2],
}

impl Window {
    /// All of a picture of `size` `[height, width]`.
    pub fn all(size: [usize; 2]) -> Self {
        Window { origin: [0, 0], size }
    }

    fn range(&self, axis: usize) -> Range<usize> {
        self.origin[axis]..self.origin[axis] + self.size[axis]
    }

    /// Checks that the window has pixels, all of a picture of `size`.
    fn check(&self, size: [usize; 2]) -> Result<(), ImageError> {
        let Window { origin, size: region } = *self;
        let inside = |axis: usize| {
            region[axis] > 0 && origin[axis].checked_add(region[axis]).is_some_and(|end| end <= size[axis])
        };
        match inside(0) && inside(1) {
            true => Ok(()),
            false => Err(ImageError::Region { origin, size: region, picture: size }),
        }
    }
}

/// Scales a picture to `size` `[height, width]`, to the bit as Pillow's `resize` does. A picture of that size comes back
/// untouched.
///
/// # Errors
/// When `size` is empty, or it or the step between has more than [`MAX_PIXELS`] pixels.
pub fn resize<'a>(
    picture: Picture<'a>,
    size: [usize; 2],
    interpolation: Interpolation,
) -> Result<Picture<'a>, ImageError> {
    if picture.size() == size {
        return Ok(picture);
    }
    let from = Window::all(picture.size());
    let scaled =
        scale(&picture, &Scaling { from, size, to: Window::all(size), interpolation, antialias: true })?;
    Ok(scaled.into_owned())
}

/// A part of a picture scaled, and a part of the result: what a crop before and a crop after scaling leave.
#[derive(Debug, Clone, Copy)]
pub struct Scaling {
    /// The part that is scaled.
    pub from: Window,
    /// The height and width to which it is scaled.
    pub size: [usize; 2],
    /// The part of the scaled picture that is wanted; nothing else is computed.
    pub to: Window,
    /// The filter.
    pub interpolation: Interpolation,
    /// Whether the filter is widened when scaling down, as it should be.
    pub antialias: bool,
}

/// Scales a part of a picture, to the bits of cropping, Pillow's `resize`, and cropping again.
///
/// # Errors
/// When a part is empty or not inside its picture, or the result or the step between has more than [`MAX_PIXELS`] pixels.
pub fn scale<'a>(picture: &'a Picture<'_>, scaling: &Scaling) -> Result<Picture<'a>, ImageError> {
    let Scaling { from, size, to, interpolation, antialias } = *scaling;
    from.check(picture.size())?;
    // The step between has the rows of one and the columns of the other.
    let between = match rows_first(from.size, size) {
        true => [to.size[0], from.size[1].max(to.size[1])],
        false => [from.size[0].max(to.size[0]), to.size[1]],
    };
    let endless = |side: usize| side == 0 || side as u64 > MAX_PIXELS;
    if size.into_iter().any(endless) || (between[0] as u64).saturating_mul(between[1] as u64) > MAX_PIXELS {
        let ([height, width], [scaled_height, scaled_width]) = (from.size, size);
        return Err(ImageError::Elongated { height, width, scaled_height, scaled_width });
    }
    to.check(size)?;
    if from.size == size {
        let origin = [0, 1].map(|axis| from.origin[axis] + to.origin[axis]);
        return crop(picture.view(), origin, to.size);
    }
    let [height, width] = picture.size();
    let pixels = match interpolation.filter() {
        None => pick_nearest(picture, scaling),
        Some(filter) => {
            let whole = [height, width, picture.channels()];
            let region = Region::new(picture.pixels(), whole, from.origin, from.size);
            let taps = if antialias { Taps::new } else { Taps::aliased };
            let [rows, columns] =
                [0, 1].map(|axis| taps(filter, from.size[axis], size[axis], to.range(axis)));
            // Integers: every level computes the same.
            resample(Level::detect(), region, [&rows, &columns])
        }
    };
    Picture::new(to.size[0], to.size[1], picture.channels(), pixels)
}

/// The pixels nearest to the new ones' centres. Positions are summed up, not multiplied, because Pillow's are: where a
/// centre lies on the border of two pixels, the rounding decides.
fn pick_nearest(picture: &Picture<'_>, scaling: &Scaling) -> Vec<u8> {
    let Scaling { from, size, to, .. } = *scaling;
    let positions = |axis: usize| -> Vec<usize> {
        let step = from.size[axis] as f64 / size[axis] as f64;
        let centres = std::iter::successors(Some(step * 0.5), |centre| Some(centre + step));
        let nearest = |centre: f64| from.origin[axis] + (centre as usize).min(from.size[axis] - 1);
        centres.take(to.range(axis).end).skip(to.origin[axis]).map(nearest).collect()
    };
    let channels = picture.channels();
    let (rows, columns) = (positions(0), positions(1));
    let mut pixels = Vec::with_capacity(rows.len() * columns.len() * channels);
    for row in rows {
        let line = &picture.pixels()[row * picture.width() * channels..][..picture.width() * channels];
        for &column in &columns {
            pixels.extend_from_slice(&line[column * channels..][..channels]);
        }
    }
    pixels
}

/// Cuts the region of `size` `[height, width]` at `origin` `[row, column]` out of a picture.
///
/// # Errors
/// When the region is empty or not inside the picture.
pub fn crop<'a>(
    picture: Picture<'a>,
    origin: [usize; 2],
    size: [usize; 2],
) -> Result<Picture<'a>, ImageError> {
    Window { origin, size }.check(picture.size())?;
    if picture.size() == size {
        return Ok(picture);
    }
    let channels = picture.channels();
    let row = picture.width() * channels;
    let mut pixels = Vec::with_capacity(size[0] * size[1] * channels);
    for line in picture.pixels().chunks_exact(row).skip(origin[0]).take(size[0]) {
        pixels.extend_from_slice(&line[origin[1] * channels..(origin[1] + size[1]) * channels]);
    }
    Picture::new(size[0], size[1], channels, pixels)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sample `(x * 37 + y * 91 + c * 53 + x * y * 7) % 256`, as the script that asked Pillow made it.
    fn pattern(height: usize, width: usize, channels: usize) -> Picture<'static> {
        let sample = |y, x, c| ((x * 37 + y * 91 + c * 53 + x * y * 7) % 256) as u8;
        let columns = |y| (0..width).flat_map(move |x| (0..channels).map(move |c| sample(y, x, c)));
        Picture::new(height, width, channels, (0..height).flat_map(columns).collect::<Vec<u8>>()).unwrap()
    }

    #[test]
    fn scaling_down_agrees_with_pillow() {
        // Image.resize((3, 4), filter) of Pillow 13 on an RGB picture 8 high and 10 wide.
        #[rustfmt::skip]
        let cases = [
            (Interpolation::Nearest, [
                135, 188, 241, 55, 108, 161, 187, 240, 37, 75, 128, 181, 51, 104, 157, 225, 22, 75,
                15, 68, 121, 47, 100, 153, 7, 60, 113, 211, 8, 61, 43, 96, 149, 45, 98, 151,
            ]),
            (Interpolation::Bilinear, [
                105, 130, 147, 123, 133, 141, 117, 124, 135, 129, 133, 131, 137, 136, 131, 130, 125, 130,
                123, 145, 118, 142, 133, 120, 123, 139, 122, 116, 127, 138, 132, 121, 129, 136, 120, 123,
            ]),
            (Interpolation::Bicubic, [
                102, 131, 147, 124, 133, 141, 117, 122, 136, 129, 133, 132, 141, 137, 131, 130, 123, 130,
                122, 149, 116, 144, 132, 118, 121, 143, 120, 112, 127, 140, 131, 120, 128, 140, 117, 123,
            ]),
            (Interpolation::Lanczos, [
                101, 130, 147, 123, 133, 142, 115, 122, 137, 134, 134, 132, 139, 135, 132, 132, 125, 132,
                118, 150, 115, 148, 133, 117, 121, 144, 117, 110, 127, 139, 130, 119, 127, 141, 116, 125,
            ]),
        ];
        for (interpolation, expected) in cases {
            let scaled = resize(pattern(8, 10, 3), [4, 3], interpolation).unwrap();
            assert_eq!(scaled.pixels(), expected, "{interpolation:?}");
        }
    }

    #[test]
    fn scaling_up_agrees_with_pillow() {
        // Image.resize((5, 4), filter) of Pillow 13 on a grey picture 3 high and 2 wide.
        #[rustfmt::skip]
        let cases = [
            (Interpolation::Nearest, [
                0, 0, 37, 37, 37, 91, 91, 135, 135, 135, 91, 91, 135, 135, 135, 182, 182, 233, 233, 233,
            ]),
            (Interpolation::Bilinear, [
                0, 4, 19, 33, 37, 57, 61, 78, 94, 98, 125, 130, 149, 167, 172, 182, 187, 208, 228, 233,
            ]),
            (Interpolation::Bicubic, [
                0, 0, 14, 30, 36, 48, 53, 71, 89, 95, 127, 134, 155, 175, 183, 182, 190, 213, 235, 243,
            ]),
            (Interpolation::Lanczos, [
                0, 0, 14, 29, 40, 35, 44, 61, 77, 89, 131, 146, 166, 185, 199, 177, 190, 213, 234, 248,
            ]),
        ];
        for (interpolation, expected) in cases {
            let scaled = resize(pattern(3, 2, 1), [4, 5], interpolation).unwrap();
            assert_eq!(scaled.pixels(), expected, "{interpolation:?}");
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for size in [[0, 5], [5, 0], [100_000, 100_000], [usize::MAX, 2]] {
            let error = resize(pattern(4, 4, 1), size, Interpolation::Bilinear).unwrap_err().to_string();
            assert!(error.contains(&format!("would become {}x{}", size[0], size[1])), "{error}");
        }
        let narrow = Picture::new(1_000_000, 1, 1, vec![0; 1_000_000]).unwrap();
        assert!(resize(narrow, [1_000_000, 1000], Interpolation::Bilinear).is_err());
    }

    #[test]
    fn parts_are_those_of_the_whole() {
        let picture = pattern(23, 31, 3);
        let from = Window { origin: [2, 5], size: [20, 17] };
        let to = Window { origin: [3, 1], size: [6, 8] };
        let cut = crop(picture.view(), from.origin, from.size).unwrap();
        for interpolation in [Interpolation::Nearest, Interpolation::Bicubic, Interpolation::Lanczos] {
            for size in [[11, 9], [30, 40], [20, 9], [20, 17]] {
                let whole = resize(cut.view(), size, interpolation).unwrap();
                let expected = crop(whole, to.origin, to.size).unwrap();
                let found =
                    scale(&picture, &Scaling { from, size, to, interpolation, antialias: true }).unwrap();
                assert_eq!(found, expected, "{interpolation:?} {size:?}");
            }
        }
    }

    #[test]
    fn a_region_is_cut_out() {
        let picture = Picture::new(2, 3, 3, (0..18).collect::<Vec<u8>>()).unwrap();
        assert_eq!(crop(picture.view(), [1, 1], [1, 2]).unwrap().pixels(), [12, 13, 14, 15, 16, 17]);
        assert_eq!(crop(picture.view(), [0, 0], [2, 3]).unwrap(), picture);
        for (origin, size) in [([1, 1], [2, 1]), ([0, 0], [0, 1]), ([usize::MAX, 0], [2, 2])] {
            assert!(crop(picture.view(), origin, size).is_err(), "{origin:?} {size:?}");
        }
    }
}
