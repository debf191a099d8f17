//! A bundle while it is written: beside its place, and there only when it is whole.

use std::{
    fs::{self, File},
    io::{self, BufWriter},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use arrow::array::RecordBatch;
use parquet::arrow::ArrowWriter;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{
    ColumnVersions, FORMAT, MANIFEST, Manifest, README, SEAL, USAGE, archive::Writer, flows::Told,
    objects::History, seal, wall,
};
use crate::{
    audit::usage::Rows,
    model::Timestamp,
    store::{
        document,
        flows::{ask::Scanned, files, filter::Filter, roll::properties, segment::Mark, table::Table},
    },
};

/// What is said to who unpacks a bundle.
const README_TEXT: &str = include_str!("README.txt");

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What the incident is called.
    pub incident: String,
    /// Flows began at this time or later.
    pub since: Timestamp,
    /// And before this one.
    pub until: Timestamp,
    /// Which of them.
    pub filter: Filter,
    /// From where.
    pub stores: Vec<String>,
    /// When.
    pub now: Timestamp,
}

/// A bundle that is not whole yet. Dropped, nothing is left of it.
#[derive(Debug)]
pub struct Bundle {
    path: PathBuf,
    part: Part,
    archive: Writer<BufWriter<File>>,
    /// Tables' files so far: their names are numbers.
    files: u64,
}

/// A file that is removed unless it gets its name.
#[derive(Debug)]
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        // Gone where it has its name.
        let _ = fs::remove_file(&self.0);
    }
}

impl Bundle {
    /// Begins one.
    ///
    /// # Errors
    ///
    /// Something has the name already, or it cannot be written there.
    pub fn create(path: &Path) -> anyhow::Result<Self> {
        if fs::symlink_metadata(path).is_ok() {
            bail!("{}", taken(path));
        }
        let name = path.file_name().with_context(|| format!("{} is no name of a file", path.display()))?;
        let part = format!(".{}.{}.part", name.to_string_lossy(), std::process::id());
        let part = path.with_file_name(part);
        let file = File::create_new(&part).with_context(|| format!("cannot make {}", part.display()))?;
        let archive = Writer::new(BufWriter::with_capacity(1 << 20, file));
        let mut bundle = Self { path: path.to_owned(), part: Part(part), archive, files: 0 };
        bundle.add(README, README_TEXT.as_bytes(), None)?;
        Ok(bundle)
    }

    /// Adds a member. Returns its digest.
    pub(super) fn add(&mut self, name: &str, content: &[u8], rows: Option<u64>) -> anyhow::Result<String> {
        let added = self.archive.add(name, content, rows);
        added.with_context(|| format!("cannot write {}", self.part.0.display()))
    }

    /// Adds a file of a table, in the partition of an hour. The mark is what it tells.
    pub(super) fn add_table(
        &mut self,
        table: &Table,
        hour: i64,
        mark: &Mark,
        batches: &[RecordBatch],
    ) -> anyhow::Result<()> {
        let mut file = ArrowWriter::try_new(Vec::new(), (table.schema)(), Some(properties(table)))?;
        for batch in batches {
            file.write(batch).context("a row group")?;
        }
        let rows = batches.iter().map(|batch| batch.num_rows() as u64).sum();
        self.add_file(table, hour, mark, file, rows)
    }

    /// Ends a file of a table that has so many rows.
    pub(super) fn add_file(
        &mut self,
        table: &Table,
        hour: i64,
        mark: &Mark,
        mut file: ArrowWriter<Vec<u8>>,
        rows: u64,
    ) -> anyhow::Result<()> {
        let told = files::Told { mark: mark.clone(), last: mark.number };
        file.append_key_value_metadata(told.key_value()?);
        let content = file.into_inner().context("the end of a Parquet file")?;
        self.files += 1;
        let name = format!("{}/{}/{:06}.parquet", table.name, files::partition(hour).display(), self.files);
        self.add(&name, &content, Some(rows)).map(drop)
    }

    /// Adds rules' use.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn add_usage(&mut self, rows: &Rows) -> anyhow::Result<()> {
        self.add(USAGE, &document::write(rows), Some(rows.rules.len() as u64)).map(drop)
    }

    /// Seals it and gives it its name. Returns what it says of itself, and the digest of that.
    ///
    /// # Errors
    ///
    /// It cannot be written, or something has its name by now.
    pub fn finish(
        mut self,
        asked: Asked,
        scanned: &Scanned,
        flows: Told,
        history: History,
    ) -> anyhow::Result<(Manifest, String)> {
        let unreadable: Vec<_> = scanned.unreadable.iter().chain(&history.unreadable).collect();
        let is_complete = flows.coverage.is_complete() && history.missing.is_empty() && unreadable.is_empty();
        let mut missing = Vec::new();
        if !flows.coverage.is_complete() {
            missing.extend(flows.coverage.sentences());
        }
        missing.extend(history.missing);
        missing.extend(unreadable.iter().map(|(path, reason)| {
            format!("{} could not be read, what it held is missing: {reason}", path.display())
        }));
        let manifest = Manifest {
            format: FORMAT,
            incident: asked.incident,
            created: wall(asked.now),
            netaudit: env!("CARGO_PKG_VERSION").to_owned(),
            columns: ColumnVersions::OURS,
            since: wall(asked.since),
            until: wall(asked.until),
            filter: Filter { from: None, until: None, ..asked.filter },
            stores: asked.stores,
            complete: is_complete,
            missing,
            coverage: flows.coverage,
            unreadable: unreadable
                .into_iter()
                .map(|(path, reason)| super::Unreadable { path: path.clone(), reason: reason.clone() })
                .collect(),
            flows: flows.rows,
            runs: history.runs,
            policies: history.policies,
            members: self.archive.members().to_vec(),
        };
        let mut text = serde_json::to_string_pretty(&manifest)?;
        text.push('\n');
        let digest = self.add(MANIFEST, text.as_bytes(), None)?;
        self.add(SEAL, seal(&digest).as_bytes(), None)?;
        let Self { path, part, archive, .. } = self;
        let written = || -> anyhow::Result<()> {
            let file = archive.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
            Ok(file.sync_all()?)
        };
        written().with_context(|| format!("cannot write {}", part.0.display()))?;
        publish(&part.0, &path)?;
        Ok((manifest, digest))
    }
}

fn taken(path: &Path) -> String {
    format!("{} is there already, and evidence is not overwritten: give another name", path.display())
}

/// Gives a file its name, unless somebody else has it.
fn publish(part: &Path, path: &Path) -> anyhow::Result<()> {
    match renameat_with(CWD, part, CWD, path, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        Err(rustix::io::Errno::EXIST) => bail!("{}", taken(path)),
        // Some file systems cannot do both at once.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if !path.exists() => {
            fs::rename(part, path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        Err(error) => return Err(error).with_context(|| format!("cannot make {}", path.display())),
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .with_context(|| format!("cannot sync {}", directory.display()))
}
