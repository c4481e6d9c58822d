//! Any bytes are a state dict or a one-line error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use stridenet::weights::{NonFinite, safetensors_from_bytes};

fuzz_target!(|bytes: &[u8]| {
    match safetensors_from_bytes(Path::new("m"), bytes, NonFinite::Allow) {
        Ok(state) => {
            let held: usize = state.iter().map(|(_, tensor)| tensor.values().len()).sum();
            // The narrowest type has two bytes.
            assert!(2 * held <= bytes.len());
        }
        Err(error) => assert!(!error.to_string().contains(char::is_control), "{error}"),
    }
});
