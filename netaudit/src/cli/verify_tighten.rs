//! `netaudit verify-tighten`: shows both proofs of a change of policies again, whoever made it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write as _},
    ops::ControlFlow,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

use anyhow::{bail, ensure};
use serde_json::{Value, json};

use super::{
    Exit, candidate,
    flows::{STOPPED, on_interrupt, scan_stores, time},
    one_line,
    stores::{self, Reach},
    tighten_replay::{Recorded, Replay, replayed},
    who::Output,
};
use crate::{
    advise::{
        tighten::{Contained, containment, of_sets},
        what_if::{Candidate, Scope},
    },
    cluster::{Object, ObjectKey},
    model::Timestamp,
    policy::{CompiledPolicy, METADATA_NAME, NamespaceView, declared::NetworkPolicy},
    replay::{self, Classes, Histories},
    store::flows::{ask::Columns, filter::Filter},
    watch::manifests::{self, Loaded},
};

/// Shows again that a change of policies only takes away, and nothing that recorded flows need
///
/// Takes the policies before and after a change, whoever made it, and shows two things: that nothing becomes allowed that was not (symbolically,
/// policy by policy, and where that does not show it for all policies together), and that no recorded flow that was allowed becomes denied
/// (by replay). Exit status: 0 both are shown, 1 one of them is not, 2 failure.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The policies before the change: YAML or JSON files, or directories of them
    #[arg(long, value_name = "FILE|DIR", num_args = 1.., required_unless_present = "before_revision", conflicts_with = "before_revision")]
    before: Vec<PathBuf>,
    /// The policies before the change, from this git revision
    #[arg(long, value_name = "REV")]
    before_revision: Option<String>,
    /// Of the revision only what is at or below these paths
    #[arg(long, value_name = "DIR|FILE", num_args = 1.., requires = "before_revision")]
    path: Vec<String>,
    /// The git repository of --before-revision [default: the one of the current directory]
    #[arg(long, value_name = "DIR", requires = "before_revision")]
    repository: Option<PathBuf>,
    /// The policies after the change
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR", num_args = 1.., required = true)]
    after: Vec<PathBuf>,
    /// The namespace of policies whose files name none, or `default`
    #[arg(long, value_name = "NAMESPACE", default_value = DEFAULT)]
    default_namespace: String,
    /// Recorded flows: directories that agents' --flow-store names, copies of them, or buckets such as s3://bucket/prefix
    #[arg(long, value_name = "STORE", num_args = 1.., required = true)]
    flow_store: Vec<String>,
    #[command(flatten)]
    reach: Reach,
    /// Flows that began before this time do not count
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// How to print the answer
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Exit status 1 where a flow of that time is missing or could not be judged again
    #[arg(long)]
    require_complete: bool,
}

/// A proof of one policy, or of all.
struct Proof {
    what: String,
    /// Those that differ.
    policies: Vec<String>,
    contained: Contained,
}

