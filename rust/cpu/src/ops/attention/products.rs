//! The loops over dwords of small numbers, [`codes`](super::codes) or [`pairs`](super::pairs), written once over
//! [`Products`]; each level compiles them.

use std::marker::PhantomData;

use super::ahead::{Ahead, LINE, parts};
use super::codes::Code;
use super::kernels::SCORE_STRIDE;
use super::simd::{LANES, Simd};
pub(super) use super::weights::{Weights, weights};

/// Arguments of [`Products::qk`]: scores of R query rows against a group of keys.
#[derive(Clone, Copy)]
pub(super) struct QkArgs {
    /// `[dwords, R, WORDS]` packed queries.
    pub(super) q: *const i32,
    /// `[R]` what the sums start from, as bits.
    pub(super) starts: *const i32,
    /// Dwords of a key.
    pub(super) dwords: usize,
    /// First key of the group in `[dwords, stride]` bytes of keys.
    pub(super) keys: *const u8,
    /// Bytes from one dword of a key to the next.
    pub(super) stride: usize,
    /// Scales of the keys of the group, where there are some.
    pub(super) scales: *const f32,
    /// What to prefetch meanwhile.
    pub(super) ahead: Option<Ahead>,
    /// `[R]` rows of scores, `SCORE_STRIDE` apart.
    pub(super) scores: *mut f32,
}

/// Pairs `begin..end` of the values of a piece.
#[derive(Clone, Copy)]
pub(super) struct Run {
    /// Pair 0.
    pub(super) values: *const u8,
    pub(super) begin: usize,
    pub(super) end: usize,
    /// What to prefetch meanwhile.
    pub(super) ahead: Option<Ahead>,
}

/// Arguments of [`Products::pv`]: add probabilities times values to R rows of N vectors.
#[derive(Clone, Copy)]
pub(super) struct PvArgs<'a> {
    /// `[R]` rows of pairs of probabilities, `SCORE_STRIDE` apart, at the first pair.
    pub(super) p: *const i32,
    /// The values, ascending.
    pub(super) runs: &'a [Run],
    /// Byte of each value to begin with.
    pub(super) byte: usize,
    /// Bytes from one pair to the next.
    pub(super) stride: usize,
    /// `[R]` rows of sums to add to, `out_stride` apart, integers or floats.
    pub(super) out: *mut i32,
    pub(super) out_stride: usize,
    /// Whether the sums start from zero and not from `out`.
    pub(super) first: bool,
}

/// How a level multiplies dwords of small numbers and adds their products.
///
/// # Safety
/// As [`Simd`].
pub(super) trait Products: 'static {
    /// The level's floats.
    type Float: Simd;
    /// Sixteen sums, of 32 bits each.
    type Sums: Copy;
    /// Sixteen dwords of small numbers.
    type Dwords: Copy;
    /// Elements of a key in a dword.
    const ELEMENTS: usize;
    /// Dwords of a packed query for each dword of a key.
    const WORDS: usize;
    /// Bytes of a pair of values.
    const PAIR_BYTES: usize;
    /// Bytes of a token's scale, which precedes its key and its value.
    const SCALE_BYTES: usize;

    unsafe fn splat(x: i32) -> Self::Sums;
    unsafe fn load(from: *const i32) -> Self::Sums;
    unsafe fn store(to: *mut i32, x: Self::Sums);
    /// Scores of sixteen keys, whose scales, if any, are at `scales`.
    unsafe fn score(sums: Self::Sums, scales: *const f32) -> <Self::Float as Simd>::V;
    /// Sixteen keys' dwords.
    unsafe fn load_keys(from: *const u8) -> Self::Dwords;
    /// Add the products of sixteen keys' dwords with one of a query.
    unsafe fn add_keys(sums: Self::Sums, keys: Self::Dwords, query: *const i32) -> Self::Sums;
    /// The same with the one `AT` bytes behind `query`, of one word, read by the instruction itself where it can.
    #[inline(always)]
    unsafe fn add_keys_at<const AT: usize>(
        sums: Self::Sums,
        keys: Self::Dwords,
        query: *const i32,
    ) -> Self::Sums {
        // SAFETY: the caller's duty.
        unsafe { Self::add_keys(sums, keys, query.wrapping_byte_add(AT)) }
    }
    /// Sixteen pairs of values, 16 bits each.
    unsafe fn load_values(from: *const u8) -> Self::Dwords;
    /// Add the products of sixteen pairs of values with a pair of probabilities.
    unsafe fn add_values(sums: Self::Sums, values: Self::Dwords, p: *const i32) -> Self::Sums;
    /// As [`add_keys_at`](Self::add_keys_at).
    #[inline(always)]
    unsafe fn add_values_at<const AT: usize>(
        sums: Self::Sums,
        values: Self::Dwords,
        p: *const i32,
    ) -> Self::Sums {
        // SAFETY: the caller's duty.
        unsafe { Self::add_values(sums, values, p.wrapping_byte_add(AT)) }
    }

    // The loops below, compiled for this level.
    unsafe fn qk<const R: usize, const N: usize>(args: &QkArgs);
    unsafe fn pv<const R: usize, const N: usize>(args: &PvArgs<'_>);
}

