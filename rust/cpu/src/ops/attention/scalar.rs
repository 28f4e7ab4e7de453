//! The definition: one query row and head at a time, in plain loops.
//!
//! 1. Keys are cut at the fixed positions 0, 256, 512, ...
//! 2. Score of a key: one chain of `mul_add` over ascending d from 0, then times the scale.
//! 3. Of the visible keys of a split: m is the largest score, p = exp(score - m); their sum l is taken in sixteen
//!    lanes by position modulo 16, ascending, then lanes i and i + 8, + 4, + 2, + 1; o[d] is one chain of
//!    `mul_add(p, v[d])` over ascending positions from 0.
//! 4. Splits are folded ascending: with m' the larger maximum, a = exp(m - m'), b = exp(m_s - m'),
//!    `l = mul_add(l_s, b, l * a)` and `o = mul_add(o_s, b, o * a)`.
//! 5. The result is o * (1 / l).
//!
//! A cache of integers changes two of them. The query of a head is rounded to codes with a scale of its own.
//! 2. Score: the exact integer sum, as f32, times the key's scale. It is a power of two when multiplied by f = the query's
//!    scale times (the softmax scale times log2 e).
//! 3. m is the largest score times f, p = 2^`mul_add(score, f, -m)`, and the m that splits are folded by is times ln 2.
//!    w = p * the value's scale. With the larger s of the largest w of the split over 32767 and of their sum, taken as l
//!    is, over a limit of the code: n = w * (1 / s) rounded to nearest even, and o[d] is the exact sum of n times the
//!    value's code, as f32, times s. The sum l is of p.
//!
//! A cache of pairs of bf16 changes the same two. Queries times (the scale times log2 e) are rounded to bf16; subnormal
//! numbers count as zero.
//! 2. Score: one chain of VPDPBF16PS, `mul_add` of the second product of a pair and then of the first, over ascending
//!    pairs of d. It is a power of two.
//! 3. p = 2^(score - m), and the m that splits are folded by is times ln 2. o[d] is one chain of the same over ascending
//!    pairs of positions, 0 and 1 first, with p rounded to bf16; a key of a pair that the row does not see counts as
//!    zero. The sum l is of p before that.

use std::f32::consts::{LN_2, LOG2_E};
use std::ops::Range;

use super::SPLIT;
use super::cache::{KvType, TileHead};
use super::codes::{self, Code};
use super::pairs;
use super::problem::Problem;
use super::simd::LANES;
use crate::math::{exp, exp2};
use crate::tensor::DType;

/// Memory of one call of [`attend`]: `head_dim` elements each.
pub(super) struct Space<'a> {
    /// Result of a split.
    pub(super) part: &'a mut [f32],
    /// Result so far.
    pub(super) run: &'a mut [f32],
    /// The query as integers.
    pub(super) query: &'a mut [f32],
}

/// Attend one row of a sequence at `position` with one head.
///
/// # Safety
/// No reference to the row's result may be alive, and nobody may write the sequence's blocks meanwhile.
pub(super) unsafe fn attend(
    problem: &Problem<'_>,
    sequence: usize,
    row: usize,
    position: usize,
    head: usize,
    space: &mut Space<'_>,
) {
    let Space { part, run, query: rounded } = space;
    let (begin, end) = problem.keys_of(position);
    let (mut query, mut scale) = (problem.query(row, head), problem.scale);
    if problem.pool.dtype() == KvType::Bf16Pairs {
        for (rounded, q) in rounded.iter_mut().zip(query) {
            *rounded = pairs::round(*q * (scale * LOG2_E));
        }
        (query, scale) = (rounded, 1.0);
    } else if problem.pool.dtype().is_integer() {
        let step = match problem.pool.dtype() {
            KvType::Int8 => codes::codes_of_query::<i8>(query, rounded),
            _ => codes::codes_of_query::<i16>(query, rounded),
        };
        (query, scale) = (rounded, step * (scale * LOG2_E));
    }
    let reader = Reader { problem, sequence, kv_head: head / problem.group_size };
    let (mut m, mut l) = (f32::NEG_INFINITY, 0.0);
    for split in begin / problem.split..=(end - 1) / problem.split {
        let keys = begin.max(split * problem.split)..end.min((split + 1) * problem.split);
        let first = keys.start == begin;
        let (m_split, l_split) = attend_split(&reader, query, scale, keys, part);
        if first {
            (m, l) = (m_split, l_split);
            run.copy_from_slice(part);
        } else {
            let (keep, add, top) = rescale(m, m_split);
            l = l_split.mul_add(add, l * keep);
            m = top;
            for (run, part) in run.iter_mut().zip(&**part) {
                *run = part.mul_add(add, *run * keep);
            }
        }
    }
    // SAFETY: the caller's duty.
    let out = unsafe { problem.result(row, head) };
    let by = 1.0 / l;
    for (out, run) in out.iter_mut().zip(&**run) {
        *out = run * by;
    }
}

