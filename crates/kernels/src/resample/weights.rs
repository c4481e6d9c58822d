//! Which pixels make a scaled one, with which weights.

use super::PRECISION;
use std::f64::consts::PI;
use std::ops::Range;

/// A filter, by the name that Pillow and timm give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// The mean over a pixel's area.
    Box,
    /// A triangle.
    Bilinear,
    /// A sinc over one lobe in Hamming's window: as sharp as bicubic, as local as bilinear.
    Hamming,
    /// The cubic filter of Catmull and Rom (a = −0.5).
    Bicubic,
    /// A sinc over three lobes in Lanczos's window.
    Lanczos,
}

impl Filter {
    /// Half the width outside which the filter is 0, in pixels of the coarser grid.
    fn support(self) -> f64 {
        match self {
            Filter::Box => 0.5,
            Filter::Bilinear | Filter::Hamming => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    /// The filter's value at distance `x`. The order of operations is Pillow's: weights are rounded to integers afterwards,
    /// and a last bit can decide.
    fn at(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let distance = x.abs();
        match self {
            Filter::Box if x > -0.5 && x <= 0.5 => 1.0,
            Filter::Bilinear if distance < 1.0 => 1.0 - distance,
            Filter::Hamming if distance < 1.0 => match distance * PI {
                0.0 => 1.0,
                angle => angle.sin() / angle * (0.54 + 0.46 * angle.cos()),
            },
            Filter::Bicubic if distance < 1.0 => {
                ((A + 2.0) * distance - (A + 3.0)) * distance * distance + 1.0
            }
            Filter::Bicubic if distance < 2.0 => (((distance - 5.0) * distance + 8.0) * distance - 4.0) * A,
            Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            _ => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    match x * PI {
        0.0 => 1.0,
        angle => angle.sin() / angle,
    }
}

/// For each position of a range along one scaled axis: the first position of the input it is made of, and the weights from
/// there on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taps {
    input: usize,
    output: usize,
    /// Weights of a position; those behind the last that counts are 0.
    stride: usize,
    /// First input position and number of weights of each position.
    spans: Vec<[usize; 2]>,
    weights: Vec<i32>,
}

impl Taps {
    /// The taps of the positions `range` along an axis of `input` pixels scaled to `output` pixels.
    ///
    /// # Panics
    /// When a size is 0, or the range is empty or not inside the output.
    pub fn new(filter: Filter, input: usize, output: usize, range: Range<usize>) -> Self {
        // The filter is widened when scaling down: this is the antialiasing.
        Taps::widened(filter, [input, output], range, |scale| scale.max(1.0))
    }

    /// As [`new`](Self::new), but without antialiasing: the filter stays as narrow as for scaling up.
    ///
    /// # Panics
    /// As for [`new`](Self::new).
    pub fn aliased(filter: Filter, input: usize, output: usize, range: Range<usize>) -> Self {
        Taps::widened(filter, [input, output], range, |_| 1.0)
    }

    fn widened(
        filter: Filter,
        [input, output]: [usize; 2],
        range: Range<usize>,
        widening: impl Fn(f64) -> f64,
    ) -> Self {
        assert!(input > 0 && output > 0, "scaling {input} pixels to {output}");
        assert!(!range.is_empty() && range.end <= output, "{range:?} of {output} positions");
        // Pillow hands the input's size on as a 32-bit float.
        let scale = f64::from(input as f32) / output as f64;
        let widening = widening(scale);
        let support = filter.support() * widening;
        let stride = (support.ceil() as usize * 2 + 1).min(input);
        let mut spans = Vec::with_capacity(range.len());
        let mut weights = Vec::with_capacity(range.len() * stride);
        let mut exact = Vec::with_capacity(stride);
        for position in range {
            let centre = (position as f64 + 0.5) * scale;
            // Both ends are rounded to the nearest; a negative one is outside.
            let first = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(input);
            let narrowing = 1.0 / widening;
            exact.clear();
            let offsets = 0..end.saturating_sub(first);
            exact.extend(
                offsets.map(|offset| filter.at(((offset + first) as f64 - centre + 0.5) * narrowing)),
            );
            let total: f64 = exact.iter().fold(0.0, |total, weight| total + weight);
            if total != 0.0 {
                exact.iter_mut().for_each(|weight| *weight /= total);
            }
            spans.push([first, exact.len()]);
            weights.extend(exact.iter().map(|&weight| fixed(weight)));
            weights.resize(spans.len() * stride, 0);
        }
        Taps { input, output, stride, spans, weights }
    }

    /// Number of positions.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there are no positions; there always are.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Pixels of the input axis.
    pub fn input(&self) -> usize {
        self.input
    }

    /// Pixels of the scaled axis, of which the positions are a part.
    pub fn output(&self) -> usize {
        self.output
    }

    /// The input positions that reach any position.
    pub(super) fn reach(&self) -> Range<usize> {
        let first = self.spans.iter().map(|span| span[0]).min().unwrap_or(0);
        let end = self.spans.iter().map(|span| span[0] + span[1]).max().unwrap_or(0);
        first..end
    }

    /// The first input position of a position, and its weights.
    #[inline(always)]
    pub(super) fn at(&self, position: usize) -> (usize, &[i32]) {
        let [first, count] = self.spans[position];
        (first, &self.weights[position * self.stride..][..count])
    }
}

/// A weight as an integer, rounded half away from 0.
fn fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << PRECISION);
    (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}
