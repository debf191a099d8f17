//! The plain counters of an agent run.

use std::collections::BTreeMap;

use super::{Flow, Histogram, PeerKind, Subject};
use crate::model::{Decision, Direction, Gap, Outcome, Protocol, Reach};

/// The labels of `netaudit_flows_total`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FlowKey {
    /// Egress or ingress.
    pub direction: Direction,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// `allowed`, `denied` or `unknown`.
    pub verdict: &'static str,
    /// What the outcome proves.
    pub reach: Reach,
}

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const VERDICTS: [&str; 3] = ["allowed", "denied", "unknown"];
/// Whereto pods' connections are timed.
const DESTINATIONS: [&str; 4] = ["pod", "service", "node", "external"];

/// Flows and unknowns, counted.
#[derive(Debug)]
pub struct Counts {
    /// One cell for every combination: the hot path indexes, and every series exists from 0.
    flows: [[[[u64; 6]; 3]; 2]; 2],
    unknown: BTreeMap<&'static str, u64>,
    /// By [`DESTINATIONS`].
    connects: [Histogram; 4],
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            flows: Default::default(),
            unknown: Gap::REASONS.into_iter().map(|reason| (reason, 0)).collect(),
            connects: [(); 4].map(|()| Histogram::of_handshakes()),
        }
    }
}

impl Counts {
    /// Counts a flow, or all that it stands for.
    pub fn flow(&mut self, flow: &Flow) {
        let direction = flow.observation.direction as usize;
        let times = flow.observation.count();
        // Kernel records are TCP or UDP; SCTP is unobservable.
        let protocol = usize::from(flow.observation.protocol == Protocol::Udp);
        let verdict = match &flow.verdict.decision {
            Decision::Allowed(_) => 0,
            Decision::Denied(_) => 1,
            Decision::Unknown(gap) => {
                *self.unknown.entry(gap.reason()).or_default() += times;
                2
            }
        };
        self.flows[direction][protocol][verdict][flow.reach as usize] += times;
        if let Some(destination) = timed(flow) {
            self.connects[destination].observe(flow.observation.waited.as_secs_f64());
        }
    }

    /// How long the TCP connections that pods made took to be made, in seconds, by what they went to.
    pub fn connects(&self) -> impl Iterator<Item = (&'static str, &Histogram)> {
        DESTINATIONS.into_iter().zip(&self.connects)
    }

    /// Every series of `netaudit_flows_total`, also those that are 0.
    pub fn flows(&self) -> impl Iterator<Item = (FlowKey, u64)> + '_ {
        Direction::ALL.into_iter().flat_map(move |direction| {
            PROTOCOLS.into_iter().flat_map(move |protocol| {
                VERDICTS.into_iter().enumerate().flat_map(move |(v, verdict)| {
                    Reach::ALL.into_iter().map(move |reach| {
                        let cells =
                            &self.flows[direction as usize][usize::from(protocol == Protocol::Udp)][v];
                        (FlowKey { direction, protocol, verdict, reach }, cells[reach as usize])
                    })
                })
            })
        })
    }

    /// Flows without a verdict by reason, also those that are 0.
    pub fn unknown(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.unknown.iter().map(|(reason, count)| (*reason, *count))
    }

    /// All flows.
    pub fn total(&self) -> u64 {
        self.flows.iter().flatten().flatten().flatten().sum()
    }
}

/// The place among [`DESTINATIONS`] of a connection whose time says something: of those that were folded only a mean
/// is known, and over the loopback a proxy may answer for somebody else.
fn timed(flow: &Flow) -> Option<usize> {
    let seen = &flow.observation;
    let is_made = seen.direction == Direction::Egress && seen.outcome == Outcome::Established;
    if !is_made || seen.folded.is_some() || !matches!(flow.subject, Subject::Pod(_)) {
        return None;
    }
    match flow.peer.kind {
        PeerKind::Pod(_) => Some(0),
        PeerKind::Service => Some(1),
        PeerKind::Node(_) => Some(2),
        PeerKind::External => Some(3),
        PeerKind::Loopback | PeerKind::Unknown => None,
    }
}
