//! `netaudit eval` of ends that are not simply a pod: services, what cannot be read, loopback; and of many rules.

use std::{fmt::Write as _, time::Instant};

use serde_json::Value;

use crate::command::{Run, folder, netaudit, run};

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIP: 10.1.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
status: {podIP: 10.1.0.3}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: p, namespace: shop}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 8080}]}]}
"#;

const BROKEN_POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, version: 2}}
status: {podIP: 10.1.0.2}
";

fn eval(files: &[(&str, &str)], args: &[&str]) -> Run {
    let folder = folder(files);
    run(netaudit().arg("eval").arg("-f").arg(folder.path()).args(args))
}

fn flow(files: &[(&str, &str)], to: &str, port: &str) -> Run {
    eval(files, &["--from", "shop/client", "--to", to, "--port", port])
}

fn last(run: &Run) -> &str {
    run.out.lines().last().unwrap_or_default()
}

#[test]
fn a_headless_service_translates_no_port() {
    let files = [("all.yaml", PODS)];
    let run = flow(&files, "svc/shop/headless", "80");
    assert_eq!(last(&run), "shop/client → shop/web-0 TCP 80: denied", "{}", run.err);
    assert!(
        run.out.contains("1 backend by its selector; it is headless, so the port is the backends' own\n")
    );
    // Any port can be asked for, also one that the service does not mention.
    let run = flow(&files, "svc/shop/headless", "8080");
    assert_eq!((last(&run), run.status), ("shop/client → shop/web-0 TCP 8080: allowed", 0), "{}", run.err);
    let slice = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: headless-1, namespace: shop, labels: {kubernetes.io/service-name: headless}}
addressType: IPv4
ports: [{name: '', port: 8080}]
endpoints: [{addresses: [10.1.0.1]}]
";
    let run = flow(&[("all.yaml", PODS), ("slice.yaml", slice)], "svc/shop/headless", "80");
    assert_eq!(last(&run), "shop/client → shop/web-0 (10.1.0.1) TCP 80: denied", "{}", run.err);
    // With an address of its own it does translate.
    let run = flow(&files, "svc/shop/web", "80");
    assert_eq!(last(&run), "shop/client → shop/web-0 TCP 8080: allowed", "{}", run.err);
}

#[test]
fn a_backend_that_cannot_be_read_makes_the_service_unknown() {
    let files = [("all.yaml", PODS), ("broken.yaml", BROKEN_POD)];
    let run = flow(&files, "svc/shop/web", "80");
    assert!(last(&run).starts_with("shop/web: unknown: invalid object: Pod shop/web-1: "), "{}", run.out);
    assert_eq!(run.status, 1);
    let run = flow(&files, "shop/web-1", "80");
    assert_eq!((last(&run), run.status), ("shop/client → shop/web-1 TCP 80: unknown", 1), "{}", run.err);
    assert!(run.out.contains("  invalid object: Pod shop/web-1: metadata.labels.version"), "{}", run.out);

    let slice = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: '', port: \"8081\"}]
endpoints: [{addresses: [10.1.0.3]}]
";
    let run = flow(&[("all.yaml", PODS), ("slice.yaml", slice)], "svc/shop/web", "80");
    assert!(
        last(&run).starts_with("shop/web: unknown: invalid object: EndpointSlice shop/web-1: "),
        "{}",
        run.out
    );
    let other = slice.replace("name: web}}", "name: other}}");
    let run = flow(&[("all.yaml", PODS), ("slice.yaml", &other)], "svc/shop/web", "80");
    assert_eq!(run.status, 0, "{}", run.out);

    let broken = PODS.replace("ports: [{port: 80, targetPort: http}]", "ports: [{port: '80'}]");
    let run = flow(&[("all.yaml", &broken)], "svc/shop/web", "80");
    assert!(
        last(&run).starts_with("shop/web: unknown: invalid object: Service shop/web: "),
        "{}{}",
        run.out,
        run.err
    );
    assert_eq!(run.status, 1);
}

