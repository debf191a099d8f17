//! The flow store: how fast flows go in, how many bytes each takes, and how fast one gets answers.
//!
//! Flows are those of a node's pods, made by the auditor from records; each is then given a time, ports, a process and a
//! waiting time of its own, with a day's 100 million as pace. Prints a table on stderr and JSON on stdout. Started by
//! `cargo xtask bench store`, which asks DuckDB the same. `$NETAUDIT_BENCH_FLOWS` says how many, `$NETAUDIT_BENCH_STORE` where.

#[path = "policy/heap.rs"]
#[allow(dead_code, reason = "another benchmark counts calls as well")]
mod heap;

use std::{
    hint::black_box,
    net::SocketAddr,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use netaudit::{
    audit::{Auditor, Budget, Flow, Privacy, Settings, line::Telling},
    cluster::{Kind, Object},
    kernel::{Clock, Event, abi, decode, encode},
    model::{CgroupId, Direction, NetnsCookie, Protocol, Timestamp},
    store::flows::{
        Columns, Roller,
        ask::{Among, Columns as Wanted, Scanned, scan},
        files,
        filter::Filter,
        schema::VERSION,
        segment::{Lost, Mark, Segment},
        table::FLOWS,
    },
    watch::convert,
};
use serde_json::{Value, json};

#[global_allocator]
static HEAP: heap::Counting = heap::Counting;

const PODS: u32 = 250;
const WORKLOADS: u32 = 60;
const BATCH: usize = 8_192;
const SEGMENT: u64 = 32_768;
/// 2026-01-01T00:00:00Z.
const BEGIN: i64 = 1_767_225_600_000_000_000;
/// A day's 100 million.
const PACE_NS: u64 = 864_000;

fn main() {
    let flows = setting("NETAUDIT_BENCH_FLOWS").and_then(|text| text.parse().ok()).unwrap_or(4_000_000_u64);
    let store = setting("NETAUDIT_BENCH_STORE")
        .map_or_else(|| std::env::temp_dir().join("netaudit-bench-store"), PathBuf::from);
    // Nothing but what an earlier run of this benchmark has left.
    let _ = std::fs::remove_dir_all(&store);
    for directory in [files::open_directory(&store), files::flows_directory(&store)] {
        std::fs::create_dir_all(directory).expect("a directory for the store");
    }
    let mut said = write(&store, flows);
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

/// A small generator of numbers that look like chance: the same in every run.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Few of many come often.
    fn skewed(&mut self, limit: u64) -> u64 {
        let [a, b, c] = [self.below(limit), self.below(limit), self.below(limit)];
        a.min(b).min(c)
    }
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
        say("into the log, each 8,192 synced", rate(to_log), "flows/s"),
        say("into columns and the log (goal 500,000)", rate(to_columns + to_log), "flows/s"),
        say("from the log into files, another core", rate(to_files), "flows/s"),
        say("heap at most (goal 32)", most as f64 / f64::from(1 << 20), "MiB"),
    ]
}

/// The same flow at another time, of another connection.
fn vary(template: &Flow, at: i64, number: u64, chance: &mut Chance) -> Flow {
    let mut flow = template.clone();
    flow.id.sequence = number;
    let seen = &mut flow.observation;
    seen.at = Timestamp(at);
    let ephemeral = 32_768 + chance.below(28_232) as u16;
    match seen.direction {
        Direction::Egress => seen.local = SocketAddr::new(seen.local.ip(), ephemeral),
        Direction::Ingress => seen.remote = SocketAddr::new(seen.remote.ip(), ephemeral),
    }
    if seen.direction == Direction::Egress {
        // Most answers come at once, some take long.
        seen.waited = Duration::from_micros(40 + chance.skewed(2_000));
    }
    // Each pod has some processes.
    seen.actor.pid = 1_000 + seen.actor.pid % PODS * 8 + chance.skewed(4) as u32;
    if seen.protocol == Protocol::Udp {
        seen.waited = Duration::from_micros(100 + chance.skewed(5_000));
    }
    flow
}

fn address(pod: u32) -> [u8; 4] {
    let [_, a, b, c] = (pod + 1).to_be_bytes();
    [10, a, b, c]
}

