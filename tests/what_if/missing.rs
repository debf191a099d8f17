//! What cannot be judged again, or cannot be believed, is counted and said.

use netaudit::store::flows::{
    files,
    table::{FLOWS, OBJECTS},
};

use netaudit::audit::AddressKey;

use super::*;
use crate::history::exporting;

fn written(store: &Path) -> Result<()> {
    let mut agent = Agent::new(store, "run-a")?;
    begin(&mut agent);
    agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.1", 10);
    agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.3", 11);
    agent.finish(20);
    Ok(())
}

#[test]
fn a_window_without_flows_says_nothing_of_the_candidate() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    written(store)?;
    // Nobody watched then.
    let (told, ran) = answer(store, &[policy("api")], &["--since", "2026-02-01T00:00:00Z"])?;
    assert_eq!((ran.status, &told["flows"]["replayed"]), (2, &json!(0)), "{told:#}");
    assert!(
        ran.err.contains("no flow of that time could be judged again, so nothing is known"),
        "{}",
        ran.err
    );
    // Somebody watched, and there was nothing.
    let window = ["--since", "2026-01-01T00:00:12Z", "--until", "2026-01-01T00:00:18Z"];
    let (told, ran) = answer(store, &[policy("api")], &window)?;
    assert_eq!((ran.status, &told["complete"]), (0, &json!(true)), "{told:#}");
    let candidate = manifests(&[policy("api")]);
    let ran = ask(store, candidate.path(), &["--since", "2h", "--until", "3h"]);
    assert!(ran.status == 2 && ran.err.contains("--since is not before --until"), "{}", ran.err);
    let ran = ask(&store.join("nowhere"), candidate.path(), &[]);
    assert!(ran.status == 2 && ran.err.contains("is no flow store"), "{}", ran.err);
    Ok(())
}

#[test]
fn a_store_without_history_gives_no_answer() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    written(store)?;
    fs::remove_dir_all(OBJECTS.directory(store))?;
    fs::remove_dir_all(OBJECTS.open_directory(store))?;
    let (told, ran) = answer(store, &[policy("api")], &[])?;
    assert_eq!(ran.status, 2, "{}", ran.err);
    let lost = &told["unreplayed"][0];
    assert_eq!(lost["reason"], "the stores hold no history of the objects of its agent run");
    assert_eq!((&lost["flows"], &lost["about"]), (&json!(2), &json!(["run-a"])));
    assert_eq!(changes(&told), [""; 0]);
    Ok(())
}

#[test]
fn a_run_that_never_knew_all_objects_judges_nothing_again() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let mut agent = Agent::new(store, "run-a")?;
    agent.apply(&pod("db-0", "uid-0", &["10.0.0.2"]), 1);
    agent.auditor.set_ready();
    agent.accepts("uid-0", "10.0.0.2:5432", "203.0.113.9", 10);
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::NetworkPolicy) {
        agent.store.history_mut().listed(kind, t(11));
    }
    agent.finish(12);
    let (told, ran) = answer(store, &[policy("api")], &[])?;
    assert_eq!(ran.status, 2);
    assert_eq!(told["unreplayed"][0]["about"], json!(["run-a, NetworkPolicy"]), "{told:#}");
    Ok(())
}

#[test]
fn a_pod_that_the_history_lacks_and_an_end_that_nobody_knows_are_counted() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let mut agent = Agent::new(store, "run-a")?;
    begin(&mut agent);
    agent.judge_by(&pod("ghost-0", "uid-7", &["10.0.0.7"]), 3);
    agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.7", 10);
    // An address that two pods claim.
    agent.apply(&pod("dup-0", "uid-5", &["10.0.0.8"]), 3);
    agent.apply(&pod("dup-1", "uid-6", &["10.0.0.8"]), 4);
    let somebody = agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.8", 11);
    agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.1", 12);
    // Gone, and still answered for some minutes.
    agent.delete(Kind::Pod, "web-0", 20);
    agent.finish(30);
    let (told, ran) = answer(store, &[policy("api")], &["--require-complete", "--fail-on", "none"])?;
    assert_eq!(ran.status, 1, "not complete");
    assert_eq!(changes(&told), ["allowed→denied shop/web→shop/db 5432 ingress 1"]);
    let lost: Vec<String> = told["unreplayed"]
        .as_array()
        .context("a list")?
        .iter()
        .map(|it| format!("{}: {} {}", it["reason"], it["flows"], it["about"]))
        .collect();
    assert_eq!(
        lost,
        [
            r#""the history has no object of the pod at that time": 1 ["shop/ghost-0"]"#,
            r#""the record does not say who the other end was": 1 null"#,
        ]
    );
    let candidate = manifests(&[policy("api")]);
    let ran = ask(store, candidate.path(), &[]);
    assert!(
        ran.out.contains(&format!(
            "not judged again: 1 flow, as the record does not say who the other end was, such as {somebody}"
        )),
        "{}",
        ran.out
    );
    Ok(())
}

#[test]
fn a_verdict_that_the_objects_of_then_do_not_give_is_in_doubt() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let mut agent = Agent::new(store, "run-a")?;
    begin(&mut agent);
    agent.judge_by(&policy("api"), 5);
    let id = agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.1", 10);
    agent.finish(20);
    let (told, _) = answer(store, &[policy("api")], &[])?;
    // The history says that it was allowed, the record that it was not.
    assert_eq!(
        told["recorded_otherwise"],
        json!([{"recorded": "denied", "then": "allowed", "flows": 1, "example": id}])
    );
    assert_eq!(told["changes"][0]["recorded_otherwise"], 1, "{told:#}");
    let candidate = manifests(&[policy("web")]);
    let ran = ask(store, candidate.path(), &[]);
    assert!(
        ran.out.contains("in doubt: 1 flow recorded as denied, which the objects of then say allowed of"),
        "{}",
        ran.out
    );
    Ok(())
}

