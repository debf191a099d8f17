//! Whom and what the rules of policies are for, as far as this can be compared without knowing any pod.

use ipnet::IpNet;

use crate::{
    model::{Direction, Protocol},
    policy::{
        Selector,
        declared::{self, PortRef},
        parse_cidr,
    },
};

/// A rule of a policy of any kind.
#[derive(Debug)]
pub(super) struct Rule {
    /// `spec.egress[0]`.
    pub path: String,
    /// `to` or `from`.
    pub list: &'static str,
    /// What it does; every rule of a NetworkPolicy allows.
    pub action: Option<String>,
    /// Whom it is for; everybody if empty.
    pub peers: Vec<Peer>,
    /// What it is for; everything if empty.
    pub ports: Vec<Port>,
    /// Whether a part of it cannot be read, so that it may be for anybody.
    pub is_doubtful: bool,
}

/// An element of `from` or `to`.
#[derive(Debug)]
pub(super) struct Peer {
    pub path: String,
    pub whom: Whom,
}

/// Whom an element is for.
#[derive(Debug)]
pub(super) enum Whom {
    Pods {
        namespaces: Selector,
        pods: Selector,
        /// Whether it says no namespaces, so that they are the policy's own.
        is_own: bool,
    },
    Nodes(Selector),
    /// Ranges, each without others.
    Ranges(Vec<(IpNet, Vec<IpNet>)>),
    /// It cannot be read, or cannot be compared.
    Unknown,
}

/// An element of `ports`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Port {
    pub path: String,
    /// `None`: any.
    pub protocol: Option<Protocol>,
    /// Whether the protocol is written.
    pub says_protocol: bool,
    pub number: Number,
}

/// Which ports an element is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Number {
    Any,
    Range(u16, u16),
    Named(String),
    /// It cannot be read.
    Unknown,
}

impl Rule {
    /// Reads a NetworkPolicy's rule.
    pub fn of(rule: &declared::Rule, direction: Direction, index: usize, namespace: &str) -> Self {
        let path = format!("spec.{direction}[{index}]");
        let list = list_of(direction);
        let whom = |(index, peer): (usize, &declared::Peer)| Peer {
            path: format!("{path}.{list}[{index}]"),
            whom: Whom::of(peer, namespace),
        };
        let port =
            |(index, it): (usize, &declared::Port)| Port::of(it, format!("{path}.ports[{index}]"), false);
        let peers: Vec<Peer> = rule.peers.iter().enumerate().map(whom).collect();
        let ports: Vec<Port> = rule.ports.iter().enumerate().map(port).collect();
        let is_doubtful = rule.invalid_peers.is_some()
            || rule.invalid_ports.is_some()
            || peers.iter().any(|it| matches!(it.whom, Whom::Unknown))
            || ports.iter().any(|it| it.number == Number::Unknown);
        Self { path, list, action: None, peers, ports, is_doubtful }
    }

    /// Reads a cluster-wide policy's rule.
    pub fn of_cluster(rule: &declared::ClusterRule, direction: Direction, index: usize) -> Self {
        let path = format!("spec.{direction}[{index}]");
        let list = list_of(direction);
        let whom = |(index, peer): (usize, &declared::ClusterPeer)| Peer {
            path: format!("{path}.{list}[{index}]"),
            whom: Whom::of_cluster(peer),
        };
        let port = |it: &declared::ClusterPort| {
            let is_named = matches!(it.port.port, Some(PortRef::Name(_)));
            Port::of(&it.port, format!("{path}.{}", it.path), is_named)
        };
        let peers: Vec<Peer> = rule.peers.iter().enumerate().map(whom).collect();
        let ports: Vec<Port> = rule.ports.iter().map(port).collect();
        let is_doubtful = rule.invalid.is_some()
            || rule.invalid_peers.is_some()
            || rule.invalid_ports.is_some()
            || peers.is_empty()
            || peers.iter().any(|it| matches!(it.whom, Whom::Unknown))
            || ports.iter().any(|it| it.number == Number::Unknown);
        Self { path, list, action: rule.action.clone(), peers, ports, is_doubtful }
    }

    /// Whether it may be for this port of some destination.
    pub fn may_be_for(&self, protocol: Protocol, port: u16) -> bool {
        self.is_doubtful || self.ports.is_empty() || self.ports.iter().any(|it| it.may_be(protocol, port))
    }

    /// Whether it says this port, by number or in a range.
    pub fn names(&self, protocol: Protocol, port: u16) -> bool {
        self.ports.iter().any(|it| matches!(it.number, Number::Range(..)) && it.may_be(protocol, port))
    }

    /// Whether both may be for the same.
    pub fn may_meet(&self, other: &Self) -> bool {
        self.ports_may_meet(other) && self.peers_may_meet(other)
    }

