//! An agent without a kernel, of any namespaces: what it learns it judges by, and tells the history.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    num::NonZeroU64,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use netaudit::{
    audit::{Auditor, Budget, DnsServers, Privacy, Settings, line::Telling},
    cluster::{Kind, ObjectKey},
    model::{
        Answer, CgroupId, Direction, DnsAnswer, Folded, NetnsCookie, Observation, Outcome, Protocol,
        Timestamp,
    },
    store::flows::{Beginning, FlowStore, Lost, Retention},
    watch::{self, convert},
};
use serde_json::{Value, json};

use crate::{
    audit::{egress, ingress},
    dns::message::{A, AAAA, ASKED, Message},
};

/// 2026-01-01T00:00:00Z.
const BEGIN: i64 = 1_767_225_600;
const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);

pub fn t(seconds: i64) -> Timestamp {
    Timestamp::from_seconds(BEGIN + seconds)
}

/// A UID that looks like one.
pub fn uid(namespace: &str, name: &str) -> String {
    let text = format!("{namespace}/{name}");
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}-{:04x}", text.len())
}

/// A connection that one end's node tells of.
#[derive(Clone, Copy)]
pub struct Flow<'a> {
    pub direction: Direction,
    /// The pod that tells, as `NAMESPACE-NAME`.
    pub uid: &'a str,
    pub own: &'a str,
    pub peer: &'a str,
    pub port: u16,
    pub outcome: Outcome,
    pub protocol: Protocol,
    /// How many it stands for.
    pub count: u64,
}

pub struct Agent {
    node: &'static str,
    path: PathBuf,
    store: FlowStore,
    pub auditor: Auditor,
    pub privacy: Privacy,
    numbers: BTreeMap<String, u64>,
    now: i64,
    sequence: u64,
}

impl Agent {
    pub fn new(node: &'static str, path: &Path, run: &str) -> Result<Self> {
        let begin = Beginning {
            node: node.into(),
            run: run.into(),
            from: t(0),
            lost: Lost::default(),
            goes_on: false,
        };
        let mut auditor = Auditor::new(Settings {
            node: node.into(),
            run: run.into(),
            host: NetnsCookie(1),
            budget: Budget::default(),
            unused_after: Duration::from_secs(60),
            unused_coverage: 0.99,
        });
        auditor.set_sees_names(DnsServers { namespaces: vec!["kube-system".into()], addresses: Vec::new() });
        let store = FlowStore::open(path, Retention { age: FOREVER, bytes: u64::MAX }, None, &begin)?;
        let path = path.to_owned();
        Ok(Self {
            node,
            path,
            store,
            auditor,
            privacy: Privacy::default(),
            numbers: BTreeMap::new(),
            now: 10,
            sequence: 0,
        })
    }

    /// An object that both the verdicts and the history go by.
    pub fn apply(&mut self, value: &Value, at: i64) {
        let kind = value["kind"].as_str().and_then(Kind::from_name).expect("a watched kind");
        let content = watch::content(kind, value).expect("an object with a name");
        self.store.history_mut().seen(&content, t(at));
        self.auditor.cluster_mut().apply(convert::object(kind, value, &Arc::from("test")), t(at));
        if kind == Kind::Pod
            && value["spec"]["nodeName"] == self.node
            && value["spec"]["hostNetwork"] != json!(true)
        {
            let uid = value["metadata"]["uid"].as_str().unwrap_or_default();
            let name = |field: &str| value["metadata"][field].as_str().unwrap_or_default();
            let number = self.number(&format!("{}-{}", name("namespace"), name("name")));
            let attribution = self.auditor.attribution_mut();
            attribution.cgroup(CgroupId(number), &format!("/kubepods/pod{uid}/c"));
            attribution.pair(NetnsCookie(number), CgroupId(number));
        }
    }

    pub fn delete(&mut self, kind: Kind, namespace: &str, name: &str, at: i64) {
        let key = ObjectKey::new(kind, namespace, name);
        self.store.history_mut().deleted(&key, t(at));
        self.auditor.cluster_mut().delete(&key, t(at));
    }

    pub fn ready(&mut self, at: i64) {
        Kind::ALL.into_iter().for_each(|kind| self.store.history_mut().listed(kind, t(at)));
        self.auditor.set_ready();
    }

    fn number(&mut self, uid: &str) -> u64 {
        let next = 100 + self.numbers.len() as u64;
        *self.numbers.entry(uid.to_owned()).or_insert(next)
    }

    /// Goes on to this time.
    pub fn at(&mut self, seconds: i64) {
        self.now = seconds;
    }

