//! A packed model with its KV blocks, scratch memory and threads: runs one program, one call per step.

mod compile;
mod fuse;
mod prefault;
mod profile;
mod replay;
mod step_check;

use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::error::CpuError;
use crate::isa::Isa;
use crate::memory;
use crate::ops::attention::{AttentionScratch, AttentionScratchSpec, KvPool, KvType};
use crate::ops::linear::LinearScratch;
use crate::packed_file::{PackedFolder, PackedReport};
use crate::pool::Pool;
use crate::program::{Op, ParameterKind, Program};
use crate::step::StepView;
use crate::tensor::{AlignedBytes, DType, RowsMut};
use crate::weights::{Progress, Weights};

use compile::{Plan, compile};
use prefault::Prefault;
pub use profile::OpProfile;
use profile::Profile;
use replay::Replay;
use step_check::GroupLimits;

/// Longest sequence of a program whose groups all have windows, so that no pool bounds it.
const MAX_WINDOWED_LEN: usize = 1 << 18;
/// Largest step, batch, thread count and number of KV slots that a configuration may ask for.
const MAX_STEP_TOKENS: usize = 1 << 20;
const MAX_THREADS: usize = 1024;
const MAX_SLOTS: usize = i32::MAX as usize;

/// Sizes and types that are the user's choice, not the model's.
#[derive(Clone, Debug)]
pub struct ExecutorConfig {
    /// Tokens of a KV block.
    pub block_size: usize,
    /// Blocks of each KV group.
    pub num_blocks: Vec<usize>,
    /// Most tokens of a step (T).
    pub max_tokens: usize,
    /// Most rows of a step that want logits (R).
    pub max_rows: usize,
    /// Most sequences of a step (S).
    pub max_seqs: usize,
    /// Type of cached keys and values.
    pub kv_dtype: KvType,
    /// Convert matrices to this type; None keeps the checkpoint's.
    pub weight_dtype: Option<DType>,
    /// Workers, the calling thread included.
    pub num_threads: usize,
    /// Instruction level.
    pub isa: Isa,
}

/// What an executor is and holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecutorInfo {
    /// Instruction level.
    pub isa: Isa,
    /// Workers, the calling thread included.
    pub num_threads: usize,
    /// Bytes of packed weights.
    pub weight_bytes: usize,
    /// Bytes of KV blocks.
    pub kv_bytes: usize,
    /// Bytes of activations and of the kernels' own memory.
    pub scratch_bytes: usize,
}

/// Runs one program on the CPU. Everything is allocated by [`load`](Self::load); a step allocates nothing.
pub struct Executor {
    pool: Pool,
    prefault: Prefault,
    model: Model,
    limits: Limits,
    groups: Vec<GroupLimits>,
    step_mark: u32,
    /// One per phase.
    labels: Vec<String>,
    profile: Option<Profile>,
}

/// What the workers share in a step.
struct Model {
    isa: Isa,
    plan: Plan,
    weights: Weights,
    kv: Arc<[KvPool]>,
    windows: Vec<Option<usize>>,
    attention: Vec<AttentionScratch>,
    linear: LinearScratch,
    arena: AlignedBytes,
    rope: RopeScratch,
    vocab_size: usize,
}

/// cos and sin of a step's positions: per table `[max_tokens, 2, len(inv_freq)]` f32.
struct RopeScratch {
    tables: Vec<RopeTable>,
    memory: AlignedBytes,
}

struct RopeTable {
    inv_freq: Vec<f32>,
    scale: f32,
    /// First element in the memory.
    first: usize,
}

/// What a step may not exceed.
struct Limits {
    max_tokens: usize,
    max_rows: usize,
    max_seqs: usize,
    max_len: usize,
    block_size: usize,
    vocab_size: usize,
    num_token_ids: usize,
}

