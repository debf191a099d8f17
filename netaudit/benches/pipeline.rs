//! The agent's own speed on one core: drain → attribute → resolve → judge → account, from records as the kernel writes them.
//!
//! Sides run interleaved in rounds in one process, and each figure is printed beside the one it is compared with. Prints a
//! table on stderr and JSON on stdout. Started by `cargo xtask bench`.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use netaudit::{
    audit::{Auditor, Budget, Flow, Privacy, Settings, line::Telling},
    cluster::{Cluster, Kind, Object, Party},
    kernel::{Clock, Event, abi, decode, encode},
    model::{CgroupId, Direction, NetnsCookie, OpenConnection, Protocol, Timestamp},
    report::{
        flow_line,
        otlp::{self, Otlp},
    },
    store::flows::Columns,
    watch::convert,
};
use serde_json::{Value, json};

const ROUNDS: usize = 15;
const RECORDS: usize = 200_000;
const PODS: u32 = 250;
/// Connections that are open at once.
const OPEN: usize = 20_000;

fn main() {
    let records = records();
    let mut sides = [
        "decode",
        "pipeline",
        "pipeline, 10x policies",
        "pipeline, 10x pods",
        "pipeline + flow log",
        "pipeline + flow store",
        "pipeline + OTLP",
    ]
    .map(|name| (name, Vec::new()));
    let mut line = Vec::new();
    let mut columns = Columns::new("node-1".into());
    let mut otlp = Otlp::open(nowhere()).expect("an endpoint");
    let mut worlds = [auditor(PODS, 100), auditor(PODS, 100), auditor(PODS, 1_000), auditor(PODS * 10, 100)];
    let mut held = 0;
    for _ in 0..ROUNDS {
        sides[0].1.push(rate(|| records.iter().filter(|record| decoded(*record).is_some()).count()));
        let [plain, told, policies, pods] = &mut worlds;
        for (side, world) in [(1, plain), (2, policies), (3, pods)] {
            held += RECORDS - timed(&mut sides[side].1, || pipeline(world, &records, &mut |_| ()));
        }
        held += RECORDS
            - timed(&mut sides[4].1, || {
                pipeline(told, &records, &mut |telling| {
                    flow_line(telling, &mut line);
                    line.push(b'\n');
                    if line.len() > 1 << 20 {
                        line.clear();
                    }
                })
            });
        held += RECORDS
            - timed(&mut sides[5].1, || {
                pipeline(told, &records, &mut |telling| {
                    columns.push(telling);
                    if columns.len() == 4_096 {
                        drop(black_box(columns.finish().expect("columns")));
                    }
                })
            });
        // What its thread does with requests that nobody takes is not the loop's.
        held +=
            RECORDS - timed(&mut sides[6].1, || pipeline(told, &records, &mut |telling| otlp.push(telling)));
    }
    let evaluations = evaluations();
    let base = median(&sides[1].1);
    eprintln!("{:<28} {:>14} {:>10}", "one core", "per second", "ratio");
    for (name, rates) in &sides {
        eprintln!("{name:<28} {:>14.0} {:>10.2}", median(rates), median(rates) / base);
    }
    for (name, rate) in &evaluations {
        eprintln!("{name:<28} {rate:>14.0} {:>10.2}", rate / evaluations[0].1);
    }
    let look = look(&mut worlds[0]);
    eprintln!("{:<28} {look:>14.1} ms for {OPEN} open connections, judged again", "a look");
    eprintln!("held at the ends, as no time passes here: {held}");
    let flows: serde_json::Map<String, Value> =
        sides.iter().map(|(name, rates)| ((*name).to_owned(), json!(median(rates)))).collect();
    let evaluations: serde_json::Map<String, Value> =
        evaluations.iter().map(|(name, rate)| ((*name).to_owned(), json!(rate))).collect();
    println!(
        "{}",
        json!({"flows_per_second": flows, "evaluations_per_second": evaluations, "look_milliseconds": look, "held": held})
    );
}

/// Work items per second.
fn rate(work: impl FnOnce() -> usize) -> f64 {
    let start = Instant::now();
    let done = black_box(work());
    done as f64 / start.elapsed().as_secs_f64()
}

