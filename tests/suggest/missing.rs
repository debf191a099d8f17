//! What is not known is said, and what is there already is left alone.

use netaudit::{
    audit::{AddressKey, Privacy},
    store::flows::{
        files,
        table::{FLOWS, OBJECTS},
    },
};

use super::*;

/// web and db, of which db is asked.
fn small() -> Vec<Value> {
    let mut objects: Vec<Value> = ["shop", "kube-system", "idle"].map(namespace).to_vec();
    objects.push(node("node-1", "192.168.1.1"));
    objects.push(dns_server());
    objects.push(pod("shop", "web-0", &json!({"app": "web"}), &["10.0.0.1"], "node-1"));
    objects.push(pod("shop", "db-0", &json!({"app": "db"}), &["10.0.0.2"], "node-1"));
    objects
}

fn written(directory: &Path, objects: &[Value]) -> Result<()> {
    let mut agent = begin(directory, objects)?;
    agent.accepts("shop-db-0", "10.0.0.2", "10.0.0.1", 5432);
    agent.asks("shop-web-0", "10.0.0.1", "10.0.9.53", 53);
    agent.finish(100);
    Ok(())
}

fn existing(name: &str, app: &str, types: &Value) -> Value {
    json!({"kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1", "metadata": {"namespace": "shop", "name": name},
           "spec": {"podSelector": {"matchLabels": {"app": app}}, "policyTypes": types, "ingress": [{}]}})
}

#[test]
fn namespaces_that_are_empty_or_not_there() -> Result<()> {
    let directory = tempfile::tempdir()?;
    written(directory.path(), &small())?;
    let ran = ask(directory.path(), &["-n", "shopp"]);
    assert_eq!((ran.status, &*ran.out), (2, ""));
    assert!(
        ran.err.contains("the history of that time has no namespace shopp: it has idle, kube-system, shop"),
        "{}",
        ran.err
    );
    let ran = ask(directory.path(), &["-n", "idle"]);
    assert_eq!((ran.status, &*ran.out), (1, ""));
    assert!(ran.err.contains("no pod of namespace idle is known of that time"), "{}", ran.err);
    // One that is empty keeps no other from its policies.
    let ran = ask(directory.path(), &["-n", "idle", "shop"]);
    assert!(ran.status == 1 && ran.out.contains("name: db"), "{}{}", ran.out, ran.err);
    let ran = run(netaudit().args(["suggest", "--flow-store"]).arg(directory.path()));
    assert!(ran.status == 2 && ran.err.contains("--namespace"), "{}", ran.err);
    // Nobody watched then.
    let ran = ask(directory.path(), &["-n", "shop", "--since", "2026-02-01T00:00:00Z"]);
    assert!(
        ran.status == 2 && ran.err.contains("no node is known to have recorded flows in that time"),
        "{}",
        ran.err
    );
    let ran = ask(directory.path(), &["-n", "shop", "--since", "2h", "--until", "3h"]);
    assert!(ran.status == 2 && ran.err.contains("--since is not before --until"), "{}", ran.err);
    let ran = ask(&directory.path().join("nowhere"), &["-n", "shop"]);
    assert!(ran.status == 2 && ran.err.contains("is no flow store"), "{}", ran.err);
    Ok(())
}

#[test]
fn a_short_time_and_lost_records_are_told_above_each_policy() -> Result<()> {
    let directory = tempfile::tempdir()?;
    written(directory.path(), &small())?;
    let store = directory.path();
    let ran = run(netaudit().args(["suggest", "-n", "shop", "--flow-store"]).arg(store));
    assert_eq!(ran.status, 1, "{}", ran.err);
    let told = "100s were recorded, which is less than 7d (--window): what happens less often was not seen";
    assert!(ran.err.contains(told), "{}", ran.err);
    assert_eq!(
        ran.out
            .matches(
                "# INCOMPLETE: what was not seen is denied. Look at this before it is applied.\n# - 100s"
            )
            .count(),
        3
    );
    let ran = ask(store, &["-n", "shop"]);
    assert_eq!(ran.status, 0, "{}", ran.err);

    // A node without a store.
    let mut objects = small();
    objects.push(node("node-9", "192.168.1.9"));
    let directory = tempfile::tempdir()?;
    written(directory.path(), &objects)?;
    let ran = ask(directory.path(), &["-n", "shop"]);
    assert!(
        ran.status == 1 && ran.out.contains("# - no store has flows of node node-9\n"),
        "{}{}",
        ran.out,
        ran.err
    );
    Ok(())
}

