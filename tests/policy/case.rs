//! A case: objects, flows and what is expected of them, in the form of the conformance cases of other suites.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The names that were resolved, and to which addresses.
pub type Dns = BTreeMap<String, Vec<IpAddr>>;

#[derive(Clone, Serialize, Deserialize, Debug)]
pub struct Case {
    pub name: String,
    pub objects: Vec<Value>,
    pub flows: Vec<Flow>,
    /// `None` where nothing is known of names, which differs from knowing none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
}

/// The first packet of a connection. What is expected is empty in a case that is only to be asked.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub struct Flow {
    pub from: End,
    pub to: End,
    pub protocol: Protocol,
    pub port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Verdict>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Verdict>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Verdict>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress_by: Vec<By>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress_by: Vec<By>,
}

impl Flow {
    pub fn new(from: End, to: End, protocol: Protocol, port: u16) -> Self {
        Self {
            from,
            to,
            protocol,
            port,
            expect: None,
            egress: None,
            ingress: None,
            egress_by: Vec::new(),
            ingress_by: Vec::new(),
        }
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {} {} {}", self.from, self.to, self.protocol.as_str(), self.port)
    }
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// `namespace/name`: any of the pod's addresses.
    Pod(String),
    /// An end that is given by address has no policy of its own, whoever has the address.
    Ip(IpAddr),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => f.write_str(name),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Debug)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Allow,
    Deny,
    /// The API leaves it open, or what it depends on is not known.
    Unknown,
}

impl Verdict {
    /// Of a connection: egress at its source and ingress at its destination.
    pub fn both(egress: Self, ingress: Self) -> Self {
        match (egress, ingress) {
            (Self::Deny, _) | (_, Self::Deny) => Self::Deny,
            (Self::Allow, Self::Allow) => Self::Allow,
            _ => Self::Unknown,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    Allow,
    Deny,
    Pass,
    SelectsNoRuleMatches,
    SelectsPortsDoNotMatch,
    DefaultAllow,
    /// Policies do not apply. The suites call it `default-allow` too.
    Exempt,
}

/// A policy's part in an answer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Debug)]
pub struct By {
    pub policy: Option<String>,
    pub effect: Effect,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule_index: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule_name: Option<String>,
    /// The first element of `from` or `to` that matches, where the rule has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<usize>,
    /// The first element of `ports` or `protocols` that matches, where the rule has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<usize>,
}

impl By {
    pub fn nobody(effect: Effect) -> Self {
        Self { policy: None, effect, rule_index: None, rule_name: None, peer: None, port: None }
    }
}

/// What one direction's policies say of a flow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    pub verdict: Verdict,
    /// The causes, in order, of each way that the decision may go: more than one where something is left open. They all
    /// end in the verdict, unless that is unknown.
    pub ways: Vec<Vec<By>>,
}

impl Answer {
    /// The causes of all ways.
    pub fn by(&self) -> Vec<By> {
        let mut all: Vec<By> = Vec::new();
        for by in self.ways.iter().flatten() {
            if !all.contains(by) {
                all.push(by.clone());
            }
        }
        all
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Direction {
    Egress,
    Ingress,
}

impl Direction {
    pub const BOTH: [Self; 2] = [Self::Egress, Self::Ingress];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }

    /// The name of a rule's list of peers.
    pub fn peers(self) -> &'static str {
        match self {
            Self::Egress => "to",
            Self::Ingress => "from",
        }
    }
}
