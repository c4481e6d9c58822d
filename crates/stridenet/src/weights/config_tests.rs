use super::*;
use serde_json::json;

/// What `timm.models.save_for_hf` (timm 1.0) writes for `create_model('resnet50d', in_chans=3)`.
const FROM_TIMM: &str = r#"{"architecture": "resnet50d", "num_classes": 1000, "num_features": 2048,
"global_pool": "avg", "model_args": {"in_chans": 3, "num_classes": 1000, "global_pool": "avg"},
"pretrained_cfg": {"tag": "ra2_in1k", "custom_load": false, "input_size": [3, 224, 224],
"test_input_size": [3, 288, 288], "fixed_input_size": false, "interpolation": "bicubic", "crop_pct": 0.875,
"test_crop_pct": 0.95, "crop_mode": "center", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
"num_classes": 1000, "pool_size": [7, 7], "first_conv": "conv1.0", "classifier": "fc", "license": "apache-2.0",
"origin_url": "https://github.com/huggingface/pytorch-image-models"}}"#;

fn read(text: &str) -> Result<ModelConfig, WeightsError> {
    ModelConfig::from_json(Path::new("config.json"), text.as_bytes())
}

/// timm's configuration with the value at `pointer` replaced; keys of an object are merged.
fn changed(pointer: &str, value: Value) -> Result<ModelConfig, WeightsError> {
    let mut config: Value = serde_json::from_str(FROM_TIMM).unwrap();
    match (config.pointer_mut(pointer).unwrap(), value) {
        (Value::Object(there), Value::Object(new)) => there.extend(new),
        (there, new) => *there = new,
    }
    read(&config.to_string())
}

fn message(result: Result<ModelConfig, WeightsError>) -> String {
    let message = result.unwrap_err().to_string();
    assert!(message.starts_with("config.json") && !message.contains(char::is_control), "{message:?}");
    message
}

#[test]
fn timms_configuration_is_read_and_written_without_a_loss() {
    let config = read(FROM_TIMM).unwrap();
    assert_eq!((config.architecture.as_str(), config.num_classes), ("resnet50d", 1000));
    assert_eq!(config.num_features, Some(2048));
    let pretrained = &config.pretrained_cfg;
    assert_eq!((pretrained.input_size, pretrained.crop_pct), ([3, 224, 224], 0.875));
    assert_eq!(pretrained.mean, [0.485, 0.456, 0.406]);
    assert_eq!(pretrained.first_conv.as_deref(), Some("conv1.0"));
    assert_eq!(pretrained.other["test_input_size"], json!([3, 288, 288]));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    config.write(&path).unwrap();
    let written: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(written, serde_json::from_str::<Value>(FROM_TIMM).unwrap());
    assert_eq!(ModelConfig::read(&path).unwrap(), config);
}

