//! Networks as both sides of an exchange see them: a few operations, each on the results of earlier ones.
//!
//! A file's graph and a network's structure are brought to this form and then compared. What differs between exporters has
//! no place here: constants, shape arithmetic, names, and whether a batch norm stands apart or inside the convolution.

use crate::kernels::conv::{AverageWindow, ConvGeometry, Edge, Window};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

/// A batch norm's constants, named or held by `T`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NormParts<T> {
    pub(super) weight: T,
    pub(super) bias: T,
    pub(super) mean: T,
    pub(super) var: T,
    /// Added to the variance.
    pub(super) epsilon: f32,
}

/// An operation. `T` is where a weight comes from.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Op<T> {
    /// The images, with this many channels.
    Input(usize),
    /// A convolution with the batch norm behind it.
    Conv {
        geometry: ConvGeometry,
        weight: T,
        bias: Option<T>,
        norm: Option<NormParts<T>>,
    },
    /// A batch norm that no convolution takes in.
    Norm {
        channels: usize,
        norm: NormParts<T>,
    },
    Relu,
    MaxPool(Window),
    AvgPool {
        window: AverageWindow,
        /// Whether the windows end where the images do, so that what happens at the edge does not matter.
        exact: bool,
    },
    /// The binomial 3×3 filter over a reflected border, at every `stride`-th pixel.
    Blur {
        stride: usize,
    },
    /// Every `stride`-th pixel.
    Subsample {
        stride: usize,
    },
    /// Channels of zeros before and after.
    PadChannels {
        before: usize,
        after: usize,
    },
    /// The mean of all pixels.
    GlobalAvgPool,
    /// A convolution along the channels of one pixel, with zeros beyond the ends.
    ChannelConv {
        kernel: usize,
        weight: T,
    },
    Sigmoid,
    /// The first input times the second one's value for each channel.
    Scale,
    Add,
    /// A linear layer on one pixel.
    Linear {
        inputs: usize,
        outputs: usize,
        weight: T,
        bias: Option<T>,
    },
}

/// An operation with its inputs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Step<T> {
    /// What it is called in messages and in written files.
    pub(super) name: String,
    pub(super) op: Op<T>,
    /// Earlier steps. The first one carries the image through the network.
    pub(super) inputs: Vec<usize>,
}

/// Steps, each after its inputs. The last one makes the logits.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Dag<T> {
    pub(super) steps: Vec<Step<T>>,
}

impl<T> Dag<T> {
    pub(super) fn new() -> Self {
        Dag { steps: Vec::new() }
    }

    /// Adds a step and returns its place.
    pub(super) fn push(&mut self, name: impl Into<String>, op: Op<T>, inputs: &[usize]) -> usize {
        self.steps.push(Step { name: name.into(), op, inputs: inputs.to_vec() });
        self.steps.len() - 1
    }

    /// The channels of each step's value.
    pub(super) fn channels(&self) -> Vec<usize> {
        let mut channels: Vec<usize> = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let before = step.inputs.first().map_or(0, |&input| channels[input]);
            channels.push(match step.op {
                Op::Input(channels) => channels,
                Op::Conv { geometry, .. } => geometry.out_channels,
                Op::PadChannels { before: first, after } => before + first + after,
                Op::Linear { outputs, .. } => outputs,
                _ => before,
            });
        }
        channels
    }

    /// A number for each step that is the same for steps that compute the same from weights of the same shapes. The order
    /// of what is added does not matter.
    pub(super) fn signatures(&self) -> Vec<u64> {
        let mut signatures: Vec<u64> = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let mut hasher = DefaultHasher::new();
            step.op.shape().hash(&mut hasher);
            let mut inputs: Vec<u64> = step.inputs.iter().map(|&input| signatures[input]).collect();
            if matches!(step.op, Op::Add) {
                inputs.sort_unstable();
            }
            inputs.hash(&mut hasher);
            signatures.push(hasher.finish());
        }
        signatures
    }
}

