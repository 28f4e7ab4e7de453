//! Attention and the KV cache: closeness to the exact result, and equal bits however the work is cut.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test, helpers included")]

#[path = "common/allocations.rs"]
mod allocations;

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use allocations::counting;
use proptest::prelude::*;
use pyrite_cpu::isa::Isa;
use pyrite_cpu::ops::attention::{
    AttentionArgs, AttentionScratch, AttentionScratchSpec, KvPool, KvType, attention_with_split, copy_blocks,
    kv_store,
};
use pyrite_cpu::pool::Pool;
use pyrite_cpu::step::{GroupView, StepView};
use pyrite_cpu::tensor::{DType, Rows, RowsMut};

/// Small deterministic generator (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Uniform in -1..1.
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }
    fn floats(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| scale * self.float()).collect()
    }
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    window: Option<usize>,
    dtype: KvType,
}

impl Shape {
    fn new(heads: usize, kv_heads: usize, dim: usize) -> Self {
        Self { heads, kv_heads, dim, window: None, dtype: DType::F16.into() }
    }
    fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }
}

/// Queries, keys and values of one sequence.
struct Tokens {
    len: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Tokens {
    fn new(shape: &Shape, len: usize, seed: u64) -> Self {
        let mut random = Random(seed);
        let (wide, narrow) = (len * shape.heads * shape.dim, len * shape.kv_heads * shape.dim);
        Self {
            len,
            q: random.floats(wide, 3.0),
            k: random.floats(narrow, 1.5),
            v: random.floats(narrow, 1.0),
        }
    }
}

/// How a run is done; results may not depend on any of it (`split` excepted).
#[derive(Clone, Copy, Debug)]
struct Way {
    isa: Isa,
    threads: usize,
    block_size: usize,
    split: usize,
    seed: u64,
}

impl Way {
    fn plain() -> Self {
        Self { isa: Isa::Scalar, threads: 1, block_size: 32, split: 256, seed: 1 }
    }
}

const LAYERS: usize = 2;

/// An engine in small: pool, tables and scratch, run step by step.
struct Rig<'a> {
    shape: Shape,
    way: Way,
    sequences: Vec<&'a Tokens>,
    workers: Pool,
    pool: KvPool,
    scratch: AttentionScratch,
    tables: Vec<Vec<i32>>,
    done: Vec<usize>,
    out: Vec<Vec<f32>>,
    allocations: &'static AtomicUsize,
}

impl<'a> Rig<'a> {
    fn new(shape: Shape, way: Way, sequences: Vec<&'a Tokens>) -> Self {
        let blocks_of = |tokens: &Tokens| tokens.len.div_ceil(way.block_size);
        let used: usize = sequences.iter().map(|tokens| blocks_of(tokens)).sum();
        let num_blocks = used + 3;
        let mut free: Vec<i32> = (0..num_blocks as i32).collect();
        let mut random = Random(way.seed);
        for index in (1..free.len()).rev() {
            free.swap(index, (random.next() % (index as u64 + 1)) as usize);
        }
        let tables = sequences.iter().map(|tokens| free.split_off(free.len() - blocks_of(tokens))).collect();
        let longest = sequences.iter().map(|tokens| tokens.len).max().unwrap_or(1);
        let spec = AttentionScratchSpec {
            max_tokens: sequences.iter().map(|tokens| tokens.len).sum(),
            max_seqs: sequences.len(),
            max_len: longest * 256 / way.split + 256,
            num_heads: shape.heads,
            num_kv_heads: shape.kv_heads,
            head_dim: shape.dim,
            num_workers: way.threads,
        };
        let mut rig = Self {
            shape,
            way,
            workers: Pool::new(way.threads).unwrap(),
            pool: KvPool::zeroed(LAYERS, num_blocks, way.block_size, shape.kv_heads, shape.dim, shape.dtype)
                .unwrap(),
            scratch: AttentionScratch::new(spec).unwrap(),
            tables,
            done: vec![0; sequences.len()],
            out: sequences.iter().map(|tokens| vec![f32::NAN; tokens.q.len()]).collect(),
            sequences,
            allocations: Box::leak(Box::default()),
        };
        rig.poison(&(0..num_blocks as i32).collect::<Vec<_>>());
        rig
    }

