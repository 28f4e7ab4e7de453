//! Keys and values as integers, each with one f32 scale per token and head.
//!
//! In a tile and head: `[tile]` scales of the keys, the keys as `[head_dim / E, tile, E]` codes, E of them in a dword,
//! `[tile]` scales of the values, the values as `[tile / 2, head_dim, 2]` codes. `head_dim` is rounded up to a multiple of
//! E. A dword of the keys meets E elements of the query, a pair of values two weights of 16 bits; all sums are exact
//! integers of 32 bits.
//!
//! Of 8 bits (E = 4), codes reach 127, and those of keys are stored plus 128. Of 16 bits (E = 2), keys and queries are as
//! long vectors as a sum has room for, whatever their elements: |q.k| is at most the product of their lengths.
//!
//! A token whose key or value has an element that is not finite gets two scales that are NaN, and so does every
//! result that sees it.

use std::marker::PhantomData;

use super::cache::TileHead;
use super::scalar::sum_of;
use super::simd::LANES;
use crate::isa::Isa;

/// Largest weight of a key in a split, as an integer.
pub(super) const TOP: f32 = 32767.0;
/// Scales below this, and weights before they are scaled, count as zero.
pub(super) const NOTHING: f32 = 1e-20;
/// Elements quantized at once.
const CHUNK: usize = 64;

/// An integer that stands for an element of a key, a query or a value.
pub(super) trait Code: Copy + Default + Into<i32> + 'static {
    /// Elements of a key in a dword.
    const ELEMENTS: usize = size_of::<i32>() / size_of::<Self>();
    /// Added to the codes of keys.
    const BIAS: i32;
    /// The same in a dword of them, as bits to flip.
    const FLIPPED: i32;
    /// Largest sum of a split's weights: times the largest code of a value it stays below 2^31, roundings included.
    const WEIGHTS: f32;

    /// What codes of a key are multiples of; not finite when an element is not.
    fn key_scale(key: &[f32]) -> f32;
    /// The same of a query.
    fn query_scale(query: &[f32]) -> f32;
    /// The same of a value.
    fn value_scale(value: &[f32]) -> f32;

    /// Code `index` of stored keys.
    ///
    /// # Safety
    /// It must be one of them, and nobody may write it meanwhile.
    unsafe fn stored(keys: *const u8, index: usize) -> i32;

    /// The code of a whole number.
    ///
    /// # Safety
    /// `x` lies in the range of `Self`.
    unsafe fn of(x: f32) -> Self;
}

impl Code for i8 {
    const BIAS: i32 = 128;
    const FLIPPED: i32 = i32::from_ne_bytes([0x80; 4]);
    const WEIGHTS: f32 = 16_000_000.0;

    #[inline(always)]
    fn key_scale(key: &[f32]) -> f32 {
        largest(key) / 127.0
    }
    #[inline(always)]
    fn query_scale(query: &[f32]) -> f32 {
        largest(query) / 127.0
    }
    #[inline(always)]
    fn value_scale(value: &[f32]) -> f32 {
        largest(value) / 127.0
    }
    #[inline(always)]
    unsafe fn stored(keys: *const u8, index: usize) -> i32 {
        // SAFETY: the caller's duty.
        i32::from(unsafe { *keys.add(index) }) - Self::BIAS
    }
    #[inline(always)]
    unsafe fn of(x: f32) -> Self {
        // SAFETY: the caller's duty.
        unsafe { x.to_int_unchecked() }
    }
}

impl Code for i16 {
    const BIAS: i32 = 0;
    const FLIPPED: i32 = 0;
    const WEIGHTS: f32 = 262_000.0;

