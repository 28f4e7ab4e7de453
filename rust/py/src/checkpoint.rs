//! `_core.open_checkpoint` and `_core.Checkpoint`.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::error::detached;

/// Validate the safetensors headers and the shard index of a model folder; no tensor data is read.
#[pyfunction]
pub(crate) fn open_checkpoint(py: Python<'_>, folder: PathBuf) -> PyResult<Checkpoint> {
    let inner = detached(py, || pyrite_cpu::checkpoint::Checkpoint::open(&folder))?;
    Ok(Checkpoint { inner: Arc::new(inner) })
}

/// Validated headers of one or more safetensors files.
#[pyclass(frozen, module = "pyrite._core")]
pub(crate) struct Checkpoint {
    pub(crate) inner: Arc<pyrite_cpu::checkpoint::Checkpoint>,
}

#[pymethods]
impl Checkpoint {
    /// Name to (dtype, shape).
    fn tensors<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let all = PyDict::new(py);
        for (name, info) in self.inner.tensors() {
            let shape = PyTuple::new(py, info.shape.iter().copied())?;
            all.set_item(name, (info.dtype.name(), shape))?;
        }
        Ok(all)
    }

    /// The raw little-endian bytes of one tensor.
    fn read<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyBytes>> {
        let len = self.inner.get(name).map_or(0, |info| usize::try_from(info.len).unwrap_or(usize::MAX));
        PyBytes::new_with(py, len, |bytes| detached(py, || self.inner.read_into(name, 0, bytes)))
    }

    /// Sum of all tensor bytes.
    fn num_bytes(&self) -> u64 {
        self.inner.num_bytes()
    }
}
