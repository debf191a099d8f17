//! With whom: an address, port and time turned into the other end, and the verdict of both ends.
//!
//! What resolves a Service address is a ladder:
//!
//! 1. an address that was rewritten at the socket is already the endpoint's;
//! 2. a Service address is judged by all endpoints of its slices, where they agree (target ports!);
//! 3. where they do not, the node's connection tracking is asked, by whoever calls: [`Judged::asks_for_translation`]. Of a
//!    connection that is open for long it is asked first, since the endpoints were others: [`Judged::may_have_led_elsewhere`];
//! 4. or the other end has shown itself. Both come as [`Observation::translated`].
//!
//! Above that the verdict is `unknown: endpoints disagree`.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use foldhash::HashSet;
use smallvec::SmallVec;

use super::{Peer, PeerKind, SeenName};
use crate::{
    cluster::{Backend, Cluster, Endpoint, Party, PodId},
    model::{Cause, Decision, Direction, Exemption, Gap, Observation, Translated, Translation, Verdict},
};

/// The other end of a flow, judged.
#[derive(Clone, Debug)]
pub(super) struct Judged {
    pub peer: Peer,
    pub port: u16,
    pub requested: Option<SocketAddr>,
    pub verdict: Arc<Verdict>,
    pub other_end: Option<Arc<Verdict>>,
    pub names: Vec<SeenName>,
    /// The rung of the ladder.
    pub translation: Option<Translation>,
    /// An endpoint must be a pod, and is none that is known: most likely a new one, of which the watch will tell.
    pub awaits_endpoint: bool,
}

impl Judged {
    /// Whether it would be known if somebody told where the flow of `seen` went.
    pub fn asks_for_translation(&self, seen: &Observation) -> bool {
        seen.direction == Direction::Egress
            && seen.translated.is_none()
            && self.verdict.decision == Decision::Unknown(Gap::EndpointsDisagree)
    }

    /// Whether it is judged by the endpoints that a Service has now, or has none.
    pub fn may_have_led_elsewhere(&self, seen: &Observation) -> bool {
        seen.direction == Direction::Egress
            && seen.translated.is_none()
            && (self.translation == Some(Translation::Endpoints)
                || matches!(
                    self.verdict.decision,
                    Decision::Unknown(Gap::EndpointsDisagree | Gap::NoEndpoints)
                ))
    }
}

/// What the caller knows of the node itself, which is in no Kubernetes object.
pub(super) struct NodeView<'a> {
    /// The name of this agent's node.
    pub name: &'a Arc<str>,
    /// Every address of the node's own namespace.
    pub own_addresses: &'a HashSet<IpAddr>,
    /// For ingress from the node: whether a socket of the node's namespace is the other end (the kubelet's probe).
    pub paired_with_host: bool,
    /// Names of the other end's address that policies may go by, in order. It may have more.
    pub names: &'a [Arc<str>],
}

/// Judges a flow of a pod.
pub(super) fn judge_pod(
    cluster: &mut Cluster,
    pod: PodId,
    seen: &Observation,
    node: &NodeView<'_>,
) -> Judged {
    // What redirected the end that accepts came after all policies.
    if seen.direction == Direction::Ingress {
        let translation = seen.translated.map(|translated| translated.by);
        return Judged { translation, ..judge_as_addressed(cluster, pod, seen, node) };
    }
    let mut carried = *seen;
    if let Some(Translated { to, by }) = seen.translated {
        // What is the same for all endpoints is told the same way, whether or not the other end was seen. One that is none of
        // them any more is not judged by them.
        let is_one = |all: &[Backend]| all.iter().any(|backend| backend.address() == to);
        if by != Translation::Proxy && backends(cluster, seen, node).is_some_and(|all| is_one(&all)) {
            let judged = judge_as_addressed(cluster, pod, seen, node);
            if judged.translation == Some(Translation::Endpoints) {
                return judged;
            }
        }
        carried = Observation { remote: to, requested: Some(asked_for(seen)), ..carried };
    }
    let mut judged = judge_as_addressed(cluster, pod, &carried, node);
    if judged.peer.service.is_none() {
        judged.peer.service = rewritten_from(cluster, &carried, node);
    }
    match seen.translated {
        Some(Translated { by: Translation::Proxy, .. }) => judged.proxied(),
        Some(Translated { by, .. }) => Judged { translation: Some(by), ..judged },
        None => judged,
    }
}

