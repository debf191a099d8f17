//! Connections that go on: what is known of each from look to look, and how many there are.

use std::collections::BTreeMap;

use foldhash::HashMap;

use super::{FlowId, ViolationKey};
use crate::model::{Decision, Direction, Timestamp, Verdict};

/// Connections that are remembered from one look to the next. The others are judged and credited just the same.
pub(super) const MOST: usize = 65_536;

/// Why a connection of which a flow tells is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Open {
    /// It was open before the agent started, and is told for the first time.
    BeforeStart,
    /// It was told before, when policies allowed it, and now they do not.
    Since(Timestamp),
}

/// Open connections by direction and verdict, and those of which nothing is said by reason.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OpenCounts {
    judged: [[u64; 3]; 2],
    unjudged: BTreeMap<&'static str, u64>,
}

/// Why an open connection is not judged: what the kernel cannot tell of its end, and that its peer's address is nobody's or somebody else's by now.
const REASONS: [&str; 4] = ["kernel", "no port", "ambiguous", PEER_GONE];
pub(super) const PEER_GONE: &str = "peer gone";

const VERDICTS: [&str; 3] = ["allowed", "denied", "unknown"];

impl OpenCounts {
    pub(super) fn count(&mut self, direction: Direction, verdict: &Verdict) {
        let verdict = match verdict.decision {
            Decision::Allowed(_) => 0,
            Decision::Denied(_) => 1,
            Decision::Unknown(_) => 2,
        };
        self.judged[direction as usize][verdict] += 1;
    }

    /// By direction and verdict, also those that are 0.
    pub fn judged(&self) -> impl Iterator<Item = (Direction, &'static str, u64)> + '_ {
        Direction::ALL.into_iter().flat_map(move |direction| {
            let counts = VERDICTS.into_iter().zip(self.judged[direction as usize]);
            counts.map(move |(verdict, count)| (direction, verdict, count))
        })
    }

    /// By what is missing, also those that are 0.
    pub fn unjudged(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        REASONS.into_iter().map(|reason| (reason, self.unjudged.get(reason).copied().unwrap_or(0)))
    }

    /// All.
    pub fn total(&self) -> u64 {
        self.judged.iter().flatten().chain(self.unjudged.values()).sum()
    }
}

/// What a connection was judged by earlier looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Before {
    /// Nothing that is certain; whoever saw it begin may have.
    Nothing,
    /// The same, and it was told by a look only.
    Undecided,
    /// Allowed, the last time that it was certain.
    Allowed,
    /// Denied, the last time that it was certain.
    Denied,
}

/// What is remembered of a connection.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// The latest look that found it.
    look: u32,
    before: Before,
    /// Its peer's address is somebody else's, for good.
    is_peer_gone: bool,
}

/// A violation that a look told, and that goes on for as long as its connection does and is denied.
#[derive(Clone, Debug)]
pub(super) struct GoesOn {
    /// The series that it was told in, before any folding.
    pub key: ViolationKey,
    /// Whether the source's name is one of ever new ones.
    pub unbounded: bool,
    /// The flow that told it.
    pub flow: FlowId,
}

/// All of this agent run.
#[derive(Debug, Default)]
pub struct OpenConnections {
    known: HashMap<u64, Known>,
    /// Those of the known whose violation goes on.
    violating: HashMap<u64, GoesOn>,
    look: u32,
    looking: OpenCounts,
    whole: OpenCounts,
    found: OpenCounts,
    forgotten: u64,
    blind_readers: usize,
}

/// Whether a connection was met before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Met {
    /// In this very look: another descriptor of it.
    Again,
    /// In an earlier look.
    Before(Before),
    /// Never, or it is not remembered.
    Never,
}

impl OpenConnections {
    /// Those of the latest look that came to its end.
    pub fn counts(&self) -> &OpenCounts {
        &self.whole
    }

    /// Those that were open before the agent started, each once, since the start.
    pub fn found(&self) -> &OpenCounts {
        &self.found
    }

    /// How often one was not remembered, since too many are open.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// UDP sockets at the latest look whose programs read without asking who sent.
    pub fn blind_readers(&self) -> usize {
        self.blind_readers
    }

    pub(super) fn begin(&mut self) {
        self.look = self.look.wrapping_add(1);
        self.looking = OpenCounts::default();
    }

    /// The look has met every connection: what it has not met is closed.
    pub(super) fn end(&mut self, blind_readers: usize) {
        self.blind_readers = blind_readers;
        let look = self.look;
        self.known.retain(|_, known| known.look == look);
        self.known.shrink_to(2 * self.known.len());
        self.violating.retain(|socket, _| self.known.contains_key(socket));
        self.violating.shrink_to(2 * self.violating.len());
        self.whole = std::mem::take(&mut self.looking);
    }

    /// A connection with this cookie is met.
    pub(super) fn meet(&mut self, socket: u64) -> Met {
        let look = self.look;
        if let Some(known) = self.known.get_mut(&socket) {
            let again = known.look == look;
            known.look = look;
            return if again { Met::Again } else { Met::Before(known.before) };
        }
        if self.known.len() < MOST {
            self.known.insert(socket, Known { look, before: Before::Nothing, is_peer_gone: false });
        } else {
            self.forgotten += 1;
        }
        Met::Never
    }

