//! What stays of the history when the flows of its time are removed: of each object the last row, as it still holds.
//!
//! ```text
//! files of hours before the first one that has flows ──rows that still hold──► one file in that hour; the others are removed
//! ```
//!
//! So every time of which flows are kept can be answered, however long ago an object last changed. Rows keep their time. It costs
//! one reading and writing of what there is, an hour at most, and in memory a number for each object.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use anyhow::Context as _;
use arrow::{
    array::{BooleanArray, RecordBatch},
    compute::filter_record_batch,
};
use parquet::arrow::{ArrowWriter, arrow_reader::ArrowReaderMetadata};

use super::{
    Verb, digest,
    doubts::gaps,
    read::{Change, Key, Wanted, changes_of, reader},
    schema,
};
use crate::{
    model::Timestamp,
    store::{
        flows::{
            Shared,
            files::{self, FlowFile, Told},
            lost,
            retention::{Bounds, Keeps, remove_file},
            roll::{ROWS_AT_ONCE, properties},
            segment::Mark,
            source::Source,
            table::OBJECTS,
            upload::{Uploading, Uploads},
        },
        guard::next_batch,
    },
};

/// The history's files, as its writer knows them.
#[derive(Debug)]
pub(super) struct Folded {
    store: PathBuf,
    bounds: Arc<Bounds>,
    /// In order of time.
    files: Vec<FlowFile>,
    removed: u64,
    is_failing: bool,
    /// Which of them are in a bucket, where they are to be, and who is told of new ones.
    uploads: Option<Uploading>,
}

impl Folded {
    pub fn new(store: &Path, bounds: Arc<Bounds>, uploads: Option<Uploading>) -> Self {
        let files = files::list(store, &OBJECTS).unwrap_or_else(|error| {
            tracing::error!("{error:#}: what is there of the history is kept until the next start");
            Vec::new()
        });
        let mut folded =
            Self { store: store.to_owned(), bounds, files, removed: 0, is_failing: false, uploads };
        folded.prune();
        folded
    }

    fn measure(&self) {
        let bytes = self.files.iter().map(|file| file.bytes).sum();
        self.bounds.history_bytes.store(bytes, Ordering::Relaxed);
    }
}

impl Keeps for Folded {
    fn add(&mut self, files: Vec<FlowFile>) {
        self.files.extend(files);
        self.files.sort();
        self.measure();
        if let Some((_, news)) = &self.uploads {
            // The thread has ended: told where it did.
            let _ = news.send(());
        }
    }

    fn prune(&mut self) {
        let first = self.bounds.first_hour.load(Ordering::Relaxed);
        if self.files.first().is_some_and(|file| file.hour < first) {
            match fold(&self.store, &self.files, first, self.uploads.as_ref().map(|(uploads, _)| &**uploads))
            {
                Ok(done) => {
                    self.removed += done.removed.len() as u64;
                    self.files.retain(|file| !done.removed.contains(&file.path));
                    self.files.retain(|file| done.made.as_ref().is_none_or(|made| made.path != file.path));
                    self.files.extend(done.made);
                    self.files.sort();
                    self.is_failing = false;
                }
                // Whatever is old is kept, and so nothing is missing.
                Err(error) if !std::mem::replace(&mut self.is_failing, true) => {
                    tracing::error!("{error:#}: the history of objects is not folded, and grows");
                }
                Err(_) => {}
            }
        }
        self.measure();
    }

    fn tell(&self, shared: &Shared) {
        shared.files.store(self.files.len() as u64, Ordering::Relaxed);
        shared.bytes.store(self.files.iter().map(|file| file.bytes).sum(), Ordering::Relaxed);
        shared.removed.store(self.removed, Ordering::Relaxed);
    }
}

/// What folding did.
#[derive(Debug, Default)]
struct Done {
    made: Option<FlowFile>,
    removed: HashSet<PathBuf>,
}

/// A file that is folded.
struct Input {
    path: PathBuf,
    metadata: ArrowReaderMetadata,
    told: Told,
}

/// Of a thing the last row.
struct Last {
    order: (Timestamp, u64),
    sequence: u64,
    is_deleted: bool,
}

/// What a run has told.
struct Run {
    first: Timestamp,
    listed: BTreeSet<String>,
}

