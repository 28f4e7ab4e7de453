//! The KV cache of a group, and causal attention over it.
//!
//! The result of a query row is a function of its query, its keys and values and its position alone: keys are cut
//! at the fixed positions 0, 256, 512, ... and partial results are folded in ascending order. Decode, prefill,
//! every block size, every chunking, every number of workers and every instruction level give the same bits; the
//! module `scalar` is the definition. A cache of integers (`codes`) and one of bf16 for VPDPBF16PS (`pairs`) have
//! definitions of their own there.
//!
//! Sources: online softmax as FlashAttention-2, arXiv 2307.08691; block tables as PagedAttention, arXiv 2309.06180.

mod ahead;
mod cache;
mod codes;
mod kernels;
mod pairs;
mod plan;
mod problem;
mod scalar;
mod scratch;
mod simd;
mod store;
mod tuning;

pub use cache::{KvPool, KvType, copy_blocks, kv_store};
pub(crate) use cache::{StorePart, kv_store_after};
pub use scratch::{AttentionScratch, AttentionScratchSpec};

use crate::isa::Isa;
use crate::pool::Worker;
use crate::step::{GroupView, StepView};
use crate::tensor::{Rows, RowsMut};
use problem::Problem;

/// Keys of a split. Part of the definition of every result: changing it changes bits.
const SPLIT: usize = 256;

/// Everything that [`attention`] reads besides queries.
#[derive(Clone, Copy)]
pub struct AttentionArgs<'a> {
    /// Keys and values of the group.
    pub pool: &'a KvPool,
    /// Layer within the group.
    pub layer: usize,
    /// Query heads, a multiple of the pool's kv heads.
    pub num_heads: usize,
    /// Multiplies q.k before the softmax.
    pub softmax_scale: f32,
    /// Keys that a query sees, itself included; none for all.
    pub window: Option<usize>,
    /// The step's sequences.
    pub step: &'a StepView<'a>,
    /// Their blocks in this group.
    pub group: &'a GroupView<'a>,
}

/// Attend the step's rows over their sequences' cached keys and values, those of the step included.
///
/// `q`, `out`: `[T, num_heads * head_dim]`, not aliased. A query at position p sees keys `j <= p` and, with a window
/// W, `j > p - W`; query head h uses kv head `h / (num_heads / num_kv_heads)`. Every worker calls it with the same
/// arguments; ends in a barrier. Nothing is allocated.
///
/// # Panics
/// When shapes disagree, a visible position has no block, the step exceeds the scratch, this processor lacks `isa`, or
/// `isa` has no form for the pool's type.
pub fn attention(
    worker: &Worker<'_>,
    isa: Isa,
    args: &AttentionArgs<'_>,
    q: Rows<'_>,
    out: RowsMut<'_>,
    scratch: &AttentionScratch,
) {
    attention_with_split(worker, isa, args, q, out, scratch, SPLIT);
}

/// [`attention`] with another length of a split, a multiple of 32 up to 256. Results differ in their last bits;
/// tests use it to show that they would notice.
#[doc(hidden)]
pub fn attention_with_split(
    worker: &Worker<'_>,
    isa: Isa,
    args: &AttentionArgs<'_>,
    q: Rows<'_>,
    out: RowsMut<'_>,
    scratch: &AttentionScratch,
    split: usize,
) {
    let problem = check(worker, isa, args, q, out, scratch, split);
    #[cfg(target_arch = "x86_64")]
    {
        use crate::tensor::DType::{Bf16, F16, F32};
        use avx2::Avx2;
        use avx512::Avx512;
        use cache::KvType::{Bf16Pairs, Float, Int8, Int16};
        use kind::{Floats, Pairs};
        use levels::run;
        use products::Codes;
        use products_avx512::{MultiplyAdds, Vnni};
        use simd::{Bf16 as Brain, F16 as Half, F32 as Single};
        match (isa, args.pool.dtype()) {
            (Isa::Scalar, _) => {}
            (Isa::Avx2, Float(F32)) => return run::<Floats<Avx2, Single>>(worker, &problem, scratch),
            (Isa::Avx2, Float(F16)) => return run::<Floats<Avx2, Half>>(worker, &problem, scratch),
            (Isa::Avx2, Float(Bf16)) => return run::<Floats<Avx2, Brain>>(worker, &problem, scratch),
            (Isa::Avx2, Int8) => return run::<Codes<Avx2, i8>>(worker, &problem, scratch),
            (Isa::Avx2, Int16) => return run::<Codes<Avx2, i16>>(worker, &problem, scratch),
            (_, Float(F32)) => return run::<Floats<Avx512, Single>>(worker, &problem, scratch),
            (_, Float(F16)) => return run::<Floats<Avx512, Half>>(worker, &problem, scratch),
            (_, Float(Bf16)) => return run::<Floats<Avx512, Brain>>(worker, &problem, scratch),
            (Isa::Avx512, Int8) => return run::<Codes<MultiplyAdds, i8>>(worker, &problem, scratch),
            (Isa::Avx512, Int16) => return run::<Codes<MultiplyAdds, i16>>(worker, &problem, scratch),
            (_, Bf16Pairs) => return run::<Pairs>(worker, &problem, scratch),
            (_, Int8) => return run::<Codes<Vnni, i8>>(worker, &problem, scratch),
            (_, Int16) => return run::<Codes<Vnni, i16>>(worker, &problem, scratch),
        }
    }
    run_scalar(worker, &problem, scratch);
}

