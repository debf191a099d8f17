//! Flows on their way into columns.
//!
//! Most of a flow's words come in groups that repeat: who an end is, what a verdict says. Each group is put into words once for
//! all flows of a batch that share it; a flow keeps its number.

use std::{hash::Hash, net::IpAddr, sync::Arc};

use arrow::{
    array::{
        ArrayRef, BooleanArray, BooleanBuilder, DictionaryArray, GenericListBuilder, ListBuilder,
        PrimitiveArray, RecordBatch, StringArray, StringBuilder, StructBuilder, TimestampMicrosecondArray,
        TimestampMicrosecondBuilder, UInt16Array, UInt32Array, UInt64Array,
    },
    compute::take,
    datatypes::{DataType, Field, UInt32Type},
    error::ArrowError,
};
use foldhash::HashMap;

use super::schema::{END, SAID, ZONE, name_fields, schema};
use crate::{
    audit::{
        Open, PeerKind, Subject,
        line::{self, End, Said, Telling},
    },
    cluster::PodId,
    model::{Comm, Timestamp, Verdict},
};

/// Stands for no word.
const NONE: u32 = u32::MAX;

/// Words that flows share.
#[derive(Debug)]
struct Group<K, V> {
    ids: HashMap<K, u32>,
    values: Vec<V>,
    keys: Vec<u32>,
}

impl<K, V> Default for Group<K, V> {
    fn default() -> Self {
        Self { ids: HashMap::default(), values: Vec::new(), keys: Vec::new() }
    }
}

impl<K: Hash + Eq, V> Group<K, V> {
    fn push(&mut self, key: K, value: impl FnOnce(&K) -> V) {
        let next = u32::try_from(self.values.len()).unwrap_or(NONE);
        let values = &mut self.values;
        let id = *self.ids.entry(key).or_insert_with_key(|key| {
            values.push(value(key));
            next
        });
        self.keys.push(id);
    }

    fn push_none(&mut self) {
        self.keys.push(NONE);
    }

    /// A column of the words that `word` finds in each value.
    fn words(&self, word: impl Fn(&V) -> Option<&str>) -> Result<ArrayRef, ArrowError> {
        let mut ids: HashMap<&str, u32> = HashMap::default();
        let mut words: Vec<&str> = Vec::new();
        let of_value: Vec<u32> = self
            .values
            .iter()
            .map(|value| {
                word(value).map_or(NONE, |word| {
                    *ids.entry(word).or_insert_with(|| {
                        words.push(word);
                        words.len() as u32 - 1
                    })
                })
            })
            .collect();
        let key = |key: &u32| Some(*of_value.get(*key as usize)?).filter(|id| *id != NONE);
        let keys: UInt32Array = self.keys.iter().map(key).collect();
        let words = StringArray::from_iter_values(words);
        Ok(Arc::new(DictionaryArray::<UInt32Type>::try_new(keys, Arc::new(words))?))
    }

