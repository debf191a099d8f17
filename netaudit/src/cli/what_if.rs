//! `netaudit what-if`: which recorded flows would fare otherwise with other policies.

use std::{
    collections::BTreeSet,
    io::{self, Write as _},
    ops::ControlFlow,
    sync::atomic::Ordering,
};

use anyhow::ensure;
use clap::ValueEnum;
use serde_json::{Value, json};

use super::{
    Exit, candidate, cannot_be_read,
    flow_filter::Filters,
    flows::{STOPPED, on_interrupt, scan_stores, time},
    history::microsecond,
    one_line,
    stores::{self, Reach},
    what_if_text,
    who::Output,
};
use crate::{
    advise::{
        Outcome,
        what_if::{Change, Report, Row, Scope},
    },
    cluster::ObjectKey,
    model::Timestamp,
    replay::{self, Histories, Replay, Replayed},
    store::{
        bundle::partly,
        flows::ask::{Columns, Scanned, Store},
    },
};

/// Which recorded flows would fare otherwise with other policies
///
/// Judges the flows of flow stores again, by the policies, labels and addresses of their time, which the stores' history has, and by the
/// candidate's policies in place of those; then says what changes, for how many flows, from whom to whom. What cannot be judged again is
/// counted and said. Exit status: 0 nothing that --fail-on names changes; 1 something does, or with --require-complete something is
/// missing; 2 failure, or no flow could be judged again though some were there or may be missing.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Directories that agents' --flow-store names, or copies of them, and buckets of their --flow-bucket such as s3://bucket/prefix
    #[arg(long, value_name = "STORE", num_args = 1.., required = true)]
    flow_store: Vec<String>,
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    candidate: candidate::Args,
    /// Flows that began at this time or later: a time such as 2026-01-31T12:00:00Z, or how long ago, such as 30m or 7d
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// Flows that began before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
    #[command(flatten)]
    filters: Filters,
    /// Say too what passes today and would be stopped after the change where policies are enforced
    #[arg(long)]
    enforcement: bool,
    /// Which changes give exit status 1
    #[arg(long, value_enum, value_name = "CHANGE,…", value_delimiter = ',', default_values_t = [FailOn::Denied, FailOn::Unknown])]
    fail_on: Vec<FailOn>,
    /// How to print the answer
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Exit status 1 where a flow of that time is missing or could not be judged again
    #[arg(long)]
    require_complete: bool,
}

/// A change that fails.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FailOn {
    /// What was not denied is denied.
    Denied,
    /// What was not allowed is allowed.
    Allowed,
    /// What was known is known no more.
    Unknown,
    /// Any of these.
    Any,
    /// What passes today would be stopped where policies are enforced: as with --enforcement, which this turns on.
    Enforced,
    /// None.
    None,
}

impl FailOn {
    fn is_met(self, change: Change) -> bool {
        change.is_effective()
            && match self {
                Self::Denied => change.after == Outcome::Denied,
                Self::Allowed => change.after == Outcome::Allowed,
                Self::Unknown => change.after == Outcome::Unknown,
                Self::Any => true,
                Self::Enforced | Self::None => false,
            }
    }
}

/// All that there is to say.
pub(super) struct Answer {
    /// What is tried, and what it replaces.
    pub compared: Compared,
    pub report: Report,
    /// Classes of flows.
    pub classes: usize,
    /// Rows of connections that fare otherwise, and of those that do not though one end's policies say something else.
    pub changes: Vec<Row>,
    pub one_end_only: Vec<Row>,
    /// Whether what is only enforced after the change is asked for.
    pub enforcement: bool,
    /// What is missing or not certain, in sentences.
    pub doubts: Vec<String>,
    pub warnings: Vec<String>,
    pub complete: bool,
}

/// Which policies are compared.
pub(super) struct Compared {
    pub candidate: String,
    pub policies: usize,
    pub scope: Scope,
    /// The nodes whose histories say which policies there were.
    pub nodes: BTreeSet<String>,
    /// Policies of the end of that time that give way, and those that stay.
    pub replaced: BTreeSet<ObjectKey>,
    pub kept: BTreeSet<ObjectKey>,
}

