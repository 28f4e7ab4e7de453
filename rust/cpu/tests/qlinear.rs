//! Quantizer and integer matmul against plain definitions and the committed golden bytes, bit for bit.

#![allow(clippy::unwrap_used, reason = "a failed set-up fails the test")]

mod common;

use std::collections::HashMap;

use common::{TempFolder, Tensors, assert_same_bits, numbers, write_safetensors};
use proptest::prelude::*;
use pyrite_cpu::checkpoint::Checkpoint;
use pyrite_cpu::error::CpuError;
use pyrite_cpu::executor::{Executor, ExecutorConfig};
use pyrite_cpu::isa::Isa;
use pyrite_cpu::ops::elementwise::{add, glu};
use pyrite_cpu::ops::linear::LinearScratch;
use pyrite_cpu::ops::norm::{Norm, rms_norm};
use pyrite_cpu::ops::qlinear::{QLinear, QuantizedMatrix, Then, prefetch_start, qlinear, qlinear_fused};
use pyrite_cpu::pool::Pool;
use pyrite_cpu::program::Program;
use pyrite_cpu::quant::{QuantFormat, quantize_row, quantize_tensors};
use pyrite_cpu::step::StepView;
use pyrite_cpu::tensor::{DType, Rows, RowsMut};
use serde_json::{Value, json};

fn levels() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_supported())
}

fn formats() -> Vec<QuantFormat> {
    let mut all = Vec::new();
    for bits in [4, 8] {
        for group_size in [32, 64, 128] {
            for symmetric in [false, true] {
                all.push(QuantFormat::new(bits, group_size, symmetric));
            }
        }
    }
    all.push(QuantFormat::SHARED);
    all
}

/// A matrix in the canonical form.
#[derive(Clone, Debug, PartialEq)]
struct Canonical {
    rows: usize,
    cols: usize,
    format: QuantFormat,
    codes: Vec<u8>,
    scales: Vec<u16>,
    /// Zeros, or multiples of shared scales.
    of_groups: Option<Vec<u8>>,
}

impl Canonical {
    fn quantize(isa: Isa, values: &[f32], cols: usize, format: QuantFormat) -> Self {
        let (rows, groups) = (values.len() / cols, cols / format.group_size);
        let num_scales = format.num_scales(cols);
        let (mut codes, mut scales, mut of_groups) =
            (vec![0; rows * cols], vec![0; rows * num_scales], vec![0; rows * groups]);
        for row in 0..rows {
            let of_cols = row * cols..(row + 1) * cols;
            let (values, codes) = (&values[of_cols.clone()], &mut codes[of_cols]);
            let scales = &mut scales[row * num_scales..][..num_scales];
            quantize_row(isa, values, format, codes, scales, &mut of_groups[row * groups..][..groups]);
        }
        Self { rows, cols, format, codes, scales, of_groups: format.has_group_bytes().then_some(of_groups) }
    }

    /// Any codes, scales, zeros and multiples, the extremes among them.
    fn arbitrary(rows: usize, cols: usize, format: QuantFormat, seed: u64) -> Self {
        let most = f32::from(format.max_code());
        let code = |value: &f32| ((value * 0.6 + 0.5) * (most + 1.0)).clamp(0.0, most) as u8;
        let multiple = |value: &f32| ((value * 20.0).clamp(-15.0, 15.0) as i8).cast_unsigned();
        let groups = rows * cols / format.group_size;
        let codes = numbers(seed, rows * cols).iter().map(code).collect();
        let of_groups = numbers(seed + 1, groups);
        let of_groups = match format.is_shared() {
            true => Some(of_groups.iter().map(multiple).collect()),
            false => (!format.symmetric).then(|| of_groups.iter().map(code).collect()),
        };
        let scale = |value: f32| {
            // Seven significant bits, as shared scales have.
            let seven = f32::from_bits((value.abs() * 0.1 + 1e-5).to_bits() >> 17 << 17);
            half::f16::from_f32(if format.is_shared() { seven } else { value.abs() * 0.1 }).to_bits()
        };
        let scales = numbers(seed + 2, rows * format.num_scales(cols)).into_iter().map(scale).collect();
        Self { rows, cols, format, codes, scales, of_groups }
    }

