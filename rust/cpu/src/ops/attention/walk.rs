//! How a tile of dword products walks over the pieces of a split: scores, and sums of values.

use std::ptr::null;

use super::ahead::Ahead;
use super::codes::PackedQueries;
use super::kernels::SCORE_STRIDE;
use super::products::{Products, PvArgs, QkArgs, Run};
use super::scratch::padded;
use super::simd::{LANES, Simd};
use super::tile::{Keys, PIECES, Tile, fewest, with_rows};
use crate::ops::prefetch::prefetch;

/// Bytes of the scales before the keys, or the values, of a piece.
fn head_bytes<P: Products>(keys: &Keys) -> usize {
    P::SCALE_BYTES * keys.len
}

/// Dwords of a key of `head_dim` elements.
pub(super) const fn dwords<P: Products>(head_dim: usize) -> usize {
    head_dim.div_ceil(P::ELEMENTS)
}

/// Prefetch the scales of piece `index`.
fn prefetch_scales<P: Products>(keys: &Keys, index: usize) {
    prefetch(keys.at[index], head_bytes::<P>(keys));
}

/// What is prefetched while the keys of a split are read: as many pieces as are left for them, in turn.
struct Turns {
    pieces: usize,
    /// Of so many pieces.
    asked: usize,
    credit: usize,
    later: usize,
}

impl Turns {
    fn new(keys: &Keys) -> Self {
        Self::of(keys.pieces, keys.between, keys.ahead)
    }

    /// Of `pieces` pieces, `between` of which are prefetched at another time; the first is `ahead` behind them.
    fn of(pieces: usize, between: usize, ahead: usize) -> Self {
        Self { pieces, asked: pieces - between, credit: 0, later: ahead + between }
    }

    /// The piece to prefetch beside the next one, if any.
    fn next(&mut self) -> Option<usize> {
        self.credit += self.asked;
        if self.credit < self.pieces {
            return None;
        }
        self.credit -= self.pieces;
        self.later += 1;
        Some(self.later - 1)
    }
}

/// Scores of all rows of a tile against keys `begin..end`, in whole groups; `ahead` says whether to prefetch what
/// follows.
///
/// # Safety
/// The processor must have the level; pointers must be good for their shapes; the pieces must be filled.
pub(super) unsafe fn scores<P: Products>(
    head_dim: usize,
    ahead: bool,
    keys: &Keys,
    tile: &Tile,
    packed: PackedQueries,
    (begin, end): (usize, usize),
) {
    let most = P::Float::key_vectors(tile.rows, keys.vectors);
    let (dwords, stride) = (dwords::<P>(head_dim), 4 * keys.len);
    let mut position = begin - (begin - keys.first) % (most * LANES);
    let (mut current, mut later, mut turns) = (usize::MAX, None, Turns::new(keys));
    while position < end {
        let vectors = fewest(most, end - position);
        let group = vectors * LANES;
        let (piece, offset) = keys.piece(position);
        let inside = head_bytes::<P>(keys) + 4 * offset;
        if ahead && piece != current {
            (current, later) = (piece, turns.next());
            prefetch_scales::<P>(keys, keys.pieces + piece);
            if let Some(later) = later.filter(|later| *later < keys.pieces) {
                prefetch_scales::<P>(keys, later);
            }
        }
        let from = keys.at[piece];
        let args = QkArgs {
            q: packed.words,
            starts: packed.starts,
            dwords,
            keys: from.wrapping_add(inside),
            stride,
            scales: from.wrapping_add(P::SCALE_BYTES * offset).cast(),
            ahead: later
                .map(|later| Ahead::new(keys.reach, from, keys.at[later], (dwords, stride)).at_byte(inside)),
            scores: tile.scores.wrapping_add(position - keys.start),
        };
        // SAFETY: the caller's duty.
        unsafe {
            match vectors {
                1 => with_rows!(tile.rows, R => P::qk::<R, 1>(&args)),
                _ => with_rows!(tile.rows, R => P::qk::<R, 2>(&args)),
            }
        }
        position += group;
    }
}

