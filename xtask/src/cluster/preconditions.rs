//! What a cluster needs of this machine, asked before anything is started, and named where it is missing.

use std::{
    ffi::CString,
    fs,
    path::Path,
    process::{Command, Stdio},
};

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
        ("unshare", "util-linux"),
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
    let programs_are_there = missing.is_empty();
    missing.extend(missing_of_kernel(
        &fs::read_to_string("/proc/filesystems")?,
        cgroups::hierarchies()?.iter().any(|hierarchy| hierarchy.v1.is_none()),
        |namespace| Path::new("/proc/self/ns").join(namespace).exists(),
    ));
    // Asked with the programs that a cluster asks with.
    if programs_are_there {
        missing.extend(missing_of_network(options, in_a_network_of_its_own));
    }
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
    ensure!(
        unsafe { libc::geteuid() } == 0,
        "a cluster needs root: it makes namespaces, mounts and cgroups, and to enter them needs it too"
    );
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

/// What of the kernel's network is modules and options of its own, tried where it does no harm.
fn missing_of_network(options: &Options, works: impl Fn(&str) -> Result<(), String>) -> Vec<String> {
    let mut features = vec![
        ("veth links (CONFIG_VETH)", "ip link add name veth0 type veth peer name veth1"),
        ("bridges (CONFIG_BRIDGE)", "ip link add name lan0 type bridge"),
        (
            "nftables with NAT (CONFIG_NF_TABLES_IPV4, CONFIG_NFT_NAT, CONFIG_NFT_MASQ)",
            "nft 'add table ip a; add chain ip a b { type nat hook postrouting priority 100; }; add rule ip a b masquerade'",
        ),
    ];
    if options.proxy == Proxy::Iptables {
        features.push((
            "iptables with NAT (CONFIG_NETFILTER_XT_MATCH_COMMENT, CONFIG_NETFILTER_XT_TARGET_MASQUERADE)",
            "iptables -t nat -A POSTROUTING -m comment --comment a -j MASQUERADE",
        ));
    }
    if options.enforcer == Enforcer::KubeRouter {
        features.push((
            "IP sets in iptables rules (CONFIG_IP_SET_HASH_IP, CONFIG_NETFILTER_XT_SET)",
            "ipset create a hash:ip && iptables -A FORWARD -m set --match-set a src -j REJECT",
        ));
    }
    if let Err(said) = works("true") {
        return vec![format!("network namespaces that this process may make: {said}")];
    }
    features
        .into_iter()
        .filter_map(|(what, script)| works(script).err().map(|said| format!("in the kernel, {what}: {said}")))
        .collect()
}

/// Runs a script in a network namespace that ends with it; the error is the first thing that it says.
fn in_a_network_of_its_own(script: &str) -> Result<(), String> {
    let output = Command::new("unshare")
        .args(["--net", "--", "sh", "-c", script])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("starting unshare: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().find(|line| !line.trim().is_empty());
    Err(first.map_or_else(|| output.status.to_string(), |line| line.trim().to_owned()))
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
    fn what_the_kernels_network_lacks_is_named() {
        let options = Options { nodes: 1, enforcer: Enforcer::KubeRouter, proxy: Proxy::Iptables };
        assert!(missing_of_network(&options, |_| Ok(())).is_empty());
        let missing = missing_of_network(&options, |script| {
            if script == "true" { Ok(()) } else { Err("Unknown device type.".to_owned()) }
        });
        for named in ["VETH", "BRIDGE", "NF_TABLES", "MASQUERADE", "IP_SET"] {
            let line = missing.iter().find(|line| line.contains(named));
            assert!(line.is_some_and(|line| line.ends_with("Unknown device type.")), "{named}: {missing:?}");
        }
        let missing = missing_of_network(&options, |_| Err("Operation not permitted".to_owned()));
        assert_eq!(missing.len(), 1, "nothing else can be known: {missing:?}");
    }

    #[test]
    fn too_little_room_is_said_with_how_much_there_is() {
        room(Path::new("/"), 0).unwrap();
        let error = room(Path::new("/"), u64::MAX).unwrap_err().to_string();
        assert!(error.contains("no room: / has"), "{error}");
    }
}
