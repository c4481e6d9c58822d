//! A network's inference in plain loops and `f64`, sharing nothing with the layers but their parameters.

use crate::Tensor;
use crate::arch::{BlockShortcut, PoolKind, Unit as Description};
use crate::kernels::conv::{AverageWindow, ConvGeometry, Edge, Window};
use crate::layer::Unit;
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
    let mut units = network.units();
    let mut next = || units.next().unwrap();
    let values = images.data().iter().map(|&value| f64::from(value)).collect();
    let maps = Maps { images: images.batch(), size: images.size(), channels: images.channels(), values };
    let mut maps =
        structure.stem.iter().fold(maps, |maps, description| unit(description, next(), &maps, None));
    for block in &structure.blocks {
        let units: Vec<&Unit> = block.units.iter().map(|_| next()).collect();
        let shortcut = match &block.shortcut {
            BlockShortcut::Identity => maps.clone(),
            BlockShortcut::Projection { pool: kind, unit: description } => {
                let maps = kind.map_or(maps.clone(), |kind| pool(kind, &maps));
                unit(description, next(), &maps, None)
            }
            &BlockShortcut::ZeroPad { stride, out_channels, .. } => zero_pad(&maps, stride, out_channels),
        };
        let last = units.len() - 1;
        for (index, (description, layer)) in block.units.iter().zip(units).enumerate() {
            maps = unit(description, layer, &maps, (index == last).then_some(&shortcut));
        }
    }
    let [weight, bias] = network.head_weights();
    let pixels = (maps.size[0] * maps.size[1]) as f64;
    let head = Maps::filled(maps.images, [1, 1], bias.len(), |[image, ..], logits| {
        logits.iter_mut().zip(bias).for_each(|(logit, &bias)| *logit = f64::from(bias));
        for (channel, weights) in weight.chunks(bias.len()).enumerate() {
            let from = image * maps.size[0] * maps.size[1] * maps.channels;
            let values = maps.values[from..].iter().skip(channel).step_by(maps.channels);
            let mean = values.take(maps.size[0] * maps.size[1]).sum::<f64>() / pixels;
            logits.iter_mut().zip(weights).for_each(|(logit, &weight)| *logit += mean * f64::from(weight));
        }
    });
    head.values
}

/// Convolution, batch norm, residual, ReLU, pool.
fn unit(description: &Description, unit: &Unit, x: &Maps, residual: Option<&Maps>) -> Maps {
    let mut y = conv(&description.geometry, &unit.conv.weight.value, x);
    let (norm, relu) = (&unit.norm, description.relu || residual.is_some());
    for (index, y) in y.values.iter_mut().enumerate() {
        let channel = index % norm.running_mean.len();
        let [mean, var, gamma, beta] =
            [&norm.running_mean, &norm.running_var, &norm.gamma.value, &norm.beta.value]
                .map(|values| f64::from(values[channel]));
        *y = (*y - mean) / (var + EPSILON).sqrt() * gamma + beta;
        *y += residual.map_or(0.0, |residual| residual.values[index]);
        *y = if relu { y.max(0.0) } else { *y };
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
