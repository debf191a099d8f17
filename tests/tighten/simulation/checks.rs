//! What must hold of changed policies, by the independent evaluator and the ledger.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use netaudit::advise::tighten::{Change, Contained};
use serde_json::Value;

use super::{
    ask::{Connection, Who, ask},
    line::Line,
    planted::Planted,
    recall::Recall,
    render::File,
    traffic::{BEGIN, Past, SECOND, WINDOW},
    world::{World, plain},
};
use crate::policy::{
    case::{Direction, Protocol},
    matching::{list, text},
    naive::name_of,
};

/// What was looked at.
#[derive(Default, Debug)]
pub struct Figures {
    pub worlds: u64,
    pub changed_worlds: u64,
    pub flows: u64,
    pub probes: u64,
    pub comments: u64,
    /// By kind.
    pub changes: BTreeMap<&'static str, u64>,
    pub by_connections: u64,
    pub recall: Recall,
}

impl Figures {
    pub fn add(&mut self, other: Self) {
        self.worlds += other.worlds;
        self.changed_worlds += other.changed_worlds;
        self.flows += other.flows;
        self.probes += other.probes;
        self.comments += other.comments;
        self.by_connections += other.by_connections;
        other.changes.into_iter().for_each(|(kind, count)| *self.changes.entry(kind).or_default() += count);
        self.recall.add(other.recall);
    }
}

pub fn kind(change: &Change) -> &'static str {
    match change {
        Change::RemoveRule { .. } => "remove rule",
        Change::RemovePeer { .. } => "remove peer",
        Change::RemovePort { .. } => "remove port",
        Change::NarrowBlock { .. } => "narrow addresses",
        Change::NarrowPorts { .. } => "narrow ports",
        Change::AddPorts { .. } => "add ports",
        Change::NameTypes { .. } => "name types",
    }
}

/// The policies as files have them, before and after.
pub struct Written<'a> {
    pub files: &'a [File],
    pub texts: &'a [String],
    /// What the texts say.
    pub policies: &'a [Value],
}

/// The first thing that does not hold is the error.
pub fn check(
    world: &mut World,
    past: &Past,
    line: &Line,
    written: &Written<'_>,
    planted: Planted,
    most_probes: usize,
) -> Result<Figures, String> {
    let Written { files, texts, policies: new } = *written;
    let mut figures = Figures { worlds: 1, ..Figures::default() };
    let changes: Vec<Vec<&Change>> = (0..line.targets.len()).map(|it| line.changes(it)).collect();
    for change in changes.iter().flatten() {
        *figures.changes.entry(kind(change)).or_default() += 1;
    }
    figures.changed_worlds = u64::from(changes.iter().any(|it| !it.is_empty()));
    if new.len() != world.policies.len() {
        return Err(format!("{} policies became {}", world.policies.len(), new.len()));
    }
    for (contained, target) in line.patched.contained.iter().zip(&line.targets) {
        if !contained.is_shown() && planted != Planted::Types {
            return Err(format!("containment of {}: {contained:?}", target.policy.name));
        }
        figures.by_connections += u64::from(*contained == Contained::ByConnections);
    }
    let objects = [world.with(&world.policies), world.with(new)];
    flows(world, past, &objects, &mut figures)?;
    probes(world, past, &objects, &changes, most_probes, &mut figures)?;
    comments(files, texts, &changes, &mut figures)?;
    for (number, policy) in new.iter().enumerate().filter(|it| !changes[it.0].is_empty()) {
        types(&world.policies[number], policy)?;
    }
    Ok(figures)
}

