//! Where the agent's rows of usage go: into the state directory, by a thread that may wait for a disk, and to whoever asks.

use std::{
    collections::VecDeque,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError},
    },
    thread,
    time::Duration,
};

use crate::{
    audit::{
        RunKey,
        usage::{Restored, Rows, Run, Usage, next_sequence, restore},
    },
    http::UsageDocuments,
    model::Timestamp,
    store::{Directory, Found, bucket::Bucket, document, usage_upload::UsageUploads},
};

/// How often the window that goes on is written: what a crash may cost.
const WRITE_EVERY: Duration = Duration::from_secs(30);

/// Rows that may wait for the disk.
const MOST_WAITING: usize = 4;

/// Rows of one window.
type Job = (u64, Timestamp, Rows);

/// What the writer says.
#[derive(Debug, Default)]
struct Told {
    failing: Option<String>,
    failures: u64,
}

/// Stores rows, or keeps those of this run where there is no state directory.
pub(super) struct UsageStore {
    key: RunKey,
    run: Run,
    /// How long rows are kept.
    age: Duration,
    window: Duration,
    writer: Option<Writer>,
    uploads: Option<UsageUploads>,
    /// Without a directory: the windows of this run that have ended.
    kept: VecDeque<Rows>,
    written: Option<Timestamp>,
    damaged: u64,
}

struct Writer {
    path: PathBuf,
    jobs: SyncSender<Job>,
    /// Windows that have ended and wait for the writer.
    waiting: VecDeque<Job>,
    ended: Receiver<()>,
    told: Arc<Mutex<Told>>,
}

/// What a run knows of itself and of its node when it begins.
pub(super) struct Beginning {
    pub key: RunKey,
    pub from: Timestamp,
    /// [`Run::line`].
    pub line: i64,
    /// What makes wall time of a time of the run.
    pub correction: i64,
    /// Records that were lost since the programs were loaded.
    pub losses: u64,
    /// Whether what was recorded since the last run's end is still to come.
    pub records_go_on: bool,
    /// How long a rule must be watched.
    pub unused_after: Duration,
    /// How long a window is.
    pub window: Duration,
}

impl UsageStore {
    /// Starts the writer, and says what earlier runs have left.
    pub fn new(begin: Beginning, stored: Option<(PathBuf, Directory, Found)>) -> (Self, Restored) {
        let Beginning { key, from, line, correction, losses, records_go_on, unused_after, window } = begin;
        // A window more, so that the oldest one that counts is whole.
        let age = unused_after.saturating_mul(2).saturating_add(window);
        let (directory, found) = match stored {
            Some((path, directory, found)) => (Some((path, directory)), found),
            None => (None, Found::default()),
        };
        for damaged in &found.damaged {
            tracing::error!(
                kept_as = %damaged.kept_as.display(),
                reason = damaged.reason,
                "a file of the state directory cannot be read: what it told of rules' use is not known"
            );
        }
        let seconds = u64::try_from(from.0 / 1_000_000_000).unwrap_or(0);
        let run = Run {
            written: from,
            from,
            sequence: next_sequence(&found.rows, &key.node, seconds),
            boot: boot_id(&key),
            line,
            wall: line.saturating_add(correction),
            ended: false,
            losses,
        };
        let damaged = found.damaged.len() as u64;
        let restored = restore(found.rows, &key, &run, records_go_on);
        let writer = directory.map(|(path, directory)| Writer::start(path, directory, age));
        let store = Self {
            key,
            run,
            age,
            window,
            writer,
            uploads: None,
            kept: VecDeque::new(),
            written: None,
            damaged,
        };
        (store, restored)
    }

    /// Uploads what is stored, from now on.
    pub fn upload(&mut self, bucket: Bucket) -> io::Result<()> {
        if let Some(writer) = &self.writer {
            self.uploads = Some(UsageUploads::start(writer.path.clone(), &self.key.node, bucket)?);
        }
        Ok(())
    }

    /// Stores what has ended, and from time to time what goes on.
    pub fn tick(&mut self, usage: &mut Usage, now: Timestamp, correction: i64, losses: u64) {
        self.tell(now, correction, losses);
        for rows in usage.take_closed() {
            self.store(rows, true);
            usage.forget(now, self.age);
        }
        let is_due = self.written.is_none_or(|at| now.since(at) >= WRITE_EVERY);
        if is_due && self.writer.is_some() {
            self.written = Some(now);
            let rows = usage.rows();
            self.store(rows, false);
        }
        if let Some(writer) = &mut self.writer {
            writer.send_waiting();
        }
    }

    fn tell(&mut self, now: Timestamp, correction: i64, losses: u64) {
        self.run.written = now;
        self.run.wall = self.run.line.saturating_add(correction);
        self.run.losses = losses;
    }

