//! Memory that is handed from layer to layer instead of being freed and allocated again.

use crate::Tensor;
use std::collections::HashMap;
use stridenet_kernels::conv::{ConvScratch, FastScratch};
use stridenet_kernels::{norm, prefer_large_pages};

/// Buffers that are not in use, by length, and the convolutions' scratch memory.
///
/// The shapes of a training step are the same every time, so that after the first step nothing is allocated.
#[derive(Debug, Default)]
pub struct Workspace {
    free: HashMap<usize, Vec<Tensor>>,
    bytes: HashMap<usize, Vec<Vec<u8>>>,
    /// What direct convolutions work in: the packed weights of one pass, and copies. Weights change with each step, so that each
    /// pass packs them.
    pub(crate) direct: ConvScratch,
    /// What fast convolutions work in: the transformed weights of one pass, or their gradients, and tiles.
    pub(crate) fast: FastScratch,
    /// What batch norms take their sums in.
    pub(crate) norm: norm::Scratch,
}

impl Workspace {
    /// A tensor of `shape` whose values are whatever was there before.
    pub(crate) fn tensor(&mut self, shape: [usize; 4]) -> Tensor {
        let length = shape.iter().product();
        match self.free.get_mut(&length).and_then(Vec::pop) {
            Some(tensor) => tensor.into_shape(shape),
            None => {
                let mut tensor = Tensor::zeros(shape);
                prefer_large_pages(tensor.data_mut());
                tensor
            }
        }
    }

    /// Takes a tensor back.
    pub(crate) fn give(&mut self, tensor: Tensor) {
        self.free.entry(tensor.data().len()).or_default().push(tensor);
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
