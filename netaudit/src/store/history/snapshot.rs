//! Snapshots of a history that is in a bucket, where nothing is folded: of each object of a run the last row, as it still held.
//! Whoever asks needs the last one before the time that is asked for, and the files after it, however long the agent has run.
//!
//! ```text
//! the snapshot before, files since ──rows that still hold──► DIRECTORY / snapshots / date=… / hour=… / <run>-0000000000-<last>.parquet
//! ```
//!
//! `<last>` is the number of the run's last segment that is in it: files with a higher one come after it. It tells of itself as
//! what was folded does. Here only the last one stays, which the next is made of.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    fold::is_folded,
    holding::{Input, Survey, write},
};
use crate::{
    model::Timestamp,
    store::flows::{
        files::{self, FlowFile, Named, Told},
        lost,
        retention::remove_file,
        segment::Mark,
        table::{OBJECTS, SNAPSHOTS},
        upload::Uploads,
    },
};

/// Files, an hour of them where something changes all the time, before which no snapshot is worth its room.
const LEAST_FILES: usize = 12;

/// Files after which there is one however large it is.
const MOST_FILES: usize = 288;

/// How long after the last one there is another, however little has changed. Whoever asks looks back
/// [a day](super::parts::SNAPSHOT_HOURS).
const EVERY: Duration = Duration::from_secs(23 * 3_600);

/// The snapshots of an agent run.
#[derive(Debug)]
pub(super) struct Snapshots {
    run: String,
    uploads: Arc<Uploads>,
    /// The last one.
    last: Option<FlowFile>,
    /// Files of the run that are in none.
    since: Vec<FlowFile>,
    began: Instant,
    /// Others that are there, of earlier runs too: until they are in the bucket.
    others: Vec<FlowFile>,
    is_failing: bool,
}

impl Snapshots {
    /// `None` where nothing is uploaded: what is left from when that was otherwise is removed.
    pub fn open(store: &Path, run: &str, uploads: Option<Arc<Uploads>>) -> Option<Self> {
        let others = files::list(store, &SNAPSHOTS).unwrap_or_else(|error| {
            tracing::error!("{error:#}: old snapshots stay there until the next start");
            Vec::new()
        });
        let Some(uploads) = uploads else {
            let directory = SNAPSHOTS.directory(store);
            for file in &others {
                remove_file(&directory, &file.path);
            }
            return None;
        };
        let (run, since, began) = (run.to_owned(), Vec::new(), Instant::now());
        Some(Self { run, uploads, last: None, since, began, others, is_failing: false })
    }

    /// Their bytes.
    pub fn bytes(&self) -> u64 {
        self.last.iter().chain(&self.others).map(|file| file.bytes).sum()
    }

    /// There are new files of the history.
    pub fn add(&mut self, files: &[FlowFile]) {
        let own =
            files.iter().filter(|file| Named::of(&file.path).is_some_and(|named| named.run == self.run));
        self.since.extend(own.cloned());
    }

    /// Makes one where the last one is long ago, of all the files that there are.
    pub fn make_if_due(&mut self, store: &Path, all: &[FlowFile]) {
        self.tidy(store);
        let files: HashSet<&str> =
            self.since.iter().filter_map(|file| file.path.file_name()?.to_str()).collect();
        let bytes: u64 = self.since.iter().map(|file| file.bytes).sum();
        // So they take no more room than the files do, but for one a day.
        let is_as_large = bytes >= self.last.as_ref().map_or(0, |last| last.bytes);
        let is_due = files.len() >= MOST_FILES
            || (files.len() >= LEAST_FILES && is_as_large)
            || (!files.is_empty() && self.began.elapsed() >= EVERY);
        if is_due {
            self.make(store, all);
        }
    }

    /// Makes one where files from before an hour, which are about to be folded, are in none yet.
    pub fn make_before(&mut self, hour: i64, store: &Path, all: &[FlowFile]) {
        if self.since.iter().any(|file| file.hour < hour) {
            self.make(store, all);
        }
    }

