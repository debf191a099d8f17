//! The real software of the demo: its configuration, its start, and the wait until it answers.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::world::{COMPANY, EXTERNAL, World};
use crate::{
    certificate,
    lab::{Launch, Netns, Place, Process},
    tools::Tools,
};

/// How long a server may take until it answers. The slowest takes four seconds on an idle machine.
const LIMIT: Duration = Duration::from_secs(40);

/// Starts every server, the slow ones first, and returns when all of them answer.
pub fn start(world: &World, tools: &Tools) -> Result<Vec<Process>> {
    let mut s3 = s3_server(world, tools)?;
    let mut dns = dns_server(world)?;
    let mut traefik = traefik(world, tools)?;
    let mut backend = spawn(
        world,
        "backend",
        &world.backend.place,
        Launch::new("/usr/bin/python3", ["-c", include_str!("backend.py")]),
    )?;
    let redis_data = world.lab.data("redis")?;
    let mut redis = spawn(
        world,
        "redis",
        &world.redis.place,
        Launch::new(
            "redis-server",
            ["--bind", "0.0.0.0", "::", "--port", "6379", "--save", "", "--protected-mode", "no"],
        )
        .directory(redis_data),
    )?;
    let mut frontend = frontend(world)?;
    let mut internet = internet(world)?;
    let mut postgres = postgres(world, tools)?;

    let tcp = |netns: &Netns, ip: IpAddr, port| answers(netns, SocketAddr::new(ip, port), "");
    let http = |netns: &Netns, ip: IpAddr, port, path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        answers(netns, SocketAddr::new(ip, port), &request)
    };
    let at = |process: &mut Process, place: &Place, what: &str, ready: &dyn Fn(&Netns) -> bool| {
        process.wait_until(LIMIT, what, || ready(&place.netns))
    };
    let loopback: IpAddr = [127, 0, 0, 1].into();
    at(&mut dns, &world.dns.place, "port 53", &|netns| tcp(netns, world.dns.v4.into(), 53))?;
    at(&mut backend, &world.backend.place, "/health", &|netns| http(netns, loopback, 8000, "/health"))?;
    at(&mut redis, &world.redis.place, "port 6379", &|netns| tcp(netns, loopback, 6379))?;
    at(&mut frontend, &world.frontend.place, "/", &|netns| http(netns, loopback, 8080, "/"))?;
    let outside = world.lab.outside_place();
    at(&mut internet, &outside, "port 443", &|netns| tcp(netns, [203, 0, 113, 10].into(), 443))?;
    at(&mut traefik, &world.traefik.place, "/ping", &|netns| http(netns, loopback, 8000, "/ping"))?;
    let pg_isready = Launch::new(tools.postgres.join("pg_isready"), ["-q", "-h", "127.0.0.1"]);
    at(&mut postgres, &world.postgres.place, "pg_isready", &|_| {
        pg_isready.run(&world.postgres.place, LIMIT).is_ok_and(|output| output.status.success())
    })?;
    at(&mut s3, &world.minio.place, "console", &|netns| http(netns, world.minio.v4.into(), 9001, "/"))?;
    at(&mut s3, &world.minio.place, "S3 bucket", &|_| {
        s3_request(world, "-XPUT", "batchivo").is_ok_and(|status| status == "200")
    })?;
    Ok(vec![s3, dns, traefik, backend, redis, frontend, internet, postgres])
}

/// One signed request at the S3 server from its own pod; returns the HTTP status.
fn s3_request(world: &World, method: &str, bucket: &str) -> Result<String> {
    let output = Launch::new(
        "curl",
        [
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "-m",
            "5",
            method,
            "--aws-sigv4",
            "aws:amz:us-east-1:s3",
            "-u",
            S3_USER,
            &format!("http://{}:9000/{bucket}", world.minio.v4),
        ],
    )
    .run(&world.minio.place, LIMIT)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Key and secret of the S3 server, in curl's form.
pub const S3_USER: &str = "batchivo:batchivo-demo";

fn spawn(world: &World, name: &str, place: &Place, launch: Launch) -> Result<Process> {
    launch.spawn(place, &world.lab.log(name))
}

/// Whether a server at `address` accepts a connection, and answers `request` with a success where there is one.
fn answers(netns: &Netns, address: SocketAddr, request: &str) -> bool {
    netns
        .enter(|| {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
            if request.is_empty() {
                return Some(());
            }
            stream.write_all(request.as_bytes()).ok()?;
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).ok()?;
            (&answer[8..10] == b" 2").then_some(())
        })
        .is_ok_and(|answered| answered.is_some())
}

