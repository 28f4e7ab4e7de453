//! The kernels: one module per operation or family of small ones, each with a scalar twin that defines it.
//!
//! The small ops work on one row, so that an executor can run a chain of them over a row while it is in the cache.

#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "what only vector levels use"))]

pub mod attention;
#[cfg(target_arch = "x86_64")]
mod broadcast;
pub mod elementwise;
pub(crate) mod lanes;
pub mod linear;
pub mod norm;
mod prefetch;
pub mod qlinear;
pub mod rope;
#[cfg(test)]
mod tests;
