//! `stridenet train`: the run's folder, resuming to the same bits, interruptions.

mod common;

use common::{Answer, Folder, check_refusal, command, refuse, run, succeed, tiny};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const WEIGHTS: &str = "last/model.safetensors";

#[test]
fn a_run_writes_its_folder() {
    let folder = Folder::new();
    folder.images("data", 20);
    let answer = folder.train("data", "run", &["--epochs", "3"]);
    assert!(answer.stdout.contains("top-1") && answer.stdout.contains("report"), "{answer:?}");
    let options = String::from_utf8(folder.read("run/args.yaml")).unwrap();
    for line in ["epochs: 3", "batch_size: 8", "seed: 42", "sched: \"cosine\""] {
        assert!(options.lines().any(|found| found == line), "{line} is not in {options}");
    }
    let summary = String::from_utf8(folder.read("run/summary.csv")).unwrap();
    let rows: Vec<Vec<&str>> = summary.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(rows.len(), 4, "{summary}");
    assert_eq!(&rows[0][..6], ["epoch", "train_loss", "train_top1", "eval_loss", "eval_top1", "eval_top5"]);
    for (index, row) in rows[1..].iter().enumerate() {
        assert_eq!(row[0], (index + 1).to_string());
        assert_eq!(row.len(), rows[0].len());
        assert!(row.iter().all(|value| value.parse::<f64>().is_ok_and(f64::is_finite)), "{row:?}");
    }
    let events = String::from_utf8(folder.read("run/events.jsonl")).unwrap();
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len(), 3);
    assert!(events.iter().all(|event| event["event"] == "epoch"), "{events:?}");
    for model in ["last", "best"] {
        let config: Value =
            serde_json::from_slice(&folder.read(&format!("run/{model}/config.json"))).unwrap();
        assert_eq!(config["architecture"], "resnet20");
        assert_eq!(config["num_classes"], 2);
        assert_eq!(config["num_features"], 8);
        assert_eq!(config["label_names"], serde_json::json!(["dark", "light"]));
        let pretrained = &config["pretrained_cfg"];
        assert_eq!(pretrained["input_size"], serde_json::json!([3, 8, 8]));
        assert_eq!((&pretrained["first_conv"], &pretrained["classifier"]), (&"conv1".into(), &"fc".into()));
        for key in ["interpolation", "crop_pct", "crop_mode", "mean", "std"] {
            assert!(!pretrained[key].is_null(), "{key} is not in {pretrained}");
        }
        assert!(folder.path(&format!("run/{model}/model.safetensors")).is_file());
    }
    assert!(folder.path("run/state/checkpoint.safetensors").is_file());
    let report = String::from_utf8(folder.read("run/report.html")).unwrap();
    assert!(report.contains("<html") && report.contains("<svg") && report.trim_end().ends_with("</html>"));
    no_temporaries(&folder, "run");
}

#[test]
fn json_is_one_object_alone() {
    let folder = Folder::new();
    folder.images("data", 10);
    let result = folder.train("data", "run", &["--json"]).json();
    assert_eq!(result["complete"], true);
    assert_eq!((&result["epochs"], &result["best_epoch"]), (&1.into(), &1.into()));
    assert_eq!(result["out"], folder.text("run"));
    for key in ["top1", "top5", "loss", "seconds"] {
        assert!(result[key].is_f64(), "{key} of {result}");
    }
    assert!(Path::new(result["report"].as_str().unwrap()).is_file());
    let answer = folder.train("data", "quiet", &["--quiet", "--json"]);
    assert!(answer.stderr.is_empty(), "{answer:?}");
}

#[test]
fn an_existing_run_is_refused_replaced_or_resumed() {
    let folder = Folder::new();
    folder.images("data", 10);
    folder.train("data", "run", &[]);
    let before = folder.read("run/state/checkpoint.safetensors");
    refuse(1, &folder.train_arguments("data", "run", &[]), &[&folder.text("run"), "--overwrite", "--resume"]);
    assert_eq!(folder.read("run/state/checkpoint.safetensors"), before);
    folder.train("data", "run", &["--overwrite", "--seed", "7"]);
    assert_ne!(folder.read("run/state/checkpoint.safetensors"), before);
    let out = folder.text("run");
    let result = succeed(&["train", "--resume", "--out", &out, "--epochs", "2", "--json"]).json();
    assert_eq!((&result["complete"], &result["epochs"]), (&true.into(), &2.into()));
    let summary = String::from_utf8(folder.read("run/summary.csv")).unwrap();
    assert_eq!(summary.lines().count(), 3, "{summary}");
    refuse(2, &["train", "--resume", "--out", &out, "--lr", "0.5"], &["lr", "0.5", "0.1"]);
    refuse(1, &["train", "--resume", "--out", &folder.text("absent")], &["absent", "--resume"]);
    assert!(!folder.path("absent").exists());
}

