//! A plan's runs allocate nothing after the first one, on any of their threads.

mod allocations;

use allocations::allocations;
use std::sync::{Arc, Barrier};
use stridenet::Tensor;
use stridenet::arch::{Arch, Downsample};
use stridenet::kernels::{Context, Level};
use stridenet::network::{Initialise, Network};
use stridenet::plan::{Plan, PlanOptions};

/// resnet20's and resnet18's layers, with images in groups and pools, and with weights that threads share out.
fn architectures() -> [Arch; 3] {
    let resnet20 = Arch::preset("resnet20").unwrap();
    let mut pooled = resnet20.clone();
    pooled.downsample = Downsample::MaxPool;
    let mut resnet18 = Arch::preset("resnet18").unwrap();
    resnet18.img_size = [64, 64];
    [resnet20, pooled, resnet18]
}

// One test alone: another one's allocations would be counted.
#[test]
fn runs_allocate_nothing_after_the_first() {
    const BATCH: usize = 12;
    assert!(allocations(|| drop(std::hint::black_box(vec![0u8; 100]))) > 0, "the counter counts");
    for arch in architectures() {
        for threads in [1, 2, 3] {
            let context = Arc::new(Context::new(Level::detect(), threads));
            let network = Network::new(&arch, arch.img_size, context.level(), Initialise::default()).unwrap();
            let options = PlanOptions { batch: BATCH, context: Arc::clone(&context), tuning: None };
            let plan = Arc::new(Plan::compile(&network, options).unwrap());
            let mut session = plan.session(Arc::clone(&context));
            let [height, width, channels] = plan.input();
            let mut batches = [1, 2, 3, 5, BATCH - 1, BATCH].map(|count| {
                let logits = Tensor::zeros([count, 1, 1, plan.classes()]);
                (Tensor::zeros([count, height, width, channels]), logits)
            });
            // Every thread is alive once all of them have met.
            let all = Barrier::new(threads);
            context.pool().run(threads, |_| {
                all.wait();
            });
            let (images, logits) = &mut batches[0];
            plan.run(images, logits).unwrap();
            let found = allocations(|| {
                for (images, logits) in &mut batches {
                    for _ in 0..3 {
                        plan.run(images, logits).unwrap();
                        session.run(images, logits).unwrap();
                    }
                }
            });
            assert_eq!(found, 0, "{} with {threads} threads", arch.name);
        }
    }
}
