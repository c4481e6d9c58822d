//! From a network to segments of steps.

use super::StepInfo;
use super::fold::{Folded, fold};
use super::kernel::Kernel;
use super::places::{Access, Places, Reads, Value};
use super::segment::{Operation, Segment, Step};
use crate::algorithm::{Choice, Chooser, Estimate, candidates};
use crate::arch::{self, Arch, ArchError, BlockShortcut, PoolKind};
use crate::kernels::Context;
use crate::kernels::conv::ConvGeometry;
use crate::kernels::gate::Extent;
use crate::kernels::pool::{LinearPool, MaxPool};
use crate::layer::{BatchNorm, Block, Gate, GateKind, Linear, Shortcut, Unit};
use crate::network::Layers;
use std::borrow::Borrow;

/// Bytes of activations that a group of images may keep busy: what stays in a core's L2 cache.
const GROUP_BYTES: usize = 1 << 20;

/// Bytes of a layer's packed weights beyond which the whole batch goes through the layer at once, so that its weights are
/// read once.
const RESIDENT_BYTES: f64 = 3e6;

/// A step whose activations have no places yet.
struct Draft {
    operation: Operation,
    access: Access,
    index: usize,
}

/// A convolution that is to be compiled.
struct Convolution<'a> {
    name: &'a str,
    geometry: ConvGeometry,
    /// Size `[height, width]` of its input.
    input: [usize; 2],
    folded: Folded<'a>,
    relu: bool,
    /// A max pool of its output.
    pool: Option<MaxPool>,
}

/// A stage that is being compiled.
struct Stage {
    /// Values an image of each activation; the first is the input.
    values: Vec<usize>,
    drafts: Vec<Draft>,
    /// Bytes of the largest packed weights.
    weight_bytes: f64,
}

/// Compiles one layer after the other.
pub(super) struct Compiler<'a> {
    cx: &'a Context,
    batch: usize,
    choose: &'a Chooser<'a>,
    infos: Vec<StepInfo>,
    segments: Vec<Segment>,
    /// Where weights are folded, one layer after the other.
    space: Vec<f32>,
}

impl<'a> Compiler<'a> {
    pub(super) fn new(cx: &'a Context, batch: usize, choose: &'a Chooser<'a>) -> Self {
        Compiler { cx, batch, choose, infos: Vec::new(), segments: Vec::new(), space: Vec::new() }
    }

    /// Compiles the layers of `arch` for images of `size`. Layers that are given by value are freed one after the other.
    pub(super) fn network<U, B>(
        mut self,
        arch: &Arch,
        mut size: [usize; 2],
        layers: Layers<U, B, impl Borrow<BatchNorm>, impl Borrow<Linear>>,
    ) -> Result<(Vec<Segment>, Vec<StepInfo>), ArchError>
    where
        U: Iterator<Item: Borrow<Unit>>,
        B: Iterator<Item: Borrow<Block>>,
    {
        let structure = arch.structure()?;
        let mut stage = Stage::new(size[0] * size[1] * arch.in_channels);
        let mut value = Value(0);
        for (description, unit) in structure.stem.iter().zip(layers.stem) {
            value = self.unit(&mut stage, value.into(), description, unit.borrow(), &mut size)?;
        }
        let mut blocks = structure.blocks.iter().peekable();
        for layer in layers.blocks {
            let Some(block) = blocks.next() else { break };
            value = self.block(&mut stage, value, block, layer.borrow(), &mut size)?;
            if blocks.peek().is_some_and(|next| next.stage != block.stage) {
                let next = Stage::new(stage.values[value.0]);
                self.finish(std::mem::replace(&mut stage, next), value);
                value = Value(0);
            }
        }
        if let Some(norm) = layers.norm {
            value = self.norm(&mut stage, value, norm.borrow(), size);
        }
        let value = self.head(&mut stage, value, &structure.head, layers.linear.borrow(), size)?;
        self.finish(stage, value);
        Ok((self.segments, self.infos))
    }

