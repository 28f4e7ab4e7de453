//! How the panels of a matmul are shared over the workers.

use std::mem::MaybeUninit;

use super::Then;
use super::activations::{MAX_TILE, Tiles};
use super::packed::{PANEL, QuantizedMatrix};
use super::tile::{MAX_STREAMS, Panel, Tile};
use super::tuning::Tuning;
use crate::isa::Isa;
use crate::ops::elementwise::{add, glu};
use crate::pool::Worker;
use crate::tensor::RowsMut;

/// Bytes of weights that one item takes at least when there are many rows and every worker has several items.
const ITEM_BYTES: usize = 64 << 10;
/// Work items per worker that are wanted.
const ITEMS_PER_WORKER: usize = 4;
/// Bytes of each of a worker's streams that it asks for before it waits for the others.
const START: usize = 16 << 10;
/// Most rows of x that stream the weights.
const FEW: usize = 2;

/// What all items of one call share.
pub(super) struct Call<'a> {
    pub(super) isa: Isa,
    pub(super) weight: &'a QuantizedMatrix,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) then: Then,
    pub(super) out: RowsMut<'a>,
    pub(super) tiles: Tiles,
    pub(super) activations: *const u8,
}

/// How few rows of x walk the weights: a worker's units lie in `streams` equal ranges that it walks side by side.
///
/// A unit is a panel, or for [`Then::Glu`] one of the first half and its partner in the second.
#[derive(Clone, Copy)]
struct Streams {
    units: usize,
    streams: usize,
    items: usize,
}

impl Streams {
    fn new(worker: &Worker<'_>, isa: Isa, weight: &QuantizedMatrix, then: Then, tokens: usize) -> Self {
        let panels_per_unit = if then == Then::Glu { 2 } else { 1 };
        let units = weight.panels() / panels_per_unit;
        let mut streams = (streams(isa, tokens) / panels_per_unit).max(1);
        // Every worker needs some items, for others to take at the end.
        while streams > 1 && units < 2 * streams * worker.count() {
            streams /= 2;
        }
        Self { units, streams, items: units.div_ceil(streams) }
    }

    /// The units of an item, one of each stream of the worker whose share it is in.
    fn units(&self, item: usize, count: usize) -> impl Iterator<Item = usize> {
        // The last worker whose share begins at this item or before it.
        let owner = ((item + 1) * count - 1) / self.items;
        let (begin, end) = (self.items * owner / count, self.items * (owner + 1) / count);
        let (first, limit) = (begin * self.streams, self.units.min(end * self.streams));
        (0..self.streams)
            .map(move |s| first + s * (end - begin) + item - begin)
            .filter(move |unit| *unit < limit)
    }
}

/// Panels that advance together at a level.
fn streams(isa: Isa, tokens: usize) -> usize {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 => {
            super::avx512::streams(tokens).min(Tuning::get().streams)
        }
        _ => 1,
    }
}

/// See [`super::prefetch_start`].
pub(super) fn prefetch_start(
    worker: &Worker<'_>,
    isa: Isa,
    weight: &QuantizedMatrix,
    then: Then,
    tokens: usize,
) {
    let (count, walk) = (worker.count(), Streams::new(worker, isa, weight, then, tokens.min(FEW)));
    let first = walk.items * worker.index() / count;
    if first == walk.items * (worker.index() + 1) / count {
        return;
    }
    for unit in walk.units(first, count) {
        let halves =
            if then == Then::Glu { [Some(unit), Some(unit + walk.units)] } else { [Some(unit), None] };
        for panel in halves.into_iter().flatten() {
            let bytes = START.min(weight.panel_bytes());
            prefetch(weight.panel(panel), bytes);
        }
    }
}

/// Ask for the cache lines of `bytes` bytes.
fn prefetch(from: *const u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..bytes).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch may point anywhere, and SSE is part of the architecture.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(line).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, bytes);
}

