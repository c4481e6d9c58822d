//! Importing and exporting allocate little beyond the weights. Allocations are counted, so that a copy of the weights that is
//! made and dropped is seen too.

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::collections::BTreeMap;
use stridenet::arch::Arch;
use stridenet::model::{ImportOptions, import};
use stridenet::weights::{NamedTensor, StateDict, write_safetensors};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[test]
fn weights_are_read_once_and_written_without_a_copy() {
    let arch = Arch::preset("resnet18").unwrap();
    let mut state = StateDict::new();
    for tensor in arch.structure().unwrap().tensors().into_iter().filter(|tensor| !tensor.shape.is_empty()) {
        let values = vec![0.5; tensor.shape.iter().product()];
        state
            .insert(NamedTensor { name: format!("module.{}", tensor.name), shape: tensor.shape, values })
            .unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net.safetensors");
    write_safetensors(&path, &state, &BTreeMap::new()).unwrap();
    drop(state);
    let bytes = std::fs::metadata(&path).unwrap().len() as usize;
    let region = Region::new(ALLOCATOR);
    import(&path, &ImportOptions::default()).unwrap().save(&folder.path().join("model")).unwrap();
    let allocated = region.change().bytes_allocated;
    assert!(allocated >= bytes - bytes / 100, "{allocated} of {bytes} bytes: the counter counts nothing");
    // Recognition compares descriptions of all presets, which takes a few megabytes whatever the weights' size.
    assert!(allocated <= bytes + bytes / 4 + (8 << 20), "{allocated} bytes for a file of {bytes}");
}
