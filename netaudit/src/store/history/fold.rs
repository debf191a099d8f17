//! What stays of the history when the flows of its time are removed: of each object the last row, as it still holds.
//!
//! ```text
//! files of hours before the first one that has flows ──rows that still hold──► one file in that hour; the others are removed
//! ```
//!
//! So every time of which flows are kept can be answered, however long ago an object last changed. Rows keep their time. It costs
//! one reading and writing of what there is, an hour at most, and in memory a number for each object.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use super::{
    doubts::gaps,
    holding::{Input, Run, Runs, Survey, write},
    read::Change,
    snapshot::Snapshots,
};
use crate::{
    model::Timestamp,
    store::flows::{
        Shared,
        files::{self, FlowFile, Told},
        lost,
        retention::{Bounds, Keeps, remove_file},
        segment::Mark,
        table::OBJECTS,
        upload::{Uploading, Uploads},
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
    /// What is made for the bucket.
    snapshots: Option<Snapshots>,
}

impl Folded {
    /// `run` is the agent run that goes on.
    pub fn new(store: &Path, run: &str, bounds: Arc<Bounds>, uploads: Option<Uploading>) -> Self {
        let files = files::list(store, &OBJECTS).unwrap_or_else(|error| {
            tracing::error!("{error:#}: what is there of the history is kept until the next start");
            Vec::new()
        });
        let snapshots = Snapshots::open(store, run, uploads.as_ref().map(|(uploads, _)| uploads.clone()));
        let mut folded = Self {
            store: store.to_owned(),
            bounds,
            files,
            removed: 0,
            is_failing: false,
            uploads,
            snapshots,
        };
        folded.prune();
        folded
    }

    fn measure(&self) {
        let snapshots = self.snapshots.iter().flat_map(Snapshots::files);
        let bytes = self.files.iter().chain(snapshots).map(|file| file.bytes).sum();
        self.bounds.history_bytes.store(bytes, Ordering::Relaxed);
    }
}

impl Keeps for Folded {
    fn add(&mut self, files: Vec<FlowFile>) {
        if let Some(snapshots) = &mut self.snapshots {
            snapshots.add(&files);
        }
        self.files.extend(files);
        self.files.sort();
        if let Some(snapshots) = &mut self.snapshots {
            snapshots.make_if_due(&self.store, &self.files);
        }
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
                    if let Some(snapshots) = &mut self.snapshots {
                        snapshots.folded(&done.removed);
                    }
                }
                // Whatever is old is kept, and so nothing is missing.
                Err(error) if !std::mem::replace(&mut self.is_failing, true) => {
                    tracing::error!("{error:#}: the history of objects is not folded, and grows");
                }
                Err(_) => {}
            }
        }
        if let Some(snapshots) = &mut self.snapshots {
            snapshots.tidy(&self.store, first);
        }
        self.measure();
    }

    fn tell(&self, shared: &Shared) {
        let snapshots = self.snapshots.iter().flat_map(Snapshots::files);
        let (count, bytes) = self
            .files
            .iter()
            .chain(snapshots)
            .fold((0, 0), |(count, bytes), file| (count + 1, bytes + file.bytes));
        shared.files.store(count, Ordering::Relaxed);
        shared.bytes.store(bytes, Ordering::Relaxed);
        shared.removed.store(self.removed, Ordering::Relaxed);
    }
}

/// What folding did.
#[derive(Debug, Default)]
struct Done {
    made: Option<FlowFile>,
    removed: HashSet<PathBuf>,
}

