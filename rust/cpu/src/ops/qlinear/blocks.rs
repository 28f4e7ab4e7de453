//! How blocks of tokens, or the few more than a tile that make one block, meet the panels.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::Then;
use super::activations::{BLOCK_TILE, SHARED_BLOCK_TILE};
#[cfg(target_arch = "x86_64")]
use super::avx512::block_of_tokens;
use super::call::{Call, ITEM_BYTES, ITEMS_PER_WORKER, Next, WIDE_BYTES};
use super::packed::PANEL;
use super::shared;
use super::tile::{MAX_STREAMS, Panel, Tile};
use super::tuning::{Reach, Tuning};
use crate::ops::elementwise::{add_lanes, glu_lanes};
use crate::ops::lanes::{LANES, Lanes, at_every_level};
use crate::ops::prefetch::prefetch_to_write;
use crate::pool::Worker;
use crate::quant::GROUPS_PER_SCALE;
use crate::tensor::RowsMut;

/// Panels whose rows are the inputs of a span of the next matmul.
const SPAN_PANELS: usize = GROUPS_PER_SCALE * shared::GROUP / PANEL;
/// Work items per worker that are wanted: the last one is what others wait for.
const BLOCK_ITEMS_PER_WORKER: usize = 64;

/// Bytes of the longest span of a panel, with a byte for a code.
pub(super) const SPAN_BYTES: usize = GROUPS_PER_SCALE * shared::GROUP * PANEL;

/// What belongs to one panel and all tokens of a block.
type OfPanel<T, const TOKENS: usize> = [[T; PANEL]; TOKENS];

/// Memory in which the sums of a block wait, the panel's 32 rows of one token after those of another.
#[derive(Clone, Copy)]
pub(super) struct Waiting {
    /// `[SHARED_BLOCK_TILE][32]`: what becomes the products.
    pub(super) sums: *mut f32,
    /// `[BLOCK_TILE][32]`, for spans of more than one part.
    pub(super) ints: *mut i32,
    /// `[2][SPAN_BYTES]`, for codes that are made bytes.
    pub(super) bytes: *mut u8,
}

/// Memory of the first cache.
#[repr(align(64))]
struct Near {
    /// Of the panels of a unit.
    sums: [OfPanel<f32, SHARED_BLOCK_TILE>; 2],
    ints: OfPanel<i32, BLOCK_TILE>,
    bytes: [u8; 2 * SPAN_BYTES],
}

/// How the weights of a panel are asked for, and those that are read after it.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    reach: Reach,
    /// First byte after the panel, and first byte of what is read after it.
    end: *const u8,
    next: *const u8,
}

impl Ahead {
    /// Nothing is asked for.
    #[cfg(all(test, target_arch = "x86_64"))]
    pub(super) const NONE: Self = Self { reach: Reach::NONE, end: std::ptr::null(), next: std::ptr::null() };

    /// Ask for so many bytes that are read [`Reach::ahead`] after those at `from`: of the panel, or of what is read after it.
    #[inline(always)]
    pub(super) fn ask_for(self, from: *const u8, bytes: usize) {
        let mut to_come = from.wrapping_add(self.reach.ahead);
        if to_come >= self.end {
            to_come = self.next.wrapping_add(to_come.addr() - self.end.addr());
        }
        self.reach.ask_for(to_come, bytes);
    }
}

