//! Memory that is handed from layer to layer instead of being freed and allocated again.

use crate::Tensor;
use std::collections::HashMap;
use stridenet_kernels::conv::{
    BackwardWeights, Conv, ConvScratch, FastConv, FastScratch, FastWeights, ForwardWeights,
};
use stridenet_kernels::gemm::Epilogue;
use stridenet_kernels::{Context, Operands, Source, norm};

/// Buffers that are not in use, by length, and the convolutions' scratch memory.
///
/// The shapes of a training step are the same every time, so that after the first step nothing is allocated.
#[derive(Debug, Default)]
pub struct Workspace {
    free: HashMap<usize, Vec<Vec<f32>>>,
    bytes: HashMap<usize, Vec<Vec<u8>>>,
    pub(crate) direct: Direct,
    pub(crate) fast: Fast,
    /// What batch norms take their sums in.
    pub(crate) norm: norm::Scratch,
}

/// What direct convolutions work in: the packed weights of one pass, and scratch memory. Weights change with each step, so that
/// each pass packs them once, wherever that is.
#[derive(Debug, Default)]
pub(crate) struct Direct {
    forward: ForwardWeights,
    backward: BackwardWeights,
    scratch: ConvScratch,
}

impl Direct {
    /// Packs the weights and convolves.
    pub(crate) fn run(
        &mut self,
        cx: &Context,
        conv: &Conv,
        (operands, weight): (Operands, &[f32]),
        x: Source,
        epilogue: Epilogue,
        y: &mut [f32],
    ) {
        conv.repack_forward(cx, operands, weight, &mut self.forward);
        conv.forward(cx, x, &self.forward, epilogue, &mut self.scratch, y);
    }

    /// Packs the weights and takes the output's gradient to the input's.
    pub(crate) fn grad_input(
        &mut self,
        cx: &Context,
        conv: &Conv,
        (operands, weight): (Operands, &[f32]),
        dy: &[f32],
        epilogue: Epilogue,
        dx: &mut [f32],
    ) {
        conv.repack_backward(cx, operands, weight, &mut self.backward);
        conv.grad_input(cx, dy, &self.backward, epilogue, &mut self.scratch, dx);
    }

    /// The gradient of the weights, from the input and the output's gradient.
    pub(crate) fn grad_weight(
        &mut self,
        cx: &Context,
        conv: &Conv,
        operands: Operands,
        (x, dy): (Source, &[f32]),
        dw: &mut [f32],
    ) {
        conv.grad_weight(cx, operands, x, dy, &mut self.scratch, dw);
    }
}

/// What fast convolutions work in: the transformed weights of one pass, and their tiles.
#[derive(Debug, Default)]
pub(crate) struct Fast {
    weights: Option<FastWeights>,
    scratch: FastScratch,
}

impl Fast {
    /// Transforms the weights and convolves.
    pub(crate) fn run(
        &mut self,
        cx: &Context,
        conv: &FastConv,
        weight: &[f32],
        x: Source,
        epilogue: Epilogue,
        y: &mut [f32],
    ) {
        let Fast { weights, scratch } = self;
        let weights = match weights {
            Some(weights) => {
                conv.repack(cx, weight, weights);
                weights
            }
            None => weights.insert(conv.pack(cx, weight)),
        };
        conv.forward(cx, x, weights, epilogue, scratch, y);
    }

    /// The gradient of the weights.
    pub(crate) fn grad_weight(
        &mut self,
        cx: &Context,
        conv: &FastConv,
        x: Source,
        dy: &[f32],
        dw: &mut [f32],
    ) {
        conv.grad_weight(cx, x, dy, &mut self.scratch, dw);
    }
}

impl Workspace {
    /// A tensor of `shape` whose values are whatever was there before.
    pub(crate) fn tensor(&mut self, shape: [usize; 4]) -> Tensor {
        let length = shape.iter().product();
        let data = self.free.get_mut(&length).and_then(Vec::pop).unwrap_or_else(|| vec![0.0; length]);
        Tensor::new(shape, data).expect("buffers are kept by their length")
    }

    /// Takes a tensor back.
    pub(crate) fn give(&mut self, tensor: Tensor) {
        let data = tensor.into_data();
        self.free.entry(data.len()).or_default().push(data);
    }

    /// A byte buffer whose values are whatever was there before.
    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        self.bytes.get_mut(&length).and_then(Vec::pop).unwrap_or_else(|| vec![0; length])
    }

    /// Takes a byte buffer back.
    pub(crate) fn give_bytes(&mut self, bytes: Vec<u8>) {
        self.bytes.entry(bytes.len()).or_default().push(bytes);
    }

    /// Number of buffers that are not in use.
    #[cfg(test)]
    pub(crate) fn buffers(&self) -> usize {
        self.free.values().map(Vec::len).sum::<usize>() + self.bytes.values().map(Vec::len).sum::<usize>()
    }
}
