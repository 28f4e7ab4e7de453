//! What the benches share: the workers, the roofs of the machine, measured beside every case, and the line that compares.

#![allow(dead_code, reason = "no bench uses all of it")]

pub(crate) mod matmul;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::Criterion;
use pyrite_cpu::isa::Isa;
use pyrite_cpu::pool::Pool;
use pyrite_cpu::probe::{PeakKind, ReadProbe, peak_on};

/// Weights and inputs rotate over so many bytes, past the last cache.
pub(crate) const ROTATE_BYTES: usize = 256 << 20;
/// Multiply-adds of each chain in a probe of the peak: about two milliseconds.
const LINKS: u64 = 1_000_000;

/// Few and short samples: the machine drifts, and a roof is only good for what is measured right after it.
pub(crate) fn config() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(400))
        .without_plots()
}

/// What one call moves and does at least.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) bytes: usize,
    /// Multiply-adds as two; 0 where the bytes alone count.
    pub(crate) operations: usize,
    pub(crate) kind: PeakKind,
}

/// The workers (`PYRITE_BENCH_THREADS`, default 2) and the memory that tells the read bandwidth.
pub(crate) struct Machine {
    pool: Pool,
    read: ReadProbe,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let threads = std::env::var("PYRITE_BENCH_THREADS").ok().and_then(|text| text.parse().ok());
        Self { pool: Pool::new(threads.unwrap_or(2)).unwrap(), read: ReadProbe::new(ROTATE_BYTES).unwrap() }
    }

    /// Number of workers.
    pub(crate) fn workers(&self) -> usize {
        self.pool.count()
    }

    /// Time a call by criterion, both roofs before every sample, and print how much of the nearer one was reached. The
    /// call is prepared once, and only if the case is not filtered out.
    pub(crate) fn case<C: FnMut(&mut Pool)>(
        &mut self,
        criterion: &mut Criterion,
        name: &str,
        isa: Isa,
        cost: Cost,
        prepare: impl FnOnce() -> C,
    ) {
        let (mut prepare, mut call) = (Some(prepare), None);
        let (mut times, mut reads, mut peaks) = (Vec::new(), Vec::new(), Vec::new());
        criterion.bench_function(name, |bencher| {
            if let Some(prepare) = prepare.take() {
                call = Some(prepare());
            }
            let call = call.as_mut().unwrap();
            bencher.iter_custom(|iterations| {
                reads.extend(self.read.measure(&mut self.pool, 1).unwrap());
                if cost.operations > 0 {
                    peaks.extend(peak_on(&mut self.pool, cost.kind, isa, LINKS, 1).unwrap());
                }
                let mut total = Duration::ZERO;
                for _ in 0..iterations {
                    let began = Instant::now();
                    call(&mut self.pool);
                    let time = began.elapsed();
                    times.push(time.as_secs_f64());
                    total += time;
                }
                total
            });
        });
        if !times.is_empty() {
            let peak = if peaks.is_empty() { f64::INFINITY } else { median(&mut peaks) };
            println!("    {}", line(cost, median(&mut times), median(&mut reads), peak));
        }
    }
}

/// One call by the nearer roof.
fn line(cost: Cost, seconds: f64, read: f64, peak: f64) -> String {
    let (moving, doing) = (cost.bytes as f64 / read, cost.operations as f64 / peak);
    let (rate, roof, unit) = if moving >= doing {
        (cost.bytes as f64 / seconds, read, "GB/s read".to_owned())
    } else {
        (cost.operations as f64 / seconds, peak, format!("Gop/s {}", cost.kind.name()))
    };
    let (rate, roof, percent) = (rate / 1e9, roof / 1e9, 100.0 * rate / roof);
    format!("median {:.1} us: {rate:.1} = {percent:.0} % of {roof:.1} {unit}", seconds * 1e6)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The best level, and AVX2 where that is another one.
pub(crate) fn levels() -> impl Iterator<Item = Isa> {
    [Isa::detect(), Isa::Avx2].into_iter().take(if Isa::detect() > Isa::Avx2 { 2 } else { 1 })
}

/// Inputs of about -0.5 to 0.5.
pub(crate) fn inputs(count: usize) -> Vec<f32> {
    black_box((0..count).map(|at| (at % 251) as f32 / 251.0 - 0.5).collect())
}

/// Reproducible bytes without a pattern that matters.
pub(crate) fn noise(count: usize, most: u8) -> Vec<u8> {
    (0..count).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 & most).collect()
}
