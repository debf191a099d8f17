//! What policies say of all ports of one peer at once: the tiers, as [`evaluate`](super::super::evaluate) asks them for
//! one port, in sets.
//!
//! Each comment there on what the API says holds here too; only how it is computed differs.

use smallvec::{SmallVec, smallvec};

use super::ports::PortSet;
use crate::{
    model::{Action, Direction, Protocol},
    policy::{
        NamedPort,
        compile::{PortMatch, PortTest, Rule},
        evaluate::{Program, Selected},
        loaded::{self, Loaded, LoadedRule, PeerView},
    },
};

/// What one end's policies say of a peer: what they surely allow, and what they may allow.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub(super) struct Judgement {
    pub surely: PortSet,
    /// Holds `surely` too.
    pub possibly: PortSet,
}

impl Judgement {
    fn unknown() -> Self {
        Self { surely: PortSet::default(), possibly: PortSet::all() }
    }

    /// With a policy that is not evaluated, which may deny what is allowed and may allow what is denied.
    fn but(self, denies: bool, allows: bool) -> Self {
        Self {
            surely: if denies { PortSet::default() } else { self.surely },
            possibly: if allows { PortSet::all() } else { self.possibly },
        }
    }
}

/// How the peers of a rule meet a peer, if they do or may.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Meets {
    Maybe,
    Yes,
}

/// A rule that meets a peer, by its number in the order in which [`judge`] asks them. Those that do so are all that a
/// judgement depends on, beside the named ports of the destination.
pub(super) type Met = (u32, Meets);

/// The rules of a program, in the order in which [`judge`] asks them.
pub(super) fn rules(program: &Program, direction: Direction) -> Vec<&LoadedRule> {
    let policies = program.admin.iter().chain(&program.network).chain(&program.baseline);
    policies.flat_map(|selected| selected.loaded.rules(direction).map(|(_, rule)| rule)).collect()
}

/// How a rule meets a peer.
pub(super) fn meet(rule: &LoadedRule, peer: &PeerView<'_>) -> Option<Meets> {
    match rule.meets(peer) {
        loaded::Met::No => None,
        loaded::Met::Maybe(_) => Some(Meets::Maybe),
        loaded::Met::Yes(_) => Some(Meets::Yes),
    }
}

/// The ports that a program allows for a peer whom its rules meet so; `named` are those of the destination.
pub(super) fn judge(
    program: &Program,
    direction: Direction,
    meets: &[Met],
    named: &[NamedPort],
) -> Judgement {
    if program.doubts.iter().any(|it| it.overrides) {
        return Judgement::unknown();
    }
    let mut asked = Asked { direction, meets, next: 0, named };
    let admin = asked.ordered(&program.admin);
    let network = asked.network(&program.network, !program.doubts.is_empty());
    let baseline = asked.ordered(&program.baseline);
    // The API: what no policy speaks of is allowed.
    let rest = baseline.settle(&Judgement { surely: PortSet::all(), possibly: PortSet::all() });
    let foreign = &program.foreign;
    let rest = rest.but(foreign.isolates.is_some(), false);
    admin.settle(&network.settle(rest)).but(foreign.denies.is_some(), foreign.allows.is_some())
}

struct Asked<'a> {
    direction: Direction,
    /// Of the policies that have not been asked yet.
    meets: &'a [Met],
    /// The number of the next policy's first rule.
    next: u32,
    named: &'a [NamedPort],
}

/// The ports of a peer that a rule matches.
struct Matched {
    surely: PortSet,
    /// Only if what is doubtful is so; nothing of `surely`.
    perhaps: PortSet,
}

/// What a tier with an order says: disjoint sets by the action of the first rule that matches, and what may be decided
/// instead.
#[derive(Default)]
struct Ordered {
    first: Actions,
    instead: Actions,
}

/// Ports by what a rule does with them.
#[derive(Default)]
struct Actions {
    allow: PortSet,
    deny: PortSet,
    pass: PortSet,
}

impl Actions {
    fn add(&mut self, action: Action, ports: &PortSet) {
        let known = match action {
            Action::Allow => &mut self.allow,
            Action::Deny => &mut self.deny,
            Action::Pass => &mut self.pass,
        };
        *known = known.union(ports);
    }

    fn all(&self) -> PortSet {
        self.allow.union(&self.deny).union(&self.pass)
    }

    fn but(&self, action: Action) -> PortSet {
        match action {
            Action::Allow => self.deny.union(&self.pass),
            Action::Deny => self.allow.union(&self.pass),
            Action::Pass => self.allow.union(&self.deny),
        }
    }
}

/// What NetworkPolicies say.
struct Network {
    /// Whether one isolates for certain.
    isolates: bool,
    allow: PortSet,
    may_allow: PortSet,
    may_isolate: PortSet,
    /// What isolates perhaps and allows then.
    may_keep: PortSet,
}

