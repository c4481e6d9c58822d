//! The zip archives that `torch.save` writes: entries that are stored, found through the central directory.
//!
//! torch never compresses, so compressed entries are refused: what is read is never larger than the file. Source: PKWARE's
//! APPNOTE.TXT 6.3.10, sections 4.3.6 to 4.3.16 and 4.5.3 (zip64).

use super::Problem;
use crate::weights::error::{count, printable};
use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom};

/// The largest central directory that is read, in bytes: some hundred thousand entries.
const LARGEST_DIRECTORY: u64 = 32 << 20;
/// The fixed part of the record at the archive's end, in bytes.
const END: usize = 22;
/// The longest comment behind that record, in bytes.
const LONGEST_COMMENT: usize = u16::MAX as usize;
/// The fixed part of the record that says where the zip64 record is, in bytes.
const LOCATOR: usize = 20;
/// The fixed part of the zip64 record, in bytes.
const END64: usize = 56;
/// The fixed part of an entry in the central directory, in bytes.
const CENTRAL: usize = 46;
/// The fixed part of the header in front of an entry's bytes, in bytes.
const LOCAL: usize = 30;

/// An entry of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    /// Where its local header is.
    header: u64,
    /// Bytes in the archive.
    pub(super) size: u64,
    /// How it is compressed: 0 is not at all.
    method: u64,
    crc32: u32,
}

/// An archive whose central directory has been read.
#[derive(Debug)]
pub(super) struct Archive<R> {
    from: R,
    length: u64,
    entries: HashMap<String, Entry>,
}

