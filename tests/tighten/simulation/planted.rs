//! Errors, made on purpose, in what the line passes on or in what comes out of it.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use netaudit::{
    advise::tighten::{self, Advice, Change, Proposal},
    audit::{
        RuleKey,
        usage::{Histories, Judgement, Rows, RuleFinding, Uses},
    },
};
use serde_json::Value;

use super::{traffic::Past, world::World};

/// An error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Planted {
    Nothing,
    /// None, but the replay is left out: where all was watched, usage alone denies nothing that is needed.
    NoReplay,
    /// Losses are forgotten.
    Losses,
    /// Pods on nodes without an agent are forgotten.
    Elsewhere,
    /// An element is credited to nobody, and recorded flows to none.
    Uncredited,
    /// Narrowing cuts off the last port.
    LastPort,
    /// Narrowing cuts off the last range of addresses.
    LastAddress,
    /// `policyTypes` is not written.
    Types,
    /// Of a set of rules that allow the same none stays.
    Redundant,
    /// Narrowing loses the holes of ranges.
    Except,
    /// A position is wrong after a removal before it.
    Shift,
    /// A list that lost an element is written as none at all.
    Emptied,
    /// A comment goes.
    Comment,
    /// What nothing sees is called unused.
    Sctp,
}

impl Planted {
    pub const ALL: [Self; 12] = [
        Self::Losses,
        Self::Elsewhere,
        Self::Uncredited,
        Self::LastPort,
        Self::LastAddress,
        Self::Types,
        Self::Redundant,
        Self::Except,
        Self::Shift,
        Self::Emptied,
        Self::Comment,
        Self::Sctp,
    ];

    /// Whether the replay would find it before the checks do, and take the change back. Without it nothing may happen that only the replay
    /// knows of, or the checks would find that.
    pub fn skips_replay(self) -> bool {
        matches!(
            self,
            Self::NoReplay
                | Self::Losses
                | Self::Elsewhere
                | Self::Uncredited
                | Self::LastPort
                | Self::LastAddress
                | Self::Redundant
        )
    }

