//! Writes a packed file: under a name of its own first, the real one only when all of it is on the disk.

use std::collections::hash_map::RandomState;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use twox_hash::XxHash3_64;

use super::header::Header;
use super::{CHUNK_BYTES, CHUNKS_PER_ROUND, Failure, PackedFault, io, tell};
use crate::pool::Pool;
use crate::weights::{Progress, Weight, Weights};

/// Room that stays on the disk for others, or as much as the file takes when that is less.
const RESERVE_BYTES: u64 = 1 << 30;

/// A file that is complete but for being synced and getting its name. Dropped, it is removed.
#[derive(Debug)]
pub struct Unpublished {
    file: File,
    pub(super) temporary: PathBuf,
    path: PathBuf,
    is_published: bool,
}

impl Unpublished {
    /// Wait until the file is on the disk, and give it its name. Takes as long as the disk needs.
    ///
    /// # Errors
    /// What the system refused; the file is removed then.
    pub fn publish(mut self) -> Result<(), PackedFault> {
        self.file.sync_all().map_err(io("cannot be synced"))?;
        fs::rename(&self.temporary, &self.path).map_err(io("cannot be renamed"))?;
        self.is_published = true;
        // Without this a power cut can only cost the file.
        if let Some(folder) = self.path.parent().and_then(|folder| File::open(folder).ok()) {
            let _ = folder.sync_all();
        }
        Ok(())
    }

    /// A new file beside `path`, locked for as long as it is unpublished.
    pub(super) fn create(path: &Path) -> Result<Self, PackedFault> {
        loop {
            // Random, since processes that share the folder may share their numbers, in containers.
            let number = RandomState::new().build_hasher().finish();
            let temporary = path.with_extension(format!("{number:016x}.tmp"));
            let file = OpenOptions::new().write(true).create_new(true).open(&temporary);
            let file = file.map_err(io("cannot be made"))?;
            // Until it is locked, another load may take it for an abandoned one, lock it and remove it. A file system without
            // locks leaves nothing but what a killed process could not remove.
            let is_taken = matches!(file.try_lock(), Err(TryLockError::WouldBlock));
            if !is_taken && temporary.exists() {
                return Ok(Self { file, temporary, path: path.to_owned(), is_published: false });
            }
        }
    }
}

impl Drop for Unpublished {
    fn drop(&mut self) {
        if !self.is_published {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Write all of a file but its name.
pub(super) fn write(
    path: &Path,
    header: Header,
    weights: &Weights,
    pool: &mut Pool,
    progress: &mut Progress<'_>,
) -> Result<Unpublished, Failure> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(io("its folder cannot be made"))?;
        remove_abandoned(folder, path);
        check_room(header.file_bytes(), free_bytes(folder))?;
    }
    let unpublished = Unpublished::create(path)?;
    reserve(&unpublished.file, header.file_bytes()).map_err(io("no room for it"))?;
    let parts = weights.items().iter().map(Weight::as_bytes);
    let parts: Vec<&[u8]> = parts.flat_map(|bytes| bytes.chunks(CHUNK_BYTES)).collect();
    let checksums: Vec<Mutex<u64>> = parts.iter().map(|_| Mutex::new(0)).collect();
    let (file, chunks, total) = (&unpublished.file, header.chunks(), weights.bytes() as u64);
    let per_round = CHUNKS_PER_ROUND * pool.count();
    for first in (0..parts.len()).step_by(per_round) {
        let failed = Mutex::new(None);
        pool.run(|worker| {
            worker.share(per_round.min(parts.len() - first), |item| {
                let (part, at) = (parts[first + item], chunks[first + item].0);
                *lock(&checksums[first + item]) = XxHash3_64::oneshot(part);
                if let Err(source) = file.write_all_at(part, at) {
                    lock(&failed).get_or_insert(io("cannot be written")(source));
                }
            });
        })?;
        if let Some(fault) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(fault.into());
        }
        tell(progress, total, total)?;
    }
    let bytes = header.finish(checksums.iter().map(|checksum| *lock(checksum)));
    unpublished.file.write_all_at(&bytes, 0).map_err(io("cannot be written"))?;
    Ok(unpublished)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remove unpublished files of processes that are gone: nobody holds their locks.
pub(super) fn remove_abandoned(folder: &Path, path: &Path) {
    let Some(stem) = path.file_stem().map(|stem| stem.to_string_lossy().into_owned() + ".") else { return };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_unpublished =
            name.to_str().is_some_and(|name| name.starts_with(&stem) && name.ends_with(".tmp"));
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if !is_unpublished || !is_file {
            continue;
        }
        let Ok(file) = File::open(entry.path()) else { continue };
        // The lock is held until the name is gone: a writer that made the file a moment ago must either find it locked or
        // find no name.
        if file.try_lock().is_ok() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The room on the folder's disk, where the system tells.
fn free_bytes(folder: &Path) -> Option<u64> {
    let folder = CString::new(folder.as_os_str().as_bytes()).ok()?;
    // SAFETY: plain numbers, for which zeros are valid.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: a string that ends, and a structure to fill.
    let failed = unsafe { libc::statvfs(folder.as_ptr(), &mut found) } != 0;
    // The types differ between systems.
    #[allow(clippy::unnecessary_cast)]
    let bytes = (found.f_bavail as u64).saturating_mul(found.f_frsize as u64);
    (!failed).then_some(bytes)
}

/// Whether a file of `bytes` leaves the reserve; a disk that does not tell has room.
pub(super) fn check_room(bytes: u64, free_bytes: Option<u64>) -> Result<(), PackedFault> {
    let needed_bytes = bytes.saturating_add(bytes.min(RESERVE_BYTES));
    match free_bytes {
        Some(free_bytes) if free_bytes < needed_bytes => {
            Err(PackedFault::NoRoom { needed_bytes, free_bytes })
        }
        _ => Ok(()),
    }
}

/// Take the file's room on the disk, so that running out of it shows before the writing does; a file system that cannot
/// do so only gets the length.
fn reserve(file: &File, bytes: u64) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        let length = i64::try_from(bytes).unwrap_or(i64::MAX);
        // SAFETY: a number of an open file.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) } != 0 {
            let error = std::io::Error::last_os_error();
            let cannot = [libc::EOPNOTSUPP, libc::ENOSYS, libc::EINTR];
            if !error.raw_os_error().is_some_and(|code| cannot.contains(&code)) {
                return Err(error);
            }
        }
    }
    file.set_len(bytes)
}