/// Puts what still holds of the files before an hour into one of that hour.
///
/// A crash before the new file has its name changes nothing. One after it leaves files that are folded again: the new file is
/// among what is read then, and to fold a row twice changes nothing.
fn fold(store: &Path, all: &[FlowFile], hour: i64, uploads: Option<&Uploads>) -> anyhow::Result<Done> {
    let mut inputs = Vec::new();
    let mut is_damaged = false;
    for file in all.iter().filter(|file| file.hour < hour || (file.hour == hour && is_folded(&file.path))) {
        match Input::open(&file.path) {
            Ok(input) => inputs.push(input),
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
    let mut survey = Survey::of(&inputs).map_err(|(_, error)| error)?;
    let superseded = superseded(&survey.runs);
    let mut holds = |change: &Change| {
        let of_run = (change.node.clone(), change.run.clone());
        !superseded.contains(&of_run) && survey.take(change)
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
    let name = folded_name(&mark.run);
    if let Some(uploads) = uploads {
        // Before it has its name, so that it never waits for its upload.
        uploads.is_there(&OBJECTS.directory(store).join(files::partition(hour)).join(&name));
    }
    let made = write(store, (&OBJECTS, hour, &name), &inputs, &Told { mark, last: 0 }, &mut holds)?;
    let mut done = Done { made, removed: HashSet::new() };
    for Input { path, rows, told } in inputs {
        if done.made.as_ref().is_some_and(|made| made.path == path) {
            continue;
        }
        if let Some(uploads) = uploads {
            let is_elsewhere = uploads.has(&path) || told.is_folded();
            uploads.removed(&OBJECTS, &path, if is_elsewhere { 0 } else { rows });
        }
        remove_file(&OBJECTS.directory(store), &path);
        done.removed.insert(path);
    }
    Ok(done)
}

/// The name of what is folded, of which the latest is of this run.
pub(super) fn folded_name(run: &str) -> String {
    format!("{run}{FOLDED}")
}

fn is_folded(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.ends_with(FOLDED))
}

fn is_of_run(path: &Path, run: &str) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.strip_prefix(run)).is_some_and(|rest| rest.starts_with('-'))
}

/// How the names of folded files end.
pub(super) const FOLDED: &str = "-folded.parquet";

