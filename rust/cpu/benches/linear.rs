//! Float matmul against what the machine can do: `cargo bench -p pyrite-cpu --bench linear [-- FILTER...]`.
//!
//! Every line names the shape, the weight type, the level and the rows of x, and gives the median and fastest time
//! and the percent of the roof: bytes of weights against a read probe for few rows, floating-point operations
//! against a probe of the same instruction for many. Both probes run on the same threads, interleaved with the
//! case, and their median is the roof. Weights rotate over more than 200 MB, past the last cache. A line runs
//! when it contains every FILTER; `PYRITE_BENCH_THREADS` sets the workers (default 2). With one worker the clock
//! is the process's CPU time, so that other processes on the machine disturb less.

#![allow(clippy::unwrap_used, reason = "a failed set-up ends the bench")]

use std::hint::black_box;

use pyrite_cpu::isa::Isa;
use pyrite_cpu::ops::linear::{LinearScratch, PackedMatrix, linear};
use pyrite_cpu::pool::Pool;
use pyrite_cpu::tensor::{AlignedBytes, DType, Rows, RowsMut};

const SHAPES: [(usize, usize); 5] = [(1024, 3072), (3072, 1024), (2048, 8192), (4096, 4096), (151_936, 1024)];
const ROTATE_BYTES: usize = 256 << 20;
const FEW_ROWS: usize = 16;

struct Bench {
    clock: libc::clockid_t,
    pool: Pool,
    filters: Vec<String>,
    probe: AlignedBytes,
}

fn main() {
    let threads = std::env::var("PYRITE_BENCH_THREADS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let filters = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let mut probe = AlignedBytes::zeroed(ROTATE_BYTES).unwrap();
    probe.as_mut_slice().fill(1);
    let clock = if threads == 1 { libc::CLOCK_PROCESS_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
    let mut bench = Bench { clock, pool: Pool::new(threads).unwrap(), filters, probe };
    println!("{threads} threads, levels up to {}", Isa::detect());
    for dtype in [DType::Bf16, DType::F16, DType::F32] {
        for shape in SHAPES {
            bench.shape(shape, dtype);
        }
    }
}

impl Bench {
    fn wants(&self, name: &str) -> bool {
        self.filters.iter().all(|filter| name.contains(filter.as_str()))
    }

    /// Seconds of the clock in use.
    fn now(&self) -> f64 {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is ours to write.
        unsafe { libc::clock_gettime(self.clock, &mut time) };
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    }

    /// Pack one shape, then run every level and number of rows on it.
    fn shape(&mut self, (rows, cols): (usize, usize), dtype: DType) {
        let name = |what: &str| format!("{rows}x{cols} {} {what}", dtype.name());
        let mut cases = Vec::new();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            for tokens in [1, 2, 4, 8, 16, 64, 512] {
                let line = name(&format!("{isa} M={tokens} "));
                let wanted = !(isa == Isa::Scalar && (tokens > 1 || rows > 10_000));
                if wanted && (tokens < 512 || rows < 10_000) && self.wants(&line) {
                    cases.push((isa, tokens, line));
                }
            }
        }
        let pack = name("pack ");
        if cases.is_empty() && !self.wants(&pack) {
            return;
        }
        let source: Vec<u8> = (0..rows * cols)
            .flat_map(|at| {
                let value = ((at.wrapping_mul(2_654_435_761) >> 7 & 0xff) as f32 - 127.5) / 4096.0;
                let mut bytes = [0; 4];
                dtype.set(&mut bytes, 0, value);
                bytes.into_iter().take(dtype.size())
            })
            .collect();
        let copies = (ROTATE_BYTES / source.len()).max(1);
        let weights: Vec<_> = (0..copies).map(|_| PackedMatrix::zeroed(rows, cols, dtype).unwrap()).collect();
        let mut times = Vec::new();
        for _ in 0..2 {
            for weight in &weights {
                times.push(self.pack(weight, &source));
            }
        }
        let fresh = times.drain(..copies).sum::<f64>() / copies as f64;
        if self.wants(&pack) {
            let (median, best) = summary(&mut times);
            let rate = source.len() as f64 / 1e9;
            println!(
                "{pack}: {:.2} ms, {:.1} GB/s of weights (best {:.1}, on fresh memory {:.1})",
                median * 1e3,
                rate / median,
                rate / best,
                rate / fresh
            );
        }
        for (isa, tokens, line) in cases {
            self.case(isa, tokens, &line, &weights);
        }
    }

    fn pack(&mut self, weight: &PackedMatrix, source: &[u8]) -> f64 {
        let row_bytes = weight.cols() * weight.dtype().size();
        let started = self.now();
        self.pool
            .run(|worker| {
                worker.share(weight.rows().div_ceil(256), |part| {
                    let rows = part * 256..weight.rows().min(part * 256 + 256);
                    let bytes = &source[rows.start * row_bytes..rows.end * row_bytes];
                    // SAFETY: parts are disjoint rows, nobody reads.
                    unsafe { weight.pack_rows(rows.start, bytes, weight.dtype()) };
                });
            })
            .unwrap();
        self.now() - started
    }

    fn case(&mut self, isa: Isa, tokens: usize, line: &str, weights: &[PackedMatrix]) {
        let (rows, cols, bytes) = (weights[0].rows(), weights[0].cols(), weights[0].bytes());
        let dot = isa == Isa::Avx512Bf16 && weights[0].dtype() == DType::Bf16;
        let x: Vec<f32> = (0..tokens * cols).map(|at| (at % 251) as f32 / 251.0 - 0.5).collect();
        let mut out = vec![0f32; tokens * rows];
        let scratch = LinearScratch::new(tokens, cols, self.pool.count()).unwrap();
        let few = tokens <= FEW_ROWS;
        let (mut times, mut roofs, mut turn) = (Vec::new(), Vec::new(), 0);
        let started = self.now();
        while times.len() < 9 || (self.now() - started < 1.0 && times.len() < 400) {
            roofs.push(if few { self.read_roof() } else { self.flop_roof(isa, dot) });
            let calls = if few { weights.len().min(8) } else { 1 };
            for _ in 0..calls {
                let weight = &weights[turn % weights.len()];
                turn += 1;
                let view = RowsMut::new(&mut out, rows);
                let began = self.now();
                let x = Rows::new(&x, cols);
                self.pool.run(|worker| linear(worker, isa, x, weight, None, view, &scratch)).unwrap();
                times.push(self.now() - began);
            }
        }
        black_box(&out);
        let (median, best) = summary(&mut times);
        roofs.sort_by(f64::total_cmp);
        let (roof, top) = (roofs[roofs.len() / 2], roofs[roofs.len() - 1]);
        let flops = 2.0 * (rows * cols * tokens) as f64;
        let (work, unit) = if few { (bytes as f64, "GB/s") } else { (flops, "GFLOP/s") };
        println!(
            "{line}: {:.1} us (best {:.1}), {:.1} {unit} = {:.0}% of {:.1} (best {:.1} of {:.1}), {:.0} GFLOP/s",
            median * 1e6,
            best * 1e6,
            work / median / 1e9,
            100.0 * work / median / roof,
            roof / 1e9,
            work / best / 1e9,
            top / 1e9,
            flops / median / 1e9
        );
    }

    /// Bytes per second that all workers read together, each one contiguous range.
    fn read_roof(&mut self) -> f64 {
        let data = self.probe.as_slice();
        let started = self.now();
        self.pool
            .run(|worker| {
                let part = data.len() / worker.count() / 64 * 64;
                let own = &data[worker.index() * part..][..part];
                black_box(sum(own));
            })
            .unwrap();
        data.len() as f64 / (self.now() - started)
    }

    /// Floating-point operations per second of all workers together, in registers.
    fn flop_roof(&mut self, isa: Isa, dot: bool) -> f64 {
        const STEPS: usize = 200_000;
        let started = self.now();
        self.pool
            .run(|_| {
                // SAFETY: the level is supported.
                unsafe { probe::flops(isa, dot, STEPS) }
            })
            .unwrap();
        let lanes = if dot {
            32
        } else if isa >= Isa::Avx512 {
            16
        } else {
            8
        };
        (2 * lanes * probe::CHAINS * STEPS * self.pool.count()) as f64 / (self.now() - started)
    }
}

/// Median and smallest.
fn summary(times: &mut [f64]) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[0])
}

