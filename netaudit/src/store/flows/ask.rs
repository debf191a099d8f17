//! Reading a flow store: what was asked for, an hour at a time, also while an agent writes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::ControlFlow,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::SystemTime,
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use parquet::arrow::{ProjectionMask, arrow_reader::ArrowReaderMetadata};

use super::{
    coverage::Coverage,
    files,
    filter::Filter,
    look::{FOOTERS, Found, Part},
    read::{Read, read_file, read_segment},
    schema::schema,
    segment::Mark,
};
use crate::store::bucket::Bucket;

/// What a scan did.
#[derive(Clone, Default, Debug)]
pub struct Scanned {
    /// Whether anything is missing in the time that was asked for.
    pub coverage: Coverage,
    /// What it goes by.
    pub marks: Vec<Mark>,
    /// Files and segments of that time.
    pub files: usize,
    /// Row groups of them, and those of these that were read.
    pub row_groups: (usize, usize),
    /// The keys by which addresses are hashed there, where addresses are asked for.
    pub keys: BTreeSet<String>,
    /// What could not be read, and why. What it held is missing.
    pub unreadable: Vec<(PathBuf, String)>,
    /// Whether some of it is there by now under another name, or was removed: who asks again finds what is there.
    pub vanished: bool,
}

impl Scanned {
    fn add(&mut self, read: Read) {
        self.row_groups.0 += read.groups.0;
        self.row_groups.1 += read.groups.1;
        self.keys.extend(read.keys);
    }
}

/// How far a scan is: parts done, and all.
pub type Progress<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// A flow store that is read.
#[derive(Clone, Debug)]
pub enum Store {
    /// What an agent writes, or a copy of it.
    Directory(PathBuf),
    /// Where agents upload to.
    Bucket(Bucket),
}

impl From<PathBuf> for Store {
    fn from(path: PathBuf) -> Self {
        Self::Directory(path)
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Bucket(bucket) => bucket.fmt(f),
        }
    }
}

/// What is read of the flows that were asked for.
#[derive(Clone, Copy, Debug)]
pub enum Columns<'a> {
    /// All.
    All,
    /// These, in the order of the schema.
    Some(&'a [&'a str]),
}

impl Columns<'_> {
    pub(super) fn mask(self, metadata: &ArrowReaderMetadata) -> ProjectionMask {
        match self {
            Self::All => ProjectionMask::all(),
            Self::Some(names) => columns_mask(metadata, names),
        }
    }

    /// The columns of what is handed out.
    fn schema(self) -> anyhow::Result<SchemaRef> {
        let all = schema();
        match self {
            Self::All => Ok(all),
            Self::Some(names) => Ok(all.project(&places(&all, names))?.into()),
        }
    }
}

pub(super) fn places(schema: &SchemaRef, names: &[&str]) -> Vec<usize> {
    let fields = schema.fields().iter().enumerate();
    fields.filter(|(_, field)| names.contains(&field.name().as_str())).map(|(place, _)| place).collect()
}

pub(super) fn columns_mask(metadata: &ArrowReaderMetadata, names: &[&str]) -> ProjectionMask {
    let roots = metadata.schema().fields().iter().enumerate();
    let roots = roots.filter(|(_, field)| names.contains(&field.name().as_str())).map(|(place, _)| place);
    ProjectionMask::roots(metadata.parquet_schema(), roots)
}

/// Which parts of stores are looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Among {
    /// All.
    All,
    /// Segments, and files that were made at this time or later: whoever looks again and again has seen the others.
    NewerThan(SystemTime),
}

/// Reads the flows that `filter` asks for, hour by hour in order of time; those of an hour come in any order, in batches. `each`
/// ends the scan with [`ControlFlow::Break`]; at the end of an hour it gets `None`.
///
/// # Errors
///
/// There is no store. What alone cannot be read is told in the result.
pub fn scan(
    stores: &[Store],
    among: Among,
    filter: &Filter,
    columns: Columns<'_>,
    progress: Progress<'_>,
    each: &mut dyn FnMut(Option<RecordBatch>) -> anyhow::Result<ControlFlow<()>>,
) -> anyhow::Result<Scanned> {
    scan_within(usize::MAX, FOOTERS, stores, among, filter, columns, progress, each)
}

/// As [`scan`], but part after part: the batches of an hour come in the same order each time.
///
/// # Errors
///
/// As [`scan`].
pub fn scan_in_order(
    stores: &[Store],
    filter: &Filter,
    columns: Columns<'_>,
    progress: Progress<'_>,
    each: &mut dyn FnMut(Option<RecordBatch>) -> anyhow::Result<ControlFlow<()>>,
) -> anyhow::Result<Scanned> {
    scan_within(1, FOOTERS, stores, Among::All, filter, columns, progress, each)
}

