//! The container: a POSIX (ustar) tar file of plain files with nothing in it that could be otherwise.
//!
//! ```text
//! per member   header (512 bytes: name, length, and constants) │ content │ zeros up to the next 512
//! at the end   1024 zeros
//! ```
//!
//! A header follows from the name and the length alone, so a reader checks every bit that is not content. Every tar reads it.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use parquet::{
    errors::ParquetError,
    file::reader::{ChunkReader, Length},
};
use sha2::{Digest as _, Sha256};

use super::{Member, hex};

/// What everything is a multiple of.
pub const BLOCK: u64 = 512;

/// The zeros of the end.
pub const END: u64 = 2 * BLOCK;

/// The header of a member.
///
/// # Errors
///
/// The name is none that a member can have.
pub fn header(name: &str, bytes: u64) -> anyhow::Result<[u8; BLOCK as usize]> {
    ensure!(is_plain(name), "{name:?} is no name of a member");
    let mut header = tar::Header::new_ustar();
    header.set_path(name).with_context(|| format!("the name {name:?}"))?;
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes);
    header.set_cksum();
    Ok(*header.as_bytes())
}

/// Whether a name stays below the directory that a bundle is unpacked in, whoever unpacks it.
pub fn is_plain(name: &str) -> bool {
    let is_part = |part: &str| {
        let fits = |letter: char| letter.is_ascii_alphanumeric() || "=-_.%~".contains(letter);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(fits)
    };
    name.split('/').all(is_part)
}

/// Zeros after so many bytes of content.
pub fn padding(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK) - bytes
}

/// Writes members, one after the other.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    members: Vec<Member>,
}

impl<W: Write> Writer<W> {
    pub fn new(out: W) -> Self {
        Self { out, members: Vec::new() }
    }

    /// Writes a member. Returns its digest.
    ///
    /// # Errors
    ///
    /// It cannot be written, or its name is none.
    pub fn add(&mut self, name: &str, content: &[u8], rows: Option<u64>) -> anyhow::Result<String> {
        let bytes = content.len() as u64;
        self.out.write_all(&header(name, bytes)?)?;
        self.out.write_all(content)?;
        self.out.write_all(&[0; BLOCK as usize][..padding(bytes) as usize])?;
        let sha256 = hex(Sha256::new_with_prefix(content));
        self.members.push(Member { name: name.to_owned(), bytes, sha256: sha256.clone(), rows });
        Ok(sha256)
    }

    /// What was written.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Ends the file. Returns where it was written to.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn finish(mut self) -> anyhow::Result<W> {
        self.out.write_all(&[0; END as usize])?;
        Ok(self.out)
    }
}

/// A part of a file.
#[derive(Clone, Debug)]
pub struct Section {
    /// The file.
    pub file: Arc<File>,
    /// Where it begins.
    pub begin: u64,
    /// Its length.
    pub bytes: u64,
}

impl Length for Section {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl Section {
    /// All of it; to be asked for of small ones only.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn content(&self) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        self.reader(0).read_to_end(&mut content)?;
        Ok(content)
    }

    fn reader(&self, from: u64) -> SectionReader {
        SectionReader { section: self.clone(), place: from.min(self.bytes) }
    }
}

impl ChunkReader for Section {
    type T = SectionReader;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(self.reader(start))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let is_in = start.checked_add(length as u64).is_some_and(|end| end <= self.bytes);
        if !is_in {
            return Err(ParquetError::EOF("a part beyond the end".to_owned()));
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, self.begin + start)?;
        Ok(bytes.into())
    }
}

/// Reads a section.
#[derive(Debug)]
pub struct SectionReader {
    section: Section,
    place: u64,
}

impl Read for SectionReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.section.bytes - self.place;
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = self.section.file.read_at(&mut buffer[..most], self.section.begin + self.place)?;
        self.place += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_where_they_are_unpacked() {
        for name in ["README.txt", "flows/date=2026-01-31/hour=07/000001.parquet", "policies/K/a%2Fb~0.yaml"]
        {
            assert!(is_plain(name), "{name}");
        }
        for name in
            ["", "/etc/passwd", "../up", "a/../b", "a//b", "a/", "./a", ".hidden", "a b", "a\\b", "a\nb"]
        {
            assert!(!is_plain(name), "{name:?}");
            assert!(header(name, 0).is_err(), "{name:?}");
        }
    }

    #[test]
    fn every_tar_reads_what_is_written() -> anyhow::Result<()> {
        let mut writer = Writer::new(Vec::new());
        let long = format!("policies/{}/{}.yaml", "n".repeat(63), "p".repeat(90));
        let contents = [("a", vec![]), ("b/c", vec![7; 512]), (&*long, vec![1; 513])];
        for (name, content) in &contents {
            writer.add(name, content, None)?;
        }
        let bytes = writer.finish()?;
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut found = Vec::new();
        for entry in archive.entries()? {
            let mut entry = entry?;
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            found.push((entry.path()?.display().to_string(), content));
        }
        let expected: Vec<_> = contents.map(|(name, content)| (name.to_owned(), content)).into();
        assert_eq!(found, expected);
        Ok(())
    }
}
