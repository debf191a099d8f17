//! Whether a bundle is what it says: all that is wrong with it, not only what is wrong first.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, bail, ensure};
use arrow::array::RecordBatch;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use sha2::{Digest as _, Sha256};

use super::{
    ColumnVersions, FORMAT, MANIFEST, Manifest, Member, SEAL, USAGE,
    archive::{BLOCK, END, Section, header, padding},
    flows::times_of,
    hex, seal, time,
};
use crate::store::{
    document,
    flows::{
        Coverage, files,
        segment::Mark,
        table::{FLOWS, OBJECTS, Table},
    },
    guard::{guarded, next_batch},
    history::read::{Wanted, changes_of},
};

/// A manifest that is larger than this is none.
const MOST_MANIFEST: u64 = 1 << 30;

/// What was found in a bundle.
#[derive(Debug, Default)]
pub struct Verified {
    /// All that is wrong, in sentences. It is sound where there is nothing.
    pub problems: Vec<String>,
    /// The digest of the manifest that is in it.
    pub digest: Option<String>,
    /// The manifest, where it can be read.
    pub manifest: Option<Manifest>,
    /// Members that were found.
    pub members: usize,
}

/// A member that was found.
struct Found {
    name: String,
    sha256: String,
    section: Section,
}

/// Checks a bundle; `digest` is what its manifest's is known to be from elsewhere.
///
/// # Errors
///
/// It cannot be read, is no bundle, or one of another version.
pub fn verify(path: &Path, digest: Option<&str>) -> anyhow::Result<Verified> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    ensure!(
        !file.metadata()?.is_dir(),
        "{} is a directory: give the bundle itself; what is unpacked is checked as its README.txt says",
        path.display()
    );
    let mut verified = Verified::default();
    let found =
        members(&file, &mut verified.problems).with_context(|| format!("cannot read {}", path.display()))?;
    verified.members = found.len();
    check(&found, digest, &mut verified).with_context(|| format!("cannot check {}", path.display()))?;
    Ok(verified)
}

/// Reads the container: every byte of it is a header that could not be otherwise, content, or zeros.
fn members(file: &File, problems: &mut Vec<String>) -> anyhow::Result<Vec<Found>> {
    let length = file.metadata()?.len();
    let shared = Arc::new(file.try_clone()?);
    let mut input = BufReader::with_capacity(1 << 20, file);
    let mut found: Vec<Found> = Vec::new();
    let mut place = 0;
    loop {
        let mut block = [0; BLOCK as usize];
        if length.saturating_sub(place) < BLOCK {
            ensure!(place > 0, "it is no bundle of netaudit's: it has {length} bytes");
            problems.push(format!("it ends at byte {length}, and should go on: it is truncated"));
            return Ok(found);
        }
        input.read_exact(&mut block)?;
        if place == 0 {
            let magic = &block[257..262];
            ensure!(magic == b"ustar" || block.starts_with(b"README.txt"), "it is no bundle of netaudit's");
        }
        if block == [0; BLOCK as usize] {
            let mut rest = Vec::new();
            input.take(END).read_to_end(&mut rest)?;
            if rest.len() as u64 + BLOCK < END {
                problems.push(format!("it ends at byte {length}, and should go on: it is truncated"));
            } else if rest.len() as u64 + BLOCK > END || rest.iter().any(|byte| *byte != 0) {
                problems.push(format!("what follows its end at byte {} is no part of it", place + END));
            }
            return Ok(found);
        }
        let told = tar::Header::from_byte_slice(&block);
        let name = String::from_utf8_lossy(&told.path_bytes()).into_owned();
        let sum: u32 = block.iter().enumerate().map(|(place, byte)| sum_of(place, *byte)).sum();
        let is_whole = told.cksum().is_ok_and(|told| told == sum);
        let Some(bytes) = told.entry_size().ok().filter(|_| is_whole) else {
            problems.push(format!(
                "the header at byte {place} is damaged: what comes from there on cannot be read"
            ));
            return Ok(found);
        };
        if header(&name, bytes).ok() != Some(block) {
            problems.push(format!(
                "the header of {name:?} at byte {place} is not what netaudit writes: no plain file, another name, or changed"
            ));
        }
        let begin = place + BLOCK;
        let end = begin.checked_add(bytes).and_then(|end| end.checked_add(padding(bytes)));
        let Some(end) = end.filter(|end| *end <= length) else {
            problems.push(format!(
                "{name:?} should have {bytes} bytes, and the file ends before: it is truncated"
            ));
            return Ok(found);
        };
        let sha256 = digest_of(&mut (&mut input).take(bytes))?;
        let mut rest = Vec::new();
        (&mut input).take(padding(bytes)).read_to_end(&mut rest)?;
        if rest.iter().any(|byte| *byte != 0) {
            problems
                .push(format!("between {name:?} and what follows it is something at byte {}", begin + bytes));
        }
        found.push(Found { name, sha256, section: Section { file: shared.clone(), begin, bytes } });
        place = end;
    }
}

