//! The bytes of one KV group, and the two operations that write them.
//!
//! Layout: `[layer, block, kv head]`, and for each of those the keys followed by the values, in tiles of up to [`TILE`]
//! tokens: a tile's keys transposed, `[head_dim, tile]`, its values as rows, `[tile, head_dim]`; `codes` and `pairs` tell
//! what integers and pairs of bf16 look like instead. Attention reads the keys of a block from its first byte to its
//! last, and then its values: memory is only read at full speed in long runs. A lane of a key vector is a token, so a
//! score is one chain of multiply-adds over ascending d with no horizontal sum.

use std::ops::Range;

use super::codes;
use super::pairs;
use super::simd::{self, Element, LANES};
use super::store::{self, Run, ask_for_slot, runs};
use super::tuning::Reach;
use crate::error::CpuError;
use crate::isa::Isa;
use crate::pool::Worker;
use crate::tensor::{AlignedBytes, DType, Rows};

/// Tokens of a tile, unless blocks are smaller.
pub(super) const TILE: usize = 32;
/// Tokens that one worker stores together, at most.
const STORE_TOKENS: usize = 32;
/// Items of a store per worker that are wanted.
const STORE_ITEMS_PER_WORKER: usize = 4;

/// What keys and values are kept as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvType {
    /// Floats of a type.
    Float(DType),
    /// 8-bit integers with one f32 scale per token and head, of the key and of the value.
    Int8,
    /// The same of 16 bits, about as exact as f16.
    Int16,
    /// bf16 in the order of VPDPBF16PS, for [`Isa::Avx512Bf16`] and even heads; the scalar level defines its results.
    Bf16Pairs,
}

impl KvType {
    /// How `isa` likes heads of `head_dim` elements of this type.
    pub fn at_level(self, isa: Isa, head_dim: usize) -> Self {
        match self {
            Self::Float(DType::Bf16) if isa == Isa::Avx512Bf16 && head_dim.is_multiple_of(2) => {
                Self::Bf16Pairs
            }
            other => other,
        }
    }

    /// The name used by `LLM(kv_cache_dtype=...)` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float(dtype) => dtype.name(),
            Self::Int8 => "int8",
            Self::Int16 => "int16",
            Self::Bf16Pairs => DType::Bf16.name(),
        }
    }

    /// The type of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "int8" => Some(Self::Int8),
            "int16" => Some(Self::Int16),
            other => DType::from_name(other).map(Self::Float),
        }
    }

    /// Whether keys and values are integers with scales.
    pub fn is_integer(self) -> bool {
        matches!(self, Self::Int8 | Self::Int16)
    }

    /// Bytes of one token's key, or value, in one head.
    pub fn head_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::Float(dtype) => head_dim * dtype.size(),
            Self::Int8 => codes::token_bytes::<i8>(head_dim),
            Self::Int16 => codes::token_bytes::<i16>(head_dim),
            Self::Bf16Pairs => head_dim * DType::Bf16.size(),
        }
    }
}

impl From<DType> for KvType {
    fn from(dtype: DType) -> Self {
        Self::Float(dtype)
    }
}

/// Keys and values of every layer of one KV group, in blocks.
///
/// Workers of one pool write it inside a step ([`kv_store`], [`copy_blocks`]) and read it after the barrier that
/// ends those calls; a pool of blocks belongs to one executor and must not be used by two steps at once.
pub struct KvPool {
    bytes: AlignedBytes,
    num_layers: usize,
    num_blocks: usize,
    block_size: usize,
    num_kv_heads: usize,
    head_dim: usize,
    dtype: KvType,
}

/// Where the keys and the values of a tile of one (layer, block, kv head) begin.
#[derive(Clone, Copy)]
pub(super) struct TileHead {
    /// `[head_dim, tile]` keys, or their scales and codes.
    pub(super) keys: *mut u8,
    /// `[tile, head_dim]` values, or their scales and codes.
    pub(super) values: *mut u8,
}