/// Read every line once.
fn sum(data: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if Isa::Avx512.is_supported() {
        // SAFETY: the level is supported.
        return unsafe { probe::sum(data) };
    }
    data.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).fold(0, u64::wrapping_add)
}

#[cfg(target_arch = "x86_64")]
mod probe {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use pyrite_cpu::isa::Isa;

    pub(super) const CHAINS: usize = 12;

    #[target_feature(enable = "avx512f")]
    pub(super) fn sum(data: &[u8]) -> u64 {
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

    /// # Safety
    /// The processor supports `isa`.
    pub(super) unsafe fn flops(isa: Isa, dot: bool, steps: usize) {
        // SAFETY: the caller's duty, passed on.
        unsafe {
            match (isa, dot) {
                (_, true) => dots(steps),
                (Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16, _) => fma512(steps),
                (Isa::Avx2, _) => fma256(steps),
                _ => {
                    black_box(
                        (0..CHAINS * steps).fold(0f32, |sum, at| black_box(at as f32).mul_add(0.5, sum)),
                    );
                }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn dots(steps: usize) {
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        // SAFETY: 64 bytes of plain numbers on both sides.
        let one: __m512bh = unsafe { std::mem::transmute(black_box(_mm512_set1_epi32(0x3f80_3f80))) };
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, one, one);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f")]
    fn fma512(steps: usize) {
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        let one = black_box(_mm512_set1_ps(1.0));
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, one, one);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma")]
    fn fma256(steps: usize) {
        let mut sums = [_mm256_setzero_ps(); CHAINS];
        let one = black_box(_mm256_set1_ps(1.0));
        for _ in 0..steps {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, one, one);
            }
        }
        black_box(sums);
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod probe {
    use std::hint::black_box;

    use pyrite_cpu::isa::Isa;

    pub(super) const CHAINS: usize = 8;

    /// # Safety
    /// None needed here; the signature is that of x86-64.
    pub(super) unsafe fn flops(_isa: Isa, _dot: bool, steps: usize) {
        let mut sums = [[0f32; 8]; CHAINS];
        let one = black_box(1f32);
        for _ in 0..steps {
            for sum in sums.iter_mut().flatten() {
                *sum = sum.mul_add(one, one);
            }
        }
        black_box(sums);
    }
}
