//! How long flows are kept: by age, and by the room that there is.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering, mpsc},
    time::{Duration, SystemTime},
};

use super::{
    Shared,
    files::{self, FlowFile},
    upload::Uploads,
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
    /// Which of them are in a bucket, where they are to be, and who is told of new ones.
    uploads: Option<(Arc<Uploads>, mpsc::Sender<()>)>,
}

impl Kept {
    pub fn new(
        store: &Path,
        retention: Retention,
        uploads: Option<(Arc<Uploads>, mpsc::Sender<()>)>,
    ) -> Self {
        let files = files::list(store).unwrap_or_else(|error| {
            tracing::error!("{error:#}: what is there is not removed before the next start");
            Vec::new()
        });
        let mut kept = Self { store: store.to_owned(), retention, files, removed: 0, uploads };
        kept.prune();
        kept
    }

    pub fn add(&mut self, files: Vec<FlowFile>) {
        self.files.extend(files);
        self.files.sort();
        if let Some((_, news)) = &self.uploads {
            // The thread has ended: told where it did.
            let _ = news.send(());
        }
    }

    /// Whether a file is to be uploaded yet.
    fn waits(&self, file: &FlowFile) -> bool {
        self.uploads.as_ref().is_some_and(|(uploads, _)| !uploads.has(&self.store, &file.path))
    }

    /// Removes what is too old, unless it waits for its upload; and what is too much, the oldest first, and last what waits.
    pub fn prune(&mut self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let oldest = i64::try_from(now.saturating_sub(self.retention.age).as_secs() / 3_600).unwrap_or(0);
        let waits: Vec<bool> = self.files.iter().map(|file| self.waits(file)).collect();
        let mut goes: Vec<bool> =
            self.files.iter().zip(&waits).map(|(file, waits)| file.hour < oldest && !waits).collect();
        let stays = self.files.iter().zip(&goes).filter(|(_, goes)| !**goes);
        let mut bytes: u64 = stays.map(|(file, _)| file.bytes).sum();
        for of_waiting in [false, true] {
            for (place, file) in self.files.iter().enumerate() {
                if bytes > self.retention.bytes && !goes[place] && waits[place] == of_waiting {
                    goes[place] = true;
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
    }

    fn remove(&mut self, file: &FlowFile) {
        let flows = if self.waits(file) { flows_of(&file.path) } else { 0 };
        match fs::remove_file(&file.path) {
            Ok(()) => self.removed += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(file = %file.path.display(), %error, "cannot be removed"),
        }
        if flows > 0 {
            tracing::error!(file = %file.path.display(), flows, "removed for want of room, and never uploaded");
        }
        if let Some((uploads, _)) = &self.uploads {
            uploads.removed(&self.store, &file.path, flows);
        }
        // Only where they are empty by now.
        let hour = file.path.parent();
        for directory in [hour, hour.and_then(Path::parent)].into_iter().flatten() {
            if directory != files::flows_directory(&self.store) {
                let _ = fs::remove_dir(directory);
            }
        }
    }

    pub fn tell(&self, shared: &Shared) {
        shared.files.store(self.files.len() as u64, Ordering::Relaxed);
        shared.bytes.store(self.files.iter().map(|file| file.bytes).sum(), Ordering::Relaxed);
        shared.removed.store(self.removed, Ordering::Relaxed);
    }
}

/// How many flows a file holds; of one that cannot be read none can be lost any more.
fn flows_of(path: &Path) -> u64 {
    let rows = files::open(path).map(|(_, metadata, _)| metadata.metadata().file_metadata().num_rows());
    rows.ok().and_then(|rows| u64::try_from(rows).ok()).unwrap_or(0)
}
