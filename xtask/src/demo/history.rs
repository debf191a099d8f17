//! Some minutes of the demo's traffic, with a real Prometheus that scrapes the agent: what pictures are drawn from.
//!
//! First nobody enforces, as in the demo; then a filter comes that stops a part of what policies deny, and something
//! that they allow as well.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    agent::{self, Agent},
    copy_policies,
    drive::Driver,
    scenario, servers,
    world::World,
};
use crate::{
    lab::{Launch, Place, Process},
    tools::Tools,
};

/// Seconds between scrapes, and between the points of a line.
pub const STEP: u64 = 5;
/// How long it takes; nobody enforces in the first half.
const LENGTH: Duration = Duration::from_secs(300);
/// Pauses between rounds of traffic, so that there is more and less of it.
const PAUSES: [u64; 6] = [0, 1, 4, 9, 5, 2];
/// A host on the internet that the filter takes for a forbidden one.
const BLOCKED: &str = "203.0.113.99";
const LISTEN: &str = "127.0.0.1:9090";

/// What a stranger may do, after the filter has come: ask for names, and nothing else.
const MONITORING: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: names-only, namespace: monitoring}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
    - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}}]
      ports: [{protocol: UDP, port: 53}]
";
const ACCEPTED: &str = "accepted: [{name: reports, why: the eighth policy comes with the next release, owner: team-data, \
    until: 2099-12-31, from: {namespace: batchivo, workload: bucket-report}}]\n";

/// The traffic's history, while its Prometheus runs.
pub struct History {
    place: Place,
    from: u64,
    until: u64,
}

impl History {
    /// From when until when it goes, in seconds since the epoch.
    pub fn span(&self) -> (f64, f64) {
        (self.from as f64, self.until as f64)
    }

    /// What Prometheus answers at the end of it, or where `instant` is not wanted, all along.
    pub fn ask(&self, query: &str, instant: bool) -> Result<Value> {
        let (endpoint, times) = if instant {
            ("query", vec![format!("time={}", self.until)])
        } else {
            let range = [("start", self.from), ("end", self.until), ("step", STEP)];
            ("query_range", range.map(|(name, value)| format!("{name}={value}")).into())
        };
        let mut arguments = vec!["-sS".to_owned(), format!("http://{LISTEN}/api/v1/{endpoint}")];
        for parameter in [format!("query={query}")].into_iter().chain(times) {
            arguments.extend(["--data-urlencode".to_owned(), parameter]);
        }
        let output = Launch::new("curl", arguments).run(&self.place, Duration::from_secs(10))?;
        let answer: Value = serde_json::from_slice(&output.stdout).with_context(|| {
            let (out, error) = (&output.stdout, &output.stderr);
            format!("Prometheus said {:?} {:?}", String::from_utf8_lossy(out), String::from_utf8_lossy(error))
        })?;
        ensure!(answer["status"] == "success", "Prometheus does not take it: {answer}");
        Ok(answer)
    }
}

/// Runs the demo's node under traffic for some minutes, and gives its history to `read`.
pub fn record(root: &Path, program: &Path, read: impl FnOnce(&History) -> Result<()>) -> Result<()> {
    super::needs_root()?;
    println!("laying out the demo's node, and driving its traffic for {} s", LENGTH.as_secs());
    let tools = Tools::find(root)?;
    let world = World::new()?;
    copy_policies(&world, &root.join("deploy/examples/batchivo"))?;
    let _servers = servers::start(&world, &tools)?;
    let more = configuration(&world)?;
    let _agent = Agent::start(&world, program, &["--config", &more])?;
    let mut prometheus = prometheus(&world)?;
    let from = now()?;
    let mut driver = Driver { world: &world, tools: &tools, ledger: Vec::new() };
    unenforced(&mut driver, from + LENGTH.as_secs() / 2)?;
    enforced(&mut driver, from + LENGTH.as_secs())?;
    prometheus.check()?;
    read(&History { place: world.lab.host_place("curl")?, from, until: now()? })?;
    prometheus.terminate(Duration::from_secs(20))
}

fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs())
}

