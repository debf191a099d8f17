//! What can be taken out of policies, and why; and what stays, and why.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    change::{Change, explicit_types},
    narrow,
    uses::{Needs, Uses},
};
use crate::{
    advise::Names,
    audit::{
        RuleKey,
        usage::{
            BroadPart, Enough, Evidence, Histories, History, Judgement, Lack, Missing, RuleFinding,
            unused_since,
        },
    },
    model::{Direction, PolicyId, Timestamp},
    policy::{
        self, CompiledPolicy,
        declared::{self, NetworkPolicy},
    },
};

/// What may be done.
#[derive(Clone, Debug)]
pub struct Options {
    /// What it takes to call something unused.
    pub evidence: Evidence,
    /// Leave ranges of ports and addresses as wide as they are.
    pub keep_ranges: bool,
    /// Narrow ranges of public addresses too of which names are known: what is behind a name may get another address.
    pub narrow_named: bool,
    /// Give rules for every port the ports that were used: such a rule also allows what no sensor sees.
    pub add_ports: bool,
    /// The cluster uses SCTP, which no sensor sees: rules for every port may be for it, and stay.
    pub uses_sctp: bool,
}

/// A change and its reason.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proposal {
    /// The change.
    pub change: Change,
    /// What goes, in a few words: `app=debug`, `TCP 9001`.
    pub what: String,
    /// Why it can.
    pub why: String,
    /// Since when nobody used it; `None` for what others allow too.
    pub unused_since: Option<Timestamp>,
}

/// An element of `from`, `to` or `ports` that stays.
#[derive(Clone, Debug)]
pub struct Element {
    /// `egress[0].to[1]`.
    pub path: String,
    /// `app=postgres`.
    pub what: String,
    /// Flows by the agents' usage.
    pub matches: u64,
    /// When one of them was the last.
    pub last: Option<Timestamp>,
    /// Recorded flows that it had a part in.
    pub needs: Needs,
    /// Why it stays though it was not used, or as wide as it is.
    pub kept: Option<String>,
}

/// What is to be said of a rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Of which direction.
    pub direction: Direction,
    /// Its place.
    pub index: usize,
    /// What it allows, in one line.
    pub summary: String,
    /// Observed ÷ existing pod-seconds in the window; `None` where no agent knows the rule.
    pub coverage: Option<f64>,
    /// Since when agents watch it.
    pub observed_since: Option<Timestamp>,
    /// Flows by the agents' usage.
    pub matches: u64,
    /// When one of them was the last.
    pub last: Option<Timestamp>,
    /// Recorded flows that it had a part in.
    pub needs: Needs,
    /// Why it stays, or elements of it, though nobody was seen to use it.
    pub kept: Option<String>,
    /// Its elements that stay.
    pub elements: Vec<Element>,
}

/// What is to be said of a policy.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Which.
    pub id: Arc<PolicyId>,
    /// What can be taken out of it.
    pub proposals: Vec<Proposal>,
    /// Its rules, those that go too.
    pub rules: Vec<Rule>,
    /// Why nothing of it is changed.
    pub refused: Option<String>,
}

/// What is to be said of policies, in their order.
pub type Advice = Vec<Policy>;

/// All that is known.
pub(super) struct Known<'a> {
    pub options: &'a Options,
    pub names: &'a Names,
    histories: &'a Histories,
    judgements: HashMap<&'a RuleKey, &'a Judgement<'a>>,
    /// The policies that may change, and the rules that they have.
    ours: (BTreeSet<Arc<PolicyId>>, BTreeSet<RuleKey>),
    uses: &'a Uses,
    now: Timestamp,
}

