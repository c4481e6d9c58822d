use super::*;
use crate::weights::WeightsError;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

fn model() -> NewModel {
    let node = Node {
        name: "fc".into(),
        operator: "Gemm".into(),
        inputs: vec!["x".into(), "fc.weight".into(), String::new()],
        outputs: vec!["logits".into()],
        attributes: BTreeMap::from([
            ("transB".to_owned(), Attribute::Int(1)),
            ("alpha".to_owned(), Attribute::Float(0.5)),
            ("pads".to_owned(), Attribute::Ints(vec![1, -1])),
            ("mode".to_owned(), Attribute::Text("reflect".into())),
            ("scales".to_owned(), Attribute::Floats(vec![2.0, f32::MIN])),
        ]),
    };
    NewModel {
        producer: ["stridenet".into(), "1".into()],
        name: "net".into(),
        metadata: vec![("label_names".into(), "[\"ä\"]".into())],
        nodes: vec![node],
        constants: vec![
            NewConstant::Floats { name: "fc.weight".into(), shape: vec![2, 3] },
            NewConstant::Ints { name: "axes".into(), values: vec![2, -1] },
        ],
        input: ("x".into(), vec![Size::Free("batch"), Size::Fixed(3)]),
        output: ("logits".into(), vec![Size::Free("batch"), Size::Fixed(2)]),
    }
}

fn written(model: &NewModel) -> Vec<u8> {
    let mut bytes = Vec::new();
    let values = |_: &str| Ok(vec![1.0, -2.0, 3.5, 0.0, 1e-30, 7.0]);
    model.write(&mut bytes, values).unwrap();
    bytes
}

