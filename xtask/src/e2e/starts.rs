//! Starts of a cluster that go wrong: each ends with a clear message and, after `down`, with a clean machine.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::world::text_of;
use crate::cluster;

/// No root, a start that is interrupted, one beside it, one after it; then one that goes well, in another way.
pub fn faults() -> Result<()> {
    without_root()?;
    let before = Machine::now()?;
    // Interrupted early and late: while machines are made, while their programs start, and killed while kubectl waits.
    for (signal, wait, file, then) in [
        (libc::SIGINT, Duration::ZERO, "outside/var", Then::Down),
        (libc::SIGINT, Duration::from_secs(3), "node1/log/kube-apiserver.log", Then::Down),
        (libc::SIGKILL, Duration::from_secs(1), "node1/log/kubelet.log", Then::Down),
        (libc::SIGKILL, Duration::ZERO, "node1/log/kubelet.log", Then::EndedFromOutside),
    ] {
        interrupted(signal, wait, &Path::new(cluster::DIRECTORY).join(file))?;
        if cluster::is_populated()? {
            refused("a cluster is there already")?;
        }
        match then {
            Then::Down => cluster::down()?,
            Then::EndedFromOutside => {
                end_processes()?;
                cluster::make_room()?;
            }
        }
        let after = Machine::now()?;
        ensure!(before == after, "something is left: {before:?} became {after:?}");
        ensure!(!Path::new(cluster::DIRECTORY).exists(), "{} is left", cluster::DIRECTORY);
    }
    cluster::down().context("no cluster is nothing to complain about")?;
    other_ways(&before)
}

/// What becomes of an interrupted start.
enum Then {
    Down,
    /// All its processes are ended, as where a whole session or container is; nobody calls `down`.
    EndedFromOutside,
}

fn end_processes() -> Result<()> {
    for cgroup in cluster::leftovers()? {
        let kill = cgroup.join("cgroup.kill");
        if kill.exists() {
            fs::write(&kill, "1").with_context(|| format!("writing {}", kill.display()))?;
        }
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while cluster::is_populated()? {
        ensure!(Instant::now() < deadline, "processes of the cluster's do not end");
        thread::sleep(Duration::from_millis(20));
    }
    ensure!(Path::new(cluster::DIRECTORY).exists(), "nothing is left to be removed");
    Ok(())
}

/// The ways of a cluster that the rest of the scenario does not go: one node, iptables, the enforcer from the start.
fn other_ways(before: &Machine) -> Result<()> {
    let started = up()?.args(["--proxy", "iptables", "--enforcer", "kube-router"]).output()?;
    ensure!(started.status.success(), "up: {}", text_of(&started));
    let xtask = |arguments: &[&str]| -> Result<Output> {
        Ok(Command::new(std::env::current_exe()?)
            .arg("cluster")
            .args(arguments)
            .stdin(Stdio::null())
            .output()?)
    };
    let status = xtask(&["status"])?;
    let nodes = xtask(&["kubectl", "get", "nodes", "-o", "name"])?;
    let node = cluster::Cluster::running()?.nodes[0].clone();
    let rules = node.run("iptables-save", [""; 0])?;
    // As a kubelet does: it must not reach the settings of this machine.
    let setting = "/proc/sys/kernel/keys/root_maxkeys";
    let ours = fs::read_to_string(setting)?;
    node.run("sh", ["-c", &format!("echo 1234567 > {setting}")])?;
    let now = fs::read_to_string(setting)?;
    let down = xtask(&["down"])?;
    ensure!(ours == now, "a node changed {setting} of this machine from {ours} to {now}");
    ensure!(
        status.status.success() && text_of(&status).contains("node1 runs"),
        "status: {}",
        text_of(&status)
    );
    ensure!(text_of(&nodes).trim() == "node/node1", "kubectl: {}", text_of(&nodes));
    for chain in ["KUBE-SERVICES", "KUBE-ROUTER-FORWARD"] {
        ensure!(rules.contains(chain), "no chain {chain} among the node's rules");
    }
    ensure!(down.status.success(), "down: {}", text_of(&down));
    let status = xtask(&["status"])?;
    ensure!(!status.status.success() && text_of(&status).contains("none"), "status: {}", text_of(&status));
    let after = Machine::now()?;
    ensure!(*before == after, "something is left: {before:?} became {after:?}");
    Ok(())
}

/// What a start might leave on this machine.
#[derive(PartialEq, Eq, Debug)]
struct Machine {
    mounts: usize,
    cgroups: Vec<String>,
    /// kubectl and whatever else was told of the cluster's files.
    processes: Vec<String>,
}

impl Machine {
    fn now() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?.lines().count();
        let cgroups = cluster::leftovers()?.iter().map(|path| path.display().to_string()).collect();
        let mut processes = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path();
            // Those that end meanwhile are none that is left, and one that waits to be reaped has nothing there.
            let told = fs::read(path.join("environ")).unwrap_or_default();
            if told.windows(cluster::DIRECTORY.len()).any(|window| window == cluster::DIRECTORY.as_bytes()) {
                let words = fs::read(path.join("cmdline")).unwrap_or_default();
                processes.push(String::from_utf8_lossy(&words).replace('\0', " "));
            }
        }
        Ok(Self { mounts, cgroups, processes })
    }
}

