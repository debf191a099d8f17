//! Directories and files of manifests to objects.
//!
//! One document that does not parse costs only itself: it is told with its file, document, line and reason, and an
//! object is put in its place that makes the verdicts unknown which it could change.

use std::{
    collections::{BTreeMap, HashSet},
    fmt, fs, io,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;

use super::{
    content,
    convert::{self, Converted},
    convert_kinds,
    json::Strict,
    manifests_text::{self, Document},
};
use crate::{
    cluster::{Broken, Content, Kind, Object, ObjectKey},
    policy::Warning,
};

/// How names of manifests end.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// Where an object was read.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Source {
    /// The file, as found below the path that was given.
    pub file: Arc<Path>,
    /// Which document of the file, from 1.
    pub document: u32,
    /// The line that the document begins on, from 1.
    pub line: u32,
}

/// `policies/web.yaml:14 (document 2)`.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} (document {})", self.file.display(), self.line, self.document)
    }
}

/// A document that could not be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ManifestError {
    /// Its file.
    pub file: Arc<Path>,
    /// Which document of the file, from 1; 0 for the whole file.
    pub document: u32,
    /// The line of the error, from 1; where that is not known, the document's first; 0 for the whole file.
    pub line: u32,
    /// The column of the error, from 1; 0 where it is not known.
    pub column: u32,
    /// What is wrong.
    pub reason: String,
}

/// `policies/web.yaml:17:3 (document 2): reason`.
impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if self.column > 0 {
            write!(f, ":{}", self.column)?;
        }
        if self.document > 0 {
            write!(f, " (document {})", self.document)?;
        }
        write!(f, ": {}", self.reason)
    }
}

impl From<&ManifestError> for Warning {
    fn from(error: &ManifestError) -> Self {
        let text = error.to_string();
        let place = text.strip_suffix(error.reason.as_str()).unwrap_or_default().trim_end_matches(": ");
        Self { object: place.into(), path: String::new(), reason: error.reason.clone() }
    }
}

/// What files gave.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Loaded {
    /// Objects in the order of files and documents; broken ones stand for documents in `errors`.
    pub documents: Vec<(Source, Object)>,
    /// What could not be read.
    pub errors: Vec<ManifestError>,
    /// What was passed over though somebody may have meant it to count: nothing stands for it.
    pub passed_over: Vec<ManifestError>,
    /// Objects of kinds that change no verdict, counted by kind.
    pub ignored: BTreeMap<String, usize>,
    /// How many files were read.
    pub files: usize,
    /// What is kept of the objects that can be read, in the same order; `None` where that was not asked for.
    pub contents: Option<Vec<Content>>,
}

impl Loaded {
    /// The objects alone.
    pub fn into_objects(self) -> Vec<Object> {
        self.documents.into_iter().map(|(_, object)| object).collect()
    }
}

/// A path that was asked for and cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", path.display())]
pub struct LoadError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Reads every file named and every `.yaml`, `.yml` and `.json` file below every directory named, in sorted order.
/// Names that begin with a dot are left out, as mounted ConfigMaps keep their versions in such directories.
///
/// # Errors
/// Only for a path that is itself not there or cannot be read; a file below a directory that cannot be read is told in
/// [`Loaded::errors`].
pub fn load<P: AsRef<Path>>(paths: &[P]) -> Result<Loaded, LoadError> {
    load_keeping(paths, false)
}

/// As [`load`]; with `keep` also what is kept of each object.
///
/// # Errors
/// As [`load`].
pub fn load_keeping<P: AsRef<Path>>(paths: &[P], keep: bool) -> Result<Loaded, LoadError> {
    let mut loaded = Loaded { contents: keep.then(Vec::new), ..Loaded::default() };
    for path in paths {
        let path = path.as_ref();
        let fail = |source| LoadError { path: path.to_owned(), source };
        if fs::metadata(path).map_err(fail)?.is_dir() {
            fs::read_dir(path).map_err(fail)?;
            let mut files = Vec::new();
            walk(path, &mut files, &mut HashSet::new(), &mut loaded);
            files.sort();
            for file in files {
                match read_regular(&file) {
                    Ok(bytes) => read(&file, &bytes, &mut loaded),
                    Err(error) => unreadable(&file, &error, &mut loaded),
                }
            }
        } else {
            read(path, &fs::read(path).map_err(fail)?, &mut loaded);
        }
    }
    Ok(loaded)
}

