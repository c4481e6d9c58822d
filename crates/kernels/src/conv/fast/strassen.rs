//! Strassen's algorithm for 1×1 convolutions: two pixels and the halves of their channels are a matrix of 2×2 blocks, and
//! so are the halves of the weights; seven products of blocks take the place of eight (Strassen 1969, "Gaussian
//! elimination is not optimal"). With four pixels and the quarters of their channels the blocks are matrices of blocks, whose
//! products are made in the same way.

#![expect(clippy::needless_range_loop, reason = "indices name places of matrices")]

use super::PANEL;
use super::pack::Pack;
use super::tiles::Tile;
use super::transform::{Input, Output, Transform};
use crate::buffer::LINE;
use crate::simd::Simd;

/// Pixels of a tile, parts of the input's channels and parts of the output's, with one level.
pub(super) const HALVES: usize = 2;

/// The same with two levels.
pub(super) const QUARTERS: usize = HALVES * HALVES;

/// Products of two matrices of 2×2 blocks.
const PRODUCTS: usize = 7;

/// The products that only the second row of blocks needs.
const LAST: [usize; 2] = [1, 5];

/// A matrix of 2×2 blocks.
type Blocks<T> = [[T; HALVES]; HALVES];

/// What blocks are made of: vectors, or blocks of them.
trait Terms<S>: Copy {
    fn plus(self, other: Self, simd: S) -> Self;
    fn minus(self, other: Self, simd: S) -> Self;
}

/// A vector. By itself it may be an array, as blocks are.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Lanes<V>(V);

impl<S: Simd> Terms<S> for Lanes<S::V> {
    #[inline(always)]
    fn plus(self, other: Self, simd: S) -> Self {
        Lanes(simd.add(self.0, other.0))
    }

    #[inline(always)]
    fn minus(self, other: Self, simd: S) -> Self {
        Lanes(simd.sub(self.0, other.0))
    }
}

impl<S: Simd, T: Terms<S>> Terms<S> for Blocks<T> {
    #[inline(always)]
    fn plus(self, other: Self, simd: S) -> Self {
        let [[a, b], [c, d]] = self;
        let [[e, f], [g, h]] = other;
        [[a.plus(e, simd), b.plus(f, simd)], [c.plus(g, simd), d.plus(h, simd)]]
    }

    #[inline(always)]
    fn minus(self, other: Self, simd: S) -> Self {
        let [[a, b], [c, d]] = self;
        let [[e, f], [g, h]] = other;
        [[a.minus(e, simd), b.minus(f, simd)], [c.minus(g, simd), d.minus(h, simd)]]
    }
}

/// The left factors of the products: rows are pixels, columns parts of channels.
#[inline(always)]
fn left<S: Simd, T: Terms<S>>(simd: S, [[a, b], [c, d]]: Blocks<T>) -> [T; PRODUCTS] {
    [a.plus(d, simd), c.plus(d, simd), a, d, a.plus(b, simd), c.minus(a, simd), b.minus(d, simd)]
}

/// The right factors: rows are parts of the input's channels, columns parts of the output's.
#[inline(always)]
fn right<S: Simd, T: Terms<S>>(simd: S, [[a, b], [c, d]]: Blocks<T>) -> [T; PRODUCTS] {
    [a.plus(d, simd), a, b.minus(d, simd), c.minus(a, simd), d, a.plus(b, simd), c.plus(d, simd)]
}

/// The blocks of the product: rows are pixels, columns parts of channels.
#[inline(always)]
fn result<S: Simd, T: Terms<S>>(simd: S, m: [T; PRODUCTS]) -> Blocks<T> {
    let first = m[0].plus(m[3], simd).plus(m[6].minus(m[4], simd), simd);
    let last = m[0].minus(m[1], simd).plus(m[2].plus(m[5], simd), simd);
    [[first, m[2].plus(m[4], simd)], [m[1].plus(m[3], simd), last]]
}

/// The pixels of a tile on their way in.
struct Reader<S, const PARTS: usize> {
    simd: S,
    pixels: [*const f32; PARTS],
    /// Values between two parts of a pixel's channels.
    part: usize,
    /// Values from a tile to the next one, nearly always.
    next: usize,
}

