//! Strassen's algorithm for 1×1 convolutions: two pixels and the halves of their channels are a matrix of 2×2 blocks, and
//! so are the halves of the weights; seven products of blocks take the place of eight (Strassen 1969, "Gaussian
//! elimination is not optimal").

use super::PANEL;
use super::pack::Pack;
use super::tiles::Tile;
use super::transform::{Input, Output, Transform};
use crate::buffer::LINE;
use crate::simd::{Simd, Task};

/// Pixels of a tile, parts of the input's channels and parts of the output's.
pub(super) const HALVES: usize = 2;

/// Products of two matrices of 2×2 blocks.
const PRODUCTS: usize = 7;

/// The products that only the second pixel needs.
const LAST: [usize; 2] = [1, 5];

/// A matrix of 2×2 blocks.
type Blocks<V> = [[V; HALVES]; HALVES];

/// One level of the algorithm. A second one takes 1 to 4 % less time where outputs outnumber inputs, more elsewhere, and three
/// times the memory for weights.
pub(super) struct Strassen;

/// The left factors of the products: rows are pixels, columns halves of channels.
#[inline(always)]
fn left<S: Simd>(simd: S, a: Blocks<S::V>) -> [S::V; PRODUCTS] {
    [
        simd.add(a[0][0], a[1][1]),
        simd.add(a[1][0], a[1][1]),
        a[0][0],
        a[1][1],
        simd.add(a[0][0], a[0][1]),
        simd.sub(a[1][0], a[0][0]),
        simd.sub(a[0][1], a[1][1]),
    ]
}

/// The factors of `[half of the input][half of the output]` of the weights in the right factor of each product.
const RIGHT: [Blocks<f32>; PRODUCTS] = [
    [[1.0, 0.0], [0.0, 1.0]],
    [[1.0, 0.0], [0.0, 0.0]],
    [[0.0, 1.0], [0.0, -1.0]],
    [[-1.0, 0.0], [1.0, 0.0]],
    [[0.0, 0.0], [0.0, 1.0]],
    [[1.0, 1.0], [0.0, 0.0]],
    [[0.0, 0.0], [1.0, 1.0]],
];

/// The blocks of the product: rows are pixels, columns halves of channels.
#[inline(always)]
fn result<S: Simd>(simd: S, m: [S::V; PRODUCTS]) -> Blocks<S::V> {
    [
        [simd.add(simd.add(m[0], m[3]), simd.sub(m[6], m[4])), simd.add(m[2], m[4])],
        [simd.add(m[1], m[3]), simd.add(simd.sub(m[0], m[1]), simd.add(m[2], m[5]))],
    ]
}

impl Transform for Strassen {
    const POINTS: usize = PRODUCTS;

    fn last(point: usize) -> [bool; 2] {
        [false, LAST.contains(&point)]
    }

    #[inline(always)]
    fn input<S: Simd>(simd: S, input: &Input<Self>) {
        let [height, width] = input.size;
        let (step, half) = (input.channels, input.channels / HALVES);
        // Nearly always where the next tile begins.
        let next = HALVES * input.stride * step;
        for tile in input.tiles {
            let pixels: [*const f32; HALVES] = std::array::from_fn(|index| {
                if index >= tile.columns.outputs {
                    return input.zeros;
                }
                let pixel = tile.columns.start + index;
                let (row, column) = (pixel / input.line * input.stride, pixel % input.line * input.stride);
                input.x.wrapping_add(((tile.image * height + row) * width + column) * step)
            });
            let mut to = input.v.wrapping_add(tile.slot * input.steps.slot);
            for vector in input.vectors.clone() {
                let at = vector * S::LANES;
                // SAFETY: both halves of a pixel's channels are whole vectors; `zeros` is at least as long as a pixel.
                let load = |pixel: usize, part: usize| unsafe {
                    let from = pixels[pixel].wrapping_add(part * half + at);
                    simd.prefetch(from.wrapping_add(next));
                    simd.load(from)
                };
                let points = left(simd, [[load(0, 0), load(0, 1)], [load(1, 0), load(1, 1)]]);
                for (point, value) in points.into_iter().enumerate() {
                    let to = to.wrapping_add(point * input.steps.point);
                    simd.prefetch(to.wrapping_add(input.steps.vector));
                    // SAFETY: V holds a vector for each point, vector of channels and slot.
                    unsafe { simd.store(to, value) };
                }
                to = to.wrapping_add(input.steps.vector);
            }
        }
    }

    #[inline(always)]
    fn output<S: Simd>(simd: S, output: &Output<Self>) {
        let vectors = output.panel.len().div_ceil(S::LANES);
        for tile in output.block.tiles() {
            let m = output.m.wrapping_add(tile.slot * output.slot_step);
            // SAFETY: M holds `vectors` vectors for each slot and point, a panel has one vector or PANEL of them, and the
            // tile's outputs and both halves of the panel's channels exist.
            unsafe {
                if vectors == 1 {
                    output.pair::<S, 1>(simd, tile, m);
                } else {
                    output.pair::<S, PANEL>(simd, tile, m);
                }
            }
        }
    }
}

