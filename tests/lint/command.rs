//! The command as a person, a hook and CI run it.

use std::{fs, path::Path};

use netaudit::advise::lint::TABLE;
use serde_json::Value;

use crate::{
    command::{folder, netaudit, run},
    deploy::deploy,
};

const POLICY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: dns
  namespace: shop
  annotations: {}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - ports: [{protocol: UDP, port: 53}]
";

#[test]
fn the_example_deployment_has_exactly_what_is_truly_there() {
    let told =
        run(netaudit().args(["lint", "--output", "json", "-f"]).arg(deploy().join("examples/batchivo")));
    assert_eq!((told.status, &*told.err), (0, ""), "{}", told.out);
    let value: Value = serde_json::from_str(&told.out).expect("JSON");
    let found: Vec<_> = value["findings"].as_array().expect("a list").iter().collect();
    let [only] = &found[..] else { panic!("{value:#}") };
    // Its own comment says that IPv6 stays denied.
    assert_eq!((&only["code"], &only["severity"]), (&"NA020".into(), &"note".into()));
    assert!(only["file"].as_str().is_some_and(|it| it.ends_with("20-backend-policy.yaml")));
    assert_eq!((&only["line"], &only["column"]), (&63.into(), &19.into()));
    assert_eq!(only["path"], "spec.egress[3].to[0].ipBlock.cidr");
    assert_eq!((&value["policies"], &value["silenced"]), (&8.into(), &Value::Array(Vec::new())));
    let skipped = value["not_checked"].as_array().expect("a list");
    for code in ["NA002", "NA003", "NA007", "NA009", "NA010", "NA012", "NA022"] {
        assert!(skipped.iter().any(|it| it["code"] == code), "{code} needs objects that are not there");
    }
}

#[test]
fn the_status_follows_the_least_severity() {
    let note = POLICY.replace("protocol: UDP, port: 53", "protocol: TCP, port: 53");
    let folder = folder(&[("warning.yaml", POLICY), ("note.yaml", &note)]);
    for (file, least, status) in [
        ("warning.yaml", "note", 1),
        ("warning.yaml", "warning", 1),
        ("warning.yaml", "error", 0),
        ("warning.yaml", "never", 0),
        ("note.yaml", "note", 1),
        ("note.yaml", "warning", 0),
    ] {
        let told = run(netaudit().args(["lint", "--fail-on", least]).arg(folder.path().join(file)));
        assert_eq!(told.status, status, "{file} {least}: {}", told.out);
    }
    assert_eq!(run(netaudit().arg("lint").arg(folder.path().join("warning.yaml"))).status, 1);
}

#[test]
fn a_finding_is_a_line_with_its_place() {
    let folder = folder(&[("a.yaml", POLICY)]);
    let told = run(netaudit().current_dir(folder.path()).args(["lint", "a.yaml"]));
    let first = told.out.lines().next().expect("a line");
    assert_eq!(
        first,
        "a.yaml:11:13: warning NA005 NetworkPolicy shop/dns spec.egress[0].ports[0]: UDP port 53 is allowed and TCP port 53 is \
         not, by this rule or another: answers that do not fit into a datagram are asked for again over TCP; add protocol: TCP, \
         port: 53 (--fix)"
    );
    assert!(
        told.out.contains("\nnot checked: NA002 selects-nothing: no pod and no workload of namespace shop")
    );
    assert!(told.out.ends_with("1 finding: 1 warning; 1 policy in 1 file checked\n"), "{}", told.out);
}

