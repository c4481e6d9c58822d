//! Training that computes the insides of blocks again has the same bits as training that keeps them.

use stridenet::arch::{Arch, Downsample, Order, Overrides, Shortcut};
use stridenet::bench::random_images;
use stridenet::kernels::{Context, Level, Operands};
use stridenet::network::{DropRates, Initialise, Input, Network};
use stridenet::train::{Descent, SgdOptions};
use stridenet::weights::TensorValues;

const SGD: SgdOptions =
    SgdOptions { momentum: 0.9, nesterov: true, weight_decay: 1e-4, decay_norm_and_bias: true };

/// Networks of every kind of block, two in a stage, so that all but the last are computed again.
fn architectures() -> Vec<(String, Arch)> {
    let with = |name: &str, changes: Overrides| {
        let small = Overrides { img_size: Some([32, 32]), num_classes: Some(10), ..changes };
        let mut arch = Arch::preset(name).unwrap().with(&small).unwrap();
        arch.stages.iter_mut().for_each(|row| row.blocks = 2);
        arch
    };
    // Basic blocks and bottlenecks, of groups, with gates, behind averages, with blurs, and with the norm first.
    let presets = [
        ["resnet18", "resnet50", "resnext50_32x4d", "seresnet50"],
        ["seresnext26t_32x4d", "ecaresnet26t", "resnetblur50d", "resnetv2_50"],
    ];
    let mut all: Vec<(String, Arch)> = presets
        .concat()
        .into_iter()
        .map(|name| (name.to_owned(), with(name, Overrides::default())))
        .collect();
    all.push(("preresnet20".to_owned(), with("preresnet20", Overrides::default())));
    // Sums over chunks of lines that are no power of two.
    let mut odd = with("resnet20", Overrides::default());
    odd.img_size = [28, 28];
    all.push(("resnet20 at 28×28".to_owned(), odd));
    // Each way to make maps smaller, with shortcuts of each kind.
    for downsample in [Downsample::Strided, Downsample::MaxPool, Downsample::AvgPool, Downsample::BlurPool] {
        for shortcut in [Shortcut::Projection, Shortcut::AvgProjection, Shortcut::ZeroPad] {
            let changes =
                Overrides { downsample: Some(downsample), shortcut: Some(shortcut), ..Overrides::default() };
            all.push((format!("resnet20 {downsample:?} {shortcut:?}"), with("resnet20", changes)));
        }
    }
    all
}

/// All that training leaves behind: losses, gradients, weights, and running statistics with their counts, as bits.
fn train(arch: &Arch, operands: Operands, threads: usize, recompute: bool) -> Vec<u64> {
    let cx = Context::new(Level::detect(), threads);
    let mut network = Network::new(arch, arch.img_size, cx.level(), Initialise::default()).unwrap();
    network.set_operands(operands);
    network.set_recompute(recompute);
    let mut descent = Descent::new(&network, SGD);
    let block = if arch.order == Order::Pre { 0.0 } else { 0.2 };
    let rates = DropRates { path: 0.4, block };
    let mut bits = Vec::new();
    for step in 0..2 {
        let [height, width] = arch.img_size;
        let images = random_images([4, height, width, arch.in_channels]);
        // Blocks whose main path is weighed, and blocks whose path is not.
        let drops = if step == 0 { rates.drops(&network, 5, step, &[0, 1, 2, 3]) } else { Vec::new() };
        let input = Input { images, drops };
        let loss = descent.step(&cx, &mut network, input, &[1, 0, 3, 2], 0.1, 0.05).unwrap().loss;
        bits.push(loss.to_bits());
        let gradients = network.parameters().flat_map(|parameter| &parameter.grad);
        bits.extend(gradients.map(|gradient| u64::from(gradient.to_bits())));
    }
    let state = network.state().unwrap();
    for (_, tensor) in state.iter() {
        match tensor.values() {
            TensorValues::F32(values) => bits.extend(values.iter().map(|value| u64::from(value.to_bits()))),
            TensorValues::I64(values) => bits.extend(values.iter().map(|&value| value as u64)),
        }
    }
    bits
}

#[test]
fn what_is_computed_again_has_the_same_bits() {
    for (name, arch) in architectures() {
        for operands in [Operands::F32, Operands::Bf16, Operands::Threes] {
            let expected = train(&arch, operands, 2, false);
            for threads in [1, 2, 3] {
                let found = train(&arch, operands, threads, true);
                assert!(found == expected, "{name} with {operands:?}, {threads} threads");
            }
        }
    }
}
