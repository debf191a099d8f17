//! `netaudit lint --fix`: edits of files, each shown to do what it claims before it is written.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    io::{self, Write},
};

use serde_json::{Value, json};

use super::{
    lint::silencer,
    lint_output,
    manifest_files::{Loaded, difference, is_same, replace},
    one_line,
};
use crate::{
    advise::{
        lint::{self, Change, Code, Finding, Item, Options, What, fix},
        text::edit,
    },
    cluster::Object,
    policy::declared::NetworkPolicy,
    watch::placed::{self, Placed},
};

/// Each round makes the edits that do not touch one another; more than this is no progress.
const ROUNDS: usize = 16;

/// What was corrected.
#[derive(Default)]
pub(super) struct Fixed {
    is_asked: bool,
    is_dry: bool,
    /// The file's position, and a line.
    made: Vec<(usize, String)>,
    /// Whether a file could not be written.
    has_failed: bool,
    /// What was not corrected though it could be: a line each, with the reason.
    refused: BTreeSet<String>,
    /// By file, in dry runs.
    differences: BTreeMap<String, String>,
}

/// Corrects what can be corrected, in the files and in what was read of them; with `is_dry`, in neither.
pub(super) fn fix(loaded: &mut Loaded, options: &Options, ignored: &[Code], is_dry: bool) -> Fixed {
    let mut fixed = Fixed { is_asked: true, is_dry, ..Fixed::default() };
    let before: Vec<Vec<u8>> = loaded.files.iter().map(|it| it.bytes.clone()).collect();
    let mut closed: HashSet<usize> = HashSet::new();
    // No change makes it another object.
    let doubled = lint::doubled(&loaded.manifests);
    for _ in 0..ROUNDS {
        let report = lint::check(&loaded.manifests, options);
        let mut by_file: BTreeMap<usize, Vec<&Finding>> = BTreeMap::new();
        for finding in report.findings.iter().filter(|it| it.change.is_some()) {
            if silencer(finding, &loaded.manifests, ignored).is_none() {
                by_file.entry(loaded.sources[finding.item].1).or_default().push(finding);
            }
        }
        let mut changed = Vec::new();
        for (file, findings) in by_file {
            if closed.contains(&file) {
                continue;
            }
            match change(loaded, file, &findings, &doubled, &mut fixed) {
                Ok(Some(bytes)) => changed.push((file, bytes)),
                Ok(None) => {}
                // Nothing of a file is changed of which not all is understood.
                Err(reason) => {
                    closed.insert(file);
                    for finding in findings {
                        let line = lint_output::line(loaded, finding);
                        fixed.refused.insert(format!("{line}: not corrected: {reason}"));
                    }
                }
            }
        }
        if changed.is_empty() {
            break;
        }
        for (file, bytes) in changed {
            loaded.files[file].bytes = bytes;
        }
        loaded.read_again();
    }
    for (number, (file, before)) in loaded.files.iter_mut().zip(before).enumerate() {
        if file.bytes == before {
            continue;
        }
        if is_dry {
            let name = file.path.display().to_string();
            let name = name.trim_start_matches("./").to_owned();
            fixed.differences.insert(name.clone(), difference(&name, &before, &file.bytes));
            file.bytes = before;
        } else if let Err(error) = replace(&file.path, &file.bytes) {
            // One file costs no other, and what is told of it is what it still says.
            fixed.has_failed = true;
            fixed.made.retain(|(of, _)| *of != number);
            fixed
                .refused
                .insert(format!("{}: not corrected: cannot be written: {error}", file.path.display()));
            file.bytes = before;
        }
    }
    if is_dry || fixed.has_failed {
        loaded.read_again();
    }
    fixed
}