/// What a byte of a header counts in its checksum: the checksum's own place counts as blanks.
fn sum_of(place: usize, byte: u8) -> u32 {
    if (148..156).contains(&place) { u32::from(b' ') } else { u32::from(byte) }
}

fn digest_of(input: &mut impl Read) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match input.read(&mut buffer)? {
            0 => return Ok(hex(digest)),
            read => digest.update(&buffer[..read]),
        }
    }
}

/// Compares what is there with what the manifest says, and that with what is known of it.
fn check(found: &[Found], expected: Option<&str>, verified: &mut Verified) -> anyhow::Result<()> {
    let problems = &mut verified.problems;
    let mut by_name: BTreeMap<&str, &Found> = BTreeMap::new();
    for member in found {
        if by_name.insert(&member.name, member).is_some() {
            problems.push(format!(
                "{:?} is there more than once: which one is meant is not certain",
                member.name
            ));
        }
    }
    match by_name.get(MANIFEST) {
        None => problems.push(format!("{MANIFEST} is missing: nothing tells what should be there")),
        Some(manifest) => {
            verified.digest = Some(manifest.sha256.clone());
            if let Some(expected) = expected.filter(|it| !it.eq_ignore_ascii_case(&manifest.sha256)) {
                problems.push(format!(
                    "the digest of {MANIFEST} is {}, and should be {expected}: this is another bundle, or it was changed",
                    manifest.sha256
                ));
            }
            match by_name.get(SEAL) {
                None => problems.push(format!("{SEAL} is missing")),
                Some(told) => {
                    let seal = seal(&manifest.sha256);
                    if told.section.bytes != seal.len() as u64 || told.section.content()? != seal.as_bytes() {
                        problems.push(format!("{SEAL} does not say the digest of {MANIFEST}"));
                    }
                }
            }
            ensure!(manifest.section.bytes <= MOST_MANIFEST, "{MANIFEST} is larger than a manifest can be");
            verified.manifest = read_manifest(&manifest.section.content()?, problems)?;
        }
    }
    let Some(manifest) = &verified.manifest else { return Ok(()) };
    check_members(found, &by_name, manifest, problems);
    let mut tables = Tables { manifest, rows: 0, marks: Vec::new(), problems };
    let mut seen = BTreeSet::new();
    for told in &manifest.members {
        let member = by_name.get(&*told.name).filter(|found| found.sha256 == told.sha256);
        if let Some(found) = member.filter(|_| seen.insert(&told.name))
            && let Err(error) = tables.check(told, &found.section)
        {
            tables.problems.push(format!("{:?} cannot be read: {error:#}", told.name));
        }
    }
    let Tables { rows, marks, .. } = tables;
    if problems.is_empty() {
        if rows != manifest.flows {
            problems.push(format!("{MANIFEST} tells of {} flows, and {rows} are there", manifest.flows));
        }
        let window = (Some(time(manifest.since)), Some(time(manifest.until)));
        if Coverage::of(&marks, window.0, window.1) != manifest.coverage {
            problems.push(format!("{MANIFEST} tells of other losses than the files of flows"));
        }
        if manifest.complete != (manifest.missing.is_empty() && manifest.coverage.is_complete()) {
            problems.push(format!("{MANIFEST} contradicts itself about what is missing"));
        }
    }
    Ok(())
}

/// The manifest; `None`, and a problem, where it is none.
fn read_manifest(text: &[u8], problems: &mut Vec<String>) -> anyhow::Result<Option<Manifest>> {
    #[derive(serde::Deserialize)]
    struct Version {
        format: u32,
        netaudit: String,
    }
    if let Ok(Version { format, netaudit }) = serde_json::from_slice(text)
        && format != FORMAT
    {
        bail!(
            "it is of format {format}, and this netaudit reads format {FORMAT}: use netaudit {netaudit:?}, which wrote it"
        );
    }
    match serde_json::from_slice(text) {
        Ok(manifest) => Ok(Some(manifest)),
        Err(error) => {
            problems.push(format!("{MANIFEST} cannot be read: {error}"));
            Ok(None)
        }
    }
}

