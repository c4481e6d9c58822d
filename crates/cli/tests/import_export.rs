//! `stridenet import` and `stridenet export`: what is read, what is written, and what is refused.

mod common;

use common::{Folder, refuse, succeed};
use serde_json::{Value, json};
use stridenet::weights::{NonFinite, StateDict, read_safetensors, write_safetensors};

/// A trained model of the tiniest network in `run`.
fn trained() -> Folder {
    let folder = Folder::new();
    folder.images("data", 4);
    folder.train("data", "run", &[]);
    folder
}

#[test]
fn a_model_is_exported_and_imported_to_the_same_bits() {
    let folder = trained();
    let original = folder.read("run/best/model.safetensors");
    let exported =
        succeed(&["export", &folder.text("run"), &folder.text("out/net.safetensors"), "--json"]).json();
    assert_eq!(exported["files"][0], folder.text("out/net.safetensors"));
    assert!(exported["tensors"].as_u64().is_some_and(|count| count > 10), "{exported}");
    assert!(folder.read("out/net.safetensors") == original);

    let outcome =
        succeed(&["import", &folder.text("out/net.safetensors"), &folder.text("model"), "--json"]).json();
    assert_eq!(outcome["num_classes"], 2);
    assert_eq!(
        outcome["account"]["applied"].as_array().unwrap().len() as u64,
        exported["tensors"].as_u64().unwrap()
    );
    for problem in ["missing", "unused", "mismatched", "integers"] {
        assert_eq!(outcome["account"][problem], json!([]), "{outcome}");
    }
    assert!(folder.read("model/model.safetensors") == original);
    let predict = |model: &str| {
        let answer = succeed(&["predict", &folder.text(model), &folder.text("data/dark/000.png"), "--json"]);
        answer.json()["predictions"].clone()
    };
    assert_eq!(predict("model"), predict("run"));
}

#[test]
fn a_model_goes_through_a_graph_and_computes_the_same() {
    let folder = trained();
    let predict = |model: &str| {
        let answer = succeed(&["predict", &folder.text(model), &folder.text("data/dark/000.png"), "--json"]);
        answer.json()["predictions"].clone()
    };
    let original = predict("run");
    let outcome = succeed(&["export", &folder.text("run"), &folder.text("out/net.onnx"), "--json"]).json();
    assert_eq!(outcome["files"], serde_json::json!([folder.text("out/net.onnx")]));
    assert!(outcome["distance"].as_f64().is_some_and(|distance| distance < 1e-5), "{outcome}");
    // A graph is a model: its class names, preprocessing and architecture are in it.
    assert_eq!(predict("out/net.onnx"), original);
    let outcome = succeed(&["import", &folder.text("out/net.onnx"), &folder.text("model"), "--json"]).json();
    assert_eq!((&outcome["folded"], &outcome["num_classes"]), (&0.into(), &2.into()), "{outcome}");
    assert_eq!(predict("model"), original);

    let answer = succeed(&["export", &folder.text("run"), &folder.text("out/folded.onnx"), "--fold"]);
    assert!(
        answer.stdout.contains("nodes, ") && answer.stdout.contains("folded.onnx; its logits differ"),
        "{answer:?}"
    );
    let answer = succeed(&["import", &folder.text("out/folded.onnx"), &folder.text("folded")]);
    assert!(answer.stdout.contains("batch norms were inside convolutions"), "{answer:?}");
    let (found, expected) = (predict("folded"), original.as_array().unwrap());
    for (found, expected) in found.as_array().unwrap().iter().zip(expected) {
        let probability = |prediction: &Value| prediction["probability"].as_f64().unwrap();
        assert_eq!(found["label"], expected["label"]);
        assert!((probability(found) - probability(expected)).abs() < 1e-5, "{found} {expected}");
    }
}

