//! `out = x @ weight.T + bias` for integer weights, with activations made int8 on the way.
//!
//! The numbers: activations become int8 per span of `min(64, group_size)` inputs (see [`quantizer`]). For one output,
//! the products of a span are summed exactly in int32, and `acc = fma(f32(sum - zero * sum(q)), x_scale * scale, acc)`
//! over ascending spans, from 0; the bias comes last. Where four groups share a scale, a span is all of them, and `sum` adds
//! the products of each group times its multiple, an integer too. Neither the number of rows, of workers, the instruction level nor
//! the tile shapes change a bit of any output. `integer_matmul` in `python/pyrite/quant/reference.py` is the same.
//!
//! The forms: one row or two stream the weights, several panels side by side, bound by memory; more rows take the weights
//! a panel at a time, each panel from memory for the first tile of tokens and from the cache for the others. Where VPDPBUSD
//! is there, many rows are cut into [blocks], each of which meets all panels while it lies in the second cache; of 4-bit
//! codes in groups of 32, 9 to 24 rows make one. A norm of the input, and a residual or a gated activation of the output,
//! can ride along, and the latter can become the activations of the next matmul at once: they change no bit either.

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod block;
mod blocks;
mod call;
#[cfg(target_arch = "x86_64")]
mod kernel;
mod packed;
mod quantizer;
mod shared;
#[cfg(target_arch = "x86_64")]
mod shared_apart;
#[cfg(target_arch = "x86_64")]
mod shared_block;
#[cfg(target_arch = "x86_64")]
mod shared_kernel;
mod tile;
mod tuning;
mod wide;

pub(crate) use packed::LAYOUT_VERSION;
pub use packed::{PanelQuantizer, QuantizedMatrix};

/// Bytes in which each worker makes panels of matrices with at most `max_cols` columns wide, two of the largest at least;
/// None when they overflow.
pub(in crate::ops) fn wide_bytes(max_cols: usize) -> Option<usize> {
    let largest = QuantFormat::new(4, 32, false);
    let of_group = wide::wide_panel_bytes(largest, 1);
    Some(max_cols.div_ceil(32).checked_mul(2 * of_group)?.max(call::WIDE_BYTES))
}

use activations::{LINE, Tiles};
use call::{Call, Next};

use crate::isa::Isa;
use crate::ops::linear::LinearScratch;
use crate::ops::norm::{Norm, rms_norm};
use crate::pool::Worker;
use crate::quant::QuantFormat;
use crate::tensor::{Rows, RowsMut};

/// Work items per worker that are wanted when activations are quantized.
const ROW_ITEMS_PER_WORKER: usize = 8;

/// What becomes of the products `y` of a matmul, bias included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// `out = y`.
    Store,
    /// `out = out + y`.
    Add,
    /// `out = silu(g) * u`, where g is the first half of y's columns and u the second.
    Glu,
}

/// A matmul and what rides along.
#[derive(Clone, Copy)]
pub struct QLinear<'a> {
    /// `[M, cols]`.
    pub x: Rows<'a>,
    /// Applied to each row of x first.
    pub norm: Option<Norm<'a>>,
    /// `[rows, cols]`.
    pub weight: &'a QuantizedMatrix,
    /// `[rows]`.
    pub bias: Option<&'a [f32]>,
    /// What to do with the products.
    pub then: Then,
    /// `[M, rows]`, or `[M, rows / 2]` for [`Then::Glu`].
    pub out: RowsMut<'a>,
    /// The weight of the matmul that comes next with the same scratch, if it reads `out` without a norm, and nobody else
    /// does. Then `out` may be left as it was: of many rows, a [`Then::Glu`] leaves the activations of the next matmul in the
    /// scratch.
    pub next: Option<&'a QuantizedMatrix>,
    /// The weight of the matmul whose [`next`](Self::next) this one is.
    pub before: Option<&'a QuantizedMatrix>,
}

/// `out[m, n] = sum over k of weight[n, k] * x[m, k], + bias[n]`, by the arithmetic that the module describes.
///
/// As [`qlinear_fused`] with nothing that rides along.
///
/// # Panics
/// Those of [`qlinear_fused`].
pub fn qlinear(
    worker: &Worker<'_>,
    isa: Isa,
    x: Rows<'_>,
    weight: &QuantizedMatrix,
    bias: Option<&[f32]>,
    out: RowsMut<'_>,
    scratch: &LinearScratch,
) {
    let what = QLinear { x, norm: None, weight, bias, then: Then::Store, out, next: None, before: None };
    qlinear_fused(worker, isa, &what, scratch, || {});
}

