//! Attention against what the machine can do: `cargo bench -p pyrite-cpu --bench attention [-- FILTER...]`.
//!
//! Decode lines give the bytes of keys and values per second against a read probe; prefill lines give the
//! floating-point operations (4 per visible key, head and dimension) per second against a probe of multiply-adds
//! in registers; `store` lines give the bytes of a prompt's keys and values, `store step`
//! lines those of one token of each of sixteen sequences. A probe runs before every call, and
//! the medians are compared. Layers rotate, so that decode reads memory and not the cache; block tables are
//! shuffled. A line runs when it contains every FILTER; `PYRITE_BENCH_THREADS` sets the workers (default 2). With
//! one worker the clock is the process's CPU time, so that other processes on the machine disturb less.

#![allow(clippy::unwrap_used, reason = "a failed set-up ends the bench")]

use std::hint::black_box;

use pyrite_cpu::isa::Isa;
use pyrite_cpu::ops::attention::{
    AttentionArgs, AttentionScratch, AttentionScratchSpec, KvPool, KvType, attention, kv_store,
};
use pyrite_cpu::pool::Pool;
use pyrite_cpu::step::{GroupView, StepView};
use pyrite_cpu::tensor::{AlignedBytes, DType, Rows, RowsMut};

const PROBE_BYTES: usize = 256 << 20;
const ROTATE_BYTES: usize = 300 << 20;

struct Bench {
    clock: libc::clockid_t,
    workers: Pool,
    filters: Vec<String>,
    probe: AlignedBytes,
}

/// Heads, context and cache of a case.
#[derive(Clone, Copy)]
struct Case {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    len: usize,
    block_size: usize,
    dtype: KvType,
}

