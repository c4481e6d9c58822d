//! What a network costs and sees, layer by layer: shapes, parameters, multiply-accumulates, receptive fields.

use super::structure::{Block, BlockShortcut, Gate, GateKind, Head, Norm, Unit};
use super::{Arch, ArchError, PoolKind};
use serde::{Serialize, Serializer};
use std::fmt;

/// The layers of a network for one input size, with totals. Its JSON is what `inspect --json` writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The architecture's name.
    pub arch: String,
    /// The input `[height, width]`, in pixels.
    pub img_size: [usize; 2],
    /// Trainable values.
    pub param_count: u64,
    /// Multiply-accumulates for one image: of convolutions, linear layers and blur pools, without biases.
    pub macs: u64,
    /// Values put out by the layers whose multiply-accumulates are counted, for one image (fvcore's
    /// convention).
    pub activations: u64,
    /// The layers in execution order; of a block the main path, then the shortcut, then the addition.
    pub layers: Vec<Layer>,
}

/// One layer of a [`Summary`], for one image. Shapes are `[C, H, W]`, the order in which the ecosystem writes
/// them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Layer {
    /// The name: torch's for layers with weights (`layer1.0.conv1`), and in the same manner for others
    /// (`maxpool`, `layer1.0.act1`, `layer1.0.add`).
    pub name: String,
    /// What it computes.
    pub kind: LayerKind,
    /// Shape of the input.
    pub input: [usize; 3],
    /// Shape of the output.
    pub output: [usize; 3],
    /// The window, `[height, width]`; `[1, 1]` for layers that look at single pixels.
    pub kernel: [usize; 2],
    /// Step between outputs, `[height, width]`.
    pub stride: [usize; 2],
    /// Step between taps, `[height, width]`.
    pub dilation: [usize; 2],
    /// Trainable values.
    pub param_count: u64,
    /// Multiply-accumulates.
    pub macs: u64,
    /// Side of the square of input pixels that can influence one output, in pixels, borders ignored; after
    /// the global pool its height. For an addition, the larger one of both paths; for a gate that of what it
    /// weighs, although its weights see the whole map.
    pub receptive_field: usize,
    /// Distance between neighbouring outputs, in input pixels: the product of the strides so far.
    pub jump: usize,
}

/// What a layer computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// A convolution without bias.
    Conv,
    /// Batch norm.
    BatchNorm,
    /// `max(x, 0)`.
    Relu,
    /// A max pool.
    MaxPool,
    /// An average pool.
    AvgPool,
    /// A binomial filter with subsampling.
    BlurPool,
    /// The sum of a block's two paths.
    Add,
    /// A shortcut that subsamples and pads channels with zeros.
    ZeroPad,
    /// The mean over all pixels.
    GlobalAvgPool,
    /// A linear layer with bias.
    Linear,
    /// A convolution along the channels, without bias.
    ChannelConv,
    /// A sigmoid whose values weigh the channels of a feature map.
    Gate,
}

impl LayerKind {
    /// The name in JSON and tables.
    pub const fn name(self) -> &'static str {
        match self {
            LayerKind::Conv => "conv",
            LayerKind::BatchNorm => "batch_norm",
            LayerKind::Relu => "relu",
            LayerKind::MaxPool => "max_pool",
            LayerKind::AvgPool => "avg_pool",
            LayerKind::BlurPool => "blur_pool",
            LayerKind::Add => "add",
            LayerKind::ZeroPad => "zero_pad",
            LayerKind::GlobalAvgPool => "global_avg_pool",
            LayerKind::Linear => "linear",
            LayerKind::ChannelConv => "channel_conv",
            LayerKind::Gate => "gate",
        }
    }
}

impl fmt::Display for LayerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for LayerKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl Arch {
    /// Every layer of the network for one image of `input` `[height, width]` pixels.
    ///
    /// # Errors
    /// When the description is not [valid](Self::validate), or the input is empty or larger than 16384 pixels
    /// a side.
    pub fn summary(&self, input: [usize; 2]) -> Result<Summary, ArchError> {
        Arch::check_input(input)?;
        let structure = self.structure()?;
        let mut walk = Walk::default();
        let image = Place { shape: [self.in_channels, input[0], input[1]], receptive_field: 1, jump: 1 };
        let mut place = image;
        for unit in &structure.stem {
            place = walk.unit(unit, "maxpool", place)?;
        }
        for block in &structure.blocks {
            place = walk.block(block, place)?;
        }
        if let Some(norm) = &structure.norm {
            place = walk.norm(norm, place);
        }
        walk.head(&structure.head, place);
        Ok(Summary {
            arch: self.name.clone(),
            img_size: input,
            param_count: structure.param_count(),
            macs: walk.macs,
            activations: walk.activations,
            layers: walk.layers,
        })
    }
}

