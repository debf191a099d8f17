//! A DNS answer before anybody has read it.

use std::net::IpAddr;

use super::{NetnsCookie, Timestamp};

/// An answer that came to a socket which had asked for it. What is in it was made by a stranger: see
/// [`read_dns`](crate::audit::read_dns).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DnsAnswer {
    /// When it came.
    pub at: Timestamp,
    /// The namespace that the socket lives in: whose flows it may name.
    pub netns: NetnsCookie,
    /// Who answered, from port 53.
    pub server: IpAddr,
    /// Whether it came over the namespace's own loopback, where whoever may make raw packets can answer under any address.
    pub over_loopback: bool,
    /// Its bytes, or the first of them.
    pub payload: Box<[u8]>,
    /// Whether it had more bytes.
    pub is_cut: bool,
}
