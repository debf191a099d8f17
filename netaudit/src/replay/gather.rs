//! Flows of some namespaces, by whether a rule may follow from them.
//!
//! A rule must not follow from an attempt that came to nothing: a port scan would open what it found closed. What reached the other
//! end counts, and datagrams that nobody answers where they were sent time and again, as logs and metrics are.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use anyhow::Context as _;
use arrow::{
    array::{Array as _, AsArray as _, BooleanArray, RecordBatch, StringArray},
    compute::filter_record_batch,
    datatypes::UInt32Type,
};

use super::{
    classes::{Classes, Key, Slot},
    follow::Follower,
    history::{Histories, History, What},
    names::add_names,
    rows::COLUMNS,
    sweep::judge,
};
use crate::{
    advise::{
        Names,
        suggest::Seen,
        what_if::{Candidate, Class, End, Report, Workload},
    },
    cluster::{Pod, PodId},
    model::{Protocol, Timestamp},
};

/// All columns that are read of a flow.
pub const GATHERED: [&str; COLUMNS.len() + 1] = {
    let mut all = ["peer_verdict"; COLUMNS.len() + 1];
    let mut place = 0;
    while place < COLUMNS.len() {
        all[place] = COLUMNS[place];
        place += 1;
    }
    all
};

/// From so many datagrams on of one workload to one place it is taken for a habit.
pub const HABIT: u64 = 10;

/// What became of a flow, as far as it matters to a rule.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Fate {
    /// The other end got it.
    Reached,
    /// A datagram as they are sent time and again, and nothing is known of it.
    Habit,
    /// Another datagram that was sent, and nothing is known of it.
    Sent,
    /// Policies of then deny it, whatever became of it.
    Denied,
    /// It was refused, or rejected.
    Refused,
    /// A filter stopped it.
    Stopped,
    /// Nobody answered.
    NoAnswer,
    /// It never left.
    NotSent,
    /// It was given up at once.
    GivenUp,
}

impl Fate {
    /// All that a single flow shows.
    const ALL: [Self; 8] = [
        Self::Reached,
        Self::Sent,
        Self::Denied,
        Self::Refused,
        Self::Stopped,
        Self::NoAnswer,
        Self::NotSent,
        Self::GivenUp,
    ];

    /// Why no rule follows from it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reached => "reached",
            Self::Habit => "sent time and again",
            Self::Sent => "sent a few times, and nothing proves that it arrived",
            Self::Denied => "denied by the policies of then",
            Self::Refused => "refused",
            Self::Stopped => "stopped by a filter",
            Self::NoAnswer => "not answered",
            Self::NotSent => "never left its node",
            Self::GivenUp => "given up at once",
        }
    }

    fn of(reach: &str, protocol: &str, verdicts: [&str; 2]) -> Self {
        if verdicts.contains(&"denied") {
            return Self::Denied;
        }
        match reach {
            "reached" => Self::Reached,
            "rejected" => Self::Refused,
            "stopped" => Self::Stopped,
            "not-sent" => Self::NotSent,
            "unproven" if protocol == Protocol::Udp.as_str() => Self::Sent,
            "unproven" => Self::GivenUp,
            _ => Self::NoAnswer,
        }
    }
}

/// A rule follows from these.
const COUNTING: [Fate; 2] = [Fate::Reached, Fate::Habit];

/// Flows of some namespaces.
#[derive(Debug)]
pub struct Gathered<'a> {
    histories: &'a Histories,
    namespaces: &'a BTreeSet<Arc<str>>,
    by_fate: BTreeMap<Fate, Classes<'a>>,
    /// Those that count and went to a Service of which it is not known where they went.
    to_services: Vec<(Fate, Classes<'a>)>,
    names: Names,
}

/// Flows that no rule follows from.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct LeftOut {
    /// Why not.
    pub why: &'static str,
    /// The workload that opened connections, or what kind of end it is.
    pub source: String,
    /// The workload that they were for.
    pub destination: String,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The destination's ports: the first ones.
    pub ports: Vec<u16>,
    /// To how many.
    pub different_ports: usize,
    /// How many flows were told.
    pub flows: u64,
}

/// Ports of flows that were left out that are told.
const PORTS: usize = 10;

