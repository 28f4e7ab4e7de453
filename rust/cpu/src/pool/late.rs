//! Workers that the system keeps waiting for a processor, and for how long they are better left out.
//!
//! When another process takes a core, one of the workers waits for its turn in the middle of an item, and all the others
//! wait for it at the barrier: two workers get less done than one alone. Linux counts for each thread how long it was
//! ready and not let run; when that eats more than a worker adds, the pool does without one, and tries again later.

use std::fs::File;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Time in jobs between two looks, or [`LOOK_PER_WORKER`] times the workers if that is more: a look reads one file each.
const LOOK: Duration = Duration::from_millis(8);
const LOOK_PER_WORKER: Duration = Duration::from_micros(200);
/// For how long a worker is left out at least. A vain trial costs a few turns of the scheduler (15 to 20 ms) and makes
/// the next pause [`LONGER`] times as long.
const PAUSE: Duration = Duration::from_millis(50);
const LONGER: u32 = 4;
/// After so long one is tried even if no processor has been idle: what the system says of that may be of more or of fewer
/// processors than these threads may use.
const LONGEST_PAUSE: Duration = Duration::from_millis(3200);

/// How long one thread has been ready to run and not run, as the system counts it.
pub(super) struct WaitClock(Option<File>);

impl WaitClock {
    /// Of the calling thread. Reads 0 for ever where the system does not tell.
    pub(super) fn of_this_thread() -> Self {
        Self(if cfg!(target_os = "linux") { File::open("/proc/thread-self/schedstat").ok() } else { None })
    }

    /// "nanoseconds on a processor, nanoseconds waiting for one, time slices".
    fn read(&self) -> Duration {
        #[cfg(target_os = "linux")]
        if let Some(file) = &self.0 {
            use std::os::unix::fs::FileExt;
            let mut text = [0; 80];
            let len = file.read_at(&mut text, 0).unwrap_or(0);
            let waited = text[..len].split(|byte| *byte == b' ').nth(1);
            let waited = waited.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
            return Duration::from_nanos(waited.unwrap_or(0));
        }
        Duration::ZERO
    }
}

/// How long the processors of the machine have been idle, added up; 0 for ever where the system does not tell.
fn idle_time() -> Duration {
    #[cfg(target_os = "linux")]
    if let Ok(file) = File::open("/proc/stat") {
        use std::os::unix::fs::FileExt;
        // "cpu user nice system idle iowait ...", in ticks.
        let mut text = [0; 120];
        let len = file.read_at(&mut text, 0).unwrap_or(0);
        let idle = std::str::from_utf8(&text[..len]).ok().and_then(|text| text.split_whitespace().nth(4));
        // SAFETY: a plain query.
        let ticks_per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        if let (Some(ticks), 1..) = (idle.and_then(|ticks| ticks.parse::<f64>().ok()), ticks_per_second) {
            return Duration::from_secs_f64(ticks / ticks_per_second as f64);
        }
    }
    Duration::ZERO
}

/// Decides how many workers the next job gets.
pub(super) struct Watch {
    policy: Policy,
    /// The thread that calls the jobs, and its clock.
    caller: Option<(std::thread::ThreadId, WaitClock)>,
    /// What each worker's clock showed at the last look.
    waited: Vec<Duration>,
    started: Instant,
    /// Time in jobs since the last look.
    busy: Duration,
}

impl Watch {
    pub(super) fn new(count: usize) -> Self {
        Self {
            policy: Policy::new(count),
            caller: None,
            waited: vec![Duration::ZERO; count],
            started: Instant::now(),
            busy: Duration::ZERO,
        }
    }

    /// Workers that the next job should get.
    pub(super) fn active(&self) -> usize {
        self.policy.active
    }

    /// A job took `busy`; `clocks` are those of the workers from the second on.
    pub(super) fn after(&mut self, busy: Duration, clocks: &[OnceLock<WaitClock>]) {
        let count = self.waited.len();
        self.busy += busy;
        if count == 1 || self.busy < LOOK.max(LOOK_PER_WORKER * count as u32) {
            return;
        }
        let own = std::thread::current().id();
        let same_caller = self.caller.as_ref().is_some_and(|(id, _)| *id == own);
        if !same_caller {
            self.caller = Some((own, WaitClock::of_this_thread()));
        }
        let caller = self.caller.as_ref().map(|(_, clock)| clock);
        let clocks = clocks.iter().skip(1).map(OnceLock::get);
        let mut waited = Duration::ZERO;
        for (last, clock) in self.waited.iter_mut().zip(std::iter::once(caller).chain(clocks)) {
            let now = clock.map_or(Duration::ZERO, WaitClock::read);
            waited += now.saturating_sub(*last);
            *last = now;
        }
        if same_caller {
            self.policy.look(self.started.elapsed(), self.busy, waited, idle_time);
        }
        self.busy = Duration::ZERO;
    }
}

