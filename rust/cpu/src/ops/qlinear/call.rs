//! How the panels of a matmul are shared over the workers.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::Then;
use super::activations::{MAX_TILE, Tiles};
use super::packed::{PANEL, QuantizedMatrix};
use super::tile::{MAX_STREAMS, Panel, Tile};
use super::tuning::{Reach, Tuning};
use super::wide::{wide_panel_bytes, widen};
use crate::isa::Isa;
use crate::ops::elementwise::{add_lanes, glu_lanes};
use crate::ops::lanes::{Lanes, at_every_level};
use crate::ops::prefetch::{prefetch, prefetch_to_write};
use crate::pool::Worker;
use crate::tensor::RowsMut;

/// Bytes of weights that one item takes at least when there are many rows and every worker has several items.
pub(super) const ITEM_BYTES: usize = 64 << 10;
/// Work items per worker that are wanted.
pub(super) const ITEMS_PER_WORKER: usize = 4;
/// The same for [`MANY`] rows, where reading a panel once more costs nothing and the last item is what others wait for.
const MANY_ITEMS_PER_WORKER: usize = 16;
/// Bytes of each of a worker's streams that it asks for before it waits for the others.
const START: usize = 16 << 10;
/// Most rows of x that stream the weights.
const FEW: usize = 2;
/// Most rows of x for which memory is all that they wait for, see [`Tuning::few`].
const MEMORY_ALONE: usize = 4;
/// Fewest rows of x that count as many: for them it pays to make panels of 4-bit codes wide.
const MANY: usize = 128;
/// Bytes of activations that stay in the second cache, beside a panel and the next one.
const ACTIVATION_BYTES: usize = 640 << 10;
/// Bytes of outputs that do not stay in the second cache from one call to the next.
const FAR_OUTPUT_BYTES: usize = 1 << 20;
/// Most rows of x whose outputs are asked for wherever they are. 32, 64 and 512 rows gained nothing.
const ASKED_ROWS: usize = 16;
/// Bytes of wide panels that every tile meets while they lie in the second cache, unless two panels have more.
pub(super) const WIDE_BYTES: usize = 256 << 10;
/// Fewest tokens of a tile that meets wide panels: what tiles of many rows have.
const WIDE_TILE: usize = 3;

/// What all items of one call share.
pub(super) struct Call<'a> {
    pub(super) isa: Isa,
    pub(super) weight: &'a QuantizedMatrix,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) then: Then,
    pub(super) out: RowsMut<'a>,
    pub(super) tiles: Tiles,
    pub(super) activations: *const u8,
    /// Where this worker makes panels wide, [`super::wide_bytes`], or has the values of a span to quantize.
    pub(super) wide: *mut u8,
    pub(super) next: Option<Next>,
}

/// Where the activations of the next matmul go instead of the outputs.
#[derive(Clone, Copy)]
pub(super) struct Next {
    pub(super) tiles: Tiles,
    /// Where its first tile begins.
    pub(super) to: *mut u8,
}

/// Where the panels of some units are read.
enum Source {
    /// In the matrix, and how they are prefetched, see [`Tile::spread`].
    Packed { reach: Reach, spread: u32 },
    /// Made wide, one after another.
    Wide { from: *const u8, panel_bytes: usize },
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
        let (begin, end) = if self.streams == 1 {
            // Item and unit are the same, whosever share it is: no divisions between taking an item and its weights.
            (0, self.items)
        } else {
            // Of the last worker whose share begins at this item or before it.
            let owner = ((item + 1) * count - 1) / self.items;
            (self.items * owner / count, self.items * (owner + 1) / count)
        };
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
        // Half as many as of 512-bit vectors: two were 1.05x and 1.02x as fast as one on an Emerald Rapids (11 and 15
        // rounds).
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => super::avx2::streams(tokens).min(Tuning::get().streams / 2).max(1),
        _ => {
            let _ = tokens;
            1
        }
    }
}

