//! Flows of stores, counted by what decides their verdict.
//!
//! Most columns of a flow are words by number. Rows that have the same numbers are alike, so that a row costs little more than to
//! compare its numbers with those of the row before: files are sorted by ends.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use anyhow::Context as _;
use arrow::{
    array::{Array, AsArray as _, BooleanArray, ListArray, PrimitiveArray, RecordBatch, StringArray},
    datatypes::{ArrowPrimitiveType, TimestampMicrosecondType, UInt16Type, UInt32Type, UInt64Type},
};

use super::{
    cuts::{Cut, Part, Span},
    history::Histories,
};
use crate::{
    advise::{
        Outcome,
        what_if::{Class, End, Hidden, Missing, Tally, Workload},
    },
    audit::privacy::key_of,
    model::{Direction, Gap, Timestamp, Translation},
};

/// Columns of words that tell classes apart, in the order of the schema.
const WORDS: [&str; 23] = [
    "run",
    "direction",
    "subject_kind",
    "subject_namespace",
    "subject_pod",
    "subject_uid",
    "subject_workload",
    "subject_workload_kind",
    "subject_node",
    "subject_ip",
    "peer_kind",
    "peer_namespace",
    "peer_pod",
    "peer_uid",
    "peer_workload",
    "peer_workload_kind",
    "peer_node",
    "peer_service",
    "peer_ip",
    "protocol",
    "verdict",
    "reason",
    "translation",
];

/// Columns that tell of single flows of a class, or of what is no word.
const OF_FLOWS: [&str; 10] = [
    "time",
    "last_time",
    "sequence",
    "maybe_repeated",
    "folded",
    "count",
    "peer_names",
    "port",
    "reach",
    "finding",
];

/// All columns that are read of a flow.
pub const COLUMNS: [&str; WORDS.len() + OF_FLOWS.len()] = {
    let mut all = [""; WORDS.len() + OF_FLOWS.len()];
    let mut place = 0;
    while place < all.len() {
        all[place] = if place < WORDS.len() { WORDS[place] } else { OF_FLOWS[place - WORDS.len()] };
        place += 1;
    }
    all
};

/// No word.
const NONE: u32 = u32::MAX;

/// What tells flows apart.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key {
    /// The agent run that told them.
    pub run: Arc<str>,
    pub class: Result<Class, Missing>,
    /// What was recorded of the subject's end.
    pub recorded: Outcome,
}

/// Flows of a class between two changes of what it hangs on.
#[derive(Debug)]
pub(super) struct Slot {
    /// The number of its span.
    span: usize,
    pub tally: Tally,
}

#[derive(Debug)]
struct Counted {
    cut: Cut,
    /// In order.
    slots: Vec<Slot>,
    /// The one that was last counted into, and its span.
    recent: Option<(usize, Span)>,
}

/// Flows by class.
#[derive(Debug)]
pub struct Classes<'a> {
    histories: &'a Histories,
    ids: HashMap<Arc<Key>, usize, foldhash::fast::RandomState>,
    keys: Vec<Arc<Key>>,
    counted: Vec<Counted>,
    /// Of all of them.
    slots: usize,
    /// By run and what verdicts hang on.
    cuts: HashMap<(Arc<str>, Vec<Part>), Cut>,
    texts: Texts,
}

/// Words of classes, each once: most are of many.
#[derive(Debug, Default)]
struct Texts(HashSet<Arc<str>, foldhash::fast::RandomState>);

impl Texts {
    fn get(&mut self, word: &str) -> Arc<str> {
        if let Some(known) = self.0.get(word) {
            return known.clone();
        }
        let new: Arc<str> = word.into();
        self.0.insert(new.clone());
        new
    }
}

