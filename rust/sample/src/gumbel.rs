//! The draw: the survivor with the largest `logit / temperature + g`, `g` a standard Gumbel number of its own.
//!
//! That token is distributed as softmax over the survivors (the Gumbel-max trick). `g` is a pure function of (seed,
//! stream, position, id), so adding or removing a token leaves the others' numbers alone and no state is carried on.
//!
//! Ids whose best possible `g` cannot reach the leader are skipped. The skips are exact: `g(bits)` is at most
//! [`bound`]`(bits)`, f64 addition is monotone, and only sums strictly below the leader are dropped.

use crate::candidates::Candidates;
use crate::error::SampleError;
use crate::key;
use crate::philox::{WIDTH, blocks, philox4x32_10};
use crate::row::Row;
use crate::temperature::Temperature;
use std::f64::consts::LN_2;

/// Ids that one call of the wide generator serves.
const GROUP: usize = 4 * WIDTH;
/// No `g` exceeds this: the bound of the largest bits.
const LARGEST: f64 = 33.0 * LN_2;
/// More than `LARGEST` less the smallest `g` (-ln(33 ln 2) = -3.13): tokens further below the top than this cannot win.
const REACH: f64 = 26.1;

/// Where a draw takes its random numbers from.
///
/// Philox4x32-10 with key = seed (low word first) and counter = (id / 4, position, stream low, stream high); the
/// token takes word id % 4 of its block.
#[derive(Clone, Copy, Debug)]
pub struct Noise {
    key: [u32; 2],
    rest: [u32; 3],
}

impl Noise {
    /// The numbers of one position of one stream.
    ///
    /// # Errors
    /// [`SampleError::OutOfRange`] for a position of 2^32 or more.
    pub fn new(seed: u64, stream: u64, position: u64) -> Result<Self, SampleError> {
        let position = u32::try_from(position).map_err(|_| SampleError::OutOfRange {
            field: "position",
            got: position.to_string(),
            expected: "less than 2^32",
        })?;
        let key = [seed as u32, (seed >> 32) as u32];
        Ok(Self { key, rest: [position, stream as u32, (stream >> 32) as u32] })
    }

    /// The 32 random bits of a token.
    pub fn bits(&self, token_id: u32) -> u32 {
        let [position, low, high] = self.rest;
        philox4x32_10([token_id / 4, position, low, high], self.key)[token_id as usize % 4]
    }
}

/// A standard Gumbel number from 32 random bits: `-ln(-ln u)` with `u = (bits + 1/2) / 2^32`, so 0 < u < 1.
///
/// It lies in [-3.135, 22.88]. `u` is exact in f64; the logarithms are the platform's.
pub fn gumbel(bits: u32) -> f64 {
    const SCALE: f64 = 1.0 / 4_294_967_296.0;
    -(-((f64::from(bits) + 0.5) * SCALE).ln()).ln()
}

/// A number that [`gumbel`]`(bits)` does not exceed, without logarithms.
///
/// `-ln u >= 1 - u` gives `g <= -ln(1 - u)`, and `1 - u = (!bits + 1/2) / 2^32 >= 2^-(zeros + 1)` where `zeros` counts
/// the leading zeros of `!bits`.
#[inline(always)]
pub fn bound(bits: u32) -> f64 {
    f64::from((!bits).leading_zeros() + 1) * LN_2
}

/// The best token so far.
#[derive(Clone, Copy)]
struct Leader {
    score: f64,
    id: u32,
}

impl Leader {
    const NONE: Self = Self { score: f64::NEG_INFINITY, id: u32::MAX };

    /// Let a token with scaled logit `x` compete.
    #[inline(always)]
    fn offer(&mut self, id: u32, x: f64, bits: u32) {
        if x + bound(bits) < self.score {
            return;
        }
        let score = x + gumbel(bits);
        if score > self.score || (score == self.score && id < self.id) {
            *self = Self { score, id };
        }
    }
}

/// Draw one of the candidates.
pub(crate) fn draw(candidates: &Candidates<'_>, noise: Noise) -> u32 {
    if !candidates.listed {
        return draw_row(candidates.row, candidates.temperature, noise);
    }
    let mut leader = Leader::NONE;
    for &key in candidates.keys.iter() {
        let id = key::token_id(key);
        let x = candidates.temperature.scale(key::logit(key));
        if x + LARGEST >= leader.score {
            leader.offer(id, x, noise.bits(id));
        }
    }
    leader.id
}

