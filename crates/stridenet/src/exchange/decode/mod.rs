//! From a file's graph to steps.
//!
//! First the nodes that the logits depend on are found, and every one that is not understood is named. Then the nodes are
//! walked in order: what follows from constants alone is computed, arithmetic on shapes is done with what is known of them,
//! and what remains becomes steps.

mod constant;
mod operator;
mod reform;
mod supported;

pub(super) use constant::Constant;

use super::dag::{Dag, Op};
use super::error::ExchangeError;
use crate::weights::onnx::{Attribute, Node, OnnxModel};
use crate::weights::printable;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// The oldest operator set whose operators mean what they mean here: 7 brought today's rules of broadcasting.
const OLDEST_OPSET: i64 = 7;
/// The largest kernel, stride, padding or channel count; more is a mistake, and must not overflow.
const LARGEST: i64 = 1 << 16;

/// A graph as steps.
#[derive(Debug)]
pub(super) struct Decoded<'a> {
    pub(super) dag: Dag<Constant<'a>>,
    /// Height and width of the images, where the file fixes them.
    pub(super) size: Option<[usize; 2]>,
    /// Number of logits.
    pub(super) classes: usize,
}

/// What a name stands for.
#[derive(Debug, Clone)]
enum Value<'a> {
    Constant(Constant<'a>),
    Activation {
        step: usize,
        form: Form,
    },
    /// A reflected border of one pixel around a feature map, for the filter that reads it.
    Reflected {
        step: usize,
        form: Form,
    },
    /// Zeros below and to the right of a feature map, for the average pool that reads it.
    Extended {
        step: usize,
        form: Form,
        pixels: usize,
    },
    /// Every n-th row or column of a feature map, with other steps down and across; its full size.
    Cut {
        step: usize,
        form: Form,
        steps: [i64; 2],
    },
    /// A feature map's channels repeated over its pixels.
    Gate {
        step: usize,
        channels: usize,
    },
}

/// The shape of an activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `[N, C, H, W]`.
    Map { channels: usize, size: Option<[usize; 2]> },
    /// `[N, C, 1, 1]` after global pooling.
    Pixel { channels: usize },
    /// `[N, C]`.
    Flat { channels: usize },
    /// `[N, 1, C]`.
    Sequence { channels: usize },
}

impl Form {
    fn channels(self) -> usize {
        match self {
            Form::Map { channels, .. }
            | Form::Pixel { channels }
            | Form::Flat { channels }
            | Form::Sequence { channels } => channels,
        }
    }

    /// The sizes, as far as they are known.
    fn sizes(self) -> Vec<Option<i64>> {
        let known = |size: usize| Some(size as i64);
        match self {
            Form::Map { channels, size } => {
                let [height, width] = size.map_or([None; 2], |size| size.map(known));
                vec![None, known(channels), height, width]
            }
            Form::Pixel { channels } => vec![None, known(channels), Some(1), Some(1)],
            Form::Flat { channels } => vec![None, known(channels)],
            Form::Sequence { channels } => vec![None, Some(1), known(channels)],
        }
    }
}

/// Walks a graph.
struct Decoder<'a> {
    path: &'a Path,
    model: &'a OnnxModel<'a>,
    values: HashMap<&'a str, Value<'a>>,
    dag: Dag<Constant<'a>>,
    /// How many nodes read each name.
    readers: HashMap<&'a str, usize>,
    /// The batch size, where the file fixes it.
    batch: Option<i64>,
    /// Values of blur filters that have been looked at.
    filtered: usize,
}

