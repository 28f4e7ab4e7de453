//! Numpy arrays in and out: the one place that checks shapes, contiguity and length.

use numpy::{Element, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::error::Fault;

/// The rows of a C-contiguous `[rows, width]` array.
pub(crate) struct Rows<'a, T> {
    field: &'static str,
    data: &'a [T],
    rows: usize,
    width: usize,
}

impl<'a, T: Element> Rows<'a, T> {
    /// Borrow `array` for as long as its read guard lives.
    pub(crate) fn new(field: &'static str, array: &'a PyReadonlyArray2<'_, T>) -> PyResult<Self> {
        let (rows, width) = (array.shape()[0], array.shape()[1]);
        let data = array.as_slice().map_err(|_| not_contiguous(field))?;
        Ok(Self { field, data, rows, width })
    }

    /// Row `index`.
    pub(crate) fn row(&self, index: usize) -> PyResult<&'a [T]> {
        if index >= self.rows {
            let fault = Fault::new("ShapeError", "there is no such row").field(self.field);
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