impl<S: Simd, const PARTS: usize> Reader<S, PARTS> {
    #[inline(always)]
    fn new<T>(simd: S, input: &Input<T>, tile: &Tile) -> Self {
        let [height, width] = input.size;
        let mut pixels = [input.zeros; PARTS];
        for (index, place) in pixels.iter_mut().enumerate().take(tile.columns.outputs) {
            let pixel = tile.columns.start + index;
            let (row, column) = (pixel / input.line * input.stride, pixel % input.line * input.stride);
            *place = input.x.wrapping_add(((tile.image * height + row) * width + column) * input.channels);
        }
        Reader { simd, pixels, part: input.channels / PARTS, next: PARTS * input.stride * input.channels }
    }

    /// A vector of a part of a pixel's channels, from the part's channel `at` on.
    ///
    /// # Safety
    /// All parts of a pixel's channels must be whole vectors, and the zeros as long as a pixel.
    #[inline(always)]
    unsafe fn load(&self, at: usize, pixel: usize, part: usize) -> Lanes<S::V> {
        let from = self.pixels[pixel].wrapping_add(part * self.part + at);
        self.simd.prefetch(from.wrapping_add(self.next));
        // SAFETY: promised by the caller.
        Lanes(unsafe { self.simd.load(from) })
    }

    /// The vectors of two pixels and two parts.
    ///
    /// # Safety
    /// As for [`load`](Self::load).
    #[inline(always)]
    unsafe fn block(&self, at: usize, pixel: usize, part: usize) -> Blocks<Lanes<S::V>> {
        // SAFETY: promised by the caller.
        unsafe {
            [
                [self.load(at, pixel, part), self.load(at, pixel, part + 1)],
                [self.load(at, pixel + 1, part), self.load(at, pixel + 1, part + 1)],
            ]
        }
    }
}

/// The left factors of a vector of channels on their way to V.
struct Factors<S> {
    simd: S,
    to: *mut f32,
    /// Values between two points, and to where the next vector of channels goes.
    point: usize,
    next: usize,
}

impl<S: Simd> Factors<S> {
    /// Stores the factors of the points that follow.
    ///
    /// # Safety
    /// V must hold a vector for each point.
    #[inline(always)]
    unsafe fn store(&mut self, factors: [Lanes<S::V>; PRODUCTS]) {
        for Lanes(factor) in factors {
            self.simd.prefetch_to_write(self.to.wrapping_add(self.next));
            // SAFETY: promised by the caller.
            unsafe { self.simd.store(self.to, factor) };
            self.to = self.to.wrapping_add(self.point);
        }
    }
}

/// A vector of channels of a tile on its way out.
struct Writer<'a, S, T> {
    simd: S,
    output: &'a Output<'a, T>,
    tile: &'a Tile,
    /// The vector of the tile's first product, and how many vectors further on the next point's is.
    m: *const f32,
    vectors: usize,
    /// Channels of a part, and the first of the vector's.
    part: usize,
    channel: usize,
}

impl<S: Simd, T> Writer<'_, S, T> {
    /// The products from point `first` on, put together.
    ///
    /// # Safety
    /// M must hold the vectors; what a short tile has left out reaches no output that is stored.
    #[inline(always)]
    unsafe fn result(&self, first: usize) -> Blocks<Lanes<S::V>> {
        let mut products = [Lanes(self.simd.zero()); PRODUCTS];
        for (point, product) in (first..).zip(&mut products) {
            // SAFETY: promised by the caller.
            *product = Lanes(unsafe { self.simd.load(self.m.add(point * self.vectors * S::LANES)) });
        }
        result(self.simd, products)
    }

    /// Stores a block of two pixels from `pixel` on and two parts from `part` on, with the epilogue.
    ///
    /// # Safety
    /// Bias, residual and y must hold the tile's outputs, of which all parts are whole vectors.
    #[inline(always)]
    unsafe fn store(&self, pixel: usize, part: usize, block: Blocks<Lanes<S::V>>) {
        let (simd, output) = (self.simd, self.output);
        let first = self.tile.image * output.size[0] * output.size[1] + self.tile.columns.start;
        for column in 0..HALVES {
            let channel = (part + column) * self.part + self.channel;
            let mut bias = simd.zero();
            if !output.bias.is_null() {
                // SAFETY: promised by the caller.
                bias = unsafe { simd.load(output.bias.wrapping_add(channel)) };
            }
            for row in 0..HALVES {
                if pixel + row >= self.tile.columns.outputs {
                    break;
                }
                let at = (first + pixel + row) * output.channels + channel;
                let mut value = simd.add(block[row][column].0, bias);
                if !output.residual.is_null() {
                    // SAFETY: the pixel exists; the rest is promised by the caller.
                    value = simd.add(value, unsafe { simd.load(output.residual.wrapping_add(at)) });
                }
                if output.relu {
                    value = simd.max(simd.zero(), value);
                }
                // SAFETY: as for the residual.
                unsafe { simd.store(output.y.wrapping_add(at), value) };
            }
        }
    }
}

