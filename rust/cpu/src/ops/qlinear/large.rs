//! How a large tile, which takes all rows of x, meets the panels.

use std::mem::MaybeUninit;

use super::Then;
use super::activations::LARGE_TILE;
use super::call::{Call, Finish, ITEM_BYTES, ITEMS_PER_WORKER, finish};
use super::packed::PANEL;
use super::tile::{MAX_STREAMS, Panel, Tile};
use super::tuning::Tuning;
use crate::pool::Worker;

impl Call<'_> {
    /// Share the units over the workers, some at a time.
    pub(super) fn large(&self, worker: &Worker<'_>, at_end: impl FnOnce()) {
        let panels_per_unit = if self.then == Then::Glu { 2 } else { 1 };
        let (units, wanted) = (self.weight.panels() / panels_per_unit, ITEMS_PER_WORKER * worker.count());
        let whole = ITEM_BYTES.div_ceil(panels_per_unit * self.weight.panel_bytes());
        let group = whole.min(units / wanted).max(1);
        let work = |item: usize| {
            for unit in item * group..units.min((item + 1) * group) {
                self.unit(unit, units);
            }
        };
        worker.share_then(units.div_ceil(group), work, at_end);
    }

    /// One unit of `units` times all tokens.
    fn unit(&self, unit: usize, units: usize) {
        // `[tokens][panels][32]`, for what is not stored as it is.
        let mut products = MaybeUninit::<[f32; 2 * LARGE_TILE * PANEL]>::uninit();
        let products = products.as_mut_ptr().cast::<f32>();
        let both = [unit, unit + units];
        let panels = if self.then == Then::Glu { &both[..] } else { &both[..1] };
        let (ints, heads) = self.tiles.offsets(0);
        self.own_outputs(panels, 0..self.tiles.tokens);
        for (slot, panel) in panels.iter().enumerate() {
            let row = panel * PANEL;
            let (out, out_stride) = match self.then {
                Then::Store => (self.out.as_ptr().wrapping_add(row), self.out.stride()),
                _ => (products.wrapping_add(slot * PANEL), panels.len() * PANEL),
            };
            let of_panel = Panel {
                weights: self.weight.panel(*panel),
                out,
                rows: self.weight.rows() - row,
                bias: self.bias.map_or(std::ptr::null(), |bias| bias[row..].as_ptr()),
            };
            let mut tile = Tile {
                format: self.weight.format(),
                groups: self.weight.groups(),
                panels: [Panel::NONE; MAX_STREAMS],
                wide: false,
                reach: Tuning::get().large,
                spread: 0,
                ints: self.activations.wrapping_add(ints),
                heads: self.activations.wrapping_add(heads),
                out_stride,
            };
            tile.panels[0] = of_panel;
            let next = match panels.get(slot + 1) {
                Some(next) => self.weight.panel(*next),
                None => self.weight.panel(unit).wrapping_add(self.weight.panel_bytes()),
            };
            // SAFETY: the tile describes weights, activations and outputs that exist; this item alone has this panel's
            // outputs; tiles are large only at levels and of formats that have such a kernel.
            #[cfg(target_arch = "x86_64")]
            unsafe {
                super::avx512::large(self.tiles.tokens, &tile, next);
            }
            #[cfg(not(target_arch = "x86_64"))]
            unreachable!("{tile:p} {next:p}: no tile is large here");
        }
        if self.then != Then::Store {
            let (rows, tokens) = (self.weight.rows(), self.tiles.tokens);
            let what = Finish { then: self.then, panels, begin: 0, tokens, products, rows, out: self.out };
            finish(self.isa, &what);
        }
    }
}
