//! `netaudit eval`: whether the declared policies allow a flow, and why.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::{Context as _, bail};
use clap::ValueEnum;

use super::{
    Exit, eval_cases,
    eval_flow::{self, Answer, NOW, Question},
    matrix,
};
use crate::{cluster::Cluster, model::Protocol, watch::manifests};

/// Whether the declared policies allow a flow, and why, for both ends
///
/// Reads Namespaces, Pods, Nodes, Services, EndpointSlices and NetworkPolicies from manifests and answers for one flow,
/// or checks files of cases. Exit status: 0 allowed (or every case passed), 1 denied or unknown (or a case failed),
/// 2 failure.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Manifests: YAML or JSON files, or directories of them
    #[arg(short = 'f', long = "filename", value_name = "DIR|FILE", num_args = 1.., required_unless_present = "cases")]
    manifests: Vec<PathBuf>,
    /// The source: NAMESPACE/POD or an address
    #[arg(long, value_name = "END", required_unless_present_any = ["cases", "matrix"])]
    from: Option<String>,
    /// The destination: NAMESPACE/POD, an address, or svc/NAMESPACE/NAME
    #[arg(long, value_name = "END", required_unless_present_any = ["cases", "matrix"])]
    to: Option<String>,
    /// The destination port; for a service the service's port
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), required_unless_present_any = ["cases", "matrix"])]
    port: Option<u16>,
    /// TCP, UDP or SCTP
    #[arg(long, default_value = "TCP")]
    protocol: Protocol,
    /// How to print the answer
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Case files (one JSON object a line) to check instead of asking for one flow
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["manifests", "from", "to", "port"])]
    cases: Vec<PathBuf>,
    /// Who may talk to whom on what, instead of one flow; --from and --to choose by namespace, NAMESPACE/WORKLOAD,
    /// NAMESPACE/POD or address
    #[arg(long, conflicts_with_all = ["cases", "port"])]
    matrix: bool,
}

/// How to print an answer.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// Runs the command.
pub(super) fn run(args: Args) -> anyhow::Result<Exit> {
    let mut out = io::stdout().lock();
    if !args.cases.is_empty() {
        return eval_cases::run(&args.cases, &mut out);
    }
    let loaded = manifests::load(&args.manifests)?;
    for error in &loaded.errors {
        eprintln!("netaudit: {error}");
    }
    if loaded.documents.is_empty() {
        bail!("no object of a kind that matters in {} files", loaded.files);
    }
    let mut cluster = Cluster::new();
    cluster.reset_all(loaded.into_objects(), NOW);
    for warning in cluster.warnings() {
        eprintln!("netaudit: {warning}");
    }
    let implied = cluster.implied_namespaces();
    if !implied.is_empty() {
        eprintln!("netaudit: no Namespace object, so no labels but the name, for: {}", implied.join(", "));
    }
    if args.matrix {
        let (from, to) = (args.from.as_deref(), args.to.as_deref());
        return matrix::run(&mut cluster, from, to, args.output == Output::Json, &mut out);
    }
    let (Some(from), Some(to), Some(port)) = (args.from, args.to, args.port) else {
        bail!("--from, --to and --port are needed");
    };
    let question = Question { protocol: args.protocol, port };
    let answer = eval_flow::ask(&mut cluster, &from, &to, question)
        .with_context(|| format!("cannot evaluate {from} → {to}"))?;
    match args.output {
        Output::Text => write!(out, "{}", answer.text(&cluster))?,
        Output::Json => writeln!(out, "{:#}", answer.json(&cluster))?,
    }
    Ok(exit(&answer))
}

fn exit(answer: &Answer) -> Exit {
    if answer.is_allowed() { Exit::Clean } else { Exit::Findings }
}