fn up() -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["cluster", "up"]).stdin(Stdio::null());
    Ok(command)
}

/// Starts one and sends `signal`, as a terminal sends Ctrl-C and others send to the process alone, `wait` after `file` has
/// come to be.
fn interrupted(signal: i32, wait: Duration, file: &Path) -> Result<()> {
    let mut command = up()?;
    // A script's job in the background ignores Ctrl-C, and so would what it starts.
    // SAFETY: one system call between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGINT, libc::SIG_DFL);
            Ok(())
        });
    }
    // Of its own, so that the signal goes to the start and its children only, as from a terminal.
    let mut child = command.process_group(0).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while !file.exists() {
        ensure!(child.try_wait()?.is_none(), "the start ended before {} was there", file.display());
        ensure!(Instant::now() < deadline, "{} does not come", file.display());
        thread::sleep(Duration::from_millis(20));
    }
    // A second start meanwhile is told to wait.
    refused("is at work")?;
    thread::sleep(wait);
    let child_id = child.id() as i32;
    // SAFETY: a plain system call on a process, or its group, that we made.
    unsafe { libc::kill(if signal == libc::SIGINT { -child_id } else { child_id }, signal) };
    let output = child.wait_with_output()?;
    ensure!(!output.status.success(), "the start was done before it was interrupted");
    ensure!(
        signal == libc::SIGKILL || text_of(&output).contains("`cargo xtask cluster down` removes it"),
        "a start that is interrupted says: {}",
        text_of(&output)
    );
    Ok(())
}

/// Whether another start is refused with these words.
fn refused(says: &str) -> Result<()> {
    const AT_WORK: &str = "is at work";
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut output = up()?.output()?;
    // On a busy machine what the first one was about to start may hold its lock for a moment longer than it lives.
    while says != AT_WORK && text_of(&output).contains(AT_WORK) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(100));
        output = up()?.output()?;
    }
    ensure!(
        !output.status.success() && text_of(&output).contains(says),
        "a second start says: {}",
        text_of(&output)
    );
    Ok(())
}

fn without_root() -> Result<()> {
    // Nobody can reach into every directory that a checkout lies in.
    let program = Path::new("/var/tmp/netaudit-xtask-nobody");
    fs::copy(std::env::current_exe()?, program)?;
    let output = Command::new(program).args(["cluster", "down"]).uid(65_534).gid(65_534).output();
    fs::remove_file(program)?;
    let output = output?;
    ensure!(
        !output.status.success() && text_of(&output).contains("needs root"),
        "without root it says: {}",
        text_of(&output)
    );
    Ok(())
}
