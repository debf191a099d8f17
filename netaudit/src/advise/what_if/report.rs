//! What changes, grouped so that a person can read it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    hash::BuildHasher as _,
};

use serde::Serialize;

use super::{
    class::{Class, End, Missing, Some5, Tally},
    judge::{Judged, decided_by},
};
use crate::{
    advise::Outcome,
    audit::line::in_words,
    model::{Cause, Decision, Direction, Protocol, Timestamp, Verdict},
};

/// How the verdict of a connection changes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub struct Change {
    /// By the policies of then.
    pub before: Outcome,
    /// With the candidate.
    pub after: Outcome,
}

impl Change {
    /// Whether the connection fares otherwise; if not, only one end's policies say something else.
    pub fn is_effective(self) -> bool {
        self.before != self.after
    }
}

/// Flows that change in the same way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Row {
    /// What becomes of them.
    #[serde(flatten)]
    pub change: Change,
    /// The workload that opens connections, as `namespace/name`; else what kind of end it is.
    pub source: String,
    /// The workload that they are for.
    pub destination: String,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The destination's port.
    pub port: u16,
    /// The ends whose policies say something else now.
    pub directions: Vec<Direction>,
    /// How many flows: what the end told that told more, as both tell of one connection.
    pub flows: u64,
    /// Told by the source's node.
    pub flows_told_by_source: u64,
    /// Told by the destination's node.
    pub flows_told_by_destination: u64,
    /// Of those that were told, how many got an answer.
    pub reached: u64,
    /// How many pods, or addresses outside, opened them.
    pub sources: usize,
    /// To how many pods or addresses.
    pub destinations: usize,
    /// Some of the addresses outside the cluster.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// When the first began, in UTC.
    #[serde(serialize_with = "in_words")]
    pub first: Timestamp,
    /// When the last did; of folded records when the last of theirs ended.
    #[serde(serialize_with = "in_words")]
    pub last: Timestamp,
    /// What decided, with how many flows, those with most first.
    pub before_by: Vec<Why>,
    /// What decides with the candidate.
    pub after_by: Vec<Why>,
    /// How many of the flows were recorded with another verdict than the policies of then give.
    pub recorded_otherwise: u64,
    /// The last of them, for `netaudit why`.
    pub example: String,
}

/// What decides.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Why {
    /// `egress: NetworkPolicy/shop/web egress[0]`.
    pub by: String,
    /// How many flows.
    pub flows: u64,
}

/// Flows that pass today, and that an enforcer would stop after the change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Enforced {
    /// `unenforced`: they passed though they are denied today; `not isolated`: no policy is in their way today.
    pub today: &'static str,
    /// As of [`Row`].
    pub source: String,
    /// As of [`Row`].
    pub destination: String,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The destination's port.
    pub port: u16,
    /// How many passed, by the end that told more.
    pub flows: u64,
    /// When the last began.
    #[serde(serialize_with = "in_words")]
    pub last: Timestamp,
    /// What denies them after the change.
    pub after_by: Vec<Why>,
    /// One of them, for `netaudit why`.
    pub example: String,
}

/// Flows that could not be judged again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Unreplayed {
    /// Why.
    pub reason: &'static str,
    /// How many.
    pub flows: u64,
    /// Some of the runs, nodes or pods that it is about.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub about: Vec<String>,
    /// One of them, for `netaudit why`.
    pub example: String,
}

/// Flows that were recorded with another verdict than the policies of then give.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Doubt {
    /// What was recorded.
    pub recorded: Outcome,
    /// What the objects of then say.
    pub then: Outcome,
    /// How many.
    pub flows: u64,
    /// One of them, for `netaudit why`.
    pub example: String,
}

/// Flows of which nothing is known, neither by the policies of then nor with the candidate.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct StillUnknown {
    /// Why, by what the candidate's policies say: `ingress: source translated`.
    pub by: String,
    /// How many.
    pub flows: u64,
    /// One of them, for `netaudit why`.
    pub example: String,
}

/// What a candidate changes.
#[derive(Default, Debug)]
pub struct Report {
    /// Flows that were judged again.
    pub replayed: u64,
    /// Those of them whose connection fares otherwise.
    pub changed: u64,
    /// Records of them.
    pub records: u64,
    /// Classes of flows by state of the objects: how often policies were asked.
    pub judged: u64,
    /// Flows of folded records among them.
    pub folded: u64,
    /// Flows of folded records that lasted over a change of the objects.
    pub spanning: u64,
    /// Flows that may have been told twice.
    pub maybe_repeated: u64,
    rows: BTreeMap<RowKey, Rows>,
    enforced: BTreeMap<EnforcedKey, Rows>,
    missing: BTreeMap<&'static str, Lost>,
    doubts: BTreeMap<(Outcome, Outcome), (u64, String)>,
    unknown: BTreeMap<String, (u64, String)>,
}

