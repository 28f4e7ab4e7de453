//! Float matmul against the roofs of the machine: `cargo bench -p pyrite-cpu --bench linear [-- REGEX]`.
//!
//! A case is named `linear/<weights>/<shape>/<level>/<rows of x>`; `pack` lines put row-major weights into panels, and
//! count what is read and written. See `common`.

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench is a test of speed")]

mod common;

use std::cell::LazyCell;

use common::matmul::{Matmul, SHAPES};
use common::{Cost, Machine, ROTATE_BYTES, config, noise};
use criterion::{Criterion, criterion_group, criterion_main};
use pyrite_cpu::isa::Isa;
use pyrite_cpu::ops::linear::{PackedMatrix, linear};
use pyrite_cpu::pool::Pool;
use pyrite_cpu::probe::PeakKind;
use pyrite_cpu::tensor::DType;

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
    let source = LazyCell::new(|| {
        let mut values = vec![0; bytes];
        for (at, code) in noise(rows * cols, 255).into_iter().enumerate() {
            dtype.set(&mut values, at, (f32::from(code) - 127.5) / 4096.0);
        }
        values
    });
    let pack = |pool: &mut Pool, weight: &PackedMatrix| {
        let (source, row_bytes): (&[u8], _) = (&source, cols * dtype.size());
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
    let weights = LazyCell::new(|| {
        let mut pool = Pool::new(1).unwrap();
        let packed = (0..ROTATE_BYTES.div_ceil(bytes)).map(|_| {
            let weight = PackedMatrix::zeroed(rows, cols, dtype).unwrap();
            pack(&mut pool, &weight);
            weight
        });
        packed.collect::<Vec<_>>()
    });
    let moved = Cost { bytes: 2 * bytes, operations: 0, kind: PeakKind::Fp32 };
    machine.case(criterion, &format!("linear/pack/{name}"), Isa::detect(), moved, || {
        let (mut turn, pack, weights) = (0, &pack, &weights);
        move |pool: &mut Pool| {
            turn += 1;
            pack(pool, &weights[turn % weights.len()]);
        }
    });
    let name = format!("linear/{name}");
    let matmul = Matmul { op: linear, name, shape: (rows, cols), bytes, weights: &weights };
    matmul.cases(criterion, machine, |isa| {
        if isa == Isa::Avx512Bf16 && dtype == DType::Bf16 { PeakKind::Bf16 } else { PeakKind::Fp32 }
    });
}

criterion_group! {
    name = benches;
    config = config();
    targets = all
}
criterion_main!(benches);
