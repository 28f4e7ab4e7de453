//! Where the limits of this process's control groups are written, in version 1 and 2.

use std::fs;
use std::path::{Path, PathBuf};

/// The file that names this process's groups.
pub(crate) const OWN: &str = "/proc/self/cgroup";
/// Where the groups are mounted.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";

/// The folders of a controller's group and of all groups above it. Some may not exist: inside a container only the
/// root may be mounted.
pub(crate) fn folders(own: &Path, root: &Path, controller: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in fs::read_to_string(own).unwrap_or_default().lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let relative = group.trim_start_matches('/');
        if controllers.is_empty() {
            folders.extend(upwards(root, relative));
        } else if controllers.split(',').any(|name| name == controller) {
            folders.extend(upwards(&root.join(controllers), relative));
            if controllers != controller {
                folders.extend(upwards(&root.join(controller), relative));
            }
        }
    }
    folders
}

/// `root/a/b`, `root/a`, `root`.
fn upwards(root: &Path, relative: &str) -> Vec<PathBuf> {
    let inside = root.join(relative);
    inside.ancestors().take_while(|path| path.starts_with(root)).map(Path::to_path_buf).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Files under a folder of their own, removed at the end.
    pub(crate) struct Tree(pub(crate) PathBuf);

    impl Tree {
        pub(crate) fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("pyrite-tree-{}-{name}", std::process::id()));
            for (path, content) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
            Self(root)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_groups_folders_go_up_to_the_root() {
        let tree = Tree::new("groups", &[("cgroup", "4:memory:/x/y\n0::/a\nbad line\n")]);
        let found = folders(&tree.0.join("cgroup"), Path::new("/r"), "memory");
        let expected = ["/r/memory/x/y", "/r/memory/x", "/r/memory", "/r/a", "/r"];
        assert_eq!(found, expected.map(PathBuf::from));
        assert!(folders(&tree.0.join("absent"), Path::new("/r"), "memory").is_empty());
    }
}
