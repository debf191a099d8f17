//! What happens in a cluster, seen by real agents, and the ledger of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    ops::Range,
    time::Duration,
};

use netaudit::{
    audit::{Evidence, usage::Rows},
    cluster::Object,
    model,
    watch::convert::{self, Converted},
};
use serde_json::Value;

use super::{
    ask::{Connection, Said, Who, ask},
    world::{Lean, World},
};
use crate::{
    policy::{
        case::{Direction, Protocol},
        matching::list,
        naive::name_of,
    },
    usage::agents::{Node, Seen},
};

pub const SECOND: i64 = 1_000_000_000;
pub const STEP: i64 = 3_600 * SECOND;
const STEPS: i64 = 30;
/// When agents begin to watch.
pub const BEGIN: i64 = 1_700_000_000 * SECOND;
/// How long something must be watched; the agents of the tests have the same.
pub const WINDOW: Duration = Duration::from_secs(24 * 3_600);
/// Of a day 9 seconds may be missing.
pub const NEEDS: Evidence = Evidence { window: WINDOW, coverage: 0.9999 };

/// What goes wrong in a world; in most nothing does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trouble {
    Nothing,
    /// A node's agent is away in these steps.
    Gap(usize, Range<i64>),
    /// Some of a node's records are lost in these steps, and counted.
    Loss(usize, Range<i64>),
    /// A node has no agent.
    NoAgent(usize),
}

/// A connection that happened.
pub struct Sent {
    pub connection: Connection,
    pub at: i64,
    /// Whether it came to egress of its source, and to ingress of its destination.
    pub reached: [bool; 2],
    /// Whether the node of that end recorded it.
    pub recorded: [bool; 2],
    /// Whether that record is still there.
    pub stored: [bool; 2],
}

/// All that happened.
pub struct Past {
    pub sent: Vec<Sent>,
    pub rows: Rows,
    pub trouble: Trouble,
    /// Whether all records are there; else they are kept for a shorter time than the usage.
    pub keeps_all: bool,
    /// When the policies became what they are, if they were otherwise.
    pub changed: Option<i64>,
    /// What the policies as they are say of each end of each connection.
    pub said: BTreeMap<Connection, [Option<Said>; 2]>,
}

impl Past {
    /// When agents last told something.
    pub fn told(&self) -> i64 {
        BEGIN + STEPS * STEP
    }

    /// Whether all was seen, all the time that counts, of what this node's pods did.
    pub fn is_watched(&self, node: usize) -> bool {
        match &self.trouble {
            Trouble::Nothing => true,
            Trouble::Gap(n, _) | Trouble::Loss(n, _) | Trouble::NoAgent(n) => *n != node,
        }
    }
}

/// Objects as the agents and netaudit's core know them.
pub fn converted(objects: &[Value]) -> Vec<Object> {
    let source = "simulation".into();
    let all = objects.iter().flat_map(|object| convert::document(object, &source));
    let of = |it| match it {
        Converted::Object(object) => Some(object),
        Converted::Ignored(_) | Converted::Nothing(_) => None,
    };
    all.filter_map(of).collect()
}

