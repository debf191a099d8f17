//! DNS answers: attaching what sees them, and what is counted of packets that might be some.

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray},
};
use netaudit_ebpf::abi::dns;

use super::{
    DnsCount, Feature, LoadError,
    attach::{Attacher, Hook},
    load::chain,
};

const PROGRAM: &str = "on_answer";
const COUNTS: &str = "DNS_COUNTS";

/// Attaches the program: only where that is asked for, as every packet that reaches a socket pays for it.
///
/// # Errors
///
/// When the object has no such program.
pub fn attach(ebpf: &mut Ebpf, attacher: &Attacher<'_>) -> Result<Feature, LoadError> {
    let attached = attacher.attach(ebpf, PROGRAM, Hook::Cgroup)?;
    Ok(Feature { name: Feature::DNS_ANSWERS, absent: attached.err().map(|error| chain(&error)) })
}

/// The program's counts.
pub struct DnsCounts(PerCpuArray<MapData, u64>);

impl DnsCounts {
    /// Takes their map out of the object.
    ///
    /// # Errors
    ///
    /// When it has none.
    pub fn new(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let map = ebpf.take_map(COUNTS).ok_or(LoadError::Lacks(COUNTS))?;
        PerCpuArray::try_from(map).map(Self).map_err(|source| LoadError::Map { map: COUNTS, source })
    }

    /// What became of packets from port 53 since load, all CPUs together.
    pub fn counts(&self) -> Vec<DnsCount> {
        let count = |index| {
            let became = dns::name(index)?;
            let of_cpus = self.0.get(&index, 0).ok()?;
            Some(DnsCount { became, count: of_cpus.iter().sum() })
        };
        (0..dns::COUNT).filter_map(count).collect()
    }
}