/// A number of levels, with so many pixels in a tile and parts of the channels.
trait Parts<const PARTS: usize>: Transform {
    /// The left factors of a vector from channel `at` of each part on, a point after the other.
    ///
    /// # Safety
    /// As for [`Reader::load`] and [`Factors::store`].
    unsafe fn factors<S: Simd>(reader: &Reader<S, PARTS>, at: usize, factors: Factors<S>);

    /// Transforms a vector of channels of a tile back.
    ///
    /// # Safety
    /// As for [`Writer::result`] and [`Writer::store`].
    unsafe fn outputs<S: Simd>(writer: Writer<S, Self>);
}

/// Takes all tiles into the domain of products.
#[inline(always)]
fn read<S: Simd, T: Parts<PARTS>, const PARTS: usize>(simd: S, input: &Input<T>) {
    let (point, next) = (input.steps.point, input.steps.vector);
    for tile in input.tiles {
        let reader = Reader::<S, PARTS>::new(simd, input, tile);
        let mut to = input.v.wrapping_add(tile.slot * input.steps.slot);
        for vector in input.vectors.clone() {
            // SAFETY: all parts of a pixel's channels are whole vectors, and V holds a vector for each point, vector of channels
            // and slot.
            unsafe { T::factors(&reader, vector * S::LANES, Factors { simd, to, point, next }) };
            to = to.wrapping_add(next);
        }
    }
}

/// Takes all tiles out of the domain of products.
#[inline(always)]
fn write<S: Simd, T: Parts<PARTS>, const PARTS: usize>(simd: S, output: &Output<T>) {
    let part = output.channels / PARTS;
    for tile in output.block.tiles() {
        let m = output.m.wrapping_add(tile.slot * output.slot_step);
        let channel = output.panel.start;
        // SAFETY: M holds a vector for each point and vector of the panel, and the tile's outputs exist.
        unsafe {
            // A panel has one vector or PANEL of them: so much the compiler should know.
            if output.panel.len() <= S::LANES {
                T::outputs(Writer { simd, output, tile, m, vectors: 1, part, channel });
                continue;
            }
            for at in (0..PANEL).map(|vector| vector * S::LANES) {
                let (m, channel) = (m.wrapping_add(at), channel + at);
                T::outputs(Writer { simd, output, tile, m, vectors: PANEL, part, channel });
            }
        }
    }
}

/// One level.
pub(super) struct Strassen;

impl Parts<HALVES> for Strassen {
    #[inline(always)]
    unsafe fn factors<S: Simd>(reader: &Reader<S, HALVES>, at: usize, mut factors: Factors<S>) {
        // SAFETY: promised by the caller.
        unsafe { factors.store(left(reader.simd, reader.block(at, 0, 0))) };
    }

    #[inline(always)]
    unsafe fn outputs<S: Simd>(writer: Writer<S, Self>) {
        // SAFETY: promised by the caller.
        unsafe { writer.store(0, 0, writer.result(0)) };
    }
}

impl Transform for Strassen {
    const POINTS: usize = PRODUCTS;

    fn last(point: usize) -> [bool; 2] {
        [false, LAST.contains(&point)]
    }

    #[inline(always)]
    fn pack<S: Simd>(simd: S, pack: Pack) {
        pack_parts::<S, HALVES>(simd, pack);
    }

    #[inline(always)]
    fn input<S: Simd>(simd: S, input: &Input<Self>) {
        read(simd, input);
    }

    #[inline(always)]
    fn output<S: Simd>(simd: S, output: &Output<Self>) {
        write(simd, output);
    }
}

/// Two levels.
pub(super) struct Twice;

impl Parts<QUARTERS> for Twice {
    #[inline(always)]
    unsafe fn factors<S: Simd>(reader: &Reader<S, QUARTERS>, at: usize, mut factors: Factors<S>) {
        let simd = reader.simd;
        // SAFETY: promised by the caller.
        unsafe {
            let blocks = [
                [reader.block(at, 0, 0), reader.block(at, 0, HALVES)],
                [reader.block(at, HALVES, 0), reader.block(at, HALVES, HALVES)],
            ];
            for block in left(simd, blocks) {
                factors.store(left(simd, block));
            }
        }
    }

