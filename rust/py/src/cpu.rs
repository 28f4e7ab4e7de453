//! `_core.CpuExecutor`, and what the CPU backend knows about this machine.

use std::path::PathBuf;
use std::sync::OnceLock;

use numpy::{PyReadonlyArray2, PyReadwriteArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use pyrite_cpu::cores;
use pyrite_cpu::error::CpuError;
use pyrite_cpu::executor::{Executor, ExecutorConfig, OpProfile};
use pyrite_cpu::isa::Isa;
use pyrite_cpu::ops::attention::KvType;
use pyrite_cpu::packed_file::{PackedFolder, PackedReport, Unpublished};
use pyrite_cpu::probe::{self, PeakKind};
use pyrite_cpu::program::Program;
use pyrite_cpu::quant::QuantFormat;
use pyrite_cpu::step::{GroupView, StepView};
use pyrite_cpu::tensor::DType;
use pyrite_cpu::weights::{self, Interrupted, MatrixForm};
use pyrite_sample::Scratch;

use crate::buffer::{Rows, not_contiguous};
use crate::checkpoint::Checkpoint;
use crate::error::{Fault, detached};
use crate::sample::{Draw, Request, Sample};
use crate::sched::StepPlan;

/// What happened, why, and whether that is normal.
type PackedNote = (&'static str, String, bool);

/// A packed model, its KV blocks and its threads: runs one program on the CPU.
#[pyclass(module = "pyrite._core")]
pub(crate) struct CpuExecutor {
    inner: Executor,
    vocab_size: usize,
    packed: PackedReport,
}

#[pymethods]
impl CpuExecutor {
    #[new]
    #[pyo3(signature = (program, checkpoint, *, block_size, num_blocks, max_tokens, max_rows, max_seqs, kv_dtype,
        weight_dtype, num_threads, isa, progress, packed_folder=None))]
    fn new(
        py: Python<'_>,
        program: &str,
        checkpoint: &Checkpoint,
        block_size: usize,
        num_blocks: Vec<usize>,
        max_tokens: usize,
        max_rows: usize,
        max_seqs: usize,
        kv_dtype: &str,
        weight_dtype: Option<&str>,
        num_threads: usize,
        isa: Option<&str>,
        progress: Option<Py<PyAny>>,
        packed_folder: Option<PathBuf>,
    ) -> PyResult<Self> {
        let config = ExecutorConfig {
            block_size,
            num_blocks,
            max_tokens,
            max_rows,
            max_seqs,
            kv_dtype: KvType::from_name(kv_dtype)
                .ok_or_else(|| unknown("kv_dtype", kv_dtype, "float32, float16, bfloat16, int16, int8"))?,
            weight_dtype: weight_dtype.map(|name| parse_dtype("weight_dtype", name)).transpose()?,
            num_threads,
            isa: isa.map_or_else(|| Ok(Isa::detect()), parse_isa)?,
        };
        let program = Program::from_json(program).map_err(Fault::from)?;
        let vocab_size = program.vocab_size;
        let mut raised: Option<PyErr> = None;
        let mut report = |done: u64, total: u64| {
            let told = Python::attach(|py| {
                py.check_signals()?;
                progress.as_ref().map_or(Ok(()), |call| call.call1(py, (done, total)).map(drop))
            });
            told.map_err(|error| {
                raised = Some(error);
                Interrupted
            })
        };
        let folder = packed_folder.map(PackedFolder::new);
        let loaded = detached(py, || {
            Executor::load_with(program, &checkpoint.inner, config, folder.as_ref(), &mut report)
        });
        match (loaded, raised) {
            (_, Some(error)) => Err(error),
            (Ok((inner, packed)), None) => Ok(Self { inner, vocab_size, packed }),
            (Err(error), None) => Err(error),
        }
    }

    /// Run one step with the GIL released; writes the first R rows of `logits`.
    fn run(
        &mut self,
        py: Python<'_>,
        plan: &StepPlan,
        mut logits: PyReadwriteArray2<'_, f32>,
    ) -> PyResult<()> {
        let (rows, width) = (logits.shape()[0], logits.shape()[1]);
        let wanted = plan.inner.logit_rows.len();
        if rows < wanted || width != self.vocab_size {
            let fault =
                Fault::new("ShapeError", "the array does not hold this step's logits").field("logits");
            let expected = format!("[at least {wanted}, {}]", self.vocab_size);
            return Err(fault.got(format!("[{rows}, {width}]")).expected(expected).into());
        }
        let logits = logits.as_slice_mut().map_err(|_| not_contiguous("logits"))?;
        let logits = &mut logits[..wanted * width];
        let plan = &plan.inner;
        let groups: Vec<GroupView<'_>> = plan
            .groups
            .iter()
            .map(|group| GroupView {
                block_tables: &group.block_tables,
                max_blocks: group.max_blocks as usize,
                slot_mapping: &group.slot_mapping,
                block_copies: &group.block_copies,
            })
            .collect();
        let step = StepView {
            token_ids: &plan.token_ids,
            positions: &plan.positions,
            cu_seqlens_q: &plan.cu_seqlens_q,
            seq_lens: &plan.seq_lens,
            logit_rows: &plan.logit_rows,
            groups: &groups,
        };
        let inner = &mut self.inner;
        detached(py, || inner.run(&step, logits))
    }

    /// Draw as `sample` does, with the rows shared over the executor's threads.
    fn sample(
        &mut self,
        py: Python<'_>,
        logits: PyReadonlyArray2<'_, f32>,
        requests: Vec<Request>,
    ) -> PyResult<Vec<Option<Sample>>> {
        let rows = Rows::new("logits", &logits)?;
        let draws = Draw::all(&rows, &requests)?;
        let drawn: Vec<OnceLock<_>> = draws.iter().map(|_| OnceLock::new()).collect();
        let inner = &mut self.inner;
        detached(py, || {
            let work = |scratch: &mut Scratch, index: usize| {
                let _ = drawn[index].set(draws[index].run(scratch));
            };
            if let [draw] = &draws[..] {
                // Not worth waking anybody.
                let _ = drawn[0].set(draw.run(&mut Scratch::new()));
                return Ok(());
            }
            inner.share(draws.len(), Scratch::new, work)
        })?;
        let drawn = drawn.into_iter().map(OnceLock::into_inner).collect::<Option<Vec<_>>>();
        let drawn = drawn.ok_or_else(|| Fault::internal("a draw was left out".to_owned()))?;
        drawn.into_iter().map(|token| Ok(token.map_err(Fault::from)?)).collect()
    }

    /// Measure every step from here on.
    fn start_profile(&mut self) {
        self.inner.start_profile();
    }

    /// What the steps took since then, one entry per kind of op; measures no more.
    fn end_profile<'py>(&mut self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let entry = |op: OpProfile| {
            let all = PyDict::new(py);
            all.set_item("op", op.label)?;
            all.set_item("arithmetic", op.arithmetic.name())?;
            all.set_item("calls", op.calls)?;
            all.set_item("seconds", op.seconds)?;
            all.set_item("bytes", op.bytes)?;
            all.set_item("operations", op.operations)?;
            Ok(all)
        };
        self.inner.end_profile().into_iter().map(entry).collect()
    }

    /// Instruction level, threads, and bytes of weights, KV blocks and scratch.
    fn info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let info = self.inner.info();
        let all = PyDict::new(py);
        all.set_item("isa", info.isa.name())?;
        all.set_item("num_threads", info.num_threads)?;
        all.set_item("weight_bytes", info.weight_bytes)?;
        all.set_item("kv_bytes", info.kv_bytes)?;
        all.set_item("scratch_bytes", info.scratch_bytes)?;
        all.set_item("from_packed_file", self.packed.used)?;
        Ok(all)
    }

    /// Take what was noted about packed files while loading: (what happened, why, whether that is normal), and the file
    /// that was written.
    fn take_packed_notes(&mut self) -> (Vec<PackedNote>, Option<UnpublishedFile>) {
        let report = &mut self.packed;
        let refused = report.refused.take().map(|fault| ("not used", fault));
        let unwritten = report.unwritten.take().map(|fault| ("not written", fault));
        let notes = refused.into_iter().chain(unwritten);
        let notes = notes.map(|(what, fault)| (what, fault.to_string(), fault.is_expected()));
        let file = report.unpublished.take().map(|file| UnpublishedFile { inner: Some(file) });
        (notes.collect(), file)
    }
}

