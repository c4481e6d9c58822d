//! From a network's steps to the nodes and constants of a file.

use super::dag::{Dag, NormParts, Op, Step};
use super::fold::{Fold, Weights};
use crate::kernels::conv::{ConvGeometry, Edge, Window};
use crate::weights::StateDict;
use crate::weights::onnx::{Attribute, NewConstant, NewModel, Node, Size};
use std::collections::{BTreeMap, HashMap};

/// Reaches beyond any feature map, as exporters write it.
const TO_THE_END: i64 = i64::MAX;

/// A model to be written, and where its constants come from.
pub(super) struct Encoded {
    pub(super) model: NewModel,
    sources: HashMap<String, Source>,
}

/// Where the values of a constant come from.
enum Source {
    /// The network's tensor of the same name.
    Network,
    /// The binomial filter for this many channels.
    Binomial(usize),
    /// The weights of a convolution with its batch norm inside.
    FoldedWeight { weight: String, norm: NormParts<String> },
    /// The bias that the batch norm leaves.
    FoldedBias(NormParts<String>),
}

impl Encoded {
    /// The values of a constant; `state` holds the network's tensors.
    pub(super) fn values(&self, name: &str, state: &StateDict) -> Result<Vec<f32>, String> {
        let weights = Weights(state);
        match self.sources.get(name) {
            Some(Source::Network) => Ok(weights.get(name)?.to_vec()),
            Some(&Source::Binomial(channels)) => {
                let filter = [1.0, 2.0, 1.0].map(|row| [1.0, 2.0, 1.0].map(|column| row * column / 16.0));
                Ok(filter.as_flattened().repeat(channels))
            }
            Some(Source::FoldedWeight { weight, norm }) => {
                Ok(Fold::new(&weights, norm)?.weights(weights.get(weight)?))
            }
            Some(Source::FoldedBias(norm)) => Ok(Fold::new(&weights, norm)?.bias()),
            None => Err(format!("the constant {name} has no source")),
        }
    }
}

/// The nodes of a network. With `folded`, batch norms go into the convolutions before them.
pub(super) fn encode(dag: &Dag<String>, image: [usize; 2], folded: bool) -> Encoded {
    let encoded = Encoded { model: NewModel::default(), sources: HashMap::new() };
    let mut encoder =
        Encoder { encoded, values: Vec::new(), channels: dag.channels(), folded, last: dag.steps.len() - 1 };
    for (index, step) in dag.steps.iter().enumerate() {
        encoder.step(index, step, image);
    }
    encoder.encoded
}

struct Encoder {
    encoded: Encoded,
    /// The name of each step's value.
    values: Vec<String>,
    /// The channels of each step's value.
    channels: Vec<usize>,
    folded: bool,
    /// The step that makes the logits.
    last: usize,
}

type Attributes = BTreeMap<String, Attribute<'static>>;