/// As [`scan`], with at most so many threads and so many bytes of footers in memory.
///
/// # Errors
///
/// As [`scan`].
#[expect(clippy::too_many_arguments, reason = "those of `scan`, and two bounds")]
pub fn scan_within(
    threads: usize,
    footers: usize,
    stores: &[Store],
    among: Among,
    filter: &Filter,
    columns: Columns<'_>,
    progress: Progress<'_>,
    each: &mut dyn FnMut(Option<RecordBatch>) -> anyhow::Result<ControlFlow<()>>,
) -> anyhow::Result<Scanned> {
    let mut scanned = Scanned::default();
    let mut found = Found::within(footers);
    let threads = thread::available_parallelism().map_or(1, usize::from).min(threads);
    for store in stores {
        if let Store::Directory(directory) = store {
            anyhow::ensure!(
                files::open_directory(directory).is_dir() || files::flows_directory(directory).is_dir(),
                "{} is no flow store: give the directory that an agent's --flow-store names",
                directory.display()
            );
        }
        found.look(store, among, filter, &mut scanned)?;
    }
    scanned.coverage = Coverage::of(&found.marks, filter.from, filter.until);
    scanned.marks = std::mem::take(&mut found.marks);
    scanned.files = found.parts.values().map(Vec::len).sum();
    let done = AtomicUsize::new(0);
    let all = scanned.files;
    let schema = columns.schema()?;
    for parts in found.parts.into_values() {
        let step = || progress(done.fetch_add(1, Ordering::Relaxed) + 1, all);
        let flow = scan_hour(&parts, threads, filter, columns, &schema, &step, &mut scanned, each)?;
        if flow.is_break() || each(None)?.is_break() {
            break;
        }
    }
    Ok(scanned)
}

/// Reads the parts of one hour, `threads` at once.
#[expect(clippy::too_many_arguments, reason = "those of `scan`")]
fn scan_hour(
    parts: &[Part],
    threads: usize,
    filter: &Filter,
    columns: Columns<'_>,
    schema: &SchemaRef,
    step: &(dyn Fn() + Sync),
    scanned: &mut Scanned,
    each: &mut dyn FnMut(Option<RecordBatch>) -> anyhow::Result<ControlFlow<()>>,
) -> anyhow::Result<ControlFlow<()>> {
    let workers = threads.min(parts.len()).max(1);
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let scanned = Mutex::new(scanned);
    let (batches, taken) = mpsc::sync_channel::<RecordBatch>(workers * 2);
    thread::scope(|scope| {
        for _ in 0..workers {
            let batches = batches.clone();
            scope.spawn(|| {
                let batches = batches;
                while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut send = |batch: RecordBatch| {
                        !stop.load(Ordering::Relaxed)
                            && (batch.num_rows() == 0 || batches.send(batch).is_ok())
                    };
                    let read = match part {
                        Part::File(place, footer) => {
                            read_file(place, footer.clone(), filter, columns, &mut send)
                        }
                        Part::Segment(path) => read_segment(path, filter, schema, &mut send),
                    };
                    let mut scanned = scanned.lock().unwrap_or_else(PoisonError::into_inner);
                    match read {
                        Ok(read) => scanned.add(read),
                        Err(error) if files::is_gone(&error) => {
                            scanned.vanished = true;
                            let why = "it was moved or removed while it was looked for: ask again";
                            scanned.unreadable.push((part.name(), why.to_owned()));
                        }
                        Err(error) => scanned.unreadable.push((part.name(), format!("{error:#}"))),
                    }
                    step();
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        drop(batches);
        let mut result = Ok(ControlFlow::Continue(()));
        for batch in &taken {
            result = each(Some(batch));
            if !matches!(result, Ok(ControlFlow::Continue(()))) {
                stop.store(true, Ordering::Relaxed);
                break;
            }
        }
        // Nobody waits for room any more.
        drop(taken);
        result
    })
}

/// Flows of segments that come while one looks. Remembers which were handed out.
#[derive(Debug, Default)]
pub struct Follower {
    /// The last number that was handed out, by run.
    handed: BTreeMap<String, u64>,
}

impl Follower {
    /// Remembers a flow that was shown.
    pub fn shown(&mut self, run: &str, number: u64) {
        match self.handed.get_mut(run) {
            Some(last) => *last = number.max(*last),
            None => drop(self.handed.insert(run.to_owned(), number)),
        }
    }

    /// Whether a flow is still to be shown.
    pub fn is_new(&self, run: &str, number: u64) -> bool {
        self.handed.get(run).is_none_or(|last| number > *last)
    }
}
