use super::super::dtype::f16_to_f32;
use super::*;
use crate::random::{Use, generator};
use crate::weights::NamedTensor;
use base64::Engine;
use rand_chacha::rand_core::Rng;

/// Written by `safetensors.torch.save` (torch 2): every type that can be read, with subnormals and extremes.
const FROM_TORCH: &str = concat!(
    "UAEAAAAAAAB7Il9fbWV0YWRhdGFfXyI6eyJmb3JtYXQiOiJwdCJ9LCJibi5udW1fYmF0Y2hlc190cmFja2VkIjp7ImR0eXBlIjoiSTY0Iiwi",
    "c2hhcGUiOltdLCJkYXRhX29mZnNldHMiOlswLDhdfSwiZjY0Ijp7ImR0eXBlIjoiRjY0Iiwic2hhcGUiOlsyXSwiZGF0YV9vZmZzZXRzIjpb",
    "OCwyNF19LCJmMzIiOnsiZHR5cGUiOiJGMzIiLCJzaGFwZSI6WzIsMl0sImRhdGFfb2Zmc2V0cyI6WzI0LDQwXX0sImJmMTYiOnsiZHR5cGUi",
    "OiJCRjE2Iiwic2hhcGUiOlszXSwiZGF0YV9vZmZzZXRzIjpbNDAsNDZdfSwiZjE2Ijp7ImR0eXBlIjoiRjE2Iiwic2hhcGUiOls2XSwiZGF0",
    "YV9vZmZzZXRzIjpbNDYsNThdfX0UGpm+HAAAAJqZmZmZmbk/WfP4wh9upYEAAMA/AAAQwMiqIAAA4H9HgD9JwEpxADxVtQEA/3v/AwCA",
);

fn from_torch() -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.decode(FROM_TORCH).unwrap()
}

fn read(bytes: &[u8]) -> Result<StateDict, WeightsError> {
    safetensors_from_bytes(Path::new("m.safetensors"), bytes, NonFinite::Refuse)
}

/// A file with this header and so many bytes of values, all zero.
fn file(header: &str, values: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + values, 0);
    bytes
}

fn message(bytes: &[u8]) -> String {
    let message = read(bytes).unwrap_err().to_string();
    assert!(!message.contains(char::is_control), "{message:?}");
    assert!(message.starts_with("m.safetensors"), "{message}");
    message
}

fn small() -> StateDict {
    let mut state = StateDict::new();
    for (name, shape) in [("conv1.weight", vec![2, 1, 3, 3]), ("bn1.bias", vec![2])] {
        let values = (0..shape.iter().product()).map(|value: usize| value as f32 * 0.37 - 1.0).collect();
        state.insert(NamedTensor { name: name.into(), shape, values }).unwrap();
    }
    state.insert_values("bn1.num_batches_tracked".into(), vec![], TensorValues::I64(vec![1 << 40])).unwrap();
    state
}

fn bytes_of(state: &StateDict, metadata: &[(&str, &str)]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let metadata = metadata.iter().map(|&(key, value)| (key.to_string(), value.to_string())).collect();
    write_safetensors(&path, state, &metadata).unwrap();
    std::fs::read(path).unwrap()
}

#[test]
fn every_type_that_torch_writes_is_read() {
    let state = read(&from_torch()).unwrap();
    assert_eq!(state.get("f32").unwrap().shape(), [2, 2]);
    assert_eq!(state.get("f32").unwrap().as_f32().unwrap(), [1.5, -2.25, 3.0e-39, 65504.0]);
    let half = state.get("f16").unwrap().as_f32().unwrap();
    assert_eq!(half, [1.0, -0.333_251_95, 5.960_464_5e-8, 65504.0, 6.097_555e-5, 0.0]);
    assert!(half[5].is_sign_negative());
    assert_eq!(state.get("bf16").unwrap().as_f32().unwrap(), [1.0, -3.140625, 1.000_255_54e30]);
    assert_eq!(state.get("f64").unwrap().as_f32().unwrap(), [0.1, 0.0]);
    let counter = state.get("bn.num_batches_tracked").unwrap();
    assert_eq!((counter.shape(), counter.as_i64().unwrap()), (&[][..], &[123_456_789_012][..]));
    assert_eq!(state.len(), 5);
}

#[test]
fn all_halves_have_the_value_of_the_standards_formula() {
    for bits in 0..=u16::MAX {
        let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
        let magnitude = match exponent {
            0 => mantissa / 1024.0 * 2f64.powi(-14),
            31 if mantissa == 0.0 => f64::INFINITY,
            31 => f64::NAN,
            _ => (1.0 + mantissa / 1024.0) * 2f64.powi(exponent - 15),
        };
        let expected = if bits >> 15 == 1 { -magnitude } else { magnitude };
        let found = f64::from(f16_to_f32(bits));
        assert!(found == expected || found.is_nan() && expected.is_nan(), "{bits:#x}: {found} {expected}");
    }
}

