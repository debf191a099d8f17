//! `netaudit why`: a flow of the flow log told again, and judged by the policies of now.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    net::IpAddr,
    path::PathBuf,
};

use anyhow::{Context as _, anyhow};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Exit,
    eval::Output,
    eval_explain,
    eval_flow::{self, End, Pair, Question, Side},
    eval_service,
    source::Source,
    stores::{self, Reach},
    why_find::find,
};
use crate::{
    audit::privacy::key_of,
    cluster::Cluster,
    model::{Direction, Exemption, Gap, Protocol, Verdict},
};

/// What became of a flow of the flow log, what was said of it, and what the policies say of it now
///
/// Exit status: 0 it was found, and where objects are given its verdict is the same now; 1 the verdict is another one now;
/// 2 failure, or no such flow.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The flow's `flow_id`
    flow_id: String,
    /// Flow logs to look in; - is stdin
    #[arg(long, value_name = "FILE", num_args = 1.., required_unless_present = "flow_store")]
    flow_log: Vec<PathBuf>,
    /// Flow stores to look in: directories, and buckets such as s3://bucket/prefix
    #[arg(long, value_name = "STORE", num_args = 1..)]
    flow_store: Vec<String>,
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    source: Source,
    /// How to print the answer
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// What is read of a line of the flow log.
#[derive(Deserialize)]
struct Line {
    time: String,
    direction: Direction,
    subject: LineEnd,
    peer: LineEnd,
    protocol: Protocol,
    port: u16,
    outcome: String,
    reach: String,
    verdict: String,
    #[serde(default)]
    rule_paths: Vec<String>,
    #[serde(default)]
    denied_by: Vec<String>,
    #[serde(default)]
    passed_by: Vec<String>,
    #[serde(default)]
    caveats: Vec<String>,
    reason: Option<String>,
    finding: Option<String>,
    finding_cause: Option<String>,
}

#[derive(Deserialize)]
struct LineEnd {
    kind: String,
    namespace: Option<String>,
    pod: Option<String>,
    node: Option<String>,
    service: Option<String>,
    ip: Option<LineAddress>,
    #[serde(default)]
    names: Vec<LineName>,
}

/// An address, or the hash that is told instead.
#[derive(Deserialize)]
#[serde(try_from = "String")]
enum LineAddress {
    Plain(IpAddr),
    Hashed(String),
}

impl TryFrom<String> for LineAddress {
    type Error = std::net::AddrParseError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match key_of(&text) {
            Some(_) => Ok(Self::Hashed(text)),
            None => text.parse().map(Self::Plain),
        }
    }
}

impl std::fmt::Display for LineAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Plain(ip) => ip.fmt(f),
            Self::Hashed(hash) => f.pad(hash),
        }
    }
}

/// A name that DNS gave for an address.
#[derive(Deserialize)]
struct LineName {
    name: String,
    state: String,
    counts: bool,
    answered: String,
}

impl LineEnd {
    /// The address, where it is told.
    fn address(&self) -> Option<IpAddr> {
        match &self.ip {
            Some(LineAddress::Plain(ip)) => Some(*ip),
            Some(LineAddress::Hashed(_)) | None => None,
        }
    }

    /// The address, or whatever is known.
    fn end_name(&self) -> String {
        self.ip.as_ref().map_or_else(|| self.kind.clone(), |ip| ip.to_string())
    }

    /// As `eval` takes it: the pod by name, anything else by address.
    fn words(&self) -> Option<String> {
        match (&self.namespace, &self.pod, self.address()) {
            (Some(namespace), Some(pod), _) => Some(format!("{namespace}/{pod}")),
            (_, _, Some(ip)) => Some(ip.to_string()),
            _ => None,
        }
    }
}

impl std::fmt::Display for LineEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.namespace, &self.pod) {
            (Some(namespace), Some(pod)) => write!(f, "{namespace}/{pod}")?,
            _ => match &self.node {
                Some(node) => write!(f, "{} {node}", self.kind)?,
                None => write!(f, "{}", self.kind)?,
            },
        }
        if let Some(ip) = &self.ip {
            write!(f, " ({ip})")?;
        }
        if let Some(service) = &self.service {
            write!(f, " by service {service}")?;
        }
        Ok(())
    }
}