/// The steps of a file's graph; `path` is the file.
pub(super) fn decode<'a>(path: &'a Path, model: &'a OnnxModel<'a>) -> Result<Decoded<'a>, ExchangeError> {
    let wrong = |problem: String| ExchangeError::Graph { path: path.to_path_buf(), problem };
    if model.opset < OLDEST_OPSET {
        return Err(wrong(format!("it uses operator set {}, expected {OLDEST_OPSET} or later", model.opset)));
    }
    let [output] = &model.graph.outputs[..] else {
        let found = model.graph.outputs.len();
        return Err(wrong(format!("the graph has {found} outputs, expected one, the logits")));
    };
    let live = live(path, model, output)?;
    let constant = constant(model, &live);
    let nodes: Vec<_> = live
        .iter()
        .zip(&constant)
        .filter_map(|(&index, &constant)| supported::unsupported(&model.graph.nodes[index], constant))
        .collect();
    if !nodes.is_empty() {
        return Err(ExchangeError::Unsupported { path: path.to_path_buf(), nodes });
    }
    let mut readers = HashMap::from([(output.as_str(), 1)]);
    for name in live.iter().flat_map(|&index| &model.graph.nodes[index].inputs) {
        *readers.entry(name.as_str()).or_insert(0) += 1;
    }
    let mut decoder =
        Decoder { path, model, values: HashMap::new(), dag: Dag::new(), readers, batch: None, filtered: 0 };
    let size = decoder.input().map_err(wrong)?;
    for (&index, &constant) in live.iter().zip(&constant) {
        let node = &model.graph.nodes[index];
        decoder.node(node, constant).map_err(|problem| ExchangeError::Node {
            path: path.to_path_buf(),
            node: node.label(),
            operator: printable(&node.operator),
            problem,
        })?;
    }
    let classes = match decoder.values.get(output.as_str()) {
        Some(Value::Activation { step, form: Form::Flat { channels } | Form::Pixel { channels } })
            if *step + 1 == decoder.dag.steps.len()
                && matches!(decoder.dag.steps[*step].op, Op::Linear { .. }) =>
        {
            *channels
        }
        _ => {
            let output = printable(output);
            return Err(wrong(format!("the output {output} is not that of a linear layer, expected logits")));
        }
    };
    Ok(Decoded { dag: decoder.dag, size, classes })
}

/// The nodes that the output depends on, in order.
fn live(path: &Path, model: &OnnxModel, output: &str) -> Result<Vec<usize>, ExchangeError> {
    let graph = &model.graph;
    let wrong = |problem: String| ExchangeError::Graph { path: path.to_path_buf(), problem };
    let mut makers: HashMap<&str, usize> = HashMap::new();
    let given: HashSet<&str> = graph
        .initializers
        .keys()
        .map(String::as_str)
        .chain(graph.inputs.iter().map(|i| i.name.as_str()))
        .collect();
    for (index, node) in graph.nodes.iter().enumerate() {
        for name in node.outputs.iter().filter(|name| !name.is_empty()) {
            if given.contains(name.as_str()) || makers.insert(name, index).is_some() {
                return Err(wrong(format!("the value {} is made twice", printable(name))));
            }
        }
    }
    let mut wanted = vec![false; graph.nodes.len()];
    let mut open: Vec<&str> = vec![output];
    while let Some(name) = open.pop() {
        if given.contains(name) || name.is_empty() {
            continue;
        }
        let Some(&index) = makers.get(name) else {
            return Err(wrong(format!("nothing makes the value {}", printable(name))));
        };
        if !std::mem::replace(&mut wanted[index], true) {
            for input in &graph.nodes[index].inputs {
                if makers.get(input.as_str()).is_some_and(|&maker| maker >= index) {
                    let (node, input) = (graph.nodes[index].label(), printable(input));
                    let problem =
                        format!("the node {node} reads {input}, which only a later node makes (a cycle)");
                    return Err(wrong(problem));
                }
                open.push(input);
            }
        }
    }
    Ok((0..graph.nodes.len()).filter(|&index| wanted[index]).collect())
}

/// Which of the live nodes depend on constants and shapes alone.
fn constant(model: &OnnxModel, live: &[usize]) -> Vec<bool> {
    let mut known: HashSet<&str> = model.graph.initializers.keys().map(String::as_str).collect();
    let mut constant = Vec::with_capacity(live.len());
    for &index in live {
        let node = &model.graph.nodes[index];
        let is_known = |name: &String| name.is_empty() || known.contains(name.as_str());
        let folds = match node.operator.as_str() {
            "Shape" => true,
            // The second input only gives its type.
            "CastLike" => node.inputs.first().is_some_and(is_known),
            _ => node.inputs.iter().all(is_known),
        };
        if folds {
            known.extend(node.outputs.iter().map(String::as_str));
        }
        constant.push(folds);
    }
    constant
}

