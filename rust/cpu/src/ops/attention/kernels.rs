//! The inner loops, written once over [`Simd`]; each level compiles them with its own instructions.
//!
//! The order of every sum is fixed here: scores by ascending d, the sum of a split by position modulo 16 and then
//! a tree, values by ascending position.

use super::ahead::{LINE, parts};
use super::simd::{Element, LANES, PvArgs, QkArgs, Simd, Widen};

/// Elements from one row of scores to the next: a split and a line, so that rows fall on different cache sets.
pub(super) const SCORE_STRIDE: usize = super::SPLIT + LANES;

/// Steps of a loop over a panel that are written out, since what counts the loop takes its turn beside the multiply-adds:
/// on an Emerald Rapids whose other threads are busy a tile alone is 4 to 8 % faster with 2 than with 1, and no faster
/// with 4.
const UNROLLED: usize = 2;

/// How many of `steps` steps are written out: none where memory is what they wait for.
#[inline(always)]
fn unrolled<E: Element>(steps: usize) -> usize {
    if E::PREFETCH { 0 } else { steps / UNROLLED * UNROLLED }
}

/// Scores of R rows against N vectors of keys: `sum_d q[d] * k[d]`, one chain of multiply-adds each.
#[inline(always)]
pub(super) unsafe fn qk<S: Simd, E: Element, const R: usize, const N: usize>(args: &QkArgs) {
    let args = *args;
    // SAFETY: the shapes are the caller's duty.
    unsafe {
        let mut sums = [[S::splat(0.0); N]; R];
        for (dims, to_come) in parts(args.ahead, 0, args.dim) {
            let whole = dims.start + unrolled::<E>(dims.len());
            for d in (dims.start..whole).step_by(UNROLLED) {
                for step in 0..UNROLLED {
                    qk_step::<S, E, R, N>(&args, d + step, to_come, &mut sums);
                }
            }
            for d in whole..dims.end {
                qk_step::<S, E, R, N>(&args, d, to_come, &mut sums);
            }
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            for pair in sums.as_chunks_mut::<2>().0 {
                *pair = E::pair_in_order::<S>(*pair);
            }
            for (n, sum) in sums.iter().enumerate() {
                S::store(args.scores.add(r * SCORE_STRIDE + n * LANES), *sum);
            }
        }
    }
}

/// Dimension `d` of [`qk`].
#[inline(always)]
unsafe fn qk_step<S: Simd, E: Element, const R: usize, const N: usize>(
    args: &QkArgs,
    d: usize,
    to_come: *const u8,
    sums: &mut [[S::V; N]; R],
) {
    let QkArgs { q, keys, k_stride, ahead, .. } = *args;
    // SAFETY: the shapes are the caller's duty; prefetching has no requirements.
    unsafe {
        let offset = d * k_stride * E::BYTES;
        let k = E::load_all::<S, N>(keys.add(offset));
        if let Some(ahead) = ahead.filter(|_| E::PREFETCH) {
            for at in (0..N * LANES * E::BYTES).step_by(LINE).map(|at| offset + at) {
                ahead.ask(keys.wrapping_add(at), to_come.wrapping_add(at));
            }
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            let q = S::splat(*q.add(d * R + r));
            for (sum, k) in sums.iter_mut().zip(k) {
                *sum = S::fma(q, k, *sum);
            }
        }
    }
}

/// `out[r] += sum_j p[r][j] * v[j]` over N vectors of a value, keys ascending. `out` is in the order in which
/// [`Element::load_all`] gives a value; [`order`] ends that.
#[inline(always)]
pub(super) unsafe fn pv<S: Simd, E: Element, const R: usize, const N: usize>(args: &PvArgs) {
    let (begin, end) = args.keys;
    let args = PvArgs { p: args.p.wrapping_sub(begin), ..*args };
    // SAFETY: the shapes are the caller's duty.
    unsafe {
        let mut sums = [[S::splat(0.0); N]; R];
        if !args.first {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = S::load(args.out.add(r * args.out_stride + n * LANES));
                }
            }
        }
        for (keys, to_come) in parts(args.ahead, begin, end) {
            let whole = keys.start + unrolled::<E>(keys.len());
            for key in (keys.start..whole).step_by(UNROLLED) {
                for step in 0..UNROLLED {
                    pv_step::<S, E, R, N>(&args, key + step, to_come, &mut sums);
                }
            }
            for key in whole..keys.end {
                pv_step::<S, E, R, N>(&args, key, to_come, &mut sums);
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                S::store(args.out.add(r * args.out_stride + n * LANES), *sum);
            }
        }
    }
}

