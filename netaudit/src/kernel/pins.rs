//! Maps and links that outlive the agent, in a BPF file system:
//!
//! ```text
//! DIRECTORY / cgroup-<id of the watched root> / <generation> / maps / <map>
//!                                                            / links / <program>
//! ```
//!
//! A *generation* is one set of loaded programs with its maps. Its name is the version of its records and a hash of the
//! object and of everything that is told to it at load; so a run that finds its own takes it over as it is, and any other
//! builds a new one beside it. Then `-until-<nanoseconds since boot>` is added to the name of the former: see
//! [`super::former`]. While one is built its name ends in `-partial`, and what a killed run left of that is removed.
//!
//! The kernel takes no names with dots here.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};

use crate::model::CgroupId;

/// Where the DaemonSet pins, and `netaudit uninstall` looks by itself.
pub const DEFAULT_DIRECTORY: &str = "/sys/fs/bpf/netaudit";

/// Ends the name of a generation that is being built, or removed.
const PARTIAL: &str = "-partial";

/// Stands in the name of a former generation before the time from which another tells what begins.
const UNTIL: &str = "-until-";

/// Why nothing can be pinned, or nothing be removed.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The directory is in no BPF file system.
    #[error(
        "{} is in no BPF file system: `mount -t bpf bpf /sys/fs/bpf`, and in a container mount the host's /sys/fs/bpf",
        .0.display()
    )]
    NotBpf(PathBuf),
    /// Another agent, or another uninstall, is at work.
    #[error("another netaudit agent uses {}: end it first", .0.display())]
    InUse(PathBuf),
    /// A directory or file cannot be made, read or removed.
    #[error("cannot use {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> PinError {
    let path = path.to_owned();
    move |source| PinError::Io { path, source }
}

/// The generations of one watched root, locked by this process.
#[derive(Debug)]
pub struct Pins {
    root: PathBuf,
    /// Held for its lock, which ends with the process however that ends.
    _lock: File,
}

/// A generation's directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Generation {
    path: PathBuf,
}

impl Pins {
    /// Makes and locks the directory of the watched root's generations, and removes what was left half done.
    ///
    /// # Errors
    ///
    /// When `directory` is in no BPF file system or cannot be used, or another agent watches the same root.
    pub fn open(directory: &Path, watched: CgroupId) -> Result<Self, PinError> {
        if !is_bpf(directory) {
            return Err(PinError::NotBpf(directory.to_owned()));
        }
        let root = directory.join(format!("cgroup-{}", watched.0));
        fs::create_dir_all(&root).map_err(failed(&root))?;
        let lock = lock(&root)?;
        let pins = Self { root, _lock: lock };
        for partial in pins.children()?.into_iter().filter(|path| is_partial(path)) {
            remove(&partial)?;
        }
        Ok(pins)
    }

    /// The generation of an object that is told `settings` at load, and whose records are of `version`.
    pub fn generation(&self, version: u32, object: &[u8], settings: &[u8]) -> Generation {
        let mut hash = Sha256::new();
        hash.update(object);
        hash.update(settings);
        let hash: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Generation { path: self.root.join(format!("{version}-{hash}")) }
    }

    /// The other generations that are there, those that ended first at first. What ended with no time in its name ends at
    /// `border`, in nanoseconds since boot, and gets it.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read, or a generation not be renamed.
    pub fn former(&self, own: &Generation, border: u64) -> Result<Vec<(Generation, u64)>, PinError> {
        let mut former = Vec::new();
        for path in self.children()? {
            let generation = Generation { path };
            if generation == *own {
                continue;
            }
            former.push(match generation.until() {
                Some(until) => (generation, until),
                None => (generation.end(border)?, border),
            });
        }
        former.sort_by_key(|(_, until)| *until);
        Ok(former)
    }

    fn children(&self) -> Result<Vec<PathBuf>, PinError> {
        children(&self.root).map_err(failed(&self.root))
    }
}

impl Generation {
    /// Whether it is there, whole.
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Makes its directories, under a name that says that it is not whole.
    ///
    /// # Errors
    ///
    /// When they cannot be made.
    pub fn begin(&self) -> Result<Self, PinError> {
        let partial = self.with(PARTIAL);
        for directory in [partial.maps(), partial.links()] {
            fs::create_dir_all(&directory).map_err(failed(&directory))?;
        }
        Ok(partial)
    }

