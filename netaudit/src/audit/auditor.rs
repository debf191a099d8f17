//! The auditor: drives an observation through attribution, resolution and judgement, and accounts for it.

mod answers;
mod drops;
mod enforced;
mod evidence;
mod folded;
mod names;
mod open;
mod raw_sockets;
mod rule_facts;
mod rules;
mod translated;
mod violation;

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use foldhash::{HashMap, HashSet};

pub use names::DnsServers;

use super::{
    AcceptedFlows, Attribution, Budget, Counts, Evidence, Flow, FlowId, OpenConnections, Owner, Peer,
    PeerKind, RawSockets, RunKey, Subject, Usage, Violations,
    datagrams::{Datagrams, Held},
    drops::{ClosedPorts, Drops},
    enforcement::Enforcement,
    finding::{FIRST_RETRANSMISSION, Finding, finding, reach},
    handshakes::Handshakes,
    resolve::{self, Judged, NodeView, canonical, judge_node, judge_pod},
};
use crate::{
    cluster::{Cluster, Pod, PodId},
    model::{
        Direction, Gap, NetnsCookie, Observation, Outcome, PacketDrop, Protocol, RawSocket, Reach, Timestamp,
        Verdict,
    },
};
use drops::Proof;

pub use rules::usage_window;
pub use translated::Tuple;

/// How long a record waits for its namespace, its pod or its peer to become known: in a healthy cluster a watch is
/// never later.
const HOLD_SUBJECT: Duration = Duration::from_secs(2);

/// How long records wait for the first complete list of objects.
const HOLD_START: Duration = Duration::from_secs(10);

/// How long an accepted connection from the node's own address waits for the node's record of it. Both come from the
/// same kernel; only their order in one batch is not promised.
const HOLD_PAIR: Duration = Duration::from_millis(250);

/// How long a connection of the node is remembered for pairing.
const PAIR_MEMORY: Duration = Duration::from_secs(30);

/// How long an attempt may stay pending: beyond every setting of `tcp_syn_retries` that makes sense.
const PENDING_MEMORY: Duration = Duration::from_secs(600);

/// Records that may be held or pending at once; more are judged at once as they are.
const MAX_WAITING: usize = 65_536;

/// What the auditor is told once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name of this agent's node, as in `Node` objects.
    pub node: Arc<str>,
    /// The agent run: the first half of every flow id.
    pub run: Arc<str>,
    /// The node's own network namespace.
    pub host: NetnsCookie,
    /// Series of violations.
    pub budget: Budget,
    /// How long a rule must be watched before it can be called unused.
    pub unused_after: Duration,
    /// The coverage that this takes, from 0 to 1.
    pub unused_coverage: f64,
}

/// What a record waits for.
#[derive(Clone, Copy, Debug)]
enum Hold {
    /// That somebody becomes known, for no longer than this.
    For(Duration),
    /// [`Auditor::translate`].
    Translation,
}

/// Something that waits to be judged.
#[derive(Clone, Copy, Debug)]
struct Waiting<T> {
    /// When it is judged in any case.
    until: Timestamp,
    /// Which of all records it is.
    number: u64,
    seen: T,
}

/// Everything that turns records into judged flows. Owned by one task; nothing in it locks.
#[derive(Debug)]
pub struct Auditor {
    settings: Settings,
    cluster: Cluster,
    attribution: Attribution,
    own_addresses: HashSet<IpAddr>,
    interface_addresses: HashSet<IpAddr>,
    /// (source, destination) of the node's own recent connections: what tells the kubelet from somebody behind it.
    host_connections: HashMap<(Protocol, SocketAddr, SocketAddr), Timestamp>,
    /// Records that were taken.
    taken: u64,
    held: VecDeque<Waiting<Observation>>,
    pending: HashMap<(u64, u32), Observation>,
    sees_drops: bool,
    drops: Drops,
    closed_ports: ClosedPorts,
    held_drops: VecDeque<Waiting<PacketDrop>>,
    drops_unjudged: u64,
    datagrams: Datagrams,
    handshakes: Handshakes,
    asks_for_translations: bool,
    /// Those that wait for [`Auditor::translate`].
    asking: Vec<Waiting<Observation>>,
    /// Ports to which pods' own namespaces redirect connections, and when that last showed.
    redirects: HashMap<(NetnsCookie, u16), Timestamp>,
    held_raw_sockets: VecDeque<Waiting<RawSocket>>,
    raw_sockets: RawSockets,
    /// Only where DNS answers are seen.
    names: Option<Box<names::Seen>>,
    open: OpenConnections,
    gathered: open::Gathered,
    bound: HashMap<(NetnsCookie, IpAddr), PodId>,
    sequence: u64,
    counts: Counts,
    usage: Usage,
    watching: rules::Watching,
    violations: Violations,
    suspected_blocks: Violations,
    accepted: AcceptedFlows,
    /// [`Auditor::set_correction`].
    correction: i64,
    enforcement: Enforcement,
    ready: bool,
    pending_dropped: u64,
    pairs_dropped: u64,
}