/// What was observed and allowed still is, and what happened while agents watched for long enough, observed or not.
fn flows(world: &World, past: &Past, objects: &[Vec<Value>; 2], figures: &mut Figures) -> Result<(), String> {
    let until = past.told();
    let since = until - i64::try_from((WINDOW - Duration::from_secs(10)).as_nanos()).expect("a day");
    let mut seen: BTreeSet<(Connection, usize)> = BTreeSet::new();
    for sent in &past.sent {
        for (place, direction) in Direction::BOTH.into_iter().enumerate() {
            // Agents know of what they saw of the policies as they are, though the store may not.
            let is_known = sent.recorded[place] && sent.at >= past.changed.unwrap_or(BEGIN);
            let is_late = sent.at > since && sent.reached[place];
            let is_meant = sent.stored.contains(&true) || is_known || is_late;
            if !is_meant || !seen.insert((sent.connection, place)) {
                continue;
            }
            let Some(old) = &past.said[&sent.connection][place] else { continue };
            // Nothing sees it: a rule that does not name it is not known to be used for it.
            let is_named = old.hits.iter().any(|it| !it.ports.is_empty()) || old.isolating.is_empty();
            let is_sctp = sent.connection.protocol == Protocol::Sctp;
            if !old.is_allowed() || is_sctp && !is_named {
                continue;
            }
            // Of a connection that one end denied nobody knows that the other allowed it.
            let other = &past.said[&sent.connection][1 - place];
            if other.as_ref().is_some_and(|it| !it.is_allowed()) && !sent.reached[place] {
                continue;
            }
            figures.flows += 1;
            let new = ask(world, &objects[1], &sent.connection, direction).ok_or("no answer")?;
            if !new.is_allowed() {
                return Err(format!(
                    "a flow of {} hours (recorded {:?}) that was allowed is denied, {direction:?} of {:?}:\nwas {old:?}\nis {new:?}",
                    (sent.at - BEGIN) / (3_600 * SECOND),
                    sent.recorded,
                    sent.connection
                ));
            }
        }
    }
    Ok(())
}

/// Nothing new is allowed, and all who were isolated are.
fn probes(
    world: &mut World,
    past: &Past,
    objects: &[Vec<Value>; 2],
    changes: &[Vec<&Change>],
    most: usize,
    figures: &mut Figures,
) -> Result<(), String> {
    let changed: Vec<usize> = (0..changes.len()).filter(|it| !changes[*it].is_empty()).collect();
    if changed.is_empty() {
        return Ok(());
    }
    let (mut ports, mut addresses) = (BTreeSet::from([1, 65_535]), BTreeSet::new());
    let count = world.policies.len();
    let policies = objects.iter().flat_map(|it| &it[it.len() - count..]);
    for rule in policies
        .flat_map(|it| [("ingress", "from", it), ("egress", "to", it)])
        .flat_map(|(direction, peers, it)| list(&it["spec"], direction).iter().map(move |rule| (peers, rule)))
    {
        for port in list(rule.1, "ports") {
            for number in ["port", "endPort"].iter().filter_map(|it| port.get(*it)?.as_u64()) {
                let near = number.saturating_sub(1)..=number + 1;
                ports.extend(near.filter_map(|it| u16::try_from(it).ok()).filter(|it| *it > 0));
            }
        }
        for block in list(rule.1, rule.0).iter().filter_map(|it| it.get("ipBlock")) {
            let nets = text(block, "cidr").into_iter();
            for net in nets.chain(list(block, "except").iter().filter_map(Value::as_str)).map(plain) {
                let ends = [net.network(), net.broadcast()];
                addresses.extend(ends.into_iter().flat_map(|ip| [next(ip, false), ip, next(ip, true)]));
            }
        }
    }
    ports.extend(past.sent.iter().map(|it| it.connection.port));
    addresses.extend(world.outside.iter().map(|it| it.ip));
    let is_inside = |ip: &IpAddr| {
        world.pods.iter().any(|it| it.addresses.contains(ip))
            || world.nodes.iter().flatten().any(|it| it == ip)
    };
    addresses.retain(|ip| !is_inside(ip));
    let outside = addresses.into_iter().map(|ip| (Who::Outside, ip));
    let nodes = world.nodes.iter().enumerate();
    let nodes = nodes.flat_map(|(at, ips)| ips.iter().map(move |ip| (Who::Node(at), *ip)));
    let pods: Vec<(Who, IpAddr)> = world
        .pods
        .iter()
        .enumerate()
        .flat_map(|(at, pod)| pod.addresses.iter().map(move |ip| (Who::Pod(at), *ip)))
        .collect();
    let peers: Vec<(Who, IpAddr)> = outside.chain(nodes).chain(pods.iter().copied()).collect();
    let ports: Vec<u16> = ports.into_iter().collect();
    let owns: Vec<(Who, IpAddr)> = pods;
    let all = owns.len() * peers.len() * ports.len() * 6;
    let is_all = all <= most;
    for number in 0..all.min(most) {
        let mut pick = |count: usize, rest: &mut usize| {
            let at = if is_all { *rest % count } else { world.random.below(count) };
            *rest /= count;
            at
        };
        let mut rest = number;
        let own = owns[pick(owns.len(), &mut rest)];
        let peer = peers[pick(peers.len(), &mut rest)];
        let port = ports[pick(ports.len(), &mut rest)];
        let protocol = Protocol::ALL[pick(3, &mut rest)];
        let direction = Direction::BOTH[pick(2, &mut rest)];
        if own.1.is_ipv4() != peer.1.is_ipv4() {
            continue;
        }
        let (from, to) = if direction == Direction::Egress { (own, peer) } else { (peer, own) };
        let connection = Connection { from, to, protocol, port };
        let [old, new] = [0, 1].map(|it| ask(world, &objects[it], &connection, direction));
        let (Some(old), Some(new)) = (old, new) else { continue };
        figures.probes += 1;
        if old.isolating != new.isolating || new.is_allowed() && !old.is_allowed() {
            return Err(format!(
                "{direction:?} of {connection:?} is newly allowed:\nwas {old:?}\nis {new:?}"
            ));
        }
        // A rule may be hidden behind others: each policy for itself.
        for hit in &new.hits {
            if !old.hits.iter().any(|it| it.policy == hit.policy) {
                return Err(format!(
                    "newly allowed by {} alone, {direction:?} of {connection:?}:\nwas {old:?}\nis {new:?}",
                    hit.policy
                ));
            }
        }
    }
    Ok(())
}

