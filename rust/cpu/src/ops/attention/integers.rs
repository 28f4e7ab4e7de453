//! The integer loops of [`codes`](super::codes), written once over [`Integers`]; each level compiles them.

use super::kernels::{SCORE_STRIDE, lanes};
use super::simd::{LANES, Simd};
use super::windows::{Ahead, LINE, LINES, STREAMS};

/// Arguments of [`Integers::qk`]: scores of R query rows against a group of keys in each of B blocks.
#[derive(Clone, Copy)]
pub(super) struct QkArgs {
    /// `[steps, R, WORDS]` packed queries.
    pub(super) q: *const i32,
    /// `[R]` what the sums start from.
    pub(super) starts: *const i32,
    /// Dwords of a key.
    pub(super) steps: usize,
    /// First key of the group in the `[steps, stride / 4, 4]` keys of each block.
    pub(super) keys: [*const u8; STREAMS],
    /// Bytes from one dword of a key to the next.
    pub(super) stride: usize,
    /// Scales of the keys of each group.
    pub(super) scales: [*const u8; STREAMS],
    /// What to prefetch, walked in step with `keys`.
    pub(super) ahead: Option<[*const u8; STREAMS]>,
    /// `[R]` rows of scores, `SCORE_STRIDE` apart.
    pub(super) scores: *mut f32,
    /// Scores from one block to the next.
    pub(super) block: usize,
}

/// Arguments of [`Integers::pv`]: add probabilities times values to R rows of N vectors.
#[derive(Clone, Copy)]
pub(super) struct PvArgs {
    /// `[R]` rows of pairs of probabilities, `SCORE_STRIDE` apart, at the first pair.
    pub(super) p: *const i32,
    /// Pairs of keys.
    pub(super) count: usize,
    /// First pair of values.
    pub(super) values: *const u8,
    /// Bytes from one pair to the next.
    pub(super) stride: usize,
    /// What to prefetch.
    pub(super) ahead: Option<Ahead>,
    /// `[R]` rows of sums to add to, `out_stride` apart.
    pub(super) out: *mut i32,
    pub(super) out_stride: usize,
    /// Whether the sums start from zero and not from `out`.
    pub(super) first: bool,
}

/// Integer instructions of a level.
///
/// # Safety
/// As [`Simd`].
pub(super) trait Integers: 'static {
    /// The level's floats.
    type Float: Simd;
    /// Sixteen i32.
    type Sums: Copy;
    /// Sixteen dwords of codes.
    type Codes: Copy;
    /// Dwords of four packed codes of a query.
    const WORDS: usize;

    unsafe fn splat(x: i32) -> Self::Sums;
    unsafe fn load(from: *const i32) -> Self::Sums;
    unsafe fn store(to: *mut i32, x: Self::Sums);
    unsafe fn to_float(x: Self::Sums) -> <Self::Float as Simd>::V;
    /// Round sixteen f32 to 16-bit integers, ties to even.
    unsafe fn store_words(to: *mut i16, x: <Self::Float as Simd>::V);
    /// Sixteen keys' dwords.
    unsafe fn load_keys(from: *const u8) -> Self::Codes;
    /// Add the products of sixteen keys' dwords with four codes of a query.
    unsafe fn add_keys(sums: Self::Sums, keys: Self::Codes, query: *const i32) -> Self::Sums;
    /// Sixteen pairs of signed bytes, widened to 16 bits.
    unsafe fn load_values(from: *const u8) -> Self::Codes;
    /// Add the products of sixteen pairs of values with a pair of probabilities.
    unsafe fn add_values(sums: Self::Sums, values: Self::Codes, p: *const i32) -> Self::Sums;

    // The loops below, compiled for this level.
    unsafe fn qk<const R: usize, const N: usize, const B: usize>(args: &QkArgs);
    unsafe fn pv<const R: usize, const N: usize>(args: &PvArgs);
    unsafe fn weigh(row: *mut f32, range: (usize, usize), scales: impl Fn(usize) -> *const f32) -> f32;
    unsafe fn round(row: *mut f32, range: (usize, usize), vectors: (usize, usize), factor: f32);
    unsafe fn scale(sums: *mut f32, vectors: usize, step: f32);
}

