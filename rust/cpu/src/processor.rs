//! Which processor this is, for the choices that only a measurement on it can make.

use std::sync::OnceLock;

/// Who made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vendor {
    Amd,
    Intel,
    Other,
}

/// A processor by the numbers that CPUID gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Processor {
    pub(crate) vendor: Vendor,
    /// With the extension for families from 15 on.
    pub(crate) family: u32,
}

impl Processor {
    /// This one, asked once: CPUID takes microseconds in a virtual machine.
    pub(crate) fn own() -> Self {
        static OWN: OnceLock<Processor> = OnceLock::new();
        *OWN.get_or_init(|| {
            #[cfg(target_arch = "x86_64")]
            {
                let name = std::arch::x86_64::__cpuid(0);
                let version = std::arch::x86_64::__cpuid(1).eax;
                Self::of([name.ebx, name.edx, name.ecx], version)
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self { vendor: Vendor::Other, family: 0 }
        })
    }

    /// The one with a vendor's name and a version as in EBX, EDX, ECX of CPUID leaf 0 and EAX of leaf 1.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only x86-64 has CPUID"))]
    fn of(name: [u32; 3], version: u32) -> Self {
        let mut text = [0; 12];
        for (bytes, register) in text.chunks_exact_mut(4).zip(name) {
            bytes.copy_from_slice(&register.to_le_bytes());
        }
        let vendor = match &text {
            b"AuthenticAMD" => Vendor::Amd,
            b"GenuineIntel" => Vendor::Intel,
            _ => Vendor::Other,
        };
        Self { vendor, family: (version >> 8 & 15) + (version >> 20 & 255) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_versions_are_read_as_the_vendors_mean_them() {
        let amd = [0x6874_7541, 0x6974_6e65, 0x444d_4163];
        let zen5 = Processor { vendor: Vendor::Amd, family: 26 };
        assert_eq!(Processor::of(amd, 0x00b0_0f21), zen5);
        assert_eq!(Processor::of(amd, 0x00a1_0f11), Processor { family: 25, ..zen5 }, "Zen 4");
        let intel = [0x756e_6547, 0x4965_6e69, 0x6c65_746e];
        let ice_lake = Processor { vendor: Vendor::Intel, family: 6 };
        assert_eq!(Processor::of(intel, 0x0006_06a6), ice_lake);
        assert_eq!(Processor::of(intel, 0x000c_06f2), ice_lake, "Emerald Rapids has the same family");
        assert_eq!(Processor::of([0; 3], 0).vendor, Vendor::Other);
    }
}
