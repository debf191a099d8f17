//! Every row of Batchivo's tables, driven: what they allow, what they forbid, and what goes past policies.

use anyhow::Result;

use super::{
    drive::Driver,
    servers::S3_USER,
    world::{COMPANY, DNS, EXTERNAL, EXTERNAL_V6, PRIVATE_HOST, VISITOR},
};
use crate::{
    account::{
        batchivo::{HOST, OPEN, OWN_NODE, by, dns, no_egress, no_ingress},
        ledger::{Expected, Party},
    },
    lab::{Launch, Pod, Service},
};

/// What the seven policies allow.
pub fn allowed(driver: &mut Driver) -> Result<()> {
    ingress_through_traefik(driver)?;
    backend_to_stores(driver)?;
    lookups(driver)?;
    backend_to_external(driver)?;
    health_checks(driver)?;
    past_policies(driver)
}

/// What the seven policies forbid. Nobody enforces here, so what finds a listener passes.
pub fn forbidden(driver: &mut Driver) -> Result<()> {
    debug_pod(driver)?;
    strangers(driver)?;
    sideways(driver)?;
    stores_outwards(driver)?;
    backend_too_far(driver)
}

/// Admin jobs, denied by the seven policies or let out by the optional eighth.
pub fn admin_jobs(driver: &mut Driver, eighth: bool) -> Result<()> {
    let world = driver.world;
    for (index, port) in [9000, 9001].into_iter().enumerate() {
        let egress = if eighth {
            by(&[&format!("admin-jobs-policy egress[0].to[0].ports[{index}]")])
        } else {
            no_egress("admin-jobs")
        };
        let flow = Expected::tcp(&world.admin_jobs, &world.minio, port)
            .requested(world.svc_minio.v4, port)
            .egress(egress)
            .ingress(by(&[&format!("minio-policy ingress[0].from[1].ports[{index}]")]));
        let url = format!("http://{}:{port}/", world.svc_minio.v4);
        let signed = ["--aws-sigv4", "aws:amz:us-east-1:s3", "-u", S3_USER];
        driver.curl_with(&world.admin_jobs.place, &signed, &url, "status=200", &[flow])?;
    }
    Ok(())
}

/// A lookup: `sockets` UDP sockets, as the search list wants, each of which is answered.
fn lookup(driver: &Driver, pod: &Pod, sockets: usize) -> Expected {
    Expected::udp(pod, &driver.world.dns, 53)
        .outcome("answered")
        .requested(DNS, 53)
        .egress(if pod.spec.namespace == "batchivo" { dns("UDP") } else { OPEN })
        .ingress(OPEN)
        .times(sockets)
}

fn ingress_through_traefik(driver: &mut Driver) -> Result<()> {
    let world = driver.world;
    let internet = world.lab.outside_place();
    let visitor = Party::External(VISITOR.parse()?);
    let requests = [
        ("app.batchivo.example", "/", &world.frontend, 8080, "frontend"),
        // Traefik knows this one by its IPv6 address.
        ("app6.batchivo.example", "/", &world.frontend, 8080, "frontend"),
        ("app.batchivo.example", "/api/batches", &world.backend, 8000, "backend"),
    ];
    for (host, path, pod, port, app) in requests {
        let upstream = Expected::tcp(&world.traefik, pod, port)
            .egress(OPEN)
            .ingress(by(&[&format!("{app}-policy ingress[0].from[0].ports[0]")]));
        let flows = [
            Expected::tcp(visitor.clone(), &world.traefik, 8000).ingress(OPEN),
            if host.starts_with("app6") { upstream.v6() } else { upstream },
        ];
        let header = format!("Host: {host}");
        let url = format!("http://192.168.50.10:30080{path}");
        driver.curl_with(&internet, &["--interface", VISITOR, "-H", &header], &url, "status=200", &flows)?;
    }
    Ok(())
}

