//! Which files of a history tell what held at a time, and what has changed since.
//!
//! Of a directory all do. Of a bucket, which may hold months of hundreds of nodes, those are found by their names alone: of each
//! run the last snapshot before that time and the files after it.
//!
//! ```text
//! names of some hours before ──of each run──► snapshot, and files after it
//!            │ not enough: a run has no snapshot there, or nobody was listening
//!            └─────────────► names of all hours before ──► the same, or all its files
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use super::fold::FOLDED;
use crate::{
    cluster::REMEMBERED,
    model::Timestamp,
    store::{
        bucket::{Bucket, Object},
        flows::{
            ask::Store,
            files::{self, Named},
            hours::Hours,
            table::{OBJECTS, SNAPSHOTS},
        },
    },
};

/// How long ago an agent was heard of that is asked about a time, where another was heard of later: each makes a file an hour.
const HEARD_HOURS: i64 = 24 + files::BEFORE_AND_AFTER;

/// How far apart two snapshots of a run are at most, with some time to upload them.
pub(super) const SNAPSHOT_HOURS: i64 = 24 + files::BEFORE_AND_AFTER;

/// How far back is looked, in hours, before everything is listed: where a run has no snapshots, as those of earlier versions, or has not been
/// heard of for long.
const FURTHER_BACK: [i64; 2] = [HEARD_HOURS + SNAPSHOT_HOURS, 30 * 24];

/// How long an agent may take to list all objects: a flow that came before that is judged by what it knew then.
const KNOWS_ALL: Duration = Duration::from_secs(86_400);

/// What is asked of a history.
#[derive(Clone, Copy, Default, Debug)]
pub struct Span<'a> {
    /// What held then, and what changed since; `None` for all that is known.
    pub from: Option<Timestamp>,
    /// Until then, or a bit longer: which files are looked for.
    pub until: Option<Timestamp>,
    /// Of this run.
    pub run: Option<&'a str>,
}

impl Span<'_> {
    /// What was there, or had gone not long before it, at a time.
    pub fn at(time: Timestamp) -> Self {
        Self::between(Some(time), Some(time))
    }

    /// The same at the first of two times, and what changed until the second.
    pub fn between(since: Option<Timestamp>, until: Option<Timestamp>) -> Self {
        Self { from: since.map(|since| since.minus(REMEMBERED)), until, run: None }
    }

    /// What flows are judged by that came between two times.
    pub fn of_flows(since: Option<Timestamp>, until: Option<Timestamp>) -> Self {
        Self::between(since, until.map(|until| until.plus(KNOWS_ALL)))
    }
}

/// Who is told how many files of a bucket have been read, and of how many.
pub type Progress = fn(usize, usize);

/// The parts of stores that tell of a span.
#[derive(Clone, Debug)]
pub struct Parts {
    pub(super) of: Vec<Of>,
    pub(super) progress: Option<Progress>,
}

#[derive(Clone, Debug)]
pub(super) enum Of {
    /// Whatever is there when it is read.
    Directory(PathBuf),
    /// Files with their hours, in order.
    Bucket(Bucket, Vec<(i64, Object)>),
}

impl Parts {
    /// Finds them.
    ///
    /// # Errors
    ///
    /// A bucket cannot be listed.
    pub fn find(stores: &[Store], span: Span<'_>) -> anyhow::Result<Self> {
        let of = |store: &Store| match store {
            Store::Directory(directory) => Ok(Of::Directory(directory.clone())),
            Store::Bucket(bucket) => Ok(Of::Bucket(bucket.clone(), in_bucket(bucket, span)?)),
        };
        Ok(Self { of: stores.iter().map(of).collect::<anyhow::Result<_>>()?, progress: None })
    }

    /// The same, whose readings tell how many files of a bucket they have read, and of how many.
    pub fn telling(self, progress: Option<Progress>) -> Self {
        Self { progress, ..self }
    }

    /// How many files of buckets are read, and their bytes.
    pub fn size(&self) -> (usize, u64) {
        let files = self.of.iter().flat_map(|of| match of {
            Of::Directory(_) => &[],
            Of::Bucket(_, files) => &files[..],
        });
        files.fold((0, 0), |(count, bytes), (_, object)| (count + 1, bytes + object.bytes))
    }

