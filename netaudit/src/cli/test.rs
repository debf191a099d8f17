//! `netaudit test`: whether policies do what is expected of them.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write as _},
    ops::ControlFlow,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum;
use serde_json::json;

use super::{
    Exit, cannot_be_read,
    eval_flow::{self, Answer, End, NOW, Outcome, Pair, Question},
    flows::{STOPPED, now, on_interrupt, scan_stores, time},
    history::{microsecond, rebuild},
    one_line,
    source::Source,
    stores::{self, Reach},
    test_report,
};
use crate::{
    advise::{
        expectations::{Case, Expectations, Expected, Pods, StandIn, Words},
        what_if::{self, Class},
    },
    cluster::{Cluster, Kind, Object, Pod},
    model::{Decision, Denial, Direction, Timestamp},
    replay::{COLUMNS, Classes, Histories},
    store::{
        bundle::partly,
        flows::{ask::Columns, filter::Filter},
        history::{
            doubts::stopped,
            parts::{Parts, Span},
            state::{Run, State, in_effect, runs},
        },
    },
    watch::convert,
};

/// Whether policies do what files of expectations say, against manifests, a cluster or the history of a flow store
///
/// Exit status: 0 every case holds; 1 one does not, or its ends are not there; 2 failure.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Files of expectations
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    source: Source,
    /// Take the objects of a time from the history of these flow stores, and say of each case whether such flows were recorded
    #[arg(long, value_name = "STORE", num_args = 1.., conflicts_with_all = ["manifests", "cluster"])]
    flow_store: Vec<String>,
    #[command(flatten)]
    reach: Reach,
    /// The time of the objects: such as 2026-01-31T12:00:00Z, or how long ago, such as 30m or 7d [default: --until, else now]
    #[arg(long, value_name = "TIME", value_parser = time, requires = "flow_store")]
    at: Option<Timestamp>,
    /// Recorded flows that began at this time or later
    #[arg(long, value_name = "TIME", value_parser = time, requires = "flow_store")]
    since: Option<Timestamp>,
    /// Recorded flows that began before this time
    #[arg(long, value_name = "TIME", value_parser = time, requires = "flow_store")]
    until: Option<Timestamp>,
    /// How to print the results
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// How to print the results.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// The Test Anything Protocol, version 14.
    Tap,
    /// JUnit's XML, which CI servers read.
    Junit,
    /// One JSON object.
    Json,
}

/// How a case ended.
pub(super) struct Checked {
    pub file: String,
    pub line: u64,
    pub name: String,
    pub expect: Expected,
    /// Connections that were asked for.
    pub asked: usize,
    /// Recorded flows, where they were looked at.
    pub observed: Option<u64>,
    /// Why it does not hold; nothing where it does. One for each connection, with what decides.
    pub failures: Vec<Failure>,
    /// What else there is to say.
    pub notes: Vec<String>,
}

/// Why a case does not hold.
pub(super) struct Failure {
    /// In a sentence.
    pub message: String,
    /// What decides, a line each.
    pub details: Vec<String>,
    /// What to do.
    pub advice: Vec<String>,
}

/// Connections of one case at most.
const MOST: usize = 10_000;

/// Connections of a case that are told, where more fail.
const TOLD: usize = 5;

