//! A real Prometheus scrapes a real agent, and promtool finds nothing to complain about.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::harness::{LISTEN, World, eventually, kernel_or_skip};
use crate::lab::{Launch, Process};

const QUERIES: &str = "127.0.0.1:9090";

#[test]
fn prometheus_scrapes_what_the_readme_promises() -> Result<()> {
    if !kernel_or_skip("prometheus") {
        return Ok(());
    }
    let world = World::new("prometheus")?;
    world.deny_all()?;
    world.lab.write_object(&kindnet())?;
    let _server = world.serve()?;
    let _agent = world.agent()?;
    world.connect(3)?;
    eventually("violations are counted", || Ok(world.metric("netaudit_violations_total{")? == Some(3.0)))?;
    check_by_promtool(&world.get("/metrics")?.1)?;

    let mut prometheus = start(&world, json!({}))?;
    eventually("the violation is in Prometheus", || {
        prometheus.check()?;
        let answer =
            query(&world, "netaudit_violations_total{source_workload=\"client\"}").unwrap_or_default();
        Ok(answer["data"]["result"][0]["value"][1] == "3")
    })?;
    // The README's own queries.
    let alert = query(&world, "time() - netaudit_violation_last_timestamp_seconds < 300")?;
    assert_eq!(alert["data"]["result"].as_array().map(Vec::len), Some(1), "{alert:#}");
    let join = "netaudit_rule_matches_total * on (kind, namespace, networkpolicy, direction, rule) group_left (path) netaudit_rule_info";
    assert_eq!(query(&world, join)?["status"], "success");
    // Whose network it is, and how long a connection to a pod takes.
    let network = query(&world, "netaudit_enforcement_info")?;
    assert_eq!(network["data"]["result"][0]["metric"]["cni"], "kindnet", "{network:#}");
    let quantile = "histogram_quantile(0.5, netaudit_connect_duration_seconds_bucket{destination=\"pod\"})";
    let quantile = query(&world, quantile)?;
    let seconds: f64 = quantile["data"]["result"][0]["value"][1].as_str().context("no quantile")?.parse()?;
    assert!(seconds > 0.0 && seconds < 1.0, "{quantile:#}");
    let count = query(&world, "netaudit_connect_duration_seconds_count{destination=\"pod\"}")?;
    assert_eq!(count["data"]["result"][0]["value"][1], "3", "{count:#}");
    let up = query(&world, "up{job=\"netaudit\"}")?;
    assert_eq!(up["data"]["result"][0]["value"][1], "1");
    prometheus.terminate(Duration::from_secs(20))
}

/// The network's pod on this node, as kind has it.
fn kindnet() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": "kube-system", "name": "kindnet-x7k2p", "uid": "5f0d8a52-0000-4000-8000-000000000001",
            "labels": {"app": "kindnet", "k8s-app": "kindnet", "tier": "node"},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "kindnet",
                "uid": "5f0d8a52-0000-4000-8000-000000000002", "controller": true,
            }],
        },
        "spec": {"nodeName": crate::lab::NODE_NAME, "hostNetwork": true, "containers": [{"name": "kindnet-cni", "image": "kindnetd"}]},
        "status": {"phase": "Running", "podIP": "192.168.50.10", "podIPs": [{"ip": "192.168.50.10"}]},
    })
}

pub(super) fn check_by_promtool(metrics: &str) -> Result<()> {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting promtool (cargo xtask setup installs it)")?;
    promtool.stdin.take().context("stdin is piped")?.write_all(metrics.as_bytes())?;
    let output = promtool.wait_with_output()?;
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.trim().is_empty(), "promtool check metrics: {said}\n{metrics}");
    Ok(())
}

/// Starts a Prometheus beside the agent that scrapes it each second; `more` is further configuration, such as rules.
pub(super) fn start(world: &World, more: Value) -> Result<Process> {
    let mut config = json!({
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "scrape_configs": [{"job_name": "netaudit", "honor_labels": true, "static_configs": [{"targets": [LISTEN]}]}],
    });
    for (key, value) in more.as_object().context("configuration is an object")? {
        config[key] = value.clone();
    }
    // JSON is YAML.
    let path = world.lab.directory().join("prometheus.yml");
    fs::write(&path, config.to_string())?;
    let arguments = [
        format!("--config.file={}", path.display()),
        format!("--storage.tsdb.path={}", world.lab.data("prometheus")?.display()),
        format!("--web.listen-address={QUERIES}"),
    ];
    Launch::new("prometheus", arguments)
        .spawn(&world.lab.host_place("prometheus")?, &world.lab.log("prometheus"))
}

/// An instant query, asked from the node's network namespace.
pub(super) fn query(world: &World, expression: &str) -> Result<Value> {
    ask(world, "query", &[&format!("query={expression}")])
}

/// The same over the last `seconds`, a value each second.
pub(super) fn query_range(world: &World, expression: &str, seconds: u64) -> Result<Value> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let query = format!("query={expression}");
    ask(world, "query_range", &[&query, &format!("start={}", now - seconds), &format!("end={now}"), "step=1"])
}

fn ask(world: &World, endpoint: &str, parameters: &[&str]) -> Result<Value> {
    let url = format!("http://{QUERIES}/api/v1/{endpoint}");
    let mut arguments = vec!["-sS", &url];
    arguments.extend(parameters.iter().flat_map(|parameter| ["--data-urlencode", parameter]));
    let output =
        Launch::new("curl", arguments).run(&world.lab.host_place("curl")?, Duration::from_secs(10))?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{url} said {:?}", String::from_utf8_lossy(&output.stdout)))
}
