//! `netaudit doctor` on real hooks: it tells what works, and also what does not.

use std::process::{Command, Output};

use serde_json::Value;

use super::pods::{Stage, ready};

fn doctor(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netaudit"));
    command.arg("doctor").args(arguments).output().expect("it starts")
}

fn states(report: &Value) -> Vec<(&str, &Value)> {
    let sensors = report["sensors"].as_array().expect("a list");
    sensors.iter().map(|it| (it["what"].as_str().expect("text"), &it["state"])).collect()
}

#[test]
fn it_sees_its_own_connections() {
    if !ready() {
        return;
    }
    let output = doctor(&["--output", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    // Other tests make cgroups and connections meanwhile; they must not matter.
    for trial in report["trials"].as_array().expect("a list") {
        let may_lack = trial["trial"].as_str().is_some_and(|it| it.ends_with('6'));
        let is_fine = trial["result"] == "works" || may_lack && trial["result"]["not-made"].is_string();
        assert!(is_fine, "{trial}");
    }
    for (what, state) in states(&report) {
        assert!(state.get("broken").is_none(), "{what}: {state}");
    }
    let connect =
        report["hooks"].as_array().unwrap().iter().find(|it| it["hook"] == "cgroup/connect4").unwrap();
    assert_eq!(connect["attached"], true);
    assert!(connect["runs"].as_u64() >= Some(500), "{connect}");
    assert!(connect["nanoseconds"].as_f64() > Some(1.0), "{connect}");
    let advice = report["node"].as_array().unwrap().iter().any(|it| it["advice"].is_string());
    assert_eq!(output.status.code(), Some(i32::from(advice)));
}

#[test]
fn what_it_cannot_see_is_a_finding() {
    if !ready() {
        return;
    }
    // This process is in no cgroup below that one.
    let root = Stage::root();
    let path = root.path.to_str().unwrap();
    let output = doctor(&["--cgroup-root", path, "--output", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for (what, state) in states(&report) {
        let is_told = *state == "unobservable" || state["broken"].is_string() || state["untried"].is_string();
        assert!(is_told, "{what}: {state}");
    }
    let text = doctor(&["--cgroup-root", path]);
    let text = String::from_utf8_lossy(&text.stdout);
    assert!(text.contains("NOT SEEN"), "{text}");
    assert!(text.contains(&format!("only sockets of {path} are watched")), "{text}");
}

#[test]
fn a_directory_that_is_no_cgroup_is_a_failure_that_says_so() {
    if !ready() {
        return;
    }
    let output = doctor(&["--cgroup-root", "/tmp"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("/tmp is not in a cgroup v2 hierarchy"), "{said}");
}