    /// Adds a step and returns its output.
    fn push(
        &mut self,
        stage: &mut Stage,
        operation: Operation,
        reads: impl Into<Reads>,
        len: usize,
        info: StepInfo,
    ) -> Value {
        let output = Value(stage.values.len());
        stage.values.push(len);
        let access = Access { reads: reads.into(), output };
        stage.drafts.push(Draft { operation, access, index: self.infos.len() });
        self.infos.push(info);
        output
    }

    fn conv(
        &mut self,
        stage: &mut Stage,
        conv: Convolution,
        reads: impl Into<Reads>,
    ) -> Result<Value, ArchError> {
        let Convolution { name, geometry, input, folded, relu, pool } = conv;
        let at = || ArchError::at(name);
        let output = geometry.output_size(input).map_err(at())?;
        let candidates = candidates(self.cx.level(), &geometry, input, self.batch);
        let tuned = (self.choose)(name, &candidates);
        let best = candidates.iter().find(|candidate| tuned.is_none_or(|tuned| candidate.choice == tuned));
        let best = *best.or(candidates.first()).expect("the direct sum is always a candidate");
        let kernel = Kernel::new(self.cx, best.choice, geometry, input, &folded).map_err(at())?;
        let after = pool.as_ref().map_or(output, MaxPool::output);
        let fuses = pool.is_some();
        let (kernel, pool) = kernel.pooled(pool);
        let fused = fuses && pool.is_none();
        stage.weight_bytes = stage.weight_bytes.max(best.weight_bytes);
        let direct = candidates.iter().find(|candidate| candidate.choice == Choice::Direct);
        let macs = direct.map_or(best.macs, |direct| direct.macs) / self.batch as f64;
        let pixels = |[height, width]: [usize; 2]| [height, width, geometry.out_channels];
        let info = StepInfo {
            name: name.to_owned(),
            algorithm: best.choice.to_string(),
            reason: reason(&candidates, tuned == Some(best.choice)),
            input: [input[0], input[1], geometry.in_channels],
            output: if fused { pixels(after) } else { pixels(output) },
            max_pool: fused,
            kernel: geometry.kernel,
            stride: geometry.stride,
            groups: geometry.groups,
            macs: macs as u64,
            products: (best.macs / self.batch as f64) as u64,
            weight_bytes: best.weight_bytes as u64,
        };
        let operation = Operation::Conv { kernel: Box::new(kernel), bias: folded.bias, relu };
        let len = info.output.iter().product();
        let value = self.push(stage, operation, reads, len, info);
        let Some(pool) = pool else { return Ok(value) };
        let channels = geometry.out_channels;
        let info = StepInfo::pool(format!("{name}.pool"), "max pool", output, after, channels);
        let operation = Operation::MaxPool { pool, channels };
        Ok(self.push(stage, operation, value, after[0] * after[1] * channels, info))
    }

    fn unit(
        &mut self,
        stage: &mut Stage,
        reads: Reads,
        description: &arch::Unit,
        unit: &Unit,
        size: &mut [usize; 2],
    ) -> Result<Value, ArchError> {
        let geometry = description.geometry;
        let relu = description.relu || reads.residual.is_some() && description.norm.is_some();
        let name = &description.conv;
        let mut space = std::mem::take(&mut self.space);
        let folded = fold(self.cx, unit, &mut space);
        let before = geometry.output_size(*size).map_err(ArchError::at(name))?;
        // A max pool at once behind the convolution can be a part of its step.
        let (first, pools) = match description.pools.split_first() {
            Some((PoolKind::Max(window), rest)) => {
                (Some(MaxPool::new([*window; 2], before).map_err(ArchError::at(name))?), rest)
            }
            _ => (None, &description.pools[..]),
        };
        let mut after = first.as_ref().map_or(before, MaxPool::output);
        let conv = Convolution { name, geometry, input: *size, folded, relu, pool: first };
        let mut value = self.conv(stage, conv, reads)?;
        self.space = space;
        for &kind in pools {
            value = self.pool(stage, value, kind, name, &mut after, geometry.out_channels)?;
        }
        *size = after;
        Ok(value)
    }

