//! Whole networks against PyTorch: logits, loss, every gradient, running statistics and ten losses of SGD, for each
//! case of `fixtures/manifest.json`, at every instruction-set level of this CPU.

use serde::Deserialize;
use std::f64::consts::PI;
use std::path::{Path, PathBuf};
use stridenet::Tensor;
use stridenet::arch::Arch;
use stridenet::kernels::loss::softmax_cross_entropy;
use stridenet::kernels::{Context, Level, Operands};
use stridenet::layer::Workspace;
use stridenet::network::{Initialise, Network};
use stridenet::train::{Descent, SgdOptions};
use stridenet::weights::{NamedTensor, NonFinite, StateDict, TensorValues, read_safetensors};

/// Relative noise of a convolution's output: sums of up to a few hundred products in another order, 32 roundings of 2⁻²⁴.
/// The manifest says how much each item magnifies such noise (`noise_gain`, at most 20); the product is the tolerance,
/// at most 4e-5 and far below the smallest mistake that the manifest records (`nearest_mistake`, above 1e-3).
const NOISE: f64 = 2e-6;

/// The same where convolutions round their operands to bf16. Rounding moves an operand by 2⁻⁹ of itself at most, by 2⁻⁹ / √3 in
/// the root mean square. Errors of different products are independent, so that a sum of products of two moves by √2 · 2⁻⁹ / √3 of
/// what its terms make in the root mean square, about its own size: 1.6e-3. Twice that, because a tensor is one draw.
const BF16_NOISE: f64 = 2.0 * 0.816 / 512.0;

/// What that does to gradients, which ReLUs do not let grow in proportion: the noise turns the sign of a share `noise / π` of
/// their normally distributed inputs. Their gradients come or go, of the half that passes a share of `2 · noise / π`, whose
/// root is the relative distance: 0.045, and more where the noise has grown by `gain` on its way.
fn bf16_gradient_noise(gain: f64) -> f64 {
    (2.0 * BF16_NOISE * gain / PI).sqrt()
}

#[derive(Deserialize)]
struct Manifest {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    arch: serde_json::Map<String, serde_json::Value>,
    image: [usize; 2],
    batch: usize,
    label_smoothing: f32,
    optimizer: Optimizer,
    file: String,
    noise_gain: Gain,
}

/// How much noise in the convolutions' outputs is magnified in each kind of item.
#[derive(Deserialize)]
struct Gain {
    eval_logits: f64,
    train_logits: f64,
    loss: f64,
    grad: f64,
    after: f64,
    sgd_losses: f64,
}

#[derive(Deserialize)]
struct Optimizer {
    lr: f32,
    momentum: f32,
    nesterov: bool,
    weight_decay: f32,
    decay_norm_and_bias: bool,
}

/// Relative distance in the L2 norm, with a floor for what is zero up to rounding.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let pairs = found.iter().zip(expected);
    let distance = norm(&mut pairs.map(|(&found, &expected)| f64::from(found) - f64::from(expected)));
    distance / norm(&mut expected.iter().map(|&value| f64::from(value))).max(1e-3)
}

struct Fixture {
    case: Case,
    tensors: StateDict,
    path: PathBuf,
}

impl Fixture {
    fn values(&self, name: &str) -> &[f32] {
        let entry = self.tensors.get(name).unwrap_or_else(|| panic!("{}: no {name}", self.case.name));
        entry.as_f32().unwrap_or_else(|| panic!("{}: {name} holds integers", self.case.name))
    }

    fn arch(&self) -> Arch {
        let mut arch = self.case.arch.clone();
        arch.insert("name".into(), self.case.name.clone().into());
        arch.insert("img_size".into(), self.case.image.to_vec().into());
        Arch::from_json(&serde_json::to_string(&arch).unwrap()).unwrap()
    }

