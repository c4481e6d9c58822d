//! Huffman codes (ITU-T T.81, annexes C and F), and the bits of a scan.

use super::Problem;

/// Codes of at most this many bits are looked up.
const SHORT: u32 = 9;

/// A Huffman table, for decoding.
#[derive(Debug)]
pub(super) struct Table {
    /// By the next [`SHORT`] bits: length of the code (0: longer), and its symbol.
    short: [(u8, u8); 1 << SHORT],
    /// For each length: where its codes end, in the upper 16 bits of what comes; and what to add to a code for its symbol.
    ends: [u32; 17],
    offsets: [i32; 17],
    symbols: Vec<u8>,
}

impl Table {
    /// The table whose codes of 1 to 16 bits are so many, for these symbols.
    pub(super) fn new(counts: &[u8; 16], symbols: &[u8]) -> Result<Self, Problem> {
        let mut table =
            Table { short: [(0, 0); 1 << SHORT], ends: [0; 17], offsets: [0; 17], symbols: symbols.to_vec() };
        let (mut code, mut first) = (0u32, 0usize);
        for length in 1..=16u32 {
            let count = u32::from(counts[length as usize - 1]);
            if code + count > 1 << length {
                return Err(Problem::Header("a Huffman table"));
            }
            table.offsets[length as usize] = first as i32 - code as i32;
            for (index, &symbol) in symbols[first..first + count as usize].iter().enumerate() {
                if length <= SHORT {
                    let from = (code as usize + index) << (SHORT - length);
                    table.short[from..from + (1 << (SHORT - length))].fill((length as u8, symbol));
                }
            }
            code += count;
            first += count as usize;
            table.ends[length as usize] = code << (16 - length);
            code <<= 1;
        }
        Ok(table)
    }
}

/// The bits of entropy-coded data, up to a marker.
pub(super) struct Bits<'a> {
    rest: &'a [u8],
    /// Bits to come, the first one on top.
    held: u64,
    count: u32,
    /// Zeros that were put behind the end.
    beyond: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(rest: &'a [u8]) -> Self {
        Bits { rest, held: 0, count: 0, beyond: 0 }
    }

    /// Makes sure that 32 bits are held.
    #[inline(always)]
    fn fill(&mut self) {
        if self.count < 32 {
            self.refill();
        }
    }

    fn refill(&mut self) {
        // Four bytes at once where none of them can be a marker.
        if let Some(&next) = self.rest.first_chunk::<4>() {
            let word = u32::from_be_bytes(next);
            let has_ff = (!word).wrapping_sub(0x0101_0101) & word & 0x8080_8080;
            if has_ff == 0 {
                self.held |= u64::from(word) << (32 - self.count);
                self.count += 32;
                self.rest = &self.rest[4..];
                return;
            }
        }
        while self.count <= 56 {
            let byte = match *self.rest {
                [0xff, 0, ..] => {
                    self.rest = &self.rest[2..];
                    0xff
                }
                [0xff, ..] | [] => {
                    self.beyond += 8;
                    0
                }
                [byte, ..] => {
                    self.rest = &self.rest[1..];
                    byte
                }
            };
            self.held |= u64::from(byte) << (56 - self.count);
            self.count += 8;
        }
    }

    #[inline(always)]
    fn drop(&mut self, count: u32) {
        self.held <<= count;
        self.count -= count;
    }

    /// Whether more bits were read than there are.
    pub(super) fn overrun(&self) -> bool {
        self.beyond > self.count
    }

    /// The next symbol.
    #[inline(always)]
    pub(super) fn symbol(&mut self, table: &Table) -> Result<u8, Problem> {
        self.fill();
        let (length, symbol) = table.short[(self.held >> (64 - SHORT)) as usize];
        if length > 0 {
            self.drop(u32::from(length));
            return Ok(symbol);
        }
        self.long_symbol(table)
    }

    #[cold]
    fn long_symbol(&mut self, table: &Table) -> Result<u8, Problem> {
        let next = (self.held >> 48) as u32;
        let length =
            (SHORT as usize + 1..17).find(|&length| next < table.ends[length]).ok_or(Problem::Code)?;
        let code = (next >> (16 - length)) as i32;
        self.drop(length as u32);
        let index = code + table.offsets[length];
        usize::try_from(index).ok().and_then(|index| table.symbols.get(index)).copied().ok_or(Problem::Code)
    }

    /// The next `count` bits, at most 16, as a number. Only after [`symbol`](Self::symbol), which leaves as many.
    #[inline(always)]
    fn number(&mut self, count: u32) -> u32 {
        // In two steps: a shift by 64 is none.
        let number = (self.held >> 1 >> (63 - count)) as u32;
        self.drop(count);
        number
    }

    /// The next `count` bits, at most 16, by themselves.
    #[inline(always)]
    pub(super) fn take(&mut self, count: u32) -> u32 {
        self.fill();
        self.number(count)
    }

    /// The value of `count` bits behind a symbol: its upper half is as it is, its lower half negative (T.81, table F.1).
    #[inline(always)]
    pub(super) fn signed(&mut self, count: u32) -> i32 {
        let number = self.number(count) as i32;
        let half = (1 << count) >> 1;
        if number < half { number - (1 << count) + 1 } else { number }
    }

    /// Leaves what is left of the byte, and the restart marker behind it.
    pub(super) fn restart(&mut self) -> Result<(), Problem> {
        // More bytes than belong to the last value are in the way only where a marker is missing.
        let unread = self.count.saturating_sub(self.beyond);
        if self.overrun() || unread >= 8 {
            return Err(Problem::Restart);
        }
        let fill = self.rest.iter().take_while(|&&byte| byte == 0xff).count();
        match self.rest.get(fill) {
            Some(0xd0..=0xd7) if fill > 0 => {
                *self = Bits::new(&self.rest[fill + 1..]);
                Ok(())
            }
            _ => Err(Problem::Restart),
        }
    }

    /// What follows the scan's data, from the next marker on.
    pub(super) fn end(self) -> Result<&'a [u8], Problem> {
        if self.overrun() {
            return Err(Problem::Short);
        }
        Ok(self.rest)
    }
}
