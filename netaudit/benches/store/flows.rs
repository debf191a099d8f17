//! Flows of a node's pods with one another, with DNS and with addresses outside, as the auditor judges them: what benchmarks of the
//! flow store write.

use std::{net::SocketAddr, path::Path, time::Duration};

use netaudit::{
    audit::{Auditor, Budget, Flow, Settings},
    cluster::{Kind, Object},
    kernel::{Clock, Event, abi, decode, encode},
    model::{CgroupId, Direction, NetnsCookie, Protocol, Timestamp},
    store::{
        bucket::Bucket,
        flows::{Beginning, FlowStore, Lost, Retention},
        history::History,
    },
    watch::{self, convert},
};
use serde_json::{Value, json};

pub const PODS: u32 = 250;
pub const WORKLOADS: u32 = 60;
/// 2026-01-01T00:00:00Z.
pub const BEGIN: i64 = 1_767_225_600_000_000_000;
/// A day's 100 million.
pub const PACE_NS: u64 = 864_000;
/// The agent run that tells them.
pub const RUN: &str = "node-1-19b7a3c2e11";

/// A small generator of numbers that look like chance: the same in every run.
pub struct Chance(pub u64);

impl Chance {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Few of many come often.
    pub fn skewed(&mut self, limit: u64) -> u64 {
        let [a, b, c] = [self.below(limit), self.below(limit), self.below(limit)];
        a.min(b).min(c)
    }
}

/// The node's store, of which nothing is removed.
pub fn open(store: &Path, bucket: Option<Bucket>) -> FlowStore {
    let begin = Beginning {
        node: "node-1".into(),
        run: RUN.into(),
        from: Timestamp(BEGIN),
        lost: Lost::default(),
        goes_on: false,
    };
    let forever = Retention { age: Duration::from_secs(1 << 32), bytes: u64::MAX };
    FlowStore::open(store, forever, bucket, &begin).expect("a store")
}

/// Tells the history what an object is like.
pub fn tell(history: &mut History, value: &Value, at: i64) {
    history.seen(&watch::content(kind(value), value).expect("an object with a name"), Timestamp(at));
}

fn kind(value: &Value) -> Kind {
    value["kind"].as_str().and_then(Kind::from_name).expect("a watched kind")
}

/// The same flow at another time, of another connection.
pub fn vary(template: &Flow, at: i64, number: u64, chance: &mut Chance) -> Flow {
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
pub fn templates() -> (Auditor, Vec<Flow>) {
    let mut auditor = Auditor::new(Settings {
        node: "node-1".into(),
        run: RUN.into(),
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

pub fn object(value: &Value) -> Object {
    convert::object(kind(value), value, &"bench".into())
}

fn objects() -> Vec<Object> {
    values().iter().map(object).collect()
}

/// The objects of the node.
pub fn values() -> Vec<Value> {
    let mut objects = vec![json!({"kind": "Node", "metadata": {"name": "node-1"}})];
    for n in 0..10 {
        objects.push(json!({"kind": "Namespace", "metadata": {"name": format!("team-{n}")}}));
    }
    objects.extend((0..PODS).map(|pod| self::pod(pod, 0)));
    objects.extend((0..WORKLOADS).map(|workload| policy(workload, 5_432)));
    objects
}

/// A pod whose labels have been changed so often.
pub fn pod(pod: u32, version: u32) -> Value {
    let [a, b, c, d] = address(pod);
    let workload = pod % WORKLOADS;
    json!({
        "kind": "Pod",
        "metadata": {"namespace": format!("team-{}", workload % 10),
                     "name": format!("service-{workload}-7c8d9f6b5-{pod:05}"), "uid": uid(pod),
                     "labels": {"app": format!("service-{workload}"), "pod-template-hash": "7c8d9f6b5", "version": format!("v{version}")},
                     "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet",
                                          "name": format!("service-{workload}-7c8d9f6b5"), "uid": uid(pod), "controller": true}]},
        "spec": {"nodeName": "node-1"},
        "status": {"phase": "Running", "podIP": format!("{a}.{b}.{c}.{d}")},
    })
}

/// The policy of a workload, that lets anybody in at this port.
pub fn policy(workload: u32, port: u16) -> Value {
    json!({
        "kind": "NetworkPolicy",
        "metadata": {"namespace": format!("team-{}", workload % 10), "name": format!("service-{workload}")},
        "spec": {
            "podSelector": {"matchLabels": {"app": format!("service-{workload}")}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"namespaceSelector": {}}], "ports": [{"port": 8080}, {"port": 53}]}, {"ports": [{"port": port}]}],
            "egress": [{"to": [{"namespaceSelector": {}}]},
                       {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}], "ports": [{"port": 443}]}],
        },
    })
}

fn uid(pod: u32) -> String {
    format!("{pod:08x}-0000-4000-8000-{:012x}", u64::from(pod) * 0x9e37_79b9)
}