/// Lets time pass.
///
/// Nothing is older than the usage, and no policy changes, where `is_all_watched`.
pub fn pass(world: &mut World, trouble: Option<Trouble>, is_all_watched: bool) -> Past {
    let trouble = trouble.unwrap_or_else(|| any_trouble(world));
    let changes = match world.random.below(10) {
        _ if is_all_watched => None,
        0 | 1 => Some(2),
        2 => Some(world.random.between(7, 28) as i64),
        _ => None,
    };
    let is_enforced = world.random.percent(85);
    let (now_objects, then_objects) = (world.with(&world.policies), world.with(&world.earlier));
    let connections = connections(world, &now_objects);
    let said_by = |objects: &[Value]| -> BTreeMap<Connection, [Option<Said>; 2]> {
        let all = connections.iter().map(|(it, _)| *it);
        all.map(|it| (it, Direction::BOTH.map(|direction| ask(world, objects, &it, direction)))).collect()
    };
    let (said, said_then) = (said_by(&now_objects), changes.map(|_| said_by(&then_objects)));
    let pods_of = |node: usize| -> Vec<(u64, String)> {
        let pods = world.pods.iter().filter(|pod| pod.node == node);
        pods.map(|pod| (pod.number, pod.uid.clone())).collect()
    };
    let mut nodes: Vec<Node> = (0..world.nodes.len())
        .map(|n| Node::new(&format!("node-{n}"), trouble != Trouble::NoAgent(n), false, BEGIN))
        .collect();
    let first = if changes.is_some() { &then_objects } else { &now_objects };
    for (n, node) in nodes.iter_mut().enumerate().filter(|(_, node)| node.has_agent) {
        node.start(converted(first), &pods_of(n), BEGIN);
    }
    let mut past = Past {
        sent: Vec::new(),
        rows: Rows::default(),
        changed: None,
        trouble,
        said: BTreeMap::new(),
        keeps_all: world.random.percent(85),
    };
    let (mut now, mut socket) = (BEGIN, 0_u16);
    for step in 0..STEPS {
        if changes == Some(step) {
            past.changed = Some(now);
            for node in &mut nodes {
                let at = node.line(now);
                if let Some(agent) = &mut node.agent {
                    agent.objects(converted(&now_objects), at);
                }
            }
        }
        if let Trouble::Gap(n, steps) = &past.trouble {
            let node = &mut nodes[*n];
            if steps.start == step {
                node.write(now, true);
                node.agent = None;
            } else if steps.end == step {
                let is_new = changes.is_none_or(|at| at <= step);
                let objects = if is_new { &now_objects } else { &then_objects };
                node.start(converted(objects), &pods_of(*n), now);
            }
        }
        let ruling = match &said_then {
            Some(then) if changes > Some(step) => then,
            _ => &said,
        };
        for (number, (connection, often)) in connections.iter().enumerate() {
            if !often.at(step, &mut world.random) {
                continue;
            }
            socket = (socket + 1) % 30_000;
            let at = now + (number as i64 + 1) * SECOND;
            let [egress, ingress] = &ruling[connection];
            let passes = |it: &Option<Said>| it.as_ref().is_none_or(Said::is_allowed) || !is_enforced;
            let reached = [true, passes(egress) && passes(ingress)];
            let mut sent =
                Sent { connection: *connection, at, reached, recorded: [false; 2], stored: [false; 2] };
            for (place, seen) in seen(world, connection, at, 20_000 + socket).into_iter().enumerate() {
                let Some((n, seen)) = seen.filter(|_| reached[place]) else { continue };
                let is_lossy = matches!(&past.trouble, Trouble::Loss(lossy, steps) if *lossy == n && steps.contains(&step));
                if is_lossy && world.random.percent(60) {
                    nodes[n].lose();
                } else if nodes[n].agent.is_some() {
                    nodes[n].see(seen, at);
                    sent.recorded[place] = true;
                    sent.stored[place] = past.keeps_all || world.random.percent(60);
                }
            }
            past.sent.push(sent);
        }
        now += STEP;
        nodes.iter_mut().for_each(|node| node.tick(now));
    }
    for node in &mut nodes {
        node.write(now, false);
        past.rows.merge(node.rows().clone());
    }
    if !is_all_watched {
        older(world, &connections, &mut past);
    }
    past.said = said;
    past
}

fn any_trouble(world: &mut World) -> Trouble {
    let node = world.random.below(world.nodes.len());
    let from = world.random.between(1, 20) as i64;
    let until = from + world.random.between(1, 6) as i64;
    match world.random.below(20) {
        0 | 1 => Trouble::Gap(node, from..until),
        2 | 3 => Trouble::Loss(node, from..until),
        4 | 5 => Trouble::NoAgent(node),
        _ => Trouble::Nothing,
    }
}

/// Recorded flows of a time of which the usage has nothing any more.
fn older(world: &mut World, connections: &[(Connection, Often)], past: &mut Past) {
    if !world.random.percent(30) {
        return;
    }
    for (connection, _) in connections {
        if connection.protocol == Protocol::Sctp || !world.random.percent(25) {
            continue;
        }
        let has_agent = |who: Who| match who {
            Who::Pod(at) => past.trouble != Trouble::NoAgent(world.pods[at].node),
            Who::Node(_) | Who::Outside => false,
        };
        let recorded = [has_agent(connection.from.0), has_agent(connection.to.0)];
        let at = BEGIN - 200 * STEP;
        let sent = Sent { connection: *connection, at, reached: [true; 2], recorded, stored: recorded };
        past.sent.push(sent);
    }
}

