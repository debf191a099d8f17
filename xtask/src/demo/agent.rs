//! The real agent, as the DaemonSet would run it on the node.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::world::World;
use crate::{
    account::{
        batchivo::HOST,
        compare::least,
        ledger::{Count, Entry, Expected, Party},
        record::Metrics,
    },
    http,
    lab::{Launch, NODE_NAME, Netns, Process},
};

/// Where the agent serves its metrics, inside the node's namespace.
const PORT: u16 = 9464;

/// A running agent.
pub struct Agent {
    process: Process,
    netns: Netns,
    flow_log: PathBuf,
    /// When it was started, and how many requests it got from us since.
    started: SystemTime,
    requests: usize,
}

impl Agent {
    /// Starts the program against the world's manifests, with `more` arguments, and waits until it is ready.
    pub fn start(world: &World, program: &Path, more: &[&str]) -> Result<Self> {
        let place = world.lab.host_place("netaudit")?;
        let flow_log = world.lab.directory().join("flows.jsonl");
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let (manifests, cgroup_root) = (text(&world.lab.manifests()), text(&world.lab.node_cgroup()));
        let (listen, flows) = (address().to_string(), text(&flow_log));
        let mut arguments = vec!["agent", "--manifests", &manifests, "--cgroup-root", &cgroup_root];
        arguments.extend(["--listen", &listen, "--flow-log", &flows, "--node", NODE_NAME, "--dns-names"]);
        arguments.extend(more);
        let launch = Launch::new(program, arguments);
        let started = SystemTime::now();
        let process = launch.spawn(&place, &world.lab.log("netaudit"))?;
        let mut agent = Self { process, netns: world.lab.node().clone(), flow_log, started, requests: 0 };
        agent.wait_for("/readyz says 200", |status, _| status == 200, "/readyz")?;
        Ok(agent)
    }

    /// Waits until the metrics speak of a policy of this name.
    pub fn wait_for_policy(&mut self, name: &str) -> Result<()> {
        let label = format!("networkpolicy=\"{name}\"");
        self.wait_for(&format!("/metrics knows {name}"), |_, body| body.contains(&label), "/metrics")
    }

    fn wait_for(&mut self, what: &str, holds: impl Fn(u16, &str) -> bool, path: &str) -> Result<()> {
        let (netns, requests) = (self.netns.clone(), &mut self.requests);
        let mut last = String::new();
        let waited = self.process.wait_until(Duration::from_secs(20), what, || {
            *requests += 1;
            let Ok((status, body)) = http::get(&netns, address(), path) else { return false };
            let holds = holds(status, &body);
            last = body;
            holds
        });
        waited.with_context(|| {
            format!(
                "the last answer of {path} was:\n{}",
                last.lines().take(20).collect::<Vec<_>>().join("\n")
            )
        })
    }

    /// Waits until the flow log holds what the ledger wants, or no longer grows, and nothing waits to be told.
    pub fn drain(&mut self, ledger: &[Entry]) -> Result<()> {
        let wanted = least(ledger);
        let (mut last, mut quiet) = (0, 0);
        for _ in 0..100 {
            self.process.check()?;
            let lines = fs::read(&self.flow_log)
                .map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count());
            quiet = if lines == last { quiet + 1 } else { 0 };
            last = lines;
            if quiet >= if lines >= wanted { 6 } else { 30 } {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // A datagram without an answer waits for one for five seconds.
        for _ in 0..40 {
            if self.scrape()?.sum("netaudit_waiting_records") == 0.0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// A scrape.
    pub fn scrape(&mut self) -> Result<Metrics> {
        self.requests += 1;
        let (status, body) = http::get(&self.netns, address(), "/metrics")?;
        ensure!(status == 200, "/metrics answered {status}");
        Metrics::parse(&body)
    }

    /// The address of its metrics on the host's loopback.
    pub fn forward(&self) -> Result<SocketAddr> {
        http::forward(&self.netns, address())
    }

    /// Ends it; returns the flow log's path, and the ledger's entry for our own requests, which the agent may or may not have
    /// seen: the first ones come while it attaches.
    pub fn stop(mut self) -> Result<(PathBuf, Vec<Entry>)> {
        // The promise is a second; a loaded machine gets some more before it counts as broken.
        self.process.terminate(Duration::from_secs(3)).context("ending the agent")?;
        if !self.flow_log.exists() {
            bail!("the agent wrote no flow log");
        }
        let own = Expected::tcp(Party::node(), Party::node(), PORT).ingress(HOST).times(self.requests);
        let mut entries = own.entries("requests to the agent", self.started, SystemTime::now());
        entries.iter_mut().for_each(|entry| entry.count = Count::UpTo(self.requests));
        Ok((self.flow_log.clone(), entries))
    }

    /// Its flow log.
    pub fn flow_log(&self) -> &Path {
        &self.flow_log
    }
}

/// Where it serves its metrics, inside the node's namespace.
pub fn address() -> SocketAddr {
    ([127, 0, 0, 1], PORT).into()
}
