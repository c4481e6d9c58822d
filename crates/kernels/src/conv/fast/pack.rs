//! Weights into the domain of products.

use super::super::ConvGeometry;
use super::Panel;
use super::view::View;
use crate::buffer::LINE;
use crate::simd::{Simd, Task};

/// Most taps of a kernel along one axis.
pub(super) const TAPS: usize = 4;

/// Transforms the weights of one panel.
pub(super) struct Pack<'a> {
    pub(super) weight: &'a [f32],
    pub(super) geometry: &'a ConvGeometry,
    pub(super) view: &'a View,
    pub(super) factors: &'a [[f64; TAPS]],
    pub(super) panel: &'a Panel,
    pub(super) width: usize,
    pub(super) packed: &'a mut [f32],
}

impl Task for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (depth, points, taps) = (self.view.depth, self.factors.len(), self.view.taps);
        let channels = &self.panel.channels;
        for input in 0..depth {
            for first in channels.clone().step_by(LINE) {
                let count = (channels.end - first).min(LINE);
                let mut kernel = [[[0.0; LINE]; TAPS]; TAPS];
                for (ky, row) in kernel.iter_mut().enumerate().take(taps) {
                    for (kx, tap) in row.iter_mut().enumerate().take(taps) {
                        let channel = self.panel.section * depth + input;
                        let to = &mut tap[..count];
                        self.view.weights(self.geometry, self.weight, [ky, kx], channel, first, to);
                    }
                }
                for (p, vertical) in self.factors.iter().enumerate() {
                    let mut row = [[0.0; LINE]; TAPS];
                    for (ky, factor) in vertical.iter().enumerate().take(taps) {
                        for (row, tap) in row.iter_mut().zip(&kernel[ky]) {
                            row.iter_mut().zip(tap).for_each(|(row, tap)| *row += factor * tap);
                        }
                    }
                    for (q, horizontal) in self.factors.iter().enumerate() {
                        let at = ((p * points + q) * depth + input) * self.width + first - channels.start;
                        let mut values = [0.0; LINE];
                        for (factor, row) in horizontal.iter().zip(&row).take(taps) {
                            values.iter_mut().zip(row).for_each(|(value, row)| *value += factor * row);
                        }
                        for (to, value) in self.packed[at..at + count].iter_mut().zip(values) {
                            *to = value as f32;
                        }
                    }
                }
            }
        }
    }
}
