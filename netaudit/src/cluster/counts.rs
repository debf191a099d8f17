//! How much the index holds.

use std::fmt;

use super::{Cluster, Kind};

impl Cluster {
    /// How many objects of a kind there are; pods that are only remembered do not count.
    pub fn object_count(&self, kind: Kind) -> usize {
        match kind {
            foreign if foreign.is_foreign() => self.foreign.keys().filter(|key| key.kind == kind).count(),
            Kind::Namespace => self.namespaces.len(),
            Kind::Pod => self.pods().count(),
            Kind::Node => self.nodes.len(),
            Kind::Service => self.services.by_name.len(),
            Kind::EndpointSlice => self.services.slices.len(),
            Kind::CronJob => self.cron_jobs.len(),
            _ => self.declared.keys().filter(|key| key.kind == kind).count(),
        }
    }
}

/// Counts only: the whole index is too much to read.
impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = Kind::ALL.map(|kind| (kind.as_str(), self.object_count(kind)));
        f.debug_struct("Cluster").field("generation", &self.generation).field("objects", &counts).finish()
    }
}
