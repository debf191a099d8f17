//! A flow in words: what the flow log's line and the store's row have in common. The fields are an API, described in docs/flow-log.md.

use std::{borrow::Cow, fmt, net::IpAddr, sync::Arc};

use serde::{Serialize, Serializer};

use super::{ActorKind, Flow, Open, PeerKind, Privacy, SeenName, Subject, UnenforcedCause};
use crate::{
    cluster::{Cluster, Endpoint, Pod},
    model::{
        Cause, Comm, Decision, Denial, Direction, Errno, Protocol, Reach, RuleMatch, Timestamp, Translation,
        Verdict,
    },
};

/// A flow in words. Serialized, it is the flow log's line.
#[derive(Serialize, Debug)]
pub struct Line<'a> {
    /// When it began; of a folded one the first. Wall time.
    #[serde(serialize_with = "in_words")]
    pub time: Timestamp,
    /// Of a folded one the last.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "maybe_in_words")]
    pub last_time: Option<Timestamp>,
    /// Its identity.
    #[serde(serialize_with = "identity")]
    pub flow_id: (&'a str, u64),
    /// Whether an earlier run may have told of it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub maybe_repeated: bool,
    /// Whether it stands for several.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub folded: bool,
    /// For how many, where it is folded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Whether it was open before the agent began.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub open_before_start: bool,
    /// Since when it is open, where it was told before.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "maybe_in_words")]
    pub open_since: Option<Timestamp>,
    /// Which end the subject is.
    pub direction: &'a str,
    /// Whose namespace it was in.
    pub subject: SubjectEnd<'a>,
    /// The process.
    pub actor: Actor<'a>,
    /// The other end.
    pub peer: PeerEnd<'a>,
    /// TCP, UDP.
    pub protocol: &'a str,
    /// The port that was judged.
    pub port: u16,
    /// What the program asked for, where it was another address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested: Option<Address<'a>>,
    /// How it is known where it went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub translation: Option<&'a str>,
    /// What the socket saw.
    pub outcome: &'a str,
    /// The error of an ICMP message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<Cow<'a, str>>,
    /// What the outcome proves.
    pub reach: &'a str,
    /// Why this node's filter stopped it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_reason: Option<&'a str>,
    /// Whether it is certain that nobody listened.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub closed_port: bool,
    /// From the attempt to its outcome.
    pub waited_seconds: f64,
    /// What the subject's policies say.
    #[serde(flatten)]
    pub verdict: Said<'a>,
    /// What the other end's policies say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_verdict: Option<Said<'a>>,
    /// What deserves attention.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finding: Option<&'a str>,
    /// Why it passed though it is denied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finding_cause: Option<&'a str>,
}

/// One end.
#[derive(Serialize, Default, Clone, PartialEq, Eq, Debug)]
pub struct End<'a> {
    /// pod, node, service, external, loopback, unknown.
    pub kind: &'a str,
    /// Of a pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<&'a str>,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<&'a str>,
    /// Of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<&'a str>,
    /// Its top controller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<&'a str>,
    /// The controller's kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_kind: Option<&'a str>,
    /// The node that it is, or that the pod runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<&'a str>,
}

impl Line<'_> {
    /// Whether its subject is of one of these namespaces.
    pub fn is_of(&self, namespaces: &[String]) -> bool {
        self.subject.end.namespace.is_some_and(|namespace| namespaces.iter().any(|it| it == namespace))
    }
}

/// The end whose namespace it was in.
#[derive(Serialize, Debug)]
pub struct SubjectEnd<'a> {
    /// Who it is.
    #[serde(flatten)]
    pub end: End<'a>,
    /// Its address in this flow; `None` where the kernel had not chosen one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
}

/// The other end.
#[derive(Serialize, Debug)]
pub struct PeerEnd<'a> {
    /// Who it is.
    #[serde(flatten)]
    pub end: End<'a>,
    /// The Service that was asked for: `namespace/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<Cow<'a, str>>,
    /// The address that was judged.
    pub ip: ToldAddress<'a>,
    /// Whether that is a hash of it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ip_hashed: bool,
    /// Its port.
    pub port: u16,
    /// What DNS called the address.
    pub names: Vec<Name<'a>>,
}