/// Runs the command.
pub(super) fn run(args: Args) -> anyhow::Result<Exit> {
    if let Some((since, until)) = args.since.zip(args.until) {
        ensure!(since < until, "--since is not before --until");
    }
    let mut files = Vec::new();
    for path in &args.files {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
        let read = Expectations::read(&text).map_err(|flaw| match flaw.line {
            0 => anyhow::anyhow!("{name}: {}", flaw.reason),
            line => anyhow::anyhow!("{name}:{line}: {}", flaw.reason),
        })?;
        files.push((name, read));
    }
    let recorded = if args.flow_store.is_empty() { None } else { Some(recorded(&args)?) };
    let mut results = Vec::new();
    let mut loaded: Option<Cluster> = None;
    for (name, expectations) in &files {
        // The pods that stand in are a file's own: those of another one are not there.
        let mut cluster = match loaded.take() {
            Some(cluster) => cluster,
            None => load(&args)?,
        };
        for pod in &expectations.pods {
            stand_in(&mut cluster, pod, name)?;
        }
        for case in &expectations.cases {
            results.push(check(&mut cluster, name, case, recorded.as_ref()));
        }
        loaded = expectations.pods.is_empty().then_some(cluster);
    }
    let mut out = io::stdout().lock();
    match args.output {
        Output::Text => test_report::text(&results, &mut out)?,
        Output::Tap => test_report::tap(&results, &mut out)?,
        Output::Junit => test_report::junit(&results, &mut out)?,
        Output::Json => writeln!(out, "{:#}", test_report::json(&results))?,
    }
    out.flush()?;
    let holds = results.iter().all(|result| result.failures.is_empty());
    Ok(if holds { Exit::Clean } else { Exit::Findings })
}

/// The objects that are asked.
fn load(args: &Args) -> anyhow::Result<Cluster> {
    if args.flow_store.is_empty() {
        return Ok(args.source.load()?.cluster);
    }
    let stores = stores::open(&args.flow_store, &args.reach)?;
    let at = args.at.or(args.until).unwrap_or_else(now);
    let parts = stores::history(&stores, Span::at(at))?;
    let (known, read) = runs(&parts)?;
    // One that goes on to listen knows more than one that has stopped.
    let listens = |run: &Run| stopped(&read.marks, run, at).is_none();
    let run = in_effect(&known, at).into_iter().max_by_key(|run| (listens(run), run.complete()));
    let Some(run) = run else {
        let begins = known.iter().filter_map(|run| run.complete()).min();
        match begins {
            Some(begins) => bail!(
                "no history of objects tells of {}: it begins at {}",
                microsecond(at),
                microsecond(begins)
            ),
            // Of a bucket nothing was read that came later.
            None => match Parts::first_hour_after(&stores, at)? {
                Some(hour) => bail!(
                    "no history of objects tells of {}: it begins in the hour of {}",
                    microsecond(at),
                    hour.to_the_second()
                ),
                None => bail!("the stores hold no whole history of objects"),
            },
        }
    };
    let state = State::of(&parts, run, at, &[])?;
    if let Some(begins) = state.begins(run).filter(|begins| at < *begins) {
        bail!("the history of {} begins at {}", run.node, microsecond(begins));
    }
    eprintln!("netaudit: objects of {}, as the agent of {} knew them", microsecond(at), run.node);
    for doubt in state.doubts(run).iter().cloned().chain(read.unreadable.iter().map(cannot_be_read)) {
        eprintln!("netaudit: {}", one_line(&doubt));
    }
    Ok(rebuild(&state, &[]))
}

/// Adds a pod of the file, where the objects have none of its name.
fn stand_in(cluster: &mut Cluster, pod: &StandIn, file: &str) -> anyhow::Result<()> {
    if cluster.pod_by_name(&pod.namespace, &pod.name).is_some() {
        eprintln!("netaudit: {file}: pod {}/{} is there, and is asked as it is", pod.namespace, pod.name);
        return Ok(());
    }
    let ports: Vec<_> =
        pod.ports.iter().map(|(name, port)| json!({ "name": name, "containerPort": port })).collect();
    let ips: Vec<_> = pod.addresses.iter().map(|ip| json!({ "ip": ip })).collect();
    let value = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": pod.namespace, "name": pod.name, "labels": pod.labels },
        "spec": { "nodeName": pod.node, "containers": [{ "name": "main", "ports": ports }] },
        "status": { "phase": "Running", "podIP": pod.addresses.first(), "podIPs": ips },
    });
    let source: Arc<str> = file.into();
    let object = convert::object(Kind::Pod, &value, &source);
    if let Object::Broken(broken) = &object {
        bail!("{file}: pod {}/{}: {}", pod.namespace, pod.name, broken.reason);
    }
    cluster.apply(object, NOW);
    Ok(())
}

