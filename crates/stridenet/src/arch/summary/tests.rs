use super::*;
use crate::arch::{Downsample, Shortcut, Stage, StemPool, StrideOn, preset_names};

fn arch(name: &str) -> Arch {
    Arch::preset(name).unwrap()
}

fn summary(name: &str) -> Summary {
    let arch = arch(name);
    arch.summary(arch.img_size).unwrap()
}

fn layer<'a>(summary: &'a Summary, name: &str) -> &'a Layer {
    summary.layers.iter().find(|layer| layer.name == name).unwrap_or_else(|| panic!("no layer {name}"))
}

#[test]
fn parameters_and_macs_are_the_published_ones() {
    // torchvision's model cards: parameters exactly, GMACs with two decimals.
    for (name, params, gmacs) in [
        ("resnet18", 11_689_512, 1.81),
        ("resnet34", 21_797_672, 3.66),
        ("resnet50", 25_557_032, 4.09),
        ("resnet101", 44_549_160, 7.80),
        ("resnet152", 60_192_808, 11.51),
        ("wide_resnet50_2", 68_883_240, 11.40),
        ("resnext50_32x4d", 25_028_904, 4.23),
    ] {
        let summary = summary(name);
        assert_eq!(summary.param_count, params, "{name}");
        let found = summary.macs as f64 / 1e9;
        assert!((found - gmacs).abs() <= 0.005, "{name}: {found} GMACs, published {gmacs}");
    }
    assert_eq!(summary("resnet18").macs, 1_813_561_344 + 512_000);
    // RegNet's count of ResNet-50's convolution outputs is 11.1 M.
    assert_eq!(summary("resnet50").activations / 10_000, 1111);
}

#[test]
fn cifar_networks_have_the_papers_size() {
    // With option A, as in the paper: 0.27, 0.46, 0.66, 0.85 and 1.7 M parameters.
    for (name, params) in [
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
    ] {
        let paper = Arch { shortcut: Shortcut::ZeroPad, ..arch(name) };
        assert_eq!(paper.summary([32, 32]).unwrap().param_count, params, "{name}");
    }
    let resnet20 = summary("resnet20");
    assert_eq!(resnet20.param_count, 272_474);
    assert_eq!(resnet20.macs, 40_813_184);
}

#[test]
fn totals_are_the_sums_of_the_layers() {
    for name in preset_names() {
        let blurred = Arch { downsample: Downsample::BlurPool, stem_pool: StemPool::Max, ..arch(name) };
        let summary = blurred.summary([65, 47]).unwrap();
        assert_eq!(summary.param_count, summary.layers.iter().map(|l| l.param_count).sum::<u64>(), "{name}");
        assert_eq!(summary.macs, summary.layers.iter().map(|l| l.macs).sum::<u64>(), "{name}");
        let follows = |layer: &Layer| matches!(layer.kind, LayerKind::BatchNorm | LayerKind::Relu);
        for pair in summary.layers.windows(2).filter(|pair| follows(&pair[1])) {
            assert_eq!(pair[0].output, pair[1].input, "{name} {}", pair[1].name);
        }
        assert_eq!(summary.layers.last().unwrap().output, [blurred.num_classes, 1, 1]);
    }
}

#[test]
fn receptive_fields_are_the_known_ones() {
    // Araujo et al. 2019 (Computing Receptive Fields of Convolutional Neural Networks) give 483, 1027 and
    // 1507 for the three bottleneck networks of the paper.
    let last = |arch: &Arch| {
        let summary = arch.summary([224, 224]).unwrap();
        let add = summary.layers.iter().rfind(|layer| layer.kind == LayerKind::Add).unwrap();
        (add.receptive_field, add.jump)
    };
    for (name, field) in [("resnet50", 483), ("resnet101", 1027), ("resnet152", 1507)] {
        assert_eq!(last(&Arch { stride_on: StrideOn::Conv1x1, ..arch(name) }), (field, 32), "{name}");
    }
    assert_eq!(last(&arch("resnet18")), (435, 32));
    // v1.5 strides after the 3×3 window instead of before it, so each strided block sees less.
    assert_eq!(last(&arch("resnet50")), (427, 32));

    let summary = summary("resnet18");
    assert_eq!((layer(&summary, "conv1").receptive_field, layer(&summary, "conv1").jump), (7, 2));
    assert_eq!((layer(&summary, "maxpool").receptive_field, layer(&summary, "maxpool").jump), (11, 4));
    assert_eq!(layer(&summary, "layer2.0.downsample.0").receptive_field, 43);
    assert_eq!(layer(&summary, "fc").receptive_field, 435 + 6 * 32);
}

