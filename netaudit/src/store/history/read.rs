//! The history of stores, read again: from directories, and from buckets.

use std::{
    collections::HashSet,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use arrow::{
    array::{Array as _, AsArray as _, RecordBatch},
    datatypes::{TimestampMicrosecondType, UInt32Type, UInt64Type},
};
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder},
};

use super::{
    BINDING, Verb,
    parts::{Of, Parts, Progress},
};
use crate::{
    model::Timestamp,
    store::{
        bucket::{Bucket, Object},
        flows::{
            files::{self, Named, Told},
            segment::{self, Mark},
            source::{Source, TAIL},
            table::OBJECTS,
        },
        guard::{guarded, next_batch},
    },
};

/// Rows that are decoded at once.
const BATCH_ROWS: usize = 4_096;

/// Objects of a bucket whose ends are in memory at once.
const AT_ONCE: usize = 256;

/// How often files are listed again where some have moved meanwhile: they do so every few minutes at most.
const MOST_LOOKS: usize = 3;

/// A change, as it was stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// When the agent learnt of it; of a binding since when, or until when. To the microsecond.
    pub time: Timestamp,
    /// The agent's node.
    pub node: String,
    /// The agent run.
    pub run: String,
    /// From 1 in each run.
    pub sequence: u64,
    /// What became of it.
    pub verb: Verb,
    /// Its kind, or [`BINDING`].
    pub kind: String,
    /// Empty where it has none.
    pub namespace: String,
    /// Empty where a kind was listed.
    pub name: String,
    /// Empty where nothing tells.
    pub uid: String,
    /// The API server's; empty where there is none.
    pub resource_version: String,
    /// Of a binding.
    pub address: Option<IpAddr>,
    /// What it is like.
    pub content: Option<String>,
}

impl Wanted<'_> {
    /// The last hour of which anything is wanted.
    fn last_hour(&self) -> i64 {
        self.until.map_or(i64::MAX, files::hour_of)
    }
}

impl Change {
    /// What it is a change of: kind, namespace and name; of a binding the address is the name.
    pub fn key(&self) -> Key {
        let name = self.address.map_or_else(|| self.name.clone(), |ip| ip.to_string());
        let namespace = if self.address.is_some() { String::new() } else { self.namespace.clone() };
        (self.kind.clone(), namespace, name)
    }

    /// Which of two changes of one thing came later. Records of the kernel come late, and so bindings out of order.
    pub fn order(&self) -> (Timestamp, u64) {
        (if self.kind == BINDING { self.time } else { Timestamp::MIN }, self.sequence)
    }
}

/// Kind, namespace and name.
pub type Key = (String, String, String);

/// What is read of a history.
#[derive(Clone, Copy, Default, Debug)]
pub struct Wanted<'a> {
    /// Changes at this time or before.
    pub until: Option<Timestamp>,
    /// Of this run.
    pub run: Option<&'a str>,
    /// Of these kinds; of all where there are none.
    pub kinds: &'a [&'a str],
    /// Without what objects are like.
    pub is_bare: bool,
}

/// What is done with each batch.
type Each<'a> = dyn FnMut(&RecordBatch) -> anyhow::Result<()> + 'a;

/// What a reading came upon.
#[derive(Debug, Default)]
pub struct Read {
    /// What is known of the time of each part.
    pub marks: Vec<Mark>,
    /// What could not be read, and why. What it held is missing.
    pub unreadable: Vec<(PathBuf, String)>,
}

/// Reads the changes that are wanted, in no order. What was moved while a store is read can come twice: its run and number
/// are the same then.
///
/// # Errors
///
/// A store cannot be listed, or `each` fails. What alone cannot be read is told in the result.
pub fn read(
    parts: &Parts,
    wanted: Wanted<'_>,
    each: &mut dyn FnMut(Change) -> anyhow::Result<()>,
) -> anyhow::Result<Read> {
    batches(parts, wanted, &mut |batch| changes_of(batch, wanted, each))
}

