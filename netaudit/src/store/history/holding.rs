//! Of each thing the last row, as it still holds: what folding leaves, what a snapshot has, and what a bundle begins with.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use arrow::{
    array::{BooleanArray, RecordBatch},
    compute::filter_record_batch,
};
use parquet::arrow::ArrowWriter;

use super::{
    BINDING, Verb, digest,
    read::{Change, Key, Wanted, changes_of, reader},
    schema,
};
use crate::{
    model::Timestamp,
    store::{
        flows::{
            files::{self, FlowFile, Told},
            roll::{ROWS_AT_ONCE, properties},
            source::Source,
            table::{OBJECTS, Table},
        },
        guard::next_batch,
    },
};

/// A file whose rows are read. There may be hundreds: what more its footer says is read again when it is needed.
pub(super) struct Input {
    pub path: PathBuf,
    pub rows: u64,
    pub told: Told,
}

impl Input {
    /// # Errors
    ///
    /// As [`files::open`].
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let (_, metadata, told) = files::open(path, &OBJECTS)?;
        let rows = u64::try_from(metadata.metadata().file_metadata().num_rows()).unwrap_or(0);
        Ok(Self { path: path.to_owned(), rows, told })
    }
}

/// What files hold.
#[derive(Default)]
pub(in crate::store) struct Survey {
    /// Of each thing the last row; of an address the last one that says whose it is.
    last: HashMap<u128, Last>,
    /// Of addresses whose ended, and when: if that is whose it is, it is nobody's.
    ended: HashMap<(u128, u128), (Timestamp, u64)>,
    pub(super) runs: Runs,
}

/// Of a thing the last row.
struct Last {
    order: (Timestamp, u64),
    sequence: u64,
    is_deleted: bool,
    /// Of a binding: the pod.
    owner: u128,
}

/// Runs, by node and name.
pub(super) type Runs = HashMap<(String, String), Run>;

/// What a run has told.
pub(super) struct Run {
    pub first: Timestamp,
    pub last: Timestamp,
    pub listed: BTreeSet<String>,
}

impl Last {
    fn new(change: &Change) -> Self {
        let owner = if change.kind == BINDING { digest([&*change.uid]) } else { 0 };
        let is_deleted = change.verb == Verb::Deleted;
        Self { order: change.order(), sequence: change.sequence, is_deleted, owner }
    }
}

/// A thing of a run, as a number that no other has.
fn thing(change: &Change) -> u128 {
    let (kind, namespace, name): Key = change.key();
    digest([&*change.node, &change.run, &kind, &namespace, &name])
}

fn of_each(input: &Input, each: &mut dyn FnMut(&RecordBatch) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let source = Source::of_file(&input.path)?;
    let (metadata, _) = files::what_it_says(&source, &OBJECTS)?;
    let mut reader = reader(source, metadata, false)?;
    while let Some(batch) = next_batch(&mut reader).with_context(|| format!("in {}", input.path.display()))? {
        each(&batch)?;
    }
    Ok(())
}

impl Survey {
    /// # Errors
    ///
    /// A file cannot be read: its place, and why. All columns are read, so that writing comes upon nothing that is damaged.
    pub(super) fn of(inputs: &[Input]) -> Result<Self, (usize, anyhow::Error)> {
        let mut survey = Self::default();
        for (place, input) in inputs.iter().enumerate() {
            let read = of_each(input, &mut |batch| {
                changes_of(batch, Wanted::default(), &mut |change| {
                    survey.note(change);
                    Ok(())
                })
            });
            read.map_err(|error| (place, error))?;
        }
        Ok(survey)
    }

    /// The same, without those that cannot be read: they are taken out, and returned.
    pub(super) fn of_readable(inputs: &mut Vec<Input>) -> (Self, Vec<(Input, anyhow::Error)>) {
        let mut left_out = Vec::new();
        loop {
            match Self::of(inputs) {
                Ok(survey) => return (survey, left_out),
                Err((place, error)) => left_out.push((inputs.remove(place), error)),
            }
        }
    }