fn s3_server(world: &World, tools: &Tools) -> Result<Process> {
    let data = world.lab.data("minio")?;
    let (key, secret) = S3_USER.split_once(':').expect("key and secret");
    let config = data.join("s3.json");
    fs::write(
        &config,
        format!(
            r#"{{"identities": [{{"name": "batchivo", "credentials": [{{"accessKey": "{key}", "secretKey": "{secret}"}}],
            "actions": ["Admin", "Read", "Write", "List"]}}]}}"#
        ),
    )?;
    // The server puts sockets into /tmp: it gets one of its own. Its program may lie below the machine's /tmp, so it
    // is shown at another place first.
    let (program, tmp, volumes) = (data.join("weed"), data.join("tmp"), data.join("volumes"));
    fs::write(&program, "")?;
    fs::create_dir(&tmp)?;
    fs::create_dir(&volumes)?;
    let pod = &world.minio;
    let launch = Launch::new(
        &program,
        [
            "server",
            &format!("-dir={}", volumes.display()),
            &format!("-ip={}", pod.v4),
            "-ip.bind=::",
            "-master.port=9333",
            "-master.volumeSizeLimitMB=64",
            "-master.telemetry=false",
            "-volume.port=8080",
            "-volume.max=4",
            "-filer",
            // The filer's own pages are the console.
            "-filer.port=9001",
            "-s3",
            "-s3.port=9000",
            "-s3.iam=false",
            &format!("-s3.config={}", config.display()),
        ],
    )
    .bind(&tools.weed, &program)
    .bind(&tmp, "/tmp");
    spawn(world, "minio", &pod.place, launch)
}

fn dns_server(world: &World) -> Result<Process> {
    let mut arguments: Vec<String> = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--user=root",
        "--group=root",
        "--pid-file=",
        "--port=53",
        "--no-hosts",
        "--no-resolv",
        "--cache-size=0",
        "--local-ttl=30",
        "--log-facility=-",
        "--log-queries",
        // Authority for everything: an unknown name is NXDOMAIN, so that resolvers go on with their search list.
        "--local=/#/",
    ]
    .map(str::to_owned)
    .into();
    let services =
        [&world.svc_frontend, &world.svc_backend, &world.svc_postgres, &world.svc_redis, &world.svc_minio];
    for service in services {
        let name = format!("{}.{}.svc.cluster.local", service.spec.name, service.spec.namespace);
        arguments.push(format!("--host-record={name},{}", service.v4));
    }
    arguments
        .extend(EXTERNAL.iter().chain([&COMPANY]).map(|(name, ip)| format!("--host-record={name},{ip}")));
    spawn(world, "dns", &world.dns.place, Launch::new("dnsmasq", arguments))
}

fn traefik(world: &World, tools: &Tools) -> Result<Process> {
    let data = world.lab.data("traefik")?;
    let routes = data.join("routes.json");
    let route = |rule: &str, service: &str| serde_json::json!({"rule": rule, "service": service, "entryPoints": ["web"]});
    let upstream = |url: String| serde_json::json!({"loadBalancer": {"servers": [{"url": url}], "serversTransport": "fresh"}});
    let config = serde_json::json!({"http": {
        "routers": {
            "app": route("Host(`app.batchivo.example`)", "frontend"),
            "app6": route("Host(`app6.batchivo.example`)", "frontend6"),
            "api": route("Host(`app.batchivo.example`) && PathPrefix(`/api`)", "backend"),
        },
        "services": {
            "frontend": upstream(format!("http://{}:8080", world.frontend.v4)),
            "frontend6": upstream(format!("http://[{}]:8080", world.frontend.v6)),
            "backend": upstream(format!("http://{}:8000", world.backend.v4)),
        },
        // A connection for each request, so that the ledger can count them.
        "serversTransports": {"fresh": {"maxIdleConnsPerHost": -1}},
    }});
    fs::write(&routes, config.to_string())?;
    let launch = Launch::new(
        &tools.traefik,
        [
            "--entrypoints.web.address=:8000",
            "--ping=true",
            "--ping.entrypoint=web",
            "--global.checknewversion=false",
            "--global.sendanonymoususage=false",
            &format!("--providers.file.filename={}", routes.display()),
            "--providers.file.watch=false",
        ],
    )
    .directory(data);
    spawn(world, "traefik", &world.traefik.place, launch)
}

