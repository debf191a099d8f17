//! Drops of this node's filter, and of packets for closed ports, that wait for the end of the attempt that they belong to.
//!
//! A drop comes before its attempt's outcome, by up to the minutes that the kernel goes on trying, so drops are kept by
//! protocol and source port. Which of them belongs to an attempt is the auditor's to say: it knows addresses.

use std::{collections::VecDeque, net::SocketAddr};

use foldhash::{HashMap, HashSet};
use smallvec::SmallVec;

use crate::model::{PacketDrop, Protocol, Timestamp};

/// How many are kept. Each is of an attempt of this node that has not ended.
const ROOM: usize = 65_536;

/// How many of one port: each is gone through for every drop and attempt from there, and who scans does so from one port.
const ROOM_OF_PORT: usize = 256;

/// Drops by what the attempt is looked up by.
#[derive(Debug, Default)]
pub(super) struct Drops {
    by_port: HashMap<(Protocol, u16), SmallVec<[PacketDrop; 1]>>,
    count: usize,
    forgotten: u64,
}

impl Drops {
    /// Keeps a drop. Returns whether it is of an attempt that none is known of: a SYN that was sent again is not.
    pub fn remember(&mut self, seen: &PacketDrop) -> bool {
        let same = |known: &PacketDrop| {
            seen.protocol == Protocol::Tcp
                && (known.source, known.destination, known.sequence)
                    == (seen.source, seen.destination, seen.sequence)
        };
        let key = (seen.protocol, seen.source.port());
        let of_port = self.by_port.get(&key).map_or(&[][..], |of_port| of_port);
        if of_port.iter().any(same) {
            return false;
        }
        if self.count >= ROOM || of_port.len() >= ROOM_OF_PORT {
            self.forgotten += 1;
        } else {
            self.by_port.entry(key).or_default().push(*seen);
            self.count += 1;
        }
        true
    }

    /// Takes out what belongs to an attempt from `port`, in order.
    pub fn take(
        &mut self,
        protocol: Protocol,
        port: u16,
        belongs: impl Fn(&PacketDrop) -> bool,
    ) -> SmallVec<[PacketDrop; 1]> {
        let key = (protocol, port);
        let mut taken = SmallVec::new();
        let Some(of_port) = self.by_port.get_mut(&key) else { return taken };
        of_port.retain(|drop| {
            let belongs = belongs(drop);
            if belongs {
                taken.push(*drop);
            }
            !belongs
        });
        self.count -= taken.len();
        if of_port.is_empty() {
            self.by_port.remove(&key);
        }
        taken
    }

    /// The first that belongs to an attempt from `port`, and stays here.
    pub fn find(
        &self,
        protocol: Protocol,
        port: u16,
        belongs: impl Fn(&PacketDrop) -> bool,
    ) -> Option<&PacketDrop> {
        self.by_port.get(&(protocol, port))?.iter().find(|drop| belongs(drop))
    }

    /// Forgets what is older than `limit`: no attempt lasts as long.
    pub fn expire(&mut self, limit: Timestamp) {
        self.by_port.retain(|_, of_port| {
            of_port.retain(|drop| drop.at >= limit);
            !of_port.is_empty()
        });
        self.count = self.by_port.values().map(SmallVec::len).sum();
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Drops that were not kept, since too many are.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }
}

/// SYNs that found a closed port, of which some are sent again: its answer was lost. The same one is known by its number.
#[derive(Debug, Default)]
pub(super) struct ClosedPorts {
    known: HashSet<Syn>,
    order: VecDeque<(Timestamp, Syn)>,
}

/// What is the same when a SYN is sent again.
type Syn = (SocketAddr, SocketAddr, u32);

/// SYNs to closed ports that are remembered. Who forgets one tells it twice.
const ROOM_OF_CLOSED_PORTS: usize = 16_384;

impl ClosedPorts {
    /// Whether this one was not sent before.
    pub fn is_new(&mut self, seen: &PacketDrop) -> bool {
        let syn = (seen.source, seen.destination, seen.sequence);
        let is_new = self.known.insert(syn);
        if is_new {
            if self.order.len() >= ROOM_OF_CLOSED_PORTS
                && let Some((_, oldest)) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
            self.order.push_back((seen.at, syn));
        }
        is_new
    }

