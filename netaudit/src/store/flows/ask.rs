//! Reading a flow store: what was asked for, an hour at a time, also while an agent writes it.

use std::{
    collections::BTreeMap,
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::SystemTime,
};

use anyhow::Context as _;
use arrow::{
    array::{RecordBatch, RecordBatchReader as _},
    compute::filter_record_batch,
    datatypes::SchemaRef,
};
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{ArrowPredicateFn, ArrowReaderMetadata, ParquetRecordBatchReaderBuilder, RowFilter},
    },
    bloom_filter::Sbbf,
    file::statistics::Statistics,
};

use super::{
    coverage::Coverage,
    files::{self, FlowFile, Told},
    filter::{Condition, Filter},
    schema::schema,
    segment::{self, Mark},
    table::FLOWS,
};
use crate::model::Timestamp;

/// Rows of a batch that is handed out at most.
const BATCH_ROWS: usize = 16_384;

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
    /// What could not be read, and why. What it held is missing.
    pub unreadable: Vec<(PathBuf, String)>,
}

/// How far a scan is: parts done, and all.
pub type Progress<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// What is read of the flows that were asked for.
#[derive(Clone, Copy, Debug)]
pub enum Columns<'a> {
    /// All.
    All,
    /// These, in the order of the schema.
    Some(&'a [&'a str]),
}

impl Columns<'_> {
    fn mask(self, metadata: &ArrowReaderMetadata) -> ProjectionMask {
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

fn places(schema: &SchemaRef, names: &[&str]) -> Vec<usize> {
    let fields = schema.fields().iter().enumerate();
    fields.filter(|(_, field)| names.contains(&field.name().as_str())).map(|(place, _)| place).collect()
}

fn columns_mask(metadata: &ArrowReaderMetadata, names: &[&str]) -> ProjectionMask {
    let roots = metadata.schema().fields().iter().enumerate();
    let roots = roots.filter(|(_, field)| names.contains(&field.name().as_str())).map(|(place, _)| place);
    ProjectionMask::roots(metadata.parquet_schema(), roots)
}

/// A part of a store that holds flows of one hour.
#[derive(Clone, Debug)]
enum Part {
    File(FlowFile),
    Segment(PathBuf),
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
    stores: &[PathBuf],
    among: Among,
    filter: &Filter,
    columns: Columns<'_>,
    progress: Progress<'_>,
    each: &mut dyn FnMut(Option<RecordBatch>) -> anyhow::Result<ControlFlow<()>>,
) -> anyhow::Result<Scanned> {
    let mut scanned = Scanned::default();
    let mut found = Found::default();
    for store in stores {
        anyhow::ensure!(
            files::open_directory(store).is_dir() || files::flows_directory(store).is_dir(),
            "{} is no flow store: give the directory that an agent's --flow-store names",
            store.display()
        );
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
        let flow = scan_hour(&parts, filter, columns, &schema, &step, &mut scanned, each)?;
        if flow.is_break() || each(None)?.is_break() {
            break;
        }
    }
    Ok(scanned)
}

/// The parts that can hold what is asked for, by hour, and what all tell of their time.
#[derive(Default)]
struct Found {
    parts: BTreeMap<i64, Vec<Part>>,
    marks: Vec<Mark>,
}

impl Found {
    fn look(
        &mut self,
        store: &Path,
        among: Among,
        filter: &Filter,
        scanned: &mut Scanned,
    ) -> anyhow::Result<()> {
        // Segments first: one that becomes a file meanwhile is found as both, and so read once.
        let segments = files::segments(store, &FLOWS)?;
        let mut files = files::list(store, &FLOWS)?;
        if let Among::NewerThan(time) = among {
            let made = |file: &FlowFile| file.path.metadata().and_then(|data| data.modified());
            files.retain(|file| made(file).is_ok_and(|made| made >= time));
        }
        let hour = |time: Timestamp| files::hour_of(time.0.div_euclid(1_000));
        let from = filter.from.map_or(i64::MIN, hour);
        let until = filter.until.map_or(i64::MAX, |until| hour(Timestamp(until.0.saturating_sub(1_000))));
        let mut told: Vec<Told> = Vec::new();
        for file in files {
            // A file tells of the time of its segments, which is an hour and some minutes at most.
            if !(from.saturating_sub(2)..=until.saturating_add(2)).contains(&file.hour) {
                continue;
            }
            match files::open(&file.path, &FLOWS) {
                Ok((_, _, tells)) => told.push(tells),
                Err(error) if is_gone(&error) => continue,
                Err(error) => {
                    scanned.unreadable.push((file.path, format!("{error:#}")));
                    continue;
                }
            }
            if (from..=until).contains(&file.hour) {
                self.parts.entry(file.hour).or_default().push(Part::File(file));
            }
        }
        for (path, mark) in segments {
            if mark.as_ref().is_some_and(|mark| told.iter().any(|told| told.holds(mark))) {
                continue;
            }
            let began = mark.as_ref().map_or(0, |mark| hour(mark.from));
            self.marks.extend(mark);
            // It may hold flows that began long before, and is small.
            self.parts.entry(began.max(from).min(until)).or_default().push(Part::Segment(path));
        }
        self.marks.extend(told.into_iter().map(|told| told.mark));
        Ok(())
    }
}

fn is_gone(error: &anyhow::Error) -> bool {
    let kind = error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind);
    kind == Some(io::ErrorKind::NotFound)
}

