//! `cargo xtask cluster`: a real Kubernetes cluster of one or two nodes on one ordinary machine, without Docker.
//!
//! Every node is a machine of its own ([`machine`]): real containerd, kubelet, kube-proxy and, if wanted, kube-router; the
//! first node also runs etcd and the control plane. A further machine is the world outside. All of it lies in one
//! directory and one cgroup, and ends with two steps: end what is in the cgroup, remove the directory.

mod addons;
mod cgroups;
mod control_plane;
mod directory;
mod images;
mod init;
mod machine;
mod network;
mod node;
mod pki;
mod preconditions;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::{process::quiet, programs};
pub use cgroups::{is_populated, leftovers};
pub use control_plane::{listens, start_api_server};
pub use directory::{Directory, PATH as DIRECTORY, make_room};
pub use images::TOOLS as TOOLS_IMAGE;
pub use init::start as start_machine;
pub use machine::Machine;
pub use network::{DNS_SERVICE, INTERNET, OUTSIDE};
pub use node::start_kube_router;
pub use preconditions::root as needs_root;

/// How long a fresh cluster may take to become ready, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// What to do with the cluster.
#[derive(Subcommand)]
pub enum Task {
    /// Start one, from nothing to ready nodes with DNS
    Up(Options),
    /// End it and remove everything of it
    Down,
    /// Say what runs
    Status,
    /// Run kubectl against it
    #[command(disable_help_flag = true)]
    Kubectl {
        /// kubectl's own arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

/// What kind of cluster.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    /// How many nodes
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    pub nodes: u8,
    /// Who enforces NetworkPolicies
    #[arg(long, value_enum, default_value_t = Enforcer::KubeRouter)]
    pub enforcer: Enforcer,
    /// How kube-proxy translates Service addresses
    #[arg(long, value_enum, default_value_t = Proxy::Nftables)]
    pub proxy: Proxy,
}

/// Who enforces NetworkPolicies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize, Deserialize)]
pub enum Enforcer {
    /// kube-router's firewall
    KubeRouter,
    /// Nobody
    None,
}

/// How kube-proxy translates Service addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize, Deserialize)]
pub enum Proxy {
    /// With nftables
    Nftables,
    /// With iptables
    Iptables,
}

/// Does what is asked, and says so.
pub fn run(task: &Task) -> Result<ExitCode> {
    match task {
        Task::Up(options) => {
            let begun = Instant::now();
            let (directory, programs) = Cluster::prepare(options)?;
            say_what_an_interrupt_leaves();
            let cluster = Cluster::start(options, &[], &directory, programs).context(
                "the cluster did not come up; what did stays for a look (`cargo xtask cluster status` names the logs), and \
                 `cargo xtask cluster down` removes it",
            )?;
            println!(
                "cluster: {} ready with DNS after {:.0} s; `cargo xtask cluster kubectl …` talks to it, `cargo xtask \
                 cluster down` removes it",
                if cluster.nodes.len() == 1 {
                    "1 node is".to_owned()
                } else {
                    format!("{} nodes are", cluster.nodes.len())
                },
                begun.elapsed().as_secs_f64()
            );
        }
        Task::Down => {
            down()?;
            println!("cluster: nothing is left of it");
        }
        Task::Status => return status(),
        Task::Kubectl { arguments } => {
            let cluster = Cluster::running()?;
            let status = cluster.kubectl(arguments)?.status().context("starting kubectl")?;
            return Ok(ExitCode::from(status.code().map_or(1, |code| code.clamp(0, 255) as u8)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// From now on, Ctrl-C and SIGTERM end this process with a word on what stays behind.
fn say_what_an_interrupt_leaves() {
    extern "C" fn on_signal(signal: i32) {
        const SAYS: &str =
            "\ninterrupted: what was started until now stays; `cargo xtask cluster down` removes it\n";
        // SAFETY: writes a static text and ends the process, both of which are allowed in a handler.
        unsafe {
            libc::write(libc::STDERR_FILENO, SAYS.as_ptr().cast(), SAYS.len());
            libc::_exit(128 + signal)
        }
    }
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler keeps to what a handler may do. Who started this may want it to go on (a job in the
        // background of a script, `nohup`): what is ignored stays so.
        unsafe {
            let before = libc::signal(signal, on_signal as *const () as libc::sighandler_t);
            if before == libc::SIG_IGN {
                libc::signal(signal, libc::SIG_IGN);
            }
        }
    }
}

/// A running cluster.
#[derive(Debug, Serialize, Deserialize)]
pub struct Cluster {
    /// What it was started as.
    pub options: Options,
    /// The world outside: the router, and whatever a test starts there.
    pub outside: Machine,
    /// The nodes; the first has the control plane.
    pub nodes: Vec<Machine>,
    directory: PathBuf,
    kubectl: PathBuf,
    /// Every step was done.
    complete: bool,
}

impl Cluster {
    /// Starts a cluster, whose machines see `shares` of this one: a source here and a path there, in pairs.
    ///
    /// # Errors
    ///
    /// When something that it needs is missing, one is there already, or a part does not come up. What was started until
    /// then stays for a look at its logs; `down` removes it.
    pub fn up(options: &Options, shares: &[(PathBuf, PathBuf)]) -> Result<Self> {
        let (directory, programs) = Self::prepare(options)?;
        Self::start(options, shares, &directory, programs)
    }

    /// Builds the cluster's programs where they are not there yet, which takes a while the first time.
    pub fn build_programs() -> Result<()> {
        programs::find(ALL_PROGRAMS).map(drop)
    }

    /// What comes before anything is started.
    fn prepare(options: &Options) -> Result<(Directory, [PathBuf; ALL_PROGRAMS.len()])> {
        preconditions::check(options)?;
        let programs = programs::find(ALL_PROGRAMS)?;
        Ok((Directory::create()?, programs))
    }

    fn start(
        options: &Options,
        shares: &[(PathBuf, PathBuf)],
        directory: &Directory,
        paths: [PathBuf; ALL_PROGRAMS.len()],
    ) -> Result<Self> {
        let mut binds = binds(directory, &paths);
        binds.extend(shares.iter().cloned());
        let [.., kubectl, coredns, _] = paths;

        let pki = pki::Pki::new(&directory.path().join("pki"))?;
        control_plane::write_files(directory, &pki)?;
        let archives = images::write(&directory.path().join("images"), &coredns)?;
        let outside = Machine::start("outside", &directory.path().join("outside"), binds.clone())?;
        network::set_up_outside(&outside)?;
        let mut cluster = Self {
            options: options.clone(),
            outside,
            nodes: Vec::new(),
            directory: directory.path().to_owned(),
            kubectl,
            complete: false,
        };
        directory.save(&cluster)?;
        for index in 1..=options.nodes {
            let name = format!("node{index}");
            let node = Machine::start(&name, &directory.path().join(&name), binds.clone())?;
            network::connect(&cluster.outside, &node, index, options.nodes)?;
            node::write_files(&node, index, &pki, &control_plane::server(), options.proxy)?;
            cluster.nodes.push(node);
            directory.save(&cluster)?;
        }
        // Images go in while the API server starts: both take their time.
        thread::scope(|scope| {
            let importing: Vec<_> = cluster
                .nodes
                .iter()
                .map(|node| {
                    let archives = &archives;
                    scope.spawn(move || {
                        node::start_containerd(node)?;
                        archives.iter().try_for_each(|archive| node::import(node, archive))
                    })
                })
                .collect();
            control_plane::start(&cluster.nodes[0])?;
            for import in importing {
                import.join().expect("imports do not panic")?;
            }
            Ok::<_, anyhow::Error>(())
        })?;
        for (index, machine) in (1..).zip(&cluster.nodes) {
            cluster.apply(&node::object(&machine.name, index))?;
            node::start(machine, index, options.enforcer)?;
        }
        cluster.apply(&addons::objects())?;
        cluster.wait_until_ready()?;
        cluster.complete = true;
        directory.save(&cluster)?;
        Ok(cluster)
    }

    /// The cluster that was started before.
    pub fn running() -> Result<Self> {
        let cluster: Self = Directory::load()?.context("no cluster: `cargo xtask cluster up` starts one")?;
        ensure!(
            cluster.machines().all(Machine::is_alive),
            "the cluster's machines are gone: `cargo xtask cluster down`, then `up`"
        );
        Ok(cluster)
    }

    fn machines(&self) -> impl Iterator<Item = &Machine> {
        std::iter::once(&self.outside).chain(&self.nodes)
    }

    /// kubectl with these arguments, in the directory and with the files of the caller, on the first node's network.
    pub fn kubectl<A: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Command> {
        preconditions::root()?;
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.nodes[0].namespace("net").display()))
            .arg("--")
            .arg(&self.kubectl)
            .env("KUBECONFIG", self.directory.join("pki/admin.kubeconfig"))
            .env("KUBECACHEDIR", self.directory.join("kubectl-cache"))
            .args(arguments);
        // It holds the node's network for as long as it runs, also when whoever waits for it is killed.
        cgroups::start_in(&mut command, "kubectl")?;
        Ok(command)
    }

    /// What kubectl prints; an error with what it says if it fails.
    pub fn kubectl_output<A: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<String> {
        quiet(self.kubectl(arguments)?.stdin(Stdio::null()))
    }

    /// Applies an object or a list of them.
    pub fn apply(&self, object: &serde_json::Value) -> Result<()> {
        let mut child = self
            .kubectl(["apply", "-f", "-"])?
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting kubectl")?;
        child.stdin.take().expect("stdin is piped").write_all(object.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "kubectl apply: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// A kubeconfig for the bearer of a token.
    pub fn kubeconfig_with_token(&self, token: &str) -> serde_json::Value {
        serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "cluster",
            "contexts": [{ "name": "cluster", "context": { "cluster": "cluster", "user": "user" } }],
            "clusters": [{ "name": "cluster", "cluster": {
                "server": control_plane::server(),
                "certificate-authority": format!("{}/ca.crt", control_plane::PKI),
            } }],
            "users": [{ "name": "user", "user": { "token": token } }],
        })
    }

    /// A node's address on the segment.
    pub fn node_address(&self, name: &str) -> std::net::Ipv4Addr {
        let index = self.nodes.iter().position(|node| node.name == name).expect("pods run on our nodes");
        network::node_address(index as u8 + 1)
    }

    /// Imports an image archive on every node.
    pub fn import(&self, archive: &Path) -> Result<()> {
        self.nodes.iter().try_for_each(|node| node::import(node, archive))
    }

    fn wait_until_ready(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let left =
            || format!("--timeout={}s", deadline.saturating_duration_since(Instant::now()).as_secs().max(1));
        let waited =
            self.kubectl_output(["wait", "--for=condition=Ready", "node", "--all", &left()]).and_then(|_| {
                self.kubectl_output(["-n", "kube-system", "rollout", "status", "deployment/coredns", &left()])
            });
        let Err(error) = waited else { return Ok(()) };
        let logs: Vec<String> = self
            .nodes
            .iter()
            .flat_map(|node| ["kubelet", "containerd"].map(|unit| node.log_tail(unit)))
            .collect();
        bail!("{error:#}\n{}", logs.join("\n"))
    }
}

const ALL_PROGRAMS: [&str; 8] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubectl",
    "coredns",
    "kube-router",
];

fn binds(directory: &Directory, programs: &[PathBuf]) -> Vec<(PathBuf, PathBuf)> {
    let programs = ALL_PROGRAMS
        .iter()
        .zip(programs)
        .map(|(name, path)| (path.clone(), PathBuf::from(control_plane::program(name))));
    std::iter::once((directory.path().join("pki"), PathBuf::from(control_plane::PKI)))
        .chain(programs)
        .collect()
}

/// Ends the cluster, whole or half, and removes everything of it. No cluster is success.
pub fn down() -> Result<()> {
    preconditions::root()?;
    let directory = Directory::lock()?;
    cgroups::remove_all()?;
    directory.remove()
}

fn status() -> Result<ExitCode> {
    let Some(cluster) = Directory::load::<Cluster>()? else {
        let left = leftovers()?;
        if left.is_empty() && !Directory::exists() {
            println!("cluster: none");
        } else {
            println!("cluster: parts of one that did not come up: `cargo xtask cluster down` removes them");
        }
        return Ok(ExitCode::FAILURE);
    };
    let Options { enforcer, proxy, .. } = &cluster.options;
    println!("cluster: enforcer {enforcer:?}, proxy {proxy:?}, files in {}", cluster.directory.display());
    for machine in cluster.machines() {
        let state = if machine.is_alive() { "runs" } else { "is gone" };
        println!(
            "  {} {state} (process {}, logs in {}/log)",
            machine.name,
            machine.pid,
            machine.directory().display()
        );
    }
    if !cluster.complete || !cluster.machines().all(Machine::is_alive) {
        println!("it is not whole: `cargo xtask cluster down` removes it");
        return Ok(ExitCode::FAILURE);
    }
    let shown = cluster.kubectl(["get", "nodes,pods", "--all-namespaces", "-o", "wide"])?.status()?;
    Ok(if shown.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
