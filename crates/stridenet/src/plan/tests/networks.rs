//! Networks to test plans with.

use crate::Tensor;
use crate::arch::{Arch, Attention, BlockKind, Downsample, Order, Shortcut, Stage, Stem, StemPool, StrideOn};
use crate::bench::random_images;
use crate::kernels::Context;
use crate::layer::{BatchNorm, Workspace};
use crate::network::{Initialise, Network};
use crate::random::{Use, generator};
use rand::RngExt;

/// A small network, to be changed.
fn base(name: &str, block: BlockKind, img_size: [usize; 2]) -> Arch {
    let stage = |blocks, width, stride| Stage { blocks, width, stride };
    Arch {
        name: name.to_owned(),
        num_classes: 37,
        img_size,
        block,
        stages: vec![stage(2, 16, 1), stage(2, 20, 2), stage(1, 32, 2)],
        ..Arch::preset("resnet20").unwrap()
    }
}

fn changed(mut arch: Arch, change: impl FnOnce(&mut Arch)) -> Arch {
    change(&mut arch);
    arch
}

/// Every kind of block, stem, shortcut and down-sampling, on even and odd, square and oblong images, grey and in colour.
pub(super) fn architectures() -> Vec<Arch> {
    use BlockKind::{Basic, Bottleneck};
    let stage = |blocks, width, stride| Stage { blocks, width, stride };
    vec![
        base("basic", Basic, [32, 32]),
        changed(base("basic, odd sizes, grey", Basic, [17, 29]), |arch| arch.in_channels = 1),
        changed(base("basic, one pixel at the end", Basic, [4, 3]), |arch| {
            arch.stages.push(stage(2, 40, 2));
        }),
        changed(base("basic, stride 3 and wider without stride", Basic, [20, 14]), |arch| {
            arch.stages = vec![stage(1, 24, 1), stage(1, 32, 3), stage(2, 31, 1)];
        }),
        changed(base("basic, zero-pad", Basic, [15, 16]), |arch| arch.shortcut = Shortcut::ZeroPad),
        changed(base("basic, max-pool", Basic, [18, 15]), |arch| arch.downsample = Downsample::MaxPool),
        changed(base("basic, avg-pool, zero-pad", Basic, [13, 18]), |arch| {
            (arch.downsample, arch.shortcut) = (Downsample::AvgPool, Shortcut::ZeroPad);
        }),
        changed(base("basic, blur-pool", Basic, [16, 11]), |arch| arch.downsample = Downsample::BlurPool),
        changed(base("basic, imagenet stem", Basic, [64, 64]), |arch| arch.stem = Stem::ImageNet),
        changed(base("basic, imagenet stem, odd sizes, grey", Basic, [61, 45]), |arch| {
            (arch.stem, arch.in_channels) = (Stem::ImageNet, 1);
        }),
        changed(base("basic, imagenet stem, five channels", Basic, [33, 40]), |arch| {
            (arch.stem, arch.in_channels) = (Stem::ImageNet, 5);
        }),
        base("bottleneck", Bottleneck, [16, 16]),
        changed(base("bottleneck, v1", Bottleneck, [15, 19]), |arch| arch.stride_on = StrideOn::Conv1x1),
        changed(base("bottleneck, v1, max-pool", Bottleneck, [11, 16]), |arch| {
            (arch.stride_on, arch.downsample) = (StrideOn::Conv1x1, Downsample::MaxPool);
        }),
        changed(base("bottleneck, blur-pool, zero-pad", Bottleneck, [12, 13]), |arch| {
            (arch.downsample, arch.shortcut) = (Downsample::BlurPool, Shortcut::ZeroPad);
        }),
        changed(base("bottleneck, narrow groups", Bottleneck, [14, 14]), |arch| {
            (arch.groups, arch.base_width) = (4, 16);
        }),
        changed(base("bottleneck, wide groups, imagenet stem", Bottleneck, [40, 36]), |arch| {
            (arch.groups, arch.stem) = (2, Stem::ImageNet);
        }),
        changed(base("basic, deep stem, avg-projection", Basic, [35, 46]), |arch| {
            (arch.stem, arch.shortcut) = (Stem::Deep, Shortcut::AvgProjection);
        }),
        changed(base("bottleneck, tiered stem, conv stem pool, dilated", Bottleneck, [50, 33]), |arch| {
            (arch.stem, arch.stem_pool) = (Stem::DeepTiered, StemPool::Conv);
            (arch.shortcut, arch.output_stride) = (Shortcut::AvgProjection, Some(4));
        }),
        changed(base("basic, imagenet stem, blur-pool, dilated", Basic, [41, 38]), |arch| {
            (arch.stem, arch.downsample, arch.output_stride) =
                (Stem::ImageNet, Downsample::BlurPool, Some(8));
        }),
        changed(base("bottleneck, imagenet stem, avg-pool, dilated", Bottleneck, [44, 47]), |arch| {
            (arch.stem, arch.downsample, arch.output_stride) = (Stem::ImageNet, Downsample::AvgPool, Some(4));
            arch.groups = 4;
        }),
        changed(base("bottleneck, narrow first, 3×3 projections, dilated", Bottleneck, [21, 24]), |arch| {
            (arch.reduce_first, arch.down_kernel, arch.output_stride) = (2, 3, Some(2));
        }),
        changed(base("basic, squeeze and excitation", Basic, [19, 22]), |arch| {
            arch.attention = Attention::Se
        }),
        changed(base("bottleneck, channel attention, zero-pad", Bottleneck, [17, 14]), |arch| {
            (arch.attention, arch.shortcut) = (Attention::Eca, Shortcut::ZeroPad);
        }),
        changed(base("bottleneck, all of ResNet-RS", Bottleneck, [37, 40]), |arch| {
            (arch.stem, arch.stem_pool, arch.shortcut) =
                (Stem::Deep, StemPool::Conv, Shortcut::AvgProjection);
            (arch.attention, arch.se_reduction) = (Attention::Se, 4);
        }),
        changed(base("basic, pre-activation", Basic, [21, 18]), |arch| arch.order = Order::Pre),
        changed(base("basic, pre-activation, zero-pad, blur-pool", Basic, [13, 18]), |arch| {
            (arch.order, arch.shortcut) = (Order::Pre, Shortcut::ZeroPad);
            arch.downsample = Downsample::BlurPool;
        }),
        changed(base("bottleneck, pre-activation, deep stem, dilated", Bottleneck, [43, 38]), |arch| {
            (arch.order, arch.stem, arch.shortcut) = (Order::Pre, Stem::Deep, Shortcut::AvgProjection);
            arch.output_stride = Some(8);
        }),
        changed(base("bottleneck, pre-activation, imagenet stem", Bottleneck, [33, 32]), |arch| {
            (arch.order, arch.stem) = (Order::Pre, Stem::ImageNet);
        }),
        // The last stage's weights do not stay in a cache.
        changed(base("basic, heavy weights", Basic, [12, 12]), |arch| {
            arch.stages = vec![stage(1, 64, 1), stage(2, 256, 2)];
        }),
    ]
}

