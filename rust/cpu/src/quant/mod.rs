//! Integer weights: their canonical form, and how float weights become it.
//!
//! The canonical form of a matrix `[rows, cols]` is codes u8 `[rows, cols]`, one per byte, 0 to `2^bits - 1`; scales f16
//! and zeros u8 `[rows, cols / group_size]`, the zeros left out when symmetric (then they are all `2^(bits - 1)`). A
//! weight is `(code - zero) * f32(scale)`. Where four groups share a scale, the scale of each is a small multiple of it:
//! scales f16 `[rows, groups / 4]`, rounded up, and multiples i8 `[rows, groups]`.
//! `python/pyrite/quant/reference.py` defines how the integers are found; this module gives the same bytes.

mod rows;
mod search;
mod shared;
mod tensors;

use serde::{Deserialize, Serialize};

pub(crate) use rows::{NotFinite, RowQuantizer};
pub use search::quantize_row;
pub use tensors::{CanonicalMatrix, quantize_tensors};

/// Number of the way in which codes and scales are found, which packed files carry: raise it when the integers that a
/// float matrix becomes change. A test of `packed_file` notices when that was forgotten.
pub(crate) const SEARCH_VERSION: u32 = 1;

/// Inputs that share a scale when activations become int8, where groups are not smaller.
pub const ACTIVATION_SPAN: usize = 64;

/// Groups of 32 that share a scale, in the format where several do.
pub const GROUPS_PER_SCALE: usize = 4;

/// Largest magnitude of the multiple of a shared scale that a group has: `code - 8` times it fits eight bits.
pub(crate) const LARGEST_MULTIPLE: i8 = 15;

/// How a matrix is cut into groups of integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct QuantFormat {
    /// 4 or 8.
    pub bits: usize,
    /// Inputs of a group: 32, 64 or 128.
    pub group_size: usize,
    /// Whether zero is always the middle code.
    pub symmetric: bool,
    /// 1; or 4 groups whose scales are small multiples of one, for 4 bits in symmetric groups of 32.
    pub groups_per_scale: usize,
}

impl QuantFormat {
    /// Four bits in symmetric groups of 32, four of which share a scale.
    pub const SHARED: Self =
        Self { bits: 4, group_size: 32, symmetric: true, groups_per_scale: GROUPS_PER_SCALE };

    /// Groups with a scale each.
    pub const fn new(bits: usize, group_size: usize, symmetric: bool) -> Self {
        Self { bits, group_size, symmetric, groups_per_scale: 1 }
    }

    /// Whether several groups share a scale.
    pub const fn is_shared(self) -> bool {
        self.groups_per_scale > 1
    }

    /// Say what is wrong with the format, or with columns that do not divide into its groups.
    ///
    /// # Errors
    /// The name of the field and a sentence.
    pub fn check(self, cols: usize) -> Result<(), (&'static str, String)> {
        let Self { bits, group_size, groups_per_scale, .. } = self;
        if ![4, 8].contains(&bits) {
            return Err(("bits", format!("got {bits}, expected 4 or 8")));
        }
        if ![32, 64, 128].contains(&group_size) {
            return Err(("group_size", format!("got {group_size}, expected 32, 64 or 128")));
        }
        if groups_per_scale != 1 && self != Self::SHARED {
            let what = format!(
                "got {groups_per_scale}, expected 1, or {GROUPS_PER_SCALE} for symmetric groups of 32 of 4 bits"
            );
            return Err(("groups_per_scale", what));
        }
        if cols == 0 || !cols.is_multiple_of(group_size) {
            let what = format!("{cols} columns do not divide into groups of {group_size}");
            return Err(("group_size", what));
        }
        Ok(())
    }

    /// The largest code.
    pub fn max_code(self) -> u8 {
        if self.bits == 4 { 15 } else { 255 }
    }

    /// The zero of a symmetric matrix.
    pub fn middle(self) -> u8 {
        if self.bits == 4 { 8 } else { 128 }
    }

    /// Inputs that share a scale when activations become int8: all that share one of the weights, or at most
    /// [`ACTIVATION_SPAN`]. The last span of a row may be shorter where groups share a scale.
    pub fn span(self) -> usize {
        if self.is_shared() {
            self.group_size * self.groups_per_scale
        } else {
            self.group_size.min(ACTIVATION_SPAN)
        }
    }

    /// Scales of a row.
    pub fn num_scales(self, cols: usize) -> usize {
        (cols / self.group_size).div_ceil(self.groups_per_scale)
    }

    /// Whether each group has a byte of its own: a zero, or a multiple of the scale that it shares.
    pub fn has_group_bytes(self) -> bool {
        !self.symmetric || self.is_shared()
    }
}
