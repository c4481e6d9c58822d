//! Pickle's stack machine, without anything that runs code.
//!
//! The opcodes are those that `torch.save` writes for state dicts and checkpoints (protocols 2 to 4). Source: CPython's
//! `Lib/pickletools.py`, which describes every opcode.

use super::Problem;
use super::value::{Global, Heap, Storage, Value, View, put};
use crate::weights::error::printable;
use std::collections::HashMap;

/// The longest pickle, in bytes; values take some tens of bytes for each.
pub(super) const LONGEST: u64 = 8 << 20;
/// The most axes of a tensor.
const MOST_AXES: usize = 8;
/// The most arguments of what is called.
const MOST_ARGUMENTS: usize = 16;
/// The longest name of a module or class that is shown.
const LONGEST_NAME: usize = 200;

/// What a pickle means.
#[derive(Debug)]
pub(super) struct Pickle {
    pub(super) root: Value,
    pub(super) heap: Heap,
}

/// Reads a pickle.
pub(super) fn load(bytes: &[u8]) -> Result<Pickle, Problem> {
    let mut machine = Machine {
        bytes,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        pairs: 0,
        heap: Heap::default(),
    };
    let root = machine.run()?;
    Ok(Pickle { root, heap: machine.heap })
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack that marks remember.
    marks: Vec<usize>,
    memo: HashMap<u64, Value>,
    /// Pairs that were copied into dictionaries; each has bytes of its own, unless the pickle repeats itself without end.
    pairs: usize,
    heap: Heap,
}

impl<'a> Machine<'a> {
    fn damaged(&self, what: impl std::fmt::Display) -> Problem {
        Problem::damaged(format!("its pickle {what} at byte {}", self.at))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Problem> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| self.damaged("ends too early"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// The next `size` bytes as a little-endian number without a sign.
    fn number(&mut self, size: usize) -> Result<u64, Problem> {
        Ok(self.take(size)?.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn pop(&mut self) -> Result<Value, Problem> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(self.damaged("takes a value that is not there"));
        }
        self.stack.pop().ok_or_else(|| self.damaged("takes a value that is not there"))
    }

    fn pop_mark(&mut self) -> Result<Vec<Value>, Problem> {
        let mark = self.marks.pop().ok_or_else(|| self.damaged("takes a mark that is not there"))?;
        Ok(self.stack.split_off(mark))
    }

    fn text(&mut self, length: usize) -> Result<(), Problem> {
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.damaged("has a text that is not UTF-8"))?;
        let place = put(&mut self.heap.texts, text.to_owned());
        self.stack.push(Value::Text(place));
        Ok(())
    }

    fn line(&mut self) -> Result<&'a str, Problem> {
        let rest = &self.bytes[self.at..];
        let length =
            rest.iter().position(|&byte| byte == b'\n').ok_or_else(|| self.damaged("ends too early"))?;
        let line = self.take(length + 1)?;
        std::str::from_utf8(&line[..length]).map_err(|_| self.damaged("has a name that is not UTF-8"))
    }

    fn tuple(&mut self, values: Vec<Value>) {
        let place = put(&mut self.heap.tuples, values);
        self.stack.push(Value::Tuple(place));
    }

