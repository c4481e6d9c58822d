//! Reads the architecture off a file's steps. What is read need not be right: it is compared with the file afterwards.

use super::dag::{Dag, Op, Step};
use crate::arch::{
    Arch, Attention, BlockKind, Downsample, GateKind, Order, PoolKind, Shortcut, Stage, Stem, StemPool,
    StrideOn, preset_names,
};
use crate::kernels::conv::{AverageWindow, ConvGeometry, Edge};

/// What a network is called that none of the presets is.
const UNNAMED: &str = "resnet";
/// Reductions of squeeze and excitation that are tried.
const REDUCTIONS: [usize; 8] = [16, 4, 8, 2, 1, 32, 12, 24];

/// A block as the file has it.
struct Seen<'d> {
    /// The convolutions of the main path.
    convs: Vec<ConvGeometry>,
    /// The pool of the main path, and how many convolutions come before it.
    pool: Option<(usize, PoolKind)>,
    gate: Option<GateKind>,
    /// The convolution of the shortcut.
    projection: Option<ConvGeometry>,
    shortcut_pool: Option<AverageWindow>,
    /// Whether the shortcut pads channels or subsamples pixels.
    padded: bool,
    /// The addition.
    name: &'d str,
}

/// The architecture whose steps the file's seem to be, for images of `size` and `classes` logits.
pub(super) fn observe<T>(dag: &Dag<T>, size: Option<[usize; 2]>, classes: usize) -> Result<Arch, String> {
    let steps = &dag.steps;
    let (mut fork, mut blocks) = (None, Vec::new());
    // Every step belongs to one block; a file whose paths overlap must not make us walk them again and again.
    let mut walked = 0;
    for (index, step) in steps.iter().enumerate() {
        if let (Op::Add, &[a, b]) = (&step.op, &step.inputs[..]) {
            let (block, start) = seen(dag, index, [a, b], &mut walked)?;
            fork.get_or_insert(start);
            blocks.push(block);
        }
    }
    let (Some(fork), Some(first)) = (fork, blocks.first()) else {
        return Err("it adds nothing to a shortcut, expected residual blocks".to_owned());
    };
    let block = match first.convs.len() {
        2 => BlockKind::Basic,
        3 => BlockKind::Bottleneck,
        other => return Err(format!("{} adds {other} convolutions, expected 2 or 3", first.name)),
    };
    let pre = steps.iter().any(|step| matches!(step.op, Op::Norm { .. }));
    let mut arch = Arch {
        name: UNNAMED.to_owned(),
        num_classes: classes,
        order: if pre { Order::Pre } else { Order::Post },
        block,
        ..template()
    };
    observe_stem(dag, fork, &mut arch)?;
    arch.img_size = size.unwrap_or(if arch.stem == Stem::Cifar { [32; 2] } else { [224; 2] });
    observe_stages(&blocks, &mut arch);
    observe_choices(&blocks, &mut arch);
    for name in preset_names() {
        let Ok(preset) = Arch::preset(name) else { continue };
        let (in_channels, img_size) = (arch.in_channels, arch.img_size);
        let same = Arch { num_classes: classes, in_channels, img_size, name: UNNAMED.to_owned(), ..preset };
        if same == arch {
            arch.name = name.to_owned();
            break;
        }
    }
    Ok(arch)
}

/// A plain network, every choice at its default.
fn template() -> Arch {
    Arch {
        name: UNNAMED.to_owned(),
        in_channels: 3,
        num_classes: 1,
        img_size: [224; 2],
        stem: Stem::ImageNet,
        stem_width: 64,
        block: BlockKind::Basic,
        stages: Vec::new(),
        stem_pool: StemPool::default(),
        order: Order::default(),
        groups: 1,
        base_width: 64,
        reduce_first: 1,
        stride_on: StrideOn::default(),
        shortcut: Shortcut::default(),
        down_kernel: 1,
        downsample: Downsample::default(),
        attention: Attention::default(),
        se_reduction: 16,
        output_stride: None,
    }
}

fn pool_kind<T>(op: &Op<T>) -> Option<PoolKind> {
    match *op {
        Op::MaxPool(window) => Some(PoolKind::Max(window)),
        Op::AvgPool { window, .. } => Some(PoolKind::Avg(window)),
        Op::Blur { stride } => Some(PoolKind::Blur { stride }),
        _ => None,
    }
}

