//! What became of every record that the programs made, as they count it themselves.

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray},
};
use netaudit_ebpf::abi::{Tally, kind};

use super::{LoadError, Loss};

const MAP: &str = "TALLIES";

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
    /// Takes it out of the object.
    ///
    /// # Errors
    ///
    /// When it has none.
    pub fn new(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let map = ebpf.take_map(MAP).ok_or(LoadError::Lacks(MAP))?;
        PerCpuArray::try_from(map).map(Self).map_err(|source| LoadError::Map { map: MAP, source })
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
    }
}
