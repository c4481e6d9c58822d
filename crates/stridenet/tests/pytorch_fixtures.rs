//! Whole networks against PyTorch: logits, loss, every gradient, running statistics and ten losses of SGD, for each
//! case of `fixtures/manifest.json`, at every instruction-set level of this CPU.

use serde::Deserialize;
use std::path::{Path, PathBuf};
use stridenet::Tensor;
use stridenet::arch::Arch;
use stridenet::kernels::loss::softmax_cross_entropy;
use stridenet::kernels::{Context, Level};
use stridenet::layer::Workspace;
use stridenet::network::{Initialise, Network};
use stridenet::train::{Descent, SgdOptions};
use stridenet::weights::{NamedTensor, NonFinite, StateDict, TensorValues, read_safetensors};

/// Relative noise of a convolution's output: sums of up to a few hundred products in another order, 32 roundings of 2⁻²⁴.
/// The manifest says how much each item magnifies such noise (`noise_gain`, at most 20); the product is the tolerance,
/// at most 4e-5 and far below the smallest mistake that the manifest records (`nearest_mistake`, above 1e-3).
const NOISE: f64 = 2e-6;

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

    fn network(&self, cx: &Context) -> Network {
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
    fn assert_close(&self, level: Level, name: &str, found: &[f32], gain: f64) {
        let tolerance = NOISE * gain.max(1.0);
        assert!(tolerance <= 1e-4, "{}: {name} magnifies noise too much for a test", self.case.name);
        let expected = self.values(name);
        assert_eq!(found.len(), expected.len(), "{} {name}", self.case.name);
        let norm =
            |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
        let distance = norm(
            &mut found.iter().zip(expected).map(|(&found, &expected)| f64::from(found) - f64::from(expected)),
        );
        let size = norm(&mut expected.iter().map(|&value| f64::from(value)));
        let relative = distance / size.max(1e-3);
        assert!(
            relative <= tolerance,
            "{} {name} at {}: distance {relative:.1e}",
            self.case.name,
            level.name()
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

fn contexts() -> impl Iterator<Item = Context> {
    Level::available().into_iter().map(|level| Context::new(level, 2))
}

#[test]
fn inference_gives_pytorchs_logits() {
    let fixtures = fixtures();
    assert!(fixtures.len() >= 12, "the cases of the manifest");
    for cx in contexts() {
        for fixture in &fixtures {
            let network = fixture.network(&cx);
            let logits = network.infer(&cx, &mut Workspace::default(), &fixture.images()).unwrap();
            fixture.assert_close(
                cx.level(),
                "eval_logits",
                logits.data(),
                fixture.case.noise_gain.eval_logits,
            );
        }
    }
}

#[test]
fn a_training_step_gives_pytorchs_loss_gradients_and_statistics() {
    for cx in contexts() {
        for fixture in &fixtures() {
            let (mut network, mut workspace) = (fixture.network(&cx), Workspace::default());
            let gain = &fixture.case.noise_gain;
            let (logits, saved) = network.forward(&cx, &mut workspace, fixture.images()).unwrap();
            fixture.assert_close(cx.level(), "train_logits", logits.data(), gain.train_logits);
            let mut dlogits = Tensor::zeros(logits.shape());
            let (classes, smoothing) = (network.arch().num_classes, fixture.case.label_smoothing);
            let (labels, to) = (fixture.labels(), dlogits.data_mut());
            let loss = softmax_cross_entropy(&cx, classes, logits.data(), &labels, smoothing, to);
            fixture.assert_close(cx.level(), "loss", &[loss as f32], gain.loss);
            network.backward(&cx, &mut workspace, saved, &dlogits);
            for parameter in network.parameters() {
                let (name, grad) = (format!("grad.{}", parameter.name), parameter.to_torch(&parameter.grad));
                fixture.assert_close(cx.level(), &name, &grad, gain.grad);
            }
            let state = network.state().unwrap();
            let after: Vec<_> =
                fixture.tensors.names().filter_map(|name| name.strip_prefix("after.")).collect();
            assert!(after.len() > 4, "running statistics of each norm");
            for name in after {
                let values = state.get(name).and_then(|entry| entry.as_f32()).unwrap();
                fixture.assert_close(cx.level(), &format!("after.{name}"), values, gain.after);
            }
        }
    }
}

#[test]
fn ten_steps_of_sgd_give_pytorchs_losses() {
    for cx in contexts() {
        for fixture in &fixtures() {
            let mut network = fixture.network(&cx);
            let Optimizer { lr, momentum, nesterov, weight_decay, decay_norm_and_bias } =
                fixture.case.optimizer;
            let options = SgdOptions { momentum, nesterov, weight_decay, decay_norm_and_bias };
            let mut descent = Descent::new(&network, options);
            let (labels, smoothing) = (fixture.labels(), fixture.case.label_smoothing);
            let mut step =
                || descent.step(&cx, &mut network, fixture.images(), &labels, smoothing, lr).unwrap().loss;
            let losses: Vec<f32> = fixture.values("sgd_losses").iter().map(|_| step() as f32).collect();
            assert_eq!(losses.len(), 10);
            fixture.assert_close(cx.level(), "sgd_losses", &losses, fixture.case.noise_gain.sgd_losses);
        }
    }
}