    /// Forgets what is older than `limit`: nobody sends it again.
    pub fn expire(&mut self, limit: Timestamp) {
        while let Some((_, syn)) = self.order.pop_front_if(|(at, _)| *at < limit) {
            self.known.remove(&syn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DropReason, NetnsCookie};

    fn dropped(source: &str, sequence: u32, at: i64) -> PacketDrop {
        PacketDrop {
            at: Timestamp::from_seconds(at),
            netns: NetnsCookie(1),
            protocol: Protocol::Tcp,
            source: source.parse().unwrap(),
            destination: "10.0.0.2:80".parse().unwrap(),
            reason: DropReason("NETFILTER_DROP"),
            sequence,
            opens: true,
            folded: None,
            maybe_repeated: false,
        }
    }

    #[test]
    fn one_attempt_is_known_once_and_the_next_from_its_port_is_another() {
        let mut drops = Drops::default();
        assert!(drops.remember(&dropped("10.0.0.1:40000", 1, 0)));
        assert!(!drops.remember(&dropped("10.0.0.1:40000", 1, 1)), "sent again");
        assert!(drops.remember(&dropped("10.0.0.1:40000", 2, 2)));
        assert!(drops.remember(&dropped("10.0.0.3:40000", 1, 2)), "another pod's");
        // Neither is kept from one datagram to the next: they look the same, and each may be a flow of its own.
        let datagram = PacketDrop { protocol: Protocol::Udp, ..dropped("10.0.0.1:40000", 0, 0) };
        assert!(drops.remember(&datagram) && drops.remember(&datagram));
        assert_eq!(drops.len(), 5);
    }

    #[test]
    fn what_belongs_is_taken_and_the_rest_stays_until_it_is_too_old() {
        let mut drops = Drops::default();
        for (sequence, at) in [(1, 0), (2, 10), (3, 11)] {
            drops.remember(&dropped("10.0.0.1:40000", sequence, at));
        }
        let late = |drop: &PacketDrop| drop.at >= Timestamp::from_seconds(10);
        let taken = drops.take(Protocol::Tcp, 40_000, late);
        assert_eq!(taken.iter().map(|drop| drop.sequence).collect::<Vec<_>>(), [2, 3]);
        assert_eq!((drops.take(Protocol::Tcp, 40_000, late).len(), drops.len()), (0, 1));
        assert!(drops.take(Protocol::Udp, 40_000, |_| true).is_empty());
        drops.expire(Timestamp::from_seconds(0));
        assert_eq!(drops.len(), 1);
        drops.expire(Timestamp::from_seconds(1));
        assert_eq!(drops.len(), 0);
    }

    #[test]
    fn room_is_bounded_and_what_has_none_is_counted() {
        let mut drops = Drops::default();
        for sequence in 0..=ROOM as u32 {
            let source = format!("10.0.{}.1:{}", sequence % 250, sequence % 60_000 + 1);
            assert!(drops.remember(&dropped(&source, sequence, 0)));
        }
        assert_eq!((drops.len(), drops.forgotten()), (ROOM, 1));
    }

    #[test]
    fn one_port_has_not_all_the_room() {
        let mut drops = Drops::default();
        for sequence in 0..=ROOM_OF_PORT as u32 {
            assert!(drops.remember(&dropped("10.0.0.1:40000", sequence, 0)));
        }
        assert!(drops.remember(&dropped("10.0.0.1:40001", 1, 0)));
        assert_eq!((drops.len(), drops.forgotten()), (ROOM_OF_PORT + 1, 1));
    }

    #[test]
    fn a_syn_to_a_closed_port_is_new_once_and_memory_is_bounded() {
        let mut closed_ports = ClosedPorts::default();
        let first = dropped("203.0.113.1:40000", 1, 0);
        let sent_again = PacketDrop { at: Timestamp::from_seconds(1), ..first };
        assert!(closed_ports.is_new(&first) && !closed_ports.is_new(&sent_again));
        assert!(closed_ports.is_new(&dropped("203.0.113.1:40000", 2, 1)), "another attempt from its port");
        assert!(closed_ports.is_new(&dropped("203.0.113.2:40000", 1, 1)));
        let other_port = PacketDrop { destination: "10.0.0.2:81".parse().unwrap(), ..first };
        assert!(closed_ports.is_new(&other_port), "a scan from one port");
        for sequence in 100..100 + ROOM_OF_CLOSED_PORTS as u32 {
            assert!(closed_ports.is_new(&dropped("203.0.113.1:40000", sequence, 2)));
        }
        assert_eq!(
            (closed_ports.known.len(), closed_ports.order.len()),
            (ROOM_OF_CLOSED_PORTS, ROOM_OF_CLOSED_PORTS)
        );
        assert!(closed_ports.is_new(&first), "the oldest are forgotten");
        closed_ports.expire(Timestamp::from_seconds(3));
        assert_eq!((closed_ports.known.len(), closed_ports.order.len()), (0, 0));
    }
}
