//! The seccomp profile that we ship allows what `netaudit` does, and is no open door.

use std::{
    fs, io,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Output},
};

use seccompiler::{BpfProgram, apply_filter, compile_from_json};
use serde_json::{Value, json};

use super::pods::ready;

/// The profile as the kernel takes it, but for `denied`.
fn profile(denied: &str) -> BpfProgram {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/components/seccomp/netaudit-agent.json");
    let profile: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!(
        (&profile["defaultAction"], &profile["defaultErrnoRet"]),
        (&json!("SCMP_ACT_ERRNO"), &json!(1))
    );
    let [allowed] = profile["syscalls"].as_array().unwrap().as_slice() else { panic!("one list: {profile}") };
    assert_eq!(allowed["action"], "SCMP_ACT_ALLOW");
    let names = allowed["names"].as_array().unwrap().iter().filter(|name| **name != denied);
    let filter: Vec<Value> = names.map(|name| json!({ "syscall": name })).collect();
    let filters = json!({
        "agent": { "mismatch_action": { "errno": libc::EPERM }, "match_action": "allow", "filter": filter },
    });
    let arch = std::env::consts::ARCH.try_into().unwrap();
    compile_from_json(filters.to_string().as_bytes(), arch).unwrap().remove("agent").unwrap()
}

fn doctor(filter: BpfProgram) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netaudit"));
    command.args(["doctor", "--output", "json"]);
    // SAFETY: two system calls between fork and exec.
    unsafe {
        command.pre_exec(move || {
            // `apply_filter` sets no-new-privileges first.
            apply_filter(&filter).map_err(|error| io::Error::other(error.to_string()))
        });
    }
    command.output().unwrap()
}

#[test]
fn everything_works_under_the_profile_and_nothing_without_bpf() {
    // The names of other architectures' system calls are other ones.
    if !ready() || cfg!(not(target_arch = "x86_64")) {
        return;
    }
    let output = doctor(profile(""));
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{said}"));
    for trial in report["trials"].as_array().unwrap() {
        let may_lack = trial["trial"].as_str().is_some_and(|it| it.ends_with('6'));
        assert!(
            trial["result"] == "works" || may_lack && trial["result"]["not-made"].is_string(),
            "{trial}\n{said}"
        );
    }
    let output = doctor(profile("bpf"));
    assert_eq!(output.status.code(), Some(2), "the filter is not in force");
}