/// Runs the command.
pub(super) fn run(args: Args) -> anyhow::Result<Exit> {
    let (place, text) = find(&args.flow_id, &args.flow_log, &stores::open(&args.flow_store, &args.reach)?)?;
    let record: Value = serde_json::from_str(&text).with_context(|| format!("{place}: no JSON object"))?;
    let line: Line = serde_json::from_value(record.clone())
        .with_context(|| format!("{place}: not a line of a flow log"))?;
    let mut out = io::stdout().lock();
    let now = if args.source.is_given() { Some(judge(&line, &args.source)?) } else { None };
    match args.output {
        Output::Text => {
            write!(out, "{}", then(&args.flow_id, &line))?;
            match &now {
                Some(now) => write!(out, "\nby the policies of now\n{}", now.text)?,
                None => writeln!(
                    out,
                    "\nname objects with -f or --cluster to have it judged by the policies of now"
                )?,
            }
        }
        Output::Json => {
            let now = now.as_ref().map(|now| &now.json);
            writeln!(out, "{:#}", json!({ "record": record, "now": now }))?;
        }
    }
    Ok(if now.is_none_or(|now| now.same) { Exit::Clean } else { Exit::Findings })
}

/// What the record says.
fn then(id: &str, line: &Line) -> String {
    let mut text = String::new();
    let (from, to) = match line.direction {
        Direction::Egress => (&line.subject, &line.peer),
        Direction::Ingress => (&line.peer, &line.subject),
    };
    let _ = writeln!(text, "flow {id}, {}, {} of {}", line.time, line.direction, line.subject);
    let _ =
        writeln!(text, "  {from} → {to} {} {}: {}, {}", line.protocol, line.port, line.outcome, line.reach);
    for LineName { name, state, answered, .. } in &line.peer.names {
        let _ = writeln!(text, "  {} is {name}, {state}, answered {answered}", line.peer.end_name());
    }
    let finding = match (&line.finding, &line.finding_cause) {
        (Some(finding), Some(cause)) => format!(", {finding} ({cause})"),
        (Some(finding), None) => format!(", {finding}"),
        _ => String::new(),
    };
    let _ = writeln!(text, "{} then{finding}", line.verdict);
    for (how, items) in [
        ("passed on by", &line.passed_by),
        ("by", &line.rule_paths),
        ("denied by", &line.denied_by),
        ("but", &line.caveats),
    ] {
        for item in items {
            let _ = writeln!(text, "  {how} {item}");
        }
    }
    if let Some(reason) = &line.reason {
        let _ = writeln!(text, "  {reason}");
    }
    text
}

struct Now {
    text: String,
    json: Value,
    same: bool,
}

/// What is said of the subject's end now: of each backend where a service was asked for.
struct Asked {
    sides: Vec<(Option<String>, Side)>,
    /// Why the whole is unknown though the sides may not be.
    gap: Option<Gap>,
}

impl Asked {
    /// One side alone.
    fn one(side: Side) -> Self {
        Self { sides: vec![(None, side)], gap: None }
    }

    fn plain(verdict: Verdict) -> Self {
        Self::one(Side::plain(verdict))
    }

    fn verdict(&self) -> &'static str {
        match (&self.gap, self.sides.as_slice()) {
            (None, [(_, first), ..]) => first.verdict.as_str(),
            _ => "unknown",
        }
    }
}