    fn store(&mut self, mut rows: Rows, has_ended: bool) {
        let Some(window) = rows.rules.keys().next().map(|key| key.window) else { return };
        rows.add_run(self.key.clone(), self.run.clone());
        match &mut self.writer {
            Some(writer) => writer.push((self.run.sequence, window, rows), has_ended),
            None if has_ended => {
                self.kept.push_back(rows);
                let most = self.age.as_nanos().div_ceil(self.window.as_nanos().max(1));
                while self.kept.len() as u128 > most {
                    self.kept.pop_front();
                }
            }
            None => {}
        }
    }

    /// Everything that is known, for whoever asks.
    pub fn documents(
        &mut self,
        usage: &mut Usage,
        now: Timestamp,
        correction: i64,
        losses: u64,
    ) -> UsageDocuments {
        usage.tick(now);
        self.tell(now, correction, losses);
        let mut rows = usage.rows();
        rows.add_run(self.key.clone(), self.run.clone());
        let kept = self.kept.iter().map(document::write);
        let text = kept.chain([document::write(&rows)]).collect();
        UsageDocuments { directory: self.writer.as_ref().map(|writer| writer.path.clone()), text }
    }

    /// Writes the last rows, and waits no longer than `most` for it.
    pub fn finish(mut self, usage: &mut Usage, now: Timestamp, correction: i64, losses: u64, most: Duration) {
        usage.tick(now);
        self.tell(now, correction, losses);
        self.run.ended = true;
        for rows in usage.take_closed() {
            self.store(rows, true);
        }
        let rows = usage.rows();
        self.store(rows, true);
        if let Some(writer) = self.writer.take() {
            writer.finish(most);
        }
        if let Some(uploads) = self.uploads.take() {
            uploads.finish(most);
        }
    }

    /// Why nothing is stored, where that is so.
    pub fn failing(&self) -> Option<String> {
        self.writer.as_ref().and_then(|writer| writer.told().failing.clone())
    }

    /// Why nothing is uploaded, where that is so.
    pub fn not_uploaded(&self) -> Option<String> {
        self.uploads.as_ref().and_then(UsageUploads::failing)
    }

    /// Writes that failed, files that could not be read, and uploads that failed, since the start.
    pub fn faults(&self) -> [(&'static str, u64); 3] {
        let failures = self.writer.as_ref().map_or(0, |writer| writer.told().failures);
        let uploads = self.uploads.as_ref().map_or(0, UsageUploads::failures);
        [("write failed", failures), ("damaged", self.damaged), ("upload failed", uploads)]
    }
}

impl Writer {
    fn start(path: PathBuf, mut directory: Directory, age: Duration) -> Self {
        let (jobs, taken) = mpsc::sync_channel::<Job>(MOST_WAITING);
        let (end, ended) = mpsc::channel();
        let told = Arc::new(Mutex::new(Told::default()));
        let tell = told.clone();
        thread::spawn(move || {
            for (sequence, window, rows) in taken {
                let result = directory.write(sequence, window, &rows).and_then(|()| directory.prune(age));
                let mut told = tell.lock().unwrap_or_else(PoisonError::into_inner);
                if let Err(error) = result {
                    let error = format!("{:#}", anyhow::Error::from(error));
                    if told.failing.is_none() {
                        tracing::error!(error, "usage of rules is not stored");
                    }
                    told.failures += 1;
                    told.failing = Some(error);
                } else if told.failing.take().is_some() {
                    tracing::info!("usage of rules is stored again");
                }
            }
            // Nobody may wait any more.
            let _ = end.send(());
        });
        Self { path, jobs, waiting: VecDeque::new(), ended, told }
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A window that goes on is told again soon, so it need not wait for its turn.
    fn push(&mut self, job: Job, has_ended: bool) {
        self.send_waiting();
        if has_ended {
            self.waiting.push_back(job);
            self.send_waiting();
        } else if self.waiting.is_empty() {
            let _ = self.jobs.try_send(job);
        }
    }

    fn send_waiting(&mut self) {
        while let Some(job) = self.waiting.pop_front() {
            if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = self.jobs.try_send(job) {
                self.waiting.push_front(job);
                return;
            }
        }
    }

    fn finish(mut self, most: Duration) {
        let step = Duration::from_millis(10);
        let mut waited = Duration::ZERO;
        while !self.waiting.is_empty() && waited < most {
            self.send_waiting();
            thread::sleep(step);
            waited += step;
        }
        let unsent = self.waiting.len();
        drop(self.jobs);
        let is_done = !matches!(self.ended.recv_timeout(most), Err(RecvTimeoutError::Timeout));
        if unsent > 0 || !is_done {
            tracing::error!("the last usage of rules was not stored in time");
        }
    }
}

/// Which boot of the node this is; where nothing tells, one of this run's own.
fn boot_id(key: &RunKey) -> Arc<str> {
    match std::fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Ok(id) => id.trim().into(),
        Err(_) => key.run.clone(),
    }
}
