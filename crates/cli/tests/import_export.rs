//! `stridenet import` and `stridenet export`: what is read, what is written, and what is refused.

mod common;

use common::{Folder, refuse, succeed};

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
        assert_eq!(outcome["account"][problem], serde_json::json!([]), "{outcome}");
    }
    assert!(folder.read("model/model.safetensors") == original);
    let predict = |model: &str| {
        let answer = succeed(&["predict", &folder.text(model), &folder.text("data/dark/000.png"), "--json"]);
        answer.json()["predictions"].clone()
    };
    assert_eq!(predict("model"), predict("run"));
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
