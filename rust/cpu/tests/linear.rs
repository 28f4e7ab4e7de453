//! Float matmul: every form and level against a plain definition, bit for bit where that is the contract.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

use proptest::prelude::*;
use pyrite_cpu::isa::Isa;
use pyrite_cpu::ops::linear::{LinearScratch, PackedMatrix, linear};
use pyrite_cpu::pool::Pool;
use pyrite_cpu::tensor::{DType, Rows, RowsMut};

const SPAN: usize = 512;
const ALL_TYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

fn levels() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_supported())
}

/// Reproducible values in about -1..1, some of them exactly zero or tiny.
fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let value = ((state >> 40) as f32 / (1u32 << 23) as f32) - 1.0;
            match state >> 33 & 31 {
                0 => 0.0,
                1 => value * 1e-6,
                _ => value,
            }
        })
        .collect()
}

fn encode(values: &[f32], dtype: DType) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * dtype.size()];
    for (index, &value) in values.iter().enumerate() {
        dtype.set(&mut bytes, index, value);
    }
    bytes
}

struct Case {
    rows: usize,
    cols: usize,
    dtype: DType,
    weight: PackedMatrix,
    bytes: Vec<u8>,
    bias: Vec<f32>,
}

impl Case {
    fn new(rows: usize, cols: usize, dtype: DType, seed: u64) -> Self {
        let bytes = encode(&values(rows * cols, seed), dtype);
        let weight = PackedMatrix::zeroed(rows, cols, dtype).unwrap();
        // SAFETY: one thread, nobody reads yet.
        unsafe { weight.pack_rows(0, &bytes, dtype) };
        Self { rows, cols, dtype, weight, bytes, bias: values(rows, seed + 1) }
    }

    /// The definition for f32 chains.
    fn expected(&self, x: &[f32], bias: bool) -> Vec<f32> {
        let mut out = Vec::new();
        for token in x.chunks_exact(self.cols) {
            for row in 0..self.rows {
                let mut total = None;
                for first in (0..self.cols).step_by(SPAN) {
                    let mut acc = 0f32;
                    for (col, &x) in token.iter().enumerate().skip(first).take(SPAN) {
                        acc = self.dtype.get(&self.bytes, row * self.cols + col).mul_add(x, acc);
                    }
                    total = Some(total.map_or(acc, |total| total + acc));
                }
                out.push(total.unwrap() + if bias { self.bias[row] } else { -0.0 });
            }
        }
        out
    }

    /// Run on strided, NaN-padded views; checks that padding is left alone and returns `[tokens, rows]`.
    fn run(&self, pool: &mut Pool, isa: Isa, x: &[f32], bias: bool) -> Vec<f32> {
        let tokens = x.len() / self.cols;
        let (x_stride, out_stride) = (self.cols + 3, self.rows + 5);
        let mut padded = vec![f32::NAN; tokens * x_stride];
        for (to, from) in padded.chunks_exact_mut(x_stride).zip(x.chunks_exact(self.cols)) {
            to[..self.cols].copy_from_slice(from);
        }
        let mut out = vec![f32::NAN; tokens * out_stride];
        let scratch = LinearScratch::new(tokens, self.cols, pool.count()).unwrap();
        // SAFETY: both buffers outlive the call and have `tokens` rows of these strides.
        let (x, view) = unsafe {
            let x = Rows::from_raw(padded.as_ptr(), tokens, self.cols, x_stride);
            (x, RowsMut::from_raw(out.as_mut_ptr(), tokens, self.rows, out_stride))
        };
        let bias = bias.then_some(&self.bias[..]);
        pool.run(|worker| linear(worker, isa, x, &self.weight, bias, view, &scratch)).unwrap();
        let mut result = Vec::new();
        for row in out.chunks_exact(out_stride) {
            result.extend_from_slice(&row[..self.rows]);
            assert!(row[self.rows..].iter().all(|value| value.is_nan()), "padding was written");
        }
        result
    }
}

fn assert_bits(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len());
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!(got.to_bits(), expected.to_bits(), "{what}: element {at}: {got} is not {expected}");
    }
}

/// Whether the level rounds activations: its own forms are compared with each other.
fn rounds(isa: Isa, dtype: DType) -> bool {
    isa == Isa::Avx512Bf16 && dtype == DType::Bf16
}

/// f64 sum over inputs rounded to bf16, and the sum of magnitudes that scales its error.
fn emulated(case: &Case, token: &[f32], row: usize) -> (f64, f64) {
    let (mut sum, mut scale) = (0f64, 0f64);
    for (col, &x) in token.iter().enumerate() {
        let x = half::bf16::from_f32(x).to_f64();
        let product = f64::from(case.dtype.get(&case.bytes, row * case.cols + col)) * x;
        sum += product;
        scale += product.abs();
    }
    (sum, scale)
}

