//! Flows on their way into columns.
//!
//! Most of a flow's words come in groups that repeat: who an end is, what a verdict says. See [`Group`].

use std::{net::IpAddr, sync::Arc};

use arrow::{
    array::{
        ArrayRef, BooleanArray, BooleanBuilder, DictionaryArray, ListBuilder, PrimitiveArray, RecordBatch,
        StringArray, StringBuilder, StructBuilder, TimestampMicrosecondArray, TimestampMicrosecondBuilder,
        UInt16Array, UInt32Array, UInt64Array,
    },
    datatypes::{DataType, Field, UInt32Type},
    error::ArrowError,
};

use super::{
    group::{Group, Place},
    schema::{END, SAID, ZONE, log_schema, name_fields},
};
use crate::{
    audit::{
        Open, PeerKind, Subject,
        line::{self, End, Said, Telling},
    },
    cluster::PodId,
    model::{Comm, Timestamp, Verdict},
};

type Words = Group<Place, &'static str>;
type Texts = Group<Place, Arc<str>>;
type Ends = Group<EndKey, EndWords>;
type Verdicts = Group<Place, Kept>;
type Services = Group<[Place; 2], ServiceName>;
/// By address, and whether it is hashed.
type Addresses = Group<(IpAddr, bool), String>;

/// Who an end is, as it is found again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum EndKey {
    Pod(PodId),
    /// One that is like all others of its kind.
    Kind(Place),
    /// By its node's name.
    Node(Place),
    /// A pod that nobody knows, by its UID.
    Unknown(Place),
}

/// An end in words.
#[derive(Debug)]
struct EndWords {
    /// So that nothing else comes to be at its place.
    _named: Option<Arc<str>>,
    /// In the order of [`END`].
    words: [Option<String>; END.len()],
}

impl EndWords {
    fn new(end: &End<'_>, named: Option<&Arc<str>>) -> Self {
        let words =
            [Some(end.kind), end.namespace, end.pod, end.uid, end.workload, end.workload_kind, end.node];
        Self { _named: named.cloned(), words: words.map(|word| word.map(str::to_owned)) }
    }
}

/// A verdict in words.
#[derive(Debug)]
struct Kept {
    /// So that nothing else comes to be at its place.
    _verdict: Arc<Verdict>,
    said: Said<'static>,
}

/// A Service in words.
#[derive(Debug)]
struct ServiceName {
    /// So that nothing else comes to be at their places.
    _parts: (Arc<str>, Arc<str>),
    name: String,
}

fn keep(verdict: &Arc<Verdict>) -> Kept {
    Kept { _verdict: verdict.clone(), said: owned(line::said(verdict)) }
}

fn owned(said: Said<'_>) -> Said<'static> {
    let own = |words: Vec<std::borrow::Cow<'_, str>>| {
        words.into_iter().map(|word| std::borrow::Cow::Owned(word.into_owned())).collect()
    };
    Said {
        verdict: match said.verdict {
            "allowed" => "allowed",
            "denied" => "denied",
            _ => "unknown",
        },
        rules: own(said.rules),
        rule_paths: own(said.rule_paths),
        denied_by: own(said.denied_by),
        passed_rules: own(said.passed_rules),
        passed_by: own(said.passed_by),
        reason: said.reason.map(|reason| std::borrow::Cow::Owned(reason.into_owned())),
        caveats: own(said.caveats),
        generation: said.generation,
    }
}

/// Flows that are to become one batch of columns.
#[derive(Debug)]
pub struct Columns {
    node: Arc<str>,
    /// How many flows the last batch had: most likely the next one has as many.
    expected: usize,
    times: Vec<i64>,
    last_times: Vec<Option<i64>>,
    runs: Texts,
    sequences: Vec<u64>,
    maybe_repeated: Vec<bool>,
    folded: Vec<bool>,
    counts: Vec<u64>,
    open_before_start: Vec<bool>,
    open_since: Vec<Option<i64>>,
    direction: Words,
    subject: Ends,
    subject_ip: Addresses,
    actor_kind: Words,
    visitor: Group<Option<PodId>, [Option<String>; 3]>,
    actor_pod_uid: Texts,
    actor_container: Texts,
    pids: Vec<u32>,
    comm: Group<Comm, String>,
    peer: Ends,
    service: Services,
    peer_ip: Addresses,
    peer_ports: Vec<u16>,
    names: ListBuilder<StructBuilder>,
    protocol: Words,
    ports: Vec<u16>,
    requested_ip: Addresses,
    requested_ports: Vec<Option<u16>>,
    translation: Words,
    outcome: Words,
    errno: Group<u8, String>,
    reach: Words,
    drop_reason: Words,
    closed_port: Vec<bool>,
    waited: Vec<u64>,
    verdict: Verdicts,
    peer_verdict: Verdicts,
    finding: Words,
    cause: Words,
}

