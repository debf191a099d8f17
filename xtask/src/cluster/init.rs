//! The first process of a machine: makes its namespaces and mounts, then reaps whatever its daemons leave.

use std::{ffi::CString, fs, io, os::unix::ffi::OsStrExt as _, path::Path, process::ExitCode};

use anyhow::{Context as _, Result, bail};

use super::{cgroups, machine::Spec};

/// Makes the machine that the file describes, prints the number of its first process, and leaves that running.
///
/// Called in a process of its own, with one thread, in the cgroup that becomes the machine's root.
pub fn start(spec: &Path) -> Result<ExitCode> {
    let spec: Spec = serde_json::from_slice(&fs::read(spec)?)?;
    let procs = cgroups::make(&format!("{}/init.scope", spec.name))?;
    let flags = libc::CLONE_NEWPID
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWCGROUP;
    // SAFETY: changes this process's namespaces only.
    check(unsafe { libc::unshare(flags) }).context("making namespaces")?;
    let mut ends = [0; 2];
    // SAFETY: the kernel writes two descriptors into an array of two.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: this process has one thread, so the child may do what it likes.
    let pid = check(unsafe { libc::fork() }).context("starting the first process")?;
    if pid == 0 {
        let made = cgroups_and_mounts(&spec, &procs);
        if let Err(error) = &made {
            eprintln!("{error:#}");
        }
        let ok = u8::from(made.is_ok());
        // SAFETY: one byte from the stack; the descriptors are this process's own.
        unsafe {
            libc::write(ends[1], (&raw const ok).cast(), 1);
            libc::close(ends[1]);
            libc::close(ends[0]);
            // Whoever reads the answer waits for the end of this.
            libc::close(libc::STDOUT_FILENO);
        }
        return if made.is_ok() { reap() } else { Ok(ExitCode::FAILURE) };
    }
    let mut ok = 0_u8;
    // SAFETY: as above; without the other end a child that dies makes this return.
    let read = unsafe {
        libc::close(ends[1]);
        libc::read(ends[0], (&raw mut ok).cast(), 1)
    };
    if read != 1 || ok != 1 {
        bail!("the first process could not set up its machine");
    }
    println!("{pid}");
    Ok(ExitCode::SUCCESS)
}

fn cgroups_and_mounts(spec: &Spec, procs: &[fs::File]) -> Result<()> {
    // SAFETY: sets flags of this process.
    unsafe { libc::setsid() };
    for procs in procs {
        cgroups::enter(procs).context("entering init.scope")?;
    }
    let name = text(Path::new(&spec.name))?;
    // SAFETY: the name is as long as said.
    check(unsafe { libc::sethostname(name.as_ptr(), name.as_bytes().len()) }).context("naming the host")?;

    mount(None, "/", None, libc::MS_REC | libc::MS_PRIVATE, None)?;
    // What containers mount in volumes that are shared with the host must reach other containers, as on any node.
    mount(None, "/", None, libc::MS_REC | libc::MS_SHARED, None)?;
    mount(Some("proc"), "/proc", Some("proc"), 0, None)?;
    keep_kernel_settings(&spec.var)?;
    know_own_name(spec)?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), 0, Some("mode=755"))?;
    fs::create_dir_all("/run/lock")?;
    for (source, target) in &spec.binds {
        let is_directory = source.is_dir();
        if is_directory {
            fs::create_dir_all(target)?;
        } else {
            fs::create_dir_all(target.parent().unwrap_or(Path::new("/")))?;
            fs::File::create(target).with_context(|| format!("making {}", target.display()))?;
        }
        bind(source, target)?;
    }
    bind(&spec.var, Path::new("/var"))?;
    for directory in ["lib", "log", "cache", "tmp", "lib/kubelet", "lib/containerd"] {
        fs::create_dir_all(Path::new("/var").join(directory))?;
    }
    std::os::unix::fs::symlink("/run", "/var/run").or_else(ignore_existing)?;
    hierarchies(&spec.hierarchies)?;
    // sysfs shows the network of whoever mounts it.
    let bpf = Path::new("/sys/fs/bpf");
    if bpf.is_dir() {
        mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), 0, Some("mode=700"))?;
    }
    Ok(())
}

