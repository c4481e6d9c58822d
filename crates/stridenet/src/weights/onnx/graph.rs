//! What an ONNX file holds: a graph of nodes with its constants. Nothing here knows what the nodes compute.

use super::super::error::printable;
use super::tensor::{self, OnnxTensor};
use super::wire::Fields;
use std::collections::BTreeMap;

/// The most messages and list entries of a file, so that a few bytes for each cannot become gigabytes. The raw export of a
/// network with a thousand layers has about a hundred thousand.
const MOST_PARTS: usize = 1 << 20;

/// A model as an ONNX file holds it. Tensors borrow the file's bytes.
#[derive(Debug, Clone, Default)]
pub struct OnnxModel<'a> {
    /// Version of the default operator set (`ai.onnx`).
    pub opset: i64,
    /// The program that wrote the file, with its version.
    pub producer: String,
    /// Free entries.
    pub metadata: BTreeMap<String, String>,
    /// The graph.
    pub graph: Graph<'a>,
}

/// A graph: nodes that compute named values from named values.
#[derive(Debug, Clone, Default)]
pub struct Graph<'a> {
    /// Its name.
    pub name: String,
    /// The nodes, in the order of execution.
    pub nodes: Vec<Node<'a>>,
    /// Constants.
    pub initializers: BTreeMap<String, OnnxTensor<'a>>,
    /// Inputs. In files of IR version 3 and earlier the constants are among them.
    pub inputs: Vec<ValueInfo>,
    /// The outputs' names.
    pub outputs: Vec<String>,
}

/// A computation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Node<'a> {
    /// The node's name, which may be empty.
    pub name: String,
    /// The operator, with its domain in front where that is not the default one.
    pub operator: String,
    /// Names of the inputs; an empty one is an optional input that is not given.
    pub inputs: Vec<String>,
    /// Names of the outputs.
    pub outputs: Vec<String>,
    /// Attributes, by name.
    pub attributes: BTreeMap<String, Attribute<'a>>,
}

/// An attribute's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Attribute<'a> {
    /// A number.
    Float(f32),
    /// A whole number.
    Int(i64),
    /// Text.
    Text(String),
    /// A constant.
    Tensor(OnnxTensor<'a>),
    /// Numbers.
    Floats(Vec<f32>),
    /// Whole numbers.
    Ints(Vec<i64>),
    /// A graph, or a list of something else.
    Other,
}

/// A graph's input.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ValueInfo {
    /// Its name.
    pub name: String,
    /// Its sizes, where the shape is given; `None` for a size that is free.
    pub shape: Option<Vec<Option<i64>>>,
}

impl Node<'_> {
    /// What the node is called in messages: its name, or that of its first output.
    pub fn label(&self) -> String {
        let named = [&self.name].into_iter().chain(self.outputs.first()).find(|name| !name.is_empty());
        printable(named.map_or("(unnamed)", String::as_str))
    }

    /// The input at `index`, or nothing when it is not given.
    pub fn input(&self, index: usize) -> Option<&str> {
        self.inputs.get(index).map(String::as_str).filter(|name| !name.is_empty())
    }
}

/// Reads messages, counting their parts.
#[derive(Debug, Default)]
pub(super) struct Parser {
    parts: usize,
}

impl Parser {
    /// Counts a part that is kept.
    pub(super) fn part(&mut self) -> Result<(), String> {
        self.parts += 1;
        match self.parts > MOST_PARTS {
            true => Err(format!("it has more than {MOST_PARTS} parts")),
            false => Ok(()),
        }
    }

