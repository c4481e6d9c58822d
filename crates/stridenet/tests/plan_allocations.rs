//! A plan's runs allocate nothing after the first one, on any of their threads.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use stridenet::Tensor;
use stridenet::arch::{Arch, Downsample};
use stridenet::kernels::{Context, Level};
use stridenet::network::{Initialise, Network};
use stridenet::plan::{Plan, PlanOptions};

/// The system's allocator, which counts what all threads ask it for while [`COUNTING`].
struct Counter;

static COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

fn count() {
    if COUNTING.load(Ordering::SeqCst) {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
    }
}

// SAFETY: every call goes to the system's allocator as it came; counting does not allocate.
unsafe impl GlobalAlloc for Counter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above; the memory came from the system's allocator.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTER: Counter = Counter;

/// Allocations of all threads while `work` runs.
fn allocations(work: impl FnOnce()) -> usize {
    ALLOCATIONS.store(0, Ordering::SeqCst);
    COUNTING.store(true, Ordering::SeqCst);
    work();
    COUNTING.store(false, Ordering::SeqCst);
    ALLOCATIONS.load(Ordering::SeqCst)
}

/// resnet20's and resnet18's layers, with images in groups and pools, and with weights that threads share out.
fn architectures() -> [Arch; 3] {
    let resnet20 = Arch::preset("resnet20").unwrap();
    let mut pooled = resnet20.clone();
    pooled.downsample = Downsample::MaxPool;
    let mut resnet18 = Arch::preset("resnet18").unwrap();
    resnet18.img_size = [64, 64];
    [resnet20, pooled, resnet18]
}

// One test alone: another one's allocations would be counted.
#[test]
fn runs_allocate_nothing_after_the_first() {
    const BATCH: usize = 12;
    assert!(allocations(|| drop(std::hint::black_box(vec![0u8; 100]))) > 0, "the counter counts");
    for arch in architectures() {
        for threads in [1, 2, 3] {
            let context = Arc::new(Context::new(Level::detect(), threads));
            let network = Network::new(&arch, arch.img_size, context.level(), Initialise::default()).unwrap();
            let options = PlanOptions { batch: BATCH, context: Arc::clone(&context), tuning: None };
            let plan = Arc::new(Plan::compile(&network, options).unwrap());
            let mut session = plan.session(Arc::clone(&context));
            let [height, width, channels] = plan.input();
            let mut batches = [1, 2, 3, 5, BATCH - 1, BATCH].map(|count| {
                let logits = Tensor::zeros([count, 1, 1, plan.classes()]);
                (Tensor::zeros([count, height, width, channels]), logits)
            });
            // Every thread is alive once all of them have met.
            let all = Barrier::new(threads);
            context.pool().run(threads, |_| {
                all.wait();
            });
            let (images, logits) = &mut batches[0];
            plan.run(images, logits).unwrap();
            let found = allocations(|| {
                for (images, logits) in &mut batches {
                    for _ in 0..3 {
                        plan.run(images, logits).unwrap();
                        session.run(images, logits).unwrap();
                    }
                }
            });
            assert_eq!(found, 0, "{} with {threads} threads", arch.name);
        }
    }
}