/// A name that DNS gave for an address.
#[derive(Serialize, Debug)]
pub struct Name<'a> {
    /// In lower case, without the dot at the end.
    pub name: &'a str,
    /// fresh or stale.
    pub state: &'a str,
    /// Whether it was asked for itself.
    pub asked: bool,
    /// Whether policies go by it.
    pub counts: bool,
    /// When it was told.
    #[serde(serialize_with = "in_words")]
    pub answered: Timestamp,
    /// Who told it.
    pub server: IpAddr,
}

/// The process that acted.
#[derive(Serialize, Debug)]
pub struct Actor<'a> {
    /// subject, pod, host, unknown.
    pub kind: &'a str,
    /// Of another pod than the subject.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<&'a str>,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<&'a str>,
    /// Its top controller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<&'a str>,
    /// Of the pod that it is from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<&'a str>,
    /// The container's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<&'a str>,
    /// In the host's pid namespace; 0 where nobody could tell.
    pub pid: u32,
    /// The command's name, 15 bytes at most.
    pub comm: Cow<'a, str>,
}

/// An address as it is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ToldAddress<'a> {
    /// As it is.
    Plain(IpAddr),
    /// Its hash, see [`super::AddressKey`].
    Hashed(Cow<'a, str>),
}

impl ToldAddress<'_> {
    /// Whether it is a hash.
    pub fn is_hashed(&self) -> bool {
        matches!(self, Self::Hashed(_))
    }
}

impl fmt::Display for ToldAddress<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(ip) => ip.fmt(f),
            Self::Hashed(hash) => f.pad(hash),
        }
    }
}

impl Serialize for ToldAddress<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// An address and a port.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub struct Address<'a> {
    /// The address.
    pub ip: ToldAddress<'a>,
    /// Whether that is a hash of it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ip_hashed: bool,
    /// The port.
    pub port: u16,
}

/// A verdict in words.
#[derive(Serialize, Default, Clone, PartialEq, Eq, Debug)]
pub struct Said<'a> {
    /// allowed, denied, unknown.
    pub verdict: &'a str,
    /// The rules that allowed it, or the one that denied it, by identity.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Cow<'a, str>>,
    /// The same by their place of that time.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rule_paths: Vec<Cow<'a, str>>,
    /// The policies that isolate, or whose rule denies.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub denied_by: Vec<Cow<'a, str>>,
    /// The rules that passed it on, by identity.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub passed_rules: Vec<Cow<'a, str>>,
    /// The same by their place of that time.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub passed_by: Vec<Cow<'a, str>>,
    /// Why it is allowed by no rule, or unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'a, str>>,
    /// Policies of other kinds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub caveats: Vec<Cow<'a, str>>,
    /// Of the policies that were asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// Serializes a time as it is told.
pub(crate) fn in_words<S: Serializer>(time: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(time)
}

/// As [`in_words`], where there may be none.
pub(crate) fn maybe_in_words<S: Serializer>(time: &Option<Timestamp>, to: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => to.collect_str(time),
        None => to.serialize_none(),
    }
}

fn identity<S: Serializer>((run, sequence): &(&str, u64), to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&format_args!("{run}-{sequence}"))
}

/// A flow with what it takes to put it into words.
#[derive(Clone, Copy, Debug)]
pub struct Telling<'a> {
    /// The flow.
    pub flow: &'a Flow,
    /// Who its ends are.
    pub cluster: &'a Cluster,
    /// The node of the agent.
    pub node: &'a str,
    /// Nanoseconds that make today's wall time of the agent's own line, which never steps.
    pub correction: i64,
    /// What is not told.
    pub privacy: &'a Privacy,
}

impl<'a> Telling<'a> {
    /// A time on the wall clock.
    pub fn wall(&self, time: Timestamp) -> Timestamp {
        Timestamp(time.0.saturating_add(self.correction))
    }

