//! netaudit's own tasks: `cargo xtask help` lists them.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use clap::{Parser, Subcommand};

mod account;
mod bench;
mod build_ebpf;
mod certificate;
mod cluster;
mod dashboards;
mod demo;
mod dist;
mod e2e;
mod fuzz;
mod http;
mod image;
mod kernels;
#[path = "../../tests/lab/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the tests, and each side uses a part of it")]
mod lab;
mod lint;
mod mutate;
mod process;
mod programs;
mod remap;
mod setup;
mod test;
mod tools;

/// netaudit's own tasks
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building, testing and the demo need (needs root for Debian packages)
    Setup,
    /// Build the eBPF programs
    BuildEbpf,
    /// Build what is shipped: the static agent, and an image that holds it
    Dist(dist::Options),
    /// Run real software in pods, drive every row of Batchivo's policies, and compare what the agent saw (needs root)
    Demo(demo::Options),
    /// Draw the dashboards for the documentation, from some minutes of the demo's traffic (needs root)
    Dashboards,
    /// Run every test, on this kernel's real hooks and on other kernels, the demo and the scenario (needs root)
    Test(test::Options),
    /// Measure what the agent costs others, and how fast it and its evaluator of policies are (needs root)
    Bench(bench::Options),
    /// Run netaudit from its own image on a real cluster of two nodes, through one long scenario (needs root)
    E2e(e2e::Options),
    /// Run a real Kubernetes cluster on this machine (needs root)
    #[command(subcommand)]
    Cluster(cluster::Task),
    /// The first process of a machine of the cluster
    #[command(hide = true)]
    Machine {
        /// What to set up
        spec: PathBuf,
    },
    /// A load that `bench` measures, in a process of its own
    #[command(hide = true)]
    Load {
        /// Which
        load: bench::Load,
        /// How often
        count: u32,
        /// The round, which chooses an address
        round: u8,
        /// Where to, or where at
        to: Option<std::net::SocketAddr>,
    },
    /// Compare with second, plain implementations on random input
    #[command(subcommand)]
    Fuzz(fuzz::Task),
    /// Check format, clippy, documentation, licences and file lengths
    Lint,
}

fn main() -> ExitCode {
    match run(&Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &Task) -> Result<ExitCode> {
    let root = workspace_root();
    match task {
        Task::Setup => setup::setup(&root)?,
        Task::BuildEbpf => println!("{}", build_ebpf::build_ebpf(&root)?.display()),
        Task::Dist(options) => dist::dist(&root, options)?,
        Task::Demo(options) => {
            setup::setup(&root)?;
            let agent = match &options.agent {
                Some(agent) => agent.clone(),
                None => {
                    build_ebpf::build_ebpf(&root)?;
                    demo::build_agent(&root)?
                }
            };
            demo::run(&root, &agent, options)?;
        }
        Task::Dashboards => {
            setup::setup(&root)?;
            build_ebpf::build_ebpf(&root)?;
            dashboards::draw(&root, &demo::build_agent(&root)?)?;
        }
        Task::Test(options) => test::test(&root, options)?,
        Task::E2e(options) => {
            cluster::needs_root()?;
            setup::setup(&root)?;
            e2e::run(&root, &dist::for_this_machine(&root)?, options)?;
        }
        Task::Bench(options) => bench::bench(&root, options)?,
        Task::Load { load, count, round, to } => bench::load(*load, *count, *round, *to)?,
        Task::Cluster(task) => {
            if matches!(task, cluster::Task::Up(_)) {
                // Before anything is installed for it.
                cluster::needs_root()?;
                setup::setup(&root)?;
            }
            return cluster::run(task);
        }
        Task::Machine { spec } => return cluster::start_machine(spec),
        Task::Fuzz(task) => fuzz::fuzz(&root, task)?,
        Task::Lint => {
            setup::setup(&root)?;
            lint::lint(&root)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_owned()
}
