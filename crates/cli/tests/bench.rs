//! `stridenet bench` and `stridenet inspect --plan`: what they print, and what they refuse.

mod common;

use common::{Answer, Folder, command, refuse, succeed};
use serde_json::{Value, json};

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} of {value}"))
}

#[test]
fn infer_prints_its_json() {
    let arguments = ["bench", "infer", "resnet20", "-b", "3", "--threads", "2", "--seconds", "0", "--json"];
    let result = succeed(&arguments).json();
    assert_eq!((&result["arch"], &result["precision"]), (&json!("resnet20"), &json!("f32")));
    assert_eq!((&result["batch"], &result["threads"]), (&json!(3), &json!(2)));
    assert_eq!((&result["img_size"], &result["param_count"]), (&json!([32, 32]), &json!(272_474)));
    assert!(result["level"].is_string());
    let [median, min] = ["median", "min"].map(|key| number(&result["ms_per_image"], key));
    assert!(0.0 < min && min <= median, "{result}");
    assert!((number(&result, "images_per_second") * median / 1e3 - 1.0).abs() < 1e-6, "{result}");
    assert!((number(&result, "gmacs") - 0.0408).abs() < 0.0005, "{result}");
    assert!(number(&result, "load_ms") > 0.0);
    if cfg!(target_os = "linux") {
        assert!((1.0..1e4).contains(&number(&result, "peak_rss_mb")), "{result}");
    }
}

#[test]
fn train_prints_its_json() {
    let small =
        ["bench", "train", "resnet20", "-b", "4", "--img-size", "16", "--threads", "2", "--seconds", "0"];
    let result = succeed(&[&small[..], &["--json"]].concat()).json();
    assert_eq!((&result["arch"], &result["precision"]), (&json!("resnet20"), &json!("f32")));
    assert_eq!((&result["batch"], &result["threads"]), (&json!(4), &json!(2)));
    assert_eq!(result["img_size"], json!([16, 16]));
    let [median, min] = ["median", "min"].map(|key| number(&result["ms_per_step"], key));
    assert!(0.0 < min && min <= median, "{result}");
    assert!((number(&result, "images_per_second") * median / 4e3 - 1.0).abs() < 1e-6, "{result}");
    assert_eq!(result["recompute"], json!(false));
    let halves = [&small[..], &["--json", "--amp", "bf16", "--recompute"]].concat();
    let other = succeed(&halves).json();
    assert_eq!((&other["precision"], &other["recompute"]), (&json!("bf16"), &json!(true)));
    let without: Answer = command(&halves).env("STRIDENET_BF16", "off").output().unwrap().into();
    assert!(without.code == Some(0) && without.stderr.contains("takes longer than f32 here"), "{without:?}");
    let answer = succeed(&[&small[..], &["-v"]].concat());
    assert_eq!(answer.stdout.lines().count(), 1, "{answer:?}");
    assert!(answer.stdout.contains("ms a step"), "{answer:?}");
    assert!(answer.stdout.contains("MiB at most") || !cfg!(target_os = "linux"), "{answer:?}");
    assert!(answer.stderr.contains("the loss of the measured batch fell"), "{answer:?}");
}

#[test]
fn infer_prints_one_line_and_says_that_it_checked() {
    let answer = succeed(&["bench", "infer", "resnet20", "--img-size", "16x24", "--seconds", "0", "-v"]);
    assert_eq!(answer.stdout.lines().count(), 1, "{answer:?}");
    for part in ["resnet20 at 16x24, batch 1", "ms an image", "images a second"] {
        assert!(answer.stdout.contains(part), "{answer:?}");
    }
    assert!(answer.stderr.contains("agree with the unfused network"), "{answer:?}");
}

#[test]
fn a_model_is_measured_with_its_own_weights() {
    let folder = Folder::new();
    folder.images("data", 10);
    folder.train("data", "run", &[]);
    let result = succeed(&["bench", "infer", &folder.text("run"), "--seconds", "0", "--json"]).json();
    assert_eq!(result["img_size"], json!([8, 8]));
    assert!(number(&result, "param_count") < 2000.0, "{result}");
    let plan = succeed(&["inspect", &folder.text("run"), "--plan", "--json"]).json();
    assert_eq!(plan["steps"].as_array().unwrap().last().unwrap()["output"], json!([1, 1, 2]));
}