    fn make(&mut self, store: &Path, all: &[FlowFile]) {
        match self.made(store, all) {
            Ok(made) => {
                self.others.extend(self.last.take());
                self.last = made;
                self.since.clear();
                self.began = Instant::now();
                self.is_failing = false;
                self.tidy(store);
            }
            // Nothing is missing: whoever asks reads more files.
            Err(error) if !std::mem::replace(&mut self.is_failing, true) => {
                tracing::error!("{error:#}: no snapshot of the history is made for the bucket");
            }
            Err(_) => {}
        }
    }

    /// A new one; none where nothing is there that could be in one.
    fn made(&self, store: &Path, all: &[FlowFile]) -> anyhow::Result<Option<FlowFile>> {
        let last = self.last.as_ref().and_then(|last| Input::open(&last.path).ok());
        // Without it all is needed that was ever told.
        let of_run = |file: &&FlowFile| {
            is_folded(&file.path) || Named::of(&file.path).is_some_and(|named| named.run == self.run)
        };
        let files: Vec<&FlowFile> =
            if last.is_some() { self.since.iter().collect() } else { all.iter().filter(of_run).collect() };
        let mut holes = false;
        let mut inputs: Vec<Input> = last.into_iter().collect();
        for file in files {
            match Input::open(&file.path) {
                Ok(input) => inputs.push(input),
                Err(error) => {
                    holes = true;
                    let file = file.path.display();
                    tracing::error!(%file, reason = format!("{error:#}"), "not in the snapshot: it cannot be read");
                }
            }
        }
        let survey = Survey::of(&inputs)?;
        let Some(mark) = self.mark(&inputs, &survey) else { return Ok(None) };
        let covered = inputs.iter().filter(|input| input.told.mark.run == self.run);
        let covered = covered.map(|input| input.told.last).max().unwrap_or(0);
        let told = Told { mark: Mark { holes: holes || mark.holes, ..mark }, last: covered };
        let is_kept = |change: &super::read::Change| change.run == self.run && survey.holds(change);
        write(
            store,
            (&SNAPSHOTS, files::hour_of(told.mark.from), &told.file_name()),
            &inputs,
            &told,
            &is_kept,
        )
    }

    /// What a snapshot of these tells of itself: that it is of the time when all of them had been told.
    fn mark(&self, inputs: &[Input], survey: &Survey) -> Option<Mark> {
        let told = || inputs.iter().map(|input| &input.told);
        let of_run: Vec<Mark> =
            told().map(|told| &told.mark).filter(|mark| mark.run == self.run).cloned().collect();
        let latest = of_run.iter().max_by_key(|mark| mark.until)?.clone();
        let key = (latest.node.clone(), self.run.clone());
        let last_row = survey.runs.get(&key).map_or(Timestamp::MIN, |run| run.last);
        let at = latest.until.max(last_row);
        let holes = told().any(|told| told.mark.holes && told.is_folded());
        Some(Mark {
            number: 0,
            from: at,
            until: at,
            lost_before: 0,
            lost_after: lost(&of_run),
            holes: holes || !super::doubts::gaps(&of_run, &latest.node, &self.run, None).is_empty(),
            ..latest
        })
    }

    /// Removes those that nobody needs here: in the bucket they are, or others of the run that are later.
    fn tidy(&mut self, store: &Path) {
        let (uploads, run) = (&self.uploads, &self.run);
        let is_needed = |path: &PathBuf| {
            let is_own = Named::of(path).is_some_and(|named| named.run == *run);
            !is_own && !uploads.has(path)
        };
        let directory = SNAPSHOTS.directory(store);
        self.others.retain(|file| {
            let is_needed = is_needed(&file.path);
            if !is_needed {
                remove_file(&directory, &file.path);
                uploads.removed(&OBJECTS, &file.path, 0);
            }
            is_needed
        });
    }
}
