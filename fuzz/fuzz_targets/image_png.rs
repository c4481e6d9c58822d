//! The decoder of PNG.
#![no_main]

mod image;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| -> libfuzzer_sys::Corpus { image::check(bytes, b"\x89PNG") });