/// A packed file that still needs its name. Removed when it is collected before it got one.
#[pyclass(module = "pyrite._core")]
pub(crate) struct UnpublishedFile {
    inner: Option<Unpublished>,
}

#[pymethods]
impl UnpublishedFile {
    /// Wait for the disk with the GIL released and give the file its name; the reason when that cannot be done.
    fn publish(&mut self, py: Python<'_>) -> PyResult<Option<String>> {
        let file = self.inner.take();
        let publish = || Ok(file.and_then(|file| file.publish().err()).map(|fault| fault.to_string()));
        detached::<_, CpuError>(py, publish)
    }
}

/// Bytes of a loaded matrix: floats of `dtype`, or integers as `quant` = (bits, group_size, symmetric, groups_per_scale) says.
#[pyfunction]
#[pyo3(signature = (rows, cols, *, dtype, quant=None))]
pub(crate) fn matrix_bytes(
    rows: usize,
    cols: usize,
    dtype: &str,
    quant: Option<(usize, usize, bool, usize)>,
) -> PyResult<usize> {
    let form = match quant {
        None => MatrixForm::Float(parse_dtype("dtype", dtype)?),
        Some((bits, group_size, symmetric, groups_per_scale)) => {
            let format = QuantFormat { bits, group_size, symmetric, groups_per_scale };
            let wrong = |(field, what)| Fault::from(CpuError::Config { field, what });
            format.check(cols).map_err(wrong)?;
            MatrixForm::Integer(format)
        }
    };
    Ok(weights::matrix_bytes(rows, cols, form).unwrap_or(usize::MAX))
}