/// A network as training leaves it: random gains and biases of the batch norms, and the statistics of random images.
pub(super) fn network(arch: &Arch, cx: &Context, seed: u64) -> Network {
    // Variances of a few values at the last stage's single pixels would be far too small: gains must be near 1.
    const BATCH: usize = 32;
    const PASSES: i32 = 2;
    let initialise = Initialise { seed, ..Initialise::default() };
    let mut network = Network::new(arch, arch.img_size, cx.level(), initialise).unwrap();
    let mut random = generator(seed, Use::Benchmark, [0, 0]);
    for norm in network.norms_mut() {
        norm.gamma.value.fill_with(|| random.random_range(0.5..1.5));
        norm.beta.value.fill_with(|| random.random_range(-0.5..0.5));
    }
    let [height, width] = arch.img_size;
    let images = random_images([PASSES as usize * BATCH, height, width, arch.in_channels]);
    let mut workspace = Workspace::default();
    for values in images.data().chunks(images.data().len() / PASSES as usize) {
        let x = Tensor::new([BATCH, height, width, arch.in_channels], values.to_vec()).unwrap();
        network.forward(cx, &mut workspace, x).unwrap();
    }
    // Each pass moves the statistics by a tenth; what is left of the first values, 0 and 1, is taken out.
    let left = 0.9f32.powi(PASSES);
    for BatchNorm { running_mean, running_var, .. } in network.norms_mut() {
        running_mean.iter_mut().for_each(|mean| *mean /= 1.0 - left);
        running_var.iter_mut().for_each(|var| *var = ((*var - left) / (1.0 - left)).max(0.01));
    }
    network
}

/// `‖found − expected‖ / ‖expected‖`.
pub(super) fn relative_l2(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len(), "number of values");
    let distance: f64 = found.iter().zip(expected).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum();
    (distance / expected.iter().map(|value| value * value).sum::<f64>()).sqrt()
}
