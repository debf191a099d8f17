//! The alerts that we ship: promtool accepts them and tries each, and each has a runbook that says how to silence it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use netaudit::{
    audit::{Finding, FlowSeverity, UnenforcedCause, ViolationKey},
    model::{Direction, Protocol},
};
use serde_json::Value;

use crate::deploy::{deploy, documents};

/// Whether these programs are here. Says so where not, and fails instead where they must be.
pub fn programs_or_skip(test: &str, programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let missing: Vec<&str> = programs
        .iter()
        .copied()
        .filter(|program| !std::env::split_paths(&path).any(|directory| directory.join(program).is_file()))
        .collect();
    if missing.is_empty() {
        return true;
    }
    let missing = format!("no {} (cargo xtask setup installs it)", missing.join(" and no "));
    assert!(std::env::var_os("NETAUDIT_REQUIRE_PROGRAMS").is_none(), "{test} cannot run: {missing}");
    eprintln!("SKIPPED {test}: {missing}");
    false
}

/// A program below the target directory, where it is there. Says so where not, and fails instead where it must be.
pub fn tool_or_skip(test: &str, program: &str, called: &str) -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    let program = target.join("tools/bin").join(program);
    if program.exists() {
        return Some(program);
    }
    let missing = format!("no {called} (cargo xtask setup installs it)");
    assert!(std::env::var_os("NETAUDIT_REQUIRE_PROGRAMS").is_none(), "{test} cannot run: {missing}");
    eprintln!("SKIPPED {test}: {missing}");
    None
}

/// The rules for `rule_files`.
pub fn rules_file() -> PathBuf {
    deploy().join("components/alerts/netaudit.rules.yaml")
}

/// Every alerting rule.
pub fn rules() -> Result<Vec<Value>> {
    let groups = documents(&rules_file())?.remove(0)["groups"].take();
    let groups = groups.as_array().context("groups")?;
    Ok(groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten().cloned()).collect())
}

/// The text of an alert's runbook.
pub fn runbook(alert: &str) -> Result<String> {
    let path = deploy().join("runbooks").join(alert).with_extension("md");
    fs::read_to_string(&path).with_context(|| format!("reading {path:?}"))
}

/// The command of a runbook that silences its alert, as a shell takes it.
pub fn silence(runbook: &str) -> Result<&str> {
    let start = runbook.find("$ amtool silence add ").context("no `$ amtool silence add`")? + "$ ".len();
    let end = runbook[start..].find("\n```").context("an end of the block")?;
    Ok(&runbook[start..start + end])
}

fn text<'a>(value: &'a Value, what: &str) -> Result<&'a str> {
    value.as_str().with_context(|| format!("{what} is no text: {value}"))
}

#[test]
fn the_operator_gets_the_same_rules_as_the_rule_file() -> Result<()> {
    let plain = &documents(&rules_file())?[0];
    let object = &documents(&deploy().join("components/alerts/prometheusrule.yaml"))?[0];
    assert_eq!(
        (&object["apiVersion"], &object["kind"]),
        (&"monitoring.coreos.com/v1".into(), &"PrometheusRule".into())
    );
    assert_eq!(object["spec"]["groups"], plain["groups"]);
    let component = &documents(&deploy().join("components/alerts/kustomization.yaml"))?[0];
    assert_eq!(component["resources"], serde_json::json!(["prometheusrule.yaml"]));
    Ok(())
}

