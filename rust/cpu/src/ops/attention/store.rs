//! Runs of tokens that go to consecutive slots of one tile. Keys of many are transposed in registers, sixteen tokens at a
//! time, and whole runs of a key's row are written at once; keys of few go to as many lines as they have elements.

use std::ops::Range;

use super::cache::{KvPool, KvType, TileHead};
use super::simd::{Element, LANES, Simd};
use crate::isa::Isa;
use crate::ops::prefetch::prefetch;
use crate::tensor::DType;

/// Tokens whose slots follow each other in one tile.
pub(super) struct Run {
    pub(super) tokens: Range<usize>,
    /// Of the first.
    pub(super) slot: usize,
}

/// The runs of some tokens, without those that are not stored.
pub(super) fn runs<'a>(
    pool: &'a KvPool,
    slot_mapping: &'a [i32],
    tokens: Range<usize>,
) -> impl Iterator<Item = Run> + Clone + 'a {
    let mut token = tokens.start;
    std::iter::from_fn(move || {
        while token < tokens.end {
            let first = token;
            token += 1;
            if let Ok(slot) = usize::try_from(slot_mapping[first]) {
                let most = (tokens.end - first).min(pool.tile() - slot % pool.tile());
                token = first + consecutive(&slot_mapping[first..], most);
                return Some(Run { tokens: first..token, slot });
            }
        }
        None
    })
}

/// How many of `slots`, at most `most`, ascend one by one from the first.
fn consecutive(slots: &[i32], most: usize) -> usize {
    slots.iter().take(most).zip(slots[0]..).take_while(|(slot, wanted)| *slot == wanted).count()
}

/// Ask for the memory of the key and the value in slot `offset` of a tile, which is about to be written.
pub(super) fn ask_for_slot(pool: &KvPool, at: TileHead, offset: usize) {
    let tile = pool.tile();
    // Bytes of the scales, elements of a key that lie together and tokens whose values do, bytes of an element.
    let (scales, together, size) = match pool.dtype() {
        KvType::Float(dtype) => (0, 1, dtype.size()),
        KvType::Int8 => (size_of::<f32>() * tile, 4, 1),
        KvType::Int16 => (size_of::<f32>() * tile, 2, 2),
        KvType::Bf16Pairs => (0, 2, DType::Bf16.size()),
    };
    let (dim, tokens) = (pool.head_dim().next_multiple_of(together), together.min(2));
    let scale = (scales > 0).then_some(offset * size_of::<f32>());
    let key = (0..dim / together).map(|row| scales + (row * tile + offset) * together * size);
    let value = scales + offset / tokens * tokens * dim * size;
    key.chain(scale).for_each(|byte| prefetch(at.keys.wrapping_add(byte), 1));
    prefetch(at.values.wrapping_add(value), tokens * dim * size);
    scale.into_iter().for_each(|byte| prefetch(at.values.wrapping_add(byte), 1));
}

/// Keys of sixteen tokens and where they go.
#[derive(Clone, Copy)]
pub(super) struct Group<'a> {
    pub(super) keys: [&'a [f32]; LANES],
    /// The first token's slot in the `[head_dim, stride]` keys of a tile.
    pub(super) to: *mut u8,
    pub(super) stride: usize,
}

/// Round the keys of a run of tokens, one head each, to `dtype` and store them in slots from `offset` on of the
/// `[head_dim, tile]` keys `to` of a tile; false when it takes another way: fewer tokens than a group, or no
/// vectors.
///
/// # Safety
/// The slots must lie inside the tile and be nobody else's, and `isa` must be supported.
pub(super) unsafe fn store_keys<'a>(
    isa: Isa,
    dtype: DType,
    keys: impl ExactSizeIterator<Item = &'a [f32]> + Clone,
    (to, offset, tile): (*mut u8, usize, usize),
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if isa != Isa::Scalar && keys.len() >= LANES {
        use super::{avx2::Avx2, avx512::Avx512, simd};
        // The last group may overlap the one before: a token stored twice is the same token.
        let last = keys.len() - LANES;
        for first in (0..last).step_by(LANES).chain([last]) {
            let (mut group, to) = ([&[][..]; LANES], to.wrapping_add((offset + first) * dtype.size()));
            for (to, key) in group.iter_mut().zip(keys.clone().skip(first)) {
                *to = key;
            }
            let group = Group { keys: group, to, stride: tile };
            // SAFETY: the caller's duty.
            unsafe {
                match (isa, dtype) {
                    (Isa::Avx2, DType::F32) => Avx2::store_keys::<simd::F32>(&group),
                    (Isa::Avx2, DType::F16) => Avx2::store_keys::<simd::F16>(&group),
                    (Isa::Avx2, DType::Bf16) => Avx2::store_keys::<simd::Bf16>(&group),
                    (_, DType::F32) => Avx512::store_keys::<simd::F32>(&group),
                    (_, DType::F16) => Avx512::store_keys::<simd::F16>(&group),
                    (_, DType::Bf16) => Avx512::store_keys::<simd::Bf16>(&group),
                }
            }
        }
        return true;
    }
    let _ = (isa, dtype, keys, to, offset, tile);
    false
}

