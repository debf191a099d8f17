//! Running commands, with what they say on the terminal.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

/// A command in `directory`.
pub fn command<A: AsRef<std::ffi::OsStr>>(
    directory: &Path,
    program: &str,
    arguments: impl IntoIterator<Item = A>,
) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory);
    command
}

/// Cargo, the one that runs this task, in the workspace.
pub fn cargo<A: AsRef<std::ffi::OsStr>>(root: &Path, arguments: impl IntoIterator<Item = A>) -> Command {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    command(root, &cargo, arguments)
}

/// Says the command, runs it, and fails if it does.
pub fn run(command: &mut Command) -> Result<()> {
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    // The full path of a program says nothing here.
    let program = words[0].rsplit('/').next().unwrap_or(&words[0]);
    println!("$ {program} {}", words[1..].join(" "));
    let status = command.status().with_context(|| format!("starting {program}"))?;
    ensure!(status.success(), "{program} {} failed: {status}", words[1..].join(" "));
    Ok(())
}

/// Where `PATH` finds `program`.
pub fn on_path(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Runs it without a word unless it fails.
pub fn quiet(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("starting {program}"))?;
    ensure!(
        output.status.success(),
        "{program} failed with {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
