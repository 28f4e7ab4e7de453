//! Model folders in safetensors form: headers validated once, tensor bytes read by `pread` from then on.
//!
//! Nothing is mapped, no code is run, no number from a file is allocated before it is checked against the
//! file's length, and nothing outside the folder is opened (but for the blobs of a Hugging Face cache).

mod folder;
mod header;
mod reason;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use folder::{Folder, Listing, Stamp, fault};
pub use folder::{MAX_FOLDER_ENTRIES, MAX_INDEX_BYTES};
pub use header::{MAX_HEADER_BYTES, StoredDType};
use reason::shorten;
pub use reason::{CheckpointReason, Names};

use crate::error::CpuError;

/// The validated tensors of a model folder, and its files held open.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, TensorInfo>,
}

/// Where one tensor lies and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type as stored.
    pub dtype: StoredDType,
    /// Dimensions, slowest first.
    pub shape: Vec<usize>,
    /// Index of its file.
    pub file: usize,
    /// First byte, from the start of the file.
    pub begin: u64,
    /// Bytes.
    pub len: u64,
}

/// A file of weights, as it was when it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileState<'a> {
    /// Name in the folder.
    pub name: &'a str,
    /// Length.
    pub bytes: u64,
    /// Time of the last change, where the system tells.
    pub modified: Option<SystemTime>,
}

#[derive(Debug)]
struct Shard {
    name: String,
    file: File,
    stamp: Stamp,
}

impl Checkpoint {
    /// Validate the headers and the index of a model folder; no tensor data is read.
    ///
    /// The weights are the files named by `model.safetensors.index.json`; without one `model.safetensors`; without
    /// that every `*.safetensors` file.
    ///
    /// # Errors
    /// [`CpuError::Checkpoint`], naming the file, and the tensor where one is at fault.
    pub fn open(path: &Path) -> Result<Self, CpuError> {
        let folder = Folder::open(path)?;
        let Listing { files, weight_map } = folder.list()?;
        let (root, shards, tensors) = (folder.root.clone(), Vec::new(), BTreeMap::new());
        let mut checkpoint = Self { root, shards, tensors };
        for name in files {
            checkpoint.add_shard(&folder, name)?;
        }
        if let Some(weight_map) = weight_map {
            checkpoint.check_index(&weight_map)?;
        }
        Ok(checkpoint)
    }

    /// The folder, without links.
    pub fn folder(&self) -> &Path {
        &self.root
    }

