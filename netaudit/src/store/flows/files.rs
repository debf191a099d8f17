//! Where the files of a flow store are, and what each says of itself.
//!
//! ```text
//! DIRECTORY / lock                                       held by the agent that writes
//!           / open / <run>-<number>.arrow                segments, see `segment`
//!           /      / <run>-<number>.json                 until when a segment is complete
//!           /      / commit.json                         files that take the place of segments right now
//!           / flows / date=2026-01-31 / hour=07 / <run>-<first>-<last>.parquet
//! ```
//!
//! Partitions are in UTC, by the time that a flow began.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use parquet::{
    arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions},
    file::{metadata::KeyValue, reader::ChunkReader},
};

use super::{
    segment::{self, Mark},
    table::{FLOWS, Table},
};
use crate::{
    model::Timestamp,
    store::{bucket::Gone, guard::guarded},
};

/// Under which name a file says what is known of its time.
const MARK: &str = "netaudit.mark";

/// Hours of which one commit tells at most.
const MOST_HOURS: i64 = 24;

/// Hours by which a file's partition and the time that it tells of differ at most: a segment lasts an hour, and some minutes.
pub(in crate::store) const BEFORE_AND_AFTER: i64 = 2;

/// The directory of flows' segments.
pub fn open_directory(store: &Path) -> PathBuf {
    FLOWS.open_directory(store)
}

/// The directory of flows' Parquet files.
pub fn flows_directory(store: &Path) -> PathBuf {
    FLOWS.directory(store)
}

/// The hour of a wall time, as a partition: its number since 1970.
pub fn hour_of(time: Timestamp) -> i64 {
    hour_of_micros(time.0.div_euclid(1_000))
}

/// As [`hour_of`], of microseconds since 1970.
pub fn hour_of_micros(microseconds: i64) -> i64 {
    microseconds.div_euclid(3_600_000_000)
}

/// The directory of an hour, below the one of all Parquet files.
pub fn partition(hour: i64) -> PathBuf {
    let begin = jiff::Timestamp::from_second(hour.saturating_mul(3_600)).unwrap_or(jiff::Timestamp::MIN);
    let begin = begin.to_zoned(jiff::tz::TimeZone::UTC);
    PathBuf::from(format!("date={}/hour={:02}", begin.date(), begin.hour()))
}

/// The hour of a directory.
fn hour_of_partition(date: &str, hour: &str) -> Option<i64> {
    let date: jiff::civil::Date = date.strip_prefix("date=")?.parse().ok()?;
    let hour: i8 = hour.strip_prefix("hour=")?.parse().ok()?;
    let begin = date.at(hour, 0, 0, 0).to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    Some(begin.timestamp().as_second().div_euclid(3_600))
}

/// The hour of a file in a bucket, by its key; `None` where it is none.
pub fn hour_of_key(key: &str) -> Option<i64> {
    let mut parts = key.strip_suffix(".parquet")?.rsplit('/').skip(1);
    let (hour, date) = (parts.next()?, parts.next()?);
    hour_of_partition(date, hour)
}

/// A Parquet file of a table.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FlowFile {
    /// The partition.
    pub hour: i64,
    /// Where it is.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: u64,
}

/// All Parquet files of a table, in order of time.
///
/// # Errors
///
/// A directory cannot be listed.
pub fn list(store: &Path, table: &Table) -> anyhow::Result<Vec<FlowFile>> {
    let mut files = Vec::new();
    for date in entries(&table.directory(store))? {
        for hour in entries(&date)? {
            let names = [&date, &hour].map(|path| path.file_name().and_then(|name| name.to_str()));
            let [Some(date_name), Some(hour_name)] = names else { continue };
            let Some(number) = hour_of_partition(date_name, hour_name) else { continue };
            for path in entries(&hour)? {
                if path.extension().is_some_and(|extension| extension == "parquet") {
                    // One that retention has removed meanwhile is none.
                    let Ok(data) = fs::metadata(&path) else { continue };
                    files.push(FlowFile { hour: number, path, bytes: data.len() });
                }
            }
        }
    }
    files.sort();
    Ok(files)
}

fn entries(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let list = || -> io::Result<Vec<PathBuf>> {
        fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path())).collect()
    };
    match list() {
        Ok(paths) => Ok(paths),
        // A partition that retention has removed meanwhile, or a store that holds nothing yet.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error).with_context(|| format!("cannot list {}", directory.display())),
    }
}

/// What is known of the time of several segments of one run in a row.
pub fn joined(marks: &[Mark]) -> Option<Told> {
    let (first, last) = (marks.first()?, marks.last()?);
    Some(Told {
        mark: Mark { number: first.number, from: first.from, lost_before: first.lost_before, ..last.clone() },
        last: last.number,
    })
}

/// What a file says of itself: of the time of its hour. Of another hour another file tells, which may have been removed.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, Debug)]
pub struct Told {
    /// Of the first segment that it stands for, until the end of the last one.
    #[serde(flatten)]
    pub mark: Mark,
    /// The number of the last one.
    pub last: u64,
}

