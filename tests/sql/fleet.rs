//! The flows of a small cluster in two agents' stores, put together as in a bucket, and what is known of each flow beside it.

use std::{fs, net::SocketAddr, num::NonZeroU64, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use netaudit::{
    audit::{
        Auditor, Budget, DnsServers, Flow, Privacy, Settings,
        line::Telling,
        usage::{Rows, Run},
    },
    cluster::{Kind, Object, ObjectKey},
    model::{
        Actor, CgroupId, Comm, Direction, DnsAnswer, Folded, NetnsCookie, Observation, Outcome, Protocol,
        Timestamp,
    },
    store::flows::{
        Beginning, Columns, FlowStore, Lost, Retention, Roller, files,
        schema::VERSION,
        segment::{self, Closed, Mark, Segment},
        table::{FLOWS, OBJECTS},
    },
    watch::{self, convert},
};
use serde_json::{Value, json};

use crate::dns::message::{A, ASKED, Message};

/// 2026-01-01T22:30:00Z: flows are from before the window until after it, over midnight.
const BEGIN: i64 = 1_767_306_600;
/// The window that is asked for.
pub const WINDOW: [&str; 2] = ["2026-01-01 23:00:00", "2026-01-02 01:00:00"];
/// How long all of it lasts, and what is between two rounds of flows, in seconds.
const LASTS: i64 = 10_800;
const STEP: i64 = 97;
/// Records that node-2 lost in each stretch of a store.
pub const LOST: u64 = 7;
const DNS: &str = "198.51.100.53";

/// Pods of a workload each, whose flows are denied: more than a list of the first 20 has room for.
const CLIENTS: u64 = 24;

/// A pod: the only one of its workload, but for web's two.
struct Place {
    name: String,
    app: String,
    ip: String,
    node: &'static str,
    /// Of its namespace's cookie and its cgroup.
    number: u64,
}

fn place(name: &str, ip: &str, node: &'static str, number: u64) -> Place {
    let app = name.rsplit_once('-').map_or(name, |(app, _)| app);
    Place { name: name.to_owned(), app: app.to_owned(), ip: ip.to_owned(), node, number }
}

fn places() -> Vec<Place> {
    let mut places = vec![
        place("web-0", "10.0.0.1", "node-1", 101),
        place("web-1", "10.0.0.4", "node-1", 104),
        place("job-0", "10.0.0.3", "node-1", 103),
        place("db-0", "10.0.0.2", "node-2", 102),
    ];
    let client = |number| place(&format!("client{number}-0"), &client_ip(number), "node-1", 200 + number);
    places.extend((0..CLIENTS).map(client));
    places
}

fn client_ip(number: u64) -> String {
    format!("10.0.0.{}", 100 + number)
}

/// Takes db-0's address when that is gone.
fn heir() -> Place {
    place("db-1", "10.0.0.2", "node-2", 105)
}

/// A flow in words, and which agent told it.
pub struct Told {
    pub node: &'static str,
    pub line: Value,
}

/// What two agents have stored.
pub struct Fleet {
    pub told: Vec<Told>,
    pub rows: Rows,
    /// What `policy_history` must answer.
    pub policy_history: Vec<Vec<Value>>,
}

struct Agent {
    node: &'static str,
    auditor: Auditor,
    columns: Columns,
    told: Vec<Told>,
    sockets: u64,
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_seconds(BEGIN + second)
}

fn object(value: &Value) -> Object {
    let kind = value["kind"].as_str().and_then(Kind::from_name).expect("a watched kind");
    convert::object(kind, value, &"test".into())
}

fn uid(name: &str) -> String {
    format!(
        "{:08x}-0000-4000-8000-000000000000",
        name.bytes().fold(7_u32, |sum, byte| sum.wrapping_mul(31) + u32::from(byte))
    )
}

fn pod(Place { name, app, ip, node, .. }: &Place) -> Object {
    let role = if app.starts_with("client") { "client" } else { app };
    object(&json!({
        "kind": "Pod",
        "metadata": {"namespace": "shop", "name": name, "uid": uid(name), "labels": {"app": role},
                     "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": app, "uid": uid(app),
                                          "controller": true}]},
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    }))
}

fn policy(name: &str, app: &str, direction: &str, rules: &Value) -> Object {
    let mut spec = json!({"podSelector": {"matchLabels": {"app": app}}, "policyTypes": [direction]});
    spec[direction.to_lowercase()] = rules.clone();
    object(&json!({"kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": name}, "spec": spec}))
}

