//! The example deployment: its document's steps as written, every row of its tables, and the same with an enforcer.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};

use super::{
    apps::{S3_USER, service},
    world::{Line, Pod, World},
};
use crate::account::{
    batchivo::{OPEN, by, dns, no_egress, no_ingress},
    ledger::{Expected, Party},
};

/// Names on the internet and where they lead.
pub const EXTERNAL: [(&str, Ipv4Addr); 3] = [
    ("connect.squareup.com", Ipv4Addr::new(203, 0, 113, 10)),
    ("api.brevo.com", Ipv4Addr::new(198, 51, 100, 20)),
    ("auth.batchivo.example", Ipv4Addr::new(203, 0, 113, 10)),
];

/// The pods by what they are.
pub struct Apps {
    pub frontend: Pod,
    pub backend: Pod,
    pub postgres: Pod,
    pub redis: Pod,
    pub minio: Pod,
    pub traefik: Pod,
    pub stranger: Pod,
    pub netpol_test: Pod,
    pub admin_jobs: Pod,
    pub dns: Pod,
    postgres_programs: String,
}

impl Apps {
    /// Looks them up.
    pub fn find(world: &World, postgres_programs: &str) -> Result<Self> {
        let app = |name: &str| world.pod("batchivo", &format!("app={name}"));
        Ok(Self {
            frontend: app("frontend")?,
            backend: app("backend")?,
            postgres: app("postgres")?,
            redis: app("redis")?,
            minio: app("minio")?,
            traefik: world.pod("traefik", "app.kubernetes.io/name=traefik")?,
            stranger: world.pod("shop", "app=stranger")?,
            netpol_test: world.pod("batchivo", "run=netpol-test")?,
            admin_jobs: app("admin-jobs")?,
            dns: world.pod("kube-system", "k8s-app=kube-dns")?,
            postgres_programs: postgres_programs.to_owned(),
        })
    }
}

/// curl with an account of what happened as its only output.
pub fn curl<'a>(url: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let format = "connects=%{num_connects} status=%{http_code} exit=%{exitcode}\n";
    let mut all = vec!["curl", "-sk", "-o", "/dev/null", "-m", "5", "-w", format];
    all.extend(more);
    all.push(url);
    all
}

/// A TCP connection and nothing else.
pub fn connect(ip: &str, port: u16) -> Vec<String> {
    let script = format!("exec 3<>/dev/tcp/{ip}/{port} && echo open");
    ["bash", "-c", &script].map(str::to_owned).to_vec()
}

/// A lookup of `sockets` UDP sockets, as the search list wants.
fn lookup(apps: &Apps, pod: &Pod, sockets: usize) -> Expected {
    Expected::udp(pod, &apps.dns, 53)
        .outcome("answered")
        .requested(crate::cluster::DNS_SERVICE, 53)
        .egress(if pod.namespace == "batchivo" { dns("UDP") } else { OPEN })
        .ingress(OPEN)
        .times(sockets)
}

/// The document's sections "Check policies are applied" and "Troubleshooting".
pub fn verification(world: &World) -> Result<()> {
    let shown = world.kubectl(&["get", "networkpolicies", "-n", "batchivo"])?;
    let mut rows: Vec<(&str, &str)> = shown
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            Some((fields.next()?, fields.next()?))
        })
        .collect();
    rows.sort_unstable();
    let expected = [
        ("allow-dns-egress", "<none>"),
        ("backend-policy", "app=backend"),
        ("default-deny-all", "<none>"),
        ("frontend-policy", "app=frontend"),
        ("minio-policy", "app=minio"),
        ("postgres-policy", "app=postgres"),
        ("redis-policy", "app=redis"),
    ];
    ensure!(rows == expected, "kubectl get networkpolicies shows {rows:?}");
    let labels = world.kubectl(&["get", "namespace", "kube-system", "-o", "jsonpath={.metadata.labels}"])?;
    ensure!(labels.contains("\"kubernetes.io/metadata.name\":\"kube-system\""), "kube-system has {labels}");
    Ok(())
}

/// What the seven policies allow.
pub fn allowed(world: &mut World, apps: &Apps) -> Result<()> {
    through_traefik(world, apps)?;
    from_backend(world, apps)?;
    lookups(world, apps)
}

