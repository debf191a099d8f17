//! What `netaudit tighten` makes of the demo's policies: the rule that nobody used goes, the range that is planted too wide gets narrow,
//! and nothing else changes.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{EIGHTH, UNUSED, world::World};
use crate::lab::{Launch, Place};

/// The policy that gets the wide range.
const BACKEND: &str = "20-backend-policy.yaml";

/// Its rule: one host is asked, and a whole private range is open.
const WIDE: &str = "    # The licence server of the company's network.
    - to:
        - ipBlock:
            cidr: 172.31.0.0/16
      ports:
        - protocol: TCP
          port: 80
";

/// The demo lasts no longer; a cluster's window is days.
const WINDOW: &str = "3s";
const LIMIT: Duration = Duration::from_secs(120);

/// What the agent is to keep.
pub struct Kept {
    usage: String,
    flows: String,
}

impl Kept {
    /// Below the world's directory.
    pub fn in_world(world: &World) -> Self {
        let below = |name: &str| world.lab.directory().join(name).display().to_string();
        Self { usage: below("usage"), flows: below("flow-store") }
    }

    /// The agent's arguments for it.
    pub fn arguments(&self) -> [&str; 4] {
        ["--state-directory", &self.usage, "--flow-store", &self.flows]
    }
}

/// Adds the wide rule to the backend's policy of the world.
pub fn plant(world: &World, policies: &Path) -> Result<()> {
    world.lab.write_manifest(BACKEND, &(read(&policies.join(BACKEND))? + WIDE))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// Asks for what can be taken out, prints the difference, and has both proofs shown again; what is otherwise than expected.
pub fn compare(world: &World, program: &Path, kept: &Kept, policies: &Path) -> Result<Vec<String>> {
    let place = world.lab.host_place("netaudit")?;
    let [before, after] = ["policies-before", "policies-after"].map(|it| world.lab.directory().join(it));
    copy(policies, &[&before, &after])?;
    let mut arguments =
        vec!["tighten", "--window", WINDOW, "--usage", &kept.usage, "--flow-store", &kept.flows];
    let text = after.display().to_string();
    arguments.extend(["-f", &text, "--write", "--output"]);
    let (status, told) = run(program, &place, &[arguments.as_slice(), &["json"]].concat())?;
    let answer: Value = serde_json::from_str(&told).with_context(|| format!("no JSON: {told}"))?;
    ensure!(status == Some(1), "netaudit tighten ended with {status:?}: {answer:#}");
    let mut found = Vec::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for policy in answer["policies"].as_array().into_iter().flatten() {
        for change in policy["changes"].as_array().into_iter().flatten() {
            let (name, path) = (text(&policy["name"]), text(&change["path"]));
            found.push(format!("batchivo/{name} {path}: {}", text(&change["change"])));
        }
        print!("{}", text(&policy["difference"]));
    }
    let wide = "batchivo/backend-policy egress[4].to[0]: narrow to 172.31.0.30/32".to_owned();
    let expected = [wide, format!("{UNUSED}: remove")];
    let mut differences = Vec::new();
    if found != expected {
        differences.push(format!("netaudit tighten: expected {expected:?}, got {found:?}: {answer:#}"));
    }
    if answer["replay"]["complete"] != true {
        differences.push(format!("netaudit tighten: the replay is incomplete: {}", answer["replay"]));
    }
    let [old, new] = [&before, &after].map(|it| it.display().to_string());
    let arguments =
        ["verify-tighten", "--before", &old, "-f", &new, "--flow-store", &kept.flows, "--require-complete"];
    let (status, told) = run(program, &place, &arguments)?;
    println!("{told}");
    if status != Some(0) {
        differences.push(format!("netaudit verify-tighten ended with {status:?}"));
    }
    Ok(differences)
}

/// The eight policies as the agent had them.
fn copy(policies: &Path, into: &[&PathBuf]) -> Result<()> {
    for directory in into {
        fs::create_dir_all(directory)?;
    }
    for entry in fs::read_dir(policies).with_context(|| format!("reading {}", policies.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if !(name.ends_with("-policy.yaml") || name.starts_with('0') || name == EIGHTH) {
            continue;
        }
        let text = read(&path)? + if name == BACKEND { WIDE } else { "" };
        for directory in into {
            fs::write(directory.join(&name), &text)?;
        }
    }
    Ok(())
}

fn run(program: &Path, place: &Place, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let output = Launch::new(program, arguments.iter().copied()).run(place, LIMIT)?;
    let said = String::from_utf8_lossy(&output.stderr);
    said.lines().for_each(|line| println!("{line}"));
    Ok((output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned()))
}