/// Draw from a whole row with the widest vectors there are; integers only, so every level gives the same token.
fn draw_row(row: Row<'_>, temperature: Temperature, noise: Noise) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512dq") {
            // SAFETY: the processor and the system support AVX-512 F and DQ, as was just asked.
            return unsafe { draw_row_avx512(row, temperature, noise) };
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor and the system support AVX2, as was just asked.
            return unsafe { draw_row_avx2(row, temperature, noise) };
        }
    }
    draw_row_any(row, temperature, noise)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
fn draw_row_avx512(row: Row<'_>, temperature: Temperature, noise: Noise) -> u32 {
    draw_row_any(row, temperature, noise)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn draw_row_avx2(row: Row<'_>, temperature: Temperature, noise: Noise) -> u32 {
    draw_row_any(row, temperature, noise)
}

#[inline(always)]
fn draw_row_any(row: Row<'_>, temperature: Temperature, noise: Noise) -> u32 {
    let mut leader = Leader::NONE;
    // The favourite first: a strong leader rules most of the others out unseen.
    let favourite = row.argmax();
    leader.offer(favourite, temperature.scale(row.max), noise.bits(favourite));
    let cutoff = temperature.cutoff(row.max, REACH);
    for (group, logits) in row.logits.chunks(GROUP).enumerate() {
        let mut top = f32::NEG_INFINITY;
        for &logit in logits {
            top = if logit > top { logit } else { top };
        }
        if top < cutoff || temperature.scale(top) + LARGEST < leader.score {
            continue;
        }
        let first = group * GROUP;
        let words = blocks((first / 4) as u32, noise.rest, noise.key);
        let mut largest = [0u32; WIDTH];
        for lane in &words {
            for i in 0..WIDTH {
                largest[i] = if lane[i] > largest[i] { lane[i] } else { largest[i] };
            }
        }
        let largest = largest.into_iter().fold(0, u32::max);
        if temperature.scale(top) + bound(largest) < leader.score {
            continue;
        }
        for (i, &logit) in logits.iter().enumerate() {
            if logit >= cutoff {
                leader.offer((first + i) as u32, temperature.scale(logit), words[i % 4][i / 4]);
            }
        }
    }
    leader.id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_within_the_stated_bounds() {
        assert!(gumbel(0) > -3.135 && gumbel(u32::MAX) < 22.88);
        assert!(LARGEST - gumbel(0) < REACH - 0.05);
        for zeros in 0..=32u32 {
            // The largest bits of each class of leading zeros; g rises with the bits.
            let most = if zeros == 32 { u32::MAX } else { !(1u32 << (31 - zeros)) };
            assert_eq!((!most).leading_zeros(), zeros);
            assert!(gumbel(most) < bound(most), "{zeros} zeros: {} {}", gumbel(most), bound(most));
            assert!(bound(most) <= LARGEST);
        }
    }

    #[test]
    fn the_mean_is_eulers_constant_and_the_variance_pi_squared_over_six() {
        let noise = Noise::new(1, 2, 3).unwrap();
        let n = 1_000_000u32;
        let (mut sum, mut squares) = (0.0, 0.0);
        for id in 0..n {
            let g = gumbel(noise.bits(id));
            sum += g;
            squares += g * g;
        }
        let mean = sum / f64::from(n);
        let variance = squares / f64::from(n) - mean * mean;
        assert!((mean - 0.577_215_66).abs() < 0.005, "{mean}");
        assert!((variance - 1.644_934).abs() < 0.02, "{variance}");
    }

    #[test]
    fn a_position_beyond_32_bits_is_refused() {
        assert!(Noise::new(0, 0, u64::from(u32::MAX)).is_ok());
        assert!(matches!(Noise::new(0, 0, 1 << 32), Err(SampleError::OutOfRange { field: "position", .. })));
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn every_level_draws_the_same_token() {
        let logits: Vec<f32> =
            (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 4e6).collect();
        let row = Row::new(&logits, 5000).unwrap();
        for position in 0..500 {
            let noise = Noise::new(9, 0, position).unwrap();
            let expected = draw_row_any(row, Temperature(1.0), noise);
            assert_eq!(draw_row(row, Temperature(1.0), noise), expected);
            if std::arch::is_x86_feature_detected!("avx2") {
                // SAFETY: AVX2 is there, as was just asked.
                assert_eq!(unsafe { draw_row_avx2(row, Temperature(1.0), noise) }, expected);
            }
        }
    }
}
