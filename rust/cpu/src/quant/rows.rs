//! Rows of a checkpoint tensor to the canonical form, one at a time.

use super::{QuantFormat, search};
use crate::isa::Isa;
use crate::tensor::DType;

/// A weight is NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotFinite;

/// One row in the canonical form, and the memory to make it in.
pub(crate) struct RowQuantizer {
    isa: Isa,
    format: QuantFormat,
    values: Vec<f32>,
    /// One per column.
    pub(crate) codes: Vec<u8>,
    /// Bits of f16, one per group.
    pub(crate) scales: Vec<u16>,
    /// One per group.
    pub(crate) zeros: Vec<u8>,
}

impl RowQuantizer {
    /// For rows of `cols` columns, which the format's groups divide.
    pub(crate) fn new(format: QuantFormat, cols: usize) -> Self {
        let groups = cols / format.group_size;
        Self {
            isa: Isa::detect(),
            format,
            values: vec![0.0; cols],
            codes: vec![0; cols],
            scales: vec![0; groups],
            zeros: vec![0; groups],
        }
    }

    /// Quantize the row at the start of `source`; the result is in the public fields.
    pub(crate) fn quantize(&mut self, source: &[u8], dtype: DType) -> Result<(), NotFinite> {
        dtype.widen(source, &mut self.values);
        let largest = self.values.iter().fold(0, |largest, value| largest.max(value.to_bits() & 0x7fff_ffff));
        if largest >= f32::INFINITY.to_bits() {
            return Err(NotFinite);
        }
        let Self { isa, format, values, codes, scales, zeros } = self;
        search::quantize_row(*isa, values, *format, codes, scales, zeros);
        Ok(())
    }
}
