//! `netaudit findings`: what agents have found on flows, and why.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
};

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use serde_json::json;

use super::{Exit, agents, columns::Widths, one_line};
use crate::{
    audit::FlowSeverity,
    report::{FINDINGS_FORM, FindingLine, Findings},
};

/// Denied flows and suspected blocks: who, to whom, why, how often and since when, with what is known of enforcement
///
/// Reads any number of agents and puts them together; of two documents of one agent's run the later one holds. Exit status: 0 no finding of
/// the severity that --fail-on names, 1 there are such, 2 failure.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Agents (http://ADDRESS:PORT), and files that an agent's /findings gave
    #[arg(value_name = "URL|FILE", default_value = "http://127.0.0.1:9464")]
    sources: Vec<String>,
    /// Only flows from or to this namespace
    #[arg(long, short = 'n', value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// How to print the answer
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// The least severity that makes the exit status 1
    #[arg(long, value_enum, default_value_t = FailOn::Warning)]
    fail_on: FailOn,
}

/// How to print the answer.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// One JSON object.
    Json,
    /// The same as YAML.
    Yaml,
}

/// What makes the exit status 1.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FailOn {
    /// What was blocked or is accepted too, and what passed while a pod or a policy was new.
    Info,
    /// Suspected blocks, what found a closed port, and connections that are older than what denies them.
    Warning,
    /// Only what passed without an excuse.
    Critical,
    /// Nothing.
    Never,
}

/// Runs the command.
pub(super) fn run(args: Args) -> anyhow::Result<Exit> {
    let mut agents: BTreeMap<(String, String), Findings> = BTreeMap::new();
    for source in &args.sources {
        let mut told = read(source)?;
        if let Some(namespace) = &args.namespace {
            told.findings.retain(|it| [&it.from, &it.to].iter().any(|end| end.namespace == *namespace));
        }
        let key = (told.node.clone(), told.run.clone());
        if agents.get(&key).is_none_or(|known| known.told <= told.told) {
            agents.insert(key, told);
        }
    }
    let mut agents: Vec<Findings> = agents.into_values().collect();
    for agent in &mut agents {
        // What weighs most first, and of those the latest.
        agent.findings.sort_by(|a, b| (b.severity, &b.last).cmp(&(a.severity, &a.last)));
    }
    let mut out = io::stdout().lock();
    match args.output {
        Output::Table => table(&mut out, &agents)?,
        Output::Json => writeln!(out, "{:#}", json!({"agents": agents}))?,
        Output::Yaml => write!(out, "{}", serde_saphyr::to_string(&json!({"agents": agents}))?)?,
    }
    let least = match args.fail_on {
        FailOn::Info => FlowSeverity::Info,
        FailOn::Warning => FlowSeverity::Warning,
        FailOn::Critical => FlowSeverity::Critical,
        FailOn::Never => return Ok(Exit::Clean),
    };
    let is_found = agents.iter().flat_map(|agent| &agent.findings).any(|it| it.severity >= least);
    Ok(if is_found { Exit::Findings } else { Exit::Clean })
}

fn read(source: &str) -> anyhow::Result<Findings> {
    let text = if source.contains("://") {
        agents::ask(source, "/findings")?
    } else {
        fs::read(source).with_context(|| format!("cannot read {source}"))?
    };
    let told: Findings =
        serde_json::from_slice(&text).with_context(|| format!("{source} is no answer of /findings"))?;
    ensure!(
        told.form == FINDINGS_FORM,
        "{source} is in form {}, and this netaudit reads form {FINDINGS_FORM}: use the one of the agent's version",
        told.form
    );
    Ok(told)
}

fn table(out: &mut impl Write, agents: &[Findings]) -> io::Result<()> {
    for agent in agents {
        writeln!(out, "node {}, as of {}", one_line(&agent.node), second(&agent.told))?;
        for side in &agent.enforcement {
            let since =
                side.since.as_deref().map_or_else(String::new, |since| format!(" since {}", second(since)));
            writeln!(
                out,
                "  {}: {}{since} ({} denied flows stopped, {} passed, {} passed while the pod or policy was new)",
                side.direction, side.state, side.stopped, side.passed, side.excused
            )?;
        }
        for it in agent.accepted.iter().filter(|it| it.expired) {
            let (name, owner) = (one_line(&it.name), one_line(&it.owner));
            writeln!(
                out,
                "  the exception {name} of {owner} is over since {}: renew or remove it",
                second(&it.until)
            )?;
        }
        if agent.folded > 0 {
            writeln!(
                out,
                "  {} flows are in lines that say \"other\": the budget of series is spent",
                agent.folded
            )?;
        }
    }
    let head =
        ["SEVERITY", "FINDING", "DIRECTION", "FROM", "TO", "PORT", "COUNT", "LAST", "WHY"].map(str::to_owned);
    let lines: Vec<[String; 9]> = agents.iter().flat_map(|agent| &agent.findings).map(cells).collect();
    if lines.is_empty() {
        return writeln!(out, "no findings");
    }
    let widths = Widths::of(lines.iter().chain([&head]));
    for line in [&head].into_iter().chain(&lines) {
        writeln!(out, "{}", widths.line(line))?;
    }
    Ok(())
}

fn cells(line: &FindingLine) -> [String; 9] {
    let end = |namespace: &str, workload: &str| match namespace {
        "" => one_line(workload),
        namespace => one_line(&format!("{namespace}/{workload}")),
    };
    let why = [
        line.policy.as_ref().map(|policy| format!("denied by {policy}")),
        line.cause.clone(),
        line.accepted.as_ref().map(|name| format!("accepted as {name}")),
    ];
    let port = line.port.map_or_else(|| "other".to_owned(), |port| port.to_string());
    [
        line.severity.as_str().to_owned(),
        line.finding.clone(),
        line.direction.clone(),
        end(&line.from.namespace, &line.from.workload),
        end(&line.to.namespace, &line.to.workload),
        format!("{}/{port}", line.protocol),
        line.count.to_string(),
        second(&line.last),
        one_line(&why.into_iter().flatten().collect::<Vec<_>>().join(", ")),
    ]
}

/// A time without the fraction of its second.
fn second(time: &str) -> String {
    match time.split_once('.') {
        Some((second, _)) => one_line(&format!("{second}Z")),
        None => one_line(time),
    }
}
