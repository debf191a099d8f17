//! A real agent on a laid-out node, and what one asks of it.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::lab::{Lab, Launch, Owner, Place, Pod, PodSpec, Process, Qos};

pub(super) const NETAUDIT: &str = env!("CARGO_BIN_EXE_netaudit");
pub(super) const LISTEN: &str = "127.0.0.1:9464";
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// Whether real hooks can be had here. Says so where not, and fails instead where they must be had.
pub(super) fn kernel_or_skip(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    let btf = fs::exists("/sys/kernel/btf/vmlinux").unwrap_or(false);
    if root && btf {
        return true;
    }
    let missing = if root { "no /sys/kernel/btf/vmlinux" } else { "not root" };
    assert!(std::env::var_os("NETAUDIT_REQUIRE_KERNEL").is_none(), "{test} cannot run: {missing}");
    eprintln!("SKIPPED {test}: {missing}");
    false
}

/// A node with a client and a server pod in namespace `shop`, both of Deployments.
pub(super) struct World {
    pub lab: Lab,
    pub client: Pod,
    pub server: Pod,
}

impl World {
    pub fn new(purpose: &str) -> Result<Self> {
        let mut lab = Lab::new(purpose)?;
        let dns = "10.96.0.10".parse()?;
        let mut pod = |name, workload, labels, ports| {
            lab.add_pod(
                PodSpec {
                    namespace: "shop",
                    name,
                    labels,
                    owner: Owner::Deployment(workload, "5d8f7b9c6"),
                    qos: Qos::Burstable,
                    container: "main",
                    ports,
                },
                dns,
            )
        };
        let client = pod("client-5d8f7b9c6-x7k2p", "client", &[("app", "client")], &[])?;
        let server = pod("server-5d8f7b9c6-m4q9z", "server", &[("app", "server")], &[("http", "TCP", 8080)])?;
        lab.write_manifests()?;
        Ok(Self { lab, client, server })
    }

    /// The server pod's name as its object has it.
    pub fn server_name(&self) -> &str {
        self.server.spec.name
    }

