//! The family against timm and torchvision (`fixtures/family/parity.py`): logits of the layers and of plans, feature maps,
//! embeddings; and gradients in training (`fixtures/family/gradients.py`). The weights are made here once more, from the
//! names of the tensors, so that only results are stored.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use stridenet::Tensor;
use stridenet::arch::{Arch, Block};
use stridenet::kernels::{Context, Level};
use stridenet::layer::{BlockDrop, Workspace};
use stridenet::model::{Description, ImportOptions, Imported, import};
use stridenet::network::{Initialise, Input, Network, Seen};
use stridenet::plan::{Plan, PlanOptions};
use stridenet::weights::{
    ModelConfig, NonFinite, StateDict, TensorValues, read_safetensors, write_safetensors,
};

/// The acceptance criterion: relative L2 of logits and features.
const TOLERANCE: f64 = 1e-4;
/// Of gradients: batch norms over 32 values a channel magnify rounding. The fixture's images keep away from the points where a
/// gradient jumps, by ten times what rounding moves.
const GRADIENT: f64 = 2e-3;

#[derive(Deserialize)]
struct Parity {
    side: usize,
    batch: usize,
    classes: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    network: String,
    arguments: Map<String, Value>,
    channels: usize,
    /// Channels and reduction of each feature map.
    features: Vec<(usize, usize)>,
    config: Option<Value>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/family")
}

fn read<T: for<'de> Deserialize<'de>>(name: &str) -> (T, StateDict) {
    let json = std::fs::read(folder().join(format!("{name}.json"))).unwrap();
    let tensors = folder().join(format!("{name}.safetensors"));
    (serde_json::from_slice(&json).unwrap(), read_safetensors(&tensors, NonFinite::Refuse).unwrap())
}

fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |value: u64, byte| {
        (value ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// SplitMix64 at the place `index` of the stream of `name`.
fn hash(name: u64, index: usize) -> u64 {
    let z = name.wrapping_add((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Multiples of 2⁻²³ in −1..1.
fn uniform(name: &str, count: usize) -> Vec<f32> {
    let name = fnv(name);
    (0..count).map(|index| (hash(name, index) >> 40) as f32 / 8_388_608.0 - 1.0).collect()
}

fn values(name: &str, shape: &[usize]) -> Vec<f32> {
    let scaled = |scale: f32, shift: f32| {
        let values = uniform(name, shape.iter().product()).into_iter();
        values.map(|u| shift + u * scale).collect()
    };
    match name.rsplit('.').next().unwrap_or_default() {
        "running_mean" | "bias" => scaled(0.25, 0.0),
        "running_var" => scaled(0.5, 1.0),
        _ if shape.len() == 1 => scaled(0.25, 0.75),
        _ => scaled((6.0 / shape[1..].iter().product::<usize>() as f64).sqrt() as f32, 0.0),
    }
}

/// The weights of its tensors' names for a network.
fn weights(arch: &Arch) -> StateDict {
    let mut state = StateDict::new();
    for tensor in arch.structure().unwrap().tensors() {
        let values = match tensor.name.ends_with("num_batches_tracked") {
            true => TensorValues::I64(vec![0]),
            false => TensorValues::F32(values(&tensor.name, &tensor.shape)),
        };
        state.insert_values(tensor.name, tensor.shape, values).unwrap();
    }
    state
}

/// The network with the weights of its tensors' names.
fn network(cx: &Context, arch: &Arch, input: [usize; 2]) -> Network {
    Network::from_state(cx, arch, input, Path::new("generated"), weights(arch)).unwrap().0
}

fn images(name: &str, shape: [usize; 4]) -> Tensor {
    let values: Vec<f32> = uniform(name, shape.iter().product()).into_iter().map(|u| 2.0 * u).collect();
    Tensor::from_nchw(shape, &values).unwrap()
}

/// `‖found − expected‖ / ‖expected‖`.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |value: f64| value * value;
    let error: f64 = found.iter().zip(expected).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    // A dilated kernel has taps that never meet a small map; their gradients are 0 exactly.
    if error == 0.0 {
        return 0.0;
    }
    (error / expected.iter().map(|&value| square(f64::from(value))).sum::<f64>()).sqrt()
}

/// The values at the places that the fixture keeps.
fn sampled(name: &str, values: &[f32], count: usize) -> Vec<f32> {
    let name = fnv(name);
    (0..count).map(|index| values[(hash(name, index) % values.len() as u64) as usize]).collect()
}

fn expected<'a>(tensors: &'a StateDict, name: &str) -> &'a [f32] {
    tensors.get(name).and_then(|tensor| tensor.as_f32()).unwrap_or_else(|| panic!("{name} is in the fixture"))
}

impl Case {
    /// timm's own `config.json`; torchvision writes none.
    fn config(&self, parity: &Parity) -> Value {
        self.config.clone().unwrap_or_else(|| {
            let dilated = self.arguments.get("replace_stride_with_dilation").is_some();
            json!({
                "architecture": self.network,
                "num_classes": parity.classes,
                "model_args": if dilated { json!({"output_stride": 16}) } else { json!({}) },
                "pretrained_cfg": {"num_classes": parity.classes}
            })
        })
    }

    /// The network as its `config.json` describes it.
    fn arch(&self, parity: &Parity) -> Arch {
        let config = self.config(parity);
        let path = Path::new(&self.name);
        let config = ModelConfig::from_json(path, config.to_string().as_bytes()).unwrap();
        let description = Description::from_config(&config, path).unwrap();
        // What is written for timm is again the same network, without stridenet's own key too.
        let mut written = description.to_config(path).unwrap();
        assert_eq!(written.architecture, self.network);
        written.stridenet = None;
        let again = Description::from_config(&written, path).unwrap();
        assert_eq!(again.arch, description.arch, "{}", self.name);
        description.arch
    }

    /// The network out of a file of its weights, with a `config.json` beside it and without one; and whether without one it had
    /// to be told which architecture it is, because weights do not show it.
    fn imported(&self, parity: &Parity, cx: &Context) -> ([Network; 2], bool) {
        let (arch, folder) = (self.arch(parity), tempfile::tempdir().unwrap());
        let file = folder.path().join("model.safetensors");
        let config = folder.path().join("config.json");
        write_safetensors(&file, &weights(&arch), &BTreeMap::new()).unwrap();
        std::fs::write(&config, self.config(parity).to_string()).unwrap();
        let size = [parity.side; 2];
        let read = |arch: Option<Arch>| {
            let options = ImportOptions { img_size: Some(size), arch, ..ImportOptions::default() };
            import(folder.path(), &options).unwrap_or_else(|error| panic!("{}: {error}", self.name))
        };
        let build = |imported: Imported| {
            let Imported { description, state, account, .. } = imported;
            assert_eq!(account.applied.len(), arch.structure().unwrap().tensors().len(), "{}", self.name);
            Network::from_state(cx, &description.arch, size, &file, state).unwrap().0
        };
        let described = read(None);
        assert_eq!(described.description.arch, arch, "{}", self.name);
        let described = build(described);
        std::fs::remove_file(&config).unwrap();
        let alone = read(None);
        let named =
            Arch { name: arch.name.clone(), img_size: arch.img_size, ..alone.description.arch.clone() };
        if named == arch {
            return ([described, build(alone)], false);
        }
        // Nothing else than what weights cannot show is not recognised.
        let shown = Arch { downsample: arch.downsample, output_stride: arch.output_stride, ..named };
        assert_eq!(shown, arch, "{}", self.name);
        ([described, build(read(Some(arch.clone())))], true)
    }

    fn check(&self, parity: &Parity, tensors: &StateDict, cx: &Arc<Context>) -> (Vec<String>, bool) {
        let name = &self.name;
        let arch = self.arch(parity);
        assert_eq!((arch.in_channels, arch.num_classes), (self.channels, parity.classes), "{name}");
        let info: Vec<(usize, usize)> =
            arch.feature_info().unwrap().iter().map(|info| (info.channels, info.reduction)).collect();
        assert_eq!(info, self.features, "{name}");
        let side = parity.side;
        let ([network, alone], told) = self.imported(parity, cx);
        let x = images(&format!("x {}", self.channels), [parity.batch, self.channels, side, side]);
        let mut found: Vec<(String, f64)> = Vec::new();
        let see = |seen: Seen, map: &Tensor| {
            let part = match seen {
                Seen::Feature(index) => index.to_string(),
                Seen::Embedding => "embedding".to_owned(),
            };
            let key = match seen {
                Seen::Feature(index) => format!("{name}.feature{index}"),
                Seen::Embedding => format!("{name}.embedding"),
            };
            let kept = expected(tensors, &key);
            let values = sampled(&format!("{name} {part}"), &map.to_nchw(), kept.len());
            found.push((key.clone(), distance(&values, kept)));
        };
        let logits = network.infer_seeing(cx, &mut Workspace::default(), &x, see).unwrap();
        assert_eq!(found.len(), self.features.len() + 1, "{name}");
        let kept = expected(tensors, &format!("{name}.logits"));
        found.push((format!("{name}.logits"), distance(logits.data(), kept)));
        let options = PlanOptions { batch: parity.batch, context: Arc::clone(cx), tuning: None };
        let plan = Plan::compile(&alone, options).unwrap();
        let mut planned = Tensor::zeros(logits.shape());
        plan.run(&x, &mut planned).unwrap();
        found.push((format!("{name}.logits of a plan without a config"), distance(planned.data(), kept)));
        let wrong = |(_, distance): &(String, f64)| distance.is_nan() || *distance > TOLERANCE;
        let wrong = found.into_iter().filter(wrong);
        (wrong.map(|(key, distance)| format!("{key}: {distance:.2e}")).collect(), told)
    }
}

/// `told` are the networks that weights alone do not show: those with an output stride or other pools.
fn check_all(source: &str, count: usize, told: &[&str]) {
    let (parity, tensors): (Parity, StateDict) = read("parity");
    let cx = Arc::new(Context::new(Level::detect(), 2));
    let cases: Vec<&Case> = parity.cases.iter().filter(|case| case.name.starts_with(source)).collect();
    assert_eq!(cases.len(), count);
    let (mut wrong, mut found) = (Vec::new(), Vec::new());
    for case in cases {
        let (beyond, is_told) = case.check(&parity, &tensors, &cx);
        wrong.extend(beyond);
        found.extend(is_told.then_some(case.network.as_str()));
    }
    assert!(wrong.is_empty(), "beyond {TOLERANCE:e}: {wrong:#?}");
    assert_eq!(found, told);
}

/// resnet10t, 18, 18d, 34d, 50, 50c, 50d, 50s, 101d; resnext50_32x4d, 50d_32x4d; seresnet18, 50, seresnext26d_32x4d;
/// ecaresnet26t, light, ecaresnext26t_32x4d; resnetblur18, 50; resnetaa50d, seresnetaa50d; resnetrs50; senet154;
/// resnetv2_18, 34d, 50, 50t; with 1, 2, 3 and 4 channels and output strides of 8, 16 and 32.
#[test]
fn twenty_seven_networks_of_timm_give_timms_logits_and_features() {
    let told = [
        "resnet18d",
        "resnet50d",
        "resnext50_32x4d",
        "ecaresnext26t_32x4d",
        "resnetblur18",
        "resnetblur50",
        "resnetaa50d",
        "seresnetaa50d",
        "senet154",
        "resnetv2_34d",
        "resnetv2_50",
    ];
    check_all("timm.", 27, &told);
}

/// resnet18, 34, 50, 101, 152, resnext50_32x4d, resnext101_32x8d with its last stage dilated, wide_resnet50_2.
#[test]
fn eight_networks_of_torchvision_give_torchvisions_logits_and_features() {
    check_all("torchvision.", 8, &["resnext101_32x8d"]);
}

#[derive(Deserialize)]
struct Gradients {
    side: usize,
    samples: usize,
    cases: Vec<GradientCase>,
}

#[derive(Deserialize)]
struct GradientCase {
    /// What the names of its tensors begin with.
    key: String,
    network: String,
    arguments: Map<String, Value>,
    /// The number of the images, which are far from a point where a gradient jumps.
    images: usize,
}

/// The fixture's factors in the places of `drops`: a factor that is not drawn makes the arithmetic comparable.
fn fixed_drops(drops: &[BlockDrop], arch: &Arch) -> Vec<BlockDrop> {
    let structure = arch.structure().unwrap();
    let fixed = |name: String, count: usize| uniform(&name, count).into_iter().map(|u| u + 1.0).collect();
    let fix = |(drop, block): (&BlockDrop, &Block)| {
        let images = drop.images.as_ref().map(|images| {
            let mut factors: Vec<f32> = fixed(format!("{}.drop_path", block.name), images.len());
            factors[0] = 0.0;
            factors
        });
        let of_pixels = |pixels: &Vec<f32>| fixed(format!("{}.drop_block", block.name), pixels.len());
        BlockDrop { images, pixels: drop.pixels.as_ref().map(of_pixels) }
    };
    drops.iter().zip(&structure.blocks).map(fix).collect()
}

#[test]
fn gradients_in_training_are_timms() {
    let (fixture, tensors): (Gradients, StateDict) = read("gradients");
    let cx = Context::new(Level::detect(), 2);
    let mut wrong = Vec::new();
    for GradientCase { key: case, network: name, arguments, images: number } in &fixture.cases {
        let config =
            json!({"architecture": name, "num_classes": 20, "model_args": arguments, "pretrained_cfg": {}});
        let path = Path::new(name);
        let config = ModelConfig::from_json(path, config.to_string().as_bytes()).unwrap();
        let Description { arch, drop, .. } = Description::from_config(&config, path).unwrap();
        let rate = |key: &str| arguments.get(key).and_then(Value::as_f64).unwrap_or(0.0);
        assert_eq!([drop.path, drop.block], [rate("drop_path_rate"), rate("drop_block_rate")], "{case}");
        let side = fixture.side;
        let mut network = network(&cx, &arch, [side, side]);
        let mut workspace = Workspace::default();
        let drops = fixed_drops(&drop.drops(&network, 1, 1, &[0, 1]), &arch);
        let input = Input { images: images(&format!("x 3 {number}"), [2, 3, side, side]), drops };
        let (logits, saved) = network.forward(&cx, &mut workspace, input).unwrap();
        let error = distance(logits.data(), expected(&tensors, &format!("{case}.logits")));
        assert!(error < TOLERANCE, "{case}: logits in training: {error:e}");
        let dlogits = Tensor::new(logits.shape(), uniform("r", logits.data().len())).unwrap();
        network.backward(&cx, &mut workspace, saved, &dlogits);
        let mut count = 0;
        for parameter in network.parameters() {
            let key = &parameter.name;
            let found =
                sampled(&format!("{name} {key}"), &parameter.to_torch(&parameter.grad), fixture.samples);
            let error = distance(&found, expected(&tensors, &format!("{case}.{key}")));
            if error.is_nan() || error > GRADIENT {
                wrong.push(format!("{case}.{key}: {error:.2e}"));
            }
            count += 1;
        }
        let trainable = arch.structure().unwrap().tensors().iter().filter(|tensor| tensor.trainable).count();
        assert_eq!(count, trainable, "{case}: parameters");
    }
    assert!(wrong.is_empty(), "beyond {GRADIENT:e}: {wrong:#?}");
}

#[test]
fn networks_begin_as_their_shortcuts_when_asked() {
    let cx = Context::new(Level::detect(), 1);
    for name in ["resnet20", "preresnet20"] {
        let arch = Arch::preset(name).unwrap();
        let initialise = Initialise { seed: 1, zero_init_last: true };
        let network = Network::new(&arch, [32, 32], cx.level(), initialise).unwrap();
        let mut maps: Vec<Tensor> = Vec::new();
        let see = |seen: Seen, map: &Tensor| {
            if matches!(seen, Seen::Feature(0 | 1)) {
                maps.push(map.clone());
            }
        };
        network.infer_seeing(&cx, &mut Workspace::default(), &images("x 3", [1, 3, 32, 32]), see).unwrap();
        assert_eq!(maps[0].data(), maps[1].data(), "{name}");
    }
}
