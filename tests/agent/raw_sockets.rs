//! Raw sockets: counted by workload, and told in the agent's own log.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::harness::{World, eventually, kernel_or_skip, python};

#[test]
fn who_makes_raw_sockets_is_counted_and_logged() -> Result<()> {
    if !kernel_or_skip("raw sockets") {
        return Ok(());
    }
    let world = World::new("raw-sockets")?;
    let mut agent = world.agent()?;
    let program = "import socket\nsocket.socket(socket.AF_INET,socket.SOCK_RAW,socket.IPPROTO_TCP)\n";
    python(&world.client.place, program)?;
    let series = r#"netaudit_raw_sockets_total{kind="raw",namespace="shop",workload="client"}"#;
    eventually("it is counted", || Ok(world.metric(series)? == Some(1.0)))?;
    let last = world.metric("netaudit_raw_socket_last_timestamp_seconds{kind=\"raw\"")?;
    ensure!(last.is_some_and(|last| last > 1.7e9), "{last:?}");
    let log = std::fs::read_to_string(world.lab.log("agent"))?;
    let line = log.lines().find(|line| line.contains("a raw socket was made"));
    for part in [world.client.spec.name, world.client.container_id.as_str(), "python3"] {
        ensure!(line.is_some_and(|line| line.contains(part)), "no {part} in {line:?} of\n{log}");
    }
    ensure!(world.flows()?.iter().all(|flow| flow["subject"]["workload"] != "client"), "it is no flow");
    agent.terminate(Duration::from_secs(2))
}