fn check(case: &Case, tokens: usize, bias: bool, pools: &mut [Pool]) {
    let x = values(tokens * case.cols, 77);
    let expected = case.expected(&x, bias);
    for isa in levels() {
        let what = format!("{isa} {:?} {}x{} M={tokens}", case.dtype, case.rows, case.cols);
        let first = case.run(&mut pools[0], isa, &x, bias);
        if rounds(isa, case.dtype) {
            for (at, &got) in first.iter().enumerate() {
                let (token, row) = (at / case.rows, at % case.rows);
                let (sum, scale) = emulated(case, &x[token * case.cols..][..case.cols], row);
                let added = if bias { case.bias[row] } else { 0.0 };
                let error = (f64::from(got) - sum - f64::from(added)).abs();
                assert!(error <= 1e-5 * scale + 1e-6, "{what}: element {at}: {got} is not {sum}");
            }
        } else {
            assert_bits(&first, &expected, &what);
        }
        for pool in &mut pools[1..] {
            assert_bits(&case.run(pool, isa, &x, bias), &first, &format!("{what}, {} workers", pool.count()));
        }
        // Each row alone gives the bits that it has in company.
        for token in [0, tokens / 2, tokens - 1] {
            let alone = case.run(&mut pools[0], isa, &x[token * case.cols..][..case.cols], bias);
            assert_bits(
                &alone,
                &first[token * case.rows..][..case.rows],
                &format!("{what}, row {token} alone"),
            );
        }
    }
}

fn pools() -> Vec<Pool> {
    [1, 2, 5].into_iter().map(|count| Pool::new(count).unwrap()).collect()
}

#[test]
fn all_forms_levels_and_worker_counts_agree() {
    let mut pools = pools();
    for (rows, cols, tokens) in [
        (1, 1, 1),
        (31, 24, 2),
        (32, 512, 12),
        (33, 100, 5),
        (33, 513, 13),
        (64, 1024, 1),
        (160, 511, 3),
        (333, 1000, 64),
        (96, 1025, 37),
        (321, 1536, 1),
    ] {
        for dtype in ALL_TYPES {
            check(&Case::new(rows, cols, dtype, 5), tokens, tokens % 2 == 1, &mut pools);
        }
    }
}

#[test]
fn many_rows_agree_with_one() {
    let mut pools = pools();
    for dtype in ALL_TYPES {
        check(&Case::new(70, 600, dtype, 9), 512, true, &mut pools);
        check(&Case::new(520, 130, dtype, 10), 259, false, &mut pools);
        check(&Case::new(1400, 33, dtype, 11), 261, true, &mut pools);
        check(&Case::new(33, 513, dtype, 12), 97, false, &mut pools);
    }
}

#[test]
fn rows_come_back_as_they_went_in() {
    for source in ALL_TYPES {
        for dtype in ALL_TYPES {
            let (rows, cols) = (67, 101);
            let bytes = encode(&values(rows * cols, 3), source);
            let weight = PackedMatrix::zeroed(rows, cols, dtype).unwrap();
            // SAFETY: one thread.
            unsafe {
                weight.pack_rows(32, &bytes[32 * cols * source.size()..], source);
                weight.pack_rows(0, &bytes[..32 * cols * source.size()], source);
            }
            let mut row = vec![f32::NAN; cols];
            for index in 0..rows {
                weight.unpack_row(index, &mut row);
                for (col, got) in row.iter().enumerate() {
                    let mut rounded = [0; 4];
                    dtype.set(&mut rounded, 0, source.get(&bytes, index * cols + col));
                    assert_eq!(got.to_bits(), dtype.get(&rounded, 0).to_bits(), "{source:?} to {dtype:?}");
                }
            }
        }
    }
}

#[test]
fn no_rows_is_no_work_and_wrong_shapes_are_refused() {
    let case = Case::new(40, 64, DType::F32, 1);
    let scratch = LinearScratch::new(1, 64, 1).unwrap();
    let mut pool = Pool::new(1).unwrap();
    let x = values(3 * 64, 2);
    let mut out = vec![0f32; 3 * 40];
    let out = RowsMut::new(&mut out, 40);
    let refused =
        pool.run(|worker| linear(worker, Isa::Scalar, Rows::new(&x, 64), &case.weight, None, out, &scratch));
    assert!(refused.is_err(), "three rows do not fit a scratch for one");
    let refused =
        pool.run(|worker| linear(worker, Isa::Scalar, Rows::new(&x, 32), &case.weight, None, out, &scratch));
    assert!(refused.is_err(), "columns disagree");
    // SAFETY: no rows are read or written.
    let (none, nothing) =
        unsafe { (Rows::from_raw(x.as_ptr(), 0, 64, 64), RowsMut::from_raw(out.as_ptr(), 0, 40, 40)) };
    pool.run(|worker| linear(worker, Isa::Scalar, none, &case.weight, None, nothing, &scratch)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn awkward_shapes(
        rows in prop::sample::select(vec![1usize, 31, 33, 65, 130, 333]),
        cols in prop::sample::select(vec![1usize, 2, 24, 31, 100, 511, 513, 1000]),
        tokens in prop::sample::select(vec![1usize, 2, 5, 11, 13, 40, 64]),
        dtype in prop::sample::select(ALL_TYPES.to_vec()),
        bias: bool,
        seed in 0u64..1000,
    ) {
        let mut pools: Vec<Pool> = [1, 3].into_iter().map(|count| Pool::new(count).unwrap()).collect();
        check(&Case::new(rows, cols, dtype, seed), tokens, bias, &mut pools);
    }
}