    /// A policy that isolates the server's ingress and admits nobody.
    pub fn deny_all(&self) -> Result<()> {
        self.lab.write_manifest(
            "policy.yaml",
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny, namespace: shop}\n\
             spec: {podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]}\n",
        )
    }

    /// A server on port 8080 of the server pod.
    pub fn serve(&self) -> Result<Process> {
        self.serve_on(8080)
    }

    /// A server on this port of the server pod.
    pub fn serve_on(&self, port: u16) -> Result<Process> {
        let program = format!(
            "import socket\ns=socket.create_server(('',{port}))\nprint('up',flush=True)\n\
             while True:\n c,_=s.accept()\n c.close()\n"
        );
        python_up(self, &format!("server-{port}"), &self.server.place, &program)
    }

    /// Connects `times` from the client to port 8080 of the server, one after the other, and closes.
    pub fn connect(&self, times: usize) -> Result<()> {
        self.connect_to(8080, times)
    }

    /// The same to another port.
    pub fn connect_to(&self, port: u16, times: usize) -> Result<()> {
        let address = self.server.v4;
        let program = format!(
            "import socket\nfor _ in range({times}):\n socket.create_connection(('{address}',{port}),2).close()\n"
        );
        python(&self.client.place, &program)
    }

    pub fn flow_log(&self) -> PathBuf {
        self.lab.directory().join("flows.jsonl")
    }

    /// The arguments of an agent that reads this world's manifests and logs flows.
    pub fn arguments(&self) -> Vec<String> {
        [
            "agent",
            "--manifests",
            &self.lab.manifests().display().to_string(),
            "--cgroup-root",
            &self.lab.node_cgroup().display().to_string(),
            "--listen",
            LISTEN,
            "--flow-log",
            &self.flow_log().display().to_string(),
            "--node",
            crate::lab::NODE_NAME,
        ]
        .map(str::to_owned)
        .into()
    }

    /// The same with an API server's objects in place of the manifests.
    pub fn arguments_with_api(&self, kubeconfig: &Path) -> Vec<String> {
        let mut arguments = self.arguments();
        let manifests = arguments.iter().position(|argument| argument == "--manifests").unwrap_or_default();
        arguments.drain(manifests..manifests + 2);
        arguments.extend(["--kubeconfig".to_owned(), kubeconfig.display().to_string()]);
        arguments
    }

    /// A shell line in which `$@` is the agent's own command line.
    pub fn shell(&self, line: &str) -> Launch {
        let mut arguments = ["-c", line, "sh", NETAUDIT].map(str::to_owned).to_vec();
        arguments.extend(self.arguments());
        Launch::new("sh", arguments)
    }

    pub fn agent_place(&self) -> Result<Place> {
        self.lab.host_place("netaudit")
    }

    /// Starts an agent and waits until it is ready.
    pub fn agent(&self) -> Result<Process> {
        self.agent_by(&Launch::new(NETAUDIT, self.arguments()))
    }

    /// Starts an agent by `launch` and waits until it is ready.
    pub fn agent_by(&self, launch: &Launch) -> Result<Process> {
        let mut agent = launch.spawn(&self.agent_place()?, &self.lab.log("agent"))?;
        agent.wait_until(PATIENCE, "ready", || self.get("/readyz").is_ok_and(|(status, _)| status == 200))?;
        Ok(agent)
    }

    /// GETs a path of the agent, from its own network namespace.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        self.lab.node().enter(|| get(LISTEN, path, ""))?
    }

    /// The value of the first series that starts with `series`, such as `netaudit_flows_total{direction="egress"`.
    pub fn metric(&self, series: &str) -> Result<Option<f64>> {
        let (_, text) = self.get("/metrics")?;
        let line = text.lines().find(|line| line.starts_with(series));
        line.and_then(|line| line.rsplit(' ').next()).map(|value| Ok(value.parse()?)).transpose()
    }

    /// The sum of all series that start with `series`.
    pub fn metric_sum(&self, series: &str) -> Result<f64> {
        Ok(sum(&self.get("/metrics")?.1, series))
    }

    /// The flow log so far, a parsed object a line; a last line that is still being written is left out.
    pub fn flows(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.flow_log()).context("reading the flow log")?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("a torn line: {line}")))
            .collect()
    }

    /// Repeats until `found` says yes to the flow log.
    pub fn wait_for_flows(&self, what: &str, found: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let flows = self.flows()?;
            if found(&flows) {
                return Ok(flows);
            }
            if Instant::now() > deadline {
                bail!("no {what} within {PATIENCE:?} in {} flows: {flows:#?}", flows.len());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The sum of all series of a scrape that start with `series`.
pub(super) fn sum(metrics: &str, series: &str) -> f64 {
    let values = metrics.lines().filter(|line| line.starts_with(series));
    values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// The status and body of what an address answers, asked with these lines of headers: by the older HTTP, in which a body comes in one piece.
pub(super) fn get(address: &str, path: &str, headers: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: agent\r\n{headers}\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).context("no status")?.parse()?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
    Ok((status, body.to_owned()))
}

/// Runs a Python program in `place` to its end.
pub(super) fn python(place: &Place, program: &str) -> Result<()> {
    let output = Launch::new("python3", ["-c", program]).run(place, 2 * PATIENCE)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Starts a Python program in `place`, and returns when it has printed `up`.
pub(super) fn python_up(world: &World, name: &str, place: &Place, program: &str) -> Result<Process> {
    up(world, name, place, &Launch::new("python3", ["-c", program]))
}

/// The same of any program.
pub(super) fn up(world: &World, name: &str, place: &Place, launch: &Launch) -> Result<Process> {
    let log = world.lab.log(name);
    let mut process = launch.spawn(place, &log)?;
    let is_up = || fs::read_to_string(&log).is_ok_and(|text| text == "up\n");
    process.wait_until(PATIENCE, "up", is_up)?;
    Ok(process)
}

/// The flows of one direction and destination port.
pub(super) fn to<'a>(flows: &'a [Value], direction: &str, port: u16) -> Vec<&'a Value> {
    flows.iter().filter(|flow| flow["direction"] == direction && flow["port"] == port).collect()
}

/// Repeats until `holds`, or fails with `what`.
pub(super) fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds()? {
        if Instant::now() > deadline {
            bail!("not within {PATIENCE:?}: {what}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// The flows of one direction and destination port 8080.
pub(super) fn of<'a>(flows: &'a [Value], direction: &str) -> Vec<&'a Value> {
    to(flows, direction, 8080)
}
