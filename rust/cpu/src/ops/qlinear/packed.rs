//! Integer weights of a matmul in the order in which the kernels stream them.

use super::shared;
use super::tile::GroupPlace;
use crate::error::CpuError;
use crate::isa::Isa;
use crate::ops::linear::transpose::{self, BLOCK_BYTES};
use crate::quant::{GROUPS_PER_SCALE, NotFinite, QuantFormat, RowQuantizer};
use crate::tensor::{AlignedBytes, DType};

/// Number of the order of the bytes of a [`QuantizedMatrix`], which packed files carry: raise it with every change of that
/// order. A test of `packed_file` notices one that was forgotten.
pub(crate) const LAYOUT_VERSION: u32 = 1;

/// Output rows of one panel.
pub(super) const PANEL: usize = 32;
/// Bytes of the codes of one step: a dword for each row of a panel.
pub(super) const STEP_BYTES: usize = 4 * PANEL;
/// Groups whose scales and zeros lie together, so that all lines of codes are lines of the cache.
pub(super) const fn groups_per_block(format: QuantFormat) -> usize {
    if format.is_shared() { GROUPS_PER_SCALE } else { 2 }
}

/// A weight matrix `[rows, cols]` of integers, cut into panels of 32 rows, one after another.
///
/// A panel is a sequence of blocks of two groups (one, at the end of an odd number), so that a kernel reads it from its
/// first byte to its last. A block is `[group][32 rows]` f16 scales, then (unless symmetric) `[group][32 rows]` u8 zeros,
/// padded to a cache line, then `[step][32 rows]` dwords of codes. A dword holds eight codes of 4 bits, byte j columns j
/// (low half) and j + 4, or four codes of 8 bits, byte j column j. Missing rows of the last panel are zeros.
///
/// Where four groups share a scale, a block is those four (fewer, at the end), and begins with `[32 rows]` dwords of that
/// scale and their multiples of it (see [`shared`]).
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

    /// The matrix with this canonical form: `codes` `[rows, cols]`; `scales` (bits of f16), for each row one per group or
    /// per groups that share one; and `of_groups` `[rows, cols / group_size]`, the zeros unless the format is symmetric,
    /// or the multiples, i8, of shared scales.
    ///
    /// # Errors
    /// Those of [`zeroed`](Self::zeroed).
    ///
    /// # Panics
    /// When a length does not fit, a code or a zero has more bits than the format, or a shared scale or a multiple of it
    /// is none that the search finds.
    pub fn from_canonical(
        rows: usize,
        cols: usize,
        format: QuantFormat,
        codes: &[u8],
        scales: &[u16],
        of_groups: Option<&[u8]>,
    ) -> Result<Self, CpuError> {
        let matrix = Self::zeroed(rows, cols, format)?;
        let (groups, num_scales) = (matrix.groups(), format.num_scales(cols));
        assert_eq!(codes.len(), rows * cols, "codes");
        assert_eq!(scales.len(), rows * num_scales, "scales");
        assert_eq!(of_groups.map(<[u8]>::len), format.has_group_bytes().then_some(rows * groups), "groups");
        let fits = |all: &[u8]| all.iter().all(|code| *code <= format.max_code());
        assert!(fits(codes) && (format.symmetric || of_groups.is_none_or(fits)), "a code has too many bits");
        let none = vec![format.middle(); groups];
        let mut line = vec![0; cols * format.bits / 8];
        for row in 0..rows {
            let of_groups = of_groups.map_or(&none[..], |bytes| &bytes[row * groups..][..groups]);
            join_codes(format, &codes[row * cols..][..cols], &mut line);
            // SAFETY: nobody else has the matrix yet.
            unsafe {
                matrix.store_header(row, &scales[row * num_scales..][..num_scales], of_groups);
                matrix.store_line(row, &line);
            }
        }
        Ok(matrix)
    }

    /// Bytes that such a matrix holds; None when they overflow.
    pub fn needed_bytes(rows: usize, cols: usize, format: QuantFormat) -> Option<usize> {
        panel_bytes(cols, format)?.checked_mul(rows.div_ceil(PANEL))
    }

    /// Whether both halves of so many rows are whole panels, which a gated activation on the way out needs.
    pub fn has_whole_halves(rows: usize) -> bool {
        rows.is_multiple_of(2 * PANEL)
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

    /// All bytes, in the order of [`LAYOUT_VERSION`].
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.data.as_slice()
    }

    /// All bytes, to be filled with those of an equal matrix. No content breaks more than the numbers.
    pub(crate) fn as_bytes_mut(&mut self) -> &mut [u8] {
        self.data.as_mut_slice()
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
        panel_bytes(self.cols, self.format).unwrap_or(0)
    }

    /// First byte of a panel.
    pub(super) fn panel(&self, panel: usize) -> *const u8 {
        debug_assert!(panel < self.panels());
        self.data.as_ptr().wrapping_add(panel * self.panel_bytes()).cast_const()
    }

    fn place(&self, group: usize) -> GroupPlace {
        GroupPlace::new(self.format, self.groups(), group)
    }

    /// Bytes of the codes of one group in one panel.
    fn group_code_bytes(&self) -> usize {
        self.format.group_size * PANEL * self.format.bits / 8
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
                unsafe { self.store_header(index, &row.scales, &row.of_groups) };
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

    /// Store a row's scales, and zeros or multiples.
    ///
    /// # Safety
    /// Nobody else touches this row.
    unsafe fn store_header(&self, row: usize, scales: &[u16], of_groups: &[u8]) {
        let (panel, lane) = (self.panel(row / PANEL).cast_mut(), row % PANEL);
        assert!(row < self.rows && scales.len() == self.format.num_scales(self.cols));
        assert!(of_groups.len() == self.groups());
        if self.format.is_shared() {
            for (block, (scale, multiples)) in
                scales.iter().zip(of_groups.chunks(GROUPS_PER_SCALE)).enumerate()
            {
                let header = shared::join(*scale, multiples);
                let to = panel.wrapping_add(self.place(block * GROUPS_PER_SCALE).scales).cast::<u32>();
                // SAFETY: inside the header of a block of this panel; the row is ours.
                unsafe { to.add(lane).write(header) };
            }
            return;
        }
        for (group, (scale, zero)) in scales.iter().zip(of_groups).enumerate() {
            let place = self.place(group);
            // SAFETY: inside the header of a block of this panel; the row is ours.
            unsafe {
                panel.add(place.scales).cast::<u16>().add(lane).write(*scale);
                if !self.format.symmetric {
                    panel.add(place.zeros + lane).write(*zero);
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
        let panel = self.panel(row / PANEL).cast_mut();
        for (group, dwords) in line.chunks_exact(self.group_code_bytes() / PANEL).enumerate() {
            let first = self.place(group).codes + 4 * (row % PANEL);
            for (step, dword) in dwords.chunks_exact(4).enumerate() {
                // SAFETY: a dword of this row, inside its panel.
                unsafe { panel.add(first + step * STEP_BYTES).copy_from_nonoverlapping(dword.as_ptr(), 4) };
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
        let (whole, piece) = (self.cols * PANEL * self.format.bits / 8, self.group_code_bytes());
        let to = self.panel(panel).cast_mut();
        let mut packed = [0u8; BLOCK_BYTES];
        for at in (0..whole).step_by(BLOCK_BYTES) {
            let from = lines[at / PANEL..].as_ptr();
            // SAFETY: 32 rows of 64 bytes to read, the stride being whole blocks; 2 KiB to write.
            unsafe { transpose::block(isa, from, stride, packed.as_mut_ptr(), false) };
            // A group is a part of what was transposed, or the other way round.
            let end = whole.min(at + BLOCK_BYTES);
            for first in (at..end).step_by(piece.min(BLOCK_BYTES)) {
                let count = piece.min(end - first);
                let codes = self.place(first / piece).codes + first % piece;
                // SAFETY: bytes of one group of the panel, ours.
                unsafe { to.add(codes).copy_from_nonoverlapping(packed[first - at..].as_ptr(), count) };
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
            for (step, values) in values.chunks_exact_mut(per_step).enumerate() {
                let dword = self.dword(row, group, step);
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
        assert!(row < self.rows && group < self.groups());
        let (panel, lane, place) = (self.panel(row / PANEL), row % PANEL, self.place(group));
        // SAFETY: inside the header of a block of the row's panel.
        unsafe {
            if self.format.is_shared() {
                let (scale, multiples) =
                    shared::split(panel.add(place.scales).cast::<u32>().add(lane).read());
                return (scale * multiples[group % GROUPS_PER_SCALE] as f32, self.format.middle());
            }
            let scale = half::f16::from_bits(panel.add(place.scales).cast::<u16>().add(lane).read()).to_f32();
            let zero = if self.format.symmetric {
                self.format.middle()
            } else {
                panel.add(place.zeros + lane).read()
            };
            (scale, zero)
        }
    }

    /// Dword `step` of one group of one row.
    fn dword(&self, row: usize, group: usize, step: usize) -> [u8; 4] {
        assert!(
            row < self.rows && group < self.groups() && step < self.format.group_size * self.format.bits / 32
        );
        let at = self.place(group).codes + step * STEP_BYTES + 4 * (row % PANEL);
        // SAFETY: a dword of the row's panel.
        unsafe { self.panel(row / PANEL).add(at).cast::<[u8; 4]>().read() }
    }
}

/// Bytes of the scales and zeros of a block of `groups` groups.
pub(super) const fn block_header_bytes(format: QuantFormat, groups: usize) -> usize {
    if format.is_shared() {
        return if groups > 0 { 4 * PANEL } else { 0 };
    }
    groups * PANEL * 2 + if format.symmetric { 0 } else { (groups * PANEL).next_multiple_of(64) }
}

fn panel_bytes(cols: usize, format: QuantFormat) -> Option<usize> {
    let (groups, per_block) = (cols / format.group_size, groups_per_block(format));
    let (blocks, left) = (groups / per_block, groups % per_block);
    let headers = blocks.checked_mul(block_header_bytes(format, per_block))?;
    let codes = cols.checked_mul(PANEL * format.bits / 8)?;
    codes.checked_add(headers)?.checked_add(block_header_bytes(format, left))
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
