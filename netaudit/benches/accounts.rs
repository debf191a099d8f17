//! What the agent remembers, at its bounds: very many rules with a long history, very many workloads that are soon gone, and a scan
//! of ports. Bytes are those of the heap, counted; milliseconds are of one core. Prints a table on stderr and JSON on stdout.
//! Started by `cargo xtask bench accounts`.

#[path = "policy/heap.rs"]
#[allow(dead_code, reason = "another benchmark counts calls as well")]
mod heap;

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use netaudit::{
    audit::{
        Auditor, Budget, Settings,
        usage::{Rows, Run, RunKey, Usage, Watched},
    },
    cluster::{Kind, Object},
    kernel::{Clock, Event, abi, decode, encode},
    metrics::{AgentState, Format, render},
    model::{
        Action, Cause, CgroupId, Decision, Direction, Elements, NetnsCookie, PolicyId, RuleId, RuleMatch,
        Timestamp, Verdict,
    },
    store::document,
    watch::convert,
};
use serde_json::{Value, json};

#[global_allocator]
static HEAP: heap::Counting = heap::Counting;

const RULES: usize = 100_000;
/// Windows in two weeks, where a rule must be watched for one.
const WINDOWS: i64 = 49;
const WORKLOADS: u32 = 10_000;
const PORTS: u32 = 65_535;

fn main() {
    let results = json!({"rules": rules(), "workloads": workloads()});
    println!("{results}");
}

fn say(what: &str, value: f64, unit: &str) -> Value {
    eprintln!("{what:<66} {value:>10.1} {unit}");
    json!({"what": what, "value": value, "unit": unit})
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn milliseconds<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let begun = Instant::now();
    let result = black_box(work());
    (result, begun.elapsed().as_secs_f64() * 1e3)
}

/// A hundred thousand rules, all of which concern this agent.
fn rules() -> Vec<Value> {
    let watched: Vec<Watched> = (0..RULES).map(watched).collect();
    let verdicts: Vec<_> = watched.iter().map(verdict).collect();
    let before = heap::live();
    let run = RunKey { node: "node-1".into(), run: "run".into() };
    let window = Duration::from_secs(7 * 3_600);
    let mut usage = Usage::new(run, window).with_series(Budget::default().rules);
    let (_, first) = milliseconds(|| usage.watch(watched.iter().cloned(), Timestamp(0)));
    heap::take_peak();
    let mut said = vec![
        say("100,000 rules: watched for the first time", first, "ms"),
        say("100,000 rules: without a history", mib(heap::live() - before), "MiB"),
    ];
    let (mut tick, mut written) = (0.0, 0);
    for number in 1..=WINDOWS {
        let now = Timestamp::from_seconds(number * 7 * 3_600);
        for verdict in verdicts.iter().step_by(10) {
            usage.credit(verdict, 1, now.minus(window)..=now.minus(window), None);
        }
        tick = milliseconds(|| usage.tick(now)).1;
        written = usage.take_closed().into_iter().map(told).map(|rows| document::write(&rows).len()).sum();
    }
    said.push(say("100,000 rules: with a history of two weeks", mib(heap::live() - before), "MiB"));
    said.push(say("100,000 rules: the end of a window", tick, "ms"));
    said.push(say("100,000 rules: a window on disk", mib(written), "MiB"));
    said.push(say(
        "100,000 rules: at most, while a window is written",
        mib(heap::take_peak() - before),
        "MiB",
    ));
    let now = Timestamp::from_seconds(WINDOWS * 7 * 3_600 + 1);
    said.push(say("100,000 rules: a second passes", milliseconds(|| usage.tick(now)).1, "ms"));
    let again = milliseconds(|| usage.watch(watched.iter().cloned(), now)).1;
    said.push(say("100,000 rules: objects changed", again, "ms"));
    said
}