#[test]
fn a_store_that_cannot_be_read_in_part_gives_what_is_left_and_says_so() -> Result<()> {
    let directory = tempfile::tempdir()?;
    written(directory.path(), &small())?;
    let other = tempfile::tempdir()?;
    let mut agent = begin_on("node-1", other.path(), "run-b", &small())?;
    agent.accepts("shop-web-0", "10.0.0.1", "203.0.113.1", 80);
    agent.finish(100);
    let more = ["--flow-store", other.path().to_str().context("a name")?];
    let (told, ran) = answer(directory.path(), "shop", &more)?;
    assert_eq!(
        (ran.status, spec(&told, "web")["ingress"].as_array().map(Vec::len)),
        (0, Some(1)),
        "{}",
        ran.err
    );
    let parts = files::list(other.path(), &FLOWS)?.into_iter().map(|file| file.path);
    let open = std::fs::read_dir(files::open_directory(other.path()))?.flatten().map(|entry| entry.path());
    let parts: Vec<_> =
        parts.chain(open).filter(|path| path.extension().is_some_and(|it| it != "json")).collect();
    assert!(!parts.is_empty());
    for path in &parts {
        std::fs::write(path, "no flows")?;
    }
    let (told, ran) = answer(directory.path(), "shop", &more)?;
    assert_eq!(ran.status, 1, "{}", ran.err);
    assert!(ran.err.contains("cannot be read, its flows are missing"), "{}", ran.err);
    assert!(policy(&told, "db")["header"].to_string().contains("its flows are missing"), "{told:#}");
    assert_eq!(spec(&told, "web")["ingress"], json!([]));

    // Without any history nothing is known of pods and labels.
    let directory = tempfile::tempdir()?;
    let store = directory.path();
    written(store, &small())?;
    std::fs::remove_dir_all(OBJECTS.directory(store))?;
    std::fs::remove_dir_all(OBJECTS.open_directory(store))?;
    let ran = ask(store, &["-n", "shop"]);
    assert!(
        ran.status == 2 && ran.err.contains("the stores hold no whole history of objects"),
        "{}",
        ran.err
    );
    Ok(())
}

#[test]
fn who_has_a_policy_is_passed_over_unless_all_is_said() -> Result<()> {
    let mut objects = small();
    objects.push(existing("web", "db", &json!(["Ingress"])));
    let directory = tempfile::tempdir()?;
    written(directory.path(), &objects)?;
    let (told, ran) = answer(directory.path(), "shop", &[])?;
    assert_eq!(ran.status, 0, "{}", ran.err);
    // Its name is taken, and would replace the one that is there.
    assert_eq!(names(&told), ["default-deny-all", "web-suggested"]);
    assert!(
        ran.err.contains(
            "passed over: Deployment shop/db: NetworkPolicy/shop/web selects it (--all takes it too)"
        ),
        "{}",
        ran.err
    );
    let (told, ran) = answer(directory.path(), "shop", &["--all"])?;
    assert_eq!((ran.status, names(&told)), (0, vec!["default-deny-all", "db", "web"]), "{}", ran.err);
    assert!(
        ran.err.contains("to be deleted when these are applied: NetworkPolicy shop/web\n"),
        "{}",
        ran.err
    );

    // It sends what no policy of its own allows: then nothing denies the rest.
    let directory = tempfile::tempdir()?;
    let mut agent = begin(directory.path(), &objects)?;
    agent.connects("shop-db-0", "10.0.0.2", "203.0.113.1", 443);
    agent.accepts("shop-web-0", "10.0.0.1", "203.0.113.2", 80);
    agent.finish(100);
    let (told, ran) = answer(directory.path(), "shop", &[])?;
    assert_eq!((ran.status, names(&told)), (1, vec!["web-suggested"]), "{}", ran.err);
    assert!(told["no_default_deny"]["shop"].as_str().context("why")?.contains("Deployment db"), "{told:#}");
    assert_eq!(told["proof"]["denied"], json!([]));

    // A cluster-wide policy that comes first is in nobody's way.
    let guard = |tier| {
        json!({"kind": "ClusterNetworkPolicy", "apiVersion": "policy.networking.k8s.io/v1alpha2", "metadata": {"name": "guard"},
               "spec": {"tier": tier, "priority": 1, "subject": {"namespaces": {}},
                        "egress": [{"name": "no", "action": "Deny", "to": [{"networks": ["169.254.169.254/32"]}]}]}})
    };
    let mut objects = small();
    objects.push(guard("Admin"));
    let directory = tempfile::tempdir()?;
    written(directory.path(), &objects)?;
    let (told, ran) = answer(directory.path(), "shop", &[])?;
    assert_eq!((ran.status, names(&told)), (0, vec!["default-deny-all", "db", "web"]), "{}", ran.err);
    let ran = ask(directory.path(), &["--namespace", "shop"]);
    let stays = "# ClusterNetworkPolicy/guard stays and comes first: what that denies stays denied.";
    assert_eq!(ran.out.matches(stays).count(), 2, "{}", ran.out);

    // A baseline would no longer be asked.
    let mut objects = small();
    objects.push(guard("Baseline"));
    let directory = tempfile::tempdir()?;
    written(directory.path(), &objects)?;
    let (told, ran) = answer(directory.path(), "shop", &[])?;
    assert_eq!(names(&told), [""; 0]);
    assert!(ran.err.contains("ClusterNetworkPolicy/guard selects it"), "{}", ran.err);

    // What another CNI's does nobody knows.
    let mut objects = small();
    objects.push(json!({"kind": "CiliumNetworkPolicy", "apiVersion": "cilium.io/v2", "metadata": {"namespace": "shop", "name": "theirs"},
        "spec": {"endpointSelector": {}, "egress": [{"toEntities": ["world"]}]}}));
    let directory = tempfile::tempdir()?;
    written(directory.path(), &objects)?;
    let (told, ran) = answer(directory.path(), "shop", &[])?;
    assert_eq!(names(&told), [""; 0]);
    assert!(ran.err.contains("theirs selects it"), "{}", ran.err);
    Ok(())
}

