//! `netaudit eval` as a person runs it.

use serde_json::Value;
use tempfile::TempDir;

use crate::command::{Run, folder, netaudit, run};

const MANIFESTS: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: traefik}}}]
    ports: [{port: http}]
  egress:
  - to: [{podSelector: {matchLabels: {app: db}}}]
    ports: [{port: 5432}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: 5432}]
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIP: 10.1.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {containers: [{name: c, ports: [{name: http, containerPort: 9090}]}]}
status: {podIP: 10.1.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, namespace: shop, labels: {app: db, mixed: "true"}}
status: {podIP: 10.1.0.3}
---
apiVersion: v1
kind: Pod
metadata: {name: proxy, namespace: traefik}
status: {podIP: 10.2.0.1}
---
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {selector: {app: db}, ports: [{port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: mixed, namespace: shop}
spec: {ports: [{port: 5432}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: mixed-1, namespace: shop, labels: {kubernetes.io/service-name: mixed}}
addressType: IPv4
ports: [{name: "", port: 5432}]
endpoints: [{addresses: [10.1.0.3]}, {addresses: [198.51.100.1]}]
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop}
spec: {clusterIP: 10.96.0.2, selector: {app: nobody}, ports: [{port: 80}]}
"#;

fn eval(folder: &TempDir, args: &[&str]) -> Run {
    run(netaudit().arg("eval").arg("-f").arg(folder.path()).args(args))
}

fn flow(from: &str, to: &str, port: &str) -> Run {
    eval(&folder(&[("all.yaml", MANIFESTS)]), &["--from", from, "--to", to, "--port", port])
}

#[test]
fn an_allowed_flow_names_the_rules_of_both_ends() {
    let run = flow("shop/web-0", "shop/db-0", "5432");
    assert_eq!(
        run.out,
        "\
egress at shop/web-0: allowed
  by NetworkPolicy/shop/web egress[0].to[0].ports[0]: to app=db TCP 5432
  selected by NetworkPolicy/shop/default-deny too
ingress at shop/db-0: allowed
  by NetworkPolicy/shop/db ingress[0].from[0].ports[0]: from app=web TCP 5432
  selected by NetworkPolicy/shop/default-deny too
shop/web-0 → shop/db-0 TCP 5432: allowed
"
    );
    let note = "netaudit: no Namespace object, so no labels but the name, for: shop, traefik\n";
    assert_eq!((run.status, run.err.as_str()), (0, note));
}

#[test]
fn a_denied_flow_names_every_isolating_policy_and_what_came_nearest() {
    let run = flow("shop/web-0", "shop/db-0", "5433");
    assert_eq!(
        run.out,
        "\
egress at shop/web-0: denied
  isolated by NetworkPolicy/shop/default-deny, which allows no egress at all
  isolated by NetworkPolicy/shop/web (selects app=web)
    its only rule is egress[0].to[0].ports[0]: to app=db TCP 5432
    but port 5433 is not 5432
ingress at shop/db-0: denied
  isolated by NetworkPolicy/shop/db (selects app=db)
    its only rule is ingress[0].from[0].ports[0]: from app=web TCP 5432
    but port 5433 is not 5432
  isolated by NetworkPolicy/shop/default-deny, which allows no ingress at all
shop/web-0 → shop/db-0 TCP 5433: denied
"
    );
    assert_eq!(run.status, 1);
}

#[test]
fn addresses_are_pods_nodes_or_the_world() {
    let run = flow("10.2.0.1", "10.1.0.1", "8080");
    assert!(
        run.out.ends_with("traefik/proxy (10.2.0.1) → shop/web-0 (10.1.0.1) TCP 8080: allowed\n"),
        "{}",
        run.out
    );
    let run = flow("192.0.2.1", "shop/web-0", "1");
    assert!(
        run.out.contains("egress at node n1 (192.0.2.1): allowed\n  policies do not apply: host network")
    );
    assert!(
        run.out.contains("ingress at shop/web-0: allowed\n  policies do not apply: own node"),
        "{}",
        run.out
    );
    let run = flow("192.0.2.1", "shop/web-1", "1");
    assert_eq!(run.status, 1, "{}", run.out);
    let run = flow("198.51.100.7", "shop/web-0", "8080");
    let lacks =
        "but 198.51.100.7 is no pod, and a selector means pods only: every pod in namespace traefik\n";
    assert!(run.out.contains(lacks), "{}", run.out);
    assert!(run.out.ends_with("198.51.100.7 → shop/web-0 TCP 8080: denied\n"), "{}", run.out);
}

#[test]
fn an_address_with_two_owners_is_ambiguous() {
    let twin =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: twin, namespace: other}\nstatus: {podIP: 10.1.0.1}\n";
    let folder = folder(&[("all.yaml", MANIFESTS), ("twin.yaml", twin)]);
    let run = eval(&folder, &["--from", "10.1.0.1", "--to", "shop/db-0", "--port", "5432"]);
    assert!(run.out.contains("ingress at shop/db-0: unknown\n  ambiguous\n"), "{}", run.out);
    assert_eq!(run.status, 1);
}

#[test]
fn a_service_is_asked_at_each_backend_with_its_target_port() {
    // Behind an address are the backends' addresses of its family.
    for (to, first, last) in [
        ("svc/shop/web", "shop/web-0", "shop/web-1"),
        ("10.96.0.1", "shop/web-0 (10.1.0.1)", "shop/web-1 (10.1.0.2)"),
    ] {
        let run = flow("traefik/proxy", to, "80");
        assert!(run.out.starts_with("service shop/web TCP 80: 2 backends by its selector\n"), "{}", run.out);
        assert!(run.out.contains(&format!("traefik/proxy → {first} TCP 8080: allowed\n")), "{}", run.out);
        assert!(run.out.ends_with(&format!("traefik/proxy → {last} TCP 9090: allowed\n")), "{}", run.out);
        assert_eq!(run.status, 0);
    }
    let run = flow("shop/web-0", "svc/shop/mixed", "5432");
    assert!(
        run.out.starts_with("service shop/mixed TCP 5432: 2 backends by EndpointSlices\n"),
        "{}",
        run.out
    );
    assert!(run.out.ends_with("shop/mixed: unknown: endpoints disagree\n"), "{}", run.out);
    assert_eq!(run.status, 1);
    let run = flow("shop/web-0", "svc/shop/empty", "80");
    assert!(run.out.ends_with("shop/empty: unknown: no endpoints\n"), "{}", run.out);
    assert_eq!(run.status, 1);
    let run = flow("shop/web-0", "svc/shop/db", "80");
    assert!(run.err.contains("service shop/db has no port TCP 80; its ports: TCP 5432"), "{}", run.err);
    assert_eq!(run.status, 2);
}

#[test]
fn a_node_port_is_judged_by_the_services_backends() {
    let node_port = r#"
apiVersion: v1
kind: Service
metadata: {name: db-outside, namespace: shop}
spec:
  type: NodePort
  selector: {app: db}
  ports: [{port: 5433, targetPort: 5432, nodePort: 30432}]
---
apiVersion: v1
kind: Node
metadata: {name: n2}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
"#;
    let folder = folder(&[("all.yaml", MANIFESTS), ("node-port.yaml", node_port)]);
    // The subject's own node (whose addresses are exempt otherwise), another node, and another pod that may not.
    for (from, node, status, says) in [
        ("shop/web-0", "192.0.2.1", 0, "allowed"),
        ("shop/web-0", "192.0.2.2", 0, "allowed"),
        ("traefik/proxy", "192.0.2.1", 1, "denied"),
    ] {
        let run = eval(&folder, &["--from", from, "--to", node, "--port", "30432"]);
        let head = "service shop/db-outside TCP 5433 by node port 30432: 1 backend by its selector\n";
        assert!(run.out.starts_with(head), "{}", run.out);
        let tail = format!("{from} → shop/db-0 (10.1.0.3) TCP 5432: {says}\n");
        assert!(run.out.ends_with(&tail), "{}", run.out);
        assert_eq!(run.status, status);
    }
    // Other ports and protocols are the node's.
    for more in [["--port", "5433", "--protocol", "TCP"], ["--port", "30432", "--protocol", "UDP"]] {
        let args = [["--from", "shop/web-0"], ["--to", "192.0.2.1"], [more[0], more[1]], [more[2], more[3]]];
        let run = eval(&folder, args.as_flattened());
        assert!(run.out.contains("policies do not apply: own node\n"), "{}", run.out);
    }
    let args = ["--from", "shop/web-0", "--to", "192.0.2.1", "--port", "30432", "--output", "json"];
    let value: Value = serde_json::from_str(&eval(&folder, &args).out).expect("JSON");
    assert_eq!(value["service"]["node_port"], 30432);
    assert_eq!(value["service"]["port"], 5433);
}

#[test]
fn every_address_of_the_own_node_is_exempt() {
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nstatus: {addresses: [{type: InternalIP, \
                address: 192.0.2.1}, {type: ExternalIP, address: 203.0.113.9}]}\n";
    let folder = folder(&[("all.yaml", MANIFESTS), ("node.yaml", node)]);
    for address in ["192.0.2.1", "203.0.113.9"] {
        let run = eval(&folder, &["--from", "shop/web-0", "--to", address, "--port", "10250"]);
        assert!(
            run.out.contains("egress at shop/web-0: allowed\n  policies do not apply: own node\n"),
            "{}",
            run.out
        );
        assert_eq!(run.status, 0);
    }
}

#[test]
fn json_has_the_same_answer() {
    let folder = folder(&[("all.yaml", MANIFESTS)]);
    let run = eval(
        &folder,
        &[
            "--from",
            "shop/web-0",
            "--to",
            "svc/shop/db",
            "--port",
            "5432",
            "--output",
            "json",
            "--protocol",
            "tcp",
        ],
    );
    let value: Value = serde_json::from_str(&run.out).expect("JSON");
    assert_eq!(value["verdict"], "allowed");
    assert_eq!(value["service"]["name"], "shop/db");
    let flow = &value["flows"][0];
    assert_eq!((&flow["to"], &flow["port"]), (&"shop/db-0".into(), &5432.into()));
    let rule = &flow["ingress"]["rules"][0];
    assert_eq!(rule["path"], "ingress[0].from[0].ports[0]");
    assert!(rule["id"].as_str().is_some_and(|id| id.starts_with("NetworkPolicy/shop/db#")), "{rule}");
    let run = eval(
        &folder,
        &[
            "--from",
            "traefik/proxy",
            "--to",
            "shop/db-0",
            "--port",
            "1",
            "--output",
            "json",
            "--protocol",
            "UDP",
        ],
    );
    let value: Value = serde_json::from_str(&run.out).expect("JSON");
    let ingress = &value["flows"][0]["ingress"];
    assert_eq!(ingress["denied_by"][0]["policy"], "NetworkPolicy/shop/db");
    let nearest = &ingress["denied_by"][0]["nearest"];
    assert_eq!(nearest["path"], "ingress[0]");
    let namespace = "the pod is in namespace traefik, and without a namespaceSelector only shop is meant";
    assert_eq!(nearest["peer"]["missing"][0], namespace);
    assert_eq!(nearest["port"]["missing"][0], "UDP is not TCP");
    assert_eq!(ingress["policies"][1]["says"], "isolates");
    assert_eq!(run.status, 1);
}

#[test]
fn what_does_not_parse_is_told_and_makes_unknown_what_it_could_change() {
    let broken = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: half\n  namespace: traefik\nspec: {podSelector: {}, policyTypes: [Egress]\n";
    let folder =
        folder(&[("all.yaml", MANIFESTS), ("broken.yaml", &format!("---\n{MANIFESTS}---\n{broken}"))]);
    let run = eval(&folder, &["--from", "traefik/proxy", "--to", "shop/web-0", "--port", "8080"]);
    assert!(
        run.out.contains("egress at traefik/proxy: unknown\n  invalid object: NetworkPolicy traefik/half: ")
    );
    assert!(run.out.contains("ingress at shop/web-0: allowed\n"), "{}", run.out);
    assert_eq!(run.status, 1);
    let line = run.err.lines().find(|line| line.contains("broken.yaml:")).unwrap_or_default();
    assert!(line.contains(" (document 14): "), "{}", run.err);
    assert!(
        run.err.contains("NetworkPolicy shop/web: declared more than once: the last one counts"),
        "{}",
        run.err
    );
}

#[test]
fn what_matches_only_perhaps_says_why() {
    let more = r#"
apiVersion: v1
kind: Pod
metadata: {name: cni, namespace: traefik}
spec: {nodeName: n7, hostNetwork: true}
status: {podIP: 192.0.2.7}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: edge}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: traefik}}}
  egress:
  - {action: Deny, to: [{nodes: {matchLabels: {role: edge}}}]}
  - {action: Deny, to: [{nodes: {}}], protocols: [{tcp: {destinationPort: {number: 82}}}]}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: other-port}
