//! `_core.Scheduler` and `_core.StepPlan`.

use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use pyrite_sched as core;

use crate::error::Fault;

/// One step, as the scheduler decided it.
#[pyclass(frozen, module = "pyrite._core")]
pub(crate) struct StepPlan {
    pub(crate) inner: core::StepPlan,
}

impl StepPlan {
    fn group(&self, group: usize) -> PyResult<&core::GroupPlan> {
        let groups = &self.inner.groups;
        groups.get(group).ok_or_else(|| {
            let fault = Fault::new("ShapeError", "no such KV group").field("group");
            fault.got(group).expected(format!("less than {}", groups.len())).into()
        })
    }
}

type Array<'py> = Bound<'py, PyArray1<i32>>;

#[pymethods]
impl StepPlan {
    /// Per sequence: (id, epoch, first logit row, number of logit rows).
    #[getter]
    fn seqs(&self) -> Vec<(u64, u32, u32, u32)> {
        self.inner.seqs.iter().map(|seq| (seq.id, seq.epoch, seq.first_row, seq.num_rows)).collect()
    }

    /// Per sequence: whether its last logit row is to be sampled.
    #[getter]
    fn samples(&self) -> Vec<bool> {
        self.inner.seqs.iter().map(|seq| seq.samples).collect()
    }

    /// Per sequence: draft tokens among its tokens in this step.
    #[getter]
    fn num_draft_tokens(&self) -> Vec<u32> {
        self.inner.seqs.iter().map(|seq| seq.num_draft_tokens).collect()
    }

    /// [T] token ids.
    #[getter]
    fn token_ids<'py>(&self, py: Python<'py>) -> Array<'py> {
        PyArray1::from_slice(py, &self.inner.token_ids)
    }

    /// [T] positions.
    #[getter]
    fn positions<'py>(&self, py: Python<'py>) -> Array<'py> {
        PyArray1::from_slice(py, &self.inner.positions)
    }

    /// [S + 1] prefix sum of the sequences' tokens.
    #[getter]
    fn cu_seqlens_q<'py>(&self, py: Python<'py>) -> Array<'py> {
        PyArray1::from_slice(py, &self.inner.cu_seqlens_q)
    }

    /// [S] tokens in the cache after this step.
    #[getter]
    fn seq_lens<'py>(&self, py: Python<'py>) -> Array<'py> {
        PyArray1::from_slice(py, &self.inner.seq_lens)
    }

    /// [R] token rows that want logits.
    #[getter]
    fn logit_rows<'py>(&self, py: Python<'py>) -> Array<'py> {
        PyArray1::from_slice(py, &self.inner.logit_rows)
    }

    /// [S, max_blocks] blocks of one KV group.
    fn block_table<'py>(&self, py: Python<'py>, group: usize) -> PyResult<Bound<'py, PyArray2<i32>>> {
        let group = self.group(group)?;
        let shape = [self.inner.seqs.len(), group.max_blocks as usize];
        PyArray1::from_slice(py, &group.block_tables).reshape(shape)
    }

    /// [T] slots of one KV group.
    fn slot_mapping<'py>(&self, py: Python<'py>, group: usize) -> PyResult<Array<'py>> {
        Ok(PyArray1::from_slice(py, &self.group(group)?.slot_mapping))
    }

    /// (source, destination) blocks to copy before the step.
    fn block_copies(&self, group: usize) -> PyResult<Vec<(i32, i32)>> {
        Ok(self.group(group)?.block_copies.clone())
    }
}

/// Continuous batching over KV blocks: a plain state machine over ids.
#[pyclass(module = "pyrite._core")]
pub(crate) struct Scheduler {
    inner: core::Scheduler,
}

