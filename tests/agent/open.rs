//! Connections that were open before the agent: their rules are in use, and stay so while they live.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::harness::{NETAUDIT, PATIENCE, World, eventually, kernel_or_skip, of, python_up};
use crate::lab::{BpfFs, Launch, Place, Process};

/// Opens one connection from the client to port 8080 of the server, which both ends keep.
fn open(world: &World) -> Result<(Process, Process)> {
    let client = format!(
        "import socket,time\nc=socket.create_connection(('{}',8080),5)\nprint('up',flush=True)\ntime.sleep(600)\n",
        world.server.v4
    );
    open_by(world, &world.server.place, &client)
}

/// A server in `place` that accepts one connection and keeps it, and the `client`.
fn open_by(world: &World, place: &Place, client: &str) -> Result<(Process, Process)> {
    let server = "import socket,time\ns=socket.create_server(('',8080))\nprint('up',flush=True)\n\
                  c=s.accept()\ns.close()\ntime.sleep(600)\n";
    let server = python_up(world, "keeping-server", place, server)?;
    let client = python_up(world, "keeping-client", &world.client.place, client)?;
    Ok((server, client))
}

/// The server admits the client's workload, and nobody else.
fn admit(world: &World, app: &str) -> Result<()> {
    world.lab.write_manifest(
        "policy.yaml",
        &format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: admit, namespace: shop}}\n\
             spec:\n  podSelector: {{matchLabels: {{app: server}}}}\n  policyTypes: [Ingress]\n\
             \x20 ingress: [{{from: [{{podSelector: {{matchLabels: {{app: {app}}}}}}}]}}]\n"
        ),
    )
}

/// Connects from port 9000 to port 8080 of a server without an agent, and from the same port to itself, of which the end that
/// connected is closed: the other one looks as if it could be the server's.
fn open_beside_a_decoy(world: &World) -> Result<(Process, Process)> {
    let client = format!(
        "import socket,time\nown=('{own}',9000)\ndef one():\n s=socket.socket()\n \
         s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1)\n s.bind(own)\n return s\n\
         l=socket.create_server(('{own}',8081))\na,b=one(),one()\na.connect(('{server}',8080))\n\
         b.connect(('{own}',8081))\nc=l.accept()\nb.close()\nprint('up',flush=True)\ntime.sleep(600)\n",
        own = world.client.v4,
        server = OUTSIDE
    );
    open_by(world, &world.lab.outside_place(), &client)
}

/// A host without an agent.
const OUTSIDE: &str = "192.168.50.1";

fn told(flows: &[Value]) -> Vec<(&str, bool, Option<&str>)> {
    let all = [of(flows, "egress"), of(flows, "ingress")].concat();
    let told = all.into_iter().map(|flow| {
        let before = flow["open_before_start"] == true;
        (flow["direction"].as_str().unwrap_or_default(), before, flow["finding_cause"].as_str())
    });
    told.collect()
}

#[test]
fn a_connection_from_before_keeps_its_rule_in_use_and_is_told_once() -> Result<()> {
    if !kernel_or_skip("open before start") {
        return Ok(());
    }
    let files = BpfFs::mount()?;
    let world = World::new("open")?;
    admit(&world, "client")?;
    let held = open(&world)?;
    let pins = files.pins().display().to_string();
    let config = world.lab.directory().join("config.yaml");
    fs::write(&config, "lookEvery: 2s\n")?;
    let with = [world.arguments(), vec!["--config".to_owned(), config.display().to_string()]].concat();
    let launch = Launch::new(NETAUDIT, [with, vec!["--pin-directory".to_owned(), pins.clone()]].concat());
    let mut agent = world.agent_by(&launch)?;

    let flows = world.wait_for_flows("pair of flows", |flows| told(flows).len() == 2)?;
    assert_eq!(told(&flows), [("egress", true, None), ("ingress", true, None)]);
    let ingress = of(&flows, "ingress")[0];
    assert_eq!((&ingress["outcome"], &ingress["verdict"]), (&"accepted".into(), &"allowed".into()));
    assert_eq!(ingress["rule_paths"][0], "shop/admit ingress[0].from[0]");
    assert_eq!(ingress["subject"]["workload"], "server");
    assert_eq!(ingress["peer"]["workload"], "client");
    assert_eq!(ingress["actor"]["container"], world.server.container_id.as_str());
    assert_eq!(ingress["actor"]["pid"], held.0.pid());

    let last = || world.metric("netaudit_rule_last_match_timestamp_seconds{");
    let first_look = last()?.context("the rule has no last match")?;
    assert_eq!(world.metric("netaudit_rule_matches_total{")?, Some(0.0));
    let open = r#"netaudit_open_connections{direction="ingress",verdict="allowed"}"#;
    eventually("the look is over", || Ok(world.metric(open)? == Some(1.0)))?;
    let found = "netaudit_open_before_start_connections_total{";
    assert_eq!(world.metric_sum(found)?, 2.0);

    // The next looks, of which from the third on the kernel takes it for told.
    eventually("the rule is in use still", || Ok(last()?.is_some_and(|last| last > first_look + 5.5)))?;
    assert_eq!(world.metric("netaudit_rule_matches_total{")?, Some(0.0));
    assert_eq!(told(&world.flows()?).len(), 2, "told once");

    // Killed, and started again with what is pinned: it is known to be told. A new one is told by its hooks.
    drop(agent);
    agent = world.agent_by(&launch)?;
    eventually("the look is over", || Ok(world.metric(open)? == Some(1.0)))?;
    ensure!(last()?.is_some_and(|last| last > first_look + 5.5), "and the rule is in use");
    assert_eq!((told(&world.flows()?).len(), world.metric_sum(found)?), (2, 0.0));

    // Its policy changes: what is open is older than that.
    admit(&world, "somebody-else")?;
    let flows = world.wait_for_flows("violation", |flows| told(flows).len() == 3)?;
    assert_eq!(told(&flows)[2], ("ingress", false, Some("older than the policy")));
    ensure!(of(&flows, "ingress")[1]["open_since"].is_string());
    assert_eq!(world.metric_sum("netaudit_violations_total{")?, 1.0);
    agent.terminate(Duration::from_secs(2))?;

    // Without pins nothing is known of it.
    let uninstall = Launch::new(NETAUDIT, ["uninstall", "--pin-directory", &pins]);
    ensure!(uninstall.run(&world.agent_place()?, PATIENCE)?.status.success());
    let mut agent = world.agent()?;
    let flows = world.wait_for_flows("pair of flows again", |flows| told(flows).len() == 5)?;
    assert_eq!(of(&flows, "ingress")[2]["finding_cause"], "older connection");
    agent.terminate(Duration::from_secs(2))?;
    drop(held);
    Ok(())
}

