//! The kernels: one module per operation, each with a scalar twin that defines it.

pub mod linear;
