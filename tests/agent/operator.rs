//! What we ship for the Prometheus operator, given to a real API server that has the operator's own definitions.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use axum::http::Request;
use serde_json::{Value, json};

use super::{
    control_plane::{ControlPlane, api_server_or_skip},
    harness::{World, eventually},
};
use crate::deploy::{deploy, documents};

/// The definitions' plural, and the file of ours.
const OBJECTS: [(&str, &str); 2] = [
    ("prometheusrules", "components/alerts/prometheusrule.yaml"),
    ("podmonitors", "components/podmonitor/podmonitor.yaml"),
];

/// Where `cargo xtask test` put the definitions.
fn definitions_or_skip(test: &str) -> Option<PathBuf> {
    let directory = std::env::var_os("NETAUDIT_DEFINITIONS_DIR").map(PathBuf::from);
    if directory.is_none() {
        eprintln!(
            "SKIPPED {test}: no definitions of the operator; `cargo xtask test` makes them where Go is installed"
        );
    }
    directory
}

/// Makes an object, as `kubectl create --validate=strict` does; an error is what the server says of it.
fn create(plane: &ControlPlane<'_>, plural: &str, object: &Value) -> Result<()> {
    let namespace = object["metadata"]["namespace"].as_str().context("a namespace")?;
    let path = format!(
        "/apis/monitoring.coreos.com/v1/namespaces/{namespace}/{plural}?fieldValidation=Strict&fieldManager=test"
    );
    let request = Request::post(path)
        .header("content-type", "application/json")
        .body(object.to_string().into_bytes())?;
    plane.run(async move |client| Ok(client.request_text(request).await.map(drop)?))
}

/// What the server says against an object.
fn complaint(plane: &ControlPlane<'_>, plural: &str, object: &Value) -> String {
    create(plane, plural, object).map_or_else(|error| format!("{error:#}"), |()| "nothing".to_owned())
}

#[test]
fn the_operators_definitions_accept_our_objects() -> Result<()> {
    let test = "the operator's definitions";
    let Some(programs) = api_server_or_skip(test) else { return Ok(()) };
    let Some(definitions) = definitions_or_skip(test) else { return Ok(()) };
    let world = World::new("operator")?;
    let plane = ControlPlane::new(&world, programs)?;
    plane.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "netaudit"}}))?;
    for (plural, file) in OBJECTS {
        let definition = definitions.join(format!("monitoring.coreos.com_{plural}.yaml"));
        // It begins with the mark of a document.
        let definition = documents(&definition)?.pop().context("a definition")?;
        plane.apply(definition)?;
        let ours = documents(&deploy().join(file))?.remove(0);
        let mut unknown = ours.clone();
        unknown["metadata"]["name"] = "unknown".into();
        unknown["spec"]["nobodyKnowsThis"] = true.into();
        // Served a moment later; this is also how it is seen that the server looks.
        eventually("an unknown field is refused", || {
            Ok(complaint(&plane, plural, &unknown).contains("unknown field \"spec.nobodyKnowsThis\""))
        })?;
        create(&plane, plural, &ours).with_context(|| format!("{file} is refused"))?;
    }

    let mut rules = documents(&deploy().join(OBJECTS[0].1))?.remove(0);
    rules["metadata"]["name"] = "wrong".into();
    rules["spec"]["groups"][0]["rules"][0]["for"] = "five minutes".into();
    let said = complaint(&plane, OBJECTS[0].0, &rules);
    ensure!(said.contains("spec.groups[0].rules[0].for"), "a wrong value: {said}");
    Ok(())
}
