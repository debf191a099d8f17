//! Where flows went whose address was translated after the socket: by the other end, or by whom one can ask.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{Auditor, Subject, Waiting};
use crate::{
    audit::{Flow, Owner, datagrams::Held, resolve::canonical},
    cluster::{Backend, Endpoint},
    model::{Direction, NetnsCookie, Observation, Outcome, Protocol, Timestamp, Translated, Translation},
};

/// Ports that pods' namespaces redirect to, of which more are not remembered.
const MAX_REDIRECTS: usize = 16_384;

/// How long one is remembered of which nothing shows any more: as long as pods of one node may not talk to each other.
const REDIRECT_MEMORY: Duration = Duration::from_hours(24);

/// A flow as the node's connection tracking knows it before any translation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tuple {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where it comes from.
    pub source: SocketAddr,
    /// The address that its socket names.
    pub destination: SocketAddr,
}

impl Auditor {
    /// Whoever calls answers [`Auditor::translate`]: flows whose verdict hangs on it wait for that.
    pub fn set_asks_for_translations(&mut self) {
        self.asks_for_translations = true;
    }

    /// Asks where flows went whose Service's endpoints would get different verdicts, and judges them. To be called soon after
    /// their records were observed, since connection tracking forgets.
    pub fn translate(
        &mut self,
        ask: &mut dyn FnMut(&Tuple) -> Option<SocketAddr>,
        now: Timestamp,
        flows: &mut Vec<Flow>,
    ) {
        for mut waiting in std::mem::take(&mut self.asking) {
            let seen = &mut waiting.seen;
            let translated = self.tuple(seen).and_then(|tuple| {
                let to = canonical(ask(&tuple)?);
                (to != tuple.destination).then_some(Translated { to, by: Translation::Conntrack })
            });
            if translated.is_some() {
                seen.translated = translated;
            }
            match self.try_judge_without_asking(seen, waiting.until <= now) {
                Ok(flow) => flows.push(flow),
                Err(hold) => self.held.push_back(Waiting { until: now.plus(hold), ..waiting }),
            }
        }
    }

    /// What connection tracking would know a flow by. `None` where not all of it is known.
    pub(super) fn tuple(&mut self, seen: &Observation) -> Option<Tuple> {
        let (mut source, destination) = (canonical(seen.local), canonical(seen.remote));
        // A datagram's socket may have chosen no address: it is the pod's.
        if source.ip().is_unspecified() {
            let Subject::Pod(pod) = self.subject(seen) else { return None };
            let of_family = |ip: &&IpAddr| ip.is_ipv4() == destination.is_ipv4();
            source.set_ip(*self.cluster.pod(pod)?.ips.iter().find(of_family)?);
        }
        (source.port() != 0).then_some(Tuple { protocol: seen.protocol, source, destination })
    }

    /// Whether a record is of a connection that may lead to another end on this node than it names.
    pub(super) fn may_be_met(&self, seen: &Observation) -> bool {
        is_made(seen)
            && seen.netns != self.settings.host
            && seen.folded.is_none()
            && !seen.peer_ip().is_loopback()
    }

    /// Takes the end that accepts: the one that connected is judged by where it came out. Returns the end that accepts with
    /// the address that it was reached at, before its own namespace redirected it.
    pub(super) fn meet(
        &mut self,
        accepted: &Observation,
        now: Timestamp,
        flows: &mut Vec<Flow>,
    ) -> Observation {
        let mut accepted = *accepted;
        let met = self.handshakes.meet(canonical(accepted.remote), &accepted);
        let Some(Held { number, mut seen }) = met else { return accepted };
        self.join(&mut seen, &mut accepted);
        self.judge_or_hold(&seen, number, now, flows);
        accepted
    }

