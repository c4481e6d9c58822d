//! Any bytes are a state dict or a one-line error, and nothing is run: as a file, and as the pickle of an archive that is
//! otherwise whole, which no checksum protects.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use stridenet::weights::{NonFinite, pytorch_from_bytes};

/// A zip archive of stored entries.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let mut crc = flate2::Crc::new();
        crc.update(data);
        let size = (data.len() as u32).to_le_bytes();
        let record = [&[20, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &crc.sum().to_le_bytes(), &size, &size].concat();
        let names = [&(name.len() as u16).to_le_bytes()[..], &[0, 0]].concat();
        let start = (bytes.len() as u32).to_le_bytes();
        directory
            .extend([b"PK\x01\x02\0\0", &record[..], &names, &[0; 10], &start, name.as_bytes()].concat());
        bytes.extend([b"PK\x03\x04", &record[..], &names, name.as_bytes(), data].concat());
    }
    let count = (entries.len() as u16).to_le_bytes();
    let (size, start) = ((directory.len() as u32).to_le_bytes(), (bytes.len() as u32).to_le_bytes());
    bytes.extend([&directory[..], b"PK\x05\x06\0\0\0\0", &count, &count, &size, &start, &[0, 0]].concat());
    bytes
}

fuzz_target!(|bytes: &[u8]| {
    let whole = archive(&[("a/data.pkl", bytes), ("a/data/0", &[0x3f; 64])]);
    for file in [bytes, &whole] {
        match pytorch_from_bytes(Path::new("m"), file, NonFinite::Allow) {
            Ok((state, _)) => {
                let held: usize = state.iter().map(|(_, tensor)| tensor.values().len()).sum();
                // Storages may be shared by a few tensors, and the narrowest type has two bytes.
                assert!(held <= 2 * file.len());
            }
            Err(error) => assert!(!error.to_string().contains(char::is_control), "{error}"),
        }
    }
});
