//! `_core.Sampler`, `_core.Sample`, `_core.sample`, `_core.sample_candidates`, `_core.token_logprobs` and
//! `_core.StopMatcher`.

use numpy::{PyReadonlyArray1, PyReadonlyArray2};
use pyo3::prelude::*;
use pyrite_sample as core;

use crate::buffer::{Rows, not_contiguous};
use crate::error::{Fault, detached};

/// Token ids with their logprobs, best first.
type Ranked = Vec<(u32, f32)>;

/// How one completion's tokens are drawn. Immutable.
#[pyclass(frozen, module = "pyrite._core")]
pub(crate) struct Sampler {
    inner: core::Sampler,
}

#[pymethods]
impl Sampler {
    #[new]
    #[pyo3(signature = (*, temperature, top_k, top_p, min_p, seed, stream, vocab_limit, logprobs))]
    fn new(
        temperature: f32,
        top_k: i64,
        top_p: f32,
        min_p: f32,
        seed: u64,
        stream: u64,
        vocab_limit: usize,
        logprobs: Option<u32>,
    ) -> PyResult<Self> {
        let top_k = if top_k == -1 { 0 } else { top_k };
        let top_k = u32::try_from(top_k).map_err(|_| {
            Fault::new("RequestError", "out of range")
                .field("top_k")
                .got(top_k)
                .expected("-1 (off) or 0 to 2^32 - 1")
        })?;
        let config =
            core::SamplerConfig { temperature, top_k, top_p, min_p, seed, stream, vocab_limit, logprobs };
        Ok(Self { inner: core::Sampler::new(config).map_err(Fault::from)? })
    }

    /// Whether the best `num_candidates` tokens of a row may do for a draw.
    fn may_use_candidates(&self, num_candidates: usize) -> bool {
        self.inner.may_use_candidates(num_candidates)
    }
}

/// One drawn token.
#[pyclass(frozen, get_all, module = "pyrite._core")]
pub(crate) struct Sample {
    token_id: u32,
    logprob: Option<f32>,
    rank: Option<u32>,
    top: Ranked,
}

impl From<core::Sample> for Sample {
    fn from(sample: core::Sample) -> Self {
        let core::Sample { token_id, logprob, rank, top } = sample;
        Self { token_id, logprob, rank, top }
    }
}

/// What Python asks for: a row of logits, a sampler, and the position of the new token in its sequence.
pub(crate) type Request = (usize, Py<Sampler>, u64);

/// One draw from a row of logits.
pub(crate) struct Draw<'a> {
    row: &'a [f32],
    sampler: &'a core::Sampler,
    position: u64,
}

impl<'a> Draw<'a> {
    /// Those that are asked for.
    pub(crate) fn all(rows: &Rows<'a, f32>, requests: &'a [Request]) -> PyResult<Vec<Self>> {
        let draw = |(row, sampler, position): &'a Request| {
            Ok(Self { row: rows.row(*row)?, sampler: &sampler.get().inner, position: *position })
        };
        requests.iter().map(draw).collect()
    }

    /// The token, or None when no logit is finite or one is not a number.
    pub(crate) fn run(&self, scratch: &mut core::Scratch) -> Result<Option<Sample>, core::SampleError> {
        match self.sampler.sample(self.row, self.position, scratch) {
            Ok(sample) => Ok(Some(sample.into())),
            Err(core::SampleError::NonFinite { .. } | core::SampleError::NoFiniteLogit { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Draw one token per request, on the calling thread.
#[pyfunction]
pub(crate) fn sample(
    py: Python<'_>,
    logits: PyReadonlyArray2<'_, f32>,
    requests: Vec<Request>,
) -> PyResult<Vec<Option<Sample>>> {
    let rows = Rows::new("logits", &logits)?;
    let draws = Draw::all(&rows, &requests)?;
    detached(py, || {
        let mut scratch = core::Scratch::new();
        draws.iter().map(|draw| draw.run(&mut scratch)).collect()
    })
}

/// Draw one token per request (row of the candidates, sampler, position) from the best tokens of each row.
#[pyfunction]
pub(crate) fn sample_candidates(
    py: Python<'_>,
    ids: PyReadonlyArray2<'_, i32>,
    logits: PyReadonlyArray2<'_, f32>,
    lse: PyReadonlyArray1<'_, f32>,
    num_tokens: usize,
    requests: Vec<Request>,
) -> PyResult<Vec<Option<Sample>>> {
    let (ids, logits) = (Rows::new("ids", &ids)?, Rows::new("logits", &logits)?);
    let lse = lse.as_slice().map_err(|_| not_contiguous("lse"))?;
    let mut work = Vec::with_capacity(requests.len());
    for (row, sampler, position) in &requests {
        let (row_ids, row_logits) = (ids.row(*row)?, logits.row(*row)?);
        let Some(&row_lse) = lse.get(*row) else {
            return Err(Fault::new("ShapeError", "there is no such row").field("lse").got(row).into());
        };
        let best = core::BestTokens::new(row_ids, row_logits, row_lse, num_tokens).map_err(Fault::from)?;
        work.push((best, &sampler.get().inner, *position));
    }
    detached(py, || {
        let mut scratch = core::Scratch::new();
        work.iter()
            .map(|(best, sampler, position)| {
                Ok(sampler.sample_best(best, *position, &mut scratch)?.map(Sample::from))
            })
            .collect::<Result<Vec<_>, core::SampleError>>()
    })
}

/// Logprob, rank and the most likely tokens of `token_id` in a row's raw distribution.
#[pyfunction]
#[pyo3(signature = (logits, row, token_id, top, vocab_limit))]
pub(crate) fn token_logprobs(
    py: Python<'_>,
    logits: PyReadonlyArray2<'_, f32>,
    row: usize,
    token_id: u32,
    top: u32,
    vocab_limit: usize,
) -> PyResult<(f32, u32, Ranked)> {
    let row = Rows::new("logits", &logits)?.row(row)?;
    let found =
        detached(py, || core::token_logprobs(row, vocab_limit, token_id, top, &mut core::Scratch::new()))?;
    Ok((found.logprob, found.rank, found.top))
}

/// Finds the first of some stop strings in a growing text, in linear time.
#[pyclass(module = "pyrite._core")]
pub(crate) struct StopMatcher {
    inner: core::StopMatcher,
}

#[pymethods]
impl StopMatcher {
    #[new]
    fn new(stops: Vec<String>) -> PyResult<Self> {
        Ok(Self { inner: core::StopMatcher::new(&stops).map_err(Fault::from)? })
    }

    /// Feed the next piece of text; returns the text that is safe to release and the index of a stop string found.
    fn push(&mut self, text: &str) -> (String, Option<usize>) {
        let core::Push { released, matched } = self.inner.push(text);
        (released, matched)
    }

    /// The text still held back, when the sequence ended for another reason.
    fn flush(&mut self) -> String {
        self.inner.flush()
    }
}