/// The files below a directory that [`load`] reads, in order; without those of a directory that cannot be read.
pub fn files_below(directory: &Path) -> Vec<PathBuf> {
    all_below(directory).0
}

/// The files below a directory that [`load`] reads, in order, and what of it cannot be read.
pub fn all_below(directory: &Path) -> (Vec<PathBuf>, Vec<ManifestError>) {
    let (mut files, mut loaded) = (Vec::new(), Loaded::default());
    walk(directory, &mut files, &mut HashSet::new(), &mut loaded);
    files.sort();
    (files, loaded.errors)
}

/// Reads one text as if it were a file of this name.
pub fn load_text(file: &str, text: &str) -> Loaded {
    let mut loaded = Loaded::default();
    read(Path::new(file), text.as_bytes(), &mut loaded);
    loaded
}

/// Reads files that are not in the file system: their names and bytes.
pub fn load_files<'a>(files: impl IntoIterator<Item = (&'a Path, &'a [u8])>) -> Loaded {
    let mut loaded = Loaded::default();
    for (name, bytes) in files {
        read(name, bytes, &mut loaded);
    }
    loaded
}

/// Whether [`load`] reads a file of this name below a directory.
pub fn is_read(below: &Path) -> bool {
    let is_hidden = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with('.');
    let extension = below.extension().unwrap_or_default().to_ascii_lowercase();
    !below.iter().any(is_hidden) && EXTENSIONS.iter().any(|it| extension == *it)
}

/// The content of a regular file. Anything else is refused: to read a pipe or a device may take for ever.
///
/// # Errors
/// As reading has them, and for anything else.
pub fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let file_type = fs::metadata(path)?.file_type();
    if file_type.is_file() {
        return fs::read(path);
    }
    let what = if file_type.is_fifo() {
        "a named pipe"
    } else if file_type.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(io::Error::other(format!(
        "{what}, not a regular file; remove it, or give it a name that does not end like a manifest's"
    )))
}

/// Collects files below a directory. Links are followed, but no directory is entered twice.
fn walk(directory: &Path, files: &mut Vec<PathBuf>, entered: &mut HashSet<PathBuf>, loaded: &mut Loaded) {
    if let Ok(real) = fs::canonicalize(directory)
        && !entered.insert(real)
    {
        return;
    }
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => return unreadable(directory, &error, loaded),
    };
    for entry in entries {
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(error) => return unreadable(directory, &error, loaded),
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') {
            continue;
        }
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => walk(&path, files, entered, loaded),
            _ if is_read(Path::new(&*name)) => files.push(path),
            _ => {}
        }
    }
}

/// A file that may hold anything: its verdicts cannot be told.
fn unreadable(path: &Path, error: &io::Error, loaded: &mut Loaded) {
    broken_file(path, format!("cannot be read: {error}"), loaded);
}

fn broken_file(path: &Path, reason: String, loaded: &mut Loaded) {
    let file: Arc<Path> = path.into();
    loaded.errors.push(ManifestError {
        file: file.clone(),
        document: 0,
        line: 0,
        column: 0,
        reason: reason.clone(),
    });
    let broken = Broken {
        key: None,
        kind: None,
        namespace: None,
        service: None,
        ips: Default::default(),
        source: path.display().to_string().into(),
        reason: reason.into(),
    };
    loaded.documents.push((Source { file, document: 0, line: 0 }, Object::Broken(broken)));
}

