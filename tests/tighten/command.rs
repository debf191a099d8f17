//! The command on a store and on usage that an agent wrote.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use netaudit::{
    audit::usage::{Run as AgentRun, Uses},
    cluster::Kind,
    model::Direction,
    store::document,
};
use serde_json::{Value, json};

use crate::{
    command::{Run, netaudit, run},
    what_if::{Agent, begin, named, t},
};

/// Who lives in the shop: of db web may ask, and api and old, who never do.
pub(super) const DB: &str = "\
# The database.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: db
  namespace: shop
spec:
  podSelector:
    matchLabels: {app: db}
  ingress:
    # The shop.
    - from:
        - podSelector: {matchLabels: {app: web}}
        # It is said to be gone.
        - podSelector: {matchLabels: {app: old}}
      ports:
        - port: 5432
          endPort: 5500
    # Reports.
    - from:
        - podSelector: {matchLabels: {app: api}}
  egress:
    - to:
        - ipBlock:
            cidr: 10.8.0.0/16
      ports: [{port: 443}]
";

/// A store, usage and policies.
pub(super) struct Scene {
    directory: tempfile::TempDir,
}

impl Scene {
    /// The agent knows DB and watches for two hours; `act` makes the traffic.
    pub fn new(policy: &str, act: impl FnOnce(&mut Agent)) -> Result<Self> {
        let scene = Self { directory: tempfile::tempdir()? };
        fs::create_dir(scene.policies())?;
        fs::write(scene.policies().join("db.yaml"), policy)?;
        let mut agent = Agent::new(&scene.path("store"), "run-a")?;
        begin(&mut agent);
        let value: Value = serde_saphyr::from_str(policy)?;
        agent.apply(&value, 1);
        agent.auditor.cluster_mut().reset(Kind::CronJob, Vec::new(), t(1));
        agent.auditor.watch_rules(t(2));
        act(&mut agent);
        agent.auditor.tick(t(END), &mut Vec::new());
        let usage = agent.auditor.usage_mut();
        let mut rows = usage.rows();
        usage.take_closed().into_iter().for_each(|it| rows.merge(it));
        let line = t(-1_000).0;
        let run = AgentRun {
            written: t(END),
            from: t(2),
            sequence: 1,
            boot: "boot".into(),
            line,
            wall: line,
            ended: false,
            losses: 0,
        };
        let key = usage.run().clone();
        rows.add_run(key, run);
        fs::write(scene.path("usage.jsonl"), document::write(&rows))?;
        agent.finish(END);
        Ok(scene)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn policies(&self) -> PathBuf {
        self.path("policies")
    }

    pub fn tighten(&self, more: &[&str]) -> Run {
        let mut command = netaudit();
        command.arg("tighten").arg("-f").arg(self.policies()).arg("--usage").arg(self.path("usage.jsonl"));
        command.arg("--flow-store").arg(self.path("store"));
        if !more.contains(&"--window") {
            command.args(["--window", "1h"]);
        }
        run(command.args(more))
    }

    fn json(&self, more: &[&str]) -> Result<(Value, Run)> {
        let ran = self.tighten(&[&["--output", "json"], more].concat());
        let value = serde_json::from_str(&ran.out).with_context(|| ran.err.clone())?;
        Ok((value, ran))
    }

    fn verify(&self, before: &Path, more: &[&str]) -> Run {
        let mut command = netaudit();
        command.arg("verify-tighten").arg("--before").arg(before).arg("-f").arg(self.policies());
        run(command.arg("--flow-store").arg(self.path("store")).args(more))
    }
}

/// When all was told, in seconds.
const END: i64 = 7_200;

/// What is done, as `path: change`.
fn changes(told: &Value) -> Vec<String> {
    said(&told["policies"][0]["changes"], "change")
}

fn said(list: &Value, word: &str) -> Vec<String> {
    let line =
        |it: &Value| format!("{}: {}", it["path"].as_str().unwrap_or(""), it[word].as_str().unwrap_or(""));
    list.as_array().into_iter().flatten().map(line).collect()
}

/// What web and db need.
pub(super) fn usual(agent: &mut Agent) {
    for n in 0..5 {
        agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.1", 100 + n * 40);
    }
    agent.connects("uid-0", "10.0.0.2", "10.8.3.4:443", 1_000);
}

pub(super) const TIGHT: &str = "\
# The database.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: db
  namespace: shop
spec:
  podSelector:
    matchLabels: {app: db}
  policyTypes:
    - Ingress
    - Egress
  ingress:
    # The shop.
    - from:
        - podSelector: {matchLabels: {app: web}}
      ports:
        - port: 5432
  egress:
    - to:
        - ipBlock:
            cidr: 10.8.3.4/32
      ports: [{port: 443}]
";

#[test]
fn what_nobody_uses_goes_and_the_rest_stays_as_it_is_written() -> Result<()> {
    let scene = Scene::new(DB, usual)?;
    let (told, ran) = scene.json(&[])?;
    assert_eq!(ran.status, 1, "{}", ran.err);
    assert_eq!(
        changes(&told),
        [
            "egress[0].to[0]: narrow to 10.8.3.4/32",
            "ingress[0].from[1]: remove",
            "ingress[0].ports[0]: narrow to 5432",
            "ingress[1]: remove",
            "policyTypes: write Ingress, Egress",
        ],
        "{told:#}"
    );
    let policy = &told["policies"][0];
    assert_eq!(policy["containment"], json!({"shown": "by-elements"}));
    let (rule, replay) = (&policy["rules"][1], &told["replay"]);
    assert_eq!(
        (&rule["path"], &rule["coverage"], &rule["matches"]),
        (&json!("ingress[0]"), &json!(1.0), &json!(5))
    );
    let needed = &rule["elements"][0]["needed_by"][0];
    assert_eq!(
        (&needed["source"], &needed["destination"], &needed["flows"], &needed["example"]),
        (&json!("shop/web"), &json!("shop/db"), &json!(5), &json!("run-a-5"))
    );
    assert_eq!(
        (&replay["flows"], &replay["complete"], &replay["denied"]),
        (&json!(6), &json!(true), &json!([]))
    );
    assert!(policy["changes"][1]["unused_since"].is_string());
    assert_eq!(
        fs::read_to_string(scene.policies().join("db.yaml"))?,
        DB,
        "nothing is changed unless that is asked for"
    );

    // The difference alone is one that tools apply.
    let ran = scene.tighten(&["--output", "diff"]);
    assert!(ran.err.contains("replay: none of 6 flows"), "{}", ran.err);
    let copy = scene.path("copy");
    fs::create_dir(&copy)?;
    fs::write(copy.join("db.yaml"), DB)?;
    fs::write(scene.path("a.diff"), &ran.out)?;
    let depth =
        ran.out.lines().find_map(|it| it.strip_prefix("+++ ")).context("a name")?.matches('/').count();
    let applied = std::process::Command::new("patch")
        .arg(format!("-p{depth}"))
        .arg("-i")
        .arg(scene.path("a.diff"))
        .current_dir(&copy)
        .output()?;
    assert!(applied.status.success(), "{applied:?}");
    assert_eq!(fs::read_to_string(copy.join("db.yaml"))?, TIGHT);

    let ran = scene.tighten(&["--write"]);
    assert_eq!(
        (ran.status, fs::read_to_string(scene.policies().join("db.yaml"))?.as_str()),
        (1, TIGHT),
        "{}",
        ran.err
    );
    fs::write(copy.join("db.yaml"), DB)?;
    let ran = scene.verify(&copy, &["--require-complete"]);
    assert_eq!(ran.status, 0, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("NetworkPolicy shop/db: shown: each rule is within an old one"), "{}", ran.out);
    assert!(ran.out.contains(": shown\n"), "{}", ran.out);
    Ok(())
}

#[test]
fn the_report_says_what_goes_what_stays_and_which_flows_need_it() -> Result<()> {
    let scene = Scene::new(DB, usual)?;
    let ran = scene.tighten(&[]);
    for line in [
        "as of 2026-01-01T02:00:00Z, by the 0.04 days before: 5 changes in 1 of 1 policy",
        "  - ingress[1] from app=api on any port: remove",
        "      nobody used it since 2026-01-01T01:00:00Z; 100.00% watched, no record lost",
        "  ingress[0] from app=web or app=old TCP 5432-5500: 5 flows, the last 2026-01-01T00:04:20Z; 100.00% watched since 2026-01-01T00:00:02Z",
        "shop/web → shop/db TCP 5432: 5 recorded, the last 2026-01-01T00:04:20Z (run-a-5)",
        "shop/db → external TCP 443: 1 recorded",
        "replay: none of 6 flows from 2026-01-01T00:01:40Z to 2026-01-01T00:16:40Z that were allowed would be denied",
        "containment: nothing new is allowed: each new rule is within an old one, whatever pods there are",
        "-        # It is said to be gone.",
    ] {
        assert!(ran.out.contains(line), "{line}\n{}", ran.out);
    }
    let ran = scene.tighten(&["--output", "yaml"]);
    assert!(ran.out.contains("least_coverage: 0.999"), "{}", ran.out);
    Ok(())
}

#[test]
fn what_recorded_flows_need_stays_though_usage_has_forgotten_it() -> Result<()> {
    let scene = Scene::new(DB, |agent| {
        usual(agent);
        agent.accepts("uid-0", "10.0.0.2:81", "10.0.0.3", 1_100);
    })?;
    let file = scene.path("usage.jsonl");
    let mut rows = document::read(&fs::read(&file)?)?;
    for (key, row) in &mut rows.rules {
        if key.rule.direction == Direction::Ingress && row.summary.contains("app=api") {
            row.uses = Uses::default();
            row.sole = Uses::default();
            row.elements.values_mut().for_each(|(_, uses)| *uses = Uses::default());
        }
    }
    fs::write(&file, document::write(&rows))?;
    let (told, _) = scene.json(&[])?;
    let kept = said(&told["policies"][0]["rules"], "stays_because");
    let why =
        "ingress[1]: agents call it unused, but 1 recorded flows need it, the last at 2026-01-01T00:18:20Z";
    assert_eq!(kept[2], why, "{told:#}");
    assert!(!changes(&told).iter().any(|it| it.starts_with("ingress[1]")), "{told:#}");
    // What is too long ago may be left out.
    let (told, _) = scene.json(&["--since", "2026-01-01T00:20:00Z"])?;
    assert!(changes(&told).contains(&"ingress[1]: remove".to_owned()), "{told:#}");
    Ok(())
}

#[test]
fn without_evidence_nothing_is_proposed_and_it_is_said_what_is_missing() -> Result<()> {
    let scene = Scene::new(DB, usual)?;
    let (told, ran) = scene.json(&["--window", "30d"])?;
    assert_eq!((ran.status, changes(&told)), (0, vec![]));
    let kept = said(&told["policies"][0]["rules"], "stays_because");
    assert!(
        kept[2].contains("ingress[1]: insufficient evidence: window; enough by 2026-01-31T"),
        "{kept:#?}"
    );
    assert!(kept[1].contains("of its elements: insufficient evidence: window"), "{kept:#?}");
    // A rule that the cluster does not have, or an agent that was not asked.
    fs::write(scene.policies().join("db.yaml"), DB.replace("app: api", "app: apis"))?;
    let (told, _) = scene.json(&[])?;
    let kept = said(&told["policies"][0]["rules"], "stays_because");
    assert!(kept[2].contains("no agent that was asked knows this rule"), "{kept:#?}");
    assert!(changes(&told).contains(&"ingress[0].from[1]: remove".to_owned()));
    Ok(())
}

#[test]
fn ranges_of_pods_and_of_what_is_not_recorded_stay_wide() -> Result<()> {
    let wide = DB.replace("10.8.0.0/16", "10.0.0.0/8");
    let scene = Scene::new(&wide, |agent| {
        usual(agent);
        agent.connects("uid-0", "10.0.0.2", "10.0.0.3:443", 1_100);
    })?;
    let (told, _) = scene.json(&[])?;
    let element = &told["policies"][0]["rules"][0]["elements"][0];
    let why = element["stays_because"].as_str().unwrap_or_default();
    assert!(why.contains("10.0.0.3 is a pod's, a node's or a Service's"), "{told:#}");
    let scene = Scene::new(DB, usual)?;
    let (told, _) = scene.json(&["--keep-ranges"])?;
    assert_eq!(
        changes(&told),
        ["ingress[0].from[1]: remove", "ingress[1]: remove", "policyTypes: write Ingress, Egress"]
    );
    let (told, _) = scene.json(&["--since", "2026-01-01T00:30:00Z"])?;
    let why = told["policies"][0]["rules"][0]["elements"][0]["stays_because"].as_str().unwrap_or_default();
    assert!(why.contains("the flow stores do not tell whose address 10.8.3.4 was"), "{told:#}");
    Ok(())
}

#[test]
fn what_denies_an_observed_flow_or_allows_something_new_is_not_verified() -> Result<()> {
    let scene = Scene::new(DB, usual)?;
    let before = scene.path("before");
    fs::create_dir(&before)?;
    fs::write(before.join("db.yaml"), DB)?;
    let put = |text: &str| fs::write(scene.policies().join("db.yaml"), text);
    put(&DB.replace("app: web", "app: webs"))?;
    let ran = scene.verify(&before, &[]);
    assert_eq!(ran.status, 1, "{}", ran.err);
    assert!(
        ran.out.contains("NOT SHOWN: pods with app=webs in shop to pods with app=db in shop"),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("shop/web → shop/db TCP 5432: 5 flows"), "{}", ran.out);
    assert!(ran.out.contains("would be ingress: isolated by NetworkPolicy/shop/db"), "{}", ran.out);
    // The last egress rule went, and with it the isolation.
    let open = TIGHT.replace("  policyTypes:\n    - Ingress\n    - Egress\n", "");
    let at = open.find("  egress:").context("egress")?;
    put(&open[..at])?;
    let ran = scene.verify(&before, &["--output", "json"]);
    let told: Value = serde_json::from_str(&ran.out)?;
    assert_eq!((ran.status, &told["containment"][0]["is_shown"]), (1, &json!(false)), "{told:#}");
    // Gone altogether, it isolates no more.
    fs::remove_file(scene.policies().join("db.yaml"))?;
    fs::write(
        scene.policies().join("other.yaml"),
        named("x", "x", json!({"policyTypes": ["Ingress"]})).to_string(),
    )?;
    let ran = scene.verify(&before, &[]);
    assert!(ran.status == 1 && ran.out.contains("all policies together: NOT SHOWN"), "{}", ran.out);
    // Written otherwise it says the same.
    fs::remove_file(scene.policies().join("other.yaml"))?;
    let same: Value = serde_saphyr::from_str(DB)?;
    fs::write(scene.policies().join("db.json"), same.to_string())?;
    let ran = scene.verify(&before, &[]);
    assert!(ran.status == 0 && ran.out.contains("no policy differs"), "{}{}", ran.out, ran.err);
    Ok(())
}

#[test]
fn a_patch_a_policy_is_one_that_git_takes() -> Result<()> {
    let scene = Scene::new(DB, usual)?;
    let git = |arguments: &[&str]| {
        let mut command = std::process::Command::new("git");
        command.args(["-c", "user.name=t", "-c", "user.email=t@localhost"]).args(arguments);
        command.current_dir(scene.policies()).env("GIT_CONFIG_NOSYSTEM", "1").output().expect("git runs")
    };
    for arguments in [&["init", "-q"][..], &["add", "."], &["commit", "-qm", "before"]] {
        assert!(git(arguments).status.success());
    }
    let patches = scene.path("patches");
    let ran = scene.tighten(&["--patches", &patches.display().to_string()]);
    assert_eq!(ran.status, 1, "{}", ran.err);
    let patch = patches.join("0001-shop-db.patch").display().to_string();
    let applied = git(&["am", "-q", &patch]);
    assert!(applied.status.success(), "{applied:?}\n{}", fs::read_to_string(&patch)?);
    assert_eq!(fs::read_to_string(scene.policies().join("db.yaml"))?, TIGHT);
    let log = String::from_utf8(git(&["log", "-1", "--format=%an|%ad|%s|%b", "--date=iso"]).stdout)?;
    assert!(
        log.starts_with(
            "netaudit|2026-01-01 02:00:00 +0000|shop/db: allow only what is used|- egress[0].to[0]"
        ),
        "{log}"
    );
    let revision = run(netaudit()
        .args(["verify-tighten", "--before-revision", "HEAD^", "--repository"])
        .arg(scene.policies())
        .arg("-f")
        .arg(scene.policies())
        .arg("--flow-store")
        .arg(scene.path("store")));
    assert_eq!(revision.status, 0, "{}{}", revision.out, revision.err);
    let again = scene.tighten(&["--patches", &patches.display().to_string()]);
    assert!(again.status == 2 && again.err.contains("holds something"), "{}", again.err);
    Ok(())
}

#[test]
fn what_cannot_be_used_is_an_error_that_says_so() -> Result<()> {
    let scene = Scene::new(DB, usual)?;
    let fails = |more: &[&str], why: &str| {
        let ran = scene.tighten(more);
        assert!(ran.status == 2 && ran.err.contains(why), "{more:?}: {}", ran.err);
    };
    fails(&["--coverage", "2"], "--coverage is 2: it must be from 0 to 1");
    fails(&["-n", "bank"], "no NetworkPolicy of the manifests is one that --namespace and --policy ask for");
    fails(&["--usage", "/nowhere"], "/nowhere");
    fails(&["--flow-store", "/nowhere"], "is no flow store");
    fs::write(scene.policies().join("broken.yaml"), "kind: NetworkPolicy\n a: [\n")?;
    fails(&[], "not all of the manifests can be read: nothing is proposed");
    fs::remove_file(scene.policies().join("broken.yaml"))?;
    // Written twice, nobody knows which of the two counts.
    fs::write(scene.policies().join("again.yaml"), DB)?;
    let (told, ran) = scene.json(&[])?;
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert!(
        told["policies"][0]["closed"]
            .as_str()
            .unwrap_or_default()
            .contains("another document is the same object")
    );
    Ok(())
}

#[test]
fn a_policy_whose_file_names_no_namespace_is_of_the_one_that_is_said() -> Result<()> {
    let scene = Scene::new(DB, usual)?;
    let bare = DB.replace("  namespace: shop\n", "");
    fs::write(scene.policies().join("db.yaml"), &bare)?;
    let (told, _) = scene.json(&[])?;
    assert_eq!(changes(&told), Vec::<String>::new(), "it is another policy");
    let warned = told["warnings"].to_string();
    assert!(!warned.contains("is in the cluster"), "{warned}");
    let (told, _) = scene.json(&["--default-namespace", "shop"])?;
    assert_eq!(changes(&told).len(), 5, "{told:#}");
    let ran = scene.tighten(&["--default-namespace", "shop", "--write"]);
    assert_eq!(ran.status, 1, "{}", ran.err);
    assert_eq!(
        fs::read_to_string(scene.policies().join("db.yaml"))?,
        TIGHT.replace("  namespace: shop\n", ""),
        "the file still names none"
    );
    Ok(())
}

#[test]
fn what_nothing_sees_and_what_is_about_other_pods_stays() -> Result<()> {
    // Half of it is SCTP.
    let text = DB.replace(
        "      ports:\n        - port: 5432\n          endPort: 5500\n",
        "      ports: [{port: 5432}, {port: 3868, protocol: SCTP}]\n",
    );
    let scene = Scene::new(&text, usual)?;
    let (told, _) = scene.json(&[])?;
    let elements = said(&told["policies"][0]["rules"][1]["elements"], "stays_because");
    assert!(elements[1].starts_with("ingress[0].from[1]: it may be for SCTP"), "{told:#}");
    assert!(elements[3].starts_with("ingress[0].ports[1]: it may be for SCTP"), "{told:#}");
    assert_eq!(changes(&told)[1..], ["ingress[1]: remove", "policyTypes: write Ingress, Egress"], "{told:#}");
    let unused = DB.replace("app: web", "app: nobody").replace(
        "        - port: 5432\n          endPort: 5500\n",
        "        - port: 3868\n          protocol: SCTP\n        - port: 1\n",
    );
    let scene = Scene::new(&unused, usual)?;
    let (told, _) = scene.json(&[])?;
    let kept = said(&told["policies"][0]["rules"], "stays_because");
    assert!(kept[1].starts_with("ingress[0]: it may be for SCTP"), "{kept:#?}");
    assert!(
        changes(&told).contains(&"ingress[0].ports[1]: remove".to_owned()),
        "what is seen goes: {told:#}"
    );
    // A cluster that uses SCTP says so.
    let scene = Scene::new(DB, usual)?;
    let (told, _) = scene.json(&["--uses-sctp"])?;
    assert!(!changes(&told).iter().any(|it| it.starts_with("ingress[1]")), "{told:#}");
    // Here it is said to select others than where the agents are.
    fs::write(
        scene.policies().join("db.yaml"),
        DB.replace("matchLabels: {app: db}", "matchLabels: {app: web}"),
    )?;
    let (told, _) = scene.json(&[])?;
    assert_eq!(
        (changes(&told), &told["policies"][0]["closed"]),
        (vec![], &json!("in the cluster it selects other pods than in this file"))
    );
    Ok(())
}

#[test]
fn evidence_of_a_policy_that_selected_others_is_not_enough() -> Result<()> {
    let scene = Scene::new(DB, |agent| {
        let mut other: Value = serde_saphyr::from_str(DB).expect("a policy");
        other["spec"]["podSelector"]["matchLabels"]["app"] = json!("api");
        agent.apply(&other, 4_000);
        let back: Value = serde_saphyr::from_str(DB).expect("a policy");
        agent.apply(&back, 5_000);
        agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.1", 5_100);
    })?;
    let (told, _) = scene.json(&[])?;
    let why = "insufficient evidence: until 2026-01-01T01:23:20Z it selected other pods, and what is known is in part about those";
    assert_eq!(told["policies"][0]["closed"], why, "{told:#}");
    // Long ago it does not matter.
    let (told, _) = scene.json(&["--window", "10m"])?;
    assert_eq!(told["policies"][0]["closed"], Value::Null, "{told:#}");
    Ok(())
}

#[test]
fn what_is_one_object_or_is_patched_by_position_is_not_changed() -> Result<()> {
    let scene = Scene::new(DB, usual)?;
    fs::write(scene.policies().join("again.yaml"), DB.replace("  namespace: shop\n", "  namespace: ''\n"))?;
    let (told, _) = scene.json(&["--default-namespace", "shop"])?;
    let closed = [0, 1].map(|at| told["policies"][at]["closed"].to_string().contains("is the same object"));
    assert_eq!(closed, [true, true], "{told:#}");
    fs::remove_file(scene.policies().join("again.yaml"))?;
    fs::write(
        scene.policies().join("kustomization.yaml"),
        "resources: [db.yaml]\npatches: [{target: {kind: NetworkPolicy}, patch: '[{op: remove, path: /spec/ingress/0/from/1}]'}]\n",
    )?;
    let (told, ran) = scene.json(&[])?;
    assert_eq!(ran.status, 0, "{told:#}");
    assert!(
        told["policies"][0]["closed"].to_string().contains("a kustomization near changes what files say"),
        "{told:#}"
    );
    Ok(())
}

#[test]
fn flows_of_a_part_of_the_time_are_told_as_such() -> Result<()> {
    let scene = Scene::new(DB, usual)?;
    let (told, _) = scene.json(&["--since", "2026-01-01T01:50:00Z"])?;
    let replay = &told["replay"];
    assert_eq!((&replay["flows"], &replay["complete"]), (&json!(0), &json!(false)), "{replay:#}");
    assert!(replay["doubts"].to_string().contains("no recorded flow was judged again"), "{replay:#}");
    // Another node's agent tells of use, and no store of its flows.
    let file = scene.path("usage.jsonl");
    let mut rows = document::read(&fs::read(&file)?)?;
    let (mut key, run) =
        rows.runs.iter().next().map(|(key, run)| (key.clone(), run.clone())).context("a run")?;
    key.node = "node-2".into();
    rows.add_run(key, run);
    fs::write(&file, document::write(&rows))?;
    let (told, _) = scene.json(&[])?;
    assert!(told["replay"]["doubts"].to_string().contains("no store has flows of node node-2"), "{told:#}");
    Ok(())
}
