//! `netaudit tighten`: the smallest change of the user's own policies that takes out what nobody uses.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write as _},
    ops::ControlFlow,
    path::PathBuf,
    sync::atomic::Ordering,
};

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum;

use super::{
    Exit,
    flows::{STOPPED, on_interrupt, scan_stores, time},
    manifest_files::{self, Loaded},
    one_line,
    stores::{self, Reach},
    tighten_evidence,
    tighten_files::{self, Patched, Target},
    tighten_replay::{Recorded, Replay, replayed},
    tighten_text, usage,
};
use crate::{
    advise::{
        Names,
        tighten::{self, Advice, Change, Options, Settled, Uses},
        what_if::{Candidate, Scope},
    },
    audit::usage::{Evidence, Histories as UsageHistories, Rows, histories, judge},
    cluster::Object,
    model::Timestamp,
    policy::declared::NetworkPolicy,
    replay::{self, Both, Classes, Histories},
    store::flows::{ask::Columns, filter::Filter},
};

/// What can be taken out of policies, since nobody uses it, as a difference of their own files
///
/// Takes unused rules, ports, peers and parts of ranges out of the policies of files, leaves comments, order and form as they are, and shows two
/// things of the result: that every recorded flow that was allowed still is (by replay), and that nothing new is allowed (symbolically).
/// netaudit verify-tighten shows them again. What cannot be shown to be unused stays, and the output says why. Exit status: 0 there is
/// nothing to take out, 1 there is something, 2 failure.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The policies: YAML or JSON files, or directories of them
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR", num_args = 1.., required = true)]
    manifests: Vec<PathBuf>,
    /// What agents know of the use of rules: agents (http://ADDRESS:PORT), their state directories, files of rows, buckets
    #[arg(long, value_name = "URL|FILE|DIR", num_args = 1.., required = true)]
    usage: Vec<String>,
    /// Recorded flows: directories that agents' --flow-store names, copies of them, or buckets such as s3://bucket/prefix
    #[arg(long, value_name = "STORE", num_args = 1.., required = true)]
    flow_store: Vec<String>,
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    evidence: usage::EvidenceArgs,
    /// Flows that began before this time do not count: a time such as 2026-01-31T12:00:00Z, or how long ago, such as 90d
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// Only policies of these namespaces
    #[arg(long, short = 'n', value_name = "NAMESPACE")]
    namespace: Vec<String>,
    /// Only these policies
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    policy: Vec<String>,
    /// The namespace of policies whose files name none
    #[arg(long, value_name = "NAMESPACE", default_value = "default")]
    default_namespace: String,
    /// Leave ranges of addresses and ports as wide as they are
    #[arg(long)]
    keep_ranges: bool,
    /// Narrow ranges of public addresses too where flows went to names; what is behind a name may get another address
    #[arg(long, conflicts_with = "keep_ranges")]
    narrow_named: bool,
    /// Write the used ports into rules that are for every port; such a rule also allows what nothing sees, such as SCTP
    #[arg(long)]
    add_ports: bool,
    /// The cluster uses SCTP, which nothing sees: rules for every port stay, as they may be for it
    #[arg(long, conflicts_with = "add_ports")]
    uses_sctp: bool,
    /// Write a patch a policy into this directory, which is made or empty: each for `git am`, in their order
    #[arg(long, value_name = "DIR")]
    patches: Option<PathBuf>,
    /// Change the files
    #[arg(long)]
    write: bool,
    /// How to print the answer
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// How to print the answer.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people: the report, then the difference.
    Text,
    /// The difference alone, for git apply or patch -p1; the report goes to stderr.
    Diff,
    /// One JSON object.
    Json,
    /// The same as YAML.
    Yaml,
}

/// All that there is to say.
pub(super) struct Answer<'a> {
    pub loaded: &'a Loaded,
    pub targets: Vec<Target>,
    pub told: Option<Timestamp>,
    pub evidence: Evidence,
    pub advice: Advice,
    /// Of each policy and proposal: why it is not made, where it is not.
    pub refused: Vec<BTreeMap<usize, String>>,
    pub patched: Patched,
    pub replay: Replay,
    /// What is wrong with the manifests.
    pub warnings: Vec<String>,
}

