//! What the agent costs the programs that it watches, and what others cost that watch connections too.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    load::{LOADS, LOADS_OF_NAMES, Load},
    peers::{self, Peer},
    programs,
};
use crate::{
    account::record::Metrics,
    http,
    lab::{Lab, Launch, NODE_NAME, Owner, Pod, PodSpec, Process, Qos},
};

const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);
const PATIENCE: Duration = Duration::from_secs(60);

/// Who watches while a load runs.
#[derive(Clone, Copy)]
enum Side {
    Nobody,
    Agent,
    /// The agent that sees DNS answers.
    Names,
    Peer(&'static Peer),
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Agent => "netaudit",
            Self::Names => "with names",
            Self::Peer(peer) => peer.name,
        }
    }

    /// Whether what a load does is what it watches. What the others do not watch says nothing of them.
    fn watches(self, load: Load) -> bool {
        match self {
            Self::Nobody | Self::Agent | Self::Names => true,
            Self::Peer(_) => load.is_tcp(),
        }
    }
}

/// The microseconds of each load, a figure a round.
struct Measured {
    side: Side,
    loads: Vec<Vec<f64>>,
}

/// Measures, prints a table, and returns the same as JSON.
pub fn overhead(agent: &Path, rounds: u8) -> Result<Value> {
    let (mut lab, pod) = lab()?;
    let mut sides = vec![Side::Nobody, Side::Agent];
    for peer in &peers::PEERS {
        match peer.try_it(&lab) {
            Ok(()) => sides.push(Side::Peer(peer)),
            Err(error) => println!("bench: {} is left out: {error:#}", peer.name),
        }
    }
    let mut results = measure(&mut lab, &pod, agent, rounds, sides, &LOADS)?;
    results.insert("programs".to_owned(), programs(&mut lab, &pod, agent)?);
    Ok(Value::Object(results))
}

/// Which of the agent's programs costs which load what.
fn programs(lab: &mut Lab, pod: &Pod, agent: &Path) -> Result<Value> {
    let others = programs::ids()?;
    let mut watching = start_agent(lab, agent, &[])?;
    println!(
        "{:<16} {:<16} {:>8} {:>8} {:>8}   the kernel's count, some 30 ns a run of it for counting",
        "each", "program", "runs", "ns a run", "ns"
    );
    let mut results = serde_json::Map::new();
    for (load, count) in LOADS {
        let costs = programs::costs(&load.name(), count, &others, || once(pod, load, count, 0).map(drop))?;
        results.insert(load.name(), costs);
    }
    watching.terminate(PATIENCE)?;
    Ok(Value::Object(results))
}

/// The same for an agent without and with names.
pub fn names(agent: &Path, rounds: u8) -> Result<Value> {
    let (mut lab, pod) = lab()?;
    let sides = vec![Side::Nobody, Side::Agent, Side::Names];
    measure(&mut lab, &pod, agent, rounds, sides, &LOADS_OF_NAMES).map(Value::Object)
}

/// A node with a pod for the loads.
fn lab() -> Result<(Lab, Pod)> {
    let mut lab = Lab::new("bench")?;
    let pod = lab.add_pod(
        PodSpec {
            namespace: "bench",
            name: "load-5d8f7b9c6-x7k2p",
            labels: &[("app", "load")],
            owner: Owner::Deployment("load", "5d8f7b9c6"),
            qos: Qos::Burstable,
            container: "main",
            ports: &[],
        },
        Ipv4Addr::new(10, 96, 0, 10),
    )?;
    lab.write_manifests()?;
    Ok((lab, pod))
}

fn measure(
    lab: &mut Lab,
    pod: &Pod,
    agent: &Path,
    rounds: u8,
    sides: Vec<Side>,
    measured_loads: &[(Load, u32)],
) -> Result<serde_json::Map<String, Value>> {
    println!("bench: overhead, {rounds} interleaved rounds of each load, watched by each");
    let mut measured: Vec<Measured> = sides
        .into_iter()
        .map(|side| Measured { side, loads: vec![Vec::new(); measured_loads.len()] })
        .collect();
    let mut lost = 0.0;
    for round in 0..rounds {
        // Who comes first changes, so that warming up favours nobody.
        let count = measured.len();
        for turn in 0..count {
            let Measured { side, loads } = &mut measured[(turn + usize::from(round)) % count];
            let mut watching = start(lab, agent, *side)?;
            for ((load, count), times) in measured_loads.iter().zip(loads) {
                if side.watches(*load) {
                    let seconds = once(pod, *load, *count, round)?;
                    times.push(seconds / f64::from(*count) * 1e6);
                }
            }
            if matches!(side, Side::Agent) {
                lost += records_lost(lab)?;
            }
            if matches!(side, Side::Names) {
                let named = metrics(lab)?.named("netaudit_dns_answers_total").any(|sample| {
                    sample.value > 0.0 && sample.labels.get("became").is_some_and(|it| it == "named")
                });
                ensure!(named, "the agent has read no answer");
            }
            if let Some(watching) = &mut watching {
                watching.terminate(PATIENCE)?;
            }
        }
    }
    let mut results = table(&measured, measured_loads);
    println!("records lost by netaudit: {lost}");
    results.insert("records_lost".to_owned(), json!(lost));
    Ok(results)
}

