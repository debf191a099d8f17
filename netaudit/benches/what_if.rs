//! Flows of a store judged again by another set of policies: how fast, and how much faster than one by one.
//!
//! Flows are those of the benchmark of the store. While they happen a policy changes every hour and a pod's labels every minute, which
//! the history has. Then the same of flows of which each goes to another address outside, and what memory that takes. Prints a table on
//! stderr and JSON on stdout. Started by `cargo xtask bench what-if`. `$NETAUDIT_BENCH_FLOWS` says how many, `$NETAUDIT_BENCH_STORE`
//! where.

#[path = "store/flows.rs"]
mod flows;
#[path = "policy/heap.rs"]
#[allow(dead_code, reason = "another benchmark counts calls as well")]
mod heap;

use std::{
    net::Ipv4Addr,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use netaudit::{
    advise::what_if::{Candidate, Class, Report, Scope},
    audit::{Flow, PeerKind, Privacy, line::Telling},
    cluster::Kind,
    model::Timestamp,
    replay::{COLUMNS, Classes, Histories, Replay, Replayed, judge_each},
    store::flows::{
        Columns, Roller,
        ask::{Among, Columns as Wanted, scan},
        files,
        filter::Filter,
        schema::VERSION,
        segment::{Lost, Mark, Segment},
        table::FLOWS,
    },
};
use serde_json::{Value, json};

use self::flows::{BEGIN, Chance, PACE_NS, PODS, RUN, WORKLOADS};

#[global_allocator]
static HEAP: heap::Counting = heap::Counting;

const BATCH: u64 = 8_192;
const SEGMENT: u64 = 32_768;
const HOUR: i64 = 3_600_000_000_000;
const MINUTE: i64 = HOUR / 60;
/// Flows to as many addresses outside the cluster.
const OUTSIDE: u64 = 4_000_000;
/// Flows that are judged one by one.
const ONE_BY_ONE: u64 = 1_000_000;

fn main() {
    let setting = |name: &str| std::env::var(name).ok();
    let count = setting("NETAUDIT_BENCH_FLOWS").and_then(|text| text.parse().ok()).unwrap_or(4_000_000_u64);
    let store = setting("NETAUDIT_BENCH_STORE")
        .map_or_else(|| std::env::temp_dir().join("netaudit-bench-what-if"), PathBuf::from);
    // Nothing but what an earlier run of this benchmark has left.
    let _ = std::fs::remove_dir_all(&store);
    std::fs::create_dir_all(&store).expect("a directory for the store");
    let length = (count * PACE_NS) as i64;
    write_history(&store, length);
    write_flows(&store, count, &|_, _| ());

    let mut said = Vec::new();
    let (whole, took) = replay(&store, &Filter::default());
    assert_eq!(
        whole.report.replayed,
        count.div_ceil(BATCH) * BATCH,
        "all were judged: {:?}",
        whole.report.unreplayed()
    );
    let rate = whole.report.replayed as f64 / took.as_secs_f64();
    said.push(say("flows", whole.report.replayed as f64, ""));
    said.push(say("  classes", whole.classes as f64, ""));
    said.push(say("  judgements", whole.report.judged as f64, ""));
    said.push(say("  flows that fare otherwise", whole.report.changed as f64, ""));
    said.push(say("  the history read", whole.history.as_secs_f64(), "s"));
    said.push(say("  flows read and counted", whole.scan.as_secs_f64(), "s"));
    said.push(say("  judged", whole.judge.as_secs_f64(), "s"));
    said.push(say("by classes", rate, "flows/s"));

    // The same of some of them, one by one, and the same answer.
    let until = Timestamp(BEGIN + (ONE_BY_ONE.min(count) * PACE_NS) as i64);
    let some = Filter { until: Some(until), ..Filter::default() };
    let (classes, _) = replay(&store, &some);
    let begun = Instant::now();
    let (each, changed) = one_by_one(&store, &some);
    let one_by_one = each as f64 / begun.elapsed().as_secs_f64();
    assert_eq!((each, changed), (classes.report.replayed, classes.report.changed), "both say the same");
    said.push(say("one by one, with remembered verdicts", one_by_one, "flows/s"));
    said.push(say("ratio", rate / one_by_one, "times"));
    let _ = std::fs::remove_dir_all(&store);
    said.extend(outside(&store, OUTSIDE.min(count)));
    println!("{}", json!({"flows": count, "results": said}));
    let _ = std::fs::remove_dir_all(&store);
}

fn say(what: &str, value: f64, unit: &str) -> Value {
    eprintln!("{what:<62} {value:>12.2} {unit}");
    json!({"what": what, "value": value, "unit": unit})
}

/// Each flow is to or from another address outside the cluster: the most classes that there can be.
fn outside(store: &Path, count: u64) -> Vec<Value> {
    write_history(store, HOUR);
    write_flows(store, count, &|flow, number| {
        flow.peer.kind = PeerKind::External;
        flow.peer.service = None;
        flow.peer.ip = Ipv4Addr::from_bits(0x0b00_0000 + number as u32).into();
        flow.other_end = None;
    });
    let before = heap::live();
    heap::take_peak();
    let (replayed, took) = replay(store, &Filter::default());
    let most = heap::take_peak().saturating_sub(before);
    assert_eq!(replayed.report.replayed, count.div_ceil(BATCH) * BATCH, "{:?}", replayed.report.unreplayed());
    vec![
        say("flows, each with another address outside", replayed.report.replayed as f64, ""),
        say("  classes", replayed.classes as f64, ""),
        say("  by classes", count as f64 / took.as_secs_f64(), "flows/s"),
        say("  heap at most", most as f64 / f64::from(1 << 20), "MiB"),
    ]
}

struct Timed {
    report: Report,
    classes: usize,
    history: Duration,
    scan: Duration,
    judge: Duration,
}

fn replay(store: &Path, filter: &Filter) -> (Timed, Duration) {
    let candidate = candidate();
    let begun = Instant::now();
    let histories =
        Histories::read(&[store.to_owned().into()], filter.from, filter.until).expect("a history");
    let history = begun.elapsed();
    let mut replay = Replay::new(&histories, &candidate);
    scan_all(store, filter, &mut |batch| replay.add(batch).expect("columns"));
    let scan = begun.elapsed() - history;
    let Replayed { report, classes, .. } = replay.finish();
    let took = begun.elapsed();
    let judge = took - history - scan;
    (Timed { report, classes, history, scan, judge }, took)
}

/// How many, and how many fare otherwise.
fn one_by_one(store: &Path, filter: &Filter) -> (u64, u64) {
    let candidate = candidate();
    let histories =
        Histories::read(&[store.to_owned().into()], filter.from, filter.until).expect("a history");
    let mut all: Vec<(Class, Timestamp)> = Vec::new();
    scan_all(store, filter, &mut |batch| all.extend(Classes::each(batch).expect("columns")));
    all.sort_by_key(|(_, time)| *time);
    let history = histories.of(RUN).expect("the run's history");
    let changed = judge_each(all.iter().map(|(class, time)| (class, *time)), history, &candidate);
    (all.len() as u64, changed)
}

fn scan_all(store: &Path, filter: &Filter, each: &mut dyn FnMut(&arrow::array::RecordBatch)) {
    let stores = [store.to_owned().into()];
    let scanned = scan(&stores, Among::All, filter, Wanted::Some(&COLUMNS), &|_, _| {}, &mut |batch| {
        if let Some(batch) = batch {
            each(&batch);
        }
        Ok(ControlFlow::Continue(()))
    });
    assert!(scanned.expect("a scan").unreadable.is_empty());
}

/// Of every second workload the policy lets nobody in at its own port.
fn candidate() -> Candidate {
    let port = |workload: u32| if workload.is_multiple_of(2) { 5_432 } else { 5_433 };
    let policies = (0..WORKLOADS).map(|it| flows::object(&flows::policy(it, port(it)))).collect();
    Candidate::new(policies, Scope::All).expect("policies of any namespace").0
}

fn write_history(store: &Path, length: i64) {
    let mut writer = flows::open(store, None);
    let history = writer.history_mut();
    flows::values().iter().for_each(|value| flows::tell(history, value, BEGIN));
    Kind::ALL.into_iter().for_each(|kind| history.listed(kind, Timestamp(BEGIN)));
    for minute in 1..=length / MINUTE {
        let (at, number) = (BEGIN + minute * MINUTE, minute as u32);
        let mut changed = vec![flows::pod(number % PODS, number)];
        if minute % 60 == 0 {
            changed.push(flows::policy(number / 60 % WORKLOADS, 5_434));
        }
        changed.iter().for_each(|value| flows::tell(history, value, at));
    }
    let end = Timestamp(BEGIN + length);
    assert_eq!(writer.finish(end, Lost::default(), Duration::from_secs(60)), 0, "nothing is lost");
}

fn write_flows(store: &Path, count: u64, change: &dyn Fn(&mut Flow, u64)) {
    let (auditor, templates) = flows::templates();
    let node: Arc<str> = "node-1".into();
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    let mut columns = Columns::new(node.clone());
    let mut roller = Roller::new(store, &FLOWS).expect("a store");
    let (mut number, mut made, mut at) = (0_u64, 0_u64, BEGIN);
    while made < count {
        number += 1;
        let (node_name, run) = (node.to_string(), "bench".to_owned());
        let (from, until) = (Timestamp(at), Timestamp(at));
        let (lost_before, lost_after, kernel_lost) = (0, 0, 0);
        let mark = Mark {
            version: VERSION,
            node: node_name,
            run,
            number,
            from,
            until,
            lost_before,
            lost_after,
            kernel_lost,
            holes: false,
        };
        let mut segment = Segment::create(&files::open_directory(store), &FLOWS, mark).expect("a segment");
        while segment.rows() < SEGMENT && made < count {
            for _ in 0..BATCH {
                made += 1;
                at += chance.below(2 * PACE_NS) as i64;
                let template = &templates[chance.skewed(templates.len() as u64) as usize];
                let mut flow = flows::vary(template, at, made, &mut chance);
                change(&mut flow, made);
                let (cluster, privacy) = (auditor.cluster(), Privacy::TELLS_ALL);
                columns.push(&Telling { flow: &flow, cluster, node: &node, correction: 0, privacy });
            }
            segment.write(&columns.finish().expect("columns")).expect("a batch");
        }
        segment.reach(Timestamp(at), Lost::default());
        roller.add(segment.close()).expect("a row group");
        if roller.is_due(Duration::from_secs(300)) || roller.is_full() || made >= count {
            roller.commit().expect("a file");
        }
    }
}