/// Runs the command.
pub(super) fn run(args: Args) -> anyhow::Result<Exit> {
    let (from, before) = match &args.before_revision {
        Some(revision) => candidate::of_revision(revision, &args.path, args.repository.as_deref())?,
        None => {
            let names: Vec<String> = args.before.iter().map(|it| it.display().to_string()).collect();
            (names.join(", "), manifests::load(&args.before)?)
        }
    };
    let after = manifests::load(&args.after)?;
    for loaded in [&before, &after] {
        let errors: Vec<String> = loaded.errors.iter().map(ToString::to_string).collect();
        errors.iter().for_each(|it| eprintln!("netaudit: {}", one_line(it)));
        ensure!(errors.is_empty(), "not all of the manifests can be read: nothing can be shown");
    }
    let [before, after] = [before, after].map(|it| placed(it, &args.default_namespace));
    let (before, after) = (before?, after?);
    ensure!(before.iter().any(Object::may_be_policy), "no policy in {from}");
    let proofs = contained(&before, &after);

    on_interrupt()?;
    let stores = stores::open(&args.flow_store, &args.reach)?;
    let recorded = Histories::read(&stores, args.since, None)?;
    let mut classes = Classes::new(&recorded);
    let filter = Filter { from: args.since, ..Filter::default() };
    let scanned = scan_stores(&stores, &filter, Columns::Some(&replay::COLUMNS), &mut |batch| {
        if let Some(batch) = batch {
            classes.add(&batch)?;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    ensure!(!STOPPED.load(Ordering::Relaxed), "stopped: nothing is shown");
    let policies = |objects: Vec<Object>| objects.into_iter().filter(Object::may_be_policy).collect();
    let (before, _) = Candidate::new(before, Scope::Named)?;
    let after = Candidate::in_place_of(&before, policies(after));
    // A policy that is new gives way on both sides, or it would count before too where the cluster has it already.
    let before = Candidate::in_place_of(&after, before.policies().to_vec());
    let flows = Recorded { stores: &stores, histories: &recorded, classes: &classes, scanned: &scanned };
    let mut replay = replayed(&flows, &before, &after);
    replay.lacks(strangers(&recorded, &proofs));

    let mut out = io::stdout().lock();
    match args.output {
        Output::Table => text(&proofs, &replay, &mut out)?,
        Output::Json => writeln!(out, "{:#}", json_of(&proofs, &replay))?,
        Output::Yaml => {
            write!(out, "{}", serde_saphyr::to_string(&json_of(&proofs, &replay))?)?;
        }
    }
    out.flush()?;
    if replay.broken.replayed == 0 && !replay.complete {
        eprintln!("netaudit: no flow could be judged again, so nothing is shown by replay");
        return Ok(Exit::Failure);
    }
    let is_shown = proofs.iter().all(|it| it.contained.is_shown()) && replay.broken.is_empty();
    Ok(if is_shown && (replay.complete || !args.require_complete) { Exit::Clean } else { Exit::Findings })
}

/// The namespace of those that name none.
const DEFAULT: &str = "default";

/// The objects, each in its namespace.
///
/// # Errors
/// A policy that is there twice: which of them counts is open.
fn placed(loaded: Loaded, namespace: &str) -> anyhow::Result<Vec<Object>> {
    let mut objects = Vec::with_capacity(loaded.documents.len());
    let mut seen: BTreeMap<ObjectKey, String> = BTreeMap::new();
    for (source, mut object) in loaded.documents {
        if let Object::NetworkPolicy(policy) = &mut object
            && *policy.namespace == *DEFAULT
        {
            policy.namespace = namespace.into();
        }
        if object.may_be_policy()
            && let Some(key) = object.key()
            && let Some(other) = seen.insert(key.clone(), source.to_string())
        {
            bail!("{key} is there twice, at {other} and at {source}: which of them counts is open");
        }
        objects.push(object);
    }
    Ok(objects)
}

/// Policies that differ and that no cluster of these stores had: of what they do the flows tell nothing.
fn strangers(recorded: &Histories, proofs: &[Proof]) -> Vec<String> {
    let known: BTreeSet<String> =
        recorded.all().iter().flat_map(|it| it.policies()).map(|it| it.to_string()).collect();
    let unknown = proofs.iter().flat_map(|it| &it.policies).filter(|it| !known.contains(*it));
    unknown
        .map(|it| format!("{it} was in no cluster of these stores: their flows tell nothing of it"))
        .collect()
}

/// What can be shown of each policy that differs; where it cannot, of all together.
fn contained(before: &[Object], after: &[Object]) -> Vec<Proof> {
    let namespaces: Vec<NamespaceView> = namespaces(before, after);
    let [old, new] = [before, after].map(|objects| {
        let keyed = objects.iter().filter(|it| it.may_be_policy()).filter_map(|it| Some((it.key()?, it)));
        keyed.collect::<BTreeMap<ObjectKey, &Object>>()
    });
    let mut proofs = Vec::new();
    let mut is_open = false;
    for key in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
        let contained = match (old.get(key), new.get(key)) {
            (Some(old), Some(new)) if old == new => continue,
            (Some(Object::NetworkPolicy(old)), Some(Object::NetworkPolicy(new))) => {
                containment(old, new, &namespaces)
            }
            (Some(_), Some(_)) => Contained::Not("it is no NetworkPolicy".to_owned()),
            (None, _) => Contained::Not("it is new".to_owned()),
            (_, None) => Contained::Not("it is gone, and isolates no more".to_owned()),
        };
        is_open |= !contained.is_shown();
        proofs.push(Proof { what: key.to_string(), policies: vec![key.to_string()], contained });
    }
    if is_open && let Some(all) = together(before, after, &namespaces) {
        let policies = proofs.into_iter().flat_map(|it| it.policies).collect();
        proofs = vec![Proof { what: "all policies together".to_owned(), policies, contained: all }];
    }
    proofs
}

fn namespaces(before: &[Object], after: &[Object]) -> Vec<NamespaceView> {
    let of = |object: &Object| match object {
        Object::Namespace(it) => {
            let labels = it.labels.with(METADATA_NAME, &it.name);
            Some((it.name.clone(), NamespaceView { name: it.name.clone(), labels, doubt: None }))
        }
        _ => None,
    };
    let all: BTreeMap<Arc<str>, NamespaceView> = before.iter().chain(after).filter_map(of).collect();
    all.into_values().collect()
}

/// All NetworkPolicies together; `None` where others are among them.
fn together(before: &[Object], after: &[Object], namespaces: &[NamespaceView]) -> Option<Contained> {
    let compiled = |objects: &[Object]| {
        let policies = objects.iter().filter(|it| it.may_be_policy());
        let network = |it: &Object| match it {
            Object::NetworkPolicy(policy) => Some(policy.clone()),
            _ => None,
        };
        let policies: Option<Vec<NetworkPolicy>> = policies.map(network).collect();
        Some(policies?.iter().map(|it| Arc::new(CompiledPolicy::compile(it))).collect::<Vec<_>>())
    };
    Some(of_sets(&compiled(before)?, &compiled(after)?, namespaces))
}

fn words(contained: &Contained) -> String {
    match contained {
        Contained::ByElements => "shown: each rule is within an old one, whatever pods there are".to_owned(),
        Contained::ByConnections => {
            "shown: between all pods and addresses that the policies tell apart".to_owned()
        }
        Contained::InPart => "NOT SHOWN: the policies tell more apart than could be tried".to_owned(),
        Contained::Not(example) => format!("NOT SHOWN: {example}"),
    }
}

fn text(
    proofs: &[Proof],
    Replay { broken, doubts, complete, .. }: &Replay,
    out: &mut impl io::Write,
) -> io::Result<()> {
    writeln!(out, "containment: that nothing becomes allowed that was not")?;
    if proofs.is_empty() {
        writeln!(out, "  no policy differs")?;
    }
    for proof in proofs {
        writeln!(out, "  {}: {}", proof.what, one_line(&words(&proof.contained)))?;
    }
    writeln!(out, "replay: that no recorded flow that was allowed becomes denied")?;
    match broken.span {
        Some((from, until)) => writeln!(
            out,
            "  {} flows from {} to {}: {}",
            broken.replayed,
            from.to_the_second(),
            until.to_the_second(),
            if broken.is_empty() { "shown" } else { "NOT SHOWN" }
        )?,
        None => writeln!(out, "  no flow")?,
    }
    for it in broken.denied() {
        let between = &it.between;
        writeln!(
            out,
            "  {} → {} {} {}: {} flows, the last {} ({})\n    was {}\n    would be {}",
            between.source,
            between.destination,
            between.protocol,
            between.port,
            between.flows,
            between.last.to_the_second(),
            between.example,
            one_line(&it.before),
            one_line(&it.after)
        )?;
    }
    if !*complete {
        writeln!(out, "INCOMPLETE: what is missing may need more")?;
        doubts.iter().try_for_each(|doubt| writeln!(out, "  {}", one_line(doubt)))?;
    }
    Ok(())
}

fn json_of(proofs: &[Proof], Replay { broken, missing, doubts, complete }: &Replay) -> Value {
    let proof =
        |it: &Proof| json!({"of": it.what, "is_shown": it.contained.is_shown(), "proof": it.contained});
    json!({
        "containment": proofs.iter().map(proof).collect::<Vec<_>>(),
        "replay": {
            "flows": broken.replayed,
            "from": broken.span.map(|it| it.0.to_the_second()),
            "until": broken.span.map(|it| it.1.to_the_second()),
            "is_shown": broken.is_empty(),
            "denied": broken.denied(),
            "not_judged": missing,
            "complete": complete,
            "doubts": doubts,
        },
    })
}
