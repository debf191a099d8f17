//! Corrections as edits of a text, and what shows that they do what they claim.
//!
//! An edit touches only what it adds or removes. Whether the text still says what it said, but for the change, is not believed of the edit:
//! whoever applies it reads the text again, compares each object with what it is [to be](changed), and asks for the [proof](prove).

use std::{ops::Range, sync::Arc};

use super::{
    Change,
    marks::{Form, Marks, Node},
    world::join,
};
use crate::{
    model::{Direction, Protocol},
    policy::{
        CompiledPolicy, NamespaceView, Policies, Ruleset,
        declared::{self, NetworkPolicy, PortRef},
        symbolic::{Connections, PodEnd, PortSet, Representatives, Universe},
    },
};

/// A replacement of a part of a text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Edit {
    /// What goes.
    pub range: Range<usize>,
    /// What comes.
    pub text: String,
}

/// How a change is written into the text, or why it cannot be.
///
/// # Errors
/// Where the place is shared by an anchor or a merge key, or is written in a way that leaves open where something new belongs.
pub fn edit(text: &str, marks: &Marks, prefix: &str, change: &Change) -> Result<Edit, String> {
    let node = |path: &str| {
        let found = marks.find(&join(prefix, path)).filter(|it| it.is_whole);
        let found = found.ok_or_else(|| format!("{path} is not written where it is used"))?;
        match found.is_shared {
            true => Err(format!("{path} is written once for several places, by an anchor or a merge key")),
            false => Ok(found.node),
        }
    };
    match change {
        Change::AddPort { direction, rule, port, protocol, number } => {
            let list = format!("spec.{direction}[{rule}].ports");
            let (list, item) = (node(&list)?, node(&format!("{list}[{port}]"))?);
            add_port(text, list, item, *protocol, *number)
        }
        Change::RemoveExcept { direction, rule, peer, except } => {
            let list = match direction {
                Direction::Egress => "to",
                Direction::Ingress => "from",
            };
            let list = format!("spec.{direction}[{rule}].{list}[{peer}].ipBlock.except");
            remove_item(text, node(&list)?, *except)
        }
    }
}

/// Makes edits that do not overlap; those that do are left out, for another round. Returns which were made.
pub fn apply(text: &str, edits: &[Edit]) -> (String, Vec<usize>) {
    let mut order: Vec<usize> = (0..edits.len()).collect();
    order.sort_by_key(|it| (edits[*it].range.start, edits[*it].range.end));
    let (mut new, mut done, mut made) = (String::with_capacity(text.len()), 0, Vec::new());
    for it in order {
        let Edit { range, text: insert } = &edits[it];
        // Two that insert at one place are of one list: the second is made when the first can be seen.
        if range.start < done
            || made.last().is_some_and(|last: &usize| edits[*last].range.start == range.start)
        {
            continue;
        }
        new.push_str(&text[done..range.start]);
        new.push_str(insert);
        done = range.end;
        made.push(it);
    }
    new.push_str(&text[done..]);
    (new, made)
}

/// The part of a place's line before it.
fn before(text: &str, at: usize) -> &str {
    let start = text[..at].rfind('\n').map_or(0, |it| it + 1);
    &text[start..at]
}

/// Where the line ends that a place is on, its line break not counted.
fn line_end(text: &str, at: usize) -> usize {
    let end = text[at..].find('\n').map_or(text.len(), |it| at + it);
    if text[at..end].ends_with('\r') { end - 1 } else { end }
}

/// How the lines of a text end.
fn line_break(text: &str) -> &'static str {
    if text.contains("\r\n") { "\r\n" } else { "\n" }
}

/// The blanks and the dash before an element on its line: where others of its list begin.
fn dash(text: &str, at: usize) -> Result<(&str, &str), String> {
    let before = before(text, at);
    let lead = &before[..before.len() - before.trim_start().len()];
    let rest = &before[lead.len()..];
    match rest.strip_prefix('-') {
        Some(blanks) if !blanks.is_empty() && blanks.bytes().all(|it| it == b' ') => Ok((lead, rest)),
        _ => Err("the element does not begin a line of its own".to_owned()),
    }
}

fn add_port(text: &str, list: &Node, item: &Node, protocol: Protocol, number: u16) -> Result<Edit, String> {
    let (start, end) = (item.place.start.offset, item.place.end.offset);
    let inline = match text[start..].starts_with("{\"") || text[start..end].contains("\"port\"") {
        true => format!("{{\"protocol\": \"{protocol}\", \"port\": {number}}}"),
        false => format!("{{protocol: {protocol}, port: {number}}}"),
    };
    if list.form == Form::Flow {
        let lead = before(text, start);
        let space = match lead.trim().is_empty() {
            true => format!("{}{lead}", line_break(text)),
            false => " ".to_owned(),
        };
        return Ok(Edit { range: end..end, text: format!(",{space}{inline}") });
    }
    let (lead, dash) = dash(text, start)?;
    let (at, nl) = (line_end(text, end), line_break(text));
    let new = match item.form {
        Form::Flow => format!("{lead}{dash}{inline}"),
        _ => {
            let blanks = " ".repeat(dash.len());
            format!("{lead}{dash}protocol: {protocol}{nl}{lead}{blanks}port: {number}")
        }
    };
    Ok(Edit { range: at..at, text: format!("{nl}{new}") })
}