impl Columns {
    /// No flow yet, of this node's agent.
    pub fn new(node: Arc<str>) -> Self {
        Self::with_room(node, 0)
    }

    /// The same with room for so many flows: what grows is copied time and again.
    fn with_room(node: Arc<str>, flows: usize) -> Self {
        let item = Field::new("item", DataType::Struct(name_fields()), false);
        Self {
            node,
            expected: 0,
            times: Vec::with_capacity(flows),
            last_times: Vec::with_capacity(flows),
            runs: Group::with_room(flows),
            sequences: Vec::with_capacity(flows),
            maybe_repeated: Vec::with_capacity(flows),
            folded: Vec::with_capacity(flows),
            counts: Vec::with_capacity(flows),
            open_before_start: Vec::with_capacity(flows),
            open_since: Vec::with_capacity(flows),
            direction: Group::with_room(flows),
            subject: Group::with_room(flows),
            subject_ip: Group::with_room(flows),
            actor_kind: Group::with_room(flows),
            visitor: Group::with_room(flows),
            actor_pod_uid: Group::with_room(flows),
            actor_container: Group::with_room(flows),
            pids: Vec::with_capacity(flows),
            comm: Group::with_room(flows),
            peer: Group::with_room(flows),
            service: Group::with_room(flows),
            peer_ip: Group::with_room(flows),
            peer_ports: Vec::with_capacity(flows),
            names: ListBuilder::new(StructBuilder::from_fields(name_fields(), 0)).with_field(item),
            protocol: Group::with_room(flows),
            ports: Vec::with_capacity(flows),
            requested_ip: Group::with_room(flows),
            requested_ports: Vec::with_capacity(flows),
            translation: Group::with_room(flows),
            outcome: Group::with_room(flows),
            errno: Group::with_room(flows),
            reach: Group::with_room(flows),
            drop_reason: Group::with_room(flows),
            closed_port: Vec::with_capacity(flows),
            waited: Vec::with_capacity(flows),
            verdict: Group::with_room(flows),
            peer_verdict: Group::with_room(flows),
            finding: Group::with_room(flows),
            cause: Group::with_room(flows),
        }
    }

