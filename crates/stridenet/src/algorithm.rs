//! Which algorithm computes a convolution.
//!
//! The estimate depends on the shapes, the batch, the instruction-set level and the kind of core alone, never on the number of
//! threads, so that plans of the same network give the same bits on any of them. A [tuning](crate::plan::Tuning) takes its place
//! where there is one. Training's estimates leave the kind of core out, but for whether it adds beside multiplications: a run that goes on
//! elsewhere keeps its algorithms where both or neither do.

use crate::kernels::conv::{ConvGeometry, RowConv, Tiling, TilingCost};
use crate::kernels::{Cores, Level, Operands};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// An algorithm for a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Choice {
    /// The sum over the kernel's taps as one matrix product with gathered rows.
    Direct,
    /// The same sum within groups, a row of outputs at a time.
    Rows,
    /// Transformed tiles.
    Fast(Tiling),
}

impl Choice {
    /// All algorithms.
    pub fn all() -> impl Iterator<Item = Choice> {
        [Choice::Direct, Choice::Rows].into_iter().chain(Tiling::ALL.map(Choice::Fast))
    }
}

impl Serialize for Choice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Choice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let found = Choice::all().find(|choice| choice.to_string() == name);
        found.ok_or_else(|| {
            let known: Vec<String> = Choice::all().map(|choice| choice.to_string()).collect();
            serde::de::Error::custom(format!("algorithm {name:?}, expected one of {}", known.join(", ")))
        })
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Choice::Direct => "direct",
            Choice::Rows => "direct by rows",
            Choice::Fast(Tiling::F2) => "winograd F(2x2,3x3)",
            Choice::Fast(Tiling::F3) => "winograd F(3x3,3x3)",
            Choice::Fast(Tiling::F4) => "winograd F(4x4,3x3)",
            Choice::Fast(Tiling::F5) => "winograd F(5x5,3x3)",
            Choice::Fast(Tiling::S3) => "polyphase F(3x3,3x3) stride 2",
            Choice::Fast(Tiling::S7) => "polyphase F(4x4,4x4) stride 2",
            Choice::Fast(Tiling::Strassen) => "Strassen",
            Choice::Fast(Tiling::Twice) => "Strassen twice",
        })
    }
}

/// What a candidate is expected to cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Estimate {
    pub(crate) choice: Choice,
    /// Multiply-accumulates for the batch.
    pub(crate) macs: f64,
    /// Bytes of packed weights.
    pub(crate) weight_bytes: f64,
    /// Expected time relative to a multiply-accumulate at the peak.
    pub(crate) cost: f64,
}

/// Takes one of a step's candidates, of which the first is the cheapest by estimate: a choice that is not among them, or
/// none, takes that.
pub(crate) type Chooser<'a> = dyn Fn(&str, &[Estimate]) -> Option<Choice> + 'a;

/// What taking a value into the domain of products costs, and taking one out of it.
#[derive(Debug, Clone, Copy)]
struct Moved {
    into: f64,
    back: f64,
}

impl Moved {
    /// The same both ways.
    const fn each(cost: f64) -> Moved {
        Moved { into: cost, back: cost }
    }
}

/// What a convolution's forward pass takes, in the multiply-accumulates that a core does meanwhile at its peak. Measured.
#[derive(Debug, Clone, Copy)]
struct Costs {
    /// Share of the peak that products reach.
    share: f64,
    /// The same within groups, whose products are narrow: of the direct sum, and of square tiles.
    grouped_share: f64,
    grouped_tile_share: f64,
    /// The same of groups' sums by rows, and what an output's value takes beside with stride 1 and with stride 2, which read four
    /// values of the input for it.
    row_share: f64,
    row_value: [f64; 2],
    /// Reading a byte of weights from memory.
    byte: f64,
    /// Taking a value of square tiles into or out of the domain of products, and the same within groups.
    tile: Moved,
    grouped_tile: Moved,
    /// The same for pairs and fours of pixels: their input arrives while products are made.
    pairs: Moved,
    fours: Moved,
    /// How many times longer one level of Strassen's algorithm must be expected to take for a second to be worth its memory: the
    /// weights take 1.75 times as much.
    second_level: f64,
    /// The direct sum's step to the next tap for an output pixel and a panel, or a group.
    tap: f64,
    grouped_tap: f64,
}

