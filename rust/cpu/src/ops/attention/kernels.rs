//! The inner loops, written once over [`Simd`]; each level compiles them with its own instructions.
//!
//! The order of every sum is fixed here: scores by ascending d, the sum of a split by position modulo 16 and then
//! a tree, values by ascending position.

use super::simd::{Element, LANES, PvArgs, QkArgs, Simd, Widen};

/// Elements from one row of scores to the next: a split and a line, so that rows fall on different cache sets.
pub(super) const SCORE_STRIDE: usize = super::SPLIT + LANES;
const LINE: usize = 64;

/// Scores of R rows against N vectors of keys: `sum_d q[d] * k[d]`, one chain of multiply-adds each.
#[inline(always)]
pub(super) unsafe fn qk<S: Simd, E: Element, const R: usize, const N: usize>(args: &QkArgs) {
    let QkArgs { q, dim, keys, k_stride, ahead, scores } = *args;
    // SAFETY: the shapes are the caller's duty; prefetching has no requirements.
    unsafe {
        let mut sums = [[S::splat(0.0); N]; R];
        for d in 0..dim {
            let from = keys.add(d * k_stride * E::BYTES);
            let mut k = [S::splat(0.0); N];
            for (n, k) in k.iter_mut().enumerate() {
                *k = E::load::<S>(from.add(n * LANES * E::BYTES));
            }
            if E::PREFETCH {
                let at = ahead.wrapping_add(d * k_stride * E::BYTES);
                for line in 0..(N * LANES * E::BYTES).div_ceil(LINE) {
                    S::prefetch(at.wrapping_add(line * LINE));
                }
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let q = S::splat(*q.add(d * R + r));
                for (sum, k) in sums.iter_mut().zip(k) {
                    *sum = S::fma(q, k, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                S::store(scores.add(r * SCORE_STRIDE + n * LANES), *sum);
            }
        }
    }
}

/// `out[r] += sum_j p[r][j] * v[j]` over N vectors of a value, keys ascending.
#[inline(always)]
pub(super) unsafe fn pv<S: Simd, E: Element, const R: usize, const N: usize>(args: &PvArgs) {
    let PvArgs { p, count, values, v_stride, ahead, out, out_stride } = *args;
    // SAFETY: the shapes are the caller's duty; prefetching has no requirements.
    unsafe {
        let mut sums = [[S::splat(0.0); N]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = S::load(out.add(r * out_stride + n * LANES));
            }
        }
        for key in 0..count {
            let from = values.add(key * v_stride * E::BYTES);
            let mut v = [S::splat(0.0); N];
            for (n, v) in v.iter_mut().enumerate() {
                *v = E::load::<S>(from.add(n * LANES * E::BYTES));
            }
            if E::PREFETCH {
                let at = ahead.wrapping_add(key * v_stride * E::BYTES);
                for line in 0..(N * LANES * E::BYTES).div_ceil(LINE) {
                    S::prefetch(at.wrapping_add(line * LINE));
                }
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let p = S::splat(*p.add(r * SCORE_STRIDE + key));
                for (sum, v) in sums.iter_mut().zip(v) {
                    *sum = S::fma(p, v, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                S::store(out.add(r * out_stride + n * LANES), *sum);
            }
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

/// Turn scores `begin..end` of one row of a split into exp(scale * score - max); returns (max, sum).
#[inline(always)]
pub(super) unsafe fn softmax<S: Simd>(scores: *mut f32, begin: usize, end: usize, scale: f32) -> (f32, f32) {
    let vectors = begin / LANES..end.div_ceil(LANES);
    // SAFETY: a row of scores holds a whole split.
    unsafe {
        let (factor, lowest) = (S::splat(scale), S::splat(f32::NEG_INFINITY));
        let mut most = lowest;
        for index in vectors.clone() {
            let at = scores.add(index * LANES);
            let score = S::select(lanes(index, begin, end), S::mul(S::load(at), factor), lowest);
            S::store(at, score);
            most = S::max(most, score);
        }
        let max = S::maximum(most);
        let shift = S::splat(max);
        let mut sums = S::splat(0.0);
        for index in vectors {
            let at = scores.add(index * LANES);
            let p = S::exp(S::sub(S::load(at), shift));
            let p = S::select(lanes(index, begin, end), p, S::splat(0.0));
            S::store(at, p);
            sums = S::add(sums, p);
        }
        (max, S::sum(sums))
    }
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

/// `out = x / by`.
#[inline(always)]
pub(super) unsafe fn divide<S: Simd>(x: *const f32, by: f32, out: &mut [f32]) {
    // SAFETY: `x` holds as many elements as `out`, the caller's duty.
    unsafe {
        let divisor = S::splat(by);
        let whole = out.len() / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            S::store(out.as_mut_ptr().add(at), S::div(S::load(x.add(at)), divisor));
        }
        for (index, out) in out.iter_mut().enumerate().skip(whole) {
            *out = *x.add(index) / by;
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