fn through_traefik(world: &mut World, apps: &Apps) -> Result<()> {
    let outside = world.cluster.outside.clone();
    let visitor = Party::External(IpAddr::V4(crate::cluster::OUTSIDE));
    // The node port answers on the node where Traefik is.
    let node = world.cluster.node_address(&apps.traefik.node);
    let requests = [
        ("/", &apps.frontend, 8080, service::FRONTEND, 80, "frontend"),
        ("/api/batches", &apps.backend, 8000, service::BACKEND, 8000, "backend"),
    ];
    for (path, pod, port, address, asked, app) in requests {
        let flows = [
            Expected::tcp(visitor.clone(), &apps.traefik, 8000).ingress(OPEN),
            Expected::tcp(&apps.traefik, pod, port)
                .requested(address, asked)
                .egress(OPEN)
                .ingress(by(&[&format!("{app}-policy ingress[0].from[0].ports[0]")])),
        ];
        let url = format!("http://{node}:30080{path}");
        world.attempt_on(
            &outside,
            &curl(&url, &["-H", "Host: app.batchivo.example"]),
            "status=200",
            &flows,
        )?;
    }
    Ok(())
}

fn from_backend(world: &mut World, apps: &Apps) -> Result<()> {
    let backend = apps.backend.clone();
    let to = |pod: &Pod, address: Ipv4Addr, port: u16, policy: &str, rule: usize, element: usize| {
        Expected::tcp(&backend, pod, port)
            .requested(address, port)
            .egress(by(&[&format!("backend-policy egress[{rule}].to[0].ports[{element}]")]))
            .ingress(by(&[&format!("{policy} ingress[0].from[0].ports[{element}]")]))
    };
    let one = lookup(apps, &backend, 1);
    let postgres = to(&apps.postgres, service::POSTGRES, 5432, "postgres-policy", 0, 0);
    let redis = to(&apps.redis, service::REDIS, 6379, "redis-policy", 1, 0);
    let (objects, console) = (
        to(&apps.minio, service::MINIO, 9000, "minio-policy", 2, 0),
        to(&apps.minio, service::MINIO, 9001, "minio-policy", 2, 1),
    );
    let psql = format!("{}/psql", apps.postgres_programs);
    let psql = [
        "env",
        "PGSSLMODE=disable",
        "PGGSSENCMODE=disable",
        &psql,
        "-h",
        "postgres",
        "-U",
        "batchivo",
        "-d",
        "postgres",
        "-Atc",
        "select 'batch ' || 6 * 7",
    ];
    world.attempt(&backend, &psql, "batch 42", &[one.clone(), postgres.clone()])?;
    world.attempt(&backend, &["redis-cli", "-h", "redis", "PING"], "PONG", &[one.clone(), redis.clone()])?;
    // The document's own tests: "Should connect". PostgreSQL and Redis are no HTTP servers and hang up.
    world.attempt(
        &backend,
        &["curl", "-sv", "-m", "5", "http://postgres:5432"],
        "Connected to postgres",
        &[one.clone(), postgres],
    )?;
    world.attempt(
        &backend,
        &["curl", "-sv", "-m", "5", "http://redis:6379"],
        "Connected to redis",
        &[one.clone(), redis],
    )?;
    world.attempt(
        &backend,
        &["curl", "-sv", "-m", "5", "http://minio:9000"],
        "Connected to minio",
        &[one.clone(), objects.clone()],
    )?;
    let signed = ["--aws-sigv4", "aws:amz:us-east-1:s3", "-u", S3_USER];
    world.attempt(&backend, &curl("http://minio:9000/", &signed), "status=200", &[one.clone(), objects])?;
    world.attempt(&backend, &curl("http://minio:9001/", &[]), "status=200", &[one, console])?;
    for (name, ip) in EXTERNAL {
        let flow = Expected::tcp(&backend, Party::External(IpAddr::V4(ip)), 443)
            .egress(by(&["backend-policy egress[3].to[0].ports[0]"]));
        let flows = [lookup(apps, &backend, 4), flow];
        world.attempt(&backend, &curl(&format!("https://{name}/"), &[]), "status=200", &flows)?;
    }
    Ok(())
}

fn lookups(world: &mut World, apps: &Apps) -> Result<()> {
    let answer = service::BACKEND.to_string();
    for pod in [&apps.frontend, &apps.postgres, &apps.redis, &apps.minio, &apps.admin_jobs, &apps.stranger] {
        let flow = lookup(apps, pod, 1);
        world.attempt(
            pod,
            &["getent", "ahostsv4", "backend.batchivo.svc.cluster.local."],
            &answer,
            &[flow],
        )?;
    }
    // The document's: it walks the search list before it asks for the name itself, then asks for its IPv6 address.
    let flow = lookup(apps, &apps.netpol_test, 5);
    world.attempt(
        &apps.netpol_test,
        &["nslookup", "backend.batchivo.svc.cluster.local"],
        &answer,
        &[flow],
    )?;
    let flow = Expected::tcp(&apps.backend, &apps.dns, 53)
        .requested(crate::cluster::DNS_SERVICE, 53)
        .egress(dns("TCP"))
        .ingress(OPEN);
    world.attempt(
        &apps.backend,
        &["dig", "+tcp", "+short", "connect.squareup.com"],
        &EXTERNAL[0].1.to_string(),
        &[flow],
    )?;
    Ok(())
}