/// What can be taken out of policies. `judgements` are what the usage in `histories` says; `uses` the recorded flows as these policies judge
/// them, and `names` the names that addresses outside had.
pub fn advise(
    policies: &[NetworkPolicy],
    histories: &Histories,
    judgements: &[Judgement<'_>],
    uses: &Uses,
    names: &Names,
    options: &Options,
) -> Advice {
    let known = Known {
        options,
        names,
        histories,
        ours: rules_of(policies),
        judgements: judgements.iter().map(|it| (&it.history.key, it)).collect(),
        uses,
        now: histories.told.unwrap_or_default(),
    };
    policies.iter().map(|it| known.policy(it)).collect()
}

impl Known<'_> {
    fn policy(&self, declared: &NetworkPolicy) -> Policy {
        let compiled = CompiledPolicy::compile(declared);
        let mut policy =
            Policy { id: compiled.id.clone(), proposals: Vec::new(), rules: Vec::new(), refused: None };
        if let Some(warning) = compiled.warnings.first() {
            policy.refused = Some(format!("not all of it can be read: {warning}"));
        }
        for direction in Direction::ALL {
            let rules = match direction {
                Direction::Egress => &declared.egress,
                Direction::Ingress => &declared.ingress,
            };
            for (declared, rule) in rules.iter().zip(compiled.rules(direction)) {
                let told = self.rule(declared, rule, &mut policy.proposals);
                policy.rules.push(told);
            }
        }
        if policy.refused.is_some() {
            policy.proposals.clear();
        }
        // Only who takes something away needs it.
        if !policy.proposals.is_empty()
            && let Some(change) = explicit_types(declared)
        {
            policy.proposals.push(Proposal {
                change,
                what: String::new(),
                why: "without it a policy that loses its last egress rule would no longer isolate".to_owned(),
                unused_since: None,
            });
        }
        policy
    }

    fn rule(&self, declared: &declared::Rule, rule: &policy::Rule, proposals: &mut Vec<Proposal>) -> Rule {
        let (direction, index) = (rule.id.direction, rule.id.index as usize);
        let judgement = self.judgements.get(&RuleKey::from(&*rule.id)).copied();
        let history = judgement.map(|it| it.history);
        let mut told = Rule {
            direction,
            index,
            summary: rule.summary.clone(),
            coverage: judgement.map(|it| it.coverage),
            observed_since: history.and_then(History::observed_since),
            matches: history.map_or(0, |it| it.uses.matches),
            last: history.and_then(|it| it.uses.last),
            needs: self.uses.of_rule(&rule.id).cloned().unwrap_or_default(),
            kept: None,
            elements: self.elements(rule, history),
        };
        match self.fate(declared, judgement, &told.needs) {
            Fate::Goes { why, unused_since } => {
                let change = Change::RemoveRule { direction, rule: index };
                proposals.push(Proposal { change, what: rule.summary.clone(), why, unused_since });
            }
            Fate::Stays(why) => told.kept = Some(why),
            Fate::InParts(history, since, parts) => {
                if history.uses.last.is_none() {
                    told.kept = Some(SCTP.to_owned());
                }
                let mut found = Vec::new();
                let coverage = told.coverage.unwrap_or_default();
                for (hash, element) in &*rule.elements {
                    let place = told.elements.iter().position(|it| it.path == path(rule, element));
                    let Some(told) = place.map(|at| &mut told.elements[at]) else { continue };
                    let part = parts.iter().find(|it| it.element == Some(*hash));
                    let hash = *hash;
                    let of = OfElement { declared, rule, hash, element, history, since, coverage, part };
                    match self.element(&of, &told.needs) {
                        Ok(Some(proposal)) => found.push(proposal),
                        Ok(None) => {}
                        Err(why) => told.kept = Some(why),
                    }
                }
                self.lists(rule, since, parts, &mut told, &mut found);
                proposals.append(&mut found);
            }
        }
        told
    }

    /// What becomes of a rule as a whole.
    fn fate<'a>(
        &self,
        declared: &declared::Rule,
        judgement: Option<&'a Judgement<'a>>,
        needs: &Needs,
    ) -> Fate<'a> {
        let Some(judgement) = judgement else {
            let why = "no agent that was asked knows this rule: the cluster's policy is another one, or selects pods of other nodes";
            return Fate::Stays(why.to_owned());
        };
        let history = judgement.history;
        let has_sctp = declared.ports.iter().any(is_sctp);
        match &judgement.finding {
            RuleFinding::Redundant { .. } if self.may_be_sctp(declared) => Fate::Stays(SCTP.to_owned()),
            RuleFinding::Unused { .. } if self.may_be_sctp(declared) && !has_sctp => {
                Fate::Stays(SCTP.to_owned())
            }
            RuleFinding::Unused { .. } if needs.flows() > 0 => Fate::Stays(recorded(needs)),
            // Of a rule that is for other protocols too its other ports are unused, and it is not.
            RuleFinding::Unused { since } if has_sctp => Fate::InParts(history, *since, &[]),
            RuleFinding::Insufficient(Lack { missing: Missing::Sensor, .. }) if has_sctp => {
                let evidence = &self.options.evidence;
                match unused_since(&history.slices, &history.schedule, evidence, self.now) {
                    Ok(since) => Fate::InParts(history, since, &[]),
                    Err(lack) => Fate::Stays(insufficient(&lack)),
                }
            }
            RuleFinding::Unused { since } => {
                Fate::Goes { why: unused(*since, judgement.coverage), unused_since: Some(*since) }
            }
            RuleFinding::Redundant { set } => match self.others(&history.key, set) {
                Ok(why) => Fate::Goes { why, unused_since: None },
                Err(why) => Fate::Stays(why),
            },
            RuleFinding::Dead { why } => {
                Fate::Stays(format!("dead rather than unused: {why}; netaudit lint may tell what was meant"))
            }
            RuleFinding::Insufficient(lack) => Fate::Stays(insufficient(lack)),
            RuleFinding::Used | RuleFinding::Broad { .. } => {
                let evidence = &self.options.evidence;
                match unused_since(&history.slices, &history.schedule, evidence, self.now) {
                    Err(lack) => Fate::Stays(format!("of its elements: {}", insufficient(&lack))),
                    Ok(since) => Fate::InParts(
                        history,
                        since,
                        match &judgement.finding {
                            RuleFinding::Broad { parts } => parts,
                            _ => &[],
                        },
                    ),
                }
            }
        }
    }

    /// Which rules allow all that a redundant one does.
    ///
    /// # Errors
    /// One of them is no longer in the files.
    fn others(&self, key: &RuleKey, set: &[RuleKey]) -> Result<String, String> {
        let place = |key: &RuleKey| {
            let found = self.histories.rules.iter().find(|it| it.key == *key);
            found.map(|it| format!("{} {}[{}]", key.policy, key.direction, it.index))
        };
        let mut others: BTreeSet<&RuleKey> = BTreeSet::new();
        for together in self.histories.together.keys().filter(|it| it.contains(key)) {
            let stay: Vec<&RuleKey> =
                together.iter().filter(|it| !set.contains(it) && self.stands(it)).collect();
            if stay.is_empty() {
                return Err(
                    "agents call it redundant, but what allows the same is not in these files any more"
                        .to_owned(),
                );
            }
            others.extend(stay);
        }
        let names: Vec<String> = others.into_iter().take(3).filter_map(place).collect();
        Ok(format!("every flow that it matched is allowed by others too: {}", names.join(", ")))
    }

    /// Whether a rule may be for SCTP, of which nothing is seen.
    fn may_be_sctp(&self, rule: &declared::Rule) -> bool {
        rule.ports.iter().any(is_sctp) || rule.ports.is_empty() && self.options.uses_sctp
    }

    /// Whether a rule is there: of a policy of the files it must be in them.
    fn stands(&self, key: &RuleKey) -> bool {
        let (policies, rules) = &self.ours;
        !policies.contains(&key.policy) || rules.contains(key)
    }

    fn elements(&self, rule: &policy::Rule, history: Option<&History>) -> Vec<Element> {
        let told = |(hash, element): &(u64, policy::Element)| {
            let uses =
                history.and_then(|it| it.elements.get(hash)).map(|(_, uses)| *uses).unwrap_or_default();
            let needs = self.uses.of_element(&rule.id, element.list, element.index);
            Element {
                path: path(rule, element),
                what: element.what.to_string(),
                matches: uses.matches,
                last: uses.last,
                needs: needs.cloned().unwrap_or_default(),
                kept: None,
            }
        };
        rule.elements.iter().map(told).collect()
    }

    /// What becomes of an element of a rule that is used.
    ///
    /// # Errors
    /// Why it stays though it was not used, or as wide as it is.
    fn element(&self, of: &OfElement<'_>, needs: &Needs) -> Result<Option<Proposal>, String> {
        let (direction, rule, at) =
            (of.rule.id.direction, of.rule.id.index as usize, of.element.index as usize);
        let is_port = of.element.list == "ports";
        let Some((_, uses)) = of.history.elements.get(&of.hash) else {
            return Err("agents do not tell of this element".to_owned());
        };
        let propose = |change, why, unused_since| {
            Ok(Some(Proposal { change, what: of.element.what.to_string(), why, unused_since }))
        };
        let is_unseen = match is_port {
            true => of.declared.ports.get(at).is_some_and(is_sctp),
            false => self.may_be_sctp(of.declared) && (uses.last.is_none() || of.part.is_some()),
        };
        if is_unseen {
            return Err(SCTP.to_owned());
        }
        if uses.last.is_none() {
            if at >= 64 {
                return Err("of elements after the 64th agents do not count every use".to_owned());
            }
            if needs.flows() > 0 {
                return Err(recorded(needs));
            }
            let change = match is_port {
                true => Change::RemovePort { direction, rule, port: at },
                false => Change::RemovePeer { direction, rule, peer: at },
            };
            return propose(change, unused(of.since, of.coverage), Some(of.since));
        }
        let Some(part) = of.part else { return Ok(None) };
        let why = || format!("nothing else was used since {}", of.since.to_the_second());
        match &part.enough {
            Enough::Networks(_) if of.declared.ports.iter().any(is_sctp) => {
                Err(format!("wider than what was used, but {SCTP}"))
            }
            Enough::Networks(networks) => {
                let blocks = narrow::blocks(self, of, networks, needs)?;
                propose(Change::NarrowBlock { direction, rule, peer: at, blocks }, why(), Some(of.since))
            }
            Enough::Ports(ports) if self.options.keep_ranges => {
                let ranges = narrow::port_ranges(ports);
                Err(format!("wider than what was used; with ranges narrowed: {}", narrow::words(&ranges)))
            }
            Enough::Ports(ports) => {
                let ranges = narrow::ports(of, ports, needs)?;
                propose(Change::NarrowPorts { direction, rule, port: at, ranges }, why(), Some(of.since))
            }
            Enough::PortsOf(_) | Enough::Whom(_) => {
                let words = part.enough.words().join(", ");
                Err(format!("wider than what was used: of {} only {words}", part.says))
            }
        }
    }

    /// Looks at the lists of a rule as a whole: an empty one would be for everybody.
    fn lists(
        &self,
        rule: &policy::Rule,
        since: Timestamp,
        parts: &[BroadPart],
        told: &mut Rule,
        found: &mut Vec<Proposal>,
    ) {
        let (direction, index) = (rule.id.direction, rule.id.index as usize);
        for list in [direction.peers(), "ports"] {
            let is_of = |it: &Proposal| match it.change {
                Change::RemovePeer { .. } => list != "ports",
                Change::RemovePort { .. } => list == "ports",
                _ => false,
            };
            let all = rule.elements.iter().filter(|(_, it)| it.list == list).count();
            if all > 0 && found.iter().filter(|it| is_of(it)).count() == all {
                // A rule that is used has an element that is: what is known of them contradicts itself.
                found.retain(|it| !is_of(it));
                told.kept =
                    Some(format!("agents tell of uses of the rule, and of none of an element of {list}"));
            }
        }
        for part in parts.iter().filter(|it| it.element.is_none()) {
            match &part.enough {
                Enough::PortsOf(ports) if self.options.add_ports => {
                    match narrow::ports_of(ports, &told.needs) {
                        Ok(ports) => found.push(Proposal {
                            change: Change::AddPorts { direction, rule: index, ports },
                            what: part.says.clone(),
                            why: format!("nothing else was used since {}", since.to_the_second()),
                            unused_since: Some(since),
                        }),
                        Err(why) => told.kept = Some(why),
                    }
                }
                Enough::PortsOf(_) => {
                    let words = part.enough.words().join(", ");
                    told.kept = Some(format!(
                        "for every port, of which only {words} was used; left as it is, since it also allows what nothing sees (SCTP)"
                    ));
                }
                _ => {
                    let words = part.enough.words().join(", ");
                    told.kept = Some(format!(
                        "for everybody, of whom only {words} used it; which labels are meant is not known"
                    ));
                }
            }
        }
    }
}

