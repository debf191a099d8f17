//! Rules and elements that change nothing, as others of the policy hold all of them.

use super::{
    Code,
    reach::Rule,
    world::{Out, World},
};
use crate::model::Direction;

pub(super) fn check(world: &World<'_>, out: &mut Out) {
    for policy in &world.policies {
        for direction in Direction::ALL.into_iter().filter(|it| policy.may_isolate(*it)) {
            let rules = policy.rules(direction);
            for (index, rule) in rules.iter().enumerate() {
                if let Some(other) = holder(rules, index, |some, all| some.is_within(all)) {
                    let message =
                        format!("{direction}[{other}] allows all of this already: remove one of them");
                    out.find(Code::Shadowed, policy.item, rule.path.clone(), message);
                } else {
                    elements(policy.item, rule, out);
                }
            }
        }
    }
    for policy in &world.wide {
        for direction in Direction::ALL {
            let rules = policy.rules(direction);
            for (index, rule) in rules.iter().enumerate() {
                let earlier = rules[..index].iter().enumerate().find(|(_, it)| rule.is_within(it));
                match earlier {
                    Some((number, earlier)) if rule.action != earlier.action => {
                        let message = format!(
                            "{direction}[{number}] comes first and decides all of this: put the narrower rule before it"
                        );
                        out.find(Code::Unreachable, policy.item, rule.path.clone(), message);
                    }
                    Some((number, _)) => {
                        let message = format!(
                            "{direction}[{number}] comes first and decides all of this alike: remove one of them"
                        );
                        out.note(Code::Unreachable, policy.item, rule.path.clone(), message);
                    }
                    None => elements(policy.item, rule, out),
                }
            }
        }
    }
}

/// Elements of one list.
fn elements(item: usize, rule: &Rule, out: &mut Out) {
    if rule.is_doubtful {
        return;
    }
    for (index, peer) in rule.peers.iter().enumerate() {
        if let Some(other) = holder(&rule.peers, index, |some, all| some.whom.is_within(&all.whom)) {
            let message = format!("{}[{other}] is for all of these already: remove one of them", rule.list);
            out.find(Code::Shadowed, item, peer.path.clone(), message);
        }
    }
    for (index, port) in rule.ports.iter().enumerate() {
        if let Some(other) = holder(&rule.ports, index, |some, all| some.is_within(all)) {
            let message = format!("ports[{other}] is for all of this already: remove one of them");
            out.find(Code::Shadowed, item, port.path.clone(), message);
        }
    }
}

/// Which other one holds all of the one at `index`; of two that are the same, the first holds the second.
fn holder<T>(all: &[T], index: usize, is_within: impl Fn(&T, &T) -> bool) -> Option<usize> {
    let one = &all[index];
    let holds = |(number, other): &(usize, &T)| {
        *number != index && is_within(one, other) && (*number < index || !is_within(other, one))
    };
    all.iter().enumerate().find(holds).map(|(number, _)| number)
}