    /// Everything.
    ///
    /// # Errors
    ///
    /// A bucket cannot be listed.
    pub fn all(stores: &[Store]) -> anyhow::Result<Self> {
        Self::find(stores, Span::default())
    }

    /// The first hour of which buckets have a file, where that is after a time.
    ///
    /// # Errors
    ///
    /// One cannot be listed.
    pub fn first_hour_after(stores: &[Store], at: Timestamp) -> anyhow::Result<Option<Timestamp>> {
        let mut first = None;
        for store in stores {
            if let Store::Bucket(bucket) = store {
                let objects = bucket.list(&[OBJECTS.name.to_owned()])?;
                let hours = objects.iter().filter_map(|object| files::hour_of_key(&object.key));
                first = first.into_iter().chain(hours).min();
            }
        }
        let first = first.map(|hour| Timestamp(hour.saturating_mul(3_600_000_000_000)));
        Ok(first.filter(|hour| *hour > at))
    }
}

fn in_bucket(bucket: &Bucket, span: Span<'_>) -> anyhow::Result<Vec<(i64, Object)>> {
    let latest = Hours::latest();
    let until = span
        .until
        .map_or(latest, |until| files::hour_of(until).saturating_add(files::BEFORE_AND_AFTER).min(latest));
    if let Some(from) = span.from {
        for back in FURTHER_BACK {
            let from = files::hour_of(from).saturating_sub(back);
            let chosen = Names::list(bucket, Hours { from, until })?.chosen(span);
            if chosen.is_enough {
                return Ok(chosen.files);
            }
        }
    }
    Ok(Names::list(bucket, Hours { from: i64::MIN, until })?.chosen(span).files)
}

/// Whose last rows what was folded has.
fn folded_run(key: &str) -> Option<String> {
    Some(Path::new(key).file_name()?.to_str()?.strip_suffix(FOLDED)?.to_owned())
}

/// A file by its name.
#[derive(Clone, Debug)]
struct File {
    hour: i64,
    /// The numbers of the first and the last segment in it.
    first: u64,
    last: u64,
    object: Object,
}

/// Of a run, in order of their numbers.
#[derive(Default, Debug)]
struct OfRun {
    files: Vec<File>,
    snapshots: Vec<File>,
}

/// What files there are.
#[derive(Default, Debug)]
struct Names {
    runs: BTreeMap<String, OfRun>,
    /// Those that are not of one run, such as what was folded before there was a bucket.
    others: Vec<(i64, Object)>,
}

/// What is to be read.
#[derive(Debug)]
struct Chosen {
    files: Vec<(i64, Object)>,
    /// Whether nothing that is not listed can be missing.
    is_enough: bool,
}

impl Names {
    fn list(bucket: &Bucket, hours: Hours) -> anyhow::Result<Self> {
        let mut names = Self::default();
        let prefixes = [&OBJECTS, &SNAPSHOTS].into_iter().flat_map(|table| hours.prefixes(table));
        for object in bucket.list(&prefixes.collect::<Vec<_>>())? {
            names.add(object, hours);
        }
        Ok(names.sorted())
    }

    fn add(&mut self, object: Object, hours: Hours) {
        let Some(hour) = files::hour_of_key(&object.key).filter(|hour| hours.has(*hour)) else { return };
        let path = PathBuf::from(&object.key);
        let Some(Named { run, first, last }) = Named::of(&path) else {
            return self.others.push((hour, object));
        };
        let of_run = self.runs.entry(run.to_owned()).or_default();
        let is_snapshot = Path::new(&object.key).starts_with(SNAPSHOTS.name);
        let files = if is_snapshot { &mut of_run.snapshots } else { &mut of_run.files };
        files.push(File { hour, first, last, object });
    }

    fn sorted(mut self) -> Self {
        for of_run in self.runs.values_mut() {
            of_run.files.sort_by_key(|file| (file.first, file.hour));
            of_run.snapshots.sort_by_key(|file| file.last);
        }
        self
    }

