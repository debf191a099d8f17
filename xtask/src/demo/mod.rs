//! `cargo xtask demo`: real software in pods, every row of Batchivo's tables driven, and netaudit's account compared
//! with the driver's own.

mod agent;
mod drive;
pub mod history;
mod report;
mod scenario;
mod servers;
mod tighten;
mod world;

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

use self::{agent::Agent, drive::Driver, world::World};
use crate::{
    account::{
        compare,
        record::{self, Metrics},
    },
    lab,
    process::{cargo, run as run_command},
    tools::{Tools, target},
};

/// The rule that the driver leaves alone.
const UNUSED: &str = "batchivo/postgres-policy ingress[1]";
/// The optional policy, which comes while the agent runs.
const EIGHTH: &str = "60-admin-jobs-policy.yaml";

/// How to run the demo.
#[derive(clap::Args, Debug, Default)]
pub struct Options {
    /// Leave everything running at the end, with the metrics' address printed, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Run this agent instead of building one
    #[arg(long, value_name = "FILE")]
    pub agent: Option<PathBuf>,
    /// Also write the driver's ledger, one JSON object an expected flow, to this file
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Also write the agent's flow log to this file
    #[arg(long, value_name = "FILE")]
    flow_log: Option<PathBuf>,
}

/// Builds the agent as it is shipped, and returns its path.
pub fn build_agent(root: &Path) -> Result<PathBuf> {
    run_command(&mut cargo(root, ["build", "--locked", "-p", "netaudit"]))?;
    Ok(target(root).join("debug/netaudit"))
}

fn needs_root() -> Result<()> {
    // SAFETY: reads this process's user id.
    let user = unsafe { libc::geteuid() };
    ensure!(
        user == 0,
        "the demo needs root: it makes network namespaces and cgroups, and loads eBPF programs"
    );
    Ok(())
}

/// Runs the demo with the agent `program`. An error if netaudit's account differs from the driver's in anything.
pub fn run(root: &Path, program: &Path, options: &Options) -> Result<()> {
    needs_root()?;
    let start = Instant::now();
    let say = |what: &str| println!("[{:6.2} s] {what}", start.elapsed().as_secs_f64());
    let tools = Tools::find(root)?;
    say("laying out the node, its pods and the internet");
    let world = World::new()?;
    let policies = root.join("deploy/examples/batchivo");
    let declared = copy_policies(&world, &policies)?;
    tighten::plant(&world, &policies)?;
    say("starting Traefik, nginx, the backend, PostgreSQL, Redis, the S3 server, DNS and external services");
    let servers = servers::start(&world, &tools)?;
    say(&format!("starting the agent against {declared} policies"));
    let kept = tighten::Kept::in_world(&world);
    let mut agent = Agent::start(&world, program, &kept.arguments())?;

    let mut driver = Driver { world: &world, tools: &tools, ledger: Vec::new() };
    say("driving what the seven policies allow");
    scenario::allowed(&mut driver)?;
    scenario::company(&mut driver)?;
    say("driving what they forbid; nobody enforces here, so it passes");
    scenario::forbidden(&mut driver)?;
    say("admin jobs under the seven: denied");
    scenario::admin_jobs(&mut driver, false)?;
    let eighth = fs::read_to_string(policies.join(EIGHTH)).with_context(|| format!("reading {EIGHTH}"))?;
    world.lab.write_manifest(EIGHTH, &eighth)?;
    agent.wait_for_policy("admin-jobs-policy")?;
    say("admin jobs with the optional eighth: allowed");
    scenario::admin_jobs(&mut driver, true)?;
    let mut ledger = driver.ledger;
    agent.drain(&ledger)?;
    let metrics = agent.scrape()?;
    say("driven; reading what the agent saw");

    if options.keep {
        lab::exit_status_on_interrupt(0);
        let records = record::read_flow_log(agent.flow_log())?;
        print_account(&records, &metrics);
        println!("\nmetrics:  http://{}/metrics\nflow log: {}", agent.forward()?, agent.flow_log().display());
        println!("Everything is left running; Ctrl-C ends and removes it.");
        loop {
            thread::park();
        }
    }

    let (flow_log, own) = agent.stop()?;
    say("the agent has ended");
    ledger.extend(own);
    if let Some(path) = &options.ledger {
        let lines: Vec<String> = ledger.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
        fs::write(path, lines.join("\n") + "\n").with_context(|| format!("writing {path:?}"))?;
    }
    if let Some(path) = &options.flow_log {
        fs::copy(&flow_log, path).with_context(|| format!("writing {path:?}"))?;
    }
    let records = record::read_flow_log(&flow_log)?;
    let unused = print_account(&records, &metrics);
    let mut differences = compare::flows(&ledger, &records);
    differences.extend(compare::counters(&ledger, &records, &metrics));
    if unused != [UNUSED] {
        differences.push(format!("rules without a match: expected [{UNUSED:?}], got {unused:?}"));
    }
    say("taking out of the policies what nobody used");
    differences.extend(tighten::compare(&world, program, &kept, &policies)?);
    drop(servers);
    drop(world);
    say("everything is removed");
    println!("\nComparison with the driver's ledger: {} entries, {} records", ledger.len(), records.len());
    for difference in &differences {
        println!("- {difference}");
    }
    ensure!(
        differences.is_empty(),
        "{} differences between netaudit's account and the driver's",
        differences.len()
    );
    println!("no difference: netaudit saw what was driven, and nothing else");
    Ok(())
}

/// Prints what the agent saw; returns the rules without a match.
fn print_account(records: &[record::Record], metrics: &Metrics) -> Vec<String> {
    report::flows(records);
    report::violations(metrics);
    let unused = report::rules(metrics);
    report::losses(metrics);
    unused
}

/// Copies the seven policies into the manifests; returns how many they are.
fn copy_policies(world: &World, directory: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(directory).with_context(|| format!("reading {directory:?}"))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.ends_with("-policy.yaml") || name.starts_with('0') {
            if name == EIGHTH {
                continue;
            }
            world.lab.write_manifest(name, &fs::read_to_string(&path)?)?;
            count += 1;
        }
    }
    Ok(count)
}
