//! The decoder of TIFF.
#![no_main]

mod image;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| -> libfuzzer_sys::Corpus {
    // Either order of bytes.
    image::check(bytes, if bytes.starts_with(b"II") { b"II" } else { b"MM" })
});