impl KvPool {
    /// Allocate zeroed blocks.
    ///
    /// # Errors
    /// [`CpuError::OutOfMemory`] when the system has no such memory.
    ///
    /// # Panics
    /// When `block_size` is not a multiple of 16 that divides 256, a size is zero, or pairs have an odd `head_dim`.
    pub fn zeroed(
        num_layers: usize,
        num_blocks: usize,
        block_size: usize,
        num_kv_heads: usize,
        head_dim: usize,
        dtype: impl Into<KvType>,
    ) -> Result<Self, CpuError> {
        assert!(
            block_size.is_multiple_of(16) && block_size > 0 && 256usize.is_multiple_of(block_size),
            "block_size: got {block_size}, expected a multiple of 16 that divides 256"
        );
        assert!(num_kv_heads > 0 && head_dim > 0, "a cache without heads");
        let dtype = dtype.into();
        assert!(dtype != KvType::Bf16Pairs || head_dim.is_multiple_of(2), "pairs of an odd head, {head_dim}");
        let payload = [num_layers, num_blocks, 2 * block_size, num_kv_heads, dtype.head_bytes(head_dim)]
            .into_iter()
            .try_fold(1usize, usize::checked_mul)
            .and_then(|bytes| bytes.checked_add(simd::OVERREAD_BYTES))
            .ok_or(CpuError::OutOfMemory { needed_bytes: usize::MAX })?;
        let bytes = AlignedBytes::zeroed(payload)?;
        Ok(Self { bytes, num_layers, num_blocks, block_size, num_kv_heads, head_dim, dtype })
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// All blocks.
    #[cfg(test)]
    pub(super) fn as_bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// Layers of the group.
    pub fn num_layers(&self) -> usize {
        self.num_layers
    }

    /// Blocks in every layer.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Tokens of a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Heads of keys and values.
    pub fn num_kv_heads(&self) -> usize {
        self.num_kv_heads
    }

    /// Tokens of a tile.
    pub(super) fn tile(&self) -> usize {
        self.block_size.min(TILE)
    }

    /// Elements of a key or a value.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Type of the stored elements.
    pub fn dtype(&self) -> KvType {
        self.dtype
    }

    /// Bytes of one token's key and value of one head in one layer.
    pub fn slot_bytes(&self) -> usize {
        2 * self.dtype.head_bytes(self.head_dim)
    }

    /// Bytes of all heads of one block in one layer.
    pub(crate) fn block_bytes(&self) -> usize {
        self.block_size * self.num_kv_heads * self.slot_bytes()
    }

    /// Make the memory of some blocks of a layer present; what they hold stays. False where the system cannot.
    pub(crate) fn populate(&self, layer: usize, blocks: Range<usize>) -> bool {
        self.bytes.populate(self.bytes_of(layer, blocks))
    }

    /// Whether the memory of some blocks of a layer is present.
    #[cfg(all(test, target_os = "linux"))]
    pub(crate) fn is_present(&self, layer: usize, blocks: Range<usize>) -> bool {
        self.bytes.is_present(self.bytes_of(layer, blocks))
    }

    /// Where some blocks of a layer are.
    fn bytes_of(&self, layer: usize, blocks: Range<usize>) -> Range<usize> {
        let at = |block: usize| (layer * self.num_blocks + block) * self.block_bytes();
        at(blocks.start)..at(blocks.end)
    }

    /// Address of the tile of one head that holds token `offset` of a block.
    pub(super) fn at(&self, layer: usize, block: usize, kv_head: usize, offset: usize) -> TileHead {
        assert!(
            layer < self.num_layers && block < self.num_blocks && kv_head < self.num_kv_heads,
            "block {block} of layer {layer}, head {kv_head}: outside the pool"
        );
        debug_assert!(offset < self.block_size, "token {offset} of a block of {}", self.block_size);
        let token = self.dtype.head_bytes(self.head_dim);
        let half = self.block_size * token;
        let head = (layer * self.num_blocks + block) * self.block_bytes() + 2 * half * kv_head;
        // SAFETY: in range by the assertion and the size allocated in `zeroed`.
        unsafe {
            let keys = self.bytes.as_ptr().add(head + offset / self.tile() * self.tile() * token);
            TileHead { keys, values: keys.add(half) }
        }
    }
}

/// Copy whole blocks in all layers: `(source, destination)`. No destination may be another pair's source.
///
/// Every worker calls it; ends in a barrier.
pub fn copy_blocks(worker: &Worker<'_>, pool: &KvPool, copies: &[(i32, i32)]) {
    worker.share(copies.len() * pool.num_layers, |item| {
        let (source, destination) = copies[item / pool.num_layers];
        let layer = item % pool.num_layers;
        let from = pool.at(layer, index(source), 0, 0).keys;
        let to = pool.at(layer, index(destination), 0, 0).keys;
        // SAFETY: both are whole blocks inside the pool; each destination belongs to one item only, and by
        // contract no destination is read by another item.
        unsafe { std::ptr::copy(from, to, pool.block_bytes()) };
    });
}

/// Store the keys and values of the step's tokens, rounded to nearest even to the pool's type; integers take their
/// scale from the largest magnitude of a head, or from its length.
///
/// `k`, `v`: `[T, num_kv_heads * head_dim]`; `slot_mapping`: `[T]` block * block_size + offset, each slot at most
/// once, -1 stores nothing. Every worker calls it; ends in a barrier.
///
/// # Panics
/// When the shapes disagree, a slot lies outside the pool, or this processor lacks `isa`.
pub fn kv_store(
    worker: &Worker<'_>,
    isa: Isa,
    pool: &KvPool,
    layer: usize,
    k: Rows<'_>,
    v: Rows<'_>,
    slot_mapping: &[i32],
) {
    kv_store_after(worker, isa, pool, layer, k, v, slot_mapping, |_| {});
}

/// Some tokens and some heads of keys and values, which one worker stores.
pub(crate) struct StorePart {
    pub(crate) tokens: Range<usize>,
    /// Part `part` of `parts` equal ones of the heads.
    pub(crate) part: usize,
    pub(crate) parts: usize,
}

/// [`kv_store`] of keys and values that `before` makes, or finishes: it is called with each part, and nobody else touches
/// what that has in `k` and `v` until it is stored.
///
/// # Panics
/// Those of `kv_store`.
#[allow(clippy::too_many_arguments, reason = "those of `kv_store` and one more")]
pub(crate) fn kv_store_after(
    worker: &Worker<'_>,
    isa: Isa,
    pool: &KvPool,
    layer: usize,
    k: Rows<'_>,
    v: Rows<'_>,
    slot_mapping: &[i32],
    before: impl Fn(&StorePart),
) {
    let (heads, dim, count) = (pool.num_kv_heads, pool.head_dim, slot_mapping.len());
    let width = heads * dim;
    assert!(isa.is_supported(), "this processor has no {isa}");
    assert!(k.width() == width && v.width() == width, "k or v has the wrong width, expected {width}");
    assert!(k.rows() == count && v.rows() == count, "one slot per token");
    // Heads are told apart only where there are too few tokens: all heads of a token are quicker than one of many.
    let wanted = STORE_ITEMS_PER_WORKER * worker.count();
    let chunk = match count / wanted {
        few if few < LANES / 2 => few.max(1),
        // Whole groups that are transposed together.
        many => many.next_multiple_of(LANES).min(STORE_TOKENS),
    };
    let ahead = Reach::own().heads;
    let (chunks, mut parts) = (count.div_ceil(chunk), 1);
    while chunks * parts < wanted && heads.is_multiple_of(2 * parts) {
        parts *= 2;
    }
    worker.share(chunks * parts, |item| {
        let (part, first) = (item % parts, item / parts * chunk);
        let tokens = first..count.min(first + chunk);
        let heads = heads / parts * part..heads / parts * (part + 1);
        let per_head = runs(pool, slot_mapping, tokens.clone());
        let place = |kv_head: usize, run: &Run| {
            let at = pool.at(layer, run.slot / pool.block_size, kv_head, run.slot % pool.block_size);
            (at, run.slot % pool.tile())
        };
        let ask = |kv_head: usize| {
            for run in per_head.clone().filter(|_| heads.contains(&kv_head)) {
                let (at, offset) = place(kv_head, &run);
                ask_for_slot(pool, at, offset);
            }
        };
        (heads.start..heads.start + ahead).for_each(ask);
        before(&StorePart { tokens: tokens.clone(), part, parts });
        for kv_head in heads.clone() {
            if ahead > 0 {
                ask(kv_head + ahead);
            }
            let columns = kv_head * dim..(kv_head + 1) * dim;
            for run in per_head.clone() {
                let place = place(kv_head, &run);
                // SAFETY: the offsets lie in the block; the slots are this item's alone; `isa` is supported.
                unsafe { store_run(isa, pool, place, (k, v), run.tokens, columns.clone()) };
            }
        }
    });
}

/// Columns `columns` of rows `tokens`.
fn heads<'a>(
    x: Rows<'a>,
    tokens: Range<usize>,
    columns: Range<usize>,
) -> impl ExactSizeIterator<Item = &'a [f32]> + Clone {
    tokens.map(move |token| x.part(token, columns.start, columns.len()))
}