fn judge_as_addressed(cluster: &mut Cluster, pod: PodId, seen: &Observation, node: &NodeView<'_>) -> Judged {
    let ip = seen.peer_ip();
    let port = seen.port();
    let judged = |kind, verdict: Arc<Verdict>| Judged {
        peer: Peer { kind, ip, service: None },
        port,
        requested: asked(seen, SocketAddr::new(ip, seen.remote.port())),
        verdict,
        other_end: None,
        names: Vec::new(),
        translation: seen.requested.map(|_| Translation::Socket),
        awaits_endpoint: false,
    };
    if ip.is_loopback() {
        let judged = judged(PeerKind::Loopback, Verdict::exempt(Exemption::Loopback).into());
        let asked_elsewhere = !asked_for(seen).ip().to_canonical().is_loopback();
        return if asked_elsewhere { judged.proxied() } else { judged };
    }
    let endpoint = match seen.direction {
        // A port of a node's address that belongs to a Service leads to its endpoints, as the Service's own address does.
        Direction::Egress => at_node_port(cluster, seen, node, ip),
        Direction::Ingress => None,
    };
    let endpoint = endpoint.unwrap_or_else(|| seen_from(cluster, seen, node, (ip, seen.remote.port())));
    match endpoint {
        Endpoint::Pod(peer) => {
            let verdict = verdict(cluster, seen, pod, Party::PodAt(peer, ip), port);
            let mut judged = judged(PeerKind::Pod(peer), verdict);
            judged.other_end = Some(other_end(cluster, seen, pod, peer, port));
            judged
        }
        // Also where only a pod on its network tells that the address is its own.
        Endpoint::Node(name) if name == *node.name => {
            let translated = seen.direction == Direction::Ingress && !node.paired_with_host;
            let verdict = match translated {
                true => Verdict::unknown(Gap::SourceTranslated).into(),
                false => verdict(cluster, seen, pod, Party::OwnNode, port),
            };
            judged(PeerKind::Node(Some(name)), verdict)
        }
        Endpoint::Node(name) => judged(PeerKind::Node(Some(name)), other_node(cluster, seen, pod, ip)),
        Endpoint::External => match cluster.pod_network_node(ip).cloned() {
            // Nobody's pod: the bridge or tunnel end of another node. This node's are among its own addresses.
            Some(name) if name != *node.name => {
                judged(PeerKind::Node(Some(name)), other_node(cluster, seen, pod, ip))
            }
            _ => {
                let (direction, protocol) = (seen.direction, seen.protocol);
                let verdict =
                    cluster.verdict_by_names(direction, pod, Party::Ip(ip), protocol, port, node.names);
                judged(PeerKind::External, verdict)
            }
        },
        Endpoint::Ambiguous => judged(PeerKind::Unknown, Verdict::unknown(Gap::Ambiguous).into()),
        Endpoint::Invalid(why) => judged(PeerKind::Unknown, Verdict::unknown(Gap::Invalid(why)).into()),
        Endpoint::Service { namespace, name, backends } => {
            let mut judged = judged(PeerKind::Service, Verdict::unknown(Gap::NoEndpoints).into());
            judged.peer.service = Some((namespace, name));
            judge_service(cluster, pod, seen, node, &backends, judged)
        }
    }
}

/// The endpoints of the Service that `seen` asked for, if it did.
pub(super) fn backends(
    cluster: &Cluster,
    seen: &Observation,
    node: &NodeView<'_>,
) -> Option<SmallVec<[Backend; 4]>> {
    let ip = seen.peer_ip();
    let endpoint = at_node_port(cluster, seen, node, ip)
        .unwrap_or_else(|| cluster.resolve(ip, seen.remote.port(), seen.protocol, seen.at));
    match endpoint {
        Endpoint::Service { backends, .. } => Some(backends),
        _ => None,
    }
}

/// The Service behind a port of a node's address, if that is what `seen` asked for.
fn at_node_port(cluster: &Cluster, seen: &Observation, node: &NodeView<'_>, ip: IpAddr) -> Option<Endpoint> {
    let behind = cluster.node_port(seen.remote.port(), seen.protocol, ip, seen.at)?;
    let is_node = matches!(seen_from(cluster, seen, node, (ip, seen.remote.port())), Endpoint::Node(_));
    is_node.then_some(behind)
}