/// Runs the command.
pub(super) fn run(args: Args) -> anyhow::Result<Exit> {
    if let Some((since, until)) = args.since.zip(args.until) {
        ensure!(since < until, "--since is not before --until");
    }
    let filter = args.filters.filter(args.since, args.until)?;
    let tried = args.candidate.load()?;
    for warning in &tried.warnings {
        eprintln!("netaudit: {}", one_line(warning));
    }
    on_interrupt()?;
    let stores = stores::open(&args.flow_store, &args.reach)?;
    let histories = Histories::read(&stores, filter.from, filter.until)?;
    let mut replay = Replay::new(&histories, &tried.candidate);
    let scanned = scan_stores(&stores, &filter, Columns::Some(&replay::COLUMNS), &mut |batch| {
        if let Some(batch) = batch {
            replay.add(&batch)?;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let Replayed { report, classes, runs } = replay.finish();

    let mut compared = Compared {
        candidate: tried.from,
        policies: tried.policies,
        scope: tried.candidate.scope().clone(),
        nodes: BTreeSet::new(),
        replaced: BTreeSet::new(),
        kept: BTreeSet::new(),
    };
    let mut nodes = BTreeSet::new();
    let mut doubts = missing(&args, &stores, &filter, &scanned);
    doubts.extend(histories.unreadable().iter().map(cannot_be_read));
    for (run, last) in runs {
        doubts.extend(histories.doubts(&run, last).into_iter().map(|doubt| format!("run {run}: {doubt}")));
        let Some(history) = histories.of(&run) else { continue };
        compared.nodes.insert(history.node().to_owned());
        nodes.extend(history.nodes());
        let policies = history.policies();
        let (replaced, kept): (BTreeSet<ObjectKey>, BTreeSet<ObjectKey>) =
            policies.into_iter().partition(|key| tried.candidate.replaces_key(key));
        compared.replaced.extend(replaced);
        compared.kept.extend(kept);
    }
    if report.spanning > 0 {
        doubts.push(format!(
            "{} flows of folded records lasted over a change of objects: they are judged as the first of them was",
            report.spanning
        ));
    }
    for node in nodes.iter().filter(|node| !scanned.coverage.nodes.iter().any(|known| *known == ***node)) {
        doubts.push(format!("no store has flows of node {node}"));
    }
    let unreplayed: u64 = report.unreplayed().iter().map(|it| it.flows).sum();
    let unknown: u64 = report.still_unknown().iter().map(|it| it.flows).sum();
    // Flows that are there in part are not all of that time, and what cannot be judged again may fare otherwise.
    let complete = doubts.is_empty() && unreplayed == 0 && unknown == 0 && scanned.coverage.is_complete();
    doubts.extend(scanned.coverage.sentences());
    if report.maybe_repeated > 0 {
        doubts
            .push(format!("{} flows may have been told twice, and are counted twice", report.maybe_repeated));
    }
    for doubt in &doubts {
        eprintln!("netaudit: {}", one_line(doubt));
    }
    // Who names it wants to know.
    let enforcement = args.enforcement || args.fail_on.contains(&FailOn::Enforced);
    let (changes, one_end_only) = report.rows().into_iter().partition(|row| row.change.is_effective());
    let answer = Answer {
        compared,
        classes,
        changes,
        one_end_only,
        enforcement,
        doubts,
        warnings: tried.warnings,
        complete,
        report,
    };
    let mut out = io::stdout().lock();
    match args.output {
        Output::Table => what_if_text::print(&answer, &mut out)?,
        Output::Json => writeln!(out, "{:#}", json_of(&args, &answer, &scanned))?,
        Output::Yaml => write!(out, "{}", serde_saphyr::to_string(&json_of(&args, &answer, &scanned))?)?,
    }
    out.flush()?;
    if answer.report.replayed == 0 && !complete {
        eprintln!(
            "netaudit: no flow of that time could be judged again, so nothing is known of the candidate"
        );
        return Ok(Exit::Failure);
    }
    let fails = |row: &Row| args.fail_on.iter().any(|it| it.is_met(row.change));
    let is_stopped = args.fail_on.iter().any(|it| matches!(it, FailOn::Enforced | FailOn::Any));
    let found = answer.changes.iter().any(fails)
        || enforcement && is_stopped && !answer.report.enforced().is_empty()
        || args.require_complete && !complete;
    Ok(if found { Exit::Findings } else { Exit::Clean })
}

/// What of the flows cannot be read or found, in sentences; without what the coverage says.
fn missing(
    args: &Args,
    stores: &[Store],
    filter: &crate::store::flows::filter::Filter,
    scanned: &Scanned,
) -> Vec<String> {
    let mut said: Vec<String> = scanned
        .unreadable
        .iter()
        .map(|(path, reason)| format!("{} cannot be read, its flows are missing: {reason}", path.display()))
        .collect();
    said.extend(args.filters.hidden(filter, &scanned.keys));
    said.extend(stores.iter().filter_map(partly));
    if STOPPED.load(Ordering::Relaxed) {
        said.push("stopped: what came after is missing".to_owned());
    }
    let is_watched = scanned.marks.iter().any(|mark| {
        args.since.is_none_or(|since| mark.until > since) && args.until.is_none_or(|until| mark.from < until)
    });
    if !is_watched {
        said.push("no node is known to have recorded flows in that time".to_owned());
    }
    said
}

fn json_of(args: &Args, answer: &Answer, scanned: &Scanned) -> Value {
    let Answer { compared, report, .. } = answer;
    let names = |keys: &BTreeSet<ObjectKey>| keys.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut value = json!({
        "compared": {
            "candidate": compared.candidate,
            "policies": compared.policies,
            "scope": what_if_text::scope(&compared.scope),
            "with": "the policies of then",
            "nodes": compared.nodes,
            "replaced": names(&compared.replaced),
            "kept": names(&compared.kept),
        },
        "since": args.since.map(microsecond),
        "until": args.until.map(microsecond),
        "flows": {
            "replayed": report.replayed,
            "changed": report.changed,
            "records": report.records,
            "of_folded_records": report.folded,
            "maybe_repeated": report.maybe_repeated,
            "classes": answer.classes,
            "judgements": report.judged,
        },
        "changes": answer.changes,
        "one_end_only": answer.one_end_only,
        "unreplayed": report.unreplayed(),
        "still_unknown": report.still_unknown(),
        "recorded_otherwise": report.doubts(),
        "coverage": scanned.coverage,
        "complete": answer.complete,
        "doubts": answer.doubts,
        "warnings": answer.warnings,
    });
    if answer.enforcement {
        value["enforced_only_after"] = json!(report.enforced());
    }
    value
}
