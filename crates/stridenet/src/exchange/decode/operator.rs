//! What operators make of activations.

use super::{Constant, Decoder, Form, LARGEST, Value, int, ints, shown};
use crate::exchange::dag::{NormParts, Op};
use crate::kernels::conv::{AverageWindow, ConvGeometry, Edge, Window};
use crate::weights::onnx::{Attribute, Node};
use crate::weights::printable;

/// The most values of blur filters that are looked at.
const MOST_FILTERED: usize = 1 << 24;
/// The binomial filter's rows, times 4.
const BINOMIAL: [f32; 3] = [1.0, 2.0, 1.0];

/// A window over both axes as a node's attributes give it, the same along both.
struct Attributes {
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
}

impl<'a> Decoder<'a> {
    /// The value of a node that computes with activations.
    pub(super) fn activation(&mut self, node: &'a Node<'a>) -> Result<Value<'a>, String> {
        match node.operator.as_str() {
            "Identity" | "Dropout" | "CastLike" => self.unchanged(node),
            "Cast" if matches!(int(node, "to", 1)?, 6 | 7) => {
                Err("turns activations into whole numbers".to_owned())
            }
            "Cast" => self.unchanged(node),
            "Conv" => self.conv(node),
            "BatchNormalization" => self.batch_norm(node),
            "Relu" => self.each(node, Op::Relu),
            "Sigmoid" => self.each(node, Op::Sigmoid),
            "MaxPool" => self.max_pool(node),
            "AveragePool" => self.average_pool(node),
            "GlobalAveragePool" => self.global_pool(node, true),
            "ReduceMean" => {
                let mut axes = self.axes(node)?.unwrap_or_default();
                axes.iter_mut().filter(|axis| **axis < 0).for_each(|axis| *axis += 4);
                axes.sort_unstable();
                match axes == [2, 3] {
                    true => self.global_pool(node, int(node, "keepdims", 1)? != 0),
                    false => Err(format!("takes the mean over the axes {axes:?}, expected [2, 3]")),
                }
            }
            "Add" => self.add(node),
            "Mul" => self.scale(node),
            "Gemm" => self.gemm(node),
            "MatMul" => {
                let weight = self.constant(node, 1)?.transposed();
                self.linear(node, weight, None)
            }
            "Flatten" => self.reform(node, &[None, None]),
            "Reshape" => {
                let target = self.constant(node, 1)?.sizes()?;
                self.reform(node, &target)
            }
            "Squeeze" | "Unsqueeze" => self.squeeze(node),
            "Expand" => self.expand(node),
            "Pad" => self.pad(node),
            "Slice" => self.subsample(node),
            other => Err(format!("computes {} of activations, expected constants", printable(other))),
        }
    }

    /// The activation at input 0.
    pub(super) fn input_step(&self, node: &Node) -> Result<(usize, Form), String> {
        match self.operand(node, 0)? {
            Value::Activation { step, form } => Ok((step, form)),
            Value::Constant(_) => Err("reads a constant where the images are expected".to_owned()),
            Value::Reflected { .. } => {
                Err("reads a reflected border, which only a blur filter may".to_owned())
            }
            Value::Extended { .. } => {
                Err("reads a border of zeros, which only an average pool may".to_owned())
            }
            Value::Gate { .. } => Err("reads repeated channels, which only a product may".to_owned()),
            Value::Cut { .. } => Err("reads pixels left out along one axis only".to_owned()),
        }
    }

    pub(super) fn map(&self, node: &Node) -> Result<(usize, usize, Option<[usize; 2]>), String> {
        match self.input_step(node)? {
            (step, Form::Map { channels, size }) => Ok((step, channels, size)),
            (_, other) => Err(format!("reads the shape {}, expected a feature map", shown(&other.sizes()))),
        }
    }

    fn unchanged(&self, node: &Node) -> Result<Value<'a>, String> {
        self.operand(node, 0)
    }

    /// A step whose output has its input's shape.
    fn each(&mut self, node: &Node, op: Op<Constant<'a>>) -> Result<Value<'a>, String> {
        let (step, form) = self.input_step(node)?;
        Ok(Value::Activation { step: self.dag.push(node.label(), op, &[step]), form })
    }

    fn conv(&mut self, node: &'a Node<'a>) -> Result<Value<'a>, String> {
        let weight = self.constant(node, 1)?;
        let bias = self.optional(node, 2)?.filter(|bias| !bias.is_zero());
        if let Value::Reflected { step, form } = self.operand(node, 0)? {
            return self.blur(node, (step, form), &weight, bias.is_none());
        }
        match (self.input_step(node)?, &weight.shape[..]) {
            ((step, Form::Map { channels, size }), &[outputs, inputs, height, width]) => {
                let window = window(node, Some([height, width]))?;
                let groups = usize::try_from(int(node, "group", 1)?).ok().filter(|&groups| groups > 0);
                let groups = groups.ok_or("has no positive number of groups")?;
                if inputs.checked_mul(groups) != Some(channels) {
                    let shape = &weight.shape;
                    return Err(format!(
                        "has weights of the shape {shape:?} in {groups} groups for {channels} channels"
                    ));
                }
                self.check_length(&bias, outputs)?;
                let geometry = ConvGeometry {
                    in_channels: channels,
                    out_channels: outputs,
                    kernel: window.kernel,
                    stride: window.stride,
                    padding: window.padding,
                    dilation: window.dilation,
                    groups,
                };
                geometry.validate().map_err(|error| format!("is not possible: {error}"))?;
                let size = match size {
                    Some(size) => Some(
                        geometry.output_size(size).map_err(|error| format!("is not possible: {error}"))?,
                    ),
                    None => None,
                };
                let op = Op::Conv { geometry, weight, bias, norm: None };
                let step = self.dag.push(node.label(), op, &[step]);
                Ok(Value::Activation { step, form: Form::Map { channels: outputs, size } })
            }
            // On one pixel a 1×1 convolution is a linear layer.
            ((_, Form::Pixel { .. }), &[outputs, inputs, 1, 1]) => {
                let window = window(node, Some([1, 1]))?;
                if window.stride != [1, 1] || window.padding != [0, 0] || int(node, "group", 1)? != 1 {
                    return Err("strides, pads or groups a single pixel".to_owned());
                }
                self.linear(node, weight.reshaped(vec![outputs, inputs]), bias)
            }
            ((step, Form::Sequence { channels }), &[1, 1, kernel]) => {
                let plain = |name, usual: &[i64]| {
                    Ok::<_, String>(ints(node, name)?.is_none_or(|found| found == usual))
                };
                let padding = kernel as i64 / 2;
                let same =
                    plain("strides", &[1])? && plain("dilations", &[1])? && int(node, "group", 1)? == 1;
                if kernel % 2 == 0 || ints(node, "pads")? != Some(vec![padding; 2]) || !same || bias.is_some()
                {
                    return Err(format!(
                        "convolves channels by {kernel} taps, expected an odd kernel that keeps the length"
                    ));
                }
                let step = self.dag.push(node.label(), Op::ChannelConv { kernel, weight }, &[step]);
                Ok(Value::Activation { step, form: Form::Sequence { channels } })
            }
            ((_, form), shape) => {
                let form = shown(&form.sizes());
                Err(format!("has weights of the shape {shape:?} for an input of the shape {form}"))
            }
        }
    }

    fn check_length(&self, constant: &Option<Constant<'a>>, length: usize) -> Result<(), String> {
        match constant {
            Some(constant) if constant.shape != [length] => {
                Err(format!("has a bias of the shape {:?}, expected [{length}]", constant.shape))
            }
            _ => Ok(()),
        }
    }

    /// A filter over a reflected border: only the binomial one, the same for each channel.
    fn blur(
        &mut self,
        node: &'a Node<'a>,
        (step, form): (usize, Form),
        weight: &Constant<'a>,
        plain: bool,
    ) -> Result<Value<'a>, String> {
        let channels = form.channels();
        let Attributes { stride, padding, dilation, .. } = window(node, Some([3, 3]))?;
        let depthwise = weight.shape == [channels, 1, 3, 3] && int(node, "group", 1)? == channels as i64;
        let binomial =
            |(index, &value): (usize, &f32)| value == BINOMIAL[index % 9 / 3] * BINOMIAL[index % 3] / 16.0;
        // Filters may share their constant, which is looked at for each.
        self.filtered += weight.shape.iter().product::<usize>();
        let fits = self.filtered <= MOST_FILTERED
            && depthwise
            && plain
            && stride[0] == stride[1]
            && padding == [0, 0]
            && dilation == [1, 1];
        if !fits || !weight.values(self.path)?.iter().enumerate().all(binomial) {
            return Err(
                "filters a reflected border, expected the binomial 3×3 filter of every channel".to_owned()
            );
        }
        let stride = stride[0];
        let step = self.dag.push(node.label(), Op::Blur { stride }, &[step]);
        Ok(Value::Activation { step, form: pooled(form, Window::same(3, stride))? })
    }

    fn batch_norm(&mut self, node: &Node) -> Result<Value<'a>, String> {
        let (step, form) = self.input_step(node)?;
        let channels = form.channels();
        let part = |index| {
            let part = self.constant(node, index)?;
            match part.shape == [channels] && part.is_float() {
                true => Ok(part),
                false => Err(format!("has a constant of the shape {:?} for {channels} channels", part.shape)),
            }
        };
        let epsilon = match node.attributes.get("epsilon") {
            None => 1e-5,
            Some(Attribute::Float(epsilon)) if (0.0..=1.0).contains(epsilon) => *epsilon,
            Some(_) => return Err("has an epsilon that is no number from 0 to 1".to_owned()),
        };
        let norm = NormParts { weight: part(1)?, bias: part(2)?, mean: part(3)?, var: part(4)?, epsilon };
        let alone = self.readers.get(node.inputs[0].as_str()) == Some(&1);
        match &mut self.dag.steps[step].op {
            Op::Conv { norm: inside @ None, .. } if alone => {
                *inside = Some(norm);
                Ok(Value::Activation { step, form })
            }
            _ => self.each(node, Op::Norm { channels, norm }),
        }
    }

    fn max_pool(&mut self, node: &Node) -> Result<Value<'a>, String> {
        let (step, channels, size) = self.map(node)?;
        let window = window(node, None)?.square()?;
        let op =
            if window.kernel == 1 { Op::Subsample { stride: window.stride } } else { Op::MaxPool(window) };
        let form = pooled(Form::Map { channels, size }, window)?;
        Ok(Value::Activation { step: self.dag.push(node.label(), op, &[step]), form })
    }

    fn average_pool(&mut self, node: &Node) -> Result<Value<'a>, String> {
        let window = window(node, None)?;
        if let Value::Extended { step, form, pixels } = self.operand(node, 0)? {
            let square = window.square()?;
            // Zeros that are there count, whatever count_include_pad says of those that are not.
            if [square.kernel, square.stride, square.padding] != [pixels + 1, 1, 0] {
                return Err("averages a border of zeros in a way that no layer here does".to_owned());
            }
            let window = AverageWindow { kernel: square.kernel, stride: 1, edge: Edge::Zeros };
            let op = Op::AvgPool { window, exact: false };
            return Ok(Value::Activation { step: self.dag.push(node.label(), op, &[step]), form });
        }
        let (step, channels, size) = self.map(node)?;
        // Old networks average over all pixels with a kernel of that size.
        if size == Some(window.kernel) && window.padding == [0, 0] {
            let step = self.dag.push(node.label(), Op::GlobalAvgPool, &[step]);
            return Ok(Value::Activation { step, form: Form::Pixel { channels } });
        }
        let Window { kernel, stride, padding, .. } = window.square()?;
        if kernel == 1 && padding == 0 {
            let form = pooled(Form::Map { channels, size }, Window { kernel, stride, padding, dilation: 1 })?;
            return Ok(Value::Activation {
                step: self.dag.push(node.label(), Op::Subsample { stride }, &[step]),
                form,
            });
        }
        if padding != 0 {
            return Err(format!("averages with padding {padding}, expected none"));
        }
        let edge = if int(node, "ceil_mode", 0)? == 0 { Edge::Drop } else { Edge::Partial };
        let window = AverageWindow { kernel, stride, edge };
        let along = |side| window.output(side).map_err(|error| format!("is not possible: {error}"));
        let exact =
            size.is_some_and(|size| size.iter().all(|&side| side >= kernel && (side - kernel) % stride == 0));
        let size = match size {
            Some([height, width]) => Some([along(height)?, along(width)?]),
            None => None,
        };
        let step = self.dag.push(node.label(), Op::AvgPool { window, exact }, &[step]);
        Ok(Value::Activation { step, form: Form::Map { channels, size } })
    }

    fn global_pool(&mut self, node: &Node, keep: bool) -> Result<Value<'a>, String> {
        let (step, channels, _) = self.map(node)?;
        let step = self.dag.push(node.label(), Op::GlobalAvgPool, &[step]);
        let form = if keep { Form::Pixel { channels } } else { Form::Flat { channels } };
        Ok(Value::Activation { step, form })
    }

    fn add(&mut self, node: &Node) -> Result<Value<'a>, String> {
        let (step, form, other) = match (self.operand(node, 0)?, self.operand(node, 1)?) {
            (Value::Activation { step, form }, other) | (other, Value::Activation { step, form }) => {
                (step, form, other)
            }
            _ => return Err("adds neither activations nor a bias".to_owned()),
        };
        match other {
            Value::Activation { step: second, form: same } if compatible(form, same) => {
                let step = self.dag.push(node.label(), Op::Add, &[step, second]);
                Ok(Value::Activation { step, form })
            }
            Value::Constant(bias) => {
                let channels = form.channels();
                // A bias that an exporter has taken out of its layer: it follows the layer and nobody else reads that.
                let layer =
                    node.inputs.iter().find(|name| matches!(self.value(name), Ok(Value::Activation { .. })));
                let alone = layer.is_some_and(|name| self.readers.get(name.as_str()) == Some(&1));
                let inner = match form {
                    Form::Map { .. } | Form::Pixel { .. } => bias.shape.ends_with(&[channels, 1, 1]),
                    Form::Flat { .. } | Form::Sequence { .. } => bias.shape.ends_with(&[channels]),
                };
                let bias = bias.reshaped(vec![channels]).filter(|_| inner && alone);
                match (&mut self.dag.steps[step].op, bias) {
                    (
                        Op::Linear { bias: inside @ None, .. }
                        | Op::Conv { bias: inside @ None, norm: None, .. },
                        Some(bias),
                    ) => {
                        *inside = Some(bias);
                        Ok(Value::Activation { step, form })
                    }
                    _ => Err("adds a constant, expected another activation or the bias of the layer before"
                        .to_owned()),
                }
            }
            Value::Activation { form: other, .. } => {
                Err(format!("adds the shapes {} and {}", shown(&form.sizes()), shown(&other.sizes())))
            }
            _ => Err("adds what only a filter or product may read".to_owned()),
        }
    }

    fn scale(&mut self, node: &Node) -> Result<Value<'a>, String> {
        let operands = [self.operand(node, 0)?, self.operand(node, 1)?];
        let map = operands.iter().find_map(|operand| match *operand {
            Value::Activation { step, form: form @ Form::Map { .. } } => Some((step, form)),
            _ => None,
        });
        let gate = operands.iter().find_map(|operand| match *operand {
            Value::Activation { step, form: Form::Pixel { channels } } | Value::Gate { step, channels } => {
                Some((step, channels))
            }
            _ => None,
        });
        match (map, gate) {
            (Some((map, form)), Some((gate, channels))) if channels == form.channels() => {
                let step = self.dag.push(node.label(), Op::Scale, &[map, gate]);
                Ok(Value::Activation { step, form })
            }
            _ => Err("multiplies other than a feature map by a weight for each of its channels".to_owned()),
        }
    }

    fn gemm(&mut self, node: &'a Node<'a>) -> Result<Value<'a>, String> {
        let weight = self.constant(node, 1)?;
        let weight = if int(node, "transB", 0)? == 1 { Some(weight) } else { weight.transposed() };
        let bias = self.optional(node, 2)?.filter(|bias| !bias.is_zero());
        if let (Form::Pixel { .. } | Form::Sequence { .. }, Some(_)) = (self.input_step(node)?.1, &weight) {
            return Err("multiplies other than a matrix".to_owned());
        }
        self.linear(node, weight, bias)
    }

    /// A linear layer with weights `[out, in]`.
    fn linear(
        &mut self,
        node: &Node,
        weight: Option<Constant<'a>>,
        bias: Option<Constant<'a>>,
    ) -> Result<Value<'a>, String> {
        let (step, form) = self.input_step(node)?;
        let Some((weight, &[outputs, inputs])) = weight
            .as_ref()
            .map(|weight| (weight, &weight.shape[..]))
            .and_then(|(weight, shape)| Some((weight, <&[usize; 2]>::try_from(shape).ok()?)))
        else {
            return Err("has weights that are no matrix".to_owned());
        };
        if inputs != form.channels() || matches!(form, Form::Map { .. } | Form::Sequence { .. }) {
            let form = shown(&form.sizes());
            return Err(format!("has {inputs} weights for each result, its input has the shape {form}"));
        }
        self.check_length(&bias, outputs)?;
        let op = Op::Linear { inputs, outputs, weight: weight.clone(), bias };
        let step = self.dag.push(node.label(), op, &[step]);
        let form = match form {
            Form::Flat { .. } => Form::Flat { channels: outputs },
            _ => Form::Pixel { channels: outputs },
        };
        Ok(Value::Activation { step, form })
    }
}