/// Whether a level is quicker with wide panels: those without VPDPBUSD, for which taking codes apart is a third of the
/// work. With it, wide panels save what their making costs at 512 rows.
fn likes_wide(isa: Isa) -> bool {
    matches!(isa, Isa::Avx2 | Isa::Avx512)
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

impl Call<'_> {
    pub(super) fn run(&self, worker: &Worker<'_>, at_end: impl FnOnce()) {
        if self.tiles.tokens <= FEW && self.tiles.count() == 1 {
            self.stream(worker, at_end);
        } else if self.tiles.is_large() {
            self.one_block(worker, at_end);
        } else if self.tiles.tokens >= MANY && self.weight.format().bits == 4 && likes_wide(self.isa) {
            self.widen_and_tile(worker, at_end);
        } else if self.tiles.blocks {
            self.block_by_block(worker, at_end);
        } else {
            self.tile_by_tile(worker, at_end);
        }
    }

    /// Panels of a unit.
    pub(super) fn panels(&self, unit: usize, units: usize) -> impl Iterator<Item = usize> {
        let partner = (self.then == Then::Glu).then_some(unit + units);
        std::iter::once(unit).chain(partner)
    }

    /// How to prefetch the weights of so many panels that advance side by side.
    fn reach(&self, streams: usize) -> Reach {
        let Tuning { several, alone, few, .. } = Tuning::get();
        let few = few.filter(|_| self.tiles.tokens <= MEMORY_ALONE && self.isa != Isa::Avx2);
        few.unwrap_or(if streams > 1 { several } else { alone })
    }

    fn stream(&self, worker: &Worker<'_>, at_end: impl FnOnce()) {
        let walk = Streams::new(worker, self.isa, self.weight, self.then, self.tiles.tokens);
        let panels = walk.streams * if self.then == Then::Glu { 2 } else { 1 };
        let reach = self.reach(panels.min(streams(self.isa, self.tiles.tokens)));
        let work = |item: usize| {
            let (mut units, mut count) = ([0; MAX_STREAMS], 0);
            for unit in walk.units(item, worker.count()) {
                units[count] = unit;
                count += 1;
            }
            self.units(&units[..count], walk.units, 0, &Source::Packed { reach, spread: 0 });
        };
        worker.share_then(walk.items, work, at_end);
    }

    /// Share the units (and, when they are few, the tiles of tokens) over the workers. Where the activations are more than
    /// the second cache holds, all units meet a part of them before the next part.
    fn tile_by_tile(&self, worker: &Worker<'_>, at_end: impl FnOnce()) {
        let panels_per_unit = if self.then == Then::Glu { 2 } else { 1 };
        let (units, wanted) = (self.weight.panels() / panels_per_unit, ITEMS_PER_WORKER * worker.count());
        let whole = ITEM_BYTES.div_ceil(panels_per_unit * self.weight.panel_bytes() * self.tiles.count());
        let group = if worker.count() == 1 { 1 } else { whole.min(units / wanted).max(1) };
        let groups = units.div_ceil(group);
        let rounds = self.tiles.bytes().div_ceil(ACTIVATION_BYTES).clamp(1, self.tiles.count());
        let wanted = if self.tiles.tokens < MANY { wanted } else { MANY_ITEMS_PER_WORKER * worker.count() };
        let most = self.tiles.count() / rounds;
        let parts = if worker.count() == 1 { 1 } else { wanted.div_ceil(groups * rounds).clamp(1, most) };
        let work = |item: usize| {
            let (round, item) = (item / (groups * parts), item % (groups * parts));
            let (first, part) = (item / parts * group, round * parts + item % parts);
            let cut = |part: usize| self.tiles.count() * part / (rounds * parts);
            let tiles = cut(part)..cut(part + 1);
            for unit in first..units.min(first + group) {
                for tile in tiles.clone() {
                    self.units(&[unit], units, tile, &self.packed(&tiles, tile));
                }
            }
        };
        worker.share_then(rounds * groups * parts, work, at_end);
    }

    /// What `tile` of the `tiles` that meet a panel one after another asks for: the first one brings the panel into the
    /// cache, and the last of several the panel after it. Where memory is what two tiles wait for, each of them asks for half
    /// of the panel after it.
    fn packed(&self, tiles: &Range<usize>, tile: usize) -> Source {
        let (panel, index) = (self.weight.panel_bytes(), tile - tiles.start);
        let next = |ahead: usize| Reach { ahead, way: Tuning::get().next_panel };
        let (reach, spread) = match tiles.len() {
            2 if self.weight.format().bits == 8 => (next(panel + index * panel / 2), 1),
            _ if index == 0 => (self.reach(1), 0),
            len if index + 1 == len => (next(panel), 0),
            _ => (Reach::NONE, 0),
        };
        Source::Packed { reach, spread }
    }

    /// Share groups of units over the workers: the panels of a group are made wide and stay in the second cache, while
    /// every tile of tokens, in the first cache, meets them.
    fn widen_and_tile(&self, worker: &Worker<'_>, at_end: impl FnOnce()) {
        let (format, groups) = (self.weight.format(), self.weight.groups());
        let panel_bytes = wide_panel_bytes(format, groups);
        let panels_per_unit = if self.then == Then::Glu { 2 } else { 1 };
        let (units, wanted) = (self.weight.panels() / panels_per_unit, ITEMS_PER_WORKER * worker.count());
        let at_once = (WIDE_BYTES / (panels_per_unit * panel_bytes)).min(units / wanted).max(1);
        let (items, ahead) = (units.div_ceil(at_once), Tuning::get().many);
        let parts = wanted.div_ceil(items).clamp(1, self.tiles.tokens / MANY);
        let work = |item: usize| {
            let (first, part) = (item / parts * at_once, item % parts);
            let group = first..units.min(first + at_once);
            for (slot, panel) in group.clone().flat_map(|unit| self.panels(unit, units)).enumerate() {
                // SAFETY: a panel, and the place for as many as a group has at most.
                unsafe {
                    let to = self.wide.add(slot * panel_bytes);
                    widen(self.isa, format, groups, self.weight.panel(panel), to, ahead);
                }
            }
            for tile in self.tiles.count() * part / parts..self.tiles.count() * (part + 1) / parts {
                for (slot, unit) in group.clone().enumerate() {
                    let from = self.wide.wrapping_add(slot * panels_per_unit * panel_bytes);
                    self.units(&[unit], units, tile, &Source::Wide { from, panel_bytes });
                }
            }
        };
        worker.share_then(items * parts, work, at_end);
    }

    /// Ask for the outputs of the units that come after these, where there are few or where they come from memory: stores that
    /// wait for their lines hold up all that are behind them, and at the end of an item whoever takes the next one. With it, a
    /// step of one row is 1.05 to 1.07x as fast on Zen 5, one of 4 or 8 rows 1.05x, and a head of 8 bits takes 16 rows in 0.89
    /// of the time.
    fn ask_for_outputs(&self, units: &[usize], tokens: Range<usize>) {
        let all = self.tiles.tokens * self.out.width() * size_of::<f32>();
        if self.tiles.tokens > ASKED_ROWS && (self.then != Then::Store || all < FAR_OUTPUT_BYTES) {
            return;
        }
        for token in tokens {
            for unit in units {
                let to = self.out.as_ptr().wrapping_add(token * self.out.stride() + (unit + 1) * PANEL);
                prefetch_to_write(to, PANEL * size_of::<f32>());
            }
        }
    }

    /// Some units of `all` times one tile of tokens.
    fn units(&self, units: &[usize], all: usize, tile: usize, source: &Source) {
        let (begin, tokens) = self.tiles.range(tile);
        let (mut panels, mut count) = ([0; 2 * MAX_STREAMS], 0);
        for panel in units.iter().flat_map(|unit| self.panels(*unit, all)) {
            panels[count] = panel;
            count += 1;
        }
        let panels = &panels[..count];
        debug_assert!(matches!(source, Source::Packed { .. }) || tokens >= WIDE_TILE, "no such kernel");
        // `[tokens][panels][32]`, for what is not stored as it is.
        let mut products = [MaybeUninit::<f32>::uninit(); 2 * MAX_TILE * PANEL];
        debug_assert!(count * tokens * PANEL <= products.len() || self.then == Then::Store);
        let (ints, heads) = self.tiles.offsets(tile);
        let (reach, spread) = match *source {
            Source::Packed { reach, spread } => (reach, spread),
            Source::Wide { .. } => (Reach::NONE, 0),
        };
        let mut described = Tile {
            format: self.weight.format(),
            groups: self.weight.groups(),
            panels: [Panel::NONE; MAX_STREAMS],
            wide: matches!(source, Source::Wide { .. }),
            reach,
            spread,
            ints: self.activations.wrapping_add(ints),
            heads: self.activations.wrapping_add(heads),
            out_stride: if self.then == Then::Store { self.out.stride() } else { count * PANEL },
        };
        self.ask_for_outputs(units, begin..begin + tokens);
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
                let weights = match source {
                    Source::Packed { .. } => self.weight.panel(*panel),
                    Source::Wide { from, panel_bytes } => from.wrapping_add((done + slot) * panel_bytes),
                };
                let rows = self.weight.rows() - row;
                described.panels[slot] = Panel { weights, out, rows, bias };
            }
            // SAFETY: the tile describes weights, activations and outputs that exist; this item alone has these panels'
            // outputs of these tokens; the level is supported.
            unsafe { kernel(self.isa, now, tokens, &described) };
            done += now;
        }
        if self.then != Then::Store {
            let (rows, products) = (self.weight.rows(), products.as_ptr().cast());
            let what = Finish { then: self.then, panels, begin, tokens, products, rows, out: self.out };
            finish(self.isa, &what);
        }
    }
}

