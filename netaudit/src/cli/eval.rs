//! `netaudit eval`: whether the declared policies allow a flow, and why.

use std::{
    io::{self, Write as _},
    net::IpAddr,
    path::PathBuf,
};

use anyhow::{Context as _, bail};
use clap::ValueEnum;

use super::{
    Exit, eval_cases,
    eval_flow::{self, Answer, Question},
    matrix,
    source::{Input, Source},
};
use crate::model::Protocol;

/// Whether the declared policies allow a flow, and why, for both ends
///
/// Reads Namespaces, Pods, Nodes, Services, EndpointSlices and policies from manifests or a cluster and answers for one
/// flow, or checks files of cases. Exit status: 0 allowed (or every case passed), 1 denied or unknown (or a case failed),
/// 2 failure.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    source: Source,
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
    /// An address that DNS gave for a name, for policies that name domains: NAME=ADDRESS
    #[arg(long = "dns", value_name = "NAME=ADDRESS", value_parser = dns_answer)]
    names: Vec<(String, IpAddr)>,
    /// How to print the answer
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Case files (one JSON object a line) to check instead of asking for one flow
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["manifests", "cluster", "from", "to", "port"])]
    cases: Vec<PathBuf>,
    /// Who may talk to whom on what, instead of one flow; --from and --to choose by namespace, NAMESPACE/WORKLOAD,
    /// NAMESPACE/POD or address
    #[arg(long, conflicts_with_all = ["cases", "port"])]
    matrix: bool,
}

/// How to print an answer.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
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
    let Input { mut cluster, passed_over } = args.source.load()?;
    if !args.names.is_empty() {
        cluster.set_names(args.names);
    }
    if args.matrix {
        let (from, to) = (args.from.as_deref(), args.to.as_deref());
        return matrix::run(&mut cluster, &passed_over, from, to, args.output == Output::Json, &mut out);
    }
    let (Some(from), Some(to), Some(port)) = (args.from, args.to, args.port) else {
        bail!("--from, --to and --port are needed");
    };
    let question = Question { protocol: args.protocol, port };
    let answer = eval_flow::ask(&mut cluster, &from, &to, question)
        .with_context(|| format!("cannot evaluate {from} → {to}"))?;
    match args.output {
        Output::Text => write!(out, "{}", answer.text(&cluster))?,
        Output::Json => writeln!(out, "{:#}", answer.json(&cluster, &passed_over))?,
    }
    Ok(exit(&answer))
}

fn dns_answer(text: &str) -> Result<(String, IpAddr), String> {
    let (name, ip) = text.split_once('=').ok_or("NAME=ADDRESS is wanted")?;
    let ip = ip.parse().map_err(|_| format!("{ip:?} is not an address"))?;
    Ok((name.to_owned(), ip))
}

fn exit(answer: &Answer) -> Exit {
    if answer.is_allowed() { Exit::Clean } else { Exit::Findings }
}