/// Does work, and adds how many items of it were done in a second. Returns how many were.
fn timed(rates: &mut Vec<f64>, work: impl FnOnce() -> usize) -> usize {
    let mut done = 0;
    rates.push(rate(|| {
        done = work();
        done
    }));
    done
}

/// A receiver of OTLP that nobody is: what waits for it is bounded, and then let go.
fn nowhere() -> otlp::Settings {
    otlp::Settings {
        endpoint: "http://127.0.0.1:1".to_owned(),
        headers: None,
        only_findings: false,
        node: "node-1".to_owned(),
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn decoded(record: &[u8]) -> Option<Event> {
    decode(black_box(record), &Clock::fixed(0)).ok()
}

fn pipeline(auditor: &mut Auditor, records: &[[u8; 128]], tell: &mut dyn FnMut(&Telling<'_>)) -> usize {
    let mut flows: Vec<Flow> = Vec::new();
    let mut judged = 0;
    let now = Timestamp::from_seconds(1_000);
    for batch in records.chunks(4_096) {
        for record in batch {
            if let Some(Event::Flow(seen)) = decoded(record) {
                auditor.observe(&seen, now, &mut flows);
            }
        }
        judged += flows.len();
        for flow in flows.drain(..) {
            let cluster = auditor.cluster();
            let privacy = Privacy::TELLS_ALL;
            tell(&Telling { flow: &flow, cluster, node: "node-1", correction: 0, privacy });
            black_box(&flow);
        }
    }
    judged
}

/// Milliseconds that judging the open connections of one look takes, all of which were met before.
fn look(auditor: &mut Auditor) -> f64 {
    let open: Vec<OpenConnection> = records()
        .iter()
        .take(OPEN)
        .filter_map(|record| match decoded(record)? {
            Event::Flow(seen) => {
                let looked = Timestamp::from_seconds(1_000);
                Some(OpenConnection { seen, looked, is_told: true, unknown_end: None })
            }
            _ => None,
        })
        .collect();
    let mut flows = Vec::new();
    let mut round = || {
        let begun = Instant::now();
        auditor.begin_look();
        open.iter().for_each(|open| auditor.observe_open(open, &mut flows));
        auditor.judge_look(usize::MAX, &mut |_| None, &mut flows);
        begun.elapsed().as_secs_f64() * 1e3
    };
    round();
    let rounds: Vec<f64> = (0..ROUNDS).map(|_| round()).collect();
    assert_eq!(auditor.open_connections().counts().total(), open.len() as u64);
    median(&rounds)
}

fn address(pod: u32) -> [u8; 4] {
    let [_, a, b, c] = (pod + 1).to_be_bytes();
    [10, a, b, c]
}

/// Connections between pods of one node, in both directions, as many to Services as a mesh-less cluster has, and some out.
fn records() -> Vec<[u8; 128]> {
    let v4 = |octets: [u8; 4]| abi::Address::v4(u32::from_ne_bytes(octets));
    (0..RECORDS as u32)
        .map(|n| {
            let source = n.wrapping_mul(2_654_435_761) % PODS;
            let peer = (source + 1 + n % 7) % PODS;
            let remote = if n % 10 == 9 { v4([203, 0, 113, (n % 250) as u8]) } else { v4(address(peer)) };
            let accepted = n % 2 == 1;
            encode(&abi::FlowRecord {
                kind: if accepted { abi::kind::TCP_ACCEPTED } else { abi::kind::TCP_ESTABLISHED },
                at: u64::from(n),
                started: u64::from(n),
                netns: 1_000 + u64::from(source),
                cgroup: 10_000 + u64::from(source),
                socket: u64::from(n),
                sequence: 1,
                pid: n,
                comm: *b"bench\0\0\0\0\0\0\0\0\0\0\0",
                local: v4(address(source)),
                remote,
                requested: remote,
                local_port: if accepted { 8_080 } else { 40_000 },
                remote_port: if accepted { 40_000 } else { 8_080 },
                requested_port: if accepted { 40_000 } else { 8_080 },
                flags: abi::flag::ACTOR,
                detail: 0,
            })
        })
        .collect()
}

fn object(value: &Value) -> Object {
    let kind = value["kind"].as_str().and_then(Kind::from_name).expect("a watched kind");
    convert::object(kind, value, &"bench".into())
}

/// Pods of 50 applications in 10 namespaces, and policies that each let some applications reach one.
fn objects(pods: u32, policies: u32) -> Vec<Object> {
    let mut objects = Vec::new();
    for n in 0..10 {
        objects.push(json!({"kind": "Namespace", "metadata": {"name": format!("ns-{n}")}}));
    }
    objects.push(json!({"kind": "Node", "metadata": {"name": "node-1"}}));
    for pod in 0..pods {
        let [a, b, c, d] = address(pod);
        objects.push(json!({
            "kind": "Pod",
            "metadata": {"namespace": format!("ns-{}", pod % 10), "name": format!("pod-{pod}"), "uid": uid(pod),
                         "labels": {"app": format!("app-{}", pod % 50), "pod-name": format!("pod-{pod}")}},
            "spec": {"nodeName": "node-1"},
            "status": {"phase": "Running", "podIP": format!("{a}.{b}.{c}.{d}")},
        }));
    }
    for policy in 0..policies {
        let app = |n: u32| {
            json!({"podSelector": {"matchLabels": {"app": format!("app-{}", n % 50)}},
                                  "namespaceSelector": {}})
        };
        objects.push(json!({
            "kind": "NetworkPolicy",
            "metadata": {"namespace": format!("ns-{}", policy % 10), "name": format!("policy-{policy}")},
            "spec": {
                "podSelector": {"matchLabels": {"app": format!("app-{}", policy % 50)}},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [app(policy + 1), app(policy + 2)], "ports": [{"port": 8080}]}],
                "egress": [{"to": [app(policy + 3), app(policy + 4)], "ports": [{"port": 8080}]},
                           {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}]}],
            },
        }));
    }
    objects.iter().map(object).collect()
}