    /// The files that hold the tensors, in the order of [`TensorInfo::file`]. A file that has changed since cannot be
    /// read any more.
    pub fn files(&self) -> impl ExactSizeIterator<Item = FileState<'_>> {
        self.shards.iter().map(|shard| FileState {
            name: &shard.name,
            bytes: shard.stamp.bytes,
            modified: shard.stamp.modified,
        })
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), info))
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Name of the file that holds `info`, for messages.
    pub fn file_name(&self, info: &TensorInfo) -> &str {
        self.shards.get(info.file).map_or("", |shard| &shard.name)
    }

    /// Sum of all tensor bytes.
    pub fn num_bytes(&self) -> u64 {
        self.tensors.values().map(|info| info.len).sum()
    }

    /// Fill `out` with the bytes of tensor `name` from `byte_offset` on.
    ///
    /// # Errors
    /// [`CpuError::Checkpoint`]: unknown name, a range outside the tensor, a file that changed since it was
    /// opened, or a read that failed (device errors are tried again, a few times).
    pub fn read_into(&self, name: &str, byte_offset: u64, out: &mut [u8]) -> Result<(), CpuError> {
        let missing = || fault("", Some(shorten(name)), CheckpointReason::MissingTensor);
        let info = self.tensors.get(name).ok_or_else(missing)?;
        let shard = self.shards.get(info.file).ok_or_else(missing)?;
        let len = out.len() as u64;
        let read = match byte_offset.checked_add(len) {
            Some(end) if end <= info.len => shard.read(info.begin + byte_offset, out),
            _ => Err(CheckpointReason::ReadOutOfRange { offset: byte_offset, len, tensor_bytes: info.len }),
        };
        read.map_err(|reason| fault(&shard.name, Some(shorten(name)), reason))
    }

    fn add_shard(&mut self, folder: &Folder, name: String) -> Result<(), CpuError> {
        let in_file = |reason| fault(&name, None, reason);
        let (file, file_bytes, stamp) = folder.open_file(&name).map_err(in_file)?;
        let index = self.shards.len();
        let shard = Shard { name: name.clone(), file, stamp };
        let mut prefix = [0; 8];
        if file_bytes < 8 {
            return Err(in_file(CheckpointReason::HeaderTooSmall { got: file_bytes }));
        }
        shard.read(0, &mut prefix).map_err(in_file)?;
        let header_bytes = header::header_bytes(prefix, file_bytes).map_err(in_file)?;
        let mut json = vec![0; header_bytes as usize];
        shard.read(8, &mut json).map_err(in_file)?;
        let entries =
            header::parse(&json, file_bytes).map_err(|(tensor, reason)| fault(&name, tensor, reason))?;
        for entry in entries {
            let info = TensorInfo {
                dtype: entry.dtype,
                shape: entry.shape,
                file: index,
                begin: 8 + header_bytes + entry.begin,
                len: entry.end - entry.begin,
            };
            if let Some(first) = self.tensors.get(&entry.name) {
                let other = self.file_name(first).to_owned();
                let reason = CheckpointReason::DuplicateTensor { other };
                return Err(fault(&name, Some(shorten(&entry.name)), reason));
            }
            self.tensors.insert(entry.name, info);
        }
        self.shards.push(shard);
        Ok(())
    }

    /// Both ways: each listed tensor is in its file, and each tensor of a file is listed for it.
    fn check_index(&self, weight_map: &[(String, String)]) -> Result<(), CpuError> {
        let listed: BTreeMap<&str, &str> = weight_map.iter().map(|(t, f)| (t.as_str(), f.as_str())).collect();
        let is_absent = |&(tensor, file): &(&str, &str)| match self.tensors.get(tensor) {
            Some(info) => self.file_name(info) != file,
            None => true,
        };
        if let Some((_, file)) = listed.iter().map(|(t, f)| (*t, *f)).find(is_absent) {
            let here =
                listed.iter().map(|(t, f)| (*t, *f)).filter(|entry| entry.1 == file && is_absent(entry));
            let names = Names::of(here.map(|(tensor, _)| tensor));
            return Err(fault(file, None, CheckpointReason::AbsentTensors { names }));
        }
        let is_unlisted =
            |&(name, info): &(&str, &TensorInfo)| listed.get(name) != Some(&self.file_name(info));
        if let Some((_, info)) = self.tensors().find(is_unlisted) {
            let file = self.file_name(info);
            let here = self.tensors().filter(|entry| entry.1.file == info.file && is_unlisted(entry));
            let names = Names::of(here.map(|(tensor, _)| tensor));
            return Err(fault(file, None, CheckpointReason::UnlistedTensors { names }));
        }
        Ok(())
    }
}

impl Shard {
    /// `pread` exactly `out.len()` bytes and make sure that the file is still the one that was validated.
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), CheckpointReason> {
        let mut done = 0;
        let mut failures = 0;
        while done < out.len() {
            match self.file.read_at(&mut out[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if failures < READ_RETRIES && is_passing(&error) => {
                    failures += 1;
                    std::thread::sleep(Duration::from_millis(20 << failures));
                }
                Err(source) => return Err(CheckpointReason::Io { source }),
            }
        }
        let now = self.file.metadata().map_err(|source| CheckpointReason::Io { source })?;
        if done < out.len() || Stamp::of(&now) != self.stamp {
            return Err(CheckpointReason::ChangedDuringLoad);
        }
        Ok(())
    }
}

const READ_RETRIES: u32 = 3;

/// Errors that a network file system gets over.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::ESTALE | libc::EAGAIN))
}
