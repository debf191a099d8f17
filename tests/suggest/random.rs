//! Random flows among random workloads: what was seen is allowed, and what was not is denied, as an evaluator says that shares nothing
//! with the one that the proof asks.

use std::collections::{BTreeMap, BTreeSet};

use netaudit::model::{Direction, Outcome};

use super::*;
use crate::policy::random::Random;

const SEEDS: u64 = 20;
const PORTS: [u16; 6] = [53, 80, 443, 5432, 8080, 9090];
const OUTSIDE: [&str; 4] = ["203.0.113.5", "203.0.113.6", "2001:db8::5", "198.51.100.77"];

/// A pod and what policies can know of it.
struct Known {
    namespace: &'static str,
    name: String,
    workload: usize,
    /// Those that stay.
    labels: BTreeSet<(String, String)>,
    ips: [String; 2],
    node: &'static str,
}

fn known(random: &mut Random) -> (Vec<Known>, Vec<Value>) {
    let mut objects: Vec<Value> = ["blue", "green", "kube-system"].map(namespace).to_vec();
    objects.push(node("node-1", "192.168.1.1"));
    objects.push(node("node-2", "192.168.1.2"));
    let mut pods = Vec::new();
    for workload in 0..random.between(3, 7) {
        let space = *random.pick(&["blue", "green"]);
        // Some have labels that others have too, and one of their own; some only what others have.
        let mut labels = json!({"part": *random.pick(&["a", "b"]), "version": random.below(3).to_string()});
        if random.percent(80) {
            labels["app"] = json!(*random.pick(&["web", "true", "7"]));
        }
        if random.percent(70) {
            labels["app.kubernetes.io/instance"] = json!(format!("w{workload}"));
        }
        let stable = labels.as_object().into_iter().flatten().filter(|(key, _)| *key != "version");
        let stable: BTreeSet<_> =
            stable.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect();
        for number in 0..random.between(1, 2) {
            let ips = [format!("10.0.{workload}.{}", number + 1), format!("fd00::{workload}:{}", number + 1)];
            let node = *random.pick(&["node-1", "node-2"]);
            let name = format!("w{workload}-{number}");
            objects.push(pod(space, &name, &labels, &[&ips[0], &ips[1]], node));
            pods.push(Known { namespace: space, name, workload, labels: stable.clone(), ips, node });
        }
    }
    (pods, objects)
}

/// Which workloads no labels tell apart, by workload the first of them: those of which one has all the labels of the other, and whoever
/// cannot be told from one of these.
fn together(pods: &[Known]) -> BTreeMap<usize, usize> {
    let mut first: BTreeMap<usize, usize> = pods.iter().map(|pod| (pod.workload, pod.workload)).collect();
    for one in pods {
        for other in pods.iter().filter(|it| it.namespace == one.namespace) {
            if one.labels.is_subset(&other.labels) {
                let (from, to) = (first[&one.workload], first[&other.workload]);
                first.values_mut().filter(|it| **it == from).for_each(|it| *it = to);
            }
        }
    }
    first
}

/// Both ends by their workloads, or an address; and the port.
type Pair = (usize, Result<usize, String>, u16);

