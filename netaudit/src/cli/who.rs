//! `netaudit who`: whose an address was at a time, by what agents saw and by what the API server said.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    net::IpAddr,
};

use clap::ValueEnum;
use serde::Serialize;
use serde_json::json;

use super::{
    Exit, cannot_be_read,
    columns::Widths,
    flows::time,
    history::{microsecond, object},
    one_line,
    stores::{self, Reach},
};
use crate::{
    cluster::{Kind, Object},
    model::Timestamp,
    store::history::{
        BINDING,
        doubts::{begins, stopped},
        parts::{Parts, Span},
        read::{Change, Read},
        state::{Run, State, in_effect, runs},
    },
};

/// Whose an address was at a time: the pod, node or Service that had it, and how that is known
///
/// What an agent saw in the kernel (`authored`) goes before what the API server said (`API view`), whose edges are fuzzy; what agents say
/// that had stopped by then counts only where there is no other. Two owners are ambiguous, and are all told. Exit status: 0 answered, also where nobody had it; 2 failure, or nothing is known of that time.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The address
    address: IpAddr,
    /// When: a time such as 2026-01-31T12:00:00Z, or how long ago, such as 30m or 7d
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Timestamp,
    /// Directories that agents' --flow-store names, or copies of them, and buckets of their --flow-bucket such as s3://bucket/prefix
    #[arg(long, value_name = "STORE", num_args = 1.., required = true)]
    flow_store: Vec<String>,
    #[command(flatten)]
    reach: Reach,
    /// How to print the answer
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// How to print the answer.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    Table,
    /// One JSON object.
    Json,
    /// The same as YAML.
    Yaml,
}

/// How it is known whose an address was; what goes before comes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
enum How {
    /// The agent saw it in the pod's network namespace.
    #[serde(rename = "authored")]
    Authored,
    /// An object says so.
    #[serde(rename = "API view")]
    ApiView,
}

impl How {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Authored => "authored",
            Self::ApiView => "API view",
        }
    }
}

/// Something that says whose the address was.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
struct Evidence {
    /// Until when whoever says so was heard of, where that is well before the time that is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    heard_until: Option<String>,
    how: How,
    kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    uid: String,
    /// The node that it runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// When the agent learnt of it, or saw it.
    since: String,
    /// The node whose agent says so.
    told_by: String,
}

impl Evidence {
    /// In which order kinds are believed: what only shares its address with a pod comes after it.
    fn rank(&self) -> usize {
        ["Pod", "Node", "Service"].iter().position(|kind| *kind == self.kind).unwrap_or(3)
    }

