//! How the bytes of a cache become results: floats of some type, integer codes, or pairs of bf16.

use std::f32::consts::{LN_2, LOG2_E};
use std::marker::PhantomData;

use super::SPLIT;
use super::codes::{self, Code, PackedQueries};
use super::kernels::SCORE_STRIDE;
use super::pairs;
use super::pairs_avx512::{self, Bf16Dots, add_half};
use super::prefill::widen;
use super::problem::{Problem, Sequence};
use super::products::{Codes, IntegerLevel, Products, Weights};
use super::scratch::{Own, padded};
use super::simd::{Element, LANES, MAX_TILE_ROWS, Panel, Simd};
use super::tile::{Keys, Tile, attend, pack_queries, queries, seen};
use super::walk;

/// What the two forms of a call need to know about the elements of a cache.
///
/// # Safety
/// Every function needs the level, pointers that are good for their shapes, and pieces filled from the first to the
/// last visible key.
pub(super) trait Kind: 'static {
    /// Instructions on floats.
    type Level: Simd;

    /// Whether the memory is asked for more between scores and values, where otherwise it would wait.
    const BETWEEN: bool = false;

    /// Rows of a full tile in the prefill form, at most [`MAX_TILE_ROWS`].
    fn prefill_rows() -> usize {
        Self::Level::TILE_ROWS
    }

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

    fn prefill_rows() -> usize {
        S::panel_tile().0
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

// Read from the cache as they are by both forms.
impl<L: IntegerLevel, C: Code> Kind for Codes<L, C> {
    type Level = L::Float;
    const BETWEEN: bool = true;

    unsafe fn pack(
        problem: &Problem<'_>,
        sequence: &Sequence,
        kv_head: usize,
        first: usize,
        rows: usize,
        to: *mut f32,
    ) {
        let queries = queries(problem, sequence, kv_head, first, rows);
        let packed = packed_codes::<L, C>(problem.head_dim(), to, rows);
        let (factor, words) = (problem.scale * LOG2_E, Self::WORDS);
        // SAFETY: the caller's duty.
        unsafe { codes::pack_queries::<C>(problem.isa, &queries[..rows], factor, packed, words) };
    }
    unsafe fn attend(problem: &Problem<'_>, keys: &Keys, tile: &mut Tile) {
        // SAFETY: the caller's duty.
        unsafe { attend_codes::<L, C>(problem.head_dim(), true, keys, tile) }
    }
    unsafe fn prepare(_: &Problem<'_>, _: &Own, cached: Keys, _: (usize, usize)) -> Keys {
        cached
    }
    unsafe fn attend_prepared(problem: &Problem<'_>, keys: &Keys, tile: &mut Tile) {
        // SAFETY: the caller's duty.
        unsafe { attend_codes::<L, C>(problem.head_dim(), false, keys, tile) }
    }
}

/// Where the packed queries of a tile of codes are.
fn packed_codes<L: IntegerLevel, C: Code>(head_dim: usize, at: *mut f32, rows: usize) -> PackedQueries {
    PackedQueries::new(at, walk::dwords::<Codes<L, C>>(head_dim) * Codes::<L, C>::WORDS, rows)
}

/// Pairs of bf16, read from the cache as they are by both forms.
pub(super) struct Pairs;

impl Kind for Pairs {
    type Level = <Bf16Dots as Products>::Float;

    unsafe fn pack(
        problem: &Problem<'_>,
        sequence: &Sequence,
        kv_head: usize,
        first: usize,
        rows: usize,
        to: *mut f32,
    ) {
        let queries = queries(problem, sequence, kv_head, first, rows);
        let packed = PackedQueries::new(to, walk::dwords::<Bf16Dots>(problem.head_dim()), rows);
        // SAFETY: the caller's duty.
        unsafe { pairs::pack_queries(&queries[..rows], problem.scale * LOG2_E, packed) };
    }
    unsafe fn attend(problem: &Problem<'_>, keys: &Keys, tile: &mut Tile) {
        // SAFETY: the caller's duty.
        unsafe { attend_pairs(problem.head_dim(), true, keys, tile) }
    }
    unsafe fn prepare(_: &Problem<'_>, _: &Own, cached: Keys, _: (usize, usize)) -> Keys {
        cached
    }
    unsafe fn attend_prepared(problem: &Problem<'_>, keys: &Keys, tile: &mut Tile) {
        // SAFETY: the caller's duty.
        unsafe { attend_pairs(problem.head_dim(), false, keys, tile) }
    }
}

/// One tile against one split of codes; `ahead` says whether to prefetch what follows.
unsafe fn attend_codes<L: IntegerLevel, C: Code>(head_dim: usize, ahead: bool, keys: &Keys, tile: &mut Tile) {
    let Some(rows) = seen(tile) else { return };
    let (begin, end) = (tile.ranges[rows.start].0, tile.ranges[rows.end - 1].1);
    let vectors = ((begin - keys.start) / LANES, (end - keys.start).div_ceil(LANES));
    let packed = packed_codes::<L, C>(head_dim, tile.queries.cast_mut(), tile.rows);
    // SAFETY: the caller's duty.
    unsafe {
        walk::scores::<Codes<L, C>>(head_dim, ahead, keys, tile, packed, (begin, end));
        let (mut factors, mut steps) = ([0f32; MAX_TILE_ROWS], [0f32; MAX_TILE_ROWS]);
        packed.factors.copy_to_nonoverlapping(factors.as_mut_ptr(), tile.rows);
        let ranges = tile.ranges.map(|(begin, end)| (begin - keys.start, end - keys.start));
        let mut scales = [std::ptr::null(); SPLIT / LANES];
        for (vector, at) in scales.iter_mut().enumerate().take(vectors.1).skip(vectors.0) {
            *at = value_scales(keys, vector);
        }
        let first = keys.pieces + keys.ahead;
        let weights = Weights {
            scores: tile.scores.add(rows.start * SCORE_STRIDE),
            ranges: &ranges[rows.clone()],
            factors: &factors[rows.clone()],
            vectors,
            scales: &scales,
            ahead: &keys.at[first..first + if ahead { keys.between } else { 0 }],
            piece_bytes: keys.len * codes::token_bytes::<C>(head_dim),
        };
        L::weights::<C>(&weights, &mut tile.sums[rows.clone()], &mut steps[rows.clone()]);
        let pairs = (begin / 2 * 2, end.next_multiple_of(2));
        walk::values::<Codes<L, C>>(head_dim, ahead, keys, tile, (0, tile.rows), pairs, true);
        for row in rows {
            tile.sums[row].0 *= LN_2;
            L::scale(tile.out.add(row * tile.out_stride), padded(head_dim) / LANES, steps[row]);
        }
    }
}

/// Scales of the values of vector number `vector` of a split.
#[inline(always)]
fn value_scales(keys: &Keys, vector: usize) -> *const f32 {
    let (piece, offset) = keys.piece(keys.start + vector * LANES);
    keys.at[keys.pieces + piece].cast::<f32>().wrapping_add(offset)
}

/// One tile against one split of pairs; `ahead` says whether to prefetch what follows.
unsafe fn attend_pairs(head_dim: usize, ahead: bool, keys: &Keys, tile: &mut Tile) {
    let Some(rows) = seen(tile) else { return };
    let (begin, end) = (tile.ranges[rows.start].0, tile.ranges[rows.end - 1].1);
    let vectors = ((begin - keys.start) / LANES, (end - keys.start).div_ceil(LANES));
    let packed = PackedQueries::new(tile.queries.cast_mut(), walk::dwords::<Bf16Dots>(head_dim), tile.rows);
    // SAFETY: the caller's duty.
    unsafe {
        walk::scores::<Bf16Dots>(head_dim, ahead, keys, tile, packed, (begin, end));
        for row in rows.clone() {
            let range = (tile.ranges[row].0 - keys.start, tile.ranges[row].1 - keys.start);
            let (max, sum) = pairs_avx512::softmax(tile.scores.add(row * SCORE_STRIDE), range, vectors);
            tile.sums[row] = (max * LN_2, sum);
        }
        add_pairs(head_dim, ahead, keys, tile, rows);
    }
}

/// Pairs of keys that all rows see go through the tile; what only some see, before and after, row by row, and a key
/// without the other of its pair by itself: a probability of zero times a value that a row must not see could still turn
/// its result into NaN.
unsafe fn add_pairs(head_dim: usize, ahead: bool, keys: &Keys, tile: &Tile, rows: std::ops::Range<usize>) {
    let (low, high) = (tile.ranges[rows.end - 1].0.next_multiple_of(2), tile.ranges[rows.start].1 / 2 * 2);
    // Sums start from zero in the tile, or else in memory.
    let together = rows.len() == tile.rows && low < high && tile.ranges[rows.start].0 == low;
    // SAFETY: the caller's duty.
    unsafe {
        for row in rows.clone().filter(|_| !together) {
            let out = tile.out.add(row * tile.out_stride);
            std::slice::from_raw_parts_mut(out, padded(head_dim)).fill(0.0);
        }
        if rows.len() < tile.rows || low >= high {
            for row in rows {
                add_row(head_dim, ahead, keys, tile, row, tile.ranges[row]);
            }
            return;
        }
        for row in rows.clone() {
            add_row(head_dim, ahead, keys, tile, row, (tile.ranges[row].0, low));
        }
        walk::values::<Bf16Dots>(head_dim, ahead, keys, tile, (0, tile.rows), (low, high), together);
        for row in rows {
            add_row(head_dim, ahead, keys, tile, row, (high, tile.ranges[row].1));
        }
    }
}

/// Add the values of keys `begin..end` to one row.
unsafe fn add_row(
    head_dim: usize,
    ahead: bool,
    keys: &Keys,
    tile: &Tile,
    row: usize,
    (begin, end): (usize, usize),
) {
    if begin >= end {
        return;
    }
    let half = |position: usize| {
        let first = position / 2 * 2;
        let values = walk::values_at::<Bf16Dots>(head_dim, keys, first);
        let out = tile.out.wrapping_add(row * tile.out_stride);
        let p = walk::probabilities(keys, tile, row, first);
        // SAFETY: the caller's duty; the softmax left zero where the row sees nothing.
        unsafe { add_half(p, values, position > first, out, padded(head_dim) / LANES) };
    };
    let (low, high) = (begin.next_multiple_of(2), end / 2 * 2);
    if begin < low {
        half(begin);
    }
    // SAFETY: the caller's duty.
    unsafe { walk::values::<Bf16Dots>(head_dim, ahead, keys, tile, (row, 1), (low, high), false) };
    if high < end {
        half(high);
    }
}