#[test]
fn every_alert_says_what_it_is_and_has_a_runbook() -> Result<()> {
    let mut pages = BTreeSet::new();
    let overview = fs::read_to_string(deploy().join("../netaudit/docs/alerts.md"))?;
    for rule in rules()? {
        let alert = text(&rule["alert"], "alert")?;
        assert!(alert.starts_with("Netaudit"), "{alert}");
        let severity = text(&rule["labels"]["severity"], alert)?;
        assert!(["critical", "warning", "info"].contains(&severity), "{alert}: {severity}");
        let notes = &rule["annotations"];
        assert!(!text(&notes["summary"], alert)?.contains("{{"), "{alert}: a summary is the same each time");
        let description = text(&notes["description"], alert)?;
        if text(&rule["expr"], alert)?.contains("netaudit_violation_last_timestamp_seconds") {
            let named = [
                "source_namespace",
                "source_workload",
                "destination_namespace",
                "destination_workload",
                "port",
                "policy",
            ];
            for label in named {
                assert!(description.contains(&format!("$labels.{label} ")), "{alert} does not name {label}");
            }
            assert!(description.contains("$value | humanizeTimestamp"), "{alert} does not say when");
        }
        let row = format!(
            "| [{alert}](../../deploy/runbooks/{alert}.md) | {severity} | {} |",
            text(&notes["summary"], alert)?
        );
        assert!(overview.contains(&row), "netaudit/docs/alerts.md does not have {row}");
        assert_eq!(notes["runbook_url"], format!("deploy/runbooks/{alert}.md"));
        let page = runbook(alert)?;
        assert!(
            page.starts_with(&format!("# {alert}\n\nSeverity: {severity}. ")),
            "{alert}: title and severity"
        );
        for part in
            ["\n## What it means\n", "\n## What to look at\n", "\n## What to run\n", "\n## Silence it"]
        {
            assert!(page.contains(part), "{alert}'s runbook has no {part:?}");
        }
        let silence = silence(&page).with_context(|| alert.to_owned())?;
        for part in [&format!("alertname={alert}"), "--author=", "--comment=", "--duration="] {
            assert!(silence.contains(part), "{alert}: no {part} in {silence}");
        }
        pages.insert(format!("{alert}.md"));
    }
    let files: std::io::Result<BTreeSet<String>> = fs::read_dir(deploy().join("runbooks"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect();
    assert_eq!(files?, pages, "each page is an alert's");
    Ok(())
}

/// Blocks of PromQL in a runbook.
pub fn queries(runbook: &str) -> Vec<&str> {
    runbook.split("```promql\n").skip(1).filter_map(|rest| Some(rest.split_once("\n```")?.0)).collect()
}

#[test]
fn an_alert_weighs_what_the_command_line_says() -> Result<()> {
    let mut alerts = vec![
        ("NetauditUnenforced", Finding::Unenforced, None, false),
        ("NetauditDeniedRefused", Finding::DeniedRefused, None, false),
        ("NetauditBlocked", Finding::Blocked, None, false),
        ("NetauditAttempted", Finding::Attempted, None, false),
        ("NetauditSuspectedBlock", Finding::SuspectedBlock, None, false),
        ("NetauditAccepted", Finding::Unenforced, None, true),
    ];
    let rules = rules()?;
    // Each cause is in the words of just one of the three, which for the first of them are those of the others.
    let causes = fs::read_to_string(deploy().join("../netaudit/docs/findings.md"))?;
    for cause in UnenforcedCause::ALL {
        let words = cause.as_str();
        let names = |alert: &&str| -> Result<bool> {
            let rule = rules.iter().find(|rule| rule["alert"] == **alert).context("an alert")?;
            let expression = text(&rule["expr"], alert)?;
            let (_, listed) = expression.split_once("~\"").context("causes")?;
            Ok(listed.split('"').next().context("an end")?.split('|').any(|listed| listed == words))
        };
        let own: Vec<&str> = ["NetauditUnenforcedBriefly", "NetauditUnenforcedOlder"]
            .into_iter()
            .filter(|alert| names(alert).unwrap_or_default())
            .collect();
        assert!(own.len() <= 1, "{words}: {own:?}");
        assert_eq!(names(&"NetauditUnenforced")?, !own.is_empty(), "{words} is told twice, or by nobody");
        let alert = own.first().copied().unwrap_or("NetauditUnenforced");
        alerts.push((alert, Finding::Unenforced, Some(cause), false));
        assert!(causes.contains(&format!("\n| `{words}` | ")), "findings.md does not say what {words} means");
    }
    for (alert, finding, cause, accepted) in alerts {
        let key = ViolationKey {
            direction: Direction::Egress,
            source_namespace: "shop".into(),
            source_workload: "web".into(),
            destination_namespace: "shop".into(),
            destination_workload: "db".into(),
            protocol: Protocol::Tcp,
            port: Some(5432),
            finding,
            cause,
            policy: None,
            accepted: accepted.then(|| "known".into()),
        };
        let rule = rules.iter().find(|rule| rule["alert"] == alert).with_context(|| alert.to_owned())?;
        assert_eq!(rule["labels"]["severity"], FlowSeverity::of(&key).as_str(), "{alert}");
    }
    Ok(())
}

#[test]
fn links_of_the_runbooks_lead_somewhere() -> Result<()> {
    let directory = deploy().join("runbooks");
    for rule in rules()? {
        let alert = text(&rule["alert"], "alert")?;
        for rest in runbook(alert)?.split("](").skip(1) {
            let link = rest.split(')').next().unwrap_or_default();
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let page =
                fs::read_to_string(directory.join(path)).with_context(|| format!("{alert}: {link}"))?;
            let mut titles = page.lines().filter(|line| line.starts_with('#'));
            let leads = |title: &str| {
                title
                    .trim_start_matches(['#', ' '])
                    .to_lowercase()
                    .replace(['`', ':', ','], "")
                    .replace(' ', "-")
                    == anchor
            };
            assert!(anchor.is_empty() || titles.any(leads), "{alert}: no such title: {link}");
        }
    }
    Ok(())
}

#[test]
fn the_rules_look_for_the_job_that_the_pod_monitor_makes() -> Result<()> {
    let monitor = &documents(&deploy().join("components/podmonitor/podmonitor.yaml"))?[0];
    let part = |key: &str| text(&monitor["metadata"][key], key);
    // The operator names the job by the monitor; promtool's cases of NetauditAgentDown have this one.
    let job = format!("{}/{}", part("namespace")?, part("name")?);
    let cases = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/alerts/agent.yaml"))?;
    assert!(cases.contains(&format!("series: 'up{{instance=\"worker-1\", job=\"{job}\"}}'")), "{job}");
    Ok(())
}

/// Files of cases for promtool.
fn cases() -> Result<Vec<PathBuf>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/alerts");
    fs::read_dir(&directory)?.map(|entry| Ok(entry?.path())).collect()
}

#[test]
fn every_alert_is_tried_firing_and_not() -> Result<()> {
    let (mut firing, mut silent) = (BTreeSet::new(), BTreeSet::new());
    for file in cases()? {
        let document = documents(&file)?.remove(0);
        for test in document["tests"].as_array().context("tests")? {
            for check in test["alert_rule_test"].as_array().context("checks")? {
                let alerts = check["exp_alerts"].as_array().context("exp_alerts")?;
                let of = if alerts.is_empty() { &mut silent } else { &mut firing };
                of.insert(text(&check["alertname"], "alertname")?.to_owned());
            }
        }
    }
    let all: BTreeSet<String> =
        rules()?.iter().map(|rule| Ok(text(&rule["alert"], "alert")?.to_owned())).collect::<Result<_>>()?;
    assert_eq!((&firing, &silent), (&all, &all));
    Ok(())
}

#[test]
fn promtool_accepts_the_rules_and_their_cases() -> Result<()> {
    if !programs_or_skip("the alerts' cases", &["promtool"]) {
        return Ok(());
    }
    promtool(&["check", "rules", "--lint=all", "--lint-fatal"], &[rules_file()])?;
    promtool(&["test", "rules"], &cases()?)
}

fn promtool(arguments: &[&str], files: &[PathBuf]) -> Result<()> {
    let output =
        Command::new("promtool").args(arguments).args(files).output().context("starting promtool")?;
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    Ok(())
}