impl Auditor {
    /// Knows no object and no pod yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            cluster: Cluster::default(),
            attribution: Attribution::new(settings.host),
            own_addresses: HashSet::default(),
            interface_addresses: HashSet::default(),
            host_connections: HashMap::default(),
            taken: 0,
            held: VecDeque::new(),
            pending: HashMap::default(),
            sees_drops: false,
            drops: Drops::default(),
            closed_ports: ClosedPorts::default(),
            held_drops: VecDeque::new(),
            drops_unjudged: 0,
            datagrams: Datagrams::default(),
            handshakes: Handshakes::default(),
            asks_for_translations: false,
            asking: Vec::new(),
            redirects: HashMap::default(),
            held_raw_sockets: VecDeque::new(),
            raw_sockets: RawSockets::default(),
            names: None,
            open: OpenConnections::default(),
            gathered: open::Gathered::default(),
            bound: HashMap::default(),
            sequence: 0,
            counts: Counts::default(),
            usage: Usage::new(
                RunKey { node: settings.node.clone(), run: settings.run.clone() },
                usage_window(settings.unused_after),
            )
            .with_series(settings.budget.rules),
            watching: rules::Watching::default(),
            violations: Violations::new(settings.budget),
            suspected_blocks: Violations::new(settings.budget),
            accepted: AcceptedFlows::default(),
            correction: 0,
            enforcement: Enforcement::default(),
            ready: false,
            pending_dropped: 0,
            pairs_dropped: 0,
            settings,
        }
    }

    /// The cluster's objects.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The cluster's objects, to apply changes to.
    pub fn cluster_mut(&mut self) -> &mut Cluster {
        &mut self.cluster
    }

    /// What is known of cgroups and namespaces, to tell it more.
    pub fn attribution_mut(&mut self) -> &mut Attribution {
        &mut self.attribution
    }

    /// Every address of the node's own namespace, as it is now.
    pub fn set_own_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.interface_addresses = addresses.into_iter().map(|ip| ip.to_canonical()).collect();
        self.refresh_own_addresses();
    }

    /// The addresses of the interfaces and, for a node behind a translation, those that only its status names.
    fn refresh_own_addresses(&mut self) {
        self.own_addresses = self.interface_addresses.clone();
        let own = self.cluster.nodes().filter(|node| node.name == self.settings.node);
        self.own_addresses.extend(own.flat_map(|node| node.ips.iter().copied()));
    }

    /// So many records were lost: rules that are watched cannot be called unused until that is long enough ago.
    pub fn lost(&mut self, count: u64) {
        self.usage.lost(count);
    }

    /// Every kind of object has been listed completely. Until then records wait.
    pub fn set_ready(&mut self) {
        if !self.ready {
            self.ready = true;
            // Whether this is the only agent is known only now, and with it which rules are watched.
            self.look_at_rules_again();
        }
    }

    /// Attempts whose pending state was not kept, since too many are pending at once.
    pub fn pending_dropped(&self) -> u64 {
        self.pending_dropped
    }

    /// Connections of the node that were not remembered for pairing, since too many are.
    pub fn pairs_dropped(&self) -> u64 {
        self.pairs_dropped
    }

    /// Plain counters.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Rules and their use, as [settled](Usage::settle).
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Rules and their use, to take what is to be stored, and to tell what was.
    pub fn usage_mut(&mut self) -> &mut Usage {
        &mut self.usage
    }

    /// What it takes to call a rule unused.
    pub fn evidence(&self) -> Evidence {
        Evidence { window: self.settings.unused_after, coverage: self.settings.unused_coverage }
    }

    /// Records that wait for somebody to become known, and attempts without an outcome.
    pub fn waiting(&self) -> (usize, usize) {
        let held = [
            self.held.len(),
            self.held_drops.len(),
            self.datagrams.len(),
            self.handshakes.len(),
            self.asking.len(),
            self.held_raw_sockets.len(),
        ];
        (held.into_iter().sum(), self.pending.len())
    }

    /// Whether this agent sees the whole cluster, so that "unused" is its to say: its node is the only one.
    pub fn is_only_agent(&self) -> bool {
        let mut nodes = self.cluster.nodes();
        self.ready
            && nodes.next().is_some_and(|node| node.name == self.settings.node)
            && nodes.next().is_none()
    }

    /// Takes one kernel record. Flows that are complete are appended to `flows`; the record itself may have to wait.
    pub fn observe(&mut self, seen: &Observation, now: Timestamp, flows: &mut Vec<Flow>) {
        self.taken += 1;
        let attempt = (seen.socket, seen.sequence);
        if seen.outcome == Outcome::Pending {
            if self.pending.len() < MAX_WAITING {
                self.pending.insert(attempt, *seen);
            } else {
                self.pending_dropped += 1;
            }
            return;
        }
        if !self.pending.is_empty() {
            self.pending.remove(&attempt);
        }
        self.learn(seen);
        self.remember_host_connection(seen);
        let noticed = seen.at.plus(seen.waited);
        self.judge_unmet(noticed, now, flows);
        let seen = match seen.outcome {
            Outcome::Accepted => &self.meet(seen, now, flows),
            _ => seen,
        };
        let held = Held { number: self.taken, seen: *seen };
        let is_held = match seen.outcome {
            Outcome::Sent => self.datagrams.hold(held, now, self.sees_drops),
            Outcome::Established if self.may_be_met(seen) => {
                self.handshakes.hold(held, canonical(seen.local), noticed)
            }
            _ => false,
        };
        if !is_held {
            self.judge_or_hold(seen, self.taken, now, flows);
        }
    }

    fn judge_or_hold(&mut self, seen: &Observation, number: u64, now: Timestamp, flows: &mut Vec<Flow>) {
        let full = self.held.len() >= MAX_WAITING;
        match self.try_judge(seen, full) {
            Ok(flow) => flows.push(flow),
            Err(Hold::For(hold)) => {
                self.held.push_back(Waiting { until: now.plus(hold), number, seen: *seen });
            }
            Err(Hold::Translation) => {
                self.asking.push(Waiting { until: now.plus(HOLD_SUBJECT), number, seen: *seen });
            }
        }
    }

    /// Lets time pass: held records are tried again, old memory is dropped, pod-seconds are added.
    pub fn tick(&mut self, now: Timestamp, flows: &mut Vec<Flow>) {
        self.retry(now, flows);
        let mut given_up = Vec::new();
        self.pending.retain(|_, seen| {
            let keep = now.since(seen.at) < PENDING_MEMORY;
            if !keep {
                given_up.push(*seen);
            }
            keep
        });
        flows.extend(given_up.iter().filter_map(|seen| self.try_judge(seen, true).ok()));
        self.expire_drops(now);
        self.host_connections.retain(|_, at| now.since(*at) < PAIR_MEMORY);
        self.bound.retain(|_, pod| self.cluster.pod(*pod).is_some());
        self.watching.expire(&self.cluster);
        self.attribution.expire(now, |uid| self.cluster.pod_by_uid(uid).is_some());
        self.expire_redirects(now);
        self.cluster.expire(now);
        self.expire_names(now);
        self.enforcement.expire(now);
        self.violations.expire(now);
        self.suspected_blocks.expire(now);
        self.watch_rules(now);
        self.usage.tick(now);
    }

    /// An object changed: what is held may have waited for it.
    pub fn objects_changed(&mut self, now: Timestamp, flows: &mut Vec<Flow>) {
        self.watch_rules(now);
        // A long queue waits for the next tick, so that a burst of changes does not go through it each time.
        if self.held.len() + self.held_drops.len() <= 1_024 {
            self.retry(now, flows);
        }
    }

    fn retry(&mut self, now: Timestamp, flows: &mut Vec<Flow>) {
        for _ in 0..self.held.len() {
            let Some(waiting) = self.held.pop_front() else { break };
            self.learn(&waiting.seen);
            match self.try_judge(&waiting.seen, waiting.until <= now) {
                Ok(flow) => flows.push(flow),
                Err(Hold::For(_)) => self.held.push_back(waiting),
                Err(Hold::Translation) => self.asking.push(waiting),
            }
        }
        self.retry_drops(now, flows);
    }

    /// How many of the records that were taken are judged, with all before them. An attempt whose outcome is pending is not
    /// waited for: another record tells it.
    pub fn settled(&self) -> u64 {
        let held = self.held.iter().map(|waiting| waiting.number).min();
        let sent = self.datagrams.first();
        let drop = self.held_drops.front().map(|waiting| waiting.number);
        let raw = self.held_raw_sockets.front().map(|waiting| waiting.number);
        let made = self.handshakes.first();
        let asking = self.asking.iter().map(|waiting| waiting.number).min();
        [held, sent, drop, raw, made, asking]
            .into_iter()
            .flatten()
            .min()
            .map_or(self.taken, |first| first - 1)
    }

    /// How many records were taken.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Ends the run: what is held is judged as it is.
    pub fn finish(&mut self, flows: &mut Vec<Flow>) {
        self.retry_drops(Timestamp::MAX, flows);
        let asking = std::mem::take(&mut self.asking);
        let held = std::mem::take(&mut self.held).into_iter().chain(asking).map(|waiting| waiting.seen);
        let rest = held.chain(self.handshakes.take_all()).chain(self.datagrams.take_all());
        flows.extend(rest.filter_map(|seen| self.try_judge(&seen, true).ok()));
    }

    /// Judges attempts without an outcome as pending: nobody will tell it.
    pub fn finish_pending(&mut self, flows: &mut Vec<Flow>) {
        let mut pending: Vec<_> = std::mem::take(&mut self.pending).into_values().collect();
        pending.sort_by_key(|seen| seen.at);
        flows.extend(pending.into_iter().filter_map(|seen| self.try_judge(&seen, true).ok()));
    }

    /// Judges a record, or says what to wait for. With `last_call` it judges in any case.
    fn try_judge(&mut self, seen: &Observation, last_call: bool) -> Result<Flow, Hold> {
        let may_ask = self.asks_for_translations && !last_call && self.asking.len() < MAX_WAITING;
        self.judge(seen, last_call, may_ask)
    }

    /// As [`Auditor::try_judge`], when nobody can tell any more where the flow went.
    fn try_judge_without_asking(&mut self, seen: &Observation, last_call: bool) -> Result<Flow, Duration> {
        self.judge(seen, last_call, false).map_err(|hold| match hold {
            Hold::For(hold) => hold,
            // Is only said where one may ask.
            Hold::Translation => Duration::ZERO,
        })
    }

    fn judge(&mut self, seen: &Observation, last_call: bool, may_ask: bool) -> Result<Flow, Hold> {
        if !self.ready {
            return if last_call {
                let judged = unjudged(seen, Gap::NotReady);
                Ok(self.account(seen, Subject::Unknown { uid: None }, judged, Proof::default()))
            } else {
                Err(Hold::For(HOLD_START))
            };
        }
        let subject = match self.subject(seen) {
            Subject::Unknown { .. } if !last_call => return Err(Hold::For(HOLD_SUBJECT)),
            subject => subject,
        };
        let is_own_address = self.own_addresses.contains(&seen.peer_ip());
        let from_node = is_own_address && seen.direction == Direction::Ingress;
        let paired_with_host = from_node && self.is_paired(seen);
        if from_node && !paired_with_host && !last_call && matches!(subject, Subject::Pod(_)) {
            return Err(Hold::For(HOLD_PAIR));
        }
        if !last_call && self.awaits_peer(seen) {
            return Err(Hold::For(HOLD_SUBJECT));
        }
        let mut seen = *seen;
        let mut judged = self.judge_ends(&seen, &subject, paired_with_host);
        if !last_call && judged.awaits_endpoint {
            return Err(Hold::For(HOLD_SUBJECT));
        }
        if judged.asks_for_translation(&seen) {
            seen.translated = self.dropped_on_its_way_to(&seen, &subject);
            if seen.translated.is_some() {
                if !last_call && self.awaits_peer(&seen) {
                    return Err(Hold::For(HOLD_SUBJECT));
                }
                judged = self.judge_ends(&seen, &subject, paired_with_host);
            } else if may_ask && seen.folded.is_none() {
                return Err(Hold::Translation);
            }
        }
        let proof = self.proof(&seen, &subject);
        Ok(self.account(&seen, subject, judged, proof))
    }

    fn judge_ends(&mut self, seen: &Observation, subject: &Subject, paired_with_host: bool) -> Judged {
        let names = self.names_of(seen);
        let node = NodeView {
            name: &self.settings.node,
            own_addresses: &self.own_addresses,
            paired_with_host,
            names: &names::that_count(&names),
        };
        let mut judged = match subject {
            Subject::Pod(pod) => {
                let judged = judge_pod(&mut self.cluster, *pod, seen, &node);
                if self.hides_its_port(seen) { judged.at_hidden_port() } else { judged }
            }
            Subject::Node => judge_node(&mut self.cluster, seen, &node),
            Subject::Unknown { uid: Some(_) } => unjudged(seen, Gap::PodNotSeen),
            Subject::Unknown { uid: None } => unjudged(seen, Gap::SubjectUnknown),
        };
        if judged.peer.kind == PeerKind::External && judged.peer.ip == seen.peer_ip() {
            judged.names = names;
        }
        judged
    }

    /// Whether a pod runs on this node; one that no manifest gives to a node is taken to.
    fn is_here(&self, pod: &Pod) -> bool {
        pod.node.as_ref().is_none_or(|node| *node == self.settings.node)
    }

    fn subject(&mut self, seen: &Observation) -> Subject {
        let uid = match self.attribution.owner(seen.netns) {
            Owner::Host => return Subject::Node,
            Owner::Pod(uid) => uid,
            // A proof in this very record has been looked for already.
            Owner::Unknown => return Subject::Unknown { uid: None },
        };
        let Some(pod) = self.cluster.pod_by_uid(&uid) else { return Subject::Unknown { uid: Some(uid) } };
        self.bind(seen, pod);
        Subject::Pod(pod)
    }

    fn account(
        &mut self,
        seen: &Observation,
        subject: Subject,
        judged: Judged,
        Proof { stopped_by, closed_port }: Proof,
    ) -> Flow {
        let reach = reach(seen, stopped_by.is_some());
        let finding = finding(seen, reach, &judged.verdict, judged.other_end.as_deref());
        let cause = self.learn_enforcement(seen, &subject, &judged, reach, finding);
        let mut flow = self.name(seen, subject, judged, reach, finding);
        flow.stopped_by = stopped_by;
        flow.closed_port = closed_port;
        flow.cause = cause;
        self.counts.flow(&flow);
        self.credit(&flow);
        self.count_violation(&flow);
        flow
    }

    /// The flow with its number and its actor.
    fn name(
        &mut self,
        seen: &Observation,
        subject: Subject,
        judged: Judged,
        reach: Reach,
        finding: Option<Finding>,
    ) -> Flow {
        self.sequence += 1;
        let actor = seen.actor.cgroup.and_then(|cgroup| self.attribution.actor(cgroup));
        Flow {
            id: FlowId { run: self.settings.run.clone(), sequence: self.sequence },
            observation: *seen,
            actor_kind: self.actor_kind(seen, &subject),
            actor_pod: actor.map(|actor| actor.uid.clone()),
            actor_container: actor.and_then(|actor| actor.container.clone()),
            reach,
            stopped_by: None,
            closed_port: false,
            finding,
            cause: None,
            open: None,
            subject,
            peer: judged.peer,
            names: judged.names,
            port: judged.port,
            requested: judged.requested,
            translation: judged.translation,
            verdict: judged.verdict,
            other_end: judged.other_end,
        }
    }
}

fn unjudged(seen: &Observation, gap: Gap) -> Judged {
    Judged {
        peer: Peer { kind: PeerKind::Unknown, ip: seen.peer_ip(), service: None },
        port: seen.port(),
        requested: seen.requested,
        verdict: Arc::new(Verdict::unknown(gap)),
        other_end: None,
        names: Vec::new(),
        translation: None,
        awaits_endpoint: false,
    }
}