/// Flows of pods with one another, with DNS, and with addresses outside, as the auditor judges them.
fn templates() -> (Auditor, Vec<Flow>) {
    let mut auditor = Auditor::new(Settings {
        node: "node-1".into(),
        run: "node-1-19b7a3c2e11".into(),
        host: NetnsCookie(1),
        budget: Budget::default(),
        unused_after: Duration::from_secs(60),
        unused_coverage: 0.99,
    });
    auditor.cluster_mut().reset_all(objects(), Timestamp(0));
    for pod in 0..PODS {
        let cgroup = CgroupId(10_000 + u64::from(pod));
        auditor.attribution_mut().cgroup(cgroup, &format!("/kubepods/burstable/pod{}/{pod:064x}", uid(pod)));
        auditor.attribution_mut().pair(NetnsCookie(1_000 + u64::from(pod)), cgroup);
    }
    auditor.set_ready();
    auditor.watch_rules(Timestamp(0));
    let mut flows = Vec::new();
    let mut chance = Chance(0x2545_f491_4f6c_dd1d);
    let later = Timestamp::from_seconds(60);
    for number in 0..4_000_u32 {
        let record = record(number, &mut chance);
        if let Ok(Event::Flow(seen)) = decode(&encode(&record), &Clock::fixed(0)) {
            auditor.observe(&seen, Timestamp::from_seconds(1), &mut flows);
        }
    }
    auditor.settle(later, &mut flows);
    auditor.tick(later, &mut flows);
    assert!(flows.len() > 3_000, "{} flows", flows.len());
    (auditor, flows)
}

fn record(number: u32, chance: &mut Chance) -> abi::FlowRecord {
    let v4 = |octets: [u8; 4]| abi::Address::v4(u32::from_ne_bytes(octets));
    let source = chance.skewed(u64::from(PODS)) as u32;
    let (remote, port) = match chance.below(100) {
        // One of some hundred services of others.
        0..8 => (v4([203, 0, 113, chance.skewed(200) as u8]), 443),
        // DNS, asked over TCP here: what is stored of it is alike.
        8..25 => (v4(address(0)), 53),
        _ => {
            let ports = [8_080, 5_432, 6_379, 9_090, 80];
            (v4(address(chance.skewed(u64::from(PODS)) as u32)), ports[chance.skewed(5) as usize])
        }
    };
    let accepted = number % 2 == 1;
    abi::FlowRecord {
        kind: if accepted { abi::kind::TCP_ACCEPTED } else { abi::kind::TCP_ESTABLISHED },
        at: u64::from(number),
        started: u64::from(number),
        netns: 1_000 + u64::from(source),
        cgroup: 10_000 + u64::from(source),
        socket: u64::from(number),
        sequence: 1,
        pid: source,
        comm: *b"worker\0\0\0\0\0\0\0\0\0\0",
        local: v4(address(source)),
        remote,
        requested: remote,
        local_port: if accepted { port } else { 40_000 },
        remote_port: if accepted { 40_000 } else { port },
        requested_port: if accepted { 40_000 } else { port },
        flags: abi::flag::ACTOR,
        detail: 0,
    }
}

fn object(value: &Value) -> Object {
    let kind = value["kind"].as_str().and_then(Kind::from_name).expect("a watched kind");
    convert::object(kind, value, &"bench".into())
}

fn objects() -> Vec<Object> {
    let mut objects = vec![json!({"kind": "Node", "metadata": {"name": "node-1"}})];
    for n in 0..10 {
        objects.push(json!({"kind": "Namespace", "metadata": {"name": format!("team-{n}")}}));
    }
    for pod in 0..PODS {
        let [a, b, c, d] = address(pod);
        let workload = pod % WORKLOADS;
        objects.push(json!({
            "kind": "Pod",
            "metadata": {"namespace": format!("team-{}", workload % 10),
                         "name": format!("service-{workload}-7c8d9f6b5-{pod:05}"), "uid": uid(pod),
                         "labels": {"app": format!("service-{workload}"), "pod-template-hash": "7c8d9f6b5"},
                         "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet",
                                              "name": format!("service-{workload}-7c8d9f6b5"), "uid": uid(pod), "controller": true}]},
            "spec": {"nodeName": "node-1"},
            "status": {"phase": "Running", "podIP": format!("{a}.{b}.{c}.{d}")},
        }));
    }
    for workload in 0..WORKLOADS {
        objects.push(json!({
            "kind": "NetworkPolicy",
            "metadata": {"namespace": format!("team-{}", workload % 10), "name": format!("service-{workload}")},
            "spec": {
                "podSelector": {"matchLabels": {"app": format!("service-{workload}")}},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [{"namespaceSelector": {}}], "ports": [{"port": 8080}, {"port": 53}]}, {"ports": [{"port": 5432}]}],
                "egress": [{"to": [{"namespaceSelector": {}}]},
                           {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}], "ports": [{"port": 443}]}],
            },
        }));
    }
    objects.iter().map(object).collect()
}

fn uid(pod: u32) -> String {
    format!("{pod:08x}-0000-4000-8000-{:012x}", u64::from(pod) * 0x9e37_79b9)
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
