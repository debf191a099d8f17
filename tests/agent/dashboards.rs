//! Every query of every dashboard is answered by a real Prometheus that has scraped a real agent.

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    harness::{NETAUDIT, World, eventually, kernel_or_skip, python},
    prometheus::{query, query_range, start},
};
use crate::{
    alerts::{programs_or_skip, queries, rules, runbook},
    deploy::deploy,
    lab::Launch,
};

/// Metrics of which this scene has no value, and why. What is here and has one after all is an error.
const EMPTY: &[(&str, &str)] = &[
    ("netaudit_pod_start_exposure_seconds_bucket", NOTHING_ENFORCES),
    ("netaudit_policy_change_exposure_seconds_bucket", NOTHING_ENFORCES),
    ("netaudit_suspected_blocks_total", "nothing blocks here"),
];
const NOTHING_ENFORCES: &str = "nothing enforces here, so nobody stays open until somebody does";

/// The dashboards, by name of file.
fn dashboards() -> Result<Vec<(String, Value)>> {
    let mut files: Vec<PathBuf> = fs::read_dir(deploy().join("dashboards"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    files.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path)?;
        let name = path.file_stem().context("a name")?.to_string_lossy().into_owned();
        Ok((name, serde_json::from_str(&text).with_context(|| format!("{path:?}"))?))
    };
    files.into_iter().map(read).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[test]
fn dashboards_are_what_grafana_and_its_readers_need() -> Result<()> {
    let dashboards = dashboards()?;
    let names: Vec<&str> = dashboards.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["netaudit-agents", "netaudit-overview", "netaudit-rules", "netaudit-violations"]);
    for (name, dashboard) in &dashboards {
        assert_eq!(&dashboard["uid"], name, "the name of the file is the dashboard's own");
        let variables = list(&dashboard["templating"]["list"]);
        let variables: Vec<&str> =
            variables.iter().filter_map(|variable| variable["name"].as_str()).collect();
        assert!(variables.starts_with(&["datasource", "job", "instance"]), "{name}: {variables:?}");
        let mut ids = BTreeSet::new();
        let mut cells = BTreeSet::new();
        for panel in list(&dashboard["panels"]) {
            let title = panel["title"].as_str().context("a title")?;
            assert!(ids.insert(panel["id"].as_u64()), "{name}: the id of {title} is used twice");
            assert!(panel["description"].as_str().is_some_and(|text| text.ends_with('.')), "{name}: {title}");
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{name}: {title} has no unit");
            let at = |side: &str| panel["gridPos"][side].as_u64().with_context(|| format!("{title}: {side}"));
            let (x, y, w, h) = (at("x")?, at("y")?, at("w")?, at("h")?);
            assert!(x + w <= 24, "{name}: {title} is wider than the page");
            for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                assert!(cells.insert(cell), "{name}: {title} lies over another panel");
            }
            for target in list(&panel["targets"]) {
                let expression = target["expr"].as_str().context("a query")?;
                assert_eq!(target["datasource"]["uid"], "${datasource}", "{name}: {title}");
                assert!(
                    expression.contains("job=~\"$job\", instance=~\"$instance\""),
                    "{name}: {expression}"
                );
                assert!(
                    !expression.contains('[') || expression.contains("[$__rate_interval]"),
                    "{expression}"
                );
            }
        }
    }
    Ok(())
}

/// Text as it stands in SVG.
fn in_svg(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[test]
fn each_dashboard_has_a_picture_of_what_it_is_now() -> Result<()> {
    let docs = deploy().join("../netaudit/docs");
    let page = fs::read_to_string(docs.join("alerts.md"))?;
    let mut pictures: BTreeSet<String> = fs::read_dir(docs.join("dashboards"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<_>>()?;
    for (name, dashboard) in dashboards()? {
        let file = format!("{name}.svg");
        let again =
            format!("{file} is of another dashboard than this: draw it again by `cargo xtask dashboards`");
        ensure!(pictures.remove(&file), "{name} has no picture: `cargo xtask dashboards` draws it");
        ensure!(page.contains(&format!("](dashboards/{file})")), "alerts.md does not show {file}");
        let svg = fs::read_to_string(docs.join("dashboards").join(&file))?;
        ensure!(svg.len() < 64 * 1024, "{file} has {} bytes", svg.len());
        ensure!(svg.contains("drawn by netaudit's own renderer from real data, not Grafana"), "{file}");
        for panel in list(&dashboard["panels"]) {
            let title = panel["title"].as_str().context("a title")?;
            ensure!(svg.contains(&format!(">{}</text>", in_svg(title))), "{title:?} is missing: {again}");
            for target in list(&panel["targets"]) {
                let query = target["expr"].as_str().context("a query")?;
                ensure!(svg.contains(&in_svg(query)), "{title} has another query: {again}");
            }
        }
    }
    ensure!(pictures.is_empty(), "pictures of no dashboard: {pictures:?}");
    Ok(())
}

/// A client that its own policy denies port 8080, where a server admits it, and that makes a raw socket.
fn scene(world: &World) -> Result<()> {
    world.lab.write_manifest(
        "policies.yaml",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: client, namespace: shop}\n\
         spec: {podSelector: {matchLabels: {app: client}}, policyTypes: [Egress],\n\
         \x20 egress: [{to: [{podSelector: {matchLabels: {app: server}}}], ports: [{port: 8081}]}]}\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: server, namespace: shop}\n\
         spec: {podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress],\n\
         \x20 ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}\n",
    )
}

