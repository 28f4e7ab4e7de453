//! Ops that ride along with an integer matmul in a whole step: fused or one by one, the same bits.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod common;

use common::{TempFolder, Tensors, allocations, assert_same_bits, numbers, write_safetensors};
use pyrite_cpu::checkpoint::Checkpoint;
use pyrite_cpu::executor::{Executor, ExecutorConfig};
use pyrite_cpu::isa::Isa;
use pyrite_cpu::program::Program;
use pyrite_cpu::step::StepView;
use pyrite_cpu::tensor::DType;
use serde_json::{Value, json};

const HIDDEN: usize = 128;
const INNER: usize = 192;
const VOCAB: usize = 77;
const MAX_TOKENS: usize = 40;

/// One gated block with a residual, and a head under a norm. `watched` lets other ops read every buffer in between, so
/// that none can be left out.
fn program(watched: bool) -> Value {
    let view = |buffer: usize, offset: usize, width: usize| json!({"buffer": buffer, "offset": offset, "width": width});
    let whole = |buffer: usize, width: usize| view(buffer, 0, width);
    let norm = |x: usize, out: usize, weight: &str| {
        json!({"op": "rms_norm", "x": whole(x, HIDDEN), "out": whole(out, HIDDEN), "weight": weight,
            "eps": 1e-5, "weight_offset": 1.0})
    };
    let linear = |x: Value, out: Value, weight: &str, bias: Option<&str>| json!({"op": "linear", "x": x, "out": out, "weight": weight, "bias": bias});
    let add = |x: usize, y: Value| json!({"op": "add", "x": whole(x, HIDDEN), "y": y});
    // 0 residual, 1 normed, 2 gate and up, 3 inner, 4 down, 5 rows, 6 their norm, 7 logits, 8 and 9 the watchers.
    let widths = [HIDDEN, HIDDEN, 2 * INNER, INNER, HIDDEN, HIDDEN, HIDDEN, VOCAB, HIDDEN, HIDDEN];
    let rows = |index: usize| if [5, 6, 7, 9].contains(&index) { "R" } else { "T" };
    let mut ops = vec![
        json!({"op": "embed", "weight": "embed", "out": whole(0, HIDDEN)}),
        norm(0, 1, "norm"),
        linear(whole(1, HIDDEN), whole(2, 2 * INNER), "gate+up", Some("bias")),
        json!({"op": "glu", "gate": view(2, 0, INNER), "up": view(2, INNER, INNER), "out": whole(3, INNER),
            "activation": "silu"}),
        linear(whole(3, INNER), whole(4, HIDDEN), "down", None),
        add(0, whole(4, HIDDEN)),
    ];
    if watched {
        ops.push(json!({"op": "embed", "weight": "embed", "out": whole(8, HIDDEN)}));
        ops.extend([add(8, whole(1, HIDDEN)), add(8, view(2, 9, HIDDEN)), add(8, whole(4, HIDDEN))]);
    }
    ops.extend([
        json!({"op": "select_rows", "x": whole(0, HIDDEN), "out": whole(5, HIDDEN)}),
        norm(5, 6, "norm"),
        linear(whole(6, HIDDEN), whole(7, VOCAB), "embed", None),
    ]);
    if watched {
        ops.push(json!({"op": "select_rows", "x": whole(8, HIDDEN), "out": whole(9, HIDDEN)}));
        ops.push(add(9, whole(6, HIDDEN)));
    }
    let matrix = |name: &str, rows: usize, cols: usize, sources: &[&str], bits: usize| {
        json!({"name": name, "kind": "matrix", "shape": [rows, cols], "sources": sources,
            "quant": {"bits": bits, "group_size": 64, "symmetric": bits == 8, "groups_per_scale": 1}})
    };
    let vector = |name: &str, length: usize| json!({"name": name, "kind": "vector", "shape": [length], "sources": [name]});
    let slot = |index: usize| if index < 8 || watched { index as i64 } else { -1 };
    let buffers = widths.iter().enumerate();
    let buffers =
        buffers.map(|(i, width)| json!({"name": "b", "rows": rows(i), "width": width, "slot": slot(i)}));
    let slots = widths.iter().enumerate().take(if watched { 10 } else { 8 });
    let slots = slots.map(|(i, width)| json!({"rows": rows(i), "width": width}));
    json!({
        "vocab_size": VOCAB,
        "buffers": buffers.collect::<Vec<_>>(),
        "parameters": [
            matrix("embed", VOCAB, HIDDEN, &["embed"], 8),
            matrix("gate+up", 2 * INNER, HIDDEN, &["gate", "up"], 4),
            matrix("down", HIDDEN, INNER, &["down"], 4),
            vector("norm", HIDDEN), vector("bias", 2 * INNER),
        ],
        "rope_tables": [], "kv_groups": [],
        "ops": ops,
        "logits": whole(7, VOCAB),
        "slots": slots.collect::<Vec<_>>(),
    })
}

