//! The flow store: every flow, kept so that one can ask weeks later, and know whether anything is missing.
//!
//! ```text
//! Flow ─columns─► batch ─log thread─► segment (Arrow IPC, synced every second)
//!                                        │ full, or five minutes old
//!                                        └─roll thread─► Parquet files, sorted, an hour a partition ─retention─► removed
//! ```
//!
//! What the log thread cannot write is counted as lost and tried anew with the next batch; what the roll thread cannot is kept as
//! a segment and tried again. Readers see segments and files at any time, each flow once.

pub mod ask;
mod columns;
mod coverage;
pub mod files;
pub mod filter;
mod group;
pub(in crate::store) mod hours;
pub(in crate::store) mod log;
mod look;
mod read;
pub(in crate::store) mod retention;
pub(in crate::store) mod roll;
pub mod row;
pub mod schema;
pub mod segment;
pub(in crate::store) mod source;
pub mod table;
pub(in crate::store) mod upload;
pub mod words;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

pub use columns::Columns;
pub use coverage::{Coverage, Gap, lost};
pub use retention::Retention;
pub use roll::Roller;
pub use segment::Lost;
pub use upload::UploadCounts;

use arrow::array::RecordBatch;

use self::{
    retention::{Bounds, Kept},
    table::{FLOWS, Table},
    upload::Uploads,
};
use super::{bucket::Bucket, history::History};
use crate::{audit::line::Telling, model::Timestamp};

/// Flows of one batch at most: what is put into columns at once.
const BATCH_ROWS: usize = 4_096;

/// Batches that may wait for the log thread: some 8 MiB.
const MOST_WAITING: usize = 6;

/// A flow store that an agent run writes.
#[derive(Debug)]
pub struct FlowStore {
    columns: Columns,
    /// Flows that were pushed.
    handed: u64,
    queue: mpsc::Sender<Job>,
    shared: Arc<Shared>,
    uploads: Option<Arc<Uploads>>,
    done: mpsc::Receiver<()>,
    history: History,
}

/// How an agent run begins.
#[derive(Clone, Debug)]
pub struct Beginning {
    /// The node.
    pub node: Arc<str>,
    /// The run, as in flow ids.
    pub run: Arc<str>,
    /// When, on the wall clock.
    pub from: Timestamp,
    /// What had been lost by then.
    pub lost: Lost,
    /// Whether everything since an earlier run's end was recorded and is still to come.
    pub goes_on: bool,
}

/// What the log thread is to do.
#[derive(Debug)]
pub(in crate::store) enum Job {
    /// Append this.
    Batch(Box<RecordBatch>),
    /// Everything until then has been handed over: sync it.
    Reached { until: Timestamp, lost: Lost },
}

/// What the threads of a table tell.
#[derive(Debug)]
pub(in crate::store) struct Shared {
    table: &'static Table,
    pub(in crate::store) lost: AtomicU64,
    pub(in crate::store) waiting: AtomicUsize,
    /// Rows of them.
    pub(in crate::store) waiting_rows: AtomicU64,
    failing: Mutex<Option<String>>,
    roll_failing: Mutex<Option<String>>,
    pub(in crate::store) bytes: AtomicU64,
    pub(in crate::store) files: AtomicU64,
    pub(in crate::store) removed: AtomicU64,
}

/// What there is of a store, for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct StoreCounts {
    /// Parquet files, those of the history too.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that retention removed in this run.
    pub removed: u64,
    /// Flows that were not written in this run.
    pub lost: u64,
    /// Changes of objects that were not.
    pub history_lost: u64,
}

impl FlowStore {
    /// Opens or makes the store, for this run only: another agent that writes it is refused. What an earlier run left is
    /// rolled. Files are uploaded into the bucket, if there is one.
    ///
    /// # Errors
    ///
    /// The directory cannot be used, or another agent writes it.
    pub fn open(
        path: &Path,
        retention: Retention,
        bucket: Option<Bucket>,
        begin: &Beginning,
    ) -> anyhow::Result<Self> {
        let Beginning { node, run, from, lost, goes_on } = begin;
        let (queue, jobs) = mpsc::channel();
        let (finished, done) = mpsc::channel();
        let shared = Arc::new(Shared::new(&FLOWS));
        let first = segment::Mark {
            lost_before: lost.all(),
            lost_after: lost.all(),
            kernel_lost: lost.kernel,
            ..segment::Mark::first(&FLOWS, node, run, *from)
        };
        let store = PathBuf::from(path);
        let lock = Arc::new(log::lock(&store)?);
        let bounds = Arc::new(Bounds::default());
        let turn = Arc::new(Mutex::default());
        let uploading = bucket.map(|bucket| upload::start(&store, bucket)).transpose()?;
        let uploads = uploading.as_ref().map(|(uploads, _)| uploads.clone());
        let folding = (bounds.clone(), uploading.clone());
        let history = History::open(&store, (lock.clone(), turn.clone()), begin, folding)?;
        let kept_in = store.clone();
        let keeping = move || Kept::new(&kept_in, retention, bounds, uploading);
        let start = log::Start { store, table: &FLOWS, lock, turn, first, goes_on: *goes_on, keeping };
        log::start(start, jobs, shared.clone(), finished)?;
        Ok(Self { columns: Columns::new(node.clone()), handed: 0, queue, shared, uploads, done, history })
    }

