//! The strict validator of one safetensors header: every byte of the file belongs to exactly one tensor.
//!
//! Source: the safetensors format, <https://github.com/huggingface/safetensors> (README, "Format").

use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::reason::{CheckpointReason, shorten};
use crate::tensor::DType;

/// Longest header accepted, as in the reference implementation.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Element type of a stored tensor, in the format's spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoredDType {
    name: &'static str,
    bits: u64,
}

impl StoredDType {
    const ALL: [Self; 22] = {
        const fn of(name: &'static str, bits: u64) -> StoredDType {
            StoredDType { name, bits }
        }
        [
            of("BOOL", 8),
            of("F4", 4),
            of("F6_E2M3", 6),
            of("F6_E3M2", 6),
            of("U8", 8),
            of("I8", 8),
            of("F8_E5M2", 8),
            of("F8_E4M3", 8),
            of("F8_E8M0", 8),
            of("F8_E4M3FNUZ", 8),
            of("F8_E5M2FNUZ", 8),
            of("I16", 16),
            of("U16", 16),
            of("F16", 16),
            of("BF16", 16),
            of("I32", 32),
            of("U32", 32),
            of("F32", 32),
            of("F64", 64),
            of("I64", 64),
            of("U64", 64),
            of("C64", 64),
        ]
    };

    /// The format's spelling: "F32", "BF16", ...
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Bits of one element.
    pub fn bits(self) -> u64 {
        self.bits
    }

    /// The computing type, for the three floats that matrices are kept in.
    pub fn as_float(self) -> Option<DType> {
        match self.name {
            "F32" => Some(DType::F32),
            "F16" => Some(DType::F16),
            "BF16" => Some(DType::Bf16),
            _ => None,
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name == name)
    }
}

/// One tensor of a header; offsets count from the first byte after the header.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: StoredDType,
    pub(super) shape: Vec<usize>,
    pub(super) begin: u64,
    pub(super) end: u64,
}

/// A fault, and the tensor it is in.
pub(super) type Fault = (Option<String>, CheckpointReason);

/// Length of the header of a file that starts with `prefix` and has `file_bytes` bytes.
pub(super) fn header_bytes(prefix: [u8; 8], file_bytes: u64) -> Result<u64, CheckpointReason> {
    let got = u64::from_le_bytes(prefix);
    if got > MAX_HEADER_BYTES {
        return Err(CheckpointReason::HeaderTooLarge { got, limit: MAX_HEADER_BYTES });
    }
    if 8 + got > file_bytes {
        return Err(CheckpointReason::HeaderPastEnd { needed: 8 + got, file_bytes });
    }
    Ok(got)
}

/// Read and check a whole header. `file_bytes` is the length of the file, the 8 length bytes included.
pub(super) fn parse(json: &[u8], file_bytes: u64) -> Result<Vec<Entry>, Fault> {
    let text =
        std::str::from_utf8(json).map_err(|e| (None, CheckpointReason::NotUtf8 { at: e.valid_up_to() }))?;
    if !text.starts_with('{') {
        return Err((None, CheckpointReason::NotJson { what: "a header starts with '{'".into() }));
    }
    let raw: Members<&RawValue> = from_json(text).map_err(|reason| (None, reason))?;
    let mut entries = Vec::with_capacity(raw.0.len());
    for (name, value) in raw.0 {
        if name == "__metadata__" {
            from_json::<Members<String>>(value.get()).map_err(|reason| (None, reason))?;
        } else {
            let entry = entry(&name, value).map_err(|reason| (Some(shorten(&name)), reason))?;
            entries.push(entry);
        }
    }
    check_layout(&mut entries, 8 + json.len() as u64, file_bytes)?;
    Ok(entries)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry<'a> {
    #[serde(borrow)]
    dtype: &'a RawValue,
    #[serde(borrow)]
    shape: &'a RawValue,
    #[serde(borrow)]
    data_offsets: &'a RawValue,
}

