//! Files of a store on their way into a bucket: each as soon as it is made, in order of time, until it is there.
//!
//! ```text
//! roll thread ──files made──► waiting ──upload──► in the bucket; its name in DIRECTORY/uploaded
//!                               ▲         │ fails: tried again, later and later
//!                               └─────────┘
//! ```
//!
//! What waits stays in the directory as long as there is room, whatever its age; where the room runs out it is removed, and its flows
//! are counted as lost. A file that was there already when the agent was killed is uploaded again under the same name.
//!
//! Of the history what was folded stays here: in the bucket is all of what it was made from, and snapshots of it. Only what had been
//! folded before there was a bucket goes there as it is.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use super::{
    begins, ends,
    files::{self, FlowFile},
    table::{FLOWS, OBJECTS, SNAPSHOTS, Table},
};
use crate::store::{bucket::Bucket, journal::Journal};

/// How long after a failure the first new attempt is made; then twice as long, each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// And how long at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// How often it is looked for files though nobody told of one.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What became of files that are to be in a bucket, for metrics.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct UploadCounts {
    /// Files that were uploaded in this run.
    pub uploaded: u64,
    /// Attempts that failed in this run.
    pub failed: u64,
    /// Files that wait.
    pub waiting: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// When the oldest of them was made, in seconds since the epoch; `None` where none waits.
    pub oldest: Option<f64>,
    /// Flows of files that were removed before they were uploaded, for want of room.
    pub lost: u64,
    /// Changes of objects of such files.
    pub history_lost: u64,
}

/// Which files are in the bucket. Shared by who uploads them and who removes them.
#[derive(Debug)]
pub(in crate::store) struct Uploads {
    store: PathBuf,
    journal: Mutex<Journal>,
    counts: Mutex<UploadCounts>,
    lost: AtomicU64,
    history_lost: AtomicU64,
    failing: Mutex<Option<String>>,
}

/// What is known of uploads, and who is told of new files.
pub(in crate::store) type Uploading = (Arc<Uploads>, mpsc::Sender<()>);

impl Uploads {
    pub fn counts(&self) -> UploadCounts {
        let counts = *self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        UploadCounts {
            lost: self.lost.load(Ordering::Relaxed),
            history_lost: self.history_lost.load(Ordering::Relaxed),
            ..counts
        }
    }

    pub fn failing(&self) -> Option<String> {
        self.failing.lock().ok()?.clone()
    }

    /// Whether a file of the store is in the bucket.
    pub fn has(&self, file: &Path) -> bool {
        key_of(&self.store, file).is_some_and(|key| self.journal().known.contains(&key))
    }

    /// A file was removed; `rows` of it that are nowhere else.
    pub fn removed(&self, table: &Table, file: &Path, rows: u64) {
        if let Some(key) = key_of(&self.store, file) {
            self.journal().known.remove(&key);
        }
        let lost = if std::ptr::eq(table, &FLOWS) { &self.lost } else { &self.history_lost };
        lost.fetch_add(rows, Ordering::Relaxed);
    }

    /// A file need not be uploaded: what it holds is there already.
    pub fn is_there(&self, file: &Path) {
        if let Some(key) = key_of(&self.store, file)
            && let Err(error) = self.journal().note(&key)
        {
            tracing::warn!("{error:#}: it may be uploaded once more");
        }
    }

