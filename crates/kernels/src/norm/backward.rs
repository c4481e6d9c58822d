//! The gradient through the statistics of the batch.

use super::partials::{self, WIDTH};
use super::{Scratch, Totals, task_rows, tile_rows};
use crate::follow::{Chunks, Follow, Work};
use crate::simd::{Simd, Task};
use crate::vector::{Columns, columns, look_ahead, read, write};
use crate::{Context, Level};
use std::ops::Range;

/// Rows whose sums are taken in `f32`.
const TILE: usize = 32;

/// What [`backward`] reads, beside the input and the gradient of the output.
#[derive(Debug, Clone, Copy)]
pub struct Backward<'a> {
    /// Where the gradient passes.
    pub relu: Relu<'a>,
    /// Mean of each channel over the batch, `[C]`.
    pub mean: &'a [f32],
    /// `1 / √(var + epsilon)` of each channel, `[C]`.
    pub inv_std: &'a [f32],
    /// Learned factor of each channel, `[C]`.
    pub gamma: &'a [f32],
    /// Rows of a line of the input, W: sums are taken over whole lines.
    pub line: usize,
}

/// The normalisation's input, `[N, H, W, C]`, and where the gradient of the input is left.
#[derive(Debug)]
pub enum Input<'a> {
    /// The input is kept: its gradient takes the place of the output's.
    Kept(&'a [f32]),
    /// The gradient takes the place of the input; that of the output becomes the part of it that passes the ReLU, which is
    /// the gradient of a residual that was added before it.
    Replaced(&'a mut [f32]),
}

impl Input<'_> {
    fn values(&self) -> &[f32] {
        match self {
            Input::Kept(x) => x,
            Input::Replaced(x) => x,
        }
    }
}

/// The ReLU after a normalisation: the gradient passes where its output is positive.
#[derive(Debug, Clone, Copy)]
pub enum Relu<'a> {
    /// There is none.
    None,
    /// The output, `[N, H, W, C]`, which a residual was added to.
    Output(&'a [f32]),
    /// The output is computed again from x as [`apply`](super::apply) does it, without a residual.
    Recomputed {
        /// Factor of each channel, `[C]`.
        scale: &'a [f32],
        /// Summand of each channel, `[C]`.
        shift: &'a [f32],
    },
}

/// What [`backward`] changes and writes.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// The input.
    pub x: Input<'a>,
    /// Gradient of the output, `[N, H, W, C]`.
    pub dy: &'a mut [f32],
    /// Gradient of gamma, `[C]`.
    pub dgamma: &'a mut [f32],
    /// Gradient of beta, `[C]`.
    pub dbeta: &'a mut [f32],
}

/// The two sums that the gradients follow from: of what passes the ReLU, and of its products with the distances from the mean.
#[derive(Debug)]
pub struct Summed {
    pub(super) totals: Totals,
    /// Whether the gradient became the part of it that passes the ReLU.
    passed: bool,
    /// Whether the second sums are there.
    pub(super) complete: bool,
}

impl Summed {
    /// With second sums from elsewhere, where they were taken [without the input](Sums::new): `add` finds both sums of each channel,
    /// `[C]`, and adds the second ones to zeros.
    pub fn with_products(mut self, add: impl FnOnce(&mut [[f64; 2]])) -> Self {
        self.totals.iter_mut().for_each(|[_, product]| *product = 0.0);
        add(&mut self.totals);
        Summed { complete: true, ..self }
    }
}

/// The sums of a gradient that is being written: a convolution works on its rows as they are there, through
/// [`follow`](Self::follow). Where the ReLU is told by its output, the gradient becomes the part that passes it.
#[derive(Debug)]
pub struct Sums<'a> {
    level: Level,
    chunks: Chunks,
    relu: Relu<'a>,
    mean: &'a [f32],
    x: Option<&'a [f32]>,
    /// Whether the gradient becomes the part of it that passes the ReLU.
    pass: bool,
    scratch: &'a mut Scratch,
    totals: Totals,
}

