use super::encode::encode;
use super::evaluate::{Array, evaluate};
use super::export::relative;
use super::lower::lower;
use super::*;
use crate::Tensor;
use crate::arch::{Arch, Downsample, Shortcut, Stage, StrideOn, preset_names};
use crate::kernels::{Context, Level};
use crate::layer::Workspace;
use crate::network::{Initialise, Network};
use crate::random::random_images;
use crate::weights::onnx::{Attribute, NewConstant, NewModel, Node, OnnxModel};
use crate::weights::{NonFinite, StateDict, TensorEntry, TensorValues, read_safetensors};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

fn context() -> Arc<Context> {
    Arc::new(Context::new(Level::detect(), 2))
}

/// A preset's kind of network, narrow and shallow, for small images.
fn small(name: &str) -> Arch {
    let mut arch = Arch::preset(name).unwrap();
    (arch.stem_width, arch.num_classes, arch.img_size) = (16, 5, [40, 36]);
    arch.groups = arch.groups.min(2);
    if arch.base_width != 64 {
        arch.base_width = 48;
    }
    arch.stages = vec![
        Stage { blocks: 2, width: 8, stride: 1 },
        Stage { blocks: 1, width: 16, stride: 2 },
        Stage { blocks: 2, width: 24, stride: 2 },
    ];
    arch
}

/// A network whose batch norms are far from 1 and 0.
fn random(cx: &Context, arch: &Arch) -> Network {
    let mut network = Network::new(arch, arch.img_size, cx.level(), Initialise::default()).unwrap();
    let mut state = StateDict::new();
    let mut seed = 1u32;
    let mut uniform = |low: f32, high: f32| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        low + (high - low) * (seed >> 8) as f32 / (1 << 24) as f32
    };
    for (name, entry) in network.state().unwrap().iter() {
        let values = match entry.values() {
            TensorValues::F32(values) => TensorValues::F32(match entry.shape().len() {
                1 if name.ends_with("running_var") => values.iter().map(|_| uniform(0.5, 2.0)).collect(),
                1 if name.ends_with("weight") => values.iter().map(|_| uniform(0.5, 1.5)).collect(),
                1 => values.iter().map(|_| uniform(-0.5, 0.5)).collect(),
                _ => values.clone(),
            }),
            counter => counter.clone(),
        };
        state.insert_values(name.to_owned(), entry.shape().to_vec(), values).unwrap();
    }
    network.load(cx, Path::new("random"), state).unwrap();
    network
}

fn logits(cx: &Context, network: &Network) -> Vec<f32> {
    let [height, width] = network.input();
    let x = random_images([2, height, width, network.arch().in_channels]);
    network.infer(cx, &mut Workspace::default(), &x).unwrap().into_data()
}

fn floats(state: &StateDict) -> Vec<(&str, &[f32])> {
    state.iter().filter_map(|(name, entry)| Some((name, TensorEntry::as_f32(entry)?))).collect()
}

/// Writes a network, and reads it back without being told what it is.
fn through_a_file(cx: &Arc<Context>, arch: &Arch) {
    let (network, folder) = (random(cx, arch), tempfile::tempdir().unwrap());
    let expected = logits(cx, &network);
    for folded in [false, true] {
        let path = folder.path().join("net.onnx");
        let options = OnnxOptions { folded, metadata: vec![("who".into(), "us".into())] };
        let report = write_onnx(cx, &network, &path, &options).unwrap();
        assert!(report.distance < 1e-5, "{}: {report:?}", arch.name);
        let file = OnnxFile::read(&path).unwrap();
        assert_eq!(file.metadata().unwrap()["who"], "us");
        for known in [None, Some(arch)] {
            let read = file
                .network(known, NonFinite::Refuse)
                .unwrap_or_else(|error| panic!("{}: {error}", arch.name));
            let names = |arch: &Arch| Arch { name: "any".to_owned(), ..arch.clone() }.structure().unwrap();
            assert_eq!(names(&read.arch), names(arch), "{}", arch.name);
            if folded {
                assert!(read.folded > 0);
            } else {
                let state = network.state().unwrap();
                assert!(floats(&read.state) == floats(&state), "{}: the weights' bits", arch.name);
            }
            let (again, _) = Network::from_state(cx, &read.arch, arch.img_size, &path, read.state).unwrap();
            let distance = relative(&logits(cx, &again), &expected);
            assert!(distance <= if folded { 1e-5 } else { 0.0 }, "{}: {distance}", arch.name);
        }
    }
}

