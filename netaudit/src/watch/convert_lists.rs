//! Lists of objects: those that the API server reads, and those that it does not though somebody wrote them.

use std::sync::Arc;

use serde_json::Value;

use super::{
    convert::{Converted, NO_KIND, broken, walk},
    convert_kinds::meant,
};
use crate::cluster::{Broken, Kind, Object};

/// A `List`, or a list of one kind.
pub(super) struct List<'a> {
    version: &'a str,
    kind: &'a str,
    /// What its items are; `None` where each says so.
    item: Option<&'a str>,
}

impl<'a> List<'a> {
    /// What is called so is a list, if it has items.
    pub fn of(version: &'a str, kind: &'a str) -> Option<Self> {
        let at = kind.len().checked_sub("List".len())?;
        let (item, end) = kind.split_at_checked(at)?;
        end.eq_ignore_ascii_case("List").then_some(Self {
            version,
            kind,
            item: Some(item).filter(|it| !it.is_empty()),
        })
    }

    pub fn read(&self, items: &Value, source: &Arc<str>, into: &mut Vec<Converted>) {
        let right = format!("{}List", self.item.unwrap_or_default());
        let refused = match items {
            Value::Array(_) if *self.kind == right => None,
            Value::Array(_) => {
                Some(format!("kind: {:?} instead of {right:?}, so nothing in it is read", self.kind))
            }
            _ => Some("items: expected a list, so nothing in it is read".to_owned()),
        };
        let mut found = Vec::new();
        match items {
            Value::Array(items) => {
                for (number, item) in items.iter().enumerate() {
                    self.item(number, item, source, &mut found);
                }
            }
            other => self.item(0, other, source, &mut found),
        }
        into.extend(found.into_iter().map(|it| match &refused {
            Some(reason) => refuse(it, source, reason),
            None => it,
        }));
    }

    /// What its items are, if that is a kind that matters; `None` where each says what it is.
    fn known(&self) -> Option<Kind> {
        let kind = self.item?;
        Kind::called(kind).find(|it| it.is_of_group(self.version)).or_else(|| meant(self.version, kind))
    }

    /// An item that says nothing is told, since somebody meant something by it; one that may say anything is in doubt.
    fn item(&self, number: usize, item: &Value, source: &Arc<str>, into: &mut Vec<Converted>) {
        if self.item.is_some() && self.known().is_none() {
            into.push(Converted::Ignored(self.kind.to_owned()));
            return;
        }
        let what = match item {
            Value::Object(fields) if !fields.is_empty() => {
                let before = into.len();
                walk(item, self.item.map(|kind| (self.version, kind)), source, into);
                if !matches!(&into[before..], [Converted::Ignored(kind)] if *kind == *NO_KIND) {
                    return;
                }
                into.truncate(before);
                if item.get("metadata").is_some() || item.get("spec").is_some() {
                    let reason = format!("items[{number}].kind: missing or no text");
                    into.push(Converted::Object(Object::Broken(broken(None, item, source, reason))));
                    return;
                }
                "something without a kind"
            }
            Value::Array(items) if !items.is_empty() => {
                let reason = format!("items[{number}]: a list in a list, so nothing in it is read");
                into.push(Converted::Object(Object::Broken(broken(self.known(), item, source, reason))));
                return;
            }
            Value::Object(_) => "an empty object",
            Value::Array(_) => "an empty list",
            Value::Null => "null",
            _ => "a plain value",
        };
        into.push(Converted::Nothing(format!("items[{number}]: {what}, which is no object: remove it")));
    }
}

/// A document that is a list: no object, so the API server reads nothing of it. Playbooks look so too.
pub(super) fn bare(items: &[Value], source: &Arc<str>, into: &mut Vec<Converted>) {
    let reason = "is in a bare list, which nobody reads: make it a document of its own, or an item of a List";
    let mut found = Vec::new();
    items.iter().for_each(|item| walk(item, None, source, &mut found));
    if found.is_empty() {
        found.push(Converted::Ignored(NO_KIND.to_owned()));
    }
    into.extend(found.into_iter().map(|it| refuse(it, source, reason)));
}

/// What would have been an object had it been read.
fn refuse(converted: Converted, source: &Arc<str>, reason: &str) -> Converted {
    let Converted::Object(object) = converted else { return converted };
    let ips = match &object {
        Object::Broken(broken) => {
            let reason = format!("{reason}; {}", broken.reason).into();
            return Converted::Object(Object::Broken(Broken { reason, ..broken.clone() }));
        }
        Object::Pod(pod) if !pod.host_network => pod.ips.clone(),
        Object::Node(node) => node.ips.clone(),
        Object::Service(service) => service.ips.clone(),
        _ => Default::default(),
    };
    let key = object.key();
    let kind = key.as_ref().map(|key| key.kind);
    let namespace = key.as_ref().filter(|key| key.kind.is_namespaced()).map(|key| key.namespace.clone());
    let service = match &object {
        Object::EndpointSlice(slice) => slice.service.clone(),
        _ => None,
    };
    let reason = reason.into();
    Converted::Object(Object::Broken(Broken {
        key,
        kind,
        namespace,
        service,
        ips,
        source: source.clone(),
        reason,
    }))
}
