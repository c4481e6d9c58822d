//! Every wrong input gets one line that names it, the right exit code, and nothing is written or lost.

mod common;

use common::{Answer, Folder, check_refusal, command, idx, picture, refuse, run, succeed};
use image::{DynamicImage, ImageBuffer};
use serde_json::{Value, json};
use std::process::Command;

/// Checks that training on `data` fails, says these parts, and makes no folder.
fn refuse_training(folder: &Folder, data: &str, flags: &[&str], parts: &[&str]) {
    refuse(1, &folder.train_arguments(data, "refused", flags), parts);
    assert!(!folder.path("refused").exists(), "{data}");
}

#[test]
fn folders_that_are_no_data_sets() {
    let folder = Folder::new();
    refuse_training(&folder, "absent", &[], &[&folder.text("absent"), "does not exist", "sample"]);
    std::fs::create_dir(folder.path("empty")).unwrap();
    refuse_training(
        &folder,
        "empty",
        &[],
        &[&folder.text("empty"), "expected a folder of images for each class"],
    );
    folder.images("one", 4);
    std::fs::remove_dir_all(folder.path("one/light")).unwrap();
    refuse_training(&folder, "one", &[], &[&folder.text("one"), "dark", "at least two classes"]);
    folder.images("hollow", 4);
    std::fs::create_dir(folder.path("hollow/grey")).unwrap();
    refuse_training(&folder, "hollow", &[], &[&folder.text("hollow/grey"), "no images", "remove it"]);
    picture(40, 0).save(folder.at("loose/a.png")).unwrap();
    refuse_training(&folder, "loose", &[], &[&folder.text("loose"), "one folder for each class"]);
    refuse_training(&folder, "loose/a.png", &[], &["loose/a.png", "not a folder"]);
    folder.images("split/train", 4);
    folder.images("split/val", 4);
    std::fs::rename(folder.path("split/val/light"), folder.path("split/val/bright")).unwrap();
    refuse_training(
        &folder,
        "split",
        &[],
        &["split/train", "split/val", "light", "bright", "make them the same"],
    );
}

/// A chunk of a PNG with its checksum.
fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [kind.as_slice(), data].concat();
    let crc = !body.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 * (crc & 1)))
    });
    [&(data.len() as u32).to_be_bytes(), body.as_slice(), &crc.to_be_bytes()].concat()
}