    /// Whether both may be for one port.
    pub fn ports_may_meet(&self, other: &Self) -> bool {
        let any = self.ports.is_empty() || other.ports.is_empty() || self.is_doubtful || other.is_doubtful;
        any || self.ports.iter().any(|it| other.ports.iter().any(|more| it.may_meet(more)))
    }

    /// Whether both may be for the same pods, nodes or addresses.
    pub fn peers_may_meet(&self, other: &Self) -> bool {
        let any = self.peers.is_empty() || other.peers.is_empty() || self.is_doubtful || other.is_doubtful;
        any || self.peers.iter().any(|it| other.peers.iter().any(|more| it.whom.may_meet(&more.whom)))
    }

    /// Whether another rule is for all that this one is for, whatever pods and namespaces there are.
    pub fn is_within(&self, other: &Self) -> bool {
        let whom = other.peers.is_empty()
            || !self.peers.is_empty()
                && self.peers.iter().all(|it| other.peers.iter().any(|all| it.whom.is_within(&all.whom)));
        let what = other.ports.is_empty()
            || !self.ports.is_empty()
                && self.ports.iter().all(|it| other.ports.iter().any(|all| it.is_within(all)));
        whom && what && !self.is_doubtful && !other.is_doubtful
    }
}

/// What a direction's rules call their peers.
const fn list_of(direction: Direction) -> &'static str {
    direction.peers()
}

impl Whom {
    fn of(peer: &declared::Peer, namespace: &str) -> Self {
        let has_selector = peer.pod_selector.is_some() || peer.namespace_selector.is_some();
        match &peer.ip_block {
            _ if peer.invalid.is_some() => Self::Unknown,
            Some(_) if has_selector => Self::Unknown,
            Some(block) => {
                range(&block.cidr, &block.except).map_or(Self::Unknown, |it| Self::Ranges(vec![it]))
            }
            None if has_selector => Self::Pods {
                namespaces: match &peer.namespace_selector {
                    Some(selector) => Selector::of(selector),
                    None => Selector::of_namespace(namespace),
                },
                pods: peer.pod_selector.as_ref().map(Selector::of).unwrap_or_default(),
                is_own: peer.namespace_selector.is_none(),
            },
            None => Self::Unknown,
        }
    }

    fn of_cluster(peer: &declared::ClusterPeer) -> Self {
        let scope = (&peer.scope.namespaces, &peer.scope.pods);
        match (scope, &peer.nodes, &peer.networks, &peer.domain_names) {
            _ if peer.invalid.is_some() || peer.scope.invalid.is_some() => Self::Unknown,
            ((Some(namespaces), None), None, None, None) => {
                Self::Pods { namespaces: Selector::of(namespaces), pods: Selector::default(), is_own: false }
            }
            ((None, Some((namespaces, pods))), None, None, None) => {
                Self::Pods { namespaces: Selector::of(namespaces), pods: Selector::of(pods), is_own: false }
            }
            ((None, None), Some(nodes), None, None) => Self::Nodes(Selector::of(nodes)),
            ((None, None), None, Some(networks), None) => {
                let ranges: Option<Vec<_>> = networks.iter().map(|it| range(it, &[])).collect();
                ranges.filter(|it| !it.is_empty()).map_or(Self::Unknown, Self::Ranges)
            }
            _ => Self::Unknown,
        }
    }

    /// Whether the other is for all that this is for.
    pub fn is_within(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Pods { namespaces, pods, .. }, Self::Pods { namespaces: all, pods: every, .. }) => {
                namespaces.is_within(all) && pods.is_within(every)
            }
            (Self::Nodes(some), Self::Nodes(all)) => some.is_within(all),
            (Self::Ranges(some), Self::Ranges(all)) => {
                some.iter().all(|it| all.iter().any(|other| is_range_within(it, other)))
            }
            _ => false,
        }
    }

    /// Whether both may be for the same.
    pub fn may_meet(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Pods { namespaces, pods, .. }, Self::Pods { namespaces: others, pods: more, .. }) => {
                !namespaces.is_disjoint(others) && !pods.is_disjoint(more)
            }
            (Self::Nodes(some), Self::Nodes(others)) => !some.is_disjoint(others),
            (Self::Ranges(some), Self::Ranges(others)) => {
                some.iter().any(|(a, _)| others.iter().any(|(b, _)| a.contains(b) || b.contains(a)))
            }
            // A range may hold pods and nodes.
            (Self::Pods { .. }, Self::Nodes(_)) | (Self::Nodes(_), Self::Pods { .. }) => false,
            _ => true,
        }
    }

    /// Whether it may be for this address.
    pub fn may_hold(&self, ip: std::net::IpAddr) -> bool {
        match self {
            Self::Ranges(ranges) => ranges
                .iter()
                .any(|(net, except)| net.contains(&ip) && !except.iter().any(|hole| hole.contains(&ip))),
            Self::Unknown => true,
            Self::Pods { .. } | Self::Nodes(_) => false,
        }
    }
}

