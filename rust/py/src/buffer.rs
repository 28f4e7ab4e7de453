//! Numpy arrays in and out: the one place that checks shapes, contiguity and length.

use numpy::{PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::error::Fault;

/// The rows of a C-contiguous `[rows, width]` f32 array.
pub(crate) struct LogitRows<'a> {
    data: &'a [f32],
    rows: usize,
    width: usize,
}

impl<'a> LogitRows<'a> {
    /// Borrow `array` for as long as its read guard lives.
    pub(crate) fn new(array: &'a PyReadonlyArray2<'_, f32>) -> PyResult<Self> {
        let (rows, width) = (array.shape()[0], array.shape()[1]);
        let data = array.as_slice().map_err(|_| not_contiguous("logits"))?;
        Ok(Self { data, rows, width })
    }

    /// Row `index`.
    pub(crate) fn row(&self, index: usize) -> PyResult<&'a [f32]> {
        if index >= self.rows {
            let fault = Fault::new("ShapeError", "logits have no such row").field("row");
            return Err(fault.got(index).expected(format!("less than {}", self.rows)).into());
        }
        Ok(&self.data[index * self.width..(index + 1) * self.width])
    }
}

/// The error for an array that is not C-contiguous.
pub(crate) fn not_contiguous(field: &str) -> PyErr {
    let fault = Fault::new("ShapeError", "the array is strided").field(field);
    fault.expected("C-contiguous float32").hint("pass np.ascontiguousarray(x)").into()
}
