//! Every network of timm's family: names, shapes and order of its state dict, parameters, feature maps, and every
//! convolution and pool at each output stride, against `fixtures/family/structures.json`.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use stridenet::arch::{
    Arch, BlockShortcut, Overrides, PoolKind, Shapes, Structure, TensorSpec, preset_names, recognise,
};
use stridenet::kernels::conv::{AverageWindow, Edge};

#[derive(Deserialize)]
struct Fixture {
    networks: Vec<Network>,
}

#[derive(Deserialize)]
struct Network {
    name: String,
    param_count: u64,
    state: String,
    features: Vec<(String, usize, usize)>,
    convolutions: BTreeMap<usize, String>,
    pools: BTreeMap<usize, Vec<String>>,
}

/// FNV-1a, 64 bits, of the lines with a line feed behind each.
fn fnv(lines: &[String]) -> String {
    let bytes = lines.iter().flat_map(|line| line.bytes().chain([b'\n']));
    let digest = bytes.fold(0xcbf2_9ce4_8422_2325u64, |value, byte| {
        (value ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{digest:016x}")
}

fn convolutions(structure: &Structure) -> Vec<String> {
    let line = |unit: &stridenet::arch::Unit| {
        let g = unit.geometry;
        let numbers =
            [g.in_channels, g.out_channels, g.kernel[0], g.stride[0], g.padding[0], g.dilation[0], g.groups];
        format!("{} {}", unit.conv, numbers.map(|number| number.to_string()).join(" "))
    };
    let mut lines: Vec<String> = structure.units().map(line).collect();
    lines.sort();
    lines
}

fn pools(structure: &Structure) -> Vec<String> {
    let line = |kind: PoolKind, in_block: bool| match kind {
        PoolKind::Max(window) => format!("max {} {}", window.kernel, window.stride),
        PoolKind::Blur { stride } => format!("blur 3 {stride}"),
        PoolKind::Avg(AverageWindow { kernel, stride, edge }) => {
            let edge = match edge {
                // timm's networks drop what is left over here, so that odd sizes do not fit the shortcut; here they do.
                Edge::Partial if in_block => "drop",
                Edge::Partial => "partial",
                Edge::Drop => "drop",
                Edge::Zeros => "zeros",
            };
            format!("avg {edge} {kernel} {stride}")
        }
    };
    let stem = structure.stem.iter().flat_map(|unit| &unit.pools).map(|&kind| line(kind, false));
    let main = structure.blocks.iter().flat_map(|block| &block.units).flat_map(|unit| &unit.pools);
    let shortcuts = structure.blocks.iter().filter_map(|block| match block.shortcut {
        BlockShortcut::Projection { pool, .. } => pool,
        _ => None,
    });
    let mut lines: Vec<String> = stem
        .chain(main.map(|&kind| line(kind, true)))
        .chain(shortcuts.map(|kind| line(kind, false)))
        .collect();
    lines.sort();
    lines
}

/// A line for each tensor of the state dict.
fn state(structure: &Structure) -> Vec<String> {
    let line = |tensor: TensorSpec| {
        let sizes = tensor.shape.iter().map(|size| format!(" {size}"));
        std::iter::once(tensor.name.clone()).chain(sizes).collect()
    };
    structure.tensors().into_iter().map(line).collect()
}

#[derive(Deserialize)]
struct Torchvision {
    networks: Vec<TorchvisionNetwork>,
}

#[derive(Deserialize)]
struct TorchvisionNetwork {
    name: String,
    param_count: u64,
    state: String,
}

#[test]
fn every_network_of_torchvision_is_recognised_from_its_tensors() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/formats/torchvision.json");
    let fixture: Torchvision = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(fixture.networks.len(), 10);
    for network in &fixture.networks {
        let arch = Arch::preset(&network.name).unwrap();
        let structure = arch.structure().unwrap();
        assert_eq!(
            (structure.param_count(), &fnv(&state(&structure))),
            (network.param_count, &network.state)
        );
        let tensors = structure.tensors().into_iter();
        let shapes: Shapes = tensors.map(|tensor| (tensor.name, tensor.shape)).collect();
        assert_eq!(recognise(&shapes, None).unwrap().arch, arch);
    }
}

#[test]
fn every_network_of_timm_has_timms_structure() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/family/structures.json");
    let fixture: Fixture = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(fixture.networks.len(), 88);
    for network in &fixture.networks {
        let name = &network.name;
        let arch = Arch::preset(name).unwrap();
        let structure = arch.structure().unwrap();
        let state = state(&structure);
        assert_eq!(structure.param_count(), network.param_count, "{name}");
        assert_eq!(fnv(&state), network.state, "{name}: {state:#?}");
        let features: Vec<(String, usize, usize)> = arch
            .feature_info()
            .unwrap()
            .into_iter()
            .map(|feature| (feature.module, feature.channels, feature.reduction))
            .collect();
        assert_eq!(features, network.features, "{name}");
        for (&stride, digest) in &network.convolutions {
            let dilated = Overrides { output_stride: Some(stride), ..Overrides::default() };
            let structure = arch.with(&dilated).unwrap().structure().unwrap();
            let lines = convolutions(&structure);
            assert_eq!(&fnv(&lines), digest, "{name}, output stride {stride}: {lines:#?}");
            assert_eq!(pools(&structure), network.pools[&stride], "{name}, output stride {stride}");
        }
    }
    let known: Vec<&str> = fixture.networks.iter().map(|network| network.name.as_str()).collect();
    let others: Vec<&str> = preset_names().into_iter().filter(|name| !known.contains(name)).collect();
    let cifar = ["resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "preresnet20", "preresnet56"];
    assert_eq!(others, [&cifar[..], &["preresnet110", "preresnet164", "preresnet1001"]].concat());
}