#[test]
fn layers_prints_its_json_and_draws() {
    let folder = Folder::new();
    let svg = folder.text("layers.svg");
    let answer = succeed(&["bench", "layers", "resnet20", "-b", "2", "--json", "--svg", &svg]);
    let result = answer.json();
    let layers = result["layers"].as_array().unwrap();
    // 19 convolutions of 3×3, two projections, the pool and the head.
    assert_eq!(layers.len(), 23);
    for layer in layers {
        assert!(layer["name"].is_string() && layer["algorithm"].is_string(), "{layer}");
        for key in ["ms", "share", "gflops", "of_floor"] {
            assert!(number(layer, key) >= 0.0, "{key} of {layer}");
        }
    }
    let sum = |key: &str| layers.iter().map(|layer| number(layer, key)).sum::<f64>();
    assert!((sum("share") - 100.0).abs() < 1e-6 && (sum("ms") - number(&result, "ms")).abs() < 1e-6);
    let machine = &result["machine"];
    assert!(number(machine, "peak_flops") > 1e8 && number(machine, "read_bandwidth") > 1e8, "{machine}");
    let drawing = String::from_utf8(folder.read("layers.svg")).unwrap();
    assert!(drawing.starts_with("<svg") && drawing.ends_with("</svg>\n"), "{drawing}");
    for part in ["resnet20, batch 2", "peak", "layer", "GFLOP/s"] {
        assert!(drawing.contains(part), "{part} is not in {drawing}");
    }
}

#[test]
fn layers_prints_a_table() {
    let answer = succeed(&["bench", "layers", "resnet20", "--threads", "1"]);
    let lines: Vec<&str> = answer.stdout.lines().collect();
    assert!(lines[0].starts_with("resnet20, batch 1, 1 threads"), "{answer:?}");
    assert_eq!(lines.len(), 2 + 23 + 1, "{answer:?}");
    assert!(lines[2].starts_with("conv1") && lines[25].starts_with("sum"), "{answer:?}");
}

#[test]
fn a_plan_can_be_inspected() {
    let plan =
        |flags: &[&str]| succeed(&[&["inspect", "resnet20", "--plan", "--json"], flags].concat()).json();
    let one = plan(&[]);
    let steps = one["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 23);
    for step in steps {
        for key in ["name", "algorithm", "reason"] {
            assert!(step[key].as_str().is_some_and(|text| !text.is_empty()), "{key} of {step}");
        }
        for key in ["input", "output"] {
            assert_eq!(step[key].as_array().map(Vec::len), Some(3), "{key} of {step}");
        }
    }
    assert_eq!((&steps[0]["name"], &steps[0]["output"]), (&json!("conv1"), &json!([32, 32, 16])));
    let weights: f64 = steps.iter().map(|step| number(step, "weight_bytes")).sum();
    assert_eq!(number(&one, "weight_bytes"), weights);
    assert!(weights >= 4.0 * 270_000.0, "{weights}");
    let many = plan(&["-b", "8"]);
    assert_eq!((&one["batch"], &many["batch"]), (&json!(1), &json!(8)));
    assert!(number(&many, "activation_bytes") > number(&one, "activation_bytes"));
    let text = succeed(&["inspect", "resnet20", "--plan", "--img-size", "16"]).stdout;
    assert!(text.contains("16x16x3") && text.contains("direct"), "{text}");
    assert!(text.lines().last().unwrap().starts_with("23 steps, weights "), "{text}");
}

#[test]
fn wrong_arguments_are_refused() {
    let folder = Folder::new();
    for command in ["infer", "layers"] {
        refuse(2, &["bench", command, "resnet21"], &["resnet21", "nearest are"]);
        refuse(2, &["bench", command, "resnet20", "-b", "0"], &["--batch-size", "0"]);
        refuse(2, &["bench", command], &["NETWORK"]);
    }
    refuse(2, &["bench"], &["no command"]);
    refuse(2, &["bench", "infer", "resnet20", "--seconds", "-1"], &["seconds"]);
    refuse(2, &["bench", "infer", "resnet20", "--seconds", "soon"], &["soon", "expected seconds"]);
    refuse(1, &["bench", "infer", "absent.json"], &["absent.json"]);
    let absent = folder.text("absent/layers.svg");
    refuse(1, &["bench", "layers", "resnet20", "--svg", &absent], &["absent/layers.svg"]);
    refuse(2, &["inspect", "resnet20", "-b", "4"], &["--plan"]);
    refuse(2, &["inspect", "resnet20", "--plan", "-b", "0"], &["--batch-size", "0"]);
}
