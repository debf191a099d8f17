//! A small stage for kernel tests: a cgroup tree and network namespaces of their own, that are gone when the test ends.
//!
//! A pod is a process that sleeps in a cgroup and a network namespace, as a pause container does. Namespaces have no
//! name and die with it; cgroups are removed on drop. What a test does in a pod, it does in a forked process.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use netaudit::kernel::{Event, Kernel, Options};
use netaudit::model::{CgroupId, NetnsCookie, Observation};

/// Whether kernel tests can run. Says why not; where the environment demands them, that is a failure.
pub fn ready() -> bool {
    let reason = if !rustix::process::geteuid().is_root() {
        "not root"
    } else if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        "no kernel BTF"
    } else {
        return true;
    };
    skip(reason);
    false
}

/// Reports a test that cannot run.
pub fn skip(reason: &str) {
    assert!(std::env::var_os("NETAUDIT_REQUIRE_KERNEL").is_none(), "kernel tests are required: {reason}");
    eprintln!("SKIPPED: {reason}");
}

/// The cgroup tree of one test, and the agent's kernel side attached to it.
pub struct Stage {
    pub kernel: Kernel,
    pub events: Vec<Event>,
    root: Cgroup,
}

/// A cgroup that is removed on drop.
pub struct Cgroup {
    pub path: PathBuf,
}

impl Cgroup {
    fn new(path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { path }
    }

    /// Its id: the directory's inode.
    pub fn id(&self) -> CgroupId {
        use std::os::unix::fs::MetadataExt as _;
        CgroupId(fs::metadata(&self.path).unwrap().ino())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Whoever is still in it was started by this test.
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
        // A process that has just been killed may still be on its way out.
        for _ in 0..100 {
            match remove_tree(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                _ => return,
            }
        }
        eprintln!("cannot remove {}", self.path.display());
    }
}

/// Removes a cgroup and those below it: a test that fails drops them in any order.
fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let _ = remove_tree(&entry.path());
        }
    }
    fs::remove_dir(path)
}

/// A fresh cgroup directory name for this test.
fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("netaudit-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Where cgroup v2 is mounted.
pub fn cgroup_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line =
        mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).expect("cgroup v2 is mounted");
    PathBuf::from(line.split(' ').nth(1).unwrap())
}

/// The path of a directory of that mount as events tell it.
pub fn path_of(directory: &Path) -> String {
    format!("/{}", directory.strip_prefix(cgroup_mount()).unwrap().display())
}

impl Stage {
    pub fn new() -> Self {
        Self::with_ring(1 << 20)
    }

    pub fn with_ring(ring_bytes: u32) -> Self {
        Self::with(Self::root(), Options { ring_bytes, ..Options::default() })
    }

    /// With an interval after which UDP flows that go on are told again.
    pub fn with_retell(udp_retell: Duration) -> Self {
        Self::with(Self::root(), Options { ring_bytes: 1 << 20, udp_retell, ..Options::default() })
    }

    pub fn with(root: Cgroup, options: Options) -> Self {
        let kernel = load(Options { cgroup_root: Some(root.path.clone()), ..options });
        Self { kernel, events: Vec::new(), root }
    }

    /// A cgroup tree without an agent yet.
    pub fn root() -> Cgroup {
        Cgroup::new(cgroup_mount().join(unique()))
    }

    /// Attaches an agent to a tree that exists already.
    pub fn attach(root: Cgroup) -> Self {
        Self::with(root, Options { ring_bytes: 1 << 20, ..Options::default() })
    }

    pub fn pod(&self, name: &str) -> Pod {
        Pod::new(&self.root, name)
    }