#[test]
fn what_is_written_is_read_back_and_has_the_same_bytes_every_time() {
    let state = small();
    let metadata = [("epoch", "3"), ("arch", "resnet20"), ("b", "1"), ("c", "2")];
    let bytes = bytes_of(&state, &metadata);
    assert_eq!(bytes, bytes_of(&state, &metadata));
    assert_eq!(read(&bytes).unwrap(), state);

    let (_, header) = ::safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let written = header.metadata().as_ref().unwrap();
    assert_eq!((written["format"].as_str(), written["epoch"].as_str()), ("pt", "3"));
    for (name, info) in header.tensors() {
        let size = if name.ends_with("tracked") { 8 } else { 4 };
        assert_eq!(info.data_offsets.0 % size, 0, "{name} is not aligned");
    }
    assert_eq!(u64::from_le_bytes(bytes[..8].try_into().unwrap()) % 8, 0);
}

#[test]
fn the_crates_own_files_are_read() {
    use ::safetensors::tensor::TensorView;
    let values: Vec<u8> = [1.0f32, 2.0, 3.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let view = TensorView::new(::safetensors::Dtype::F32, vec![3, 1], &values).unwrap();
    let bytes = ::safetensors::serialize([("fc.weight", view)], None).unwrap();
    assert_eq!(read(&bytes).unwrap().get("fc.weight").unwrap().as_f32().unwrap(), [1.0, 2.0, 3.0]);
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    for bytes in [from_torch(), bytes_of(&small(), &[])] {
        for length in 0..bytes.len() {
            message(&bytes[..length]);
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(message(&longer).contains("it has 1 byte after the last tensor"));
    }
    assert!(message(&[]).contains("the file is empty"));
    assert!(message(&[1, 2, 3]).contains("it has 3 bytes, too few"));
    let whole = from_torch();
    let cut = message(&whole[..whole.len() - 1]);
    assert!(
        cut.contains("the tensor f16 ends at byte 58 of the values, the file holds 57: it is truncated"),
        "{cut}"
    );
}

/// A state dict of no more tensors than there were, or an error on one line.
fn check_damaged(damaged: &[u8]) {
    match read(damaged) {
        Ok(state) => assert!(state.len() <= 5),
        Err(error) => assert!(!error.to_string().contains(char::is_control), "{error}"),
    }
}

#[test]
fn flipped_bits_never_panic() {
    let mut random = generator(7, Use::Shuffle, [0, 0]);
    for bytes in [from_torch(), bytes_of(&small(), &[])] {
        for bit in 0..8 * bytes.len() {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            check_damaged(&damaged);
        }
        for _ in 0..20_000 {
            let mut damaged = bytes.clone();
            for _ in 0..1 + random.next_u32() % 3 {
                let at = random.next_u32() as usize % damaged.len();
                damaged[at] ^= 1 << (random.next_u32() % 8);
            }
            check_damaged(&damaged);
        }
    }
}

#[test]
fn lying_headers_are_refused_with_the_tensors_name() {
    let one = |entry: &str, values| message(&file(&format!("{{\"fc.bias\":{entry}}}"), values));
    let cases = [
        (
            r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#,
            4,
            "needs 8 bytes, its data_offsets are [0, 4]",
        ),
        (r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#, 8, "its data_offsets are [8, 0]"),
        (r#"{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}"#, 0, "is too large"),
        (r#"{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}"#, 0, "is too large"),
        (r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#, 4, "invalid value"),
        (r#"{"dtype":"F32","shape":[1]}"#, 4, "missing field `data_offsets`"),
        (
            r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#,
            8,
            "start at byte 4, those of the header end at byte 0",
        ),
        (r#"{"dtype":"I8","shape":[4],"data_offsets":[0,4]}"#, 4, "has the type I8, expected F32, F16"),
        (r#"{"dtype":"F\n32","shape":[1],"data_offsets":[0,4]}"#, 4, "has the type F\\n32, expected"),
        ("17", 4, "invalid type"),
    ];
    for (entry, values, expected) in cases {
        let message = one(entry, values);
        assert!(message.contains(expected) && message.contains("the tensor fc.bias"), "{message}");
    }
    let two = |a: &str, b: &str, values| {
        let entry = |at: &str| format!(r#"{{"dtype":"F32","shape":[1],"data_offsets":{at}}}"#);
        message(&file(&format!(r#"{{"a":{},"b":{}}}"#, entry(a), entry(b)), values))
    };
    assert!(
        two("[0,4]", "[0,4]", 4)
            .contains("the values of the tensor b start at byte 0, those of a end at byte 4")
    );
    assert!(
        two("[0,4]", "[8,12]", 12)
            .contains("the values of the tensor b start at byte 8, those of a end at byte 4")
    );
}

#[test]
fn names_come_once() {
    let entry = |start: usize| {
        format!(r#""a\u001b":{{"dtype":"F32","shape":[1],"data_offsets":[{start},{}]}}"#, start + 4)
    };
    let twice = message(&file(&format!("{{{},{}}}", entry(0), entry(0)), 4));
    assert!(twice.contains("its header has the name a\\u{1b} twice at line 1"), "{twice}");
}

#[test]
fn headers_that_are_no_json_or_too_long_are_refused() {
    assert!(message(&file("{\"a\": nul}", 0)).contains("expected ident at line 1 column"));
    assert!(message(&file("[1]", 0)).contains("expected an object of tensors"));
    assert!(message(&file(&"[".repeat(100_000), 0)).contains("its header has"));
    assert!(message(&file("{\"\u{0}", 0)).contains("its header has"));
    let mut bytes = file("{}", 0);
    bytes[..8].copy_from_slice(&100_000_001u64.to_le_bytes());
    assert!(message(&bytes).contains("at most 100 MB are allowed"));
    bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(message(&bytes).contains("at most 100 MB are allowed"));
    bytes[..8].copy_from_slice(&3u64.to_le_bytes());
    assert!(message(&bytes).contains("should have 3 bytes, the file holds 2"));
    assert!(read(&file("{}", 0)).unwrap().is_empty());
}

#[test]
fn other_formats_are_recognised() {
    assert!(message(b"version https://git-lfs.github.com/spec/v1\n").contains("`git lfs pull`"));
    assert!(message(b"PK\x03\x04 and so on").contains("give it a name that ends in .pth"));
}

#[test]
fn values_that_are_not_finite_are_named_or_allowed() {
    let mut state = small();
    for (name, values) in [("bad", vec![f32::NAN, 1.0, f32::NEG_INFINITY]), ("good", vec![f32::MAX])] {
        state.insert(NamedTensor { name: name.into(), shape: vec![values.len()], values }).unwrap();
    }
    let bytes = bytes_of(&state, &[]);
    assert_eq!(
        message(&bytes),
        "m.safetensors holds values that are NaN or infinite as float32: bad (2 values); \
         use a checkpoint from before the training diverged, or let them pass with --allow-nonfinite"
    );
    let allowed = safetensors_from_bytes(Path::new("m"), &bytes, NonFinite::Allow).unwrap();
    assert_eq!(allowed.non_finite(), [("bad".to_string(), 2)]);

    let mut double = file(r#"{"d":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}"#, 0);
    double.extend(1e300f64.to_le_bytes());
    assert!(message(&double).contains("d (1 value)"));
}

/// Enough for several threads: tensors whose values tell where they are, from a file.
#[test]
fn large_files_are_read_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut state = small();
    for (turn, name) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
        let values: Vec<f32> = (0..SHARE / 8 + turn).map(|value| (5 * value + turn) as f32).collect();
        state.insert(NamedTensor { name: name.into(), shape: vec![values.len()], values }).unwrap();
    }
    write_safetensors(&path, &state, &BTreeMap::new()).unwrap();
    assert!(std::fs::metadata(&path).unwrap().len() > 2 * SHARE as u64);
    assert!(read_safetensors(&path, NonFinite::Refuse).unwrap() == state);

    let mut bytes = std::fs::read(&path).unwrap();
    let infinite = f32::INFINITY.to_le_bytes();
    bytes
        .rchunks_exact_mut(4)
        .step_by(SHARE / 8 + 8)
        .take(3)
        .for_each(|value| value.copy_from_slice(&infinite));
    let error = read(&bytes).unwrap_err().to_string();
    assert!(error.contains("conv1.weight (1 value), d (1 value), e (1 value)"), "{error}");
    assert!(read(&bytes[..bytes.len() - 1]).unwrap_err().to_string().contains("it is truncated"));
}

#[test]
fn a_missing_file_is_named() {
    let error = read_safetensors(Path::new("nowhere/model.safetensors"), NonFinite::Refuse).unwrap_err();
    assert!(error.to_string().starts_with("cannot read nowhere/model.safetensors: "), "{error}");
}
