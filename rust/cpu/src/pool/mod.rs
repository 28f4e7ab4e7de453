//! The worker pool of one executor: threads that live as long as it does, meet at barriers and share work.
//!
//! A step is one call of [`Pool::run_step`]: every worker runs the same closure, the calling thread as worker 0.
//! Inside it [`Worker::share`] splits items over the workers and [`Worker::barrier`] lines them up. Waiting
//! spins for about 50 µs (a few hundred for the next step) and then parks, so idle engines cost nothing and two engines
//! do not starve each other.
//! A worker whose core is taken by another process is [left out](late) for a while.

mod gate;
mod late;

use std::any::Any;
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::CpuError;

use gate::{Gate, SPIN, lock};
use late::{WaitClock, Watch};

/// How long a worker spins for the next step: while one follows another, what lies between them (a draw, the caller's
/// loop) takes 100 µs, and to wake a thread takes 40 µs of the step.
const SPIN_BETWEEN_STEPS: Duration = Duration::from_micros(300);

/// Threads that run steps together. Dropping it joins them.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    watch: Watch,
}

/// One worker's place in the step that is running.
pub struct Worker<'a> {
    index: usize,
    count: usize,
    shared: &'a Shared,
    region: Cell<u64>,
    /// Arrivals at the barriers so far, once all workers are at the last one that this worker reached.
    met: Cell<usize>,
}

/// In cache lines of its own.
#[repr(align(128))]
struct Apart<T>(T);

type Job = dyn Fn(&Worker<'_>) + Sync;

struct Shared {
    /// Advances when a job is ready (or the pool is closing).
    start: Gate,
    /// Advances when a job wants more workers than the one before it.
    recall: Gate,
    /// Counts the arrivals of all workers at the barriers of a job.
    meet: Apart<Gate>,
    /// Counts the workers that have finished a job.
    done: Gate,
    closing: AtomicBool,
    /// Set by a worker that panicked: the others leave their barriers by unwinding.
    panicked: AtomicBool,
    /// Locked while `start` and `recall` advance for it.
    job: Mutex<CurrentJob>,
    slots: Vec<Slot>,
    /// Each thread sets its own.
    clocks: Vec<OnceLock<WaitClock>>,
}

#[derive(Clone, Copy)]
struct CurrentJob {
    pointer: Option<JobPtr>,
    /// The workers with a smaller index run it.
    count: usize,
}

#[derive(Clone, Copy)]
struct JobPtr(*const Job);
// SAFETY: the pointee is `Sync`, and `Pool::run_on` does not return before every worker is done with it.
unsafe impl Send for JobPtr {}

/// What is left of one worker's share: region tag (16 bits), first item (24), end (24). Owner takes from the
/// front, thieves from the back, so each worker streams one contiguous range for as long as it can.
#[repr(align(128))]
struct Slot(AtomicU64);

/// An owner takes one of so many parts of what is left, but no more items than that: each time costs it the wait for all its
/// stores, and the loads that follow cannot begin before.
const TAKES: usize = 8;
const MAX_TAKEN: usize = 4;

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
    /// Take items of this slot in `region`, whose full range is `whole`: the owner takes some from the front while many are
    /// left, a thief the last one. A slot that still holds an older region belongs to a worker that has not arrived yet: its
    /// whole range is up for grabs.
    fn take(&self, region: u64, whole: (usize, usize), from_front: bool) -> Option<Range<usize>> {
        let mut seen = self.0.load(SeqCst);
        loop {
            let (tag, begin, end) = unpack(seen);
            let (begin, end) = if tag == region & 0xffff { (begin, end) } else { whole };
            if begin >= end {
                return None;
            }
            let (taken, next) = if from_front {
                let until = begin + ((end - begin) / TAKES).clamp(1, MAX_TAKEN);
                (begin..until, pack(region, until, end))
            } else {
                (end - 1..end, pack(region, begin, end - 1))
            };
            match self.0.compare_exchange_weak(seen, next, SeqCst, SeqCst) {
                Ok(_) => return Some(taken),
                Err(now) => seen = now,
            }
        }
    }
}

/// What unwinds out of a barrier when another worker panicked.
struct OtherWorkerPanicked;

impl Pool {
    /// Start `count - 1` threads; the caller of a job is the remaining worker.
    ///
    /// # Errors
    /// [`CpuError::Threads`] when the system refuses a thread; those already started are joined.
    pub fn new(count: usize) -> Result<Self, CpuError> {
        let count = count.max(1);
        let shared = Arc::new(Shared {
            start: Gate::new(),
            recall: Gate::new(),
            meet: Apart(Gate::new()),
            done: Gate::new(),
            closing: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            job: Mutex::new(CurrentJob { pointer: None, count }),
            slots: (0..count).map(|_| Slot(AtomicU64::new(pack(0xffff, 0, 0)))).collect(),
            clocks: (0..count).map(|_| OnceLock::new()).collect(),
        });
        let mut pool = Self { shared, threads: Vec::with_capacity(count - 1), watch: Watch::new(count) };
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
        self.threads.len() + 1
    }

    /// Run `job` once on every worker and wait for all of them. `&mut self`: one job at a time.
    ///
    /// # Errors
    /// [`CpuError::Panicked`] when the job panicked on any worker; the pool stays usable.
    pub fn run<F: Fn(&Worker<'_>) + Sync>(&mut self, job: F) -> Result<(), CpuError> {
        self.run_on(self.count(), job)
    }