/// A feature map, and what one of its pixels sees of the input.
#[derive(Clone, Copy)]
struct Place {
    /// `[C, H, W]`.
    shape: [usize; 3],
    receptive_field: usize,
    jump: usize,
}

impl Place {
    fn size(&self) -> [usize; 2] {
        [self.shape[1], self.shape[2]]
    }

    /// The output of a window with the given reach and stride (the recurrence of Dumoulin & Visin 2016), of
    /// this shape.
    fn after(&self, shape: [usize; 3], reach: usize, stride: usize) -> Place {
        // Thousands of strided layers would leave the integers; such a receptive field is as good as
        // infinite.
        let growth = (reach - 1).saturating_mul(self.jump);
        let receptive_field = self.receptive_field.saturating_add(growth);
        Place { shape, receptive_field, jump: self.jump.saturating_mul(stride) }
    }
}

/// What a layer is, apart from where it stands.
struct Spec {
    name: String,
    kind: LayerKind,
    kernel: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    param_count: u64,
    /// Multiply-accumulates for one value of the output.
    macs_per_output: u64,
}

impl Spec {
    /// A layer without weights that looks at single pixels.
    fn pointwise(name: String, kind: LayerKind) -> Spec {
        Spec {
            name,
            kind,
            kernel: [1; 2],
            stride: [1; 2],
            dilation: [1; 2],
            param_count: 0,
            macs_per_output: 0,
        }
    }
}

/// What torch would call the ReLU behind a batch norm: `act1` behind `bn1`, the next number in a sequence, and
/// timm's name where it is a part of the norm.
fn act_name(norm: &str) -> String {
    let (before, last) =
        norm.rsplit_once('.').map_or(("", norm), |(_, last)| (&norm[..norm.len() - last.len()], last));
    match (last.parse::<usize>(), last.strip_prefix("bn")) {
        (Ok(index), _) => format!("{before}{}", index + 1),
        (_, Some(number)) => format!("{before}act{number}"),
        _ => format!("{norm}.act"),
    }
}

/// The layers passed so far.
#[derive(Default)]
struct Walk {
    layers: Vec<Layer>,
    macs: u64,
    activations: u64,
}

impl Walk {
    /// Adds a layer that leads from one place to another.
    fn push(&mut self, spec: Spec, from: Place, to: Place) -> Place {
        // No sum overflows: at most 2³² parameters (MAX_PARAMS) meet at most 2²⁸ pixels (MAX_SIDE²), and a
        // feature map has at most 2⁴⁴ values (MAX_CHANNELS).
        let values = to.shape.iter().map(|&size| size as u64).product::<u64>();
        let macs = values * spec.macs_per_output;
        self.macs += macs;
        if macs > 0 {
            self.activations += values;
        }
        self.layers.push(Layer {
            name: spec.name,
            kind: spec.kind,
            input: from.shape,
            output: to.shape,
            kernel: spec.kernel,
            stride: spec.stride,
            dilation: spec.dilation,
            param_count: spec.param_count,
            macs,
            receptive_field: to.receptive_field,
            jump: to.jump,
        });
        to
    }

    /// Convolution, batch norm, and the unit's ReLU and pools, which are named `pool`.
    fn unit(&mut self, unit: &Unit, pool: &str, from: Place) -> Result<Place, ArchError> {
        let geometry = &unit.geometry;
        let [height, width] = geometry.output_size(from.size()).map_err(ArchError::at(&unit.conv))?;
        let shape = [geometry.out_channels, height, width];
        let conv = Spec {
            name: unit.conv.clone(),
            kind: LayerKind::Conv,
            kernel: geometry.kernel,
            stride: geometry.stride,
            dilation: geometry.dilation,
            param_count: geometry.weight_len() as u64,
            macs_per_output: (geometry.taps() * geometry.group_in()) as u64,
        };
        let place = self.push(conv, from, from.after(shape, geometry.window(0).reach(), geometry.stride[0]));
        if let Some(norm) = &unit.norm {
            self.batch_norm(norm, place);
            if unit.relu {
                self.push(Spec::pointwise(act_name(norm), LayerKind::Relu), place, place);
            }
        }
        let mut place = place;
        for (index, &kind) in unit.pools.iter().enumerate() {
            let name = if unit.pools.len() > 1 { format!("{pool}.{index}") } else { pool.to_owned() };
            place = self.pool(kind, name, place)?;
        }
        Ok(place)
    }

    fn batch_norm(&mut self, name: &str, place: Place) {
        let spec = Spec::pointwise(name.to_owned(), LayerKind::BatchNorm);
        self.push(Spec { param_count: 2 * place.shape[0] as u64, ..spec }, place, place);
    }

