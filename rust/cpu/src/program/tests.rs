use serde_json::{Value, json};

use super::*;

/// A program with every op: T buffers 0..=4 in slots 0..=4, R buffers 5 and 6 in slots 5 and 6.
fn good() -> Value {
    let view = |buffer: usize, offset: usize, width: usize| json!({"buffer": buffer, "offset": offset, "width": width});
    let buffer = |rows: &str, width: usize, slot: i64| json!({"name": format!("b{slot}"), "rows": rows, "width": width, "slot": slot});
    let parameter = |name: &str, kind: &str, shape: Value| json!({"name": name, "kind": kind, "shape": shape, "sources": [name], "quant": null});
    json!({
        "vocab_size": 10,
        "buffers": [buffer("T", 8, 0), buffer("T", 8, 1), buffer("T", 16, 2), buffer("T", 8, 3),
            buffer("T", 24, 4), buffer("R", 8, 5), buffer("R", 10, 6), {
                "name": "unused", "rows": "R", "width": 3, "slot": -1}],
        "parameters": [parameter("embed", "matrix", json!([10, 8])), parameter("norm", "vector", json!([8])),
            parameter("head", "vector", json!([4])), parameter("qkv", "matrix", json!([16, 8])),
            parameter("bias", "vector", json!([16])), parameter("gate_up", "matrix", json!([24, 8]))],
        "rope_tables": [{"inv_freq": [1.0, 0.5], "scale": 1.0}],
        "kv_groups": [{"window": 17, "num_layers": 2, "num_kv_heads": 1, "head_dim": 4}],
        "ops": [
            {"op": "embed", "weight": "embed", "out": view(0, 0, 8)},
            {"op": "rms_norm", "x": view(0, 0, 8), "out": view(1, 0, 8), "weight": "norm", "eps": 1e-5, "weight_offset": 1.0},
            {"op": "linear", "x": view(1, 0, 8), "out": view(2, 0, 16), "weight": "qkv", "bias": "bias"},
            {"op": "head_norm", "x": view(2, 0, 8), "num_heads": 2, "head_dim": 4, "weight": "head", "eps": 1e-5,
                "weight_offset": 0.0, "scale": 2.0},
            {"op": "rope", "x": view(2, 8, 4), "num_heads": 1, "head_dim": 4, "table": 0},
            {"op": "kv_store", "k": view(2, 8, 4), "v": view(2, 12, 4), "group": 0, "layer": 1},
            {"op": "attention", "q": view(2, 0, 8), "out": view(3, 0, 8), "group": 0, "layer": 1, "num_heads": 2,
                "softmax_scale": 0.5},
            {"op": "gate", "x": view(3, 0, 8), "gate": view(2, 8, 8)},
            {"op": "add", "x": view(0, 0, 8), "y": view(3, 0, 8)},
            {"op": "linear", "x": view(0, 0, 8), "out": view(4, 0, 24), "weight": "gate_up", "bias": null},
            {"op": "glu", "gate": view(4, 0, 8), "up": view(4, 8, 8), "out": view(1, 0, 8), "activation": "silu"},
            {"op": "select_rows", "x": view(1, 0, 8), "out": view(5, 0, 8)},
            {"op": "linear", "x": view(5, 0, 8), "out": view(6, 0, 10), "weight": "embed", "bias": null},
            {"op": "logits", "x": view(6, 0, 10), "multiplier": 0.5, "soft_cap": 30.0},
        ],
        "logits": view(6, 0, 10),
        "slots": [{"rows": "T", "width": 8}, {"rows": "T", "width": 8}, {"rows": "T", "width": 16},
            {"rows": "T", "width": 9}, {"rows": "T", "width": 24}, {"rows": "R", "width": 8},
            {"rows": "R", "width": 10}],
    })
}

#[test]
fn a_program_with_every_op_passes() {
    let program = Program::from_json(&good().to_string()).unwrap();
    assert_eq!((program.ops.len(), program.num_token_ids()), (14, 10));
}

