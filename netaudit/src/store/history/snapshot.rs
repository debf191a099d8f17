//! Snapshots of a history that is in a bucket, where nothing is folded: of each object of a run the last row, as it still held.
//! Whoever asks needs the last one before the time that is asked for, and the files after it, however long the agent has run.
//!
//! ```text
//! the snapshot before, files since ──rows that still hold──► DIRECTORY / snapshots / date=… / hour=… / <run>-0000000000-<last>.parquet
//! ```
//!
//! `<last>` is the number of the run's last segment that is in it: files with a higher one come after it. It tells of itself as
//! what was folded does. Here the last one stays, which the next is made of, and for each day one that waits for its upload.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    doubts::gaps,
    fold::folded_name,
    holding::{Input, Survey, write},
    read::Change,
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

/// How long after the start there is the first one, where so few files are made.
const FIRST: Duration = Duration::from_secs(3_600);

/// How long after the last one there is another, however little has changed. Whoever asks looks back
/// [a day](super::parts::SNAPSHOT_HOURS).
const EVERY: Duration = Duration::from_secs(23 * 3_600);

/// How far apart those are kept that wait for their upload, in hours: where the bucket is down for days, each has its own.
const WAITING_APART: i64 = 20;

/// How long after a failure the next attempt is made.
const PAUSE: Duration = Duration::from_secs(3_600);