    /// What is said where it is found, and not something else.
    pub fn shows(self) -> &'static str {
        match self {
            Self::Types => "policyTypes of",
            Self::Except | Self::Emptied => "newly allowed",
            Self::Shift => "read again",
            Self::Comment => "the comment",
            _ => "is denied",
        }
    }

    pub fn rows(self, past: &Past) -> Rows {
        let mut rows = past.rows.clone();
        for row in rows.rules.values_mut() {
            match self {
                Self::Losses => row.lost = 0,
                Self::Elsewhere => row.selected_ms = row.observed_ms,
                _ => {}
            }
        }
        rows
    }

    pub fn histories(self, histories: &mut Histories, world: &mut World) {
        if self != Self::Uncredited {
            return;
        }
        for history in &mut histories.rules {
            let used: Vec<u64> =
                history.elements.iter().filter(|it| it.1.1.last.is_some()).map(|it| *it.0).collect();
            if !used.is_empty() {
                let hash = *world.random.pick(&used);
                history.elements.get_mut(&hash).expect("an element").1 = Uses::default();
            }
        }
    }

    /// Takes out too what allows all that redundant rules do.
    pub fn redundant(self, advice: &mut Advice, judged: &[Judgement<'_>], histories: &Histories) {
        if self != Self::Redundant {
            return;
        }
        let redundant = |it: &&Judgement<'_>| matches!(it.finding, RuleFinding::Redundant { .. });
        let gone: BTreeSet<RuleKey> =
            judged.iter().filter(redundant).map(|it| it.history.key.clone()).collect();
        let with = histories.together.keys().filter(|set| !set.is_disjoint(&gone));
        let all: BTreeSet<RuleKey> = with.flatten().cloned().collect();
        for history in histories.rules.iter().filter(|it| all.contains(&it.key)) {
            let place = (history.key.direction, history.index as usize);
            let is_it = |it: &&mut tighten::Policy| it.id == history.key.policy && !it.proposals.is_empty();
            for policy in advice.iter_mut().filter(is_it) {
                if policy.rules.iter().any(|it| (it.direction, it.index) == place) {
                    policy.proposals.retain(|it| it.change.rule() != Some(place));
                    let change = Change::RemoveRule { direction: place.0, rule: place.1 };
                    let (what, why) = (String::new(), "planted".to_owned());
                    policy.proposals.push(Proposal { change, what, why, unused_since: None });
                }
            }
        }
    }

    pub fn advice(self, advice: &mut Advice) {
        for policy in advice {
            let mut sctp = Vec::new();
            for proposal in &mut policy.proposals {
                match (&mut proposal.change, self) {
                    (Change::NarrowPorts { ranges, .. }, Self::LastPort) => {
                        let last = ranges.last_mut().expect("a range");
                        if last.0 < last.1 {
                            last.1 -= 1;
                        } else if ranges.len() > 1 {
                            ranges.pop();
                        }
                    }
                    (Change::NarrowBlock { blocks, .. }, Self::LastAddress) => {
                        let (last, _) = blocks.last_mut().expect("a range");
                        *last = without_last(*last);
                    }
                    _ => {}
                }
            }
            if self == Self::Types {
                policy.proposals.retain(|it| !matches!(it.change, Change::NameTypes { .. }));
            }
            if self == Self::Sctp && !policy.proposals.is_empty() {
                for rule in policy.rules.iter().filter(|it| it.matches > 0) {
                    let ports = rule.elements.iter().filter(|it| it.path.contains("ports"));
                    for (at, element) in ports.enumerate() {
                        if element.what.starts_with("SCTP") {
                            let mut proposal = policy.proposals[0].clone();
                            proposal.change =
                                Change::RemovePort { direction: rule.direction, rule: rule.index, port: at };
                            sctp.push(proposal);
                        }
                    }
                }
            }
            policy.proposals.append(&mut sctp);
        }
    }

    /// The changes as they are written.
    pub fn positions(self, changes: &[&Change]) -> Vec<Change> {
        let mut asked: Vec<Change> = changes.iter().map(|it| (*it).clone()).collect();
        if self != Self::Shift {
            return asked;
        }
        let removed: BTreeSet<usize> = changes
            .iter()
            .filter_map(|it| if let Change::RemoveRule { rule, .. } = it { Some(*rule) } else { None })
            .collect();
        for change in &mut asked {
            match change {
                Change::RemoveRule { rule, .. } if *rule > 0 && !removed.contains(&(*rule - 1)) => *rule -= 1,
                Change::RemovePort { port: at, .. } | Change::RemovePeer { peer: at, .. } if *at > 0 => {
                    *at -= 1;
                }
                _ => {}
            }
        }
        asked
    }

    /// The policies as they come out.
    pub fn values(self, policies: &mut [Value], changes: &[Vec<&Change>]) {
        for (policy, changes) in policies.iter_mut().zip(changes) {
            for change in changes {
                let Some((direction, _)) = change.rule() else { continue };
                let is_narrowed = self == Self::Except && matches!(change, Change::NarrowBlock { .. });
                let is_emptied = self == Self::Emptied && matches!(change, Change::RemovePeer { .. });
                let rules = policy["spec"].get_mut(direction.to_string()).and_then(Value::as_array_mut);
                for rule in rules.into_iter().flatten().filter(|_| is_narrowed || is_emptied) {
                    if is_emptied {
                        rule.as_object_mut().expect("a rule").remove(direction.peers());
                        continue;
                    }
                    let peers = rule.get_mut(direction.peers()).and_then(Value::as_array_mut);
                    let new = |block: &Value| match change {
                        Change::NarrowBlock { blocks, .. } => {
                            blocks.iter().any(|(net, _)| block["cidr"] == *net.to_string())
                        }
                        _ => false,
                    };
                    let blocks = peers.into_iter().flatten().filter_map(|it| it.get_mut("ipBlock"));
                    for block in blocks.filter(|it| new(it)) {
                        block.as_object_mut().expect("a range").remove("except");
                    }
                }
            }
        }
    }

    pub fn texts(self, texts: &mut [String]) {
        if self == Self::Comment {
            for text in texts {
                *text = text.replacen("note 1:", "", 1);
            }
        }
    }
}

fn without_last(net: IpNet) -> IpNet {
    match net.subnets(net.prefix_len() + 1).ok().and_then(|mut it| it.next()) {
        Some(half) => half,
        None => match net.addr() {
            IpAddr::V4(ip) => IpNet::from(IpAddr::from((ip.to_bits() ^ 1).to_be_bytes())),
            IpAddr::V6(ip) => IpNet::from(IpAddr::from((ip.to_bits() ^ 1).to_be_bytes())),
        },
    }
}