impl Executor {
    /// [`load_with`](Self::load_with) without packed files.
    ///
    /// # Errors
    /// Those of `load_with`.
    pub fn load(
        program: Program,
        checkpoint: &Checkpoint,
        config: ExecutorConfig,
        progress: &mut Progress<'_>,
    ) -> Result<Self, CpuError> {
        Ok(Self::load_with(program, checkpoint, config, None, progress)?.0)
    }

    /// Allocate everything and load the weights, through the packed files of a folder where one is given.
    ///
    /// `progress` is called from this thread, several times a second, and may stop the load.
    ///
    /// # Errors
    /// [`CpuError::Config`] for a bad setting, [`CpuError::DoesNotFit`] or [`CpuError::OutOfMemory`] when weights, KV
    /// blocks or scratch do not fit, [`CpuError::Threads`], and all of [`Weights::load`].
    pub fn load_with(
        program: Program,
        checkpoint: &Checkpoint,
        config: ExecutorConfig,
        packed: Option<&PackedFolder>,
        progress: &mut Progress<'_>,
    ) -> Result<(Self, PackedReport), CpuError> {
        check_config(&program, &config)?;
        let limits = limits(&program, &config);
        let plan = compile(&program, config.max_tokens, config.max_rows)?;
        check_memory(&program, checkpoint, &config, &plan)?;
        let arena = AlignedBytes::zeroed(4 * plan.arena_len)?;
        let rope = RopeScratch::new(&program, config.max_tokens)?;
        let linear = LinearScratch::new(
            config.max_tokens.max(config.max_rows),
            widest_input(&program),
            config.num_threads,
        )?;
        let attention = attention_scratch(&plan, &limits, config.num_threads)?;
        let kv = program.kv_groups.iter().zip(&config.num_blocks).map(|(group, &num_blocks)| {
            let (layers, heads, head_dim) = (group.num_layers, group.num_kv_heads, group.head_dim);
            let dtype = config.kv_dtype.at_level(config.isa, head_dim);
            KvPool::zeroed(layers, num_blocks, config.block_size, heads, head_dim, dtype)
        });
        let kv: Arc<[KvPool]> = kv.collect::<Result<_, _>>()?;
        let groups = group_limits(&program, &config)?;
        let mut pool = Pool::new(config.num_threads)?;
        let (dtype, pool_mut) = (config.weight_dtype, &mut pool);
        let (weights, report) = match packed {
            Some(folder) => folder.load(&program, checkpoint, dtype, pool_mut, progress)?,
            None => {
                (Weights::load(&program, checkpoint, dtype, pool_mut, progress)?, PackedReport::default())
            }
        };
        let prefault = Prefault::start(Arc::clone(&kv), config.num_threads);
        let windows = program.kv_groups.iter().map(|group| group.window).collect();
        let vocab_size = program.vocab_size;
        let (isa, labels) = (config.isa, profile::labels(&plan, &program));
        let model = Model { isa, plan, weights, kv, windows, attention, linear, arena, rope, vocab_size };
        Ok((Self { pool, prefault, model, limits, groups, step_mark: 0, labels, profile: None }, report))
    }

    /// Run one step: block copies first, then every op. Writes the first R rows of `logits`, `[R, vocab_size]`.
    ///
    /// # Errors
    /// [`CpuError::Step`] when the step or `logits` does not fit, before anything has been written;
    /// [`CpuError::Panicked`] when a worker failed, after which the cache content of the step's sequences is
    /// undefined.
    pub fn run(&mut self, step: &StepView<'_>, logits: &mut [f32]) -> Result<(), CpuError> {
        let mark = self.next_mark();
        let size = step_check::check(&self.limits, &mut self.groups, mark, step, logits.len())?;
        let _running = self.prefault.step();
        for (group, view) in step.groups.iter().enumerate() {
            self.prefault.note(group, view.slot_mapping);
        }
        let vocab_size = self.model.vocab_size;
        // SAFETY: the check made sure that R rows fit in the slice, which stays borrowed until the pool is done.
        let logits = unsafe { RowsMut::from_raw(logits.as_mut_ptr(), size.rows, vocab_size, vocab_size) };
        if let Some(profile) = &mut self.profile {
            profile.begin();
        }
        let replay = Replay { model: &self.model, step, size, logits, profile: self.profile.as_ref() };
        self.pool.run_step(|worker| replay.run(worker))?;
        if let Some(profile) = &mut self.profile {
            profile.end(&self.model, step, size);
        }
        Ok(())
    }

