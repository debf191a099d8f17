//! Packets that the node's filter dropped: where the kernel keeps what the program reads, and what is counted of them.

use std::collections::HashSet;

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, PerCpuArray},
};
use netaudit_ebpf::abi::{DROP_REASONS, NO_FIELD, Settings, dropped};

use super::{
    DropCount, Feature, LoadError,
    attach::{Attacher, Hook},
    btf::{BtfError, Types},
    load::chain,
};
use crate::model::NetnsCookie;

const PROGRAM: &str = "on_dropped";
const NAMESPACES: &str = "NAMESPACES";
const COUNTS: &str = "DROP_COUNTS";

/// Namespaces that the kernel's map has room for.
const MOST_NAMESPACES: usize = 16_384;

/// Adds to `settings` what the program reads.
///
/// # Errors
///
/// When the kernel lacks it: then the program must not be loaded. Old kernels tell no reason.
pub fn settings(types: &Types<'_>, settings: &mut Settings) -> Result<(), BtfError> {
    const REASONS: &str = "skb_drop_reason";
    for (number, name) in settings.drop_reasons.iter_mut().zip(DROP_REASONS) {
        *number = types.enumerator(REASONS, &format!("SKB_DROP_REASON_{name}"))?.unwrap_or(0);
    }
    let (_closed_port, of_filters) = settings.drop_reasons.split_last().expect("there is more than one");
    if of_filters.iter().all(|number| *number == 0) {
        return Err(BtfError::Missing(format!("{REASONS} that means a filter")));
    }
    let byte = |structure: &str, path: &str| types.field(structure, path).map(super::btf::Field::byte);
    settings.skb_head = byte("sk_buff", "head")?;
    settings.skb_tail = byte("sk_buff", "tail")?;
    settings.skb_network_header = byte("sk_buff", "network_header")?;
    settings.skb_protocol = byte("sk_buff", "protocol")?;
    settings.skb_device = byte("sk_buff", "dev")?;
    settings.skb_socket = byte("sk_buff", "sk")?;
    // A kernel without connection tracking is no reason to see nothing.
    settings.skb_conntrack = byte("sk_buff", "_nfct").unwrap_or(NO_FIELD);
    settings.device_net = byte("net_device", "nd_net.net")?;
    settings.device_index = byte("net_device", "ifindex")?;
    Ok(())
}

/// Attaches the program, unless `found` says that it cannot read this kernel.
///
/// # Errors
///
/// When the object has no such program.
pub fn attach(
    ebpf: &mut Ebpf,
    attacher: &Attacher<'_>,
    found: Result<(), BtfError>,
) -> Result<Feature, LoadError> {
    let absent = match found {
        Err(missing) => Some(chain(&missing)),
        Ok(()) => {
            attacher.attach(ebpf, PROGRAM, Hook::Tracepoint("kfree_skb"))?.err().map(|error| chain(&error))
        }
    };
    Ok(Feature { name: Feature::DROPS, absent })
}

/// The maps of the program.
pub struct Drops {
    namespaces: HashMap<MapData, u64, u8>,
    known: HashSet<NetnsCookie>,
    counts: PerCpuArray<MapData, u64>,
}

impl Drops {
    /// Takes them out of the object.
    ///
    /// # Errors
    ///
    /// When it has none.
    pub fn new(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let mut take = |map: &'static str| ebpf.take_map(map).ok_or(LoadError::Lacks(map));
        let namespaces = take(NAMESPACES)?;
        let namespaces =
            HashMap::try_from(namespaces).map_err(|source| LoadError::Map { map: NAMESPACES, source })?;
        let counts: Map = take(COUNTS)?;
        let counts =
            PerCpuArray::try_from(counts).map_err(|source| LoadError::Map { map: COUNTS, source })?;
        Ok(Self { namespaces, known: HashSet::new(), counts })
    }

    /// Something of this node was met in a namespace: drops there are to be told.
    pub fn meet(&mut self, netns: NetnsCookie) {
        if self.known.contains(&netns) {
            return;
        }
        // The kernel's map forgets the oldest. Ours begins anew then, and namespaces come back with their next record.
        if self.known.len() >= MOST_NAMESPACES {
            self.known.clear();
        }
        match self.namespaces.insert(netns.0, 1, 0) {
            Ok(()) => drop(self.known.insert(netns)),
            Err(error) => tracing::debug!(%error, "drops in a namespace are not told yet"),
        }
    }

    /// What became of dropped packets since load, all CPUs together.
    pub fn counts(&self) -> Vec<DropCount> {
        let count = |index| {
            let told = dropped::name(index)?;
            let of_cpus = self.counts.get(&index, 0).ok()?;
            Some(DropCount { told, count: of_cpus.iter().sum() })
        };
        (0..dropped::COUNT).filter_map(count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_every_field_and_its_own_numbers() {
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            eprintln!("SKIPPED: no /sys/kernel/btf/vmlinux");
            return;
        };
        let types = Types::parse(&bytes).unwrap();
        let mut found = Settings::default();
        settings(&types, &mut found).unwrap();
        assert_ne!(found.drop_reasons[0], 0);
        assert_ne!(found.skb_head, found.skb_tail);
        assert!(found.device_net > 0 && found.skb_network_header > 0);
    }
}
