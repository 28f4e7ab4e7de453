//! What the benches of float and integer matmuls share: the shapes, and a case for every level and number of rows.

use std::hint::black_box;
use std::ops::Deref;

use criterion::Criterion;
use pyrite_cpu::isa::Isa;
use pyrite_cpu::ops::linear::LinearScratch;
use pyrite_cpu::pool::{Pool, Worker};
use pyrite_cpu::probe::PeakKind;
use pyrite_cpu::tensor::{Rows, RowsMut};

use super::{Cost, Machine, inputs, levels};

/// Outputs and inputs: down and gate+up of the Qwen3-0.6B shape, gate+up of Llama-3.2-1B, a head.
pub(crate) const SHAPES: [(usize, usize); 4] = [(1024, 3072), (6144, 1024), (16_384, 2048), (151_936, 1024)];
/// Rows of `x`; a head, of more than `HEAD` outputs, is spared the most.
const TOKENS: [usize; 4] = [1, 4, 16, 512];
const HEAD: usize = 100_000;

/// `linear` or `qlinear`, by what holds its weight.
pub(crate) type Op<W> = fn(&Worker<'_>, Isa, Rows<'_>, &W, Option<&[f32]>, RowsMut<'_>, &LinearScratch);

/// A matmul of one shape and type of weight.
pub(crate) struct Matmul<'a, W> {
    pub(crate) op: Op<W>,
    /// `<op>/<weights>/<shape>`; a case adds `/<level>/<rows of x>`.
    pub(crate) name: String,
    /// Outputs and inputs.
    pub(crate) shape: (usize, usize),
    /// Of one weight.
    pub(crate) bytes: usize,
    /// Enough of them to rotate past the last cache, made when a case first runs.
    pub(crate) weights: &'a dyn Deref<Target = Vec<W>>,
}

impl<W: Sync> Matmul<'_, W> {
    /// Run every case that criterion does not filter out; `kind` is the arithmetic of a level.
    pub(crate) fn cases(
        &self,
        criterion: &mut Criterion,
        machine: &mut Machine,
        kind: impl Fn(Isa) -> PeakKind,
    ) {
        let ((rows, cols), op, workers) = (self.shape, self.op, machine.workers());
        for isa in levels() {
            for tokens in TOKENS.into_iter().filter(|tokens| *tokens < 512 || rows < HEAD) {
                let cost = Cost {
                    bytes: self.bytes + 4 * tokens * (rows + cols),
                    operations: 2 * rows * cols * tokens,
                    kind: kind(isa),
                };
                machine.case(criterion, &format!("{}/{isa}/{tokens}", self.name), isa, cost, || {
                    let (x, mut out) = (inputs(tokens * cols), vec![0f32; tokens * rows]);
                    let scratch = LinearScratch::new(tokens, cols, workers).unwrap();
                    let mut turn = 0;
                    move |pool: &mut Pool| {
                        turn += 1;
                        let (x, view) = (Rows::new(&x, cols), RowsMut::new(&mut out, rows));
                        let weight = &self.weights[turn % self.weights.len()];
                        pool.run(|worker| op(worker, isa, x, weight, None, view, &scratch)).unwrap();
                        black_box(&out);
                    }
                });
            }
        }
    }
}