fn check_members(
    found: &[Found],
    by_name: &BTreeMap<&str, &Found>,
    manifest: &Manifest,
    problems: &mut Vec<String>,
) {
    let mut told: BTreeSet<&str> = BTreeSet::new();
    for member in &manifest.members {
        if !told.insert(&member.name) || [MANIFEST, SEAL].contains(&&*member.name) {
            problems.push(format!("{MANIFEST} lists {:?} more than once", member.name));
        }
        match by_name.get(&*member.name) {
            None => problems.push(format!("{:?} is missing", member.name)),
            Some(found) if found.section.bytes != member.bytes => problems.push(format!(
                "{:?} has {} bytes, and should have {}",
                member.name, found.section.bytes, member.bytes
            )),
            Some(found) if found.sha256 != member.sha256 => {
                problems.push(format!("{:?} was changed: its sha256 is {}", member.name, found.sha256));
            }
            Some(_) => {}
        }
    }
    for member in found {
        if !told.contains(&*member.name) && ![MANIFEST, SEAL].contains(&&*member.name) {
            problems.push(format!("{:?} does not belong to it", member.name));
        }
    }
    let order = manifest.members.iter().map(|member| &*member.name).chain([MANIFEST, SEAL]);
    if problems.is_empty() && !order.eq(found.iter().map(|member| &*member.name)) {
        problems.push("its members are in another order than they were written".to_owned());
    }
}

/// What the tables of a bundle hold.
struct Tables<'a> {
    manifest: &'a Manifest,
    /// Flows.
    rows: u64,
    /// Of what time files of flows tell.
    marks: Vec<Mark>,
    problems: &'a mut Vec<String>,
}

impl Tables<'_> {
    fn check(&mut self, told: &Member, section: &Section) -> anyhow::Result<()> {
        let rows = match told.name.split('/').next().unwrap_or_default() {
            "flows" => self.flows(told, section)?,
            "objects" => {
                let columns = ColumnVersions::OURS.objects;
                ensure!(
                    self.manifest.columns.objects == columns,
                    "{}",
                    other(self.manifest.columns.objects, columns)
                );
                table(section, &OBJECTS, &mut |batch| changes_of(batch, Wanted::default(), &mut |_| Ok(())))?
                    .0
            }
            USAGE => document::read(&section.content()?)?.rules.len() as u64,
            _ => return Ok(()),
        };
        if told.rows != Some(rows) {
            let should = told
                .rows
                .map_or("no number of rows is told".to_owned(), |rows| format!("should have {rows}"));
            self.problems.push(format!("{:?} has {rows} rows, and {should}", told.name));
        }
        Ok(())
    }

    fn flows(&mut self, told: &Member, section: &Section) -> anyhow::Result<u64> {
        let columns = ColumnVersions::OURS.flows;
        ensure!(self.manifest.columns.flows == columns, "{}", other(self.manifest.columns.flows, columns));
        let mut filter = self.manifest.filter.clone();
        (filter.from, filter.until) = (Some(time(self.manifest.since)), Some(time(self.manifest.until)));
        let (mut outside, mut elsewhere) = (0, 0);
        let (rows, mark) = table(section, &FLOWS, &mut |batch| {
            let selected = filter.selects(batch)?;
            outside += selected.len() - selected.true_count();
            let (first, last) = times_of(batch)?;
            let is_in = |at: crate::model::Timestamp| {
                let partition = files::partition(files::hour_of(at));
                told.name.starts_with(&format!("flows/{}/", partition.display()))
            };
            if batch.num_rows() > 0 && !(is_in(first) && is_in(last)) {
                elsewhere += batch.num_rows();
            }
            Ok(())
        })?;
        if outside > 0 {
            self.problems.push(format!(
                "{:?} has {outside} flows that are not of the window, or not what the filter asks for",
                told.name
            ));
        }
        if elsewhere > 0 {
            self.problems.push(format!("{:?} has flows of another hour", told.name));
        }
        self.rows += rows;
        self.marks.push(mark);
        Ok(rows)
    }
}

fn other(theirs: u32, ours: u32) -> String {
    format!(
        "its columns are of version {theirs}, and this netaudit reads version {ours}: use the one that wrote it"
    )
}

/// Reads a file of a table. Returns its rows and what it tells of its time.
fn table(
    section: &Section,
    table: &Table,
    each: &mut dyn FnMut(&RecordBatch) -> anyhow::Result<()>,
) -> anyhow::Result<(u64, Mark)> {
    let (metadata, told) = files::what_it_says(section, table)?;
    ensure!(
        metadata.schema().fields() == (table.schema)().fields(),
        "its columns are not those of version {}",
        table.version
    );
    let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(section.clone(), metadata);
    let mut reader = guarded(|| Ok(builder.build()?))?;
    let mut rows = 0;
    while let Some(batch) = next_batch(&mut reader)? {
        rows += batch.num_rows() as u64;
        each(&batch)?;
    }
    Ok((rows, told.mark))
}
