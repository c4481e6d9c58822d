//! `stridenet evaluate` and `stridenet predict`: what they print, and what agrees with what.

mod common;

use common::{Answer, Folder, command, run, succeed};
use serde_json::Value;
use std::io::Write;
use std::process::Stdio;

/// A folder with `data` (20 images of each of two classes) and `run`, trained on it.
fn trained() -> Folder {
    let folder = Folder::new();
    folder.images("data", 20);
    folder.train("data", "run", &["--epochs", "3"]);
    folder
}

fn lines(answer: &Answer) -> Vec<Value> {
    answer.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn files(answer: &Answer) -> Vec<String> {
    lines(answer).iter().map(|line| line["file"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn evaluate_prints_its_json() {
    let folder = trained();
    let answer = succeed(&["evaluate", &folder.text("run"), &folder.text("data"), "--json"]);
    let result = answer.json();
    assert_eq!(result["model"], folder.text("run"));
    assert_eq!(result["count"], 40);
    assert_eq!((&result["img_size"], &result["interpolation"]), (&8.into(), &"bilinear".into()));
    assert_eq!(result["crop_pct"], 1.0);
    assert!(result["param_count"].is_u64());
    let number = |key: &str| result[key].as_f64().unwrap_or_else(|| panic!("{key} of {result}"));
    assert!(number("loss") >= 0.0);
    for (right, wrong) in [("top1", "top1_err"), ("top5", "top5_err")] {
        assert!((number(right) + number(wrong) - 100.0).abs() < 1e-3, "{result}");
    }
    assert_eq!(number("top5"), 100.0);
    let [low, high] = [0, 1].map(|end| result["top1_ci95"][end].as_f64().unwrap());
    assert!(low <= number("top1") && number("top1") <= high && high <= 100.0, "{result}");
    // Percent, not a share: two such different classes are told apart better than one image in a hundred.
    assert!(number("top1") > 1.0, "{result}");
}

#[test]
fn evaluate_agrees_with_training_and_itself() {
    let folder = Folder::new();
    folder.images("data/train", 20);
    folder.images("data/val", 9);
    let trained = folder.train("data", "run", &["--epochs", "2", "--json"]).json();
    let [run, data] = ["run", "data"].map(|name| folder.text(name));
    let evaluate = |flags: &[&str]| succeed(&[&["evaluate", &run, &data, "--json"], flags].concat()).json();
    let result = evaluate(&[]);
    assert_eq!(result["count"], 18);
    let top1 = |value: &Value| value["top1"].as_f64().unwrap();
    assert!((top1(&result) - top1(&trained)).abs() < 1e-3, "{result} {trained}");
    let summary = String::from_utf8(folder.read("run/summary.csv")).unwrap();
    let best = summary.lines().skip(1).map(|row| row.split(',').nth(4).unwrap().parse::<f64>().unwrap());
    assert!((best.fold(0.0, f64::max) - top1(&result)).abs() < 1e-3, "{summary} {result}");
    for flags in [
        &["-b", "5"][..],
        &["-b", "1", "--workers", "3"],
        &["--threads", "3", "--workers", "0"],
        &["--cache", "0"],
    ] {
        let other = evaluate(flags);
        assert_eq!((&other["top1"], &other["count"]), (&result["top1"], &result["count"]));
        let [loss, expected] = [&other, &result].map(|result| result["loss"].as_f64().unwrap());
        assert!((loss - expected).abs() < 1e-6, "{loss} {expected}");
    }
    let text = succeed(&["evaluate", &run, &data]).stdout;
    assert!(text.contains(&format!("top-1 {:.2} %", top1(&result))), "{text}");
}

#[test]
fn predict_takes_files_folders_globs_and_stdin() {
    let folder = trained();
    let model = folder.text("run");
    let predict = |inputs: &[&str]| succeed(&[&["predict", &model, "--json"], inputs].concat());
    let file = folder.text("data/dark/003.png");
    let answer = predict(&[&file]);
    let [line] = &lines(&answer)[..] else { panic!("{answer:?}") };
    assert_eq!(line["file"], file.as_str());
    let predictions = line["predictions"].as_array().unwrap();
    assert_eq!(predictions.len(), 2);
    let probability = |index: usize| predictions[index]["probability"].as_f64().unwrap();
    assert!(probability(0) >= probability(1) && (probability(0) + probability(1) - 1.0).abs() < 1e-5);
    for prediction in predictions {
        let label = ["dark", "light"][prediction["index"].as_u64().unwrap() as usize];
        assert_eq!(prediction["label"], label);
    }
    let all = files(&predict(&[&folder.text("data")]));
    assert_eq!(all.len(), 40);
    assert!(all.is_sorted(), "{all:?}");
    let globbed = files(&predict(&[&folder.text("data/*/00[0-4].png")]));
    assert_eq!(globbed.len(), 10);
    let mut child = command(&["predict", &model, "--json", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(globbed.join("\n").as_bytes()).unwrap();
    let piped: Answer = child.wait_with_output().unwrap().into();
    assert_eq!((piped.code, files(&piped)), (Some(0), globbed));
    let text = succeed(&["predict", &model, &file, "--topk", "1"]).stdout;
    assert!(text.starts_with(&file) && text.lines().count() == 2, "{text}");
    assert_eq!(lines(&predict(&[&file, "--topk", "1"]))[0]["predictions"].as_array().unwrap().len(), 1);
}

#[test]
fn predict_agrees_with_evaluate() {
    let folder = trained();
    let [model, data] = ["run", "data"].map(|name| folder.text(name));
    let answer = succeed(&["predict", &model, "--json", &data]);
    let right = lines(&answer)
        .iter()
        .filter(|line| {
            line["file"].as_str().unwrap().contains(line["predictions"][0]["label"].as_str().unwrap())
        })
        .count();
    let evaluation = succeed(&["evaluate", &model, &data, "--json"]).json();
    assert!(
        (evaluation["top1"].as_f64().unwrap() - 100.0 * right as f64 / 40.0).abs() < 1e-3,
        "{evaluation}"
    );
}

#[test]
fn a_broken_file_does_not_stop_the_others() {
    let folder = trained();
    folder.write("mixed/b.png", b"no image");
    for (name, brightness) in [("a", 40), ("c", 170)] {
        common::picture(brightness, 99).save(folder.path(&format!("mixed/{name}.png"))).unwrap();
    }
    let [model, mixed, absent] = ["run", "mixed", "absent.png"].map(|name| folder.text(name));
    let answer = run(&["predict", &model, "--json", &mixed, &absent]);
    assert_eq!(answer.code, Some(1), "{answer:?}");
    let lines = lines(&answer);
    let failed: Vec<bool> = lines.iter().map(|line| line["predictions"].is_null()).collect();
    assert_eq!(failed, [false, true, false, true]);
    for line in &lines {
        assert_ne!(line["predictions"].is_null(), line["error"].is_null(), "{line}");
    }
    assert!(lines[1]["error"].as_str().unwrap().contains("b.png is not an image"), "{answer:?}");
    assert!(lines[3]["error"].as_str().unwrap().contains("absent.png does not exist"), "{answer:?}");
    let answer = run(&["predict", &model, &mixed]);
    assert_eq!(answer.code, Some(1));
    assert_eq!(answer.stderr.lines().count(), 1, "{answer:?}");
    assert!(answer.stderr.starts_with("error: ") && answer.stderr.contains("b.png"), "{answer:?}");
    assert!(answer.stdout.contains("a.png") && answer.stdout.contains("c.png"), "{answer:?}");
}

/// A version 1 NPY file of little-endian float32 in C order.
fn npy(shape: &[usize], values: &[f32]) -> Vec<u8> {
    let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
    let mut header =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({},), }}", sizes.join(", "));
    while (header.len() + 11) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    bytes
}

/// Shape and number of values of such a file.
fn npy_shape(bytes: &[u8]) -> (Vec<usize>, usize) {
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..10 + length]).unwrap();
    assert!(header.contains("'<f4'") && header.contains("False"), "{header}");
    let sizes = header.split_once('(').unwrap().1.split_once(')').unwrap().0;
    let shape = sizes.split(',').filter_map(|size| size.trim().parse().ok()).collect();
    (shape, (bytes.len() - 10 - length) / 4)
}

#[test]
fn tensors_become_logits_and_features() {
    let folder = trained();
    let values: Vec<f32> = (0..35 * 3 * 64).map(|index| (index % 17) as f32 / 8.0 - 1.0).collect();
    folder.write("x.npy", &npy(&[35, 3, 8, 8], &values));
    let [model, x, y, features] = ["run", "x.npy", "y.npy", "features"].map(|name| folder.text(name));
    succeed(&["predict", &model, "--tensor", &x, "--logits", &y, "--features", &features]);
    assert_eq!(npy_shape(&folder.read("y.npy")), (vec![35, 2], 70));
    assert_eq!(npy_shape(&folder.read("features/stage1.npy")), (vec![35, 4, 8, 8], 35 * 256));
    assert_eq!(npy_shape(&folder.read("features/stage2.npy")), (vec![35, 8, 4, 4], 35 * 128));
    assert_eq!(folder.files("features").len(), 2);
    let [some, embedding] = ["some", "e.npy"].map(|name| folder.text(name));
    let chosen = ["--features", &some, "--out-indices", "0,2", "--embedding", &embedding];
    succeed(&[&["predict", &model, "--tensor", &x, "--logits", &y][..], &chosen].concat());
    assert_eq!(folder.files("some").len(), 2);
    assert_eq!(folder.read("some/stage2.npy"), folder.read("features/stage2.npy"));
    assert_eq!(npy_shape(&folder.read("some/stage0.npy")).0[..2], [35, 4]);
    assert_eq!(npy_shape(&folder.read("e.npy")), (vec![35, 8], 35 * 8));
    // Images give one row each too, in the order of the predictions, which stay what they are.
    let (images, rows) = (folder.text("data"), folder.text("rows.safetensors"));
    let plain = succeed(&["predict", &model, &images, "--json"]);
    let answer = succeed(&["predict", &model, &images, "--json", "--embedding", &rows]);
    assert_eq!(files(&answer), files(&plain));
    let header = String::from_utf8_lossy(&folder.read("rows.safetensors")).into_owned();
    assert!(header.contains(&format!("\"shape\":[{},8]", files(&plain).len())), "{}", &header[..200]);
    common::refuse(
        2,
        &["predict", &model, "--tensor", &x, "--logits", &y, "--features", &some, "--out-indices", "3"],
        &["--out-indices has 3", "0 (the stem) to 2"],
    );
    common::refuse(
        2,
        &["predict", &model, "--tensor", &x, "--logits", &y, "--embedding", "e.txt"],
        &["e.txt", ".npy or .safetensors"],
    );
    common::refuse(
        1,
        &["predict", &model, "--tensor", &x, "--logits", &y, "--img-size", "16"],
        &["x.npy", "[35, 3, 8, 8]", "[N, 3, 16, 16]", "--img-size"],
    );
    common::refuse(2, &["predict", &model, "--tensor", &x], &["--logits"]);
    folder.write("cut.npy", &npy(&[2, 3, 8, 8], &values[..100]));
    common::refuse(
        1,
        &["predict", &model, "--tensor", &folder.text("cut.npy"), "--logits", &y],
        &["cut.npy"],
    );
}

#[test]
fn a_closed_pipe_ends_predictions_without_error() {
    let folder = trained();
    let mut child = command(&["predict", &folder.text("run"), "--json", &folder.text("data")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let answer: Answer = child.wait_with_output().unwrap().into();
    assert_eq!((answer.code, answer.stderr.as_str()), (Some(0), ""));
}
