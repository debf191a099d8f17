//! Findings as `Report` objects of a real API server.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    control_plane::{ControlPlane, agent_with, api_server_or_skip, deny_egress, roles, try_ports},
    harness::{World, eventually},
};
use crate::lab::NODE_NAME;

/// The fields of the published definition that we write, as strict as it is: what is not said here is cut off.
pub(super) fn definition() -> Value {
    let text = json!({"type": "string"});
    let number = json!({"type": "integer"});
    let reference = json!({"type": "object", "properties": {
        "apiVersion": text, "kind": text, "namespace": text, "name": text, "uid": text,
    }});
    let result = json!({"type": "object", "required": ["policy"], "properties": {
        "policy": text, "rule": text, "category": text, "message": text, "scored": {"type": "boolean"},
        "severity": {"type": "string", "enum": ["critical", "high", "low", "medium", "info"]},
        "result": {"type": "string", "enum": ["pass", "fail", "warn", "error", "skip"]},
        "timestamp": {"type": "object", "required": ["nanos", "seconds"], "properties": {
            "nanos": {"type": "integer", "format": "int32"}, "seconds": {"type": "integer", "format": "int64"},
        }},
        "resources": {"type": "array", "items": reference},
        "properties": {"type": "object", "additionalProperties": text},
    }});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "reports.openreports.io"},
        "spec": {
            "group": "openreports.io", "scope": "Namespaced",
            "names": {"kind": "Report", "listKind": "ReportList", "plural": "reports", "singular": "report"},
            "versions": [{
                "name": "v1alpha1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "source": text,
                    "summary": {"type": "object", "properties": {
                        "pass": number, "fail": number, "warn": number, "error": number, "skip": number,
                    }},
                    "results": {"type": "array", "items": result},
                }}},
            }],
        },
    })
}

fn report(plane: &ControlPlane<'_>) -> Result<Option<Value>> {
    let mut reports = plane.list("openreports.io/v1alpha1", "Report")?;
    assert!(reports.len() <= 1, "{reports:#?}");
    Ok(reports.pop())
}

/// Of the result for this port: how many flows it has.
fn count(plane: &ControlPlane<'_>, port: u16) -> Result<Option<String>> {
    let Some(report) = report(plane)? else { return Ok(None) };
    let (results, port) = (report["results"].as_array().context("results")?, port.to_string());
    let result = results.iter().find(|it| it["properties"]["port"] == *port);
    Ok(result.and_then(|it| it["properties"]["count"].as_str()).map(str::to_owned))
}

fn says(world: &World, words: &[&str]) -> Result<bool> {
    let (status, readiness) = world.get("/readyz")?;
    Ok(status == 200 && words.iter().all(|word| readiness.contains(word)))
}

/// Writes a configuration with these lines, and launches an agent by it.
fn agent(world: &World, plane: &ControlPlane<'_>, lines: &str) -> Result<crate::lab::Process> {
    let config = world.lab.directory().join("config.yaml");
    fs::write(&config, format!("reports: true\nreportsEvery: 1s\ndiscoverEvery: 1s\n{lines}"))?;
    world.agent_by(&agent_with(world, plane, &["--config", &config.display().to_string()])?)
}

#[test]
fn reports_appear_change_go_on_in_the_next_run_and_expire() -> Result<()> {
    let Some(programs) = api_server_or_skip("reports") else { return Ok(()) };
    let world = World::new("reports")?;
    let plane = ControlPlane::new(&world, programs)?;
    plane.apply_manifests()?;
    plane.apply(deny_egress())?;
    roles(&plane, "base/rbac.yaml")?;
    let _server = world.serve()?;

    // Neither the right nor the kind: each is said, and nothing else suffers.
    let mut first = agent(&world, &plane, "")?;
    eventually("the missing right is said", || says(&world, &["reports are not written", "forbidden"]))?;
    roles(&plane, "components/reports/rbac.yaml")?;
    eventually("the missing kind is said", || {
        says(&world, &["reports are not written", "has no kind Report of openreports.io/v1alpha1"])
    })?;
    world.connect(2)?;
    plane.apply(definition())?;
    eventually("the report is there", || {
        Ok(plane.list("openreports.io/v1alpha1", "Report").is_ok_and(|reports| !reports.is_empty()))
    })?;
    eventually("nothing is degraded", || Ok(!says(&world, &["reports are not written"])?))?;
    let written = report(&plane)?.context("a report")?;
    let nodes = plane.list("v1", "Node")?;
    assert_eq!(written["metadata"]["name"], format!("netaudit-{NODE_NAME}"));
    assert_eq!(written["metadata"]["namespace"], "shop");
    assert_eq!(
        written["metadata"]["ownerReferences"],
        json!([{"apiVersion": "v1", "kind": "Node", "name": NODE_NAME, "uid": nodes[0]["metadata"]["uid"]}])
    );
    assert_eq!(written["summary"], json!({"pass": 0, "fail": 1, "warn": 0, "error": 0, "skip": 0}));
    let result = &written["results"][0];
    // The lab's pods have no controllers on the API server.
    let pod = |name: &str| json!({"apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": name});
    assert_eq!(result["resources"], json!([pod(world.client.spec.name), pod(world.server_name())]));
    assert_eq!((&result["severity"], &result["result"]), (&json!("critical"), &json!("fail")));
    assert_eq!(result["policy"], "NetworkPolicy/shop/closed");
    assert_eq!(result["properties"]["cause"], Value::Null, "one pod does not show that nothing enforces");
    assert!(result["timestamp"]["seconds"].as_i64().is_some_and(|it| it > 1_700_000_000), "{result:#}");
    assert!(result["message"].as_str().is_some_and(|it| it.contains("passed though")), "{result:#}");

    // News at once, counts after a while.
    try_ports(&world, 9000..9001)?;
    eventually("another result", || Ok(count(&plane, 9000)?.is_some()))?;
    world.connect(1)?;
    eventually("its count", || Ok(count(&plane, 8080)?.as_deref() == Some("3")))?;
    assert_eq!(world.metric_sum("netaudit_report_findings{told=\"whole\"}")?, 2.0);
    assert_eq!(
        world.metric_sum("netaudit_report_writes_total{result=\"failed\"}")?,
        1.0,
        "the missing right"
    );

    // What came in the last moment is written before the end.
    world.connect(1)?;
    first.terminate(Duration::from_secs(2))?;
    assert_eq!(count(&plane, 8080)?.as_deref(), Some("4"));

    // The next run adds to it, and writes it again when somebody has removed the kind and put it back.
    let mut second = agent(&world, &plane, "")?;
    world.connect(1)?;
    eventually("the counts go on", || Ok(count(&plane, 8080)?.as_deref() == Some("5")))?;
    assert_eq!(count(&plane, 9000)?.as_deref(), Some("1"));
    second.terminate(Duration::from_secs(2))?;

    // Without anything new they end.
    let mut third = agent(&world, &plane, "violationSeriesLifetime: 2s\n")?;
    eventually("the report is gone", || Ok(report(&plane)?.is_none()))?;

    // Where the namespace ends there is nothing to be told, and nothing is wrong.
    plane.delete("v1", "Namespace", "", "shop")?;
    world.connect(1)?;
    eventually("the flow is judged", || Ok(world.metric_sum("netaudit_violations_total{")? > 0.0))?;
    std::thread::sleep(Duration::from_secs(2));
    assert!(report(&plane)?.is_none());
    assert!(!says(&world, &["reports are not written"])?, "{}", third.log_tail());
    third.terminate(Duration::from_secs(2))
}
