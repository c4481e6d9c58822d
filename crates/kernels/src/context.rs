//! What a kernel runs with.

use crate::{Level, Pool, physical_processors};

/// The instruction-set level and the threads that kernels run with.
///
/// ```
/// use stridenet_kernels::{Context, Level};
/// let context = Context::new(Level::detect(), 2);
/// assert_eq!(context.threads(), 2);
/// ```
#[derive(Debug)]
pub struct Context {
    level: Level,
    pool: Pool,
}

impl Context {
    /// A context with `threads` threads (the caller's included; 0 counts as 1).
    pub fn new(level: Level, threads: usize) -> Self {
        Context { level, pool: Pool::new(threads) }
    }

    /// The best level of this CPU, and a thread for each [physical processor](physical_processors) that the process may
    /// use.
    pub fn detect() -> Self {
        Context::new(Level::detect(), physical_processors())
    }

    /// The instruction-set level.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The thread pool.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }
}
