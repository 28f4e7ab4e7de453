//! The form for few query rows: one split of one kv head per unit, read straight from the cache.

use std::ptr::null;

use super::kind::Kind;
use super::plan::Segment;
use super::problem::{Problem, Sequence};
use super::scalar::rescale;
use super::scratch::{AttentionScratch, Own, padded, slot_stride};
use super::simd::{LANES, MAX_TILE_ROWS, Simd};
use super::tile::{Keys, PIECES, Tile, locate, tile_rows};

/// Keys `begin..end` of one split, in blocks of the cache.
fn cached_keys<S: Simd>(
    problem: &Problem<'_>,
    sequence: usize,
    kv_head: usize,
    start: usize,
    (begin, end): (usize, usize),
) -> Keys {
    let block_size = problem.pool.block_size();
    let first = begin / block_size * block_size;
    let vectors = S::KEY_VECTORS.min(block_size / LANES);
    let mut keys = Keys {
        start,
        first,
        len: block_size,
        pieces: 0,
        at: [null(); 3 * PIECES],
        vectors,
        k_step: vectors * LANES,
        k_stride: block_size,
        v_stride: problem.head_dim(),
    };
    keys.pieces = (end - first).div_ceil(block_size);
    for piece in 0..keys.pieces {
        let block = problem.block(sequence, first + piece * block_size, kv_head);
        keys.at[piece] = block.keys;
        keys.at[keys.pieces + piece] = block.values;
    }
    keys
}

/// The same for all blocks of a split that some row of the sequence sees.
pub(super) fn split_keys<S: Simd>(
    problem: &Problem<'_>,
    sequence: &Sequence,
    kv_head: usize,
    split: usize,
    (first_position, last_position): (usize, usize),
) -> (Keys, (usize, usize)) {
    let start = split * problem.split;
    let begin = problem.keys_of(first_position).0.max(start);
    let end = (last_position + 1).min(start + problem.split);
    (cached_keys::<S>(problem, sequence.index, kv_head, start, (begin, end)), (begin, end))
}

/// The part of a row's keys that lies in a split.
pub(super) fn clip(problem: &Problem<'_>, position: usize, start: usize) -> (usize, usize) {
    let (begin, end) = problem.keys_of(position);
    let (begin, end) = (begin.max(start), end.min(start + problem.split));
    if begin < end { (begin, end) } else { (start, start) }
}

/// Compute unit `item` of a segment.
///
/// # Safety
/// The processor must have the level; `own` must be this worker's; the unit must be this worker's alone.
pub(super) unsafe fn unit<K: Kind>(
    problem: &Problem<'_>,
    scratch: &AttentionScratch,
    own: &Own,
    segment: &Segment,
    item: usize,
) {
    let sequence = problem.sequence(segment.sequence);
    let (head_index, index) = (item / segment.per_head, item % segment.per_head);
    let (kv_head, split) = (segment.kv_head + head_index, segment.first_split + index);
    let positions = (sequence.first_position(), sequence.len - 1);
    let (mut keys, _) = split_keys::<K::Level>(problem, &sequence, kv_head, split, positions);
    announce::<K>(problem, &sequence, segment, (kv_head, split), &mut keys);
    let stride = slot_stride(problem.head_dim());
    let mut first = 0;
    while first < segment.rows {
        let rows = tile_rows::<K::Level>(segment.rows - first);
        let slot = match segment.per_head {
            1 => None,
            splits => {
                let slot = segment.first_slot + (head_index * splits + index) * segment.rows + first;
                scratch.slot(slot + rows - 1);
                Some(scratch.slot(slot))
            }
        };
        let mut tile = Tile {
            rows,
            ranges: [(keys.start, keys.start); MAX_TILE_ROWS],
            queries: own.queries,
            scores: own.scores,
            out: slot.map_or(own.part, |slot| slot.wrapping_add(LANES)),
            out_stride: if slot.is_some() { stride } else { padded(problem.head_dim()) },
            sums: [(0.0, 0.0); MAX_TILE_ROWS],
        };
        for (row, range) in tile.ranges[..rows].iter_mut().enumerate() {
            let (_, position, _) = locate(problem, &sequence, kv_head, first + row);
            *range = clip(problem, position, keys.start);
        }
        // SAFETY: the caller's duties; the scratch holds a tile, and slots up to the last one were checked.
        unsafe {
            K::pack(problem, &sequence, kv_head, first, rows, own.queries);
            K::attend(problem, &keys, &mut tile);
            for row in 0..rows {
                let (m, l) = tile.sums[row];
                if let Some(slot) = slot {
                    slot.add(row * stride).cast::<[f32; 2]>().write([m, l]);
                } else {
                    let (token, _, head) = locate(problem, &sequence, kv_head, first + row);
                    K::Level::divide(tile.out.add(row * tile.out_stride), l, problem.result(token, head));
                }
            }
        }
        first += rows;
    }
}

/// Append the blocks that the unit after this one begins with, if it is of the same segment.
fn announce<K: Kind>(
    problem: &Problem<'_>,
    sequence: &Sequence,
    segment: &Segment,
    (kv_head, split): (usize, usize),
    keys: &mut Keys,
) {
    let (kv_head, split) = if split + 1 < segment.first_split + segment.per_head {
        (kv_head, split + 1)
    } else if kv_head + 1 < problem.num_kv_heads() {
        (kv_head + 1, segment.first_split)
    } else {
        return;
    };
    let start = split * problem.split;
    let begin = problem.keys_of(sequence.first_position()).0.max(start);
    let first = begin / keys.len * keys.len;
    let end =
        sequence.len.min(start + problem.split).min(first + K::ahead(keys, problem.head_dim()) * keys.len);
    for (position, at) in (first..end).step_by(keys.len).zip(&mut keys.at[2 * keys.pieces..]) {
        *at = problem.block(sequence.index, position, kv_head).keys;
    }
}

/// Fold the partial results of row `item` of a segment, ascending, and write its result.
///
/// # Safety
/// As [`unit`]; all units of the segment must be done.
pub(super) unsafe fn fold<S: Simd>(
    problem: &Problem<'_>,
    scratch: &AttentionScratch,
    segment: &Segment,
    item: usize,
) {
    let sequence = problem.sequence(segment.sequence);
    let (head_index, row) = (item / segment.rows, item % segment.rows);
    let kv_head = segment.kv_head + head_index;
    let (token, position, head) = locate(problem, &sequence, kv_head, row);
    let (begin, end) = problem.keys_of(position);
    let slot = |split: usize| {
        let index = head_index * segment.per_head + split - segment.first_split;
        scratch.slot(segment.first_slot + index * segment.rows + row)
    };
    let first = begin / problem.split;
    let run = slot(first);
    // SAFETY: the caller's duty; a slot holds (m, l) and, a vector further, a padded head.
    unsafe {
        let [mut m, mut l] = run.cast::<[f32; 2]>().read();
        for split in first + 1..=(end - 1) / problem.split {
            let part = slot(split);
            let [m_split, l_split] = part.cast::<[f32; 2]>().read();
            let (keep, add, top) = rescale(m, m_split);
            l = l_split.mul_add(add, l * keep);
            m = top;
            S::scale_add(run.add(LANES), keep, part.add(LANES), add, padded(problem.head_dim()) / LANES);
        }
        S::divide(run.add(LANES), l, problem.result(token, head));
    }
}