fn remove_item(text: &str, list: &Node, index: usize) -> Result<Edit, String> {
    let items = list.items().ok_or("it is no list")?;
    let item = items.get(index).ok_or("it is not there")?;
    let (start, end) = (item.place.start.offset, item.place.end.offset);
    let range = match (list.form, items.get(index + 1), index.checked_sub(1).and_then(|it| items.get(it))) {
        (Form::Flow, Some(next), _) => start..next.place.start.offset,
        (Form::Flow, None, Some(previous)) => previous.place.end.offset..end,
        (Form::Flow, None, None) => start..end,
        (_, None, None) => {
            let key = list.key.ok_or("the list has no key")?.end.offset;
            if text[key..start].contains('#') {
                return Err("there is a comment between the list and its only element".to_owned());
            }
            return Ok(Edit { range: key..end, text: ": []".to_owned() });
        }
        _ => {
            dash(text, start)?;
            let (line, after) = (start - before(text, start).len(), line_end(text, end));
            let rest = text[end..after].trim();
            if !rest.is_empty() && !rest.starts_with('#') {
                return Err("something else is on the element's line".to_owned());
            }
            match text[after..].find('\n') {
                Some(more) => line..after + more + 1,
                None => text[..line].trim_end_matches(['\r', '\n']).len()..after,
            }
        }
    };
    if list.form == Form::Flow && text[range.clone()].contains('#') {
        return Err("there is a comment beside the element".to_owned());
    }
    Ok(Edit { range, text: String::new() })
}

/// What a policy is to be with these changes.
pub fn changed(policy: &NetworkPolicy, changes: &[&Change]) -> NetworkPolicy {
    let mut new = policy.clone();
    // What stands behind goes first, so that positions stay what they are.
    let mut order: Vec<&&Change> = changes.iter().collect();
    let position = |it: &Change| match it {
        Change::AddPort { direction, rule, port, .. } => (*direction, *rule, *port, 0),
        Change::RemoveExcept { direction, rule, peer, except } => (*direction, *rule, *peer, *except),
    };
    order.sort_by_key(|it| std::cmp::Reverse(position(it)));
    for change in order {
        let rules = |direction: &Direction, new: &mut NetworkPolicy| match direction {
            Direction::Egress => std::mem::take(&mut new.egress),
            Direction::Ingress => std::mem::take(&mut new.ingress),
        };
        let (Change::AddPort { direction, .. } | Change::RemoveExcept { direction, .. }) = change;
        let mut all = rules(direction, &mut new);
        match change {
            Change::AddPort { rule, port, protocol, number, .. } => {
                if let Some(rule) = all.get_mut(*rule).filter(|it| *port < it.ports.len()) {
                    let added = declared::Port {
                        protocol: Some(protocol.to_string()),
                        port: Some(PortRef::Number(i64::from(*number))),
                        ..Default::default()
                    };
                    rule.ports.insert(port + 1, added);
                }
            }
            Change::RemoveExcept { rule, peer, except, .. } => {
                let block = all.get_mut(*rule).and_then(|it| it.peers.get_mut(*peer));
                if let Some(block) = block.and_then(|it| it.ip_block.as_mut())
                    && *except < block.except.len()
                {
                    block.except.remove(*except);
                }
            }
        }
        match direction {
            Direction::Egress => new.egress = all,
            Direction::Ingress => new.ingress = all,
        }
    }
    new
}

/// Compares what two forms of a policy allow, over every pod and address that they can tell apart.
///
/// # Errors
/// Where that is not what the changes claim: nothing but the added ports, or nothing at all.
pub fn prove(before: &NetworkPolicy, after: &NetworkPolicy, changes: &[&Change]) -> Result<(), String> {
    let [old, new] = [before, after].map(|it| Arc::new(CompiledPolicy::compile(it)));
    let found = Representatives::new(&[&old, &new], &[], &[], true);
    let rules = |policy: &Arc<CompiledPolicy>| -> Arc<Ruleset> {
        let mut policies = Policies::default();
        for (name, labels) in &found.namespaces {
            let view = NamespaceView { name: name.clone(), labels: labels.clone(), doubt: None };
            policies.put_namespace(&view);
        }
        policies.put(policy.clone());
        policies.current().clone()
    };
    let pod = |(namespace, labels): &(Arc<str>, crate::policy::Labels)| PodEnd {
        namespace: namespace.clone(),
        labels: labels.clone(),
        ports: [].into(),
        addresses: Default::default(),
    };
    let universe = Universe::new(&[rules(&old), rules(&new)], found.pods.iter().map(pod), []);
    let universe = Arc::new(universe);
    let [old, new] = [0, 1].map(|view| Connections::new(&universe, view));
    // What was in doubt because of an invalid part is no longer: that must have been a possible meaning.
    if !old.surely.is_subset(&new.surely) {
        return Err("it would deny what was allowed".to_owned());
    }
    let mut added = PortSet::default();
    for change in changes {
        if let Change::AddPort { protocol, number, .. } = change {
            added = added.union(&PortSet::range(Some(*protocol), *number, *number));
        }
    }
    let more = new.possibly.difference(&old.possibly);
    let groups = universe.groups().len();
    let mut between = (0..groups).flat_map(|a| (0..groups).map(move |b| (a, b)));
    let is_more = between.any(|(a, b)| !more.between(a, b).is_subset(&added));
    let mut outside = Direction::ALL.into_iter().flat_map(|it| (0..groups).map(move |group| (it, group)));
    let is_more_outside = outside.any(|(direction, group)| {
        let outside = more.outside(direction, group);
        let mut sets = std::iter::once(&outside.unnamed).chain(&outside.named);
        sets.any(|it| it.iter().any(|(_, ports)| !ports.is_subset(&added)))
    });
    match is_more || is_more_outside {
        true => Err("it would allow more than it claims".to_owned()),
        false => Ok(()),
    }
}
