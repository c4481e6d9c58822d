//! What bad input gets: one line that names what was found and what to do, the right exit code, and nothing lost.

mod common;

use common::{Folder, check_refusal, command, idx, refuse, run, succeed};
use image::{DynamicImage, ImageBuffer, Luma, Rgba};
use std::process::Command;

/// `train` on a folder must fail with these parts of a message, and leave no run behind.
fn refuse_data(folder: &Folder, data: &str, parts: &[&str]) {
    refuse(1, &folder.train_arguments(data, "run", &[]), parts);
    assert!(!folder.path("run").exists(), "nothing was to be written");
}

#[test]
fn folders_that_hold_no_data_set() {
    let folder = Folder::new();
    refuse_data(&folder, "nowhere", &["nowhere"]);
    std::fs::create_dir(folder.path("empty")).unwrap();
    refuse_data(&folder, "empty", &["empty"]);
    folder.images("one", 3);
    std::fs::remove_dir_all(folder.path("one/light")).unwrap();
    refuse_data(&folder, "one", &["one", "dark"]);
    folder.images("hollow", 3);
    std::fs::create_dir(folder.path("hollow/middle")).unwrap();
    refuse_data(&folder, "hollow", &["middle"]);
}

#[test]
fn images_that_cannot_be_decoded_are_named_or_skipped() {
    let folder = Folder::new();
    folder.images("data", 12);
    folder.write("data/dark/zero.png", b"");
    refuse_data(&folder, "data", &["zero.png", "empty"]);
    std::fs::remove_file(folder.path("data/dark/zero.png")).unwrap();
    let bytes = folder.read("data/light/000.png");
    folder.write("data/light/cut.png", &bytes[..bytes.len() / 2]);
    refuse_data(&folder, "data", &["cut.png"]);
    folder.write("data/light/text.jpg", b"not an image at all");
    let answer = folder.train("data", "run", &["--on-error", "skip"]);
    assert!(answer.stderr.contains("left out 2 of "), "{answer:?}");
}

#[test]
fn grey_alpha_deep_and_cmyk_images_are_converted() {
    let folder = Folder::new();
    folder.images("data", 6);
    let grey = ImageBuffer::from_fn(9, 7, |x, y| Luma([(x * y) as u8]));
    DynamicImage::ImageLuma8(grey).save(folder.at("data/dark/grey.png")).unwrap();
    let alpha = ImageBuffer::from_fn(8, 8, |x, _| Rgba([x as u8, 50, 60, 128]));
    DynamicImage::ImageRgba8(alpha).save(folder.at("data/dark/alpha.png")).unwrap();
    let deep = ImageBuffer::from_fn(8, 8, |x, y| Luma([(x * y * 900) as u16]));
    DynamicImage::ImageLuma16(deep).save(folder.at("data/dark/deep.png")).unwrap();
    let cmyk = concat!(env!("CARGO_MANIFEST_DIR"), "/../stridenet/tests-data/cmyk.jpg");
    std::fs::copy(cmyk, folder.at("data/light/cmyk.jpg")).unwrap();
    folder.train("data", "run", &["--img-size", "8"]);
}

#[test]
fn damaged_idx_files() {
    let folder = Folder::new();
    let images = "data/train-images-idx3-ubyte";
    let check = |change: &dyn Fn(), parts: &[&str]| {
        folder.idx("data", 20, 8);
        let (from, to) = (folder.read(images), "data/t10k-images-idx3-ubyte");
        folder.write(to, &from);
        folder.write("data/t10k-labels-idx1-ubyte", &folder.read("data/train-labels-idx1-ubyte"));
        change();
        refuse_data(&folder, "data", parts);
    };
    check(
        &|| folder.write(images, &idx(0x1234, &[20, 8, 8], &[0; 1280])),
        &["train-images", "0x00001234", "expected 0x00000803"],
    );
    check(&|| folder.write(images, &idx(0x803, &[20, 8, 8], &[0; 1000])), &["train-images", "truncated"]);
    check(&|| folder.write(images, &idx(0x803, &[19, 8, 8], &[0; 1216])), &["19 images", "20 labels"]);
    check(&|| folder.write(images, &idx(0x803, &[u32::MAX as usize, 28, 28], &[0; 10])), &["train-images"]);
}

