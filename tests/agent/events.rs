//! Findings as Events of a real API server.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    control_plane::{ControlPlane, agent_with, api_server_or_skip, deny_egress, roles, try_ports},
    harness::{World, eventually, python, to},
    reports::definition,
};
use crate::lab::Process;

/// More than a request may take, twice.
const LONG: Duration = Duration::from_secs(60);

/// The agent's events on the API server.
fn events(plane: &ControlPlane<'_>) -> Result<Vec<Value>> {
    let events = plane.list("events.k8s.io/v1", "Event")?;
    Ok(events.into_iter().filter(|event| event["reportingController"] == "netaudit").collect())
}

/// The event of findings on this port, if it is there.
fn on_port(plane: &ControlPlane<'_>, port: u16) -> Result<Option<Value>> {
    let of_port =
        |event: &Value| event["note"].as_str().is_some_and(|it| it.contains(&format!("TCP/{port} ")));
    Ok(events(plane)?.into_iter().find(of_port))
}

fn counted(world: &World, result: &str) -> Result<f64> {
    world.metric_sum(&format!("netaudit_events_total{{result=\"{result}\"}}"))
}

fn uid(plane: &ControlPlane<'_>, pod: &str) -> Result<Value> {
    let pods = plane.list("v1", "Pod")?;
    let pod = pods.iter().find(|it| it["metadata"]["name"] == pod).context("the pod")?;
    Ok(pod["metadata"]["uid"].clone())
}

#[test]
fn without_the_right_it_is_said_and_counted_and_nothing_else_suffers() -> Result<()> {
    let Some(programs) = api_server_or_skip("events without the right") else { return Ok(()) };
    let world = World::new("events-refused")?;
    let plane = ControlPlane::new(&world, programs)?;
    plane.apply_manifests()?;
    plane.apply(deny_egress())?;
    roles(&plane, "base/rbac.yaml")?;
    let _server = world.serve()?;
    let mut agent = world.agent_by(&agent_with(&world, &plane, &["--events"])?)?;
    world.connect(1)?;
    eventually("readiness says so", || {
        let (status, text) = world.get("/readyz")?;
        Ok(status == 200 && text.contains("degraded: events are not written") && text.contains("forbidden"))
    })?;
    agent.wait_until(LONG, "counted", || counted(&world, "failed").is_ok_and(|failed| failed == 1.0))?;
    world.connect(1)?;
    world.wait_for_flows("two flows", |flows| to(flows, "egress", 8080).len() == 2)?;
    assert_eq!(events(&plane)?, Vec::<Value>::new());
    let log = fs::read_to_string(world.lab.log("agent"))?;
    assert_eq!(log.matches("events cannot be written").count(), 1, "{log}");

    // What was refused is in the count of what can be written now.
    roles(&plane, "components/events/rbac.yaml")?;
    agent.wait_until(LONG, "an event for both", || {
        on_port(&plane, 8080).is_ok_and(|event| event.is_some_and(|event| event["series"]["count"] == 2))
    })?;
    eventually("nothing is degraded", || Ok(!world.get("/readyz")?.1.contains("are not written")))?;
    agent.terminate(Duration::from_secs(2))
}

