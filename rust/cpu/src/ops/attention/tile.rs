//! A few query rows against one split of keys and values, wherever these lie.

use std::arch::x86_64::*;

use super::SPLIT;
use super::ahead::{Ahead, LINE};
use super::kernels::{SCORE_STRIDE, Scores};
use super::problem::{Problem, Sequence};
use super::scratch::padded;
use super::simd::{Element, LANES, MAX_TILE_ROWS, Panel, PvArgs, QkArgs, Simd, WIDE_TILE_ROWS};
use super::tuning::Reach;

/// Pieces of a split, at most.
pub(super) const PIECES: usize = SPLIT / LANES;

/// The keys and values of one split, in pieces: tiles of the cache, or one widened panel.
pub(super) struct Keys {
    /// First position of the split.
    pub(super) start: usize,
    /// Position of the first key of piece 0.
    pub(super) first: usize,
    /// Keys of a piece.
    pub(super) len: usize,
    /// How far to shift a place to get its piece.
    pub(super) shift: u32,
    /// Pieces filled.
    pub(super) pieces: usize,
    /// In the order they are read: the keys of each piece, the values of each, and what the next unit begins with.
    pub(super) at: [*const u8; 3 * PIECES],
    /// How far ahead of the reads to prefetch.
    pub(super) reach: Reach,
    /// Pieces from one that is read to the later one that is prefetched, at most [`PIECES`].
    pub(super) ahead: usize,
    /// Pieces that are prefetched between scores and values, by which values are further ahead; as many as there are at
    /// most.
    pub(super) between: usize,
    /// Keys that are scored together, in vectors, at most.
    pub(super) vectors: usize,
    /// Elements from one group of keys to the next.
    pub(super) k_step: usize,
    /// Elements from one d to the next.
    pub(super) k_stride: usize,
    /// Elements from one value to the next.
    pub(super) v_stride: usize,
}

impl Keys {
    /// Piece that holds `position`, and its place there.
    #[inline]
    pub(super) fn piece(&self, position: usize) -> (usize, usize) {
        let place = position - self.first;
        let piece = place >> self.shift;
        (piece, place - piece * self.len)
    }
}

/// Query rows (a token and a head each) that go together; rows ascend in position.
pub(super) struct Tile {
    pub(super) rows: usize,
    /// Keys of each row in the split, `begin..end`; equal where it sees none.
    pub(super) ranges: [(usize, usize); MAX_TILE_ROWS],
    /// `[head_dim, rows]` packed queries.
    pub(super) queries: *const f32,
    /// `[rows, SCORE_STRIDE]` scratch.
    pub(super) scores: *mut f32,
    /// `[rows, out_stride]` unscaled results o.
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
    /// (m, l) of each row that sees a key.
    pub(super) sums: [(f32, f32); MAX_TILE_ROWS],
}

/// Call `$call` with the constant `$rows` equal to `$value`: up to 8, or a whole tile; or else one of those given.
macro_rules! with_rows {
    ($value:expr, $rows:ident => $call:expr) => {
        with_rows!($value, $rows => $call, 1 2 3 4 5 6 7 8, $crate::ops::attention::simd::MAX_TILE_ROWS)
    };
    ($value:expr, $rows:ident => $call:expr, $($count:literal)*, $most:expr) => {
        match $value {
            $($count => { const $rows: usize = $count; $call })*
            _ => { const $rows: usize = $most; $call }
        }
    };
}
pub(super) use with_rows;

/// Rows of a tile from the first to the last that sees a key, if one does.
pub(super) fn seen(tile: &Tile) -> Option<std::ops::Range<usize>> {
    let ranges = &tile.ranges[..tile.rows];
    let from = ranges.iter().position(|range| range.0 < range.1)?;
    let hidden = ranges.iter().rev().take_while(|range| range.0 >= range.1).count();
    Some(from..tile.rows - hidden)
}

/// How many of `left` rows the next tile takes, of `full` at most: a number that `with_rows` knows.
pub(super) fn tile_rows(full: usize, left: usize) -> usize {
    if left >= full { full } else { left.min(8) }
}