    fn pack(&self) -> QuantizedMatrix {
        let Self { rows, cols, format, codes, scales, of_groups } = self;
        QuantizedMatrix::from_canonical(*rows, *cols, *format, codes, scales, of_groups.as_deref()).unwrap()
    }

    /// Scale, multiple of it and zero of a group.
    fn group(&self, row: usize, group: usize) -> (f32, i32, i32) {
        let format = self.format;
        let scale = self.scales[row * format.num_scales(self.cols) + group / format.groups_per_scale];
        let scale = half::f16::from_bits(scale).to_f32();
        let byte = self.of_groups.as_ref().map(|bytes| bytes[row * (self.cols / format.group_size) + group]);
        match (byte, format.is_shared()) {
            (Some(multiple), true) => (scale, i32::from(multiple.cast_signed()), i32::from(format.middle())),
            (zero, _) => (scale, 1, i32::from(zero.unwrap_or(format.middle()))),
        }
    }

    fn dequantized(&self, row: usize) -> Vec<f32> {
        let one = |col: usize| {
            let (scale, multiple, zero) = self.group(row, col / self.format.group_size);
            (i32::from(self.codes[row * self.cols + col]) - zero) as f32 * (multiple as f32 * scale)
        };
        (0..self.cols).map(one).collect()
    }

    /// A scale for each group, as `quantize_tensors` gives them.
    fn with_group_scales(mut self) -> Self {
        if self.format.is_shared() {
            let groups = self.cols / self.format.group_size;
            let one = |at: usize| {
                let (scale, multiple, _) = self.group(at / groups, at % groups);
                let product = half::f16::from_f32(scale * multiple as f32);
                assert_eq!(product.to_f32(), scale * multiple as f32, "not exact");
                product.to_bits()
            };
            (self.scales, self.of_groups) = ((0..self.rows * groups).map(one).collect(), None);
        }
        self
    }

    /// The definition of the matmul, from the canonical form.
    fn matmul(&self, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let (span, group_size) = (self.format.span(), self.format.group_size);
        let mut out = Vec::new();
        for token in x.chunks(self.cols) {
            let spans: Vec<_> = token.chunks(span).map(quantize_span).collect();
            for row in 0..self.rows {
                let mut acc = 0f32;
                for (index, (x_scale, q)) in spans.iter().enumerate() {
                    let first = index * span;
                    let product = |(at, q): (usize, &i8)| {
                        let (_, multiple, zero) = self.group(row, (first + at) / group_size);
                        multiple
                            * (i32::from(self.codes[row * self.cols + first + at]) - zero)
                            * i32::from(*q)
                    };
                    let sum: i32 = q.iter().enumerate().map(product).sum();
                    let (scale, ..) = self.group(row, first / group_size);
                    acc = (sum as f32).mul_add(x_scale * scale, acc);
                }
                out.push(bias.map_or(acc, |bias| acc + bias[row]));
            }
        }
        out
    }
}

fn quantize_span(x: &[f32]) -> (f32, Vec<i8>) {
    let scale = x.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
    let one =
        |x: &f32| if scale == 0.0 { 0 } else { (x / scale).round_ties_even().clamp(-127.0, 127.0) as i8 };
    (scale, x.iter().map(one).collect())
}

/// Run on strided, NaN-padded views; checks that padding is left alone and returns `[tokens, rows]`.
fn run(pool: &mut Pool, isa: Isa, x: &[f32], weight: &QuantizedMatrix, bias: Option<&[f32]>) -> Vec<f32> {
    let (cols, rows) = (weight.cols(), weight.rows());
    let tokens = x.len() / cols;
    let (x_stride, out_stride) = (cols + 3, rows + 5);
    let mut wide = vec![f32::NAN; tokens * x_stride];
    for (to, from) in wide.chunks_mut(x_stride).zip(x.chunks(cols)) {
        to[..cols].copy_from_slice(from);
    }
    let mut out = vec![f32::NAN; tokens * out_stride];
    let scratch = LinearScratch::new(tokens, cols, pool.count()).unwrap();
    // SAFETY: both vectors outlive the call, and only the workers write.
    let (x, to) = unsafe {
        (
            Rows::from_raw(wide.as_ptr(), tokens, cols, x_stride),
            RowsMut::from_raw(out.as_mut_ptr(), tokens, rows, out_stride),
        )
    };
    pool.run(|worker| qlinear(worker, isa, x, weight, bias, to, &scratch)).unwrap();
    let mut result = Vec::new();
    for row in out.chunks(out_stride) {
        assert!(row[rows..].iter().all(|value| value.is_nan()), "written past the row");
        result.extend_from_slice(&row[..rows]);
    }
    result
}