impl<'a> Sums<'a> {
    /// For the gradient of the output of a normalisation whose input was `x`, of shape `[N, H, W, C]`, with such means, `[C]`. Without
    /// the input, the sum of what passes the ReLU is taken alone.
    ///
    /// # Panics
    /// When there are no rows, the lengths do not fit each other, or the ReLU's output is to be computed again from an input that is
    /// not there.
    pub fn new(
        context: &Context,
        scratch: &'a mut Scratch,
        (x, [n, h, w, channels]): (Option<&'a [f32]>, [usize; 4]),
        mean: &'a [f32],
        relu: Relu<'a>,
    ) -> Self {
        assert_eq!(mean.len(), channels, "a mean for each channel");
        Sums::of_rows(context, scratch, (x, n * h * w, w), mean, relu)
    }

    /// For so many rows, of which `line` make a line of the chunks.
    fn of_rows(
        context: &Context,
        scratch: &'a mut Scratch,
        (x, rows, line): (Option<&'a [f32]>, usize, usize),
        mean: &'a [f32],
        relu: Relu<'a>,
    ) -> Self {
        let channels = mean.len();
        assert!(rows > 0 && channels > 0, "sums of nothing");
        for values in [x, relu.output()].into_iter().flatten() {
            assert_eq!(values.len(), rows * channels, "values of x and of y");
        }
        assert!(x.is_some() || !matches!(relu, Relu::Recomputed { .. }), "an output of no input");
        let chunks = partials::chunks(rows, channels, line);
        let totals = scratch.take(chunks);
        // Cheaper than reading the output again.
        let pass = matches!(relu, Relu::Output(_));
        Sums { level: context.level(), chunks, relu, mean, x, pass, scratch, totals }
    }

    /// The sums of a gradient that has been written.
    ///
    /// # Panics
    /// When the gradient's length is not the input's.
    pub fn of(self, context: &Context, dy: &mut [f32]) -> Summed {
        assert_eq!(dy.len(), self.chunks.rows * self.chunks.channels, "values of dy");
        context.pool().pieces(dy, self.chunks.each * self.chunks.channels, |chunk, dy| self.run(chunk, dy));
        self.finish(context)
    }

    /// What works on the gradient's rows as they are written.
    pub fn follow(&mut self) -> Follow<'_> {
        self.scratch.partials.follow(self.chunks, self)
    }

    /// The sums of a gradient all of whose rows have been worked on.
    ///
    /// # Panics
    /// When rows are missing.
    pub fn finish(self, context: &Context) -> Summed {
        let Sums { chunks, scratch, mut totals, pass, x, .. } = self;
        scratch.partials.merge(context, chunks, &mut totals, |_, totals, gradients, products| {
            for ((total, gradient), product) in totals.iter_mut().zip(gradients).zip(products) {
                total[0] += gradient;
                total[1] += product;
            }
        });
        Summed { totals, passed: pass, complete: x.is_some() }
    }
}

impl Work for Sums<'_> {
    fn beside(&self) -> [Option<&[f32]>; 2] {
        [self.x, self.relu.output()]
    }

    fn run(&self, chunk: usize, values: &mut [f32]) {
        let of = self.chunks.values(chunk);
        let (x, y) = (self.x.map(|x| &x[of.clone()]), self.relu.output().map(|y| &y[of.clone()]));
        self.scratch.partials.add(self.chunks, chunk, |channels, gradient, product| {
            let (sums, dy) = (self, &mut *values);
            self.level.run(SumChunk { sums, x, y, dy, channels, gradient, product });
        });
    }
}

/// The gradients of `y = relu((x − mean) · inv_std · gamma + beta + residual)` for mean and variance of this very batch.
///
/// With `g` the part of `dy` that passes the ReLU, `x̂` the normalised input and `m` rows: `dbeta = Σg`,
/// `dgamma = Σ g·x̂`, `dx = gamma · inv_std · (g − dbeta / m − x̂ · dgamma / m)`. Two passes over memory, or one where the sums were
/// taken before, which gives the same bits.
///
/// # Panics
/// When the lengths do not fit each other.
pub fn backward(
    context: &Context,
    input: Backward,
    scratch: &mut Scratch,
    summed: Option<Summed>,
    out: Gradients,
) {
    let Gradients { x, dy, dgamma, dbeta } = out;
    let channels = input.gamma.len();
    let rows = super::rows("x", x.values(), channels);
    let (scale, shift) = match input.relu {
        Relu::Recomputed { scale, shift } => (scale.len(), shift.len()),
        Relu::None | Relu::Output(_) => (channels, channels),
    };
    let vectors = [
        ("mean", input.mean.len()),
        ("inv_std", input.inv_std.len()),
        ("scale", scale),
        ("shift", shift),
        ("dgamma", dgamma.len()),
        ("dbeta", dbeta.len()),
    ];
    for (what, length) in vectors {
        assert_eq!(length, channels, "{what} and gamma differ in length");
    }
    assert_eq!(dy.len(), x.values().len(), "dy and x differ in length");
    let summed = summed.unwrap_or_else(|| {
        let of = (Some(x.values()), rows, input.line);
        let mut sums = Sums::of_rows(context, scratch, of, input.mean, input.relu);
        sums.pass |= matches!(x, Input::Replaced(_));
        sums.of(context, dy)
    });
    assert_eq!(summed.totals.len(), channels, "sums for each channel");
    let relu = if summed.passed { Relu::None } else { input.relu };
    assert!(
        matches!(relu, Relu::None) || matches!(x, Input::Kept(_)),
        "the residual's gradient is what passes the ReLU"
    );
    let coefficients = coefficients(scratch, summed, rows, [input.inv_std, input.gamma], [dgamma, dbeta]);
    let passed = Backward { relu, ..input };
    match x {
        Input::Kept(x) => second_pass::<false>(context, passed, coefficients, dy, x),
        Input::Replaced(x) => second_pass::<true>(context, passed, coefficients, x, dy),
    }
}

