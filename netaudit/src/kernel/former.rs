//! Programs that another version, or the same one with other settings, has left attached: they go on beside the new ones until
//! what they have begun has ended.
//!
//! A flow belongs to the generation that was the newest when it began. The border between two is a moment at which both are
//! attached, so both tell what begins around it, and each flow is taken from one of them only: none is missing, none is
//! told twice. An attempt that began before the border ends in the programs that saw it begin.

use std::{collections::BTreeMap, io, time::Duration};

use aya::maps::{Map, MapData, PerCpuArray};
use netaudit_ebpf::abi::{self, kind};

use super::{
    Clock, Event,
    pins::{Generation, PinError},
    ring::Ring,
};
use crate::model::Timestamp;

/// Records that could not be delivered, by kind and CPU.
pub type LossCounts = BTreeMap<(u32, u32), u64>;

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
    losses: PerCpuArray<MapData, u64>,
    /// What begins in it is taken from its ring.
    pub span: Span,
}

/// What became of former generations.
#[derive(Default)]
pub struct Formers {
    /// Those that go on, the oldest first.
    pub running: Vec<Former>,
    /// What those that are gone had lost.
    pub lost: LossCounts,
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
            match open(&generation) {
                Ok((ring, losses)) if generation.version() == Some(abi::VERSION) => {
                    formers.running.push(Former { generation, ring, losses, span });
                }
                opened => {
                    // First detached, then counted: nothing is added meanwhile.
                    generation.remove()?;
                    match opened {
                        Ok((mut ring, losses)) => {
                            ring.for_each_unread(|_| formers.unreadable += 1);
                            add_losses(&losses, &mut formers.lost);
                        }
                        Err(error) => {
                            tracing::warn!(%error, "what an earlier run left in the kernel could not be read, and is removed");
                        }
                    }
                }
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
            add_losses(&former.losses, &mut self.lost);
            retired.push(former);
        }
        retired
    }

    /// All that they and those before them have lost.
    pub fn losses(&self) -> LossCounts {
        let mut sum = self.lost.clone();
        self.running.iter().for_each(|former| add_losses(&former.losses, &mut sum));
        sum
    }
}

/// Adds what a generation has lost.
pub fn add_losses(losses: &PerCpuArray<MapData, u64>, sum: &mut LossCounts) {
    for index in 0..kind::COUNT {
        let Ok(counts) = losses.get(&index, 0) else { continue };
        for (cpu, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            *sum.entry((index, cpu as u32)).or_default() += count;
        }
    }
}

fn open(generation: &Generation) -> io::Result<(Ring, PerCpuArray<MapData, u64>)> {
    let map = |name: &str| MapData::from_pin(generation.maps().join(name)).map_err(io::Error::other);
    let ring = Ring::new(Map::RingBuf(map("RECORDS")?))?;
    let losses = PerCpuArray::try_from(Map::PerCpuArray(map("LOSSES")?)).map_err(io::Error::other)?;
    Ok((ring, losses))
}
