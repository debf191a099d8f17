//! `netaudit suggest`: a first set of policies from recorded flows.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, OpenOptions},
    io::{self, Write as _},
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum;

use super::{
    Exit, cannot_be_read,
    flows::{STOPPED, on_interrupt, scan_stores, time},
    history::microsecond,
    one_line,
    stores::{self, Reach},
    suggest_report,
};
use crate::{
    advise::{
        Outcome,
        suggest::{Question, Suggested, Suggestion, document, suggest},
        what_if::{Candidate, Report, Row, Scope},
    },
    cluster::{Cluster, Object, Pod, Service},
    model::{Timestamp, duration},
    replay::{GATHERED, Gathered, Histories, History, LeftOut},
    store::{
        bundle::partly,
        flows::{
            ask::{Columns, Scanned, Store},
            filter::Filter,
        },
    },
    watch::manifests,
};

/// Write a first set of network policies for namespaces that have none, from recorded flows
///
/// For each workload a policy that allows what it was seen to do and nothing else, and for each namespace one that denies the rest.
/// Comments say which flows keep each rule. At the end the same flows are judged by the new policies. Exit status: 0 all that counts
/// still passes, and nothing is missing; 1 the policies are written, and what stderr says has to be looked at first; 2 failure, nothing
/// is written.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Directories that agents' --flow-store names, or copies of them, and buckets of their --flow-bucket such as s3://bucket/prefix
    #[arg(long, value_name = "STORE", num_args = 1.., required = true)]
    flow_store: Vec<String>,
    #[command(flatten)]
    reach: Reach,
    /// The namespaces that are to get policies
    #[arg(long, short = 'n', value_name = "NAMESPACE", num_args = 1.., required = true)]
    namespace: Vec<String>,
    /// Flows that began at this time or later: a time such as 2026-01-31T12:00:00Z, or how long ago, such as 30m or 7d
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// Flows that began before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
    /// Less recorded time than this is told as a gap
    #[arg(long, value_name = "DURATION", default_value = "7d", value_parser = window)]
    window: Duration,
    /// Also for workloads that a policy selects; all policies of these namespaces are taken to give way
    #[arg(long)]
    all: bool,
    /// More addresses of a rule than this are put together to ranges
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    addresses: u16,
    /// How to print the policies
    #[arg(long, short, value_enum, default_value_t = Output::Yaml)]
    output: Output,
    /// Write a file NAMESPACE.POLICY.yaml for each policy into this directory, and no YAML to stdout
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Replace files that are there
    #[arg(long, requires = "directory")]
    force: bool,
}

/// How to print the policies.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Documents with comments, for people and for kubectl.
    Yaml,
    /// One object: the policies, what keeps their rules, what is missing, and the proof.
    Json,
}

fn window(text: &str) -> Result<Duration, String> {
    duration(text).ok_or_else(|| "expected a duration such as 12h or 7d".to_owned())
}

/// All that there is to say.
pub(super) struct Answer {
    pub namespaces: BTreeSet<Arc<str>>,
    /// The time that was recorded.
    pub from: Timestamp,
    pub until: Timestamp,
    /// Flows that count.
    pub flows: u64,
    pub suggestion: Suggestion,
    pub left_out: Vec<LeftOut>,
    pub proof: Proof,
    /// Policies that are taken to give way.
    pub replaced: Vec<String>,
    /// What is missing, in sentences.
    pub doubts: Vec<String>,
}

/// What the evaluator says of the flows that count, with the new policies.
#[derive(Default)]
pub(super) struct Proof {
    /// Flows that were judged again.
    pub replayed: u64,
    /// Those that would be denied, and were not.
    pub denied: Vec<Row>,
    /// Those of which it would not be known.
    pub unknown: Vec<Row>,
    /// Those that could not be judged, by reason.
    pub unreplayed: BTreeMap<&'static str, u64>,
}