/// The rows with the run that tells of them.
fn told(mut rows: Rows) -> Rows {
    let run = Run {
        written: Timestamp(0),
        from: Timestamp(0),
        sequence: 0,
        boot: "boot".into(),
        line: 0,
        wall: 0,
        ended: false,
        losses: 0,
    };
    rows.add_run(RunKey { node: "node-1".into(), run: "run".into() }, run);
    rows
}

fn watched(number: usize) -> Watched {
    let policy = PolicyId {
        kind: "NetworkPolicy",
        namespace: format!("ns-{}", number / 1_000).into(),
        name: format!("policy-{}", number / 10).into(),
    };
    let rule = RuleId {
        policy: policy.into(),
        direction: Direction::Egress,
        hash: number as u64,
        index: (number % 10) as u32,
        action: Action::Allow,
        name: "".into(),
    };
    Watched {
        schedule: Default::default(),
        rule: rule.into(),
        summary: format!("to app=app-{number} TCP 8080").into(),
        possible: true,
        certain: true,
        elements: [].into(),
        observable: true,
        here: true,
        selected: 3,
        observed: 3,
        elsewhere: 5,
    }
}

fn verdict(watched: &Watched) -> std::sync::Arc<Verdict> {
    let matched =
        RuleMatch { rule: watched.rule.clone(), peer: None, port: None, elements: Elements::default() };
    Verdict::plain(Decision::Allowed(Cause::Rules([matched].into()))).into()
}

/// Workloads that each try one thing that is denied and are gone, and one pod that tries all ports.
fn workloads() -> Vec<Value> {
    let mut auditor = auditor();
    let mut flows = Vec::new();
    let mut clock = 0;
    let mut seconds = || {
        // Longer than an address is waited for that may become a pod's.
        clock += 5;
        Timestamp::from_seconds(clock)
    };
    let before = heap::live();
    for number in 0..WORKLOADS {
        let now = seconds();
        let object = job_pod(number);
        let key = object.key().expect("a pod has a name");
        auditor.cluster_mut().apply(object, now);
        let cgroup = CgroupId(10_000 + u64::from(number));
        auditor.attribution_mut().cgroup(cgroup, &format!("/kubepods/burstable/pod{}/c", uid(number)));
        auditor.attribution_mut().pair(NetnsCookie(1_000 + u64::from(number)), cgroup);
        observe(&mut auditor, number, 5_432, now, &mut flows);
        let now = seconds();
        auditor.settle(now, &mut flows);
        auditor.tick(now, &mut flows);
        auditor.watch_rules(now);
        assert!(flows.iter().any(|flow| flow.finding.is_some()), "workload {number} was denied nothing");
        flows.clear();
        auditor.attribution_mut().cgroup_gone(cgroup, now);
        auditor.cluster_mut().delete(&key, now);
    }
    let mut said = vec![say("10,000 workloads that came and went", mib(heap::live() - before), "MiB")];
    said.push(say("series of violations", auditor.violations().series().len() as f64, ""));
    let before = heap::live();
    let now = seconds();
    auditor.cluster_mut().apply(job_pod(WORKLOADS), now);
    let cgroup = CgroupId(10_000 + u64::from(WORKLOADS));
    auditor.attribution_mut().cgroup(cgroup, &format!("/kubepods/burstable/pod{}/c", uid(WORKLOADS)));
    auditor.attribution_mut().pair(NetnsCookie(1_000 + u64::from(WORKLOADS)), cgroup);
    for port in 1..=PORTS {
        observe(&mut auditor, WORKLOADS, port as u16, now, &mut flows);
    }
    let now = seconds();
    auditor.settle(now, &mut flows);
    auditor.tick(now, &mut flows);
    assert_eq!(flows.len(), PORTS as usize);
    drop(flows);
    said.push(say("65,535 ports tried by one pod", mib(heap::live().saturating_sub(before)), "MiB"));
    said.push(say("series of violations", auditor.violations().series().len() as f64, ""));
    said.push(say("violations in folded series", auditor.violations().folded() as f64, ""));
    auditor.usage_mut().settle();
    let (text, took) = milliseconds(|| scrape(&auditor, now));
    said.push(say("a scrape", took, "ms"));
    said.push(say("a scrape", mib(text.len()), "MiB"));
    said
}

