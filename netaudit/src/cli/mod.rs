//! The command line: a file a subcommand. Results go to stdout, logs and errors to stderr.

mod agent;
mod agents;
mod candidate;
mod columns;
mod diff;
mod doctor;
mod ends;
mod eval;
mod eval_cases;
mod eval_explain;
mod eval_flow;
mod eval_service;
mod export;
mod findings;
mod flow_filter;
mod flows;
mod flows_text;
mod flows_top;
mod history;
mod lint;
mod lint_fix;
mod lint_output;
mod lint_sarif;
mod manifest_files;
mod matrix;
mod shell;
mod source;
mod stores;
mod suggest;
mod suggest_report;
mod test;
mod test_report;
mod tighten;
mod tighten_evidence;
mod tighten_files;
mod tighten_replay;
mod tighten_text;
mod timeline;
mod timeline_pod;
mod uninstall;
mod usage;
mod usage_text;
mod verify;
mod verify_tighten;
mod what_if;
mod what_if_text;
mod who;
mod why;
mod why_find;
mod why_then;

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

/// eBPF-assisted flow auditor for Kubernetes network policies.
#[derive(Parser)]
#[command(version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Write logs as JSON
    #[arg(long, global = true)]
    log_json: bool,
}

#[derive(Subcommand)]
enum Command {
    Agent(agent::Args),
    Completions(shell::Completions),
    Diff(diff::Args),
    Doctor(doctor::Args),
    Eval(eval::Args),
    Export(export::Args),
    Findings(findings::Args),
    Flows(flows::Args),
    Lint(lint::Args),
    Man(shell::Man),
    Suggest(suggest::Args),
    Test(test::Args),
    Tighten(tighten::Args),
    Timeline(timeline::Args),
    Uninstall(uninstall::Args),
    Usage(usage::Args),
    Verify(verify::Args),
    VerifyTighten(verify_tighten::Args),
    WhatIf(what_if::Args),
    Who(who::Args),
    Why(why::Args),
}

/// How a command ended, as the exit status tells it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Exit {
    /// 0: it ran, and there is nothing to report.
    Clean,
    /// 1: it ran, and there are findings (a denied flow, a failed case).
    Findings,
    /// 2: it could not do what it was asked.
    Failure,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Clean => 0,
            Exit::Findings => 1,
            Exit::Failure => 2,
        })
    }
}

/// The description of the command line.
fn command() -> clap::Command {
    Cli::command().name("netaudit")
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let name = shell::Name::of(std::env::args_os().next().as_deref());
    if name == shell::Name::Completer {
        let words: Vec<_> = std::env::args_os().skip(1).collect();
        // Whoever asked is a shell: it has nowhere to put an error.
        let _ = shell::complete(&words, command());
        return Exit::Clean.into();
    }
    let parsed = match name {
        shell::Name::Plugin => command().bin_name("kubectl netaudit").get_matches(),
        _ => command().get_matches(),
    };
    let cli = Cli::from_arg_matches(&parsed).unwrap_or_else(|error| error.exit());
    log_to_stderr(cli.log_json);
    let result = match cli.command {
        Command::Agent(args) => agent::run(args),
        Command::Completions(args) => shell::completions(&args, command()),
        Command::Diff(args) => diff::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Export(args) => export::run(args),
        Command::Findings(args) => findings::run(args),
        Command::Flows(args) => flows::run(args),
        Command::Lint(args) => lint::run(args),
        Command::Man(args) => shell::man(&args, command()),
        Command::Suggest(args) => suggest::run(args),
        Command::Test(args) => test::run(args),
        Command::Tighten(args) => tighten::run(args),
        Command::Timeline(args) => timeline::run(args),
        Command::Uninstall(args) => uninstall::run(args),
        Command::Usage(args) => usage::run(args),
        Command::Verify(args) => verify::run(args),
        Command::VerifyTighten(args) => verify_tighten::run(args),
        Command::WhatIf(args) => what_if::run(args),
        Command::Who(args) => who::run(args),
        Command::Why(args) => why::run(args),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(error) if is_broken_pipe(&error) => Exit::Clean.into(),
        Err(error) => {
            eprintln!("netaudit: {error:#}");
            Exit::Failure.into()
        }
    }
}

/// `$RUST_LOG` chooses what is logged; `info` without it.
fn log_to_stderr(json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if json { logs.json().init() } else { logs.init() }
}

/// A text that stays on its line and leaves the terminal alone, whatever a manifest calls its objects.
fn one_line(text: &str) -> String {
    let escape = |letter: char| match letter.is_control() {
        true => letter.escape_default().to_string(),
        false => letter.to_string(),
    };
    text.chars().map(escape).collect()
}

/// What of a store is missing, and why.
fn cannot_be_read((path, reason): &(PathBuf, String)) -> String {
    format!("{} cannot be read: {reason}", path.display())
}

/// Whether the reader of our output went away (`netaudit … | head`), which is no failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
