//! `_core.open_checkpoint`, `_core.Checkpoint` and `_core.quantize_tensors`.

use std::path::PathBuf;
use std::sync::Arc;

use numpy::{Element, PyArray1, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use pyrite_cpu::error::CpuError;
use pyrite_cpu::pool::Pool;
use pyrite_cpu::quant::{self, QuantFormat};

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

/// Most threads that may quantize.
const MAX_THREADS: usize = 1024;

/// Codes, scales and zeros as numpy arrays.
type Canonical<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>, Option<Bound<'py, PyAny>>);

/// Float tensors, stacked along dimension 0, in the canonical quantized form.
#[pyfunction]
#[pyo3(signature = (checkpoint, names, *, bits, group_size, symmetric, groups_per_scale, num_threads))]
pub(crate) fn quantize_tensors<'py>(
    py: Python<'py>,
    checkpoint: &Checkpoint,
    names: Vec<String>,
    bits: usize,
    group_size: usize,
    symmetric: bool,
    groups_per_scale: usize,
    num_threads: usize,
) -> PyResult<Canonical<'py>> {
    let format = QuantFormat { bits, group_size, symmetric, groups_per_scale };
    let matrix = detached(py, || {
        if !(1..=MAX_THREADS).contains(&num_threads) {
            let what = format!("got {num_threads}, expected 1 to {MAX_THREADS}");
            return Err(CpuError::Config { field: "num_threads", what });
        }
        quant::quantize_tensors(&checkpoint.inner, &names, format, &mut Pool::new(num_threads)?)
    })?;
    let (rows, groups) = (matrix.rows, matrix.cols / group_size);
    let scales = array(py, matrix.scales, rows, groups)?.call_method1("view", ("float16",))?;
    let zeros = matrix.zeros.map(|zeros| array(py, zeros, rows, groups)).transpose()?;
    Ok((array(py, matrix.codes, rows, matrix.cols)?, scales, zeros))
}

/// A vector as a matrix, not copied.
fn array<T: Element>(py: Python<'_>, data: Vec<T>, rows: usize, cols: usize) -> PyResult<Bound<'_, PyAny>> {
    Ok(PyArray1::from_vec(py, data).reshape([rows, cols])?.into_any())
}
