//! The flow store: how fast flows go in, how many bytes each takes, and how fast one gets answers.
//!
//! Flows are those of a node's pods, made by the auditor from records; each is then given a time, ports, a process and a
//! waiting time of its own, with a day's 100 million as pace. Prints a table on stderr and JSON on stdout. Started by
//! `cargo xtask bench store`, which asks DuckDB the same. `$NETAUDIT_BENCH_FLOWS` says how many, `$NETAUDIT_BENCH_STORE` where, and
//! `$NETAUDIT_BENCH_WEED` which program the S3 server is.

#[path = "store/agents.rs"]
mod agents;
#[path = "store/fleet.rs"]
mod fleet;
#[path = "store/flows.rs"]
#[allow(dead_code, reason = "another benchmark uses more of it")]
mod flows;
#[path = "policy/heap.rs"]
#[allow(dead_code, reason = "another benchmark counts calls as well")]
mod heap;
#[path = "../../tests/flow_store/s3.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod s3;

use std::{
    hint::black_box,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use netaudit::{
    audit::{Flow, Privacy, line::Telling},
    model::Timestamp,
    store::flows::{
        Columns, Roller,
        ask::{Among, Columns as Wanted, Scanned, scan},
        files,
        filter::Filter,
        schema::VERSION,
        segment::{Lost, Mark, Segment},
        table::FLOWS,
    },
};
use serde_json::{Value, json};

use self::flows::{BEGIN, Chance, PACE_NS, templates, vary};

#[global_allocator]
static HEAP: heap::Counting = heap::Counting;

/// What an agent puts into columns at once.
const BATCH: usize = 4_096;
const SEGMENT: u64 = 32_768;
/// Flows of which many files are made, in the store that an agent has.
const AGENTS_FLOWS: u64 = 2_000_000;

fn main() {
    let flows = setting("NETAUDIT_BENCH_FLOWS").and_then(|text| text.parse().ok()).unwrap_or(4_000_000_u64);
    let store = setting("NETAUDIT_BENCH_STORE")
        .map_or_else(|| std::env::temp_dir().join("netaudit-bench-store"), PathBuf::from);
    // Nothing but what an earlier run of this benchmark has left.
    let _ = std::fs::remove_dir_all(&store);
    for directory in [files::open_directory(&store), files::flows_directory(&store)] {
        std::fs::create_dir_all(directory).expect("a directory for the store");
    }
    let mut said = agents::as_an_agent(
        &store.join("agents"),
        flows.min(AGENTS_FLOWS),
        setting("NETAUDIT_BENCH_WEED").map(PathBuf::from).as_deref(),
    );
    std::fs::remove_dir_all(store.join("agents")).expect("what was just made");
    let weed = setting("NETAUDIT_BENCH_WEED").map(PathBuf::from);
    said.extend(fleet::asked(&store.join("fleet"), weed.as_deref()));
    let _ = std::fs::remove_dir_all(store.join("fleet"));
    said.extend(write(&store, flows));
    said.extend(ask(&store, flows));
    let (from, until) = hour(flows);
    let hour = json!({"from": from.to_string(), "until": until.to_string()});
    println!("{}", json!({"flows": flows, "store": store, "hour": hour, "results": said}));
}

fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn say(what: &str, value: f64, unit: &str) -> Value {
    eprintln!("{what:<62} {value:>12.2} {unit}");
    json!({"what": what, "value": value, "unit": unit})
}

fn write(store: &Path, count: u64) -> Vec<Value> {
    let (auditor, templates) = templates();
    let node: Arc<str> = "node-1".into();
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    let mut columns = Columns::new(node.clone());
    let mut roller = Roller::new(store, &FLOWS).expect("a store");
    let (mut number, mut made) = (0_u64, 0_u64);
    let [mut to_columns, mut to_log, mut to_files] = [Duration::ZERO; 3];
    let mut at = BEGIN;
    // What is handed over is not the store's.
    let mut flows: Vec<Flow> = Vec::with_capacity(BATCH);
    let (before, mut most) = (heap::live(), 0);
    heap::take_peak();
    while made < count {
        number += 1;
        let mark = Mark {
            version: VERSION,
            node: node.to_string(),
            run: "bench".to_owned(),
            number,
            from: Timestamp(at),
            until: Timestamp(at),
            lost_before: 0,
            lost_after: 0,
            kernel_lost: 0,
            holes: false,
        };
        let mut segment = Segment::create(&files::open_directory(store), &FLOWS, mark).expect("a segment");
        while segment.rows() < SEGMENT && made < count {
            flows.clear();
            flows.extend((0..BATCH).map(|_| {
                made += 1;
                at += (chance.below(2 * PACE_NS)) as i64;
                vary(&templates[chance.skewed(templates.len() as u64) as usize], at, made, &mut chance)
            }));
            most = most.max(heap::take_peak().saturating_sub(before));
            let cluster = auditor.cluster();
            let begun = Instant::now();
            for flow in &flows {
                columns.push(&Telling {
                    flow,
                    cluster,
                    node: &node,
                    correction: 0,
                    privacy: Privacy::TELLS_ALL,
                });
            }
            let batch = columns.finish().expect("columns");
            to_columns += begun.elapsed();
            let begun = Instant::now();
            segment.write(&batch).expect("a batch");
            segment.sync().expect("a sync");
            to_log += begun.elapsed();
            most = most.max(heap::take_peak().saturating_sub(before));
        }
        segment.reach(Timestamp(at), Lost::default());
        let begun = Instant::now();
        roller.add(segment.close()).expect("a row group");
        if roller.is_due(Duration::from_secs(300)) || roller.is_full() || made >= count {
            roller.commit().expect("a file");
        }
        to_files += begun.elapsed();
        most = most.max(heap::take_peak().saturating_sub(before));
    }
    let files = files::list(store, &FLOWS).expect("the files");
    let bytes: u64 = files.iter().map(|file| file.bytes).sum();
    let rate = |time: Duration| made as f64 / time.as_secs_f64();
    vec![
        say("flows", made as f64, ""),
        say("files", files.len() as f64, ""),
        say("bytes a flow (goal 12)", bytes as f64 / made as f64, ""),
        say("into columns, one core", rate(to_columns), "flows/s"),
        say("into the log, each 4,096 synced", rate(to_log), "flows/s"),
        say("into columns and the log (goal 500,000)", rate(to_columns + to_log), "flows/s"),
        say("from the log into files, another core", rate(to_files), "flows/s"),
        say("heap at most (goal 32)", most as f64 / f64::from(1 << 20), "MiB"),
    ]
}

/// An hour in the middle of so many flows.
fn hour(count: u64) -> (Timestamp, Timestamp) {
    let hour = 3_600_000_000_000;
    let middle = BEGIN + (count * PACE_NS / 2) as i64 / hour * hour;
    (Timestamp(middle), Timestamp(middle + hour))
}

fn ask(store: &Path, count: u64) -> Vec<Value> {
    let (from, until) = hour(count);
    let pod = Filter {
        from: Some(from),
        until: Some(until),
        pods: vec!["team-7/service-7-7c8d9f6b5-00007".parse().expect("a pod")],
        ..Filter::default()
    };
    let mut said = Vec::new();
    let (rows, scanned, time) = asked(store, &pod, Wanted::All);
    said.push(say("one pod's hour, all columns", time, "ms"));
    said.push(say("  flows of it", rows as f64, ""));
    said.push(say(
        "  row groups read of those of that hour",
        scanned.row_groups.1 as f64 / scanned.row_groups.0.max(1) as f64,
        "",
    ));
    let talkers = ["subject_namespace", "subject_workload", "count"];
    let (rows, _, time) = asked(store, &Filter::default(), Wanted::Some(&talkers));
    said.push(say("top talkers of all", time, "ms"));
    assert_eq!(rows as u64, count.div_ceil(BATCH as u64) * BATCH as u64);
    let nobody = Filter { pods: vec!["team-7/nobody".parse().expect("a pod")], ..Filter::default() };
    let (rows, scanned, time) = asked(store, &nobody, Wanted::All);
    assert_eq!((rows, scanned.row_groups.1), (0, 0), "bloom filters tell");
    said.push(say("a pod that never was, in all", time, "ms"));
    said
}

fn asked(store: &Path, filter: &Filter, columns: Wanted<'_>) -> (usize, Scanned, f64) {
    let begun = Instant::now();
    let mut rows = 0;
    let scanned = scan(&[store.to_owned().into()], Among::All, filter, columns, &|_, _| {}, &mut |batch| {
        rows += batch.map_or(0, |batch| black_box(batch).num_rows());
        Ok(ControlFlow::Continue(()))
    });
    (rows, scanned.expect("a scan"), begun.elapsed().as_secs_f64() * 1e3)
}
