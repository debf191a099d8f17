//! `cargo xtask bench policy`: the evaluator's goals, and how it scales beside the engine of kube-network-policies.
//!
//! The measuring is done by the benchmark `policy` of the netaudit crate, in one process and in interleaved rounds; the other
//! engine runs beside it, in a Go program that is built here. The figures come as a table, as JSON and as a plot in
//! `target/bench/`.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::plot;
use crate::{dist::bench_as_shipped, programs, tools::target};

/// Measures everything.
pub fn bench(root: &Path) -> Result<()> {
    let directory = target(root).join("bench");
    std::fs::create_dir_all(&directory)?;
    let mut bench = bench_as_shipped(root, "policy")?;
    match programs::own("policy-peer", &root.join("xtask/src/bench/peer"))? {
        Some(peer) => {
            bench.env("NETAUDIT_BENCH_PEER", peer).env("NETAUDIT_BENCH_DIRECTORY", &directory);
        }
        None => println!("bench: no Go, so there is no other engine to compare with"),
    }
    let output = bench.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "the benchmark failed");
    let figures: Value = serde_json::from_slice(&output.stdout).context("the benchmark's JSON")?;
    let (json, svg) = (directory.join("policy.json"), directory.join("policy.svg"));
    std::fs::write(&json, format!("{figures:#}\n"))?;
    std::fs::write(&svg, plot::scaling(&figures["scale"]))?;
    println!("bench: also in {} and {}", json.display(), svg.display());
    Ok(())
}

/// How much more a verdict may cost with 10,000 policies than with 10, in instructions.
const MOST: f64 = 1.2;

/// Checks that a verdict's instructions do not grow with the number of policies. Instructions are the same on every machine
/// and at every load, so this can be required where times cannot. Needs valgrind.
pub fn check_instructions(root: &Path) -> Result<()> {
    let program = build(root)?;
    let [few, many] = [10, 10_000].map(|policies| instructions(&program, policies));
    let (few, many) = (few?, many?);
    let ratio = many / few;
    println!("instructions of all verdicts: {few} with 10 policies, {many} with 10,000: {ratio:.3}");
    ensure!(ratio <= MOST, "a verdict's instructions grow with the number of policies: {ratio:.3} > {MOST}");
    Ok(())
}

/// Builds the benchmark, and says where it is.
fn build(root: &Path) -> Result<PathBuf> {
    let mut bench = bench_as_shipped(root, "policy")?;
    let output = bench.args(["--no-run", "--message-format", "json"]).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "building the benchmark failed");
    let messages = String::from_utf8_lossy(&output.stdout);
    let built = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let program = built
        .filter(|it| it["target"]["name"] == "policy")
        .find_map(|it| it["executable"].as_str().map(PathBuf::from));
    program.context("cargo names no benchmark")
}

fn instructions(program: &Path, policies: u32) -> Result<f64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .arg("--toggle-collect=netaudit_counted")
        .arg(program)
        .args(["instructions", &policies.to_string()])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind failed: {said}");
    let collected = said.lines().find_map(|line| line.split_once("Collected :"));
    let (_, count) = collected.with_context(|| format!("valgrind counted nothing: {said}"))?;
    let count: f64 = count.trim().parse().with_context(|| format!("not a number: {count}"))?;
    ensure!(count > 0.0, "valgrind did not see the function that is to be counted");
    Ok(count)
}