/// Products of some panels on their way to where they belong.
struct Finish<'a> {
    then: Then,
    panels: &'a [usize],
    /// First token and number of tokens.
    begin: usize,
    tokens: usize,
    /// `[tokens][panels][32]`.
    products: *const f32,
    /// Rows of the weight.
    rows: usize,
    out: RowsMut<'a>,
}

at_every_level! {
    /// Bring them there.
    ///
    /// The products of all rows of the weight that exist have been written, are no part of the outputs, and nobody else
    /// touches these outputs.
    fn finish(what: &Finish<'_>) = finish_lanes
}

#[inline(always)]
unsafe fn finish_lanes<L: Lanes>(what: &Finish<'_>) {
    for token in 0..what.tokens {
        for (slot, &panel) in what.panels.iter().enumerate() {
            let row = panel * PANEL;
            let rows = PANEL.min(what.rows - row);
            let at = |slot: usize| what.products.wrapping_add((token * what.panels.len() + slot) * PANEL);
            // SAFETY: what `finish` asks for; the level is the caller's duty.
            unsafe {
                let of = |slot: usize| std::slice::from_raw_parts(at(slot), rows);
                match what.then {
                    Then::Store => {}
                    Then::Add => add_lanes::<L>(what.out.part(what.begin + token, row, rows), of(slot)),
                    // Every second panel is of the second half.
                    Then::Glu if slot % 2 == 1 => {}
                    Then::Glu => {
                        let out = what.out.part(what.begin + token, row, rows);
                        glu_lanes::<L>(of(slot), of(slot + 1), out);
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
            Isa::Avx2 => super::avx2::words(streams, tokens, tile),
            _ => {
                debug_assert!(streams == 1, "{streams} panels together");
                super::tile::scalar(tokens, tile, &tile.panels[0]);
            }
        }
    }
}