impl<'a> Gathered<'a> {
    /// None yet.
    pub fn new(histories: &'a Histories, namespaces: &'a BTreeSet<Arc<str>>) -> Self {
        Self { histories, namespaces, by_fate: BTreeMap::new(), to_services: Vec::new(), names: Names::new() }
    }

    /// Adds the flows of a batch that has [`GATHERED`], of which an end is in the namespaces.
    ///
    /// # Errors
    ///
    /// A column is missing or of another type.
    pub fn add(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        let own = self.own(batch)?;
        if own.true_count() == 0 {
            return Ok(());
        }
        let batch = filter_record_batch(batch, &own)?;
        add_names(&batch, &mut self.names)?;
        let columns = ["reach", "protocol", "verdict", "peer_verdict"];
        let [reach, protocol, verdict, peer_verdict] = columns.map(|name| words(&batch, name));
        let (reach, protocol, verdict, peer_verdict) = (reach?, protocol?, verdict?, peer_verdict?);
        let fate = |row| {
            let [reach, protocol, verdict, peer_verdict] =
                [&reach, &protocol, &verdict, &peer_verdict].map(|words| words.of(row).unwrap_or_default());
            Fate::of(reach, protocol, [verdict, peer_verdict])
        };
        let fates: Vec<Fate> = (0..batch.num_rows()).map(fate).collect();
        for fate in Fate::ALL.into_iter().filter(|fate| fates.contains(fate)) {
            let is_it: BooleanArray = fates.iter().map(|it| Some(*it == fate)).collect();
            let classes = self.by_fate.entry(fate).or_insert_with(|| Classes::new(self.histories));
            classes.add(&filter_record_batch(&batch, &is_it)?)?;
        }
        Ok(())
    }

    /// Which flows have an end in the namespaces; a Service's name has its namespace in it.
    fn own(&self, batch: &RecordBatch) -> anyhow::Result<BooleanArray> {
        let is_own = |namespace: &str| self.namespaces.contains(namespace);
        let mut own = vec![false; batch.num_rows()];
        for name in ["subject_namespace", "peer_namespace", "peer_service"] {
            let words = words(batch, name)?;
            let is_own: Vec<bool> = words
                .all()
                .map(|it| it.is_some_and(|it| is_own(it.split('/').next().unwrap_or(it))))
                .collect();
            for (row, own) in own.iter_mut().enumerate() {
                *own |= words.number(row).is_some_and(|number| is_own.get(number) == Some(&true));
            }
        }
        Ok(own.into())
    }

    /// What DNS called addresses.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Parts datagrams that are sent as a habit from those that are not: to be called when all are there.
    pub fn settle(&mut self) {
        if let Some(sent) = self.by_fate.get_mut(&Fate::Sent) {
            let key = |class: &Class| {
                (class.source().workload(), class.destination().single(), class.protocol, class.port)
            };
            let mut flows: HashMap<_, u64> = HashMap::new();
            for (class, count) in sent.flows() {
                *flows.entry(key(class)).or_default() += count;
            }
            let habit = sent.take(|class| flows.get(&key(class)).is_some_and(|flows| *flows >= HABIT));
            self.by_fate.insert(Fate::Habit, habit);
        }
        for fate in COUNTING {
            let to_services = self
                .by_fate
                .get_mut(&fate)
                .map(|classes| classes.take(|class| matches!(class.destination(), End::Service { .. })));
            self.to_services.extend(to_services.map(|classes| (fate, classes)));
        }
    }

    /// Flows that count, but for those to Services.
    fn direct(&self) -> impl Iterator<Item = (Fate, &Classes<'a>)> {
        COUNTING.into_iter().filter_map(|fate| Some((fate, self.by_fate.get(&fate)?)))
    }