    /// A column of the lists that `list` finds in each value; empty where a flow has none.
    fn lists(&self, list: impl Fn(&V) -> &[std::borrow::Cow<'static, str>]) -> Result<ArrayRef, ArrowError> {
        let mut lists = strings();
        for value in &self.values {
            lists.append_value(list(value).iter().map(|word| Some(&**word)));
        }
        lists.append_value(std::iter::empty::<Option<&str>>());
        let none = self.values.len() as u32;
        let keys: UInt32Array =
            self.keys.iter().map(|key| if *key == NONE { none } else { *key }).collect::<Vec<_>>().into();
        take(&lists.finish(), &keys, None)
    }
}

fn strings() -> GenericListBuilder<i32, StringBuilder> {
    ListBuilder::new(StringBuilder::new()).with_field(Field::new("item", DataType::Utf8, false))
}

/// Who an end is, as it is found again.
#[derive(PartialEq, Eq, Hash, Debug)]
enum EndKey {
    Pod(PodId),
    Word(&'static str),
    /// A node's name, or the UID of a pod that nobody knows.
    Named(&'static str, Arc<str>),
}

/// An end's words, in the order of [`END`].
type EndWords = [Option<String>; END.len()];

fn end_words(end: &End<'_>) -> EndWords {
    [Some(end.kind), end.namespace, end.pod, end.uid, end.workload, end.workload_kind, end.node]
        .map(|word| word.map(str::to_owned))
}

/// A verdict by its place, which is kept as long as its words are needed.
#[derive(Debug)]
struct Kept {
    _place: Arc<Verdict>,
    said: Said<'static>,
}

fn keep(verdict: &Arc<Verdict>) -> Kept {
    Kept { _place: verdict.clone(), said: owned(line::said(verdict)) }
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

type Words = Group<&'static str, &'static str>;
type Texts = Group<Arc<str>, Arc<str>>;
type Ends = Group<EndKey, EndWords>;
type Verdicts = Group<usize, Kept>;
/// By address, and whether it is hashed.
type Addresses = Group<(IpAddr, bool), String>;

/// Flows that are to become one batch of columns.
#[derive(Debug)]
pub struct Columns {
    node: Arc<str>,
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
    service: Group<(Arc<str>, Arc<str>), String>,
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
        let item = Field::new("item", DataType::Struct(name_fields()), false);
        Self {
            node,
            times: Vec::new(),
            last_times: Vec::new(),
            runs: Group::default(),
            sequences: Vec::new(),
            maybe_repeated: Vec::new(),
            folded: Vec::new(),
            counts: Vec::new(),
            open_before_start: Vec::new(),
            open_since: Vec::new(),
            direction: Group::default(),
            subject: Group::default(),
            subject_ip: Group::default(),
            actor_kind: Group::default(),
            visitor: Group::default(),
            actor_pod_uid: Group::default(),
            actor_container: Group::default(),
            pids: Vec::new(),
            comm: Group::default(),
            peer: Group::default(),
            service: Group::default(),
            peer_ip: Group::default(),
            peer_ports: Vec::new(),
            names: ListBuilder::new(StructBuilder::from_fields(name_fields(), 0)).with_field(item),
            protocol: Group::default(),
            ports: Vec::new(),
            requested_ip: Group::default(),
            requested_ports: Vec::new(),
            translation: Group::default(),
            outcome: Group::default(),
            errno: Group::default(),
            reach: Group::default(),
            drop_reason: Group::default(),
            closed_port: Vec::new(),
            waited: Vec::new(),
            verdict: Group::default(),
            peer_verdict: Group::default(),
            finding: Group::default(),
            cause: Group::default(),
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
        let (flow, seen) = (telling.flow, &telling.flow.observation);
        let micros = |time: Timestamp| telling.wall(time).0.div_euclid(1_000);
        self.times.push(micros(seen.first()));
        self.last_times.push(seen.folded.map(|_| micros(seen.at)));
        self.runs.push(flow.id.run.clone(), Arc::clone);
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
        self.verdict.push(Arc::as_ptr(&flow.verdict).addr(), |_| keep(&flow.verdict));
        match &flow.other_end {
            Some(verdict) => self.peer_verdict.push(Arc::as_ptr(verdict).addr(), |_| keep(verdict)),
            None => self.peer_verdict.push_none(),
        }
        push_word(&mut self.finding, flow.finding.map(|finding| finding.as_str()));
        push_word(&mut self.cause, flow.cause.map(|cause| cause.as_str()));
    }

    fn push_ends(&mut self, telling: &Telling<'_>) {
        let subject = match &telling.flow.subject {
            Subject::Pod(id) => EndKey::Pod(*id),
            Subject::Node => EndKey::Word("node"),
            Subject::Unknown { uid: Some(uid) } => EndKey::Named("unknown", uid.clone()),
            Subject::Unknown { uid: None } => EndKey::Word("unknown"),
        };
        self.subject.push(subject, |_| end_words(&telling.subject()));
        match telling.subject_ip() {
            // A pod's, or the node's: never one that is outside.
            Some(ip) => push_address(&mut self.subject_ip, telling, ip, false),
            None => self.subject_ip.push_none(),
        }
        let peer = match &telling.flow.peer.kind {
            PeerKind::Pod(id) => EndKey::Pod(*id),
            PeerKind::Node(Some(name)) => EndKey::Named("node", name.clone()),
            PeerKind::Node(None) => EndKey::Word("node"),
            PeerKind::Service => EndKey::Word("service"),
            PeerKind::Loopback => EndKey::Word("loopback"),
            PeerKind::External => EndKey::Word("external"),
            PeerKind::Unknown => EndKey::Word("unknown"),
        };
        self.peer.push(peer, |_| end_words(&telling.peer()));
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
        self.comm.push(comm, Comm::to_string);
    }

    fn push_peer(&mut self, telling: &Telling<'_>) {
        let flow = telling.flow;
        match &flow.peer.service {
            Some(service) => self.service.push(service.clone(), line::service_name),
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
    /// None, as long as these columns are those of [`schema`].
    pub fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        let new = Self::new(self.node.clone());
        let all = std::mem::replace(self, new);
        let rows = all.len();
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
        columns.push(all.service.words(|service| Some(service))?);
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
        RecordBatch::try_new(schema(), columns)
    }
}

fn push_word(group: &mut Words, word: Option<&'static str>) {
    match word {
        Some(word) => group.push(word, |word| word),
        None => group.push_none(),
    }
}

fn push_address(group: &mut Addresses, telling: &Telling<'_>, ip: IpAddr, hashes: bool) {
    group.push((ip, hashes), |(ip, hashes)| telling.address(*ip, *hashes).to_string());
}

fn push_text(group: &mut Texts, text: Option<&Arc<str>>) {
    match text {
        Some(text) => group.push(text.clone(), Arc::clone),
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
        columns.push(ends.words(|end| end[place].as_deref())?);
    }
    Ok(())
}

/// In the order of [`SAID`].
fn push_said(columns: &mut Vec<ArrayRef>, verdicts: &Verdicts) -> Result<(), ArrowError> {
    let generations = verdicts.keys.iter().map(|key| verdicts.values.get(*key as usize)?.said.generation);
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