/// What policies of then deny must not be allowed by a suggestion, even where nobody enforced them.
#[test]
fn what_was_denied_is_left_out() -> Result<()> {
    let mut objects = small();
    let mut closed = existing("closed", "db", &json!(["Ingress"]));
    closed["spec"]["ingress"] = json!([]);
    objects.push(closed);
    let directory = tempfile::tempdir()?;
    written(directory.path(), &objects)?;
    let (told, ran) = answer(directory.path(), "shop", &["--all"])?;
    assert!(!names(&told).contains(&"db"), "{told:#}");
    assert!(ran.err.contains("shop/web → shop/db TCP/5432: denied by the policies of then"), "{}", ran.err);
    Ok(())
}

/// An address outside that is told as a hash is nobody's that a rule could name.
#[test]
fn hashed_addresses_are_counted_as_missing() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut agent = begin(directory.path(), &small())?;
    let key = AddressKey::new(b"a secret that is long enough, and then some")?;
    agent.privacy = Privacy { key: Some(key), ..Privacy::default() };
    agent.connects("shop-web-0", "10.0.0.1", "203.0.113.9", 443);
    agent.accepts("shop-db-0", "10.0.0.2", "10.0.0.1", 5432);
    agent.finish(100);
    let (told, ran) = answer(directory.path(), "shop", &[])?;
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("1 flow that would count does not say who an end was"), "{}", ran.err);
    assert!(!told["policies"].to_string().contains("ipBlock"), "{told:#}");
    Ok(())
}

/// What Kubernetes would not take in an object's name, or a file's.
#[test]
fn files_are_only_made_inside_the_directory() -> Result<()> {
    let mut objects = small();
    let mut odd = pod("shop", "odd-0", &json!({"app": "odd"}), &["10.0.0.9"], "node-1");
    odd["metadata"]["ownerReferences"][0]["kind"] = json!("Custom");
    odd["metadata"]["ownerReferences"][0]["name"] = json!("../Weird_Name");
    objects.push(odd);
    let directory = tempfile::tempdir()?;
    let mut agent = begin(directory.path(), &objects)?;
    agent.accepts("shop-odd-0", "10.0.0.9", "10.0.0.1", 80);
    agent.finish(100);
    let into = tempfile::tempdir()?;
    let inside = into.path().join("a");
    let ran = ask(directory.path(), &["-n", "shop", "--directory", inside.to_str().context("a name")?]);
    assert_eq!(ran.status, 1, "{}", ran.err);
    let mut found: Vec<_> =
        std::fs::read_dir(&inside)?.map(|it| it.map(|it| it.file_name())).collect::<Result<_, _>>()?;
    found.sort();
    assert_eq!(found, ["shop.default-deny-all.yaml", "shop.web.yaml", "shop.weird-name.yaml"]);
    assert_eq!(std::fs::read_dir(into.path())?.count(), 1);
    Ok(())
}

/// What an agent wrote before it was killed counts, also where the end of it is torn.
#[test]
fn a_killed_agent_leaves_what_it_had_written() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mut agent = begin(directory.path(), &small())?;
    agent.accepts("shop-db-0", "10.0.0.2", "10.0.0.1", 5432);
    agent.asks("shop-web-0", "10.0.0.1", "10.0.9.53", 53);
    agent.killed(100)?;
    let (told, ran) = answer(directory.path(), "shop", &[])?;
    assert_eq!(names(&told), ["default-deny-all", "db", "web"], "{}", ran.err);
    for entry in std::fs::read_dir(files::open_directory(directory.path()))?.flatten() {
        if entry.path().extension().is_some_and(|it| it == "arrow") {
            let mut bytes = std::fs::read(entry.path())?;
            bytes.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0x40]);
            std::fs::write(entry.path(), bytes)?;
        }
    }
    let (torn, ran) = answer(directory.path(), "shop", &[])?;
    assert_eq!(policies(&torn), policies(&told), "{}", ran.err);
    Ok(())
}