fn main() {
    let threads = std::env::var("PYRITE_BENCH_THREADS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let filters = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let mut probe = AlignedBytes::zeroed(PROBE_BYTES).unwrap();
    probe.as_mut_slice().fill(1);
    let clock = if threads == 1 { libc::CLOCK_PROCESS_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
    let mut bench = Bench { clock, workers: Pool::new(threads).unwrap(), filters, probe };
    println!("{threads} threads, levels up to {}", Isa::detect());
    let floats = [DType::F16, DType::Bf16, DType::F32].map(KvType::Float);
    let types = [floats.as_slice(), &[KvType::Int8, KvType::Int16, KvType::Bf16Pairs]].concat();
    let shapes = [(16, 8, 128), (32, 8, 64), (14, 2, 64), (8, 8, 128)];
    for dtype in types.iter().copied() {
        for (heads, kv_heads, dim) in shapes {
            for len in [2048, 16384] {
                for block_size in [16, 32, 128] {
                    bench.case(Case { heads, kv_heads, dim, len, block_size, dtype }, 1);
                }
            }
        }
    }
    for (heads, kv_heads, dim) in shapes {
        for len in [512, 2048] {
            for dtype in types.iter().copied() {
                let case = Case { heads, kv_heads, dim, len, block_size: 128, dtype };
                bench.case(case, len);
                bench.store(case);
                bench.store_step(case);
            }
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

    /// The last `tokens` positions of one sequence, at every level.
    fn case(&mut self, case: Case, tokens: usize) {
        let Case { heads, kv_heads, dim, len, block_size, dtype } = case;
        let form = if tokens == 1 { "decode" } else { "prefill" };
        let name = |isa: Isa| {
            format!("{form} {heads}/{kv_heads} D={dim} n={len} block={block_size} {} {isa} ", dtype.name())
        };
        let levels: Vec<Isa> = levels(dtype).filter(|isa| self.wants(&name(*isa))).collect();
        if levels.is_empty() {
            return;
        }
        let bytes = 2 * len * kv_heads * dtype.head_bytes(dim);
        let layers = if tokens == 1 { ROTATE_BYTES.div_ceil(bytes) } else { 2 };
        let pool = self.filled(case, layers);
        let table = table(len / block_size);
        let positions: Vec<i32> = (len - tokens..len).map(|at| at as i32).collect();
        let group =
            GroupView { block_tables: &table, max_blocks: table.len(), slot_mapping: &[], block_copies: &[] };
        let step = StepView {
            token_ids: &[],
            positions: &positions,
            cu_seqlens_q: &[0, tokens as i32],
            seq_lens: &[len as i32],
            logit_rows: &[],
            groups: &[group],
        };
        let scratch = AttentionScratch::new(AttentionScratchSpec {
            max_tokens: tokens,
            max_seqs: 1,
            max_len: len,
            num_heads: heads,
            num_kv_heads: kv_heads,
            head_dim: dim,
            num_workers: self.workers.count(),
        })
        .unwrap();
        let q = noise(tokens * heads * dim);
        let mut out = vec![0f32; q.len()];
        let keys: usize = (len - tokens + 1..=len).sum();
        let flops = (4 * keys * heads * dim) as f64;
        for isa in levels {
            let (mut times, mut roofs) = (Vec::new(), Vec::new());
            for layer in (0..layers).cycle().take(if tokens == 1 { 64.max(layers) } else { 15 }) {
                if tokens > 1 {
                    roofs.push(self.flop_roof(isa));
                } else if layer % 8 == 0 {
                    roofs.push(self.read_roof());
                }
                let args = AttentionArgs {
                    pool: &pool,
                    layer,
                    num_heads: heads,
                    softmax_scale: 0.1,
                    window: None,
                    step: &step,
                    group: &group,
                };
                let view = RowsMut::new(&mut out, heads * dim);
                let began = self.now();
                let q = Rows::new(&q, heads * dim);
                self.workers.run(|worker| attention(worker, isa, &args, q, view, &scratch)).unwrap();
                times.push(self.now() - began);
            }
            black_box(&out);
            if tokens == 1 {
                report(&name(isa), &mut times, &mut roofs, bytes as f64, "GB/s");
            } else {
                report(&name(isa), &mut times, &mut roofs, flops, "GFLOP/s");
            }
        }
    }

    /// Storing a whole prompt.
    fn store(&mut self, case: Case) {
        let Case { kv_heads, dim, len, dtype, .. } = case;
        for isa in levels(dtype) {
            let name = format!("store {kv_heads} D={dim} n={len} {} {isa} ", dtype.name());
            if !self.wants(&name) {
                continue;
            }
            let pool = self.filled(case, 1);
            let (slots, k) =
                (slots(&table(len / case.block_size), case.block_size), noise(len * kv_heads * dim));
            let (mut times, mut roofs) = (Vec::new(), vec![self.read_roof()]);
            for _ in 0..25 {
                let began = self.now();
                let k = Rows::new(&k, kv_heads * dim);
                self.workers.run(|worker| kv_store(worker, isa, &pool, 0, k, k, &slots)).unwrap();
                times.push(self.now() - began);
            }
            let bytes = 2 * len * kv_heads * (4 * dim + dtype.head_bytes(dim));
            report(&name, &mut times, &mut roofs, bytes as f64, "GB/s");
        }
    }

    /// Storing one token of each of sixteen sequences, in blocks that are not in the cache.
    fn store_step(&mut self, case: Case) {
        const SEQUENCES: usize = 16;
        let Case { kv_heads, dim, len, dtype, .. } = case;
        for isa in levels(dtype) {
            let name = format!("store step {kv_heads} D={dim} n={len} {} {isa} ", dtype.name());
            if !self.wants(&name) {
                continue;
            }
            let layers = ROTATE_BYTES.div_ceil(2 * len * kv_heads * dtype.head_bytes(dim));
            let pool = self.filled(case, layers);
            let all = slots(&table(len / case.block_size), case.block_size);
            let own: Vec<i32> = (0..SEQUENCES).map(|index| all[index * len / SEQUENCES + 7]).collect();
            let k = noise(SEQUENCES * kv_heads * dim);
            let (mut times, mut roofs) = (Vec::new(), vec![self.read_roof()]);
            for layer in (0..layers).cycle().take(64.max(layers)) {
                let began = self.now();
                let k = Rows::new(&k, kv_heads * dim);
                self.workers.run(|worker| kv_store(worker, isa, &pool, layer, k, k, &own)).unwrap();
                times.push(self.now() - began);
            }
            let bytes = 2 * SEQUENCES * kv_heads * (4 * dim + dtype.head_bytes(dim));
            report(&name, &mut times, &mut roofs, bytes as f64, "GB/s");
        }
    }

    /// A pool with one sequence of `len` in every layer.
    fn filled(&mut self, case: Case, layers: usize) -> KvPool {
        let Case { kv_heads, dim, len, block_size, dtype, .. } = case;
        let pool = KvPool::zeroed(layers, len / block_size, block_size, kv_heads, dim, dtype).unwrap();
        let (slots, k) = (slots(&table(len / block_size), block_size), noise(len * kv_heads * dim));
        let k = Rows::new(&k, kv_heads * dim);
        let isa = Isa::detect();
        self.workers
            .run(|worker| (0..layers).for_each(|layer| kv_store(worker, isa, &pool, layer, k, k, &slots)))
            .unwrap();
        pool
    }

    /// Bytes per second that all workers read together, each one contiguous range.
    fn read_roof(&mut self) -> f64 {
        let data = self.probe.as_slice();
        let started = self.now();
        self.workers
            .run(|worker| {
                let part = data.len() / worker.count() / 4096 * 4096;
                black_box(probe::read(&data[worker.index() * part..][..part]));
            })
            .unwrap();
        data.len() as f64 / (self.now() - started)
    }

    /// Floating-point operations per second of all workers together, in registers.
    fn flop_roof(&mut self, isa: Isa) -> f64 {
        const STEPS: usize = 200_000;
        let started = self.now();
        self.workers.run(|_| probe::multiply_adds(isa, STEPS)).unwrap();
        let lanes = if isa >= Isa::Avx512 { 16 } else { 8 };
        (2 * lanes * probe::CHAINS * STEPS * self.workers.count()) as f64 / (self.now() - started)
    }
}

fn report(name: &str, times: &mut [f64], roofs: &mut [f64], work: f64, unit: &str) {
    times.sort_by(f64::total_cmp);
    roofs.sort_by(f64::total_cmp);
    let (median, best) = (times[times.len() / 2], times[0]);
    let (roof, top) = (roofs[roofs.len() / 2], roofs[roofs.len() - 1]);
    println!(
        "{name}: {:.1} us (best {:.1}), {:.1} {unit} = {:.0}% of {:.1} (best {:.1} = {:.0}% of the best {:.1})",
        median * 1e6,
        best * 1e6,
        work / median / 1e9,
        100.0 * work / median / roof,
        roof / 1e9,
        work / best / 1e9,
        100.0 * work / best / top,
        top / 1e9
    );
}

/// Levels whose code differs for a cache of that type.
fn levels(dtype: KvType) -> impl Iterator<Item = Isa> {
    let range = match dtype {
        KvType::Float(_) => Isa::Avx2..=Isa::Avx512,
        KvType::Int8 | KvType::Int16 => Isa::Avx2..=Isa::Avx512Vnni,
        KvType::Bf16Pairs => Isa::Avx512Bf16..=Isa::Avx512Bf16,
    };
    Isa::ALL.into_iter().filter(move |isa| range.contains(isa) && isa.is_supported())
}

/// A shuffled block table.
fn table(blocks: usize) -> Vec<i32> {
    let mut table: Vec<i32> = (0..blocks as i32).collect();
    let mut state = 1u32;
    for index in (1..blocks).rev() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        table.swap(index, (state >> 8) as usize % (index + 1));
    }
    table
}

fn slots(table: &[i32], block_size: usize) -> Vec<i32> {
    let size = block_size as i32;
    table.iter().flat_map(|block| (0..size).map(move |at| block * size + at)).collect()
}

fn noise(count: usize) -> Vec<f32> {
    (0..count).map(|at| ((at.wrapping_mul(2_654_435_761) >> 9 & 0xff) as f32 - 127.5) / 128.0).collect()
}

#[cfg(target_arch = "x86_64")]
mod probe {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use pyrite_cpu::isa::Isa;

    pub(super) const CHAINS: usize = 12;

    pub(super) fn read(data: &[u8]) -> u64 {
        if Isa::Avx512.is_supported() {
            // SAFETY: the level is supported.
            unsafe { read512(data) }
        } else {
            data.chunks_exact(8).fold(0, |sum, word| sum ^ u64::from_le_bytes(word.try_into().unwrap()))
        }
    }

    #[target_feature(enable = "avx512f")]
    fn read512(data: &[u8]) -> u64 {
        let mut sums = [_mm512_setzero_si512(); 8];
        for lines in data.chunks_exact(512) {
            for (line, sum) in sums.iter_mut().enumerate() {
                // SAFETY: 512 bytes in every chunk.
                let line = unsafe { _mm512_loadu_si512(lines.as_ptr().add(64 * line).cast()) };
                *sum = _mm512_xor_si512(*sum, line);
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_epi64(sum) as u64).fold(0, |a, b| a ^ b)
    }

    pub(super) fn multiply_adds(isa: Isa, steps: usize) {
        // SAFETY: the bench runs supported levels only.
        unsafe { if isa >= Isa::Avx512 { fma512(steps) } else { fma256(steps) } }
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

    pub(super) const CHAINS: usize = 12;

    pub(super) fn read(data: &[u8]) -> u64 {
        data.chunks_exact(8).fold(0, |sum, word| sum ^ u64::from_le_bytes(word.try_into().unwrap()))
    }

    pub(super) fn multiply_adds(_isa: Isa, steps: usize) {
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
