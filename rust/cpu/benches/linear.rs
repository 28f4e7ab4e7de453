//! Float matmul against the roofs of the machine: `cargo bench -p pyrite-cpu --bench linear [-- REGEX]`.
//!
//! A case is named `linear/<weights>/<shape>/<level>/<rows of x>`; `pack` lines put row-major weights into panels, and
//! count what is read and written. See `common`.

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench is a test of speed")]

mod common;

use std::cell::OnceCell;
use std::hint::black_box;

use common::{Cost, Machine, ROTATE_BYTES, config, inputs, levels, noise};
use criterion::{Criterion, criterion_group, criterion_main};
use pyrite_cpu::isa::Isa;
use pyrite_cpu::ops::linear::{LinearScratch, PackedMatrix, linear};
use pyrite_cpu::pool::Pool;
use pyrite_cpu::probe::PeakKind;
use pyrite_cpu::tensor::{DType, Rows, RowsMut};

/// Outputs and inputs: down and gate+up of the Qwen3-0.6B shape, gate+up of Llama-3.2-1B, a head.
const SHAPES: [(usize, usize); 4] = [(1024, 3072), (6144, 1024), (16_384, 2048), (151_936, 1024)];
const TOKENS: [usize; 4] = [1, 4, 16, 512];

fn all(criterion: &mut Criterion) {
    let mut machine = Machine::new();
    for dtype in [DType::Bf16, DType::F32] {
        for shape in SHAPES {
            self::shape(criterion, &mut machine, shape, dtype);
        }
    }
}

fn shape(criterion: &mut Criterion, machine: &mut Machine, (rows, cols): (usize, usize), dtype: DType) {
    let (name, bytes) = (format!("{}/{rows}x{cols}", dtype.name()), rows * cols * dtype.size());
    // Codes of 8 bits around 0: as bf16 and as f32 alike.
    let source = OnceCell::new();
    let source = || -> &Vec<u8> {
        source.get_or_init(|| {
            let mut bytes = vec![0; rows * cols * dtype.size()];
            for (at, code) in noise(rows * cols, 255).into_iter().enumerate() {
                dtype.set(&mut bytes, at, (f32::from(code) - 127.5) / 4096.0);
            }
            bytes
        })
    };
    let pack = |pool: &mut Pool, weight: &PackedMatrix| {
        let (source, row_bytes) = (source(), cols * dtype.size());
        pool.run(|worker| {
            worker.share(rows.div_ceil(256), |part| {
                let own = part * 256..rows.min(part * 256 + 256);
                // SAFETY: parts are disjoint rows, nobody reads.
                unsafe {
                    weight.pack_rows(own.start, &source[own.start * row_bytes..own.end * row_bytes], dtype);
                }
            });
        })
        .unwrap();
    };
    let weights = OnceCell::new();
    let weights = || -> &Vec<PackedMatrix> {
        weights.get_or_init(|| {
            let mut pool = Pool::new(1).unwrap();
            let packed = (0..ROTATE_BYTES.div_ceil(bytes)).map(|_| {
                let weight = PackedMatrix::zeroed(rows, cols, dtype).unwrap();
                pack(&mut pool, &weight);
                weight
            });
            packed.collect()
        })
    };
    let moved = Cost { bytes: 2 * bytes, operations: 0, kind: PeakKind::Fp32 };
    machine.case(criterion, &format!("linear/pack/{name}"), Isa::detect(), moved, || {
        let mut turn = 0;
        move |pool: &mut Pool| {
            turn += 1;
            pack(pool, &weights()[turn % weights().len()]);
        }
    });
    for isa in levels() {
        for tokens in TOKENS.into_iter().filter(|tokens| *tokens < 512 || rows < 100_000) {
            let dot = isa == Isa::Avx512Bf16 && dtype == DType::Bf16;
            let cost = Cost {
                bytes: bytes + 4 * tokens * (rows + cols),
                operations: 2 * rows * cols * tokens,
                kind: if dot { PeakKind::Bf16 } else { PeakKind::Fp32 },
            };
            let workers = machine.workers();
            machine.case(criterion, &format!("linear/{name}/{isa}/{tokens}"), isa, cost, || {
                let (x, mut out) = (inputs(tokens * cols), vec![0f32; tokens * rows]);
                let scratch = LinearScratch::new(tokens, cols, workers).unwrap();
                let mut turn = 0;
                move |pool: &mut Pool| {
                    turn += 1;
                    let (x, view) = (Rows::new(&x, cols), RowsMut::new(&mut out, rows));
                    let weight = &weights()[turn % weights().len()];
                    pool.run(|worker| linear(worker, isa, x, weight, None, view, &scratch)).unwrap();
                    black_box(&out);
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
