//! Keys and values as 8-bit integers, each with one f32 scale per token and head.
//!
//! In a tile and head: `[tile]` scales of the keys, the keys as `[head_dim / 4, tile, 4]` bytes of code
//! plus 128, `[tile]` scales of the values, the values as `[tile / 2, head_dim, 2]` signed bytes.
//! `head_dim` is rounded up to a multiple of four. A dword of the keys meets four elements of the query, a pair of
//! bytes of the values two probabilities of 16 bits; all sums are exact integers.
//!
//! A token whose key or value has an element that is not finite gets two scales that are NaN, and so does every
//! result that sees it.

use super::cache::TileHead;
use crate::isa::Isa;

/// Largest code.
pub(super) const LARGEST: f32 = 127.0;
/// Added to the codes of keys.
pub(super) const BIAS: i32 = 128;
/// Largest probability of a split, scale of its value included, as an integer.
pub(super) const TOP: f32 = 32767.0;
/// Below this a split's largest probability times scale counts as zero.
pub(super) const NOTHING: f32 = 1e-30;
/// Elements quantized at once.
const CHUNK: usize = 64;

/// `head_dim` rounded up to whole dwords of codes.
pub(super) const fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(4)
}

/// Bytes of one token's key, or value, in one head: codes and scale.
pub(super) const fn token_bytes(head_dim: usize) -> usize {
    padded(head_dim) + size_of::<f32>()
}

/// Scale of a key, value or query: its largest magnitude over 127; not finite when an element is not.
#[inline(always)]
pub(super) fn scale_of(x: &[f32]) -> f32 {
    // The bits of magnitudes are in the order of their values, infinity and NaN above all others.
    let largest = x.iter().fold(0, |largest, value| largest.max(value.to_bits() & 0x7fff_ffff));
    f32::from_bits(largest) / LARGEST
}

/// The code of `x`: the nearest whole multiple of a finite scale above zero, ties to even.
#[inline(always)]
pub(super) fn code(x: f32, scale: f32) -> i32 {
    let rounded = (x / scale).round_ties_even();
    let low = if rounded > -LARGEST { rounded } else { -LARGEST };
    let clamped = if low < LARGEST { low } else { LARGEST };
    // SAFETY: a whole number from -127 to 127.
    unsafe { clamped.to_int_unchecked() }
}

/// Whether codes of that scale are not all zero.
pub(super) fn is_usable(scale: f32) -> bool {
    scale > 0.0 && scale.is_finite()
}

/// Codes of `x`, at most [`CHUNK`] elements, followed by zeros up to a multiple of four; returns them.
#[inline(always)]
fn quantize<'a>(x: &[f32], scale: f32, codes: &'a mut [i8; CHUNK]) -> &'a [i8] {
    let codes = &mut codes[..padded(x.len())];
    if is_usable(scale) {
        let (own, rest) = codes.split_at_mut(x.len());
        for (out, value) in own.iter_mut().zip(x) {
            *out = code(*value, scale) as i8;
        }
        rest.fill(0);
    } else {
        codes.fill(0);
    }
    codes
}

/// Call `work` with `(first, codes)` of every chunk of `x`.
#[inline(always)]
fn each_chunk(x: &[f32], scale: f32, mut work: impl FnMut(usize, &[i8])) {
    let mut codes = [0; CHUNK];
    for (index, part) in x.chunks(CHUNK).enumerate() {
        work(index * CHUNK, quantize(part, scale, &mut codes));
    }
}

/// Compile a function once per level: every operation is rounded by itself, so all levels agree.
macro_rules! per_level {
    ($isa:expr, $inner:ident($($arg:ident: $type:ty),*) -> $result:ty) => {{
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
            fn avx512($($arg: $type),*) -> $result {
                // SAFETY: the caller's duty, passed on.
                unsafe { $inner($($arg),*) }
            }
            #[target_feature(enable = "avx2")]
            fn avx2($($arg: $type),*) -> $result {
                // SAFETY: the caller's duty, passed on.
                unsafe { $inner($($arg),*) }
            }
            match $isa {
                Isa::Scalar => {}
                // SAFETY: the caller's duty.
                Isa::Avx2 => return unsafe { avx2($($arg),*) },
                // SAFETY: the caller's duty.
                _ => return unsafe { avx512($($arg),*) },
            }
        }
        // SAFETY: the caller's duty.
        unsafe { $inner($($arg),*) }
    }};
}

