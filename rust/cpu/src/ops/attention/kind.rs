//! How the bytes of a cache become results: floats of some type, or integer codes.

use std::marker::PhantomData;

use super::codes::{self, PackedQueries};
use super::integers::{self, Integers};
use super::kernels::SCORE_STRIDE;
use super::prefill::widen;
use super::problem::{Problem, Sequence};
use super::scratch::{Own, padded};
use super::simd::{Element, LANES, MAX_TILE_ROWS, Panel, Simd};
use super::tile::{Keys, Tile, attend, locate, pack_queries, seen, softmax, with_rows};
use super::windows::{Ahead, LINE};

/// What the two forms of a call need to know about the elements of a cache.
///
/// # Safety
/// Every function needs the level, pointers that are good for their shapes, and pieces filled from the first to the
/// last visible key.
pub(super) trait Kind: 'static {
    /// Instructions on floats.
    type Level: Simd;

    /// Copy `rows` queries from `first` on to `to`, at most `rows * padded(head_dim)` elements.
    unsafe fn pack(
        problem: &Problem<'_>,
        sequence: &Sequence,
        kv_head: usize,
        first: usize,
        rows: usize,
        to: *mut f32,
    );

    /// Scores, softmax and values of one tile and one split of the cache, read from memory.
    unsafe fn attend(problem: &Problem<'_>, keys: &Keys, tile: &mut Tile);

    /// What several tiles read instead of keys and values `range` of a split of the cache.
    unsafe fn prepare(problem: &Problem<'_>, own: &Own, cached: Keys, range: (usize, usize)) -> Keys;

    /// As [`attend`](Self::attend), on what [`prepare`](Self::prepare) made.
    unsafe fn attend_prepared(problem: &Problem<'_>, keys: &Keys, tile: &mut Tile);
}

/// Floats of type `E`, multiplied as f32.
pub(super) struct Floats<S, E>(PhantomData<(S, E)>);

impl<S: Simd, E: Element> Kind for Floats<S, E> {
    type Level = S;

    unsafe fn pack(
        problem: &Problem<'_>,
        sequence: &Sequence,
        kv_head: usize,
        first: usize,
        rows: usize,
        to: *mut f32,
    ) {
        // SAFETY: the caller's duty.
        unsafe { pack_queries(problem, sequence, kv_head, first, rows, to) }
    }
    unsafe fn attend(problem: &Problem<'_>, keys: &Keys, tile: &mut Tile) {
        // SAFETY: the caller's duty.
        unsafe { attend::<S, E>(problem.head_dim(), problem.scale, keys, tile) }
    }
    unsafe fn prepare(problem: &Problem<'_>, own: &Own, cached: Keys, range: (usize, usize)) -> Keys {
        // SAFETY: the caller's duty.
        unsafe { widen::<S, E>(problem, own, &cached, range) }
    }
    unsafe fn attend_prepared(problem: &Problem<'_>, keys: &Keys, tile: &mut Tile) {
        // SAFETY: the caller's duty.
        unsafe { attend::<S, Panel>(problem.head_dim(), problem.scale, keys, tile) }
    }
}

/// Integer [`codes`], read from the cache as they are by both forms.
pub(super) struct Codes<I>(PhantomData<I>);

impl<I: Integers> Kind for Codes<I> {
    type Level = I::Float;

    unsafe fn pack(
        problem: &Problem<'_>,
        sequence: &Sequence,
        kv_head: usize,
        first: usize,
        rows: usize,
        to: *mut f32,
    ) {
        let packed = PackedQueries::new(to, problem.head_dim(), rows, I::WORDS);
        for index in 0..rows {
            let (row, _, head) = locate(problem, sequence, kv_head, first + index);
            let query = problem.query(row, head);
            // SAFETY: the caller's duty.
            unsafe { codes::pack_query(problem.isa, query, problem.scale, packed, index, rows, I::WORDS) };
        }
    }
    unsafe fn attend(problem: &Problem<'_>, keys: &Keys, tile: &mut Tile) {
        // SAFETY: the caller's duty.
        unsafe { attend_codes::<I>(problem.head_dim(), true, keys, tile) }
    }
    unsafe fn prepare(_: &Problem<'_>, _: &Own, cached: Keys, _: (usize, usize)) -> Keys {
        cached
    }
    unsafe fn attend_prepared(problem: &Problem<'_>, keys: &Keys, tile: &mut Tile) {
        // SAFETY: the caller's duty.
        unsafe { attend_codes::<I>(problem.head_dim(), false, keys, tile) }
    }
}

/// Bytes before the codes of a piece.
fn head_bytes(keys: &Keys) -> usize {
    size_of::<f32>() * keys.len
}

/// Prefetch the scales of piece `index`.
fn prefetch_scales<S: Simd>(keys: &Keys, index: usize) {
    for line in (0..head_bytes(keys)).step_by(LINE) {
        // SAFETY: a hint, valid for any address.
        unsafe { S::prefetch(keys.at[index].wrapping_add(line)) };
    }
}

/// One tile against one split of codes; `ahead` says whether to prefetch what follows.
unsafe fn attend_codes<I: Integers>(head_dim: usize, ahead: bool, keys: &Keys, tile: &mut Tile) {
    let Some(rows) = seen(tile) else { return };
    let (begin, end) = (tile.ranges[rows.start].0, tile.ranges[rows.end - 1].1);
    let vectors = ((begin - keys.start) / LANES, (end - keys.start).div_ceil(LANES));
    let packed = PackedQueries::new(tile.queries.cast_mut(), head_dim, tile.rows, I::WORDS);
    // SAFETY: the caller's duty.
    unsafe {
        scores::<I>(head_dim, ahead, keys, tile, packed, (begin, end));
        let (mut factors, mut steps) = ([0f32; MAX_TILE_ROWS], [0f32; MAX_TILE_ROWS]);
        packed.factors.copy_to_nonoverlapping(factors.as_mut_ptr(), tile.rows);
        softmax::<I::Float>(keys, tile, rows.clone(), &factors);
        for row in rows.clone() {
            let scores = tile.scores.add(row * SCORE_STRIDE);
            let range = (tile.ranges[row].0 - keys.start, tile.ranges[row].1 - keys.start);
            let most = I::weigh(scores, range, |vector| value_scales(keys, vector));
            let (factor, step) =
                if most > codes::NOTHING { (codes::TOP / most, most / codes::TOP) } else { (0.0, 0.0) };
            steps[row] = step;
            I::round(scores, range, vectors, factor);
        }
        values::<I>(head_dim, ahead, keys, tile, (begin, end));
        for row in rows {
            I::scale(tile.out.add(row * tile.out_stride), padded(head_dim) / LANES, steps[row]);
        }
    }
}

/// Scores of all rows of a tile against keys `begin..end`, in whole groups, of several pieces at once where the
/// accumulators allow.
unsafe fn scores<I: Integers>(
    head_dim: usize,
    ahead: bool,
    keys: &Keys,
    tile: &Tile,
    packed: PackedQueries,
    (begin, end): (usize, usize),
) {
    let (vectors, most) = I::Float::side_by_side(tile.rows, keys.vectors);
    let group = vectors * LANES;
    let mut position = begin - (begin - keys.first) % group;
    while position < end {
        let (piece, width) = keys.window(position, most);
        let first = keys.first + piece * keys.len;
        let (mut offset, after) = match width {
            1 => (keys.piece(position).1, end.min(first + keys.len)),
            _ => (0, first + keys.len),
        };
        if ahead {
            (0..width).for_each(|index| prefetch_scales::<I::Float>(keys, piece + index + keys.ahead));
        }
        while first + offset < after {
            let inside = head_bytes(keys) + 4 * offset;
            let args = integers::QkArgs {
                q: packed.words,
                starts: packed.starts,
                steps: codes::padded(head_dim) / 4,
                keys: keys.side_by_side(piece, inside),
                stride: 4 * keys.len,
                scales: keys.side_by_side(piece, 4 * offset),
                ahead: ahead.then(|| keys.side_by_side(piece + keys.ahead, inside)),
                scores: tile.scores.wrapping_add(first + offset - keys.start),
                block: keys.len,
            };
            // SAFETY: the caller's duty.
            unsafe {
                match (width, vectors) {
                    (1, 1) => with_rows!(tile.rows, R => I::qk::<R, 1, 1>(&args)),
                    (1, _) => with_rows!(tile.rows, R => I::qk::<R, 2, 1>(&args)),
                    (2, 1) => with_rows!(tile.rows, up to 6, R => I::qk::<R, 1, 2>(&args)),
                    (2, _) => with_rows!(tile.rows, up to 6, R => I::qk::<R, 2, 2>(&args)),
                    (_, 1) => with_rows!(tile.rows, up to 3, R => I::qk::<R, 1, 4>(&args)),
                    _ => with_rows!(tile.rows, up to 3, R => I::qk::<R, 2, 4>(&args)),
                }
            }
            offset += group;
        }
        position = first + width * keys.len;
    }
}

/// Scales of the values of vector number `vector` of a split.
#[inline(always)]
fn value_scales(keys: &Keys, vector: usize) -> *const f32 {
    let (piece, offset) = keys.piece(keys.start + vector * LANES);
    keys.at[keys.pieces + piece].cast::<f32>().wrapping_add(offset)
}

/// Sums of all rows of a tile over the values of keys `begin..end`, in whole pairs.
unsafe fn values<I: Integers>(
    head_dim: usize,
    ahead: bool,
    keys: &Keys,
    tile: &Tile,
    (begin, end): (usize, usize),
) {
    let stride = 2 * codes::padded(head_dim);
    let mut position = begin / 2 * 2;
    let mut first = true;
    while position < end {
        let (piece, offset) = keys.piece(position);
        let to = end.next_multiple_of(2).min(position - offset + keys.len);
        let index = keys.pieces + piece;
        if ahead {
            prefetch_scales::<I::Float>(keys, index + keys.ahead);
        }
        let args = integers::PvArgs {
            p: tile.scores.cast::<i32>().wrapping_add((position - keys.start) / 2),
            count: (to - position) / 2,
            values: keys.at[index].wrapping_add(head_bytes(keys) + offset / 2 * stride),
            stride,
            ahead: None,
            out: tile.out.cast(),
            out_stride: tile.out_stride,
            first,
        };
        let shape = (keys.len / 2, stride);
        let lines = ahead.then(|| keys.values_ahead(piece, shape, head_bytes(keys), offset / 2));
        // SAFETY: the caller's duty.
        unsafe { with_rows!(tile.rows, R => pv_rows::<I, R>(args, padded(head_dim) / LANES, lines)) };
        first = false;
        position = to;
    }
}

/// All vectors of a value, as many at once as the accumulators allow.
unsafe fn pv_rows<I: Integers, const R: usize>(args: integers::PvArgs, vectors: usize, ahead: Option<Ahead>) {
    let most = I::Float::ACCUMULATORS / R;
    let mut done = 0;
    while done < vectors {
        let (left, bytes) = (vectors - done, done * 2 * LANES);
        let args = integers::PvArgs {
            values: args.values.wrapping_add(bytes),
            ahead: ahead.and_then(|ahead| ahead.at_byte(bytes)),
            out: args.out.wrapping_add(done * LANES),
            ..args
        };
        // SAFETY: the caller's duty.
        done += unsafe {
            if most >= 8 && left >= 8 {
                I::pv::<R, 8>(&args);
                8
            } else if most >= 4 && left >= 4 {
                I::pv::<R, 4>(&args);
                4
            } else if most >= 2 && left >= 2 {
                I::pv::<R, 2>(&args);
                2
            } else {
                I::pv::<R, 1>(&args);
                1
            }
        };
    }
}