    /// Takes a change in.
    pub fn note(&mut self, change: Change) {
        let run = self.runs.entry((change.node.clone(), change.run.clone())).or_insert_with(|| Run {
            first: change.time,
            last: change.time,
            listed: BTreeSet::new(),
        });
        run.first = run.first.min(change.time);
        run.last = run.last.max(change.time);
        let (thing, this) = (thing(&change), Last::new(&change));
        if this.is_deleted && change.kind == BINDING {
            let end = self.ended.entry((thing, this.owner)).or_insert(this.order);
            *end = this.order.max(*end);
        } else if self.last.get(&thing).is_none_or(|known| this.order >= known.order) {
            self.last.insert(thing, this);
        }
        if change.verb == Verb::Listed {
            run.listed.insert(change.kind);
        }
    }

    /// Whether a row says the last of its thing, and that this is there. It does so once: files may hold it twice.
    pub(super) fn take(&mut self, change: &Change) -> bool {
        let thing = thing(change);
        let last = self.last.get(&thing).filter(|last| last.sequence == change.sequence);
        let holds = last.is_some_and(|last| self.is_there(thing, last));
        if holds {
            self.last.remove(&thing);
        }
        holds
    }

    fn is_there(&self, thing: u128, last: &Last) -> bool {
        let has_ended = || self.ended.get(&(thing, last.owner)).is_some_and(|end| *end > last.order);
        !last.is_deleted && !has_ended()
    }

    /// The numbers of the rows that say the last of their things, and that these are there.
    pub fn sequences(&self) -> impl Iterator<Item = u64> {
        let there = self.last.iter().filter(|(thing, last)| self.is_there(**thing, last));
        there.map(|(_, last)| last.sequence)
    }
}

/// Writes the rows that are kept into a file of `table`, in the partition of this hour; none where none is.
///
/// # Errors
///
/// A file cannot be read, or the new one not be written.
pub(super) fn write(
    store: &Path,
    (table, hour, name): (&Table, i64, &str),
    inputs: &[Input],
    told: &Told,
    is_kept: &mut dyn FnMut(&Change) -> bool,
) -> anyhow::Result<Option<FlowFile>> {
    // Under one name: what a fault leaves is overwritten by the next one.
    let part = table.open_directory(store).join(format!("{}.part", table.name));
    let written = write_part(&part, table, inputs, told, is_kept);
    let bytes = match written {
        Ok(0) | Err(_) => {
            // The room may be what is missing.
            let _ = fs::remove_file(&part);
            return written.map(|_| None);
        }
        Ok(bytes) => bytes,
    };
    let directory = table.directory(store).join(files::partition(hour));
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let path = directory.join(name);
    fs::rename(&part, &path).with_context(|| format!("cannot make {}", path.display()))?;
    File::open(&directory)?.sync_all()?;
    Ok(Some(FlowFile { hour, path, bytes }))
}

/// Returns its bytes; none where no row is kept.
fn write_part(
    part: &Path,
    table: &Table,
    inputs: &[Input],
    told: &Told,
    is_kept: &mut dyn FnMut(&Change) -> bool,
) -> anyhow::Result<u64> {
    let file = File::create(part).with_context(|| format!("cannot make {}", part.display()))?;
    let mut writer = ArrowWriter::try_new(file, schema(), Some(properties(table)))?;
    let mut rows = 0;
    for input in inputs {
        of_each(input, &mut |batch| {
            let mut kept = Vec::with_capacity(batch.num_rows());
            changes_of(batch, Wanted::default(), &mut |change| {
                kept.push(is_kept(&change));
                Ok(())
            })?;
            let batch = filter_record_batch(batch, &BooleanArray::from(kept))?;
            rows += batch.num_rows();
            writer.write(&batch)?;
            if writer.in_progress_size() as u64 >= table.segment_bytes
                || writer.in_progress_rows() as u64 >= ROWS_AT_ONCE
            {
                writer.flush()?;
            }
            Ok(())
        })?;
    }
    writer.append_key_value_metadata(told.key_value()?);
    let file = writer.into_inner().context("the end of a Parquet file")?;
    if rows == 0 {
        return Ok(0);
    }
    file.sync_all().with_context(|| format!("cannot sync {}", part.display()))?;
    Ok(file.metadata()?.len())
}