    /// Adds a flow.
    pub fn push(&mut self, telling: &Telling<'_>) {
        self.columns.push(telling);
        self.handed += 1;
        if self.columns.len() >= BATCH_ROWS {
            self.flush();
        }
    }

    /// A second passed: hands over what there is, to be synced. `until` is now, on the wall clock, and `lost` how many
    /// records have been lost by now.
    pub fn tick(&mut self, until: Timestamp, lost: Lost) {
        self.flush();
        // The thread has ended: told by its flows.
        let _ = self.queue.send(Job::Reached { until, lost });
        self.history.tick(until);
    }

    /// What became of the objects that flows are judged by.
    pub fn history_mut(&mut self) -> &mut History {
        &mut self.history
    }

    fn flush(&mut self) {
        let flows = self.columns.len() as u64;
        if flows == 0 {
            return;
        }
        let batch = match self.columns.finish() {
            Ok(batch) => batch,
            Err(error) => return self.shared.failed(flows, &error.to_string()),
        };
        self.shared.hand_over(&self.queue, batch, MOST_WAITING);
    }

    /// Flows that were handed over.
    pub fn handed(&self) -> u64 {
        self.handed
    }

    /// How many of them, the first ones first, are on the disk or lost.
    pub fn done(&self) -> u64 {
        self.handed - self.columns.len() as u64 - self.shared.waiting_rows.load(Ordering::Acquire)
    }

    /// What there is.
    pub fn counts(&self) -> StoreCounts {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (own, history) = (&*self.shared, self.history.shared());
        StoreCounts {
            files: load(&own.files) + load(&history.files),
            bytes: load(&own.bytes) + load(&history.bytes),
            removed: load(&own.removed) + load(&history.removed),
            lost: load(&own.lost),
            history_lost: load(&history.lost),
        }
    }

    /// What became of files that are to be in a bucket, where there is one.
    pub fn uploads(&self) -> Option<UploadCounts> {
        self.uploads.as_ref().map(|uploads| uploads.counts())
    }

    /// What is wrong with the bucket right now.
    pub fn upload_failing(&self) -> Option<String> {
        self.uploads.as_ref()?.failing()
    }

    /// What is wrong right now.
    pub fn failing(&self) -> Option<String> {
        self.shared.fault().or_else(|| self.history.shared().fault())
    }

    /// Waits until everything is on the disk, but no longer than `limit`. Returns how many flows were not written in all.
    pub fn finish(mut self, until: Timestamp, lost: Lost, limit: Duration) -> u64 {
        self.tick(until, lost);
        let Self { queue, done, shared, history, .. } = self;
        drop(queue);
        let begun = Instant::now();
        let _ = done.recv_timeout(limit);
        history.finish(limit.saturating_sub(begun.elapsed()));
        shared.lost.load(Ordering::Relaxed) + shared.waiting_rows.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// Nothing has happened yet.
    pub(in crate::store) fn new(table: &'static Table) -> Self {
        Self {
            table,
            lost: AtomicU64::default(),
            waiting: AtomicUsize::default(),
            waiting_rows: AtomicU64::default(),
            failing: Mutex::default(),
            roll_failing: Mutex::default(),
            bytes: AtomicU64::default(),
            files: AtomicU64::default(),
            removed: AtomicU64::default(),
        }
    }

    /// Gives a batch to the log thread, unless so many wait already that it is lost. Returns whether it is not.
    pub(in crate::store) fn hand_over(
        &self,
        queue: &mpsc::Sender<Job>,
        batch: RecordBatch,
        most: usize,
    ) -> bool {
        let rows = batch.num_rows() as u64;
        self.waiting_rows.fetch_add(rows, Ordering::Relaxed);
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
        let fault = if waiting >= most {
            "the disk is too slow"
        } else if queue.send(Job::Batch(Box::new(batch))).is_err() {
            "the log thread has ended"
        } else {
            return true;
        };
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.waiting_rows.fetch_sub(rows, Ordering::Relaxed);
        self.failed(rows, fault);
        false
    }

    /// Counts rows as lost. The fault is logged when it begins.
    pub(in crate::store) fn failed(&self, rows: u64, fault: &str) {
        self.lost.fetch_add(rows, Ordering::Relaxed);
        let what =
            format!("the flow store cannot be written: {} are counted, but not stored", self.table.rows);
        begins(&self.failing, fault, &what);
    }

    /// What is wrong right now.
    pub(in crate::store) fn fault(&self) -> Option<String> {
        let of = |fault: &Mutex<Option<String>>| fault.lock().ok()?.clone();
        of(&self.failing).or_else(|| of(&self.roll_failing))
    }

    fn works(&self) {
        ends(&self.failing, "the flow store is written again");
    }
}

fn begins(failing: &Mutex<Option<String>>, fault: &str, what: &str) {
    let Ok(mut failing) = failing.lock() else { return };
    if failing.is_none() {
        tracing::error!(fault, "{what}");
    }
    *failing = Some(fault.to_owned());
}

fn ends(failing: &Mutex<Option<String>>, what: &str) {
    if let Some(fault) = failing.lock().ok().and_then(|mut failing| failing.take()) {
        tracing::info!(fault, "{what}");
    }
}
