//! Manifests with the place of each object, for those who tell people where something is wrong.
//!
//! What is a document, an object and a list is decided by the same code as everywhere.

use std::{ops::Range, path::Path, sync::Arc};

use serde_json::{Map, Value};

use super::{
    convert::{self, Converted},
    convert_kinds,
    convert_lists::List,
    manifests::{self, ManifestError, Source},
    manifests_text, workloads,
};
use crate::{
    advise::{
        lint::{Code, Item, Manifests, UnknownCode, What},
        text::marks::{Marks, Point},
    },
    cluster::Object,
};

/// The annotation that silences findings of an object: codes, and after a colon the reason.
pub const IGNORE: &str = "netaudit/lint-ignore";

/// What one file gave.
#[derive(Debug, Default)]
pub struct Placed {
    /// Its objects.
    pub manifests: Manifests,
    /// Where each of them was read.
    pub sources: Vec<Source>,
    /// What could not be read.
    pub errors: Vec<ManifestError>,
    /// Documents that could not be read either, and of which nothing says that they are objects that matter here.
    pub unlike: Vec<ManifestError>,
    /// Annotations that could not be read: the objects could.
    pub mistyped: Vec<ManifestError>,
    /// Whether what seems to be a patch was [passed over](Self::pass_over_patches).
    pub has_patches: bool,
    /// What was passed over though somebody may have meant it to count.
    pub passed_over: Vec<ManifestError>,
}

/// Reads one file's text, which may begin with a byte order mark; places count from behind it.
pub fn read(path: &Path, bytes: &[u8]) -> Placed {
    let mut placed = Placed::default();
    let file: Arc<Path> = path.into();
    let whole =
        |reason: String| ManifestError { file: file.clone(), document: 0, line: 0, column: 0, reason };
    let Ok(text) = std::str::from_utf8(bytes) else {
        placed.errors.push(whole("is not UTF-8 text".to_owned()));
        return placed;
    };
    let text = without_mark(text);
    manifests::each_document(&file, text, |source, part, value| match value {
        Ok(Value::Null) => {}
        Ok(value) => {
            let start = start_of(text, part, source.line);
            let document = placed.manifests.documents.len();
            let before = placed.manifests.items.len();
            add(&value, "", document, &source, &mut placed);
            // Most files of a directory hold nothing that matters: their places are not looked for.
            if placed.manifests.items.len() > before {
                placed.manifests.documents.push(Marks::of(part, start));
            }
        }
        Err(unread) => {
            // What no policy check can want to know.
            let kind = manifests_text::kind_of_no_concern(part).filter(|_| !unread.is_json);
            if kind.is_none_or(workloads::makes_pods) {
                let is_like = manifests_text::names_a_kind_of_concern(part);
                let manifests::Unread { line, column, mut reason, .. } = unread;
                let is_template = part.contains("{{");
                if is_template {
                    reason.push_str("; it looks like a template: give what it is rendered to");
                }
                let list = if is_like && !is_template { &mut placed.errors } else { &mut placed.unlike };
                list.push(ManifestError {
                    file: source.file,
                    document: source.document,
                    line,
                    column,
                    reason,
                });
            }
        }
    });
    placed
}

/// Where a document of a file's text is, by its number from 1; the text has no byte order mark.
pub fn document(path: &Path, text: &str, number: u32) -> Option<Range<usize>> {
    let range = |part: &str| {
        let start = part.as_ptr() as usize - text.as_ptr() as usize;
        start..start + part.len()
    };
    if !manifests::is_json(path) {
        let place = usize::try_from(number).ok()?.checked_sub(1)?;
        return manifests_text::split(text).into_iter().nth(place).map(|it| range(it.text));
    }
    let mut found = None;
    manifests::each_document(&path.into(), text, |source, part, _| {
        if source.document == number {
            found = Some(range(part));
        }
    });
    found
}

/// A text without its byte order mark.
pub fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Where a part of a text begins.
fn start_of(text: &str, part: &str, line: u32) -> Point {
    let offset = part.as_ptr() as usize - text.as_ptr() as usize;
    let line_start = text[..offset].rfind('\n').map_or(0, |it| it + 1);
    let column = 1 + text[line_start..offset].chars().count() as u32;
    Point { offset, line, column }
}

/// Adds the objects of a value, which is at `prefix` of its document.
fn add(value: &Value, prefix: &str, document: usize, source: &Source, placed: &mut Placed) {
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    if let (Some(version), Some(kind), Some(Value::Array(items))) =
        (text("apiVersion"), text("kind"), value.get("items"))
        && List::of(version, kind).is_some()
    {
        let dot = if prefix.is_empty() { "" } else { "." };
        for (index, item) in items.iter().enumerate() {
            let prefix = format!("{prefix}{dot}items[{index}]");
            if item.get("items").is_some() {
                add(item, &prefix, document, source, placed);
                continue;
            }
            // As the item of a list of one, so that what its list says of it counts.
            let list = Value::Object(Map::from_iter([
                ("apiVersion".to_owned(), version.into()),
                ("kind".to_owned(), kind.into()),
                ("items".to_owned(), Value::Array(vec![item.clone()])),
            ]));
            let own = item.get("kind").and_then(Value::as_str);
            let kind = own.or(kind.strip_suffix("List")).unwrap_or_default();
            object(&list, item, kind, &prefix, document, source, placed);
        }
        return;
    }
    object(value, value, text("kind").unwrap_or_default(), prefix, document, source, placed);
}