    #[inline(always)]
    fn key_scale(key: &[f32]) -> f32 {
        let (length, largest) = (length(key) / 65_000.0, largest(key) / 32_767.0);
        if largest > length { largest } else { length }
    }
    #[inline(always)]
    fn query_scale(query: &[f32]) -> f32 {
        length(query) / 32_000.0
    }
    #[inline(always)]
    fn value_scale(value: &[f32]) -> f32 {
        largest(value) / 8_191.0
    }
    #[inline(always)]
    unsafe fn stored(keys: *const u8, index: usize) -> i32 {
        // SAFETY: the caller's duty.
        i32::from(unsafe { keys.cast::<Self>().add(index).read_unaligned() })
    }
    #[inline(always)]
    unsafe fn of(x: f32) -> Self {
        // SAFETY: the caller's duty.
        unsafe { x.to_int_unchecked() }
    }
}

/// `head_dim` rounded up to whole dwords of codes.
pub(super) const fn padded<C: Code>(head_dim: usize) -> usize {
    head_dim.next_multiple_of(C::ELEMENTS)
}

/// Bytes of one token's key, or value, in one head: codes and scale.
pub(super) const fn token_bytes<C: Code>(head_dim: usize) -> usize {
    padded::<C>(head_dim) * size_of::<C>() + size_of::<f32>()
}

/// The largest magnitude of some elements; not finite when one is not.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    // The bits of magnitudes are in the order of their values, infinity and NaN above all others.
    f32::from_bits(x.iter().fold(0, |largest, value| largest.max(value.to_bits() & 0x7fff_ffff)))
}

/// The length of a vector, squares summed in sixteen lanes by position modulo 16, then lanes i and i + 8, + 4, + 2, + 1.
#[inline(always)]
fn length(x: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for sixteen in whole {
        for (lane, x) in lanes.iter_mut().zip(sixteen) {
            *lane += x * x;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += x * x;
    }
    sum_of(lanes).sqrt()
}

/// The scales of a key and a value.
#[inline(always)]
fn scales_of<C: Code>(k: &[f32], v: &[f32]) -> [f32; 2] {
    let (k, v) = (C::key_scale(k), C::value_scale(v));
    if k.is_finite() && v.is_finite() { [k, v] } else { [f32::NAN; 2] }
}

/// One over a scale, or zero where the codes of that scale are all zero.
#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale >= NOTHING && scale.is_finite() { 1.0 / scale } else { 0.0 }
}

/// Codes of `x`, at most [`CHUNK`] elements: the nearest whole numbers to its products with the scale's inverse, ties to
/// even, followed by zeros up to a whole dword. Returns how many.
#[inline(always)]
fn quantize<C: Code>(x: &[f32], inverse: f32, codes: &mut [C; CHUNK]) -> usize {
    let (own, rest) = codes[..padded::<C>(x.len())].split_at_mut(x.len());
    if inverse == 0.0 {
        // Elements may not be finite.
        own.fill(C::default());
    } else {
        for (out, value) in own.iter_mut().zip(x) {
            // SAFETY: no element exceeds the scale times the largest code by more than their roundings.
            *out = unsafe { C::of((value * inverse).round_ties_even()) };
        }
    }
    rest.fill(C::default());
    padded::<C>(x.len())
}

/// The dword of codes `step` of a chunk.
#[inline(always)]
fn dword<C: Code>(codes: &[C; CHUNK], step: usize) -> i32 {
    let dword = &codes[step * C::ELEMENTS..(step + 1) * C::ELEMENTS];
    // SAFETY: four bytes of codes.
    unsafe { dword.as_ptr().cast::<i32>().read_unaligned() }
}

/// Work that is compiled once per level: every operation is rounded by itself, so all levels agree.
trait PerLevel: Sized {
    /// # Safety
    /// That of the implementation.
    unsafe fn run(self);
}