/// Factors of the running and of the added result when maxima `m` and `m_split` meet, and the new maximum.
pub(super) fn rescale(m: f32, m_split: f32) -> (f32, f32, f32) {
    let top = if m_split > m { m_split } else { m };
    (exp(m - top), exp(m_split - top), top)
}

/// Keys and values of one sequence and kv head, read one by one.
struct Reader<'a> {
    problem: &'a Problem<'a>,
    sequence: usize,
    kv_head: usize,
}

impl Reader<'_> {
    /// Tile of a key, and its place there.
    fn at(&self, key: usize) -> (TileHead, usize) {
        (self.problem.tile(self.sequence, key, self.kv_head), key % self.problem.pool.tile())
    }

    /// Element `index` of floats at `at`.
    fn float(&self, dtype: DType, at: *mut u8, index: usize) -> f32 {
        let size = dtype.size();
        // SAFETY: `index` lies in the tile; nobody writes it meanwhile.
        dtype.get(unsafe { std::slice::from_raw_parts(at.wrapping_add(index * size), size) }, 0)
    }

    /// Key times query by the rules of floats, not scaled yet.
    fn float_score(&self, dtype: DType, key: usize, query: &[f32]) -> f32 {
        let (at, offset) = self.at(key);
        let tile = self.problem.pool.tile();
        let mut sum = 0f32;
        for (d, q) in query.iter().enumerate() {
            sum = q.mul_add(self.float(dtype, at.keys, d * tile + offset), sum);
        }
        sum
    }

    /// The same by the rules of pairs; `query` is rounded.
    fn pair_score(&self, key: usize, query: &[f32]) -> f32 {
        let (at, offset) = self.at(key);
        let tile = self.problem.pool.tile();
        let mut sum = 0f32;
        for (pair, q) in query.as_chunks::<2>().0.iter().enumerate() {
            let k = [2 * pair, 2 * pair + 1].map(|d| pairs::key_at(tile, offset, d));
            sum = pairs::dot(sum, k.map(|index| self.float(DType::Bf16, at.keys, index)), *q);
        }
        sum
    }

    /// The same by the rules of integers; `query` holds codes.
    fn code_score<C: Code>(&self, key: usize, query: &[f32]) -> f32 {
        let (at, offset) = self.at(key);
        let tile = self.problem.pool.tile();
        let mut sum = 0;
        for (d, q) in query.iter().enumerate() {
            let index = C::ELEMENTS * (d / C::ELEMENTS * tile + offset) + d % C::ELEMENTS;
            // SAFETY: an element of the tile; nobody writes it meanwhile.
            sum += *q as i32 * unsafe { C::stored(at.key_codes(tile), index) };
        }
        sum as f32 * self.scale(at.keys, offset)
    }

    /// Scale number `offset` of codes at `at`.
    fn scale(&self, at: *mut u8, offset: usize) -> f32 {
        // SAFETY: the scales of a tile come first; nobody writes them meanwhile.
        unsafe { at.cast::<f32>().add(offset).read_unaligned() }
    }

    /// `part = sum_j p[j] * v[j]` over `keys` by the rules of floats.
    fn add_floats(&self, dtype: DType, keys: Range<usize>, p: &[f32], part: &mut [f32]) {
        part.fill(0.0);
        for (key, p) in keys.zip(p) {
            let (at, offset) = self.at(key);
            let first = offset * part.len();
            for (d, part) in part.iter_mut().enumerate() {
                *part = p.mul_add(self.float(dtype, at.values, first + d), *part);
            }
        }
    }

    /// The same by the rules of pairs.
    fn add_pairs(&self, keys: Range<usize>, p: &[f32], part: &mut [f32]) {
        part.fill(0.0);
        let dim = part.len();
        for first in (keys.start / 2 * 2..keys.end).step_by(2) {
            let pair = [first, first + 1];
            let p = pair.map(|key| if keys.contains(&key) { pairs::round(p[key - keys.start]) } else { 0.0 });
            let (at, offset) = self.at(first);
            for (d, part) in part.iter_mut().enumerate() {
                let value = |key: usize| {
                    let index = pairs::value_at(dim, offset + key - first, d);
                    if keys.contains(&key) { self.float(DType::Bf16, at.values, index) } else { 0.0 }
                };
                *part = pairs::dot(*part, pair.map(value), p);
            }
        }
    }

    /// The same by the rules of integers.
    fn add_codes<C: Code>(&self, keys: Range<usize>, p: &mut [f32], part: &mut [f32]) {
        let p = &mut p[..keys.len()];
        let (mut most, mut lanes) = (0f32, [0f32; LANES]);
        for (key, p) in keys.clone().zip(&mut *p) {
            let (at, offset) = self.at(key);
            *p *= self.scale(at.values, offset);
            most = if *p > most { *p } else { most };
            lanes[key % LANES] += *p;
        }
        let step = codes::step_of::<C>(most, sum_of(lanes));
        let factor = if step > 0.0 { 1.0 / step } else { 0.0 };
        let tile = self.problem.pool.tile();
        let width = codes::padded::<C>(part.len());
        let mut values = [std::ptr::null::<C>(); SPLIT];
        for ((key, p), value) in keys.clone().zip(&mut *p).zip(&mut values) {
            *p = (*p * factor).round_ties_even();
            let (at, offset) = self.at(key);
            *value = at.value_codes(tile).cast::<C>().wrapping_add(offset / 2 * 2 * width + offset % 2);
        }
        for (d, part) in part.iter_mut().enumerate() {
            let mut sum = 0i32;
            for (p, value) in p.iter().zip(values) {
                // SAFETY: an element of the tile; nobody writes it meanwhile.
                let code: i32 = unsafe { value.add(2 * d).read_unaligned() }.into();
                // What is not finite may go round; its result is NaN.
                sum = sum.wrapping_add(*p as i32 * code);
            }
            *part = sum as f32 * step;
        }
    }
}