/// As [`read`], but all columns of batches of which some rows may be wanted.
pub(in crate::store) fn batches(
    parts: &Parts,
    wanted: Wanted<'_>,
    each: &mut Each<'_>,
) -> anyhow::Result<Read> {
    let mut found = Read::default();
    for of in &parts.of {
        match of {
            Of::Directory(directory) => in_directory(directory, wanted, &mut found, each)?,
            Of::Bucket(bucket, files) => {
                in_bucket((bucket, files, parts.progress), wanted, &mut found, each)?
            }
        }
    }
    Ok(found)
}

fn in_directory(
    store: &Path,
    wanted: Wanted<'_>,
    found: &mut Read,
    each: &mut Each<'_>,
) -> anyhow::Result<()> {
    // Segments first: one that becomes a file meanwhile is found as both.
    let segments = files::segments(store, &OBJECTS)?;
    let (mut told, mut seen) = (Vec::new(), HashSet::new());
    // Whether one has gone since it was listed: what it held is in another one now.
    let mut read_files = |told: &mut Vec<Told>, found: &mut Read, each: &mut Each<'_>| {
        let mut has_moved = false;
        for file in files::list(store, &OBJECTS)? {
            if !seen.insert(file.path.clone()) {
                continue;
            }
            let opened = Source::of_file(&file.path).map_err(Into::into);
            match opened.and_then(|source| Ok((files::what_it_says(&source, &OBJECTS)?, source))) {
                Ok(((footer, tells), source)) => {
                    if found.file(&file.path, wanted, file.hour, (source, footer, &tells), each)? {
                        told.push(tells);
                    }
                }
                Err(error) if files::is_gone(&error) => has_moved = true,
                Err(error) => found.unreadable.push((file.path, format!("{error:#}"))),
            }
        }
        anyhow::Ok(has_moved)
    };
    let mut has_moved = read_files(&mut told, found, each)?;
    for (path, mark) in segments {
        if mark.as_ref().is_some_and(|mark| told.iter().any(|told| told.holds(mark))) {
            continue;
        }
        let is_of_run = |mark: &Mark| wanted.run.is_none_or(|run| run == mark.run);
        if mark.as_ref().is_none_or(is_of_run) {
            match guarded(|| segment::read(&path, &OBJECTS)) {
                Ok(content) => content.batches.iter().try_for_each(&mut *each)?,
                Err(error) if files::is_gone(&error) => has_moved = true,
                Err(error) => found.unreadable.push((path, format!("{error:#}"))),
            }
        }
        found.marks.extend(mark);
    }
    for _ in 0..MOST_LOOKS {
        if has_moved {
            has_moved = read_files(&mut told, found, each)?;
        }
    }
    Ok(())
}

fn in_bucket(
    (bucket, files, progress): (&Bucket, &[(i64, Object)], Option<Progress>),
    wanted: Wanted<'_>,
    found: &mut Read,
    each: &mut Each<'_>,
) -> anyhow::Result<()> {
    let last_hour = wanted.last_hour().saturating_add(files::BEFORE_AND_AFTER);
    let may_be_of_run = |object: &Object| {
        let named = wanted.run.zip(Named::of(Path::new(&object.key)));
        named.is_none_or(|(run, named)| run == named.run)
    };
    let files = files.iter().filter(|(hour, object)| *hour <= last_hour && may_be_of_run(object));
    let files: Vec<&(i64, Object)> = files.collect();
    let (mut done, all) = (0, files.len());
    for files in files.chunks(AT_ONCE) {
        let objects: Vec<Object> = files.iter().map(|(_, object)| object.clone()).collect();
        // Most files are no longer than this, and so are read with one request.
        for ((hour, object), tail) in files.iter().copied().zip(bucket.tails(&objects, TAIL)) {
            let name = PathBuf::from(bucket.url_of(&object.key));
            let opened = tail.and_then(|tail| {
                let source = Source::of_object(bucket, object, tail);
                Ok((files::what_it_says(&source, &OBJECTS)?, source))
            });
            match opened {
                Ok(((footer, tells), source)) => {
                    found.file(&name, wanted, *hour, (source, footer, &tells), each)?;
                }
                // The bucket's own retention was faster: whatever it held is told as not there.
                Err(error) if files::is_gone(&error) => {}
                Err(error) => found.unreadable.push((name, format!("{error:#}"))),
            }
        }
        done += files.len();
        if let Some(progress) = progress {
            progress(done, all);
        }
    }
    Ok(())
}

