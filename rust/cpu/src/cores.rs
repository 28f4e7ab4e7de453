//! How many processor cores this process may really use.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::cgroup;

/// Physical cores within the affinity mask, and no more than the cgroup's CPU quota (rounded up). At least 1.
///
/// Two hardware threads of one core count once: they share the arithmetic units that the kernels keep busy.
pub fn physical_cores() -> usize {
    let allowed = allowed_cpus();
    let cores = distinct_cores(&allowed, Path::new("/sys/devices/system/cpu"));
    let quota = cgroup_quota(Path::new(cgroup::OWN), Path::new(cgroup::ROOT));
    let quota = quota.map_or(usize::MAX, |cpus| cpus.ceil() as usize);
    cores.min(quota).max(1)
}

/// Numbers of the processors in this thread's affinity mask.
fn allowed_cpus() -> Vec<usize> {
    #[cfg(target_os = "linux")]
    {
        // The system's own mask may be longer than the C library's fixed set: grow until it fits.
        for words in [16usize, 128, 1024] {
            let mut mask = vec![0u64; words];
            // SAFETY: the buffer has the length that is passed, and any bits are a valid mask.
            let result = unsafe { libc::sched_getaffinity(0, 8 * words, mask.as_mut_ptr().cast()) };
            if result == 0 {
                let bit = |cpu: &usize| mask[cpu / 64] >> (cpu % 64) & 1 == 1;
                return (0..64 * words).filter(bit).collect();
            }
        }
    }
    (0..std::thread::available_parallelism().map_or(1, usize::from)).collect()
}

/// Distinct (package, core) pairs; a processor whose topology is unknown counts as a core of its own.
fn distinct_cores(cpus: &[usize], sysfs: &Path) -> usize {
    let number = |cpu: usize, name: &str| -> Option<i64> {
        let path = sysfs.join(format!("cpu{cpu}/topology/{name}"));
        fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    let core = |&cpu: &usize| match (number(cpu, "physical_package_id"), number(cpu, "core_id")) {
        (Some(package), Some(core)) => (package, core, -1),
        _ => (-1, -1, cpu as i64),
    };
    cpus.iter().map(core).collect::<BTreeSet<_>>().len()
}

/// The tightest CPU quota of this process's cgroup and those above it, in processors.
fn cgroup_quota(own: &Path, root: &Path) -> Option<f64> {
    let folders = cgroup::folders(own, root, "cpu");
    folders.iter().filter_map(|folder| quota_v2(folder).or_else(|| quota_v1(folder))).reduce(f64::min)
}

/// `cpu.max`: "quota period" in microseconds, or "max period".
fn quota_v2(folder: &Path) -> Option<f64> {
    let text = fs::read_to_string(folder.join("cpu.max")).ok()?;
    let (quota, period) = text.trim().split_once(' ')?;
    ratio(quota, period)
}

/// `cpu.cfs_quota_us`, -1 for none, over `cpu.cfs_period_us`.
fn quota_v1(folder: &Path) -> Option<f64> {
    let quota = fs::read_to_string(folder.join("cpu.cfs_quota_us")).ok()?;
    let period = fs::read_to_string(folder.join("cpu.cfs_period_us")).ok()?;
    ratio(quota.trim(), period.trim())
}

fn ratio(quota: &str, period: &str) -> Option<f64> {
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::tests::Tree;

    fn quota(tree: &Tree) -> Option<f64> {
        cgroup_quota(&tree.0.join("cgroup"), &tree.0.join("fs"))
    }

    #[test]
    fn this_machine_has_cores() {
        let cores = physical_cores();
        assert!((1..=allowed_cpus().len()).contains(&cores));
    }

    #[test]
    fn hardware_threads_of_a_core_count_once() {
        let mut files = Vec::new();
        for cpu in 0..4 {
            files.push((format!("cpu{cpu}/topology/core_id"), (cpu % 2).to_string()));
            files.push((format!("cpu{cpu}/topology/physical_package_id"), "0".to_string()));
        }
        let files: Vec<(&str, &str)> =
            files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        let tree = Tree::new("topology", &files);
        assert_eq!(distinct_cores(&[0, 1, 2, 3], &tree.0), 2);
        assert_eq!(distinct_cores(&[1, 3], &tree.0), 1);
        assert_eq!(distinct_cores(&[1, 3, 8, 9], &tree.0), 3);
    }

    #[test]
    fn the_tightest_quota_counts() {
        let v2 = Tree::new(
            "v2",
            &[
                ("cgroup", "0::/a/b\n"),
                ("fs/a/b/cpu.max", "max 100000\n"),
                ("fs/a/cpu.max", "250000 100000\n"),
                ("fs/cpu.max", "400000 100000"),
            ],
        );
        assert_eq!(quota(&v2), Some(2.5));
        let v1 = Tree::new(
            "v1",
            &[
                ("cgroup", "7:memory:/x\n3:cpu,cpuacct:/docker/1\n"),
                ("fs/cpu,cpuacct/cpu.cfs_quota_us", "150000\n"),
                ("fs/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
            ],
        );
        assert_eq!(quota(&v1), Some(1.5));
        let unlimited = Tree::new(
            "none",
            &[
                ("cgroup", "1:cpu:/\n"),
                ("fs/cpu/cpu.cfs_quota_us", "-1"),
                ("fs/cpu/cpu.cfs_period_us", "100000"),
            ],
        );
        assert_eq!(quota(&unlimited), None);
        assert_eq!(quota(&Tree::new("empty", &[])), None);
    }
}
