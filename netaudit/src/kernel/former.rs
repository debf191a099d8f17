//! Programs that another version, or the same one with other settings, has left attached: they go on beside the new ones until
//! what they have begun has ended.
//!
//! A flow belongs to the generation that was the newest when it began. The border between two is a moment at which both are
//! attached, so both tell what begins around it, and each flow is taken from one of them only: none is missing, none is
//! told twice. An attempt that began before the border ends in the programs that saw it begin.

use std::{io, time::Duration};

use aya::maps::{Map, MapData};
use netaudit_ebpf::abi;

use super::{
    Clock, Event, LoadError, RecordCount,
    folds::{self, Folds},
    kept::{self, Kept},
    pins::{Generation, PinError},
    ring::{Position, Ring},
    tallies::{self, Tallies, sum},
};
use crate::model::Timestamp;

/// The moments between which what begins is taken from a generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// The first.
    pub from: Timestamp,
    /// The first that is beyond.
    pub until: Timestamp,
}

impl Span {
    /// Whether what `event` tells is to be taken. Cgroups and answers are: that they are told twice changes nothing, and an
    /// answer belongs to a flow that was taken.
    pub fn holds(&self, event: &Event) -> bool {
        let at = match event {
            Event::Flow(seen) => seen.at,
            Event::Drop(seen) => seen.at,
            Event::RawSocket(seen) => seen.at,
            Event::Dns(seen) => seen.at,
            Event::FoldedSubject { last, .. } => *last,
            Event::Answer(_) | Event::Cgroup { .. } | Event::CgroupGone { .. } | Event::Task { .. } => {
                return true;
            }
        };
        (self.from..self.until).contains(&at)
    }
}

/// A former generation.
pub struct Former {
    generation: Generation,
    /// Its ring, to be read to the end.
    pub ring: Ring,
    /// What became of its records.
    pub tallies: Tallies,
    /// What found no room in its ring.
    pub folds: Folds,
    /// What begins in it is taken from its ring.
    pub span: Span,
}

/// What became of former generations.
#[derive(Default)]
pub struct Formers {
    /// Those that go on, the oldest first.
    pub running: Vec<Former>,
    /// What became of the records of those that are gone.
    gone: Vec<RecordCount>,
    /// Records of another version, which nobody can read any more.
    pub unreadable: u64,
    /// How long they go on.
    overlap: Duration,
}

impl Formers {
    /// Takes over what is there: (generation, where it ends in nanoseconds since boot), the oldest first. Each goes on for
    /// `overlap` after that. What cannot be read is removed, and counted.
    ///
    /// # Errors
    ///
    /// When one can be neither read nor removed.
    pub fn take_over(
        found: Vec<(Generation, u64)>,
        overlap: Duration,
        clock: &Clock,
    ) -> Result<Self, PinError> {
        let mut formers = Self { overlap, ..Self::default() };
        let mut from = Timestamp(i64::MIN);
        for (generation, until) in found {
            let span = Span { from, until: clock.wall(until) };
            from = span.until;
            if generation.version() == Some(abi::VERSION) {
                match open(generation.clone(), span) {
                    Ok(former) => {
                        formers.running.push(former);
                        continue;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "what an earlier run left in the kernel cannot be read, and is removed");
                    }
                }
            }
            // First detached, then counted: nothing is added meanwhile.
            let ring = ring(&generation);
            generation.remove()?;
            if let Ok(mut ring) = ring {
                ring.for_each_unread(|_| formers.unreadable += 1);
            }
        }
        Ok(formers)
    }

    /// Detaches those whose time is up, and hands them out: what is still in their rings is to be read.
    pub fn retire(&mut self, now: Timestamp) -> Vec<Former> {
        let mut retired = Vec::new();
        while self.running.first().is_some_and(|former| now.since(former.span.until) >= self.overlap) {
            let former = self.running.remove(0);
            match former.generation.remove() {
                Ok(()) => tracing::info!("the programs of an earlier version have ended"),
                Err(error) => {
                    tracing::warn!(%error, "the programs of an earlier version stay: `netaudit uninstall` removes them")
                }
            }
            self.gone = sum(std::mem::take(&mut self.gone), former.tallies.counts());
            retired.push(former);
        }
        retired
    }

    /// What became of all records of them and of those before them.
    pub fn record_counts(&self) -> Vec<RecordCount> {
        self.running.iter().fold(self.gone.clone(), |counts, former| sum(counts, former.tallies.counts()))
    }
}

fn map(generation: &Generation, name: &str) -> io::Result<MapData> {
    MapData::from_pin(generation.maps().join(name)).map_err(io::Error::other)
}

fn ring(generation: &Generation) -> io::Result<Ring> {
    // One of a version that did not keep it may have told of everything.
    let taken = map(generation, kept::MAP).map(Map::Array).map_or(Ok(Position::new(usize::MAX)), |map| {
        Kept::new(map).map(|kept| kept.taken()).map_err(io::Error::other)
    });
    Ring::new(Map::RingBuf(map(generation, "RECORDS")?), taken?)
}

fn open(generation: Generation, span: Span) -> io::Result<Former> {
    let tallies = Map::PerCpuArray(map(&generation, tallies::MAP)?);
    let folds = Folds::new(
        |name| {
            let kind = match name {
                folds::PLACES => Map::ArrayOfMaps,
                folds::COUNTS => Map::Array,
                _ => Map::HashMap,
            };
            map(&generation, name).map(kind).map_err(LoadError::Ring)
        },
        true,
    );
    Ok(Former {
        ring: ring(&generation)?,
        tallies: Tallies::new(tallies).map_err(io::Error::other)?,
        folds: folds.map_err(io::Error::other)?,
        generation,
        span,
    })
}
