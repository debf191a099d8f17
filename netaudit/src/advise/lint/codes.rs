//! The faults that are looked for: one table, from which `--list`, `--explain`, SARIF's rules and the documentation are made.

use std::{fmt, str::FromStr};

use super::explanations as why;

/// How much a finding matters; the names are SARIF's levels.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It does what the API says, but perhaps not what was meant.
    Note,
    /// It is a fault for those who want what the rest of the manifests says.
    Warning,
    /// The API server refuses or drops it.
    Error,
}

impl Severity {
    /// `note`, `warning` or `error`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// A kind of fault. Its number is stable: none is ever given to another fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
#[allow(missing_docs, reason = "the table says what each is")]
pub enum Code {
    NamespaceLabel = 1,
    SelectsNothing,
    PeerMatchesNothing,
    DnsEgressMissing,
    DnsTcpMissing,
    DnsUdpMissing,
    NodeLocalDns,
    ExceptOutsideCidr,
    PrivateServiceExcluded,
    ServicePort,
    NamedPortUnknown,
    ProbesDenied,
    TypesDefaulted,
    RulesWithoutType,
    EmptyEgressWithoutType,
    AndMeant,
    Shadowed,
    Unreachable,
    PriorityTie,
    Ipv6Forgotten,
    HostBits,
    NotEnforced,
    EmptyPeers,
    Invalid,
    DefinedTwice,
}

/// What is said of a kind of fault.
#[derive(Debug)]
pub struct About {
    /// Which.
    pub code: Code,
    /// A name for people, which may change.
    pub name: &'static str,
    /// How much it matters at most. What is less certain is a note: the explanation says when.
    pub severity: Severity,
    /// One line.
    pub short: &'static str,
    /// What the API says, the case that it comes from, what to do, and when it is no fault.
    pub long: &'static str,
    /// Whether `--fix` can correct it, where that is unambiguous.
    pub fix: bool,
}

const fn about(
    code: Code,
    name: &'static str,
    severity: Severity,
    short: &'static str,
    long: &'static str,
    fix: bool,
) -> About {
    About { code, name, severity, short, long, fix }
}

/// Every kind of fault, in order of number.
#[rustfmt::skip]
pub const TABLE: [About; 25] = [
    about(Code::NamespaceLabel, "namespace-label", Severity::Warning,
        "a namespaceSelector asks for a label that the namespace it means does not have", why::NAMESPACE_LABEL, false),
    about(Code::SelectsNothing, "selects-nothing", Severity::Warning,
        "a policy selects no pod", why::SELECTS_NOTHING, false),
    about(Code::PeerMatchesNothing, "peer-matches-nothing", Severity::Warning,
        "an element of from or to matches no pod", why::PEER_MATCHES_NOTHING, false),
    about(Code::DnsEgressMissing, "dns-egress-missing", Severity::Warning,
        "pods may open connections but not look up names", why::DNS_EGRESS_MISSING, false),
    about(Code::DnsTcpMissing, "dns-tcp-missing", Severity::Warning,
        "a rule allows DNS over UDP and not over TCP", why::DNS_TCP_MISSING, true),
    about(Code::DnsUdpMissing, "dns-udp-missing", Severity::Warning,
        "a rule allows DNS over TCP and not over UDP", why::DNS_UDP_MISSING, true),
    about(Code::NodeLocalDns, "node-local-dns", Severity::Note,
        "DNS is allowed to the cluster's servers only, where a cache on the node answers", why::NODE_LOCAL_DNS, false),
    about(Code::ExceptOutsideCidr, "except-outside-cidr", Severity::Error,
        "an except does not lie inside its cidr", why::EXCEPT_OUTSIDE_CIDR, true),
    about(Code::PrivateServiceExcluded, "private-service-excluded", Severity::Note,
        "an except takes out the address of a Service that the rule's port is for", why::PRIVATE_SERVICE_EXCLUDED, false),
    about(Code::ServicePort, "service-port", Severity::Warning,
        "a rule names a Service's port where the target port is enforced", why::SERVICE_PORT, false),
    about(Code::NamedPortUnknown, "named-port-unknown", Severity::Warning,
        "a rule names a port that no pod has which it is about", why::NAMED_PORT_UNKNOWN, false),
    about(Code::ProbesDenied, "probes-denied", Severity::Warning,
        "the kubelet's probes need a rule with this CNI, and there is none", why::PROBES_DENIED, false),
    about(Code::TypesDefaulted, "types-defaulted", Severity::Warning,
        "a policy of egress rules without policyTypes denies all ingress too", why::TYPES_DEFAULTED, false),
    about(Code::RulesWithoutType, "rules-without-type", Severity::Warning,
        "rules of a direction that policyTypes does not name mean nothing", why::RULES_WITHOUT_TYPE, false),
    about(Code::EmptyEgressWithoutType, "empty-egress-without-type", Severity::Warning,
        "an empty egress without policyTypes denies nothing", why::EMPTY_EGRESS_WITHOUT_TYPE, false),
    about(Code::AndMeant, "and-meant", Severity::Warning,
        "two elements allow either, where both together may be meant", why::AND_MEANT, false),
    about(Code::Shadowed, "shadowed", Severity::Note,
        "another rule or element of the policy already allows all of it", why::SHADOWED, false),
    about(Code::Unreachable, "unreachable", Severity::Warning,
        "an earlier rule of the policy decides everything that this one is about", why::UNREACHABLE, false),
    about(Code::PriorityTie, "priority-tie", Severity::Warning,
        "two policies of one tier and priority contradict each other", why::PRIORITY_TIE, false),
    about(Code::Ipv6Forgotten, "ipv6-forgotten", Severity::Warning,
        "every IPv4 address is allowed, and no IPv6 address", why::IPV6_FORGOTTEN, false),
    about(Code::HostBits, "host-bits", Severity::Warning,
        "a CIDR has bits beyond its prefix, which do not count", why::HOST_BITS, false),
    about(Code::NotEnforced, "not-enforced", Severity::Warning,
        "the cluster's network takes policies and enforces none", why::NOT_ENFORCED, false),
    about(Code::EmptyPeers, "empty-peers", Severity::Warning,
        "an empty from or to allows everybody", why::EMPTY_PEERS, false),
    about(Code::Invalid, "invalid", Severity::Error,
        "the API server refuses a part of the policy, or drops it", why::INVALID, false),
    about(Code::DefinedTwice, "defined-twice", Severity::Warning,
        "two documents are the same object", why::DEFINED_TWICE, false),
];

impl Code {
    /// What is said of it.
    pub const fn about(self) -> &'static About {
        &TABLE[self as usize - 1]
    }

    /// Every one, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|it| it.code)
    }
}

/// `NA014`.
impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("NA{:03}", *self as u8))
    }
}

/// What is no code.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no code {text:?}: {known}", known = known())]
pub struct UnknownCode {
    text: String,
}

fn known() -> String {
    let (first, last) = (TABLE[0].code, TABLE[TABLE.len() - 1].code);
    format!("known are {first} to {last}, which --list tells")
}

impl FromStr for Code {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        let is_it = |it: &Self| it.to_string().eq_ignore_ascii_case(text) || it.about().name == text;
        Self::all().find(is_it).ok_or_else(|| UnknownCode { text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_says_something() {
        for (number, about) in (1..).zip(&TABLE) {
            assert_eq!(about.code.to_string(), format!("NA{number:03}"));
            assert_eq!(about.code.about().name, about.name);
            assert!(about.long.len() > 200, "{}: {}", about.name, about.long);
            assert_eq!(about.name.parse(), Ok(about.code));
            assert_eq!(about.code.to_string().to_lowercase().parse(), Ok(about.code));
        }
        let error = "NA999".parse::<Code>().unwrap_err().to_string();
        assert_eq!(error, "there is no code \"NA999\": known are NA001 to NA025, which --list tells");
    }
}
