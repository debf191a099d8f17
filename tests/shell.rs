//! netaudit as kubectl's plugin, and what shells and `man` are told.

use std::{fs, os::unix::fs::symlink, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{
    alerts::tool_or_skip,
    command::{Run, netaudit, run},
};

#[test]
fn kubectl_runs_it_by_name_and_completes_its_words() -> Result<()> {
    let Some(kubectl) = tool_or_skip("kubectl netaudit", "kubectl", "kubectl") else { return Ok(()) };
    let directory = tempfile::tempdir()?;
    for name in ["kubectl-netaudit", "kubectl_complete-netaudit"] {
        symlink(env!("CARGO_BIN_EXE_netaudit"), directory.path().join(name))?;
    }
    let path = format!("{}:/usr/bin:/bin", directory.path().display());
    let ask = |words: &[&str]| -> Run {
        // Without a cluster and without anybody's configuration.
        let mut command = Command::new(&kubectl);
        command.args(words).env_clear().env("PATH", &path).env("HOME", directory.path());
        run(&mut command)
    };
    let listed = ask(&["plugin", "list"]);
    assert!(listed.out.contains("kubectl-netaudit"), "{}{}", listed.out, listed.err);
    let version = ask(&["netaudit", "--version"]);
    assert_eq!((version.status, version.out), (0, run(netaudit().arg("--version")).out));
    // Help says what one has to write, and the exit status is netaudit's own.
    let help = ask(&["netaudit", "lint", "--help"]);
    assert!(help.out.contains("Usage: kubectl netaudit lint"), "{}", help.out);
    let own = run(netaudit().args(["lint", "--help"]));
    assert!(own.out.contains("Usage: netaudit lint"), "{}", own.out);
    let wrong = ask(&["netaudit", "no-such-command"]);
    assert!(wrong.status == 2 && wrong.err.contains("no-such-command"), "{}", wrong.err);
    let open = directory.path().join("open.yaml");
    fs::write(
        &open,
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: x, namespace: shop}\n\
         spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [192.168.0.0/16]}}]}]}\n",
    )?;
    let found = ask(&["netaudit", "lint", open.to_str().context("a name")?]);
    assert!(found.status == 1 && found.out.contains("NA008"), "{}{}", found.out, found.err);

    let completed = ask(&["__complete", "netaudit", "what"]);
    assert!(completed.out.starts_with("what-if\t") && completed.out.contains(":4"), "{}", completed.out);
    let completed = ask(&["__complete", "netaudit", "flows", "--verd"]);
    assert!(completed.out.contains("--verdict\t"), "{}", completed.out);
    Ok(())
}

#[test]
fn every_shell_gets_a_script_and_every_command_a_page() -> Result<()> {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(netaudit().args(["completions", shell]));
        assert!(script.status == 0 && script.out.contains("what-if"), "{shell}: {}", script.err);
    }
    // bash reads its own, and knows the command then.
    let script = run(netaudit().args(["completions", "bash"])).out;
    let known = Command::new("bash")
        .args(["--norc", "-c", "eval \"$1\"; complete -p netaudit; COMP_WORDS=(netaudit tim); COMP_CWORD=1; _netaudit netaudit tim netaudit; echo \"${COMPREPLY[@]}\"", "-", &script])
        .output()?;
    let said = String::from_utf8(known.stdout)? + &String::from_utf8(known.stderr)?;
    ensure!(said.contains("-F _netaudit") && said.trim().ends_with("timeline"), "{said}");
    let wrong = run(netaudit().args(["completions", "csh"]));
    assert!(wrong.status == 2 && wrong.err.contains("csh"), "{}", wrong.err);

    let directory = tempfile::tempdir()?;
    let pages = directory.path().join("man1");
    let ran = run(netaudit().arg("man").arg(&pages));
    assert_eq!((ran.status, &*ran.err), (0, ""));
    let help = run(netaudit().arg("--help")).out;
    let (_, commands) = help.split_once("Commands:\n").context("commands")?;
    // What a command does may go on in the next line, further in.
    let commands = commands.lines().take_while(|line| !line.is_empty());
    let is_command =
        |line: &&str| line.starts_with("  ") && !line.starts_with("   ") && !line.starts_with("  help ");
    let commands = commands.filter(is_command);
    for name in commands.filter_map(|line| line.split_whitespace().next()) {
        let page = fs::read_to_string(pages.join(format!("netaudit-{name}.1")));
        let page = page.with_context(|| format!("a page for {name}"))?;
        ensure!(page.contains(".TH") && page.contains("SYNOPSIS"), "{name}: {page}");
    }
    let blocked = directory.path().join("file");
    fs::write(&blocked, "")?;
    let ran = run(netaudit().arg("man").arg(&blocked));
    assert!(ran.status == 2 && ran.err.contains("cannot make"), "{}", ran.err);
    Ok(())
}