/// The new content of a file; `None` where nothing could be done.
fn change(
    loaded: &Loaded,
    file: usize,
    findings: &[&Finding],
    doubled: &BTreeSet<usize>,
    fixed: &mut Fixed,
) -> Result<Option<Vec<u8>>, String> {
    let (path, bytes) = (&loaded.files[file].path, &loaded.files[file].bytes);
    // What a pipe gave cannot be written back.
    if !fs::metadata(path).is_ok_and(|it| it.is_file()) {
        return Err("it is no regular file".to_owned());
    }
    if loaded.files[file].near.is_of_component {
        return Err("it is part of a kustomize component, which others change".to_owned());
    }
    let whole = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())?;
    let text = placed::without_mark(whole);
    let (mut edits, mut of_edits) = (Vec::new(), Vec::new());
    for finding in findings {
        let item = &loaded.manifests.items[finding.item];
        let Some(change) = &finding.change else { continue };
        let edit = match doubled.contains(&finding.item) {
            true => Err("another document is the same object, and which of them counts is open".to_owned()),
            false => fix::edit(text, &loaded.manifests.documents[item.document], &item.prefix, change),
        };
        match edit {
            Ok(edit) => {
                edits.push(edit);
                of_edits.push((*finding, change));
            }
            Err(reason) => {
                let line = lint_output::line(loaded, finding);
                fixed.refused.insert(format!("{line}: not corrected: {reason}"));
            }
        }
    }
    if edits.is_empty() {
        return Ok(None);
    }
    let (new, made) = edit::apply(text, &edits);
    let made: Vec<(&Finding, &Change)> = made.into_iter().map(|it| of_edits[it]).collect();
    let new = format!("{}{new}", &whole[..whole.len() - text.len()]).into_bytes();
    verify(loaded, file, &new, &made)?;
    for (finding, change) in made {
        let (source, place) = loaded.place(finding);
        let line = place.map_or(source.line, |it| it.start.line);
        let (object, path) = (loaded.object(finding.item), &finding.path);
        let made = format!("{}:{line}: {} {object} {path}: {change}", source.file.display(), finding.code);
        fixed.made.push((file, made));
    }
    Ok(Some(new))
}

/// Reads the new text as the old one was read: everything is what it was, but for what was to change, and that allows what it claims.
fn verify(loaded: &Loaded, file: usize, new: &[u8], made: &[(&Finding, &Change)]) -> Result<(), String> {
    let items: Vec<usize> = (0..loaded.sources.len()).filter(|it| loaded.sources[*it].1 == file).collect();
    let file = &loaded.files[file];
    let (old, again) = (file.read(&file.bytes), file.read(new));
    let misread = || "read again, the file would say something else".to_owned();
    let unread = |it: &Placed| it.errors.len() + it.unlike.len() + it.mistyped.len() + it.passed_over.len();
    if unread(&again) != unread(&old) || again.manifests.items.len() != items.len() {
        return Err(misread());
    }
    let mut changes: BTreeMap<usize, Vec<&Change>> = BTreeMap::new();
    for (finding, change) in made {
        changes.entry(finding.item).or_default().push(change);
    }
    for (item, now) in items.iter().zip(&again.manifests.items) {
        let was = &loaded.manifests.items[*item];
        match changes.get(item) {
            None if is_same(was, now) => {}
            None => return Err(misread()),
            Some(changes) => {
                let (Some(was), Some(now)) = (policy(was), policy(now)) else { return Err(misread()) };
                if fix::changed(was, changes) != *now {
                    return Err(misread());
                }
                fix::prove(was, now, changes)?;
            }
        }
    }
    Ok(())
}

fn policy(item: &Item) -> Option<&NetworkPolicy> {
    match &item.what {
        What::Object(Object::NetworkPolicy(policy)) => Some(policy),
        _ => None,
    }
}

impl Fixed {
    /// Whether a file could not be written.
    pub fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// For people.
    pub fn text(&self, out: &mut impl Write) -> io::Result<()> {
        if self.is_asked {
            self.lines().iter().try_for_each(|it| writeln!(out, "{it}"))?;
        }
        Ok(())
    }

    /// To stderr, where stdout is for programs.
    pub fn log(&self) {
        if self.is_asked {
            self.lines().iter().for_each(|it| eprintln!("netaudit: {it}"));
        }
    }

    /// The difference that a dry run asks for, in a form that tools apply.
    pub fn differences(&self) -> impl Iterator<Item = &String> {
        self.differences.values()
    }

    fn lines(&self) -> Vec<String> {
        let done = if self.is_dry { "would correct" } else { "corrected" };
        let mut lines: Vec<String> = self.refused.iter().map(|it| one_line(it)).collect();
        lines.extend(self.made.iter().map(|(_, it)| one_line(&format!("{done} {it}"))));
        if self.made.is_empty() {
            lines.push(format!("{done} nothing"));
        }
        lines
    }

    /// For programs, where it was asked for.
    pub fn json(&self, into: &mut Value) {
        if self.is_asked {
            into["corrected"] = self.made.iter().map(|(_, it)| it.as_str()).collect();
            into["not_corrected"] = json!(self.refused);
            into["dry_run"] = json!(self.is_dry);
            into["differences"] = json!(self.differences);
        }
    }
}
