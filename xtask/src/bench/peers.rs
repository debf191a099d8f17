//! Others that watch connections with eBPF, for comparison: programs as Debian has them, with their output into a file.

use std::{fs, path::PathBuf, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{
    lab::{Lab, Launch, Process},
    process::on_path,
};

/// A program that watches every TCP connection of the machine.
pub struct Peer {
    /// What it is called, and its program.
    pub name: &'static str,
    arguments: &'static [&'static str],
}

/// All of them. The first two come with `libbpf-tools`.
pub static PEERS: [Peer; 3] = [
    Peer { name: "tcplife", arguments: &[] },
    Peer { name: "tcpstates", arguments: &[] },
    Peer {
        name: "bpftrace",
        arguments: &[
            "-e",
            r#"tracepoint:sock:inet_sock_set_state /args->newstate == 2/ { printf("%d %s %d\n", pid, comm, args->dport); }"#,
        ],
    },
];

/// How long one may take until it watches.
const PATIENCE: Duration = Duration::from_secs(20);

impl Peer {
    /// Starts it and ends it again: whether it works on this machine.
    pub fn try_it(&self, lab: &Lab) -> Result<()> {
        self.start(lab)?.terminate(PATIENCE)
    }

    /// Starts it, and waits until it watches.
    pub fn start(&self, lab: &Lab) -> Result<Process> {
        let program = self.program()?;
        // They want tracefs, which need not be mounted; in a namespace of its own nobody else sees that.
        let script = "mountpoint -q /sys/kernel/tracing || mount -t tracefs none /sys/kernel/tracing; exec \"$0\" \"$@\"";
        let arguments = ["-m", "sh", "-c", script].map(str::to_owned).into_iter();
        let program = program.to_string_lossy().into_owned();
        let arguments = arguments.chain([program]).chain(self.arguments.iter().map(|it| (*it).to_owned()));
        let place = lab.host_place(self.name)?;
        let mut process = Launch::new("unshare", arguments).spawn(&place, &lab.log(self.name))?;
        let pid = process.pid();
        process.wait_until(PATIENCE, "attached", || holds_a_link(pid))?;
        // It opens one after the other.
        thread::sleep(Duration::from_millis(300));
        process.check()?;
        Ok(process)
    }

    fn program(&self) -> Result<PathBuf> {
        // Where a person's PATH does not look.
        let sbin = PathBuf::from("/usr/sbin").join(self.name);
        let found = on_path(self.name).or_else(|| sbin.is_file().then_some(sbin));
        let found = found.with_context(|| format!("no {}: install libbpf-tools and bpftrace", self.name))?;
        ensure!(on_path("unshare").is_some(), "no unshare");
        Ok(found)
    }
}

/// Whether a process has attached something: a link, or an event with a program behind it.
fn holds_a_link(pid: u32) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    let targets = open.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    let is_link = |target: PathBuf| {
        let target = target.to_string_lossy().into_owned();
        target.contains("bpf_link") || target.contains("perf_event")
    };
    targets.into_iter().any(is_link)
}
