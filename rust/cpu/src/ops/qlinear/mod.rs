//! `out = x @ weight.T + bias` for integer weights, with activations made int8 on the way.
//!
//! The numbers: activations become int8 per span of `min(64, group_size)` inputs (see [`activations`]). For one output,
//! the products of a span are summed exactly in int32, and `acc = fma(f32(sum - zero * sum(q)), x_scale * scale, acc)`
//! over ascending spans, from 0; the bias comes last. Neither the number of rows, of workers, the instruction level nor
//! the tile shapes change a bit of any output. `integer_matmul` in `python/pyrite/quant/reference.py` is the same.
//!
//! The forms: one row streams the weights, bound by memory; more rows take the weights a panel at a time, each panel
//! from memory for the first tile of tokens and from the cache for the others.

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod kernel;
mod packed;
mod tile;

pub use packed::{PanelQuantizer, QuantizedMatrix};

use activations::Tiles;
use packed::PANEL;
use tile::Tile;

use crate::isa::Isa;
use crate::ops::linear::LinearScratch;
use crate::pool::Worker;
use crate::tensor::{Rows, RowsMut};

/// Bytes ahead of the reads at which codes are prefetched.
const AHEAD: usize = 8192;
/// Bytes of weights that one item streams at least, where every worker has several items.
const ITEM_BYTES: usize = 64 << 10;
/// Work items per worker that are wanted.
const ITEMS_PER_WORKER: usize = 4;

/// `out[m, n] = sum over k of weight[n, k] * x[m, k], + bias[n]`, by the arithmetic that the module describes.
///
/// All workers of a pool call it together with the same arguments; it ends in a barrier. `x` is `[M, cols]`,
/// `out` `[M, rows]` and overwritten (what is between its rows is not touched), `bias` `[rows]`. A row of `x` that is
/// not finite makes its outputs NaN. A scratch serves one pool: no second call may use it, nor anybody write `x` or touch
/// `out`, before all workers return.
///
/// # Panics
/// When shapes disagree, the scratch is too small, or the processor does not support `isa`.
pub fn qlinear(
    worker: &Worker<'_>,
    isa: Isa,
    x: Rows<'_>,
    weight: &QuantizedMatrix,
    bias: Option<&[f32]>,
    out: RowsMut<'_>,
    scratch: &LinearScratch,
) {
    assert!(isa.is_supported(), "the processor does not support this level");
    assert_eq!(x.width(), weight.cols(), "columns of x and weight");
    assert_eq!(out.width(), weight.rows(), "columns of out, rows of weight");
    assert_eq!(x.rows(), out.rows(), "rows of x and out");
    assert!(bias.is_none_or(|bias| bias.len() == weight.rows()), "one bias per row of weight");
    assert!(worker.count() <= scratch.num_workers(), "scratch has too few workers");
    if x.rows() == 0 {
        return;
    }
    let tiles = Tiles::new(isa, x.rows(), weight.cols(), weight.format().span());
    let activations = lay_out(worker, isa, x, tiles, scratch);
    let call = Call { isa, weight, bias, out, tiles, activations };
    call.run(worker);
}

/// Quantize the activations; returns where their records are. A single row is quantized by every worker for itself,
/// which is quicker than to wait for each other.
fn lay_out(worker: &Worker<'_>, isa: Isa, x: Rows<'_>, tiles: Tiles, scratch: &LinearScratch) -> *const u8 {
    if x.rows() == 1 {
        assert!(tiles.token_bytes() <= scratch.own_bytes(), "scratch has too few columns");
        let to = scratch.own(worker.index());
        for span in 0..tiles.spans {
            // SAFETY: asserted to fit this worker's own part; the level was asserted.
            unsafe { tiles.store(isa, x, 0, span, to) };
        }
        return to;
    }
    let (to, bytes) = scratch.activations();
    assert!(x.rows() * tiles.token_bytes() <= bytes, "scratch is too small");
    worker.share(tiles.count, |tile| {
        for span in 0..tiles.spans {
            // SAFETY: asserted to fit; each item has its own bytes; the level was asserted.
            unsafe { tiles.store(isa, x, tile, span, to) };
        }
    });
    to
}

/// What all items of one call share.
struct Call<'a> {
    isa: Isa,
    weight: &'a QuantizedMatrix,
    bias: Option<&'a [f32]>,
    out: RowsMut<'a>,
    tiles: Tiles,
    activations: *const u8,
}

impl Call<'_> {
    /// Share the panels (and, when they are few, the tiles of tokens) over the workers.
    fn run(&self, worker: &Worker<'_>) {
        let (panels, wanted) = (self.weight.panels(), ITEMS_PER_WORKER * worker.count());
        let whole = ITEM_BYTES.div_ceil(self.weight.panel_bytes() * self.tiles.count);
        let group = if worker.count() == 1 { 1 } else { whole.min(panels / wanted).max(1) };
        let groups = panels.div_ceil(group);
        let parts = if worker.count() == 1 { 1 } else { wanted.div_ceil(groups).clamp(1, self.tiles.count) };
        worker.share(groups * parts, |item| {
            let (first, part) = (item / parts * group, item % parts);
            let tiles = self.tiles.count * part / parts..self.tiles.count * (part + 1) / parts;
            for panel in first..panels.min(first + group) {
                for tile in tiles.clone() {
                    // The first tile brings the panel into the cache, the last one of several the panel after it.
                    let ahead = match tile {
                        _ if tile == tiles.start => AHEAD,
                        _ if tile + 1 == tiles.end => self.weight.panel_bytes(),
                        _ => 0,
                    };
                    self.tile(panel, tile, ahead);
                }
            }
        });
    }

    /// One panel times one tile of tokens.
    fn tile(&self, panel: usize, tile: usize, ahead: usize) {
        let (begin, tokens) = self.tiles.range(tile);
        let row = panel * PANEL;
        let (scales, zeros, codes) = self.weight.panel(panel);
        let described = Tile {
            format: self.weight.format(),
            groups: self.weight.groups(),
            scales,
            zeros,
            codes,
            ahead,
            x: self.activations.wrapping_add(self.tiles.offset(tile)),
            out: self.out.as_ptr().wrapping_add(begin * self.out.stride() + row),
            out_stride: self.out.stride(),
            rows: self.weight.rows() - row,
            bias: self.bias.map_or(std::ptr::null(), |bias| bias[row..].as_ptr()),
        };
        // SAFETY: the tile describes weights, records of the level's form and outputs that exist; this item alone has
        // this panel's outputs of these tokens; the level is supported.
        unsafe {
            match self.isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Vnni | Isa::Avx512Bf16 => avx512::vnni(tokens, &described),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => avx512::words(tokens, &described),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => avx2::words(tokens, &described),
                _ => tile::scalar(tokens, &described),
            }
        }
    }
}
