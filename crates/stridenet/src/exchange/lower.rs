//! From a network's structure to steps, each with the names of the tensors that it needs.

use super::dag::{Dag, NormParts, Op};
use crate::arch::{Block, BlockShortcut, Gate, GateKind, Norm, PoolKind, Structure, Unit};
use crate::layer::EPSILON;

/// The steps of a network for images of `in_channels` channels.
pub(super) fn lower(structure: &Structure, in_channels: usize) -> Dag<String> {
    let mut dag = Dag::new();
    let mut x = dag.push("input", Op::Input(in_channels), &[]);
    for unit in &structure.stem {
        x = push_unit(&mut dag, unit, x);
    }
    for block in &structure.blocks {
        x = push_block(&mut dag, block, x);
    }
    if let Some(norm) = &structure.norm {
        x = push_norm(&mut dag, norm, x);
    }
    let head = &structure.head;
    let mean = dag.push("global_pool", Op::GlobalAvgPool, &[x]);
    push_linear(&mut dag, &head.name, [head.in_features, head.out_features], mean);
    dag
}

fn norm_parts(name: &str) -> NormParts<String> {
    let part = |part: &str| format!("{name}.{part}");
    NormParts {
        weight: part("weight"),
        bias: part("bias"),
        mean: part("running_mean"),
        var: part("running_var"),
        epsilon: EPSILON,
    }
}

fn push_unit(dag: &mut Dag<String>, unit: &Unit, x: usize) -> usize {
    let Unit { conv, norm, geometry, relu, pools } = unit;
    let weight = format!("{conv}.weight");
    let norm = norm.as_deref().map(norm_parts);
    let mut y = dag.push(conv, Op::Conv { geometry: *geometry, weight, bias: None, norm }, &[x]);
    if *relu {
        y = dag.push(format!("{conv}.relu"), Op::Relu, &[y]);
    }
    for (index, &pool) in pools.iter().enumerate() {
        y = push_pool(dag, format!("{conv}.pool{index}"), pool, y);
    }
    y
}

fn push_pool(dag: &mut Dag<String>, name: String, pool: PoolKind, x: usize) -> usize {
    let op = match pool {
        PoolKind::Max(window) => Op::MaxPool(window),
        PoolKind::Avg(window) => Op::AvgPool { window, exact: false },
        PoolKind::Blur { stride } => Op::Blur { stride },
    };
    dag.push(name, op, &[x])
}

fn push_norm(dag: &mut Dag<String>, norm: &Norm, x: usize) -> usize {
    let op = Op::Norm { channels: norm.channels, norm: norm_parts(&norm.name) };
    let y = dag.push(&norm.name, op, &[x]);
    dag.push(format!("{}.relu", norm.name), Op::Relu, &[y])
}

/// Gives a norm that alone reads the step `x` to that, where it is a convolution without one: a file does not show whose it is.
fn take_in(dag: &mut Dag<String>, norm: &Norm, x: usize) -> bool {
    match &mut dag.steps[x].op {
        Op::Conv { norm: free @ None, .. } => {
            *free = Some(norm_parts(&norm.name));
            true
        }
        _ => false,
    }
}

fn push_block(dag: &mut Dag<String>, block: &Block, x: usize) -> usize {
    // With pre-activation the main path and a shortcut that changes shape begin behind the block's own norm and ReLU.
    let alone = block.shortcut != BlockShortcut::Identity;
    let active = block.norm.as_ref().map_or(x, |norm| match alone && take_in(dag, norm, x) {
        true => dag.push(format!("{}.relu", norm.name), Op::Relu, &[x]),
        false => push_norm(dag, norm, x),
    });
    let mut y = active;
    for unit in &block.units {
        y = push_unit(dag, unit, y);
    }
    if let Some(gate) = &block.gate {
        y = push_gate(dag, gate, y);
    }
    let shortcut = match &block.shortcut {
        BlockShortcut::Identity => x,
        BlockShortcut::Projection { pool, unit } => {
            let pooled =
                pool.map_or(active, |pool| push_pool(dag, format!("{}.pool", unit.conv), pool, active));
            push_unit(dag, unit, pooled)
        }
        &BlockShortcut::ZeroPad { stride, in_channels, out_channels } => {
            let mut padded = active;
            if stride > 1 {
                padded = dag.push(format!("{}.subsample", block.name), Op::Subsample { stride }, &[padded]);
            }
            let missing = out_channels - in_channels;
            if missing > 0 {
                let op = Op::PadChannels { before: missing / 2, after: missing - missing / 2 };
                padded = dag.push(format!("{}.pad", block.name), op, &[padded]);
            }
            padded
        }
    };
    let sum = dag.push(format!("{}.add", block.name), Op::Add, &[y, shortcut]);
    match block.norm {
        Some(_) => sum,
        None => dag.push(format!("{}.relu", block.name), Op::Relu, &[sum]),
    }
}

fn push_gate(dag: &mut Dag<String>, gate: &Gate, x: usize) -> usize {
    let Gate { name, channels, kind } = gate;
    let mean = dag.push(format!("{name}.mean"), Op::GlobalAvgPool, &[x]);
    let weights = match *kind {
        GateKind::Se { squeezed } => {
            let narrow = push_linear(dag, &format!("{name}.fc1"), [*channels, squeezed], mean);
            let active = dag.push(format!("{name}.relu"), Op::Relu, &[narrow]);
            push_linear(dag, &format!("{name}.fc2"), [squeezed, *channels], active)
        }
        GateKind::Eca { kernel } => {
            let op = Op::ChannelConv { kernel, weight: format!("{name}.conv.weight") };
            dag.push(format!("{name}.conv"), op, &[mean])
        }
    };
    let gate = dag.push(format!("{name}.gate"), Op::Sigmoid, &[weights]);
    dag.push(format!("{name}.scale"), Op::Scale, &[x, gate])
}

fn push_linear(dag: &mut Dag<String>, name: &str, [inputs, outputs]: [usize; 2], x: usize) -> usize {
    let (weight, bias) = (format!("{name}.weight"), Some(format!("{name}.bias")));
    dag.push(name, Op::Linear { inputs, outputs, weight, bias }, &[x])
}
