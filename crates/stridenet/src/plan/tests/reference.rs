//! A network's inference in plain loops and `f64`, sharing nothing with the layers but their parameters.

use crate::Tensor;
use crate::arch::{Block as BlockDescription, BlockShortcut, PoolKind, Unit as Description};
use crate::kernels::conv::{AverageWindow, ConvGeometry, Edge, Window};
use crate::layer::{BatchNorm, Block, GateKind, Linear, Shortcut, Unit};
use crate::network::Network;

/// Added to the variance, as in PyTorch.
const EPSILON: f64 = 1e-5;

/// Feature maps, `[N, H, W, C]`.
#[derive(Clone)]
struct Maps {
    images: usize,
    size: [usize; 2],
    channels: usize,
    values: Vec<f64>,
}

impl Maps {
    /// Maps whose pixels `fill(pixel, values)` sets, beginning from zeros; `pixel` is `[image, row, column]`.
    fn filled(
        images: usize,
        size: [usize; 2],
        channels: usize,
        fill: impl Fn([usize; 3], &mut [f64]) + Sync,
    ) -> Self {
        let [height, width] = size;
        let pixels = images * height * width;
        let mut values = vec![0.0; pixels * channels];
        let part = pixels.div_ceil(std::thread::available_parallelism().map_or(1, |threads| threads.get()));
        std::thread::scope(|scope| {
            for (index, values) in values.chunks_mut(part * channels).enumerate() {
                let fill = &fill;
                scope.spawn(move || {
                    for (offset, values) in values.chunks_mut(channels).enumerate() {
                        let pixel = index * part + offset;
                        fill([pixel / (height * width), pixel / width % height, pixel % width], values);
                    }
                });
            }
        });
        Maps { images, size, channels, values }
    }

    fn pixel(&self, image: usize, [y, x]: [usize; 2]) -> &[f64] {
        let first = ((image * self.size[0] + y) * self.size[1] + x) * self.channels;
        &self.values[first..first + self.channels]
    }
}

/// The logits of `images`, `[N, classes]`.
pub(super) fn logits(network: &Network, images: &Tensor) -> Vec<f64> {
    let structure = network.arch().structure().unwrap();
    let values = images.data().iter().map(|&value| f64::from(value)).collect();
    let maps = Maps { images: images.batch(), size: images.size(), channels: images.channels(), values };
    let layers = network.layers();
    let stem = structure.stem.iter().zip(layers.stem);
    let mut maps = stem.fold(maps, |maps, (description, layer)| unit(description, layer, &maps, None));
    for (block, layer) in structure.blocks.iter().zip(layers.blocks) {
        maps = self::block(block, layer, &maps);
    }
    if let Some(norm) = layers.norm {
        maps = relu(batch_norm(norm, maps));
    }
    linear(layers.linear, &means(&maps)).values
}

fn block(description: &BlockDescription, block: &Block, x: &Maps) -> Maps {
    let from = block.norm.as_ref().map_or_else(|| x.clone(), |norm| relu(batch_norm(norm, x.clone())));
    let shortcut = match (&description.shortcut, &block.shortcut) {
        (BlockShortcut::Projection { pool: kind, unit: description }, Shortcut::Projection(_, layer)) => {
            let from = kind.map_or(from.clone(), |kind| pool(kind, &from));
            unit(description, layer, &from, None)
        }
        (&BlockShortcut::ZeroPad { stride, out_channels, .. }, _) => zero_pad(&from, stride, out_channels),
        _ => x.clone(),
    };
    let last = block.units.len() - 1;
    let mut maps = from;
    for (index, (description, layer)) in description.units.iter().zip(&block.units).enumerate() {
        let residual = (index == last && block.gate.is_none()).then_some(&shortcut);
        maps = unit(description, layer, &maps, residual);
    }
    let Some(gate) = &block.gate else { return maps };
    let weights = match &gate.kind {
        GateKind::Se(layers) => linear(&layers[1], &relu(linear(&layers[0], &means(&maps)))),
        GateKind::Eca(taps) => {
            let means = means(&maps);
            Maps::filled(maps.images, [1, 1], maps.channels, |[image, ..], sums| {
                let means = means.pixel(image, [0, 0]);
                let half = taps.value.len() as isize / 2;
                for (tap, &weight) in taps.value.iter().enumerate() {
                    for (channel, sum) in sums.iter_mut().enumerate() {
                        let from = usize::try_from(channel as isize + tap as isize - half).ok();
                        *sum += from.and_then(|from| means.get(from)).map_or(0.0, |m| m * f64::from(weight));
                    }
                }
            })
        }
    };
    let pixels = maps.size[0] * maps.size[1];
    for (index, (value, residual)) in maps.values.iter_mut().zip(&shortcut.values).enumerate() {
        let weight = weights.values[index / (pixels * maps.channels) * maps.channels + index % maps.channels];
        *value = (*value / (1.0 + (-weight).exp()) + residual).max(0.0);
    }
    maps
}

fn relu(mut x: Maps) -> Maps {
    x.values.iter_mut().for_each(|value| *value = value.max(0.0));
    x
}

fn batch_norm(norm: &BatchNorm, mut x: Maps) -> Maps {
    for (index, value) in x.values.iter_mut().enumerate() {
        let channel = index % norm.running_mean.len();
        let [mean, var, gamma, beta] =
            [&norm.running_mean, &norm.running_var, &norm.gamma.value, &norm.beta.value]
                .map(|values| f64::from(values[channel]));
        *value = (*value - mean) / (var + EPSILON).sqrt() * gamma + beta;
    }
    x
}

