//! The form for many query rows: a span of tokens of one kv head per unit. Keys and values of a split are prepared
//! once (floats are widened to f32 panels) and used by all tiles of the span; running results stay in the worker's scratch.

use std::ptr::null;

use super::decode::{clip, split_keys};
use super::kind::Kind;
use super::plan::Segment;
use super::problem::{Problem, Sequence};
use super::scratch::{Own, padded, value_stride};
use super::simd::{Element, LANES, MAX_TILE_ROWS, Simd, Widen};
use super::tile::{Keys, PIECES, Tile, rows_from, tile_rows};
use super::tuning::Reach;
use crate::ops::prefetch::{prefetch, prefetch_to_write};

/// Rows `first..first + rows` (token times head) of a sequence and kv head.
struct Span<'a> {
    sequence: &'a Sequence,
    kv_head: usize,
    first: usize,
    rows: usize,
}

/// Compute unit `item` of a segment.
///
/// # Safety
/// The processor must have the level; `own` must be this worker's; the unit must be this worker's alone.
pub(super) unsafe fn unit<K: Kind>(problem: &Problem<'_>, own: &Own, segment: &Segment, item: usize) {
    let sequence = problem.sequence(segment.sequence);
    let (kv_head, index) = (item / segment.per_head, item % segment.per_head);
    let tokens = problem.span_tokens();
    let (begin, end) = (index * tokens, sequence.tokens.min((index + 1) * tokens));
    let span = Span {
        sequence: &sequence,
        kv_head,
        first: begin * problem.group_size,
        rows: (end - begin) * problem.group_size,
    };
    let positions = (sequence.first_position() + begin, sequence.first_position() + end - 1);
    let dim = padded(problem.head_dim());
    let (first, last) = (problem.keys_of(positions.0).0 / problem.split, positions.1 / problem.split);
    for split in first..=last {
        let (cached, range) = split_keys(problem, &sequence, kv_head, split, positions);
        // SAFETY: the caller's duties; the scratch holds a span and a split.
        unsafe {
            let keys = K::prepare(problem, own, cached, range);
            each_tile::<K>(span.rows, |row, rows| {
                if split == first {
                    let to = own.queries.add(row * dim);
                    K::pack(problem, &sequence, kv_head, span.first + row, rows, to);
                    ask_for_queries(problem, &span, row + rows, rows);
                }
                if split == last {
                    ask_for_results(problem, &span, row, rows);
                }
                one_tile::<K>(problem, own, &span, &keys, row, rows);
                if split == last {
                    finish::<K>(problem, own, &span, row, rows);
                }
            });
        }
    }
}

/// Write the results of a tile.
///
/// # Safety
/// Those of [`unit`]; all splits of the tile's rows are done.
unsafe fn finish<K: Kind>(problem: &Problem<'_>, own: &Own, span: &Span<'_>, row: usize, rows: usize) {
    let dim = padded(problem.head_dim());
    let located = rows_from(problem, span.sequence, span.kv_head, span.first + row);
    for (row, (token, _, head)) in (row..row + rows).zip(located) {
        // SAFETY: the caller's duty.
        unsafe {
            let [_, l] = own.sums.add(2 * row).cast::<[f32; 2]>().read();
            K::Level::divide(own.run.add(row * dim), l, problem.result(token, head));
        }
    }
}

/// Prefetch the queries of `rows` rows from `row` on, which another worker may have written: the tile before theirs hides
/// how long they take.
fn ask_for_queries(problem: &Problem<'_>, span: &Span<'_>, row: usize, rows: usize) {
    let count = rows.min(span.rows - row);
    let located = rows_from(problem, span.sequence, span.kv_head, span.first + row);
    for (token, _, head) in located.take(count) {
        let query = problem.query(token, head);
        prefetch(query.as_ptr().cast(), size_of_val(query));
    }
}

/// Prefetch where the results of a tile go, to write them: its last split hides how long that takes.
///
/// # Safety
/// Those of [`unit`].
unsafe fn ask_for_results(problem: &Problem<'_>, span: &Span<'_>, row: usize, rows: usize) {
    let located = rows_from(problem, span.sequence, span.kv_head, span.first + row);
    for (token, _, head) in located.take(rows) {
        // SAFETY: the unit's results are this worker's alone.
        let result = unsafe { problem.result(token, head) };
        prefetch_to_write(result.as_mut_ptr().cast(), size_of_val(result));
    }
}

/// Call `work` with the first row and the rows of each tile.
fn each_tile<K: Kind>(rows: usize, mut work: impl FnMut(usize, usize)) {
    let full = K::prefill_rows();
    let mut row = 0;
    while row < rows {
        let count = tile_rows(full, rows - row);
        work(row, count);
        row += count;
    }
}

