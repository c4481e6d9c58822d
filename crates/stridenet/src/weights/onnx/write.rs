//! Writes ONNX files, tensor by tensor.

use super::graph::{Attribute, Node};
use super::wire::Message;
use std::io::{self, Write};

/// Version of the file format: the one of ONNX 1.12, which belongs to operator set 17.
const IR_VERSION: i64 = 8;
/// The operator set that is written.
pub const OPSET: i64 = 17;
/// The longest message that Protocol Buffers allow, in bytes.
const LONGEST: usize = (1 << 31) - 1;
/// Values that are turned into bytes at a time.
const PIECE: usize = 8192;
/// `TensorProto.DataType`.
const FLOAT: i64 = 1;
const INT64: i64 = 7;

/// A graph to be written. The order of everything is the order in the file.
#[derive(Debug, Default)]
pub struct NewModel {
    /// The program that writes, and its version.
    pub producer: [String; 2],
    /// The graph's name.
    pub name: String,
    /// Free entries.
    pub metadata: Vec<(String, String)>,
    /// The nodes, in the order of execution. Attributes are numbers, lists of numbers or text.
    pub nodes: Vec<Node<'static>>,
    /// The constants.
    pub constants: Vec<NewConstant>,
    /// The input: its name and sizes.
    pub input: (String, Vec<Size>),
    /// The output: its name and sizes.
    pub output: (String, Vec<Size>),
}

/// A size of an input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Size {
    /// The same for every call.
    Fixed(usize),
    /// Free, under a name.
    Free(&'static str),
}

/// A constant to be written.
#[derive(Debug, Clone, PartialEq)]
pub enum NewConstant {
    /// `f32` values of this shape, which are asked for when they are written.
    Floats {
        /// The constant's name.
        name: String,
        /// The sizes.
        shape: Vec<usize>,
    },
    /// Whole numbers.
    Ints {
        /// The constant's name.
        name: String,
        /// The values.
        values: Vec<i64>,
    },
}

impl NewConstant {
    /// Everything of the message but the values, and the number of the values' bytes.
    fn head(&self) -> (Message, usize) {
        let (name, shape, kind, length) = match self {
            NewConstant::Floats { name, shape } => {
                (name, shape.clone(), FLOAT, 4 * shape.iter().product::<usize>())
            }
            NewConstant::Ints { name, values } => (name, vec![values.len()], INT64, 8 * values.len()),
        };
        let sizes = shape.iter().fold(Message::default(), |message, &size| message.int(1, size as i64));
        (sizes.int(2, kind).text(8, name).head(9, length), length)
    }
}

/// A file in pieces: what stands around the values of the constants.
struct Pieces {
    /// Everything before the first constant.
    beginning: Message,
    /// For each constant what stands before its values, and the number of their bytes.
    constants: Vec<(Message, usize)>,
    end: Message,
}

impl NewModel {
    /// Checks that the file can be written.
    ///
    /// # Errors
    /// When it would be longer than 2 GiB, or an attribute is a tensor.
    pub fn check(&self) -> Result<(), String> {
        self.pieces().map(|_| ())
    }

    fn pieces(&self) -> Result<Pieces, String> {
        let constants: Vec<(Message, usize)> = self
            .constants
            .iter()
            .map(|constant| {
                let (head, values) = constant.head();
                let field = Message::default().head(5, head.as_bytes().len() + values);
                (field.then(&head), values)
            })
            .collect();
        let held: usize = constants.iter().map(|(head, values)| head.as_bytes().len() + values).sum();
        let mut nodes = Message::default();
        for node in &self.nodes {
            nodes = nodes.message(1, &message(node)?);
        }
        let end = Message::default()
            .text(2, &self.name)
            .message(11, &value_info(&self.input))
            .message(12, &value_info(&self.output));
        let graph = nodes.as_bytes().len() + held + end.as_bytes().len();
        let [producer, version] = &self.producer;
        let operators = Message::default().text(1, "").int(2, OPSET);
        let mut model =
            Message::default().int(1, IR_VERSION).text(2, producer).text(3, version).message(8, &operators);
        for (key, value) in &self.metadata {
            model = model.message(14, &Message::default().text(1, key).text(2, value));
        }
        let model = model.head(7, graph);
        let total = model.as_bytes().len() + graph;
        if total > LONGEST {
            return Err(format!("an ONNX file holds at most 2 GiB, this network needs {total} bytes"));
        }
        Ok(Pieces { beginning: model.then(&nodes), constants, end })
    }