    /// Fill blocks with NaN.
    fn poison(&mut self, blocks: &[i32]) {
        let block_size = self.way.block_size as i32;
        let slots: Vec<i32> =
            blocks.iter().flat_map(|block| (0..block_size).map(move |at| block * block_size + at)).collect();
        let width = self.shape.kv_heads * self.shape.dim;
        let bad = vec![f32::NAN; slots.len() * width];
        if slots.is_empty() {
            return;
        }
        for layer in 0..LAYERS {
            self.workers
                .run(|worker| {
                    let bad = Rows::new(&bad, width);
                    kv_store(worker, self.way.isa, &self.pool, layer, bad, bad, &slots);
                })
                .unwrap();
        }
    }

    /// Drop what the window leaves behind, as the engine does.
    fn free_behind_window(&mut self) {
        let Some(window) = self.shape.window else { return };
        let mut freed = Vec::new();
        for (table, done) in self.tables.iter_mut().zip(&self.done) {
            let visible = (done + 1).saturating_sub(window);
            for entry in &mut table[..visible / self.way.block_size] {
                if *entry >= 0 {
                    freed.push(std::mem::replace(entry, -1));
                }
            }
        }
        self.poison(&freed);
    }

    /// One step: (sequence, tokens) pairs.
    fn step(&mut self, parts: &[(usize, usize)]) {
        self.free_behind_window();
        let (wide, narrow) = (self.shape.heads * self.shape.dim, self.shape.kv_heads * self.shape.dim);
        let max_blocks = self.tables.iter().map(Vec::len).max().unwrap();
        let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
        let (mut starts, mut lens, mut slots, mut positions) = (vec![0], Vec::new(), Vec::new(), Vec::new());
        let mut tables = Vec::new();
        for &(index, count) in parts {
            let (tokens, begin) = (self.sequences[index], self.done[index]);
            let end = begin + count;
            q.extend_from_slice(&tokens.q[begin * wide..end * wide]);
            k.extend_from_slice(&tokens.k[begin * narrow..end * narrow]);
            v.extend_from_slice(&tokens.v[begin * narrow..end * narrow]);
            for position in begin..end {
                let (block, offset) = (position / self.way.block_size, position % self.way.block_size);
                slots.push(self.tables[index][block] * self.way.block_size as i32 + offset as i32);
                positions.push(position as i32);
            }
            starts.push(positions.len() as i32);
            lens.push(end as i32);
            // Blocks that the sequence has not reached yet are not in its table.
            let here = end.div_ceil(self.way.block_size);
            tables.extend_from_slice(&self.tables[index][..here]);
            tables.resize(lens.len() * max_blocks, -1);
            self.done[index] = end;
        }
        let groups =
            [GroupView { block_tables: &tables, max_blocks, slot_mapping: &slots, block_copies: &[] }];
        let step = StepView {
            token_ids: &[],
            positions: &positions,
            cu_seqlens_q: &starts,
            seq_lens: &lens,
            logit_rows: &[],
            groups: &groups,
        };
        let mut out = vec![f32::NAN; q.len()];
        let args = AttentionArgs {
            pool: &self.pool,
            layer: 1,
            num_heads: self.shape.heads,
            softmax_scale: self.shape.scale(),
            window: self.shape.window,
            step: &step,
            group: &groups[0],
        };
        let rows = RowsMut::new(&mut out, wide);
        let (way, scratch) = (self.way, &self.scratch);
        let counter = self.allocations;
        self.workers
            .run(|worker| {
                counting(counter, || {
                    let (k, v) = (Rows::new(&k, narrow), Rows::new(&v, narrow));
                    kv_store(worker, way.isa, args.pool, 1, k, v, &slots);
                    attention_with_split(
                        worker,
                        way.isa,
                        &args,
                        Rows::new(&q, wide),
                        rows,
                        scratch,
                        way.split,
                    );
                });
            })
            .unwrap();
        for (part, &(index, count)) in parts.iter().enumerate() {
            let (from, to) = (starts[part] as usize * wide, (self.done[index] - count) * wide);
            self.out[index][to..to + count * wide].copy_from_slice(&out[from..from + count * wide]);
        }
    }

