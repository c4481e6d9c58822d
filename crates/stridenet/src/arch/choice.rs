//! The named choices of a description: stem, block kind, order, stride placement, shortcut, down-sampling, attention.

use super::ArchError;
use super::pool::PoolKind;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use stridenet_kernels::conv::{AverageWindow, Edge, Window};

/// Declares an enum whose variants have one name each, the same on the command line, in JSON and in messages.
macro_rules! choice {
    ($(#[$meta:meta])* $type:ident ($what:literal) {
        $($(#[$variant_meta:meta])* $variant:ident = $name:literal,)+
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $type {
            $($(#[$variant_meta])* $variant,)+
        }

        impl $type {
            /// The names of all variants, in the order of declaration.
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// The name on the command line and in JSON.
            pub const fn name(self) -> &'static str {
                match self {
                    $($type::$variant => $name,)+
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $type {
            type Err = ArchError;

            fn from_str(name: &str) -> Result<Self, ArchError> {
                match name {
                    $($name => Ok($type::$variant),)+
                    _ => {
                        let (found, expected) = (name.to_owned(), Self::NAMES);
                        Err(ArchError::Choice { what: $what, found, expected })
                    }
                }
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

choice! {
    /// What stands before the first block. All but the last shrink by 4 together with their pool.
    Stem ("stem") {
        /// A 7×7 convolution with stride 2 and padding 3, batch norm, ReLU, and a 3×3 max pool with stride 2
        /// and padding 1 (He et al. 2015, table 1).
        ImageNet = "imagenet",
        /// Three 3×3 convolutions, the first with stride 2, each with batch norm and ReLU, in place of the 7×7
        /// one: of half the width twice, then of the whole (ResNet-C, He et al. 2018; timm's `deep`).
        Deep = "deep",
        /// As `deep`, with 3/8, 1/2 and the whole of the width (timm's `deep_tiered`).
        DeepTiered = "deep-tiered",
        /// A 3×3 convolution with stride 1, batch norm and ReLU (He et al. 2015, section 4.2), without a pool.
        Cifar = "cifar",
    }
}

choice! {
    /// What shrinks the stem's output by 2 before the first block; a `cifar` stem has none.
    #[derive(Default)]
    StemPool ("stem_pool") {
        /// A 3×3 max pool, which [`Downsample`] may replace.
        #[default]
        Max = "max",
        /// A 3×3 convolution with stride 2, batch norm and ReLU (ResNet-RS, Bello et al. 2021; timm's
        /// `replace_stem_pool`).
        Conv = "conv",
    }
}

choice! {
    /// The kind of residual block (He et al. 2015, figure 5).
    BlockKind ("block") {
        /// Two 3×3 convolutions.
        Basic = "basic",
        /// 1×1, 3×3 and 1×1 convolutions; the last widens to four times the stage's width.
        Bottleneck = "bottleneck",
    }
}

impl BlockKind {
    /// The channels a block puts out, as a multiple of its stage's width.
    pub const fn expansion(self) -> usize {
        match self {
            BlockKind::Basic => 1,
            BlockKind::Bottleneck => 4,
        }
    }
}

choice! {
    /// The order of convolution, batch norm and ReLU.
    #[derive(Default)]
    Order ("order") {
        /// Convolution, batch norm, ReLU, and a ReLU after each addition (He et al. 2015).
        #[default]
        Post = "post-activation",
        /// Batch norm, ReLU, convolution, nothing after additions, and batch norm and ReLU before the head
        /// (He et al. 2016, Identity mappings; timm's `resnetv2`). A shortcut that changes shape begins behind
        /// the block's first ReLU.
        Pre = "pre-activation",
    }
}

choice! {
    /// What weighs the channels of a block's main path before the addition.
    #[derive(Default)]
    Attention ("attention") {
        /// Nothing.
        #[default]
        None = "none",
        /// Squeeze and excitation (Hu et al. 2017): the channels' means, a linear layer to fewer values, ReLU, a
        /// linear layer back, and a sigmoid.
        Se = "se",
        /// Efficient channel attention (Wang et al. 2019): the channels' means, a convolution along the channels,
        /// and a sigmoid.
        Eca = "eca",
    }
}

choice! {
    /// Which convolution of a bottleneck carries the stage's stride.
    #[derive(Default)]
    StrideOn ("stride_on") {
        /// The first 1×1 convolution, as in the paper and in Caffe.
        Conv1x1 = "v1",
        /// The 3×3 convolution, as in torchvision and timm.
        #[default]
        Conv3x3 = "v1.5",
    }
}

choice! {
    /// How a shortcut changes shape, where the stride is not 1 or the number of channels changes. Everywhere
    /// else a shortcut is the identity.
    #[derive(Default)]
    Shortcut ("shortcut") {
        /// A 1×1 convolution with the stage's stride, and batch norm (the paper's option B).
        #[default]
        Projection = "projection",
        /// An average pool over `stride × stride` pixels, a 1×1 convolution with stride 1, and batch norm
        /// (ResNet-D, He et al. 2018; timm's `avg_down`).
        AvgProjection = "avg-projection",
        /// Every stride-th pixel, and channels of zeros (the paper's option A): no weights.
        ZeroPad = "zero-pad",
    }
}

choice! {
    /// How the main path of a block and the pool of the stem shrink a feature map. No choice has weights of its
    /// own, so that the same weights fit all of them.
    ///
    /// With a pool, the convolution that would carry the stride has stride 1, and the pool follows its batch
    /// norm and ReLU; the projection keeps its strided 1×1 convolution. The stem's max pool becomes an average
    /// pool over 2×2 pixels, or a max pool with stride 1 and a blur pool. That is timm's arrangement for
    /// `aa_layer`.
    #[derive(Default)]
    Downsample ("downsample") {
        /// A convolution with stride.
        #[default]
        Strided = "strided",
        /// A max pool.
        MaxPool = "max-pool",
        /// An average pool over `stride × stride` pixels.
        AvgPool = "avg-pool",
        /// A binomial 3×3 filter and subsampling (Zhang 2019).
        BlurPool = "blur-pool",
    }
}

impl Downsample {
    /// The pool that takes over `stride` from a convolution: `None` where the convolution keeps it.
    pub(super) fn pool(self, stride: usize) -> Option<PoolKind> {
        match self {
            Downsample::Strided => None,
            // In place of a stride that dilation has replaced, timm blurs all the same.
            Downsample::BlurPool => Some(PoolKind::Blur { stride }),
            _ if stride == 1 => None,
            // An even stride takes the next odd kernel, so that padding by half of it keeps windows centred.
            Downsample::MaxPool => Some(PoolKind::Max(Window::same(stride | 1, stride))),
            Downsample::AvgPool => Some(PoolKind::Avg(AverageWindow::partial(stride))),
        }
    }

    /// The pools between the stem and the first block.
    pub(super) fn stem_pools(self) -> Vec<PoolKind> {
        match self {
            Downsample::Strided | Downsample::MaxPool => vec![PoolKind::Max(Window::same(3, 2))],
            Downsample::AvgPool => {
                vec![PoolKind::Avg(AverageWindow { kernel: 2, stride: 2, edge: Edge::Drop })]
            }
            Downsample::BlurPool => {
                vec![PoolKind::Max(Window::same(3, 1)), PoolKind::Blur { stride: 2 }]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_in_text_and_json() {
        for (name, choice) in Downsample::NAMES.iter().zip([
            Downsample::Strided,
            Downsample::MaxPool,
            Downsample::AvgPool,
            Downsample::BlurPool,
        ]) {
            assert_eq!(name.parse(), Ok(choice));
            assert_eq!(choice.to_string(), *name);
            assert_eq!(serde_json::to_string(&choice).unwrap(), format!("\"{name}\""));
            assert_eq!(serde_json::from_str::<Downsample>(&format!("\"{name}\"")).unwrap(), choice);
        }
        assert_eq!("v1".parse(), Ok(StrideOn::Conv1x1));
        assert_eq!("v1.5".parse(), Ok(StrideOn::Conv3x3));
        assert_eq!("zero-pad".parse(), Ok(Shortcut::ZeroPad));
        assert_eq!("imagenet".parse(), Ok(Stem::ImageNet));
        assert_eq!("bottleneck".parse(), Ok(BlockKind::Bottleneck));
    }

    #[test]
    fn other_names_are_refused_on_one_line() {
        let error = "max\npool".parse::<Downsample>().unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"downsample is "max\npool", expected one of strided, max-pool, avg-pool, blur-pool"#
        );
        assert!(
            serde_json::from_str::<Stem>("\"vgg\"")
                .unwrap_err()
                .to_string()
                .contains("imagenet, deep, deep-tiered, cifar")
        );
    }

    #[test]
    fn defaults_are_torchvisions() {
        assert_eq!(StrideOn::default(), StrideOn::Conv3x3);
        assert_eq!(Shortcut::default(), Shortcut::Projection);
        assert_eq!(Downsample::default(), Downsample::Strided);
        assert_eq!((Order::default(), Attention::default()), (Order::Post, Attention::None));
        assert_eq!(StemPool::default(), StemPool::Max);
    }
}
