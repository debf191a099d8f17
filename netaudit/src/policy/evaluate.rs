//! One answer, computed: without allocating, as long as not more rules match than fit into it.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{
    Certainty, NamedPort,
    certain::Steps,
    compile::{PortMatch, PortTest, Rule},
    foreign::Foreign,
    loaded::{Hit, Loaded, LoadedRule, Met, PeerView},
    ruleset::Doubt,
};
use crate::model::{Action, Cause, Decision, Denial, Direction, Gap, NearMiss, Protocol, RuleMatch, Verdict};

/// A flow as it is judged from one end.
pub(super) struct Asked<'a> {
    pub direction: Direction,
    /// The policies that may say something of the subject in this direction.
    pub program: &'a Program,
    /// The named ports of the subject.
    pub subject_ports: &'a [NamedPort],
    pub peer: PeerView<'a>,
    /// The named ports of the peer; none where it is no pod.
    pub peer_ports: &'a [NamedPort],
    pub protocol: Protocol,
    /// The destination's.
    pub port: u16,
}

/// What can be said of one subject in one direction: the policies that select it.
#[derive(Default)]
pub(super) struct Program {
    pub admin: Vec<Selected>,
    pub network: Vec<Selected>,
    pub baseline: Vec<Selected>,
    /// What policies that are not evaluated could do.
    pub foreign: Foreign,
    /// Objects that may be policies which select it.
    pub doubts: Vec<Doubt>,
    /// The quick way, where nothing of all that is in doubt.
    pub certain: Option<Steps>,
}

/// A policy that selects a subject.
pub(super) struct Selected {
    pub loaded: Arc<Loaded>,
    /// Set where that is not certain: why.
    pub doubt: Option<Arc<str>>,
}

/// An answer that borrows its causes.
pub(super) struct Answer<'a> {
    pub what: What<'a>,
    pub passed: SmallVec<[Hit<'a>; 2]>,
}

pub(super) enum What<'a> {
    Allowed(SmallVec<[Hit<'a>; 4]>),
    NotIsolated,
    DeniedBy(Hit<'a>),
    Isolated(SmallVec<[(&'a Loaded, Option<u32>); 8]>),
    Unknown(Gap),
}

impl What<'_> {
    /// Whether it may pass; `None` where that is not known.
    pub fn is_allowed(&self) -> Option<bool> {
        match self {
            Self::Allowed(_) | Self::NotIsolated => Some(true),
            Self::DeniedBy(_) | Self::Isolated(_) => Some(false),
            Self::Unknown(_) => None,
        }
    }
}

impl Answer<'_> {
    pub fn to_verdict(&self, asked: &Asked<'_>, caveats: Arc<[Arc<str>]>, generation: u64) -> Verdict {
        let to_match = |hit: &Hit<'_>| hit.to_match(&asked.peer, |port| names_port(asked, port));
        let decision = match &self.what {
            What::Allowed(hits) => Decision::Allowed(Cause::Rules(hits.iter().map(to_match).collect())),
            What::NotIsolated => Decision::Allowed(Cause::NotIsolated),
            What::DeniedBy(hit) => Decision::Denied(Denial::Rule(to_match(hit))),
            What::Isolated(misses) => {
                let miss = |(loaded, near): &(&Loaded, Option<u32>)| NearMiss {
                    policy: loaded.policy.id.clone(),
                    peer_matches_rule: *near,
                };
                Decision::Denied(Denial::Isolation(misses.iter().map(miss).collect()))
            }
            What::Unknown(gap) => Decision::Unknown(gap.clone()),
        };
        let passed: SmallVec<[RuleMatch; 1]> = self.passed.iter().map(to_match).collect();
        Verdict { decision, passed, caveats, generation }
    }
}

/// The API of the tiers: the first rule of the Admin tier that matches decides, or passes; then NetworkPolicies decide
/// for every pod that one of them isolates; then the first rule of the Baseline tier that matches; then all may pass.
pub(super) fn answer<'a>(asked: &Asked<'a>) -> Answer<'a> {
    let admin = ordered(asked, &asked.program.admin);
    let admin_doubt = asked.program.doubts.iter().find(|it| it.overrides).map(|it| &it.reason);
    let mut passed = SmallVec::new();
    let what = settle(&admin, &mut passed, || {
        let mut passed = SmallVec::new();
        let what = network(asked, &mut passed);
        Answer { what, passed }
    });
    match admin_doubt {
        // It may allow and it may deny, before everybody else.
        Some(reason) => Answer { what: What::Unknown(Gap::Invalid(reason.clone())), passed: SmallVec::new() },
        None => Answer { what: asked.program.foreign.weigh(what), passed },
    }
}

/// What a tier with an order says.
struct Ordered<'a> {
    /// The first rule that matches for certain.
    first: Option<Hit<'a>>,
    /// What may be decided instead, and why that is not certain.
    instead: SmallVec<[(Action, Gap); 1]>,
}

