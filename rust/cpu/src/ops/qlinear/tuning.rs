//! How a processor likes to be fed when few rows stream the weights. No result depends on it.

use std::sync::OnceLock;

use crate::processor::{Processor, Vendor};

/// How the weights of one worker are walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tuning {
    /// Panels that advance side by side, each its own stream of memory: 1, 2 or 4.
    pub(super) streams: usize,
    /// Bytes ahead of the reads at which each stream is prefetched.
    pub(super) ahead: usize,
    /// The same for 512-bit vectors and few rows, where prefetches should pass the outer caches by.
    pub(super) passing: Option<usize>,
    /// The same for the rows of a large tile, which reads the weights alone.
    pub(super) passing_many: Option<usize>,
}

impl Tuning {
    /// What this processor likes.
    pub(super) fn get() -> Self {
        static OWN: OnceLock<Tuning> = OnceLock::new();
        *OWN.get_or_init(|| Self::of(Processor::own()))
    }

    /// What a processor likes.
    ///
    /// One core of an Ice Lake reads half of what its memory can give, and more streams keep more lines in flight: 4 of
    /// them, prefetched 2 KiB ahead, read 7 to 17 % faster than one. Zen 4 reads a single stream best, and several at
    /// half the speed. Zen 5 is alike with one or two (of 4-bit codes two are up to 15 % faster where one core's own
    /// speed is what binds, since they share the broadcasts of x), and 5 to 10 % slower with four.
    ///
    /// Weights that were read push each other out of the second cache into the third. On Zen 5 a step is 2 to 3 % shorter
    /// when they are asked for as data that is read once, 3 KiB ahead (2 KiB are too few where memory is fast, and what lies
    /// behind the end of a worker's share is asked for in vain). With AVX2 it is 3 % longer. A large tile of 9 to 16 rows
    /// takes up to 10 % longer with 4 KiB than with 8, and up to 7 % longer with weights kept. Other processors were not
    /// measured.
    fn of(processor: Processor) -> Self {
        match (processor.vendor, processor.family) {
            (Vendor::Amd, 26..) => {
                Self { streams: 2, ahead: 4096, passing: Some(3072), passing_many: Some(8192) }
            }
            (Vendor::Amd, _) => Self { streams: 1, ahead: 4096, passing: None, passing_many: None },
            _ => Self { streams: 4, ahead: 2048, passing: None, passing_many: None },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vendors_and_families_are_told_apart() {
        let zen4 = Processor { vendor: Vendor::Amd, family: 25 };
        assert_eq!(Tuning::of(Processor { family: 26, ..zen4 }).streams, 2, "Zen 5");
        assert_eq!(Tuning::of(zen4).streams, 1, "Zen 4");
        let ice_lake = Processor { vendor: Vendor::Intel, family: 6 };
        assert_eq!(Tuning::of(ice_lake).streams, 4, "Ice Lake");
        assert!([1, 2, 4].contains(&Tuning::get().streams));
    }
}
