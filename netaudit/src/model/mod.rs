//! The words of netaudit as types: what a flow is, who takes part in it, and what is said of it.
//!
//! Everything here is plain data without IO, clocks or knowledge of Kubernetes clients. The meaning of each word is
//! the one that the README's glossary gives.

mod dns;
mod flow;
mod net;
mod open;
mod time;
mod verdict;

pub use dns::DnsAnswer;
pub use flow::{
    Actor, Answer, CgroupId, Comm, DropReason, Errno, Folded, NetnsCookie, Observation, Outcome, PacketDrop,
    RawSocket, RawSocketKind, Reach, Translated, Translation,
};
pub use net::{Direction, Protocol};
pub use open::{BlindReader, OpenConnection, OpenSocket};
pub use time::{Timestamp, duration};
pub use verdict::{
    Action, Cause, Decision, Denial, Elements, Exemption, Gap, NearMiss, PolicyId, RuleId, RuleMatch, Verdict,
};
