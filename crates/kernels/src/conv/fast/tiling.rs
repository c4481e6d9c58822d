//! The fast algorithms, and what each of them costs.

use super::super::ConvGeometry;
use super::algorithm::{Algorithm, F2, F3, F4, F4Of4, F5, S3};
use super::pack::TAPS;
use super::square::Square;
use super::strassen::{HALVES, QUARTERS, Strassen, Twice};
use super::tiles::{self, Span};
use super::transform::Transform;
use super::view::View;
use crate::Level;

/// Which fast algorithm a convolution uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tiling {
    /// F(2×2, 3×3): 16 products for 4 outputs, 2.25 times fewer than the direct sum.
    F2,
    /// F(3×3, 3×3): 25 products for 9 outputs, 3.24 times fewer, with fewer transformed weights than [`F4`](Self::F4).
    F3,
    /// F(4×4, 3×3): 36 products for 16 outputs, 4 times fewer.
    F4,
    /// F(5×5, 3×3): 49 products for 25 outputs, 4.59 times fewer, with twice [`F4`](Self::F4)'s error.
    F5,
    /// 3×3 with stride 2 by phases: 49 products for 9 outputs, 1.65 times fewer.
    S3,
    /// 7×7 with stride 2, the stem, by phases: squares of 2×2 pixels become pixels of four times the channels, and the
    /// kernel becomes one of 4×4 with stride 1 and F(4×4, 4×4): 196 products for 16 outputs, 4 times fewer.
    S7,
    /// 1×1 with any stride: pairs of pixels by Strassen's algorithm, 7 products of halves of the channels for 8.
    Strassen,
    /// The same twice: fours of pixels, 49 products of quarters of the channels for 64.
    Twice,
}

impl Tiling {
    /// All algorithms.
    pub const ALL: [Tiling; 8] = [
        Tiling::F2,
        Tiling::F3,
        Tiling::F4,
        Tiling::F5,
        Tiling::S3,
        Tiling::S7,
        Tiling::Strassen,
        Tiling::Twice,
    ];

    /// What the algorithm costs at `level` for an image of `[height, width]`, or `None` where it does not compute the
    /// convolution: another kernel, stride or dilation, or groups that do not fill vectors.
    pub fn cost(self, level: Level, geometry: &ConvGeometry, input: [usize; 2]) -> Option<TilingCost> {
        let view = self.view(level, geometry, input)?;
        let (points, parts) = (self.points(), self.parts());
        let (rows, columns) = self.cut(geometry.output_size(input).ok()?);
        // Products that the tiles need for each pair of channels: a point that only the last row or column of outputs
        // needs is left out of short tiles.
        let full = |spans: &[Span]| spans.iter().filter(|span| span.full).count();
        let needed: usize = (0..points)
            .map(|point| {
                let [row, column] = self.last(point);
                let rows = if row { full(&rows) } else { rows.len() };
                rows * if column { full(&columns) } else { columns.len() }
            })
            .sum();
        let lanes = level.micro_kernels().lanes;
        let channels = |channels: usize| (channels / parts).next_multiple_of(lanes);
        let pairs = view.summed() * geometry.out_channels / parts;
        Some(TilingCost {
            products: needed * pairs,
            inputs: needed * channels(view.channels),
            outputs: needed * channels(geometry.out_channels),
            weights: points * pairs,
        })
    }

    /// The convolution as the algorithm's tiles see it.
    pub(super) fn view(self, level: Level, geometry: &ConvGeometry, input: [usize; 2]) -> Option<View> {
        let lanes = level.micro_kernels().lanes;
        let (kernel, stride) = match self {
            Tiling::F2 | Tiling::F3 | Tiling::F4 | Tiling::F5 => ([3, 3], [1, 1]),
            Tiling::S3 => ([3, 3], [2, 2]),
            Tiling::S7 => ([7, 7], [2, 2]),
            Tiling::Strassen | Tiling::Twice => ([1, 1], [geometry.stride[0]; 2]),
        };
        if (geometry.kernel, geometry.stride, geometry.dilation) != (kernel, stride, [1, 1]) {
            return None;
        }
        match self {
            Tiling::F2 | Tiling::F3 | Tiling::F4 | Tiling::F5 | Tiling::S3 => {
                View::plain(geometry, input, lanes)
            }
            // More channels would fill vectors without being put side by side.
            Tiling::S7 => {
                let narrow = geometry.groups == 1 && geometry.in_channels <= 4 && geometry.padding == [3, 3];
                narrow.then(|| View::squares(geometry, input))
            }
            Tiling::Strassen | Tiling::Twice => {
                let cut = |channels: usize| channels.is_multiple_of(self.parts() * lanes);
                let fits = geometry.groups == 1 && geometry.padding == [0, 0];
                (fits && cut(geometry.in_channels) && cut(geometry.out_channels))
                    .then(|| View::parts(geometry, input, self.parts()))
            }
        }
    }

