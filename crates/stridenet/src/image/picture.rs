//! Decoded pixels.

use super::ImageError;
use std::borrow::Cow;

/// A decoded image: `u8` samples in HWC order, with one channel (grey) or three (red, green, blue), and one more where alpha
/// is kept. The pixels are owned, or borrowed from a data set that keeps them in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture<'a> {
    height: usize,
    width: usize,
    channels: usize,
    pixels: Cow<'a, [u8]>,
}

impl<'a> Picture<'a> {
    /// A picture of `height` x `width` x `channels` samples.
    ///
    /// # Errors
    /// When a size is zero, there are not 1 to 4 channels, or the number of samples is not the product of the sizes.
    pub fn new(
        height: usize,
        width: usize,
        channels: usize,
        pixels: impl Into<Cow<'a, [u8]>>,
    ) -> Result<Self, ImageError> {
        let pixels = pixels.into();
        let length = height.checked_mul(width).and_then(|area| area.checked_mul(channels));
        if !(1..=4).contains(&channels) || pixels.is_empty() || length != Some(pixels.len()) {
            return Err(ImageError::Pixels { height, width, channels, length: pixels.len() });
        }
        Ok(Picture { height, width, channels, pixels })
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height and width in pixels.
    pub fn size(&self) -> [usize; 2] {
        [self.height, self.width]
    }

    /// Number of channels: 1 (grey), 2 (grey, alpha), 3 (red, green, blue) or 4 (red, green, blue, alpha).
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The samples in HWC order.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The samples, to be changed; borrowed ones are copied first.
    pub fn pixels_mut(&mut self) -> &mut [u8] {
        self.pixels.to_mut()
    }

    /// The same pixels, borrowed from this picture.
    pub fn view(&self) -> Picture<'_> {
        Picture { pixels: Cow::Borrowed(&self.pixels), ..*self }
    }

    /// The picture with pixels of its own.
    pub fn into_owned(self) -> Picture<'static> {
        Picture {
            height: self.height,
            width: self.width,
            channels: self.channels,
            pixels: Cow::Owned(self.pixels.into_owned()),
        }
    }

    /// The picture with 1 to 4 channels. Grey becomes colour by repetition; colour becomes grey by the luma of ITU-R BT.601 in
    /// the fixed-point arithmetic of Pillow; alpha is dropped without blending, and where there was none everything is
    /// opaque. Any other number of channels leaves the picture as it is.
    pub fn with_channels(self, channels: usize) -> Picture<'a> {
        let pixels: Vec<u8> = match (self.channels, channels) {
            (1, 3) => self.pixels.iter().flat_map(|&grey| [grey; 3]).collect(),
            (3, 1) => self.pixels.chunks_exact(3).map(luma).collect(),
            (from, to) if from == to || !(1..=4).contains(&to) => return self,
            (from, to) => self.pixels.chunks_exact(from).flat_map(|pixel| converted(pixel, to)).collect(),
        };
        Picture { channels, pixels: Cow::Owned(pixels), ..self }
    }
}

/// Whether this many channels have alpha among them.
pub(crate) fn has_alpha(channels: usize) -> bool {
    matches!(channels, 2 | 4)
}

/// A pixel in other channels.
fn converted(pixel: &[u8], channels: usize) -> impl Iterator<Item = u8> {
    let (colour, alpha) = match pixel {
        [colour @ .., alpha] if has_alpha(pixel.len()) => (colour, *alpha),
        _ => (pixel, u8::MAX),
    };
    let colour = match *colour {
        [grey] => [grey; 3],
        ref rgb if channels < 3 => [luma(rgb); 3],
        ref rgb => [rgb[0], rgb[1], rgb[2]],
    };
    let colours = if has_alpha(channels) { channels - 1 } else { channels };
    colour.into_iter().take(colours).chain(has_alpha(channels).then_some(alpha))
}

fn luma(rgb: &[u8]) -> u8 {
    let [red, green, blue] = [rgb[0], rgb[1], rgb[2]].map(u32::from);
    ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_must_fit_the_pixels() {
        assert!(Picture::new(2, 3, 3, vec![0; 18]).is_ok());
        for (height, width, channels, length) in
            [(2, 3, 3, 17), (2, 3, 2, 11), (0, 3, 1, 0), (usize::MAX, 2, 1, 4), (1, 1, 5, 5)]
        {
            let error = Picture::new(height, width, channels, vec![0; length]).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{length} bytes are not a picture of {height}x{width}")),
                "{error}"
            );
        }
    }

    #[test]
    fn grey_and_colour_convert_as_in_pillow() {
        // Image.fromarray(...).convert("L") of Pillow 13.
        let colours = [255, 0, 0, 0, 255, 0, 0, 0, 255, 12, 200, 77, 255, 255, 255, 101, 3, 250];
        let picture = Picture::new(2, 3, 3, &colours[..]).unwrap();
        let grey = picture.with_channels(1);
        assert_eq!(grey.pixels(), [76, 150, 29, 130, 255, 60]);
        let colour = grey.view().with_channels(3);
        assert_eq!(colour.pixels()[..6], [76, 76, 76, 150, 150, 150]);
        assert_eq!(grey.view().with_channels(1), grey);

        // `.convert(mode)` of Pillow 13.
        let clear = Picture::new(1, 2, 4, vec![12, 200, 77, 9, 255, 0, 0, 128]).unwrap();
        for (channels, expected) in [
            (1, &[130, 76][..]),
            (2, &[130, 9, 76, 128]),
            (3, &[12, 200, 77, 255, 0, 0]),
            (4, &[12, 200, 77, 9, 255, 0, 0, 128]),
            (5, &[12, 200, 77, 9, 255, 0, 0, 128]),
        ] {
            assert_eq!(clear.view().with_channels(channels).pixels(), expected);
        }
        let clear = Picture::new(1, 1, 2, vec![70, 9]).unwrap();
        for (channels, expected) in [(1, &[70][..]), (2, &[70, 9]), (3, &[70, 70, 70]), (4, &[70, 70, 70, 9])]
        {
            assert_eq!(clear.view().with_channels(channels).pixels(), expected);
        }
        assert_eq!(grey.view().with_channels(2).pixels()[..4], [76, 255, 150, 255]);
    }
}
