//! Rows of a checkpoint tensor to the canonical form, one at a time.

use std::borrow::Cow;

use super::{GROUPS_PER_SCALE, QuantFormat, search};
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
    /// Bits of f16, one per group or per groups that share one.
    pub(crate) scales: Vec<u16>,
    /// One per group: its zero, or (i8) its multiple of the scale that it shares.
    pub(crate) of_groups: Vec<u8>,
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
            scales: vec![0; format.num_scales(cols)],
            of_groups: vec![0; groups],
        }
    }

    /// Quantize the row at the start of `source`; the result is in the public fields.
    pub(crate) fn quantize(&mut self, source: &[u8], dtype: DType) -> Result<(), NotFinite> {
        dtype.widen(source, &mut self.values);
        let largest = self.values.iter().fold(0, |largest, value| largest.max(value.to_bits() & 0x7fff_ffff));
        if largest >= f32::INFINITY.to_bits() {
            return Err(NotFinite);
        }
        let Self { isa, format, values, codes, scales, of_groups } = self;
        search::quantize_row(*isa, values, *format, codes, scales, of_groups);
        Ok(())
    }

    /// Bits of f16: a scale for each group, also where several share one. Their multiples of it are exact.
    pub(crate) fn group_scales(&self) -> Cow<'_, [u16]> {
        if !self.format.is_shared() {
            return Cow::Borrowed(&self.scales);
        }
        let shared = self.scales.iter().flat_map(|scale| [*scale; GROUPS_PER_SCALE]);
        let multiply = |(scale, multiple): (u16, &u8)| {
            let scale = half::f16::from_bits(scale).to_f32();
            half::f16::from_f32(scale * f32::from(multiple.cast_signed())).to_bits()
        };
        Cow::Owned(shared.zip(&self.of_groups).map(multiply).collect())
    }
}