fn pools() -> Vec<Pool> {
    [1, 2, 5].into_iter().map(|count| Pool::new(count).unwrap()).collect()
}

fn check(matrix: &Canonical, x: &[f32], pools: &mut [Pool], with_bias: bool) {
    let bias = numbers(99, matrix.rows);
    let bias = with_bias.then_some(&bias[..]);
    let (weight, expected) = (matrix.pack(), matrix.matmul(x, bias));
    let tokens = x.len() / matrix.cols;
    for isa in levels() {
        let what = format!("{isa} {:?} {}x{} M={tokens}", matrix.format, matrix.rows, matrix.cols);
        for pool in &mut *pools {
            let what = format!("{what}, {} workers", pool.count());
            assert_same_bits(&run(pool, isa, x, &weight, bias), &expected, &what);
        }
        for token in [0, tokens / 2, tokens - 1] {
            let alone = run(&mut pools[0], isa, &x[token * matrix.cols..][..matrix.cols], &weight, bias);
            let in_company = &expected[token * matrix.rows..][..matrix.rows];
            assert_same_bits(&alone, in_company, &format!("{what}, row {token} alone"));
        }
    }
}

/// The lines of `tests/quant/golden.txt`.
fn golden() -> HashMap<String, Vec<u8>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/quant/golden.txt");
    let text = std::fs::read_to_string(path).unwrap();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    let line = |line: &str| {
        let (key, hex) = line.split_once(' ').unwrap();
        (key.to_owned(), hex.as_bytes().chunks(2).map(byte).collect())
    };
    text.lines().map(line).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / 4];
    DType::F32.widen(bytes, &mut values);
    values
}

#[test]
fn every_level_gives_the_golden_bytes() {
    let golden = golden();
    let (weight, x, bias) = (floats(&golden["weight"]), floats(&golden["x"]), floats(&golden["bias"]));
    let mut pool = Pool::new(1).unwrap();
    let mut found = 0;
    for (key, codes) in golden.iter().filter(|(key, _)| key.ends_with(".codes")) {
        let name = key.trim_end_matches(".codes");
        let bits = if name.starts_with("int4") { 4 } else { 8 };
        let group_size = if name.contains("_g32") {
            32
        } else if name.contains("_g128") {
            128
        } else {
            64
        };
        let of_groups = ["zeros", "multiples"].iter().find_map(|kind| golden.get(&format!("{name}.{kind}")));
        let format = match name.contains("x4") {
            true => QuantFormat::SHARED,
            false => QuantFormat::new(bits, group_size, of_groups.is_none()),
        };
        for isa in levels() {
            let matrix = Canonical::quantize(isa, &weight, 256, format);
            assert!(matrix.codes == *codes, "codes of {name}, {isa}");
            let scales: Vec<u8> = matrix.scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
            assert!(scales == golden[&format!("{name}.scales")], "scales of {name}, {isa}");
            assert!(matrix.of_groups.as_ref() == of_groups, "zeros or multiples of {name}, {isa}");
            let got = run(&mut pool, isa, &x, &matrix.pack(), Some(&bias));
            let expected = floats(&golden[&format!("{name}.matmul")]);
            assert_same_bits(&got, &expected, &format!("matmul of {name}, {isa}"));
        }
        found += 1;
    }
    assert!(found >= 11, "only {found} schemes in the golden file");
}