/// Who tries what the seven policies forbid.
struct Forbidden<'a> {
    from: &'a Pod,
    to: &'a Pod,
    port: u16,
    /// The `app` of the source, if it is Batchivo's.
    source: Option<&'a str>,
    /// The `app` of the destination, if it is Batchivo's and its policies deny, too.
    destination: &'a str,
}

impl Apps {
    fn forbidden(&self) -> Vec<Forbidden<'_>> {
        let one = |from, to, port, source, destination| Forbidden { from, to, port, source, destination };
        let all = [
            (&self.frontend, 8080, "frontend"),
            (&self.backend, 8000, "backend"),
            (&self.postgres, 5432, "postgres"),
            (&self.redis, 6379, "redis"),
            (&self.minio, 9000, "minio"),
            (&self.minio, 9001, "minio"),
        ];
        let mut rows: Vec<_> =
            all.iter().map(|(to, port, app)| one(&self.stranger, *to, *port, None, *app)).collect();
        rows.extend(
            all.iter().skip(1).map(|(to, port, app)| one(&self.frontend, *to, *port, Some("frontend"), *app)),
        );
        rows.extend([
            one(&self.traefik, &self.postgres, 5432, None, "postgres"),
            one(&self.backend, &self.frontend, 8080, Some("backend"), "frontend"),
            one(&self.postgres, &self.redis, 6379, Some("postgres"), "redis"),
            one(&self.redis, &self.backend, 8000, Some("redis"), "backend"),
            one(&self.minio, &self.postgres, 5432, Some("minio"), "postgres"),
            one(&self.admin_jobs, &self.postgres, 5432, Some("admin-jobs"), "postgres"),
        ]);
        rows
    }
}

/// What the seven forbid, with nobody to enforce it: all of it passes.
pub fn unenforced(world: &mut World, apps: &Apps) -> Result<()> {
    debug_pod(world, apps)?;
    from_each(world, apps)?;
    // Stores to the internet, the backend at a port that is not 443.
    let (_, ip) = EXTERNAL[0];
    for (pod, port, app) in [
        (&apps.postgres, 443, "postgres"),
        (&apps.redis, 443, "redis"),
        (&apps.minio, 443, "minio"),
        (&apps.backend, 80, "backend"),
    ] {
        let flow = Expected::tcp(pod, Party::External(IpAddr::V4(ip)), port).egress(no_egress(app));
        let command = connect(&ip.to_string(), port);
        world.attempt(pod, &command, "open", &[flow])?;
    }
    // A port where nobody listens, reached past every policy.
    let closed = Expected::tcp(&apps.frontend, &apps.backend, 9999)
        .outcome("refused")
        .egress(no_egress("frontend"))
        .ingress(no_ingress("backend"));
    let command = connect(&apps.backend.ip, 9999);
    world.attempt(&apps.frontend, &command, "refused", &[closed]).map(drop)
}

/// Every pair of pods that they forbid, with nobody to enforce it.
fn from_each(world: &mut World, apps: &Apps) -> Result<()> {
    for row in apps.forbidden() {
        let flow = Expected::tcp(row.from, row.to, row.port)
            .egress(row.source.map_or(OPEN, no_egress))
            .ingress(no_ingress(row.destination));
        let command = connect(&row.to.ip, row.port);
        world.attempt(row.from, &command, "open", &[flow])?;
    }
    Ok(())
}

