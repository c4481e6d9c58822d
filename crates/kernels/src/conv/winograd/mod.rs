//! Fast convolution of 3×3 kernels, fused tile by tile: transform, products, transform back, epilogue.
//!
//! A block of tiles goes through all three steps while it is in the L2 cache, so that the transformed input and the
//! products never reach memory. The products of one point of all tiles of a block are one matrix product of
//! `tiles × in_channels` by `in_channels × out_channels`.

mod algorithm;
mod pack;
mod run;
#[cfg(test)]
mod tests;
mod tiles;
mod transform;
mod view;

pub use run::WinogradScratch;

use self::algorithm::{Algorithm, F2, F3Of4, F4, MAX, S3};
use self::pack::{Pack, TAPS};
use self::run::Run;
use self::tiles::Span;
use self::view::View;
use super::{ConvGeometry, GeometryError};
use crate::buffer::Aligned;
use crate::gemm::Epilogue;
use crate::parallel::SharedMut;
use crate::{Context, Level};
use std::ops::Range;

/// Which fast algorithm a convolution uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tiling {
    /// F(2×2, 3×3): 16 products for 4 outputs, 2.25 times fewer than the direct sum.
    F2,
    /// F(4×4, 3×3): 36 products for 16 outputs, 4 times fewer.
    F4,
    /// 3×3 with stride 2 by phases: 49 products for 9 outputs, 1.65 times fewer.
    S3,
    /// 7×7 with stride 2, the stem, by phases: squares of 2×2 pixels become pixels of four times the channels, and the
    /// kernel becomes one of 4×4 with stride 1 and F(3×3, 4×4): 144 products for 9 outputs, 3.06 times fewer.
    S7,
}

impl Tiling {
    /// All algorithms.
    pub const ALL: [Tiling; 4] = [Tiling::F2, Tiling::F4, Tiling::S3, Tiling::S7];

    /// What the algorithm costs at `level` for an image of `[height, width]`, or `None` where it does not compute the
    /// convolution: another kernel, stride or dilation, or groups that do not fill vectors.
    pub fn cost(self, level: Level, geometry: &ConvGeometry, input: [usize; 2]) -> Option<TilingCost> {
        let view = self.view(level, geometry, input)?;
        let output = geometry.output_size(input).ok()?;
        let (points, last) = (self.points(), self.last());
        let along = |outputs| -> usize {
            self.cut(outputs).iter().map(|span| points - if span.full { 0 } else { last }).sum()
        };
        let pairs = view.depth * geometry.out_channels;
        Some(TilingCost {
            products: along(output[0]) * along(output[1]) * pairs,
            weights: points * points * pairs,
        })
    }

    /// The convolution as the algorithm's tiles see it.
    fn view(self, level: Level, geometry: &ConvGeometry, input: [usize; 2]) -> Option<View> {
        let (kernel, stride) = match self {
            Tiling::F2 | Tiling::F4 => (3, 1),
            Tiling::S3 => (3, 2),
            Tiling::S7 => (7, 2),
        };
        if (geometry.kernel, geometry.stride, geometry.dilation) != ([kernel; 2], [stride; 2], [1, 1]) {
            return None;
        }
        match self {
            Tiling::F2 | Tiling::F4 | Tiling::S3 => View::plain(geometry, input, level.micro_kernels().lanes),
            // More channels would fill vectors without being put side by side.
            Tiling::S7 => {
                let narrow = geometry.groups == 1 && geometry.in_channels <= 4 && geometry.padding == [3, 3];
                narrow.then(|| View::squares(geometry, input))
            }
        }
    }

    /// Products of one axis of a full tile.
    fn points(self) -> usize {
        match self {
            Tiling::F2 => F2::POINTS,
            Tiling::F4 => F4::POINTS,
            Tiling::S3 => S3::POINTS,
            Tiling::S7 => F3Of4::POINTS,
        }
    }

    /// Points that only the last output needs.
    fn last(self) -> usize {
        match self {
            Tiling::F2 => F2::LAST.len(),
            Tiling::F4 => F4::LAST.len(),
            Tiling::S3 => S3::LAST.len(),
            Tiling::S7 => F3Of4::LAST.len(),
        }
    }

