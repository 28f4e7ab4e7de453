//! Keys and values as bf16, two of them in a dword, for VPDPBF16PS.
//!
//! In a tile and head: the keys as `[head_dim / 2, tile, 2]`, then the values as `[tile / 2, head_dim, 2]`;
//! `head_dim` is even. A dword of the keys meets two elements of the query, a dword of the values two probabilities,
//! all rounded to bf16.
//!
//! Everything here treats subnormal numbers as zero, as the instruction does.

use super::cache::TileHead;
use crate::isa::Isa;

/// `x` with a subnormal number replaced by zero.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

/// The bf16 nearest to `x`, ties to even.
pub(super) fn round(x: f32) -> f32 {
    half::bf16::from_f32(flushed(x)).to_f32()
}

/// `sum` plus the products of two pairs of bf16, the second first: VPDPBF16PS.
pub(super) fn dot(sum: f32, x: [f32; 2], y: [f32; 2]) -> f32 {
    let [x, y] = [x, y].map(|pair| pair.map(flushed));
    let sum = flushed(x[1].mul_add(y[1], flushed(sum)));
    flushed(x[0].mul_add(y[0], sum))
}

/// Place of element `d` of the key of token `offset` in its tile, in elements.
pub(super) fn key_at(tile: usize, offset: usize, d: usize) -> usize {
    2 * (d / 2 * tile + offset) + d % 2
}

/// The same of its value.
pub(super) fn value_at(head_dim: usize, offset: usize, d: usize) -> usize {
    2 * (offset / 2 * head_dim + d) + offset % 2
}

/// Round and store the keys and values of a run of tokens, one head each, in slots from `offset` on.
///
/// # Safety
/// The slots must lie inside the tile, nobody else may touch them, and `isa` must be supported.
pub(super) unsafe fn store<'a>(
    isa: Isa,
    tile: usize,
    at: TileHead,
    offset: usize,
    k: impl ExactSizeIterator<Item = &'a [f32]> + Clone,
    v: impl ExactSizeIterator<Item = &'a [f32]> + Clone,
) {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512Bf16 {
        // SAFETY: the caller's duty.
        unsafe {
            x86::store_keys(tile, at.keys, offset, k);
            x86::store_values(at.values, offset, v);
        }
        return;
    }
    let _ = isa;
    let bits = |x: f32| half::bf16::from_f32(round(x)).to_bits();
    for ((k, v), offset) in k.zip(v).zip(offset..) {
        for (d, (key, value)) in k.iter().zip(v).enumerate() {
            // SAFETY: elements of the tokens' slots in this tile and head.
            unsafe {
                at.keys.cast::<u16>().add(key_at(tile, offset, d)).write(bits(*key));
                at.values.cast::<u16>().add(value_at(v.len(), offset, d)).write(bits(*value));
            }
        }
    }
}

/// Round `factor` times the queries of a tile to `[head_dim / 2, rows, 2]`, and let their sums start from zero.
///
/// # Safety
/// The processor must have BF16, and `to` room for the tile.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn pack_queries(queries: &[&[f32]], factor: f32, to: super::codes::PackedQueries) {
    // SAFETY: the caller's duty.
    unsafe {
        std::slice::from_raw_parts_mut(to.starts, queries.len()).fill(0);
        x86::pack(queries, factor, to.words);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::words::{self, Words};

    /// Rounded to bf16.
    struct Bf16;

    impl Words for Bf16 {
        #[inline(always)]
        unsafe fn of(low: __m512, high: __m512) -> __m512i {
            // SAFETY: the level is the caller's duty; both types are 64 bytes of plain numbers.
            unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) unsafe fn store_keys<'a>(
        tile: usize,
        to: *mut u8,
        offset: usize,
        keys: impl ExactSizeIterator<Item = &'a [f32]>,
    ) {
        // SAFETY: the caller's duty.
        unsafe { words::store_keys::<Bf16>(tile, to, offset, keys.map(|key| (key, 1.0))) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) unsafe fn store_values<'a>(
        to: *mut u8,
        offset: usize,
        values: impl ExactSizeIterator<Item = &'a [f32]>,
    ) {
        // SAFETY: the caller's duty.
        unsafe { words::store_values::<Bf16>(to, offset, values.map(|value| (value, 1.0))) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) unsafe fn pack(queries: &[&[f32]], factor: f32, to: *mut i32) {
        // SAFETY: the caller's duty.
        unsafe { words::pack::<Bf16>(queries, |_| factor, to) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dot_product_adds_the_second_product_first_and_flushes() {
        let small = f32::MIN_POSITIVE / 2.0;
        assert_eq!(dot(1.0, [1.0, -1.0], [1e-9, 1.0]), 1e-9);
        assert_eq!(dot(small, [small, 0.0], [1e30, 0.0]), 0.0);
        assert_eq!(dot(0.0, [f32::MIN_POSITIVE, 0.0], [0.5, 0.0]), 0.0);
        assert_eq!(round(small), 0.0);
        assert_eq!(round(1.0 + 1.0 / 256.0), 1.0);
    }
}
