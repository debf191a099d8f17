//! `cargo xtask bench overload`: a burst of connections and a scan of all ports, against an agent that runs and against
//! one that gets no processor meanwhile.
//!
//! Says what became of every record, and fails unless each is accounted for: made = recorded + folded + lost. Prints the
//! agent's memory before and after.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Load, start_agent};
use crate::{
    account::record::Metrics,
    http,
    lab::{Lab, Launch, Owner, Pod, PodSpec, Process, Qos},
};

const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);
const PORT: u16 = 8080;
/// For a load of a million connections on a slow machine.
const PATIENCE: Duration = Duration::from_secs(900);
/// Every port but the server's and 0.
const SCANNED: u32 = 65_534;

/// The client may connect to the server's port and to nothing else; the server lets nobody in.
const POLICIES: &str = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: out, namespace: bench}\n\
     spec: {podSelector: {matchLabels: {app: client}}, policyTypes: [Egress],\n\
     \u{20}egress: [{to: [{podSelector: {matchLabels: {app: server}}}], ports: [{port: 8080}]}]}\n---\n\
     apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: in, namespace: bench}\n\
     spec: {podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]}\n";

/// What one scrape says.
#[derive(Clone, Copy, Default)]
struct Seen {
    made: u64,
    recorded: u64,
    folded: u64,
    by_subject: u64,
    lost: u64,
    matches: u64,
    ingress_violations: u64,
    egress_violations: u64,
}

/// Runs both, and returns the figures as JSON.
pub fn overload(agent: &Path, connections: u32) -> Result<Value> {
    let mut lab = Lab::new("overload")?;
    let mut pod = |name, app: &'static [(&str, &str)], workload| {
        let owner = Owner::Deployment(workload, "5d8f7b9c6");
        let (namespace, qos, container) = ("bench", Qos::Burstable, "main");
        let spec = PodSpec { namespace, name, labels: app, owner, qos, container, ports: &[] };
        lab.add_pod(spec, Ipv4Addr::new(10, 96, 0, 10))
    };
    let client = pod("client-5d8f7b9c6-x7k2p", &[("app", "client")], "client")?;
    let server = pod("server-5d8f7b9c6-m4q9z", &[("app", "server")], "server")?;
    lab.write_manifests()?;
    lab.write_manifest("policies.yaml", POLICIES)?;
    let config = lab.directory().join("agent.yaml");
    // Each port is one key at the client, and another one at the server.
    fs::write(&config, "foldKeys: 140000\n")?;
    let arguments = [Load::Serve.name(), "1".to_owned(), "0".to_owned(), format!("0.0.0.0:{PORT}")];
    let serve = Launch::new(std::env::current_exe()?, ["load".to_owned()].into_iter().chain(arguments));
    let _serving = serve.spawn(&server.place, &lab.log("server"))?;
    thread::sleep(Duration::from_millis(300));

    println!("bench: {connections} connections, then {SCANNED} ports, on a pod of the same node");
    println!(
        "{:<10} {:>8} {:>10} {:>10} {:>10} {:>11} {:>6}   {:>22}",
        "the agent", "seconds", "made", "recorded", "folded", "by subject", "lost", "KiB before, after, most"
    );
    let mut results = serde_json::Map::new();
    for (name, more, stopped) in [
        ("runs", vec![], false),
        ("is stopped", vec!["--config".to_owned(), config.display().to_string()], true),
    ] {
        let mut watching = start_agent(&lab, agent, &more)?;
        let before = memory(&watching, "VmRSS")?;
        if stopped {
            signal(&watching, libc::SIGSTOP);
        }
        let begun = Instant::now();
        let loads = drive(&client, &server, connections);
        let seconds = begun.elapsed().as_secs_f64();
        if stopped {
            signal(&watching, libc::SIGCONT);
        }
        loads?;
        let seen = settle(&lab, &mut watching, connections)?;
        let (after, most) = (memory(&watching, "VmRSS")?, memory(&watching, "VmHWM")?);
        println!(
            "{name:<10} {seconds:>8.1} {:>10} {:>10} {:>10} {:>11} {:>6}   {before:>6}, {after:>6}, {most:>6}",
            seen.made, seen.recorded, seen.folded, seen.by_subject, seen.lost
        );
        watching.terminate(Duration::from_secs(60))?;
        results.insert(
            name.to_owned(),
            json!({"seconds": seconds, "made": seen.made, "recorded": seen.recorded, "folded": seen.folded,
                   "by_subject": seen.by_subject, "lost": seen.lost, "kib": [before, after, most]}),
        );
    }
    println!("each is accounted for, every violation is counted, and so is every use of the rule");
    Ok(Value::Object(results))
}

