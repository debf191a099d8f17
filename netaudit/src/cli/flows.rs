//! `netaudit flows`: who talked to whom, from flow stores, and whether anything is missing.

use std::{
    io::{self, IsTerminal as _, Write},
    ops::ControlFlow,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, bail, ensure};
use arrow::{
    array::{RecordBatch, UInt32Array},
    compute::{concat_batches, sort_to_indices, take_record_batch},
};
use clap::ValueEnum;
use serde_json::json;

use super::{
    Exit,
    flow_filter::Filters,
    flows_text::Printer,
    flows_top::{Field, Top},
    one_line,
    stores::{self, Reach},
};
use crate::{
    model::Timestamp,
    store::{
        bundle::partly,
        flows::{
            ask::{Among, Columns, Follower, Progress, Scanned, Store, scan, scan_in_order},
            filter::Filter,
            row::Rows,
            schema, words,
        },
    },
};

/// How often new flows are looked for.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);

/// Set by Ctrl-C, see [`on_interrupt`].
pub(super) static STOPPED: AtomicBool = AtomicBool::new(false);

/// Flows that agents have stored: who talked to whom, when, and what the policies said
///
/// Conditions are put together: each must hold, and of one that is given several times any. Says at the end whether anything is missing
/// in that time. Exit status: 0 done, 1 with --require-complete where something is missing, 2 failure.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Directories that agents' --flow-store names, or copies of them, and buckets of their --flow-bucket such as s3://bucket/prefix
    #[arg(value_name = "STORE", required = true)]
    stores: Vec<String>,
    #[command(flatten)]
    reach: Reach,
    /// Flows that began at this time or later: a time such as 2026-01-31T12:00:00Z, or how long ago, such as 30m or 7d
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// Flows that began before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
    #[command(flatten)]
    filters: Filters,
    /// Only the first so many
    #[arg(long, value_name = "N", conflicts_with_all = ["count", "top", "follow", "last"])]
    limit: Option<usize>,
    /// Only the last so many
    #[arg(long, value_name = "N", conflicts_with_all = ["count", "top"])]
    last: Option<usize>,
    /// How many
    #[arg(long, conflicts_with_all = ["top", "follow"])]
    count: bool,
    /// How many for each of these, most first: subject, peer, port, or a column such as verdict, actor_comm or peer_ip
    #[arg(long, value_name = "FIELD,…", value_delimiter = ',', conflicts_with = "follow")]
    top: Vec<Field>,
    /// How many of them
    #[arg(long, short = 'k', value_name = "N", default_value_t = 10)]
    most: usize,
    /// Go on with flows that come
    #[arg(long)]
    follow: bool,
    /// How to print the answer
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Exit status 1 where anything is missing in that time
    #[arg(long)]
    require_complete: bool,
}

/// How to print the answer.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    Table,
    /// A JSON object a line, as in the flow log.
    Json,
    /// With a head, lists with blanks between.
    Csv,
    /// A Parquet file, to be redirected.
    Parquet,
}

/// Runs the command.
pub(super) fn run(args: Args) -> anyhow::Result<Exit> {
    let is_sum = args.count || !args.top.is_empty();
    if is_sum && matches!(args.output, Output::Csv | Output::Parquet) {
        bail!("--count and --top print a table or JSON");
    }
    if args.output == Output::Parquet {
        ensure!(!io::stdout().is_terminal(), "Parquet is no text: redirect stdout to a file");
        ensure!(!args.follow, "a Parquet file has an end: --follow prints tables, JSON or CSV");
    }
    if let Some((since, until)) = args.since.zip(args.until) {
        ensure!(since < until, "--since is not before --until");
    }
    let filter = args.filters.filter(args.since, args.until)?;
    on_interrupt()?;
    let stores = stores::open(&args.stores, &args.reach)?;
    ensure!(
        !args.follow || stores.iter().all(|store| matches!(store, Store::Directory(_))),
        "--follow needs an agent's directory: a bucket gets flows minutes later, by the file"
    );
    let exit = if is_sum { sums(&args, &stores, &filter)? } else { list(&args, &stores, &filter)? };
    Ok(exit)
}

