//! The segments of a JPEG file (ITU-T T.81, annex B): what a frame looks like, and the tables its scans use.

use super::Problem;
use super::huffman::Table;

/// Coefficients of a block in the order in which files have them, by their place in the rows of the block.
pub(super) const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7,
    14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39,
    46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// How a frame's coefficients are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Process {
    /// All of a component in one scan.
    Sequential,
    /// By bands and bits, in several scans.
    Progressive,
}

/// A colour component of a frame.
#[derive(Debug, Clone)]
pub(super) struct Component {
    pub(super) id: u8,
    /// Samples across and down for each unit of the picture.
    pub(super) sampling: [usize; 2],
    /// Which quantisation table it uses.
    pub(super) quantisation: usize,
    /// Rows and columns of samples that show the picture.
    pub(super) size: [usize; 2],
    /// Rows and columns of blocks, whole units of the picture.
    pub(super) blocks: [usize; 2],
}

/// A frame header.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) process: Process,
    /// Height and width in pixels.
    pub(super) size: [usize; 2],
    pub(super) components: Vec<Component>,
    /// The largest sampling, down and across.
    pub(super) most: [usize; 2],
    /// Rows and columns of units.
    pub(super) units: [usize; 2],
}

/// A scan header.
#[derive(Debug, Clone)]
pub(super) struct Scan {
    /// For each of its components: the index in the frame, the DC table, the AC table.
    pub(super) components: Vec<[usize; 3]>,
    /// First and last coefficient, in the file's order.
    pub(super) band: [usize; 2],
    /// Bit that an earlier scan ended at (0: none did), and bit that this one ends at.
    pub(super) bits: [u32; 2],
}

/// The tables and settings that hold until they are replaced.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// In the order of the blocks' rows.
    pub(super) quantisation: [Option<[u16; 64]>; 4],
    pub(super) dc: [Option<Table>; 4],
    pub(super) ac: [Option<Table>; 4],
    /// Units between restart markers; 0 is never.
    pub(super) restart: usize,
    /// What Adobe's marker says of the colours.
    pub(super) adobe: Option<u8>,
    pub(super) jfif: bool,
    /// The body of an EXIF segment.
    pub(super) exif: Option<Vec<u8>>,
}

