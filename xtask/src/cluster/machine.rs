//! A machine of the cluster: a node, or the world outside. Like a container, it has its own processes, mounts, network,
//! cgroup root and host name, and like a container it ends with its first process.
//!
//! Its files are this machine's, except that `/var` and `/run` are its own. So a kubelet and a containerd run in it with
//! their usual paths, two nodes never meet, and nothing has to be unmounted or deleted by name afterwards.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::cgroups;

/// What the first process of a machine sets up.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spec {
    /// The machine's name, also its host name and its cgroup.
    pub name: String,
    /// Becomes `/var`; made if absent.
    pub var: PathBuf,
    /// Shown at other paths of the machine: source here, target there; made before `/var` is covered.
    pub binds: Vec<(PathBuf, PathBuf)>,
    /// Mounted anew, so that each begins at the machine's own cgroup.
    pub hierarchies: Vec<cgroups::Hierarchy>,
}

/// A running machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its first process, by the number that this machine gives it.
    pub pid: u32,
    /// When that process began, in the kernel's ticks: a number that is used again begins later.
    pub started: u64,
    directory: PathBuf,
}

impl Machine {
    /// Starts a machine whose files lie in `directory`.
    pub fn start(name: &str, directory: &Path, binds: Vec<(PathBuf, PathBuf)>) -> Result<Self> {
        let var = directory.join("var");
        for path in [&var, &directory.join("log")] {
            fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))?;
        }
        let spec = Spec { name: name.to_owned(), var, binds, hierarchies: cgroups::hierarchies()? };
        let spec_file = directory.join("machine.json");
        fs::write(&spec_file, serde_json::to_vec_pretty(&spec)?)?;
        let log = File::create(directory.join("log/machine.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("machine").arg(&spec_file).stdin(Stdio::null()).stderr(log);
        cgroups::start_in(&mut command, name)?;
        // It answers with the first process's number, or ends with an error in its log.
        let output = command.output().context("starting a machine")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let pid = text.trim().parse::<u32>().ok().filter(|_| output.status.success());
        let Some(pid) = pid else {
            let log = fs::read_to_string(directory.join("log/machine.log")).unwrap_or_default();
            bail!("{name} did not start: {}", log.trim());
        };
        let started = start_time(pid).with_context(|| format!("{name} ended at once"))?;
        Ok(Self { name: name.to_owned(), pid, started, directory: directory.to_owned() })
    }

    /// Whether its first process lives.
    pub fn is_alive(&self) -> bool {
        start_time(self.pid).is_some_and(|started| started == self.started)
    }

    /// The directory with its files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The path here of what is `path` there, for paths below `/var`.
    pub fn var(&self, path: &str) -> PathBuf {
        self.directory.join("var").join(path)
    }

    /// The end of a daemon's log.
    pub fn log_tail(&self, unit: &str) -> String {
        let path = self.log_file(unit);
        let text =
            fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("{}:\n{}", path.display(), lines[lines.len().saturating_sub(15)..].join("\n"))
    }

    /// The log of the daemon `unit`.
    pub fn log_file(&self, unit: &str) -> PathBuf {
        self.directory.join("log").join(format!("{unit}.log"))
    }

    /// A command in the machine, in the cgroup of the service `unit`.
    pub fn command<A: AsRef<OsStr>>(
        &self,
        unit: &str,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.pid))
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--wdns=/", "--"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null());
        cgroups::start_in(&mut command, &format!("{}/system.slice/{unit}.service", self.name))?;
        Ok(command)
    }

    /// Starts a daemon that goes on after this process; its output goes to its log.
    pub fn daemon<A: AsRef<OsStr>>(
        &self,
        unit: &str,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
        environment: &[(&str, &str)],
    ) -> Result<Daemon> {
        let log = File::options().create(true).append(true).open(self.log_file(unit))?;
        let mut command = self.command(unit, program, arguments)?;
        command.envs(environment.iter().copied()).stdout(log.try_clone()?).stderr(log);
        // A session of its own: the terminal's Ctrl-C is not for it.
        // SAFETY: one system call between fork and exec.
        unsafe {
            command.pre_exec(|| if libc::setsid() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) });
        }
        let child = command.spawn().with_context(|| format!("starting {unit} on {}", self.name))?;
        Ok(Daemon { machine: self.clone(), unit: unit.to_owned(), child })
    }

    /// Runs a command to its end; an error with what it said if it fails.
    pub fn run<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<String> {
        let output = self.output(program.as_ref(), arguments)?;
        if !output.status.success() {
            bail!(
                "{} on {} failed with {}: {}{}",
                program.as_ref().to_string_lossy(),
                self.name,
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a command to its end, whatever that is.
    pub fn output<A: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<Output> {
        Ok(self.command("run", program, arguments)?.output()?)
    }

    /// A file of a namespace of its first process, such as `net`.
    pub fn namespace(&self, kind: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/{kind}", self.pid))
    }
}

/// A daemon of a machine. Dropping it does not end it.
#[derive(Debug)]
pub struct Daemon {
    machine: Machine,
    unit: String,
    child: std::process::Child,
}

impl Daemon {
    /// Repeats `ready` until it holds; an error with the end of the log if the daemon ends or `limit` passes.
    pub fn wait_until(&mut self, limit: Duration, what: &str, mut ready: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !ready() {
            let log = || self.machine.log_tail(&self.unit);
            if let Some(status) = self.child.try_wait()? {
                bail!("{} on {} ended with {status}; {}", self.unit, self.machine.name, log());
            }
            if Instant::now() > deadline {
                bail!("{} on {}: {what}: not within {limit:?}; {}", self.unit, self.machine.name, log());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Machine {
    /// Its cgroup in the v2 hierarchy, by its path here.
    pub fn cgroup(&self) -> Result<PathBuf> {
        let hierarchies = cgroups::hierarchies()?;
        let v2 = hierarchies.iter().find(|hierarchy| hierarchy.v1.is_none()).context("no cgroup v2")?;
        Ok(v2.mount.join(cgroups::TOP).join(&self.name))
    }

    /// Ends a daemon by SIGTERM, and waits until nothing is left of it.
    pub fn stop(&self, unit: &str) -> Result<()> {
        self.end(unit, libc::SIGTERM)
    }

    /// Ends a daemon as a crash does.
    pub fn kill(&self, unit: &str) -> Result<()> {
        self.end(unit, libc::SIGKILL)
    }

    fn end(&self, unit: &str, signal: i32) -> Result<()> {
        let procs = self.cgroup()?.join(format!("system.slice/{unit}.service/cgroup.procs"));
        let deadline = Instant::now() + Duration::from_secs(60);
        let running = || -> Result<Vec<i32>> {
            let text =
                fs::read_to_string(&procs).with_context(|| format!("{unit} never ran on {}", self.name))?;
            Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
        };
        // The wrapper that waits for it ends with it.
        for pid in running()?.into_iter().filter(|pid| !is_wrapper(*pid)) {
            // SAFETY: a plain system call; the cgroup holds only what this daemon is made of.
            unsafe { libc::kill(pid, signal) };
        }
        while running()?.into_iter().any(|pid| start_time(pid as u32).is_some()) {
            if Instant::now() > deadline {
                bail!("{unit} on {} does not end", self.name);
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

fn is_wrapper(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "nsenter")
}

/// When a process began, in ticks since boot; `None` if it is gone or only waits to be reaped.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name may hold anything, a bracket included: what follows the last one is numbers.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    (fields.first() != Some(&"Z")).then(|| fields.get(19)?.parse().ok())?
}