/// How often a connection is made.
enum Often {
    Once(i64),
    /// Of a hundred steps in so many.
    Percent(u64),
    /// Only of old.
    Never,
}

impl Often {
    fn at(&self, step: i64, random: &mut crate::policy::random::Random) -> bool {
        match self {
            Self::Once(at) => *at == step,
            Self::Percent(chance) => random.percent(*chance),
            Self::Never => false,
        }
    }
}

/// What the ends of a connection see, and on which node; nobody sees SCTP.
fn seen(world: &World, connection: &Connection, at: i64, port: u16) -> [Option<(usize, Seen)>; 2] {
    let protocol = match connection.protocol {
        Protocol::Tcp => model::Protocol::Tcp,
        Protocol::Udp => model::Protocol::Udp,
        Protocol::Sctp => return [None, None],
    };
    let source = SocketAddr::new(connection.from.1, port);
    let destination = SocketAddr::new(connection.to.1, connection.port);
    let of = |who: Who, direction, local, remote| match who {
        Who::Pod(place) => {
            let pod = &world.pods[place];
            let seen = Seen { at, direction, protocol, pod: (pod.number, pod.uid.clone()), local, remote };
            Some((pod.node, seen))
        }
        Who::Node(_) | Who::Outside => None,
    };
    [
        of(connection.from.0, model::Direction::Egress, source, destination),
        of(connection.to.0, model::Direction::Ingress, destination, source),
    ]
}

fn connections(world: &mut World, objects: &[Value]) -> Vec<(Connection, Often)> {
    let (count, mut made) = (world.random.between(4, 36), BTreeSet::new());
    let mut connections = Vec::new();
    for _ in 0..count {
        let Some(connection) = connection(world, objects) else { continue };
        if !made.insert(connection) {
            continue;
        }
        let often = match world.random.below(10) {
            0..4 => Often::Once(world.random.below(STEPS as usize) as i64),
            4..7 => Often::Percent(20),
            7..9 => Often::Percent(70),
            _ => Often::Never,
        };
        connections.push((connection, often));
    }
    // Somebody goes to many addresses, so that what is enough for them has holes of its own.
    let wide = connections.iter().map(|it| it.0).filter(|it| it.to.0 == Who::Outside);
    let wide: Vec<Connection> = wide.collect();
    if !wide.is_empty() && (world.random.percent(30) || world.lean == Lean::Holes) {
        let like = *world.random.pick(&wide);
        for outside in &world.outside {
            let to = (Who::Outside, outside.ip);
            let connection = Connection { to, ..like };
            if outside.ip.is_ipv4() == like.to.1.is_ipv4() && made.insert(connection) {
                connections.push((connection, Often::Percent(20)));
            }
        }
    }
    connections
}

/// One that a rule allows, most often, at an end of a range, often.
fn connection(world: &mut World, objects: &[Value]) -> Option<Connection> {
    let policies = &world.policies;
    let policy = world.random.below(policies.len());
    let direction = *world.random.pick(&Direction::BOTH);
    let rules = list(&world.policies[policy]["spec"], direction.as_str()).to_vec();
    let name = name_of(&world.policies[policy]);
    if rules.is_empty() || world.random.percent(15) {
        let end = ends(world);
        let (protocol, port) = (world.protocol(), world.any_port());
        return made(world, end, direction, protocol, port);
    }
    let rule = world.random.below(rules.len());
    let mut last = None;
    for _ in 0..6 {
        let end = ends(world);
        let (protocol, port) = port_of(world, &rules[rule], direction, end);
        let Some(connection) = made(world, end, direction, protocol, port) else { continue };
        last = Some(connection);
        let said = ask(world, objects, &connection, direction);
        if said.is_some_and(|it| it.hits.iter().any(|hit| hit.policy == name && hit.rule == rule)) {
            break;
        }
    }
    last
}

/// A pod and somebody.
fn ends(world: &mut World) -> (usize, Who, Option<IpAddr>) {
    let own = world.random.below(world.pods.len());
    match world.random.below(20) {
        0 => {
            let node = world.random.below(world.nodes.len());
            (own, Who::Node(node), Some(*world.random.pick(&world.nodes[node])))
        }
        1..9 if !world.outside.is_empty() => (own, Who::Outside, Some(world.random.pick(&world.outside).ip)),
        _ => (own, Who::Pod(world.random.below(world.pods.len())), None),
    }
}