fn read(path: &Path, bytes: &[u8], loaded: &mut Loaded) {
    loaded.files += 1;
    let Ok(text) = std::str::from_utf8(bytes) else {
        return broken_file(path, "is not UTF-8 text".to_owned(), loaded);
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let file: Arc<Path> = path.into();
    if is_kustomization(path) {
        *loaded.ignored.entry("Kustomization".to_owned()).or_default() += 1;
        return;
    }
    each_document(&file, text, |source, text, value| match value {
        Ok(Value::Null) if !is_json(&source.file) => {}
        Ok(value) => add(&value, source, loaded),
        Err(unread) => match manifests_text::kind_of_no_concern(text).filter(|_| !unread.is_json) {
            Some(kind) => *loaded.ignored.entry(kind.to_owned()).or_default() += 1,
            None => add_unparsed(text, source, unread.line, unread.column, unread.reason, loaded),
        },
    });
}

/// A document that does not parse.
pub(super) struct Unread {
    pub line: u32,
    pub column: u32,
    pub reason: String,
    pub is_json: bool,
}

pub(super) fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|it| it.eq_ignore_ascii_case("json"))
}

/// Parses a file document by document, without its byte order mark: each with its text, which is a part of that of the file. A
/// kustomization has none.
pub(super) fn each_document<'a>(
    file: &Arc<Path>,
    text: &'a str,
    mut take: impl FnMut(Source, &'a str, Result<Value, Unread>),
) {
    if is_json(file) {
        return each_json(file, text, take);
    }
    if is_kustomization(file) {
        return;
    }
    for (number, document) in (1..).zip(manifests_text::split(text)) {
        let source = Source { file: file.clone(), document: number, line: document.line };
        let unread = |(line, column, reason)| Unread { line, column, reason, is_json: false };
        take(source, document.text, parse_yaml(&document).map_err(unread));
    }
}

/// One or more JSON values, one after the other.
fn each_json<'a>(
    file: &Arc<Path>,
    text: &'a str,
    mut take: impl FnMut(Source, &'a str, Result<Value, Unread>),
) {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Strict>();
    let mut start = 0;
    for document in 1.. {
        start += text[start..].len() - text[start..].trim_start().len();
        let line = 1 + text[..start].matches('\n').count() as u32;
        let source = Source { file: file.clone(), document, line };
        match values.next() {
            None => return,
            Some(Ok(Strict(value))) => take(source, &text[start..values.byte_offset()], Ok(value)),
            Some(Err(error)) => {
                let (line, column) = (error.line() as u32, error.column() as u32);
                let reason = error.to_string();
                let reason = reason.split(" at line ").next().unwrap_or_default().to_owned();
                return take(source, &text[start..], Err(Unread { line, column, reason, is_json: true }));
            }
        }
        start = values.byte_offset();
    }
}

/// A kustomization needs no kind, and says nothing that is applied.
pub fn is_kustomization(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    ["kustomization.yaml", "kustomization.yml", "Kustomization"].iter().any(|it| name == *it)
}

/// The value of a document, or the line and column in the file and the reason why it has none.
fn parse_yaml(document: &Document<'_>) -> Result<Value, (u32, u32, String)> {
    let usual = serde_saphyr::Budget::default();
    let size = document.text.len();
    // A node takes a byte of text at least and gives two events at most, so that text alone never goes beyond this.
    // What a little text can blow up, aliases and depth, keeps its limits.
    let budget = serde_saphyr::budget! {
        max_nodes: usual.max_nodes.saturating_add(size),
        max_events: usual.max_events.saturating_add(size.saturating_mul(2)),
        max_total_scalar_bytes: usual.max_total_scalar_bytes.saturating_add(size),
        // One list of ports for hundreds of rules is no bomb. What aliases make of the whole keeps its own limit.
        enforce_alias_anchor_ratio: false,
    };
    let options = serde_saphyr::options! { with_snippet: false, budget: budget };
    serde_saphyr::from_str_with_options(document.text, options).map_err(|error| {
        let (line, column) = match error.location() {
            Some(at) if at.line() > 0 => (at.line() as u32, at.column() as u32),
            _ => (1, 0),
        };
        (document.line + line - 1, column, for_people(&error.without_snippet().to_string()))
    })
}

