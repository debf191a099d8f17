//! Ports, as few elements of a rule.

use std::collections::BTreeSet;

use crate::{model::Protocol, policy::declared};

/// So many adjacent ports are still written one by one.
const SINGLE: u16 = 8;

/// From here on programs get ports that they did not ask for.
const BY_CHANCE: u16 = 32_768;

/// A port, or all from one to another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Span {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The first.
    pub first: u16,
    /// The last, the same for one.
    pub last: u16,
}

impl Span {
    /// As an element of `ports`; the protocol is always written.
    pub fn declared(&self) -> declared::Port {
        declared::Port {
            protocol: Some(self.protocol.as_str().to_owned()),
            port: Some(declared::PortRef::Number(i64::from(self.first))),
            end_port: (self.first < self.last).then_some(i64::from(self.last)),
            invalid: None,
        }
    }
}

/// Elements that hold these ports and no other: a range only for more than eight that are really all adjacent.
pub fn spans(ports: impl IntoIterator<Item = (Protocol, u16)>) -> Vec<Span> {
    let ports: BTreeSet<(Protocol, u16)> = ports.into_iter().collect();
    let mut runs: Vec<Span> = Vec::new();
    for (protocol, port) in ports {
        match runs.last_mut() {
            Some(run) if run.protocol == protocol && run.last.checked_add(1) == Some(port) => run.last = port,
            _ => runs.push(Span { protocol, first: port, last: port }),
        }
    }
    let parts = |run: Span| match run.last - run.first < SINGLE {
        true => (run.first..=run.last).map(|port| Span { first: port, last: port, ..run }).collect(),
        false => vec![run],
    };
    runs.into_iter().flat_map(parts).collect()
}

/// What is to be said of so many different ports that a server seems not to have chosen them.
pub fn warning(ports: &BTreeSet<(Protocol, u16)>) -> Option<String> {
    let by_chance = ports.iter().filter(|(_, port)| *port >= BY_CHANCE).count();
    (by_chance > usize::from(SINGLE)).then(|| {
        format!(
            "{by_chance} different ports from {BY_CHANCE} on: the server seems not to choose them, and the next may be another; \
             give it a fixed one, or write a range"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_written_only_for_many_that_are_all_adjacent() {
        let tcp = |ports: &[u16]| ports.iter().map(|port| (Protocol::Tcp, *port)).collect::<Vec<_>>();
        let told = |ports: Vec<(Protocol, u16)>| {
            let spans = spans(ports);
            spans.iter().map(|it| format!("{}/{}-{}", it.protocol, it.first, it.last)).collect::<Vec<_>>()
        };
        assert_eq!(told(tcp(&[81, 80])), ["TCP/80-80", "TCP/81-81"]);
        assert_eq!(told(tcp(&[1, 2, 3, 4, 5, 6, 7, 8])).len(), 8);
        assert_eq!(told(tcp(&[1, 2, 3, 4, 5, 6, 7, 8, 9])), ["TCP/1-9"]);
        assert_eq!(told(tcp(&[1, 2, 3, 4, 6, 7, 8, 9, 10])).len(), 9, "5 was not seen");
        assert_eq!(told(vec![(Protocol::Udp, 1), (Protocol::Tcp, 2)]), ["TCP/2-2", "UDP/1-1"]);
        assert_eq!(told(tcp(&(65_520..=65_535).collect::<Vec<_>>())), ["TCP/65520-65535"]);
        let ports: BTreeSet<_> =
            tcp(&(0..9).map(|it| 40_000 + it * 7).collect::<Vec<_>>()).into_iter().collect();
        assert!(warning(&ports).unwrap().starts_with("9 different ports"));
        assert_eq!(warning(&tcp(&[80, 443]).into_iter().collect()), None);
    }
}
