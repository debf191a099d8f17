//! How much of what the ledger knows to be unused is taken out, and why the rest is not.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use netaudit::{
    advise::tighten::{Change, Rule as Told},
    model,
};
use serde_json::Value;

use super::{
    ask::Who,
    line::Line,
    traffic::{List, Past, Place, STEP, Used, WINDOW, ledger},
    world::{World, plain},
};
use crate::policy::{
    case::Direction,
    matching::{list, text},
    naive::{Naive, name_of},
};

/// Figures of what could go.
#[derive(Default, Debug)]
pub struct Recall {
    pub rules: [u64; 2],
    pub elements: [u64; 2],
    pub narrowed: [u64; 2],
    /// Of what is unused and stays: why.
    pub reasons: BTreeMap<String, u64>,
    /// Of ranges that stay as wide as they are.
    pub wide: BTreeMap<String, u64>,
    /// Unused since agents watch, and needed by flows of before.
    pub of_old: u64,
}

impl Recall {
    pub fn add(&mut self, other: Self) {
        for (mine, theirs) in [
            (&mut self.rules, other.rules),
            (&mut self.elements, other.elements),
            (&mut self.narrowed, other.narrowed),
        ] {
            mine[0] += theirs[0];
            mine[1] += theirs[1];
        }
        other.reasons.into_iter().for_each(|(it, count)| *self.reasons.entry(it).or_default() += count);
        other.wide.into_iter().for_each(|(it, count)| *self.wide.entry(it).or_default() += count);
        self.of_old += other.of_old;
    }

    /// Of a hundred of what the ledger knows to be unused, so many are taken out.
    pub fn percent(&self) -> f64 {
        let [all, gone] = [0, 1].map(|it| self.rules[it] + self.elements[it]);
        if all == 0 { 100.0 } else { 100.0 * gone as f64 / all as f64 }
    }
}

/// One direction of a policy.
struct Side<'a> {
    world: &'a World,
    past: &'a Past,
    line: &'a Line,
    ledger: &'a BTreeMap<Place, Used>,
    policy: usize,
    name: String,
    direction: Direction,
}

/// Compares what was taken out with what the ledger knows.
pub fn recall(world: &World, past: &Past, line: &Line) -> Recall {
    let (mut recall, ledger) = (Recall::default(), ledger(past));
    for (number, policy) in world.policies.iter().enumerate() {
        for direction in Direction::BOTH {
            let side =
                Side { world, past, line, ledger: &ledger, policy: number, name: name_of(policy), direction };
            if side.is_provable(policy) {
                for (at, rule) in list(&policy["spec"], direction.as_str()).iter().enumerate() {
                    side.rule(at, rule, &mut recall);
                }
            }
        }
    }
    recall
}

