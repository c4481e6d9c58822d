//! Scaling of `u8` pictures with antialiasing, to the bit as Pillow's `Image.resize` computes it.
//!
//! Columns and rows are scaled one after the other, each sample rounded and clipped between: a picture scaled in one step, in the
//! other order or in floating point differs from Pillow's by dozens of levels where a filter overshoots. Weights are integers
//! with 22 fractional bits, so that results are the same at every level.

mod passes;
#[cfg(test)]
mod tests;
mod weights;

pub use weights::{Filter, Taps};

use crate::Level;
use passes::{Columns, Rows};

/// Fractional bits of a weight: what 32 bits leave beside a sample's 8 and the 2 for sign and overshoot.
const PRECISION: u32 = 32 - 8 - 2;

/// Half of a sample's unit, to which sums are added so that cutting the fraction off rounds.
const HALF: i32 = 1 << (PRECISION - 1);

/// A sum of weighted samples as a sample.
#[inline(always)]
fn rounded(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// A rectangle of samples in HWC order inside a picture.
#[derive(Debug, Clone, Copy)]
pub struct Region<'a> {
    samples: &'a [u8],
    /// Samples from one row of the picture to the next.
    pitch: usize,
    size: [usize; 2],
    channels: usize,
}

impl<'a> Region<'a> {
    /// The region of `size` `[height, width]` at `origin` `[row, column]` of a picture `[height, width, channels]`.
    ///
    /// # Panics
    /// When there are not height × width × channels samples, not 1 or 3 channels, or the region is not inside the picture.
    pub fn new(samples: &'a [u8], picture: [usize; 3], origin: [usize; 2], size: [usize; 2]) -> Self {
        let [height, width, channels] = picture;
        assert_eq!(samples.len(), height * width * channels, "samples of a picture {picture:?}");
        assert!(matches!(channels, 1 | 3), "1 or 3 channels");
        let inside = |axis: usize| origin[axis] + size[axis] <= picture[axis];
        assert!(inside(0) && inside(1), "the region {size:?} at {origin:?} lies inside {picture:?}");
        let start = (origin[0] * width + origin[1]) * channels;
        Region { samples: &samples[start.min(samples.len())..], pitch: width * channels, size, channels }
    }

    /// The samples of a row.
    #[inline(always)]
    fn row(&self, row: usize) -> &'a [u8] {
        &self.samples[row * self.pitch..][..self.size[1] * self.channels]
    }
}

/// Whether Pillow scales rows before columns: since its version 13, where the height loses more than twice what the width does.
pub fn rows_first([height, width]: [usize; 2], [scaled_height, scaled_width]: [usize; 2]) -> bool {
    let saved = |side: usize, scaled: usize| side as i128 - scaled as i128;
    height > scaled_height && saved(height, scaled_height) > 2 * saved(width, scaled_width)
}

/// A region scaled: `taps` for rows and for columns say which pixels of the region make each row and column of the result
/// `[rows, columns, channels]`.
///
/// # Panics
/// When the taps were not made for the region's size.
pub fn resample(level: Level, region: Region<'_>, taps: [&Taps; 2]) -> Vec<u8> {
    let [rows, columns] = taps;
    assert_eq!(taps.map(Taps::input), region.size, "taps for the region's size");
    let mut out = vec![0; rows.len() * columns.len() * region.channels];
    if rows_first(region.size, taps.map(Taps::output)) {
        let size = [rows.len(), region.size[1]];
        let mut between = vec![0; size[0] * size[1] * region.channels];
        level.run(Rows { region, first_row: 0, taps: rows, out: &mut between });
        let region = Region { samples: &between, pitch: size[1] * region.channels, size, ..region };
        across(level, Columns { region, first_row: 0, taps: columns, out: &mut out });
    } else {
        // Only these rows of the region reach the result.
        let needed = rows.reach();
        let size = [needed.len(), columns.len()];
        let mut between = vec![0; size[0] * size[1] * region.channels];
        across(level, Columns { region, first_row: needed.start, taps: columns, out: &mut between });
        let region = Region { samples: &between, pitch: size[1] * region.channels, size, ..region };
        level.run(Rows { region, first_row: needed.start, taps: rows, out: &mut out });
    }
    out
}

/// Scales columns.
fn across(level: Level, columns: Columns<'_>) {
    match columns.region.channels {
        1 => level.run(passes::Grey(columns)),
        _ => level.run(passes::Colour(columns)),
    }
}
