//! Logits against a slow interpreter of the same program in f64, without cache, blocks or kernels.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test, helpers included")]

mod common;

use std::collections::HashMap;

use common::*;
use pyrite_cpu::executor::ExecutorConfig;
use pyrite_cpu::isa::Isa;
use pyrite_cpu::program::{Op, Program, View};
use pyrite_cpu::tensor::DType;

/// One row per token.
type Rows = Vec<Vec<f64>>;

/// One sequence, all of whose tokens want logits: T and R rows are the same.
struct Reference<'a> {
    program: &'a Program,
    tensors: &'a Tensors,
    tokens: &'a [i32],
    buffers: Vec<Vec<f64>>,
    /// Keys and values of (group, layer), `[T, width]`.
    cache: HashMap<(usize, usize), (Rows, Rows)>,
}

impl Reference<'_> {
    fn logits(program: &Program, tensors: &Tensors, tokens: &[i32]) -> Vec<f64> {
        let buffers =
            program.buffers.iter().map(|buffer| vec![f64::NAN; buffer.width * tokens.len()]).collect();
        let mut reference = Reference { program, tensors, tokens, buffers, cache: HashMap::new() };
        program.ops.iter().for_each(|op| reference.op(op));
        reference.rows(&program.logits).concat()
    }

    fn parameter(&self, name: &str) -> Vec<f64> {
        let parameter = self.program.parameter(name).unwrap().1;
        let values = parameter.sources.iter().flat_map(|source| &self.tensors[source].2);
        values.map(|value| f64::from(*value)).collect()
    }

    fn rows(&self, view: &View) -> Rows {
        let rows = self.buffers[view.buffer].chunks(self.program.buffers[view.buffer].width);
        rows.map(|row| row[view.offset..view.offset + view.width].to_vec()).collect()
    }

    fn write(&mut self, view: &View, rows: Rows) {
        let width = self.program.buffers[view.buffer].width;
        for (to, from) in self.buffers[view.buffer].chunks_mut(width).zip(rows) {
            to[view.offset..view.offset + view.width].copy_from_slice(&from);
        }
    }

    /// `f` of each `part` elements of each row, and of the row's number.
    fn map(&mut self, x: &View, out: &View, part: usize, f: impl Fn(usize, &[f64]) -> Vec<f64>) {
        let rows = self.rows(x);
        let mapped = rows.iter().enumerate().map(|(t, row)| row.chunks(part).flat_map(|x| f(t, x)).collect());
        self.write(out, mapped.collect());
    }

    fn zip(&mut self, x: &View, y: &View, out: &View, f: impl Fn(f64, f64) -> f64) {
        let pairs = self.rows(x).into_iter().zip(self.rows(y));
        let rows = pairs.map(|(x, y)| x.iter().zip(y).map(|(x, y)| f(*x, y)).collect()).collect();
        self.write(out, rows);
    }

    fn op(&mut self, op: &Op) {
        match op {
            Op::Embed { weight, out } => {
                let weight = self.parameter(weight);
                let row = |id: &i32| weight[*id as usize * out.width..][..out.width].to_vec();
                let rows = self.tokens.iter().map(row).collect();
                self.write(out, rows);
            }
            Op::RmsNorm { x, out, weight, eps, weight_offset } => {
                let norm = self.norm(weight, *eps, *weight_offset, 1.0);
                self.map(x, out, x.width, |_, x| norm(x));
            }
            Op::HeadNorm { x, head_dim, weight, eps, weight_offset, scale, .. } => {
                let norm = self.norm(weight, *eps, *weight_offset, *scale);
                self.map(x, x, *head_dim, |_, x| norm(x));
            }
            Op::Linear { x, out, weight, bias } => {
                let weight = self.parameter(weight);
                let bias = bias.as_ref().map_or(vec![0.0; out.width], |bias| self.parameter(bias));
                let dot = |row: &[f64], x: &[f64]| row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
                self.map(x, out, x.width, |_, x| {
                    weight.chunks(x.len()).zip(&bias).map(|(row, bias)| dot(row, x) + bias).collect()
                });
            }
            Op::Rope { x, head_dim, table, .. } => {
                let table = &self.program.rope_tables[*table];
                self.map(x, x, *head_dim, |t, x| {
                    let (mut out, half) = (x.to_vec(), table.inv_freq.len());
                    for (a, frequency) in table.inv_freq.iter().enumerate() {
                        let (sin, cos) = (t as f64 * f64::from(*frequency)).sin_cos();
                        out[a] = f64::from(table.scale) * (x[a] * cos - x[a + half] * sin);
                        out[a + half] = f64::from(table.scale) * (x[a + half] * cos + x[a] * sin);
                    }
                    out
                });
            }
            Op::KvStore { k, v, group, layer } => {
                let (k, v) = (self.rows(k), self.rows(v));
                self.cache.insert((*group, *layer), (k, v));
            }
            Op::Attention { q, out, group, layer, num_heads, softmax_scale } => {
                let (keys, values) = self.cache[&(*group, *layer)].clone();
                let of = self.program.kv_groups[*group];
                let ratio = num_heads / of.num_kv_heads;
                let attend = |t: usize, row: &[f64]| {
                    let first = of.window.map_or(0, |window| (t + 1).saturating_sub(window));
                    let heads = row.chunks(of.head_dim).enumerate();
                    let one = |(head, q): (usize, &[f64])| {
                        let columns = head / ratio * of.head_dim..(head / ratio + 1) * of.head_dim;
                        let score = |j: usize| {
                            let k = &keys[j][columns.clone()];
                            f64::from(*softmax_scale) * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>()
                        };
                        let scores: Vec<f64> = (first..=t).map(score).collect();
                        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                        let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
                        let sum: f64 = weights.iter().sum();
                        let mut out = vec![0.0; of.head_dim];
                        for (j, weight) in (first..=t).zip(weights) {
                            let v = &values[j][columns.clone()];
                            out.iter_mut().zip(v).for_each(|(out, v)| *out += weight / sum * v);
                        }
                        out
                    };
                    heads.flat_map(one).collect()
                };
                self.map(q, out, q.width, attend);
            }
            Op::Glu { gate, up, out, .. } => {
                self.zip(gate, up, out, |gate, up| gate / (1.0 + (-gate).exp()) * up)
            }
            Op::Gate { x, gate } => self.zip(x, gate, x, |x, gate| x / (1.0 + (-gate).exp())),
            Op::Add { x, y } => self.zip(x, y, x, |x, y| x + y),
            Op::SelectRows { x, out } => self.map(x, out, x.width, |_, x| x.to_vec()),
            Op::Logits { x, multiplier, soft_cap } => {
                let (multiplier, cap) = (f64::from(*multiplier), soft_cap.map(f64::from));
                let one = |x: &f64| match cap {
                    Some(cap) => cap * (multiplier * x / cap).tanh(),
                    None => multiplier * x,
                };
                self.map(x, x, x.width, |_, x| x.iter().map(one).collect());
            }
        }
    }

    fn norm(
        &self,
        weight: &Option<String>,
        eps: f32,
        offset: f32,
        scale: f32,
    ) -> impl Fn(&[f64]) -> Vec<f64> + use<> {
        let weight = weight.as_ref().map(|weight| self.parameter(weight));
        move |x| {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            let factor = f64::from(scale) / (mean + f64::from(eps)).sqrt();
            let weight = |i: usize| weight.as_ref().map_or(1.0, |weight| weight[i] + f64::from(offset));
            x.iter().enumerate().map(|(i, x)| x * factor * weight(i)).collect()
        }
    }
}