/// What must agree for two operations to be the same, apart from the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Shape {
    Input(usize),
    Conv(ConvGeometry),
    Norm(usize),
    Relu,
    MaxPool(Window),
    AvgPool { kernel: usize, stride: usize, zeros: bool },
    Blur(usize),
    Subsample(usize),
    PadChannels(usize, usize),
    GlobalAvgPool,
    ChannelConv(usize),
    Sigmoid,
    Scale,
    Add,
    Linear(usize, usize),
}

impl<T> Op<T> {
    pub(super) fn shape(&self) -> Shape {
        match *self {
            Op::Input(channels) => Shape::Input(channels),
            Op::Conv { geometry, .. } => Shape::Conv(geometry),
            Op::Norm { channels, .. } => Shape::Norm(channels),
            Op::Relu => Shape::Relu,
            Op::MaxPool(window) => Shape::MaxPool(window),
            Op::AvgPool { window: AverageWindow { kernel, stride, edge }, .. } => {
                Shape::AvgPool { kernel, stride, zeros: edge == Edge::Zeros }
            }
            Op::Blur { stride } => Shape::Blur(stride),
            Op::Subsample { stride } => Shape::Subsample(stride),
            Op::PadChannels { before, after } => Shape::PadChannels(before, after),
            Op::GlobalAvgPool => Shape::GlobalAvgPool,
            Op::ChannelConv { kernel, .. } => Shape::ChannelConv(kernel),
            Op::Sigmoid => Shape::Sigmoid,
            Op::Scale => Shape::Scale,
            Op::Add => Shape::Add,
            Op::Linear { inputs, outputs, .. } => Shape::Linear(inputs, outputs),
        }
    }
}

impl<T> Op<T> {
    /// What the operation is, for messages.
    pub(super) fn describe(&self) -> String {
        let edge = match self {
            Op::AvgPool { window: AverageWindow { edge: Edge::Partial, .. }, .. } => {
                " and smaller windows at the edge"
            }
            Op::AvgPool { window: AverageWindow { edge: Edge::Drop, .. }, .. } => " and whole windows only",
            Op::Conv { norm: None, .. } => " without batch norm",
            _ => "",
        };
        format!("{}{edge}", self.shape())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Shape::Input(channels) => write!(f, "images of {channels} channels"),
            Shape::Conv(geometry) => {
                let ConvGeometry { in_channels, out_channels, kernel, stride, padding, dilation, groups } =
                    geometry;
                let [height, width] = kernel;
                write!(
                    f,
                    "a {height}×{width} convolution {in_channels}→{out_channels} with stride {}",
                    stride[0]
                )?;
                for (what, value, usual) in
                    [("padding", padding[0], height / 2), ("dilation", dilation[0], 1), ("groups", groups, 1)]
                {
                    if value != usual {
                        write!(f, ", {what} {value}")?;
                    }
                }
                Ok(())
            }
            Shape::Norm(channels) => write!(f, "a batch norm of {channels} channels"),
            Shape::Relu => f.write_str("a ReLU"),
            Shape::MaxPool(Window { kernel, stride, padding, .. }) => {
                write!(f, "a {kernel}×{kernel} max pool with stride {stride} and padding {padding}")
            }
            Shape::AvgPool { kernel, stride, zeros } => {
                let edge = if zeros { " and zeros beyond the edge" } else { "" };
                write!(f, "a {kernel}×{kernel} average pool with stride {stride}{edge}")
            }
            Shape::Blur(stride) => write!(f, "a blur pool with stride {stride}"),
            Shape::Subsample(stride) => write!(f, "a subsampling with stride {stride}"),
            Shape::PadChannels(before, after) => write!(f, "{before} and {after} channels of zeros"),
            Shape::GlobalAvgPool => f.write_str("a global average pool"),
            Shape::ChannelConv(kernel) => write!(f, "a convolution of {kernel} channels"),
            Shape::Sigmoid => f.write_str("a sigmoid"),
            Shape::Scale => f.write_str("a product of channels and their weights"),
            Shape::Add => f.write_str("an addition"),
            Shape::Linear(inputs, outputs) => write!(f, "a linear layer {inputs}→{outputs}"),
        }
    }
}