    fn network(&self, cx: &Context, operands: Operands) -> Network {
        let mut network =
            Network::new(&self.arch(), self.case.image, cx.level(), Initialise::default()).unwrap();
        let mut state = StateDict::new();
        for (name, entry) in self.tensors.iter() {
            if let Some(name) = name.strip_prefix("state.") {
                let (shape, values) = (entry.shape().to_vec(), entry.as_f32().unwrap().to_vec());
                state.insert(NamedTensor { name: name.to_owned(), shape, values }).unwrap();
            }
        }
        network.load(cx, &self.path, state).unwrap();
        network.set_operands(operands);
        network
    }

    /// The images as NHWC.
    fn images(&self) -> Tensor {
        let (x, [height, width]) = (self.values("x"), self.case.image);
        let channels = x.len() / (self.case.batch * height * width);
        let mut images = Tensor::zeros([self.case.batch, height, width, channels]);
        for (index, value) in images.data_mut().iter_mut().enumerate() {
            let (pixel, channel) = (index / channels, index % channels);
            let (image, place) = (pixel / (height * width), pixel % (height * width));
            *value = x[(image * channels + channel) * height * width + place];
        }
        images
    }

    fn labels(&self) -> Vec<usize> {
        match self.tensors.get("y").map(|entry| entry.values()) {
            Some(TensorValues::I64(labels)) => labels.iter().map(|&label| label as usize).collect(),
            _ => panic!("{}: no labels", self.case.name),
        }
    }

    /// Relative distance in the L2 norm, with a floor for tensors that are zero up to rounding: a convolution's
    /// gradient sums over thousands of products near 1.
    fn assert_close(&self, way: Way, name: &str, found: &[f32], gain: f64) {
        self.assert_near(way, name, [found, self.values(name)], gain);
    }

    /// The same, beside what was expected.
    fn assert_near(&self, way: Way, name: &str, [found, expected]: [&[f32]; 2], gain: f64) {
        let follows_gradients = name.starts_with("grad.") || name == "sgd_losses";
        let (noise, most) = match way.operands {
            Operands::F32 | Operands::Threes => (NOISE, 1e-4),
            Operands::Bf16 if follows_gradients => (bf16_gradient_noise(1.0), 0.9),
            Operands::Bf16 => (BF16_NOISE, 0.02),
        };
        let tolerance = noise * gain.max(1.0);
        assert!(tolerance <= most, "{}: {name} magnifies noise too much for a test", self.case.name);
        assert_eq!(found.len(), expected.len(), "{} {name}", self.case.name);
        let relative = distance(found, expected);
        assert!(
            relative <= tolerance,
            "{} {name} at {} with {:?}: distance {relative:.1e}, expected {tolerance:.1e} at most",
            self.case.name,
            way.level.name(),
            way.operands
        );
    }
}

fn fixtures() -> Vec<Fixture> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let text = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
    let manifest: Manifest = serde_json::from_str(&text).unwrap();
    let read = |case: Case| {
        let path = folder.join(&case.file);
        Fixture { tensors: read_safetensors(&path, NonFinite::Refuse).unwrap(), case, path }
    };
    manifest.cases.into_iter().map(read).collect()
}

/// How a network is computed.
#[derive(Clone, Copy)]
struct Way {
    level: Level,
    operands: Operands,
}

/// Every level with each kind of operands, and the best one without its instructions for bf16.
fn ways() -> impl Iterator<Item = (Context, Way)> {
    let kinds = [Operands::F32, Operands::Bf16, Operands::Threes];
    let ways =
        Level::available().into_iter().flat_map(move |level| kinds.map(|operands| Way { level, operands }));
    let best = Level::detect();
    let without = Way { level: best.without_bf16(), operands: Operands::Bf16 };
    let ways = ways.chain(best.multiplies_bf16().then_some(without));
    ways.map(|way| (Context::new(way.level, 2), way))
}

#[test]
fn inference_gives_pytorchs_logits() {
    let fixtures = fixtures();
    assert!(fixtures.len() >= 12, "the cases of the manifest");
    // Inference does not ask what training multiplies.
    for (cx, way) in ways().filter(|(_, way)| way.operands == Operands::F32) {
        for fixture in &fixtures {
            let network = fixture.network(&cx, Operands::Bf16);
            let logits = network.infer(&cx, &mut Workspace::default(), &fixture.images()).unwrap();
            fixture.assert_close(way, "eval_logits", logits.data(), fixture.case.noise_gain.eval_logits);
        }
    }
}

