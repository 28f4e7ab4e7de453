//! What the kernels ask of a vector unit: sixteen f32 lanes at a time, and the element types of the cache.
//!
//! A level implements [`Simd`] with one zmm or two ymm registers; the loops in [`kernels`](super::kernels) are
//! written once on top, so that every level performs the same operations in the same order.

use super::ahead::Ahead;
use super::kernels::Scores;
use super::store;
use crate::isa::Isa;
use crate::tensor::DType;

/// Lanes of a vector.
pub(super) const LANES: usize = 16;
/// A value row may be read up to this many bytes past its end (the lanes are discarded).
pub(super) const OVERREAD_BYTES: usize = 64;
/// Most rows that a tile has on any level.
pub(super) const MAX_TILE_ROWS: usize = 12;
/// Most vectors of keys that are scored together on any level.
pub(super) const MAX_KEY_VECTORS: usize = 2;

/// Most rows of a tile that covers more than [`MAX_KEY_VECTORS`] vectors of widened keys, of which none covers more than 4.
pub(super) const WIDE_TILE_ROWS: usize = 6;

/// Arguments of [`Simd::qk`]: scores of R query rows against a group of keys.
#[derive(Clone, Copy)]
pub(super) struct QkArgs {
    /// `[dim, R]` packed queries.
    pub(super) q: *const f32,
    pub(super) dim: usize,
    /// First key of the group in `[dim, k_stride]` keys.
    pub(super) keys: *const u8,
    pub(super) k_stride: usize,
    /// What to prefetch meanwhile.
    pub(super) ahead: Option<Ahead>,
    /// `[R]` rows of scores, `SCORE_STRIDE` apart.
    pub(super) scores: *mut f32,
}

/// Arguments of [`Simd::pv`]: add probabilities times values to R rows of N vectors.
#[derive(Clone, Copy)]
pub(super) struct PvArgs {
    /// `[R]` rows of probabilities, `SCORE_STRIDE` apart, at the first key.
    pub(super) p: *const f32,
    /// Keys `begin..end` of a piece.
    pub(super) keys: (usize, usize),
    /// Value of the piece's first key, `v_stride` elements from one to the next.
    pub(super) values: *const u8,
    pub(super) v_stride: usize,
    /// What to prefetch meanwhile.
    pub(super) ahead: Option<Ahead>,
    /// `[R]` rows to add to, `out_stride` apart.
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
    /// Whether the sums start from zero and not from `out`.
    pub(super) first: bool,
}

