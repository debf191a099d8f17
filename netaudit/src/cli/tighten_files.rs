//! Policies in files, and what is taken out of them: a patch a policy, each on top of those before it.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use super::manifest_files::{File, Loaded, difference, is_same};
use crate::{
    advise::{
        lint::{self, Item, What},
        text::join,
        tighten::{self, Change, Contained, containment},
    },
    cluster::Object,
    policy::{METADATA_NAME, NamespaceView, declared::NetworkPolicy},
    watch::placed::{self, Placed},
};

/// A policy of a file.
pub(super) struct Target {
    /// Its place among the objects.
    pub item: usize,
    /// Its file.
    pub file: usize,
    /// As its file has it.
    declared: NetworkPolicy,
    /// As it is in the cluster: in its namespace.
    pub policy: NetworkPolicy,
    /// Why it cannot be changed, where that is so.
    pub closed: Option<String>,
}

/// The NetworkPolicies of files; those that name no namespace are of `namespace`.
pub(super) fn targets(loaded: &Loaded, namespace: &str) -> Vec<Target> {
    let doubled: BTreeSet<usize> = lint::doubled(&loaded.manifests);
    let items = loaded.manifests.items.iter().enumerate();
    items
        .filter_map(|(number, item)| {
            let declared = policy(item)?.clone();
            let file = loaded.sources[number].1;
            let mut policy = declared.clone();
            let marks = &loaded.manifests.documents[item.document];
            if !marks.has(&join(&item.prefix, "metadata.namespace")) {
                policy.namespace = namespace.into();
            }
            let closed = match doubled.contains(&number) {
                true => {
                    Some("another document is the same object, and which of them counts is open".to_owned())
                }
                false => closed(&loaded.files[file]),
            };
            Some(Target { item: number, file, declared, policy, closed })
        })
        .collect()
}

/// Why nothing of a file can be changed.
fn closed(file: &File) -> Option<String> {
    // What a pipe gave cannot be written back.
    if !fs::metadata(&file.path).is_ok_and(|it| it.is_file()) {
        return Some("it is in no regular file".to_owned());
    }
    if file.near.is_of_component {
        return Some("its file is part of a kustomize component, which others change".to_owned());
    }
    std::str::from_utf8(&file.bytes).err().map(|_| "its file is not UTF-8 text".to_owned())
}

fn policy(item: &Item) -> Option<&NetworkPolicy> {
    match &item.what {
        What::Object(Object::NetworkPolicy(policy)) => Some(policy),
        _ => None,
    }
}

/// What became of a policy.
pub(super) struct Patch {
    /// The changes that are written, by their positions among those that were asked for.
    pub made: Vec<usize>,
    /// The others, with the reason.
    pub refused: Vec<(usize, String)>,
    /// The policy with them, in its namespace.
    pub policy: NetworkPolicy,
    /// As unified difference; empty where nothing changes.
    pub difference: String,
    /// That nothing new is allowed.
    pub contained: Contained,
}

/// What all files become.
pub(super) struct Patched {
    /// Of each policy, in their order.
    pub patches: Vec<Patch>,
    /// Of each file its new content, where it has one.
    pub files: Vec<Option<Vec<u8>>>,
}

/// Writes changes of each policy into the text of its file, and reads that again.
pub(super) fn patch(
    loaded: &Loaded,
    targets: &[Target],
    changes: &[Vec<&Change>],
    known: &[NamespaceView],
) -> Patched {
    let mut files: Vec<Option<Vec<u8>>> = loaded.files.iter().map(|_| None).collect();
    let mut patches = Vec::with_capacity(targets.len());
    for (target, changes) in targets.iter().zip(changes) {
        let file = &loaded.files[target.file];
        let bytes = files[target.file].as_deref().unwrap_or(&file.bytes);
        let mut patch = Patch {
            made: Vec::new(),
            refused: Vec::new(),
            policy: target.policy.clone(),
            difference: String::new(),
            contained: Contained::ByElements,
        };
        match write(loaded, target, bytes, changes) {
            _ if changes.is_empty() => {}
            Err(reason) => patch.refused = (0..changes.len()).map(|it| (it, reason.clone())).collect(),
            Ok(written) => {
                patch.refused = written.refused;
                let made: Vec<&Change> = written.made.iter().map(|it| changes[*it]).collect();
                let policy = tighten::changed(&target.policy, &made);
                patch.contained = containment(&target.policy, &policy, known);
                if let Contained::Not(example) = &patch.contained {
                    let reason = format!("it would allow something new: {example}");
                    patch.refused = (0..changes.len()).map(|it| (it, reason.clone())).collect();
                } else if !made.is_empty() {
                    patch.difference = difference(&name(&file.path), bytes, &written.bytes);
                    (patch.policy, patch.made) = (policy, written.made);
                    files[target.file] = Some(written.bytes);
                }
            }
        }
        patches.push(patch);
    }
    Patched { patches, files }
}

