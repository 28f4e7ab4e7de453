//! A small generated model with every op, and a driver that feeds sequences to an executor in any pieces.

#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

mod allocations;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use pyrite_cpu::checkpoint::Checkpoint;
use pyrite_cpu::error::CpuError;
use pyrite_cpu::executor::{Executor, ExecutorConfig};
use pyrite_cpu::isa::Isa;
use pyrite_cpu::program::Program;
use pyrite_cpu::step::{GroupView, StepView};
use pyrite_cpu::tensor::DType;
use serde_json::{Value, json};

pub(crate) use allocations::allocations;

pub(crate) const HIDDEN: usize = 40;
pub(crate) const HEADS: usize = 6;
pub(crate) const KV_HEADS: usize = 2;
pub(crate) const HEAD_DIM: usize = 24;
pub(crate) const INTERMEDIATE: usize = 60;
pub(crate) const VOCAB: usize = 333;
pub(crate) const WINDOW: usize = 17;
/// KV group of each layer: 0 has the window and rope, 1 sees everything and has none.
pub(crate) const LAYERS: [(usize, usize); 3] = [(0, 0), (1, 0), (0, 1)];

/// A folder under the system's temporary one, removed at the end.
pub(crate) struct TempFolder(pub(crate) PathBuf);

impl TempFolder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("pyrite-exec-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Numbers in -1..1 that depend on the seed only.
pub(crate) fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// Tensors by name: dtype, shape, values.
pub(crate) type Tensors = BTreeMap<String, (DType, Vec<usize>, Vec<f32>)>;

/// Write a safetensors file.
pub(crate) fn write_safetensors(folder: &TempFolder, tensors: &Tensors) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, (dtype, shape, values)) in tensors {
        let begin = data.len();
        data.resize(begin + values.len() * dtype.size(), 0);
        for (index, value) in values.iter().enumerate() {
            dtype.set(&mut data[begin..], index, *value);
        }
        let dtype = match dtype {
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::Bf16 => "BF16",
        };
        header.insert(
            name.clone(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()]}),
        );
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&data);
    std::fs::write(folder.0.join("model.safetensors"), bytes).unwrap();
}