fn auditor() -> Auditor {
    let mut auditor = Auditor::new(Settings {
        node: "node-1".into(),
        run: "bench".into(),
        host: NetnsCookie(1),
        budget: Budget::default(),
        unused_after: Duration::from_secs(60),
        unused_coverage: 0.99,
    });
    let deny = json!({
        "kind": "NetworkPolicy", "metadata": {"namespace": "ci", "name": "deny-all"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
    });
    let objects = [
        json!({"kind": "Namespace", "metadata": {"name": "ci"}}),
        json!({"kind": "Node", "metadata": {"name": "node-1"}}),
        deny,
    ];
    auditor.cluster_mut().reset_all(objects.iter().map(object).collect(), Timestamp(0));
    auditor.set_ready();
    auditor.watch_rules(Timestamp(0));
    auditor
}

fn object(value: &Value) -> Object {
    let kind = value["kind"].as_str().and_then(Kind::from_name).expect("a watched kind");
    convert::object(kind, value, &"bench".into())
}

fn uid(number: u32) -> String {
    format!("{number:08x}-0000-4000-8000-000000000000")
}

fn address(number: u32) -> [u8; 4] {
    let [_, a, b, c] = (number + 1).to_be_bytes();
    [10, a, b, c]
}

fn job_pod(number: u32) -> Object {
    let [a, b, c, d] = address(number);
    object(&json!({
        "kind": "Pod",
        "metadata": {"namespace": "ci", "name": format!("build-{number}-x"), "uid": uid(number),
                     "labels": {"job-name": format!("build-{number}")},
                     "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": format!("build-{number}"),
                                          "uid": uid(number), "controller": true}]},
        "spec": {"nodeName": "node-1"},
        "status": {"phase": "Running", "podIP": format!("{a}.{b}.{c}.{d}")},
    }))
}

fn observe(
    auditor: &mut Auditor,
    pod: u32,
    port: u16,
    now: Timestamp,
    flows: &mut Vec<netaudit::audit::Flow>,
) {
    let v4 = |octets: [u8; 4]| abi::Address::v4(u32::from_ne_bytes(octets));
    let at = u64::try_from(now.0).unwrap_or(0);
    let record = encode(&abi::FlowRecord {
        kind: abi::kind::TCP_ESTABLISHED,
        at,
        started: at,
        netns: 1_000 + u64::from(pod),
        cgroup: 10_000 + u64::from(pod),
        socket: u64::from(pod) << 16 | u64::from(port),
        sequence: 1,
        pid: pod,
        comm: *b"bench\0\0\0\0\0\0\0\0\0\0\0",
        local: v4(address(pod)),
        remote: v4([203, 0, 113, 9]),
        requested: v4([203, 0, 113, 9]),
        local_port: 40_000,
        remote_port: port,
        requested_port: port,
        flags: abi::flag::ACTOR,
        detail: 0,
    });
    let Ok(Event::Flow(seen)) = decode(&record, &Clock::fixed(0)) else { panic!("no flow record") };
    auditor.observe(&seen, now, flows);
}

fn scrape(auditor: &Auditor, now: Timestamp) -> String {
    let state = AgentState {
        auditor,
        losses: &[],
        features: &[],
        drops: &[],
        dns: &[],
        lookups: None,
        watches: &[],
        usage_faults: [("write failed", 0), ("damaged", 0), ("upload failed", 0)],
        flow_store: None,
        flow_bucket: None,
        events: None,
        reports: None,
        accepted_valid: None,
        records: 0,
        record_counts: &[],
        started: Timestamp(0),
        now,
        correction: 0,
    };
    render(&state, Format::OpenMetrics)
}
