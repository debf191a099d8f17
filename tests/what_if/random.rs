//! Histories made by chance: flows that are judged by classes fare as each of them does at its own time, and as an evaluator says that
//! shares nothing with the one that is asked.

mod services;

use std::{net::SocketAddr, ops::ControlFlow, slice};

use netaudit::{
    advise::what_if::{self, Candidate, Class, Report, Scope},
    model::{Outcome, Protocol},
    replay::{COLUMNS, Classes, Histories, History, Replay, Replayed, judge, judge_each},
    store::flows::{
        ask::{Among, Columns, scan},
        filter::Filter,
    },
};

use super::*;
use crate::policy::{
    case::{self, Case, End, Flow, Verdict},
    generate::{self, Kinds, NAMESPACES, OUTSIDE},
    matching::text,
    naive::{Naive, name_of},
    random::{Random, setting},
};

const SEEDS: u64 = 12;
const STEPS: usize = 100;
const RUN: &str = "run-a";
/// The last byte of a UID is the pod's number, and a UID is hexadecimal.
const LETTERS: &[u8] = b"0123456789abcdefABCDEF";

/// A cluster that changes, and what its node's agent saw of it.
struct Story {
    agent: Agent,
    random: Random,
    /// What there is now.
    objects: Vec<Value>,
    /// What may come to be.
    policies: Vec<Value>,
    /// What may be tried.
    flows: Vec<Flow>,
    /// Pods that have gone.
    gone: Vec<Value>,
    letters: slice::Iter<'static, u8>,
    at: i64,
    /// What was tried when, what there was then, and whether the plain evaluator can be asked.
    tried: Vec<(Timestamp, Case, bool)>,
}

fn is_policy(object: &Value) -> bool {
    object["kind"].as_str().is_some_and(|kind| kind.ends_with("NetworkPolicy"))
}

/// Policies without domain names: nobody saw an answer of a name server here.
fn policies(of: &Case) -> impl Iterator<Item = &Value> {
    of.objects.iter().filter(|it| is_policy(it) && !it.to_string().contains("domainNames"))
}

fn key(object: &Value) -> (String, String) {
    (object["kind"].to_string(), name_of(object))
}

/// What its cgroup and namespace are known by.
fn number_of(pod: &Value) -> u64 {
    number(pod["metadata"]["uid"].as_str().unwrap_or_default())
}

/// Namespace and name.
fn names(object: &Value) -> (&str, &str) {
    let metadata = &object["metadata"];
    (text(metadata, "namespace").unwrap_or_default(), text(metadata, "name").unwrap_or_default())
}

impl Story {
    fn begin(path: &Path, seed: u64, kinds: Kinds) -> Result<Self> {
        let first = generate::case(seed, kinds, 40);
        let mut story = Self {
            agent: Agent::new(path, RUN)?,
            random: Random::new(seed),
            objects: Vec::new(),
            policies: (1..4)
                .flat_map(|it| {
                    policies(&generate::case(seed + it * 1_000_000, kinds, 0)).cloned().collect::<Vec<_>>()
                })
                .collect(),
            flows: first.flows.clone(),
            gone: Vec::new(),
            letters: LETTERS.iter(),
            at: 1,
            tried: Vec::new(),
        };
        // Of a namespace that nobody told of nothing can be said.
        for name in NAMESPACES {
            story.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
        }
        let rest = first.objects.iter().filter(|it| !is_policy(it));
        for object in rest.chain(policies(&first)).cloned().collect::<Vec<_>>() {
            if object["kind"] == "Pod" { story.put_pod(object) } else { story.put(object) }
        }
        story.begin_services();
        story.agent.ready(2);
        Ok(story)
    }

    /// Makes or changes an object.
    fn put(&mut self, object: Value) {
        self.agent.apply(&object, self.at);
        self.objects.retain(|it| key(it) != key(&object));
        self.objects.push(object);
    }

