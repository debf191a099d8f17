//! The labels that workloads are selected by.

use super::*;

/// One client connects to each of these, so that each gets a policy.
fn world(workloads: &[(&str, Value)]) -> Vec<Value> {
    let mut objects: Vec<Value> = ["shop", "kube-system"].map(namespace).to_vec();
    objects.push(node("node-1", "192.168.1.1"));
    objects.push(dns_server());
    for (number, (name, labels)) in workloads.iter().enumerate() {
        objects.push(pod("shop", name, labels, &[&format!("10.0.0.{}", number + 1)], "node-1"));
    }
    objects
}

fn all_accept(objects: &[Value], workloads: &[(&str, Value)]) -> Result<(Value, Run)> {
    let directory = tempfile::tempdir()?;
    let mut agent = begin(directory.path(), objects)?;
    for (number, (name, _)) in workloads.iter().enumerate() {
        agent.accepts(&format!("shop-{name}"), &format!("10.0.0.{}", number + 1), "203.0.113.1", 80);
    }
    agent.finish(100);
    answer(directory.path(), "shop", &[])
}

#[test]
fn only_labels_that_stay_select_and_as_few_as_tell_apart() -> Result<()> {
    let workloads = [
        ("web-0", json!({"app": "web", "version": "1"})),
        ("web-1", json!({"app": "web", "version": "2", "extra": "x"})),
        (
            "pg-0",
            json!({"app.kubernetes.io/name": "postgres", "app.kubernetes.io/instance": "one", "helm.sh/chart": "p-1"}),
        ),
        (
            "pg2-0",
            json!({"app.kubernetes.io/name": "postgres", "app.kubernetes.io/instance": "two", "helm.sh/chart": "p-1"}),
        ),
        ("odd-0", json!({"example.com/team": "a", "statefulset.kubernetes.io/pod-name": "odd-0"})),
        ("truth-0", json!({"app": "true"})),
        ("number-0", json!({"app": "1e3"})),
        ("nothing-0", json!({"app": "null"})),
        ("number-b-0", json!({"app": "0123"})),
    ];
    let objects = world(&workloads);
    let (told, ran) = all_accept(&objects, &workloads)?;
    assert_eq!(ran.status, 0, "{}", ran.err);
    for (name, labels) in [
        ("web", json!({"app": "web"})),
        ("pg", json!({"app.kubernetes.io/instance": "one"})),
        ("pg2", json!({"app.kubernetes.io/instance": "two"})),
        ("odd", json!({"example.com/team": "a"})),
        ("truth", json!({"app": "true"})),
        ("number", json!({"app": "1e3"})),
        ("nothing", json!({"app": "null"})),
        ("number-b", json!({"app": "0123"})),
    ] {
        assert_eq!(selector(&told, name), &labels);
    }
    // Each reader takes them for texts: what was written is read again before anything is printed, and here by another.
    let directory = tempfile::tempdir()?;
    let mut agent = begin(directory.path(), &objects)?;
    agent.accepts("shop-truth-0", "10.0.0.6", "10.0.0.7", 80);
    agent.finish(100);
    let ran = ask(directory.path(), &["-n", "shop"]);
    assert!(
        ran.out.contains("      app: \"true\"\n") && ran.out.contains("              app: \"1e3\"\n"),
        "{}",
        ran.out
    );
    Ok(())
}

#[test]
fn what_no_label_tells_apart_has_one_policy_together() -> Result<()> {
    let workloads = [
        ("blue-0", json!({"app": "web"})),
        ("green-0", json!({"app": "web"})),
        ("canary-0", json!({"app": "api", "track": "canary"})),
        ("stable-0", json!({"app": "api"})),
        ("bare-0", json!({"version": "3"})),
    ];
    let objects = world(&workloads);
    let (told, ran) = all_accept(&objects, &workloads)?;
    assert_eq!(names(&told), ["blue-and-green", "canary-and-stable"]);
    assert_eq!(selector(&told, "canary-and-stable"), &json!({"app": "api"}));
    let head = policy(&told, "blue-and-green")["header"].to_string();
    assert!(
        head.contains("No labels tell these workloads apart, so they have this policy together."),
        "{head}"
    );
    // A pod that no label selects: told, and nothing that would deny what it does.
    assert_eq!(ran.status, 1);
    assert!(
        ran.err.contains("passed over: Deployment shop/bare: its pods have no label in common that stays"),
        "{}",
        ran.err
    );
    let why = told["no_default_deny"]["shop"].as_str().context("why")?;
    assert!(why.ends_with("what has no policy of its own here: Deployment bare"), "{why}");
    assert_eq!(told["proof"]["denied"], json!([]), "{}", ran.err);
    Ok(())
}

