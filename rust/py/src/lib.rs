//! The one crate that knows Python: thin wrappers around the four others, no policy of its own.

mod buffer;
mod checkpoint;
mod cpu;
mod error;
mod sample;
mod sched;

use pyo3::prelude::*;

/// Rust core of pyrite.
#[pymodule]
mod _core {
    use super::*;

    #[pymodule_export]
    use super::checkpoint::{Checkpoint, open_checkpoint, quantize_tensors};
    #[pymodule_export]
    use super::cpu::{CpuExecutor, UnpublishedFile, cpu_info, matrix_bytes, peak_flops, read_bandwidth};
    #[pymodule_export]
    use super::sample::{Sample, Sampler, StopMatcher, sample, sample_candidates, token_logprobs};
    #[pymodule_export]
    use super::sched::{Scheduler, StepPlan};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