fn worst(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let errors = got.iter().zip(expected).map(|(got, expected)| (f64::from(*got) - expected).abs());
    errors.fold(0.0, |worst, error| if error.is_nan() { f64::INFINITY } else { worst.max(error) })
}

#[test]
fn logits_agree_with_the_slow_interpreter() {
    let prompt = tokens(11, 90);
    for (weights, tolerance) in [(DType::F32, 1e-4), (DType::F16, 1e-4), (DType::Bf16, 1e-4)] {
        let (_folder, checkpoint) = checkpoint(weights);
        let expected = Reference::logits(&program(), &tensors(weights), &prompt);
        let spread = expected.iter().fold(0.0f64, |spread, logit| spread.max(logit.abs()));
        assert!((5.0..15.0).contains(&spread), "logits that say nothing: {spread}");
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            let mut driver = Driver::new(&checkpoint, &ExecutorConfig { isa, ..config() });
            let mut got = driver.run(&[(0, &prompt[..61])]);
            got.extend(driver.run(&[(0, &prompt[61..])]));
            // Activations of bf16 matmuls are rounded to bf16 at this level.
            let rounded = isa == Isa::Avx512Bf16 && weights == DType::Bf16;
            let error = worst(&got, &expected);
            assert!(error < if rounded { 0.4 } else { tolerance }, "{isa}, {weights:?}: off by {error}");
        }
    }
}

/// The comparison above feels every mechanism: without any one of them the logits move.
#[test]
fn every_mechanism_is_felt() {
    let prompt = tokens(11, 90);
    let tensors = tensors(DType::F32);
    let whole = Reference::logits(&program(), &tensors, &prompt);
    type Drop = fn(&mut Program);
    let drops: [(&str, Drop); 7] = [
        ("gate", |p| p.ops.retain(|op| !matches!(op, Op::Gate { .. }))),
        ("rope", |p| p.ops.retain(|op| !matches!(op, Op::Rope { .. }))),
        ("head_norm", |p| p.ops.retain(|op| !matches!(op, Op::HeadNorm { .. }))),
        ("logits", |p| p.ops.retain(|op| !matches!(op, Op::Logits { .. }))),
        ("window", |p| p.kv_groups[0].window = None),
        ("bias", |p| {
            for op in &mut p.ops {
                if let Op::Linear { bias, .. } = op {
                    *bias = None;
                }
            }
        }),
        ("weight_offset", |p| {
            for op in &mut p.ops {
                if let Op::RmsNorm { weight_offset, .. } = op {
                    *weight_offset = 0.0;
                }
            }
        }),
    ];
    for (what, drop) in drops {
        let mut program = program();
        drop(&mut program);
        let without: Vec<f32> =
            Reference::logits(&program, &tensors, &prompt).iter().map(|logit| *logit as f32).collect();
        let moved = worst(&without, &whole);
        assert!(moved > 0.05, "without {what} the logits move by {moved} only");
    }
}