#[test]
fn v1_and_v15_differ_in_where_they_shrink() {
    let v15 = summary("resnet50");
    let v1 = Arch { stride_on: StrideOn::Conv1x1, ..arch("resnet50") }.summary([224, 224]).unwrap();
    assert_eq!(layer(&v15, "layer2.0.conv1").output, [128, 56, 56]);
    assert_eq!(layer(&v1, "layer2.0.conv1").output, [128, 28, 28]);
    assert_eq!(layer(&v1, "layer2.0.conv3").output, layer(&v15, "layer2.0.conv3").output);
    assert_eq!(v1.param_count, v15.param_count);
    // The paper, table 1: 3.8 billion for its ResNet-50.
    assert_eq!(v1.macs / 10_000_000, 385);
}

#[test]
fn layers_stand_in_execution_order_with_all_their_kinds() {
    let kinds = |arch: Arch, block: &str| -> Vec<String> {
        let summary = arch.summary([32, 32]).unwrap();
        let of_block = summary.layers.iter().filter(|layer| layer.name.starts_with(block));
        of_block.map(|layer| format!("{} {}", &layer.name[block.len()..], layer.kind)).collect()
    };
    assert_eq!(
        kinds(arch("resnet18"), "layer2.0."),
        [
            "conv1 conv",
            "bn1 batch_norm",
            "act1 relu",
            "conv2 conv",
            "bn2 batch_norm",
            "downsample.0 conv",
            "downsample.1 batch_norm",
            "add add",
            "act2 relu"
        ]
    );
    let paper = Arch { shortcut: Shortcut::ZeroPad, downsample: Downsample::AvgPool, ..arch("resnet20") };
    assert_eq!(
        kinds(paper, "layer3.0."),
        [
            "conv1 conv",
            "bn1 batch_norm",
            "act1 relu",
            "pool avg_pool",
            "conv2 conv",
            "bn2 batch_norm",
            "downsample zero_pad",
            "add add",
            "act2 relu"
        ]
    );
    assert_eq!(
        kinds(arch("seresnet18"), "layer1.0."),
        [
            "conv1 conv",
            "bn1 batch_norm",
            "act1 relu",
            "conv2 conv",
            "bn2 batch_norm",
            "se.mean global_avg_pool",
            "se.fc1 linear",
            "se.fc2 linear",
            "se.gate gate",
            "add add",
            "act2 relu"
        ]
    );
    assert_eq!(
        kinds(arch("ecaresnet50d"), "layer2.0.")[8..],
        [
            "se.mean global_avg_pool",
            "se.conv channel_conv",
            "se.gate gate",
            "downsample.pool avg_pool",
            "downsample.1 conv",
            "downsample.2 batch_norm",
            "add add",
            "act3 relu"
        ]
    );
    assert_eq!(
        kinds(arch("preresnet20"), "stages.1.blocks.0."),
        [
            "norm1 batch_norm",
            "norm1.act relu",
            "conv1 conv",
            "norm2 batch_norm",
            "norm2.act relu",
            "conv2 conv",
            "downsample.conv conv",
            "add add"
        ]
    );
    let ends = summary("resnet18");
    let names = |layers: &[Layer]| layers.iter().map(|layer| layer.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&ends.layers[..4]), ["conv1", "bn1", "act1", "maxpool"]);
    assert_eq!(names(&ends.layers[ends.layers.len() - 2..]), ["global_pool", "fc"]);
    assert_eq!(layer(&ends, "global_pool").kernel, [7, 7]);
    let deep = names(&summary("resnetrs50").layers[..12]);
    let stem = ["conv1.0", "conv1.1", "conv1.2", "conv1.3", "conv1.4", "conv1.5", "conv1.6", "bn1", "act1"];
    assert_eq!(deep, [&stem[..], &["maxpool.0", "maxpool.1", "maxpool.2"]].concat());
    let blur = names(&summary("resnetblur18").layers[..5]);
    assert_eq!(blur, ["conv1", "bn1", "act1", "maxpool.0", "maxpool.1"]);
    let pre = summary("resnetv2_50d");
    assert_eq!(names(&pre.layers[pre.layers.len() - 4..]), ["norm", "norm.act", "global_pool", "head.fc"]);
}

