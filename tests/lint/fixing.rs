//! `netaudit lint --fix`: what it changes, what it leaves alone, and what it refuses.

use std::{fs, path::Path};

use serde_json::Value;

use crate::command::{Run, folder, netaudit, run};

const HEAD: &str =
    "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\n";

/// What `--fix` corrects.
const WRONG: &str = "spec: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 53}]}]}\n";

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
            "excepts of a block",
            "spec:\n  podSelector: {}\n  ingress:\n  - from:\n    - ipBlock:\n        cidr: 10.0.0.0/8\n        except: # holes\n        - fc00::/7 # wrong\n        # kept\n        - 10.1.0.0/16\n        - fd00::/8\n",
            "spec:\n  podSelector: {}\n  ingress:\n  - from:\n    - ipBlock:\n        cidr: 10.0.0.0/8\n        except: # holes\n        # kept\n        - 10.1.0.0/16\n",
        ),
        (
            "the only except",
            "spec:\n  podSelector: {}\n  ingress:\n  - from:\n    - ipBlock:\n        except:\n        - fc00::/7 # wrong\n        cidr: 10.0.0.0/8\n",
            "spec:\n  podSelector: {}\n  ingress:\n  - from:\n    - ipBlock:\n        except: []\n        cidr: 10.0.0.0/8\n",
        ),
        (
            "excepts in brackets, first, in the middle and last",
            "spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [\"fc00::/7\", \"fd00::/8\", 10.2.0.0/16, \"fe80::/10\", \"2001:db8::/32\"]}}]}]}\n",
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
    let policy = |more: &str| {
        format!(
            "{{\"apiVersion\": \"networking.k8s.io/v1\", \"kind\": \"NetworkPolicy\", \"metadata\": {{\"name\": \"p\"}},\n  \"spec\": {{\n    \
             \"policyTypes\": [\"Egress\"],\n    \"podSelector\": {{}},\n    \"egress\": [{{\"ports\": [\n      {{\"protocol\": \
             \"UDP\", \"port\": 53}}{more}\n    ]}}]\n  }}\n}}\n"
        )
    };
    let (told, new) = fixed("a.json", &policy(""));
    let after = policy(",\n      {\"protocol\": \"TCP\", \"port\": 53}");
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
    let folder = folder(&[("a.yaml", &before), ("b.yaml", &HEAD.replace("shop", "other"))]);
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
    let wrong = format!("{HEAD}{WRONG}").replace("shop", "other");
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

#[test]
fn what_has_more_than_one_remedy_is_left_alone() {
    for (code, spec) in [
        // Two digits that changed places, of an exclusion that somebody wants.
        (
            "NA008",
            "spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.168.0.0/16, except: [192.186.1.0/24]}}]}]}\n",
        ),
        // Whether the ingress is meant, nobody else knows.
        ("NA013", "spec: {podSelector: {}, egress: [{ports: [{protocol: UDP, port: 53}, {port: 53}]}]}\n"),
    ] {
        let text = format!("{HEAD}{spec}");
        let (told, new) = fixed("a.yaml", &text);
        assert_eq!(new, text, "{code}");
        assert!(told.out.starts_with("corrected nothing\n") && told.out.contains(code), "{}", told.out);
    }
}

#[test]
fn a_patch_of_a_kustomization_is_neither_judged_nor_changed() {
    let base = format!(
        "{HEAD}spec: {{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{{podSelector: {{}}}}]}}]}}\n"
    );
    let patch = format!("{HEAD}spec: {{egress: [{{ports: [{{port: 53}}]}}]}}\n");
    let kustomization = "resources: [p.yaml]\npatches: [{path: q.yaml}]\n";
    let whole = folder(&[("p.yaml", &base), ("q.yaml", &patch), ("kustomization.yaml", kustomization)]);
    let told = fix(whole.path(), &[]);
    assert_eq!(told.status, 0, "{}", told.out);
    assert!(told.out.starts_with("corrected nothing\n") && told.out.contains("no findings;"), "{}", told.out);
    assert!(told.err.contains("a kustomization changes others by this file"), "{}", told.err);
    assert!(told.err.contains("what a kustomization does (patches) is not checked"), "{}", told.err);
    // As a hook names it: alone.
    let path = whole.path().join("q.yaml");
    let told = fix(&path, &["--partial"]);
    assert!(told.out.contains("0 policies"), "{}", told.out);
    assert_eq!(fs::read_to_string(&path).expect("text"), patch);
    // Near a kustomization that does not name it, it is a patch by its form.
    let unnamed = folder(&[("q.yaml", &patch), ("kustomization.yaml", "resources: []\n")]);
    let told = fix(unnamed.path(), &[]);
    assert!(told.err.contains("it is taken for a patch"), "{}", told.err);
    assert_eq!(fs::read_to_string(unnamed.path().join("q.yaml")).expect("text"), patch);
    // A component is judged, and left alone.
    let component = folder(&[
        ("p.yaml", &format!("{HEAD}{WRONG}")),
        ("kustomization.yaml", "kind: Component\nresources: [p.yaml]\n"),
    ]);
    let told = fix(component.path(), &[]);
    assert!(told.out.contains("not corrected: it is part of a kustomize component"), "{}", told.out);
    assert_eq!(fs::read_to_string(component.path().join("p.yaml")).expect("text"), format!("{HEAD}{WRONG}"));
}

#[test]
fn an_object_that_is_there_twice_is_not_corrected() {
    let text = format!("{HEAD}{WRONG}");
    let folder = folder(&[("a.yaml", &text), ("b.yaml", &text)]);
    let told = fix(folder.path(), &[]);
    assert!(told.out.contains("not corrected: another document is the same object"), "{}", told.out);
    assert!(told.out.contains(" warning NA025 "), "{}", told.out);
    for name in ["a.yaml", "b.yaml"] {
        assert_eq!(fs::read_to_string(folder.path().join(name)).expect("text"), text);
    }
}

#[test]
fn a_file_that_cannot_be_written_costs_no_other_and_links_and_modes_stay() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let text = |namespace: &str| format!("{HEAD}{WRONG}").replace("shop", namespace);
    let folder = folder(&[("a.yaml", &text("a")), ("b.yaml", &text("b")), ("c.txt", &text("c"))]);
    let path = |name: &str| folder.path().join(name);
    fs::set_permissions(path("a.yaml"), fs::Permissions::from_mode(0o444)).expect("a mode");
    fs::set_permissions(path("b.yaml"), fs::Permissions::from_mode(0o640)).expect("a mode");
    symlink("c.txt", path("c.yaml")).expect("a link");
    let told = fix(folder.path(), &[]);
    assert_eq!(told.status, 2, "{}", told.out);
    assert!(told.out.contains("a.yaml: not corrected: cannot be written: it is read-only"), "{}", told.out);
    assert_eq!(told.out.lines().filter(|it| it.starts_with("corrected ")).count(), 2, "{}", told.out);
    assert!(told.out.contains(" NA006 NetworkPolicy a/p"), "what was not corrected is found: {}", told.out);
    assert_eq!(fs::read_to_string(path("a.yaml")).expect("text"), text("a"));
    for name in ["b.yaml", "c.txt"] {
        assert!(fs::read_to_string(path(name)).expect("text").contains("UDP"), "{name}");
    }
    assert!(fs::symlink_metadata(path("c.yaml")).expect("a link").is_symlink());
    assert_eq!(fs::metadata(path("b.yaml")).expect("a file").permissions().mode() & 0o777, 0o640);
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 4, "nothing else is left there");
}