fn drive(client: &Pod, server: &Pod, connections: u32) -> Result<()> {
    let to = SocketAddr::new(server.v4.into(), PORT);
    for (load, count) in [(Load::Burst, connections), (Load::Scan, SCANNED)] {
        let arguments = ["load".to_owned(), load.name(), count.to_string(), "0".to_owned(), to.to_string()];
        let output = Launch::new(std::env::current_exe()?, arguments).run(&client.place, PATIENCE)?;
        if !output.status.success() {
            bail!("the load {} failed: {}", load.name(), String::from_utf8_lossy(&output.stderr));
        }
    }
    Ok(())
}

/// Waits until the agent has caught up: until everything adds up.
fn settle(lab: &Lab, watching: &mut Process, connections: u32) -> Result<Seen> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        watching.check()?;
        // One that catches up may let a scrape wait for too long.
        let seen = match scrape(lab) {
            Err(_) if Instant::now() < deadline => continue,
            scraped => scraped?,
        };
        let accounted = seen.made == seen.recorded + seen.folded + seen.by_subject + seen.lost;
        let known = seen.matches == u64::from(connections)
            && seen.ingress_violations == u64::from(connections) + u64::from(SCANNED)
            && seen.egress_violations == u64::from(SCANNED);
        if accounted && known {
            return Ok(seen);
        }
        ensure!(
            Instant::now() < deadline,
            "it does not add up: {} made, {} recorded, {} folded, {} by subject, {} lost; {} matches, {} violations at the server, {} at the client",
            seen.made,
            seen.recorded,
            seen.folded,
            seen.by_subject,
            seen.lost,
            seen.matches,
            seen.ingress_violations,
            seen.egress_violations
        );
        thread::sleep(Duration::from_millis(200));
    }
}

fn scrape(lab: &Lab) -> Result<Seen> {
    let (_, text) = http::get(lab.node(), LISTEN, "/metrics")?;
    let metrics = Metrics::parse(&text)?;
    let of = |name, label: &str, value: &str| -> u64 {
        let has = |labels: &std::collections::BTreeMap<String, String>| {
            labels.get(label).is_some_and(|it| it == value)
        };
        metrics.named(name).filter(|sample| has(&sample.labels)).map(|sample| sample.value as u64).sum()
    };
    let sum = |name| metrics.sum(name) as u64;
    let lost = |stage| of("netaudit_records_lost_total", "stage", stage);
    let violations = |direction| of("netaudit_violations_total", "direction", direction);
    Ok(Seen {
        made: sum("netaudit_records_made_total"),
        recorded: sum("netaudit_records_total"),
        folded: sum("netaudit_records_folded_total"),
        by_subject: lost("fold"),
        lost: lost("ring"),
        matches: sum("netaudit_rule_matches_total"),
        ingress_violations: violations("ingress"),
        egress_violations: violations("egress"),
    })
}

/// A line of the process's status, in KiB.
fn memory(process: &Process, line: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid()))?;
    let value = status.lines().find_map(|it| it.strip_prefix(line)?.strip_prefix(':'));
    value
        .and_then(|value| value.split_whitespace().next())
        .context("no such line")?
        .parse()
        .context(line.to_owned())
}

fn signal(process: &Process, signal: i32) {
    // SAFETY: a plain system call; the process is our child and not reaped, so the id is its own.
    unsafe { libc::kill(process.pid() as i32, signal) };
}
