//! The use of rules: asked of an agent, stored, found again by the next run, and rebuilt where the store was damaged.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::harness::{LISTEN, NETAUDIT, PATIENCE, World, kernel_or_skip, of};
use crate::lab::Launch;

const POLICY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: rules, namespace: shop}
spec:
  podSelector: {matchLabels: {app: server}}
  policyTypes: [Ingress]
  ingress:
  - {from: [{podSelector: {matchLabels: {app: client}}}, {ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: 8080}]}
  - {ports: [{port: 81}]}
";

struct Stored {
    world: World,
    directory: PathBuf,
}

impl Stored {
    fn launch(&self) -> Launch {
        let mut arguments = self.world.arguments();
        arguments.extend(["--state-directory".to_owned(), self.directory.display().to_string()]);
        Launch::new(NETAUDIT, arguments)
    }

    /// Exit status and answer of `netaudit usage` about this source.
    fn usage(&self, source: &str, window: &str) -> Result<(Option<i32>, Value)> {
        let arguments = ["usage", source, "--window", window, "--output", "json"];
        let output = Launch::new(NETAUDIT, arguments).run(&self.world.agent_place()?, PATIENCE)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        let answer = serde_json::from_slice(&output.stdout).with_context(|| errors.into_owned())?;
        Ok((output.status.code(), answer))
    }

    fn stored(&self) -> String {
        self.directory.display().to_string()
    }

    fn connect(&self, times: usize, in_all: usize) -> Result<()> {
        self.world.connect(times)?;
        let told = |flows: &[Value]| of(flows, "ingress").len() == in_all;
        self.world.wait_for_flows("accepted flows", told).map(drop)
    }
}

#[test]
fn what_is_known_of_rules_is_asked_stored_and_found_again() -> Result<()> {
    if !kernel_or_skip("usage") {
        return Ok(());
    }
    let world = World::new("usage")?;
    world.lab.write_manifest("policy.yaml", POLICY)?;
    let _server = world.serve()?;
    let directory = world.lab.directory().join("state");
    let it = Stored { world, directory };
    let mut agent = it.world.agent_by(&it.launch())?;
    it.connect(2, 2)?;

    let agent_url = format!("http://{LISTEN}");
    let (status, answer) = it.usage(&agent_url, "7d")?;
    let (used, unused) = (&answer["rules"][0], &answer["rules"][1]);
    assert_eq!(
        (status, &used["finding"], &used["matches"]),
        (Some(0), &"used".into(), &2.into()),
        "{answer:#}"
    );
    assert_eq!((&unused["finding"], &unused["missing"]), (&"insufficient evidence".into(), &"window".into()));
    assert!(unused["enough_at"].is_string(), "{unused:#}");
    let matches: Vec<(&str, u64)> = used["elements"]
        .as_array()
        .context("elements")?
        .iter()
        .filter_map(|element| Some((element["path"].as_str()?, element["matches"].as_u64()?)))
        .collect();
    assert_eq!(matches, [("from[0]", 2), ("from[1]", 0), ("ports[0]", 2)]);

    // A second is soon over.
    std::thread::sleep(Duration::from_secs(2));
    let (status, answer) = it.usage(&agent_url, "1s")?;
    assert_eq!((status, &answer["rules"][1]["finding"]), (Some(1), &"unused".into()), "{answer:#}");

    agent.terminate(Duration::from_secs(2))?;
    let (_, answer) = it.usage(&it.stored(), "7d")?;
    assert_eq!(answer["rules"][0]["matches"], 2, "{answer:#}");

    let mut agent = it.world.agent_by(&it.launch())?;
    let first =
        "netaudit_rule_matches_total{kind=\"NetworkPolicy\",namespace=\"shop\",networkpolicy=\"rules\"";
    assert_eq!(it.world.metric_sum(first)?, 2.0, "of the run before");
    it.connect(1, 3)?;
    let (_, answer) = it.usage(&agent_url, "7d")?;
    assert_eq!(answer["rules"][0]["matches"], 3, "{answer:#}");
    let arguments = ["usage", &agent_url, &it.stored(), "--output", "json"];
    let both = Launch::new(NETAUDIT, arguments).run(&it.world.agent_place()?, PATIENCE)?;
    let both: Value = serde_json::from_slice(&both.stdout)?;
    assert_eq!(both["rules"][0]["matches"], 3, "the same rows from two places count once");
    agent.terminate(Duration::from_secs(2))?;

    for file in fs::read_dir(&it.directory)? {
        let path = file?.path();
        let text = fs::read(&path)?;
        fs::write(&path, &text[..text.len() - 9])?;
    }
    let mut agent = it.world.agent_by(&it.launch())?;
    assert!(it.world.metric_sum("netaudit_usage_store_faults_total{fault=\"damaged\"")? >= 2.0);
    assert!(agent.log_tail().contains(".damaged-1"), "{}", agent.log_tail());
    assert_eq!(it.world.metric_sum(first)?, 0.0, "rebuilt from nothing");
    agent.terminate(Duration::from_secs(2))
}

#[test]
fn a_state_directory_that_cannot_be_made_is_named() -> Result<()> {
    if !kernel_or_skip("state directory") {
        return Ok(());
    }
    let world = World::new("state-dir")?;
    let launch = world.shell("exec \"$@\" --state-directory /proc/none");
    let output = launch.run(&world.agent_place()?, PATIENCE)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("/proc/none") && errors.contains("--state-directory"), "{errors}");
    Ok(())
}
