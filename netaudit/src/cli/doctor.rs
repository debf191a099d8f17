//! `netaudit doctor`: what can be observed here, and whether it is.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use super::{Exit, eval::Output};
use crate::doctor::{self, Report, State, selftest::Result};

/// Load the programs as the agent does, make connections over loopback, and tell what of them was seen
///
/// It changes nothing, and may run beside an agent. Exit status: 0 everything works that this kernel has; 1 something does not
/// work or is not as it should be; 2 the programs cannot be loaded.
#[derive(clap::Args)]
pub(super) struct Args {
    /// cgroup v2 directory to attach to [default: the node's cgroup v2 mount, found by itself]
    #[arg(long, value_name = "DIR")]
    cgroup_root: Option<PathBuf>,
    /// How to print the answer
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

pub(super) fn run(args: Args) -> anyhow::Result<Exit> {
    let report = doctor::examine(args.cgroup_root.as_deref())?;
    let mut out = io::stdout().lock();
    match args.output {
        Output::Text => text(&report, &mut out)?,
        Output::Json => {
            serde_json::to_writer_pretty(&mut out, &report)?;
            writeln!(out)?;
        }
    }
    Ok(if report.has_findings() { Exit::Findings } else { Exit::Clean })
}

fn text(report: &Report, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "Node")?;
    for fact in &report.node {
        writeln!(out, "  {:<20} {}", fact.name, fact.value)?;
        if let Some(advice) = &fact.advice {
            writeln!(out, "  {:<20} ! {advice}", "")?;
        }
    }
    writeln!(out, "\nHooks")?;
    writeln!(out, "  {:<26} {:<18} {:<9} {:>8}", "hook", "program", "", "ns a run")?;
    for hook in &report.hooks {
        let attached = if hook.attached { "attached" } else { "absent" };
        let cost = hook.nanoseconds.map_or_else(|| "-".to_owned(), |it| format!("{it:.0}"));
        let why = hook.absent.as_deref().map(|it| format!("  {it}")).unwrap_or_default();
        writeln!(out, "  {:<26} {:<18} {attached:<9} {cost:>8}{why}", hook.hook, hook.program)?;
    }
    if let Some(why) = &report.no_costs {
        writeln!(out, "  costs cannot be counted: {why}")?;
    }
    writeln!(out, "\nSelf-test")?;
    for tried in &report.trials {
        let (word, why) = match &tried.result {
            Result::Works => ("seen", String::new()),
            Result::Unseen(what) => ("NOT SEEN", format!(": {what}")),
            Result::NotMade(why) => ("not tried", format!(": {why}")),
        };
        writeln!(out, "  {word:<10} {}{why}", tried.trial.what())?;
    }
    if report.lost > 0 {
        writeln!(out, "  {} records were lost meanwhile: the ring was full", report.lost)?;
    }
    writeln!(out, "\nWhat is seen here")?;
    for judged in &report.sensors {
        let sensor = &judged.sensor;
        let end = match (sensor.direction, sensor.protocol) {
            (Some(direction), Some(protocol)) => format!("{direction} {protocol}: "),
            _ => String::new(),
        };
        let (word, why) = match &judged.state {
            State::Works => ("works", None),
            State::WorksInPart(why) => ("works", Some(format!("not tried: {why}"))),
            State::Broken(why) => ("BROKEN", Some(why.clone())),
            State::Untried(why) => ("not tried", Some(why.clone())),
            State::Unobservable => ("not seen", None),
        };
        writeln!(out, "  {word:<10} {end}{}", sensor.what)?;
        for line in why.iter().map(|why| format!("! {why}")) {
            writeln!(out, "  {:<10}   {line}", "")?;
        }
        if !sensor.seen.is_empty() {
            writeln!(out, "  {:<10}   seen: {}", "", sensor.seen)?;
        }
        writeln!(out, "  {:<10}   unseen: {}", "", sensor.unseen)?;
    }
    Ok(())
}