/// The mean of each channel.
fn means(x: &Maps) -> Maps {
    let pixels = x.size[0] * x.size[1];
    Maps::filled(x.images, [1, 1], x.channels, |[image, ..], means| {
        for pixel in x.values[image * pixels * x.channels..].chunks(x.channels).take(pixels) {
            means.iter_mut().zip(pixel).for_each(|(mean, value)| *mean += value / pixels as f64);
        }
    })
}

fn linear(layer: &Linear, x: &Maps) -> Maps {
    let (weight, bias) = (&layer.weight.value, &layer.bias.value);
    Maps::filled(x.images, [1, 1], bias.len(), |[image, ..], sums| {
        sums.iter_mut().zip(bias).for_each(|(sum, &bias)| *sum = f64::from(bias));
        for (value, weights) in x.pixel(image, [0, 0]).iter().zip(weight.chunks(bias.len())) {
            sums.iter_mut().zip(weights).for_each(|(sum, &weight)| *sum += value * f64::from(weight));
        }
    })
}

/// Convolution, batch norm, residual, ReLU, pools.
fn unit(description: &Description, unit: &Unit, x: &Maps, residual: Option<&Maps>) -> Maps {
    let mut y = conv(&description.geometry, &unit.conv.weight.value, x);
    if let Some(norm) = &unit.norm {
        y = batch_norm(norm, y);
    }
    if let Some(residual) = residual {
        y.values.iter_mut().zip(&residual.values).for_each(|(y, residual)| *y += residual);
    }
    if description.relu || residual.is_some() && unit.norm.is_some() {
        y = relu(y);
    }
    description.pools.iter().fold(y, |y, &kind| pool(kind, &y))
}

fn conv(geometry: &ConvGeometry, weight: &[f32], x: &Maps) -> Maps {
    let g = geometry;
    let size = g.output_size(x.size).unwrap();
    Maps::filled(x.images, size, g.out_channels, |[image, oy, ox], y| {
        for tap in 0..g.taps() {
            let rows = g.window(0).source(oy, tap / g.kernel[1], x.size[0]);
            let columns = g.window(1).source(ox, tap % g.kernel[1], x.size[1]);
            let (Some(iy), Some(ix)) = (rows, columns) else { continue };
            for (channel, &value) in x.pixel(image, [iy, ix]).iter().enumerate() {
                let (group, input) = (channel / g.group_in(), channel % g.group_in());
                let outputs = group * g.group_out()..(group + 1) * g.group_out();
                let weights = &weight[(tap * g.group_in() + input) * g.out_channels..][outputs.clone()];
                for (y, &weight) in y[outputs].iter_mut().zip(weights) {
                    *y += value * f64::from(weight);
                }
            }
        }
    })
}

fn pool(kind: PoolKind, x: &Maps) -> Maps {
    let size = kind.output(x.size).unwrap();
    let Window { stride, .. } = kind.window();
    Maps::filled(x.images, size, x.channels, |[image, oy, ox], y| {
        // The input pixels that an output sees, with their weights.
        let along = |output: usize, size: usize| -> Vec<(usize, f64)> {
            let inside = |position: isize| usize::try_from(position).ok().filter(|&at| at < size);
            let centre = (output * stride) as isize;
            match kind {
                PoolKind::Max(window) => {
                    let first = centre - window.padding as isize;
                    (0..window.kernel as isize).filter_map(|tap| Some((inside(first + tap)?, 1.0))).collect()
                }
                PoolKind::Avg(AverageWindow { kernel, edge, .. }) => {
                    let taps: Vec<usize> =
                        (0..kernel as isize).filter_map(|tap| inside(centre + tap)).collect();
                    let count = if edge == Edge::Zeros { kernel } else { taps.len() };
                    taps.iter().map(|&at| (at, 1.0 / count as f64)).collect()
                }
                PoolKind::Blur { .. } => {
                    let last = size as isize - 1;
                    let mirrored = |at: isize| last - (last - at.abs()).abs();
                    let tap = |(step, weight)| (mirrored(centre + step).max(0) as usize, weight);
                    [(-1, 0.25), (0, 0.5), (1, 0.25)].map(tap).to_vec()
                }
            }
        };
        let largest = matches!(kind, PoolKind::Max(_));
        y.fill(if largest { f64::NEG_INFINITY } else { 0.0 });
        for (iy, above) in along(oy, x.size[0]) {
            for (ix, beside) in along(ox, x.size[1]) {
                for (y, &value) in y.iter_mut().zip(x.pixel(image, [iy, ix])) {
                    *y = if largest { y.max(value) } else { *y + above * beside * value };
                }
            }
        }
    })
}

/// Every `stride`-th pixel, with half of the new channels before and the rest behind.
fn zero_pad(x: &Maps, stride: usize, out_channels: usize) -> Maps {
    let before = (out_channels - x.channels) / 2;
    let size = x.size.map(|size| size.div_ceil(stride));
    Maps::filled(x.images, size, out_channels, |[image, oy, ox], y| {
        y[before..before + x.channels].copy_from_slice(x.pixel(image, [oy * stride, ox * stride]));
    })
}