fn next(ip: IpAddr, up: bool) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let bits = ip.to_bits();
            Ipv4Addr::from_bits(if up { bits.saturating_add(1) } else { bits.saturating_sub(1) }).into()
        }
        IpAddr::V6(ip) => {
            let bits = ip.to_bits();
            Ipv6Addr::from_bits(if up { bits.saturating_add(1) } else { bits.saturating_sub(1) }).into()
        }
    }
}

/// Comments of what stays are there.
fn comments(
    files: &[File],
    texts: &[String],
    changes: &[Vec<&Change>],
    figures: &mut Figures,
) -> Result<(), String> {
    for (file, text) in files.iter().zip(texts) {
        for comment in &file.comments {
            let is_gone = |change: &&Change| {
                let path = format!("spec.{}", change.path());
                let inside = comment.path.strip_prefix(path.as_str());
                match change {
                    Change::RemoveRule { .. } | Change::RemovePeer { .. } | Change::RemovePort { .. } => {
                        inside.is_some_and(|it| it.is_empty() || it.starts_with(['.', '[']))
                    }
                    Change::NarrowPorts { .. } => inside == Some(".endPort"),
                    Change::NarrowBlock { .. } => inside.is_some_and(|it| it.starts_with(".ipBlock.except")),
                    Change::AddPorts { .. } | Change::NameTypes { .. } => false,
                }
            };
            if comment.policy.is_some_and(|it| changes[it].iter().any(is_gone)) {
                continue;
            }
            figures.comments += 1;
            if !text.contains(&comment.text) {
                return Err(format!(
                    "the comment {:?} of {:?} {:?} is gone\nchanges: {changes:?}\n--- before\n{}\n--- after\n{text}",
                    comment.text, comment.policy, comment.path, file.text
                ));
            }
        }
    }
    Ok(())
}

/// The directions are written, and are those that were meant.
fn types(old: &Value, new: &Value) -> Result<(), String> {
    let told = |it: &Value| -> BTreeSet<String> {
        list(&it["spec"], "policyTypes").iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut meant = told(old);
    if meant.is_empty() {
        meant.insert("Ingress".to_owned());
        if !list(&old["spec"], "egress").is_empty() {
            meant.insert("Egress".to_owned());
        }
    }
    match told(new) == meant {
        true => Ok(()),
        false => Err(format!("policyTypes of {}: {:?} instead of {meant:?}", name_of(new), told(new))),
    }
}
