//! NPY files, NumPy's format for one array: a header that is a Python dictionary, then the values
//! (<https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>).
//!
//! The header is parsed here, in one pass and without recursion, because a header can ask a general parser of Python
//! literals for gigabytes of memory, endless nesting, or sizes whose product overflows.

use super::error::{WeightsError, printable};
use crate::file::{FileError, write_atomically};
use std::io;
use std::path::Path;

const MAGIC: &[u8] = b"\x93NUMPY";
/// The values start at a multiple of this, as NumPy writes them.
const ALIGNMENT: usize = 64;
/// NumPy itself refuses longer headers unless told otherwise.
const LONGEST_HEADER: usize = 10_000;

/// Reads a float32 or float64 array with four axes, in C or Fortran order. Returns its shape and its values, rounded
/// to `f32`, in C order.
///
/// # Errors
/// When the file cannot be read, is truncated or no NPY file, or has another element type or number of axes.
pub fn read_npy(path: &Path) -> Result<([usize; 4], Vec<f32>), WeightsError> {
    let bytes = std::fs::read(path).map_err(|source| FileError::read(path, source))?;
    from_bytes(&bytes).map_err(|(problem, remedy)| WeightsError::Npy {
        path: path.to_path_buf(),
        problem,
        remedy,
    })
}

/// Writes `f32` values in C order, atomically.
///
/// # Errors
/// When the number of values is not the product of `shape`, or the file cannot be written.
pub fn write_npy(path: &Path, shape: &[usize], values: &[f32]) -> Result<(), WeightsError> {
    if product(shape) != Some(values.len()) {
        let tensor = path.display().to_string();
        return Err(WeightsError::Length { tensor, shape: shape.to_vec(), found: values.len() });
    }
    let sizes: String = shape.iter().map(|size| format!("{size}, ")).collect();
    // A tuple of one needs its comma, longer ones are written without the last.
    let sizes = if shape.len() == 1 { sizes.trim_end() } else { sizes.trim_end_matches(", ") };
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({sizes}), }}");
    let before = MAGIC.len() + 4;
    let padded = (before + header.len() + 1).next_multiple_of(ALIGNMENT) - before;
    header.extend(std::iter::repeat_n(' ', padded - header.len() - 1));
    header.push('\n');
    write_atomically(path, |to| {
        let length = u16::try_from(header.len()).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, "the array has too many axes for NPY")
        })?;
        to.write_all(MAGIC)?;
        to.write_all(&[1, 0])?;
        to.write_all(&length.to_le_bytes())?;
        to.write_all(header.as_bytes())?;
        values.iter().try_for_each(|value| to.write_all(&value.to_le_bytes()))
    })?;
    Ok(())
}

