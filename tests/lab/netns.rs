//! Network namespaces without a name: they live as long as a descriptor or a process holds them.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::{AsRawFd as _, RawFd},
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result, bail};

/// A network namespace, held by a descriptor. Clones share it.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<File>,
}

impl Netns {
    /// A new, empty namespace with its loopback device up.
    pub fn new() -> Result<Self> {
        // A thread of its own: a thread that has changed its namespace must not be used for anything else.
        let file = thread::scope(|scope| {
            scope
                .spawn(|| {
                    // SAFETY: no memory is involved; the call changes this thread's namespace only.
                    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                        return Err(io::Error::last_os_error());
                    }
                    File::open("/proc/thread-self/ns/net")
                })
                .join()
                .expect("the thread does not panic")
        })
        .context("making a network namespace (are you root?)")?;
        let netns = Self { file: Arc::new(file) };
        netns.ip(&["link set lo up".to_owned()])?;
        Ok(netns)
    }

    /// The raw descriptor, for `setns` in a child.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// A path under which other processes of this machine can name the namespace while this one lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd())
    }

    /// Runs `work` on a thread inside the namespace and returns its result.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    enter_namespace(self.fd())?;
                    Ok::<T, io::Error>(work())
                })
                .join()
                .expect("work in a namespace does not panic")
        })
        .context("entering a network namespace")
    }

    /// Runs lines of `ip -batch` inside the namespace.
    pub fn ip(&self, lines: &[String]) -> Result<()> {
        self.feed(Command::new("ip").args(["-batch", "-"]), &lines.join("\n"))
    }

    /// Loads an nftables ruleset inside the namespace.
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        self.feed(Command::new("nft").args(["-f", "-"]), ruleset)
    }

    /// Sets kernel parameters of the namespace: pairs of a path below `/proc/sys` and a value.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (path, value) in settings {
                std::fs::write(format!("/proc/sys/{path}"), value)
                    .with_context(|| format!("setting {path}"))?;
            }
            Ok(())
        })?
    }

    fn feed(&self, command: &mut Command, input: &str) -> Result<()> {
        let fd = self.fd();
        let program = command.get_program().to_string_lossy().into_owned();
        // SAFETY: the closure makes one system call between fork and exec and allocates nothing.
        unsafe { command.pre_exec(move || enter_namespace(fd)) };
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {program} (cargo xtask setup installs it)"))?;
        child.stdin.take().expect("stdin is piped").write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("{program} failed: {}\nits input was:\n{input}", errors.trim());
        }
        Ok(())
    }
}

/// Moves the calling thread into the namespace behind `fd`.
pub fn enter_namespace(fd: RawFd) -> io::Result<()> {
    // SAFETY: the call takes a descriptor and a flag; it changes this thread's namespace only.
    if unsafe { libc::setns(fd, libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
