//! Integer matmul and quantizer against the roofs of the machine: `cargo bench -p pyrite-cpu --bench qlinear [-- REGEX]`.
//!
//! A case is named `qlinear/<format>/<shape>/<level>/<rows of x>`. The `quantize` lines turn bf16-like rows in the cache
//! into codes and scales on one thread; criterion gives their rate. See `common`.

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench is a test of speed")]

mod common;

use std::cell::LazyCell;
use std::hint::black_box;

use common::matmul::{Matmul, SHAPES};
use common::{Machine, ROTATE_BYTES, config, levels, noise};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pyrite_cpu::ops::qlinear::{QuantizedMatrix, qlinear};
use pyrite_cpu::probe::PeakKind;
use pyrite_cpu::quant::{QuantFormat, quantize_row};

/// What `int4` and `int8` are.
const FORMATS: [QuantFormat; 2] = [QuantFormat::SHARED, QuantFormat::new(8, 64, true)];

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
        let groups = vec![0; values.len() / format.group_size];
        let (mut codes, mut scales, mut of_groups) =
            (vec![0; values.len()], vec![0; format.num_scales(values.len())], groups);
        for isa in levels() {
            group.bench_function(format!("{}/{isa}", name(format)), |bencher| {
                bencher.iter(|| {
                    quantize_row(isa, black_box(&values), format, &mut codes, &mut scales, &mut of_groups)
                });
            });
        }
    }
    group.finish();
}

fn name(format: QuantFormat) -> String {
    let shared = if format.is_shared() { format!("x{}", format.groups_per_scale) } else { String::new() };
    format!("int{}_g{}{shared}", format.bits, format.group_size)
}

fn shape(
    criterion: &mut Criterion,
    machine: &mut Machine,
    (rows, cols): (usize, usize),
    format: QuantFormat,
) {
    let weights = LazyCell::new(|| {
        let codes = noise(rows * cols, format.max_code());
        let scales = vec![half::f16::from_f32(1.0 / 512.0).to_bits(); rows * format.num_scales(cols)];
        let multiples = format.is_shared().then(|| vec![12; rows * cols / format.group_size]);
        let pack = || {
            let multiples = multiples.as_deref();
            QuantizedMatrix::from_canonical(rows, cols, format, &codes, &scales, multiples).unwrap()
        };
        let first = pack();
        let copies = ROTATE_BYTES / first.bytes();
        std::iter::once(first).chain((0..copies).map(|_| pack())).collect::<Vec<_>>()
    });
    // As `QuantizedMatrix` says: codes, and one f16 per group, or a dword per groups that share a scale.
    let header = if format.is_shared() { 4 } else { 2 };
    let bytes = rows * (cols * format.bits / 8 + header * format.num_scales(cols));
    let name = format!("qlinear/{}/{rows}x{cols}", name(format));
    let matmul = Matmul { op: qlinear, name, shape: (rows, cols), bytes, weights: &weights };
    matmul.cases(criterion, machine, |isa| PeakKind::integers(isa, format.bits));
}

criterion_group! {
    name = benches;
    config = config();
    targets = quantizer, all
}
criterion_main!(benches);
