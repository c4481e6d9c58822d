use super::*;
use crate::random::{Use, generator};
use crate::weights::read_safetensors;
use rand_chacha::rand_core::Rng;
use std::path::PathBuf;

/// A file that `fixtures/formats.py` wrote.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/formats").join(name)
}

fn bytes_of(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap()
}

fn from_bytes(bytes: &[u8]) -> Result<(StateDict, String), WeightsError> {
    pytorch_from_bytes(Path::new("m.pth"), bytes, NonFinite::Refuse)
}

fn message(bytes: &[u8]) -> String {
    let message = from_bytes(bytes).unwrap_err().to_string();
    assert!(!message.contains(char::is_control), "{message:?}");
    assert!(message.starts_with("m.pth"), "{message}");
    message
}

/// Equal bits, under the same names and shapes.
fn assert_same(found: &StateDict, expected: &StateDict) {
    assert_eq!(found.names().collect::<Vec<_>>(), expected.names().collect::<Vec<_>>());
    for (name, tensor) in expected.iter() {
        assert_eq!(found.get(name).unwrap(), tensor, "{name}");
    }
}

#[test]
fn what_torch_saves_is_read_as_torch_reads_it() {
    let expected = read_safetensors(&fixture("expected.safetensors"), NonFinite::Refuse).unwrap();
    assert_eq!(expected.get("gaps").unwrap().shape(), [3, 2]);
    for (name, part) in [
        ("state_dict.pth", ""),
        ("protocol4.pth", ""),
        ("zip64.pth", ""),
        ("checkpoint.pth", "state_dict_ema"),
        ("nested.pth", "model.state_dict"),
    ] {
        let (state, found) = read_pytorch(&fixture(name), NonFinite::Refuse).unwrap();
        assert_same(&state, &expected);
        assert_eq!(found, part, "{name}");
    }
    let (parameters, _) = read_pytorch(&fixture("parameters.pth"), NonFinite::Refuse).unwrap();
    assert_eq!(parameters.len(), expected.len() - 1);
    for (name, tensor) in parameters.iter() {
        assert_eq!(expected.get(name), Some(tensor), "{name}");
    }
}

#[test]
fn what_is_not_needed_or_not_understood_is_named() {
    for (name, parts) in [
        ("legacy.pth", ["before version 1.6", "torch.save(torch.load(source, weights_only=True), target)"]),
        ("plain_pickle.pth", ["is a pickle, but not in PyTorch's zip format", "weights_only=True"]),
        (
            "whole_model.pth",
            ["it contains torch.nn.modules.linear.Linear", "torch.save(model.state_dict(), target)"],
        ),
        ("runs.pth", ["it contains posix.system, which weights do not need", "save the weights alone"]),
        ("builtin.pth", ["it contains __builtin__.eval", "save the weights alone"]),
        ("types.pth", ["the tensor fc.bias has the type int32", "F32"]),
        ("no_tensors.pth", ["it contains a dictionary without tensors", "expected a state dict"]),
        ("tensor.pth", ["it contains a single tensor", "expected a state dict"]),
        ("nonfinite.pth", ["NaN or infinite as float32: fc.bias (2 values)", "--allow-nonfinite"]),
        (
            "expanded.pth",
            ["fc.bias of shape [1000], strides [0]", "does not fit into its storage of 1 values"],
        ),
        ("torchscript.pt", ["is a TorchScript program", "torch.jit.load(source).state_dict()"]),
        (
            "compressed.pth",
            ["is compressed (method 8), which torch.save does not do", "save the weights alone"],
        ),
        ("big_endian.pth", ["its byte order is big, expected little", "little-endian"]),
        (
            "no_values.pth",
            ["the values of the tensor fc.bias (archive/data/0) are not in it", "copy or download"],
        ),
        ("no_pickle.pth", ["a zip archive with no data.pkl", "save the weights alone"]),
    ] {
        let message = message(&bytes_of(name));
        for part in parts {
            assert!(message.contains(part), "{name}: {message}");
        }
    }
    assert!(!Path::new("/tmp/stridenet-was-here").exists());
    assert!(message(b"").contains("it is empty"));
    assert!(message(b"not a zip archive").contains("does not begin like a zip archive"));
    let allowed = pytorch_from_bytes(Path::new("m"), &bytes_of("nonfinite.pth"), NonFinite::Allow).unwrap();
    assert_eq!(allowed.0.non_finite(), [("fc.bias".to_owned(), 2)]);
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = bytes_of("state_dict.pth");
    for length in 0..whole.len() {
        message(&whole[..length]);
    }
}

