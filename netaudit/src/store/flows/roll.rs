//! Segments become Parquet files: sorted, an hour of rows in each partition.
//!
//! ```text
//! closed segments ──sort──► row groups of `.part` files, one an hour ──commit──► files in their partitions; segments removed
//! ```
//!
//! A commit is written down before it begins, and ended at the next start where a crash interrupts it. Before it, what is in
//! `.part` files is nothing: the segments are still there.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use arrow::{
    array::{ArrayRef, AsArray as _, RecordBatch},
    compute::{SortColumn, concat, interleave_record_batch, lexsort_to_indices},
    datatypes::TimestampMicrosecondType,
};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, Encoding, ZstdLevel},
    file::properties::{EnabledStatistics, WriterProperties},
    schema::types::ColumnPath,
};
use serde::{Deserialize, Serialize};

use super::{
    files::{self, FlowFile},
    segment::{self, Closed, Mark},
    table::Table,
};

/// Flows of one row group at most, and so what is in memory at once.
pub const ROWS_AT_ONCE: u64 = 32_768;

/// Rows that are put in order at once.
const ROWS_OF_STEP: usize = 4_096;

/// Rows of one page: what is not in a page yet takes eight bytes in each column. More pages make files larger.
const ROWS_OF_PAGE: usize = (ROWS_AT_ONCE as usize).div_ceil(4);

/// Flows of one file, above which it is ended.
const ROWS_OF_FILE: u64 = 2_097_152;

/// Turns closed segments into files.
#[derive(Debug)]
pub struct Roller {
    store: PathBuf,
    table: &'static Table,
    segments: Vec<Closed>,
    parts: BTreeMap<i64, Part>,
    rows: u64,
    /// Files that nobody has been told of yet.
    made: Vec<FlowFile>,
}

struct Part {
    path: PathBuf,
    writer: ArrowWriter<File>,
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

/// A commit that has begun.
#[derive(Serialize, Deserialize)]
struct Commit {
    /// (the part, the file that it becomes).
    files: Vec<(PathBuf, PathBuf)>,
    segments: Vec<PathBuf>,
}

impl Roller {
    /// Nothing is rolled yet. What a crash has left is ended or removed.
    ///
    /// # Errors
    ///
    /// The store cannot be written.
    pub fn new(store: &Path, table: &'static Table) -> anyhow::Result<Self> {
        let open = table.open_directory(store);
        let journal = open.join("commit.json");
        match fs::read(&journal) {
            Ok(text) => match serde_json::from_slice::<Commit>(&text) {
                Ok(commit) => finish_commit(&commit, &journal)?,
                // It was not written to its end, and so nothing of it has happened.
                Err(_) => fs::remove_file(&journal)?,
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", journal.display())),
        }
        for entry in fs::read_dir(&open)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "part") {
                fs::remove_file(path)?;
            }
        }
        Ok(Self {
            store: store.to_owned(),
            table,
            segments: Vec::new(),
            parts: BTreeMap::new(),
            rows: 0,
            made: Vec::new(),
        })
    }

    /// Takes a segment in. The files that it belongs to are ended with [`Roller::commit`].
    ///
    /// # Errors
    ///
    /// It cannot be read, or a part not be written: call [`Roller::abandon`], and try again later.
    pub fn add(&mut self, closed: Closed) -> anyhow::Result<()> {
        // A file tells of one stretch: where a segment could not be read, those before and after it are two.
        let goes_on =
            |last: &Closed| (&last.mark.run, last.mark.number + 1) == (&closed.mark.run, closed.mark.number);
        if self.segments.last().is_some_and(|last| !goes_on(last)) {
            self.end_files()?;
        }
        let content = segment::read(&closed.path, self.table)
            .with_context(|| format!("cannot read {}", closed.path.display()))?;
        let batches: Vec<&RecordBatch> = content.batches.iter().collect();
        let starts = starts(&batches);
        for (hour, rows) in sorted(&content.batches, self.table)? {
            let part = match self.parts.entry(hour) {
                std::collections::btree_map::Entry::Occupied(part) => part.into_mut(),
                std::collections::btree_map::Entry::Vacant(none) => {
                    none.insert(Part::create(&self.store, self.table, hour, &closed.mark)?)
                }
            };
            for rows in rows.chunks(ROWS_OF_STEP) {
                let places: Vec<(usize, usize)> = rows.iter().map(|row| place(&starts, *row)).collect();
                let rows = interleave_record_batch(&batches, &places)?;
                part.writer.write(&self.table.for_file(&rows)?).context("a row group")?;
            }
            part.writer.flush().context("a row group")?;
        }
        self.rows += closed.rows;
        self.segments.push(closed);
        Ok(())
    }

    /// Whether what was taken in is of so long a time that its files are ended.
    pub fn is_due(&self, age: std::time::Duration) -> bool {
        let (first, last) = (self.segments.first(), self.segments.last());
        first.zip(last).is_some_and(|(first, last)| last.mark.until.since(first.mark.from) >= age)
    }

    /// Whether the files are large enough.
    pub fn is_full(&self) -> bool {
        self.rows >= ROWS_OF_FILE
    }

    /// Ends the files: they take the place of the segments. Returns them, and those that were ended before.
    ///
    /// # Errors
    ///
    /// They cannot be written: call [`Roller::abandon`], and try again later.
    pub fn commit(&mut self) -> anyhow::Result<Vec<FlowFile>> {
        self.end_files()?;
        Ok(std::mem::take(&mut self.made))
    }

