//! The driver's own account of what it did: for each attempt the flows that an auditor must have seen, and what the
//! policies say of them by the document's tables. Nothing here asks netaudit.

use std::{
    net::{IpAddr, SocketAddr},
    time::SystemTime,
};

use serde::Serialize;

use crate::lab::{NODE_NAME, Pod};

/// One end of a flow.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Party {
    /// `namespace/name`.
    Pod(String),
    /// The node, by name.
    Node(String),
    /// An address outside the cluster.
    External(IpAddr),
}

impl Party {
    /// The lab's node.
    pub fn node() -> Self {
        Self::Node(NODE_NAME.to_owned())
    }
}

impl From<&Pod> for Party {
    fn from(pod: &Pod) -> Self {
        Self::Pod(format!("{}/{}", pod.spec.namespace, pod.spec.name))
    }
}

impl std::fmt::Display for Party {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod(name) => f.pad(name),
            Self::Node(name) => f.pad(&format!("node/{name}")),
            Self::External(ip) => f.pad(&ip.to_string()),
        }
    }
}

/// What the policies of one end say.
#[derive(Clone, Debug)]
pub enum Says {
    /// Allowed by these rules: `batchivo/backend-policy egress[0].to[0].ports[0]`.
    Rules(Vec<String>),
    /// Allowed for a reason that is no rule.
    Because(&'static str),
    /// Denied by the isolation of these policies.
    Denied(Vec<String>),
}

/// How many records belong to an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Count {
    /// Exactly so many.
    Exactly(usize),
    /// Datagrams at a server's socket: the kernel side reports a peer once and not for every request, so that at most so
    /// many belong here, and over all entries of the same ends at least one does.
    Folded(usize),
    /// Up to so many: what the driver does while it cannot know whether the agent looks yet.
    UpTo(usize),
}

/// One flow as one end must have seen it.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// What the driver did.
    pub attempt: String,
    /// Between these times, in nanoseconds since the epoch.
    pub from: u128,
    /// See `from`.
    pub until: u128,
    /// `egress` or `ingress`.
    pub direction: &'static str,
    /// Whose socket it is.
    pub subject: Party,
    /// The other end.
    pub peer: Party,
    /// `TCP` or `UDP`.
    pub protocol: &'static str,
    /// The destination's port, after translation.
    pub port: u16,
    /// Whether the flow log's peer address must be one of IPv6.
    pub v6: bool,
    /// The Service address that the program asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested: Option<SocketAddr>,
    /// The names that the subject's look-ups gave the peer's address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// The flow log's word.
    pub outcome: &'static str,
    /// `allowed` or `denied`.
    pub verdict: &'static str,
    /// The rules that allow it.
    pub rule_paths: Vec<String>,
    /// The policies that deny it.
    pub denied_by: Vec<String>,
    /// Why it is allowed without a rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The finding, where it deserves one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finding: Option<&'static str>,
    /// How often.
    pub count: Count,
}

/// A flow before it is driven: both ends' view of it.
#[derive(Clone, Debug)]
pub struct Expected {
    source: Party,
    destination: Party,
    protocol: &'static str,
    port: u16,
    v6: bool,
    requested: Option<SocketAddr>,
    names: Vec<String>,
    /// The source's outcome; the destination's follows from it.
    outcome: &'static str,
    egress: Option<Says>,
    ingress: Option<Says>,
    times: usize,
}

impl Expected {
    /// A TCP connection that is established.
    pub fn tcp(source: impl Into<Party>, destination: impl Into<Party>, port: u16) -> Self {
        Self {
            source: source.into(),
            destination: destination.into(),
            protocol: "TCP",
            port,
            v6: false,
            requested: None,
            names: Vec::new(),
            outcome: "established",
            egress: None,
            ingress: None,
            times: 1,
        }
    }

    /// Datagrams that are sent and not answered; `outcome("answered")` makes them a question.
    pub fn udp(source: impl Into<Party>, destination: impl Into<Party>, port: u16) -> Self {
        Self { protocol: "UDP", outcome: "sent", ..Self::tcp(source, destination, port) }
    }

