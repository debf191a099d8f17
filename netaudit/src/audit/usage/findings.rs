//! What rules deserve a person's attention, and why.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    Evidence, Histories, History, Lack, Missing, RuleKey,
    cover::{hitting_set, ranges, width},
    coverage, unused_since,
};
use crate::{
    model::{Protocol, Timestamp},
    policy::{Element, Span},
};

/// How many times wider than what matched a range of ports is at least, to be called broad.
const BROAD_PORTS: usize = 8;

/// The same of addresses.
const BROAD_ADDRESSES: f64 = 256.0;

/// The same of workloads that a selector selects.
const BROAD_WORKLOADS: usize = 8;

/// Different ones that a list may have to be proposed instead of everything.
const FEW: usize = 8;

/// How much a finding matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// For those who ask.
    Info,
    /// To be looked at: something that nobody needs is allowed.
    Warning,
}

/// What is to be said of a rule.
#[derive(Clone, PartialEq, Debug)]
pub enum RuleFinding {
    /// It was used, and nothing is wrong with it that is known.
    Used,
    /// No match since then, with all that could have matched watched.
    Unused {
        /// Since when.
        since: Timestamp,
    },
    /// All flows that it matched were allowed by other rules too, which all stay if only the rules of this set go.
    Redundant {
        /// All that can go together, this rule among them.
        set: Vec<RuleKey>,
    },
    /// It allows much more than what matched.
    Broad {
        /// What is too wide, and what would be enough: `to[0]`, `10.0.0.0/8`, `10.1.2.0/30`.
        parts: Vec<BroadPart>,
    },
    /// It selects nothing, or can match nothing.
    Dead {
        /// Which.
        why: &'static str,
    },
    /// It cannot be said.
    Insufficient(Lack),
}

/// A part of a rule that is wider than what matched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BroadPart {
    /// The hash of the element's content; `None` where a whole list is missing.
    pub element: Option<u64>,
    /// Where: `to[0]`, `ports[1]`, `ports` for all.
    pub path: String,
    /// What it says.
    pub says: String,
    /// What would be enough for all that matched.
    pub enough: Enough,
}

/// What is enough for all that matched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Enough {
    /// Ranges of addresses.
    Networks(Vec<IpNet>),
    /// Ports, in order, of a range of one protocol.
    Ports(Vec<u16>),
    /// Ports of any protocol, in order.
    PortsOf(Vec<(Protocol, u16)>),
    /// Workloads and addresses, by name.
    Whom(Vec<String>),
}

impl Enough {
    /// Each in words: `10.1.2.0/30`, `8080`, `TCP 53`, `shop/web`.
    pub fn words(&self) -> Vec<String> {
        match self {
            Self::Networks(networks) => networks.iter().map(ToString::to_string).collect(),
            Self::Ports(ports) => ports.iter().map(ToString::to_string).collect(),
            Self::PortsOf(ports) => {
                ports.iter().map(|(protocol, port)| format!("{protocol} {port}")).collect()
            }
            Self::Whom(names) => names.clone(),
        }
    }
}

impl RuleFinding {
    /// One word: `unused`, `insufficient evidence`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Used => "used",
            Self::Unused { .. } => "unused",
            Self::Redundant { .. } => "redundant",
            Self::Broad { .. } => "broad",
            Self::Dead { .. } => "dead",
            Self::Insufficient(_) => "insufficient evidence",
        }
    }

    /// How much it matters; `None` where there is nothing to tell.
    pub const fn severity(&self) -> Option<Severity> {
        match self {
            Self::Used => None,
            Self::Unused { .. } | Self::Redundant { .. } | Self::Dead { .. } => Some(Severity::Warning),
            Self::Broad { .. } | Self::Insufficient(_) => Some(Severity::Info),
        }
    }
}

/// A rule and what is to be said of it.
#[derive(Clone, Debug)]
pub struct Judgement<'a> {
    /// What is known of the rule.
    pub history: &'a History,
    /// Observed ÷ existing pod-seconds in the window that was asked for, from 0 to 1.
    pub coverage: f64,
    /// What is to be said.
    pub finding: RuleFinding,
}

/// What is to be said of every rule that is there.
pub fn judge<'a>(histories: &'a Histories, needs: &Evidence) -> Vec<Judgement<'a>> {
    let Some(now) = histories.told else { return Vec::new() };
    let current: Vec<&History> = histories.rules.iter().filter(|it| it.current).collect();
    let proven: BTreeMap<&RuleKey, Result<Timestamp, Lack>> =
        current.iter().map(|it| (&it.key, unused_since(&it.slices, &it.schedule, needs, now))).collect();
    let redundant = redundant(histories, &current, |key| proven.get(key).is_some_and(Result::is_ok));
    let judgement = |history: &&'a History| {
        let coverage = coverage(&history.slices, now.minus(needs.window), now);
        let proof = proven[&history.key];
        let finding = if !history.possible {
            RuleFinding::Dead { why: "it can match nobody" }
        } else if history.uses.last.is_some() {
            match proof {
                Ok(_) if redundant.contains(&history.key) => {
                    RuleFinding::Redundant { set: redundant.iter().cloned().collect() }
                }
                Ok(_) => match broad(history) {
                    parts if parts.is_empty() => RuleFinding::Used,
                    parts => RuleFinding::Broad { parts },
                },
                Err(_) => RuleFinding::Used,
            }
        } else if !history.observable {
            RuleFinding::Insufficient(Lack { missing: Missing::Sensor, enough_at: None })
        } else {
            match proof {
                Ok(since) => RuleFinding::Unused { since },
                Err(Lack { missing: Missing::Coverage, .. }) if coverage.selects_nothing() => {
                    RuleFinding::Dead { why: "its policy selects no pod" }
                }
                Err(lack) => RuleFinding::Insufficient(lack),
            }
        };
        Judgement { history, coverage: coverage.ratio(), finding }
    };
    current.iter().map(judgement).collect()
}