    fn journal(&self) -> std::sync::MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, change: impl FnOnce(&mut UploadCounts)) {
        change(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A file's key in the bucket: its path below the store.
fn key_of(store: &Path, file: &Path) -> Option<String> {
    file.strip_prefix(store).ok()?.to_str().map(str::to_owned)
}

/// Starts the thread that uploads. Whoever made a file tells it by the sender; the thread ends with it.
///
/// # Errors
///
/// What is known of earlier uploads cannot be read or written.
pub(in crate::store) fn start(store: &Path, bucket: Bucket) -> anyhow::Result<Uploading> {
    let uploads = Arc::new(Uploads {
        store: store.to_owned(),
        journal: Mutex::new(Journal::open(store, &bucket)?),
        counts: Mutex::default(),
        lost: AtomicU64::default(),
        history_lost: AtomicU64::default(),
        failing: Mutex::default(),
    });
    let (news, told) = mpsc::channel();
    let uploader = Uploader { bucket, uploads: uploads.clone() };
    thread::Builder::new().name("flow-upload".to_owned()).spawn(move || uploader.run(&told))?;
    Ok((uploads, news))
}

struct Uploader {
    bucket: Bucket,
    uploads: Arc<Uploads>,
}

impl Uploader {
    fn run(&self, told: &mpsc::Receiver<()>) {
        let mut pause = Duration::ZERO;
        loop {
            let result = self.upload_all(told);
            match result {
                Ok(()) => {
                    pause = Duration::ZERO;
                    ends(&self.uploads.failing, "files of the flow store are uploaded again");
                }
                Err(error) => {
                    pause = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
                    self.uploads.count(|counts| counts.failed += 1);
                    let what = "files of the flow store cannot be uploaded: they stay in the directory as long as there is room";
                    begins(&self.uploads.failing, &format!("{error:#}"), what);
                }
            }
            if !self.rest(told, pause) {
                return;
            }
        }
    }

    /// Waits for news, or after a failure for `pause`: a new file does not make whoever is down answer. Returns whether to go on.
    fn rest(&self, told: &mpsc::Receiver<()>, pause: Duration) -> bool {
        let until = Instant::now() + if pause.is_zero() { LOOK_EVERY } else { pause };
        loop {
            match told.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(()) if pause.is_zero() => return true,
                Ok(()) => drop(self.look()),
                Err(mpsc::RecvTimeoutError::Timeout) => return true,
                Err(mpsc::RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    /// Uploads what waits, oldest first, until nothing does. A file that cannot be read keeps no other from it.
    fn upload_all(&self, told: &mpsc::Receiver<()>) -> anyhow::Result<()> {
        loop {
            let waiting = self.look();
            if waiting.is_empty() {
                return Ok(());
            }
            let mut unread = None;
            for place in 0..waiting.len() {
                // The agent ends, and the next one goes on.
                if let Err(mpsc::TryRecvError::Disconnected) = told.try_recv() {
                    return Ok(());
                }
                let (key, file) = &waiting[place];
                match self.bucket.upload(&file.path, key) {
                    Ok(_) => {}
                    // Retention was faster.
                    Err(_) if !file.path.exists() => continue,
                    Err(error) if error.root_cause().is::<io::Error>() => {
                        unread = unread.or(Some(error));
                        continue;
                    }
                    Err(error) => return Err(error),
                }
                self.uploads.journal().note(key)?;
                self.uploads.count(|counts| counts.uploaded += 1);
                self.tell(&waiting[place + 1..]);
            }
            if let Some(error) = unread {
                self.look();
                return Err(error);
            }
        }
    }

    /// The files that wait, with their keys: of an hour what its flows are judged by first.
    fn look(&self) -> Vec<(String, FlowFile)> {
        let store = &self.uploads.store;
        let of_table = |table| {
            files::list(store, table).unwrap_or_else(|error| {
                tracing::error!("{error:#}: nothing of it is uploaded");
                Vec::new()
            })
        };
        let files = [&OBJECTS, &SNAPSHOTS, &FLOWS].into_iter().flat_map(of_table);
        let files = files.filter_map(|file| Some((key_of(store, &file.path)?, file)));
        let mut waiting: Vec<(String, FlowFile)> = {
            let journal = self.uploads.journal();
            files.filter(|(key, _)| !journal.known.contains(key)).collect()
        };
        // Stays in order of the tables within an hour.
        waiting.sort_by_key(|(_, file)| file.hour);
        self.tell(&waiting);
        waiting
    }

    fn tell(&self, waiting: &[(String, FlowFile)]) {
        let made =
            |(_, file): &(String, FlowFile)| file.path.metadata().and_then(|data| data.modified()).ok();
        let seconds =
            |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        self.uploads.count(|counts| {
            counts.waiting = waiting.len() as u64;
            counts.waiting_bytes = waiting.iter().map(|(_, file)| file.bytes).sum();
            counts.oldest = waiting.iter().filter_map(made).min().map(seconds);
        });
    }
}
