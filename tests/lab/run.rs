//! One run of the lab: its directory, its cgroup, and the removal of both.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};

use super::{
    cgroup::{find_cgroup2_mount, kill_and_remove},
    signals,
};

/// Not `/tmp`, so that a process can be given a `/tmp` of its own without losing sight of the run's files.
const BASE: &str = "/var/tmp";
/// Directories and cgroups of the lab start with this.
const PREFIX: &str = "netaudit-lab-";

/// The run's directory and cgroup. Both are gone after the drop, with every process in the cgroup.
#[derive(Debug)]
pub struct Run {
    directory: PathBuf,
    cgroup: PathBuf,
    /// Locked while this run lives; the kernel drops the lock with the process, however it ends.
    _owner: File,
}

impl Run {
    /// Removes what dead runs left, then makes the directory and the cgroup of this one.
    pub fn new(purpose: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mount = find_cgroup2_mount()?;
        let base = PathBuf::from(BASE);
        // Held until the end of this function, so that nobody takes a half-made run for a dead one.
        let guard = File::open(&base).with_context(|| format!("opening {base:?}"))?;
        lock(&guard, libc::LOCK_EX)?;
        for leftover in leftovers(&base)? {
            remove(&mount, &base, &leftover)
                .with_context(|| format!("removing what an earlier run left: {leftover}"))?;
        }
        let name =
            format!("{PREFIX}{purpose}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (directory, cgroup) = (base.join(&name), mount.join(&name));
        fs::create_dir(&directory).with_context(|| format!("making {directory:?}"))?;
        let owner = File::create(directory.join("owner"))?;
        lock(&owner, libc::LOCK_EX | libc::LOCK_NB)?;
        fs::create_dir(&cgroup).with_context(|| format!("making cgroup {cgroup:?} (are you root?)"))?;
        signals::register(&directory, &cgroup)?;
        Ok(Self { directory, cgroup, _owner: owner })
    }

    /// The run's directory, for manifests, logs and the servers' data.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The run's cgroup.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        signals::unregister(&self.directory);
        if let Err(error) = remove_paths(&self.directory, &self.cgroup) {
            eprintln!("lab: {error:#}; the next run tries again");
        }
    }
}

/// Ends the processes of a run and removes its cgroup and its directory, in this order: a directory that is still
/// there tells the next run that there is something to remove.
pub fn remove_paths(directory: &Path, cgroup: &Path) -> Result<()> {
    kill_and_remove(cgroup)?;
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {directory:?}"))
        }
        _ => Ok(()),
    }
}

fn remove(mount: &Path, base: &Path, name: &str) -> Result<()> {
    remove_paths(&base.join(name), &mount.join(name))
}

/// Names of runs whose owner no longer lives.
fn leftovers(base: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(base)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with(PREFIX) {
            continue;
        }
        let alive = match File::open(base.join(&name).join("owner")) {
            Ok(owner) => lock(&owner, libc::LOCK_EX | libc::LOCK_NB).is_err(),
            Err(_) => false,
        };
        if !alive {
            names.push(name);
        }
    }
    Ok(names)
}

fn lock(file: &File, how: i32) -> Result<()> {
    // SAFETY: the call takes a descriptor that `file` keeps open, and a flag.
    if unsafe { libc::flock(file.as_raw_fd(), how) } != 0 {
        return Err(io::Error::last_os_error()).context("locking the lab");
    }
    Ok(())
}
