//! `stridenet bench --tune`: what is measured is kept, found again under the same conditions, and said.

mod common;

use common::{Answer, Folder, check_refusal, command};
use serde_json::Value;

/// Runs a command with the folder's `cache` as the user's cache.
fn run(folder: &Folder, arguments: &[&str]) -> Answer {
    command(arguments).env("XDG_CACHE_HOME", folder.path("cache")).output().unwrap().into()
}

fn succeed(folder: &Folder, arguments: &[&str]) -> Answer {
    let answer = run(folder, arguments);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    answer
}

/// A short measurement of a preset on images of 8×8 pixels, two at a time on one thread.
const INFER: [&str; 12] = [
    "bench",
    "infer",
    "resnet20",
    "--img-size",
    "8",
    "-b",
    "2",
    "--threads",
    "1",
    "--seconds",
    "0",
    "--json",
];

#[test]
fn a_tuning_is_kept_and_used_under_the_same_conditions_alone() {
    let folder = Folder::new();
    let infer = |flags: &[&str]| succeed(&folder, &[&INFER, flags].concat());
    assert_eq!(infer(&[]).json()["tuned"], false);
    let answer = infer(&["--tune"]);
    assert_eq!(answer.json()["tuned"], true);
    let file = folder.text("cache/stridenet/tuning.json");
    let message = answer.stderr.clone();
    let answer = infer(&["-v"]);
    assert_eq!(answer.json()["tuned"], true);
    assert!(answer.stderr.contains(&format!("uses the algorithms measured in {file}")), "{answer:?}");
    for other in [["-b", "3"], ["--threads", "2"], ["--img-size", "9"]] {
        let mut arguments = INFER;
        let place = arguments.iter().position(|argument| *argument == other[0]).unwrap();
        arguments[place + 1] = other[1];
        assert_eq!(succeed(&folder, &arguments).json()["tuned"], false, "{other:?}");
    }
    let layers = ["bench", "layers", "resnet20", "--img-size", "8", "-b", "2", "--threads", "1", "--json"];
    let reasons = succeed(&folder, &layers).json();
    let measured = |layer: &&Value| layer["reason"] == "measured on this machine";
    // All 3×3 convolutions, and the shortcuts' 1×1 where the level's vectors let them choose.
    let layers = reasons["layers"].as_array().unwrap().iter().filter(measured).count();
    assert!((19..=21).contains(&layers), "{reasons}");
    assert!(message.contains(&format!("measured the algorithms of {layers} layers: {file}")), "{message}");
}

#[test]
fn a_damaged_file_of_tunings_is_named_and_tuning_repairs_it() {
    let folder = Folder::new();
    folder.write("cache/stridenet/tuning.json", b"{\"tunings\": [");
    let file = folder.text("cache/stridenet/tuning.json");
    check_refusal(&run(&folder, &INFER), 1, &[&file, "is not a file of tunings", "delete it", "--tune"]);
    succeed(&folder, &[&INFER[..], &["--tune"]].concat());
    assert_eq!(succeed(&folder, &INFER).json()["tuned"], true);
}

#[test]
fn a_models_tuning_stands_beside_it() {
    let folder = Folder::new();
    folder.images("data", 4);
    folder.train("data", "run", &[]);
    let model = folder.text("run");
    let infer = ["bench", "infer", &model, "--threads", "1", "--seconds", "0", "--json"];
    let answer = succeed(&folder, &[&infer[..], &["--tune"]].concat());
    assert!(answer.stderr.contains(&folder.text("run/best/tuning.json")), "{answer:?}");
    assert!(!folder.path("cache").exists());
    assert_eq!(succeed(&folder, &infer).json()["tuned"], true);
    let evaluate = ["evaluate", &model, &folder.text("data"), "--threads", "1", "-b", "1", "-v"];
    let answer = succeed(&folder, &evaluate);
    assert!(answer.stderr.contains("uses the algorithms measured in"), "{answer:?}");
    folder.train("data", "run", &["--overwrite"]);
    assert_eq!(succeed(&folder, &infer).json()["tuned"], false);
}