/// The block that ends with the addition of two steps, and the step where its paths part.
fn seen<'d, T>(
    dag: &'d Dag<T>,
    add: usize,
    terms: [usize; 2],
    walked: &mut usize,
) -> Result<(Seen<'d>, usize), String> {
    let steps = &dag.steps;
    let name = steps[add].name.as_str();
    let (mut paths, mut ends) = ([Vec::new(), Vec::new()], terms);
    // The later one of the two goes back, until both are the same.
    while ends[0] != ends[1] {
        let later = usize::from(ends[1] > ends[0]);
        let step = &steps[ends[later]];
        let Some(&before) = step.inputs.first().filter(|_| !matches!(step.op, Op::Add)) else {
            return Err(format!(
                "the terms of {name} do not come from one place, expected a block and its shortcut"
            ));
        };
        *walked += 1;
        if *walked > steps.len() {
            return Err(format!(
                "the paths that {name} joins are parts of others, expected blocks one after the other"
            ));
        }
        paths[later].push(step);
        ends[later] = before;
    }
    let convs = |path: &[&Step<T>]| path.iter().filter(|step| matches!(step.op, Op::Conv { .. })).count();
    let [first, second] = paths;
    let (mut main, mut shortcut) =
        if convs(&first) >= convs(&second) { (first, second) } else { (second, first) };
    main.reverse();
    shortcut.reverse();
    let mut block = Seen {
        convs: Vec::new(),
        pool: None,
        gate: None,
        projection: None,
        shortcut_pool: None,
        padded: false,
        name,
    };
    for step in main {
        match &step.op {
            Op::Conv { geometry, .. } => block.convs.push(*geometry),
            Op::Scale => block.gate = gate(dag, step.inputs[1]),
            op => {
                if let Some(pool) = pool_kind(op) {
                    block.pool = Some((block.convs.len(), pool));
                }
            }
        }
    }
    for step in shortcut {
        match step.op {
            Op::Conv { geometry, .. } => block.projection = Some(geometry),
            Op::AvgPool { window, .. } => block.shortcut_pool = Some(window),
            Op::Subsample { .. } | Op::PadChannels { .. } => block.padded = true,
            _ => {}
        }
    }
    Ok((block, ends[0]))
}

/// How a gate's weights follow from the means.
fn gate<T>(dag: &Dag<T>, sigmoid: usize) -> Option<GateKind> {
    let layer = &dag.steps[*dag.steps[sigmoid].inputs.first()?];
    match layer.op {
        Op::Linear { inputs, .. } => Some(GateKind::Se { squeezed: inputs }),
        Op::ChannelConv { kernel, .. } => Some(GateKind::Eca { kernel }),
        _ => None,
    }
}

/// What stands before the first block, which begins at `fork`.
fn observe_stem<T>(dag: &Dag<T>, fork: usize, arch: &mut Arch) -> Result<(), String> {
    let (mut convs, mut pools, mut at) = (Vec::new(), Vec::new(), fork);
    loop {
        let step = &dag.steps[at];
        match step.op {
            Op::Input(channels) => arch.in_channels = channels,
            Op::Conv { geometry, .. } => convs.push(geometry),
            ref op => pools.extend(pool_kind(op)),
        }
        match step.inputs.first() {
            Some(&before) => at = before,
            None => break,
        }
    }
    convs.reverse();
    pools.reverse();
    let strided = |conv: &ConvGeometry| conv.kernel == [3, 3] && conv.stride == [2, 2];
    if matches!(convs.len(), 2 | 4) && convs.last().is_some_and(strided) {
        arch.stem_pool = StemPool::Conv;
        convs.pop();
    }
    arch.stem_width = convs.last().map_or(0, |conv| conv.out_channels);
    arch.stem = match convs[..] {
        [first] if first.kernel == [3, 3] => Stem::Cifar,
        [_] => Stem::ImageNet,
        [first, _, _] if first.out_channels == 3 * arch.stem_width / 8 => Stem::DeepTiered,
        [_, _, _] => Stem::Deep,
        _ => return Err(format!("its stem has {} convolutions, expected 1 or 3", convs.len())),
    };
    arch.downsample = match pools[..] {
        [PoolKind::Avg(_)] => Downsample::AvgPool,
        [PoolKind::Max(_), PoolKind::Blur { .. }] => Downsample::BlurPool,
        _ => Downsample::Strided,
    };
    Ok(())
}