fn object(
    document_value: &Value,
    value: &Value,
    kind: &str,
    prefix: &str,
    document: usize,
    source: &Source,
    placed: &mut Placed,
) {
    let told = |reason: String| ManifestError {
        file: source.file.clone(),
        document: source.document,
        line: source.line,
        column: 0,
        reason,
    };
    let put = |what: What, placed: &mut Placed| {
        let ignored = match ignored(value) {
            Ok(ignored) => ignored,
            Err(error) => {
                placed.mistyped.push(told(format!("the annotation {IGNORE}: {error}")));
                Vec::new()
            }
        };
        placed.manifests.items.push(Item { what, document, prefix: prefix.to_owned(), ignored });
        placed.sources.push(source.clone());
    };
    // Only an item of a list may leave out what it is.
    let is_told = value.get("apiVersion").is_some() || !std::ptr::eq(value, document_value);
    if let Some(what) = workloads::may_make_pods(kind, value) {
        placed.manifests.makers.extend(workloads::namespaces(value).map(|it| (it.into(), what.clone())));
    }
    match workloads::pods(kind, value).filter(|_| is_told) {
        Some(Ok(pods)) => return put(What::Pods(pods), placed),
        Some(Err(reason)) => return placed.errors.push(told(reason)),
        None => {}
    }
    for converted in convert::document(document_value, &source.to_string().into()) {
        match converted {
            Converted::Ignored(kind) => {
                if convert_kinds::is_other_policy(&kind) {
                    placed.manifests.has_unread_policies = true;
                    let reason =
                        format!("{kind}: policies of this kind are not read, and no check heeds them");
                    placed.passed_over.push(told(reason));
                }
            }
            Converted::Nothing(reason) => placed.passed_over.push(told(reason)),
            Converted::Object(object) => {
                if let Object::Broken(broken) = &object {
                    let reason = match &broken.key {
                        Some(key) => format!("{key}: {}", broken.reason),
                        None => broken.reason.to_string(),
                    };
                    placed.errors.push(told(reason));
                }
                put(What::Object(object), placed);
            }
        }
    }
}

/// What an object's annotation says: `NA002, NA003: made by an operator`.
fn ignored(value: &Value) -> Result<Vec<(Code, String)>, String> {
    let annotations = value.get("metadata").and_then(|it| it.get("annotations"));
    let Some(text) = annotations.and_then(|it| it.get(IGNORE)).filter(|it| !it.is_null()) else {
        return Ok(Vec::new());
    };
    let text = text.as_str().ok_or("is no text: write \"NA002, NA003: the reason\"")?;
    let (codes, reason) = text.split_once(':').unwrap_or((text, ""));
    let codes = codes.split([',', ' ', '\n', '\t']).map(str::trim).filter(|it| !it.is_empty());
    let read =
        |it: &str| Ok((it.parse().map_err(|it: UnknownCode| it.to_string())?, reason.trim().to_owned()));
    codes.map(read).collect()
}

impl Placed {
    /// Takes out policies that say of no pods whom they are for: near a kustomization that is how patches are written.
    pub fn pass_over_patches(&mut self) {
        let documents = &self.manifests.documents;
        let is_patch = |item: &Item| {
            let dot = if item.prefix.is_empty() { "" } else { "." };
            let path = format!("{}{dot}spec.podSelector", item.prefix);
            matches!(item.what, What::Object(Object::NetworkPolicy(_)))
                && documents[item.document].find(&path).is_none_or(|it| !it.is_whole)
        };
        let are: Vec<bool> = self.manifests.items.iter().map(is_patch).collect();
        for (source, _) in self.sources.iter().zip(&are).filter(|(_, is_patch)| **is_patch) {
            self.passed_over.push(ManifestError {
                file: source.file.clone(),
                document: source.document,
                line: source.line,
                column: 0,
                reason: "a NetworkPolicy without podSelector, and a kustomization is near: it is taken for a patch, and not \
                         checked"
                    .to_owned(),
            });
        }
        self.has_patches = are.contains(&true);
        let mut patch = are.iter();
        self.manifests.items.retain(|_| !patch.next().copied().unwrap_or_default());
        let mut patch = are.iter();
        self.sources.retain(|_| !patch.next().copied().unwrap_or_default());
    }
}
