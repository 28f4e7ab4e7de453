//! Which files of a model folder hold its weights, and how they are opened without trusting their names.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::header::{Members, from_json};
use super::reason::{CheckpointReason, Names, shorten};
use crate::error::CpuError;

/// Most entries a model folder may have.
pub const MAX_FOLDER_ENTRIES: usize = 10_000;
/// Longest `model.safetensors.index.json` accepted.
pub const MAX_INDEX_BYTES: u64 = 64 << 20;

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// The files to read, and what the index says is in them.
pub(super) struct Listing {
    /// Names of the shards, sorted.
    pub(super) files: Vec<String>,
    /// Tensor to shard, sorted by tensor; None without an index.
    pub(super) weight_map: Option<Vec<(String, String)>>,
}

/// A model folder, resolved once.
pub(super) struct Folder {
    pub(super) root: PathBuf,
    /// Where links may lead besides the folder: the `blobs` of the Hugging Face cache that it lies in.
    blobs: Option<PathBuf>,
    name: String,
}

/// Shorthand for an error in `file`.
pub(super) fn fault(file: &str, tensor: Option<String>, reason: CheckpointReason) -> CpuError {
    CpuError::Checkpoint { file: shorten(file), tensor, reason }
}

impl Folder {
    pub(super) fn open(path: &Path) -> Result<Self, CpuError> {
        let name = path.file_name().map_or_else(|| ".".into(), |name| name.to_string_lossy().into_owned());
        let root =
            fs::canonicalize(path).map_err(|source| fault(&name, None, CheckpointReason::Io { source }))?;
        let blobs = blob_root(&root);
        Ok(Self { root, blobs, name })
    }

    /// Find the shards: those of the index; else `model.safetensors`; else every `*.safetensors`, sorted by name.
    pub(super) fn list(&self) -> Result<Listing, CpuError> {
        let (weights, has_index, pickle) = self.scan().map_err(|reason| fault(&self.name, None, reason))?;
        if has_index {
            return self.read_index().map_err(|reason| fault(INDEX, None, reason));
        }
        let files = match weights.iter().find(|name| *name == SINGLE) {
            Some(single) => vec![single.clone()],
            None => weights,
        };
        match (files.is_empty(), pickle) {
            (false, _) => Ok(Listing { files, weight_map: None }),
            (true, Some(got)) => Err(fault(&self.name, None, CheckpointReason::PickleOnly { got })),
            (true, None) => Err(fault(&self.name, None, CheckpointReason::NoWeights)),
        }
    }

    /// Sorted `*.safetensors` names, whether there is an index, and one pickle file if there is any.
    fn scan(&self) -> Result<(Vec<String>, bool, Option<String>), CheckpointReason> {
        let io = |source| CheckpointReason::Io { source };
        let (mut weights, mut has_index, mut pickle) = (Vec::new(), false, None);
        for (count, entry) in fs::read_dir(&self.root).map_err(io)?.enumerate() {
            if count >= MAX_FOLDER_ENTRIES {
                return Err(CheckpointReason::TooManyFiles { limit: MAX_FOLDER_ENTRIES });
            }
            let Ok(name) = entry.map_err(io)?.file_name().into_string() else { continue };
            if name == INDEX {
                has_index = true;
            } else if name.ends_with(".safetensors") {
                weights.push(name);
            } else if is_pickle(&name) {
                pickle = Some(shorten(&name));
            }
        }
        weights.sort_unstable();
        Ok((weights, has_index, pickle))
    }