/// Whether an answer of Prometheus has a value that is a number.
fn has_value(answer: &Value) -> bool {
    list(&answer["data"]["result"]).iter().any(|series| {
        let single = std::slice::from_ref(&series["value"]);
        let values = if series["values"].is_array() { list(&series["values"]) } else { single };
        values
            .iter()
            .any(|value| value[1].as_str().is_some_and(|text| text.parse().is_ok_and(f64::is_finite)))
    })
}

/// Names of our metrics in a query.
fn metrics(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("netaudit_"))
}

#[test]
fn every_query_of_the_dashboards_and_alerts_is_answered() -> Result<()> {
    let test = "the dashboards' queries";
    if !kernel_or_skip(test) || !programs_or_skip(test, &["prometheus"]) {
        return Ok(());
    }
    let world = World::new("dashboards")?;
    scene(&world)?;
    let _server = world.serve()?;
    let mut arguments = world.arguments();
    // A rule that is watched for a second may be called unused here.
    arguments.extend(["--dns-names", "--unused-after", "1s"].map(str::to_owned));
    let accepted = world.lab.directory().join("accepted.yaml");
    fs::write(
        &accepted,
        "accepted: [{name: tried, why: a test, owner: tests, until: 2199-12-31, ports: [9]}]\n",
    )?;
    arguments.extend(["--accepted-flows".to_owned(), accepted.display().to_string()]);
    let _agent = world.agent_by(&Launch::new(NETAUDIT, arguments))?;
    let mut prometheus = start(&world, json!({}))?;
    world.connect(3)?;
    python(
        &world.client.place,
        "import socket\nsocket.socket(socket.AF_INET,socket.SOCK_RAW,socket.IPPROTO_TCP)\n",
    )?;

    let mut used_as_empty = BTreeSet::new();
    let mut asked = 0;
    for (name, dashboard) in dashboards()? {
        for panel in list(&dashboard["panels"]) {
            for target in list(&panel["targets"]) {
                let what = format!("{name}, {}, {}", panel["title"], target["refId"]);
                let expression = target["expr"].as_str().context("a query")?;
                let asks = |world: &World| {
                    let expression = filled_in(expression);
                    if target["instant"] == true {
                        query(world, &expression)
                    } else {
                        query_range(world, &expression, 10)
                    }
                };
                asked += 1;
                if let Some((metric, why)) = empty(expression) {
                    let answer = asks(&world)?;
                    ensure!(answer["status"] == "success", "{what}: {answer}");
                    ensure!(
                        !has_value(&answer),
                        "{what} has values; it is on the list of empty ones, as: {why}"
                    );
                    used_as_empty.insert(metric);
                    continue;
                }
                eventually(&what, || {
                    prometheus.check()?;
                    // A quantile of a rate is no number while nothing happens.
                    if expression.starts_with("histogram_quantile") {
                        world.connect(1)?;
                    }
                    let answer = asks(&world).unwrap_or_default();
                    ensure!(answer["status"] != "error", "{what}: {answer}");
                    Ok(has_value(&answer))
                })?;
            }
        }
    }
    assert!(asked > 40, "only {asked} queries");

    let exported = world.get("/metrics")?.1;
    for rule in rules()? {
        let alert = rule["alert"].as_str().context("a name")?;
        let page = runbook(alert)?;
        for expression in rule["expr"].as_str().into_iter().chain(queries(&page)) {
            ensure!(query(&world, expression)?["status"] == "success", "{alert}: {expression}");
            for metric in metrics(expression) {
                let exists = exported.lines().any(|line| line.starts_with(&format!("# TYPE {metric} ")));
                ensure!(exists, "no agent has {metric}, which {alert} asks for");
            }
        }
    }
    let on_the_list: BTreeSet<&str> = EMPTY.iter().map(|(metric, _)| *metric).collect();
    assert_eq!(used_as_empty, on_the_list, "the list of empty ones has only what is asked for");
    prometheus.terminate(Duration::from_secs(20))
}

/// The query as Grafana sends it, with everything chosen.
fn filled_in(expression: &str) -> String {
    let chosen = expression.replace("$__rate_interval", "4s");
    ["$job", "$instance", "$namespace"]
        .into_iter()
        .fold(chosen, |text, variable| text.replace(variable, ".*"))
}

fn empty(expression: &str) -> Option<(&'static str, &'static str)> {
    let listed = |metric| EMPTY.iter().find(|(name, _)| *name == metric).copied();
    metrics(expression).find_map(listed)
}
