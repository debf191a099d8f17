//! `netaudit why`: a flow of the flow log told again, and judged by the policies of now.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, BufRead, BufReader, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Exit,
    eval::Output,
    eval_flow::{self, Pair, Question},
    source::Source,
};
use crate::model::{Direction, Protocol};

/// What became of a flow of the flow log, what was said of it, and what the policies say of it now
///
/// Exit status: 0 it was found, and where objects are given its verdict is the same now; 1 the verdict is another one now;
/// 2 failure, or no such flow.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The flow's `flow_id`
    flow_id: String,
    /// Flow logs to look in; - is stdin
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    flow_log: Vec<PathBuf>,
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
    ip: Option<IpAddr>,
}

impl LineEnd {
    /// As `eval` takes it: the pod by name, anything else by address.
    fn words(&self) -> Option<String> {
        match (&self.namespace, &self.pod, self.ip) {
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
        if let Some(ip) = self.ip {
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
    let (place, text) = find(&args.flow_id, &args.flow_log)?;
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

/// The line of the flow, and where it stands.
fn find(id: &str, files: &[PathBuf]) -> anyhow::Result<(String, String)> {
    let mut read = 0_usize;
    for path in files {
        let name = path.display();
        let found = if path == Path::new("-") {
            find_in(id, io::stdin().lock(), &mut read)
        } else {
            let file = File::open(path).with_context(|| format!("cannot open the flow log {name}"))?;
            find_in(id, BufReader::new(file), &mut read)
        };
        if let Some((number, line)) = found.with_context(|| format!("cannot read the flow log {name}"))? {
            return Ok((format!("{name}:{number}"), line));
        }
    }
    let files: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
    bail!("no flow {id} among the {read} lines of {}", files.join(", "))
}

/// Lines that hold the id anywhere are few, and only they are parsed. A line that is no JSON is somebody else's.
fn find_in(id: &str, lines: impl BufRead, read: &mut usize) -> io::Result<Option<(usize, String)>> {
    for (number, line) in (1..).zip(lines.split(b'\n')) {
        let line = line?;
        *read += 1;
        let line = String::from_utf8_lossy(&line);
        if line.contains(id)
            && let Ok(value) = serde_json::from_str::<Value>(&line)
            && value.get("flow_id").and_then(Value::as_str) == Some(id)
        {
            return Ok(Some((number, line.into_owned())));
        }
    }
    Ok(None)
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

/// The flow, judged by the objects of now from the subject's end.
fn judge(line: &Line, source: &Source) -> anyhow::Result<Now> {
    let (Some(subject), Some(peer)) = (line.subject.words(), line.peer.words()) else {
        bail!(
            "the record does not say who the {} is, so nothing can be asked of the policies",
            line.subject.kind
        );
    };
    let mut cluster = source.load()?;
    let question = Question { protocol: line.protocol, port: line.port };
    // An address may be another's by now, so a pod that is gone is an error and not somebody else's verdict.
    let subject =
        eval_flow::end(&cluster, &subject, question).context("the subject is not among the objects")?;
    let peer = match eval_flow::end(&cluster, &peer, question) {
        Ok(peer) => peer,
        Err(error) => return Err(error.context("the peer is not among the objects")),
    };
    let (from, to) = match line.direction {
        Direction::Egress => (subject, peer),
        Direction::Ingress => (peer, subject),
    };
    let pair = Pair::ask(&mut cluster, from, to, line.protocol, line.port);
    let side = pair.side(line.direction);
    let same = side.verdict.as_str() == line.verdict;
    let mut text = format!("{} at {}: {}", line.direction, line.subject, side.verdict.as_str());
    text.push_str(if same { ", as then\n" } else { ", which is not what it was then\n" });
    for reason in super::eval_explain::lines(line.direction, side) {
        let _ = writeln!(text, "  {reason}");
    }
    let mut json = super::eval_explain::json(side);
    json["same_as_then"] = json!(same);
    Ok(Now { text, json, same })
}