/// Add the values of keys `begin..end`, whole pairs, to `rows` rows from `row` on; `first` when the sums start from
/// zero.
///
/// # Safety
/// As [`scores`].
pub(super) unsafe fn values<P: Products>(
    head_dim: usize,
    ahead: bool,
    keys: &Keys,
    tile: &Tile,
    (row, rows): (usize, usize),
    (begin, end): (usize, usize),
    mut first: bool,
) {
    let stride = pair_stride::<P>(head_dim);
    let single = is_one_pass::<P>(padded(head_dim) / LANES, rows);
    let mut runs = [Run { values: null(), begin: 0, end: 0, ahead: None }; PIECES];
    let (mut begin, mut count) = (begin, 0);
    let mut position = begin;
    while position < end {
        let (piece, offset) = keys.piece(position);
        let to = end.min(position - offset + keys.len);
        let index = keys.pieces + piece;
        let head = head_bytes::<P>(keys);
        let later = index + keys.ahead + keys.between;
        if ahead && later >= 2 * keys.pieces {
            prefetch_scales::<P>(keys, later);
        }
        let (from, later) = (keys.at[index].wrapping_add(head), keys.at[later].wrapping_add(head));
        let until = (offset + to - position) / 2;
        runs[count] = Run {
            values: from,
            begin: offset / 2,
            end: until,
            ahead: ahead.then(|| Ahead::new(keys.reach, from, later, (until, stride))),
        };
        count += 1;
        position = to;
        // What comes from memory is taken in the order it lies there.
        if (ahead && !single) || position == end {
            let args = PvArgs {
                p: probabilities(keys, tile, row, begin),
                runs: &runs[..count],
                byte: 0,
                stride,
                out: tile.out.wrapping_add(row * tile.out_stride).cast(),
                out_stride: tile.out_stride,
                first,
            };
            // SAFETY: the caller's duty.
            unsafe { with_rows!(rows, R => pv_rows::<P, R>(args, padded(head_dim) / LANES)) };
            (begin, count, first) = (position, 0, false);
        }
    }
}

/// Bytes from one pair of values to the next.
const fn pair_stride<P: Products>(head_dim: usize) -> usize {
    P::PAIR_BYTES * P::ELEMENTS * dwords::<P>(head_dim)
}

/// The pair of probabilities of one row that begins at an even `position`.
pub(super) fn probabilities(keys: &Keys, tile: &Tile, row: usize, position: usize) -> *const i32 {
    tile.scores.wrapping_add(row * SCORE_STRIDE).cast::<i32>().wrapping_add((position - keys.start) / 2)
}

/// The pair of values that begins at an even `position`.
pub(super) fn values_at<P: Products>(head_dim: usize, keys: &Keys, position: usize) -> *const u8 {
    let (piece, offset) = keys.piece(position);
    keys.at[keys.pieces + piece].wrapping_add(head_bytes::<P>(keys) + offset / 2 * pair_stride::<P>(head_dim))
}

/// Whether [`pv_rows`] takes all vectors of a value at once.
const fn is_one_pass<P: Products>(vectors: usize, rows: usize) -> bool {
    vectors.is_power_of_two() && vectors <= 8 && vectors * rows <= P::Float::ACCUMULATORS
}

/// All vectors of a value, as many at once as the accumulators allow.
unsafe fn pv_rows<P: Products, const R: usize>(args: PvArgs<'_>, vectors: usize) {
    let most = P::Float::ACCUMULATORS / R;
    let mut done = 0;
    while done < vectors {
        let left = vectors - done;
        let args =
            PvArgs { byte: done * P::PAIR_BYTES * LANES, out: args.out.wrapping_add(done * LANES), ..args };
        // SAFETY: the caller's duty.
        done += unsafe {
            if most >= 8 && left >= 8 {
                P::pv::<R, 8>(&args);
                8
            } else if most >= 4 && left >= 4 {
                P::pv::<R, 4>(&args);
                4
            } else if most >= 2 && left >= 2 {
                P::pv::<R, 2>(&args);
                2
            } else {
                P::pv::<R, 1>(&args);
                1
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_spread_what_is_left_for_the_keys() {
        for pieces in 1..=8 {
            for between in 0..=pieces {
                let mut turns = Turns::of(pieces, between, 3);
                let asked: Vec<_> = (0..pieces).map(|_| turns.next()).collect();
                let named: Vec<_> = asked.iter().flatten().copied().collect();
                assert_eq!(named, (3 + between..3 + pieces).collect::<Vec<_>>(), "{pieces} {between}");
                // Never more than one piece behind an even pace.
                for (read, so_far) in
                    (1..).zip((1..=pieces).map(|read| asked[..read].iter().flatten().count()))
                {
                    assert_eq!(so_far, read * (pieces - between) / pieces, "{pieces} {between} {read}");
                }
            }
        }
    }
}