/// What [`backward`] makes the gradient of the input of, with the gradients of gamma and beta: from both sums over so many rows alone.
/// All are `[C]`.
///
/// # Panics
/// When the lengths do not fit each other, or the second sums are not there.
pub fn coefficients<'a>(
    scratch: &'a mut Scratch,
    summed: Summed,
    rows: usize,
    [inv_std, gamma]: [&[f32]; 2],
    [dgamma, dbeta]: [&mut [f32]; 2],
) -> &'a Coefficients {
    let lengths = [inv_std.len(), gamma.len(), dgamma.len(), dbeta.len()];
    assert_eq!(lengths, [summed.totals.len(); 4], "values for each channel");
    assert!(summed.complete, "sums without those of the products");
    scratch.coefficients.set([inv_std, gamma], &summed.totals, rows, [dgamma, dbeta]);
    scratch.give(summed.totals);
    &scratch.coefficients
}

/// `dx = gradient · g + distance · (x − mean) + constant`, each `[C]`, where `g` is what passes the ReLU.
#[derive(Debug, Default)]
pub struct Coefficients {
    /// Factor of the gradient of the output.
    pub gradient: Vec<f32>,
    /// Factor of the distance from the mean.
    pub distance: Vec<f32>,
    /// Summand.
    pub constant: Vec<f32>,
}

impl Coefficients {
    /// Those that follow from the sums over so many rows, which `dgamma` and `dbeta` follow from, too.
    fn set(
        &mut self,
        [inv_std, gamma]: [&[f32]; 2],
        totals: &[[f64; 2]],
        rows: usize,
        [dgamma, dbeta]: [&mut [f32]; 2],
    ) {
        let Coefficients { gradient, distance, constant } = self;
        [&mut *gradient, &mut *distance, &mut *constant].into_iter().for_each(Vec::clear);
        for (channel, &[sum, product]) in totals.iter().enumerate() {
            let inv_std = f64::from(inv_std[channel]);
            let factor = f64::from(gamma[channel]) * inv_std;
            dbeta[channel] = sum as f32;
            dgamma[channel] = (product * inv_std) as f32;
            gradient.push(factor as f32);
            distance.push((-factor * inv_std * inv_std * product / rows as f64) as f32);
            constant.push((-factor * sum / rows as f64) as f32);
        }
    }
}

/// `Σg` and `Σ g·(x − mean)` of some channels over the rows of a chunk.
struct SumChunk<'a> {
    sums: &'a Sums<'a>,
    x: Option<&'a [f32]>,
    /// The output, where it tells what passes the ReLU.
    y: Option<&'a [f32]>,
    dy: &'a mut [f32],
    channels: Range<usize>,
    gradient: &'a mut [f64],
    product: &'a mut [f64],
}

impl Task for SumChunk<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match (self.sums.relu, self.x.is_some()) {
            (Relu::None, false) => self.tiles::<S, EVERYWHERE, false>(simd),
            (Relu::None, true) => self.tiles::<S, EVERYWHERE, true>(simd),
            (Relu::Output(_), false) => self.tiles::<S, WHERE_OUTPUT, false>(simd),
            (Relu::Output(_), true) => self.tiles::<S, WHERE_OUTPUT, true>(simd),
            (Relu::Recomputed { .. }, _) => self.tiles::<S, WHERE_RECOMPUTED, true>(simd),
        }
    }
}

