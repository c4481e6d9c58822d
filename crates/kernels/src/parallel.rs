//! A persistent pool of threads that share out numbered tasks.
//!
//! Each task's result depends on the task alone: which thread runs it is left to chance, and no task reads what another
//! one writes, but for rows that several have written, which the one that completes them [works on](crate::Follow). So the bits of a
//! result do not depend on the number of threads.
//!
//! Each thread begins with a range of neighbouring tasks of its own and helps the others when it is done, so that in a
//! chain of similar jobs a thread finds in its cache what it wrote in the job before.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;

/// Threads that wait for numbered tasks. Dropping the pool ends them.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job runs: one job at a time.
    turn: Mutex<()>,
}

thread_local! {
    /// Whether this thread is inside a task; a nested call then runs its tasks in place.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    /// This thread's place among those of its pool; that of a caller is 0.
    static PLACE: Cell<usize> = const { Cell::new(0) };
}

/// What the caller publishes for the workers.
struct Job {
    task: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

/// `state` packs the job's number (upper 32 bits), whether it still admits workers (bit 31) and how many workers are
/// inside (lower bits). A worker reads `job` only between a successful entry and its leaving; the caller changes it
/// only while no worker is inside and none can enter.
struct Shared {
    state: AtomicU64,
    job: UnsafeCell<Job>,
    /// For each thread, the next task of its range.
    next: Vec<Cursor>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    spins: u32,
    sleepers: Mutex<usize>,
    wake: Condvar,
    sleeping: AtomicUsize,
}

/// A counter in a cache line of its own.
#[repr(align(64))]
struct Cursor(AtomicUsize);

const OPEN: u64 = 1 << 31;
const INSIDE_MASK: u64 = OPEN - 1;

// SAFETY: `job` is the only field that is not Sync by itself; the protocol above orders every access to it through
// `state` (published with Release, entered with Acquire, left with Release, drained with Acquire).
unsafe impl Sync for Shared {}
// SAFETY: the raw pointer in `job` points to a Sync closure and is dereferenced only while the caller keeps it alive.
unsafe impl Send for Shared {}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("state", &self.state).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Claims and runs tasks until none is left, those of thread `own` first, keeping the first panic.
    fn work(&self, job: &Job, own: usize) {
        INSIDE.with(|inside| inside.set(true));
        // SAFETY: the caller of `Pool::run` keeps the closure alive until all workers have left the job.
        let task = unsafe { &*job.task };
        let threads = self.next.len();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            for thread in (own..threads).chain(0..own) {
                let end = job.tasks * (thread + 1) / threads;
                loop {
                    let index = self.next[thread].0.fetch_add(1, Ordering::Relaxed);
                    if index >= end {
                        break;
                    }
                    task(index);
                }
            }
        }));
        INSIDE.with(|inside| inside.set(false));
        if let Err(panic) = outcome {
            self.next.iter().for_each(|next| next.0.store(usize::MAX / 2, Ordering::Relaxed));
            lock(&self.panic).get_or_insert(panic);
        }
    }

    /// A worker's life: wait for a job number it has not seen, enter if the job still admits, work, leave.
    fn serve(&self, own: usize) {
        PLACE.with(|place| place.set(own));
        let mut seen = 0;
        while !self.stop.load(Ordering::Acquire) {
            let state = self.state.load(Ordering::Acquire);
            if state >> 32 == seen {
                self.wait(seen);
                continue;
            }
            if state & OPEN == 0 {
                seen = state >> 32;
                continue;
            }
            if self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                seen = state >> 32;
                // SAFETY: this worker has entered the job, so the caller does not change `job` until it has left.
                self.work(unsafe { &*self.job.get() }, own);
                self.state.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// Spins for a while, then sleeps until a job other than `seen` is published.
    fn wait(&self, seen: u64) {
        let idle = || self.state.load(Ordering::SeqCst) >> 32 == seen && !self.stop.load(Ordering::Acquire);
        for _ in 0..self.spins {
            if !idle() {
                return;
            }
            std::hint::spin_loop();
        }
        let mut sleepers = lock(&self.sleepers);
        *sleepers += 1;
        self.sleeping.store(*sleepers, Ordering::SeqCst);
        while idle() {
            sleepers = self.wake.wait(sleepers).unwrap_or_else(PoisonError::into_inner);
        }
        *sleepers -= 1;
        self.sleeping.store(*sleepers, Ordering::SeqCst);
    }

    fn wake_sleepers(&self) {
        if self.sleeping.load(Ordering::SeqCst) > 0 {
            let _sleepers = lock(&self.sleepers);
            self.wake.notify_all();
        }
    }
}

impl Pool {
    /// A pool that runs tasks on `threads` threads: the caller's and `threads − 1` of its own (0 counts as 1).
    pub fn new(threads: usize) -> Self {
        let threads = threads.max(1);
        fn nothing(_: usize) {}
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(Job { task: &nothing, tasks: 0 }),
            next: (0..threads).map(|_| Cursor(AtomicUsize::new(0))).collect(),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            // Spinning bridges the gap between two layers; with more threads than processors it would steal from them.
            spins: if threads == 1 || threads <= std::thread::available_parallelism().map_or(1, |n| n.get()) {
                4000
            } else {
                0
            },
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
            sleeping: AtomicUsize::new(0),
        });
        let workers = (1..threads)
            .map_while(|index| {
                let shared = Arc::clone(&shared);
                // A thread that cannot be started leaves more work to the others; the result is the same.
                std::thread::Builder::new()
                    .name(format!("stridenet-{index}"))
                    .spawn(move || shared.serve(index))
                    .ok()
            })
            .collect();
        Pool { shared, workers, turn: Mutex::new(()) }
    }

    /// Number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Number of threads that a call of [`run`](Self::run) from here uses: 1 inside a task.
    pub fn available(&self) -> usize {
        if INSIDE.with(Cell::get) { 1 } else { self.threads() }
    }

    /// Runs `task(0)`, …, `task(tasks − 1)`, each once, in no particular order, and returns when all are done.
    ///
    /// Called from inside a task, the tasks run in place.
    ///
    /// # Panics
    /// With a task's panic, after all other tasks have ended or been dropped.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        if tasks <= 1 || self.workers.is_empty() || INSIDE.with(Cell::get) {
            (0..tasks).for_each(task);
            return;
        }
        let _turn = lock(&self.turn);
        let shared = &*self.shared;
        let task: &(dyn Fn(usize) + Sync) = &task;
        // SAFETY: erases the closure's lifetime. This function does not return before every worker has left the job,
        // and after it is closed none can enter, so nobody reads the pointer once the closure is gone.
        let task: *const (dyn Fn(usize) + Sync + 'static) =
            unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync), _>(task) };
        let job = Job { task, tasks };
        let own = Job { task, tasks };
        // SAFETY: the previous job is closed and drained and `turn` is held, so no other thread reads or writes `job`.
        unsafe { *shared.job.get() = job };
        let cursors = shared.next.len();
        for (thread, next) in shared.next.iter().enumerate() {
            next.0.store(tasks * thread / cursors, Ordering::Relaxed);
        }
        let number = (shared.state.load(Ordering::Relaxed) >> 32).wrapping_add(1) & u64::from(u32::MAX);
        shared.state.store(number << 32 | OPEN, Ordering::SeqCst);
        shared.wake_sleepers();
        shared.work(&own, 0);
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while shared.state.load(Ordering::Acquire) & INSIDE_MASK != 0 {
            spins += 1;
            if spins < shared.spins { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        if let Some(panic) = lock(&shared.panic).take() {
            resume_unwind(panic);
        }
    }

    /// Cuts `data` into pieces of `length` values (the last one may be shorter) and runs `task(index, piece)` on each.
    ///
    /// # Panics
    /// When `length` is 0, or with a task's panic.
    pub fn pieces<T: Send>(&self, data: &mut [T], length: usize, task: impl Fn(usize, &mut [T]) + Sync) {
        assert!(length > 0, "pieces of no length");
        let total = data.len();
        let start = SharedMut(data.as_mut_ptr());
        self.run(total.div_ceil(length), |index| {
            let from = index * length;
            // SAFETY: pieces are disjoint (each index runs once) and lie within `data`, which is borrowed mutably
            // for the whole call; T is Send.
            let piece =
                unsafe { std::slice::from_raw_parts_mut(start.get().add(from), length.min(total - from)) };
            task(index, piece);
        });
    }

    /// Cuts two slices into as many pieces, of the lengths that stand beside them, and runs `task(index, piece, piece)` on each
    /// pair.
    ///
    /// # Panics
    /// When a length is 0 or the slices have another number of pieces, or with a task's panic.
    pub fn pairs<T: Send, U: Send>(
        &self,
        (first, length): (&mut [T], usize),
        (second, other): (&mut [U], usize),
        task: impl Fn(usize, &mut [T], &mut [U]) + Sync,
    ) {
        assert!(length > 0 && other > 0, "pieces of no length");
        let (total, start) = (second.len(), SharedMut(second.as_mut_ptr()));
        assert_eq!(first.len().div_ceil(length), total.div_ceil(other), "as many pieces of each");
        self.pieces(first, length, |index, first| {
            let from = index * other;
            // SAFETY: as in `pieces`: each index runs once, and is below the number of the second slice's pieces.
            let second =
                unsafe { std::slice::from_raw_parts_mut(start.get().add(from), other.min(total - from)) };
            task(index, first, second);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        {
            let _sleepers = lock(&self.shared.sleepers);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker catches its tasks' panics; it has none of its own to report.
            let _ = worker.join();
        }
    }
}

/// A value that one thread uses at a time. It has cache lines of its own (two, which the hardware may fetch together): threads that
/// use neighbours do not take them from each other.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Space<T>(Mutex<T>);

impl<T> Space<T> {
    /// The value, which nobody else is using.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first of `spaces` for so many threads: others are made if there are too few.
    pub(crate) fn for_threads(spaces: &mut Vec<Space<T>>, threads: usize) -> &mut [Space<T>]
    where
        T: Default,
    {
        if spaces.len() < threads {
            spaces.resize_with(threads, Space::default);
        }
        &mut spaces[..threads]
    }

    /// The value, as soon as nobody else is using it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        lock(&self.0)
    }
}

/// Calls `work` with a value that no other thread is using; with more threads than values, waits for one. A thread gets
/// the same value each time while it is free: what it left there is still in its cache.
///
/// # Panics
/// When there are no values.
pub fn with_free<T, R>(spaces: &[Space<T>], work: impl FnOnce(&mut T) -> R) -> R {
    let (before, from) = spaces.split_at(PLACE.with(Cell::get) % spaces.len());
    for space in from.iter().chain(before) {
        match space.0.try_lock() {
            Ok(mut value) => return work(&mut value),
            Err(TryLockError::Poisoned(value)) => return work(&mut value.into_inner()),
            Err(TryLockError::WouldBlock) => {}
        }
    }
    work(&mut from[0].lock())
}

/// A pointer that tasks share to write to places of their own.
pub(crate) struct SharedMut<T>(pub(crate) *mut T);

impl<T> SharedMut<T> {
    /// The pointer. (A method, so that closures capture the wrapper and not the bare pointer.)
    #[inline(always)]
    pub(crate) fn get(&self) -> *mut T {
        self.0
    }
}

// SAFETY: handing the pointer to another thread is sound; every dereference states why its place is not shared.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads);
            for tasks in [0, 1, 2, 7, 100, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |index| {
                    counts[index].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn many_short_jobs_and_sleeps_between() {
        let pool = Pool::new(4);
        let sum = AtomicUsize::new(0);
        for round in 0..2000 {
            pool.run(5, |index| {
                sum.fetch_add(index, Ordering::Relaxed);
            });
            if round % 500 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        assert_eq!(sum.into_inner(), 20_000);
    }

    #[test]
    fn pieces_cover_the_data() {
        let pool = Pool::new(3);
        let mut data = vec![0usize; 103];
        pool.pieces(&mut data, 10, |index, piece| piece.iter_mut().for_each(|value| *value += index + 1));
        assert!(data.iter().enumerate().all(|(place, value)| *value == place / 10 + 1));
    }

    #[test]
    fn pairs_of_pieces_meet() {
        let (pool, mut sums, mut data) = (Pool::new(3), vec![0usize; 7], (0..33).collect::<Vec<usize>>());
        pool.pairs((&mut sums, 1), (&mut data, 5), |index, sum, data| {
            sum[0] = data.iter().sum();
            data.fill(index);
        });
        assert_eq!(sums, [10, 35, 60, 85, 110, 135, 93]);
        assert!(data.iter().enumerate().all(|(place, value)| *value == place / 5));
    }

    #[test]
    fn nested_and_concurrent_calls_work() {
        let pool = Pool::new(3);
        let count = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    pool.run(4, |_| {
                        pool.run(4, |_| {
                            count.fetch_add(1, Ordering::Relaxed);
                        })
                    })
                });
            }
        });
        assert_eq!(count.into_inner(), 48);
    }

    #[test]
    fn tasks_find_values_of_their_own() {
        let (pool, mut spaces) = (Pool::new(4), [const { Space(Mutex::new(0)) }; 2]);
        pool.run(500, |_| with_free(&spaces, |value| *value += 1));
        assert_eq!(spaces.iter_mut().map(|space| *space.get_mut()).sum::<usize>(), 500);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(2);
        let outcome =
            catch_unwind(AssertUnwindSafe(|| pool.run(10, |index| assert!(index != 3, "task three"))));
        assert!(outcome.is_err());
        let count = AtomicUsize::new(0);
        pool.run(10, |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 10);
    }
}
