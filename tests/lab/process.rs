//! Processes in a place: a network namespace, a cgroup and the files below `/etc` that a container sees.

use std::{
    ffi::{CString, OsStr, OsString},
    fs::{self, File},
    io::{self, Read},
    os::fd::AsRawFd as _,
    os::unix::{
        ffi::OsStrExt as _,
        process::{CommandExt as _, ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::netns::{Netns, enter_namespace};

/// Where a process runs.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its network namespace.
    pub netns: Netns,
    /// The directory of its cgroup.
    pub cgroup: PathBuf,
    /// A directory whose files are bound over those of the same name in `/etc`, in a mount namespace of the process.
    pub etc: Option<PathBuf>,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Launch {
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    user: Option<(u32, u32)>,
    directory: Option<PathBuf>,
    binds: Vec<(PathBuf, PathBuf)>,
}

impl Launch {
    /// `program` with `arguments`.
    pub fn new<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: impl IntoIterator<Item = A>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            arguments: arguments.into_iter().map(|argument| argument.as_ref().to_owned()).collect(),
            environment: Vec::new(),
            user: None,
            directory: None,
            binds: Vec::new(),
        }
    }

    /// Shows it `source` at the path `target`, which must exist; in the order of the calls.
    #[must_use]
    pub fn bind(mut self, source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        self.binds.push((source.into(), target.into()));
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((key.into(), value.as_ref().to_owned()));
        self
    }

    /// Runs it as this user and group id instead of root.
    #[must_use]
    pub fn user(mut self, uid: u32, gid: u32) -> Self {
        self.user = Some((uid, gid));
        self
    }

    /// Runs it in this working directory.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    fn command(&self, place: &Place) -> Result<Command> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).envs(self.environment.iter().map(|(key, value)| (key, value)));
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        let procs = place.cgroup.join("cgroup.procs");
        let procs = File::options().write(true).open(&procs).with_context(|| format!("opening {procs:?}"))?;
        let (netns, user) = (place.netns.clone(), self.user);
        let mut binds = place.etc_binds()?;
        binds.extend(self.binds.iter().map(|(source, target)| (path_text(source), path_text(target))));
        let enter = move || {
            // Cgroup first: the kernel takes a socket's cgroup from the task that creates it.
            // SAFETY: writes one static byte; zero stands for the writing process itself.
            if unsafe { libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) } != 1 {
                return Err(io::Error::last_os_error());
            }
            enter_namespace(netns.fd())?;
            bind_files(&binds)?;
            if let Some((uid, gid)) = user {
                // SAFETY: plain system calls on this process's ids; group first, as root may do it.
                let failed = unsafe {
                    libc::setgroups(0, std::ptr::null()) != 0
                        || libc::setgid(gid) != 0
                        || libc::setuid(uid) != 0
                };
                if failed {
                    return Err(io::Error::last_os_error());
                }
            }
            // After the change of ids, which would reset it. Whoever made the lab may be killed: then so is this.
            // SAFETY: sets a flag of this process.
            if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes system calls on prepared data and allocates nothing.
        unsafe { command.pre_exec(enter) };
        Ok(command)
    }

    /// Runs it in `place` to its end and returns status and output; an error if it takes longer than `limit`.
    pub fn run(&self, place: &Place, limit: Duration) -> Result<Output> {
        let mut child = self
            .command(place)?
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {:?}", self.program))?;
        // More than fits into a pipe would block it.
        let (stdout, stderr) = (read_all(child.stdout.take()), read_all(child.stderr.take()));
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                break None;
            }
            thread::sleep(Duration::from_millis(2));
        };
        let [stdout, stderr] = [stdout, stderr].map(|reader| reader.join().unwrap_or_default());
        let Some(status) = status else {
            bail!(
                "{:?} {:?} took longer than {limit:?}:\n{}{}",
                self.program,
                self.arguments,
                String::from_utf8_lossy(&stdout),
                String::from_utf8_lossy(&stderr)
            );
        };
        Ok(Output { status, stdout, stderr })
    }

    /// Starts it in `place`; its output goes to the file `log`.
    pub fn spawn(&self, place: &Place, log: &Path) -> Result<Process> {
        if let Some(parent) = log.parent() {
            fs::create_dir_all(parent)?;
        }
        let output = File::create(log).with_context(|| format!("making {log:?}"))?;
        let child = self
            .command(place)?
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {:?}", self.program))?;
        Ok(Process { child, name: self.program.to_string_lossy().into_owned(), log: log.to_owned() })
    }
}

impl Place {
    /// Pairs of a file and the path in `/etc` that it covers.
    fn etc_binds(&self) -> Result<Vec<(CString, CString)>> {
        let Some(etc) = &self.etc else { return Ok(Vec::new()) };
        let mut binds = Vec::new();
        for entry in fs::read_dir(etc).with_context(|| format!("reading {etc:?}"))? {
            let source = entry?.path();
            let target = Path::new("/etc").join(source.file_name().expect("an entry has a name"));
            if !target.exists() {
                bail!("{target:?} does not exist on this machine, so a container's cannot be bound over it");
            }
            binds.push((path_text(&source), path_text(&target)));
        }
        Ok(binds)
    }
}

fn path_text(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path holds no zero byte")
}

/// Binds files in a mount namespace of the calling process, out of which nothing propagates.
fn bind_files(binds: &[(CString, CString)]) -> io::Result<()> {
    if binds.is_empty() {
        return Ok(());
    }
    let none = std::ptr::null();
    // SAFETY: the strings are terminated and live across the calls; unused arguments are null, as mount(2) allows.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNS) != 0
            || libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()) != 0
        {
            return Err(io::Error::last_os_error());
        }
        for (source, target) in binds {
            if libc::mount(source.as_ptr(), target.as_ptr(), none, libc::MS_BIND, none.cast()) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// Reads until the other end is closed.
fn read_all(from: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            // What was read before a fault is worth showing.
            let _ = from.read_to_end(&mut bytes);
        }
        bytes
    })
}

/// A started process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error with the end of its log if it has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}; its log ends:\n{}", self.name, self.log_tail()),
        }
    }

    /// Repeats `ready` until it holds; an error with the end of the log if the process ends or `limit` passes.
    pub fn wait_until(&mut self, limit: Duration, what: &str, mut ready: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !ready() {
            self.check()?;
            if Instant::now() > deadline {
                bail!("{}: {what}: not within {limit:?}; its log ends:\n{}", self.name, self.log_tail());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Asks it to end by SIGTERM and waits; an error if it does not within `limit`, or ends badly.
    pub fn terminate(&mut self, limit: Duration) -> Result<()> {
        self.check()?;
        // SAFETY: a plain system call; the process is our child and not reaped, so the id is still its own.
        unsafe { libc::kill(self.pid() as i32, libc::SIGTERM) };
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                if status.success() || status.signal() == Some(libc::SIGTERM) {
                    return Ok(());
                }
                bail!("{} ended with {status}; its log ends:\n{}", self.name, self.log_tail());
            }
            if Instant::now() > deadline {
                bail!("{} did not end within {limit:?} of SIGTERM", self.name);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let text =
            fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