impl Read {
    /// Reads a file, where something in it may be wanted. Returns whether it could be read.
    fn file(
        &mut self,
        name: &Path,
        wanted: Wanted<'_>,
        hour: i64,
        (source, footer, told): (Source, ArrowReaderMetadata, &Told),
        each: &mut Each<'_>,
    ) -> anyhow::Result<bool> {
        // What was folded may be of several runs.
        let is_of_run = wanted.run.is_none_or(|run| run == told.mark.run) || told.is_folded();
        if hour <= wanted.last_hour() && is_of_run {
            let mut batches = reader(source, footer, wanted.is_bare);
            loop {
                let batch =
                    batches.as_mut().map_err(|error| anyhow::anyhow!("{error:#}")).and_then(next_batch);
                match batch {
                    Ok(Some(batch)) => each(&batch)?,
                    Ok(None) => break,
                    Err(error) => {
                        self.unreadable.push((name.to_owned(), format!("{error:#}")));
                        return Ok(false);
                    }
                }
            }
        }
        self.marks.push(told.mark.clone());
        Ok(true)
    }
}

/// Reads the rows of a file.
pub(super) fn reader(
    source: Source,
    footer: ArrowReaderMetadata,
    is_bare: bool,
) -> anyhow::Result<ParquetRecordBatchReader> {
    let mask = mask(&footer, is_bare);
    guarded(|| {
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(source.whole_if_small()?, footer)
            .with_projection(mask)
            .with_batch_size(BATCH_ROWS)
            .build()?;
        Ok(reader)
    })
}

/// All columns, or all but what objects are like.
fn mask(metadata: &ArrowReaderMetadata, is_bare: bool) -> ProjectionMask {
    let fields = metadata.schema().fields().iter().enumerate();
    let read = fields.filter(|(_, field)| !is_bare || field.name() != "content");
    ProjectionMask::roots(metadata.parquet_schema(), read.map(|(place, _)| place))
}

/// The changes of a batch that are wanted, in its order.
pub(in crate::store) fn changes_of(
    batch: &RecordBatch,
    wanted: Wanted<'_>,
    each: &mut dyn FnMut(Change) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let word = |name: &str, row: usize| -> Option<&str> {
        let words = batch.column_by_name(name)?.as_dictionary_opt::<UInt32Type>()?;
        Some(words.values().as_string_opt::<i32>()?.value(words.key(row)?))
    };
    let owned = |name: &str, row: usize| word(name, row).unwrap_or_default().to_owned();
    let times = batch.column_by_name("time").and_then(|it| it.as_primitive_opt::<TimestampMicrosecondType>());
    let sequences = batch.column_by_name("sequence").and_then(|it| it.as_primitive_opt::<UInt64Type>());
    let (times, sequences) = times.zip(sequences).context("no columns of the history")?;
    let contents = batch.column_by_name("content").and_then(|it| it.as_string_opt::<i32>());
    for row in 0..batch.num_rows() {
        let time = Timestamp(times.value(row).saturating_mul(1_000));
        let kind = word("kind", row).unwrap_or_default();
        if wanted.until.is_some_and(|until| time > until)
            || wanted.run.is_some_and(|run| word("run", row) != Some(run))
            || !(wanted.kinds.is_empty() || wanted.kinds.contains(&kind))
        {
            continue;
        }
        let verb = word("verb", row).and_then(Verb::from_word).context("a verb that nobody knows")?;
        each(Change {
            time,
            node: owned("node", row),
            run: owned("run", row),
            sequence: sequences.value(row),
            verb,
            kind: kind.to_owned(),
            namespace: owned("namespace", row),
            name: owned("name", row),
            uid: owned("uid", row),
            resource_version: owned("resource_version", row),
            address: word("address", row).and_then(|text| text.parse().ok()),
            content: contents.filter(|it| !it.is_null(row)).map(|it| it.value(row).to_owned()),
        })?;
    }
    Ok(())
}
