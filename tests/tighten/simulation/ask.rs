//! The independent evaluator, asked of one connection between two addresses.

use std::net::IpAddr;

use serde_json::Value;

use super::world::World;
use crate::policy::{
    case::{Direction, End, Flow, Protocol},
    matching::list,
    naive::{Naive, name_of},
};

/// An end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Who {
    /// Which pod.
    Pod(usize),
    /// Which node.
    Node(usize),
    /// Somebody outside the cluster.
    Outside,
}

/// A connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Connection {
    pub from: (Who, IpAddr),
    pub to: (Who, IpAddr),
    pub protocol: Protocol,
    pub port: u16,
}

/// A rule that allows a connection, and its elements that match.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hit {
    /// `namespace/name`.
    pub policy: String,
    pub rule: usize,
    pub peers: Vec<usize>,
    pub ports: Vec<usize>,
}

/// What one end's policies say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Said {
    /// The policies that isolate it.
    pub isolating: Vec<String>,
    pub hits: Vec<Hit>,
}

impl Said {
    pub fn is_allowed(&self) -> bool {
        self.isolating.is_empty() || !self.hits.is_empty()
    }
}

/// What the policies of an end say; `None` where that is no pod, or policies do not apply.
pub fn ask(world: &World, objects: &[Value], connection: &Connection, direction: Direction) -> Option<Said> {
    let naive = Naive { objects, dns: None, seen: None };
    let end = |(who, ip): (Who, IpAddr)| match who {
        Who::Pod(at) => End::Pod(world.pods[at].name.clone()),
        Who::Node(_) | Who::Outside => End::Ip(ip),
    };
    let flow = Flow::new(end(connection.from), end(connection.to), connection.protocol, connection.port);
    let mut question = naive.question(&flow, direction)?;
    // A pod with two addresses has one of them in a connection.
    question.peer.addresses = vec![match direction {
        Direction::Egress => connection.to.1,
        Direction::Ingress => connection.from.1,
    }];
    let mut said = Said { isolating: Vec::new(), hits: Vec::new() };
    for policy in naive.isolating(&question) {
        said.isolating.push(name_of(policy));
        for (rule, declared) in list(&policy["spec"], direction.as_str()).iter().enumerate() {
            if !naive.allows(declared, policy, &question) {
                continue;
            }
            let peers = list(declared, direction.peers()).iter().enumerate();
            let ports = list(declared, "ports").iter().enumerate();
            said.hits.push(Hit {
                policy: name_of(policy),
                rule,
                peers: peers.filter(|it| naive.is_peer(it.1, policy, &question)).map(|it| it.0).collect(),
                ports: ports.filter(|it| question.target.is_port(it.1, None)).map(|it| it.0).collect(),
            });
        }
    }
    Some(said)
}
