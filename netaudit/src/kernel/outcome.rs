//! What a socket held when it closed before its handshake finished, or when an ICMP error came for a datagram of it, and
//! what that means.

use netaudit_ebpf::abi::{detail, flag};

use crate::model::{Errno, Outcome};

/// The facts in a `TCP_CLOSED` record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Closed {
    /// `sk_err`: why the kernel gave up; 0 if the program closed.
    error: u8,
    /// `sk_err_soft`: an error that did not end the attempt.
    soft: u8,
    /// Type and code of a queued ICMP message.
    icmp: Option<(u8, u8)>,
    /// A segment had come.
    answered: bool,
    /// The peer's address is v4, so that the ICMP is version 4.
    v4: bool,
}

const EACCES: u8 = libc::EACCES as u8;
const ENETUNREACH: u8 = libc::ENETUNREACH as u8;
const EHOSTUNREACH: u8 = libc::EHOSTUNREACH as u8;
const ECONNREFUSED: u8 = libc::ECONNREFUSED as u8;
const ETIMEDOUT: u8 = libc::ETIMEDOUT as u8;

impl Closed {
    /// Takes the facts out of a record's words.
    pub fn new(detail: u32, flags: u16, v4: bool) -> Self {
        let [error, soft, icmp_type, icmp_code] = detail::unpack(detail);
        Self {
            error,
            soft,
            icmp: (flags & flag::ICMP != 0).then_some((icmp_type, icmp_code)),
            answered: flags & flag::ANSWERED != 0,
            v4,
        }
    }

    /// The outcome.
    ///
    /// The ICMP message is asked first: it is exact, and the errors below it are also set by it. A peer's own kernel
    /// answers TCP with a reset, so an ICMP port-unreachable comes from a filter.
    pub fn outcome(self) -> Outcome {
        if let Some((kind, code)) = self.icmp {
            return self.by_icmp(kind, code);
        }
        match self.error {
            ECONNREFUSED if self.answered => Outcome::Refused,
            0 if self.soft != 0 => self.by_errno(self.soft),
            0 => Outcome::Aborted,
            // The kernel reports the soft error in place of the timeout if there was one.
            ETIMEDOUT => Outcome::Timeout,
            errno => self.by_errno(errno),
        }
    }

    /// The outcome of a UDP flow for which an error came.
    ///
    /// Without a queued message only such errors are reported to a socket as end an exchange: over v4 not those that a
    /// router without a route sends, but those of a filter; over v6 a filter's are EACCES.
    pub fn outcome_of_datagram(self) -> Outcome {
        match (self.icmp, self.error) {
            (Some((kind, code)), _) => self.by_icmp(kind, code),
            (None, ECONNREFUSED | EACCES) => Outcome::Rejected,
            (None, EHOSTUNREACH | ENETUNREACH) if self.v4 => Outcome::Rejected,
            _ => Outcome::Unreachable,
        }
    }

    /// The error, where `outcome` is one that an ICMP message decides.
    pub fn errno(self, outcome: Outcome) -> Option<Errno> {
        let errno = if self.error == 0 { self.soft } else { self.error };
        let is_icmp = matches!(outcome, Outcome::Rejected | Outcome::Unreachable);
        (is_icmp && errno != 0).then_some(Errno(errno))
    }

    fn by_icmp(self, kind: u8, code: u8) -> Outcome {
        let filtered = if self.v4 {
            kind == 3 && matches!(code, 3 | 9 | 10 | 13)
        } else {
            kind == 1 && matches!(code, 1 | 4)
        };
        if filtered { Outcome::Rejected } else { Outcome::Unreachable }
    }