impl Proof {
    fn of((reports, nobody): (Vec<Report>, u64)) -> Self {
        let mut proof = Self::default();
        if nobody > 0 {
            proof.unreplayed.insert("nobody is known behind the Service that they went to", nobody);
        }
        for report in &reports {
            proof.replayed += report.replayed;
            for row in report.rows().into_iter().filter(|row| row.change.is_effective()) {
                match row.change.after {
                    Outcome::Denied => proof.denied.push(row),
                    Outcome::Unknown => proof.unknown.push(row),
                    Outcome::Allowed => {}
                }
            }
            for missing in report.unreplayed() {
                *proof.unreplayed.entry(missing.reason).or_default() += missing.flows;
            }
            for unknown in report.still_unknown() {
                *proof.unreplayed.entry("nothing is known of them, before or after").or_default() +=
                    unknown.flows;
            }
        }
        proof
    }

    /// Whether all that counts still passes, as far as that can be known.
    pub fn holds(&self) -> bool {
        self.denied.is_empty() && self.unknown.is_empty() && self.unreplayed.is_empty()
    }
}

impl Answer {
    fn exit(&self) -> Exit {
        let Suggestion { policies, passed_over, empty, .. } = &self.suggestion;
        let has_gap = policies.iter().any(|it| !it.gaps.is_empty())
            || passed_over.iter().any(|it| it.reason.is_gap())
            || !empty.is_empty()
            // Where nothing is to be done nothing is missing either.
            || self.suggestion.no_default.keys().any(|it| policies.iter().any(|has| has.policy.namespace == *it));
        if self.doubts.is_empty() && !has_gap && self.proof.holds() { Exit::Clean } else { Exit::Findings }
    }
}