impl SumChunk<'_> {
    /// The sums of a ReLU that passes gradients in such places, with `X` where the input is there.
    #[inline(always)]
    fn tiles<S: Simd, const PASSES: usize, const X: bool>(self, simd: S) {
        if self.sums.pass {
            self.sum::<S, PASSES, X, true>(simd)
        } else {
            self.sum::<S, PASSES, X, false>(simd)
        }
    }

    /// The same; with `WRITE` the gradient becomes the part of it that passes.
    #[inline(always)]
    fn sum<S: Simd, const PASSES: usize, const X: bool, const WRITE: bool>(self, simd: S) {
        let SumChunk { sums: all, x, y, dy, .. } = self;
        let (x, y) = (x.unwrap_or(&[]), y.unwrap_or(&[]));
        let rows = dy.len() / all.mean.len();
        let (first, width) = (self.channels.start, self.channels.len());
        let mut sums = [[0.0; WIDTH]; 2];
        for start in (0..rows).step_by(TILE) {
            let end = (start + TILE).min(rows);
            sums.iter_mut().for_each(|sums| sums[..width].fill(0.0));
            for start in (start..end).step_by(tile_rows(width)) {
                let rows = start..(start + tile_rows(width)).min(end);
                let sums = &mut sums;
                let mut tile = SumTile::<PASSES, X, WRITE> { all, x, y, dy: &mut *dy, rows, first, sums };
                columns(simd, width, &mut tile);
            }
            for (sums, totals) in sums.iter().zip([&mut *self.gradient, &mut *self.product]) {
                totals.iter_mut().zip(sums).for_each(|(total, &sum)| *total += f64::from(sum));
            }
        }
    }
}

/// A few rows, added to the sums.
struct SumTile<'a, const PASSES: usize, const X: bool, const WRITE: bool> {
    all: &'a Sums<'a>,
    x: &'a [f32],
    y: &'a [f32],
    dy: &'a mut [f32],
    rows: Range<usize>,
    first: usize,
    sums: &'a mut [[f32; WIDTH]; 2],
}

impl<const PASSES: usize, const X: bool, const WRITE: bool> Columns for SumTile<'_, PASSES, X, WRITE> {
    #[inline(always)]
    fn block<S: Simd, const V: usize>(&mut self, simd: S, from: usize, count: usize) {
        let Sums { relu, mean, .. } = *self.all;
        let width = (V - 1) * S::LANES + count;
        let means = parameters::<S, V>(simd, mean, self.first + from, count);
        let passes = Passes::<S, PASSES, V>::new(simd, relu, self.first + from, count);
        let mut gradients = parameters::<S, V>(simd, &self.sums[0], from, count);
        let mut products = parameters::<S, V>(simd, &self.sums[1], from, count);
        for row in self.rows.clone() {
            let start = row * mean.len() + self.first + from;
            let dy = &mut self.dy[start..][..width];
            let x = if X { &self.x[start..][..width] } else { &[] };
            let y = if PASSES == WHERE_OUTPUT { &self.y[start..][..width] } else { &[] };
            for values in [dy, x, y] {
                look_ahead(simd, values.as_ptr(), values.len());
            }
            for v in 0..V {
                let at = v * S::LANES;
                let of = |values: &[f32]| read(simd, values, at, count);
                let x = if X { of(x) } else { simd.zero() };
                let y = if PASSES == WHERE_OUTPUT { of(y) } else { simd.zero() };
                let gradient = passes.of(simd, v, of(dy), x, y);
                if WRITE {
                    write(simd, dy, at, count, gradient);
                }
                gradients[v] = simd.add(gradients[v], gradient);
                if X {
                    products[v] = simd.mul_add(gradient, simd.sub(x, means[v]), products[v]);
                }
            }
        }
        for v in 0..V {
            write(simd, &mut self.sums[0], from + v * S::LANES, count, gradients[v]);
            write(simd, &mut self.sums[1], from + v * S::LANES, count, products[v]);
        }
    }
}

/// The parameters of a block of channels.
#[inline(always)]
fn parameters<S: Simd, const V: usize>(simd: S, source: &[f32], from: usize, count: usize) -> [S::V; V] {
    let mut values = [simd.zero(); V];
    for (v, value) in values.iter_mut().enumerate() {
        *value = read(simd, source, from + v * S::LANES, count);
    }
    values
}

impl<'a> Relu<'a> {
    /// The output, where it is there to be read.
    fn output(&self) -> Option<&'a [f32]> {
        match *self {
            Relu::Output(y) => Some(y),
            Relu::None | Relu::Recomputed { .. } => None,
        }
    }
}

// Where a ReLU passes gradients, as [`Relu`] says it: known when code is made, so that sums stay in registers.
const EVERYWHERE: usize = 0;
const WHERE_OUTPUT: usize = 1;
const WHERE_RECOMPUTED: usize = 2;