impl Call<'_> {
    /// Share the units, each of which meets the one block of all tokens, over the workers, some at a time.
    pub(super) fn one_block(&self, worker: &Worker<'_>, at_end: impl FnOnce()) {
        let panels_per_unit = if self.then == Then::Glu { 2 } else { 1 };
        let (units, wanted) = (self.weight.panels() / panels_per_unit, ITEMS_PER_WORKER * worker.count());
        let whole = ITEM_BYTES.div_ceil(panels_per_unit * self.weight.panel_bytes());
        let at_once = whole.min(units / wanted).max(1);
        let work = |item: usize| {
            for unit in item * at_once..units.min((item + 1) * at_once) {
                self.block(unit, units, 0, Tuning::get().large);
            }
        };
        worker.share_then(units.div_ceil(at_once), work, at_end);
    }

    /// Share the blocks, and of each the units, over the workers: a block stays in the second cache, while one panel after
    /// another comes from memory or the last cache, which takes a tenth of the time that it is multiplied for.
    pub(super) fn block_by_block(&self, worker: &Worker<'_>, at_end: impl FnOnce()) {
        let panels_per_unit = if self.then == Then::Glu { 2 } else { 1 };
        let (units, blocks) = (self.weight.panels() / panels_per_unit, self.tiles.count());
        let at_once = (units * blocks / (BLOCK_ITEMS_PER_WORKER * worker.count())).clamp(1, units);
        let at_once = if self.next.is_some() { at_once.next_multiple_of(SPAN_PANELS) } else { at_once };
        let (items, reach) = (units.div_ceil(at_once), Reach::kept(Tuning::get().many));
        let work = |item: usize| {
            let (block, first) = (item / items, item % items * at_once);
            let group = first..units.min(first + at_once);
            match self.next {
                None => group.for_each(|unit| self.block(unit, units, block, reach)),
                Some(next) => group.clone().step_by(SPAN_PANELS).for_each(|first| {
                    self.span(first..group.end.min(first + SPAN_PANELS), units, block, reach, next);
                }),
            }
        };
        worker.share_then(items * blocks, work, at_end);
    }

    /// Some units of `all`, the inputs of one span of the next matmul, times a block: activations of that matmul. The values
    /// stay in the second cache.
    fn span(&self, units: Range<usize>, all: usize, block: usize, reach: Reach, next: Next) {
        const WIDTH: usize = SPAN_PANELS * PANEL;
        const { assert!(SHARED_BLOCK_TILE * WIDTH * size_of::<f32>() <= WIDE_BYTES) };
        let (begin, tokens) = self.tiles.range(block);
        let width = self.out.width().min(units.end * PANEL) - units.start * PANEL;
        // SAFETY: this worker's own part of the scratch, of at least so many bytes; a block has at most so many tokens.
        let values = unsafe { RowsMut::from_raw(self.wide.cast(), tokens, WIDTH, WIDTH) };
        for unit in units.clone() {
            let to = Target { out: values, row: 0, column: (unit - units.start) * PANEL };
            self.block_to(unit, all, block, reach, &to);
        }
        for token in 0..tokens {
            // SAFETY: written above; the next matmul's part of the scratch has room, and this span is this item's.
            unsafe {
                let x = values.part(token, 0, width);
                next.tiles.store_span(self.isa, x, begin + token, units.start / SPAN_PANELS, next.to);
            }
        }
    }

    /// One unit of `units` times a block, brought to the outputs.
    fn block(&self, unit: usize, units: usize, block: usize, reach: Reach) {
        let to = Target { out: self.out, row: self.tiles.range(block).0, column: unit * PANEL };
        self.block_to(unit, units, block, reach, &to);
    }

    /// One unit of `units` times a block.
    fn block_to(&self, unit: usize, units: usize, block: usize, reach: Reach, to: &Target<'_>) {
        let (_, tokens) = self.tiles.range(block);
        let (ints, heads) = self.tiles.offsets(block);
        let mut near = MaybeUninit::<Near>::uninit();
        let near = near.as_mut_ptr();
        // SAFETY: places in it.
        let (sums, integer_sums, bytes) =
            unsafe { (&raw mut (*near).sums, &raw mut (*near).ints, &raw mut (*near).bytes) };
        let sums = [0, 1]
            .map(|slot| sums.cast::<OfPanel<f32, SHARED_BLOCK_TILE>>().wrapping_add(slot).cast::<f32>());
        let row = unit * PANEL;
        let rows = PANEL.min(self.weight.rows() - row);
        let mut panels = self.panels(unit, units).zip(sums).peekable();
        while let Some((panel, sums)) = panels.next() {
            let weights = self.weight.panel(panel);
            let end = weights.wrapping_add(self.weight.panel_bytes());
            let next = match panels.peek() {
                // Where more than a panel lies between, the partner is not the next one either.
                _ if reach.ahead >= self.weight.panel_bytes() => end,
                Some((partner, _)) => self.weight.panel(*partner),
                None => self.weight.panel(unit).wrapping_add(self.weight.panel_bytes()),
            };
            let mut tile = Tile {
                format: self.weight.format(),
                groups: self.weight.groups(),
                panels: [Panel::NONE; MAX_STREAMS],
                wide: false,
                reach: Reach::NONE,
                spread: 0,
                ints: self.activations.wrapping_add(ints),
                heads: self.activations.wrapping_add(heads),
                out_stride: 0,
            };
            tile.panels[0].weights = weights;
            let ahead = Ahead { reach, end, next };
            let waiting = Waiting { sums, ints: integer_sums.cast(), bytes: bytes.cast() };
            let (is_last, each) = (panels.peek().is_none(), tokens.div_ceil(tile.groups));
            // The outputs of a block are lines that lie far apart, often out of the caches, and the stores of all of them at
            // once would wait for them: they are asked for a few at a time.
            let between = |group: usize| {
                for token in group * each..if is_last { tokens.min((group + 1) * each) } else { 0 } {
                    prefetch_to_write(to.at(token), PANEL * size_of::<f32>());
                }
            };
            // SAFETY: the tile describes weights and activations that exist; tiles are blocks only at levels that have
            // this kernel.
            unsafe { block_of_tokens(tokens, &tile, ahead, waiting, between) };
        }
        let bias =
            self.bias.map(|bias| [row, self.out.width() + row].map(|row| bias.get(row..).unwrap_or(&[])));
        bring(self.isa, &Products { sums, tokens, rows }, self.then, bias, to);
    }
}

