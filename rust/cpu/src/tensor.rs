//! Memory that kernels read and write: aligned buffers, row views over them, element types.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use crate::error::CpuError;

/// Element type of weights and of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The name used by `LLM(dtype=...)` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    /// The type of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::F32, Self::F16, Self::Bf16].into_iter().find(|dtype| dtype.name() == name)
    }

    /// Read element `index` of `bytes` (little endian) as f32.
    pub fn get(self, bytes: &[u8], index: usize) -> f32 {
        match self {
            Self::F32 => {
                let at = 4 * index;
                f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
            }
            Self::F16 => half::f16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32(),
            Self::Bf16 => half::bf16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32(),
        }
    }

    /// Read the first `out.len()` elements of `bytes` (little endian) as f32.
    ///
    /// # Panics
    /// When `bytes` is too short.
    pub fn widen(self, bytes: &[u8], out: &mut [f32]) {
        let bytes = &bytes[..out.len() * self.size()];
        match self {
            Self::F32 => {
                for (value, bytes) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                }
            }
            Self::F16 => {
                let mut halves = [0u16; 64];
                for (values, bytes) in out.chunks_mut(64).zip(bytes.chunks(128)) {
                    for (half, bytes) in halves.iter_mut().zip(bytes.chunks_exact(2)) {
                        *half = u16::from_le_bytes([bytes[0], bytes[1]]);
                    }
                    let halves = halves[..values.len()].reinterpret_cast::<half::f16>();
                    halves.convert_to_f32_slice(values);
                }
            }
            Self::Bf16 => {
                for (value, bytes) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *value = f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16);
                }
            }
        }
    }

    /// Write `value` as element `index` of `bytes`, rounded to nearest even.
    pub fn set(self, bytes: &mut [u8], index: usize, value: f32) {
        match self {
            Self::F32 => bytes[4 * index..4 * index + 4].copy_from_slice(&value.to_le_bytes()),
            Self::F16 => {
                bytes[2 * index..2 * index + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
            }
            Self::Bf16 => {
                bytes[2 * index..2 * index + 2].copy_from_slice(&half::bf16::from_f32(value).to_le_bytes());
            }
        }
    }
}

/// Bytes from which on a buffer is mapped by itself.
const MAPPED: usize = 128 << 10;
/// Alignment of such a buffer: the smallest page there is.
const PAGE: usize = 4096;

/// A zeroed buffer, on the boundary of a page when large, else on 128 bytes.
pub struct AlignedBytes {
    pointer: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its memory like a `Vec<u8>` does.
unsafe impl Send for AlignedBytes {}
// SAFETY: as above; shared access is reads only, or goes through `as_ptr` under the caller's own rules.
unsafe impl Sync for AlignedBytes {}

impl AlignedBytes {
    /// Allocate `bytes` zeroed bytes.
    ///
    /// # Errors
    /// [`CpuError::OutOfMemory`] when the system has no such block.
    pub fn zeroed(bytes: usize) -> Result<Self, CpuError> {
        let align = if bytes >= MAPPED { PAGE } else { 128 };
        let refuse = || CpuError::OutOfMemory { needed_bytes: bytes };
        let layout = Layout::from_size_align(bytes.max(1), align).map_err(|_| refuse())?;
        #[cfg(target_os = "linux")]
        if align == PAGE {
            return Ok(Self { pointer: map_huge(layout.size()).ok_or_else(refuse)?, layout });
        }
        // SAFETY: the layout has a non-zero size.
        let pointer = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(refuse)?;
        Ok(Self { pointer, layout })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.layout.size()
    }

    /// Never true: an empty request still owns one byte.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// First byte. Writing through it needs the caller's proof that nobody else touches the same bytes.
    pub fn as_ptr(&self) -> *mut u8 {
        self.pointer.as_ptr()
    }

    /// Make the pages of `bytes` present before they are written; what they hold stays. False where the system cannot.
    ///
    /// # Panics
    /// When they lie outside the buffer.
    pub(crate) fn populate(&self, bytes: Range<usize>) -> bool {
        assert!(bytes.start <= bytes.end && bytes.end <= self.len(), "{bytes:?} of {}", self.len());
        #[cfg(target_os = "linux")]
        if self.layout.align() == PAGE {
            let first = bytes.start / PAGE * PAGE;
            let from = self.pointer.as_ptr().wrapping_add(first);
            // SAFETY: pages of this mapping; their content does not change, whoever else uses them.
            return unsafe { libc::madvise(from.cast(), bytes.end - first, libc::MADV_POPULATE_WRITE) } == 0;
        }
        let _ = bytes;
        true
    }

    /// Whether the pages of `bytes` are present.
    #[cfg(all(test, target_os = "linux"))]
    pub(crate) fn is_present(&self, bytes: Range<usize>) -> bool {
        let first = bytes.start / PAGE * PAGE;
        let mut pages = vec![0u8; (bytes.end - first).div_ceil(PAGE)];
        let from = self.pointer.as_ptr().wrapping_add(first);
        // SAFETY: pages of this mapping, and a byte for each.
        let found = unsafe { libc::mincore(from.cast(), bytes.end - first, pages.as_mut_ptr()) };
        found == 0 && pages.iter().all(|page| page & 1 == 1)
    }