/// Why stays what may be for SCTP.
const SCTP: &str = "it may be for SCTP, which nothing sees: it is unobservable, not unused";

fn is_sctp(port: &declared::Port) -> bool {
    port.protocol.as_deref() == Some("SCTP")
}

/// Policies by their ids, and their rules.
fn rules_of(policies: &[NetworkPolicy]) -> (BTreeSet<Arc<PolicyId>>, BTreeSet<RuleKey>) {
    let compiled: Vec<CompiledPolicy> = policies.iter().map(CompiledPolicy::compile).collect();
    let ids = compiled.iter().map(|it| it.id.clone()).collect();
    let rules =
        compiled.iter().flat_map(|it| Direction::ALL.into_iter().flat_map(|direction| it.rules(direction)));
    (ids, rules.map(|it| RuleKey::from(&*it.id)).collect())
}

/// What becomes of a rule.
enum Fate<'a> {
    Goes {
        why: String,
        unused_since: Option<Timestamp>,
    },
    Stays(String),
    /// It is looked at element by element: what is not used is so since then.
    InParts(&'a History, Timestamp, &'a [BroadPart]),
}

/// An element of a rule that is used.
pub(super) struct OfElement<'a> {
    pub declared: &'a declared::Rule,
    pub rule: &'a policy::Rule,
    pub hash: u64,
    pub element: &'a policy::Element,
    pub history: &'a History,
    pub since: Timestamp,
    pub coverage: f64,
    /// What is too wide of it.
    pub part: Option<&'a BroadPart>,
}

fn path(rule: &policy::Rule, element: &policy::Element) -> String {
    format!("{}.{}", rule.id.path(), element.path())
}

/// What was watched is part of the evidence: where a record was lost, nothing is called unused.
fn unused(since: Timestamp, coverage: f64) -> String {
    let percent = (coverage * 10_000.0).floor() / 100.0;
    format!("nobody used it since {}; {percent:.2}% watched, no record lost", since.to_the_second())
}

fn recorded(needs: &Needs) -> String {
    let last = needs.last.map_or_else(String::new, |it| format!(", the last at {}", it.to_the_second()));
    format!("agents call it unused, but {} recorded flows need it{last}", needs.flows())
}

fn insufficient(lack: &Lack) -> String {
    let missing = lack.missing.as_str();
    match lack.enough_at {
        Some(at) => format!("insufficient evidence: {missing}; enough by {}", at.to_the_second()),
        None => format!("insufficient evidence: {missing}"),
    }
}
