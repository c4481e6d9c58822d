//! Colours at the picture's resolution. Where a component has half of it, a sample is three quarters the nearest and one quarter
//! the next one, along either axis; rounding goes up and down in turn, so that no level is favoured.

use crate::Level;
use crate::simd::{Simd, Task};

/// How a component's samples become the picture's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expansion {
    /// Each is repeated so often along a row; rows are repeated by whoever asks for them.
    Repeat(usize),
    /// Twice as many along a row, interpolated.
    Across,
    /// Twice as many along a column, interpolated.
    Down,
    /// Both.
    Both,
}

/// Writes a row of the picture. `near` is the row of the component that the picture's row lies in, `far` the one beyond it on
/// the picture's row's side (`near` itself at the picture's edge); `below` says that this is the lower one.
///
/// # Panics
/// When the component's row is too short for `out`, or empty.
pub fn upsample_row(
    level: Level,
    expansion: Expansion,
    [near, far]: [&[u8]; 2],
    below: bool,
    out: &mut [u8],
) {
    assert!(!near.is_empty() && near.len() == far.len(), "rows of one length");
    level.run(Row { expansion, near, far, below, out });
}

struct Row<'a> {
    expansion: Expansion,
    near: &'a [u8],
    far: &'a [u8],
    below: bool,
    out: &'a mut [u8],
}

impl Task for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Row { expansion, near, far, below, out } = self;
        match expansion {
            Expansion::Repeat(1) => out.copy_from_slice(&near[..out.len()]),
            Expansion::Repeat(times) => {
                for (out, &sample) in out.chunks_mut(times).zip(near) {
                    out.fill(sample);
                }
            }
            Expansion::Across => {
                let row: Vec<u16> = near.iter().map(|&sample| u16::from(sample)).collect();
                doubled::<2>(&row, [1, 2], out);
            }
            Expansion::Down => {
                let bias = if below { 2 } else { 1 };
                for (out, (&near, &far)) in out.iter_mut().zip(near.iter().zip(far)) {
                    *out = ((u16::from(near) * 3 + u16::from(far) + bias) >> 2) as u8;
                }
            }
            Expansion::Both => {
                let row: Vec<u16> =
                    near.iter().zip(far).map(|(&near, &far)| u16::from(near) * 3 + u16::from(far)).collect();
                doubled::<4>(&row, [8, 7], out);
            }
        }
    }
}

/// Twice as many values along a row: quarters of a row's values, over 2 to the power of `BITS`, with one bias for left and one
/// for right halves.
#[inline(always)]
fn doubled<const BITS: u32>(row: &[u16], [left, right]: [u16; 2], out: &mut [u8]) {
    let last = row.len() - 1;
    let scaled = |sum: u16| (sum >> BITS) as u8;
    let mut pair = |at: usize, pair: [u8; 2]| {
        for (out, value) in out.iter_mut().skip(2 * at).zip(pair) {
            *out = value;
        }
    };
    // The outermost halves have no neighbour: the sample itself.
    let edge = |at: usize, neighbour: usize, bias: u16| match neighbour == at {
        true => scaled(row[at] * 4 + bias),
        false => scaled(row[at] * 3 + row[neighbour] + bias),
    };
    pair(0, [edge(0, 0, left), edge(0, 1.min(last), right)]);
    if last > 0 {
        pair(last, [edge(last, last - 1, left), edge(last, last, right)]);
    }
    let (pairs, _) = out.get_mut(2..).unwrap_or_default().as_chunks_mut::<2>();
    for (pair, window) in pairs.iter_mut().zip(row.windows(3)) {
        let nearest = window[1] * 3;
        *pair = [scaled(nearest + window[0] + left), scaled(nearest + window[2] + right)];
    }
}
