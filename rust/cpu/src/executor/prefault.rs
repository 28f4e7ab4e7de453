//! Makes the memory of KV blocks present before a step writes to it.
//!
//! The first write to a page waits until the system has found and cleared one: where a virtual machine gets its memory
//! from a host, that is a fifth of a prefill's time. Blocks are handed out in ascending order, so a thread that runs only
//! while a processor is idle keeps those that follow the highest one in use present. What nobody comes near stays
//! unpopulated.
//!
//! Where steps take every processor it also waits for a pause between them. The lowest priority is not enough there: the
//! system clears a huge page in one go, which takes 1 ms in a virtual machine, and a worker that waits so long for its processor
//! is [left out](crate::pool), whereupon that processor is idle, and this thread has it until all is present.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::ops::attention::KvPool;

/// Bytes of blocks, of all groups, that are kept present beyond those in use.
const AHEAD_BYTES: usize = 512 << 20;
/// Bytes of a layer that are populated at once: a huge page.
const STEP_BYTES: usize = 2 << 20;
/// After so long without a step no other is expected at once: less lies between two that follow each other.
const PAUSE: Duration = Duration::from_millis(5);

/// The thread and what it works on. Dropping it waits for the thread, a few milliseconds at most.
pub(super) struct Prefault {
    shared: Arc<Shared>,
    /// None where the system gave no thread: then steps find their pages themselves.
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    kv: Arc<[KvPool]>,
    /// Per group: one more than the highest block used.
    used: Vec<AtomicUsize>,
    /// Advances when a step begins and when it ends: odd while one runs.
    steps: AtomicUsize,
    /// Whether to wait for a pause between steps.
    in_pauses: bool,
    stop: AtomicBool,
}

/// Ends a step when it is dropped.
pub(super) struct Running<'a>(&'a AtomicUsize);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Prefault {
    /// Begin with the first blocks, beside steps that take so many threads.
    pub(super) fn start(kv: Arc<[KvPool]>, num_threads: usize) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self::with_ahead(kv, AHEAD_BYTES, num_threads >= processors)
    }

    fn with_ahead(kv: Arc<[KvPool]>, ahead_bytes: usize, in_pauses: bool) -> Self {
        let used = kv.iter().map(|_| AtomicUsize::new(0)).collect();
        let (steps, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let shared = Arc::new(Shared { kv, used, steps, in_pauses, stop });
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("pyrite-prefault".into());
        let thread = thread.spawn(move || {
            run_when_idle();
            own.run(ahead_bytes);
        });
        Self { shared, thread: thread.ok() }
    }

    /// A step begins, and ends with what is returned.
    pub(super) fn step(&self) -> Running<'_> {
        self.shared.steps.fetch_add(1, Ordering::Relaxed);
        Running(&self.shared.steps)
    }

    /// A step is about to write to these slots of a group.
    pub(super) fn note(&self, group: usize, slot_mapping: &[i32]) {
        let block_size = self.shared.kv[group].block_size();
        let highest = slot_mapping.iter().copied().max().and_then(|slot| usize::try_from(slot).ok());
        let Some(used) = highest.map(|slot| slot / block_size + 1) else { return };
        if self.shared.used[group].fetch_max(used, Ordering::Relaxed) < used
            && let Some(thread) = &self.thread
        {
            thread.thread().unpark();
        }
    }
}

impl Drop for Prefault {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It cannot panic with anything held.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Populate until told to stop, or until the system does not know how to.
    fn run(&self, ahead_bytes: usize) {
        let all: usize = self.kv.iter().map(KvPool::bytes).sum();
        let ahead = |pool: &KvPool| {
            let share = ahead_bytes as f64 * pool.bytes() as f64 / all as f64;
            (share / (pool.num_layers() * pool.block_bytes()) as f64).ceil() as usize
        };
        let ahead: Vec<usize> = self.kv.iter().map(ahead).collect();
        let (mut present, mut quiet) = (vec![0; self.kv.len()], 0);
        while !self.stop.load(Ordering::Relaxed) {
            let mut idle = true;
            for (group, pool) in self.kv.iter().enumerate() {
                let used = self.used[group].load(Ordering::Relaxed);
                let end = pool.num_blocks().min(used.saturating_add(ahead[group]));
                if present[group] < end {
                    let at_once = (STEP_BYTES / pool.block_bytes()).max(1);
                    let blocks = present[group]..end.min(present[group] + at_once);
                    present[group] = blocks.end;
                    idle = false;
                    if !self.populate(pool, &blocks, &mut quiet) {
                        return;
                    }
                }
            }
            if idle {
                std::thread::park();
            }
        }
    }

