//! `netaudit suggest` on stores that an agent wrote: what it suggests allows what was seen and nothing else, as another evaluator
//! says, and what is not known is said.

mod agent;
mod ends;
mod missing;
mod random;
mod selectors;

use std::path::Path;

use anyhow::{Context as _, Result};
use netaudit::{cluster::Kind, watch::manifests};
use serde_json::{Value, json};

use self::agent::{Agent, Flow as Told, tcp, uid};
use crate::{
    command::{Run, netaudit, run},
    policy::{
        case::{End, Flow, Protocol, Verdict},
        naive::Naive,
    },
};

fn namespace(name: &str) -> Value {
    json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}})
}

pub(crate) fn node(name: &str, ip: &str) -> Value {
    json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": name},
           "status": {"addresses": [{"type": "InternalIP", "address": ip}]}})
}

/// A pod of a Deployment, as its ReplicaSet makes it, by the name `DEPLOYMENT-N`.
fn pod(namespace: &str, name: &str, labels: &Value, ips: &[&str], node: &str) -> Value {
    let workload = name.rsplit_once('-').map_or(name, |(workload, _)| workload);
    let mut labels = labels.clone();
    labels["pod-template-hash"] = json!("5d8f");
    let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"namespace": namespace, "name": name, "uid": uid(namespace, name), "labels": labels,
                     "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{workload}-5d8f"),
                                          "uid": "o", "controller": true}]},
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "podIP": ips[0]["ip"], "podIPs": ips},
    })
}

fn service(namespace: &str, name: &str, ip: &str, selector: &Value, ports: &Value) -> Value {
    json!({"kind": "Service", "apiVersion": "v1", "metadata": {"namespace": namespace, "name": name},
           "spec": {"clusterIP": ip, "clusterIPs": [ip], "selector": selector, "ports": ports}})
}

fn dns_server() -> Value {
    pod("kube-system", "coredns-0", &json!({"k8s-app": "kube-dns"}), &["10.0.9.53", "fd00::9:53"], "node-1")
}

fn begin(directory: &Path, objects: &[Value]) -> Result<Agent> {
    begin_on("node-1", directory, "run-a", objects)
}

fn begin_on(node_name: &'static str, directory: &Path, run: &str, objects: &[Value]) -> Result<Agent> {
    let mut agent = Agent::new(node_name, directory, run)?;
    objects.iter().for_each(|object| agent.apply(object, 1));
    agent.ready(2);
    Ok(agent)
}

/// Without the time that is told as a gap.
fn ask(store: &Path, more: &[&str]) -> Run {
    run(netaudit().arg("suggest").arg("--flow-store").arg(store).args(["--window", "1s"]).args(more))
}

fn answer(store: &Path, namespace: &str, more: &[&str]) -> Result<(Value, Run)> {
    let ran = ask(store, &[&["-n", namespace, "--output", "json"], more].concat());
    let told = serde_json::from_str(&ran.out).with_context(|| ran.err.clone())?;
    Ok((told, ran))
}

fn policies(told: &Value) -> Vec<Value> {
    told["policies"].as_array().into_iter().flatten().map(|it| it["manifest"].clone()).collect()
}

fn policy<'a>(told: &'a Value, name: &str) -> &'a Value {
    let all = told["policies"].as_array().expect("policies");
    all.iter()
        .find(|it| it["manifest"]["metadata"]["name"] == name)
        .unwrap_or_else(|| panic!("no policy {name}: {told:#}"))
}

fn spec<'a>(told: &'a Value, name: &str) -> &'a Value {
    &policy(told, name)["manifest"]["spec"]
}

fn selector<'a>(told: &'a Value, name: &str) -> &'a Value {
    &spec(told, name)["podSelector"]["matchLabels"]
}

fn names(told: &Value) -> Vec<&str> {
    let all = told["policies"].as_array().into_iter().flatten();
    all.filter_map(|it| it["manifest"]["metadata"]["name"].as_str()).collect()
}

/// What another evaluator says, with these policies among these objects.
fn verdict(objects: &[Value], told: &Value, from: &str, to: &str, protocol: Protocol, port: u16) -> Verdict {
    let objects = [objects, &policies(told)].concat();
    let end = |text: &str| match text.parse() {
        Ok(ip) => End::Ip(ip),
        Err(_) => End::Pod(text.to_owned()),
    };
    let naive = Naive { objects: &objects, dns: None, seen: None };
    let [egress, ingress] = naive.ask(&Flow::new(end(from), end(to), protocol, port));
    Verdict::both(egress.verdict, ingress.verdict)
}