/// As a peer the one with a label of its own is told apart, and the other is not.
#[test]
fn a_peer_is_selected_as_narrowly_as_its_labels_allow() -> Result<()> {
    let workloads = [
        ("canary-0", json!({"app": "api", "track": "canary"})),
        ("stable-0", json!({"app": "api"})),
        ("db-0", json!({"app": "db"})),
        ("cache-0", json!({"app": "cache"})),
        ("bare-0", json!({"version": "3"})),
    ];
    let objects = world(&workloads);
    let directory = tempfile::tempdir()?;
    let mut agent = begin(directory.path(), &objects)?;
    agent.accepts("shop-db-0", "10.0.0.3", "10.0.0.1", 5432);
    agent.accepts("shop-cache-0", "10.0.0.4", "10.0.0.2", 6379);
    agent.finish(100);
    let (told, _) = answer(directory.path(), "shop", &[])?;
    let of = |name: &str| &spec(&told, name)["ingress"][0]["from"][0]["podSelector"]["matchLabels"];
    assert_eq!(of("db"), &json!({"track": "canary"}));
    assert_eq!(of("cache"), &json!({"app": "api"}));
    let why = policy(&told, "cache")["ingress"][0]["why"].to_string();
    assert!(why.contains("this selects Deployment canary too"), "{why}");

    // A peer without a label that stays: no rule, and the evaluator finds what it would lose.
    let directory = tempfile::tempdir()?;
    let mut agent = begin(directory.path(), &objects)?;
    agent.accepts("shop-db-0", "10.0.0.3", "10.0.0.5", 5432);
    agent.finish(100);
    let (told, ran) = answer(directory.path(), "shop", &[])?;
    assert_eq!(ran.status, 1);
    assert_eq!(spec(&told, "db")["ingress"], json!([]));
    assert!(ran.err.contains("WOULD BE DENIED: shop/bare → shop/db TCP/5432"), "{}", ran.err);
    assert!(
        ran.err.contains("1 flow that counts judged again with 1 policy: some would be DENIED"),
        "{}",
        ran.err
    );
    Ok(())
}

/// Labels of another time, and pods that come and go under other names.
#[test]
fn the_labels_of_all_the_time_count() -> Result<()> {
    let workloads = [("web-0", json!({"app": "web", "tier": "front"}))];
    let mut objects = world(&workloads);
    let bare = |name: &str, ip: &str| {
        let mut bare = pod("shop", name, &json!({"app": "task"}), &[ip], "node-1");
        bare["metadata"]["ownerReferences"] = json!([]);
        bare
    };
    objects.push(bare("task-a", "10.0.0.20"));
    let directory = tempfile::tempdir()?;
    let mut agent = begin(directory.path(), &objects)?;
    agent.accepts("shop-web-0", "10.0.0.1", "10.0.0.20", 80);
    agent.delete(Kind::Pod, "shop", "task-a", 1_000);
    agent.apply(&bare("task-b", "10.0.0.21"), 1_000);
    let mut renamed = objects[4].clone();
    renamed["metadata"]["labels"]["app"] = json!("web2");
    agent.apply(&renamed, 1_001);
    agent.at(1_002);
    agent.accepts("shop-web-0", "10.0.0.1", "10.0.0.21", 80);
    agent.finish(2_000);
    let (told, ran) = answer(directory.path(), "shop", &[])?;
    assert_eq!(selector(&told, "web"), &json!({"tier": "front"}));
    assert_eq!(names(&told), ["default-deny-all", "task", "web"], "two pods of one kind are one");
    assert_eq!(spec(&told, "web")["ingress"].as_array().map(Vec::len), Some(1));
    assert!(policy(&told, "task")["header"].to_string().contains("pods without a controller"), "{told:#}");
    assert_eq!(told["proof"]["denied"], json!([]), "{}", ran.err);
    Ok(())
}