#[test]
fn every_kind_of_network_comes_back_from_a_file() {
    let cx = context();
    let mut seen: Vec<Arch> = Vec::new();
    for name in preset_names() {
        let mut arch = small(name);
        // Many presets differ only in their sizes.
        arch.name = "small".to_owned();
        if !seen.contains(&arch) {
            seen.push(arch);
        }
    }
    seen.extend(
        [Downsample::MaxPool, Downsample::AvgPool].map(|downsample| Arch { downsample, ..small("resnet18") }),
    );
    seen.push(Arch { shortcut: Shortcut::ZeroPad, stem_width: 8, ..small("resnet20") });
    seen.push(Arch { stride_on: StrideOn::Conv1x1, ..small("resnet50") });
    seen.push(Arch { output_stride: Some(4), ..small("resnet50d") });
    seen.push(Arch { output_stride: Some(8), ..small("resnet18") });
    for arch in &seen {
        through_a_file(&cx, arch);
    }
    assert!(seen.len() > 15, "{}", seen.len());
}

/// What PyTorch computes from each fixture is what its network computes, and what its network's file computes.
#[test]
fn files_of_both_exporters_compute_what_pytorch_computes() {
    let cx = context();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/onnx");
    let expected = read_safetensors(&folder.join("expected.safetensors"), NonFinite::Refuse).unwrap();
    let tensor = |name: String| {
        let entry = expected.get(&name).unwrap();
        (entry.shape().to_vec(), entry.as_f32().unwrap().to_vec())
    };
    for (name, folded, depths) in [
        ("torchscript_fused", true, &[2, 1, 1, 1][..]),
        ("torchscript_unfused", false, &[1, 1, 1, 1]),
        ("torchscript_dilated", true, &[2, 1, 2, 1]),
        ("torchscript_blur", true, &[1, 1, 1, 1]),
        ("torchscript_eca", true, &[1, 1, 1, 1]),
        ("torchscript_preactivation", true, &[2, 1]),
        ("torchscript_zero_pad", true, &[2, 1]),
        ("dynamo_se", true, &[1, 1, 1, 1]),
        ("dynamo_rs", false, &[1, 1, 1, 1]),
        ("dynamo_eca", false, &[1, 1, 1, 1]),
        ("dynamo_preactivation", true, &[2, 1]),
        ("dynamo_zero_pad", true, &[2, 1]),
        ("dynamo_beside", true, &[2, 1]),
    ] {
        let path = folder.join(format!("{name}.onnx"));
        let read = OnnxFile::read(&path).unwrap().network(None, NonFinite::Refuse);
        let OnnxNetwork { arch, state, folded: inside, producer } =
            read.unwrap_or_else(|error| panic!("{error}"));
        assert!(producer.starts_with("pytorch 2.15.0"), "{producer}");
        assert_eq!(inside > 0, folded, "{name}");
        assert_eq!(arch.stages.iter().map(|stage| stage.blocks).collect::<Vec<_>>(), depths, "{name}");
        let ((shape, images), (_, logits)) = (tensor(format!("{name}.x")), tensor(format!("{name}.logits")));
        let &[count, channels, height, width] = &shape[..] else { panic!("{shape:?}") };
        assert_eq!(arch.img_size, [height, width], "{name}");

        let dag = lower(&arch.structure().unwrap(), channels);
        for fold in [false, true] {
            let encoded = encode(&dag, [height, width], fold);
            let mut bytes = Vec::new();
            let values = |name: &str| encoded.values(name, &state).map_err(std::io::Error::other);
            encoded.model.write(&mut bytes, values).unwrap();
            let model = OnnxModel::from_bytes(&path, &bytes).unwrap();
            let x = Array { shape: shape.clone(), data: images.clone() };
            let found = evaluate(&cx, &path, &model, x).unwrap_or_else(|error| panic!("{name}: {error}"));
            let distance = relative(&found.data, &logits);
            assert!(distance < 1e-5, "{name}, folded {fold}: {distance:e}");
        }

        let (network, _) = Network::from_state(&cx, &arch, arch.img_size, &path, state).unwrap();
        let x = Tensor::from_nchw([count, channels, height, width], &images).unwrap();
        let found = network.infer(&cx, &mut Workspace::default(), &x).unwrap();
        let distance = relative(found.data(), &logits);
        assert!(distance < 1e-5, "{name}: {distance:e}");
    }
}