type RowKey = (Change, String, String, Protocol, u16, Vec<Direction>);
type EnforcedKey = (&'static str, String, String, Protocol, u16);

/// What is summed up of a row.
#[derive(Default, Debug)]
struct Rows {
    by_source: u64,
    by_destination: u64,
    reached: u64,
    sources: Distinct,
    destinations: Distinct,
    /// The first [`ADDRESSES`] of them, in order.
    addresses: BTreeSet<String>,
    first: Option<Timestamp>,
    last: Option<(Timestamp, String)>,
    before: BTreeMap<String, u64>,
    after: BTreeMap<String, u64>,
    otherwise: u64,
}

/// How many different ones there are. They may be very many: what is kept of each is a number that no two of them are likely to share.
#[derive(Default, Debug)]
struct Distinct(HashSet<u64, foldhash::fast::FixedState>);

impl Distinct {
    fn add(&mut self, name: &str) {
        self.0.insert(self.0.hasher().hash_one(name));
    }
}

#[derive(Default, Debug)]
struct Lost {
    flows: u64,
    about: Some5,
    example: String,
}

/// How many addresses of a row are told.
const ADDRESSES: usize = 20;

impl Report {
    /// Adds flows of one class that were judged; `run` is the agent run that told them and `recorded` what it said of its own end.
    pub fn add(
        &mut self,
        (class, run): (&Class, &str),
        recorded: Outcome,
        tally: &Tally,
        then: &Judged,
        after: &Judged,
    ) {
        self.judged += 1;
        self.replayed += tally.flows;
        self.records += tally.records;
        self.folded += tally.folded;
        self.spanning += tally.spanning;
        self.maybe_repeated += tally.maybe_repeated;
        let id = || format!("{run}-{}", tally.example);
        let otherwise = Outcome::of(&then.own) != recorded;
        if otherwise {
            let key = (recorded, Outcome::of(&then.own));
            let (flows, example) = self.doubts.entry(key).or_default();
            *flows += tally.flows;
            *example = id();
        }
        let change = Change { before: then.outcome(), after: after.outcome() };
        self.changed += if change.is_effective() { tally.flows } else { 0 };
        let ends = ends(class, then, after);
        if (change.before, change.after) == (Outcome::Unknown, Outcome::Unknown) {
            let unknown = ends.iter().filter(|(.., after)| Outcome::of(after) == Outcome::Unknown);
            let by = unknown.map(|(direction, _, after)| format!("{direction}: {}", decided_by(after)));
            let (flows, example) = self.unknown.entry(by.collect::<Vec<_>>().join("; ")).or_default();
            *flows += tally.flows;
            *example = id();
        }
        let changed: Vec<&(Direction, &Verdict, &Verdict)> =
            ends.iter().filter(|(_, then, after)| Outcome::of(then) != Outcome::of(after)).collect();
        if change.is_effective() || !changed.is_empty() {
            let directions: Vec<Direction> = changed.iter().map(|(direction, ..)| *direction).collect();
            let (source, destination) = (class.source().workload(), class.destination().workload());
            let key = (change, source, destination, class.protocol, class.port, directions);
            let row = self.rows.entry(key).or_default();
            row.add(class, tally, tally.flows, id());
            row.reached += tally.reached;
            row.otherwise += if otherwise { tally.flows } else { 0 };
            let words = |of: fn(&(Direction, &Verdict, &Verdict)) -> String| -> String {
                changed.iter().map(|end| of(end)).collect::<Vec<_>>().join("; ")
            };
            let before = words(|(direction, then, _)| format!("{direction}: {}", decided_by(then)));
            let after = words(|(direction, _, after)| format!("{direction}: {}", decided_by(after)));
            *row.before.entry(before).or_default() += tally.flows;
            *row.after.entry(after).or_default() += tally.flows;
        }
        if change.after == Outcome::Denied {
            self.add_enforced(class, tally, change.before, &ends, id());
        }
    }

    fn add_enforced(
        &mut self,
        class: &Class,
        tally: &Tally,
        before: Outcome,
        ends: &[(Direction, &Verdict, &Verdict)],
        id: String,
    ) {
        let not_isolated = |(_, then, after): &&(Direction, &Verdict, &Verdict)| {
            matches!(then.decision, Decision::Allowed(Cause::NotIsolated)) && after.is_denied()
        };
        let (today, flows) = match before {
            Outcome::Denied => ("unenforced", tally.unenforced),
            Outcome::Allowed if ends.iter().any(|end| not_isolated(&end)) => ("not isolated", tally.reached),
            _ => return,
        };
        if flows == 0 {
            return;
        }
        let (source, destination) = (class.source().workload(), class.destination().workload());
        let row = self.enforced.entry((today, source, destination, class.protocol, class.port)).or_default();
        row.add(class, tally, flows, id);
        let denying = ends.iter().filter(|(.., after)| after.is_denied());
        let words: Vec<String> =
            denying.map(|(direction, _, after)| format!("{direction}: {}", decided_by(after))).collect();
        *row.after.entry(words.join("; ")).or_default() += flows;
    }

    /// Adds flows that cannot be judged again.
    pub fn add_missing(&mut self, run: &str, tally: &Tally, missing: &Missing) {
        let lost = self.missing.entry(missing.reason()).or_default();
        lost.flows += tally.flows;
        lost.about.add(missing.what());
        lost.example = format!("{run}-{}", tally.example);
    }

    /// Flows that could not be judged again.
    pub fn unreplayed(&self) -> Vec<Unreplayed> {
        let of = |(reason, lost): (&&'static str, &Lost)| Unreplayed {
            reason,
            flows: lost.flows,
            about: lost.about.clone().into_vec(),
            example: lost.example.clone(),
        };
        self.missing.iter().map(of).collect()
    }

    /// Flows that were recorded otherwise than the policies of then say.
    pub fn doubts(&self) -> Vec<Doubt> {
        let of = |((recorded, then), (flows, example)): (&(Outcome, Outcome), &(u64, String))| Doubt {
            recorded: *recorded,
            then: *then,
            flows: *flows,
            example: example.clone(),
        };
        self.doubts.iter().map(of).collect()
    }

    /// Flows of which nothing is known, before or after: they may fare otherwise.
    pub fn still_unknown(&self) -> Vec<StillUnknown> {
        let of = |(by, (flows, example)): (&String, &(u64, String))| StillUnknown {
            by: by.clone(),
            flows: *flows,
            example: example.clone(),
        };
        self.unknown.iter().map(of).collect()
    }

    /// What changes, by how it changes; of each change what most flows do first. Rows of which the connection fares as before come
    /// too.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self.rows.iter().map(|(key, row)| row.row(key)).collect();
        rows.sort_by_key(|row| (row.change, std::cmp::Reverse(row.flows)));
        rows
    }

    /// What passes today and an enforcer would stop after the change.
    pub fn enforced(&self) -> Vec<Enforced> {
        let of = |(key, row): (&EnforcedKey, &Rows)| {
            let (today, source, destination, protocol, port) = key.clone();
            let (last, example) = row.last.clone().unwrap_or_default();
            let after_by = whys(&row.after);
            let flows = row.flows();
            Enforced { today, source, destination, protocol, port, flows, last, after_by, example }
        };
        let mut rows: Vec<Enforced> = self.enforced.iter().map(of).collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.flows));
        rows
    }
}