impl Output<'_, Strassen> {
    /// Transforms the products of a tile back and stores its outputs.
    ///
    /// # Safety
    /// M must hold VECTORS vectors for each point; bias, residual and y the tile's outputs and channels.
    #[inline(always)]
    unsafe fn pair<S: Simd, const VECTORS: usize>(&self, simd: S, tile: &Tile, m: *const f32) {
        let half = self.channels / HALVES;
        let first = tile.image * self.size[0] * self.size[1] + tile.columns.start;
        for vector in 0..VECTORS {
            let channel = self.panel.start + vector * S::LANES;
            let mut products = [simd.zero(); PRODUCTS];
            for (point, product) in products.iter_mut().enumerate() {
                // SAFETY: promised by the caller; what a short tile has left out reaches no output that is stored.
                *product = unsafe { simd.load(m.add((point * VECTORS + vector) * S::LANES)) };
            }
            let blocks = result(simd, products);
            for (part, channel) in [channel, half + channel].into_iter().enumerate() {
                let mut bias = simd.zero();
                if !self.bias.is_null() {
                    // SAFETY: both halves of the output's channels are whole vectors.
                    bias = unsafe { simd.load(self.bias.wrapping_add(channel)) };
                }
                for (pixel, blocks) in blocks.iter().enumerate().take(tile.columns.outputs) {
                    let at = (first + pixel) * self.channels + channel;
                    let mut value = simd.add(blocks[part], bias);
                    if !self.residual.is_null() {
                        // SAFETY: the pixel exists, and so do its channels from `channel` on.
                        value = simd.add(value, unsafe { simd.load(self.residual.wrapping_add(at)) });
                    }
                    if self.relu {
                        value = simd.max(simd.zero(), value);
                    }
                    // SAFETY: as for the residual.
                    unsafe { simd.store(self.y.wrapping_add(at), value) };
                }
            }
        }
    }
}

/// The sums of the weights' blocks for one panel.
pub(super) struct PackPairs<'a>(pub(super) Pack<'a>);

impl Task for PackPairs<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Pack { weight, geometry, view, panel, width, packed, .. } = self.0;
        let (depth, outputs) = (view.depth, geometry.out_channels / HALVES);
        // Both halves of the channels are whole vectors, of which the widest level's are as long as a line.
        let (inputs, columns) = (depth.min(LINE), panel.channels.len().min(LINE));
        let mut blocks = [[[0.0; LINE]; LINE]; HALVES * HALVES];
        for input in (0..depth).step_by(inputs) {
            let inputs = inputs.min(depth - input);
            for first in panel.channels.clone().step_by(columns) {
                let columns = columns.min(panel.channels.end - first);
                for (index, block) in blocks.iter_mut().enumerate() {
                    let from = [index / HALVES * depth + input, index % HALVES * outputs + first];
                    view.block(geometry, weight, 0, from, columns, &mut block[..inputs]);
                }
                for (point, factors) in RIGHT.iter().enumerate() {
                    for channel in 0..inputs {
                        let mut sum = [0.0; LINE];
                        for (factor, block) in factors.as_flattened().iter().zip(&blocks) {
                            let terms = sum.iter_mut().zip(&block[channel]);
                            terms.for_each(|(sum, weight)| *sum += factor * weight);
                        }
                        let at = (point * depth + input + channel) * width + first - panel.channels.start;
                        packed[at..][..columns].copy_from_slice(&sum[..columns]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Scalar;

    /// For every pair of blocks the products add up to the product of the matrices, also without what the second pixel
    /// alone needs.
    #[test]
    fn seven_products_make_eight() {
        let pairs = || (0..HALVES).flat_map(|row| (0..HALVES).map(move |column| (row, column)));
        let one = |found: bool| [f32::from(u8::from(found)); 4];
        for short in [false, true] {
            for (pixel, part) in pairs().filter(|&(pixel, _)| !short || pixel == 0) {
                let mut a = [[one(false); HALVES]; HALVES];
                a[pixel][part] = one(true);
                let left = left(Scalar, a);
                for (row, half) in pairs() {
                    let mut products = [one(false); PRODUCTS];
                    for (point, product) in products.iter_mut().enumerate() {
                        let left_out = short && LAST.contains(&point);
                        *product = left[point]
                            .map(|a| if left_out { f32::NAN } else { a * RIGHT[point][row][half] });
                    }
                    let blocks = result(Scalar, products);
                    for (y, column) in pairs().filter(|&(y, _)| !short || y == 0) {
                        let expected = pixel == y && part == row && half == column;
                        assert_eq!(blocks[y][column], one(expected), "{pixel},{part} by {row},{half}");
                    }
                }
            }
        }
    }
}
