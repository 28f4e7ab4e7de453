//! `out = x @ weight.T + bias` for f32, f16 and bf16 weights with f32 activations.
//!
//! The numbers: columns are cut into spans of [`SPAN`]. For one output, a span is one chain of f32 fused
//! multiply-adds from 0 over ascending columns, `acc = fma(w, x, acc)`; spans are added ascending in f32, and the
//! bias after the last one. At [`Isa::Avx512Bf16`] with bf16 weights the chain is VPDPBF16PS over ascending pairs
//! of columns, with activations rounded to bf16. Neither the number of rows, of workers, nor the tile shapes
//! change a bit of any output, and the levels below `Avx512Bf16` agree with each other bit for bit.
//!
//! The forms: one row streams the weights, bound by memory; a few rows share one pass over the weights; many
//! rows are split over the workers and reuse each span of a group of panels for all their tiles of tokens, bound by
//! arithmetic; weights of 16 bits are made f32 once for all of them. Sums wait in `out` between spans.

mod arrange;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod call;
mod packed;
mod tile;
pub(in crate::ops) mod transpose;
mod wide;

pub(crate) use packed::LAYOUT_VERSION;
pub use packed::PackedMatrix;

use arrange::{Tiles, arrange};
use call::{Call, Split, prefetch_start};
use tile::{Chain, SPAN};

use crate::error::CpuError;
use crate::isa::Isa;
use crate::pool::Worker;
use crate::tensor::{AlignedBytes, DType, Rows, RowsMut};

/// Memory that [`linear`] and [`qlinear`](super::qlinear::qlinear) work in: activations in tile order, and per worker one
/// row of them and some panels of weights.
pub struct LinearScratch {
    activations: AlignedBytes,
    own: AlignedBytes,
    panels: AlignedBytes,
    max_cols: usize,
    num_workers: usize,
}

impl LinearScratch {
    /// Scratch for calls with at most `max_rows` rows and `max_cols` columns on at most `num_workers` workers.
    ///
    /// # Errors
    /// [`CpuError::OutOfMemory`] when the system has no such block, or a size overflows.
    pub fn new(max_rows: usize, max_cols: usize, num_workers: usize) -> Result<Self, CpuError> {
        let refuse = || CpuError::OutOfMemory { needed_bytes: usize::MAX };
        let words = max_cols.checked_next_multiple_of(64).ok_or_else(refuse)?;
        let bytes = words.checked_mul(4).and_then(|row| row.checked_mul(max_rows)).ok_or_else(refuse)?;
        let all_own = words.checked_mul(8).and_then(|own| own.checked_mul(num_workers)).ok_or_else(refuse)?;
        let wide = super::qlinear::wide_bytes(max_cols).map(|bytes| bytes.max(call::WIDE_BYTES));
        let panels = wide.and_then(|bytes| bytes.checked_mul(num_workers));
        let (activations, own) = (AlignedBytes::zeroed(bytes)?, AlignedBytes::zeroed(all_own)?);
        let panels = AlignedBytes::zeroed(panels.ok_or_else(refuse)?)?;
        Ok(Self { activations, own, panels, max_cols: words, num_workers })
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        self.activations.len() + self.own.len() + self.panels.len()
    }

    /// Workers that it has room for.
    pub(in crate::ops) fn num_workers(&self) -> usize {
        self.num_workers
    }

    /// Where activations of all rows go, and bytes there.
    pub(in crate::ops) fn activations(&self) -> (*mut u8, usize) {
        (self.activations.as_ptr(), self.activations.len())
    }

    /// Most columns, rounded up to 64.
    pub(in crate::ops) fn max_cols(&self) -> usize {
        self.max_cols
    }

    /// Where one worker makes weights wide: [`WIDE_BYTES`](call::WIDE_BYTES), and room for panels of integers as
    /// [`wide_bytes`](super::qlinear::wide_bytes) has it.
    pub(in crate::ops) fn panels(&self, worker: usize) -> *mut u8 {
        self.panels.as_ptr().wrapping_add(worker * (self.panels.len() / self.num_workers))
    }

