//! Scaling with antialiasing and cutting out, on `u8` pixels.

use super::{ImageError, MAX_PIXELS, Picture};
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::{U8, U8x3};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer};
use serde::{Deserialize, Serialize};

/// How pixels between pixels are made. All but `Nearest` widen the filter when scaling down, as Pillow does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// The nearest pixel, without antialiasing.
    Nearest,
    /// A triangle filter.
    Bilinear,
    /// The cubic filter of Catmull and Rom (a = -0.5).
    Bicubic,
    /// A sinc windowed over three lobes.
    Lanczos,
}

impl Interpolation {
    /// The filter to convolve with; none takes pixels as they are.
    fn filter(self) -> Option<FilterType> {
        match self {
            Interpolation::Nearest => None,
            Interpolation::Bilinear => Some(FilterType::Bilinear),
            Interpolation::Bicubic => Some(FilterType::CatmullRom),
            Interpolation::Lanczos => Some(FilterType::Lanczos3),
        }
    }
}

/// Scales a picture to `size` `[height, width]`, as Pillow's `resize` does. A picture of that size comes back untouched.
///
/// # Errors
/// When `size` is empty, or it or the step between has more than [`MAX_PIXELS`] pixels.
pub fn resize<'a>(
    picture: Picture<'a>,
    size: [usize; 2],
    interpolation: Interpolation,
) -> Result<Picture<'a>, ImageError> {
    // Columns first, then rows, with rounding between: the other order differs from Pillow by dozens of levels where
    // a filter overshoots and is clipped.
    let wide = [picture.height(), size[1]];
    let too_many = |[height, width]: [usize; 2]| (height as u64).saturating_mul(width as u64) > MAX_PIXELS;
    if picture.size() != size && (size.contains(&0) || too_many(size) || too_many(wide)) {
        return Err(elongated(&picture, size));
    }
    match interpolation.filter() {
        Some(filter) => convolve(convolve(picture, wide, filter)?, size, filter),
        None => pick_nearest(picture, size),
    }
}

fn elongated(picture: &Picture<'_>, [scaled_height, scaled_width]: [usize; 2]) -> ImageError {
    ImageError::Elongated { height: picture.height(), width: picture.width(), scaled_height, scaled_width }
}

fn convolve(picture: Picture<'_>, size: [usize; 2], filter: FilterType) -> Result<Picture<'_>, ImageError> {
    if picture.size() == size {
        return Ok(picture);
    }
    // By channels at compile time: the crate's own choice among all its pixel types takes minutes to compile.
    let samples = match picture.channels() {
        1 => resample::<U8>(&picture, size, filter),
        _ => resample::<U8x3>(&picture, size, filter),
    };
    let samples = samples.ok_or_else(|| elongated(&picture, size))?;
    Picture::new(size[0], size[1], picture.channels(), samples)
}

/// The samples of `picture` scaled to `size`; none when a side exceeds 32 bits.
fn resample<P: PixelTrait>(picture: &Picture<'_>, size: [usize; 2], filter: FilterType) -> Option<Vec<u8>> {
    let [from_height, from_width] = picture.size().map(|side| u32::try_from(side).ok());
    let [height, width] = size.map(|side| u32::try_from(side).ok());
    let mut samples = vec![0; size[0] * size[1] * picture.channels()];
    let source = TypedImageRef::<P>::from_buffer(from_width?, from_height?, picture.pixels()).ok()?;
    let mut target = TypedImage::<P>::from_buffer(width?, height?, &mut samples).ok()?;
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).use_alpha(false);
    Resizer::new().resize_typed(&source, &mut target, &options).ok()?;
    Some(samples)
}

