use super::*;
use crate::arch::{Arch, Downsample, Shortcut, Stage, StemPool, StrideOn, preset_names};
use stridenet_kernels::conv::{AverageWindow, Edge, Window};

fn preset(name: &str) -> Arch {
    Arch::preset(name).unwrap()
}

/// Names of the blocks whose shortcut is not the identity.
fn reshaping(arch: &Arch) -> Vec<String> {
    let blocks = arch.structure().unwrap().blocks;
    blocks.into_iter().filter(|b| b.shortcut != BlockShortcut::Identity).map(|b| b.name).collect()
}

#[test]
fn a_shortcut_changes_shape_exactly_where_stride_or_channels_do() {
    assert_eq!(reshaping(&preset("resnet18")), ["layer2.0", "layer3.0", "layer4.0"]);
    // The first bottleneck widens 64 to 256 channels at stride 1.
    assert_eq!(reshaping(&preset("resnet50")), ["layer1.0", "layer2.0", "layer3.0", "layer4.0"]);

    // A strided block whose channels stay the same needs a projection too.
    let equal = [(1, 1), (2, 2), (2, 1), (1, 3)].map(|(blocks, stride)| Stage { blocks, width: 16, stride });
    let arch = Arch { stages: equal.to_vec(), ..preset("resnet20") };
    assert_eq!(reshaping(&arch), ["layer2.0", "layer4.0"]);
    let structure = arch.structure().unwrap();
    let BlockShortcut::Projection { pool: None, unit } = &structure.blocks[1].shortcut else {
        panic!("a projection")
    };
    assert_eq!(unit.geometry, ConvGeometry::square(16, 16, 1, 2));
    let names = (unit.conv.as_str(), unit.norm.as_deref());
    assert_eq!(names, ("layer2.0.downsample.0", Some("layer2.0.downsample.1")));
    assert!(!unit.relu);

    // A stem of another width than the first stage.
    assert_eq!(
        reshaping(&Arch { stem_width: 24, ..preset("resnet20") }),
        ["layer1.0", "layer2.0", "layer3.0"]
    );
}

#[test]
fn zero_padding_has_no_weights_and_only_widens() {
    let arch = Arch { shortcut: Shortcut::ZeroPad, ..preset("resnet20") };
    let structure = arch.structure().unwrap();
    assert_eq!(
        structure.blocks[3].shortcut,
        BlockShortcut::ZeroPad { stride: 2, in_channels: 16, out_channels: 32 }
    );
    assert!(structure.units().all(|unit| !unit.conv.contains("downsample")));

    let mut narrowing = arch;
    narrowing.stages[2].width = 24;
    assert_eq!(
        narrowing.validate().unwrap_err().to_string(),
        "shortcut is zero-pad, but layer3.0 narrows 32 channels to 24; \
         use shortcut projection or widths that do not shrink"
    );
}

/// Strides of the three convolutions of a bottleneck and of its projection.
fn strides(arch: &Arch, block: usize) -> Vec<usize> {
    let block = arch.structure().unwrap().blocks.swap_remove(block);
    block.units.iter().chain(block.shortcut.unit()).map(|unit| unit.geometry.stride[0]).collect()
}

#[test]
fn the_stride_sits_on_the_chosen_convolution() {
    let v15 = preset("resnet50");
    let v1 = Arch { stride_on: StrideOn::Conv1x1, ..v15.clone() };
    assert_eq!(strides(&v15, 3), [1, 2, 1, 2]);
    assert_eq!(strides(&v1, 3), [2, 1, 1, 2]);
    assert_eq!(strides(&v15, 0), [1, 1, 1, 1]);
    assert_eq!(strides(&v1, 4), [1, 1, 1]);
    assert_eq!(strides(&preset("resnet18"), 2), [2, 1, 2]);
}

#[test]
fn a_pool_takes_over_the_stride_behind_the_relu() {
    for stride_on in [StrideOn::Conv1x1, StrideOn::Conv3x3] {
        let arch = Arch { stride_on, downsample: Downsample::BlurPool, ..preset("resnet50") };
        assert_eq!(strides(&arch, 3), [1, 1, 1, 2]);
        let structure = arch.structure().unwrap();
        let pooled: Vec<_> = structure.units().filter(|unit| !unit.pools.is_empty()).collect();
        let position = if stride_on == StrideOn::Conv1x1 { 1 } else { 2 };
        let expected = ["conv1".to_owned()]
            .into_iter()
            .chain((2..=4).map(|layer| format!("layer{layer}.0.conv{position}")))
            .collect::<Vec<_>>();
        assert_eq!(pooled.iter().map(|unit| unit.conv.clone()).collect::<Vec<_>>(), expected);
        assert!(pooled.iter().all(|unit| unit.relu));
        assert_eq!(pooled[0].pools, [PoolKind::Max(Window::same(3, 1)), PoolKind::Blur { stride: 2 }]);
        assert_eq!(pooled[1].pools, [PoolKind::Blur { stride: 2 }]);
        // The weights are those of the strided network.
        assert_eq!(structure.tensors(), preset("resnet50").structure().unwrap().tensors());
    }
}

