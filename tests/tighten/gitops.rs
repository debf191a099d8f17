//! The pipeline of `deploy/gitops` with plain git: a change is checked, and what nobody uses comes as a branch.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use super::command::{DB, Scene, TIGHT, usual};
use crate::command::{Run, run};

const EXPECTATIONS: &str = "\
apiVersion: netaudit/v1
kind: Expectations
pods:
  - {namespace: shop, name: db-0, labels: {app: db}}
  - {namespace: shop, name: web-0, labels: {app: web}}
  - {namespace: shop, name: stranger, labels: {app: stranger}}
cases:
  - {name: the shop reaches its database, expect: allow, from: shop/web-0, to: shop/db-0, port: 5432}
  - {name: a stranger does not, expect: deny, from: shop/stranger, to: shop/db-0, port: 5432}
";

/// A repository with policies, its remote, and what agents recorded.
struct Repository {
    scene: Scene,
    clone: PathBuf,
    remote: PathBuf,
}

impl Repository {
    fn new(policy: &str) -> Result<Self> {
        let scene = Scene::new(DB, usual)?;
        let (clone, remote) = (scene.path("clone"), scene.path("remote.git"));
        let git = |arguments: &[&str]| at(scene.path("").as_path(), arguments);
        git(&["init", "-q", "--bare", "-b", "main", &remote.display().to_string()]);
        git(&["clone", "-q", &remote.display().to_string(), &clone.display().to_string()]);
        let it = Self { scene, clone, remote };
        fs::create_dir(it.clone.join("policies"))?;
        fs::write(it.clone.join("policies/db.yaml"), policy)?;
        fs::write(it.clone.join("expect.yaml"), EXPECTATIONS)?;
        it.git(&["checkout", "-q", "-b", "main"]);
        it.commit("policies");
        it.git(&["push", "-q", "origin", "main"]);
        Ok(it)
    }

    fn git(&self, arguments: &[&str]) -> String {
        at(&self.clone, arguments)
    }

    fn commit(&self, message: &str) {
        self.git(&["add", "."]);
        self.git(&["commit", "-qm", message]);
    }

    fn put(&self, policy: &str) -> Result<()> {
        Ok(fs::write(self.clone.join("policies/db.yaml"), policy)?)
    }

    /// Runs the pipeline as a CI job does.
    fn pipeline(&self, what: &str) -> Run {
        self.pipeline_with(what, &[])
    }

