use super::*;
use crate::kernels::Level;
use crate::kernels::conv::Tiling;
use crate::network::Initialise;
use crate::plan::PlanOptions;

const DIRECT: Choice = Choice::Direct;
const F2: Choice = Choice::Fast(Tiling::F2);
const F4: Choice = Choice::Fast(Tiling::F4);

fn context(threads: usize) -> Arc<Context> {
    Arc::new(Context::new(Level::detect(), threads))
}

/// One block a stage, small.
fn network(cx: &Context) -> Network {
    let mut arch = Arch::preset("resnet20").unwrap();
    arch.stages.iter_mut().for_each(|stage| stage.blocks = 1);
    Network::new(&arch, [16, 16], cx.level(), Initialise::default()).unwrap()
}

/// A tuning that was made up.
fn tuning(network: &Network, batch: usize, cx: &Context, choices: &[(&str, Choice)]) -> Tuning {
    let choices = choices.iter().map(|&(layer, choice)| (layer.to_owned(), choice)).collect();
    Tuning { conditions: Conditions::new(network, batch, cx), choices }
}

fn compile(network: &Network, batch: usize, context: &Arc<Context>, tuning: Tuning) -> Result<Plan, Error> {
    let (context, tuning) = (Arc::clone(context), Some(Arc::new(tuning)));
    Plan::compile(network, PlanOptions { batch, context, tuning })
}

#[test]
fn the_estimate_stays_unless_another_choice_is_clearly_faster() {
    let choose = |times: [u64; 3]| {
        let times: Vec<_> = [F4, F2, DIRECT].into_iter().zip(times.map(Duration::from_micros)).collect();
        fastest(&times)
    };
    assert_eq!(choose([1000, 1200, 900]), DIRECT);
    assert_eq!(choose([1000, 970, 990]), F2);
    assert_eq!(choose([1000, 971, 2000]), F4);
    assert_eq!(choose([1000, 1000, 1000]), F4);
    assert_eq!(choose([1000, 500, 400]), DIRECT);
    let unmeasured = [(F4, Duration::from_micros(5)), (DIRECT, Duration::MAX)];
    assert_eq!(fastest(&unmeasured), F4);
    assert_eq!(median(&mut [9, 1, 5, 100, 2].map(Duration::from_micros).to_vec()), Duration::from_micros(5));
}

#[test]
fn every_layer_with_a_choice_is_measured_and_the_plan_follows() {
    let context = context(2);
    let network = network(&context);
    let mut seen = Vec::new();
    let tuning = Tuning::measure(&network, 2, &context, |done, total| {
        seen.push((done, total));
        true
    });
    let tuning = tuning.unwrap();
    let total = seen[0].1;
    assert_eq!(seen, (1..=total).map(|done| (done, total)).collect::<Vec<_>>());
    let plan = compile(&network, 2, &context, tuning.clone()).unwrap();
    for step in plan.steps() {
        let choice = tuning.choices().get(&step.name).map(ToString::to_string);
        match choice {
            Some(choice) => {
                assert_eq!((&step.algorithm, &*step.reason), (&choice, "measured on this machine"))
            }
            None => assert!(step.reason.starts_with("the only algorithm"), "{step:?}"),
        }
    }
    // Every 3×3 convolution has a choice; a wide 1×1 may have one.
    let measured = |name: &str| tuning.choices().contains_key(name);
    assert!(plan.steps().iter().all(|step| step.kernel != [3, 3] || measured(&step.name)));
    assert!(tuning.choices().keys().all(|name| plan.steps().iter().any(|step| step.name == *name)));
    let stopped = Tuning::measure(&network, 2, &context, |done, _| done < 3).unwrap_err();
    assert!(matches!(stopped, Error::Tune(TuneError::Stopped)), "{stopped}");
}

/// A tuned plan is another plan, and like every plan it gives the same bits on any number of threads.
#[test]
fn a_tuned_plan_gives_the_same_bits_on_all_threads() {
    let context = context(2);
    let network = network(&context);
    let choices = [("layer1.0.conv1", F2), ("layer2.0.conv1", DIRECT), ("layer3.0.conv2", DIRECT)];
    let tuning = tuning(&network, 3, &context, &choices);
    let plan = Arc::new(compile(&network, 3, &context, tuning).unwrap());
    let images = random_images([3, 16, 16, 3]);
    let mut expected = Tensor::zeros([3, 1, 1, 10]);
    plan.run(&images, &mut expected).unwrap();
    for threads in [1, 3] {
        let mut found = Tensor::zeros([3, 1, 1, 10]);
        plan.session(self::context(threads)).run(&images, &mut found).unwrap();
        assert_eq!(found, expected);
    }
}

