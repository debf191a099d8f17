//! Of each thing the last row, as it still holds: what folding leaves, and what a snapshot has.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use arrow::{
    array::{BooleanArray, RecordBatch},
    compute::filter_record_batch,
};
use parquet::arrow::{ArrowWriter, arrow_reader::ArrowReaderMetadata};

use super::{
    Verb, digest,
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

/// A file whose rows are read.
pub(super) struct Input {
    pub path: PathBuf,
    pub metadata: ArrowReaderMetadata,
    pub told: Told,
}

impl Input {
    /// # Errors
    ///
    /// As [`files::open`].
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let (_, metadata, told) = files::open(path, &OBJECTS)?;
        Ok(Self { path: path.to_owned(), metadata, told })
    }
}

/// What files hold.
#[derive(Default)]
pub(super) struct Survey {
    /// Of each thing the last row.
    last: HashMap<u128, Last>,
    pub runs: Runs,
}

/// Of a thing the last row.
struct Last {
    order: (Timestamp, u64),
    sequence: u64,
    is_deleted: bool,
}

/// Runs, by node and name.
/// Runs, by node and name.
pub(super) type Runs = HashMap<(String, String), Run>;

/// What a run has told.
pub(super) struct Run {
    pub first: Timestamp,
    pub last: Timestamp,
    pub listed: BTreeSet<String>,
}

/// A thing of a run, as a number that no other has.
fn thing(change: &Change) -> u128 {
    let (kind, namespace, name): Key = change.key();
    digest([&*change.node, &change.run, &kind, &namespace, &name])
}

fn of_each(
    input: &Input,
    is_bare: bool,
    each: &mut dyn FnMut(&RecordBatch) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let source = Source::of_file(&input.path)?;
    let mut reader = reader(source, input.metadata.clone(), is_bare)?;
    while let Some(batch) = next_batch(&mut reader).with_context(|| format!("in {}", input.path.display()))? {
        each(&batch)?;
    }
    Ok(())
}

impl Survey {
    /// # Errors
    ///
    /// A file cannot be read.
    pub fn of(inputs: &[Input]) -> anyhow::Result<Self> {
        let mut survey = Self::default();
        for input in inputs {
            of_each(input, true, &mut |batch| {
                changes_of(batch, Wanted::default(), &mut |change| {
                    survey.note(change);
                    Ok(())
                })
            })?;
        }
        Ok(survey)
    }

    fn note(&mut self, change: Change) {
        let run = self.runs.entry((change.node.clone(), change.run.clone())).or_insert_with(|| Run {
            first: change.time,
            last: change.time,
            listed: BTreeSet::new(),
        });
        run.first = run.first.min(change.time);
        run.last = run.last.max(change.time);
        let (order, sequence) = (change.order(), change.sequence);
        let this = Last { order, sequence, is_deleted: change.verb == Verb::Deleted };
        let thing = thing(&change);
        if self.last.get(&thing).is_none_or(|known| order >= known.order) {
            self.last.insert(thing, this);
        }
        if change.verb == Verb::Listed {
            run.listed.insert(change.kind);
        }
    }

    /// Whether a row says the last of its thing, and that this is there.
    pub fn holds(&self, change: &Change) -> bool {
        let last = self.last.get(&thing(change));
        last.is_some_and(|last| !last.is_deleted && last.sequence == change.sequence)
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
    is_kept: &dyn Fn(&Change) -> bool,
) -> anyhow::Result<Option<FlowFile>> {
    let part = table.open_directory(store).join(format!("{name}.part"));
    let file = File::create(&part).with_context(|| format!("cannot make {}", part.display()))?;
    let mut writer = ArrowWriter::try_new(file, schema(), Some(properties(table)))?;
    let (mut rows, mut written) = (0, HashSet::new());
    for input in inputs {
        of_each(input, false, &mut |batch| {
            let mut kept = Vec::with_capacity(batch.num_rows());
            changes_of(batch, Wanted::default(), &mut |change| {
                kept.push(is_kept(&change) && written.insert((thing(&change), change.sequence)));
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
        fs::remove_file(&part)?;
        return Ok(None);
    }
    file.sync_all().with_context(|| format!("cannot sync {}", part.display()))?;
    let bytes = file.metadata()?.len();
    let directory = table.directory(store).join(files::partition(hour));
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let path = directory.join(name);
    fs::rename(&part, &path).with_context(|| format!("cannot make {}", path.display()))?;
    File::open(&directory)?.sync_all()?;
    Ok(Some(FlowFile { hour, path, bytes }))
}
