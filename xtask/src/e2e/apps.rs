//! Batchivo's applications as Kubernetes objects: the real programs of this machine in containers of a bare image.

use std::fmt::Write as _;

use anyhow::Result;
use serde_json::{Value, json};

use crate::cluster::TOOLS_IMAGE;

/// Where pods see programs that are in no package.
pub const PROGRAMS: &str = "/run/netaudit/tools";
/// Key and secret of the S3 server, in curl's form.
pub const S3_USER: &str = "batchivo:batchivo-demo";

/// Services with addresses of our choice, so that a ledger can name them.
pub mod service {
    use std::net::Ipv4Addr;

    pub const FRONTEND: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 1);
    pub const BACKEND: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 2);
    pub const POSTGRES: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 3);
    pub const REDIS: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 4);
    pub const MINIO: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 5);
    pub const TRAEFIK: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 6);
}

/// A container that runs this machine's programs.
pub fn container(name: &str, command: &[&str]) -> Value {
    let mounts: Vec<Value> = HOST
        .iter()
        .map(|path| json!({ "name": volume(path), "mountPath": path, "readOnly": true }))
        .chain([json!({ "name": "tmp", "mountPath": "/tmp" })])
        .collect();
    json!({
        "name": name,
        "image": TOOLS_IMAGE,
        "imagePullPolicy": "Never",
        "command": command,
        "volumeMounts": mounts,
        "resources": { "requests": { "cpu": "10m", "memory": "16Mi" } },
    })
}

const HOST: [&str; 7] = ["/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", PROGRAMS];

fn volume(path: &str) -> String {
    path.trim_start_matches('/').replace('/', "-")
}

/// The volumes that [`container`] mounts.
pub fn volumes() -> Vec<Value> {
    let kind = |path: &str| if path == PROGRAMS { "DirectoryOrCreate" } else { "Directory" };
    HOST.iter()
        .map(|path| json!({ "name": volume(path), "hostPath": { "path": path, "type": kind(path) } }))
        .chain([json!({ "name": "tmp", "emptyDir": {} })])
        .collect()
}

/// A pod's spec around containers, on a node.
pub fn spec(node: &str, containers: &[Value]) -> Value {
    json!({
        "nodeSelector": { "kubernetes.io/hostname": node },
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": false,
        "containers": containers,
        "volumes": volumes(),
    })
}

/// A bare pod.
pub fn pod(namespace: &str, name: &str, labels: &Value, spec: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": namespace, "name": name, "labels": labels }, "spec": spec,
    })
}

/// A Deployment of one pod, or a StatefulSet.
pub fn workload(kind: &str, namespace: &str, name: &str, labels: &Value, spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": kind,
        "metadata": { "namespace": namespace, "name": name, "labels": labels },
        "spec": {
            "replicas": 1,
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": spec },
        },
    });
    if kind == "StatefulSet" {
        object["spec"]["serviceName"] = json!(name);
    }
    object
}

/// A Service; each port is `(name, port, target)`.
pub fn service(
    namespace: &str,
    name: &str,
    address: Option<std::net::Ipv4Addr>,
    selector: &Value,
    ports: &[(&str, u16, Value)],
) -> Value {
    let ports: Vec<Value> = ports
        .iter()
        .map(|(name, port, target)| json!({ "name": name, "port": port, "targetPort": target }))
        .collect();
    let mut spec = json!({ "selector": selector, "ports": ports });
    if let Some(address) = address {
        spec["clusterIP"] = json!(address.to_string());
    }
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": namespace, "name": name }, "spec": spec,
    })
}

/// A namespace.
pub fn namespace(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } })
}

/// A list of objects.
pub fn list(items: &[Value]) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