/// Rules that can go together so that every flow that was seen is still allowed: of rules that matched the same flows one stays.
fn redundant(
    histories: &Histories,
    current: &[&History],
    is_proven: impl Fn(&RuleKey) -> bool,
) -> BTreeSet<RuleKey> {
    // One that is not known to be used any more will be called unused: it is not the one that stays.
    let is_used = |it: &&&History| it.uses.last.is_some();
    let used: BTreeSet<&RuleKey> = current.iter().filter(is_used).map(|it| &it.key).collect();
    // Those that must stay: something needed just them, or nobody knows yet what will, or not all of their use is seen.
    let stays = |it: &&&History| it.sole.last.is_some() || !is_proven(&it.key) || !it.observable;
    let staying: BTreeSet<&RuleKey> = current.iter().filter(stays).map(|it| &it.key).collect();
    let sets: Vec<BTreeSet<RuleKey>> = histories
        .together
        .keys()
        .filter(|set| !set.iter().any(|key| staying.contains(key)))
        .map(|set| set.iter().filter(|key| used.contains(key)).cloned().collect())
        .collect();
    let kept = hitting_set(&sets);
    let can_go = |it: &&&History| {
        it.uses.last.is_some() && it.possible && !staying.contains(&it.key) && !kept.contains(&it.key)
    };
    current.iter().filter(can_go).map(|it| it.key.clone()).collect()
}

/// Which parts of a rule are much wider than what matched.
fn broad(history: &History) -> Vec<BroadPart> {
    let touched = &history.touched;
    let [many_ports, many_addresses, many_workloads] = touched.too_many;
    let mut parts: Vec<BroadPart> = history
        .elements
        .iter()
        .filter_map(|(hash, (element, uses))| match element.span? {
            Span::Ports(first, last) if !many_ports => broad_ports((*hash, element), first, last, history),
            Span::Network(net) if !many_addresses => {
                // Another element may allow what this one excepts.
                let means =
                    |ip: &&IpAddr| net.contains(*ip) && !element.except.iter().any(|it| it.contains(*ip));
                let matched: BTreeSet<IpAddr> = touched.addresses.iter().filter(means).copied().collect();
                let cover = ranges(&matched);
                let is_wide = !cover.is_empty()
                    && cover.iter().map(|net| width(*net)).sum::<f64>() * BROAD_ADDRESSES <= width(net);
                is_wide.then(|| BroadPart {
                    element: Some(*hash),
                    path: element.path(),
                    says: element.what.to_string(),
                    enough: Enough::Networks(cover),
                })
            }
            Span::Workloads(selected) if !many_workloads => {
                // With whom of them another element would be enough, a rule's use does not tell: at most with all.
                let matched = &touched.workloads;
                let is_wide = uses.last.is_some()
                    && !matched.is_empty()
                    && matched.len().saturating_mul(BROAD_WORKLOADS) <= selected as usize;
                is_wide.then(|| BroadPart {
                    element: Some(*hash),
                    path: element.path(),
                    says: format!("{} ({selected} workloads)", element.what),
                    enough: Enough::Whom(names(matched).collect()),
                })
            }
            _ => None,
        })
        .collect();
    let has = |list: &str| history.elements.values().any(|(element, _)| element.list == list);
    let missing = |list: &str, says: &str, enough| BroadPart {
        element: None,
        path: list.to_owned(),
        says: says.to_owned(),
        enough,
    };
    let ports = &touched.ports;
    if !has("ports") && !many_ports && (1..=FEW).contains(&ports.len()) {
        parts.push(missing("ports", "every port", Enough::PortsOf(ports.iter().copied().collect())));
    }
    let peers = touched.workloads.len() + touched.addresses.len();
    if !has("from") && !has("to") && !many_addresses && !many_workloads && (1..=FEW).contains(&peers) {
        let addresses = touched.addresses.iter().map(ToString::to_string);
        let whom = names(&touched.workloads).chain(addresses).collect();
        parts.push(missing(history.key.direction.peers(), "everybody", Enough::Whom(whom)));
    }
    parts
}

fn names(workloads: &BTreeSet<(Arc<str>, Arc<str>)>) -> impl Iterator<Item = String> {
    workloads.iter().map(|(namespace, name)| format!("{namespace}/{name}"))
}

fn broad_ports(
    (hash, element): (u64, &Element),
    first: u16,
    last: u16,
    history: &History,
) -> Option<BroadPart> {
    let matched: BTreeSet<u16> = history
        .touched
        .ports
        .iter()
        .map(|(_, port)| *port)
        .filter(|port| (first..=last).contains(port))
        .collect();
    let width = usize::from(last - first) + 1;
    (!matched.is_empty() && matched.len() * BROAD_PORTS <= width).then(|| BroadPart {
        element: Some(hash),
        path: element.path(),
        says: element.what.to_string(),
        enough: Enough::Ports(matched.into_iter().collect()),
    })
}
