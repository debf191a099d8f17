//! `cargo xtask bench`: what the agent costs the programs that it watches, and how fast it is itself.
//!
//! Overhead: the same load watched by nobody, by the agent, and by other tools that watch connections, interleaved round by round
//! in one run, as ratios of the medians with the quartiles of the rounds' own ratios, since a machine that others use too is noisy. Speed: the pipeline benchmark of the netaudit
//! crate. Both as a table, and as JSON in `target/bench.json`. `cargo xtask bench policy` is about the evaluator alone.

mod load;
mod overhead;
mod peers;
mod plot;
pub mod policy;

use std::{path::Path, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

pub use self::load::{Load, load};
use crate::{
    build_ebpf::build_ebpf,
    process::{cargo, run},
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

#[derive(Clone, Copy, clap::Subcommand)]
enum Part {
    /// Policies alone: how fast they are compiled and asked, beside another engine (needs no root)
    Policy,
}

/// Runs both parts, or the one that was asked for.
pub fn bench(root: &Path, options: &Options) -> Result<()> {
    if let Some(Part::Policy) = options.part {
        return policy::bench(root);
    }
    setup(root)?;
    build_ebpf(root)?;
    run(&mut cargo(root, ["build", "--release", "--locked", "-p", "netaudit"]))?;
    let overhead = overhead::overhead(&target(root).join("release/netaudit"), options.rounds)?;
    println!("bench: the agent's own speed");
    let output = cargo(root, ["bench", "--locked", "-p", "netaudit", "--bench", "pipeline"])
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "the pipeline benchmark failed");
    let speed: Value = serde_json::from_slice(&output.stdout).context("the pipeline benchmark's JSON")?;
    let path = target(root).join("bench.json");
    std::fs::write(&path, format!("{:#}\n", json!({"overhead": overhead, "speed": speed})))?;
    println!("bench: also in {}", path.display());
    Ok(())
}
