//! Flows that found no room in the ring: takes the counts that the programs keep of them, each exactly once.
//!
//! Two maps take turns. One takes what the programs fold; the other is empty, or is being read. They change places by an
//! entry of an array of maps, and the kernel's answer to that comes when no program can still be using the old entry.
//! So what is read and removed then is complete, and nothing is added to it meanwhile.

use std::num::NonZeroU64;

use aya::maps::{self, Array, ArrayOfMaps, HashMap, MapData, MapError};
use netaudit_ebpf::abi::{
    DropRecord, FlowRecord, Fold, FoldKey, WAITED_STEPS, drop_detail, flag, kind, level,
};

use super::{
    Clock, Event, LoadError,
    decode::{observation, packet_drop},
};
use crate::model::{Folded, NetnsCookie, Observation, PacketDrop};

/// The map of the maps that take folds now.
pub const PLACES: &str = "FOLDED";
/// The map of the numbers of keys that were ever made.
pub const COUNTS: &str = "FOLD_COUNTS";
/// The two maps of each level.
pub const MAPS: [[&str; 2]; level::COUNT as usize] =
    [["FOLDS_BY_KEY_A", "FOLDS_BY_KEY_B"], ["FOLDS_BY_SUBJECT_A", "FOLDS_BY_SUBJECT_B"]];

/// [`FoldKey`] as aya wants a key.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Key(FoldKey);

/// [`Fold`] as aya wants a value.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Value(Fold);

// SAFETY: both hold only integers, without padding: their sizes are asserted.
unsafe impl aya::Pod for Key {}
// SAFETY: as above.
unsafe impl aya::Pod for Value {}

type Map = HashMap<MapData, Key, Value>;

/// What programs of one level fold into, and what they did before.
struct Turns {
    level: u32,
    active: Map,
    idle: Map,
    /// Keys that had ever been made when the maps changed places.
    seen: u64,
    /// How often they must still be taken although no key has been made since: something may be left in one of the two.
    left: u8,
}

/// Takes it takes to come to both maps.
const BOTH: u8 = 2;

/// The maps of folds.
pub struct Folds {
    places: ArrayOfMaps<MapData, Map>,
    counts: Array<MapData, u64>,
    levels: [Turns; level::COUNT as usize],
}

impl Folds {
    /// Takes the maps by their names, and gives the programs the first ones. To be called before any is attached, or with
    /// `resumed` where some may have folded already.
    ///
    /// # Errors
    ///
    /// Those of `take`, and when the kernel refuses.
    pub fn new(
        mut take: impl FnMut(&'static str) -> Result<maps::Map, LoadError>,
        resumed: bool,
    ) -> Result<Self, LoadError> {
        let refused = |map| move |source| LoadError::Map { map, source };
        let mut places = ArrayOfMaps::try_from(take(PLACES)?).map_err(refused(PLACES))?;
        let counts = Array::try_from(take(COUNTS)?).map_err(refused(COUNTS))?;
        let mut turns = |level: u32| -> Result<Turns, LoadError> {
            let [a, b] = MAPS[level as usize];
            let active: Map = HashMap::try_from(take(a)?).map_err(refused(a))?;
            let idle = HashMap::try_from(take(b)?).map_err(refused(b))?;
            places.set(level, &active, 0).map_err(refused(PLACES))?;
            Ok(Turns { level, active, idle, seen: 0, left: if resumed { BOTH } else { 0 } })
        };
        let levels = [turns(level::KEY)?, turns(level::SUBJECT)?];
        Ok(Self { places, counts, levels })
    }

    /// How many keys have been made since the last time that folds were taken.
    pub fn waiting(&self) -> u64 {
        self.levels.iter().map(|turns| turns.waiting(&self.counts)).sum()
    }

    /// Passes on and removes what has been folded. Returns how many flows are in folds that cannot be read.
    ///
    /// # Errors
    ///
    /// When the kernel refuses. What was not passed on by then is still there for the next time.
    pub fn take(&mut self, clock: &Clock, sink: &mut dyn FnMut(Event)) -> Result<u64, MapError> {
        let mut unreadable = 0;
        for turns in &mut self.levels {
            if turns.waiting(&self.counts) == 0 {
                continue;
            }
            for (key, fold) in turns.take(&mut self.places, &self.counts)? {
                match event(turns.level, &key, &fold, clock) {
                    Some(event) => sink(event),
                    None => unreadable += fold.count,
                }
            }
        }
        Ok(unreadable)
    }
}

impl Turns {
    fn waiting(&self, counts: &Array<MapData, u64>) -> u64 {
        let made = counts.get(&self.level, 0).unwrap_or(self.seen);
        made.wrapping_sub(self.seen) + u64::from(self.left)
    }

