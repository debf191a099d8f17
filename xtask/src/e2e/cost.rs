//! What the agent costs on this cluster: processor time and memory, idle and at a steady rate of connections.
//!
//! Not part of the scenario: `cargo xtask e2e --only cost` prints it. What it says goes into the README and the DaemonSet.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    batchivo::Apps,
    world::{NAMESPACE, World, text_of},
};
use crate::cluster::Machine;

/// How long each load is watched.
const WATCHED: Duration = Duration::from_secs(30);
/// Connections a second; client and server are pods of one node, so that its agent records two flows of each.
const RATE: u32 = 1_000;

/// Prints a line for each load.
pub fn measure(world: &mut World, apps: &Apps) -> Result<()> {
    let node = world.node(&apps.frontend.node).clone();
    let agent = Agent::find(world, &node)?;
    println!("cost: idle: {}", agent.watch(&node, WATCHED)?);
    let script = format!(
        "import socket, time\nend = time.monotonic() + {}\nnext = time.monotonic()\nmade = 0\nwhile next < end:\n    s = \
         socket.create_connection(('{}', 8080)); s.close(); made += 1\n    next += 1 / {RATE}\n    time.sleep(max(0, next \
         - time.monotonic()))\nprint(made)\n",
        WATCHED.as_secs() + 4,
        apps.frontend.ip
    );
    let flows_before = flows(world, &node)?;
    let (said, line) = thread::scope(|scope| {
        let load = scope.spawn(|| world.exec(&apps.stranger, &["/usr/bin/python3", "-c", &script]));
        thread::sleep(Duration::from_secs(2));
        let line = agent.watch(&node, WATCHED);
        (load.join().expect("kubectl does not panic"), line)
    });
    let said = text_of(&said?);
    let made: f64 = said.trim().parse().with_context(|| format!("the load says {said}"))?;
    let rate = made / (WATCHED.as_secs() + 4) as f64;
    thread::sleep(Duration::from_secs(1));
    let told = flows(world, &node)? - flows_before;
    println!(
        "cost: {rate:.0} connections a second, {told:.0} flows told of {made:.0} connections: {}",
        line?
    );
    let lost = world.scrape(&node)?.sum("netaudit_records_lost_total");
    ensure!(lost == 0.0, "{lost} records lost");
    Ok(())
}

fn flows(world: &World, node: &Machine) -> Result<f64> {
    Ok(world.scrape(node)?.sum("netaudit_flows_total"))
}

/// The agent's process and memory cgroup, as its node sees them.
struct Agent {
    pid: String,
    memory: String,
}

impl Agent {
    fn find(world: &World, node: &Machine) -> Result<Self> {
        let pods = world.get(&[
            "pods",
            "-n",
            NAMESPACE,
            "--field-selector",
            &format!("spec.nodeName={}", node.name),
        ])?;
        let uid = pods["items"][0]["metadata"]["uid"].as_str().context("the agent's pod")?.to_owned();
        let pid = node.run("pgrep", ["-x", "netaudit"])?.trim().to_owned();
        let script = format!(
            "find /sys/fs/cgroup -path '*pod{uid}*' -maxdepth 6 \\( -name memory.usage_in_bytes -o -name memory.current \\) | \
             awk '{{ print length, $0 }}' | sort -n | head -1 | cut -d' ' -f2-"
        );
        let memory = node.run("sh", ["-c", &script])?.trim().to_owned();
        ensure!(!memory.is_empty(), "no memory cgroup of the agent's pod");
        Ok(Self { pid, memory })
    }

    /// What it used while somebody else made the load.
    fn watch(&self, node: &Machine, time: Duration) -> Result<String> {
        let (begun, before) = (Instant::now(), self.ticks(node)?);
        thread::sleep(time);
        let used = (self.ticks(node)? - before) / 100.0;
        let share = used / begun.elapsed().as_secs_f64() * 1_000.0;
        let bytes: f64 = node.run("cat", [&self.memory])?.trim().parse()?;
        let status = node.run("cat", [&format!("/proc/{}/status", self.pid)])?;
        let resident = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default().to_owned();
        Ok(format!(
            "{share:.1} millicores, {:.1} MiB charged to the pod ({})",
            bytes / f64::from(1 << 20),
            resident.split_whitespace().collect::<Vec<_>>().join(" ")
        ))
    }

    /// Processor time, user and system, in hundredths of a second.
    fn ticks(&self, node: &Machine) -> Result<f64> {
        let stat = node.run("cat", [&format!("/proc/{}/stat", self.pid)])?;
        let (_, fields) = stat.rsplit_once(") ").context("a process's stat")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        Ok(fields[11].parse::<f64>()? + fields[12].parse::<f64>()?)
    }
}