fn attributes<const N: usize>(list: [(&str, Attribute<'static>); N]) -> Attributes {
    list.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn ints<const N: usize>(values: [usize; N]) -> Attribute<'static> {
    Attribute::Ints(values.map(|value| value as i64).to_vec())
}

fn conv_attributes(geometry: &ConvGeometry) -> Attributes {
    let [top, left] = geometry.padding;
    attributes([
        ("dilations", ints(geometry.dilation)),
        ("group", Attribute::Int(geometry.groups as i64)),
        ("kernel_shape", ints(geometry.kernel)),
        ("pads", ints([top, left, top, left])),
        ("strides", ints(geometry.stride)),
    ])
}

impl Encoder {
    /// Adds a node whose output has its name.
    fn node(&mut self, operator: &str, name: &str, inputs: &[&str], attributes: Attributes) -> String {
        self.encoded.model.nodes.push(Node {
            name: name.to_owned(),
            operator: operator.to_owned(),
            inputs: inputs.iter().map(|&input| input.to_owned()).collect(),
            outputs: vec![name.to_owned()],
            attributes,
        });
        name.to_owned()
    }

    fn floats(&mut self, name: &str, shape: &[usize], source: Source) {
        let constant = NewConstant::Floats { name: name.to_owned(), shape: shape.to_vec() };
        self.encoded.model.constants.push(constant);
        self.encoded.sources.insert(name.to_owned(), source);
    }

    fn list(&mut self, name: String, values: &[i64]) -> String {
        self.encoded.model.constants.push(NewConstant::Ints { name: name.clone(), values: values.to_vec() });
        name
    }

    fn step(&mut self, index: usize, step: &Step<String>, image: [usize; 2]) {
        let name = step.name.as_str();
        let inputs: Vec<String> = step.inputs.iter().map(|&input| self.values[input].clone()).collect();
        let x = inputs.first().map_or("", String::as_str);
        let value = match &step.op {
            &Op::Input(channels) => {
                let [height, width] = image.map(Size::Fixed);
                let shape = vec![Size::Free("batch"), Size::Fixed(channels), height, width];
                self.encoded.model.input = (name.to_owned(), shape);
                name.to_owned()
            }
            Op::Conv { geometry, weight, norm, .. } => self.conv(name, x, geometry, weight, norm.as_ref()),
            Op::Norm { channels, norm } => self.norm(x, *channels, norm),
            Op::Relu => self.node("Relu", name, &[x], Attributes::new()),
            Op::Sigmoid => self.node("Sigmoid", name, &[x], Attributes::new()),
            &Op::MaxPool(Window { kernel, stride, padding, .. }) => {
                let attributes = attributes([
                    ("kernel_shape", ints([kernel; 2])),
                    ("pads", ints([padding; 4])),
                    ("strides", ints([stride; 2])),
                ]);
                self.node("MaxPool", name, &[x], attributes)
            }
            Op::AvgPool { window, .. } => {
                let beyond = window.kernel as i64 - 1;
                let padded = match window.edge {
                    Edge::Zeros => {
                        self.pad(&format!("{name}.border"), x, "constant", [0, 0, 0, 0, 0, 0, beyond, beyond])
                    }
                    Edge::Partial | Edge::Drop => x.to_owned(),
                };
                let attributes = attributes([
                    ("ceil_mode", Attribute::Int(i64::from(window.edge == Edge::Partial))),
                    ("count_include_pad", Attribute::Int(0)),
                    ("kernel_shape", ints([window.kernel; 2])),
                    ("strides", ints([window.stride; 2])),
                ]);
                self.node("AveragePool", name, &[&padded], attributes)
            }
            &Op::Blur { stride } => self.blur(name, x, stride, self.channels[index]),
            &Op::Subsample { stride } => {
                let lists = [
                    ("starts", [0; 2]),
                    ("ends", [TO_THE_END; 2]),
                    ("axes", [2, 3]),
                    ("steps", [stride as i64; 2]),
                ];
                let lists = lists.map(|(part, values)| self.list(format!("{name}.{part}"), &values));
                let [starts, ends, axes, steps] = lists.each_ref().map(String::as_str);
                self.node("Slice", name, &[x, starts, ends, axes, steps], Attributes::new())
            }
            &Op::PadChannels { before, after } => {
                self.pad(name, x, "constant", [0, before as i64, 0, 0, 0, after as i64, 0, 0])
            }
            Op::GlobalAvgPool => self.node("GlobalAveragePool", name, &[x], Attributes::new()),
            Op::ChannelConv { kernel, weight } => self.channel_conv(name, x, *kernel, weight),
            Op::Scale => self.node("Mul", name, &[x, &inputs[1]], Attributes::new()),
            Op::Add => self.node("Add", name, &[x, &inputs[1]], Attributes::new()),
            Op::Linear { inputs: from, outputs: to, weight, bias } => {
                let bias = bias.as_deref().unwrap_or_default();
                self.linear(name, x, [*from, *to], [weight, bias], index == self.last)
            }
        };
        self.values.push(value);
    }

    fn conv(
        &mut self,
        name: &str,
        x: &str,
        geometry: &ConvGeometry,
        weight: &str,
        norm: Option<&NormParts<String>>,
    ) -> String {
        let [height, width] = geometry.kernel;
        let shape = [geometry.out_channels, geometry.group_in(), height, width];
        match norm {
            Some(norm) if self.folded => {
                let bias = format!("{name}.bias");
                let source = Source::FoldedWeight { weight: weight.to_owned(), norm: norm.clone() };
                self.floats(weight, &shape, source);
                self.floats(&bias, &shape[..1], Source::FoldedBias(norm.clone()));
                self.node("Conv", name, &[x, weight, &bias], conv_attributes(geometry))
            }
            norm => {
                self.floats(weight, &shape, Source::Network);
                let y = self.node("Conv", name, &[x, weight], conv_attributes(geometry));
                match norm {
                    Some(norm) => self.norm(&y, geometry.out_channels, norm),
                    None => y,
                }
            }
        }
    }

    fn norm(&mut self, x: &str, channels: usize, norm: &NormParts<String>) -> String {
        let NormParts { weight, bias, mean, var, epsilon } = norm;
        for part in [weight, bias, mean, var] {
            self.floats(part, &[channels], Source::Network);
        }
        let name = weight.strip_suffix(".weight").unwrap_or(weight);
        let attributes = attributes([("epsilon", Attribute::Float(*epsilon))]);
        self.node("BatchNormalization", name, &[x, weight, bias, mean, var], attributes)
    }

    fn pad(&mut self, name: &str, x: &str, mode: &str, pads: [i64; 8]) -> String {
        let pads = self.list(format!("{name}.pads"), &pads);
        self.node("Pad", name, &[x, &pads], attributes([("mode", Attribute::Text(mode.to_owned()))]))
    }

    /// The binomial filter, as a convolution of each channel by itself.
    fn blur(&mut self, name: &str, x: &str, stride: usize, channels: usize) -> String {
        let padded = self.pad(&format!("{name}.border"), x, "reflect", [0, 0, 1, 1, 0, 0, 1, 1]);
        let filter = format!("{name}.filter");
        self.floats(&filter, &[channels, 1, 3, 3], Source::Binomial(channels));
        let square = ConvGeometry::square(channels, channels, 3, stride);
        let attributes = conv_attributes(&ConvGeometry { groups: channels, padding: [0, 0], ..square });
        self.node("Conv", name, &[&padded, &filter], attributes)
    }

    /// The channels of one pixel become the only channel of a sequence, and back.
    fn channel_conv(&mut self, name: &str, x: &str, kernel: usize, weight: &str) -> String {
        let sequence = self.list(format!("{name}.sequence_shape"), &[0, 1, -1]);
        let pixel = self.list(format!("{name}.pixel_shape"), &[0, -1, 1, 1]);
        self.floats(weight, &[1, 1, kernel], Source::Network);
        let x = self.node("Reshape", &format!("{name}.sequence"), &[x, &sequence], Attributes::new());
        let attributes = attributes([("kernel_shape", ints([kernel])), ("pads", ints([kernel / 2; 2]))]);
        let y = self.node("Conv", name, &[&x, weight], attributes);
        self.node("Reshape", &format!("{name}.pixel"), &[&y, &pixel], Attributes::new())
    }

    fn linear(
        &mut self,
        name: &str,
        x: &str,
        [inputs, outputs]: [usize; 2],
        [weight, bias]: [&str; 2],
        last: bool,
    ) -> String {
        self.floats(bias, &[outputs], Source::Network);
        if !last {
            self.floats(weight, &[outputs, inputs, 1, 1], Source::Network);
            let geometry = ConvGeometry::square(inputs, outputs, 1, 1);
            return self.node("Conv", name, &[x, weight, bias], conv_attributes(&geometry));
        }
        self.floats(weight, &[outputs, inputs], Source::Network);
        let flat = self.node("Flatten", "flatten", &[x], attributes([("axis", Attribute::Int(1))]));
        self.encoded.model.output = ("logits".to_owned(), vec![Size::Free("batch"), Size::Fixed(outputs)]);
        let logits =
            self.node("Gemm", name, &[&flat, weight, bias], attributes([("transB", Attribute::Int(1))]));
        if let Some(gemm) = self.encoded.model.nodes.last_mut() {
            gemm.outputs = vec!["logits".to_owned()];
        }
        logits
    }
}
