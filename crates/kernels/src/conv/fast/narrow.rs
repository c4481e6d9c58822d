//! Groups that share vectors of channels: a lane of the product sums over the few lanes of its own group.
//!
//! With so few products, what the tiles cost is moving them. A few tiles at a time stay in the L1 cache from the first transform
//! to the last, and their products take the place of their factors.

use super::memory::Own;
use super::run::{Run, Weights};
use super::tiles::Block;
use super::transform::{Steps, Transform};
use crate::simd::{Simd, Task};
use std::marker::PhantomData;
use std::ops::Range;

/// Tiles of a block: so many that their transforms and a section's weights stay in the L1 cache, and that sums of different tiles
/// hide the time that an addition takes.
pub(super) const TILES: usize = 4;

/// Tiles that a thread takes in turn.
pub(super) const MOST: usize = 4 * TILES;

/// The products of the tiles of a block for one section.
struct Products<'a, T> {
    /// Channels of a group.
    group: usize,
    block: &'a Block,
    /// Transformed tiles, which the products replace: `[slot][point][lanes]`.
    values: *mut f32,
    /// Values between two slots.
    slot_step: usize,
    /// The section's weights, `[point][channel of the group][lanes]`, and the values between two points.
    weights: *const f32,
    weight_step: usize,
    transform: PhantomData<T>,
}

impl<T: Transform> Products<'_, T> {
    /// The products of `COUNT` slots at a point, whose weights are `weights`.
    ///
    /// # Safety
    /// `values` must be valid for reads and writes of a vector in each of the slots.
    #[inline(always)]
    unsafe fn slots<S: Simd, const GROUP: usize, const COUNT: usize>(
        &self,
        simd: S,
        weights: &[S::V; GROUP],
        values: *mut f32,
    ) {
        // SAFETY: promised by the caller.
        let factors: [S::V; COUNT] =
            std::array::from_fn(|slot| unsafe { simd.load(values.wrapping_add(slot * self.slot_step)) });
        let mut sums = [simd.zero(); COUNT];
        for (lane, &weight) in weights.iter().enumerate() {
            for (sum, &factor) in sums.iter_mut().zip(&factors) {
                *sum = simd.mul_add(simd.spread::<GROUP>(factor, lane), weight, *sum);
            }
        }
        for (slot, sum) in sums.into_iter().enumerate() {
            // SAFETY: promised by the caller.
            unsafe { simd.store(values.wrapping_add(slot * self.slot_step), sum) };
        }
    }

    #[inline(always)]
    fn points<S: Simd, const GROUP: usize>(&self, simd: S) {
        for point in 0..T::POINTS {
            let [row, column] = T::last(point);
            let Range { mut start, end } = self.block.slots(row, column);
            let first = self.weights.wrapping_add(point * self.weight_step);
            // SAFETY: the section has GROUP vectors of weights for each point, and every slot a vector for it.
            unsafe {
                let weights = std::array::from_fn(|lane| simd.load(first.wrapping_add(lane * S::LANES)));
                while start < end {
                    let values = self.values.wrapping_add(start * self.slot_step + point * S::LANES);
                    if start + TILES <= end {
                        self.slots::<S, GROUP, TILES>(simd, &weights, values);
                        start += TILES;
                    } else {
                        self.slots::<S, GROUP, 1>(simd, &weights, values);
                        start += 1;
                    }
                }
            }
        }
    }
}

impl<T: Transform> Task for Products<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.group {
            1 => self.points::<S, 1>(simd),
            2 => self.points::<S, 2>(simd),
            4 => self.points::<S, 4>(simd),
            _ => self.points::<S, 8>(simd),
        }
    }
}

impl Run<'_> {
    /// Takes tiles through the sections `chunk`, whose groups of `group` channels share vectors.
    pub(super) fn narrow<T: Transform>(
        &self,
        group: usize,
        tiles: Range<usize>,
        chunk: Range<usize>,
        Own { block, m, .. }: &mut Own,
    ) {
        let Weights::Packed(weights) = self.weights else { unreachable!("groups are packed before") };
        let conv = self.conv;
        let slot_step = conv.m_step(conv.lanes());
        m.grow(conv.block_lens(TILES, 0)[1]);
        let values = m.as_mut_ptr();
        for first in tiles.clone().step_by(TILES) {
            let block = self.fill(block, first..tiles.end.min(first + TILES));
            for panel in chunk.clone().flat_map(|section| conv.panels(section)) {
                let steps = Steps { point: conv.lanes(), vector: 0, slot: slot_step };
                self.transform::<T>(block, conv.vectors(panel.section), steps, values);
                let start = conv.panel_start(panel.channels.start);
                self.cx.level().run(Products::<T> {
                    group,
                    block,
                    values,
                    slot_step,
                    weights: weights.as_ptr().wrapping_add(start),
                    weight_step: conv.weight_step(conv.lanes()),
                    transform: PhantomData,
                });
                self.back::<T>(block, panel.channels, values, slot_step);
            }
        }
    }
}
