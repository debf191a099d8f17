//! A flow as one JSON object: the flow log's line. Its fields are an API, described in the README.

use std::{borrow::Cow, net::IpAddr, sync::Arc};

use serde::Serialize;

use crate::{
    audit::{ActorKind, Finding, Flow, Open, PeerKind, SeenName, Subject, UnenforcedCause},
    cluster::{Cluster, Pod},
    model::{
        Cause, Decision, Denial, Direction, DropReason, Errno, Outcome, Protocol, Reach, RuleMatch,
        Timestamp, Translation, Verdict,
    },
};

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_time: Option<String>,
    flow_id: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    maybe_repeated: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    folded: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    open_before_start: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    open_since: Option<String>,
    direction: Direction,
    subject: End<'a>,
    actor: Actor<'a>,
    peer: PeerEnd<'a>,
    protocol: Protocol,
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    requested: Option<Address>,
    #[serde(skip_serializing_if = "Option::is_none")]
    translation: Option<Translation>,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<Cow<'static, str>>,
    reach: Reach,
    #[serde(skip_serializing_if = "Option::is_none")]
    drop_reason: Option<DropReason>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    closed_port: bool,
    waited_seconds: f64,
    #[serde(flatten)]
    verdict: Said<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_verdict: Option<Said<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finding: Option<Finding>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finding_cause: Option<UnenforcedCause>,
}

#[derive(Serialize, Default)]
struct End<'a> {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload_kind: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
}

#[derive(Serialize)]
struct PeerEnd<'a> {
    #[serde(flatten)]
    end: End<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    ip: IpAddr,
    port: u16,
    names: Vec<Name<'a>>,
}

#[derive(Serialize)]
struct Name<'a> {
    name: &'a str,
    state: &'static str,
    asked: bool,
    counts: bool,
    answered: String,
    server: IpAddr,
}

#[derive(Serialize)]
struct Actor<'a> {
    kind: ActorKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_uid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<&'a str>,
    pid: u32,
    comm: String,
}

#[derive(Serialize)]
struct Address {
    ip: IpAddr,
    port: u16,
}

#[derive(Serialize)]
struct Said<'a> {
    verdict: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rules: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rule_paths: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    denied_by: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    passed_by: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    caveats: &'a [Arc<str>],
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
}

/// Appends `flow` to `line` as one JSON object, without a line break. The agent's own time line never steps;
/// `correction` nanoseconds make today's wall time of it.
pub fn flow_line(flow: &Flow, cluster: &Cluster, node: &str, correction: i64, line: &mut Vec<u8>) {
    let seen = &flow.observation;
    let subject = match &flow.subject {
        Subject::Pod(id) => cluster.pod(*id).map_or(End { kind: "unknown", ..End::default() }, pod_end),
        Subject::Node => End { kind: "node", node: Some(node), ..End::default() },
        Subject::Unknown { uid } => {
            End { kind: "unknown", uid: uid.as_deref(), node: Some(node), ..End::default() }
        }
    };
    let peer = match &flow.peer.kind {
        PeerKind::Pod(id) => cluster.pod(*id).map_or(End { kind: "unknown", ..End::default() }, pod_end),
        PeerKind::Node(name) => End { kind: "node", node: name.as_deref(), ..End::default() },
        PeerKind::Service => End { kind: "service", ..End::default() },
        PeerKind::Loopback => End { kind: "loopback", ..End::default() },
        PeerKind::External => End { kind: "external", ..End::default() },
        PeerKind::Unknown => End { kind: "unknown", ..End::default() },
    };
    // The subject's own names stand there already.
    let visitor = flow.actor_pod.as_deref().filter(|_| flow.actor_kind == ActorKind::Pod);
    let visitor = visitor.and_then(|uid| cluster.pod(cluster.pod_by_uid(uid)?));
    let peer_port = match seen.direction {
        Direction::Egress => flow.port,
        Direction::Ingress => seen.remote.port(),
    };
    let time = |time: Timestamp| Timestamp(time.0.saturating_add(correction)).to_string();
    let object = Line {
        time: time(seen.first()),
        last_time: seen.folded.map(|_| time(seen.at)),
        flow_id: flow.id.to_string(),
        maybe_repeated: seen.maybe_repeated,
        folded: seen.folded.is_some(),
        count: seen.folded.map(|folded| folded.count.get()),
        open_before_start: flow.open == Some(Open::BeforeStart),
        open_since: match flow.open {
            Some(Open::Since(began)) => Some(time(began)),
            Some(Open::BeforeStart) | None => None,
        },
        direction: seen.direction,
        subject,
        actor: Actor {
            kind: flow.actor_kind,
            namespace: visitor.map(|pod| &*pod.namespace),
            pod: visitor.map(|pod| &*pod.name),
            workload: visitor.map(|pod| &*pod.workload.name),
            pod_uid: flow.actor_pod.as_deref(),
            container: flow.actor_container.as_deref(),
            pid: seen.actor.pid,
            comm: seen.actor.comm.to_string(),
        },
        peer: PeerEnd {
            end: peer,
            service: flow.peer.service.as_ref().map(|(namespace, name)| format!("{namespace}/{name}")),
            ip: flow.peer.ip,
            port: peer_port,
            names: flow.names.iter().map(|seen| named(seen, time)).collect(),
        },
        protocol: seen.protocol,
        port: flow.port,
        translation: flow.translation,
        requested: flow.requested.map(|address| Address { ip: address.ip(), port: address.port() }),
        outcome: seen.outcome,
        errno: seen.errno.map(Errno::name),
        reach: flow.reach,
        drop_reason: flow.stopped_by,
        closed_port: flow.closed_port,
        waited_seconds: seen.waited.as_secs_f64(),
        verdict: said(&flow.verdict),
        peer_verdict: flow.other_end.as_deref().map(said),
        finding: flow.finding,
        finding_cause: flow.cause,
    };
    // Only a map with keys that are no strings or a failing writer can fail, and there is neither.
    let _ = serde_json::to_writer(line, &object);
}