/// The tensors of the model, rounded to `dtype`.
pub(crate) fn tensors(dtype: DType) -> Tensors {
    let mut tensors = Tensors::new();
    let mut put = |name: String, shape: Vec<usize>, scale: f32, offset: f32| {
        let seed =
            name.bytes().fold(7, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
        let mut bytes = [0; 4];
        let values = numbers(seed, shape.iter().product()).into_iter().map(|value| {
            dtype.set(&mut bytes, 0, scale * value + offset);
            dtype.get(&bytes, 0)
        });
        let values = values.collect();
        tensors.insert(name, (dtype, shape, values));
    };
    put("embed".into(), vec![VOCAB, HIDDEN], 1.0, 0.0);
    put("norm".into(), vec![HIDDEN], 0.5, 1.0);
    for layer in 0..LAYERS.len() {
        for (name, rows, cols) in [
            ("q", HEADS * HEAD_DIM, HIDDEN),
            ("k", KV_HEADS * HEAD_DIM, HIDDEN),
            ("v", KV_HEADS * HEAD_DIM, HIDDEN),
            ("g", HEADS * HEAD_DIM, HIDDEN),
            ("o", HIDDEN, HEADS * HEAD_DIM),
            ("gate", INTERMEDIATE, HIDDEN),
            ("up", INTERMEDIATE, HIDDEN),
            ("down", HIDDEN, INTERMEDIATE),
        ] {
            put(format!("{layer}.{name}"), vec![rows, cols], 0.4, 0.0);
        }
        put(format!("{layer}.bias"), vec![QKV], 0.3, 0.0);
        put(format!("{layer}.norm_in"), vec![HIDDEN], 0.5, 1.0);
        put(format!("{layer}.norm_out"), vec![HIDDEN], 0.5, 0.0);
        put(format!("{layer}.norm_mlp"), vec![HIDDEN], 0.5, 1.0);
        put(format!("{layer}.norm_k"), vec![HEAD_DIM], 0.5, 1.0);
    }
    tensors
}

pub(crate) const QKV: usize = (2 * HEADS + 2 * KV_HEADS) * HEAD_DIM;

/// The program: sandwich norms, biases, q and k norms, window and full layers, output gate, tied head, soft-cap.
pub(crate) fn program_json() -> Value {
    let view = |buffer: usize, offset: usize, width: usize| json!({"buffer": buffer, "offset": offset, "width": width});
    let whole = |buffer: usize| view(buffer, 0, BUFFERS[buffer].1);
    let q = HEADS * HEAD_DIM;
    let kv = KV_HEADS * HEAD_DIM;
    let mut parameters = vec![
        json!({"name": "embed", "kind": "matrix", "shape": [VOCAB, HIDDEN], "sources": ["embed"]}),
        json!({"name": "norm", "kind": "vector", "shape": [HIDDEN], "sources": ["norm"]}),
    ];
    let mut ops = vec![json!({"op": "embed", "weight": "embed", "out": whole(0)})];
    let norm = |x: usize, out: usize, weight: String, offset: f32| json!({"op": "rms_norm", "x": whole(x), "out": whole(out), "weight": weight, "eps": 1e-5, "weight_offset": offset});
    let linear = |x: Value, out: Value, weight: String, bias: Option<String>| json!({"op": "linear", "x": x, "out": out, "weight": weight, "bias": bias});
    for (layer, (group, in_group)) in LAYERS.into_iter().enumerate() {
        let name = |name: &str| format!("{layer}.{name}");
        for (parameter, shape, sources) in [
            ("qkv", vec![QKV, HIDDEN], vec!["q", "k", "v", "g"]),
            ("o", vec![HIDDEN, q], vec!["o"]),
            ("gate_up", vec![2 * INTERMEDIATE, HIDDEN], vec!["gate", "up"]),
            ("down", vec![HIDDEN, INTERMEDIATE], vec!["down"]),
            ("bias", vec![QKV], vec!["bias"]),
            ("norm_in", vec![HIDDEN], vec!["norm_in"]),
            ("norm_out", vec![HIDDEN], vec!["norm_out"]),
            ("norm_mlp", vec![HIDDEN], vec!["norm_mlp"]),
            ("norm_k", vec![HEAD_DIM], vec!["norm_k"]),
        ] {
            let kind = if shape.len() == 2 { "matrix" } else { "vector" };
            let sources: Vec<String> = sources.into_iter().map(name).collect();
            parameters
                .push(json!({"name": name(parameter), "kind": kind, "shape": shape, "sources": sources}));
        }
        let head_norm = |x: Value, heads: usize, weight: Option<String>, scale: f32| {
            json!({"op": "head_norm", "x": x, "num_heads": heads, "head_dim": HEAD_DIM, "weight": weight,
                "eps": 1e-6, "weight_offset": 0.0, "scale": scale})
        };
        let rope = |x: Value, heads: usize| json!({"op": "rope", "x": x, "num_heads": heads, "head_dim": HEAD_DIM, "table": 0});
        ops.push(norm(0, 1, name("norm_in"), 0.0));
        ops.push(linear(whole(1), whole(2), name("qkv"), Some(name("bias"))));
        ops.push(head_norm(view(2, 0, q), HEADS, None, 1.3));
        ops.push(head_norm(view(2, q, kv), KV_HEADS, Some(name("norm_k")), 1.0));
        if group == 0 {
            ops.push(rope(view(2, 0, q), HEADS));
            ops.push(rope(view(2, q, kv), KV_HEADS));
        }
        ops.push(json!({"op": "kv_store", "k": view(2, q, kv), "v": view(2, q + kv, kv), "group": group, "layer": in_group}));
        ops.push(
            json!({"op": "attention", "q": view(2, 0, q), "out": whole(3), "group": group, "layer": in_group,
            "num_heads": HEADS, "softmax_scale": 0.4}),
        );
        ops.push(json!({"op": "gate", "x": whole(3), "gate": view(2, q + 2 * kv, q)}));
        ops.push(linear(whole(3), whole(4), name("o"), None));
        ops.push(norm(4, 1, name("norm_out"), 1.0));
        ops.push(json!({"op": "add", "x": whole(0), "y": whole(1)}));
        ops.push(norm(0, 1, name("norm_mlp"), 0.0));
        ops.push(linear(whole(1), whole(5), name("gate_up"), None));
        ops.push(
            json!({"op": "glu", "gate": view(5, 0, INTERMEDIATE), "up": view(5, INTERMEDIATE, INTERMEDIATE),
            "out": whole(6), "activation": "silu"}),
        );
        ops.push(linear(whole(6), whole(4), name("down"), None));
        ops.push(json!({"op": "add", "x": whole(0), "y": whole(4)}));
    }
    ops.push(norm(0, 1, "norm".into(), 0.0));
    ops.push(json!({"op": "select_rows", "x": whole(1), "out": whole(7)}));
    ops.push(linear(whole(7), whole(8), "embed".into(), None));
    ops.push(json!({"op": "logits", "x": whole(8), "multiplier": 0.7, "soft_cap": 15.0}));
    let inv_freq: Vec<f32> = (0..8).map(|i| 100f32.powf(-(i as f32) / 8.0)).collect();
    let group = |window: Option<usize>, num_layers: usize| json!({"window": window, "num_layers": num_layers, "num_kv_heads": KV_HEADS, "head_dim": HEAD_DIM});
    let buffers: Vec<Value> = BUFFERS
        .iter()
        .map(|(rows, width, slot)| json!({"name": format!("slot {slot}"), "rows": rows, "width": width, "slot": slot}))
        .collect();
    json!({
        "vocab_size": VOCAB, "buffers": buffers, "parameters": parameters,
        "rope_tables": [{"inv_freq": inv_freq, "scale": 1.1}],
        "kv_groups": [group(Some(WINDOW), 2), group(None, 1)],
        "ops": ops, "logits": whole(8),
        "slots": [{"rows": "T", "width": HIDDEN}, {"rows": "T", "width": HIDDEN}, {"rows": "T", "width": QKV},
            {"rows": "T", "width": HEADS * HEAD_DIM}, {"rows": "T", "width": HIDDEN},
            {"rows": "R", "width": HIDDEN}, {"rows": "R", "width": VOCAB}],
    })
}

/// Rows, width and slot: hidden, normed, qkv, attention, projected, gate and up, activated, chosen rows, logits.
const BUFFERS: [(&str, usize, usize); 9] = [
    ("T", HIDDEN, 0),
    ("T", HIDDEN, 1),
    ("T", QKV, 2),
    ("T", HEADS * HEAD_DIM, 3),
    ("T", HIDDEN, 4),
    ("T", 2 * INTERMEDIATE, 2),
    ("T", INTERMEDIATE, 3),
    ("R", HIDDEN, 5),
    ("R", VOCAB, 6),
];

pub(crate) fn program() -> Program {
    Program::from_json(&program_json().to_string()).unwrap()
}

pub(crate) fn checkpoint(dtype: DType) -> (TempFolder, Checkpoint) {
    let folder = TempFolder::new();
    write_safetensors(&folder, &tensors(dtype));
    let checkpoint = Checkpoint::open(&folder.0).unwrap();
    (folder, checkpoint)
}

pub(crate) fn config() -> ExecutorConfig {
    ExecutorConfig {
        block_size: 16,
        num_blocks: vec![37, 41],
        max_tokens: 128,
        max_rows: 128,
        max_seqs: 8,
        kv_dtype: DType::F32.into(),
        weight_dtype: None,
        num_threads: 2,
        isa: Isa::detect().min(Isa::Avx512),
    }
}

pub(crate) fn load(checkpoint: &Checkpoint, config: &ExecutorConfig) -> Result<Executor, CpuError> {
    Executor::load(program(), checkpoint, config.clone(), &mut |_, _| Ok(()))
}

/// Owned arrays of a step.
#[derive(Clone, Default)]
pub(crate) struct Step {
    pub(crate) token_ids: Vec<i32>,
    pub(crate) positions: Vec<i32>,
    pub(crate) cu_seqlens_q: Vec<i32>,
    pub(crate) seq_lens: Vec<i32>,
    pub(crate) logit_rows: Vec<i32>,
    pub(crate) tables: [Vec<i32>; 2],
    pub(crate) max_blocks: usize,
    pub(crate) slots: [Vec<i32>; 2],
    pub(crate) copies: [Vec<(i32, i32)>; 2],
}

impl Step {
    pub(crate) fn run(&self, executor: &mut Executor, logits: &mut [f32]) -> Result<(), CpuError> {
        let group = |i: usize| GroupView {
            block_tables: &self.tables[i],
            max_blocks: self.max_blocks,
            slot_mapping: &self.slots[i],
            block_copies: &self.copies[i],
        };
        let groups = [group(0), group(1)];
        let step = StepView {
            token_ids: &self.token_ids,
            positions: &self.positions,
            cu_seqlens_q: &self.cu_seqlens_q,
            seq_lens: &self.seq_lens,
            logit_rows: &self.logit_rows,
            groups: &groups,
        };
        executor.run(&step, logits)
    }
}

/// Feeds sequences to an executor; every sequence has its blocks scattered over the pools.
pub(crate) struct Driver {
    pub(crate) executor: Executor,
    config: ExecutorConfig,
    /// Per sequence: tokens done, and the blocks of each group.
    sequences: Vec<(usize, [Vec<i32>; 2])>,
    used: usize,
}

impl Driver {
    pub(crate) fn new(checkpoint: &Checkpoint, config: &ExecutorConfig) -> Self {
        let executor = load(checkpoint, config).unwrap();
        Self { executor, config: config.clone(), sequences: Vec::new(), used: 0 }
    }

    /// The arrays of a step that continues each named sequence with tokens; all of them want logits.
    pub(crate) fn step(&mut self, work: &[(usize, &[i32])]) -> Step {
        let block_size = self.config.block_size;
        let mut step = Step { cu_seqlens_q: vec![0], max_blocks: 20, ..Step::default() };
        for &(sequence, tokens) in work {
            if self.sequences.len() <= sequence {
                self.sequences.resize(sequence + 1, (0, [Vec::new(), Vec::new()]));
            }
            let (done, blocks) = &mut self.sequences[sequence];
            let end = *done + tokens.len();
            while blocks[0].len() * block_size < end {
                for (group, blocks) in blocks.iter_mut().enumerate() {
                    blocks.push(((self.used * 5 + 2) % self.config.num_blocks[group]) as i32);
                }
                self.used += 1;
            }
            for position in *done..end {
                step.positions.push(position as i32);
                for (group, blocks) in blocks.iter().enumerate() {
                    let slot = blocks[position / block_size] as usize * block_size + position % block_size;
                    step.slots[group].push(slot as i32);
                }
            }
            for (group, blocks) in blocks.iter().enumerate() {
                let behind = (*done + 1).saturating_sub(WINDOW) / block_size;
                for index in 0..step.max_blocks {
                    let freed = group == 0 && index < behind;
                    let block = blocks.get(index).copied().filter(|_| !freed);
                    step.tables[group].push(block.unwrap_or(-1));
                }
            }
            step.token_ids.extend_from_slice(tokens);
            step.cu_seqlens_q.push(step.token_ids.len() as i32);
            step.seq_lens.push(end as i32);
            *done = end;
        }
        step.logit_rows = (0..step.token_ids.len() as i32).collect();
        step
    }

    /// Run such a step, which must not allocate; the logits of all its tokens.
    pub(crate) fn run(&mut self, work: &[(usize, &[i32])]) -> Vec<f32> {
        let step = self.step(work);
        let mut logits = vec![f32::NAN; step.token_ids.len() * VOCAB];
        let made = allocations(&mut self.executor, |executor| step.run(executor, &mut logits).unwrap());
        assert_eq!(made, 0, "a step allocates");
        logits
    }
}

/// A prompt.
pub(crate) fn tokens(seed: u64, count: usize) -> Vec<i32> {
    numbers(seed, count)
        .iter()
        .map(|value| ((value + 1.0) * 0.5 * VOCAB as f32) as i32 % VOCAB as i32)
        .collect()
}

pub(crate) fn assert_same_bits(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (index, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!(a.to_bits() == b.to_bits(), "{what}: element {index}: {a:e} is not {b:e}");
    }
}
