//! A training step allocates nothing after the first one, on any of its threads.

mod allocations;

use allocations::allocations;
use std::sync::Barrier;
use stridenet::arch::{Arch, Downsample, Overrides};
use stridenet::bench::random_images;
use stridenet::kernels::loss::softmax_cross_entropy;
use stridenet::kernels::{Context, Level, Operands};
use stridenet::network::{Initialise, Network};
use stridenet::train::{AdamWOptions, Descent, LambOptions, OptimizerOptions, Rule, SgdOptions};

const STEPS: usize = 10;

/// resnet20 as it is and with pools; with a block in each stage, resnet18's stem and wide layers, gated bottlenecks of groups
/// behind a deep stem and with other gates, blurs and averages, and a pre-activation network.
fn architectures() -> Vec<Arch> {
    let mut pooled = Arch::preset("resnet20").unwrap();
    pooled.downsample = Downsample::MaxPool;
    let mut architectures = vec![Arch::preset("resnet20").unwrap(), pooled];
    let small = Overrides { img_size: Some([32, 32]), num_classes: Some(10), ..Overrides::default() };
    for name in ["resnet18", "seresnext26t_32x4d", "ecaresnet26t", "resnetblur50d", "resnetv2_50"] {
        let mut arch = Arch::preset(name).unwrap().with(&small).unwrap();
        arch.stages.iter_mut().for_each(|row| row.blocks = 1);
        architectures.push(arch);
    }
    architectures
}

fn optimizers() -> [OptimizerOptions; 3] {
    let (betas, weight_decay, decay_norm_and_bias) = ([0.9, 0.999], 0.02, false);
    let sgd = SgdOptions { momentum: 0.9, nesterov: true, weight_decay, decay_norm_and_bias };
    let adamw = AdamWOptions { betas, epsilon: 1e-8, weight_decay, decay_norm_and_bias };
    let max_grad_norm = Some(1.0);
    let lamb = LambOptions { betas, epsilon: 1e-6, weight_decay, decay_norm_and_bias, max_grad_norm };
    [Rule::Sgd(sgd), Rule::AdamW(adamw), Rule::Lamb(lamb)].map(|rule| OptimizerOptions {
        rule,
        clip_norm: Some(1.0),
        ema_decay: Some(0.99),
    })
}

/// Allocations of ten steps of two batches each, after the first step.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Of the batches, forward, loss and backward.
    batches: usize,
    /// Of the updates.
    updates: usize,
    /// Of the loss by itself.
    losses: usize,
}

/// How steps are computed.
#[derive(Debug, Clone, Copy)]
struct Way {
    operands: Operands,
    threads: usize,
    recompute: bool,
}

fn count(arch: &Arch, options: OptimizerOptions, way: Way) -> Counts {
    let Way { operands, threads, recompute } = way;
    let cx = Context::new(Level::detect(), threads);
    let mut network = Network::new(arch, arch.img_size, cx.level(), Initialise::default()).unwrap();
    network.set_operands(operands);
    network.set_recompute(recompute);
    let mut descent = Descent::new(&network, options);
    // Every thread is alive once all of them have met.
    let all = Barrier::new(threads);
    cx.pool().run(threads, |_| {
        all.wait();
    });
    let mut images = Some(random_images([4, arch.img_size[0], arch.img_size[1], 3]));
    let mut gradient = vec![0.0; 600 * 10];
    let (logits, labels) = (vec![0.5; 600 * 10], vec![3; 600]);
    let mut counts = Counts::default();
    for step in 0..STEPS + 1 {
        let batches = allocations(|| {
            for _ in 0..2 {
                let batch = images.take().unwrap();
                descent.accumulate(&cx, &mut network, batch, &[1, 0, 3, 2], 0.1).unwrap();
                images = descent.take_images();
            }
        });
        let updates = allocations(|| {
            descent.update(&cx, &mut network, 0.01);
        });
        let losses = allocations(|| {
            softmax_cross_entropy(&cx, 10, &logits, &labels, 0.1, &mut gradient);
        });
        if step > 0 {
            counts.batches += batches;
            counts.updates += updates;
            counts.losses += losses;
        }
    }
    counts
}

/// Each architecture with an optimizer and several numbers of threads, computing blocks again and not.
#[test]
fn steps_allocate_nothing_after_the_first() {
    assert!(allocations(|| drop(std::hint::black_box(vec![0u8; 100]))) > 0, "the counter counts");
    for (arch, options) in architectures().iter().zip(optimizers().into_iter().cycle()) {
        let way = Way { operands: Operands::F32, threads: 1, recompute: false };
        let threads = Way { threads: 3, ..way };
        let recomputed = Way { recompute: true, ..threads };
        let mixed = (arch.name == "resnetblur50d").then_some(Way { operands: Operands::Bf16, ..threads });
        for way in [way, threads, recomputed].into_iter().chain(mixed) {
            assert_eq!(count(arch, options, way), Counts::default(), "{}, {way:?}", arch.name);
        }
    }
}
