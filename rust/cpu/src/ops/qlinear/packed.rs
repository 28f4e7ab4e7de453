//! Integer weights of a matmul in the order in which the kernels stream them.

use crate::error::CpuError;
use crate::isa::Isa;
use crate::ops::linear::transpose::{self, BLOCK_BYTES};
use crate::quant::{NotFinite, QuantFormat, RowQuantizer};
use crate::tensor::{AlignedBytes, DType};

/// Output rows of one panel.
pub(super) const PANEL: usize = 32;
/// Bytes of the codes of one step: a dword for each row of a panel.
pub(super) const STEP_BYTES: usize = 4 * PANEL;

/// A weight matrix `[rows, cols]` of integers, cut into panels of 32 rows, one after another.
///
/// A panel is `[group][32 rows]` f16 scales, then (unless symmetric) `[group][32 rows]` u8 zeros, padded to a cache line,
/// then `[step][32 rows]` dwords of codes. A dword holds eight codes of 4 bits, byte j columns j (low half) and j + 4, or
/// four codes of 8 bits, byte j column j. Missing rows of the last panel are zeros.
pub struct QuantizedMatrix {
    data: AlignedBytes,
    rows: usize,
    cols: usize,
    format: QuantFormat,
}

/// One worker's memory to quantize rows of one matrix in.
pub struct PanelQuantizer {
    row: RowQuantizer,
    /// `[32 rows][stride]` dwords of codes, row by row.
    lines: AlignedBytes,
    stride: usize,
}

impl PanelQuantizer {
    /// For rows of `matrix`.
    ///
    /// # Errors
    /// [`CpuError::OutOfMemory`] when the system has no such block.
    pub fn new(matrix: &QuantizedMatrix) -> Result<Self, CpuError> {
        let stride = (matrix.cols * matrix.format.bits / 8).next_multiple_of(64);
        let lines = AlignedBytes::zeroed(PANEL * stride)?;
        Ok(Self { row: RowQuantizer::new(matrix.format, matrix.cols), lines, stride })
    }
}

impl QuantizedMatrix {
    /// A matrix whose scales are all zero.
    ///
    /// # Errors
    /// [`CpuError::OutOfMemory`] when the system has no such block, or the size overflows; [`CpuError::Config`] for a
    /// format that does not exist or does not divide the columns.
    pub fn zeroed(rows: usize, cols: usize, format: QuantFormat) -> Result<Self, CpuError> {
        format.check(cols).map_err(|(field, what)| CpuError::Config { field, what })?;
        let bytes = Self::needed_bytes(rows, cols, format)
            .ok_or(CpuError::OutOfMemory { needed_bytes: usize::MAX })?;
        Ok(Self { data: AlignedBytes::zeroed(bytes)?, rows, cols, format })
    }

    /// The matrix with this canonical form: `codes` `[rows, cols]`, `scales` (bits of f16) and, unless the format is
    /// symmetric, `zeros`, both `[rows, cols / group_size]`.
    ///
    /// # Errors
    /// Those of [`zeroed`](Self::zeroed).
    ///
    /// # Panics
    /// When a length does not fit, or a code or a zero has more bits than the format.
    pub fn from_canonical(
        rows: usize,
        cols: usize,
        format: QuantFormat,
        codes: &[u8],
        scales: &[u16],
        zeros: Option<&[u8]>,
    ) -> Result<Self, CpuError> {
        let matrix = Self::zeroed(rows, cols, format)?;
        let groups = matrix.groups();
        assert_eq!(codes.len(), rows * cols, "codes");
        assert_eq!(scales.len(), rows * groups, "scales");
        assert_eq!(zeros.map(<[u8]>::len), (!format.symmetric).then_some(rows * groups), "zeros");
        let fits = |all: &[u8]| all.iter().all(|code| *code <= format.max_code());
        assert!(fits(codes) && zeros.is_none_or(fits), "a code has too many bits");
        let none = vec![format.middle(); groups];
        let mut line = vec![0; cols * format.bits / 8];
        for row in 0..rows {
            let zeros = zeros.map_or(&none[..], |zeros| &zeros[row * groups..][..groups]);
            join_codes(format, &codes[row * cols..][..cols], &mut line);
            // SAFETY: nobody else has the matrix yet.
            unsafe {
                matrix.store_header(row, &scales[row * groups..][..groups], zeros);
                matrix.store_line(row, &line);
            }
        }
        Ok(matrix)
    }

