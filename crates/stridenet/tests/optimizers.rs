//! SGD, AdamW, LAMB, clipping and the average of weights against PyTorch and timm, with the values and gradients of
//! `fixtures/optimizers.safetensors`.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use stridenet::arch::Arch;
use stridenet::kernels::{Context, Level};
use stridenet::network::Network;
use stridenet::train::{
    AdamWOptions, LambOptions, Optimizer, OptimizerOptions, Rule, SgdOptions, WeightAverage,
};
use stridenet::weights::{NonFinite, StateDict, TensorValues, read_safetensors};

#[derive(Deserialize)]
struct Manifest {
    arch: serde_json::Map<String, serde_json::Value>,
    gradients: Vec<[f32; 2]>,
    rates: Vec<f32>,
    kept: usize,
    cases: BTreeMap<String, Case>,
    averages: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct Case {
    opt: String,
    momentum: Option<f32>,
    nesterov: Option<bool>,
    betas: Option<[f64; 2]>,
    eps: Option<f64>,
    weight_decay: f32,
    decay_norm_and_bias: bool,
    clip: Option<f64>,
    max_grad_norm: Option<f64>,
    norms: Vec<f64>,
}

impl Case {
    fn options(&self) -> OptimizerOptions {
        let &Case { weight_decay, decay_norm_and_bias, max_grad_norm, .. } = self;
        let (betas, epsilon) = (self.betas.unwrap_or_default(), self.eps.unwrap_or_default());
        let rule = match &*self.opt {
            "sgd" => Rule::Sgd(SgdOptions {
                momentum: self.momentum.unwrap(),
                nesterov: self.nesterov.unwrap(),
                weight_decay,
                decay_norm_and_bias,
            }),
            "adamw" => Rule::AdamW(AdamWOptions { betas, epsilon, weight_decay, decay_norm_and_bias }),
            "lamb" => {
                Rule::Lamb(LambOptions { betas, epsilon, weight_decay, decay_norm_and_bias, max_grad_norm })
            }
            other => panic!("{other}"),
        };
        OptimizerOptions { rule, clip_norm: self.clip, ema_decay: None }
    }
}

struct Fixture {
    manifest: Manifest,
    tensors: StateDict,
    path: PathBuf,
}

impl Fixture {
    fn read() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
        let text = std::fs::read_to_string(folder.join("optimizers.json")).unwrap();
        let mut manifest: Manifest = serde_json::from_str(&text).unwrap();
        manifest.arch.insert("name".into(), "fixture".into());
        manifest.arch.insert("img_size".into(), serde_json::json!([8, 8]));
        let path = folder.join("optimizers.safetensors");
        let tensors = read_safetensors(&path, NonFinite::Refuse).unwrap();
        Fixture { manifest, tensors, path }
    }

    fn values(&self, name: &str) -> &[f32] {
        self.tensors.get(name).and_then(|entry| entry.as_f32()).unwrap_or_else(|| panic!("no {name}"))
    }

    /// `factors[0] · gradient + factors[1] · value`.
    fn mixed(&self, name: &str, [gradient, value]: [f32; 2]) -> Vec<f32> {
        let pairs =
            self.values(&format!("gradient.{name}")).iter().zip(self.values(&format!("value.{name}")));
        pairs.map(|(g, v)| gradient * g + value * v).collect()
    }

    fn state(&self, factors: [f32; 2]) -> StateDict {
        let mut state = StateDict::new();
        for (name, entry) in self.tensors.iter() {
            if let Some(name) = name.strip_prefix("value.") {
                let values = TensorValues::F32(self.mixed(name, factors));
                state.insert_values(name.to_owned(), entry.shape().to_vec(), values).unwrap();
            }
        }
        let norms: Vec<String> =
            state.names().filter_map(|name| name.strip_suffix("running_mean")).map(str::to_owned).collect();
        for norm in norms {
            state
                .insert_values(format!("{norm}num_batches_tracked"), vec![], TensorValues::I64(vec![3]))
                .unwrap();
        }
        state
    }

    fn network(&self, cx: &Context) -> Network {
        let arch = Arch::from_json(&serde_json::to_string(&self.manifest.arch).unwrap()).unwrap();
        Network::from_state(cx, &arch, [8, 8], &self.path, self.state([0.0, 1.0])).unwrap().0
    }