    /// Call `work` for every item of `0..items` exactly once over the threads of the pool, which have nothing to do between
    /// two steps; `own` makes what a thread's calls pass on.
    ///
    /// # Errors
    /// [`CpuError::Panicked`] when a call panicked.
    pub fn share<S>(
        &mut self,
        items: usize,
        own: impl Fn() -> S + Sync,
        work: impl Fn(&mut S, usize) + Sync,
    ) -> Result<(), CpuError> {
        self.pool.run_step(|worker| {
            let mut own = own();
            worker.share(items, |item| work(&mut own, item));
        })
    }

    /// Measure every step from here on, from zero.
    pub fn start_profile(&mut self) {
        self.profile = Some(Profile::new(&self.model.plan, &self.labels, &self.model));
    }

    /// What the steps since [`start_profile`](Self::start_profile) took, and measure no more. Empty when nothing was
    /// measured.
    pub fn end_profile(&mut self) -> Vec<OpProfile> {
        self.profile.take().map_or_else(Vec::new, |profile| profile.ops().to_vec())
    }

    /// Level, threads and memory.
    pub fn info(&self) -> ExecutorInfo {
        let model = &self.model;
        let attention: usize = model.attention.iter().map(AttentionScratch::bytes).sum();
        let marks = |group: &GroupLimits| 4 * (group.slot_marks.len() + group.block_marks.len());
        let marks: usize = self.groups.iter().map(marks).sum();
        let own = model.arena.len() + model.rope.memory.len() + model.linear.bytes();
        ExecutorInfo {
            isa: model.isa,
            num_threads: self.pool.count(),
            weight_bytes: model.weights.bytes(),
            kv_bytes: model.kv.iter().map(KvPool::bytes).sum(),
            scratch_bytes: own + attention + marks,
        }
    }

    /// A mark that no slot and no block carries yet.
    fn next_mark(&mut self) -> u32 {
        if self.step_mark >= u32::MAX / 2 - 1 {
            self.step_mark = 0;
            for group in &mut self.groups {
                group.slot_marks.fill(0);
                group.block_marks.fill(0);
            }
        }
        self.step_mark += 1;
        self.step_mark
    }
}

impl RopeScratch {
    fn new(program: &Program, max_tokens: usize) -> Result<Self, CpuError> {
        let mut len = 0;
        let mut tables = Vec::with_capacity(program.rope_tables.len());
        for table in &program.rope_tables {
            tables.push(RopeTable { inv_freq: table.inv_freq.clone(), scale: table.scale, first: len });
            len += 2 * table.inv_freq.len() * max_tokens;
        }
        Ok(Self { tables, memory: AlignedBytes::zeroed(4 * len)? })
    }
}

fn check_config(program: &Program, config: &ExecutorConfig) -> Result<(), CpuError> {
    let fault = |field, what| Err(CpuError::Config { field, what });
    for (field, got, most) in [
        ("max_tokens", config.max_tokens, MAX_STEP_TOKENS),
        ("max_rows", config.max_rows, MAX_STEP_TOKENS),
        ("max_seqs", config.max_seqs, MAX_STEP_TOKENS),
        ("num_threads", config.num_threads, MAX_THREADS),
        ("block_size", config.block_size, 1 << 16),
    ] {
        if !(1..=most).contains(&got) {
            return fault(field, format!("got {got}, expected 1 to {most}"));
        }
    }
    if !config.isa.is_supported() {
        return fault("isa", format!("this processor has no {}", config.isa));
    }
    let (got, groups) = (config.num_blocks.len(), program.kv_groups.len());
    if got != groups {
        return fault("num_blocks", format!("got {got} entries for {groups} KV groups"));
    }
    match config.num_blocks.iter().find(|&&count| !(1..=MAX_SLOTS / config.block_size).contains(&count)) {
        Some(count) => {
            fault("num_blocks", format!("got {count}, expected 1 to {}", MAX_SLOTS / config.block_size))
        }
        None => Ok(()),
    }
}

