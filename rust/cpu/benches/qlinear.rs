//! Integer matmul and quantizer against what the machine can do:
//! `cargo bench -p pyrite-cpu --bench qlinear [-- FILTER...]`.
//!
//! Every line of a matmul names the shape, the format, the level and the rows of x, and gives the median and fastest
//! time; for few rows also GB/s of weights as percent of a read probe on the same threads, interleaved with the case,
//! whose median is the roof; at the levels with VPDPBUSD the operations as percent of its peak, measured beside the case. Weights rotate over more than 256 MB, past the last cache. The lines of the quantizer give
//! millions of weights per second, bf16 rows in the cache to packed panels, one thread. A line runs when it contains every
//! FILTER; `PYRITE_BENCH_THREADS` sets the workers (default 2).

#![allow(clippy::unwrap_used, reason = "a failed set-up ends the bench")]

use std::hint::black_box;
use std::time::Instant;

use pyrite_cpu::isa::Isa;
use pyrite_cpu::ops::linear::LinearScratch;
use pyrite_cpu::ops::qlinear::{QuantizedMatrix, qlinear};
use pyrite_cpu::pool::Pool;
use pyrite_cpu::probe::{PeakKind, peak_flops};
use pyrite_cpu::quant::{QuantFormat, quantize_row};
use pyrite_cpu::tensor::{AlignedBytes, Rows, RowsMut};

const SHAPES: [(usize, usize); 5] = [(1024, 3072), (3072, 1024), (2048, 8192), (4096, 4096), (151_936, 1024)];
const FORMATS: [QuantFormat; 4] = [
    QuantFormat { bits: 4, group_size: 64, symmetric: false },
    QuantFormat { bits: 4, group_size: 32, symmetric: true },
    QuantFormat { bits: 4, group_size: 128, symmetric: true },
    QuantFormat { bits: 8, group_size: 64, symmetric: true },
];
const ROTATE_BYTES: usize = 256 << 20;
const FEW_ROWS: usize = 16;

struct Bench {
    pool: Pool,
    filters: Vec<String>,
    probe: AlignedBytes,
}

fn main() {
    let threads = std::env::var("PYRITE_BENCH_THREADS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let filters = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let mut probe = AlignedBytes::zeroed(ROTATE_BYTES).unwrap();
    probe.as_mut_slice().fill(1);
    let mut bench = Bench { pool: Pool::new(threads).unwrap(), filters, probe };
    println!("{threads} threads, levels up to {}", Isa::detect());
    for format in FORMATS {
        bench.quantize(format);
        for shape in SHAPES {
            bench.shape(shape, format);
        }
    }
}

fn levels() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_supported() && *isa != Isa::Avx512Bf16)
}

fn name(format: QuantFormat) -> String {
    let kind = if format.symmetric { "sym" } else { "asym" };
    format!("int{} g{} {kind}", format.bits, format.group_size)
}

/// Reproducible bytes without a pattern that matters.
fn noise(count: usize, most: u8) -> Vec<u8> {
    (0..count).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 & most).collect()
}

impl Bench {
    fn wants(&self, line: &str) -> bool {
        self.filters.iter().all(|filter| line.contains(filter.as_str()))
    }

    fn quantize(&self, format: QuantFormat) {
        let values: Vec<f32> =
            noise(1 << 16, 255).iter().map(|byte| (f32::from(*byte) - 127.5) / 4096.0).collect();
        let groups = values.len() / format.group_size;
        let (mut codes, mut scales, mut zeros) = (vec![0; values.len()], vec![0; groups], vec![0; groups]);
        for isa in levels() {
            let line = format!("quantize {} {isa}", name(format));
            if !self.wants(&line) {
                continue;
            }
            let mut times = Vec::new();
            for _ in 0..if isa == Isa::Scalar { 5 } else { 51 } {
                let began = Instant::now();
                quantize_row(isa, &values, format, &mut codes, &mut scales, &mut zeros);
                times.push(began.elapsed().as_secs_f64());
            }
            black_box((&codes, &scales, &zeros));
            let (median, best) = summary(&mut times);
            let rate = values.len() as f64 / 1e6;
            println!("{line}: {:.0} M weights/s (best {:.0})", rate / median, rate / best);
        }
    }