    fn counting(&self) -> impl Iterator<Item = &Classes<'a>> {
        self.direct().map(|(_, classes)| classes).chain(self.to_services.iter().map(|(_, classes)| classes))
    }

    /// How many flows count.
    pub fn flows(&self) -> u64 {
        self.counting().flat_map(Classes::flows).map(|(_, flows)| flows).sum()
    }

    /// Flows that count, but for what the record does not say of them.
    pub fn nameless(&self) -> u64 {
        self.counting().map(Classes::nameless).sum()
    }

    /// Of each run that told of flows the time of the last one.
    pub fn runs(&self) -> BTreeMap<Arc<str>, Timestamp> {
        let mut runs: BTreeMap<Arc<str>, Timestamp> = BTreeMap::new();
        let all = self.by_fate.values().chain(self.to_services.iter().map(|(_, classes)| classes));
        for (run, last) in all.flat_map(Classes::runs) {
            let known = runs.entry(run).or_insert(last);
            *known = last.max(*known);
        }
        runs
    }

    /// Flows to Services, with all ends behind each at that time.
    fn behind(&self) -> Vec<Behind<'_>> {
        let mut by_run: BTreeMap<&str, Vec<Behind<'_>>> = BTreeMap::new();
        for (fate, classes) in &self.to_services {
            for (key, slots) in classes.iter() {
                let Ok(class) = &key.class else { continue };
                let behind = |slot| Behind { fate: *fate, key, class, slot, ends: Vec::new() };
                by_run.entry(&key.run).or_default().extend(slots.iter().map(behind));
            }
        }
        for (run, all) in &mut by_run {
            let Some(history) = self.histories.of(run) else { continue };
            all.sort_by_key(|it| it.slot.tally.first);
            let mut then = Then::new(history);
            for it in all {
                let at = history.judged_at(it.slot.tally.first);
                then.reach(at);
                it.ends = then.behind(it.class, at);
            }
        }
        by_run.into_values().flatten().collect()
    }

    /// Flows that count, with the ends behind Services.
    pub fn seen(&self) -> Vec<Seen<'_>> {
        let seen = |fate, class, slot: &Slot, behind| Seen {
            class,
            flows: slot.tally.flows,
            first: slot.tally.first,
            last: slot.tally.last,
            is_sent: fate == Fate::Habit,
            behind,
        };
        let mut all = Vec::new();
        for (fate, classes) in self.direct() {
            for (key, slots) in classes.iter() {
                let Ok(class) = &key.class else { continue };
                all.extend(slots.iter().map(|slot| seen(fate, class, slot, Vec::new())));
            }
        }
        all.extend(self.behind().into_iter().map(|it| seen(it.fate, it.class, it.slot, it.ends)));
        all
    }

    /// What becomes of the flows that count with a candidate's policies. One that went to a Service is judged as if it had gone to
    /// each end behind it, since it may go there the next time; how many there are of which nobody is known behind it comes too.
    pub fn judge(&self, candidate: &Candidate) -> (Vec<Report>, u64) {
        let mut reports: Vec<Report> =
            self.direct().map(|(_, classes)| judge(classes, self.histories, candidate)).collect();
        let (mut classes, mut nobody, mut flows) = (Classes::new(self.histories), 0, 0);
        for Behind { key, class, slot, ends, .. } in self.behind() {
            if ends.is_empty() {
                nobody += slot.tally.flows;
                continue;
            }
            flows += slot.tally.flows;
            for (end, port) in ends {
                let class = Class { peer: end, port, ..class.clone() };
                classes.put(Key { class: Ok(class), ..key.clone() }, &slot.tally);
            }
        }
        let mut behind = judge(&classes, self.histories, candidate);
        // However many ends there are, it was one flow.
        behind.replayed = flows;
        reports.push(behind);
        (reports, nobody)
    }

    /// What does not count, most flows first.
    pub fn left_out(&self) -> Vec<LeftOut> {
        type Key = (Fate, String, String, Protocol);
        let mut all: BTreeMap<Key, (BTreeSet<u16>, u64)> = BTreeMap::new();
        let others = self.by_fate.iter().filter(|(fate, _)| !COUNTING.contains(fate));
        for (fate, classes) in others {
            for (class, flows) in classes.flows() {
                let (source, destination) = (class.source().workload(), class.destination().workload());
                let (ports, count) = all.entry((*fate, source, destination, class.protocol)).or_default();
                ports.insert(class.port);
                *count += flows;
            }
        }
        let left_out =
            |((fate, source, destination, protocol), (ports, flows)): (Key, (BTreeSet<u16>, u64))| LeftOut {
                why: fate.as_str(),
                source,
                destination,
                protocol,
                different_ports: ports.len(),
                ports: ports.into_iter().take(PORTS).collect(),
                flows,
            };
        let mut all: Vec<LeftOut> = all.into_iter().map(left_out).collect();
        all.sort_by_key(|it| std::cmp::Reverse(it.flows));
        all
    }
}

