//! Waiting for another thread.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long to spin for another thread in the middle of a step.
pub(super) const SPIN: Duration = Duration::from_micros(50);

/// A counter that threads wait on: spin first, then sleep.
pub(super) struct Gate {
    value: AtomicUsize,
    pub(super) sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self {
            value: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    pub(super) fn now(&self) -> usize {
        self.value.load(SeqCst)
    }

    pub(super) fn advance(&self) {
        self.arrive();
        self.wake_all();
    }

    /// From 0 again; nobody waits.
    pub(super) fn reset(&self) {
        self.value.store(0, SeqCst);
    }

    /// One more, without waking those who sleep: what it is then.
    pub(super) fn arrive(&self) -> usize {
        self.value.fetch_add(1, SeqCst) + 1
    }

    pub(super) fn wake_all(&self) {
        if self.sleepers.load(SeqCst) > 0 {
            let _guard = lock(&self.lock);
            self.wake.notify_all();
        }
    }

    /// Wait until the value differs from `seen` or `cancelled` is set; sleep after spinning for `spin`.
    pub(super) fn wait(&self, seen: usize, cancelled: &AtomicBool, spin: Duration) {
        self.wait_until(|value| value != seen, cancelled, spin);
    }

    /// Wait until the value is as wanted or `cancelled` is set; sleep after spinning for `spin`.
    pub(super) fn wait_until(&self, wanted: impl Fn(usize) -> bool, cancelled: &AtomicBool, spin: Duration) {
        let over = || wanted(self.now()) || cancelled.load(SeqCst);
        let mut spins = 0u32;
        let mut started: Option<Instant> = None;
        while !over() {
            std::hint::spin_loop();
            spins += 1;
            if spins.is_multiple_of(256) && started.get_or_insert_with(Instant::now).elapsed() > spin {
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

/// Lock a mutex whose content a panic cannot have left half done.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