/// An instruction level.
///
/// # Safety
/// Every function needs a processor that has the level, and pointers that are good for what its name says:
/// sixteen elements of `load` and `store`, and the shapes of [`QkArgs`] and [`PvArgs`].
pub(super) trait Simd: 'static {
    /// Sixteen f32.
    type V: Copy;
    /// Rows of a full tile.
    const TILE_ROWS: usize;
    /// Accumulators that fit the register file.
    const ACCUMULATORS: usize;

    /// Rows of a full tile over widened keys and values, at most [`MAX_TILE_ROWS`], and the vectors of keys that it covers,
    /// up to 4 of them: more than [`MAX_KEY_VECTORS`] for at most [`WIDE_TILE_ROWS`] rows.
    fn panel_tile() -> (usize, usize);

    /// How many of `vectors` vectors of keys, a power of two, `rows` rows are scored against at once.
    fn key_vectors(rows: usize, vectors: usize) -> usize {
        let most = (Self::ACCUMULATORS / rows).max(1);
        vectors.min(1 << most.ilog2())
    }

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn load_f16(from: *const u8) -> Self::V;
    unsafe fn load_bf16(from: *const u8) -> Self::V;
    /// Thirty-two bf16 in the order that is cheapest to widen.
    #[inline(always)]
    unsafe fn load_bf16_pair(from: *const u8) -> [Self::V; 2] {
        // SAFETY: the caller's duty.
        unsafe { [Self::load_bf16(from), Self::load_bf16(from.add(2 * LANES))] }
    }
    /// What [`load_bf16_pair`](Self::load_bf16_pair) gave, in order.
    #[inline(always)]
    unsafe fn bf16_pair_in_order(x: [Self::V; 2]) -> [Self::V; 2] {
        x
    }
    unsafe fn store(to: *mut f32, x: Self::V);
    unsafe fn store_f16(to: *mut u8, x: Self::V);
    unsafe fn store_bf16(to: *mut u8, x: Self::V);
    unsafe fn add(x: Self::V, y: Self::V) -> Self::V;
    unsafe fn sub(x: Self::V, y: Self::V) -> Self::V;
    unsafe fn mul(x: Self::V, y: Self::V) -> Self::V;
    unsafe fn max(x: Self::V, y: Self::V) -> Self::V;
    /// `x * y + z`, rounded once.
    unsafe fn fma(x: Self::V, y: Self::V, z: Self::V) -> Self::V;
    unsafe fn exp(x: Self::V) -> Self::V;
    unsafe fn exp2(x: Self::V) -> Self::V;
    /// Lanes of `x` whose bit is set in `mask`, the others from `y`.
    unsafe fn select(mask: u16, x: Self::V, y: Self::V) -> Self::V;
    /// Lanes i and i + 8, then + 4, + 2, + 1.
    unsafe fn sum(x: Self::V) -> f32;
    unsafe fn maximum(x: Self::V) -> f32;
    /// Lane 0.
    unsafe fn first(x: Self::V) -> f32;
    /// Lane i of vector j becomes lane j of vector i.
    unsafe fn transpose(x: [Self::V; LANES]) -> [Self::V; LANES];

    // The loops of `kernels`, compiled for this level.
    unsafe fn qk<E: Element, const R: usize, const N: usize>(args: &QkArgs);
    unsafe fn pv<E: Element, const R: usize, const N: usize>(args: &PvArgs);
    unsafe fn order<E: Element>(x: *mut f32, vectors: usize);
    unsafe fn softmax(scores: &Scores<'_>, sums: &mut [(f32, f32)]);
    unsafe fn rescale(m: f32, m_split: f32) -> (f32, f32, f32);
    unsafe fn rescale_all(m: &[f32; LANES], m_split: &[f32; LANES]) -> [[f32; LANES]; 3];
    unsafe fn scale_add(run: *mut f32, keep: f32, part: *const f32, add: f32, count: usize);
    unsafe fn divide(x: *const f32, by: f32, out: &mut [f32]);
    unsafe fn widen<E: Element>(from: *const u8, to: *mut f32, rows: usize, shape: Widen);
    unsafe fn narrow<E: Element>(from: &[f32], to: &mut [u8]);
    unsafe fn store_keys<E: Element>(group: &store::Group<'_>);
}

/// How [`Simd::widen`] walks: `vectors` vectors of each row, rows `from_stride` and `to_stride` elements apart.
#[derive(Clone, Copy)]
pub(super) struct Widen {
    pub(super) vectors: usize,
    pub(super) from_stride: usize,
    pub(super) to_stride: usize,
}

/// A type of element in memory.
///
/// # Safety
/// As [`Simd`]; sixteen elements at the address.
pub(super) trait Element: 'static {
    /// Plain bits of one element.
    type Raw: Copy;
    /// Bytes of one element.
    const BYTES: usize = size_of::<Self::Raw>();
    /// Whether the kernels prefetch: memory yes, panels in the cache no.
    const PREFETCH: bool = true;

    unsafe fn load<S: Simd>(from: *const u8) -> S::V;
    unsafe fn store<S: Simd>(to: *mut u8, x: S::V);

    /// Two vectors in an order of their own, which [`pair_in_order`](Self::pair_in_order) ends.
    #[inline(always)]
    unsafe fn load_pair<S: Simd>(from: *const u8) -> [S::V; 2] {
        // SAFETY: the caller's duty.
        unsafe { [Self::load::<S>(from), Self::load::<S>(from.add(LANES * Self::BYTES))] }
    }

    /// A pair of vectors, or of results that were made from some lane by lane, in order.
    #[inline(always)]
    unsafe fn pair_in_order<S: Simd>(x: [S::V; 2]) -> [S::V; 2] {
        x
    }

    /// N vectors, two by two with [`load_pair`](Self::load_pair).
    #[inline(always)]
    unsafe fn load_all<S: Simd, const N: usize>(from: *const u8) -> [S::V; N] {
        // SAFETY: the caller's duty.
        unsafe {
            let mut all = [S::splat(0.0); N];
            let (pairs, rest) = all.as_chunks_mut::<2>();
            let count = 2 * pairs.len();
            for (index, pair) in pairs.iter_mut().enumerate() {
                *pair = Self::load_pair::<S>(from.add(2 * index * LANES * Self::BYTES));
            }
            for one in rest {
                *one = Self::load::<S>(from.add(count * LANES * Self::BYTES));
            }
            all
        }
    }
}

