//! How `netaudit flows` counts flows.

use std::{
    borrow::Cow,
    io::{self, Write},
    str::FromStr,
};

use anyhow::Context as _;
use arrow::{
    array::{Array as _, AsArray as _, RecordBatch, UInt32Array},
    datatypes::{DataType, UInt16Type, UInt32Type, UInt64Type},
};
use foldhash::HashMap;
use serde_json::{Map, Value};

use super::one_line;
use crate::store::flows::schema::schema;

/// What flows are counted by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Field {
    /// `namespace/workload` of a pod, else what it is.
    Subject,
    /// The same of the other end, or its address.
    Peer,
    /// `TCP/443`.
    Port,
    /// A column of words.
    Column(&'static str),
}

/// Columns of words, by the names that a store has them under.
fn word_columns() -> Vec<&'static str> {
    static NAMES: std::sync::LazyLock<Vec<String>> = std::sync::LazyLock::new(|| {
        let is_words = |data_type: &DataType| matches!(data_type, DataType::Dictionary(..));
        let schema = schema();
        let fields = schema.fields().iter().filter(|field| is_words(field.data_type()));
        fields.map(|field| field.name().clone()).collect()
    });
    NAMES.iter().map(String::as_str).collect()
}

impl FromStr for Field {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let names = word_columns();
        match text {
            "subject" => Ok(Self::Subject),
            "peer" => Ok(Self::Peer),
            "port" => Ok(Self::Port),
            name => names
                .iter()
                .find(|known| **known == name)
                .map(|known| Self::Column(known))
                .ok_or_else(|| format!("{name:?} is none of subject, peer, port, {}", names.join(", "))),
        }
    }
}

impl Field {
    fn name(&self) -> &'static str {
        match self {
            Self::Subject => "subject",
            Self::Peer => "peer",
            Self::Port => "port",
            Self::Column(name) => name,
        }
    }

    fn columns(&self) -> Vec<&'static str> {
        match self {
            Self::Subject => vec!["subject_kind", "subject_namespace", "subject_workload", "subject_node"],
            Self::Peer => vec!["peer_kind", "peer_namespace", "peer_workload", "peer_node", "peer_ip"],
            Self::Port => vec!["protocol", "port"],
            Self::Column(name) => vec![name],
        }
    }
}

/// Numbers of words in a batch.
type Key = smallvec::SmallVec<[u32; 8]>;

/// Flows, counted.
#[derive(Debug)]
pub(super) struct Top {
    fields: Vec<Field>,
    counts: HashMap<Vec<String>, u64>,
    total: u64,
}

impl Top {
    pub(super) fn new(fields: Vec<Field>) -> Self {
        Self { fields, counts: HashMap::default(), total: 0 }
    }

    /// What must be read.
    pub(super) fn columns(&self) -> Vec<&'static str> {
        self.fields.iter().flat_map(Field::columns).chain(["count"]).collect()
    }

    /// Counts the flows of a batch: words are put together once for each combination in it.
    pub(super) fn add(&mut self, batch: &RecordBatch) -> anyhow::Result<()> {
        let counts = batch.column_by_name("count").context("no column count")?.as_primitive::<UInt64Type>();
        if self.fields.is_empty() {
            self.total += counts.values().iter().sum::<u64>();
            return Ok(());
        }
        let columns: Vec<Vec<Ids<'_>>> =
            self.fields.iter().map(|field| ids(batch, field)).collect::<anyhow::Result<_>>()?;
        let numbers: Vec<Cow<'_, [u32]>> = columns.iter().flatten().map(Ids::of_rows).collect();
        let mut of_batch: HashMap<Key, u64> = HashMap::default();
        // Flows of a subject stand beside one another: most are counted with the one before.
        let begins = begins(&numbers, batch.num_rows());
        for (from, until) in begins.iter().zip(begins.iter().skip(1).chain([&batch.num_rows()])) {
            let flows: u64 = counts.values()[*from..*until].iter().sum();
            self.total += flows;
            *of_batch.entry(numbers.iter().map(|ids| ids[*from]).collect()).or_default() += flows;
        }
        for (key, count) in of_batch {
            let mut rest = key.as_slice();
            let words = self.fields.iter().zip(&columns).map(|(field, columns)| {
                let (mine, others) = rest.split_at(columns.len());
                rest = others;
                let words: Vec<&str> = columns.iter().zip(mine).map(|(ids, id)| ids.word(*id)).collect();
                let port = mine.last().copied().unwrap_or(0);
                label(field, &words, port)
            });
            let words: Vec<String> = words.collect();
            *self.counts.entry(words).or_default() += count;
        }
        Ok(())
    }

    /// All of them.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    fn sorted(&self, most: usize) -> Vec<(&Vec<String>, u64)> {
        let mut counts: Vec<_> = self.counts.iter().map(|(words, count)| (words, *count)).collect();
        counts.sort_by(|a, b| (b.1, a.0).cmp(&(a.1, b.0)));
        counts.truncate(most);
        counts
    }

    pub(super) fn json(&self, most: usize) -> Vec<Value> {
        let one = |(words, count): (&Vec<String>, u64)| {
            let names = self.fields.iter().map(|field| field.name().to_owned());
            let mut object: Map<String, Value> =
                names.zip(words.iter().map(|word| Value::from(word.as_str()))).collect();
            object.insert("flows".to_owned(), count.into());
            Value::from(object)
        };
        self.sorted(most).into_iter().map(one).collect()
    }

    pub(super) fn print(&self, out: &mut impl Write, most: usize) -> io::Result<()> {
        let head = self.fields.iter().map(|field| field.name().to_uppercase().replace('_', " "));
        let mut lines = vec![["FLOWS".to_owned()].into_iter().chain(head).collect::<Vec<_>>()];
        for (words, count) in self.sorted(most) {
            let words = words.iter().map(|word| one_line(word));
            lines.push([count.to_string()].into_iter().chain(words).collect());
        }
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..=self.fields.len()).map(width).collect();
        for line in &lines {
            let count = format!("{:>width$}", line[0], width = widths[0]);
            let words = line[1..].iter().zip(&widths[1..]).map(|(word, width)| format!("  {word:<width$}"));
            writeln!(out, "{}", (count + &words.collect::<String>()).trim_end())?;
        }
        let others = self.counts.len().saturating_sub(most);
        if others > 0 {
            writeln!(out, "and {others} more; -k says how many to print")?;
        }
        Ok(())
    }
}

