//! How far from exact plans are, next to plans of direct sums.

use super::networks::{network, relative_l2};
use super::{logits, part, reference};
use crate::Tensor;
use crate::arch::Arch;
use crate::bench::random_images;
use crate::kernels::conv::Tiling;
use crate::kernels::{Context, Level};
use crate::network::Network;
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

/// A plan for so many images.
fn chosen(network: &Network, context: &Arc<Context>, batch: usize) -> Plan {
    Plan::compile(network, PlanOptions { batch, context: Arc::clone(context), tuning: None }).unwrap()
}

/// Relative L2 errors of one network's logits: of direct sums, and of what is chosen for 1 image and for 8.
fn errors(arch: &Arch, images: &Tensor, level: Level, seed: u64) -> [f64; 3] {
    let context = Arc::new(Context::new(level, 2));
    let network = network(arch, &context, seed);
    let exact = reference::logits(&network, images);
    let error = |plan: Plan| {
        let each = (0..images.batch()).flat_map(|image| logits(&plan, &part(images, image..image + 1)));
        relative_l2(&each.collect::<Vec<f32>>(), &exact)
    };
    let direct = Plan::choosing(&network, 1, Arc::clone(&context), &|_, _| Some(Choice::Direct)).unwrap();
    [error(direct), error(chosen(&network, &context, 1)), error(chosen(&network, &context, 8))]
}

/// The larger error of two plans of a network, as a multiple of the direct sums'.
fn ratio(arch: &Arch, level: Level) -> f64 {
    // Errors of a few logits scatter: the root mean square over networks is what counts.
    let (networks, count) = if arch.num_classes < 100 { (4, IMAGES) } else { (1, IMAGES / 2) };
    let images = random_images([count, arch.img_size[0], arch.img_size[1], arch.in_channels]);
    let errors: Vec<[f64; 3]> = (0..networks).map(|seed| errors(arch, &images, level, seed)).collect();
    let size = |plan: usize| errors.iter().map(|errors| errors[plan].powi(2)).sum::<f64>().sqrt();
    size(1).max(size(2)) / size(0)
}

#[test]
fn no_network_loses_more_than_a_little_accuracy() {
    let ratios = NETWORKS.map(|name| {
        let mut arch = Arch::preset(name).unwrap();
        // The ImageNet networks at a fraction of their size.
        arch.img_size = arch.img_size.map(|size| size.min(64));
        (name, ratio(&arch, Level::detect()))
    });
    let worst = ratios.iter().map(|&(_, ratio)| ratio).fold(0.0, f64::max);
    assert!(worst <= RATIO, "beyond {RATIO} times the direct sums' error: {ratios:.2?}");
}

/// Tiles of 5×5 outputs, whose error is the largest, are taken for feature maps of 14×14 pixels.
#[test]
fn the_largest_tiles_lose_no_more() {
    let (arch, level) = (Arch::preset("resnet34").unwrap(), Level::detect());
    let context = Arc::new(Context::new(level, 2));
    let plan = chosen(&network(&arch, &context, 0), &context, 8);
    let largest = Choice::Fast(Tiling::F5).to_string();
    assert!(plan.steps().iter().any(|step| step.algorithm == largest), "{:#?}", plan.steps());
    let ratio = ratio(&arch, level);
    assert!(ratio <= RATIO, "{ratio:.2} times the direct sums' error");
}