/// Run `work` with the instructions of `isa`.
///
/// # Safety
/// The work's own, and `isa` must be supported.
unsafe fn at_level(isa: Isa, work: impl PerLevel) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
        fn avx512(work: impl PerLevel) {
            // SAFETY: the caller's duty, passed on.
            unsafe { work.run() }
        }
        #[target_feature(enable = "avx2")]
        fn avx2(work: impl PerLevel) {
            // SAFETY: the caller's duty, passed on.
            unsafe { work.run() }
        }
        match isa {
            Isa::Scalar => {}
            // SAFETY: the caller's duty.
            Isa::Avx2 => return unsafe { avx2(work) },
            // SAFETY: the caller's duty.
            _ => return unsafe { avx512(work) },
        }
    }
    let _ = isa;
    // SAFETY: the caller's duty.
    unsafe { work.run() }
}

/// Quantize and store the keys and values of a run of tokens, one head each, in slots from `offset` on.
///
/// # Safety
/// The slots must lie inside the tile, nobody else may touch them, and `isa` must be supported.
pub(super) unsafe fn store<'a, C: Code>(
    isa: Isa,
    tile: usize,
    at: TileHead,
    offset: usize,
    k: impl ExactSizeIterator<Item = &'a [f32]> + Clone,
    v: impl ExactSizeIterator<Item = &'a [f32]> + Clone,
) {
    #[cfg(target_arch = "x86_64")]
    if size_of::<C>() == 2 && isa >= Isa::Avx512 {
        // SAFETY: the caller's duty.
        return unsafe { x86::store(tile, at, offset, k, v) };
    }
    let mut tokens = k.zip(v);
    let mut offset = offset;
    while let Some((k, v)) = tokens.next() {
        let second = if offset.is_multiple_of(2) { tokens.next() } else { None };
        // SAFETY: the caller's duty.
        unsafe {
            if let Some((next_k, next_v)) = second {
                let (k, v) = ([k, next_k], [v, next_v]);
                at_level(isa, Store::<C, 2> { tile, at, offset, k, v, codes: PhantomData });
                offset += 2;
            } else {
                let (k, v) = ([k], [v]);
                at_level(isa, Store::<C, 1> { tile, at, offset, k, v, codes: PhantomData });
                offset += 1;
            }
        }
    }
}

/// Keys and values of T tokens: of one, or of the two of a pair.
struct Store<'a, C, const T: usize> {
    tile: usize,
    at: TileHead,
    offset: usize,
    k: [&'a [f32]; T],
    v: [&'a [f32]; T],
    codes: PhantomData<C>,
}

impl<C: Code, const T: usize> PerLevel for Store<'_, C, T> {
    #[inline(always)]
    unsafe fn run(self) {
        let Self { tile, at, offset, k, v, .. } = self;
        let (mut k_scales, mut v_scales) = ([0f32; T], [0f32; T]);
        for token in 0..T {
            [k_scales[token], v_scales[token]] = scales_of::<C>(k[token], v[token]);
        }
        let keys = at.key_codes(tile).cast::<i32>().wrapping_add(offset);
        let row = 2 * padded::<C>(v[0].len());
        let values = at.value_codes(tile).cast::<C>().wrapping_add(offset / 2 * row + offset % 2);
        // SAFETY: all addresses are of the tokens' slots in this tile and head, the caller's duty.
        unsafe {
            at.keys.cast::<f32>().add(offset).cast::<[f32; T]>().write_unaligned(k_scales);
            at.values.cast::<f32>().add(offset).cast::<[f32; T]>().write_unaligned(v_scales);
            each_chunk(k, k_scales, |first, codes: &[[C; CHUNK]; T], count| {
                for step in 0..count / C::ELEMENTS {
                    let dwords = codes.each_ref().map(|codes| dword(codes, step) ^ C::FLIPPED);
                    let to = keys.add((first / C::ELEMENTS + step) * tile);
                    to.cast::<[i32; T]>().write_unaligned(dwords);
                }
            });
            each_chunk(v, v_scales, |first, codes: &[[C; CHUNK]; T], count| {
                for d in 0..count {
                    let pair = codes.each_ref().map(|codes| codes[d]);
                    values.add(2 * (first + d)).cast::<[C; T]>().write_unaligned(pair);
                }
            });
        }
    }
}