fn backend_to_stores(driver: &mut Driver) -> Result<()> {
    let world = driver.world;
    let backend = &world.backend;
    let to = |pod: &Pod, service: &Service, port: u16, policy: &str, rule: usize, element: usize| {
        Expected::tcp(backend, pod, port)
            .requested(service.v4, port)
            .egress(by(&[&format!("backend-policy egress[{rule}].to[0].ports[{element}]")]))
            .ingress(by(&[&format!("{policy} ingress[0].from[0].ports[{element}]")]))
    };
    let postgres = to(&world.postgres, &world.svc_postgres, 5432, "postgres-policy", 0, 0);
    let psql = |address: &str| {
        Launch::new(
            driver.tools.postgres.join("psql"),
            ["-h", address, "-U", "batchivo", "-d", "postgres", "-Atc", "select 'batch ' || 6 * 7"],
        )
        .env("PGSSLMODE", "disable")
        .env("PGGSSENCMODE", "disable")
    };
    let (v4, v6) = (world.svc_postgres.v4.to_string(), world.svc_postgres.v6.to_string());
    let (by_v4, by_v6) = (psql(&v4), psql(&v6));
    let pg_isready = Launch::new(driver.tools.postgres.join("pg_isready"), ["-h", &v4]);
    driver.attempt("psql", &backend.place, &by_v4, "batch 42", std::slice::from_ref(&postgres))?;
    driver.attempt(
        "psql over IPv6",
        &backend.place,
        &by_v6,
        "batch 42",
        &[postgres.clone().v6().requested(world.svc_postgres.v6, 5432)],
    )?;
    driver.attempt("pg_isready", &backend.place, &pg_isready, "accepting connections", &[postgres])?;
    let redis_cli = Launch::new("redis-cli", ["-h", &world.svc_redis.v4.to_string(), "PING"]);
    let redis = to(&world.redis, &world.svc_redis, 6379, "redis-policy", 1, 0);
    driver.attempt("redis-cli PING", &backend.place, &redis_cli, "PONG", std::slice::from_ref(&redis))?;
    // The document's own test of it. Redis takes HTTP for an attack and hangs up.
    let with_lookup = [lookup(driver, backend, 1), redis];
    driver.curl_connects(&backend.place, "http://redis:6379", &with_lookup)?;
    let signed = ["--aws-sigv4", "aws:amz:us-east-1:s3", "-u", S3_USER];
    let (objects, console) = (
        to(&world.minio, &world.svc_minio, 9000, "minio-policy", 2, 0),
        to(&world.minio, &world.svc_minio, 9001, "minio-policy", 2, 1),
    );
    driver.curl_with(
        &backend.place,
        &signed,
        "http://minio:9000/",
        "status=200",
        &[lookup(driver, backend, 1), objects],
    )?;
    driver.curl(&backend.place, "http://minio:9001/", 200, &[lookup(driver, backend, 1), console])
}

fn lookups(driver: &mut Driver) -> Result<()> {
    let world = driver.world;
    let getent = Launch::new("getent", ["ahostsv4", "backend.batchivo.svc.cluster.local."]);
    let pods = [
        &world.frontend,
        &world.backend,
        &world.postgres,
        &world.redis,
        &world.minio,
        &world.admin_jobs,
        &world.netpol_test,
        &world.stranger,
    ];
    let answer = world.svc_backend.v4.to_string();
    for pod in pods {
        let flow = lookup(driver, pod, 1);
        let what = format!("lookup by {}", pod.spec.name);
        driver.attempt(&what, &pod.place, &getent, &answer, &[flow])?;
    }
    // nslookup walks the search list before it asks for the name itself, then asks for its IPv6 address.
    let nslookup = Launch::new("nslookup", ["backend.batchivo.svc.cluster.local"]);
    let flow = lookup(driver, &world.netpol_test, 5);
    driver.attempt("nslookup", &world.netpol_test.place, &nslookup, &answer, &[flow])?;
    let dig = Launch::new("dig", ["+tcp", "+short", "connect.squareup.com"]);
    let flow =
        Expected::tcp(&world.backend, &world.dns, 53).requested(DNS, 53).egress(dns("TCP")).ingress(OPEN);
    driver.attempt("dig +tcp", &world.backend.place, &dig, EXTERNAL[0].1, &[flow])
}

