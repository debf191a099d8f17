//! A segment of the log: an Arrow IPC stream that rows are appended to, and beside it what is known of its time.
//!
//! A crash can tear the last batch of a stream; all batches before it are whole, and are read.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use arrow::{
    array::RecordBatch,
    ipc::{reader::StreamReader, writer::StreamWriter},
};
use serde::{Deserialize, Serialize};

use super::{roll::ROWS_AT_ONCE, table::Table};
use crate::model::Timestamp;

/// How long after it was last told how far a segment reaches it is told again, with some to spare.
const A_SECOND: std::time::Duration = std::time::Duration::from_secs(2);

/// What is known of the time that a segment is of. Wall times.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Mark {
    /// The version of the columns.
    pub version: u32,
    /// The agent's node.
    pub node: String,
    /// The agent run.
    pub run: String,
    /// Which segment of the run, from 1.
    pub number: u64,
    /// From when on rows are in it.
    pub from: Timestamp,
    /// Until when all of them are.
    pub until: Timestamp,
    /// Records that had been lost when it began, since the programs were loaded.
    pub lost_before: u64,
    /// And at `until`.
    pub lost_after: u64,
    /// Those of them that the kernel had no room for.
    pub kernel_lost: u64,
    /// Of what is left of many files: whether some of those could not be read, or were not there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub holes: bool,
}

impl Mark {
    /// That of a table's first segment of a run, of which nothing is written and nothing lost.
    pub fn first(table: &Table, node: &str, run: &str, from: Timestamp) -> Self {
        Self {
            version: table.version,
            node: node.to_owned(),
            run: run.to_owned(),
            number: 1,
            from,
            until: from,
            lost_before: 0,
            lost_after: 0,
            kernel_lost: 0,
            holes: false,
        }
    }

    /// Records that were lost in its time.
    pub fn lost(&self) -> u64 {
        self.lost_after.saturating_sub(self.lost_before)
    }
}

/// Records that were lost by now.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Lost {
    /// Those that the kernel had no room for, since the programs were loaded.
    pub kernel: u64,
    /// What this run lost of those that it was given.
    pub own: u64,
}

impl Lost {
    /// All of them.
    pub fn all(self) -> u64 {
        self.kernel.saturating_add(self.own)
    }
}

/// A segment that is still written.
pub struct Segment {
    path: PathBuf,
    file: File,
    /// Bytes that are whole.
    length: u64,
    stream: StreamWriter<Vec<u8>>,
    mark: Mark,
    rows: u64,
    is_dirty: bool,
    table: &'static Table,
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Segment").field("path", &self.path).field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl Segment {
    /// Begins a segment in `directory`.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn create(directory: &Path, table: &'static Table, mark: Mark) -> anyhow::Result<Self> {
        let path = directory.join(format!("{}-{:010}.arrow", mark.run, mark.number));
        let file = OpenOptions::new()
            .create_new(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        let stream =
            StreamWriter::try_new(Vec::new(), &(table.log_schema)()).context("the columns of a table")?;
        let mut segment = Self { path, file, length: 0, stream, mark, rows: 0, is_dirty: false, table };
        segment.append().and_then(|()| segment.write_mark()).inspect_err(|_| {
            // Nothing is in it: it would only be found as a damaged one.
            let _ = fs::remove_file(&segment.path);
            let _ = fs::remove_file(mark_path(&segment.path));
        })?;
        Ok(segment)
    }