/// Both ends with what was and what will be said of them, the source's first. An end that policies do not select is left out.
fn ends<'a>(
    class: &Class,
    then: &'a Judged,
    after: &'a Judged,
) -> Vec<(Direction, &'a Verdict, &'a Verdict)> {
    let mut ends = vec![(class.direction, &*then.own, &*after.own)];
    // Where only one of the two knows the other end, nothing is certain of it in the other.
    if let (Some(then), Some(after)) = (&then.other, &after.other) {
        ends.push((class.direction.opposite(), then, after));
    }
    ends.sort_by_key(|(direction, ..)| *direction);
    ends
}

impl Rows {
    fn add(&mut self, class: &Class, tally: &Tally, flows: u64, id: String) {
        match class.direction {
            Direction::Egress => self.by_source += flows,
            Direction::Ingress => self.by_destination += flows,
        }
        self.sources.add(&class.source().single());
        self.destinations.add(&class.destination().single());
        for end in [class.source(), class.destination()] {
            if let End::External { ip, .. } = end
                && self.addresses.insert(ip.to_string())
                && self.addresses.len() > ADDRESSES
            {
                self.addresses.pop_last();
            }
        }
        self.first = Some(self.first.map_or(tally.first, |first| first.min(tally.first)));
        if self.last.as_ref().is_none_or(|(last, _)| *last <= tally.last) {
            self.last = Some((tally.last, id));
        }
    }

    fn flows(&self) -> u64 {
        self.by_source.max(self.by_destination)
    }

    fn row(&self, (change, source, destination, protocol, port, directions): &RowKey) -> Row {
        let (last, example) = self.last.clone().unwrap_or_default();
        Row {
            change: *change,
            source: source.clone(),
            destination: destination.clone(),
            protocol: *protocol,
            port: *port,
            directions: directions.clone(),
            flows: self.flows(),
            flows_told_by_source: self.by_source,
            flows_told_by_destination: self.by_destination,
            reached: self.reached,
            sources: self.sources.0.len(),
            destinations: self.destinations.0.len(),
            addresses: self.addresses.iter().cloned().collect(),
            first: self.first.unwrap_or_default(),
            last,
            before_by: whys(&self.before),
            after_by: whys(&self.after),
            recorded_otherwise: self.otherwise,
            example,
        }
    }
}

fn whys(by: &BTreeMap<String, u64>) -> Vec<Why> {
    let mut whys: Vec<Why> = by.iter().map(|(by, flows)| Why { by: by.clone(), flows: *flows }).collect();
    whys.sort_by_key(|why| std::cmp::Reverse(why.flows));
    whys
}
