//! Rust errors to the classes of `pyrite.errors`: one exhaustive match per crate, and the only place that builds them.

use pyo3::prelude::*;
use pyo3::types::PyDict;

/// The fields of a `pyrite.errors.PyriteError`.
#[derive(Default)]
pub(crate) struct Fault {
    /// Name of the class in `pyrite.errors`.
    pub(crate) class: &'static str,
    /// One sentence without a full stop.
    pub(crate) what: String,
    pub(crate) got: Option<String>,
    pub(crate) expected: Option<String>,
    pub(crate) hint: Option<String>,
    pub(crate) code: Option<&'static str>,
    pub(crate) field: Option<String>,
}

impl Fault {
    pub(crate) fn new(class: &'static str, what: impl Into<String>) -> Self {
        Self { class, what: what.into(), ..Self::default() }
    }

    /// A broken invariant inside pyrite.
    pub(crate) fn internal(what: impl Into<String>) -> Self {
        Self {
            hint: Some("this is a bug in pyrite; please report it with the prompt and settings".into()),
            ..Self::new("InternalError", what)
        }
    }

    pub(crate) fn got(self, got: impl ToString) -> Self {
        Self { got: Some(got.to_string()), ..self }
    }

    pub(crate) fn expected(self, expected: impl ToString) -> Self {
        Self { expected: Some(expected.to_string()), ..self }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    pub(crate) fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    pub(crate) fn field(self, field: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..self }
    }

    fn build(self, py: Python<'_>) -> PyResult<PyErr> {
        let class = py.import("pyrite.errors")?.getattr(self.class)?;
        let kwargs = PyDict::new(py);
        kwargs.set_item("got", self.got)?;
        kwargs.set_item("expected", self.expected)?;
        kwargs.set_item("hint", self.hint)?;
        kwargs.set_item("code", self.code)?;
        kwargs.set_item("field", self.field)?;
        Ok(PyErr::from_value(class.call((self.what,), Some(&kwargs))?))
    }
}

impl From<Fault> for PyErr {
    fn from(fault: Fault) -> Self {
        Python::attach(|py| fault.build(py).unwrap_or_else(|error| error))
    }
}

/// Run `work` without the GIL; a panic inside becomes an `InternalError` instead of killing the caller.
pub(crate) fn detached<T, E>(py: Python<'_>, work: impl FnOnce() -> Result<T, E> + Send) -> PyResult<T>
where
    T: Send,
    E: Send,
    Fault: From<E>,
{
    let outcome = py.detach(|| std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)));
    match outcome {
        Ok(result) => result.map_err(|error| Fault::from(error).into()),
        Err(payload) => {
            let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
            Err(Fault::internal(format!("panic: {}", text.as_deref().unwrap_or("unknown"))).into())
        }
    }
}

impl From<pyrite_cpu::error::CpuError> for Fault {
    fn from(error: pyrite_cpu::error::CpuError) -> Self {
        use pyrite_cpu::error::CpuError;
        let text = error.to_string();
        match error {
            CpuError::Threads { .. } => {
                Self::new("BackendError", text).code("threads_refused").hint("lower num_threads")
            }
            CpuError::Panicked { .. } => Self::internal(text),
            CpuError::OutOfMemory { .. } | CpuError::DoesNotFit { .. } => Self::new("CapacityError", text)
                .code("out_of_memory")
                .hint("lower kv_cache_memory or max_model_len, or close other processes"),
            CpuError::Checkpoint { file, tensor, reason } => {
                let fault = Self::new("CheckpointError", format!("{file}: {reason}")).code(reason.code());
                match tensor {
                    Some(tensor) => fault.field(tensor),
                    None => fault,
                }
            }
            CpuError::Program { .. } => Self::internal(text),
            CpuError::Step { .. } => Self::new("ShapeError", text).code("invalid_step"),
            CpuError::Config { field, what } => Self::new("ConfigError", what).field(field),
            CpuError::Interrupted => Self::new("BackendError", text).code("interrupted"),
        }
    }
}

impl From<pyrite_sample::SampleError> for Fault {
    fn from(error: pyrite_sample::SampleError) -> Self {
        use pyrite_sample::SampleError;
        let text = error.to_string();
        match error {
            SampleError::OutOfRange { field, got, expected } => {
                Self::new("RequestError", "out of range").field(field).got(got).expected(expected)
            }
            SampleError::NonFinite { .. } | SampleError::NoFiniteLogit { .. } => {
                Self::new("BackendError", text).code("model_numerics")
            }
            SampleError::BadCandidates { .. } => Self::internal(text),
            SampleError::EmptyStop { .. } | SampleError::StopTooLarge { .. } => {
                Self::new("RequestError", text).field("stop")
            }
        }
    }
}

impl From<pyrite_sched::SchedError> for Fault {
    fn from(error: pyrite_sched::SchedError) -> Self {
        use pyrite_kv::KvError;
        use pyrite_sched::SchedError;
        let text = error.to_string();
        match error {
            SchedError::Config { field, got, expected }
            | SchedError::Kv(KvError::Config { field, got, expected }) => {
                Self::new("ConfigError", "out of range").field(field).got(got).expected(expected)
            }
            SchedError::EmptyPrompt => Self::new("RequestError", text).code("empty_prompt").field("prompt"),
            SchedError::PromptTooLong { .. } => Self::new("RequestError", text)
                .code("context_length_exceeded")
                .field("prompt")
                .hint("shorten the prompt or raise max_model_len"),
            SchedError::NoOutput => Self::new("RequestError", text).field("max_tokens"),
            SchedError::NegativeToken { field, .. } => Self::new("RequestError", text).field(field),
            SchedError::DuplicateId { .. } => Self::new("RequestError", text).field("seq_id"),
            SchedError::CannotFit { .. } => Self::new("CapacityError", text)
                .code("kv_cache_too_small")
                .hint("lower max_tokens, or raise kv_cache_memory"),
            SchedError::Kv(
                KvError::NoBlocks { .. }
                | KvError::DoubleFree { .. }
                | KvError::ForeignBlock { .. }
                | KvError::UnknownSequence { .. }
                | KvError::SequenceExists { .. }
                | KvError::WritesPending { .. }
                | KvError::Range { .. }
                | KvError::Broken { .. },
            )
            | SchedError::Broken { .. } => Self::internal(text),
        }
    }
}