    /// Bytes that such a matrix holds; None when they overflow.
    pub fn needed_bytes(rows: usize, cols: usize, format: QuantFormat) -> Option<usize> {
        let codes = cols.checked_mul(PANEL * format.bits / 8)?;
        codes.checked_add(header_bytes(cols, format)?)?.checked_mul(rows.div_ceil(PANEL))
    }

    /// Output rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How the weights are cut into groups of integers.
    pub fn format(&self) -> QuantFormat {
        self.format
    }

    /// Bytes of memory held, padding included.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Number of panels.
    pub(super) fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// Groups of one row.
    pub(super) fn groups(&self) -> usize {
        self.cols / self.format.group_size
    }

    /// Bytes of one panel.
    pub(super) fn panel_bytes(&self) -> usize {
        self.header_bytes() + self.cols * PANEL * self.format.bits / 8
    }

    fn header_bytes(&self) -> usize {
        header_bytes(self.cols, self.format).unwrap_or(0)
    }

    /// First scale, first zero (when symmetric: no zero) and first code of a panel.
    pub(super) fn panel(&self, panel: usize) -> (*const u8, *const u8, *const u8) {
        debug_assert!(panel < self.panels());
        let scales = self.data.as_ptr().wrapping_add(panel * self.panel_bytes()).cast_const();
        let zeros = scales.wrapping_add(2 * PANEL * self.groups());
        (scales, zeros, scales.wrapping_add(self.header_bytes()))
    }

    /// Quantize the whole rows in `source`, row-major and little endian, and store them from row `first_row` on. Whole
    /// panels are fastest.
    ///
    /// # Errors
    /// `NotFinite` when a weight is NaN or infinite; some rows are stored then.
    ///
    /// # Panics
    /// When `source` is not whole rows, goes past the last row, or `own` was made for another shape.
    ///
    /// # Safety
    /// Several threads may store disjoint rows at once. Nobody may read the matrix, or store the same rows, meanwhile.
    pub(crate) unsafe fn quantize_rows(
        &self,
        first_row: usize,
        source: &[u8],
        source_dtype: DType,
        own: &mut PanelQuantizer,
    ) -> Result<(), NotFinite> {
        let row_bytes = self.cols * source_dtype.size();
        assert!(source.len().is_multiple_of(row_bytes), "source is not whole rows");
        let end = first_row + source.len() / row_bytes;
        assert!(end <= self.rows, "rows out of range");
        let PanelQuantizer { row, lines, stride } = own;
        let (lines, line_bytes) = (lines.as_mut_slice(), self.cols * self.format.bits / 8);
        let mut first = first_row;
        while first < end {
            let count = (PANEL - first % PANEL).min(end - first);
            for index in first..first + count {
                row.quantize(&source[(index - first_row) * row_bytes..][..row_bytes], source_dtype)?;
                let line = &mut lines[index % PANEL * *stride..][..line_bytes];
                join_codes(self.format, &row.codes, line);
                // SAFETY: the row is ours.
                unsafe { self.store_header(index, &row.scales, &row.zeros) };
            }
            if count == PANEL {
                // SAFETY: the panel is ours.
                unsafe { self.store_panel(first / PANEL, lines, *stride) };
            } else {
                for index in first..first + count {
                    // SAFETY: the row is ours.
                    unsafe { self.store_line(index, &lines[index % PANEL * *stride..][..line_bytes]) };
                }
            }
            first += count;
        }
        Ok(())
    }

    /// Store a row's scales and zeros.
    ///
    /// # Safety
    /// Nobody else touches this row.
    unsafe fn store_header(&self, row: usize, scales: &[u16], zeros: &[u8]) {
        let (panel, lane) = (row / PANEL, row % PANEL);
        let (to_scales, to_zeros, _) = self.panel(panel);
        assert!(row < self.rows && scales.len() == self.groups() && zeros.len() == self.groups());
        for (group, (scale, zero)) in scales.iter().zip(zeros).enumerate() {
            let at = group * PANEL + lane;
            // SAFETY: inside the header of this panel; the row is ours.
            unsafe {
                to_scales.cast_mut().cast::<u16>().add(at).write(*scale);
                if !self.format.symmetric {
                    to_zeros.cast_mut().add(at).write(*zero);
                }
            }
        }
    }