/// The API: policies by priority, the rules of each from top to bottom, and the first that matches counts. Of two
/// policies with one priority either may be asked first.
fn ordered<'a>(asked: &Asked<'a>, policies: &'a [Selected]) -> Ordered<'a> {
    let mut found = Ordered { first: None, instead: SmallVec::new() };
    let mut at = None;
    for Selected { loaded, doubt } in policies {
        let policy = &loaded.policy;
        if found.first.is_some() && at != Some(policy.priority) {
            break;
        }
        at = Some(policy.priority);
        let doubt = doubt.as_ref().or(policy.doubt());
        for (rule, with) in loaded.rules(asked.direction) {
            let (hit, why) = match ask(asked, rule, with) {
                Found::Match(hit) => match doubt.or(rule.doubt.as_ref()) {
                    Some(doubt) => (hit, Some(Gap::Invalid(doubt.clone()))),
                    None => (hit, None),
                },
                Found::Perhaps(hit, gap) => (hit, Some(gap)),
                Found::OtherPort | Found::OtherPeer => continue,
            };
            match (why, &found.first) {
                (Some(gap), _) => {
                    // What it does is in doubt itself: it may do either.
                    if rule.doubt.is_some() {
                        found.instead.push((Action::Allow, gap.clone()));
                    }
                    found.instead.push((rule.id.action, gap));
                    continue;
                }
                (None, None) => found.first = Some(hit),
                (None, Some(first)) if first.rule.id.action != rule.id.action => {
                    let (a, b) = (&first.rule.id.policy, &policy.id);
                    let tie = format!("{a} and {b} have one priority, {}", policy.priority);
                    found.instead.push((rule.id.action, Gap::PriorityTie(tie.into())));
                }
                (None, Some(_)) => {}
            }
            break;
        }
    }
    found
}

/// The outcome of a tier with an order, followed by the tiers after it, unless what is uncertain could change it.
fn settle<'a>(
    tier: &Ordered<'a>,
    passed: &mut SmallVec<[Hit<'a>; 2]>,
    rest: impl FnOnce() -> Answer<'a>,
) -> What<'a> {
    let passes = |action: Action| action == Action::Pass;
    let falls_through = tier.first.is_none_or(|hit| passes(hit.rule.id.action));
    let needs_rest = falls_through || tier.instead.iter().any(|(action, _)| passes(*action));
    let rest = needs_rest.then(rest);
    let rest_allows = rest.as_ref().and_then(|rest| rest.what.is_allowed());
    let what = match tier.first {
        Some(hit) if hit.rule.id.action == Action::Allow => What::Allowed([hit].into_iter().collect()),
        Some(hit) if hit.rule.id.action == Action::Deny => What::DeniedBy(hit),
        first => {
            passed.extend(first);
            match rest {
                Some(rest) => {
                    passed.extend(rest.passed);
                    rest.what
                }
                None => What::NotIsolated,
            }
        }
    };
    if tier.instead.is_empty() {
        return what;
    }
    let allowed = what.is_allowed();
    let other = tier.instead.iter().find(|(action, _)| {
        let instead = match action {
            Action::Allow => Some(true),
            Action::Deny => Some(false),
            Action::Pass => rest_allows,
        };
        instead.is_none() || instead != allowed
    });
    match other {
        Some((_, gap)) => {
            passed.clear();
            What::Unknown(gap.clone())
        }
        None => what,
    }
}

