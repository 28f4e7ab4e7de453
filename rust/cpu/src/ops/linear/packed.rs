//! Weights of a matmul in the order in which the kernels stream them.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use super::transpose::{self, BLOCK_BYTES};
use crate::error::CpuError;
use crate::isa::Isa;
use crate::tensor::{AlignedBytes, DType};

/// Number of the order of the bytes of a [`PackedMatrix`], which packed files carry: raise it with every change of that
/// order. A test of `packed_file` notices one that was forgotten.
pub(crate) const LAYOUT_VERSION: u32 = 1;

/// Output rows of one panel.
pub(super) const PANEL: usize = 32;

/// A weight matrix `[rows, cols]` cut into panels of 32 rows, one after another.
///
/// A panel holds all columns of its rows: f32 and f16 as `[col][32 rows]`, bf16 as `[col / 2][32 rows][2]` with a
/// zero in the missing last column when `cols` is odd. Missing rows of the last panel are zeros.
pub struct PackedMatrix {
    data: AlignedBytes,
    rows: usize,
    cols: usize,
    dtype: DType,
}

impl PackedMatrix {
    /// A matrix of zeros.
    ///
    /// # Errors
    /// [`CpuError::OutOfMemory`] when the system has no such block, or the size overflows.
    pub fn zeroed(rows: usize, cols: usize, dtype: DType) -> Result<Self, CpuError> {
        let bytes = Self::needed_bytes(rows, cols, dtype)
            .ok_or(CpuError::OutOfMemory { needed_bytes: usize::MAX })?;
        Ok(Self { data: AlignedBytes::zeroed(bytes)?, rows, cols, dtype })
    }

    /// Bytes that such a matrix holds; None when they overflow.
    pub fn needed_bytes(rows: usize, cols: usize, dtype: DType) -> Option<usize> {
        panel_bytes(cols, dtype)?.checked_mul(rows.div_ceil(PANEL))
    }

    /// Output rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Type the weights are stored in.
    pub fn dtype(&self) -> DType {
        self.dtype
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

    /// Bytes of one panel.
    pub(super) fn panel_bytes(&self) -> usize {
        panel_bytes(self.cols, self.dtype).unwrap_or(0)
    }

    /// First byte of column `col` (even for bf16) of panel `panel`.
    pub(super) fn at(&self, panel: usize, col: usize) -> *const u8 {
        debug_assert!(panel < self.panels() && col < self.cols);
        // SAFETY: inside the buffer for a panel and a column in range.
        unsafe { self.data.as_ptr().add(panel * self.panel_bytes() + col * PANEL * self.dtype.size()) }
    }

    /// Store rows `first_row..` from `source`, whole rows, row-major and little endian, converted from
    /// `source_dtype` (rounded to nearest even). Whole panels are fast; single rows at the edges are not.
    ///
    /// # Panics
    /// When `source` is not whole rows, or goes past the last row.
    ///
    /// # Safety
    /// Several threads may pack disjoint rows at once. Nobody may read the matrix, or pack the same rows, meanwhile.
    pub unsafe fn pack_rows(&self, first_row: usize, source: &[u8], source_dtype: DType) {
        // SAFETY: the caller's duty, passed on; the level was just detected.
        unsafe { self.pack_rows_at(Isa::detect(), first_row, source, source_dtype) }
    }

    /// [`pack_rows`](Self::pack_rows) at a chosen instruction level; all give the same bytes.
    ///
    /// # Safety
    /// As `pack_rows`, and the processor must support `isa`.
    pub(super) unsafe fn pack_rows_at(&self, isa: Isa, first_row: usize, source: &[u8], source_dtype: DType) {
        let row_bytes = self.cols * source_dtype.size();
        if row_bytes == 0 {
            return;
        }
        assert!(source.len().is_multiple_of(row_bytes), "source is not whole rows");
        let end = first_row + source.len() / row_bytes;
        assert!(end <= self.rows, "rows out of range");
        let mut row = first_row;
        while row < end {
            let from = &source[(row - first_row) * row_bytes..];
            if isa != Isa::Scalar && row.is_multiple_of(PANEL) && end - row >= PANEL {
                // SAFETY: a whole panel of ours, `from` has at least 32 rows, the level is supported.
                unsafe { self.pack_panel(isa, row / PANEL, from, source_dtype) };
                row += PANEL;
            } else {
                // SAFETY: the row is ours.
                unsafe { self.pack_row(row, &from[..row_bytes], source_dtype) };
                row += 1;
            }
        }
    }

    /// Byte offset of one element.
    fn offset(&self, row: usize, col: usize) -> usize {
        let (panel, lane) = (row / PANEL, row % PANEL);
        let element = match self.dtype {
            DType::F32 | DType::F16 => col * PANEL + lane,
            DType::Bf16 => ((col / 2) * PANEL + lane) * 2 + col % 2,
        };
        panel * self.panel_bytes() + element * self.dtype.size()
    }

    /// The definition: element by element.
    ///
    /// # Safety
    /// Nobody else touches this row.
    unsafe fn pack_row(&self, row: usize, source: &[u8], source_dtype: DType) {
        let size = self.dtype.size();
        let mut bytes = [0u8; 4];
        for col in 0..self.cols {
            if source_dtype == self.dtype {
                bytes[..size].copy_from_slice(&source[col * size..(col + 1) * size]);
            } else {
                self.dtype.set(&mut bytes, 0, source_dtype.get(source, col));
            }
            // SAFETY: `offset` lies in the buffer; the row is ours.
            unsafe {
                let to = self.data.as_ptr().add(self.offset(row, col));
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, size);
            }
        }
    }

