//! Changes as edits of a manifest's text.

use std::collections::{BTreeMap, BTreeSet};

use super::change::{Change, except_within, word};
use crate::{
    advise::text::{
        edit::{self, Edit, Tree, node},
        join,
        marks::{Marks, Point},
    },
    model::Direction,
    policy::declared::NetworkPolicy,
};

/// What became of a text.
#[derive(Debug)]
pub struct Written {
    /// The text with those changes that could be made.
    pub text: String,
    /// Their positions in the list that was given, in order.
    pub made: Vec<usize>,
    /// The others, with the reason.
    pub refused: Vec<(usize, String)>,
}

const START: Point = Point { offset: 0, line: 1, column: 1 };

/// Writes changes of a policy, which stands at `prefix` of a document, into the text of that document.
///
/// Each is made in the text that the one before has left, and those whose place cannot be told are left out.
pub fn write(text: &str, prefix: &str, policy: &NetworkPolicy, changes: &[&Change]) -> Written {
    let mut written = Written { text: text.to_owned(), made: Vec::new(), refused: Vec::new() };
    // How often an element before one is gone, by the rule's list.
    let mut gone: BTreeMap<(Direction, usize, &'static str), BTreeSet<usize>> = BTreeMap::new();
    for step in steps(changes) {
        let shift = |direction: Direction, rule: usize, list: &'static str, at: usize| {
            let before = gone.get(&(direction, rule, list)).map_or(0, |it| it.range(..at).count());
            at - before
        };
        let made = make(&written.text, prefix, policy, changes, &step, &shift);
        match made {
            Ok(text) => {
                written.text = text;
                if let Step::Remove { list: Some((direction, rule, list)), which, .. } = &step {
                    gone.insert((*direction, *rule, *list), which.clone());
                }
                written.made.extend(step.changes());
            }
            Err(reason) => written.refused.extend(step.changes().into_iter().map(|it| (it, reason.clone()))),
        }
    }
    written.made.sort_unstable();
    written
}

