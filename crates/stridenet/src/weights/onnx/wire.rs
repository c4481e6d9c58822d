//! The wire format of Protocol Buffers, as far as ONNX uses it: fields of a message, borrowed from the file's bytes.
//! <https://protobuf.dev/programming-guides/encoding/>

/// A field's value as the wire has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Wire<'a> {
    /// Integers, booleans and enumerations.
    Varint(u64),
    /// Eight bytes: a double.
    Fixed64([u8; 8]),
    /// Text, bytes, a message, or packed numbers.
    Bytes(&'a [u8]),
    /// Four bytes: a float.
    Fixed32([u8; 4]),
}

/// The fields of a message, one after the other.
#[derive(Debug, Clone)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Fields { rest: message }
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for (index, &byte) in self.rest.iter().enumerate().take(10) {
            let bits = u64::from(byte & 0x7f);
            if index == 9 && bits > 1 {
                return Err("a number is longer than 64 bits".to_owned());
            }
            value |= bits << (7 * index);
            if byte < 0x80 {
                self.rest = &self.rest[index + 1..];
                return Ok(value);
            }
        }
        Err(match self.rest.len() {
            0..10 => "it ends in the middle of a number: it is truncated".to_owned(),
            _ => "a number is longer than 64 bits".to_owned(),
        })
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], String> {
        let held = self.rest.len();
        match usize::try_from(length).ok().and_then(|length| self.rest.split_at_checked(length)) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => {
                Err(format!("a part of {length} bytes is asked for where {held} are left: it is truncated"))
            }
        }
    }

    fn array<const SIZE: usize>(&mut self) -> Result<[u8; SIZE], String> {
        let mut bytes = [0; SIZE];
        bytes.copy_from_slice(self.take(SIZE as u64)?);
        Ok(bytes)
    }

    /// The next field's number and value.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>, String> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(self.array()?),
            2 => {
                let length = self.varint()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed32(self.array()?),
            // 3 and 4 were groups, which ONNX never had.
            other => return Err(format!("a field has the unknown wire type {other}")),
        };
        match key >> 3 {
            0 => Err("a field has the number 0".to_owned()),
            number => Ok(Some((number, value))),
        }
    }
}

impl<'a> Wire<'a> {
    pub(super) fn bytes(self) -> Result<&'a [u8], String> {
        match self {
            Wire::Bytes(bytes) => Ok(bytes),
            _ => Err("a number stands where text or a part is expected".to_owned()),
        }
    }

    pub(super) fn text(self) -> Result<&'a str, String> {
        std::str::from_utf8(self.bytes()?).map_err(|_| "a name is not UTF-8".to_owned())
    }

    /// A signed integer; negative ones are stored as their two's complement.
    pub(super) fn int(self) -> Result<i64, String> {
        match self {
            Wire::Varint(value) => Ok(value as i64),
            _ => Err("something else stands where a whole number is expected".to_owned()),
        }
    }

    pub(super) fn float(self) -> Result<f32, String> {
        match self {
            Wire::Fixed32(bytes) => Ok(f32::from_le_bytes(bytes)),
            _ => Err("something else stands where a float is expected".to_owned()),
        }
    }

    /// Calls `each` with every integer of a repeated field, packed or not.
    pub(super) fn ints(self, mut each: impl FnMut(i64) -> Result<(), String>) -> Result<(), String> {
        let Wire::Bytes(bytes) = self else { return each(self.int()?) };
        let mut packed = Fields { rest: bytes };
        while !packed.rest.is_empty() {
            each(packed.varint()? as i64)?;
        }
        Ok(())
    }
}

/// Puts the parts of a message together.
#[derive(Debug, Default, Clone)]
pub(super) struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// The key and the length of a field whose `length` bytes are written elsewhere.
    pub(super) fn head(mut self, field: u64, length: usize) -> Self {
        self.varint(field << 3 | 2);
        self.varint(length as u64);
        self
    }

    pub(super) fn bytes(self, field: u64, bytes: &[u8]) -> Self {
        let mut message = self.head(field, bytes.len());
        message.0.extend_from_slice(bytes);
        message
    }

    pub(super) fn text(self, field: u64, text: &str) -> Self {
        self.bytes(field, text.as_bytes())
    }

    pub(super) fn message(self, field: u64, part: &Message) -> Self {
        self.bytes(field, &part.0)
    }

    pub(super) fn int(mut self, field: u64, value: i64) -> Self {
        self.varint(field << 3);
        self.varint(value as u64);
        self
    }

    pub(super) fn float(mut self, field: u64, value: f32) -> Self {
        self.varint(field << 3 | 5);
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// This message and the fields of another one.
    pub(super) fn then(mut self, other: &Message) -> Self {
        self.0.extend_from_slice(&other.0);
        self
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let part = Message::default().int(3, -1).float(4, 1.5);
        let message = Message::default().text(1, "conv1").int(2, 300).message(9, &part).bytes(20, &[0; 200]);
        let mut fields = Fields::new(message.as_bytes());
        let (number, value) = fields.next().unwrap().unwrap();
        assert_eq!((number, value.text()), (1, Ok("conv1")));
        assert_eq!(fields.next(), Ok(Some((2, Wire::Varint(300)))));
        let (_, value) = fields.next().unwrap().unwrap();
        let mut inner = Fields::new(value.bytes().unwrap());
        assert_eq!(inner.next().unwrap().unwrap().1.int(), Ok(-1));
        assert_eq!(inner.next().unwrap().unwrap().1.float(), Ok(1.5));
        assert_eq!(fields.next(), Ok(Some((20, Wire::Bytes(&[0; 200])))));
        assert_eq!(fields.next(), Ok(None));
    }

    #[test]
    fn repeated_integers_are_packed_or_not() {
        let mut values = Vec::new();
        let mut push = |value| {
            values.push(value);
            Ok(())
        };
        Wire::Bytes(&[1, 0x80, 1]).ints(&mut push).unwrap();
        Wire::Varint(u64::MAX).ints(&mut push).unwrap();
        assert_eq!(values, [1, 128, -1]);
    }

    #[test]
    fn damaged_bytes_are_refused() {
        for (bytes, expected) in [
            (&[0x08][..], "in the middle of a number"),
            (&[0x08, 0x80], "in the middle of a number"),
            (&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02], "longer than 64 bits"),
            (&[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x81, 0], "longer than 64 bits"),
            (&[0x0a, 5, 1, 2], "5 bytes is asked for where 2 are left"),
            (&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], "it is truncated"),
            (&[0x09, 1, 2], "8 bytes is asked for"),
            (&[0x0b], "wire type 3"),
            (&[0x00, 1], "the number 0"),
        ] {
            let error = Fields::new(bytes).next().unwrap_err();
            assert!(error.contains(expected), "{bytes:?}: {error}");
        }
    }
}