/// The name of a file as differences have it: in a git repository from its top, as git has it; else as it was given.
fn name(path: &Path) -> String {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let top = real.ancestors().skip(1).find(|it| it.join(".git").exists());
    match top.and_then(|top| real.strip_prefix(top).ok()) {
        Some(inside) => inside.display().to_string(),
        None => path.display().to_string().trim_start_matches("./").trim_start_matches('/').to_owned(),
    }
}

struct Written {
    bytes: Vec<u8>,
    made: Vec<usize>,
    refused: Vec<(usize, String)>,
}

/// The content of a file with changes of one of its policies.
fn write(loaded: &Loaded, target: &Target, bytes: &[u8], changes: &[&Change]) -> Result<Written, String> {
    if let Some(reason) = &target.closed {
        return Err(reason.clone());
    }
    let file = &loaded.files[target.file];
    let item = &loaded.manifests.items[target.item];
    let whole = std::str::from_utf8(bytes).map_err(|_| "its file is not UTF-8 text".to_owned())?;
    let text = placed::without_mark(whole);
    let number = loaded.sources[target.item].0.document;
    let place = placed::document(&file.path, text, number).ok_or("its document is not found")?;
    let written = tighten::write(&text[place.clone()], &item.prefix, &target.declared, changes);
    let mut new = String::with_capacity(whole.len());
    new.push_str(&whole[..whole.len() - text.len() + place.start]);
    new.push_str(&written.text);
    new.push_str(&text[place.end..]);
    let new = new.into_bytes();
    let made: Vec<&Change> = written.made.iter().map(|it| changes[*it]).collect();
    verify(loaded, target, bytes, &new, &made)?;
    Ok(Written { bytes: new, made: written.made, refused: written.refused })
}

/// Reads the new content as the old one was read: all is what it was, but for the policy, which is what it was to become.
fn verify(loaded: &Loaded, target: &Target, old: &[u8], new: &[u8], made: &[&Change]) -> Result<(), String> {
    let file = &loaded.files[target.file];
    let (old, new) = (file.read(old), file.read(new));
    let misread = || "read again, the file would say something else".to_owned();
    let unread = |it: &Placed| it.errors.len() + it.unlike.len() + it.mistyped.len() + it.passed_over.len();
    if unread(&old) != unread(&new) || old.manifests.items.len() != new.manifests.items.len() {
        return Err(misread());
    }
    let first = (0..loaded.sources.len()).find(|it| loaded.sources[*it].1 == target.file);
    let place = target.item - first.unwrap_or(target.item);
    for (number, (was, is)) in old.manifests.items.iter().zip(&new.manifests.items).enumerate() {
        let is_right = match number == place {
            false => is_same(was, is),
            true => {
                let expected = policy(was).map(|it| tighten::changed(it, made));
                policy(is) == expected.as_ref() && was.prefix == is.prefix && was.ignored == is.ignored
            }
        };
        if !is_right {
            return Err(misread());
        }
    }
    Ok(())
}

/// Namespaces that the manifests have.
pub(super) fn namespaces(loaded: &Loaded) -> Vec<NamespaceView> {
    let of = |item: &Item| match &item.what {
        What::Object(Object::Namespace(it)) => {
            let labels = it.labels.with(METADATA_NAME, &it.name);
            Some(NamespaceView { name: Arc::clone(&it.name), labels, doubt: None })
        }
        _ => None,
    };
    loaded.manifests.items.iter().filter_map(of).collect()
}