/// A range that can be read whole.
fn range(cidr: &str, except: &[String]) -> Option<(IpNet, Vec<IpNet>)> {
    let net = parse_cidr(cidr)?;
    let holes: Option<Vec<IpNet>> = except.iter().map(|it| parse_cidr(it)).collect();
    Some((net, holes?))
}

fn is_range_within((net, except): &(IpNet, Vec<IpNet>), (all, holes): &(IpNet, Vec<IpNet>)) -> bool {
    let is_out = |hole: &IpNet| {
        let is_apart = !hole.contains(net) && !net.contains(hole);
        is_apart || except.iter().any(|own| own.contains(hole))
    };
    all.contains(net) && holes.iter().all(is_out)
}

impl Port {
    /// Reads an element; of one that `is_any_protocol`, a missing protocol is every protocol.
    fn of(port: &declared::Port, path: String, is_any_protocol: bool) -> Self {
        let (protocol, is_known) = match port.protocol.as_deref() {
            None => (Some(Protocol::Tcp).filter(|_| !is_any_protocol), true),
            Some("TCP") => (Some(Protocol::Tcp), true),
            Some("UDP") => (Some(Protocol::Udp), true),
            Some("SCTP") => (Some(Protocol::Sctp), true),
            Some(_) => (None, false),
        };
        let number = |it: i64| u16::try_from(it).ok().filter(|it| *it != 0);
        let number = match (&port.port, port.end_port) {
            _ if port.invalid.is_some() || !is_known => Number::Unknown,
            (None, None) => Number::Any,
            (Some(PortRef::Name(name)), None) => Number::Named(name.clone()),
            (Some(PortRef::Number(first)), last) => match (number(*first), number(last.unwrap_or(*first))) {
                (Some(first), Some(last)) if first <= last => Number::Range(first, last),
                _ => Number::Unknown,
            },
            _ => Number::Unknown,
        };
        Self { path, protocol, says_protocol: port.protocol.is_some(), number }
    }

    /// Whether both may be for one port.
    pub fn may_meet(&self, other: &Self) -> bool {
        let numbers = match (&self.number, &other.number) {
            (Number::Range(a, z), Number::Range(b, y)) => a <= y && b <= z,
            _ => true,
        };
        numbers && self.protocol.zip(other.protocol).is_none_or(|(a, b)| a == b)
    }

    /// Whether it may be this port of some destination: a name may be any.
    pub fn may_be(&self, protocol: Protocol, port: u16) -> bool {
        let is_number = match self.number {
            Number::Range(first, last) => (first..=last).contains(&port),
            Number::Any | Number::Named(_) | Number::Unknown => true,
        };
        is_number && self.protocol.is_none_or(|it| it == protocol)
    }

    /// The only port that it is for, by number.
    pub fn single(&self) -> Option<(Protocol, u16)> {
        match (self.protocol, &self.number) {
            (Some(protocol), Number::Range(first, last)) if first == last => Some((protocol, *first)),
            _ => None,
        }
    }

    /// Whether the other is for all that this is for.
    pub fn is_within(&self, other: &Self) -> bool {
        let numbers = match (&self.number, &other.number) {
            (Number::Unknown, _) | (_, Number::Unknown) => false,
            (_, Number::Any) => true,
            (Number::Range(first, last), Number::Range(from, to)) => from <= first && last <= to,
            (Number::Named(name), Number::Named(other)) => name == other,
            _ => false,
        };
        numbers && (other.protocol.is_none() || self.protocol == other.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_within_another_only_if_the_holes_allow_it() {
        let read = |cidr: &str, except: &[&str]| {
            let except: Vec<String> = except.iter().map(|it| (*it).to_owned()).collect();
            range(cidr, &except).unwrap()
        };
        for (name, some, all, expected) in [
            ("same", read("10.0.0.0/8", &[]), read("10.0.0.0/8", &[]), true),
            ("smaller", read("10.1.0.0/16", &[]), read("10.0.0.0/8", &[]), true),
            ("larger", read("10.0.0.0/8", &[]), read("10.1.0.0/16", &[]), false),
            ("in a hole", read("10.1.0.0/16", &[]), read("10.0.0.0/8", &["10.1.0.0/16"]), false),
            ("beside a hole", read("10.1.0.0/16", &[]), read("10.0.0.0/8", &["10.2.0.0/16"]), true),
            (
                "the same hole",
                read("10.0.0.0/8", &["10.2.0.0/16"]),
                read("10.0.0.0/8", &["10.2.3.0/24"]),
                true,
            ),
            (
                "a smaller hole",
                read("10.0.0.0/8", &["10.2.3.0/24"]),
                read("10.0.0.0/8", &["10.2.0.0/16"]),
                false,
            ),
            ("the other family", read("::/0", &[]), read("0.0.0.0/0", &[]), false),
        ] {
            assert_eq!(is_range_within(&some, &all), expected, "{name}");
        }
    }
}