    /// Writes the file; `values` is called with the name of each constant of floats, in order, for its values.
    ///
    /// # Errors
    /// As [`check`](Self::check), and when a constant's values do not fill its shape, or writing fails.
    pub fn write(
        &self,
        to: &mut dyn Write,
        mut values: impl FnMut(&str) -> io::Result<Vec<f32>>,
    ) -> io::Result<()> {
        let invalid = |problem: String| io::Error::new(io::ErrorKind::InvalidInput, problem);
        let Pieces { beginning, constants, end } = self.pieces().map_err(invalid)?;
        to.write_all(beginning.as_bytes())?;
        for ((head, length), description) in constants.iter().zip(&self.constants) {
            to.write_all(head.as_bytes())?;
            match description {
                NewConstant::Ints { values, .. } => {
                    for value in values {
                        to.write_all(&value.to_le_bytes())?;
                    }
                }
                NewConstant::Floats { name, .. } => {
                    let values = values(name)?;
                    if 4 * values.len() != *length {
                        return Err(invalid(format!(
                            "{} values do not fill the constant {name}",
                            values.len()
                        )));
                    }
                    floats(to, &values)?;
                }
            }
        }
        to.write_all(end.as_bytes())
    }
}

fn floats(to: &mut dyn Write, values: &[f32]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(4 * values.len().min(PIECE));
    for piece in values.chunks(PIECE) {
        bytes.clear();
        bytes.extend(piece.iter().flat_map(|value| value.to_le_bytes()));
        to.write_all(&bytes)?;
    }
    Ok(())
}

fn message(node: &Node) -> Result<Message, String> {
    let mut message = Message::default();
    for input in &node.inputs {
        message = message.text(1, input);
    }
    for output in &node.outputs {
        message = message.text(2, output);
    }
    message = message.text(3, &node.name).text(4, &node.operator);
    for (name, attribute) in &node.attributes {
        message = message.message(5, &attribute_message(name, attribute)?);
    }
    Ok(message)
}

fn attribute_message(name: &str, attribute: &Attribute) -> Result<Message, String> {
    let named = Message::default().text(1, name);
    Ok(match attribute {
        Attribute::Float(value) => named.float(2, *value).int(20, 1),
        Attribute::Int(value) => named.int(3, *value).int(20, 2),
        Attribute::Text(value) => named.text(4, value).int(20, 3),
        Attribute::Floats(values) => {
            values.iter().fold(named, |message, &value| message.float(7, value)).int(20, 6)
        }
        Attribute::Ints(values) => {
            values.iter().fold(named, |message, &value| message.int(8, value)).int(20, 7)
        }
        Attribute::Tensor(_) | Attribute::Other => {
            return Err(format!("the attribute {name} is neither a number, a list of numbers, nor text"));
        }
    })
}

fn value_info((name, sizes): &(String, Vec<Size>)) -> Message {
    let shape = sizes.iter().fold(Message::default(), |shape, size| {
        let dimension = match size {
            Size::Fixed(size) => Message::default().int(1, *size as i64),
            Size::Free(name) => Message::default().text(2, name),
        };
        shape.message(1, &dimension)
    });
    let tensor = Message::default().int(1, FLOAT).message(2, &shape);
    Message::default().text(1, name).message(2, &Message::default().message(1, &tensor))
}
