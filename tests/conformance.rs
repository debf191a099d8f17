//! The policy cases of other projects' suites, where the shared folder with them is at hand.

use std::{fs, path::Path, process::Command};

#[test]
fn every_case_of_other_suites_passes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance");
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        // cargo shows no output of tests that pass: where the folder must be there, its absence is a failure.
        Err(error) if std::env::var_os("NETAUDIT_REQUIRE_SHARED").is_some_and(|it| it == "1") => {
            panic!("NETAUDIT_REQUIRE_SHARED=1, but ../shared/conformance beside the workspace: {error}")
        }
        Err(error) => {
            eprintln!("SKIPPED: ../shared/conformance beside the workspace: {error}");
            return;
        }
    };
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".jsonl")
    });
    files.sort();
    assert!(!files.is_empty(), "no *.jsonl in {}", folder.display());

    let output =
        Command::new(env!("CARGO_BIN_EXE_netaudit")).arg("eval").arg("--cases").args(&files).output();
    let output = output.expect("netaudit runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let last = text.lines().last().unwrap_or_default();
    assert!(last.ends_with(" passed, 0 failed, 0 skipped"), "{last}");
    assert!(!last.starts_with("0 "), "no flow was checked: {last}");
}

#[test]
fn a_wrong_case_fails_and_cases_of_other_kinds_are_skipped_by_name() {
    let pod = |name: &str, ip: &str| {
        format!(
            r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}","namespace":"x"}},"status":{{"podIP":"{ip}"}}}}"#
        )
    };
    let deny = r#"{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"deny","namespace":"x"},"spec":{"podSelector":{}}}"#;
    let admin = r#"{"apiVersion":"example.com/v1","kind":"MeshPolicy","metadata":{"name":"mesh"}}"#;
    let flow = |expect: &str, by: &str| {
        format!(
            r#"{{"from":{{"pod":"x/a"}},"to":{{"pod":"x/b"}},"protocol":"TCP","port":80,"expect":"{expect}"{by}}}"#
        )
    };
    let by = r#","ingress_by":[{"policy":"NetworkPolicy/x/other","effect":"selects-no-rule-matches"}]"#;
    let case = |name: &str, objects: &[&str], flows: &[String]| {
        format!(r#"{{"name":"{name}","objects":[{}],"flows":[{}]}}"#, objects.join(","), flows.join(","))
    };
    let (a, b) = (pod("a", "10.0.0.1"), pod("b", "10.0.0.2"));
    let text = [
        case("right-and-wrong", &[&a, &b, deny], &[flow("deny", ""), flow("allow", ""), flow("deny", by)]),
        case("other-kind", &[&a, &b, admin], &[flow("allow", "")]),
    ]
    .join("\n");
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("cases.jsonl");
    fs::write(&file, text).expect("written");

    let output = Command::new(env!("CARGO_BIN_EXE_netaudit")).arg("eval").arg("--cases").arg(&file).output();
    let output = output.expect("netaudit runs");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("right-and-wrong: x/a → x/b TCP 80: flow: expected allowed, got denied"), "{text}");
    assert!(text.contains("expected selects-no-rule-matches by NetworkPolicy/x/other"), "{text}");
    assert!(text.contains("denied by NetworkPolicy/x/deny, which is not expected"), "{text}");
    let tail: Vec<_> = text.lines().rev().take(2).collect();
    assert_eq!(
        tail,
        ["1 passed, 2 failed, 1 skipped", "skipped: 1 flows of cases with MeshPolicy, which is not known"]
    );
}

#[test]
fn a_case_that_cannot_be_asked_does_not_keep_the_others_from_being_checked() {
    let objects = r#""objects":[{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"x"}}]"#;
    let flow = r#"{"from":{"pod":"x/a"},"to":{"ip":"192.0.2.1"},"protocol":"TCP","port":1,"expect":"allow"}"#;
    let good = format!(r#"{{"name":"good",{objects},"flows":[{flow}]}}"#);
    let lost = good.replace("x/a\"},", "x/zz\"},");
    let odd = good.replace(r#""expect""#, r#""ingres":"allow","expect""#);
    let text = format!("\u{feff}{good}\n{{\"name\":\"torn\",\n{lost}\n{odd}\n{good}\n");
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("cases.jsonl");
    fs::write(&file, text).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_netaudit")).arg("eval").arg("--cases").arg(&file).output();
    let output = output.expect("netaudit runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "2 passed, 0 failed, 0 skipped\n");
    assert_eq!(output.status.code(), Some(2));
    let err = String::from_utf8_lossy(&output.stderr);
    for says in [
        "jsonl:2: EOF",
        "jsonl:3: case good: there is no pod x/zz",
        "jsonl:4: unknown field `ingres`",
        "3 cases cannot be asked",
    ] {
        assert!(err.contains(says), "{says}: {err}");
    }
}
