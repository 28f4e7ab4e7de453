//! The one crate that knows Python: thin wrappers around the four others, no policy of its own.

mod checkpoint;
mod error;

use pyo3::prelude::*;

/// Rust core of pyrite.
#[pymodule]
mod _core {
    use super::*;

    #[pymodule_export]
    use super::checkpoint::{Checkpoint, open_checkpoint};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