    fn memoise(&mut self, key: u64) -> Result<(), Problem> {
        let &top = self.stack.last().ok_or_else(|| self.damaged("remembers a value that is not there"))?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<(), Problem> {
        let value = self.memo.get(&key).copied();
        self.stack.push(value.ok_or_else(|| self.damaged("recalls a value that it has not remembered"))?);
        Ok(())
    }

    fn run(&mut self) -> Result<Value, Problem> {
        loop {
            let opcode = self.take(1)?[0];
            match opcode {
                b'.' => return self.pop(), // STOP
                0x80 => match self.number(1)? {
                    2..=5 => {} // PROTO
                    protocol => return Err(Problem::foreign(format!("its pickle has protocol {protocol}"))),
                },
                0x95 => drop(self.take(8)?), // FRAME
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'N' => self.stack.push(Value::None),
                0x88 => self.stack.push(Value::Bool(true)),
                0x89 => self.stack.push(Value::Bool(false)),
                b'K' | b'M' | b'J' | 0x8a | b'G' => self.scalar(opcode)?,
                b'X' | 0x8c | b'U' => {
                    let length = self.number(if opcode == b'X' { 4 } else { 1 })?;
                    self.text(length as usize)?;
                }
                b'}' | b']' | b')' => self.empty(opcode),
                b't' | 0x85..=0x87 => self.make_tuple(opcode)?,
                b'a' | b'e' => self.append(opcode)?,
                b's' | b'u' => self.set_items(opcode)?,
                b'q' | b'r' => {
                    let key = self.number(if opcode == b'q' { 1 } else { 4 })?;
                    self.memoise(key)?;
                }
                0x94 => self.memoise(self.memo.len() as u64)?, // MEMOIZE
                b'h' | b'j' => {
                    let key = self.number(if opcode == b'h' { 1 } else { 4 })?;
                    self.recall(key)?;
                }
                b'c' | 0x93 => self.global(opcode)?,
                b'R' | 0x81 => self.reduce()?,
                b'b' => self.build()?,
                b'Q' => self.storage()?,
                other => {
                    return Err(Problem::foreign(format!(
                        "its pickle has the opcode {}",
                        opcode_name(other)
                    )));
                }
            }
        }
    }

    /// BININT1, BININT2, BININT, LONG1 and BINFLOAT.
    fn scalar(&mut self, opcode: u8) -> Result<(), Problem> {
        let value = match opcode {
            b'K' => Value::Int(self.number(1)? as i64),
            b'M' => Value::Int(self.number(2)? as i64),
            b'J' => Value::Int(i64::from(self.number(4)? as u32 as i32)),
            b'G' => {
                let bytes = self.take(8)?;
                Value::Float(f64::from_bits(bytes.iter().fold(0, |bits, &byte| bits << 8 | u64::from(byte))))
            }
            _ => match self.number(1)? as usize {
                0 => Value::Int(0),
                size @ 1..=8 => {
                    let unused = 64 - 8 * size as u32;
                    Value::Int((self.number(size)? << unused) as i64 >> unused)
                }
                // Such as a seed of 128 bits; no size or count is so large.
                size => {
                    self.take(size)?;
                    Value::Other
                }
            },
        };
        self.stack.push(value);
        Ok(())
    }

    fn empty(&mut self, opcode: u8) {
        let value = match opcode {
            b'}' => Value::Dict(put(&mut self.heap.dicts, Vec::new())),
            b']' => Value::List(put(&mut self.heap.lists, Vec::new())),
            _ => Value::Tuple(put(&mut self.heap.tuples, Vec::new())),
        };
        self.stack.push(value);
    }

    fn make_tuple(&mut self, opcode: u8) -> Result<(), Problem> {
        let values = match opcode {
            b't' => self.pop_mark()?,
            _ => {
                let mut values = (0x84..opcode).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
                values.reverse();
                values
            }
        };
        self.tuple(values);
        Ok(())
    }

    fn append(&mut self, opcode: u8) -> Result<(), Problem> {
        let values = if opcode == b'a' { vec![self.pop()?] } else { self.pop_mark()? };
        match self.stack.last() {
            Some(&Value::List(list)) => self.heap.lists[list].extend(values),
            _ => return Err(self.damaged("appends to what is no list")),
        }
        Ok(())
    }

    fn set_items(&mut self, opcode: u8) -> Result<(), Problem> {
        let values = match opcode {
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_mark()?,
        };
        let (pairs, []) = values.as_chunks::<2>() else {
            return Err(self.damaged("has a key without a value"));
        };
        match self.stack.last() {
            Some(&Value::Dict(dict)) => {
                self.heap.dicts[dict].extend(pairs.iter().map(|&[key, value]| (key, value)))
            }
            // What belongs to an object that is of no use for weights.
            Some(Value::Other) => {}
            _ => return Err(self.damaged("puts a value into what is no dictionary")),
        }
        Ok(())
    }

    /// GLOBAL and STACK_GLOBAL.
    fn global(&mut self, opcode: u8) -> Result<(), Problem> {
        let (module, name) = if opcode == b'c' {
            (self.line()?.to_owned(), self.line()?.to_owned())
        } else {
            let [name, module] = [self.pop()?, self.pop()?];
            match (module, name) {
                (Value::Text(module), Value::Text(name)) => {
                    let shown =
                        |text: usize| self.heap.texts[text].chars().take(LONGEST_NAME).collect::<String>();
                    (shown(module), shown(name))
                }
                _ => return Err(self.damaged("names a class by what is no text")),
            }
        };
        let global = Global::find(&module, &name).ok_or_else(|| {
            Problem::foreign(format!(
                "it contains {}.{}, which weights do not need",
                printable(&module),
                printable(&name)
            ))
        })?;
        self.stack.push(Value::Global(global));
        Ok(())
    }

    /// REDUCE and NEWOBJ: what a class or function makes of its arguments.
    fn reduce(&mut self) -> Result<(), Problem> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let (Value::Tuple(arguments), Value::Global(callable)) = (arguments, callable) else {
            return Err(self.damaged("calls what is no function"));
        };
        let arguments = &self.heap.tuples[arguments];
        if arguments.len() > MOST_ARGUMENTS {
            return Err(self.damaged(format_args!("calls something with {} arguments", arguments.len())));
        }
        // A copy of a few values.
        let arguments = arguments.clone();
        let made = match callable {
            Global::OrderedDict => self.ordered_dict(&arguments)?,
            Global::RebuildTensor => self.tensor(&arguments)?,
            Global::RebuildParameter => arguments
                .first()
                .copied()
                .filter(|value| matches!(value, Value::Tensor(_)))
                .ok_or_else(|| self.damaged("has a parameter without a tensor"))?,
            Global::Size => match arguments[..] {
                [Value::Tuple(sizes)] => Value::Tuple(sizes),
                _ => return Err(self.damaged("has a size without sizes")),
            },
            Global::Data => Value::Other,
            Global::Storage(_) => return Err(self.damaged("makes a storage out of nothing")),
        };
        self.stack.push(made);
        Ok(())
    }