    fn chosen(self, span: Span<'_>) -> Chosen {
        let from = span.from.map(files::hour_of);
        // Who was not heard of for so long knows nothing of that time, and is asked only where nobody else was listening.
        let was_heard = |of_run: &OfRun| {
            let last = of_run.files.iter().map(|file| file.hour).max();
            last.is_some_and(|last| from.is_none_or(|from| last >= from.saturating_sub(HEARD_HOURS)))
        };
        let had_begun = |of_run: &OfRun| {
            let first = of_run.files.iter().chain(&of_run.snapshots).map(|file| file.hour).min();
            first.is_some_and(|first| from.is_none_or(|from| first < from))
        };
        let is_anybody = self.runs.values().any(|of_run| was_heard(of_run) && had_begun(of_run));
        let is_asked = |(run, of_run): &(&String, &OfRun)| match span.run {
            Some(asked) => asked == *run,
            None => !is_anybody || was_heard(of_run),
        };
        let folded = self.others.iter().filter_map(|(_, object)| folded_run(&object.key));
        let folded: BTreeSet<String> = folded.collect();
        let mut chosen = Chosen { files: self.others, is_enough: is_anybody || span.run.is_some() };
        let mut is_there = false;
        for (run, of_run) in self.runs.iter().filter(is_asked) {
            is_there = true;
            let before = of_run.last_before(from);
            let covered = before.map_or(0, |snapshot| snapshot.last);
            let is_whole = of_run.first() <= covered.saturating_add(1);
            chosen.is_enough &= is_whole;
            // What was folded holds what is older.
            let begins = if is_whole || folded.contains(run) { None } else { of_run.begins_with() };
            let after = of_run.files.iter().filter(|file| file.first > covered);
            let read = before.into_iter().chain(begins).chain(after);
            chosen.files.extend(read.map(|file| (file.hour, file.object.clone())));
        }
        chosen.is_enough &= is_there;
        chosen.files.sort();
        chosen
    }
}

impl OfRun {
    /// The number of the first segment of which there is a file.
    fn first(&self) -> u64 {
        self.files.first().map_or(u64::MAX, |file| file.first)
    }

    /// The last snapshot before an hour: in which minute of its own one was made is not in its name.
    fn last_before(&self, from: Option<i64>) -> Option<&File> {
        self.snapshots.iter().rfind(|snapshot| from.is_some_and(|from| snapshot.hour < from))
    }