/// The decision alone: no clocks.
struct Policy {
    count: usize,
    active: usize,
    /// While one is left out: since when, when to ask whether a processor was idle, when to try in any case.
    since: Duration,
    until: Duration,
    at_last: Duration,
    /// Idle time of the processors at `since`.
    idle: Duration,
    pause: Duration,
    /// Whether one was taken back at the last look.
    on_trial: bool,
}

impl Policy {
    fn new(count: usize) -> Self {
        let [since, until, at_last, idle] = [Duration::ZERO; 4];
        Self { count, active: count, since, until, at_last, idle, pause: PAUSE, on_trial: false }
    }

    /// At `now`, after jobs that took `busy`, in which workers stood waiting for a processor for `waited` in all.
    fn look(&mut self, now: Duration, busy: Duration, waited: Duration, idle: impl Fn() -> Duration) {
        // While one waits they all do. With one worker less and nobody waiting, 1 / active of the speed is lost.
        let too_late = waited * self.active as u32 > busy;
        let on_trial = std::mem::take(&mut self.on_trial);
        if too_late && self.active > 1 {
            self.pause = if on_trial { LONGEST_PAUSE.min(LONGER * self.pause) } else { PAUSE };
            self.active -= 1;
            self.at_last = now + LONGEST_PAUSE;
        } else if self.active < self.count && now >= self.until {
            let idle_since = idle().saturating_sub(self.idle);
            self.on_trial = 2 * idle_since > now - self.since || now >= self.at_last;
            self.active += usize::from(self.on_trial);
        } else {
            return;
        }
        (self.since, self.until, self.idle) = (now, now + self.pause, idle());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Look every 10 ms for a second. `late` is the share of time waited with `active` workers, `idle` how many
    /// processors have nothing to do.
    fn run(policy: &mut Policy, second: u32, idle: f64, late: impl Fn(usize) -> f64) -> Vec<usize> {
        let look = |step: u32| {
            let now = (1000 * second + 10 * step) * MS;
            policy.look(now, 10 * MS, (10 * MS).mul_f64(late(policy.active)), || now.mul_f64(idle));
            policy.active
        };
        (1..=100).map(look).collect()
    }

    fn trials(active: &[usize]) -> usize {
        active.windows(2).filter(|pair| pair[0] < pair[1]).count()
    }

    /// One of two workers waits.
    fn hogged(active: usize) -> f64 {
        if active == 2 { 0.7 } else { 0.0 }
    }

    #[test]
    fn nobody_is_left_out_for_short_waits() {
        let mut policy = Policy::new(2);
        assert!(run(&mut policy, 0, 0.0, |_| 0.3).iter().all(|active| *active == 2));
    }

    #[test]
    fn a_late_worker_is_left_out_until_a_processor_is_idle() {
        let mut policy = Policy::new(2);
        let active: Vec<usize> = (0..6).flat_map(|second| run(&mut policy, second, 0.0, hogged)).collect();
        assert_eq!(active[0], 1);
        assert_eq!(trials(&active), 1, "only when it has been long");
        let idle = run(&mut policy, 6, 0.9, |_| 0.0);
        assert_eq!(trials(&idle), 1);
        assert_eq!(idle[99], 2);
        assert_eq!(run(&mut policy, 7, 0.0, hogged)[0], 1);
        assert_eq!(run(&mut policy, 8, 0.9, |_| 0.0)[20], 2, "the next pause is short again");
    }

    #[test]
    fn vain_trials_become_rare() {
        let mut policy = Policy::new(2);
        let of_second: Vec<usize> =
            (0..8).map(|second| trials(&run(&mut policy, second, 1.0, hogged))).collect();
        assert!((1..=2).contains(&of_second[0]), "{of_second:?}");
        assert!(of_second[2..].iter().sum::<usize>() <= 2, "{of_second:?}");
    }

    #[test]
    fn of_many_workers_as_many_are_left_out_as_are_late() {
        let mut policy = Policy::new(8);
        let active = run(&mut policy, 0, 1.0, |active| if active > 6 { 0.5 } else { 0.0 });
        assert_eq!(active[1], 6);
        assert!(active[1..].iter().all(|active| (6..=7).contains(active)));
        assert_eq!(run(&mut Policy::new(1), 0, 0.0, |_| 0.9)[99], 1, "one always works");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_clocks_are_read() {
        let clock = WaitClock::of_this_thread();
        let before = clock.read();
        std::thread::yield_now();
        assert!(clock.read() >= before);
        let idle = idle_time();
        assert!(idle_time() >= idle);
    }
}
