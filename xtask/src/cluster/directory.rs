//! The directory that holds the cluster: one on a machine, locked by whoever starts or removes it.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde::{Serialize, de::DeserializeOwned};

use super::cgroups;

/// Not `/tmp`: containerd wants a file system that overlays can lie on, and `/tmp` is often in memory.
pub const PATH: &str = "/var/tmp/netaudit-cluster";
/// Beside the directory, since that is removed before the lock is. A lock ends with its holder, whatever ended that.
const LOCK: &str = "/run/netaudit-cluster.lock";
const STATE: &str = "cluster.json";

/// Makes room for a cluster: what an ended one left behind is removed, such as one whose machine was shut down, or all of
/// whose processes were ended from outside.
///
/// # Errors
///
/// When a cluster is there, or a part of one that lives, or another `up` or `down` is at work.
pub fn make_room() -> Result<()> {
    let directory = Directory::lock()?;
    directory.clear()?;
    directory.remove()
}

/// The directory, with its lock.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Makes it, for a new cluster.
    pub fn create() -> Result<Self> {
        let directory = Self::lock()?;
        directory.clear()?;
        fs::create_dir_all(directory.path.join("images"))
            .with_context(|| format!("making {}", directory.path.display()))?;
        Ok(directory)
    }

    /// Locks it, whether it is there or not.
    ///
    /// # Errors
    ///
    /// When another `up` or `down` is at work. A killed one is not: its lock ended with it.
    pub fn lock() -> Result<Self> {
        loop {
            let lock = File::create(LOCK).with_context(|| format!("making {LOCK}"))?;
            // SAFETY: the call takes a descriptor that `lock` keeps open, and flags.
            if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::WouldBlock {
                    bail!("another `cargo xtask cluster up` or `down` is at work: wait for it, or end it");
                }
                return Err(error).with_context(|| format!("locking {LOCK}"));
            }
            // The one before may have removed the file since we opened it: then the next to come locks another.
            let ours = lock.metadata()?;
            if fs::metadata(LOCK).is_ok_and(|now| (now.dev(), now.ino()) == (ours.dev(), ours.ino())) {
                return Ok(Self { path: PathBuf::from(PATH), _lock: lock });
            }
        }
    }

    /// Removes what an ended cluster left; an error where anything of one lives.
    fn clear(&self) -> Result<()> {
        if cgroups::is_populated()? {
            bail!(
                "a cluster is there already, or parts of one: `cargo xtask cluster status` shows it, `cargo xtask \
                 cluster down` removes it"
            );
        }
        if Self::exists() || !cgroups::leftovers()?.is_empty() {
            println!("cluster: none of whose processes lives any more is there: it is removed first");
            cgroups::remove_all()?;
            self.remove_files()?;
        }
        Ok(())
    }

    fn remove_files(&self) -> Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a cluster's directory is there.
    pub fn exists() -> bool {
        Path::new(PATH).exists()
    }

    /// Remembers the cluster for later calls.
    pub fn save(&self, cluster: &impl Serialize) -> Result<()> {
        let partial = self.path.join("cluster.json.partial");
        fs::write(&partial, serde_json::to_vec_pretty(cluster)?)?;
        fs::rename(&partial, self.path.join(STATE)).context("saving the cluster's state")
    }

    /// What was remembered; `None` where nothing is.
    pub fn load<T: DeserializeOwned>() -> Result<Option<T>> {
        let path = Path::new(PATH).join(STATE);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).with_context(|| {
                format!("{} cannot be read: `cargo xtask cluster down` removes it", path.display())
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Removes it with all that is in it.
    pub fn remove(self) -> Result<()> {
        self.remove_files()?;
        fs::remove_file(LOCK).context("removing the lock")
    }
}