/// The connection between two ends, the first of which is whose policies are asked, where they share a family of addresses.
fn made(
    world: &mut World,
    (own, peer, ip): (usize, Who, Option<IpAddr>),
    direction: Direction,
    protocol: Protocol,
    port: u16,
) -> Option<Connection> {
    let mut peers: Vec<IpAddr> = match peer {
        Who::Pod(at) => world.pods[at].addresses.clone(),
        Who::Node(_) | Who::Outside => ip.into_iter().collect(),
    };
    if world.random.percent(50) {
        peers.reverse();
    }
    let owns = &world.pods[own].addresses;
    let (own_ip, peer_ip) = crate::usage::agents::pair(owns, &peers)?;
    if peer == Who::Pod(own) {
        return None;
    }
    let (own, peer) = ((Who::Pod(own), own_ip), (peer, peer_ip));
    let (from, to) = if direction == Direction::Egress { (own, peer) } else { (peer, own) };
    Some(Connection { from, to, protocol, port })
}

/// A port that a rule is for.
fn port_of(
    world: &mut World,
    rule: &Value,
    direction: Direction,
    end: (usize, Who, Option<IpAddr>),
) -> (Protocol, u16) {
    let ports = list(rule, "ports");
    if ports.is_empty() {
        return (world.protocol(), world.any_port());
    }
    let port = world.random.pick(ports);
    let protocol = match port["protocol"].as_str() {
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        _ => Protocol::Tcp,
    };
    let number = |name: &str| port.get(name).and_then(Value::as_u64).and_then(|it| u16::try_from(it).ok());
    match (number("port"), number("endPort")) {
        (Some(first), None) => (protocol, first),
        (Some(first), Some(last)) => {
            let near = world.random.between(usize::from(first), usize::from(last.min(first + 20))) as u16;
            let any = world.random.between(usize::from(first), usize::from(last)) as u16;
            (protocol, *world.random.pick(&[first, last, near, any]))
        }
        (None, _) => {
            let destination = match (direction, end) {
                (Direction::Egress, (_, Who::Pod(at), _)) | (Direction::Ingress, (at, ..)) => at,
                _ => return (protocol, world.any_port()),
            };
            let name = format!("pod-{destination}");
            let pod = world.objects.iter().find(|it| it["kind"] == "Pod" && it["metadata"]["name"] == *name);
            let named = list(&pod.expect("a pod")["spec"]["containers"][0], "ports");
            let found = named.iter().find(|it| it["name"] == port["port"]);
            let number = found.and_then(|it| it["containerPort"].as_u64()?.try_into().ok());
            (protocol, number.unwrap_or(80))
        }
    }
}

/// The use of a rule or of an element of one.
#[derive(Default, Debug)]
pub struct Used {
    /// Since agents watch.
    pub lately: bool,
    /// By recorded flows of before.
    pub of_old: bool,
    pub addresses: BTreeSet<IpAddr>,
    pub ports: BTreeSet<u16>,
}

impl Used {
    fn add(&mut self, sent: &Sent, direction: Direction) {
        match sent.at >= BEGIN {
            true => self.lately = true,
            false => self.of_old = true,
        }
        let peer = if direction == Direction::Egress { sent.connection.to } else { sent.connection.from };
        self.addresses.insert(peer.1);
        self.ports.insert(sent.connection.port);
    }
}

/// Of what list an element is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum List {
    /// It is the rule itself.
    Rule,
    Peers,
    Ports,
}

/// A rule, or an element of one: policy, direction, rule, list and element.
pub type Place = (String, &'static str, usize, List, usize);

/// Who used what of the policies as they are, by the independent evaluator.
pub fn ledger(past: &Past) -> BTreeMap<Place, Used> {
    let mut ledger: BTreeMap<Place, Used> = BTreeMap::new();
    for sent in &past.sent {
        for (place, direction) in Direction::BOTH.into_iter().enumerate() {
            let Some(said) = past.said[&sent.connection][place].as_ref().filter(|_| sent.reached[place])
            else {
                continue;
            };
            for hit in &said.hits {
                let mut add = |list, at| {
                    let key = (hit.policy.clone(), direction.as_str(), hit.rule, list, at);
                    ledger.entry(key).or_default().add(sent, direction);
                };
                add(List::Rule, 0);
                hit.peers.iter().for_each(|at| add(List::Peers, *at));
                hit.ports.iter().for_each(|at| add(List::Ports, *at));
            }
        }
    }
    ledger
}