    /// Pack 32 rows at once, a block of 64 bytes per row at a time.
    ///
    /// # Safety
    /// The processor supports `isa`, `source` has 32 rows, nobody else touches this panel.
    unsafe fn pack_panel(&self, isa: Isa, panel: usize, source: &[u8], source_dtype: DType) {
        let size = self.dtype.size();
        let (source_size, block_cols) = (source_dtype.size(), 64 / size);
        let source_stride = self.cols * source_size;
        let panel_bytes = self.panel_bytes();
        let split = self.dtype == DType::F16;
        let mut staged = [0u8; BLOCK_BYTES];
        let mut packed = [0u8; BLOCK_BYTES];
        for (block, first_col) in (0..self.cols).step_by(block_cols).enumerate() {
            let cols = block_cols.min(self.cols - first_col);
            // SAFETY: block `block` of this panel, `left` of its bytes are inside the panel.
            let (to, left) = unsafe {
                (
                    self.data.as_ptr().add(panel * panel_bytes + block * BLOCK_BYTES),
                    panel_bytes - block * BLOCK_BYTES,
                )
            };
            let from = &source[first_col * source_size..];
            let direct = cols == block_cols && source_dtype == self.dtype;
            let (from, stride) = if direct {
                (from.as_ptr(), source_stride)
            } else {
                staged.fill(0);
                for lane in 0..PANEL {
                    let row = &from[lane * source_stride..][..cols * source_size];
                    convert(row, source_dtype, &mut staged[lane * 64..][..cols * size], self.dtype);
                }
                (staged.as_ptr(), 64)
            };
            if left >= BLOCK_BYTES {
                // SAFETY: 32 rows of 64 bytes at `from`, 2 KiB at `to`.
                unsafe { transpose::block(isa, from, stride, to, split) };
            } else {
                // SAFETY: as above, then `left` bytes of the panel.
                unsafe {
                    transpose::block(isa, from, stride, packed.as_mut_ptr(), split);
                    std::ptr::copy_nonoverlapping(packed.as_ptr(), to, left);
                }
            }
        }
    }

    /// Read row `row` back as f32.
    ///
    /// # Panics
    /// When the row is out of range or `out` is not `cols` long.
    pub fn unpack_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row out of range");
        assert_eq!(out.len(), self.cols, "one value per column");
        let bytes = self.data.as_slice();
        for (col, value) in out.iter_mut().enumerate() {
            *value = self.dtype.get(&bytes[self.offset(row, col)..], 0);
        }
    }
}

fn panel_bytes(cols: usize, dtype: DType) -> Option<usize> {
    let stored = if dtype == DType::Bf16 { cols.checked_next_multiple_of(2)? } else { cols };
    stored.checked_mul(PANEL * dtype.size())
}

/// Convert at most 32 elements.
fn convert(source: &[u8], source_dtype: DType, out: &mut [u8], dtype: DType) {
    if source_dtype == dtype {
        out.copy_from_slice(source);
        return;
    }
    let count = source.len() / source_dtype.size();
    let mut wide = [0f32; 32];
    let mut halves = [0u16; 32];
    match source_dtype {
        DType::F32 => {
            for (value, bytes) in wide.iter_mut().zip(source.chunks_exact(4)) {
                *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
        DType::F16 => {
            for (value, bytes) in halves.iter_mut().zip(source.chunks_exact(2)) {
                *value = u16::from_le_bytes([bytes[0], bytes[1]]);
            }
            halves.reinterpret_cast::<half::f16>().convert_to_f32_slice(&mut wide);
        }
        DType::Bf16 => {
            for (value, bytes) in wide.iter_mut().zip(source.chunks_exact(2)) {
                *value = half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
            }
        }
    }
    match dtype {
        DType::F32 => {
            for (bytes, value) in out.chunks_exact_mut(4).zip(wide) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        }
        DType::F16 | DType::Bf16 => {
            if dtype == DType::F16 {
                halves.reinterpret_cast_mut::<half::f16>().convert_from_f32_slice(&wide);
            } else {
                halves.reinterpret_cast_mut::<half::bf16>().convert_from_f32_slice(&wide);
            }
            for (bytes, value) in out.chunks_exact_mut(2).zip(halves).take(count) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_packs_the_same_bytes() {
        let all = [DType::F32, DType::F16, DType::Bf16];
        for (rows, cols) in [(1, 1), (31, 24), (32, 1), (33, 31), (64, 32), (333, 100), (96, 513), (32, 33)] {
            for source_dtype in all {
                let source: Vec<u8> = (0..rows * cols * source_dtype.size())
                    .map(|at| (at.wrapping_mul(2654435761) >> 13) as u8)
                    .collect();
                for dtype in all {
                    let pack = |isa: Isa| {
                        let matrix = PackedMatrix::zeroed(rows, cols, dtype).unwrap();
                        let split = (rows / 2) * cols * source_dtype.size();
                        // SAFETY: one thread; only supported levels are passed.
                        unsafe {
                            matrix.pack_rows_at(isa, 0, &source[..split], source_dtype);
                            matrix.pack_rows_at(isa, rows / 2, &source[split..], source_dtype);
                        }
                        matrix.data.as_slice().to_vec()
                    };
                    let whole = |isa: Isa| {
                        let matrix = PackedMatrix::zeroed(rows, cols, dtype).unwrap();
                        // SAFETY: as above.
                        unsafe { matrix.pack_rows_at(isa, 0, &source, source_dtype) };
                        matrix.data.as_slice().to_vec()
                    };
                    let expected = pack(Isa::Scalar);
                    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
                        assert!(pack(isa) == expected, "{isa} {rows}x{cols} {source_dtype:?} to {dtype:?}");
                        assert!(whole(isa) == expected, "{isa} {rows}x{cols} {source_dtype:?} to {dtype:?}");
                    }
                }
            }
        }
    }
}
