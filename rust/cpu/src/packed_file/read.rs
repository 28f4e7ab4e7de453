//! Reads the chunks of a packed file into the weights' own memory.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use twox_hash::XxHash3_64;

use super::header::Header;
use super::{CHUNK_BYTES, CHUNKS_PER_ROUND, Failure, PackedFault, io, tell};
use crate::pool::Pool;
use crate::weights::{Progress, Weight, Weights};

/// Open a file and say its length, without ever waiting for it; None when there is none.
pub(super) fn open(path: &Path) -> Result<Option<(File, u64)>, PackedFault> {
    // Looked at before it is opened: opening a device can have effects.
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err(PackedFault::NotARegularFile),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(source) => return Err(io("cannot be looked at")(source)),
    }
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    let file = options.open(path).map_err(io("cannot be opened"))?;
    let metadata = file.metadata().map_err(io("cannot be looked at"))?;
    if metadata.is_file() { Ok(Some((file, metadata.len()))) } else { Err(PackedFault::NotARegularFile) }
}

/// Fill `weights`, checking every chunk while it is in the cache. What is read up to a fault stays there.
pub(super) fn read(
    file: &File,
    header: &Header,
    weights: &mut Weights,
    pool: &mut Pool,
    progress: &mut Progress<'_>,
) -> Result<(), Failure> {
    let total = weights.bytes() as u64;
    let parts = weights.items_mut().iter_mut().map(Weight::as_bytes_mut);
    let parts: Vec<Mutex<&mut [u8]>> =
        parts.flat_map(|bytes| bytes.chunks_mut(CHUNK_BYTES)).map(Mutex::new).collect();
    let per_round = CHUNKS_PER_ROUND * pool.count();
    let mut done = 0;
    tell(progress, done, total)?;
    for (round, parts) in parts.chunks(per_round).enumerate() {
        let failed = Mutex::new(None);
        pool.run(|worker| {
            worker.share(parts.len(), |item| {
                let mut part = parts[item].lock().unwrap_or_else(PoisonError::into_inner);
                if let Err(fault) = read_chunk(file, header, round * per_round + item, &mut part) {
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(fault);
                }
            });
        })?;
        if let Some(fault) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(fault.into());
        }
        let first = round * per_round;
        done += header.chunks()[first..first + parts.len()].iter().map(|chunk| chunk.1 as u64).sum::<u64>();
        tell(progress, done, total)?;
    }
    Ok(())
}

fn read_chunk(file: &File, header: &Header, chunk: usize, to: &mut [u8]) -> Result<(), PackedFault> {
    file.read_exact_at(to, header.chunks()[chunk].0).map_err(io("cannot be read"))?;
    if XxHash3_64::oneshot(to) == header.checksum(chunk) {
        return Ok(());
    }
    let (first, bytes) = header.chunks()[chunk];
    Err(PackedFault::Damaged { part: format!("bytes {first} to {}", first + bytes as u64) })
}