/// What is wrong and what to do.
type Problem = (String, &'static str);

const SAVE_AGAIN: &str = "write it with numpy.save(path, x.astype(numpy.float32))";

fn from_bytes(bytes: &[u8]) -> Result<([usize; 4], Vec<f32>), Problem> {
    let problem = |text: &str| (text.to_string(), SAVE_AGAIN);
    let (header, data) = split(bytes).map_err(problem)?;
    let header = std::str::from_utf8(header).ok().and_then(|text| Cursor(text).header());
    let Header { descr, fortran_order, shape } =
        header.ok_or_else(|| problem("the header is not that of an NPY file with one plain array"))?;
    let element = Element::from_descr(&descr).ok_or_else(|| {
        (format!("it holds {}, expected float32 or float64", printable(&descr)), SAVE_AGAIN)
    })?;
    let Ok(shape) = <[usize; 4]>::try_from(shape.as_slice()) else {
        let found = printable(&format!("{shape:?}"));
        let remedy = "add the batch axis with x[None], or remove axes with x.squeeze()";
        return Err((format!("the array has the shape {found}, expected four axes"), remedy));
    };
    let needed = product(&shape).and_then(|length| length.checked_mul(element.size));
    if needed != Some(data.len()) {
        let found = data.len();
        let text = match needed {
            Some(needed) => {
                format!("the shape {shape:?} needs {needed} bytes of values, the file holds {found}")
            }
            None => format!("the shape {shape:?} is too large, the file holds {found} bytes of values"),
        };
        return Err((text, SAVE_AGAIN));
    }
    let values = element.decode(data);
    let values = if fortran_order { to_c_order(shape, &values) } else { values };
    Ok((shape, values))
}

/// The header's text and the bytes of the values.
fn split(bytes: &[u8]) -> Result<(&[u8], &[u8]), &'static str> {
    let truncated = "the file ends within its header";
    let Some(rest) = bytes.strip_prefix(MAGIC) else {
        return Err("it is not an NPY file");
    };
    let (version, rest) = rest.split_first_chunk::<2>().ok_or(truncated)?;
    let (length, rest) = match version[0] {
        1 => rest.split_first_chunk().map(|(length, rest)| (u32::from(u16::from_le_bytes(*length)), rest)),
        2 | 3 => rest.split_first_chunk().map(|(length, rest)| (u32::from_le_bytes(*length), rest)),
        _ => return Err("it has a version of the NPY format other than 1, 2 or 3"),
    }
    .ok_or(truncated)?;
    if length as usize > LONGEST_HEADER {
        return Err("its header is longer than that of a plain array");
    }
    rest.split_at_checked(length as usize).ok_or(truncated)
}

fn product(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size))
}

/// How a floating-point number is stored.
#[derive(Clone, Copy)]
struct Element {
    size: usize,
    big_endian: bool,
}

impl Element {
    fn from_descr(descr: &str) -> Option<Self> {
        let (order, kind) = descr.split_at_checked(1)?;
        let big_endian = match order {
            "<" => false,
            ">" => true,
            _ => return None,
        };
        let size = match kind {
            "f4" => 4,
            "f8" => 8,
            _ => return None,
        };
        Some(Element { size, big_endian })
    }

    fn decode(self, data: &[u8]) -> Vec<f32> {
        let singles = data.as_chunks::<4>().0.iter();
        let doubles = data.as_chunks::<8>().0.iter();
        match (self.size, self.big_endian) {
            (4, false) => singles.map(|&bytes| f32::from_le_bytes(bytes)).collect(),
            (4, true) => singles.map(|&bytes| f32::from_be_bytes(bytes)).collect(),
            (_, false) => doubles.map(|&bytes| f64::from_le_bytes(bytes) as f32).collect(),
            (_, true) => doubles.map(|&bytes| f64::from_be_bytes(bytes) as f32).collect(),
        }
    }
}

/// Values whose first axis changes fastest, rearranged so that the last does.
fn to_c_order(shape: [usize; 4], values: &[f32]) -> Vec<f32> {
    let [a, b, c, d] = shape;
    if values.is_empty() {
        // One axis is 0; the others can be so long that counting through them takes forever.
        return Vec::new();
    }
    let mut ordered = Vec::with_capacity(values.len());
    for i in 0..a {
        for j in 0..b {
            for k in 0..c {
                ordered.extend((0..d).map(|l| values[i + a * (j + b * (k + c * l))]));
            }
        }
    }
    ordered
}

#[derive(Debug, PartialEq)]
struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

