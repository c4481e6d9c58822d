//! Decoded pixels.

use super::ImageError;
use std::borrow::Cow;

/// A decoded image: `u8` samples in HWC order, with one channel (grey) or three (red, green, blue). The pixels are
/// owned, or borrowed from a data set that keeps them in memory.
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
    /// When a size is zero, there are not 1 or 3 channels, or the number of samples is not the product of the sizes.
    pub fn new(
        height: usize,
        width: usize,
        channels: usize,
        pixels: impl Into<Cow<'a, [u8]>>,
    ) -> Result<Self, ImageError> {
        let pixels = pixels.into();
        let length = height.checked_mul(width).and_then(|area| area.checked_mul(channels));
        if !matches!(channels, 1 | 3) || pixels.is_empty() || length != Some(pixels.len()) {
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

    /// Number of channels: 1 (grey) or 3 (red, green, blue).
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

    /// The picture with one channel or three. Grey becomes colour by repetition; colour becomes grey by the luma of
    /// ITU-R BT.601 in the fixed-point arithmetic of Pillow. Any other number of channels leaves it as it is.
    pub fn with_channels(self, channels: usize) -> Picture<'a> {
        let pixels: Vec<u8> = match (self.channels, channels) {
            (1, 3) => self.pixels.iter().flat_map(|&grey| [grey; 3]).collect(),
            (3, 1) => self.pixels.chunks_exact(3).map(luma).collect(),
            _ => return self,
        };
        Picture { channels, pixels: Cow::Owned(pixels), ..self }
    }
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
            [(2, 3, 3, 17), (2, 3, 2, 12), (0, 3, 1, 0), (usize::MAX, 2, 1, 4), (1, 1, 4, 4)]
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
    }
}