    /// Gives it the name of `whole`.
    ///
    /// # Errors
    ///
    /// When it cannot be renamed.
    pub fn finish(self, whole: &Self) -> Result<(), PinError> {
        fs::rename(&self.path, &whole.path).map_err(failed(&whole.path))
    }

    fn end(self, border: u64) -> Result<Self, PinError> {
        let ended = self.with(&format!("{UNTIL}{border}"));
        fs::rename(&self.path, &ended.path).map_err(failed(&self.path))?;
        Ok(ended)
    }

    fn with(&self, suffix: &str) -> Self {
        let mut path = self.path.clone().into_os_string();
        path.push(suffix);
        Self { path: path.into() }
    }

    fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    fn until(&self) -> Option<u64> {
        self.name().split_once(UNTIL)?.1.parse().ok()
    }

    /// Where its maps are pinned, each by its name.
    pub fn maps(&self) -> PathBuf {
        self.path.join("maps")
    }

    /// Where its links are pinned, each by its program's name.
    pub fn links(&self) -> PathBuf {
        self.path.join("links")
    }

    /// The version of its records; `None` where the name tells none.
    pub fn version(&self) -> Option<u32> {
        self.name().split_once('-')?.0.parse().ok()
    }

    /// Detaches its programs and removes it: what no process holds open is unloaded by the kernel.
    ///
    /// # Errors
    ///
    /// When something cannot be removed.
    pub fn remove(&self) -> Result<(), PinError> {
        // Whoever comes after a run that is killed here must not take it for whole.
        let partial = if is_partial(&self.path) { self.clone() } else { self.with(PARTIAL) };
        if partial != *self {
            fs::rename(&self.path, &partial.path).map_err(failed(&self.path))?;
        }
        remove(&partial.path).map(drop)
    }
}

/// What was removed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Removed {
    /// Links of programs to their hooks.
    pub links: usize,
    /// Maps.
    pub maps: usize,
    /// Sets of programs, also those that were not whole.
    pub generations: usize,
}

/// Removes all that agents have pinned in `directory`, and the directory. What is not there is removed already.
///
/// # Errors
///
/// When an agent runs, with nothing removed; or when something cannot be removed.
pub fn uninstall(directory: &Path) -> Result<Removed, PinError> {
    if !is_bpf(directory) {
        return Err(PinError::NotBpf(directory.to_owned()));
    }
    let mut removed = Removed::default();
    let roots = match children(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(removed),
        roots => roots.map_err(failed(directory))?,
    };
    // All locks before the first removal: half an uninstall helps nobody.
    let _locks = roots.iter().map(|root| lock(root)).collect::<Result<Vec<_>, _>>()?;
    for root in &roots {
        for generation in children(root).map_err(failed(root))? {
            let files = remove(&generation)?;
            removed.generations += 1;
            removed.links += files.links;
            removed.maps += files.maps;
        }
        fs::remove_dir(root).map_err(failed(root))?;
    }
    fs::remove_dir(directory).map_err(failed(directory))?;
    Ok(removed)
}

/// Whether `path`, or what is there of the way to it, is in a BPF file system.
fn is_bpf(path: &Path) -> bool {
    // `BPF_FS_MAGIC`
    let of = |path: &Path| rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type as u64 == 0xcafe_4a11);
    path.ancestors().find(|path| path.exists()).is_some_and(of)
}

fn is_partial(path: &Path) -> bool {
    path.to_string_lossy().ends_with(PARTIAL)
}

fn lock(directory: &Path) -> Result<File, PinError> {
    let file = File::open(directory).map_err(failed(directory))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(PinError::InUse(directory.to_owned())),
        Err(error) => Err(failed(directory)(error.into())),
    }
}

fn children(directory: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect()
}

/// Removes a generation: links first, so that no program runs on maps that nobody finds any more.
fn remove(generation: &Path) -> Result<Removed, PinError> {
    let mut removed = Removed::default();
    for (name, count) in [("links", &mut removed.links), ("maps", &mut removed.maps)] {
        let directory = generation.join(name);
        let files = match children(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            files => files.map_err(failed(&directory))?,
        };
        for file in files {
            fs::remove_file(&file).map_err(failed(&file))?;
            *count += 1;
        }
        fs::remove_dir(&directory).map_err(failed(&directory))?;
    }
    fs::remove_dir(generation).map_err(failed(generation))?;
    Ok(removed)
}