    /// A dictionary, empty or of a list of pairs.
    fn ordered_dict(&mut self, arguments: &[Value]) -> Result<Value, Problem> {
        let mut pairs = Vec::new();
        match arguments {
            [] => {}
            &[Value::List(list)] => {
                self.pairs += self.heap.lists[list].len();
                if self.pairs > self.bytes.len() {
                    return Err(self.damaged("copies a list too often"));
                }
                for &pair in &self.heap.lists[list] {
                    let pair = match pair {
                        Value::Tuple(pair) => &self.heap.tuples[pair],
                        Value::List(pair) => &self.heap.lists[pair],
                        _ => return Err(self.damaged("has a dictionary of something else than pairs")),
                    };
                    let &[key, value] = &pair[..] else {
                        return Err(self.damaged("has a dictionary of something else than pairs"));
                    };
                    pairs.push((key, value));
                }
            }
            _ => return Err(self.damaged("has a dictionary of something else than pairs")),
        }
        Ok(Value::Dict(put(&mut self.heap.dicts, pairs)))
    }

    /// `_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks)`.
    fn tensor(&mut self, arguments: &[Value]) -> Result<Value, Problem> {
        let &[Value::Storage(storage), Value::Int(offset), Value::Tuple(shape), Value::Tuple(strides), ..] =
            arguments
        else {
            return Err(self.damaged("has a tensor that is not made as usual"));
        };
        let axes = [shape, strides].map(|tuple| self.heap.tuples[tuple].len());
        if axes[0] != axes[1] || axes[0] > MOST_AXES {
            return Err(
                self.damaged(format_args!("has a tensor of {} sizes and {} strides", axes[0], axes[1]))
            );
        }
        let sizes = |tuple: usize| -> Option<Vec<usize>> {
            let size = |value: &Value| match value {
                Value::Int(size) => usize::try_from(*size).ok(),
                _ => None,
            };
            self.heap.tuples[tuple].iter().map(size).collect()
        };
        let (Some(shape), Some(strides), Ok(offset)) =
            (sizes(shape), sizes(strides), usize::try_from(offset))
        else {
            return Err(self.damaged("has a tensor whose sizes are no sizes"));
        };
        Ok(Value::Tensor(put(&mut self.heap.tensors, View { storage, offset, shape, strides })))
    }

    /// BUILD: attributes of an object; those of a dictionary (`_metadata`) and of other data are of no use for weights.
    fn build(&mut self) -> Result<(), Problem> {
        self.pop()?;
        match self.stack.last() {
            Some(Value::Dict(_) | Value::Other) => Ok(()),
            _ => Err(self.damaged("gives attributes to what has none")),
        }
    }

    /// BINPERSID: `('storage', class, key, location, count)`.
    fn storage(&mut self) -> Result<(), Problem> {
        let Value::Tuple(id) = self.pop()? else {
            return Err(self.damaged("has a storage that is not made as usual"));
        };
        let (kind, key, len) = match self.heap.tuples[id][..] {
            [
                Value::Text(storage),
                Value::Global(Global::Storage(kind)),
                Value::Text(key),
                _,
                Value::Int(len),
            ] if self.heap.texts[storage] == "storage" => (kind, key, len),
            _ => return Err(self.damaged("has a storage that is not made as usual")),
        };
        let len = usize::try_from(len).map_err(|_| self.damaged("has a storage of a negative size"))?;
        let place = put(&mut self.heap.storages, Storage { key, kind, len });
        self.stack.push(Value::Storage(place));
        Ok(())
    }
}

/// The name of an opcode that is not known here.
fn opcode_name(opcode: u8) -> String {
    let name = match opcode {
        b'I' => "INT",
        b'L' => "LONG",
        b'F' => "FLOAT",
        b'S' => "STRING",
        b'T' => "BINSTRING",
        b'V' => "UNICODE",
        b'B' => "BINBYTES",
        b'C' => "SHORT_BINBYTES",
        b'P' => "PERSID",
        b'i' => "INST",
        b'o' => "OBJ",
        b'p' => "PUT",
        b'g' => "GET",
        b'l' => "LIST",
        b'd' => "DICT",
        b'1' => "POP_MARK",
        b'2' => "DUP",
        0x82..=0x84 => "EXT",
        0x8b => "LONG4",
        0x8d => "BINUNICODE8",
        0x8e => "BINBYTES8",
        0x8f => "EMPTY_SET",
        0x90 => "ADDITEMS",
        0x91 => "FROZENSET",
        0x92 => "NEWOBJ_EX",
        0x96 => "BYTEARRAY8",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => return format!("{opcode:#04x}"),
    };
    name.to_owned()
}