/// Nothing has been stopped yet, on any node, and every flow that passed says so: but for those of the first two pods, which show
/// too little, and that its policies have just come, as long as that may be why.
pub fn nothing_enforces(world: &mut World, apps: &Apps) -> Result<()> {
    const CAUSES: [&str; 5] =
        ["", "nothing enforces", "policy just changed", "labels just changed", "pod just started"];
    /// Longer than what is taken for an enforcer's delay.
    const NO_EXCUSE: Duration = Duration::from_secs(11);
    /// Pods of one direction and node of which flows pass before that shows that nothing enforces.
    const TOO_FEW: usize = 2;
    let cause = |line: &Line| line.record.finding_cause.clone().unwrap_or_default();
    let passed = |line: &&Line| line.record.finding.as_deref() == Some("unenforced");
    ensure!(world.lines().any(|line| passed(&line)), "nothing passed that is denied");
    let odd = world.lines().filter(passed).find(|line| !CAUSES.contains(&cause(line).as_str()));
    ensure!(odd.is_none(), "another cause is given: {odd:?}");

    thread::sleep(NO_EXCUSE);
    from_each(world, apps)?;
    world.compare("forbidden, and no excuse left")?;
    let mut silent: BTreeMap<(&str, &str), BTreeSet<Option<&str>>> = BTreeMap::new();
    for line in world.lines().filter(passed).filter(|line| cause(line).is_empty()) {
        let of = (line.node.as_str(), line.record.direction.as_str());
        silent.entry(of).or_default().insert(line.record.subject.pod.as_deref());
    }
    ensure!(silent.values().all(|pods| pods.len() <= TOO_FEW), "no cause is given: {silent:?}");

    // On the node of both there are more pods than it takes.
    let before: BTreeSet<String> = world.lines().map(|line| line.record.flow_id.clone()).collect();
    let flow = Expected::tcp(&apps.minio, &apps.postgres, 5432)
        .egress(no_egress("minio"))
        .ingress(no_ingress("postgres"));
    world.attempt(&apps.minio, &connect(&apps.postgres.ip, 5432), "open", &[flow])?;
    world.compare("forbidden, and nothing enforces")?;
    let is_new = |line: &&Line| !before.contains(&line.record.flow_id);
    let causes: Vec<_> = world.lines().filter(passed).filter(is_new).map(cause).collect();
    ensure!(causes == ["nothing enforces"; 2], "the last ones passed because: {causes:?}");
    for (pod, direction) in [(&apps.minio, "egress"), (&apps.postgres, "ingress")] {
        let metrics = world.scrape(world.node(&pod.node))?;
        let is = |label: &str, value: &str, of: &BTreeMap<String, String>| {
            of.get(label).is_some_and(|it| it == value)
        };
        let says = metrics.named("netaudit_enforcement").any(|it| {
            it.value == 1.0
                && is("direction", direction, &it.labels)
                && is("state", "not-enforced", &it.labels)
        });
        ensure!(says, "{}'s agent does not say that nothing enforces {direction}", pod.node);
    }
    Ok(())
}

/// The document's debug pod. Its `curl http://backend:8000/health` "should work" there, but its own tables and
/// default-deny-all say no, in both directions.
fn debug_pod(world: &mut World, apps: &Apps) -> Result<()> {
    let pod = &apps.netpol_test;
    let rows = [
        (
            "http://backend:8000/health",
            "Connected to backend",
            &apps.backend,
            service::BACKEND,
            8000,
            "backend",
        ),
        (
            "http://postgres:5432",
            "Connected to postgres",
            &apps.postgres,
            service::POSTGRES,
            5432,
            "postgres",
        ),
        ("http://redis:6379", "Connected to redis", &apps.redis, service::REDIS, 6379, "redis"),
    ];
    for (url, shows, to, address, port, app) in rows {
        let flow = Expected::tcp(pod, to, port)
            .requested(address, port)
            .egress(no_egress("netpol-test"))
            .ingress(no_ingress(app));
        world.attempt(pod, &["curl", "-v", "-m", "5", url], shows, &[lookup(apps, pod, 1), flow])?;
    }
    Ok(())
}

/// Admin jobs, denied by the seven policies or let out by the optional eighth.
pub fn admin_jobs(world: &mut World, apps: &Apps, eighth: bool) -> Result<()> {
    for (index, port) in [9000, 9001].into_iter().enumerate() {
        let flow = Expected::tcp(&apps.admin_jobs, &apps.minio, port)
            .requested(service::MINIO, port)
            .egress(if eighth {
                by(&[&format!("admin-jobs-policy egress[0].to[0].ports[{index}]")])
            } else {
                no_egress("admin-jobs")
            })
            .ingress(by(&[&format!("minio-policy ingress[0].from[1].ports[{index}]")]));
        let url = format!("http://{}:{port}/", service::MINIO);
        let signed = ["--aws-sigv4", "aws:amz:us-east-1:s3", "-u", S3_USER];
        world.attempt(&apps.admin_jobs, &curl(&url, &signed), "status=200", &[flow])?;
    }
    Ok(())
}

/// What an enforcer that rejects by ICMP makes of it: attempts are blocked, and never arrive. What the source's node lets
/// out, the destination's node drops; and where both are one, it does so for both.
pub fn enforced(world: &mut World, apps: &Apps) -> Result<()> {
    for row in apps.forbidden() {
        let mut flow = Expected::tcp(row.from, row.to, row.port)
            .outcome("rejected")
            .egress(row.source.map_or(OPEN, no_egress));
        if row.source.is_none() || row.from.node == row.to.node {
            flow = flow.ingress(no_ingress(row.destination));
        }
        let command = connect(&row.to.ip, row.port);
        world.attempt(row.from, &command, "refused", &[flow])?;
    }
    from_backend(world, apps)
}