/// A PNG whose header declares more pixels than the file holds.
fn huge_png(side: u32) -> Vec<u8> {
    let header = [&side.to_be_bytes()[..], &side.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    let data = b"\x78\x9c\x03\x00\x00\x00\x00\x01";
    [b"\x89PNG\r\n\x1a\n".as_slice(), &chunk(b"IHDR", &header), &chunk(b"IDAT", data), &chunk(b"IEND", b"")]
        .concat()
}

#[test]
fn images_that_cannot_be_decoded() {
    let whole = {
        let folder = Folder::new();
        picture(40, 0).save(folder.path("whole.png")).unwrap();
        folder.read("whole.png")
    };
    let cases: [(&str, Vec<u8>, &str); 4] = [
        ("text", b"not an image at all".to_vec(), "is not an image"),
        ("zero", Vec::new(), "is empty (0 bytes)"),
        ("cut", whole[..whole.len() / 2].to_vec(), "truncated"),
        ("huge", huge_png(100_000), "100000x100000"),
    ];
    for (name, bytes, problem) in cases {
        let folder = Folder::new();
        folder.images("data", 10);
        folder.write(&format!("data/dark/{name}.png"), &bytes);
        let file = folder.text(&format!("data/dark/{name}.png"));
        refuse_training(&folder, "data", &[], &[&file, problem, "; "]);
        refuse_training(&folder, "data", &["--on-error", "fail"], &[&file]);
        let answer = folder.train("data", "run", &["--on-error", "skip"]);
        assert!(answer.stderr.contains("left out 1 of"), "{answer:?}");
        let answer = run(&["evaluate", &folder.text("run"), &folder.text("data")]);
        check_refusal(&answer, 1, &[&file, problem]);
        let skip = ["evaluate", &folder.text("run"), &folder.text("data"), "--json", "--on-error", "skip"];
        assert_eq!(succeed(&skip).json()["count"], 20);
        assert_eq!(folder.read(&format!("data/dark/{name}.png")), bytes);
    }
    let folder = Folder::new();
    folder.images("data", 3);
    for index in 0..3 {
        folder.write(&format!("data/dark/{index:03}.png"), b"broken");
    }
    refuse_training(&folder, "data", &["--on-error", "skip"], &["dark", "replace the images"]);
}

#[test]
fn all_kinds_of_pixels_are_converted() {
    let folder = Folder::new();
    folder.images("data", 10);
    let colour = DynamicImage::from(picture(40, 3));
    let kinds: [(&str, DynamicImage); 5] = [
        ("grey", colour.to_luma8().into()),
        ("grey-alpha", colour.to_luma_alpha8().into()),
        ("rgba", colour.to_rgba8().into()),
        ("rgb16", colour.to_rgb16().into()),
        (
            "grey16",
            DynamicImage::ImageLuma16(ImageBuffer::from_fn(9, 7, |x, y| image::Luma([(x * y) as u16 * 900]))),
        ),
    ];
    for (name, picture) in kinds {
        picture.save(folder.path(&format!("data/dark/{name}.png"))).unwrap();
    }
    let cmyk = concat!(env!("CARGO_MANIFEST_DIR"), "/../stridenet/tests-data/cmyk.jpg");
    std::fs::copy(cmyk, folder.path("data/light/cmyk.jpg")).unwrap();
    let answer = folder.train("data", "run", &[]);
    assert!(!answer.stderr.contains("left out"), "{answer:?}");
    let [run, data] = ["run", "data"].map(|name| folder.text(name));
    assert_eq!(succeed(&["evaluate", &run, &data, "--json"]).json()["count"], 26);
    assert_eq!(succeed(&["predict", &run, &data, "--json"]).stdout.matches("\"predictions\"").count(), 26);
}

#[test]
fn idx_files_that_are_wrong() {
    let (images, labels) = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte");
    let pixels = vec![7; 20 * 64];
    let classes: Vec<u8> = (0..20).map(|index| index % 2).collect();
    let good = [idx(0x803, &[20, 8, 8], &pixels), idx(0x801, &[20], &classes)];
    let cut = good[0][..500].to_vec();
    let cases: [([Vec<u8>; 2], &[&str]); 6] = [
        ([idx(0x802, &[20, 8, 8], &pixels), good[1].clone()], &[images, "0x00000802", "0x00000803"]),
        ([good[0].clone(), idx(0x803, &[20], &classes)], &[labels, "0x00000803", "0x00000801"]),
        ([cut, good[1].clone()], &[images, "truncated", "500 of 1296 bytes"]),
        ([good[0].clone(), idx(0x801, &[19], &classes[..19])], &["20 images", "19 labels"]),
        ([idx(0x803, &[u32::MAX as usize; 3], &pixels), good[1].clone()], &[images, "4 GiB"]),
        ([idx(0x803, &[1 << 20, 8, 8], &pixels), good[1].clone()], &[images, "truncated"]),
    ];
    for ([first, second], parts) in cases {
        let folder = Folder::new();
        folder.write(&format!("data/{images}"), &first);
        folder.write(&format!("data/{labels}"), &second);
        refuse_training(&folder, "data", &[], parts);
    }
    let folder = Folder::new();
    folder.write(&format!("data/{images}"), &good[0]);
    refuse_training(&folder, "data", &[], &["data", labels, "put both"]);
    folder.write(&format!("data/{images}.gz"), b"\x1f\x8b\x08garbage");
    std::fs::remove_file(folder.path(&format!("data/{images}"))).unwrap();
    folder.write(&format!("data/{labels}"), &good[1]);
    refuse_training(&folder, "data", &[], &[images, "download it again"]);
}

#[test]
fn a_model_for_other_classes() {
    let folder = Folder::new();
    folder.images("data", 10);
    folder.train("data", "run", &[]);
    let model = folder.text("run");
    refuse(1, &["evaluate", &model, "sample"], &["2 classes", "sample has 10"]);
    std::fs::rename(folder.path("data/light"), folder.path("data/bright")).unwrap();
    refuse(1, &["evaluate", &model, &folder.text("data")], &["bright", "dark", "evaluate on the data"]);
}

/// A safetensors file with a changed header.
fn edit(bytes: &[u8], change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Vec<u8> {
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    change(header.as_object_mut().unwrap());
    let mut text = serde_json::to_vec(&header).unwrap();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes(), text.as_slice(), &bytes[8 + length..]].concat()
}

#[test]
fn weights_that_do_not_fit() {
    let folder = Folder::new();
    folder.images("data", 10);
    folder.train("data", "run", &[]);
    let weights = "run/best/model.safetensors";
    let (file, model, data) = (folder.text(weights), folder.text("run"), folder.text("data"));
    let good = folder.read(weights);
    let changed = edit(&good, |header| {
        header["conv1.weight"]["shape"] = json!([4, 3, 9, 1]);
        header["fc.bias"]["shape"] = json!([2, 1]);
        let moved = header.remove("layer1.0.conv1.weight").unwrap();
        header.insert("layer1.0.conv9.weight".into(), moved);
        let moved = header.remove("bn1.running_mean").unwrap();
        header.insert("bn1.mean".into(), moved);
    });
    let infinite = {
        let mut bytes = good.clone();
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        bytes
    };
    let all = [
        "conv1.weight",
        "[4, 3, 9, 1]",
        "[4, 3, 3, 3]",
        "fc.bias",
        "layer1.0.conv1.weight",
        "layer1.0.conv9.weight",
        "bn1.running_mean",
        "bn1.mean",
    ];
    let cases: [(&[u8], &[&str]); 6] = [
        (&changed, &all),
        (&good[..good.len() - 100], &["safetensors", "copy or export it again"]),
        (&good[..20], &["safetensors", "copy or export it again"]),
        (&[], &["safetensors", "copy or export it again"]),
        (&[0xff; 64], &["safetensors", "copy or export it again"]),
        (&infinite, &["NaN or infinite", "diverged"]),
    ];
    for (bytes, parts) in cases {
        folder.write(weights, bytes);
        let parts = [&[file.as_str()], parts].concat();
        refuse(1, &["evaluate", &model, &data], &parts);
        refuse(1, &["predict", &model, &folder.text("data/dark/000.png")], &parts);
        refuse(1, &["inspect", &model], &parts);
        assert_eq!(folder.read(weights), bytes);
    }
    std::fs::remove_file(folder.path("run/best/config.json")).unwrap();
    folder.write(weights, &changed);
    refuse(
        1,
        &["evaluate", &model, &data],
        &[&file, "does not show its architecture", "layer1.0.conv1.weight", "config.json"],
    );
    refuse(1, &["evaluate", &folder.text("absent"), &data], &[&folder.text("absent"), "stridenet train"]);
    folder.write("net.pth", b"pickle");
    refuse(
        1,
        &["evaluate", &folder.text("net.pth"), &data],
        &["net.pth", "PyTorch", "does not begin like a zip archive"],
    );
}

#[test]
fn a_damaged_state_is_not_resumed() {
    let folder = Folder::new();
    folder.images("data", 10);
    folder.train("data", "run", &[]);
    let state = "run/state/checkpoint.safetensors";
    let good = folder.read(state);
    let nameless = edit(&good, |header| drop(header.remove("__metadata__")));
    let slow = edit(&good, |header| {
        let name = header.keys().find(|name| name.starts_with("velocity.")).unwrap().clone();
        let velocity = header.remove(&name).unwrap();
        header.insert("velocity.other".into(), velocity);
    });
    for bytes in [&good[..good.len() / 2], &[], &nameless, &slow] {
        folder.write(state, bytes);
        let model = folder.read("run/last/model.safetensors");
        let resume = ["train", "--quiet", "--resume", "--out", &folder.text("run"), "--epochs", "2"];
        refuse(1, &resume, &["checkpoint.safetensors"]);
        assert_eq!(folder.read("run/last/model.safetensors"), model);
    }
}

#[test]
fn a_state_does_not_write_to_the_terminal() {
    let folder = Folder::new();
    folder.images("data", 10);
    folder.train("data", "run", &[]);
    let state = "run/state/checkpoint.safetensors";
    let hostile = edit(&folder.read(state), |header| {
        header["__metadata__"]["stridenet.arithmetic"] = "\u{1b}[2J\nfingers".into();
    });
    folder.write(state, &hostile);
    let answer = succeed(&["train", "--resume", "--out", &folder.text("run"), "--epochs", "2"]);
    assert!(answer.stderr.contains("fingers and goes on with"), "{answer:?}");
    assert!(!answer.stderr.contains('\u{1b}'), "{answer:?}");
}

#[test]
fn a_loss_that_is_no_number_stops_the_run() {
    let folder = Folder::new();
    folder.images("data", 20);
    let huge = ["--quiet", "--lr", "1e30", "--warmup-epochs", "0"];
    let answer = run(&folder.train_arguments("data", "wild", &huge));
    check_refusal(
        &answer,
        1,
        &["the loss became", "epoch 1", "no checkpoint yet", "--lr", "--warmup-epochs"],
    );
    assert!(!folder.path("wild/last").exists());

    folder.train("data", "run", &["--sched", "constant", "--warmup-epochs", "0"]);
    // The learning rate of the run becomes so large that the second epoch fails.
    let state = "run/state/checkpoint.safetensors";
    let wild = edit(&folder.read(state), |header| {
        let options = &mut header["__metadata__"]["stridenet.options"];
        let mut inner: Value = serde_json::from_str(options.as_str().unwrap()).unwrap();
        inner["lr"] = json!(1e30);
        *options = inner.to_string().into();
    });
    folder.write(state, &wild);
    let kept = ["run/last/model.safetensors", "run/best/model.safetensors", state, "run/summary.csv"];
    let before = kept.map(|file| folder.read(file));
    let (run_path, data) = (folder.text("run"), folder.text("data"));
    let resume = ["train", "--quiet", "--resume", "--out", &run_path, "--epochs", "2"];
    refuse(1, &resume, &["the loss became", "epoch 2", "kept in", &run_path, "--lr"]);
    assert!(before == kept.map(|file| folder.read(file)));
    succeed(&["evaluate", &folder.text("run/last"), &data]);
}

/// Runs a command whose files may not grow beyond `blocks` of 512 bytes, as on a full disk.
fn limited(blocks: usize, arguments: &[String]) -> Answer {
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    Command::new("sh")
        .args(["-c", &script, env!("CARGO_BIN_EXE_stridenet")])
        .args(arguments)
        .output()
        .unwrap()
        .into()
}

#[test]
fn a_full_disk_loses_nothing() {
    let folder = Folder::new();
    folder.images("data", 10);
    let flags = ["--quiet", "--widths", "8,16"];
    let answer = limited(4, &folder.train_arguments("data", "new", &flags));
    check_refusal(
        &answer,
        1,
        &["cannot write", &folder.text("new/best/model.safetensors"), "free some space"],
    );
    let names = |run: &str| {
        folder.files(run).iter().map(|file| file.file_name().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names("new"), ["args.yaml"]);

    folder.train("data", "run", &flags);
    let before: Vec<Vec<u8>> = folder.files("run").iter().map(|file| std::fs::read(file).unwrap()).collect();
    let files = folder.files("run");
    let resume =
        ["train", "--quiet", "--resume", "--epochs", "2", "--out", &folder.text("run")].map(str::to_owned);
    check_refusal(&limited(4, &resume), 1, &["cannot write", "model.safetensors", "free some space"]);
    assert_eq!(folder.files("run"), files);
    for (path, before) in files.iter().zip(before) {
        let unchanged = path.ends_with("args.yaml") || std::fs::read(path).unwrap() == before;
        assert!(unchanged, "{path:?} has changed");
    }
    // With room again, the run goes on.
    succeed(&resume);

    let svg = ["inspect", "resnet18", "--svg", &folder.text("net.svg")].map(str::to_owned);
    check_refusal(&limited(4, &svg), 1, &["cannot write", "net.svg", "free some space"]);
    assert!(!folder.path("net.svg").exists());
}

#[test]
fn a_full_stdout_is_an_error() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let answer: Answer = command(&["inspect", "resnet18"]).stdout(full).output().unwrap().into();
    check_refusal(&answer, 1, &["cannot write to stdout"]);
}

#[test]
fn wrong_usage() {
    let folder = Folder::new();
    folder.images("data", 4);
    let cases: [(&[&str], &[&str]); 18] = [
        (&["--lr", "0"], &["--lr is 0", "above 0"]),
        (&["--lr", "-0.1"], &["--lr is -0.1", "above 0"]),
        (&["--lr", "fast"], &["--lr", "'fast'"]),
        (&["--lr", "nan"], &["--lr is NaN", "above 0"]),
        (&["--epochs", "0"], &["--epochs is 0", "1 or more"]),
        (&["--batch-size", "0"], &["--batch-size is 0", "1 or more"]),
        (&["--momentum", "2"], &["--momentum is 2"]),
        (&["--smoothing", "1.5"], &["--smoothing is 1.5"]),
        (&["--workers", "-1"], &["'-1'"]),
        (&["--cache", "much"], &["--cache", "'much'", "500MiB"]),
        (&["--cache", "1GB"], &["--cache", "'1GB'", "GiB"]),
        (&["--val-fraction", "1"], &["--val-fraction is 1", "between 0 and 1"]),
        (&["--crop-padding", "5000"], &["padding", "5000", "1024"]),
        (&["--sched", "linear"], &["--sched", "'linear'", "cosine"]),
        (&["--img-size", "8x"], &["--img-size", "8x", "HEIGHTxWIDTH"]),
        (&["--threads", "0"], &["--threads", "'0'"]),
        (&["--widths", "0,8"], &["width", "0"]),
        (&["--epoch", "3"], &["'--epoch'", "'--epochs'"]),
    ];
    for (flags, parts) in cases {
        refuse(2, &folder.train_arguments("data", "refused", flags), parts);
        assert!(!folder.path("refused").exists(), "{flags:?}");
    }
    let help = "--help";
    refuse(2, &["train", "--resume"], &["--out", help]);
    refuse(2, &["train", "--overwrite", "--resume", "--out", "x"], &["--overwrite", "--resume", help]);
    refuse(2, &["trian"], &["trian", "train"]);
    refuse::<&str>(2, &[], &["no command", help]);
    refuse(2, &["evaluate"], &["MODEL", help]);
    let answer: Answer =
        command(&["inspect", "resnet18"]).env("STRIDENET_LEVEL", "bogus").output().unwrap().into();
    check_refusal(&answer, 2, &["STRIDENET_LEVEL", "bogus"]);
    let answer: Answer =
        command(&["inspect", "resnet18"]).env("STRIDENET_BF16", "no").output().unwrap().into();
    check_refusal(&answer, 2, &["STRIDENET_BF16", "\"no\"", "\"off\""]);
    for arguments in [&["--help"][..], &["--version"], &["train", "--help"]] {
        let answer = succeed(arguments);
        assert!(answer.stdout.contains("stridenet") && answer.stderr.is_empty(), "{answer:?}");
    }
}
