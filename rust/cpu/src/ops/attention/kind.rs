//! How the bytes of a cache become results: floats of some type, or integer codes.

use std::marker::PhantomData;
use std::ptr::null;

use super::codes::{self, PackedQueries};
use super::integers::{self, Integers};
use super::kernels::SCORE_STRIDE;
use super::prefill::widen;
use super::problem::{Problem, Sequence};
use super::scratch::{Own, padded};
use super::simd::{Element, LANES, Panel, Simd};
use super::tile::{AHEAD_BYTES, Keys, PIECES, Tile, attend, locate, pack_queries, seen, with_rows};

/// What the two forms of a call need to know about the elements of a cache.
///
/// # Safety
/// Every function needs the level, pointers that are good for their shapes, and pieces filled from the first to the
/// last visible key.
pub(super) trait Kind: 'static {
    /// Instructions on floats.
    type Level: Simd;

    /// Groups of keys between a read and its prefetch.
    fn ahead(keys: &Keys, head_dim: usize) -> usize;

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

    fn ahead(keys: &Keys, head_dim: usize) -> usize {
        keys.ahead::<E>(head_dim)
    }
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

    fn ahead(keys: &Keys, head_dim: usize) -> usize {
        (AHEAD_BYTES / (keys.len * codes::token_bytes(head_dim))).clamp(1, PIECES)
    }
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
        unsafe { attend_codes::<I>(problem.head_dim(), Self::ahead(keys, problem.head_dim()), keys, tile) }
    }
    unsafe fn prepare(_: &Problem<'_>, _: &Own, cached: Keys, _: (usize, usize)) -> Keys {
        cached
    }
    unsafe fn attend_prepared(problem: &Problem<'_>, keys: &Keys, tile: &mut Tile) {
        // SAFETY: the caller's duty.
        unsafe { attend_codes::<I>(problem.head_dim(), 0, keys, tile) }
    }
}

/// Bytes before the codes of a piece.
fn head_bytes(keys: &Keys) -> usize {
    size_of::<f32>() * keys.len
}

/// `offset` bytes into piece `index`, or null where there is none.
fn piece_ahead<S: Simd>(keys: &Keys, index: usize, offset: usize) -> *const u8 {
    let at = keys.at[index];
    if at.is_null() {
        return null();
    }
    // The scales of the piece, once.
    if offset == head_bytes(keys) {
        for line in (0..offset).step_by(64) {
            // SAFETY: a hint, valid for any address.
            unsafe { S::prefetch(at.wrapping_add(line)) };
        }
    }
    at.wrapping_add(offset)
}

/// One tile against one split of codes; `ahead` pieces are prefetched, none when 0.
unsafe fn attend_codes<I: Integers>(head_dim: usize, ahead: usize, keys: &Keys, tile: &mut Tile) {
    let Some(rows) = seen(tile) else { return };
    let (begin, end) = (tile.ranges[rows.start].0, tile.ranges[rows.end - 1].1);
    let vectors = ((begin - keys.start) / LANES, (end - keys.start).div_ceil(LANES));
    let packed = PackedQueries::new(tile.queries.cast_mut(), head_dim, tile.rows, I::WORDS);
    // SAFETY: the caller's duty.
    unsafe {
        scores::<I>(head_dim, ahead, keys, tile, packed, (begin, end));
        let mut steps = [0f32; super::simd::MAX_TILE_ROWS];
        for row in rows.clone() {
            let scores = tile.scores.add(row * SCORE_STRIDE);
            let range = (tile.ranges[row].0 - keys.start, tile.ranges[row].1 - keys.start);
            tile.sums[row] = I::Float::softmax(scores, range.0, range.1, *packed.factors.add(row));
            let most = weigh::<I>(keys, scores, tile.ranges[row]);
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

/// Scores of all rows of a tile against keys `begin..end`, in whole groups.
unsafe fn scores<I: Integers>(
    head_dim: usize,
    ahead: usize,
    keys: &Keys,
    tile: &Tile,
    packed: PackedQueries,
    (begin, end): (usize, usize),
) {
    let group = keys.vectors * LANES;
    let mut position = begin - (begin - keys.first) % group;
    while position < end {
        let (piece, offset) = ((position - keys.first) / keys.len, (position - keys.first) % keys.len);
        let inside = head_bytes(keys) + 4 * offset;
        let args = integers::QkArgs {
            q: packed.words,
            starts: packed.starts,
            steps: codes::padded(head_dim) / 4,
            keys: keys.at[piece].wrapping_add(inside),
            stride: 4 * keys.len,
            scales: keys.at[piece].wrapping_add(4 * offset).cast(),
            ahead: if ahead > 0 { piece_ahead::<I::Float>(keys, piece + ahead, inside) } else { null() },
            scores: tile.scores.wrapping_add(position - keys.start),
        };
        // SAFETY: the caller's duty.
        unsafe {
            if keys.vectors == 2 {
                with_rows!(tile.rows, R => I::qk::<R, 2>(&args));
            } else {
                with_rows!(tile.rows, R => I::qk::<R, 1>(&args));
            }
        }
        position += group;
    }
}

/// Multiply a row's probabilities by the scales of the values; returns the largest product.
unsafe fn weigh<I: Integers>(keys: &Keys, row: *mut f32, (begin, end): (usize, usize)) -> f32 {
    let (mut position, mut most) = (begin, 0.0);
    while position < end {
        let piece = (position - keys.first) / keys.len;
        let start = keys.first + piece * keys.len;
        let to = end.min(start + keys.len);
        let scales =
            keys.at[keys.pieces + piece].cast::<f32>().wrapping_add((position - start) / LANES * LANES);
        // SAFETY: the caller's duty.
        most = unsafe { I::weigh(row, position - keys.start, to - keys.start, scales, most) };
        position = to;
    }
    most
}

/// Sums of all rows of a tile over the values of keys `begin..end`, in whole pairs.
unsafe fn values<I: Integers>(
    head_dim: usize,
    ahead: usize,
    keys: &Keys,
    tile: &Tile,
    (begin, end): (usize, usize),
) {
    let stride = 2 * codes::padded(head_dim);
    let mut position = begin / 2 * 2;
    let mut first = true;
    while position < end {
        let (piece, offset) = ((position - keys.first) / keys.len, (position - keys.first) % keys.len);
        let to = end.next_multiple_of(2).min(position - offset + keys.len);
        let (index, inside) = (keys.pieces + piece, head_bytes(keys) + offset / 2 * stride);
        let args = integers::PvArgs {
            p: tile.scores.cast::<i32>().wrapping_add((position - keys.start) / 2),
            count: (to - position) / 2,
            values: keys.at[index].wrapping_add(inside),
            stride,
            ahead: if ahead > 0 { piece_ahead::<I::Float>(keys, index + ahead, inside) } else { null() },
            out: tile.out.cast(),
            out_stride: tile.out_stride,
            first,
        };
        // SAFETY: the caller's duty.
        unsafe { with_rows!(tile.rows, R => pv_rows::<I, R>(args, padded(head_dim) / LANES)) };
        first = false;
        position = to;
    }
}

/// All vectors of a value, as many at once as the accumulators allow.
unsafe fn pv_rows<I: Integers, const R: usize>(args: integers::PvArgs, vectors: usize) {
    let most = I::Float::ACCUMULATORS / R;
    let mut done = 0;
    while done < vectors {
        let (left, bytes) = (vectors - done, done * 2 * LANES);
        let args = integers::PvArgs {
            values: args.values.wrapping_add(bytes),
            ahead: if args.ahead.is_null() { args.ahead } else { args.ahead.wrapping_add(bytes) },
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