/// What the rule that is planted too wide is for.
pub fn company(driver: &mut Driver) -> Result<()> {
    let world = driver.world;
    let (name, ip) = COMPANY;
    let flow = Expected::tcp(&world.backend, Party::External(ip.parse()?), 80)
        .names(&[name])
        .egress(by(&["backend-policy egress[4].to[0].ports[0]"]));
    let flows = [lookup(driver, &world.backend, 4), flow];
    driver.curl(&world.backend.place, &format!("http://{name}/"), 200, &flows)
}

fn backend_to_external(driver: &mut Driver) -> Result<()> {
    let world = driver.world;
    for (name, ip) in EXTERNAL {
        let flow = Expected::tcp(&world.backend, Party::External(ip.parse()?), 443)
            .names(&[name])
            .egress(by(&["backend-policy egress[3].to[0].ports[0]"]));
        let flows = [lookup(driver, &world.backend, 4), flow];
        driver.curl(&world.backend.place, &format!("https://{name}/"), 200, &flows)?;
    }
    Ok(())
}

/// By pods of kube-system, as the policies allow: all but PostgreSQL, whose allowance stays the unused one.
fn health_checks(driver: &mut Driver) -> Result<()> {
    let world = driver.world;
    let checker = &world.health_checker;
    let flow = |pod: &Pod, port, app: &str| {
        Expected::tcp(checker, pod, port)
            .egress(OPEN)
            .ingress(by(&[&format!("{app}-policy ingress[1].from[0].ports[0]")]))
    };
    let (frontend, backend, minio) = (&world.frontend, &world.backend, &world.minio);
    driver.curl(
        &checker.place,
        &format!("http://{}:8080/", frontend.v4),
        200,
        &[flow(frontend, 8080, "frontend")],
    )?;
    driver.curl(
        &checker.place,
        &format!("http://{}:8000/health", backend.v4),
        200,
        &[flow(backend, 8000, "backend")],
    )?;
    driver.curl(
        &checker.place,
        &format!("http://{}:9000/healthz", minio.v4),
        200,
        &[flow(minio, 9000, "minio")],
    )?;
    let redis = &world.redis;
    driver.tcp_probe(&checker.place, &format!("{}/6379", redis.v4), &[flow(redis, 6379, "redis")])
}

/// What no policy can keep out: the kubelet's probes, and a pod and its own node.
fn past_policies(driver: &mut Driver) -> Result<()> {
    let world = driver.world;
    let kubelet = world.lab.host_place("kubelet")?;
    let node = Party::node();
    let probe = |pod: &Pod, port| Expected::tcp(node.clone(), pod, port).egress(HOST).ingress(OWN_NODE);
    let (frontend, backend, minio) = (&world.frontend, &world.backend, &world.minio);
    driver.curl(&kubelet, &format!("http://{}:8080/", frontend.v4), 200, &[probe(frontend, 8080)])?;
    driver.curl(
        &kubelet,
        &format!("http://[{}]:8000/health", backend.v6),
        200,
        &[probe(backend, 8000).v6()],
    )?;
    driver.curl(&kubelet, &format!("http://{}:9000/healthz", minio.v4), 200, &[probe(minio, 9000)])?;
    for (pod, port) in [(&world.postgres, 5432), (&world.redis, 6379)] {
        driver.tcp_probe(&kubelet, &format!("{}/{port}", pod.v4), &[probe(pod, port)])?;
    }
    let to_node = Expected::tcp(backend, node, 10250).outcome("refused").egress(OWN_NODE);
    driver.curl_refused(&backend.place, "https://192.168.50.10:10250/", &[to_node])
}

