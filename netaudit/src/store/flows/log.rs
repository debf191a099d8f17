//! The threads of a table of a flow store: one appends and syncs, one rolls and removes.

use std::{
    collections::VecDeque,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::Ordering, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use arrow::array::RecordBatch;

use super::{
    Job, Shared, begins, ends, files,
    retention::Keeps,
    roll::Roller,
    segment::{self, Closed, Lost, Mark, Segment},
    table::Table,
};
use crate::model::Timestamp;

/// How old a segment with flows becomes.
const SEGMENT_AGE: Duration = Duration::from_secs(300);

/// And one without.
const QUIET_AGE: Duration = Duration::from_secs(3_600);

/// How often it is written down until when a segment is complete.
const MARK_EVERY: Duration = Duration::from_secs(10);

/// How often what failed is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// What a table begins with.
pub(in crate::store) struct Start<K> {
    /// The directory of the store.
    pub store: PathBuf,
    /// Which table.
    pub table: &'static Table,
    /// Held as long as anything is written.
    pub lock: Arc<File>,
    /// Held while files are made: one table at a time, so that only one is in memory.
    pub turn: Arc<Mutex<()>>,
    /// What the first segment begins with.
    pub first: Mark,
    /// Whether everything since an earlier run's end was recorded and is still to come.
    pub goes_on: bool,
    /// Makes what decides how long files are kept, once what an earlier run left is ready.
    pub keeping: K,
}

/// Makes a table ready and starts its threads. They end with `jobs`; then `finished` is told.
pub(in crate::store) fn start<K: Keeps>(
    start: Start<impl FnOnce() -> K + Send + 'static>,
    jobs: mpsc::Receiver<Job>,
    shared: Arc<Shared>,
    finished: mpsc::Sender<()>,
) -> anyhow::Result<()> {
    let Start { store, table, lock, turn, first, goes_on, keeping } = start;
    let open = table.open_directory(&store);
    for directory in [&open, &table.directory(&store)] {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let mut roller = Roller::new(&store, table)?;
    let left = left_behind(&open, table)?;
    let first = if goes_on { after_earlier(first, &store, table, &left)? } else { first };
    let (to_roll, closed) = mpsc::channel::<Closed>();
    let told = shared.clone();
    let [append_name, roll_name] = table.threads;
    let rolled_with = lock.clone();
    thread::Builder::new().name(roll_name.to_owned()).spawn(move || {
        // Whoever comes next waits for this one too: it moves files.
        let _lock = rolled_with;
        let mut kept = keeping();
        roll(&mut roller, left, &closed, (&mut kept, &turn), &told);
    })?;
    let mut log = Log {
        open,
        table,
        next: first,
        segment: None,
        began: Instant::now(),
        marked: Instant::now(),
        latest: None,
    };
    thread::Builder::new().name(append_name.to_owned()).spawn(move || {
        let _lock = lock;
        log.run(&jobs, &to_roll, &shared);
        // Nobody waits any more where the agent has given up on us.
        let _ = finished.send(());
    })?;
    Ok(())
}

/// The beginning of a run that is given what was recorded since the end of the one before it.
fn after_earlier(first: Mark, store: &Path, table: &Table, left: &[Closed]) -> anyhow::Result<Mark> {
    let of_file = match files::list(store, table)?.pop() {
        // Whatever is wrong with it, whoever reads it is told.
        Some(file) => files::open(&file.path, table).ok().map(|(_, _, told)| told.mark),
        None => None,
    };
    let marks = left.iter().map(|closed| closed.mark.clone()).chain(of_file);
    let Some(earlier) = marks.filter(|mark| mark.node == first.node).max_by_key(|mark| mark.until) else {
        return Ok(first);
    };
    let lost_since = first.kernel_lost.saturating_sub(earlier.kernel_lost);
    Ok(Mark {
        from: earlier.until.min(first.from),
        lost_before: first.lost_before.saturating_sub(lost_since),
        ..first
    })
}

/// Only one may write a store.
pub(super) fn lock(store: &Path) -> anyhow::Result<File> {
    fs::create_dir_all(store).with_context(|| format!("cannot make {}", store.display()))?;
    let path = store.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            anyhow::bail!("another agent writes the flow store {}: give each its own", store.display())
        }
        Err(fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// Segments of earlier runs. Those that cannot be read are kept under another name.
fn left_behind(open: &Path, table: &Table) -> anyhow::Result<Vec<Closed>> {
    let mut left = Vec::new();
    for path in segment::list(open).with_context(|| format!("cannot list {}", open.display()))? {
        match recover(&path, table) {
            Ok(Some(closed)) => left.push(closed),
            Ok(None) => fs::remove_file(&path)?,
            Err(error) => {
                let kept_as = path.with_extension("arrow.damaged");
                fs::rename(&path, &kept_as)?;
                tracing::error!(
                    kept_as = %kept_as.display(),
                    reason = format!("{error:#}"),
                    "a segment of the flow store cannot be read: its {} are missing", table.rows
                );
            }
        }
    }
    Ok(left)
}

fn recover(path: &Path, table: &Table) -> anyhow::Result<Option<Closed>> {
    let mark = segment::read_mark(path)?;
    let content = segment::read(path, table)?;
    let rows = content.batches.iter().map(|batch| batch.num_rows() as u64).sum();
    let Some(mut mark) = mark else {
        anyhow::ensure!(rows == 0, "nothing tells which run it is of");
        return Ok(None);
    };
    let last = content.batches.iter().filter_map(last_time).max();
    mark.until = mark.until.max(last.unwrap_or(mark.until));
    if content.is_torn {
        tracing::warn!(
            segment = %path.display(),
            rows,
            until = %mark.until,
            "the last batch of the flow store is torn: what was not synced is missing, a second at most"
        );
    }
    Ok(Some(Closed { path: path.to_owned(), mark, rows }))
}

/// When the last flow of a batch began.
fn last_time(batch: &RecordBatch) -> Option<Timestamp> {
    use arrow::{array::AsArray as _, compute::max, datatypes::TimestampMicrosecondType};
    let times = batch.column_by_name("time")?.as_primitive_opt::<TimestampMicrosecondType>()?;
    Some(Timestamp(max(times)?.saturating_mul(1_000)))
}

/// The thread that appends.
#[derive(Debug)]
struct Log {
    open: PathBuf,
    table: &'static Table,
    /// What the next segment begins with.
    next: Mark,
    segment: Option<Segment>,
    began: Instant,
    marked: Instant,
    /// When the last row began that was written.
    latest: Option<Timestamp>,
}

impl Log {
    fn run(&mut self, jobs: &mpsc::Receiver<Job>, to_roll: &mpsc::Sender<Closed>, shared: &Shared) {
        // From the start on: that nothing happens is worth knowing too.
        let mut has_failed = self.segment().is_err();
        let mut synced: Vec<u64> = Vec::new();
        for job in jobs {
            match job {
                Job::Batch(batch) => {
                    let flows = batch.num_rows() as u64;
                    shared.waiting.fetch_sub(1, Ordering::Relaxed);
                    let wrote = self.segment().and_then(|segment| segment.write(&batch));
                    match wrote {
                        Ok(()) => {
                            self.latest = self.latest.max(last_time(&batch));
                            synced.push(flows);
                        }
                        Err(error) => {
                            // Nothing more can be appended to it.
                            self.close(to_roll);
                            shared.waiting_rows.fetch_sub(flows, Ordering::Release);
                            shared.failed(flows, &format!("{error:#}"));
                            has_failed = true;
                        }
                    }
                }
                Job::Reached { until, lost } => {
                    let reached = self.reach(until, lost);
                    let flows: u64 = synced.drain(..).sum();
                    shared.waiting_rows.fetch_sub(flows, Ordering::Release);
                    match reached {
                        // Written to the page cache it is; whether it survives the machine is not known.
                        Err(error) => begins_unsynced(shared, &error),
                        Ok(()) if !has_failed => shared.works(),
                        Ok(()) => {}
                    }
                    has_failed = false;
                }
            }
            if self.is_full() {
                self.close(to_roll);
            }
        }
        self.close(to_roll);
    }

    fn segment(&mut self) -> anyhow::Result<&mut Segment> {
        let segment = match self.segment.take() {
            Some(segment) => segment,
            None => {
                (self.began, self.marked) = (Instant::now(), Instant::now());
                Segment::create(&self.open, self.table, self.next.clone())?
            }
        };
        Ok(self.segment.insert(segment))
    }

    /// All until then has been handed over.
    fn reach(&mut self, until: Timestamp, lost: Lost) -> anyhow::Result<()> {
        let marked = self.marked;
        let segment = self.segment()?;
        segment.sync()?;
        segment.reach(until, lost);
        if marked.elapsed() >= MARK_EVERY {
            segment.write_mark()?;
            self.marked = Instant::now();
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        let age = self.began.elapsed();
        self.segment.as_ref().is_some_and(|segment| match segment.rows() {
            0 => age >= QUIET_AGE,
            _ => segment.is_full() || age >= SEGMENT_AGE,
        })
    }

    /// The segment is full; the next one goes on where it ends.
    fn close(&mut self, to_roll: &mpsc::Sender<Closed>) {
        let Some(mut segment) = self.segment.take() else { return };
        // Full within a second it tells of that one too, so that what is missing is seen where it cannot be read.
        if let Some(latest) = self.latest {
            segment.reach_at_least(latest);
        }
        // Where the disk is full the older mark stays, and a gap is said to be longer than it is.
        if let Err(error) = segment.sync().and_then(|()| segment.write_mark()) {
            tracing::warn!("{error:#}");
        }
        let closed = segment.close();
        let until = closed.mark.until;
        self.next = Mark {
            number: closed.mark.number + 1,
            from: until,
            until,
            lost_before: closed.mark.lost_after,
            ..closed.mark.clone()
        };
        // Else the next run finds it.
        let _ = to_roll.send(closed);
    }
}

fn begins_unsynced(shared: &Shared, error: &anyhow::Error) {
    begins(&shared.failing, &format!("{error:#}"), "the flow store cannot be synced");
}

/// Rolls what comes, and tries again what failed.
fn roll(
    roller: &mut Roller,
    left: Vec<Closed>,
    closed: &mpsc::Receiver<Closed>,
    (kept, turn): (&mut impl Keeps, &Mutex<()>),
    shared: &Shared,
) {
    let mut waiting: VecDeque<Closed> = left.into();
    let mut began: Option<Instant> = None;
    // What an earlier run left has waited already.
    let (mut at_once, mut pause) = (!waiting.is_empty(), Duration::ZERO);
    loop {
        kept.tell(shared);
        match closed.recv_timeout(std::mem::replace(&mut pause, TRY_AGAIN)) {
            Ok(segment) => waiting.push_back(segment),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let _turn = turn.lock();
                kept.prune();
            }
            // What is left is found by the next run, which need not wait for us.
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
        let _turn = turn.lock();
        let mut result = Ok(());
        while let Some(segment) = waiting.pop_front() {
            began = began.or(Some(Instant::now()));
            result = roller.add(segment.clone());
            if result.is_err() {
                waiting.push_front(segment);
                break;
            }
            if roller.is_full() {
                result = commit(roller, kept);
                began = None;
            }
        }
        if result.is_ok()
            && (std::mem::take(&mut at_once)
                || roller.is_due(SEGMENT_AGE)
                || began.is_some_and(|at| at.elapsed() >= SEGMENT_AGE))
        {
            result = commit(roller, kept);
            began = None;
        }
        match result {
            Ok(()) => ends(&shared.roll_failing, "the flow store is rolled again"),
            Err(error) => {
                roller.abandon().into_iter().rev().for_each(|segment| waiting.push_front(segment));
                began = None;
                let what = "segments of the flow store cannot become files: they stay as they are";
                begins(&shared.roll_failing, &format!("{error:#}"), what);
                // Room may be what is missing.
                kept.prune();
            }
        }
    }
}

fn commit(roller: &mut Roller, kept: &mut impl Keeps) -> anyhow::Result<()> {
    let made = roller.commit()?;
    kept.add(made);
    kept.prune();
    Ok(())
}