/// Scores, softmax and values of one tile and one split.
///
/// # Safety
/// The processor must have the level; pointers must be good for the shapes; the pieces from the first to the last
/// visible key must be filled.
pub(super) unsafe fn attend<S: Simd, E: Element>(head_dim: usize, scale: f32, keys: &Keys, tile: &mut Tile) {
    let Some(rows) = seen(tile) else { return };
    let (begin, end) = (tile.ranges[rows.start].0, tile.ranges[rows.end - 1].1);
    // SAFETY: the caller's duty.
    unsafe {
        if E::PREFETCH {
            score::<S, E>(head_dim, keys, tile, (begin, end));
        } else {
            score_panel::<S>(head_dim, keys, tile, (begin, end));
        }
    }
    // SAFETY: the caller's duty.
    unsafe {
        softmax::<S>(keys, tile, rows.clone(), &[scale; MAX_TILE_ROWS]);
        let dim = padded(head_dim);
        add_values::<S, E>(dim, keys, tile, rows.clone());
        if E::PREFETCH {
            rows.for_each(|row| S::order::<E>(tile.out.add(row * tile.out_stride), dim / LANES));
        }
    }
}

/// Softmax of a tile's rows; the scores of row r are multiplied by `factors[r]` first.
///
/// # Safety
/// The processor must have the level; the rows of scores must hold a split.
unsafe fn softmax<S: Simd>(
    keys: &Keys,
    tile: &mut Tile,
    rows: std::ops::Range<usize>,
    factors: &[f32; MAX_TILE_ROWS],
) {
    let ranges = tile.ranges.map(|(begin, end)| (begin - keys.start, end - keys.start));
    let at = tile.scores.wrapping_add(rows.start * SCORE_STRIDE);
    let scores = Scores { at, ranges: &ranges[rows.clone()], factors: &factors[rows.clone()] };
    // SAFETY: the caller's duty.
    unsafe { S::softmax(&scores, &mut tile.sums[rows]) };
}

/// Of vectors of keys, a power of two up to `most`, as few as hold `left` keys: none is read for nothing.
pub(super) fn fewest(most: usize, left: usize) -> usize {
    left.div_ceil(LANES).next_power_of_two().min(most)
}

/// Scores of all rows against keys `begin..end` in memory, in whole groups of keys.
unsafe fn score<S: Simd, E: Element>(
    head_dim: usize,
    keys: &Keys,
    tile: &Tile,
    (begin, end): (usize, usize),
) {
    let most = S::key_vectors(tile.rows, keys.vectors);
    let mut position = begin - (begin - keys.start) % (most * LANES);
    while position < end {
        let vectors = fewest(most, end - position);
        let (piece, offset) = keys.piece(position);
        let inside = offset * E::BYTES;
        let from = keys.at[piece];
        let args = QkArgs {
            q: tile.queries,
            dim: head_dim,
            keys: from.wrapping_add(inside),
            k_stride: keys.k_stride,
            ahead: Some({
                let shape = (head_dim, keys.k_stride * E::BYTES);
                Ahead::new(keys.reach, from, keys.at[piece + keys.ahead], shape).at_byte(inside)
            }),
            scores: tile.scores.wrapping_add(position - keys.start),
        };
        // SAFETY: the caller's duty.
        unsafe {
            match vectors {
                1 => with_rows!(tile.rows, R => S::qk::<E, R, 1>(&args)),
                _ => with_rows!(tile.rows, R => S::qk::<E, R, 2>(&args)),
            }
        }
        position += vectors * LANES;
    }
}

/// As [`score`] against a panel, where keys lie in whole groups.
unsafe fn score_panel<S: Simd>(head_dim: usize, keys: &Keys, tile: &Tile, (begin, end): (usize, usize)) {
    let group = keys.vectors * LANES;
    let mut position = begin - (begin - keys.start) % group;
    while position < end {
        let vectors = (end - position).div_ceil(LANES).min(keys.vectors);
        let place = position - keys.start;
        let args = QkArgs {
            q: tile.queries,
            dim: head_dim,
            keys: keys.at[0].wrapping_add(place / group * keys.k_step * Panel::BYTES),
            k_stride: keys.k_stride,
            ahead: None,
            scores: tile.scores.wrapping_add(place),
        };
        // SAFETY: the caller's duty.
        unsafe {
            match vectors {
                1 => with_rows!(tile.rows, R => S::qk::<Panel, R, 1>(&args)),
                2 => with_rows!(tile.rows, R => S::qk::<Panel, R, 2>(&args)),
                3 => with_rows!(tile.rows, R => S::qk::<Panel, R, 3>(&args), 1 2 3 4 5, WIDE_TILE_ROWS),
                _ => with_rows!(tile.rows, R => S::qk::<Panel, R, 4>(&args), 1 2 3 4 5, WIDE_TILE_ROWS),
            }
        }
        position += group;
    }
}