#[test]
fn a_run_that_goes_on_with_other_arithmetic_says_so() {
    let folder = Folder::new();
    folder.images("data", 10);
    folder.train("data", "run", &[]);
    let out = folder.text("run");
    let arguments = String::from_utf8(folder.read("run/args.yaml")).unwrap();
    let resume = |epochs: &str, level: Option<&str>| {
        let mut command = command(&["train", "--resume", "--out", &out, "--epochs", epochs]);
        let answer: Answer =
            command.envs(level.map(|level| ("STRIDENET_LEVEL", level))).output().unwrap().into();
        assert_eq!(answer.code, Some(0), "{answer:?}");
        answer.stderr.contains("its last bits will differ")
    };
    assert!(!resume("2", None), "the same arithmetic");
    assert_eq!(resume("3", Some("scalar")), !arguments.contains("level: \"scalar\""), "{arguments}");
    assert!(!resume("4", Some("scalar")), "the same arithmetic as last");
}

#[test]
fn a_folder_that_is_no_run_is_not_overwritten() {
    let folder = Folder::new();
    folder.images("data", 10);
    folder.write("mine/thesis.tex", b"years of work");
    refuse(1, &folder.train_arguments("data", "mine", &["--overwrite"]), &["mine", "thesis.tex", "--out"]);
    assert_eq!(folder.read("mine/thesis.tex"), b"years of work");
}