#[test]
fn widths_and_groups_are_torchvisions() {
    let conv2 = |name: &str, block: usize| preset(name).structure().unwrap().blocks[block].units[1].geometry;
    assert_eq!(conv2("resnet50", 0), ConvGeometry::square(64, 64, 3, 1));
    assert_eq!(conv2("wide_resnet50_2", 0), ConvGeometry::square(128, 128, 3, 1));
    assert_eq!(
        conv2("resnext50_32x4d", 3),
        ConvGeometry { groups: 32, ..ConvGeometry::square(256, 256, 3, 2) }
    );
    // base_width 26 as in Res2Net: the division rounds down.
    let arch = Arch { base_width: 26, ..preset("resnet50") };
    assert_eq!(arch.structure().unwrap().blocks[0].units[1].geometry, ConvGeometry::square(26, 26, 3, 1));
}

#[test]
fn relus_stand_everywhere_but_before_additions() {
    let structure = preset("resnet50").structure().unwrap();
    assert!(structure.stem[0].relu);
    for block in &structure.blocks {
        assert_eq!(block.units.iter().map(|unit| unit.relu).collect::<Vec<_>>(), [true, true, false]);
    }
}

#[test]
fn state_dicts_have_torchs_names_in_torchs_order() {
    let names = |name: &str| -> Vec<String> {
        preset(name).structure().unwrap().tensors().into_iter().map(|tensor| tensor.name).collect()
    };
    let resnet18 = names("resnet18");
    assert_eq!(resnet18.len(), 122);
    assert_eq!(
        resnet18[..7],
        [
            "conv1.weight",
            "bn1.weight",
            "bn1.bias",
            "bn1.running_mean",
            "bn1.running_var",
            "bn1.num_batches_tracked",
            "layer1.0.conv1.weight"
        ]
    );
    let position = resnet18.iter().position(|name| name == "layer2.0.downsample.0.weight").unwrap();
    assert_eq!(resnet18[position - 1], "layer2.0.bn2.num_batches_tracked");
    assert_eq!(resnet18[position + 1], "layer2.0.downsample.1.weight");
    assert_eq!(resnet18[position + 6], "layer2.1.conv1.weight");
    assert_eq!(resnet18[120..], ["fc.weight", "fc.bias"]);

    let resnet50 = names("resnet50");
    assert_eq!(resnet50.len(), 320);
    for name in ["layer1.0.downsample.1.running_var", "layer3.5.conv3.weight", "layer4.2.bn3.bias"] {
        assert!(resnet50.iter().any(|n| n == name), "{name}");
    }
    assert!(!resnet50.iter().any(|n| n.starts_with("layer4.1.downsample")));
}

#[test]
fn tensor_shapes_are_torchs_and_hold_all_parameters() {
    let structure = preset("resnext50_32x4d").structure().unwrap();
    let tensors = structure.tensors();
    let shape = |name: &str| tensors.iter().find(|t| t.name == name).map(|t| t.shape.clone());
    assert_eq!(shape("conv1.weight"), Some(vec![64, 3, 7, 7]));
    assert_eq!(shape("layer1.0.conv2.weight"), Some(vec![128, 4, 3, 3]));
    assert_eq!(shape("layer1.0.bn2.running_var"), Some(vec![128]));
    assert_eq!(shape("layer2.0.downsample.0.weight"), Some(vec![512, 256, 1, 1]));
    assert_eq!(shape("bn1.num_batches_tracked"), Some(vec![]));
    assert_eq!(shape("fc.weight"), Some(vec![1000, 2048]));

    let trainable = tensors.iter().filter(|t| t.trainable).map(|t| t.shape.iter().product::<usize>() as u64);
    assert_eq!(trainable.sum::<u64>(), 25_028_904);
    assert_eq!(structure.param_count(), 25_028_904);
}

