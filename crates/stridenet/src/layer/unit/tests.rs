use super::*;
use crate::kernels::Operands;
use crate::kernels::conv::ConvGeometry;

fn tensor(shape: [usize; 4], factor: usize) -> Tensor {
    let value = |at: usize| (at * factor % 1013) as f32 / 500.0 - 1.0;
    Tensor::new(shape, (0..shape.iter().product()).map(value).collect()).unwrap()
}

/// A unit from so many channels to so many, whose weights and batch norm are nothing special.
fn unit(level: Level, channels: [usize; 2], size: [usize; 2]) -> Unit {
    let geometry = ConvGeometry::square(channels[0], channels[1], 1, 1);
    let (conv, norm) = ("conv".to_owned(), Some("bn".to_owned()));
    let description = arch::Unit { conv, norm, geometry, relu: false, pools: Vec::new() };
    let weight = tensor([1, 1, channels[0], channels[1]], 389).into_data();
    let mut unit = Unit::new(level, &description, size, weight, 1.5).unwrap();
    let norm = unit.norm.as_mut().unwrap();
    norm.gamma.value.copy_from_slice(tensor([1, 1, 1, channels[1]], 71).data());
    norm.beta.value.copy_from_slice(tensor([1, 1, 1, channels[1]], 97).data());
    unit
}

/// The running statistics, the output and all gradients: the parameters', the residual's, the input's, and those of the batch norm
/// before.
fn results(unit: &mut Unit, cx: &Context, residual: bool, keeps: bool) -> Vec<Vec<f32>> {
    let mut workspace = Workspace::default();
    let [height, width] = unit.conv.output();
    let shape = |channels: usize| [3, height, width, channels];
    let (inputs, outputs) = (unit.conv.weight.shape[1], unit.conv.weight.shape[0]);
    let (raw, beside, dy) =
        (tensor(shape(inputs), 29), tensor(shape(outputs), 31), tensor(shape(outputs), 37));
    let mut before = BatchNorm::new("before", inputs, 1.0);
    before.beta.value.copy_from_slice(tensor([1, 1, 1, inputs], 41).data());
    let (_, norm) = before.forward(cx, &mut workspace, &raw, None, true);
    let x = Activation { tensor: &raw, prologue: Some(norm.prologue()) };
    let mut saved = unit.forward(cx, &mut workspace, x, residual.then_some(&beside));
    let norm_after = unit.norm.as_ref().unwrap();
    // Without the share of what they were before.
    let batch = norm_after.running_var.iter().map(|var| var - 0.9).collect();
    let mut all: Vec<Vec<f32>> = vec![norm_after.running_mean.clone(), batch];
    all.push(saved.output().data().to_vec());
    if !keeps {
        saved.forget(&mut workspace);
        unit.recompute_for_backward(cx, &mut workspace, x, &mut saved);
        assert_eq!([saved.raw.is_none(), saved.moments.is_some()], [unit.expansion.is_some(); 2]);
    }
    // The sums may be taken before, and a gradient be there already.
    let mut dy = dy;
    let summed = unit.wanted(&saved).filter(|_| keeps).map(|Wanted { x, shape, norm, relu }| {
        let of = (x.map(Tensor::data), shape);
        Sums::new(cx, &mut workspace.norm, of, norm.mean(), relu).of(cx, dy.data_mut())
    });
    assert!(summed.is_some() == keeps || !residual);
    let dy = Gradient { tensor: dy, summed };
    let also = keeps.then(|| tensor(raw.shape(), 43));
    let relu = norm.relu(None, true);
    let wanted = Some(Wanted { x: Some(&raw), shape: raw.shape(), norm: &norm, relu });
    let (dx, dresidual) = unit.backward(cx, &mut workspace, x, saved, dy, Onward { also, wanted });
    all.extend(unit.parameters().map(|parameter| parameter.grad.clone()));
    assert_eq!(dresidual.is_some(), residual);
    all.extend(dresidual.map(Tensor::into_data));
    let (mut tensor, summed) = (dx.tensor, dx.summed);
    all.push(tensor.data().to_vec());
    before.backward(cx, &mut workspace, &raw, norm, (&mut tensor, summed), true);
    all.extend(before.parameters().map(|parameter| parameter.grad.clone()));
    all
}

