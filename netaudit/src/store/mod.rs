//! The agent's state directory: what is known of rules' use, a file a window, written so that a crash at any moment leaves
//! each file as it was or as it is to be.
//!
//! ```text
//! DIRECTORY / usage-<runs before>-<window>.jsonl      see `document`
//!           / usage-….jsonl.damaged-<n>               could not be read: kept for people
//!           / .usage-….jsonl.new                      what a crash left half written: removed
//! ```
//!
//! A window that has ended does not change any more, so only the file of the window that goes on is written again.

pub mod bucket;
pub mod bundle;
pub mod document;
pub mod flows;
mod guard;
pub mod history;
mod journal;
pub mod usage_upload;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    audit::{
        RuleKey,
        usage::{MOST_KEPT, Rows, Schedule},
    },
    model::Timestamp,
};

/// How many files are kept at most: restarts in a row must not fill a disk.
const MOST_FILES: usize = 1_000;

/// Something that can be done nothing with, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the state directory: {} of {}", what, path.display())]
pub struct StoreError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError { what, path, source }
}

/// A file that could not be read.
#[derive(Debug)]
pub struct Damaged {
    /// Where it is now.
    pub kept_as: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// What a directory held.
#[derive(Debug, Default)]
pub struct Found {
    /// The rows of all files that could be read.
    pub rows: Rows,
    /// Those that could not.
    pub damaged: Vec<Damaged>,
}

/// A state directory.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Oldest first.
    files: Vec<Kept>,
}

/// A file that is there.
#[derive(Debug)]
struct Kept {
    name: String,
    /// For how long it tells.
    told: Duration,
    /// For how long the CronJobs of its rules need it, at most.
    needed: Duration,
    /// Whether it holds only what CronJobs need.
    is_thinned: bool,
}

impl Kept {
    fn new(name: String, rows: &Rows) -> Self {
        let longest = rows.rules.values().map(|row| row.watched_ms).max();
        let needed = rows.rules.values().map(|row| needed(&row.schedule)).max();
        Self {
            name,
            told: Duration::from_millis(longest.unwrap_or(0)),
            needed: needed.unwrap_or_default(),
            is_thinned: false,
        }
    }
}

/// For how long the rows of a rule are needed for its CronJobs.
fn needed(schedule: &Schedule) -> Duration {
    schedule.window().unwrap_or_default().min(MOST_KEPT)
}