    /// Appends a batch: all of it, or nothing.
    ///
    /// # Errors
    ///
    /// It cannot be written. Nothing more can be appended then: the stream's readers have missed what it counts on.
    pub fn write(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        self.stream.write(batch).with_context(|| format!("a batch of {}", self.table.rows))?;
        self.append()?;
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    fn append(&mut self) -> anyhow::Result<()> {
        let bytes = self.stream.get_mut();
        self.is_dirty = true;
        let written = self.file.write_all(bytes);
        let length = bytes.len() as u64;
        // A batch is about as long as the one before it.
        bytes.clear();
        if let Err(error) = written {
            // No torn batch stays behind for a reader to trip over.
            let _ = self.file.set_len(self.length);
            return Err(error).with_context(|| format!("cannot write {}", self.path.display()));
        }
        self.length += length;
        Ok(())
    }

    /// All that was recorded until this time is in it, or lost.
    pub fn reach(&mut self, until: Timestamp, lost: Lost) {
        self.mark.until = self.mark.until.max(until);
        self.mark.lost_after = lost.all();
        self.mark.kernel_lost = lost.kernel;
    }

    /// What was recorded until this time is in it, or in the one after it. What is not of this second is believed to be of a
    /// clock that was set.
    pub fn reach_at_least(&mut self, until: Timestamp) {
        if until.since(self.mark.until) <= A_SECOND {
            self.mark.until = self.mark.until.max(until);
        }
    }

    /// Brings what was written to the disk.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub fn sync(&mut self) -> anyhow::Result<()> {
        if self.is_dirty {
            self.file.sync_data().with_context(|| format!("cannot sync {}", self.path.display()))?;
            self.is_dirty = false;
        }
        Ok(())
    }

    /// Writes down until when it is complete.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn write_mark(&self) -> anyhow::Result<()> {
        let path = mark_path(&self.path);
        let text = serde_json::to_vec(&self.mark)?;
        let new = path.with_extension("json.new");
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Rows in it.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Whether there is no room for more, however young it is.
    pub fn is_full(&self) -> bool {
        self.rows >= ROWS_AT_ONCE || self.length >= self.table.segment_bytes
    }

    /// Ends it.
    pub fn close(self) -> Closed {
        Closed { path: self.path, mark: self.mark, rows: self.rows }
    }
}

/// A segment that nothing is added to any more.
#[derive(Clone, Debug)]
pub struct Closed {
    /// Where it is.
    pub path: PathBuf,
    /// What is known of its time.
    pub mark: Mark,
    /// Rows in it.
    pub rows: u64,
}

/// Removes a segment with what is known of its time, as its flows are elsewhere. What is gone already is no error.
///
/// # Errors
///
/// Something of it cannot be removed.
pub fn remove(segment: &Path) -> anyhow::Result<()> {
    for path in [segment.to_owned(), mark_path(segment)] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn mark_path(segment: &Path) -> PathBuf {
    segment.with_extension("json")
}

/// What a segment holds.
#[derive(Debug)]
pub struct Content {
    /// All batches that are whole.
    pub batches: Vec<RecordBatch>,
    /// Whether something after them is not.
    pub is_torn: bool,
}

/// Reads a segment, also while it is written.
///
/// # Errors
///
/// It cannot be read, or is no segment of ours.
pub fn read(path: &Path, table: &Table) -> anyhow::Result<Content> {
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        // A crash right after it was made.
        return Ok(Content { batches: Vec::new(), is_torn: false });
    }
    let stream = StreamReader::try_new(BufReader::new(file), None).context("no Arrow stream")?;
    // Those of a file were those of the log once.
    anyhow::ensure!(
        [(table.log_schema)(), (table.schema)()].contains(&stream.schema()),
        "its columns are not those of version {}: read it with the netaudit that wrote it",
        table.version
    );
    let mut batches = Vec::new();
    let mut is_torn = false;
    for batch in stream {
        match batch {
            Ok(batch) => batches.push(batch),
            Err(_) => {
                is_torn = true;
                break;
            }
        }
    }
    Ok(Content { batches, is_torn })
}

/// What is known of a segment's time; `None` where nothing was written down.
///
/// # Errors
///
/// It cannot be read.
pub fn read_mark(segment: &Path) -> anyhow::Result<Option<Mark>> {
    let path = mark_path(segment);
    match fs::read(&path) {
        Ok(text) => {
            let mark = serde_json::from_slice(&text).with_context(|| format!("in {}", path.display()))?;
            Ok(Some(mark))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The segments in a directory, in order of run and number.
///
/// # Errors
///
/// The directory cannot be listed.
pub fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "arrow") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