    /// [`run`](Self::run), without those workers that would hold the others up: [`Worker::count`] says how many there
    /// are this time.
    ///
    /// # Errors
    /// As `run`.
    pub fn run_step<F: Fn(&Worker<'_>) + Sync>(&mut self, job: F) -> Result<(), CpuError> {
        let started = Instant::now();
        let outcome = self.run_on(self.watch.active(), job);
        self.watch.after(started.elapsed(), &self.shared.clocks);
        outcome
    }

    fn run_on<F: Fn(&Worker<'_>) + Sync>(&mut self, count: usize, job: F) -> Result<(), CpuError> {
        let shared = &*self.shared;
        let job: *const (dyn Fn(&Worker<'_>) + Sync + '_) = &raw const job;
        // SAFETY: only the lifetime is erased; this call waits below until every worker has finished with it.
        let pointer = JobPtr(unsafe {
            std::mem::transmute::<*const (dyn Fn(&Worker<'_>) + Sync + '_), *const Job>(job)
        });
        shared.meet.0.reset();
        shared.done.reset();
        shared.panicked.store(false, SeqCst);
        {
            let mut current = lock(&shared.job);
            let more = count > current.count;
            *current = CurrentJob { pointer: Some(pointer), count };
            shared.start.advance();
            if more {
                shared.recall.advance();
            }
        }
        let mine = run_job(shared, 0, count, pointer);
        shared.done.wait_until(|finished| finished == count, &AtomicBool::new(false), SPIN);
        lock(&shared.job).pointer = None;
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
        self.shared.recall.advance();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn worker_loop(shared: &Shared, index: usize) {
    let _ = shared.clocks[index].set(WaitClock::of_this_thread());
    let never = AtomicBool::new(false);
    let (mut started, mut recalled, mut taking_part) = (0, 0, true);
    loop {
        match taking_part {
            true => shared.start.wait(started, &never, SPIN_BETWEEN_STEPS),
            false => shared.recall.wait(recalled, &never, Duration::ZERO),
        }
        let current = {
            let current = lock(&shared.job);
            (started, recalled) = (shared.start.now(), shared.recall.now());
            *current
        };
        // After the gates were read: a pool that closes advances them once more.
        if shared.closing.load(SeqCst) {
            return;
        }
        taking_part = index < current.count;
        if let (true, Some(job)) = (taking_part, current.pointer) {
            run_job(shared, index, current.count, job);
        }
    }
}

/// Run the job of `count` workers as worker `index`; returns the message if it was this worker that panicked.
fn run_job(shared: &Shared, index: usize, count: usize, job: JobPtr) -> Option<String> {
    let worker = Worker { index, count, shared, region: Cell::new(0), met: Cell::new(0) };
    // SAFETY: `Pool::run_on` keeps the closure alive until `done` reaches the number of workers.
    let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { (*job.0)(&worker) }));
    let message = outcome.err().and_then(|payload| panic_message(&*payload));
    if message.is_some() {
        shared.panicked.store(true, SeqCst);
        shared.meet.0.wake_all();
    }
    // The tags of this job must not be taken for those of the next one.
    shared.slots[index].0.store(pack(0xffff, 0, 0), SeqCst);
    if shared.done.arrive() == count {
        shared.done.wake_all();
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
    /// This worker's number, 0 for the thread that called [`Pool::run_step`].
    pub fn index(&self) -> usize {
        self.index
    }

    /// How many workers run this step.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Wait until every worker is here. What was written before it is visible to all after it.
    pub fn barrier(&self) {
        let shared = self.shared;
        if self.count == 1 {
            return;
        }
        let met = self.met.get() + self.count;
        self.met.set(met);
        if shared.meet.0.arrive() == met {
            shared.meet.0.wake_all();
        } else {
            shared.meet.0.wait_until(|arrived| arrived >= met, &shared.panicked, SPIN);
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
        let count = self.count;
        for step in 0..count {
            let owner = (self.index + step) % count;
            let whole = (items * owner / count, items * (owner + 1) / count);
            while let Some(items) = self.shared.slots[owner].take(region, whole, step == 0) {
                items.for_each(&mut work);
            }
        }
        at_end();
        self.barrier();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, AtomicUsize};
    use std::time::Duration;

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
    fn a_worker_that_is_left_out_takes_no_part_until_it_is_recalled() {
        let mut pool = Pool::new(3).unwrap();
        for round in 0..2000usize {
            let count = 1 + round * 7 % 3;
            let runs: [AtomicU32; 3] = Default::default();
            let sum = AtomicUsize::new(0);
            pool.run_on(count, |worker| {
                runs[worker.index()].fetch_add(1, SeqCst);
                assert_eq!(worker.count(), count);
                worker.share(10, |item| {
                    sum.fetch_add(item, SeqCst);
                });
            })
            .unwrap();
            assert_eq!(sum.load(SeqCst), 45);
            for (index, runs) in runs.iter().enumerate() {
                assert_eq!(runs.load(SeqCst), u32::from(index < count), "worker {index} of {count}");
            }
        }
    }

    #[test]
    fn a_pool_closes_right_after_a_job_of_any_count() {
        for round in 0..3000 {
            let mut pool = Pool::new(3).unwrap();
            pool.run_on(1 + round % 3, |worker| worker.share(3, |_| {})).unwrap();
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
