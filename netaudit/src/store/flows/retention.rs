//! How long flows are kept: by age, and by the room that there is.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use super::{
    Shared,
    files::{self, FlowFile},
    table::FLOWS,
};

/// What is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    /// Flows that are older are removed, an hour at a time.
    pub age: Duration,
    /// Bytes of all files, beyond which the oldest are removed.
    pub bytes: u64,
}

/// Decides how long a table's files are kept.
pub(in crate::store) trait Keeps {
    /// There are new files.
    fn add(&mut self, files: Vec<FlowFile>);

    /// Removes what is too old or too much.
    fn prune(&mut self);

    /// Tells what there is.
    fn tell(&self, shared: &Shared);
}

/// Removes a file of a table, and its partition where that is empty by now. Returns whether it was there.
pub(in crate::store) fn remove_file(of_table: &Path, path: &Path) -> bool {
    let was_there = match fs::remove_file(path) {
        Ok(()) => true,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(file = %path.display(), %error, "cannot be removed");
            }
            false
        }
    };
    let hour = path.parent();
    for directory in [hour, hour.and_then(Path::parent)].into_iter().flatten() {
        if directory != of_table {
            let _ = fs::remove_dir(directory);
        }
    }
    was_there
}

/// What tables must know of one another to decide.
#[derive(Debug)]
pub(in crate::store) struct Bounds {
    /// The first hour of which flows are kept: what is known of earlier ones is of use only as far as it still holds then.
    pub first_hour: AtomicI64,
    /// Bytes of the history's files, which count as well.
    pub history_bytes: AtomicU64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { first_hour: AtomicI64::new(i64::MIN), history_bytes: AtomicU64::new(0) }
    }
}

/// The files of a store, as its writer knows them.
#[derive(Debug)]
pub(super) struct Kept {
    store: PathBuf,
    retention: Retention,
    bounds: Arc<Bounds>,
    /// In order of time.
    files: Vec<FlowFile>,
    removed: u64,
}

impl Kept {
    pub fn new(store: &Path, retention: Retention, bounds: Arc<Bounds>) -> Self {
        let files = files::list(store, &FLOWS).unwrap_or_else(|error| {
            tracing::error!("{error:#}: what is there is not removed before the next start");
            Vec::new()
        });
        let mut kept = Self { store: store.to_owned(), retention, bounds, files, removed: 0 };
        kept.prune();
        kept
    }
}

impl Keeps for Kept {
    fn add(&mut self, files: Vec<FlowFile>) {
        self.files.extend(files);
        self.files.sort();
    }

    fn prune(&mut self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let oldest = i64::try_from(now.saturating_sub(self.retention.age).as_secs() / 3_600).unwrap_or(0);
        let mut bytes: u64 = self.files.iter().map(|file| file.bytes).sum();
        // However much still holds of the history, flows have the other half.
        let of_history = self.bounds.history_bytes.load(Ordering::Relaxed);
        bytes = bytes.saturating_add(of_history.min(self.retention.bytes / 2));
        let surplus = self.files.iter().take_while(|file| {
            let is_surplus = file.hour < oldest || bytes > self.retention.bytes;
            bytes -= if is_surplus { file.bytes } else { 0 };
            is_surplus
        });
        let surplus = surplus.count();
        let is_short = self.files[..surplus].iter().any(|file| file.hour >= oldest);
        for file in self.files.drain(..surplus).collect::<Vec<_>>() {
            self.removed += u64::from(remove_file(&FLOWS.directory(&self.store), &file.path));
        }
        // Where room was short before the age was reached, what is left begins later.
        let first = if is_short { self.files.first().map_or(oldest, |file| file.hour) } else { oldest };
        self.bounds.first_hour.fetch_max(first, Ordering::Relaxed);
    }

    fn tell(&self, shared: &Shared) {
        shared.files.store(self.files.len() as u64, Ordering::Relaxed);
        shared.bytes.store(self.files.iter().map(|file| file.bytes).sum(), Ordering::Relaxed);
        shared.removed.store(self.removed, Ordering::Relaxed);
    }
}
