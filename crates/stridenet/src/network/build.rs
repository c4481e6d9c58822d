//! The one builder: walks the description and makes each layer with its initial weights.

use super::Network;
use crate::Error;
use crate::arch::{self, Arch, ArchError, BlockShortcut};
use crate::kernels::Level;
use crate::kernels::pool::LinearPool;
use crate::layer::{Block, Head, Shortcut, Unit};
use crate::random::{Use, generator};
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};

/// How the weights begin.
///
/// Convolutions are drawn from a normal distribution with variance `2 / (out_channels · kernel_h · kernel_w)` (He et al.
/// 2015, fan-out, as torchvision does), the linear layer from a uniform one within `±1 / √in_features` (PyTorch's
/// default); batch norms begin as the identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Initialise {
    /// Seed of the random numbers.
    pub seed: u64,
    /// Whether the last batch norm of each block begins with gain 0, so that each block begins as its shortcut
    /// (Goyal et al. 2017).
    pub zero_init_last: bool,
}

/// Makes layers one after the other; each has random numbers of its own.
struct Builder {
    level: Level,
    initialise: Initialise,
    layers: u64,
}

impl Builder {
    fn generator(&mut self) -> impl rand::Rng + use<> {
        self.layers += 1;
        generator(self.initialise.seed, Use::Initialise, [self.layers, 0])
    }

    fn unit(&mut self, description: &arch::Unit, input: [usize; 2], gain: f32) -> Result<Unit, ArchError> {
        let geometry = &description.geometry;
        let deviation = (2.0 / (geometry.out_channels * geometry.taps()) as f64).sqrt();
        let mut random = self.generator();
        let mut draw = || -> f32 {
            let value: f64 = StandardNormal.sample(&mut random);
            (value * deviation) as f32
        };
        let weight = (0..geometry.weight_len()).map(|_| draw()).collect();
        Unit::new(self.level, description, input, weight, gain).map_err(ArchError::at(&description.conv))
    }

    fn block(&mut self, description: &arch::Block, input: [usize; 2]) -> Result<Block, ArchError> {
        let mut size = input;
        let last = description.units.len() - 1;
        let mut units = Vec::with_capacity(description.units.len());
        for (index, unit) in description.units.iter().enumerate() {
            let gain = if index == last && self.initialise.zero_init_last { 0.0 } else { 1.0 };
            units.push(self.unit(unit, size, gain)?);
            size = unit.output_size(size).map_err(ArchError::at(&unit.conv))?;
        }
        let shortcut = match &description.shortcut {
            BlockShortcut::Identity => Shortcut::Identity,
            BlockShortcut::Projection(unit) => Shortcut::Projection(Box::new(self.unit(unit, input, 1.0)?)),
            &BlockShortcut::ZeroPad { stride, in_channels, out_channels } => {
                let pool = LinearPool::subsample(input, [in_channels, out_channels], stride);
                Shortcut::ZeroPad { pool: pool.map_err(ArchError::at(&description.name))?, out_channels }
            }
        };
        Ok(Block { units, shortcut })
    }

    fn head(&mut self, description: &arch::Head, input: [usize; 2]) -> Result<Head, ArchError> {
        let (features, classes) = (description.in_features, description.out_features);
        let bound = 1.0 / (features as f32).sqrt();
        let mut random = self.generator();
        let mut draw = |count: usize| (0..count).map(|_| random.random_range(-bound..bound)).collect();
        let (weight, bias) = (draw(features * classes), draw(classes));
        Head::new(self.level, &description.name, input, weight, bias)
            .map_err(ArchError::at(&description.name))
    }
}

impl Network {
    /// The network that `arch` describes, for images of `[height, width]` pixels, with initial weights.
    ///
    /// # Errors
    /// When the description is invalid or the images are too small for it.
    pub fn new(arch: &Arch, input: [usize; 2], level: Level, initialise: Initialise) -> Result<Self, Error> {
        let structure = arch.structure()?;
        let mut builder = Builder { level, initialise, layers: 0 };
        let stem = builder.unit(&structure.stem, input, 1.0)?;
        let mut size = structure.stem.output_size(input).map_err(ArchError::at(&structure.stem.conv))?;
        let mut blocks = Vec::with_capacity(structure.blocks.len());
        for block in &structure.blocks {
            blocks.push(builder.block(block, size)?);
            size = block.output_size(size).map_err(ArchError::at(&block.name))?;
        }
        let head = builder.head(&structure.head, size)?;
        Ok(Network { arch: arch.clone(), input, level, stem, blocks, head })
    }
}