    /// What the verdict on it is now.
    pub(super) fn judged(&mut self, socket: u64, direction: Direction, verdict: &Verdict, is_found: bool) {
        self.looking.count(direction, verdict);
        if is_found {
            self.found.count(direction, verdict);
        }
        if matches!(verdict.decision, Decision::Allowed(_)) {
            self.violating.remove(&socket);
        }
        let Some(known) = self.known.get_mut(&socket) else { return };
        known.before = match (&verdict.decision, known.before) {
            (Decision::Allowed(_), _) => Before::Allowed,
            (Decision::Denied(_), _) => Before::Denied,
            (Decision::Unknown(_), Before::Nothing) if is_found => Before::Undecided,
            // It may become certain again, and be what it was.
            (Decision::Unknown(_), before) => before,
        };
    }

    /// It was told as a violation, which goes on until the connection is closed or allowed.
    pub(super) fn violates(&mut self, socket: u64, violation: GoesOn) {
        if self.known.contains_key(&socket) {
            self.violating.insert(socket, violation);
        }
    }

    /// The violation that it was told as, if that goes on.
    pub(super) fn violation(&self, socket: u64) -> Option<&GoesOn> {
        self.violating.get(&socket)
    }

    /// Whether it was once said that its peer is gone: who comes to have the address says nothing of it either.
    pub(super) fn is_peer_gone(&self, socket: u64) -> bool {
        self.known.get(&socket).is_some_and(|known| known.is_peer_gone)
    }

    /// It is not judged from now on.
    pub(super) fn peer_gone(&mut self, socket: u64) {
        if let Some(known) = self.known.get_mut(&socket) {
            known.is_peer_gone = true;
        }
        self.unjudged(PEER_GONE);
    }

    /// It is not judged. What it was judged before stays.
    pub(super) fn unjudged(&mut self, reason: &'static str) {
        *self.looking.unjudged.entry(reason).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Cause, Denial};

    fn allowed() -> Verdict {
        Verdict::plain(Decision::Allowed(Cause::NotIsolated))
    }

    fn denied() -> Verdict {
        Verdict::plain(Decision::Denied(Denial::Isolation([].into())))
    }

    #[test]
    fn one_is_met_once_a_look_and_remembered_until_it_is_closed() {
        let mut open = OpenConnections::default();
        open.begin();
        assert_eq!((open.meet(7), open.meet(7)), (Met::Never, Met::Again));
        open.judged(7, Direction::Egress, &allowed(), true);
        assert_eq!(open.counts().total(), 0, "not before the look ends");
        open.end(0);
        assert_eq!((open.counts().total(), open.found().total()), (1, 1));
        open.begin();
        assert_eq!(open.meet(7), Met::Before(Before::Allowed));
        open.judged(7, Direction::Egress, &denied(), false);
        open.end(0);
        assert_eq!(open.counts().judged().find(|it| it.2 > 0), Some((Direction::Egress, "denied", 1)));
        open.begin();
        open.end(0);
        open.begin();
        assert_eq!(open.meet(7), Met::Never, "it was closed");
        assert_eq!(open.found().total(), 1);
    }

    #[test]
    fn what_is_not_judged_keeps_what_it_was_judged_before() {
        let mut open = OpenConnections::default();
        open.begin();
        open.meet(7);
        open.judged(7, Direction::Ingress, &denied(), false);
        open.end(0);
        open.begin();
        open.meet(7);
        open.unjudged(PEER_GONE);
        open.end(0);
        assert_eq!(open.counts().unjudged().find(|it| it.1 > 0), Some((PEER_GONE, 1)));
        open.begin();
        assert_eq!(open.meet(7), Met::Before(Before::Denied));
    }

    #[test]
    fn only_what_is_certain_is_remembered() {
        let mut open = OpenConnections::default();
        let unknown = Verdict::unknown(crate::model::Gap::PodNotSeen);
        let mut look = |verdicts: [&Verdict; 2], is_found| {
            open.begin();
            let met = [7, 8].map(|socket| open.meet(socket));
            open.judged(7, Direction::Egress, verdicts[0], is_found);
            open.judged(8, Direction::Egress, verdicts[1], false);
            open.end(0);
            met
        };
        look([&unknown, &unknown], true);
        let before = [Met::Before(Before::Undecided), Met::Before(Before::Nothing)];
        assert_eq!(look([&allowed(), &denied()], false), before);
        let certain = [Met::Before(Before::Allowed), Met::Before(Before::Denied)];
        assert_eq!(look([&unknown, &unknown], false), certain);
        assert_eq!(look([&unknown, &unknown], false), certain);
    }

    #[test]
    fn memory_is_bounded_and_the_rest_is_counted() {
        let mut open = OpenConnections::default();
        for _ in 0..2 {
            open.begin();
            for socket in 0..MOST as u64 + 10 {
                open.meet(socket);
                open.judged(socket, Direction::Egress, &allowed(), false);
            }
            open.end(0);
        }
        assert_eq!((open.known.len(), open.forgotten()), (MOST, 20));
        assert_eq!(open.counts().total(), MOST as u64 + 10);
    }
}