impl Asked<'_> {
    /// Those rules of the next policy that match something, in order.
    fn matching<'r>(&mut self, loaded: &'r Loaded) -> Vec<(&'r Rule, Matched)> {
        let rules = loaded.policy.rules(self.direction);
        let first = self.next;
        self.next += rules.len() as u32;
        let (own, rest) = self.meets.split_at(self.meets.partition_point(|(number, _)| *number < self.next));
        self.meets = rest;
        let rule = |(number, meets): &Met| {
            let rule = &rules[(number - first) as usize];
            (rule, self.matched(rule, *meets))
        };
        own.iter().map(rule).collect()
    }

    fn matched(&self, rule: &Rule, meets: Meets) -> Matched {
        let ports = |doubtful: bool| -> PortSet {
            let ports = rule.ports.iter().filter(|port| port.doubt.is_some() == doubtful);
            ports.flat_map(|port| self.ranges_of(port)).collect()
        };
        let surely = if rule.ports.is_empty() { PortSet::all() } else { ports(false) };
        let perhaps = ports(true);
        match meets {
            Meets::Maybe => Matched { perhaps: surely.union(&perhaps), surely: PortSet::default() },
            Meets::Yes => Matched { perhaps: perhaps.difference(&surely), surely },
        }
    }

    fn ranges_of(&self, port: &PortMatch) -> SmallVec<[(Option<Protocol>, u16, u16); 1]> {
        match &port.port {
            PortTest::Any => smallvec![(port.protocol, 1, u16::MAX)],
            PortTest::Range(first, last) => smallvec![(port.protocol, *first, *last)],
            PortTest::Named(name) => (self.named.iter())
                .filter(|it| it.name == *name && port.protocol.is_none_or(|protocol| protocol == it.protocol))
                .map(|it| (Some(it.protocol), it.port, it.port))
                .collect(),
        }
    }

    fn ordered(&mut self, policies: &[Selected]) -> Ordered {
        let mut found = Ordered::default();
        // What is decided by lower priorities, and so is not asked any more.
        let mut decided = PortSet::default();
        let mut at = None;
        for Selected { loaded, doubt } in policies {
            let policy = &loaded.policy;
            if at != Some(policy.priority) {
                decided = found.first.all();
            }
            at = Some(policy.priority);
            let mut open = decided.complement();
            let policy_doubt = doubt.as_ref().or(policy.doubt());
            for (rule, matched) in self.matching(loaded) {
                let (surely, perhaps) =
                    (matched.surely.intersection(&open), matched.perhaps.intersection(&open));
                let action = rule.id.action;
                let is_doubtful = policy_doubt.is_some() || rule.doubt.is_some();
                let perhaps = if is_doubtful { perhaps.union(&surely) } else { perhaps };
                found.instead.add(action, &perhaps);
                if rule.doubt.is_some() {
                    // What it does is in doubt itself: it may do either.
                    found.instead.add(Action::Allow, &perhaps);
                }
                if is_doubtful {
                    continue;
                }
                // A policy of the same priority was first, and does something else: that is a tie.
                found.instead.add(action, &surely.intersection(&found.first.but(action)));
                let new = surely.difference(&found.first.all());
                found.first.add(action, &new);
                open = open.difference(&surely);
            }
        }
        found
    }

    fn network(&mut self, policies: &[Selected], has_doubts: bool) -> Network {
        let none = PortSet::default;
        let mut found = Network {
            isolates: false,
            allow: none(),
            may_allow: none(),
            may_isolate: none(),
            may_keep: none(),
        };
        for Selected { loaded, doubt } in policies {
            let matching = self.matching(loaded);
            let surely: PortSet = matching.iter().map(|(_, matched)| &matched.surely).collect();
            let perhaps: PortSet = matching.iter().map(|(_, matched)| &matched.perhaps).collect();
            found.may_allow = found.may_allow.union(&perhaps);
            if doubt.is_none() {
                found.isolates = true;
                found.allow = found.allow.union(&surely);
            } else {
                found.may_allow = found.may_allow.union(&surely);
                found.may_keep = found.may_keep.union(&surely);
                found.may_isolate = found.may_isolate.union(&surely.complement());
            }
        }
        if has_doubts {
            found.may_allow = PortSet::all();
            found.may_isolate = PortSet::all();
        }
        found
    }
}

impl Ordered {
    /// The tier followed by what comes after it.
    fn settle(&self, rest: &Judgement) -> Judgement {
        let falls = self.first.allow.union(&self.first.deny).complement();
        let surely = self.first.allow.union(&falls.intersection(&rest.surely));
        let possibly = self.first.allow.union(&falls.intersection(&rest.possibly));
        // What may be decided instead makes unknown what it would change.
        let (instead, passed) = (&self.instead, &self.instead.pass);
        Judgement {
            surely: surely.difference(&instead.deny).difference(&passed.difference(&rest.surely)),
            possibly: possibly.union(&instead.allow).union(&passed.intersection(&rest.possibly)),
        }
    }
}

impl Network {
    /// NetworkPolicies followed by the Baseline tier, which is asked only for what none isolates.
    fn settle(&self, baseline: Judgement) -> Judgement {
        if self.isolates {
            return Judgement { surely: self.allow.clone(), possibly: self.allow.union(&self.may_allow) };
        }
        Judgement {
            surely: baseline.surely.difference(&self.may_isolate),
            possibly: baseline.possibly.union(&self.may_isolate).union(&self.may_keep),
        }
    }
}
