//! What runs on every node: containerd, the kubelet, kube-proxy and, if wanted, an enforcer of policies.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{
    Enforcer, Proxy,
    control_plane::{PKI, program},
    machine::{Daemon, Machine},
    network::{DNS_SERVICE, INTERNET, POD_NETWORK, SERVICE_NETWORK, node_address, pod_network},
    pki::Pki,
};

/// containerd's socket.
pub const CONTAINERD: &str = "/run/containerd/containerd.sock";
/// Where Debian puts the CNI plugins.
pub const CNI_PLUGINS: &str = "/usr/lib/cni";
/// Where volume plugins would be.
pub const VOLUME_PLUGINS: &str = "/var/lib/kubelet/volume-plugins";
const CNI_CONFIG: &str = "/var/lib/cni-config";

/// The Node object, made before the kubelet comes: it gives the node its part of the pod network.
pub fn object(name: &str, index: u8) -> serde_json::Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": name },
        "spec": { "podCIDR": pod_network(index), "podCIDRs": [pod_network(index)] },
    })
}

/// The files that a node's programs read.
pub fn write_files(node: &Machine, index: u8, pki: &Pki, server: &str, proxy: Proxy) -> Result<()> {
    let name = &node.name;
    pki.kubeconfig(&format!("kubelet-{name}"), &format!("system:node:{name}"), &["system:nodes"], server)?;
    pki.kubeconfig(&format!("kube-proxy-{name}"), "system:kube-proxy", &[], server)?;
    pki.kubeconfig(&format!("kube-router-{name}"), "kube-router", &[], server)?;
    let write = |path: &str, text: String| {
        let path = node.var(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    write("lib/containerd/config.toml", containerd())?;
    write("lib/cni-config/10-bridge.conflist", cni(index).to_string())?;
    write("lib/kubelet/resolv.conf", format!("nameserver {}\n", INTERNET[2]))?;
    write("lib/kubelet/config.json", kubelet(index).to_string())?;
    write("lib/kube-proxy/config.json", kube_proxy(name, proxy).to_string())?;
    fs::create_dir_all(node.var("lib/kubelet/manifests"))?;
    Ok(())
}

/// Starts containerd and waits for it.
pub fn start_containerd(node: &Machine) -> Result<()> {
    let mut containerd =
        node.daemon("containerd", "containerd", ["--config=/var/lib/containerd/config.toml"], &[])?;
    containerd.wait_until(Duration::from_secs(30), "not serving", || {
        node.run("ctr", ["--address", CONTAINERD, "version"]).is_ok()
    })
}

/// Imports an image archive into containerd's Kubernetes namespace. `archive` is a path of this machine.
pub fn import(node: &Machine, archive: &std::path::Path) -> Result<()> {
    let file = fs::File::open(archive).with_context(|| format!("opening {}", archive.display()))?;
    let mut command =
        node.command("run", "ctr", ["--address", CONTAINERD, "-n", "k8s.io", "images", "import", "-"])?;
    crate::process::quiet(command.stdin(file)).map(drop)
}

/// Starts the kubelet, kube-proxy and the enforcer.
pub fn start(node: &Machine, index: u8, enforcer: Enforcer) -> Result<()> {
    let name = &node.name;
    node.daemon(
        "kubelet",
        program("kubelet"),
        [
            "--config=/var/lib/kubelet/config.json".to_owned(),
            format!("--kubeconfig={PKI}/kubelet-{name}.kubeconfig"),
            format!("--hostname-override={name}"),
            format!("--node-ip={}", node_address(index)),
        ],
        &[],
    )?;
    node.daemon("kube-proxy", program("kube-proxy"), ["--config=/var/lib/kube-proxy/config.json"], &[])?;
    match enforcer {
        Enforcer::KubeRouter => start_kube_router(node).map(drop),
        Enforcer::None => Ok(()),
    }
}

/// Starts the enforcer.
pub fn start_kube_router(node: &Machine) -> Result<Daemon> {
    let name = &node.name;
    node.daemon(
        "kube-router",
        program("kube-router"),
        [
            "--run-router=false".to_owned(),
            "--run-service-proxy=false".to_owned(),
            "--run-firewall=true".to_owned(),
            format!("--kubeconfig={PKI}/kube-router-{name}.kubeconfig"),
            format!("--hostname-override={name}"),
            format!("--service-cluster-ip-range={SERVICE_NETWORK}"),
            "--metrics-port=0".to_owned(),
        ],
        &[],
    )
}

fn containerd() -> String {
    // The machine may run without CAP_SYS_RESOURCE, and has no AppArmor of its own.
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
address = "{CONTAINERD}"
[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
disable_apparmor = true
sandbox_image = "{}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_PLUGINS}"
conf_dir = "{CNI_CONFIG}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#,
        super::images::PAUSE
    )
}

fn cni(index: u8) -> serde_json::Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "cluster",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                // Masquerading would also hide pods from pods of other nodes: the machine's own rule is narrower.
                "ipMasq": false,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": pod_network(index) }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}

fn kubelet(index: u8) -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node_address(index).to_string(),
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": format!("{PKI}/ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": false,
        "failSwapOn": false,
        "clusterDNS": [DNS_SERVICE.to_string()],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
        "resolvConf": "/var/lib/kubelet/resolv.conf",
        "staticPodPath": "/var/lib/kubelet/manifests",
        // Made where it is missing: the default lies among this machine's own files.
        "volumePluginDir": VOLUME_PLUGINS,
        // A disk that others fill must not evict the pods of a test.
        "evictionHard": { "memory.available": "50Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%" },
        "imageGCHighThresholdPercent": 100,
        "enforceNodeAllocatable": [],
        "fileCheckFrequency": "1s",
        "syncFrequency": "10s",
        "registerNode": true,
        "maxPods": 200,
    })
}

fn kube_proxy(name: &str, proxy: Proxy) -> serde_json::Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": { "kubeconfig": format!("{PKI}/kube-proxy-{name}.kubeconfig") },
        "hostnameOverride": name,
        "clusterCIDR": POD_NETWORK,
        "mode": match proxy { Proxy::Nftables => "nftables", Proxy::Iptables => "iptables" },
        // Limits of the machine, which a network namespace cannot set.
        "conntrack": { "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
    })
}