    /// Flows so far.
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.times.is_empty()
    }

    /// Adds a flow.
    pub fn push(&mut self, telling: &Telling<'_>) {
        if self.is_empty() && self.expected > 0 {
            *self = Self::with_room(self.node.clone(), self.expected);
        }
        let (flow, seen) = (telling.flow, &telling.flow.observation);
        let micros = |time: Timestamp| telling.wall(time).0.div_euclid(1_000);
        self.times.push(micros(seen.first()));
        self.last_times.push(seen.folded.map(|_| micros(seen.at)));
        push_text(&mut self.runs, Some(&flow.id.run));
        self.sequences.push(flow.id.sequence);
        self.maybe_repeated.push(seen.maybe_repeated);
        self.folded.push(seen.folded.is_some());
        self.counts.push(seen.count());
        self.open_before_start.push(flow.open == Some(Open::BeforeStart));
        self.open_since.push(telling.open_since().map(|time| time.0.div_euclid(1_000)));
        push_word(&mut self.direction, Some(seen.direction.as_str()));
        self.push_ends(telling);
        self.push_actor(telling);
        self.push_peer(telling);
        push_word(&mut self.protocol, Some(seen.protocol.as_str()));
        self.ports.push(flow.port);
        match flow.requested {
            Some(asked) => {
                push_address(&mut self.requested_ip, telling, asked.ip(), telling.hashes_requested());
            }
            None => self.requested_ip.push_none(),
        }
        self.requested_ports.push(flow.requested.map(|address| address.port()));
        push_word(&mut self.translation, flow.translation.map(|it| it.as_str()));
        push_word(&mut self.outcome, Some(seen.outcome.as_str()));
        match seen.errno {
            Some(errno) => self.errno.push(errno.0, |_| errno.name().into_owned()),
            None => self.errno.push_none(),
        }
        push_word(&mut self.reach, Some(flow.reach.as_str()));
        push_word(&mut self.drop_reason, flow.stopped_by.map(|reason| reason.0));
        self.closed_port.push(flow.closed_port);
        self.waited.push(u64::try_from(seen.waited.as_micros()).unwrap_or(u64::MAX));
        self.verdict.push(Place::of(&*flow.verdict), |_| keep(&flow.verdict));
        match &flow.other_end {
            Some(verdict) => self.peer_verdict.push(Place::of(&**verdict), |_| keep(verdict)),
            None => self.peer_verdict.push_none(),
        }
        push_word(&mut self.finding, flow.finding.map(|finding| finding.as_str()));
        push_word(&mut self.cause, flow.cause.map(|cause| cause.as_str()));
    }

    fn push_ends(&mut self, telling: &Telling<'_>) {
        let (subject, named) = match &telling.flow.subject {
            Subject::Pod(id) => (EndKey::Pod(*id), None),
            Subject::Node => (EndKey::Kind(Place::of("node")), None),
            Subject::Unknown { uid: Some(uid) } => (EndKey::Unknown(Place::of(&**uid)), Some(uid)),
            Subject::Unknown { uid: None } => (EndKey::Kind(Place::of("unknown")), None),
        };
        self.subject.push(subject, |_| EndWords::new(&telling.subject(), named));
        match telling.subject_ip() {
            // A pod's, or the node's: never one that is outside.
            Some(ip) => push_address(&mut self.subject_ip, telling, ip, false),
            None => self.subject_ip.push_none(),
        }
        let (peer, named) = match &telling.flow.peer.kind {
            PeerKind::Pod(id) => (EndKey::Pod(*id), None),
            PeerKind::Node(Some(name)) => (EndKey::Node(Place::of(&**name)), Some(name)),
            PeerKind::Node(None) => (EndKey::Kind(Place::of("node")), None),
            PeerKind::Service => (EndKey::Kind(Place::of("service")), None),
            PeerKind::Loopback => (EndKey::Kind(Place::of("loopback")), None),
            PeerKind::External => (EndKey::Kind(Place::of("external")), None),
            PeerKind::Unknown => (EndKey::Kind(Place::of("unknown")), None),
        };
        self.peer.push(peer, |_| EndWords::new(&telling.peer(), named));
    }

    fn push_actor(&mut self, telling: &Telling<'_>) {
        let flow = telling.flow;
        push_word(&mut self.actor_kind, Some(flow.actor_kind.as_str()));
        match telling.visitor() {
            Some(pod) => {
                let id = telling.cluster.pod_by_uid(&pod.uid);
                self.visitor.push(id, |_| {
                    [&pod.namespace, &pod.name, &pod.workload.name].map(|word| Some(word.to_string()))
                });
            }
            None => self.visitor.push_none(),
        }
        push_text(&mut self.actor_pod_uid, flow.actor_pod.as_ref());
        push_text(&mut self.actor_container, flow.actor_container.as_ref());
        let (pid, comm) = telling.process();
        self.pids.push(pid);
        self.comm.push(comm, |comm| comm.to_string());
    }

    fn push_peer(&mut self, telling: &Telling<'_>) {
        let flow = telling.flow;
        match &flow.peer.service {
            Some(service) => {
                let places = [Place::of(&*service.0), Place::of(&*service.1)];
                self.service.push(places, |_| ServiceName {
                    _parts: service.clone(),
                    name: line::service_name(service),
                });
            }
            None => self.service.push_none(),
        }
        push_address(&mut self.peer_ip, telling, flow.peer.ip, telling.hashes_peer());
        self.peer_ports.push(telling.peer_port());
        for seen in telling.names() {
            let name = telling.name(seen);
            let row = self.names.values();
            push_string(row, 0, name.name);
            push_string(row, 1, name.state);
            push_bool(row, 2, name.asked);
            push_bool(row, 3, name.counts);
            if let Some(times) = row.field_builder::<TimestampMicrosecondBuilder>(4) {
                times.append_value(name.answered.0.div_euclid(1_000));
            }
            push_string(row, 5, &name.server.to_string());
            row.append(true);
        }
        self.names.append(true);
    }

    /// All flows that were added, and begins anew.
    ///
    /// # Errors
    ///
    /// None, as long as these columns are those of [`log_schema`].
    pub fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        let rows = self.len();
        let new = Self { expected: rows, ..Self::new(self.node.clone()) };
        let all = std::mem::replace(self, new);
        let mut columns: Vec<ArrayRef> = vec![
            times(all.times.into()),
            times(all.last_times.into()),
            Arc::new(DictionaryArray::<UInt32Type>::try_new(
                UInt32Array::from_value(0, rows),
                Arc::new(StringArray::from_iter_values([&*all.node])),
            )?),
            all.runs.words(|run| Some(run))?,
            Arc::new(UInt64Array::from(all.sequences)),
            Arc::new(BooleanArray::from(all.maybe_repeated)),
            Arc::new(BooleanArray::from(all.folded)),
            Arc::new(UInt64Array::from(all.counts)),
            Arc::new(BooleanArray::from(all.open_before_start)),
            times(all.open_since.into()),
            words(&all.direction)?,
        ];
        push_end(&mut columns, &all.subject)?;
        columns.push(all.subject_ip.words(|ip| Some(ip))?);
        columns.push(words(&all.actor_kind)?);
        for place in 0..3 {
            columns.push(all.visitor.words(|visitor| visitor[place].as_deref())?);
        }
        columns.push(all.actor_pod_uid.words(|uid| Some(uid))?);
        columns.push(all.actor_container.words(|id| Some(id))?);
        columns.push(Arc::new(UInt32Array::from(all.pids)));
        columns.push(all.comm.words(|comm| Some(comm))?);
        push_end(&mut columns, &all.peer)?;
        columns.push(all.service.words(|service| Some(&service.name))?);
        columns.push(all.peer_ip.words(|ip| Some(ip))?);
        columns.push(Arc::new(UInt16Array::from(all.peer_ports)));
        let mut names = all.names;
        columns.push(Arc::new(names.finish()));
        columns.push(words(&all.protocol)?);
        columns.push(Arc::new(UInt16Array::from(all.ports)));
        columns.push(all.requested_ip.words(|ip| Some(ip))?);
        columns.push(Arc::new(PrimitiveArray::from(all.requested_ports) as UInt16Array));
        columns.push(words(&all.translation)?);
        columns.push(words(&all.outcome)?);
        columns.push(all.errno.words(|errno| Some(errno))?);
        columns.push(words(&all.reach)?);
        columns.push(words(&all.drop_reason)?);
        columns.push(Arc::new(BooleanArray::from(all.closed_port)));
        columns.push(Arc::new(UInt64Array::from(all.waited)));
        push_said(&mut columns, &all.verdict)?;
        push_said(&mut columns, &all.peer_verdict)?;
        columns.push(words(&all.finding)?);
        columns.push(words(&all.cause)?);
        RecordBatch::try_new(log_schema(), columns)
    }
}