#[test]
fn what_cannot_be_read_is_a_failure_and_the_rest_is_checked() {
    let folder =
        folder(&[("a.yaml", POLICY), ("broken.yaml", "spec: [\n"), ("values.yaml", "replicas: 3\n")]);
    let told = run(netaudit().arg("lint").arg("missing.yaml").arg(folder.path()));
    assert_eq!(told.status, 2);
    assert!(told.err.contains("missing.yaml: cannot be read: No such file"), "{}", told.err);
    assert!(told.err.contains("broken.yaml:1:7 (document 1)"), "{}", told.err);
    // What cannot be read may allow it.
    assert!(told.out.contains(" note NA005 "), "{}", told.out);
    assert!(told.out.ends_with("2 parts could not be read\n"), "{}", told.out);
    let none = run(netaudit().arg("lint").arg(folder.path().join("values.yaml")));
    assert_eq!((none.status, &*none.out), (0, "no findings; 0 policies in 1 file checked\n"));
    let nothing = run(netaudit().arg("lint"));
    assert_eq!(nothing.status, 2);
    assert!(nothing.err.contains("no manifests to check"), "{}", nothing.err);
}

#[test]
fn what_is_silenced_is_counted_and_an_unknown_code_is_an_error() {
    let annotated = |text: &str| {
        POLICY.replace("annotations: {}", &format!("annotations: {{netaudit/lint-ignore: \"{text}\"}}"))
    };
    let folder = folder(&[
        ("a.yaml", &annotated("NA005: never long")),
        ("b.yaml", &annotated("NA004, na005").replace("shop", "other")),
        ("c.yaml", &annotated("NA004").replace("shop", "third")),
        ("d.yaml", &annotated("NA500").replace("shop", "fourth")),
    ]);
    let lint = |file: &str, more: &[&str]| {
        run(netaudit().args(["lint", "--output", "json"]).args(more).arg(folder.path().join(file)))
    };
    for (file, more, found, reason) in [
        ("a.yaml", vec![], 0, Value::from("never long")),
        ("b.yaml", vec![], 0, Value::from("")),
        ("c.yaml", vec!["--ignore", "NA005"], 0, Value::Null),
        ("c.yaml", vec!["--ignore", "NA001,dns-tcp-missing"], 0, Value::Null),
        ("c.yaml", vec![], 1, Value::Null),
    ] {
        let told = lint(file, &more);
        let value: Value = serde_json::from_str(&told.out).expect("JSON");
        assert_eq!(told.status, found, "{file} {more:?}");
        assert_eq!(value["findings"].as_array().map(Vec::len), Some(found as usize));
        assert_eq!(value["silenced"].as_array().map(Vec::len), Some(1 - found as usize), "{value:#}");
        assert_eq!(value["silenced"][0]["reason"], reason);
    }
    let told = lint("d.yaml", &[]);
    assert_eq!(told.status, 2);
    assert!(told.out.contains("there is no code \\\"NA500\\\": known are NA001 to NA025"), "{}", told.out);
    for arguments in [["--ignore", "NA500", "x"].as_slice(), &["--explain", "NA500"]] {
        let told = run(netaudit().arg("lint").args(arguments));
        assert_eq!(told.status, 2);
        assert!(told.err.contains("there is no code \"NA500\": known are NA001 to NA025"), "{}", told.err);
    }
}

#[test]
fn partial_manifests_say_what_was_not_concluded() {
    let policy = POLICY.replace("podSelector: {}", "podSelector: {matchLabels: {app: web}}");
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: db, namespace: shop, labels: {app: db}}\nspec: {containers: [{name: c}]}\n";
    let folder = folder(&[("a.yaml", &format!("{policy}{pod}"))]);
    let path = folder.path().join("a.yaml");
    let whole = run(netaudit().arg("lint").arg(&path));
    assert!(whole.out.contains(" warning NA002 "), "{}", whole.out);
    let partial = run(netaudit().args(["lint", "--partial"]).arg(&path));
    assert!(!partial.out.contains(" warning NA002 "), "{}", partial.out);
    assert!(
        partial
            .out
            .contains("not checked: NA002 selects-nothing: what is not there may be elsewhere: --partial"),
        "{}",
        partial.out
    );
}