fn named(seen: &SeenName, time: impl Fn(Timestamp) -> String) -> Name<'_> {
    Name {
        name: &seen.name,
        state: if seen.is_fresh { "fresh" } else { "stale" },
        asked: seen.is_asked,
        counts: seen.counts,
        answered: time(seen.answered),
        server: seen.server,
    }
}

fn pod_end(pod: &Pod) -> End<'_> {
    End {
        kind: "pod",
        namespace: Some(&pod.namespace),
        pod: Some(&pod.name),
        uid: Some(&pod.uid),
        workload: Some(&pod.workload.name),
        workload_kind: Some(&pod.workload.kind),
        node: pod.node.as_deref(),
    }
}

/// `batchivo/backend-policy egress[2].to[0]`; of a cluster-wide policy its name alone.
fn rule_path(matched: &RuleMatch) -> String {
    let policy = &matched.rule.policy;
    let slash = if policy.namespace.is_empty() { "" } else { "/" };
    format!("{}{slash}{} {}", policy.namespace, policy.name, matched.path())
}

fn said(verdict: &Verdict) -> Said<'_> {
    let mut said = Said {
        verdict: verdict.as_str(),
        rules: vec![],
        rule_paths: vec![],
        denied_by: vec![],
        passed_by: vec![],
        reason: None,
        caveats: &[],
        generation: None,
    };
    let mut name = |rules: &[RuleMatch]| {
        said.rules = rules.iter().map(|matched| matched.rule.to_string()).collect();
        said.rule_paths = rules.iter().map(rule_path).collect();
    };
    match &verdict.decision {
        Decision::Allowed(Cause::Rules(rules)) => name(rules),
        Decision::Denied(Denial::Rule(rule)) => name(std::slice::from_ref(rule)),
        _ => {}
    }
    match &verdict.decision {
        Decision::Allowed(Cause::Rules(_)) => {}
        Decision::Allowed(Cause::NotIsolated) => said.reason = Some("not isolated".into()),
        Decision::Allowed(Cause::Exempt(why)) => said.reason = Some(why.as_str().into()),
        Decision::Denied(denial) => said.denied_by = denial.policies().map(ToString::to_string).collect(),
        Decision::Unknown(gap) => said.reason = Some(gap.to_string().into()),
    }
    said.passed_by = verdict.passed.iter().map(rule_path).collect();
    said.caveats = &verdict.caveats;
    said.generation = (verdict.generation != 0).then_some(verdict.generation);
    said
}