    /// Run everything, each sequence in chunks of `chunk`, all in the same steps.
    fn run(mut self, chunk: usize) -> Vec<Vec<f32>> {
        loop {
            let parts: Vec<(usize, usize)> = (0..self.sequences.len())
                .map(|index| (index, chunk.min(self.sequences[index].len - self.done[index])))
                .filter(|part| part.1 > 0)
                .collect();
            if parts.is_empty() {
                assert_eq!(self.allocations.load(SeqCst), 0, "the calls allocate");
                return self.out;
            }
            self.step(&parts);
        }
    }
}

const WHOLE: usize = usize::MAX;

fn run(shape: Shape, way: Way, tokens: &Tokens, chunk: usize) -> Vec<f32> {
    Rig::new(shape, way, vec![tokens]).run(chunk).remove(0)
}

/// Block sizes and numbers of workers to try; a few where the number of steps makes each run long.
fn blocks_and_threads(chunk: usize) -> &'static [(usize, usize)] {
    match chunk {
        1 => &[(16, 1), (32, 2)],
        7 => &[(16, 1), (32, 2), (64, 3)],
        _ => &[(16, 1), (16, 2), (16, 3), (32, 1), (32, 2), (32, 3), (64, 1), (64, 2), (64, 3)],
    }
}

/// Levels of this processor that have a form for a cache of that type.
fn levels(dtype: KvType) -> impl Iterator<Item = Isa> {
    let exists = move |isa: &Isa| match dtype {
        KvType::Bf16Pairs => matches!(isa, Isa::Scalar | Isa::Avx512Bf16),
        KvType::Float(_) | KvType::Int8 | KvType::Int16 => true,
    };
    Isa::ALL.into_iter().filter(move |isa| exists(isa) && isa.is_supported())
}