    fn read_index(&self) -> Result<Listing, CheckpointReason> {
        let (file, got, _) = self.open_file(INDEX)?;
        if got > MAX_INDEX_BYTES {
            return Err(CheckpointReason::IndexTooLarge { got, limit: MAX_INDEX_BYTES });
        }
        let mut bytes = Vec::new();
        let read = file.take(MAX_INDEX_BYTES).read_to_end(&mut bytes);
        read.map_err(|source| CheckpointReason::Io { source })?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|error| CheckpointReason::NotUtf8 { at: error.valid_up_to() })?;
        let index: Index = from_json(text)?;
        let mut weight_map = index.weight_map.0;
        weight_map.sort_unstable();
        let mut files: Vec<String> = weight_map.iter().map(|(_, file)| file.clone()).collect();
        files.sort_unstable();
        files.dedup();
        for name in &files {
            check_plain(name)?;
        }
        if files.is_empty() {
            return Err(CheckpointReason::NoWeights);
        }
        if files.len() > MAX_FOLDER_ENTRIES {
            return Err(CheckpointReason::TooManyFiles { limit: MAX_FOLDER_ENTRIES });
        }
        let missing = files.iter().filter(|name| fs::symlink_metadata(self.root.join(name)).is_err());
        let names = Names::of(missing.map(String::as_str));
        if names.count > 0 {
            return Err(CheckpointReason::MissingShard { names });
        }
        Ok(Listing { files, weight_map: Some(weight_map) })
    }

    /// Open a plain file of the folder without ever waiting for it, and say its length and time of change.
    pub(super) fn open_file(&self, name: &str) -> Result<(File, u64, Stamp), CheckpointReason> {
        let path = self.resolve(name)?;
        // Looked at before it is opened: opening a device can have effects.
        let io = |source| CheckpointReason::Io { source };
        if !fs::metadata(&path).map_err(io)?.is_file() {
            return Err(CheckpointReason::NotARegularFile);
        }
        let mut options = OpenOptions::new();
        options.read(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK | libc::O_CLOEXEC);
        let file = options.open(&path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(CheckpointReason::NotARegularFile);
        }
        let stamp = Stamp::of(&metadata);
        Ok((file, metadata.len(), stamp))
    }

    /// The real path of a file, which must lie in the folder itself or among the cache's blobs.
    fn resolve(&self, name: &str) -> Result<PathBuf, CheckpointReason> {
        let path = fs::canonicalize(self.root.join(name)).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => CheckpointReason::MissingShard { names: Names::of([name]) },
            _ => CheckpointReason::Io { source },
        })?;
        let parent = path.parent();
        let inside = path.starts_with(&self.root) || self.blobs.as_deref().is_some_and(|b| parent == Some(b));
        if inside { Ok(path) } else { Err(CheckpointReason::UnsafePath { got: shorten(name) }) }
    }
}

/// Length and time of change of an open file: differs when somebody wrote to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) bytes: u64,
    pub(super) modified: Option<std::time::SystemTime>,
}

impl Stamp {
    pub(super) fn of(metadata: &fs::Metadata) -> Self {
        Self { bytes: metadata.len(), modified: metadata.modified().ok() }
    }
}

#[derive(Deserialize)]
struct Index {
    #[serde(rename = "metadata", default)]
    _metadata: IgnoredAny,
    weight_map: Members<String>,
}

/// `<cache>/models--org--name/blobs`, when the folder is `<cache>/models--org--name/snapshots/<revision>` or below.
fn blob_root(root: &Path) -> Option<PathBuf> {
    let snapshots =
        root.ancestors().skip(1).find(|path| path.file_name().is_some_and(|n| n == "snapshots"))?;
    let repository = snapshots.parent()?;
    let is_cache = repository.file_name()?.to_str()?.starts_with("models--");
    if is_cache { fs::canonicalize(repository.join("blobs")).ok() } else { None }
}

fn check_plain(name: &str) -> Result<(), CheckpointReason> {
    if is_pickle(name) {
        return Err(CheckpointReason::PickleOnly { got: shorten(name) });
    }
    let plain = !name.contains(['/', '\\', '\0', ':']) && name.ends_with(".safetensors") && name.len() <= 255;
    if plain { Ok(()) } else { Err(CheckpointReason::UnsafePath { got: shorten(name) }) }
}

fn is_pickle(name: &str) -> bool {
    [".bin", ".pt", ".pth", ".ckpt", ".pkl"].iter().any(|suffix| name.ends_with(suffix))
}