impl<'a> Classes<'a> {
    /// None yet, of runs of which these are the histories.
    pub fn new(histories: &'a Histories) -> Self {
        Self {
            histories,
            ids: HashMap::default(),
            keys: Vec::new(),
            counted: Vec::new(),
            slots: 0,
            cuts: HashMap::new(),
            texts: Texts::default(),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// How many there are by the times between cuts: that many are judged.
    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Of each run that told of flows the time of the last one.
    pub fn runs(&self) -> Vec<(Arc<str>, Timestamp)> {
        let mut last: HashMap<&Arc<str>, Timestamp> = HashMap::new();
        for (key, slots) in self.iter() {
            let time = last.entry(&key.run).or_insert(Timestamp::MIN);
            *time = slots.iter().map(|slot| slot.tally.last).max().unwrap_or(*time).max(*time);
        }
        let mut runs: Vec<_> = last.into_iter().map(|(run, time)| (run.clone(), time)).collect();
        runs.sort();
        runs
    }

    /// Those that can be judged, with how many flows they have.
    pub fn flows(&self) -> impl Iterator<Item = (&Class, u64)> {
        self.iter().filter_map(|(key, slots)| {
            let flows = slots.iter().map(|slot| slot.tally.flows).sum();
            Some((key.class.as_ref().ok()?, flows))
        })
    }

    /// Flows of which the record does not say enough to be judged.
    pub fn nameless(&self) -> u64 {
        let nameless = self.iter().filter(|(key, _)| key.class.is_err());
        nameless.flat_map(|(_, slots)| slots).map(|slot| slot.tally.flows).sum()
    }

    /// Takes out those that are wanted.
    pub(super) fn take(&mut self, is_wanted: impl Fn(&Class) -> bool) -> Self {
        let mut taken = Self::new(self.histories);
        let mut kept = Self { cuts: std::mem::take(&mut self.cuts), ..Self::new(self.histories) };
        for (key, counted) in self.keys.drain(..).zip(self.counted.drain(..)) {
            let to = if key.class.as_ref().is_ok_and(&is_wanted) { &mut taken } else { &mut kept };
            to.ids.insert(key.clone(), to.keys.len());
            to.keys.push(key);
            to.slots += counted.slots.len();
            to.counted.push(counted);
        }
        *self = kept;
        taken
    }

    /// Adds flows of one time.
    pub(super) fn put(&mut self, key: Key, tally: &Tally) {
        let id = self.id(key);
        let slots = &mut self.counted[id].slots;
        slots.push(Slot { span: slots.len(), tally: tally.clone() });
        self.slots += 1;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &[Slot])> {
        self.keys.iter().zip(&self.counted).map(|(key, counted)| (&**key, counted.slots.as_slice()))
    }

    /// Counts the flows of a batch that has [`COLUMNS`].
    ///
    /// # Errors
    ///
    /// A column is missing or of another type.
    pub fn add(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        let rows = Rows::of(batch)?;
        let mut known: HashMap<Numbers, usize, foldhash::fast::RandomState> = HashMap::default();
        let mut names: HashMap<Vec<&str>, u32> = HashMap::new();
        let mut last: Option<(Numbers, usize)> = None;
        for row in 0..batch.num_rows() {
            let numbers = rows.numbers(row, &mut names);
            let id = match last {
                Some((same, id)) if same == numbers => id,
                _ => match known.get(&numbers) {
                    Some(id) => *id,
                    None => {
                        let key = rows.key(row, &mut self.texts);
                        let id = self.id(key);
                        known.insert(numbers, id);
                        id
                    }
                },
            };
            last = Some((numbers, id));
            self.count(id, &rows, row);
        }
        Ok(())
    }

    /// The classes of the flows of a batch, one by one, with when they began: to be judged one by one.
    ///
    /// # Errors
    ///
    /// A column is missing or of another type.
    pub fn each(batch: &RecordBatch) -> anyhow::Result<Vec<(Class, Timestamp)>> {
        let rows = Rows::of(batch)?;
        let mut texts = Texts::default();
        let flow =
            |row| Some((rows.key(row, &mut texts).class.ok()?, Timestamp(rows.times.value(row) * 1_000)));
        Ok((0..batch.num_rows()).filter_map(flow).collect())
    }

    fn id(&mut self, key: Key) -> usize {
        if let Some(id) = self.ids.get(&key) {
            return *id;
        }
        let cut = self.cut_of(&key);
        let (id, key) = (self.keys.len(), Arc::new(key));
        self.ids.insert(key.clone(), id);
        self.keys.push(key);
        self.counted.push(Counted { cut, slots: Vec::new(), recent: None });
        id
    }

    fn cut_of(&mut self, key: &Key) -> Cut {
        let (Some(history), Ok(class)) = (self.histories.of(&key.run), &key.class) else {
            return Cut::new(std::iter::empty());
        };
        let parts = parts(class);
        let cuts = self.cuts.entry((key.run.clone(), parts));
        cuts.or_insert_with_key(|(_, parts)| history.cuts(parts)).clone()
    }

    fn count(&mut self, id: usize, rows: &Rows<'_>, row: usize) {
        let time = Timestamp(rows.times.value(row).saturating_mul(1_000));
        let counted = &mut self.counted[id];
        let slots = &mut counted.slots;
        let (found, span) = match counted.recent {
            Some(recent) if recent.1.holds(time) => recent,
            _ => {
                let span = counted.cut.span(time);
                let found = slots.binary_search_by_key(&span.number, |slot| slot.span);
                let found = found.unwrap_or_else(|place| {
                    if slots.is_empty() {
                        // Many have one only.
                        slots.reserve_exact(1);
                    }
                    slots.insert(place, Slot { span: span.number, tally: Tally::default() });
                    self.slots += 1;
                    place
                });
                *counted.recent.insert((found, span))
            }
        };
        let tally = &mut slots[found].tally;
        let flows = rows.counts.value(row);
        tally.records += 1;
        tally.flows += flows;
        if rows.folded.value(row) {
            tally.folded += flows;
            let until = match rows.last_times.is_null(row) {
                true => time,
                false => Timestamp(rows.last_times.value(row).saturating_mul(1_000)),
            };
            if until >= span.until {
                tally.spanning += flows;
            }
            tally.last = tally.last.max(until);
        }
        if rows.maybe_repeated.value(row) {
            tally.maybe_repeated += flows;
        }
        if rows.reached.is(row) {
            tally.reached += flows;
        }
        if rows.unenforced.is(row) {
            tally.unenforced += flows;
        }
        tally.first = tally.first.min(time);
        if time >= tally.last {
            tally.last = time;
            tally.example = rows.sequences.value(row);
        } else if tally.example == 0 {
            tally.example = rows.sequences.value(row);
        }
    }
}

/// What a class's verdict hangs on, in order.
fn parts(class: &Class) -> Vec<Part> {
    let mut parts = vec![Part::Cluster];
    for end in [&class.subject, &class.peer] {
        match end {
            End::Pod { namespace, name, .. } => {
                parts.push(Part::Namespace(namespace.clone()));
                parts.push(Part::Pod(namespace.clone(), name.clone()));
            }
            End::Node { name, .. } => parts.push(Part::Node(name.clone())),
            End::Service { namespace, name, .. } => {
                parts.push(Part::Namespace(namespace.clone()));
                parts.push(Part::Services(namespace.clone()));
                parts.push(Part::Pods(namespace.clone()));
                parts.push(Part::Behind(namespace.clone(), name.clone()));
            }
            // Who had an address is not asked again: that is in the record.
            End::Loopback | End::External { .. } => {}
        }
    }
    // A port on the nodes that leads to the subject hides who asks.
    if let (End::Node { .. }, End::Pod { namespace, .. }) = (&class.peer, &class.subject) {
        parts.push(Part::Services(namespace.clone()));
    }
    parts.sort();
    parts.dedup();
    parts
}

/// The numbers of a row's words, with its port and the number of its names.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Numbers([u32; WORDS.len() + 1]);

/// A column of words.
struct Words<'a> {
    keys: &'a PrimitiveArray<UInt32Type>,
    words: &'a StringArray,
}

impl<'a> Words<'a> {
    fn number(&self, row: usize) -> u32 {
        if self.keys.is_null(row) { NONE } else { self.keys.value(row) }
    }

