//! Packed models on disk: what loading quantized weights gave is kept in a folder, and the next load only reads it.
//!
//! A file belongs to one model folder and one way of quantizing it. Its key says from which state of which files it was
//! made and by which layout; a file with another key is as good as none, and the next load replaces it. So there is one
//! file per model and quantization, and nothing else to clean up. Float models have no file: it would gain them nothing.
//!
//! The file is a header and the bytes of every parameter as the executor holds them, in chunks with a checksum each (see
//! [`header`]). Loading reads the chunks straight into that memory, by all workers; nothing is mapped. No number in a
//! file is believed: the reader knows what the header must be and compares. A forged file can give wrong numbers, as a
//! forged model can, but no more.
//!
//! A file is written under another name, synced and renamed, so that readers and other writers see all of it or nothing.
//! Nothing about a file can make a load fail: where it cannot be used or written, a [`PackedFault`] says so in one line.

mod header;
mod key;
mod read;
#[cfg(test)]
mod tests;
mod write;

use std::io;
use std::path::{Path, PathBuf};

pub use write::Unpublished;

use crate::checkpoint::Checkpoint;
use crate::error::CpuError;
use crate::pool::Pool;
use crate::program::Program;
use crate::tensor::DType;
use crate::weights::{Interrupted, Progress, Weights};

use header::Header;
use key::Key;

/// Bytes that one checksum covers, and that one worker reads or writes at once. Chunks do not cross parameters.
const CHUNK_BYTES: usize = 1 << 20;
/// Chunks per worker between two calls of the progress callback.
const CHUNKS_PER_ROUND: usize = 16;

/// Why a file was not used or not written. A note for a log; the model is loaded all the same.
#[derive(Debug, thiserror::Error)]
pub enum PackedFault {
    /// The system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A folder, a pipe or a device has the file's name.
    #[error("not a regular file")]
    NotARegularFile,
    /// It does not start like a packed file.
    #[error("not a packed file")]
    NotAPackedFile,
    /// It was made from other files, or by a pyrite with another layout.
    #[error("made from another state of the model, or by another version of pyrite")]
    Stale,
    /// It is too short or too long.
    #[error("{got} bytes long, expected {expected}")]
    WrongLength {
        /// Bytes found.
        got: u64,
        /// Bytes expected.
        expected: u64,
    },
    /// A checksum does not fit.
    #[error("damaged: {part}")]
    Damaged {
        /// Where.
        part: String,
    },
    /// The disk has too little room.
    #[error("{needed_bytes} bytes are needed on the disk, {free_bytes} are free")]
    NoRoom {
        /// Bytes needed, a reserve for others included.
        needed_bytes: u64,
        /// Bytes free.
        free_bytes: u64,
    },
    /// The model's files were written so recently that their times could not tell the next change apart.
    #[error("the model has just been written")]
    TooFresh,
}

impl PackedFault {
    /// Whether this belongs to normal life: a model that was changed, or has just been made.
    pub fn is_expected(&self) -> bool {
        matches!(self, Self::Stale | Self::TooFresh)
    }
}

/// How weights were loaded.
#[derive(Debug, Default)]
pub struct PackedReport {
    /// Whether the weights came from a packed file.
    pub used: bool,
    /// Why a file that was there was not used.
    pub refused: Option<PackedFault>,
    /// The file that was written, still to be published.
    pub unpublished: Option<Unpublished>,
    /// Why no file was written, where one should have been.
    pub unwritten: Option<PackedFault>,
}

/// A folder with packed files.
#[derive(Clone, Debug)]
pub struct PackedFolder {
    path: PathBuf,
}

impl PackedFolder {
    /// The folder of that path, which is made when the first file is written.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// [`Weights::load`], from this folder's file where it has the right one; where not, a file is written from the
    /// loaded weights, for [`Unpublished::publish`]. A program without quantized parameters is just loaded.
    ///
    /// Writing copies the weights into the system's file cache, which takes as long as the system takes that copy; no
    /// second copy is made in this process. `progress` is called throughout, and may stop the load.
    ///
    /// # Errors
    /// Those of [`Weights::load`], and none because of the folder or its files.
    pub fn load(
        &self,
        program: &Program,
        checkpoint: &Checkpoint,
        weight_dtype: Option<DType>,
        pool: &mut Pool,
        progress: &mut Progress<'_>,
    ) -> Result<(Weights, PackedReport), CpuError> {
        let mut report = PackedReport::default();
        let key = Key::new(program, checkpoint, weight_dtype);
        let Some(key) = key.filter(|_| program.parameters.iter().any(|parameter| parameter.quant.is_some()))
        else {
            return Ok((Weights::load(program, checkpoint, weight_dtype, pool, progress)?, report));
        };
        let path = self.path.join(key.file_name());
        match read_weights(&path, &key, program, checkpoint, weight_dtype, pool, progress) {
            Ok(Some(weights)) => {
                report.used = true;
                return Ok((weights, report));
            }
            Ok(None) => {}
            Err(Failure::Fault(fault)) => report.refused = Some(fault),
            Err(Failure::Fatal(error)) => return Err(error),
        }
        let weights = Weights::load(program, checkpoint, weight_dtype, pool, progress)?;
        let header = Header::new(&key, &weights);
        let written = match key.is_settled() {
            true => write::write(&path, header, &weights, pool, progress),
            false => Err(PackedFault::TooFresh.into()),
        };
        match written {
            Ok(unpublished) => report.unpublished = Some(unpublished),
            Err(Failure::Fault(fault)) => report.unwritten = Some(fault),
            Err(Failure::Fatal(error)) => return Err(error),
        }
        Ok((weights, report))
    }
}

/// The weights in the file, if there is one.
fn read_weights(
    path: &Path,
    key: &Key,
    program: &Program,
    checkpoint: &Checkpoint,
    weight_dtype: Option<DType>,
    pool: &mut Pool,
    progress: &mut Progress<'_>,
) -> Result<Option<Weights>, Failure> {
    let Some((file, length)) = read::open(path)? else { return Ok(None) };
    let mut weights = Weights::zeroed(program, checkpoint, weight_dtype)?;
    let header = Header::new(key, &weights).check(&file, length)?;
    read::read(&file, &header, &mut weights, pool, progress)?;
    Ok(Some(weights))
}

/// What ends an attempt: a fault of the file, or what ends the whole load.
enum Failure {
    Fault(PackedFault),
    Fatal(CpuError),
}

impl From<PackedFault> for Failure {
    fn from(fault: PackedFault) -> Self {
        Self::Fault(fault)
    }
}

impl From<CpuError> for Failure {
    fn from(error: CpuError) -> Self {
        Self::Fatal(error)
    }
}

/// For `map_err` on what the system was asked to do.
fn io(what: &'static str) -> impl Fn(io::Error) -> PackedFault {
    move |source| PackedFault::Io { what, source }
}

/// Report progress; the caller may want to stop.
fn tell(progress: &mut Progress<'_>, done: u64, total: u64) -> Result<(), Failure> {
    progress(done, total).map_err(|Interrupted| Failure::Fatal(CpuError::Interrupted))
}