#[test]
fn the_largest_sums_of_codes_and_activations_are_exact() {
    let mut pools = pools();
    for format in formats() {
        let (rows, cols) = (40, 256);
        for zero in [0, format.max_code()] {
            let mut matrix = Canonical::arbitrary(rows, cols, format, 3);
            matrix.codes.fill(format.max_code() - zero);
            if let Some(bytes) = &mut matrix.of_groups {
                bytes.fill(if format.is_shared() { 15 } else { zero });
                bytes.iter_mut().step_by(3).filter(|_| format.is_shared()).for_each(|byte| *byte = 241);
            }
            for tokens in [3, 27] {
                // Every activation of a token becomes 127, or -127, or they alternate.
                let is_positive = |at: usize| match at / cols % 3 {
                    0 => true,
                    1 => false,
                    _ => at.is_multiple_of(2),
                };
                let x: Vec<f32> =
                    (0..tokens * cols).map(|at| if is_positive(at) { 2.5 } else { -2.5 }).collect();
                check(&matrix, &x, &mut pools, false);
            }
        }
    }
}

#[test]
fn all_forms_levels_and_worker_counts_agree() {
    let mut pools = pools();
    for format in formats() {
        for (rows, cols, tokens) in [
            (1, 128, 1),
            (31, 128, 2),
            (32, 512, 12),
            (65, 128, 9),
            (33, 384, 23),
            (33, 256, 5),
            (333, 384, 64),
            (70, 384, 150),
            (70, 640, 7),
            (321, 1536, 1),
            // More activations than a worker meets at once.
            (33, 1536, 401),
        ] {
            let x: Vec<f32> = numbers(77, tokens * cols);
            check(&Canonical::arbitrary(rows, cols, format, 5), &x, &mut pools, tokens % 2 == 1);
        }
    }
}

#[test]
fn outputs_of_more_than_a_cache_are_the_same() {
    // More than a MiB of outputs, the last panel one row.
    let (rows, tokens) = (15_457, 17);
    for format in [QuantFormat::SHARED, QuantFormat::new(4, 32, true), QuantFormat::new(8, 32, false)] {
        let x: Vec<f32> = numbers(78, tokens * 32);
        check(&Canonical::arbitrary(rows, 32, format, 5), &x, &mut pools(), true);
    }
}

/// The ops that `qlinear_fused` takes along, one after another.
fn unfused(
    pool: &mut Pool,
    isa: Isa,
    x: &[f32],
    norm: Option<Norm<'_>>,
    weight: &QuantizedMatrix,
    bias: Option<&[f32]>,
    then: Then,
    out: &mut [f32],
) {
    let mut x = x.to_vec();
    if let Some(norm) = norm {
        let before = x.clone();
        for (from, to) in before.chunks(weight.cols()).zip(x.chunks_mut(weight.cols())) {
            rms_norm(isa, from, norm, to);
        }
    }
    let y = run(pool, isa, &x, weight, bias);
    let half = weight.rows() / 2;
    match then {
        Then::Store => out.copy_from_slice(&y),
        Then::Add => add(isa, out, &y),
        Then::Glu => {
            for (y, out) in y.chunks(2 * half).zip(out.chunks_mut(half)) {
                glu(isa, &y[..half], &y[half..], out);
            }
        }
    }
}

