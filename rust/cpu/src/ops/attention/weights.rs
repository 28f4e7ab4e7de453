//! Scores of codes become weights of their values: softmax, times the scales of the values, as 16-bit integers.

use super::SPLIT;
use super::ahead::Lines;
use super::codes;
use super::kernels::{SCORE_STRIDE, lanes};
use super::products::Integers;
use super::simd::{LANES, Simd};

/// Arguments of [`Integers::weights`].
pub(super) struct Weights<'a> {
    /// Rows of scores, [`SCORE_STRIDE`] apart; key j's weight becomes the j-th word of its row.
    pub(super) scores: *mut f32,
    /// Keys of each row within the split, `begin..end`, not empty.
    pub(super) ranges: &'a [(usize, usize)],
    /// What the scores of each row are multiplied by.
    pub(super) factors: &'a [f32],
    /// Vectors of keys that some row sees; weights of a row are zero outside of its range.
    pub(super) vectors: (usize, usize),
    /// Where the scales of the values of each vector are.
    pub(super) scales: &'a [*const f32; SPLIT / LANES],
    /// Pieces to prefetch meanwhile, one beside each row, and their bytes.
    pub(super) ahead: &'a [*const u8],
    pub(super) piece_bytes: usize,
}

/// Turn scores into weights; `sums` become (max, sum) of each row and `steps` what a weight of one stands for. Rows take
/// turns in every pass, so that one row's chains hide another's.
#[inline(always)]
pub(super) unsafe fn weights<P: Integers>(args: &Weights<'_>, sums: &mut [(f32, f32)], steps: &mut [f32]) {
    let row_at = |row: usize| args.scores.wrapping_add(row * SCORE_STRIDE);
    // SAFETY: a row of scores holds a whole split, a tile whole vectors of scales; a word is written behind the floats
    // that are still to be read.
    unsafe {
        for (row, (range, (max, _))) in args.ranges.iter().zip(&mut *sums).enumerate() {
            *max = highest::<P::Float>(row_at(row), *range, args.factors[row]);
        }
        for (row, ((max, sum), step)) in sums.iter_mut().zip(&mut *steps).enumerate() {
            let weigh = Weigh::<P::Float> {
                row: row_at(row),
                factor: P::Float::splat(args.factors[row]),
                shift: P::Float::splat(*max),
                scales: args.scales,
            };
            let range = args.ranges[row];
            let lines = Lines::new(args.ahead.get(row), args.piece_bytes, (range.1 - range.0) / LANES);
            (*sum, *step) = weigh.all(range, lines);
        }
        for (row, step) in steps.iter_mut().enumerate() {
            let most = *step;
            let usable = most > codes::NOTHING;
            *step = if usable { most / codes::TOP } else { 0.0 };
            let factor = if usable { codes::TOP / most } else { 0.0 };
            round::<P>(row_at(row), args.ranges[row], args.vectors, factor);
        }
    }
}

/// Vectors that hold some of keys `begin..end`: one that holds others as well in front, whole ones, and another such.
#[inline(always)]
fn vectors((begin, end): (usize, usize)) -> (Option<usize>, std::ops::Range<usize>, Option<usize>) {
    let (first, last) = (begin / LANES, end / LANES);
    let front = (!begin.is_multiple_of(LANES) && first < last).then_some(first);
    (front, first + usize::from(front.is_some())..last, (!end.is_multiple_of(LANES)).then_some(last))
}

/// The largest of `factor` times the scores of a row.
#[inline(always)]
unsafe fn highest<S: Simd>(row: *const f32, range: (usize, usize), factor: f32) -> f32 {
    let (front, whole, back) = vectors(range);
    // SAFETY: the caller's duty.
    unsafe {
        let (factor, lowest) = (S::splat(factor), S::splat(f32::NEG_INFINITY));
        let mut most = lowest;
        if let Some(index) = front {
            let score = S::mul(S::load(row.add(index * LANES)), factor);
            most = S::max(most, S::select(lanes(index, range.0, range.1), score, lowest));
        }
        for index in whole {
            most = S::max(most, S::mul(S::load(row.add(index * LANES)), factor));
        }
        if let Some(index) = back {
            let score = S::mul(S::load(row.add(index * LANES)), factor);
            most = S::max(most, S::select(lanes(index, range.0, range.1), score, lowest));
        }
        S::maximum(most)
    }
}

/// Scores of a row on their way to probabilities times scales.
struct Weigh<'a, S: Simd> {
    row: *mut f32,
    factor: S::V,
    shift: S::V,
    scales: &'a [*const f32; SPLIT / LANES],
}

impl<S: Simd> Weigh<'_, S> {
    /// All of a row: the sum of the probabilities and the largest product, or zero.
    #[inline(always)]
    unsafe fn all(&self, range: (usize, usize), mut ahead: Lines) -> (f32, f32) {
        let (front, whole, back) = vectors(range);
        // SAFETY: the caller's duty.
        unsafe {
            let mut sums = (S::splat(0.0), S::splat(0.0));
            if let Some(index) = front {
                self.add(index, Some(lanes(index, range.0, range.1)), &mut sums);
            }
            for index in whole {
                self.add(index, None, &mut sums);
                ahead.step();
            }
            if let Some(index) = back {
                self.add(index, Some(lanes(index, range.0, range.1)), &mut sums);
            }
            (S::sum(sums.0), S::maximum(sums.1))
        }
    }

    /// One vector, of which lanes outside the mask count as zero.
    #[inline(always)]
    unsafe fn add(&self, index: usize, mask: Option<u16>, sums: &mut (S::V, S::V)) {
        // SAFETY: the caller's duty.
        unsafe {
            let at = self.row.add(index * LANES);
            let mut p = S::exp(S::sub(S::mul(S::load(at), self.factor), self.shift));
            let mut weighed = S::mul(p, S::load(self.scales[index]));
            if let Some(mask) = mask {
                p = S::select(mask, p, S::splat(0.0));
                weighed = S::select(mask, weighed, S::splat(0.0));
            }
            S::store(at, weighed);
            *sums = (S::add(sums.0, p), S::max(weighed, sums.1));
        }
    }
}

/// Round `factor` times the products of a row to 16 bits, in place; vectors that hold no key of the range become zero.
#[inline(always)]
unsafe fn round<P: Integers>(
    row: *mut f32,
    (begin, end): (usize, usize),
    vectors: (usize, usize),
    factor: f32,
) {
    // SAFETY: the caller's duty.
    unsafe {
        let words = row.cast::<i16>();
        let (factor, zero) = (P::Float::splat(factor), P::Float::splat(0.0));
        let (first, last) = (begin / LANES, end.div_ceil(LANES));
        for index in first..last {
            let p = P::Float::mul(P::Float::load(row.add(index * LANES)), factor);
            P::store_words(words.add(index * LANES), p);
        }
        for index in (vectors.0..first).chain(last..vectors.1) {
            P::store_words(words.add(index * LANES), zero);
        }
    }
}