/// Flows, one by one, in order of time.
fn list(args: &Args, stores: &[Store], filter: &Filter) -> anyhow::Result<Exit> {
    let mut printer = Printer::new(args.output)?;
    let mut left = args.limit.unwrap_or(usize::MAX);
    let mut last: Vec<RecordBatch> = Vec::new();
    let mut follower = Follower::default();
    let mut hour: Vec<RecordBatch> = Vec::new();
    let begun = SystemTime::now();
    let scanned = scan_stores(stores, filter, Columns::All, &mut |batch| {
        let Some(batch) = batch else {
            let sorted = by_time(&std::mem::take(&mut hour))?;
            let rows = sorted.num_rows().min(left);
            let sorted = sorted.slice(0, rows);
            remember(&mut follower, &sorted);
            match args.last {
                Some(most) => keep_last(&mut last, sorted, most),
                None => {
                    left -= rows;
                    printer.print(&sorted)?;
                }
            }
            return Ok(if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) });
        };
        hour.push(batch);
        Ok(ControlFlow::Continue(()))
    })?;
    let exit = told(args, stores, filter, &scanned);
    for batch in &last {
        printer.print(batch)?;
    }
    if args.follow {
        follow(stores, filter, &mut follower, begun, &mut printer)?;
    }
    printer.finish()?;
    Ok(exit)
}

fn remember(follower: &mut Follower, batch: &RecordBatch) {
    let rows = Rows::new(batch);
    for row in 0..batch.num_rows() {
        let (run, number) = rows.id(row);
        follower.shown(run, number);
    }
}

fn keep_last(last: &mut Vec<RecordBatch>, batch: RecordBatch, most: usize) {
    last.push(batch);
    let mut rows: usize = last.iter().map(RecordBatch::num_rows).sum();
    while let Some(first) = last.first()
        && rows > most
    {
        let surplus = (rows - most).min(first.num_rows());
        rows -= surplus;
        match first.num_rows() - surplus {
            0 => drop(last.remove(0)),
            left => last[0] = first.slice(surplus, left),
        }
    }
}

/// One batch in order of time.
fn by_time(batches: &[RecordBatch]) -> anyhow::Result<RecordBatch> {
    let all = concat_batches(&schema::schema(), batches)?;
    let order: UInt32Array = sort_to_indices(all.column_by_name("time").context("a column")?, None, None)?;
    Ok(take_record_batch(&all, &order)?)
}

/// New flows as they come, until Ctrl-C.
fn follow(
    stores: &[Store],
    filter: &Filter,
    follower: &mut Follower,
    mut looked: SystemTime,
    printer: &mut Printer,
) -> anyhow::Result<()> {
    printer.flush()?;
    while !STOPPED.load(Ordering::Relaxed) {
        thread::sleep(FOLLOW_EVERY);
        let now = SystemTime::now();
        // A segment can have become a file since the last look, and times of files are those of a coarse clock.
        let among = Among::NewerThan(looked - FOLLOW_EVERY);
        let mut new: Vec<RecordBatch> = Vec::new();
        let scanned = scan(stores, among, filter, Columns::All, &|_, _| {}, &mut |batch| {
            new.extend(batch.map(|batch| only_new(&batch, follower)).transpose()?);
            Ok(ControlFlow::Continue(()))
        })?;
        if scanned.vanished {
            // A segment became a file under our eyes: all of it is there at the next look, in order.
            continue;
        }
        looked = now;
        let sorted = by_time(&new)?;
        remember(follower, &sorted);
        printer.print(&sorted)?;
        printer.flush()?;
    }
    Ok(())
}

fn only_new(batch: &RecordBatch, follower: &Follower) -> anyhow::Result<RecordBatch> {
    let rows = Rows::new(batch);
    let new = (0..batch.num_rows()).map(|row| {
        let (run, number) = rows.id(row);
        Some(follower.is_new(run, number))
    });
    Ok(arrow::compute::filter_record_batch(batch, &new.collect())?)
}

