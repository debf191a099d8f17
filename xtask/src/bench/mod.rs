//! `cargo xtask bench`: what the agent costs the programs that it watches, and how fast it is itself.
//!
//! Overhead: the same load watched by nobody, by the agent, and by other tools that watch connections, interleaved round by round
//! in one run, as ratios of the medians with the quartiles of the rounds' own ratios, since a machine that others use too is noisy. Speed: the pipeline benchmark of the netaudit
//! crate. Both as a table, and as JSON in `target/bench.json`. `cargo xtask bench overhead` is the first of the two, `pipeline` the second, `policy` is about
//! the evaluator alone, `overload` about bursts, `ring` about the way out of the kernel, `dns` about names, `idle` about a node where nothing happens, `accounts` about memory, `store` about the flow store, `what-if` about flows that are judged again.

mod idle;
mod load;
mod overhead;
mod overload;
mod peers;
mod plot;
pub mod policy;
mod programs;
mod store;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

pub use self::load::{Load, load};
use self::overhead::start_agent;
use crate::{
    dist::{bench_as_shipped, for_this_machine},
    setup::setup,
    tools::target,
};

/// Options of the benchmark.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    part: Option<Part>,
    /// Interleaved rounds of the overhead measurement
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u8).range(1..))]
    rounds: u8,
}

#[derive(clap::Subcommand)]
enum Part {
    /// What the agent costs the programs that it watches, beside other tools that watch, and which of its programs costs what
    /// (needs root)
    Overhead {
        /// Interleaved rounds
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u8).range(1..))]
        rounds: u8,
        /// An agent that is built already
        #[arg(long, value_name = "FILE")]
        agent: Option<PathBuf>,
    },
    /// Policies alone: how fast they are compiled and asked, beside another engine (needs no root)
    Policy,
    /// A burst and a scan: what the agent knows of them, with processor time and without (needs root)
    Overload {
        /// Connections of the burst
        #[arg(long, default_value_t = 1_000_000)]
        connections: u32,
        /// An agent that is built already
        #[arg(long, value_name = "FILE")]
        agent: Option<PathBuf>,
    },
    /// What it costs to see DNS answers: a DNS server at full load, and other packets, without the agent, with it, and with names
    /// (needs root)
    Dns {
        /// Interleaved rounds
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u8).range(1..))]
        rounds: u8,
        /// An agent that is built already
        #[arg(long, value_name = "FILE")]
        agent: Option<PathBuf>,
    },
    /// The agent's own speed on one core, from the kernel's records to judged flows, and what it costs to tell them
    Pipeline,
    /// What the agent remembers at its bounds: 100,000 rules, 10,000 workloads that are soon gone, a scan of all ports
    Accounts,
    /// The flow store: how fast flows go in, how much room they take, and answers, beside DuckDB's
    Store {
        /// Flows
        #[arg(long, default_value_t = 100_000_000)]
        flows: u64,
    },
    /// Flows of a store judged again by other policies, by classes and one by one
    WhatIf {
        /// Flows
        #[arg(long, default_value_t = 100_000_000)]
        flows: u64,
    },
    /// How fast records are taken out of the kernel's ring (needs root)
    Ring,
    /// What the agent takes on a node full of pods that do nothing (needs root)
    Idle {
        /// Pods of the node
        #[arg(long, default_value_t = 250, value_parser = clap::value_parser!(u8).range(1..=250))]
        pods: u8,
        /// How long to look
        #[arg(long, default_value_t = 60)]
        seconds: u16,
    },
}

/// Runs overhead and speed, or the part that was asked for.
pub fn bench(root: &Path, options: &Options) -> Result<()> {
    if let Some(Part::Policy) = options.part {
        return policy::bench(root);
    }
    setup(root)?;
    let results = match &options.part {
        Some(Part::Overload { connections, agent }) => {
            let agent = agent.clone().map_or_else(|| shipped(root), Ok)?;
            json!({"overload": overload::overload(&agent, *connections)?})
        }
        Some(Part::Overhead { rounds, agent }) => {
            let agent = agent.clone().map_or_else(|| shipped(root), Ok)?;
            json!({"overhead": overhead::overhead(&agent, *rounds)?})
        }
        Some(Part::Dns { rounds, agent }) => {
            let agent = agent.clone().map_or_else(|| shipped(root), Ok)?;
            json!({"dns": overhead::names(&agent, *rounds)?})
        }
        Some(Part::Idle { pods, seconds }) => json!({"idle": idle::idle(&shipped(root)?, *pods, *seconds)?}),
        Some(Part::Store { flows }) => json!({"store": store::store(root, *flows)?}),
        Some(Part::WhatIf { flows }) => json!({"what_if": what_if(root, *flows)?}),
        Some(Part::Pipeline) => json!({"speed": bench_of(root, "pipeline", &[])?}),
        Some(Part::Accounts) => json!({"accounts": bench_of(root, "accounts", &[])?}),
        Some(Part::Ring) => json!({"ring": bench_of(root, "ring", &[])?}),
        _ => {
            let overhead = overhead::overhead(&shipped(root)?, options.rounds)?;
            println!("bench: the agent's own speed");
            json!({"overhead": overhead, "speed": bench_of(root, "pipeline", &[])?})
        }
    };
    let path = target(root).join("bench.json");
    std::fs::write(&path, format!("{results:#}\n"))?;
    println!("bench: also in {}", path.display());
    Ok(())
}

/// The agent as it is shipped.
fn shipped(root: &Path) -> Result<PathBuf> {
    Ok(for_this_machine(root)?.program)
}

/// So many flows, in a store that is removed afterwards.
fn what_if(root: &Path, flows: u64) -> Result<Value> {
    let (flows, store) = (flows.to_string(), target(root).join("bench/what-if"));
    let store = store.to_str().context("the target directory's name is no UTF-8")?;
    bench_of(root, "what_if", &[("NETAUDIT_BENCH_FLOWS", &flows), ("NETAUDIT_BENCH_STORE", store)])
}

/// Runs a benchmark of the netaudit crate, which prints a table and JSON.
fn bench_of(root: &Path, bench: &str, settings: &[(&str, &str)]) -> Result<Value> {
    let output =
        bench_as_shipped(root, bench)?.envs(settings.iter().copied()).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the benchmark {bench} failed");
    serde_json::from_slice(&output.stdout).with_context(|| format!("the JSON of the benchmark {bench}"))
}