/// The file of a small network, to be damaged.
fn file(change: impl FnOnce(&mut NewModel)) -> Vec<u8> {
    let arch =
        Arch { stages: vec![Stage { blocks: 2, width: 8, stride: 2 }], stem_width: 8, ..small("resnet20") };
    let mut model = encode(&lower(&arch.structure().unwrap(), 3), [9, 9], false).model;
    change(&mut model);
    bytes(&model)
}

/// A written model whose floats are all the same.
fn bytes(model: &NewModel) -> Vec<u8> {
    let lengths: HashMap<String, usize> = model
        .constants
        .iter()
        .filter_map(|constant| match constant {
            NewConstant::Floats { name, shape } => Some((name.clone(), shape.iter().product())),
            NewConstant::Ints { .. } => None,
        })
        .collect();
    let mut bytes = Vec::new();
    model.write(&mut bytes, |name| Ok(vec![0.5; lengths[name]])).unwrap();
    bytes
}

fn read(bytes: Vec<u8>) -> Result<OnnxNetwork, String> {
    let file = OnnxFile::from_bytes(Path::new("net.onnx"), bytes);
    let read = file.network(None, NonFinite::Refuse).map_err(|error| error.to_string());
    if let Err(message) = &read {
        assert!(message.contains("net.onnx") && !message.contains('\n'), "{message}");
    }
    read
}

#[test]
fn every_truncation_is_refused_and_any_flipped_bit_survived() {
    let bytes = file(|_| {});
    assert_eq!(read(bytes.clone()).unwrap().arch.stages.len(), 1);
    for length in 0..bytes.len() {
        assert!(read(bytes[..length].to_vec()).is_err(), "{length}");
    }
    // Weights are most of the file, and any number is one: the parts around them are damaged.
    for bit in (0..8 * bytes.len()).step_by(5) {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let _ = read(damaged);
    }
}