    fn word(&self, row: usize) -> Option<&'a str> {
        let number = self.number(row);
        (number != NONE).then(|| self.words.value(number as usize))
    }
}

/// Whether a column of words has one word.
struct Is<'a> {
    column: Words<'a>,
    is: Vec<bool>,
}

impl<'a> Is<'a> {
    fn new(column: Words<'a>, word: &str) -> Self {
        let is = column.words.iter().map(|it| it == Some(word)).collect();
        Self { column, is }
    }

    fn is(&self, row: usize) -> bool {
        self.is.get(self.column.number(row) as usize).copied().unwrap_or(false)
    }
}

/// The columns of a batch.
struct Rows<'a> {
    times: &'a PrimitiveArray<TimestampMicrosecondType>,
    last_times: &'a PrimitiveArray<TimestampMicrosecondType>,
    sequences: &'a PrimitiveArray<UInt64Type>,
    counts: &'a PrimitiveArray<UInt64Type>,
    ports: &'a PrimitiveArray<UInt16Type>,
    folded: &'a BooleanArray,
    maybe_repeated: &'a BooleanArray,
    words: Vec<Words<'a>>,
    names: &'a ListArray,
    name: &'a StringArray,
    name_counts: &'a BooleanArray,
    reached: Is<'a>,
    unenforced: Is<'a>,
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> anyhow::Result<&'a dyn Array> {
    batch.column_by_name(name).map(|column| &**column).with_context(|| format!("no column {name}"))
}