    /// A pool of its own behind `name`, for a feature map of `size`, which becomes its output's.
    fn pool(
        &mut self,
        stage: &mut Stage,
        input: Value,
        kind: PoolKind,
        name: &str,
        size: &mut [usize; 2],
        channels: usize,
    ) -> Result<Value, ArchError> {
        let (pool, algorithm) = match kind {
            PoolKind::Max(window) => {
                let pool = MaxPool::new([window; 2], *size).map_err(ArchError::at(name))?;
                (Operation::MaxPool { pool, channels }, "max pool")
            }
            PoolKind::Avg(window) => {
                let pool = LinearPool::average(*size, channels, window).map_err(ArchError::at(name))?;
                (Operation::LinearPool(pool), "average pool")
            }
            PoolKind::Blur { stride } => {
                let pool = LinearPool::blur(*size, channels, stride).map_err(ArchError::at(name))?;
                (Operation::LinearPool(pool), "blur pool")
            }
        };
        let before = *size;
        *size = kind.output(before).map_err(ArchError::at(name))?;
        let info = StepInfo::pool(format!("{name}.pool"), algorithm, before, *size, channels);
        Ok(self.push(stage, pool, input, size[0] * size[1] * channels, info))
    }

    /// A batch norm and a ReLU of their own.
    fn norm(&mut self, stage: &mut Stage, input: Value, norm: &BatchNorm, size: [usize; 2]) -> Value {
        let (scale, shift): (Vec<f32>, Vec<f32>) =
            norm.affine().map(|(scale, shift)| (scale as f32, shift as f32)).unzip();
        let channels = scale.len();
        let info = StepInfo::pool(norm.name.clone(), "batch norm, ReLU", size, size, channels);
        self.push(stage, Operation::Norm { scale, shift }, input, size[0] * size[1] * channels, info)
    }

    fn block(
        &mut self,
        stage: &mut Stage,
        input: Value,
        block: &arch::Block,
        layer: &Block,
        size: &mut [usize; 2],
    ) -> Result<Value, ArchError> {
        let before = *size;
        let mut from = input;
        if let Some(norm) = &layer.norm {
            from = self.norm(stage, input, norm, before);
        }
        // The shortcut's output takes no memory until it is added.
        let (last, inputs) = (layer.units.len() - 1, [input, from]);
        let mut value = from;
        for (index, (description, unit)) in block.units.iter().zip(&layer.units).enumerate() {
            let residual = match index == last && block.gate.is_none() {
                true => Some(self.shortcut(stage, inputs, block, &layer.shortcut, before)?),
                false => None,
            };
            value = self.unit(stage, Reads { residual, ..value.into() }, description, unit, size)?;
        }
        match (&block.gate, &layer.gate) {
            (Some(description), Some(gate)) => {
                let beside = self.shortcut(stage, inputs, block, &layer.shortcut, before)?;
                self.gate(stage, [value, beside], description, gate, *size)
            }
            _ => Ok(value),
        }
    }

    /// What is added to a block's main path: of its input, or of what its units read.
    fn shortcut(
        &mut self,
        stage: &mut Stage,
        [input, mut from]: [Value; 2],
        block: &arch::Block,
        shortcut: &Shortcut,
        mut size: [usize; 2],
    ) -> Result<Value, ArchError> {
        match (&block.shortcut, shortcut) {
            (BlockShortcut::Projection { pool, unit: description }, Shortcut::Projection(_, unit)) => {
                if let Some(pool) = *pool {
                    let name = format!("{}.downsample", block.name);
                    from = self.pool(stage, from, pool, &name, &mut size, block.in_channels)?;
                }
                self.unit(stage, from.into(), description, unit, &mut size)
            }
            (&BlockShortcut::ZeroPad { stride, in_channels, out_channels }, _) => {
                let pool = LinearPool::subsample(size, [in_channels, out_channels], stride)
                    .map_err(ArchError::at(&block.name))?;
                let after = pool.output();
                let info = StepInfo::pool(
                    format!("{}.shortcut", block.name),
                    "subsample, pad with zero channels",
                    size,
                    after,
                    out_channels,
                );
                let len = after[0] * after[1] * out_channels;
                Ok(self.push(stage, Operation::LinearPool(pool), from, len, info))
            }
            _ => Ok(input),
        }
    }