    /// Products of a full tile for each pair of channels.
    pub(super) fn points(self) -> usize {
        match self {
            Tiling::F2 => Square::<F2>::POINTS,
            Tiling::F3 => Square::<F3>::POINTS,
            Tiling::F4 => Square::<F4>::POINTS,
            Tiling::F5 => Square::<F5>::POINTS,
            Tiling::S3 => Square::<S3>::POINTS,
            Tiling::S7 => Square::<F4Of4>::POINTS,
            Tiling::Strassen => Strassen::POINTS,
            Tiling::Twice => Twice::POINTS,
        }
    }

    /// Whether a point is needed for the last row, and for the last column, of a tile's outputs alone.
    pub(super) fn last(self, point: usize) -> [bool; 2] {
        match self {
            Tiling::F2 => Square::<F2>::last(point),
            Tiling::F3 => Square::<F3>::last(point),
            Tiling::F4 => Square::<F4>::last(point),
            Tiling::F5 => Square::<F5>::last(point),
            Tiling::S3 => Square::<S3>::last(point),
            Tiling::S7 => Square::<F4Of4>::last(point),
            Tiling::Strassen => Strassen::last(point),
            Tiling::Twice => Twice::last(point),
        }
    }

    /// Parts that both the input's and the output's channels are cut into.
    pub(super) fn parts(self) -> usize {
        match self {
            Tiling::F2 | Tiling::F3 | Tiling::F4 | Tiling::F5 | Tiling::S3 | Tiling::S7 => 1,
            Tiling::Strassen => HALVES,
            Tiling::Twice => QUARTERS,
        }
    }

    /// The rows and columns of tiles of outputs of `[height, width]`.
    pub(super) fn cut(self, [height, width]: [usize; 2]) -> (Vec<Span>, Vec<Span>) {
        let along = match self {
            Tiling::F2 => F2::OUTPUTS,
            Tiling::F3 => F3::OUTPUTS,
            Tiling::F4 => F4::OUTPUTS,
            Tiling::F5 => F5::OUTPUTS,
            Tiling::S3 => S3::OUTPUTS,
            Tiling::S7 => F4Of4::OUTPUTS,
            // All pixels stand in one row.
            Tiling::Strassen | Tiling::Twice => {
                return (tiles::cut(1, 1), tiles::cut(self.parts(), height * width));
            }
        };
        (tiles::cut(along, height), tiles::cut(along, width))
    }

    /// The factors of the weights along one axis for each point along it: the rows of G.
    pub(super) fn factors(self) -> Vec<[f64; TAPS]> {
        fn rows<A: Algorithm>() -> Vec<[f64; TAPS]> {
            let row = |point| {
                let weights = A::weights(point);
                std::array::from_fn(|tap| weights.get(tap).copied().unwrap_or(0.0))
            };
            (0..A::POINTS).map(row).collect()
        }
        match self {
            Tiling::F2 => rows::<F2>(),
            Tiling::F3 => rows::<F3>(),
            Tiling::F4 => rows::<F4>(),
            Tiling::F5 => rows::<F5>(),
            Tiling::S3 => rows::<S3>(),
            Tiling::S7 => rows::<F4Of4>(),
            Tiling::Strassen | Tiling::Twice => Vec::new(),
        }
    }
}

/// What a fast algorithm needs for a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TilingCost {
    /// Multiply-accumulates for an image.
    pub products: usize,
    /// Values that go into the domain of products, for an image.
    pub inputs: usize,
    /// Values that come back from it, for an image.
    pub outputs: usize,
    /// Values of the packed weights.
    pub weights: usize,
}