/// Flows to a Service, and where it led.
struct Behind<'a> {
    fate: Fate,
    key: &'a Key,
    class: &'a Class,
    slot: &'a Slot,
    ends: Vec<(End, u16)>,
}

/// An index that follows a history without its policies, to know where Services led.
struct Then<'a> {
    history: &'a History,
    follower: Follower,
    done: usize,
}

impl<'a> Then<'a> {
    fn new(history: &'a History) -> Self {
        Self { history, follower: Follower::new(&[]), done: 0 }
    }

    fn reach(&mut self, at: Timestamp) {
        for step in self.history.steps_until(at, &mut self.done) {
            let is_policy = matches!(&step.what, What::Apply(object) if object.may_be_policy());
            if !is_policy {
                self.follower.step(&step.what, step.at);
            }
        }
    }

    /// All ends behind the Service that a class went to, each with its target port: its endpoints, and the pods that it selects.
    fn behind(&self, class: &Class, at: Timestamp) -> Vec<(End, u16)> {
        let End::Service { namespace, name, ip } = class.destination() else { return Vec::new() };
        let cluster = &self.follower.cluster;
        let Some(service) = cluster.service(namespace, name) else { return Vec::new() };
        let Some(port) = cluster.recorded_port(service, class.protocol, class.port, Some(*ip), at) else {
            return Vec::new();
        };
        let mut behind: BTreeMap<(Option<PodId>, Option<IpAddr>, u16), End> = BTreeMap::new();
        for backend in cluster.backends(service, port, at) {
            if backend.ip.is_ipv4() != ip.is_ipv4() {
                continue;
            }
            let end = match backend.pod.and_then(|pod| cluster.pod(pod)) {
                Some(pod) => end(pod, Some(backend.ip)),
                None => self.address(backend.ip),
            };
            // A pod is one, whichever of its addresses it is reached at.
            let address = backend.pod.is_none().then_some(backend.ip);
            behind.insert((backend.pod, address, backend.port), end);
        }
        for (pod, port) in cluster.selected_backends(service, port) {
            let (Some(state), Some(port)) = (cluster.pod(pod), port) else { continue };
            if !state.host_network {
                behind.entry((Some(pod), None, port)).or_insert_with(|| end(state, None));
            }
        }
        behind.into_iter().map(|((_, _, port), end)| (end, port)).collect()
    }

    fn address(&self, ip: IpAddr) -> End {
        let cluster = &self.follower.cluster;
        let node = cluster.nodes().find(|node| node.ips.contains(&ip)).map(|node| node.name.clone());
        let host = || {
            let mut pods = cluster.pods().map(|(_, pod)| pod);
            pods.find(|pod| pod.host_network && pod.ips.contains(&ip))?.node.clone()
        };
        match node.or_else(host) {
            Some(name) => End::Node { name, ip: Some(ip) },
            None => End::External { ip, names: [].into() },
        }
    }
}

fn end(pod: &Pod, ip: Option<IpAddr>) -> End {
    End::Pod {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        node: pod.node.clone().unwrap_or_default(),
        workload: Workload { kind: pod.workload.kind.clone(), name: pod.workload.name.clone() },
        ip,
    }
}

/// A column of words.
struct Words<'a> {
    column: &'a arrow::array::PrimitiveArray<UInt32Type>,
    words: &'a StringArray,
}

fn words<'a>(batch: &'a RecordBatch, name: &str) -> anyhow::Result<Words<'a>> {
    let column = batch.column_by_name(name).with_context(|| format!("no column {name}"))?;
    let dictionary = column.as_dictionary_opt::<UInt32Type>();
    let parts = dictionary.and_then(|it| Some((it.keys(), it.values().as_string_opt::<i32>()?)));
    let (column, words) = parts.with_context(|| format!("the column {name} is of another type"))?;
    Ok(Words { column, words })
}

impl<'a> Words<'a> {
    fn number(&self, row: usize) -> Option<usize> {
        (!self.column.is_null(row)).then(|| self.column.value(row) as usize)
    }

    fn of(&self, row: usize) -> Option<&'a str> {
        self.number(row).map(|number| self.words.value(number))
    }

    /// All words that there are.
    fn all(&self) -> impl Iterator<Item = Option<&'a str>> {
        self.words.iter()
    }
}
