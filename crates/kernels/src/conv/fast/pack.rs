//! Weights into the domain of products.

use super::super::ConvGeometry;
use super::Panel;
use super::algorithm::{Algorithm, MAX};
use super::transform::{MAX_POINTS, Transform};
use super::view::View;
use crate::buffer::LINE;
use crate::simd::{Simd, Task};
use crate::vector::{read, write};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Most taps of a kernel along one axis.
pub(super) const TAPS: usize = 4;

/// Weights between some input channels and one panel of output channels on their way into the domain of products.
pub(super) struct Pack<'a> {
    /// All weights, HWIO.
    pub(super) weight: &'a [f32],
    pub(super) geometry: &'a ConvGeometry,
    pub(super) view: &'a View,
    pub(super) panel: &'a Panel,
    /// The panel's channels in whole vectors.
    pub(super) width: usize,
    /// The input channels of the panel's section.
    pub(super) inputs: Range<usize>,
    /// `[point][input channel][width]`.
    pub(super) packed: &'a mut [f32],
    /// Values between two points.
    pub(super) step: usize,
    /// Whether they are computed in `f64` and rounded once.
    pub(super) exact: bool,
}

/// [`Pack`] as a task for an algorithm.
pub(super) struct PackTask<'a, T> {
    pub(super) pack: Pack<'a>,
    pub(super) transform: PhantomData<T>,
}

impl<T: Transform> Task for PackTask<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        T::pack(simd, self.pack);
    }
}

/// What weights are transformed in.
pub(super) trait Precision: Copy {
    /// Some values.
    type V: Copy;
    /// How many.
    const LANES: usize;

    /// The [`LANES`](Self::LANES) values from `from[at]` on.
    fn read(self, from: &[f32; LINE], at: usize) -> Self::V;

    /// Writes the first `count` values to `to[at]` and on.
    fn write(self, to: &mut [f32], at: usize, count: usize, value: Self::V);

    /// The same value everywhere.
    fn splat(self, value: f64) -> Self::V;

    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;

    /// `a − b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;

    /// `a · b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;

    /// `a · b + c`.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;

    /// Asks for the cache line at `at`, which may be any address, where that pays.
    #[inline(always)]
    fn prefetch(self, _at: *const f32) {}
}

impl<S: Simd> Precision for S {
    type V = S::V;
    const LANES: usize = S::LANES;

    #[inline(always)]
    fn read(self, from: &[f32; LINE], at: usize) -> S::V {
        read(self, from, at, S::LANES)
    }

    #[inline(always)]
    fn write(self, to: &mut [f32], at: usize, count: usize, value: S::V) {
        write(self, to, at, count, value);
    }

    #[inline(always)]
    fn splat(self, value: f64) -> S::V {
        Simd::splat(self, value as f32)
    }

    #[inline(always)]
    fn add(self, a: S::V, b: S::V) -> S::V {
        Simd::add(self, a, b)
    }

    #[inline(always)]
    fn sub(self, a: S::V, b: S::V) -> S::V {
        Simd::sub(self, a, b)
    }

    #[inline(always)]
    fn mul(self, a: S::V, b: S::V) -> S::V {
        Simd::mul(self, a, b)
    }

    #[inline(always)]
    fn mul_add(self, a: S::V, b: S::V, c: S::V) -> S::V {
        Simd::mul_add(self, a, b, c)
    }

    #[inline(always)]
    fn prefetch(self, at: *const f32) {
        Simd::prefetch(self, at);
    }
}

/// A line of values in `f64`.
#[derive(Clone, Copy)]
struct Exact;

impl Precision for Exact {
    type V = [f64; LINE];
    const LANES: usize = LINE;

    #[inline(always)]
    fn read(self, from: &[f32; LINE], _: usize) -> [f64; LINE] {
        from.map(f64::from)
    }

    #[inline(always)]
    fn write(self, to: &mut [f32], at: usize, count: usize, value: [f64; LINE]) {
        to[at..at + count].iter_mut().zip(value).for_each(|(to, value)| *to = value as f32);
    }

    #[inline(always)]
    fn splat(self, value: f64) -> [f64; LINE] {
        [value; LINE]
    }

    #[inline(always)]
    fn add(self, a: [f64; LINE], b: [f64; LINE]) -> [f64; LINE] {
        std::array::from_fn(
            #[inline(always)]
            |lane| a[lane] + b[lane],
        )
    }

    #[inline(always)]
    fn sub(self, a: [f64; LINE], b: [f64; LINE]) -> [f64; LINE] {
        std::array::from_fn(
            #[inline(always)]
            |lane| a[lane] - b[lane],
        )
    }