    /// An errno that only an ICMP message, a failed neighbour or a lost route can have set.
    fn by_errno(self, errno: u8) -> Outcome {
        match errno {
            // v4 has no message that ends in EACCES: there it is the node's own refusal to route.
            ECONNREFUSED => Outcome::Rejected,
            EACCES if !self.v4 => Outcome::Rejected,
            EACCES | ENETUNREACH | EHOSTUNREACH => Outcome::Unreachable,
            // Anything else is the program's doing (a disconnect sets ECONNRESET) or the node's (EPIPE, ENOBUFS).
            _ if errno == ETIMEDOUT => Outcome::Timeout,
            _ if self.soft != 0 && self.soft != errno => self.by_errno(self.soft),
            _ => Outcome::Aborted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(error: i32, soft: i32, icmp: Option<(u8, u8)>, answered: bool, v4: bool) -> Outcome {
        let (kind, code) = icmp.unwrap_or_default();
        let flags = if icmp.is_some() { flag::ICMP } else { 0 } | if answered { flag::ANSWERED } else { 0 };
        Closed::new(detail::pack(error as u8, soft as u8, kind, code), flags, v4).outcome()
    }

    #[test]
    fn the_table_of_closes() {
        use Outcome::{Aborted, Refused, Rejected, Timeout, Unreachable};
        use libc::{EACCES, ECONNREFUSED, ECONNRESET, EHOSTUNREACH, ENETUNREACH, ETIMEDOUT};
        let (v4, v6) = (true, false);
        for (name, outcome, expected) in [
            ("reset", closed(ECONNREFUSED, 0, None, true, v4), Refused),
            ("reset v6", closed(ECONNREFUSED, 0, None, true, v6), Refused),
            ("port unreachable", closed(ECONNREFUSED, 0, Some((3, 3)), false, v4), Rejected),
            ("net prohibited", closed(ENETUNREACH, 0, Some((3, 9)), false, v4), Rejected),
            ("host prohibited", closed(EHOSTUNREACH, 0, Some((3, 10)), false, v4), Rejected),
            ("admin prohibited", closed(EHOSTUNREACH, 0, Some((3, 13)), false, v4), Rejected),
            ("no ARP answer", closed(EHOSTUNREACH, 0, Some((3, 1)), false, v4), Unreachable),
            ("net unreachable", closed(ENETUNREACH, 0, Some((3, 0)), false, v4), Unreachable),
            ("rejected, then closed", closed(0, ECONNREFUSED, Some((3, 3)), false, v4), Rejected),
            ("v6 admin prohibited", closed(EACCES, 0, None, false, v6), Rejected),
            ("v6 port unreachable", closed(ECONNREFUSED, 0, None, false, v6), Rejected),
            ("v6 queued", closed(EACCES, 0, Some((1, 1)), false, v6), Rejected),
            ("v6 queued, no route", closed(ENETUNREACH, 0, Some((1, 0)), false, v6), Unreachable),
            ("v6 soft error, then closed", closed(0, EACCES, None, false, v6), Rejected),
            ("v6 soft no route, then closed", closed(0, ENETUNREACH, None, false, v6), Unreachable),
            ("timeout", closed(ETIMEDOUT, 0, None, false, v4), Timeout),
            ("closed by the program", closed(0, 0, None, false, v4), Aborted),
            ("disconnected by the program", closed(ECONNRESET, 0, None, false, v4), Aborted),
        ] {
            assert_eq!(outcome, expected, "{name}");
        }
    }

    #[test]
    fn the_table_of_errors_for_datagrams() {
        use Outcome::{Rejected, Unreachable};
        use libc::{EACCES, ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, EPROTO};
        let (v4, v6) = (true, false);
        for (name, error, icmp, is_v4, expected) in [
            ("closed port", ECONNREFUSED, None, v4, Rejected),
            ("closed port v6", ECONNREFUSED, None, v6, Rejected),
            ("closed port, queued", ECONNREFUSED, Some((3, 3)), v4, Rejected),
            ("closed port v6, queued", ECONNREFUSED, Some((1, 4)), v6, Rejected),
            ("prohibited", EHOSTUNREACH, None, v4, Rejected),
            ("net prohibited", ENETUNREACH, None, v4, Rejected),
            ("prohibited, queued", EHOSTUNREACH, Some((3, 13)), v4, Rejected),
            ("v6 prohibited", EACCES, None, v6, Rejected),
            ("no ARP answer, queued", EHOSTUNREACH, Some((3, 1)), v4, Unreachable),
            ("v6 no route, queued", ENETUNREACH, Some((1, 0)), v6, Unreachable),
            ("time exceeded, queued", EHOSTUNREACH, Some((11, 0)), v4, Unreachable),
            ("parameter problem", EPROTO, None, v4, Unreachable),
        ] {
            let (kind, code) = icmp.unwrap_or_default();
            let flags = if icmp.is_some() { flag::ICMP } else { 0 };
            let closed = Closed::new(detail::pack(error as u8, 0, kind, code), flags, is_v4);
            assert_eq!(closed.outcome_of_datagram(), expected, "{name}");
            assert_eq!(closed.errno(expected), Some(Errno(error as u8)), "{name}");
        }
    }

    #[test]
    fn only_what_icmp_decides_has_an_errno() {
        let closed =
            |error: i32, soft: i32| Closed::new(detail::pack(error as u8, soft as u8, 0, 0), 0, false);
        assert_eq!(closed(0, libc::EACCES).errno(Outcome::Rejected), Some(Errno::EACCES));
        assert_eq!(closed(libc::ECONNREFUSED, 0).errno(Outcome::Refused), None);
        assert_eq!(closed(libc::ETIMEDOUT, 0).errno(Outcome::Timeout), None);
        assert_eq!(closed(0, 0).errno(Outcome::Rejected), None);
    }
}