spec:
  tier: Admin
  priority: 2
  subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: traefik}}}
  egress: [{action: Deny, to: [{nodes: {matchLabels: {role: edge}}}], protocols: [{tcp: {destinationPort: {number: 81}}}]}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {endpointSelector: {matchLabels: {app: db}}, ingressDeny: [{}]}
"#;
    let folder = folder(&[("all.yaml", MANIFESTS), ("more.yaml", more)]);
    let run = eval(&folder, &["--from", "traefik/proxy", "--to", "192.0.2.7", "--port", "80"]);
    let why = "no readable object tells the labels of the node n7";
    for line in [
        format!("\n  perhaps by ClusterNetworkPolicy/edge (selects every pod in namespace traefik): {why}\n"),
        "\n    but which labels node n7 has is not known, role=edge wanted\n".to_owned(),
    ] {
        assert!(run.out.contains(&line), "{line}\n{}", run.out);
    }
    let args = ["--from", "traefik/proxy", "--to", "192.0.2.7", "--port", "80", "--output", "json"];
    let value: Value = serde_json::from_str(&eval(&folder, &args).out).expect("JSON");
    let text = value.to_string();
    assert!(text.contains(&format!(r#""doubt":"{why}""#)), "{text}");

    // Where what is in doubt does what the rule below it does for certain, the policy does that.
    let args = ["--from", "traefik/proxy", "--to", "192.0.2.7", "--port", "82", "--output", "json"];
    let value: Value = serde_json::from_str(&eval(&folder, &args).out).expect("JSON");
    assert_eq!(value["flows"][0]["egress"]["verdict"], "denied", "{value:#}");
    assert_eq!(value["flows"][0]["egress"]["policies"][0]["says"], "denies", "{value:#}");

    // What is allowed as far as it is evaluated says by whom, and needs no tier where there is but one.
    let run = eval(&folder, &["--from", "shop/web-0", "--to", "shop/db-0", "--port", "5432"]);
    assert!(run.out.contains("\n  matched by NetworkPolicy/shop/db (selects app=db) too\n"), "{}", run.out);
}

#[test]
fn a_question_that_cannot_be_asked_is_a_failure() {
    for (from, to, says) in [
        ("shop/web-9", "shop/db-0", "there is no Pod shop/web-9 in the manifests, but db-0, web-0, web-1"),
        ("nowhere/x", "shop/db-0", "no other pod in namespace nowhere"),
        ("web-0", "shop/db-0", "use NAMESPACE/POD, an address, or svc/NAMESPACE/NAME"),
        ("shop/web-0", "svc/shop/none", "there is no Service shop/none"),
        ("10.96.0.1", "shop/web-0", "is the address of service shop/web, which opens no connections"),
    ] {
        let run = flow(from, to, "80");
        assert!(run.err.contains(says), "{from} → {to}: {}", run.err);
        assert_eq!((run.status, run.out.as_str()), (2, ""));
    }
    let run = eval(&folder(&[("notes.txt", "x")]), &["--from", "a/b", "--to", "c/d", "--port", "1"]);
    assert!(run.err.contains("no object of a kind that matters in 0 files"), "{}", run.err);
    assert_eq!(run.status, 2);
}
