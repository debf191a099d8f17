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
    upload::Uploading,
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
    /// Which of them are in a bucket, where they are to be, and who is told of new ones.
    uploads: Option<Uploading>,
}

impl Kept {
    pub fn new(store: &Path, retention: Retention, bounds: Arc<Bounds>, uploads: Option<Uploading>) -> Self {
        let files = files::list(store, &FLOWS).unwrap_or_else(|error| {
            tracing::error!("{error:#}: what is there is not removed before the next start");
            Vec::new()
        });
        let mut kept = Self { store: store.to_owned(), retention, bounds, files, removed: 0, uploads };
        kept.prune();
        kept
    }

    /// Whether a file is to be uploaded yet.
    fn waits(&self, file: &FlowFile) -> bool {
        self.uploads.as_ref().is_some_and(|(uploads, _)| !uploads.has(&file.path))
    }

    fn remove(&mut self, file: &FlowFile) {
        let flows = if self.waits(file) { flows_of(&file.path) } else { 0 };
        self.removed += u64::from(remove_file(&FLOWS.directory(&self.store), &file.path));
        if flows > 0 {
            tracing::error!(file = %file.path.display(), flows, "removed for want of room, and never uploaded");
        }
        if let Some((uploads, _)) = &self.uploads {
            uploads.removed(&FLOWS, &file.path, flows);
        }
    }
}

impl Keeps for Kept {
    fn add(&mut self, files: Vec<FlowFile>) {
        self.files.extend(files);
        self.files.sort();
        if let Some((_, news)) = &self.uploads {
            // The thread has ended: told where it did.
            let _ = news.send(());
        }
    }

    /// What is too old goes, unless it waits for its upload; and what is too much, the oldest first, and last what waits.
    fn prune(&mut self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let oldest = i64::try_from(now.saturating_sub(self.retention.age).as_secs() / 3_600).unwrap_or(0);
        let waits: Vec<bool> = self.files.iter().map(|file| self.waits(file)).collect();
        let mut goes: Vec<bool> =
            self.files.iter().zip(&waits).map(|(file, waits)| file.hour < oldest && !waits).collect();
        let stays = self.files.iter().zip(&goes).filter(|(_, goes)| !**goes);
        let mut bytes: u64 = stays.map(|(file, _)| file.bytes).sum();
        // However much still holds of the history, flows have the other half.
        let of_history = self.bounds.history_bytes.load(Ordering::Relaxed);
        bytes = bytes.saturating_add(of_history.min(self.retention.bytes / 2));
        let mut is_short = false;
        for of_waiting in [false, true] {
            for (place, file) in self.files.iter().enumerate() {
                if bytes > self.retention.bytes && !goes[place] && waits[place] == of_waiting {
                    goes[place] = true;
                    is_short = true;
                    bytes -= file.bytes;
                }
            }
        }
        let mut places = goes.into_iter();
        let (gone, kept) =
            std::mem::take(&mut self.files).into_iter().partition(|_| places.next() == Some(true));
        self.files = kept;
        let gone: Vec<FlowFile> = gone;
        gone.iter().for_each(|file| self.remove(file));
        // What is left may begin earlier, where it waits for its upload, or later, where room was short before the age was
        // reached.
        let left = self.files.first().map_or(oldest, |file| file.hour);
        let first = if is_short { left } else { left.min(oldest) };
        self.bounds.first_hour.fetch_max(first, Ordering::Relaxed);
    }

    fn tell(&self, shared: &Shared) {
        shared.files.store(self.files.len() as u64, Ordering::Relaxed);
        shared.bytes.store(self.files.iter().map(|file| file.bytes).sum(), Ordering::Relaxed);
        shared.removed.store(self.removed, Ordering::Relaxed);
    }
}

/// How many flows a file holds; of one that cannot be read none can be lost any more.
fn flows_of(path: &Path) -> u64 {
    let rows =
        files::open(path, &FLOWS).map(|(_, metadata, _)| metadata.metadata().file_metadata().num_rows());
    rows.ok().and_then(|rows| u64::try_from(rows).ok()).unwrap_or(0)
}
