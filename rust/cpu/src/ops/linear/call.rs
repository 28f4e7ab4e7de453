//! How a matmul is cut into items that the workers share.

use std::ops::Range;

use super::arrange::{Tiles, max_tokens};
use super::packed::{PANEL, PackedMatrix};
use super::tile::{Chain, SPAN, STEP, Tile};
use super::wide::widen;
use crate::isa::Isa;
use crate::ops::prefetch::prefetch;
use crate::pool::Worker;
use crate::processor::{Processor, Vendor};
use crate::tensor::{DType, RowsMut};

/// Bytes of one span of weights, as the kernel reads them, that share a pass over the activations, at most: twice that (the
/// next group is on its way) and a span of a part's activations stay in a core's own cache of 1 MiB.
const GROUP_BYTES: usize = 128 << 10;
/// Tokens from which on a group may have more than one panel: the activations of fewer stay in the cache from one panel
/// to the next.
const MANY_TOKENS: usize = 256;
/// Tokens that a part has at least when the tokens are split: with so many the weights, which every part reads again,
/// take a small share of the memory's time.
const PART_TOKENS: usize = 128;
/// Tiles of a part from which on its weights are kept: read as f32, and asked for by one tile after another.
const KEPT_TILES: usize = 8;
/// Bytes in which a worker makes weights f32.
pub(in crate::ops) const WIDE_BYTES: usize = GROUP_BYTES;
/// Bytes ahead of the reads at which weights are prefetched.
const AHEAD: usize = 8192;
/// The same for the first cache, where those go into the second.
const NEAR: usize = 1024;
/// Work items per worker that are wanted, for others to take at the end.
const ITEMS_PER_WORKER: usize = 8;
/// Bytes of weights that a worker asks for before it looks at the activations.
const START: usize = 16 << 10;

/// Groups of panels times parts of the tokens, the groups of a part one after another.
///
/// With many tokens each worker has a part of its own, so that its activations and outputs do not travel between the
/// cores; with few the workers share the weights alone, each its own stream.
#[derive(Clone, Copy)]
pub(super) struct Split {
    /// Whether so many tiles read the weights that they are kept, as f32.
    pub(super) kept: bool,
    /// Panels of a group.
    group: usize,
    groups: usize,
    pub(super) parts: usize,
}

impl Split {
    /// `keeps` says whether weights may be kept; VPDPBF16PS reads them as they are.
    pub(super) fn new(isa: Isa, workers: usize, tokens: usize, weight: &PackedMatrix, keeps: bool) -> Self {
        let parts = workers.min(tokens / PART_TOKENS).max(1);
        let kept = keeps && tokens / parts >= KEPT_TILES * max_tokens(isa, Chain::F32);
        let size = if kept { size_of::<f32>() } else { weight.dtype().size() };
        let fitting = if tokens < MANY_TOKENS { 1 } else { GROUP_BYTES / (span_elements(weight) * size) };
        let even = weight.panels() * parts / (ITEMS_PER_WORKER * workers);
        let group = fitting.min(even).max(1);
        Self { kept, group, groups: weight.panels().div_ceil(group), parts }
    }

    fn items(self) -> usize {
        self.groups * self.parts
    }

    /// Panels and tiles of an item.
    fn item(self, item: usize, panels: usize, tiles: usize) -> (Range<usize>, Range<usize>) {
        let (first, part) = (item % self.groups * self.group, item / self.groups);
        (first..panels.min(first + self.group), tiles * part / self.parts..tiles * (part + 1) / self.parts)
    }
}

/// Weights of the longest span of a panel, with a missing column of a pair.
fn span_elements(weight: &PackedMatrix) -> usize {
    SPAN.min(weight.cols().next_multiple_of(2)) * PANEL
}

/// Ask for the weights that this worker begins with.
pub(super) fn prefetch_start(worker: &Worker<'_>, weight: &PackedMatrix, split: Split) {
    let item = split.items() * worker.index() / worker.count();
    let panel = item % split.groups * split.group;
    if panel >= weight.panels() {
        return;
    }
    prefetch(weight.at(panel, 0), START.min(weight.panel_bytes()));
}

/// What all items of one call share.
pub(super) struct Call<'a> {
    pub(super) isa: Isa,
    pub(super) chain: Chain,
    pub(super) weight: &'a PackedMatrix,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) out: RowsMut<'a>,
    pub(super) tiles: Tiles,
    pub(super) activations: *const u8,
    pub(super) split: Split,
    /// Where this worker has [`WIDE_BYTES`].
    pub(super) wide: *mut f32,
}

