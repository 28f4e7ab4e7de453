//! How a processor likes to be fed when few rows stream the weights. No result depends on it.

use std::sync::OnceLock;

use super::activations::LINE;
use crate::ops::prefetch::{prefetch, prefetch_by_stages, prefetch_once, prefetch_outer};
use crate::processor::{Processor, Vendor};

/// How weights are asked for before they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    /// Bytes ahead of the reads; 0 for weights that lie in the cache.
    pub(super) ahead: usize,
    pub(super) way: Way,
}

/// Into which caches weights are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// All of them.
    Kept,
    /// The second, not the first.
    Outer,
    /// The first, as data that is read once and need not stay in any.
    Once,
    /// The second, and so many bytes before the reads reach them the first.
    Twice(usize),
}

impl Reach {
    /// Nothing is asked for.
    pub(super) const NONE: Self = Self::kept(0);

    pub(super) const fn kept(ahead: usize) -> Self {
        Self { ahead, way: Way::Kept }
    }

    const fn once(ahead: usize) -> Self {
        Self { ahead, way: Way::Once }
    }

    const fn twice(ahead: usize, first_cache: usize) -> Self {
        Self { ahead, way: Way::Twice(first_cache) }
    }

    /// Ask for the cache line of weights at `to_come`, [`ahead`](Self::ahead) of what is read.
    #[inline(always)]
    pub(super) fn ask(self, to_come: *const u8) {
        match self.way {
            Way::Kept => prefetch(to_come, LINE),
            Way::Outer => prefetch_outer(to_come, LINE),
            Way::Once => prefetch_once(to_come, LINE),
            Way::Twice(first_cache) => {
                prefetch_by_stages(to_come, Some(to_come.wrapping_sub(self.ahead - first_cache)), LINE);
            }
        }
    }

    /// The same for the lines of so many bytes, unless nothing is asked for.
    #[inline(always)]
    pub(super) fn ask_for(self, to_come: *const u8, bytes: usize) {
        if self.ahead > 0 {
            (0..bytes).step_by(LINE).for_each(|line| self.ask(to_come.wrapping_add(line)));
        }
    }
}

/// How the weights of one worker are walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tuning {
    /// Panels that advance side by side, each its own stream of memory: 1, 2 or 4.
    pub(super) streams: usize,
    /// Where several do.
    pub(super) several: Reach,
    /// Where one advances alone.
    pub(super) alone: Reach,
    /// Instead of both, for 512-bit vectors and rows so few that memory is all that they wait for.
    pub(super) few: Option<Reach>,
    /// For the rows of a large tile.
    pub(super) large: Reach,
    /// Whether more rows than a tile has take 4-bit codes apart beside their multiplications, see
    /// [`shared_block`](super::shared_block).
    pub(super) apart_beside: bool,
    /// Where the panel after the one that is read is asked for.
    pub(super) next_panel: Way,
    /// Bytes ahead of the reads, for rows so many that they wait for the arithmetic.
    pub(super) many: usize,
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
    /// them read 7 to 17 % faster than one. The second cache can wait for more lines than the first: asking for it far
    /// ahead, and for the first shortly before the reads, makes steps on an Emerald Rapids faster than asking for the first
    /// alone, of one row by 4 to 11 % (with AVX2 by 14 %), of 4 rows by 6 to 13 %, of 8 by 3 to 7 %, of 16 by up to 2 %.
    /// A whole panel ahead is too far for the first cache: a step of 16 rows with 8-bit matrices is 4 % shorter without.
    /// Zen 4 and 5 read a single stream best; on Zen 4 several take twice as long.
    ///
    /// Weights that were read push each other out of the second cache into the third. On Zen 5 a step is 2 to 3 % shorter
    /// when they are asked for as data that is read once. Where memory is fast, what is asked for must be far ahead: 6 KiB, and
    /// one stream instead of two, make 4 rows 3 to 7 % faster than 3 KiB, 2 rows 2 % and one row 0 to 2 % (what lies behind the
    /// end of a worker's share is asked for in vain). With AVX2 a step is 3 % longer with data that is read once. A large tile of
    /// 9 to 16 rows takes up to 10 % longer with 4 KiB than with 8, and up to 7 % longer with weights kept. Where the next codes
    /// are taken apart beside the multiplications, its matmuls take 0.91 to 0.97 of the time, and a step of 16 rows 0.94 to 0.95;
    /// a prefill of 512 rows takes 0.96 to 0.99 of it, of 2,048 0.98 to 1. Other processors were not measured.
    fn of(processor: Processor) -> Self {
        let kept = Reach::kept(4096);
        let zen = Self {
            streams: 1,
            several: kept,
            alone: kept,
            few: None,
            large: kept,
            apart_beside: false,
            next_panel: Way::Kept,
            many: 4096,
        };
        match (processor.vendor, processor.family) {
            (Vendor::Amd, 26..) => {
                let (few, large) = (Some(Reach::once(6144)), Reach::once(8192));
                Self { few, large, apart_beside: true, ..zen }
            }
            (Vendor::Amd, _) => zen,
            _ => Self {
                streams: 4,
                several: Reach::twice(4096, 1024),
                alone: Reach::twice(12 << 10, 512),
                few: None,
                large: Reach::twice(16 << 10, 1024),
                apart_beside: false,
                next_panel: Way::Outer,
                many: 2048,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vendors_and_families_are_told_apart() {
        let zen4 = Processor { vendor: Vendor::Amd, family: 25 };
        assert!(Tuning::of(Processor { family: 26, ..zen4 }).apart_beside, "Zen 5");
        assert!(!Tuning::of(zen4).apart_beside, "Zen 4");
        assert_eq!(Tuning::of(zen4).streams, 1, "Zen 4");
        let ice_lake = Processor { vendor: Vendor::Intel, family: 6 };
        assert_eq!(Tuning::of(ice_lake).streams, 4, "Ice Lake");
        for reach in [Tuning::of(ice_lake).several, Tuning::of(ice_lake).alone, Tuning::of(ice_lake).large] {
            assert!(matches!(reach.way, Way::Twice(near) if near < reach.ahead));
        }
        assert!([1, 2, 4].contains(&Tuning::get().streams));
    }
}
