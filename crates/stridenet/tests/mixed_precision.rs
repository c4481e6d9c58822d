//! Training with operands of bf16 beside training in `f32`, on the embedded photographs.

use stridenet::Tensor;
use stridenet::arch::{Arch, BlockKind, Overrides};
use stridenet::data::{Dataset, OpenOptions, open_evaluation};
use stridenet::image::Preprocess;
use stridenet::kernels::{Context, Level, Operands};
use stridenet::network::{Initialise, Network};
use stridenet::train::{Descent, SgdOptions};

const STEPS: usize = 60;
const BATCH: usize = 32;

/// Steps over which losses are averaged.
const WINDOW: usize = 10;

/// How far apart two averages may be: less than other images of the same kind would set them in nineteen of twenty cases. An
/// image's loss deviates by about 1 from the mean, the mean over a window's images by 1 over the root of their number; twice
/// that. Both runs see the same images, so that rounding alone sets them apart.
const LIMIT: f64 = 0.112;

/// Images and labels of a step: another part of the data each time, of all classes.
fn batch(dataset: &Dataset, preprocess: &Preprocess, step: usize) -> (Tensor, Vec<usize>) {
    // 37 has no factor in common with the number of images, so that no image comes twice.
    let indices = (step * BATCH..(step + 1) * BATCH).map(|place| place * 37 % dataset.len());
    let mut images = Tensor::zeros([BATCH, 28, 28, 1]);
    let labels = images.data_mut().chunks_exact_mut(28 * 28).zip(indices).map(|(image, index)| {
        preprocess.apply(&dataset.picture(index).unwrap(), image).unwrap();
        dataset.label(index)
    });
    let labels = labels.collect();
    (images, labels)
}

/// Mean losses of each [`WINDOW`] steps.
fn losses(cx: &Context, operands: Operands) -> Vec<f64> {
    let dataset = open_evaluation("sample", &OpenOptions::default()).unwrap();
    let preprocess = Preprocess::exact([28, 28], dataset.default_normalisation().unwrap());
    // Blocks with 1×1 convolutions, which bf16 is for.
    let changes = Overrides {
        block: Some(BlockKind::Bottleneck),
        depths: Some(vec![1, 1, 1]),
        in_channels: Some(1),
        img_size: Some([28, 28]),
        ..Overrides::default()
    };
    let arch = Arch::preset("resnet20").unwrap().with(&changes).unwrap();
    let mut network = Network::new(&arch, [28, 28], cx.level(), Initialise::default()).unwrap();
    network.set_operands(operands);
    let options =
        SgdOptions { momentum: 0.9, nesterov: true, weight_decay: 5e-4, decay_norm_and_bias: false };
    let mut descent = Descent::new(&network, options);
    let losses: Vec<f64> = (0..STEPS)
        .map(|step| {
            let (images, labels) = batch(&dataset, &preprocess, step);
            descent.step(cx, &mut network, images, &labels, 0.0, 0.02).unwrap().loss
        })
        .collect();
    losses.chunks(WINDOW).map(|losses| losses.iter().sum::<f64>() / losses.len() as f64).collect()
}

#[test]
fn losses_with_bf16_are_those_of_f32_up_to_noise() {
    let level = Level::detect();
    let expected = losses(&Context::new(level, 2), Operands::F32);
    assert!(expected[STEPS / WINDOW - 1] < 0.6 * expected[0], "nothing was learnt: {expected:?}");
    for level in [level, level.without_bf16()] {
        let found = losses(&Context::new(level, 2), Operands::Bf16);
        assert!(found != expected, "nothing was rounded");
        let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        println!("f32 {expected:.3?}, bf16 {found:.3?}: {apart:.3} apart");
        assert!(apart <= LIMIT, "{apart} apart: {found:?}, in f32 {expected:?}");
    }
}