/// Changes that are made together, by their positions.
enum Step {
    /// Elements of a list: of a rule's, or the rules of a direction.
    Remove {
        list: Option<(Direction, usize, &'static str)>,
        path: String,
        which: BTreeSet<usize>,
        changes: Vec<usize>,
    },
    /// One by itself.
    One(usize),
}

impl Step {
    fn changes(&self) -> Vec<usize> {
        match self {
            Self::Remove { changes, .. } => changes.clone(),
            Self::One(change) => vec![*change],
        }
    }
}

/// In an order in which positions stay right: the elements of rules before the rules, what goes before what gets more, the last first.
fn steps(changes: &[&Change]) -> Vec<Step> {
    let mut rules: BTreeMap<Direction, (BTreeSet<usize>, Vec<usize>)> = BTreeMap::new();
    type List = (Direction, usize, &'static str);
    let mut elements: BTreeMap<List, (BTreeSet<usize>, Vec<usize>)> = BTreeMap::new();
    let mut others: Vec<(usize, usize)> = Vec::new();
    for (number, change) in changes.iter().enumerate() {
        let (list, at) = match **change {
            Change::RemoveRule { direction, rule } => {
                let (which, all) = rules.entry(direction).or_default();
                which.insert(rule);
                all.push(number);
                continue;
            }
            Change::RemovePeer { direction, rule, peer } => ((direction, rule, direction.peers()), peer),
            Change::RemovePort { direction, rule, port } => ((direction, rule, "ports"), port),
            Change::NarrowBlock { peer: at, .. } | Change::NarrowPorts { port: at, .. } => {
                others.push((at, number));
                continue;
            }
            Change::AddPorts { .. } | Change::NameTypes { .. } => {
                others.push((0, number));
                continue;
            }
        };
        let (which, all) = elements.entry(list).or_default();
        which.insert(at);
        all.push(number);
    }
    others.sort_by_key(|(at, number)| (std::cmp::Reverse(*at), *number));
    let of_rules = elements.into_iter().map(|(list, (which, changes))| {
        let (direction, rule, name) = list;
        let path = format!("spec.{direction}[{rule}].{name}");
        Step::Remove { list: Some(list), path, which, changes }
    });
    let whole = rules.into_iter().map(|(direction, (which, changes))| Step::Remove {
        list: None,
        path: format!("spec.{direction}"),
        which,
        changes,
    });
    of_rules.chain(others.into_iter().map(|(_, number)| Step::One(number))).chain(whole).collect()
}

/// Where an element is now.
type Shift<'a> = &'a dyn Fn(Direction, usize, &'static str, usize) -> usize;

fn make(
    text: &str,
    prefix: &str,
    policy: &NetworkPolicy,
    changes: &[&Change],
    step: &Step,
    shift: Shift<'_>,
) -> Result<String, String> {
    let at = |path: &str| join(prefix, path);
    let number = match step {
        Step::Remove { path, which, .. } => {
            let marks = Marks::of(text, START);
            return all(text, &edit::remove_items(text, node(&marks, &at(path))?, which)?);
        }
        Step::One(number) => *number,
    };
    match changes[number] {
        Change::NarrowBlock { direction, rule, peer, blocks } => {
            let list = direction.peers();
            let path = at(&format!("spec.{direction}[{rule}].{list}"));
            let place = shift(*direction, *rule, list, *peer);
            let rules = match direction {
                Direction::Egress => &policy.egress,
                Direction::Ingress => &policy.ingress,
            };
            let old = rules.get(*rule).and_then(|it| it.peers.get(*peer)?.ip_block.as_ref());
            narrow_block(text, &path, place, old.ok_or("it is no ipBlock")?, blocks)
        }
        Change::NarrowPorts { direction, rule, port, ranges } => {
            let path = at(&format!("spec.{direction}[{rule}].ports"));
            narrow_ports(text, &path, shift(*direction, *rule, "ports", *port), ranges)
        }
        Change::AddPorts { direction, rule, ports } => {
            let marks = Marks::of(text, START);
            let ports = ports.iter().map(|(protocol, port)| {
                Tree::Object(vec![
                    ("protocol", Tree::Text(protocol.to_string())),
                    ("port", Tree::Plain(port.to_string())),
                ])
            });
            let path = at(&format!("spec.{direction}[{rule}]"));
            let ports: Vec<Tree> = ports.collect();
            let list = format!("{path}.ports");
            let added = match marks.has(&list) {
                true => edit::fill_list(text, node(&marks, &list)?, &ports)?,
                false => edit::add_field(text, node(&marks, &path)?, None, "ports", &Tree::List(ports))?,
            };
            all(text, &[added])
        }
        Change::NameTypes { types } => {
            let marks = Marks::of(text, START);
            let (path, spec) = (at("spec.policyTypes"), at("spec"));
            let types: Vec<Tree> = types.iter().map(|it| Tree::Text(word(*it).to_owned())).collect();
            let added = match marks.has(&path) {
                true => edit::fill_list(text, node(&marks, &path)?, &types)?,
                false => edit::add_field(
                    text,
                    node(&marks, &spec)?,
                    Some("podSelector"),
                    "policyTypes",
                    &Tree::List(types),
                )?,
            };
            all(text, &[added])
        }
        Change::RemoveRule { .. } | Change::RemovePeer { .. } | Change::RemovePort { .. } => {
            Err("it is made with others".to_owned())
        }
    }
}

fn narrow_block(
    text: &str,
    list: &str,
    place: usize,
    old: &crate::policy::declared::IpBlock,
    blocks: &[(ipnet::IpNet, String)],
) -> Result<String, String> {
    let ((first, comment), others) = blocks.split_first().ok_or("there is no range")?;
    let block = format!("{list}[{place}].ipBlock");
    let kept = except_within(old, *first);
    let gone: BTreeSet<usize> = (0..old.except.len()).filter(|at| !kept.contains(&old.except[*at])).collect();
    let mut new = text.to_owned();
    if !gone.is_empty() {
        let marks = Marks::of(&new, START);
        let edits = match gone.len() == old.except.len() {
            true => vec![edit::remove_field(&new, node(&marks, &block)?, "except")?],
            false => edit::remove_items(&new, node(&marks, &format!("{block}.except"))?, &gone)?,
        };
        new = all(&new, &edits)?;
    }
    let marks = Marks::of(&new, START);
    let cidr = node(&marks, &format!("{block}.cidr"))?;
    new = all(&new, &edit::set_scalar(&new, cidr, &first.to_string(), comment)?)?;
    if others.is_empty() {
        return Ok(new);
    }
    let others: Vec<Tree> = others
        .iter()
        .map(|(net, comment)| {
            let mut fields = vec![("cidr", Tree::Said(net.to_string(), comment.clone()))];
            let except = except_within(old, *net);
            if !except.is_empty() {
                fields.push(("except", Tree::List(except.into_iter().map(Tree::Text).collect())));
            }
            Tree::Object(vec![("ipBlock", Tree::Object(fields))])
        })
        .collect();
    let marks = Marks::of(&new, START);
    let (list, item) = (node(&marks, list)?, node(&marks, &format!("{list}[{place}]"))?);
    all(&new, &[edit::insert_items(&new, list, item, &others)?])
}

fn narrow_ports(text: &str, list: &str, place: usize, ranges: &[(u16, u16)]) -> Result<String, String> {
    let (&(first, last), others) = ranges.split_first().ok_or("there is no range")?;
    let item = format!("{list}[{place}]");
    let mut new = text.to_owned();
    let marks = Marks::of(&new, START);
    let protocol = marks
        .find(&format!("{item}.protocol"))
        .filter(|it| it.is_whole)
        .map(|it| new[it.node.place.range()].trim_matches(['"', '\'']).to_owned());
    new =
        all(&new, &edit::set_scalar(&new, node(&marks, &format!("{item}.port"))?, &first.to_string(), "")?)?;
    let marks = Marks::of(&new, START);
    let edits = match last > first {
        true => edit::set_scalar(&new, node(&marks, &format!("{item}.endPort"))?, &last.to_string(), "")?,
        false => vec![edit::remove_field(&new, node(&marks, &item)?, "endPort")?],
    };
    new = all(&new, &edits)?;
    if others.is_empty() {
        return Ok(new);
    }
    let others: Vec<Tree> = others
        .iter()
        .map(|(first, last)| {
            let mut fields: Vec<(&'static str, Tree)> =
                protocol.iter().map(|it| ("protocol", Tree::Text(it.clone()))).collect();
            fields.push(("port", Tree::Plain(first.to_string())));
            if last > first {
                fields.push(("endPort", Tree::Plain(last.to_string())));
            }
            Tree::Object(fields)
        })
        .collect();
    let marks = Marks::of(&new, START);
    let (list, item) = (node(&marks, list)?, node(&marks, &item)?);
    all(&new, &[edit::insert_items(&new, list, item, &others)?])
}

/// Makes all edits, or none.
fn all(text: &str, edits: &[Edit]) -> Result<String, String> {
    let (new, made) = edit::apply(text, edits);
    match made.len() == edits.len() {
        true => Ok(new),
        false => Err("its parts are written in one place".to_owned()),
    }
}