/// Runs of which nothing holds any more: a later one of the same node has listed all that they have.
fn superseded(runs: &Runs) -> HashSet<(String, String)> {
    let is_over = |((node, _), run): &(&(String, String), &Run)| {
        let mut later =
            runs.iter().filter(|((of_node, _), other)| of_node == node && other.first > run.first);
        later.any(|(_, other)| !other.listed.is_empty() && run.listed.is_subset(&other.listed))
    };
    runs.iter().filter(is_over).map(|(key, _)| key.clone()).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::{
        cluster::Kind,
        store::{
            bucket::{Access, Bucket},
            flows::{Beginning, FlowStore, Lost, Retention, table::SNAPSHOTS, upload},
        },
        watch,
    };

    const KEPT: Retention = Retention { age: Duration::from_secs(u32::MAX as u64), bytes: u64::MAX };

    fn at(hour: i64) -> Timestamp {
        Timestamp::from_seconds((490_000 + hour) * 3_600)
    }

    /// Files of a run in which an object changes each hour, and another one never.
    fn files_of_hours(store: &Path, hours: i64) -> anyhow::Result<Vec<FlowFile>> {
        let begin = |run: &str| Beginning {
            node: "node".into(),
            run: run.into(),
            from: at(0),
            lost: Lost::default(),
            goes_on: false,
        };
        let mut open = FlowStore::open(store, KEPT, None, &begin("run"))?;
        let service = |name: &str, version: i64| {
            let value = json!({"metadata": {"namespace": "a", "name": name, "labels": {"v": version.to_string()}},
                "spec": {"ports": [{"port": version + 1}]}});
            watch::content(Kind::Service, &value)
        };
        let mut seen = |content: Option<_>, hour| {
            content.into_iter().for_each(|content| open.history_mut().seen(&content, at(hour)));
            open.tick(at(hour), Lost::default());
        };
        seen(service("always", 0), 0);
        (0..hours).for_each(|hour| seen(service("changes", hour), hour));
        open.finish(at(hours), Lost::default(), Duration::from_secs(20));
        let until = std::time::Instant::now() + Duration::from_secs(60);
        let again = loop {
            match FlowStore::open(store, KEPT, None, &begin("next")) {
                Err(_) if std::time::Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
                opened => break opened?,
            }
        };
        loop {
            let files = files::list(store, &OBJECTS)?;
            if files.len() as i64 >= hours || std::time::Instant::now() > until {
                drop(again);
                return Ok(files);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn versions(path: &Path) -> anyhow::Result<Vec<String>> {
        let input = Input::open(path)?;
        let mut found = Vec::new();
        let source = crate::store::flows::source::Source::of_file(&input.path)?;
        let (metadata, _) = files::what_it_says(&source, &OBJECTS)?;
        let mut reader = super::super::read::reader(source, metadata, false)?;
        while let Some(batch) = crate::store::guard::next_batch(&mut reader)? {
            super::super::read::changes_of(&batch, Default::default(), &mut |change| {
                let content: serde_json::Value = serde_json::from_str(&change.content.unwrap_or_default())?;
                found.push(format!("{} {}", change.name, content["spec"]["ports"][0]["port"]));
                Ok(())
            })?;
        }
        found.sort();
        Ok(found)
    }

    /// Of what was folded since the last snapshot nothing is missing in the next one, and nothing that is gone is in it.
    #[test]
    fn a_snapshot_has_what_was_folded_meanwhile() -> anyhow::Result<()> {
        let directory = tempfile::tempdir()?;
        let store = directory.path().join("store");
        let all = files_of_hours(&store, 6)?;
        assert_eq!(all.len(), 6, "{all:?}");
        let access = Access { endpoint: Some("http://127.0.0.1:1".to_owned()), ..Access::default() };
        let nowhere =
            Bucket::open_with("s3://nowhere", &access, Duration::from_millis(50), Some(("key", "secret")))?;
        let uploading = upload::start(&store, nowhere)?;
        let bounds = Arc::new(Bounds::default());
        let mut folded = Folded::new(&store, "run", bounds.clone(), Some(uploading));
        folded.files.clear();
        let made = || anyhow::Ok(files::list(&store, &SNAPSHOTS)?);
        // So that the next files make one due.
        let due = |folded: &mut Folded| folded.snapshots.as_mut().expect("there is a bucket").is_due_now();
        folded.add(all[..3].to_vec());
        assert_eq!(made()?, [], "so few files are read as fast");
        due(&mut folded);
        folded.add(Vec::new());
        folded.prune();
        let [first] = &made()?[..] else { panic!("{:?}", made()?) };
        assert_eq!(versions(&first.path)?, ["always 1", "changes 3"]);
        bounds.first_hour.store(490_002, Ordering::Relaxed);
        folded.prune();
        let left: Vec<i64> = files::list(&store, &OBJECTS)?.iter().map(|file| file.hour - 490_000).collect();
        assert_eq!(left, [2, 2, 3, 4, 5], "a folded one, and those after it");

        folded.add(all[3..5].to_vec());
        bounds.first_hour.store(490_004, Ordering::Relaxed);
        folded.prune();
        due(&mut folded);
        folded.add(Vec::new());
        folded.prune();
        let [second] = &made()?[..] else { panic!("{:?}", made()?) };
        assert_eq!(versions(&second.path)?, ["always 1", "changes 5"]);
        let told = Input::open(&second.path)?.told;
        assert_eq!((told.is_folded(), told.mark.holes, told.mark.from, told.last), (true, false, at(5), 1));

        // Where the last one cannot be read, all that is there is: what was folded holds what is older.
        fs::write(&second.path, "damaged")?;
        due(&mut folded);
        folded.add(all[5..].to_vec());
        folded.prune();
        let [third] = &made()?[..] else { panic!("{:?}", made()?) };
        assert_eq!(versions(&third.path)?, ["always 1", "changes 6"]);
        Ok(())
    }
}