    #[inline(always)]
    unsafe fn outputs<S: Simd>(writer: Writer<S, Self>) {
        let simd = writer.simd;
        // As `result`, in an order that needs few registers.
        // SAFETY: promised by the caller.
        unsafe {
            let (m2, m4) = (writer.result(2 * PRODUCTS), writer.result(4 * PRODUCTS));
            writer.store(0, HALVES, m2.plus(m4, simd));
            let (m0, m3) = (writer.result(0), writer.result(3 * PRODUCTS));
            let m6 = writer.result(6 * PRODUCTS);
            writer.store(0, 0, m0.plus(m3, simd).plus(m6.minus(m4, simd), simd));
            let m1 = writer.result(PRODUCTS);
            writer.store(HALVES, 0, m1.plus(m3, simd));
            let m5 = writer.result(5 * PRODUCTS);
            writer.store(HALVES, HALVES, m0.minus(m1, simd).plus(m2.plus(m5, simd), simd));
        }
    }
}

impl Transform for Twice {
    const POINTS: usize = PRODUCTS * PRODUCTS;

    fn last(_: usize) -> [bool; 2] {
        [false, false]
    }

    #[inline(always)]
    fn pack<S: Simd>(simd: S, pack: Pack) {
        pack_parts::<S, QUARTERS>(simd, pack);
    }

    #[inline(always)]
    fn input<S: Simd>(simd: S, input: &Input<Self>) {
        read(simd, input);
    }

    #[inline(always)]
    fn output<S: Simd>(simd: S, output: &Output<Self>) {
        write(simd, output);
    }
}

/// Weights, `[part of the input's channels][part of the output's][input channel][output channel]`.
type Weights<const PARTS: usize> = [[[[f32; LINE]; LINE]; PARTS]; PARTS];

/// A vector of weights in each part.
struct Row<'a, S, const PARTS: usize> {
    simd: S,
    weights: &'a Weights<PARTS>,
    /// The input channel and the vector's first output channel.
    channel: usize,
    at: usize,
}

impl<S: Simd, const PARTS: usize> Row<'_, S, PARTS> {
    #[inline(always)]
    fn load(&self, input: usize, output: usize) -> Lanes<S::V> {
        let weights = &self.weights[input][output][self.channel][self.at..self.at + S::LANES];
        // SAFETY: that is a vector.
        Lanes(unsafe { self.simd.load(weights.as_ptr()) })
    }

    #[inline(always)]
    fn block(&self, input: usize, output: usize) -> Blocks<Lanes<S::V>> {
        [
            [self.load(input, output), self.load(input, output + 1)],
            [self.load(input + 1, output), self.load(input + 1, output + 1)],
        ]
    }

    /// The factors of all points, `step` values apart.
    #[inline(always)]
    fn factors(&self, step: usize, packed: &mut [f32]) {
        if PARTS == HALVES {
            return self.store(self.block(0, 0), step, packed);
        }
        let blocks =
            [[self.block(0, 0), self.block(0, HALVES)], [self.block(HALVES, 0), self.block(HALVES, HALVES)]];
        for (block, packed) in right(self.simd, blocks).into_iter().zip(packed.chunks_mut(PRODUCTS * step)) {
            self.store(block, step, packed);
        }
    }

    #[inline(always)]
    fn store(&self, block: Blocks<Lanes<S::V>>, step: usize, packed: &mut [f32]) {
        for (Lanes(factor), to) in right(self.simd, block).into_iter().zip(packed.chunks_mut(step)) {
            // SAFETY: the slice has a vector.
            unsafe { self.simd.store(to[..S::LANES].as_mut_ptr(), factor) };
        }
    }
}