/// All of Batchivo's applications, with Traefik before them and strangers beside them.
pub fn batchivo(postgres_programs: &str, postgres_user: (u32, u32)) -> Result<Value> {
    let app = |name: &str| json!({ "app": name });
    let number = |port: u16| json!(port);
    let mut items = ["batchivo", "traefik", "shop"].map(namespace).to_vec();
    items.push(configuration()?);
    items.push(routes());
    items.extend([
        workload("Deployment", "batchivo", "frontend", &app("frontend"), &frontend()),
        workload("Deployment", "batchivo", "backend", &app("backend"), &backend()),
        workload(
            "StatefulSet",
            "batchivo",
            "postgres",
            &app("postgres"),
            &postgres(postgres_programs, postgres_user),
        ),
        workload("Deployment", "batchivo", "redis", &app("redis"), &redis()),
        workload("StatefulSet", "batchivo", "minio", &app("minio"), &minio()),
        workload(
            "Deployment",
            "traefik",
            "traefik",
            &json!({ "app.kubernetes.io/name": "traefik" }),
            &traefik(),
        ),
        pod("shop", "stranger", &app("stranger"), &spec("node1", &[container("shell", &FOREVER)])),
        // The document's debug pod; its image cannot be had here, so this one stands in for it, with curl and nslookup.
        pod(
            "batchivo",
            "netpol-test",
            &json!({ "run": "netpol-test" }),
            &spec("node2", &[container("shell", &FOREVER)]),
        ),
        pod("batchivo", "bucket-report", &app("admin-jobs"), &spec("node2", &[container("shell", &FOREVER)])),
        service(
            "batchivo",
            "frontend",
            Some(service::FRONTEND),
            &app("frontend"),
            &[("http", 80, number(8080))],
        ),
        // By the name of the container's port.
        service(
            "batchivo",
            "backend",
            Some(service::BACKEND),
            &app("backend"),
            &[("http", 8000, json!("http"))],
        ),
        service(
            "batchivo",
            "postgres",
            Some(service::POSTGRES),
            &app("postgres"),
            &[("sql", 5432, number(5432))],
        ),
        service("batchivo", "redis", Some(service::REDIS), &app("redis"), &[("redis", 6379, number(6379))]),
        service(
            "batchivo",
            "minio",
            Some(service::MINIO),
            &app("minio"),
            &[("s3", 9000, number(9000)), ("console", 9001, number(9001))],
        ),
        node_port(),
    ]);
    Ok(list(&items))
}

/// What a pod does that only waits for `kubectl exec`.
pub const FOREVER: [&str; 2] = ["sleep", "infinity"];

fn configuration() -> Result<Value> {
    let (key, secret) = S3_USER.split_once(':').expect("key and secret");
    let s3 = json!({ "identities": [{
        "name": "batchivo", "credentials": [{ "accessKey": key, "secretKey": secret }],
        "actions": ["Admin", "Read", "Write", "List"],
    }] });
    let mut temporary = String::new();
    for part in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        write!(temporary, "{part}_temp_path /tmp/{part}; ")?;
    }
    let nginx = format!(
        "daemon off; master_process off; user root; pid /tmp/nginx.pid; error_log stderr;\nevents {{ }}\nhttp {{ access_log \
         off; keepalive_timeout 0; {temporary}\nserver {{ listen 8080; location / {{ default_type text/plain; return 200 \
         'batchivo\\n'; }} }}\n}}\n"
    );
    Ok(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "namespace": "batchivo", "name": "config" },
        "data": {
            "s3.json": s3.to_string(),
            "nginx.conf": nginx,
            "backend.py": include_str!("../demo/backend.py"),
        },
    }))
}

fn with_configuration(mut spec: Value, name: &str) -> Value {
    spec["volumes"]
        .as_array_mut()
        .expect("a list")
        .push(json!({ "name": "config", "configMap": { "name": name } }));
    let container = &mut spec["containers"][0];
    container["volumeMounts"]
        .as_array_mut()
        .expect("a list")
        .push(json!({ "name": "config", "mountPath": "/config" }));
    spec
}

fn probe(what: &Value) -> Value {
    let mut probe = json!({ "periodSeconds": 2, "failureThreshold": 30 });
    probe.as_object_mut().expect("an object").extend(what.as_object().expect("an object").clone());
    probe
}

fn frontend() -> Value {
    let mut container = container("nginx", &["nginx", "-e", "stderr", "-c", "/config/nginx.conf"]);
    container["ports"] = json!([{ "containerPort": 8080 }]);
    container["readinessProbe"] = probe(&json!({ "httpGet": { "path": "/", "port": 8080 } }));
    with_configuration(spec("node1", &[container]), "config")
}

fn backend() -> Value {
    let mut container = container("python", &["/usr/bin/python3", "/config/backend.py"]);
    container["ports"] = json!([{ "name": "http", "containerPort": 8000 }]);
    container["livenessProbe"] = probe(&json!({ "httpGet": { "path": "/health", "port": "http" } }));
    container["readinessProbe"] = container["livenessProbe"].clone();
    with_configuration(spec("node1", &[container]), "config")
}

