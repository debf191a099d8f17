//! etcd, the API server, the controller manager and the scheduler, as processes of the first node.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    Directory,
    machine::{Daemon, Machine},
    network::{API_SERVICE, SERVICE_NETWORK, node_address},
    node::VOLUME_PLUGINS,
    pki::Pki,
};

/// The API server's port.
const PORT: u16 = 6443;
/// Where machines see the files of the authority.
pub const PKI: &str = "/run/netaudit/pki";

/// The API server, as everyone in the cluster calls it.
pub fn server() -> String {
    format!("https://{}:{PORT}", node_address(1))
}

/// The files that the control plane needs.
pub fn write_files(directory: &Directory, pki: &Pki) -> Result<()> {
    pki.key("service-accounts")?;
    let names = [
        "kubernetes".to_owned(),
        "kubernetes.default.svc".to_owned(),
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        API_SERVICE.to_string(),
        node_address(1).to_string(),
    ];
    pki.server("apiserver", &names)?;
    pki.client("apiserver-kubelet-client", "kube-apiserver", &["system:masters"])?;
    pki.kubeconfig("admin", "admin", &["system:masters"], &server())?;
    pki.kubeconfig("kube-controller-manager", "system:kube-controller-manager", &[], &server())?;
    pki.kubeconfig("kube-scheduler", "system:kube-scheduler", &[], &server())?;
    // What netaudit asks for is recorded, and nothing else: its rights must be the least.
    let audit = serde_json::json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            { "level": "Metadata", "userGroups": ["system:serviceaccounts:netaudit"] },
            { "level": "None" },
        ],
    });
    std::fs::write(directory.path().join("pki/audit.json"), audit.to_string())?;
    Ok(())
}

/// Starts all four and waits until the API server is ready.
pub fn start(node: &Machine) -> Result<()> {
    start_etcd(node)?.wait_until(Duration::from_secs(30), "not serving", || listens(node, 2379))?;
    start_api_server(node)?;
    let file = |name: &str| format!("{PKI}/{name}");
    node.daemon(
        "kube-controller-manager",
        program("kube-controller-manager"),
        [
            format!("--kubeconfig={}", file("kube-controller-manager.kubeconfig")),
            format!("--root-ca-file={}", file("ca.crt")),
            format!("--service-account-private-key-file={}", file("service-accounts.key")),
            "--use-service-account-credentials=true".to_owned(),
            "--leader-elect=false".to_owned(),
            format!("--flex-volume-plugin-dir={VOLUME_PLUGINS}"),
        ],
        &[],
    )?;
    node.daemon(
        "kube-scheduler",
        program("kube-scheduler"),
        [format!("--kubeconfig={}", file("kube-scheduler.kubeconfig")), "--leader-elect=false".to_owned()],
        &[],
    )?;
    Ok(())
}

fn start_etcd(node: &Machine) -> Result<Daemon> {
    let etcd = crate::process::on_path("etcd").context("no etcd on PATH: `cargo xtask setup` installs it")?;
    node.daemon(
        "etcd",
        etcd,
        [
            "--data-dir=/var/lib/etcd",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--initial-advertise-peer-urls=http://127.0.0.1:2380",
            "--initial-cluster=default=http://127.0.0.1:2380",
        ],
        &[("ETCD_UNSUPPORTED_ARCH", "arm64")],
    )
}

/// Starts the API server, also again after it was stopped, and waits until it is ready.
pub fn start_api_server(node: &Machine) -> Result<()> {
    let file = |name: &str| format!("{PKI}/{name}");
    let mut server = node.daemon(
        "kube-apiserver",
        program("kube-apiserver"),
        [
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            format!("--secure-port={PORT}"),
            format!("--advertise-address={}", node_address(1)),
            format!("--service-cluster-ip-range={SERVICE_NETWORK}"),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--tls-cert-file={}", file("apiserver.crt")),
            format!("--tls-private-key-file={}", file("apiserver.key")),
            format!("--kubelet-client-certificate={}", file("apiserver-kubelet-client.crt")),
            format!("--kubelet-client-key={}", file("apiserver-kubelet-client.key")),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            format!("--service-account-key-file={}", file("service-accounts.pub")),
            format!("--service-account-signing-key-file={}", file("service-accounts.key")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            format!("--audit-policy-file={}", file("audit.json")),
            "--audit-log-path=/var/log/audit.log".to_owned(),
        ],
        &[],
    )?;
    server.wait_until(Duration::from_secs(60), "not ready", || is_ready(node))
}

/// Whether the API server says that it is ready.
pub fn is_ready(node: &Machine) -> bool {
    let url = format!("{}/readyz", server());
    let authority = format!("{PKI}/ca.crt");
    node.run("curl", ["--silent", "--fail", "--max-time", "2", "--cacert", &authority, &url]).is_ok()
}

/// Whether somebody listens at this port of a machine.
pub fn listens(machine: &Machine, port: u16) -> bool {
    let wanted = format!(":{port:04X}");
    ["tcp", "tcp6"].iter().any(|table| {
        std::fs::read_to_string(format!("/proc/{}/net/{table}", machine.pid)).is_ok_and(|text| {
            text.lines().any(|line| {
                let mut fields = line.split_whitespace().skip(1);
                fields.next().is_some_and(|local| local.ends_with(&wanted)) && fields.nth(1) == Some("0A")
            })
        })
    })
}

/// Where machines see a program of the cluster.
pub fn program(name: &str) -> String {
    Path::new("/run/netaudit/bin").join(name).to_string_lossy().into_owned()
}