    fn cut(self, outputs: usize) -> Vec<Span> {
        match self {
            Tiling::F2 => tiles::cut::<F2>(outputs),
            Tiling::F4 => tiles::cut::<F4>(outputs),
            Tiling::S3 => tiles::cut::<S3>(outputs),
            Tiling::S7 => tiles::cut::<F3Of4>(outputs),
        }
    }

    /// Row `point` of G.
    fn weights(self, point: usize) -> Vec<f64> {
        match self {
            Tiling::F2 => F2::weights(point),
            Tiling::F4 => F4::weights(point),
            Tiling::S3 => S3::weights(point),
            Tiling::S7 => F3Of4::weights(point),
        }
    }
}

/// What a fast algorithm needs for a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TilingCost {
    /// Multiply-accumulates for an image.
    pub products: usize,
    /// Values of the packed weights.
    pub weights: usize,
}

/// Vectors of output channels that go through the products together: M holds no more.
const PANEL: usize = 2;

/// A fast convolution prepared for one input size and one instruction-set level.
#[derive(Debug, Clone)]
pub struct Winograd {
    geometry: ConvGeometry,
    tiling: Tiling,
    level: Level,
    input: [usize; 2],
    output: [usize; 2],
    view: View,
    rows: Vec<Span>,
    columns: Vec<Span>,
    zeros: Vec<f32>,
}

/// Weights in the domain of products: `[panel][point][in_channel][width of the panel]`.
#[derive(Debug, Clone)]
pub struct WinogradWeights {
    level: Level,
    values: Aligned,
}

/// Output channels that are computed together.
#[derive(Debug, Clone)]
struct Panel {
    channels: Range<usize>,
    /// Vectors of channels.
    vectors: usize,
    /// The section that they belong to.
    section: usize,
}

impl Winograd {
    /// Prepares the convolution for inputs of `[height, width]` pixels.
    ///
    /// # Errors
    /// When the input is too small.
    ///
    /// # Panics
    /// When the tiling does not compute the geometry, see [`Tiling::cost`].
    pub fn new(
        level: Level,
        tiling: Tiling,
        geometry: ConvGeometry,
        input: [usize; 2],
    ) -> Result<Self, GeometryError> {
        let output = geometry.output_size(input)?;
        let view = tiling.view(level, &geometry, input);
        let view = view.unwrap_or_else(|| panic!("{tiling:?} cannot compute {geometry:?}"));
        let (rows, columns) = (tiling.cut(output[0]), tiling.cut(output[1]));
        let zeros = vec![0.0; view.size[1] * view.channels];
        Ok(Winograd { geometry, tiling, level, input, output, view, rows, columns, zeros })
    }

    /// The convolution's parameters.
    pub fn geometry(&self) -> &ConvGeometry {
        &self.geometry
    }

    /// The algorithm.
    pub fn tiling(&self) -> Tiling {
        self.tiling
    }

    /// Output size `[height, width]`.
    pub fn output(&self) -> [usize; 2] {
        self.output
    }

    /// Values of the packed weights.
    fn weight_values(&self) -> usize {
        self.panel_start(self.geometry.out_channels)
    }

    fn lanes(&self) -> usize {
        self.level.micro_kernels().lanes
    }

    /// The sections: channels that see each other and nothing else.
    fn sections(&self) -> Range<usize> {
        0..if self.geometry.groups == 1 { 1 } else { self.geometry.in_channels / self.view.depth }
    }

    /// The vectors of input channels of a section.
    fn vectors(&self, section: usize) -> Range<usize> {
        let each = self.view.depth.div_ceil(self.lanes());
        section * each..(section + 1) * each
    }

    /// The panels of output channels of a section.
    fn panels(&self, section: usize) -> impl ExactSizeIterator<Item = Panel> + Clone + use<> {
        let together = self.geometry.out_channels / self.sections().len();
        let (lanes, width, first) = (self.lanes(), PANEL * self.lanes(), section * together);
        (0..together.div_ceil(width)).map(move |panel| {
            let channels = first + panel * width..first + together.min((panel + 1) * width);
            let vectors = channels.len().div_ceil(lanes);
            Panel { channels, vectors, section }
        })
    }

