//! What a run's bits depend on, and what it refuses.

use super::networks::{architectures, network};
use super::{logits, part};
use crate::Tensor;
use crate::arch::{Arch, Stage};
use crate::bench::random_images;
use crate::kernels::{Context, Level};
use crate::plan::{Plan, PlanOptions};
use std::sync::Arc;

/// Largest batch of the plans: with one to three threads some images go through early stages in groups and others remain.
const BATCH: usize = 13;

fn compiled(arch: &Arch, level: Level, threads: usize) -> Plan {
    let context = Arc::new(Context::new(level, threads));
    let network = network(arch, &context, 1);
    Plan::compile(&network, PlanOptions { batch: BATCH, context, tuning: None }).unwrap()
}

/// Some of the architectures: images in groups, pools, groups of channels, and weights that threads share out.
fn some() -> Vec<Arch> {
    let names = [
        "basic",
        "basic, avg-pool, zero-pad",
        "bottleneck, v1, max-pool",
        "bottleneck, wide groups, imagenet stem",
        "basic, heavy weights",
    ];
    let some: Vec<Arch> = architectures().into_iter().filter(|arch| names.contains(&&*arch.name)).collect();
    assert_eq!(some.len(), names.len());
    some
}

fn images(arch: &Arch, count: usize) -> Tensor {
    random_images([count, arch.img_size[0], arch.img_size[1], arch.in_channels])
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Small weights that share a large page, and some that fill pages of their own.
#[test]
fn plans_settle_while_they_run() {
    let mut arch = architectures().into_iter().find(|arch| arch.name == "basic").unwrap();
    arch.stages.push(Stage { blocks: 1, width: 256, stride: 2 });
    let (plan, x) = (compiled(&arch, Level::detect(), 2), images(&arch, BATCH));
    assert!(plan.steps().iter().any(|step| step.weight_bytes > 4 << 20), "{:?}", plan.steps());
    let expected = bits(&logits(&plan, &x));
    std::thread::scope(|scope| {
        scope.spawn(|| plan.settle());
        for _ in 0..5 {
            assert_eq!(bits(&logits(&plan, &x)), expected);
        }
    });
    plan.settle();
    assert_eq!(bits(&logits(&plan, &x)), expected);
}

#[test]
fn bits_depend_neither_on_the_threads_nor_on_the_batch() {
    for arch in some() {
        let x = images(&arch, BATCH);
        for level in Level::available() {
            let mut expected: Option<Vec<u32>> = None;
            for threads in [1, 2, 3, 8] {
                let plan = compiled(&arch, level, threads);
                let all = bits(&logits(&plan, &x));
                let what = format!("{}, {}, {threads} threads", arch.name, level.name());
                assert!(*expected.get_or_insert_with(|| all.clone()) == all, "{what}");
                for count in [1, 2, 5, BATCH - 1] {
                    let first = BATCH - count;
                    let found = bits(&logits(&plan, &part(&x, first..BATCH)));
                    assert!(found == all[first * arch.num_classes..], "{what}: {count} images");
                }
            }
        }
    }
}

#[test]
fn sessions_give_the_same_bits_on_threads_of_their_own() {
    let arch = &some()[0];
    let x = images(arch, BATCH);
    let plan = Arc::new(compiled(arch, Level::detect(), 2));
    let expected = bits(&logits(&plan, &x));
    for threads in [1, 2, 3, 8] {
        let mut session = plan.session(Arc::new(Context::new(Level::detect(), threads)));
        for count in [BATCH, 1, 6] {
            let mut logits = Tensor::zeros([count, 1, 1, arch.num_classes]);
            session.run(&part(&x, 0..count), &mut logits).unwrap();
            assert!(bits(logits.data()) == expected[..count * arch.num_classes], "{threads} threads");
        }
    }
}

#[test]
fn threads_share_a_plan_at_the_same_time() {
    let arch = &some()[0];
    let x = images(arch, BATCH);
    let plan = &Arc::new(compiled(arch, Level::detect(), 2));
    let expected = &bits(&logits(plan, &x));
    std::thread::scope(|scope| {
        for caller in 0..4 {
            let x = &x;
            scope.spawn(move || {
                let mut own = plan.session(Arc::new(Context::new(plan.context().level(), 1)));
                for run in 0..20 {
                    let (first, count) = ((caller + run) % 5, 1 + (3 * caller + run) % 8);
                    let x = part(x, first..first + count);
                    let mut logits = Tensor::zeros([count, 1, 1, plan.classes()]);
                    match (caller + run) % 2 {
                        0 => plan.run(&x, &mut logits).unwrap(),
                        _ => own.run(&x, &mut logits).unwrap(),
                    }
                    let expected = &expected[first * plan.classes()..(first + count) * plan.classes()];
                    assert!(bits(logits.data()) == expected, "caller {caller}, run {run}");
                }
            });
        }
    });
}

#[test]
fn other_shapes_are_refused_and_said() {
    let arch = &some()[0];
    let plan = Arc::new(compiled(arch, Level::detect(), 1));
    let mut session = plan.session(Arc::clone(plan.context()));
    let mut refusal = |x: [usize; 4], logits: [usize; 4]| {
        let (x, mut logits) = (Tensor::zeros(x), Tensor::zeros(logits));
        let message = plan.run(&x, &mut logits).unwrap_err().to_string();
        assert_eq!(session.run(&x, &mut logits).unwrap_err().to_string(), message);
        message
    };
    let cases = [
        (
            [0, 32, 32, 3],
            [0, 1, 1, 37],
            "the batch of 1 to 13 images has the shape [0, 32, 32, 3], expected [1, 32, 32, 3]",
        ),
        (
            [14, 32, 32, 3],
            [14, 1, 1, 37],
            "the batch of 1 to 13 images has the shape [14, 32, 32, 3], expected [13, 32, 32, 3]",
        ),
        (
            [2, 32, 31, 3],
            [2, 1, 1, 37],
            "the batch of 1 to 13 images has the shape [2, 32, 31, 3], expected [2, 32, 32, 3]",
        ),
        (
            [2, 32, 32, 1],
            [2, 1, 1, 37],
            "the batch of 1 to 13 images has the shape [2, 32, 32, 1], expected [2, 32, 32, 3]",
        ),
        (
            [2, 32, 32, 3],
            [1, 1, 1, 37],
            "the tensor of logits has the shape [1, 1, 1, 37], expected [2, 1, 1, 37]",
        ),
        (
            [2, 32, 32, 3],
            [2, 1, 1, 36],
            "the tensor of logits has the shape [2, 1, 1, 36], expected [2, 1, 1, 37]",
        ),
    ];
    for (x, logits, expected) in cases {
        assert_eq!(refusal(x, logits), expected);
    }
    assert!(plan.profile(&Tensor::zeros([14, 32, 32, 3]), 1).is_err());
}
