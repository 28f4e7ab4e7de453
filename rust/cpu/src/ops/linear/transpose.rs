//! Transposes of small blocks, used to pack weights and to lay out activations.

#![allow(clippy::needless_range_loop, reason = "indices tie several arrays of registers together")]

use crate::isa::Isa;

/// Bytes of one block: 32 rows of 64 bytes.
pub(in crate::ops) const BLOCK_BYTES: usize = 32 * 64;

/// Turn 32 rows of 64 bytes, `stride` bytes apart, into 2 KiB: `[16 dwords][32 rows]`, or with `split` (2-byte
/// elements) `[32 elements][32 rows]`.
///
/// # Safety
/// `from` is good for reads of all rows, `to` for writes of [`BLOCK_BYTES`]; the processor supports `isa`.
pub(in crate::ops) unsafe fn block(isa: Isa, from: *const u8, stride: usize, to: *mut u8, split: bool) {
    // SAFETY: the caller's duty, passed on.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 => avx512_block(from, stride, to, split),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2_block(from, stride, to, split),
            _ => scalar_block(from, stride, to, split),
        }
    }
}

unsafe fn scalar_block(from: *const u8, stride: usize, to: *mut u8, split: bool) {
    let size = if split { 2 } else { 4 };
    for row in 0..32 {
        for element in 0..64 / size {
            // SAFETY: inside the block on both sides.
            unsafe {
                let source = from.add(row * stride + element * size);
                std::ptr::copy_nonoverlapping(source, to.add((element * 32 + row) * size), size);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(in crate::ops) use x86::transpose16;
#[cfg(target_arch = "x86_64")]
use x86::{avx2_block, avx512_block};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// Transpose 16 x 16 dwords.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(in crate::ops) fn transpose16(rows: [__m512i; 16]) -> [__m512i; 16] {
        let mut fours = [_mm512_setzero_si512(); 16];
        for group in 0..4 {
            let [a, b, c, d] =
                [rows[4 * group], rows[4 * group + 1], rows[4 * group + 2], rows[4 * group + 3]];
            let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            fours[4 * group] = _mm512_unpacklo_epi64(ab_low, cd_low);
            fours[4 * group + 1] = _mm512_unpackhi_epi64(ab_low, cd_low);
            fours[4 * group + 2] = _mm512_unpacklo_epi64(ab_high, cd_high);
            fours[4 * group + 3] = _mm512_unpackhi_epi64(ab_high, cd_high);
        }
        let mut out = [_mm512_setzero_si512(); 16];
        for j in 0..4 {
            let even_low = _mm512_shuffle_i32x4::<0x88>(fours[j], fours[4 + j]);
            let odd_low = _mm512_shuffle_i32x4::<0xdd>(fours[j], fours[4 + j]);
            let even_high = _mm512_shuffle_i32x4::<0x88>(fours[8 + j], fours[12 + j]);
            let odd_high = _mm512_shuffle_i32x4::<0xdd>(fours[8 + j], fours[12 + j]);
            out[j] = _mm512_shuffle_i32x4::<0x88>(even_low, even_high);
            out[8 + j] = _mm512_shuffle_i32x4::<0xdd>(even_low, even_high);
            out[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd_low, odd_high);
            out[12 + j] = _mm512_shuffle_i32x4::<0xdd>(odd_low, odd_high);
        }
        out
    }

    /// # Safety
    /// As [`super::block`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn avx512_block(from: *const u8, stride: usize, to: *mut u8, split: bool) {
        let (mut low, mut high) = ([_mm512_setzero_si512(); 16], [_mm512_setzero_si512(); 16]);
        for row in 0..16 {
            // SAFETY: rows of 64 bytes, promised by the caller.
            unsafe {
                low[row] = _mm512_loadu_si512(from.add(row * stride).cast());
                high[row] = _mm512_loadu_si512(from.add((16 + row) * stride).cast());
            }
        }
        let (low, high) = (transpose16(low), transpose16(high));
        let words: [i16; 32] = std::array::from_fn(|lane| 2 * lane as i16);
        // SAFETY: 64 bytes of a local array.
        let even = unsafe { _mm512_loadu_si512(words.as_ptr().cast()) };
        let odd = _mm512_add_epi16(even, _mm512_set1_epi16(1));
        for dword in 0..16 {
            let (mut first, mut second) = (low[dword], high[dword]);
            if split {
                let (a, b) = (first, second);
                first = _mm512_permutex2var_epi16(a, even, b);
                second = _mm512_permutex2var_epi16(a, odd, b);
            }
            // SAFETY: 2 KiB to write, promised by the caller.
            unsafe {
                _mm512_storeu_si512(to.add(dword * 128).cast(), first);
                _mm512_storeu_si512(to.add(dword * 128 + 64).cast(), second);
            }
        }
    }

    /// Transpose 8 x 8 dwords.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn transpose8(rows: [__m256i; 8]) -> [__m256i; 8] {
        let mut fours = [_mm256_setzero_si256(); 8];
        for group in 0..2 {
            let [a, b, c, d] =
                [rows[4 * group], rows[4 * group + 1], rows[4 * group + 2], rows[4 * group + 3]];
            let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
            let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
            fours[4 * group] = _mm256_unpacklo_epi64(ab_low, cd_low);
            fours[4 * group + 1] = _mm256_unpackhi_epi64(ab_low, cd_low);
            fours[4 * group + 2] = _mm256_unpacklo_epi64(ab_high, cd_high);
            fours[4 * group + 3] = _mm256_unpackhi_epi64(ab_high, cd_high);
        }
        let mut out = [_mm256_setzero_si256(); 8];
        for j in 0..4 {
            out[j] = _mm256_permute2x128_si256::<0x20>(fours[j], fours[4 + j]);
            out[4 + j] = _mm256_permute2x128_si256::<0x31>(fours[j], fours[4 + j]);
        }
        out
    }

    /// # Safety
    /// As [`super::block`].
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn avx2_block(from: *const u8, stride: usize, to: *mut u8, split: bool) {
        for (half, pair) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            // Dwords 8 * half.., rows 16 * pair.. of the block.
            let (mut low, mut high) = ([_mm256_setzero_si256(); 8], [_mm256_setzero_si256(); 8]);
            for row in 0..8 {
                // SAFETY: rows of 64 bytes, promised by the caller.
                unsafe {
                    let first = from.add((16 * pair + row) * stride + 32 * half);
                    low[row] = _mm256_loadu_si256(first.cast());
                    high[row] = _mm256_loadu_si256(first.add(8 * stride).cast());
                }
            }
            let (low, high) = (transpose8(low), transpose8(high));
            for dword in 0..8 {
                let line = (8 * half + dword) * 128;
                let (first, second, second_at) = if split {
                    let mask = _mm256_set1_epi32(0xffff);
                    let join = |a, b| _mm256_permute4x64_epi64::<0xd8>(_mm256_packus_epi32(a, b));
                    let even = join(_mm256_and_si256(low[dword], mask), _mm256_and_si256(high[dword], mask));
                    let odd = join(_mm256_srli_epi32::<16>(low[dword]), _mm256_srli_epi32::<16>(high[dword]));
                    (even, odd, line + 64 + 32 * pair)
                } else {
                    (low[dword], high[dword], line + 64 * pair + 32)
                };
                let first_at = if split { line + 32 * pair } else { line + 64 * pair };
                // SAFETY: 2 KiB to write, promised by the caller.
                unsafe {
                    _mm256_storeu_si256(to.add(first_at).cast(), first);
                    _mm256_storeu_si256(to.add(second_at).cast(), second);
                }
            }
        }
    }
}