    /// First value of a panel in the packed weights.
    fn panel_start(&self, first_channel: usize) -> usize {
        first_channel * self.view.depth * self.tiling.points() * self.tiling.points()
    }

    /// Transforms weights (HWIO, `[3, 3, in, out]`) and packs them. The transform is computed in `f64` and rounded once.
    ///
    /// # Panics
    /// When the number of weights is not the geometry's.
    pub fn pack(&self, cx: &Context, weight: &[f32]) -> WinogradWeights {
        assert_eq!(weight.len(), self.geometry.weight_len(), "number of weights");
        let points = self.tiling.points();
        let channels = self.geometry.out_channels.next_multiple_of(self.lanes());
        let mut values = Aligned::zeros(self.panel_start(channels));
        let mut factors = [[0.0; TAPS]; MAX];
        for (point, factors) in factors.iter_mut().enumerate().take(points) {
            let weights = self.tiling.weights(point);
            factors[..weights.len()].copy_from_slice(&weights);
        }
        let out = SharedMut(values.as_mut_ptr());
        let panels: Vec<Panel> = self.sections().flat_map(|section| self.panels(section)).collect();
        cx.pool().run(panels.len(), |panel| {
            let panel = &panels[panel];
            let depth = self.view.depth;
            let width = panel.vectors * self.lanes();
            let start = self.panel_start(panel.channels.start);
            // SAFETY: panels are disjoint and lie within `values`.
            let packed = unsafe {
                std::slice::from_raw_parts_mut(out.get().add(start), points * points * depth * width)
            };
            cx.level().run(Pack {
                weight,
                geometry: &self.geometry,
                view: &self.view,
                factors: &factors[..points],
                panel,
                width,
                packed,
            });
        });
        WinogradWeights { level: self.level, values }
    }

    /// Makes room for [`forward`](Self::forward) on at most `images` images with `threads` threads, which then allocates
    /// nothing.
    pub fn reserve(&self, images: usize, threads: usize, scratch: &mut WinogradScratch) {
        scratch.copy.grow(self.view.copied(images));
        scratch.memory.reserve(self, images * self.rows.len() * self.columns.len(), threads);
    }

    /// `y = conv(x)`, then the epilogue; shapes as for [`Conv::forward`](super::Conv::forward).
    ///
    /// # Panics
    /// When a slice's length is not its shape's, or the level is not the context's.
    pub fn forward(
        &self,
        cx: &Context,
        x: &[f32],
        weights: &WinogradWeights,
        epilogue: Epilogue,
        scratch: &mut WinogradScratch,
        y: &mut [f32],
    ) {
        let input_len = self.input[0] * self.input[1] * self.geometry.in_channels;
        let output_len = self.output[0] * self.output[1] * self.geometry.out_channels;
        let images = x.len() / input_len;
        assert_eq!(x.len(), images * input_len, "values of the input");
        assert_eq!(y.len(), images * output_len, "values of the output");
        assert!(
            weights.level == self.level && cx.level() == self.level,
            "packed for another instruction-set level"
        );
        let padded = self.geometry.out_channels.next_multiple_of(self.lanes());
        assert!(weights.values.len() >= self.panel_start(padded), "packed for another convolution");
        assert!(
            epilogue.bias.is_none_or(|bias| bias.len() == self.geometry.out_channels),
            "the bias's length"
        );
        assert!(epilogue.other().is_none_or(|residual| residual.len() == y.len()), "the residual's length");
        let x = self.view.of(cx, &self.geometry, self.input, x, &mut scratch.copy);
        let run = Run { conv: self, cx, x, weights, epilogue, y: SharedMut(y.as_mut_ptr()) };
        let memory = &mut scratch.memory;
        match self.tiling {
            Tiling::F2 => run.batch::<F2>(images, memory),
            Tiling::F4 => run.batch::<F4>(images, memory),
            Tiling::S3 => run.batch::<S3>(images, memory),
            Tiling::S7 => run.batch::<F3Of4>(images, memory),
        }
    }
}
