//! A training step allocates nothing after the first ones, on any of its threads: the loss and the optimizer today.

mod allocations;

use allocations::allocations;
use std::sync::{Barrier, Mutex, PoisonError};
use stridenet::arch::{Arch, Downsample, Overrides};
use stridenet::bench::random_images;
use stridenet::kernels::loss::softmax_cross_entropy;
use stridenet::kernels::{Context, Level};
use stridenet::network::{Initialise, Network};
use stridenet::train::{AdamWOptions, Descent, LambOptions, OptimizerOptions, Rule, SgdOptions};

const STEPS: usize = 10;

/// One test at a time: another one's allocations would be counted.
static ALONE: Mutex<()> = Mutex::new(());

/// resnet20 as it is and with pools, and resnet18's stem and wide layers.
fn architectures() -> [Arch; 3] {
    let preset = |name| Arch::preset(name).unwrap();
    let changes = Overrides { img_size: Some([64, 64]), num_classes: Some(10), ..Overrides::default() };
    let mut pooled = preset("resnet20");
    pooled.downsample = Downsample::MaxPool;
    [preset("resnet20"), pooled, preset("resnet18").with(&changes).unwrap()]
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

/// Allocations of ten steps of two batches each, after two steps.
#[derive(Debug, Default)]
struct Counts {
    /// Of the batches, forward, loss and backward.
    batches: usize,
    /// Of the updates.
    updates: usize,
    /// Of the loss by itself.
    losses: usize,
}

fn count(arch: &Arch, options: OptimizerOptions, threads: usize) -> Counts {
    let cx = Context::new(Level::detect(), threads);
    let mut network = Network::new(arch, arch.img_size, cx.level(), Initialise::default()).unwrap();
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
    for step in 0..STEPS + 2 {
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
        if step >= 2 {
            counts.batches += batches;
            counts.updates += updates;
            counts.losses += losses;
        }
    }
    counts
}

/// Checks each architecture with an optimizer of its own and several numbers of threads.
fn check(none: impl Fn(&Counts) -> bool) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(allocations(|| drop(std::hint::black_box(vec![0u8; 100]))) > 0, "the counter counts");
    for (arch, options) in architectures().iter().zip(optimizers()) {
        for threads in [1, 3] {
            let counts = count(arch, options, threads);
            assert!(none(&counts), "{} with {threads} threads: {counts:?}", arch.name);
        }
    }
}

#[test]
fn losses_and_updates_allocate_nothing_after_the_first() {
    check(|counts| counts.updates == 0 && counts.losses == 0);
}

#[test]
#[ignore = "layers still allocate: batch norms' vectors and partial sums, blocks' lists of units, winners of max pools"]
fn steps_allocate_nothing_after_the_first() {
    check(|counts| counts.batches == 0 && counts.updates == 0);
}
