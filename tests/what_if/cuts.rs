//! Flows that differ in nothing but their time fare differently where the objects changed in between: also those that a verdict hangs
//! on by way of an address or a Service.

use netaudit::store::history::Bound;

use super::*;
use crate::suggest::node;

/// Of the pods that are behind [`behind`], in another namespace.
fn far(name: &str, app: &str, ip: &str) -> Value {
    let mut pod = pod_on("node-2", name, &format!("uid-{name}"), &[ip]);
    pod["metadata"]["namespace"] = "far".into();
    pod["metadata"]["labels"]["app"] = app.into();
    pod
}

fn namespace(name: &str, team: &str) -> Value {
    json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name, "labels": {"team": team}}})
}

/// A store that an agent wrote which began as every story does, and what it told of that.
fn written<T>(story: impl FnOnce(&mut Agent) -> Result<T>) -> Result<(tempfile::TempDir, T)> {
    let directory = tempfile::tempdir()?;
    let mut agent = Agent::new(directory.path(), "run-a")?;
    begin(&mut agent);
    let told = story(&mut agent)?;
    agent.finish(400);
    Ok((directory, told))
}

/// A pod of web asks the Service of [`behind`].
fn to_far(agent: &mut Agent, at: i64) -> String {
    agent.connects("uid-1", "10.0.0.1", "10.96.0.2:80", at)
}

/// One change, of this flow.
#[track_caller]
fn assert_changes(store: &tempfile::TempDir, candidate: &[Value], change: &str, flow: &str) -> Result<()> {
    let (told, _) = answer(store.path(), candidate, &[])?;
    assert_eq!(changes(&told), [change], "{told:#}");
    assert_eq!(told["changes"][0]["example"], *flow);
    Ok(())
}

/// A Service that selects nobody, and who is behind it, each with its port.
fn behind(agent: &mut Agent, endpoints: &[(&str, u16)], at: i64) {
    agent.apply(
        &json!({"kind": "Service", "apiVersion": "v1", "metadata": {"namespace": "shop", "name": "far"},
                "spec": {"clusterIP": "10.96.0.2", "type": "NodePort",
                         "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30_080}]}}),
        at,
    );
    for (ip, port) in endpoints {
        agent.apply(
            &json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
                    "metadata": {"namespace": "shop", "name": format!("far-{}", ip.replace('.', "-")),
                                 "labels": {"kubernetes.io/service-name": "far"}},
                    "ports": [{"port": port}], "endpoints": [{"addresses": [ip]}]}),
            at,
        );
    }
}

/// Lets web out to pods with these labels only.
fn only_to(namespaces: Value, pods: Value) -> Value {
    let peer =
        json!({"namespaceSelector": {"matchLabels": namespaces}, "podSelector": {"matchLabels": pods}});
    named("web", "web", json!({"policyTypes": ["Egress"], "egress": [{"to": [peer]}]}))
}

/// Lets everybody out to nodes like these only.
fn only_nodes(selector: Value) -> Value {
    json!({
        "kind": "ClusterNetworkPolicy", "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "metadata": {"name": "nodes"},
        "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "egress": [
            {"name": "nodes", "action": "Accept", "to": [{"nodes": selector}]},
            {"name": "others", "action": "Deny", "to": [{"networks": ["0.0.0.0/0"]}]},
        ]},
    })
}

#[test]
fn pods_and_namespaces_behind_a_service_that_selects_nobody() -> Result<()> {
    let (store, [disagree, denied]) = written(|agent| {
        agent.apply(&namespace("far", "one"), 3);
        agent.apply(&far("x", "good", "10.0.1.5"), 3);
        agent.apply(&far("y", "good", "10.0.1.6"), 3);
        behind(agent, &[("10.0.1.5", 8080), ("10.0.1.6", 8080)], 3);
        to_far(agent, 40);
        agent.apply(&far("y", "bad", "10.0.1.6"), 100);
        let disagree = to_far(agent, 140);
        agent.apply(&far("y", "good", "10.0.1.6"), 200);
        to_far(agent, 240);
        agent.apply(&namespace("far", "two"), 300);
        Ok([disagree, to_far(agent, 340)])
    })?;
    let good = only_to(json!({"team": "one"}), json!({"app": "good"}));
    let (told, _) = answer(store.path(), &[good], &[])?;
    assert_eq!(
        changes(&told),
        [
            "allowed→denied shop/web→service shop/far 8080 egress 1",
            "allowed→unknown shop/web→service shop/far 8080 egress 1",
        ],
        "{told:#}"
    );
    assert_eq!([&told["changes"][0]["example"], &told["changes"][1]["example"]], [&*denied, &*disagree]);
    Ok(())
}

