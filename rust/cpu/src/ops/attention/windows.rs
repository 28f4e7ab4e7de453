//! Blocks that are read, or prefetched, side by side.
//!
//! A single core keeps more lines of memory in flight when it walks several blocks at once, each a stream of its own
//! to the hardware. Keys are scored that way. Values must be added in ascending order, so their own reads stay one
//! stream, but the prefetches that accompany them walk the blocks ahead side by side. No result depends on it.

use std::sync::OnceLock;

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;
/// Most blocks side by side.
pub(super) const STREAMS: usize = 4;
/// Most lines that a step of the kernels reads of a block.
pub(super) const LINES: usize = 8;

/// What to prefetch at each step over values, one row of them: the lines of a row come in turn from each of
/// `1 << shift` blocks.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    at: [*const u8; STREAMS],
    shift: u32,
    /// Bytes into each block at step 0.
    before: usize,
    /// First line of a row.
    first: usize,
    /// Bytes that each line advances from one step to the next.
    pub(super) step: usize,
}

impl Ahead {
    /// Beside block number `part` of a window: rows of `row` bytes from the `1 << shift` blocks `at`, which have
    /// `block` bytes each, from step `steps` on.
    #[inline]
    pub(super) fn side_by_side(
        at: [*const u8; STREAMS],
        shift: u32,
        part: usize,
        (block, row): (usize, usize),
        steps: usize,
    ) -> Self {
        let step = row >> shift;
        Self { at, shift, before: part * (block >> shift) + steps * step, first: 0, step }
    }

    /// The same from byte `byte` of each row on; nothing inside a line, which came with its first byte.
    #[inline]
    pub(super) fn at_byte(self, byte: usize) -> Option<Self> {
        byte.is_multiple_of(LINE).then_some(Self { first: byte / LINE, ..self })
    }

    /// The first `count` lines at step 0.
    #[inline(always)]
    pub(super) fn lines(&self, count: usize) -> [*const u8; LINES] {
        let mask = (1 << self.shift) - 1;
        let mut lines = [self.at[0]; LINES];
        for (line, to) in (self.first..).zip(&mut lines[..count]) {
            *to = self.at[line & mask].wrapping_add(self.before + (line >> self.shift) * LINE);
        }
        lines
    }
}

/// Of `count` blocks in windows of `1 << shift`, and smaller ones at the end, the one that holds `index`: its first
/// block and the shift of its width.
#[inline]
pub(super) fn window(index: usize, count: usize, mut shift: u32) -> (usize, u32) {
    let mut first = 0;
    loop {
        let end = first + ((count - first) >> shift << shift);
        if index < end {
            return (first + ((index - first) >> shift << shift), shift);
        }
        first = end;
        shift -= 1;
    }
}

/// Blocks side by side that this processor likes, a power of two, found out once.
///
/// Four read up to a fifth faster than one on Zen 5, where single blocks of 8 KiB reach two thirds of the bandwidth of
/// a long stream, and Ice Lake likes several streams too. Zen 4 reads several streams at half the speed of one.
pub(super) fn streams() -> usize {
    static OWN: OnceLock<usize> = OnceLock::new();
    *OWN.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            let name = std::arch::x86_64::__cpuid(0);
            let version = std::arch::x86_64::__cpuid(1).eax;
            let family = (version >> 8 & 15) + (version >> 20 & 255);
            if name.ebx == u32::from_le_bytes(*b"Auth") && family < 26 { 1 } else { STREAMS }
        }
        #[cfg(not(target_arch = "x86_64"))]
        1
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_every_block_once() {
        for count in 1..40 {
            for most in [0, 1, 2] {
                let mut next = 0;
                while next < count {
                    let (first, shift) = window(next, count, most);
                    assert_eq!(first, next, "{count} blocks in windows of {}", 1 << most);
                    for index in first..first + (1 << shift) {
                        assert_eq!(window(index, count, most), (first, shift));
                    }
                    next = first + (1 << shift);
                }
                assert_eq!(next, count);
            }
        }
    }

    #[test]
    fn every_line_of_the_blocks_ahead_is_prefetched_once() {
        const BLOCK: usize = 1024;
        for (shift, row) in [(0, 256), (1, 128), (2, 256), (1, 256), (0, 64)] {
            let (width, memory) = (1 << shift, [0u8; 4 * BLOCK]);
            let at = std::array::from_fn(|block| memory[block * BLOCK..].as_ptr());
            let mut seen = vec![0; width * BLOCK / LINE];
            for part in 0..width {
                for step in 0..BLOCK / row {
                    let ahead = Ahead::side_by_side(at, shift, part, (BLOCK, row), step);
                    assert!(ahead.at_byte(LINE / 2).is_none());
                    let lines = (0..row).step_by(LINE).map(|byte| ahead.at_byte(byte).unwrap().lines(1)[0]);
                    assert_eq!(lines.clone().collect::<Vec<_>>(), ahead.lines(row / LINE)[..row / LINE]);
                    for line in lines {
                        seen[(line as usize - memory.as_ptr() as usize) / LINE] += 1;
                    }
                }
            }
            assert!(seen.iter().all(|count| *count == 1), "{width} blocks, rows of {row}: {seen:?}");
        }
    }
}
