//! Policies in files, and what is taken out of them: a patch a policy, each on top of those before it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
};

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
    let mut targets: Vec<Target> = items
        .filter_map(|(number, item)| {
            let declared = policy(item)?.clone();
            let file = loaded.sources[number].1;
            let mut policy = declared.clone();
            if !names_namespace(loaded, item, &loaded.files[file]) {
                policy.namespace = namespace.into();
            }
            let closed = match doubled.contains(&number) {
                true => Some(TWICE.to_owned()),
                false if loaded.is_changed && loaded.files[file].near.is_any => Some(
                    "a kustomization near changes what files say, so that a change here may change another place: give what kubectl \
                     kustomize prints"
                        .to_owned(),
                ),
                false => closed(&loaded.files[file]),
            };
            Some(Target { item: number, file, declared, policy, closed })
        })
        .collect();
    close_doubles(&mut targets);
    targets
}

const TWICE: &str = "another document is the same object, and which of them counts is open";

/// Closes those that are one object, in the namespaces that they have in the cluster.
fn close_doubles(targets: &mut [Target]) {
    let mut known: BTreeMap<(Arc<str>, Arc<str>), usize> = BTreeMap::new();
    for target in targets.iter() {
        *known.entry((target.policy.namespace.clone(), target.policy.name.clone())).or_default() += 1;
    }
    for target in targets {
        if known[&(target.policy.namespace.clone(), target.policy.name.clone())] > 1 {
            target.closed.get_or_insert_with(|| TWICE.to_owned());
        }
    }
}

/// Whether a document says which namespace its object is in: nothing, an empty text and `null` say none.
fn names_namespace(loaded: &Loaded, item: &Item, file: &File) -> bool {
    let found = loaded.manifests.documents[item.document].find(&join(&item.prefix, "metadata.namespace"));
    let Some(found) = found.filter(|it| it.is_whole) else { return false };
    let text = std::str::from_utf8(&file.bytes).map(placed::without_mark).unwrap_or_default();
    let said = text.get(found.node.place.range()).unwrap_or_default().trim_matches(['"', '\'']);
    !matches!(said, "" | "~" | "null" | "Null" | "NULL")
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
        if changes.is_empty() {
            patches.push(patch);
            continue;
        }
        match write(loaded, target, bytes, changes) {
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
    let mut patched = Patched { patches, files };
    for file in verify_whole(loaded, targets, &patched) {
        patched.files[file] = None;
        for ((target, patch), changes) in targets.iter().zip(&mut patched.patches).zip(changes) {
            if target.file == file {
                patch.refused = (0..changes.len()).map(|it| (it, MISREAD.to_owned())).collect();
                patch.made.clear();
                patch.policy = target.policy.clone();
            }
        }
    }
    patched
}

/// The name of a file as differences have it: in a git repository from its top, as git has it; else from the current
/// directory, or where it is not below that from the root.
fn name(path: &Path) -> String {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let top = real.ancestors().skip(1).find(|it| it.join(".git").exists());
    match top.and_then(|top| real.strip_prefix(top).ok()) {
        Some(inside) => inside.display().to_string(),
        None => {
            let here = std::env::current_dir().and_then(fs::canonicalize).unwrap_or_default();
            let inside = real.strip_prefix(&here).unwrap_or(&real).display().to_string();
            inside.trim_start_matches('/').to_owned()
        }
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
    let made: Vec<&Change> = written.made.iter().map(|it| changes[*it]).collect();
    verify(file, target, item, &text[place.clone()], &written.text, &made)?;
    Ok(Written { bytes: new.into_bytes(), made: written.made, refused: written.refused })
}

/// Reads the new text of a document as the old one was read: all of it is what it was, but for the policy, which is what it was to become.
fn verify(
    file: &File,
    target: &Target,
    item: &Item,
    old: &str,
    new: &str,
    made: &[&Change],
) -> Result<(), String> {
    let (old, new) = (file.read(old.as_bytes()), file.read(new.as_bytes()));
    is_as_expected(&old, &new, &|was, is| match was.prefix == item.prefix
        && policy(was) == Some(&target.declared)
    {
        false => is_same(was, is),
        true => {
            let expected = tighten::changed(&target.declared, made);
            policy(is) == Some(&expected) && was.prefix == is.prefix && was.ignored == is.ignored
        }
    })
}

/// Reads files as they are to be: each object is what it was, or what its policy was to become. Those of other documents may have moved.
fn verify_whole(loaded: &Loaded, targets: &[Target], patched: &Patched) -> BTreeSet<usize> {
    let mut wrong = BTreeSet::new();
    for (number, new) in patched.files.iter().enumerate() {
        let Some(new) = new else { continue };
        let file = &loaded.files[number];
        let (old, new) = (file.read(&file.bytes), file.read(new));
        let policies: BTreeMap<(Arc<str>, Arc<str>), NetworkPolicy> = targets
            .iter()
            .zip(&patched.patches)
            .filter(|(target, _)| target.file == number)
            .map(|(target, patch)| {
                let is =
                    NetworkPolicy { namespace: target.declared.namespace.clone(), ..patch.policy.clone() };
                ((is.namespace.clone(), is.name.clone()), is)
            })
            .collect();
        let read = is_as_expected(&old, &new, &|was, is| {
            let key = policy(was).map(|it| (it.namespace.clone(), it.name.clone()));
            match key.and_then(|key| policies.get(&key)) {
                Some(expected) => {
                    policy(is) == Some(expected) && was.prefix == is.prefix && was.ignored == is.ignored
                }
                None => is_same(was, is),
            }
        });
        if read.is_err() {
            wrong.insert(number);
        }
    }
    wrong
}

fn is_as_expected(old: &Placed, new: &Placed, is_right: &dyn Fn(&Item, &Item) -> bool) -> Result<(), String> {
    let unread = |it: &Placed| it.errors.len() + it.unlike.len() + it.mistyped.len() + it.passed_over.len();
    let (was, is) = (&old.manifests.items, &new.manifests.items);
    let same = unread(old) == unread(new)
        && was.len() == is.len()
        && was.iter().zip(is).all(|(was, is)| is_right(was, is));
    match same {
        true => Ok(()),
        false => Err(MISREAD.to_owned()),
    }
}

const MISREAD: &str = "read again, the file would say something else";

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