fn numbers<'a, T: ArrowPrimitiveType>(
    batch: &'a RecordBatch,
    name: &str,
) -> anyhow::Result<&'a PrimitiveArray<T>> {
    let column = column(batch, name)?.as_primitive_opt::<T>();
    column.with_context(|| format!("the column {name} is of another type"))
}

fn words<'a>(batch: &'a RecordBatch, name: &str) -> anyhow::Result<Words<'a>> {
    let dictionary = column(batch, name)?.as_dictionary_opt::<UInt32Type>();
    let words = dictionary.and_then(|it| Some((it, it.values().as_string_opt::<i32>()?)));
    let (dictionary, words) = words.with_context(|| format!("the column {name} is of another type"))?;
    Ok(Words { keys: dictionary.keys(), words })
}

impl<'a> Rows<'a> {
    fn of(batch: &'a RecordBatch) -> anyhow::Result<Self> {
        let flags = |name: &str| -> anyhow::Result<&'a BooleanArray> {
            let column = column(batch, name)?.as_boolean_opt();
            column.with_context(|| format!("the column {name} is of another type"))
        };
        let names = column(batch, "peer_names")?.as_list_opt::<i32>();
        let parts = names.and_then(|names| {
            let fields = names.values().as_struct_opt()?;
            let (name, counts) = (fields.column_by_name("name")?, fields.column_by_name("counts")?);
            Some((names, name.as_string_opt::<i32>()?, counts.as_boolean_opt()?))
        });
        let (names, name, name_counts) = parts.context("the column peer_names is of another type")?;
        Ok(Self {
            times: numbers(batch, "time")?,
            last_times: numbers(batch, "last_time")?,
            sequences: numbers(batch, "sequence")?,
            counts: numbers(batch, "count")?,
            ports: numbers(batch, "port")?,
            folded: flags("folded")?,
            maybe_repeated: flags("maybe_repeated")?,
            words: WORDS.iter().map(|name| words(batch, name)).collect::<anyhow::Result<_>>()?,
            names,
            name,
            name_counts,
            reached: Is::new(words(batch, "reach")?, "reached"),
            unenforced: Is::new(words(batch, "finding")?, "unenforced"),
        })
    }

    fn numbers(&self, row: usize, known: &mut HashMap<Vec<&'a str>, u32>) -> Numbers {
        let mut numbers = [NONE; WORDS.len() + 1];
        for (number, words) in numbers.iter_mut().zip(&self.words) {
            *number = words.number(row);
        }
        let offsets = self.names.value_offsets();
        let names = match offsets[row] == offsets[row + 1] {
            true => 0,
            false => {
                let next = u32::try_from(known.len()).unwrap_or(0) + 1;
                *known.entry(self.names(row)).or_insert(next)
            }
        };
        // A batch has not so many different names.
        numbers[WORDS.len()] = u32::from(self.ports.value(row)) << 16 | names & 0xffff;
        Numbers(numbers)
    }

    /// The names that policies went by.
    fn names(&self, row: usize) -> Vec<&'a str> {
        let offsets = self.names.value_offsets();
        let places = offsets[row] as usize..offsets[row + 1] as usize;
        let mut names: Vec<&str> = places
            .filter(|place| self.name_counts.value(*place))
            .map(|place| self.name.value(place))
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    fn word(&self, name: &str, row: usize) -> Option<&'a str> {
        let place = WORDS.iter().position(|it| *it == name)?;
        self.words[place].word(row)
    }

    fn key(&self, row: usize, texts: &mut Texts) -> Key {
        Key {
            run: texts.get(self.word("run", row).unwrap_or_default()),
            class: self.class(row, texts),
            recorded: Outcome::from_word(self.word("verdict", row).unwrap_or_default()),
        }
    }

    fn class(&self, row: usize, texts: &mut Texts) -> Result<Class, Missing> {
        let damaged = |what: &str| Missing::Damaged(what.into());
        let direction = match self.word("direction", row) {
            Some("egress") => Direction::Egress,
            Some("ingress") => Direction::Ingress,
            _ => return Err(damaged("direction")),
        };
        let protocol = self.word("protocol", row).unwrap_or_default();
        let protocol = protocol.parse().map_err(|_| damaged("protocol"))?;
        let subject_ip = self.word("subject_ip", row).map(str::parse::<IpAddr>).transpose();
        let subject_ip = subject_ip.map_err(|_| damaged("subject_ip"))?;
        let subject = match self.word("subject_kind", row) {
            Some("pod") => self.pod("subject", row, subject_ip, texts).ok_or(Missing::Subject)?,
            Some("node") => End::Node { name: self.text("subject_node", row, texts), ip: subject_ip },
            _ => return Err(Missing::Subject),
        };
        let hidden = match self.word("reason", row) {
            Some(reason) if reason == Gap::SourceTranslated.reason() => Some(Hidden::Source),
            Some(reason) if reason == Gap::PortTranslated.reason() => Some(Hidden::Port),
            // Where nothing isolated, which port it was made no difference then.
            _ if self.word("translation", row) == Some(Translation::Redirect.as_str()) => Some(Hidden::Port),
            _ => None,
        };
        let peer = self.peer(row, texts)?;
        Ok(Class { direction, subject, peer, protocol, port: self.ports.value(row), hidden })
    }

    fn peer(&self, row: usize, texts: &mut Texts) -> Result<End, Missing> {
        let kind = self.word("peer_kind", row).unwrap_or_default();
        if kind == "loopback" {
            return Ok(End::Loopback);
        }
        let text = self.word("peer_ip", row).unwrap_or_default();
        if key_of(text).is_some() {
            return Err(if kind == "external" { Missing::Hashed } else { Missing::Peer });
        }
        let ip: IpAddr = text.parse().map_err(|_| Missing::Damaged("peer_ip".into()))?;
        match kind {
            "pod" => self.pod("peer", row, Some(ip), texts).ok_or(Missing::Peer),
            "node" => Ok(End::Node { name: self.text("peer_node", row, texts), ip: Some(ip) }),
            "service" => {
                let service = self.word("peer_service", row).and_then(|name| name.split_once('/'));
                let (namespace, name) = service.ok_or(Missing::Peer)?;
                Ok(End::Service { namespace: texts.get(namespace), name: texts.get(name), ip })
            }
            "external" => Ok(End::External {
                ip,
                names: self.names(row).into_iter().map(|name| texts.get(name)).collect(),
            }),
            _ => Err(Missing::Peer),
        }
    }

    fn pod(&self, of: &str, row: usize, ip: Option<IpAddr>, texts: &mut Texts) -> Option<End> {
        let word = |name: &str| self.word(&format!("{of}_{name}"), row);
        let (namespace, name) = (word("namespace")?, word("pod")?);
        let mut text = |name: &str| texts.get(word(name).unwrap_or_default());
        let (kind, uid, node) = (text("workload_kind"), text("uid"), text("node"));
        Some(End::Pod {
            namespace: texts.get(namespace),
            workload: Workload { kind, name: texts.get(word("workload").unwrap_or(name)) },
            name: texts.get(name),
            uid,
            node,
            ip,
        })
    }

    fn text(&self, name: &str, row: usize, texts: &mut Texts) -> Arc<str> {
        texts.get(self.word(name, row).unwrap_or_default())
    }
}
