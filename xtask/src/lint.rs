//! `cargo xtask lint`: every check that needs no root, all of them before it fails.

use std::{fs, path::Path};

use anyhow::{Result, bail, ensure};

use crate::{
    build_ebpf::clippy_ebpf,
    dashboards,
    process::{cargo, command, run},
    setup::{CARGO_DENY, install_crate},
};

/// No file of ours is longer.
const MAX_LINES: usize = 600;

/// Runs every check and names all that failed.
pub fn lint(root: &Path) -> Result<()> {
    let warnings =
        |variable: &str, arguments: &[&str]| run(cargo(root, arguments).env(variable, "-D warnings"));
    let checks: [(&str, Result<()>); 7] = [
        ("format", run(&mut cargo(root, ["fmt", "--all", "--check"]))),
        (
            "clippy",
            run(&mut cargo(
                root,
                ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
            )),
        ),
        ("clippy of the eBPF programs", clippy_ebpf(root)),
        (
            "documentation",
            warnings(
                "RUSTDOCFLAGS",
                &["doc", "--workspace", "--no-deps", "--locked", "--document-private-items"],
            ),
        ),
        ("licences, bans and sources", deny(root)),
        ("dashboards", dashboards::check(root)),
        ("file length", file_lengths(root)),
    ];
    let mut failed = Vec::new();
    for (name, result) in checks {
        match result {
            Ok(()) => println!("lint: {name}: ok"),
            Err(error) => {
                println!("lint: {name}: {error:#}");
                failed.push(name);
            }
        }
    }
    ensure!(failed.is_empty(), "lint failed: {}", failed.join(", "));
    Ok(())
}

fn deny(root: &Path) -> Result<()> {
    let (name, version) = CARGO_DENY;
    install_crate(root, name, version)?;
    // It reads the licence of every package, of those for other systems too, which no build has fetched.
    run(&mut cargo(root, ["fetch", "--locked"]))?;
    run(&mut cargo(root, ["deny", "--offline", "--locked", "check", "licenses", "bans", "sources"]))
}

fn file_lengths(root: &Path) -> Result<()> {
    let files =
        command(root, "git", ["ls-files", "-z", "*.rs", "*.md", "*.yaml", "*.py", "*.json"]).output()?;
    let mut long = Vec::new();
    for name in String::from_utf8_lossy(&files.stdout).split_terminator('\0') {
        // A file that git still lists may have been removed from the tree.
        let Ok(text) = fs::read_to_string(root.join(name)) else { continue };
        let lines = text.lines().count();
        if lines > MAX_LINES {
            long.push(format!("{name} has {lines}"));
        }
    }
    if !long.is_empty() {
        bail!("more than {MAX_LINES} lines: {}", long.join(", "));
    }
    Ok(())
}