#[test]
fn pools_cost_and_see_what_they_should() {
    let with = |downsample| Arch { downsample, ..arch("resnet20") }.summary([31, 33]).unwrap();
    let blur = with(Downsample::BlurPool);
    let pool = layer(&blur, "layer2.0.pool");
    assert_eq!((pool.input, pool.output), ([32, 31, 33], [32, 16, 17]));
    assert_eq!((pool.kernel, pool.stride, pool.macs), ([3, 3], [2, 2], 9 * 32 * 16 * 17));
    let avg = with(Downsample::AvgPool);
    let pool = layer(&avg, "layer2.0.pool");
    assert_eq!((pool.kernel, pool.output, pool.macs), ([2, 2], [32, 16, 17], 0));
    // A pool after the convolution sees wider than a strided convolution: by the pool's window, less one.
    let field = |summary: &Summary| layer(summary, "layer2.0.conv2").receptive_field;
    let strided = with(Downsample::Strided);
    assert_eq!(field(&blur), field(&strided) + 2);
    assert_eq!(field(&avg), field(&strided) + 1);
    assert_eq!(field(&with(Downsample::MaxPool)), field(&strided) + 2);
}

#[test]
fn gates_and_dilations_cost_and_see_what_they_should() {
    let gated = Arch { attention: crate::arch::Attention::Se, ..arch("resnet50") }.summary([64, 64]).unwrap();
    let fc1 = layer(&gated, "layer4.2.se.fc1");
    assert_eq!((fc1.output, fc1.param_count, fc1.macs), ([128, 1, 1], 128 * 2049, 128 * 2048));
    let gate = layer(&gated, "layer4.2.se.gate");
    assert_eq!((gate.output, gate.macs), ([2048, 2, 2], 0));
    // The same windows at the same distances of input pixels: a dilated network sees as far.
    let dilated = Arch { output_stride: Some(8), ..arch("resnet18") };
    let (plain, dilated) = (arch("resnet18").summary([64, 64]).unwrap(), dilated.summary([64, 64]).unwrap());
    let ends = |summary: &Summary| {
        let conv = layer(summary, "layer4.1.conv2");
        (conv.output, conv.receptive_field, conv.jump)
    };
    assert_eq!(ends(&plain), ([512, 2, 2], 435, 32));
    assert_eq!(ends(&dilated), ([512, 8, 8], 435, 8));
    assert_eq!(layer(&dilated, "layer4.1.conv2").dilation, [4, 4]);
    assert!(dilated.to_table().contains("3×3 d4"));
}

#[test]
fn json_has_the_documented_fields() {
    let tiny = Arch { stages: vec![], ..arch("resnet20") };
    assert!(tiny.summary([32, 32]).is_err());
    let value = serde_json::to_value(summary("resnet18")).unwrap();
    assert_eq!(value["param_count"], 11_689_512);
    assert_eq!(value["macs"], 1_814_073_344);
    assert!(value["activations"].is_u64());
    assert_eq!(value["arch"], "resnet18");
    assert_eq!(value["img_size"], serde_json::json!([224, 224]));
    assert_eq!(
        value["layers"][0],
        serde_json::json!({"name": "conv1", "kind": "conv", "input": [3, 224, 224], "output": [64, 112, 112],
            "kernel": [7, 7], "stride": [2, 2], "dilation": [1, 1], "param_count": 9408, "macs": 118_013_952,
            "receptive_field": 7, "jump": 2})
    );
}

#[test]
fn hostile_inputs_are_refused() {
    let resnet = arch("resnet18");
    assert_eq!(
        resnet.summary([0, 224]).unwrap_err().to_string(),
        "the input's height is 0, expected 1 to 16384"
    );
    assert!(resnet.summary([224, usize::MAX]).is_err());
    assert!(resnet.summary([1, 1]).is_ok());
    let deep = Arch { stages: vec![Stage { blocks: 2, width: 16, stride: 16 }; 32], ..resnet };
    let last = deep.summary([64, 64]).unwrap().layers.pop().unwrap();
    assert_eq!(last.jump, usize::MAX);
}

#[test]
fn the_largest_counts_do_not_overflow() {
    let width = 8192;
    let stages = vec![Stage { blocks: 3, width, stride: 1 }];
    let wide = Arch { stem_width: width, stages, ..arch("resnet20") };
    let weights = 9 * (3 * 8192 + 6 * 8192 * 8192);
    assert_eq!(wide.summary([1 << 14; 2]).unwrap().macs, (weights << 28) + 8192 * 10);
}