/// Key `key` of [`pv`]; `args.p` is where key 0 would be.
#[inline(always)]
unsafe fn pv_step<S: Simd, E: Element, const R: usize, const N: usize>(
    args: &PvArgs,
    key: usize,
    to_come: *const u8,
    sums: &mut [[S::V; N]; R],
) {
    let PvArgs { p, values, v_stride, ahead, .. } = *args;
    // SAFETY: the shapes are the caller's duty; prefetching has no requirements.
    unsafe {
        let offset = key * v_stride * E::BYTES;
        let v = E::load_all::<S, N>(values.add(offset));
        if let Some(ahead) = ahead.filter(|_| E::PREFETCH) {
            for at in (0..N * LANES * E::BYTES).step_by(LINE).map(|at| offset + at) {
                ahead.ask(values.wrapping_add(at), to_come.wrapping_add(at));
            }
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            let p = S::splat(*p.wrapping_add(r * SCORE_STRIDE + key));
            for (sum, v) in sums.iter_mut().zip(v) {
                *sum = S::fma(p, v, *sum);
            }
        }
    }
}

/// Bring `vectors` vectors of a result in order, in place.
#[inline(always)]
pub(super) unsafe fn order<S: Simd, E: Element>(x: *mut f32, vectors: usize) {
    // SAFETY: the vectors are the caller's duty.
    unsafe {
        for at in (0..vectors / 2).map(|pair| x.add(2 * pair * LANES)) {
            let [low, high] = E::pair_in_order::<S>([S::load(at), S::load(at.add(LANES))]);
            S::store(at, low);
            S::store(at.add(LANES), high);
        }
    }
}

/// Bits of the lanes of vector `index` that lie in `begin..end`.
#[inline(always)]
pub(super) fn lanes(index: usize, begin: usize, end: usize) -> u16 {
    let first = index * LANES;
    let (low, high) = (begin.saturating_sub(first), (end - first).min(LANES));
    (((1u32 << high) - 1) & !((1u32 << low) - 1)) as u16
}

/// Rows of scores, `SCORE_STRIDE` apart, for [`softmax`].
pub(super) struct Scores<'a> {
    /// The first row.
    pub(super) at: *mut f32,
    /// Scores of each row, `begin..end` within the split.
    pub(super) ranges: &'a [(usize, usize)],
    /// What the scores of each row are multiplied by.
    pub(super) factors: &'a [f32],
}

/// Turn scores into exp(factor * score - max), row by row; `sums` become (max, sum). Rows take turns in both passes, so
/// that one row's chains hide another's.
#[inline(always)]
pub(super) unsafe fn softmax<S: Simd>(scores: &Scores<'_>, sums: &mut [(f32, f32)]) {
    let rows = || scores.ranges.iter().enumerate().map(|(row, range)| (row * SCORE_STRIDE, *range));
    // SAFETY: a row of scores holds a whole split.
    unsafe {
        for (((at, range), factor), (max, _)) in rows().zip(scores.factors).zip(&mut *sums) {
            let (factor, lowest) = (S::splat(*factor), S::splat(f32::NEG_INFINITY));
            let mut most = lowest;
            each_vector(range, |place, mask| {
                let mut score = S::mul(S::load(scores.at.add(at + place)), factor);
                if let Some(mask) = mask {
                    score = S::select(mask, score, lowest);
                }
                most = S::max(most, score);
            });
            *max = S::maximum(most);
        }
        for (((at, range), factor), (max, sum)) in rows().zip(scores.factors).zip(sums) {
            let (factor, shift, mut total) = (S::splat(*factor), S::splat(*max), S::splat(0.0));
            each_vector(range, |place, mask| {
                let at = scores.at.add(at + place);
                let mut p = S::exp(S::sub(S::mul(S::load(at), factor), shift));
                if let Some(mask) = mask {
                    p = S::select(mask, p, S::splat(0.0));
                }
                S::store(at, p);
                total = S::add(total, p);
            });
            *sum = S::sum(total);
        }
    }
}

/// Call `work` with the place of every vector that holds some of `begin..end`, ascending, and the bits of its lanes in
/// there unless all are.
#[inline(always)]
fn each_vector((begin, end): (usize, usize), mut work: impl FnMut(usize, Option<u16>)) {
    let (mut first, last) = (begin / LANES, end / LANES);
    if !begin.is_multiple_of(LANES) && first < last {
        work(first * LANES, Some(lanes(first, begin, end)));
        first += 1;
    }
    for vector in first..last {
        work(vector * LANES, None);
    }
    if !end.is_multiple_of(LANES) {
        work(last * LANES, Some(lanes(last, begin, end)));
    }
}