    /// The part of one worker: a row of f32, and where a row in another order goes, with the bytes there.
    pub(in crate::ops) fn own(&self, worker: usize) -> (*mut f32, *mut u8, usize) {
        let half = 4 * self.max_cols;
        // SAFETY: inside the buffer for a worker in range, which the ops assert.
        let first = unsafe { self.own.as_ptr().add(worker * 2 * half) };
        (first.cast(), first.wrapping_add(half), half)
    }
}

/// `out[m, n] = sum over k of weight[n, k] * x[m, k], + bias[n]`, in the order that the module describes.
///
/// All workers of a pool call it together with the same arguments; it ends in a barrier. `x` is `[M, cols]`,
/// `out` `[M, rows]` and overwritten (what is between its rows is not touched), `bias` `[rows]`. A scratch
/// serves one pool: no second call may use it, nor anybody write `x` or touch `out`, before all workers return.
///
/// # Panics
/// When shapes disagree, the scratch is too small, or the processor does not support `isa`.
pub fn linear(
    worker: &Worker<'_>,
    isa: Isa,
    x: Rows<'_>,
    weight: &PackedMatrix,
    bias: Option<&[f32]>,
    out: RowsMut<'_>,
    scratch: &LinearScratch,
) {
    assert!(isa.is_supported(), "the processor does not support this level");
    assert_eq!(x.width(), weight.cols(), "columns of x and weight");
    assert!(weight.cols() > 0, "a weight without columns");
    assert_eq!(out.width(), weight.rows(), "columns of out, rows of weight");
    assert_eq!(x.rows(), out.rows(), "rows of x and out");
    assert!(bias.is_none_or(|bias| bias.len() == weight.rows()), "one bias per row of weight");
    assert!(worker.count() <= scratch.num_workers, "scratch has too few workers");
    if x.rows() == 0 {
        return;
    }
    let is_dot = isa == Isa::Avx512Bf16 && weight.dtype() == DType::Bf16;
    let split = Split::new(isa, worker.count(), x.rows(), weight, !is_dot);
    let chain = match weight.dtype() {
        _ if split.kept => Chain::F32,
        DType::F32 => Chain::F32,
        DType::F16 => Chain::F16,
        DType::Bf16 if is_dot => Chain::Dot,
        DType::Bf16 => Chain::Bf16,
    };
    prefetch_start(worker, weight, split);
    let tiles = Tiles::new(isa, chain, x.rows(), weight.cols(), split.parts);
    let activations = lay_out(worker, isa, chain, x, tiles, scratch);
    let wide = scratch.panels(worker.index()).cast();
    let call = Call { isa, chain, weight, bias, out, tiles, activations, split, wide };
    call.run(worker);
}

/// Bring the activations into tile order; returns where they are.
fn lay_out(
    worker: &Worker<'_>,
    isa: Isa,
    chain: Chain,
    x: Rows<'_>,
    tiles: Tiles,
    scratch: &LinearScratch,
) -> *const u8 {
    let cols = x.width();
    if x.rows() == 1 && chain != Chain::Dot {
        return x.as_ptr().cast();
    }
    let spans = cols.div_ceil(SPAN);
    if x.rows() == 1 {
        let (_, to, bytes) = scratch.own(worker.index());
        assert!(2 * cols.next_multiple_of(64) <= bytes, "scratch has too few columns");
        for span in 0..spans {
            // SAFETY: asserted to fit this worker's own part.
            unsafe {
                arrange(isa, chain, x, (0, 1), span * SPAN, to.add(tiles.offset(chain, 0, span * SPAN)))
            };
        }
        return to;
    }
    assert!(4 * x.rows() * cols.next_multiple_of(2) <= scratch.activations.len(), "scratch is too small");
    let to = scratch.activations.as_ptr();
    worker.share(tiles.count * spans, |item| {
        let (tile, col) = (item / spans, item % spans * SPAN);
        // SAFETY: asserted to fit; each item has its own bytes.
        unsafe { arrange(isa, chain, x, tiles.range(tile), col, to.add(tiles.offset(chain, tile, col))) };
    });
    to
}
