//! From kernel observations to judged flows and what is counted of them.
//!
//! [`Auditor`] owns everything that a verdict needs, and is driven from outside: objects come in through
//! [`Auditor::cluster_mut`], kernel records through [`Auditor::observe`], [`Auditor::observe_folded`],
//! [`Auditor::observe_answer`], [`Auditor::observe_drop`], [`Auditor::observe_raw_socket`] and [`Auditor::observe_dns`],
//! connections that go on through [`Auditor::observe_open`], time through [`Auditor::tick`] and [`Auditor::settle`]. Flows come out; metrics are read
//! from [`Auditor::counts`], [`Auditor::usage`], [`Auditor::violations`], [`Auditor::open_connections`] and [`Auditor::names`].
//!
//! ```text
//! observe → attribute (who: namespace, cgroup) → resolve (with whom: address, time) → judge → account → Flow
//!    ↑ held, up to a second or two, while somebody is not known yet       ↑
//! observe_dns ──► names of addresses, for the namespace that asked ────────┤
//! observe_answer ──► decides a UDP flow that waits for it ─────────────────┤
//! observe_drop ──► kept until the attempt that it belongs to ends ─────────┘
//!    └──► an attempt to reach a pod of this node, judged as above, whoever its source
//! observe_open ──► resolve ──► judge again: its rules are in use; a flow only where it was never told, or is denied by now
//! ```

mod accepted;
mod attribute;
mod auditor;
mod cni;
mod counts;
mod datagrams;
mod dns;
mod drops;
mod enforcement;
mod finding;
mod flow;
mod handshakes;
mod histogram;
pub mod line;
mod names;
mod open;
pub mod privacy;
mod raw_sockets;
mod resolve;
mod severity;
#[cfg(test)]
pub(crate) mod testing;
pub mod usage;
mod violations;

pub use accepted::{Accepted, AcceptedFlows, End as AcceptedEnd, Flows};
pub use attribute::{Attribution, Owner, PodCgroup};
pub use auditor::{Auditor, DnsServers, Settings, Tuple, usage_window};
pub use cni::{cni_names, cnis};
pub use counts::{Counts, FlowKey};
pub use dns::{DnsReading, UnreadableDns, is_truncated, read_dns};
pub use enforcement::{Enforced, Enforcement, Isolated, Tried, UnenforcedCause};
pub use finding::{Finding, finding, reach};
pub use flow::{ActorKind, Flow, FlowId, Peer, PeerKind, Subject};
pub use histogram::Histogram;
pub use names::{FRESH_AT_LEAST, NameCounts, Names, STALE, SeenName};
pub use open::{Open, OpenConnections, OpenCounts};
pub use privacy::{AddressKey, Privacy};
pub use raw_sockets::{RawSocketKey, RawSocketSeen, RawSockets};
pub use severity::FlowSeverity;
pub use usage::{Evidence, Missing, RuleKey, RuleUsage, RunKey, Usage, Watched};
pub use violations::{Budget, OTHER, ViolationCount, ViolationKey, Violations};
