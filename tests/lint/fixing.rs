//! `netaudit lint --fix`: what it changes, what it leaves alone, and what it refuses.

use std::{fs, path::Path};

use serde_json::Value;

use crate::command::{Run, folder, netaudit, run};

const HEAD: &str =
    "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\n";

/// Corrects a file of this name and content; what the command told, and the content then.
#[track_caller]
fn fixed(name: &str, text: &str) -> (Run, String) {
    let folder = folder(&[(name, text)]);
    let path = folder.path().join(name);
    let first = fix(&path, &[]);
    let new = fs::read_to_string(&path).expect("still text");
    let second = fix(&path, &[]);
    assert!(
        second.out.starts_with("corrected nothing\n") || second.out.contains(": not corrected: "),
        "{}",
        second.out
    );
    assert_eq!(fs::read_to_string(&path).expect("still text"), new, "a second time changes nothing");
    (first, new)
}

fn fix(path: &Path, more: &[&str]) -> Run {
    run(netaudit().args(["lint", "--fix"]).arg(path).args(more))
}

#[test]
fn a_fix_changes_only_what_it_says() {
    for (name, before, after) in [
        (
            "a block with comments",
            "spec:\n  podSelector: {}\n  policyTypes: [Egress]\n  egress:\n  - ports:\n    # names\n    -   protocol: UDP # datagrams\n        port: 53      # DNS\n\n    # after\n  - ports: [{port: 443}]\n",
            "spec:\n  podSelector: {}\n  policyTypes: [Egress]\n  egress:\n  - ports:\n    # names\n    -   protocol: UDP # datagrams\n        port: 53      # DNS\n    -   protocol: TCP\n        port: 53\n\n    # after\n  - ports: [{port: 443}]\n",
        ),
        (
            "an object in brackets in a block",
            "spec:\n  podSelector: {}\n  policyTypes: [Egress]\n  egress:\n  - ports:\n    - {port: 53} # DNS\n    - {port: 80}",
            "spec:\n  podSelector: {}\n  policyTypes: [Egress]\n  egress:\n  - ports:\n    - {port: 53} # DNS\n    - {protocol: UDP, port: 53}\n    - {port: 80}",
        ),
        (
            "brackets",
            "spec: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 443}, {protocol: UDP, port: 53}]}]} # end",
            "spec: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 443}, {protocol: UDP, port: 53}, {protocol: TCP, port: 53}]}]} # end",
        ),
        (
            "types behind a selector of several lines",
            "spec:\n  podSelector:\n    matchLabels: # whom\n      app: web # it\n  # rules\n  egress: [{}]\n",
            "spec:\n  podSelector:\n    matchLabels: # whom\n      app: web # it\n  policyTypes: [Ingress, Egress]\n  # rules\n  egress: [{}]\n",
        ),
        (
            "types without a selector",
            "spec:\n  # rules\n  egress: [{}]\n",
            "spec:\n  # rules\n  policyTypes: [Ingress, Egress]\n  egress: [{}]\n",
        ),
        (
            "types in brackets",
            "spec: {podSelector: {}, egress: [{}]}\n",
            "spec: {policyTypes: [Ingress, Egress], podSelector: {}, egress: [{}]}\n",
        ),
        (
            "excepts of a block",
            "spec:\n  podSelector: {}\n  ingress:\n  - from:\n    - ipBlock:\n        cidr: 10.0.0.0/8\n        except: # holes\n        - 11.0.0.0/8 # wrong\n        # kept\n        - 10.1.0.0/16\n        - 12.0.0.0/8\n",
            "spec:\n  podSelector: {}\n  ingress:\n  - from:\n    - ipBlock:\n        cidr: 10.0.0.0/8\n        except: # holes\n        # kept\n        - 10.1.0.0/16\n",
        ),
        (
            "the only except",
            "spec:\n  podSelector: {}\n  ingress:\n  - from:\n    - ipBlock:\n        except:\n        - 11.0.0.0/8 # wrong\n        cidr: 10.0.0.0/8\n",
            "spec:\n  podSelector: {}\n  ingress:\n  - from:\n    - ipBlock:\n        except: [] # wrong\n        cidr: 10.0.0.0/8\n",
        ),
        (
            "excepts in brackets, first, in the middle and last",
            "spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [12.0.0.0/8, 13.0.0.0/8, 10.2.0.0/16, 14.0.0.0/8, 15.0.0.0/8]}}]}]}\n",
            "spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.2.0.0/16]}}]}]}\n",
        ),
    ] {
        for (end, mark) in [("\n", ""), ("\r\n", ""), ("\n", "\u{feff}")] {
            let whole = |text: &str| format!("{mark}{}", format!("{HEAD}{text}").replace('\n', end));
            let (told, new) = fixed("a.yaml", &whole(before));
            assert_eq!(new, whole(after), "{name}");
            assert!(told.out.starts_with("corrected "), "{name}: {}", told.out);
        }
    }
}

