//! Which instruction-set level this CPU has. A level is a value that can only be had where the CPU supports it.

use crate::bf16::Operands;
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
    Avx512(crate::simd::Avx512<false>, Option<crate::simd::Avx512<true>>),
}

/// Kinds of core in which the costs of arithmetic and of memory differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cores {
    /// They multiply and add 512 bits a cycle, or less.
    Narrow,
    /// Intel's from Sapphire Rapids on, told by their instructions for half precision: they multiply and add two vectors of 512 bits
    /// a cycle, in front of caches and a memory that are no faster than others'.
    SapphireRapids,
    /// AMD's Zen 5, told by VP2INTERSECT beside AVX-VNNI, which no other core has together: they multiply and add as much, and their
    /// caches keep up. Those of notebooks do half of that, but are not told apart.
    Zen5,
}

/// A level's name that does not exist or that this CPU does not support.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UnknownLevel {
    /// No level of this CPU has the name.
    #[error("instruction-set level {name:?} is not available on this CPU; available: {available}")]
    Name {
        /// What was asked for.
        name: String,
        /// The names there are.
        available: String,
    },
    /// The variable that switches off instructions for bf16 has another value than `off`.
    #[error("{}={found:?}: it can be \"off\", or not be set", Level::BF16_VARIABLE)]
    Bf16 {
        /// Its value.
        found: String,
    },
}

/// Whether this CPU is AMD's of family 25, of which only Zen 4 has AVX-512.
#[cfg(target_arch = "x86_64")]
fn is_zen_4() -> bool {
    use std::arch::x86_64::__cpuid;
    static FOUND: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
        let vendor = __cpuid(0);
        let signature = __cpuid(1).eax;
        let family = (signature >> 8 & 0xf) + (signature >> 20 & 0xff);
        [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
            && family == 25
    });
    *FOUND
}

impl Level {
    /// Name of the environment variable with which front ends and tests force a level, see [`Level::named`].
    pub const VARIABLE: &str = "STRIDENET_LEVEL";

