//! The definition: one query row and head at a time, in plain loops.
//!
//! 1. Keys are cut at the fixed positions 0, 256, 512, ...
//! 2. Score of a key: one chain of `mul_add` over ascending d from 0, then times the scale.
//! 3. Of the visible keys of a split: m is the largest score, p = exp(score - m); their sum l is taken in sixteen
//!    lanes by position modulo 16, ascending, then lanes i and i + 8, + 4, + 2, + 1; o[d] is one chain of
//!    `mul_add(p, v[d])` over ascending positions from 0.
//! 4. Splits are folded ascending: with m' the larger maximum, a = exp(m - m'), b = exp(m_s - m'),
//!    `l = mul_add(l_s, b, l * a)` and `o = mul_add(o_s, b, o * a)`.
//! 5. The result is o / l.

use super::SPLIT;
use super::cache::BlockHead;
use super::problem::Problem;
use super::simd::LANES;
use crate::math::exp;

/// Attend one row of a sequence at `position` with one head. `part` and `run` hold `head_dim` elements.
///
/// # Safety
/// No reference to the row's result may be alive, and nobody may write the sequence's blocks meanwhile.
pub(super) unsafe fn attend(
    problem: &Problem<'_>,
    sequence: usize,
    row: usize,
    position: usize,
    head: usize,
    part: &mut [f32],
    run: &mut [f32],
) {
    let (begin, end) = problem.keys_of(position);
    let query = problem.query(row, head);
    let kv_head = head / problem.group_size;
    let (mut m, mut l) = (f32::NEG_INFINITY, 0.0);
    for split in begin / problem.split..=(end - 1) / problem.split {
        let keys = begin.max(split * problem.split)..end.min((split + 1) * problem.split);
        let first = keys.start == begin;
        // SAFETY: the caller's duty.
        let (m_split, l_split) = unsafe { attend_split(problem, sequence, kv_head, query, keys, part) };
        if first {
            (m, l) = (m_split, l_split);
            run.copy_from_slice(part);
        } else {
            let (keep, add, top) = rescale(m, m_split);
            l = l_split.mul_add(add, l * keep);
            m = top;
            for (run, part) in run.iter_mut().zip(&*part) {
                *run = part.mul_add(add, *run * keep);
            }
        }
    }
    // SAFETY: the caller's duty.
    let out = unsafe { problem.result(row, head) };
    for (out, run) in out.iter_mut().zip(&*run) {
        *out = run / l;
    }
}

/// Factors of the running and of the added result when maxima `m` and `m_split` meet, and the new maximum.
pub(super) fn rescale(m: f32, m_split: f32) -> (f32, f32, f32) {
    let top = if m_split > m { m_split } else { m };
    (exp(m - top), exp(m_split - top), top)
}

/// Result of the keys of one split: writes o to `part` and returns (m, l).
unsafe fn attend_split(
    problem: &Problem<'_>,
    sequence: usize,
    kv_head: usize,
    query: &[f32],
    keys: std::ops::Range<usize>,
    part: &mut [f32],
) -> (f32, f32) {
    let block_size = problem.pool.block_size();
    let element = |at: *mut u8, index: usize| {
        let (dtype, size) = (problem.pool.dtype(), problem.pool.dtype().size());
        // SAFETY: `index` lies in the block; nobody writes it meanwhile.
        dtype.get(unsafe { std::slice::from_raw_parts(at.add(index * size), size) }, 0)
    };
    let block_of = |key: usize| -> BlockHead { problem.block(sequence, key, kv_head) };
    let mut scores = [0f32; SPLIT];
    let mut max = f32::NEG_INFINITY;
    for key in keys.clone() {
        let (block, offset) = (block_of(key), key % block_size);
        let mut sum = 0f32;
        for (d, q) in query.iter().enumerate() {
            sum = q.mul_add(element(block.keys, d * block_size + offset), sum);
        }
        let score = sum * problem.scale;
        scores[key - keys.start] = score;
        max = max.max(score);
    }
    let mut lanes = [0f32; LANES];
    part.fill(0.0);
    for key in keys.clone() {
        let p = exp(scores[key - keys.start] - max);
        lanes[key % LANES] += p;
        let (block, offset) = (block_of(key), key % block_size);
        for (d, part) in part.iter_mut().enumerate() {
            *part = p.mul_add(element(block.values, offset * query.len() + d), *part);
        }
    }
    for step in [8, 4, 2, 1] {
        for lane in 0..step {
            lanes[lane] += lanes[lane + step];
        }
    }
    (max, lanes[0])
}