#[test]
fn json_is_corrected_in_its_own_form() {
    let before = "[]";
    let (_, new) = fixed("a.json", before);
    assert_eq!(new, before);
    let policy = |types: &str, more: &str| {
        format!(
            "{{\"apiVersion\": \"networking.k8s.io/v1\", \"kind\": \"NetworkPolicy\", \"metadata\": {{\"name\": \"p\"}},\n  \"spec\": {{\n    \
             {types}\"podSelector\": {{}},\n    \"egress\": [{{\"ports\": [\n      {{\"protocol\": \"UDP\", \"port\": 53}}{more}\n    ]}}]\n  }}\n}}\n"
        )
    };
    let (told, new) = fixed("a.json", &policy("", ""));
    let after = policy(
        "\"policyTypes\": [\"Ingress\", \"Egress\"],\n    ",
        ",\n      {\"protocol\": \"TCP\", \"port\": 53}",
    );
    assert_eq!(new, after, "{}", told.out);
    serde_json::from_str::<Value>(&new).expect("still JSON");
}

#[test]
fn what_is_shared_or_ambiguous_is_refused_with_a_reason() {
    let shared = format!(
        "x: &dns [{{protocol: UDP, port: 53}}]\n{HEAD}spec:\n  podSelector: {{}}\n  policyTypes: [Egress]\n  egress:\n  - ports: *dns\n"
    );
    let (told, new) = fixed("a.yaml", &shared);
    assert_eq!(new, shared);
    assert!(
        told.out.contains("not corrected: spec.egress[0].ports is written once for several places"),
        "{}",
        told.out
    );
    // Nobody knows which of the two is right.
    let whole = format!(
        "{HEAD}spec:\n  podSelector: {{}}\n  ingress: [{{from: [{{ipBlock: {{cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}}}]}}]\n"
    );
    let (told, new) = fixed("a.yaml", &whole);
    assert_eq!(new, whole);
    assert!(
        told.out.starts_with("corrected nothing\n") && told.out.contains(" error NA008 "),
        "{}",
        told.out
    );
}

#[test]
fn a_dry_run_prints_the_difference_and_nothing_else_and_changes_nothing() {
    let before = format!(
        "{HEAD}spec:\n  podSelector: {{}}\n  policyTypes: [Egress]\n  egress:\n  - ports:\n    - port: 53\n"
    );
    let folder = folder(&[("a.yaml", &before), ("b.yaml", HEAD)]);
    let path = folder.path().join("a.yaml");
    let told = run(netaudit().current_dir(folder.path()).args(["lint", "--fix", "--dry-run", "."]));
    assert_eq!(fs::read_to_string(&path).expect("text"), before);
    let expected = "--- a/a.yaml\n+++ b/a.yaml\n@@ -7,3 +7,5 @@\n   egress:\n   - ports:\n     - port: 53\n+    - protocol: UDP\n+      port: 53\n";
    assert_eq!(told.out, expected);
    assert!(told.err.contains("would correct ./a.yaml:9: NA006 NetworkPolicy shop/p spec.egress[0].ports[0]: add protocol: UDP, port: 53"), "{}", told.err);
    assert_eq!(told.status, 1);
}

#[test]
fn what_is_silenced_is_not_corrected() {
    let text = format!(
        "{HEAD}spec: {{podSelector: {{}}, policyTypes: [Egress], egress: [{{ports: [{{port: 53}}]}}]}}\n"
    );
    let folder = folder(&[("a.yaml", &text)]);
    let path = folder.path().join("a.yaml");
    let told = fix(&path, &["--ignore", "NA006"]);
    assert_eq!((told.status, fs::read_to_string(&path).expect("text")), (0, text));
    assert!(told.out.contains("1 silenced (NA006)"), "{}", told.out);
}

#[test]
fn only_the_files_of_findings_are_written() {
    let right = format!("{HEAD}spec: {{podSelector: {{}}, policyTypes: [Ingress]}}\n");
    let wrong = format!("{HEAD}spec: {{podSelector: {{}}, egress: [{{}}]}}\n").replace("shop", "other");
    let folder = folder(&[("a.yaml", &right), ("b.yaml", &wrong), ("c.yaml", "a: [\n")]);
    let time =
        |name: &str| fs::metadata(folder.path().join(name)).and_then(|it| it.modified()).expect("a time");
    let before = ["a.yaml", "c.yaml"].map(time);
    let told = run(netaudit().args(["lint", "--fix", "--output", "json"]).arg(folder.path()));
    assert_eq!(told.status, 2, "the broken file is a failure still");
    let value: Value = serde_json::from_str(&told.out).expect("JSON");
    assert_eq!(value["corrected"].as_array().map(Vec::len), Some(1), "{value:#}");
    assert_eq!(value["errors"].as_array().map(Vec::len), Some(1), "{value:#}");
    assert_eq!(["a.yaml", "c.yaml"].map(time), before);
}