#[test]
fn numbers_come_back_to_the_bit() {
    let digits =
        "4111111111111111911111111111111111111111111111111111111111111111111111111111111111111111111111";
    let config =
        read(&format!(r#"{{"architecture": "resnet18", "pretrained_cfg": {{}}, "stridenet": {digits}}}"#))
            .unwrap();
    assert_eq!(config.stridenet.as_ref().and_then(Value::as_f64), Some(digits.parse().unwrap()));
    assert_eq!(read(&serde_json::to_string(&config).unwrap()).unwrap(), config);
}

#[test]
fn absent_keys_have_timms_defaults() {
    let config = read(r#"{"architecture": "resnet18", "pretrained_cfg": {"num_classes": 10}}"#).unwrap();
    assert_eq!((config.num_classes, config.label_names.len()), (10, 0));
    let expected = PretrainedConfig { num_classes: 10, ..PretrainedConfig::default() };
    assert_eq!(config.pretrained_cfg, expected);
    let outer = read(r#"{"architecture": "resnet18", "num_classes": 5, "pretrained_cfg": {}}"#).unwrap();
    assert_eq!(outer.pretrained_cfg.num_classes, 5);
}

#[test]
fn label_names_come_in_three_forms() {
    let two = json!({"num_classes": 2, "model_args": {}, "label_names": ["cat", "dog"]});
    assert_eq!(changed("", two).unwrap().label_names, ["cat", "dog"]);
    let ids = json!({"num_classes": 2, "model_args": {}, "label_names": {"1": "dog", "0": "cat"}});
    assert_eq!(changed("", ids).unwrap().label_names, ["cat", "dog"]);
    let inner = r#"{"architecture": "a", "pretrained_cfg": {"num_classes": 1, "label_names": ["cat"]}}"#;
    let config = read(inner).unwrap();
    assert_eq!(config.label_names, ["cat"]);
    assert!(!config.pretrained_cfg.other.contains_key("label_names"));

    let gap = message(changed("", json!({"label_names": {"0": "cat", "7": "dog"}})));
    assert!(gap.contains("label_names with the entry 7: \"dog\", expected the indices 0 to 1"), "{gap}");
    assert!(message(changed("", json!({"label_names": {"0": "a", "00": "b"}}))).contains("index twice"));
    assert!(message(changed("", json!({"label_names": [1]}))).contains("label_names with invalid type"));
}

#[test]
fn the_extension_keeps_its_type() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Extension {
        stages: Vec<usize>,
    }
    let path = Path::new("config.json");
    let mut config = read(FROM_TIMM).unwrap();
    assert_eq!(config.extension::<Extension>(path).unwrap(), None);
    config.set_extension(path, &Extension { stages: vec![3, 4, 6, 3] }).unwrap();
    let again = read(&serde_json::to_string(&config).unwrap()).unwrap();
    assert_eq!(again.extension::<Extension>(path).unwrap(), Some(Extension { stages: vec![3, 4, 6, 3] }));
    let error = again.extension::<Vec<String>>(path).unwrap_err().to_string();
    assert!(error.starts_with("config.json: the key stridenet has invalid type"), "{error}");
}

#[test]
fn text_that_is_not_timms_is_refused_with_its_place() {
    let unfinished = message(read("{\n  \"architecture\": resnet18\n}"));
    assert!(unfinished.contains("line 2 column 19"), "{unfinished}");
    assert!(message(read("")).contains("EOF while parsing a value at line 1"));
    assert!(message(read("{\"architectures\": [\"ResNet\"]}")).contains("missing field `architecture`"));
    assert!(message(read("{\"architecture\": \"a\"}")).contains("missing field `pretrained_cfg`"));
    assert!(message(changed("/pretrained_cfg/crop_pct", json!("big"))).contains("invalid type: string"));
    assert!(message(changed("/pretrained_cfg/input_size", json!([3, 224]))).contains("length 2"));
    assert!(message(changed("/pretrained_cfg/input_size", json!([3, -1, 224]))).contains("`-1`"));
    assert!(message(read(&"[".repeat(100_000))).contains("line 1"));
    let missing = ModelConfig::read(Path::new("nowhere/config.json")).unwrap_err().to_string();
    assert!(missing.starts_with("cannot read nowhere/config.json"), "{missing}");
}

#[test]
fn contradictions_are_refused_with_a_remedy() {
    for (pointer, value, expected) in [
        ("/architecture", json!(""), "architecture is empty; name the network"),
        (
            "",
            json!({"label_names": ["cat"]}),
            "label_names has 1 name, num_classes is 1000; give one name for each class",
        ),
        (
            "/num_classes",
            json!(10),
            "model_args.num_classes is 1000, num_classes is 10; set model_args.num_classes to 10",
        ),
        ("/num_classes", json!(1u64 << 40), "num_classes is 1099511627776, expected 1 to"),
        (
            "/model_args/in_chans",
            json!(1),
            "model_args.in_chans is 1, pretrained_cfg.input_size has 3 channels",
        ),
        (
            "/pretrained_cfg/input_size",
            json!([3, 0, 224]),
            "input_size is [3, 0, 224], expected sizes from 1",
        ),
        ("/pretrained_cfg/input_size", json!([3, 1u64 << 40, 1]), "expected sizes from 1 to 65536"),
        ("/pretrained_cfg/mean", json!([0.5]), "mean has 1 value, input_size has 3 channels; give one mean"),
        ("/pretrained_cfg/std", json!([0.5, 0.5]), "std has 2 values, input_size has 3 channels"),
        (
            "/pretrained_cfg/std",
            json!([0.5, 0.0, 0.5]),
            "std contains 0, expected finite numbers greater than 0",
        ),
        ("/pretrained_cfg/std", json!([0.5, 1e-60, 0.5]), "std contains 0, expected"),
        ("/pretrained_cfg/mean", json!([0.5, 1e60, 0.5]), "number out of range"),
        ("/pretrained_cfg/crop_pct", json!(0), "crop_pct is 0, expected more than 0 and at most 1"),
        ("/pretrained_cfg/crop_pct", json!(15), "crop_pct is 15"),
    ] {
        let message = message(changed(pointer, value));
        assert!(message.contains(expected) && message.contains("; "), "{message}");
    }
    let headless = json!({"num_classes": 0, "pretrained_cfg": {"num_classes": 0}});
    assert!(message(changed("", headless)).contains("num_classes is 0, expected 1 to"));
}

#[test]
fn a_contradiction_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let mut config = read(FROM_TIMM).unwrap();
    config.num_classes = 10;
    let error = config.write(&path).unwrap_err().to_string();
    assert!(error.contains("pretrained_cfg.num_classes is 1000, num_classes is 10"), "{error}");
    assert!(!path.exists());
}
