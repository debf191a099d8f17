//! Connections that go on: their rules are in use, whoever saw them begin.
//!
//! ```text
//! begin_look ─► observe_open, each connection ─► judge_look, a few at a time, until that was all
//!                                                  ├─ from before the agent, never told ─► a flow that says so
//!                                                  ├─ told before, and its rules still allow it ─► they are in use now
//!                                                  ├─ not denied when it was told, and denied by now ─► a flow that says so
//!                                                  └─ told so by an earlier look, and still denied ─► the violation goes on, no other one
//! ```
//!
//! Each is judged anew, by the policies of now and by who its ends are now, unless the peer's address has gone to
//! somebody else since. All are gathered first, since one end tells where the other one leads.

use std::{net::SocketAddr, num::NonZeroU32};

use foldhash::{HashMap, HashSet};

use super::{Auditor, Subject, Tuple, reach};
use crate::{
    audit::{
        Finding, Flow, Open, OpenConnections, RuleKey, UnenforcedCause,
        finding::finding,
        open::{Before, MOST, Met, PEER_GONE},
        resolve::{Judged, canonical},
    },
    cluster::Endpoint,
    model::{
        BlindReader, Direction, Observation, OpenConnection, Protocol, Timestamp, Translated, Translation,
    },
};

/// Which of the gathered connections an end is.
#[derive(Clone, Copy, Default, Debug)]
enum Which {
    #[default]
    None,
    One(usize),
    /// More than can belong together.
    Several,
}

impl Which {
    fn and(self, index: usize) -> Self {
        match self {
            Self::None => Self::One(index),
            Self::One(_) | Self::Several => Self::Several,
        }
    }
}

/// What a look has gathered, and how much of it is judged.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    all: Vec<(OpenConnection, Met)>,
    judged: usize,
    /// The end that connected and the one that accepted, by the address of the former and the number of their handshake: a
    /// program may use its address for several connections at once, but chooses no number.
    ends: HashMap<(SocketAddr, NonZeroU32), (Which, Which)>,
    /// Sockets that read without asking who sent.
    blind_readers: HashSet<u64>,
}

impl Gathered {
    fn add(&mut self, open: &OpenConnection, met: Met) {
        let index = self.all.len();
        if let Some(connection) = connection(&open.seen) {
            let (made, accepted) = self.ends.entry(connection).or_default();
            let end = if open.seen.direction == Direction::Egress { made } else { accepted };
            *end = end.and(index);
        }
        self.all.push((*open, met));
    }

    /// Both ends of the connection that `seen` is one of, the one that connected first, if a look found both.
    fn both(&self, seen: &Observation) -> Option<(Observation, Observation)> {
        let (Which::One(made), Which::One(accepted)) = *self.ends.get(&connection(seen)?)? else {
            return None;
        };
        let of = |index: usize| self.all.get(index).map(|(open, _)| as_of(open));
        let ends = (of(made)?, of(accepted)?);
        // One that was not gathered may have the same address as both of these.
        [ends.0.socket, ends.1.socket].contains(&seen.socket).then_some(ends)
    }
}

impl Auditor {
    /// Whether everything is listed, so that a look is of use.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// A look at all open connections begins; one that has not come to its end is given up.
    pub fn begin_look(&mut self) {
        self.gathered = Gathered::default();
        self.open.begin();
    }

    /// One of them. It is judged by [`Auditor::judge_look`], or at once where there are too many.
    pub fn observe_open(&mut self, open: &OpenConnection, flows: &mut Vec<Flow>) {
        let met = self.open.meet(open.seen.socket);
        if met == Met::Again {
            return;
        }
        if let Some(reason) = open.unknown_end {
            self.open.unjudged(reason);
            return;
        }
        let seen = as_of(open);
        self.learn_from_open(&seen);
        self.remember_host_connection(&seen);
        if self.gathered.all.len() < MOST {
            self.gathered.add(open, met);
        } else {
            self.judge_open(open, met, &mut |_| None, flows);
        }
    }