impl Side<'_> {
    /// Whether all that its rules allow would have been seen, for long enough.
    fn is_provable(&self, policy: &Value) -> bool {
        let spec = &policy["spec"];
        let naive = Naive { objects: &self.world.objects, dns: None, seen: None };
        let namespace = text(&policy["metadata"], "namespace").expect("a namespace");
        let pods = self.world.objects.iter().filter(|it| it["kind"] == "Pod");
        let selected = pods.filter(|it| it["metadata"]["namespace"] == *namespace);
        let selected: Vec<&Value> =
            selected.filter(|it| naive.selects_pod(&spec["podSelector"], it)).collect();
        let node = |pod: &Value| {
            let known = self.world.pods.iter().find(|it| it.name == name_of(pod));
            known.expect("a pod of the world").node
        };
        let types = list(spec, "policyTypes");
        let is_meant = types.is_empty()
            || types
                .iter()
                .any(|it| it.as_str().map(str::to_lowercase).as_deref() == Some(self.direction.as_str()));
        let window = i64::try_from(WINDOW.as_nanos()).expect("a day");
        let is_old = self.past.changed.is_none_or(|at| at + STEP / 60 < self.past.told() - window)
            || self.world.earlier.contains(policy);
        // Whoever comes from a pod's own node may be anybody who asked there.
        let is_hidden = self.direction == Direction::Ingress
            && self.past.sent.iter().any(|it| match (it.connection.from.0, it.connection.to.0) {
                (Who::Node(from), Who::Pod(to)) => {
                    let pod = &self.world.pods[to];
                    pod.node == from && selected.iter().any(|it| name_of(it) == pod.name)
                }
                _ => false,
            });
        let is_there = !selected.is_empty() && selected.iter().all(|pod| self.past.is_watched(node(pod)));
        is_meant && is_old && is_there && !is_hidden
    }

    fn used(&self, rule: usize, of: List, at: usize) -> Option<&Used> {
        self.ledger.get(&(self.name.clone(), self.direction.as_str(), rule, of, at))
    }

    fn told(&self, rule: usize) -> &Told {
        let direction = match self.direction {
            Direction::Egress => model::Direction::Egress,
            Direction::Ingress => model::Direction::Ingress,
        };
        let rules = self.line.advice[self.policy].rules.iter();
        let mut rules = rules.filter(|it| it.direction == direction && it.index == rule);
        rules.next().expect("a rule")
    }

    /// Whether there is such a change: `egress[0]`, `egress[0].to[1]`.
    fn is_made(&self, path: &str, is_removal: bool) -> bool {
        self.line.changes(self.policy).iter().any(|it| {
            let removes = matches!(
                it,
                Change::RemoveRule { .. } | Change::RemovePeer { .. } | Change::RemovePort { .. }
            );
            it.path() == path && removes == is_removal
        })
    }

    /// Why something stays.
    fn reason(&self, path: &str, kept: Option<&String>) -> String {
        let advice = &self.line.advice[self.policy];
        let proposal = advice.proposals.iter().position(|it| it.change.path() == *path);
        // Of a rule that was to go, and does not, nothing is said of its elements.
        let whole = path.split_once('.').map_or(path, |it| it.0);
        let proposal = proposal.or(advice.proposals.iter().position(|it| it.change.path() == *whole));
        let refused = proposal.and_then(|at| self.line.refused[self.policy].get(&at));
        let reason = refused.or(advice.refused.as_ref()).or(kept);
        let reason = reason.map_or("nothing is said", |it| it.as_str());
        reason.chars().filter(|it| !it.is_ascii_digit()).take(60).collect()
    }

    fn rule(&self, at: usize, rule: &Value, recall: &mut Recall) {
        let path = format!("{}[{at}]", self.direction.as_str());
        let ports = list(rule, "ports");
        // Nothing sees SCTP: a rule that names it is not known to be unused, nor are its peers.
        let is_sctp = |it: &Value| it["protocol"] == "SCTP";
        let has_sctp = ports.iter().any(is_sctp);
        let told = self.told(at);
        let use_of_rule = self.used(at, List::Rule, 0);
        if use_of_rule.is_none_or(|it| !it.lately) {
            if use_of_rule.is_some_and(|it| it.of_old) {
                recall.of_old += 1;
            } else if !has_sctp {
                recall.rules[0] += 1;
                if self.is_made(&path, true) {
                    recall.rules[1] += 1;
                } else {
                    *recall.reasons.entry(self.reason(&path, told.kept.as_ref())).or_default() += 1;
                }
            }
            return;
        }
        if self.is_made(&path, true) {
            return;
        }
        let peers = list(rule, self.direction.peers()).iter().enumerate();
        let peers = peers.filter(|_| !has_sctp).map(|(at, it)| (List::Peers, self.direction.peers(), at, it));
        let ports = ports.iter().enumerate().filter(|it| !is_sctp(it.1));
        let ports = ports.map(|(at, it)| (List::Ports, "ports", at, it));
        for (of, word, element, value) in peers.chain(ports) {
            let path = format!("{path}.{word}[{element}]");
            let kept = told.elements.iter().find(|it| it.path == path);
            let kept = kept.and_then(|it| it.kept.as_ref()).or(told.kept.as_ref());
            let Some(used) = self.used(at, of, element) else {
                recall.elements[0] += 1;
                if self.is_made(&path, true) {
                    recall.elements[1] += 1;
                } else {
                    *recall.reasons.entry(self.reason(&path, kept)).or_default() += 1;
                }
                continue;
            };
            let rule_used = self.used(at, List::Rule, 0).expect("it is used");
            if used.lately && !rule_used.of_old && self.is_too_wide(value, of, rule_used) {
                recall.narrowed[0] += 1;
                if self.is_made(&path, false) {
                    recall.narrowed[1] += 1;
                } else {
                    *recall.wide.entry(self.reason(&path, kept)).or_default() += 1;
                }
            } else if !used.lately {
                recall.of_old += 1;
            }
        }
    }

    /// Whether a range is so much wider than what was used of it that it is to be narrowed.
    fn is_too_wide(&self, value: &Value, of: List, used: &Used) -> bool {
        let options = &self.line.options;
        if options.keep_ranges {
            return false;
        }
        if of == List::Ports {
            let number = |name: &str| value.get(name).and_then(Value::as_u64).map(|it| it as u16);
            let (Some(first), Some(last)) = (number("port"), number("endPort")) else { return false };
            let inside = used.ports.iter().filter(|it| (first..=last).contains(it)).count();
            return inside > 0 && inside * 8 <= usize::from(last - first) + 1;
        }
        let Some(block) = value.get("ipBlock") else { return false };
        let net = plain(text(block, "cidr").expect("a range"));
        let holes: Vec<IpNet> = list(block, "except").iter().filter_map(Value::as_str).map(plain).collect();
        let inside: BTreeSet<_> = used
            .addresses
            .iter()
            .filter(|ip| net.contains(*ip) && !holes.iter().any(|hole| hole.contains(*ip)))
            .collect();
        let outside = |ip: &&std::net::IpAddr| self.world.outside.iter().find(|it| it.ip == **ip);
        let is_free = |ip: &&std::net::IpAddr| {
            outside(ip).is_some_and(|it| it.names.is_empty() || options.narrow_named)
        };
        let width = f64::from(net.max_prefix_len() - net.prefix_len()).exp2();
        self.past.keeps_all
            && !inside.is_empty()
            && inside.len() <= 8
            && inside.iter().all(is_free)
            && inside.len() as f64 * 256.0 <= width
    }
}