    /// Another outcome at the source.
    #[must_use]
    pub fn outcome(mut self, outcome: &'static str) -> Self {
        self.outcome = outcome;
        self
    }

    /// It runs over IPv6.
    #[must_use]
    pub fn v6(mut self) -> Self {
        self.v6 = true;
        self
    }

    /// The program asked for this Service address.
    #[must_use]
    pub fn requested(mut self, ip: impl Into<IpAddr>, port: u16) -> Self {
        self.requested = Some(SocketAddr::new(ip.into(), port));
        self
    }

    /// The source has looked up these names, and got the destination's address.
    #[must_use]
    pub fn names(mut self, names: &[&str]) -> Self {
        self.names = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// What the source's egress policies say; without it the source is not watched.
    #[must_use]
    pub fn egress(mut self, says: Says) -> Self {
        self.egress = Some(says);
        self
    }

    /// What the destination's ingress policies say; without it the destination sees nothing, or is not watched. Of an
    /// attempt that is rejected its node sees the drop, and of one that is refused that nobody listened.
    #[must_use]
    pub fn ingress(mut self, says: Says) -> Self {
        self.ingress = Some(says);
        self
    }

    /// So many such flows.
    #[must_use]
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// The entries of an attempt that ran between two times.
    pub fn entries(&self, attempt: &str, from: SystemTime, until: SystemTime) -> Vec<Entry> {
        let entry = |direction, subject: &Party, peer: &Party, outcome, says: &Says, count| {
            let mut entry = Entry {
                attempt: attempt.to_owned(),
                from: nanoseconds(from),
                until: nanoseconds(until),
                direction,
                subject: subject.clone(),
                peer: peer.clone(),
                protocol: self.protocol,
                port: self.port,
                v6: self.v6,
                requested: self.requested.filter(|_| direction == "egress"),
                names: if direction == "egress" { self.names.clone() } else { Vec::new() },
                outcome,
                verdict: "allowed",
                rule_paths: Vec::new(),
                denied_by: Vec::new(),
                reason: None,
                finding: None,
                count,
            };
            match says {
                Says::Rules(rules) => entry.rule_paths.clone_from(rules),
                Says::Because(reason) => entry.reason = Some(reason),
                Says::Denied(policies) => {
                    entry.verdict = "denied";
                    entry.denied_by.clone_from(policies);
                    entry.finding = Some(finding_of_denied(outcome));
                }
            }
            entry
        };
        let mut entries = Vec::new();
        if let Some(says) = &self.egress {
            let count = Count::Exactly(self.times);
            entries.push(entry("egress", &self.source, &self.destination, self.outcome, says, count));
        }
        if let Some(says) = &self.ingress {
            let (outcome, count) = match self.protocol {
                // The filter that answered is the destination's node's.
                "TCP" if self.outcome == "rejected" => ("dropped", Count::Exactly(self.times)),
                "TCP" if self.outcome == "refused" => ("refused", Count::Exactly(self.times)),
                "TCP" => ("accepted", Count::Exactly(self.times)),
                _ => ("received", Count::Folded(self.times)),
            };
            entries.push(entry("ingress", &self.destination, &self.source, outcome, says, count));
        }
        entries
    }
}

/// The design's table, row `denied`, for the outcomes that the demo can have.
fn finding_of_denied(outcome: &str) -> &'static str {
    match outcome {
        "established" | "accepted" | "answered" | "received" => "unenforced",
        "refused" => "denied-refused",
        "rejected" | "timeout" | "unreachable" | "pending" | "dropped" => "blocked",
        _ => "attempted",
    }
}

/// Nanoseconds since the epoch.
pub fn nanoseconds(time: SystemTime) -> u128 {
    time.duration_since(SystemTime::UNIX_EPOCH).expect("the clock is past 1970").as_nanos()
}
