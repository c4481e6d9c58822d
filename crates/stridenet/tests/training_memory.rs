//! Computing the insides of blocks again takes less memory than keeping them. What is allocated is counted.

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use stridenet::arch::Arch;
use stridenet::bench::random_images;
use stridenet::kernels::{Context, Level};
use stridenet::network::{Initialise, Network};
use stridenet::train::{Descent, SgdOptions};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes that a network holds after two steps, with all that steps work in.
fn held(arch: &Arch, recompute: bool) -> usize {
    let cx = Context::new(Level::detect(), 2);
    let region = Region::new(ALLOCATOR);
    let mut network = Network::new(arch, arch.img_size, cx.level(), Initialise::default()).unwrap();
    network.set_recompute(recompute);
    let options = SgdOptions { momentum: 0.9, nesterov: true, weight_decay: 1e-4, decay_norm_and_bias: true };
    let mut descent = Descent::new(&network, options);
    for _ in 0..2 {
        descent.step(&cx, &mut network, random_images([16, 32, 32, 3]), &[3; 16], 0.0, 0.05).unwrap();
    }
    let change = region.change();
    change.bytes_allocated - change.bytes_deallocated
}

#[test]
fn less_is_held_where_blocks_are_computed_again() {
    for name in ["resnet56", "preresnet56"] {
        let arch = Arch::preset(name).unwrap();
        let [kept, computed] = [false, true].map(|recompute| held(&arch, recompute));
        // Of at least two and a half feature maps that a block keeps, one is left, beside what both hold.
        assert!(computed < kept * 6 / 10, "{name}: {computed} of {kept} bytes");
    }
}