#[test]
fn graphs_that_cannot_be_used_are_refused() {
    let folder = trained();
    succeed(&["export", &folder.text("run"), &folder.text("net.onnx")]);
    let bytes = folder.read("net.onnx");
    refuse(
        2,
        &["export", &folder.text("run"), &folder.text("net.onnx")],
        &["net.onnx is already there", "--overwrite"],
    );
    assert!(folder.read("net.onnx") == bytes);
    refuse(
        2,
        &["export", &folder.text("run"), &folder.text("net"), "--fold"],
        &["--fold is for ONNX", ".onnx"],
    );
    folder.write("cut.onnx", &bytes[..bytes.len() / 2]);
    let import = ["import", &folder.text("cut.onnx"), &folder.text("model")];
    refuse(1, &import, &["cut.onnx is not a valid ONNX file", "it is truncated", "export it again"]);
    let import = ["import", &folder.text("net.onnx"), &folder.text("model"), "--arch", "resnet18"];
    refuse(1, &import, &["net.onnx is not the residual network resnet18", "expected"]);
    assert!(!folder.path("model").exists());
}

#[test]
fn nothing_is_replaced_unless_asked_for() {
    let folder = trained();
    folder.write("model/model.safetensors", b"precious");
    for command in ["import", "export"] {
        let arguments = [command, &folder.text("run"), &folder.text("model")];
        refuse(2, &arguments, &["model.safetensors is already there", "--overwrite"]);
        assert_eq!(folder.read("model/model.safetensors"), b"precious");
    }
    let answer = succeed(&["import", &folder.text("run"), &folder.text("model"), "--overwrite"]);
    assert!(answer.stdout.contains("resnet20") && answer.stdout.contains("applied"), "{answer:?}");
    assert!(folder.read("model/model.safetensors") == folder.read("run/best/model.safetensors"));
}

/// The weights as torch would load them.
fn tensors(folder: &Folder, file: &str) -> StateDict {
    read_safetensors(&folder.path(file), NonFinite::Refuse).unwrap()
}

#[test]
fn a_new_classifier_and_another_input_are_made_only_when_asked_for() {
    let folder = trained();
    let import = |flags: &[&str]| {
        succeed(
            &[&["import", &folder.text("run"), &folder.text("model"), "--overwrite", "--json"], flags]
                .concat(),
        )
        .json()
    };
    let file = "model/model.safetensors";
    // The number that it has changes nothing.
    assert_eq!(import(&["--num-classes", "2"])["account"]["reinitialised"], json!([]));
    assert!(folder.read(file) == folder.read("run/best/model.safetensors"));

    let outcome = import(&["--num-classes", "5", "--in-chans", "1", "--seed", "3"]);
    assert_eq!(outcome["account"]["reinitialised"], json!(["fc.weight", "fc.bias"]));
    assert_eq!(outcome["account"]["adapted"], json!(["conv1.weight"]));
    assert_eq!((&outcome["num_classes"], &outcome["in_chans"]), (&json!(5), &json!(1)));
    let (before, after) = (tensors(&folder, "run/best/model.safetensors"), tensors(&folder, file));
    for (name, tensor) in
        before.iter().filter(|(name, _)| !name.starts_with("fc.") && *name != "conv1.weight")
    {
        assert_eq!(after.get(name), Some(tensor), "{name}");
    }
    assert_eq!(after.get("fc.weight").unwrap().shape(), [5, 8]);
    let head = after.get("fc.weight").unwrap().as_f32().unwrap();
    let bound = 1.0 / 8f32.sqrt();
    assert!(
        head.iter().all(|value| value.abs() <= bound) && head.iter().any(|value| value.abs() > bound / 2.0)
    );
    let (rgb, grey) = (before.get("conv1.weight").unwrap(), after.get("conv1.weight").unwrap());
    assert_eq!((rgb.shape(), grey.shape()), (&[4, 3, 3, 3][..], &[4, 1, 3, 3][..]));
    for (rgb, grey) in rgb.as_f32().unwrap().chunks(27).zip(grey.as_f32().unwrap().chunks(9)) {
        for (at, grey) in grey.iter().enumerate() {
            let sum: f64 = (0..3).map(|channel| f64::from(rgb[9 * channel + at])).sum();
            assert!((sum - f64::from(*grey)).abs() < 1e-6, "{sum} {grey}");
        }
    }
    let predictions =
        succeed(&["predict", &folder.text("model"), &folder.text("data/dark/000.png"), "--json"]).json();
    assert_eq!(predictions["predictions"].as_array().unwrap().len(), 5);
    // The same seed gives the same classifier, another one another.
    let bytes = folder.read(file);
    import(&["--num-classes", "5", "--in-chans", "1", "--seed", "3"]);
    assert!(folder.read(file) == bytes);
    import(&["--num-classes", "5", "--in-chans", "1", "--seed", "4"]);
    assert!(folder.read(file) != bytes);
    // A network of one channel cannot become one of three.
    let grey = ["import", &folder.text("model"), &folder.text("rgb"), "--in-chans", "3"];
    refuse(1, &grey, &["model.safetensors", "has 1 input channels", "RGB"]);
}

