//! What a cluster needs of this machine, asked before anything is started, and named where it is missing.

use std::{ffi::CString, fs, path::Path};

use anyhow::{Result, bail, ensure};

use super::{Enforcer, Options, Proxy, cgroups};
use crate::process::on_path;

/// Room for images, containers and etcd, in bytes.
const ROOM: u64 = 2 << 30;

/// An error that names all that is missing.
pub fn check(options: &Options) -> Result<()> {
    root()?;
    let mut missing = Vec::new();
    let mut programs = vec![
        ("nsenter", "util-linux"),
        ("ip", "iproute2"),
        ("nft", "nftables"),
        ("curl", "curl"),
        ("etcd", "etcd-server"),
        ("containerd", "containerd"),
        ("ctr", "containerd"),
        ("runc", "runc"),
        ("busybox", "busybox-static"),
        // The kubelet's own wish, whoever proxies.
        ("iptables", "iptables"),
    ];
    if options.enforcer == Enforcer::KubeRouter {
        programs.push(("ipset", "ipset"));
    }
    if options.proxy == Proxy::Iptables {
        programs.push(("conntrack", "conntrack"));
    }
    missing.extend(
        programs
            .iter()
            .filter(|(program, _)| on_path(program).is_none())
            .map(|(program, package)| format!("the program {program} (Debian: {package})")),
    );
    for plugin in ["bridge", "host-local", "portmap", "loopback"] {
        if !Path::new(super::node::CNI_PLUGINS).join(plugin).exists() {
            missing.push(format!("the CNI plugin {plugin} (Debian: containernetworking-plugins)"));
        }
    }
    missing.extend(missing_of_kernel(
        &fs::read_to_string("/proc/filesystems")?,
        cgroups::hierarchies()?.iter().any(|hierarchy| hierarchy.v1.is_none()),
        |namespace| Path::new("/proc/self/ns").join(namespace).exists(),
    ));
    ensure!(
        missing.is_empty(),
        "this machine lacks what a cluster needs (`cargo xtask setup` installs programs):\n  {}",
        missing.join("\n  ")
    );
    room(Path::new("/var/tmp"), ROOM)
}

/// An error unless this is root.
pub fn root() -> Result<()> {
    // SAFETY: reads this process's user id.
    ensure!(unsafe { libc::geteuid() } == 0, "a cluster needs root: it makes namespaces, mounts and cgroups");
    Ok(())
}

fn missing_of_kernel(
    filesystems: &str,
    has_cgroup2: bool,
    has_namespace: impl Fn(&str) -> bool,
) -> Vec<String> {
    let mut missing = Vec::new();
    let has = |name: &str| filesystems.lines().any(|line| line.trim_start_matches("nodev").trim() == name);
    if !has("overlay") {
        missing.push("overlayfs in the kernel (CONFIG_OVERLAY_FS; `modprobe overlay`)".to_owned());
    }
    if !has_cgroup2 {
        missing.push("cgroup v2 (mount -t cgroup2 none /sys/fs/cgroup/unified)".to_owned());
    }
    for (namespace, option) in
        [("net", "NET_NS"), ("pid", "PID_NS"), ("uts", "UTS_NS"), ("ipc", "IPC_NS"), ("cgroup", "CGROUPS")]
    {
        if !has_namespace(namespace) {
            missing.push(format!("{namespace} namespaces in the kernel (CONFIG_{option})"));
        }
    }
    missing
}

fn room(directory: &Path, needed: u64) -> Result<()> {
    let path = CString::new(directory.to_string_lossy().as_bytes())?;
    // SAFETY: the kernel fills the structure, whose all-zero form is valid.
    let free = unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        if libc::statvfs(path.as_ptr(), &raw mut stat) != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        stat.f_bavail as u64 * stat.f_frsize as u64
    };
    if free < needed {
        bail!(
            "no room: {} has {} MiB free, and a cluster needs {} MiB there",
            directory.display(),
            free >> 20,
            needed >> 20
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_lacks_is_named() {
        assert!(missing_of_kernel("nodev\toverlay\n\text4\n", true, |_| true).is_empty());
        let missing = missing_of_kernel("nodev\tproc\n\text4\n", false, |name| name != "pid").join("\n");
        for named in ["CONFIG_OVERLAY_FS", "cgroup v2", "CONFIG_PID_NS"] {
            assert!(missing.contains(named), "{missing}");
        }
        assert!(!missing.contains("NET_NS"), "{missing}");
    }

    #[test]
    fn too_little_room_is_said_with_how_much_there_is() {
        room(Path::new("/"), 0).unwrap();
        let error = room(Path::new("/"), u64::MAX).unwrap_err().to_string();
        assert!(error.contains("no room: / has"), "{error}");
    }
}
