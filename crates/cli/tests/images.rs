//! How images are prepared: the flags of training, what travels in config.json, EXIF orientations, and `stridenet doctor`.

mod common;

use common::{Folder, check_refusal, refuse, run, succeed};
use serde_json::{Value, json};
use std::path::Path;

/// The path of an image that Pillow wrote.
fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/pixels").join(name);
    path.to_str().unwrap().to_owned()
}

fn trained(flags: &[&str]) -> Folder {
    let folder = Folder::new();
    folder.images("data", 12);
    folder.train("data", "run", flags);
    folder
}

#[test]
fn preprocessing_travels_in_the_configuration_and_augmentation_in_the_options() {
    let preprocess = ["--interpolation", "lanczos", "--crop-pct", "0.9", "--crop-mode", "border"];
    let constants = ["--mean", "0.5,0.25,0.5", "--std", "0.25,0.5,1"];
    let random = ["--scale", "0.5", "0.75", "--ratio", "0.8", "1.25", "--hflip", "0.25", "--vflip", "0.75"];
    let folder = trained(&[&preprocess[..], &constants, &random].concat());
    let config: Value = serde_json::from_slice(&folder.read("run/best/config.json")).unwrap();
    let pretrained = &config["pretrained_cfg"];
    for (key, expected) in [
        ("interpolation", json!("lanczos")),
        ("crop_pct", json!(0.9)),
        ("crop_mode", json!("border")),
        ("mean", json!([0.5, 0.25, 0.5])),
        ("std", json!([0.25, 0.5, 1.0])),
        ("input_size", json!([3, 8, 8])),
    ] {
        assert_eq!(pretrained[key], expected, "{key}");
    }
    let options = String::from_utf8(folder.read("run/args.yaml")).unwrap();
    let random = [r#""scale":[0.5,0.75]"#, r#""ratio":[0.8,1.25]"#, r#""hflip":0.25"#, r#""vflip":0.75"#];
    for part in [&random[..], &["exif: true"]].concat() {
        assert!(options.contains(part), "{part} is not in {options}");
    }
    let answer = succeed(&["evaluate", &folder.text("run"), &folder.text("data"), "--json"]).json();
    assert_eq!(
        (&answer["interpolation"], &answer["crop_pct"], &answer["crop_mode"]),
        (&json!("lanczos"), &json!(0.9), &json!("border"))
    );
}

#[test]
fn other_crops_and_flips_train_other_weights() {
    let weights = |flags: &[&str]| trained(flags).read("run/last/model.safetensors");
    let usual = weights(&[]);
    assert!(usual == weights(&["--hflip", "0.5", "--crop", "pad"]));
    let mut all = vec![usual];
    for flags in [
        &["--vflip", "0.5"][..],
        &["--hflip", "0.1"],
        &["--no-flip"],
        &["--crop", "resized"],
        &["--scale", "0.9", "1"],
        &["--ratio", "1", "1"],
    ] {
        let weights = weights(flags);
        assert!(all.iter().all(|other| *other != weights), "{flags:?}");
        all.push(weights);
    }
}

#[test]
fn wrong_values_are_named() {
    let folder = Folder::new();
    folder.images("data", 4);
    let cases: [(&[&str], &[&str]); 13] = [
        (&["--interpolation", "magic"], &["--interpolation", "magic", "bicubic"]),
        (&["--crop-mode", "round"], &["--crop-mode", "round", "border"]),
        (&["--crop-pct", "0"], &["crop_pct is 0"]),
        (&["--crop-pct", "-1"], &["crop_pct is -1"]),
        (&["--mean", "0.5,x"], &["--mean", "0.5,x"]),
        (&["--mean", "0.5"], &["mean is [0.5]", "3 finite numbers"]),
        (&["--std", "0.5,0,0.5"], &["std is", "above 0"]),
        (&["--scale", "0.5", "2"], &["scale is 0.5 to 2"]),
        (&["--ratio", "2", "1"], &["ratio is 2 to 1"]),
        (&["--hflip", "1.5"], &["hflip is 1.5", "from 0 to 1"]),
        (&["--vflip", "-0.5"], &["vflip is -0.5", "from 0 to 1"]),
        (&["--scale", "0.5", "1", "--crop", "pad"], &["--scale", "--crop resized"]),
        (&["--crop-padding", "2", "--crop", "none"], &["--crop-padding", "--crop pad"]),
    ];
    for (flags, parts) in cases {
        refuse(2, &folder.train_arguments("data", "refused", flags), parts);
        assert!(!folder.path("refused").exists(), "{flags:?}");
    }
    folder.train("data", "run", &[]);
    let out = folder.text("run");
    for flags in [&["--scale", "0.5", "1"][..], &["--vflip", "0.5"], &["--crop-pct", "0.9"]] {
        let arguments = [&["train", "--resume", "--out", &out], flags].concat();
        refuse(2, &arguments, &["cannot change when a run is resumed"]);
    }
    let arguments = ["train", "--resume", "--out", &out, "--no-exif"];
    refuse(2, &arguments, &["exif of the run is true"]);
}

#[test]
fn exif_orientations_are_applied_unless_told_otherwise() {
    let folder = trained(&[]);
    let model = folder.text("run");
    let predict = |file: &str, flags: &[&str]| -> Value {
        let file = fixture(file);
        let arguments = [&["predict", &model, &file, "--json"], flags].concat();
        succeed(&arguments).json()["predictions"].clone()
    };
    // Files with and without the tag hold the same picture, the one lying on its side.
    let (turned, stored) = (predict("rgb8_exif6.png", &[]), predict("rgb8_exif6.png", &["--no-exif"]));
    assert_eq!(stored, predict("rgb8.png", &[]));
    assert_ne!(turned, stored);
    // Training and evaluation take the same way.
    for (name, brightness) in [("dark", 0), ("light", 1)] {
        for index in 0..4 {
            let source =
                ["rgb8_exif6.png", "exif_3.jpg", "exif_6.jpg", "exif_8.jpg"][(index + brightness) % 4];
            let end = source.rsplit_once('.').unwrap().1;
            folder.write(&format!("turned/{name}/{index}.{end}"), &std::fs::read(fixture(source)).unwrap());
        }
    }
    let data = folder.text("turned");
    let loss = |flags: &[&str]| -> f64 {
        let arguments = [&["evaluate", &model, &data, "--json"], flags].concat();
        succeed(&arguments).json()["loss"].as_f64().unwrap()
    };
    assert_ne!(loss(&[]), loss(&["--no-exif"]));
    folder.train("turned", "exif", &["--batch-size", "4"]);
    folder.train("turned", "stored", &["--batch-size", "4", "--no-exif"]);
    assert!(folder.read("exif/last/model.safetensors") != folder.read("stored/last/model.safetensors"));
}

#[test]
fn the_doctor_shows_how_far_wrong_preparations_move_answers() {
    let folder = trained(&["--epochs", "3", "--crop-pct", "0.8"]);
    let model = folder.text("run");
    let inputs = [fixture("rgb8.png"), fixture("large_420.jpg"), fixture("rgb8_exif6.png")];
    let arguments = |flags: &[&str]| -> Vec<String> {
        let mut arguments = vec!["doctor".to_owned(), model.clone()];
        arguments.extend(inputs.iter().cloned());
        arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
        arguments
    };
    let result = succeed(&arguments(&["--json"])).json();
    assert_eq!(
        (&result["count"], &result["failed"], &result["model"]),
        (&json!(3), &json!(0), &json!(model))
    );
    assert_eq!(result["declared"]["crop_pct"], 0.8);
    let ways = result["ways"].as_array().unwrap();
    let way = |name: &str| {
        ways.iter().find(|way| way["name"] == name).unwrap_or_else(|| panic!("{name}: {ways:?}"))
    };
    for name in [
        "bgr",
        "half",
        "raw",
        "unscaled",
        "squash",
        "crop_pct 1.0",
        "crop_pct 0.875",
        "aliased",
        "nearest",
        "bicubic",
        "no exif",
    ] {
        let way = way(name);
        let number = |key: &str| way[key].as_f64().unwrap();
        assert!(number("distance") > 0.0 && number("distance") <= number("farthest"), "{way}");
        assert!(number("farthest") <= 1.0 && (0.0..=100.0).contains(&number("confidence")), "{way}");
    }
    assert!(ways.is_sorted_by(|a, b| a["distance"].as_f64() >= b["distance"].as_f64()), "{ways:?}");
    // Images without a tag do not move.
    let plain = succeed(&["doctor", &model, &inputs[0], "--json"]).json();
    let exif = plain["ways"].as_array().unwrap().iter().find(|way| way["name"] == "no exif").unwrap();
    assert_eq!((&exif["distance"], &exif["changed"]), (&json!(0.0), &json!(0)));
    // A missing file costs its line and the exit code, not the rest.
    let answer = run(&arguments(&["--json", "absent.png"]));
    assert_eq!(answer.code, Some(1));
    assert!(answer.stderr.contains("absent.png does not exist"), "{answer:?}");
    assert_eq!((&answer.json()["failed"], &answer.json()["ways"]), (&json!(1), &result["ways"]));
    let text = succeed(&arguments(&[])).stdout;
    for part in
        ["declared: 8x8, bilinear, crop_pct 0.8, center", "3 images", "bgr: blue and red swapped", "distance"]
    {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    check_refusal(&run(&["doctor", &model]), 2, &["INPUT"]);
    assert!(
        succeed(&["doctor", "--help"]).stdout.contains("Examples:\n  stridenet doctor runs/first photo.jpg")
    );
}