    /// A pod that is made: on a node, and with one address, as the plain evaluator takes a pod to be at all of its addresses at once.
    fn put_pod(&mut self, mut pod: Value) {
        let Some(letter) = self.letters.next() else { return };
        pod["metadata"]["uid"] = format!("00000000-{}", char::from(*letter)).into();
        if pod["spec"].get("nodeName").is_none() {
            pod["spec"]["nodeName"] = "node-1".into();
        }
        let ip = pod["status"]["podIPs"][0]["ip"].clone();
        pod["status"] = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]});
        self.put(pod);
    }

    fn take(&mut self, object: &Value) {
        let kind = object["kind"].as_str().and_then(Kind::from_name).expect("a watched kind");
        let (namespace, name) = names(object);
        let gone = ObjectKey::new(kind, namespace, name);
        self.agent.store.history_mut().deleted(&gone, t(self.at));
        self.agent.auditor.cluster_mut().delete(&gone, t(self.at));
        self.objects.retain(|it| key(it) != key(object));
        if kind == Kind::Pod {
            self.gone.push(object.clone());
        }
    }

    fn any(&mut self, is_wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        let all: Vec<&Value> = self.objects.iter().filter(|it| is_wanted(it)).collect();
        (!all.is_empty()).then(|| (*self.random.pick(&all)).clone())
    }

    fn change(&mut self) {
        let kind = |kind: &'static str| move |it: &Value| it["kind"] == kind;
        match self.random.below(6) {
            0 | 1 if !self.policies.is_empty() => {
                let policy = self.random.pick(&self.policies).clone();
                self.put(policy);
            }
            2 => {
                if let Some(policy) = self.any(is_policy) {
                    self.take(&policy);
                }
            }
            3 => {
                // Two namespaces change labels.
                let Some(other) = self.any(kind("Namespace")) else { return };
                if let Some(mut namespace) = self.any(kind("Namespace")) {
                    namespace["metadata"]["labels"] = other["metadata"]["labels"].clone();
                    self.put(namespace);
                }
            }
            number => {
                let Some(other) = self.any(kind("Pod")) else { return };
                let Some(mut pod) = self.any(kind("Pod")) else { return };
                if number == 4 {
                    pod["metadata"]["labels"] = other["metadata"]["labels"].clone();
                    self.put(pod);
                    return;
                }
                // The next of a StatefulSet, which is another pod with the same name.
                self.take(&pod);
                if self.random.percent(70) {
                    self.at += 20;
                    pod["metadata"]["labels"] = other["metadata"]["labels"].clone();
                    self.put_pod(pod);
                }
            }
        }
    }

    /// A pod, or one that was there, or an address of nobody in the cluster.
    fn end(&self, end: &End) -> Option<(IpAddr, Option<&Value>)> {
        match end {
            End::Ip(ip) => OUTSIDE.contains(&&*ip.to_string()).then_some((*ip, None)),
            End::Pod(name) => {
                let all = self.gone.iter().chain(&self.objects);
                let pod = all.rev().find(|it| it["kind"] == "Pod" && name_of(it) == *name)?;
                let ip = pod["status"]["podIP"].as_str()?.parse().ok()?;
                (pod["spec"]["hostNetwork"] != true).then_some((ip, Some(pod)))
            }
        }
    }

    /// One of those that may be tried; whether one was.
    fn connect(&mut self) -> bool {
        let flow = self.random.pick(&self.flows).clone();
        let is_accepted = self.random.percent(50);
        let Some(from) = self.end(&flow.from) else { return false };
        let Some(to) = self.end(&flow.to) else { return false };
        let (subject, own_port, peer, peer_port) = match is_accepted {
            true => (to, flow.port, from, 40_000),
            false => (from, 40_000, to, flow.port),
        };
        let is_there = |pod: &Value| self.objects.iter().any(|it| it == pod);
        let is_here = |pod: &&Value| pod["spec"]["nodeName"] == "node-1" && is_there(pod);
        let Some(pod) = subject.1.filter(is_here) else { return false };
        // Of a pod that has gone the plain evaluator does not know how long it is remembered.
        let is_plain = peer.1.is_none_or(is_there);
        let (protocol, sent, received) = match flow.protocol {
            case::Protocol::Tcp => (Protocol::Tcp, Outcome::Established, Outcome::Accepted),
            case::Protocol::Udp => (Protocol::Udp, Outcome::Answered, Outcome::Received),
            // Nobody sees it.
            case::Protocol::Sctp => return false,
        };
        if subject.0.is_ipv4() != peer.0.is_ipv4() {
            return false;
        }
        let number = number_of(pod);
        let own = SocketAddr::new(subject.0, own_port).to_string();
        let other = SocketAddr::new(peer.0, peer_port).to_string();
        let (seen, outcome) = match is_accepted {
            true => (ingress(number, number, &own, &other), received),
            false => (egress(number, number, &own, &other), sent),
        };
        let handshake = seen.handshake.filter(|_| protocol == Protocol::Tcp);
        let at = t(self.at);
        let name = format!("{flow} at {}", self.at);
        let case = Case { name, objects: self.objects.clone(), flows: vec![flow], dns: None };
        self.tried.push((at, case, is_plain));
        self.agent.see(Observation { at, socket: self.at as u64, protocol, outcome, handshake, ..seen });
        self.learn();
        true
    }
}

