//! `netaudit diff`: what two sets of policies allow differently.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::bail;
use clap::ValueEnum;
use serde_json::{Value, json};

use super::{
    Exit,
    ends::{Ends, Row, Side},
    eval_flow::NOW,
    one_line,
};
use crate::{
    cluster::{Cluster, Kind, Object, ObjectKey},
    model::{Cause, Decision, Denial, Direction, RuleMatch, Verdict},
    policy::symbolic::{ConnectionSet, Connections, Other},
    watch::manifests,
};

/// What two sets of policies allow differently
///
/// Reads two sets of manifests and prints which connections become allowed and which no longer are, and by which policies. Both
/// sets of policies are asked about the same pods, nodes and namespaces: those of both sets, as the new one has them where both do.
/// Without any Pod, the sets of labels that the policies tell apart stand for pods. Exit status: 0 they allow the same, 1 they do
/// not, 2 failure.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Manifests: the old ones and then, in a second -f, the new ones; a file or a directory each
    #[arg(short = 'f', long = "filename", value_name = "OLD|NEW", num_args = 1.., action = clap::ArgAction::Append, required = true)]
    manifests: Vec<PathBuf>,
    /// The new manifests, where there are several; then every -f is of the old ones
    #[arg(long, value_name = "NEW", num_args = 1..)]
    new: Vec<PathBuf>,
    /// How to print the answer
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// How to print an answer.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// How many lines of causes a row has.
const CAUSES: usize = 4;

/// How many rows that cannot be compared are shown.
const SHOWN: usize = 3;

/// How many pairs of a row are asked for causes.
const ASKED: usize = 64;

/// A change of one kind.
struct Change {
    name: &'static str,
    title: &'static str,
    rows: Vec<(Row, Vec<String>)>,
}

/// Runs the command.
pub(super) fn run(args: Args) -> anyhow::Result<Exit> {
    let (old, new) = match (args.manifests.as_slice(), args.new.as_slice()) {
        ([old, new], []) => (std::slice::from_ref(old), std::slice::from_ref(new)),
        (old, new @ [_, ..]) => (old, new),
        ([_], []) => bail!("two sets of manifests are needed: -f OLD -f NEW"),
        (many, []) => {
            bail!("{} sets of manifests, where -f OLD -f NEW are two; or -f OLD… --new NEW…", many.len())
        }
    };
    let mut warnings = Vec::new();
    let (old, new) = (load(old, &mut warnings)?, load(new, &mut warnings)?);
    let mut notes = Vec::new();
    let (mut old, mut new) = merge(old, new, &mut notes);
    for (which, cluster) in [("old", &old), ("new", &new)] {
        warnings.extend(cluster.warnings().map(|warning| format!("{which}: {warning}")));
    }
    for warning in &warnings {
        eprintln!("netaudit: {}", one_line(warning));
    }
    let unread = unread_pods(&new);
    let ends = Ends::new(&mut [&mut old, &mut new], true);
    notes.extend(ends.notes.iter().cloned());
    let [old, new] = [0, 1].map(|view| Connections::new(&ends.universe, view));
    let (unknown_before, unknown_now) = (old.unknown(), new.unknown());
    let still = unknown_before.intersection(&unknown_now);
    let gone = unknown_before.difference(&unknown_now);
    let changes = [
        ("newly_allowed", "newly allowed", new.surely.difference(&old.possibly)),
        ("no_longer_allowed", "no longer allowed", old.surely.difference(&new.possibly)),
        ("newly_unknown", "no longer known whether allowed", unknown_now.difference(&unknown_before)),
        ("now_allowed", "allowed, where it was not known", gone.intersection(&new.surely)),
        ("now_denied", "denied, where it was not known", gone.difference(&new.surely)),
    ];
    let changes: Vec<Change> = changes
        .into_iter()
        .map(|(name, title, set)| {
            let rows = ends.rows(&simplest(&ends, set)).into_iter();
            let rows =
                rows.map(|row| (causes(&ends, &row), row)).map(|(causes, row)| (row, causes)).collect();
            Change { name, title, rows }
        })
        .collect();
    let rows = ends.rows(&simplest(&ends, still));
    if !rows.is_empty() {
        let shown: Vec<_> = rows.iter().take(SHOWN).map(|row| ends.row_text(row)).collect();
        let more = if rows.len() > SHOWN { "; and more" } else { "" };
        notes.push(format!("not compared, as neither side is known: {}{more}", shown.join("; ")));
    }
    notes.extend(unread.iter().map(|it| format!("not compared, as it cannot be read: {it}")));
    let is_same = changes.iter().all(|it| it.rows.is_empty());
    // What was not compared may differ.
    let equal = is_same && unread.is_empty();
    let mut out = io::stdout().lock();
    match args.output {
        Output::Json => writeln!(out, "{:#}", json_of(&ends, &changes, equal, &notes, &warnings))?,
        Output::Text => {
            for note in &notes {
                writeln!(out, "{}", one_line(note))?;
            }
            if equal {
                writeln!(out, "no difference: both allow the same")?;
            } else if is_same {
                writeln!(out, "no difference in what could be compared")?;
            }
            for change in changes.iter().filter(|it| !it.rows.is_empty()) {
                writeln!(out, "{}", change.title)?;
                for (row, causes) in &change.rows {
                    writeln!(out, "  {}", ends.row_text(row))?;
                    for cause in causes {
                        writeln!(out, "      {}", one_line(cause))?;
                    }
                }
            }
        }
    }
    Ok(if equal { Exit::Clean } else { Exit::Findings })
}