/// Keys that all rows see go through the tile; what only some see, before and after, row by row: a probability of
/// zero times a value that a row must not see could still turn its result into NaN.
unsafe fn add_values<S: Simd, E: Element>(
    dim: usize,
    keys: &Keys,
    tile: &Tile,
    rows: std::ops::Range<usize>,
) {
    let (low, high) = (tile.ranges[rows.end - 1].0, tile.ranges[rows.start].1);
    // SAFETY: the caller's duty.
    unsafe {
        if rows.len() < tile.rows || low >= high {
            for row in rows {
                add_run::<S, E>(dim, keys, tile, (row, 1), tile.ranges[row], true);
            }
            return;
        }
        let first = tile.ranges[rows.start].0;
        for row in rows.clone().filter(|_| first < low) {
            std::slice::from_raw_parts_mut(tile.out.add(row * tile.out_stride), dim).fill(0.0);
            add_run::<S, E>(dim, keys, tile, (row, 1), (tile.ranges[row].0, low), false);
        }
        add_run::<S, E>(dim, keys, tile, (0, tile.rows), (low, high), first == low);
        for row in rows {
            add_run::<S, E>(dim, keys, tile, (row, 1), (high, tile.ranges[row].1), false);
        }
    }
}

/// Add the values of keys `begin..end` to `count` rows from `row` on, or to zero where they are the `first` of these.
unsafe fn add_run<S: Simd, E: Element>(
    dim: usize,
    keys: &Keys,
    tile: &Tile,
    (row, count): (usize, usize),
    (begin, end): (usize, usize),
    first: bool,
) {
    let mut position = begin;
    while position < end {
        let (piece, offset) = keys.piece(position);
        let here = (keys.len - offset).min(end - position);
        let (index, row_bytes) = (keys.pieces + piece, keys.v_stride * E::BYTES);
        let values = keys.at[index];
        let args = PvArgs {
            p: tile.scores.wrapping_add(row * SCORE_STRIDE + position - keys.start),
            keys: (offset, offset + here),
            values,
            v_stride: keys.v_stride,
            ahead: E::PREFETCH.then(|| {
                Ahead::new(keys.reach, values, keys.at[index + keys.ahead], (offset + here, row_bytes))
            }),
            out: tile.out.wrapping_add(row * tile.out_stride),
            out_stride: tile.out_stride,
            first: first && position == begin,
        };
        // SAFETY: the caller's duty.
        unsafe { with_rows!(count, R => pv_rows::<S, E, R>(args, dim / LANES)) };
        position += here;
    }
}

/// All vectors of a value, as many at once as the accumulators allow: an even number, but for a last one, as
/// [`Element::load_pair`] wants it.
unsafe fn pv_rows<S: Simd, E: Element, const R: usize>(args: PvArgs, vectors: usize) {
    let most = S::ACCUMULATORS / R;
    let mut done = 0;
    while done < vectors {
        let (left, byte) = (vectors - done, done * LANES * E::BYTES);
        let args = PvArgs {
            values: args.values.wrapping_add(byte),
            // Half a line came with its first half.
            ahead: args.ahead.filter(|_| byte.is_multiple_of(LINE)).map(|ahead| ahead.at_byte(byte)),
            out: args.out.wrapping_add(done * LANES),
            ..args
        };
        // SAFETY: the caller's duty.
        done += unsafe {
            if most >= 8 && left >= 8 {
                S::pv::<E, R, 8>(&args);
                8
            } else if most >= 4 && left >= 4 {
                S::pv::<E, R, 4>(&args);
                4
            } else if most >= 2 && left >= 2 {
                S::pv::<E, R, 2>(&args);
                2
            } else {
                S::pv::<E, R, 1>(&args);
                1
            }
        };
    }
}

/// Row `row` of a sequence's rows for one kv head: its index in the step, its position, its query head.
pub(super) fn locate(
    problem: &Problem<'_>,
    sequence: &Sequence,
    kv_head: usize,
    row: usize,
) -> (usize, usize, usize) {
    let (token, member) = (row / problem.group_size, row % problem.group_size);
    (sequence.first_row + token, sequence.first_position() + token, kv_head * problem.group_size + member)
}