/// How many.
fn sums(args: &Args, stores: &[Store], filter: &Filter) -> anyhow::Result<Exit> {
    let mut top = Top::new(args.top.clone());
    let columns = top.columns();
    let scanned = scan_stores(stores, filter, Columns::Some(&columns), &mut |batch| {
        if let Some(batch) = batch {
            top.add(&batch)?;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let exit = told(args, stores, filter, &scanned);
    let mut out = io::stdout().lock();
    match args.output {
        Output::Json => {
            let counts = top.json(args.most);
            writeln!(
                out,
                "{:#}",
                json!({"flows": top.total(), "top": counts, "coverage": scanned.coverage})
            )?;
        }
        _ if args.count => writeln!(out, "{}", top.total())?,
        _ => top.print(&mut out, args.most)?,
    }
    Ok(exit)
}

/// Scans stores, tells how far it is where somebody looks, and ends at Ctrl-C.
pub(super) fn scan_stores(
    stores: &[Store],
    filter: &Filter,
    columns: Columns<'_>,
    each: &mut Each<'_>,
) -> anyhow::Result<Scanned> {
    with_progress(each, &mut |progress, each| scan(stores, Among::All, filter, columns, progress, each))
}

/// As [`scan_stores`], but the batches of an hour come in the same order each time.
pub(super) fn scan_stores_in_order(
    stores: &[Store],
    filter: &Filter,
    columns: Columns<'_>,
    each: &mut Each<'_>,
) -> anyhow::Result<Scanned> {
    with_progress(each, &mut |progress, each| scan_in_order(stores, filter, columns, progress, each))
}

/// What is done with each batch, and at the end of an hour.
type Each<'a> = dyn FnMut(Option<RecordBatch>) -> anyhow::Result<ControlFlow<()>> + 'a;

/// Shows how far a scan is, and ends it where somebody asks for that.
fn with_progress(
    each: &mut Each<'_>,
    scan: &mut dyn FnMut(Progress<'_>, &mut Each<'_>) -> anyhow::Result<Scanned>,
) -> anyhow::Result<Scanned> {
    let (begun, shows) = (Instant::now(), io::stderr().is_terminal());
    let shown = AtomicBool::new(false);
    let progress = |done: usize, all: usize| {
        if shows && begun.elapsed() >= Duration::from_secs(1) {
            shown.store(true, Ordering::Relaxed);
            eprint!("\r{done} of {all} files ");
        }
    };
    let result = scan(&progress, &mut |batch| {
        if STOPPED.load(Ordering::Relaxed) {
            return Ok(ControlFlow::Break(()));
        }
        each(batch)
    });
    if shown.load(Ordering::Relaxed) {
        eprint!("\r\x1b[K");
    }
    result
}

/// Says on stderr what is missing.
fn told(args: &Args, stores: &[Store], filter: &Filter, scanned: &Scanned) -> Exit {
    let mut is_complete = scanned.coverage.is_complete() && scanned.unreadable.is_empty();
    for (path, reason) in &scanned.unreadable {
        eprintln!("netaudit: {} cannot be read, its flows are missing: {reason}", path.display());
    }
    for sentence in args.filters.hidden(filter, &scanned.keys) {
        eprintln!("netaudit: {sentence}");
        is_complete = false;
    }
    for sentence in stores.iter().filter_map(partly) {
        eprintln!("netaudit: {}", one_line(&sentence));
        is_complete = false;
    }
    for sentence in scanned.coverage.sentences() {
        eprintln!("netaudit: {sentence}");
    }
    if STOPPED.load(Ordering::Relaxed) {
        eprintln!("netaudit: stopped: what came after is missing");
        is_complete = false;
    }
    if args.require_complete && !is_complete { Exit::Findings } else { Exit::Clean }
}

/// Ctrl-C ends a scan between two batches, so that what is printed is whole. A second one ends it at once.
pub(super) fn on_interrupt() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
        runtime.block_on(async {
            while tokio::signal::ctrl_c().await.is_ok() {
                if STOPPED.swap(true, Ordering::Relaxed) {
                    #[allow(clippy::exit, reason = "whoever asks twice does not want to wait")]
                    std::process::exit(130);
                }
            }
        });
    })?;
    Ok(())
}

pub(super) fn now() -> Timestamp {
    Timestamp(i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX))
}

/// A time, or how long ago.
pub(super) fn time(text: &str) -> Result<Timestamp, String> {
    words::time(text, now())
}