/// Whatever changes, the values are either the same or there is an error: every entry that is used has a checksum.
#[test]
fn every_flipped_bit_is_harmless_or_found() {
    let whole = bytes_of("state_dict.pth");
    let expected = from_bytes(&whole).unwrap().0;
    let mut harmless = 0;
    for bit in 0..8 * whole.len() {
        let mut damaged = whole.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        match from_bytes(&damaged) {
            Ok((state, _)) => {
                assert_same(&state, &expected);
                harmless += 1;
            }
            Err(_) => drop(message(&damaged)),
        }
    }
    // Dates, versions, padding.
    assert!(harmless > 0 && harmless < 6 * whole.len(), "{harmless}");
}

/// A zip archive of stored entries.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let mut crc = flate2::Crc::new();
        crc.update(data);
        let mut record = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        record.extend(crc.sum().to_le_bytes());
        record.extend([data.len() as u32; 2].map(u32::to_le_bytes).concat());
        record.extend((name.len() as u16).to_le_bytes());
        record.extend([0, 0]);
        directory.extend(b"PK\x01\x02\0\0");
        directory.extend(&record);
        directory.extend([0; 10]);
        directory.extend((bytes.len() as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        bytes.extend(b"PK\x03\x04");
        bytes.extend(record);
        bytes.extend(name.as_bytes());
        bytes.extend(*data);
    }
    let (start, count) = (bytes.len() as u32, entries.len() as u16);
    bytes.extend(&directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend([count; 2].map(u16::to_le_bytes).concat());
    bytes.extend((directory.len() as u32).to_le_bytes());
    bytes.extend(start.to_le_bytes());
    bytes.extend([0, 0]);
    bytes
}

/// A pickle of `{"w": tensor}` with these arguments of the storage and the tensor.
fn tensor(values: i32, offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let mut bytes = b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage".to_vec();
    bytes.extend(b"ctorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu");
    let int = |value: i32| [&b"J"[..], &value.to_le_bytes()].concat();
    bytes.extend(int(values));
    bytes.extend(b"tQ");
    bytes.extend(int(offset));
    for sizes in [shape, strides] {
        bytes.push(b'(');
        sizes.iter().for_each(|&size| bytes.extend(int(size)));
        bytes.push(b't');
    }
    bytes.extend(b"\x89NtRs.");
    bytes
}

/// What is read of a file with this pickle and a storage of four values.
fn with_pickle(pickle: &[u8]) -> Result<(StateDict, String), WeightsError> {
    let values: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    from_bytes(&zip(&[("a/data.pkl", pickle), ("a/data/0", &values)]))
}

fn pickle_message(pickle: &[u8]) -> String {
    let message = with_pickle(pickle).unwrap_err().to_string();
    assert!(!message.contains(char::is_control), "{message:?}");
    message
}

#[test]
fn views_stay_within_their_storage() {
    let values = |pickle: &[u8]| with_pickle(pickle).unwrap().0.get("w").unwrap().as_f32().unwrap().to_vec();
    assert_eq!(values(&tensor(4, 0, &[2, 2], &[2, 1])), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(values(&tensor(4, 0, &[2, 2], &[1, 2])), [1.0, 3.0, 2.0, 4.0]);
    assert_eq!(values(&tensor(4, 1, &[1, 3], &[7, 1])), [2.0, 3.0, 4.0]);
    assert_eq!(values(&tensor(4, 0, &[], &[])), [1.0]);
    assert_eq!(values(&tensor(4, 9, &[0, i32::MAX], &[1, 1])), [0.0f32; 0]);
    for (pickle, part) in [
        (tensor(4, 1, &[2, 2], &[2, 1]), "does not fit into its storage of 4 values"),
        (tensor(4, 0, &[4], &[i32::MAX]), "does not fit into its storage"),
        (tensor(4, 0, &[5], &[0]), "does not fit into its storage"),
        (tensor(4, 0, &[i32::MAX; 4], &[0; 4]), "does not fit into its storage"),
        (tensor(4, -1, &[1], &[1]), "sizes are no sizes"),
        (tensor(4, 0, &[-1], &[1]), "sizes are no sizes"),
        (tensor(4, 0, &[1], &[1, 1]), "a tensor of 1 sizes and 2 strides"),
        (tensor(4, 0, &[1; 9], &[1; 9]), "a tensor of 9 sizes"),
        (tensor(5, 0, &[4], &[1]), "has 16 bytes, expected those of 5 values of float32"),
        (tensor(i32::MAX, 0, &[4], &[1]), "has 16 bytes, expected those of 2147483647 values"),
        (tensor(-4, 0, &[4], &[1]), "a storage of a negative size"),
    ] {
        let message = pickle_message(&pickle);
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn pickles_that_make_no_sense_are_refused() {
    for (pickle, part) in [
        (&b""[..], "ends too early"),
        (b"\x80\x02", "ends too early"),
        (b"\x80\x07N.", "has protocol 7"),
        (b".", "takes a value that is not there"),
        (b"N(0.", "takes a value that is not there"),
        (b"t.", "takes a mark that is not there"),
        (b"h\x05.", "recalls a value that it has not remembered"),
        (b"q\x00.", "remembers a value that is not there"),
        (b"X\xff\xff\xff\xffabc", "ends too early"),
        (b"X\x01\0\0\0\xff.", "a text that is not UTF-8"),
        (b"NNa.", "appends to what is no list"),
        (b"NNNs.", "puts a value into what is no dictionary"),
        (b"}(Nu.", "a key without a value"),
        (b"N)R.", "calls what is no function"),
        (b"ctorch\nFloatStorage\n)R.", "makes a storage out of nothing"),
        (b"ctorch\nSize\n)R.", "a size without sizes"),
        (b"ctorch._utils\n_rebuild_parameter\n)R.", "a parameter without a tensor"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "a tensor that is not made as usual"),
        (b"N)Q.", "a storage that is not made as usual"),
        (b"NN\x93.", "names a class by what is no text"),
        (b"cos\nsystem\n.", "it contains os.system, which weights do not need"),
        (b"c__builtin__\neval\n.", "it contains __builtin__.eval"),
        (b"c\x1b[31m\nx\n.", "it contains \\u{1b}[31m.x"),
        (b"i.", "has the opcode INST"),
        (b"\x82.", "has the opcode EXT"),
        (b"\xff.", "has the opcode 0xff"),
        (b"b.", "takes a value that is not there"),
        (b"NNb.", "gives attributes to what has none"),
        (b"]q\0h\0a.", "it contains a list"),
        (b"K\x01.", "it contains no tensors"),
    ] {
        let message = pickle_message(pickle);
        assert!(message.contains(part), "{pickle:?}: {message}");
    }
}

#[test]
fn pickles_that_repeat_themselves_cost_little() {
    // A dictionary that contains itself, thousands of times.
    let mut nested = b"\x80\x02}q\0(".to_vec();
    for _ in 0..20_000 {
        nested.extend(b"X\x05\0\0\0modelh\0");
    }
    nested.extend(b"u.");
    assert!(pickle_message(&nested).contains("a dictionary without tensors"));
    // One long list, copied again and again.
    let mut copies = b"\x80\x02(K\x00K\x00tq\0]q\x01(".to_vec();
    copies.extend(b"h\0".repeat(10_000));
    copies.extend(b"e0ccollections\nOrderedDict\nq\x020");
    copies.extend(b"h\x02h\x01\x85R0".repeat(10_000));
    copies.extend(b"}.");
    assert!(pickle_message(&copies).contains("copies a list too often"));
    // One tuple as the arguments of many calls.
    let mut calls = b"\x80\x02(".to_vec();
    calls.extend(b"N".repeat(10_000));
    calls.extend(b"tq\0ctorch\ndevice\nq\x01");
    calls.extend(b"h\x01h\0R0".repeat(10));
    assert!(pickle_message(&calls).contains("calls something with 10000 arguments"));
    // Many tensors of one storage.
    let one = tensor(4, 0, &[4], &[1]);
    let body = &one[3..one.len() - 1];
    let mut many = b"\x80\x02}".to_vec();
    for name in 0..9u8 {
        let mut body = body.to_vec();
        body[5] = b'a' + name;
        many.extend(body);
    }
    many.push(b'.');
    assert!(pickle_message(&many).contains("its tensors have 144 bytes, 16 are in their storages"));
}

#[test]
fn archives_that_lie_are_refused() {
    let pickle = tensor(4, 0, &[4], &[1]);
    let good = zip(&[("a/data.pkl", &pickle), ("a/data/0", &[0; 16])]);
    assert_eq!(from_bytes(&good).unwrap().0.len(), 1);
    let twice = zip(&[("a/data.pkl", &pickle), ("a/data.pkl", &pickle)]);
    assert!(message(&twice).contains("it has the entry a/data.pkl twice"));
    let two = zip(&[("a/data.pkl", &pickle), ("b/data.pkl", &pickle)]);
    assert!(message(&two).contains("more than one data.pkl"));
    let huge = zip(&[("a/data.pkl", &vec![b'N'; 9 << 20])]);
    assert!(message(&huge).contains("at most 8388608 are read"));
    let end = good.len() - 22;
    let changed = |at: usize, bytes: &[u8]| {
        let mut changed = good.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        message(&changed)
    };
    assert!(changed(end + 10, &[0xff; 2]).contains("its directory of 65535 entries"));
    assert!(changed(end + 12, &[0xff; 4]).contains("does not fit into the file"));
    assert!(changed(end + 16, &[0xff; 4]).contains("does not fit into the file"));
    let directory = u32::from_le_bytes(good[end + 16..end + 20].try_into().unwrap()) as usize;
    assert!(changed(directory + 8, &[1]).contains("is encrypted"));
    assert!(changed(directory + 42, &[0xf0; 4]).contains("ends behind the file"));
    // Sizes in zip64 fields that are not there.
    assert!(changed(directory + 20, &[0xff; 8]).contains("its directory is damaged"));
}

#[test]
fn zip64_records_are_read() {
    let pickle = tensor(4, 0, &[4], &[1]);
    let plain = zip(&[("a/data.pkl", &pickle), ("a/data/0", &[0; 16])]);
    let end = plain.len() - 22;
    let directory = u32::from_le_bytes(plain[end + 16..end + 20].try_into().unwrap()) as usize;
    let mut wide = plain[..directory].to_vec();
    let mut rest = &plain[directory..end];
    while !rest.is_empty() {
        let name = usize::from(rest[28]);
        let (record, after) = rest.split_at(46 + name);
        let size = u64::from(u32::from_le_bytes(record[20..24].try_into().unwrap()));
        let header = u64::from(u32::from_le_bytes(record[42..46].try_into().unwrap()));
        let mut record = record.to_vec();
        record[20..28].fill(0xff);
        record[42..46].fill(0xff);
        // Another field, then the zip64 one.
        let extra = [
            &[0x46, 0x42, 1, 0, 9][..],
            &[1, 0, 24, 0],
            &[size, size, header].map(u64::to_le_bytes).concat(),
        ];
        let extra = extra.concat();
        record[30] = extra.len() as u8;
        wide.extend(record);
        wide.extend(extra);
        rest = after;
    }
    let size = (wide.len() - directory) as u64;
    let record = wide.len() as u64;
    wide.extend(b"PK\x06\x06");
    wide.extend(44u64.to_le_bytes());
    wide.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    wide.extend([2, 2, size, directory as u64].map(u64::to_le_bytes).concat());
    wide.extend(b"PK\x06\x07\0\0\0\0");
    wide.extend(record.to_le_bytes());
    wide.extend([1, 0, 0, 0]);
    wide.extend(b"PK\x05\x06\0\0\0\0");
    wide.extend([0xff; 12]);
    wide.extend([0, 0]);
    assert_same(&from_bytes(&wide).unwrap().0, &from_bytes(&plain).unwrap().0);
    for length in directory..wide.len() {
        message(&wide[..length]);
    }
}

#[test]
fn random_damage_never_panics() {
    let mut random = generator(11, Use::Shuffle, [0, 0]);
    let (checkpoint, small) = (
        bytes_of("checkpoint.pth"),
        zip(&[("a/data.pkl", &tensor(4, 0, &[4], &[1])), ("a/data/0", &[0; 16])]),
    );
    for bytes in [checkpoint, small] {
        for _ in 0..5_000 {
            let mut damaged = bytes.clone();
            for _ in 0..1 + random.next_u32() % 3 {
                let at = random.next_u32() as usize % damaged.len();
                damaged[at] = random.next_u32() as u8;
            }
            if let Err(error) = from_bytes(&damaged) {
                assert!(!error.to_string().contains(char::is_control), "{error}");
            }
        }
    }
}