/// The document's debug pod. Its `curl http://backend:8000/health` "should work" there, but its own tables and
/// default-deny-all say no, in both directions.
fn debug_pod(driver: &mut Driver) -> Result<()> {
    let world = driver.world;
    let pod = &world.netpol_test;
    let flow = |to: &Pod, service: &Service, port, app: &str| {
        Expected::tcp(pod, to, port)
            .requested(service.v4, port)
            .egress(no_egress("netpol-test"))
            .ingress(no_ingress(app))
    };
    let backend = flow(&world.backend, &world.svc_backend, 8000, "backend");
    let postgres = flow(&world.postgres, &world.svc_postgres, 5432, "postgres");
    let redis = flow(&world.redis, &world.svc_redis, 6379, "redis");
    driver.curl(&pod.place, "http://backend:8000/health", 200, &[lookup(driver, pod, 1), backend])?;
    driver.curl_connects(&pod.place, "http://postgres:5432", &[lookup(driver, pod, 1), postgres])?;
    driver.curl_connects(&pod.place, "http://redis:6379", &[lookup(driver, pod, 1), redis])
}

/// Pods of other namespaces and the internet, at every port of every application.
fn strangers(driver: &mut Driver) -> Result<()> {
    let world = driver.world;
    let stranger = &world.stranger;
    let targets = [
        (&world.frontend, 8080, "frontend"),
        (&world.backend, 8000, "backend"),
        (&world.postgres, 5432, "postgres"),
        (&world.redis, 6379, "redis"),
        (&world.minio, 9000, "minio"),
        (&world.minio, 9001, "minio"),
    ];
    for (pod, port, app) in targets {
        let flow = Expected::tcp(stranger, pod, port).egress(OPEN).ingress(no_ingress(app));
        driver.tcp_probe(&stranger.place, &format!("{}/{port}", pod.v4), &[flow])?;
    }
    // The Service's port is not the pod's.
    let flow = Expected::tcp(stranger, &world.frontend, 8080)
        .requested(world.svc_frontend.v4, 80)
        .egress(OPEN)
        .ingress(no_ingress("frontend"));
    driver.curl(&stranger.place, &format!("http://{}/", world.svc_frontend.v4), 200, &[flow])?;
    let (postgres, backend) = (&world.postgres, &world.backend);
    let flow = Expected::tcp(stranger, postgres, 5432).v6().egress(OPEN).ingress(no_ingress("postgres"));
    driver.tcp_probe(&stranger.place, &format!("{}/5432", postgres.v6), &[flow])?;
    let flow = Expected::udp(stranger, backend, 8125).egress(OPEN).ingress(no_ingress("backend"));
    driver.datagram(&stranger.place, &format!("{}/8125", backend.v4), &[flow])?;
    // Traefik, but not to where it belongs.
    let traefik = &world.traefik;
    let flow = Expected::tcp(traefik, postgres, 5432).egress(OPEN).ingress(no_ingress("postgres"));
    driver.tcp_probe(&traefik.place, &format!("{}/5432", postgres.v4), &[flow])?;
    // The internet, past Traefik.
    let internet = world.lab.outside_place();
    let flow = Expected::tcp(Party::External(VISITOR.parse()?), backend, 8000).ingress(no_ingress("backend"));
    let url = format!("http://{}:8000/", backend.v4);
    driver.curl_with(&internet, &["--interface", VISITOR], &url, "status=200", &[flow])
}