/// Reads the parts of one hour, as many at once as there are processors.
fn scan_hour(
    parts: &[Part],
    filter: &Filter,
    columns: Columns<'_>,
    schema: &SchemaRef,
    step: &(dyn Fn() + Sync),
    scanned: &mut Scanned,
    each: &mut dyn FnMut(Option<RecordBatch>) -> anyhow::Result<ControlFlow<()>>,
) -> anyhow::Result<ControlFlow<()>> {
    let workers = thread::available_parallelism().map_or(1, usize::from).min(parts.len()).max(1);
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let findings = Mutex::new((Vec::new(), (0, 0)));
    let (batches, taken) = mpsc::sync_channel::<RecordBatch>(workers * 2);
    let result = thread::scope(|scope| {
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
                        Part::File(file) => read_file(&file.path, filter, columns, &mut send),
                        Part::Segment(path) => read_segment(path, filter, schema, &mut send),
                    };
                    let mut findings = findings.lock().unwrap_or_else(PoisonError::into_inner);
                    match read {
                        Ok((all, read)) => {
                            findings.1.0 += all;
                            findings.1.1 += read;
                        }
                        Err(error) if is_gone(&error) => {}
                        Err(error) => {
                            let (Part::Segment(path) | Part::File(FlowFile { path, .. })) = part;
                            findings.0.push((path.clone(), format!("{error:#}")));
                        }
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
    });
    let (unreadable, (all, read)) = findings.into_inner().unwrap_or_else(PoisonError::into_inner);
    scanned.unreadable.extend(unreadable);
    scanned.row_groups.0 += all;
    scanned.row_groups.1 += read;
    result
}

/// Sends what is asked for of a segment. Returns how many row groups there were, and were read: none.
fn read_segment(
    path: &Path,
    filter: &Filter,
    wanted: &SchemaRef,
    send: &mut dyn FnMut(RecordBatch) -> bool,
) -> anyhow::Result<(usize, usize)> {
    let names: Vec<&str> = wanted.fields().iter().map(|field| field.name().as_str()).collect();
    let places = places(&schema(), &names);
    for batch in segment::read(path, &FLOWS)?.batches {
        let rows = filter_record_batch(&batch, &filter.selects(&batch)?)?;
        if !send(rows.project(&places)?) {
            break;
        }
    }
    Ok((0, 0))
}

/// Sends what is asked for of a file. Returns how many row groups there were, and were read.
fn read_file(
    path: &Path,
    filter: &Filter,
    columns: Columns<'_>,
    send: &mut dyn FnMut(RecordBatch) -> bool,
) -> anyhow::Result<(usize, usize)> {
    let (file, metadata, _) = files::open(path, &FLOWS)?;
    let all = metadata.metadata().num_row_groups();
    let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata.clone());
    let mut groups = Vec::new();
    for group in 0..all {
        if may_hold(&builder, &metadata, group, filter)? {
            groups.push(group);
        }
    }
    let read = groups.len();
    let predicates = filter.conditions().into_iter().map(|condition| {
        let mask = columns_mask(&metadata, &filter.columns(condition));
        let filter = filter.clone();
        let holds = move |batch: RecordBatch| filter.holds(condition, &batch);
        Box::new(ArrowPredicateFn::new(mask, holds)) as _
    });
    let reader = builder
        .with_row_groups(groups)
        .with_row_filter(RowFilter::new(predicates.collect()))
        .with_projection(columns.mask(&metadata))
        .with_batch_size(BATCH_ROWS)
        .build()?;
    let schema = reader.schema();
    for batch in reader {
        let batch = batch.context("a damaged row group")?;
        debug_assert_eq!(batch.schema(), schema);
        if !send(batch) {
            break;
        }
    }
    Ok((all, read))
}

/// Whether a row group can hold what is asked for, by its statistics and bloom filters.
fn may_hold(
    builder: &ParquetRecordBatchReaderBuilder<std::fs::File>,
    metadata: &ArrowReaderMetadata,
    group: usize,
    filter: &Filter,
) -> anyhow::Result<bool> {
    let chunks = metadata.metadata().row_group(group);
    let place = |name: &str| chunks.columns().iter().position(|chunk| chunk.column_path().string() == name);
    if let Some(Statistics::Int64(times)) = place("time").and_then(|place| chunks.column(place).statistics())
    {
        let micros = |time: Timestamp| time.0.div_euclid(1_000);
        let too_old = filter.from.zip(times.max_opt()).is_some_and(|(from, max)| *max < micros(from));
        let too_new = filter.until.zip(times.min_opt()).is_some_and(|(until, min)| *min >= micros(until));
        if too_old || too_new {
            return Ok(false);
        }
    }
    let bloom = |name: &str| -> anyhow::Result<Option<Sbbf>> {
        match place(name) {
            Some(place) => Ok(builder.get_row_group_column_bloom_filter(group, place)?),
            None => Ok(None),
        }
    };
    let conditions = filter.conditions();
    if conditions.contains(&Condition::Ends) && !filter.pods.is_empty() {
        let may = |bloom: Option<Sbbf>| {
            bloom.is_none_or(|bloom| filter.pods.iter().any(|pod| bloom.check(&pod.name.as_str())))
        };
        if !may(bloom("subject_pod")?) && !may(bloom("peer_pod")?) {
            return Ok(false);
        }
    }
    // What was asked for before a translation has no filter, as hardly any flow has it.
    let has_requested = place("requested_ip")
        .and_then(|place| chunks.column(place).statistics())
        .is_none_or(|statistics| statistics.min_bytes_opt().is_some());
    let single = filter.addresses.iter().all(|net| net.prefix_len() == net.max_prefix_len());
    if conditions.contains(&Condition::Addresses) && single && !has_requested {
        let may = |bloom: Option<Sbbf>| {
            let is_in = |bloom: Sbbf| {
                filter.addresses.iter().any(|net| bloom.check(&net.addr().to_string().as_str()))
            };
            bloom.is_none_or(is_in)
        };
        return Ok(may(bloom("peer_ip")?) || may(bloom("subject_ip")?));
    }
    Ok(true)
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