/// In place of the kernel where no level has it.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn block_of_tokens(tokens: usize, _: &Tile, _: Ahead, _: Waiting, _: impl FnMut(usize)) {
    unreachable!("no {tokens} tokens are a block here");
}

/// Where the products of a unit and a block go: rows of outputs from the first token's on, and the first column.
struct Target<'a> {
    out: RowsMut<'a>,
    row: usize,
    column: usize,
}

impl Target<'_> {
    /// The first output of a token.
    fn at(&self, token: usize) -> *mut f32 {
        self.out.as_ptr().wrapping_add((self.row + token) * self.out.stride() + self.column)
    }
}

/// Products of a unit and a block.
struct Products {
    /// `[tokens][32]` of the unit's panel and of its partner, if it has one.
    sums: [*mut f32; 2],
    tokens: usize,
    /// How many rows the panels have.
    rows: usize,
}

at_every_level! {
    /// Bring the products, to which the biases of both panels come, to the outputs. An option for each of the two biases
    /// made matmuls without any 1 to 3 % slower.
    ///
    /// They have been computed, are no part of the outputs, and nobody else touches these outputs.
    fn bring(
        products: &Products,
        then: Then,
        bias: Option<[&[f32]; 2]>,
        to: &Target<'_>,
    ) = bring_lanes
}

#[inline(always)]
unsafe fn bring_lanes<L: Lanes>(products: &Products, then: Then, bias: Option<[&[f32]; 2]>, to: &Target<'_>) {
    let Products { sums, tokens, rows } = *products;
    for token in 0..tokens {
        // SAFETY: what `bring` asks for; the level is the caller's duty.
        unsafe {
            let of = |slot: usize| std::slice::from_raw_parts_mut(sums[slot].add(token * PANEL), rows);
            if let Some([bias, of_partner]) = bias {
                add_lanes::<L>(of(0), &bias[..rows]);
                if then == Then::Glu {
                    add_lanes::<L>(of(1), &of_partner[..rows]);
                }
            }
            let to = to.out.part(to.row + token, to.column, rows);
            match then {
                Then::Store => copy_lanes::<L>(of(0), to),
                Then::Add => add_lanes::<L>(to, of(0)),
                Then::Glu => glu_lanes::<L>(of(0), of(1), to),
            }
        }
    }
}

/// # Safety
/// That of the lanes.
#[inline(always)]
unsafe fn copy_lanes<L: Lanes>(from: &[f32], to: &mut [f32]) {
    let whole = to.len() - to.len() % LANES;
    let tail = to.len() - whole;
    let (from, to) = (from[..to.len()].as_ptr(), to.as_mut_ptr());
    // SAFETY: all accesses are below the length that both have; the level is the caller's duty.
    unsafe {
        for i in (0..whole).step_by(LANES) {
            L::load(from.add(i)).store(to.add(i));
        }
        if tail > 0 {
            L::load_part(from.add(whole), tail).store_part(to.add(whole), tail);
        }
    }
}