#[test]
fn training_does_without_the_output_of_a_convolution_that_expands() {
    for level in Level::available() {
        let cx = Context::new(level, 2);
        for (channels, size) in [([24, 80], [9, 7]), ([128, 260], [5, 4]), ([3, 6], [1, 2])] {
            for (residual, keeps) in [(false, false), (false, true), (true, false), (true, true)] {
                let mut without = unit(level, channels, size);
                let mut with = Unit { expansion: None, ..unit(level, channels, size) };
                assert!(without.expansion.is_some());
                let found = results(&mut without, &cx, residual, keeps);
                let expected = results(&mut with, &cx, residual, keeps);
                assert_eq!(found.len(), expected.len());
                for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                    let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    let what = format!("{} {channels:?} {residual} {keeps}: {index}", level.name());
                    assert!(largest > 0.0 && off <= 1e-4 * largest, "{what}: {off} of {largest}");
                }
            }
        }
    }
}

#[test]
fn what_is_constant_has_no_variance_and_what_is_not_a_number_has_none_either() {
    let (cx, mut workspace) = (Context::new(Level::detect(), 2), Workspace::default());
    let mut variances = |x: &Tensor| {
        let mut unit = unit(cx.level(), [24, 80], x.size());
        let saved = unit.forward(&cx, &mut workspace, x, None);
        assert!(saved.moments.is_some());
        unit.norm.unwrap().running_var
    };
    let mut constant = Tensor::zeros([2, 9, 7, 24]);
    for row in constant.data_mut().chunks_mut(24) {
        row.copy_from_slice(tensor([1, 1, 1, 24], 53).data());
    }
    for x in [&constant, &tensor([1, 1, 1, 24], 53)] {
        assert_eq!(variances(x), [0.9; 80]);
    }
    constant.data_mut()[77] = f32::NAN;
    assert!(variances(&constant).iter().all(|var| var.is_nan()));
}

/// The same with operands that are rounded.
fn rounding(level: Level, channels: [usize; 2], size: [usize; 2]) -> Unit {
    let mut unit = unit(level, channels, size);
    unit.conv.set_operands(level, Operands::Bf16);
    assert_eq!(unit.conv.operands(), Operands::Bf16);
    unit
}

#[test]
fn rounded_operands_do_without_the_output_as_well() {
    for level in Level::available() {
        let cx = Context::new(level, 2);
        // With a ReLU roundings tell whether the gradient of an output passes that is nearly 0.
        for (residual, keeps, tolerance) in [(false, true, 1e-2), (true, false, 8e-2)] {
            let mut with = Unit { expansion: None, ..rounding(level, [64, 200], [9, 7]) };
            let found = results(&mut rounding(level, [64, 200], [9, 7]), &cx, residual, keeps);
            let expected = results(&mut with, &cx, residual, keeps);
            for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
                let off = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
                let whole = norm(&mut expected.iter().copied());
                let what = format!("{} {residual}: {index}", level.name());
                assert!(whole > 0.0 && off <= tolerance * whole, "{what}: {off} of {whole}");
            }
        }
    }
}

/// What the weights lose when they are rounded would shift the outputs of inputs far from 0.
#[test]
fn rounded_weights_keep_the_mean() {
    let (cx, mut workspace) = (Context::new(Level::detect(), 2), Workspace::default());
    let mut x = tensor([3, 16, 16, 64], 29);
    x.data_mut().iter_mut().for_each(|value| *value += 8.0);
    let mut unit = rounding(cx.level(), [64, 200], [16, 16]);
    let saved = unit.forward(&cx, &mut workspace, &x, None);
    let (y, beta) = (saved.output().data(), &unit.norm.as_ref().unwrap().beta.value);
    for (channel, beta) in beta.iter().enumerate() {
        let sum: f32 = y[channel..].iter().step_by(200).sum();
        assert!((sum / 768.0 - beta).abs() < 1e-2, "{channel}: {} {beta}", sum / 768.0);
    }
}