/// A feature map after a pool.
pub(super) fn pooled(form: Form, window: Window) -> Result<Form, String> {
    let Form::Map { channels, size } = form else { return Err("pools one pixel".to_owned()) };
    let along = |side: usize| window.output(side).map_err(|error| format!("is not possible: {error}"));
    let size = match size {
        Some([height, width]) => Some([along(height)?, along(width)?]),
        None => None,
    };
    Ok(Form::Map { channels, size })
}

/// Whether activations of these shapes can be added, as far as is known.
fn compatible(a: Form, b: Form) -> bool {
    let known = |form: Form| form.sizes();
    known(a).len() == known(b).len()
        && known(a).iter().zip(known(b)).all(|(&a, b)| a.is_none() || b.is_none() || a == b)
}

/// The window of a convolution or pool; a convolution's kernel follows from its weights.
fn window(node: &Node, kernel: Option<[usize; 2]>) -> Result<Attributes, String> {
    let pair = |name: &str, low: i64| -> Result<Option<[usize; 2]>, String> {
        match ints(node, name)?.as_deref() {
            None => Ok(None),
            Some(&[height, width])
                if (low..=LARGEST).contains(&height) && (low..=LARGEST).contains(&width) =>
            {
                Ok(Some([height as usize, width as usize]))
            }
            Some(other) => {
                Err(format!("has {name} {:?}, expected two numbers from {low}", &other[..other.len().min(8)]))
            }
        }
    };
    let given = pair("kernel_shape", 1)?;
    let kernel = match (kernel, given) {
        (Some(kernel), Some(given)) if kernel != given => {
            return Err(format!("has a kernel_shape {given:?} and weights for {kernel:?}"));
        }
        (Some(kernel), _) | (None, Some(kernel)) => kernel,
        (None, None) => return Err("has no kernel_shape".to_owned()),
    };
    let padding = match ints(node, "pads")?.as_deref() {
        None => [0, 0],
        Some(&[top, left, bottom, right])
            if top == bottom
                && left == right
                && (0..=LARGEST).contains(&top)
                && (0..=LARGEST).contains(&left) =>
        {
            [top as usize, left as usize]
        }
        Some(other) => {
            let shown = &other[..other.len().min(8)];
            return Err(format!("has pads {shown:?}, expected the same before and after"));
        }
    };
    let stride = pair("strides", 1)?.unwrap_or([1, 1]);
    let dilation = pair("dilations", 1)?.unwrap_or([1, 1]);
    Ok(Attributes { kernel, stride, padding, dilation })
}

impl Attributes {
    /// The window of a pool, which is the same along both axes.
    fn square(&self) -> Result<Window, String> {
        let Attributes { kernel, stride, padding, dilation } = self;
        match [kernel, stride, padding, dilation].iter().all(|[height, width]| height == width) {
            true => Ok(Window {
                kernel: kernel[0],
                stride: stride[0],
                padding: padding[0],
                dilation: dilation[0],
            }),
            false => Err(format!("pools {kernel:?} pixels with strides {stride:?}, expected squares")),
        }
    }
}
