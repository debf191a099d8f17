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
//! A program may use one port for several connections at once, and say how late its end accepts, so address and port do not
//! say whose other end was seen: else a connection that is denied could be passed off for one to a listener of one's own.
//! What does is a number that the kernel of the end that accepts has chosen, and told to the other end alone.
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

    /// Takes out the connection from `source` that the end which `accepted` belongs to.
    pub fn meet(&mut self, source: SocketAddr, accepted: &Observation) -> Option<Held> {
        let number = accepted.handshake?;
        self.take(source, |_, held| held.seen.handshake == Some(number))
    }

    /// Takes out the next connection whose other end would have been seen by `now`.
    pub fn next_unmet(&mut self, now: Timestamp) -> Option<Held> {
        loop {
            let (until, source) = self.order.pop_front_if(|(until, _)| *until < now)?;
            // Else it was met.
            if let Some(held) = self.take(source, |other, _| other == until) {
                return Some(held);
            }
        }
    }

    fn take(&mut self, source: SocketAddr, is_it: impl Fn(Timestamp, &Held) -> bool) -> Option<Held> {
        let of_source = self.waiting.get_mut(&source)?;
        let at = of_source.iter().position(|(until, held)| is_it(*until, held))?;
        let (_, held) = of_source.remove(at);
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
    use std::num::NonZeroU32;

    use super::*;
    use crate::audit::testing::observation;

    fn held(number: u64) -> Held {
        Held { number, seen: Observation { handshake: NonZeroU32::new(number as u32), ..observation() } }
    }

    fn after(duration: Duration) -> Timestamp {
        observation().at.plus(duration)
    }

    const SOURCE: &str = "10.0.0.1:40000";

    #[test]
    fn each_is_met_once_by_its_other_end_and_what_is_not_met_comes_out_in_time() {
        let source = SOURCE.parse().unwrap();
        let mut handshakes = Handshakes::default();
        assert!(handshakes.hold(held(1), source, after(Duration::ZERO)));
        assert!(handshakes.hold(held(2), source, after(Duration::from_millis(1))));
        assert!(handshakes.hold(held(3), "10.0.0.1:40001".parse().unwrap(), after(Duration::from_millis(1))));
        assert_eq!(handshakes.first(), Some(1));
        let other_end = |number| held(number).seen;
        let elsewhere = "10.0.0.2:40000".parse().unwrap();
        assert_eq!(handshakes.meet(elsewhere, &other_end(1)), None, "of another address");
        assert_eq!(handshakes.meet(source, &other_end(3)), None, "of another connection");
        let untold = Observation { handshake: None, ..other_end(1) };
        assert_eq!(handshakes.meet(source, &untold), None);
        assert_eq!(handshakes.meet(source, &other_end(1)).map(|held| held.number), Some(1));
        assert_eq!(handshakes.next_unmet(after(HOLD)), None, "the first was met, and the second has time");
        let late = after(HOLD + Duration::from_millis(2));
        assert_eq!(handshakes.next_unmet(late).map(|held| held.number), Some(2));
        assert_eq!(handshakes.next_unmet(late).map(|held| held.number), Some(3));
        assert_eq!((handshakes.next_unmet(late), handshakes.len()), (None, 0));
        assert_eq!(handshakes.meet(source, &other_end(2)), None);
        assert!(handshakes.waiting.is_empty() && handshakes.order.is_empty());
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
