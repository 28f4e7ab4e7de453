//! Why a checkpoint was refused: one variant per fault, carrying the values that explain it.

use std::fmt;
use std::io;

/// What is wrong with a model folder or one of its files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointReason {
    /// The file cannot even hold the 8-byte header length.
    #[error("a safetensors file starts with 8 bytes of header length: got {got} bytes")]
    HeaderTooSmall {
        /// Length of the file in bytes.
        got: u64,
    },
    /// The header claims more bytes than any sane one has.
    #[error("header length: got {got} bytes, expected at most {limit}")]
    HeaderTooLarge {
        /// The length that the file claims.
        got: u64,
        /// The largest length accepted.
        limit: u64,
    },
    /// The header does not fit in the file.
    #[error("header reaches past the end of the file: needs {needed} bytes, the file has {file_bytes}")]
    HeaderPastEnd {
        /// 8 plus the claimed header length.
        needed: u64,
        /// Length of the file in bytes.
        file_bytes: u64,
    },
    /// The header or the index is not UTF-8.
    #[error("not UTF-8 at byte {at}")]
    NotUtf8 {
        /// First bad byte, counted from the start of the JSON.
        at: usize,
    },
    /// The header or the index is not the JSON that the format asks for.
    #[error("not the expected JSON: {what}")]
    NotJson {
        /// What the parser saw.
        what: String,
    },
    /// A name appears twice in one JSON object; no winner is picked.
    #[error("the name {key:?} appears twice")]
    DuplicateKey {
        /// The name.
        key: String,
    },
    /// A tensor is in two files.
    #[error("the tensor is also in {other}")]
    DuplicateTensor {
        /// The other file.
        other: String,
    },
    /// The shape is not a list of natural numbers, or its product overflows.
    #[error("bad shape {got}: expected a list of natural numbers whose product fits in 64 bits")]
    BadShape {
        /// The shape as written, shortened.
        got: String,
    },
    /// `data_offsets` is not a pair of natural numbers in order.
    #[error("bad data_offsets {got}: expected [begin, end] with begin <= end")]
    BadOffsets {
        /// The offsets as written, shortened.
        got: String,
    },
    /// The dtype is none of the format's.
    #[error("unknown dtype {got}")]
    UnknownDType {
        /// The dtype as written, shortened.
        got: String,
    },
    /// A sub-byte dtype whose elements do not fill whole bytes.
    #[error("{elements} elements of {bits} bits do not fill whole bytes")]
    Misaligned {
        /// Number of elements.
        elements: u64,
        /// Bits of one element.
        bits: u64,
    },
    /// Shape times dtype is not the number of bytes stored.
    #[error("shape and dtype need {expected} bytes, data_offsets span {got}")]
    SizeMismatch {
        /// Bytes that shape and dtype need.
        expected: u64,
        /// Bytes between the offsets.
        got: u64,
    },
    /// Two tensors share bytes.
    #[error("data starts at byte {begin}, inside another tensor that ends at {previous_end}")]
    Overlap {
        /// First byte of this tensor.
        begin: u64,
        /// End of the tensor before it.
        previous_end: u64,
    },
    /// Bytes that belong to no tensor lie before this one.
    #[error("data starts at byte {begin}, but the tensor before it ends at {previous_end}")]
    Hole {
        /// First byte of this tensor.
        begin: u64,
        /// End of the tensor before it.
        previous_end: u64,
    },
    /// The file goes on after the last tensor.
    #[error("{extra} bytes follow the last tensor")]
    TrailingBytes {
        /// How many.
        extra: u64,
    },
    /// The file ends before its tensors do.
    #[error("file is cut short: expected {expected} bytes, got {got}")]
    Truncated {
        /// Length that the header needs.
        expected: u64,
        /// Length of the file.
        got: u64,
    },
    /// The index names files that are not there.
    #[error("missing files: {names}")]
    MissingShard {
        /// The files.
        names: Names,
    },
    /// The index places tensors in a file that does not have them.
    #[error("the index lists tensors that the file does not have: {names}")]
    AbsentTensors {
        /// The tensors.
        names: Names,
    },
    /// A file has tensors that the index does not list for it.
    #[error("the file has tensors that the index does not list for it: {names}")]
    UnlistedTensors {
        /// The tensors.
        names: Names,
    },
    /// A file name that is not a plain name, or a link that leaves the model folder.
    #[error("unsafe path {got:?}: expected a plain file name inside the model folder")]
    UnsafePath {
        /// The name, shortened; never a resolved path.
        got: String,
    },
    /// A directory, FIFO, socket or device where a file should be.
    #[error("not a regular file")]
    NotARegularFile,
    /// Weights exist only in a format that can run code when it is read.
    #[error("only pickle weights ({got}), which pyrite never reads: convert them to safetensors")]
    PickleOnly {
        /// One of the files.
        got: String,
    },
    /// No `*.safetensors` file in the folder.
    #[error("no safetensors file in the folder")]
    NoWeights,
    /// More directory entries or shards than any model has.
    #[error("too many files: more than {limit}")]
    TooManyFiles {
        /// The largest number accepted.
        limit: usize,
    },
    /// `model.safetensors.index.json` is larger than any sane one.
    #[error("index too large: got {got} bytes, expected at most {limit}")]
    IndexTooLarge {
        /// Its length in bytes.
        got: u64,
        /// The largest length accepted.
        limit: u64,
    },
    /// A file's size or time of change is not what it was when it was opened.
    #[error("the file changed while it was being loaded")]
    ChangedDuringLoad,
    /// No tensor of that name.
    #[error("no such tensor")]
    MissingTensor,
    /// A read outside a tensor was asked for: a bug in the caller.
    #[error("read of {len} bytes at {offset} is outside the tensor's {tensor_bytes} bytes")]
    ReadOutOfRange {
        /// First byte, from the tensor's start.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// Bytes of the tensor.
        tensor_bytes: u64,
    },
    /// A tensor does not have the shape that the model needs.
    #[error("got shape {got:?}, expected {expected:?}")]
    WrongShape {
        /// Shape in the model.
        expected: Vec<usize>,
        /// Shape in the file.
        got: Vec<usize>,
    },
    /// A weight of a dtype that is not a float of 16 or 32 bits.
    #[error("got dtype {got}, expected F32, F16 or BF16")]
    WrongDType {
        /// The dtype in the file.
        got: &'static str,
    },
    /// A weight that no integer can stand for.
    #[error("NaN or infinite weights cannot be quantized")]
    NotFinite,
    /// The system failed to open or read.
    #[error("{source}")]
    Io {
        /// What the system said.
        source: io::Error,
    },
}