#[test]
fn a_model_for_other_classes() {
    let folder = Folder::new();
    folder.images("data", 6);
    folder.train("data", "run", &[]);
    let model = folder.text("run");
    refuse(1, &["evaluate", &model, "sample"], &["2 classes", "10"]);
    folder.images("other", 6);
    std::fs::rename(folder.path("other/dark"), folder.path("other/black")).unwrap();
    refuse(1, &["evaluate", &model, &folder.text("other")], &["dark", "black"]);
}

#[test]
fn tensors_that_do_not_fit_are_all_listed() {
    let folder = Folder::new();
    folder.images("data", 6);
    folder.train("data", "run", &[]);
    // The header is changed in place, to names and sizes of the same length: two tensors are missing, two are unknown.
    let path = "run/best/model.safetensors";
    let bytes = folder.read(path);
    let text = String::from_utf8_lossy(&bytes[8..]).into_owned();
    let header = &text[..text.find("}}").unwrap()];
    let changed =
        header.replace("\"fc.bias\"", "\"fc.bits\"").replace("layer1.0.bn1.weight", "layer1.0.bn9.weight");
    assert_ne!(header, changed);
    let mut damaged = bytes.clone();
    damaged[8..8 + changed.len()].copy_from_slice(changed.as_bytes());
    folder.write(path, &damaged);
    let model = folder.text("run");
    refuse(
        1,
        &["evaluate", &model, &folder.text("data")],
        &["model.safetensors", "fc.bias", "layer1.0.bn1.weight"],
    );
    // Other widths: every convolution has another shape.
    folder.train("data", "wide", &["--widths", "8,16"]);
    std::fs::copy(folder.path("wide/best/model.safetensors"), folder.path(path)).unwrap();
    let parts = ["conv1.weight", "layer2.0.conv2.weight", "fc.weight", "[8, 3, 3, 3]", "[4, 3, 3, 3]"];
    refuse(1, &["evaluate", &model, &folder.text("data")], &parts);
    for length in [0, 7, 100, bytes.len() - 1] {
        folder.write(path, &bytes[..length]);
        refuse(1, &["evaluate", &model, &folder.text("data")], &["model.safetensors"]);
    }
    folder.write(path, &bytes);
    succeed(&["evaluate", &model, &folder.text("data")]);
}

#[test]
fn a_model_that_is_not_there() {
    let folder = Folder::new();
    refuse(1, &["evaluate", &folder.text("nothing")], &["nothing", "stridenet train"]);
    std::fs::create_dir(folder.path("empty")).unwrap();
    refuse(1, &["predict", &folder.text("empty"), "x.png"], &["empty", "model.safetensors"]);
    folder.write("old.pth", b"PK");
    refuse(1, &["evaluate", &folder.text("old.pth")], &["old.pth", "safetensors"]);
}

#[test]
fn a_loss_that_is_no_number_keeps_the_last_good_checkpoint() {
    let folder = Folder::new();
    folder.images("data", 20);
    // The first epoch warms up from nothing; the learning rate of the second one is beyond all measure.
    let flags = ["--epochs", "3", "--lr", "1e30", "--sched", "constant", "--warmup-epochs", "0"];
    let answer = run(&folder.train_arguments("data", "first", &flags));
    assert_eq!(answer.code, Some(1), "{answer:?}");
    let last = answer.stderr.lines().last().unwrap();
    assert!(last.starts_with("error: ") && last.contains("--lr"), "{answer:?}");
    assert!(!folder.path("first/last").exists(), "no checkpoint of a diverged network");

    let good = folder.train("data", "run", &["--lr", "0.01"]);
    assert!(good.stdout.contains("top-1"));
    let before = folder.read("run/last/model.safetensors");
    // The same run goes on over data that no network survives: resumed, with its images' statistics blown up.
    let config = String::from_utf8(folder.read("run/last/config.json")).unwrap();
    let start = config.find("\"std\": [").unwrap();
    let end = start + config[start..].find(']').unwrap();
    let broken = format!("{}\"std\": [0.000002, 0.000002, 0.000002{}", &config[..start], &config[end..]);
    let mean = broken.find("\"mean\": [").unwrap();
    let stop = mean + broken[mean..].find(']').unwrap();
    let broken = format!("{}\"mean\": [3e38, -3e38, 3e38{}", &broken[..mean], &broken[stop..]);
    folder.write("run/last/config.json", broken.as_bytes());
    let out = folder.text("run");
    let answer = run(&["train", "--resume", "--out", &out, "--epochs", "2"]);
    assert_eq!(answer.code, Some(1), "{answer:?}");
    let last = answer.stderr.lines().last().unwrap();
    assert!(last.starts_with("error: ") && last.contains("checkpoint is kept"), "{answer:?}");
    assert_eq!(folder.read("run/last/model.safetensors"), before);
    folder.write("run/last/config.json", config.as_bytes());
    succeed(&["train", "--resume", "--out", &out, "--epochs", "2"]);
}

