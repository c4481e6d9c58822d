//! The blocks of a scan (ITU-T T.81, annexes F and G).

use super::Problem;
use super::headers::{Frame, Process, Scan, Tables, ZIGZAG};
use super::huffman::{Bits, Table};
use super::planes::Plane;
use crate::kernels::Level;

/// Coefficients of a block, in the order of its rows.
type Block = [i16; 64];

/// What is carried from block to block.
#[derive(Default)]
struct State {
    /// The last DC coefficient of each component of the scan.
    last: [i32; 4],
    /// Blocks still to come whose band has ended.
    ended: u32,
}

/// Reads a scan's data into the planes; `rest` begins with it. What follows the data is returned.
pub(super) fn read<'a>(
    level: Level,
    frame: &Frame,
    scan: &Scan,
    tables: &Tables,
    planes: &mut [Plane],
    rest: &'a [u8],
) -> Result<&'a [u8], Problem> {
    let walk = Walk { level, frame, scan, restart: tables.restart, planes, bits: Bits::new(rest) };
    let missing = Problem::Header("a Huffman table that a scan uses");
    // By a component's place in the scan.
    let all = |tables: &'_ [Option<Table>; 4], which: usize| -> bool {
        scan.components.iter().all(|part| tables.get(part[which]).is_some_and(Option::is_some))
    };
    let (needs_dc, needs_ac) = match frame.process {
        Process::Sequential => (true, true),
        Process::Progressive => (scan.band[0] == 0 && scan.bits[0] == 0, scan.band[0] > 0),
    };
    if needs_dc && !all(&tables.dc, 1) || needs_ac && !all(&tables.ac, 2) {
        return Err(missing);
    }
    let dc: Vec<Option<&Table>> =
        scan.components.iter().map(|part| tables.dc[part[1] & 3].as_ref()).collect();
    let ac: Vec<Option<&Table>> =
        scan.components.iter().map(|part| tables.ac[part[2] & 3].as_ref()).collect();
    let [low, high] = scan.band;
    let [before, shift] = scan.bits;
    match (frame.process, low, before) {
        (Process::Sequential, ..) => walk.blocks(|bits, state, part, block| {
            let (Some(dc), Some(ac)) = (dc[part], ac[part]) else { return Err(Problem::Code) };
            *block = [0; 64];
            first_dc(bits, dc, &mut state.last[part], 0, block)?;
            sequential_ac(bits, ac, block)
        }),
        (Process::Progressive, 0, 0) => walk.blocks(|bits, state, part, block| {
            let Some(dc) = dc[part] else { return Err(Problem::Code) };
            first_dc(bits, dc, &mut state.last[part], shift, block)
        }),
        (Process::Progressive, 0, _) => walk.blocks(|bits, _, _, block| {
            block[0] |= (bits.take(1) << shift) as i16;
            Ok(())
        }),
        (Process::Progressive, _, 0) => walk.blocks(|bits, state, part, block| {
            let Some(ac) = ac[part] else { return Err(Problem::Code) };
            first_ac(bits, ac, &mut state.ended, low..=high, shift, block)
        }),
        (Process::Progressive, ..) => walk.blocks(|bits, state, part, block| {
            let Some(ac) = ac[part] else { return Err(Problem::Code) };
            refine_ac(bits, ac, &mut state.ended, low..=high, shift, block)
        }),
    }
}

/// The way through a scan's blocks.
struct Walk<'a, 'p> {
    level: Level,
    frame: &'p Frame,
    scan: &'p Scan,
    restart: usize,
    planes: &'p mut [Plane],
    bits: Bits<'a>,
}

