//! Corrections as edits of a text, and what shows that they do what they claim.
//!
//! An edit touches only what it adds or removes. Whether the text still says what it said, but for the change, is not believed of the edit:
//! whoever applies it reads the text again, compares each object with what it is [to be](changed), and asks for the [proof](prove).

use std::{collections::BTreeSet, sync::Arc};

use super::Change;
use crate::{
    advise::text::{
        edit::{self, Edit, Tree},
        join,
        marks::Marks,
    },
    model::Direction,
    policy::{
        CompiledPolicy,
        declared::{self, NetworkPolicy, PortRef},
        symbolic::{Comparison, PortSet},
    },
};

/// How a change is written into the text, or why it cannot be.
///
/// # Errors
/// Where the place is shared by an anchor or a merge key, or is written in a way that leaves open where something new belongs.
pub fn edit(text: &str, marks: &Marks, prefix: &str, change: &Change) -> Result<Edit, String> {
    let node = |path: &str| edit::node(marks, &join(prefix, path));
    match change {
        Change::AddPort { direction, rule, port, protocol, number } => {
            let list = format!("spec.{direction}[{rule}].ports");
            let (list, item) = (node(&list)?, node(&format!("{list}[{port}]"))?);
            let new = Tree::Object(vec![
                ("protocol", Tree::Text(protocol.to_string())),
                ("port", Tree::Plain(number.to_string())),
            ]);
            edit::insert_items(text, list, item, &[new])
        }
        Change::RemoveExcept { direction, rule, peer, except } => {
            let list = format!("spec.{direction}[{rule}].{}[{peer}].ipBlock.except", direction.peers());
            let edits = edit::remove_items(text, node(&list)?, &BTreeSet::from([*except]))?;
            edits.into_iter().next().ok_or_else(|| "it is not there".to_owned())
        }
    }
}

/// What a policy is to be with these changes.
pub fn changed(policy: &NetworkPolicy, changes: &[&Change]) -> NetworkPolicy {
    let mut new = policy.clone();
    // What stands behind goes first, so that positions stay what they are.
    let mut order: Vec<&&Change> = changes.iter().collect();
    let position = |it: &Change| match it {
        Change::AddPort { direction, rule, port, .. } => (*direction, *rule, *port, 0),
        Change::RemoveExcept { direction, rule, peer, except } => (*direction, *rule, *peer, *except),
    };
    order.sort_by_key(|it| std::cmp::Reverse(position(it)));
    for change in order {
        let rules = |direction: &Direction, new: &mut NetworkPolicy| match direction {
            Direction::Egress => std::mem::take(&mut new.egress),
            Direction::Ingress => std::mem::take(&mut new.ingress),
        };
        let (Change::AddPort { direction, .. } | Change::RemoveExcept { direction, .. }) = change;
        let mut all = rules(direction, &mut new);
        match change {
            Change::AddPort { rule, port, protocol, number, .. } => {
                if let Some(rule) = all.get_mut(*rule).filter(|it| *port < it.ports.len()) {
                    let added = declared::Port {
                        protocol: Some(protocol.to_string()),
                        port: Some(PortRef::Number(i64::from(*number))),
                        ..Default::default()
                    };
                    rule.ports.insert(port + 1, added);
                }
            }
            Change::RemoveExcept { rule, peer, except, .. } => {
                let block = all.get_mut(*rule).and_then(|it| it.peers.get_mut(*peer));
                if let Some(block) = block.and_then(|it| it.ip_block.as_mut())
                    && *except < block.except.len()
                {
                    block.except.remove(*except);
                }
            }
        }
        match direction {
            Direction::Egress => new.egress = all,
            Direction::Ingress => new.ingress = all,
        }
    }
    new
}

/// Compares what two forms of a policy allow, over every pod and address that they can tell apart.
///
/// # Errors
/// Where that is not what the changes claim: nothing but the added ports, or nothing at all.
pub fn prove(before: &NetworkPolicy, after: &NetworkPolicy, changes: &[&Change]) -> Result<(), String> {
    let [old, new] = [before, after].map(|it| [Arc::new(CompiledPolicy::compile(it))]);
    let compared = Comparison::new(&old, &new, &[], false);
    // What was in doubt because of an invalid part is no longer: that must have been a possible meaning.
    if !compared.keeps_all() {
        return Err("it would deny what was allowed".to_owned());
    }
    let mut added = PortSet::default();
    for change in changes {
        if let Change::AddPort { protocol, number, .. } = change {
            added = added.union(&PortSet::range(Some(*protocol), *number, *number));
        }
    }
    match compared.may_allow_more(&added) {
        true => Err("it would allow more than it claims".to_owned()),
        false => Ok(()),
    }
}