    /// Name of the environment variable with which front ends and tests do [without](Level::without_bf16) instructions for
    /// bf16, where it is `off`.
    pub const BF16_VARIABLE: &str = "STRIDENET_BF16";

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
            let halves = crate::simd::Avx512::<true>::new();
            let avx512 = crate::simd::Avx512::<false>::new();
            levels.extend(avx512.map(|token| Level(Isa::Avx512(token, halves))));
        }
        levels
    }

    /// The level with this name: `scalar`, `neon`, `avx2` or `avx512`.
    ///
    /// # Errors
    /// When the name is none of these, or this CPU lacks the level.
    pub fn named(name: &str) -> Result<Level, UnknownLevel> {
        let levels = Level::available();
        levels.iter().copied().find(|level| level.name() == name).ok_or_else(|| UnknownLevel::Name {
            name: name.to_owned(),
            available: levels.iter().map(|level| level.name()).collect::<Vec<_>>().join(", "),
        })
    }

    /// The level that the environment variable [`Level::VARIABLE`] forces, or the best one where it is not set, without
    /// instructions for bf16 where [`Level::BF16_VARIABLE`] says so. Meant for front ends and tests; nothing in this crate
    /// calls it.
    ///
    /// # Errors
    /// When the first variable names no level of this CPU, or the second has a value that means nothing.
    pub fn from_env() -> Result<Level, UnknownLevel> {
        let level = match std::env::var(Level::VARIABLE) {
            Ok(name) => Level::named(&name)?,
            Err(_) => Level::detect(),
        };
        match std::env::var(Level::BF16_VARIABLE) {
            Ok(value) if value == "off" => Ok(level.without_bf16()),
            Ok(found) => Err(UnknownLevel::Bf16 { found }),
            Err(_) => Ok(level),
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
            Isa::Avx512(..) => "avx512",
        }
    }

    /// Whether the CPU has instructions for products of bf16, which are twice as fast as those of `f32`. Elsewhere they are
    /// made by multiply-adds of `f32`.
    pub fn multiplies_bf16(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_, halves) => halves.is_some(),
            _ => false,
        }
    }

    /// Whether additions are made beside as many multiplications, so that [threes](Operands::Threes) are faster than products one by
    /// one: by AMD's Zen 4 with vectors of 512 bits.
    pub fn adds_beside(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(..) => is_zen_4(),
            _ => false,
        }
    }

    /// The kind of core, as far as the level uses what sets it apart.
    pub fn cores(self) -> Cores {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(..) if is_x86_feature_detected!("avx512fp16") => Cores::SapphireRapids,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(..)
                if is_x86_feature_detected!("avx512vp2intersect") && is_x86_feature_detected!("avxvnni") =>
            {
                Cores::Zen5
            }
            _ => Cores::Narrow,
        }
    }

    /// The level without instructions for products of bf16.
    pub fn without_bf16(self) -> Level {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(token, _) => Level(Isa::Avx512(token, None)),
            _ => self,
        }
    }

    /// All levels of this CPU, and those that have instructions for bf16 once more without them.
    #[cfg(test)]
    pub(crate) fn with_and_without_bf16() -> Vec<Level> {
        let levels = Level::available();
        let without = levels.clone().into_iter().filter(|level| level.multiplies_bf16());
        levels.into_iter().chain(without.map(Level::without_bf16)).collect()
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
            Isa::Avx512(..) => &micro::AVX512,
        }
    }

    /// The micro-kernels that multiply operands of this kind.
    pub(crate) fn kernels(self, operands: Operands) -> &'static MicroKernels {
        match (operands, self.0) {
            (Operands::F32, _) => self.micro_kernels(),
            (Operands::Bf16, Isa::Scalar) => &micro::SCALAR_HALVES,
            #[cfg(target_arch = "aarch64")]
            (Operands::Bf16, Isa::Neon(_)) => &micro::NEON_HALVES,
            #[cfg(target_arch = "x86_64")]
            (Operands::Bf16, Isa::Avx2(_)) => &micro::AVX2_HALVES,
            #[cfg(target_arch = "x86_64")]
            (Operands::Bf16, Isa::Avx512(_, None)) => &micro::AVX512_HALVES,
            #[cfg(target_arch = "x86_64")]
            (Operands::Bf16, Isa::Avx512(_, Some(_))) => &micro::AVX512_BF16,
            (Operands::Threes, Isa::Scalar) => &micro::SCALAR_THREES,
            #[cfg(target_arch = "aarch64")]
            (Operands::Threes, Isa::Neon(_)) => &micro::NEON_THREES,
            #[cfg(target_arch = "x86_64")]
            (Operands::Threes, Isa::Avx2(_)) => &micro::AVX2_THREES,
            #[cfg(target_arch = "x86_64")]
            (Operands::Threes, Isa::Avx512(..)) => &micro::AVX512_THREES,
        }
    }

    /// Runs `task` compiled for this level, with its instructions for bf16.
    pub(crate) fn run_halves<T: Task>(self, task: T) -> T::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_, Some(token)) => token.run(task),
            _ => self.run(task),
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
            Isa::Avx512(token, _) => token.run(task),
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
        assert!(!Level::detect().without_bf16().multiplies_bf16());
        let known = |level: &Level| level.cores() == Cores::Narrow || level.name() == "avx512";
        assert!(Level::available().iter().all(known));
        assert!(Level::available().iter().all(|level| !level.adds_beside() || level.name() == "avx512"));
        let error = UnknownLevel::Bf16 { found: "on".into() }.to_string();
        assert!(error.contains("STRIDENET_BF16=\"on\"") && error.contains("off"), "{error}");
        let error = Level::named("sse9").unwrap_err().to_string();
        assert!(error.contains("\"sse9\"") && error.contains("scalar"), "{error}");
    }
}
