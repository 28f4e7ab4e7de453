//! The one crate that knows Python: thin wrappers around the four others, no policy of its own.

use pyo3::prelude::*;

/// Rust core of pyrite.
#[pymodule]
mod _core {
    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