/// What an address is as this node sees it: one of its own is the node, whatever objects say.
fn seen_from(
    cluster: &Cluster,
    seen: &Observation,
    node: &NodeView<'_>,
    (ip, port): (IpAddr, u16),
) -> Endpoint {
    match node.own_addresses.contains(&ip) {
        true => Endpoint::Node(node.name.clone()),
        false => cluster.resolve(ip, port, seen.protocol, seen.at),
    }
}

/// The verdict on an address of another node. A hostNetwork pod there is an ordinary source; but where a port on the nodes
/// leads to the subject, the address may stand for anybody who asked there, unless that makes no difference.
fn other_node(cluster: &mut Cluster, seen: &Observation, pod: PodId, ip: IpAddr) -> Arc<Verdict> {
    let verdict = verdict(cluster, seen, pod, Party::Ip(ip), seen.port());
    let same_for_all = matches!(verdict.decision, Decision::Allowed(Cause::NotIsolated | Cause::Exempt(_)));
    let hidden = seen.direction == Direction::Ingress
        && !same_for_all
        && cluster.may_hide_source(pod, seen.port(), seen.protocol);
    if hidden { Verdict::unknown(Gap::SourceTranslated).into() } else { verdict }
}

/// Judges a Service address by all of its endpoints; `all` is what is known without any.
fn judge_service(
    cluster: &mut Cluster,
    pod: PodId,
    seen: &Observation,
    node: &NodeView<'_>,
    backends: &[Backend],
    mut all: Judged,
) -> Judged {
    for (n, backend) in backends.iter().enumerate() {
        let party = match backend.pod {
            Some(peer) => Party::PodAt(peer, backend.ip),
            None if is_own_node(cluster, seen, node, backend) => Party::OwnNode,
            None => Party::Ip(backend.ip),
        };
        all.awaits_endpoint |= matches!(party, Party::Ip(ip) if cluster.in_pod_network(ip));
        let verdict = verdict(cluster, seen, pod, party, backend.port);
        let other_end = backend.pod.map(|peer| other_end(cluster, seen, pod, peer, backend.port));
        if n == 0 {
            all.port = backend.port;
            all.verdict = verdict;
            all.other_end = other_end;
            continue;
        }
        if all.port != backend.port {
            // Named target ports may differ from pod to pod: then only the Service's own port can be told.
            all.port = seen.port();
        }
        if !all.verdict.agrees_with(&verdict) {
            all.verdict = Arc::new(Verdict::unknown(Gap::EndpointsDisagree));
            all.port = seen.port();
            all.other_end = None;
            return all;
        }
        if all.other_end != other_end {
            all.other_end = None;
        }
    }
    if let [backend] = backends {
        all.peer.kind = backend_kind(cluster, seen, node, backend);
        all.peer.ip = backend.ip;
        all.requested = asked(seen, SocketAddr::new(backend.ip, backend.port));
    }
    if !backends.is_empty() {
        all.translation = Some(Translation::Endpoints);
    }
    all
}

/// Whether an endpoint that is no pod is this node: by its interfaces, its object, or a pod on its network.
fn is_own_node(cluster: &Cluster, seen: &Observation, node: &NodeView<'_>, backend: &Backend) -> bool {
    let endpoint = seen_from(cluster, seen, node, (backend.ip, backend.port));
    matches!(endpoint, Endpoint::Node(name) if name == *node.name)
}

impl Judged {
    /// As a connection that may have been addressed to another port of the subject. Whoever judges it again by other policies has to
    /// know that, also where it makes no difference now; where no policy applies it never does.
    pub fn at_hidden_port(self) -> Self {
        let hidden = |of: Self| Self { translation: Some(Translation::Redirect), ..of };
        match self.verdict.decision {
            Decision::Allowed(Cause::Exempt(_)) => self,
            Decision::Allowed(Cause::NotIsolated) | Decision::Unknown(_) => hidden(self),
            _ => {
                let verdict = Verdict::unknown(Gap::PortTranslated).into();
                hidden(Self { verdict, other_end: None, ..self })
            }
        }
    }

    /// As the way to a proxy in the subject's own namespace: no policy sees it.
    fn proxied(mut self) -> Self {
        self.peer.kind = PeerKind::Loopback;
        self.verdict = Verdict::exempt(Exemption::Proxied).into();
        self.other_end = None;
        self.translation = Some(Translation::Proxy);
        self
    }
}