    /// Whose namespace it was in.
    pub fn subject(&self) -> End<'a> {
        match &self.flow.subject {
            Subject::Pod(id) => self.pod_or_unknown(self.cluster.pod(*id)),
            Subject::Node => End { kind: "node", node: Some(self.node), ..End::default() },
            Subject::Unknown { uid } => {
                End { kind: "unknown", uid: uid.as_deref(), node: Some(self.node), ..End::default() }
            }
        }
    }

    /// The subject's own address; `None` where the kernel had not chosen one.
    pub fn subject_ip(&self) -> Option<IpAddr> {
        Some(self.flow.observation.local.ip().to_canonical()).filter(|ip| !ip.is_unspecified())
    }

    /// Who the other end is.
    pub fn peer(&self) -> End<'a> {
        match &self.flow.peer.kind {
            PeerKind::Pod(id) => self.pod_or_unknown(self.cluster.pod(*id)),
            PeerKind::Node(name) => End { kind: "node", node: name.as_deref(), ..End::default() },
            PeerKind::Service => End { kind: "service", ..End::default() },
            PeerKind::Loopback => End { kind: "loopback", ..End::default() },
            PeerKind::External => End { kind: "external", ..End::default() },
            PeerKind::Unknown => End { kind: "unknown", ..End::default() },
        }
    }

    fn pod_or_unknown(&self, pod: Option<&'a Pod>) -> End<'a> {
        pod.map_or(End { kind: "unknown", ..End::default() }, pod_end)
    }

    /// The pod that the actor is from, where that is another one: the subject's own names stand there already.
    pub fn visitor(&self) -> Option<&'a Pod> {
        let uid = self.flow.actor_pod.as_deref().filter(|_| self.flow.actor_kind == ActorKind::Pod)?;
        self.cluster.pod(self.cluster.pod_by_uid(uid)?)
    }

    /// The port at the other end.
    pub fn peer_port(&self) -> u16 {
        match self.flow.observation.direction {
            Direction::Egress => self.flow.port,
            Direction::Ingress => self.flow.observation.remote.port(),
        }
    }

    /// Whether the other end's address is told as a hash: it is of nobody that is known in the cluster.
    pub fn hashes_peer(&self) -> bool {
        self.privacy.key.is_some()
            && match self.flow.peer.kind {
                PeerKind::External => true,
                PeerKind::Pod(_) | PeerKind::Node(_) | PeerKind::Service => false,
                // A proxy that takes connections as they were addressed, and what was not resolved.
                PeerKind::Loopback | PeerKind::Unknown => self.is_outside(self.flow.peer.ip, self.flow.port),
            }
    }

    /// The same of the address that was asked for.
    pub fn hashes_requested(&self) -> bool {
        self.privacy.key.is_some()
            && self.flow.requested.is_some_and(|asked| self.is_outside(asked.ip(), asked.port()))
    }

    fn is_outside(&self, ip: IpAddr, port: u16) -> bool {
        let Flow { observation: seen, peer, .. } = self.flow;
        let ip = ip.to_canonical();
        let is_cluster_peer =
            ip == peer.ip && matches!(peer.kind, PeerKind::Pod(_) | PeerKind::Node(_) | PeerKind::Service);
        !ip.is_loopback()
            && !ip.is_unspecified()
            && !is_cluster_peer
            && self.cluster.resolve(ip, port, seen.protocol, seen.at) == Endpoint::External
    }

    /// An address, or its hash where `hashes` says so.
    pub fn address(&self, ip: IpAddr, hashes: bool) -> ToldAddress<'a> {
        match self.privacy.key.as_ref().filter(|_| hashes) {
            Some(key) => ToldAddress::Hashed(key.hash(ip).into()),
            None => ToldAddress::Plain(ip),
        }
    }

    /// The process: its id and the name of its command; 0 and none where processes are not told.
    pub fn process(&self) -> (u32, Comm) {
        let actor = &self.flow.observation.actor;
        if self.privacy.omits_processes { (0, Comm::default()) } else { (actor.pid, actor.comm) }
    }

    /// Names of the other end; none where names are not told, or would tell the address that is not.
    pub fn names(&self) -> &'a [SeenName] {
        if self.privacy.omits_names || self.hashes_peer() { &[] } else { &self.flow.names }
    }

    /// Since when it is open, where it was told before.
    pub fn open_since(&self) -> Option<Timestamp> {
        match self.flow.open {
            Some(Open::Since(began)) => Some(self.wall(began)),
            Some(Open::BeforeStart) | None => None,
        }
    }

    /// A name of the other end.
    pub fn name(&self, seen: &'a SeenName) -> Name<'a> {
        Name {
            name: &seen.name,
            state: if seen.is_fresh { "fresh" } else { "stale" },
            asked: seen.is_asked,
            counts: seen.counts,
            answered: self.wall(seen.answered),
            server: seen.server,
        }
    }

    /// All of it.
    pub fn line(&self) -> Line<'a> {
        let (flow, seen) = (self.flow, &self.flow.observation);
        let visitor = self.visitor();
        let (pid, comm) = self.process();
        let (hashes_peer, hashes_requested) = (self.hashes_peer(), self.hashes_requested());
        Line {
            time: self.wall(seen.first()),
            last_time: seen.folded.map(|_| self.wall(seen.at)),
            flow_id: (&flow.id.run, flow.id.sequence),
            maybe_repeated: seen.maybe_repeated,
            folded: seen.folded.is_some(),
            count: seen.folded.map(|folded| folded.count.get()),
            open_before_start: flow.open == Some(Open::BeforeStart),
            open_since: self.open_since(),
            direction: seen.direction.as_str(),
            subject: SubjectEnd { end: self.subject(), ip: self.subject_ip() },
            actor: Actor {
                kind: flow.actor_kind.as_str(),
                namespace: visitor.map(|pod| &*pod.namespace),
                pod: visitor.map(|pod| &*pod.name),
                workload: visitor.map(|pod| &*pod.workload.name),
                pod_uid: flow.actor_pod.as_deref(),
                container: flow.actor_container.as_deref(),
                pid,
                comm: comm.to_string().into(),
            },
            peer: PeerEnd {
                end: self.peer(),
                service: flow.peer.service.as_ref().map(service_name).map(Cow::Owned),
                ip: self.address(flow.peer.ip, hashes_peer),
                ip_hashed: hashes_peer,
                port: self.peer_port(),
                names: self.names().iter().map(|seen| self.name(seen)).collect(),
            },
            protocol: Protocol::as_str(seen.protocol),
            port: flow.port,
            translation: flow.translation.map(Translation::as_str),
            requested: flow.requested.map(|asked| Address {
                ip: self.address(asked.ip(), hashes_requested),
                ip_hashed: hashes_requested,
                port: asked.port(),
            }),
            outcome: seen.outcome.as_str(),
            errno: seen.errno.map(Errno::name),
            reach: Reach::as_str(flow.reach),
            drop_reason: flow.stopped_by.map(|reason| reason.0),
            closed_port: flow.closed_port,
            waited_seconds: seen.waited.as_secs_f64(),
            verdict: said(&flow.verdict),
            peer_verdict: flow.other_end.as_deref().map(said),
            finding: flow.finding.map(|finding| finding.as_str()),
            finding_cause: flow.cause.map(UnenforcedCause::as_str),
        }
    }
}

/// `namespace/name`.
pub fn service_name((namespace, name): &(Arc<str>, Arc<str>)) -> String {
    format!("{namespace}/{name}")
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

/// A verdict in words.
pub fn said(verdict: &Verdict) -> Said<'_> {
    let mut said = Said { verdict: verdict.as_str(), ..Said::default() };
    let mut name = |rules: &[RuleMatch]| {
        said.rules = rules.iter().map(|matched| matched.rule.to_string().into()).collect();
        said.rule_paths = rules.iter().map(|matched| rule_path(matched).into()).collect();
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
        Decision::Denied(denial) => {
            said.denied_by = denial.policies().map(|policy| policy.to_string().into()).collect();
        }
        Decision::Unknown(gap) => said.reason = Some(gap.to_string().into()),
    }
    said.passed_rules = verdict.passed.iter().map(|matched| matched.rule.to_string().into()).collect();
    said.passed_by = verdict.passed.iter().map(|matched| rule_path(matched).into()).collect();
    said.caveats = verdict.caveats.iter().map(|caveat| (**caveat).into()).collect();
    said.generation = (verdict.generation != 0).then_some(verdict.generation);
    said
}