/// A configuration with which minutes show what takes days elsewhere.
fn configuration(world: &World) -> Result<String> {
    let path = |name: &str| world.lab.directory().join(name);
    fs::write(path("accepted.yaml"), ACCEPTED)?;
    let text = format!(
        "lookEvery: 5s\nunusedAfter: 2m\nunusedCoverage: 0.9\nacceptedFlows: {}\n",
        path("accepted.yaml").display()
    );
    fs::write(path("agent.yaml"), text)?;
    Ok(path("agent.yaml").display().to_string())
}

fn prometheus(world: &World) -> Result<Process> {
    let config = serde_json::json!({
        "global": {"scrape_interval": format!("{STEP}s")},
        "scrape_configs": [{
            "job_name": "netaudit", "honor_labels": true,
            "static_configs": [{"targets": [agent::address().to_string()]}],
        }],
    });
    // JSON is YAML.
    let path = world.lab.directory().join("prometheus.yml");
    fs::write(&path, config.to_string())?;
    let arguments = [
        format!("--config.file={}", path.display()),
        format!("--storage.tsdb.path={}", world.lab.data("prometheus")?.display()),
        format!("--web.listen-address={LISTEN}"),
    ];
    Launch::new("prometheus", arguments)
        .spawn(&world.lab.host_place("prometheus")?, &world.lab.log("prometheus"))
}

/// The demo's own attempts, over and over.
fn unenforced(driver: &mut Driver<'_>, until: u64) -> Result<()> {
    for (round, pause) in PAUSES.into_iter().cycle().enumerate() {
        scenario::allowed(driver)?;
        if round % 2 == 0 {
            scenario::forbidden(driver)?;
            scenario::admin_jobs(driver, false)?;
        }
        if round == 0 {
            raw_socket(driver)?;
        }
        if now()? >= until {
            return Ok(());
        }
        thread::sleep(Duration::from_secs(pause));
    }
    Ok(())
}

/// What is allowed goes on, with attempts that a filter stops.
fn enforced(driver: &mut Driver<'_>, until: u64) -> Result<()> {
    let world = driver.world;
    let (stranger, backend, redis) = (&world.stranger, &world.backend, &world.redis);
    let stores = [(&world.postgres, 5432), (&world.minio, 9000), (redis, 6379)];
    world.lab.write_manifest("monitoring.yaml", MONITORING)?;
    // The policy takes a while until it bites, as it does with every enforcer.
    for _ in 0..3 {
        thread::sleep(Duration::from_secs(1));
        tried(&stranger.place, &format!("{}:8000", backend.v4))?;
    }
    world.lab.node().nft(&format!(
        "table inet enforcer {{
            chain forward {{
                type filter hook forward priority 0;
                ct state established,related accept
                ip saddr {} meta l4proto tcp drop
                ip saddr {} ip daddr {BLOCKED} drop
            }}
        }}",
        stranger.v4, backend.v4
    ))?;
    for pause in PAUSES.into_iter().cycle() {
        scenario::allowed(driver)?;
        for (pod, port) in stores {
            tried(&stranger.place, &format!("{}:{port}", pod.v4))?;
        }
        // Nobody filters the frontend.
        tried(&world.frontend.place, &format!("{}:5432", world.postgres.v4))?;
        // The backend's own policy allows this one.
        tried(&backend.place, &format!("{BLOCKED}:443"))?;
        if now()? >= until {
            return Ok(());
        }
        thread::sleep(Duration::from_secs(pause));
    }
    Ok(())
}

/// Connects within a second, or not.
fn tried(place: &Place, target: &str) -> Result<()> {
    let url = format!("telnet://{target}");
    Launch::new("curl", ["-s", "-m", "1", "-o", "/dev/null", &url]).run(place, Duration::from_secs(5))?;
    Ok(())
}

fn raw_socket(driver: &Driver<'_>) -> Result<()> {
    let program = "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)";
    let place = &driver.world.netpol_test.place;
    let output = Launch::new("/usr/bin/python3", ["-c", program]).run(place, Duration::from_secs(10))?;
    ensure!(output.status.success(), "making a raw socket: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