    fn owner(&self) -> String {
        match self.namespace.as_str() {
            "" => format!("{} {}", self.kind, self.name),
            namespace => format!("{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// Runs the command.
pub(super) fn run(args: Args) -> anyhow::Result<Exit> {
    let ip = args.address.to_canonical();
    let stores = stores::open(&args.flow_store, &args.reach)?;
    let parts = stores::history(&stores, Span::at(args.at))?;
    let (known, read) = runs(&parts)?;
    for (path, reason) in &read.unreadable {
        eprintln!("netaudit: {} cannot be read, its history is missing: {reason}", path.display());
    }
    let asked: Vec<&Run> = in_effect(&known, args.at)
        .into_iter()
        .filter(|run| begins(&read.marks, run).is_none_or(|begins| args.at >= begins))
        .collect();
    if asked.is_empty() {
        let begins = match first_known(&known, &read) {
            Some(first) => format!("the history begins at {}", microsecond(first)),
            // Of a bucket nothing was read that came later.
            None => match Parts::first_hour_after(&stores, args.at)? {
                Some(hour) => format!("the history begins in the hour of {}", hour.to_the_second()),
                None => "the stores hold no history with a list of all objects".to_owned(),
            },
        };
        anyhow::bail!("nothing is known of {}: {begins}", microsecond(args.at));
    }
    let (mut found, mut are_all_silent) = (Vec::new(), true);
    let mut doubts: Vec<String> = read.unreadable.iter().map(cannot_be_read).collect();
    for run in asked {
        let kinds = [Kind::Pod.as_str(), Kind::Node.as_str(), Kind::Service.as_str(), BINDING];
        let state = State::of(&parts, run, args.at, &kinds)?;
        doubts.extend(state.doubts(run));
        let heard_until = stopped(&read.marks, run, args.at).map(|until| until.to_string());
        are_all_silent &= heard_until.is_some();
        let of_run = state.present().filter_map(|change| evidence(change, ip, &state));
        found.extend(of_run.map(|it| Evidence { heard_until: heard_until.clone(), ..it }));
    }
    found.sort();
    found.dedup();
    // Who had stopped to listen knows nothing of what happened since, and counts only where there is nobody else.
    let owners = owners(found.iter().filter(|it| are_all_silent || it.heard_until.is_none()));
    let verdict = match owners.len() {
        0 => "nobody",
        1 => "known",
        _ => "ambiguous",
    };
    let answer = json!({
        "address": ip, "at": args.at.to_string(), "answer": verdict, "owners": owners, "evidence": found, "doubts": doubts,
    });
    let mut out = io::stdout().lock();
    match args.output {
        Output::Table => table(&mut out, &args, &owners, &found, &doubts)?,
        Output::Json => writeln!(out, "{answer:#}")?,
        Output::Yaml => write!(out, "{}", serde_saphyr::to_string(&answer)?)?,
    }
    Ok(Exit::Clean)
}

/// When everything was known first.
fn first_known(known: &[Run], read: &Read) -> Option<Timestamp> {
    let first = known.iter().filter_map(|run| {
        let complete = run.complete()?;
        Some(begins(&read.marks, run).map_or(complete, |begins| begins.max(complete)))
    });
    first.min()
}

/// What a change says of the address.
fn evidence(change: &Change, ip: IpAddr, state: &State) -> Option<Evidence> {
    let say = |how, kind: Kind, namespace: &str, name: &str, node: Option<String>| Evidence {
        heard_until: None,
        how,
        kind: kind.as_str().to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: change.uid.clone(),
        node,
        since: change.time.to_string(),
        told_by: change.node.clone(),
    };
    if change.kind == BINDING {
        let node = state.get(&super::history::pod_key(&change.namespace, &change.name)).and_then(object);
        let node = match node {
            Some(Object::Pod(pod)) => pod.node.map(|node| node.to_string()),
            _ => None,
        };
        let is_it = change.address == Some(ip);
        return is_it.then(|| say(How::Authored, Kind::Pod, &change.namespace, &change.name, node));
    }
    match object(change)? {
        Object::Pod(pod) if !pod.completed && pod.ips.contains(&ip) => {
            let node = pod.node.as_ref().map(ToString::to_string);
            // A hostNetwork pod is its node.
            Some(match (pod.host_network, node) {
                (true, Some(node)) => say(How::ApiView, Kind::Node, "", &node.clone(), Some(node)),
                (_, node) => say(How::ApiView, Kind::Pod, &pod.namespace, &pod.name, node),
            })
        }
        Object::Node(node) if node.ips.contains(&ip) => {
            Some(say(How::ApiView, Kind::Node, "", &node.name, Some(node.name.to_string())))
        }
        Object::Service(service) if service.ips.contains(&ip) => {
            Some(say(How::ApiView, Kind::Service, &service.namespace, &service.name, None))
        }
        Object::Broken(broken) if broken.ips.contains(&ip) => {
            Some(say(How::ApiView, broken.kind?, &change.namespace, &change.name, None))
        }
        _ => None,
    }
}

/// Whose it was: by what was seen, or else by the kind that goes before the others.
fn owners<'a>(found: impl Iterator<Item = &'a Evidence> + Clone) -> Vec<String> {
    let best = found.clone().map(|it| (it.how, it.rank())).min();
    // A pod and its successor of one name are two.
    let of_best = found.filter(|it| Some((it.how, it.rank())) == best);
    let different: BTreeSet<(String, &str)> = of_best
        .map(|it| (it.owner(), if it.kind == Kind::Pod.as_str() { it.uid.as_str() } else { "" }))
        .collect();
    different.into_iter().map(|(owner, _)| owner).collect()
}

fn table(
    out: &mut impl Write,
    args: &Args,
    owners: &[String],
    found: &[Evidence],
    doubts: &[String],
) -> io::Result<()> {
    let at = microsecond(args.at);
    match owners {
        [] => writeln!(out, "{} at {at}: nobody that is known", args.address)?,
        [owner] => writeln!(out, "{} at {at}: {}", args.address, one_line(owner))?,
        owners => writeln!(out, "{} at {at}: ambiguous: {}", args.address, one_line(&owners.join(", ")))?,
    }
    let head = ["EVIDENCE", "OWNER", "UID", "NODE", "SINCE", "TOLD BY"].map(str::to_owned);
    let lines: Vec<[String; 6]> = found
        .iter()
        .map(|it| {
            let node = it.node.clone().unwrap_or_default();
            [
                it.how.as_str().to_owned(),
                it.owner(),
                it.uid.clone(),
                node,
                it.since.clone(),
                match &it.heard_until {
                    Some(until) => format!("{}, heard of until {until}", it.told_by),
                    None => it.told_by.clone(),
                },
            ]
        })
        .collect();
    if !lines.is_empty() {
        let widths = Widths::of(lines.iter().chain([&head]));
        for line in [&head].into_iter().chain(&lines) {
            writeln!(out, "{}", widths.line(line))?;
        }
    }
    for doubt in doubts {
        writeln!(out, "but {}", one_line(doubt))?;
    }
    Ok(())
}