/// Scores of R query rows against N vectors of keys in each of B blocks: the exact dot product, then times the scale
/// of the key.
#[inline(always)]
pub(super) unsafe fn qk<I: Integers, const R: usize, const N: usize, const B: usize>(args: &QkArgs) {
    let QkArgs { q, starts, steps, keys, stride, scales, ahead, scores, block } = *args;
    // SAFETY: the shapes are the caller's duty; prefetching has no requirements.
    unsafe {
        let mut sums = [[[I::splat(0); N]; B]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            *sums = [[I::splat(*starts.add(r)); N]; B];
        }
        for step in 0..steps {
            let offset = step * stride;
            let mut k = [[I::load_keys(keys[0].add(offset)); N]; B];
            for (index, k) in k.as_flattened_mut().iter_mut().enumerate().skip(1) {
                *k = I::load_keys(keys[index / N].add(offset + index % N * LINE));
            }
            if let Some(ahead) = &ahead {
                for index in 0..B * N {
                    I::Float::prefetch(ahead[index / N].wrapping_add(offset + index % N * LINE));
                }
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let q = q.add((step * R + r) * I::WORDS);
                for (sum, k) in sums.as_flattened_mut().iter_mut().zip(k.as_flattened()) {
                    *sum = I::add_keys(*sum, *k, q);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (b, sums) in sums.iter().enumerate() {
                for (n, sum) in sums.iter().enumerate() {
                    let scale = I::Float::load(scales[b].cast::<f32>().add(n * LANES));
                    let score = I::Float::mul(I::to_float(*sum), scale);
                    I::Float::store(scores.add(r * SCORE_STRIDE + b * block + n * LANES), score);
                }
            }
        }
    }
}

/// `out[r] += sum_j p[r][j] * v[j]` over N vectors of the values, two keys at a time.
#[inline(always)]
pub(super) unsafe fn pv<I: Integers, const R: usize, const N: usize>(args: &PvArgs) {
    let PvArgs { p, count, values, stride, ahead, out, out_stride, first } = *args;
    // SAFETY: the shapes are the caller's duty; prefetching has no requirements.
    unsafe {
        let mut sums = [[I::splat(0); N]; R];
        if !first {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = I::load(out.add(r * out_stride + n * LANES));
                }
            }
        }
        let lines = (2 * N * LANES).div_ceil(LINE);
        let (ahead, step) = ahead.map_or(([values; LINES], 0), |ahead| (ahead.lines(lines), ahead.step));
        for pair in 0..count {
            let from = values.add(pair * stride);
            let mut v = [I::load_values(from); N];
            for (n, v) in v.iter_mut().enumerate().skip(1) {
                *v = I::load_values(from.add(2 * n * LANES));
            }
            if step > 0 {
                for line in &ahead[..lines] {
                    I::Float::prefetch(line.wrapping_add(pair * step));
                }
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let p = p.add(r * SCORE_STRIDE + pair);
                for (sum, v) in sums.iter_mut().zip(v) {
                    *sum = I::add_values(*sum, v, p);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                I::store(out.add(r * out_stride + n * LANES), *sum);
            }
        }
    }
}

/// Multiply probabilities `begin..end` of a row by the scales of their values; vector number i has its scales at
/// `scales(i)`. Returns the largest product, or zero.
#[inline(always)]
pub(super) unsafe fn weigh<I: Integers>(
    row: *mut f32,
    (begin, end): (usize, usize),
    scales: impl Fn(usize) -> *const f32,
) -> f32 {
    // SAFETY: a row of scores holds a whole split, a block whole vectors of scales.
    unsafe {
        let mut most = I::Float::splat(0.0);
        for index in begin / LANES..end.div_ceil(LANES) {
            let at = row.add(index * LANES);
            let scale = I::Float::load(scales(index));
            let p = I::Float::mul(I::Float::load(at), scale);
            let p = I::Float::select(lanes(index, begin, end), p, I::Float::splat(0.0));
            I::Float::store(at, p);
            most = I::Float::max(p, most);
        }
        I::Float::maximum(most)
    }
}

/// Round `factor` times the products of keys `range` of a row to 16 bits, in place: key j becomes the j-th word of the
/// row. Vectors `vectors` that lie outside the range become zero.
#[inline(always)]
pub(super) unsafe fn round<I: Integers>(
    row: *mut f32,
    (begin, end): (usize, usize),
    vectors: (usize, usize),
    factor: f32,
) {
    // SAFETY: a row of scores holds a whole split; a word is written behind the floats that are still to be read.
    unsafe {
        let factor = I::Float::splat(factor);
        for index in vectors.0..vectors.1 {
            let p = if begin / LANES <= index && index * LANES < end {
                I::Float::mul(I::Float::load(row.add(index * LANES)), factor)
            } else {
                I::Float::splat(0.0)
            };
            I::store_words(row.cast::<i16>().add(index * LANES), p);
        }
    }
}

/// Turn integer sums into results of a split, in place.
#[inline(always)]
pub(super) unsafe fn scale<I: Integers>(sums: *mut f32, vectors: usize, step: f32) {
    // SAFETY: the caller's duty.
    unsafe {
        let step = I::Float::splat(step);
        for at in (0..vectors).map(|index| sums.add(index * LANES)) {
            I::Float::store(at, I::Float::mul(I::to_float(I::load(at.cast())), step));
        }
    }
}

/// The methods of [`Integers`] that are loops, compiled with the instructions `$features`.
macro_rules! integer_kernels {
    ($features:literal) => {
        #[target_feature(enable = $features)]
        unsafe fn qk<const R: usize, const N: usize, const B: usize>(args: &integers::QkArgs) {
            // SAFETY: the caller's duty.
            unsafe { integers::qk::<Self, R, N, B>(args) }
        }
        #[target_feature(enable = $features)]
        unsafe fn pv<const R: usize, const N: usize>(args: &integers::PvArgs) {
            // SAFETY: the caller's duty.
            unsafe { integers::pv::<Self, R, N>(args) }
        }
        #[target_feature(enable = $features)]
        unsafe fn weigh(row: *mut f32, range: (usize, usize), scales: impl Fn(usize) -> *const f32) -> f32 {
            // SAFETY: the caller's duty.
            unsafe { integers::weigh::<Self>(row, range, scales) }
        }
        #[target_feature(enable = $features)]
        unsafe fn round(row: *mut f32, range: (usize, usize), vectors: (usize, usize), factor: f32) {
            // SAFETY: the caller's duty.
            unsafe { integers::round::<Self>(row, range, vectors, factor) }
        }
        #[target_feature(enable = $features)]
        unsafe fn scale(sums: *mut f32, vectors: usize, step: f32) {
            // SAFETY: the caller's duty.
            unsafe { integers::scale::<Self>(sums, vectors, step) }
        }
    };
}
pub(super) use integer_kernels;
