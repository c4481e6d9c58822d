//! Weights for other classes or other input channels than they were trained with.

use crate::arch::{Arch, TensorSpec};
use crate::image::Preprocess;
use crate::random::{Use, generator};
use crate::weights::{NamedTensor, StateDict, TensorEntry, TensorValues, WeightsError};
use rand::RngExt;
use std::path::Path;

/// Gives the network a new classifier for `num_classes` classes, with initial weights: uniform within `±1 / √in_features`,
/// PyTorch's default. The weights of the old one are dropped. Returns the names of the new tensors.
pub(super) fn reset_head(
    state: &mut StateDict,
    arch: &mut Arch,
    num_classes: usize,
    seed: u64,
) -> Result<Vec<String>, crate::Error> {
    arch.num_classes = num_classes;
    let structure = arch.structure()?;
    let bound = 1.0 / (structure.head.in_features as f32).sqrt();
    let mut random = generator(seed, Use::Initialise, [0, 0]);
    let mut names = Vec::new();
    let of_head = |tensor: &TensorSpec| {
        tensor.name.strip_prefix(&structure.head.name).is_some_and(|rest| rest.starts_with('.'))
    };
    for TensorSpec { name, shape, .. } in structure.tensors().into_iter().filter(of_head) {
        let values = (0..shape.iter().product()).map(|_| random.random_range(-bound..bound)).collect();
        names.push(name.clone());
        state.replace(NamedTensor { name, shape, values });
    }
    Ok(names)
}

/// Gives the first convolution `channels` input channels, as timm does: for one channel its weights are summed; for any other
/// number those of the three channels are repeated and scaled by `3 / channels`, so that an input whose channels are alike
/// gives what it gave before. Returns the name of the changed tensor; `path` is only for messages.
pub(super) fn adapt_input(
    state: &mut StateDict,
    arch: &mut Arch,
    channels: usize,
    path: &Path,
) -> Result<Vec<String>, crate::Error> {
    let first = arch.structure()?.tensors().swap_remove(0);
    let before = arch.in_channels;
    arch.in_channels = channels;
    arch.validate()?;
    let refuse = |problem: String| -> Result<Vec<String>, crate::Error> {
        let remedy = "leave the input as it is, or use weights of a network for RGB images";
        Err(WeightsError::Adapt { path: path.to_path_buf(), problem, remedy }.into())
    };
    if channels != 1 && before != 3 {
        return refuse(format!(
            "its first convolution has {before} input channels, only 3 can become {channels}"
        ));
    }
    let entry =
        state.take(&first.name).filter(|entry| entry.shape() == first.shape).map(TensorEntry::into_parts);
    let Some((shape, TensorValues::F32(values))) = entry else {
        let shape = &first.shape;
        return refuse(format!("it has no {} of the shape {shape:?} whose input could change", first.name));
    };
    let area = shape[2] * shape[3];
    let values =
        values.chunks_exact(before * area).flat_map(|filter| with_channels(filter, area, channels)).collect();
    let shape = vec![shape[0], channels, shape[2], shape[3]];
    state.replace(NamedTensor { name: first.name.clone(), shape, values });
    Ok(vec![first.name])
}

/// The weights of one output channel, `[in_channels, area]`, for another number of input channels.
fn with_channels(filter: &[f32], area: usize, channels: usize) -> Vec<f32> {
    let planes: Vec<&[f32]> = filter.chunks_exact(area).collect();
    if channels == 1 {
        return (0..area).map(|at| planes.iter().map(|plane| plane[at]).sum()).collect();
    }
    let scale = planes.len() as f32 / channels as f32;
    (0..channels)
        .flat_map(|channel| planes[channel % planes.len()].iter().map(move |value| value * scale))
        .collect()
}

/// The preprocessing for another number of input channels: the means and deviations are averaged for one, repeated for more.
pub(super) fn adapt_preprocess(preprocess: &mut Preprocess, channels: usize) {
    for values in [&mut preprocess.mean, &mut preprocess.std] {
        *values = match channels {
            1 => vec![values.iter().sum::<f32>() / values.len() as f32],
            _ => values.iter().copied().cycle().take(channels).collect(),
        };
    }
    preprocess.channels = channels;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `timm.models._manipulate.adapt_input_conv(channels, torch.arange(12.).reshape(1, 3, 2, 2))`, timm 1.0.31.
    #[test]
    fn channels_are_summed_and_repeated_as_timm_does() {
        let filter: Vec<f32> = (0..12u8).map(f32::from).collect();
        assert_eq!(with_channels(&filter, 4, 1), [12.0, 15.0, 18.0, 21.0]);
        let four = [0.0, 0.75, 1.5, 2.25, 3.0, 3.75, 4.5, 5.25, 6.0, 6.75, 7.5, 8.25, 0.0, 0.75, 1.5, 2.25];
        assert_eq!(with_channels(&filter, 4, 4), four);
        assert_eq!(with_channels(&filter, 4, 2), [0.0, 1.5, 3.0, 4.5, 6.0, 7.5, 9.0, 10.5]);
    }
}