    /// A batch norm and its ReLU.
    fn norm(&mut self, norm: &Norm, place: Place) -> Place {
        self.batch_norm(&norm.name, place);
        self.push(Spec::pointwise(act_name(&norm.name), LayerKind::Relu), place, place)
    }

    fn pool(&mut self, pool: PoolKind, name: String, from: Place) -> Result<Place, ArchError> {
        let [height, width] = pool.output(from.size()).map_err(ArchError::at(&name))?;
        let window = pool.window();
        let (kind, macs_per_output) = match pool {
            PoolKind::Max(_) => (LayerKind::MaxPool, 0),
            PoolKind::Avg(_) => (LayerKind::AvgPool, 0),
            PoolKind::Blur { .. } => (LayerKind::BlurPool, 9),
        };
        let (kernel, stride) = ([window.kernel; 2], [window.stride; 2]);
        let spec = Spec { kernel, stride, macs_per_output, ..Spec::pointwise(name, kind) };
        let to = from.after([from.shape[0], height, width], window.kernel, window.stride);
        Ok(self.push(spec, from, to))
    }

    fn block(&mut self, block: &Block, from: Place) -> Result<Place, ArchError> {
        let name = &block.name;
        let input = match &block.norm {
            Some(norm) => self.norm(norm, from),
            None => from,
        };
        let mut main = input;
        for unit in &block.units {
            main = self.unit(unit, &format!("{name}.pool"), main)?;
        }
        if let Some(gate) = &block.gate {
            main = self.gate(gate, main);
        }
        let shortcut = self.shortcut(block, input, main.shape)?;
        let sum = Place { receptive_field: main.receptive_field.max(shortcut.receptive_field), ..main };
        self.push(Spec::pointwise(format!("{name}.add"), LayerKind::Add), main, sum);
        if block.norm.is_some() {
            return Ok(sum);
        }
        let act = format!("{name}.act{}", block.units.len());
        Ok(self.push(Spec::pointwise(act, LayerKind::Relu), sum, sum))
    }

    /// The gate's own layers, and the product.
    fn gate(&mut self, gate: &Gate, from: Place) -> Place {
        let Gate { name, channels, kind } = gate;
        let pooled = self.global_pool(format!("{name}.mean"), from);
        let single = |channels: usize| Place { shape: [channels, 1, 1], ..pooled };
        match *kind {
            GateKind::Se { squeezed } => {
                let mut linear = |part: &str, inputs: usize, outputs: usize| {
                    let spec = Spec {
                        param_count: ((inputs + 1) * outputs) as u64,
                        macs_per_output: inputs as u64,
                        ..Spec::pointwise(format!("{name}.{part}"), LayerKind::Linear)
                    };
                    self.push(spec, single(inputs), single(outputs))
                };
                linear("fc1", *channels, squeezed);
                linear("fc2", squeezed, *channels);
            }
            GateKind::Eca { kernel } => {
                let spec = Spec {
                    kernel: [kernel, 1],
                    param_count: kernel as u64,
                    macs_per_output: kernel as u64,
                    ..Spec::pointwise(format!("{name}.conv"), LayerKind::ChannelConv)
                };
                self.push(spec, pooled, pooled);
            }
        }
        self.push(Spec::pointwise(format!("{name}.gate"), LayerKind::Gate), from, from)
    }

    /// The shortcut's layers, which lead to the main path's `shape`.
    fn shortcut(&mut self, block: &Block, from: Place, shape: [usize; 3]) -> Result<Place, ArchError> {
        let name = &block.name;
        match &block.shortcut {
            BlockShortcut::Identity => Ok(from),
            BlockShortcut::Projection { pool, unit } => {
                let from = match pool {
                    Some(pool) => self.pool(*pool, format!("{name}.downsample.pool"), from)?,
                    None => from,
                };
                self.unit(unit, "", from)
            }
            BlockShortcut::ZeroPad { stride, .. } => {
                let name = format!("{name}.downsample");
                let spec = Spec { stride: [*stride; 2], ..Spec::pointwise(name, LayerKind::ZeroPad) };
                Ok(self.push(spec, from, from.after(shape, 1, *stride)))
            }
        }
    }

    fn global_pool(&mut self, name: String, from: Place) -> Place {
        let pool = Spec { kernel: from.size(), ..Spec::pointwise(name, LayerKind::GlobalAvgPool) };
        self.push(pool, from, from.after([from.shape[0], 1, 1], from.shape[1], 1))
    }

    fn head(&mut self, head: &Head, from: Place) {
        let pooled = self.global_pool("global_pool".to_owned(), from);
        let linear = Spec {
            param_count: head.param_count(),
            macs_per_output: head.in_features as u64,
            ..Spec::pointwise(head.name.clone(), LayerKind::Linear)
        };
        self.push(linear, pooled, Place { shape: [head.out_features, 1, 1], ..pooled });
    }
}

#[cfg(test)]
mod tests;