/// What the plain evaluator says of the only flow.
fn plain(case: &Case) -> Verdict {
    let [egress, ingress] = Naive { objects: &case.objects, dns: None, seen: None }.ask(&case.flows[0]);
    Verdict::both(egress.verdict, ingress.verdict)
}

/// The same with the candidate's policies.
fn replaced(case: &Case, with: &[Value], scope: &Scope) -> Case {
    let gives_way = |it: &Value| match scope {
        Scope::All => is_policy(it),
        _ => with.iter().any(|new| key(new) == key(it)),
    };
    let stay = case.objects.iter().filter(|it| !gives_way(it));
    Case { objects: stay.chain(with).cloned().collect(), ..case.clone() }
}

fn is_changed(class: &Class, at: Timestamp, history: &History, candidate: &Candidate) -> bool {
    judge_each([(class, at)], history, candidate) == 1
}

/// What was compared.
#[derive(Default, Debug)]
struct Compared {
    flows: u64,
    changes: u64,
    classes: usize,
    /// Flows of which the plain evaluator knows what becomes of them.
    plain: u64,
    /// Flows to Services of which it is not known where they went, and those of them that fare otherwise.
    to_services: [u64; 2],
}

fn compare(seed: u64, compared: &mut Compared) -> Result<()> {
    let kinds = if seed.is_multiple_of(2) { Kinds::NetworkPolicy } else { Kinds::V1Alpha1 };
    let directory = tempfile::tempdir()?;
    let mut story = Story::begin(directory.path(), seed, kinds)?;
    for _ in 0..STEPS {
        // Soon after a change, and after what is gone is forgotten.
        story.at += *story.random.pick(&[31, 40, 95, 700]);
        match story.random.below(100) {
            0..25 => story.change(),
            25..40 => story.change_services(),
            40..80 => drop((0..20).find(|_| story.connect())),
            _ => drop((0..20).find(|_| story.connect_to_service())),
        }
    }
    let (tried, until) = (story.tried, story.at + 60);
    story.agent.finish(until);

    let new: Vec<Value> = policies(&generate::case(seed + 9_000_000, kinds, 0)).cloned().collect();
    let scope = if seed.is_multiple_of(3) { Scope::Named } else { Scope::All };
    let objects = new.iter().map(|it| {
        let kind = it["kind"].as_str().and_then(Kind::from_name).expect("a watched kind");
        convert::object(kind, it, &Arc::from("test"))
    });
    let (candidate, _) = Candidate::new(objects.collect(), scope.clone()).expect("policies of any namespace");

    let stores = [directory.path().to_owned().into()];
    let histories = Histories::read(&stores, None, None)?;
    let (mut classes, mut each, mut batches) = (Classes::new(&histories), Vec::new(), Vec::new());
    scan(&stores, Among::All, &Filter::default(), Columns::Some(&COLUMNS), &|_, _| {}, &mut |batch| {
        if let Some(batch) = batch {
            classes.add(&batch)?;
            each.extend(Classes::each(&batch)?);
            batches.extend((0..batch.num_rows()).map(|row| batch.slice(row, 1)));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let report = judge(&classes, &histories, &candidate);
    // Judged in several goes they fare the same.
    let mut replay = Replay::within(3, &histories, &candidate);
    batches.iter().try_for_each(|batch| replay.add(batch))?;
    let Replayed { report: in_goes, runs, .. } = replay.finish();
    let sums = |report: &Report| {
        let Report { replayed, changed, records, folded, spanning, maybe_repeated, .. } = *report;
        ([replayed, changed, records, folded, spanning, maybe_repeated], report.rows())
    };
    // Which of them is the example may differ.
    let rest = |report: &Report| {
        let unknown = report.still_unknown().into_iter().map(|it| (it.by, it.flows)).collect::<Vec<_>>();
        (report.doubts().len(), unknown, report.enforced().len())
    };
    assert_eq!(sums(&in_goes), sums(&report), "seed {seed}");
    assert_eq!(rest(&in_goes), rest(&report), "seed {seed}");
    assert_eq!(runs.into_iter().collect::<Vec<_>>(), classes.runs(), "seed {seed}");
    let history = histories.of(RUN).context("the run's history")?;
    assert_eq!(report.doubts(), [], "seed {seed}: they were recorded as they are judged");
    assert_eq!(report.unreplayed(), [], "seed {seed}");
    assert_eq!(report.replayed, tried.len() as u64, "seed {seed}");

    each.sort_by_key(|(_, at)| *at);
    let mut changed = 0;
    for ((class, at), (then, case, is_plain)) in each.iter().zip(&tried) {
        assert_eq!(at, then, "seed {seed}");
        let is_changed = is_changed(class, *at, history, &candidate);
        changed += u64::from(is_changed);
        if matches!(class.peer, what_if::End::Service { .. }) {
            compared.to_services[0] += 1;
            compared.to_services[1] += u64::from(is_changed);
        }
        if !is_plain {
            continue;
        }
        let (before, after) = (plain(case), plain(&replaced(case, &new, &scope)));
        if before != Verdict::Unknown && after != Verdict::Unknown {
            compared.plain += 1;
            assert_eq!(is_changed, before != after, "seed {seed}: {}: {before:?}, then {after:?}", case.name);
        }
    }
    assert_eq!(report.changed, changed, "seed {seed}: by classes and one by one");
    let together = judge_each(each.iter().map(|(class, at)| (class, *at)), history, &candidate);
    assert_eq!(together, changed, "seed {seed}: in one go and one by one");
    compared.flows += report.replayed;
    compared.changes += changed;
    compared.classes += classes.len();
    Ok(())
}

#[test]
fn classes_fare_as_each_of_their_flows_does_and_as_the_plain_evaluator_says() -> Result<()> {
    let mut compared = Compared::default();
    (0..SEEDS).try_for_each(|seed| compare(seed, &mut compared))?;
    // It did try something, and some flows are alike.
    let Compared { flows, changes, classes, plain, to_services } = compared;
    assert!(flows > 300 && changes > 40 && plain > 250 && classes < flows as usize * 3 / 4, "{compared:?}");
    // What becomes of some is known, or they could not fare otherwise.
    assert!(to_services[0] > 30 && to_services[1] > 8, "{compared:?}");
    Ok(())
}

#[test]
#[ignore = "takes as long as one likes: cargo xtask fuzz what-if"]
fn long_run() -> Result<()> {
    let (first, seeds) = (setting("NETAUDIT_FUZZ_SEED", 0), setting("NETAUDIT_FUZZ_SEEDS", 5_000));
    let mut compared = Compared::default();
    for seed in first..first + seeds {
        compare(seed, &mut compared)?;
        if (seed + 1 - first).is_multiple_of(100) {
            println!("{} clusters: {compared:?}", seed + 1 - first);
        }
    }
    Ok(())
}