#[test]
fn an_output_folder_that_exists() {
    let folder = Folder::new();
    folder.images("data", 6);
    folder.train("data", "run", &[]);
    let before = folder.read("run/summary.csv");
    let answer = run(&folder.train_arguments("data", "run", &[]));
    check_refusal(&answer, 1, &["run", "--overwrite", "--resume"]);
    assert_eq!(folder.read("run/summary.csv"), before);
    folder.write("run/notes.txt", b"mine");
    let answer =
        run(&folder.train_arguments("data", "run", &["--overwrite"]).into_iter().collect::<Vec<_>>());
    check_refusal(&answer, 1, &["notes.txt"]);
    assert_eq!(folder.read("run/notes.txt"), b"mine");
}

/// A limit on the size of files stands in for a full disk: both make a write fail in its middle.
#[cfg(unix)]
#[test]
fn a_full_disk_keeps_what_was_there() {
    let folder = Folder::new();
    folder.images("data", 10);
    folder.train("data", "run", &[]);
    let before = folder.read("run/last/model.safetensors");
    let script = format!(
        "trap '' XFSZ; ulimit -f 4; exec '{}' train --resume --out '{}' --epochs 2",
        env!("CARGO_BIN_EXE_stridenet"),
        folder.text("run")
    );
    let answer: common::Answer = Command::new("sh").args(["-c", &script]).output().unwrap().into();
    assert_eq!(answer.code, Some(1), "{answer:?}");
    let last = answer.stderr.lines().last().unwrap();
    assert!(last.starts_with("error: cannot write ") && last.contains("nothing was lost"), "{answer:?}");
    assert_eq!(folder.read("run/last/model.safetensors"), before);
    let files = folder.files("run");
    assert!(files.iter().all(|file| !file.to_string_lossy().ends_with(".tmp")), "{files:?}");
    succeed(&["train", "--resume", "--out", &folder.text("run"), "--epochs", "2"]);
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let folder = Folder::new();
    folder.images("data", 6);
    let cases: [(&[&str], &str); 10] = [
        (&["--lr", "-1"], "--lr"),
        (&["--lr", "nan"], "--lr"),
        (&["--epochs", "0"], "--epochs"),
        (&["--momentum", "2"], "--momentum"),
        (&["--smoothing", "1"], "--smoothing"),
        (&["--arch", "resnet19"], "resnet18"),
        (&["--depths", "1,2,3,4,5"], "depths"),
        (&["--downsample", "median"], "median"),
        (&["--img-size", "0"], "--img-size"),
        (&["--nonsense"], "--nonsense"),
    ];
    for (flags, part) in cases {
        let mut arguments = vec!["train".to_owned(), folder.text("data"), "--out".into(), folder.text("run")];
        arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
        refuse(2, &arguments, &[part]);
    }
    refuse(2, &["train", "--resume"], &["--out"]);
    let answer: common::Answer =
        command(&["inspect", "resnet20"]).env("STRIDENET_LEVEL", "bogus").output().unwrap().into();
    check_refusal(&answer, 2, &["STRIDENET_LEVEL", "bogus", "scalar"]);
    assert!(!folder.path("run").exists());
}

#[test]
fn a_picture_that_claims_to_be_huge() {
    let folder = Folder::new();
    folder.images("data", 6);
    folder.train("data", "run", &[]);
    // A PNG of 8×8 pixels whose header says 100,000×100,000; its checksum is made to fit.
    let mut bytes = folder.read("data/dark/000.png");
    bytes[16..20].copy_from_slice(&100_000u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&100_000u32.to_be_bytes());
    let checksum = bytes[12..29].iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    });
    bytes[29..33].copy_from_slice(&(!checksum).to_be_bytes());
    folder.write("huge.png", &bytes);
    refuse(1, &["predict", &folder.text("run"), &folder.text("huge.png")], &["huge.png", "too large"]);
}
