//! What is known of rules' use, on its way into a bucket: the files of a state directory, beside the flows.
//!
//! ```text
//! s3://BUCKET/PREFIX / usage / <node> / usage-<runs before>-<window>.jsonl      as in the state directory
//! ```
//!
//! An agent only puts objects there: which are there it writes down in its directory (`uploaded`).
//!
//! Rows merge, so that a file may be there twice or in an older form without harm. The window that goes on is uploaded again from time to time,
//! one that has ended once more. What the agent later thins for want of room stays in the bucket as it was.

use std::{
    collections::BTreeMap,
    fs, io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;

use super::{bucket::Bucket, document, is_ours, journal::Journal, names};
use crate::audit::usage::Rows;

/// How often the window that goes on is uploaded.
const EVERY: Duration = Duration::from_secs(300);

/// How long after a failure the next attempt is made.
const PAUSE: Duration = Duration::from_secs(60);

/// The newest files, which may still change: that of the window that goes on, and that of the one before, which may just have ended.
const CHANGING: usize = 2;

/// Where usage is, below a bucket's prefix.
const PREFIX: &str = "usage";

/// Uploads a state directory's files, in a thread of its own: a bucket that is down holds nothing back.
#[derive(Debug)]
pub struct UsageUploads {
    end: Sender<()>,
    ended: Receiver<()>,
    told: Arc<Told>,
}

#[derive(Debug, Default)]
struct Told {
    failures: AtomicU64,
    failing: Mutex<Option<String>>,
}

impl UsageUploads {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// There can be no more threads.
    pub fn start(directory: PathBuf, node: &str, bucket: Bucket) -> io::Result<Self> {
        Self::start_with(directory, node, bucket, EVERY)
    }

    /// The same, with another time between two uploads of the window that goes on.
    ///
    /// # Errors
    ///
    /// There can be no more threads.
    pub fn start_with(directory: PathBuf, node: &str, bucket: Bucket, every: Duration) -> io::Result<Self> {
        let (end, asked) = mpsc::channel();
        let (done, ended) = mpsc::channel();
        let told = Arc::new(Told::default());
        let mut uploader = Uploader {
            directory,
            prefix: format!("{PREFIX}/{node}"),
            bucket,
            journal: None,
            uploaded: BTreeMap::new(),
            told: told.clone(),
        };
        thread::Builder::new().name("usage-upload".to_owned()).spawn(move || {
            uploader.run(&asked, every);
            let _ = done.send(());
        })?;
        Ok(Self { end, ended, told })
    }

    /// Attempts that failed.
    pub fn failures(&self) -> u64 {
        self.told.failures.load(Ordering::Relaxed)
    }

    /// Why nothing is uploaded, where that is so.
    pub fn failing(&self) -> Option<String> {
        self.told.failing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Uploads what is there now, and waits no longer than `most` for it.
    pub fn finish(self, most: Duration) {
        drop(self.end);
        if let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(most) {
            tracing::warn!("the last usage of rules was not uploaded in time: the next run does it");
        }
    }
}

struct Uploader {
    directory: PathBuf,
    prefix: String,
    bucket: Bucket,
    /// Files that are in the bucket and do not change any more.
    journal: Option<Journal>,
    /// Of others the length and when they were written, as they were uploaded.
    uploaded: BTreeMap<String, (u64, SystemTime)>,
    told: Arc<Told>,
}

impl Uploader {
    fn run(&mut self, asked: &Receiver<()>, every: Duration) {
        loop {
            let result = self.upload();
            let pause = if result.is_ok() { every } else { PAUSE.min(every) };
            self.tell(result);
            let until = Instant::now() + pause;
            match asked.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let last = self.upload();
                    return self.tell(last);
                }
            }
        }
    }

    fn upload(&mut self) -> anyhow::Result<()> {
        let journal = match &mut self.journal {
            Some(journal) => journal,
            none => none.insert(Journal::open(&self.directory, &self.bucket)?),
        };
        let names: Vec<String> = names(&self.directory)?.into_iter().filter(|name| is_ours(name)).collect();
        for (place, name) in names.iter().enumerate() {
            let may_change = place + CHANGING >= names.len();
            let file = self.directory.join(name);
            if !may_change && journal.known.contains(name) {
                continue;
            }
            let now = match fs::metadata(&file) {
                Ok(metadata) => (metadata.len(), metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH)),
                // It was old, and is removed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot look at {}", file.display()));
                }
            };
            if self.uploaded.get(name) != Some(&now) {
                self.bucket.upload(&file, &format!("{}/{name}", self.prefix))?;
                self.uploaded.insert(name.clone(), now);
            }
            if !may_change {
                self.uploaded.remove(name);
                journal.note(name)?;
            }
        }
        Ok(())
    }

    fn tell(&self, result: anyhow::Result<()>) {
        let mut failing = self.told.failing.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => {
                if failing.take().is_some() {
                    tracing::info!("usage of rules is uploaded again");
                }
            }
            Err(error) => {
                let fault = format!("{error:#}");
                if failing.is_none() {
                    tracing::error!(fault, "usage of rules is not uploaded: it stays in the state directory");
                }
                self.told.failures.fetch_add(1, Ordering::Relaxed);
                *failing = Some(fault);
            }
        }
    }
}

/// The rows of all nodes in a bucket.
///
/// # Errors
///
/// The bucket holds no usage, or what it holds cannot be read.
pub fn read(bucket: &Bucket) -> anyhow::Result<Rows> {
    let objects = bucket.list(&[PREFIX.to_owned()])?;
    let objects: Vec<_> = objects.into_iter().filter(|it| it.key.ends_with(".jsonl")).collect();
    anyhow::ensure!(
        !objects.is_empty(),
        "{bucket} holds no usage: agents with --state-directory and --flow-bucket upload theirs"
    );
    let mut rows = Rows::default();
    for (object, bytes) in objects.iter().zip(bucket.tails(&objects, u64::MAX)) {
        let bytes = bytes?;
        rows.merge(document::read(&bytes).with_context(|| format!("in {bucket}/{}", object.key))?);
    }
    Ok(rows)
}