#[test]
fn a_training_step_gives_pytorchs_loss_gradients_and_statistics() {
    for (cx, way) in ways() {
        for fixture in &fixtures() {
            let (mut network, mut workspace) = (fixture.network(&cx, way.operands), Workspace::default());
            let gain = &fixture.case.noise_gain;
            let (logits, saved) = network.forward(&cx, &mut workspace, fixture.images()).unwrap();
            fixture.assert_close(way, "train_logits", logits.data(), gain.train_logits);
            let mut dlogits = Tensor::zeros(logits.shape());
            let (classes, smoothing) = (network.arch().num_classes, fixture.case.label_smoothing);
            let (labels, to) = (fixture.labels(), dlogits.data_mut());
            let loss = softmax_cross_entropy(&cx, classes, logits.data(), &labels, smoothing, to);
            fixture.assert_close(way, "loss", &[loss as f32], gain.loss);
            network.backward(&cx, &mut workspace, saved, &dlogits);
            let (mut all, mut checked) = ([Vec::new(), Vec::new()], 0);
            for parameter in network.parameters() {
                let (name, grad) = (format!("grad.{}", parameter.name), parameter.to_torch(&parameter.grad));
                all[0].extend_from_slice(&grad);
                all[1].extend_from_slice(fixture.values(&name));
                // Four values of a batch norm's gain are too few for a measure of roundings: they are one draw with those of its bias.
                let few = parameter.shape.len() == 1 && grad.len() < 8;
                if few && way.operands == Operands::Bf16 && name.ends_with(".weight") {
                    continue;
                }
                let [found, expected] = all.each_ref().map(|all| &all[checked..]);
                fixture.assert_near(way, &name, [found, expected], gain.grad);
                checked = all[0].len();
            }
            // All parameters together, which magnify less than the worst of them: what the layers' ReLUs do adds up as a
            // random walk, with noise that has grown as much as that of the logits.
            if way.operands == Operands::Bf16 {
                let relus = network.parameters().filter(|parameter| parameter.shape.len() == 4).count();
                let limit = bf16_gradient_noise(gain.train_logits) * (relus as f64).sqrt();
                let apart = distance(&all[0], &all[1]);
                assert!(apart <= limit, "{}: the gradient is {apart:.3} off", fixture.case.name);
            }
            let state = network.state().unwrap();
            let after: Vec<_> =
                fixture.tensors.names().filter_map(|name| name.strip_prefix("after.")).collect();
            assert!(after.len() > 4, "running statistics of each norm");
            for name in after {
                let values = state.get(name).and_then(|entry| entry.as_f32()).unwrap();
                fixture.assert_close(way, &format!("after.{name}"), values, gain.after);
            }
        }
    }
}

#[test]
fn ten_steps_of_sgd_give_pytorchs_losses() {
    for (cx, way) in ways() {
        for fixture in &fixtures() {
            let mut network = fixture.network(&cx, way.operands);
            let Optimizer { lr, momentum, nesterov, weight_decay, decay_norm_and_bias } =
                fixture.case.optimizer;
            let options = SgdOptions { momentum, nesterov, weight_decay, decay_norm_and_bias };
            let mut descent = Descent::new(&network, options);
            let (labels, smoothing) = (fixture.labels(), fixture.case.label_smoothing);
            let mut step =
                || descent.step(&cx, &mut network, fixture.images(), &labels, smoothing, lr).unwrap().loss;
            let losses: Vec<f32> = fixture.values("sgd_losses").iter().map(|_| step() as f32).collect();
            assert_eq!(losses.len(), 10);
            fixture.assert_close(way, "sgd_losses", &losses, fixture.case.noise_gain.sgd_losses);
        }
    }
}