/// One tile against one prepared split, folded into the running results.
unsafe fn one_tile<K: Kind>(
    problem: &Problem<'_>,
    own: &Own,
    span: &Span<'_>,
    keys: &Keys,
    row: usize,
    rows: usize,
) {
    let dim = padded(problem.head_dim());
    let mut ranges = [(keys.start, keys.start); MAX_TILE_ROWS];
    let mut begins = [false; MAX_TILE_ROWS];
    let located = rows_from(problem, span.sequence, span.kv_head, span.first + row);
    for ((range, begins), (_, position, _)) in ranges[..rows].iter_mut().zip(&mut begins).zip(located) {
        *range = clip(problem, position, keys.start);
        *begins = problem.keys_of(position).0 >= keys.start;
    }
    // The first split of all rows is their running result; no copy needed.
    let direct = begins[..rows].iter().zip(&ranges).all(|(begins, range)| *begins && range.0 < range.1);
    // SAFETY: the caller's duty.
    unsafe {
        let run = own.run.add(row * dim);
        let mut tile = Tile {
            rows,
            ranges,
            queries: own.queries.add(row * dim),
            scores: own.scores,
            out: if direct { run } else { own.part },
            out_stride: dim,
            sums: [(0.0, 0.0); MAX_TILE_ROWS],
        };
        K::attend_prepared(problem, keys, &mut tile);
        let sums = own.sums.add(2 * row).cast::<[f32; 2]>();
        let fresh = |index: usize| direct || begins[index];
        let (mut m, mut m_split) = ([0f32; LANES], [0f32; LANES]);
        for (index, (m_new, _)) in tile.sums[..rows].iter().enumerate() {
            (m[index], m_split[index]) =
                (if fresh(index) { *m_new } else { sums.add(index).read()[0] }, *m_new);
        }
        let [keep, add, top] = K::Level::rescale_all(&m, &m_split);
        for index in (0..rows).filter(|index| ranges[*index].0 < ranges[*index].1) {
            let (m_split, l_split) = tile.sums[index];
            let (run, part) = (run.add(index * dim), own.part.add(index * dim));
            if fresh(index) {
                sums.add(index).write([m_split, l_split]);
                if !direct {
                    run.copy_from_nonoverlapping(part, dim);
                }
            } else {
                let l = sums.add(index).read()[1];
                sums.add(index).write([top[index], l_split.mul_add(add[index], l * keep[index])]);
                K::Level::scale_add(run, keep[index], part, add[index], dim / LANES);
            }
        }
    }
}

/// Widen keys and values `begin..end` of a split to the worker's panels.
///
/// # Safety
/// The processor must have the level; `own` must be this worker's; pieces must be filled.
pub(super) unsafe fn widen<S: Simd, E: Element>(
    problem: &Problem<'_>,
    own: &Own,
    cached: &Keys,
    (begin, end): (usize, usize),
) -> Keys {
    let (head_dim, start) = (problem.head_dim(), cached.start);
    let most = S::panel_tile().1;
    let group = most * LANES;
    let mut at = [null(); 3 * PIECES];
    (at[0], at[1]) = (own.keys.cast_const().cast(), own.values.cast_const().cast());
    let keys = Keys {
        start,
        first: start,
        len: problem.split,
        shift: usize::BITS - 1,
        pieces: 1,
        at,
        reach: Reach::own(),
        ahead: 0,
        between: 0,
        vectors: most,
        k_step: group * head_dim,
        k_stride: group,
        v_stride: value_stride(head_dim),
    };
    let vectors = most.min(cached.vectors);
    let k_shape = Widen { vectors, from_stride: cached.k_stride, to_stride: group };
    let v_shape =
        Widen { vectors: padded(head_dim) / LANES, from_stride: cached.v_stride, to_stride: keys.v_stride };
    let step = vectors * LANES;
    let mut position = begin - (begin - start) % step;
    while position < end {
        let (piece, offset) =
            ((position - cached.first) / cached.len, (position - cached.first) % cached.len);
        let place = position - start;
        let (low, high) = (position.max(begin), (position + step).min(end));
        // SAFETY: the caller's duty: the pieces hold the visible keys, the panels a split.
        unsafe {
            let from = cached.at[piece].add(offset * E::BYTES);
            let to = own.keys.add(place / group * keys.k_step + place % group);
            S::widen::<E>(from, to, head_dim, k_shape);
            let skipped = low - position;
            let from = cached.at[cached.pieces + piece].add((offset + skipped) * cached.v_stride * E::BYTES);
            S::widen::<E>(from, own.values.add((place + skipped) * keys.v_stride), high - low, v_shape);
        }
        position += step;
    }
    keys
}
