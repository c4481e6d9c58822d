//! ONNX files: the messages, the graph, and the network that is read off it. Constants beside the file lie in a folder that
//! does not exist.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use stridenet::exchange::OnnxFile;
use stridenet::weights::NonFinite;

fuzz_target!(|bytes: &[u8]| {
    let file = OnnxFile::from_bytes(Path::new("absent/net.onnx"), bytes.to_vec());
    let _ = file.metadata();
    for non_finite in [NonFinite::Refuse, NonFinite::Allow] {
        match file.network(None, non_finite) {
            Ok(network) => {
                // What was read is a network, whose tensors are all there.
                let structure = network.arch.structure().expect("a valid architecture");
                for tensor in structure.tensors() {
                    let found = network.state.get(&tensor.name).map(|entry| entry.shape().to_vec());
                    assert!(found == Some(tensor.shape) || tensor.name.ends_with("num_batches_tracked"));
                }
            }
            Err(error) => assert!(!error.to_string().contains('\n')),
        }
    }
});