impl Call<'_> {
    /// Share the items over the workers.
    pub(super) fn run(&self, worker: &Worker<'_>) {
        worker.share(self.split.items(), |item| {
            let (panels, tiles) = self.split.item(item, self.weight.panels(), self.tiles.count);
            for col in (0..self.weight.cols()).step_by(SPAN) {
                self.span(panels.clone(), tiles.clone(), col);
            }
        });
    }

    /// One span of some panels times some tiles of tokens.
    fn span(&self, panels: Range<usize>, tiles: Range<usize>, col: usize) {
        let cols = SPAN.min(self.weight.cols() - col);
        let is_widened = self.split.kept && self.weight.dtype() != DType::F32;
        let wide_span = span_elements(self.weight);
        let wide = |panel: usize| self.wide.wrapping_add((panel - panels.start) * wide_span);
        if is_widened {
            assert!(
                panels.len() * wide_span * size_of::<f32>() <= WIDE_BYTES,
                "no room to make weights wide"
            );
            for panel in panels.clone() {
                // SAFETY: columns of the panel, and asserted to fit this worker's own bytes.
                unsafe {
                    widen(self.isa, self.weight.dtype(), self.weight.at(panel, col), cols, wide(panel))
                };
            }
        }
        for tile in tiles.clone() {
            let (begin, tokens) = self.tiles.range(tile);
            for panel in panels.clone() {
                let row = panel * PANEL;
                let (next, next_step) = self.next(panel, panels.len(), col, tile - tiles.start, tiles.len());
                let described = Tile {
                    weight: if is_widened { wide(panel).cast() } else { self.weight.at(panel, col) },
                    next,
                    next_step,
                    kept: self.split.kept,
                    near: (tiles.len() == 1 && asks_twice()).then_some(NEAR),
                    x: self.activations.wrapping_add(self.tiles.offset(self.chain, tile, col)),
                    cols,
                    out: self.out.as_ptr().wrapping_add(begin * self.out.stride() + row),
                    out_stride: self.out.stride(),
                    rows: self.weight.rows() - row,
                    first: col == 0,
                    bias: match self.bias {
                        Some(bias) if col + cols == self.weight.cols() => bias[row..].as_ptr(),
                        _ => std::ptr::null(),
                    },
                };
                // SAFETY: the tile describes weights, activations and outputs that exist; this item alone has
                // these panels' outputs of these tokens; the level is supported.
                unsafe { kernel(self.isa, self.chain, tokens, &described) };
            }
        }
    }

    /// What a tile asks the memory for, and the step of its requests: alone the weights a bit ahead, else its share of
    /// the span after this one, which for the last span is the first one of the next group.
    fn next(&self, panel: usize, group: usize, col: usize, index: usize, tiles: usize) -> (*const u8, usize) {
        let here = self.weight.at(panel, col);
        let line = if self.weight.dtype() == DType::F16 { 64 } else { 128 };
        if tiles == 1 {
            return (here.wrapping_add(AHEAD), line);
        }
        let span_bytes = SPAN * PANEL * self.weight.dtype().size();
        let after = if col + SPAN < self.weight.cols() {
            here.wrapping_add(span_bytes)
        } else {
            self.weight.at(panel, 0).wrapping_add(group * self.weight.panel_bytes())
        };
        let step = if self.split.kept { span_bytes / SPAN * STEP } else { line };
        (after.wrapping_add(span_bytes * index / tiles), step.div_ceil(tiles))
    }
}

/// Whether weights that one tile reads alone are asked for twice: on an Emerald Rapids bf16 decode is 1.07x as fast (1.11x
/// at AVX2), and 4 rows 1.13x (1.06x), because the second cache can wait for more lines than the first. Measured nowhere
/// else.
fn asks_twice() -> bool {
    Processor::own().vendor == Vendor::Intel
}

/// Run the level's kernel.
unsafe fn kernel(isa: Isa, chain: Chain, tokens: usize, tile: &Tile) {
    // SAFETY: the caller's duty, passed on.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 => super::avx512::run(chain, tokens, tile),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => super::avx2::run(chain, tokens, tile),
            _ => super::tile::scalar(chain, tokens, tile),
        }
    }
}