#[test]
fn both_paths_of_every_block_agree_at_every_size() {
    for name in preset_names() {
        for downsample in
            [Downsample::Strided, Downsample::MaxPool, Downsample::AvgPool, Downsample::BlurPool]
        {
            for output_stride in [None, Some(8)] {
                let arch = Arch { downsample, output_stride, stem_pool: StemPool::Max, ..preset(name) };
                let structure = arch.structure().unwrap();
                for input in [[4, 4], [5, 7], [33, 31], [64, 97], [225, 223]] {
                    let mut size = structure.stem_size(input).unwrap();
                    for block in &structure.blocks {
                        let main = block.output_size(size).unwrap();
                        let at = format!("{name} {} {downsample} {output_stride:?}", block.name);
                        assert_eq!(main, size.map(|s| s.div_ceil(block.stride)), "{at}");
                        assert_eq!(block.shortcut.output_size(size), Ok(main), "{at}");
                        size = main;
                    }
                    let shrink = arch.feature_info().unwrap().last().unwrap().reduction;
                    // The stem's average pool drops what is left over.
                    let lost = usize::from(downsample == Downsample::AvgPool && arch.stem_stride() == 4);
                    let least = input.map(|s| (s - 3 * lost).div_ceil(shrink));
                    let most = input.map(|s| s.div_ceil(shrink));
                    assert!(
                        size == most || lost == 1 && size >= least && size <= most,
                        "{name} {input:?} {size:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn output_strides_dilate_as_timm_does() {
    let geometry = |arch: &Arch, name: &str| {
        arch.structure().unwrap().units().find(|unit| unit.conv == name).unwrap().geometry
    };
    let dilations = |arch: &Arch, names: &[&str]| -> Vec<usize> {
        names.iter().map(|name| geometry(arch, name).dilation[0]).collect()
    };
    // timm 1.0.31: `[m.dilation[0] for m in timm.create_model(name, output_stride=8).modules() ...]`.
    let basic = Arch { output_stride: Some(8), ..preset("resnet18") };
    let names = [
        "layer2.0.conv1",
        "layer3.0.conv1",
        "layer3.0.conv2",
        "layer3.1.conv1",
        "layer4.0.conv1",
        "layer4.0.conv2",
    ];
    assert_eq!(dilations(&basic, &names), [1, 1, 2, 2, 2, 4]);
    let deep = Arch { output_stride: Some(16), ..preset("resnet50d") };
    let names = ["layer3.1.conv2", "layer4.0.conv2", "layer4.1.conv2", "layer4.0.downsample.1"];
    assert_eq!(dilations(&deep, &names), [1, 1, 2, 1]);
    let structure = deep.structure().unwrap();
    let pools: Vec<_> = structure
        .blocks
        .iter()
        .filter_map(|block| match block.shortcut {
            BlockShortcut::Projection { pool, .. } => Some(pool),
            _ => None,
        })
        .collect();
    let same = AverageWindow { kernel: 2, stride: 1, edge: Edge::Zeros };
    let shrinking = Some(PoolKind::Avg(AverageWindow::partial(2)));
    assert_eq!(pools, [None, shrinking, shrinking, Some(PoolKind::Avg(same))]);
    // SENet's 3×3 projections are dilated as the block before.
    let senet = Arch { output_stride: Some(8), ..preset("senet154") };
    let projection = |layer: usize| geometry(&senet, &format!("layer{layer}.0.downsample.0"));
    assert_eq!([1, 2, 3, 4].map(|layer| projection(layer).kernel[0]), [1, 3, 3, 3]);
    assert_eq!([1, 2, 3, 4].map(|layer| projection(layer).dilation[0]), [1, 1, 1, 2]);
    // A blur takes the place of a stride that dilation has replaced.
    let blur = Arch { output_stride: Some(16), ..preset("resnetblur50") };
    let structure = blur.structure().unwrap();
    let unit = |name: &str| structure.units().find(|unit| unit.conv == name).unwrap().pools.clone();
    assert_eq!(unit("layer4.0.conv2"), [PoolKind::Blur { stride: 1 }]);
    assert_eq!(unit("layer4.1.conv2"), []);
    let strides: Vec<usize> = blur.feature_info().unwrap().iter().map(|info| info.reduction).collect();
    assert_eq!(strides, [2, 4, 8, 16, 16]);
}

#[test]
fn deep_dilations_are_refused_before_they_overflow() {
    let stages = vec![Stage { blocks: 1, width: 16, stride: 16 }; 32];
    let arch = Arch { stages, output_stride: Some(1), ..preset("resnet20") };
    let error = arch.structure().unwrap_err().to_string();
    assert_eq!(error, "the dilation of layer4 is 65536, expected 1 to 16384");
}

#[test]
fn a_deep_network_within_the_limits_is_walked() {
    let stages = vec![Stage { blocks: 10_000, width: 16, stride: 1 }];
    let structure = Arch { stages, ..preset("resnet20") }.structure().unwrap();
    assert_eq!(structure.blocks.len(), 10_000);
    assert_eq!(structure.blocks[9_999].name, "layer1.9999");
}