/// The processor as pyrite sees it.
#[pyfunction]
pub(crate) fn cpu_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let all = PyDict::new(py);
    let levels: Vec<_> = Isa::ALL.into_iter().filter(|isa| isa.is_supported()).map(Isa::name).collect();
    all.set_item("isa", Isa::detect().name())?;
    all.set_item("isa_levels", levels)?;
    all.set_item("physical_cores", cores::physical_cores())?;
    Ok(all)
}

/// GB/s of `repeats` sequential reads of `num_bytes` shared by `num_threads` threads.
#[pyfunction]
pub(crate) fn read_bandwidth(
    py: Python<'_>,
    num_bytes: usize,
    num_threads: usize,
    repeats: usize,
) -> PyResult<Vec<f64>> {
    detached(py, || probe::read_bandwidth(num_bytes, num_threads, repeats))
}

/// Operations per second of register-resident multiply-adds, by the instructions of a level (None: the best one).
#[pyfunction]
#[pyo3(signature = (kind, num_threads, repeats, isa=None))]
pub(crate) fn peak_flops(
    py: Python<'_>,
    kind: &str,
    num_threads: usize,
    repeats: usize,
    isa: Option<&str>,
) -> PyResult<Vec<f64>> {
    let kind =
        PeakKind::from_name(kind).ok_or_else(|| unknown("kind", kind, "fp32, bf16, int4, int8, int16"))?;
    let isa = isa.map_or_else(|| Ok(Isa::detect()), parse_isa)?;
    detached(py, || probe::peak_flops(kind, isa, num_threads, repeats))
}

fn parse_dtype(field: &str, name: &str) -> PyResult<DType> {
    DType::from_name(name).ok_or_else(|| unknown(field, name, "float32, float16, bfloat16"))
}

fn parse_isa(name: &str) -> PyResult<Isa> {
    let isa = Isa::from_name(name)
        .ok_or_else(|| unknown("PYRITE_CPU_ISA", name, "scalar, avx2, avx512, avx512vnni, avx512bf16"))?;
    if isa.is_supported() {
        return Ok(isa);
    }
    let what = format!("this processor has no {name}");
    Err(Fault::from(CpuError::Config { field: "PYRITE_CPU_ISA", what }).into())
}

fn unknown(field: &str, got: &str, expected: &str) -> PyErr {
    Fault::new("ConfigError", "unknown value")
        .field(field)
        .got(got)
        .expected(format!("one of {expected}"))
        .into()
}