#[test]
fn a_connection_of_ones_own_from_the_same_port_hides_none() -> Result<()> {
    if !kernel_or_skip("open beside a decoy") {
        return Ok(());
    }
    let world = World::new("decoy")?;
    let held = open_beside_a_decoy(&world)?;
    let config = world.lab.directory().join("config.yaml");
    fs::write(&config, "lookEvery: 1s\n")?;
    let with = [world.arguments(), vec!["--config".to_owned(), config.display().to_string()]].concat();
    let mut agent = world.agent_by(&Launch::new(NETAUDIT, with))?;
    let flows = world.wait_for_flows("flow", |flows| told(flows).len() == 1)?;
    assert_eq!(told(&flows), [("egress", true, None)]);
    assert!(of(&flows, "egress")[0]["translation"].is_null(), "{flows:#?}");
    // From now on the client may connect nowhere.
    world.lab.write_manifest(
        "policy.yaml",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: stay, namespace: shop}\n\
         spec: {podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]}\n",
    )?;
    let flows = world.wait_for_flows("violation", |flows| told(flows).len() == 2)?;
    let violation = of(&flows, "egress")[1];
    assert_eq!(violation["finding_cause"], "older than the policy", "{violation:#}");
    assert_eq!(violation["verdict"], "denied");
    agent.terminate(Duration::from_secs(2))?;
    drop(held);
    Ok(())
}

/// A pipe that is full: whoever writes to it waits.
fn full_pipe(path: &Path) -> Result<File> {
    use rustix::fs::{FileType, Mode, mknodat};
    mknodat(rustix::fs::CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let mut pipe = File::options().read(true).write(true).custom_flags(nonblocking).open(path)?;
    loop {
        match pipe.write(&[b'\n'; 4_096]) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(pipe),
            Err(error) => return Err(error.into()),
        }
    }
}

#[test]
fn agents_that_are_killed_before_they_have_written_it_leave_it_to_the_next() -> Result<()> {
    if !kernel_or_skip("open and killed") {
        return Ok(());
    }
    let files = BpfFs::mount()?;
    let world = World::new("untold")?;
    admit(&world, "client")?;
    let held = open(&world)?;
    let config = world.lab.directory().join("config.yaml");
    fs::write(&config, "lookEvery: 1s\n")?;
    let with = |flow_log: &Path| {
        let mut arguments = world.arguments();
        let target = arguments.iter().position(|it| it == "--flow-log").unwrap_or_default() + 1;
        arguments[target] = flow_log.display().to_string();
        let config = ["--config".to_owned(), config.display().to_string()];
        let pins = ["--pin-directory".to_owned(), files.pins().display().to_string()];
        Launch::new(NETAUDIT, [&arguments[..], &config, &pins].concat())
    };
    let pipe = world.lab.directory().join("pipe");
    let _full = full_pipe(&pipe)?;
    let last = || world.metric("netaudit_rule_last_match_timestamp_seconds{");
    for _ in 0..3 {
        let agent = world.agent_by(&with(&pipe))?;
        eventually("it is found", || Ok(last()?.is_some()))?;
        let first_look = last()?;
        eventually("two more looks", || {
            Ok(last()?.zip(first_look).is_some_and(|(last, first)| last > first + 1.5))
        })?;
        // Dropping kills.
        drop(agent);
    }
    for again in 0..2 {
        let agent = world.agent_by(&with(&world.flow_log()))?;
        let flows = world.wait_for_flows("pair of flows", |flows| told(flows).len() >= 2)?;
        assert_eq!(told(&flows), [("egress", true, None), ("ingress", true, None)], "{again}");
        for direction in ["egress", "ingress"] {
            assert_eq!(of(&flows, direction)[0]["maybe_repeated"], true);
        }
        // What is written is known as told a drain later.
        std::thread::sleep(Duration::from_secs(2));
        drop(agent);
    }
    assert_eq!(told(&world.flows()?).len(), 2, "told once");
    drop(held);
    Ok(())
}
