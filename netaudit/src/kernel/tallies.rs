//! What became of every record that the programs made, as they count it themselves.

use std::collections::BTreeMap;

use aya::maps::{Map, MapData, PerCpuArray};
use netaudit_ebpf::abi::{Tally, kind};

use super::{LoadError, Loss, ring::Ring};

/// The map's name.
pub const MAP: &str = "TALLIES";

/// What became of the records of one kind that were made on one CPU, since load. Those that are in none of the others
/// were delivered to the ring.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RecordCount {
    /// What kind of record, such as `tcp-established`.
    pub kind: &'static str,
    /// On which CPU.
    pub cpu: u32,
    /// All that were made.
    pub made: u64,
    /// Folded into a flow that stands for several: nothing but detail is lost.
    pub folded: u64,
    /// Folded into a number of their subject's, since there was no room for their key.
    pub folded_by_subject: u64,
    /// Nothing is left of them.
    pub lost: u64,
}

/// [`Tally`] as aya wants a value of a map.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Value(Tally);

// SAFETY: `Tally` holds only integers, without padding: its size is asserted.
unsafe impl aya::Pod for Value {}

/// The map of tallies.
pub struct Tallies(PerCpuArray<MapData, Value>);

impl Tallies {
    /// Reads `map`.
    ///
    /// # Errors
    ///
    /// When it is another kind of map.
    pub fn new(map: Map) -> Result<Self, LoadError> {
        PerCpuArray::try_from(map).map(Self).map_err(|source| LoadError::Map { map: MAP, source })
    }

    /// How many records were delivered to `ring` and taken out of it. What is made meanwhile may be counted or not.
    pub fn delivered(&self, ring: &mut Ring) -> u64 {
        let counts = self.counts();
        let mut unread = 0;
        ring.for_each_unread(|_| unread += 1);
        let delivered: u64 =
            counts.iter().map(|of| of.made - of.folded - of.folded_by_subject - of.lost).sum();
        delivered.saturating_sub(unread)
    }

    /// The counts by kind and CPU; without those of which nothing was made.
    pub fn counts(&self) -> Vec<RecordCount> {
        let mut counts = Vec::new();
        for index in 0..kind::COUNT {
            let (Some(kind), Ok(of_cpus)) = (kind::name(index), self.0.get(&index, 0)) else { continue };
            for (cpu, Value(tally)) in of_cpus.iter().enumerate().filter(|(_, value)| value.0.made > 0) {
                counts.push(RecordCount {
                    kind,
                    cpu: cpu as u32,
                    made: tally.made,
                    folded: tally.by_key,
                    folded_by_subject: tally.by_subject,
                    lost: tally.lost,
                });
            }
        }
        counts
    }
}

/// Adds up the counts of two sets of programs.
pub fn sum(counts: Vec<RecordCount>, others: Vec<RecordCount>) -> Vec<RecordCount> {
    if others.is_empty() {
        return counts;
    }
    let mut sums: BTreeMap<(&str, u32), RecordCount> = BTreeMap::new();
    for of in counts.into_iter().chain(others) {
        let none = RecordCount { kind: of.kind, cpu: of.cpu, ..RecordCount::default() };
        let sum = sums.entry((of.kind, of.cpu)).or_insert(none);
        sum.made += of.made;
        sum.folded += of.folded;
        sum.folded_by_subject += of.folded_by_subject;
        sum.lost += of.lost;
    }
    sums.into_values().collect()
}

/// The losses among `counts`, without those that are zero.
pub fn losses(counts: &[RecordCount]) -> Vec<Loss> {
    let losses = counts.iter().flat_map(|of| {
        let loss = |stage, count| Loss { stage, cause: of.kind, cpu: of.cpu, count };
        [loss("ring", of.lost), loss("fold", of.folded_by_subject)]
    });
    losses.filter(|loss| loss.count > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_folded_by_key_is_no_loss_and_the_rest_is() {
        let none = RecordCount { kind: "udp-sent", cpu: 0, made: 9, folded: 9, ..RecordCount::default() };
        let some = RecordCount { cpu: 1, made: 9, folded: 1, folded_by_subject: 3, lost: 2, ..none };
        let loss = |stage, count| Loss { stage, cause: "udp-sent", cpu: 1, count };
        assert_eq!(losses(&[none, some]), [loss("ring", 2), loss("fold", 3)]);
        let both = RecordCount { made: 18, folded: 2, folded_by_subject: 6, lost: 4, ..some };
        assert_eq!(sum(vec![none, some], vec![some]), [none, both]);
    }
}