fn uid(pod: u32) -> String {
    format!("{pod:08x}-0000-4000-8000-000000000000")
}

fn auditor(pods: u32, policies: u32) -> Auditor {
    let mut auditor = Auditor::new(Settings {
        node: "node-1".into(),
        run: "bench".into(),
        host: NetnsCookie(1),
        budget: Budget::default(),
        unused_after: Duration::from_secs(60),
        unused_coverage: 0.99,
    });
    auditor.cluster_mut().reset_all(objects(pods, policies), Timestamp(0));
    for pod in 0..PODS {
        let cgroup = CgroupId(10_000 + u64::from(pod));
        auditor.attribution_mut().cgroup(cgroup, &format!("/kubepods/burstable/pod{}/c", uid(pod)));
        auditor.attribution_mut().pair(NetnsCookie(1_000 + u64::from(pod)), cgroup);
    }
    auditor.set_ready();
    auditor.watch_rules(Timestamp(0));
    auditor
}

/// Verdicts per second: of a few pairs again and again, and of pairs and ports that never came before.
fn evaluations() -> [(&'static str, f64); 2] {
    const COUNT: usize = 500_000;
    let mut cluster = Cluster::new();
    cluster.reset_all(objects(PODS, 1_000), Timestamp(0));
    let mut pods: Vec<_> = cluster.pods().map(|(id, pod)| (pod.name.clone(), id)).collect();
    pods.sort();
    let pods: Vec<_> = pods.into_iter().map(|(_, id)| id).collect();
    let mut verdicts = |spread: usize| {
        rate(|| {
            (0..COUNT)
                .filter(|n| {
                    let subject = pods[n % pods.len()];
                    let peer = pods[(n * 7 + 1) % pods.len()];
                    let port = (n / pods.len() % spread) as u16 + 1;
                    let verdict =
                        cluster.verdict(Direction::Egress, subject, Party::Pod(peer), Protocol::Tcp, port);
                    black_box(&verdict).as_str() != "never"
                })
                .count()
        })
    };
    [("verdicts, repeated", verdicts(1)), ("verdicts, ever new ports", verdicts(60_000))]
}