fn json_of(ends: &Ends, changes: &[Change], equal: bool, notes: &[String], warnings: &[String]) -> Value {
    let mut value = json!({
        "equal": equal,
        "representatives": ends.are_representatives,
        "notes": notes,
        "warnings": warnings,
    });
    for change in changes {
        let row = |(row, causes): &(Row, Vec<String>)| {
            let mut value = ends.row_json(row);
            value["causes"] = json!(causes);
            value
        };
        value[change.name] = change.rows.iter().map(row).collect();
    }
    value
}

fn load<P: AsRef<Path>>(paths: &[P], warnings: &mut Vec<String>) -> anyhow::Result<Vec<Object>> {
    let loaded = manifests::load(paths)?;
    warnings.extend(loaded.errors.iter().chain(&loaded.passed_over).map(ToString::to_string));
    if loaded.documents.is_empty() {
        let names: Vec<_> = paths.iter().map(|it| it.as_ref().display().to_string()).collect();
        warnings.iter().for_each(|warning| eprintln!("netaudit: {warning}"));
        bail!("no object of a kind that matters in {}", names.join(", "));
    }
    Ok(loaded.into_objects())
}

/// Two clusters with the same objects, of which only the policies are each one's own.
fn merge(old: Vec<Object>, new: Vec<Object>, notes: &mut Vec<String>) -> (Cluster, Cluster) {
    let split = |objects: Vec<Object>| objects.into_iter().partition::<Vec<_>, _>(Object::may_be_policy);
    let ((old_policies, old_rest), (new_policies, mut new_rest)) = (split(old), split(new));
    // What only the old side can read is asked as that has it: left out, it would be a difference that nobody is told.
    let readable: BTreeMap<ObjectKey, &Object> = (old_rest.iter())
        .filter(|it| !matches!(it, Object::Broken(_)))
        .filter_map(|it| Some((it.key()?, it)))
        .collect();
    for object in &mut new_rest {
        let Object::Broken(broken) = object else { continue };
        if let Some(known) = broken.key.as_ref().and_then(|key| readable.get(key)) {
            notes.push(format!("asked as the old side has it, as the new one cannot be read: {broken}"));
            *object = (*known).clone();
        }
    }
    let known: BTreeMap<ObjectKey, &Object> =
        new_rest.iter().filter_map(|it| Some((it.key()?, it))).collect();
    let other = |it: &&Object| it.key().and_then(|key| known.get(&key)).is_some_and(|known| **known != **it);
    let differing = old_rest.iter().filter(other).count();
    if differing > 0 {
        notes.push(format!(
            "{differing} objects that are no policies differ: both sides are asked with the new ones"
        ));
    }
    let missing = |it: &&Object| it.key().is_none_or(|key| !known.contains_key(&key));
    let shared: Vec<Object> = old_rest.iter().filter(missing).chain(&new_rest).cloned().collect();
    let cluster = |policies: Vec<Object>| {
        let mut cluster = Cluster::new();
        cluster.reset_all(shared.iter().cloned().chain(policies).collect(), NOW);
        cluster
    };
    (cluster(old_policies), cluster(new_policies))
}