/// The document's example: Traefik in front, two tiers, three stores, an address outside.
fn batchivo() -> Vec<Value> {
    let mut objects: Vec<Value> = ["batchivo", "traefik", "kube-system"].map(namespace).to_vec();
    objects.push(node("node-1", "192.168.1.1"));
    objects.push(node("node-2", "192.168.1.2"));
    objects.push(dns_server());
    objects.push(pod(
        "traefik",
        "traefik-0",
        &json!({"app.kubernetes.io/name": "traefik"}),
        &["10.0.1.1"],
        "node-1",
    ));
    for (name, ip) in [
        ("frontend-0", "10.0.0.1"),
        ("backend-0", "10.0.0.2"),
        ("backend-1", "10.0.0.3"),
        ("postgres-0", "10.0.0.4"),
        ("redis-0", "10.0.0.5"),
        ("minio-0", "10.0.0.6"),
    ] {
        let app = name.split('-').next().unwrap_or(name);
        objects.push(pod(
            "batchivo",
            name,
            &json!({"app": app, "helm.sh/chart": "batchivo-1.2"}),
            &[ip],
            "node-1",
        ));
    }
    objects
}

/// What is seen in it: of both ends, as both are on a node with an agent.
const BATCHIVO: [(&str, &str, &str, &str, u16); 7] = [
    ("traefik-traefik-0", "10.0.1.1", "batchivo-frontend-0", "10.0.0.1", 8080),
    ("traefik-traefik-0", "10.0.1.1", "batchivo-backend-0", "10.0.0.2", 8000),
    ("batchivo-backend-0", "10.0.0.2", "batchivo-postgres-0", "10.0.0.4", 5432),
    ("batchivo-backend-1", "10.0.0.3", "batchivo-postgres-0", "10.0.0.4", 5432),
    ("batchivo-backend-1", "10.0.0.3", "batchivo-redis-0", "10.0.0.5", 6379),
    ("batchivo-backend-0", "10.0.0.2", "batchivo-minio-0", "10.0.0.6", 9000),
    ("batchivo-backend-0", "10.0.0.2", "batchivo-minio-0", "10.0.0.6", 9001),
];

fn seen_in_batchivo(agent: &mut Agent) {
    for (place, (from, from_ip, to, to_ip, port)) in BATCHIVO.into_iter().enumerate() {
        agent.at(100 + place as i64);
        agent.connects(from, from_ip, to_ip, port);
        agent.accepts(to, to_ip, from_ip, port);
    }
    agent.at(200);
    agent.asks("batchivo-backend-0", "10.0.0.2", "10.0.9.53", 53);
    agent.names("batchivo-backend-0", "connect.squareup.com", "203.0.113.7");
    agent.connects("batchivo-backend-0", "10.0.0.2", "203.0.113.7", 443);
}

#[test]
fn three_tiers_get_what_they_need_and_nothing_else() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let objects = batchivo();
    let mut agent = begin(directory.path(), &objects)?;
    // The other node has no pod and its agent no flow, but it is there.
    seen_in_batchivo(&mut agent);
    agent.finish(1_000);
    let other = tempfile::tempdir()?;
    begin_on("node-2", other.path(), "run-b", &objects)?.finish(1_000);
    let other = other.path().to_str().context("a name")?;

    let (told, ran) = answer(directory.path(), "batchivo", &["--flow-store", other])?;
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert_eq!(names(&told), ["default-deny-all", "backend", "frontend", "minio", "postgres", "redis"]);
    assert_eq!(told["proof"]["holds"], true);
    assert_eq!(told["proof"]["replayed"], 16, "{told:#}");
    assert!(
        ran.err.ends_with("16 flows that count judged again with 6 policies: none becomes denied\n"),
        "{}",
        ran.err
    );
    assert_eq!(selector(&told, "backend"), &json!({"app": "backend"}));
    for name in names(&told) {
        assert_eq!(spec(&told, name)["policyTypes"], json!(["Ingress", "Egress"]));
    }
    let verdict = |from: &str, to: &str, port| verdict(&objects, &told, from, to, Protocol::Tcp, port);
    for (from, _, to, _, port) in BATCHIVO {
        let [from, to] = [from, to].map(|uid| uid.replacen('-', "/", 1));
        assert_eq!(verdict(&from, &to, port), Verdict::Allow, "{from} → {to}:{port}");
        // Any pod of a workload may what one was seen to do, and no other way round.
        assert_eq!(verdict(&from, &to, port + 1), if port == 9000 { Verdict::Allow } else { Verdict::Deny });
        assert_eq!(verdict(&to, &from, port), Verdict::Deny);
    }
    assert_eq!(verdict("batchivo/backend-1", "batchivo/minio-0", 9000), Verdict::Allow);
    assert_eq!(verdict("batchivo/frontend-0", "batchivo/postgres-0", 5432), Verdict::Deny);
    assert_eq!(verdict("batchivo/backend-0", "203.0.113.7", 443), Verdict::Allow);
    assert_eq!(verdict("batchivo/backend-0", "203.0.113.8", 443), Verdict::Deny);
    assert_eq!(verdict("batchivo/postgres-0", "203.0.113.7", 443), Verdict::Deny);
    // DNS over both, also where only one was seen.
    assert_eq!(verdict("batchivo/backend-0", "kube-system/coredns-0", 53), Verdict::Allow);
    assert_eq!(
        verdict("batchivo/redis-0", "kube-system/coredns-0", 53),
        Verdict::Deny,
        "it asks for nothing"
    );
    Ok(())
}

