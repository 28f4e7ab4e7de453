//! Counts allocations, of some threads only.

#![allow(dead_code, reason = "each test uses some of it")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use pyrite_cpu::executor::Executor;

thread_local! {
    /// Where this thread's allocations are counted.
    static COUNTER: Cell<Option<&'static AtomicUsize>> = const { Cell::new(None) };
}

struct Counting;

// SAFETY: forwards to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Some(counter) = COUNTER.get() {
            counter.fetch_add(1, SeqCst);
        }
        // SAFETY: the caller's duty.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's duty.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Call `work`; `counter` counts what this thread allocates meanwhile.
pub(crate) fn counting(counter: &'static AtomicUsize, work: impl FnOnce()) {
    COUNTER.set(Some(counter));
    work();
    COUNTER.set(None);
}

/// Call `run`; how often the threads that run the executor's steps allocated meanwhile.
pub(crate) fn allocations(executor: &mut Executor, run: impl FnOnce(&mut Executor)) -> usize {
    let counter: &'static AtomicUsize = Box::leak(Box::default());
    executor.share(0, || COUNTER.set(Some(counter)), |(), _| {}).unwrap();
    run(executor);
    executor.share(0, || COUNTER.set(None), |(), _| {}).unwrap();
    counter.load(SeqCst)
}