impl Directory {
    /// Opens a directory, makes it where it is missing, and reads what it holds. A file that cannot be read is kept under
    /// another name.
    ///
    /// # Errors
    ///
    /// The directory cannot be made, listed or written.
    pub fn open(path: &Path) -> Result<(Self, Found), StoreError> {
        fs::create_dir_all(path).map_err(failed("making", path))?;
        let mut found = Found::default();
        let mut files = Vec::new();
        for name in names(path)? {
            let file = path.join(&name);
            if name.starts_with(".usage-") {
                fs::remove_file(&file).map_err(failed("removing", &file))?;
                continue;
            }
            if !is_ours(&name) {
                continue;
            }
            // One bad block of a disk must not keep the agent from its work.
            let bytes = fs::read(&file).map_err(|error| format!("it cannot be read: {error}"));
            match bytes.and_then(|bytes| document::read(&bytes).map_err(|error| error.to_string())) {
                Ok(rows) => {
                    files.push(Kept::new(name, &rows));
                    found.rows.merge(rows);
                }
                Err(reason) => {
                    let kept_as = set_aside(&file)?;
                    found.damaged.push(Damaged { kept_as, reason });
                }
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok((Self { path: path.to_owned(), files }, found))
    }

    /// The files, oldest first.
    pub fn files(&self) -> Vec<PathBuf> {
        self.files.iter().map(|file| self.path.join(&file.name)).collect()
    }

    /// Writes the rows of one window: all of them, or none.
    ///
    /// # Errors
    ///
    /// The file cannot be written; the one that was there is as it was.
    pub fn write(&mut self, sequence: u64, window: Timestamp, rows: &Rows) -> Result<(), StoreError> {
        // Names sort by time as long as numbers have as many digits; the clock may stand before 1970.
        let name = format!("usage-{sequence:020}-{:020}.jsonl", i128::from(window.0) - i128::from(i64::MIN));
        self.replace(&name, rows)?;
        let kept = Kept::new(name, rows);
        match self.files.iter_mut().find(|known| known.name == kept.name) {
            Some(known) => *known = kept,
            None => self.files.push(kept),
        }
        Ok(())
    }

    fn replace(&self, name: &str, rows: &Rows) -> Result<(), StoreError> {
        let (file, new) = (self.path.join(name), self.path.join(format!(".{name}.new")));
        write_whole(&new, &file, &document::write(rows)).map_err(failed("writing", &file))?;
        File::open(&self.path).and_then(|dir| dir.sync_all()).map_err(failed("writing", &self.path))
    }

    /// Removes the oldest files, as long as those after them tell of `enough` time: counted as it passed, so that a clock
    /// that was set forward removes nothing. What is older than that and needed for a CronJob stays.
    ///
    /// # Errors
    ///
    /// A file cannot be removed, or not be written without what is no longer needed.
    pub fn prune(&mut self, enough: Duration) -> Result<(), StoreError> {
        let mut later = Duration::ZERO;
        // What cannot be done with one file keeps no other from going: a full disk needs the room.
        let mut all = Ok(());
        for place in (0..self.files.len()).rev() {
            let file = &self.files[place];
            let told = file.told;
            let is_too_many = self.files.len() - place > MOST_FILES;
            if later >= enough.max(file.needed) || is_too_many {
                all = all.and(self.remove(place));
            } else if later >= enough && !file.is_thinned {
                match self.thin(place, enough) {
                    // It tells of no time any more.
                    Ok(false) => continue,
                    done => all = all.and(done.map(|_| ())),
                }
            }
            later += told;
        }
        all
    }

    fn remove(&mut self, place: usize) -> Result<(), StoreError> {
        let file = self.path.join(&self.files[place].name);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", &file)(error)),
            _ => {
                self.files.remove(place);
                Ok(())
            }
        }
    }

    /// Leaves in a file what is needed for longer than for `enough` time. `false` where somebody has removed it.
    fn thin(&mut self, place: usize, enough: Duration) -> Result<bool, StoreError> {
        let name = self.files[place].name.clone();
        let bytes = match fs::read(self.path.join(&name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.files.remove(place);
                return Ok(false);
            }
            // What was damaged since it was read, or cannot be read any more, is told when it is read the next time.
            bytes => bytes.unwrap_or_default(),
        };
        if let Ok(mut rows) = document::read(&bytes) {
            let before = rows.rules.len();
            rows.rules.retain(|_, row| needed(&row.schedule) > enough);
            let kept: BTreeSet<&RuleKey> = rows.rules.keys().map(|key| &key.rule).collect();
            rows.together.retain(|key, _| key.rules.iter().any(|rule| kept.contains(rule)));
            if rows.rules.len() < before {
                self.replace(&name, &rows)?;
            }
        }
        self.files[place].is_thinned = true;
        Ok(true)
    }
}

fn is_ours(name: &str) -> bool {
    name.starts_with("usage-") && name.ends_with(".jsonl")
}

fn names(path: &Path) -> Result<Vec<String>, StoreError> {
    let entries = fs::read_dir(path).map_err(failed("listing", path))?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed("listing", path))?.file_name();
        // Ours are all ASCII.
        names.extend(name.into_string());
    }
    names.sort();
    Ok(names)
}

fn write_whole(new: &Path, file: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut out = File::create(new)?;
    out.write_all(bytes)?;
    // The name must not come before what it names.
    out.sync_all()?;
    fs::rename(new, file)
}

fn set_aside(file: &Path) -> Result<PathBuf, StoreError> {
    for n in 1_u64.. {
        let mut name = file.as_os_str().to_owned();
        name.push(format!(".damaged-{n}"));
        let kept_as = PathBuf::from(name);
        if !kept_as.exists() {
            fs::rename(file, &kept_as).map_err(failed("renaming", file))?;
            return Ok(kept_as);
        }
    }
    Err(failed("renaming", file)(io::Error::other("there are too many damaged ones")))
}

/// The texts of all files of a state directory. One that is removed meanwhile is none.
///
/// # Errors
///
/// The directory or a file cannot be read.
pub fn texts(path: &Path) -> Result<Vec<Vec<u8>>, StoreError> {
    let mut texts = Vec::new();
    for name in names(path)?.into_iter().filter(|name| is_ours(name)) {
        let file = path.join(name);
        match fs::read(&file) {
            Ok(text) => texts.push(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("reading", &file)(error)),
        }
    }
    Ok(texts)
}

/// Reads rows from a file, or from all files of a state directory. Nothing is changed there.
///
/// # Errors
///
/// What cannot be read, and why.
pub fn read(path: &Path) -> anyhow::Result<Rows> {
    use anyhow::Context as _;
    let of = |file: &Path| -> anyhow::Result<Rows> {
        let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        document::read(&bytes).with_context(|| format!("in {}", file.display()))
    };
    if !path.is_dir() {
        return of(path);
    }
    let mut rows = Rows::default();
    let names: Vec<String> = names(path)?.into_iter().filter(|name| is_ours(name)).collect();
    anyhow::ensure!(
        !names.is_empty(),
        "{} holds no usage: give the --state-directory of an agent, or files from one",
        path.display()
    );
    for name in names {
        rows.merge(of(&path.join(name))?);
    }
    Ok(rows)
}
