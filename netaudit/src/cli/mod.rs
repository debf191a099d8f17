//! The command line: a file a subcommand. Results go to stdout, logs and errors to stderr.

mod eval;
mod eval_cases;
mod eval_flow;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// eBPF-assisted flow auditor for Kubernetes network policies.
#[derive(Parser)]
#[command(version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Eval(eval::Args),
}

/// How a command ended, as the exit status tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result: anyhow::Result<Exit> = match cli.command {
        Command::Eval(args) => eval::run(args),
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

/// Whether the reader of our output went away (`netaudit … | head`), which is no failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