#[test]
fn nodes_that_no_residual_network_has_are_all_named() {
    let message = read(file(|model| {
        for node in &mut model.nodes {
            match (node.operator.as_str(), node.name.as_str()) {
                ("Relu", _) => node.operator = "HardSwish".into(),
                ("Conv", "layer1.0.conv1") => {
                    node.attributes.insert("auto_pad".into(), Attribute::Text("SAME_UPPER".into()));
                }
                _ => {}
            }
        }
    }))
    .unwrap_err();
    for part in [
        "net.onnx holds 6 nodes that no residual network here has: conv1.relu (HardSwish, nearest is Relu), ",
        "layer1.0.conv1 (Conv with auto_pad SAME_UPPER, nearest is Conv with auto_pad NOTSET)",
        "layer1.1.relu (HardSwish, nearest is Relu)",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn other_graphs_are_refused_where_they_differ() {
    fn at<'m>(model: &'m mut NewModel, name: &str) -> &'m mut Node<'static> {
        model.nodes.iter_mut().find(|node| node.name == name).unwrap()
    }
    fn ints(values: &[i64]) -> Attribute<'static> {
        Attribute::Ints(values.to_vec())
    }
    type Change = fn(&mut NewModel);
    let cases: [(Change, &str); 14] = [
        (
            |model| at(model, "layer1.0.conv1").inputs[0] = "layer1.0.add".into(),
            "the node layer1.0.conv1 reads layer1.0.add, which only a later node makes (a cycle)",
        ),
        (|model| at(model, "fc").inputs[0] = "nowhere".into(), "nothing makes the value nowhere"),
        (|model| at(model, "conv1").outputs[0] = "bn1".into(), "the value bn1 is made twice"),
        (
            |model| at(model, "conv1").inputs[1] = "bn1.weight".into(),
            "the node conv1 (Conv) has weights of the shape [8] for an input of the shape [?, 3, 9, 9]",
        ),
        (
            |model| drop(at(model, "conv1").attributes.insert("pads".into(), ints(&[1, 1, 2, 2]))),
            "the node conv1 (Conv) has pads [1, 1, 2, 2], expected the same before and after",
        ),
        (
            |model| drop(at(model, "conv1").attributes.insert("strides".into(), ints(&[0, i64::MAX]))),
            "has strides [0, 9223372036854775807], expected two numbers from 1",
        ),
        (
            |model| drop(at(model, "conv1").attributes.insert("pads".into(), ints(&[4, 4, 4, 4]))),
            "expected a 3×3 convolution 3→8 with stride 1 (conv1)",
        ),
        (
            |model| at(model, "layer1.1.add").inputs[1] = "conv1.relu".into(),
            "adds the shapes [?, 8, 5, 5] and [?, 8, 9, 9]",
        ),
        (
            |model| at(model, "layer1.1.add").inputs[1] = "layer1.1.bn2".into(),
            "is not the residual network resnet: at layer1.1.conv2 (a 3×3 convolution 8→8 with stride 1)",
        ),
        (|model| at(model, "fc").inputs.truncate(1), "the node fc (Gemm) has no input 1"),
        (|model| model.output.0 = "flatten".into(), "the output flatten is not that of a linear layer"),
        (|model| model.output.0 = "input".into(), "the output input is not that of a linear layer"),
        (|model| model.input.1.truncate(3), "the input input has the shape [?, 3, 9], expected [N, C, H, W]"),
        (|model| model.nodes.retain(|node| node.operator != "Flatten"), "nothing makes the value flatten"),
    ];
    for (change, expected) in cases {
        let message = read(file(change)).unwrap_err();
        assert!(message.contains(expected), "{message}\nexpected {expected}");
    }
}

#[test]
fn another_architecture_is_refused_where_it_differs() {
    let bytes = file(|_| {});
    let file = OnnxFile::from_bytes(Path::new("net.onnx"), bytes);
    let message = file.network(Some(&small("resnet18")), NonFinite::Refuse).unwrap_err().to_string();
    assert!(message.contains("net.onnx is not the residual network resnet18: at "), "{message}");
    assert!(message.contains("(a linear layer 8→5), expected a linear layer 24→5 (fc)"), "{message}");
}

#[test]
fn a_network_that_is_written_wrongly_is_noticed() {
    let (cx, folder) = (context(), tempfile::tempdir().unwrap());
    let arch = small("resnet20");
    let mut network = random(&cx, &arch);
    let path = folder.path().join("net.onnx");
    std::fs::write(&path, b"old").unwrap();
    // No logits agree with these.
    network.parameters_mut().last().unwrap().value[0] = f32::NAN;
    let error = write_onnx(&cx, &network, &path, &OnnxOptions::default()).unwrap_err().to_string();
    assert!(error.contains("differ from its own by NaN") && error.contains("nothing was written"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_constant_that_is_shared_does_not_become_a_large_network() {
    let arch = Arch {
        stages: vec![Stage { blocks: 30, width: 256, stride: 1 }],
        stem_width: 256,
        ..small("resnet20")
    };
    let mut model = encode(&lower(&arch.structure().unwrap(), 3), [9, 9], false).model;
    // All convolutions of the blocks have the weights of the first one.
    for node in
        model.nodes.iter_mut().filter(|node| node.operator == "Conv" && node.name.starts_with("layer1"))
    {
        node.inputs[1] = "layer1.0.conv1.weight".into();
    }
    model.constants.retain(|constant| match constant {
        NewConstant::Floats { name, .. } => !name.contains(".conv") || name == "layer1.0.conv1.weight",
        NewConstant::Ints { .. } => true,
    });
    let message = read(bytes(&model)).unwrap_err();
    assert!(
        message.contains("its layers have 35") && message.contains("weights, the file holds 2"),
        "{message}"
    );
}