fn objects() -> Vec<Object> {
    let to_db = json!({"podSelector": {"matchLabels": {"app": "db"}}});
    let outside = json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}});
    let mut objects = vec![
        object(&json!({"kind": "Namespace", "metadata": {"name": "shop"}})),
        object(&json!({"kind": "Node", "metadata": {"name": "node-1"}, "spec": {"podCIDR": "10.0.0.0/24"}})),
        object(&json!({"kind": "Node", "metadata": {"name": "node-2"}, "spec": {"podCIDR": "10.0.1.0/24"}})),
        // Two rules for one port of db, one that nothing needs, and one that nobody uses.
        policy(
            "web",
            "web",
            "Egress",
            &json!([{"to": [to_db], "ports": [{"port": 5432}]}, {"to": [to_db], "ports": [{"port": 5432}, {"port": 9187}]},
                    {"to": [outside], "ports": [{"port": 443}]}, {"ports": [{"port": 6379}]}]),
        ),
        policy("all", "web", "Egress", &json!([])),
        policy("clients", "client", "Egress", &json!([])),
        policy("db", "db", "Ingress", &json!([{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}])),
        // Goes away while agents run.
        policy("old", "job", "Ingress", &json!([{"ports": [{"port": 8080}]}])),
    ];
    objects.extend(places().iter().map(pod));
    objects
}

impl Agent {
    fn new(node: &'static str) -> Self {
        let mut auditor = Auditor::new(Settings {
            node: node.into(),
            run: format!("{node}-run").into(),
            host: NetnsCookie(1),
            budget: Budget::default(),
            unused_after: Duration::from_hours(24),
            unused_coverage: 0.99,
        });
        auditor.cluster_mut().reset_all(objects(), at(0));
        auditor.set_sees_names(DnsServers {
            namespaces: Vec::new(),
            addresses: vec![DNS.parse().expect("an address")],
        });
        auditor.set_ready();
        auditor.watch_rules(at(0));
        let mut agent =
            Self { node, auditor, columns: Columns::new(node.into()), told: Vec::new(), sockets: 0 };
        places().iter().for_each(|place| agent.starts(place));
        agent
    }

    fn starts(&mut self, Place { name, node, number, .. }: &Place) {
        if *node == self.node {
            let attribution = self.auditor.attribution_mut();
            attribution.cgroup(CgroupId(*number), &format!("/kubepods/pod{}/c", uid(name)));
            attribution.pair(NetnsCookie(*number), CgroupId(*number));
        }
    }

    /// A flow of the pod with this number at this time, as the kernel tells it.
    fn seen(
        &mut self,
        second: i64,
        number: u64,
        direction: Direction,
        ends: [&str; 2],
        outcome: Outcome,
    ) -> Observation {
        self.sockets += 1;
        let [local, remote] = ends.map(|end| end.parse::<SocketAddr>().expect("an address and a port"));
        Observation {
            // Not on a whole second: also what is finer than the store's microseconds.
            at: Timestamp(at(second).0 + 123_456_789),
            direction,
            protocol: Protocol::Tcp,
            netns: NetnsCookie(number),
            actor: Actor { cgroup: Some(CgroupId(number)), pid: 7, comm: Comm::new("server") },
            local,
            remote,
            requested: None,
            outcome,
            waited: Duration::ZERO,
            errno: None,
            answered: outcome != Outcome::Timeout,
            socket: self.sockets,
            sequence: 1,
            folded: None,
            handshake: None,
            translated: None,
            maybe_repeated: second % 5 == 0,
        }
    }

    fn observe(&mut self, seen: &Observation) {
        let mut flows = Vec::new();
        match seen.folded {
            Some(_) => self.auditor.observe_folded(&[*seen], seen.at, &mut flows),
            None => self.auditor.observe(seen, seen.at, &mut flows),
        }
        // What waits for its other end, for a drop or for a pod's object has waited for long enough.
        let later = seen.at.plus(Duration::from_secs(8));
        self.auditor.settle(later, &mut flows);
        self.auditor.tick(later, &mut flows);
        self.tell(&flows);
    }

    fn tell(&mut self, flows: &[Flow]) {
        for flow in flows {
            let telling = Telling {
                flow,
                cluster: self.auditor.cluster(),
                node: self.node,
                correction: 0,
                privacy: Privacy::TELLS_ALL,
            };
            self.columns.push(&telling);
            let line = serde_json::to_value(telling.line()).expect("a line");
            self.told.push(Told { node: self.node, line });
        }
    }