fn vector_levels(dtype: KvType) -> impl Iterator<Item = Isa> {
    levels(dtype).filter(|isa| *isa != Isa::Scalar)
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[track_caller]
fn assert_same(got: &[f32], want: &[f32], what: impl std::fmt::Debug) {
    let differ = got.iter().zip(want).position(|(got, want)| got.to_bits() != want.to_bits());
    assert!(
        differ.is_none() && got.len() == want.len(),
        "{what:?}: element {differ:?}, got {:?}, expected {:?}",
        differ.map(|at| got[at]),
        differ.map(|at| want[at])
    );
}

const FLOATS: [KvType; 3] =
    [KvType::Float(DType::F32), KvType::Float(DType::F16), KvType::Float(DType::Bf16)];
const TYPES: [KvType; 6] = [FLOATS[0], FLOATS[1], FLOATS[2], KvType::Int8, KvType::Int16, KvType::Bf16Pairs];
const INTEGERS: [KvType; 2] = [KvType::Int8, KvType::Int16];

/// Types that a head of `dim` elements may have.
fn types_of(dim: usize) -> impl Iterator<Item = KvType> {
    TYPES.into_iter().filter(move |dtype| *dtype != KvType::Bf16Pairs || dim.is_multiple_of(2))
}

fn rounded(dtype: DType, x: f32) -> f32 {
    let mut bytes = [0; 4];
    dtype.set(&mut bytes, 0, x);
    dtype.get(&bytes, 0)
}

/// Softmax attention in f64, straight from its definition.
fn exact(shape: &Shape, tokens: &Tokens) -> Vec<f64> {
    let (q, k, v) = match shape.dtype {
        KvType::Float(dtype) => {
            let store = |x: &Vec<f32>| x.iter().map(|x| f64::from(rounded(dtype, *x))).collect();
            (tokens.q.iter().map(|q| f64::from(*q)).collect(), store(&tokens.k), store(&tokens.v))
        }
        KvType::Bf16Pairs => {
            // Queries are rounded as they go into the power of two.
            let factor = shape.scale() * std::f32::consts::LOG2_E;
            let query = |q: &f32| f64::from(rounded(DType::Bf16, q * factor)) / f64::from(factor);
            let round = |x: &Vec<f32>| x.iter().map(|x| f64::from(rounded(DType::Bf16, *x))).collect();
            (tokens.q.iter().map(query).collect(), round(&tokens.k), round(&tokens.v))
        }
        KvType::Int8 | KvType::Int16 => {
            let scales: [fn(&[f32]) -> f32; 3] = match shape.dtype {
                KvType::Int8 => [largest::<127>; 3],
                _ => [length::<32_000>, |x| length::<65_000>(x).max(largest::<32_767>(x)), largest::<8_191>],
            };
            let [q, k, v] = scales;
            (coded(&tokens.q, shape.dim, q), coded(&tokens.k, shape.dim, k), coded(&tokens.v, shape.dim, v))
        }
    };
    softmax_attention(shape, tokens.len, &q, &k, &v)
}

/// The scale whose codes of a head reach `N`.
fn largest<const N: u32>(head: &[f32]) -> f32 {
    head.iter().fold(0.0, |most, x| x.abs().max(most)) / N as f32
}

/// The scale whose codes of a head are a vector of length `N`.
fn length<const N: u32>(head: &[f32]) -> f32 {
    (head.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() / f64::from(N)) as f32
}

/// Every head rounded to whole multiples of its scale.
fn coded(x: &[f32], dim: usize, scale: fn(&[f32]) -> f32) -> Vec<f64> {
    let head = |head: &[f32]| -> Vec<f64> {
        let scale = scale(head);
        let code = |x: &f32| if scale > 0.0 { (x * (1.0 / scale)).round_ties_even() } else { 0.0 };
        head.iter().map(|x| f64::from(code(x)) * f64::from(scale)).collect()
    };
    x.chunks(dim).flat_map(head).collect()
}

fn softmax_attention(shape: &Shape, len: usize, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let (wide, narrow) = (shape.heads * shape.dim, shape.kv_heads * shape.dim);
    let mut out = vec![0.0; len * wide];
    for position in 0..len {
        let begin = shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
        for head in 0..shape.heads {
            let kv = head / (shape.heads / shape.kv_heads) * shape.dim;
            let at = position * wide + head * shape.dim;
            let q = &q[at..at + shape.dim];
            let scores: Vec<f64> = (begin..=position)
                .map(|key| {
                    let k = &k[key * narrow + kv..][..shape.dim];
                    let dot: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
                    dot * f64::from(shape.scale())
                })
                .collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
            for (key, score) in (begin..).zip(&scores) {
                let p = (score - max).exp() / sum;
                for d in 0..shape.dim {
                    out[at + d] += p * v[key * narrow + kv + d];
                }
            }
        }
    }
    out
}

#[track_caller]
fn assert_close(got: &[f32], want: &[f64], tolerance: f64, what: impl std::fmt::Debug) {
    let mut worst = (0.0f64, 0);
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - want).abs();
        if error.is_nan() || error > worst.0 {
            worst = (if error.is_nan() { f64::INFINITY } else { error }, at);
        }
    }
    assert!(worst.0 < tolerance, "{what:?}: error {:e} at {}", worst.0, worst.1);
}

/// Largest error of elements around 1: integers round the probabilities of a split to 16 bits as well, pairs each to bf16.
fn tolerance(dtype: KvType) -> f64 {
    match dtype {
        KvType::Float(_) => 2e-6,
        KvType::Int8 => 2e-4,
        KvType::Int16 => 2e-4,
        KvType::Bf16Pairs => 4e-3,
    }
}

#[test]
fn scalar_is_close_to_the_exact_softmax() {
    for (heads, kv_heads, dim) in
        [(4, 4, 24), (6, 2, 60), (4, 2, 64), (7, 1, 80), (3, 1, 96), (4, 2, 128), (2, 1, 256)]
    {
        for dtype in types_of(dim) {
            for window in [None, Some(100)] {
                let shape = Shape { dtype, window, ..Shape::new(heads, kv_heads, dim) };
                let tokens = Tokens::new(&shape, 300, dim as u64);
                let got = run(shape, Way::plain(), &tokens, WHOLE);
                assert_close(&got, &exact(&shape, &tokens), tolerance(dtype), shape);
            }
        }
    }
}