/// Pods that neither side can read: nothing is asked of them.
fn unread_pods(cluster: &Cluster) -> Vec<String> {
    cluster.broken().filter(|it| it.kind == Some(Kind::Pod)).map(ToString::to_string).collect()
}

/// Of representatives, without those whose difference one with fewer labels has too.
fn simplest(ends: &Ends, set: ConnectionSet) -> ConnectionSet {
    if !ends.are_representatives {
        return set;
    }
    let less: Vec<Vec<usize>> =
        (0..ends.universe.groups().len()).map(|it| ends.with_a_label_less(it)).collect();
    set.without(
        |set, source, destination| {
            let ports = set.between(source, destination);
            let by_source = less[source].iter().map(|it| set.between(*it, destination));
            let by_destination = less[destination].iter().map(|it| set.between(source, *it));
            by_source.chain(by_destination).any(|simpler| ports.is_subset(simpler))
        },
        |set, direction, group| {
            let outside = set.outside(direction, group);
            less[group].iter().any(|it| set.outside(direction, *it) == outside)
        },
    )
}

/// What decided before and what decides now, at the ends where that changed.
fn causes(ends: &Ends, row: &Row) -> Vec<String> {
    let mut causes = BTreeSet::new();
    for (direction, own, other) in
        [(Direction::Egress, &row.from, &row.to), (Direction::Ingress, &row.to, &row.from)]
    {
        let Side::Pods(subjects) = own else { continue };
        let others: Vec<Other> = match other {
            Side::Pods(groups) => groups.iter().map(|it| Other::Pod(*it)).collect(),
            Side::Nodes(groups) => groups.iter().map(|it| Other::Node(*it)).collect(),
            Side::Outside(pattern, addresses) => {
                addresses.first().map(|ip| Other::External(ip, *pattern)).into_iter().collect()
            }
        };
        let pairs = subjects.iter().flat_map(|subject| others.iter().map(move |other| (*subject, *other)));
        for (subject, other) in pairs.take(ASKED) {
            for (protocol, port, _) in row.ports.iter() {
                let ask = |view| ends.universe.verdict(view, direction, subject, other, protocol, port);
                causes.extend(cause(direction, &ask(0), &ask(1)));
            }
        }
    }
    let more = causes.len().saturating_sub(CAUSES);
    let mut causes: Vec<String> = causes.into_iter().take(CAUSES).collect();
    if more > 0 {
        causes.push(format!("and {more} more causes"));
    }
    causes
}

/// What changed at one end; `None` where its answer is the same.
fn cause(direction: Direction, before: &Verdict, now: &Verdict) -> Option<String> {
    if before.as_str() == now.as_str() {
        return None;
    }
    Some(format!("{direction}: was {}; is {}", brief(before), brief(now)))
}

/// A verdict in a few words.
fn brief(verdict: &Verdict) -> String {
    let rule = |found: &RuleMatch| format!("{} {}", found.rule.policy, found.rule.path());
    let list = |names: Vec<String>| match names.len() {
        0..=3 => names.join(", "),
        many => format!("{} and {} more", names[..2].join(", "), many - 2),
    };
    match &verdict.decision {
        Decision::Allowed(Cause::Rules(rules)) => {
            format!("allowed by {}", list(rules.iter().map(rule).collect()))
        }
        Decision::Allowed(Cause::NotIsolated) => "allowed, as no policy isolates it".to_owned(),
        Decision::Allowed(Cause::Exempt(why)) => format!("allowed: {why}"),
        Decision::Denied(Denial::Rule(found)) => format!("denied by {}", rule(found)),
        Decision::Denied(Denial::Isolation(misses)) => {
            let names = misses.iter().map(|miss| miss.policy.to_string()).collect();
            format!("isolated by {}", list(names))
        }
        Decision::Unknown(gap) => format!("unknown: {gap}"),
    }
}
