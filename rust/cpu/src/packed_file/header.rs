//! The header of a packed file, and where everything lies.
//!
//! All numbers are little endian.
//!
//! | bytes | |
//! |---|---|
//! | 8 | `PYRITEPK` |
//! | 4, 4 | version of this form; zero |
//! | 8 | checksum of the rest of the header |
//! | 8, 8, 8 | bytes of the key; parameters; chunks |
//! | | the key, padded to 8 bytes |
//! | 16 each | first byte and bytes of each parameter |
//! | 8 each | checksum of each chunk |
//! | | zeros up to a multiple of 64 |
//!
//! The parameters' bytes follow, each from a multiple of 64 on, with zeros between. Checksums are XXH3-64.

use std::fs::File;
use std::os::unix::fs::FileExt;

use twox_hash::XxHash3_64;

use super::key::Key;
use super::{CHUNK_BYTES, PackedFault, io};
use crate::weights::{Weight, Weights};

const MAGIC: &[u8; 8] = b"PYRITEPK";
const VERSION: u32 = 1;
/// Where the checksum of the rest is, and where the rest begins.
const OWN_CHECKSUM: usize = 16;
const REST: usize = 24;
const KEY: usize = REST + 24;
const ALIGN: usize = 64;

/// The header of weights with a key; checksums are zero where they are not known yet.
pub(super) struct Header {
    bytes: Vec<u8>,
    first_table_entry: usize,
    first_checksum: usize,
    /// First byte in the file and bytes of each chunk.
    chunks: Vec<(u64, usize)>,
    file_bytes: u64,
}

impl Header {
    pub(super) fn new(key: &Key, weights: &Weights) -> Self {
        let sizes: Vec<usize> = weights.items().iter().map(Weight::bytes).collect();
        let num_chunks: usize = sizes.iter().map(|bytes| bytes.div_ceil(CHUNK_BYTES)).sum();
        let first_table_entry = (KEY + key.text.len()).next_multiple_of(8);
        let first_checksum = first_table_entry + 16 * sizes.len();
        let len = (first_checksum + 8 * num_chunks).next_multiple_of(ALIGN);
        let mut bytes = vec![0; len];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        for (index, count) in [key.text.len(), sizes.len(), num_chunks].into_iter().enumerate() {
            put(&mut bytes, REST + 8 * index, count as u64);
        }
        bytes[KEY..][..key.text.len()].copy_from_slice(&key.text);
        let (mut at, mut file_bytes) = (len as u64, len as u64);
        let mut chunks = Vec::with_capacity(num_chunks);
        for (index, size) in sizes.into_iter().enumerate() {
            put(&mut bytes, first_table_entry + 16 * index, at);
            put(&mut bytes, first_table_entry + 16 * index + 8, size as u64);
            for first in (0..size).step_by(CHUNK_BYTES) {
                chunks.push((at + first as u64, CHUNK_BYTES.min(size - first)));
            }
            file_bytes = at + size as u64;
            at = file_bytes.next_multiple_of(ALIGN as u64);
        }
        Self { bytes, first_table_entry, first_checksum, chunks, file_bytes }
    }

    /// Bytes of the whole file.
    pub(super) fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// First byte in the file and bytes of each chunk, all of a parameter's before those of the next.
    pub(super) fn chunks(&self) -> &[(u64, usize)] {
        &self.chunks
    }

    /// The checksum of a chunk.
    pub(super) fn checksum(&self, chunk: usize) -> u64 {
        get(&self.bytes, self.first_checksum + 8 * chunk)
    }

    /// Take the chunks' checksums and give the finished bytes.
    pub(super) fn finish(mut self, checksums: impl Iterator<Item = u64>) -> Vec<u8> {
        for (chunk, checksum) in checksums.enumerate() {
            put(&mut self.bytes, self.first_checksum + 8 * chunk, checksum);
        }
        let own = XxHash3_64::oneshot(&self.bytes[REST..]);
        put(&mut self.bytes, OWN_CHECKSUM, own);
        self.bytes
    }

    /// Take the checksums from a file whose header is this one otherwise.
    ///
    /// # Errors
    /// What differs, or a read that failed.
    pub(super) fn check(mut self, file: &File, length: u64) -> Result<Self, PackedFault> {
        let mut found = vec![0; self.bytes.len()];
        let have = usize::try_from(length).map_or(found.len(), |length| length.min(found.len()));
        file.read_exact_at(&mut found[..have], 0).map_err(io("cannot be read"))?;
        if have < 8 || found[..8] != self.bytes[..8] {
            return Err(PackedFault::NotAPackedFile);
        }
        // The key comes before everything that follows from it, and its length before the key.
        let same = |range: std::ops::Range<usize>| found[range.clone()] == self.bytes[range];
        if have < KEY || !same(8..OWN_CHECKSUM) || !same(REST..self.first_table_entry) {
            return Err(PackedFault::Stale);
        }
        if length != self.file_bytes {
            return Err(PackedFault::WrongLength { got: length, expected: self.file_bytes });
        }
        let whole = get(&found, OWN_CHECKSUM) == XxHash3_64::oneshot(&found[REST..]);
        if !whole || !same(self.first_table_entry..self.first_checksum) {
            return Err(PackedFault::Damaged { part: "header".into() });
        }
        self.bytes = found;
        Ok(self)
    }
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn get(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}
