//! The form for few query rows: one split of one kv head per unit, read straight from the cache.

use std::cell::Cell;
use std::ptr::null;

use super::ahead::Ahead;
use super::kind::Kind;
use super::plan::Segment;
use super::problem::{Problem, Sequence};
use super::scratch::{AttentionScratch, Own, padded, slot_stride};
use super::simd::{LANES, MAX_KEY_VECTORS, MAX_TILE_ROWS, Simd};
use super::tile::{Keys, PIECES, Tile, locate, rows_from, tile_rows};
use super::tuning::Reach;
use crate::ops::prefetch::prefetch_to_write;

/// Places for the packed queries of a head in a worker's scratch, at most.
const PLACES: usize = 16;

/// What a worker's scratch holds the packed queries of, place by place: a sequence and a kv head.
pub(super) type Packed = [Cell<Option<(usize, usize)>>; PLACES];

/// Keys `begin..end` of one split, in tiles of the cache.
fn cached_keys(
    problem: &Problem<'_>,
    sequence: usize,
    kv_head: usize,
    start: usize,
    (begin, end): (usize, usize),
) -> Keys {
    let tile = problem.pool.tile();
    let first = begin / tile * tile;
    let vectors = MAX_KEY_VECTORS.min(tile / LANES);
    let piece_bytes = tile * problem.pool.dtype().head_bytes(problem.head_dim());
    let reach = Reach::own();
    let mut keys = Keys {
        start,
        first,
        len: tile,
        shift: tile.ilog2(),
        pieces: 0,
        at: [null(); 3 * PIECES],
        reach,
        ahead: Ahead::pieces(reach, piece_bytes).min(PIECES),
        between: 0,
        vectors,
        k_step: vectors * LANES,
        k_stride: tile,
        v_stride: problem.head_dim(),
    };
    keys.pieces = (end - first).div_ceil(tile);
    for piece in 0..keys.pieces {
        let at = problem.tile(sequence, first + piece * tile, kv_head);
        keys.at[piece] = at.keys;
        keys.at[keys.pieces + piece] = at.values;
    }
    keys
}

/// The same for all blocks of a split that some row of the sequence sees.
pub(super) fn split_keys(
    problem: &Problem<'_>,
    sequence: &Sequence,
    kv_head: usize,
    split: usize,
    (first_position, last_position): (usize, usize),
) -> (Keys, (usize, usize)) {
    let start = split * problem.split;
    let begin = problem.keys_of(first_position).0.max(start);
    let end = (last_position + 1).min(start + problem.split);
    (cached_keys(problem, sequence.index, kv_head, start, (begin, end)), (begin, end))
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
    packed: &Packed,
    segment: &Segment,
    item: usize,
) {
    let sequence = problem.sequence(segment.sequence);
    let (head_index, index) = (item % segment.heads, item / segment.heads);
    let (kv_head, split) = (segment.kv_head + head_index, segment.first_split + index);
    let positions = (sequence.first_position(), sequence.len - 1);
    let (mut keys, _) = split_keys(problem, &sequence, kv_head, split, positions);
    if K::BETWEEN {
        let piece_bytes = keys.len * problem.pool.dtype().head_bytes(problem.head_dim());
        let most = segment.rows.min(keys.pieces).min(PIECES - keys.ahead);
        keys.between = Ahead::between(keys.reach, piece_bytes).min(most);
    }
    announce(problem, &sequence, segment, (kv_head, split), &mut keys);
    let (stride, dim) = (slot_stride(problem.head_dim()), padded(problem.head_dim()));
    let place = head_index % (problem.span_rows() / segment.rows).min(PLACES);
    let queries = own.queries.wrapping_add(place * segment.rows * dim);
    let wanted = Some((sequence.index, kv_head));
    let fresh = packed[place].replace(wanted) != wanted;
    let mut first = 0;
    while first < segment.rows {
        let rows = tile_rows(K::Level::TILE_ROWS, segment.rows - first);
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
            queries: queries.wrapping_add(first * dim),
            scores: own.scores,
            out: slot.map_or(own.part, |slot| slot.wrapping_add(LANES)),
            out_stride: if slot.is_some() { stride } else { dim },
            sums: [(0.0, 0.0); MAX_TILE_ROWS],
        };
        let located = rows_from(problem, &sequence, kv_head, first);
        for (row, (token, position, head)) in (0..rows).zip(located) {
            tile.ranges[row] = clip(problem, position, keys.start);
            // Where the row's result goes is asked for, a vector more than a head since a slot begins with one: whoever takes
            // the next unit would wait for the stores. 1.01 to 1.02x of a decode step on Zen 5.
            let to = match slot {
                Some(slot) => slot.wrapping_add(row * stride),
                // SAFETY: the unit's results are this worker's alone.
                None => unsafe { problem.result(token, head) }.as_mut_ptr(),
            };
            prefetch_to_write(to, (dim + LANES) * size_of::<f32>());
        }
        // SAFETY: the caller's duties; the scratch holds a tile, and slots up to the last one were checked.
        unsafe {
            if fresh {
                K::pack(problem, &sequence, kv_head, first, rows, queries.wrapping_add(first * dim));
            }
            K::attend(problem, &keys, &mut tile);
            let located = rows_from(problem, &sequence, kv_head, first);
            for (row, (token, _, head)) in (0..rows).zip(located) {
                let (m, l) = tile.sums[row];
                if let Some(slot) = slot {
                    slot.add(row * stride).cast::<[f32; 2]>().write([m, l]);
                } else {
                    K::Level::divide(tile.out.add(row * tile.out_stride), l, problem.result(token, head));
                }
            }
        }
        first += rows;
    }
}

/// Append the pieces that the unit after this one begins with; its own again when it is the last of its segment.
fn announce(
    problem: &Problem<'_>,
    sequence: &Sequence,
    segment: &Segment,
    (kv_head, split): (usize, usize),
    keys: &mut Keys,
) {
    let (kv_head, split) = if kv_head + 1 < segment.kv_head + segment.heads {
        (kv_head + 1, split)
    } else if split + 1 < segment.first_split + segment.per_head {
        (segment.kv_head, split + 1)
    } else {
        (kv_head, split)
    };
    let start = split * problem.split;
    let first = problem.keys_of(sequence.first_position()).0.max(start) / keys.len * keys.len;
    let pieces = (sequence.len.min(start + problem.split) - first).div_ceil(keys.len);
    for (index, at) in keys.at[2 * keys.pieces..][..keys.ahead + keys.between].iter_mut().enumerate() {
        let tile = problem.tile(sequence.index, first + index % pieces * keys.len, kv_head);
        *at = if index < pieces { tile.keys } else { tile.values };
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
            let (keep, add, top) = S::rescale(m, m_split);
            l = l_split.mul_add(add, l * keep);
            m = top;
            S::scale_add(run.add(LANES), keep, part.add(LANES), add, padded(problem.head_dim()) / LANES);
        }
        S::divide(run.add(LANES), l, problem.result(token, head));
    }
}
