//! Weights into the domain of products.

use super::super::ConvGeometry;
use super::Panel;
use super::transform::MAX_POINTS;
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

/// Input channels that are transformed together: enough for each point's values to be written in long runs.
const INPUTS: usize = LINE;

impl Task for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let (depth, points, taps) = (self.view.depth, self.factors.len(), self.view.taps);
        let channels = &self.panel.channels;
        let mut kernel = [[[0.0f32; LINE]; INPUTS]; TAPS * TAPS];
        let mut transformed = [[[0.0; LINE]; INPUTS]; MAX_POINTS];
        for input in (0..depth).step_by(INPUTS) {
            let inputs = INPUTS.min(depth - input);
            for first in channels.clone().step_by(LINE) {
                let count = (channels.end - first).min(LINE);
                for (index, tap) in kernel.iter_mut().enumerate().take(taps * taps) {
                    let place = [index / taps, index % taps];
                    let from = [self.panel.section * depth + input, first];
                    self.view.weights(self.geometry, self.weight, place, from, count, &mut tap[..inputs]);
                }
                for channel in 0..inputs {
                    for (p, vertical) in self.factors.iter().enumerate() {
                        let mut row = [[0.0f64; LINE]; TAPS];
                        for (ky, factor) in vertical.iter().enumerate().take(taps) {
                            for (kx, row) in row.iter_mut().enumerate().take(taps) {
                                let tap = &kernel[ky * taps + kx][channel];
                                row.iter_mut()
                                    .zip(tap)
                                    .for_each(|(row, &tap)| *row += factor * f64::from(tap));
                            }
                        }
                        for (q, horizontal) in self.factors.iter().enumerate() {
                            let mut values = [0.0; LINE];
                            for (factor, row) in horizontal.iter().zip(&row).take(taps) {
                                values.iter_mut().zip(row).for_each(|(value, row)| *value += factor * row);
                            }
                            transformed[p * points + q][channel] = values.map(|value| value as f32);
                        }
                    }
                }
                let inputs = match self.view.narrow {
                    Some(group) => {
                        transformed.iter_mut().take(points * points).for_each(|rows| gather(rows, group));
                        group
                    }
                    None => inputs,
                };
                for (point, rows) in transformed.iter().enumerate().take(points * points) {
                    let at = (point * self.view.summed() + input) * self.width + first - channels.start;
                    for (to, row) in self.packed[at..].chunks_mut(self.width).zip(&rows[..inputs]) {
                        match to.first_chunk_mut::<LINE>() {
                            Some(to) if count == LINE => *to = *row,
                            _ => to[..count].copy_from_slice(&row[..count]),
                        }
                    }
                }
            }
        }
    }
}

/// Moves the weights of groups of `group` channels that share a vector, of which a row holds those from one input channel, into
/// as many rows: row `k` becomes those from each group's channel `k`.
#[inline(always)]
fn gather(rows: &mut [[f32; LINE]; INPUTS], group: usize) {
    for k in 0..group {
        rows[k] = std::array::from_fn(|output| rows[output / group * group + k][output]);
    }
}
