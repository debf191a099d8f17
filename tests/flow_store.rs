//! The flow store without an agent: every field comes back as it was, whatever is torn, damaged, full or interrupted is said
//! and loses nothing else, and a filter finds what it says.

mod asking;
mod bucket;
mod bucket_history;
mod bucket_usage;
mod exporting;
mod faults;
mod privacy;
mod s3;
mod snapshots;

use std::{
    net::SocketAddr,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use netaudit::{
    audit::{Finding, Flow, Open, Privacy, SeenName, UnenforcedCause, line::Telling},
    model::{DropReason, Errno, Folded, Outcome, Timestamp, Translation},
    store::flows::{
        Beginning, Columns, FlowStore, Lost, Retention, Roller,
        ask::{self, Scanned},
        files,
        filter::Filter,
        row::Rows,
        schema::VERSION,
        segment::{Mark, Segment},
        table::FLOWS,
    },
};
use serde_json::Value;

use crate::{
    alerts::tool_or_skip,
    audit::{World, a_to_b, deny_egress, egress, ingress, t},
};

/// The S3 server's program, where it is there. Says so where not, and fails instead where it must be.
fn weed_or_skip(test: &str) -> Option<PathBuf> {
    tool_or_skip(test, "weed", "SeaweedFS")
}

/// A world, and flows of it that differ in everything that a flow can have.
struct Made {
    world: World,
    privacy: Privacy,
    flows: Vec<Flow>,
}

impl Made {
    fn new(count: usize) -> Self {
        let mut world = World::new(vec![deny_egress()]);
        let kinds = [
            world.one(a_to_b()),
            world.one(ingress(102, 12, "10.0.0.2:80", "10.0.0.1:40000")),
            world.one(egress(101, 11, "10.0.0.1:40000", "203.0.113.9:443")),
            world.one(egress(102, 12, "10.0.0.2:40000", "[2001:db8::7]:443")),
            world.one(egress(1, 0, "192.168.0.1:40000", "10.0.0.1:80")),
        ];
        let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
        let flows = (1..=count as u64).map(|number| vary(&kinds, number, &mut chance));
        Self { flows: flows.collect(), world, privacy: Privacy::default() }
    }

    fn telling<'a>(&'a self, flow: &'a Flow) -> Telling<'a> {
        Telling {
            flow,
            cluster: self.world.auditor.cluster(),
            node: "node-1",
            correction: 0,
            privacy: &self.privacy,
        }
    }

    /// A flow as the flow log has it, to the microsecond.
    fn line(&self, flow: &Flow) -> Result<Value> {
        Ok(serde_json::to_value(self.telling(flow).line())?)
    }

    fn lines(&self) -> Result<Vec<Value>> {
        self.flows.iter().map(|flow| self.line(flow)).collect()
    }

    /// Segments of so many flows each, closed, in a new store.
    fn segments(&self, store: &Path, rows: usize) -> Result<Vec<netaudit::store::flows::segment::Closed>> {
        std::fs::create_dir_all(files::open_directory(store))?;
        std::fs::create_dir_all(files::flows_directory(store))?;
        let mut closed = Vec::new();
        for (number, flows) in self.flows.chunks(rows).enumerate() {
            let (first, last) = (flows.first().context("flows")?, flows.last().context("flows")?);
            let mark = mark(number as u64 + 1, first.observation.at, last.observation.at);
            let mut segment = Segment::create(&files::open_directory(store), &FLOWS, mark)?;
            for flows in flows.chunks(rows.div_ceil(3)) {
                segment.write(&self.batch(flows)?)?;
            }
            segment.sync()?;
            segment.write_mark()?;
            closed.push(segment.close());
        }
        Ok(closed)
    }

    fn batch(&self, flows: &[Flow]) -> Result<arrow::array::RecordBatch> {
        let mut columns = Columns::new("node-1".into());
        flows.iter().for_each(|flow| columns.push(&self.telling(flow)));
        Ok(columns.finish()?)
    }
}

fn mark(number: u64, from: Timestamp, until: Timestamp) -> Mark {
    Mark {
        version: VERSION,
        node: "node-1".to_owned(),
        run: "run".to_owned(),
        number,
        from,
        until,
        lost_before: 0,
        lost_after: 0,
        kernel_lost: 0,
        holes: false,
    }
}

/// Numbers that look like chance: the same in every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize].clone()
    }

    fn seldom(&mut self) -> bool {
        self.below(6) == 0
    }
}

