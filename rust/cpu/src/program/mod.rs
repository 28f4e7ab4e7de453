//! The recorded program as the executor sees it: the JSON of `Program.to_json`, checked before anything is built.
//!
//! What each op computes is the contract in `python/pyrite/backends/base.py`. A program that passed
//! [`Program::from_json`] can be replayed without any further check of views, shapes or indices.

mod check;
#[cfg(test)]
mod tests;

use serde::Deserialize;

use crate::error::CpuError;
use crate::quant::QuantFormat;

/// Largest width, vocabulary or dimension that a program may name.
pub const MAX_DIM: usize = 1 << 24;

/// A model as ops over buffers; see the module's page.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// Columns of the logits.
    pub vocab_size: usize,
    /// Activations, named by index.
    pub buffers: Vec<Buffer>,
    /// Weights, named by their names.
    pub parameters: Vec<Parameter>,
    /// Rotary frequencies, named by index.
    pub rope_tables: Vec<RopeTable>,
    /// Groups of layers that keep the same keys.
    pub kv_groups: Vec<KvGroup>,
    /// What to run, in order.
    pub ops: Vec<Op>,
    /// Where the logits are after the last op: a whole `[R, vocab_size]` buffer.
    pub logits: View,
    /// Scratch memory, shared by buffers that are never alive together.
    pub slots: Vec<Slot>,
}

/// Symbolic number of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum RowsOf {
    /// Tokens of the step.
    T,
    /// Rows of the step that want logits.
    R,
}

/// Columns `offset .. offset + width` of a buffer, for all its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct View {
    /// Index of the buffer.
    pub buffer: usize,
    /// First column.
    pub offset: usize,
    /// Number of columns.
    pub width: usize,
}

/// An activation `[rows, width]` f32.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Buffer {
    /// For messages.
    pub name: String,
    /// Number of rows.
    pub rows: RowsOf,
    /// Number of columns.
    pub width: usize,
    /// Index of its slot; -1 for a buffer that no op uses.
    pub slot: i64,
}

/// Scratch memory for `rows` x `width` f32.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slot {
    /// Number of rows.
    pub rows: RowsOf,
    /// Columns of the widest buffer.
    pub width: usize,
}

/// What a parameter is used as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParameterKind {
    /// `[out_features, in_features]`, kept in a 16- or 32-bit float, or as integers where a format is given.
    Matrix,
    /// `[n]`, kept in f32.
    Vector,
}

/// A weight: checkpoint tensors laid one after the other along dimension 0.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    /// How ops name it.
    pub name: String,
    /// Matrix or vector.
    pub kind: ParameterKind,
    /// Two dimensions for a matrix, one for a vector.
    pub shape: Vec<usize>,
    /// Tensors of the checkpoint.
    pub sources: Vec<String>,
    /// How a matrix is quantized; None, or left out, for one that stays float.
    #[serde(default)]
    pub quant: Option<QuantFormat>,
}

/// Rotary frequencies in radians per position, and a factor on cos and sin.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeTable {
    /// `[rotary_dim / 2]`.
    pub inv_freq: Vec<f32>,
    /// Factor on cos and sin.
    pub scale: f32,
}

/// Layers that keep the same keys.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvGroup {
    /// How many of the last positions are kept; None for all.
    pub window: Option<usize>,
    /// Number of layers.
    pub num_layers: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// The only gated activation so far: `silu(gate) * up`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `z / (1 + exp(-z))`.
    Silu,
}

/// One op. Field meanings are those of `python/pyrite/models/program.py`.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
#[allow(missing_docs)]
pub enum Op {
    Embed {
        weight: String,
        out: View,
    },
    RmsNorm {
        x: View,
        out: View,
        weight: Option<String>,
        eps: f32,
        weight_offset: f32,
    },
    HeadNorm {
        x: View,
        num_heads: usize,
        head_dim: usize,
        weight: Option<String>,
        eps: f32,
        weight_offset: f32,
        scale: f32,
    },
    Linear {
        x: View,
        out: View,
        weight: String,
        bias: Option<String>,
    },
    Rope {
        x: View,
        num_heads: usize,
        head_dim: usize,
        table: usize,
    },
    KvStore {
        k: View,
        v: View,
        group: usize,
        layer: usize,
    },
    Attention {
        q: View,
        out: View,
        group: usize,
        layer: usize,
        num_heads: usize,
        softmax_scale: f32,
    },
    Glu {
        gate: View,
        up: View,
        out: View,
        activation: Activation,
    },
    Gate {
        x: View,
        gate: View,
    },
    Add {
        x: View,
        y: View,
    },
    SelectRows {
        x: View,
        out: View,
    },
    Logits {
        x: View,
        multiplier: f32,
        soft_cap: Option<f32>,
    },
}

impl Program {
    /// Parse and check a program.
    ///
    /// # Errors
    /// [`CpuError::Program`], naming the op at fault where one is.
    pub fn from_json(json: &str) -> Result<Self, CpuError> {
        let program: Self = serde_json::from_str(json)
            .map_err(|error| CpuError::Program { op: None, what: error.to_string() })?;
        check::check(&program)?;
        Ok(program)
    }

    /// Rows of the smallest embedding table: token ids must be below it.
    pub fn num_token_ids(&self) -> usize {
        let tables = self.ops.iter().filter_map(|op| match op {
            Op::Embed { weight, .. } => self.parameter(weight).map(|(_, p)| p.shape[0]),
            _ => None,
        });
        tables.min().unwrap_or(self.vocab_size)
    }

    /// Index and description of the parameter of that name.
    pub fn parameter(&self, name: &str) -> Option<(usize, &Parameter)> {
        self.parameters.iter().enumerate().find(|(_, parameter)| parameter.name == name)
    }
}
