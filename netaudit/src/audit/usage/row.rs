//! What one agent run saw of a rule in one window of time, in a form that merges: rows with equal keys are one row told twice,
//! of which each figure's greatest counts; rows with different keys add up.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::RangeInclusive,
    sync::Arc,
};

use super::{RuleKey, Schedule};
use crate::{
    model::{Protocol, Timestamp},
    policy::Element,
};

/// Different peers or ports that are remembered of a rule in a window; more are known only as too many.
const MOST_TOUCHED: usize = 64;

/// How often something matched, and when.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Uses {
    /// Flows.
    pub matches: u64,
    /// The first one, or when a connection was first found open.
    pub first: Option<Timestamp>,
    /// The last one, or when a connection was last found open.
    pub last: Option<Timestamp>,
}

impl Uses {
    /// So many flows more, between these times.
    pub fn add(&mut self, times: u64, span: &RangeInclusive<Timestamp>) {
        self.matches = self.matches.saturating_add(times);
        self.span(Some(*span.start()), Some(*span.end()));
    }

    /// Those of another key.
    pub fn plus(&mut self, other: &Self) {
        self.matches = self.matches.saturating_add(other.matches);
        self.span(other.first, other.last);
    }

    /// The same, told once more.
    fn join(&mut self, other: &Self) {
        self.matches = self.matches.max(other.matches);
        self.span(other.first, other.last);
    }

    fn span(&mut self, first: Option<Timestamp>, last: Option<Timestamp>) {
        self.first = self.first.into_iter().chain(first).min();
        self.last = self.last.max(last);
    }

    /// The same on another time line.
    pub(super) fn shifted(self, by: i64) -> Self {
        let shift = |time: Timestamp| Timestamp(time.0.saturating_add(by));
        Self { first: self.first.map(shift), last: self.last.map(shift), ..self }
    }
}

/// With whom and at which ports the flows were that a rule had a part in, as far as they are few.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Touched {
    /// Ports of the destination.
    pub ports: BTreeSet<(Protocol, u16)>,
    /// Addresses of peers, where the rule has ranges of addresses or is for everybody.
    pub addresses: BTreeSet<IpAddr>,
    /// Peers that are pods: namespace and workload.
    pub workloads: BTreeSet<(Arc<str>, Arc<str>)>,
    /// Set where there were more ports, addresses or workloads than are remembered.
    pub too_many: [bool; 3],
}

impl Touched {
    pub(super) fn port(&mut self, protocol: Protocol, port: u16) {
        insert(&mut self.ports, &(protocol, port), &mut self.too_many[0]);
    }

    pub(super) fn address(&mut self, ip: IpAddr) {
        insert(&mut self.addresses, &ip, &mut self.too_many[1]);
    }

    pub(super) fn workload(&mut self, name: &(Arc<str>, Arc<str>)) {
        insert(&mut self.workloads, name, &mut self.too_many[2]);
    }

    /// Those of other flows, as far as they are few; addresses where they say something.
    pub(super) fn absorb(&mut self, other: &Self, with_addresses: bool) {
        for (protocol, port) in &other.ports {
            self.port(*protocol, *port);
        }
        if with_addresses {
            other.addresses.iter().for_each(|ip| self.address(*ip));
            self.too_many[1] |= other.too_many[1];
        }
        other.workloads.iter().for_each(|name| self.workload(name));
        self.too_many[0] |= other.too_many[0];
        self.too_many[2] |= other.too_many[2];
    }

    /// All of both: also where they have one key, as a set holds a thing once.
    pub(super) fn join(&mut self, other: &Self) {
        self.ports.extend(&other.ports);
        self.addresses.extend(&other.addresses);
        self.workloads.extend(other.workloads.iter().cloned());
        for (mine, theirs) in self.too_many.iter_mut().zip(other.too_many) {
            *mine |= theirs;
        }
    }
}

fn insert<T: Ord + Clone>(set: &mut BTreeSet<T>, item: &T, too_many: &mut bool) {
    // Nothing is said of more than are remembered, so that which they are is worth no search for every flow.
    if *too_many || set.contains(item) {
        return;
    }
    if set.len() < MOST_TOUCHED {
        set.insert(item.clone());
    } else {
        *too_many = true;
    }
}

/// Which run of which agent.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RunKey {
    /// The node.
    pub node: Arc<str>,
    /// The run, as in flow ids.
    pub run: Arc<str>,
}

/// A run of an agent, as it was when it last told. Times are on the run's own time line, which never steps.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Run {
    /// When this was told.
    pub written: Timestamp,
    /// When the run began to watch.
    pub from: Timestamp,
    /// Runs that this node's store has seen before.
    pub sequence: u64,
    /// Which boot of the node.
    pub boot: Arc<str>,
    /// Nanoseconds from the time since boot to the run's time line.
    pub line: i64,
    /// Nanoseconds from the time since boot to the wall clock, when this was told.
    pub wall: i64,
    /// Whether it was told at the run's end, with all that the run had taken.
    pub ended: bool,
    /// Records that had been lost by then, since the programs were loaded.
    pub losses: u64,
}

