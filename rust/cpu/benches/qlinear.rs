//! Integer matmul and quantizer against the roofs of the machine: `cargo bench -p pyrite-cpu --bench qlinear [-- REGEX]`.
//!
//! A case is named `qlinear/<format>/<shape>/<level>/<rows of x>`. The `quantize` lines turn bf16-like rows in the cache
//! into codes and scales on one thread; criterion gives their rate. See `common`.

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench is a test of speed")]

mod common;

use std::cell::OnceCell;
use std::hint::black_box;

use common::{Cost, Machine, ROTATE_BYTES, config, inputs, levels, noise};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pyrite_cpu::ops::linear::LinearScratch;
use pyrite_cpu::ops::qlinear::{QuantizedMatrix, qlinear};
use pyrite_cpu::pool::Pool;
use pyrite_cpu::probe::PeakKind;
use pyrite_cpu::quant::{QuantFormat, quantize_row};
use pyrite_cpu::tensor::{Rows, RowsMut};

/// Outputs and inputs: down and gate+up of the Qwen3-0.6B shape, gate+up of Llama-3.2-1B, a head.
const SHAPES: [(usize, usize); 4] = [(1024, 3072), (6144, 1024), (16_384, 2048), (151_936, 1024)];
const TOKENS: [usize; 4] = [1, 4, 16, 512];
/// What `int4` and `int8` are.
const FORMATS: [QuantFormat; 2] = [
    QuantFormat { bits: 4, group_size: 32, symmetric: true },
    QuantFormat { bits: 8, group_size: 64, symmetric: true },
];

fn all(criterion: &mut Criterion) {
    let mut machine = Machine::new();
    for format in FORMATS {
        for shape in SHAPES {
            self::shape(criterion, &mut machine, shape, format);
        }
    }
}

fn quantizer(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("quantize");
    let values: Vec<f32> =
        noise(1 << 16, 255).iter().map(|byte| (f32::from(*byte) - 127.5) / 4096.0).collect();
    group.throughput(Throughput::Elements(values.len() as u64));
    for format in FORMATS {
        let groups = values.len() / format.group_size;
        let (mut codes, mut scales, mut zeros) = (vec![0; values.len()], vec![0; groups], vec![0; groups]);
        for isa in levels() {
            group.bench_function(format!("{}/{isa}", name(format)), |bencher| {
                bencher.iter(|| {
                    quantize_row(isa, black_box(&values), format, &mut codes, &mut scales, &mut zeros)
                });
            });
        }
    }
    group.finish();
}

fn name(format: QuantFormat) -> String {
    format!("int{}_g{}", format.bits, format.group_size)
}

fn shape(
    criterion: &mut Criterion,
    machine: &mut Machine,
    (rows, cols): (usize, usize),
    format: QuantFormat,
) {
    let weights = OnceCell::new();
    let weights = || -> &Vec<QuantizedMatrix> {
        weights.get_or_init(|| {
            let codes = noise(rows * cols, format.max_code());
            let scales = vec![half::f16::from_f32(0.002).to_bits(); rows * cols / format.group_size];
            let pack = || QuantizedMatrix::from_canonical(rows, cols, format, &codes, &scales, None).unwrap();
            let first = pack();
            let copies = ROTATE_BYTES / first.bytes();
            std::iter::once(first).chain((0..copies).map(|_| pack())).collect()
        })
    };
    // As `QuantizedMatrix` says: codes, and one f16 per group.
    let bytes = rows * cols * format.bits / 8 + 2 * rows * cols / format.group_size;
    for isa in levels() {
        for tokens in TOKENS.into_iter().filter(|tokens| *tokens < 512 || rows < 100_000) {
            let cost = Cost {
                bytes: bytes + 4 * tokens * (rows + cols),
                operations: 2 * rows * cols * tokens,
                kind: PeakKind::integers(isa, format.bits),
            };
            let (workers, name) = (machine.workers(), name(format));
            machine.case(
                criterion,
                &format!("qlinear/{name}/{rows}x{cols}/{isa}/{tokens}"),
                isa,
                cost,
                || {
                    let (x, mut out) = (inputs(tokens * cols), vec![0f32; tokens * rows]);
                    let scratch = LinearScratch::new(tokens, cols, workers).unwrap();
                    let mut turn = 0;
                    move |pool: &mut Pool| {
                        turn += 1;
                        let (x, view) = (Rows::new(&x, cols), RowsMut::new(&mut out, rows));
                        let weight = &weights()[turn % weights().len()];
                        pool.run(|worker| qlinear(worker, isa, x, weight, None, view, &scratch)).unwrap();
                        black_box(&out);
                    }
                },
            );
        }
    }
}

criterion_group! {
    name = benches;
    config = config();
    targets = quantizer, all
}
criterion_main!(benches);
