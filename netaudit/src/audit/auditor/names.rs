//! The names of addresses outside the cluster: from DNS answers to flows, and to policies that name domains.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use smallvec::SmallVec;

use super::Auditor;
use crate::{
    audit::{Names, SeenName, UnreadableDns, is_truncated, read_dns},
    cluster::Endpoint,
    model::{Direction, DnsAnswer, NetnsCookie, Observation, Protocol, Timestamp},
};

/// How often names whose time is over are forgotten.
const EXPIRE_EVERY: Duration = Duration::from_secs(60);

/// The port of DNS.
const PORT: u16 = 53;

/// Whose answers count for policies that name domains. A pod can ask a server of its own, so not everybody's do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DnsServers {
    /// Services and pods of these namespaces.
    pub namespaces: Vec<Arc<str>>,
    /// These addresses.
    pub addresses: Vec<IpAddr>,
}

/// What is known of names, where DNS answers are seen.
#[derive(Debug)]
pub(super) struct Seen {
    names: Names,
    servers: DnsServers,
    expired: Timestamp,
}

impl Auditor {
    /// DNS answers are told: flows that leave the cluster get names. `servers` may speak for policies.
    pub fn set_sees_names(&mut self, servers: DnsServers) {
        self.names = Some(Seen { names: Names::default(), servers, expired: Timestamp::MIN }.into());
    }

    /// The names of addresses; `None` where DNS answers are not told.
    pub fn names(&self) -> Option<&Names> {
        self.names.as_ref().map(|seen| &seen.names)
    }

    /// Takes a DNS answer. Without [`Auditor::set_sees_names`] it means nothing.
    pub fn observe_dns(&mut self, answer: &DnsAnswer) {
        let Some(Seen { names, .. }) = self.names.as_deref_mut() else { return };
        names.counts_mut().truncated += u64::from(answer.is_cut || is_truncated(&answer.payload));
        match read_dns(&answer.payload, answer.is_cut) {
            Ok(told) => names.learn(answer.netns, server_of(answer), answer.at, &told),
            Err(UnreadableDns::Malformed) => names.counts_mut().malformed += 1,
            Err(UnreadableDns::NotAHost) => names.counts_mut().not_a_host += 1,
        }
    }

    pub(super) fn expire_names(&mut self, now: Timestamp) {
        if let Some(seen) = self.names.as_deref_mut()
            && now.since(seen.expired) >= EXPIRE_EVERY
        {
            seen.expired = now;
            seen.names.expire(now);
        }
    }

    /// The names of the address that a flow goes to.
    pub(super) fn names_of(&self, seen: &Observation) -> Vec<SeenName> {
        match &self.names {
            Some(known) if seen.direction == Direction::Egress => {
                let may_tell = |server| self.may_tell(&known.servers, server, seen.netns, seen.at);
                known.names.of(seen.netns, seen.peer_ip(), seen.at, may_tell)
            }
            _ => Vec::new(),
        }
    }

    /// Whether policies may go by what `server` told: it is named as such, or it is a node. On its own loopback a pod can have
    /// any server; the node has its own there.
    fn may_tell(&self, servers: &DnsServers, server: IpAddr, asked_in: NetnsCookie, at: Timestamp) -> bool {
        if servers.addresses.contains(&server) {
            return true;
        }
        if server.is_loopback() {
            return asked_in == self.settings.host;
        }
        if self.own_addresses.contains(&server) {
            return true;
        }
        match self.cluster.resolve(server, PORT, Protocol::Udp, at) {
            Endpoint::Service { namespace, .. } => servers.namespaces.contains(&namespace),
            Endpoint::Pod(pod) => {
                self.cluster.pod(pod).is_some_and(|pod| servers.namespaces.contains(&pod.namespace))
            }
            Endpoint::Node(_) => true,
            Endpoint::External | Endpoint::Ambiguous | Endpoint::Invalid(_) => false,
        }
    }
}

/// Who answered, as far as that can be believed: over its loopback a namespace answers itself.
fn server_of(answer: &DnsAnswer) -> IpAddr {
    let server = answer.server.to_canonical();
    match answer.over_loopback && !server.is_loopback() {
        true => IpAddr::V4(Ipv4Addr::LOCALHOST),
        false => server,
    }
}

/// Those of `names` that policies may go by, in order.
pub(super) fn that_count(names: &[SeenName]) -> SmallVec<[Arc<str>; 2]> {
    let mut counting: SmallVec<[Arc<str>; 2]> =
        names.iter().filter(|seen| seen.counts).map(|seen| seen.name.clone()).collect();
    counting.sort();
    counting.dedup();
    counting
}
