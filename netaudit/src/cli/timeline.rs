//! `netaudit timeline`: what a pod did, what was done to it, and what changed for it, in one order.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    ops::ControlFlow,
};

use anyhow::ensure;
use serde::Serialize;
use serde_json::json;

use super::{
    Exit, cannot_be_read,
    columns::Widths,
    flows::time,
    flows_text::cells,
    history::microsecond,
    one_line,
    stores::{self, Reach},
    timeline_pod::changes,
    who::Output,
};
use crate::{
    audit::line::{in_words, maybe_in_words},
    model::Timestamp,
    store::{
        bundle::partly,
        flows::{
            ask::{Among, Columns, Scanned, Store, scan},
            filter::{Filter, Named},
            row::Rows,
        },
    },
};

/// All that is known of a pod, in order of time: its start and end, its labels and addresses, the policies that select it, and its flows
///
/// Equal flows between two changes are one line. What is missing is said on stderr. Exit status: 0 done; 2 failure, or nothing tells of
/// such a pod.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The pod
    #[arg(value_name = "NAMESPACE/POD")]
    pod: Named,
    /// Directories that agents' --flow-store names, or copies of them, and buckets of their --flow-bucket such as s3://bucket/prefix
    #[arg(long, value_name = "STORE", num_args = 1.., required = true)]
    flow_store: Vec<String>,
    #[command(flatten)]
    reach: Reach,
    /// From this time on: a time such as 2026-01-31T12:00:00Z, or how long ago, such as 30m or 7d
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// Before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
    /// How to print the answer
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Entry {
    /// When; of several equal flows the first.
    #[serde(serialize_with = "in_words")]
    pub time: Timestamp,
    /// Of several equal flows the last.
    #[serde(serialize_with = "maybe_in_words", skip_serializing_if = "Option::is_none")]
    pub last_time: Option<Timestamp>,
    /// How many flows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// What it is about.
    pub what: &'static str,
    /// In words.
    pub text: String,
}

impl Entry {
    /// Something that happened once.
    pub fn new(time: Timestamp, what: &'static str, text: impl Into<String>) -> Self {
        Self { time, last_time: None, count: None, what, text: text.into() }
    }
}

/// Runs the command.
pub(super) fn run(args: Args) -> anyhow::Result<Exit> {
    let Args { pod, flow_store, reach, since, until, output } = args;
    let Some(namespace) = &pod.namespace else {
        anyhow::bail!("{} may be in any namespace: give NAMESPACE/POD", pod.name)
    };
    if let Some((since, until)) = since.zip(until) {
        ensure!(since < until, "--since is not before --until");
    }
    let stores = stores::open(&flow_store, &reach)?;
    let told = changes(&stores, namespace, &pod.name, since, until)?;
    let times: Vec<Timestamp> = told.entries.iter().map(|entry| entry.time).collect();
    let filter = Filter { from: since, until, pods: vec![pod.clone()], ..Filter::default() };
    let (flows, scanned) = flows(&stores, &filter, &times)?;
    let mut entries = told.entries;
    entries.extend(flows);
    entries.sort_by_key(|entry| entry.time);
    ensure!(
        !entries.is_empty(),
        "no flow and no object tells of a pod {namespace}/{} in that time",
        pod.name
    );
    for (path, reason) in scanned.unreadable.iter().chain(&told.unreadable) {
        eprintln!("netaudit: {} cannot be read, what it holds is missing: {reason}", path.display());
    }
    let sentences = scanned.coverage.sentences();
    for sentence in sentences.iter().chain(&told.doubts) {
        eprintln!("netaudit: {}", one_line(sentence));
    }
    let partial: Vec<String> = stores.iter().filter_map(partly).collect();
    partial.iter().for_each(|sentence| eprintln!("netaudit: {}", one_line(sentence)));
    let unreadable = scanned.unreadable.iter().chain(&told.unreadable).map(cannot_be_read);
    let doubts: Vec<String> = told.doubts.iter().cloned().chain(partial).chain(unreadable).collect();
    let mut out = io::stdout().lock();
    let answer = json!({
        "pod": format!("{namespace}/{}", pod.name), "entries": entries, "coverage": scanned.coverage,
        "doubts": doubts,
    });
    match output {
        Output::Table => table(&mut out, &entries)?,
        Output::Json => writeln!(out, "{answer:#}")?,
        Output::Yaml => write!(out, "{}", serde_saphyr::to_string(&answer)?)?,
    }
    Ok(Exit::Clean)
}

/// The pod's flows: equal ones between two times are one entry.
fn flows(stores: &[Store], filter: &Filter, times: &[Timestamp]) -> anyhow::Result<(Vec<Entry>, Scanned)> {
    let mut groups: BTreeMap<(usize, String), Entry> = BTreeMap::new();
    let scanned = scan(stores, Among::All, filter, Columns::All, &|_, _| {}, &mut |batch| {
        let Some(batch) = batch else { return Ok(ControlFlow::Continue(())) };
        let rows = Rows::new(&batch);
        for row in 0..batch.num_rows() {
            let mut line = rows.line(row)?;
            // Each counts for as many as it stands for, and is the same as one that stands for itself.
            let (time, count) = (line.time, line.count.take().unwrap_or(1));
            let last = line.last_time.unwrap_or(time);
            let text = words(&cells(&line));
            let between = times.partition_point(|change| *change <= time);
            let entry = groups.entry((between, text)).or_insert_with_key(|(_, text)| Entry {
                count: Some(0),
                last_time: Some(last),
                ..Entry::new(time, "flow", text.clone())
            });
            entry.time = entry.time.min(time);
            entry.last_time = entry.last_time.max(Some(last));
            entry.count = entry.count.map(|known| known + count);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let mut entries: Vec<Entry> = groups.into_values().collect();
    for entry in &mut entries {
        entry.last_time = entry.last_time.filter(|last| *last != entry.time);
    }
    Ok((entries, scanned))
}

/// `egress shop/a → shop/b TCP/80: established, denied (shop/deny), unenforced`.
fn words(cells: &[String; 9]) -> String {
    let [_, direction, from, to, port, outcome, verdict, why, finding] = cells;
    let mut text = format!("{direction} {from} → {to} {port}: {outcome}, {verdict}");
    if !why.is_empty() {
        text.push_str(&format!(" ({why})"));
    }
    if !finding.is_empty() {
        text.push_str(&format!(", {finding}"));
    }
    text
}

fn table(out: &mut impl Write, entries: &[Entry]) -> io::Result<()> {
    let head = ["TIME", "LAST", "TIMES", "WHAT", "DETAILS"].map(str::to_owned);
    let cells = |entry: &Entry| {
        [
            microsecond(entry.time),
            entry.last_time.map(microsecond).unwrap_or_default(),
            entry.count.map(|count| count.to_string()).unwrap_or_default(),
            entry.what.to_owned(),
            entry.text.clone(),
        ]
    };
    let lines: Vec<[String; 5]> = entries.iter().map(cells).collect();
    let widths = Widths::of(lines.iter().chain([&head]));
    for line in [&head].into_iter().chain(&lines) {
        writeln!(out, "{}", widths.line(line))?;
    }
    Ok(())
}