#[test]
fn every_code_can_be_asked_for_and_is_in_the_documentation() {
    let list = run(netaudit().args(["lint", "--list"])).out;
    let documentation = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/lint.md");
    let documentation = fs::read_to_string(documentation).expect("the documentation");
    assert_eq!(list.lines().count(), TABLE.len() + 1);
    let codes: Value =
        serde_json::from_str(&run(netaudit().args(["lint", "--list", "--output", "json"])).out)
            .expect("JSON");
    for (number, about) in TABLE.iter().enumerate() {
        let told = run(netaudit().args(["lint", "--explain", &about.code.to_string()]));
        assert_eq!(told.status, 0);
        assert!(told.out.contains(about.long) && told.out.contains(about.short), "{}", told.out);
        assert_eq!(codes["codes"][number]["code"], about.code.to_string());
        let fix = if about.fix { "yes" } else { "" };
        let (severity, row) = (about.severity.as_str(), about.short);
        let row = format!("| {} | `{}` | {severity} | {fix} | {row} |\n", about.code, about.name);
        assert!(documentation.contains(&row), "docs/lint.md lacks: {row}");
        let section = format!("### {} {}\n\n{}\n", about.code, about.name, about.long);
        assert!(documentation.contains(&section), "docs/lint.md lacks, as it is in the table: {section}");
    }
}

#[test]
fn the_hook_runs_what_the_command_has() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.pre-commit-hooks.yaml");
    let hooks: Value = serde_saphyr::from_str(&fs::read_to_string(path).expect("the hooks")).expect("YAML");
    let hook = &hooks[0];
    let entry: Vec<&str> = hook["entry"].as_str().expect("an entry").split(' ').collect();
    assert_eq!(entry[0], "netaudit");
    let folder = folder(&[("a.yaml", POLICY)]);
    let told = run(netaudit().args(&entry[1..]).arg(folder.path().join("a.yaml")));
    // With what pre-commit gives, files that changed, nothing is concluded from others.
    assert!(entry.contains(&"--partial"));
    assert_eq!(told.status, 0, "{}{}", told.out, told.err);
    assert!(told.out.contains(" note NA005 "), "{}", told.out);
}

#[test]
fn a_hook_passes_over_what_is_no_manifest_and_tells_it() {
    let template = POLICY.replace("name: dns", "{{- include \"labels\" . }}");
    let files = [
        ("t.yaml", &*template),
        ("c.json", "{ // a comment\n \"strict\": true }\n"),
        ("m.yaml", "a: !!x [\n"),
    ];
    let others = folder(&files);
    let lint = |more: &[&str]| run(netaudit().arg("lint").args(more).arg(others.path()));
    let told = lint(&["--partial"]);
    assert_eq!(told.status, 0, "{}{}", told.out, told.err);
    for (name, _) in files {
        assert!(told.err.contains(name), "{name}: {}", told.err);
    }
    assert!(told.err.contains("it looks like a template"), "{}", told.err);
    assert_eq!(lint(&[]).status, 2, "where all that there is was to be read");
    let broken = folder(&[("p.yaml", &*POLICY.replace("[Egress]", "[Egress"))]);
    assert_eq!(
        run(netaudit().args(["lint", "--partial"]).arg(broken.path())).status,
        2,
        "a policy is not passed over"
    );
}

#[test]
fn a_network_that_nobody_knows_and_a_directory_without_manifests_are_errors() {
    let policy = folder(&[("a.yaml", POLICY)]);
    let told = run(netaudit().args(["lint", "--cni", "flanel"]).arg(policy.path()));
    assert_eq!(told.status, 2);
    assert!(told.err.contains("there is no network of this name; known are antrea, "), "{}", told.err);
    let told = run(netaudit().args(["lint", "--cni", "Flannel"]).arg(policy.path()));
    assert!(told.out.contains(" warning NA022 "), "{}", told.out);
    let empty = folder(&[("a.txt", "")]);
    let told = run(netaudit().arg("lint").arg(empty.path()));
    assert_eq!(told.status, 2);
    assert!(told.err.contains("no YAML or JSON file is there"), "{}", told.err);
    assert_eq!(run(netaudit().args(["lint", "--partial"]).arg(empty.path())).status, 0);
}