fn start(arguments: &[String]) -> Child {
    command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

fn wait_for(what: impl Fn() -> bool) {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < Duration::from_secs(60), "nothing happened");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn no_temporaries(folder: &Folder, name: &str) {
    let files = folder.files(name);
    assert!(files.iter().all(|file| file.extension().is_none_or(|end| end != "tmp")), "{files:?}");
}

/// The last event of a run that may just have begun to write its first one.
fn last_event_yet(folder: &Folder, run: &str) -> Option<Value> {
    let events = String::from_utf8(folder.read(&format!("{run}/events.jsonl"))).unwrap();
    events.lines().last().map(|line| serde_json::from_str(line).unwrap())
}

fn last_event(folder: &Folder, run: &str) -> Value {
    last_event_yet(folder, run).unwrap()
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_bits() {
    interrupt(&[]);
}

#[test]
fn an_interrupted_run_keeps_moments_and_averages() {
    interrupt(&EVERYTHING);
}

/// Each part of the optimizer that has something to remember, and mixed precision.
const EVERYTHING: [&str; 10] =
    ["--opt", "lamb", "--accumulate", "2", "--clip-norm", "0.5", "--ema-decay", "0.9", "--amp", "bf16"];

/// Interrupts a run in its first epoch and in its second, goes on each time, and compares with a run in one go.
fn interrupt(recipe: &[&str]) {
    let folder = Folder::new();
    folder.idx("data", 3000, 16);
    // An epoch takes about a second.
    let drops = ["--drop-path", "0.3", "--drop-block", "0.2"];
    let flags = [&["--epochs", "2", "--batch-size", "4", "--img-size", "16"], &drops[..], recipe].concat();
    let arguments = |out: &str| folder.train_arguments("data", out, &flags);
    succeed(&arguments("straight"));
    let config: Value = serde_json::from_slice(&folder.read("straight/best/config.json")).unwrap();
    assert_eq!(
        (&config["model_args"]["drop_path_rate"], &config["model_args"]["drop_block_rate"]),
        (&0.3.into(), &0.2.into())
    );
    let out = folder.text("run");

    let child = start(&arguments("run"));
    wait_for(|| folder.path("run/args.yaml").exists());
    std::thread::sleep(Duration::from_millis(30));
    signal(&child, "-INT");
    let answer: Answer = child.wait_with_output().unwrap().into();
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert!(answer.stdout.contains("--resume"), "{answer:?}");
    let event = last_event(&folder, "run");
    assert_eq!((&event["event"], &event["epoch"]), (&"stopped".into(), &0.into()), "{event}");
    assert!(event["step"].as_u64().unwrap() > 0, "{event}");
    assert_ne!(folder.read(&format!("run/{WEIGHTS}")), folder.read(&format!("straight/{WEIGHTS}")));

    let child = start(&["train", "--resume", "--json", "--out", &out].map(str::to_owned));
    wait_for(|| last_event(&folder, "run")["event"] == "epoch");
    std::thread::sleep(Duration::from_millis(20));
    signal(&child, "-INT");
    let answer: Answer = child.wait_with_output().unwrap().into();
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert_eq!(answer.json()["complete"], false);
    let event = last_event(&folder, "run");
    assert_eq!((&event["event"], &event["epoch"]), (&"stopped".into(), &1.into()), "{event}");

    let result = succeed(&["train", "--resume", "--json", "--threads", "1", "--out", &out]).json();
    assert_eq!(result["complete"], true);
    for file in [WEIGHTS, "best/model.safetensors", "best/config.json"] {
        let [resumed, straight] = ["run", "straight"].map(|run| folder.read(&format!("{run}/{file}")));
        assert!(resumed == straight, "{file} differs");
    }
    no_temporaries(&folder, "run");
}

#[test]
fn a_killed_run_leaves_whole_checkpoints() {
    let folder = Folder::new();
    folder.idx("data", 400, 8);
    for milliseconds in [0, 7, 40] {
        let run_name = format!("run{milliseconds}");
        let mut child = start(&folder.train_arguments("data", &run_name, &["--epochs", "1000"]));
        wait_for(|| folder.path(&format!("{run_name}/events.jsonl")).exists());
        std::thread::sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
        for model in ["last", "best"] {
            let model = folder.text(&format!("{run_name}/{model}"));
            succeed(&["evaluate", &model, &folder.text("data"), "--json"]);
        }
        // Killed between making the file and writing to it, the run has no event.
        let done =
            last_event_yet(&folder, &run_name).map_or(0, |event| event["row"]["epoch"].as_u64().unwrap());
        let out = folder.text(&run_name);
        // The state may be an epoch ahead of the events, never behind.
        let epochs = (done + 2).to_string();
        let result = succeed(&["train", "--resume", "--out", &out, "--epochs", &epochs, "--json"]).json();
        assert_eq!(result["epochs"].as_u64(), Some(done + 2));
        no_temporaries(&folder, &run_name);
        folder.train("data", &run_name, &["--overwrite"]);
    }
}

#[test]
fn a_temporary_of_a_killed_run_does_not_stand_in_the_way() {
    let folder = Folder::new();
    folder.images("data", 10);
    folder.train("data", "run", &[]);
    for place in ["run/.stridenet-abc.tmp", "run/last/.stridenet-abc.tmp", "run/state/.stridenet-abc.tmp"] {
        folder.write(place, b"half");
    }
    succeed(&["train", "--resume", "--out", &folder.text("run"), "--epochs", "2"]);
    no_temporaries(&folder, "run");
    folder.write("run/.stridenet-abc.tmp", b"half");
    folder.train("data", "run", &["--overwrite"]);
    no_temporaries(&folder, "run");
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let folder = Folder::new();
    folder.idx("data", 100, 16);
    let bottleneck = [
        "--block",
        "bottleneck",
        "--groups",
        "2",
        "--base-width",
        "64",
        "--widths",
        "8,16",
        "--downsample",
        "blur-pool",
        "--workers",
        "2",
        "--drop-path",
        "0.3",
        "--drop-block",
        "0.2",
    ];
    // So wide that every algorithm of training has its part.
    let halves = ["--block", "bottleneck", "--widths", "64,128", "--amp", "bf16"];
    let singles = &halves[..4];
    let mut first = HashMap::new();
    for (name, shape) in [
        ("basic", &[][..]),
        ("bottleneck", &bottleneck[..]),
        ("averaged", &EVERYTHING[..]),
        ("singles", singles),
        ("halves", &halves[..]),
    ] {
        let mut arguments = vec!["train".to_owned(), folder.text("data")];
        arguments.extend(tiny(shape));
        let weights = ["1", "2", "3", "8"].map(|threads| {
            let out = format!("{name}-{threads}");
            let more = ["--threads", threads, "--out", &folder.text(&out)].map(str::to_owned);
            succeed(&[arguments.as_slice(), &more].concat());
            folder.read(&format!("{out}/{WEIGHTS}"))
        });
        assert!(weights.iter().all(|found| *found == weights[0]), "{name} depends on the number of threads");
        first.insert(name, weights.into_iter().next());
    }
    assert!(first["halves"] != first["singles"], "--amp bf16 changes nothing");
}

#[test]
fn computing_blocks_again_changes_no_bit_and_can_begin_in_the_middle() {
    let folder = Folder::new();
    folder.idx("data", 100, 16);
    let drops = ["--drop-path", "0.3", "--drop-block", "0.2", "--epochs", "2", "--depths", "2,2"];
    for (name, precision) in [("f32", &[][..]), ("bf16", &["--block", "bottleneck", "--amp", "bf16"])] {
        let train = |out: &str, more: &[&str]| {
            folder.train("data", out, &[&drops[..], precision, more].concat());
            let events = String::from_utf8(folder.read(&format!("{out}/events.jsonl"))).unwrap();
            let rows = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["row"].take());
            let losses = rows.map(|row| [row["train_loss"].clone(), row["val_loss"].clone()]);
            (folder.read(&format!("{out}/{WEIGHTS}")), losses.collect::<Vec<_>>())
        };
        let (weights, losses) = train(&format!("{name}-kept"), &[]);
        assert_eq!(losses.len(), 2);
        let (found, others) = train(&format!("{name}-computed"), &["--recompute"]);
        assert!(found == weights && others == losses, "{name} differs: {others:?}, {losses:?}");
        train(&format!("{name}-both"), &[]);
        let resume = |out: &str, more: &[&str]| {
            let path = folder.text(&format!("{name}-{out}"));
            succeed(&[&["train", "--resume", "--epochs", "3", "--out", &path], more].concat());
            folder.read(&format!("{name}-{out}/{WEIGHTS}"))
        };
        let resumed = resume("kept", &[]);
        assert!(resumed != weights && resume("both", &["--recompute"]) == resumed, "{name} differs resumed");
    }
}

#[test]
fn how_images_are_loaded_changes_no_bit() {
    let folder = Folder::new();
    folder.images("data", 20);
    let crop = ["--crop", "resized"];
    folder.train("data", "usual", &crop);
    let expected = folder.read(&format!("usual/{WEIGHTS}"));
    for (cache, bytes, workers) in
        [("0", 0, "0"), ("0", 0, "3"), ("1.5KiB", 1536, "1"), ("2GiB", 1u64 << 31, "0")]
    {
        let out = format!("run-{cache}-{workers}");
        folder.train("data", &out, &[&crop[..], &["--cache", cache, "--workers", workers]].concat());
        assert!(folder.read(&format!("{out}/{WEIGHTS}")) == expected, "--cache {cache} --workers {workers}");
        let options = String::from_utf8(folder.read(&format!("{out}/args.yaml"))).unwrap();
        assert!(options.contains(&format!("\ncache: {bytes}\n")), "{options}");
    }
    let out = folder.text("usual");
    let resume =
        ["train", "--resume", "--out", &out, "--epochs", "2", "--cache", "0", "--workers", "0", "--json"];
    let result = succeed(&resume).json();
    assert_eq!(result["epochs"], 2);
    let seconds = ["waited_seconds", "train_seconds"].map(|key| result[key].as_f64().unwrap());
    assert!(0.0 < seconds[0] && seconds[0] < seconds[1], "{result}");
}

#[test]
fn the_seed_is_the_only_chance() {
    let folder = Folder::new();
    folder.images("data", 10);
    let weights = [("a", "1"), ("b", "1"), ("c", "2")].map(|(out, seed)| {
        folder.train("data", out, &["--seed", seed]);
        folder.read(&format!("{out}/{WEIGHTS}"))
    });
    assert!(weights[0] == weights[1] && weights[0] != weights[2]);
}

#[test]
fn what_is_dropped_changes_training_and_must_be_possible() {
    let folder = Folder::new();
    folder.images("data", 10);
    let none: [&str; 0] = [];
    folder.train("data", "all", &none);
    for flag in ["--drop-path", "--drop-block"] {
        folder.train("data", flag, &[flag, "0.5"]);
        assert_ne!(
            folder.read(&format!("{flag}/{WEIGHTS}")),
            folder.read(&format!("all/{WEIGHTS}")),
            "{flag}"
        );
        refuse(2, &folder.train_arguments("data", "refused", &[flag, "1"]), &[flag, "1"]);
    }
    let pre = ["--order", "pre-activation", "--drop-block", "0.5"];
    refuse(2, &folder.train_arguments("data", "refused", &pre), &["--drop-block", "pre-activation"]);
    assert!(!folder.path("refused").exists());
}

#[test]
fn a_resumed_run_keeps_its_architecture() {
    let folder = Folder::new();
    folder.images("data", 10);
    folder.train("data", "run", &[]);
    let answer = run(&["train", "--resume", "--out", &folder.text("run"), "--widths", "8,8"]);
    check_refusal(&answer, 2, &["architecture", "resumed"]);
}

#[test]
fn a_described_architecture_keeps_its_channels() {
    let folder = Folder::new();
    folder.images("data", 10);
    let arch = |run: &str| {
        let config: Value = serde_json::from_slice(&folder.read(&format!("{run}/best/config.json"))).unwrap();
        config["stridenet"]["arch"].clone()
    };
    folder.train("data", "flag", &["--in-chans", "4"]);
    assert_eq!(arch("flag")["in_channels"], 4);
    folder.write("four.json", arch("flag").to_string().as_bytes());
    let (data, four, out) = (folder.text("data"), folder.text("four.json"), folder.text("described"));
    succeed(&["train", &data, "--arch", &four, "--out", &out, "--epochs", "1", "--batch-size", "8"]);
    assert_eq!(arch("described"), arch("flag"));
}

#[test]
fn optimizers_are_chosen_and_recorded() {
    let folder = Folder::new();
    folder.images("data", 20);
    let flags = ["--opt", "adamw", "--opt-betas", "0.8,0.99", "--opt-eps", "1e-6", "--clip-grad", "1e-3"];
    folder.train("data", "adamw", &flags);
    let options = String::from_utf8(folder.read("adamw/args.yaml")).unwrap();
    for line in [
        "opt: \"adamw\"",
        "lr: 0.001",
        "weight_decay: 0.05",
        "opt_betas: [0.8,0.99]",
        "opt_eps: 1e-6",
        "clip_grad: 0.001",
    ] {
        assert!(options.lines().any(|found| found == line), "{line} is not in {options}");
    }
    let row = &last_event(&folder, "adamw")["row"];
    assert_eq!(row["clipped"], 100.0, "{row}");
    assert!(row["grad_norm"].as_f64().unwrap() > 1e-3, "{row}");
    folder.train("data", "sgd", &[]);
    assert!(last_event(&folder, "sgd")["row"]["grad_norm"].is_null());

    let refused =
        |flags: &[&str], parts: &[&str]| refuse(2, &folder.train_arguments("data", "no", flags), parts);
    refused(&["--opt", "lamb", "--momentum", "0.8"], &["--momentum", "--opt sgd"]);
    refused(&["--opt-eps", "1e-3"], &["--opt-eps", "--opt adamw and lamb"]);
    refused(&["--model-ema-decay", "1.5"], &["--model-ema-decay is 1.5", "between 0 and 1"]);
    refused(&["--clip-grad", "-1"], &["--clip-grad is -1", "above 0"]);
    refused(&["--grad-accum-steps", "0"], &["--grad-accum-steps is 0", "1 or more"]);
    refuse(
        2,
        &["train", "--resume", "--out", &folder.text("adamw"), "--opt", "lamb"],
        &["opt of the run", "lamb"],
    );
}

#[test]
fn gradients_of_several_batches_make_a_step() {
    let folder = Folder::new();
    folder.images("data", 30);
    // 54 images for training: six batches of 8, of which four make a step.
    folder.train("data", "run", &["--accumulate", "4", "--sched", "constant"]);
    let rates = |out: &str| last_event(&folder, out)["row"]["lr"].as_f64().unwrap();
    let checkpoint = folder.read("run/state/checkpoint.safetensors");
    let text = String::from_utf8_lossy(&checkpoint[..checkpoint.len().min(20_000)]).into_owned();
    assert!(text.contains("\\\"updates\\\":1"), "{text}");
    assert!(rates("run") > 0.0);
    // More than there are batches: all of them.
    folder.train("data", "all", &["--accumulate", "100"]);
    assert_ne!(folder.read(&format!("run/{WEIGHTS}")), folder.read(&format!("all/{WEIGHTS}")));
}

#[test]
fn the_average_of_the_weights_is_validated_and_kept() {
    let folder = Folder::new();
    folder.images("data/train", 40);
    folder.images("data/val", 10);
    folder.train("data", "own", &["--epochs", "2"]);
    folder.train("data", "run", &["--epochs", "2", "--ema-decay", "0.95"]);
    for model in ["last", "best"] {
        let weights = |run: &str| folder.read(&format!("{run}/{model}/model.safetensors"));
        assert_ne!(weights("own"), weights("run"));
    }
    let loss = |run: &str| last_event(&folder, run)["row"]["val_loss"].as_f64().unwrap();
    let evaluation = succeed(&["evaluate", &folder.text("run/last"), &folder.text("data"), "--json"]).json();
    let found = evaluation["loss"].as_f64().unwrap();
    // A plan folds the norms: a few roundings more.
    assert!((found - loss("run")).abs() < 1e-4 * found, "{evaluation} {}", loss("run"));
    assert!((found - loss("own")).abs() > 1e-3 * found, "the average is not the last step's weights");
}