    /// Compares what the fixture keeps of each tensor: each of six steps rounds the value (2⁻²⁴ of it), and its movement
    /// carries a dozen roundings of the optimizer's own (1e-6 of it).
    fn check(&self, case: &str, found: &StateDict) {
        let prefix = format!("{case}.");
        let names: Vec<&str> = self.tensors.names().filter_map(|name| name.strip_prefix(&prefix)).collect();
        assert!(names.len() > 15, "{case}: all parameters");
        for name in names {
            let values = found.get(name).and_then(|entry| entry.as_f32()).unwrap();
            let spread = values.len().div_ceil(self.manifest.kept);
            let kept = |values: &[f32]| {
                values.iter().step_by(spread).map(|&value| f64::from(value)).collect::<Vec<_>>()
            };
            let norm =
                |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
            let apart = |a: &[f64], b: &[f64]| norm(&mut a.iter().zip(b).map(|(a, b)| a - b));
            let expected: Vec<f64> =
                self.values(&format!("{case}.{name}")).iter().map(|&value| f64::from(value)).collect();
            let moved = apart(&expected, &kept(self.values(&format!("value.{name}"))));
            let tolerance = 6.0 * 2f64.powi(-24) * norm(&mut expected.iter().copied()) + 1e-6 * moved;
            let distance = apart(&kept(values), &expected);
            assert!(
                distance <= tolerance,
                "{case} {name}: {distance:.1e} of {tolerance:.1e}, moved {moved:.1e}"
            );
        }
    }
}

#[test]
fn steps_are_those_of_pytorch_and_timm() {
    let fixture = Fixture::read();
    let Manifest { gradients, rates, cases, .. } = &fixture.manifest;
    assert!(cases.len() >= 7 && gradients.len() == rates.len() && rates.len() == 6);
    for level in Level::available() {
        for (name, case) in cases {
            let cx = Context::new(level, 2);
            let mut network = fixture.network(&cx);
            let mut optimizer = Optimizer::new(&network, case.options());
            for (step, (&factors, &lr)) in gradients.iter().zip(rates).enumerate() {
                for parameter in network.parameters_mut() {
                    let mixed = fixture.mixed(&parameter.name, factors);
                    parameter.grad = parameter.from_torch(mixed, &mut Vec::new());
                }
                let norm = optimizer.step(&cx, &mut network, 1.0, lr).grad_norm;
                assert_eq!(norm.is_some(), case.clip.is_some());
                if let Some(norm) = norm {
                    assert!(
                        (norm / case.norms[step] - 1.0).abs() < 1e-6,
                        "{name}: {norm} {}",
                        case.norms[step]
                    );
                }
            }
            fixture.check(name, &network.state().unwrap());
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let fixture = Fixture::read();
    for (name, case) in &fixture.manifest.cases {
        let run = |threads| {
            let cx = Context::new(Level::detect(), threads);
            let mut network = fixture.network(&cx);
            let mut optimizer = Optimizer::new(&network, case.options());
            let mut average = WeightAverage::of(&network, 0.9, 0);
            for &factors in &fixture.manifest.gradients {
                for parameter in network.parameters_mut() {
                    let mixed = fixture.mixed(&parameter.name, factors);
                    parameter.grad = parameter.from_torch(mixed, &mut Vec::new());
                }
                optimizer.step(&cx, &mut network, 0.3, 0.1);
                average.update(&cx, &mut network);
            }
            let own = network.state().unwrap();
            average.exchange(&mut network);
            [own, network.state().unwrap()].map(|state| {
                state.iter().filter_map(|(_, entry)| entry.as_f32().map(<[f32]>::to_vec)).collect::<Vec<_>>()
            })
        };
        let first = run(1);
        assert!(first[0] != first[1]);
        assert!([2, 3, 8].iter().all(|&threads| run(threads) == first), "{name} depends on the threads");
    }
}

#[test]
fn averages_are_those_of_timm() {
    let fixture = Fixture::read();
    let cx = Context::new(Level::detect(), 2);
    assert_eq!(fixture.manifest.averages.len(), 2);
    for (name, &decay) in &fixture.manifest.averages {
        let mut network = fixture.network(&cx);
        let mut average = WeightAverage::of(&network, decay, 0);
        for &factors in &fixture.manifest.gradients {
            network.load(&cx, &fixture.path, fixture.state(factors)).unwrap();
            average.update(&cx, &mut network);
        }
        average.exchange(&mut network);
        fixture.check(name, &network.state().unwrap());
        average.exchange(&mut network);
        let last = fixture.manifest.gradients.last().unwrap();
        let bias = network.parameters().last().unwrap();
        assert_eq!(bias.value, fixture.mixed(&bias.name, *last), "the network has its own weights again");
    }
}