/// The snapshots of an agent run.
#[derive(Debug)]
pub(super) struct Snapshots {
    run: String,
    uploads: Arc<Uploads>,
    /// The last one, where the next can be made of it and of the files since.
    last: Option<FlowFile>,
    since: Vec<FlowFile>,
    /// Bytes of the last one; `None` where none has been made.
    bytes: Option<u64>,
    /// Files and bytes that have come since.
    told: (usize, u64),
    began: Instant,
    /// Others that are there, of earlier runs too: until they are in the bucket.
    others: Vec<FlowFile>,
    failed: Option<Instant>,
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
        Some(Self {
            run: run.to_owned(),
            uploads,
            last: None,
            since: Vec::new(),
            bytes: None,
            told: (0, 0),
            began: Instant::now(),
            others,
            failed: None,
        })
    }

    /// Those that are there.
    pub fn files(&self) -> impl Iterator<Item = &FlowFile> {
        self.last.iter().chain(&self.others)
    }

    fn is_own(&self, path: &Path) -> bool {
        Named::of(path).is_some_and(|named| named.run == self.run)
    }

    /// There are new files of the history.
    pub fn add(&mut self, files: &[FlowFile]) {
        let own: Vec<&FlowFile> = files.iter().filter(|file| self.is_own(&file.path)).collect();
        // A file of two hours is one, with one name.
        let names: HashSet<_> = own.iter().filter_map(|file| file.path.file_name()).collect();
        self.told.0 += names.len();
        self.told.1 += own.iter().map(|file| file.bytes).sum::<u64>();
        self.since.extend(own.into_iter().cloned());
    }

    /// Files were folded. What they said of what is gone is told by none any more: the next one is made of all that is there.
    pub fn folded(&mut self, removed: &HashSet<PathBuf>) {
        let before = self.since.len();
        self.since.retain(|file| !removed.contains(&file.path));
        if self.since.len() < before {
            self.others.extend(self.last.take());
        }
    }

    /// As if enough had come.
    #[cfg(test)]
    pub fn is_due_now(&mut self) {
        self.told = (MOST_FILES, 0);
    }

    /// Makes one where the last one is long ago. `all` are the files of the history.
    pub fn make_if_due(&mut self, store: &Path, all: &[FlowFile]) {
        let (files, bytes) = self.told;
        // So they take no more room than the files do, but for one a day.
        let is_as_large = bytes >= self.bytes.unwrap_or(0);
        let longest = if self.bytes.is_some() { EVERY } else { FIRST };
        let is_due = files >= MOST_FILES
            || (files >= LEAST_FILES && is_as_large)
            || (files > 0 && self.began.elapsed() >= longest);
        let is_paused = self.failed.is_some_and(|failed| failed.elapsed() < PAUSE);
        if is_due && !is_paused {
            match self.made(store, all) {
                Ok(made) => {
                    self.bytes = made.as_ref().map(|made| made.bytes);
                    self.others.extend(std::mem::replace(&mut self.last, made));
                    self.since.clear();
                    (self.told, self.began, self.failed) = ((0, 0), Instant::now(), None);
                }
                // Whoever asks reads more files.
                Err(error) => {
                    tracing::error!("{error:#}: no snapshot of the history is made for the bucket");
                    self.others.extend(self.last.take());
                    self.failed = Some(Instant::now());
                }
            }
        }
    }

    /// A new one; none where nothing is there that could be in one.
    fn made(&self, store: &Path, all: &[FlowFile]) -> anyhow::Result<Option<FlowFile>> {
        if let Some(last) = &self.last {
            let files = [last].into_iter().chain(&self.since);
            let inputs: anyhow::Result<Vec<Input>> = files.map(|file| Input::open(&file.path)).collect();
            if let Ok(inputs) = inputs
                && let Ok(survey) = Survey::of(&inputs)
            {
                return self.written(store, &inputs, survey, false);
            }
        }
        // Without it, or one of the files, all is needed that was ever told.
        let folded = folded_name(&self.run);
        let is_folded = |path: &Path| path.file_name().is_some_and(|name| *name == *folded);
        let mut left_out = Vec::new();
        let mut inputs = Vec::new();
        for file in all.iter().filter(|file| self.is_own(&file.path) || is_folded(&file.path)) {
            match Input::open(&file.path) {
                Ok(input) => inputs.push(input),
                Err(error) => left_out.push((file.path.clone(), error)),
            }
        }
        let (survey, unread) = Survey::of_readable(&mut inputs);
        left_out.extend(unread.into_iter().map(|(input, error)| (input.path, error)));
        for (file, error) in &left_out {
            let (file, reason) = (file.display(), format!("{error:#}"));
            tracing::error!(%file, reason, "not in the snapshot for the bucket: it cannot be read");
        }
        self.written(store, &inputs, survey, !left_out.is_empty())
    }

    fn written(
        &self,
        store: &Path,
        inputs: &[Input],
        mut survey: Survey,
        holes: bool,
    ) -> anyhow::Result<Option<FlowFile>> {
        let covered = inputs.iter().filter(|input| input.told.mark.run == self.run);
        let last = covered.map(|input| input.told.last).max().unwrap_or(0);
        let Some(mark) = self.mark(inputs, &survey).filter(|_| last > 0) else { return Ok(None) };
        let told = Told { mark: Mark { holes: holes || mark.holes, ..mark }, last };
        let mut is_kept = |change: &Change| change.run == self.run && survey.take(change);
        let hour = files::hour_of(told.mark.from);
        write(store, (&SNAPSHOTS, hour, &told.file_name()), inputs, &told, &mut is_kept)
    }

    /// What a snapshot of these tells of itself: that it is of the time when all of them had been told.
    fn mark(&self, inputs: &[Input], survey: &Survey) -> Option<Mark> {
        let told = inputs.iter().map(|input| &input.told.mark);
        let of_run: Vec<Mark> = told.filter(|mark| mark.run == self.run).cloned().collect();
        let latest = of_run.iter().max_by_key(|mark| mark.until)?.clone();
        let key = (latest.node.clone(), self.run.clone());
        let last_row = survey.runs.get(&key).map_or(Timestamp::MIN, |run| run.last);
        let at = latest.until.max(last_row);
        let holes = of_run.iter().any(|mark| mark.holes);
        Some(Mark {
            number: 0,
            from: at,
            until: at,
            lost_before: 0,
            lost_after: lost(&of_run),
            holes: holes || !gaps(&of_run, &latest.node, &self.run, None).is_empty(),
            ..latest
        })
    }

    /// Removes those that nobody needs here: in the bucket they are, or they wait and another one of about that time does too, or no
    /// flows are kept of their time: those begin with this hour.
    pub fn tidy(&mut self, store: &Path, first_hour: i64) {
        self.others.sort();
        let mut newer = self.last.as_ref().map(|last| last.hour);
        let mut kept = Vec::new();
        for file in std::mem::take(&mut self.others).into_iter().rev() {
            let is_own = self.is_own(&file.path);
            let is_near = is_own && newer.is_some_and(|newer| newer - file.hour < WAITING_APART);
            if self.uploads.has(&file.path) || is_near || file.hour < first_hour {
                remove_file(&SNAPSHOTS.directory(store), &file.path);
                self.uploads.removed(&OBJECTS, &file.path, 0);
                continue;
            }
            if is_own {
                newer = Some(file.hour);
            }
            kept.push(file);
        }
        self.others = kept;
    }
}
