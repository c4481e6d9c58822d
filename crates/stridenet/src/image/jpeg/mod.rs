//! A decoder of JPEG files (ITU-T T.81 and T.871): sequential and progressive Huffman-coded pictures of 8 bits a sample, to the
//! bits of libjpeg and so of Pillow. No picture that is not whole is decoded: data sets must not learn from grey rests.

mod headers;
mod huffman;
mod planes;
mod scan;
mod whole;

pub(super) use whole::{can_hold, reaches_its_end};

use crate::kernels::Level;
use headers::{Bytes, Frame, Process, Scan, Tables};
use planes::Plane;

/// What is wrong with a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// It ends, or a segment or a scan of it does, before what it describes.
    Short,
    /// A header contradicts itself or another one: what it describes.
    Header(&'static str),
    /// Bits that are no code, or a code that leads out of its block.
    Code,
    /// No restart marker where there must be one.
    Restart,
    /// A kind of JPEG that is not decoded here.
    Unsupported(String),
}

/// More scans than any encoder writes; each may visit all blocks again.
const MOST_SCANS: usize = 100;

/// A file up to its first scan.
pub(super) struct Jpeg<'a> {
    frame: Frame,
    tables: Tables,
    /// From the marker of the first scan on.
    rest: &'a [u8],
}

impl<'a> Jpeg<'a> {
    /// Reads the headers.
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self, Problem> {
        let mut tables = Tables::default();
        let mut frame = None;
        let mut rest = bytes;
        loop {
            let before = rest;
            let (marker, body, after) = segment(rest)?;
            match (marker, frame) {
                (START_OF_SCAN, Some(frame)) => return Ok(Jpeg { frame, tables, rest: before }),
                (START_OF_SCAN | END, None) => return Err(Problem::Header("a picture without a frame")),
                (END, Some(_)) => return Err(Problem::Header("a picture without a scan")),
                (0xc0..=0xcf, Some(_)) if is_frame(marker) => return Err(Problem::Header("a second frame")),
                (_, read) => frame = read.or(tables.read(marker, body)?),
            }
            rest = after;
        }
    }

    /// Height and width in pixels.
    pub(super) fn size(&self) -> [usize; 2] {
        self.frame.size
    }

    /// Bytes that decoding takes.
    pub(super) fn memory(&self) -> u64 {
        let blocks = self.frame.blocks() as u64 * 64;
        let pixels = self.frame.size.iter().map(|&side| side as u64).product::<u64>() * 3;
        pixels + blocks * if self.frame.process == Process::Progressive { 3 } else { 1 }
    }

    /// The body of the EXIF segment, if there is one.
    pub(super) fn exif(&self) -> Option<&[u8]> {
        self.tables.exif.as_deref()
    }

    /// The picture's channels and samples, `[height, width, channels]`.
    pub(super) fn decode(mut self) -> Result<(usize, Vec<u8>), Problem> {
        // Integers: every level computes the same.
        let level = Level::detect();
        let Frame { process, components, .. } = &self.frame;
        let mut planes: Vec<Plane> = components.iter().map(|part| Plane::new(part, *process)).collect();
        let mut scans = 0;
        loop {
            let (marker, body, after) = segment(self.rest)?;
            self.rest = match marker {
                END => break,
                START_OF_SCAN => {
                    scans += 1;
                    if scans > MOST_SCANS {
                        return Err(Problem::Header("more than 100 scans"));
                    }
                    let scan = Scan::read(&self.frame, Bytes(body))?;
                    for &[index, ..] in &scan.components {
                        planes[index].begin(&components[index], &self.tables)?;
                    }
                    scan::read(level, &self.frame, &scan, &self.tables, &mut planes, after)?
                }
                _ if is_frame(marker) => return Err(Problem::Header("a second frame")),
                _ => {
                    self.tables.read(marker, body)?;
                    after
                }
            };
        }
        planes.iter_mut().try_for_each(|plane| plane.finish(level, *process))?;
        planes::picture(level, &self.frame, &self.tables, &planes)
    }
}

const START: u8 = 0xd8;
const END: u8 = 0xd9;
const START_OF_SCAN: u8 = 0xda;

/// Whether a marker begins a frame: all of its row but those of Huffman tables, arithmetic conditions and extensions.
fn is_frame(marker: u8) -> bool {
    matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc)
}

/// The next marker, its segment's body, and what follows. Bytes in front of a marker belong to nothing and are passed over.
fn segment(bytes: &[u8]) -> Result<(u8, &[u8], &[u8]), Problem> {
    let mut rest = bytes;
    loop {
        let from = rest.iter().position(|&byte| byte == 0xff).ok_or(Problem::Short)?;
        let fill = rest[from..].iter().position(|&byte| byte != 0xff).ok_or(Problem::Short)?;
        let marker = rest[from + fill];
        rest = &rest[from + fill + 1..];
        match marker {
            0 | 1 | START | 0xd0..=0xd7 => {}
            END => return Ok((marker, &[], rest)),
            _ => {
                let &[high, low] = rest.first_chunk().ok_or(Problem::Short)?;
                let length = usize::from(u16::from_be_bytes([high, low]));
                let body = rest.get(2..length).ok_or(Problem::Header("a segment's length"))?;
                return Ok((marker, body, &rest[length..]));
            }
        }
    }
}

impl Tables {
    /// Takes up a segment that is no scan; a frame is returned.
    fn read(&mut self, marker: u8, body: &[u8]) -> Result<Option<Frame>, Problem> {
        let unsupported = |what: &str| Err(Problem::Unsupported(format!("{what} JPEG")));
        match marker {
            0xc0 | 0xc1 => return Frame::read(Process::Sequential, Bytes(body)).map(Some),
            0xc2 => return Frame::read(Process::Progressive, Bytes(body)).map(Some),
            0xc3 => return unsupported("lossless"),
            0xc5..=0xc7 | 0xcd..=0xcf => return unsupported("hierarchical"),
            0xc9..=0xcb => return unsupported("arithmetic-coded"),
            0xc4 => self.read_huffman(Bytes(body))?,
            0xdb => self.read_quantisation(Bytes(body))?,
            0xdd => self.read_restart(Bytes(body))?,
            _ => self.read_application(marker, body),
        }
        Ok(None)
    }
}
