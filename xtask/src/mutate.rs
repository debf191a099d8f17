//! `cargo xtask fuzz mutants`: errors in the text of the evaluator of policies, which the comparison with the plain one has to
//! find.
//!
//! Each error is one operator turned into its neighbour, on one line of a copy of the workspace. One that no test notices is
//! printed: either the line can do without, or the comparison never gets there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    process::{cargo, command},
    tools::target,
};

/// What is turned into what. Spaces keep generics and references out.
const TURNS: [(&str, &str); 14] = [
    (" == ", " != "),
    (" != ", " == "),
    (" && ", " || "),
    (" || ", " && "),
    (" <= ", " < "),
    (" >= ", " > "),
    (" < ", " <= "),
    (" > ", " >= "),
    (" + 1", ""),
    (" - 1", ""),
    ("if !", "if "),
    (".any(", ".all("),
    (".all(", ".any("),
    (".is_none_or(", ".is_some_and("),
];
/// A mutant that loops for ever is found too.
const PATIENCE: Duration = Duration::from_secs(120);

/// An error to plant.
struct Mutant {
    file: PathBuf,
    /// From 0.
    line: usize,
    from: &'static str,
    to: &'static str,
}

enum Fate {
    Killed,
    Survived,
    DoesNotCompile,
}

/// Plants `count` errors, spread evenly over all that can be, one after the other.
pub fn mutate(root: &Path, count: usize) -> Result<()> {
    let copy = target(root).join("mutants");
    let tree = copy.join("tree");
    copy_tree(root, &tree)?;
    let mutants = candidates(&tree)?;
    ensure!(!mutants.is_empty(), "nothing to turn in netaudit/src/policy");
    println!("mutants: {} places, {count} are tried", mutants.len());
    let unharmed = matches!(test(&tree, &copy)?, Fate::Survived);
    ensure!(unharmed, "the tests fail without an error planted");
    let (mut killed, mut survived, mut invalid) = (0, 0, 0);
    let step = (mutants.len() / count.max(1)).max(1);
    for mutant in mutants.iter().step_by(step).take(count) {
        let path = tree.join(&mutant.file);
        let text = fs::read_to_string(&path)?;
        fs::write(&path, planted(&text, mutant))?;
        let fate = test(&tree, &copy);
        fs::write(&path, &text)?;
        let what = match fate? {
            Fate::Killed => {
                killed += 1;
                "killed"
            }
            Fate::Survived => {
                survived += 1;
                "SURVIVED"
            }
            Fate::DoesNotCompile => {
                invalid += 1;
                "does not compile"
            }
        };
        let line = text.lines().nth(mutant.line).unwrap_or_default().trim();
        let (file, number) = (mutant.file.display(), mutant.line + 1);
        println!("mutants: {what}: {file}:{number}: {:?} to {:?}: {line}", mutant.from, mutant.to);
    }
    println!("mutants: {killed} killed, {survived} survived, {invalid} do not compile");
    ensure!(killed > 0, "no planted error was found");
    Ok(())
}

/// The tracked files as they are now.
fn copy_tree(root: &Path, tree: &Path) -> Result<()> {
    let files = command(root, "git", ["ls-files", "-z"]).output()?;
    for name in String::from_utf8_lossy(&files.stdout).split_terminator('\0') {
        let (from, to) = (root.join(name), tree.join(name));
        // A file that git still lists may have been removed, and one that has not changed need not be built again.
        let Ok(content) = fs::read(&from) else { continue };
        if fs::read(&to).is_ok_and(|there| there == content) {
            continue;
        }
        fs::create_dir_all(to.parent().unwrap_or(tree))?;
        fs::write(&to, content).with_context(|| format!("copying {name}"))?;
    }
    Ok(())
}

fn candidates(tree: &Path) -> Result<Vec<Mutant>> {
    let mut files = Vec::new();
    collect(&tree.join("netaudit/src/policy"), &mut files)?;
    files.sort();
    let mut mutants = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path)?;
        let file = path.strip_prefix(tree).unwrap_or(&path).to_owned();
        for (line, content) in text.lines().enumerate() {
            if content == "#[cfg(test)]" {
                break;
            }
            if content.trim_start().starts_with("//") {
                continue;
            }
            let turns = TURNS.iter().filter(|(from, _)| content.contains(from));
            mutants.extend(turns.map(|(from, to)| Mutant { file: file.clone(), line, from, to }));
        }
    }
    Ok(mutants)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|it| it == "rs") && !path.ends_with("tests.rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn planted(text: &str, mutant: &Mutant) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines[mutant.line] = lines[mutant.line].replacen(mutant.from, mutant.to, 1);
    lines.join("\n") + "\n"
}

/// Builds the tests of the copy, in a folder of its own, and runs the comparison.
fn test(tree: &Path, copy: &Path) -> Result<Fate> {
    let mut build =
        cargo(tree, ["test", "--locked", "--quiet", "-p", "netaudit", "--test", "tests", "--no-run"]);
    build.env("CARGO_TARGET_DIR", copy.join("build")).stderr(Stdio::null());
    if !build.status()?.success() {
        return Ok(Fate::DoesNotCompile);
    }
    let seconds = PATIENCE.as_secs().to_string();
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut run = command(tree, "timeout", [seconds.as_str(), &cargo, "test", "--locked", "--quiet"]);
    run.args(["-p", "netaudit", "--test", "tests", "--", "policy::fuzz::"]);
    run.env("CARGO_TARGET_DIR", copy.join("build")).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(if run.status()?.success() { Fate::Survived } else { Fate::Killed })
}
