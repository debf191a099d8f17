//! Candidates of a git revision.

use std::process::Command;

use super::*;

fn git(repository: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(repository)
        .args(["-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"])
        .args(arguments)
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn ask_revision(store: &Path, more: &[&str]) -> Run {
    run(netaudit().args(["what-if", "--output", "json", "--flow-store"]).arg(store).args(more))
}

#[test]
fn a_revision_of_a_repository_is_tried() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (store, repository) = (directory.path().join("store"), directory.path().join("git"));
    let mut agent = Agent::new(&store, "run-a")?;
    begin(&mut agent);
    agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.1", 10);
    agent.finish(20);
    fs::create_dir_all(repository.join("teams/shop"))?;
    fs::create_dir_all(repository.join("teams/.old"))?;
    git(&repository, &["init", "--quiet", "--initial-branch", "main"])?;
    let write = |name: &str, text: &str| fs::write(repository.join(name), text);
    write("teams/shop/db.json", &policy("web").to_string())?;
    write("teams/.old/db.json", &policy("nobody").to_string())?;
    write("teams/notes.txt", "kind: Notes")?;
    // What is not to be exported counts all the same.
    write(".gitattributes", "teams/** export-ignore\n")?;
    git(&repository, &["add", "."])?;
    git(&repository, &["commit", "--quiet", "-m", "one"])?;
    git(&repository, &["tag", "before"])?;
    write("teams/shop/db.json", &policy("api").to_string())?;
    git(&repository, &["commit", "--quiet", "-a", "-m", "two"])?;
    // What is in the directory is not what is asked for.
    write("teams/shop/db.json", "{")?;
    let at = repository.to_str().context("a name")?.to_owned();

    let ran = ask_revision(&store, &["--revision", "main", "--repository", &at]);
    let told: Value = serde_json::from_str(&ran.out).with_context(|| ran.err.clone())?;
    assert_eq!((ran.status, changes(&told).len()), (1, 1), "{told:#}");
    let commit = git(&repository, &["rev-parse", "main"])?;
    assert_eq!(told["compared"]["candidate"], format!("git revision main ({})", &commit[..12]));
    for path in ["teams", "teams/", "teams/shop/db.json", "./teams"] {
        let ran = ask_revision(&store, &["--revision", "before", "--repository", &at, "--path", path]);
        let told: Value = serde_json::from_str(&ran.out).with_context(|| ran.err.clone())?;
        assert_eq!((ran.status, &told["compared"]["policies"]), (0, &json!(1)), "{path}: {told:#}");
    }

    for (more, expected) in [
        (
            &["--revision", "nowhere", "--repository", &at][..],
            "there is no revision \"nowhere\" in this repository",
        ),
        (&["--revision", "--all", "--repository", &at], "unexpected argument '--all'"),
        (&["--revision=--all", "--repository", &at], "there is no revision \"--all\" in this repository"),
        (&["--revision", "main", "--repository", &at, "--path", "tems"], "there is no tems in revision main"),
        (
            &["--revision", "main", "--repository", &at, "--path", "teams/notes.txt"],
            "no policy in git revision main",
        ),
        (
            &["--revision", "main", "--repository", store.to_str().context("a name")?],
            "there is no git repository here",
        ),
        (&["--path", "teams"], "required"),
    ] {
        let ran = ask_revision(&store, more);
        assert_eq!(ran.status, 2, "{more:?}: {}", ran.out);
        assert!(ran.err.contains(expected), "{more:?}: {}", ran.err);
    }
    // Without git.
    let mut command = netaudit();
    command.args(["what-if", "--flow-store"]).arg(&store).args(["--revision", "main"]).env("PATH", &store);
    let ran = run(&mut command);
    assert!(ran.status == 2 && ran.err.contains("git is not installed here"), "{}", ran.err);
    Ok(())
}