    /// A gate's weights, their product with the first value, and the sum with the second one.
    fn gate(
        &mut self,
        stage: &mut Stage,
        [value, beside]: [Value; 2],
        description: &arch::Gate,
        gate: &Gate,
        size: [usize; 2],
    ) -> Result<Value, ArchError> {
        let arch::Gate { name, channels, .. } = description;
        let (channels, one) = (*channels, [1, 1]);
        let pooled = gate.pool.clone();
        let info = StepInfo::pool(format!("{name}.mean"), "global average pool", size, one, channels);
        let mut weights = self.push(stage, Operation::LinearPool(pooled), value, channels, info);
        let taps = match &gate.kind {
            GateKind::Eca(taps) => taps.value.clone(),
            GateKind::Se(layers) => {
                for (layer, relu) in layers.iter().zip([true, false]) {
                    weights = self.linear(stage, weights, layer, relu)?;
                }
                vec![1.0]
            }
        };
        let info = StepInfo::pool(format!("{name}.sigmoid"), "sigmoid of channels", one, one, channels);
        weights = self.push(stage, Operation::Sigmoid { taps, channels }, weights, channels, info);
        let extent = Extent { pixels: size[0] * size[1], channels };
        let reads = Reads { input: value, weights: Some(weights), residual: Some(beside) };
        let info = StepInfo::pool(format!("{name}.gate"), "product, residual, ReLU", size, size, channels);
        Ok(self.push(stage, Operation::Gate { extent }, reads, extent.pixels * channels, info))
    }

    /// A linear layer of one pixel.
    fn linear(
        &mut self,
        stage: &mut Stage,
        input: Value,
        layer: &Linear,
        relu: bool,
    ) -> Result<Value, ArchError> {
        let name = layer.weight.name.trim_end_matches(".weight");
        let folded = Folded { weight: &layer.weight.value, bias: layer.bias.value.clone() };
        let geometry = ConvGeometry::square(layer.weight.shape[1], layer.weight.shape[0], 1, 1);
        self.conv(stage, Convolution { name, geometry, input: [1, 1], folded, relu, pool: None }, input)
    }

    fn head(
        &mut self,
        stage: &mut Stage,
        input: Value,
        head: &arch::Head,
        linear: &Linear,
        size: [usize; 2],
    ) -> Result<Value, ArchError> {
        let features = head.in_features;
        let pool = LinearPool::global_average(size, features).map_err(ArchError::at(&head.name))?;
        let info = StepInfo::pool("global_pool".to_owned(), "global average pool", size, [1, 1], features);
        let pooled = self.push(stage, Operation::LinearPool(pool), input, features, info);
        self.linear(stage, pooled, linear, false)
    }

    /// Gives a stage's activations places and closes it with `output` as its result.
    fn finish(&mut self, stage: Stage, output: Value) {
        let Stage { values, drafts, weight_bytes } = stage;
        let accesses: Vec<Access> = drafts.iter().map(|draft| draft.access).collect();
        let places = Places::new(&values, &accesses, output);
        let busy: usize = places.slots.iter().sum::<usize>() + values[0] + values[output.0];
        let group = (weight_bytes <= RESIDENT_BYTES).then(|| (GROUP_BYTES / (4 * busy)).clamp(1, self.batch));
        let step = |Draft { operation, access: Access { reads, output }, index }| Step {
            operation,
            input: places.of(reads.input),
            weights: reads.weights.map(|value| places.of(value)),
            residual: reads.residual.map(|value| places.of(value)),
            output: places.of(output),
            index,
        };
        let steps = drafts.into_iter().map(step).collect();
        let (input_len, output_len) = (values[0], values[output.0]);
        self.segments.push(Segment { steps, slots: places.slots, group, input_len, output_len });
    }
}

impl Stage {
    fn new(input_len: usize) -> Self {
        Stage { values: vec![input_len], drafts: Vec::new(), weight_bytes: 0.0 }
    }
}

/// Why an algorithm was taken, in a few words.
fn reason(candidates: &[Estimate], tuned: bool) -> String {
    match candidates {
        _ if tuned => "measured on this machine".to_owned(),
        [best, second, ..] => {
            format!("estimated {:.2} x faster than {}", second.cost / best.cost, second.choice)
        }
        _ => "the only algorithm for this shape".to_owned(),
    }
}