    /// Tells each end of a connection what the other one shows: the one that was `made` where it went, and the one that `accepted`
    /// the address that it was reached at.
    pub(super) fn join(&mut self, made: &mut Observation, accepted: &mut Observation) {
        let (asked, to) = (canonical(made.remote), canonical(accepted.local));
        if accepted.netns == made.netns {
            made.translated = (to != asked).then_some(Translated { to, by: Translation::Proxy });
            return;
        }
        let reached = self.reached(made, to);
        let translated = Translated { to: reached, by: Translation::Destination };
        made.translated = (reached != asked).then_some(translated);
        if reached != to {
            accepted.local = reached;
            accepted.translated = Some(Translated { to, by: Translation::Proxy });
            self.remember_redirect(accepted.netns, to.port(), accepted.at);
        }
    }

    /// At which address a connection that came out at `to` reached the namespace there, which may have redirected it to
    /// another port: at the one that it named, or that its Service names there.
    fn reached(&self, seen: &Observation, to: SocketAddr) -> SocketAddr {
        let asked = canonical(seen.remote);
        let backends = self.backends(seen).unwrap_or_default();
        let there = backends.iter().map(Backend::address);
        let mut there = there.filter(|address| address.ip() == to.ip());
        if asked.ip() == to.ip() {
            asked
        } else if there.clone().any(|address| address == to) {
            to
        } else {
            there.next().unwrap_or(to)
        }
    }

    /// A pod's namespace redirects connections to this port of its own.
    fn remember_redirect(&mut self, netns: NetnsCookie, port: u16, at: Timestamp) {
        let key = (netns, port);
        if self.redirects.len() < MAX_REDIRECTS || self.redirects.contains_key(&key) {
            self.redirects.insert(key, at);
        }
    }

    /// Whether a connection may have been addressed to another port than the one that accepted it.
    pub(super) fn hides_its_port(&self, seen: &Observation) -> bool {
        seen.outcome == Outcome::Accepted
            && seen.translated.is_none()
            && !seen.peer_ip().is_loopback()
            && self.redirects.contains_key(&(seen.netns, seen.local.port()))
    }

    /// Forgets the redirects of namespaces that are gone, and those that have not shown for long.
    pub(super) fn expire_redirects(&mut self, now: Timestamp) {
        let Self { redirects, attribution, .. } = self;
        redirects.retain(|(netns, _), at| {
            attribution.owner(*netns) != Owner::Unknown && now.since(*at) < REDIRECT_MEMORY
        });
    }

    /// Judges the connections of which no other end was seen until `now`.
    pub(super) fn judge_unmet(&mut self, until: Timestamp, now: Timestamp, flows: &mut Vec<Flow>) {
        while let Some(Held { number, seen }) = self.handshakes.next_unmet(until) {
            self.judge_or_hold(&seen, number, now, flows);
        }
    }

    /// Whether the other end, or where it was translated to, is an address of the pods' network that nobody owns: most likely a
    /// new pod, of which the watch will tell.
    pub(super) fn awaits_peer(&self, seen: &Observation) -> bool {
        let led_to = seen.translated.filter(|_| seen.direction == Direction::Egress).map(|it| it.to);
        [Some(seen.remote), led_to].into_iter().flatten().any(|end| {
            let ip = end.ip().to_canonical();
            // The network first: it is the cheapest question, and most peers that nobody owns fail it.
            self.cluster.in_pod_network(ip)
                && !self.own_addresses.contains(&ip)
                && self.cluster.resolve(ip, end.port(), seen.protocol, seen.at) == Endpoint::External
        })
    }

    /// Where a packet of this attempt was going when it was dropped or found a closed port.
    pub(super) fn dropped_on_its_way_to(
        &mut self,
        seen: &Observation,
        subject: &Subject,
    ) -> Option<Translated> {
        if self.drops.len() == 0 || seen.direction != Direction::Egress {
            return None;
        }
        let belongs = |drop: &_| self.belongs(drop, seen, subject);
        let to = self.drops.find(seen.protocol, seen.local.port(), belongs)?.destination;
        (to != canonical(seen.remote)).then_some(Translated { to, by: Translation::Destination })
    }
}

/// Whether a record is of an end that connected.
fn is_made(seen: &Observation) -> bool {
    (seen.direction, seen.protocol, seen.outcome) == (Direction::Egress, Protocol::Tcp, Outcome::Established)
}