fn push_word(group: &mut Words, word: Option<&'static str>) {
    match word {
        Some(word) => group.push(Place::of(word), |_| word),
        None => group.push_none(),
    }
}

fn push_address(group: &mut Addresses, telling: &Telling<'_>, ip: IpAddr, hashes: bool) {
    group.push((ip, hashes), |(ip, hashes)| telling.address(ip, hashes).to_string());
}

fn push_text(group: &mut Texts, text: Option<&Arc<str>>) {
    match text {
        Some(text) => group.push(Place::of(&**text), |_| text.clone()),
        None => group.push_none(),
    }
}

fn push_string(row: &mut StructBuilder, place: usize, text: &str) {
    if let Some(texts) = row.field_builder::<StringBuilder>(place) {
        texts.append_value(text);
    }
}

fn push_bool(row: &mut StructBuilder, place: usize, value: bool) {
    if let Some(values) = row.field_builder::<BooleanBuilder>(place) {
        values.append_value(value);
    }
}

fn times(times: TimestampMicrosecondArray) -> ArrayRef {
    Arc::new(times.with_timezone(ZONE))
}

fn words(group: &Words) -> Result<ArrayRef, ArrowError> {
    group.words(|word| Some(word))
}

fn push_end(columns: &mut Vec<ArrayRef>, ends: &Ends) -> Result<(), ArrowError> {
    for place in 0..END.len() {
        columns.push(ends.words(|end| end.words[place].as_deref())?);
    }
    Ok(())
}

/// In the order of [`SAID`].
fn push_said(columns: &mut Vec<ArrayRef>, verdicts: &Verdicts) -> Result<(), ArrowError> {
    let generations = verdicts.each().map(|kept| kept?.said.generation);
    let said: [ArrayRef; SAID.len()] = [
        verdicts.words(|kept| Some(kept.said.verdict))?,
        verdicts.lists(|kept| &kept.said.rules)?,
        verdicts.lists(|kept| &kept.said.rule_paths)?,
        verdicts.lists(|kept| &kept.said.denied_by)?,
        verdicts.lists(|kept| &kept.said.passed_rules)?,
        verdicts.lists(|kept| &kept.said.passed_by)?,
        verdicts.words(|kept| kept.said.reason.as_deref())?,
        verdicts.lists(|kept| &kept.said.caveats)?,
        Arc::new(generations.collect::<UInt64Array>()),
    ];
    columns.extend(said);
    Ok(())
}
