//! Whether a JPEG file is whole. The decoder fills what is missing with grey and reports nothing; a data set must not
//! learn from such pictures.

/// Whether the markers lead to the end-of-image marker (ITU-T T.81, annex B). A file without it was cut off; Pillow
/// refuses it too.
pub(in crate::image) fn reaches_its_end(bytes: &[u8]) -> bool {
    const RESTART_0: u8 = 0xd0;
    const START: u8 = 0xd8;
    const END: u8 = 0xd9;
    const TEMPORARY: u8 = 0x01;
    let mut rest = bytes;
    loop {
        // Between markers lies entropy-coded data, in which 0xff is always followed by 0.
        let Some(at) = rest.iter().position(|&byte| byte == 0xff) else { return false };
        rest = &rest[at..];
        let Some(fill) = rest.iter().position(|&byte| byte != 0xff) else { return false };
        let marker = rest[fill];
        rest = &rest[fill + 1..];
        match marker {
            END => return true,
            0 | TEMPORARY | RESTART_0..=START => {}
            _ => {
                let Some(&[high, low]) = rest.first_chunk() else { return false };
                // The length counts its own two bytes.
                let length = usize::from(u16::from_be_bytes([high, low])).max(2);
                let Some(after) = rest.get(length..) else { return false };
                rest = after;
            }
        }
    }
}

/// Whether `bytes` of JPEG can hold this many pixels: every 8x8 block takes at least one bit.
pub(in crate::image) fn can_hold(bytes: usize, pixels: u64) -> bool {
    pixels <= (bytes as u64).saturating_mul(8 * 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_inside_a_segment_does_not_count() {
        // Start, an application segment that holds an end marker (an embedded thumbnail), scan data with a stuffed
        // byte and a restart marker, end, and bytes behind it.
        let whole = [
            &[0xff, 0xd8, 0xff, 0xe1, 0, 6, 0xff, 0xd9, 0xff, 0xd9, 0xff, 0xda, 0, 2][..],
            &[1, 2, 0xff, 0, 7, 0xff, 0xd0, 9, 0xff, 0xff, 0xd9, 5, 5],
        ]
        .concat();
        assert!(reaches_its_end(&whole));
        let end = whole.len() - 2;
        assert!(reaches_its_end(&whole[..end]));
        for cut in 0..end {
            assert!(!reaches_its_end(&whole[..cut]), "{cut} bytes");
        }
    }
}