#[test]
fn a_tuning_for_something_else_is_refused_and_said() {
    let context = context(2);
    let network = network(&context);
    let refusal = |batch: usize, change: &dyn Fn(&mut Conditions), choices: &[(&str, Choice)]| {
        let mut tuning = tuning(&network, 2, &context, choices);
        change(&mut tuning.conditions);
        compile(&network, batch, &context, tuning).unwrap_err().to_string()
    };
    let cases = [
        (refusal(3, &|_| (), &[]), "measured for batches of 2, expected batches of 3; measure again"),
        (refusal(2, &|found| found.threads = 7, &[]), "measured for 7 threads, expected 2 threads"),
        (refusal(2, &|found| found.level = "sse9".into(), &[]), "measured for sse9 instructions, expected"),
        (
            refusal(2, &|found| found.cpu = "abacus".into(), &[]),
            "measured for the CPU abacus, expected the CPU",
        ),
        (refusal(2, &|found| found.version = "0.0.1".into(), &[]), "measured for stridenet 0.0.1, expected"),
        (
            refusal(2, &|found| found.arch.img_size = [32, 24], &[]),
            "measured for images of 32x24, expected images of 16x16",
        ),
        (refusal(2, &|found| found.arch.num_classes = 3, &[]), "\"num_classes\":3"),
        (
            refusal(2, &|_| (), &[("layer9.0.conv1", F4)]),
            "wants winograd F(4x4,3x3) for the layer layer9.0.conv1",
        ),
        (
            refusal(2, &|_| (), &[("layer2.0.conv1", F4)]),
            "for the layer layer2.0.conv1, which does not have it",
        ),
    ];
    for (message, part) in cases {
        assert!(message.contains(part) && !message.contains('\n'), "{part:?} is not in {message}");
    }
}

#[test]
fn files_hold_tunings_for_several_conditions() {
    let context = context(1);
    let network = network(&context);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/folder/tuning.json");
    let [one, two, again] = [(1, F2), (2, DIRECT), (1, F4)]
        .map(|(batch, choice)| tuning(&network, batch, &context, &[("layer1.0.conv1", choice)]));
    assert_eq!(Tuning::load(&path, one.conditions()).unwrap(), None);
    one.save(&path).unwrap();
    two.save(&path).unwrap();
    for tuning in [&one, &two] {
        assert_eq!(Tuning::load(&path, tuning.conditions()).unwrap().as_ref(), Some(tuning));
    }
    let other = Conditions { threads: 5, ..one.conditions.clone() };
    assert_eq!(Tuning::load(&path, &other).unwrap(), None);
    again.save(&path).unwrap();
    assert_eq!(Tuning::load(&path, one.conditions()).unwrap(), Some(again));
    assert_eq!(Tuning::load(&path, two.conditions()).unwrap(), Some(two));
    let file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(file["tunings"].as_array().unwrap().len(), 2);
    assert_eq!(file["tunings"][0]["choices"]["layer1.0.conv1"], "winograd F(4x4,3x3)");
}

#[test]
fn tunings_of_other_versions_are_kept_and_not_used() {
    let context = context(1);
    let network = network(&context);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(Tuning::FILE);
    let other = r#"{"tunings":[{"conditions":{"version":"99.0.0","gpu":true},"choices":"another form"}]}"#;
    std::fs::write(&path, other).unwrap();
    let tuning = tuning(&network, 1, &context, &[]);
    assert_eq!(Tuning::load(&path, tuning.conditions()).unwrap(), None);
    tuning.save(&path).unwrap();
    let file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(file["tunings"][0]["conditions"]["version"], "99.0.0");
    assert_eq!(Tuning::load(&path, tuning.conditions()).unwrap(), Some(tuning));
}

#[test]
fn damaged_files_are_named_and_replaced() {
    let context = context(1);
    let network = network(&context);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(Tuning::FILE);
    let tuning = tuning(&network, 1, &context, &[("layer1.0.conv1", F2)]);
    tuning.save(&path).unwrap();
    let whole = std::fs::read_to_string(&path).unwrap();
    let damages = [
        (whole[..whole.len() / 2].to_owned(), "EOF"),
        (
            whole.replace("winograd F(2x2,3x3)", "magic"),
            "algorithm \"magic\", expected one of direct, direct by rows, winograd",
        ),
        (whole.replace("\"batch\"", "\"bat\\nch\""), "unknown field `bat ch`"),
        (whole.replace("\"tunings\"", "\"songs\""), "unknown field `songs`"),
        (r#"{"tunings": [7]}"#.to_owned(), "invalid type"),
        (String::new(), "EOF"),
    ];
    for (text, problem) in damages {
        std::fs::write(&path, text).unwrap();
        let message = Tuning::load(&path, tuning.conditions()).unwrap_err().to_string();
        for part in [path.to_str().unwrap(), problem, "delete it, or pass --tune"] {
            assert!(message.contains(part) && !message.contains('\n'), "{part:?} is not in {message}");
        }
        tuning.save(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
    }
}

#[test]
fn cpus_have_names() {
    assert_eq!(parse_cpu("vendor_id\t: x\nmodel name\t: Fast CPU: 2\n").as_deref(), Some("Fast CPU: 2"));
    let arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n";
    assert_eq!(parse_cpu(arm).as_deref(), Some("0x41 0xd40"));
    assert_eq!(parse_cpu("processor : 0\n"), None);
    assert!(!cpu_name().is_empty());
}