#[test]
fn an_address_that_the_kernel_showed_at_another_pod() -> Result<()> {
    let (store, nobody) = written(|agent| {
        behind(agent, &[("10.0.0.4", 8080), ("198.18.0.9", 8080)], 3);
        let nobody = to_far(agent, 40);
        // Its object does not say so.
        let ip = "198.18.0.9".parse()?;
        let id = agent.auditor.cluster().pod_by_uid("uid-3").context("api-0")?;
        agent.auditor.cluster_mut().bind(ip, id, t(100));
        let pod = agent.auditor.cluster().pod(id).context("api-0")?;
        agent.store.history_mut().bound(Bound { pod, ip }, false, t(100));
        to_far(agent, 140);
        Ok(nobody)
    })?;
    let pods = json!({"policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {}}]}]});
    let change = "allowed→unknown shop/web→service shop/far 8080 egress 1";
    assert_changes(&store, &[named("web", "web", pods)], change, &nobody)
}

#[test]
fn a_node_gets_an_address_that_is_behind_a_service() -> Result<()> {
    let (store, before) = written(|agent| {
        agent.apply(&node("node-2", "192.168.0.2"), 3);
        behind(agent, &[("192.168.0.2", 6443), ("192.168.0.3", 6443)], 3);
        let before = to_far(agent, 40);
        agent.apply(&node("node-3", "192.168.0.3"), 100);
        to_far(agent, 140);
        Ok(before)
    })?;
    let change = "allowed→unknown shop/web→service shop/far 6443 egress 1";
    assert_changes(&store, &[only_nodes(json!({}))], change, &before)
}

#[test]
fn the_label_of_a_node_behind_a_service_of_which_nobody_says_where_it_leads() -> Result<()> {
    let node_in = |name: &str, ip: &str, zone: &str| {
        let mut node = node(name, ip);
        node["metadata"]["labels"] = json!({"zone": zone});
        node
    };
    let (store, disagree) = written(|agent| {
        for (number, node) in ["node-2", "node-3"].into_iter().enumerate() {
            let (name, ip) = (format!("host-{number}"), format!("192.168.0.{}", number + 2));
            agent.apply(&node_in(node, &ip, "x"), 3);
            let mut pod = pod_on(node, &name, &format!("uid-host-{number}"), &[&ip]);
            pod["spec"]["hostNetwork"] = true.into();
            agent.apply(&pod, 3);
        }
        agent.apply(
            &json!({"kind": "Service", "apiVersion": "v1", "metadata": {"namespace": "shop", "name": "hosts"},
                    "spec": {"clusterIP": "10.96.0.3", "selector": {"app": "host"}, "ports": [{"port": 80}]}}),
            3,
        );
        agent.connects("uid-1", "10.0.0.1", "10.96.0.3:80", 40);
        agent.apply(&node_in("node-3", "192.168.0.3", "y"), 100);
        Ok(agent.connects("uid-1", "10.0.0.1", "10.96.0.3:80", 140))
    })?;
    let change = "allowed→unknown shop/web→service shop/hosts 80 egress 1";
    assert_changes(&store, &[only_nodes(json!({"matchLabels": {"zone": "x"}}))], change, &disagree)
}

#[test]
fn a_node_port_whose_endpoints_disagree_is_judged_again_by_them() -> Result<()> {
    let (store, flow) = written(|agent| {
        agent.apply(&node("node-2", "192.168.0.2"), 3);
        behind(agent, &[("10.0.0.4", 8080), ("10.0.0.3", 9090)], 3);
        let to_api = json!({"podSelector": {"matchLabels": {"app": "api"}}});
        let only = named("web", "web", json!({"policyTypes": ["Egress"], "egress": [{"to": [to_api]}]}));
        agent.apply(&only, 4);
        Ok(agent.connects("uid-1", "10.0.0.1", "192.168.0.2:30080", 40))
    })?;
    let candidate = [policy("web"), named("web", "web", json!({"policyTypes": ["Egress"], "egress": [{}]}))];
    let change = "unknown→allowed shop/web→service shop/far 30080 egress 1";
    assert_changes(&store, &candidate, change, &flow)?;
    let (_, ran) = answer(store.path(), &candidate, &[])?;
    assert!(!ran.err.contains("recorded with another verdict"), "{}", ran.err);
    let told = run(netaudit().args(["why", &flow, "--flow-store"]).arg(store.path()));
    assert!(told.out.contains("unknown, as recorded") && told.out.contains("10.0.0.3"), "{}", told.out);
    Ok(())
}

/// The end that connects shows that api's own namespace redirects.
fn redirects(agent: &mut Agent) -> Result<()> {
    let (web, api) = (number("uid-1"), number("uid-3"));
    let mut flows = Vec::new();
    let made = Observation { at: t(40), ..egress(web, web, "10.0.0.1:40000", "10.0.0.3:8080") };
    let accepted = Observation { at: t(40), ..ingress(api, api, "10.0.0.3:15006", "10.0.0.1:40000") };
    agent.auditor.observe(&made, t(40), &mut flows);
    agent.auditor.observe(&accepted, t(40), &mut flows);
    ensure!(flows.len() == 2, "{flows:?}");
    Ok(())
}

#[test]
fn a_port_that_a_redirect_hid_while_no_policy_was_in_the_way() -> Result<()> {
    let (store, hidden) = written(|agent| {
        redirects(agent)?;
        Ok(agent.accepts("uid-3", "10.0.0.3:15006", "203.0.113.9", 50))
    })?;
    let of_api = |spec| [named("api", "api", spec)];
    let only_8080 = of_api(json!({"ingress": [{"ports": [{"port": 8080}]}]}));
    assert_changes(&store, &only_8080, "allowed→unknown external→shop/api 15006 ingress 1", &hidden)?;
    // Whatever port it was.
    let nothing = of_api(json!({"policyTypes": ["Ingress"]}));
    assert_changes(&store, &nothing, "allowed→denied external→shop/api 15006 ingress 1", &hidden)?;
    let (told, ran) = answer(store.path(), &of_api(json!({"policyTypes": ["Egress"]})), &[])?;
    assert_eq!((changes(&told), ran.status), (vec![], 0), "{told:#}");
    Ok(())
}

#[test]
fn where_a_port_is_hidden_the_other_end_may_be_certain_all_the_same() -> Result<()> {
    let (store, flow) = written(|agent| {
        agent.apply(&namespace("far", "one"), 3);
        agent.apply(&far("x", "good", "10.0.1.5"), 3);
        redirects(agent)?;
        Ok(agent.accepts("uid-3", "10.0.0.3:15006", "10.0.1.5", 50))
    })?;
    let egress = |rules| {
        let mut policy = named("x", "good", json!({"policyTypes": ["Egress"], "egress": rules}));
        policy["metadata"]["namespace"] = "far".into();
        [policy]
    };
    assert_changes(&store, &egress(json!([])), "allowed→denied far/x→shop/api 15006 egress 1", &flow)?;
    let only_8080 = egress(json!([{"ports": [{"port": 8080}]}]));
    assert_changes(&store, &only_8080, "allowed→unknown far/x→shop/api 15006 egress 1", &flow)
}

#[test]
fn a_clock_that_was_set_back_brings_nothing_back_that_was_gone() -> Result<()> {
    let (store, ()) = written(|agent| {
        agent.apply(&named("api", "api", json!({"policyTypes": ["Ingress"]})), 200);
        // By the clock this was before the policy was made.
        agent.delete(Kind::NetworkPolicy, "api", 100);
        agent.accepts("uid-3", "10.0.0.3:80", "10.0.0.1", 110);
        agent.accepts("uid-3", "10.0.0.3:80", "10.0.0.1", 300);
        Ok(())
    })?;
    let (told, ran) = answer(store.path(), &[policy("web")], &[])?;
    assert_eq!((changes(&told), ran.status), (vec![], 0), "{told:#}");
    assert_eq!(told["recorded_otherwise"], json!([]), "they are judged as they were recorded: {told:#}");
    Ok(())
}