impl Costs {
    /// Cores that multiply and add 512 bits a cycle, or less.
    const NARROW: Costs = Costs {
        share: 0.93,
        grouped_share: 0.10,
        grouped_tile_share: 0.40,
        row_share: 0.80,
        row_value: [22.0, 88.0],
        byte: 5.0,
        tile: Moved::each(7.5),
        grouped_tile: Moved::each(10.4),
        pairs: Moved { into: 0.5, back: 10.0 },
        fours: Moved { into: 0.5, back: 10.0 },
        second_level: 1.04,
        tap: 190.0,
        grouped_tap: 0.0,
    };

    /// Cores that multiply and add twice as much in the same time, with caches and a memory that are no faster: whatever is not
    /// a product costs more of them, and more products are better than more weights.
    const SAPPHIRE_RAPIDS: Costs = Costs {
        share: 0.57,
        grouped_share: 0.12,
        grouped_tile_share: 0.57,
        // Not measured: Zen 5's.
        row_share: 0.90,
        row_value: [34.0, 68.0],
        byte: 12.0,
        tile: Moved::each(20.0),
        grouped_tile: Moved::each(20.0),
        pairs: Moved::each(40.0),
        fours: Moved::each(40.0),
        second_level: 1.04,
        tap: 260.0,
        grouped_tap: 0.0,
    };

    /// Cores that multiply and add as much, whose caches keep up: the direct sum is nearly as fast as its products, and pairs of
    /// pixels pay where there are many channels.
    const ZEN_5: Costs = Costs {
        share: 0.95,
        grouped_share: 0.62,
        grouped_tile_share: 0.25,
        row_share: 0.90,
        row_value: [34.0, 68.0],
        byte: 5.1,
        tile: Moved::each(13.5),
        grouped_tile: Moved::each(8.0),
        pairs: Moved { into: 14.0, back: 18.0 },
        fours: Moved { into: 14.0, back: 13.5 },
        second_level: 1.02,
        tap: 65.0,
        grouped_tap: 310.0,
    };

    fn of(level: Level) -> Costs {
        match level.cores() {
            Cores::Narrow => Costs::NARROW,
            Cores::SapphireRapids => Costs::SAPPHIRE_RAPIDS,
            Cores::Zen5 => Costs::ZEN_5,
        }
    }
}

/// What is left of the share that sums by rows reach where registers hold few pixels at once.
const FEW_PIXELS: f64 = 0.73;

/// How many times longer F(4×4, 3×3) must be expected to take for F(5×5, 3×3), whose error is twice as large, to be a candidate.
const WORTH_ITS_ERROR: f64 = 1.12;

/// Output channels of a panel of the direct sum, and the output pixels that meet one at once.
const PANEL: usize = 64;
const ROWS: usize = 6;

/// A pass of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    /// From the input to the output; or from the output's gradient to the input's, with the geometry of that.
    Through,
    /// From the input and the output's gradient to the weights'.
    Weights,
}

/// The batch that training's algorithms are chosen for. It is always the same one, so that a run's bits do not depend on
/// how it was divided.
const TRAINING_BATCH: usize = 16;

/// Multiply-accumulates that a core does while it transforms a value of the weights, which change with each step.
const MACS_PER_PACKED_VALUE: f64 = 10.0;

/// The same for a value of the transformed weights' gradients, with reading and writing it for each block of tiles.
const MACS_PER_SUM: f64 = 100.0;

/// Share of the peak that the products of the weights' gradients reach, by tiles and by the direct sum; and what their tiles
/// cost beside.
const WEIGHTS_SHARE: f64 = 0.73;
const DIRECT_WEIGHTS_SHARE: f64 = 0.85;
const MACS_PER_WEIGHTS_TILE_VALUE: f64 = 12.0;

/// Multiply-accumulates of `f32` that a core does while it does one of bf16.
const MACS_PER_HALVES_MAC: f64 = 0.53;

/// The same of one in threes, with what they take off.
const MACS_PER_THREES_MAC: f64 = 0.8;

