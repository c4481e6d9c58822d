//! The convolution kernels that a plan chooses from.

use super::choose::Choice;
use super::fold::Folded;
use crate::kernels::Context;
use crate::kernels::conv::{
    Conv, ConvGeometry, ConvScratch, FastConv, FastScratch, FastWeights, ForwardWeights, GeometryError,
};
use crate::kernels::gemm::Epilogue;

/// A convolution with its weights packed in the one form that its algorithm wants.
#[derive(Debug)]
pub(super) enum Kernel {
    Direct(Conv, ForwardWeights),
    Fast(FastConv, FastWeights),
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
        Ok(match choice {
            Choice::Direct => {
                let conv = Conv::new(cx.level(), geometry, input)?;
                let weights = conv.pack_forward(cx, folded.weight);
                Kernel::Direct(conv, weights)
            }
            Choice::Fast(tiling) => {
                let conv = FastConv::new(cx.level(), tiling, geometry, input)?;
                let weights = conv.pack(cx, folded.weight);
                Kernel::Fast(conv, weights)
            }
        })
    }

    /// Makes room for [`run`](Self::run) on at most `images` images with `threads` threads.
    pub(super) fn reserve(&self, images: usize, threads: usize, scratch: &mut Scratch) {
        match self {
            Kernel::Direct(conv, _) => conv.reserve(images, &mut scratch.direct),
            Kernel::Fast(conv, _) => conv.reserve(images, threads, &mut scratch.fast),
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
            Kernel::Fast(conv, weights) => conv.forward(cx, x, weights, epilogue, &mut scratch.fast, y),
        }
    }
}
