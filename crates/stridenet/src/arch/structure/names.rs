//! The names of torch's state dict: torchvision's, which timm has too, and those of timm's pre-activation networks.

use crate::arch::{Arch, Order, Shortcut, Stem};

impl Arch {
    /// The convolution and the batch norm `index` of the stem, of which `last` is the last one.
    pub(super) fn stem_names(&self, index: usize, last: usize) -> (String, Option<String>) {
        let deep = matches!(self.stem, Stem::Deep | Stem::DeepTiered);
        match (self.order, deep) {
            (Order::Post, false) => ("conv1".to_owned(), Some("bn1".to_owned())),
            // In torch a sequence of convolution, norm, ReLU, convolution, …, without the last norm.
            (Order::Post, true) if index == last => (format!("conv1.{}", 3 * index), Some("bn1".to_owned())),
            (Order::Post, true) => (format!("conv1.{}", 3 * index), Some(format!("conv1.{}", 3 * index + 1))),
            (Order::Pre, false) => ("stem.conv".to_owned(), None),
            (Order::Pre, true) => {
                let norm = (index < last).then(|| format!("stem.norm{}", index + 1));
                (format!("stem.conv{}", index + 1), norm)
            }
        }
    }

    pub(super) fn block_name(&self, stage: usize, index: usize) -> String {
        match self.order {
            Order::Post => format!("layer{}.{index}", stage + 1),
            Order::Pre => format!("stages.{stage}.blocks.{index}"),
        }
    }

    /// The batch norm behind convolution `position` of a block, of which `last` is the last one.
    pub(super) fn unit_norm(&self, block: &str, position: usize, last: usize) -> Option<String> {
        match self.order {
            Order::Post => Some(format!("{block}.bn{}", position + 1)),
            Order::Pre => (position < last).then(|| format!("{block}.norm{}", position + 2)),
        }
    }

    /// The convolution and the batch norm of a block's projection.
    pub(super) fn shortcut_names(&self, block: &str) -> (String, Option<String>) {
        // The average pool, or nothing in its place, is the first layer of the sequence.
        let first = usize::from(self.shortcut == Shortcut::AvgProjection);
        match self.order {
            Order::Post => {
                let norm = format!("{block}.downsample.{}", first + 1);
                (format!("{block}.downsample.{first}"), Some(norm))
            }
            Order::Pre => (format!("{block}.downsample.conv"), None),
        }
    }

    pub(super) fn head_name(&self) -> &'static str {
        match self.order {
            Order::Post => "fc",
            Order::Pre => "head.fc",
        }
    }
}
