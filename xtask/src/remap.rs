//! What keeps this machine's paths out of what the compiler writes, so that it writes the same everywhere.
//!
//! Panics name source files, and so do debug information and the type information of the eBPF programs. Cargo's own
//! `trim-paths` is not stable yet; this says the same to the compiler.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// Where sources lie, as far as anybody sees it.
const WORKSPACE: &str = "/netaudit";
const CARGO: &str = "/cargo";

/// The compiler's flags for a build in `root` by `rustc`.
pub fn flags(root: &Path, rustc: impl Fn() -> Command) -> Result<Vec<String>> {
    let mut pairs = vec![(path(root)?, WORKSPACE.to_owned()), (path(&cargo_home()?)?, CARGO.to_owned())];
    // The standard library's own sources: where they are installed, the compiler would name them there.
    let sysroot = output(rustc().args(["--print", "sysroot"]))?;
    let version = output(rustc().arg("-vV"))?;
    if let Some(commit) = version.lines().find_map(|line| line.strip_prefix("commit-hash: ")) {
        pairs.push((format!("{sysroot}/lib/rustlib/src/rust"), format!("/rustc/{commit}")));
    }
    Ok(pairs.into_iter().map(|(from, to)| format!("--remap-path-prefix={from}={to}")).collect())
}

/// Cargo's directory, where it keeps the sources of dependencies.
pub fn cargo_home() -> Result<PathBuf> {
    let named = env::var_os("CARGO_HOME").map(PathBuf::from);
    named
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
        .context("neither CARGO_HOME nor HOME says where cargo keeps its sources")
}

/// What a command prints, without the last newline.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {:?}", command.get_program()))?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// A path as a flag can hold it.
fn path(path: &Path) -> Result<String> {
    path.to_str()
        .filter(|text| !text.contains('='))
        .map(str::to_owned)
        .with_context(|| format!("the compiler cannot be told of the path {}", path.display()))
}
