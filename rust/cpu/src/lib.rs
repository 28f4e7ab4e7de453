//! The CPU backend: reads checkpoints, packs weights, and replays a recorded program with one thread pool.
//!
//! It knows no Python, no scheduler and no model family. A step is one call: [`step::StepView`] in, logits out.

mod cgroup;
pub mod checkpoint;
pub mod cores;
pub mod error;
pub mod executor;
pub mod isa;
pub mod math;
mod memory;
pub mod ops;
pub mod packed_file;
pub mod pool;
pub mod probe;
mod processor;
pub mod program;
pub mod quant;
pub mod step;
pub mod tensor;
pub mod weights;