fn check<'a>(
    worker: &Worker<'_>,
    isa: Isa,
    args: &AttentionArgs<'a>,
    q: Rows<'a>,
    out: RowsMut<'a>,
    scratch: &AttentionScratch,
    split: usize,
) -> Problem<'a> {
    let (pool, spec) = (args.pool, scratch.spec());
    let (kv_heads, sequences) = (pool.num_kv_heads(), args.step.seq_lens.len());
    let width = args.num_heads * pool.head_dim();
    assert!(isa.is_supported(), "this processor has no {isa}");
    assert!(
        pool.dtype() != KvType::Bf16Pairs || matches!(isa, Isa::Scalar | Isa::Avx512Bf16),
        "{isa} has no dot product of pairs of bf16"
    );
    assert!(
        spec.num_heads == args.num_heads
            && spec.num_kv_heads == kv_heads
            && spec.head_dim == pool.head_dim()
            && args.num_heads.is_multiple_of(kv_heads),
        "the scratch is of another shape"
    );
    assert!(q.width() == width && out.width() == width, "q or out has the wrong width, expected {width}");
    assert!(q.rows() == out.rows(), "q has {} rows, out {}", q.rows(), out.rows());
    assert!(
        sequences <= spec.max_seqs && worker.count() <= spec.num_workers,
        "the scratch is for {} sequences and {} workers",
        spec.max_seqs,
        spec.num_workers
    );
    assert!(
        args.step.cu_seqlens_q.len() == sequences + 1,
        "cu_seqlens_q: expected {} entries",
        sequences + 1
    );
    assert!(args.group.block_tables.len() >= sequences * args.group.max_blocks, "block_tables is too short");
    assert!(args.window != Some(0), "a window of 0 sees nothing");
    assert!(split > 0 && split <= SPLIT && split.is_multiple_of(32), "split: got {split}");
    Problem {
        pool,
        layer: args.layer,
        group_size: args.num_heads / kv_heads,
        scale: args.softmax_scale,
        window: args.window,
        step: args.step,
        group: args.group,
        q,
        out,
        split,
        isa,
    }
}

/// The definition, a unit per row and head.
fn run_scalar(worker: &Worker<'_>, problem: &Problem<'_>, scratch: &AttentionScratch) {
    let own = scratch.own(worker.index());
    let dim = problem.head_dim();
    // SAFETY: this worker's own memory, a padded head each; nothing else refers to it during the call.
    let [part, run, query] =
        unsafe { [own.part, own.run, own.queries].map(|at| std::slice::from_raw_parts_mut(at, dim)) };
    let mut space = scalar::Space { part, run, query };
    let heads = problem.num_kv_heads() * problem.group_size;
    worker.share(problem.q.rows() * heads, |item| {
        let (row, head) = (item / heads, item % heads);
        let after = problem.step.cu_seqlens_q.partition_point(|first| *first as usize <= row);
        let index = after.saturating_sub(1);
        if index >= problem.num_sequences() {
            return;
        }
        let sequence = problem.sequence(index);
        let position = sequence.first_position() + row - sequence.first_row;
        // SAFETY: each item is one result, and stores into the cache ended before this call.
        unsafe { scalar::attend(problem, index, row, position, head, &mut space) };
    });
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod decode;
#[cfg(target_arch = "x86_64")]
mod kind;
#[cfg(target_arch = "x86_64")]
mod levels;
#[cfg(target_arch = "x86_64")]
mod pairs_avx512;
#[cfg(target_arch = "x86_64")]
mod prefill;
#[cfg(target_arch = "x86_64")]
mod products;
#[cfg(target_arch = "x86_64")]
mod products_avx512;
#[cfg(target_arch = "x86_64")]
mod tile;
#[cfg(target_arch = "x86_64")]
mod walk;
#[cfg(target_arch = "x86_64")]
mod weights;
#[cfg(target_arch = "x86_64")]
mod words;