/// Result of the keys of one split: writes o to `part` and returns (m, l).
fn attend_split(
    reader: &Reader<'_>,
    query: &[f32],
    scale: f32,
    keys: Range<usize>,
    part: &mut [f32],
) -> (f32, f32) {
    let dtype = reader.problem.pool.dtype();
    let mut scores = [0f32; SPLIT];
    let mut max = f32::NEG_INFINITY;
    for (key, score) in keys.clone().zip(&mut scores) {
        *score = match dtype {
            KvType::Float(dtype) => reader.float_score(dtype, key, query) * scale,
            KvType::Int8 => reader.code_score::<i8>(key, query),
            KvType::Int16 => reader.code_score::<i16>(key, query),
            KvType::Bf16Pairs => reader.pair_score(key, query),
        };
        max = max.max(*score);
    }
    if dtype.is_integer() {
        max *= scale;
    }
    let mut lanes = [0f32; LANES];
    for (key, score) in keys.clone().zip(&mut scores) {
        *score = match dtype {
            KvType::Float(_) => exp(*score - max),
            KvType::Bf16Pairs => exp2(*score - max),
            KvType::Int8 | KvType::Int16 => exp2(score.mul_add(scale, -max)),
        };
        lanes[key % LANES] += *score;
    }
    match dtype {
        KvType::Float(dtype) => reader.add_floats(dtype, keys, &scores, part),
        KvType::Int8 => reader.add_codes::<i8>(keys, &mut scores, part),
        KvType::Int16 => reader.add_codes::<i16>(keys, &mut scores, part),
        KvType::Bf16Pairs => reader.add_pairs(keys, &scores, part),
    }
    (if matches!(dtype, KvType::Float(_)) { max } else { max * LN_2 }, sum_of(lanes))
}

/// Lanes i and i + 8, then + 4, + 2, + 1.
#[inline(always)]
pub(super) fn sum_of(mut lanes: [f32; LANES]) -> f32 {
    for step in [8, 4, 2, 1] {
        for lane in 0..step {
            lanes[lane] += lanes[lane + step];
        }
    }
    lanes[0]
}
