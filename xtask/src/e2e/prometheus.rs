//! A real Prometheus that scrapes the agents of both nodes, asked what the flow logs tell.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::world::{AGENT_PORT, World};
use crate::cluster::Machine;

const PORT: u16 = 9090;

/// Starts it on the first node.
pub fn start(world: &World) -> Result<()> {
    let node = &world.cluster.nodes[0];
    let targets: Vec<String> = world
        .cluster
        .nodes
        .iter()
        .map(|node| format!("{}:{AGENT_PORT}", world.cluster.node_address(&node.name)))
        .collect();
    let config = json!({
        "global": { "scrape_interval": "1s" },
        "scrape_configs": [{ "job_name": "netaudit", "static_configs": [{ "targets": targets }] }],
    });
    fs::write(node.var("tmp/prometheus.json"), config.to_string())?;
    let mut prometheus = node.daemon(
        "prometheus",
        "prometheus",
        [
            "--config.file=/var/tmp/prometheus.json".to_owned(),
            "--storage.tsdb.path=/var/tmp/prometheus".to_owned(),
            format!("--web.listen-address=127.0.0.1:{PORT}"),
        ],
        &[],
    )?;
    prometheus.wait_until(Duration::from_secs(30), "not ready", || {
        node.run("curl", ["-sf", "-m", "2", &format!("http://127.0.0.1:{PORT}/-/ready")]).is_ok()
    })
}

/// Violations by direction and finding are the flow logs' own, on each node, and nothing was lost.
///
/// Only for agents that have not been replaced since their flow log began.
pub fn compare(world: &mut World) -> Result<()> {
    world.settle()?;
    let mut expected: BTreeMap<String, f64> = BTreeMap::new();
    for line in world.lines().filter(|line| line.record.verdict == "denied") {
        let finding = line.record.finding.as_deref().unwrap_or_default();
        *expected.entry(format!("{} {} {finding}", line.node, line.record.direction)).or_default() += 1.0;
    }
    ensure!(!expected.is_empty(), "no violations to compare");
    let address_of = |instance: &str| {
        let node = world
            .cluster
            .nodes
            .iter()
            .find(|node| instance.starts_with(&format!("{}:", world.cluster.node_address(&node.name))));
        node.map_or_else(|| instance.to_owned(), |node| node.name.clone())
    };
    let mut last = BTreeMap::new();
    let agreed = world.wait_up_to(Duration::from_secs(15), || {
        last = query(
            &world.cluster.nodes[0],
            "sum by (instance, direction, finding) (netaudit_violations_total)",
        )?
        .into_iter()
        .filter(|(_, value)| *value > 0.0)
        .map(|(labels, value)| {
            let label = |name: &str| labels[name].as_str().unwrap_or_default().to_owned();
            (format!("{} {} {}", address_of(&label("instance")), label("direction"), label("finding")), value)
        })
        .collect();
        Ok((last == expected).then_some(()))
    });
    agreed.with_context(|| format!("violations: the flow logs have {expected:?}, Prometheus {last:?}"))?;
    for (what, expression) in
        [("records lost", "sum(netaudit_records_lost_total)"), ("agents down", "count(up == 0) or vector(0)")]
    {
        let value = query(&world.cluster.nodes[0], expression)?.first().map_or(0.0, |(_, value)| *value);
        ensure!(value == 0.0, "{what}: {value}");
    }
    Ok(())
}

/// The samples of an instant query: labels and value.
fn query(node: &Machine, expression: &str) -> Result<Vec<(Value, f64)>> {
    let url = format!("http://127.0.0.1:{PORT}/api/v1/query");
    let answer =
        node.run("curl", ["-sf", "-m", "5", "-G", "--data-urlencode", &format!("query={expression}"), &url])?;
    let answer: Value = serde_json::from_str(&answer)?;
    let samples = answer["data"]["result"].as_array().context("Prometheus gave no result")?;
    samples
        .iter()
        .map(|sample| {
            let value = sample["value"][1].as_str().and_then(|value| value.parse().ok());
            Ok((sample["metric"].clone(), value.with_context(|| format!("no value in {sample}"))?))
        })
        .collect()
}
