//! Whether policies are enforced on this node, and how soon.

use prometheus_client::registry::Unit;

use super::{
    AgentState,
    family::{Family, Labels, Value},
};
use crate::{
    audit::{Enforced, Histogram},
    model::Direction,
};

fn of(direction: Direction) -> Labels {
    vec![("direction", direction.to_string())]
}

pub(super) fn enforcement(state: &AgentState<'_>) -> [Family; 6] {
    let known = state.auditor.enforcement();
    let states = Direction::ALL.into_iter().flat_map(|direction| {
        Enforced::ALL.map(|each| {
            let mut labels = of(direction);
            labels.push(("state", each.as_str().to_owned()));
            (labels, f64::from(u8::from(known.state(direction).0 == each)))
        })
    });
    let since = Direction::ALL
        .into_iter()
        .filter_map(|direction| Some((of(direction), state.wall_seconds(known.state(direction).1?))));
    let fates = Direction::ALL.into_iter().flat_map(|direction| {
        let (stopped, passed, excused) = known.counts(direction);
        [("stopped", stopped), ("passed", passed), ("excused", excused)].map(|(fate, count)| {
            let mut labels = of(direction);
            labels.push(("fate", fate.to_owned()));
            (labels, count as f64)
        })
    });
    let ranges = |each: fn(&crate::audit::Enforcement, Direction) -> &Histogram| {
        Direction::ALL.map(|direction| (of(direction), Value::Ranges(each(known, direction).clone())))
    };
    let mut cni = state.auditor.cnis().into_iter().collect::<Vec<_>>().join(",");
    if cni.is_empty() {
        cni.push_str("unknown");
    }
    [
        Family::gauge(
            "netaudit_enforcement_info",
            "Whose network this node has, by the pods that run on it; several are separated by commas; always 1",
        )
        .with(vec![("cni", cni)], 1.0),
        Family::gauge(
            "netaudit_enforcement",
            "1 for what denied flows have shown of the enforcement of policies on this node, by direction, else 0: untested, enforced, partly or not-enforced",
        )
        .with_all(states),
        Family::gauge("netaudit_enforcement_since_timestamp", "Since when this is what they show")
            .unit(Unit::Seconds)
            .with_all(since),
        Family::counter(
            "netaudit_enforcement_evidence",
            "Denied flows whose end tells of enforcement: stopped, passed, or passed while the pod, the policy, a label or the owner of an address was new (excused)",
        )
        .with_all(fates),
        Family::histogram(
            "netaudit_pod_start_exposure",
            "How long after their start pods stayed open: the last denied flow that passed before the first that was stopped",
        )
        .unit(Unit::Seconds)
        .with_values(ranges(|known, direction| known.start_exposures(direction))),
        Family::histogram(
            "netaudit_policy_change_exposure",
            "How long a change of policy, or of a pod's labels, took to bite: the last denied flow that passed after it before the first that was stopped",
        )
        .unit(Unit::Seconds)
        .with_values(ranges(|known, direction| known.change_exposures(direction))),
    ]
}
