//! The `stridenet` command.
#![forbid(unsafe_code)]

fn main() {}