/// A reader of a segment's bytes.
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl Bytes<'_> {
    pub(super) fn byte(&mut self) -> Result<u8, Problem> {
        let (&first, rest) = self.0.split_first().ok_or(Problem::Short)?;
        self.0 = rest;
        Ok(first)
    }

    fn word(&mut self) -> Result<u16, Problem> {
        Ok(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    fn nibbles(&mut self) -> Result<[usize; 2], Problem> {
        let byte = usize::from(self.byte()?);
        Ok([byte >> 4, byte & 15])
    }
}

impl Tables {
    pub(super) fn read_quantisation(&mut self, mut body: Bytes<'_>) -> Result<(), Problem> {
        while !body.0.is_empty() {
            let [precision, target] = body.nibbles()?;
            let table = self.quantisation.get_mut(target).ok_or(Problem::Header("a quantisation table"))?;
            let mut values = [0; 64];
            for &place in &ZIGZAG {
                values[usize::from(place)] = match precision {
                    0 => u16::from(body.byte()?),
                    1 => body.word()?,
                    _ => return Err(Problem::Header("a quantisation table")),
                };
            }
            *table = Some(values);
        }
        Ok(())
    }

    pub(super) fn read_huffman(&mut self, mut body: Bytes<'_>) -> Result<(), Problem> {
        while !body.0.is_empty() {
            let [class, target] = body.nibbles()?;
            let mut counts = [0; 16];
            for count in &mut counts {
                *count = body.byte()?;
            }
            let total = counts.iter().map(|&count| usize::from(count)).sum();
            let (symbols, rest) = body.0.split_at_checked(total).ok_or(Problem::Short)?;
            body.0 = rest;
            let table = Table::new(&counts, symbols)?;
            let tables = match class {
                0 => &mut self.dc,
                1 => &mut self.ac,
                _ => return Err(Problem::Header("a Huffman table")),
            };
            *tables.get_mut(target).ok_or(Problem::Header("a Huffman table"))? = Some(table);
        }
        Ok(())
    }

    pub(super) fn read_restart(&mut self, mut body: Bytes<'_>) -> Result<(), Problem> {
        self.restart = usize::from(body.word()?);
        Ok(())
    }

    /// Application segments: JFIF, EXIF and Adobe's.
    pub(super) fn read_application(&mut self, marker: u8, body: &[u8]) {
        match marker {
            0xe0 if body.starts_with(b"JFIF\0") => self.jfif = true,
            0xe1 => {
                if let (Some(exif), None) = (body.strip_prefix(b"Exif\0\0"), &self.exif) {
                    self.exif = Some(exif.to_vec());
                }
            }
            0xee if body.starts_with(b"Adobe") => self.adobe = body.get(11).copied(),
            _ => {}
        }
    }
}

impl Frame {
    pub(super) fn read(process: Process, mut body: Bytes<'_>) -> Result<Self, Problem> {
        let precision = body.byte()?;
        if precision != 8 {
            return Err(Problem::Unsupported(format!("JPEG with {precision} bits a sample")));
        }
        let size = [usize::from(body.word()?), usize::from(body.word()?)];
        if size.contains(&0) {
            return Err(Problem::Header("a picture without pixels"));
        }
        let count = body.byte()?;
        if !matches!(count, 1 | 3 | 4) {
            return Err(Problem::Unsupported(format!("JPEG with {count} components")));
        }
        let mut components = Vec::new();
        for _ in 0..count {
            let id = body.byte()?;
            let [across, down] = body.nibbles()?;
            let quantisation = usize::from(body.byte()?);
            if !(1..=4).contains(&across) || !(1..=4).contains(&down) || quantisation > 3 {
                return Err(Problem::Header("a component"));
            }
            let sampling = [down, across];
            components.push(Component { id, sampling, quantisation, size: [0; 2], blocks: [0; 2] });
        }
        let most = [0, 1].map(|axis| components.iter().map(|part| part.sampling[axis]).max().unwrap_or(1));
        let units = [0, 1].map(|axis| size[axis].div_ceil(8 * most[axis]));
        for component in &mut components {
            component.size = [0, 1].map(|axis| (size[axis] * component.sampling[axis]).div_ceil(most[axis]));
            component.blocks = [0, 1].map(|axis| units[axis] * component.sampling[axis]);
        }
        Ok(Frame { process, size, components, most, units })
    }

    /// Blocks of all components.
    pub(super) fn blocks(&self) -> usize {
        self.components.iter().map(|component| component.blocks[0] * component.blocks[1]).sum()
    }
}

impl Scan {
    pub(super) fn read(frame: &Frame, mut body: Bytes<'_>) -> Result<Self, Problem> {
        let wrong = Problem::Header("a scan");
        let count = body.byte()?;
        let mut components: Vec<[usize; 3]> = Vec::new();
        for _ in 0..count {
            let id = body.byte()?;
            let [dc, ac] = body.nibbles()?;
            let index = frame.components.iter().position(|component| component.id == id);
            let Some(index) = index.filter(|index| components.iter().all(|other| other[0] != *index)) else {
                return Err(wrong);
            };
            components.push([index, dc, ac]);
        }
        let band = [usize::from(body.byte()?), usize::from(body.byte()?)];
        let bits = body.nibbles()?.map(|bit| bit as u32);
        let blocks: usize =
            components.iter().map(|part| frame.components[part[0]].sampling.iter().product::<usize>()).sum();
        // T.81, B.2.3: at most 10 blocks in an interleaved unit; bands of AC coefficients have one component.
        let fits = match frame.process {
            Process::Sequential => band == [0, 63] && bits == [0, 0],
            Process::Progressive if band[0] == 0 => band[1] == 0,
            Process::Progressive => band[0] <= band[1] && band[1] < 64 && count == 1,
        };
        let refines = bits[1] <= 13 && (bits[0] == 0 || bits[0] == bits[1] + 1);
        if count == 0 || !fits || !refines || (count > 1 && blocks > 10) {
            return Err(wrong);
        }
        Ok(Scan { components, band, bits })
    }
}