/// Puts what still holds of the files before an hour into one of that hour.
///
/// A crash before the new file has its name changes nothing. One after it leaves files that are folded again: the new file is
/// among what is read then, and to fold a row twice changes nothing.
fn fold(store: &Path, all: &[FlowFile], hour: i64, uploads: Option<&Uploads>) -> anyhow::Result<Done> {
    let mut inputs = Vec::new();
    let mut is_damaged = false;
    for file in all.iter().filter(|file| file.hour < hour || (file.hour == hour && is_folded(&file.path))) {
        match files::open(&file.path, &OBJECTS) {
            Ok((_, metadata, told)) => inputs.push(Input { path: file.path.clone(), metadata, told }),
            Err(error) if files::is_gone(&error) => {}
            // For people: it counts no more, and is not in the way.
            Err(error) => {
                let kept_as = file.path.with_extension("parquet.damaged");
                fs::rename(&file.path, &kept_as)?;
                is_damaged = true;
                tracing::error!(kept_as = %kept_as.display(), reason = format!("{error:#}"), "a file of the history cannot be read");
            }
        }
    }
    let Some(latest) = inputs.iter().map(|input| &input.told.mark).max_by_key(|mark| mark.until).cloned()
    else {
        return Ok(Done::default());
    };
    let (last, runs) = survey(&inputs)?;
    let superseded = superseded(&runs);
    let holds = |change: &Change| {
        let of_run = (change.node.clone(), change.run.clone());
        !superseded.contains(&of_run)
            && last
                .get(&thing(change))
                .is_some_and(|last| !last.is_deleted && last.sequence == change.sequence)
    };
    let begin = Timestamp(hour.saturating_mul(3_600_000_000_000));
    // Of runs of which nothing holds it does not matter any more what was lost.
    let marks = inputs.iter().map(|input| &input.told.mark);
    let marks = marks.filter(|mark| !superseded.contains(&(mark.node.clone(), mark.run.clone())));
    let marks: Vec<Mark> = marks.cloned().collect();
    // Of a run that has later files something is told until then.
    let goes_on = |run: &str| all.iter().any(|file| file.hour >= hour && is_of_run(&file.path, run));
    let has_gap = |mark: &Mark| {
        let until = goes_on(&mark.run).then_some(begin);
        !gaps(&marks, &mark.node, &mark.run, until).is_empty()
    };
    let mark = Mark {
        number: 0,
        from: begin,
        until: begin,
        lost_before: 0,
        lost_after: lost(&marks),
        holes: is_damaged || marks.iter().any(|mark| mark.holes || has_gap(mark)),
        ..latest
    };
    let made = write(store, hour, &inputs, &Told { mark, last: 0 }, &holds)?;
    let mut done = Done { made, removed: HashSet::new() };
    if let Some((uploads, made)) = uploads.zip(done.made.as_ref()) {
        uploads.is_there(&made.path);
    }
    for Input { path, metadata, told } in inputs {
        if done.made.as_ref().is_some_and(|made| made.path == path) {
            continue;
        }
        if let Some(uploads) = uploads {
            let is_elsewhere = uploads.has(&path) || told.is_folded();
            let rows = if is_elsewhere { 0 } else { metadata.metadata().file_metadata().num_rows() };
            uploads.removed(&OBJECTS, &path, u64::try_from(rows).unwrap_or(0));
        }
        remove_file(&OBJECTS.directory(store), &path);
        done.removed.insert(path);
    }
    Ok(done)
}

fn is_folded(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.ends_with(FOLDED))
}

fn is_of_run(path: &Path, run: &str) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.strip_prefix(run)).is_some_and(|rest| rest.starts_with('-'))
}

/// How the names of folded files end.
const FOLDED: &str = "-folded.parquet";

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

type Runs = HashMap<(String, String), Run>;

/// The last row of each thing, and what each run has told.
fn survey(inputs: &[Input]) -> anyhow::Result<(HashMap<u128, Last>, Runs)> {
    let mut last: HashMap<u128, Last> = HashMap::new();
    let mut runs = Runs::new();
    for input in inputs {
        of_each(input, true, &mut |batch| {
            changes_of(batch, Wanted::default(), &mut |change| {
                let run = runs
                    .entry((change.node.clone(), change.run.clone()))
                    .or_insert_with(|| Run { first: change.time, listed: BTreeSet::new() });
                run.first = run.first.min(change.time);
                let (order, sequence) = (change.order(), change.sequence);
                let this = Last { order, sequence, is_deleted: change.verb == Verb::Deleted };
                let thing = thing(&change);
                if last.get(&thing).is_none_or(|known| order >= known.order) {
                    last.insert(thing, this);
                }
                if change.verb == Verb::Listed {
                    run.listed.insert(change.kind);
                }
                Ok(())
            })
        })?;
    }
    Ok((last, runs))
}

/// Runs of which nothing holds any more: a later one of the same node has listed all that they have.
fn superseded(runs: &Runs) -> HashSet<(String, String)> {
    let is_over = |((node, _), run): &(&(String, String), &Run)| {
        let mut later =
            runs.iter().filter(|((of_node, _), other)| of_node == node && other.first > run.first);
        later.any(|(_, other)| !other.listed.is_empty() && run.listed.is_subset(&other.listed))
    };
    runs.iter().filter(is_over).map(|(key, _)| key.clone()).collect()
}

/// Writes the rows that hold; no file where none does.
fn write(
    store: &Path,
    hour: i64,
    inputs: &[Input],
    told: &Told,
    holds: &dyn Fn(&Change) -> bool,
) -> anyhow::Result<Option<FlowFile>> {
    let name = format!("{}{FOLDED}", told.mark.run);
    let part = OBJECTS.open_directory(store).join(format!("{name}.part"));
    let file = File::create(&part).with_context(|| format!("cannot make {}", part.display()))?;
    let mut writer = ArrowWriter::try_new(file, schema(), Some(properties(&OBJECTS)))?;
    let (mut rows, mut written) = (0, HashSet::new());
    for input in inputs {
        of_each(input, false, &mut |batch| {
            let mut kept = Vec::with_capacity(batch.num_rows());
            changes_of(batch, Wanted::default(), &mut |change| {
                kept.push(holds(&change) && written.insert((thing(&change), change.sequence)));
                Ok(())
            })?;
            let batch = filter_record_batch(batch, &BooleanArray::from(kept))?;
            rows += batch.num_rows();
            writer.write(&batch)?;
            if writer.in_progress_size() as u64 >= OBJECTS.segment_bytes
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
    let directory = OBJECTS.directory(store).join(files::partition(hour));
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let path = directory.join(name);
    fs::rename(&part, &path).with_context(|| format!("cannot make {}", path.display()))?;
    File::open(&directory)?.sync_all()?;
    Ok(Some(FlowFile { hour, path, bytes }))
}