/// The pixels nearest to the new ones' centres. Positions are summed up, not multiplied, because Pillow's are: where a
/// centre lies on the border of two pixels, the rounding decides.
fn pick_nearest(picture: Picture<'_>, size: [usize; 2]) -> Result<Picture<'_>, ImageError> {
    if picture.size() == size {
        return Ok(picture);
    }
    let positions = |axis: usize| -> Vec<usize> {
        let (from, to) = (picture.size()[axis], size[axis]);
        let step = from as f64 / to as f64;
        let centres = std::iter::successors(Some(step * 0.5), |centre| Some(centre + step));
        centres.take(to).map(|centre| (centre as usize).min(from - 1)).collect()
    };
    let channels = picture.channels();
    let (rows, columns) = (positions(0), positions(1));
    let mut pixels = Vec::with_capacity(size[0] * size[1] * channels);
    for row in rows {
        let line = &picture.pixels()[row * picture.width() * channels..][..picture.width() * channels];
        for &column in &columns {
            pixels.extend_from_slice(&line[column * channels..][..channels]);
        }
    }
    Picture::new(size[0], size[1], channels, pixels)
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
    let inside = |axis: usize| {
        size[axis] > 0 && origin[axis].checked_add(size[axis]).is_some_and(|end| end <= picture.size()[axis])
    };
    if !inside(0) || !inside(1) {
        return Err(ImageError::Region { origin, size, picture: picture.size() });
    }
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

    fn close(found: &Picture<'_>, expected: &[u8], tolerance: u8) {
        assert_eq!(found.pixels().len(), expected.len());
        for (at, (&found, &expected)) in found.pixels().iter().zip(expected).enumerate() {
            assert!(found.abs_diff(expected) <= tolerance, "sample {at}: {found}, expected {expected}");
        }
    }

    #[test]
    fn scaling_down_agrees_with_pillow() {
        // Image.resize((3, 4), filter) of Pillow 13 on an RGB picture 8 high and 10 wide.
        #[rustfmt::skip]
        let cases = [
            (Interpolation::Nearest, 0, [
                135, 188, 241, 55, 108, 161, 187, 240, 37, 75, 128, 181, 51, 104, 157, 225, 22, 75,
                15, 68, 121, 47, 100, 153, 7, 60, 113, 211, 8, 61, 43, 96, 149, 45, 98, 151,
            ]),
            (Interpolation::Bilinear, 1, [
                105, 130, 147, 123, 133, 141, 117, 124, 135, 129, 133, 131, 137, 136, 131, 130, 125, 130,
                123, 145, 118, 142, 133, 120, 123, 139, 122, 116, 127, 138, 132, 121, 129, 136, 120, 123,
            ]),
            (Interpolation::Bicubic, 1, [
                102, 131, 147, 124, 133, 141, 117, 122, 136, 129, 133, 132, 141, 137, 131, 130, 123, 130,
                122, 149, 116, 144, 132, 118, 121, 143, 120, 112, 127, 140, 131, 120, 128, 140, 117, 123,
            ]),
            (Interpolation::Lanczos, 1, [
                101, 130, 147, 123, 133, 142, 115, 122, 137, 134, 134, 132, 139, 135, 132, 132, 125, 132,
                118, 150, 115, 148, 133, 117, 121, 144, 117, 110, 127, 139, 130, 119, 127, 141, 116, 125,
            ]),
        ];
        for (interpolation, tolerance, expected) in cases {
            close(&resize(pattern(8, 10, 3), [4, 3], interpolation).unwrap(), &expected, tolerance);
        }
    }

    #[test]
    fn scaling_up_agrees_with_pillow() {
        // Image.resize((5, 4), filter) of Pillow 13 on a grey picture 3 high and 2 wide.
        #[rustfmt::skip]
        let cases = [
            (Interpolation::Nearest, 0, [
                0, 0, 37, 37, 37, 91, 91, 135, 135, 135, 91, 91, 135, 135, 135, 182, 182, 233, 233, 233,
            ]),
            (Interpolation::Bilinear, 1, [
                0, 4, 19, 33, 37, 57, 61, 78, 94, 98, 125, 130, 149, 167, 172, 182, 187, 208, 228, 233,
            ]),
            (Interpolation::Bicubic, 1, [
                0, 0, 14, 30, 36, 48, 53, 71, 89, 95, 127, 134, 155, 175, 183, 182, 190, 213, 235, 243,
            ]),
            (Interpolation::Lanczos, 1, [
                0, 0, 14, 29, 40, 35, 44, 61, 77, 89, 131, 146, 166, 185, 199, 177, 190, 213, 234, 248,
            ]),
        ];
        for (interpolation, tolerance, expected) in cases {
            close(&resize(pattern(3, 2, 1), [4, 5], interpolation).unwrap(), &expected, tolerance);
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for size in [[0, 5], [5, 0], [100_000, 100_000], [usize::MAX, 2]] {
            let error = resize(pattern(4, 4, 1), size, Interpolation::Bilinear).unwrap_err().to_string();
            assert!(error.contains(&format!("would become {}x{}", size[0], size[1])), "{error}");
        }
        let narrow = Picture::new(1_000_000, 1, 1, vec![0; 1_000_000]).unwrap();
        assert!(resize(narrow, [8, 1000], Interpolation::Bilinear).is_err());
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