#[test]
fn a_classifier_of_another_size_is_refused() {
    let folder = trained();
    let config = String::from_utf8(folder.read("run/best/config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let arch = &config["stridenet"]["arch"];
    let mut other = arch.clone();
    other["num_classes"] = json!(7);
    folder.write("seven.json", other.to_string().as_bytes());
    let arguments =
        ["import", &folder.text("run"), &folder.text("model"), "--arch", &folder.text("seven.json")];
    refuse(1, &arguments, &["fc.weight: found [2, 8], expected [7, 8]"]);
    // What the network has not is left out when that is allowed.
    let mut shorter = arch.clone();
    shorter["stages"] = json!([arch["stages"][0]]);
    folder.write("short.json", shorter.to_string().as_bytes());
    let short = ["import", &folder.text("run"), &folder.text("model"), "--arch", &folder.text("short.json")];
    refuse(1, &short, &["that the network has not (layer2.0.bn1.bias"]);
    let more = ["--allow-unused", "--num-classes", "3", "--json"];
    let outcome = succeed(&[&short[..], &more].concat()).json();
    assert!(outcome["account"]["unused"].as_array().unwrap().len() > 10);
    assert!(tensors(&folder, "model/model.safetensors").names().all(|name| !name.starts_with("layer2")));
}

#[test]
fn pytorch_files_are_read_and_what_they_contain_is_never_run() {
    let folder = Folder::new();
    let fixture = |name: &str| format!("{}/../../fixtures/formats/{name}", env!("CARGO_MANIFEST_DIR"));
    for (name, parts) in [
        ("runs.pth", ["runs.pth", "it contains posix.system, which weights do not need"]),
        ("legacy.pth", ["legacy.pth", "before version 1.6"]),
        ("compressed.pth", ["compressed.pth", "is compressed"]),
        ("nonfinite.pth", ["nonfinite.pth", "--allow-nonfinite"]),
        ("small.pth", ["small.pth does not fit resnet18", "conv1.weight"]),
    ] {
        let file = fixture(name);
        refuse(1, &["import", &file, &folder.text("model"), "--arch", "resnet18"], &parts);
        assert!(!folder.path("model").exists());
    }
}

#[test]
fn values_that_are_not_finite_pass_when_allowed() {
    let folder = trained();
    let mut bytes = folder.read("run/best/model.safetensors");
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    folder.write("run/best/model.safetensors", &bytes);
    let import = ["import", &folder.text("run"), &folder.text("model")];
    refuse(1, &import, &["model.safetensors", "NaN or infinite", "(1 value)", "--allow-nonfinite"]);
    assert!(!folder.path("model").exists());
    succeed(&[&import[..], &["--allow-nonfinite"]].concat());
    assert!(folder.read("model/model.safetensors") == bytes);
}

#[test]
fn what_is_no_model_is_refused() {
    let folder = Folder::new();
    folder.write("page.safetensors", b"<!DOCTYPE html><html>");
    folder.write("notes.txt", b"not weights");
    for (file, parts) in [
        ("page.safetensors", ["page.safetensors is a web page", "download the file itself"]),
        ("notes.txt", ["notes.txt is not a file of weights", ".safetensors"]),
        ("absent", ["absent", "there is no such file or folder"]),
    ] {
        refuse(1, &["import", &folder.text(file), &folder.text("model")], &parts);
        refuse(1, &["export", &folder.text(file), &folder.text("model")], &parts);
        assert!(!folder.path("model").exists());
    }
}

#[test]
fn tensors_are_listed_with_the_network_they_fit() {
    let folder = trained();
    let outcome = succeed(&["inspect", &folder.text("run"), "--tensors", "--json"]).json();
    assert_eq!((&outcome["format"], &outcome["arch"]), (&json!("safetensors"), &json!("resnet20")));
    let tensors = outcome["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), outcome["account"]["applied"].as_array().unwrap().len());
    let first = tensors.iter().find(|tensor| tensor["name"] == "conv1.weight").unwrap();
    assert_eq!(
        first,
        &json!({"name": "conv1.weight", "shape": [4, 3, 3, 3], "values": 108, "non_finite": 0})
    );

    let file = format!("{}/../../fixtures/formats/nonfinite.pth", env!("CARGO_MANIFEST_DIR"));
    let answer = succeed(&["inspect", &file, "--tensors"]);
    assert!(answer.stdout.contains("fc.bias") && answer.stdout.contains("2 NaN or infinite"), "{answer:?}");
    assert!(answer.stdout.contains("PyTorch, 1 tensors, 3 values"), "{answer:?}");
    assert!(
        answer.stdout.contains("fits no network") && answer.stdout.contains("layer1.0.conv1.weight"),
        "{answer:?}"
    );
}

#[test]
fn weights_alone_show_the_network() {
    let folder = trained();
    let weights = folder.read("run/best/model.safetensors");
    folder.write("alone/net.safetensors", &weights);
    let import = ["import", &folder.text("alone/net.safetensors"), &folder.text("model"), "--json"];
    let answer = succeed(&import);
    let outcome = answer.json();
    assert_eq!((&outcome["arch"], &outcome["num_classes"]), (&json!("custom"), &json!(2)));
    assert!(
        answer.stderr.contains("there is no config.json") && answer.stderr.contains("strides 1,2"),
        "{answer:?}"
    );
    assert_eq!(outcome["assumptions"].as_array().unwrap().len(), 3);
    assert!(folder.read("model/model.safetensors") == weights);
    // The images' size is what the weights do not show.
    let predict = |model: &str| {
        let arguments = ["predict", model, &folder.text("data/dark/000.png"), "--json", "--img-size", "8"];
        succeed(&arguments).json()["predictions"].clone()
    };
    assert_eq!(predict(&folder.text("alone/net.safetensors")), predict(&folder.text("model")));
    // Without a classifier the number of classes has to be given.
    let headless = [
        "import",
        &folder.text("headless.safetensors"),
        &folder.text("three"),
        "--num-classes",
        "3",
        "--json",
    ];
    let mut state = tensors(&folder, "alone/net.safetensors");
    state.take("fc.weight");
    state.take("fc.bias");
    write_safetensors(&folder.path("headless.safetensors"), &state, &Default::default()).unwrap();
    refuse(
        1,
        &headless[..3],
        &["headless.safetensors does not show its architecture", "there is no fc.weight", "--arch"],
    );
    assert_eq!(succeed(&headless).json()["account"]["reinitialised"], json!(["fc.weight", "fc.bias"]));
}
