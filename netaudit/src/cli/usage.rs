//! `netaudit usage`: which declared allowances nobody uses, from the rows of any number of agents.

use std::{
    io::{self, Write as _},
    path::Path,
};

use anyhow::{Context as _, ensure};
use clap::ValueEnum;

use super::{
    Exit, agents,
    stores::{self, Reach},
    usage_text::{json, table},
};
use crate::{
    audit::usage::{Evidence, Rows, Severity, histories, judge},
    config,
    store::{self, bucket::SCHEME, document, usage_upload},
};

/// Which rules are used, and which could go: unused, redundant, broad, dead, or what is missing for saying so
///
/// Reads rows from agents and puts them together; the same rows given twice count once. Exit status: 0 no finding of the severity that
/// --fail-on names, 1 there are such, 2 failure.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Agents (http://ADDRESS:PORT), state directories, files of rows that an agent's /usage gave, and buckets of agents' --flow-bucket
    /// such as s3://bucket/prefix
    #[arg(value_name = "URL|FILE|DIR", default_value = "http://127.0.0.1:9464")]
    sources: Vec<String>,
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    evidence: EvidenceArgs,
    /// Only rules of policies in this namespace
    #[arg(long, short = 'n', value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// How to print the answer
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// The least severity that makes the exit status 1
    #[arg(long, value_enum, default_value_t = FailOn::Warning)]
    fail_on: FailOn,
}

/// What it takes to call something unused.
#[derive(clap::Args)]
pub(super) struct EvidenceArgs {
    /// How long a rule must have been watched, such as 7d or 36h; longer than the period of any job that it is for
    #[arg(long, value_name = "DURATION", default_value = "7d")]
    window: String,
    /// How much of what a rule selects must have been watched, from 0 to 1
    #[arg(long, value_name = "RATIO", default_value_t = 0.999)]
    coverage: f64,
}

impl EvidenceArgs {
    /// As numbers.
    ///
    /// # Errors
    ///
    /// One of them cannot be right.
    pub fn evidence(&self) -> anyhow::Result<Evidence> {
        let Self { window, coverage } = self;
        ensure!((0.0..=1.0).contains(coverage), "--coverage is {coverage}: it must be from 0 to 1");
        Ok(Evidence { window: config::duration("--window", window)?, coverage: *coverage })
    }
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
    /// The rows, put together: to be read again by this command.
    Rows,
}

/// What makes the exit status 1.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FailOn {
    /// Broad rules and missing evidence too.
    Info,
    /// Rules that are unused, redundant or dead.
    Warning,
    /// Nothing.
    Never,
}

/// Runs the command.
pub(super) fn run(args: Args) -> anyhow::Result<Exit> {
    let needs = args.evidence.evidence()?;
    let mut rows = Rows::default();
    for source in &args.sources {
        rows.merge(read(source, &args.reach)?);
    }
    if let Some(namespace) = &args.namespace {
        rows.rules.retain(|key, _| *key.rule.policy.namespace == **namespace);
        rows.together.retain(|key, _| key.rules.iter().any(|it| *it.policy.namespace == **namespace));
    }
    let mut out = io::stdout().lock();
    if args.output == Output::Rows {
        out.write_all(&document::write(&rows))?;
        return Ok(Exit::Clean);
    }
    let histories = histories(&rows);
    let judged = judge(&histories, &needs);
    match args.output {
        Output::Table => table(&mut out, &histories, &judged, &needs)?,
        Output::Json => writeln!(out, "{:#}", json(&histories, &judged, &needs))?,
        Output::Yaml => write!(out, "{}", serde_saphyr::to_string(&json(&histories, &judged, &needs))?)?,
        Output::Rows => {}
    }
    let least = match args.fail_on {
        FailOn::Info => Severity::Info,
        FailOn::Warning => Severity::Warning,
        FailOn::Never => return Ok(Exit::Clean),
    };
    let is_found = judged.iter().any(|it| it.finding.severity().is_some_and(|severity| severity >= least));
    Ok(if is_found { Exit::Findings } else { Exit::Clean })
}

/// The rows of a URL, a bucket, a file or a state directory.
///
/// # Errors
///
/// What cannot be read, and why.
pub(super) fn read(source: &str, reach: &Reach) -> anyhow::Result<Rows> {
    if source.starts_with(SCHEME) {
        return usage_upload::read(&stores::bucket(source, reach)?);
    }
    if source.contains("://") {
        let text = agents::ask(source, "/usage")?;
        return document::read(&text).with_context(|| format!("in the answer of {source}"));
    }
    store::read(Path::new(source))
}