    fn end_files(&mut self) -> anyhow::Result<()> {
        let marks: Vec<Mark> = self.segments.iter().map(|closed| closed.mark.clone()).collect();
        let Some(told) = files::joined(&marks) else { return Ok(()) };
        // That nothing happened in an hour is worth a file too, else nobody could tell it from nobody watching.
        for hour in told.hours() {
            if let std::collections::btree_map::Entry::Vacant(none) = self.parts.entry(hour) {
                none.insert(Part::create(&self.store, self.table, hour, &told.mark)?);
            }
        }
        let mut commit = Commit {
            files: Vec::new(),
            segments: self.segments.iter().map(|closed| closed.path.clone()).collect(),
        };
        let mut made = Vec::new();
        for (hour, part) in std::mem::take(&mut self.parts) {
            let Part { path, mut writer } = part;
            writer.append_key_value_metadata(told.of_hour(hour).key_value()?);
            let file = writer.into_inner().context("the end of a Parquet file")?;
            file.sync_all().with_context(|| format!("cannot sync {}", path.display()))?;
            let bytes = file.metadata()?.len();
            let directory = self.table.directory(&self.store).join(files::partition(hour));
            fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
            let to = directory.join(told.file_name());
            made.push(FlowFile { hour, path: to.clone(), bytes });
            commit.files.push((path, to));
        }
        let journal = self.table.open_directory(&self.store).join("commit.json");
        let new = journal.with_extension("new");
        fs::write(&new, serde_json::to_vec(&commit)?)?;
        File::open(&new)?.sync_all()?;
        fs::rename(&new, &journal)?;
        sync_directory(&journal)?;
        finish_commit(&commit, &journal)?;
        self.segments.clear();
        self.rows = 0;
        self.made.extend(made);
        Ok(())
    }

    /// Forgets what is not committed, and returns its segments.
    pub fn abandon(&mut self) -> Vec<Closed> {
        for part in std::mem::take(&mut self.parts).into_values() {
            // Else the next start removes it.
            let _ = fs::remove_file(&part.path);
        }
        self.rows = 0;
        std::mem::take(&mut self.segments)
    }
}

impl Part {
    fn create(store: &Path, table: &Table, hour: i64, mark: &Mark) -> anyhow::Result<Self> {
        let name = format!("{}-{:010}-{hour}.part", mark.run, mark.number);
        let path = table.open_directory(store).join(name);
        let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let writer = ArrowWriter::try_new(file, (table.schema)(), Some(properties(table)))?;
        Ok(Self { path, writer })
    }
}

fn finish_commit(commit: &Commit, journal: &Path) -> anyhow::Result<()> {
    for (part, file) in &commit.files {
        match fs::rename(part, file) {
            Ok(()) => sync_directory(file)?,
            // Before the crash.
            Err(error) if error.kind() == io::ErrorKind::NotFound && file.exists() => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot make {}", file.display()));
            }
        }
    }
    commit.segments.iter().try_for_each(|path| segment::remove(path))?;
    fs::remove_file(journal).with_context(|| format!("cannot remove {}", journal.display()))
}

fn sync_directory(of: &Path) -> anyhow::Result<()> {
    let directory = of.parent().unwrap_or(of);
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .with_context(|| format!("cannot sync {}", directory.display()))
}

/// The number of each batch's first row, where the rows of all are numbered.
fn starts(batches: &[&RecordBatch]) -> Vec<usize> {
    let start = |rows: &mut usize, batch: &&RecordBatch| {
        *rows += batch.num_rows();
        Some(*rows - batch.num_rows())
    };
    batches.iter().scan(0, start).collect()
}

/// In which batch a row is, and where in it.
fn place(starts: &[usize], row: u32) -> (usize, usize) {
    let row = row as usize;
    let batch = starts.partition_point(|start| *start <= row) - 1;
    (batch, row - starts[batch])
}

/// The numbers of the rows of all batches by hour, each in the order of the table and of time: flows of one pair have most of their words in
/// common, and so take little room beside one another.
fn sorted(batches: &[RecordBatch], table: &Table) -> anyhow::Result<BTreeMap<i64, Vec<u32>>> {
    if batches.iter().all(|batch| batch.num_rows() == 0) {
        return Ok(BTreeMap::new());
    }
    let column = |name: &str| -> anyhow::Result<ArrayRef> {
        let columns: Vec<&dyn arrow::array::Array> = batches
            .iter()
            .map(|batch| batch.column_by_name(name).map(|column| &**column).context("a column"))
            .collect::<anyhow::Result<_>>()?;
        Ok(concat(&columns)?)
    };
    let times = column("time")?;
    let by = |values: ArrayRef| SortColumn { values, options: None };
    let keys = table.order.iter().map(|name| column(name).map(by));
    let mut keys = keys.collect::<anyhow::Result<Vec<_>>>()?;
    keys.push(by(times.clone()));
    let order = lexsort_to_indices(&keys, None)?;
    let times = times.as_primitive::<TimestampMicrosecondType>();
    let mut hours: BTreeMap<i64, Vec<u32>> = BTreeMap::new();
    for row in order.values() {
        hours.entry(files::hour_of_micros(times.value(*row as usize))).or_default().push(*row);
    }
    Ok(hours)
}

/// How a table's files are written.
pub fn properties(table: &Table) -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_created_by(concat!("netaudit ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).unwrap_or_default()))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        // Row groups are so small that nobody looks for pages in them.
        .set_offset_index_disabled(true)
        .set_data_page_row_count_limit(ROWS_OF_PAGE)
        .set_max_row_group_row_count(Some(ROWS_AT_ONCE as usize));
    for column in table.deltas {
        let column = ColumnPath::from(*column);
        properties = properties
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED);
    }
    for column in table.blooms {
        // Made smaller to what there is at the end of each row group.
        properties = properties.set_column_bloom_filter_max_ndv(ColumnPath::from(*column), ROWS_AT_ONCE);
    }
    properties.build()
}
