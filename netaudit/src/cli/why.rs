//! `netaudit why`: a flow told again, judged by the policies of then, which a flow store has, and by those of now.

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
    why_then::judge_then,
};
use crate::{
    audit::privacy::key_of,
    cluster::Cluster,
    model::{Cause, Decision, Direction, Exemption, Gap, Protocol, Verdict},
};

/// What became of a flow, what was said of it, what the policies of then say of it (of a flow store), and what those of now say
///
/// Exit status: 0 it was found, and where objects are given its verdict is the same now; 1 the verdict is another one now, or by the
/// objects of then; 2 failure, or no such flow.
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
pub(super) struct Line {
    pub time: String,
    direction: Direction,
    pub subject: LineEnd,
    pub peer: LineEnd,
    protocol: Protocol,
    port: u16,
    outcome: String,
    reach: String,
    verdict: String,
    #[serde(default)]
    pub rules: Vec<String>,
    #[serde(default)]
    rule_paths: Vec<String>,
    #[serde(default)]
    pub denied_by: Vec<String>,
    #[serde(default)]
    pub passed_rules: Vec<String>,
    #[serde(default)]
    passed_by: Vec<String>,
    #[serde(default)]
    caveats: Vec<String>,
    reason: Option<String>,
    finding: Option<String>,
    finding_cause: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct LineEnd {
    kind: String,
    pub namespace: Option<String>,
    pub pod: Option<String>,
    pub uid: Option<String>,
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
    let stores = stores::open(&args.flow_store, &args.reach)?;
    let (place, text) = find(&args.flow_id, &args.flow_log, &stores)?;
    let record: Value = serde_json::from_str(&text).with_context(|| format!("{place}: no JSON object"))?;
    let line: Line = serde_json::from_value(record.clone())
        .with_context(|| format!("{place}: not a line of a flow log"))?;
    let mut out = io::stdout().lock();
    let of_then = match stores.as_slice() {
        [] => None,
        stores => Some(judge_then(&args.flow_id, &line, stores)?),
    };
    let now = match args.source.is_given() {
        true => Some(judge(&line, args.source.load()?.cluster, &Than::NOW)?),
        false => None,
    };
    match args.output {
        Output::Text => {
            write!(out, "{}", then(&args.flow_id, &line))?;
            if let Some(of_then) = &of_then {
                write!(out, "\nby the objects of then\n{}", of_then.text)?;
            }
            match &now {
                Some(now) => write!(out, "\nby the policies of now\n{}", now.text)?,
                None if of_then.is_some() => {}
                None => writeln!(
                    out,
                    "\nname objects with -f or --cluster to have it judged by the policies of now"
                )?,
            }
        }
        Output::Json => {
            let now = now.as_ref().map(|now| &now.json);
            let mut answer = json!({ "record": record, "now": now });
            if let Some(of_then) = &of_then {
                answer["then"] = of_then.json.clone();
            }
            writeln!(out, "{answer:#}")?;
        }
    }
    let differs = of_then.is_some_and(|it| it.same == Some(false)) || now.is_some_and(|now| !now.same);
    Ok(if differs { Exit::Findings } else { Exit::Clean })
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

/// What a set of objects says of a flow.
pub(super) struct Judged {
    pub text: String,
    pub json: Value,
    pub same: bool,
    /// The policies that decide, by kind, namespace and name.
    pub deciding: Vec<String>,
}

/// How a verdict is compared with what was recorded: where it is the same, where that was unknown, and where it is another.
pub(super) struct Than {
    words: [&'static str; 3],
    key: &'static str,
}

impl Than {
    const NOW: Self = Self {
        words: [", as then", ", which was not known then", ", which is not what it was then"],
        key: "same_as_then",
    };
    pub const RECORDED: Self = Self {
        words: [", as recorded", ", which was recorded as unknown", ", which is not what was recorded"],
        key: "same_as_recorded",
    };
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

/// The flow, judged by these objects from the subject's end.
pub(super) fn judge(line: &Line, mut cluster: Cluster, than: &Than) -> anyhow::Result<Judged> {
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
        (true, _) => than.words[0],
        // Then something was missing that is not missing now, which says nothing of the policies.
        (false, "unknown") => than.words[1],
        (false, _) => than.words[2],
    });
    text.push('\n');
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
    json[than.key] = json!(same);
    let deciding = asked.sides.iter().flat_map(|(_, side)| deciding(&side.verdict)).collect();
    Ok(Judged { text, json, same, deciding })
}

/// The policies that a verdict comes from, and those that passed the flow on.
fn deciding(verdict: &Verdict) -> Vec<String> {
    let mut names: Vec<String> = verdict.passed.iter().map(|found| found.rule.policy.to_string()).collect();
    match &verdict.decision {
        Decision::Allowed(Cause::Rules(rules)) => {
            names.extend(rules.iter().map(|found| found.rule.policy.to_string()));
        }
        Decision::Denied(denial) => names.extend(denial.policies().map(ToString::to_string)),
        _ => {}
    }
    names
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
        let answer =
            eval_service::by_record(cluster, subject, namespace, name, line.peer.address(), question)
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