/// What a kubelet wants of settings that no namespace keeps apart: it would change them for the whole machine, and nobody
/// changed them back. Those that a kernel lacks are left to the kubelet to name.
const KERNEL_SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Shows those settings as a kubelet wants to find them, in files of the machine's own.
fn keep_kernel_settings(var: &Path) -> Result<()> {
    for (name, wanted) in KERNEL_SETTINGS {
        let setting = Path::new("/proc/sys").join(name);
        if setting.exists() {
            let shown = var.join("sysctl").join(name);
            fs::create_dir_all(shown.parent().expect("it lies below var"))?;
            fs::write(&shown, format!("{wanted}\n"))
                .with_context(|| format!("writing {}", shown.display()))?;
            bind(&shown, &setting)?;
        }
    }
    Ok(())
}

/// Gives the machine's name an address. This machine's list does not have it, and its name servers are out of reach: a
/// Prometheus that asks for its own name would wait ten seconds for them.
fn know_own_name(spec: &Spec) -> Result<()> {
    let list = Path::new("/etc/hosts");
    if list.exists() {
        let own = spec.var.join("hosts");
        fs::write(&own, format!("127.0.0.1 localhost\n127.0.1.1 {}\n", spec.name))
            .with_context(|| format!("writing {}", own.display()))?;
        bind(&own, list)?;
    }
    Ok(())
}

fn hierarchies(hierarchies: &[cgroups::Hierarchy]) -> Result<()> {
    let unmounted = text(Path::new("/sys/fs/cgroup"))?;
    // SAFETY: a terminated string.
    check(unsafe { libc::umount2(unmounted.as_ptr(), libc::MNT_DETACH) })
        .context("unmounting /sys/fs/cgroup")?;
    if hierarchies.iter().all(|hierarchy| hierarchy.mount != Path::new("/sys/fs/cgroup")) {
        mount(Some("tmpfs"), "/sys/fs/cgroup", Some("tmpfs"), 0, Some("mode=755"))?;
    }
    for hierarchy in hierarchies {
        fs::create_dir_all(&hierarchy.mount)?;
        let target = hierarchy.mount.to_string_lossy();
        match &hierarchy.v1 {
            Some(options) => mount(Some("cgroup"), &target, Some("cgroup"), 0, Some(options))?,
            None => mount(Some("cgroup2"), &target, Some("cgroup2"), 0, None)?,
        }
    }
    Ok(())
}

/// Waits for the children of the dead until the machine is killed: nothing else ends it.
fn reap() -> Result<ExitCode> {
    // SAFETY: a set on the stack; signals that are blocked wait for sigwait.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        loop {
            let mut signal = 0;
            libc::sigwait(&raw const set, &raw mut signal);
            while libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) > 0 {}
        }
    }
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    mount(
        Some(&source.to_string_lossy()),
        &target.to_string_lossy(),
        None,
        libc::MS_BIND | libc::MS_REC,
        None,
    )
}

fn mount(
    source: Option<&str>,
    target: &str,
    kind: Option<&str>,
    flags: libc::c_ulong,
    data: Option<&str>,
) -> Result<()> {
    let owned = |value: Option<&str>| value.map(|value| text(Path::new(value))).transpose();
    let (source, kind, data) = (owned(source)?, owned(kind)?, owned(data)?);
    let target_text = text(Path::new(target))?;
    let pointer = |value: &Option<CString>| value.as_ref().map_or(std::ptr::null(), |value| value.as_ptr());
    // SAFETY: terminated strings that live across the call, or null where mount(2) allows it.
    let result = unsafe {
        libc::mount(pointer(&source), target_text.as_ptr(), pointer(&kind), flags, pointer(&data).cast())
    };
    check(result).with_context(|| format!("mounting {target}")).map(drop)
}

fn text(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).with_context(|| format!("{}: a zero byte", path.display()))
}

fn ignore_existing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