fn problem(bytes: &[u8]) -> String {
    match OnnxModel::from_bytes(Path::new("net.onnx"), bytes) {
        Err(WeightsError::Onnx { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_written_is_read() {
    let bytes = written(&model());
    let read = OnnxModel::from_bytes(Path::new("net.onnx"), &bytes).unwrap();
    assert_eq!((read.opset, read.producer.as_str()), (OPSET, "stridenet 1"));
    assert_eq!(read.metadata["label_names"], "[\"ä\"]");
    assert_eq!(read.graph.nodes, model().nodes);
    let shape = Some(vec![None, Some(3)]);
    assert_eq!(read.graph.inputs, [ValueInfo { name: "x".into(), shape }]);
    assert_eq!(read.graph.outputs, ["logits"]);
    let weight = &read.graph.initializers["fc.weight"];
    assert_eq!((weight.shape.as_slice(), weight.len(), weight.is_float()), (&[2, 3][..], 6, true));
    let values = weight.f32_values(Path::new("net.onnx")).unwrap();
    assert_eq!(values, [1.0, -2.0, 3.5, 0.0, 1e-30, 7.0]);
    assert!(weight.i64_values(Path::new("net.onnx")).unwrap_err().contains("has floats where whole"));
    assert_eq!(read.graph.initializers["axes"].i64_values(Path::new("net.onnx")), Ok(vec![2, -1]));
    assert_eq!(read.graph.nodes[0].input(2), None);
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = written(&model());
    for length in 0..bytes.len() {
        let problem = problem(&bytes[..length]);
        assert!(!problem.is_empty() && !problem.contains('\n'), "{length}: {problem}");
    }
    assert_eq!(problem(&[]), "the file is empty");
}

/// A damaged file is refused, or read as what it then says; it is never a panic, nor more memory than the file.
#[test]
fn any_flipped_bit_is_survived() {
    let bytes = written(&model());
    for bit in 0..8 * bytes.len() {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        if let Ok(read) = OnnxModel::from_bytes(Path::new("net.onnx"), &damaged) {
            for tensor in read.graph.initializers.values() {
                let values = tensor.f32_values(Path::new("net.onnx")).map(|values| values.len());
                assert!(values.is_err() || values == Ok(tensor.len()));
                assert!(tensor.len() <= bytes.len(), "{tensor:?}");
            }
        }
    }
}

/// A field of a message: its number, and its bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        field.push(length as u8 | 0x80);
        length >>= 7;
    }
    field.push(length as u8);
    field.extend_from_slice(bytes);
    field
}

/// A file with one constant.
fn with_constant(tensor: &[u8]) -> Vec<u8> {
    [field(8, &[0x10, 17]), field(7, &field(5, tensor))].concat()
}

#[test]
fn constants_must_fill_their_shapes() {
    let short = [&[0x08, 2, 0x08, 3, 0x10, 1][..], &field(8, b"w\n"), &field(9, &[0; 20])].concat();
    assert_eq!(
        problem(&with_constant(&short)),
        "the constant w\\n has the shape [2, 3] and 20 bytes, expected 24"
    );
    let huge =
        [0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0x08, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x10, 1];
    assert!(problem(&with_constant(&huge)).contains("which is too large"));
    assert!(problem(&with_constant(&[0x08, 9, 0x10, 1])).contains("[9] and 0 values, expected 9"));
    assert!(problem(&with_constant(&[0x08, 9])).contains("no element type"));
    let negative = [&[0x08][..], &[0xff; 9], &[1]].concat();
    assert!(problem(&with_constant(&negative)).contains("a size is -1"));
    assert!(problem(&with_constant(&[0x08, 1].repeat(9))).contains("more than 8 dimensions"));
}

#[test]
fn all_ways_to_store_values_are_read() {
    let floats = |tensor: &[u8]| {
        let bytes = with_constant(tensor);
        let model = OnnxModel::from_bytes(Path::new("net.onnx"), &bytes).unwrap();
        model.graph.initializers[""].f32_values(Path::new("net.onnx")).unwrap()
    };
    let single = 1.5f32.to_le_bytes();
    // Packed, and one field a value.
    assert_eq!(floats(&[&[0x08, 1, 0x10, 1][..], &field(4, &single)].concat()), [1.5]);
    assert_eq!(floats(&[&[0x08, 1, 0x10, 1, 0x25][..], &single].concat()), [1.5]);
    assert_eq!(floats(&[&[0x08, 1, 0x10, 11][..], &field(10, &1.5f64.to_le_bytes())].concat()), [1.5]);
    assert_eq!(floats(&[&[0x08, 1, 0x10, 11][..], &field(9, &1.5f64.to_le_bytes())].concat()), [1.5]);
    // 1.5 as float16 is 0x3e00, as bfloat16 0x3fc0; the first of each as an integer.
    assert_eq!(floats(&[0x08, 1, 0x10, 10, 0x28, 0x80, 0x7c]), [1.5]);
    assert_eq!(floats(&[&[0x08, 1, 0x10, 10][..], &field(9, &[0x00, 0x3e])].concat()), [1.5]);
    assert_eq!(floats(&[0x08, 1, 0x10, 16, 0x28, 0xc0, 0x7f]), [1.5]);
    assert_eq!(floats(&[&[0x08, 1, 0x10, 16][..], &field(9, &[0xc0, 0x3f])].concat()), [1.5]);
}

#[test]
fn parts_are_counted() {
    // Four million empty nodes in eight megabytes.
    let bytes = [field(8, &[0x10, 17]), field(7, &[0x0a, 0].repeat(1 << 22))].concat();
    assert_eq!(problem(&bytes), "it has more than 1048576 parts");
    // A list of a hundred million small numbers.
    let list = field(1, &field(5, &field(8, &vec![1; 1 << 21])));
    assert_eq!(problem(&[field(8, &[0x10, 17]), field(7, &list)].concat()), "it has more than 1048576 parts");
}

#[test]
fn values_beside_the_model_are_read_and_stay_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.onnx");
    std::fs::write(folder.path().join("net.data"), [[9; 4], 1.5f32.to_le_bytes()].concat()).unwrap();
    std::fs::create_dir(folder.path().join("inside")).unwrap();
    let read = |location: &str, offset: &str| {
        let entry = |key: &str, value: &str| {
            field(13, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat())
        };
        let tensor =
            [vec![0x08, 1, 0x10, 1, 0x70, 1], entry("location", location), entry("offset", offset)].concat();
        let bytes = with_constant(&tensor);
        let model = OnnxModel::from_bytes(&path, &bytes).unwrap();
        model.graph.initializers[""].f32_values(&path)
    };
    assert_eq!(read("net.data", "4"), Ok(vec![1.5]));
    for (location, offset, expected) in [
        ("net.data", "5", "needs 4 bytes, "),
        ("net.data", "18446744073709551615", "needs 4 bytes, "),
        ("absent.data", "0", "cannot be read"),
        ("inside", "0", "is no file"),
        ("../net.data", "0", "expected a file beside the model"),
        ("/etc/hostname", "0", "expected a file beside the model"),
        ("inside/../../net.data", "0", "expected a file beside the model"),
        ("", "0", "expected a file beside the model"),
    ] {
        let error = read(location, offset).unwrap_err();
        assert!(error.contains(expected), "{location}: {error}");
    }
}

#[test]
fn what_graphs_of_weights_do_not_need_is_refused() {
    let operators = field(8, &[0x10, 17]);
    assert_eq!(problem(&operators), "it holds no graph");
    assert_eq!(problem(&field(7, &[])), "it does not say which version of the operators it uses");
    assert_eq!(
        problem(&[operators.clone(), field(7, &[]), field(7, &[])].concat()),
        "it holds 2 graphs, expected one"
    );
    assert!(problem(&[operators.clone(), field(7, &field(15, &[]))].concat()).contains("sparse"));
    let constant = field(5, &[0x10, 1, 0x25, 0, 0, 0, 0]);
    assert_eq!(
        problem(&[operators.clone(), field(7, &constant.repeat(2))].concat()),
        "the constant  is there twice"
    );
    let attribute = field(5, &field(1, b"axis"));
    let node = field(1, &[field(3, b"cat"), attribute.repeat(2)].concat());
    assert_eq!(problem(&[operators, field(7, &node)].concat()), "the node cat has the attribute axis twice");
}

#[test]
fn what_cannot_be_written_is_said() {
    let mut large = model();
    large.constants.push(NewConstant::Floats { name: "w".into(), shape: vec![1 << 15, 1 << 15] });
    let error = large.check().unwrap_err();
    assert!(error.contains("at most 2 GiB, this network needs 42949"), "{error}");
    let error = model().write(&mut io::sink(), |_| Ok(vec![0.0])).unwrap_err().to_string();
    assert_eq!(error, "1 values do not fill the constant fc.weight");
    let mut other = model();
    other.nodes[0].attributes.insert("body".into(), Attribute::Other);
    let error = other.write(&mut io::sink(), |_| Ok(vec![0.0; 6])).unwrap_err().to_string();
    assert_eq!(error, "the attribute body is neither a number, a list of numbers, nor text");
}