/// The stride of a block, in both paths.
fn stride(block: &Seen) -> usize {
    let pooled = block.pool.map_or(1, |(_, pool)| pool.window().stride);
    block.convs.iter().map(|conv| conv.stride[0]).fold(pooled, usize::saturating_mul)
}

fn observe_stages(blocks: &[Seen], arch: &mut Arch) {
    let (mut total, mut dilation) = (if arch.stem == Stem::Cifar { 1usize } else { 4 }, 1);
    let mut first = 0;
    while first < blocks.len() {
        let begins = |block: &Seen| block.projection.is_some() || block.padded || stride(block) != 1;
        let length = blocks[first + 1..].iter().take_while(|block| !begins(block)).count() + 1;
        let (block, last) = (&blocks[first], &blocks[first + length - 1]);
        let out = block.convs.last().map_or(0, |conv| conv.out_channels);
        let mut nominal = stride(block);
        // Beyond the largest stride, dilation takes its place; the block that begins it still has the one before.
        let dilated = last.convs.iter().map(|conv| conv.dilation[0]).max().unwrap_or(1);
        let pooled = block.shortcut_pool.is_some_and(|window| window.edge == Edge::Zeros);
        if nominal == 1 && (dilated > dilation || pooled) {
            nominal = if dilated > dilation { dilated / dilation } else { 2 };
            arch.output_stride.get_or_insert(total);
            dilation *= nominal;
        } else {
            total = total.saturating_mul(nominal);
        }
        arch.stages.push(Stage { blocks: length, width: out / arch.block.expansion(), stride: nominal });
        first += length;
    }
}

fn observe_choices(blocks: &[Seen], arch: &mut Arch) {
    let bottleneck = arch.block == BlockKind::Bottleneck;
    // The narrowest and widest base width that gives every stage's inner width.
    let (mut low, mut high) = (1, usize::MAX);
    for block in blocks {
        let &[first, second, ..] = &block.convs[..] else { continue };
        if bottleneck {
            arch.groups = second.groups;
            let (width, inner) = (
                block.convs.last().map_or(0, |conv| conv.out_channels) / 4,
                second.out_channels / second.groups,
            );
            if width > 0 {
                low = low.max((inner * 64).div_ceil(width));
                high = high.min(((inner + 1) * 64 - 1) / width);
            }
        }
        arch.reduce_first = (second.out_channels / first.out_channels).max(1);
        match block.gate {
            Some(GateKind::Se { .. }) => arch.attention = Attention::Se,
            Some(GateKind::Eca { .. }) => arch.attention = Attention::Eca,
            None => {}
        }
        if block.padded {
            arch.shortcut = Shortcut::ZeroPad;
        }
        if block.shortcut_pool.is_some() {
            arch.shortcut = Shortcut::AvgProjection;
        }
        if let Some(conv) = block.projection {
            arch.down_kernel = arch.down_kernel.max(conv.kernel[0]);
        }
        if bottleneck && (first.stride != [1, 1] || matches!(block.pool, Some((1, _)))) {
            arch.stride_on = StrideOn::Conv1x1;
        }
        match block.pool {
            Some((_, PoolKind::Max(_))) => arch.downsample = Downsample::MaxPool,
            Some((_, PoolKind::Avg(_))) => arch.downsample = Downsample::AvgPool,
            Some((_, PoolKind::Blur { .. })) => arch.downsample = Downsample::BlurPool,
            None => {}
        }
    }
    if bottleneck && !(low..=high).contains(&64) {
        arch.base_width = low;
    }
    if arch.attention == Attention::Se {
        let gates: Vec<Option<GateKind>> = blocks.iter().map(|block| block.gate).collect();
        let fits = |&reduction: &usize| {
            let tried = Arch { se_reduction: reduction, ..arch.clone() };
            let structure = tried.structure().ok();
            structure.is_some_and(|structure| {
                structure
                    .blocks
                    .iter()
                    .map(|block| block.gate.as_ref().map(|gate| gate.kind))
                    .eq(gates.iter().copied())
            })
        };
        arch.se_reduction = REDUCTIONS.into_iter().find(fits).unwrap_or(16);
    }
}