/// The right factors, where the channels are cut into `PARTS` parts.
#[inline(always)]
fn pack_parts<S: Simd, const PARTS: usize>(simd: S, pack: Pack) {
    let Pack { weight, geometry, view, panel, width, inputs: range, packed, step, .. } = pack;
    let outputs = geometry.out_channels / PARTS;
    // All parts of the channels are whole vectors, of which the widest level's are as long as a line.
    let (inputs, columns) = (range.len().min(LINE), panel.channels.len().min(LINE));
    let mut weights: Weights<PARTS> = [[[[0.0; LINE]; LINE]; PARTS]; PARTS];
    for input in range.clone().step_by(inputs) {
        let inputs = inputs.min(range.end - input);
        for first in panel.channels.clone().step_by(columns) {
            let columns = columns.min(panel.channels.end - first);
            for (row, weights) in weights.iter_mut().enumerate() {
                for (column, weights) in weights.iter_mut().enumerate() {
                    let from = [row * view.depth + input, column * outputs + first];
                    view.block(geometry, weight, 0, from, columns, &mut weights[..inputs]);
                }
            }
            for channel in 0..inputs {
                for at in (0..columns).step_by(S::LANES) {
                    let place = (input - range.start + channel) * width + first - panel.channels.start + at;
                    let row = Row { simd, weights: &weights, channel, at };
                    row.factors(step, &mut packed[place..]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Scalar;

    type Matrix = [[f32; QUARTERS]; QUARTERS];

    fn lanes(value: f32) -> Lanes<[f32; 4]> {
        Lanes([value; 4])
    }

    fn block(matrix: &Matrix, row: usize, column: usize) -> Blocks<Lanes<[f32; 4]>> {
        [0, 1].map(|r| [0, 1].map(|c| lanes(matrix[row + r][column + c])))
    }

    fn blocks(matrix: &Matrix) -> Blocks<Blocks<Lanes<[f32; 4]>>> {
        [0, HALVES].map(|row| [0, HALVES].map(|column| block(matrix, row, column)))
    }

    /// The products of factors, without those that are left out.
    fn products(
        left: [Lanes<[f32; 4]>; PRODUCTS],
        right: [Lanes<[f32; 4]>; PRODUCTS],
        left_out: &[usize],
    ) -> [Lanes<[f32; 4]>; PRODUCTS] {
        std::array::from_fn(|point| match left_out.contains(&point) {
            true => lanes(f32::NAN),
            false => lanes(left[point].0[0] * right[point].0[0]),
        })
    }

    /// Matrices with one 1 each: the algorithms are bilinear, so that these show all others.
    fn units() -> impl Iterator<Item = (Matrix, [usize; 2])> {
        (0..QUARTERS * QUARTERS).map(|index| {
            let mut matrix = Matrix::default();
            let place = [index / QUARTERS, index % QUARTERS];
            matrix[place[0]][place[1]] = 1.0;
            (matrix, place)
        })
    }

    fn is_the_product(
        found: Blocks<Lanes<[f32; 4]>>,
        at: [usize; 2],
        a: [usize; 2],
        b: [usize; 2],
        rows: usize,
    ) {
        for (r, row) in found.iter().enumerate().take(rows) {
            for (c, value) in row.iter().enumerate() {
                let expected = a[1] == b[0] && [a[0], b[1]] == [at[0] + r, at[1] + c];
                assert_eq!(*value, lanes(f32::from(u8::from(expected))), "{a:?} by {b:?} at {at:?}");
            }
        }
    }

    #[test]
    fn seven_products_make_eight() {
        let small = |place: &[usize; 2]| place.iter().all(|&index| index < HALVES);
        for (a, a_place) in units().filter(|(_, place)| small(place)) {
            for (b, b_place) in units().filter(|(_, place)| small(place)) {
                let (left, right) = (left(Scalar, block(&a, 0, 0)), right(Scalar, block(&b, 0, 0)));
                is_the_product(result(Scalar, products(left, right, &[])), [0, 0], a_place, b_place, HALVES);
                // Without what the second pixel alone needs.
                let short = result(Scalar, products(left, right, &LAST));
                is_the_product(short, [0, 0], a_place, b_place, 1);
            }
        }
    }

    #[test]
    fn forty_nine_products_make_sixty_four() {
        for (a, a_place) in units() {
            for (b, b_place) in units() {
                let (a, b) = (left(Scalar, blocks(&a)), right(Scalar, blocks(&b)));
                let inner = |outer: usize| {
                    result(Scalar, products(left(Scalar, a[outer]), right(Scalar, b[outer]), &[]))
                };
                let found = result(Scalar, std::array::from_fn(inner));
                for (r, row) in found.into_iter().enumerate() {
                    for (c, block) in row.into_iter().enumerate() {
                        is_the_product(block, [r * HALVES, c * HALVES], a_place, b_place, HALVES);
                    }
                }
            }
        }
    }
}
