//! Scores of codes become weights of their values: softmax, times the scales of the values, as 16-bit integers.

use super::SPLIT;
use super::ahead::Lines;
use super::codes::{Code, step_of};
use super::kernels::{SCORE_STRIDE, lanes};
use super::products::IntegerLevel;
use super::simd::{LANES, Simd};

/// Arguments of [`IntegerLevel::weights`].
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

/// Turn scores into weights; `sums` become (max, sum) of each row, in base two, and `steps` what a weight of one stands
/// for. Rows take turns in every pass, so that one row's chains hide another's.
#[inline(always)]
pub(super) unsafe fn weights<L: IntegerLevel, C: Code>(
    args: &Weights<'_>,
    sums: &mut [(f32, f32)],
    steps: &mut [f32],
) {
    let row_at = |row: usize| args.scores.wrapping_add(row * SCORE_STRIDE);
    // SAFETY: a row of scores holds a whole split, a tile whole vectors of scales; a word is written behind the floats
    // that are still to be read.
    unsafe {
        for (row, (range, (max, _))) in args.ranges.iter().zip(&mut *sums).enumerate() {
            *max = highest::<L::Float>(row_at(row), *range) * args.factors[row];
        }
        for (row, ((max, sum), step)) in sums.iter_mut().zip(&mut *steps).enumerate() {
            let weigh = Weigh::<L::Float> {
                row: row_at(row),
                factor: L::Float::splat(args.factors[row]),
                shift: L::Float::splat(-*max),
                scales: args.scales,
            };
            let range = args.ranges[row];
            let lines = Lines::new(args.ahead.get(row), args.piece_bytes, (range.1 - range.0) / LANES);
            let total = weigh.all(range, lines);
            (*sum, *step) = (total.p, step_of::<C>(total.most, total.weighed));
        }
        for (row, step) in steps.iter().enumerate() {
            let factor = if *step > 0.0 { 1.0 / step } else { 0.0 };
            round::<L>(row_at(row), args.ranges[row], args.vectors, factor);
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

/// The largest score of a row.
#[inline(always)]
unsafe fn highest<S: Simd>(row: *const f32, range: (usize, usize)) -> f32 {
    let (front, whole, back) = vectors(range);
    // SAFETY: the caller's duty.
    unsafe {
        let lowest = S::splat(f32::NEG_INFINITY);
        let score = |index: usize| S::load(row.add(index * LANES));
        let some = |index: usize| S::select(lanes(index, range.0, range.1), score(index), lowest);
        let most = front.map_or(lowest, some);
        let most = whole.fold(most, |most, index| S::max(most, score(index)));
        S::maximum(back.map_or(most, |index| S::max(most, some(index))))
    }
}

/// Scores of a row on their way to probabilities times scales.
struct Weigh<'a, S: Simd> {
    row: *mut f32,
    factor: S::V,
    /// Minus the largest score times the factor.
    shift: S::V,
    scales: &'a [*const f32; SPLIT / LANES],
}

/// Of a row, or of each lane of it.
struct Total<V> {
    /// The sum of the probabilities.
    p: V,
    /// The sum of these times the scales of their values, and the largest one.
    weighed: V,
    most: V,
}

impl<S: Simd> Weigh<'_, S> {
    /// All of a row.
    #[inline(always)]
    unsafe fn all(&self, range: (usize, usize), mut ahead: Lines) -> Total<f32> {
        let (front, whole, back) = vectors(range);
        // SAFETY: the caller's duty.
        unsafe {
            let zero = S::splat(0.0);
            let mut total = Total { p: zero, weighed: zero, most: zero };
            if let Some(index) = front {
                self.add(index, Some(lanes(index, range.0, range.1)), &mut total);
            }
            for index in whole {
                self.add(index, None, &mut total);
                ahead.step();
            }
            if let Some(index) = back {
                self.add(index, Some(lanes(index, range.0, range.1)), &mut total);
            }
            Total { p: S::sum(total.p), weighed: S::sum(total.weighed), most: S::maximum(total.most) }
        }
    }

    /// One vector, of which lanes outside the mask count as zero.
    #[inline(always)]
    unsafe fn add(&self, index: usize, mask: Option<u16>, total: &mut Total<S::V>) {
        // SAFETY: the caller's duty.
        unsafe {
            let at = self.row.add(index * LANES);
            let mut p = S::exp2(S::fma(S::load(at), self.factor, self.shift));
            let mut weighed = S::mul(p, S::load(self.scales[index]));
            if let Some(mask) = mask {
                p = S::select(mask, p, S::splat(0.0));
                weighed = S::select(mask, weighed, S::splat(0.0));
            }
            S::store(at, weighed);
            total.p = S::add(total.p, p);
            total.weighed = S::add(total.weighed, weighed);
            total.most = S::max(weighed, total.most);
        }
    }
}

/// Round `factor` times the products of a row to 16 bits, in place; vectors that hold no key of the range become zero.
#[inline(always)]
unsafe fn round<L: IntegerLevel>(
    row: *mut f32,
    (begin, end): (usize, usize),
    vectors: (usize, usize),
    factor: f32,
) {
    // SAFETY: the caller's duty.
    unsafe {
        let words = row.cast::<i16>();
        let (factor, zero) = (L::Float::splat(factor), L::Float::splat(0.0));
        let (first, last) = (begin / LANES, end.div_ceil(LANES));
        for index in first..last {
            let p = L::Float::mul(L::Float::load(row.add(index * LANES)), factor);
            L::store_words(words.add(index * LANES), p);
        }
        for index in (vectors.0..first).chain(last..vectors.1) {
            L::store_words(words.add(index * LANES), zero);
        }
    }
}
