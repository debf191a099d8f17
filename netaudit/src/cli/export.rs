//! `netaudit export`: the evidence of an incident, as one sealed file.

use std::{
    io::{self, Write as _},
    ops::ControlFlow,
    path::PathBuf,
    sync::atomic::Ordering,
};

use anyhow::{bail, ensure};
use clap::ValueEnum;
use serde_json::json;

use super::{
    Exit, cannot_be_read,
    flow_filter::Filters,
    flows::{STOPPED, now, on_interrupt, scan_stores_in_order, time},
    one_line,
    stores::{self, Reach},
};
use crate::{
    audit::usage::Rows,
    model::Timestamp,
    store::{
        self,
        bundle::{Asked, Bundle, Flows, Manifest, add_history, partly},
        flows::ask::Columns,
    },
};

/// Pack the evidence of an incident into one sealed file: flows, what policies and addresses were then, and what is missing
///
/// Prints the digest that seals it: write it down elsewhere, or sign it. Unpacked, the file is a flow store. Exit status: 0 done, 1 with
/// --require-complete where something is missing (the file is there all the same), 2 failure, and no file.
#[derive(clap::Args)]
pub(super) struct Args {
    /// What the incident is called
    #[arg(long, value_name = "NAME")]
    incident: String,
    /// Directories that agents' --flow-store names, or copies of them, and buckets of their --flow-bucket such as s3://bucket/prefix
    #[arg(value_name = "STORE", required = true)]
    stores: Vec<String>,
    #[command(flatten)]
    reach: Reach,
    /// Flows that began at this time or later: a time such as 2026-01-31T12:00:00Z, or how long ago, such as 30m or 7d
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Timestamp,
    /// Flows that began before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Timestamp,
    #[command(flatten)]
    filters: Filters,
    /// Rules' use to go with it: state directories of agents, or files of rows that an agent's /usage gave
    #[arg(long, value_name = "FILE|DIR")]
    usage: Vec<PathBuf>,
    /// The file to make; nothing is overwritten
    #[arg(long, short, value_name = "BUNDLE")]
    out: PathBuf,
    /// How to print what was done
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Exit status 1 where anything is missing
    #[arg(long)]
    require_complete: bool,
}

/// How to print what was done.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    Table,
    /// One JSON object.
    Json,
}

/// Runs the command.
pub(super) fn run(args: Args) -> anyhow::Result<Exit> {
    let created = now();
    let window = (args.since, args.until);
    ensure!(window.0 < window.1, "--since is not before --until");
    let name = args.incident.trim();
    ensure!(
        !name.is_empty() && !name.chars().any(char::is_control),
        "--incident is {name:?}: give a name of one line"
    );
    let mut usage = Rows::default();
    for source in &args.usage {
        usage.merge(store::read(source)?);
    }
    let filter = args.filters.filter(Some(window.0), Some(window.1))?;
    on_interrupt()?;
    let mut bundle = Bundle::create(&args.out)?;
    let mut flows = Flows::default();
    let stores = stores::open(&args.stores, &args.reach)?;
    let scanned = scan_stores_in_order(&stores, &filter, Columns::All, &mut |batch| {
        flows.take(&mut bundle, batch)?;
        Ok(ControlFlow::Continue(()))
    })?;
    unless_stopped()?;
    let flows = flows.finish(&mut bundle, &scanned.marks, window)?;
    if flows.coverage.nodes.is_empty() && flows.rows == 0 {
        let unreadable = scanned.unreadable.iter().map(cannot_be_read);
        let unreadable: String = unreadable.map(|it| format!("; {it}")).collect();
        bail!(
            "nothing is known of this time in these stores, and of nothing there is no evidence: see --since and --until{unreadable}"
        );
    }
    let mut history = add_history(&mut bundle, &stores, window, &flows)?;
    history.missing.extend(stores.iter().filter_map(partly));
    history.missing.extend(args.filters.hidden(&filter, &scanned.keys));
    if !args.usage.is_empty() {
        bundle.add_usage(&usage)?;
    }
    unless_stopped()?;
    let asked = Asked {
        incident: name.to_owned(),
        since: window.0,
        until: window.1,
        filter,
        stores: args.stores.clone(),
        now: created,
    };
    let (manifest, digest) = bundle.finish(asked, &scanned, flows, history)?;
    let mut out = io::stdout().lock();
    match args.output {
        Output::Table => {
            writeln!(out, "{}: {}", args.out.display(), summary(&manifest))?;
            completeness(&mut out, &manifest)?;
            writeln!(out, "sha256 of its manifest: {digest}")?;
        }
        Output::Json => {
            let told = json!({
                "bundle": args.out.display().to_string(), "digest": digest, "incident": manifest.incident,
                "since": manifest.since, "until": manifest.until, "flows": manifest.flows,
                "complete": manifest.complete, "missing": manifest.missing,
                "coverage": manifest.coverage, "members": manifest.members.len() + 2,
            });
            writeln!(out, "{told:#}")?;
        }
    }
    Ok(if args.require_complete && !manifest.complete { Exit::Findings } else { Exit::Clean })
}

/// Ctrl-C leaves no half of a bundle.
fn unless_stopped() -> anyhow::Result<()> {
    ensure!(!STOPPED.load(Ordering::Relaxed), "stopped: nothing was written");
    Ok(())
}

/// What a bundle is of, in one line.
pub(super) fn summary(manifest: &Manifest) -> String {
    let filtered = if manifest.filter == Default::default() { "all" } else { "those that the filter leaves" };
    format!(
        "incident {}, {} flows ({filtered}) from {} until {}, {} policies, {} agent runs",
        one_line(&manifest.incident),
        manifest.flows,
        manifest.since,
        manifest.until,
        manifest.policies.len(),
        manifest.runs.len()
    )
}

/// Whether anything is missing, and what.
pub(super) fn completeness(out: &mut impl io::Write, manifest: &Manifest) -> io::Result<()> {
    if manifest.complete {
        for sentence in manifest.coverage.sentences() {
            writeln!(out, "{}", one_line(&sentence))?;
        }
        return Ok(());
    }
    match manifest.coverage.lost.values().sum() {
        0 => writeln!(out, "INCOMPLETE:")?,
        1 => writeln!(out, "INCOMPLETE: 1 record was lost in this window")?,
        lost => writeln!(out, "INCOMPLETE: {lost} records were lost in this window")?,
    }
    manifest.missing.iter().try_for_each(|sentence| writeln!(out, "  {}", one_line(sentence)))
}
