//! UDP flows that were sent and wait for what becomes of them.
//!
//! ```text
//!  sent ──► wait for a drop ──► wait for an answer ──► sent, as nothing came
//!               │   └─ a drop belongs to it: stopped       (or dropped, or answered, or rejected at any time)
//!               └──────── an answer ──► answered
//!                        └ an ICMP error ──► wait for a drop of the filter that sent it ──► rejected
//! ```
//!
//! Each wait is the same for all, so that each queue is in order of time.

use std::{collections::VecDeque, time::Duration};

use foldhash::HashMap;

use crate::model::{Answer, Observation, Timestamp};

/// How long a datagram's flow waits for a drop of the datagram. It follows within the microseconds that the packet takes
/// to the filter, or at most the milliseconds for which a busy processor leaves it in a queue.
pub(super) const HOLD_DROP: Duration = Duration::from_millis(100);

/// How long it waits for an answer: as long as a resolver does. What comes later finds the flow told as sent.
pub(super) const HOLD_ANSWER: Duration = Duration::from_secs(5);

/// Flows that may wait at once; more are told as sent at once.
const ROOM: usize = 65_536;

/// A flow by its socket and sequence number.
type Key = (u64, u32);

/// A flow that waits.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Held {
    /// Which of all records it is.
    pub number: u64,
    /// What is known of it so far.
    pub seen: Observation,
}

impl Held {
    fn key(&self) -> Key {
        (self.seen.socket, self.seen.sequence)
    }
}

/// Those that wait.
#[derive(Debug, Default)]
pub(super) struct Datagrams {
    sent: HashMap<Key, Held>,
    await_drop: VecDeque<(Timestamp, Key)>,
    await_answer: VecDeque<(Timestamp, Key)>,
    /// Those that an ICMP error answered.
    rejected: VecDeque<(Timestamp, Held)>,
}

impl Datagrams {
    /// Takes a flow that was sent at `now`. `false` where there is no room.
    pub fn hold(&mut self, held: Held, now: Timestamp, sees_drops: bool) -> bool {
        if self.len() >= ROOM {
            return false;
        }
        let key = held.key();
        self.sent.insert(key, held);
        if sees_drops {
            self.await_drop.push_back((now.plus(HOLD_DROP), key));
        } else {
            self.await_answer.push_back((now.plus(HOLD_ANSWER), key));
        }
        true
    }

    /// Gives a flow that waits its outcome, and takes it out. `None` where it does not wait (any more).
    pub fn answer(&mut self, answer: &Answer) -> Option<Held> {
        let Held { number, seen } = self.sent.remove(&(answer.socket, answer.sequence))?;
        let seen = Observation {
            outcome: answer.outcome,
            errno: answer.errno,
            waited: answer.at.since(seen.at),
            answered: true,
            ..seen
        };
        Some(Held { number, seen })
    }

    /// Takes a flow that an ICMP error answered at `now`, until a drop would have been told.
    pub fn hold_rejected(&mut self, held: Held, now: Timestamp) {
        self.rejected.push_back((now.plus(HOLD_DROP), held));
    }

    /// The next flow of which a drop would have been told by `now`. If none was, it goes on [waiting](Self::keep).
    pub fn next_beyond_drop(&mut self, now: Timestamp) -> Option<Held> {
        loop {
            let (_, key) = self.await_drop.pop_front_if(|(until, _)| *until <= now)?;
            // Else it was answered.
            if let Some(held) = self.sent.remove(&key) {
                return Some(held);
            }
        }
    }

    /// Keeps a flow of which no drop was told.
    pub fn keep(&mut self, held: Held, now: Timestamp) {
        let key = held.key();
        self.sent.insert(key, held);
        self.await_answer.push_back((now.plus(HOLD_ANSWER - HOLD_DROP), key));
    }

    /// The next flow that has waited for long enough.
    pub fn next_done(&mut self, now: Timestamp) -> Option<Held> {
        if let Some((_, held)) = self.rejected.pop_front_if(|(until, _)| *until <= now) {
            return Some(held);
        }
        loop {
            let (_, key) = self.await_answer.pop_front_if(|(until, _)| *until <= now)?;
            if let Some(held) = self.sent.remove(&key) {
                return Some(held);
            }
        }
    }

