//! The one builder: walks the description and makes each layer with its initial weights.

use super::{Network, Spare};
use crate::Error;
use crate::arch::{self, Arch, ArchError, BlockShortcut, GateKind};
use crate::kernels::conv::GeometryError;
use crate::kernels::pool::LinearPool;
use crate::kernels::{Context, Level};
use crate::layer::{self, BatchNorm, Block, Gate, Head, Linear, Parameter, Pools, Shortcut, Stored, Unit};
use crate::random::{Use, generator};
use crate::weights::{Account, StateDict};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use std::path::Path;

/// How the weights begin.
///
/// Convolutions are drawn from a normal distribution with variance `2 / (out_channels · kernel_h · kernel_w)` (He et al.
/// 2015, fan-out, as torchvision does), the linear layer from a uniform one within `±1 / √in_features` (PyTorch's
/// default); batch norms begin as the identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Initialise {
    /// Seed of the random numbers.
    pub seed: u64,
    /// Whether the last batch norm of each block begins with gain 0, or, with pre-activation, the last convolution with
    /// weights of 0, so that each block begins as its shortcut
    /// (Goyal et al. 2017).
    pub zero_init_last: bool,
}

/// Makes layers one after the other; each has random numbers of its own.
struct Builder {
    level: Level,
    /// How the weights begin; without it they are left out, to be filled in later.
    initialise: Option<Initialise>,
    layers: u64,
}

impl Builder {
    /// The next layer's random numbers, where it has any.
    fn generator(&mut self) -> Option<ChaCha8Rng> {
        self.layers += 1;
        self.initialise.map(|initialise| generator(initialise.seed, Use::Initialise, [self.layers, 0]))
    }

    fn unit(&mut self, description: &arch::Unit, input: [usize; 2], gain: f32) -> Result<Unit, ArchError> {
        let geometry = &description.geometry;
        let deviation = (2.0 / (geometry.out_channels * geometry.taps()) as f64).sqrt();
        let draw = |mut random| -> Vec<f32> {
            let normal = StandardNormal.sample_iter(&mut random).take(geometry.weight_len());
            normal.map(|value: f64| (value * deviation) as f32).collect()
        };
        let mut weight = self.generator().map(draw).unwrap_or_default();
        if description.norm.is_none() && gain == 0.0 {
            weight.fill(0.0);
        }
        Unit::new(self.level, description, input, weight, gain).map_err(ArchError::at(&description.conv))
    }

    fn block(&mut self, description: &arch::Block, input: [usize; 2]) -> Result<Block, ArchError> {
        let mut size = input;
        let last = description.units.len() - 1;
        let norm = description.norm.as_ref().map(|norm| BatchNorm::new(&norm.name, norm.channels, 1.0));
        let zero = self.initialise.is_some_and(|initialise| initialise.zero_init_last);
        let mut units = Vec::with_capacity(description.units.len());
        for (index, unit) in description.units.iter().enumerate() {
            let gain = if index == last && zero { 0.0 } else { 1.0 };
            units.push(self.unit(unit, size, gain)?);
            size = unit.output_size(size).map_err(ArchError::at(&unit.conv))?;
        }
        let gate = description.gate.as_ref().map(|gate| self.gate(gate, size)).transpose()?;
        let shortcut = match &description.shortcut {
            BlockShortcut::Identity => Shortcut::Identity,
            BlockShortcut::Projection { pool, unit } => {
                let at = || ArchError::at(&unit.conv);
                let pools = Pools::new(pool.as_slice(), input, description.in_channels).map_err(at())?;
                let size = pool.map_or(Ok(input), |pool| pool.output(input)).map_err(at())?;
                Shortcut::Projection(pools, Box::new(self.unit(unit, size, 1.0)?))
            }
            &BlockShortcut::ZeroPad { stride, in_channels, out_channels } => {
                let pool = LinearPool::subsample(input, [in_channels, out_channels], stride);
                Shortcut::ZeroPad { pool: pool.map_err(ArchError::at(&description.name))?, out_channels }
            }
        };
        Ok(Block { norm, units, gate, shortcut, spare: Vec::new() })
    }