/// Store one group, sixteen dimensions at a time; a last few go through a buffer.
#[inline(always)]
pub(super) unsafe fn group<S: Simd, E: Element>(group: &Group<'_>) {
    let Group { keys, to, stride } = *group;
    let dim = keys[0].len();
    for first in (0..dim).step_by(LANES) {
        let count = LANES.min(dim - first);
        let mut buffer = [0f32; LANES];
        // SAFETY: slots of sixteen tokens in each row of the block, the caller's duty.
        unsafe {
            let mut rows = [S::splat(0.0); LANES];
            for (row, key) in rows.iter_mut().zip(keys) {
                let part = &key[first..first + count];
                *row = if count == LANES {
                    S::load(part.as_ptr())
                } else {
                    for (to, from) in buffer.iter_mut().zip(part) {
                        *to = *from;
                    }
                    S::load(buffer.as_ptr())
                };
            }
            rows = S::transpose(rows);
            for (d, row) in (first..first + count).zip(rows) {
                E::store::<S>(to.add(d * stride * E::BYTES), row);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use crate::isa::Isa;
    use crate::ops::attention::{KvPool, KvType, kv_store};
    use crate::pool::Pool;
    use crate::tensor::{DType, Rows};

    const BLOCKS: usize = 8;
    const HEADS: usize = 2;

    /// Slots of `count` tokens that begin at slot `first` of a shuffled list of blocks.
    fn slots(block_size: usize, first: usize, count: usize) -> Vec<i32> {
        let blocks = [5, 0, 7, 2, 3, 6, 1, 4];
        (first..first + count)
            .map(|at| (blocks[at / block_size] * block_size + at % block_size) as i32)
            .collect()
    }

    /// Slot mappings of every kind: any start and length, runs over block edges, holes, and a run backwards.
    fn mappings(block_size: usize) -> Vec<Vec<i32>> {
        let mut all = Vec::new();
        for first in [0, 1, 5, 15, 16, 17, block_size - 1] {
            for count in [1, 15, 16, 17, 31, 32, 33, 50, 6 * block_size] {
                all.push(slots(block_size, first, count));
            }
        }
        for hole in [0, 3, 15, 16, 17, 31, 40] {
            let mut holed = slots(block_size, 2, 60);
            holed[hole] = -1;
            all.push(holed.clone());
            holed[20..35].fill(-1);
            all.push(holed);
        }
        all.push((0..40).rev().collect());
        all
    }

    #[test]
    fn every_level_stores_the_bytes_of_the_scalar_form() {
        let mut workers = Pool::new(1).unwrap();
        let types = [DType::F32, DType::F16, DType::Bf16].map(KvType::Float);
        for (dtype, dim, block_size) in types
            .into_iter()
            .flat_map(|dtype| [16, 24, 33, 64].map(|dim| (dtype, dim)))
            .chain([(KvType::Int8, 24), (KvType::Int16, 24), (KvType::Int16, 33)])
            .chain([16, 24, 34, 64].map(|dim| (KvType::Bf16Pairs, dim)))
            .flat_map(|(dtype, dim)| [16, 32, 64, 128].map(|size| (dtype, dim, size)))
        {
            for slots in mappings(block_size) {
                let width = HEADS * dim;
                let element = |at: usize| match at % 61 {
                    7 => 1e-41,
                    11 => -6.5e-8,
                    13 if !dtype.is_integer() => f32::INFINITY,
                    rest => (rest as f32 - 30.3) * (at as f32 + 1.0),
                };
                let k: Vec<f32> = (0..slots.len() * width).map(element).collect();
                let v: Vec<f32> = k.iter().rev().copied().collect();
                let mut stored = |isa: Isa| {
                    let pool = KvPool::zeroed(1, BLOCKS, block_size, HEADS, dim, dtype).unwrap();
                    let (k, v) = (Rows::new(&k, width), Rows::new(&v, width));
                    workers.run(|worker| kv_store(worker, isa, &pool, 0, k, v, &slots)).unwrap();
                    pool
                };
                let want = stored(Isa::Scalar);
                for isa in Isa::ALL.into_iter().filter(|isa| *isa != Isa::Scalar && isa.is_supported()) {
                    let same = stored(isa).as_bytes() == want.as_bytes();
                    assert!(same, "{isa} {dtype:?} dim {dim} block {block_size}: {slots:?}");
                }
            }
        }
    }
}