    /// Where files have been removed that a run began with: the snapshot with which its history begins now.
    fn begins_with(&self) -> Option<&File> {
        let first = self.first();
        self.snapshots.iter().find(|snapshot| snapshot.last.saturating_add(1) >= first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which files are read of those with these keys, without what all keys have in common, and whether that is enough.
    fn chosen(keys: &[&str], from: Option<i64>, run: Option<&str>) -> (Vec<String>, bool) {
        let mut names = Names::default();
        for key in keys {
            let (table, rest) = key.split_once(' ').unwrap();
            let (hour, name) = rest.split_once(' ').unwrap();
            let partition = files::partition(hour.parse().unwrap());
            let key = format!("{table}/{}/{name}.parquet", partition.display());
            names.add(Object { key, bytes: 1 }, Hours { from: i64::MIN, until: i64::MAX });
        }
        let from = from.map(|hour| Timestamp(hour * 3_600_000_000_000));
        let chosen = names.sorted().chosen(Span { from, until: None, run });
        let short = |(hour, object): &(i64, Object)| {
            let (table, name) =
                (object.key.split('/').next().unwrap(), object.key.rsplit('/').next().unwrap());
            format!("{table} {hour} {}", name.strip_suffix(".parquet").unwrap())
        };
        (chosen.files.iter().map(short).collect(), chosen.is_enough)
    }

    #[test]
    fn of_a_run_the_last_snapshot_before_is_read_and_what_came_after_it() {
        let keys = [
            "objects 100 a-1-0001-0012",
            "objects 101 a-1-0013-0024",
            "snapshots 101 a-1-0000-0024",
            "objects 101 a-1-0025-0025",
            "objects 102 a-1-0025-0025",
            "objects 103 a-1-0026-0040",
            "snapshots 103 a-1-0000-0040",
            "objects 104 a-1-0041-0041",
        ];
        let after_the_first = [
            "objects 101 a-1-0025-0025",
            "snapshots 101 a-1-0000-0024",
            "objects 102 a-1-0025-0025",
            "objects 103 a-1-0026-0040",
            "objects 104 a-1-0041-0041",
        ];
        let sorted = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        assert_eq!(chosen(&keys, Some(102), None), (sorted(&after_the_first), true));
        // The snapshot may be of the end of that hour.
        assert_eq!(chosen(&keys, Some(103), None), (sorted(&after_the_first), true));
        let after_the_second = ["snapshots 103 a-1-0000-0040", "objects 104 a-1-0041-0041"];
        let (files, is_enough) = chosen(&keys, Some(104), Some("a-1"));
        assert_eq!((files.len(), is_enough), (2, true));
        assert!(after_the_second.iter().all(|file| files.iter().any(|it| it == file)), "{files:?}");
        // Before the first one, and without a time, everything is there from the run's begin on.
        for from in [Some(100), Some(101), None] {
            let (files, _) = chosen(&keys, from, None);
            assert!(files.len() == 6 && files.iter().all(|file| file.starts_with("objects")), "{files:?}");
        }
        assert!(!chosen(&keys, Some(104), Some("b")).1, "of another run nothing is known yet");
        assert!(!chosen(&[], Some(104), None).1);
    }

    #[test]
    fn where_the_begin_is_not_listed_more_is_asked_for_or_the_oldest_snapshot() {
        // Not enough to know what an agent without snapshots had said before.
        let keys = ["objects 100 a-0005-0005", "objects 101 a-0006-0006"];
        let all = vec!["objects 100 a-0005-0005".to_owned(), "objects 101 a-0006-0006".to_owned()];
        assert_eq!(chosen(&keys, Some(101), None), (all, false));
        // Where somebody has removed the begin, it begins with a snapshot that joins what is left.
        let keys =
            ["snapshots 99 a-0000-0003", "snapshots 100 a-0000-0005", keys[1], "snapshots 101 a-0000-0006"];
        let (files, is_enough) = chosen(&keys, None, None);
        assert!(!is_enough && files.len() == 2, "{files:?}");
        assert!(files.contains(&"snapshots 100 a-0000-0005".to_owned()), "{files:?}");
        // Unless more of it is there than was listed.
        let (files, is_enough) = chosen(&keys, Some(99), None);
        assert!(!is_enough && files.contains(&"snapshots 100 a-0000-0005".to_owned()), "{files:?}");
        let folded = ["objects 100 a-folded", keys[2], keys[3]];
        let (files, _) = chosen(&folded, None, None);
        assert_eq!(
            files,
            ["objects 100 a-folded", "objects 101 a-0006-0006"],
            "it was folded before there was a bucket"
        );
        // One that does not is no help.
        let keys = ["snapshots 99 a-0000-0003", "objects 101 a-0006-0006"];
        assert_eq!(chosen(&keys, None, None), (vec!["objects 101 a-0006-0006".to_owned()], false));
    }

    #[test]
    fn who_was_not_heard_of_for_a_day_is_asked_only_where_nobody_was() {
        let keys = [
            "objects 100 dead-1-1",
            "objects 199 lives-1-1",
            "objects 250 later-1-1",
            "objects 100 dead-folded",
        ];
        let (files, is_enough) = chosen(&keys, Some(200), None);
        assert!(
            is_enough && files.len() == 3 && !files.iter().any(|file| file.contains("dead-1")),
            "{files:?}"
        );
        let (files, _) = chosen(&keys, Some(200), Some("dead"));
        assert!(files.contains(&"objects 100 dead-1-1".to_owned()), "{files:?}");
        let (files, is_enough) = chosen(&keys[..1], Some(200), None);
        assert_eq!((files, is_enough), (vec!["objects 100 dead-1-1".to_owned()], false));
        // Nor who began in that very hour.
        let in_that_hour = [keys[0], "objects 200 new-1-1"];
        assert!(!chosen(&in_that_hour, Some(200), None).1);
        // Whoever asks about one run wants no other.
        let (files, is_enough) = chosen(&in_that_hour, Some(200), Some("new"));
        assert_eq!((files, is_enough), (vec!["objects 200 new-1-1".to_owned()], true));
        // A day later it may still have been there.
        assert_eq!(chosen(&keys[..2], Some(126), None).0.len(), 2);
        // Who came later does not know either.
        let (files, is_enough) = chosen(&[keys[0], keys[2]], Some(200), None);
        assert_eq!((files.len(), is_enough), (2, false));
    }
}
