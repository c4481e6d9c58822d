//! What the tests of the command share: running it, and making small data sets.

#![allow(dead_code, reason = "each test file uses a part of this module")]

use image::{ImageBuffer, Rgb, RgbImage};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// The tiniest network, one epoch.
pub(crate) const TINY: [&str; 12] = [
    "--depths",
    "1,1",
    "--widths",
    "4,8",
    "--strides",
    "1,2",
    "--epochs",
    "1",
    "--batch-size",
    "8",
    "--img-size",
    "8",
];

/// [`TINY`] with these flags, of which those that TINY has too replace its own.
pub(crate) fn tiny(flags: &[&str]) -> Vec<String> {
    let kept = TINY.chunks(2).filter(|pair| !flags.contains(&pair[0])).flatten();
    kept.chain(flags).map(|flag| (*flag).to_owned()).collect()
}

/// The command with arguments.
pub(crate) fn command<S: AsRef<str>>(arguments: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stridenet"));
    command.args(arguments.iter().map(AsRef::as_ref)).stdin(Stdio::null());
    command
}

/// What the command answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let answer =
            Answer { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
        assert!(!answer.stderr.contains("panicked"), "{answer:?}");
        answer
    }
}

impl Answer {
    /// The one JSON object on stdout.
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "{self:?}");
        serde_json::from_str(&self.stdout).unwrap()
    }
}

pub(crate) fn run<S: AsRef<str>>(arguments: &[S]) -> Answer {
    command(arguments).output().unwrap().into()
}

/// Runs a command that must succeed.
pub(crate) fn succeed<S: AsRef<str>>(arguments: &[S]) -> Answer {
    let answer = run(arguments);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    answer
}

/// Checks that a command failed with this code and said why in one line that has all of these parts.
pub(crate) fn check_refusal(answer: &Answer, code: i32, parts: &[&str]) {
    assert_eq!(answer.code, Some(code), "{answer:?}");
    assert_eq!(answer.stderr.lines().count(), 1, "{answer:?}");
    assert!(answer.stderr.starts_with("error: ") && answer.stderr.ends_with('\n'), "{answer:?}");
    assert!(answer.stdout.is_empty(), "{answer:?}");
    for part in parts {
        assert!(answer.stderr.contains(part), "{part:?} is not in {answer:?}");
    }
}

/// Runs a command that must fail with this code and say why in one line that has all of these parts.
pub(crate) fn refuse<S: AsRef<str>>(code: i32, arguments: &[S], parts: &[&str]) {
    check_refusal(&run(arguments), code, parts);
}

/// A temporary folder with paths in it.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// `train DATA --out RUN` with the tiniest network and more flags.
    pub(crate) fn train_arguments(&self, data: &str, out: &str, flags: &[&str]) -> Vec<String> {
        let mut arguments = vec!["train".to_owned(), self.text(data), "--out".to_owned(), self.text(out)];
        arguments.extend(tiny(flags));
        arguments
    }

    /// Trains the tiniest network.
    pub(crate) fn train(&self, data: &str, out: &str, flags: &[&str]) -> Answer {
        succeed(&self.train_arguments(data, out, flags))
    }

    /// A data set of two classes, `dark` and `light`, with `each` images of 8×8 pixels.
    pub(crate) fn images(&self, name: &str, each: usize) {
        for index in 0..each {
            picture(40, index).save(self.at(&format!("{name}/dark/{index:03}.png"))).unwrap();
            picture(170, index).save(self.at(&format!("{name}/light/{index:03}.png"))).unwrap();
        }
    }

    /// A data set of IDX files with two classes.
    pub(crate) fn idx(&self, name: &str, count: usize, side: usize) {
        let pixel =
            |image: usize, pixel: usize| (noise(image, pixel) / 2) + if image % 2 == 1 { 100 } else { 0 };
        let pixels: Vec<u8> = (0..count * side * side).map(|at| pixel(at / (side * side), at)).collect();
        let labels: Vec<u8> = (0..count).map(|image| (image % 2) as u8).collect();
        self.write(&format!("{name}/train-images-idx3-ubyte"), &idx(0x803, &[count, side, side], &pixels));
        self.write(&format!("{name}/train-labels-idx1-ubyte"), &idx(0x801, &[count], &labels));
    }

    /// The path, with its folders made.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    /// Every file below a folder.
    pub(crate) fn files(&self, name: &str) -> Vec<PathBuf> {
        fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { collect(&path, files) } else { files.push(path) }
            }
        }
        let mut files = Vec::new();
        collect(&self.path(name), &mut files);
        files.sort();
        files
    }
}

/// An IDX file of unsigned bytes.
pub(crate) fn idx(magic: u32, sizes: &[usize], values: &[u8]) -> Vec<u8> {
    let mut bytes = magic.to_be_bytes().to_vec();
    sizes.iter().for_each(|&size| bytes.extend((size as u32).to_be_bytes()));
    bytes.extend(values);
    bytes
}

/// A byte that depends on two numbers.
fn noise(a: usize, b: usize) -> u8 {
    let mixed = (a as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
        ^ (b as u64 + 1).wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9).to_be_bytes()[0]
}

/// A picture of about this brightness.
pub(crate) fn picture(brightness: u8, index: usize) -> RgbImage {
    ImageBuffer::from_fn(8, 8, |x, y| {
        let channel = |c: usize| brightness + noise(index, x as usize + 8 * y as usize + 64 * c) / 4;
        Rgb([channel(0), channel(1), channel(2)])
    })
}
