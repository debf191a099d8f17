//! What can be taken out of a policy.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use ipnet::IpNet;

use super::narrow;
use crate::{
    model::{Direction, Protocol},
    policy::declared::{self, IpBlock, NetworkPolicy, PortRef},
};

/// A change of a NetworkPolicy. Positions are those of the policy as it is, before any change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A rule goes.
    RemoveRule {
        /// Of which rules.
        direction: Direction,
        /// Which.
        rule: usize,
    },
    /// An element of `from` or `to` goes; another one stays.
    RemovePeer {
        /// Of which rules.
        direction: Direction,
        /// Which rule.
        rule: usize,
        /// Which element.
        peer: usize,
    },
    /// An element of `ports` goes; another one stays.
    RemovePort {
        /// Of which rules.
        direction: Direction,
        /// Which rule.
        rule: usize,
        /// Which element.
        port: usize,
    },
    /// Narrower ranges of addresses take the place of an `ipBlock`.
    NarrowBlock {
        /// Of which rules.
        direction: Direction,
        /// Which rule.
        rule: usize,
        /// Which element of `from` or `to`.
        peer: usize,
        /// The ranges, one at least, each with what there is to say of it.
        blocks: Vec<(IpNet, String)>,
    },
    /// Narrower ranges of ports take the place of one.
    NarrowPorts {
        /// Of which rules.
        direction: Direction,
        /// Which rule.
        rule: usize,
        /// Which element of `ports`.
        port: usize,
        /// First and last of each range, one range at least.
        ranges: Vec<(u16, u16)>,
    },
    /// A rule for every port is for some.
    AddPorts {
        /// Of which rules.
        direction: Direction,
        /// Which rule.
        rule: usize,
        /// The ports.
        ports: Vec<(Protocol, u16)>,
    },
    /// `policyTypes` is written, and means what its absence did.
    NameTypes {
        /// The directions.
        types: Vec<Direction>,
    },
}

impl Change {
    /// The rule that it is about.
    pub fn rule(&self) -> Option<(Direction, usize)> {
        match self {
            Self::RemoveRule { direction, rule }
            | Self::RemovePeer { direction, rule, .. }
            | Self::RemovePort { direction, rule, .. }
            | Self::NarrowBlock { direction, rule, .. }
            | Self::NarrowPorts { direction, rule, .. }
            | Self::AddPorts { direction, rule, .. } => Some((*direction, *rule)),
            Self::NameTypes { .. } => None,
        }
    }

    /// Where: `egress[1].to[0]`.
    pub fn path(&self) -> String {
        match self {
            Self::RemoveRule { direction, rule } => format!("{direction}[{rule}]"),
            Self::RemovePeer { direction, rule, peer } | Self::NarrowBlock { direction, rule, peer, .. } => {
                format!("{direction}[{rule}].{}[{peer}]", direction.peers())
            }
            Self::RemovePort { direction, rule, port } | Self::NarrowPorts { direction, rule, port, .. } => {
                format!("{direction}[{rule}].ports[{port}]")
            }
            Self::AddPorts { direction, rule, .. } => format!("{direction}[{rule}].ports"),
            Self::NameTypes { .. } => "policyTypes".to_owned(),
        }
    }
}

/// What it does: `remove`, `narrow to 10.1.2.3/32`.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed = |words: Vec<String>| words.join(", ");
        match self {
            Self::RemoveRule { .. } | Self::RemovePeer { .. } | Self::RemovePort { .. } => {
                f.write_str("remove")
            }
            Self::NarrowBlock { blocks, .. } => {
                let words = blocks.iter().map(|(net, _)| net.to_string()).collect();
                write!(f, "narrow to {}", listed(words))
            }
            Self::NarrowPorts { ranges, .. } => write!(f, "narrow to {}", narrow::words(ranges)),
            Self::AddPorts { ports, .. } => {
                let words = ports.iter().map(|(protocol, port)| format!("{protocol} {port}")).collect();
                write!(f, "narrow to {}", listed(words))
            }
            Self::NameTypes { types } => {
                write!(f, "write {}", listed(types.iter().map(|it| word(*it).to_owned()).collect()))
            }
        }
    }
}

/// As `policyTypes` has it.
pub(super) const fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "Egress",
        Direction::Ingress => "Ingress",
    }
}