/// Between Batchivo's own pods, where no row allows it.
fn sideways(driver: &mut Driver) -> Result<()> {
    let world = driver.world;
    let flow = |from: &Pod, to: &Pod, port, source: &str, destination: &str| {
        Expected::tcp(from, to, port).egress(no_egress(source)).ingress(no_ingress(destination))
    };
    let (frontend, backend, postgres, redis, minio) =
        (&world.frontend, &world.backend, &world.postgres, &world.redis, &world.minio);
    for (to, port, app) in [
        (backend, 8000, "backend"),
        (postgres, 5432, "postgres"),
        (redis, 6379, "redis"),
        (minio, 9000, "minio"),
        (minio, 9001, "minio"),
    ] {
        let flows = [flow(frontend, to, port, "frontend", app)];
        driver.tcp_probe(&frontend.place, &format!("{}/{port}", to.v4), &flows)?;
    }
    let url = format!("http://{}:8080/", frontend.v4);
    driver.curl(&backend.place, &url, 200, &[flow(backend, frontend, 8080, "backend", "frontend")])?;
    driver.tcp_probe(
        &postgres.place,
        &format!("{}/6379", redis.v4),
        &[flow(postgres, redis, 6379, "postgres", "redis")],
    )?;
    driver.tcp_probe(
        &redis.place,
        &format!("{}/8000", backend.v4),
        &[flow(redis, backend, 8000, "redis", "backend")],
    )?;
    driver.tcp_probe(
        &minio.place,
        &format!("{}/5432", postgres.v4),
        &[flow(minio, postgres, 5432, "minio", "postgres")],
    )?;
    driver.tcp_probe(
        &world.admin_jobs.place,
        &format!("{}/5432", postgres.v4),
        &[flow(&world.admin_jobs, postgres, 5432, "admin-jobs", "postgres")],
    )?;
    let counters = Expected::udp(frontend, backend, 8125)
        .requested(world.svc_backend.v4, 8125)
        .egress(no_egress("frontend"))
        .ingress(no_ingress("backend"));
    driver.datagram(&frontend.place, &format!("{}/8125", world.svc_backend.v4), &[counters])?;
    let closed = Expected::tcp(frontend, backend, 9999)
        .outcome("refused")
        .egress(no_egress("frontend"))
        .ingress(no_ingress("backend"));
    driver.curl_refused(&frontend.place, &format!("http://{}:9999/", backend.v4), &[closed])
}

/// The data stores, which have no egress, towards the internet.
fn stores_outwards(driver: &mut Driver) -> Result<()> {
    let world = driver.world;
    let (name, ip) = EXTERNAL[0];
    for (pod, app) in [(&world.postgres, "postgres"), (&world.redis, "redis"), (&world.minio, "minio")] {
        let flow =
            Expected::tcp(pod, Party::External(ip.parse()?), 443).names(&[name]).egress(no_egress(app));
        driver.curl(&pod.place, &format!("https://{name}/"), 200, &[lookup(driver, pod, 4), flow])?;
    }
    // A tunnel through a name server of one's own.
    let resolver = "198.51.100.53";
    let flow =
        Expected::udp(&world.postgres, Party::External(resolver.parse()?), 53).egress(no_egress("postgres"));
    driver.unconnected_datagram(&world.postgres.place, resolver, 53, &[flow])
}

/// The backend, where its own rules end.
fn backend_too_far(driver: &mut Driver) -> Result<()> {
    let world = driver.world;
    let backend = &world.backend;
    let out = |ip: &str, port| {
        Ok::<_, anyhow::Error>(
            Expected::tcp(backend, Party::External(ip.parse()?), port).egress(no_egress("backend")),
        )
    };
    // A private address: what `except` is there for.
    driver.curl(&backend.place, &format!("https://{PRIVATE_HOST}/"), 200, &[out(PRIVATE_HOST, 443)?])?;
    // By its address, which the backend has looked up before.
    let (name, ip) = EXTERNAL[0];
    driver.curl(&backend.place, &format!("http://{ip}/"), 200, &[out(ip, 80)?.names(&[name])])?;
    driver.curl(&backend.place, &format!("https://[{EXTERNAL_V6}]/"), 200, &[out(EXTERNAL_V6, 443)?.v6()])?;
    // The right pod, but a port where nobody listens.
    let closed = Expected::tcp(backend, &world.postgres, 5433)
        .outcome("refused")
        .egress(no_egress("backend"))
        .ingress(no_ingress("postgres"));
    driver.curl_refused(&backend.place, &format!("http://{}:5433/", world.postgres.v4), &[closed])
}
