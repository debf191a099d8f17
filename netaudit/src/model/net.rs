//! Protocols and directions.

use std::{fmt, str::FromStr};

/// A transport protocol that Kubernetes policies can name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// The API's default where a port or rule names no protocol.
    Tcp,
    /// User datagrams.
    Udp,
    /// Evaluated like the others, but no hook of ours sees it: `unobservable`.
    Sctp,
}

impl Protocol {
    /// The name that the Kubernetes API uses: `TCP`, `UDP` or `SCTP`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Protocol {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Tcp, Self::Udp, Self::Sctp]
            .into_iter()
            .find(|protocol| protocol.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| UnknownProtocol(text.to_owned()))
    }
}

/// A protocol that is none of TCP, UDP and SCTP.
#[derive(Debug, thiserror::Error)]
#[error("unknown protocol {0:?}: use TCP, UDP or SCTP")]
pub struct UnknownProtocol(String);

/// Which end of a flow the subject is. Known from the hook that saw it, never guessed from port numbers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The subject is the source.
    Egress,
    /// The subject is the destination.
    Ingress,
}

impl Direction {
    /// Both, in order.
    pub const ALL: [Self; 2] = [Self::Egress, Self::Ingress];

    /// `egress` or `ingress`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }

    /// The field of a policy's rule of this direction that names the other ends: `to` or `from`.
    pub const fn peers(self) -> &'static str {
        match self {
            Self::Egress => "to",
            Self::Ingress => "from",
        }
    }

    /// The other end's direction of the same connection.
    pub const fn opposite(self) -> Self {
        match self {
            Self::Egress => Self::Ingress,
            Self::Ingress => Self::Egress,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_parse_in_any_case_and_reject_others() {
        assert_eq!("udp".parse::<Protocol>().unwrap(), Protocol::Udp);
        assert!("ICMP".parse::<Protocol>().unwrap_err().to_string().contains("TCP, UDP or SCTP"));
    }
}
