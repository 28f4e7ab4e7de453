//! What to ask the memory for while something else is read.
//!
//! The processor's own prefetchers start anew at every jump, and the arithmetic between two reads takes from what a core
//! can ask for by itself: so the keys and values of a unit are read as one stream of long runs, which prefetches precede
//! by a fixed distance, from run to run and into the unit that comes next.

use std::ops::Range;

use super::tuning::Reach;
use crate::ops::prefetch::{prefetch, prefetch_by_stages};

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// Prefetches in step with reads over the rows of a piece: at first in the same piece, then in a later one.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    /// First row that goes with the later piece.
    turn: usize,
    /// What row 0 would prefetch, of either.
    near: *const u8,
    far: *const u8,
    /// [`Reach::cache`].
    cache: Option<usize>,
}

impl Ahead {
    /// Pieces of `bytes` bytes from one that is read to the later one.
    pub(super) fn pieces(reach: Reach, bytes: usize) -> usize {
        (reach.memory / bytes).max(1)
    }

    /// Pieces of `bytes` bytes to prefetch between scores and values, about as many as [`Reach::memory`]: more lose again
    /// what that gains.
    pub(super) fn between(reach: Reach, bytes: usize) -> usize {
        reach.memory.div_ceil(bytes)
    }

    /// Beside the `rows` rows of `row` bytes at `from`; `later` is where the later piece has its rows.
    #[inline]
    pub(super) fn new(reach: Reach, from: *const u8, later: *const u8, (rows, row): (usize, usize)) -> Self {
        let between = (reach.memory / row).max(1);
        let turn = rows.saturating_sub(between);
        let (near, far) = (from.wrapping_add(between * row), later.wrapping_sub(turn * row));
        Self { turn, near, far, cache: reach.cache }
    }

    /// The same from byte `byte` of each row on.
    #[inline(always)]
    pub(super) fn at_byte(self, byte: usize) -> Self {
        Self { near: self.near.wrapping_add(byte), far: self.far.wrapping_add(byte), ..self }
    }

    /// Prefetch what goes with a line that is read: the one at `to_come` is of [`parts`].
    #[inline(always)]
    pub(super) fn ask(self, read: *const u8, to_come: *const u8) {
        // Behind the end of a run lie others of the same sequence.
        prefetch_by_stages(to_come, self.cache.map(|bytes| read.wrapping_add(bytes)), LINE);
    }
}

/// Rows `begin..end` in two parts, each with what its row 0 would prefetch.
#[inline(always)]
pub(super) fn parts(ahead: Option<Ahead>, begin: usize, end: usize) -> [(Range<usize>, *const u8); 2] {
    let Some(Ahead { turn, near, far, .. }) = ahead else {
        return [(begin..end, std::ptr::null()), (end..end, std::ptr::null())];
    };
    let turn = turn.clamp(begin, end);
    [(begin..turn, near), (turn..end, far)]
}

/// The lines of a piece, some of them at a time.
#[derive(Clone, Copy)]
pub(super) struct Lines {
    at: *const u8,
    left: usize,
    each: usize,
}

impl Lines {
    /// Those of a piece of `bytes` bytes at `at`, or of none, in `steps` steps.
    #[inline(always)]
    pub(super) fn new(at: Option<&*const u8>, bytes: usize, steps: usize) -> Self {
        let lines = bytes / LINE;
        match at {
            Some(at) => Self { at: *at, left: lines, each: lines.div_ceil(steps.max(1)) },
            None => Self { at: std::ptr::null(), left: 0, each: 0 },
        }
    }

    /// Prefetch what goes with one step.
    #[inline(always)]
    pub(super) fn step(&mut self) {
        for _ in 0..self.each.min(self.left) {
            prefetch(self.at, LINE);
            (self.at, self.left) = (self.at.wrapping_add(LINE), self.left - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REACH: Reach = Reach { memory: 8 << 10, cache: None, heads: 0 };

    #[test]
    fn every_byte_is_prefetched_once_and_at_the_distance() {
        for (rows, row) in [(64, 256), (32, 512), (64, 128), (16, 64), (5, 4096), (1, 16384), (2, 16384)] {
            let bytes = rows * row;
            let memory = vec![0u8; 12 * bytes.max(REACH.memory)];
            let later = Ahead::pieces(REACH, bytes);
            let piece = |index: usize| memory[index * bytes..].as_ptr();
            let mut seen = Vec::new();
            for index in 0..3 {
                let ahead = Ahead::new(REACH, piece(index), piece(index + later), (rows, row));
                for (range, base) in
                    [parts(Some(ahead), 0, rows / 2), parts(Some(ahead), rows / 2, rows)].concat()
                {
                    seen.extend(range.map(|step| base as usize + step * row - memory.as_ptr() as usize));
                }
            }
            let distance = seen[0];
            assert_eq!(
                seen,
                (0..3 * rows).map(|step| distance + step * row).collect::<Vec<_>>(),
                "{rows} {row}"
            );
            assert!(
                distance <= REACH.memory.max(row) && 2 * distance > REACH.memory,
                "{rows} {row}: {distance}"
            );
        }
    }

    #[test]
    fn all_lines_of_a_piece_are_asked_for_within_the_steps() {
        let memory = [0u8; 640];
        for (bytes, steps) in [(640, 1), (640, 3), (640, 10), (640, 40), (100, 2), (32, 1)] {
            let from = memory.as_ptr();
            let mut lines = Lines::new(Some(&from), bytes, steps);
            (0..steps).for_each(|_| lines.step());
            assert_eq!(
                (lines.left, lines.at),
                (0, from.wrapping_add(bytes / LINE * LINE)),
                "{bytes} {steps}"
            );
        }
        let mut none = Lines::new(None, 640, 2);
        none.step();
        assert_eq!(none.left, 0);
    }
}