/// The little-endian number of `SIZE` bytes at `at`.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(size)?)?;
    Some(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

/// A number of a record that is as long as it must be.
fn field(record: &[u8], at: usize, size: usize) -> u64 {
    number(record, at, size).unwrap_or_else(|| unreachable!("the record has been checked to be long enough"))
}

impl<R: Read + Seek> Archive<R> {
    /// Reads the central directory of an archive of `length` bytes.
    pub(super) fn open(mut from: R, length: u64) -> Result<Self, Problem> {
        let (directory, entries) = find_directory(&mut from, length)?;
        let mut bytes = directory.as_slice();
        let mut found = HashMap::new();
        for _ in 0..entries {
            let (entry, rest) = central_entry(bytes)?;
            bytes = rest;
            if entry
                .header
                .checked_add(LOCAL as u64)
                .and_then(|end| end.checked_add(entry.size))
                .is_none_or(|end| end > length)
            {
                return Err(truncated(&entry.name));
            }
            let name = entry.name.clone();
            if found.insert(name.clone(), entry).is_some() {
                return Err(Problem::damaged(format!("it has the entry {} twice", printable(&name))));
            }
        }
        Ok(Archive { from, length, entries: found })
    }

    /// All entries, in no order.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// The entry of this name.
    pub(super) fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// Reads an entry of at most `limit` bytes.
    pub(super) fn read(&mut self, entry: &Entry, limit: u64) -> Result<Vec<u8>, Problem> {
        if entry.size > limit {
            let (name, size) = (printable(&entry.name), entry.size);
            return Err(Problem::foreign(format!(
                "its entry {name} has {size} bytes, at most {limit} are read"
            )));
        }
        self.stream(entry, |from| {
            let mut bytes = vec![0; entry.size as usize];
            from.read_exact(&mut bytes)?;
            Ok(bytes)
        })
    }

    /// Lets `read` read all of an entry's bytes, and checks them.
    pub(super) fn stream<T>(
        &mut self,
        entry: &Entry,
        read: impl FnOnce(&mut dyn Read) -> io::Result<T>,
    ) -> Result<T, Problem> {
        if entry.method != 0 {
            let (name, method) = (printable(&entry.name), entry.method);
            return Err(Problem::foreign(format!(
                "its entry {name} is compressed (method {method}), which torch.save does not do"
            )));
        }
        let mut header = [0; LOCAL];
        self.from.seek(SeekFrom::Start(entry.header))?;
        self.from.read_exact(&mut header)?;
        if !header.starts_with(b"PK\x03\x04") {
            let name = printable(&entry.name);
            return Err(Problem::damaged(format!("there is no entry at the place of {name}")));
        }
        let start = entry.header + LOCAL as u64 + field(&header, 26, 2) + field(&header, 28, 2);
        if start.checked_add(entry.size).is_none_or(|end| end > self.length) {
            return Err(truncated(&entry.name));
        }
        self.from.seek(SeekFrom::Start(start))?;
        let mut checked = Checked { from: (&mut self.from).take(entry.size), hasher: flate2::Crc::new() };
        let value = read(&mut checked)?;
        io::copy(&mut checked, &mut io::sink())?;
        if checked.hasher.sum() != entry.crc32 {
            let name = printable(&entry.name);
            return Err(Problem::damaged(format!(
                "the bytes of its entry {name} have changed: their CRC-32 is another"
            )));
        }
        Ok(value)
    }
}

/// A reader that adds what it reads to a checksum.
struct Checked<R> {
    from: R,
    hasher: flate2::Crc,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

fn truncated(name: &str) -> Problem {
    Problem::damaged(format!("its entry {} ends behind the file: it is truncated", printable(name)))
}

/// Reads the bytes of the central directory; with the number of its entries.
fn find_directory(from: &mut (impl Read + Seek), length: u64) -> Result<(Vec<u8>, u64), Problem> {
    let no_end = || Problem::damaged("it has no end of a zip archive: it is truncated".to_owned());
    let tail_length = length.min((END + LONGEST_COMMENT + LOCATOR) as u64);
    let tail_start = length - tail_length;
    let mut tail = vec![0; tail_length as usize];
    from.seek(SeekFrom::Start(tail_start))?;
    from.read_exact(&mut tail)?;
    let last = tail.len().checked_sub(END).ok_or_else(no_end)?;
    let is_end = |&at: &usize| {
        tail[at..].starts_with(b"PK\x05\x06") && at + END + field(&tail, at + 20, 2) as usize == tail.len()
    };
    let end = (0..=last).rev().find(is_end).ok_or_else(no_end)?;
    let (mut entries, mut size, mut start) =
        (field(&tail, end + 10, 2), field(&tail, end + 12, 4), field(&tail, end + 16, 4));
    let mut limit = tail_start + end as u64;
    let locator = end.checked_sub(LOCATOR).map(|at| &tail[at..end]);
    if let Some(locator) = locator.filter(|locator| locator.starts_with(b"PK\x06\x07")) {
        let at = field(locator, 8, 8);
        if at.checked_add(END64 as u64).is_none_or(|end| end > limit) {
            return Err(no_end());
        }
        let mut record = [0; END64];
        from.seek(SeekFrom::Start(at))?;
        from.read_exact(&mut record)?;
        if !record.starts_with(b"PK\x06\x06") {
            return Err(no_end());
        }
        (entries, size, start) = (field(&record, 32, 8), field(&record, 40, 8), field(&record, 48, 8));
        limit = at;
    }
    if start.checked_add(size).is_none_or(|end| end > limit) || entries > size / CENTRAL as u64 {
        return Err(Problem::damaged(format!(
            "its directory of {} and {size} bytes at byte {start} does not fit into the file",
            count(entries as usize, "entry").replace("entrys", "entries")
        )));
    }
    if size > LARGEST_DIRECTORY {
        return Err(Problem::foreign(format!(
            "its directory has {size} bytes, at most {LARGEST_DIRECTORY} are read"
        )));
    }
    let mut directory = vec![0; size as usize];
    from.seek(SeekFrom::Start(start))?;
    from.read_exact(&mut directory)?;
    Ok((directory, entries))
}

/// The first entry of the directory, and the bytes behind it.
fn central_entry(bytes: &[u8]) -> Result<(Entry, &[u8]), Problem> {
    let damaged = || Problem::damaged("its directory is damaged".to_owned());
    if bytes.len() < CENTRAL || !bytes.starts_with(b"PK\x01\x02") {
        return Err(damaged());
    }
    let [name, extra, comment] = [28, 30, 32].map(|at| field(bytes, at, 2) as usize);
    let (record, rest) = bytes.split_at_checked(CENTRAL + name + extra + comment).ok_or_else(damaged)?;
    let extra = &record[CENTRAL + name..][..extra];
    let name = std::str::from_utf8(&record[CENTRAL..CENTRAL + name]).map_err(|_| damaged())?;
    let (flags, method) = (field(record, 8, 2), field(record, 10, 2));
    if flags & 1 != 0 {
        return Err(Problem::foreign(format!("its entry {} is encrypted", printable(name))));
    }
    let [mut packed, mut size, mut header] =
        [(20, 4), (24, 4), (42, 4)].map(|(at, size)| field(record, at, size));
    let mut wide = zip64(extra);
    for value in [&mut size, &mut packed, &mut header] {
        if *value == u64::from(u32::MAX) {
            *value = wide.next().ok_or_else(damaged)?;
        }
    }
    if method == 0 && packed != size {
        return Err(damaged());
    }
    Ok((
        Entry { name: name.to_owned(), header, size: packed, method, crc32: field(record, 16, 4) as u32 },
        rest,
    ))
}

/// The numbers of eight bytes in the zip64 part of an entry's extra fields.
fn zip64(mut extra: &[u8]) -> impl Iterator<Item = u64> {
    let mut found: &[u8] = &[];
    while let (Some(kind), Some(size)) = (number(extra, 0, 2), number(extra, 2, 2)) {
        let end = extra.len().min(4 + size as usize);
        if kind == 1 {
            found = &extra[4..end];
            break;
        }
        extra = &extra[end..];
    }
    found.as_chunks::<8>().0.iter().map(|&bytes| u64::from_le_bytes(bytes))
}
