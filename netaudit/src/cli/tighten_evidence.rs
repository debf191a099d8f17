//! Whether what agents and stores tell is about the policies that are to get smaller, and about the time that counts.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    advise::tighten::is_same_selector,
    cluster::{Kind, Object, ObjectKey},
    model::Timestamp,
    policy::declared::NetworkPolicy,
    replay::Histories,
    store::flows::segment::Mark,
};

/// By how much stores may begin later and end earlier than usage: both are written from time to time.
const SLACK: Duration = Duration::from_secs(600);

/// Why what agents tell of a policy's rules is about other pods: a rule's use does not tell whom its policy selected.
pub(super) fn selected_otherwise(
    recorded: &Histories,
    policy: &NetworkPolicy,
    begin: Timestamp,
) -> Option<String> {
    let key = ObjectKey::new(Kind::NetworkPolicy, &policy.namespace, &policy.name);
    for history in recorded.all() {
        let versions = history.versions(&key);
        let ends = versions.iter().skip(1).map(|(at, _)| Some(*at)).chain([None]);
        for ((_, object), end) in versions.iter().zip(ends) {
            let is_other = |object: &&std::sync::Arc<Object>| matches!(&***object, Object::NetworkPolicy(was) if !is_same_selector(&was.pod_selector, &policy.pod_selector));
            if object.as_ref().is_none_or(|it| !is_other(it)) {
                continue;
            }
            match end {
                None => return Some("in the cluster it selects other pods than in this file".to_owned()),
                Some(end) if end > begin => {
                    let end = end.to_the_second();
                    return Some(format!(
                        "insufficient evidence: until {end} it selected other pods, and what is known is in part about those"
                    ));
                }
                Some(_) => {}
            }
        }
    }
    None
}

/// What of the time that counts the stores do not tell, though agents tell of it, in sentences.
pub(super) fn span(
    marks: &[Mark],
    nodes: &BTreeSet<String>,
    begin: Timestamp,
    told: Timestamp,
) -> Vec<String> {
    let of = |node: &String| {
        let marks: Vec<&Mark> = marks.iter().filter(|mark| mark.node == *node).collect();
        let Some(from) = marks.iter().map(|mark| mark.from).min() else {
            return Some(format!("no store has flows of node {node}"));
        };
        let until = marks.iter().map(|mark| mark.until).max().unwrap_or(from);
        if from > begin.plus(SLACK) {
            return Some(format!("the recorded flows of node {node} begin only at {}", from.to_the_second()));
        }
        let ends = until.plus(SLACK) < told;
        ends.then(|| format!("the recorded flows of node {node} end already at {}", until.to_the_second()))
    };
    nodes.iter().filter_map(of).collect()
}