/// NetworkPolicies, and behind them the Baseline tier.
///
/// The API: a pod is isolated in a direction if a policy that is about that direction selects it. An isolated pod may
/// talk to whom at least one rule of the policies that select it allows: policies add up, they never take away, and
/// their order means nothing.
fn network<'a>(asked: &Asked<'a>, passed: &mut SmallVec<[Hit<'a>; 2]>) -> What<'a> {
    let mut allowing: SmallVec<[Hit<'a>; 4]> = SmallVec::new();
    let mut isolating: SmallVec<[(&'a Loaded, Option<u32>); 8]> = SmallVec::new();
    // What might allow the flow, what might isolate the subject without certainly allowing it, and what might isolate it
    // and allows it then.
    let mut may_allow: Option<Gap> = None;
    let mut may_isolate: Option<Gap> = None;
    let mut may_keep: Option<Gap> = None;

    for Selected { loaded, doubt } in &asked.program.network {
        let mut near = None;
        let mut allows = Certainty::No;
        for (rule, with) in loaded.rules(asked.direction) {
            match ask(asked, rule, with) {
                Found::Match(hit) => {
                    allows = Certainty::Yes;
                    if doubt.is_none() {
                        allowing.push(hit);
                    }
                }
                Found::Perhaps(_, gap) => {
                    allows = allows.or(Certainty::Maybe);
                    may_allow.get_or_insert(gap);
                }
                Found::OtherPort => near = near.or(Some(rule.id.index)),
                Found::OtherPeer => {}
            }
        }
        let Some(reason) = doubt else {
            isolating.push((loaded, near));
            continue;
        };
        let gap = || Gap::Invalid(reason.clone());
        if allows != Certainty::No {
            may_allow.get_or_insert_with(gap);
        }
        if allows == Certainty::Yes { &mut may_keep } else { &mut may_isolate }.get_or_insert_with(gap);
    }
    if let Some(doubt) = asked.program.doubts.first() {
        may_allow.get_or_insert_with(|| Gap::Invalid(doubt.reason.clone()));
        may_isolate.get_or_insert_with(|| Gap::Invalid(doubt.reason.clone()));
    }

    if !isolating.is_empty() {
        return if !allowing.is_empty() {
            What::Allowed(allowing)
        } else if let Some(gap) = may_allow {
            What::Unknown(gap)
        } else {
            What::Isolated(isolating)
        };
    }
    if let Some(gap) = may_isolate {
        return What::Unknown(gap);
    }
    let what = settle(&ordered(asked, &asked.program.baseline), passed, || Answer {
        what: What::NotIsolated,
        passed: SmallVec::new(),
    });
    let what = asked.program.foreign.before_baseline(what);
    match may_keep {
        Some(gap) if what.is_allowed() != Some(true) => What::Unknown(gap),
        _ => what,
    }
}

/// What every rule of every policy that selects the subject says, whether it is needed for the answer or not.
pub(super) fn trace<'a>(asked: &Asked<'a>) -> Vec<(&'a Selected, Vec<Found<'a>>)> {
    let program = asked.program;
    let policies = program.admin.iter().chain(&program.network).chain(&program.baseline);
    let of = |selected: &'a Selected| {
        let rules = selected.loaded.rules(asked.direction);
        (selected, rules.map(|(rule, with)| ask(asked, rule, with)).collect())
    };
    policies.map(of).collect()
}

/// What a rule says of a flow.
pub(super) enum Found<'a> {
    Match(Hit<'a>),
    /// It matches if something is as it may be: what that hangs on.
    Perhaps(Hit<'a>, Gap),
    /// It does not, though its peers match.
    OtherPort,
    /// It does not.
    OtherPeer,
}

/// The API: a rule matches if one of its peers and one of its ports match; without peers it matches everyone, without
/// ports every port.
fn ask<'a>(asked: &Asked<'a>, rule: &'a Rule, with: &'a LoadedRule) -> Found<'a> {
    let (peer, peer_is_certain) = match with.meets(&asked.peer) {
        Met::No => return Found::OtherPeer,
        Met::Yes(peer) => (peer, true),
        Met::Maybe(peer) => (Some(peer), false),
    };
    let (port, port_is_certain) = match find_port(asked, rule) {
        PortFound::No if peer_is_certain => return Found::OtherPort,
        PortFound::No => return Found::OtherPeer,
        PortFound::Yes(port) => (port, true),
        PortFound::Maybe(port) => (Some(port), false),
    };
    let hit = Hit { rule, peer, port, with };
    if peer_is_certain && port_is_certain {
        return Found::Match(hit);
    }
    let gap = match (peer, port) {
        (Some(peer), _) if !peer_is_certain => with.peer_gap(rule, peer, &asked.peer),
        (_, Some(port)) => rule.ports[port as usize].doubt.clone().map(Gap::Invalid),
        _ => None,
    };
    Found::Perhaps(hit, gap.unwrap_or_else(|| Gap::Invalid("an invalid object".into())))
}

enum PortFound {
    /// This element, or `None` where every port is meant.
    Yes(Option<u32>),
    Maybe(u32),
    No,
}

fn find_port(asked: &Asked<'_>, rule: &Rule) -> PortFound {
    if rule.ports.is_empty() {
        return PortFound::Yes(None);
    }
    let mut best = PortFound::No;
    for (position, port) in (0..).zip(&rule.ports) {
        match (names_port(asked, port), &port.doubt) {
            (false, _) => {}
            (true, None) => return PortFound::Yes(Some(position)),
            (true, Some(_)) if matches!(best, PortFound::No) => best = PortFound::Maybe(position),
            (true, Some(_)) => {}
        }
    }
    best
}

/// Whether an element of `ports` names the port of the flow.
///
/// The API: a named port is looked up on the destination pod, by name and protocol. That is the peer of an egress flow
/// and the subject of an ingress one; what is no pod has no named ports.
pub(super) fn names_port(asked: &Asked<'_>, port: &PortMatch) -> bool {
    if port.protocol.is_some_and(|protocol| protocol != asked.protocol) {
        return false;
    }
    match &port.port {
        PortTest::Any => true,
        PortTest::Range(first, last) => (*first..=*last).contains(&asked.port),
        PortTest::Named(name) => {
            let ports = match asked.direction {
                Direction::Egress => asked.peer_ports,
                Direction::Ingress => asked.subject_ports,
            };
            let is_it =
                |it: &NamedPort| it.port == asked.port && it.protocol == asked.protocol && it.name == *name;
            ports.iter().any(is_it)
        }
    }
}
