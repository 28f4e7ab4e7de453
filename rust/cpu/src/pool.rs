//! The worker pool of one executor: threads that live as long as it does, meet at barriers and share work.
//!
//! A step is one call of [`Pool::run`]: every worker runs the same closure, the calling thread as worker 0.
//! Inside it [`Worker::share`] splits items over the workers and [`Worker::barrier`] lines them up. Waiting
//! spins for about 50 µs and then parks, so idle engines cost nothing and two engines do not starve each other.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::CpuError;

const SPIN: Duration = Duration::from_micros(50);

/// Threads that run steps together. Dropping it joins them.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// One worker's place in the step that is running.
pub struct Worker<'a> {
    index: usize,
    shared: &'a Shared,
    region: Cell<u64>,
}

type Job = dyn Fn(&Worker<'_>) + Sync;

struct Shared {
    count: usize,
    /// Advances when a job is ready (or the pool is closing).
    start: Gate,
    /// Advances when the last worker reaches a barrier; the end of a job is a barrier too.
    meet: Gate,
    arrived: AtomicUsize,
    finished: AtomicUsize,
    done: Gate,
    closing: AtomicBool,
    /// Set by a worker that panicked: the others leave their barriers by unwinding.
    panicked: AtomicBool,
    job: Mutex<Option<JobPtr>>,
    slots: Vec<Slot>,
}

#[derive(Clone, Copy)]
struct JobPtr(*const Job);
// SAFETY: the pointee is `Sync`, and `Pool::run` does not return before every worker is done with it.
unsafe impl Send for JobPtr {}

/// What is left of one worker's share: region tag (16 bits), first item (24), end (24). Owner takes from the
/// front, thieves from the back, so each worker streams one contiguous range for as long as it can.
#[repr(align(128))]
struct Slot(AtomicU64);

const ITEM_BITS: u32 = 24;
const MAX_ITEMS: usize = (1 << ITEM_BITS) - 1;

fn pack(region: u64, begin: usize, end: usize) -> u64 {
    (region & 0xffff) << 48 | (begin as u64) << ITEM_BITS | end as u64
}

fn unpack(word: u64) -> (u64, usize, usize) {
    let mask = MAX_ITEMS as u64;
    (word >> 48, (word >> ITEM_BITS & mask) as usize, (word & mask) as usize)
}

impl Slot {
    /// Take one item of this slot in `region`, whose full range is `whole`. A slot that still holds an older
    /// region belongs to a worker that has not arrived yet: its whole range is up for grabs.
    fn take(&self, region: u64, whole: (usize, usize), from_front: bool) -> Option<usize> {
        let mut seen = self.0.load(SeqCst);
        loop {
            let (tag, begin, end) = unpack(seen);
            let (begin, end) = if tag == region & 0xffff { (begin, end) } else { whole };
            if begin >= end {
                return None;
            }
            let (item, next) = if from_front {
                (begin, pack(region, begin + 1, end))
            } else {
                (end - 1, pack(region, begin, end - 1))
            };
            match self.0.compare_exchange_weak(seen, next, SeqCst, SeqCst) {
                Ok(_) => return Some(item),
                Err(now) => seen = now,
            }
        }
    }
}

/// A counter that threads wait on: spin first, then sleep.
struct Gate {
    value: AtomicUsize,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Gate {
    fn new() -> Self {
        Self {
            value: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    fn now(&self) -> usize {
        self.value.load(SeqCst)
    }

    fn advance(&self) {
        self.value.fetch_add(1, SeqCst);
        self.wake_all();
    }

    fn wake_all(&self) {
        if self.sleepers.load(SeqCst) > 0 {
            let _guard = lock(&self.lock);
            self.wake.notify_all();
        }
    }

    /// Wait until the value differs from `seen` or `cancelled` is set.
    fn wait(&self, seen: usize, cancelled: &AtomicBool) {
        let over = || self.now() != seen || cancelled.load(SeqCst);
        let mut spins = 0u32;
        let mut started: Option<Instant> = None;
        while !over() {
            std::hint::spin_loop();
            spins += 1;
            if spins.is_multiple_of(256) && started.get_or_insert_with(Instant::now).elapsed() > SPIN {
                let mut guard = lock(&self.lock);
                self.sleepers.fetch_add(1, SeqCst);
                while !over() {
                    guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
                }
                self.sleepers.fetch_sub(1, SeqCst);
                return;
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What unwinds out of a barrier when another worker panicked.
struct OtherWorkerPanicked;

impl Pool {
    /// Start `count - 1` threads; the caller of [`run`](Self::run) is the remaining worker.
    ///
    /// # Errors
    /// [`CpuError::Threads`] when the system refuses a thread; those already started are joined.
    pub fn new(count: usize) -> Result<Self, CpuError> {
        let count = count.max(1);
        let shared = Arc::new(Shared {
            count,
            start: Gate::new(),
            meet: Gate::new(),
            arrived: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            done: Gate::new(),
            closing: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            job: Mutex::new(None),
            slots: (0..count).map(|_| Slot(AtomicU64::new(pack(0xffff, 0, 0)))).collect(),
        });
        let mut pool = Self { shared, threads: Vec::with_capacity(count - 1) };
        for index in 1..count {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new()
                .name(format!("pyrite-cpu-{index}"))
                .spawn(move || worker_loop(&shared, index))
                .map_err(|source| CpuError::Threads { wanted: count, source })?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Number of workers, the calling thread included.
    pub fn count(&self) -> usize {
        self.shared.count
    }

    /// Run `job` once on every worker and wait for all of them. `&mut self`: one job at a time.
    ///
    /// # Errors
    /// [`CpuError::Panicked`] when the job panicked on any worker; the pool stays usable.
    pub fn run<F: Fn(&Worker<'_>) + Sync>(&mut self, job: F) -> Result<(), CpuError> {
        let shared = &*self.shared;
        let job: *const (dyn Fn(&Worker<'_>) + Sync + '_) = &raw const job;
        // SAFETY: only the lifetime is erased; this call waits below until every worker has finished with it.
        let pointer = JobPtr(unsafe {
            std::mem::transmute::<*const (dyn Fn(&Worker<'_>) + Sync + '_), *const Job>(job)
        });
        shared.arrived.store(0, SeqCst);
        shared.finished.store(0, SeqCst);
        shared.panicked.store(false, SeqCst);
        let done = shared.done.now();
        *lock(&shared.job) = Some(pointer);
        shared.start.advance();
        let mine = run_job(shared, 0, pointer);
        if shared.finished.load(SeqCst) < shared.count {
            shared.done.wait(done, &AtomicBool::new(false));
        }
        *lock(&shared.job) = None;
        match mine {
            Some(message) => Err(CpuError::Panicked { message }),
            None if shared.panicked.load(SeqCst) => {
                Err(CpuError::Panicked { message: "a worker thread panicked".into() })
            }
            None => Ok(()),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.closing.store(true, SeqCst);
        self.shared.start.advance();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn worker_loop(shared: &Shared, index: usize) {
    let never = AtomicBool::new(false);
    let mut seen = 0;
    loop {
        shared.start.wait(seen, &never);
        seen = seen.wrapping_add(1);
        if shared.closing.load(SeqCst) {
            return;
        }
        let Some(job) = *lock(&shared.job) else { continue };
        run_job(shared, index, job);
    }
}

/// Run the job as worker `index`; returns the message if it was this worker that panicked.
fn run_job(shared: &Shared, index: usize, job: JobPtr) -> Option<String> {
    let worker = Worker { index, shared, region: Cell::new(0) };
    // SAFETY: `Pool::run` keeps the closure alive until `finished` reaches the number of workers.
    let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { (*job.0)(&worker) }));
    let message = outcome.err().and_then(|payload| panic_message(&*payload));
    if message.is_some() {
        shared.panicked.store(true, SeqCst);
        shared.meet.wake_all();
    }
    // The tags of this job must not be taken for those of the next one.
    shared.slots[index].0.store(pack(0xffff, 0, 0), SeqCst);
    if shared.finished.fetch_add(1, SeqCst) + 1 == shared.count {
        shared.done.advance();
    }
    message
}

fn panic_message(payload: &(dyn Any + Send)) -> Option<String> {
    if payload.is::<OtherWorkerPanicked>() {
        return None;
    }
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    Some(text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown panic".into()))
}

impl Worker<'_> {
    /// This worker's number, 0 for the thread that called [`Pool::run`].
    pub fn index(&self) -> usize {
        self.index
    }

    /// How many workers run this step.
    pub fn count(&self) -> usize {
        self.shared.count
    }

    /// Wait until every worker is here. What was written before it is visible to all after it.
    pub fn barrier(&self) {
        let shared = self.shared;
        if shared.count == 1 {
            return;
        }
        let seen = shared.meet.now();
        if shared.arrived.fetch_add(1, SeqCst) + 1 == shared.count {
            shared.arrived.store(0, SeqCst);
            shared.meet.advance();
        } else {
            shared.meet.wait(seen, &shared.panicked);
        }
        if shared.panicked.load(SeqCst) {
            resume_unwind(Box::new(OtherWorkerPanicked));
        }
    }

    /// Call `work` for every item of `0..items` exactly once over all workers, then meet at a barrier.
    ///
    /// Every worker must make the same sequence of `share` calls with the same `items`. A worker walks its own
    /// contiguous part in ascending order and then helps the others from the back of theirs; which worker
    /// gets an item may differ from run to run, so no result may depend on it.
    pub fn share(&self, items: usize, work: impl FnMut(usize)) {
        self.share_then(items, work, || {});
    }

    /// [`share`](Self::share), and `at_end` on every worker once when it has run out of items, before the barrier.
    pub fn share_then(&self, items: usize, mut work: impl FnMut(usize), at_end: impl FnOnce()) {
        assert!(items <= MAX_ITEMS, "too many items for one region");
        let region = self.region.get().wrapping_add(1) % 0xffff;
        self.region.set(region);
        let count = self.shared.count;
        for step in 0..count {
            let owner = (self.index + step) % count;
            let whole = (items * owner / count, items * (owner + 1) / count);
            while let Some(item) = self.shared.slots[owner].take(region, whole, step == 0) {
                work(item);
            }
        }
        at_end();
        self.barrier();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn every_item_runs_once_in_every_region() {
        for count in [1, 2, 5] {
            let mut pool = Pool::new(count).unwrap();
            for items in [0, 1, 7, 100] {
                let hits: Vec<AtomicU32> = (0..items).map(|_| AtomicU32::new(0)).collect();
                pool.run(|worker| {
                    for round in 0..50u32 {
                        worker.share(items, |item| {
                            assert_eq!(hits[item].fetch_add(1, SeqCst), round);
                        });
                    }
                })
                .unwrap();
                assert!(hits.iter().all(|hit| hit.load(SeqCst) == 50));
            }
        }
    }

    #[test]
    fn a_late_worker_loses_its_share_to_the_others() {
        let mut pool = Pool::new(2).unwrap();
        let by_first = AtomicU32::new(0);
        pool.run(|worker| {
            if worker.index() == 1 {
                std::thread::sleep(Duration::from_millis(100));
            }
            worker.share(64, |_| {
                if worker.index() == 0 {
                    by_first.fetch_add(1, SeqCst);
                }
            });
        })
        .unwrap();
        assert_eq!(by_first.load(SeqCst), 64);
    }

    #[test]
    fn a_panic_on_any_worker_is_an_error_and_the_pool_lives_on() {
        let mut pool = Pool::new(3).unwrap();
        for bad in 0..3 {
            let outcome = pool.run(|worker| {
                worker.barrier();
                if worker.index() == bad {
                    panic!("planted");
                }
                worker.barrier();
            });
            assert!(matches!(outcome, Err(CpuError::Panicked { .. })));
            let sum = AtomicUsize::new(0);
            pool.run(|worker| {
                worker.share(10, |item| {
                    sum.fetch_add(item, SeqCst);
                })
            })
            .unwrap();
            assert_eq!(sum.load(SeqCst), 45);
        }
    }

    #[test]
    fn idle_workers_park() {
        let mut pool = Pool::new(2).unwrap();
        pool.run(|worker| worker.barrier()).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(pool.shared.start.sleepers.load(SeqCst), 1);
    }
}