/// What 16-bit integers are for: beside floats that nobody rounded, they err about as much as f16 does.
#[test]
fn integers_of_sixteen_bits_are_about_as_exact_as_halves() {
    for (dim, sharpness) in [(64, 1.0), (128, 1.0), (128, 8.0), (256, 30.0)] {
        let shape = Shape::new(2, 1, dim);
        let mut tokens = Tokens::new(&shape, 600, dim as u64);
        tokens.q.iter_mut().for_each(|q| *q *= sharpness);
        let [q, k, v] =
            [&tokens.q, &tokens.k, &tokens.v].map(|x| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
        let want = softmax_attention(&shape, tokens.len, &q, &k, &v);
        let error = |dtype: KvType| {
            // The levels have the definition's bits, and are quicker.
            let way = Way { isa: Isa::detect(), ..Way::plain() };
            let got = run(Shape { dtype, ..shape }, way, &tokens, WHOLE);
            let squares = got.iter().zip(&want).map(|(got, want)| (f64::from(*got) - want).powi(2));
            (squares.sum::<f64>() / want.len() as f64).sqrt()
        };
        let [integers, halves, brains] = [KvType::Int16, FLOATS[1], FLOATS[2]].map(error);
        assert!(
            integers < halves && integers < brains / 4.0,
            "{dim} {sharpness}: {integers:e} {halves:e} {brains:e}"
        );
    }
}

#[test]
fn every_level_has_the_bits_of_the_definition() {
    for (heads, kv_heads, dim) in [
        (4, 4, 24),
        (6, 2, 60),
        (4, 2, 64),
        (7, 1, 80),
        (3, 1, 96),
        (4, 2, 128),
        (2, 1, 256),
        (40, 2, 32),
        (11, 1, 33),
        (1, 1, 1),
    ] {
        for dtype in types_of(dim) {
            let shape = Shape { dtype, ..Shape::new(heads, kv_heads, dim) };
            let tokens = Tokens::new(&shape, 281, dim as u64);
            let want = bits(&run(shape, Way::plain(), &tokens, WHOLE));
            for isa in vector_levels(dtype) {
                for (chunk, block_size) in [(WHOLE, 16), (WHOLE, 256), (1, 32), (19, 128)] {
                    let way = Way { isa, block_size, seed: 7, ..Way::plain() };
                    let got = bits(&run(shape, way, &tokens, chunk));
                    assert!(got == want, "{shape:?} {way:?} chunk {chunk}");
                }
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_chunks_blocks_and_threads() {
    let shape = Shape::new(4, 2, 64);
    for len in [1, 15, 16, 255, 256, 257, 1000] {
        chunks_blocks_and_threads(&shape, len, [1, 7, 61, WHOLE]);
    }
    for dtype in [KvType::Int8, KvType::Int16, KvType::Bf16Pairs] {
        for len in [1, 15, 255, 600] {
            chunks_blocks_and_threads(&Shape { dtype, ..shape }, len, [1, 7, 61, WHOLE]);
        }
    }
}

#[test]
fn windows_hide_what_lies_behind_them() {
    for (shape, len) in [(Shape::new(3, 1, 64), 1000), (Shape::new(7, 1, 24), 600)] {
        for window in [1, 17, 256, 300] {
            chunks_blocks_and_threads(&Shape { window: Some(window), ..shape }, len, [1, 7, 61, WHOLE]);
        }
    }
    for (window, dtype) in [1, 17, 300]
        .into_iter()
        .flat_map(|window| [KvType::Int8, KvType::Int16, KvType::Bf16Pairs].map(|dtype| (window, dtype)))
    {
        let shape = Shape { window: Some(window), dtype, ..Shape::new(7, 1, 24) };
        chunks_blocks_and_threads(&shape, 400, [1, 7, 61, WHOLE]);
    }
}

/// Compare every level, and the given lengths of a chunk, with the definition.
fn chunks_blocks_and_threads(shape: &Shape, len: usize, chunks: [usize; 4]) {
    let tokens = Tokens::new(shape, len, len as u64);
    let want = run(*shape, Way::plain(), &tokens, WHOLE);
    assert_close(&want, &exact(shape, &tokens), tolerance(shape.dtype), (shape, len));
    for isa in vector_levels(shape.dtype) {
        for chunk in chunks {
            for (block_size, threads) in blocks_and_threads(chunk).iter().copied() {
                let way = Way { isa, threads, block_size, seed: chunk as u64, ..Way::plain() };
                assert_same(&run(*shape, way, &tokens, chunk), &want, (way, shape, len, chunk));
            }
        }
    }
}

/// Sequences that decode, sequences that prefill in chunks, and short pieces, in the same steps.
fn mixed(shape: Shape, way: Way, all: &[Tokens]) -> Vec<Vec<f32>> {
    let mut rig = Rig::new(shape, way, all.iter().collect());
    let left = |rig: &Rig<'_>, index: usize| all[index].len - rig.done[index];
    for (index, tokens) in all.iter().enumerate() {
        rig.step(&[(index, 1 + 97 * index % tokens.len)]);
    }
    loop {
        let chunks = [1, 61, 1, 8, 300, 2];
        let parts: Vec<(usize, usize)> = (0..all.len())
            .map(|index| (index, left(&rig, index).min(chunks[index % chunks.len()])))
            .filter(|part| part.1 > 0)
            .collect();
        if parts.is_empty() {
            return rig.out;
        }
        rig.step(&parts);
    }
}

#[test]
fn a_sequence_does_not_see_its_batch() {
    let half = KvType::Float(DType::F16);
    let (pairs, bytes, words) = (KvType::Bf16Pairs, KvType::Int8, KvType::Int16);
    for (window, dtype) in [
        (None, half),
        (Some(300), half),
        (Some(300), bytes),
        (None, words),
        (Some(300), words),
        (None, pairs),
        (Some(301), pairs),
    ] {
        let shape = Shape { window, dtype, ..Shape::new(6, 2, 80) };
        let all: Vec<Tokens> = [300, 700, 257, 90, 1000, 33]
            .iter()
            .enumerate()
            .map(|(index, len)| Tokens::new(&shape, *len, 50 + index as u64))
            .collect();
        let alone: Vec<Vec<f32>> = all.iter().map(|tokens| run(shape, Way::plain(), tokens, WHOLE)).collect();
        for isa in levels(dtype) {
            for (threads, block_size) in [(1, 32), (2, 16), (3, 64)] {
                let way = Way { isa, threads, block_size, seed: 9, ..Way::plain() };
                for (index, got) in mixed(shape, way, &all).iter().enumerate() {
                    assert_same(got, &alone[index], (way, index));
                }
            }
        }
    }
}

#[test]
fn many_sequences_take_several_rounds() {
    let shape = Shape::new(64, 8, 16);
    let all: Vec<Tokens> = (0..40).map(|index| Tokens::new(&shape, 800 + index, index as u64)).collect();
    for isa in vector_levels(shape.dtype) {
        let way = Way { isa, threads: 2, ..Way::plain() };
        let mut rig = Rig::new(shape, way, all.iter().collect());
        for (index, tokens) in all.iter().enumerate() {
            rig.step(&[(index, tokens.len - 1)]);
        }
        rig.step(&(0..all.len()).map(|index| (index, 1)).collect::<Vec<_>>());
        for (index, tokens) in all.iter().enumerate().step_by(13) {
            let alone = run(shape, Way { threads: 1, ..way }, tokens, WHOLE);
            assert_same(&rig.out[index], &alone, index);
        }
    }
}

/// The guard of the guards: cutting keys by what is in the batch must be noticed.
#[test]
fn a_split_that_depends_on_the_batch_is_noticed() {
    let shape = Shape::new(6, 2, 80);
    let all: Vec<Tokens> = (0..6).map(|index| Tokens::new(&shape, 400, index)).collect();
    for isa in levels(shape.dtype) {
        let by_batch = |count: usize| Way { isa, split: if count > 1 { 128 } else { 256 }, ..Way::plain() };
        let alone = run(shape, by_batch(1), &all[1], WHOLE);
        let together = mixed(shape, by_batch(all.len()), &all);
        assert_ne!(bits(&together[1]), bits(&alone), "{isa}");
        assert_same(&mixed(shape, by_batch(1), &all)[1], &alone, isa);
    }
}

#[test]
fn copied_blocks_give_the_same_result() {
    for dtype in TYPES {
        let shape = Shape { dtype, ..Shape::new(4, 2, 24) };
        let tokens = Tokens::new(&shape, 200, 5);
        let want = run(shape, Way::plain(), &tokens, WHOLE);
        let way = Way { isa: levels(dtype).last().unwrap(), threads: 2, ..Way::plain() };
        let mut rig = Rig::new(shape, way, vec![&tokens]);
        rig.step(&[(0, 150)]);
        let used = rig.tables[0].clone();
        let spare: Vec<i32> =
            (0..rig.pool.num_blocks() as i32).filter(|block| !used.contains(block)).collect();
        let copies = [(used[4], spare[0]), (used[0], spare[1])];
        rig.workers.run(|worker| copy_blocks(worker, &rig.pool, &copies)).unwrap();
        rig.tables[0][4] = spare[0];
        rig.tables[0][0] = spare[1];
        rig.poison(&[used[4], used[0]]);
        rig.step(&[(0, 50)]);
        assert_same(&rig.out[0], &want, dtype);
    }
}

/// With one key the result is that value, so this reads the cache back.
#[test]
fn values_are_rounded_to_nearest_even() {
    let special =
        [1.0, -2.5, 65504.0, 1e-8, 6e-8, 1.000_488_3, 1.001_464_8, 1.003_906_3, 1.011_718_8, 3.3e-41];
    for dtype in [DType::F32, DType::F16, DType::Bf16] {
        for dim in [16, 33] {
            let shape = Shape { dtype: dtype.into(), ..Shape::new(1, 1, dim) };
            let mut tokens = Tokens::new(&shape, 1, 8);
            for (value, special) in tokens.v.iter_mut().zip(special) {
                *value = special;
            }
            let want: Vec<f32> = tokens.v.iter().map(|v| 0.0 + rounded(dtype, *v)).collect();
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
                let got = run(shape, Way { isa, ..Way::plain() }, &tokens, 1);
                assert_same(&got, &want, (isa, dtype, dim));
            }
        }
    }
}

#[test]
fn slot_minus_one_stores_nothing() {
    let pool = KvPool::zeroed(1, 1, 16, 1, 16, DType::F32).unwrap();
    let scratch = AttentionScratch::new(AttentionScratchSpec {
        max_tokens: 2,
        max_seqs: 1,
        max_len: 16,
        num_heads: 1,
        num_kv_heads: 1,
        head_dim: 16,
        num_workers: 1,
    })
    .unwrap();
    assert!(pool.bytes() >= 2 * 16 * 16 * 4 && scratch.bytes() > 0);
    let (first, second) = (vec![1f32; 16], vec![2f32; 16]);
    let mut out = vec![f32::NAN; 16];
    let rows = RowsMut::new(&mut out, 16);
    let group = GroupView { block_tables: &[0], max_blocks: 1, slot_mapping: &[0], block_copies: &[] };
    let step = StepView {
        token_ids: &[],
        positions: &[0],
        cu_seqlens_q: &[0, 1],
        seq_lens: &[1],
        logit_rows: &[],
        groups: &[group],
    };
    let args = AttentionArgs {
        pool: &pool,
        layer: 0,
        num_heads: 1,
        softmax_scale: 1.0,
        window: None,
        step: &step,
        group: &group,
    };
    let isa = Isa::detect();
    Pool::new(1)
        .unwrap()
        .run(|worker| {
            kv_store(worker, isa, &pool, 0, Rows::new(&first, 16), Rows::new(&first, 16), &[0]);
            kv_store(worker, isa, &pool, 0, Rows::new(&second, 16), Rows::new(&second, 16), &[-1]);
            attention_with_split(worker, isa, &args, Rows::new(&first, 16), rows, &scratch, 256);
        })
        .unwrap();
    assert_eq!(out, first);
}

/// A later token's infinite value must not reach earlier rows.
#[test]
fn rows_do_not_see_broken_values_of_later_tokens() {
    for dtype in [KvType::Float(DType::F16), KvType::Int8, KvType::Int16, KvType::Bf16Pairs] {
        broken_values(Shape { dtype, ..Shape::new(4, 2, 64) });
    }
}

fn broken_values(shape: Shape) {
    let tokens = Tokens::new(&shape, 300, 2);
    let mut broken = Tokens::new(&shape, 300, 2);
    let narrow = shape.kv_heads * shape.dim;
    broken.v[290 * narrow..].fill(f32::INFINITY);
    broken.k[290 * narrow..].fill(f32::NAN);
    for isa in levels(shape.dtype) {
        let way = Way { isa, ..Way::plain() };
        let (want, got) = (run(shape, way, &tokens, WHOLE), run(shape, way, &broken, WHOLE));
        let seen = 290 * shape.heads * shape.dim;
        assert_same(&got[..seen], &want[..seen], isa);
        assert!(got[seen..].iter().all(|x| x.is_nan()));
    }
}

/// A token with one element that is not finite breaks the whole head of what sees it, with integers.
#[test]
fn one_broken_element_breaks_its_head_of_integers() {
    let cases = INTEGERS.into_iter().flat_map(|dtype| [(dtype, true, 5), (dtype, false, 23)]);
    for (dtype, broken_k, at) in cases {
        let shape = Shape { dtype, ..Shape::new(4, 2, 24) };
        let mut tokens = Tokens::new(&shape, 40, 3);
        let narrow = shape.kv_heads * shape.dim;
        let broken = if broken_k { &mut tokens.k } else { &mut tokens.v };
        broken[30 * narrow + at] = f32::INFINITY;
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            let got = run(shape, Way { isa, ..Way::plain() }, &tokens, WHOLE);
            for (index, x) in got.iter().enumerate() {
                let (row, head) = (index / (4 * 24), index / 24 % 4);
                assert_eq!(x.is_nan(), row >= 30 && head < 2, "{isa}: row {row}, head {head}: {x}");
            }
        }
    }
}

/// Zero keys, values and queries, and values too small to count.
#[test]
fn zeros_give_zeros_with_integers() {
    for (dtype, value) in
        INTEGERS.into_iter().flat_map(|dtype| [0.0, 1e-40, 1e-33].map(|value| (dtype, value)))
    {
        let shape = Shape { dtype, ..Shape::new(2, 1, 24) };
        let mut tokens = Tokens::new(&shape, 40, 3);
        for x in [&mut tokens.q, &mut tokens.k, &mut tokens.v] {
            x.fill(value);
        }
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            let got = run(shape, Way { isa, ..Way::plain() }, &tokens, 7);
            assert!(got.iter().all(|x| *x == 0.0), "{isa} {value:e}: {got:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    /// Any shape, and sequences in any pieces, at every level: the bits that the definition gives each of them alone.
    #[test]
    fn awkward_shapes(
        (kv_heads, group, dim) in (1usize..4, 1usize..6, 1usize..130),
        kind in 0..TYPES.len(),
        window in prop::option::of(1usize..300),
        lens in prop::collection::vec(1usize..280, 1..4),
        (threads, chunk) in (1usize..4, 1usize..300),
        block_size in prop::sample::select(vec![16usize, 32, 64, 128, 256]),
        seed in 1u64..1000,
    ) {
        let dim = if TYPES[kind] == KvType::Bf16Pairs { dim.next_multiple_of(2) } else { dim };
        let shape = Shape { dtype: TYPES[kind], window, ..Shape::new(kv_heads * group, kv_heads, dim) };
        let all: Vec<Tokens> = (seed..).zip(&lens).map(|(seed, len)| Tokens::new(&shape, *len, seed)).collect();
        let alone: Vec<Vec<f32>> = all.iter().map(|tokens| run(shape, Way::plain(), tokens, WHOLE)).collect();
        for isa in levels(shape.dtype) {
            let way = Way { isa, threads, block_size, seed, ..Way::plain() };
            for (got, want) in Rig::new(shape, way, all.iter().collect()).run(chunk).iter().zip(&alone) {
                assert_same(got, want, (way, shape));
            }
        }
    }
}