    /// A UDP socket whose use nobody sees: any rule that lets somebody ask it may be in use.
    pub fn observe_blind_reader(&mut self, reader: &BlindReader) {
        if !self.gathered.blind_readers.insert(reader.socket) {
            return;
        }
        let Subject::Pod(pod) = self.subject_of_namespace(reader.netns) else { return };
        let policies = self.cluster.selected_by(pod, Direction::Ingress);
        let rules = policies.flat_map(|policy| policy.rules(Direction::Ingress));
        let rules = rules.filter(|rule| rule.may_be_for(Protocol::Udp, reader.local.port()));
        let rules: Vec<_> = rules.map(|rule| RuleKey::from(&*rule.id)).collect();
        self.usage.doubt_rules(rules);
    }

    /// All of them were observed: judges up to `max`, and returns whether that were the last, which ends the look. What is to
    /// be told is appended to `flows`. `ask` is asked as for [`Auditor::translate`].
    pub fn judge_look(
        &mut self,
        max: usize,
        ask: &mut dyn FnMut(&Tuple) -> Option<SocketAddr>,
        flows: &mut Vec<Flow>,
    ) -> bool {
        for _ in 0..max {
            let Some((open, met)) = self.gathered.all.get(self.gathered.judged).copied() else {
                self.open.end(self.gathered.blind_readers.len());
                self.gathered = Gathered::default();
                return true;
            };
            self.gathered.judged += 1;
            self.judge_open(&open, met, ask, flows);
        }
        false
    }

    /// What is known of open connections.
    pub fn open_connections(&self) -> &OpenConnections {
        &self.open
    }

    fn judge_open(
        &mut self,
        open: &OpenConnection,
        met: Met,
        ask: &mut dyn FnMut(&Tuple) -> Option<SocketAddr>,
        flows: &mut Vec<Flow>,
    ) {
        let is_found = !open.is_told && met == Met::Never;
        let socket = open.seen.socket;
        if !is_found && (self.open.is_peer_gone(socket) || self.is_another_peer(open, open.seen.remote)) {
            self.open.peer_gone(socket);
            return;
        }
        if !is_found && !self.is_peer_known(open) {
            self.open.unjudged(PEER_GONE);
            return;
        }
        let seen = self.translated_as_open(&as_of(open));
        let (seen, subject, judged) = self.judge_as_it_is(seen, ask);
        // Connection tracking remembers for days where one to an endpoint that is gone went.
        if let Some(Translated { to, by: Translation::Conntrack }) = seen.translated
            && !is_found
            && self.is_another_peer(open, to)
        {
            self.open.peer_gone(socket);
            return;
        }
        self.open.judged(seen.socket, seen.direction, &judged.verdict, is_found);
        self.keep(&subject, &seen, &judged, open.looked);
        let tell = match met {
            _ if is_found => Some(Open::BeforeStart),
            Met::Before(Before::Undecided) if judged.verdict.is_denied() => Some(Open::BeforeStart),
            Met::Before(Before::Allowed) if judged.verdict.is_denied() => Some(Open::Since(open.seen.at)),
            _ => None,
        };
        if let Some(why) = tell {
            let flow = self.tell_open(&seen, subject, judged, why);
            if let Some(violation) = self.goes_on(&flow) {
                self.open.violates(seen.socket, violation);
            }
            flows.push(flow);
        } else if judged.verdict.is_denied()
            && let Some(told) = self.open.violation(seen.socket).cloned()
        {
            self.refresh_violation(&told, open.looked);
        }
    }

    /// With where it leads, or which port it was addressed to, as far as its other end shows: as for a new one.
    fn translated_as_open(&mut self, seen: &Observation) -> Observation {
        let Some((mut made, mut accepted)) = self.gathered.both(seen) else { return *seen };
        if !self.may_be_met(&made) {
            return *seen;
        }
        self.join(&mut made, &mut accepted);
        match seen.direction {
            Direction::Egress => made,
            Direction::Ingress => accepted,
        }
    }

