//! What of a directory is in a bucket already: known here, as an agent may put objects there and not look at them.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::bucket::Bucket;

/// The names of what is in the bucket, a line each, below the bucket's own and where it is.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    pub known: BTreeSet<String>,
}

impl Journal {
    /// Reads what is known of files that are still there. Another bucket has none of them yet.
    ///
    /// # Errors
    ///
    /// The file cannot be read or written.
    pub fn open(store: &Path, bucket: &Bucket) -> anyhow::Result<Self> {
        let path = store.join("uploaded");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let mut lines = text.lines();
        let is_same = lines.next() == Some(&bucket.whole_name());
        // A line that a crash has torn is no file's name.
        let known = lines.filter(|name| is_same && store.join(name).is_file()).map(str::to_owned).collect();
        let journal = Self { path, known };
        journal.write(bucket).with_context(|| format!("cannot write {}", journal.path.display()))?;
        Ok(journal)
    }

    fn write(&self, bucket: &Bucket) -> io::Result<()> {
        let new = self.path.with_extension("new");
        let lines = self.known.iter().map(|name| format!("{name}\n"));
        fs::write(&new, lines.fold(format!("{}\n", bucket.whole_name()), |text, line| text + &line))?;
        fs::rename(&new, &self.path)
    }

    /// A file of this name is in the bucket.
    ///
    /// # Errors
    ///
    /// That cannot be written down: the file may be uploaded once more.
    pub fn note(&mut self, key: &str) -> anyhow::Result<()> {
        self.known.insert(key.to_owned());
        let note = || -> io::Result<()> {
            let mut file = OpenOptions::new().append(true).create(true).open(&self.path)?;
            file.write_all(format!("{key}\n").as_bytes())
        };
        // Not as an error of reading: it is the directory that is wrong, and not the file.
        note().map_err(|error| anyhow::anyhow!("cannot write {}: {error}", self.path.display()))
    }
}