const BACKEND: &str = r#"# What Deployment backend of namespace batchivo was seen to do.
# Suggested by netaudit 0.1.0 from flows of 2026-01-01T00:00:00Z to 2026-01-01T00:16:40Z (16m), recorded on node-1,
# node-2.
# Nothing of that time is missing.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: backend
  namespace: batchivo
spec:
  podSelector:
    matchLabels:
      app: backend
  policyTypes:
    - Ingress
    - Egress
  ingress:
    # Deployment traefik/traefik: 1 flow, 2026-01-01T00:01:41Z
    - from:
        - namespaceSelector:
            matchLabels:
              kubernetes.io/metadata.name: traefik
          podSelector:
            matchLabels:
              app.kubernetes.io/name: traefik
      ports:
        - protocol: TCP
          port: 8000
  egress:
    # Deployment minio: 2 flows, 2026-01-01T00:01:45Z to 2026-01-01T00:01:46Z
    - to:
        - podSelector:
            matchLabels:
              app: minio
      ports:
        - protocol: TCP
          port: 9000
        - protocol: TCP
          port: 9001
    # Deployment postgres: 2 flows, 2026-01-01T00:01:42Z to 2026-01-01T00:01:43Z
    - to:
        - podSelector:
            matchLabels:
              app: postgres
      ports:
        - protocol: TCP
          port: 5432
    # Deployment redis: 1 flow, 2026-01-01T00:01:44Z
    - to:
        - podSelector:
            matchLabels:
              app: redis
      ports:
        - protocol: TCP
          port: 6379
    # Deployment kube-system/coredns: 1 flow, 2026-01-01T00:03:20Z
    # TCP was not seen: DNS asks again by it, or is asked by it, at times
    - to:
        - namespaceSelector:
            matchLabels:
              kubernetes.io/metadata.name: kube-system
          podSelector:
            matchLabels:
              k8s-app: kube-dns
      ports:
        - protocol: TCP
          port: 53
        - protocol: UDP
          port: 53
    # an address outside the cluster: 1 flow, 2026-01-01T00:03:20Z
    # the addresses behind a name may change
    - to:
        # connect.squareup.com
        - ipBlock:
            cidr: "203.0.113.7/32"
      ports:
        - protocol: TCP
          port: 443
"#;

#[test]
fn the_text_is_for_people_always_the_same_and_goes_into_files_once() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let objects = batchivo();
    let mut agent = begin(directory.path(), &objects)?;
    seen_in_batchivo(&mut agent);
    agent.finish(1_000);
    let other = tempfile::tempdir()?;
    begin_on("node-2", other.path(), "run-b", &objects)?.finish(1_000);
    let other = other.path().to_str().context("a name")?;
    let stores = ["--flow-store", other, "-n", "batchivo"];

    let ran = ask(directory.path(), &stores);
    assert_eq!(ran.status, 0, "{}", ran.err);
    let documents: Vec<&str> = ran.out.split("---\n").collect();
    assert_eq!(documents.len(), 6);
    assert_eq!(documents[1], BACKEND);
    assert!(
        documents[0].contains("  podSelector: {}\n  policyTypes:\n    - Ingress\n    - Egress\n"),
        "{}",
        documents[0]
    );
    assert!(
        documents[4].contains("# Nothing was seen to go out that needs a rule, DNS neither.\n"),
        "{}",
        documents[4]
    );
    assert!(documents[4].ends_with("  egress: []\n"), "{}", documents[4]);
    assert_eq!(ask(directory.path(), &stores).out, ran.out, "the same bytes");
    let first = directory.path().to_str().context("a name")?;
    let turned = ask(Path::new(other), &["--flow-store", first, "-n", "batchivo"]);
    assert_eq!(turned.out, ran.out, "whichever store is read first");

    // In files; what is there is not touched.
    let into = tempfile::tempdir()?;
    let into = into.path().join("policies");
    let more = [&stores[..], &["--directory", into.to_str().context("a name")?]].concat();
    let written = ask(directory.path(), &more);
    assert!(written.status == 0 && written.out.is_empty(), "{}{}", written.out, written.err);
    assert_eq!(std::fs::read_to_string(into.join("batchivo.backend.yaml"))?, BACKEND);
    let loaded = manifests::load(&[&into])?;
    assert_eq!((loaded.documents.len(), loaded.files, loaded.errors.len()), (6, 6, 0));
    std::fs::remove_file(into.join("batchivo.redis.yaml"))?;
    std::fs::write(into.join("batchivo.backend.yaml"), "mine")?;
    let again = ask(directory.path(), &more);
    assert!(again.status == 2 && again.err.contains("is there already: say --force"), "{}", again.err);
    assert!(!into.join("batchivo.redis.yaml").exists(), "nothing is written");
    assert_eq!(std::fs::read_to_string(into.join("batchivo.backend.yaml"))?, "mine");
    let forced = ask(directory.path(), &[&more[..], &["--force"]].concat());
    assert_eq!(forced.status, 0, "{}", forced.err);
    assert_eq!(std::fs::read_to_string(into.join("batchivo.backend.yaml"))?, BACKEND);
    // And `what-if` agrees that nothing changes for what was seen.
    let ran = run(netaudit()
        .args(["what-if", "--flow-store"])
        .arg(directory.path())
        .arg(other)
        .arg("-f")
        .arg(&into));
    assert!(ran.status == 0 && ran.out.contains("nothing changes"), "{}{}", ran.out, ran.err);
    Ok(())
}

