//! The one builder: walks the description and makes each layer with its initial weights.

use super::Network;
use crate::Error;
use crate::arch::{self, Arch, ArchError, Attention, BlockShortcut, Order};
use crate::kernels::pool::LinearPool;
use crate::kernels::{Context, Level};
use crate::layer::{Block, Head, Pools, Shortcut, Unit};
use crate::random::{Use, generator};
use crate::weights::{Account, StateDict};
use rand::RngExt;
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
    /// Whether the last batch norm of each block begins with gain 0, so that each block begins as its shortcut
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
    fn generator(&mut self) -> Option<impl rand::Rng + use<>> {
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
        let weight = self.generator().map(draw).unwrap_or_default();
        Unit::new(self.level, description, input, weight, gain).map_err(ArchError::at(&description.conv))
    }

    fn block(&mut self, description: &arch::Block, input: [usize; 2]) -> Result<Block, ArchError> {
        let mut size = input;
        let last = description.units.len() - 1;
        let zero = self.initialise.is_some_and(|initialise| initialise.zero_init_last);
        let mut units = Vec::with_capacity(description.units.len());
        for (index, unit) in description.units.iter().enumerate() {
            let gain = if index == last && zero { 0.0 } else { 1.0 };
            units.push(self.unit(unit, size, gain)?);
            size = unit.output_size(size).map_err(ArchError::at(&unit.conv))?;
        }
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
        Ok(Block { units, shortcut })
    }

    fn head(&mut self, description: &arch::Head, input: [usize; 2]) -> Result<Head, ArchError> {
        let (features, classes) = (description.in_features, description.out_features);
        let bound = 1.0 / (features as f32).sqrt();
        let [weight, bias] = match self.generator() {
            Some(mut random) => [features * classes, classes]
                .map(|count| (0..count).map(|_| random.random_range(-bound..bound)).collect()),
            // A vector is small, and its length is its shape.
            None => [Vec::new(), vec![0.0; classes]],
        };
        Head::new(self.level, description, input, weight, bias).map_err(ArchError::at(&description.name))
    }

    fn network(mut self, arch: &Arch, input: [usize; 2]) -> Result<Network, Error> {
        let structure = arch.structure()?;
        refuse(arch)?;
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
        let head = self.head(&structure.head, size)?;
        Ok(Network { arch: arch.clone(), input, level: self.level, stem, blocks, head })
    }
}

/// Refuses what can be inspected but not yet computed.
fn refuse(arch: &Arch) -> Result<(), ArchError> {
    let (field, found) = match arch {
        Arch { attention: Attention::Se | Attention::Eca, .. } => ("attention", arch.attention.to_string()),
        Arch { order: Order::Pre, .. } => ("order", arch.order.to_string()),
        _ => return Ok(()),
    };
    let (reason, remedy) =
        ("it cannot be computed yet".to_owned(), "inspect it, or choose another network".to_owned());
    Err(ArchError::Conflict { field, found, reason, remedy })
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