#[test]
fn loopback_never_meets_a_policy() {
    let deny = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
";
    for address in ["127.0.0.1", "127.1.2.3", "::1"] {
        let run = flow(&[("all.yaml", PODS), ("deny.yaml", deny)], address, "80");
        let expected = "egress at shop/client: allowed\n  policies do not apply: loopback\n";
        assert!(run.out.starts_with(expected), "{}", run.out);
        assert_eq!(run.status, 0, "{}", run.err);
    }
}

#[test]
fn a_name_cannot_pretend_to_be_an_answer() {
    let policy = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: "p\n  by fake\ningress at shop/web-0: allowed\u001b[31m", namespace: shop, odd: 1}
spec: {podSelector: {}, ingress: []}
"#;
    let pod = "
apiVersion: v1
kind: Pod
metadata: {name: \"a\\nb\", namespace: shop}
";
    let files = [("p.yaml", policy), ("pods.yaml", PODS), ("pod.yaml", pod)];
    for args in [&["--from", "shop/web-0", "--to", "shop/client", "--port", "80"][..], &["--matrix"]] {
        let run = eval(&files, args);
        for text in [&run.out, &run.err] {
            assert!(!text.contains('\u{1b}'), "{text:?}");
            assert!(
                !text.lines().any(|line| line.starts_with("ingress at shop/web-0") || line == "b"),
                "{text}"
            );
        }
        assert!(
            run.err.contains(r"NetworkPolicy shop/p\n  by fake\ningress at shop/web-0: allowed\u{1b}[31m: "),
            "{}",
            run.err
        );
    }
}

#[test]
fn what_is_passed_over_is_in_the_json_too() {
    let other = "{apiVersion: v1, kind: List, items: [null]}\n";
    let files = [("all.yaml", PODS), ("other.yaml", other)];
    let says = "other.yaml:1 (document 1): items[0]: null, which is no object: remove it";
    for args in [
        &["--from", "shop/client", "--to", "shop/web-0", "--port", "80", "--output", "json"][..],
        &["--matrix", "--output", "json"],
    ] {
        let run = eval(&files, args);
        let value: Value = serde_json::from_str(&run.out).expect("JSON");
        let warnings = value["warnings"].as_array().expect("a list");
        assert!(warnings.iter().any(|it| it.as_str().expect("text").ends_with(says)), "{value:#}");
        assert!(run.err.contains(says), "{}", run.err);
    }
}

/// What once took minutes takes seconds, also in a debug build on a busy machine.
#[test]
fn thousands_of_ranges_are_no_trouble() {
    let network = |number: usize, length| {
        format!("{}.{}.{}.0/{length}", 20 + number / 65_536, number / 256 % 256, number % 256)
    };
    let mut rules = String::new();
    for number in 0..10_000 {
        let _ = writeln!(
            rules,
            "  - {{from: [{{ipBlock: {{cidr: {}}}}}], ports: [{{port: {}}}]}}",
            network(number, 24),
            number + 1
        );
    }
    let holes: Vec<String> = (0..20_000).map(|number| network(number, 25)).collect();
    let policy = |name: &str, app: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec:\n  podSelector: {{matchLabels: {{app: {app}}}}}\n  ingress:\n"
        )
    };
    let many = format!("{}{rules}", policy("rules", "client"));
    let ports: Vec<String> = (0..10_000).map(|number| format!("{{port: {}}}", 1 + 2 * number)).collect();
    let holed = format!(
        "{}  - {{from: [{{ipBlock: {{cidr: 0.0.0.0/0, except: [{}]}}}}], ports: [{}]}}\n",
        policy("holes", "web"),
        holes.join(", "),
        ports.join(", ")
    );
    let start = Instant::now();
    let files = [("all.yaml", PODS), ("many.yaml", &many), ("holed.yaml", &holed)];
    let run = eval(&files, &["--matrix", "--output", "json"]);
    assert_eq!(run.status, 0, "{}", run.err);
    let value: Value = serde_json::from_str(&run.out).expect("JSON");
    let rows = value["allowed"].as_array().expect("rows");
    let row =
        rows.iter().find(|it| it["from"]["names"] == serde_json::json!(["20.39.15.0/24"])).expect("a row");
    assert_eq!(row["text"], "20.39.15.0/24 → shop/client: TCP 10000");
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}