fn frontend(world: &World) -> Result<Process> {
    let server = "server { listen 8080; listen [::]:8080; \
                  location / { default_type text/plain; return 200 'batchivo\\n'; } }";
    nginx(world, "frontend", &world.frontend.place, server)
}

/// The internet: every address of its ranges answers on 443 and 80.
fn internet(world: &World) -> Result<Process> {
    let data = world.lab.data("internet")?;
    let (certificate, key) = certificate::write("connect.squareup.com", &data)?;
    let place = world.lab.outside_place();
    let server = format!(
        "server {{ listen 80; listen [::]:80; listen 443 ssl; listen [::]:443 ssl; ssl_certificate {}; \
         ssl_certificate_key {}; location / {{ default_type text/plain; return 200 'external\\n'; }} }}",
        certificate.display(),
        key.display()
    );
    nginx(world, "internet", &place, &server)
}

fn nginx(world: &World, name: &str, place: &Place, server: &str) -> Result<Process> {
    let data = world.lab.data(name)?;
    let config = data.join("nginx.conf");
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|part| format!("{part}_temp_path {}/{part}; ", data.display()))
        .concat();
    fs::write(
        &config,
        format!(
            "daemon off; master_process off; user root; pid {0}/nginx.pid; error_log stderr;\n\
         events {{ }}\n\
         http {{ access_log off; keepalive_timeout 0; {temporary}\n{server}\n}}\n",
            data.display()
        ),
    )?;
    let launch = Launch::new("nginx", [Path::new("-e"), Path::new("stderr"), Path::new("-c"), &config]);
    spawn(world, name, place, launch)
}

fn postgres(world: &World, tools: &Tools) -> Result<Process> {
    let (uid, gid) = user_of("postgres")?;
    let data = world.lab.data("postgres")?;
    chown(&data, Some(uid), Some(gid))?;
    fs::set_permissions(&data, fs::Permissions::from_mode(0o700))?;
    let place = &world.postgres.place;
    let output = Launch::new(
        tools.postgres.join("initdb"),
        [
            "--no-sync",
            "--no-instructions",
            "--auth=trust",
            "--username=batchivo",
            "--encoding=UTF8",
            "--locale=C",
            "-D",
        ]
        .map(Path::new)
        .into_iter()
        .chain([data.as_path()]),
    )
    .user(uid, gid)
    .directory("/")
    .run(place, LIMIT)?;
    ensure!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
    let mut access = fs::OpenOptions::new().append(true).open(data.join("pg_hba.conf"))?;
    access.write_all(b"host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n")?;
    let launch = Launch::new(
        tools.postgres.join("postgres"),
        [
            "-D",
            &data.to_string_lossy(),
            "-p",
            "5432",
            "-c",
            "listen_addresses=*",
            "-c",
            "unix_socket_directories=",
            "-c",
            "fsync=off",
        ],
    )
    .user(uid, gid)
    .directory("/");
    spawn(world, "postgres", place, launch)
}

/// User and group id of a user of this machine.
fn user_of(name: &str) -> Result<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").context("reading /etc/passwd")?;
    for line in users.lines() {
        let fields: Vec<&str> = line.split(':').collect();
        if let [user, _, uid, gid, ..] = fields[..]
            && user == name
        {
            return Ok((uid.parse()?, gid.parse()?));
        }
    }
    bail!("there is no user {name}: cargo xtask setup installs PostgreSQL, which brings it")
}