#[test]
fn what_rides_along_changes_no_bit() {
    let mut pools = pools();
    let format = |bits, group_size| match (bits, group_size) {
        (4, 32) => QuantFormat::SHARED,
        _ => QuantFormat::new(bits, group_size, group_size == 64),
    };
    let shapes = [(64, 128), (192, 256), (640, 384), (2048, 128), (95, 128)];
    for (case, (rows, cols)) in shapes.into_iter().enumerate() {
        let matrix =
            Canonical::arbitrary(rows, cols, format(if case % 2 == 0 { 4 } else { 8 }, 32 << (case % 3)), 6);
        let (weight, factors, bias) = (matrix.pack(), numbers(1, cols), numbers(2, rows));
        let norm = Norm { weight: Some(&factors), eps: 1e-6, weight_offset: 1.0, scale: 1.0 };
        for (tokens, then) in [1, 2, 7, 28, 40, 133]
            .into_iter()
            .flat_map(|t| [Then::Store, Then::Add, Then::Glu].map(|n| (t, n)))
        {
            if then == Then::Glu && !QuantizedMatrix::has_whole_halves(rows) {
                continue;
            }
            let width = if then == Then::Glu { rows / 2 } else { rows };
            let (x, before) = (numbers(3, tokens * cols), numbers(4, tokens * width));
            let norm = (tokens != 2).then_some(norm);
            let bias = (tokens % 7 != 0).then_some(&bias[..]);
            for isa in levels() {
                let mut expected = before.clone();
                unfused(&mut pools[0], isa, &x, norm, &weight, bias, then, &mut expected);
                for pool in &mut pools {
                    let mut got = before.clone();
                    let scratch = LinearScratch::new(tokens, cols, pool.count()).unwrap();
                    let out = RowsMut::new(&mut got, width);
                    let x = Rows::new(&x, cols);
                    let what =
                        QLinear { x, norm, weight: &weight, bias, then, out, next: None, before: None };
                    pool.run(|worker| {
                        let at_end = || prefetch_start(worker, isa, &weight, then, tokens);
                        qlinear_fused(worker, isa, &what, &scratch, at_end);
                    })
                    .unwrap();
                    let what = format!("{isa} {rows}x{cols} M={tokens} {then:?}, {} workers", pool.count());
                    assert_same_bits(&got, &expected, &what);
                }
            }
        }
    }
}

#[test]
fn activations_that_are_handed_over_change_no_bit() {
    let mut pools = pools();
    let (cols, rows) = (128, 64);
    for (case, half) in [32, 128, 160, 448].into_iter().enumerate() {
        let format =
            [QuantFormat::SHARED, QuantFormat::new(8, 64, true), QuantFormat::new(4, 32, false)][case % 3];
        let first = Canonical::arbitrary(2 * half, cols, format, 6).pack();
        for (of_second, tokens) in [QuantFormat::SHARED, QuantFormat::new(8, 32, true)]
            .into_iter()
            .flat_map(|format| [1, 16, 25, 97, 133].map(|tokens| (format, tokens)))
        {
            let second = Canonical::arbitrary(rows, half, of_second, 7).pack();
            let (x, before, bias) =
                (numbers(3, tokens * cols), numbers(4, tokens * rows), numbers(2, 2 * half));
            let bias = (tokens != 25).then_some(&bias[..]);
            for isa in levels() {
                let (mut between, mut expected) = (vec![0.0; tokens * half], before.clone());
                unfused(&mut pools[0], isa, &x, None, &first, bias, Then::Glu, &mut between);
                unfused(&mut pools[0], isa, &between, None, &second, None, Then::Add, &mut expected);
                for pool in &mut pools {
                    let (mut between, mut got) = (vec![0.0; tokens * half], before.clone());
                    let scratch = LinearScratch::new(tokens, cols.max(half), pool.count()).unwrap();
                    let (out, read) = (RowsMut::new(&mut got, rows), between.as_mut_ptr());
                    // SAFETY: the vector outlives both; the first matmul is over when the second reads it.
                    let (written, read) = unsafe {
                        (
                            RowsMut::from_raw(read, tokens, half, half),
                            Rows::from_raw(read, tokens, half, half),
                        )
                    };
                    pool.run(|worker| {
                        let (x, then) = (Rows::new(&x, cols), Then::Glu);
                        let (norm, next) = (None, Some(&second));
                        let what =
                            QLinear { x, norm, weight: &first, bias, then, out: written, next, before: None };
                        qlinear_fused(worker, isa, &what, &scratch, || {});
                        let (x, then, before) = (read, Then::Add, Some(&first));
                        let what =
                            QLinear { x, norm, weight: &second, bias: None, then, out, next: None, before };
                        qlinear_fused(worker, isa, &what, &scratch, || {});
                    })
                    .unwrap();
                    let what =
                        format!("{isa} {half} {format:?} {of_second:?} M={tokens}, {} workers", pool.count());
                    assert_same_bits(&got, &expected, &what);
                }
            }
        }
    }
}