#[test]
fn events_stand_on_the_pod_once_with_their_count_and_within_the_limit() -> Result<()> {
    let Some(programs) = api_server_or_skip("events") else { return Ok(()) };
    let world = World::new("events")?;
    let plane = ControlPlane::new(&world, programs)?;
    plane.apply_manifests()?;
    plane.apply(deny_egress())?;
    for file in ["base/rbac.yaml", "components/events/rbac.yaml"] {
        roles(&plane, file)?;
    }
    let _server = world.serve()?;
    let accepted = world.lab.directory().join("accepted.yaml");
    fs::write(
        &accepted,
        "accepted: [{name: known, why: it moves, owner: team-a, until: 2261-01-01, ports: [9999]}]",
    )?;
    let more = ["--events", "--accepted-flows", &accepted.display().to_string()];
    let mut agent = world.agent_by(&agent_with(&world, &plane, &more)?)?;

    // One event for all of the same.
    world.connect(1)?;
    eventually("an event", || Ok(on_port(&plane, 8080)?.is_some()))?;
    world.connect(4)?;
    eventually(
        "its count",
        || Ok(on_port(&plane, 8080)?.is_some_and(|event| event["series"]["count"] == 5)),
    )?;
    assert_eq!(events(&plane)?.len(), 1);
    let event = on_port(&plane, 8080)?.context("an event")?;
    let client = world.client.spec.name;
    let pod = |name: &str| -> Result<Value> {
        let uid = uid(&plane, name)?;
        Ok(json!({"apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": name, "uid": uid}))
    };
    assert_eq!(event["regarding"], pod(client)?);
    assert_eq!(event["related"], pod(world.server_name())?);
    assert_eq!(event["metadata"]["namespace"], "shop");
    assert_eq!((&event["type"], &event["reason"]), (&json!("Warning"), &json!("Unenforced")));
    assert_eq!((&event["action"], &event["reportingInstance"]), (&json!("Egress"), &json!("node-a")));
    let flows = world.flows()?;
    let first = to(&flows, "egress", 8080)[0]["flow_id"].as_str().context("an id")?;
    assert_eq!(
        event["note"],
        format!(
            "shop/{client} (\"python3\") to shop/{} TCP/8080 (egress) passed though NetworkPolicy/shop/closed denies it; nothing explains why; flow {first}",
            world.server_name()
        )
    );

    // What somebody has accepted is no event, and a pod that is gone meanwhile can have one.
    try_ports(&world, 9999..10_000)?;
    let gone = uid(&plane, client)?;
    plane.delete("v1", "Pod", "shop", client)?;
    eventually("the pod's end is heard", || {
        Ok(world.metric(r#"netaudit_objects{kind="Pod"}"#)? == Some(1.0))
    })?;
    let program = format!(
        "import socket\nopen('/proc/self/comm','w').write('a\"b\\nc')\nsocket.socket().connect_ex(('{}',9000))\n",
        world.server.v4
    );
    python(&world.client.place, &program)?;
    eventually("an event on a pod that is gone", || Ok(on_port(&plane, 9000)?.is_some()))?;
    let event = on_port(&plane, 9000)?.context("an event")?;
    assert_eq!((&event["regarding"]["uid"], &event["reason"]), (&gone, &json!("DeniedRefused")));
    // A process can call itself anything.
    let note = event["note"].as_str().context("a note")?;
    assert!(note.contains(r#"("a\"b\nc")"#) && note.contains("closed port"), "{note}");

    // A scan: ten events of one source in all, and the rest is counted.
    try_ports(&world, 9001..9101)?;
    eventually("what is too much is counted", || Ok(counted(&world, "limited")? == 92.0))?;
    eventually("the others are written", || Ok(events(&plane)?.len() == 10))?;
    assert_eq!(on_port(&plane, 9999)?, None);
    eventually("all is counted", || Ok(counted(&world, "written")? == 14.0))?;
    assert_eq!(counted(&world, "failed")? + counted(&world, "late")?, 0.0);
    agent.terminate(Duration::from_secs(2))
}

/// An agent that writes events and reports, and may.
fn writer(world: &World, plane: &ControlPlane<'_>) -> Result<Process> {
    plane.apply_manifests()?;
    plane.apply(deny_egress())?;
    plane.apply(definition())?;
    for file in ["base/rbac.yaml", "components/events/rbac.yaml", "components/reports/rbac.yaml"] {
        roles(plane, file)?;
    }
    let config = world.lab.directory().join("config.yaml");
    fs::write(&config, "events: true\nreports: true\nreportsEvery: 1s\n")?;
    let agent = world.agent_by(&agent_with(world, plane, &["--config", &config.display().to_string()])?)?;
    eventually("nothing is degraded", || Ok(!world.get("/readyz")?.1.contains("are not written")))?;
    Ok(agent)
}

fn both_are_degraded(world: &World) -> bool {
    world.get("/readyz").is_ok_and(|(status, text)| {
        status == 200
            && text.contains("degraded: events are not written")
            && text.contains("degraded: reports are not written")
    })
}

/// Both tell of the two flows that came while the server was away.
fn both_are_written(world: &World, plane: &ControlPlane<'_>, agent: &mut Process) -> Result<()> {
    agent.wait_until(LONG, "the event", || on_port(plane, 8080).is_ok_and(|event| event.is_some()))?;
    let reports = || plane.list("openreports.io/v1alpha1", "Report");
    agent.wait_until(LONG, "the report", || reports().is_ok_and(|reports| reports.len() == 1))?;
    eventually("the event is counted", || Ok(counted(world, "written")? == 2.0))?;
    assert_eq!(counted(world, "failed")?, 0.0);
    eventually("nothing is degraded", || Ok(!world.get("/readyz")?.1.contains("are not written")))
}

#[test]
fn an_api_server_that_is_away_hears_of_it_later() -> Result<()> {
    let Some(programs) = api_server_or_skip("events while the API server is away") else { return Ok(()) };
    let world = World::new("events-away")?;
    let mut plane = ControlPlane::new(&world, programs)?;
    let _server = world.serve()?;
    let mut agent = writer(&world, &plane)?;
    plane.stop()?;
    world.connect(2)?;
    world.wait_for_flows("two flows", |flows| to(flows, "egress", 8080).len() == 2)?;
    agent.wait_until(LONG, "both degraded", || both_are_degraded(&world))?;
    plane.start()?;
    both_are_written(&world, &plane, &mut agent)?;
    agent.terminate(Duration::from_secs(2))
}

#[test]
fn an_api_server_that_does_not_answer_holds_up_nothing() -> Result<()> {
    let Some(programs) = api_server_or_skip("events while the API server hangs") else { return Ok(()) };
    let world = World::new("events-hang")?;
    let plane = ControlPlane::new(&world, programs)?;
    let _server = world.serve()?;
    let mut agent = writer(&world, &plane)?;
    plane.hold(true)?;
    world.connect(2)?;
    world.wait_for_flows("two flows", |flows| to(flows, "egress", 8080).len() == 2)?;
    agent.wait_until(LONG, "both degraded", || {
        let asked = Instant::now();
        let degraded = both_are_degraded(&world);
        assert!(asked.elapsed() < Duration::from_secs(5), "the agent's loop waits");
        degraded
    })?;
    // More than the queue has room for: none of it is lost but by the limit.
    try_ports(&world, 9000..9200)?;
    eventually("what is too much is counted", || Ok(counted(&world, "limited")? == 191.0))?;
    plane.hold(false)?;
    agent.wait_until(LONG, "all events", || events(&plane).is_ok_and(|events| events.len() == 10))?;
    eventually("they are counted", || Ok(counted(&world, "written")? == 11.0))?;
    assert_eq!(counted(&world, "failed")? + counted(&world, "late")?, 0.0);

    // Nor does it hold up the end.
    plane.hold(true)?;
    world.connect(1)?;
    world.wait_for_flows("another flow", |flows| to(flows, "egress", 8080).len() == 3)?;
    agent.terminate(Duration::from_secs(3))?;
    plane.hold(false)
}
