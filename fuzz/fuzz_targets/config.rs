//! Any text is a configuration that can be written and read back, with the same description of a model, or a one-line error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use stridenet::model::Description;
use stridenet::weights::ModelConfig;

fuzz_target!(|bytes: &[u8]| {
    let path = Path::new("config.json");
    let config = match ModelConfig::from_json(path, bytes) {
        Ok(config) => config,
        Err(error) => return assert!(!error.to_string().contains(char::is_control), "{error}"),
    };
    let text = serde_json::to_vec(&config).expect("a configuration is JSON");
    assert_eq!(ModelConfig::from_json(path, &text).expect("what was written is read"), config);
    match Description::from_config(&config, path) {
        Ok(description) => {
            let _ = description.to_config(path);
        }
        Err(error) => assert!(!error.to_string().contains(char::is_control), "{error}"),
    }
});