impl Call<'_> {
    pub(super) fn run(&self, worker: &Worker<'_>, at_end: impl FnOnce()) {
        if self.tiles.tokens <= FEW && self.tiles.count == 1 {
            self.stream(worker, at_end);
        } else {
            self.tile_by_tile(worker, at_end);
        }
    }

    /// Panels of a unit.
    fn panels(&self, unit: usize, units: usize) -> impl Iterator<Item = usize> {
        let partner = (self.then == Then::Glu).then_some(unit + units);
        std::iter::once(unit).chain(partner)
    }

    /// How far ahead to prefetch weights past the outer caches; None for into them.
    fn passing(&self) -> Option<usize> {
        Tuning::get().passing.filter(|_| self.tiles.tokens <= FEW && self.isa != Isa::Avx2)
    }

    fn stream(&self, worker: &Worker<'_>, at_end: impl FnOnce()) {
        let walk = Streams::new(worker, self.isa, self.weight, self.then, self.tiles.tokens);
        let ahead = self.passing().unwrap_or(Tuning::get().ahead);
        let work = |item: usize| {
            let (mut units, mut count) = ([0; MAX_STREAMS], 0);
            for unit in walk.units(item, worker.count()) {
                units[count] = unit;
                count += 1;
            }
            self.units(&units[..count], walk.units, 0, ahead);
        };
        worker.share_then(walk.items, work, at_end);
    }

    /// Share the units (and, when they are few, the tiles of tokens) over the workers.
    fn tile_by_tile(&self, worker: &Worker<'_>, at_end: impl FnOnce()) {
        let panels_per_unit = if self.then == Then::Glu { 2 } else { 1 };
        let (units, wanted) = (self.weight.panels() / panels_per_unit, ITEMS_PER_WORKER * worker.count());
        let whole = ITEM_BYTES.div_ceil(panels_per_unit * self.weight.panel_bytes() * self.tiles.count);
        let group = if worker.count() == 1 { 1 } else { whole.min(units / wanted).max(1) };
        let groups = units.div_ceil(group);
        let parts = if worker.count() == 1 { 1 } else { wanted.div_ceil(groups).clamp(1, self.tiles.count) };
        let work = |item: usize| {
            let (first, part) = (item / parts * group, item % parts);
            let tiles = self.tiles.count * part / parts..self.tiles.count * (part + 1) / parts;
            for unit in first..units.min(first + group) {
                for tile in tiles.clone() {
                    // The first tile brings the panel into the cache, the last one of several the panel after it.
                    let ahead = match tile {
                        _ if tile == tiles.start => Tuning::get().ahead,
                        _ if tile + 1 == tiles.end => self.weight.panel_bytes(),
                        _ => 0,
                    };
                    self.units(&[unit], units, tile, ahead);
                }
            }
        };
        worker.share_then(groups * parts, work, at_end);
    }

    /// Some units of `all` times one tile of tokens.
    fn units(&self, units: &[usize], all: usize, tile: usize, ahead: usize) {
        let (begin, tokens) = self.tiles.range(tile);
        let (mut panels, mut count) = ([0; 2 * MAX_STREAMS], 0);
        for panel in units.iter().flat_map(|unit| self.panels(*unit, all)) {
            panels[count] = panel;
            count += 1;
        }
        let panels = &panels[..count];
        // `[tokens][panels][32]`, for what is not stored as it is.
        let mut products = [MaybeUninit::<f32>::uninit(); 2 * MAX_TILE * PANEL];
        debug_assert!(count * tokens * PANEL <= products.len() || self.then == Then::Store);
        let (ints, heads) = self.tiles.offsets(tile);
        let mut described = Tile {
            format: self.weight.format(),
            groups: self.weight.groups(),
            panels: [Panel::NONE; MAX_STREAMS],
            ahead,
            once: self.passing().is_some(),
            ints: self.activations.wrapping_add(ints),
            heads: self.activations.wrapping_add(heads),
            head_stride: self.tiles.head_stride(),
            out_stride: if self.then == Then::Store { self.out.stride() } else { count * PANEL },
        };
        let at_once = streams(self.isa, tokens);
        let mut done = 0;
        while done < count {
            // 4, 2 or 1.
            let now = 1 << (count - done).min(at_once).ilog2();
            for (slot, panel) in panels[done..done + now].iter().enumerate() {
                let row = panel * PANEL;
                let out = match self.then {
                    Then::Store => self.out.as_ptr().wrapping_add(begin * self.out.stride() + row),
                    _ => products[(done + slot) * PANEL..].as_mut_ptr().cast(),
                };
                let bias = self.bias.map_or(std::ptr::null(), |bias| bias[row..].as_ptr());
                let (weights, rows) = (self.weight.panel(*panel), self.weight.rows() - row);
                described.panels[slot] = Panel { weights, out, rows, bias };
            }
            // SAFETY: the tile describes weights, activations and outputs that exist; this item alone has these panels'
            // outputs of these tokens; the level is supported.
            unsafe { kernel(self.isa, now, tokens, &described) };
            done += now;
        }
        if self.then != Then::Store {
            // SAFETY: the kernels have just written the products of all rows that exist.
            unsafe { self.finish(panels, begin, tokens, products.as_ptr().cast()) };
        }
    }

    /// Bring the products of some panels, `[tokens][panels][32]`, to where they belong.
    ///
    /// # Safety
    /// The products of all rows of the weight that exist have been written, and nobody else touches their outputs.
    unsafe fn finish(&self, panels: &[usize], begin: usize, tokens: usize, products: *const f32) {
        for token in 0..tokens {
            for (slot, &panel) in panels.iter().enumerate() {
                let (row, partner) = (panel * PANEL, slot + 1);
                let rows = PANEL.min(self.weight.rows() - row);
                let at = |slot: usize| products.wrapping_add((token * panels.len() + slot) * PANEL);
                // SAFETY: the caller's duty; the products are no part of the outputs.
                unsafe {
                    let of = |slot: usize| std::slice::from_raw_parts(at(slot), rows);
                    match self.then {
                        Then::Store => {}
                        Then::Add => add(self.isa, self.out.part(begin + token, row, rows), of(slot)),
                        // Every second panel is of the second half.
                        Then::Glu if slot % 2 == 1 => {}
                        Then::Glu => {
                            let out = self.out.part(begin + token, row, rows);
                            glu(self.isa, of(slot), of(partner), out);
                        }
                    }
                }
            }
        }
    }
}

/// Run the level's kernel on the first `streams` panels.
///
/// # Safety
/// As [`super::tile::scalar`], and the processor supports `isa`, which takes so many streams.
unsafe fn kernel(isa: Isa, streams: usize, tokens: usize, tile: &Tile) {
    // SAFETY: the caller's duty, passed on.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni | Isa::Avx512Bf16 => super::avx512::vnni(streams, tokens, tile),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => super::avx512::words(streams, tokens, tile),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => super::avx2::words(tokens, tile),
            _ => super::tile::scalar(tokens, tile, &tile.panels[0]),
        }
    }
}
