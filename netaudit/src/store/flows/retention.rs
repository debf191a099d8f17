//! How long flows are kept: by age, and by the room that there is.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::{Duration, SystemTime},
};

use super::{
    Shared,
    files::{self, FlowFile},
};

/// What is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    /// Flows that are older are removed, an hour at a time.
    pub age: Duration,
    /// Bytes of all files, beyond which the oldest are removed.
    pub bytes: u64,
}

/// The files of a store, as its writer knows them.
#[derive(Debug)]
pub(super) struct Kept {
    store: PathBuf,
    retention: Retention,
    /// In order of time.
    files: Vec<FlowFile>,
    removed: u64,
}

impl Kept {
    pub fn new(store: &Path, retention: Retention) -> Self {
        let files = files::list(store).unwrap_or_else(|error| {
            tracing::error!("{error:#}: what is there is not removed before the next start");
            Vec::new()
        });
        let mut kept = Self { store: store.to_owned(), retention, files, removed: 0 };
        kept.prune();
        kept
    }

    pub fn add(&mut self, files: Vec<FlowFile>) {
        self.files.extend(files);
        self.files.sort();
    }

    /// Removes what is too old or too much.
    pub fn prune(&mut self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let oldest = i64::try_from(now.saturating_sub(self.retention.age).as_secs() / 3_600).unwrap_or(0);
        let mut bytes: u64 = self.files.iter().map(|file| file.bytes).sum();
        let surplus = self.files.iter().take_while(|file| {
            let is_surplus = file.hour < oldest || bytes > self.retention.bytes;
            bytes -= if is_surplus { file.bytes } else { 0 };
            is_surplus
        });
        let surplus = surplus.count();
        for file in self.files.drain(..surplus).collect::<Vec<_>>() {
            match fs::remove_file(&file.path) {
                Ok(()) => self.removed += 1,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(file = %file.path.display(), %error, "cannot be removed"),
            }
            // Only where they are empty by now.
            let hour = file.path.parent();
            for directory in [hour, hour.and_then(Path::parent)].into_iter().flatten() {
                if directory != files::flows_directory(&self.store) {
                    let _ = fs::remove_dir(directory);
                }
            }
        }
    }

    pub fn tell(&self, shared: &Shared) {
        shared.files.store(self.files.len() as u64, Ordering::Relaxed);
        shared.bytes.store(self.files.iter().map(|file| file.bytes).sum(), Ordering::Relaxed);
        shared.removed.store(self.removed, Ordering::Relaxed);
    }
}