/// Refuse what would not fit, while nothing is allocated yet: the system grants memory that it does not have, and
/// kills later.
fn check_memory(
    program: &Program,
    checkpoint: &Checkpoint,
    config: &ExecutorConfig,
    plan: &Plan,
) -> Result<(), CpuError> {
    let weights = Weights::needed_bytes(program, checkpoint, config.weight_dtype)?;
    let kv = program.kv_groups.iter().zip(&config.num_blocks).map(|(group, &num_blocks)| {
        let factors = [2, group.num_layers, group.num_kv_heads, config.block_size, num_blocks];
        factors.into_iter().fold(config.kv_dtype.head_bytes(group.head_dim), usize::saturating_mul)
    });
    let needed_bytes = kv.fold(weights.saturating_add(4 * plan.arena_len), usize::saturating_add);
    match memory::available_bytes() {
        Some(available_bytes) if needed_bytes > available_bytes => {
            Err(CpuError::DoesNotFit { needed_bytes, available_bytes })
        }
        _ => Ok(()),
    }
}

fn limits(program: &Program, config: &ExecutorConfig) -> Limits {
    // Groups without a window hold a sequence whole.
    let groups = program.kv_groups.iter().zip(&config.num_blocks);
    let whole = groups.filter(|(group, _)| group.window.is_none()).map(|(_, &blocks)| blocks);
    Limits {
        max_tokens: config.max_tokens,
        max_rows: config.max_rows,
        max_seqs: config.max_seqs,
        max_len: whole.min().map_or(MAX_WINDOWED_LEN, |blocks| blocks * config.block_size),
        block_size: config.block_size,
        vocab_size: program.vocab_size,
        num_token_ids: program.num_token_ids(),
    }
}

fn group_limits(program: &Program, config: &ExecutorConfig) -> Result<Vec<GroupLimits>, CpuError> {
    let marks = |len: usize| {
        let mut marks = Vec::new();
        marks.try_reserve_exact(len).map_err(|_| CpuError::OutOfMemory { needed_bytes: 4 * len })?;
        marks.resize(len, 0);
        Ok(marks)
    };
    let groups = program.kv_groups.iter().zip(&config.num_blocks);
    let limits = groups.map(|(group, &num_blocks)| {
        let (slot_marks, block_marks) = (marks(num_blocks * config.block_size)?, marks(num_blocks)?);
        Ok(GroupLimits { window: group.window, num_blocks, slot_marks, block_marks })
    });
    limits.collect()
}

/// Columns of the widest matrix that a `linear` uses.
fn widest_input(program: &Program) -> usize {
    let matrices = program.parameters.iter().filter(|parameter| parameter.kind == ParameterKind::Matrix);
    let used =
        |name: &str| program.ops.iter().any(|op| matches!(op, Op::Linear { weight, .. } if weight == name));
    matrices.filter(|matrix| used(&matrix.name)).map(|matrix| matrix.shape[1]).max().unwrap_or(1)
}

fn attention_scratch(
    plan: &Plan,
    limits: &Limits,
    num_workers: usize,
) -> Result<Vec<AttentionScratch>, CpuError> {
    let of = |shape: &compile::HeadShape| {
        AttentionScratch::new(AttentionScratchSpec {
            max_tokens: limits.max_tokens,
            max_seqs: limits.max_seqs,
            max_len: limits.max_len,
            num_heads: shape.num_heads,
            num_kv_heads: shape.num_kv_heads,
            head_dim: shape.head_dim,
            num_workers,
        })
    };
    plan.head_shapes.iter().map(of).collect()
}