/// Call `work` with the first element, the codes and the number of codes of every chunk of T vectors.
#[inline(always)]
fn each_chunk<C: Code, const T: usize>(
    x: [&[f32]; T],
    scales: [f32; T],
    mut work: impl FnMut(usize, &[[C; CHUNK]; T], usize),
) {
    let (inverses, mut codes) = (scales.map(inverse), [[C::default(); CHUNK]; T]);
    let dim = x[0].len();
    for first in (0..dim).step_by(CHUNK) {
        let (end, mut count) = (dim.min(first + CHUNK), 0);
        for ((x, inverse), codes) in x.iter().zip(inverses).zip(&mut codes) {
            count = quantize(&x[first..end], inverse, codes);
        }
        work(first, &codes, count);
    }
}

/// The packed queries of a tile: see [`pack_queries`].
#[derive(Clone, Copy)]
pub(super) struct PackedQueries {
    /// `[padded(head_dim) / E, rows, words]` dwords.
    pub(super) words: *mut i32,
    /// `[rows]`: minus the bias of the keys times the sum of the codes.
    pub(super) starts: *mut i32,
    /// `[rows]`: scale of the query times what is asked for.
    pub(super) factors: *mut f32,
}

impl PackedQueries {
    /// The parts of a tile of `rows` queries of `dwords` dwords each, packed at `at`.
    pub(super) fn new(at: *mut f32, dwords: usize, rows: usize) -> Self {
        let starts = at.cast::<i32>().wrapping_add(dwords * rows);
        Self { words: at.cast(), starts, factors: starts.wrapping_add(rows).cast() }
    }
}

/// Quantize the queries of a tile.
///
/// A dword of codes stays one when `words` is 1; when it is 2, four codes become two dwords of 16-bit pairs, (0, 2) and
/// (1, 3).
///
/// # Safety
/// `to` must have room for the tile, and `isa` must be supported.
pub(super) unsafe fn pack_queries<C: Code>(
    isa: Isa,
    queries: &[&[f32]],
    factor: f32,
    to: PackedQueries,
    words: usize,
) {
    #[cfg(target_arch = "x86_64")]
    if size_of::<C>() == 2 && isa >= Isa::Avx512 {
        // SAFETY: the caller's duty.
        return unsafe { x86::pack(queries, factor, to) };
    }
    // SAFETY: the caller's duty.
    unsafe { at_level(isa, Pack::<C> { queries, factor, to, words, codes: PhantomData }) }
}

struct Pack<'a, C> {
    queries: &'a [&'a [f32]],
    factor: f32,
    to: PackedQueries,
    words: usize,
    codes: PhantomData<C>,
}

impl<C: Code> PerLevel for Pack<'_, C> {
    #[inline(always)]
    unsafe fn run(self) {
        let Self { queries, factor, to, words, .. } = self;
        let rows = queries.len();
        for (row, query) in queries.iter().enumerate() {
            let (scale, mut sum) = (C::query_scale(query), 0);
            each_chunk([query], [scale], |first, [codes]: &[[C; CHUNK]; 1], count| {
                sum += codes[..count].iter().map(|code| (*code).into()).sum::<i32>();
                for step in 0..count / C::ELEMENTS {
                    // SAFETY: a row of the tile, the caller's duty.
                    unsafe {
                        let at = to.words.add(((first / C::ELEMENTS + step) * rows + row) * words);
                        let dword = dword(codes, step);
                        if words == 1 {
                            at.write(dword);
                        } else {
                            let [a, b, c, d] = dword.to_ne_bytes().map(|code| i32::from(code as i8));
                            at.write(a & 0xffff | c << 16);
                            at.add(1).write(b & 0xffff | d << 16);
                        }
                    }
                }
            });
            // SAFETY: as above.
            unsafe {
                to.starts.add(row).write(-C::BIAS * sum);
                to.factors.add(row).write(scale * factor);
            }
        }
    }
}