    /// Weights and bias of a linear layer from `features` to `outputs` values.
    fn linear(&mut self, [features, outputs]: [usize; 2]) -> [Vec<f32>; 2] {
        let bound = 1.0 / (features as f32).sqrt();
        match self.generator() {
            Some(mut random) => [features * outputs, outputs]
                .map(|count| (0..count).map(|_| random.random_range(-bound..bound)).collect()),
            // A vector is small, and its length is its shape.
            None => [Vec::new(), vec![0.0; outputs]],
        }
    }

    fn gate(&mut self, description: &arch::Gate, input: [usize; 2]) -> Result<Gate, ArchError> {
        let arch::Gate { name, channels, kind } = description;
        let channels = *channels;
        let mut make = || -> Result<Gate, GeometryError> {
            let pool = LinearPool::global_average(input, channels)?;
            let kind = match *kind {
                GateKind::Se { squeezed } => {
                    let mut layer = |part: &str, sizes: [usize; 2]| {
                        let [weight, bias] = self.linear(sizes);
                        Linear::new(
                            self.level,
                            &format!("{name}.{part}"),
                            sizes,
                            Stored::Convolution,
                            weight,
                            bias,
                        )
                    };
                    let narrow = layer("fc1", [channels, squeezed])?;
                    layer::GateKind::Se(Box::new([narrow, layer("fc2", [squeezed, channels])?]))
                }
                GateKind::Eca { kernel } => {
                    let bound = 1.0 / (kernel as f32).sqrt();
                    let draw = |mut random: ChaCha8Rng| {
                        (0..kernel).map(|_| random.random_range(-bound..bound)).collect()
                    };
                    let taps = self.generator().map_or_else(|| vec![0.0; kernel], draw);
                    layer::GateKind::Eca(Parameter::weight(
                        format!("{name}.conv.weight"),
                        vec![1, 1, kernel],
                        taps,
                    ))
                }
            };
            Ok(Gate { pool, kind })
        };
        make().map_err(ArchError::at(name))
    }

    fn head(&mut self, description: &arch::Head, input: [usize; 2]) -> Result<Head, ArchError> {
        let [weight, bias] = self.linear([description.in_features, description.out_features]);
        Head::new(self.level, description, input, weight, bias).map_err(ArchError::at(&description.name))
    }

    fn network(mut self, arch: &Arch, input: [usize; 2]) -> Result<Network, Error> {
        let structure = arch.structure()?;
        let mut size = input;
        let mut stem = Vec::with_capacity(structure.stem.len());
        for unit in &structure.stem {
            stem.push(self.unit(unit, size, 1.0)?);
            size = unit.output_size(size).map_err(ArchError::at(&unit.conv))?;
        }
        let mut blocks = Vec::with_capacity(structure.blocks.len());
        for block in &structure.blocks {
            blocks.push(self.block(block, size)?);
            size = block.output_size(size).map_err(ArchError::at(&block.name))?;
        }
        let norm = structure.norm.as_ref().map(|norm| BatchNorm::new(&norm.name, norm.channels, 1.0));
        let head = self.head(&structure.head, size)?;
        Ok(Network {
            arch: arch.clone(),
            input,
            level: self.level,
            stem,
            blocks,
            norm,
            head,
            recompute: false,
            spare: Spare::default(),
        })
    }
}

impl Network {
    /// The network that `arch` describes, for images of `[height, width]` pixels, with initial weights.
    ///
    /// # Errors
    /// When the description is invalid or the images are too small for it.
    pub fn new(arch: &Arch, input: [usize; 2], level: Level, initialise: Initialise) -> Result<Self, Error> {
        Builder { level, initialise: Some(initialise), layers: 0 }.network(arch, input)
    }

    /// The network that `arch` describes, for images of `[height, width]` pixels, with the weights of `state`, which came
    /// from the file `path`; and what became of each tensor.
    ///
    /// # Errors
    /// When the description is invalid, the images are too small for it, or a tensor is missing, unknown or of another
    /// shape.
    pub fn from_state(
        cx: &Context,
        arch: &Arch,
        input: [usize; 2],
        path: &Path,
        state: StateDict,
    ) -> Result<(Self, Account), Error> {
        let builder = Builder { level: cx.level(), initialise: None, layers: 0 };
        let mut network = builder.network(arch, input)?;
        let account = network.load(cx, path, state)?;
        Ok((network, account))
    }
}