    /// Drains until `done` says so or half a minute is over; returns whether it did.
    pub fn wait(&mut self, mut done: impl FnMut(&[Event]) -> bool) -> bool {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            self.drain();
            if done(&self.events) {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Takes all that is in the ring now.
    pub fn drain(&mut self) {
        let events = &mut self.events;
        while self.kernel.drain(1024, &mut |event| events.push(event)) > 0 {}
    }

    /// All flows so far of a pod.
    pub fn flows(&self, pod: &Pod) -> Vec<Observation> {
        let netns = pod.netns;
        self.events
            .iter()
            .filter_map(|event| match event {
                Event::Flow(flow) if flow.netns == netns => Some(*flow),
                _ => None,
            })
            .collect()
    }

    /// Waits for `count` flows of `pod`, and a moment more for one too many.
    #[track_caller]
    pub fn expect(&mut self, pod: &Pod, count: usize) -> Vec<Observation> {
        let netns = pod.netns;
        let is_flow = |event: &&Event| matches!(event, Event::Flow(flow) if flow.netns == netns);
        self.wait(|events| events.iter().filter(is_flow).count() >= count);
        std::thread::sleep(Duration::from_millis(50));
        self.drain();
        let flows = self.flows(pod);
        assert_eq!(flows.len(), count, "{flows:#?}");
        flows
    }
}

fn load(options: Options) -> Kernel {
    Kernel::load(&options).unwrap_or_else(|error| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text.push_str(&format!("\n  {error}"));
            cause = error.source();
        }
        panic!("{text}")
    })
}

/// A pod: a namespace and a cgroup, held by a process that sleeps.
pub struct Pod {
    pub netns: NetnsCookie,
    pub cgroup: Cgroup,
    pub pid: i32,
    namespace: OwnedFd,
}

