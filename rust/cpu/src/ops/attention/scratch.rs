//! Memory of the attention calls, allocated once: partial results shared by the workers, and each worker's own.

use super::SPLIT;
use super::kernels::SCORE_STRIDE;
use super::plan::Segment;
use super::simd::{LANES, MAX_TILE_ROWS};
use crate::error::CpuError;
use crate::tensor::AlignedBytes;

/// Partial results held at once, at most, unless a single sequence needs more; further ones wait for a next round.
const PARTIALS: usize = 8192;
/// Elements of queries that a prefill unit takes, about: its accumulators and packed queries stay in the L2 cache.
const SPAN_ELEMENTS: usize = 24 * 1024;
const ALIGN: usize = 128;

/// The largest step that a scratch can serve.
#[derive(Clone, Copy, Debug)]
pub struct AttentionScratchSpec {
    /// Tokens in a step.
    pub max_tokens: usize,
    /// Sequences in a step.
    pub max_seqs: usize,
    /// Positions of a sequence.
    pub max_len: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Workers of the pool.
    pub num_workers: usize,
}

/// Memory for [`attention`](super::attention); it belongs to one executor and serves one call at a time.
pub struct AttentionScratch {
    bytes: AlignedBytes,
    spec: AttentionScratchSpec,
    sizes: Sizes,
}

/// Byte sizes of the parts, each a multiple of [`ALIGN`].
#[derive(Clone, Copy)]
struct Sizes {
    partials: usize,
    segments: usize,
    scores: usize,
    part: usize,
    span: usize,
    sums: usize,
    keys: usize,
    values: usize,
}

/// One worker's own memory. All pointers are to f32 unless said.
#[derive(Clone, Copy)]
pub(super) struct Own {
    /// `[max_seqs]` segments of the round.
    pub(super) segments: *mut Segment,
    /// `[MAX_TILE_ROWS, SCORE_STRIDE]` scores, then probabilities, of a tile.
    pub(super) scores: *mut f32,
    /// `[MAX_TILE_ROWS, dim_padded]` result of a tile for one split.
    pub(super) part: *mut f32,
    /// `[span rows, dim_padded]` packed queries of a prefill unit, or of a decode tile.
    pub(super) queries: *mut f32,
    /// `[span rows, dim_padded]` running results of a prefill unit.
    pub(super) run: *mut f32,
    /// `[span rows, 2]` running maximum and sum.
    pub(super) sums: *mut f32,
    /// `[SPLIT / group, head_dim, group]` widened keys of a split.
    pub(super) keys: *mut f32,
    /// `[SPLIT, value_stride(head_dim)]` widened values of a split.
    pub(super) values: *mut f32,
}

/// `head_dim` rounded up to whole vectors.
pub(super) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

/// Elements from one widened value to the next: not a power of two, so that values spread over the cache sets.
pub(super) fn value_stride(head_dim: usize) -> usize {
    padded(head_dim) + LANES
}

impl AttentionScratchSpec {
    fn group_size(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }

    /// Query rows (token times head of one group) that take the decode form together, at most.
    pub(super) fn decode_rows(group_size: usize) -> usize {
        group_size.max(LANES)
    }

    /// Tokens of a prefill unit.
    pub(super) fn span_tokens(group_size: usize, head_dim: usize) -> usize {
        let tiles = (SPAN_ELEMENTS / (MAX_TILE_ROWS * padded(head_dim))).clamp(4, 16);
        (tiles * MAX_TILE_ROWS / group_size).max(1)
    }

    /// Partial results that fit.
    fn slots(&self) -> usize {
        let splits = self.max_len.div_ceil(SPLIT).max(1);
        let all = self.max_seqs.max(1) * self.num_heads * splits;
        all.min(PARTIALS).max(Self::decode_rows(self.group_size()) * splits)
    }

    fn sizes(&self) -> Sizes {
        let floats = |count: usize| (count * size_of::<f32>()).next_multiple_of(ALIGN);
        let span_rows = Self::span_tokens(self.group_size(), self.head_dim) * self.group_size();
        let rows = span_rows.max(MAX_TILE_ROWS);
        Sizes {
            partials: floats(self.slots() * slot_stride(self.head_dim)),
            segments: (self.max_seqs.max(1) * size_of::<Segment>()).next_multiple_of(ALIGN),
            scores: floats(MAX_TILE_ROWS * SCORE_STRIDE),
            part: floats(MAX_TILE_ROWS * padded(self.head_dim)),
            span: floats(rows * padded(self.head_dim)),
            sums: floats(2 * rows),
            keys: floats(SPLIT * self.head_dim),
            values: floats(SPLIT * value_stride(self.head_dim)),
        }
    }
}

/// Elements of one partial result: maximum and sum in the first vector, then the padded head.
pub(super) fn slot_stride(head_dim: usize) -> usize {
    LANES + padded(head_dim)
}

impl Sizes {
    fn own(&self) -> usize {
        self.segments + self.scores + self.part + 2 * self.span + self.sums + self.keys + self.values
    }
}

impl AttentionScratch {
    /// Allocate for the given limits.
    ///
    /// # Errors
    /// [`CpuError::OutOfMemory`] when the system has no such memory.
    ///
    /// # Panics
    /// When `num_heads` is not a multiple of `num_kv_heads`, or a size is zero.
    pub fn new(spec: AttentionScratchSpec) -> Result<Self, CpuError> {
        assert!(
            spec.num_kv_heads > 0 && spec.num_heads > 0 && spec.num_heads.is_multiple_of(spec.num_kv_heads),
            "num_heads: got {}, expected a multiple of {}",
            spec.num_heads,
            spec.num_kv_heads
        );
        assert!(spec.head_dim > 0 && spec.num_workers > 0, "a scratch without heads or workers");
        let sizes = spec.sizes();
        let bytes = AlignedBytes::zeroed(sizes.partials + spec.num_workers * sizes.own())?;
        Ok(Self { bytes, spec, sizes })
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn spec(&self) -> &AttentionScratchSpec {
        &self.spec
    }

    /// Partial results that fit.
    pub(super) fn slots(&self) -> usize {
        self.spec.slots()
    }

    /// Address of a partial result.
    pub(super) fn slot(&self, index: usize) -> *mut f32 {
        assert!(index < self.slots(), "partial result {index} outside the scratch");
        // SAFETY: in range by the assertion and the size allocated in `new`.
        unsafe { self.bytes.as_ptr().cast::<f32>().add(index * slot_stride(self.spec.head_dim)) }
    }

    /// The memory of one worker.
    pub(super) fn own(&self, worker: usize) -> Own {
        assert!(worker < self.spec.num_workers, "worker {worker} has no scratch");
        let sizes = &self.sizes;
        let mut offset = sizes.partials + worker * sizes.own();
        let mut take = |bytes: usize| {
            // SAFETY: the parts of all workers fit the buffer allocated in `new`.
            let at = unsafe { self.bytes.as_ptr().add(offset) };
            offset += bytes;
            at.cast::<f32>()
        };
        Own {
            segments: take(sizes.segments).cast(),
            scores: take(sizes.scores),
            part: take(sizes.part),
            queries: take(sizes.span),
            run: take(sizes.span),
            sums: take(sizes.sums),
            keys: take(sizes.keys),
            values: take(sizes.values),
        }
    }
}