/// Multiply-accumulates that a core does while it rounds what an output pixel reads through a tap; for the weights' gradients
/// besides while it rounds a value of the input or of the output's gradient, which it does for each tap.
const MACS_PER_ROUNDED_TAP: f64 = 350.0;
const MACS_PER_ROUNDED_VALUE: f64 = 1.7;

/// Input channels below which a direct sum reads the taps of a kernel row as one.
const NARROW: usize = 8;

/// The operands of a direct sum in training, where `wanted` are allowed. Products within groups are too narrow to pay for
/// rounding, or for sums of operands.
///
/// What CPU it is does not matter to bf16: runs with it round the same operands everywhere. Without it, threes take the place of products
/// one by one where the CPU makes them faster.
pub(crate) fn operands_for_training(level: Level, geometry: &ConvGeometry, wanted: Operands) -> Operands {
    match wanted {
        _ if geometry.groups > 1 => Operands::F32,
        Operands::F32 if level.adds_beside() && pays_in_threes(geometry) => Operands::Threes,
        _ => wanted,
    }
}

/// The operands of transformed tiles in training, where direct sums have `direct`: never bf16. With few channels what threes take off
/// takes longer to sum than they save. Measured.
pub(crate) fn operands_of_tiles(level: Level, geometry: &ConvGeometry, direct: Operands) -> Operands {
    let many = geometry.in_channels.min(geometry.out_channels) >= 64;
    if level.adds_beside() && many || direct == Operands::Threes { Operands::Threes } else { Operands::F32 }
}

/// Whether a convolution has enough channels that threes save more than rearranging what they read costs. Measured.
fn pays_in_threes(geometry: &ConvGeometry) -> bool {
    let ConvGeometry { in_channels, out_channels, .. } = *geometry;
    in_channels.min(out_channels) >= 64 && in_channels * out_channels >= 64 * 128
}

/// The direct sum's cost in a pass of training over `pixels` output pixels with operands of bf16, by measurement.
fn halves_cost(geometry: &ConvGeometry, pixels: usize, pass: Pass) -> f64 {
    let ConvGeometry { kernel: [height, width], in_channels, out_channels, .. } = *geometry;
    let taps = if in_channels < NARROW { height } else { height * width };
    let values = match pass {
        Pass::Through => 0,
        Pass::Weights => in_channels * geometry.taps() / taps + out_channels,
    };
    let tap = MACS_PER_ROUNDED_TAP + values as f64 * MACS_PER_ROUNDED_VALUE;
    pixels as f64 * (geometry.weight_len() as f64 * MACS_PER_HALVES_MAC + taps as f64 * tap)
}

/// The tiles for a pass of training over images of `[height, width]`, where the direct sum has such operands and is slower.
pub(crate) fn for_training(
    level: Level,
    geometry: &ConvGeometry,
    input: [usize; 2],
    pass: Pass,
    operands: Operands,
) -> Option<Tiling> {
    let output = geometry.output_size(input).ok()?;
    // What the products of pairs save is less than transforming the weights takes, once for each step. F(5×5, 3×3) is left to
    // inference, where errors do not add up from step to step.
    let left_out = |tiling: &Tiling| matches!(tiling, Tiling::F5 | Tiling::Strassen | Tiling::Twice);
    let tilings = || {
        let all = Tiling::ALL.into_iter().filter(move |tiling| !left_out(tiling));
        all.filter_map(|tiling| Some((tiling, tiling.cost(level, geometry, input)?)))
    };
    let fastest = |direct: f64, costs: &mut dyn Iterator<Item = (Tiling, f64)>| {
        let fast = costs.min_by(|(_, a), (_, b)| a.total_cmp(b));
        fast.filter(|&(_, cost)| cost < direct).map(|(tiling, _)| tiling)
    };
    let pixels = output[0] * output[1] * TRAINING_BATCH;
    let with_operands = |direct: f64| match operands {
        Operands::F32 => direct,
        Operands::Bf16 => halves_cost(geometry, pixels, pass),
        Operands::Threes => direct * MACS_PER_THREES_MAC,
    };
    match pass {
        Pass::Through => {
            let estimates = estimates(&Costs::NARROW, level, geometry, input, TRAINING_BATCH);
            let cost = |choice: Choice| estimates.iter().find(|estimate| estimate.choice == choice);
            let direct = cost(Choice::Direct).map_or(f64::INFINITY, |estimate| estimate.cost);
            let direct = with_operands(direct);
            let mut costs = tilings().filter_map(|(tiling, TilingCost { weights, .. })| {
                Some((tiling, cost(Choice::Fast(tiling))?.cost + weights as f64 * MACS_PER_PACKED_VALUE))
            });
            fastest(direct, &mut costs)
        }
        Pass::Weights => {
            let direct = (pixels * geometry.weight_len()) as f64 / DIRECT_WEIGHTS_SHARE;
            let direct = with_operands(direct);
            let fast = tilings().filter(|_| geometry.groups == 1);
            let mut costs = fast.map(|(tiling, TilingCost { products, inputs, outputs, weights })| {
                let moved = (inputs + outputs) as f64;
                let image = products as f64 / WEIGHTS_SHARE + moved * MACS_PER_WEIGHTS_TILE_VALUE;
                (tiling, TRAINING_BATCH as f64 * image + weights as f64 * MACS_PER_SUM)
            });
            fastest(direct, &mut costs)
        }
    }
}

