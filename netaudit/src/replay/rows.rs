//! The columns of flows, read row by row: what tells one from another, and whose they are.

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

use super::classes::Key;
use crate::{
    advise::{
        Outcome,
        what_if::{Class, End, Hidden, Missing, Workload},
    },
    audit::privacy::key_of,
    model::{Direction, Gap, Translation},
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

/// Words of classes, each once: most are of many.
#[derive(Debug, Default)]
pub(super) struct Texts(HashSet<Arc<str>, foldhash::fast::RandomState>);

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

/// The numbers of a row's words, with its port and the number of its names.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Numbers([u32; WORDS.len() + 1]);

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
pub(super) struct Is<'a> {
    column: Words<'a>,
    is: Vec<bool>,
}

impl<'a> Is<'a> {
    fn new(column: Words<'a>, word: &str) -> Self {
        let is = column.words.iter().map(|it| it == Some(word)).collect();
        Self { column, is }
    }

    pub fn is(&self, row: usize) -> bool {
        self.is.get(self.column.number(row) as usize).copied().unwrap_or(false)
    }
}

/// The columns of a batch.
pub(super) struct Rows<'a> {
    pub times: &'a PrimitiveArray<TimestampMicrosecondType>,
    pub last_times: &'a PrimitiveArray<TimestampMicrosecondType>,
    pub sequences: &'a PrimitiveArray<UInt64Type>,
    pub counts: &'a PrimitiveArray<UInt64Type>,
    ports: &'a PrimitiveArray<UInt16Type>,
    pub folded: &'a BooleanArray,
    pub maybe_repeated: &'a BooleanArray,
    words: Vec<Words<'a>>,
    names: &'a ListArray,
    name: &'a StringArray,
    name_counts: &'a BooleanArray,
    pub reached: Is<'a>,
    pub unenforced: Is<'a>,
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
    pub fn of(batch: &'a RecordBatch) -> anyhow::Result<Self> {
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

    pub fn numbers(&self, row: usize, known: &mut HashMap<Vec<&'a str>, u32>) -> Numbers {
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

    pub fn key(&self, row: usize, texts: &mut Texts) -> Key {
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