/// Runs the command.
pub(super) fn run(args: Args) -> anyhow::Result<Exit> {
    if let Some((since, until)) = args.since.zip(args.until) {
        ensure!(since < until, "--since is not before --until");
    }
    let namespaces: BTreeSet<Arc<str>> = args.namespace.iter().map(|name| name.as_str().into()).collect();
    on_interrupt()?;
    let stores = stores::open(&args.flow_store, &args.reach)?;
    let histories = Histories::read(&stores, args.since, args.until)?;
    let filter = Filter { from: args.since, until: args.until, ..Filter::default() };
    let mut gathered = Gathered::new(&histories, &namespaces);
    // All flows are looked at: of those to a Service no column has the namespace of the pods behind it.
    let scanned = scan_stores(&stores, &filter, Columns::Some(&GATHERED), &mut |batch| {
        if let Some(batch) = batch {
            gathered.add(&batch)?;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    gathered.settle();

    let (from, until) = recorded(&args, &scanned)?;
    let latest =
        histories.latest(until).context("the stores hold no whole history of objects of that time")?;
    let end = cluster(latest, until);
    let all = histories.all();
    let pods: Vec<&Pod> = all.iter().flat_map(|history| history.pods_between(from, until)).collect();
    let mut services: Vec<&Service> = all.iter().flat_map(|history| history.services()).collect();
    services.sort_by_key(|service| (&service.namespace, &service.name));
    // Every agent run tells of all of them.
    services.dedup();
    ensure_known(&namespaces, &end, &pods)?;

    let doubts = doubts(&args, &stores, &histories, &gathered, &scanned, (from, until));
    let question = Question {
        namespaces: &namespaces,
        all: args.all,
        end: &end,
        pods,
        services,
        seen: gathered.seen(),
        names: gathered.names(),
        most_addresses: usize::from(args.addresses),
        header: header(&scanned, (from, until), &doubts),
    };
    let suggestion = suggest(&question);
    let documents: Vec<String> = suggestion.policies.iter().map(document).collect();
    read_again(&suggestion.policies, &documents)?;

    let is_own = |object: &Arc<Object>| {
        object.may_be_policy() && object.key().is_some_and(|key| namespaces.contains(&key.namespace))
    };
    let there: Vec<Arc<Object>> = latest.objects_at(until).into_iter().filter(is_own).collect();
    let (replaced, stay) = if args.all { (there, Vec::new()) } else { (Vec::new(), there) };
    let others = stay.into_iter().map(|object| (*object).clone());
    let new = suggestion.policies.iter().map(|it| Object::NetworkPolicy(it.policy.clone()));
    let (candidate, _) = Candidate::new(new.chain(others).collect(), Scope::Namespaces(namespaces.clone()))?;
    let answer = Answer {
        from,
        until,
        flows: gathered.flows(),
        left_out: gathered.left_out(),
        proof: Proof::of(gathered.judge(&candidate)),
        replaced: replaced.iter().filter_map(|it| it.key()).map(|key| key.to_string()).collect(),
        doubts,
        suggestion,
        namespaces: namespaces.clone(),
    };
    suggest_report::to_stderr(&answer);
    if let Some(directory) = &args.directory {
        write_files(directory, args.force, &answer.suggestion.policies, &documents)?;
    }
    let mut out = io::stdout().lock();
    match args.output {
        Output::Json => writeln!(out, "{:#}", suggest_report::json(&answer))?,
        Output::Yaml if args.directory.is_none() => write!(out, "{}", documents.join("---\n"))?,
        Output::Yaml => {}
    }
    out.flush()?;
    Ok(answer.exit())
}

/// The time that was recorded, of what was asked for.
fn recorded(args: &Args, scanned: &Scanned) -> anyhow::Result<(Timestamp, Timestamp)> {
    let first = scanned.marks.iter().map(|mark| mark.from).min().unwrap_or(Timestamp::MAX);
    let last = scanned.marks.iter().map(|mark| mark.until).max().unwrap_or(Timestamp::MIN);
    let from = args.since.map_or(first, |since| since.max(first));
    let until = args.until.map_or(last, |until| until.min(last));
    ensure!(from < until, "no node is known to have recorded flows in that time, so nothing is known of it");
    Ok((from, until))
}

/// The objects of a time.
fn cluster(history: &History, at: Timestamp) -> Cluster {
    let mut cluster = Cluster::new();
    cluster.reset_all(history.objects_at(at).iter().map(|it| (**it).clone()).collect(), at);
    cluster
}

fn ensure_known(namespaces: &BTreeSet<Arc<str>>, end: &Cluster, pods: &[&Pod]) -> anyhow::Result<()> {
    let mut known: BTreeSet<&str> = end.namespaces().map(|it| &*it.name).collect();
    known.extend(pods.iter().map(|pod| &*pod.namespace));
    let unknown: Vec<&str> = namespaces.iter().map(|it| &**it).filter(|it| !known.contains(it)).collect();
    if !unknown.is_empty() {
        let known: Vec<&str> = known.into_iter().take(20).collect();
        bail!(
            "the history of that time has no namespace {}: it has {}",
            unknown.join(", "),
            if known.is_empty() { "none".to_owned() } else { known.join(", ") }
        );
    }
    Ok(())
}

/// What is missing of the evidence, in sentences.
fn doubts(
    args: &Args,
    stores: &[Store],
    histories: &Histories,
    gathered: &Gathered<'_>,
    scanned: &Scanned,
    (from, until): (Timestamp, Timestamp),
) -> Vec<String> {
    let mut doubts: Vec<String> = scanned
        .unreadable
        .iter()
        .map(|(path, reason)| format!("{} cannot be read, its flows are missing: {reason}", path.display()))
        .collect();
    // Files are read side by side.
    doubts.sort();
    doubts.extend(stores.iter().filter_map(partly));
    if STOPPED.load(Ordering::Relaxed) {
        doubts.push("stopped: what came after is missing".to_owned());
    }
    doubts.extend(histories.unreadable().iter().map(cannot_be_read));
    let mut nodes = BTreeSet::new();
    for (run, last) in gathered.runs() {
        doubts.extend(histories.doubts(&run, last).into_iter().map(|doubt| format!("run {run}: {doubt}")));
        match histories.of(&run) {
            Some(history) => nodes.extend(history.nodes()),
            None => doubts.push(format!("no store has the history of objects of run {run}")),
        }
    }
    for node in nodes.iter().filter(|node| !scanned.coverage.nodes.iter().any(|known| *known == ***node)) {
        doubts.push(format!("no store has flows of node {node}"));
    }
    if !scanned.coverage.is_complete() {
        doubts.extend(scanned.coverage.sentences());
    }
    let nameless = gathered.nameless();
    if nameless > 0 {
        doubts.push(match nameless {
            1 => "1 flow that would count does not say who an end was, so there is no rule for it".to_owned(),
            many => format!(
                "{many} flows that would count do not say who an end was, so there is no rule for them"
            ),
        });
    }
    let recorded = until.since(from);
    if recorded < args.window {
        doubts.push(format!(
            "{} were recorded, which is less than {} (--window): what happens less often was not seen",
            in_words(recorded),
            in_words(args.window)
        ));
    }
    doubts
}

/// `7d`, `36h`, `50m`.
fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// So many doubts are told above each policy.
const TOLD: usize = 8;

/// What is said above each policy.
fn header(scanned: &Scanned, (from, until): (Timestamp, Timestamp), doubts: &[String]) -> Vec<String> {
    let mut header = vec![format!(
        "Suggested by netaudit {} from flows of {} to {} ({}), recorded on {}.",
        env!("CARGO_PKG_VERSION"),
        microsecond(from),
        microsecond(until),
        in_words(until.since(from)),
        scanned.coverage.nodes.join(", ")
    )];
    if doubts.is_empty() {
        header.push("Nothing of that time is missing.".to_owned());
        return header;
    }
    header.push("INCOMPLETE: what was not seen is denied. Look at this before it is applied.".to_owned());
    header.extend(doubts.iter().take(TOLD).map(|doubt| format!("- {}", one_line(doubt))));
    if doubts.len() > TOLD {
        header.push(format!("- and {} more, which netaudit suggest says", doubts.len() - TOLD));
    }
    header
}

/// What was written must be what is meant, as everybody else reads it.
fn read_again(policies: &[Suggested], documents: &[String]) -> anyhow::Result<()> {
    let loaded = manifests::load_text("suggested.yaml", &documents.join("---\n"));
    let meant = policies.iter().map(|it| Object::NetworkPolicy(it.policy.clone()));
    let is_same = loaded.errors.is_empty()
        && loaded.documents.len() == policies.len()
        && loaded.documents.iter().map(|(_, object)| object).eq(meant.collect::<Vec<_>>().iter());
    let errors: Vec<String> = loaded.errors.iter().map(ToString::to_string).collect();
    ensure!(
        is_same,
        "the policies that were written are not read as they are meant; nothing is written. {}",
        errors.join("; ")
    );
    Ok(())
}

/// A file a policy. Nothing is written where one of them is there and must not be replaced.
fn write_files(
    directory: &Path,
    force: bool,
    policies: &[Suggested],
    documents: &[String],
) -> anyhow::Result<()> {
    let path = |suggested: &Suggested| {
        let (namespace, name) = (&suggested.policy.namespace, &suggested.policy.name);
        let file = format!("{namespace}.{name}.yaml");
        ensure!(!file.contains(['/', '\0']) && !file.starts_with('.'), "{file:?} is no name for a file");
        Ok(directory.join(file))
    };
    let paths: Vec<PathBuf> = policies.iter().map(path).collect::<anyhow::Result<_>>()?;
    if !force && let Some(there) = paths.iter().find(|path| path.symlink_metadata().is_ok()) {
        bail!("{} is there already: say --force to replace it; nothing is written", there.display());
    }
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for (path, text) in paths.iter().zip(documents) {
        let mut options = OpenOptions::new();
        options.write(true);
        // What came in the meantime is not replaced either.
        if force {
            options.create(true).truncate(true)
        } else {
            options.create_new(true)
        };
        let written = options.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
        written.with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
