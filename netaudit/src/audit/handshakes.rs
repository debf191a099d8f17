//! Connections of pods that were made a moment ago: the other end may have been seen too, and shows where they went.
//!
//! ```text
//!  established ──► wait for accepted from the same address and port ──► judged as addressed
//!                             └─ accepted: went there
//! ```
//!
//! The kernel tells the end that connects first, and the end that accepts within microseconds where both are on this node.
//! How long to wait is counted on the kernel's clock, from record to record: a reader that comes late misses nothing.
//!
//! A program may use one port for several connections at once, so the port alone does not say whose other end was seen: see
//! [`Match`]. Else it could pass off a connection that is denied for one to a listener of its own.
//!
//! Of a connection with TCP Fast Open the other end comes first, and is missed: then the next rung of the ladder is asked.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use foldhash::HashMap;
use smallvec::SmallVec;

use super::datagrams::Held;
use crate::model::{Observation, Timestamp};

/// How long the end that accepts is waited for. It was 7 microseconds later as a rule, and 68 at most.
pub(super) const HOLD: Duration = Duration::from_millis(5);

/// Connections that may wait at once; more are judged at once as they are addressed.
const ROOM: usize = 65_536;

/// How well an end that accepts fits a connection from its address and port, the best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Match {
    /// It accepted at the very address that was asked for.
    Asked,
    /// It is an endpoint of the Service that was asked for.
    Endpoint,
    /// It is at another port there.
    OtherPort,
    /// Nothing but a translation that no object tells of can have led there.
    Elsewhere,
}

/// Those that wait, by the address and port that they came from.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    waiting: HashMap<SocketAddr, SmallVec<[(Timestamp, Held); 1]>>,
    order: VecDeque<(Timestamp, SocketAddr)>,
    count: usize,
}

impl Handshakes {
    /// Takes a connection from `source` that was made at `at`. `false` where there is no room.
    pub fn hold(&mut self, held: Held, source: SocketAddr, at: Timestamp) -> bool {
        if self.count >= ROOM {
            return false;
        }
        let until = at.plus(HOLD);
        self.waiting.entry(source).or_default().push((until, held));
        self.order.push_back((until, source));
        self.count += 1;
        true
    }

    /// Takes out the connection from `source` whose other end was seen: the first of those that fit best. Which it is cannot be
    /// told where several fit only by their port; then it is none.
    pub fn meet(&mut self, source: SocketAddr, fits: impl Fn(&Observation) -> Match) -> Option<Held> {
        let of_source = self.waiting.get(&source)?;
        let matches = || of_source.iter().map(|(_, held)| fits(&held.seen));
        let best = matches().min()?;
        if best >= Match::OtherPort && matches().filter(|it| *it == best).count() > 1 {
            return None;
        }
        let index = matches().position(|it| it == best)?;
        self.take_at(source, index)
    }

    /// Takes out the next connection whose other end would have been seen by `now`.
    pub fn next_unmet(&mut self, now: Timestamp) -> Option<Held> {
        loop {
            let (until, source) = self.order.pop_front_if(|(until, _)| *until < now)?;
            // Else it was met.
            if let Some(held) = self.take(source, |other| other == until) {
                return Some(held);
            }
        }
    }

    fn take(&mut self, source: SocketAddr, is_it: impl Fn(Timestamp) -> bool) -> Option<Held> {
        let of_source = self.waiting.get(&source)?;
        let index = of_source.iter().position(|(until, _)| is_it(*until))?;
        self.take_at(source, index)
    }

    fn take_at(&mut self, source: SocketAddr, index: usize) -> Option<Held> {
        let of_source = self.waiting.get_mut(&source)?;
        let (_, held) = of_source.remove(index);
        if of_source.is_empty() {
            self.waiting.remove(&source);
        }
        self.count -= 1;
        Some(held)
    }

    /// Everything that waits, in order.
    pub fn take_all(&mut self) -> Vec<Observation> {
        let mut all: Vec<_> = std::mem::take(self).waiting.into_values().flatten().collect();
        all.sort_by_key(|(_, held)| held.number);
        all.into_iter().map(|(_, held)| held.seen).collect()
    }

    /// The lowest number of those that wait.
    pub fn first(&self) -> Option<u64> {
        self.waiting.values().flatten().map(|(_, held)| held.number).min()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::testing::observation;

    fn held(number: u64) -> Held {
        Held { number, seen: observation() }
    }

    fn after(duration: Duration) -> Timestamp {
        observation().at.plus(duration)
    }

    const SOURCE: &str = "10.0.0.1:40000";

    #[test]
    fn each_is_met_once_and_what_is_not_met_comes_out_in_time() {
        let source = SOURCE.parse().unwrap();
        let mut handshakes = Handshakes::default();
        assert!(handshakes.hold(held(1), source, after(Duration::ZERO)));
        assert!(handshakes.hold(held(2), source, after(Duration::from_millis(1))));
        assert!(handshakes.hold(held(3), "10.0.0.1:40001".parse().unwrap(), after(Duration::from_millis(1))));
        assert_eq!(handshakes.first(), Some(1));
        let asked = |_: &Observation| Match::Asked;
        assert_eq!(handshakes.meet("10.0.0.2:40000".parse().unwrap(), asked), None, "of another address");
        assert_eq!(handshakes.meet(source, asked).map(|held| held.number), Some(1));
        assert_eq!(handshakes.next_unmet(after(HOLD)), None, "the first was met, and the second has time");
        let late = after(HOLD + Duration::from_millis(2));
        assert_eq!(handshakes.next_unmet(late).map(|held| held.number), Some(2));
        assert_eq!(handshakes.next_unmet(late).map(|held| held.number), Some(3));
        assert_eq!(
            (handshakes.next_unmet(late), handshakes.meet(source, asked), handshakes.len()),
            (None, None, 0)
        );
        assert!(handshakes.waiting.is_empty() && handshakes.order.is_empty());
    }

    #[test]
    fn of_several_from_one_port_the_best_is_met_and_none_where_that_is_not_known() {
        let source = SOURCE.parse().unwrap();
        let meet = |fits: [Match; 3]| {
            let mut handshakes = Handshakes::default();
            for number in 0..3 {
                handshakes.hold(held(number), source, after(Duration::ZERO));
                let (_, held) = handshakes.waiting.get_mut(&source).unwrap().last_mut().unwrap();
                held.seen.socket = number;
            }
            handshakes.meet(source, |seen| fits[seen.socket as usize]).map(|held| held.number)
        };
        use Match::*;
        assert_eq!(meet([Elsewhere, OtherPort, Asked]), Some(2));
        assert_eq!(meet([Elsewhere, Endpoint, OtherPort]), Some(1));
        assert_eq!(meet([Asked, Asked, Endpoint]), Some(0), "they are the same to policies");
        assert_eq!(meet([OtherPort, Elsewhere, Elsewhere]), Some(0));
        assert_eq!((meet([OtherPort, OtherPort, Elsewhere]), meet([Elsewhere; 3])), (None, None));
    }

    #[test]
    fn room_is_bounded_and_the_end_takes_all_in_order() {
        let mut handshakes = Handshakes::default();
        for number in 0..ROOM as u64 {
            let source = SocketAddr::new("10.0.0.1".parse().unwrap(), number as u16 % 1_000);
            assert!(handshakes.hold(held(number), source, after(Duration::ZERO)));
        }
        assert!(!handshakes.hold(held(0), SOURCE.parse().unwrap(), after(Duration::ZERO)));
        assert_eq!((handshakes.take_all().len(), handshakes.len()), (ROOM, 0));
    }
}