/// Store `tokens` and `columns` of keys and values in slots from `offset` on of one tile and head.
///
/// # Safety
/// The slots must lie inside the tile, nobody else may touch them, and `isa` must be supported.
unsafe fn store_run(
    isa: Isa,
    pool: &KvPool,
    (at, offset): (TileHead, usize),
    (k, v): (Rows<'_>, Rows<'_>),
    tokens: Range<usize>,
    columns: Range<usize>,
) {
    let (k, v) = (heads(k, tokens.clone(), columns.clone()), heads(v, tokens, columns));
    let (tile, dim) = (pool.tile(), pool.head_dim);
    // SAFETY: all addresses are of the tokens' slots in this tile and head; the rest is the caller's duty.
    unsafe {
        let dtype = match pool.dtype {
            KvType::Float(dtype) => dtype,
            KvType::Int8 => return codes::store::<i8>(isa, tile, at, offset, k, v),
            KvType::Int16 => return codes::store::<i16>(isa, tile, at, offset, k, v),
            KvType::Bf16Pairs => return pairs::store(isa, tile, at, offset, k, v),
        };
        for (v, offset) in v.zip(offset..) {
            let bytes = dim * dtype.size();
            let values = std::slice::from_raw_parts_mut(at.values.add(offset * bytes), bytes);
            simd::narrow(isa, dtype, v, values);
        }
        if !store::store_keys(isa, dtype, k.clone(), (at.keys, offset, tile)) {
            for (k, offset) in k.zip(offset..) {
                store_key(isa, dtype, k, at.keys.add(offset * dtype.size()), tile);
            }
        }
    }
}