fn tensors() -> Tensors {
    let mut tensors = Tensors::new();
    let shapes: [(&str, Vec<usize>); 6] = [
        ("embed", vec![VOCAB, HIDDEN]),
        ("gate", vec![INNER, HIDDEN]),
        ("up", vec![INNER, HIDDEN]),
        ("down", vec![HIDDEN, INNER]),
        ("norm", vec![HIDDEN]),
        ("bias", vec![2 * INNER]),
    ];
    for (seed, (name, shape)) in shapes.into_iter().enumerate() {
        let values = numbers(seed as u64, shape.iter().product());
        tensors.insert(name.into(), (DType::F32, shape, values));
    }
    tensors
}

/// Logits of every row, and how many phases of row ops the steps had.
fn run(checkpoint: &Checkpoint, watched: bool, isa: Isa, num_threads: usize, ids: &[i32]) -> (Vec<f32>, u64) {
    let config = ExecutorConfig {
        block_size: 16,
        num_blocks: Vec::new(),
        max_tokens: MAX_TOKENS,
        max_rows: MAX_TOKENS,
        max_seqs: 1,
        kv_dtype: DType::F32.into(),
        weight_dtype: None,
        num_threads,
        isa,
    };
    let program = Program::from_json(&program(watched).to_string()).unwrap();
    let mut executor = Executor::load(program, checkpoint, config, &mut |_, _| Ok(())).unwrap();
    let positions: Vec<i32> = (0..ids.len() as i32).collect();
    let step = StepView {
        token_ids: ids,
        positions: &positions,
        cu_seqlens_q: &[0, ids.len() as i32],
        seq_lens: &[ids.len() as i32],
        logit_rows: &positions,
        groups: &[],
    };
    let mut logits = vec![f32::NAN; ids.len() * VOCAB];
    executor.start_profile();
    let made = allocations(&mut executor, |executor| executor.run(&step, &mut logits).unwrap());
    assert_eq!(made, 0, "a step allocates");
    let profile = executor.end_profile();
    let row_ops = profile.iter().find(|op| op.label == "norms and other row ops").unwrap();
    (logits, row_ops.calls)
}

#[test]
fn fused_steps_have_the_bits_of_single_ops() {
    let folder = TempFolder::new();
    write_safetensors(&folder, &tensors());
    let checkpoint = Checkpoint::open(&folder.0).unwrap();
    let ids: Vec<i32> = (0..MAX_TOKENS as i32).map(|index| index * 7 % VOCAB as i32).collect();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
        for (threads, count) in [(1, 1), (2, 1), (3, 2), (2, 7), (3, MAX_TOKENS)] {
            let (expected, single) = run(&checkpoint, true, isa, threads, &ids[..count]);
            let (got, fused) = run(&checkpoint, false, isa, threads, &ids[..count]);
            assert_same_bits(&got, &expected, &format!("{isa}, {threads} threads, {count} tokens"));
            assert!(got.iter().all(|logit| logit.is_finite()));
            assert_eq!((fused, single), (2, 5), "phases of row ops");
        }
    }
}