/// A flow with a time of its own, and now and then each thing that it need not have.
fn vary(kinds: &[Flow], number: u64, chance: &mut Chance) -> Flow {
    let mut flow = chance.one(kinds);
    flow.id.sequence = number;
    let micros = 1_000;
    let seen = &mut flow.observation;
    // Some three hours in all, where there are a thousand.
    seen.at = Timestamp(t(0).0 + number as i64 * 11_000_000_000 + chance.below(5_000_000) as i64 * micros);
    seen.waited = Duration::from_micros(chance.below(3_000_000));
    seen.outcome = chance.one(&[Outcome::Established, Outcome::Refused, Outcome::Timeout, Outcome::Answered]);
    seen.actor.pid = chance.below(100_000) as u32;
    seen.maybe_repeated = chance.seldom();
    let ephemeral = 32_768 + chance.below(20_000) as u16;
    seen.remote =
        SocketAddr::new(seen.remote.ip(), if chance.seldom() { ephemeral } else { seen.remote.port() });
    if chance.seldom() {
        let first = Timestamp(seen.at.0 - chance.below(900) as i64 * 1_000_000);
        seen.folded = std::num::NonZeroU64::new(chance.below(1_000) + 1).map(|count| Folded { count, first });
    }
    seen.errno = chance.seldom().then_some(chance.one(&[Errno::ECONNREFUSED, Errno(71), Errno(3)]));
    flow.port = chance.one(&[80, 443, 5432, 8080]);
    flow.requested = chance.seldom().then_some(SocketAddr::from(([10, 96, 0, 1], 443)));
    flow.translation = chance.seldom().then_some(Translation::Conntrack);
    flow.stopped_by = chance.seldom().then_some(DropReason("NETFILTER_DROP"));
    flow.closed_port = chance.seldom();
    flow.finding = chance.one(&[None, None, flow.finding, Some(Finding::SuspectedBlock)]);
    flow.cause = chance.seldom().then_some(UnenforcedCause::PodJustStarted);
    let since = Timestamp(t(-50).0);
    flow.open = chance.one(&[None, None, None, Some(Open::BeforeStart), Some(Open::Since(since))]);
    if chance.seldom() {
        flow.peer.service = Some(("shop".into(), "db".into()));
    }
    let names = ["api.example.com", "a \"quoted\" name\nwith a line", "cdn.example.org"];
    flow.names = (0..chance.below(3))
        .map(|_| SeenName {
            name: chance.one(&names).into(),
            server: chance.one(&["10.96.0.10", "2001:db8::53"]).parse().unwrap_or([0, 0, 0, 0].into()),
            answered: Timestamp(t(1).0 + chance.below(1_000) as i64 * micros),
            is_fresh: chance.seldom(),
            is_asked: chance.seldom(),
            counts: chance.seldom(),
        })
        .collect();
    flow.actor_container = chance.seldom().then(|| Arc::from("0123abc"));
    flow
}

/// Everything that a filter finds in a store, as lines, and what is said of it.
fn found(store: &Path, filter: &Filter) -> Result<(Vec<Value>, Scanned)> {
    let mut lines = Vec::new();
    let scanned = ask::scan(
        &[store.to_owned().into()],
        ask::Among::All,
        filter,
        ask::Columns::All,
        &|_, _| {},
        &mut |batch| {
            if let Some(batch) = batch {
                let rows = Rows::new(&batch);
                for row in 0..batch.num_rows() {
                    lines.push(serde_json::to_value(rows.line(row)?)?);
                }
            }
            Ok(ControlFlow::Continue(()))
        },
    )?;
    lines.sort_by_key(number);
    Ok((lines, scanned))
}

/// Fails with the first line that differs.
fn assert_same(found: &[Value], expected: &[Value], what: &str) {
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found, expected, "{what}");
    }
    let numbers = |lines: &[Value]| lines.iter().map(number).collect::<Vec<_>>();
    assert_eq!(numbers(found), numbers(expected), "{what}");
}

/// The number of a flow.
fn number(line: &Value) -> u64 {
    let id = line["flow_id"].as_str().and_then(|id| id.rsplit('-').next());
    id.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Waits until `holds`.
fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !holds()? {
        ensure!(std::time::Instant::now() < deadline, "no {what} within 30 s");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A roller that has taken these segments in.
fn rolled(store: &Path, segments: Vec<netaudit::store::flows::segment::Closed>) -> Result<Roller> {
    let mut roller = Roller::new(store, &FLOWS)?;
    segments.into_iter().try_for_each(|segment| roller.add(segment))?;
    Ok(roller)
}

const FOREVER: Retention = Retention { age: Duration::from_secs(100 * 365 * 86_400), bytes: u64::MAX };

fn open(store: &Path, retention: Retention) -> Result<FlowStore> {
    let begin = Beginning {
        node: "node-1".into(),
        run: "run".into(),
        from: t(0),
        lost: Lost::default(),
        goes_on: false,
    };
    FlowStore::open(store, retention, None, &begin)
}

fn parquet_files(store: &Path) -> Result<Vec<PathBuf>> {
    Ok(files::list(store, &FLOWS)?.into_iter().map(|file| file.path).collect())
}

#[test]
fn every_field_comes_back_from_the_log_and_from_files() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let made = Made::new(1_000);
    let segments = made.segments(store, 300)?;
    let (of_log, scanned) = found(store, &Filter::default())?;
    assert_same(&of_log, &made.lines()?, "the log");
    assert!(scanned.unreadable.is_empty());
    let files = rolled(store, segments)?.commit()?;
    let hours: std::collections::BTreeSet<i64> = files.iter().map(|file| file.hour).collect();
    assert_eq!((files.len(), hours.len()), (4, 4), "one an hour: {files:?}");
    assert_eq!(std::fs::read_dir(files::open_directory(store))?.count(), 0, "segments are gone");
    let (of_files, scanned) = found(store, &Filter::default())?;
    assert_same(&of_files, &made.lines()?, "files");
    assert!(scanned.coverage.is_complete(), "{scanned:?}");
    Ok(())
}

/// Until version 0.1.0 lists were in the log as files have them. What an agent has left so when it was replaced is not lost.
#[test]
fn a_log_with_lists_as_files_have_them_is_read_and_rolled_too() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let made = Made::new(100);
    let segments = made.segments(store, 100)?;
    let batch = FLOWS.for_file(&made.batch(&made.flows)?)?;
    let file = std::fs::File::create(&segments[0].path)?;
    arrow::ipc::writer::StreamWriter::try_new(file, &batch.schema())?.write(&batch)?;
    let (of_log, scanned) = found(store, &Filter::default())?;
    assert_same(&of_log, &made.lines()?, "the log");
    assert!(scanned.unreadable.is_empty(), "{scanned:?}");
    rolled(store, segments)?.commit()?;
    let (of_files, _) = found(store, &Filter::default())?;
    assert_same(&of_files, &made.lines()?, "files");
    Ok(())
}