    /// The whole buffer.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: allocated with this length, initialised by `alloc_zeroed`.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.len()) }
    }

    /// The whole buffer, to write.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as `as_slice`; `&mut self` makes it unique.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.len()) }
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        #[cfg(target_os = "linux")]
        if self.layout.align() == PAGE {
            // SAFETY: mapped in `zeroed` with this size, nothing borrows it any more.
            unsafe { libc::munmap(self.pointer.as_ptr().cast(), self.layout.size()) };
            return;
        }
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.pointer.as_ptr(), self.layout) }
    }
}

/// Map zeroed memory that huge pages may back. The allocator would touch every page to clear it, before it could be
/// told about huge pages; here pages come when a worker first writes them. Linux lays one mapping beside the one before
/// and takes neighbours with the same advice for one, so that huge pages reach across the matrices of a model: alone,
/// each would end in up to 2 MiB of small pages.
#[cfg(target_os = "linux")]
fn map_huge(bytes: usize) -> Option<NonNull<u8>> {
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a fresh anonymous mapping.
    unsafe {
        let pointer = libc::mmap(std::ptr::null_mut(), bytes, access, kind, -1, 0);
        if pointer == libc::MAP_FAILED {
            return None;
        }
        // Failing to take the advice is harmless.
        libc::madvise(pointer, bytes, libc::MADV_HUGEPAGE);
        NonNull::new(pointer.cast())
    }
}

/// Rows of f32 to read: `[rows, width]` with `stride` elements from row to row.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pointer: *const f32,
    rows: usize,
    width: usize,
    stride: usize,
    _life: PhantomData<&'a f32>,
}

// SAFETY: a shared borrow of plain numbers.
unsafe impl Send for Rows<'_> {}
// SAFETY: as above.
unsafe impl Sync for Rows<'_> {}

impl<'a> Rows<'a> {
    /// View `rows` rows of `width` elements.
    ///
    /// # Safety
    /// `pointer` must be good for reads of all rows for `'a`, and nobody may write them while they are read.
    pub unsafe fn from_raw(pointer: *const f32, rows: usize, width: usize, stride: usize) -> Self {
        Self { pointer, rows, width, stride, _life: PhantomData }
    }

    /// View a contiguous slice as rows of `width`.
    pub fn new(data: &'a [f32], width: usize) -> Self {
        assert!(width > 0 && data.len().is_multiple_of(width), "slice is not whole rows");
        Self { pointer: data.as_ptr(), rows: data.len() / width, width, stride: width, _life: PhantomData }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Elements from the start of one row to the start of the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// First element of row 0.
    pub fn as_ptr(&self) -> *const f32 {
        self.pointer
    }

    /// Elements `begin..begin + len` of row `index`.
    pub fn part(&self, index: usize, begin: usize, len: usize) -> &'a [f32] {
        assert!(index < self.rows && begin + len <= self.width, "part out of range");
        // SAFETY: in range, and `from_raw`/`new` promised the memory.
        unsafe { std::slice::from_raw_parts(self.pointer.add(index * self.stride + begin), len) }
    }

    /// Row `index`.
    pub fn row(&self, index: usize) -> &'a [f32] {
        self.part(index, 0, self.width)
    }
}

/// Rows of f32 that several workers write at once, each its own part.
#[derive(Clone, Copy)]
pub struct RowsMut<'a> {
    pointer: *mut f32,
    rows: usize,
    width: usize,
    stride: usize,
    _life: PhantomData<&'a mut f32>,
}

// SAFETY: handing out `&mut` parts is unsafe below; the type itself is only an address.
unsafe impl Send for RowsMut<'_> {}
// SAFETY: as above.
unsafe impl Sync for RowsMut<'_> {}

impl<'a> RowsMut<'a> {
    /// View `rows` rows of `width` elements.
    ///
    /// # Safety
    /// `pointer` must be good for reads and writes of all rows for `'a`.
    pub unsafe fn from_raw(pointer: *mut f32, rows: usize, width: usize, stride: usize) -> Self {
        Self { pointer, rows, width, stride, _life: PhantomData }
    }

    /// View a contiguous slice as rows of `width`.
    pub fn new(data: &'a mut [f32], width: usize) -> Self {
        assert!(width > 0 && data.len().is_multiple_of(width), "slice is not whole rows");
        Self {
            pointer: data.as_mut_ptr(),
            rows: data.len() / width,
            width,
            stride: width,
            _life: PhantomData,
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Elements from the start of one row to the start of the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// First element of row 0.
    pub fn as_ptr(&self) -> *mut f32 {
        self.pointer
    }

    /// Elements `begin..begin + len` of row `index`.
    ///
    /// # Safety
    /// No other reference to these elements may be alive, on any thread.
    pub unsafe fn part(&self, index: usize, begin: usize, len: usize) -> &'a mut [f32] {
        assert!(index < self.rows && begin + len <= self.width, "part out of range");
        // SAFETY: in range; uniqueness is the caller's duty.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(index * self.stride + begin), len) }
    }

    /// Row `index`.
    ///
    /// # Safety
    /// As [`part`](Self::part).
    pub unsafe fn row(&self, index: usize) -> &'a mut [f32] {
        // SAFETY: the caller's duty, passed on.
        unsafe { self.part(index, 0, self.width) }
    }
}