    /// Who takes part in it and what the policies say, by what is known now.
    fn judge_as_it_is(
        &mut self,
        mut seen: Observation,
        ask: &mut dyn FnMut(&Tuple) -> Option<SocketAddr>,
    ) -> (Observation, Subject, Judged) {
        let subject = self.subject_of_namespace(seen.netns);
        let from_node = seen.direction == Direction::Ingress && self.own_addresses.contains(&seen.peer_ip());
        let paired_with_host = from_node && self.is_paired(&seen);
        let mut judged = self.judge_ends(&seen, &subject, paired_with_host);
        // The endpoints of now say little of where it went then.
        if matches!(subject, Subject::Pod(_))
            && judged.may_have_led_elsewhere(&seen)
            && let Some(tuple) = self.tuple(&seen)
            && let Some(to) = ask(&tuple).map(canonical).filter(|to| *to != tuple.destination)
        {
            seen.translated = Some(Translated { to, by: Translation::Conntrack });
            judged = self.judge_ends(&seen, &subject, paired_with_host);
        }
        (seen, subject, judged)
    }

    /// Whether the address of the peer was a pod's or a Service's when the connection began, and is not any more. One to a pod that
    /// is gone may stay open for long, and the address be another pod's or nobody's: neither says anything of it.
    fn is_another_peer(&self, open: &OpenConnection, peer: SocketAddr) -> bool {
        match [open.seen.at, open.looked].map(|at| self.peer_at(open, peer, at)) {
            [Endpoint::Pod(began), Endpoint::Pod(now)] => began != now,
            [
                Endpoint::Service { namespace, name, .. },
                Endpoint::Service { namespace: namespace_now, name: name_now, .. },
            ] => (namespace, name) != (namespace_now, name_now),
            [Endpoint::Pod(_), Endpoint::Service { .. } | Endpoint::External]
            | [Endpoint::Service { .. }, Endpoint::Pod(_) | Endpoint::External] => true,
            _ => false,
        }
    }

    /// Whether it is known whose the peer's address is, and was when the connection began: a pod that is gone may be forgotten,
    /// and of a new one the watch may not have told.
    fn is_peer_known(&self, open: &OpenConnection) -> bool {
        let ip = open.seen.peer_ip();
        match self.peer_at(open, open.seen.remote, open.looked) {
            now @ Endpoint::Pod(_) => self.peer_at(open, open.seen.remote, open.seen.at) == now,
            Endpoint::External => !self.cluster.in_pod_network(ip) || self.own_addresses.contains(&ip),
            _ => true,
        }
    }

    fn peer_at(&self, open: &OpenConnection, peer: SocketAddr, at: Timestamp) -> Endpoint {
        self.cluster.resolve(peer.ip(), peer.port(), open.seen.protocol, at)
    }

    /// A connection as a flow. It began before, so it is among neither the flows nor the matches of now.
    fn tell_open(&mut self, seen: &Observation, subject: Subject, judged: Judged, why: Open) -> Flow {
        let reach = reach(seen, false);
        let finding = finding(seen, reach, &judged.verdict, judged.other_end.as_deref());
        let cause = match why {
            Open::BeforeStart => UnenforcedCause::OlderConnection,
            Open::Since(_) => UnenforcedCause::OlderThanPolicy,
        };
        let mut flow = self.name(seen, subject, judged, reach, finding);
        flow.cause = (finding == Some(Finding::Unenforced)).then_some(cause);
        flow.open = Some(why);
        self.count_violation(&flow);
        flow
    }
}

/// What both ends of a connection have in common, and no other has: where it comes from, and the number of its handshake.
fn connection(seen: &Observation) -> Option<(SocketAddr, NonZeroU32)> {
    let client = match seen.direction {
        Direction::Egress => seen.local,
        Direction::Ingress => seen.remote,
    };
    Some((canonical(client), seen.handshake?))
}

/// The connection as of the look.
fn as_of(open: &OpenConnection) -> Observation {
    Observation { at: open.looked, ..open.seen }
}
