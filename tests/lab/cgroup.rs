//! The lab's part of the cgroup v2 tree.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// Where cgroup v2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside v1.
pub fn find_cgroup2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    mount_of_cgroup2(&mounts).context("no cgroup v2 is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

/// The mount point of the first whole cgroup2 file system in the text of a mountinfo file.
fn mount_of_cgroup2(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (root == "/" && filesystem.starts_with("cgroup2 ")).then(|| PathBuf::from(point))
    })
}

/// Ends every process at and below `root`, then removes the directories. A missing `root` is success.
///
/// The kernel's `cgroup.kill` reaches also what was forked meanwhile, and touches nothing outside `root`. A v1 hierarchy has
/// no such file: what is in it must have been ended by v2.
pub fn kill_and_remove(root: &Path) -> Result<()> {
    if !root.exists() {
        return Ok(());
    }
    let kill = root.join("cgroup.kill");
    if kill.exists() {
        fs::write(kill, "1").with_context(|| format!("ending the processes in {root:?}"))?;
    }
    // A cluster of two nodes takes some seconds where others keep the processors busy.
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match remove_tree(root) {
            Ok(()) => return Ok(()),
            // A killed process stays in its cgroup until it has been torn down.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => bail!("removing cgroup {root:?}: {error}"),
        }
    }
}

/// Removes the cgroup directories below `root` and `root` itself, children first.
fn remove_tree(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_cgroup2_beside_v1_and_ignores_bind_mounts_of_a_part() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      40 31 0:38 /part /mnt rw shared:2 - cgroup2 cgroup2 rw\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw shared:3 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_of_cgroup2(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mount_of_cgroup2("31 23 0:28 / /proc rw - proc proc rw\n"), None);
    }
}