    fn pipeline_with(&self, what: &str, more: &[(&str, &str)]) -> Run {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/gitops/netaudit-gitops");
        let mut command = Command::new(script);
        command.arg(what).current_dir(&self.clone).envs([
            ("NETAUDIT", env!("CARGO_BIN_EXE_netaudit")),
            ("POLICIES", "policies"),
            ("EXPECTATIONS", "expect.yaml"),
            ("WINDOW", "1h"),
            ("SINCE", "2026-01-01T00:00:00Z"),
            ("LINT", "--partial --fail-on error"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
        ]);
        command.env("FLOW_STORE", self.scene.path("store")).env("USAGE", self.scene.path("usage.jsonl"));
        command.env("REPORT", self.scene.path("report.txt"));
        run(command.envs(more.iter().copied()))
    }
}

#[track_caller]
fn at(directory: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command
        .args(["-c", "user.name=t", "-c", "user.email=t@localhost"])
        .args(arguments)
        .current_dir(directory);
    let ran = run(command.env("GIT_CONFIG_NOSYSTEM", "1"));
    assert_eq!(ran.status, 0, "git {arguments:?}: {}", ran.err);
    ran.out
}

#[test]
fn a_change_is_checked_before_it_is_merged() -> Result<()> {
    let repository = Repository::new(DB)?;
    let ran = repository.pipeline("check");
    assert_eq!(ran.status, 0, "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("== what if: the policies are those of origin/main"), "{}", ran.err);
    // Nobody notices but the recorded flows.
    repository.put(&DB.replace("endPort: 5500", "endPort: 5499").replace("10.8.0.0/16", "10.9.0.0/16"))?;
    let ran = repository.pipeline("check");
    assert_eq!(ran.status, 1, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("allowed → denied: 1 flow"), "{}", ran.out);
    // The expectations do.
    repository.put(&DB.replace("{app: old}", "{app: stranger}"))?;
    let ran = repository.pipeline("check");
    assert!(ran.status == 1 && ran.out.contains("FAIL a stranger does not"), "{}{}", ran.out, ran.err);
    // So does the lint.
    repository.put(&DB.replace("10.8.0.0/16", "10.8.0.0/160"))?;
    let ran = repository.pipeline("check");
    assert!(ran.status >= 1 && ran.out.contains("10.8.0.0/160"), "{}{}", ran.out, ran.err);
    // Failure is told apart from findings.
    fs::remove_dir_all(repository.scene.path("store"))?;
    let ran = repository.pipeline("check");
    assert_eq!(ran.status, 2, "{}{}", ran.out, ran.err);
    Ok(())
}

#[test]
fn what_nobody_uses_comes_as_a_branch_until_it_is_merged() -> Result<()> {
    let repository = Repository::new(DB)?;
    // What lies in the working directory is nobody's business.
    fs::write(repository.clone.join("policies/db.yaml"), "half: written")?;
    let ran = repository.pipeline("propose");
    assert_eq!(ran.status, 0, "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("== pushing netaudit/tighten to origin: 1 commits"), "{}", ran.err);
    assert!(
        fs::read_to_string(repository.scene.path("report.txt"))?
            .contains("- ingress[1] from app=api on any port: remove")
    );
    assert_eq!(fs::read_to_string(repository.clone.join("policies/db.yaml"))?, "half: written");
    assert_eq!(at(&repository.remote, &["show", "netaudit/tighten:policies/db.yaml"]), TIGHT);
    let log = at(&repository.remote, &["log", "--format=%an %s", "main..netaudit/tighten"]);
    assert_eq!(log, "netaudit shop/db: allow only what is used\n");
    assert_eq!(repository.git(&["worktree", "list"]).lines().count(), 1, "nothing is left behind");
    // A second proposal takes the place of the first.
    let ran = repository.pipeline("propose");
    assert_eq!(ran.status, 0, "{}{}", ran.out, ran.err);
    assert_eq!(at(&repository.remote, &["rev-list", "--count", "main..netaudit/tighten"]), "1\n");
    // Merged, there is nothing left to propose; agents have not told of the new rules yet.
    repository.git(&["checkout", "-q", "--", "policies"]);
    repository.git(&["fetch", "-q"]);
    repository.git(&["merge", "-q", "origin/netaudit/tighten"]);
    repository.git(&["push", "-q", "origin", "main"]);
    repository.git(&["fetch", "-q"]);
    let ran = repository.pipeline("propose");
    assert_eq!(ran.status, 0, "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("== nothing to take out: no branch"), "{}", ran.err);
    // What was proposed before is nothing that anybody should merge now.
    assert!(ran.err.contains("== netaudit/tighten of origin is withdrawn"), "{}", ran.err);
    assert_eq!(at(&repository.remote, &["branch", "--list", "netaudit/tighten"]), "");
    Ok(())
}

#[test]
fn what_goes_wrong_has_its_status_and_pushes_nothing() -> Result<()> {
    let repository = Repository::new(DB)?;
    for what in ["check", "propose"] {
        let ran = repository.pipeline_with(what, &[("BASE", "origin/none")]);
        assert!(ran.status == 2 && ran.err.contains("there is no origin/none here"), "{what}: {}", ran.err);
    }
    let branches = || at(&repository.remote, &["branch", "--list", "netaudit/*"]);
    let ran = repository.pipeline_with("propose", &[("REMOTE", "nowhere")]);
    assert!(ran.status == 2 && ran.err.contains("nowhere does not take netaudit/tighten"), "{}", ran.err);
    let expect = repository.scene.path("expect.yaml");
    fs::write(
        &expect,
        EXPECTATIONS
            .replace("to: shop/db-0, port: 5432}\n  - {name: a", "to: shop/db-0, port: 5433}\n  - {name: a"),
    )?;
    let ran = repository.pipeline_with("propose", &[("EXPECTATIONS", &expect.display().to_string())]);
    assert!(
        ran.status == 1 && ran.err.contains("have findings: nothing is pushed"),
        "{}{}",
        ran.out,
        ran.err
    );
    assert_eq!(branches(), "");
    // A name that moves with each commit means what it meant at the beginning.
    let ran = repository.pipeline_with("propose", &[("BASE", "HEAD")]);
    assert_eq!(ran.status, 0, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("NetworkPolicy shop/db: shown"), "{}", ran.out);
    assert!(ran.err.contains("1 commits") && branches().contains("netaudit/tighten"), "{}", ran.err);
    assert_eq!(repository.git(&["worktree", "list"]).lines().count(), 1);
    // What nobody has added yet is a change too.
    fs::write(repository.clone.join("policies/new.yaml"), DB.replace("name: db", "name: new"))?;
    let ran = repository.pipeline("check");
    assert!(ran.err.contains("judged by this change"), "{}", ran.err);
    Ok(())
}

#[test]
fn what_is_missing_is_said() -> Result<()> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/gitops/netaudit-gitops");
    let ran = run(Command::new(&script).arg("check").env_remove("POLICIES"));
    assert!(ran.status != 0 && ran.err.contains("needs POLICIES"), "{}", ran.err);
    let ran = run(Command::new(&script).arg("help").env("POLICIES", "x").env("FLOW_STORE", "y"));
    assert!(ran.status == 2 && ran.err.contains("usage: netaudit-gitops"), "{}", ran.err);
    Ok(())
}
