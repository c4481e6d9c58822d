//! How far from exact plans are, next to plans of direct sums.

use super::networks::{network, relative_l2};
use super::{logits, part, reference};
use crate::Tensor;
use crate::arch::Arch;
use crate::bench::random_images;
use crate::kernels::{Context, Level};
use crate::plan::{Choice, Plan, PlanOptions};
use std::sync::Arc;

/// The most that the chosen algorithms may lose against direct sums.
const RATIO: f64 = 3.0;

/// Networks of every kind and depth.
const NETWORKS: [&str; 12] = [
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "wide_resnet50_2",
    "resnext50_32x4d",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
];

/// Images of each network.
const IMAGES: usize = 4;

/// Relative L2 errors of one network's logits: of direct sums, and of what is chosen for 1 image and for 8.
fn errors(arch: &Arch, images: &Tensor, level: Level, seed: u64) -> [f64; 3] {
    let context = Arc::new(Context::new(level, 2));
    let network = network(arch, &context, seed);
    let exact = reference::logits(&network, images);
    let error = |plan: Plan| {
        let each = (0..images.batch()).flat_map(|image| logits(&plan, &part(images, image..image + 1)));
        relative_l2(&each.collect::<Vec<f32>>(), &exact)
    };
    let chosen = |batch| {
        Plan::compile(&network, PlanOptions { batch, context: Arc::clone(&context), tuning: None }).unwrap()
    };
    let direct = Plan::choosing(&network, 1, Arc::clone(&context), &|_, _| Some(Choice::Direct)).unwrap();
    [error(direct), error(chosen(1)), error(chosen(8))]
}

/// The larger error of a preset's two plans, as a multiple of the direct sums'.
fn ratio(name: &str, level: Level) -> f64 {
    let mut arch = Arch::preset(name).unwrap();
    // The ImageNet networks at a fraction of their size.
    arch.img_size = arch.img_size.map(|size| size.min(64));
    // Errors of a few logits scatter: the root mean square over networks is what counts.
    let (networks, count) = if arch.num_classes < 100 { (4, IMAGES) } else { (1, IMAGES / 2) };
    let images = random_images([count, arch.img_size[0], arch.img_size[1], arch.in_channels]);
    let errors: Vec<[f64; 3]> = (0..networks).map(|seed| errors(&arch, &images, level, seed)).collect();
    let size = |plan: usize| errors.iter().map(|errors| errors[plan].powi(2)).sum::<f64>().sqrt();
    size(1).max(size(2)) / size(0)
}

#[test]
fn no_network_loses_more_than_a_little_accuracy() {
    let ratios = NETWORKS.map(|name| (name, ratio(name, Level::detect())));
    let worst = ratios.iter().map(|&(_, ratio)| ratio).fold(0.0, f64::max);
    assert!(worst <= RATIO, "beyond {RATIO} times the direct sums' error: {ratios:.2?}");
}