/// The flow, judged by the objects of now from the subject's end.
fn judge(line: &Line, source: &Source) -> anyhow::Result<Now> {
    let mut cluster = source.load()?.cluster;
    if let Some(ip) = line.peer.address() {
        // Those that policies went by then; what else the address is called is not known now either.
        let counting = line.peer.names.iter().filter(|it| it.counts);
        cluster.set_some_names(counting.map(|it| (it.name.clone(), ip)));
    }
    let asked = ask(line, &mut cluster)?;
    let verdict = asked.verdict();
    let same = verdict == line.verdict;
    let mut text = format!("{} at {}: {verdict}", line.direction, line.subject);
    text.push_str(match (same, line.verdict.as_str()) {
        (true, _) => ", as then\n",
        // Then something was missing that is not missing now, which says nothing of the policies.
        (false, "unknown") => ", which was not known then\n",
        (false, _) => ", which is not what it was then\n",
    });
    if let Some(gap) = &asked.gap {
        let _ = writeln!(text, "  {gap}");
    }
    for (backend, side) in &asked.sides {
        let indent = match backend {
            Some(backend) => {
                let _ = writeln!(text, "  at {backend}: {}", side.verdict.as_str());
                "    "
            }
            None => "  ",
        };
        for reason in eval_explain::lines(line.direction, side) {
            let _ = writeln!(text, "{indent}{reason}");
        }
    }
    let mut json = match asked.sides.as_slice() {
        [(None, side)] => eval_explain::json(side),
        sides => {
            let backend = |(name, side): &(Option<String>, Side)| {
                let mut value = eval_explain::json(side);
                value["backend"] = json!(name);
                value
            };
            let reason = asked.gap.as_ref().map(ToString::to_string);
            json!({ "verdict": verdict, "reason": reason, "backends": sides.iter().map(backend).collect::<Vec<_>>() })
        }
    };
    json["same_as_then"] = json!(same);
    Ok(Now { text, json, same })
}

/// Asks the policies, unless no policy has a part in it.
fn ask(line: &Line, cluster: &mut Cluster) -> anyhow::Result<Asked> {
    let question = Question { protocol: line.protocol, port: line.port };
    if line.subject.kind == "node" {
        return Ok(Asked::plain(Verdict::exempt(Exemption::HostNetwork)));
    }
    if line.peer.kind == "loopback" {
        return Ok(Asked::plain(Verdict::exempt(Exemption::Loopback)));
    }
    // Who stood behind the node's address is not known now either, so there is nobody to ask for.
    if line.verdict == "unknown" && line.reason == Some(Gap::SourceTranslated.to_string()) {
        return Ok(Asked::plain(Verdict::unknown(Gap::SourceTranslated)));
    }
    let lacks = |end: &LineEnd| {
        anyhow!("the record does not say who the {} is, so nothing can be asked of the policies", end.kind)
    };
    if let ("external", Some(LineAddress::Hashed(_))) = (line.peer.kind.as_str(), &line.peer.ip) {
        return Err(anyhow!(
            "the record has a hash for the address outside the cluster, so nothing can be asked of the policies: ask netaudit eval with the address, if you know it"
        ));
    }
    // An address may be another's by now, so a pod that is gone is an error and not somebody else's verdict.
    let words = line.subject.words().ok_or_else(|| lacks(&line.subject))?;
    let subject =
        eval_flow::end(cluster, &words, question).context("the subject is not among the objects")?;
    if line.peer.kind == "node" && line.peer.node.is_some() && line.peer.node == line.subject.node {
        return Ok(Asked::plain(Verdict::exempt(Exemption::OwnNode)));
    }
    let is_egress = line.direction == Direction::Egress;
    if let ("service", true, Some(service)) = (line.peer.kind.as_str(), is_egress, &line.peer.service) {
        let (namespace, name) = service.split_once('/').unwrap_or_default();
        let answer = eval_service::by_name(cluster, subject, namespace, name, line.peer.address(), question)
            .context("the peer is not among the objects")?;
        let gap = answer.gap_of(line.direction);
        let sides = answer.pairs.into_iter().map(|pair| {
            let backend = format!("{} {}", eval_flow::name(cluster, &pair.to), pair.port);
            (Some(backend), pair.egress)
        });
        return Ok(Asked { sides: sides.collect(), gap });
    }
    let peer = match (&line.peer.node, line.peer.address()) {
        // Each of a node's addresses is the node, also those that its object does not tell.
        (Some(node), Some(ip)) if line.peer.kind == "node" => End::Node(node.as_str().into(), ip),
        (_, ip) => {
            let words = line.peer.words().ok_or_else(|| lacks(&line.peer))?;
            match eval_flow::end(cluster, &words, question).context("the peer is not among the objects")? {
                // The address that carried the flow is the one that an ipBlock was compared with.
                End::Pod(id, None) => End::Pod(id, ip),
                other => other,
            }
        }
    };
    let (from, to) = if is_egress { (subject, peer) } else { (peer, subject) };
    let pair = Pair::ask(cluster, from, to, line.protocol, line.port);
    Ok(Asked::one(if is_egress { pair.egress } else { pair.ingress }))
}
