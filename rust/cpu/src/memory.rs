//! How much memory this process can still take before the system starts to kill.

use std::fs;
use std::path::Path;

use crate::cgroup;

/// Bytes available: what the machine has free or can reclaim, and no more than any control group leaves. None where
/// the system does not say.
pub(crate) fn available_bytes() -> Option<usize> {
    let groups = in_groups(Path::new(cgroup::OWN), Path::new(cgroup::ROOT));
    let machine =
        number_after(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?.checked_mul(1024)?;
    Some(groups.map_or(machine, |groups| groups.min(machine)))
}

/// The tightest group: its limit less what it holds besides the page cache, which can be reclaimed.
fn in_groups(own: &Path, root: &Path) -> Option<usize> {
    let left = |folder: &Path, limit: &str, used: &str| {
        let limit: usize = fs::read_to_string(folder.join(limit)).ok()?.trim().parse().ok()?;
        let stat = fs::read_to_string(folder.join("memory.stat")).ok()?;
        Some(limit.saturating_sub(number_after(&stat, used)?))
    };
    let folders = cgroup::folders(own, root, "memory");
    let left = folders.iter().filter_map(|folder| {
        left(folder, "memory.max", "anon ").or_else(|| left(folder, "memory.limit_in_bytes", "total_rss "))
    });
    left.min()
}

/// The number on the line that starts with `key`.
fn number_after(text: &str, key: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::tests::Tree;

    #[test]
    fn this_machine_has_memory_left() {
        if cfg!(target_os = "linux") {
            assert!(available_bytes().unwrap() > 1 << 20);
        }
    }

    #[test]
    fn the_tightest_group_counts_without_its_page_cache() {
        let left = |name: &str, files: &[(&str, &str)]| {
            let tree = Tree::new(name, files);
            in_groups(&tree.0.join("cgroup"), &tree.0.join("fs"))
        };
        let v2 = [
            ("cgroup", "0::/a\n"),
            ("fs/a/memory.max", "1000\n"),
            ("fs/a/memory.stat", "anon 300\nfile 600\n"),
            ("fs/memory.max", "max\n"),
        ];
        assert_eq!(left("memory-v2", &v2), Some(700));
        let v1 = [
            ("cgroup", "9:memory:/b\n"),
            ("fs/memory/memory.limit_in_bytes", "500\n"),
            ("fs/memory/memory.stat", "cache 100\nrss 10\ntotal_rss 600\n"),
        ];
        assert_eq!(left("memory-v1", &v1), Some(0));
        assert_eq!(left("memory-none", &[("cgroup", "0::/\n")]), None);
    }
}