/// What is left of a header's text.
struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    /// `{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }`, keys in any order, each once.
    fn header(mut self) -> Option<Header> {
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        self.token("{")?;
        while self.token("}").is_none() {
            let key = self.string()?;
            self.token(":")?;
            let again = match key {
                "descr" => descr.replace(self.string()?.to_string()).is_some(),
                "fortran_order" => fortran_order.replace(self.boolean()?).is_some(),
                "shape" => shape.replace(self.tuple()?).is_some(),
                _ => return None,
            };
            if again || (self.token(",").is_none() && !self.0.trim_start().starts_with('}')) {
                return None;
            }
        }
        self.0.trim().is_empty().then_some(Header {
            descr: descr?,
            fortran_order: fortran_order?,
            shape: shape?,
        })
    }

    fn token(&mut self, token: &str) -> Option<()> {
        self.0 = self.0.trim_start().strip_prefix(token)?;
        Some(())
    }

    fn string(&mut self) -> Option<&'a str> {
        let quote = if self.0.trim_start().starts_with('"') { "\"" } else { "'" };
        self.token(quote)?;
        let (text, rest) = self.0.split_once(quote)?;
        self.0 = rest;
        Some(text)
    }

    fn boolean(&mut self) -> Option<bool> {
        match self.token("True") {
            Some(()) => Some(true),
            None => self.token("False").map(|()| false),
        }
    }

    fn tuple(&mut self) -> Option<Vec<usize>> {
        let mut sizes = Vec::new();
        self.token("(")?;
        while self.token(")").is_none() {
            let text = self.0.trim_start();
            let end = text.find(|character: char| !character.is_ascii_digit())?;
            sizes.push(text[..end].parse().ok()?);
            self.0 = &text[end..];
            if self.token(",").is_none() && !self.0.trim_start().starts_with(')') {
                return None;
            }
        }
        Some(sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Use, generator};
    use npyz::WriterBuilder;
    use rand_chacha::rand_core::Rng;

    const SHAPE: [usize; 4] = [2, 3, 4, 1];

    /// Eighths from 0, in C order of `SHAPE`.
    fn values() -> Vec<f32> {
        (0..24).map(|value| value as f32 / 8.0).collect()
    }

    /// A file as the crate npyz writes it.
    fn npyz_file<T: npyz::Serialize>(
        shape: &[u64],
        order: npyz::Order,
        descr: &str,
        values: Vec<T>,
    ) -> Vec<u8> {
        let mut bytes = Vec::new();
        let dtype = npyz::DType::Plain(descr.parse().unwrap());
        let options = npyz::WriteOptions::new().dtype(dtype).shape(shape).order(order);
        let mut writer = options.writer(&mut bytes).begin_nd().unwrap();
        writer.extend(values).unwrap();
        writer.finish().unwrap();
        bytes
    }

    fn with_header(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = [MAGIC, &[1, 0], &(header.len() as u16).to_le_bytes(), header.as_bytes()].concat();
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    #[test]
    fn both_orders_both_widths_and_both_endians_are_read() {
        let shape = [2, 3, 4, 1];
        let c = npyz::Order::C;
        assert_eq!(from_bytes(&npyz_file(&shape, c, "<f4", values())).unwrap(), (SHAPE, values()));
        assert_eq!(from_bytes(&npyz_file(&shape, c, ">f4", values())).unwrap(), (SHAPE, values()));
        let doubles: Vec<f64> = values().into_iter().map(f64::from).collect();
        assert_eq!(from_bytes(&npyz_file(&shape, c, "<f8", doubles.clone())).unwrap(), (SHAPE, values()));
        assert_eq!(from_bytes(&npyz_file(&shape, c, ">f8", doubles)).unwrap(), (SHAPE, values()));

        let mut fortran = Vec::new();
        for at in 0..24 {
            let (i, j, k) = (at % 2, at / 2 % 3, at / 6);
            fortran.push(((i * 3 + j) * 4 + k) as f32 / 8.0);
        }
        let file = npyz_file(&shape, npyz::Order::Fortran, "<f4", fortran);
        assert_eq!(from_bytes(&file).unwrap(), (SHAPE, values()));
    }

    #[test]
    fn a_header_as_numpy_writes_it() {
        let text = "{'descr': '<f8', 'fortran_order': True, 'shape': (2, 3, 4, 1), }      \n";
        let expected = Header { descr: "<f8".into(), fortran_order: true, shape: SHAPE.to_vec() };
        assert_eq!(Cursor(text).header(), Some(expected));
    }

    #[test]
    fn npyz_reads_what_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        for shape in [&[2, 3, 4, 1][..], &[6, 4], &[24], &[0, 3]] {
            let values: Vec<f32> = values().into_iter().take(shape.iter().product()).collect();
            write_npy(&path, shape, &values).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!((bytes.len() - 4 * values.len()) % ALIGNMENT, 0);
            let file = npyz::NpyFile::new(&bytes[..]).unwrap();
            assert_eq!(file.shape(), shape.iter().map(|&size| size as u64).collect::<Vec<_>>());
            assert_eq!(file.into_vec::<f32>().unwrap(), values);
        }
        write_npy(&path, &SHAPE, &values()).unwrap();
        assert_eq!(read_npy(&path).unwrap(), (SHAPE, values()));
        assert!(write_npy(&path, &[5, 5], &values()).is_err());
    }

    #[test]
    fn wrong_types_and_shapes_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        let integers = npyz_file(&[1, 1, 1, 2], npyz::Order::C, "<i8", vec![1i64, 2]);
        std::fs::write(&path, integers).unwrap();
        let error = read_npy(&path).unwrap_err().to_string();
        assert!(error.contains("x.npy: it holds <i8, expected float32 or float64; write it with"), "{error}");
        let flat = npyz_file(&[3, 4, 2], npyz::Order::C, "<f4", values());
        std::fs::write(&path, flat).unwrap();
        let error = read_npy(&path).unwrap_err().to_string();
        assert!(
            error.contains("the array has the shape [3, 4, 2], expected four axes; add the batch"),
            "{error}"
        );
    }

    #[test]
    fn hostile_headers_are_refused() {
        let shape = |shape: &str| format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n");
        for text in [
            "",
            "{",
            "{}",
            "{'descr': '<f4'}",
            "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1, 1, 1, 1), }",
            "{'descr': '<f4' 'fortran_order': False, 'shape': (1, 1, 1, 1), }",
            "{'shape': (1,), 'shape': (1, 1, 1, 1), 'descr': '<f4', 'fortran_order': False}",
            &shape("(1, 1, 1, -1)"),
            &shape("(1, 1, 1, 99999999999999999999999)"),
            &shape("(4611686018427387904, 4, 1, 1)"),
            &shape("(4611686018427387904, 1, 1, 1)"),
            &shape("(1000000000, 1, 1, 1)"),
            &shape("(1 1, 1, 1, 1)"),
            &shape(&"(".repeat(9000)),
            &shape(&"1, ".repeat(3000)),
        ] {
            let (problem, _) = from_bytes(&with_header(text, 4)).unwrap_err();
            assert!(problem.len() < 400 && !problem.contains('\n'), "{problem}");
        }
        let lying = [MAGIC, &[2, 0], &u32::MAX.to_le_bytes(), b"{}"].concat();
        assert!(from_bytes(&lying).is_err());
        assert!(from_bytes(&[MAGIC, &[9, 0, 0, 0]].concat()).is_err());
    }

    #[test]
    fn cut_or_damaged_files_never_panic() {
        let whole = npyz_file(&[2, 3, 4, 1], npyz::Order::Fortran, "<f4", values());
        for length in 0..whole.len() {
            assert!(from_bytes(&whole[..length]).is_err(), "{length}");
        }
        assert!(from_bytes(&[&whole[..], &[0]].concat()).is_err());
        let empty = "{'descr': '<f4', 'fortran_order': True, 'shape': (4611686018427387904, 1, 1, 0), }\n";
        assert_eq!(from_bytes(&with_header(empty, 0)).unwrap(), ([1 << 62, 1, 1, 0], vec![]));
        let mut random = generator(7, Use::Shuffle, [1, 0]);
        for _ in 0..20_000 {
            let mut damaged = whole.clone();
            for _ in 0..1 + random.next_u32() % 3 {
                let at = random.next_u32() as usize % damaged.len();
                damaged[at] ^= 1 << (random.next_u32() % 8);
            }
            if let Ok((shape, values)) = from_bytes(&damaged) {
                assert_eq!(product(&shape), Some(values.len()));
            }
        }
    }
}