/// Run a matmul and what rides along.
///
/// All workers of a pool call it together with the same arguments; it ends in a barrier, before which each worker calls
/// `at_end` once. What is between the rows of `out` is not touched. A row of `x` that is not finite makes its outputs NaN.
/// A scratch serves one pool: no second call may use it, nor anybody write `x` or touch `out`, before all workers return.
///
/// # Panics
/// When shapes disagree, [`QuantizedMatrix::has_whole_halves`] says no to a [`Then::Glu`], the scratch is too small, or the processor does
/// not support `isa`.
pub fn qlinear_fused(
    worker: &Worker<'_>,
    isa: Isa,
    what: &QLinear<'_>,
    scratch: &LinearScratch,
    at_end: impl FnOnce(),
) {
    let QLinear { x, norm, weight, bias, then, out, next, before } = *what;
    let halves = if then == Then::Glu { 2 } else { 1 };
    assert!(isa.is_supported(), "the processor does not support this level");
    assert_eq!(x.width(), weight.cols(), "columns of x and weight");
    assert_eq!(out.width() * halves, weight.rows(), "columns of out, rows of weight");
    assert_eq!(x.rows(), out.rows(), "rows of x and out");
    assert!(bias.is_none_or(|bias| bias.len() == weight.rows()), "one bias per row of weight");
    assert!(
        then != Then::Glu || QuantizedMatrix::has_whole_halves(weight.rows()),
        "a half is not whole panels"
    );
    assert!(worker.count() <= scratch.num_workers(), "scratch has too few workers");
    if x.rows() == 0 {
        return;
    }
    let tiles_of = |weight: &QuantizedMatrix| Tiles::new(isa, x.rows(), weight.cols(), weight.format());
    let (tiles, place) = (tiles_of(weight), |behind: Tiles, tiles: Tiles| {
        let (first, bytes) = scratch.activations();
        let offset = behind.bytes().next_multiple_of(LINE);
        assert!(offset + tiles.bytes() <= bytes, "scratch is too small");
        first.wrapping_add(offset)
    });
    let activations = match before {
        Some(before) if hands_over(tiles_of(before), weight) => {
            assert!(norm.is_none() && before.rows() == 2 * weight.cols(), "activations are handed over");
            place(tiles_of(before), tiles)
        }
        _ => lay_out(worker, isa, x, norm, tiles, scratch),
    };
    let next = next.filter(|next| then == Then::Glu && hands_over(tiles, next)).map(|next| {
        assert_eq!(next.cols(), out.width(), "columns of out and of the next weight");
        Next { tiles: tiles_of(next), to: place(tiles, tiles_of(next)) }
    });
    let wide = scratch.panels(worker.index());
    Call { isa, weight, bias, then, out, tiles, activations, wide, next }.run(worker, at_end);
}

/// Whether so many tokens of a matmul with a gated activation leave the activations of the next matmul, by such a weight:
/// spans of its inputs are whole panels of outputs.
fn hands_over(tiles: Tiles, next: &QuantizedMatrix) -> bool {
    tiles.blocks && next.format().is_shared()
}

/// Ask for the first weights that this worker will read in a call with so many rows of x, so that they are on their way
/// while it waits for others.
pub fn prefetch_start(worker: &Worker<'_>, isa: Isa, weight: &QuantizedMatrix, then: Then, rows: usize) {
    if rows > 0 {
        call::prefetch_start(worker, isa, weight, then, rows);
    }
}

/// Normalize and quantize the activations; returns where they are. A single row is done by every worker for itself, which
/// is quicker than to wait for each other.
fn lay_out(
    worker: &Worker<'_>,
    isa: Isa,
    x: Rows<'_>,
    norm: Option<Norm<'_>>,
    tiles: Tiles,
    scratch: &LinearScratch,
) -> *const u8 {
    let (normed, own, own_bytes) = scratch.own(worker.index());
    assert!(x.width() <= scratch.max_cols(), "scratch has too few columns");
    let store = |row: usize, to: *mut u8| {
        let mut from = x.row(row);
        if let Some(norm) = norm {
            // SAFETY: this worker's own part, of which nobody else holds a reference.
            let to = unsafe { std::slice::from_raw_parts_mut(normed, x.width()) };
            rms_norm(isa, from, norm, to);
            from = to;
        }
        // SAFETY: asserted to fit; each token has its own bytes; the level was asserted.
        unsafe { tiles.store(isa, from, row, to) };
    };
    if x.rows() == 1 {
        assert!(tiles.bytes() <= own_bytes, "scratch has too few columns");
        store(0, own);
        return own;
    }
    let (to, bytes) = scratch.activations();
    assert!(tiles.bytes() <= bytes, "scratch is too small");
    // A few rows at a time where there are many: to take an item costs as much as a short row.
    let at_once = (x.rows() / (ROW_ITEMS_PER_WORKER * worker.count())).max(1);
    worker.share(x.rows().div_ceil(at_once), |item| {
        for row in item * at_once..x.rows().min((item + 1) * at_once) {
            store(row, to);
        }
    });
    to
}