    /// Everything that waits, in order of time.
    pub fn take_all(&mut self) -> Vec<Observation> {
        let Self { sent, rejected, .. } = std::mem::take(self);
        let held = sent.into_values().chain(rejected.into_iter().map(|(_, held)| held));
        let mut all: Vec<_> = held.map(|held| held.seen).collect();
        all.sort_by_key(|seen| (seen.at, seen.socket, seen.sequence));
        all
    }

    /// The lowest number of those that wait.
    pub fn first(&self) -> Option<u64> {
        self.sent.values().chain(self.rejected.iter().map(|(_, held)| held)).map(|held| held.number).min()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.sent.len() + self.rejected.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit::testing::observation,
        model::{Errno, Outcome, Protocol},
    };

    fn sent(socket: u64) -> Held {
        let seen = Observation { protocol: Protocol::Udp, outcome: Outcome::Sent, socket, ..observation() };
        Held { number: socket, seen }
    }

    fn after(duration: Duration) -> Timestamp {
        observation().at.plus(duration)
    }

    #[test]
    fn an_answer_takes_its_flow_out_and_no_other() {
        let mut held = Datagrams::default();
        for socket in [1, 2] {
            assert!(held.hold(sent(socket), after(Duration::ZERO), true));
        }
        let at = after(Duration::from_millis(7));
        let answer = |socket, sequence| Answer {
            at,
            socket,
            sequence,
            outcome: Outcome::Rejected,
            errno: Some(Errno::ECONNREFUSED),
        };
        assert_eq!(held.answer(&answer(1, 1)), None, "of another flow of the socket");
        let rejected = held.answer(&answer(1, 0)).unwrap();
        assert_eq!((rejected.number, held.first()), (1, Some(2)));
        assert_eq!(
            (rejected.seen.outcome, rejected.seen.errno),
            (Outcome::Rejected, Some(Errno::ECONNREFUSED))
        );
        assert_eq!((rejected.seen.waited, rejected.seen.answered), (Duration::from_millis(7), true));
        assert_eq!(held.answer(&answer(1, 0)), None, "only once");
        assert_eq!(held.len(), 1);
        held.hold_rejected(rejected, at);
        assert_eq!((held.next_done(at), held.first()), (None, Some(1)));
        assert_eq!(held.next_done(at.plus(HOLD_DROP)), Some(rejected));
    }

    #[test]
    fn what_nothing_comes_for_waits_for_a_drop_and_then_for_an_answer() {
        let mut held = Datagrams::default();
        held.hold(sent(1), after(Duration::ZERO), true);
        let (drop, end) = (after(HOLD_DROP), after(HOLD_ANSWER));
        assert_eq!(held.next_beyond_drop(after(HOLD_DROP / 2)), None);
        let seen = held.next_beyond_drop(drop).unwrap();
        held.keep(seen, drop);
        assert_eq!((held.next_beyond_drop(end), held.next_done(end.minus(HOLD_DROP))), (None, None));
        assert_eq!((held.next_done(end), held.next_done(end), held.len()), (Some(seen), None, 0));
        // Where drops are not told.
        held.hold(sent(1), after(Duration::ZERO), false);
        assert_eq!((held.next_beyond_drop(end), held.next_done(end)), (None, Some(seen)));
    }

    #[test]
    fn room_is_bounded_and_the_end_takes_all_in_order() {
        let mut held = Datagrams::default();
        for socket in 0..ROOM as u64 {
            assert!(held.hold(sent(socket), after(Duration::ZERO), true));
        }
        assert!(!held.hold(sent(ROOM as u64), after(Duration::ZERO), true));
        let all = held.take_all();
        assert!(all.is_sorted_by_key(|seen| seen.socket));
        assert_eq!((all.len(), held.len(), held.next_done(Timestamp::MAX)), (ROOM, 0, None));
    }
}
