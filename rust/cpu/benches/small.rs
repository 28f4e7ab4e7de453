//! Ops on single rows against the read bandwidth: `cargo bench -p pyrite-cpu --bench small [-- REGEX]`.
//!
//! 512 rows shared over the workers, as in a prefill of as many tokens but each op for itself; the rows rotate past the
//! last cache. The bytes are those read and written. See `common`.

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench is a test of speed")]

mod common;

use std::hint::black_box;

use common::{Cost, Machine, ROTATE_BYTES, config, inputs, levels};
use criterion::{Criterion, criterion_group, criterion_main};
use pyrite_cpu::isa::Isa;
use pyrite_cpu::ops::elementwise::{add, glu};
use pyrite_cpu::ops::norm::{Norm, head_norm, rms_norm};
use pyrite_cpu::ops::rope::rope;
use pyrite_cpu::pool::Pool;
use pyrite_cpu::probe::PeakKind;
use pyrite_cpu::tensor::RowsMut;

const ROWS: usize = 512;
const HEAD_DIM: usize = 128;

/// An op on a row of `width` (glu: the gate), with what it reads besides and writes.
type RowOp = fn(Isa, &Parameters, usize, &mut [f32]);

struct Parameters {
    weight: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// The row's parts, of `width` each.
fn parts(width: usize, row: &mut [f32]) -> (&mut [f32], &mut [f32], &mut [f32]) {
    let (a, rest) = row.split_at_mut(width);
    let (b, c) = rest.split_at_mut(width.min(rest.len()));
    (a, b, c)
}

fn norm_op(isa: Isa, parameters: &Parameters, width: usize, row: &mut [f32]) {
    let (x, out, _) = parts(width, row);
    let norm = Norm { weight: Some(&parameters.weight[..width]), eps: 1e-6, weight_offset: 0.0, scale: 1.0 };
    rms_norm(isa, x, norm, out);
}

fn head_norm_op(isa: Isa, parameters: &Parameters, _: usize, row: &mut [f32]) {
    let weight = Some(&parameters.weight[..HEAD_DIM]);
    head_norm(isa, row, HEAD_DIM, Norm { weight, eps: 1e-6, weight_offset: 0.0, scale: 1.0 });
}

fn rope_op(isa: Isa, parameters: &Parameters, _: usize, row: &mut [f32]) {
    rope(isa, row, HEAD_DIM, &parameters.cos, &parameters.sin);
}

fn add_op(isa: Isa, _: &Parameters, width: usize, row: &mut [f32]) {
    let (x, y, _) = parts(width, row);
    add(isa, x, y);
}

fn glu_op(isa: Isa, _: &Parameters, width: usize, row: &mut [f32]) {
    let (gate, up, out) = parts(width, row);
    glu(isa, gate, up, out);
}

fn all(criterion: &mut Criterion) {
    let mut machine = Machine::new();
    // Name, width, parts of a row, parts read and written.
    let ops: [(&str, usize, usize, usize, RowOp); 5] = [
        ("rms_norm/1024", 1024, 2, 2, norm_op),
        ("head_norm/16x128", 2048, 1, 2, head_norm_op),
        ("rope/16x128", 2048, 1, 2, rope_op),
        ("add/1024", 1024, 2, 3, add_op),
        ("glu/3072", 3072, 3, 3, glu_op),
    ];
    for isa in levels() {
        for (name, width, count, touched, op) in ops {
            let (len, bytes) = (width * count, 4 * ROWS * width * touched);
            let cost = Cost { bytes, operations: 0, kind: PeakKind::Fp32 };
            machine.case(criterion, &format!("small/{name}/{isa}"), isa, cost, || {
                let parameters = Parameters {
                    weight: inputs(width),
                    cos: inputs(HEAD_DIM / 2),
                    sin: inputs(HEAD_DIM / 2),
                };
                let copies = ROTATE_BYTES.div_ceil(4 * ROWS * len);
                let mut all: Vec<Vec<f32>> = (0..copies).map(|_| inputs(ROWS * len)).collect();
                let mut turn = 0;
                move |pool: &mut Pool| {
                    turn += 1;
                    let rows = RowsMut::new(&mut all[turn % copies], len);
                    pool.run(|worker| {
                        worker.share(16, |item| {
                            for row in ROWS * item / 16..ROWS * (item + 1) / 16 {
                                // SAFETY: items are disjoint rows.
                                op(isa, &parameters, width, unsafe { rows.row(row) });
                            }
                        });
                    })
                    .unwrap();
                    black_box(&rows);
                }
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = config();
    targets = all
}
criterion_main!(benches);