impl<'a> Walk<'a, '_> {
    /// Calls `decode` for each block, with the place of its component in the scan. Sequential blocks are transformed row by row.
    #[inline(always)]
    fn blocks(
        mut self,
        mut decode: impl FnMut(&mut Bits<'a>, &mut State, usize, &mut Block) -> Result<(), Problem>,
    ) -> Result<&'a [u8], Problem> {
        let parts = &self.scan.components;
        // A single component's blocks come row by row, as many as show the picture; several come in units.
        let (units, single) = match parts[..] {
            [[index, ..]] => (self.frame.components[index].size.map(|side| side.div_ceil(8)), true),
            _ => (self.frame.units, false),
        };
        let mut state = State::default();
        let mut until_restart = self.restart;
        for row in 0..units[0] {
            for column in 0..units[1] {
                if self.restart > 0 {
                    if until_restart == 0 {
                        self.bits.restart()?;
                        (state, until_restart) = (State::default(), self.restart);
                    }
                    until_restart -= 1;
                }
                for (part, &[index, ..]) in parts.iter().enumerate() {
                    let [down, across] = if single { [1, 1] } else { self.frame.components[index].sampling };
                    for inner in 0..down {
                        let first = column * across;
                        let blocks = self.planes[index].blocks_mut(row * down + inner);
                        for block in &mut blocks[first..first + across] {
                            decode(&mut self.bits, &mut state, part, block)?;
                        }
                    }
                }
            }
            if self.bits.overrun() {
                return Err(Problem::Short);
            }
            if self.frame.process == Process::Sequential {
                for &[index, ..] in parts {
                    let down = if single { 1 } else { self.frame.components[index].sampling[0] };
                    (row * down..(row + 1) * down)
                        .for_each(|row| self.planes[index].transform(self.level, row));
                }
            }
        }
        self.bits.end()
    }
}

#[inline(always)]
fn first_dc(
    bits: &mut Bits<'_>,
    table: &Table,
    last: &mut i32,
    shift: u32,
    block: &mut Block,
) -> Result<(), Problem> {
    let size = bits.symbol(table)?;
    if size > 15 {
        return Err(Problem::Code);
    }
    *last = last.wrapping_add(bits.signed(u32::from(size)));
    block[0] = last.wrapping_shl(shift) as i16;
    Ok(())
}

#[inline(always)]
fn sequential_ac(bits: &mut Bits<'_>, table: &Table, block: &mut Block) -> Result<(), Problem> {
    let mut at = 1;
    while at < 64 {
        let symbol = bits.symbol(table)?;
        let (zeros, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        if size == 0 {
            if zeros < 15 {
                break;
            }
            at += 16;
            continue;
        }
        at += zeros;
        let value = bits.signed(size) as i16;
        let place = ZIGZAG.get(at).ok_or(Problem::Code)?;
        block[usize::from(*place)] = value;
        at += 1;
    }
    Ok(())
}

fn first_ac(
    bits: &mut Bits<'_>,
    table: &Table,
    ended: &mut u32,
    band: std::ops::RangeInclusive<usize>,
    shift: u32,
    block: &mut Block,
) -> Result<(), Problem> {
    if *ended > 0 {
        *ended -= 1;
        return Ok(());
    }
    let mut at = *band.start();
    while at <= *band.end() {
        let symbol = bits.symbol(table)?;
        let (zeros, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        if size == 0 {
            if zeros < 15 {
                *ended = (1 << zeros) - 1 + bits.take(zeros as u32);
                break;
            }
            at += 16;
            continue;
        }
        at += zeros;
        let value = bits.signed(size) << shift;
        let place = ZIGZAG.get(at).ok_or(Problem::Code)?;
        block[usize::from(*place)] = value as i16;
        at += 1;
    }
    Ok(())
}

fn refine_ac(
    bits: &mut Bits<'_>,
    table: &Table,
    ended: &mut u32,
    band: std::ops::RangeInclusive<usize>,
    shift: u32,
    block: &mut Block,
) -> Result<(), Problem> {
    let bit = 1i16 << shift;
    // A value that was not 0 gets a bit of its own.
    let refine = |bits: &mut Bits<'_>, value: &mut i16| {
        if bits.take(1) == 1 && *value & bit == 0 {
            *value = value.wrapping_add(if *value > 0 { bit } else { -bit });
        }
    };
    let mut places = ZIGZAG[band].iter().map(|&place| usize::from(place));
    if *ended == 0 {
        'band: while places.len() > 0 {
            let symbol = bits.symbol(table)?;
            let (mut zeros, size) = (symbol >> 4, symbol & 15);
            let new = match size {
                0 if zeros < 15 => {
                    *ended = (1 << zeros) + bits.take(u32::from(zeros));
                    break 'band;
                }
                0 => 0,
                1 if bits.take(1) == 1 => bit,
                1 => -bit,
                _ => return Err(Problem::Code),
            };
            for place in places.by_ref() {
                let value = &mut block[place];
                if *value != 0 {
                    refine(bits, value);
                } else if zeros > 0 {
                    zeros -= 1;
                } else {
                    *value = new;
                    break;
                }
            }
        }
    }
    if *ended > 0 {
        for place in places {
            if block[place] != 0 {
                refine(bits, &mut block[place]);
            }
        }
        *ended -= 1;
    }
    Ok(())
}