    /// What pods of this node do in a round.
    fn round(&mut self, second: i64) {
        use Direction::{Egress, Ingress};
        use Outcome::{Accepted, Established, Refused, Timeout};
        let db = if second < LASTS / 2 { 102 } else { heir().number };
        if self.node == "node-2" {
            self.one(second, db, Ingress, ["10.0.0.2:5432", "10.0.0.1:40000"], Accepted);
            self.one(second + 1, db, Ingress, ["10.0.0.2:5432", "10.0.0.3:40000"], Accepted);
            self.one(second + 2, db, Ingress, ["10.0.0.2:22", "203.0.113.66:40000"], Accepted);
            return;
        }
        let name = if second % 2 == 0 { "api.example.com" } else { "cdn.example.net" };
        let payload = Message::answer(name, A).address_of(&ASKED, "203.0.113.10", 60).0;
        self.auditor.observe_dns(&DnsAnswer {
            at: at(second - 30),
            netns: NetnsCookie(101),
            server: DNS.parse().expect("an address"),
            payload: payload.into(),
            is_cut: false,
            over_loopback: false,
        });
        self.one(second, 101, Egress, ["10.0.0.1:40000", "10.0.0.2:5432"], Established);
        self.one(second + 1, 104, Egress, ["10.0.0.4:40000", "10.0.0.2:9187"], Established);
        self.one(second + 2, 101, Egress, ["10.0.0.1:40001", "203.0.113.10:443"], Established);
        self.one(second + 3, 101, Egress, ["10.0.0.1:40002", "10.0.0.2:22"], Refused);
        self.one(second + 4, 104, Egress, ["10.0.0.4:40001", "10.0.0.3:80"], Established);
        self.one(second + 5, 103, Egress, ["10.0.0.3:40000", "10.0.0.2:5432"], Timeout);
        // Many addresses that come ever less often, so that a list of the first 20 is not one of all.
        for number in 0..30 {
            if second / STEP % (number + 1) == 0 {
                let address = format!("192.0.2.{number}:8443");
                self.one(second + 6, 104, Egress, ["10.0.0.4:40002", &address], Established);
            }
        }
        for number in 0..CLIENTS {
            if (second / STEP).cast_unsigned().is_multiple_of(number + 1) {
                let ends = [&*format!("{}:40000", client_ip(number)), "10.0.0.2:5432"];
                self.one(second + 7, 200 + number, Egress, ends, Refused);
            }
        }
        let mut fold = self.seen(second + 8, 101, Egress, ["10.0.0.1:0", "10.0.0.2:23"], Refused);
        let count = NonZeroU64::new(1_000 + second as u64).expect("more than none");
        fold.folded = Some(Folded { count, first: at(second) });
        self.observe(&fold);
    }

    fn one(&mut self, second: i64, number: u64, direction: Direction, ends: [&str; 2], outcome: Outcome) {
        let seen = self.seen(second, number, direction, ends, outcome);
        self.observe(&seen);
    }

    fn run(&mut self, store: &Path) -> Result<Rows> {
        for directory in [files::open_directory(store), files::flows_directory(store)] {
            fs::create_dir_all(directory)?;
        }
        let mut roller = Roller::new(store, &FLOWS)?;
        let (mut number, mut from) = (0, at(0));
        for second in (0..LASTS).step_by(STEP as usize) {
            if (LASTS / 2..LASTS / 2 + STEP).contains(&second) {
                let cluster = self.auditor.cluster_mut();
                cluster.delete(&ObjectKey::new(Kind::Pod, "shop", "db-0"), at(second - 60));
                cluster.delete(&ObjectKey::new(Kind::NetworkPolicy, "shop", "old"), at(second - 60));
                cluster.apply(pod(&heir()), at(second - 59));
                self.auditor.watch_rules(at(second - 59));
                self.starts(&heir());
            }
            self.round(second);
            if second / STEP % 40 == 39 || second + STEP >= LASTS {
                number += 1;
                let until = at(second + STEP - 1);
                self.roll(store, &mut roller, number, [from, until])?;
                from = until;
            }
        }
        Ok(self.rows())
    }

    /// Stores what was told until now, as agents do it, in a file for each hour.
    fn roll(
        &mut self,
        store: &Path,
        roller: &mut Roller,
        number: u64,
        [from, until]: [Timestamp; 2],
    ) -> Result<()> {
        let lost = if self.node == "node-2" { LOST } else { 0 };
        let mark = Mark {
            version: VERSION,
            node: self.node.to_owned(),
            run: format!("{}-run", self.node),
            number,
            from,
            until,
            lost_before: lost * (number - 1),
            lost_after: lost * number,
            kernel_lost: 0,
            holes: false,
        };
        let mut segment = Segment::create(&files::open_directory(store), &FLOWS, mark)?;
        segment.write(&self.columns.finish()?)?;
        roller.add(segment.close())?;
        roller.commit()?;
        Ok(())
    }

    /// What is known of the use of each rule.
    fn rows(&mut self) -> Rows {
        let usage = self.auditor.usage_mut();
        let run = Run {
            written: at(LASTS),
            from: at(0),
            sequence: 1,
            boot: "boot".into(),
            line: 0,
            wall: 0,
            ended: false,
            losses: 0,
        };
        let mut all = Rows::default();
        for mut rows in usage.take_closed().into_iter().chain([usage.rows()]) {
            rows.add_run(usage.run().clone(), run.clone());
            all.merge(rows);
        }
        all
    }
}