    #[inline(always)]
    fn mul(self, a: [f64; LINE], b: [f64; LINE]) -> [f64; LINE] {
        std::array::from_fn(
            #[inline(always)]
            |lane| a[lane] * b[lane],
        )
    }

    #[inline(always)]
    fn mul_add(self, a: [f64; LINE], b: [f64; LINE], c: [f64; LINE]) -> [f64; LINE] {
        std::array::from_fn(
            #[inline(always)]
            |lane| a[lane] * b[lane] + c[lane],
        )
    }
}

/// Input channels whose weights are read together, as the view has them side by side.
const INPUTS: usize = LINE;

/// Weights of a few input channels to a line of output channels, a tap after the other.
type Kernel = [[[f32; LINE]; INPUTS]; TAPS * TAPS];

/// Transforms weights along both axes.
#[inline(always)]
pub(super) fn square<S: Simd, A: Algorithm>(simd: S, pack: Pack) {
    match pack.exact {
        true => square_in::<Exact, A>(Exact, pack),
        false => square_in::<S, A>(simd, pack),
    }
}

#[inline(always)]
fn square_in<P: Precision, A: Algorithm>(precision: P, pack: Pack) {
    let Pack { weight, geometry, view, panel, width, inputs: range, packed, step, .. } = pack;
    let mut kernel: Kernel = [[[0.0; LINE]; INPUTS]; TAPS * TAPS];
    // Groups that share a vector are put in order behind their transform.
    let mut grouped = view.narrow.map(|group| (group, [[[0.0f32; LINE]; INPUTS]; MAX_POINTS]));
    for input in range.clone().step_by(INPUTS) {
        let inputs = INPUTS.min(range.end - input);
        for first in panel.channels.clone().step_by(LINE) {
            let count = (panel.channels.end - first).min(LINE);
            for (index, tap) in kernel.iter_mut().enumerate().take(A::TAPS * A::TAPS) {
                let place = [index / A::TAPS, index % A::TAPS];
                let from = [panel.section * view.depth + input, first];
                view.weights(geometry, weight, place, from, count, &mut tap[..inputs]);
                // The next input channels', which stand apart.
                view.expect(precision, geometry, weight, place, [from[0] + INPUTS, first]);
            }
            let at = (input - range.start) * width + first - panel.channels.start;
            for (channel, vector) in vectors::<P>(inputs, count) {
                let (at, lanes) = (at + channel * width + vector, (count - vector).min(P::LANES));
                transform::<P, A>(
                    precision,
                    &kernel,
                    [channel, vector],
                    #[inline(always)]
                    |point, value| match &mut grouped {
                        Some((_, rows)) => {
                            precision.write(&mut rows[point][channel], vector, P::LANES, value)
                        }
                        None => precision.write(packed, point * step + at, lanes, value),
                    },
                );
            }
            let Some((group, points)) = &mut grouped else { continue };
            for (point, rows) in points.iter_mut().enumerate().take(A::POINTS * A::POINTS) {
                gather(rows, *group);
                for (to, row) in packed[point * step + at..].chunks_mut(width).zip(&rows[..*group]) {
                    to[..count].copy_from_slice(&row[..count]);
                }
            }
        }
    }
}

/// The vectors of `count` output channels for each of some input channels.
#[inline(always)]
fn vectors<P: Precision>(inputs: usize, count: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..inputs).flat_map(move |channel| (0..count).step_by(P::LANES).map(move |vector| (channel, vector)))
}

/// Transforms the vector of weights from an input channel to the output channels from `at` on.
#[inline(always)]
fn transform<P: Precision, A: Algorithm>(
    precision: P,
    kernel: &Kernel,
    [channel, at]: [usize; 2],
    mut write: impl FnMut(usize, P::V),
) {
    // A column for each tap along the other axis. Zeros would be written as often as the weights.
    let mut columns = [[MaybeUninit::uninit(); MAX]; TAPS];
    for (kx, column) in columns.iter_mut().enumerate().take(A::TAPS) {
        let mut taps = [precision.splat(0.0); MAX];
        for (ky, tap) in taps.iter_mut().enumerate().take(A::TAPS) {
            *tap = precision.read(&kernel[ky * A::TAPS + kx][channel], at);
        }
        for (to, point) in column.iter_mut().zip(A::filter(precision, taps)).take(A::POINTS) {
            to.write(point);
        }
    }
    for p in 0..A::POINTS {
        let mut row = [precision.splat(0.0); MAX];
        for (value, column) in row.iter_mut().zip(&columns).take(A::TAPS) {
            // SAFETY: written above, for each of the TAPS columns and POINTS points.
            *value = unsafe { column[p].assume_init() };
        }
        for (q, &point) in A::filter(precision, row).iter().enumerate().take(A::POINTS) {
            write(p * A::POINTS + q, point);
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