    fn take(
        &mut self,
        places: &mut ArrayOfMaps<MapData, Map>,
        counts: &Array<MapData, u64>,
    ) -> Result<Vec<(FoldKey, Fold)>, MapError> {
        // Before the exchange: a key that is made meanwhile is then looked for once too often, and not once too rarely.
        let seen = counts.get(&self.level, 0)?;
        places.set(self.level, &self.idle, 0)?;
        std::mem::swap(&mut self.active, &mut self.idle);
        self.seen = seen;
        let left = std::mem::replace(&mut self.left, BOTH);
        let keys = self.idle.keys().collect::<Result<Vec<Key>, _>>()?;
        let mut taken = Vec::with_capacity(keys.len());
        for key in keys {
            let fold = self.idle.get(&key, 0);
            // What cannot be removed would come again, and so must not be told now.
            match fold.and_then(|fold| self.idle.remove(&key).map(|()| fold)) {
                Ok(Value(fold)) => taken.push((key.0, fold)),
                Err(error) => {
                    tracing::warn!(%error, "folded flows stay where they are for now");
                    return Ok(taken);
                }
            }
        }
        self.left = left.saturating_sub(1);
        Ok(taken)
    }
}

fn event(level: u32, key: &FoldKey, fold: &Fold, clock: &Clock) -> Option<Event> {
    if level == level::KEY && key.kind == kind::DROP {
        return folded_drop(key, fold, clock).map(Event::Drop);
    }
    if level == level::KEY {
        return folded(key, fold, clock).map(Event::Flow);
    }
    Some(Event::FoldedSubject {
        netns: NetnsCookie(key.netns),
        kind: kind::name(key.kind)?,
        count: NonZeroU64::new(fold.count)?,
        last: clock.wall(fold.last),
    })
}

/// The observation that stands for all of a fold.
fn folded(key: &FoldKey, fold: &Fold, clock: &Clock) -> Option<Observation> {
    if !(kind::TCP_ESTABLISHED..=kind::UDP_RECEIVED).contains(&key.kind) {
        return None;
    }
    let count = NonZeroU64::new(fold.count)?;
    let at_destination = matches!(key.kind, kind::TCP_ACCEPTED | kind::UDP_RECEIVED);
    let (local_port, remote_port) = if at_destination { (key.port, 0) } else { (0, key.port) };
    let record = FlowRecord {
        kind: key.kind,
        detail: key.detail,
        started: fold.last,
        at: fold.last.saturating_add(mean_wait(key, fold)),
        netns: key.netns,
        cgroup: key.cgroup,
        local: key.local,
        local_port,
        remote: key.remote,
        remote_port,
        requested: key.remote,
        requested_port: remote_port,
        flags: key.flags & !flag::ACTOR,
        ..FlowRecord::default()
    };
    let folded = Folded { count, first: clock.wall(fold.first) };
    Some(Observation { folded: Some(folded), ..observation(&record, clock) })
}

/// The dropped packet that stands for all of a fold.
fn folded_drop(key: &FoldKey, fold: &Fold, clock: &Clock) -> Option<PacketDrop> {
    let (reason, protocol, tracked) = drop_detail::unpack(key.detail);
    let record = DropRecord {
        kind: key.kind,
        reason,
        at: fold.last,
        netns: key.netns,
        source: key.remote,
        destination: key.local,
        source_port: 0,
        destination_port: key.port,
        protocol,
        sequence: 0,
        tracked,
    };
    let folded = Folded { count: NonZeroU64::new(fold.count)?, first: clock.wall(fold.first) };
    Some(PacketDrop { folded: Some(folded), ..packet_drop(&record, clock).ok()? })
}

/// The mean time waited, which lies between the same steps as each of them.
fn mean_wait(key: &FoldKey, fold: &Fold) -> u64 {
    let mean = fold.waited / fold.count.max(1);
    let step = |index: usize| WAITED_STEPS.get(index).copied();
    let least = (key.waited as usize).checked_sub(1).and_then(step).unwrap_or(0);
    let most = step(key.waited as usize).map_or(u64::MAX, |next| next - 1);
    mean.clamp(least.min(most), most)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use netaudit_ebpf::abi::{Address, detail};

    use super::*;
    use crate::model::{Actor, CgroupId, Comm, Direction, Outcome, Protocol, Timestamp};

    fn v4(a: u8, b: u8, c: u8, d: u8) -> Address {
        Address::v4(u32::from_ne_bytes([a, b, c, d]))
    }

    fn key(kind: u32) -> FoldKey {
        FoldKey {
            netns: 42,
            cgroup: 77,
            local: v4(10, 0, 0, 1),
            remote: v4(10, 0, 0, 2),
            kind,
            detail: 0,
            port: 8080,
            flags: 0,
            waited: 0,
        }
    }

    const FOLD: Fold = Fold { count: 4, first: 1_000, last: 9_000, waited: 800 };

    #[test]
    fn a_fold_becomes_one_observation_that_stands_for_all() {
        let clock = Clock::fixed(500);
        let seen = folded(&key(kind::TCP_ESTABLISHED), &FOLD, &clock);
        let expected = Observation {
            at: Timestamp(9_500),
            direction: Direction::Egress,
            protocol: Protocol::Tcp,
            netns: NetnsCookie(42),
            actor: Actor { cgroup: Some(CgroupId(77)), pid: 0, comm: Comm::default() },
            local: "10.0.0.1:0".parse().unwrap(),
            remote: "10.0.0.2:8080".parse().unwrap(),
            requested: None,
            outcome: Outcome::Established,
            errno: None,
            waited: Duration::from_nanos(200),
            answered: false,
            socket: 0,
            sequence: 0,
            folded: Some(Folded { count: NonZeroU64::new(4).unwrap(), first: Timestamp(1_500) }),
            handshake: None,
            translated: None,
            maybe_repeated: false,
        };
        assert_eq!(seen, Some(expected));
        assert_eq!((expected.count(), expected.first()), (4, Timestamp(1_500)));
        let seen = folded(&key(kind::UDP_RECEIVED), &FOLD, &clock).unwrap();
        assert_eq!((seen.direction, seen.local.port(), seen.remote.port()), (Direction::Ingress, 8080, 0));
        assert_eq!(seen.port(), 8080);
    }

    #[test]
    fn the_outcome_is_that_of_each_and_the_mean_wait_means_the_same() {
        let clock = Clock::fixed(0);
        let refused = FoldKey {
            detail: detail::pack(libc::ECONNREFUSED as u8, 0, 0, 0),
            flags: flag::ANSWERED,
            ..key(kind::TCP_CLOSED)
        };
        assert_eq!(folded(&refused, &FOLD, &clock).unwrap().outcome, Outcome::Refused);
        // A clock that ran backwards once must not carry the others over a step.
        for (step, waited, expected) in [
            (0, 4 * 100_000_000, 100_000_000),
            (0, u64::MAX, 199_999_999),
            (1, 4 * 300_000_000, 300_000_000),
            (1, 0, 200_000_000),
            (2, 0, 1_000_000_000),
            (9, 4 * 3_000_000_000, 3_000_000_000),
        ] {
            let key = FoldKey { waited: step, ..key(kind::TCP_CLOSED) };
            let seen = folded(&key, &Fold { waited, ..FOLD }, &clock).unwrap();
            assert_eq!(seen.waited, Duration::from_nanos(expected), "{step} {waited}");
        }
    }

    #[test]
    fn what_no_program_writes_is_refused() {
        let clock = Clock::fixed(0);
        for kind in [0, kind::CGROUP_MADE, kind::DROP, kind::COUNT, u32::MAX] {
            assert_eq!(folded(&key(kind), &FOLD, &clock), None);
        }
        assert_eq!(folded(&key(kind::UDP_SENT), &Fold { count: 0, ..FOLD }, &clock), None);
        let subject = FoldKey::subject(42, kind::UDP_SENT);
        assert_eq!(
            event(level::SUBJECT, &subject, &FOLD, &clock),
            Some(Event::FoldedSubject {
                netns: NetnsCookie(42),
                kind: "udp-sent",
                count: NonZeroU64::new(4).unwrap(),
                last: Timestamp(9_000),
            })
        );
        assert_eq!(event(level::SUBJECT, &FoldKey::subject(42, 99), &FOLD, &clock), None);
    }
}
