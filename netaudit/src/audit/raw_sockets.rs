//! Sockets that skip what looks at TCP and UDP: who made how many, in a bounded number of series.

use std::{collections::BTreeMap, sync::Arc};

use super::{OTHER, Subject};
use crate::model::{RawSocket, RawSocketKind, Timestamp};

/// Series with full labels.
const SERIES: usize = 1_000;

/// The labels of one series of `netaudit_raw_sockets_total`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RawSocketKey {
    /// What it is.
    pub kind: RawSocketKind,
    /// Namespace of the subject; empty for the node, and for one that is not known.
    pub namespace: Arc<str>,
    /// Top controller of the subject, `node` or `unknown`; `other` when folded.
    pub workload: Arc<str>,
}

/// A raw socket, and who made it in whose namespace.
#[derive(Clone, Debug)]
pub struct RawSocketSeen {
    /// What the kernel saw.
    pub seen: RawSocket,
    /// Whose namespace it is in.
    pub subject: Subject,
    /// The labels that it is counted by.
    pub key: RawSocketKey,
    /// The actor's pod, if it is one.
    pub actor_pod: Option<Arc<str>>,
    /// The actor's container id, if it is one.
    pub actor_container: Option<Arc<str>>,
}

/// All of this agent run.
#[derive(Debug, Default)]
pub struct RawSockets {
    series: BTreeMap<RawSocketKey, (u64, Timestamp)>,
}

impl RawSockets {
    /// Counts one. When there are too many series, workloads fold into `other`, then namespaces.
    pub(super) fn count(&mut self, key: RawSocketKey, at: Timestamp) {
        let room =
            |key: &RawSocketKey, times| self.series.contains_key(key) || self.series.len() < SERIES * times;
        let key = if room(&key, 1) {
            key
        } else {
            let folded = RawSocketKey { workload: OTHER.into(), ..key };
            if room(&folded, 2) { folded } else { RawSocketKey { namespace: OTHER.into(), ..folded } }
        };
        let (count, last) = self.series.entry(key).or_insert((0, at));
        *count += 1;
        *last = at.max(*last);
    }

    /// Every series with its count and the time of the last, in order.
    pub fn series(&self) -> impl Iterator<Item = (&RawSocketKey, u64, Timestamp)> {
        self.series.iter().map(|(key, (count, last))| (key, *count, *last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(namespace: usize, workload: usize) -> RawSocketKey {
        RawSocketKey {
            kind: RawSocketKind::Ip,
            namespace: format!("n{namespace}").into(),
            workload: format!("w{workload}").into(),
        }
    }

    #[test]
    fn series_are_bounded_and_nothing_is_left_out() {
        let mut counted = RawSockets::default();
        let all = 5 * SERIES;
        for index in 0..all {
            counted.count(key(index, index), Timestamp(index as i64));
        }
        // Each kind may have one more in the end.
        assert_eq!(counted.series().count(), 2 * SERIES + 1);
        assert_eq!(counted.series().map(|(_, count, _)| count).sum::<u64>(), all as u64);
        counted.count(key(0, 0), Timestamp(7));
        assert_eq!(counted.series().next(), Some((&key(0, 0), 2, Timestamp(7))));
    }
}