/// f32 in the KV cache.
pub(super) struct F32;
/// IEEE half in the KV cache.
pub(super) struct F16;
/// bfloat16 in the KV cache.
pub(super) struct Bf16;
/// f32 in a worker's panel.
pub(super) struct Panel;

impl Element for F32 {
    type Raw = u32;
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::V {
        // SAFETY: the caller's duty.
        unsafe { S::load(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut u8, x: S::V) {
        // SAFETY: the caller's duty.
        unsafe { S::store(to.cast(), x) }
    }
}

impl Element for Panel {
    type Raw = u32;
    const PREFETCH: bool = false;
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::V {
        // SAFETY: the caller's duty.
        unsafe { S::load(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut u8, x: S::V) {
        // SAFETY: the caller's duty.
        unsafe { S::store(to.cast(), x) }
    }
}

impl Element for F16 {
    type Raw = u16;
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::V {
        // SAFETY: the caller's duty.
        unsafe { S::load_f16(from) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut u8, x: S::V) {
        // SAFETY: the caller's duty.
        unsafe { S::store_f16(to, x) }
    }
}

impl Element for Bf16 {
    type Raw = u16;
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::V {
        // SAFETY: the caller's duty.
        unsafe { S::load_bf16(from) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut u8, x: S::V) {
        // SAFETY: the caller's duty.
        unsafe { S::store_bf16(to, x) }
    }
    #[inline(always)]
    unsafe fn load_pair<S: Simd>(from: *const u8) -> [S::V; 2] {
        // SAFETY: the caller's duty.
        unsafe { S::load_bf16_pair(from) }
    }
    #[inline(always)]
    unsafe fn pair_in_order<S: Simd>(x: [S::V; 2]) -> [S::V; 2] {
        // SAFETY: the caller's duty.
        unsafe { S::bf16_pair_in_order(x) }
    }
}

/// Round `from` to `dtype` into the first bytes of `to`.
///
/// # Safety
/// The processor must have `isa`.
pub(super) unsafe fn narrow(isa: Isa, dtype: DType, from: &[f32], to: &mut [u8]) {
    assert!(to.len() >= from.len() * dtype.size(), "no room for {} elements", from.len());
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the level is the caller's duty; the room was checked above.
    unsafe {
        use super::{avx2::Avx2, avx512::Avx512};
        match (isa, dtype) {
            (Isa::Scalar, _) => {}
            (Isa::Avx2, DType::F32) => return Avx2::narrow::<F32>(from, to),
            (Isa::Avx2, DType::F16) => return Avx2::narrow::<F16>(from, to),
            (Isa::Avx2, DType::Bf16) => return Avx2::narrow::<Bf16>(from, to),
            (_, DType::F32) => return Avx512::narrow::<F32>(from, to),
            (_, DType::F16) => return Avx512::narrow::<F16>(from, to),
            (_, DType::Bf16) => return Avx512::narrow::<Bf16>(from, to),
        }
    }
    let _ = isa;
    for (index, value) in from.iter().enumerate() {
        dtype.set(to, index, *value);
    }
}