/// Recorded flows of the time that is asked for.
struct Recorded {
    flows: Vec<(Class, u64)>,
    /// What of them is missing, in sentences.
    missing: Vec<String>,
}

fn recorded(args: &Args) -> anyhow::Result<Recorded> {
    on_interrupt()?;
    let stores = stores::open(&args.flow_store, &args.reach)?;
    let filter = Filter { from: args.since, until: args.until, ..Filter::default() };
    let histories = Histories::default();
    let mut classes = Classes::new(&histories);
    let scanned = scan_stores(&stores, &filter, Columns::Some(&COLUMNS), &mut |batch| {
        if let Some(batch) = batch {
            classes.add(&batch)?;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let mut missing: Vec<String> = scanned.unreadable.iter().map(cannot_be_read).collect();
    missing.extend(stores.iter().filter_map(partly));
    if STOPPED.load(Ordering::Relaxed) {
        missing.push("stopped: what came after is missing".to_owned());
    }
    if !scanned.coverage.is_complete() {
        missing.extend(scanned.coverage.sentences());
    }
    let nameless = classes.nameless();
    if nameless > 0 {
        missing.push(format!("{nameless} recorded flows do not say who an end was"));
    }
    for sentence in &missing {
        eprintln!("netaudit: {}", one_line(sentence));
    }
    let flows = classes.flows().map(|(class, flows)| (class.clone(), flows)).collect();
    Ok(Recorded { flows, missing })
}

/// Asks for every connection of a case.
fn check(cluster: &mut Cluster, file: &str, case: &Case, recorded: Option<&Recorded>) -> Checked {
    let mut result = Checked {
        file: file.to_owned(),
        line: case.line(),
        name: case.name.value.clone(),
        expect: case.expect,
        asked: 0,
        observed: None,
        failures: Vec::new(),
        notes: Vec::new(),
    };
    let (from, to) = match (ends(cluster, &case.from.0), ends(cluster, &case.to.0)) {
        (Ok(from), Ok(to)) => (from, to),
        (from, to) => {
            result.failures.extend([from, to].into_iter().filter_map(|it| it.err()).map(Failure::plain));
            return result;
        }
    };
    let all = from.len().saturating_mul(to.len()).saturating_mul(case.port.0.len());
    if all > MOST {
        let message = format!("{all} connections are meant, and {MOST} are asked for at most: say fewer");
        result.failures.push(Failure::plain(message));
        return result;
    }
    // Both ends tell of one flow: by each of them.
    let mut observed = [0, 0];
    let mut has_pod = false;
    let mut seen: BTreeSet<usize> = BTreeSet::new();
    let mut failed = 0;
    for (from, to, port) in from
        .iter()
        .flat_map(|from| to.iter().flat_map(move |to| case.port.0.iter().map(move |port| (from, to, *port))))
    {
        // A pod that is both is no connection that policies see.
        if from == to {
            continue;
        }
        let question = Question { protocol: case.protocol, port };
        result.asked += 1;
        let answer = match eval_flow::ask(cluster, from, to, question) {
            Ok(answer) => answer,
            Err(error) => {
                failed += 1;
                result.failures.push(Failure::plain(format!("{from} → {to}: {error:#}")));
                continue;
            }
        };
        if let Some(recorded) = recorded {
            for (place, (class, flows)) in recorded.flows.iter().enumerate() {
                if is_of(cluster, class, &answer, to) && seen.insert(place) {
                    observed[usize::from(class.direction == Direction::Ingress)] += flows;
                }
            }
        }
        has_pod |= answer
            .pairs
            .iter()
            .any(|pair| [&pair.from, &pair.to].iter().any(|end| matches!(end, End::Pod(..))));
        if let Some(failure) = failure(cluster, case.expect, &answer, (from, to, port)) {
            failed += 1;
            if failed <= TOLD {
                result.failures.push(failure);
            }
        }
    }
    let observed = observed[0].max(observed[1]);
    if result.asked == 0 {
        let message = "each source is its own destination: policies see no connection of a pod to itself";
        result.failures.push(Failure::plain(message.to_owned()));
    } else if !has_pod && result.failures.is_empty() {
        let message = "neither end is a pod that policies select: none of them was asked";
        result.failures.push(Failure::plain(message.to_owned()));
    }
    if failed > TOLD {
        result.notes.push(format!("{failed} of {} connections fail, of which {TOLD} are told", result.asked));
    }
    match (case.observed, recorded) {
        (Some(_), None) => {
            result.notes.push("observed: not checked, as no --flow-store tells of recorded flows".to_owned());
        }
        (expected, Some(recorded)) => {
            result.observed = Some(observed);
            match expected {
                Some(true) if observed == 0 => {
                    result.failures.push(Failure::plain("no such flow was recorded in that time".to_owned()));
                }
                Some(false) if observed > 0 => {
                    let message = format!("{observed} such flows were recorded, and none was to be");
                    result.failures.push(Failure::plain(message));
                }
                // That nobody recorded one says nothing of the time in which nobody looked.
                Some(false) if !recorded.missing.is_empty() => {
                    let mut failure = Failure::plain(
                        "whether no such flow was there is not known: some are missing".to_owned(),
                    );
                    failure.details.clone_from(&recorded.missing);
                    result.failures.push(failure);
                }
                _ => {}
            }
        }
        (None, None) => {}
    }
    result
}

/// The ends that are meant, as `netaudit eval` takes them.
fn ends(cluster: &Cluster, words: &[Words]) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    for words in words {
        match words {
            Words::End(words) => all.push(words.clone()),
            Words::Pods(pods) => {
                let mut found: Vec<String> = cluster
                    .pods()
                    .filter(|(_, pod)| !pod.completed && is_meant(pods, pod))
                    .map(|(_, pod)| format!("{}/{}", pod.namespace, pod.name))
                    .collect();
                if found.is_empty() {
                    return Err(format!("there are no {words}"));
                }
                found.sort();
                all.extend(found);
            }
        }
    }
    // In their order, each once.
    let mut seen = BTreeSet::new();
    all.retain(|words| seen.insert(words.clone()));
    Ok(all)
}

fn is_meant(pods: &Pods, pod: &Pod) -> bool {
    *pod.namespace == *pods.namespace
        && pods.workload.as_ref().is_none_or(|name| *pod.workload.name == **name)
        && pods.kind.as_ref().is_none_or(|kind| pod.workload.kind.eq_ignore_ascii_case(kind))
        && pods.labels.iter().all(|(key, value)| pod.labels.get(key).is_some_and(|it| **it == **value))
}

/// Why a connection is not what is expected of it.
fn failure(
    cluster: &Cluster,
    expect: Expected,
    answer: &Answer,
    (from, to, port): (&str, &str, u16),
) -> Option<Failure> {
    let outcome = answer.outcome();
    let (holds, expected) = match expect {
        Expected::Allow => (outcome == Outcome::Allowed, "allowed"),
        Expected::Deny => (outcome == Outcome::Denied, "denied"),
    };
    if holds {
        return None;
    }
    let protocol = answer.question.protocol;
    let message =
        format!("{from} → {to} {protocol} {port}: expected {expected}, and it is {}", outcome.as_str());
    let details = answer.text(cluster).lines().map(str::to_owned).collect();
    let mut advice: Vec<String> =
        answer.pairs.iter().flat_map(|pair| advice(cluster, expect, pair, answer)).collect();
    advice.sort();
    advice.dedup();
    Some(Failure { message, details, advice })
}

/// What to do where a pair of ends does not fare as expected.
fn advice(cluster: &Cluster, expect: Expected, pair: &Pair, answer: &Answer) -> Vec<String> {
    let mut advice = Vec::new();
    let mut rules = Vec::new();
    let mut open = false;
    for (direction, own, other) in
        [(Direction::Egress, &pair.from, &pair.to), (Direction::Ingress, &pair.to, &pair.from)]
    {
        let verdict = &pair.side(direction).verdict;
        let preposition = if direction == Direction::Egress { "to" } else { "from" };
        match (expect, &verdict.decision) {
            (Expected::Allow, Decision::Denied(Denial::Rule(found))) => {
                advice.push(format!(
                    "take {} from what {} {} denies",
                    eval_flow::name(cluster, other),
                    found.rule.policy,
                    found.path()
                ));
            }
            (Expected::Allow, Decision::Denied(denial)) => {
                let names: Vec<String> = denial.policies().map(ToString::to_string).collect();
                advice.push(format!(
                    "allow {direction} {preposition} {} on {} {} in a policy that selects {} (isolated by {})",
                    eval_flow::name(cluster, other),
                    answer.question.protocol,
                    pair.port,
                    eval_flow::name(cluster, own),
                    names.join(", ")
                ));
            }
            (Expected::Deny, Decision::Allowed(_)) => {
                let by: Vec<String> =
                    verdict.rules().iter().map(|it| format!("{} {}", it.rule.policy, it.path())).collect();
                match by.as_slice() {
                    [] => open = true,
                    by => rules.push(by.join(", ")),
                }
            }
            (_, Decision::Unknown(gap)) => advice.push(format!("find out why it is not known: {gap}")),
            _ => {}
        }
    }
    if expect == Expected::Deny && pair.outcome() == Outcome::Allowed {
        advice.extend(rules.iter().map(|rules| format!("narrow what allows it: {rules}")));
        if open {
            advice.push("isolate the end that no policy isolates".to_owned());
        }
    }
    if !advice.is_empty() {
        advice.push("or change the expectation".to_owned());
    }
    advice
}

/// Whether a recorded class is one of the connections that were asked for.
fn is_of(cluster: &Cluster, class: &Class, answer: &Answer, to: &str) -> bool {
    if class.protocol != answer.question.protocol {
        return false;
    }
    let is_end = |end: &what_if::End, asked: &End| match (end, asked) {
        // Pods come and go, and what they belong to stays.
        (what_if::End::Pod { namespace, name, workload, .. }, End::Pod(id, _)) => {
            cluster.pod(*id).is_some_and(|pod| {
                let is_workload = *pod.workload.kind != *"Pod"
                    && (&pod.workload.kind, &pod.workload.name) == (&workload.kind, &workload.name);
                pod.namespace == *namespace && (pod.name == *name || is_workload)
            })
        }
        (what_if::End::Node { name, .. }, End::Node(asked, _)) => name == asked,
        (what_if::End::External { ip, .. }, End::External(asked)) => ip == asked,
        _ => false,
    };
    let is_service = |end: &what_if::End| match end {
        what_if::End::Service { namespace, name, .. } => to == format!("svc/{namespace}/{name}"),
        _ => false,
    };
    // Of a service whose endpoints were judged differently its own port was recorded.
    let is_port = |pair: &Pair| match is_service(class.destination()) {
        true => class.port == pair.port || class.port == answer.question.port,
        false => class.port == pair.port && is_end(class.destination(), &pair.to),
    };
    answer.pairs.iter().any(|pair| is_end(class.source(), &pair.from) && is_port(pair))
}

impl Failure {
    fn plain(message: String) -> Self {
        Self { message, details: Vec::new(), advice: Vec::new() }
    }
}
