//! One verdict, computed.

use std::sync::Arc;

use super::{
    Certainty, NamedPort,
    compile::{PortMatch, PortTest, Rule},
    engine::{ClassId, Engine, Question, Selected, Target},
};
use crate::model::{Cause, Direction, Gap, NearMiss, RuleMatch, Verdict};

/// What a rule says of a flow.
enum Answer {
    /// It allows it, by these elements of its peers and ports.
    Allows { peer: Option<u32>, port: Option<u32> },
    /// It may, were something valid that is not: what.
    MayAllow(Arc<str>),
    /// It does not, though its peers match.
    OtherPort,
    /// It does not.
    OtherPeer,
}

/// The API's rules: a pod is isolated in a direction if a policy that is about that direction selects it. A pod that is
/// not isolated may talk to everyone. An isolated pod may talk to whom at least one rule of the policies that select it
/// allows: policies add up, they never take away, and their order means nothing.
pub(super) fn verdict(engine: &Engine, question: &Question) -> Verdict {
    let subject = engine.facts(question.subject);
    let mut allowing = Vec::new();
    let mut isolating = Vec::new();
    // What might allow the flow, and what might isolate the subject without certainly allowing it.
    let mut may_allow: Option<Arc<str>> = None;
    let mut may_isolate: Option<Arc<str>> = None;

    for Selected { policy, doubt } in &subject.selected[question.direction as usize] {
        let loaded = &engine.policies[*policy as usize];
        let rules = loaded.policy.rules(question.direction);
        let mut near = None;
        let mut allows = Certainty::No;
        for (rule, peers) in rules.iter().zip(&loaded.peers[question.direction as usize]) {
            match ask(engine, question, rule, peers) {
                Answer::Allows { peer, port } => {
                    allows = Certainty::Yes;
                    if doubt.is_none() {
                        allowing.push(RuleMatch { rule: rule.id.clone(), peer, port });
                    }
                }
                Answer::MayAllow(reason) => {
                    allows = allows.or(Certainty::Maybe);
                    may_allow.get_or_insert(reason);
                }
                Answer::OtherPort => near = near.or(Some(rule.id.index)),
                Answer::OtherPeer => {}
            }
        }
        match doubt {
            None => {
                isolating.push(NearMiss { policy: loaded.policy.id.clone(), peer_matches_rule: near });
            }
            Some(reason) => {
                if allows != Certainty::No {
                    may_allow.get_or_insert_with(|| reason.clone());
                }
                if allows != Certainty::Yes {
                    may_isolate.get_or_insert_with(|| reason.clone());
                }
            }
        }
    }
    if let Some(reason) = subject.doubts.first() {
        may_allow.get_or_insert_with(|| reason.clone());
        may_isolate.get_or_insert_with(|| reason.clone());
    }

    if isolating.is_empty() {
        return match may_isolate {
            Some(reason) => Verdict::Unknown(Gap::Invalid(reason)),
            None => Verdict::Allowed(Cause::NotIsolated),
        };
    }
    if !allowing.is_empty() {
        return Verdict::Allowed(Cause::Rules(allowing.into()));
    }
    match may_allow {
        Some(reason) => Verdict::Unknown(Gap::Invalid(reason)),
        None => Verdict::Denied { by: isolating.into() },
    }
}

/// The API: a rule matches if one of its peers and one of its ports match; without peers it matches everyone, without
/// ports every port.
fn ask(engine: &Engine, question: &Question, rule: &Rule, targets: &[Target]) -> Answer {
    let peer = first(rule.peers.iter().zip(targets), |(peer, target)| {
        let (found, doubt) = meets(engine, question, *target);
        let found = if peer.doubt.is_some() { found.and(Certainty::Maybe) } else { found };
        (found, peer.doubt.clone().or(doubt))
    });
    let port = first(rule.ports.iter(), |port| {
        let found = names_port(engine, question, port);
        (if port.doubt.is_some() { found.and(Certainty::Maybe) } else { found }, port.doubt.clone())
    });
    // The peer's place is the one in the declared list, as one element can stand for two matchers here.
    let peer_index = |position: Option<u32>| position.map(|it| rule.peers[it as usize].index);
    match (peer, port) {
        (First::No, _) => Answer::OtherPeer,
        (First::Yes(_), First::No) => Answer::OtherPort,
        (First::Maybe(_), First::No) => Answer::OtherPeer,
        (First::Yes(peer), First::Yes(port)) => Answer::Allows { peer: peer_index(peer), port },
        (First::Maybe(reason), _) | (First::Yes(_), First::Maybe(reason)) => Answer::MayAllow(reason),
    }
}

/// The best that a list has to offer.
enum First {
    /// The first element that matches; `None` where the list is empty and so matches everything.
    Yes(Option<u32>),
    Maybe(Arc<str>),
    No,
}

fn first<T>(
    list: impl Iterator<Item = T>,
    mut test: impl FnMut(T) -> (Certainty, Option<Arc<str>>),
) -> First {
    let mut empty = true;
    let mut best = First::No;
    for (position, element) in list.enumerate() {
        empty = false;
        match test(element) {
            (Certainty::Yes, _) => return First::Yes(Some(position as u32)),
            (Certainty::Maybe, doubt) if matches!(best, First::No) => {
                best = First::Maybe(doubt.unwrap_or_else(|| "an invalid object".into()));
            }
            _ => {}
        }
    }
    if empty { First::Yes(None) } else { best }
}

/// Whether the peer is one of those that an element of `from` or `to` speaks of, and why that is in doubt.
fn meets(engine: &Engine, question: &Question, target: Target) -> (Certainty, Option<Arc<str>>) {
    match (target, question.peer) {
        (Target::Anyone, _) => (Certainty::Yes, None),
        // Selectors select pods: nothing else has labels.
        (Target::Scope(_), None) => (Certainty::No, None),
        (Target::Scope(scope), Some(peer)) => {
            let found = engine.in_scope(peer, scope);
            let doubt = (found == Certainty::Maybe).then(|| engine.scope_doubt(peer, scope)).flatten();
            (found, doubt)
        }
        (Target::Block(block), _) => {
            let doubt = || format!("the pod has no address yet, which ipBlock {} needs", engine.block(block));
            (
                engine.in_block(question.class, block),
                (question.class == ClassId::UNKNOWN).then(|| doubt().into()),
            )
        }
    }
}

/// Whether an element of `ports` names the port of the flow.
///
/// The API: a named port is looked up on the destination pod, by name and protocol. That is the peer of an egress flow
/// and the subject of an ingress one; what is no pod has no named ports.
fn names_port(engine: &Engine, question: &Question, port: &PortMatch) -> Certainty {
    if port.protocol.is_some_and(|protocol| protocol != question.protocol) {
        return Certainty::No;
    }
    match &port.port {
        PortTest::Any => Certainty::Yes,
        PortTest::Range(first, last) => (*first..=*last).contains(&question.port).into(),
        PortTest::Named(name) => {
            let destination = match question.direction {
                Direction::Egress => question.peer,
                Direction::Ingress => Some(question.subject),
            };
            let ports = destination.map(|it| engine.facts(it).ports.as_slice()).unwrap_or_default();
            let is_it = |it: &NamedPort| {
                it.name == *name && it.protocol == question.protocol && it.port == question.port
            };
            ports.iter().any(is_it).into()
        }
    }
}