/// Instructions on integers.
///
/// # Safety
/// As [`Simd`].
pub(super) trait IntegerLevel: 'static {
    /// The level's floats.
    type Float: Simd;
    /// Sixteen integers of 32 bits, or thirty-two of 16.
    type Ints: Copy;
    /// Dwords of a packed query for each dword of a key of bytes.
    const WORDS: usize;

    unsafe fn splat(x: i32) -> Self::Ints;
    unsafe fn load(from: *const i32) -> Self::Ints;
    unsafe fn store(to: *mut i32, x: Self::Ints);
    unsafe fn to_float(x: Self::Ints) -> <Self::Float as Simd>::V;
    /// Thirty-two signed bytes, widened.
    unsafe fn load_widened(from: *const u8) -> Self::Ints;
    /// Round sixteen f32 to 16-bit integers, ties to even.
    unsafe fn store_words(to: *mut i16, x: <Self::Float as Simd>::V);
    /// Add the products of sixteen pairs of 16-bit integers with one.
    unsafe fn add_words(sums: Self::Ints, x: Self::Ints, pair: *const i32) -> Self::Ints;
    /// Add the products of sixteen times four unsigned bytes with four signed ones, packed as [`WORDS`](Self::WORDS) says.
    unsafe fn add_bytes(sums: Self::Ints, x: Self::Ints, four: *const i32) -> Self::Ints;
    /// [`add_words`](Self::add_words) of the pair `AT` bytes behind `pair`, read by the instruction itself where it can.
    #[inline(always)]
    unsafe fn add_words_at<const AT: usize>(sums: Self::Ints, x: Self::Ints, pair: *const i32) -> Self::Ints {
        // SAFETY: the caller's duty.
        unsafe { Self::add_words(sums, x, pair.wrapping_byte_add(AT)) }
    }
    /// The same of [`add_bytes`](Self::add_bytes).
    #[inline(always)]
    unsafe fn add_bytes_at<const AT: usize>(sums: Self::Ints, x: Self::Ints, four: *const i32) -> Self::Ints {
        // SAFETY: the caller's duty.
        unsafe { Self::add_bytes(sums, x, four.wrapping_byte_add(AT)) }
    }

    // The loops below, compiled for this level.
    unsafe fn qk<P: Products, const R: usize, const N: usize>(args: &QkArgs);
    unsafe fn pv<P: Products, const R: usize, const N: usize>(args: &PvArgs<'_>);
    unsafe fn weights<C: Code>(args: &Weights<'_>, sums: &mut [(f32, f32)], steps: &mut [f32]);
    unsafe fn scale(sums: *mut f32, vectors: usize, step: f32);
}

/// Codes of type `C`, multiplied with the instructions of `L`.
pub(super) struct Codes<L, C>(PhantomData<(L, C)>);

impl<L: IntegerLevel, C: Code> Products for Codes<L, C> {
    type Float = L::Float;
    type Sums = L::Ints;
    type Dwords = L::Ints;
    const ELEMENTS: usize = C::ELEMENTS;
    const WORDS: usize = if size_of::<C>() == 1 { L::WORDS } else { 1 };
    const PAIR_BYTES: usize = 2 * size_of::<C>();
    const SCALE_BYTES: usize = size_of::<f32>();

    #[inline(always)]
    unsafe fn splat(x: i32) -> L::Ints {
        // SAFETY: the caller's duty.
        unsafe { L::splat(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const i32) -> L::Ints {
        // SAFETY: the caller's duty.
        unsafe { L::load(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut i32, x: L::Ints) {
        // SAFETY: the caller's duty.
        unsafe { L::store(to, x) }
    }
    #[inline(always)]
    unsafe fn score(sums: L::Ints, scales: *const f32) -> <L::Float as Simd>::V {
        // SAFETY: the caller's duty.
        unsafe { L::Float::mul(L::to_float(sums), L::Float::load(scales)) }
    }
    #[inline(always)]
    unsafe fn load_keys(from: *const u8) -> L::Ints {
        // SAFETY: the caller's duty.
        unsafe { L::load(from.cast()) }
    }
    #[inline(always)]
    unsafe fn add_keys(sums: L::Ints, keys: L::Ints, query: *const i32) -> L::Ints {
        // SAFETY: the caller's duty.
        unsafe {
            match size_of::<C>() {
                1 => L::add_bytes(sums, keys, query),
                _ => L::add_words(sums, keys, query),
            }
        }
    }
    #[inline(always)]
    unsafe fn add_keys_at<const AT: usize>(sums: L::Ints, keys: L::Ints, query: *const i32) -> L::Ints {
        // SAFETY: the caller's duty.
        unsafe {
            match size_of::<C>() {
                1 => L::add_bytes_at::<AT>(sums, keys, query),
                _ => L::add_words_at::<AT>(sums, keys, query),
            }
        }
    }
    #[inline(always)]
    unsafe fn load_values(from: *const u8) -> L::Ints {
        // SAFETY: the caller's duty.
        unsafe {
            match size_of::<C>() {
                1 => L::load_widened(from),
                _ => L::load(from.cast()),
            }
        }
    }
    #[inline(always)]
    unsafe fn add_values(sums: L::Ints, values: L::Ints, p: *const i32) -> L::Ints {
        // SAFETY: the caller's duty.
        unsafe { L::add_words(sums, values, p) }
    }
    #[inline(always)]
    unsafe fn add_values_at<const AT: usize>(sums: L::Ints, values: L::Ints, p: *const i32) -> L::Ints {
        // SAFETY: the caller's duty.
        unsafe { L::add_words_at::<AT>(sums, values, p) }
    }
    unsafe fn qk<const R: usize, const N: usize>(args: &QkArgs) {
        // SAFETY: the caller's duty.
        unsafe { L::qk::<Self, R, N>(args) }
    }
    unsafe fn pv<const R: usize, const N: usize>(args: &PvArgs<'_>) {
        // SAFETY: the caller's duty.
        unsafe { L::pv::<Self, R, N>(args) }
    }
}

/// Whether two of three rows' numbers are read by the multiplications themselves, of which there are N: that saves an
/// instruction, and takes another read if they are two.
const fn reads_within(n: usize) -> bool {
    n == 2
}

/// For every row `$r` of `$rows` but each third, let each of its sums become `$product` of it and what it meets of `$with`.
macro_rules! other_rows {
    ($when:expr, $rows:ident, $sums:ident, $with:ident, |$sum:ident, $x:ident| $r:ident => $product:expr) => {
        other_rows!($when, $rows, $sums, $with, |$sum, $x| $r => $product, 1 2 4 5 7 8 10 11)
    };
    ($when:expr, $rows:ident, $sums:ident, $with:ident, |$sum:ident, $x:ident| $r:ident => $product:expr, $($row:literal)*) => {
        $(if $when && $row < $rows {
            #[allow(non_upper_case_globals, reason = "it stands for a variable")]
            const $r: usize = $row;
            for (sum, $x) in $sums[$r].iter_mut().zip($with) {
                let $sum = *sum;
                *sum = $product;
            }
        })*
    };
}

/// Scores of R query rows against N vectors of keys: one chain of sums over ascending dwords, then times the scale of
/// the key if it has one.
#[inline(always)]
pub(super) unsafe fn qk<P: Products, const R: usize, const N: usize>(args: &QkArgs) {
    let QkArgs { q, starts, dwords, keys, stride, scales, ahead, scores } = *args;
    // SAFETY: the shapes are the caller's duty; prefetching has no requirements.
    unsafe {
        let mut sums = [[P::splat(0); N]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            *sums = [P::splat(*starts.add(r)); N];
        }
        for (dwords, to_come) in parts(ahead, 0, dwords) {
            for dword in dwords {
                let offset = dword * stride;
                let mut k = [P::load_keys(keys.add(offset)); N];
                for (n, k) in k.iter_mut().enumerate().skip(1) {
                    *k = P::load_keys(keys.add(offset + n * LINE));
                }
                if let Some(ahead) = ahead {
                    for at in (0..N).map(|n| offset + n * LINE) {
                        ahead.ask(keys.wrapping_add(at), to_come.wrapping_add(at));
                    }
                }
                let q = q.add(dword * R * P::WORDS);
                let within = P::WORDS == 1 && reads_within(N);
                for (r, sums) in sums.iter_mut().enumerate().filter(|(r, _)| !within || r % 3 == 0) {
                    for (sum, k) in sums.iter_mut().zip(k) {
                        *sum = P::add_keys(*sum, k, q.add(r * P::WORDS));
                    }
                }
                other_rows!(within, R, sums, k, |sum, k| r => P::add_keys_at::<{ 4 * r }>(sum, k, q));
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                let score = P::score(*sum, scales.wrapping_add(n * LANES));
                P::Float::store(scores.add(r * SCORE_STRIDE + n * LANES), score);
            }
        }
    }
}

/// `out[r] += sum_j p[r][j] * v[j]` over N vectors of the values, two keys at a time.
#[inline(always)]
pub(super) unsafe fn pv<P: Products, const R: usize, const N: usize>(args: &PvArgs<'_>) {
    let PvArgs { mut p, runs, byte, stride, out, out_stride, first } = *args;
    // SAFETY: the shapes are the caller's duty; prefetching has no requirements.
    unsafe {
        let mut sums = [[P::splat(0); N]; R];
        if !first {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = P::load(out.add(r * out_stride + n * LANES));
                }
            }
        }
        for run in runs {
            p = p.wrapping_sub(run.begin);
            // Half a line came with its first half.
            let ahead = run.ahead.filter(|_| byte.is_multiple_of(LINE)).map(|ahead| ahead.at_byte(byte));
            for (pairs, to_come) in parts(ahead, run.begin, run.end) {
                for pair in pairs {
                    let offset = pair * stride;
                    let from = run.values.add(byte + offset);
                    let mut v = [P::load_values(from); N];
                    for (n, v) in v.iter_mut().enumerate().skip(1) {
                        *v = P::load_values(from.add(P::PAIR_BYTES * n * LANES));
                    }
                    if let Some(ahead) = ahead {
                        for at in (0..P::PAIR_BYTES * N * LANES).step_by(LINE) {
                            ahead.ask(from.wrapping_add(at), to_come.wrapping_add(offset + at));
                        }
                    }
                    let p = p.wrapping_add(pair);
                    let within = reads_within(N);
                    for (r, sums) in sums.iter_mut().enumerate().filter(|(r, _)| !within || r % 3 == 0) {
                        for (sum, v) in sums.iter_mut().zip(v) {
                            *sum = P::add_values(*sum, v, p.wrapping_add(r * SCORE_STRIDE));
                        }
                    }
                    other_rows!(within, R, sums, v, |sum, v| r => {
                        P::add_values_at::<{ 4 * SCORE_STRIDE * r }>(sum, v, p)
                    });
                }
            }
            p = p.wrapping_add(run.end);
        }
        for (r, sums) in sums.iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                P::store(out.add(r * out_stride + n * LANES), *sum);
            }
        }
    }
}

/// Turn integer sums into results of a split, in place.
#[inline(always)]
pub(super) unsafe fn scale<L: IntegerLevel>(sums: *mut f32, vectors: usize, step: f32) {
    // SAFETY: the caller's duty.
    unsafe {
        let step = L::Float::splat(step);
        for at in (0..vectors).map(|index| sums.add(index * LANES)) {
            L::Float::store(at, L::Float::mul(L::to_float(L::load(at.cast())), step));
        }
    }
}

/// The methods of [`IntegerLevel`] that are loops, compiled with the instructions `$features`.
macro_rules! integer_kernels {
    ($features:literal) => {
        #[target_feature(enable = $features)]
        unsafe fn qk<P: Products, const R: usize, const N: usize>(args: &products::QkArgs) {
            // SAFETY: the caller's duty.
            unsafe { products::qk::<P, R, N>(args) }
        }
        #[target_feature(enable = $features)]
        unsafe fn pv<P: Products, const R: usize, const N: usize>(args: &products::PvArgs<'_>) {
            // SAFETY: the caller's duty.
            unsafe { products::pv::<P, R, N>(args) }
        }
        #[target_feature(enable = $features)]
        unsafe fn weights<C: Code>(args: &products::Weights<'_>, sums: &mut [(f32, f32)], steps: &mut [f32]) {
            // SAFETY: the caller's duty.
            unsafe { products::weights::<Self, C>(args, sums, steps) }
        }
        #[target_feature(enable = $features)]
        unsafe fn scale(sums: *mut f32, vectors: usize, step: f32) {
            // SAFETY: the caller's duty.
            unsafe { products::scale::<Self>(sums, vectors, step) }
        }
    };
}
pub(super) use integer_kernels;