/// Round one key to `dtype` and store its elements from `to` on, `stride` elements apart.
///
/// # Safety
/// All destinations must be good for writes, and `isa` must be supported.
unsafe fn store_key(isa: Isa, dtype: DType, k: &[f32], to: *mut u8, stride: usize) {
    let mut piece = [0u8; 16 * 4];
    for (begin, k) in (0..).step_by(16).zip(k.chunks(16)) {
        // SAFETY: the caller's duty.
        unsafe {
            simd::narrow(isa, dtype, k, &mut piece);
            let key = to.add(begin * stride * dtype.size());
            match dtype {
                DType::F32 => scatter::<simd::F32>(&piece, k.len(), key, stride),
                DType::F16 => scatter::<simd::F16>(&piece, k.len(), key, stride),
                DType::Bf16 => scatter::<simd::Bf16>(&piece, k.len(), key, stride),
            }
        }
    }
}

/// Spread `count` packed elements to `to`, `stride` elements apart.
///
/// # Safety
/// All `count` destinations must be good for writes.
unsafe fn scatter<E: Element>(packed: &[u8; 64], count: usize, to: *mut u8, stride: usize) {
    for index in 0..count {
        // SAFETY: the caller's duty; elements have an alignment of at most their size, unaligned is allowed.
        unsafe {
            let value = packed.as_ptr().cast::<E::Raw>().add(index).read_unaligned();
            to.cast::<E::Raw>().add(index * stride).write_unaligned(value);
        }
    }
}

/// A block id that must exist.
fn index(block: i32) -> usize {
    assert!(block >= 0, "block {block} does not exist");
    block as usize
}