#[test]
fn a_candidate_that_cannot_be_read_makes_unknown_what_it_may_change() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    written(store)?;
    let torn = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: db, namespace: shop}\nspec:\n  podSelector: [\n";
    let candidate = folder(&[("db.yaml", torn)]);
    let ran = ask(store, candidate.path(), &["--output", "json"]);
    let told: Value = serde_json::from_str(&ran.out).with_context(|| ran.err.clone())?;
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("db.yaml:"), "{}", ran.err);
    assert_eq!(
        changes(&told),
        [
            "allowed→unknown shop/web→shop/db 5432 egress+ingress 1",
            "denied→unknown shop/api→shop/db 5432 egress+ingress 1"
        ]
    );
    let ran = ask(store, &candidate.path().join("nowhere.yaml"), &[]);
    assert!(ran.status == 2 && ran.err.contains("cannot read"), "{}", ran.err);
    Ok(())
}

#[test]
fn a_torn_store_is_told_and_what_is_left_is_judged() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    written(store)?;
    // A second run, whose file is damaged.
    let mut agent = Agent::new(store, "run-b")?;
    begin(&mut agent);
    agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.4", 15);
    agent.finish(20);
    let parts: Vec<PathBuf> = files::list(store, &FLOWS)?
        .into_iter()
        .map(|file| file.path)
        .chain(fs::read_dir(files::open_directory(store))?.flatten().map(|entry| entry.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("run-b")))
        .filter(|path| path.extension().is_some_and(|it| it != "json"))
        .collect();
    ensure!(!parts.is_empty(), "no part of run-b");
    for path in &parts {
        fs::write(path, "no flows")?;
    }
    let (told, ran) = answer(store, &[policy("api")], &["--fail-on", "none", "--require-complete"])?;
    assert_eq!(ran.status, 1, "{}", ran.err);
    assert!(ran.err.contains("cannot be read, its flows are missing"), "{}", ran.err);
    assert_eq!((&told["flows"]["replayed"], &told["complete"]), (&json!(2), &json!(false)));
    assert_eq!(changes(&told).len(), 2, "{told:#}");
    Ok(())
}

/// Behind another node's address may be anybody who asked at a node port: as long as that matters, it stays unknown.
#[test]
fn a_source_that_a_node_port_hides_stays_hidden_unless_all_are_judged_alike() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let mut agent = Agent::new(store, "run-a")?;
    begin(&mut agent);
    agent.apply(
        &json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "node-2"},
                "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.2"}]}}),
        2,
    );
    agent.apply(
        &json!({"kind": "Service", "apiVersion": "v1", "metadata": {"namespace": "shop", "name": "db"},
                "spec": {"type": "NodePort", "clusterIP": "10.96.0.2", "selector": {"app": "db"},
                         "ports": [{"port": 5432, "nodePort": 30432}]}}),
        2,
    );
    agent.accepts("uid-0", "10.0.0.2:5432", "192.168.0.2", 10);
    agent.finish(20);
    let (told, _) = answer(store, &[policy("api")], &[])?;
    assert_eq!((changes(&told).len(), &told["flows"]["replayed"]), (0, &json!(1)), "{told:#}");
    assert_eq!(told["recorded_otherwise"], json!([]));
    let other = named("other", "nobody", json!({"ingress": []}));
    let (told, _) = answer(store, &[other], &[])?;
    assert_eq!(changes(&told), ["unknown→allowed node node-2→shop/db 5432 ingress 1"]);
    assert_eq!(told["changes"][0]["before_by"][0]["by"], "ingress: source translated");
    Ok(())
}

#[test]
fn a_hashed_address_is_not_guessed() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    let mut agent = Agent::new(store, "run-a")?;
    let key = AddressKey::new(b"0123456789abcdef0123456789abcdef")?;
    agent.privacy = Privacy { key: Some(key), ..Privacy::default() };
    begin(&mut agent);
    agent.connects("uid-1", "10.0.0.1", "203.0.113.9:443", 10);
    agent.accepts("uid-0", "10.0.0.2:5432", "10.0.0.1", 11);
    agent.finish(20);
    let (told, _) = answer(store, &[policy("api")], &[])?;
    assert_eq!(told["unreplayed"][0]["reason"], "the record has a hash for the address outside the cluster");
    assert_eq!((&told["unreplayed"][0]["flows"], changes(&told).len()), (&json!(1), 1), "{told:#}");
    Ok(())
}

/// A bundle of evidence is a store once it is unpacked; one of some flows says that it has no others.
#[test]
fn a_bundle_is_judged_as_the_store_that_it_is_of() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (store, unpacked) = (directory.path().join("store"), directory.path().join("unpacked"));
    written(&store)?;
    let bundle = directory.path().join("inc.tar");
    let ran = exporting::export(&store, t(5), t(15), &bundle, &["--workload", "web"]);
    ensure!(ran.status == 0, "{}", ran.err);
    exporting::unpack(&bundle, &unpacked)?;
    let (told, ran) = answer(&unpacked, &[policy("api")], &[])?;
    assert_eq!(changes(&told), ["allowed→denied shop/web→shop/db 5432 ingress 1"], "{}", ran.err);
    assert_eq!(told["complete"], false);
    assert!(ran.err.contains("holds only flows of incident"), "{}", ran.err);
    Ok(())
}