/// The words of a column in a batch by number; of a port the number itself.
enum Ids<'a> {
    Words(&'a UInt32Array, &'a arrow::array::StringArray),
    Ports(&'a arrow::array::UInt16Array),
}

/// Rows that differ from the one before them, and the first one.
fn begins(numbers: &[Cow<'_, [u32]>], rows: usize) -> Vec<usize> {
    if rows == 0 {
        return Vec::new();
    }
    // Of every row but the first. Nothing but slices: a processor compares many at once.
    let mut differs = vec![0_u32; rows - 1];
    for ids in numbers {
        for ((differs, before), id) in differs.iter_mut().zip(&ids[..rows - 1]).zip(&ids[1..rows]) {
            *differs |= before ^ id;
        }
    }
    let mut begins = vec![0];
    begins.extend(differs.iter().enumerate().filter(|(_, differs)| **differs != 0).map(|(row, _)| row + 1));
    begins
}

impl<'a> Ids<'a> {
    /// Of each row.
    fn of_rows(&self) -> Cow<'a, [u32]> {
        match self {
            Self::Words(keys, _) if keys.null_count() == 0 => Cow::Borrowed(keys.values()),
            Self::Words(keys, _) => keys.iter().map(|key| key.unwrap_or(u32::MAX)).collect(),
            Self::Ports(ports) => ports.values().iter().map(|port| u32::from(*port)).collect(),
        }
    }

    fn word(&self, id: u32) -> &'a str {
        match self {
            Self::Words(_, words) if id != u32::MAX => words.value(id as usize),
            Self::Words(..) | Self::Ports(_) => "",
        }
    }
}

fn ids<'a>(batch: &'a RecordBatch, field: &Field) -> anyhow::Result<Vec<Ids<'a>>> {
    field
        .columns()
        .into_iter()
        .map(|name| {
            let column = batch.column_by_name(name).with_context(|| format!("no column {name}"))?;
            if let Some(ports) = column.as_primitive_opt::<UInt16Type>() {
                return Ok(Ids::Ports(ports));
            }
            let words = column.as_dictionary_opt::<UInt32Type>();
            let words = words.and_then(|words| Some((words.keys(), words.values().as_string_opt::<i32>()?)));
            let (keys, words) = words.with_context(|| format!("the column {name} is of another type"))?;
            Ok(Ids::Words(keys, words))
        })
        .collect()
}

fn label(field: &Field, words: &[&str], port: u32) -> String {
    match (field, words) {
        (Field::Port, [protocol, ..]) => format!("{protocol}/{port}"),
        (Field::Subject | Field::Peer, ["pod", namespace, workload, ..]) => {
            format!("{namespace}/{workload}")
        }
        (Field::Subject | Field::Peer, ["node", _, _, node, ..]) => format!("node {node}"),
        (Field::Peer, ["external", _, _, _, ip]) => (*ip).to_owned(),
        (Field::Peer, [kind, _, _, _, ip]) => format!("{kind} {ip}"),
        (_, words) => words.first().copied().unwrap_or_default().to_owned(),
    }
}