fn postgres(programs: &str, (uid, gid): (u32, u32)) -> Value {
    let script = format!(
        "{programs}/initdb --no-sync --no-instructions --auth=trust --username=batchivo --encoding=UTF8 --locale=C -D \
         /tmp/pg >/dev/null && echo 'host all all 0.0.0.0/0 trust' >>/tmp/pg/pg_hba.conf && exec {programs}/postgres -D \
         /tmp/pg -p 5432 -c 'listen_addresses=*' -c unix_socket_directories=/tmp -c fsync=off"
    );
    let mut container = container("postgres", &["sh", "-c", &script]);
    container["readinessProbe"] = probe(&json!({
        // Over loopback, in the pod's own namespace.
        "exec": { "command": [format!("{programs}/pg_isready"), "-q", "-h", "127.0.0.1"] },
    }));
    let mut spec = spec("node2", &[container]);
    spec["securityContext"] = json!({ "runAsUser": uid, "runAsGroup": gid, "fsGroup": gid });
    spec
}

fn redis() -> Value {
    let mut container =
        container("redis", &["redis-server", "--port", "6379", "--save", "", "--protected-mode", "no"]);
    container["readinessProbe"] = probe(&json!({ "tcpSocket": { "port": 6379 } }));
    spec("node2", &[container])
}

fn minio() -> Value {
    let weed = format!("{PROGRAMS}/weed");
    let script = format!(
        "mkdir /tmp/volumes && exec {weed} server -dir=/tmp/volumes -ip=$POD_IP -ip.bind=0.0.0.0 -master.port=9333 \
         -master.volumeSizeLimitMB=64 -master.telemetry=false -volume.port=8080 -volume.max=4 -filer -filer.port=9001 -s3 \
         -s3.port=9000 -s3.iam=false -s3.config=/config/s3.json"
    );
    let mut container = container("weed", &["sh", "-c", &script]);
    container["env"] =
        json!([{ "name": "POD_IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } }]);
    container["readinessProbe"] = probe(&json!({ "tcpSocket": { "port": 9000 } }));
    with_configuration(spec("node2", &[container]), "config")
}

fn routes() -> Value {
    let route =
        |rule: &str, service: &str| json!({ "rule": rule, "service": service, "entryPoints": ["web"] });
    let upstream = |address: std::net::Ipv4Addr, port: u16| {
        json!({ "loadBalancer": {
            "servers": [{ "url": format!("http://{address}:{port}") }], "serversTransport": "fresh",
        } })
    };
    let routes = json!({ "http": {
        "routers": {
            "app": route("Host(`app.batchivo.example`)", "frontend"),
            "api": route("Host(`app.batchivo.example`) && PathPrefix(`/api`)", "backend"),
        },
        "services": {
            "frontend": upstream(service::FRONTEND, 80),
            "backend": upstream(service::BACKEND, 8000),
        },
        // A connection for each request, so that the ledger can count them.
        "serversTransports": { "fresh": { "maxIdleConnsPerHost": -1 } },
    } });
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "namespace": "traefik", "name": "routes" },
        "data": { "routes.json": routes.to_string() },
    })
}

fn traefik() -> Value {
    let program = format!("{PROGRAMS}/traefik");
    let mut container = container(
        "traefik",
        &[
            &program,
            "--entrypoints.web.address=:8000",
            "--ping=true",
            "--ping.entrypoint=web",
            "--global.checknewversion=false",
            "--global.sendanonymoususage=false",
            "--providers.file.filename=/config/routes.json",
            "--providers.file.watch=false",
        ],
    );
    container["readinessProbe"] = probe(&json!({ "httpGet": { "path": "/ping", "port": 8000 } }));
    with_configuration(spec("node2", &[container]), "routes")
}

/// Only where Traefik is does its port answer, so that it learns who asks.
fn node_port() -> Value {
    let mut service = service(
        "traefik",
        "traefik",
        Some(service::TRAEFIK),
        &json!({ "app.kubernetes.io/name": "traefik" }),
        &[("web", 80, json!(8000))],
    );
    service["spec"]["type"] = json!("NodePort");
    service["spec"]["externalTrafficPolicy"] = json!("Local");
    service["spec"]["ports"][0]["nodePort"] = json!(30080);
    service
}