/// Writes `policyTypes` where a policy has none: the API defaults it to Ingress, and to Egress too if there is an egress rule, so that a
/// policy that loses its last egress rule would no longer isolate. `None` where it is written.
pub fn explicit_types(policy: &NetworkPolicy) -> Option<Change> {
    if !policy.policy_types.is_empty() || policy.invalid_types.is_some() {
        return None;
    }
    let egress = (!policy.egress.is_empty()).then_some(Direction::Egress);
    Some(Change::NameTypes { types: [Direction::Ingress].into_iter().chain(egress).collect() })
}

/// The policy with these changes.
pub fn changed(policy: &NetworkPolicy, changes: &[&Change]) -> NetworkPolicy {
    let mut new = policy.clone();
    for change in changes {
        if let Change::NameTypes { types } = change {
            new.policy_types = types.iter().map(|it| word(*it).to_owned()).collect();
        }
    }
    for direction in Direction::ALL {
        let rules = match direction {
            Direction::Egress => &mut new.egress,
            Direction::Ingress => &mut new.ingress,
        };
        let mut by_rule: BTreeMap<usize, Vec<&Change>> = BTreeMap::new();
        for change in changes {
            if let Some((of, rule)) = change.rule()
                && of == direction
            {
                by_rule.entry(rule).or_default().push(change);
            }
        }
        let mut gone = BTreeSet::new();
        for (at, changes) in by_rule {
            let Some(rule) = rules.get_mut(at) else { continue };
            match changes.iter().any(|it| matches!(it, Change::RemoveRule { .. })) {
                true => drop(gone.insert(at)),
                false => change_rule(rule, &changes),
            }
        }
        let mut at = 0;
        rules.retain(|_| {
            at += 1;
            !gone.contains(&(at - 1))
        });
    }
    new
}

fn change_rule(rule: &mut declared::Rule, changes: &[&Change]) {
    let mut peers: BTreeMap<usize, Vec<declared::Peer>> = BTreeMap::new();
    let mut ports: BTreeMap<usize, Vec<declared::Port>> = BTreeMap::new();
    for change in changes {
        match change {
            Change::RemovePeer { peer, .. } => drop(peers.insert(*peer, Vec::new())),
            Change::RemovePort { port, .. } => drop(ports.insert(*port, Vec::new())),
            Change::NarrowBlock { peer, blocks, .. } => {
                let Some(old) = rule.peers.get(*peer).and_then(|it| it.ip_block.as_ref()) else { continue };
                let new = blocks.iter().map(|(net, _)| declared::Peer {
                    ip_block: Some(IpBlock { cidr: net.to_string(), except: except_within(old, *net) }),
                    ..Default::default()
                });
                peers.insert(*peer, new.collect());
            }
            Change::NarrowPorts { port, ranges, .. } => {
                let Some(old) = rule.ports.get(*port) else { continue };
                let new = ranges.iter().map(|(first, last)| declared::Port {
                    protocol: old.protocol.clone(),
                    port: Some(PortRef::Number(i64::from(*first))),
                    end_port: (last > first).then_some(i64::from(*last)),
                    invalid: None,
                });
                ports.insert(*port, new.collect());
            }
            Change::AddPorts { ports: added, .. } => {
                rule.ports = added
                    .iter()
                    .map(|(protocol, port)| declared::Port {
                        protocol: Some(protocol.to_string()),
                        port: Some(PortRef::Number(i64::from(*port))),
                        ..Default::default()
                    })
                    .collect();
            }
            Change::RemoveRule { .. } | Change::NameTypes { .. } => {}
        }
    }
    // What stands behind goes first, so that positions stay what they are.
    for (at, new) in peers.into_iter().rev() {
        if at < rule.peers.len() {
            rule.peers.splice(at..=at, new);
        }
    }
    for (at, new) in ports.into_iter().rev() {
        if at < rule.ports.len() {
            rule.ports.splice(at..=at, new);
        }
    }
}

/// The holes of a range that are inside of a narrower one, as they are written.
pub(super) fn except_within(block: &IpBlock, net: IpNet) -> Vec<String> {
    let is_within = |text: &&String| text.parse::<IpNet>().is_ok_and(|hole| net.contains(&hole));
    block.except.iter().filter(is_within).cloned().collect()
}