/// The same for codes of 16 bits with AVX-512: whole registers of them.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::cache::TILE;
    use super::super::simd::MAX_TILE_ROWS;
    use super::super::words::{self, Words};
    use super::{Code, PackedQueries, TileHead, inverse, scales_of};

    /// Rounded to the nearest whole number, ties to even.
    struct Whole;

    impl Words for Whole {
        #[inline(always)]
        unsafe fn of(low: __m512, high: __m512) -> __m512i {
            // SAFETY: the level is the caller's duty.
            unsafe {
                let [low, high] = [low, high].map(|x| _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x)));
                _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn store<'a>(
        tile: usize,
        at: TileHead,
        offset: usize,
        k: impl ExactSizeIterator<Item = &'a [f32]> + Clone,
        v: impl ExactSizeIterator<Item = &'a [f32]> + Clone,
    ) {
        let mut inverses = [[0f32; 2]; TILE];
        for (index, ((k, v), inverses)) in k.clone().zip(v.clone()).zip(&mut inverses).enumerate() {
            let scales = scales_of::<i16>(k, v);
            *inverses = scales.map(inverse);
            // SAFETY: scales of the tokens' slots in this tile and head, the caller's duty.
            unsafe {
                for (to, scale) in [at.keys, at.values].into_iter().zip(scales) {
                    to.cast::<f32>().add(offset + index).write_unaligned(scale);
                }
            }
        }
        let [k_inverses, v_inverses] = [0, 1].map(|part| inverses.iter().map(move |both| both[part]));
        // SAFETY: the tokens' slots in this tile and head, the caller's duty.
        unsafe {
            words::store_keys::<Whole>(tile, at.key_codes(tile), offset, k.zip(k_inverses));
            words::store_values::<Whole>(at.value_codes(tile), offset, v.zip(v_inverses));
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn pack(queries: &[&[f32]], factor: f32, to: PackedQueries) {
        let mut inverses = [0f32; MAX_TILE_ROWS];
        for (row, (query, to_multiply)) in queries.iter().zip(&mut inverses).enumerate() {
            let scale = i16::query_scale(query);
            *to_multiply = inverse(scale);
            // SAFETY: a row of the tile, the caller's duty.
            unsafe {
                to.starts.add(row).write(0);
                to.factors.add(row).write(scale * factor);
            }
        }
        // SAFETY: the caller's duty.
        unsafe { words::pack::<Whole>(queries, |row| inverses[row], to.words) }
    }
}

/// Codes of a query, one by one, and its scale.
pub(super) fn codes_of_query<C: Code>(query: &[f32], codes: &mut [f32]) -> f32 {
    let scale = C::query_scale(query);
    each_chunk([query], [scale], |first, [chunk]: &[[C; CHUNK]; 1], _| {
        for (to, code) in codes[first..].iter_mut().zip(chunk) {
            *to = (*code).into() as f32;
        }
    });
    scale
}

/// What a weight of one stands for, when `most` is the largest weight of a split and `total` their sum, before they are
/// scaled; zero where they count as zero.
#[inline(always)]
pub(super) fn step_of<C: Code>(most: f32, total: f32) -> f32 {
    let (by_most, by_total) = (most / TOP, total / C::WEIGHTS);
    let step = if by_total > by_most { by_total } else { by_most };
    if most > NOTHING { step } else { 0.0 }
}

impl TileHead {
    /// Codes of the keys.
    pub(super) fn key_codes(&self, tile: usize) -> *mut u8 {
        self.keys.wrapping_add(size_of::<f32>() * tile)
    }

    /// Codes of the values.
    pub(super) fn value_codes(&self, tile: usize) -> *mut u8 {
        self.values.wrapping_add(size_of::<f32>() * tile)
    }
}