    pub(super) fn model<'a>(&mut self, bytes: &'a [u8]) -> Result<OnnxModel<'a>, String> {
        let (mut model, mut graphs) = (OnnxModel::default(), 0);
        let mut version = String::new();
        let mut fields = Fields::new(bytes);
        while let Some((number, value)) = fields.next()? {
            match number {
                2 => model.producer = value.text()?.to_owned(),
                3 => version = value.text()?.to_owned(),
                7 => {
                    graphs += 1;
                    model.graph = self.graph(value.bytes()?)?;
                }
                8 => {
                    self.part()?;
                    if let (domain, Some(opset)) = operator_set(value.bytes()?)?
                        && matches!(domain.as_str(), "" | "ai.onnx")
                    {
                        model.opset = opset;
                    }
                }
                14 => {
                    self.part()?;
                    let (key, value) = entry(value.bytes()?)?;
                    model.metadata.insert(key, value);
                }
                _ => {}
            }
        }
        match graphs {
            0 => return Err("it holds no graph".to_owned()),
            1 => {}
            _ => return Err(format!("it holds {graphs} graphs, expected one")),
        }
        if model.opset < 1 {
            return Err("it does not say which version of the operators it uses".to_owned());
        }
        if !version.is_empty() {
            model.producer = format!("{} {version}", model.producer);
        }
        Ok(model)
    }

    fn graph<'a>(&mut self, bytes: &'a [u8]) -> Result<Graph<'a>, String> {
        let mut graph = Graph::default();
        let mut fields = Fields::new(bytes);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => graph.nodes.push(self.node(value.bytes()?)?),
                2 => graph.name = value.text()?.to_owned(),
                5 => {
                    let (name, tensor) = self.tensor(value.bytes()?)?;
                    if graph.initializers.insert(name.clone(), tensor).is_some() {
                        return Err(format!("the constant {} is there twice", printable(&name)));
                    }
                }
                11 => graph.inputs.push(self.value_info(value.bytes()?)?),
                12 => graph.outputs.push(self.value_info(value.bytes()?)?.name),
                15 => return Err("it holds sparse constants, which weights do not need".to_owned()),
                _ => {}
            }
        }
        Ok(graph)
    }

    fn node<'a>(&mut self, bytes: &'a [u8]) -> Result<Node<'a>, String> {
        self.part()?;
        let mut node = Node::default();
        let mut domain = "";
        let mut fields = Fields::new(bytes);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 | 2 => {
                    self.part()?;
                    let list = if number == 1 { &mut node.inputs } else { &mut node.outputs };
                    list.push(value.text()?.to_owned());
                }
                3 => node.name = value.text()?.to_owned(),
                4 => node.operator = value.text()?.to_owned(),
                5 => {
                    let (name, attribute) = self.attribute(value.bytes()?)?;
                    if node.attributes.insert(name.clone(), attribute).is_some() {
                        let (name, label) = (printable(&name), node.label());
                        return Err(format!("the node {label} has the attribute {name} twice"));
                    }
                }
                7 => domain = value.text()?,
                _ => {}
            }
        }
        if !matches!(domain, "" | "ai.onnx") {
            node.operator = format!("{domain}::{}", node.operator);
        }
        Ok(node)
    }

    fn attribute<'a>(&mut self, bytes: &'a [u8]) -> Result<(String, Attribute<'a>), String> {
        self.part()?;
        let (mut name, mut kind) = (String::new(), None);
        let (mut float, mut int, mut text, mut constant) = (0.0, 0, String::new(), None);
        let (mut floats, mut ints) = (Vec::new(), Vec::new());
        let mut fields = Fields::new(bytes);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => name = value.text()?.to_owned(),
                2 => float = value.float()?,
                3 => int = value.int()?,
                4 => text = String::from_utf8_lossy(value.bytes()?).into_owned(),
                5 => constant = Some(self.tensor(value.bytes()?)?.1),
                7 => tensor::floats(value, &mut floats)?,
                8 => value.ints(|value| {
                    self.part()?;
                    ints.push(value);
                    Ok(())
                })?,
                20 => kind = Some(value.int()?),
                _ => {}
            }
        }
        let attribute = match (kind, constant) {
            (Some(1), _) => Attribute::Float(float),
            (Some(2), _) => Attribute::Int(int),
            (Some(3), _) => Attribute::Text(text),
            (Some(4), Some(constant)) => Attribute::Tensor(constant),
            (Some(6), _) => Attribute::Floats(floats),
            (Some(7), _) => Attribute::Ints(ints),
            _ => Attribute::Other,
        };
        Ok((name, attribute))
    }

    fn value_info(&mut self, bytes: &[u8]) -> Result<ValueInfo, String> {
        self.part()?;
        let mut info = ValueInfo::default();
        let mut fields = Fields::new(bytes);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => info.name = value.text()?.to_owned(),
                2 => info.shape = self.tensor_type(value.bytes()?)?,
                _ => {}
            }
        }
        Ok(info)
    }

    /// The sizes of a type that is a tensor's and has a shape.
    fn tensor_type(&mut self, bytes: &[u8]) -> Result<Option<Vec<Option<i64>>>, String> {
        let mut sizes = None;
        // TypeProto, TypeProto.Tensor, TensorShapeProto.
        for_each(bytes, 1, |tensor| {
            for_each(tensor, 2, |shape| {
                let sizes = sizes.insert(Vec::new());
                for_each(shape, 1, |dimension| {
                    self.part()?;
                    let mut size = None;
                    let mut fields = Fields::new(dimension);
                    while let Some((number, value)) = fields.next()? {
                        if number == 1 {
                            size = Some(value.int()?);
                        }
                    }
                    sizes.push(size);
                    Ok(())
                })
            })
        })?;
        Ok(sizes)
    }
}

/// Calls `each` with every part of a message that is field `wanted`.
fn for_each<'a>(
    message: &'a [u8],
    wanted: u64,
    mut each: impl FnMut(&'a [u8]) -> Result<(), String>,
) -> Result<(), String> {
    let mut fields = Fields::new(message);
    while let Some((number, value)) = fields.next()? {
        if number == wanted {
            each(value.bytes()?)?;
        }
    }
    Ok(())
}

/// A domain and its version.
fn operator_set(bytes: &[u8]) -> Result<(String, Option<i64>), String> {
    let (mut domain, mut version) = (String::new(), None);
    let mut fields = Fields::new(bytes);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => domain = value.text()?.to_owned(),
            2 => version = Some(value.int()?),
            _ => {}
        }
    }
    Ok((domain, version))
}

/// A key and its value.
pub(super) fn entry(bytes: &[u8]) -> Result<(String, String), String> {
    let mut entry = (String::new(), String::new());
    let mut fields = Fields::new(bytes);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => entry.0 = value.text()?.to_owned(),
            2 => entry.1 = value.text()?.to_owned(),
            _ => {}
        }
    }
    Ok(entry)
}