    /// Store a row's dwords of codes.
    ///
    /// # Safety
    /// Nobody else touches this row.
    unsafe fn store_line(&self, row: usize, line: &[u8]) {
        assert!(row < self.rows && line.len() == self.cols * self.format.bits / 8);
        let to = self.panel(row / PANEL).2.cast_mut();
        for (step, dword) in line.chunks_exact(4).enumerate() {
            // SAFETY: a dword of this row, inside its panel.
            unsafe {
                let to = to.add(step * STEP_BYTES + 4 * (row % PANEL));
                to.copy_from_nonoverlapping(dword.as_ptr(), 4);
            }
        }
    }

    /// Store 32 rows of dwords, `stride` bytes apart.
    ///
    /// # Safety
    /// Nobody else touches this panel.
    unsafe fn store_panel(&self, panel: usize, lines: &[u8], stride: usize) {
        assert!(panel < self.rows / PANEL && lines.len() >= PANEL * stride);
        let isa = Isa::detect();
        let whole = self.cols * PANEL * self.format.bits / 8;
        let codes = self.panel(panel).2.cast_mut();
        let mut packed = [0u8; BLOCK_BYTES];
        for at in (0..whole).step_by(BLOCK_BYTES) {
            let from = lines[at / PANEL..].as_ptr();
            // SAFETY: 32 rows of 64 bytes to read, the stride being whole blocks; the panel's bytes to write, ours.
            unsafe {
                if whole - at >= BLOCK_BYTES {
                    transpose::block(isa, from, stride, codes.add(at), false);
                } else {
                    transpose::block(isa, from, stride, packed.as_mut_ptr(), false);
                    codes.add(at).copy_from_nonoverlapping(packed.as_ptr(), whole - at);
                }
            }
        }
    }

    /// Read row `row` back as f32: `(code - zero) * scale`.
    ///
    /// # Panics
    /// When the row is out of range or `out` is not `cols` long.
    pub fn unpack_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row out of range");
        assert_eq!(out.len(), self.cols, "one value per column");
        let per_step = 32 / self.format.bits;
        for (group, values) in out.chunks_exact_mut(self.format.group_size).enumerate() {
            let (scale, zero) = self.header(row, group);
            let first = group * self.format.group_size / per_step;
            for (step, values) in values.chunks_exact_mut(per_step).enumerate() {
                let dword = self.dword(row, first + step);
                for (index, value) in values.iter_mut().enumerate() {
                    let code = if self.format.bits == 8 {
                        dword[index]
                    } else {
                        dword[index % 4] >> (index / 4 * 4) & 15
                    };
                    *value = (f32::from(code) - f32::from(zero)) * scale;
                }
            }
        }
    }

    /// Scale and zero of one group of one row.
    fn header(&self, row: usize, group: usize) -> (f32, u8) {
        let (scales, zeros, _) = self.panel(row / PANEL);
        let at = group * PANEL + row % PANEL;
        assert!(row < self.rows && group < self.groups());
        // SAFETY: inside the header of the row's panel.
        unsafe {
            let scale = half::f16::from_bits(scales.cast::<u16>().add(at).read()).to_f32();
            let zero = if self.format.symmetric { self.format.middle() } else { zeros.add(at).read() };
            (scale, zero)
        }
    }

    fn dword(&self, row: usize, step: usize) -> [u8; 4] {
        assert!(row < self.rows && step < self.cols * self.format.bits / 32);
        let codes = self.panel(row / PANEL).2;
        // SAFETY: a dword of the row's panel.
        unsafe { codes.add(step * STEP_BYTES + 4 * (row % PANEL)).cast::<[u8; 4]>().read() }
    }
}

fn header_bytes(cols: usize, format: QuantFormat) -> Option<usize> {
    let per_group = PANEL * if format.symmetric { 2 } else { 3 };
    (cols / format.group_size).checked_mul(per_group)?.checked_next_multiple_of(64)
}

/// One row's codes as the dwords of a panel.
fn join_codes(format: QuantFormat, codes: &[u8], line: &mut [u8]) {
    if format.bits == 8 {
        line.copy_from_slice(codes);
        return;
    }
    for (dword, codes) in line.chunks_exact_mut(4).zip(codes.chunks_exact(8)) {
        for (index, byte) in dword.iter_mut().enumerate() {
            *byte = codes[index] | codes[index + 4] << 4;
        }
    }
}