#[test]
fn rows_come_back_dequantized_and_stored_in_any_pieces() {
    for format in formats() {
        let matrix = Canonical::arbitrary(67, 256, format, 8);
        let (packed, mut got) = (matrix.pack(), vec![f32::NAN; 256]);
        for row in 0..67 {
            packed.unpack_row(row, &mut got);
            assert_same_bits(&got, &matrix.dequantized(row), &format!("{format:?} row {row}"));
        }
    }
}

#[test]
fn zero_tiny_and_non_finite_activations_stay_in_their_row() {
    let mut pools = pools();
    let format = QuantFormat::new(4, 64, false);
    let matrix = Canonical::arbitrary(48, 128, format, 2);
    let mut x = numbers(4, 6 * 128);
    x[..128].fill(0.0);
    x[128..192].fill(1e-44);
    check(&matrix, &x, &mut pools, true);
    let expected = matrix.matmul(&x, None);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        x[3 * 128 + 70] = bad;
        for isa in levels() {
            let got = run(&mut pools[1], isa, &x, &matrix.pack(), None);
            for (token, (got, expected)) in got.chunks(48).zip(expected.chunks(48)).enumerate() {
                match token {
                    3 => assert!(got.iter().all(|value| value.is_nan()), "{isa}: {bad} is lost"),
                    _ => assert_same_bits(got, expected, &format!("{isa}, beside {bad}")),
                }
            }
        }
    }
}

#[test]
fn wrong_shapes_and_formats_are_refused() {
    let format = QuantFormat::new(4, 64, true);
    for bad in [
        QuantFormat { bits: 5, ..format },
        QuantFormat { group_size: 0, ..format },
        QuantFormat { group_size: 48, ..format },
        QuantFormat { groups_per_scale: 4, ..format },
        QuantFormat { groups_per_scale: 2, ..QuantFormat::SHARED },
    ] {
        assert!(matches!(QuantizedMatrix::zeroed(4, 192, bad), Err(CpuError::Config { .. })), "{bad:?}");
    }
    for cols in [0, 63, 65, 96] {
        assert!(matches!(QuantizedMatrix::zeroed(4, cols, format), Err(CpuError::Config { .. })), "{cols}");
    }
    assert!(matches!(QuantizedMatrix::zeroed(usize::MAX, 64, format), Err(CpuError::OutOfMemory { .. })));
    let matrix = Canonical::arbitrary(40, 64, format, 1).pack();
    let scratch = LinearScratch::new(1, 64, 1).unwrap();
    let mut pool = Pool::new(1).unwrap();
    let (x, mut out) = (numbers(2, 9 * 64), vec![0f32; 9 * 40]);
    let out = RowsMut::new(&mut out, 40);
    for width in [64, 32] {
        let x = Rows::new(&x, width);
        let refused = pool.run(|worker| qlinear(worker, Isa::Scalar, x, &matrix, None, out, &scratch));
        assert!(refused.is_err(), "nine rows for a scratch of one, or columns that disagree");
    }
}

/// Checkpoint tensors of every float type, one of them in two parts.
fn stored() -> Tensors {
    let mut tensors = Tensors::new();
    let kinds =
        [("a", DType::F32, 45), ("b", DType::F16, 3), ("c", DType::Bf16, 100), ("d", DType::Bf16, 64)];
    for (index, (name, dtype, rows)) in kinds.into_iter().enumerate() {
        let mut bytes = [0; 4];
        let values = numbers(50 + index as u64, rows * 128).into_iter().map(|value| {
            dtype.set(&mut bytes, 0, value * 0.1);
            dtype.get(&bytes, 0)
        });
        let values = values.collect();
        tensors.insert(name.into(), (dtype, vec![rows, 128], values));
    }
    tensors
}

fn open(tensors: &Tensors) -> (TempFolder, Checkpoint) {
    let folder = TempFolder::new();
    write_safetensors(&folder, tensors);
    let checkpoint = Checkpoint::open(&folder.0).unwrap();
    (folder, checkpoint)
}

fn from_checkpoint(
    checkpoint: &Checkpoint,
    names: &[&str],
    format: QuantFormat,
    threads: usize,
) -> Result<Canonical, CpuError> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let got = quantize_tensors(checkpoint, &names, format, &mut Pool::new(threads).unwrap())?;
    let (rows, cols, codes, scales, of_groups) = (got.rows, got.cols, got.codes, got.scales, got.zeros);
    Ok(Canonical { rows, cols, format, codes, scales, of_groups })
}

