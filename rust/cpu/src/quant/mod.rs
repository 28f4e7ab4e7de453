//! Integer weights: their canonical form, and how float weights become it.
//!
//! The canonical form of a matrix `[rows, cols]` is codes u8 `[rows, cols]`, one per byte, 0 to `2^bits - 1`; scales f16
//! and zeros u8 `[rows, cols / group_size]`, the zeros left out when symmetric (then they are all `2^(bits - 1)`). A
//! weight is `(code - zero) * f32(scale)`. `python/pyrite/quant/reference.py` defines how the integers are found; this
//! module gives the same bytes.

mod rows;
mod search;
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

/// How a matrix is cut into groups of integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct QuantFormat {
    /// 4 or 8.
    pub bits: usize,
    /// Inputs that share a scale: 32, 64 or 128.
    pub group_size: usize,
    /// Whether zero is always the middle code.
    pub symmetric: bool,
}

impl QuantFormat {
    /// Say what is wrong with the format, or with columns that do not divide into its groups.
    ///
    /// # Errors
    /// The name of the field and a sentence.
    pub fn check(self, cols: usize) -> Result<(), (&'static str, String)> {
        let Self { bits, group_size, .. } = self;
        if ![4, 8].contains(&bits) {
            return Err(("bits", format!("got {bits}, expected 4 or 8")));
        }
        if ![32, 64, 128].contains(&group_size) {
            return Err(("group_size", format!("got {group_size}, expected 32, 64 or 128")));
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

    /// Inputs that share a scale when activations become int8.
    pub fn span(self) -> usize {
        self.group_size.min(ACTIVATION_SPAN)
    }
}