    /// Some blocks of all layers; false when there is no use in going on.
    fn populate(&self, pool: &KvPool, blocks: &Range<usize>, quiet: &mut usize) -> bool {
        (0..pool.num_layers()).all(|layer| self.wait_for_pause(quiet) && pool.populate(layer, blocks.clone()))
    }

    /// Wait for a pause, if steps take every processor; false when told to stop. At the last pause `steps` was `quiet`.
    fn wait_for_pause(&self, quiet: &mut usize) -> bool {
        let mut seen = self.steps.load(Ordering::Relaxed);
        while self.in_pauses && seen != *quiet && !self.stop.load(Ordering::Relaxed) {
            std::thread::sleep(PAUSE);
            let now = self.steps.load(Ordering::Relaxed);
            if now == seen && now.is_multiple_of(2) {
                *quiet = now;
            }
            seen = now;
        }
        !self.stop.load(Ordering::Relaxed)
    }
}

/// Give this thread only what no other thread wants.
fn run_when_idle() {
    #[cfg(target_os = "linux")]
    // SAFETY: of this thread alone; a refusal is harmless.
    unsafe {
        let parameter: libc::sched_param = std::mem::zeroed();
        libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameter);
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::time::{Duration, Instant};

    use super::*;
    use crate::ops::attention::KvType;

    const LAYERS: usize = 3;
    const BLOCKS: usize = 64;

    /// 64 blocks of 128 KiB in each of three layers.
    fn pools() -> Arc<[KvPool]> {
        let pool = |_| KvPool::zeroed(LAYERS, BLOCKS, 128, 2, 128, KvType::Int8).unwrap();
        (0..2).map(pool).collect()
    }

    fn until(what: impl Fn() -> bool) -> bool {
        let started = Instant::now();
        while !what() && started.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(2));
        }
        what()
    }

    fn all_present(pool: &KvPool, blocks: Range<usize>) -> bool {
        (0..LAYERS).all(|layer| pool.is_present(layer, blocks.clone()))
    }

    /// Two pools and a thread that has made the first 4 blocks of each present; nothing on an old kernel.
    fn started(in_pauses: bool) -> Option<(Arc<[KvPool]>, Prefault)> {
        let kv = pools();
        let bytes = LAYERS * kv[0].block_bytes();
        kv[0].populate(0, 0..1).then(|| {
            let prefault = Prefault::with_ahead(Arc::clone(&kv), 2 * 4 * bytes, in_pauses);
            assert!(until(|| kv.iter().all(|pool| all_present(pool, 0..4))));
            (kv, prefault)
        })
    }

    #[test]
    fn blocks_ahead_of_the_used_ones_are_present() {
        let Some((kv, prefault)) = started(false) else { return };
        prefault.note(1, &[-1, 40 * 128 + 5, 3]);
        assert!(until(|| all_present(&kv[1], 0..45)));
        prefault.note(1, &[-1]);
        prefault.note(0, &[(BLOCKS * 128 - 1) as i32]);
        assert!(until(|| all_present(&kv[0], 0..BLOCKS)));
        drop(prefault);
        assert_eq!(Arc::strong_count(&kv), 1, "the thread is gone");
    }

    #[test]
    fn steps_that_take_every_processor_are_not_disturbed() {
        let Some((kv, prefault)) = started(true) else { return };
        let step = prefault.step();
        prefault.note(1, &[40 * 128]);
        std::thread::sleep(10 * PAUSE);
        assert!(!all_present(&kv[1], 0..45), "a step runs");
        drop(step);
        assert!(until(|| all_present(&kv[1], 0..45)));
    }
}