impl Pod {
    pub fn new(root: &Cgroup, name: &str) -> Self {
        let cgroup = Cgroup::new(root.path.join(name));
        let (mut parent, child) = std::os::unix::net::UnixStream::pair().unwrap();
        let procs = cgroup.path.join("cgroup.procs");
        let pid = fork(|| {
            // SAFETY: plain system calls.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                check(libc::unshare(libc::CLONE_NEWNET))?;
            }
            fs::write(&procs, "0")?;
            io::Write::write_all(&mut &child, b"x")?;
            loop {
                // SAFETY: sleeps until killed.
                unsafe { libc::pause() };
            }
        });
        io::Read::read_exact(&mut parent, &mut [0]).expect("the pod's process starts");
        let namespace: OwnedFd = fs::File::open(format!("/proc/{pid}/ns/net")).unwrap().into();
        let mut pod = Self { netns: NetnsCookie(0), cgroup, pid, namespace };
        pod.ip("link set lo up");
        let mut cookie = [0; 8];
        pod.run_with(&mut cookie, || {
            let cookie = netaudit::kernel::own_netns()?;
            Ok(cookie.0.to_ne_bytes().to_vec())
        });
        pod.netns = NetnsCookie(u64::from_ne_bytes(cookie));
        pod
    }

    /// Joins this pod to `other` with a veth pair: `10.9.0.1/24` and `fd09::1/64` here, `.2` there.
    pub fn join(&self, other: &Pod) {
        self.ip(&format!("link add v0 type veth peer name v0 netns {}", other.pid));
        for (pod, end) in [(self, 1), (other, 2)] {
            pod.ip(&format!("addr add 10.9.0.{end}/24 dev v0"));
            pod.ip(&format!("addr add fd09::{end}/64 dev v0 nodad"));
            pod.ip("link set v0 up");
        }
        // A fresh link swallows the first packets of either family. Not in the pod's cgroup, so nobody watches.
        for to in ["10.9.0.2:1", "[fd09::2]:1"] {
            self.act(false, || {
                let to = to.parse().unwrap();
                for _ in 0..50 {
                    match std::net::TcpStream::connect_timeout(&to, Duration::from_millis(200)) {
                        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(()),
                        _ => std::thread::sleep(Duration::from_millis(20)),
                    }
                }
                Err(io::Error::other("the link between the pods does not come up"))
            })
            .finish();
        }
    }

    /// Runs `ip` in the pod's namespace.
    pub fn ip(&self, arguments: &str) {
        self.command("ip", &arguments.split(' ').collect::<Vec<_>>());
    }

    /// Runs a program in the pod's namespace, in the test's own cgroup.
    pub fn command(&self, program: &str, arguments: &[&str]) {
        let namespace = self.namespace.as_raw_fd();
        let mut command = Command::new(program);
        command.args(arguments);
        // SAFETY: one system call.
        unsafe { command.pre_exec(move || check(libc::setns(namespace, libc::CLONE_NEWNET))) };
        let output = command.output().unwrap_or_else(|error| panic!("{program}: {error}"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    }

    /// Writes a sysctl below `/proc/sys/net` of the pod's namespace.
    pub fn sysctl(&self, name: &str, value: &str) {
        self.run(|| fs::write(format!("/proc/sys/net/{name}"), value));
    }

    /// Runs `act` in the pod, in a process of its own; panics where it fails.
    #[track_caller]
    pub fn run(&self, act: impl FnOnce() -> io::Result<()>) {
        self.start(act).finish();
    }

    fn run_with(&self, bytes: &mut [u8], act: impl FnOnce() -> io::Result<Vec<u8>>) {
        let (mut reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        self.run(|| io::Write::write_all(&mut &writer, &act()?));
        io::Read::read_exact(&mut reader, bytes).unwrap();
    }

    /// Starts `act` in the pod. It ends at the latest when the returned guard does.
    pub fn start(&self, act: impl FnOnce() -> io::Result<()>) -> Running {
        self.act(true, act)
    }

    fn act(&self, in_cgroup: bool, act: impl FnOnce() -> io::Result<()>) -> Running {
        let namespace = self.namespace.as_raw_fd();
        let procs = self.cgroup.path.join("cgroup.procs");
        let pid = fork(|| {
            // SAFETY: plain system calls.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                check(libc::setns(namespace, libc::CLONE_NEWNET))?;
            }
            if in_cgroup {
                fs::write(&procs, "0")?;
            }
            act()
        });
        Running { pid }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        kill(self.pid);
    }
}

/// A process in a pod; killed on drop.
pub struct Running {
    pub pid: i32,
}

impl Running {
    /// Waits for its end; panics where it failed.
    #[track_caller]
    pub fn finish(self) {
        let mut status = 0;
        // SAFETY: our own child, reaped once: the guard is forgotten.
        let result = unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        std::mem::forget(self);
        assert!(result > 0 && status == 0, "a process in a pod failed: status {status}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        kill(self.pid);
    }
}

fn kill(pid: i32) {
    // SAFETY: our own child, which has not been reaped yet.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, std::ptr::null_mut(), 0);
    }
}

/// Forks; the child runs `act` and exits. Only one thread goes on in the child, so `act` must not wait for others.
fn fork(act: impl FnOnce() -> io::Result<()>) -> i32 {
    // SAFETY: glibc keeps its allocator usable in the child; the child never returns from here.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", io::Error::last_os_error()),
        0 => {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
            let code = match result {
                Ok(Ok(())) => 0,
                Ok(Err(error)) => {
                    let text = format!("in the pod: {error}\n");
                    // SAFETY: a write to standard error.
                    unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
                    1
                }
                Err(_) => 2,
            };
            // SAFETY: ends the child without the parent's exit handlers.
            unsafe { libc::_exit(code) }
        }
        pid => pid,
    }
}

/// A system call's result as an error.
pub fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A socket of any kind, for calls that the standard library does not offer.
pub fn socket(family: i32, kind: i32) -> io::Result<OwnedFd> {
    // SAFETY: a plain system call; the descriptor is ours.
    unsafe {
        let descriptor = libc::socket(family, kind | libc::SOCK_CLOEXEC, 0);
        check(descriptor)?;
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}