/// Who the only endpoint of a Service is: not always a pod (the `kubernetes` Service leads to a node).
fn backend_kind(cluster: &Cluster, seen: &Observation, node: &NodeView<'_>, backend: &Backend) -> PeerKind {
    if let Some(pod) = backend.pod {
        return PeerKind::Pod(pod);
    }
    match seen_from(cluster, seen, node, (backend.ip, backend.port)) {
        Endpoint::Node(name) => PeerKind::Node(Some(name)),
        _ => PeerKind::External,
    }
}

/// The Service that the program asked for, where another address carries the flow.
fn rewritten_from(
    cluster: &Cluster,
    seen: &Observation,
    node: &NodeView<'_>,
) -> Option<(Arc<str>, Arc<str>)> {
    let asked = seen.requested?;
    let (ip, port) = (asked.ip().to_canonical(), asked.port());
    let of_port = at_node_port(cluster, &Observation { remote: asked, ..*seen }, node, ip);
    match of_port.unwrap_or_else(|| cluster.resolve(ip, port, seen.protocol, seen.at)) {
        Endpoint::Service { namespace, name, .. } => Some((namespace, name)),
        _ => None,
    }
}

/// A mapped v4 address in its own form.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn asked_for(seen: &Observation) -> SocketAddr {
    seen.requested.unwrap_or(seen.remote)
}

/// What the program asked for, where that is not what was judged.
fn asked(seen: &Observation, judged: SocketAddr) -> Option<SocketAddr> {
    if seen.direction == Direction::Ingress {
        return None;
    }
    let asked = canonical(asked_for(seen));
    (asked != judged).then_some(asked)
}

fn verdict(cluster: &mut Cluster, seen: &Observation, pod: PodId, party: Party, port: u16) -> Arc<Verdict> {
    cluster.verdict(seen.direction, pod, party, seen.protocol, port)
}

/// The verdict of the other end's policies. They are counted by the other end's own record, not here.
fn other_end(cluster: &mut Cluster, seen: &Observation, pod: PodId, peer: PodId, port: u16) -> Arc<Verdict> {
    // This end's address may not be chosen yet; then all addresses of the pod are compared.
    let own = seen.local.ip().to_canonical();
    let party = if own.is_unspecified() { Party::Pod(pod) } else { Party::PodAt(pod, own) };
    cluster.verdict(seen.direction.opposite(), peer, party, seen.protocol, port)
}

/// Judges a flow of the node itself: policies do not select it. The other end's may still say something.
pub(super) fn judge_node(cluster: &mut Cluster, seen: &Observation, node: &NodeView<'_>) -> Judged {
    let ip = seen.peer_ip();
    let mut judged = Judged {
        peer: Peer { kind: PeerKind::External, ip, service: None },
        port: seen.port(),
        requested: asked(seen, SocketAddr::new(ip, seen.remote.port())),
        verdict: Arc::new(Verdict::exempt(Exemption::HostNetwork)),
        other_end: None,
        names: Vec::new(),
        translation: seen.requested.map(|_| Translation::Socket),
        awaits_endpoint: false,
    };
    if ip.is_loopback() || node.own_addresses.contains(&ip) {
        judged.peer.kind = PeerKind::Node(Some(node.name.clone()));
        return judged;
    }
    let party = |cluster: &Cluster, peer: PodId| {
        let own = cluster.pod(peer).is_some_and(|pod| pod.node.as_ref() == Some(node.name));
        if own { Party::OwnNode } else { Party::Ip(seen.local.ip().to_canonical()) }
    };
    match cluster.resolve(ip, seen.remote.port(), seen.protocol, seen.at) {
        Endpoint::Pod(peer) => {
            let from = party(cluster, peer);
            let direction = seen.direction.opposite();
            judged.peer.kind = PeerKind::Pod(peer);
            judged.other_end = Some(cluster.verdict(direction, peer, from, seen.protocol, judged.port));
        }
        Endpoint::Node(name) => judged.peer.kind = PeerKind::Node(Some(name)),
        Endpoint::Service { namespace, name, backends } => {
            judged.peer.kind = PeerKind::Service;
            judged.peer.service = Some((namespace, name));
            if let [backend] = backends.as_slice() {
                judged.peer.kind = backend_kind(cluster, seen, node, backend);
                judged.peer.ip = backend.ip;
                judged.port = backend.port;
                judged.requested = asked(seen, SocketAddr::new(backend.ip, backend.port));
                judged.translation = Some(Translation::Endpoints);
            }
        }
        Endpoint::External => {}
        Endpoint::Ambiguous | Endpoint::Invalid(_) => judged.peer.kind = PeerKind::Unknown,
    }
    judged
}