#[test]
fn checkpoint_tensors_of_every_type_are_stacked_and_quantized() {
    let tensors = stored();
    let (_folder, checkpoint) = open(&tensors);
    let values: Vec<f32> = ["c", "a", "b"].iter().flat_map(|name| tensors[*name].2.clone()).collect();
    for format in formats() {
        let expected = Canonical::quantize(Isa::Scalar, &values, 128, format).with_group_scales();
        for threads in [1, 3] {
            assert!(from_checkpoint(&checkpoint, &["c", "a", "b"], format, threads).unwrap() == expected);
        }
    }
}

#[test]
fn tensors_that_cannot_be_quantized_are_refused_by_name() {
    let format = QuantFormat::new(4, 64, false);
    type Spoil = fn(&mut Tensors);
    let faults: [(&str, Spoil); 6] = [
        ("not_finite", |t| t.get_mut("b").unwrap().2[200] = f32::NAN),
        ("not_finite", |t| t.get_mut("b").unwrap().2[383] = f32::NEG_INFINITY),
        ("missing_tensor", |t| {
            t.remove("b");
        }),
        ("wrong_shape", |t| t.get_mut("b").unwrap().1 = vec![384]),
        ("wrong_shape", |t| t.get_mut("b").unwrap().1 = vec![6, 64]),
        ("wrong_shape", |t| *t.get_mut("b").unwrap() = (DType::F32, vec![0, 128], Vec::new())),
    ];
    for (code, spoil) in faults {
        let mut tensors = stored();
        spoil(&mut tensors);
        let (_folder, checkpoint) = open(&tensors);
        match from_checkpoint(&checkpoint, &["a", "b"], format, 2) {
            Err(CpuError::Checkpoint { tensor, reason, .. }) => {
                assert_eq!((tensor.as_deref(), reason.code()), (Some("b"), code));
            }
            other => panic!("{code}: {:?}", other.map(|_| ())),
        }
    }
    let (_folder, checkpoint) = open(&stored());
    let bad = QuantFormat { group_size: 96, ..format };
    assert!(matches!(from_checkpoint(&checkpoint, &["a"], bad, 1), Err(CpuError::Config { .. })));
    assert!(matches!(from_checkpoint(&checkpoint, &[], format, 1), Err(CpuError::Config { .. })));
}

const VOCAB: usize = 145;

/// `logits = embed (w embed[id])`, the table tied, int8; `w` int4 and stacked from two tensors.
fn program() -> Value {
    let view = |buffer: usize, width: usize| json!({"buffer": buffer, "offset": 0, "width": width});
    let buffer = |rows: &str, width: usize, slot: usize| json!({"name": "b", "rows": rows, "width": width, "slot": slot});
    let slot = |rows: &str, width: usize| json!({"rows": rows, "width": width});
    json!({
        "vocab_size": VOCAB,
        "buffers": [buffer("T", 128, 0), buffer("T", 128, 1), buffer("R", 128, 2), buffer("R", VOCAB, 3)],
        "parameters": [
            {"name": "embed", "kind": "matrix", "shape": [VOCAB, 128], "sources": ["c", "a"],
                "quant": {"bits": 8, "group_size": 64, "symmetric": true, "groups_per_scale": 1}},
            {"name": "w", "kind": "matrix", "shape": [128, 128], "sources": ["d", "e"],
                "quant": {"bits": 4, "group_size": 32, "symmetric": false, "groups_per_scale": 1}},
        ],
        "rope_tables": [], "kv_groups": [],
        "ops": [
            {"op": "embed", "weight": "embed", "out": view(0, 128)},
            {"op": "linear", "x": view(0, 128), "out": view(1, 128), "weight": "w", "bias": null},
            {"op": "select_rows", "x": view(1, 128), "out": view(2, 128)},
            {"op": "linear", "x": view(2, 128), "out": view(3, VOCAB), "weight": "embed", "bias": null},
        ],
        "logits": view(3, VOCAB),
        "slots": [slot("T", 128), slot("T", 128), slot("R", 128), slot("R", VOCAB)],
    })
}