#[test]
fn an_annotation_that_cannot_be_read_is_an_error_and_hides_no_object() {
    let text = POLICY.replace("annotations: {}", "annotations: {netaudit/lint-ignore: [NA005]}");
    let folder = folder(&[("a.yaml", &text)]);
    let told = run(netaudit().arg("lint").arg(folder.path()));
    assert_eq!(told.status, 2);
    assert!(told.err.contains("the annotation netaudit/lint-ignore: is no text"), "{}", told.err);
    assert!(told.out.contains(" warning NA005 "), "{}", told.out);
}

/// What is not concluded, and what is not looked at, is said with its reason.
#[test]
fn what_is_not_checked_is_told_with_the_object_that_stands_in_the_way() {
    let policy = |spec: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
        )
    };
    let rollout = "---\napiVersion: argoproj.io/v1alpha1\nkind: Rollout\nmetadata: {name: api, namespace: shop}\n\
                   spec: {template: {metadata: {labels: {app: api}}, spec: {containers: [{name: c}]}}}\n";
    let release = "---\napiVersion: helm.toolkit.fluxcd.io/v2\nkind: HelmRelease\nmetadata: {name: r, namespace: flux}\n\
                   spec: {targetNamespace: shop}\n";
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\n\
                   spec: {selector: {app: db}, ports: [{port: 1}]}\n";
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: w, namespace: shop, labels: {app: w}}\nspec: {containers: [{name: c}]}\n";
    let monitor = "---\napiVersion: monitoring.coreos.com/v1\nkind: ServiceMonitor\nmetadata: {name: m, namespace: shop}\nspec: {}\n";
    let wide = "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: w}\n\
                spec: {tier: Admin, priority: 1, subject: {namespaces: {}}}\n";
    let selects = policy("{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}");
    let asks = policy(
        "{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: db}}}]}]}",
    );
    let calls = policy(
        "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]}",
    );
    let elsewhere = asks.replace("{podSelector: {matchLabels: {app: db}}}", "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {app: db}}}");
    for (name, text, expected) in [
        (
            "an operator's kind",
            format!("{selects}{pod}{rollout}"),
            "NA002 selects-nothing: Rollout api of argoproj.io may make pods of namespace shop",
        ),
        (
            "one that makes pods elsewhere",
            format!("{selects}{pod}{release}"),
            "NA002 selects-nothing: HelmRelease r of helm.toolkit.fluxcd.io may make",
        ),
        ("a kind that makes none", format!("{selects}{pod}{monitor}"), " warning NA002 "),
        (
            "the template of another kind",
            format!("{calls}{rollout}"),
            "spec.egress: Rollout shop/api may open connections but not look up names",
        ),
        (
            "a Service of such pods",
            format!("{asks}{pod}{service}"),
            "NA003 peer-matches-nothing: Service shop/db leads to such pods",
        ),
        (
            "the cluster's namespace",
            format!("{elsewhere}{}", pod.replace("shop", "kube-system")),
            "NA003 peer-matches-nothing: pods of namespace kube-system are made by the cluster",
        ),
        (
            "addresses elsewhere",
            selects.clone(),
            "NA009 private-service-excluded: the addresses of Endpoints objects and of load balancers are not",
        ),
        (
            "cluster-wide policies",
            format!("{selects}{wide}"),
            "NA020 ipv6-forgotten: of cluster-wide policies this is not looked at",
        ),
    ] {
        let folder = folder(&[("a.yaml", &text)]);
        let told = run(netaudit().arg("lint").arg(folder.path()));
        assert!(told.out.contains(expected), "{name}: {}{}", told.out, told.err);
    }
}
