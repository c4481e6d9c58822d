//! Which instruction-set level this CPU has. A level is a value that can only be had where the CPU supports it.

use crate::gemm::micro::{self, MicroKernels};
use crate::simd::{Scalar, Simd, Task};
use thiserror::Error;

/// An instruction-set level that this CPU supports, from [`Level::detect`] or [`Level::available`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Level(Isa);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Isa {
    Scalar,
    #[cfg(target_arch = "aarch64")]
    Neon(crate::simd::Neon),
    #[cfg(target_arch = "x86_64")]
    Avx2(crate::simd::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(crate::simd::Avx512),
}

/// A level's name that does not exist or that this CPU does not support.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("instruction-set level {name:?} is not available on this CPU; available: {available}")]
pub struct UnknownLevel {
    name: String,
    available: String,
}

impl Level {
    /// Name of the environment variable with which front ends and tests force a level, see [`Level::named`].
    pub const VARIABLE: &str = "STRIDENET_LEVEL";

    /// The best level of this CPU.
    pub fn detect() -> Level {
        *Level::available().last().expect("the scalar level is always available")
    }

    /// All levels of this CPU, from the portable scalar one to the best.
    pub fn available() -> Vec<Level> {
        let mut levels = vec![Level(Isa::Scalar)];
        #[cfg(target_arch = "aarch64")]
        levels.extend(crate::simd::Neon::new().map(|token| Level(Isa::Neon(token))));
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(crate::simd::Avx2::new().map(|token| Level(Isa::Avx2(token))));
            levels.extend(crate::simd::Avx512::new().map(|token| Level(Isa::Avx512(token))));
        }
        levels
    }

    /// The level with this name: `scalar`, `neon`, `avx2` or `avx512`.
    ///
    /// # Errors
    /// When the name is none of these, or this CPU lacks the level.
    pub fn named(name: &str) -> Result<Level, UnknownLevel> {
        let levels = Level::available();
        levels.iter().copied().find(|level| level.name() == name).ok_or_else(|| UnknownLevel {
            name: name.to_owned(),
            available: levels.iter().map(|level| level.name()).collect::<Vec<_>>().join(", "),
        })
    }

    /// The level that the environment variable [`Level::VARIABLE`] forces, or the best one where it is not set.
    /// Meant for front ends and tests; nothing in this crate calls it.
    ///
    /// # Errors
    /// When the variable names no level of this CPU.
    pub fn from_env() -> Result<Level, UnknownLevel> {
        match std::env::var(Level::VARIABLE) {
            Ok(name) => Level::named(&name),
            Err(_) => Ok(Level::detect()),
        }
    }

    /// The level's name.
    pub fn name(self) -> &'static str {
        match self.0 {
            Isa::Scalar => "scalar",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) => "neon",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "avx512",
        }
    }

    /// The micro-kernels compiled for this level.
    pub(crate) fn micro_kernels(self) -> &'static MicroKernels {
        match self.0 {
            Isa::Scalar => &micro::SCALAR,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) => &micro::NEON,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => &micro::AVX2,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => &micro::AVX512,
        }
    }

    /// Runs `task` compiled for this level.
    pub(crate) fn run<T: Task>(self, task: T) -> T::Output {
        match self.0 {
            Isa::Scalar => task.run(Scalar),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(token) => token.run(task),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(token) => token.run(task),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(token) => token.run(task),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_names_and_names_have_levels() {
        for level in Level::available() {
            assert_eq!(Level::named(level.name()), Ok(level));
        }
        let error = Level::named("sse9").unwrap_err().to_string();
        assert!(error.contains("\"sse9\"") && error.contains("scalar"), "{error}");
    }
}