/// Factors of the running and of the added result when maxima `m` and `m_split` meet, and the new maximum, as
/// [`rescale`](super::scalar::rescale), lane by lane.
#[inline(always)]
unsafe fn factors<S: Simd>(m: S::V, m_split: S::V) -> [S::V; 3] {
    // SAFETY: the level is the caller's duty.
    unsafe {
        let top = S::max(m_split, m);
        [S::exp(S::sub(m, top)), S::exp(S::sub(m_split, top)), top]
    }
}

/// [`factors`] of one row.
#[inline(always)]
pub(super) unsafe fn rescale<S: Simd>(m: f32, m_split: f32) -> (f32, f32, f32) {
    // SAFETY: the level is the caller's duty.
    unsafe {
        let [keep, add, top] = factors::<S>(S::splat(m), S::splat(m_split)).map(|x| S::first(x));
        (keep, add, top)
    }
}

/// [`factors`] of up to sixteen rows: `[keep, add, top]`.
#[inline(always)]
pub(super) unsafe fn rescale_all<S: Simd>(m: &[f32; LANES], m_split: &[f32; LANES]) -> [[f32; LANES]; 3] {
    let mut out = [[0f32; LANES]; 3];
    // SAFETY: sixteen of each; the level is the caller's duty.
    unsafe {
        let all = factors::<S>(S::load(m.as_ptr()), S::load(m_split.as_ptr()));
        for (out, x) in out.iter_mut().zip(all) {
            S::store(out.as_mut_ptr(), x);
        }
    }
    out
}

/// `run = run * keep + part * add` over `count` vectors.
#[inline(always)]
pub(super) unsafe fn scale_add<S: Simd>(run: *mut f32, keep: f32, part: *const f32, add: f32, count: usize) {
    // SAFETY: `count` vectors at both addresses are the caller's duty.
    unsafe {
        let (keep, add) = (S::splat(keep), S::splat(add));
        for at in (0..count).map(|index| index * LANES) {
            let kept = S::mul(S::load(run.add(at)), keep);
            S::store(run.add(at), S::fma(S::load(part.add(at)), add, kept));
        }
    }
}

/// `out = x * (1 / by)`.
#[inline(always)]
pub(super) unsafe fn divide<S: Simd>(x: *const f32, by: f32, out: &mut [f32]) {
    // SAFETY: `x` holds as many elements as `out`, the caller's duty.
    unsafe {
        let by = 1.0 / by;
        let factor = S::splat(by);
        let whole = out.len() / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            S::store(out.as_mut_ptr().add(at), S::mul(S::load(x.add(at)), factor));
        }
        for (index, out) in out.iter_mut().enumerate().skip(whole) {
            *out = *x.add(index) * by;
        }
    }
}

/// Convert rows of stored elements to f32.
#[inline(always)]
pub(super) unsafe fn widen<S: Simd, E: Element>(from: *const u8, to: *mut f32, rows: usize, shape: Widen) {
    for row in 0..rows {
        for vector in 0..shape.vectors {
            // SAFETY: the shape is the caller's duty.
            unsafe {
                let x = E::load::<S>(from.add((row * shape.from_stride + vector * LANES) * E::BYTES));
                S::store(to.add(row * shape.to_stride + vector * LANES), x);
            }
        }
    }
}

/// Round f32 to stored elements.
#[inline(always)]
pub(super) unsafe fn narrow<S: Simd, E: Element>(from: &[f32], to: &mut [u8]) {
    let whole = from.len() / LANES * LANES;
    // SAFETY: the caller left room for `from.len()` elements; the tail goes through buffers of sixteen.
    unsafe {
        for at in (0..whole).step_by(LANES) {
            E::store::<S>(to.as_mut_ptr().add(at * E::BYTES), S::load(from.as_ptr().add(at)));
        }
        let rest = from.len() - whole;
        if rest > 0 {
            let mut values = [0f32; LANES];
            let mut bytes = [0u8; LANES * 4];
            for (value, from) in values.iter_mut().zip(&from[whole..]) {
                *value = *from;
            }
            E::store::<S>(bytes.as_mut_ptr(), S::load(values.as_ptr()));
            for (to, byte) in to[whole * E::BYTES..].iter_mut().zip(&bytes[..rest * E::BYTES]) {
                *to = *byte;
            }
        }
    }
}
