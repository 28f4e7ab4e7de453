//! The instruction levels a step can run at, chosen once when an executor is built.

use std::fmt;

use crate::processor::{Processor, Vendor};

/// An instruction level. Ordered: a higher level has everything that a lower one has.
///
/// Results are bit-identical within a level, and between all levels below [`Isa::Avx512Bf16`]: those differ
/// only in how many independent FMA chains run side by side, and in how exact integer sums are formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Portable Rust, `f32::mul_add`; the definition of every kernel.
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL and DQ.
    Avx512,
    /// The level above plus VPDPBUSD for integer weights.
    Avx512Vnni,
    /// The level above plus VPDPBF16PS for bf16 weights, keys and values.
    Avx512Bf16,
}

impl Isa {
    /// Every level, lowest first.
    pub const ALL: [Self; 5] = [Self::Scalar, Self::Avx2, Self::Avx512, Self::Avx512Vnni, Self::Avx512Bf16];

    /// The level that is fastest on this processor.
    pub fn detect() -> Self {
        let top = Self::top(Processor::own().vendor);
        Self::ALL.into_iter().rev().find(|isa| *isa <= top && isa.is_supported()).unwrap_or(Self::Scalar)
    }

    /// The highest level that pays: on Intel not [`Isa::Avx512Bf16`]. There VPDPBF16PS does half the operations of the plain
    /// multiply-adds (Emerald Rapids: 83 against 171 Gop/s a core), and lower levels are more exact.
    fn top(vendor: Vendor) -> Self {
        match vendor {
            Vendor::Intel => Self::Avx512Vnni,
            Vendor::Amd | Vendor::Other => Self::Avx512Bf16,
        }
    }

    /// Whether this processor can run the level.
    pub fn is_supported(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = || {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            };
            let avx512 = || {
                avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
            };
            let vnni = || avx512() && is_x86_feature_detected!("avx512vnni");
            match self {
                Self::Scalar => true,
                Self::Avx2 => avx2(),
                Self::Avx512 => avx512(),
                Self::Avx512Vnni => vnni(),
                Self::Avx512Bf16 => vnni() && is_x86_feature_detected!("avx512bf16"),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Scalar
        }
    }

    /// The name used by `PYRITE_CPU_ISA` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512vnni",
            Self::Avx512Bf16 => "avx512bf16",
        }
    }

    /// The level of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|isa| isa.name() == name)
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detected_level_is_the_highest_that_pays() {
        assert_eq!(Isa::top(Vendor::Amd), Isa::Avx512Bf16);
        assert_eq!(Isa::top(Vendor::Intel), Isa::Avx512Vnni);
        let (own, top) = (Isa::detect(), Isa::top(Processor::own().vendor));
        assert!(own.is_supported() && own <= top);
        assert!(Isa::ALL.iter().all(|isa| *isa <= own || *isa > top || !isa.is_supported()));
    }
}