#[pymethods]
impl Scheduler {
    #[new]
    #[pyo3(signature = (*, groups, block_size, max_num_seqs, max_num_batched_tokens, max_logit_rows, max_model_len,
        enable_prefix_caching, hash_key, max_num_mixed_prefill_tokens = None))]
    fn new(
        groups: Vec<(Option<u32>, u32)>,
        block_size: u32,
        max_num_seqs: u32,
        max_num_batched_tokens: u32,
        max_logit_rows: u32,
        max_model_len: u32,
        enable_prefix_caching: bool,
        hash_key: u64,
        max_num_mixed_prefill_tokens: Option<u32>,
    ) -> PyResult<Self> {
        let groups =
            groups.into_iter().map(|(window, num_blocks)| core::GroupConfig { window, num_blocks }).collect();
        let config = core::SchedulerConfig {
            groups,
            block_size,
            max_num_seqs,
            max_num_batched_tokens,
            max_num_mixed_prefill_tokens: max_num_mixed_prefill_tokens.unwrap_or(max_num_batched_tokens),
            max_logit_rows,
            max_model_len,
            enable_prefix_caching,
            hash_key,
        };
        Ok(Self { inner: core::Scheduler::new(config).map_err(Fault::from)? })
    }

    /// Queue a sequence.
    #[pyo3(signature = (seq_id, token_ids, *, max_tokens, stop_token_ids, prompt_logprobs, salt))]
    fn add(
        &mut self,
        seq_id: u64,
        token_ids: Vec<i32>,
        max_tokens: u32,
        stop_token_ids: Vec<i32>,
        prompt_logprobs: bool,
        salt: Vec<u8>,
    ) -> PyResult<()> {
        let new =
            core::NewSequence { id: seq_id, token_ids, max_tokens, stop_token_ids, prompt_logprobs, salt };
        Ok(self.inner.add(new).map_err(Fault::from)?)
    }

    /// Decide the next step; None when nothing is left to run.
    fn plan(&mut self) -> PyResult<Option<StepPlan>> {
        let plan = self.inner.plan().map_err(Fault::from)?;
        Ok(plan.map(|inner| StepPlan { inner }))
    }

    /// Take what a step produced; returns (id, "stop" | "length") of the sequences that ended.
    fn commit(
        &mut self,
        plan: &StepPlan,
        sampled: Vec<(u64, u32, Vec<i32>)>,
    ) -> PyResult<Vec<(u64, &'static str)>> {
        let sampled: Vec<_> =
            sampled.into_iter().map(|(id, epoch, tokens)| core::Sampled { id, epoch, tokens }).collect();
        let ended = self.inner.commit(&plan.inner, &sampled).map_err(Fault::from)?;
        let name = |reason| match reason {
            core::FinishReason::Stop => "stop",
            core::FinishReason::Length => "length",
        };
        Ok(ended.into_iter().map(|(id, reason)| (id, name(reason))).collect())
    }

    /// End a sequence from outside. False when it is unknown: it ended before.
    fn finish(&mut self, seq_id: u64) -> bool {
        self.inner.finish(seq_id)
    }

    /// Whether any sequence waits or runs.
    fn has_work(&self) -> bool {
        self.inner.has_work()
    }

    /// Prompt tokens that the prefix cache answered at the sequence's last admission.
    fn num_cached_tokens(&self, seq_id: u64) -> Option<u32> {
        self.inner.num_cached_tokens(seq_id)
    }

    /// Counters since the start, and gauges.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.inner.stats();
        let all = PyDict::new(py);
        all.set_item("num_waiting", stats.num_waiting)?;
        all.set_item("num_running", stats.num_running)?;
        all.set_item("preemptions", stats.preemptions)?;
        all.set_item("prefix_query_tokens", stats.prefix_query_tokens)?;
        all.set_item("prefix_hit_tokens", stats.prefix_hit_tokens)?;
        all.set_item("steps", stats.steps)?;
        all.set_item("decode_steps", stats.decode_steps)?;
        all.set_item("decode_tokens", stats.decode_tokens)?;
        all.set_item("prefill_tokens", stats.prefill_tokens)?;
        for (index, group) in stats.groups.iter().enumerate() {
            all.set_item(format!("group{index}_total"), group.total)?;
            all.set_item(format!("group{index}_free"), group.free)?;
            all.set_item(format!("group{index}_cached"), group.cached)?;
            all.set_item(format!("group{index}_used"), group.used)?;
        }
        Ok(all)
    }

    /// Verify every invariant of the pools and states.
    fn check(&self) -> PyResult<()> {
        Ok(self.inner.check().map_err(Fault::from)?)
    }

    /// Forget cached blocks that no sequence uses; returns how many.
    fn reset_prefix_cache(&mut self) -> u32 {
        self.inner.reset_prefix_cache()
    }
}