    /// A server of kube-system tells this pod a name.
    pub fn names(&mut self, uid: &str, name: &str, address: &str) {
        let netns = self.number(uid);
        let is_v4 = address.parse::<IpAddr>().expect("an address").is_ipv4();
        let payload =
            Message::answer(name, if is_v4 { A } else { AAAA }).address_of(&ASKED, address, 300).0.into();
        self.auditor.observe_dns(&DnsAnswer {
            at: t(self.now),
            netns: NetnsCookie(netns),
            server: "10.0.9.53".parse().expect("an address"),
            payload,
            is_cut: false,
            over_loopback: false,
        });
    }

    pub fn see(&mut self, flow: Flow<'_>) {
        let number = self.number(flow.uid);
        self.sequence += 1;
        let socket = |ip: &str, port: u16| SocketAddr::new(ip.parse().expect("an address"), port).to_string();
        let seen = match flow.direction {
            Direction::Egress => {
                egress(number, number, &socket(flow.own, 40_000), &socket(flow.peer, flow.port))
            }
            Direction::Ingress => {
                ingress(number, number, &socket(flow.own, flow.port), &socket(flow.peer, 40_000))
            }
        };
        let is_answered = flow.outcome == Outcome::Answered;
        let seen = Observation {
            at: t(self.now),
            socket: self.sequence,
            protocol: flow.protocol,
            outcome: if is_answered { Outcome::Sent } else { flow.outcome },
            answered: flow.outcome == Outcome::Established,
            folded: NonZeroU64::new(flow.count)
                .filter(|count| count.get() > 1)
                .map(|count| Folded { count, first: t(self.now) }),
            ..seen
        };
        let mut flows = Vec::new();
        match seen.folded {
            Some(_) => self.auditor.observe_folded(&[seen], seen.at, &mut flows),
            None => self.auditor.observe(&seen, seen.at, &mut flows),
        }
        if is_answered {
            let answer = Answer {
                at: seen.at,
                socket: seen.socket,
                sequence: seen.sequence,
                outcome: Outcome::Answered,
                errno: None,
            };
            self.auditor.observe_answer(&answer, seen.at, &mut flows);
        }
        // Of a datagram an answer may come for some time.
        let wait = if flow.outcome == Outcome::Sent { 600 } else { 30 };
        let later = seen.at.plus(Duration::from_secs(wait));
        self.auditor.settle(later, &mut flows);
        self.auditor.tick(later, &mut flows);
        assert!(!flows.is_empty(), "a flow is told: {seen:?}");
        for flow in &flows {
            let (cluster, privacy) = (self.auditor.cluster(), &self.privacy);
            self.store.push(&Telling { flow, cluster, node: self.node, correction: 0, privacy });
        }
    }

    /// This pod connects, and is answered.
    pub fn connects(&mut self, uid: &str, own: &str, peer: &str, port: u16) {
        self.see(Flow { direction: Direction::Egress, uid, own, peer, port, ..tcp(Outcome::Established) });
    }

    /// This pod accepts.
    pub fn accepts(&mut self, uid: &str, own: &str, peer: &str, port: u16) {
        self.see(Flow { direction: Direction::Ingress, uid, own, peer, port, ..tcp(Outcome::Accepted) });
    }

    /// This pod asks a datagram's question, and is answered.
    pub fn asks(&mut self, uid: &str, own: &str, peer: &str, port: u16) {
        let udp = Flow { protocol: Protocol::Udp, ..tcp(Outcome::Answered) };
        self.see(Flow { direction: Direction::Egress, uid, own, peer, port, ..udp });
    }

    /// It is killed: what was written by then is there, and no more.
    pub fn killed(mut self, at: i64) -> Result<()> {
        self.store.tick(t(at), Lost::default());
        let begun = std::time::Instant::now();
        while self.store.done() < self.store.handed() {
            assert!(begun.elapsed() < Duration::from_secs(20), "it is on the disk");
            std::thread::sleep(Duration::from_millis(20));
        }
        // Until when it is complete is written down every ten seconds, for which no test waits.
        for directory in ["open", "open-objects"] {
            for path in fs::read_dir(self.path.join(directory))?.flatten().map(|file| file.path()) {
                if path.extension().is_some_and(|it| it == "json") {
                    let mut mark: Value = serde_json::from_slice(&fs::read(&path)?)?;
                    mark["until"] = json!(t(at));
                    fs::write(&path, mark.to_string())?;
                }
            }
        }
        std::mem::forget(self);
        Ok(())
    }

    /// Everything until then is on the disk.
    pub fn finish(mut self, until: i64) {
        self.store.tick(t(until), Lost::default());
        assert_eq!(self.store.finish(t(until), Lost::default(), Duration::from_secs(10)), 0);
        let lock = fs::File::open(self.path.join("lock")).expect("a lock");
        lock.lock().expect("the lock");
    }
}

pub fn tcp(outcome: Outcome) -> Flow<'static> {
    Flow {
        direction: Direction::Egress,
        uid: "",
        own: "",
        peer: "",
        port: 0,
        outcome,
        protocol: Protocol::Tcp,
        count: 1,
    }
}