impl CheckpointReason {
    /// Stable identifier of the fault, safe to match on.
    pub fn code(&self) -> &'static str {
        match self {
            Self::HeaderTooSmall { .. } => "header_too_small",
            Self::HeaderTooLarge { .. } => "header_too_large",
            Self::HeaderPastEnd { .. } => "header_past_end",
            Self::NotUtf8 { .. } => "not_utf8",
            Self::NotJson { .. } => "not_json",
            Self::DuplicateKey { .. } => "duplicate_key",
            Self::DuplicateTensor { .. } => "duplicate_tensor",
            Self::BadShape { .. } => "bad_shape",
            Self::BadOffsets { .. } => "invalid_offset",
            Self::UnknownDType { .. } => "unknown_dtype",
            Self::Misaligned { .. } => "misaligned",
            Self::SizeMismatch { .. } => "size_mismatch",
            Self::Overlap { .. } => "overlap",
            Self::Hole { .. } => "hole",
            Self::TrailingBytes { .. } => "trailing_bytes",
            Self::Truncated { .. } => "truncated",
            Self::MissingShard { .. } => "missing_shard",
            Self::AbsentTensors { .. } | Self::UnlistedTensors { .. } => "index_mismatch",
            Self::UnsafePath { .. } => "unsafe_path",
            Self::NotARegularFile => "not_a_regular_file",
            Self::PickleOnly { .. } => "unsafe_format",
            Self::NoWeights => "no_weights",
            Self::TooManyFiles { .. } => "too_many_files",
            Self::IndexTooLarge { .. } => "index_too_large",
            Self::ChangedDuringLoad => "changed_during_load",
            Self::MissingTensor => "missing_tensor",
            Self::ReadOutOfRange { .. } => "read_out_of_range",
            Self::WrongShape { .. } => "wrong_shape",
            Self::WrongDType { .. } => "wrong_dtype",
            Self::NotFinite => "not_finite",
            Self::Io { .. } => "io",
        }
    }
}

/// Up to [`Names::SHOWN`] names and how many there are in all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The first names, sorted.
    pub shown: Vec<String>,
    /// All of them, the unshown ones included.
    pub count: usize,
}

impl Names {
    /// How many names are kept.
    pub const SHOWN: usize = 10;

    /// Keep the first names of a sorted list.
    pub(super) fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut count = 0;
        let mut shown = Vec::new();
        for name in names {
            count += 1;
            if shown.len() < Self::SHOWN {
                shown.push(shorten(name));
            }
        }
        Self { shown, count }
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.shown.join(", "))?;
        match self.count - self.shown.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more ({} in all)", self.count),
        }
    }
}

/// The first 80 characters of a text from a file, with control characters escaped.
pub(super) fn shorten(text: &str) -> String {
    const KEEP: usize = 80;
    let mut short: String = text.chars().take(KEEP).flat_map(escape).collect();
    if text.chars().nth(KEEP).is_some() {
        short.push('…');
    }
    short
}

fn escape(c: char) -> Box<dyn Iterator<Item = char>> {
    if c.is_control() { Box::new(c.escape_default()) } else { Box::new(std::iter::once(c)) }
}