    /// Pack one shape, then run every level and number of rows on it.
    fn shape(&mut self, (rows, cols): (usize, usize), format: QuantFormat) {
        let mut cases = Vec::new();
        for isa in levels() {
            for tokens in [1, 2, 4, 8, 16, 64, 512] {
                let line = format!("{rows}x{cols} {} {isa} M={tokens} ", name(format));
                let slow = isa == Isa::Scalar && (tokens > 1 || rows > 10_000);
                if !slow && (tokens < 512 || rows < 10_000) && self.wants(&line) {
                    cases.push((isa, tokens, line));
                }
            }
        }
        if cases.is_empty() {
            return;
        }
        let groups = rows * cols / format.group_size;
        let codes = noise(rows * cols, format.max_code());
        let scales = vec![half::f16::from_f32(0.002).to_bits(); groups];
        let zeros = (!format.symmetric).then(|| noise(groups, format.max_code()));
        let pack = || {
            QuantizedMatrix::from_canonical(rows, cols, format, &codes, &scales, zeros.as_deref()).unwrap()
        };
        let first = pack();
        let copies = ROTATE_BYTES / first.bytes();
        let weights: Vec<_> = std::iter::once(first).chain((0..copies).map(|_| pack())).collect();
        for (isa, tokens, line) in cases {
            self.case(isa, tokens, &line, &weights);
        }
    }

    fn case(&mut self, isa: Isa, tokens: usize, line: &str, weights: &[QuantizedMatrix]) {
        let (rows, cols, bytes) = (weights[0].rows(), weights[0].cols(), weights[0].bytes());
        let x: Vec<f32> = (0..tokens * cols).map(|at| (at % 251) as f32 / 251.0 - 0.5).collect();
        let mut out = vec![0f32; tokens * rows];
        let scratch = LinearScratch::new(tokens, cols, self.pool.count()).unwrap();
        let few = tokens <= FEW_ROWS;
        let (mut times, mut roofs, mut turn) = (Vec::new(), Vec::new(), 0);
        let started = Instant::now();
        while times.len() < 9 || (started.elapsed().as_secs_f64() < 1.0 && times.len() < 800) {
            roofs.push(self.read_roof());
            for _ in 0..if few { weights.len().min(16) } else { 1 } {
                let weight = &weights[turn % weights.len()];
                turn += 1;
                let (x, view) = (Rows::new(&x, cols), RowsMut::new(&mut out, rows));
                let began = Instant::now();
                self.pool.run(|worker| qlinear(worker, isa, x, weight, None, view, &scratch)).unwrap();
                times.push(began.elapsed().as_secs_f64());
            }
        }
        black_box(&out);
        let (median, best) = summary(&mut times);
        roofs.sort_by(f64::total_cmp);
        let (roof, work) = (roofs[roofs.len() / 2], bytes as f64);
        let ops = 2.0 * (rows * cols * tokens) as f64;
        print!("{line}: {:.1} us (best {:.1}), ", median * 1e6, best * 1e6);
        if few {
            let (rate, share) = (work / median / 1e9, 100.0 * work / median / roof);
            print!("{rate:.1} GB/s = {share:.0}% of {:.1} (best {:.1}), ", roof / 1e9, work / best / 1e9);
        }
        print!("{:.0} GOP/s", ops / median / 1e9);
        if isa >= Isa::Avx512Vnni {
            let mut peaks = peak_flops(PeakKind::Int8, isa, self.pool.count(), 3).unwrap();
            let peak = summary(&mut peaks).0;
            print!(" = {:.0}% of {:.0}", 100.0 * ops / median / peak, peak / 1e9);
        }
        println!();
    }

    /// Bytes per second that all workers read together, each one contiguous range.
    fn read_roof(&mut self) -> f64 {
        let data = self.probe.as_slice();
        let began = Instant::now();
        self.pool
            .run(|worker| {
                let part = data.len() / worker.count() / 512 * 512;
                black_box(read(&data[worker.index() * part..][..part]));
            })
            .unwrap();
        data.len() as f64 / began.elapsed().as_secs_f64()
    }
}

/// Median and smallest.
fn summary(times: &mut [f64]) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[0])
}

/// Read every byte, 512 per step.
fn read(data: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if Isa::Avx512.is_supported() {
        // SAFETY: the level is supported.
        return unsafe { read_avx512(data) };
    }
    data.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).fold(0, u64::wrapping_add)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn read_avx512(data: &[u8]) -> u64 {
    use std::arch::x86_64::*;
    let mut sums = [_mm512_setzero_si512(); 8];
    for lines in data.chunks_exact(512) {
        for (line, sum) in sums.iter_mut().enumerate() {
            // SAFETY: 512 bytes in every chunk.
            let line = unsafe { _mm512_loadu_si512(lines.as_ptr().add(64 * line).cast()) };
            *sum = _mm512_add_epi64(*sum, line);
        }
    }
    sums.into_iter().map(|sum| _mm512_reduce_add_epi64(sum) as u64).fold(0, u64::wrapping_add)
}
