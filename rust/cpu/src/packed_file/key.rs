//! What a packed file was made from.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use twox_hash::XxHash3_64;

use crate::checkpoint::Checkpoint;
use crate::ops::{linear, qlinear};
use crate::program::{ParameterKind, Program};
use crate::quant::{QuantFormat, SEARCH_VERSION};
use crate::tensor::DType;

/// Everything that the bytes of the weights follow from: two loads with equal keys give equal bytes. Instruction levels
/// and threads are not among it: all of them pack alike.
pub(super) struct Key {
    /// JSON, so that a person can read it off the start of a file.
    pub(super) text: Vec<u8>,
    /// Of the model folder and the way it is quantized: the file's name.
    id: u64,
    is_settled: bool,
}

#[derive(Serialize)]
struct Text<'a> {
    versions: Versions,
    folder: &'a str,
    files: Vec<(&'a str, u64, i128)>,
    weight_dtype: Option<&'static str>,
    parameters: Vec<ParameterText<'a>>,
}

#[derive(Serialize)]
struct Versions {
    float_layout: u32,
    integer_layout: u32,
    search: u32,
}

#[derive(Serialize)]
struct ParameterText<'a> {
    name: &'a str,
    matrix: bool,
    shape: &'a [usize],
    quant: Option<QuantFormat>,
    sources: Vec<SourceText<'a>>,
}

/// Name, dtype, shape, file, first byte.
type SourceText<'a> = (&'a str, &'static str, &'a [usize], usize, u64);

impl Key {
    /// None when the system tells no time of change for a file, so that a change could go unseen, or when a tensor is
    /// missing, which loading will say better.
    pub(super) fn new(
        program: &Program,
        checkpoint: &Checkpoint,
        weight_dtype: Option<DType>,
    ) -> Option<Self> {
        let mut files = Vec::new();
        let (mut is_settled, now) = (true, SystemTime::now());
        for file in checkpoint.files() {
            let modified = file.modified?;
            is_settled &= is_past(modified, now);
            files.push((file.name, file.bytes, nanoseconds(modified)));
        }
        let mut parameters = Vec::with_capacity(program.parameters.len());
        for parameter in &program.parameters {
            let sources = parameter.sources.iter().map(|name| {
                let info = checkpoint.get(name)?;
                Some((name.as_str(), info.dtype.name(), &info.shape[..], info.file, info.begin))
            });
            parameters.push(ParameterText {
                name: &parameter.name,
                matrix: parameter.kind == ParameterKind::Matrix,
                shape: &parameter.shape,
                quant: parameter.quant,
                sources: sources.collect::<Option<_>>()?,
            });
        }
        let folder = checkpoint.folder().to_string_lossy();
        let weight_dtype = weight_dtype.map(DType::name);
        let versions = Versions {
            float_layout: linear::LAYOUT_VERSION,
            integer_layout: qlinear::LAYOUT_VERSION,
            search: SEARCH_VERSION,
        };
        let text = Text { versions, folder: &folder, files, weight_dtype, parameters };
        let mut formats: Vec<QuantFormat> =
            program.parameters.iter().filter_map(|parameter| parameter.quant).collect();
        formats.sort_unstable();
        formats.dedup();
        let name = serde_json::to_vec(&(folder.as_ref(), weight_dtype, formats)).ok()?;
        Some(Self { text: serde_json::to_vec(&text).ok()?, id: XxHash3_64::oneshot(&name), is_settled })
    }

    /// The name of the model's file in the folder: there is one for each way of quantizing it.
    pub(super) fn file_name(&self) -> String {
        format!("{:016x}.packed", self.id)
    }

    /// Whether every later change of the model's files will give them another time.
    pub(super) fn is_settled(&self) -> bool {
        self.is_settled
    }
}

/// Whether `modified` is farther back than the steps of the file system's clock, which whole seconds betray as coarse.
fn is_past(modified: SystemTime, now: SystemTime) -> bool {
    let is_coarse = nanoseconds(modified) % 1_000_000_000 == 0;
    let step = if is_coarse { Duration::from_secs(2) } else { Duration::from_millis(50) };
    now.duration_since(modified).map_or_else(|ahead| ahead.duration() > step, |age| age > step)
}

/// Since 1970.
fn nanoseconds(time: SystemTime) -> i128 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_nanos() as i128,
        Err(before) => -(before.duration().as_nanos() as i128),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_past_when_the_clock_has_moved_on() {
        let at = |milliseconds| UNIX_EPOCH + Duration::from_millis(milliseconds);
        assert!(is_past(at(1_000_001), at(1_000_052)) && !is_past(at(1_000_001), at(1_000_040)));
        assert!(is_past(at(1_000_000), at(1_002_001)) && !is_past(at(1_000_000), at(1_001_500)));
        assert!(is_past(at(2_000_001), at(1_000_000)) && !is_past(at(1_000_011), at(1_000_000)));
        assert_eq!(nanoseconds(UNIX_EPOCH - Duration::from_nanos(3)), -3);
    }
}
