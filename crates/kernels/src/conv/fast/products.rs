//! Products of a block of tiles at all points, and what is asked for on the way.

use super::Panel;
use super::run::Run;
use super::tiles::{Block, Tile};
use super::transform::Transform;
use crate::Operands;
use crate::buffer::LINE;
use crate::gemm::heights::Heights;
use crate::gemm::micro::{BesidePoints, Blocked, Spaced};

/// Cache lines that come while a block's products are made.
pub(super) enum Ahead {
    /// None are asked for.
    Nothing,
    /// Those of the next point's weights, which come from memory.
    Weights,
    /// Those of the input that the thread's next block reads.
    Input {
        next: *const f32,
        /// Lines that have not been asked for, and how many go with each vector of this block's input channels.
        left: usize,
        each: usize,
    },
}

impl Ahead {
    /// The first of the input's lines that go with each of `vectors` vectors, and how many go with one.
    fn take(&mut self, vectors: usize) -> Option<(*const f32, usize)> {
        match self {
            Ahead::Input { next, left, each } if *left > 0 => {
                let (from, lines) = (*next, *each * vectors);
                *next = next.wrapping_add(lines * LINE);
                *left = left.saturating_sub(lines);
                Some((from, *each))
            }
            _ => None,
        }
    }
}

/// Rows of outputs that the products of a panel become, some of which are asked for with each piece.
struct Outputs {
    next: Spaced,
    rows: usize,
    /// Pieces, and for how many of them rows are due, times the number of rows.
    pieces: usize,
    due: usize,
}

impl Outputs {
    /// The rows that go with the next piece.
    #[inline(always)]
    fn take(&mut self) -> Spaced {
        self.next.first = self.next.first.wrapping_add(self.next.count * self.next.step);
        self.next.count = 0;
        self.due += self.rows;
        while self.due >= self.pieces {
            self.due -= self.pieces;
            self.next.count += 1;
        }
        self.next
    }
}

/// The slots of one point, cut for the micro-kernels.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Pieces {
    start: usize,
    heights: Heights,
    /// Cache lines of the next weights to ask for with each vector of a piece.
    lines: usize,
}

/// Products of a block of tiles with one panel of output channels, over some input channels.
pub(super) struct Products<'a> {
    pub(super) block: &'a Block,
    pub(super) panel: &'a Panel,
    /// V, and the values between two of its points.
    pub(super) v: (*const f32, usize),
    /// The weights, `[point][input channel][width of the panel]`, and the values between two points.
    pub(super) b: (*const f32, usize),
    /// Input channels, and the first of them; the products of all but the first ones are added to what M holds.
    pub(super) depth: usize,
    pub(super) first: usize,
    /// M, and the values between two of its slots.
    pub(super) m: (*mut f32, usize),
    /// What the columns bring with them in threes, for each point, and the values between two points; where these channels are the
    /// last ones.
    pub(super) sums: Option<(*const f32, usize)>,
}

impl Run<'_> {
    /// The outputs that the products of a panel become in `pieces` pieces. Only where tiles are pixels in a row do they stand in
    /// evenly spaced rows.
    fn outputs(&self, block: &Block, panel: &Panel, pieces: usize) -> Option<Outputs> {
        let (conv, parts) = (self.conv, self.conv.tiling.parts());
        if parts == 1 {
            return None;
        }
        let pixel = |tile: &Tile| tile.image * conv.output[0] * conv.output[1] + tile.columns.start;
        let (first, last) = (block.tiles().first()?, block.tiles().last()?);
        let (first, end) = (pixel(first), pixel(last) + last.columns.outputs);
        let channels = conv.geometry.out_channels;
        let from = self.y.get().wrapping_add(first * channels + panel.channels.start);
        let next = Spaced { first: from, step: channels / parts, count: 0 };
        Some(Outputs { next, rows: parts * (end - first), pieces, due: 0 })
    }

    /// Products at all points.
    pub(super) fn products<T: Transform>(&self, ahead: &mut Ahead, products: Products) {
        let Products { block, panel, v: (v, v_step), b: (b, b_step), depth, first, m: (m, m_step), sums } =
            products;
        let operands = if self.factors.is_some() { Operands::Threes } else { Operands::F32 };
        let (kernels, vectors) = (self.conv.level.kernels(operands), panel.vectors);
        let (slots, width) = (block.tiles().len(), vectors * kernels.lanes);
        let (tallest, deep) = (kernels.max_blocked_rows(vectors), depth.div_ceil(kernels.lanes));
        // Cut once for each kind of point.
        let pieces = [false, true].map(|row| {
            [false, true].map(|column| {
                let slots = block.slots(row, column);
                let heights = Heights::new(slots.len(), tallest);
                let lines = match ahead {
                    Ahead::Weights => (depth * width / LINE).div_ceil((deep * heights.count()).max(1)),
                    Ahead::Nothing | Ahead::Input { .. } => 0,
                };
                Pieces { start: slots.start, heights, lines }
            })
        });
        let mut outputs = self.outputs(block, panel, T::POINTS * pieces[0][0].heights.count());
        // What is asked for in advance goes from point to point; products alone go through all points at once, if those have the
        // same slots.
        let alike = pieces.as_flattened().iter().all(|other| *other == pieces[0][0]);
        let points =
            if alike && outputs.is_none() && matches!(ahead, Ahead::Nothing) { T::POINTS } else { 1 };
        let a_step = slots * kernels.lanes;
        let rows = v.wrapping_add(self.conv.section_len(slots));
        let beside = sums.zip(self.factors.as_ref()).map(|((columns, columns_step), factors)| BesidePoints {
            rows,
            columns,
            columns_step,
            factors: factors.as_ptr(),
        });
        let v = v.wrapping_add(first * slots);
        let point_steps = [v_step, b_step, width];
        let mut arguments = Blocked {
            points,
            point_steps,
            a: v,
            a_step,
            depth,
            b,
            c: m,
            c_step: m_step,
            add: first > 0,
            next: b,
            lines: 0,
            later: Spaced { first: b, step: 0, count: 0 },
            beside,
        };
        for point in (0..T::POINTS).step_by(points) {
            let [row, column] = T::last(point);
            let Pieces { start, heights, lines } = pieces[usize::from(row)][usize::from(column)];
            let count = heights.count();
            arguments.b = b.wrapping_add(point * b_step);
            for index in 0..count {
                let piece = heights.block(index);
                if let Some(outputs) = &mut outputs {
                    arguments.later = outputs.take();
                }
                // The next point's weights, shared out over this point's pieces.
                let weights = arguments.b.wrapping_add(b_step + lines * LINE * index * deep);
                (arguments.next, arguments.lines) = ahead.take(deep).unwrap_or((weights, lines));
                let slot = start + piece.start;
                arguments.a = v.wrapping_add(point * v_step + slot * kernels.lanes);
                arguments.c = m.wrapping_add(slot * m_step + point * width);
                arguments.beside = beside.map(|beside| BesidePoints {
                    rows: rows.wrapping_add(point * v_step + slot),
                    columns: beside.columns.wrapping_add(point * beside.columns_step),
                    factors: beside.factors.wrapping_add(point),
                    ..beside
                });
                // SAFETY: V has `slots` rows for each point and vector of channels, M `width` values for each slot and
                // point (both buffers were grown to that), the panel `depth` rows of `width` for each point; there are no more
                // than the transform's.
                unsafe { kernels.blocked(vectors, piece.len(), &arguments) };
            }
        }
    }
}
