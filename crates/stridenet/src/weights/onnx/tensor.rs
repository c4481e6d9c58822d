//! Tensors of ONNX files: where their values lie, and what they are.

use super::super::dtype::f16_to_f32 as f16;
use super::super::error::printable;
use super::graph::{Parser, entry};
use super::wire::{Fields, Wire};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

/// The most dimensions of a tensor.
const MOST_DIMENSIONS: usize = 8;
/// Bytes of a file beside the model that are read at a time.
const PIECE: usize = 1 << 16;

/// A constant. Its values are read when they are asked for; their number has been checked against what the file holds.
#[derive(Debug, Clone, PartialEq)]
pub struct OnnxTensor<'a> {
    /// The sizes; `[]` is a scalar.
    pub shape: Vec<usize>,
    kind: Kind,
    place: Place<'a>,
}

/// The element types that weights and shapes have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    F32,
    F16,
    Bf16,
    F64,
    I64,
    I32,
    Bool,
    /// Another one, by its number in `TensorProto.DataType`: only an error when it is used.
    Other(i64),
}

/// Where the values are.
#[derive(Debug, Clone, PartialEq)]
enum Place<'a> {
    /// Little-endian, one after the other.
    Raw(&'a [u8]),
    /// Widened by the writer; small tensors of old exporters.
    Floats(Vec<f32>),
    Doubles(Vec<f64>),
    Ints(Vec<i64>),
    /// In a file beside the model.
    External {
        location: String,
        offset: u64,
        length: Option<u64>,
    },
}

impl Kind {
    fn from_number(number: i64) -> Self {
        match number {
            1 => Kind::F32,
            6 => Kind::I32,
            7 => Kind::I64,
            9 => Kind::Bool,
            10 => Kind::F16,
            11 => Kind::F64,
            16 => Kind::Bf16,
            other => Kind::Other(other),
        }
    }

    /// Bytes of one value.
    fn size(self) -> Option<usize> {
        match self {
            Kind::Bool => Some(1),
            Kind::F16 | Kind::Bf16 => Some(2),
            Kind::F32 | Kind::I32 => Some(4),
            Kind::F64 | Kind::I64 => Some(8),
            Kind::Other(_) => None,
        }
    }

    fn is_float(self) -> bool {
        matches!(self, Kind::F32 | Kind::F16 | Kind::Bf16 | Kind::F64)
    }

    /// Appends the values that `bytes` hold; nothing where they are no floating-point numbers.
    fn f32(self, bytes: &[u8], to: &mut Vec<f32>) {
        match self {
            Kind::F32 => to.extend(bytes.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value))),
            Kind::F64 => to.extend(bytes.as_chunks().0.iter().map(|&value| f64::from_le_bytes(value) as f32)),
            Kind::F16 => to.extend(bytes.as_chunks().0.iter().map(|&value| f16(u16::from_le_bytes(value)))),
            Kind::Bf16 => to.extend(bytes.as_chunks().0.iter().map(|&value| bf16(u16::from_le_bytes(value)))),
            Kind::I64 | Kind::I32 | Kind::Bool | Kind::Other(_) => {}
        }
    }

    fn i64(self, bytes: &[u8], to: &mut Vec<i64>) {
        match self {
            Kind::I64 => to.extend(bytes.as_chunks().0.iter().map(|&value| i64::from_le_bytes(value))),
            Kind::I32 => {
                to.extend(bytes.as_chunks().0.iter().map(|&value| i64::from(i32::from_le_bytes(value))))
            }
            Kind::Bool => to.extend(bytes.iter().map(|&value| i64::from(value != 0))),
            Kind::F32 | Kind::F16 | Kind::Bf16 | Kind::F64 | Kind::Other(_) => {}
        }
    }
}

/// bfloat16 to binary32, exactly.
fn bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