/// Quantize and store one token's key and value of one head.
///
/// # Safety
/// `offset` must lie inside the tile, nobody else may touch the token's slot, and `isa` must be supported.
pub(super) unsafe fn store_token(isa: Isa, tile: usize, at: TileHead, offset: usize, k: &[f32], v: &[f32]) {
    per_level!(isa, store(tile: usize, at: TileHead, offset: usize, k: &[f32], v: &[f32]) -> ())
}

/// # Safety
/// As [`store_token`].
#[inline(always)]
unsafe fn store(tile: usize, at: TileHead, offset: usize, k: &[f32], v: &[f32]) {
    let (mut k_scale, mut v_scale) = (scale_of(k), scale_of(v));
    if !k_scale.is_finite() || !v_scale.is_finite() {
        (k_scale, v_scale) = (f32::NAN, f32::NAN);
    }
    let (keys, values) = (at.key_codes(tile), at.value_codes(tile));
    // SAFETY: the caller's duty; all addresses are of the token's slot in this tile and head.
    unsafe {
        at.keys.cast::<f32>().add(offset).write_unaligned(k_scale);
        at.values.cast::<f32>().add(offset).write_unaligned(v_scale);
        each_chunk(k, k_scale, |first, codes| {
            for (step, four) in codes.as_chunks::<4>().0.iter().enumerate() {
                let biased = four.map(|code| (code as u8) ^ 0x80);
                keys.add(4 * ((first / 4 + step) * tile + offset)).cast::<[u8; 4]>().write(biased);
            }
        });
        let pair = values.add(offset / 2 * 2 * padded(v.len()) + offset % 2);
        each_chunk(v, v_scale, |first, codes| {
            for (d, code) in (first..).zip(codes) {
                pair.add(2 * d).write(*code as u8);
            }
        });
    }
}

/// A packed query of a tile: see [`pack_query`].
#[derive(Clone, Copy)]
pub(super) struct PackedQueries {
    /// `[padded(head_dim) / 4, rows, words]` dwords.
    pub(super) words: *mut i32,
    /// `[rows]`: minus the bias of the keys times the sum of the codes.
    pub(super) starts: *mut i32,
    /// `[rows]`: scale of the query times the softmax scale.
    pub(super) factors: *mut f32,
}

impl PackedQueries {
    /// The parts of a tile of `rows` queries of `dwords` dwords each, packed at `at`.
    pub(super) fn new(at: *mut f32, dwords: usize, rows: usize) -> Self {
        let starts = at.cast::<i32>().wrapping_add(dwords * rows);
        Self { words: at.cast(), starts, factors: starts.wrapping_add(rows).cast() }
    }
}

/// Quantize one query as row `row` of `rows`.
///
/// Four codes are one dword of bytes when `words` is 1, and two dwords of 16-bit pairs, (0, 2) and (1, 3), when it is
/// 2.
///
/// # Safety
/// `to` must have room for the tile, and `isa` must be supported.
pub(super) unsafe fn pack_query(
    isa: Isa,
    query: &[f32],
    softmax_scale: f32,
    to: PackedQueries,
    row: usize,
    rows: usize,
    words: usize,
) {
    per_level!(
        isa,
        pack(query: &[f32], softmax_scale: f32, to: PackedQueries, row: usize, rows: usize, words: usize) -> ()
    )
}

/// # Safety
/// As [`pack_query`].
#[inline(always)]
unsafe fn pack(query: &[f32], softmax_scale: f32, to: PackedQueries, row: usize, rows: usize, words: usize) {
    let scale = scale_of(query);
    let mut sum = 0;
    // SAFETY: the caller's duty.
    unsafe {
        each_chunk(query, scale, |first, codes| {
            for (step, four) in codes.as_chunks::<4>().0.iter().enumerate() {
                let word = to.words.add(((first / 4 + step) * rows + row) * words);
                let [a, b, c, d] = four.map(i32::from);
                sum += a + b + c + d;
                if words == 1 {
                    word.write(i32::from_le_bytes(four.map(|code| code as u8)));
                } else {
                    word.write(a & 0xffff | c << 16);
                    word.add(1).write(b & 0xffff | d << 16);
                }
            }
        });
        to.starts.add(row).write(-BIAS * sum);
        to.factors.add(row).write(scale * softmax_scale);
    }
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