/// Runs the command.
pub(super) fn run(args: Args) -> anyhow::Result<Exit> {
    let options = Options {
        evidence: args.evidence.evidence()?,
        keep_ranges: args.keep_ranges,
        narrow_named: args.narrow_named,
        add_ports: args.add_ports,
        uses_sctp: args.uses_sctp,
    };
    if let Some(directory) = &args.patches {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let is_empty = fs::read_dir(directory)?.next().is_none();
        ensure!(
            is_empty,
            "{} holds something: --patches needs a directory that is empty",
            directory.display()
        );
    }
    let loaded = manifest_files::load(&args.manifests);
    let mut warnings: Vec<String> =
        loaded.errors.iter().chain(&loaded.passed_over).map(ToString::to_string).collect();
    warnings.iter().for_each(|it| eprintln!("netaudit: {}", one_line(it)));
    // What could not be read may be the policy that somebody relies on.
    ensure!(loaded.errors.is_empty(), "not all of the manifests can be read: nothing is proposed");
    let targets = chosen(&args, tighten_files::targets(&loaded, &args.default_namespace))?;
    let mut rows = Rows::default();
    for source in &args.usage {
        rows.merge(usage::read(source, &args.reach)?);
    }
    let usage = histories(&rows);
    ensure!(usage.told.is_some(), "the usage holds nothing: no agent has told anything yet");
    on_interrupt()?;
    let stores = stores::open(&args.flow_store, &args.reach)?;
    // All of it: whom a policy selected while its use was told may have changed before the first flow that is asked for.
    let recorded = Histories::read(&stores, None, None)?;
    let mut classes = Classes::new(&recorded);
    let mut names = Names::new();
    let filter = Filter { from: args.since, ..Filter::default() };
    let scanned = scan_stores(&stores, &filter, Columns::Some(&replay::COLUMNS), &mut |batch| {
        if let Some(batch) = batch {
            classes.add(&batch)?;
            replay::add_names(&batch, &mut names)?;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    ensure!(!STOPPED.load(Ordering::Relaxed), "stopped: nothing is proposed");
    let flows = Recorded { stores: &stores, histories: &recorded, classes: &classes, scanned: &scanned };
    let policies: Vec<_> = targets.iter().map(|it| it.policy.clone()).collect();
    let before = candidate(&targets, &policies);
    let mut uses = Uses::default();
    replay::judge_both(&classes, &recorded, [Some(&before), Some(&before)], &mut |flows| {
        if let Ok(Both { class, before, .. }) = &flows.judged {
            uses.add(class, flows.run, flows.tally, before);
        }
    });
    let judged = judge(&usage, &options.evidence);
    let mut advice = tighten::advise(&policies, &usage, &judged, &uses, &names, &options);
    let told = usage.told.unwrap_or_default();
    let begin = told.minus(options.evidence.window);
    for (policy, declared) in advice.iter_mut().zip(&policies) {
        if let Some(reason) = tighten_evidence::selected_otherwise(&recorded, declared, begin) {
            policy.refused.get_or_insert(reason);
        }
    }
    let Settled { refused, patched, mut replay } = settle(&loaded, &targets, &advice, &before, &flows)?;
    let nodes = rows.runs.keys().map(|it| it.node.to_string()).collect();
    replay.lacks(tighten_evidence::span(
        &scanned.marks,
        &nodes,
        begin.max(args.since.unwrap_or(begin)),
        told,
    ));
    warnings.extend(strangers(&usage, &targets));
    let answer = Answer {
        loaded: &loaded,
        targets,
        told: usage.told,
        evidence: options.evidence,
        advice,
        refused,
        patched,
        replay,
        warnings,
    };
    report(&args, &answer)
}

/// The policies that are asked for.
fn chosen(args: &Args, mut targets: Vec<Target>) -> anyhow::Result<Vec<Target>> {
    if targets.is_empty() {
        bail!("no NetworkPolicy is among the manifests");
    }
    let is_named = |target: &Target| {
        let name = |it: &String| {
            let (namespace, name) = it.rsplit_once('/').unwrap_or(("", it));
            (namespace.is_empty() || *target.policy.namespace == *namespace) && *target.policy.name == *name
        };
        (args.namespace.is_empty() || args.namespace.iter().any(|it| **it == *target.policy.namespace))
            && (args.policy.is_empty() || args.policy.iter().any(name))
    };
    targets.retain(is_named);
    if targets.is_empty() {
        bail!("no NetworkPolicy of the manifests is one that --namespace and --policy ask for");
    }
    Ok(targets)
}

fn candidate(targets: &[Target], policies: &[NetworkPolicy]) -> Candidate {
    // One that is written twice stays as it is in the cluster: which of them counts is open.
    let open = targets.iter().zip(policies).filter(|(target, _)| target.closed.is_none());
    let objects: Vec<Object> = open.map(|(_, it)| Object::NetworkPolicy(it.clone())).collect();
    match Candidate::new(objects, Scope::Named) {
        Ok((candidate, _)) => candidate,
        Err(_) => unreachable!("only a scope of namespaces has an outside"),
    }
}

/// Makes the changes that both proofs hold for: what the recorded flows need stays.
fn settle(
    loaded: &Loaded,
    targets: &[Target],
    advice: &Advice,
    before: &Candidate,
    flows: &Recorded<'_>,
) -> anyhow::Result<Settled<Patched, Replay>> {
    let known = tighten_files::namespaces(loaded);
    let write = |changes: &[Vec<&Change>]| {
        let patched = tighten_files::patch(loaded, targets, changes, &known);
        let refused = patched.patches.iter().map(|it| it.refused.clone()).collect();
        (patched, refused)
    };
    let replay = |patched: &Patched| {
        let policies: Vec<_> = patched.patches.iter().map(|it| it.policy.clone()).collect();
        replayed(flows, before, &candidate(targets, &policies))
    };
    tighten::settle(advice, write, replay).map_err(anyhow::Error::msg)
}

/// Policies of the cluster that agents tell of, in namespaces of the files, and that the files have not.
fn strangers(usage: &UsageHistories, targets: &[Target]) -> Vec<String> {
    let namespaces: BTreeSet<&str> = targets.iter().map(|it| &*it.policy.namespace).collect();
    let ours: BTreeSet<(&str, &str)> =
        targets.iter().map(|it| (&*it.policy.namespace, &*it.policy.name)).collect();
    let known = usage.rules.iter().filter(|it| it.current).map(|it| &it.key.policy);
    let others: BTreeSet<String> = known
        .filter(|it| it.kind == "NetworkPolicy" && namespaces.contains(&*it.namespace))
        .filter(|it| !ours.contains(&(&*it.namespace, &*it.name)))
        .map(ToString::to_string)
        .collect();
    let told =
        |it: String| format!("{it} is in the cluster and not among the files: it counts as it is there");
    others.into_iter().map(told).collect()
}

fn report(args: &Args, answer: &Answer<'_>) -> anyhow::Result<Exit> {
    if let Some(directory) = &args.patches {
        for (number, (name, text)) in tighten_text::patches(answer).into_iter().enumerate() {
            let path = directory.join(format!("{:04}-{name}.patch", number + 1));
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    let mut failed = false;
    if args.write {
        for (file, new) in answer.loaded.files.iter().zip(&answer.patched.files) {
            let Some(new) = new else { continue };
            if let Err(error) = manifest_files::replace(&file.path, new) {
                eprintln!(
                    "netaudit: {} cannot be written, and stays as it was: {error}",
                    file.path.display()
                );
                failed = true;
            }
        }
    }
    let mut out = io::stdout().lock();
    match args.output {
        Output::Text => {
            tighten_text::report(answer, &mut out)?;
            tighten_text::differences(answer, &mut out)?;
        }
        Output::Diff => {
            tighten_text::report(answer, &mut io::stderr().lock())?;
            tighten_text::differences(answer, &mut out)?;
        }
        Output::Json => writeln!(out, "{:#}", tighten_text::json(answer))?,
        Output::Yaml => write!(out, "{}", serde_saphyr::to_string(&tighten_text::json(answer))?)?,
    }
    out.flush()?;
    if failed {
        return Ok(Exit::Failure);
    }
    let is_any = answer.patched.patches.iter().any(|it| !it.made.is_empty());
    Ok(if is_any { Exit::Findings } else { Exit::Clean })
}
