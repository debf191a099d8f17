//! The cluster's part of every cgroup hierarchy of this machine: v2 alone, or v2 beside v1.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::lab::kill_and_remove;

/// The cluster's directory in every hierarchy.
pub const TOP: &str = "netaudit-cluster";

/// A mounted hierarchy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hierarchy {
    /// Where this machine has it.
    pub mount: PathBuf,
    /// What a v1 hierarchy is mounted with, such as `cpu,cpuacct` or `none,name=systemd`; `None` for v2.
    pub v1: Option<String>,
}

/// Every hierarchy that is mounted, each once.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    Ok(hierarchies_of(&mounts))
}

fn hierarchies_of(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut left = left.split(' ').skip(3);
        let (Some(root), Some(mount)) = (left.next(), left.next()) else { continue };
        let mut right = right.split(' ');
        let v1 = match right.next() {
            Some("cgroup2") => None,
            Some("cgroup") => right.nth(1).map(v1_options),
            _ => continue,
        };
        let seen = found.iter().any(|other| other.v1 == v1);
        if root == "/" && mount.starts_with("/sys/fs/cgroup") && !seen {
            found.push(Hierarchy { mount: PathBuf::from(mount), v1 });
        }
    }
    found
}

/// The options that name a v1 hierarchy, among those that only say how it is mounted.
fn v1_options(super_options: &str) -> String {
    const HOW: [&str; 6] = ["rw", "ro", "xattr", "clone_children", "cpuset_v2_mode", "noprefix"];
    let naming: Vec<&str> = super_options
        .split(',')
        .filter(|option| !HOW.contains(option) && !option.starts_with("release_agent="))
        .collect();
    match naming[..] {
        [name] if name.starts_with("name=") => format!("none,{name}"),
        _ => naming.join(","),
    }
}

impl Hierarchy {
    fn make(&self, path: &Path) -> Result<PathBuf> {
        let mut directory = self.mount.clone();
        for part in path {
            // A child of v2 gets the controllers that its parent passes on; one that is busy passes none.
            if self.v1.is_none() {
                pass_controllers_on(&directory);
            }
            let parent = directory.clone();
            directory.push(part);
            match fs::create_dir(&directory) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error).with_context(|| format!("making {}", directory.display())),
            }
            // A v1 cpuset takes no task before it has these.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if self.v1.is_some() && parent.join(file).exists() {
                    let value = fs::read_to_string(parent.join(file))?;
                    fs::write(directory.join(file), value.trim())
                        .with_context(|| format!("setting {file} of {}", directory.display()))?;
                }
            }
        }
        Ok(directory)
    }
}

fn pass_controllers_on(directory: &Path) {
    let Ok(controllers) = fs::read_to_string(directory.join("cgroup.controllers")) else { return };
    for controller in controllers.split_whitespace() {
        // One that cannot be passed on is one that the kubelet will do without, or name.
        let _ = fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// Makes the cgroup `path` below [`TOP`] in every hierarchy, and returns what a process writes to in order to enter it.
pub fn make(path: &str) -> Result<Vec<File>> {
    let path = Path::new(TOP).join(path);
    hierarchies()?
        .iter()
        .map(|hierarchy| {
            let procs = hierarchy.make(&path)?.join("cgroup.procs");
            File::options().write(true).open(&procs).with_context(|| format!("opening {}", procs.display()))
        })
        .collect()
}

/// Makes `command` start in the cgroup `path` of every hierarchy.
pub fn start_in(command: &mut Command, path: &str) -> Result<()> {
    let procs = make(path)?;
    // SAFETY: the closure makes one system call per descriptor and allocates nothing.
    unsafe { command.pre_exec(move || procs.iter().try_for_each(enter)) };
    Ok(())
}

/// Moves the calling process into the cgroup behind `procs`.
pub fn enter(procs: &File) -> io::Result<()> {
    // SAFETY: writes one static byte; zero stands for the writing process itself.
    match unsafe { libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) } {
        1 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends every process of the cluster and removes its cgroups. Nothing outside of [`TOP`] is touched.
pub fn remove_all() -> Result<()> {
    let (v2, v1): (Vec<_>, Vec<_>) = hierarchies()?.into_iter().partition(|hierarchy| hierarchy.v1.is_none());
    // Only v2 can end all processes at once; those of v1 are the same ones.
    for hierarchy in v2.iter().chain(&v1) {
        kill_and_remove(&hierarchy.mount.join(TOP))?;
    }
    Ok(())
}

/// Whether anything of the cluster's is left in a hierarchy.
pub fn leftovers() -> Result<Vec<PathBuf>> {
    Ok(hierarchies()?
        .iter()
        .map(|hierarchy| hierarchy.mount.join(TOP))
        .filter(|path| path.exists())
        .collect())
}

/// Whether a process of the cluster's lives in any hierarchy.
pub fn is_populated() -> Result<bool> {
    leftovers()?.iter().try_fold(false, |found, top| Ok(found || holds_processes(top)?))
}

fn holds_processes(cgroup: &Path) -> Result<bool> {
    // One that goes away meanwhile holds nothing.
    let gone = |error: &io::Error| {
        error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
    };
    let failed = || format!("reading {}", cgroup.display());
    match fs::read(cgroup.join("cgroup.procs")) {
        Ok(processes) if !processes.is_empty() => return Ok(true),
        // The processes of a threaded cgroup are listed by the one above that is not.
        Err(error) if !gone(&error) && error.raw_os_error() != Some(libc::EOPNOTSUPP) => {
            return Err(error).with_context(failed);
        }
        _ => {}
    }
    let children = match fs::read_dir(cgroup) {
        Err(error) if gone(&error) => return Ok(false),
        children => children.with_context(failed)?,
    };
    for child in children {
        let child = child?;
        if child.file_type()?.is_dir() && holds_processes(&child.path())? {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_hierarchies_of_pure_and_hybrid_hosts() {
        let pure = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(hierarchies_of(pure), [Hierarchy { mount: "/sys/fs/cgroup".into(), v1: None }]);
        let hybrid = "31 24 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                      32 31 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      33 31 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      34 31 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd\n\
                      35 24 0:29 /part /mnt/part rw - cgroup2 cgroup2 rw\n";
        let found = hierarchies_of(hybrid);
        let options: Vec<Option<&str>> = found.iter().map(|hierarchy| hierarchy.v1.as_deref()).collect();
        assert_eq!(options, [Some("cpu,cpuacct"), None, Some("none,name=systemd")]);
    }
}
