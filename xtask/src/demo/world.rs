//! Who lives in the demo: Batchivo's pods, their neighbours, and the Services in front of them.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::lab::{Lab, Owner, Pod, PodSpec, Qos, Service, ServicePort, ServiceSpec};

/// The cluster's name server, as every pod's `resolv.conf` names it.
pub const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Hosts on the internet that serve HTTPS, by name.
pub const EXTERNAL: [(&str, &str); 4] = [
    ("connect.squareup.com", "203.0.113.10"),
    ("connect.squareupsandbox.com", "203.0.113.11"),
    ("api.brevo.com", "203.0.113.20"),
    ("auth.batchivo.example", "198.51.100.30"),
];
/// A host of the company's own network, by name, that the backend asks by HTTP.
pub const COMPANY: (&str, &str) = ("licences.batchivo.example", "172.31.0.30");
/// Somebody on the internet.
pub const VISITOR: &str = "198.51.100.77";
/// A host with a private address beyond the node.
pub const PRIVATE_HOST: &str = "172.31.0.5";
/// A host on the IPv6 internet.
pub const EXTERNAL_V6: &str = "2001:db8::443";

/// The laid-out demo.
pub struct World {
    pub lab: Lab,
    pub frontend: Pod,
    pub backend: Pod,
    pub postgres: Pod,
    pub redis: Pod,
    pub minio: Pod,
    pub admin_jobs: Pod,
    pub netpol_test: Pod,
    pub traefik: Pod,
    pub dns: Pod,
    pub health_checker: Pod,
    pub stranger: Pod,
    pub svc_frontend: Service,
    pub svc_backend: Service,
    pub svc_postgres: Service,
    pub svc_redis: Service,
    pub svc_minio: Service,
}

impl World {
    /// Lays out everything; nothing runs in it yet.
    pub fn new() -> Result<Self> {
        let mut lab = Lab::new("demo")?;
        let mut pod = |namespace, name, labels, owner, qos, container, ports| {
            lab.add_pod(PodSpec { namespace, name, labels, owner, qos, container, ports }, DNS)
        };
        let batchivo = "batchivo";
        let frontend = pod(
            batchivo,
            "frontend-6d5f7c9b8-x2x7k",
            &[("app", "frontend")],
            Owner::Deployment("frontend", "6d5f7c9b8"),
            Qos::Burstable,
            "nginx",
            &[("http", "TCP", 8080)],
        )?;
        let backend = pod(
            batchivo,
            "backend-7c8d9f6b5-q4n2m",
            &[("app", "backend")],
            Owner::Deployment("backend", "7c8d9f6b5"),
            Qos::Burstable,
            "api",
            &[("http", "TCP", 8000), ("statsd", "UDP", 8125)],
        )?;
        let postgres = pod(
            batchivo,
            "postgres-0",
            &[("app", "postgres")],
            Owner::StatefulSet("postgres"),
            Qos::Guaranteed,
            "postgres",
            &[("postgres", "TCP", 5432)],
        )?;
        let redis = pod(
            batchivo,
            "redis-5b6c8d7f9-t9w4z",
            &[("app", "redis")],
            Owner::Deployment("redis", "5b6c8d7f9"),
            Qos::Burstable,
            "redis",
            &[("redis", "TCP", 6379)],
        )?;
        let minio = pod(
            batchivo,
            "minio-0",
            &[("app", "minio")],
            Owner::StatefulSet("minio"),
            Qos::Guaranteed,
            "minio",
            &[("s3", "TCP", 9000), ("console", "TCP", 9001)],
        )?;
        let admin_jobs = pod(
            batchivo,
            "bucket-report-29412345-h6k8p",
            &[("app", "admin-jobs")],
            Owner::CronJob("bucket-report", 29_412_345),
            Qos::BestEffort,
            "job",
            &[],
        )?;
        let netpol_test = pod(
            batchivo,
            "netpol-test",
            &[("run", "netpol-test")],
            Owner::Bare,
            Qos::BestEffort,
            "netpol-test",
            &[],
        )?;
        let traefik = pod(
            "traefik",
            "traefik-66b8f7d5c-l5v9d",
            &[("app.kubernetes.io/name", "traefik")],
            Owner::Deployment("traefik", "66b8f7d5c"),
            Qos::Burstable,
            "traefik",
            &[("web", "TCP", 8000)],
        )?;
        let dns = pod(
            "kube-system",
            "coredns-5d78c9869d-m7j3s",
            &[("k8s-app", "kube-dns")],
            Owner::Deployment("coredns", "5d78c9869d"),
            Qos::Burstable,
            "dns",
            &[("dns", "UDP", 53), ("dns-tcp", "TCP", 53)],
        )?;
        let health_checker = pod(
            "kube-system",
            "health-checker-84f7b6c9d-b8r2f",
            &[("k8s-app", "health-checker")],
            Owner::Deployment("health-checker", "84f7b6c9d"),
            Qos::Burstable,
            "checker",
            &[],
        )?;
        let stranger = pod(
            "monitoring",
            "blackbox-75d9c8b6f-c3g5v",
            &[("app", "blackbox")],
            Owner::Deployment("blackbox", "75d9c8b6f"),
            Qos::Burstable,
            "blackbox",
            &[],
        )?;
        for name in [batchivo, "traefik", "kube-system", "monitoring", "default"] {
            lab.label_namespace(name, "kubernetes.io/metadata.name", name);
        }

        let mut service =
            |namespace, name, selector, address, ports: &[(&'static str, &'static str, u16, u16)]| {
                let ports = ports
                    .iter()
                    .map(|&(name, protocol, port, target_port)| ServicePort {
                        name,
                        protocol,
                        port,
                        target_port,
                        node_port: (name == "web").then_some(30080),
                    })
                    .collect();
                lab.add_service(ServiceSpec { namespace, name, selector, ports }, address)
            };
        let address = |low| Ipv4Addr::new(10, 96, 1, low);
        service(
            "kube-system",
            "kube-dns",
            &[("k8s-app", "kube-dns")],
            DNS,
            &[("dns", "UDP", 53, 53), ("dns-tcp", "TCP", 53, 53)],
        )?;
        service(
            "traefik",
            "traefik",
            &[("app.kubernetes.io/name", "traefik")],
            address(1),
            &[("web", "TCP", 80, 8000)],
        )?;
        let svc_frontend =
            service(batchivo, "frontend", &[("app", "frontend")], address(2), &[("http", "TCP", 80, 8080)])?;
        let svc_backend = service(
            batchivo,
            "backend",
            &[("app", "backend")],
            address(3),
            &[("http", "TCP", 8000, 8000), ("statsd", "UDP", 8125, 8125)],
        )?;
        let svc_postgres = service(
            batchivo,
            "postgres",
            &[("app", "postgres")],
            address(4),
            &[("postgres", "TCP", 5432, 5432)],
        )?;
        let svc_redis =
            service(batchivo, "redis", &[("app", "redis")], address(5), &[("redis", "TCP", 6379, 6379)])?;
        let svc_minio = service(
            batchivo,
            "minio",
            &[("app", "minio")],
            address(6),
            &[("s3", "TCP", 9000, 9000), ("console", "TCP", 9001, 9001)],
        )?;
        lab.write_manifests()?;
        Ok(Self {
            lab,
            frontend,
            backend,
            postgres,
            redis,
            minio,
            admin_jobs,
            netpol_test,
            traefik,
            dns,
            health_checker,
            stranger,
            svc_frontend,
            svc_backend,
            svc_postgres,
            svc_redis,
            svc_minio,
        })
    }
}
