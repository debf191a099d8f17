//! Whether a flow may pass, where nothing is in doubt: the quick way for almost every question.
//!
//! It knows no causes, so it looks at ports first, as they need no other memory than the rule's own, and stops at the first
//! rule that decides. Whatever is not certain it leaves to [`evaluate`](super::evaluate), which says the same of everything
//! else: in builds with debug assertions, as tests are, each verdict with causes is compared with it.

use super::{
    Certainty,
    evaluate::{Asked, Program, Selected, names_port},
    loaded::{LoadedRule, PeerView, QuickPort},
};
use crate::model::{Action, Direction};

/// Whether nothing that a program holds is in doubt, no two policies of a tier have one priority, and no foreign policy
/// could turn an answer.
pub(super) fn is_certain(program: &Program, direction: Direction) -> bool {
    let tied = |tier: &[Selected]| tier.windows(2).any(|two| two[0].priority() == two[1].priority());
    let tiers = [&program.admin, &program.network, &program.baseline];
    let sure = |it: &Selected| it.doubt.is_none() && !it.loaded.is_doubtful(direction);
    program.doubts.is_empty()
        && program.foreign.is_silent()
        && !tied(&program.admin)
        && !tied(&program.baseline)
        && tiers.into_iter().flatten().all(sure)
}

/// Whether it may pass; `None` where that is not certain, or cannot be told without looking closer.
pub(super) fn allows(asked: &Asked<'_>) -> Option<bool> {
    let program = asked.program;
    if !program.certain {
        return None;
    }
    match first(asked, &program.admin)? {
        Some(Action::Allow) => return Some(true),
        Some(Action::Deny) => return Some(false),
        Some(Action::Pass) | None => {}
    }
    if program.network.is_empty() {
        return Some(first(asked, &program.baseline)? != Some(Action::Deny));
    }
    for policy in &program.network {
        for (index, rule) in policy.rules.iter().enumerate() {
            if matches(asked, policy, index, rule)? {
                return Some(true);
            }
        }
    }
    Some(false)
}

/// What the first rule of a tier with an order does that matches.
fn first(asked: &Asked<'_>, tier: &[Selected]) -> Option<Option<Action>> {
    for policy in tier {
        for (index, rule) in policy.rules.iter().enumerate() {
            if matches(asked, policy, index, rule)? {
                return Some(Some(rule.action));
            }
        }
    }
    Some(None)
}

fn matches(asked: &Asked<'_>, policy: &Selected, index: usize, rule: &LoadedRule) -> Option<bool> {
    let port = rule.ports.is_empty()
        || rule.ports.iter().enumerate().any(|(n, port)| match *port {
            QuickPort::Range(protocol, first, last) => {
                protocol.is_none_or(|it| it == asked.protocol) && (first..=last).contains(&asked.port)
            }
            QuickPort::Named => {
                names_port(asked, &policy.loaded.policy.rules(asked.direction)[index].ports[n])
            }
        });
    if port { meets(rule, &asked.peer) } else { Some(false) }
}

fn meets(rule: &LoadedRule, peer: &PeerView<'_>) -> Option<bool> {
    if rule.is_for(peer)? {
        return Some(true);
    }
    let mut perhaps = false;
    for listed in &rule.peers {
        match listed.matches(peer) {
            Certainty::Yes => return Some(true),
            Certainty::Maybe => perhaps = true,
            Certainty::No => {}
        }
    }
    if perhaps { None } else { Some(false) }
}