impl OnnxTensor<'_> {
    /// A tensor of whole numbers.
    pub fn ints(values: Vec<i64>) -> Self {
        OnnxTensor { shape: vec![values.len()], kind: Kind::I64, place: Place::Ints(values) }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        // The product has been checked.
        self.shape.iter().product()
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the values are floating-point numbers.
    pub fn is_float(&self) -> bool {
        self.kind.is_float()
    }

    /// The values in row-major order as `f32`; shorter and longer floating-point types are converted. `model` is the path of
    /// the ONNX file, beside which the values may lie.
    ///
    /// # Errors
    /// When they are no floating-point numbers, or the file beside the model is missing, too short, or not beside it.
    pub fn f32_values(&self, model: &Path) -> Result<Vec<f32>, String> {
        match &self.place {
            _ if !self.kind.is_float() => {
                Err(format!("has {} where floats are expected", self.kind.describe()))
            }
            Place::Floats(values) => Ok(values.clone()),
            Place::Doubles(values) => Ok(values.iter().map(|&value| value as f32).collect()),
            // Shorter types are stored bit by bit in longer integers.
            Place::Ints(values) => {
                let bits = values.iter().map(|&value| value as u16);
                match self.kind {
                    Kind::F16 => Ok(bits.map(f16).collect()),
                    _ => Ok(bits.map(bf16).collect()),
                }
            }
            Place::Raw(bytes) => {
                let mut values = Vec::with_capacity(self.len());
                self.kind.f32(bytes, &mut values);
                Ok(values)
            }
            Place::External { .. } => {
                let mut values = Vec::new();
                self.external(model, |bytes| self.kind.f32(bytes, &mut values))?;
                Ok(values)
            }
        }
    }

    /// The values in row-major order as `i64`; `model` as above.
    ///
    /// # Errors
    /// When they are no whole numbers, or the file beside the model is missing, too short, or not beside it.
    pub fn i64_values(&self, model: &Path) -> Result<Vec<i64>, String> {
        let mut values = Vec::new();
        match &self.place {
            _ if !matches!(self.kind, Kind::I64 | Kind::I32 | Kind::Bool) => {
                return Err(format!("has {} where whole numbers are expected", self.kind.describe()));
            }
            Place::Ints(ints) => values.clone_from(ints),
            Place::Raw(bytes) => self.kind.i64(bytes, &mut values),
            Place::External { .. } => self.external(model, |bytes| self.kind.i64(bytes, &mut values))?,
            Place::Floats(_) | Place::Doubles(_) => {}
        }
        Ok(values)
    }

    /// The file that holds the values, where that is one beside the model or in a folder there.
    pub fn file_beside(&self, model: &Path) -> Option<PathBuf> {
        let Place::External { location, .. } = &self.place else { return None };
        let inside = Path::new(location).components().all(|part| matches!(part, Component::Normal(_)));
        (inside && !location.is_empty()).then(|| model.with_file_name(location))
    }

    /// Calls `each` with the bytes of a tensor that lies beside the model, piece by piece.
    fn external(&self, model: &Path, mut each: impl FnMut(&[u8])) -> Result<(), String> {
        let (Place::External { location, offset, length }, Some(size)) = (&self.place, self.kind.size())
        else {
            return Ok(());
        };
        let Some(path) = self.file_beside(model) else {
            return Err(format!("lies in {:?}, expected a file beside the model", printable(location)));
        };
        let unreadable = |error| format!("lies in {}, which cannot be read: {error}", path.display());
        // A pipe would make us wait.
        if !std::fs::metadata(&path).map_err(unreadable)?.is_file() {
            return Err(format!("lies in {}, which is no file", path.display()));
        }
        let mut file = File::open(&path).map_err(unreadable)?;
        let held = file.metadata().map_err(unreadable)?.len();
        let wanted = (self.len() * size) as u64;
        if length.is_some_and(|length| length != wanted)
            || offset.checked_add(wanted).is_none_or(|end| end > held)
        {
            let asked = length.unwrap_or(wanted);
            return Err(format!(
                "needs {wanted} bytes, {} holds {held} and is asked for {asked} from byte {offset}",
                path.display()
            ));
        }
        file.seek(SeekFrom::Start(*offset)).map_err(unreadable)?;
        let mut piece = vec![0; PIECE];
        let mut left = self.len() * size;
        while left > 0 {
            let taken = left.min(PIECE);
            file.read_exact(&mut piece[..taken]).map_err(unreadable)?;
            each(&piece[..taken]);
            left -= taken;
        }
        Ok(())
    }
}

impl Kind {
    fn describe(self) -> String {
        match self {
            Kind::F32 | Kind::F16 | Kind::Bf16 | Kind::F64 => "floats".to_owned(),
            Kind::I64 | Kind::I32 => "whole numbers".to_owned(),
            Kind::Bool => "booleans".to_owned(),
            Kind::Other(number) => format!("the element type number {number}"),
        }
    }
}