#[test]
fn every_single_fault_is_found_in_its_op() {
    let huge = u64::MAX;
    let faults: Vec<(&str, Value, Option<usize>)> = vec![
        ("/vocab_size", json!(0), None),
        ("/vocab_size", json!(11), None),
        ("/vocab_size", json!(huge), None),
        ("/buffers/0/width", json!(9), None),
        ("/buffers/0/slot", json!(7), None),
        ("/buffers/0/slot", json!(-2), None),
        ("/buffers/0/slot", json!(5), None),
        ("/buffers/0/slot", json!(-1), Some(0)),
        // Two live buffers in one slot: the second one takes the first one's content away.
        ("/buffers/1/slot", json!(0), Some(1)),
        ("/buffers/3/slot", json!(2), Some(6)),
        ("/slots/2/width", json!(huge), None),
        ("/parameters/0/name", json!("norm"), None),
        ("/parameters/0/shape", json!([10]), None),
        ("/parameters/0/shape", json!([10, 0]), None),
        ("/parameters/0/kind", json!("vector"), None),
        ("/parameters/0/sources", json!([]), None),
        (
            "/parameters/0/quant",
            json!({"bits": 8, "group_size": 64, "symmetric": true, "groups_per_scale": 1}),
            None,
        ),
        (
            "/parameters/1/quant",
            json!({"bits": 4, "group_size": 32, "symmetric": true, "groups_per_scale": 1}),
            None,
        ),
        ("/rope_tables/0/inv_freq", json!([]), None),
        ("/rope_tables/0/scale", json!(1e300), None),
        ("/kv_groups/0/window", json!(0), None),
        ("/kv_groups/0/num_kv_heads", json!(1 << 23), None),
        ("/ops/0/out/buffer", json!(99), Some(0)),
        ("/ops/0/out/buffer", json!(5), Some(0)),
        ("/ops/0/out/width", json!(7), Some(0)),
        ("/ops/0/out/width", json!(0), Some(0)),
        ("/ops/0/out/offset", json!(huge), Some(0)),
        ("/ops/0/weight", json!("norm"), Some(0)),
        ("/ops/0/weight", json!("absent"), Some(0)),
        ("/ops/1/x/buffer", json!(3), Some(1)),
        ("/ops/1/out", json!({"buffer": 0, "offset": 0, "width": 8}), Some(1)),
        ("/ops/1/weight", json!("head"), Some(1)),
        ("/ops/1/eps", json!(-1.0), Some(1)),
        ("/ops/2/weight", json!("gate_up"), Some(2)),
        ("/ops/2/bias", json!("norm"), Some(2)),
        ("/ops/2/out", json!({"buffer": 1, "offset": 0, "width": 8}), Some(2)),
        ("/ops/3/num_heads", json!(3), Some(3)),
        ("/ops/3/num_heads", json!(huge), Some(3)),
        ("/ops/3/scale", json!(1e300), Some(3)),
        ("/ops/4/table", json!(1), Some(4)),
        ("/ops/4/head_dim", json!(2), Some(4)),
        ("/ops/5/group", json!(1), Some(5)),
        ("/ops/5/layer", json!(2), Some(5)),
        ("/ops/5/k/width", json!(8), Some(5)),
        ("/ops/6/num_heads", json!(1), Some(6)),
        ("/ops/6/out/buffer", json!(2), Some(6)),
        ("/ops/7/gate/offset", json!(9), Some(7)),
        ("/ops/7/gate/buffer", json!(3), Some(7)),
        ("/ops/8/y", json!({"buffer": 0, "offset": 0, "width": 8}), Some(8)),
        ("/ops/10/up/width", json!(9), Some(10)),
        ("/ops/10/out", json!({"buffer": 4, "offset": 7, "width": 8}), Some(10)),
        ("/ops/11/out/buffer", json!(0), Some(11)),
        ("/ops/11/x/buffer", json!(5), Some(11)),
        ("/ops/13/soft_cap", json!(0.0), Some(13)),
        ("/ops/13/x/buffer", json!(0), Some(13)),
        ("/logits/buffer", json!(5), None),
        ("/logits/width", json!(9), None),
    ];
    for (pointer, value, expected) in faults {
        let mut program = good();
        *program.pointer_mut(pointer).unwrap() = value.clone();
        match Program::from_json(&program.to_string()) {
            Err(CpuError::Program { op, what }) => {
                let found = op == expected || (op.is_none() && what.contains("parameter"));
                assert!(found, "{pointer} = {value}: found in op {op:?}: {what}");
            }
            other => panic!("{pointer} = {value}: {:?}", other.map(|_| ())),
        }
    }
}

#[test]
fn unknown_and_missing_fields_and_ops_are_refused() {
    for (pointer, key) in [("", "more"), ("/ops/0", "more"), ("/buffers/0", "more"), ("/ops/1/x", "more")] {
        let mut program = good();
        program.pointer_mut(pointer).unwrap()[key] = json!(1);
        assert!(Program::from_json(&program.to_string()).is_err(), "{pointer}");
    }
    for (pointer, key) in [("", "slots"), ("/ops/1", "eps"), ("/ops/2", "weight"), ("/ops/1/x", "width")] {
        let mut program = good();
        program.pointer_mut(pointer).unwrap().as_object_mut().unwrap().remove(key);
        assert!(Program::from_json(&program.to_string()).is_err(), "{pointer}");
    }
    let mut program = good();
    program["ops"][0]["op"] = json!("moe");
    assert!(Program::from_json(&program.to_string()).is_err());
    assert!(Program::from_json(&"[".repeat(100_000)).is_err());
    assert!(Program::from_json("").is_err());
}