fn table(measured: &[Measured], measured_loads: &[(Load, u32)]) -> serde_json::Map<String, Value> {
    let unwatched = &measured[0].loads;
    println!(
        "{:<16} {:<10} {:>12} {:>12} {:>8}   {:>16}",
        "µs each", "watched by", "unwatched", "watched", "ratio", "quartiles"
    );
    let mut results = serde_json::Map::new();
    for (at, (load, _)) in measured_loads.iter().enumerate() {
        let mut of_load = serde_json::Map::new();
        for Measured { side, loads } in &measured[1..] {
            if loads[at].is_empty() {
                continue;
            }
            let (without, with) = (quantile(&unwatched[at], 0.5), quantile(&loads[at], 0.5));
            let ratios: Vec<f64> =
                loads[at].iter().zip(&unwatched[at]).map(|(with, without)| with / without).collect();
            let (low, high) = (quantile(&ratios, 0.25), quantile(&ratios, 0.75));
            let (name, watcher, ratio) = (load.name(), side.name(), with / without);
            println!(
                "{name:<16} {watcher:<10} {without:>12.2} {with:>12.2} {ratio:>8.3}   {low:>7.3} … {high:.3}"
            );
            of_load.insert(
                watcher.to_owned(),
                json!({"without_us": without, "with_us": with, "ratio": ratio, "quartiles": [low, high]}),
            );
        }
        results.insert(load.name(), Value::Object(of_load));
    }
    results
}

fn start(lab: &Lab, agent: &Path, side: Side) -> Result<Option<Process>> {
    match side {
        Side::Nobody => Ok(None),
        Side::Agent => start_agent(lab, agent, &[]).map(Some),
        Side::Names => start_agent(lab, agent, &["--dns-names".to_owned()]).map(Some),
        Side::Peer(peer) => peer.start(lab).map(Some),
    }
}

/// Starts the agent on the lab's node, with `more` arguments, and waits until it is ready.
pub fn start_agent(lab: &Lab, agent: &Path, more: &[String]) -> Result<Process> {
    let arguments = [
        "agent".to_owned(),
        "--manifests".to_owned(),
        lab.manifests().display().to_string(),
        "--cgroup-root".to_owned(),
        lab.node_cgroup().display().to_string(),
        "--listen".to_owned(),
        LISTEN.to_string(),
        "--node".to_owned(),
        NODE_NAME.to_owned(),
    ];
    let arguments = arguments.iter().chain(more);
    let place = lab.host_place("netaudit")?;
    let mut agent = Launch::new(agent, arguments).spawn(&place, &lab.log("netaudit"))?;
    agent.wait_until(PATIENCE, "ready", || {
        http::get(lab.node(), LISTEN, "/readyz").is_ok_and(|(status, _)| status == 200)
    })?;
    Ok(agent)
}

fn records_lost(lab: &Lab) -> Result<f64> {
    Ok(metrics(lab)?.sum("netaudit_records_lost_total"))
}

fn metrics(lab: &Lab) -> Result<Metrics> {
    let (_, metrics) = http::get(lab.node(), LISTEN, "/metrics")?;
    Metrics::parse(&metrics)
}

/// Runs one load in the pod, by this very program, and returns its seconds.
fn once(pod: &Pod, load: Load, count: u32, round: u8) -> Result<f64> {
    let program = std::env::current_exe()?;
    let arguments = ["load".to_owned(), load.name(), count.to_string(), round.to_string()];
    let output = Launch::new(program, arguments).run(&pod.place, PATIENCE)?;
    if !output.status.success() {
        bail!("the load {} failed: {}", load.name(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
}

fn quantile(values: &[f64], q: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * q).round() as usize]
}
