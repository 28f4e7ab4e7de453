//! How a processor likes to be asked for the memory of keys and values. No result depends on it.

use std::sync::OnceLock;

use crate::processor::{Processor, Vendor};

/// How far ahead of reads and writes keys and values are prefetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    /// Bytes from a read to what the memory is asked for meanwhile.
    pub(super) memory: usize,
    /// Bytes from a read to what comes from the second cache into the first, where the memory is asked to fill the second
    /// one only.
    pub(super) cache: Option<usize>,
    /// Heads from the one that is stored to the one whose lines are asked for meanwhile; 0 for none.
    pub(super) heads: usize,
}

impl Reach {
    /// What this processor likes.
    pub(super) fn own() -> Self {
        static OWN: OnceLock<Reach> = OnceLock::new();
        *OWN.get_or_init(|| Self::of(Processor::own()))
    }

    /// What a processor likes.
    ///
    /// On Zen 5 one prefetch into the first cache does it, from 4 or 8 KiB ahead; 2 KiB lose 7 % of the bandwidth, 16 KiB
    /// 4 %.
    ///
    /// A core of an Emerald Rapids waits for few lines of its first cache at a time, and for many more of its second: with
    /// two prefetches, 8 to 16 KiB ahead into the second and 1 to 4 KiB ahead into the first, it reads bf16 8 to 18 % faster
    /// than with either of them, at any distance.
    ///
    /// One token of a head has a line for each element of its key, and a store waits for nearly every line: asked for one or
    /// two heads ahead, a step's 16 tokens are stored in 15 to 25 % less time there. On Zen 5 that step is up to 1 % shorter
    /// with it (two models, 15 to 25 rounds). Other processors were not measured.
    fn of(processor: Processor) -> Self {
        let (memory, heads) = (8 << 10, 2);
        match (processor.vendor, processor.family) {
            (Vendor::Intel, _) => Self { memory, cache: Some(2 << 10), heads },
            (Vendor::Amd, 26..) => Self { memory, cache: None, heads },
            _ => Self { memory, cache: None, heads: 0 },
        }
    }
}