/// Tells a history as an agent does: a policy that was another one in an earlier run, and changes within the window and after it.
/// Returns what is known of it at the end of the window.
fn tell_history(store: &Path, node: &'static str) -> Result<Vec<Value>> {
    let content = |port: u16| {
        let spec = json!({"podSelector": {}, "egress": [{"ports": [{"port": port}]}]});
        let metadata =
            json!({"namespace": "shop", "name": "web", "uid": "u", "resourceVersion": port.to_string()});
        watch::content(Kind::NetworkPolicy, &json!({"metadata": metadata, "spec": spec})).context("a policy")
    };
    for (run, begin) in [("before", 0), ("run", 1_000)] {
        let beginning = Beginning {
            node: node.into(),
            run: format!("{node}-{run}").into(),
            from: at(begin),
            lost: Lost::default(),
            goes_on: false,
        };
        let forever = Retention { age: Duration::from_hours(1_000_000), bytes: u64::MAX };
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        let mut kept = loop {
            match FlowStore::open(store, forever, None, &beginning) {
                Ok(kept) => break kept,
                // The run before lets go of it within a moment.
                Err(error) if std::time::Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let history = kept.history_mut();
        history.seen(&content(if run == "before" { 1 } else { 2 })?, at(begin));
        history.listed(Kind::NetworkPolicy, at(begin + 1));
        match (run, node) {
            ("run", "node-1") => {
                history.seen(&content(3)?, at(5_000));
                history.seen(&content(4)?, at(LASTS - 100));
            }
            ("run", _) => history.deleted(&ObjectKey::new(Kind::NetworkPolicy, "shop", "web"), at(6_000)),
            _ => {}
        }
        kept.finish(at(begin + 900), Lost::default(), Duration::from_secs(10));
    }
    // Until the agent's threads have ended.
    let lock = fs::File::open(store.join("lock"))?;
    lock.lock()?;
    let open = OBJECTS.open_directory(store);
    let mut roller = Roller::new(store, &OBJECTS)?;
    for path in segment::list(&open)? {
        let mark = segment::read_mark(&path)?.context("what is known of a segment")?;
        roller.add(Closed { path, mark, rows: 1 })?;
    }
    roller.commit()?;
    let time = |second| format!("{}Z", &at(second).to_string()[..26]);
    Ok(match node {
        "node-1" => {
            vec![node.into(), time(5_000).into(), "applied".into(), "3".into(), (*content(3)?.json).into()]
        }
        _ => vec![node.into(), time(6_000).into(), "deleted".into(), Value::Null, Value::Null],
    })
}

/// Makes the stores, and below `bucket` all their files.
pub fn make(directory: &Path, bucket: &Path) -> Result<Fleet> {
    let mut fleet = Fleet { told: Vec::new(), rows: Rows::default(), policy_history: Vec::new() };
    for node in ["node-1", "node-2"] {
        let store = directory.join(node);
        let mut agent = Agent::new(node);
        fleet.rows.merge(agent.run(&store)?);
        fleet.told.append(&mut agent.told);
        // Beside the flows, where no agent has a lock.
        let history = directory.join(format!("{node}-history"));
        fleet.policy_history.push(tell_history(&history, node)?);
        let of_table = |store, table| -> Result<Vec<_>> {
            Ok(files::list(store, table)?.into_iter().map(move |file| (store, file)).collect())
        };
        for (store, file) in of_table(&store, &FLOWS)?.into_iter().chain(of_table(&history, &OBJECTS)?) {
            let to = bucket.join(file.path.strip_prefix(store)?);
            fs::create_dir_all(to.parent().context("a partition")?)?;
            anyhow::ensure!(!to.exists(), "two agents have a file of one name: {}", to.display());
            fs::copy(&file.path, &to)?;
        }
    }
    Ok(fleet)
}

#[test]
fn the_fleet_has_flows_of_every_kind_that_is_asked_for() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let fleet = make(directory.path(), &directory.path().join("bucket"))?;
    let some = |what: &str, is: &dyn Fn(&Value) -> bool| {
        assert!(fleet.told.iter().any(|told| is(&told.line)), "no flow is {what}");
    };
    for verdict in ["allowed", "denied"] {
        some(verdict, &|line| line["verdict"] == verdict);
    }
    some("folded", &|line| line["folded"] == true);
    some("maybe repeated", &|line| line["maybe_repeated"] == true);
    some("by a name", &|line| line["peer"]["names"].as_array().is_some_and(|names| !names.is_empty()));
    some("decided by two rules", &|line| line["rules"].as_array().is_some_and(|rules| rules.len() == 2));
    some("denied by two policies", &|line| line["denied_by"].as_array().is_some_and(|by| by.len() == 2));
    some("to the second owner of an address", &|line| line["peer"]["pod"] == "db-1");
    Ok(())
}