/// The candidates for a convolution of `batch` images of `[height, width]`, the cheapest first.
pub(crate) fn candidates(
    level: Level,
    geometry: &ConvGeometry,
    input: [usize; 2],
    batch: usize,
) -> Vec<Estimate> {
    estimates(&Costs::of(level), level, geometry, input, batch)
}

/// The candidates where arithmetic has such costs.
fn estimates(
    costs: &Costs,
    level: Level,
    geometry: &ConvGeometry,
    input: [usize; 2],
    batch: usize,
) -> Vec<Estimate> {
    let Ok(output) = geometry.output_size(input) else { return Vec::new() };
    let estimate = |choice: Choice, products: usize, weights: usize, work: f64| {
        let (macs, weight_bytes) = ((products * batch) as f64, 4.0 * weights as f64);
        // The weights stream by while the products are made: a half of the quicker hides behind the slower.
        let (work, reading) = (work * batch as f64, weight_bytes * costs.byte);
        let cost = work.max(reading) + work.min(reading) / 2.0;
        Estimate { choice, macs, weight_bytes, cost }
    };
    let weights = geometry.weight_len();
    let pixels = output[0] * output[1];
    // Short blocks of rows take as long as whole ones.
    let blocks = (pixels * batch).next_multiple_of(ROWS) as f64 / (pixels * batch).max(1) as f64;
    let products = pixels * weights;
    let (parts, share, tap) = match geometry.groups {
        1 => (geometry.out_channels.div_ceil(PANEL), costs.share, costs.tap),
        groups => (groups, costs.grouped_share, costs.grouped_tap),
    };
    let taps = geometry.kernel[0] * geometry.kernel[1] * pixels * parts;
    let work = blocks * (products as f64 / share + taps as f64 * tap);
    let mut all = vec![estimate(Choice::Direct, products, weights, work)];
    if RowConv::computes(level, geometry) {
        let share = costs.row_share * if RowConv::holds_many_pixels(level) { 1.0 } else { FEW_PIXELS };
        let value = costs.row_value[usize::from(geometry.stride[1] > 1)];
        let work = products as f64 / share + (pixels * geometry.out_channels) as f64 * value;
        all.push(estimate(Choice::Rows, products, weights, work));
    }
    let (tile, share) = match geometry.groups {
        1 => (costs.tile, costs.share),
        _ => (costs.grouped_tile, costs.grouped_tile_share),
    };
    for tiling in Tiling::ALL {
        if let Some(cost) = tiling.cost(level, geometry, input) {
            let Moved { into, back } = match tiling {
                Tiling::Strassen => costs.pairs,
                Tiling::Twice => costs.fours,
                Tiling::F2 | Tiling::F3 | Tiling::F4 | Tiling::F5 | Tiling::S3 | Tiling::S7 => tile,
            };
            let moved = cost.inputs as f64 * into + cost.outputs as f64 * back;
            let work = cost.products as f64 / share + moved;
            let estimate = estimate(Choice::Fast(tiling), cost.products, cost.weights, work);
            let worth = if tiling == Tiling::Twice { costs.second_level } else { 1.0 };
            all.push(Estimate { cost: estimate.cost * worth, ..estimate });
        }
    }
    let smaller = all.iter().find(|estimate| estimate.choice == Choice::Fast(Tiling::F4));
    let least = smaller.map_or(f64::INFINITY, |smaller| smaller.cost / WORTH_ITS_ERROR);
    all.retain(|estimate| estimate.choice != Choice::Fast(Tiling::F5) || estimate.cost <= least);
    all.sort_by(|a, b| a.cost.total_cmp(&b.cost));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What costs the least for a convolution with a square kernel.
    fn cheapest(costs: &Costs, channels: [usize; 2], kernel: usize, size: usize, batch: usize) -> Choice {
        let geometry = ConvGeometry::square(channels[0], channels[1], kernel, 1);
        let all = estimates(costs, Level::detect(), &geometry, [size; 2], batch);
        assert!(all.is_sorted_by(|a, b| a.cost <= b.cost), "{all:?}");
        all[0].choice
    }

    /// A bottleneck block's layers at 56×56. Tiles save too many products to depend on the core; pairs of pixels save so few
    /// that on a wide one their sums take longer, unless there are many channels.
    #[test]
    fn what_is_worth_its_sums_depends_on_the_core() {
        for batch in [1, 8] {
            for costs in [Costs::NARROW, Costs::SAPPHIRE_RAPIDS, Costs::ZEN_5] {
                assert_eq!(cheapest(&costs, [64, 64], 3, 56, batch), Choice::Fast(Tiling::F4), "{costs:?}");
            }
            for wide in [Costs::SAPPHIRE_RAPIDS, Costs::ZEN_5] {
                assert_eq!(cheapest(&wide, [256, 64], 1, 56, batch), Choice::Direct, "batch {batch}");
            }
            let narrow = cheapest(&Costs::NARROW, [256, 64], 1, 56, batch);
            assert_eq!(narrow, Choice::Fast(Tiling::Twice), "batch {batch}");
        }
        assert_eq!(cheapest(&Costs::SAPPHIRE_RAPIDS, [1024, 256], 1, 14, 8), Choice::Direct);
        assert_ne!(cheapest(&Costs::ZEN_5, [1024, 256], 1, 14, 8), Choice::Direct);
    }

    /// With four channels in a group tiles save too few products for what they move, where registers hold many pixels' sums. Where
    /// strides leave fewer products to save they do so everywhere.
    #[test]
    fn groups_are_summed_by_rows_where_tiles_save_little() {
        for level in Level::available() {
            let cheapest = |channels: usize, stride: usize, size: usize| {
                let geometry =
                    ConvGeometry { groups: 32, ..ConvGeometry::square(channels, channels, 3, stride) };
                estimates(&Costs::NARROW, level, &geometry, [size; 2], 4)[0].choice
            };
            let tiles = Choice::Fast(Tiling::F4);
            let of_four = if RowConv::holds_many_pixels(level) { Choice::Rows } else { tiles };
            assert_eq!(cheapest(128, 1, 56), of_four, "{level:?}");
            assert_eq!(cheapest(256, 1, 28), tiles, "{level:?}");
            for (channels, size) in [(256, 56), (512, 28), (1024, 14)] {
                assert_eq!(cheapest(channels, 2, size), Choice::Rows, "{level:?} {channels}");
            }
        }
    }

    /// 14 pixels are three of them instead of four; 28 are six instead of seven, which saves too little.
    #[test]
    fn larger_tiles_must_be_worth_their_error() {
        for costs in [Costs::NARROW, Costs::SAPPHIRE_RAPIDS, Costs::ZEN_5] {
            assert_eq!(cheapest(&costs, [128, 128], 3, 28, 8), Choice::Fast(Tiling::F4), "{costs:?}");
            assert_eq!(cheapest(&costs, [256, 256], 3, 14, 8), Choice::Fast(Tiling::F5), "{costs:?}");
        }
    }
}