impl Told {
    /// The hours of which something is told, one at least. Where a clock was set they would be ever so many: then those of the
    /// beginning and the end.
    pub(super) fn hours(&self) -> Vec<i64> {
        let (from, until) = (self.mark.from, Timestamp(self.mark.until.0.saturating_sub(1)));
        let (first, last) = (hour_of(from), hour_of(until.max(from)));
        if last - first <= MOST_HOURS { (first..=last).collect() } else { vec![first, last] }
    }

    /// What is told of an hour. Rows may be of an hour that nothing else is told of.
    pub(super) fn of_hour(&self, hour: i64) -> Self {
        let bound = |hour: i64| Timestamp(hour.saturating_mul(3_600_000_000_000));
        let Mark { from, until, .. } = self.mark;
        let within = |time: Timestamp| time.clamp(from, until.max(from));
        let mark = Mark { from: within(bound(hour)), until: within(bound(hour + 1)), ..self.mark.clone() };
        Self { mark, last: self.last }
    }

    /// As a file keeps it.
    pub fn key_value(&self) -> anyhow::Result<KeyValue> {
        Ok(KeyValue::new(MARK.to_owned(), serde_json::to_string(self)?))
    }

    /// The name of a file.
    pub fn file_name(&self) -> String {
        format!("{}-{:010}-{:010}.parquet", self.mark.run, self.mark.number, self.last)
    }

    /// Whether it stands for no segments, but for what is left of many files.
    pub fn is_folded(&self) -> bool {
        self.mark.number == 0
    }

    /// Whether a segment is in it.
    pub fn holds(&self, segment: &Mark) -> bool {
        self.mark.run == segment.run && (self.mark.number..=self.last).contains(&segment.number)
    }
}

/// What the [name](Told::file_name) of a file says; folded ones have other names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::store) struct Named<'a> {
    /// The agent run.
    pub run: &'a str,
    /// The number of the first segment, or 0 where it stands for all until the last.
    pub first: u64,
    /// The number of the last one.
    pub last: u64,
}

impl<'a> Named<'a> {
    /// Of a path or a key.
    pub fn of(path: &'a Path) -> Option<Self> {
        let mut parts = path.file_name()?.to_str()?.strip_suffix(".parquet")?.rsplitn(3, '-');
        let (last, first, run) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self { run, first: first.parse().ok()?, last: last.parse().ok()? })
    }
}

/// Opens a Parquet file of a table and reads what it says of itself.
///
/// # Errors
///
/// It cannot be read, is no file of netaudit's, or one of another version.
pub fn open(path: &Path, table: &Table) -> anyhow::Result<(File, ArrowReaderMetadata, Told)> {
    let file = File::open(path)?;
    let (metadata, told) = what_it_says(&file, table)?;
    Ok((file, metadata, told))
}

/// What a Parquet file of a table says of itself, wherever it is.
///
/// # Errors
///
/// As [`open`].
pub fn what_it_says(file: &impl ChunkReader, table: &Table) -> anyhow::Result<(ArrowReaderMetadata, Told)> {
    let options = ArrowReaderOptions::new();
    let load = || ArrowReaderMetadata::load(file, options).context("no Parquet file, or a damaged one");
    let metadata = guarded(load)?;
    let told = told(&metadata, table)?;
    Ok((metadata, told))
}

/// What the footer of a table's Parquet file says of itself.
///
/// # Errors
///
/// It is no file of netaudit's, or one of another version.
fn told(metadata: &ArrowReaderMetadata, table: &Table) -> anyhow::Result<Told> {
    let pairs = metadata.metadata().file_metadata().key_value_metadata();
    let text = pairs
        .into_iter()
        .flatten()
        .find(|pair| pair.key == MARK)
        .and_then(|pair| pair.value.as_deref())
        .context("it says not that netaudit wrote it")?;
    let told: Told = serde_json::from_str(text).context("what it says of itself")?;
    anyhow::ensure!(
        told.mark.version == table.version,
        "it is of version {} of the columns, and this netaudit reads version {}: read it with the netaudit that wrote it",
        told.mark.version,
        table.version
    );
    Ok(told)
}

/// Whether a file or an object of a bucket could not be read because it is not there.
pub fn is_gone(error: &anyhow::Error) -> bool {
    let kind = error.root_cause().downcast_ref::<io::Error>().map(io::Error::kind);
    kind == Some(io::ErrorKind::NotFound) || error.downcast_ref::<Gone>().is_some()
}

/// The segments of a table with what is known of their time.
///
/// # Errors
///
/// The directory or a segment's mark cannot be read.
pub fn segments(store: &Path, table: &Table) -> anyhow::Result<Vec<(PathBuf, Option<Mark>)>> {
    let directory = table.open_directory(store);
    let paths = match segment::list(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other.with_context(|| format!("cannot list {}", directory.display()))?,
    };
    paths.into_iter().map(|path| segment::read_mark(&path).map(|mark| (path, mark))).collect()
}
