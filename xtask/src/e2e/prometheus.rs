//! A real Prometheus that scrapes the agents of both nodes, asked what the flow logs tell.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::world::{AGENT_PORT, Line, World};
use crate::{account::record::End, cluster::Machine};

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

/// Violations with all their labels, and the matches of every rule, are the flow logs' own, on each node, and nothing was
/// lost.
///
/// Only for agents that have not been replaced since their flow log began. A policy that is gone has no series: `gone`.
pub fn compare(world: &mut World, gone: &str) -> Result<()> {
    world.settle()?;
    let mut violations = Counts::new();
    let mut matches = Counts::new();
    for line in world.lines() {
        let record = &line.record;
        if record.verdict == "denied" {
            *violations.entry(violation(line)).or_default() += 1.0;
        }
        // One flow is one match of a rule, whichever of its elements fit.
        let rules: BTreeSet<&str> =
            record.rule_paths.iter().map(|path| path.split('.').next().unwrap_or(path)).collect();
        for rule in rules.into_iter().filter(|rule| !rule.starts_with(gone)) {
            *matches.entry(format!("{} {rule}", line.node)).or_default() += 1.0;
        }
    }
    ensure!(!violations.is_empty() && !matches.is_empty(), "nothing to compare");
    agree(world, "violations", &violations, "netaudit_violations_total", |node, label| {
        format!(
            "{node} {} {}/{} to {}/{} {}/{} {} {}",
            label("direction"),
            label("source_namespace"),
            label("source_workload"),
            label("destination_namespace"),
            label("destination_workload"),
            label("protocol"),
            label("port"),
            label("finding"),
            label("policy")
        )
    })?;
    let expression = "netaudit_rule_matches_total * on (instance, kind, namespace, networkpolicy, direction, rule) \
                      group_left (path) netaudit_rule_info";
    agree(world, "matches of rules", &matches, expression, |node, label| {
        format!("{node} {}/{} {}", label("namespace"), label("networkpolicy"), label("path"))
    })?;
    for (what, expression) in
        [("records lost", "netaudit_records_lost_total"), ("agents down", "count(up == 0) or vector(0)")]
    {
        let found = query(&world.cluster.nodes[0], expression)?;
        let found: Vec<_> = found.iter().filter(|(_, value)| *value != 0.0).collect();
        ensure!(found.is_empty(), "{what}: {found:?}");
    }
    Ok(())
}

/// How often each of something was seen.
type Counts = BTreeMap<String, f64>;

/// A denied flow by what its series must be called.
fn violation(line: &Line) -> String {
    let record = &line.record;
    let name = |end: &End| match end.kind.as_str() {
        "pod" => format!(
            "{}/{}",
            end.namespace.as_deref().unwrap_or_default(),
            end.workload.as_deref().unwrap_or_default()
        ),
        "service" => end.service.clone().unwrap_or_default(),
        other => format!("/{other}"),
    };
    let (source, destination) = match record.direction.as_str() {
        "egress" => (&record.subject, &record.peer),
        _ => (&record.peer, &record.subject),
    };
    format!(
        "{} {} {} to {} {}/{} {} {}",
        line.node,
        record.direction,
        name(source),
        name(destination),
        record.protocol,
        record.port,
        record.finding.as_deref().unwrap_or_default(),
        record.denied_by.first().map_or("", String::as_str)
    )
}

/// Waits until Prometheus answers with what is expected, apart from what it has never counted; `name` makes a key of a node
/// and of labels.
fn agree(
    world: &World,
    what: &str,
    expected: &Counts,
    expression: &str,
    name: impl Fn(&str, &dyn Fn(&str) -> String) -> String,
) -> Result<()> {
    let node_of = |instance: &str| {
        let node = world
            .cluster
            .nodes
            .iter()
            .find(|node| instance.starts_with(&format!("{}:", world.cluster.node_address(&node.name))));
        node.map_or_else(|| instance.to_owned(), |node| node.name.clone())
    };
    let mut last = Counts::new();
    let agreed = world.wait_up_to(Duration::from_secs(15), || {
        last.clear();
        for (labels, value) in query(&world.cluster.nodes[0], expression)? {
            let label = |name: &str| labels[name].as_str().unwrap_or_default().to_owned();
            if value > 0.0 {
                *last.entry(name(&node_of(&label("instance")), &label)).or_default() += value;
            }
        }
        Ok((last == *expected).then_some(()))
    });
    agreed.with_context(|| {
        let side = |one: &Counts, other: &Counts| {
            let differ = one.iter().filter(|(key, value)| other.get(*key) != Some(*value));
            differ.map(|(key, value)| format!("\n    {value} {key}")).collect::<String>()
        };
        format!(
            "{what} differ: only the flow logs have{}\n  only Prometheus has{}",
            side(expected, &last),
            side(&last, expected)
        )
    })
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