impl<'a> Decoder<'a> {
    /// Makes the images the first step; returns their size, where it is fixed.
    fn input(&mut self) -> Result<Option<[usize; 2]>, String> {
        let graph = &self.model.graph;
        let free: Vec<_> =
            graph.inputs.iter().filter(|input| !graph.initializers.contains_key(&input.name)).collect();
        let [input] = free[..] else {
            return Err(format!("the graph has {} inputs, expected one, the images", free.len()));
        };
        let name = printable(&input.name);
        let Some([batch, channels, sides @ ..]) = input.shape.as_deref() else {
            return Err(format!("the input {name} has no shape, expected [N, C, H, W]"));
        };
        let positive = |size: i64| usize::try_from(size).ok().filter(|_| (1..=LARGEST).contains(&size));
        let (Some(channels), [height, width]) = (channels.and_then(positive), sides) else {
            let shape = input.shape.as_deref().unwrap_or_default();
            return Err(format!("the input {name} has the shape {}, expected [N, C, H, W]", shown(shape)));
        };
        // Old exporters write 0 or -1 for a free size.
        let size = match (height.and_then(positive), width.and_then(positive)) {
            (Some(height), Some(width)) => Some([height, width]),
            _ => None,
        };
        self.batch = batch.filter(|&batch| batch > 0);
        let step = self.dag.push(name, Op::Input(channels), &[]);
        self.values.insert(&input.name, Value::Activation { step, form: Form::Map { channels, size } });
        Ok(size)
    }

    /// What a name stands for.
    fn value(&self, name: &str) -> Result<Value<'a>, String> {
        if let Some(value) = self.values.get(name) {
            return Ok(value.clone());
        }
        match self.model.graph.initializers.get_key_value(name) {
            Some((name, tensor)) => Ok(Value::Constant(Constant::new(name, tensor, self.path)?)),
            None => Err(format!("reads {}, which is neither a constant nor computed", printable(name))),
        }
    }

    /// The input at `index`.
    fn operand(&self, node: &Node, index: usize) -> Result<Value<'a>, String> {
        let name = node.input(index).ok_or_else(|| format!("has no input {index}"))?;
        self.value(name)
    }

    /// The constant at `index`, if that input is given.
    fn optional(&self, node: &Node, index: usize) -> Result<Option<Constant<'a>>, String> {
        match node.input(index) {
            None => Ok(None),
            Some(_) => self.constant(node, index).map(Some),
        }
    }

    /// The constant at `index`.
    fn constant(&self, node: &Node, index: usize) -> Result<Constant<'a>, String> {
        match self.operand(node, index)? {
            Value::Constant(constant) => Ok(constant),
            _ => Err(format!("has a computed input {index}, expected a constant")),
        }
    }

    fn node(&mut self, node: &'a Node<'a>, constant: bool) -> Result<(), String> {
        let [output, rest @ ..] = &node.outputs[..] else { return Err("has no output".to_owned()) };
        if let Some(used) = rest.iter().find(|name| self.readers.contains_key(name.as_str())) {
            return Err(format!("has a second output {} that is used, expected one", printable(used)));
        }
        let value = match (node.operator.as_str(), constant) {
            ("Shape", _) => Value::Constant(self.shape(node)?),
            (_, true) => Value::Constant(self.fold(node)?),
            (_, false) => self.activation(node)?,
        };
        self.values.insert(output, value);
        Ok(())
    }
}

/// `[?, 3, 224, 224]`.
fn shown(sizes: &[Option<i64>]) -> String {
    let sizes: Vec<String> = sizes
        .iter()
        .take(8)
        .map(|size| size.map_or_else(|| "?".to_owned(), |size| size.to_string()))
        .collect();
    format!("[{}]", sizes.join(", "))
}

/// A whole number, or `usual` where the attribute is not given.
fn int(node: &Node, name: &str, usual: i64) -> Result<i64, String> {
    match node.attributes.get(name) {
        None => Ok(usual),
        Some(Attribute::Int(value)) => Ok(*value),
        Some(_) => Err(format!("has an attribute {name} that is no whole number")),
    }
}

/// Whole numbers, if the attribute is given.
fn ints(node: &Node, name: &str) -> Result<Option<Vec<i64>>, String> {
    match node.attributes.get(name) {
        None => Ok(None),
        Some(Attribute::Ints(values)) => Ok(Some(values.clone())),
        Some(_) => Err(format!("has an attribute {name} that is no list of whole numbers")),
    }
}