/// What tells where the gradients of a block of channels pass.
#[derive(Clone, Copy)]
struct Passes<S: Simd, const PASSES: usize, const V: usize> {
    scale: [S::V; V],
    shift: [S::V; V],
}

impl<S: Simd, const PASSES: usize, const V: usize> Passes<S, PASSES, V> {
    #[inline(always)]
    fn new(simd: S, relu: Relu, from: usize, count: usize) -> Self {
        let [scale, shift] = match relu {
            Relu::Recomputed { scale, shift } if PASSES == WHERE_RECOMPUTED => {
                [scale, shift].map(|values| parameters(simd, values, from, count))
            }
            _ => [[simd.zero(); V]; 2],
        };
        Passes { scale, shift }
    }

    /// The part of a gradient that passes, of vector `v`; `y` is the output, where it is there to be read.
    #[inline(always)]
    fn of(&self, simd: S, v: usize, gradient: S::V, x: S::V, y: S::V) -> S::V {
        match PASSES {
            EVERYWHERE => gradient,
            WHERE_OUTPUT => simd.keep_where_positive(y, gradient),
            _ => simd.keep_where_positive(simd.mul_add(x, self.scale[v], self.shift[v]), gradient),
        }
    }
}

/// The second pass: leaves dx in `place`, which is x where `IN_X` is set and dy otherwise; `beside` is the other one.
fn second_pass<const IN_X: bool>(
    context: &Context,
    input: Backward,
    coefficients: &Coefficients,
    place: &mut [f32],
    beside: &[f32],
) {
    let length = task_rows(input.mean.len()) * input.mean.len();
    context.pool().pieces(place, length, |index, place| {
        let beside = &beside[index * length..][..place.len()];
        let piece = InputPiece { input, coefficients, place, beside };
        match input.relu {
            Relu::None => context.level().run(Second::<IN_X, EVERYWHERE>(piece)),
            Relu::Recomputed { .. } => context.level().run(Second::<IN_X, WHERE_RECOMPUTED>(piece)),
            Relu::Output(_) => unreachable!("what passes such a ReLU is there since the sums were taken"),
        }
    });
}

/// Some rows of the second pass.
struct InputPiece<'a> {
    input: Backward<'a>,
    coefficients: &'a Coefficients,
    place: &'a mut [f32],
    beside: &'a [f32],
}

/// An [`InputPiece`] whose ReLU passes gradients in such places.
struct Second<'a, const IN_X: bool, const PASSES: usize>(InputPiece<'a>);

impl<const IN_X: bool, const PASSES: usize> Task for Second<'_, IN_X, PASSES> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let InputPiece { input, coefficients, place, beside } = self.0;
        let channels = input.mean.len();
        let length = tile_rows(channels) * channels;
        for (place, beside) in place.chunks_mut(length).zip(beside.chunks(length)) {
            let piece = InputPiece { input, coefficients, place, beside };
            columns(simd, channels, &mut Second::<IN_X, PASSES>(piece));
        }
    }
}

impl<const IN_X: bool, const PASSES: usize> Columns for Second<'_, IN_X, PASSES> {
    #[inline(always)]
    fn block<S: Simd, const V: usize>(&mut self, simd: S, from: usize, count: usize) {
        let InputPiece { input: Backward { relu, mean, .. }, coefficients, .. } = self.0;
        let width = (V - 1) * S::LANES + count;
        let means = parameters::<S, V>(simd, mean, from, count);
        let gradients = parameters::<S, V>(simd, &coefficients.gradient, from, count);
        let distances = parameters::<S, V>(simd, &coefficients.distance, from, count);
        let constants = parameters::<S, V>(simd, &coefficients.constant, from, count);
        let passes = Passes::<S, PASSES, V>::new(simd, relu, from, count);
        for start in (from..self.0.place.len()).step_by(mean.len()) {
            let (place, beside) = (&mut self.0.place[start..][..width], &self.0.beside[start..][..width]);
            look_ahead(simd, place.as_ptr(), width);
            look_ahead(simd, beside.as_ptr(), width);
            for v in 0..V {
                let at = v * S::LANES;
                let (place_value, beside) = (read(simd, place, at, count), read(simd, beside, at, count));
                let (x, gradient) = if IN_X { (place_value, beside) } else { (beside, place_value) };
                let gradient = passes.of(simd, v, gradient, x, x);
                let distance = simd.sub(x, means[v]);
                let value = simd.mul_add(distance, distances[v], constants[v]);
                write(simd, place, at, count, simd.mul_add(gradient, gradients[v], value));
            }
        }
    }
}