impl Parser {
    /// A constant with its name.
    pub(super) fn tensor<'a>(&mut self, bytes: &'a [u8]) -> Result<(String, OnnxTensor<'a>), String> {
        self.part()?;
        let mut declared = Declared::default();
        let mut fields = Fields::new(bytes);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => value.ints(|size| {
                    declared.shape.push(usize::try_from(size).map_err(|_| format!("a size is {size}"))?);
                    match declared.shape.len() > MOST_DIMENSIONS {
                        true => Err(format!("a constant has more than {MOST_DIMENSIONS} dimensions")),
                        false => Ok(()),
                    }
                })?,
                2 => declared.kind = Some(Kind::from_number(value.int()?)),
                4 => floats(value, &mut declared.floats)?,
                5 | 7 => value.ints(|value| {
                    self.part()?;
                    declared.ints.push(value);
                    Ok(())
                })?,
                8 => declared.name = value.text()?,
                9 => declared.raw = Some(value.bytes()?),
                10 => doubles(value, &mut declared.doubles)?,
                13 => {
                    self.part()?;
                    declared.external.push(entry(value.bytes()?)?);
                }
                14 => declared.elsewhere = value.int()? == 1,
                _ => {}
            }
        }
        let name = declared.name.to_owned();
        let tensor =
            declared.tensor().map_err(|problem| format!("the constant {} {problem}", printable(&name)))?;
        Ok((name, tensor))
    }
}

/// A constant as it is declared.
#[derive(Default)]
struct Declared<'a> {
    name: &'a str,
    shape: Vec<usize>,
    kind: Option<Kind>,
    raw: Option<&'a [u8]>,
    floats: Vec<f32>,
    doubles: Vec<f64>,
    ints: Vec<i64>,
    elsewhere: bool,
    external: Vec<(String, String)>,
}

impl<'a> Declared<'a> {
    /// The tensor, if its values fill its shape.
    fn tensor(self) -> Result<OnnxTensor<'a>, String> {
        let Some(kind) = self.kind else { return Err("has no element type".to_owned()) };
        let count = self.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let bytes = count.and_then(|count| count.checked_mul(kind.size().unwrap_or(1)));
        let (Some(count), Some(bytes)) = (count, bytes) else {
            return Err(format!("has the shape {:?}, which is too large", self.shape));
        };
        let fills = |found: usize, expected: usize, what| match found == expected {
            true => Ok(()),
            false => Err(format!("has the shape {:?} and {found} {what}, expected {expected}", self.shape)),
        };
        let place = if self.elsewhere {
            let find = |key| self.external.iter().find(|(found, _)| found == key).map(|(_, value)| value);
            let number = |key| match find(key) {
                None => Ok(None),
                Some(value) => {
                    value.parse().map(Some).map_err(|_| format!("has the {key} {}", printable(value)))
                }
            };
            let location = find("location").cloned().unwrap_or_default();
            Place::External { location, offset: number("offset")?.unwrap_or(0), length: number("length")? }
        } else if let Some(raw) = self.raw {
            if kind.size().is_some() {
                fills(raw.len(), bytes, "bytes")?;
            }
            Place::Raw(raw)
        } else {
            match kind {
                Kind::F32 => {
                    fills(self.floats.len(), count, "values")?;
                    Place::Floats(self.floats)
                }
                Kind::F64 => {
                    fills(self.doubles.len(), count, "values")?;
                    Place::Doubles(self.doubles)
                }
                Kind::F16 | Kind::Bf16 | Kind::I64 | Kind::I32 | Kind::Bool => {
                    fills(self.ints.len(), count, "values")?;
                    Place::Ints(self.ints)
                }
                Kind::Other(_) => Place::Raw(&[]),
            }
        };
        Ok(OnnxTensor { shape: self.shape, kind, place })
    }
}

pub(super) fn floats(value: Wire, to: &mut Vec<f32>) -> Result<(), String> {
    match value {
        Wire::Bytes(bytes) => {
            let (values, rest) = bytes.as_chunks();
            to.extend(values.iter().map(|&value| f32::from_le_bytes(value)));
            if rest.is_empty() {
                Ok(())
            } else {
                Err("a list of floats ends in the middle of one".to_owned())
            }
        }
        single => {
            to.push(single.float()?);
            Ok(())
        }
    }
}

fn doubles(value: Wire, to: &mut Vec<f64>) -> Result<(), String> {
    match value {
        Wire::Bytes(bytes) => {
            let (values, rest) = bytes.as_chunks();
            to.extend(values.iter().map(|&value| f64::from_le_bytes(value)));
            if rest.is_empty() {
                Ok(())
            } else {
                Err("a list of doubles ends in the middle of one".to_owned())
            }
        }
        Wire::Fixed64(value) => {
            to.push(f64::from_le_bytes(value));
            Ok(())
        }
        _ => Err("something else stands where a double is expected".to_owned()),
    }
}