/// What the parser says: its first line without the position, which counts from the document, and without advice for
/// programmers.
fn for_people(reason: &str) -> String {
    let reason = reason.lines().next().unwrap_or_default();
    if reason.starts_with("multiple YAML documents") {
        return "more than one document: each but the first begins with --- on a line of its own".to_owned();
    }
    if let Some(limit) = reason.strip_prefix("budget breached: ") {
        return format!("is too big once its aliases are followed, or too deep ({limit})");
    }
    let ends = [" at line ", ", set ", "; use "];
    let end = ends.iter().filter_map(|it| reason.find(it)).min().unwrap_or(reason.len());
    reason[..end].to_owned()
}

fn add(value: &Value, source: Source, loaded: &mut Loaded) {
    if let Some(contents) = &mut loaded.contents {
        content::of_document(value, contents);
    }
    for converted in convert::document(value, &source.to_string().into()) {
        match converted {
            Converted::Ignored(kind) => {
                let count = loaded.ignored.entry(kind.clone()).or_default();
                *count += 1;
                // Once is enough: there may be hundreds.
                if *count == 1 && convert_kinds::is_other_policy(&kind) {
                    let reason =
                        format!("{kind}: policies of this kind are not read, and no verdict heeds them");
                    loaded.passed_over.push(told(&source, reason));
                }
            }
            Converted::Nothing(reason) => loaded.passed_over.push(told(&source, reason)),
            Converted::Object(object) => {
                if let Object::Broken(broken) = &object {
                    let reason = match &broken.key {
                        Some(key) => format!("{key}: {}", broken.reason),
                        None => broken.reason.to_string(),
                    };
                    loaded.errors.push(told(&source, reason));
                }
                loaded.documents.push((source.clone(), object));
            }
        }
    }
}

/// What is wrong somewhere in a document.
fn told(source: &Source, reason: String) -> ManifestError {
    ManifestError {
        file: source.file.clone(),
        document: source.document,
        line: source.line,
        column: 0,
        reason,
    }
}

/// Puts something in the place of a document that does not parse, unless it surely is of a kind that changes nothing.
fn add_unparsed(text: &str, source: Source, line: u32, column: u32, reason: String, loaded: &mut Loaded) {
    let (file, document) = (source.file.clone(), source.document);
    loaded.errors.push(ManifestError { file, document, line, column, reason: reason.clone() });
    let guess = manifests_text::guess(text);
    let version = guess.api_version.as_deref();
    let known = guess.kind.as_deref().and_then(|name| {
        let is_of_group = |kind: &Kind| version.is_none_or(|it| kind.is_of_group(it));
        let called = || Kind::called(name).find(is_of_group).or_else(|| Kind::called(name).next());
        called().or_else(|| convert_kinds::meant(version?, name))
    });
    if let (Some(name), None) = (&guess.kind, known) {
        *loaded.ignored.entry(name.clone()).or_default() += 1;
        return;
    }
    let kind = known.or_else(|| version.and_then(convert_kinds::widest_policy));
    let key = match (known, &guess.namespace, &guess.name) {
        (Some(kind), namespace, Some(name)) if namespace.is_some() || !kind.is_namespaced() => {
            Some(ObjectKey::new(kind, namespace.as_deref().unwrap_or_default(), name))
        }
        _ => None,
    };
    let broken = Broken {
        key,
        kind,
        namespace: guess.namespace.filter(|_| kind.is_some_and(Kind::is_namespaced)).map(Into::into),
        service: None,
        ips: guess.ips,
        source: source.to_string().into(),
        reason: format!("line {line}: {reason}").into(),
    };
    loaded.documents.push((source, Object::Broken(broken)));
}