fn entry(name: &str, value: &RawValue) -> Result<Entry, CheckpointReason> {
    let raw: RawEntry<'_> = from_json(value.get())?;
    let unknown = || CheckpointReason::UnknownDType { got: shorten(raw.dtype.get()) };
    let dtype = serde_json::from_str::<String>(raw.dtype.get())
        .ok()
        .and_then(|name| StoredDType::from_name(&name))
        .ok_or_else(unknown)?;
    let bad_shape = || CheckpointReason::BadShape { got: shorten(raw.shape.get()) };
    let shape: Vec<usize> = serde_json::from_str(raw.shape.get()).map_err(|_| bad_shape())?;
    // A zero anywhere empties the tensor, but does not excuse the other dimensions.
    let bound = shape
        .iter()
        .filter(|&&dim| dim != 0)
        .try_fold(dtype.bits, |product, &dim| product.checked_mul(dim as u64));
    bound.ok_or_else(bad_shape)?;
    let elements: u64 = shape.iter().map(|&dim| dim as u64).product();
    let bits = elements * dtype.bits;
    if !bits.is_multiple_of(8) {
        return Err(CheckpointReason::Misaligned { elements, bits: dtype.bits });
    }
    let bad_offsets = || CheckpointReason::BadOffsets { got: shorten(raw.data_offsets.get()) };
    let [begin, end]: [u64; 2] = serde_json::from_str(raw.data_offsets.get()).map_err(|_| bad_offsets())?;
    let got = end.checked_sub(begin).ok_or_else(bad_offsets)?;
    if got != bits / 8 {
        return Err(CheckpointReason::SizeMismatch { expected: bits / 8, got });
    }
    Ok(Entry { name: name.to_owned(), dtype, shape, begin, end })
}

/// Sort by place in the file; refuse overlaps, holes, and a file that ends early or late.
fn check_layout(entries: &mut [Entry], data_begin: u64, file_bytes: u64) -> Result<(), Fault> {
    entries.sort_by_key(|entry| (entry.begin, entry.end));
    let data_bytes = file_bytes - data_begin;
    let mut previous_end = 0;
    for entry in entries.iter() {
        let begin = entry.begin;
        let reason = match begin.cmp(&previous_end) {
            std::cmp::Ordering::Less => CheckpointReason::Overlap { begin, previous_end },
            std::cmp::Ordering::Greater => CheckpointReason::Hole { begin, previous_end },
            std::cmp::Ordering::Equal => {
                previous_end = entry.end;
                continue;
            }
        };
        return Err((Some(shorten(&entry.name)), reason));
    }
    if previous_end > data_bytes {
        let expected = data_begin.saturating_add(previous_end);
        let cut = entries.iter().find(|entry| entry.end > data_bytes).map(|entry| shorten(&entry.name));
        return Err((cut, CheckpointReason::Truncated { expected, got: file_bytes }));
    }
    match data_bytes - previous_end {
        0 => Ok(()),
        extra => Err((None, CheckpointReason::TrailingBytes { extra })),
    }
}

/// Parse JSON, with a name that appears twice told apart from other faults. The parser limits nesting to 128.
pub(super) fn from_json<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, CheckpointReason> {
    serde_json::from_str(text).map_err(|error| {
        let what = error.to_string();
        let key = match what.strip_prefix(DUPLICATE) {
            Some(rest) => rest.split('\u{1}').nth(1),
            None => what.strip_prefix("duplicate field `").and_then(|rest| rest.split('`').next()),
        };
        match key {
            Some(key) => CheckpointReason::DuplicateKey { key: key.to_owned() },
            None => CheckpointReason::NotJson { what: shorten(&what) },
        }
    })
}

/// Starts the message of a duplicate; the name stands between two U+0001.
const DUPLICATE: &str = "duplicate name ";

/// The members of a JSON object in order, each name once.
pub(super) struct Members<V>(pub(super) Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Members<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor<V>(std::marker::PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for MembersVisitor<V> {
            type Value = Members<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut seen = HashSet::new();
                let mut members = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        let name = shorten(&name);
                        return Err(serde::de::Error::custom(format!("{DUPLICATE}\u{1}{name}\u{1}")));
                    }
                    members.push((name, map.next_value()?));
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(MembersVisitor(std::marker::PhantomData))
    }
}
