//! A run of steps between two activations that are kept for the whole batch.

use super::kernel::{Kernel, Scratch};
use super::profile::Profile;
use crate::kernels::gate::{self, Extent};
use crate::kernels::gemm::{Epilogue, Residual};
use crate::kernels::pool::{LinearPool, MaxPool};
use crate::kernels::{Aligned, Context, norm};

/// Where a step finds or leaves an activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// The segment's input.
    Input,
    /// The first `len` values an image of the segment's output: all of them, or what is overwritten before.
    Output { len: usize },
    /// The first `len` values an image of a buffer of the segment.
    Slot { slot: usize, len: usize },
}

/// What a step does.
#[derive(Debug)]
pub(super) enum Operation {
    /// Convolution, bias, residual, ReLU.
    Conv {
        kernel: Box<Kernel>,
        bias: Vec<f32>,
        relu: bool,
    },
    MaxPool {
        pool: MaxPool,
        channels: usize,
    },
    /// Average, blur, global average, or the pixels that a shortcut keeps.
    LinearPool(LinearPool),
    /// A batch norm that follows no convolution, as a factor and a summand for each channel, and a ReLU.
    Norm {
        scale: Vec<f32>,
        shift: Vec<f32>,
    },
    /// The sigmoid of a convolution along the channels.
    Sigmoid {
        taps: Vec<f32>,
        channels: usize,
    },
    /// The product with weights for each channel, residual, ReLU.
    Gate {
        extent: Extent,
    },
}

/// One operation of a plan.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) operation: Operation,
    pub(super) input: Place,
    /// A gate's weights.
    pub(super) weights: Option<Place>,
    /// What a convolution or a gate adds; where it is the output's place, the sum replaces it.
    pub(super) residual: Option<Place>,
    pub(super) output: Place,
    /// The step's number in the plan.
    pub(super) index: usize,
}

/// Steps with one input and one output.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) steps: Vec<Step>,
    /// Values an image of each buffer.
    pub(super) slots: Vec<usize>,
    /// Images that one thread takes through all steps before the next ones; with `None` all threads work on each step.
    pub(super) group: Option<usize>,
    /// Values an image of the input and the output.
    pub(super) input_len: usize,
    pub(super) output_len: usize,
}

/// The buffers that one thread, or all together, run steps in.
#[derive(Debug, Default)]
pub(super) struct Local {
    slots: Vec<Aligned>,
    scratch: Scratch,
}

impl Local {
    /// Makes room for at most `images` images that `threads` threads take through the steps.
    pub(super) fn grow(&mut self, segment: &Segment, images: usize, threads: usize) {
        if self.slots.len() < segment.slots.len() {
            self.slots.resize_with(segment.slots.len(), Aligned::default);
        }
        for (slot, len) in self.slots.iter_mut().zip(&segment.slots) {
            slot.grow(len * images);
        }
        for step in segment.steps.iter().filter(|_| images > 0) {
            if let Operation::Conv { kernel, .. } = &step.operation {
                kernel.reserve(images, threads, &mut self.scratch);
            }
        }
    }

    /// Values of all buffers.
    pub(super) fn len(&self) -> usize {
        self.slots.iter().map(Aligned::len).sum()
    }
}

impl Segment {
    /// Moves the weights into large pages, where the system grants them.
    pub(super) fn settle(&self) {
        for step in &self.steps {
            if let Operation::Conv { kernel, .. } = &step.operation {
                kernel.settle();
            }
        }
    }

    /// Runs all steps on the images of `input`.
    pub(super) fn run(
        &self,
        cx: &Context,
        local: &mut Local,
        input: &[f32],
        output: &mut [f32],
        profile: Option<&Profile>,
    ) {
        let images = input.len() / self.input_len;
        for step in &self.steps {
            let start = profile.map(|_| std::time::Instant::now());
            // The output's buffer is taken out while the others are read.
            let mut taken = match step.output {
                Place::Slot { slot, .. } => std::mem::take(&mut local.slots[slot]),
                Place::Input | Place::Output { .. } => Aligned::default(),
            };
            let (to, written): (&mut [f32], &[f32]) = match step.output {
                Place::Slot { len, .. } => (&mut taken.values_mut()[..len * images], output),
                Place::Output { len } => (&mut output[..len * images], &[]),
                Place::Input => unreachable!("a segment's input is not ours to change"),
            };
            let Local { slots, scratch } = local;
            let read = |place: Place| match place {
                Place::Slot { slot, len } => &slots[slot].values()[..len * images],
                Place::Input => input,
                Place::Output { len } => &written[..len * images],
            };
            let from = read(step.input);
            let residual = step.residual.map(|place| match place == step.output {
                true => Residual::InPlace,
                false => Residual::Tensor(read(place)),
            });
            match &step.operation {
                Operation::Conv { kernel, bias, relu } => {
                    let epilogue = Epilogue { bias: Some(bias), residual, relu: *relu, follow: None };
                    kernel.run(cx, from, epilogue, scratch, to);
                }
                Operation::MaxPool { pool, channels } => pool.infer(cx, *channels, from, to),
                Operation::LinearPool(pool) => pool.forward(cx, from, to),
                Operation::Norm { scale, shift } => {
                    norm::apply(cx, norm::Apply { x: from, scale, shift, residual: None, relu: true }, to);
                }
                Operation::Sigmoid { taps, channels } => {
                    gate::sigmoid_of_channels(cx, *channels, taps, from, to);
                }
                Operation::Gate { extent } => {
                    let weights = step.weights.map_or(&[][..], read);
                    gate::apply(cx, *extent, gate::Gated { x: from, weights, residual, relu: true }, to);
                }
            }
            if let Place::Slot { slot, .. } = step.output {
                local.slots[slot] = taken;
            }
            if let (Some(profile), Some(start)) = (profile, start) {
                profile.add(step.index, start.elapsed(), cx.pool().available());
            }
        }
    }
}
