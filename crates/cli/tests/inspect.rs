//! `stridenet inspect`: counts that the literature knows, the JSON, the drawing.

mod common;

use common::{Folder, TINY, command, refuse, succeed};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::Stdio;

fn inspect(arguments: &[&str]) -> Value {
    succeed(&[&["inspect", "--json"], arguments].concat()).json()
}

#[test]
fn presets_have_the_published_counts() {
    let resnet18 = inspect(&["resnet18"]);
    assert_eq!((&resnet18["param_count"], &resnet18["macs"]), (&11_689_512.into(), &1_814_073_344.into()));
    let resnet50 = inspect(&["resnet50"]);
    assert_eq!(resnet50["param_count"], 25_557_032);
    let gmacs = resnet50["macs"].as_f64().unwrap() / 1e9;
    assert!((gmacs - 4.09).abs() < 0.005, "{gmacs}");
    // 0.27 million in table 6 of the paper; the projections instead of zero padding add 2,752.
    assert_eq!(inspect(&["resnet20", "--shortcut", "zero-pad"])["param_count"], 269_722);
    assert_eq!(inspect(&["resnet20"])["param_count"], 272_474);
    assert_eq!(inspect(&["resnext50_32x4d"])["param_count"], 25_028_904);
}

#[test]
fn json_has_its_schema() {
    let summary = inspect(&["resnet18"]);
    assert!(summary["activations"].as_u64().is_some_and(|count| count > 0));
    let layers = summary["layers"].as_array().unwrap();
    for layer in layers {
        assert!(layer["name"].is_string() && layer["kind"].is_string(), "{layer}");
        for key in ["input", "output", "kernel", "stride"] {
            assert!(
                layer[key].as_array().is_some_and(|sizes| sizes.iter().all(Value::is_u64)),
                "{key} of {layer}"
            );
        }
        for key in ["param_count", "macs", "receptive_field", "jump"] {
            assert!(layer[key].is_u64(), "{key} of {layer}");
        }
    }
    let sum = |key: &str| layers.iter().map(|layer| layer[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!(
        (Some(sum("param_count")), Some(sum("macs"))),
        (summary["param_count"].as_u64(), summary["macs"].as_u64())
    );
    let stem = &layers[0];
    assert_eq!((&stem["name"], &stem["output"]), (&"conv1".into(), &json!([64, 112, 112])));
    assert_eq!((&stem["kernel"], &stem["stride"]), (&json!([7, 7]), &json!([2, 2])));
    assert_eq!((&stem["receptive_field"], &stem["jump"]), (&7.into(), &2.into()));
    // Known from the literature: the receptive field of ResNet-18 is 435 pixels.
    let last = layers.iter().rfind(|layer| layer["kind"] == "conv").unwrap();
    assert_eq!((&last["receptive_field"], &last["jump"]), (&435.into(), &32.into()));
}

#[test]
fn flags_change_the_network() {
    let tiny = inspect(&[&["resnet20"], &TINY[..6], &["--in-chans", "1", "--img-size", "12x8"]].concat());
    assert_eq!(tiny["img_size"], json!([12, 8]));
    assert_eq!(tiny["layers"][0]["output"], json!([4, 12, 8]));
    assert!(tiny["param_count"].as_u64().unwrap() < 2000);
    let blurred = inspect(&["resnet18", "--downsample", "blur-pool"]);
    assert_eq!(blurred["param_count"], 11_689_512);
    assert!(blurred["macs"].as_u64() > inspect(&["resnet18"])["macs"].as_u64());
}

#[test]
fn a_model_can_be_inspected() {
    let folder = Folder::new();
    folder.images("data", 10);
    folder.train("data", "run", &[]);
    let summary = inspect(&[&folder.text("run")]);
    let evaluation = succeed(&["evaluate", "--json", &folder.text("run"), &folder.text("data")]).json();
    assert_eq!(summary["param_count"], evaluation["param_count"]);
    assert_eq!(summary["layers"].as_array().unwrap().last().unwrap()["output"], json!([2, 1, 1]));
    refuse(2, &["inspect", &folder.text("run"), "--widths", "8,8"], &["run", "--img-size"]);
}

#[test]
fn the_table_is_text() {
    let answer = succeed(&["inspect", "resnet20"]);
    assert!(answer.stdout.contains("layer3.2.conv2") && answer.stdout.contains("272"), "{answer:?}");
    assert!(answer.stderr.is_empty(), "{answer:?}");
}

#[test]
fn the_drawing_is_well_formed() {
    let folder = Folder::new();
    succeed(&["inspect", "resnet50", "--svg", &folder.text("net.svg")]);
    let svg = String::from_utf8(folder.read("net.svg")).unwrap();
    assert!(svg.starts_with("<svg") || svg.starts_with("<?xml"), "{}", &svg[..60]);
    // Every element that is opened is closed, in order.
    let mut open = Vec::new();
    for tag in svg.split('<').skip(1) {
        let (tag, text) = tag.split_once('>').unwrap();
        assert!(!text.contains('>'), "{text}");
        let name = tag.trim_start_matches('/').split(|c: char| c.is_whitespace() || c == '/').next().unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !tag.ends_with('/') && !tag.starts_with(['?', '!']) {
            open.push(name);
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
    }
    assert!(open.is_empty(), "{open:?}");
    refuse(1, &["inspect", "resnet18", "--svg", &folder.text("absent/net.svg")], &["absent/net.svg"]);
}

#[test]
fn an_unknown_name_gets_a_suggestion() {
    refuse(2, &["inspect", "resnet5"], &["resnet5", "nearest are resnet"]);
    refuse(2, &["inspect", "rasnet18"], &["rasnet18", "nearest are resnet18"]);
    refuse(1, &["inspect", "absent.json"], &["absent.json"]);
    refuse(2, &["inspect", "resnet18", "--strides", "1,2"], &["strides", "all three"]);
}

#[test]
fn a_closed_pipe_is_no_error() {
    let mut child =
        command(&["inspect", "resnet152"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::with_capacity(1, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(!line.is_empty());
    let answer: common::Answer = child.wait_with_output().unwrap().into();
    assert_eq!((answer.code, answer.stderr.as_str()), (Some(0), ""));
}