fn executor(checkpoint: &Checkpoint, isa: Isa, num_threads: usize) -> Result<Executor, CpuError> {
    let config = ExecutorConfig {
        block_size: 16,
        num_blocks: Vec::new(),
        max_tokens: 16,
        max_rows: 16,
        max_seqs: 4,
        kv_dtype: DType::F32.into(),
        weight_dtype: Some(DType::F16),
        num_threads,
        isa,
    };
    let program = Program::from_json(&program().to_string()).unwrap();
    Executor::load(program, checkpoint, config, &mut |_, _| Ok(()))
}

#[test]
fn an_executor_loads_and_runs_quantized_parameters() {
    let mut tensors = stored();
    tensors.insert("e".into(), (DType::F32, vec![64, 128], numbers(60, 64 * 128)));
    let (_folder, checkpoint) = open(&tensors);
    let format = QuantFormat::new(8, 64, true);
    let embed = from_checkpoint(&checkpoint, &["c", "a"], format, 1).unwrap();
    let format = QuantFormat::new(4, 32, false);
    let w = from_checkpoint(&checkpoint, &["d", "e"], format, 1).unwrap();
    let ids: Vec<i32> = (0..11).map(|index| index * 13).collect();
    let x: Vec<f32> = ids.iter().flat_map(|id| embed.dequantized(*id as usize)).collect();
    let expected = embed.matmul(&w.matmul(&x, None), None);
    for isa in levels() {
        for threads in [1, 3] {
            let mut executor = executor(&checkpoint, isa, threads).unwrap();
            assert_eq!(executor.info().weight_bytes, embed.pack().bytes() + w.pack().bytes());
            for count in [11, 1, 2] {
                let positions: Vec<i32> = (0..count as i32).collect();
                let step = StepView {
                    token_ids: &ids[..count],
                    positions: &positions,
                    cu_seqlens_q: &[0, count as i32],
                    seq_lens: &[count as i32],
                    logit_rows: &positions,
                    groups: &[],
                };
                let mut logits = vec![f32::NAN; count * VOCAB];
                executor.run(&step, &mut logits).unwrap();
                let what = format!("{isa}, {threads} threads, {count} tokens");
                assert_same_bits(&logits, &expected[..count * VOCAB], &what);
            }
        }
    }
    tensors.get_mut("e").unwrap().2[5] = f32::NAN;
    let (_folder, checkpoint) = open(&tensors);
    match executor(&checkpoint, Isa::detect(), 2).map(|_| ()) {
        Err(CpuError::Checkpoint { tensor, reason, .. }) => {
            assert_eq!((tensor.as_deref(), reason.code()), (Some("e"), "not_finite"));
        }
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn awkward_shapes(
        rows in prop::sample::select(vec![1usize, 31, 33, 65, 130, 333]),
        groups in 1usize..7,
        tokens in prop::sample::select(vec![1usize, 2, 3, 5, 6, 7, 8, 9, 10, 11, 13, 16, 24, 25, 26, 28, 40, 64, 65, 129]),
        format in prop::sample::select(formats()),
        bias: bool,
        seed in 0u64..1000,
    ) {
        let mut pools: Vec<Pool> = [1, 3].into_iter().map(|count| Pool::new(count).unwrap()).collect();
        let cols = groups * format.group_size;
        let x = numbers(seed + 7, tokens * cols);
        check(&Canonical::arbitrary(rows, cols, format, seed), &x, &mut pools, bias);
    }

    #[test]
    fn levels_quantize_alike(
        format in prop::sample::select(formats()),
        exponent in -40i32..38,
        tail in 0.0f32..1.0,
        seed in 0u64..1000,
    ) {
        let power = 10f32.powi(exponent);
        let values: Vec<f32> = numbers(seed, 2 * 256)
            .into_iter()
            .map(|value| if value.abs() < tail { value * power * 0.01 } else { value * power })
            .collect();
        let expected = Canonical::quantize(Isa::Scalar, &values, 256, format);
        for isa in levels() {
            prop_assert!(Canonical::quantize(isa, &values, 256, format) == expected, "{isa}");
        }
    }
}