/// The rows from `first` on, without an end and without a division for each.
#[inline]
pub(super) fn rows_from(
    problem: &Problem<'_>,
    sequence: &Sequence,
    kv_head: usize,
    first: usize,
) -> impl Iterator<Item = (usize, usize, usize)> {
    let heads = kv_head * problem.group_size..(kv_head + 1) * problem.group_size;
    let (mut row, mut position, mut head) = locate(problem, sequence, kv_head, first);
    std::iter::repeat_with(move || {
        let at = (row, position, head);
        head += 1;
        if head == heads.end {
            (row, position, head) = (row + 1, position + 1, heads.start);
        }
        at
    })
}

/// The queries of `rows` rows from `first` on.
pub(super) fn queries<'a>(
    problem: &'a Problem<'_>,
    sequence: &Sequence,
    kv_head: usize,
    first: usize,
    rows: usize,
) -> [&'a [f32]; MAX_TILE_ROWS] {
    let mut queries = [&[][..]; MAX_TILE_ROWS];
    for (query, (row, _, head)) in
        queries[..rows].iter_mut().zip(rows_from(problem, sequence, kv_head, first))
    {
        *query = problem.query(row, head);
    }
    queries
}

/// Copy `rows` queries from `first` on to `to` as `[head_dim, rows]`.
///
/// # Safety
/// `to` must hold `rows * head_dim` elements.
pub(super) unsafe fn pack_queries(
    problem: &Problem<'_>,
    sequence: &Sequence,
    kv_head: usize,
    first: usize,
    rows: usize,
    to: *mut f32,
) {
    let dim = problem.head_dim();
    let queries = queries(problem, sequence, kv_head, first, rows);
    let query = |row: usize| queries[row].as_ptr();
    let mut row = 0;
    while row < rows {
        let left = rows - row;
        // SAFETY: queries hold a head; the room is the caller's duty.
        unsafe {
            let to = to.add(row);
            if left >= 4 {
                interleave_four([0, 1, 2, 3].map(|index| query(row + index)), dim, to, rows);
                row += 4;
            } else if left >= 2 {
                interleave_two([query(row), query(row + 1)], dim, to, rows);
                row += 2;
            } else {
                interleave([query(row)], 0, dim, to, rows);
                row += 1;
            }
        }
    }
}

/// Element d of row r goes to `to[d * stride + r]`, from d = `first` on.
unsafe fn interleave<const R: usize>(
    rows: [*const f32; R],
    first: usize,
    dim: usize,
    to: *mut f32,
    stride: usize,
) {
    for d in first..dim {
        for (index, row) in rows.iter().enumerate() {
            // SAFETY: `dim` elements in each row and that room are the caller's duty.
            unsafe { *to.add(d * stride + index) = *row.add(d) };
        }
    }
}

/// As [`interleave`] from 0 on, four elements at a time.
unsafe fn interleave_four(rows: [*const f32; 4], dim: usize, to: *mut f32, stride: usize) {
    let whole = dim / 4 * 4;
    // SAFETY: the caller's duty; SSE is part of the architecture.
    unsafe {
        for d in (0..whole).step_by(4) {
            let [mut a, mut b, mut c, mut e] = rows.map(|row| _mm_loadu_ps(row.add(d)));
            _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut e);
            for (step, x) in [a, b, c, e].into_iter().enumerate() {
                _mm_storeu_ps(to.add((d + step) * stride), x);
            }
        }
        interleave(rows, whole, dim, to, stride);
    }
}

/// As [`interleave_four`].
unsafe fn interleave_two(rows: [*const f32; 2], dim: usize, to: *mut f32, stride: usize) {
    let whole = dim / 4 * 4;
    // SAFETY: the caller's duty; SSE is part of the architecture.
    unsafe {
        for d in (0..whole).step_by(4) {
            let [a, b] = rows.map(|row| _mm_loadu_ps(row.add(d)));
            for (step, x) in [_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b)].into_iter().enumerate() {
                let to = to.add((d + 2 * step) * stride);
                _mm_storel_pd(to.cast(), _mm_castps_pd(x));
                _mm_storeh_pd(to.add(stride).cast(), _mm_castps_pd(x));
            }
        }
        interleave(rows, whole, dim, to, stride);
    }
}
