//! The convolution kernels that a plan chooses from.

use super::fold::Folded;
use crate::algorithm::Choice;
use crate::kernels::conv::{
    Conv, ConvGeometry, ConvScratch, FastConv, FastScratch, FastWeights, ForwardWeights, GeometryError,
    PooledConv, RowConv, RowWeights,
};
use crate::kernels::gemm::Epilogue;
use crate::kernels::pool::MaxPool;
use crate::kernels::{Context, Operands};

/// A convolution with its weights packed in the one form that its algorithm wants.
#[derive(Debug)]
pub(super) enum Kernel {
    Direct(Conv, ForwardWeights),
    Rows(RowConv, RowWeights),
    Fast(FastConv, FastWeights),
    /// A max pool reads the outputs strip by strip.
    Pooled(PooledConv, FastWeights),
}

/// Memory that kernels use while they run.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    direct: ConvScratch,
    fast: FastScratch,
}

impl Kernel {
    pub(super) fn new(
        cx: &Context,
        choice: Choice,
        geometry: ConvGeometry,
        input: [usize; 2],
        folded: &Folded,
    ) -> Result<Self, GeometryError> {
        let weight = folded.weight;
        Ok(match choice {
            Choice::Direct => {
                let conv = Conv::new(cx.level(), geometry, input)?;
                let weights = conv.pack_forward(cx, Operands::F32, weight);
                Kernel::Direct(conv, weights)
            }
            Choice::Rows => {
                let conv = RowConv::new(cx.level(), geometry, input)?;
                let weights = conv.pack(weight);
                Kernel::Rows(conv, weights)
            }
            Choice::Fast(tiling) => {
                let conv = FastConv::new(cx.level(), tiling, geometry, input)?;
                let weights = conv.pack(cx, weight);
                Kernel::Fast(conv, weights)
            }
        })
    }

    /// The convolution with a max pool after it, and the pool where the kernel does not take it in.
    pub(super) fn pooled(self, pool: Option<MaxPool>) -> (Self, Option<MaxPool>) {
        match (self, pool) {
            (Kernel::Fast(conv, weights), Some(pool)) if conv.pools() => {
                (Kernel::Pooled(PooledConv::new(conv, pool), weights), None)
            }
            other => other,
        }
    }

    /// Moves the weights into large pages, where the system grants them.
    pub(super) fn settle(&self) {
        match self {
            Kernel::Direct(_, weights) => weights.settle(),
            // There are few to a row.
            Kernel::Rows(..) => {}
            Kernel::Fast(_, weights) | Kernel::Pooled(_, weights) => weights.settle(),
        }
    }

    /// Makes room for [`run`](Self::run) on at most `images` images with `threads` threads.
    pub(super) fn reserve(&self, images: usize, threads: usize, scratch: &mut Scratch) {
        match self {
            Kernel::Direct(conv, _) => conv.reserve(images, &mut scratch.direct),
            // Rows use none.
            Kernel::Rows(..) => {}
            Kernel::Fast(conv, _) => conv.reserve(images, threads, &mut scratch.fast),
            Kernel::Pooled(conv, _) => conv.reserve(images, threads, &mut scratch.fast),
        }
    }

    pub(super) fn run(
        &self,
        cx: &Context,
        x: &[f32],
        epilogue: Epilogue,
        scratch: &mut Scratch,
        y: &mut [f32],
    ) {
        match self {
            Kernel::Direct(conv, weights) => conv.forward(cx, x, weights, epilogue, &mut scratch.direct, y),
            Kernel::Rows(conv, weights) => conv.forward(cx, x, weights, epilogue, y),
            Kernel::Fast(conv, weights) => conv.forward(cx, x, weights, epilogue, &mut scratch.fast, y),
            Kernel::Pooled(conv, weights) => conv.forward(cx, x, weights, epilogue, &mut scratch.fast, y),
        }
    }
}