#[test]
fn an_attempt_that_came_to_nothing_opens_nothing() -> Result<()> {
    use netaudit::model::{Direction, Outcome};
    let directory = tempfile::tempdir()?;
    let mut objects = batchivo();
    objects.push(pod("batchivo", "debug-0", &json!({"run": "debug"}), &["10.0.0.66"], "node-1"));
    let mut agent = begin(directory.path(), &objects)?;
    seen_in_batchivo(&mut agent);
    agent.at(300);
    for port in 1..60 {
        let scan = Told {
            uid: "batchivo-debug-0",
            own: "10.0.0.66",
            peer: "10.0.0.4",
            port,
            ..tcp(Outcome::Refused)
        };
        agent.see(scan);
    }
    let scan =
        |peer, outcome| Told { uid: "batchivo-debug-0", own: "10.0.0.66", peer, port: 99, ..tcp(outcome) };
    agent.see(scan("10.0.0.5", Outcome::Timeout));
    agent.see(scan("198.51.100.1", Outcome::Unreachable));
    let udp =
        |peer, count| Told { protocol: netaudit::model::Protocol::Udp, count, ..scan(peer, Outcome::Sent) };
    agent.see(udp("10.0.0.6", 1));
    // Logs are sent time and again, and nobody answers.
    agent.see(Told { uid: "batchivo-redis-0", own: "10.0.0.5", ..udp("198.51.100.14", 50) });
    agent.see(Told {
        direction: Direction::Ingress,
        uid: "batchivo-postgres-0",
        own: "10.0.0.4",
        ..scan("10.0.0.66", Outcome::Dropped)
    });
    agent.finish(1_000);

    let (told, ran) = answer(directory.path(), "batchivo", &[])?;
    assert!(!names(&told).contains(&"debug"), "{told:#}");
    assert_eq!(
        told["passed_over"],
        json!([{"workload": "Deployment batchivo/debug", "reason": "no flow of it was seen that counts", "is_gap": true}])
    );
    assert!(
        policy(&told, "default-deny-all")["gaps"][0].as_str().context("a gap")?.contains("Deployment debug")
    );
    let postgres = spec(&told, "postgres")["ingress"].as_array().context("rules")?;
    assert_eq!(postgres.len(), 1);
    let left: Vec<(&str, u64)> = told["left_out"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|it| Some((it["why"].as_str()?, it["flows"].as_u64()?)))
        .collect();
    assert_eq!(left[0], ("refused", 59), "{left:?}");
    for why in ["not answered", "stopped by a filter", "sent a few times, and nothing proves that it arrived"]
    {
        assert!(left.iter().any(|it| it.0 == why), "{why}: {left:?}");
    }
    assert!(
        ran.err.contains("left out: 59 flows batchivo/debug → batchivo/postgres TCP/1,2,"),
        "{}",
        ran.err
    );
    let egress = &policy(&told, "redis")["egress"];
    assert!(
        egress.to_string().contains("datagrams without an answer: nothing proves that they arrived"),
        "{egress:#}"
    );
    assert_eq!(
        verdict(&objects, &told, "batchivo/redis-0", "198.51.100.14", Protocol::Udp, 99),
        Verdict::Allow
    );
    assert_eq!(
        verdict(&objects, &told, "batchivo/debug-0", "batchivo/postgres-0", Protocol::Tcp, 7),
        Verdict::Deny
    );
    Ok(())
}
