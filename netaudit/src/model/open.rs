//! What a look through all open sockets finds: connections that are open, and sockets whose use is not seen.

use std::net::SocketAddr;

use super::{Actor, NetnsCookie, Observation, Timestamp};

/// An open connection, and one end of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenConnection {
    /// Its end as if it had been seen to begin: `at` is when it was told to, or when it was first found, and `outcome` is
    /// established or accepted.
    pub seen: Observation,
    /// When it was looked at.
    pub looked: Timestamp,
    /// Whether it was told before, when it began or after an earlier look.
    pub is_told: bool,
    /// Why nothing says whether it connected or was accepted; then direction and outcome of `seen` mean nothing.
    pub unknown_end: Option<&'static str>,
}

/// A UDP socket that has read datagrams and neither asked who sent them (`recv` and `read` do not) nor sent any: nobody sees who
/// uses it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlindReader {
    /// Its cookie.
    pub socket: u64,
    /// The network namespace that it lives in.
    pub netns: NetnsCookie,
    /// Where it is bound.
    pub local: SocketAddr,
    /// Who holds it.
    pub actor: Actor,
}

/// What a look finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenSocket {
    /// A connection that is open.
    Connection(OpenConnection),
    /// A socket whose use is not seen.
    BlindReader(BlindReader),
}

impl OpenSocket {
    /// The connection, if it is one.
    pub const fn connection(self) -> Option<OpenConnection> {
        match self {
            Self::Connection(open) => Some(open),
            Self::BlindReader(_) => None,
        }
    }
}