/// What a row is about.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RowKey {
    /// The rule.
    pub rule: RuleKey,
    /// Who saw it.
    pub run: RunKey,
    /// When the window begins.
    pub window: Timestamp,
}

/// The figures of a row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// From when on the rule was watched in this window.
    pub from: Timestamp,
    /// Until when.
    pub until: Timestamp,
    /// Its place in the policy at that time.
    pub index: u32,
    /// Whether its policy was there at that time.
    pub current: bool,
    /// Whether any sensor can see what it allows.
    pub observable: bool,
    /// The CronJobs that it may be for, at that time.
    pub schedule: Schedule,
    /// Whether it can match anything at all.
    pub possible: bool,
    /// What it allows, in one line.
    pub summary: Arc<str>,
    /// Milliseconds in which it was watched.
    pub watched_ms: u64,
    /// Pod-milliseconds of the pods of the cluster that it selects.
    pub selected_ms: u64,
    /// Pod-milliseconds of those that this agent saw.
    pub observed_ms: u64,
    /// Records that were lost in the window, of any rule.
    pub lost: u64,
    /// Flows in the window without a verdict, which the rule may have allowed.
    pub unjudged: u64,
    /// Flows that it had a part in.
    pub uses: Uses,
    /// Those of them that it alone decided.
    pub sole: Uses,
    /// Its elements.
    pub elements: BTreeMap<u64, (Element, Uses)>,
    /// With whom.
    pub touched: Touched,
}

impl Row {
    /// The same row, told once more.
    fn join(&mut self, other: &Self) {
        let state = |row: &Self| {
            (
                row.until,
                row.index,
                row.current,
                row.observable,
                row.schedule,
                row.possible,
                row.summary.clone(),
            )
        };
        if state(other) > state(self) {
            (_, self.index, self.current, self.observable, self.schedule, self.possible, self.summary) =
                state(other);
        }
        self.from = self.from.min(other.from);
        self.until = self.until.max(other.until);
        self.watched_ms = self.watched_ms.max(other.watched_ms);
        self.selected_ms = self.selected_ms.max(other.selected_ms);
        self.observed_ms = self.observed_ms.max(other.observed_ms);
        self.lost = self.lost.max(other.lost);
        self.unjudged = self.unjudged.max(other.unjudged);
        self.sole.join(&other.sole);
        self.uses.join(&other.uses);
        self.touched.join(&other.touched);
        for (hash, (element, uses)) in &other.elements {
            let (mine, known) =
                self.elements.entry(*hash).or_insert_with(|| (element.clone(), Uses::default()));
            known.join(uses);
            // Where it stands is told by the lower place, and how wide it is by the widest, as a selector may have been counted again
            // in between: so it does not matter who is asked first.
            let order = |it: &Element| (std::cmp::Reverse(it.index), it.span);
            if order(element) > order(mine) {
                *mine = element.clone();
            }
        }
    }
}

/// Rules that matched the same flows: all but one could have been missing.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TogetherKey {
    /// The rules, two at least.
    pub rules: BTreeSet<RuleKey>,
    /// Who saw it.
    pub run: RunKey,
    /// When the window begins.
    pub window: Timestamp,
}

/// Rows of any number of agents and runs.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Rows {
    /// Rules.
    pub rules: BTreeMap<RowKey, Row>,
    /// Rules that matched together.
    pub together: BTreeMap<TogetherKey, Uses>,
    /// Who told.
    pub runs: BTreeMap<RunKey, Run>,
}

impl Rows {
    /// Adds a row, or what it has more than the one with its key.
    pub fn add(&mut self, key: RowKey, row: Row) {
        match self.rules.get_mut(&key) {
            Some(known) => known.join(&row),
            None => drop(self.rules.insert(key, row)),
        }
    }

    /// Adds a set of rules that matched together.
    pub fn add_together(&mut self, key: TogetherKey, uses: Uses) {
        self.together.entry(key).or_default().join(&uses);
    }

    /// Adds what a run says of itself; what it said last counts.
    pub fn add_run(&mut self, key: RunKey, run: Run) {
        match self.runs.get_mut(&key) {
            Some(known) if *known >= run => {}
            Some(known) => *known = run,
            None => drop(self.runs.insert(key, run)),
        }
    }

    /// Adds all rows of `other`. In any order and however often, the result is the same.
    pub fn merge(&mut self, other: Self) {
        other.rules.into_iter().for_each(|(key, row)| self.add(key, row));
        other.together.into_iter().for_each(|(key, uses)| self.add_together(key, uses));
        other.runs.into_iter().for_each(|(key, run)| self.add_run(key, run));
    }
}
