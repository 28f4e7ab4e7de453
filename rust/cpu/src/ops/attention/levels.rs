//! What the vector levels share: the rounds of a call, and the macro that compiles the kernels for a level.

use super::decode::{self, Packed};
use super::kind::Kind;
use super::plan::{Cursor, Round, Segment, next_round};
use super::prefill;
use super::problem::Problem;
use super::scratch::AttentionScratch;
use crate::pool::Worker;

/// The methods of [`Simd`] that are loops, compiled with the instructions `$features`.
macro_rules! level_kernels {
    ($features:literal) => {
        #[target_feature(enable = $features)]
        unsafe fn qk<E: Element, const R: usize, const N: usize>(args: &QkArgs) {
            // SAFETY: the caller's duty.
            unsafe { kernels::qk::<Self, E, R, N>(args) }
        }
        #[target_feature(enable = $features)]
        unsafe fn pv<E: Element, const R: usize, const N: usize>(args: &PvArgs) {
            // SAFETY: the caller's duty.
            unsafe { kernels::pv::<Self, E, R, N>(args) }
        }
        #[target_feature(enable = $features)]
        unsafe fn order<E: Element>(x: *mut f32, vectors: usize) {
            // SAFETY: the caller's duty.
            unsafe { kernels::order::<Self, E>(x, vectors) }
        }
        #[target_feature(enable = $features)]
        unsafe fn softmax(scores: &kernels::Scores<'_>, sums: &mut [(f32, f32)]) {
            // SAFETY: the caller's duty.
            unsafe { kernels::softmax::<Self>(scores, sums) }
        }
        #[target_feature(enable = $features)]
        unsafe fn rescale(m: f32, m_split: f32) -> (f32, f32, f32) {
            // SAFETY: the caller's duty.
            unsafe { kernels::rescale::<Self>(m, m_split) }
        }
        #[target_feature(enable = $features)]
        unsafe fn rescale_all(m: &[f32; LANES], m_split: &[f32; LANES]) -> [[f32; LANES]; 3] {
            // SAFETY: the caller's duty.
            unsafe { kernels::rescale_all::<Self>(m, m_split) }
        }
        #[target_feature(enable = $features)]
        unsafe fn scale_add(run: *mut f32, keep: f32, part: *const f32, add: f32, count: usize) {
            // SAFETY: the caller's duty.
            unsafe { kernels::scale_add::<Self>(run, keep, part, add, count) }
        }
        #[target_feature(enable = $features)]
        unsafe fn divide(x: *const f32, by: f32, out: &mut [f32]) {
            // SAFETY: the caller's duty.
            unsafe { kernels::divide::<Self>(x, by, out) }
        }
        #[target_feature(enable = $features)]
        unsafe fn widen<E: Element>(from: *const u8, to: *mut f32, rows: usize, shape: Widen) {
            // SAFETY: the caller's duty.
            unsafe { kernels::widen::<Self, E>(from, to, rows, shape) }
        }
        #[target_feature(enable = $features)]
        unsafe fn narrow<E: Element>(from: &[f32], to: &mut [u8]) {
            // SAFETY: the caller's duty.
            unsafe { kernels::narrow::<Self, E>(from, to) }
        }
        #[target_feature(enable = $features)]
        unsafe fn store_keys<E: Element>(group: &store::Group<'_>) {
            // SAFETY: the caller's duty.
            unsafe { store::group::<Self, E>(group) }
        }
    };
}
pub(super) use level_kernels;

/// Run the call in rounds: units, a barrier, folds, a barrier.
pub(super) fn run<K: Kind>(worker: &Worker<'_>, problem: &Problem<'_>, scratch: &AttentionScratch) {
    let own = scratch.own(worker.index());
    // SAFETY: this worker's own memory, zeroed or filled with segments, of this length; nothing else refers to it.
    let segments = unsafe { std::slice::from_raw_parts_mut(own.segments, scratch.spec().max_seqs.max(1)) };
    let (mut cursor, packed) = (Cursor::default(), Packed::default());
    loop {
        let Round { segments: count, items, folds, last } =
            next_round(problem, scratch.slots(), &mut cursor, segments);
        let round: &[Segment] = &segments[..count];
        worker.share(items, |item| {
            let segment = &round[round.partition_point(|segment| segment.first_item <= item) - 1];
            let item = item - segment.first_item;
            // SAFETY: the level was checked; units are disjoint, and each runs on one worker.
            unsafe {
                if segment.rows == 0 {
                    packed.iter().for_each(|place| place.set(None));
                    prefill::unit::<K>(problem, &own, segment, item);
                } else {
                    decode::unit::<K>(problem, scratch, &own, &packed, segment, item);
                }
            }
        });
        if folds > 0 {
            worker.share(folds, |item| {
                let segment = &round[round.partition_point(|segment| segment.first_fold <= item) - 1];
                // SAFETY: as above; the barrier of the units lies before.
                unsafe { decode::fold::<K::Level>(problem, scratch, segment, item - segment.first_fold) };
            });
        }
        if last {
            return;
        }
    }
}