#[test]
fn what_counts_is_allowed_and_what_was_not_seen_is_denied() -> Result<()> {
    let (mut allowed, mut denied, mut policies) = (0, 0, 0);
    for seed in 0..SEEDS {
        let mut random = Random::new(seed);
        let (pods, objects) = known(&mut random);
        let directories = [tempfile::tempdir()?, tempfile::tempdir()?];
        let mut agents = [
            begin_on("node-1", directories[0].path(), "run-a", &objects)?,
            begin_on("node-2", directories[1].path(), "run-b", &objects)?,
        ];
        let agent_of = |node: &str| usize::from(node == "node-2");
        let mut seen: BTreeSet<Pair> = BTreeSet::new();
        let mut reached: Vec<(String, String, u16)> = Vec::new();
        for _ in 0..random.between(4, 16) {
            let from = random.pick(&pods);
            let port = *random.pick(&PORTS);
            let family = random.below(2);
            let is_scan = random.percent(20);
            let outcome = if is_scan { Outcome::Refused } else { Outcome::Established };
            if random.percent(25) {
                let to = *random.pick(&OUTSIDE);
                let own = if to.contains(':') { &from.ips[1] } else { &from.ips[0] };
                let uid = format!("{}-{}", from.namespace, from.name);
                agents[agent_of(from.node)].see(Told { uid: &uid, own, peer: to, port, ..tcp(outcome) });
                if !is_scan {
                    seen.insert((from.workload, Err(to.to_owned()), port));
                    reached.push((format!("{}/{}", from.namespace, from.name), to.to_owned(), port));
                }
                continue;
            }
            let to = random.pick(&pods);
            if (from.namespace, &from.name) == (to.namespace, &to.name) {
                continue;
            }
            let [source, destination] = [from, to].map(|it| format!("{}-{}", it.namespace, it.name));
            // One end told, or both.
            let (by_source, by_destination) = *random.pick(&[(true, true), (true, false), (false, true)]);
            if by_source || is_scan {
                agents[agent_of(from.node)].see(Told {
                    uid: &source,
                    own: &from.ips[family],
                    peer: &to.ips[family],
                    port,
                    ..tcp(outcome)
                });
            }
            if by_destination && !is_scan {
                agents[agent_of(to.node)].see(Told {
                    direction: Direction::Ingress,
                    uid: &destination,
                    own: &to.ips[family],
                    peer: &from.ips[family],
                    port,
                    ..tcp(Outcome::Accepted)
                });
            }
            if !is_scan {
                seen.insert((from.workload, Ok(to.workload), port));
                let [from, to] = [from, to].map(|it| format!("{}/{}", it.namespace, it.name));
                reached.push((from, to, port));
            }
        }
        for agent in agents {
            agent.finish(1_000);
        }
        let other = directories[1].path().to_str().context("a name")?;
        let (told, ran) = answer(directories[0].path(), "blue", &["-n", "green", "--flow-store", other])?;
        policies += names(&told).len();
        let lost = told["proof"]["denied"].as_array().context("a list")?;
        // What has no label that stays is told, and is the only reason.
        let is_told = |what: &str| ran.err.contains(what);
        assert!(lost.is_empty() || is_told("no rule can be written"), "seed {seed}: {}", ran.err);
        for (from, to, port) in &reached {
            let verdict = verdict(&objects, &told, from, to, Protocol::Tcp, *port);
            if lost.is_empty() {
                assert_eq!(
                    verdict,
                    Verdict::Allow,
                    "seed {seed}: {from} → {to}:{port}\n{}\n{told:#}",
                    ran.err
                );
            }
            allowed += usize::from(verdict == Verdict::Allow);
        }
        // Of what was not seen, only what no labels tell from what was may pass.
        let is_isolated = |space: &str| told["no_default_deny"].get(space).is_none();
        let first = together(&pods);
        let may_pass = |from: &Known, to: Option<&Known>, address: &str, port: u16| {
            seen.iter().any(|(source, destination, at)| {
                let is_source = first[&from.workload] == first[source];
                let is_destination = match (to, destination) {
                    (Some(to), Ok(destination)) => first[&to.workload] == first[destination],
                    (None, Err(destination)) => destination == address,
                    _ => false,
                };
                is_source && is_destination && *at == port
            })
        };
        for from in pods.iter().filter(|it| is_isolated(it.namespace)) {
            let name = |pod: &Known| format!("{}/{}", pod.namespace, pod.name);
            let others = pods.iter().filter(|to| is_isolated(to.namespace) && to.name != from.name);
            let others = others.map(|to| (Some(to), name(to)));
            for (to, text) in others.chain(OUTSIDE.map(|it| (None, it.to_owned()))) {
                for port in PORTS.into_iter().filter(|port| *port != 53 && !may_pass(from, to, &text, *port))
                {
                    let from = name(from);
                    let verdict = verdict(&objects, &told, &from, &text, Protocol::Tcp, port);
                    assert_eq!(verdict, Verdict::Deny, "seed {seed}: {from} → {text}:{port}\n{told:#}");
                    denied += 1;
                }
            }
        }
    }
    // It did try something.
    assert!(allowed > 80 && denied > 2_000 && policies > 40, "{allowed} {denied} {policies}");
    Ok(())
}
